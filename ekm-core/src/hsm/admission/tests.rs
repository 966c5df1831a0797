//! The queue is pure, so a device and its callers are simulated in no time.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};

use super::*;

const LEFT: Duration = Duration::from_millis(100);
const SESSIONS: usize = 8;
const SERVICE: Duration = Duration::from_millis(8);
const LENGTH: usize = 256;

fn demand(caller: u64, urgency: Urgency, now: Instant) -> Demand {
    Demand { deadline: now + LEFT, caller, urgency }
}

/// A shard, and requests that come by chance, at so many a second for each caller.
struct Simulation {
    now: Instant,
    rates: Vec<(u64, Urgency, f64)>,
    random: fastrand::Rng,
    queue: Queue<Job>,
    /// What the sessions take for an operation, from when on.
    service: Vec<(Duration, Duration)>,
    in_queue_of_replica: VecDeque<Job>,
    in_service: BinaryHeap<Reverse<(Instant, u64, Duration)>>,
    jobs: BTreeMap<u64, Job>,
    next_job: u64,
    /// How many were refused, by caller.
    refused: BTreeMap<u64, usize>,
}

#[derive(Clone, Copy)]
struct Job {
    caller: u64,
    urgency: Urgency,
    arrived: Instant,
    /// When it had its turn.
    called: Instant,
}

/// What was answered: to whom, when it came, how long after that, and how long after its turn.
struct Answered {
    caller: u64,
    urgency: Urgency,
    at: Duration,
    latency: Duration,
    at_the_replica: Duration,
}

impl Simulation {
    fn new(rates: &[(u64, Urgency, f64)], service: &[(Duration, Duration)]) -> Self {
        let mut queue = Queue::new(LENGTH);
        queue.sessions = SESSIONS;
        Self {
            now: Instant::now(),
            rates: rates.to_vec(),
            random: fastrand::Rng::with_seed(1),
            queue,
            service: service.to_vec(),
            in_queue_of_replica: VecDeque::new(),
            in_service: BinaryHeap::new(),
            jobs: BTreeMap::new(),
            next_job: 0,
            refused: BTreeMap::new(),
        }
    }

    fn run(&mut self, length: Duration) -> Vec<Answered> {
        let (start, mut answered) = (self.now, Vec::new());
        let mut arrivals: Vec<Instant> = self.rates.iter().map(|_| start).collect();
        loop {
            let arrival = (0..arrivals.len()).min_by_key(|place| arrivals[*place]).unwrap();
            let end = self.in_service.peek().map(|Reverse((end, ..))| *end);
            if end.is_some_and(|end| end <= arrivals[arrival]) {
                let Reverse((end, number, took)) = self.in_service.pop().unwrap();
                self.now = end;
                let Job { caller, urgency, arrived, called } = self.jobs.remove(&number).unwrap();
                let (at, latency, at_the_replica) = (arrived - start, end - arrived, end - called);
                answered.push(Answered { caller, urgency, at, latency, at_the_replica });
                self.queue.service.note(took);
                self.queue.busy -= 1;
                while let Some(job) = self.queue.next(self.now) {
                    self.in_queue_of_replica.push_back(Job { called: self.now, ..job });
                }
            } else {
                self.now = arrivals[arrival];
                if self.now - start > length {
                    return answered;
                }
                let (caller, urgency, rate) = self.rates[arrival];
                arrivals[arrival] += Duration::from_secs_f64(-self.random.f64().max(1e-9).ln() / rate);
                let job = Job { caller, urgency, arrived: self.now, called: self.now };
                let demand = demand(caller, urgency, self.now);
                match self.queue.judge(&demand, self.now) {
                    Verdict::Go => {
                        self.queue.busy += 1;
                        self.in_queue_of_replica.push_back(job);
                    }
                    Verdict::Wait => self.queue.push(demand, self.now, job),
                    Verdict::Refuse => *self.refused.entry(caller).or_default() += 1,
                }
            }
            while self.in_service.len() < SESSIONS {
                let Some(job) = self.in_queue_of_replica.pop_front() else { break };
                let mean = self.service.iter().rev().find(|(from, _)| *from <= self.now - start).unwrap().1;
                let took = mean.mul_f64(0.5 + self.random.f64());
                self.next_job += 1;
                self.jobs.insert(self.next_job, job);
                self.in_service.push(Reverse((self.now + took, self.next_job, took)));
            }
        }
    }
}

