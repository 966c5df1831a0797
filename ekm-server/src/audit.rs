//! The audit log: one JSON object a line for every request, queued before its answer leaves.
//!
//! Apart from the operator's log on purpose: that one may lose lines, this one may not. A thread of its own writes, so that no
//! request waits for the disk; if the disk falls behind by the whole queue, requests wait, and are refused at their deadline.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use ekm_core::caller::Caller;
use ekm_core::justification::Justification;
use ekm_core::policy::{Aspect, Verb};
use ekm_core::{Error, ShardName, Trace};
use prometheus::IntCounter;
use serde::{Serialize, Serializer};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::config::Config;
use crate::metrics::Metrics;
use crate::start_error::StartError;

/// After a batch the writer rests, so that a busy service wakes it 500 times a second and not for every request: that was a third
/// of the audit's cost. A lone record is written at once. A killed process loses at most this much; a drained one nothing.
const LINGER: Duration = Duration::from_millis(2);
const BATCH: usize = 1024;

/// What happened in one request. Never holds plaintext, blob, token, or additional authenticated data.
#[derive(Serialize)]
pub struct Record {
    /// When the request's head had been read, RFC 3339, UTC.
    #[serde(serialize_with = "rfc3339")]
    pub time: OffsetDateTime,
    /// The same as in the answer's `x-request-id`.
    pub request_id: String,
    /// The other end of the connection; mostly a load balancer.
    pub peer: Option<SocketAddr>,
    /// Absent for a request without a verb that we serve.
    pub verb: Option<Verb>,
    /// As the caller wrote it, cut at 512 bytes.
    pub path: String,
    /// Verified identity, if it came so far.
    #[serde(flatten, serialize_with = "caller_fields")]
    pub caller: Option<Arc<Caller>>,
    /// The reason that was given.
    pub justification: Option<Justification>,
    /// How the caller wrote a reason that we do not know, cut at 64 bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unknown_reason: Option<String>,
    /// Google's name of the key version.
    pub relative_resource_name: Option<String>,
    /// Google's own probe.
    pub is_key_health_check: bool,
    /// The shard of the key, if it lives on HSMs.
    pub shard: Option<ShardName>,
    /// What the request's time went into, besides the HSM.
    #[serde(flatten)]
    pub stages: Stages,
    /// Key, version, custody, times: as far as the request came.
    #[serde(flatten, serialize_with = "trace_fields")]
    pub trace: Trace,
    /// HTTP status; absent if the caller went away first.
    pub status: Option<u16>,
    /// `ok`, an error's code, or `abandoned`.
    pub code: &'static str,
    /// The operator's text.
    pub error: Option<String>,
    /// From `time` to the answer.
    #[serde(serialize_with = "microseconds", rename = "total_us")]
    pub total: Duration,
}

/// How long the stages of a request took, as far as it came.
#[derive(Clone, Copy, Default, Serialize)]
pub struct Stages {
    /// From its first byte to the end of its head; with HTTP/2 nobody knows.
    #[serde(serialize_with = "microseconds", rename = "head_us")]
    pub head: Duration,
    /// Until the caller was known.
    #[serde(serialize_with = "microseconds", rename = "authentication_us")]
    pub authentication: Duration,
    /// Until the body was there.
    #[serde(serialize_with = "microseconds", rename = "body_us")]
    pub body: Duration,
}

fn rfc3339<S: Serializer>(time: &OffsetDateTime, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&time.format(&Rfc3339).map_err(serde::ser::Error::custom)?)
}

fn microseconds<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u64(u64::try_from(duration.as_micros()).unwrap_or(u64::MAX))
}

fn caller_fields<S: Serializer>(caller: &Option<Arc<Caller>>, serializer: S) -> Result<S::Ok, S::Error> {
    #[derive(Serialize)]
    struct Fields<'a> {
        caller: Option<&'a str>,
        caller_subject: Option<&'a str>,
        issuer: Option<&'a str>,
    }
    let caller = caller.as_deref();
    Fields {
        caller: caller.map(|caller| &*caller.email),
        caller_subject: caller.map(|caller| &*caller.subject),
        issuer: caller.map(|caller| &*caller.issuer),
    }
    .serialize(serializer)
}

fn trace_fields<S: Serializer>(trace: &Trace, serializer: S) -> Result<S::Ok, S::Error> {
    #[derive(Serialize)]
    struct Fields {
        key: Option<String>,
        key_version: Option<u32>,
        custody: Option<&'static str>,
        catalog_revision: u64,
        #[serde(skip_serializing_if = "std::ops::Not::not")]
        destroy_scheduled: bool,
        #[serde(skip_serializing_if = "std::ops::Not::not")]
        by_grace: bool,
        #[serde(skip_serializing_if = "Option::is_none")]
        denied_by: Option<&'static str>,
        #[serde(with = "time::serde::rfc3339::option", skip_serializing_if = "Option::is_none")]
        denial_final_at: Option<OffsetDateTime>,
        #[serde(serialize_with = "microseconds", rename = "hsm_turn_us")]
        turn: Duration,
        #[serde(serialize_with = "microseconds", rename = "hsm_queue_us")]
        queue: Duration,
        #[serde(serialize_with = "microseconds", rename = "hsm_device_us")]
        device: Duration,
    }
    Fields {
        key: trace.key.map(|key| key.to_string()),
        key_version: trace.version,
        custody: trace.custody.map(|custody| custody.name()),
        catalog_revision: trace.revision,
        destroy_scheduled: trace.destroy_scheduled,
        by_grace: trace.by_grace,
        denied_by: trace.denied_by.map(Aspect::name),
        denial_final_at: trace.denial_final_at,
        turn: trace.hsm.turn,
        queue: trace.hsm.queue,
        device: trace.hsm.device,
    }
    .serialize(serializer)
}

