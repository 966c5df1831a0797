//! How one replica is: its state, and what moves it from one to another. No I/O and no clock of its own.
//!
//! ```text
//! joining → verifying → serving ⇄ suspect → ejected ⇄ probing → serving
//! ```
//!
//! What requests meet only makes a replica suspect; a probe that fails ejects it, if the shard can do without. Whoever sends rubbish, or
//! too much, cannot eject anything.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Faults in a row that make a replica suspect.
const FAULTS_IN_A_ROW: u32 = 3;
/// Or this share of the operations in a window, if there were enough.
const FAULT_SHARE: f64 = 0.2;
const WINDOW: Duration = Duration::from_secs(1);
const WINDOW_MIN_OPERATIONS: u32 = 20;
/// Or taking longer than this, and [`SLOW_RATIO`] times as long as the others, for [`SLOW_FOR`].
const SLOW: Duration = Duration::from_millis(25);
const SLOW_RATIO: u32 = 3;
const SLOW_FOR: Duration = Duration::from_millis(400);
/// A replica that has answered nothing for so long, while it was asked, is probed at once.
const SILENT: Duration = Duration::from_millis(50);
/// Replicas that are faster than this are alike: what they differ by is chance, and the one that has less luck must not be left without
/// requests, by which its faults are found.
const ALIKE: Duration = Duration::from_millis(5);
/// After a replica has come back, it gets its share step by step.
const SLOW_START: Duration = Duration::from_secs(3);
/// From one attempt to come back to the next. The last one stays: a longer pause would be an outage that outlives its cause.
const BACK_OFF_S: [u64; 4] = [1, 1, 2, 5];

/// Where a replica stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum State {
    /// There is no way to its token yet, or not any more; one is being made.
    Joining,
    /// Logged in; has to show that it works.
    Verifying,
    /// In use.
    Serving,
    /// Something was wrong lately. In use only if no other replica can do it, until a probe has decided.
    Suspect,
    /// A probe has failed. Not in use until one passes.
    Ejected,
    /// Ejected, and being tried again.
    Probing,
    /// An operator has taken it out of use.
    Drained,
    /// The token refused the PIN, or could not do what is needed from the start: an operator has to act, and ekm tries nothing more.
    Refused,
}

impl State {
    /// Every one, in the order of the diagram.
    pub const ALL: [Self; 8] = [
        Self::Joining,
        Self::Verifying,
        Self::Serving,
        Self::Suspect,
        Self::Ejected,
        Self::Probing,
        Self::Drained,
        Self::Refused,
    ];

    /// The word in tables, metrics and the runbook.
    pub fn name(self) -> &'static str {
        match self {
            Self::Joining => "joining",
            Self::Verifying => "verifying",
            Self::Serving => "serving",
            Self::Suspect => "suspect",
            Self::Ejected => "ejected",
            Self::Probing => "probing",
            Self::Drained => "drained",
            Self::Refused => "refused",
        }
    }

    /// Whether operations can be sent to it at all.
    pub(super) fn is_usable(self) -> bool {
        matches!(self, Self::Serving | Self::Suspect)
    }
}

/// One replica's health. Read at every choice, written at every outcome.
pub(super) struct Health {
    inner: Mutex<Inner>,
    /// The mean time of an operation, in microseconds: follows rises at once, falls slowly (a peak EWMA).
    latency_us: AtomicU32,
    /// Operations under way.
    in_flight: AtomicU32,
    pub(super) counts: Counts,
}

/// What has happened since the start.
#[derive(Default)]
pub(super) struct Counts {
    pub(super) operations: AtomicU64,
    pub(super) faults: AtomicU64,
    pub(super) ejections: AtomicU64,
    /// Ways to the token that were lost: a worker that crashed, or was killed because a call hung.
    pub(super) losses: AtomicU64,
}

struct Inner {
    state: State,
    since: Instant,
    reason: String,
    faults_in_a_row: u32,
    window: Instant,
    window_operations: u32,
    window_faults: u32,
    slow_since: Option<Instant>,
    /// When the first of the operations was sent that had no answer since the last one that had.
    silent_since: Option<Instant>,
    failed_probes: usize,
}

