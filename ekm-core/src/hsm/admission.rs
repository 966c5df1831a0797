//! Admission to a shard's sessions: who goes on, who waits, and who is told at once that it is too much.
//!
//! A queue without a bound answers everybody too late as soon as more comes in than goes out, and goes on so when the rush is over. So what
//! a request would wait is predicted from those before it, and one whose answer would come too late is refused before it costs anything
//! ("Using load shedding to avoid overload", Amazon Builders' Library). Three things keep that honest: the prediction and the place in the
//! queue are made under one lock; a session that is idle is never refused to anybody, whatever the estimates say, because it is the only way
//! to learn that they are wrong; and callers wait in lines of their own that are served in turn, so that one of them cannot fill the queue.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::job::{Demand, Urgency};

/// So many operations are sent to the replicas beyond those that their sessions work on, or one for every other session if these are more:
/// a session then finds its next job without having slept. They are out of turn already, so no more than that.
const AHEAD: usize = 4;
/// And no more than the sessions begin within this time, because the time that an HSM has for an operation runs already.
const AHEAD_FOR: Duration = Duration::from_millis(5);
/// Of the time that is left, so much must remain for the answer when the operation is done.
const RESERVE: f64 = 0.2;
/// However little time there is, so many may wait: with few, a prediction is a guess.
const ALWAYS: usize = 2;
/// A caller with a shorter line than another may wait so many times as long.
const MODEST: f64 = 1.6;
/// How much a new measurement counts, once there are some.
const WEIGHT: f64 = 0.02;
/// A request that has waited no longer than this is not looked at again when its turn comes.
const FRESH: Duration = Duration::from_millis(1);
/// For so long after a refusal there is too much to do.
const LATELY: Duration = Duration::from_millis(100);

/// Admission to one shard.
pub(super) struct Admission {
    queue: Mutex<Queue<oneshot::Sender<Turn>>>,
}

/// It is too much for the shard.
#[derive(Debug, PartialEq)]
pub(super) struct Refused;

/// The use of a session, until it is dropped; then the next one has its turn. Empty if nobody took it.
pub(super) struct Turn(Option<Arc<Admission>>);

/// How admission stands.
#[derive(Clone, Copy, Debug, Default)]
pub struct AdmissionStatus {
    /// Sessions of the replicas that can be used.
    pub sessions: usize,
    /// Operations under way.
    pub busy: usize,
    /// Requests that wait for their turn.
    pub waiting: usize,
    /// The mean time that a session takes for an operation.
    pub service: Duration,
    /// Requests refused at once, since the start.
    pub refused: u64,
    /// Requests given up when their turn came too late, since the start.
    pub expired: u64,
}

impl Admission {
    /// With a bound for those that wait, whatever is predicted.
    pub(super) fn new(queue_length: usize) -> Arc<Self> {
        Arc::new(Self { queue: Mutex::new(Queue::new(queue_length)) })
    }

    /// Waits for a session of `sessions` that can be used now.
    pub(super) async fn enter(self: &Arc<Self>, demand: Demand, sessions: usize) -> Result<Turn, Refused> {
        let waiting = {
            let (now, mut queue) = (Instant::now(), self.lock());
            queue.sessions = sessions;
            match queue.judge(&demand, now) {
                Verdict::Go => {
                    queue.busy += 1;
                    return Ok(Turn(Some(Arc::clone(self))));
                }
                Verdict::Refuse => return Err(Refused),
                Verdict::Wait => {
                    let (turn, waiting) = oneshot::channel();
                    queue.push(demand, now, turn);
                    waiting
                }
            }
        };
        self.call_next(); // there may be more sessions than a moment ago
        match tokio::time::timeout_at(demand.deadline.into(), waiting).await {
            Ok(turn) => turn.map_err(|_| Refused),
            Err(_) => Err(Refused),
        }
    }

    /// Whether [`Self::enter`] would refuse now. For those who could save themselves work by that.
    pub(super) fn would_refuse(&self, demand: &Demand, sessions: usize) -> bool {
        let mut queue = self.lock();
        queue.sessions = sessions;
        queue.judge(demand, Instant::now()) == Verdict::Refuse
    }

    /// A session took so long for an operation, or did not end it in that time.
    pub(super) fn note(&self, took: Duration) {
        self.lock().service.note(took);
    }

    /// Whether somebody was refused lately: then nothing is to be done twice.
    pub(super) fn is_shedding(&self) -> bool {
        self.lock().refused_at.is_some_and(|at| at.elapsed() < LATELY)
    }

    pub(super) fn status(&self) -> AdmissionStatus {
        let queue = self.lock();
        AdmissionStatus {
            sessions: queue.sessions,
            busy: queue.busy,
            waiting: queue.waiting,
            service: Duration::from_secs_f64(queue.service.mean_s),
            refused: queue.refused,
            expired: queue.expired,
        }
    }

