//! Cloud KMS, as far as connections and patience go: connections that are kept, an answer within a time or none.

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustls::ClientConfig;
use serde_json::{Value, json};

use crate::client::{Answer, Connection, tls_config};
use crate::issuer::Issuer;
use crate::{base64, unbase64};

/// Who calls, and how long he waits.
#[derive(Clone)]
pub struct Caller {
    address: SocketAddr,
    config: ClientConfig,
    token: Arc<str>,
    patience: Duration,
    requests_of_a_connection: u32,
}

/// One request.
#[derive(Clone, Debug)]
pub struct Sample {
    /// When it was begun.
    pub at: Instant,
    /// From then to the answer, connecting included.
    pub took: Duration,
    /// Whether it was the first one of its connection.
    pub connected: bool,
    /// Whether it was sent again, because the connection that it had been sent on was closed instead of an answer.
    pub repeated: bool,
    /// Why there was no right answer in time, if there was none.
    pub failure: Option<String>,
}

impl Caller {
    /// With certificate and issuer of a directory of `ekm dev`. Each connection is given up after so many requests, so that new ones are made
    /// all the time.
    pub fn new(address: SocketAddr, origin: &Path, patience: Duration, requests_of_a_connection: u32) -> Self {
        let config = tls_config(&origin.join("tls/certificate.pem"), &["http/1.1"]);
        Self { address, config, token: Issuer::of(origin).token().into(), patience, requests_of_a_connection }
    }

    fn request(&self, connection: &mut Connection, verb: &str, body: &Value, deadline: Instant) -> io::Result<Answer> {
        let (body, token) = (body.to_string(), &self.token);
        connection.set_patience(left(deadline)?)?;
        connection.send(
            format!(
                "POST /v0/keys/demo:{verb} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\n\
                 Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
                body.len()
            )
            .as_bytes(),
        )?;
        connection.read_answer()
    }

    /// One request, on the connection that there is, or on a new one.
    fn ask(&self, slot: &mut Slot, verb: &str, body: &Value) -> (Sample, Option<Answer>) {
        let at = Instant::now();
        let deadline = at + self.patience;
        let (mut connected, mut repeated) = (false, false);
        let mut attempt = || -> io::Result<Answer> {
            let kept = slot.connection.take().filter(|_| slot.left > 0);
            // Any client looks whether a connection that it keeps is still open before it uses it.
            if let Some(mut connection) = kept.and_then(|mut kept| (!kept.is_closed()).then_some(kept)) {
                match self.request(&mut connection, verb, body, deadline) {
                    Ok(answer) => {
                        slot.keep(connection, &answer);
                        return Ok(answer);
                    }
                    // A server may close a connection that is kept, and a client tries again then. Silence is another thing.
                    Err(error) if was_closed(&error) => repeated = true,
                    Err(error) => return Err(error),
                }
            }
            connected = true;
            slot.left = if slot.left == 0 { self.requests_of_a_connection } else { slot.left };
            let mut connection = Connection::open_within(self.address, self.config.clone(), left(deadline)?)?;
            let answer = self.request(&mut connection, verb, body, deadline)?;
            slot.keep(connection, &answer);
            Ok(answer)
        };
        let outcome = attempt();
        let took = at.elapsed();
        let failure = match &outcome {
            Ok(answer) if answer.status != 200 => Some(format!("{} {}", answer.status, answer.text().trim())),
            Ok(_) if took > self.patience => Some("too late".into()),
            Ok(_) => None,
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                Some("no answer in time".into())
            }
            Err(error) => Some(error.to_string()),
        };
        (Sample { at, took, connected, repeated, failure }, outcome.ok())
    }
}

/// A connection, if there is one, and for how many requests it is good.
struct Slot {
    connection: Option<Connection>,
    left: u32,
}

impl Slot {
    fn keep(&mut self, connection: Connection, answer: &Answer) {
        self.left -= 1;
        self.connection = (answer.header("connection") != Some("close")).then_some(connection);
    }
}

fn was_closed(error: &io::Error) -> bool {
    use io::ErrorKind as Kind;
    matches!(error.kind(), Kind::UnexpectedEof | Kind::ConnectionReset | Kind::BrokenPipe | Kind::ConnectionAborted)
}

fn left(deadline: Instant) -> io::Result<Duration> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(left) }
}

/// Requests, one after the other on each of several connections.
pub struct Load {
    samples: Arc<Mutex<Vec<Sample>>>,
    ended: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
    patience: Duration,
}

impl Load {
    /// So many connections, a request on each in each interval.
    pub fn start(caller: &Caller, connections: u32, interval: Duration) -> Self {
        let (samples, ended) = (Arc::<Mutex<Vec<Sample>>>::default(), Arc::new(AtomicBool::new(false)));
        let threads = (0..connections).map(|number| {
            let (caller, samples, ended) = (caller.clone(), Arc::clone(&samples), Arc::clone(&ended));
            thread::spawn(move || {
                // Not all at once.
                thread::sleep(interval * number / connections);
                work(&caller, number, interval, &samples, &ended);
            })
        });
        let threads = threads.collect();
        Self { samples, ended, threads, patience: caller.patience }
    }

    /// What was begun since then and has come to an end.
    pub fn since(&self, begun: Instant) -> Vec<Sample> {
        locked(&self.samples).iter().filter(|sample| sample.at >= begun).cloned().collect()
    }

    /// Waits until nothing fails that was begun within a while, and something was; returns whether that came within `patience`.
    pub fn is_well_within(&self, patience: Duration, calm: Duration) -> bool {
        let begun = Instant::now();
        while begun.elapsed() < patience {
            thread::sleep(Duration::from_millis(50));
            // What was begun later may not have failed yet.
            let Some(until) = Instant::now().checked_sub(self.patience) else { continue };
            let Some(since) = until.checked_sub(calm).filter(|since| *since >= begun) else { continue };
            let mut lately = self.since(since);
            lately.retain(|sample| sample.at <= until);
            if !lately.is_empty() && lately.iter().all(|sample| sample.failure.is_none()) {
                return true;
            }
        }
        false
    }
}

/// Wraps, and then unwraps what was wrapped.
fn work(caller: &Caller, number: u32, interval: Duration, samples: &Mutex<Vec<Sample>>, ended: &AtomicBool) {
    // The first connections end at different times.
    let mut slot = Slot { connection: None, left: 1 + number % caller.requests_of_a_connection };
    let mut blob = None::<String>;
    let plaintext = base64(number.to_be_bytes());
    while !ended.load(Ordering::Relaxed) {
        let begun = Instant::now();
        let (mut sample, answer) = match &blob {
            None => caller.ask(&mut slot, "wrap", &json!({"plaintext": plaintext})),
            Some(blob) => caller.ask(&mut slot, "unwrap", &json!({"wrappedBlob": blob})),
        };
        if sample.failure.is_none()
            && let Some(answer) = answer.map(|answer| answer.json())
        {
            match answer["wrappedBlob"].as_str() {
                Some(wrapped) => blob = Some(wrapped.to_owned()),
                None if unbase64(answer["plaintext"].as_str().unwrap_or_default()) == number.to_be_bytes() => {}
                None => sample.failure = Some("other bytes than were wrapped".into()),
            }
        }
        locked(samples).push(sample);
        thread::sleep(interval.saturating_sub(begun.elapsed()));
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
