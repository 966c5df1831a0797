//! The data plane's load: what one frontend wraps the other unwraps, at a steady rate, and every byte is compared.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use ekm_tests::drill::Client;
use ekm_tests::{Ekm, base64};
use serde_json::json;

/// Pairs of a wrap and an unwrap that one thread does per second.
const PAIRS_PER_THREAD: u32 = 25;

/// Threads that wrap and unwrap until it is dropped.
pub struct Load {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    ended: AtomicBool,
    wraps: AtomicU64,
    unwraps: AtomicU64,
    failed: AtomicU64,
    slowest_us: AtomicU64,
    first_error: Mutex<Option<String>>,
}

/// What was done up to a moment.
#[derive(Clone, Copy, Debug, Default)]
pub struct Done {
    /// Wraps that were answered.
    pub wraps: u64,
    /// Unwraps that gave the same bytes.
    pub unwraps: u64,
    /// Wraps and unwraps that failed, or gave other bytes.
    pub failed: u64,
}

impl Load {
    /// This many pairs of a wrap and an unwrap per second; half of them begin at either frontend.
    pub fn start(frontends: [&Ekm; 2], pairs_per_s: u32) -> Self {
        let shared = Arc::new(Shared::default());
        let count = pairs_per_s.div_ceil(PAIRS_PER_THREAD).max(1);
        let pause = Duration::from_secs(1) * count / pairs_per_s.max(1);
        let threads = (0..count).map(|number| {
            let mut clients = frontends.map(|ekm| Client::of(ekm, "v0/keys/demo"));
            if number % 2 == 1 {
                clients.reverse();
            }
            let (shared, begin) = (Arc::clone(&shared), pause * number / count);
            thread::spawn(move || {
                thread::sleep(begin); // not all at once
                shared.work(&mut clients, u64::from(number) << 48, pause);
            })
        });
        let threads = threads.collect();
        Self { shared, threads }
    }

    /// What was done so far.
    pub fn done(&self) -> Done {
        let Shared { wraps, unwraps, failed, .. } = &*self.shared;
        let [wraps, unwraps, failed] = [wraps, unwraps, failed].map(|count| count.load(Ordering::Relaxed));
        Done { wraps, unwraps, failed }
    }

    /// The slowest request since this was last asked, in milliseconds.
    pub fn take_slowest_ms(&self) -> u64 {
        self.shared.slowest_us.swap(0, Ordering::Relaxed) / 1000
    }

    /// The first failure since this was last asked.
    pub fn take_error(&self) -> Option<String> {
        self.shared.first_error.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn work(&self, clients: &mut [Client; 2], first: u64, pause: Duration) {
        let mut due = Instant::now();
        for number in first.. {
            if self.ended.load(Ordering::Relaxed) {
                return;
            }
            if let Err(error) = self.pair(clients, number) {
                self.failed.fetch_add(1, Ordering::Relaxed);
                self.first_error.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
            }
            due += pause;
            let now = Instant::now();
            if due > now {
                thread::sleep(due - now);
            } else {
                due = now; // no burst after a pause
            }
        }
    }

    fn pair(&self, clients: &mut [Client; 2], number: u64) -> Result<(), String> {
        let (plaintext, aad) = (base64([number.to_be_bytes(); 4].as_flattened()), base64(number.to_le_bytes()));
        let body = json!({"plaintext": plaintext, "additionalAuthenticatedData": aad});
        let wrapped = self.timed(|| clients[0].post("wrap", &body))?;
        self.wraps.fetch_add(1, Ordering::Relaxed);
        let body = json!({"wrappedBlob": wrapped["wrappedBlob"], "additionalAuthenticatedData": aad});
        let unwrapped = self.timed(|| clients[1].post("unwrap", &body))?;
        if unwrapped["plaintext"] != plaintext {
            return Err("an unwrap gave other bytes than were wrapped".into());
        }
        self.unwraps.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    fn timed<T>(&self, action: impl FnOnce() -> T) -> T {
        let begun = Instant::now();
        let result = action();
        let took_us = u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX);
        self.slowest_us.fetch_max(took_us, Ordering::Relaxed);
        result
    }
}
