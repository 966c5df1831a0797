//! Is this frontend fit for traffic? A real wrap and unwrap in each shard every second decides, with hysteresis.
//!
//! A shard's trouble stays in its shard: the frontend is ready while one shard is. What all frontends find wrong takes none of them out:
//! no other could do better, and a load balancer without frontends answers nobody, not even with keys that need no HSM. One that can do
//! better is enough: it may be another site's, to which traffic has to go.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::response::{IntoResponse, Response};
use ekm_core::{Ekm, Error, ShardName};
use http::{StatusCode, Uri};
use serde::Serialize;

/// How old a result may be; also how often the check runs.
pub const INTERVAL: Duration = Duration::from_secs(1);
/// One failure may be chance.
const FAILURES_UNTIL_UNREADY: u32 = 3;
const SUCCESSES_UNTIL_READY: u32 = 2;

/// How each shard is, and whether the process is going down.
pub struct Health {
    shards: Vec<ShardHealth>,
    draining: AtomicBool,
}

/// A shard's last result, and what follows from the last few.
pub struct ShardHealth {
    name: ShardName,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    checked: Option<Checked>,
    failures: u32,
    successes: u32,
    ready: bool,
    /// It has been ready once.
    has_been: bool,
    /// It fails on all other frontends, too.
    shared: bool,
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
    /// `ok` if every shard is.
    pub status: &'static str,
    /// By name.
    pub shards: BTreeMap<String, ShardReport>,
}

/// What `/healthz?shard=NAME` answers.
#[derive(Serialize)]
pub struct ShardReport {
    /// `ok` or `failing`.
    pub status: &'static str,
    /// The last check's error, with its code from the error reference.
    pub error: Option<String>,
    /// How long a wrap and an unwrap took together.
    pub took_us: Option<u128>,
    /// How long ago that was.
    pub age_ms: Option<u128>,
}

impl Health {
    /// Not ready until the first check has passed.
    pub fn new(ekm: &Ekm) -> Self {
        let names = ekm.custodian().shard_names().into_iter();
        let shards = names.map(|name| ShardHealth { name, state: Mutex::default() }).collect();
        Self { shards, draining: AtomicBool::new(false) }
    }

    /// Every shard.
    pub fn shards(&self) -> &[ShardHealth] {
        &self.shards
    }

    /// One of them.
    pub fn shard(&self, name: &str) -> Option<&ShardHealth> {
        self.shards.iter().find(|shard| shard.name.as_str() == name)
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
        !self.is_draining() && self.shards.iter().any(ShardHealth::is_ready)
    }

    /// The shards that fail, for the other frontends.
    pub fn unfit(&self) -> String {
        let failing = self.shards.iter().filter(|shard| shard.report().error.is_some());
        failing.map(|shard| shard.name.as_str()).collect::<Vec<_>>().join(" ")
    }

    /// Takes in what the other frontends find wrong with themselves.
    pub fn compare<'a>(&self, others: impl Iterator<Item = &'a str> + Clone) {
        let count = others.clone().count();
        for shard in &self.shards {
            let name = shard.name.as_str();
            let alike = others.clone().filter(|unfit| unfit.split(' ').any(|unfit| unfit == name)).count();
            shard.note_others(count > 0 && alike == count);
        }
    }

    /// What a load balancer gets: 200 if traffic should come here. With `?shard=NAME`, for a pool that serves one shard only, that shard
    /// alone decides.
    pub fn probe(&self, uri: &Uri) -> Response {
        match self.is_ready_for(uri) {
            Ok(true) => (StatusCode::OK, "ready\n").into_response(),
            Ok(false) => (StatusCode::SERVICE_UNAVAILABLE, "not ready\n").into_response(),
            Err(unknown) => (StatusCode::NOT_FOUND, unknown).into_response(),
        }
    }

    /// Whether traffic should come here: all of it, or that for the shard which the query names.
    pub fn is_ready_for(&self, uri: &Uri) -> Result<bool, String> {
        let shard = self.shard_asked_for(uri)?;
        Ok(shard.map_or(self.is_ready(), |shard| shard.is_ready() && !self.is_draining()))
    }

    /// `shard=NAME` in the query.
    pub fn shard_asked_for(&self, uri: &Uri) -> Result<Option<&ShardHealth>, String> {
        let name = uri.query().and_then(|query| query.split('&').find_map(|part| part.strip_prefix("shard=")));
        let Some(name) = name else { return Ok(None) };
        let found = self.shard(name).map(Some);
        found.ok_or_else(|| {
            let names: Vec<_> = self.shards.iter().map(|shard| shard.name.as_str()).collect();
            format!("this frontend has no such shard; it has {}\n", names.join(", "))
        })
    }

    /// The last checks.
    pub fn report(&self) -> Report {
        let shards: BTreeMap<_, _> = self.shards.iter().map(|shard| (shard.name.to_string(), shard.report())).collect();
        let sound = shards.values().all(|shard| shard.error.is_none());
        Report { status: if sound { "ok" } else { "failing" }, shards }
    }
}

