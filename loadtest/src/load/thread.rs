//! What one thread of the generator works on: requests that wait for a connection, those under way, and what came of them.
//!
//! Everything is used by one thread alone, so that nothing has to be locked.

use std::cell::{Cell as Shared, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderMap, Request};
use http_body_util::Full;
use tokio::sync::Notify;

use crate::progress::Live;
use crate::recording::{Cell, Kind, Recording};
use crate::requests::{Ask, Requests};
use crate::scenario::{Retry, RetryOn};

/// Retries that a budget allows before there was anything to retry.
const FIRST_RETRIES: f64 = 10.0;

/// A request that is to be sent, once or again.
#[derive(Clone, Copy, Debug)]
pub struct Job {
    pub cell: Cell,
    pub caller: u32,
    pub ask: u32,
    /// When the request was due, since the start.
    pub due: Duration,
    /// When this attempt was.
    pub attempt_due: Duration,
    /// From 0.
    pub attempt: u8,
}

/// What came of one attempt.
#[derive(Clone, Copy, Debug)]
pub struct Outcome {
    pub kind: Kind,
    pub status: Option<u16>,
    /// How long to wait before another one, if the answer says so.
    pub retry_after: Option<Duration>,
}

impl Outcome {
    /// Without an answer.
    pub fn none(kind: Kind) -> Self {
        Self { kind, status: None, retry_after: None }
    }
}

/// What happens when a request has come to its end.
pub enum Loop {
    /// Nothing: the schedule says when the next one is due.
    Open,
    /// The next one is sent, until this time: for measuring a capacity.
    Closed(Duration),
}

pub struct Thread {
    begun: Instant,
    pub requests: Arc<Requests>,
    pub live: Arc<Live>,
    pub timeout: Duration,
    pub retry: Option<Retry>,
    pub headers: RefCell<Vec<HeaderMap>>,
    queue: RefCell<VecDeque<Job>>,
    wake: Notify,
    max_outstanding: usize,
    outstanding: Shared<usize>,
    connections: Shared<usize>,
    retry_budget: Shared<f64>,
    ended: Shared<bool>,
    recording: RefCell<Recording>,
    random: RefCell<fastrand::Rng>,
    kind_of_loop: Loop,
}

/// What a thread needs to know.
pub struct Settings {
    /// The same for all threads.
    pub begun: Instant,
    pub requests: Arc<Requests>,
    pub live: Arc<Live>,
    pub timeout: Duration,
    pub retry: Option<Retry>,
    pub headers: Vec<HeaderMap>,
    pub max_outstanding: usize,
    pub recording: Recording,
    pub seed: u64,
    pub kind_of_loop: Loop,
}

impl Thread {
    pub fn new(settings: Settings) -> Rc<Self> {
        let Settings { begun, requests, live, timeout, retry, headers, max_outstanding, .. } = settings;
        Rc::new(Self {
            begun,
            requests,
            live,
            timeout,
            retry,
            headers: RefCell::new(headers),
            queue: RefCell::default(),
            wake: Notify::new(),
            max_outstanding,
            outstanding: Shared::new(0),
            connections: Shared::new(0),
            retry_budget: Shared::new(FIRST_RETRIES),
            ended: Shared::new(false),
            recording: RefCell::new(settings.recording),
            random: RefCell::new(fastrand::Rng::with_seed(settings.seed)),
            kind_of_loop: settings.kind_of_loop,
        })
    }

    /// Since the start.
    pub fn now(&self) -> Duration {
        self.begun.elapsed()
    }

    /// When a job is given up.
    pub fn deadline(&self, job: &Job) -> Instant {
        self.begun + job.attempt_due + self.timeout
    }

    /// A request is due, and is sent as soon as there is a connection for it.
    pub fn arrive(&self, phase: usize, group: usize, due: Duration, now: Duration) {
        let (kind, caller, ask) = self.requests.choose(group, &mut self.random.borrow_mut());
        let cell = Cell { phase: phase as u16, group: group as u16, kind };
        {
            let mut recording = self.recording.borrow_mut();
            recording.arrival(cell, due);
            recording.late(now.saturating_sub(due));
        }
        self.live.arrivals.fetch_add(1, Ordering::Relaxed);
        if self.outstanding.get() >= self.max_outstanding {
            return self.count(cell, due, Kind::NotSent);
        }
        self.outstanding.update(|outstanding| outstanding + 1);
        if let Some(percent) = self.retry.as_ref().and_then(|retry| retry.budget_percent) {
            self.retry_budget.update(|budget| budget + percent / 100.0);
        }
        self.put(Job { cell, caller, ask, due, attempt_due: due, attempt: 0 });
    }

