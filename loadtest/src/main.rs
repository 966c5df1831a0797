//! `ekm-bench`: what a request costs the server, in CPU time.
//!
//! Starts `ekm dev` as a child, sends wraps, unwraps and P-256 signatures over TLS 1.3 keep-alive connections with token, policy, audit and metrics on,
//! and divides the CPU time that the kernel charged to the child by the number of requests. CPU time and not wall time:
//! client and server share the machine. Machines differ from hour to hour, so the same is measured beside it for a server that answers the same
//! request with a fixed text (`floor`), and for the calls to SoftHSM alone (`softhsm`): what is above these is ours.
//!
//! With `--instructions` they are counted instead (`instructions`); with `--device-ms` it is throughput, with an HSM that takes so long (`device`).

mod device;
mod floor;
mod instructions;
mod softhsm;
mod tables;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::{Parser, ValueEnum};
use device::Device;
use ekm_loadtest::{Measured, PLAINTEXT_BYTES, Protocol, Subject, measure_over, request, rss_mib, wrap_body};
use ekm_tests::{Ekm, base64, set_up};
use floor::Floor;
use instructions::Instructions;
use softhsm::Cost;

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc; // the floor has what the service has

/// Measures what a request costs the server, in CPU time: wrap, unwrap and a P-256 signature with each custody.
#[derive(Parser)]
struct Args {
    /// Open connections, each with one request at a time; 16, two for each session of `--device-ms`, or 1 with `--instructions`
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
    /// Count instructions, with valgrind, instead of CPU time: they are the same on a machine that is busy
    #[arg(long, conflicts_with = "device_ms")]
    instructions: bool,
    /// Requests whose instructions are counted
    #[arg(long, default_value_t = 500, requires = "instructions")]
    requests: usize,
    /// Keep callgrind's files, for callgrind_annotate
    #[arg(long, value_name = "DIRECTORY", requires = "instructions")]
    keep: Option<PathBuf>,
    /// What to print
    #[arg(long, value_enum, default_value_t = Output::Text)]
    output: Output,
    /// What this program starts itself with, to be the floor: a certificate's file and its key's
    #[arg(long, hide = true, num_args = 2)]
    serve_floor: Option<Vec<PathBuf>>,
    /// What this program starts itself with, to call SoftHSM: the file with the PIN
    #[arg(long, hide = true)]
    softhsm_calls: Option<PathBuf>,
}

/// How the figures are shown.
#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum Output {
    Text,
    Json,
}