    /// Gives sessions to those that wait, as long as there are both.
    fn call_next(self: &Arc<Self>) {
        loop {
            let next = self.lock().next(Instant::now());
            let Some(waiter) = next else { return };
            if let Err(mut unused) = waiter.send(Turn(Some(Arc::clone(self)))) {
                // Nobody waits there any more. Emptied, because its drop would call this again from within.
                unused.0 = None;
                self.lock().busy -= 1;
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Queue<oneshot::Sender<Turn>>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let Some(admission) = self.0.take() else { return };
        let mut queue = admission.lock();
        queue.busy -= 1;
        let anybody = queue.waiting > 0;
        drop(queue);
        if anybody {
            admission.call_next();
        }
    }
}

#[derive(Debug, PartialEq)]
enum Verdict {
    Go,
    Wait,
    Refuse,
}

/// Who uses sessions, and who waits. No clock of its own.
struct Queue<T> {
    length: usize,
    sessions: usize,
    busy: usize,
    waiting: usize,
    /// One for each caller that waits, in the order of their turns.
    lines: VecDeque<Line<T>>,
    service: Service,
    refused_at: Option<Instant>,
    /// See [`AdmissionStatus`].
    refused: u64,
    expired: u64,
}

struct Line<T> {
    caller: u64,
    waiting: VecDeque<Waiting<T>>,
}

struct Waiting<T> {
    demand: Demand,
    since: Instant,
    turn: T,
}

impl<T> Queue<T> {
    fn new(length: usize) -> Self {
        let (lines, service, refused_at) = Default::default();
        Self { length, sessions: 0, busy: 0, waiting: 0, lines, service, refused_at, refused: 0, expired: 0 }
    }

    /// How many operations the replicas get at a time.
    fn places(&self) -> usize {
        let begun = self.sessions as f64 * AHEAD_FOR.as_secs_f64() / self.service.mean_s; // unbounded before the first measurement
        self.sessions + AHEAD.max(self.sessions / 2).min(begun as usize)
    }

    fn judge(&mut self, demand: &Demand, now: Instant) -> Verdict {
        let verdict = self.weigh(demand, now);
        if verdict == Verdict::Refuse {
            self.refuse(now);
        }
        verdict
    }

    fn refuse(&mut self, now: Instant) {
        self.refused += 1;
        self.refused_at = Some(now);
    }

    fn weigh(&self, demand: &Demand, now: Instant) -> Verdict {
        if demand.urgency == Urgency::Health || self.sessions == 0 || (self.busy < self.sessions && self.waiting == 0) {
            return Verdict::Go; // without any session it is said there what has become of them
        }
        let line = self.lines.iter().find(|line| line.caller == demand.caller);
        let (own, lines) = (line.map_or(0, |line| line.waiting.len()), self.lines.len() + usize::from(line.is_none()));
        // In each round every line is served once.
        let before_in_lines = self.waiting.min((own + 1) * lines - 1);
        let before = self.busy.saturating_sub(self.sessions) + before_in_lines + 1;
        let (left, sessions) = (demand.deadline.saturating_duration_since(now).as_secs_f64(), self.sessions as f64);
        let wait = before as f64 * self.service.mean_s / sessions;
        // Whoever asks for less than others is refused last.
        let longest = self.lines.iter().map(|line| line.waiting.len()).max().unwrap_or(0);
        let modest = longest > own;
        let share = demand.urgency.share_of_time() * if modest { MODEST } else { 1.0 };
        let too_long = wait > share * left && before > ALWAYS;
        if too_long || wait + self.service.percentile_95_s() > (1.0 - RESERVE) * left {
            return Verdict::Refuse;
        }
        if self.waiting == 0 && self.busy < self.places() {
            return Verdict::Go;
        }
        // Else one of the longest line would go for it, which is only fair if that stays longer.
        if self.waiting >= self.length && longest <= own + 1 {
            return Verdict::Refuse;
        }
        Verdict::Wait
    }

    /// The last one of the longest line goes.
    fn make_room(&mut self, now: Instant) {
        if let Some(longest) = self.lines.iter_mut().max_by_key(|line| line.waiting.len()) {
            longest.waiting.pop_back();
            self.waiting -= 1;
            self.refuse(now);
        }
    }

    /// Whoever was judged to wait takes his place.
    fn push(&mut self, demand: Demand, since: Instant, turn: T) {
        if self.waiting >= self.length {
            self.make_room(since);
        }
        let waiting = Waiting { demand, since, turn };
        match self.lines.iter_mut().find(|line| line.caller == demand.caller) {
            Some(line) => line.waiting.push_back(waiting),
            None => self.lines.push_back(Line { caller: demand.caller, waiting: VecDeque::from([waiting]) }),
        }
        self.waiting += 1;
    }

    /// Whose turn it is, if there is a session for it. Whose turn comes too late is given up.
    fn next(&mut self, now: Instant) -> Option<T> {
        while self.busy < self.places() {
            let Some(mut line) = self.lines.pop_front() else { break };
            let Some(Waiting { demand, since, turn }) = line.waiting.pop_front() else { continue };
            if !line.waiting.is_empty() {
                self.lines.push_back(line);
            }
            self.waiting -= 1;
            let end = now + Duration::from_secs_f64(self.service.percentile_95_s());
            if now.saturating_duration_since(since) > FRESH && end > demand.deadline && self.busy >= self.sessions {
                self.expired += 1;
                continue;
            }
            self.busy += 1;
            return Some(turn);
        }
        None
    }
}

/// How long a session takes for an operation.
#[derive(Default)]
struct Service {
    mean_s: f64,
    deviation_s: f64,
    count: u32,
}

impl Service {
    fn note(&mut self, took: Duration) {
        let took = took.as_secs_f64();
        self.count = self.count.saturating_add(1);
        let weight = WEIGHT.max(1.0 / f64::from(self.count));
        self.deviation_s += weight * ((took - self.mean_s).abs() - self.deviation_s);
        self.mean_s += weight * (took - self.mean_s);
    }

    /// As if the times were distributed normally, as TCP's time-outs are made (RFC 6298).
    fn percentile_95_s(&self) -> f64 {
        self.mean_s + 2.0 * self.deviation_s
    }
}

#[cfg(test)]
mod tests;
