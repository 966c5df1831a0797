//! Rubbish that looks like blobs: blobs with one bit changed.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::thread;

use ekm_tests::Ekm;
use ekm_tests::drill::Client;

use crate::load::{KEY, Load, Place, Schedule};

/// Connections.
const THREADS: u64 = 16;

/// Sends so many, at this rate, and counts the answers.
pub fn send(ekm: &Ekm, load: &Load, count: u64, per_s: u32) -> BTreeMap<String, usize> {
    let (schedule, answers) = (Schedule::new(per_s), Mutex::new(BTreeMap::new()));
    thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                let mut client = Client::of(ekm, KEY);
                while let Some(Place { number, .. }) = schedule.wait().filter(|place| place.number < count) {
                    let request = load.blob(number).tampered(number);
                    let answer = match client.ask("unwrap", &request) {
                        Ok(answer) => format!("{} {}", answer.status, answer.text().trim()),
                        Err(error) => error.to_string(),
                    };
                    *answers.lock().unwrap_or_else(PoisonError::into_inner).entry(answer).or_default() += 1;
                }
            });
        }
    });
    answers.into_inner().unwrap_or_else(PoisonError::into_inner)
}
