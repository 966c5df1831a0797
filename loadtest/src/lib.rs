//! Requests over keep-alive connections, and what they cost the server in CPU time: not wall time, since client and server share the
//! machine.

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use ekm_tests::{Ekm, base64, tls_config};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http2::SendRequest;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// What a run of requests has shown.
pub struct Measured {
    /// Server CPU time per request.
    pub cpu_us: f64,
    /// Requests answered.
    pub per_second: f64,
    /// Those that were not answered with 200.
    pub errors: u64,
}

/// A wrap or an unwrap as Cloud KMS sends it: about 350 bytes of JSON.
pub fn request(path: &str, verb: &str, token: &str, field: &str, input: &str) -> String {
    let body = serde_json::json!({
        field: input,
        "additionalAuthenticatedData": base64(AAD),
        "additionalContext": {
            "relativeResourceName": "projects/p/locations/l/keyRings/r/cryptoKeys/k/cryptoKeyVersions/1",
            "accessReasonContext": {"reason": "CUSTOMER_INITIATED_ACCESS"},
        },
    })
    .to_string();
    format!(
        "POST /{path}:{verb} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

/// The one in the middle; the upper one of two.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or_default()
}

/// Of the plaintext of every request: as long as a data key.
pub const PLAINTEXT_BYTES: usize = 32;

/// The body of a wrap without a context, for the first blob.
pub fn wrap_body() -> String {
    serde_json::json!({"plaintext": base64([7; PLAINTEXT_BYTES]), "additionalAuthenticatedData": base64(AAD)})
        .to_string()
}

/// The AAD of every request.
pub const AAD: &str = "projects/p/locations/l/keyRings/r/cryptoKeys/k";

/// What is measured: a service, or the floor.
pub struct Subject {
    /// Where it listens.
    pub address: SocketAddr,
    /// What its certificate is checked with.
    pub ca_file: PathBuf,
    /// Whose CPU time counts, with its children's.
    pub pid: u32,
}

impl From<&Ekm> for Subject {
    fn from(ekm: &Ekm) -> Self {
        Self { address: ekm.address(), ca_file: ekm.ready.ca_file.clone(), pid: ekm.pid() }
    }
}

/// How requests are sent.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// HTTP/1.1.
    Http1,
    /// HTTP/2, one request at a time on each connection.
    Http2,
}

impl Protocol {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Http1, Self::Http2];

    /// For people.
    pub fn name(self) -> &'static str {
        match self {
            Self::Http1 => "HTTP/1.1",
            Self::Http2 => "HTTP/2",
        }
    }
}

/// Sends requests over HTTP/1.1, one after the other on each connection, in turn through the list.
pub async fn measure(ekm: &Ekm, requests: &Arc<Vec<String>>, connections: usize, seconds: f64) -> Result<Measured> {
    measure_over(Protocol::Http1, &ekm.into(), requests, connections, seconds).await
}

/// The same over either protocol.
pub async fn measure_over(
    protocol: Protocol,
    subject: &Subject,
    requests: &Arc<Vec<String>>,
    connections: usize,
    seconds: f64,
) -> Result<Measured> {
    let mut client = Client::connect(protocol, subject, connections).await?;
    let until = Instant::now() + Duration::from_secs_f64(seconds);
    let (began, cpu_before) = (Instant::now(), cpu_us(subject.pid)?);
    let sent = client.send(requests, move |_| Instant::now() < until).await?;
    let (cpu, answered) = (cpu_us(subject.pid)? - cpu_before, sent.answered as f64);
    ensure!(answered > 0.0, "no request was answered");
    Ok(Measured { cpu_us: cpu / answered, per_second: answered / began.elapsed().as_secs_f64(), errors: sent.errors })
}

/// Open connections, each with one request at a time.
pub struct Client {
    connections: Vec<Connection>,
}

enum Connection {
    Http1(Box<TlsStream<TcpStream>>),
    Http2(SendRequest<Full<Bytes>>),
}

