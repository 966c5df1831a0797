//! `ekm topology preflight`: a running EKM, looked at as Cloud KMS would reach it.

mod certificate;
mod requests;

use std::io::IsTerminal;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::Args;
use reqwest::Url;
use rustls::pki_types::ServerName;
use secrecy::SecretString;
use serde::Serialize;
use serde_json::json;

use crate::cli::error::{CliError, Exit};
use crate::cli::output::{Rows, print, print_json};
use crate::process::{Output, runtime};
use crate::remote::probe::{self, NoHandshake, Shown};
use crate::remote::{RemoteEkm, Trust, read_certificates, read_token};

/// How often a connection is made to see how long it takes.
const CONNECTIONS: usize = 5;

/// What the sample proxies wait for a connection to a replica.
const CONNECT_MS: f64 = 40.0;

/// A name that takes longer is not in a cache nearby.
const SLOW_NAME_MS: f64 = 50.0;

#[derive(Args)]
pub(super) struct PreflightArgs {
    /// The EKM: https://host:port
    #[arg(long, value_name = "URL")]
    url: Url,
    /// A file that holds a valid ID token and nothing else
    #[arg(long, value_name = "FILE")]
    token_file: PathBuf,
    /// A key that the token's owner may wrap and unwrap with
    #[arg(long, value_name = "PATH", default_value = "v0/keys/demo")]
    key: String,
    /// The EKM's own certificate, PEM or DER, as the EKM connection pins it; repeat for more
    #[arg(long = "pin-cert", value_name = "FILE")]
    pins: Vec<PathBuf>,
    /// Certificates that the EKM's is checked against, PEM [default: those of the system]
    #[arg(long, value_name = "FILE", conflicts_with = "pins")]
    ca_file: Option<PathBuf>,
    /// Where the host is, instead of asking DNS: the address of the endpoint in Service Directory
    #[arg(long, value_name = "IP:PORT")]
    address: Option<SocketAddr>,
    /// How many wraps, and as many unwraps
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    requests: u32,
    /// How long Cloud KMS would wait for an answer
    #[arg(long, value_name = "MS", env = "EKM_DEADLINE_MS", default_value_t = 150)]
    deadline_ms: u64,
    /// How long to wait here, so as to see what comes later
    #[arg(long, value_name = "MS", default_value_t = 5000)]
    timeout_ms: u64,
    /// How to answer
    #[arg(long, value_enum, default_value = "text")]
    output: Output,
}

/// How a check came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    Pass,
    Warn,
    Fail,
}

impl Verdict {
    fn name(self) -> &'static str {
        match self {
            Self::Pass => "pass",
            Self::Warn => "warn",
            Self::Fail => "FAIL",
        }
    }
}

/// A line of the report.
#[derive(Debug, Serialize)]
struct Line {
    check: &'static str,
    verdict: Verdict,
    found: String,
    /// What to do; empty if there is nothing.
    advice: String,
}

fn line(check: &'static str, verdict: Verdict, found: impl Into<String>, advice: impl Into<String>) -> Line {
    let advice = if verdict == Verdict::Pass { String::new() } else { advice.into() };
    Line { check, verdict, found: found.into(), advice }
}

pub(super) fn run(args: &PreflightArgs) -> Result<Exit, CliError> {
    let setup = CliError::PreflightSetup;
    let pins: Result<Vec<_>, _> =
        args.pins.iter().map(|file| Ok((file, read_certificates(file)?.swap_remove(0)))).collect();
    let pins = pins.map_err(setup)?;
    let trust = match &args.ca_file {
        Some(file) => Trust::Authorities(read_certificates(file).map_err(setup)?),
        None if pins.is_empty() => Trust::System,
        None => Trust::Pins(pins.iter().map(|(_, pin)| pin.clone()).collect()),
    };
    let token = read_token(&args.token_file).map_err(setup)?;
    let ekm = RemoteEkm::new(&args.url, args.address, &trust).map_err(setup)?;
    let host = args.url.host_str().unwrap_or_default();
    let name = ServerName::try_from(host.trim_matches(['[', ']']).to_owned());
    let name = name.map_err(|_| setup(format!("'{host}' is no name that a certificate can have")))?;
    let lines = runtime()?.block_on(look(args, &name, &pins, &ekm, &token));
    report(args, &lines);
    let failed: Vec<_> = lines.iter().filter(|line| line.verdict == Verdict::Fail).map(|line| line.check).collect();
    if failed.is_empty() {
        return Ok(Exit::Done);
    }
    let (count, names) = (failed.len(), failed.join(", "));
    Err(CliError::PreflightFailed(format!("{count} of {} checks failed: {names}", lines.len())))
}