const ALWAYS_8_MS: &[(Duration, Duration)] = &[(Duration::ZERO, SERVICE)];
/// Operations a second.
const CAPACITY: f64 = 1000.0;

fn in_time(answered: &[Answered]) -> usize {
    answered.iter().filter(|answer| answer.latency < LEFT).count()
}

fn percentile_99(answered: &[Answered]) -> Duration {
    let mut latencies: Vec<_> = answered.iter().map(|answer| answer.latency).collect();
    latencies.sort();
    latencies[latencies.len() * 99 / 100]
}

/// The time that an HSM has for an operation begins with its turn, so that what waits at the replica may be given up when it is half done.
#[test]
fn what_has_its_turn_at_a_slow_hsm_does_not_wait_for_a_whole_operation_before_its_own() {
    let slow = SERVICE * 5;
    let answered = Simulation::new(&[(1, Urgency::Unwrap, 3.0 * CAPACITY)], &[(Duration::ZERO, slow)])
        .run(Duration::from_secs(20));
    let settled = answered.iter().filter(|answer| answer.at > Duration::from_secs(1));
    let (waited, all) = settled.fold((0, 0), |(waited, all), answer| {
        (waited + usize::from(answer.at_the_replica > slow.mul_f64(1.75)), all + 1)
    });
    assert!(all > 3000 && waited * 100 < all, "{waited} of {all}");
}

#[test]
fn ten_times_the_load_is_answered_as_fast_as_the_sessions_can_and_nothing_too_late() {
    for (load, callers) in [(1.0, 1), (1.0, 20), (2.0, 1), (2.0, 20), (5.0, 20), (10.0, 1), (10.0, 20)] {
        let each = load * CAPACITY / callers as f64;
        let of = |caller| [(caller, Urgency::Unwrap, 0.8 * each), (caller, Urgency::Wrap, 0.2 * each)];
        let rates: Vec<_> = (0..callers).flat_map(of).collect();
        let answered = Simulation::new(&rates, ALWAYS_8_MS).run(Duration::from_secs(20));
        let goodput = in_time(&answered) as f64 / (20.0 * CAPACITY);
        assert!(goodput > 0.95, "{load} times the capacity: {goodput}");
        assert!(percentile_99(&answered) < Duration::from_millis(55), "{:?}", percentile_99(&answered));
    }
}

#[test]
fn when_not_all_can_be_done_what_reads_data_goes_before_what_writes_it() {
    let rates = [(1, Urgency::Unwrap, 0.8 * CAPACITY), (1, Urgency::Wrap, 1.2 * CAPACITY)];
    let answered = Simulation::new(&rates, ALWAYS_8_MS).run(Duration::from_secs(20));
    let share = |urgency, rate: f64| {
        let done = answered.iter().filter(|answer| answer.urgency == urgency).count();
        done as f64 / (20.0 * rate)
    };
    let (unwraps, wraps) = (share(Urgency::Unwrap, 0.8 * CAPACITY), share(Urgency::Wrap, 1.2 * CAPACITY));
    assert!(unwraps > 0.95 && wraps < 0.3, "{unwraps} {wraps}");
}

/// Estimates that were right during a slowdown must not refuse everything after it.
#[test]
fn a_slowdown_leaves_nothing_behind() {
    for times in [5, 20] {
        let (from, to) = (Duration::from_secs(5), Duration::from_secs(8));
        let service = [(Duration::ZERO, SERVICE), (from, SERVICE * times), (to, SERVICE)];
        let answered = Simulation::new(&[(1, Urgency::Unwrap, 0.9 * CAPACITY)], &service).run(Duration::from_secs(15));
        let after = to + Duration::from_secs(1);
        let late = answered.iter().filter(|answer| answer.at > after);
        let done = late.filter(|answer| answer.latency < LEFT).count() as f64 / (6.0 * 0.9 * CAPACITY);
        assert!(done > 0.97, "{times} times slower, then not any more: {done}");
    }
}

