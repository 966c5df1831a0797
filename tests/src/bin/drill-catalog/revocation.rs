//! How long a frontend still takes a key that was disabled at another one.

use std::thread::sleep;
use std::time::{Duration, Instant};

use ekm_tests::drill::Client;
use ekm_tests::{Ekm, base64};
use serde_json::{Value, json};

use crate::catalog::Admin;
use crate::frontends::REVOKED;
use crate::writer::Writers;

/// Between two questions.
const PAUSE: Duration = Duration::from_millis(5);

/// How long a change may take to get through before nobody waits for it any more.
const PATIENCE: Duration = Duration::from_secs(90);

/// Disables and enables the key again and again. Each time goes from sending the request to the first refusal.
pub fn measure(
    writers: &Writers,
    changed_at: &Ekm,
    watched: &Ekm,
    name: &str,
    count: u32,
) -> Result<Vec<Duration>, String> {
    let (mut admin, mut client) = (Admin::of(changed_at), Client::of(watched, REVOKED));
    let mut times = Vec::new();
    for number in 0..count {
        wait(&mut client, 200)?;
        let begun = Instant::now();
        writers.change(&mut admin, &format!("{name}{number}-disable"), &command("key-disable"))?;
        wait(&mut client, 400)?;
        times.push(begun.elapsed());
        writers.change(&mut admin, &format!("{name}{number}-enable"), &command("key-enable"))?;
    }
    times.sort_unstable();
    Ok(times)
}

fn command(kind: &str) -> Value {
    json!({"type": kind, "path": REVOKED})
}

fn wait(client: &mut Client, status: u16) -> Result<(), String> {
    let begun = Instant::now();
    loop {
        let answer =
            client.ask("wrap", &json!({"plaintext": base64("revoked?")})).map_err(|error| error.to_string())?;
        if answer.status == status {
            return Ok(());
        }
        if ![200, 400].contains(&answer.status) || begun.elapsed() > PATIENCE {
            return Err(format!("a wrap was answered {} instead of {status}: {}", answer.status, answer.text()));
        }
        sleep(PAUSE);
    }
}

/// The time that 99 of 100 keep, by the nearest rank.
pub fn p99(sorted: &[Duration]) -> Option<Duration> {
    sorted.get((sorted.len() * 99).div_ceil(100).checked_sub(1)?).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_99th_percentile_is_the_slowest_of_few_and_the_99th_of_a_hundred() {
        let times = |count| (1..=count).map(Duration::from_secs).collect::<Vec<_>>();
        assert_eq!(p99(&times(50)), Some(Duration::from_secs(50)));
        assert_eq!(p99(&times(100)), Some(Duration::from_secs(99)));
        assert_eq!(p99(&[]), None);
    }
}
