//! The data plane's load: sent on schedule, however long the answers take, and measured from the time on the schedule. Every plaintext
//! is compared with what was wrapped.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use ekm_tests::drill::Client;
use ekm_tests::{Answer, Ekm, base64, unbase64};
use serde_json::json;

/// The key that is used.
pub const KEY: &str = "v0/keys/demo";

/// One request in so many is a wrap.
pub const WRAP_EVERY: u64 = 5;

/// Before the load starts.
const FIRST_BLOBS: u64 = 50;

/// How long, and after what pauses, a service is asked again.
const PATIENCE: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(100);

/// When to send: whoever is free takes the next place.
pub struct Schedule {
    begun: Instant,
    interval: Duration,
    next: AtomicU64,
    ended: AtomicBool,
}

impl Schedule {
    /// From now on.
    pub fn new(per_s: u32) -> Self {
        let interval = Duration::from_secs(1) / per_s.max(1);
        Self { begun: Instant::now(), interval, next: AtomicU64::new(0), ended: AtomicBool::new(false) }
    }

    /// Waits for the next place on the schedule. `None` when it has ended.
    pub fn wait(&self) -> Option<Place> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let since = u64::try_from(self.interval.as_nanos()).unwrap_or(u64::MAX).saturating_mul(number);
        let due = self.begun + Duration::from_nanos(since);
        let early = due.saturating_duration_since(Instant::now());
        thread::sleep(early);
        let late = if early.is_zero() { Duration::ZERO } else { due.elapsed() };
        (!self.ended.load(Ordering::Relaxed)).then_some(Place { number, due, late })
    }

    /// No more.
    pub fn end(&self) {
        self.ended.store(true, Ordering::Relaxed);
    }
}

/// A place on the schedule.
pub struct Place {
    /// From 0.
    pub number: u64,
    /// Its time.
    pub due: Instant,
    /// How much later than that this machine woke a thread that waited for it.
    pub late: Duration,
}

/// What came of one request.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// The right answer.
    Right,
    /// Other bytes than were wrapped.
    Wrong,
    /// 400, 401, 403 or 404: that it was the caller's fault, or that he may not. He is not told so by mistake.
    Denied(String),
    /// Any other answer, or none.
    Failed(String),
}

/// One request.
#[derive(Clone, Debug)]
pub struct Sample {
    /// Its time on the schedule.
    pub due: Instant,
    /// From then to the answer.
    pub took: Duration,
    /// How much of that had gone before this machine sent it.
    pub late: Duration,
    /// What came of it.
    pub outcome: Outcome,
}

/// A blob, and what is in it.
#[derive(Clone)]
pub struct Wrapped {
    number: u64,
    blob: String,
}

impl Wrapped {
    /// Wraps what belongs to a number.
    pub fn make(client: &mut Client, number: u64) -> Result<Self, Outcome> {
        let body = json!({"plaintext": plaintext(number), "additionalAuthenticatedData": aad(number)});
        let answer = right(client.ask("wrap", &body))?;
        let blob = answer.json()["wrappedBlob"].as_str().unwrap_or_default().to_owned();
        Ok(Self { number, blob })
    }

    /// Unwraps it, and compares.
    pub fn open(&self, client: &mut Client) -> Outcome {
        let body = json!({"wrappedBlob": self.blob, "additionalAuthenticatedData": aad(self.number)});
        match right(client.ask("unwrap", &body)) {
            Ok(answer) if answer.json()["plaintext"] == plaintext(self.number) => Outcome::Right,
            Ok(_) => Outcome::Wrong,
            Err(outcome) => outcome,
        }
    }

    /// The request to unwrap it with one bit changed. Which one is chosen by `number`.
    pub fn tampered(&self, number: u64) -> serde_json::Value {
        let mut bytes = unbase64(&self.blob);
        let bit = scattered(number) % (8 * bytes.len());
        bytes[bit / 8] ^= 1 << (bit % 8);
        json!({"wrappedBlob": base64(bytes), "additionalAuthenticatedData": aad(self.number)})
    }
}

fn plaintext(number: u64) -> String {
    base64([number.to_be_bytes(); 4].as_flattened())
}

fn aad(number: u64) -> String {
    base64(number.to_le_bytes())
}

/// A number that looks random, the same one each time (Knuth's multiplicative hashing).
pub fn scattered(number: u64) -> usize {
    (number.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 40) as usize
}