/// What an operation says about its replica.
pub(super) enum Verdict<'a> {
    /// It worked, or refused a caller's ciphertext, after that time.
    Sound(Duration),
    /// It did not.
    Fault(&'a str),
}

impl Health {
    pub(super) fn new(now: Instant) -> Self {
        let inner = Inner {
            state: State::Joining,
            since: now,
            reason: "starting".into(),
            faults_in_a_row: 0,
            window: now,
            window_operations: 0,
            window_faults: 0,
            slow_since: None,
            silent_since: None,
            failed_probes: 0,
        };
        Self {
            inner: Mutex::new(inner),
            latency_us: AtomicU32::new(0),
            in_flight: AtomicU32::new(0),
            counts: Counts::default(),
        }
    }

    /// Where it stands, since when, and why.
    pub(super) fn now(&self) -> (State, Instant, String) {
        let inner = self.lock();
        (inner.state, inner.since, inner.reason.clone())
    }

    pub(super) fn state(&self) -> State {
        self.lock().state
    }

    pub(super) fn latency(&self) -> Duration {
        Duration::from_micros(self.latency_us.load(Ordering::Relaxed).into())
    }

    pub(super) fn in_flight(&self) -> u32 {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// Counts an operation as under way until the guard is dropped.
    pub(super) fn begin(&self) -> InFlight<'_> {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        InFlight(&self.in_flight)
    }

    /// What sending one more operation costs, to compare replicas by: those under way, times the time that one takes.
    pub(super) fn cost(&self, now: Instant) -> f64 {
        let inner = self.lock();
        let load = f64::from(self.in_flight() + 1) * self.latency().max(ALIKE).as_secs_f64();
        let served = now.saturating_duration_since(inner.since).as_secs_f64() / SLOW_START.as_secs_f64();
        // Ten times as dear when it has just come back.
        if served < 1.0 { load * (1.0 + 9.0 * (1.0 - served)) } else { load }
    }

    /// Takes an outcome in; `true` if the replica has just become suspect.
    pub(super) fn note(&self, verdict: Verdict<'_>, now: Instant) -> bool {
        self.counts.operations.fetch_add(1, Ordering::Relaxed);
        let mut inner = self.lock();
        if now.saturating_duration_since(inner.window) > WINDOW {
            (inner.window, inner.window_operations, inner.window_faults) = (now, 0, 0);
        }
        inner.window_operations += 1;
        match verdict {
            Verdict::Sound(took) => {
                self.note_latency(took);
                inner.faults_in_a_row = 0;
                inner.silent_since = None;
                false
            }
            Verdict::Fault(reason) => {
                self.counts.faults.fetch_add(1, Ordering::Relaxed);
                inner.faults_in_a_row += 1;
                inner.window_faults += 1;
                let many = inner.window_operations >= WINDOW_MIN_OPERATIONS
                    && f64::from(inner.window_faults) >= FAULT_SHARE * f64::from(inner.window_operations);
                let suspicious = inner.state == State::Serving && (many || inner.faults_in_a_row >= FAULTS_IN_A_ROW);
                if suspicious {
                    inner.enter(State::Suspect, reason, now);
                }
                suspicious
            }
        }
    }

    /// Nobody waits for an answer any more: another replica was faster, or the caller is gone. `true` if it is time to probe this one.
    pub(super) fn note_silence(&self, waited: Duration, now: Instant) -> bool {
        if waited > self.latency() {
            self.note_latency(waited);
        }
        let sent = now.checked_sub(waited).unwrap_or(now);
        let silent_since = *self.lock().silent_since.get_or_insert(sent);
        now.saturating_duration_since(silent_since) >= SILENT
    }

    fn note_latency(&self, took: Duration) {
        let took = u32::try_from(took.as_micros()).unwrap_or(u32::MAX);
        let old = self.latency_us.load(Ordering::Relaxed);
        let new = if took >= old { old / 2 + took / 2 } else { old - (old - took) / 8 };
        // Two at the same time may lose one of them: it is a mean.
        self.latency_us.store(new.max(1), Ordering::Relaxed);
    }

