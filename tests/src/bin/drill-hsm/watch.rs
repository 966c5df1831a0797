//! The replicas' states, looked at all the time.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use ekm_tests::{Connection, Ekm};

/// Between two looks.
const PAUSE: Duration = Duration::from_millis(20);

/// Looks until it is dropped.
pub struct Watch {
    seen: Arc<Seen>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Seen {
    ended: AtomicBool,
    changes: Mutex<Vec<Change>>,
}

/// A state that a replica was seen to be in from then on.
#[derive(Clone, Debug)]
pub struct Change {
    /// When it was first seen.
    pub at: Instant,
    /// The replica's name.
    pub replica: String,
    /// The state.
    pub state: String,
}

impl Change {
    fn in_use(&self) -> bool {
        matches!(&*self.state, "serving" | "suspect")
    }
}

impl Watch {
    /// On this service.
    pub fn start(ekm: &Ekm) -> Self {
        let seen = Arc::new(Seen::default());
        let address = ekm.ready.ops_url.strip_prefix("http://").expect("http").parse().expect("an address");
        let thread = thread::spawn({
            let seen = Arc::clone(&seen);
            move || {
                let mut connection = Connection::open_plain(address).expect("TCP");
                while !seen.ended.load(Ordering::Relaxed) {
                    let text = connection.request("GET /readyz?verbose HTTP/1.1\r\nHost: localhost\r\n\r\n").text();
                    seen.note(&text, Instant::now());
                    thread::sleep(PAUSE);
                }
            }
        });
        Self { seen, thread: Some(thread) }
    }

    /// All changes since a moment.
    pub fn changes(&self, since: Instant) -> Vec<Change> {
        self.seen.changes().iter().filter(|change| change.at >= since).cloned().collect()
    }

    /// Whether a replica is in a state now.
    pub fn is_in(&self, replica: &str, state: &str) -> bool {
        self.seen.last(replica).is_some_and(|change| change.state == state)
    }

    /// How long after `since` a replica was no longer in use; `None` if it always was.
    pub fn out_after(&self, replica: &str, since: Instant) -> Option<Duration> {
        let changes = self.changes(since);
        let out = changes.iter().find(|change| change.replica == replica && !change.in_use())?;
        Some(out.at - since)
    }

    /// Waits until a replica is in a state; how long after `since` that was, or `None` if it takes too long.
    pub fn in_state_after(&self, replica: &str, state: &str, since: Instant, patience: Duration) -> Option<Duration> {
        while since.elapsed() < patience {
            if let Some(last) = self.seen.last(replica).filter(|last| last.state == state) {
                return Some(last.at.saturating_duration_since(since));
            }
            thread::sleep(PAUSE);
        }
        None
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.seen.ended.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Seen {
    fn changes(&self) -> MutexGuard<'_, Vec<Change>> {
        self.changes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn last(&self, replica: &str) -> Option<Change> {
        self.changes().iter().rev().find(|change| change.replica == replica).cloned()
    }

    fn note(&self, text: &str, at: Instant) {
        for (replica, state) in text.lines().filter_map(replica_and_state) {
            if self.last(replica).is_none_or(|last| last.state != state) {
                self.changes().push(Change { at, replica: replica.into(), state: state.into() });
            }
        }
    }
}

/// Of one line: `[+] HSM replica hsm-a: serving for 3 s: a probe has passed`.
fn replica_and_state(line: &str) -> Option<(&str, &str)> {
    let (replica, rest) = line.split_once("HSM replica ")?.1.split_once(": ")?;
    Some((replica, rest.split_once(" for ")?.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replica_is_out_when_it_is_neither_serving_nor_suspect_and_back_when_it_serves() {
        let seen = Seen::default();
        let begun = Instant::now();
        for (ms, state) in [(0, "serving"), (20, "suspect"), (40, "suspect"), (60, "ejected"), (80, "serving")] {
            let line = format!("[+] HSM replica hsm-a: {state} for 3 s: a probe has passed");
            seen.note(&line, begun + Duration::from_millis(ms));
        }
        let watch = Watch { seen: Arc::new(seen), thread: None };
        assert_eq!(watch.changes(begun).len(), 4);
        assert_eq!(watch.out_after("hsm-a", begun), Some(Duration::from_millis(60)));
        assert_eq!(watch.out_after("hsm-b", begun), None);
        assert!(watch.is_in("hsm-a", "serving"));
        assert_eq!(
            watch.in_state_after("hsm-a", "serving", begun, Duration::from_secs(9)),
            Some(Duration::from_millis(80))
        );
    }
}
