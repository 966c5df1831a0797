//! What revision of the catalog each frontend says that it has, all the time.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use ekm_tests::Ekm;

const PAUSE: Duration = Duration::from_millis(200);

/// Asks the frontends; they end with it.
pub struct Observer {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    ended: AtomicBool,
    seen: Mutex<Vec<Vec<u64>>>,
}

impl Observer {
    /// Begins.
    pub fn start(frontends: Arc<[Ekm; 2]>) -> Self {
        let shared = Arc::new(Shared { seen: Mutex::new(vec![Vec::new(); frontends.len()]), ..Shared::default() });
        let asking = Arc::clone(&shared);
        let thread = thread::spawn(move || {
            while !asking.ended.load(Ordering::Relaxed) {
                let revisions = frontends.each_ref().map(|ekm| ekm.metric("ekm_catalog_revision"));
                let mut seen = asking.seen.lock().unwrap_or_else(PoisonError::into_inner);
                for (seen, revision) in seen.iter_mut().zip(revisions) {
                    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a revision")]
                    seen.push(revision as u64);
                }
                drop(seen);
                thread::sleep(PAUSE);
            }
        });
        Self { shared, thread: Some(thread) }
    }

    /// The revisions that each frontend had, in the order of time.
    pub fn seen(&self) -> Vec<Vec<u64>> {
        self.shared.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits until every frontend shows this revision, which may be in vain.
    pub fn wait_for(&self, revision: u64, patience: Duration) {
        let begun = Instant::now();
        while self.latest().iter().any(|&latest| latest != revision) && begun.elapsed() < patience {
            thread::sleep(PAUSE / 4);
        }
    }

    /// The last of each.
    pub fn latest(&self) -> Vec<u64> {
        self.seen().iter().filter_map(|revisions| revisions.last().copied()).collect()
    }
}

impl Drop for Observer {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
