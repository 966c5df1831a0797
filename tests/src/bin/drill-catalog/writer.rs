//! Writers that change the catalog at a steady rate, one at each frontend, and remember what they were told.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use ekm_tests::Ekm;
use serde_json::{Value, json};

use crate::catalog::{Admin, Sent};
use crate::frontends::WRITTEN;
use crate::history::{Attempt, Outcome};

/// Between two changes of a writer.
const PAUSE: Duration = Duration::from_millis(200);

/// Before a request is sent again. The command line begins with 250 ms and then takes longer, which would be measured, too.
const AGAIN: Duration = Duration::from_millis(100);

/// So many changes are sent once more when they are done, at the other frontend: it has to give the first answer.
const REPEAT_EVERY: u64 = 10;

/// Two writers; they end when dropped.
pub struct Writers {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

struct Shared {
    begun: Instant,
    ended: AtomicBool,
    attempts: Mutex<Vec<Attempt>>,
    faults: Mutex<Vec<String>>,
    /// Held for reading during an attempt.
    under_way: RwLock<()>,
}

impl Writers {
    /// Starts them; the history's clock begins.
    pub fn start(frontends: [&Ekm; 2]) -> Self {
        let shared = Arc::new(Shared {
            begun: Instant::now(),
            ended: AtomicBool::new(false),
            attempts: Mutex::default(),
            faults: Mutex::default(),
            under_way: RwLock::default(),
        });
        let threads = [0, 1].map(|number| {
            let (own, other) = (Admin::of(frontends[number]), Admin::of(frontends[1 - number]));
            let shared = Arc::clone(&shared);
            thread::spawn(move || shared.write(own, other, WRITTEN[number], ["a", "b"][number]))
        });
        Self { shared, threads: threads.into() }
    }

    /// Milliseconds since they were started.
    pub fn now_ms(&self) -> u64 {
        self.shared.now_ms()
    }

    /// Makes one change more, and remembers it like the others.
    pub fn change(&self, admin: &mut Admin, id: &str, command: &Value) -> Result<u64, String> {
        let _under_way = self.shared.under_way.read().unwrap_or_else(PoisonError::into_inner);
        match self.shared.carry_out(admin, id, command, None) {
            Outcome::Acknowledged { revision } => Ok(revision),
            Outcome::Refused | Outcome::Unknown => Err(format!("{id} was not carried out")),
        }
    }

    /// Does something while no attempt is under way, with all attempts so far.
    pub fn while_quiet<T>(&self, action: impl FnOnce(&[Attempt]) -> T) -> T {
        let _quiet = self.shared.under_way.write().unwrap_or_else(PoisonError::into_inner);
        action(&lock(&self.shared.attempts))
    }

    /// What should never have been answered, since this was last asked.
    pub fn take_faults(&self) -> Vec<String> {
        std::mem::take(&mut *lock(&self.shared.faults))
    }

    /// Waits for an acknowledgement of a write that was sent from now on; whether one came in this time.
    pub fn acknowledged_within(&self, patience: Duration) -> bool {
        let (from_ms, begun) = (self.now_ms(), Instant::now());
        while begun.elapsed() < patience {
            let acknowledged = |attempt: &Attempt| matches!(attempt.outcome, Outcome::Acknowledged { .. });
            let late = |attempt: &&Attempt| attempt.sent_ms >= from_ms;
            if lock(&self.shared.attempts).iter().rev().take(50).filter(late).any(acknowledged) {
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

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    fn now_ms(&self) -> u64 {
        u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Each change names the revision that the one before was acknowledged with: if that one is lost, this one is refused.
    fn write(&self, mut own: Admin, mut other: Admin, key: &str, name: &str) {
        let mut revision = own.key_revision(key).ok();
        for number in 1_u64.. {
            if self.ended.load(Ordering::Relaxed) {
                return;
            }
            let under_way = self.under_way.read().unwrap_or_else(PoisonError::into_inner);
            let id = format!("{name}{number}");
            let labels = json!({"number": number.to_string()});
            let command = json!({"type": "key-update", "path": key, "labels": labels, "description": ""});
            match self.carry_out(&mut own, &id, &command, revision) {
                Outcome::Acknowledged { revision: made } => {
                    if number.is_multiple_of(REPEAT_EVERY) {
                        self.repeat(&mut other, &id, &command, revision, made);
                    }
                    revision = Some(made);
                }
                Outcome::Refused | Outcome::Unknown => revision = own.key_revision(key).ok(),
            }
            drop(under_way);
            thread::sleep(PAUSE);
        }
    }

    /// Sends a change until there is a certain answer.
    fn carry_out(&self, admin: &mut Admin, id: &str, command: &Value, if_revision: Option<u64>) -> Outcome {
        let sent_ms = self.now_ms();
        let outcome = loop {
            match admin.change(id, command, if_revision) {
                Sent::Certain(outcome, problem) => {
                    if outcome == Outcome::Refused {
                        lock(&self.faults).push(format!("write {id} was refused: {problem}"));
                    }
                    break outcome;
                }
                Sent::Again(_) if self.ended.load(Ordering::Relaxed) => break Outcome::Unknown,
                Sent::Again(_) => thread::sleep(AGAIN),
            }
        };
        lock(&self.attempts).push(Attempt { id: id.to_owned(), sent_ms, ended_ms: self.now_ms(), outcome });
        outcome
    }

    fn repeat(&self, other: &mut Admin, id: &str, command: &Value, if_revision: Option<u64>, made: u64) {
        // Without an answer there is nothing to compare; the log says whether it was made twice.
        if let Sent::Certain(outcome, problem) = other.change(id, command, if_revision)
            && outcome != (Outcome::Acknowledged { revision: made })
        {
            lock(&self.faults).push(format!("write {id}, repeated at the other frontend, got {outcome:?} {problem}"));
        }
    }
}