/// What has come of requests.
#[derive(Clone, Copy, Default)]
pub struct Sent {
    /// Whatever came of them.
    pub answered: u64,
    /// Those of them that were not answered with 200.
    pub errors: u64,
}

impl Client {
    /// Opens so many.
    pub async fn connect(protocol: Protocol, subject: &Subject, connections: usize) -> Result<Self> {
        let alpn = if protocol == Protocol::Http1 { "http/1.1" } else { "h2" };
        let connector = TlsConnector::from(Arc::new(tls_config(&subject.ca_file, &[alpn])));
        let mut open = Vec::new();
        for _ in 0..connections {
            let stream = TcpStream::connect(subject.address).await?;
            stream.set_nodelay(true)?;
            let stream = connector.connect(ServerName::try_from("localhost")?, stream).await?;
            open.push(match protocol {
                Protocol::Http1 => Connection::Http1(Box::new(stream)),
                Protocol::Http2 => {
                    let builder = hyper::client::conn::http2::Builder::new(TokioExecutor::new());
                    let (sender, driver) = builder.handshake(TokioIo::new(stream)).await?;
                    tokio::spawn(driver); // ends with the sender
                    Connection::Http2(sender)
                }
            });
        }
        Ok(Self { connections: open })
    }

    /// Sends requests, in turn through the list, as long as `goes_on` says so to the number of those before.
    pub async fn send(
        &mut self,
        requests: &Arc<Vec<String>>,
        goes_on: impl Fn(usize) -> bool + Clone + Send + Sync + 'static,
    ) -> Result<Sent> {
        let next = Arc::new(AtomicUsize::new(0));
        let workers: Vec<_> = self
            .connections
            .drain(..)
            .map(|mut connection| {
                let (requests, next, goes_on) = (Arc::clone(requests), Arc::clone(&next), goes_on.clone());
                tokio::spawn(async move {
                    let turn = || Some(next.fetch_add(1, Ordering::Relaxed)).filter(|before| goes_on(*before));
                    let sent = match &mut connection {
                        Connection::Http1(stream) => over_http1(stream, &requests, turn).await?,
                        Connection::Http2(sender) => over_http2(sender, &requests, turn).await?,
                    };
                    Ok::<_, anyhow::Error>((connection, sent))
                })
            })
            .collect();
        let mut all = Sent::default();
        for worker in workers {
            let (connection, sent) = worker.await??;
            self.connections.push(connection);
            all = Sent { answered: all.answered + sent.answered, errors: all.errors + sent.errors };
        }
        Ok(all)
    }
}

async fn over_http2(
    sender: &mut SendRequest<Full<Bytes>>,
    requests: &[String],
    turn: impl Fn() -> Option<usize>,
) -> Result<Sent> {
    let requests = requests.iter().map(|text| http2_request(text)).collect::<Result<Vec<_>>>()?;
    let mut sent = Sent::default();
    while let Some(turn) = turn() {
        // What comes too late is not sent: its stream is reset.
        match sender.send_request(requests[turn % requests.len()].clone()).await {
            Ok(answer) if answer.status() == 200 => drop(answer.into_body().collect().await?),
            Ok(_) | Err(_) => sent.errors += 1,
        }
        sent.answered += 1;
    }
    Ok(sent)
}

async fn over_http1(
    connection: &mut TlsStream<TcpStream>,
    requests: &[String],
    turn: impl Fn() -> Option<usize>,
) -> Result<Sent> {
    let (mut buffer, mut sent) = (vec![0; 16 * 1024], Sent::default());
    while let Some(turn) = turn() {
        connection.write_all(requests[turn % requests.len()].as_bytes()).await?;
        let mut filled = 0;
        while !is_complete(&buffer[..filled]) {
            let read = connection.read(&mut buffer[filled..]).await?;
            ensure!(read > 0, "the server closed the connection");
            filled += read;
        }
        sent.errors += u64::from(!buffer.starts_with(b"HTTP/1.1 200"));
        sent.answered += 1;
    }
    Ok(sent)
}