/// All checks in the order in which a call of Cloud KMS meets them. What cannot be done after a failure is left out.
async fn look(
    args: &PreflightArgs,
    name: &ServerName<'static>,
    pins: &[(&PathBuf, rustls::pki_types::CertificateDer<'static>)],
    ekm: &RemoteEkm,
    token: &SecretString,
) -> Vec<Line> {
    let (resolved, address) = resolve(args).await;
    let mut lines = vec![resolved];
    let Some(address) = address else { return lines };
    let patience = Duration::from_millis(args.timeout_ms);
    let connected = connections(address, patience).await;
    let reached = connected.verdict != Verdict::Fail;
    lines.push(connected);
    if !reached {
        return lines;
    }
    match probe::look(address, name.clone(), patience).await {
        Err(NoHandshake::Tcp(error)) => {
            let advice = "the connection was made before and is not now: look at the load balancer's log";
            lines.push(line("tcp.connect", Verdict::Fail, error, advice));
        }
        Err(NoHandshake::Tls(error)) => {
            let advice = "something listens there that does not speak TLS, or a balancer has no replica to give the connection to; a \
                          PROXY protocol header, which the EKM does not take, looks like this too";
            lines.push(line("tls.handshake", Verdict::Fail, error, advice));
        }
        Ok(shown) => {
            lines.push(route(&shown, address));
            lines.push(handshake(&shown));
            let trusted = certificate::lines(&mut lines, &shown, name, pins);
            if trusted {
                requests::lines(&mut lines, args, ekm, token).await;
            }
        }
    }
    lines
}

async fn resolve(args: &PreflightArgs) -> (Line, Option<SocketAddr>) {
    const CHECK: &str = "name.resolves";
    if let Some(address) = args.address {
        return (line(CHECK, Verdict::Pass, format!("not asked: --address is {address}"), ""), Some(address));
    }
    let host = args.url.host_str().unwrap_or_default().trim_matches(['[', ']']);
    let port = args.url.port_or_known_default().unwrap_or(443);
    let begun = Instant::now();
    let found: Vec<_> = match tokio::net::lookup_host((host, port)).await {
        Ok(found) => found.collect(),
        Err(error) => {
            let advice = "make the record, or look at this machine's resolver; for an EKM connection the endpoint in Service Directory \
                          counts, and not DNS: give its address with --address";
            return (line(CHECK, Verdict::Fail, format!("{host}: {error}"), advice), None);
        }
    };
    let took = ms(begun.elapsed());
    let Some(&first) = found.first() else {
        return (line(CHECK, Verdict::Fail, format!("{host} has no address"), "give the name an address"), None);
    };
    let all: Vec<_> = found.iter().map(|address| address.ip().to_string()).collect();
    let slow = took > SLOW_NAME_MS;
    let verdict = if slow { Verdict::Warn } else { Verdict::Pass };
    let advice =
        "Cloud KMS asks too: serve the zone from two name servers near it, with a time to live of a minute or so";
    (line(CHECK, verdict, format!("{} in {took:.1} ms", all.join(", ")), advice), Some(first))
}

async fn connections(address: SocketAddr, patience: Duration) -> Line {
    const CHECK: &str = "tcp.connect";
    let mut times = Vec::new();
    for _ in 0..CONNECTIONS {
        match probe::connect(address, patience).await {
            Ok((_, took, _)) => times.push(ms(took)),
            Err(error) => {
                let advice = "no route, a firewall, or nobody listens: the way there has to admit Cloud KMS (35.199.192.0/19 over a VPC \
                              network, the load balancer's ranges behind one), and there has to be a route back to it";
                let found = format!("{address}: {error}, after {} connections that were made", times.len());
                return line(CHECK, Verdict::Fail, found, advice);
            }
        }
    }
    times.sort_by(f64::total_cmp);
    let (middle, worst) = (times[times.len() / 2], times[times.len() - 1]);
    let verdict = if worst > CONNECT_MS { Verdict::Warn } else { Verdict::Pass };
    let advice = format!(
        "the sample proxies give up a connection after {CONNECT_MS:.0} ms, and a new connection is three such trips: come nearer, or give \
         connect_timeout_ms twice the way there and back"
    );
    line(CHECK, verdict, format!("{address}: {middle:.1} ms, at worst {worst:.1} ms of {CONNECTIONS}"), advice)
}

/// As much of the route as a caller sees: where it begins.
fn route(shown: &Shown, address: SocketAddr) -> Line {
    const CHECK: &str = "route.source";
    let (from, to) = (shown.from.ip(), address.ip());
    if to.is_loopback() {
        let advice = "this is the EKM's own machine; run it where Cloud KMS would call from";
        return line(CHECK, Verdict::Warn, format!("{from} to {to}: no network in between"), advice);
    }
    let found = format!("{from} to {to}: {}", if is_private(to) { "a private address" } else { "a public address" });
    line(CHECK, Verdict::Pass, found, "")
}

fn is_private(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.is_private() || address.is_link_local(),
        IpAddr::V6(address) => address.is_unique_local() || address.is_unicast_link_local(),
    }
}

fn handshake(shown: &Shown) -> Line {
    let version = shown.version.map_or_else(|| "no version".into(), |version| format!("{version:?}"));
    let found = format!("{version} in {:.1} ms", ms(shown.tls));
    let modern = shown.version == Some(rustls::ProtocolVersion::TLSv1_3);
    let verdict = if modern { Verdict::Pass } else { Verdict::Warn };
    line("tls.handshake", verdict, found, "TLS 1.2 takes one round trip more: whatever ends TLS there should offer 1.3")
}

fn report(args: &PreflightArgs, lines: &[Line]) {
    let count = |verdict| lines.iter().filter(|line| line.verdict == verdict).count();
    let (passed, warned, failed) = (count(Verdict::Pass), count(Verdict::Warn), count(Verdict::Fail));
    if args.output == Output::Json {
        let summary = json!({"passed": passed, "warned": warned, "failed": failed});
        print_json(&json!({"url": args.url.as_str(), "summary": summary, "checks": lines}));
        return;
    }
    let mut rows = Rows::new(["VERDICT", "CHECK", "FOUND", "WHAT TO DO"]);
    for line in lines {
        rows.push([line.verdict.name().into(), line.check.into(), line.found.clone(), line.advice.clone()]);
    }
    print(&rows.render(std::io::stdout().is_terminal()));
    print(&format!("\n{passed} passed, {warned} warnings, {failed} failed"));
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}
