//! `ekm-bench`: what a request costs the server, in CPU time.
//!
//! Starts `ekm dev` as a child, sends wraps and unwraps over TLS 1.3 keep-alive connections with token, policy, audit and metrics on,
//! and divides the CPU time that the kernel charged to the child by the number of requests. CPU time and not wall time:
//! client and server share the machine.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::{Parser, ValueEnum};
use ekm_tests::{Ekm, base64, tls_config};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// Measures what a request costs the server, in CPU time: wrap and unwrap with each custody.
#[derive(Parser)]
struct Args {
    /// Open connections, each with one request at a time
    #[arg(long, default_value_t = 16)]
    connections: usize,
    /// Time per measurement
    #[arg(long, default_value_t = 5.0, value_name = "SECONDS")]
    seconds: f64,
    /// Measurements of each kind; the median counts
    #[arg(long, default_value_t = 3)]
    repeat: usize,
    /// Only this custody
    #[arg(long, value_enum)]
    custody: Option<Custody>,
    /// JSON instead of a table
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum Custody {
    Software,
    Softhsm,
}

struct Measured {
    cpu_us: f64,
    per_second: f64,
    errors: u64,
}

#[expect(clippy::print_stdout, reason = "the report")]
fn main() -> Result<()> {
    let args = Args::parse();
    ensure!(args.repeat > 0 && args.connections > 0, "nothing to measure");
    let mut rows = Vec::new();
    for custody in [Custody::Software, Custody::Softhsm] {
        if args.custody.is_none_or(|only| only == custody) {
            measure_custody(&args, custody, &mut rows)?;
        }
    }
    if args.json {
        println!("{}", serde_json::Value::from(rows));
        return Ok(());
    }
    println!(
        "{:<10} {:<7} {:>16} {:>12} {:>8} {:>12}",
        "custody", "verb", "server CPU us", "requests/s", "errors", "idle RSS MiB"
    );
    for row in &rows {
        let text = |name: &str| row[name].as_str().unwrap_or_default().to_owned();
        let number = |name: &str| row[name].as_f64().unwrap_or_default();
        println!(
            "{:<10} {:<7} {:>16.1} {:>12.0} {:>8} {:>12.1}",
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
        args.repeat, args.seconds, args.connections
    );
    Ok(())
}

fn measure_custody(args: &Args, custody: Custody, rows: &mut Vec<serde_json::Value>) -> Result<()> {
    let (name, flags): (_, &[&str]) = match custody {
        Custody::Software => ("software", &["--deadline-ms", "100"]),
        Custody::Softhsm => ("softhsm", &["--softhsm", "--deadline-ms", "100"]),
    };
    let ekm = Ekm::dev(flags);
    std::thread::sleep(Duration::from_secs(2));
    let idle_rss_mib = rss_mib(ekm.pid())?;
    let blob = ekm.wrap(&[7; 32], b"projects/p/locations/l/keyRings/r/cryptoKeys/k");
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    for verb in ["wrap", "unwrap"] {
        let (field, input) =
            if verb == "wrap" { ("plaintext", base64([7; 32])) } else { ("wrappedBlob", blob.clone()) };
        // What Cloud KMS sends: about 350 bytes.
        let body = serde_json::json!({
            field: input,
            "additionalAuthenticatedData": base64("projects/p/locations/l/keyRings/r/cryptoKeys/k"),
            "additionalContext": {
                "relativeResourceName": "projects/p/locations/l/keyRings/r/cryptoKeys/k/cryptoKeyVersions/1",
                "accessReasonContext": {"reason": "CUSTOMER_INITIATED_ACCESS"},
            },
        })
        .to_string();
        let request = Arc::new(format!(
            "POST /v0/keys/demo:{verb} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            ekm.ready.token,
            body.len()
        ));
        let mut all = Vec::new();
        for _ in 0..args.repeat {
            all.push(runtime.block_on(measure(&ekm, &request, args))?);
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

async fn measure(ekm: &Ekm, request: &Arc<String>, args: &Args) -> Result<Measured> {
    let connector = TlsConnector::from(Arc::new(tls_config(&ekm.ready.ca_file, &["http/1.1"])));
    let mut connections = Vec::new();
    for _ in 0..args.connections {
        let stream = TcpStream::connect(ekm.address()).await?;
        stream.set_nodelay(true)?;
        connections.push(connector.connect(ServerName::try_from("localhost")?, stream).await?);
    }
    let (done, errors) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let until = Instant::now() + Duration::from_secs_f64(args.seconds);
    let (began, cpu_before) = (Instant::now(), cpu_us(ekm.pid())?);
    let workers: Vec<_> = connections
        .into_iter()
        .map(|connection| {
            tokio::spawn(work(connection, Arc::clone(request), until, Arc::clone(&done), Arc::clone(&errors)))
        })
        .collect();
    for worker in workers {
        worker.await??;
    }
    let (cpu, requests) = (cpu_us(ekm.pid())? - cpu_before, done.load(Ordering::Relaxed) as f64);
    ensure!(requests > 0.0, "no request was answered");
    let per_second = requests / began.elapsed().as_secs_f64();
    Ok(Measured { cpu_us: cpu / requests, per_second, errors: errors.load(Ordering::Relaxed) })
}

async fn work(
    mut connection: TlsStream<TcpStream>,
    request: Arc<String>,
    until: Instant,
    done: Arc<AtomicU64>,
    errors: Arc<AtomicU64>,
) -> Result<()> {
    let mut buffer = vec![0; 16 * 1024];
    while Instant::now() < until {
        connection.write_all(request.as_bytes()).await?;
        let mut filled = 0;
        loop {
            let read = connection.read(&mut buffer[filled..]).await?;
            ensure!(read > 0, "the server closed the connection");
            filled += read;
            if is_complete(&buffer[..filled]) {
                break;
            }
        }
        if !buffer.starts_with(b"HTTP/1.1 200") {
            errors.fetch_add(1, Ordering::Relaxed);
        }
        done.fetch_add(1, Ordering::Relaxed);
    }
    Ok(())
}

/// Whether an answer with Content-Length is all there.
fn is_complete(answer: &[u8]) -> bool {
    let Some(head) = answer.windows(4).position(|window| window == b"\r\n\r\n") else { return false };
    let text = std::str::from_utf8(&answer[..head]).unwrap_or_default();
    let length = text.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse::<usize>().ok());
    answer.len() >= head + 4 + length.unwrap_or(0)
}

/// CPU time of a process so far, all threads, those that have ended too: from schedstat, in nanosecond steps, where there is one.
fn cpu_us(pid: u32) -> Result<f64> {
    let mut total = 0.0;
    for task in fs::read_dir(format!("/proc/{pid}/task")).context("the server is gone")? {
        if let Ok(text) = fs::read_to_string(task?.path().join("schedstat")) {
            total += text.split(' ').next().unwrap_or_default().parse::<f64>().unwrap_or(0.0);
        }
    }
    Ok(total / 1000.0)
}

fn rss_mib(pid: u32) -> Result<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).context("the server is gone")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib: f64 = line.and_then(|line| line.split_whitespace().next()?.parse().ok()).context("no VmRSS")?;
    Ok(kib / 1024.0)
}