/// The text of a request over HTTP/1.1 as one over HTTP/2.
fn http2_request(text: &str) -> Result<http::Request<Full<Bytes>>> {
    let (head, body) = text.split_once("\r\n\r\n").context("no body")?;
    let mut lines = head.lines();
    let target = lines.next().and_then(|line| line.split(' ').nth(1)).context("no target")?;
    let mut request = http::Request::post(format!("https://localhost{target}"));
    for (name, value) in lines.filter_map(|line| line.split_once(": ")).filter(|(name, _)| *name != "Host") {
        request = request.header(name, value);
    }
    Ok(request.body(Full::new(Bytes::from(body.to_owned())))?)
}

/// Whether an answer with Content-Length is all there.
fn is_complete(answer: &[u8]) -> bool {
    let Some(head) = answer.windows(4).position(|window| window == b"\r\n\r\n") else { return false };
    let text = std::str::from_utf8(&answer[..head]).unwrap_or_default();
    let length = text.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse::<usize>().ok());
    answer.len() >= head + 4 + length.unwrap_or(0)
}

/// CPU time of a process so far, in seconds, in steps of 10 ms: all threads, those that have ended too.
pub fn cpu_seconds(pid: u32) -> Result<f64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).context("the server is gone")?;
    // The name, in parentheses, may hold spaces; after it, user and system time are the 12th and 13th field, in USER_HZ.
    let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace().skip(11).take(2);
    Ok(fields.filter_map(|ticks| ticks.parse::<f64>().ok()).sum::<f64>() / 100.0)
}

/// Waits until a server has nothing to do any more, such as proving its keys.
pub async fn until_idle(ekm: &Ekm) -> Result<()> {
    loop {
        let before = cpu_seconds(ekm.pid())?;
        tokio::time::sleep(Duration::from_millis(1000)).await;
        if cpu_seconds(ekm.pid())? - before < 0.05 {
            return Ok(());
        }
    }
}

/// CPU time of the living threads of a process and of its children, such as HSM workers, so far: from schedstat, in nanosecond steps.
pub fn cpu_us(pid: u32) -> Result<f64> {
    let mut total = 0.0;
    for task in fs::read_dir(format!("/proc/{pid}/task")).context("the server is gone")? {
        if let Ok(text) = fs::read_to_string(task?.path().join("schedstat")) {
            total += text.split(' ').next().unwrap_or_default().parse::<f64>().unwrap_or(0.0) / 1000.0;
        }
    }
    Ok(total + children(pid).into_iter().map(|child| cpu_us(child).unwrap_or(0.0)).sum::<f64>())
}

/// The processes that a process has started, such as HSM workers.
pub fn children(pid: u32) -> Vec<u32> {
    let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else { return Vec::new() };
    let lists = tasks.flatten().map(|task| fs::read_to_string(task.path().join("children")).unwrap_or_default());
    lists.flat_map(|list| list.split_whitespace().filter_map(|child| child.parse().ok()).collect::<Vec<_>>()).collect()
}

/// Resident memory of a process.
pub fn rss_mib(pid: u32) -> Result<f64> {
    Ok(status(pid, "VmRSS:")? / 1024.0)
}

/// The part of it that is in no file: heap and stacks, not the program.
pub fn anonymous_mib(pid: u32) -> Result<f64> {
    Ok(status(pid, "RssAnon:")? / 1024.0)
}

/// Threads of a process.
pub fn threads(pid: u32) -> Result<u64> {
    Ok(status(pid, "Threads:")? as u64)
}

/// A line of /proc/PID/status that has a number.
fn status(pid: u32, name: &str) -> Result<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).context("the server is gone")?;
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    line.and_then(|line| line.split_whitespace().next()?.parse().ok()).with_context(|| format!("no {name}"))
}