impl ShardHealth {
    /// What operators call it.
    pub fn name(&self) -> &ShardName {
        &self.name
    }

    /// Checks now, and remembers.
    pub async fn check(&self, ekm: &Ekm, patience: Duration) {
        let started = Instant::now();
        let outcome = ekm.check_health(&self.name, started + patience).await;
        self.note(started, &outcome);
    }

    fn note(&self, started: Instant, outcome: &Result<(), Error>) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let first = state.checked.is_none();
        match outcome {
            Ok(()) => (state.successes, state.failures, state.shared) = (state.successes + 1, 0, false),
            Err(_) => (state.successes, state.failures) = (0, state.failures + 1),
        }
        let was_ready = state.ready;
        if state.failures >= FAILURES_UNTIL_UNREADY {
            state.ready = false;
        } else if state.successes >= SUCCESSES_UNTIL_READY || (first && outcome.is_ok()) {
            (state.ready, state.has_been) = (true, true);
        }
        match (was_ready, state.ready, outcome) {
            (true, false, Err(error)) => {
                tracing::error!(shard = %self.name, code = error.code(), %error, "not ready any more");
            }
            (false, true, _) => tracing::info!(shard = %self.name, "ready"),
            (false, false, Err(error)) if first => {
                tracing::error!(shard = %self.name, code = error.code(), %error, "not ready");
            }
            _ => {}
        }
        let failure = outcome.as_ref().err().map(|error| format!("{error} [{}]", error.code()));
        state.checked = Some(Checked { at: Instant::now(), took: started.elapsed(), failure });
    }

    /// All other frontends have the same trouble, or not.
    fn note_others(&self, alike: bool) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let shared = alike && state.has_been;
        if shared != state.shared {
            tracing::warn!(shard = %self.name, shared, "whether all frontends fail alike, so that this one stays ready");
        }
        state.shared = shared;
    }

    /// Whether it fails on all frontends, and this one is ready because of that.
    pub fn is_shared_trouble(&self) -> bool {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.shared && !state.ready
    }

    /// Whether traffic for its keys should come here.
    pub fn is_ready(&self) -> bool {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.ready || state.shared
    }

    /// The last check. One that has not come back for long counts as failing.
    pub fn report(&self) -> ShardReport {
        let checked = self.state.lock().unwrap_or_else(PoisonError::into_inner).checked.clone();
        let Some(checked) = checked else {
            return ShardReport {
                status: "failing",
                error: Some("not checked yet".into()),
                took_us: None,
                age_ms: None,
            };
        };
        let age = checked.at.elapsed();
        let overdue = (age > 5 * INTERVAL).then(|| "the check has not come back".to_owned());
        let error = checked.failure.or(overdue);
        ShardReport {
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

    fn health(shards: usize) -> Health {
        let names = (0..shards).map(|number| format!("shard-{number}").parse().unwrap());
        let shards = names.map(|name| ShardHealth { name, state: Mutex::default() }).collect();
        Health { shards, draining: AtomicBool::new(false) }
    }

    fn feed(shard: &ShardHealth, outcomes: &str) -> bool {
        for outcome in outcomes.chars() {
            shard.note(Instant::now(), &if outcome == '+' { Ok(()) } else { Err(Error::HsmTimeout) });
        }
        shard.is_ready()
    }

    #[test]
    fn readiness_goes_after_three_failures_and_comes_back_after_two_successes() {
        let health = health(1);
        assert!(!health.is_ready());
        let feed = |outcomes: &str| feed(&health.shards[0], outcomes);
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
    fn the_frontend_is_ready_while_one_shard_is() {
        let health = health(2);
        assert!(!feed(&health.shards[0], "---") && !health.is_ready());
        assert!(feed(&health.shards[1], "+") && health.is_ready());
        assert_eq!(health.report().status, "failing", "for people who look, not for load balancers");
        assert!(feed(&health.shards[0], "++") && !feed(&health.shards[1], "---"));
        assert!(health.is_ready());
    }

    #[test]
    fn what_all_frontends_find_wrong_takes_none_of_them_out_and_one_that_can_do_better_is_enough() {
        let health = health(2);
        health.compare(["shard-0", "shard-0"].into_iter());
        assert!(!health.shards[0].is_ready(), "it has never been ready");
        assert!(feed(&health.shards[0], "+-"));
        assert_eq!(health.unfit(), "shard-0 shard-1");
        health.compare(["shard-0", "shard-1 shard-0"].into_iter());
        assert!(feed(&health.shards[0], "--------"));
        health.compare(["shard-0", "shard-0", "shard-1"].into_iter());
        assert!(!health.shards[0].is_ready(), "the others can do better");
        health.compare(["shard-0"].into_iter());
        assert!(health.shards[0].is_ready(), "they cannot any more");
        health.compare([].into_iter());
        assert!(!health.is_ready(), "alone it is no better");
    }

    #[test]
    fn the_report_names_the_error_code() {
        let health = health(1);
        assert_eq!(health.report().status, "failing");
        feed(&health.shards[0], "-");
        assert!(health.shards[0].report().error.unwrap().ends_with("[hsm_timeout]"));
    }
}
