//! Is this frontend fit for traffic? A real wrap and unwrap every second decides, with hysteresis.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use ekm_core::{Ekm, Error};
use serde::Serialize;

/// How old a result may be; also how often the check runs.
pub const INTERVAL: Duration = Duration::from_secs(1);
/// One failure may be chance.
const FAILURES_UNTIL_UNREADY: u32 = 3;
const SUCCESSES_UNTIL_READY: u32 = 2;

/// The last result, and what follows from the last few.
pub struct Health {
    state: Mutex<State>,
    draining: AtomicBool,
}

struct State {
    checked: Option<Checked>,
    failures: u32,
    successes: u32,
    ready: bool,
}

#[derive(Clone)]
struct Checked {
    at: Instant,
    took: Duration,
    failure: Option<String>,
}

/// What `/healthz` answers.
#[derive(Serialize)]
pub struct Report {
    /// `ok` or `failing`.
    pub status: &'static str,
    /// The last check's error, with its code from the error reference.
    pub error: Option<String>,
    /// How long a wrap and an unwrap took together.
    pub took_us: Option<u128>,
    /// How long ago that was.
    pub age_ms: Option<u128>,
}

impl Default for Health {
    /// Not ready until the first check has passed.
    fn default() -> Self {
        let state = State { checked: None, failures: 0, successes: 0, ready: false };
        Self { state: Mutex::new(state), draining: AtomicBool::new(false) }
    }
}

impl Health {
    /// Checks now, and remembers.
    pub async fn check(&self, ekm: &Ekm, patience: Duration) {
        let started = Instant::now();
        let outcome = ekm.check_health(started + patience).await;
        self.note(started, &outcome);
    }

    fn note(&self, started: Instant, outcome: &Result<(), Error>) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let first = state.checked.is_none();
        match outcome {
            Ok(()) => (state.successes, state.failures) = (state.successes + 1, 0),
            Err(_) => (state.successes, state.failures) = (0, state.failures + 1),
        }
        let was_ready = state.ready;
        if state.failures >= FAILURES_UNTIL_UNREADY {
            state.ready = false;
        } else if state.successes >= SUCCESSES_UNTIL_READY || (first && outcome.is_ok()) {
            state.ready = true;
        }
        match (was_ready, state.ready, outcome) {
            (true, false, Err(error)) => tracing::error!(code = error.code(), %error, "not ready any more"),
            (false, true, _) => tracing::info!("ready"),
            (false, false, Err(error)) if first => tracing::error!(code = error.code(), %error, "not ready"),
            _ => {}
        }
        let failure = outcome.as_ref().err().map(|error| format!("{error} [{}]", error.code()));
        state.checked = Some(Checked { at: Instant::now(), took: started.elapsed(), failure });
    }

    /// Takes readiness away for good: the process is going down.
    pub fn drain(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }

    /// Whether a drain has begun.
    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    /// Whether traffic should come here.
    pub fn is_ready(&self) -> bool {
        !self.is_draining() && self.state.lock().unwrap_or_else(PoisonError::into_inner).ready
    }

    /// The last check. One that has not come back for long counts as failing.
    pub fn report(&self) -> Report {
        let checked = self.state.lock().unwrap_or_else(PoisonError::into_inner).checked.clone();
        let Some(checked) = checked else {
            return Report { status: "failing", error: Some("not checked yet".into()), took_us: None, age_ms: None };
        };
        let age = checked.at.elapsed();
        let overdue = (age > 5 * INTERVAL).then(|| "the check has not come back".to_owned());
        let error = checked.failure.or(overdue);
        Report {
            status: if error.is_none() { "ok" } else { "failing" },
            error,
            took_us: Some(checked.took.as_micros()),
            age_ms: Some(age.as_millis()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readiness_goes_after_three_failures_and_comes_back_after_two_successes() {
        let health = Health::default();
        assert!(!health.is_ready());
        let feed = |outcomes: &str| {
            for outcome in outcomes.chars() {
                health.note(Instant::now(), &if outcome == '+' { Ok(()) } else { Err(Error::HsmTimeout) });
            }
            health.is_ready()
        };
        assert!(feed("+"));
        assert!(feed("--"));
        assert!(feed("+--"));
        assert!(!feed("-"));
        assert!(!feed("+-+"));
        assert!(feed("+"));
        health.drain();
        assert!(!health.is_ready());
    }

    #[test]
    fn the_report_names_the_error_code() {
        let health = Health::default();
        assert_eq!(health.report().status, "failing");
        health.note(Instant::now(), &Err(Error::HsmTimeout));
        assert!(health.report().error.unwrap().ends_with("[hsm_timeout]"));
    }
}