impl Args {
    fn connections(&self) -> usize {
        // Instructions are the same each time only if no request waits for another one.
        self.connections.unwrap_or(if self.instructions { 1 } else { 16 })
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
    ensure!(
        args.repeat > 0 && args.connections != Some(0) && args.sessions > 0 && args.requests > 0,
        "nothing to measure"
    );
    if let Some(pin_file) = &args.softhsm_calls {
        return softhsm::call(pin_file, args.seconds, args.repeat);
    }
    if let Some(device_ms) = args.device_ms {
        let Args { sessions, seconds, repeat, .. } = args;
        let connections = args.connections.unwrap_or(2 * sessions);
        return Device { device_ms, sessions, connections, seconds, repeat }.measure(args.output == Output::Json);
    }
    let text = if args.instructions {
        let (requests, repeat, connections) = (args.requests, args.repeat, args.connections());
        let custody = match args.custody {
            None => None,
            Some(Custody::Software) => Some("software"),
            Some(Custody::HsmWrapped) => Some("hsm-wrapped"),
            Some(Custody::Softhsm) => Some("hsm"),
            Some(Custody::SofthsmIsolated) => {
                bail!("instructions are counted in the service's own process: --custody softhsm")
            }
        };
        let rows = Instructions { requests, connections, repeat, keep: args.keep.clone(), custody }.measure()?;
        match args.output {
            Output::Json => serde_json::Value::from(rows).to_string(),
            Output::Text => {
                tables::instructions(&rows)
                    + &format!("median of {repeat} x {requests} requests over {connections} connections")
            }
        }
    } else {
        let mut rows = Vec::new();
        for custody in [Custody::Software, Custody::HsmWrapped, Custody::Softhsm, Custody::SofthsmIsolated] {
            if args.custody.is_none_or(|only| only == custody) {
                measure_custody(&args, custody, &mut rows)?;
            }
        }
        match args.output {
            Output::Json => serde_json::Value::from(rows).to_string(),
            Output::Text => {
                let (repeat, seconds, connections) = (args.repeat, args.seconds, args.connections());
                tables::cpu_time(&rows)
                    + &format!(
                        "median of {repeat} x {seconds} s, {connections} connections, client on the same machine"
                    )
            }
        }
    };
    println!("{text}");
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
    // CPU time is measured, on a machine that may be busy: nothing is to be given up.
    let patient = |text: String| text.replace("_deadline_ms = 20000", "_deadline_ms = 1000");
    let (name, ekm) = match custody {
        Custody::Software => ("software", Ekm::dev(&["--deadline-ms", "1000"])),
        Custody::HsmWrapped => ("hsm-wrapped", Ekm::dev(&["--softhsm", "--deadline-ms", "1000"])),
        Custody::Softhsm => ("softhsm", Ekm::dev(&["--softhsm", "--deadline-ms", "1000"])),
        Custody::SofthsmIsolated => {
            let isolated = |text| patient(text).replace("isolation = \"thread\"", "isolation = \"process\"");
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
    let device = match custody {
        Custody::Software | Custody::HsmWrapped => None,
        Custody::Softhsm | Custody::SofthsmIsolated => Some(Cost::measure(&ekm, args.seconds / 2.0, args.repeat)?),
    };
    let plaintext = base64([7; PLAINTEXT_BYTES]);
    let floors = {
        let floor = Floor::start(ekm.directory.path())?;
        let subject = Subject { address: floor.address, ca_file: ekm.ready.ca_file.clone(), pid: floor.pid() };
        let requests = Arc::new(vec![request(key, "wrap", &ekm.ready.token, "plaintext", &plaintext)]);
        let mut floors = Vec::new();
        for protocol in Protocol::ALL {
            floors.push(median(args, &runtime, protocol, &subject, &requests)?.cpu_us);
        }
        floors
    };
    for (verb, key, field, input) in [
        ("wrap", key, "plaintext", plaintext.clone()),
        ("unwrap", key, "wrappedBlob", blob),
        ("asymmetricSign", signing_key, "data", plaintext),
    ] {
        let requests = Arc::new(vec![request(key, verb, &ekm.ready.token, field, &input)]);
        for (protocol, floor_us) in Protocol::ALL.into_iter().zip(&floors) {
            let measured = median(args, &runtime, protocol, &(&ekm).into(), &requests)?;
            let above_floor_us = measured.cpu_us - floor_us;
            let (device_us, ours_us) = match &device {
                None => (None, Some(above_floor_us)),
                Some(device) => {
                    let device_us = device.of(verb);
                    (device_us, device_us.map(|device_us| above_floor_us - device_us))
                }
            };
            rows.push(row([name, verb, protocol.name()], &measured, *floor_us, [device_us, ours_us], idle_rss_mib));
        }
    }
    Ok(())
}

/// `device_us` is `None` if there is no device, or nobody knows what it takes; then nobody knows ours, either.
fn row(
    [custody, verb, protocol]: [&str; 3],
    measured: &Measured,
    floor_us: f64,
    [device_us, ours_us]: [Option<f64>; 2],
    idle_rss_mib: f64,
) -> serde_json::Value {
    serde_json::json!({
        "custody": custody, "verb": verb, "protocol": protocol, "server_cpu_us": measured.cpu_us,
        "floor_cpu_us": floor_us, "device_cpu_us": device_us, "above_floor_and_device_us": ours_us,
        "times_the_floor": measured.cpu_us / floor_us, "requests_per_cpu_s": 1e6 / measured.cpu_us,
        "requests_per_s": measured.per_second, "errors": measured.errors, "idle_rss_mib": idle_rss_mib,
    })
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
