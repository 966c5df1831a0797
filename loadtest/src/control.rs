//! `ekm-bench-control`: how long createKey and destroyKey take, two frontends and PostgreSQL on this machine.
//!
//! Wall time, as the caller sees it: these calls wait for a commit and an HSM, not for the processor. One call at a time, at one frontend
//! after the other; the next one uses the new key at the other frontend.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use clap::Parser;
use ekm_tests::{Deployment, Ekm};
use serde_json::json;

/// Measures createKey, the first wrap at another frontend, and destroyKey
#[derive(Parser)]
struct Args {
    /// How many keys
    #[arg(long, default_value_t = 500)]
    keys: u32,
    /// Where they are: hsm, hsm-wrapped or software
    #[arg(long, default_value = "hsm")]
    custody: String,
    /// Google's name
    #[arg(long, default_value = "EXTERNAL_SYMMETRIC_ENCRYPTION")]
    algorithm: String,
}

const SPACE: &str = "v0/cryptospaces/bench";

#[expect(clippy::print_stdout, reason = "the answer")]
fn main() -> Result<()> {
    let args = Args::parse();
    let deployment = Deployment::new(&["--softhsm"]);
    let frontends = [deployment.start(), deployment.start()];
    let verbs = ["createKey", "destroyKey", "wrap", "unwrap", "asymmetricSign", "getPublicKey"];
    let policy = json!({"rules": [{"callers": ["service-*@gcp-sa-ekms.iam.gserviceaccount.com"], "verbs": verbs}]});
    frontends[0].change(json!({"type": "space-create", "path": SPACE}));
    frontends[0].change(json!({"type": "policy-create", "name": "bench", "policy": policy}));
    let creation = json!({"policy": "bench", "custody": args.custody, "max_keys": 1_000_000});
    let allowed = frontends[0].change(json!({"type": "space-set-creation", "path": SPACE, "creation": creation}));
    let revision = allowed["revision"].as_f64().unwrap_or_default();
    for frontend in &frontends {
        frontend.eventually("known", || frontend.metric("ekm_catalog_revision") >= revision);
    }
    let (mut create, mut first_wrap, mut destroy) = (Vec::new(), Vec::new(), Vec::new());
    for number in 0..args.keys {
        let (one, other) = if number % 2 == 0 { (0, 1) } else { (1, 0) };
        let name = format!("projects/p/locations/l/keyRings/r/cryptoKeys/k/cryptoKeyVersions/{number}");
        let context = json!({"relativeResourceName": name});
        let body = json!({"algorithm": args.algorithm, "additionalContext": context}).to_string();
        let answer = timed(&mut create, &frontends[one], &format!("/{SPACE}:createKey"), &body)?;
        let path = answer["keyPath"].as_str().unwrap_or_default().to_owned();
        if args.algorithm.contains("SYMMETRIC") {
            timed(&mut first_wrap, &frontends[other], &format!("/{path}:wrap"), r#"{"plaintext":"AAAA"}"#)?;
        } else {
            timed(&mut first_wrap, &frontends[other], &format!("/{path}:asymmetricSign"), r#"{"data":"AAAA"}"#)?;
        }
        timed(&mut destroy, &frontends[one], &format!("/{path}:destroyKey"), "{}")?;
    }
    println!("{:<26} {:>9} {:>9} {:>9}", "", "p50", "p99", "slowest");
    for (what, times) in
        [("createKey", &mut create), ("first use, other frontend", &mut first_wrap), ("destroyKey", &mut destroy)]
    {
        times.sort_unstable();
        let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize].as_secs_f64() * 1000.0;
        println!("{what:<26} {:>6.1} ms {:>6.1} ms {:>6.1} ms", at(0.5), at(0.99), at(1.0));
    }
    Ok(())
}

/// One call on a connection of its own that is open already.
fn timed(times: &mut Vec<Duration>, ekm: &Ekm, target: &str, body: &str) -> Result<serde_json::Value> {
    let mut connection = ekm.connect();
    let begun = Instant::now();
    let answer = connection.post(target, &ekm.ready.token, body);
    times.push(begun.elapsed());
    ensure!(answer.status == 200, "{target}: {}", answer.text());
    Ok(answer.json())
}
