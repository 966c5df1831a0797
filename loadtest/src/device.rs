//! Throughput with an HSM that takes its time: is it the limit, or the way to it?
//!
//! The HSM is SoftHSM behind the tests' module that lets calls take longer. Its sleep lasts a little longer than it is told to, and
//! SoftHSM's own work comes on top, so the limit is computed from what the service itself has measured around its calls.

use std::path::Path;
use std::sync::Arc;

use anyhow::Result;
use ekm_loadtest::{AAD, Measured, measure, request};
use ekm_tests::{Effect, Ekm, Fault, FaultyModule, SOFTHSM, base64, set_up};

/// The emulated HSM, and how it is asked.
pub struct Device {
    /// What each encryption and each decryption takes; a wrap is both.
    pub device_ms: f64,
    /// So many at once.
    pub sessions: usize,
    pub connections: usize,
    pub seconds: f64,
    pub repeat: usize,
}

impl Device {
    /// Measures and prints; of several measurements the median by share.
    #[expect(clippy::print_stdout, reason = "the report")]
    pub fn measure(&self, json: bool) -> Result<()> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let mut rows = Vec::new();
        for isolation in ["thread", "process"] {
            let (ekm, _module) = self.start(isolation);
            let blob = ekm.wrap(&[7; 32], AAD.as_bytes());
            for (verb, field, input) in [("wrap", "plaintext", base64([7; 32])), ("unwrap", "wrappedBlob", blob)] {
                let requests = Arc::new(vec![request(&ekm.ready.key_path, verb, &ekm.ready.token, field, &input)]);
                let mut all = Vec::new();
                for _ in 0..self.repeat {
                    let before = in_the_hsm(&ekm, verb);
                    let measured = runtime.block_on(measure(&ekm, &requests, self.connections, self.seconds))?;
                    let after = in_the_hsm(&ekm, verb);
                    all.push(self.row(isolation, verb, &measured, (after.0 - before.0) / (after.1 - before.1)));
                }
                let share = |row: &serde_json::Value| row["share_percent"].as_f64().unwrap_or_default();
                all.sort_by(|a, b| share(a).total_cmp(&share(b)));
                rows.push(all.swap_remove(all.len() / 2));
            }
        }
        if json {
            println!("{}", serde_json::Value::from(rows));
            return Ok(());
        }
        println!(
            "{:<10} {:<7} {:>12} {:>14} {:>12} {:>8} {:>14} {:>8}",
            "isolation", "verb", "requests/s", "ms in the HSM", "possible/s", "share %", "server CPU us", "errors"
        );
        for row in &rows {
            let text = |name: &str| row[name].as_str().unwrap_or_default().to_owned();
            let number = |name: &str| row[name].as_f64().unwrap_or_default();
            println!(
                "{:<10} {:<7} {:>12.0} {:>14.3} {:>12.0} {:>8.1} {:>14.1} {:>8.0}",
                text("isolation"),
                text("verb"),
                number("requests_per_s"),
                number("hsm_ms"),
                number("possible_per_s"),
                number("share_percent"),
                number("server_cpu_us"),
                number("errors"),
            );
        }
        println!(
            "{} sessions, {} ms for each encryption and each decryption (a wrap is both); median of {} x {} s, {} connections, client on \
             the same machine",
            self.sessions, self.device_ms, self.repeat, self.seconds, self.connections
        );
        Ok(())
    }

    fn start(&self, isolation: &str) -> (Ekm, FaultyModule) {
        let directory = set_up(&["--softhsm"]);
        let module = FaultyModule::new(&directory.path().join("device"), Path::new(SOFTHSM));
        module.inject(Fault::new(Effect::Device { ms: self.device_ms, at_once: self.sessions }));
        let path = module.path();
        let ekm = Ekm::serve(&directory, |config| {
            let module = format!("module = {path:?}\nsessions = {}", self.sessions);
            config
                .replace("isolation = \"thread\"", &format!("isolation = \"{isolation}\""))
                .replace(&format!("module = {SOFTHSM:?}"), &module)
                .replace("_deadline_ms = 20000", "_deadline_ms = 100")
        });
        (ekm, module)
    }

    fn row(&self, isolation: &str, verb: &str, measured: &Measured, seconds_in_the_hsm: f64) -> serde_json::Value {
        let possible = self.sessions as f64 / seconds_in_the_hsm;
        serde_json::json!({
            "isolation": isolation, "verb": verb, "requests_per_s": measured.per_second,
            "hsm_ms": seconds_in_the_hsm * 1000.0, "possible_per_s": possible,
            "share_percent": 100.0 * measured.per_second / possible, "server_cpu_us": measured.cpu_us,
            "errors": measured.errors,
        })
    }
}

/// Seconds that operations have spent in the HSM so far, and how many they were.
fn in_the_hsm(ekm: &Ekm, verb: &str) -> (f64, f64) {
    let of = |part: &str| {
        let labels = format!("{{operation=\"{verb}\",replica=\"ekm-dev\",shard=\"main\"}}");
        ekm.metric(&format!("ekm_hsm_operation_seconds_{part}{labels}"))
    };
    (of("sum"), of("count"))
}
