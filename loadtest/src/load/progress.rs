//! How far a run has come, while it is under way: on a terminal one line that changes, else one line every few seconds.

use std::io::{IsTerminal, stderr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use crate::recording::Kind;
use crate::schedule::Schedule;

/// Where nobody looks at a line that changes.
const PLAIN: Duration = Duration::from_secs(5);

/// What the generator's threads count while they run.
#[derive(Default)]
pub struct Live {
    pub arrivals: AtomicU64,
    pub attempts: AtomicU64,
    pub counts: [AtomicU64; Kind::ALL.len()],
}

/// Shows it until it is dropped.
pub struct Progress {
    ended: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Progress {
    /// Of a run that began just now.
    pub fn start(live: &Arc<Live>, schedule: &Schedule) -> Self {
        let (live, schedule, ended) = (Arc::clone(live), schedule.clone(), Arc::new(AtomicBool::new(false)));
        let until = Arc::clone(&ended);
        let thread = thread::spawn(move || show(&live, &schedule, &until));
        Self { ended, thread: Some(thread) }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn show(live: &Live, schedule: &Schedule, ended: &AtomicBool) {
    let (begun, seconds, on_terminal) = (Instant::now(), schedule.seconds(), stderr().is_terminal());
    let bar = ProgressBar::new(seconds as u64);
    let style = ProgressStyle::with_template("{bar:24} {pos:>4}/{len} s  {msg}");
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    let (mut last, mut last_at) = (read(live), begun);
    while !ended.load(Ordering::Relaxed) {
        thread::sleep(Duration::from_millis(100));
        let every = if on_terminal { Duration::from_millis(500) } else { PLAIN };
        if last_at.elapsed() < every {
            continue;
        }
        let (now, per) = (read(live), last_at.elapsed().as_secs_f64());
        last_at = Instant::now();
        let at = begun.elapsed().as_secs_f64();
        let phase =
            schedule.phases.iter().find(|phase| at < phase.ends_s).map_or("the last answers", |phase| &phase.name);
        let line = line(phase, &last, &now, per);
        last = now;
        if on_terminal {
            bar.set_position((at as u64).min(seconds as u64));
            bar.set_message(line);
        } else {
            eprintln!("{at:6.0} s of {seconds:.0}  {line}");
        }
    }
    bar.finish_and_clear();
}

/// Arrivals, attempts, and the counts of each kind.
type Reading = (u64, u64, [u64; Kind::ALL.len()]);

fn read(live: &Live) -> Reading {
    let counts = [0, 1, 2, 3, 4, 5, 6, 7, 8].map(|kind: usize| live.counts[kind].load(Ordering::Relaxed));
    (live.arrivals.load(Ordering::Relaxed), live.attempts.load(Ordering::Relaxed), counts)
}

fn line(phase: &str, last: &Reading, now: &Reading, seconds: f64) -> String {
    let rate = |last: u64, now: u64| now.saturating_sub(last) as f64 / seconds;
    let mut line = format!("{phase}: {:.0} due/s, {:.0} sent/s", rate(last.0, now.0), rate(last.1, now.1));
    for kind in Kind::ALL {
        let rate = rate(last.2[kind as usize], now.2[kind as usize]);
        if rate > 0.0 || kind == Kind::Right {
            line += &format!(", {rate:.0} {}", kind.name());
        }
    }
    line
}
