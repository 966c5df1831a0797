//! Writes to one node past the frontends, which choose their node themselves: what does a leader acknowledge that was cut off?

use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle, sleep};
use std::time::{Duration, Instant};

use ekm_tests::postgres::{Database, programs};

/// How long an answer is waited for.
const PATIENCE: Duration = Duration::from_secs(3);

const PAUSE: Duration = Duration::from_millis(100);

/// Writes to one node until it is asked what was acknowledged.
pub struct Probe {
    ended: Arc<AtomicBool>,
    thread: JoinHandle<(u32, u32)>,
}

/// Makes the table.
pub fn create(database: &Database) {
    of(database).psql("CREATE TABLE probe (at timestamptz DEFAULT now())");
}

/// Whether this host acknowledges a write now.
pub fn once(database: &Database, host: usize) -> bool {
    is_acknowledged(&on(database, host))
}

fn of(database: &Database) -> Database {
    Database { name: "probe".into(), ..database.clone() }
}

fn on(database: &Database, host: usize) -> Database {
    Database { hosts: vec![database.hosts[host].clone()], ..of(database) }
}

impl Probe {
    /// On the host with this number.
    pub fn start(database: &Database, host: usize) -> Self {
        let one = on(database, host);
        let ended = Arc::new(AtomicBool::new(false));
        let asked = Arc::clone(&ended);
        let thread = thread::spawn(move || {
            let (mut tried, mut acknowledged) = (0, 0);
            while !asked.load(Ordering::Relaxed) {
                tried += 1;
                acknowledged += u32::from(is_acknowledged(&one));
                sleep(PAUSE);
            }
            (tried, acknowledged)
        });
        Self { ended, thread }
    }

    /// How many writes were tried, and how many acknowledged.
    pub fn end(self) -> (u32, u32) {
        self.ended.store(true, Ordering::Relaxed);
        self.thread.join().expect("it does not panic")
    }
}

fn is_acknowledged(database: &Database) -> bool {
    let mut psql = Command::new(programs().join("psql"));
    psql.args(["-X", "-q", "-v", "ON_ERROR_STOP=1", "-c", "INSERT INTO probe DEFAULT VALUES", &database.url()]);
    psql.env("PGCONNECT_TIMEOUT", "2").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = psql.spawn().expect("psql starts");
    let begun = Instant::now();
    loop {
        if let Some(status) = child.try_wait().expect("a child") {
            return status.success();
        }
        if begun.elapsed() > PATIENCE {
            let _ = child.kill();
            let _ = child.wait();
            return false;
        }
        sleep(Duration::from_millis(5));
    }
}
