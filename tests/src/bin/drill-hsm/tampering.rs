//! Rubbish that looks like blobs: blobs with one bit changed.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use ekm_tests::drill::Client;
use ekm_tests::{Answer, Ekm};
use serde_json::Value;

use crate::load::{KEY, Load, Place, Schedule};

/// Connections.
const THREADS: u64 = 16;

/// How often, and after what pause, one is sent again whose answer says nothing about it: the machine may have other things to do.
const TRIES: usize = 50;
const PAUSE: Duration = Duration::from_millis(100);

/// What came of them.
#[derive(Debug, Default)]
pub struct Answers {
    /// How often each answer was given.
    pub counts: BTreeMap<String, usize>,
    /// How often the answer was to try again, or none.
    pub again: usize,
}

/// Sends so many, at this rate, and counts the answers.
pub fn send(ekm: &Ekm, load: &Load, count: u64, per_s: u32) -> Answers {
    let (schedule, answers) = (Schedule::new(per_s), Mutex::new(Answers::default()));
    thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                let mut client = Client::of(ekm, KEY);
                while let Some(Place { number, .. }) = schedule.wait().filter(|place| place.number < count) {
                    let (answer, again) = answer(&mut client, &load.blob(number).tampered(number));
                    let mut answers = answers.lock().unwrap_or_else(PoisonError::into_inner);
                    *answers.counts.entry(answer).or_default() += 1;
                    answers.again += again;
                }
            });
        }
    });
    answers.into_inner().unwrap_or_else(PoisonError::into_inner)
}

/// The answer that decides, and how often there was none before.
fn answer(client: &mut Client, request: &Value) -> (String, usize) {
    let mut last = String::new();
    for again in 0..TRIES {
        match client.ask("unwrap", request) {
            Ok(answer) if matches!(answer.status, 429 | 503) => last = said(&answer),
            Ok(answer) => return (said(&answer), again),
            Err(error) => last = error.to_string(),
        }
        thread::sleep(PAUSE);
    }
    (last, TRIES)
}

fn said(answer: &Answer) -> String {
    format!("{} {}", answer.status, answer.text().trim())
}
