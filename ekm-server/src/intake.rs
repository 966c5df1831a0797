//! What is looked at before a request is read: does this frontend keep up, may this caller send that many, is there memory for the body?
//! Each costs less than a microsecond, and a request that fails here costs nothing more.
//!
//! What the HSM has to do is another matter, and decided in front of it (`ekm_core::hsm`, admission): this here is about this process alone.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use ekm_core::Error;
use ekm_core::caller::Caller;
use ekm_core::policy::Verb;
use governor::clock::DefaultClock;
use governor::state::keyed::HashMapStateStore;
use governor::{Quota, RateLimiter};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::config::Limits;

/// Between two beats; also how finely lateness is measured.
const BEAT: Duration = Duration::from_millis(10);
/// How often callers that have sent nothing for a while are forgotten.
const FORGET: Duration = Duration::from_secs(10);
/// A caller may save up this many seconds of his rate.
const BURST_S: u32 = 2;
/// If tasks begin later than this share of a request's deadline, only data that cannot be read is served; with twice that, nothing.
const LATE: f64 = 0.4;

type Rate = RateLimiter<u64, HashMapStateStore<u64>, DefaultClock>;

/// The bounds of what is let in.
pub struct Intake {
    rate: ArcSwapOption<Rate>,
    body_kib: Arc<Semaphore>,
    deadline: Duration,
    lateness_us: AtomicU64,
    /// Counts up while tasks get to run.
    beats: AtomicU64,
}

impl Intake {
    /// From the configuration.
    pub fn new(limits: &Limits) -> Self {
        let intake = Self {
            rate: ArcSwapOption::empty(),
            body_kib: Arc::new(Semaphore::new(limits.body_memory_mib * 1024)),
            deadline: Duration::from_millis(*limits.request_deadline_ms.get_ref()),
            lateness_us: AtomicU64::new(0),
            beats: AtomicU64::new(0),
        };
        intake.set_rate(limits.caller_requests_per_s);
        intake
    }

    /// How many requests a second each caller may send; `None`: as many as he likes.
    pub fn set_rate(&self, per_second: Option<NonZeroU32>) {
        let rate = per_second.map(|rate| {
            let burst = rate.saturating_mul(NonZeroU32::new(BURST_S).expect("two"));
            Arc::new(RateLimiter::hashmap(Quota::per_second(rate).allow_burst(burst)))
        });
        self.rate.store(rate);
    }

    /// Whether a caller's request may be read.
    pub fn admit(&self, caller: &Caller, verb: Verb) -> Result<(), Error> {
        let bound = LATE * if verb == Verb::Unwrap { 2.0 } else { 1.0 };
        if self.lateness() > self.deadline.mul_f64(bound) {
            return Err(Error::FrontendBusy("its tasks begin too late"));
        }
        match self.rate.load().as_ref().map(|rate| rate.check_key(&caller.number())) {
            Some(Err(_)) => Err(Error::CallerRate),
            Some(Ok(())) | None => Ok(()),
        }
    }

    /// Room for a body of so many bytes, and for what is made of it.
    pub fn room(&self, bytes: u64) -> Result<OwnedSemaphorePermit, Error> {
        let kib = u32::try_from(bytes.div_ceil(1024)).unwrap_or(u32::MAX).max(1);
        let room = Arc::clone(&self.body_kib).try_acquire_many_owned(kib);
        room.map_err(|_| Error::FrontendBusy("there is no memory for more requests at a time (limits.body_memory_mib)"))
    }

    /// How much later than it should a task begins.
    pub fn lateness(&self) -> Duration {
        Duration::from_micros(self.lateness_us.load(Ordering::Relaxed))
    }

    /// How often tasks have got to run. If it stays the same, the runtime is stuck.
    pub fn beats(&self) -> u64 {
        self.beats.load(Ordering::Relaxed)
    }

    /// Measures how late tasks begin; on the runtime that requests are served on. Rises at once, falls slowly.
    pub async fn beat(&self) {
        let mut forgotten = Instant::now();
        loop {
            let due = Instant::now() + BEAT;
            tokio::time::sleep_until(due.into()).await;
            let late = u64::try_from(due.elapsed().as_micros()).unwrap_or(u64::MAX);
            let before = self.lateness_us.load(Ordering::Relaxed);
            self.lateness_us.store(late.max(before / 8 * 7), Ordering::Relaxed);
            self.beats.fetch_add(1, Ordering::Relaxed);
            if forgotten.elapsed() > FORGET {
                forgotten = Instant::now();
                if let Some(rate) = self.rate.load().as_ref() {
                    rate.retain_recent();
                    rate.shrink_to_fit();
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn caller(email: &str) -> Caller {
        Caller { email: email.into(), email_verified: true, subject: "1".into(), issuer: "i".into() }
    }

    fn intake(change: impl FnOnce(&mut Limits)) -> Intake {
        let mut limits = Limits::default();
        change(&mut limits);
        Intake::new(&limits)
    }

    #[test]
    fn a_caller_may_send_his_rate_and_two_seconds_of_it_at_once() {
        let intake = intake(|limits| limits.caller_requests_per_s = NonZeroU32::new(3));
        let sent = |email: &str| (0..10).filter(|_| intake.admit(&caller(email), Verb::Wrap).is_ok()).count();
        assert_eq!((sent("a@b"), sent("a@b"), sent("b@b")), (6, 0, 6));
        intake.set_rate(None);
        assert_eq!(sent("a@b"), 10);
    }

    #[test]
    fn bodies_get_no_more_memory_than_there_is_and_give_it_back() {
        let intake = intake(|limits| limits.body_memory_mib = 1);
        let rooms: Vec<_> = (0..4).map(|_| intake.room(256 * 1024).unwrap()).collect();
        assert!(matches!(intake.room(1), Err(Error::FrontendBusy(_))));
        drop(rooms);
        assert!(intake.room(1024 * 1024).is_ok());
    }

    #[test]
    fn a_frontend_that_is_late_serves_what_reads_data_longest() {
        let intake = intake(|_| {});
        let at = |ms: u64| {
            intake.lateness_us.store(ms * 1000, Ordering::Relaxed);
            [Verb::Wrap, Verb::Unwrap].map(|verb| intake.admit(&caller("a@b"), verb).is_ok())
        };
        assert_eq!([at(30), at(50), at(90)], [[true, true], [false, true], [false, false]]);
    }
}
