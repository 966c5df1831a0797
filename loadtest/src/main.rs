//! `ekm-bench`: what a request costs the server, in CPU time.
//!
//! Starts `ekm dev` as a child, sends wraps, unwraps and P-256 signatures over TLS 1.3 keep-alive connections with token, policy, audit and metrics on,
//! and divides the CPU time that the kernel charged to the child by the number of requests. CPU time and not wall time:
//! client and server share the machine. Machines differ from hour to hour, so the same is measured beside it for a server that answers the same
//! request with a fixed text (`floor`): the ratio is what counts.
//!
//! With `--device-ms` it is throughput instead, with an HSM that takes so long (`device`).

mod device;
mod floor;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::{Parser, ValueEnum};
use device::Device;
use ekm_loadtest::{AAD, Measured, Protocol, Subject, measure_over, request, rss_mib};
use ekm_tests::{Ekm, base64, set_up};
use floor::Floor;

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc; // the floor has what the service has

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
    /// What this program starts itself with, to be the floor: a certificate's file and its key's
    #[arg(long, hide = true, num_args = 2)]
    serve_floor: Option<Vec<PathBuf>>,
}

impl Args {
    fn connections(&self) -> usize {
        self.connections.unwrap_or(16)
    }
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum Custody {
    Software,
    /// In this process, wrapped by a key in SoftHSM
    HsmWrapped,
    /// SoftHSM in the service's own process
    Softhsm,
    /// SoftHSM in a worker process, whose CPU time counts, too
    SofthsmIsolated,
}

#[expect(clippy::print_stdout, reason = "the report")]
fn main() -> Result<()> {
    let args = Args::parse();
    if let Some([certificate, key]) = args.serve_floor.as_deref() {
        return floor::serve(certificate, key);
    }
    ensure!(args.repeat > 0 && args.connections != Some(0) && args.sessions > 0, "nothing to measure");
    if let Some(device_ms) = args.device_ms {
        let Args { sessions, seconds, repeat, .. } = args;
        let connections = args.connections.unwrap_or(2 * sessions);
        return Device { device_ms, sessions, connections, seconds, repeat }.measure(args.json);
    }
    let mut rows = Vec::new();
    for custody in [Custody::Software, Custody::HsmWrapped, Custody::Softhsm, Custody::SofthsmIsolated] {
        if args.custody.is_none_or(|only| only == custody) {
            measure_custody(&args, custody, &mut rows)?;
        }
    }
    if args.json {
        println!("{}", serde_json::Value::from(rows));
        return Ok(());
    }
    println!(
        "{:<18} {:<14} {:<9} {:>13} {:>9} {:>7} {:>11} {:>7} {:>13}",
        "custody", "verb", "protocol", "server CPU us", "floor us", "ratio", "requests/s", "errors", "idle RSS MiB"
    );
    for row in &rows {
        let text = |name: &str| row[name].as_str().unwrap_or_default().to_owned();
        let number = |name: &str| row[name].as_f64().unwrap_or_default();
        println!(
            "{:<18} {:<14} {:<9} {:>13.1} {:>9.1} {:>7.2} {:>11.0} {:>7} {:>13.1}",
            text("custody"),
            text("verb"),
            text("protocol"),
            number("server_cpu_us"),
            number("floor_cpu_us"),
            number("times_the_floor"),
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
        Custody::HsmWrapped => ("hsm-wrapped", Ekm::dev(&["--softhsm", "--deadline-ms", "100"])),
        Custody::Softhsm => ("softhsm", Ekm::dev(&["--softhsm", "--deadline-ms", "100"])),
        Custody::SofthsmIsolated => {
            let isolated = |text| production(text).replace("isolation = \"thread\"", "isolation = \"process\"");
            ("softhsm, isolated", Ekm::serve(&set_up(&["--softhsm"]), isolated))
        }
    };
    std::thread::sleep(Duration::from_secs(2));
    let idle_rss_mib = rss_mib(ekm.pid())?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let (key, signing_key) = ("v0/keys/bench", "v0/keys/bench-sign");
    let mut create = ekm_tests::key_create(key);
    if custody == Custody::HsmWrapped {
        create["custody"] = "hsm-wrapped".into();
    }
    ekm.change_here(&create);
    ekm.change_here(&signing_key_create(signing_key));
    let wrapped = ekm.post(&format!("/{key}:wrap"), &wrap_body()).json();
    let blob = wrapped["wrappedBlob"].as_str().context("the key does not wrap")?.to_owned();
    let floors = {
        let directory = ekm.directory.path().join("tls");
        let floor = Floor::start(&directory.join("certificate.pem"), &directory.join("private-key.pem"))?;
        let subject = Subject { address: floor.address, ca_file: ekm.ready.ca_file.clone(), pid: floor.pid() };
        let requests = Arc::new(vec![request(key, "wrap", &ekm.ready.token, "plaintext", &base64([7; 32]))]);
        let mut floors = Vec::new();
        for protocol in [Protocol::Http1, Protocol::Http2] {
            floors.push(median(args, &runtime, protocol, &subject, &requests)?.cpu_us);
        }
        floors
    };
    for (verb, key, field, input) in [
        ("wrap", key, "plaintext", base64([7; 32])),
        ("unwrap", key, "wrappedBlob", blob),
        ("asymmetricSign", signing_key, "data", base64([7; 32])),
    ] {
        let requests = Arc::new(vec![request(key, verb, &ekm.ready.token, field, &input)]);
        for (protocol, floor) in [Protocol::Http1, Protocol::Http2].into_iter().zip(&floors) {
            let measured = median(args, &runtime, protocol, &(&ekm).into(), &requests)?;
            rows.push(serde_json::json!({
                "custody": name, "verb": verb, "protocol": if protocol == Protocol::Http1 { "HTTP/1.1" } else { "HTTP/2" },
                "server_cpu_us": measured.cpu_us, "floor_cpu_us": floor, "times_the_floor": measured.cpu_us / floor,
                "requests_per_s": measured.per_second, "errors": measured.errors, "idle_rss_mib": idle_rss_mib,
            }));
        }
    }
    Ok(())
}

/// The median by CPU time; the errors of all.
fn median(
    args: &Args,
    runtime: &tokio::runtime::Runtime,
    protocol: Protocol,
    subject: &Subject,
    requests: &Arc<Vec<String>>,
) -> Result<Measured> {
    let mut all = Vec::new();
    for _ in 0..args.repeat {
        all.push(runtime.block_on(measure_over(protocol, subject, requests, args.connections(), args.seconds))?);
    }
    let errors = all.iter().map(|run| run.errors).sum();
    all.sort_by(|a, b| a.cpu_us.total_cmp(&b.cpu_us));
    Ok(Measured { errors, ..all.swap_remove(all.len() / 2) })
}

fn wrap_body() -> String {
    serde_json::json!({"plaintext": base64([7; 32]), "additionalAuthenticatedData": base64(AAD)}).to_string()
}