    fn set_latency(&self, took: Duration) {
        let took = u32::try_from(took.as_micros()).unwrap_or(u32::MAX);
        self.latency_us.store(took.max(1), Ordering::Relaxed);
    }

    /// Whether it has been slow for so long that it is suspect. `others` is what the other replicas take.
    pub(super) fn note_slowness(&self, others: Option<Duration>, now: Instant) -> bool {
        let (latency, mut inner) = (self.latency(), self.lock());
        if inner.state != State::Serving || latency <= slow_limit(others) {
            inner.slow_since = None;
            return false;
        }
        let slow_since = *inner.slow_since.get_or_insert(now);
        let suspicious = now.saturating_duration_since(slow_since) >= SLOW_FOR;
        if suspicious {
            let reason = format!("it takes {} ms, much longer than the others", latency.as_millis());
            inner.enter(State::Suspect, &reason, now);
        }
        suspicious
    }

    /// A way to the token is open.
    pub(super) fn opened(&self, now: Instant) {
        self.lock().enter(State::Verifying, "logged in", now);
    }

    /// The way to the token is lost, or could not be opened.
    pub(super) fn lost(&self, reason: &str, now: Instant) {
        let mut inner = self.lock();
        if inner.state != State::Drained {
            inner.enter(State::Joining, reason, now);
        }
        inner.reason = reason.into();
    }

    /// Nothing will be tried any more.
    pub(super) fn refused(&self, reason: &str, now: Instant) {
        self.lock().enter(State::Refused, reason, now);
    }

    /// By an operator.
    pub(super) fn drain(&self, now: Instant) {
        let mut inner = self.lock();
        if !matches!(inner.state, State::Drained | State::Refused) {
            inner.enter(State::Drained, "an operator has drained it", now);
        }
    }

    /// By an operator: it has to show that it works first.
    pub(super) fn resume(&self, now: Instant) {
        let mut inner = self.lock();
        if inner.state == State::Drained {
            inner.enter(State::Verifying, "an operator has resumed it", now);
        }
    }

    /// A probe of an ejected replica begins.
    pub(super) fn begin_probe(&self, now: Instant) {
        let mut inner = self.lock();
        if inner.state == State::Ejected {
            (inner.state, inner.since) = (State::Probing, now);
        }
    }

