//! The generator: threads that send on schedule, and what that has cost.

use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use http::HeaderMap;
use rustix::thread::CpuSet;
use rustls::ClientConfig;
use tokio::runtime::Builder;
use tokio::task::{LocalSet, yield_now};
use tokio::time::sleep;

use crate::choice::Weights;
use crate::clock::{Timer, thread_cpu};
use crate::connection::keep;
use crate::cores;
use crate::progress::Live;
use crate::recording::{Kind, Recording};
use crate::requests::Requests;
use crate::scenario::Scenario;
use crate::schedule::Schedule;
use crate::target::{TOKEN_AGE, Target, Tokens};
use crate::thread::{Loop, Settings, Thread};

/// What is due within this time is sent together: to wake up for each request would cost more than to send it.
const TOGETHER: Duration = Duration::from_micros(250);

/// After so many the connections have their turn, though more is due.
const AT_ONCE: usize = 32;

/// Until all connections are open.
const OPENING: Duration = Duration::from_secs(10);

/// Before the start: for threads, and for each connection, with its handshake on both sides.
const AHEAD: Duration = Duration::from_millis(500);
const AHEAD_EACH: Duration = Duration::from_millis(3);

/// A thread that sends on time goes before those that answer.
const NICE: i32 = -10;

/// What is sent, and where to.
pub struct Generator<'a> {
    pub scenario: &'a Scenario,
    pub target: Arc<Target>,
    pub requests: Arc<Requests>,
    pub tokens: Arc<Tokens>,
    /// Its own, if there are some.
    pub cores: Option<&'a CpuSet>,
}

/// What one thread has cost.
#[derive(Clone, Copy, Debug)]
pub struct Cost {
    pub cpu: Duration,
    pub wall: Duration,
    /// Whether the system let it go before others.
    pub has_priority: bool,
}

/// What a run has shown.
pub struct Run {
    pub recording: Recording,
    pub costs: Vec<Cost>,
}