    fn put(&self, job: Job) {
        self.queue.borrow_mut().push_back(job);
        self.wake.notify_one();
    }

    /// The next one, for a connection that is free; `None` if `is_open` is no longer true.
    pub async fn take(&self, is_open: impl Fn() -> bool) -> Option<Job> {
        loop {
            if !is_open() || self.ended.get() {
                if !self.queue.borrow().is_empty() {
                    self.wake.notify_one(); // whoever is next was not told
                }
                return None;
            }
            self.give_up_late_ones();
            if let Some(job) = self.queue.borrow_mut().pop_front() {
                let wait = self.now().saturating_sub(job.attempt_due);
                self.recording.borrow_mut().waited(wait);
                return Some(job);
            }
            self.wake.notified().await;
        }
    }

    /// It was not sent after all.
    pub fn give_back(&self, job: Job) {
        self.queue.borrow_mut().push_front(job);
        self.wake.notify_one();
    }

    /// Ends what has waited for a connection until its deadline.
    pub fn give_up_late_ones(&self) {
        let now = self.now();
        loop {
            let late = |job: &Job| now > job.attempt_due + self.timeout;
            let Some(job) = self.queue.borrow().front().copied().filter(late) else { return };
            self.queue.borrow_mut().pop_front();
            // With connections that are all busy it is their number that is too small; without any the service is away.
            let kind = if self.connections.get() == 0 { Kind::Lost } else { Kind::NotSent };
            self.end(&job, kind);
        }
    }

    /// The request to send.
    pub fn request(&self, job: &Job) -> Request<Full<Bytes>> {
        self.requests.request(job.ask, &self.headers.borrow()[job.caller as usize])
    }

    /// What was asked for.
    pub fn ask(&self, job: &Job) -> &Ask {
        self.requests.get(job.ask)
    }

    /// An attempt has come to its end.
    pub fn finish(self: &Rc<Self>, job: Job, outcome: Outcome) {
        self.live.attempts.fetch_add(1, Ordering::Relaxed);
        self.recording.borrow_mut().attempt(job.cell, job.due, outcome.status);
        match self.retry_after(&job, outcome) {
            None => self.end(&job, outcome.kind),
            Some(after) => {
                let this = Rc::clone(self);
                tokio::task::spawn_local(async move {
                    tokio::time::sleep(after).await;
                    this.put(Job { attempt: job.attempt + 1, attempt_due: this.now(), ..job });
                });
            }
        }
    }

    fn retry_after(&self, job: &Job, outcome: Outcome) -> Option<Duration> {
        let retry = self.retry.as_ref()?;
        let on = match outcome.kind {
            Kind::TooManyRequests => RetryOn::TooManyRequests,
            Kind::Unavailable => RetryOn::Unavailable,
            Kind::Timeout => RetryOn::Timeout,
            Kind::Lost => RetryOn::Lost,
            _ => return None,
        };
        if job.attempt >= retry.attempts || !retry.on.contains(&on) {
            return None;
        }
        if retry.budget_percent.is_some() {
            if self.retry_budget.get() < 1.0 {
                return None;
            }
            self.retry_budget.update(|budget| budget - 1.0);
        }
        let chance = 0.5 + self.random.borrow_mut().f64();
        let ms = retry.after_ms * retry.factor.powi(i32::from(job.attempt)) * chance;
        let asked_for = outcome.retry_after.filter(|_| retry.honour_retry_info).unwrap_or_default();
        Some(Duration::from_secs_f64(ms / 1000.0).max(asked_for))
    }

    fn end(&self, job: &Job, kind: Kind) {
        self.outstanding.update(|outstanding| outstanding - 1);
        self.count(job.cell, job.due, kind);
        if let Loop::Closed(until) = self.kind_of_loop
            && self.now() < until
        {
            let now = self.now();
            self.arrive(0, usize::from(job.cell.group), now, now);
        }
    }

