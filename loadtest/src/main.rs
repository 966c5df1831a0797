//! `ekm-bench`: what a request costs the server, in CPU time.
//!
//! Starts `ekm dev` as a child, sends wraps, unwraps and P-256 signatures over TLS 1.3 keep-alive connections with token, policy, audit and metrics on,
//! and divides the CPU time that the kernel charged to the child by the number of requests. CPU time and not wall time:
//! client and server share the machine.
//!
//! With `--device-ms` it is throughput instead, with an HSM that takes so long (`device`).

mod device;

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, ensure};
use clap::{Parser, ValueEnum};
use device::Device;
use ekm_loadtest::{AAD, measure, request, rss_mib};
use ekm_tests::{Ekm, base64, set_up};

/// Measures what a request costs the server, in CPU time: wrap, unwrap and a P-256 signature with each custody.
#[derive(Parser)]
struct Args {
    /// Open connections, each with one request at a time; 16, or two for each session of `--device-ms`
    #[arg(long)]
    connections: Option<usize>,
    /// Time per measurement
    #[arg(long, default_value_t = 5.0, value_name = "SECONDS")]
    seconds: f64,
    /// Measurements of each kind; the median counts
    #[arg(long, default_value_t = 3)]
    repeat: usize,
    /// Only this custody
    #[arg(long, value_enum)]
    custody: Option<Custody>,
    /// Throughput with an HSM that takes so long for each encryption and each decryption, instead of CPU time
    #[arg(long, value_name = "MILLISECONDS", conflicts_with = "custody")]
    device_ms: Option<f64>,
    /// That HSM's sessions
    #[arg(long, default_value_t = 16, requires = "device_ms")]
    sessions: usize,
    /// JSON instead of a table
    #[arg(long)]
    json: bool,
}

impl Args {
    fn connections(&self) -> usize {
        self.connections.unwrap_or(16)
    }
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum Custody {
    Software,
    /// SoftHSM in the service's own process
    Softhsm,
    /// SoftHSM in a worker process, whose CPU time counts, too
    SofthsmIsolated,
}

#[expect(clippy::print_stdout, reason = "the report")]
fn main() -> Result<()> {
    let args = Args::parse();
    ensure!(args.repeat > 0 && args.connections != Some(0) && args.sessions > 0, "nothing to measure");
    if let Some(device_ms) = args.device_ms {
        let Args { sessions, seconds, repeat, .. } = args;
        let connections = args.connections.unwrap_or(2 * sessions);
        return Device { device_ms, sessions, connections, seconds, repeat }.measure(args.json);
    }
    let mut rows = Vec::new();
    for custody in [Custody::Software, Custody::Softhsm, Custody::SofthsmIsolated] {
        if args.custody.is_none_or(|only| only == custody) {
            measure_custody(&args, custody, &mut rows)?;
        }
    }
    if args.json {
        println!("{}", serde_json::Value::from(rows));
        return Ok(());
    }
    println!(
        "{:<18} {:<14} {:>16} {:>12} {:>8} {:>12}",
        "custody", "verb", "server CPU us", "requests/s", "errors", "idle RSS MiB"
    );
    for row in &rows {
        let text = |name: &str| row[name].as_str().unwrap_or_default().to_owned();
        let number = |name: &str| row[name].as_f64().unwrap_or_default();
        println!(
            "{:<18} {:<14} {:>16.1} {:>12.0} {:>8} {:>12.1}",
            text("custody"),
            text("verb"),
            number("server_cpu_us"),
            number("requests_per_s"),
            number("errors"),
            number("idle_rss_mib")
        );
    }
    println!(
        "median of {} x {} s, {} connections, client on the same machine",
        args.repeat,
        args.seconds,
        args.connections()
    );
    Ok(())
}

/// The command that makes a key for P-256 signatures.
fn signing_key_create(path: &str) -> serde_json::Value {
    let mut command = ekm_tests::key_create(path);
    command["algorithm"] = "EC_SIGN_P256_SHA256".into();
    command["policy"] =
        serde_json::json!({"own": {"rules": [{"callers": [ekm_tests::CALLER], "verbs": ["asymmetricSign"]}]}});
    command
}

fn measure_custody(args: &Args, custody: Custody, rows: &mut Vec<serde_json::Value>) -> Result<()> {
    let production = |text: String| text.replace("_deadline_ms = 20000", "_deadline_ms = 100");
    let (name, ekm) = match custody {
        Custody::Software => ("software", Ekm::dev(&["--deadline-ms", "100"])),
        Custody::Softhsm => ("softhsm", Ekm::dev(&["--softhsm", "--deadline-ms", "100"])),
        Custody::SofthsmIsolated => {
            let isolated = |text| production(text).replace("isolation = \"thread\"", "isolation = \"process\"");
            ("softhsm, isolated", Ekm::serve(&set_up(&["--softhsm"]), isolated))
        }
    };
    std::thread::sleep(Duration::from_secs(2));
    let idle_rss_mib = rss_mib(ekm.pid())?;
    let blob = ekm.wrap(&[7; 32], AAD.as_bytes());
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let signing_key = "v0/keys/bench-sign";
    ekm.change_here(&signing_key_create(signing_key));
    let wrapping_key = ekm.ready.key_path.as_str();
    for (verb, key, field, input) in [
        ("wrap", wrapping_key, "plaintext", base64([7; 32])),
        ("unwrap", wrapping_key, "wrappedBlob", blob),
        ("asymmetricSign", signing_key, "data", base64([7; 32])),
    ] {
        let request = request(key, verb, &ekm.ready.token, field, &input);
        let requests = Arc::new(vec![request]);
        let mut all = Vec::new();
        for _ in 0..args.repeat {
            all.push(runtime.block_on(measure(&ekm, &requests, args.connections(), args.seconds))?);
        }
        all.sort_by(|a, b| a.cpu_us.total_cmp(&b.cpu_us));
        let median = &all[all.len() / 2];
        rows.push(serde_json::json!({
            "custody": name, "verb": verb, "server_cpu_us": median.cpu_us, "requests_per_s": median.per_second,
            "errors": all.iter().map(|run| run.errors).sum::<u64>(), "idle_rss_mib": idle_rss_mib,
        }));
    }
    Ok(())
}