impl Generator<'_> {
    /// How many requests may be under way at once, on each thread.
    pub fn max_outstanding(&self, peak_per_s: f64) -> usize {
        let client = &self.scenario.client;
        // Retries wait at most half as long again as `after_ms` says; what RetryInfo asks for comes out of the reserve.
        let longest_ms = client.retry.as_ref().map_or(client.timeout_ms, |retry| {
            let waits = (0..retry.attempts).map(|attempt| 1.5 * retry.after_ms * retry.factor.powi(attempt.into()));
            client.timeout_ms * (1.0 + f64::from(retry.attempts)) + waits.sum::<f64>()
        });
        let needed = 1.5 * peak_per_s * longest_ms / 1000.0;
        client.max_outstanding.unwrap_or_else(|| (needed as usize).max(100)).div_ceil(client.threads)
    }

    /// Sends a schedule. `begin` is called when it starts.
    pub fn run(&self, schedule: &Schedule, live: &Arc<Live>, begin: impl FnOnce(Instant)) -> Result<Run> {
        let (groups, threads) = (self.scenario.callers.len(), self.scenario.client.threads);
        let recording = Recording::new(schedule.seconds(), groups);
        let max_outstanding = self.max_outstanding(schedule.peak_per_s());
        // Connections first; then everybody starts at the same time.
        let begun = self.begin();
        begin(begun);
        let parts = std::thread::scope(|scope| {
            let parts = (0..threads).map(|number| {
                let settings = self.settings(begun, live, recording.clone(), max_outstanding, number, Loop::Open);
                scope.spawn(move || self.thread(settings, number, Some(schedule)))
            });
            let parts: Vec<_> = parts.collect();
            parts.into_iter().map(|part| part.join().expect("it does not panic")).collect::<Result<Vec<_>>>()
        })?;
        let mut all = recording;
        parts.iter().for_each(|(recording, _)| all.add(recording));
        Ok(Run { recording: all, costs: parts.into_iter().map(|(_, cost)| cost).collect() })
    }

    /// What the service does a second if there are always so many requests under way.
    pub fn measure_capacity(&self, at_once: usize, duration: Duration) -> Result<f64> {
        // The first quarter shows how long it takes to get going.
        let (live, count_from) = (Arc::new(Live::default()), duration / 4);
        let threads = self.scenario.client.threads;
        let per_thread = at_once.div_ceil(threads);
        let recording = Recording::new(duration.as_secs_f64(), self.scenario.callers.len());
        let begun = self.begin();
        let recordings = std::thread::scope(|scope| {
            let threads = (0..threads).map(|number| {
                let kind_of_loop = Loop::Closed(duration);
                let settings = self.settings(begun, &live, recording.clone(), per_thread, number, kind_of_loop);
                scope.spawn(move || self.thread(settings, number, None))
            });
            let threads: Vec<_> = threads.collect();
            threads.into_iter().map(|thread| thread.join().expect("it does not panic")).collect::<Result<Vec<_>>>()
        })?;
        let interval = recording.interval();
        let first = (count_from.as_nanos() / interval.as_nanos()) as usize + 1;
        let last = (duration.as_nanos() / interval.as_nanos()) as usize;
        let right = |recording: &Recording| -> u64 {
            recording.over_time(None)[first..last].iter().map(|tally| tally.counts[Kind::Right as usize]).sum()
        };
        let right: u64 = recordings.iter().map(|(recording, _)| right(recording)).sum();
        let per_s = right as f64 / (interval * (last - first) as u32).as_secs_f64();
        ensure!(per_s > 0.0, "no request was answered while the capacity was measured");
        Ok(per_s)
    }

    /// When everybody has opened its connections.
    fn begin(&self) -> Instant {
        let connections = u32::try_from(self.scenario.client.connections * self.target.len()).unwrap_or(u32::MAX);
        Instant::now() + AHEAD + AHEAD_EACH.saturating_mul(connections)
    }

    fn settings(
        &self,
        begun: Instant,
        live: &Arc<Live>,
        recording: Recording,
        max_outstanding: usize,
        number: usize,
        kind_of_loop: Loop,
    ) -> Settings {
        let client = &self.scenario.client;
        Settings {
            begun,
            requests: Arc::clone(&self.requests),
            live: Arc::clone(live),
            timeout: Duration::from_secs_f64(client.timeout_ms / 1000.0),
            retry: client.retry.clone(),
            headers: self.requests.headers(&self.tokens),
            max_outstanding,
            recording,
            seed: self.scenario.seed.wrapping_add(number as u64),
            kind_of_loop,
        }
    }

    fn thread(&self, settings: Settings, number: usize, schedule: Option<&Schedule>) -> Result<(Recording, Cost)> {
        self.cores.map_or(Ok(()), cores::move_to).context("the generator's cores")?;
        // Only root may; a run without it says so.
        let has_priority = rustix::process::nice(NICE).is_ok();
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let local = LocalSet::new();
        let (begun, per_thread) = (settings.begun, settings.max_outstanding);
        let thread = Thread::new(settings);
        local.block_on(&runtime, async {
            self.connect(&thread, number).await?;
            sleep(begun.saturating_duration_since(Instant::now())).await;
            let (cpu_before, wall_before) = (thread_cpu(), Instant::now());
            match schedule {
                Some(schedule) => self.send(&thread, schedule, number).await?,
                None => {
                    let (groups, mut random) = (self.groups(), fastrand::Rng::with_seed(self.scenario.seed));
                    (0..per_thread)
                        .for_each(|_| thread.arrive(0, groups.choose(&mut random), thread.now(), thread.now()));
                }
            }
            while thread.outstanding() > 0 {
                thread.give_up_late_ones();
                sleep(Duration::from_millis(5)).await;
            }
            thread.end_all();
            let cost = Cost { cpu: thread_cpu() - cpu_before, wall: wall_before.elapsed(), has_priority };
            Ok((thread.recording(), cost))
        })
    }

    /// By their shares.
    fn groups(&self) -> Weights {
        Weights::new(self.scenario.callers.iter().map(|callers| callers.get_ref().share()))
    }

    /// Opens this thread's share of the connections.
    async fn connect(&self, thread: &Rc<Thread>, number: usize) -> Result<()> {
        let client = &self.scenario.client;
        let tls: Arc<ClientConfig> = self.target.tls(client.protocol);
        let mut opening = 0;
        for frontend in 0..self.target.len() {
            for _ in (0..client.connections).filter(|connection| connection % client.threads == number) {
                let (thread, target, tls) = (Rc::clone(thread), Arc::clone(&self.target), Arc::clone(&tls));
                tokio::task::spawn_local(keep(thread, target, frontend, tls, client.protocol));
                opening += 1;
            }
        }
        let since = Instant::now();
        while thread.connections() < opening {
            ensure!(
                since.elapsed() < OPENING,
                "of {opening} connections only {} could be opened",
                thread.connections()
            );
            sleep(Duration::from_millis(5)).await;
        }
        Ok(())
    }

    async fn send(&self, thread: &Rc<Thread>, schedule: &Schedule, number: usize) -> Result<()> {
        let timer = Timer::new().context("no timer")?;
        let mut tokens_made = Instant::now();
        let mut part = schedule.part(number, self.scenario.client.threads).peekable();
        while let Some(next) = part.peek() {
            if let Some(early) = next.due.checked_sub(thread.now()).filter(|early| !early.is_zero()) {
                self.wait(&timer, early.max(TOGETHER)).await?;
            }
            let now = thread.now();
            thread.give_up_late_ones();
            for _ in 0..AT_ONCE {
                let Some(arrival) = part.next_if(|arrival| arrival.due <= now) else { break };
                thread.arrive(arrival.phase, arrival.group, arrival.due, now);
            }
            yield_now().await;
            if tokens_made.elapsed() > TOKEN_AGE {
                tokens_made = Instant::now();
                let (requests, tokens) = (Arc::clone(&self.requests), Arc::clone(&self.tokens));
                let headers: Vec<HeaderMap> = tokio::task::spawn_blocking(move || requests.headers(&tokens)).await?;
                *thread.headers.borrow_mut() = headers;
            }
        }
        Ok(())
    }

    /// In a long wait, whoever waits for a connection is still given up in time.
    async fn wait(&self, timer: &Timer, duration: Duration) -> io::Result<()> {
        timer.sleep(duration.min(Duration::from_millis(20))).await
    }
}