fn right(answer: std::io::Result<Answer>) -> Result<Answer, Outcome> {
    let answer = answer.map_err(|error| Outcome::Failed(error.to_string()))?;
    let text = || format!("{} {}", answer.status, answer.text().trim());
    match answer.status {
        200 => Ok(answer),
        400 | 401 | 403 | 404 => Err(Outcome::Denied(text())),
        _ => Err(Outcome::Failed(text())),
    }
}

/// A load under way.
pub struct Load {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

struct Shared {
    schedule: Schedule,
    first: u64,
    samples: Mutex<Vec<Sample>>,
    blobs: Mutex<Vec<Wrapped>>,
}

impl Load {
    /// This many requests per second, over so many connections that one that waits does not hold up the others. `first`: numbers that
    /// no earlier load has used.
    pub fn start(ekm: &Ekm, per_s: u32, first: u64) -> Self {
        let mut client = Client::of(ekm, KEY);
        let blobs = (0..FIRST_BLOBS).map(|number| {
            let (made, _) = persist(|| Wrapped::make(&mut client, first + (1 << 32) + number), Result::is_ok);
            made.unwrap_or_else(|outcome| panic!("a healthy service does not wrap: {outcome:?}\n{}", ekm.log()))
        });
        let blobs = Mutex::new(blobs.collect());
        let mut clients: Vec<_> = (0..per_s.div_ceil(10).max(4)).map(|_| Client::of(ekm, KEY)).collect();
        for client in &mut clients {
            let _connected = client.ask("unwrap", &json!({}));
        }
        let shared = Arc::new(Shared { schedule: Schedule::new(per_s), first, samples: Mutex::default(), blobs });
        let threads = clients.into_iter().map(|mut client| {
            let shared = Arc::clone(&shared);
            thread::spawn(move || shared.work(&mut client))
        });
        let threads = threads.collect();
        Self { shared, threads }
    }

    /// Ends it: every request, and every blob that was made.
    pub fn end(mut self) -> (Vec<Sample>, Vec<Wrapped>) {
        self.stop();
        let samples = std::mem::take(&mut *locked(&self.shared.samples));
        let blobs = std::mem::take(&mut *locked(&self.shared.blobs));
        (samples, blobs)
    }

    /// A blob that was made.
    pub fn blob(&self, number: u64) -> Wrapped {
        self.shared.blob(number)
    }

    fn stop(&mut self) {
        self.shared.schedule.end();
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Shared {
    fn work(&self, client: &mut Client) {
        while let Some(Place { number, due, late }) = self.schedule.wait() {
            let outcome = match number.is_multiple_of(WRAP_EVERY) {
                true => match Wrapped::make(client, self.first + number) {
                    Ok(wrapped) => {
                        locked(&self.blobs).push(wrapped);
                        Outcome::Right
                    }
                    Err(outcome) => outcome,
                },
                false => self.blob(number).open(client),
            };
            locked(&self.samples).push(Sample { due, took: due.elapsed(), late, outcome });
        }
    }

    fn blob(&self, number: u64) -> Wrapped {
        let blobs = locked(&self.blobs);
        blobs[scattered(number) % blobs.len()].clone()
    }
}

/// Unwraps every blob again, on another service. What came of those that were not right; a service that is busy is asked again.
pub fn check(ekm: &Ekm, blobs: &[Wrapped]) -> Vec<Outcome> {
    thread::scope(|scope| {
        let parts = blobs.chunks(blobs.len().div_ceil(4).max(1)).map(|part| {
            scope.spawn(move || {
                let mut client = Client::of(ekm, KEY);
                part.iter().filter_map(|wrapped| opened(&mut client, wrapped)).collect::<Vec<_>>()
            })
        });
        let parts: Vec<_> = parts.collect();
        parts.into_iter().flat_map(|part| part.join().expect("it does not panic")).collect()
    })
}

fn opened(client: &mut Client, wrapped: &Wrapped) -> Option<Outcome> {
    match persist(|| wrapped.open(client), |outcome| !matches!(outcome, Outcome::Failed(_))).0 {
        Outcome::Right => None,
        wrong => Some(wrong),
    }
}

/// Tries until it is decided, for a while: a service may be on a machine that has other things to do. How often it was not, besides.
pub fn persist<T>(mut action: impl FnMut() -> T, is_decided: impl Fn(&T) -> bool) -> (T, usize) {
    let (begun, mut again) = (Instant::now(), 0);
    loop {
        let result = action();
        if is_decided(&result) || begun.elapsed() > PATIENCE {
            return (result, again);
        }
        again += 1;
        thread::sleep(PAUSE);
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
