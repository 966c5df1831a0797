//! Rubbish that looks like blobs: blobs with one bit changed.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::thread;

use ekm_tests::drill::Client;
use ekm_tests::{Answer, Ekm};
use serde_json::Value;

use crate::load::{KEY, Load, Place, Schedule, persist};

/// Connections.
const THREADS: u64 = 16;

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
    let says_nothing = |answer: &Answer| matches!(answer.status, 429 | 503);
    let ask = || client.ask("unwrap", request);
    let (answer, again) = persist(ask, |answer| answer.as_ref().is_ok_and(|answer| !says_nothing(answer)));
    (answer.map_or_else(|error| error.to_string(), |answer| said(&answer)), again)
}

fn said(answer: &Answer) -> String {
    format!("{} {}", answer.status, answer.text().trim())
}