#[test]
fn one_caller_in_excess_costs_the_others_nothing() {
    let mut rates = vec![(0, Urgency::Unwrap, 10.0 * CAPACITY)];
    rates.extend((1..10).map(|caller| (caller, Urgency::Unwrap, 0.05 * CAPACITY)));
    let mut simulation = Simulation::new(&rates, ALWAYS_8_MS);
    let answered = simulation.run(Duration::from_secs(20));
    let (noisy, quiet): (Vec<_>, Vec<_>) = answered.into_iter().partition(|answer| answer.caller == 0);
    let refused: usize = simulation.refused.iter().filter(|(caller, _)| **caller != 0).map(|(_, count)| count).sum();
    assert!((refused as f64) < 0.001 * quiet.len() as f64, "{refused}");
    assert_eq!(in_time(&quiet), quiet.len());
    assert!(percentile_99(&quiet) < Duration::from_millis(45), "{:?}", percentile_99(&quiet));
    assert!(in_time(&noisy) as f64 / 20.0 > 0.5 * CAPACITY, "what the others leave is for him");
}

#[test]
fn an_idle_session_is_refused_to_nobody_whatever_the_estimates_say() {
    let (now, mut queue) = (Instant::now(), Queue::<u32>::new(LENGTH));
    queue.sessions = 2;
    queue.service.note(Duration::from_secs(10));
    assert_eq!(queue.judge(&demand(1, Urgency::Sign, now), now), Verdict::Go);
    queue.busy = 2;
    assert_eq!(queue.judge(&demand(1, Urgency::Sign, now), now), Verdict::Refuse);
    assert_eq!(queue.judge(&demand(1, Urgency::Health, now), now), Verdict::Go, "it has a place of its own");
    queue.busy = 1;
    queue.push(demand(1, Urgency::Wrap, now), now, 7);
    let late = now + 2 * LEFT;
    assert_eq!(queue.next(late), Some(7), "also to whoever has waited too long");
}

#[test]
fn whose_turn_comes_too_late_is_given_up() {
    let (now, mut queue) = (Instant::now(), Queue::new(LENGTH));
    queue.sessions = 2;
    queue.busy = 2;
    queue.service.note(SERVICE);
    queue.push(demand(1, Urgency::Unwrap, now), now, "first");
    queue.push(demand(1, Urgency::Unwrap, now + LEFT), now + LEFT, "second");
    assert_eq!(queue.next(now + LEFT), Some("second"));
    assert_eq!((queue.expired, queue.waiting), (1, 0));
}

#[test]
fn a_full_queue_takes_from_the_longest_line() {
    let (now, mut queue) = (Instant::now(), Queue::new(4));
    queue.sessions = 1;
    queue.busy = queue.places();
    let verdict = |queue: &mut Queue<u32>, caller| queue.judge(&demand(caller, Urgency::Unwrap, now), now);
    for turn in 0..4 {
        assert_eq!(verdict(&mut queue, 1), Verdict::Wait);
        queue.push(demand(1, Urgency::Unwrap, now), now, turn);
    }
    assert_eq!(verdict(&mut queue, 1), Verdict::Refuse);
    assert_eq!(verdict(&mut queue, 2), Verdict::Wait);
    queue.push(demand(2, Urgency::Unwrap, now), now, 9);
    queue.busy = 0;
    let turns: Vec<_> = std::iter::from_fn(|| queue.next(now)).collect();
    assert_eq!(turns, [0, 9, 1, 2], "in turn; the last of the first caller had to go");
}

#[tokio::test]
async fn who_waits_gets_the_session_of_whoever_leaves_and_who_left_the_line_gets_none() {
    let admission = Admission::new(LENGTH);
    let now = Instant::now();
    let one = demand(1, Urgency::Unwrap, now + Duration::from_secs(20));
    let mut turns = Vec::new();
    for _ in 0..1 + AHEAD {
        turns.push(admission.enter(one, 1).await.unwrap());
    }
    let waits = |admission: &Arc<Admission>| {
        let admission = Arc::clone(admission);
        tokio::spawn(async move { admission.enter(one, 1).await })
    };
    let (gone, stays) = (waits(&admission), waits(&admission));
    while admission.status().waiting < 2 {
        tokio::task::yield_now().await;
    }
    gone.abort();
    assert!(gone.await.is_err());
    turns.pop();
    let turn = stays.await.unwrap().unwrap();
    assert_eq!(admission.status().busy, 1 + AHEAD);
    drop((turns, turn));
    assert_eq!((admission.status().busy, admission.status().waiting), (0, 0));
}
