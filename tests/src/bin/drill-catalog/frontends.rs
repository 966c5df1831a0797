//! The frontends of the drill.

use std::fs;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ekm_tests::{Directory, Ekm, base64, set_up};
use serde_json::json;

/// Directories for frontends with the same keys, certificate and issuer, but a log and an audit log of their own.
pub fn directories<const COUNT: usize>() -> [Directory; COUNT] {
    let first = set_up(&[]);
    std::array::from_fn(|number| if number == 0 { Arc::clone(&first) } else { copy(&first) })
}

fn copy(from: &Directory) -> Directory {
    let to = Arc::new(tempfile::tempdir().expect("a temporary directory"));
    let status = Command::new("cp").arg("-a").arg(from.path().join(".")).arg(to.path()).status();
    assert!(status.is_ok_and(|status| status.success()), "cp");
    let config = to.path().join("ekm.toml");
    let text = fs::read_to_string(&config).expect("readable");
    let [old, new] = [from, &to].map(|directory| directory.path().to_str().expect("ASCII"));
    fs::write(&config, text.replace(old, new)).expect("writable");
    to
}

/// Starts a frontend.
pub fn start(directory: &Directory) -> Ekm {
    Ekm::serve(directory, |config| config)
}

/// Starts a frontend, and measures the time until it has wrapped.
pub fn time_cold_start(directory: &Directory) -> Result<Duration, String> {
    let begun = Instant::now();
    let ekm = start(directory);
    let answer = ekm.post("/v0/keys/demo:wrap", &json!({"plaintext": base64("cold")}).to_string());
    let took = begun.elapsed();
    if answer.status == 200 {
        Ok(took)
    } else {
        Err(format!("a frontend's first wrap: {} {}", answer.status, answer.text()))
    }
}