    /// A probe has ended. `limit` is how long one may take; `may_eject` says whether the shard can do without the replica. Returns how
    /// long to wait before the next one.
    pub(super) fn probed(
        &self,
        outcome: Result<Duration, String>,
        limit: Duration,
        may_eject: impl FnOnce() -> bool,
        now: Instant,
    ) -> Duration {
        let outcome = match outcome {
            Ok(took) if took > limit => Err(format!("a probe took {} ms", took.as_millis())),
            outcome => outcome,
        };
        match &outcome {
            // Of a replica that gets few requests, because it was slow, nothing else tells that it is fast again.
            Ok(took) => self.set_latency((self.latency().max(*took) + *took) / 2),
            Err(_) => {
                self.counts.faults.fetch_add(1, Ordering::Relaxed);
            }
        }
        let mut inner = self.lock();
        inner.silent_since = None;
        match (inner.state, outcome) {
            (State::Drained | State::Refused | State::Joining, _) => Duration::from_secs(1),
            (state, Ok(took)) => {
                if state != State::Serving {
                    // What was measured while it was sick says nothing about it now.
                    self.set_latency(took);
                    inner.slow_since = None;
                    inner.enter(State::Serving, "a probe has passed", now);
                }
                inner.failed_probes = 0;
                Duration::from_secs(1)
            }
            (State::Serving, Err(reason)) => {
                inner.enter(State::Suspect, &reason, now);
                Duration::ZERO
            }
            (State::Suspect, Err(reason)) => {
                // Without the lock: it looks at the others.
                drop(inner);
                let eject = may_eject();
                let mut inner = self.lock();
                if eject {
                    self.counts.ejections.fetch_add(1, Ordering::Relaxed);
                    inner.enter(State::Ejected, &reason, now);
                    inner.back_off()
                } else {
                    inner.reason = format!("{reason}; it stays in use, because too few others are");
                    Duration::from_millis(200)
                }
            }
            (State::Verifying, Err(reason)) => {
                inner.enter(State::Ejected, &reason, now);
                inner.back_off()
            }
            (State::Ejected | State::Probing, Err(reason)) => {
                inner.state = State::Ejected;
                inner.reason = reason;
                inner.back_off()
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn enter(&mut self, state: State, reason: &str, now: Instant) {
        (self.state, self.since, self.reason) = (state, now, reason.into());
        self.faults_in_a_row = 0;
    }

    fn back_off(&mut self) -> Duration {
        let pause = pause(self.failed_probes);
        self.failed_probes += 1;
        pause
    }
}

/// The pause after so many failures before this one, a fifth more or less: replicas that failed together are not tried together.
pub(super) fn pause(failures: usize) -> Duration {
    let seconds = BACK_OFF_S[failures.min(BACK_OFF_S.len() - 1)] as f64;
    let [random] = crate::software::random::<1>().unwrap_or([128]);
    Duration::from_secs_f64(seconds * (0.8 + 0.4 * f64::from(random) / 255.0))
}

/// What is slow, given what the others take.
pub(super) fn slow_limit(others: Option<Duration>) -> Duration {
    others.map_or(Duration::MAX, |others| SLOW.max(others * SLOW_RATIO))
}

/// An operation under way.
pub(super) struct InFlight<'a>(&'a AtomicU32);

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn serving(now: Instant) -> Health {
        let health = Health::new(now);
        health.opened(now);
        assert_eq!(health.probed(Ok(MS), Duration::MAX, || true, now), Duration::from_secs(1));
        assert_eq!(health.state(), State::Serving);
        health
    }

    #[test]
    fn requests_alone_make_a_replica_suspect_and_only_a_failed_probe_ejects_it() {
        let now = Instant::now();
        let health = serving(now);
        assert!(!health.note(Verdict::Fault("CKR_DEVICE_ERROR"), now));
        assert!(!health.note(Verdict::Sound(MS), now), "faults in a row begin anew");
        for _ in 0..2 {
            assert!(!health.note(Verdict::Fault("CKR_DEVICE_ERROR"), now));
        }
        assert!(health.note(Verdict::Fault("CKR_DEVICE_ERROR"), now));
        for _ in 0..1000 {
            assert!(!health.note(Verdict::Fault("CKR_DEVICE_ERROR"), now));
        }
        assert_eq!(health.now().0, State::Suspect);
        assert_eq!(health.probed(Ok(MS), Duration::MAX, || true, now), Duration::from_secs(1));
        assert_eq!(health.state(), State::Serving, "the probe says that it is well");
        for _ in 0..3 {
            health.note(Verdict::Fault("CKR_DEVICE_ERROR"), now);
        }
        health.probed(Err("CKR_DEVICE_ERROR".into()), Duration::MAX, || true, now);
        assert_eq!((health.state(), health.now().2), (State::Ejected, "CKR_DEVICE_ERROR".into()));
    }

    #[test]
    fn one_fault_in_five_is_too_many_even_if_they_are_not_in_a_row() {
        let now = Instant::now();
        let health = serving(now);
        let suspect = (0..40).position(|index| match index % 4 {
            0 => health.note(Verdict::Fault("x"), now),
            _ => health.note(Verdict::Sound(MS), now),
        });
        assert_eq!(suspect, Some(20), "as soon as there are enough to judge");
        let health = serving(now);
        assert!(!(0..400).any(|index| match index % 10 {
            0 => health.note(Verdict::Fault("x"), now),
            _ => health.note(Verdict::Sound(MS), now),
        }));
    }

    #[test]
    fn a_replica_that_is_needed_stays_in_use_and_one_that_is_not_backs_off_up_to_five_seconds() {
        let now = Instant::now();
        let health = serving(now);
        assert_eq!(health.probed(Err("x".into()), Duration::MAX, || true, now), Duration::ZERO, "asked again at once");
        assert_eq!(health.state(), State::Suspect);
        assert!(health.probed(Err("x".into()), Duration::MAX, || false, now) < Duration::from_secs(1));
        assert_eq!(health.state(), State::Suspect);
        assert!(health.now().2.contains("stays in use"));
        for seconds in [1.0, 1.0, 2.0, 5.0, 5.0, 5.0] {
            let pause = health.probed(Err("x".into()), Duration::MAX, || true, now).as_secs_f64();
            assert!((0.79 * seconds..=1.21 * seconds).contains(&pause), "{pause} for {seconds}");
            assert_eq!(health.state(), State::Ejected);
            health.begin_probe(now);
        }
        health.probed(Ok(MS), Duration::MAX, || true, now);
        assert_eq!(health.state(), State::Serving);
    }

    #[test]
    fn slow_means_slower_than_the_others_for_a_while() {
        let now = Instant::now();
        let health = serving(now);
        for _ in 0..20 {
            health.note(Verdict::Sound(60 * MS), now);
        }
        assert!(!health.note_slowness(Some(40 * MS), now + SLOW_FOR), "the others are slow, too");
        assert!(!health.note_slowness(None, now + SLOW_FOR), "there are no others");
        assert!(!health.note_slowness(Some(2 * MS), now));
        assert!(health.note_slowness(Some(2 * MS), now + SLOW_FOR));
        let limit = slow_limit(Some(2 * MS));
        health.probed(Ok(60 * MS), limit, || true, now);
        assert_eq!(health.state(), State::Ejected, "its probe is as slow");
        health.probed(Ok(2 * MS), limit, || true, now);
        assert_eq!(health.state(), State::Serving);
    }

    #[test]
    fn a_replica_that_has_answered_nothing_for_a_while_is_probed_and_one_that_is_only_outrun_is_not() {
        let now = Instant::now();
        let health = serving(now);
        assert!(!health.note_silence(10 * MS, now));
        assert!(!health.note_silence(10 * MS, now + 30 * MS));
        assert!(health.note_silence(10 * MS, now + 40 * MS), "for 50 ms, from when the first one was sent");
        health.probed(Ok(MS), Duration::MAX, || true, now + 40 * MS);
        assert!(!health.note_silence(10 * MS, now + 50 * MS), "it has just been probed");
        health.note(Verdict::Sound(MS), now + 60 * MS);
        assert!(!health.note_silence(10 * MS, now + 100 * MS), "it has answered in between");
    }

    #[test]
    fn fast_replicas_cost_the_same_and_a_slow_one_that_has_come_back_is_fast_at_once() {
        let now = Instant::now();
        let (a, b) = (serving(now), serving(now));
        a.note(Verdict::Sound(4 * MS), now);
        assert_eq!(a.cost(now), b.cost(now));
        for _ in 0..20 {
            a.note(Verdict::Sound(60 * MS), now);
        }
        assert!(a.cost(now) > 10.0 * b.cost(now));
        a.probed(Ok(MS), Duration::MAX, || true, now);
        assert!(a.latency() < 31 * MS, "a probe counts for half");
        a.probed(Err("x".into()), Duration::MAX, || true, now);
        a.probed(Err("x".into()), Duration::MAX, || true, now);
        assert_eq!(a.state(), State::Ejected);
        a.probed(Ok(MS), Duration::MAX, || true, now);
        assert_eq!(a.latency(), MS);
    }

    #[test]
    fn a_drained_replica_comes_back_by_command_and_through_a_probe() {
        let now = Instant::now();
        let health = serving(now);
        health.drain(now);
        health.probed(Ok(MS), Duration::MAX, || true, now);
        health.lost("the worker ended", now);
        assert_eq!(health.state(), State::Drained);
        health.resume(now);
        assert_eq!(health.state(), State::Verifying);
        health.probed(Ok(MS), Duration::MAX, || true, now);
        assert_eq!(health.state(), State::Serving);
    }

    #[test]
    fn a_replica_that_has_come_back_costs_more_for_three_seconds() {
        let now = Instant::now();
        let health = serving(now);
        let later = health.cost(now + SLOW_START);
        assert!(health.cost(now) > 9.0 * later && health.cost(now + SLOW_START / 2) < 6.0 * later);
        let _under_way = health.begin();
        assert_eq!(health.cost(now + SLOW_START), 2.0 * later);
    }
}