    fn count(&self, cell: Cell, due: Duration, kind: Kind) {
        self.recording.borrow_mut().end(cell, due, kind, self.now().saturating_sub(due));
        self.live.counts[kind as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// A connection was opened.
    pub fn connected(&self) {
        self.connections.update(|connections| connections + 1);
    }

    /// A connection was lost: whoever waits for work on it looks again whether it is open.
    pub fn disconnected(&self) {
        self.connections.update(|connections| connections - 1);
        self.wake.notify_waiters();
    }

    /// How many requests have not come to their end.
    pub fn outstanding(&self) -> usize {
        self.outstanding.get()
    }

    /// How many connections there are.
    pub fn connections(&self) -> usize {
        self.connections.get()
    }

    /// No more.
    pub fn end_all(&self) {
        self.ended.set(true);
        self.wake.notify_waiters();
    }

    /// Whether it was ended.
    pub fn has_ended(&self) -> bool {
        self.ended.get()
    }

    /// What it has seen.
    pub fn recording(&self) -> Recording {
        self.recording.borrow().clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scenario::Scenario;
    use crate::target::{Target, Tokens};

    const SCENARIO: &str = "name = \"x\"\n[[mix]]\nverb = \"wrap\"\n[[phase]]\nname = \"a\"\nseconds = 1\nrate = 1\n";

    fn thread(retry: &str, max_outstanding: usize) -> Rc<Thread> {
        let scenario = Scenario::parse("x", &format!("{SCENARIO}{retry}")).unwrap();
        let target = Target::local(Vec::new(), "ca.pem".into());
        let requests = Requests::new(&scenario, &target, |_, _, _| Err("only wraps".into())).unwrap();
        let headers = requests.headers(&Tokens::Fixed("token".into()));
        Thread::new(Settings {
            begun: Instant::now(),
            requests: Arc::new(requests),
            live: Arc::default(),
            timeout: Duration::from_millis(20),
            retry: scenario.client.retry,
            headers,
            max_outstanding,
            recording: Recording::new(1.0, 1),
            seed: 1,
            kind_of_loop: Loop::Open,
        })
    }

    /// Lets every attempt of one request fail; how many there were, and how it ended.
    fn attempts(thread: &Rc<Thread>, kind: Kind) -> (u64, u64) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        tokio::task::LocalSet::new().block_on(&runtime, async {
            let now = thread.now();
            thread.arrive(0, 0, now, now);
            while thread.outstanding() > 0 {
                let job = thread.take(|| true).await.unwrap();
                thread.finish(job, Outcome::none(kind));
                tokio::task::yield_now().await;
                if thread.outstanding() > 0 {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            }
        });
        let tally = thread.recording().sum(|_| true);
        (tally.attempts, tally.counts[kind as usize])
    }

    #[test]
    fn a_request_is_tried_again_as_often_as_the_policy_says_and_counted_once() {
        let retry = "[client.retry]\nattempts = 3\nafter_ms = 1\non = [\"503\"]";
        assert_eq!(attempts(&thread(retry, 10), Kind::Unavailable), (4, 1));
        assert_eq!(attempts(&thread(retry, 10), Kind::TooManyRequests), (1, 1));
        assert_eq!(attempts(&thread("", 10), Kind::Unavailable), (1, 1));
    }

    #[test]
    fn a_budget_ends_retries_when_it_is_used_up() {
        let retry = "[client.retry]\nattempts = 1\nafter_ms = 0\nbudget_percent = 10";
        let thread = thread(retry, 10);
        let (attempts, lost) = (0..100).fold((0, 0), |_, _| attempts(&thread, Kind::Lost));
        // Ten to begin with, and one for each ten requests.
        assert!((119..=120).contains(&attempts) && lost == 100, "{attempts} {lost}");
    }

    #[test]
    fn what_is_more_than_may_be_under_way_is_not_sent_and_counted() {
        let thread = thread("", 2);
        (0..5).for_each(|_| thread.arrive(0, 0, Duration::ZERO, Duration::ZERO));
        let tally = thread.recording().sum(|_| true);
        assert_eq!((tally.arrivals, tally.counts[Kind::NotSent as usize], thread.outstanding()), (5, 3, 2));
    }

    #[test]
    fn what_no_connection_was_free_for_is_not_sent_and_without_any_connection_it_is_lost() {
        for (connections, kind) in [(0, Kind::Lost), (1, Kind::NotSent)] {
            let thread = thread("", 10);
            (0..connections).for_each(|_| thread.connected());
            thread.arrive(0, 0, Duration::ZERO, Duration::ZERO);
            std::thread::sleep(Duration::from_millis(30));
            thread.give_up_late_ones();
            let counts = thread.recording().sum(|_| true).counts;
            assert_eq!((counts[kind as usize], thread.outstanding()), (1, 0), "{kind:?}");
        }
    }
}
