//! Whether the HSM is the limit, and not the way to it.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use ekm_tests::Ekm;
use ekm_tests::drill::Client;

use crate::load::{KEY, Outcome, Wrapped};

/// Before it is measured.
const WARM_UP: Duration = Duration::from_secs(2);

/// Unwraps over so many connections, each as fast as it is answered; how many a second were right, and how many were not.
pub fn measure(ekm: &Ekm, connections: usize, seconds: Duration) -> (f64, u64) {
    let (right, wrong, ended) = (AtomicU64::new(0), AtomicU64::new(0), AtomicBool::new(false));
    thread::scope(|scope| {
        for number in 0..connections as u64 {
            let (right, wrong, ended) = (&right, &wrong, &ended);
            scope.spawn(move || {
                let mut client = Client::of(ekm, KEY);
                let wrapped = Wrapped::make(&mut client, number);
                let wrapped = wrapped.unwrap_or_else(|outcome| panic!("a wrap failed: {outcome:?}"));
                while !ended.load(Ordering::Relaxed) {
                    let count = if wrapped.open(&mut client) == Outcome::Right { right } else { wrong };
                    count.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        thread::sleep(WARM_UP);
        let (before, begun) = (right.load(Ordering::Relaxed), Instant::now());
        thread::sleep(seconds);
        let done = right.load(Ordering::Relaxed) - before;
        let per_s = done as f64 / begun.elapsed().as_secs_f64();
        ended.store(true, Ordering::Relaxed);
        (per_s, wrong.load(Ordering::Relaxed))
    })
}
