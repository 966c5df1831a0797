//! Writers that change the catalog at a steady rate, and remember what they were told.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use ekm_tests::postgres::Database;

use crate::catalog;
use crate::history::{Attempt, Outcome};

/// Between two attempts of a writer.
const PAUSE: Duration = Duration::from_millis(200);

/// Two writers; they end when dropped.
pub struct Writers {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

struct Shared {
    begun: Instant,
    ended: AtomicBool,
    attempts: Mutex<Vec<Attempt>>,
    /// Held for reading during an attempt.
    under_way: RwLock<()>,
}

impl Writers {
    /// Starts them; the history's clock begins.
    pub fn start(database: &Database) -> Self {
        let shared = Arc::new(Shared {
            begun: Instant::now(),
            ended: AtomicBool::new(false),
            attempts: Mutex::default(),
            under_way: RwLock::default(),
        });
        let threads = ["a", "b"].map(|name| {
            let (shared, database) = (Arc::clone(&shared), database.clone());
            thread::spawn(move || shared.write(&database, name))
        });
        Self { shared, threads: threads.into() }
    }

    /// Milliseconds since they were started.
    pub fn now_ms(&self) -> u64 {
        self.shared.now_ms()
    }

    /// Does something while no attempt is under way, with all attempts so far.
    pub fn while_quiet<T>(&self, action: impl FnOnce(&[Attempt]) -> T) -> T {
        let _quiet = self.shared.under_way.write().unwrap_or_else(PoisonError::into_inner);
        action(&self.shared.lock())
    }

    /// Waits for an acknowledgement of a write that was sent from now on; whether one came in this time.
    pub fn acknowledged_within(&self, patience: Duration) -> bool {
        let (from_ms, begun) = (self.now_ms(), Instant::now());
        while begun.elapsed() < patience {
            let acknowledged = |attempt: &Attempt| matches!(attempt.outcome, Outcome::Acknowledged { .. });
            let late = |attempt: &&Attempt| attempt.sent_ms >= from_ms;
            if self.shared.lock().iter().rev().take(50).filter(late).any(acknowledged) {
                return true;
            }
            thread::sleep(Duration::from_millis(20));
        }
        false
    }
}

impl Drop for Writers {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn now_ms(&self) -> u64 {
        u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Attempt>> {
        self.attempts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps to the host that acknowledged the last write; looks for another after a failure.
    fn write(&self, database: &Database, name: &str) {
        let mut host = 0;
        for number in 1_u64.. {
            if self.ended.load(Ordering::Relaxed) {
                return;
            }
            let under_way = self.under_way.read().unwrap_or_else(PoisonError::into_inner);
            let (id, sent_ms) = (format!("{name}{number}"), self.now_ms());
            let outcome = catalog::write_change(database, host, &id);
            self.lock().push(Attempt { id, sent_ms, ended_ms: self.now_ms(), outcome });
            drop(under_way);
            match outcome {
                Outcome::Acknowledged { .. } => thread::sleep(PAUSE),
                Outcome::Refused | Outcome::Unknown => {
                    host = (host + 1) % database.hosts.len();
                    thread::sleep(PAUSE / 2);
                }
            }
        }
    }
}