/// The audit log, and those of the shards that have one of their own: a disk that is full costs only who writes to it.
pub struct AuditLogs {
    common: AuditLog,
    /// In the order of the configuration.
    of_shards: Vec<Option<AuditLog>>,
}

impl AuditLogs {
    /// Opens all of them.
    pub fn open(config: &Config, metrics: &Metrics) -> Result<Self, StartError> {
        let open = |file: &Path| {
            let opened = AuditLog::open(file, config.audit.queue_length, metrics.audit_write_errors.clone());
            opened.map_err(StartError::io(format!("cannot open the audit log {}", file.display())))
        };
        let of_shards = config.shards.iter().map(|shard| shard.get_ref().audit_file.as_deref().map(open).transpose());
        Ok(Self { common: open(&config.audit.file)?, of_shards: of_shards.collect::<Result<_, _>>()? })
    }

    /// Where a record belongs.
    pub fn of(&self, record: &Record) -> &AuditLog {
        let own = record.trace.shard.and_then(|place| self.of_shards.get(place)?.as_ref());
        own.unwrap_or(&self.common)
    }

    /// How many records wait for disks.
    pub fn queue_length(&self) -> usize {
        self.all().map(|log| log.queue.len()).sum()
    }

    /// Makes the writers open their files anew, after logrotate has moved them.
    pub fn reopen(&self) {
        self.all().for_each(|log| log.reopen.store(true, Ordering::Relaxed));
    }

    fn all(&self) -> impl Iterator<Item = &AuditLog> {
        std::iter::once(&self.common).chain(self.of_shards.iter().flatten())
    }
}

/// The way to one audit log. Dropping the last one writes what is queued and ends the thread.
pub struct AuditLog {
    queue: flume::Sender<Record>,
    reopen: Arc<AtomicBool>,
    writer: Option<thread::JoinHandle<()>>,
}

impl AuditLog {
    /// Opens the file for appending. `errors` counts failed attempts to write.
    pub fn open(file: &Path, queue_length: usize, errors: IntCounter) -> std::io::Result<Self> {
        let (queue, records) = flume::bounded(queue_length);
        let reopen = Arc::new(AtomicBool::new(false));
        let writer = Writer { path: file.to_owned(), file: append_to(file)?, reopen: Arc::clone(&reopen), errors };
        let writer = thread::Builder::new().name("audit".into()).spawn(move || writer.run(&records))?;
        Ok(Self { queue, reopen, writer: Some(writer) })
    }

    /// Queues a record; waits for room until `deadline`.
    pub async fn write(&self, record: Record, deadline: Instant) -> Result<(), Error> {
        let record = match self.queue.try_send(record) {
            Ok(()) => return Ok(()),
            Err(refused) => refused.into_inner(),
        };
        match tokio::time::timeout_at(deadline.into(), self.queue.send_async(record)).await {
            Ok(Ok(())) => Ok(()),
            _ => Err(Error::AuditUnavailable),
        }
    }

    /// Queues a record if there is room, for requests that nobody waits for any more.
    pub fn try_write(&self, record: Record) -> bool {
        self.queue.try_send(record).is_ok()
    }
}

impl Drop for AuditLog {
    fn drop(&mut self) {
        let (closed, _) = flume::bounded(0);
        self.queue = closed;
        if let Some(writer) = self.writer.take() {
            let _ = writer.join();
        }
    }
}

fn append_to(file: &Path) -> std::io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    OpenOptions::new().append(true).create(true).mode(0o640).open(file)
}

struct Writer {
    path: PathBuf,
    file: File,
    reopen: Arc<AtomicBool>,
    errors: IntCounter,
}

impl Writer {
    fn run(mut self, records: &flume::Receiver<Record>) {
        let mut lines = Vec::new();
        while let Ok(first) = records.recv() {
            lines.clear();
            for record in std::iter::once(first).chain(records.try_iter().take(BATCH)) {
                serde_json::to_writer(&mut lines, &record).expect("a record has no map with keys that are not text");
                lines.push(b'\n');
            }
            self.write(&lines, records);
            if !records.is_disconnected() {
                thread::sleep(LINGER);
            }
        }
    }

    /// Writes everything, however long the disk is full: meanwhile the queue fills, and requests are refused. Only if
    /// the service is going down are lines given up, and then into the log.
    fn write(&mut self, mut lines: &[u8], records: &flume::Receiver<Record>) {
        while !lines.is_empty() {
            if self.reopen.swap(false, Ordering::Relaxed) {
                match append_to(&self.path) {
                    Ok(file) => self.file = file,
                    Err(error) => tracing::error!(%error, file = %self.path.display(), "cannot reopen the audit log"),
                }
            }
            match self.file.write(lines) {
                Ok(written) => lines = &lines[written..],
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => {
                    self.errors.inc();
                    tracing::error!(%error, file = %self.path.display(), "cannot write the audit log");
                    if records.is_disconnected() {
                        let count = lines.iter().filter(|&&byte| byte == b'\n').count();
                        tracing::error!(count, "audit lines lost: going down, and the disk does not take them");
                        return;
                    }
                    thread::sleep(Duration::from_millis(200));
                }
            }
        }
    }
}
