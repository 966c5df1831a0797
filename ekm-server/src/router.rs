//! The EKM listener's requests, from head to answer. Every request leaves one audit record and two metrics, here.

use std::net::SocketAddr;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use axum::Router;
use axum::body::{Body, HttpBody};
use axum::extract::State;
use axum::routing::get;
use bytes::Bytes;
use ekm_core::caller::Caller;
use ekm_core::policy::Verb;
use ekm_core::{Ekm, Error, KeyPath, ShardName, Trace};
use futures_util::FutureExt;
use http::{HeaderMap, HeaderValue, Method, Request, Response, Uri, Version, header, request};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::sync::OwnedSemaphorePermit;

use crate::audit::{AuditLogs, Record, Stages};
use crate::auth::Authenticator;
use crate::background::Unserved;
use crate::config::Config;
use crate::connection::{Peer, Room, TooLate};
use crate::control::{self, Control};
use crate::dialect::{self, ControlRequest};
use crate::health::Health;
use crate::intake::Intake;
use crate::metrics::Metrics;
use crate::shapes::Shapes;
use crate::status::Answers;
use crate::wire::{self, Bounds, CryptoRequest, Input, Why, truncated};

/// What the data plane works with; made once, shared by all requests.
pub struct DataPlane {
    /// Keys and the means to use them.
    pub ekm: Ekm,
    /// Who calls.
    pub authenticator: ArcSwap<Authenticator>,
    /// The way to the catalog's database, for what cannot do without.
    pub control: Control,
    /// What happened.
    pub audit: AuditLogs,
    /// How requests look, if somebody wants to know.
    pub shapes: Option<Shapes>,
    /// How often and how fast.
    pub metrics: Arc<Metrics>,
    /// Hosts that we answer for; empty means any.
    pub hosts: Vec<String>,
    /// Bounds in time and size.
    pub limits: RequestLimits,
    /// How failed requests are answered.
    pub answers: Answers,
    /// What is let in.
    pub intake: Intake,
    /// What cannot be served.
    pub unserved: Unserved,
    /// Failures of ours, for the log.
    pub failures: FailureLog,
    /// Makes request ids unique across restarts.
    pub instance: String,
    /// Makes request ids unique within one.
    pub next_request: AtomicU64,
}

impl DataPlane {
    fn shard_of(&self, trace: &Trace) -> Option<ShardName> {
        Some(self.ekm.custodian().shards()[trace.shard?].name().clone())
    }
}

/// Tells the operator's log about answers that are our fault: at most one line a second, so that an outage does not also fill the
/// log's disk. The audit log has every one.
#[derive(Default)]
pub struct FailureLog {
    ours: OncePerSecond,
    held_back: OncePerSecond,
}

#[derive(Default)]
struct OncePerSecond {
    last_s: AtomicU64,
    unlogged: AtomicU64,
}

impl OncePerSecond {
    /// How many were left out since the last line; `None` if this one is left out too.
    fn turn(&self, record: &Record) -> Option<u64> {
        let now_s = record.time.unix_timestamp().cast_unsigned();
        if self.last_s.swap(now_s, Ordering::Relaxed) == now_s {
            self.unlogged.fetch_add(1, Ordering::Relaxed);
            return None;
        }
        Some(self.unlogged.swap(0, Ordering::Relaxed))
    }
}

impl FailureLog {
    fn log(&self, record: &Record) {
        if record.status.is_none_or(|status| status < 500) || record.code == "not_implemented" {
            return;
        }
        let error = record.error.as_deref().unwrap_or_default();
        let (code, request_id) = (record.code, &record.request_id);
        if let Some(final_at) = record.trace.denial_final_at {
            let Some(unlogged) = self.held_back.turn(record) else { return };
            let caller = record.caller.as_ref().map(|caller| &*caller.email);
            let final_at = final_at.format(&Rfc3339).unwrap_or_default();
            let path = &record.path;
            tracing::error!(
                code,
                error,
                path,
                caller,
                final_at,
                request_id,
                unlogged,
                "denied by a change of policy that is not final: correct the policy, or confirm the change"
            );
        } else if let Some(unlogged) = self.ours.turn(record) {
            tracing::warn!(code, error, request_id, unlogged, "request failed on our side");
        }
    }
}

/// An answer that takes so many times the deadline is not sent: 130 ms of Cloud KMS's 150, the network included.
const TOO_LATE: f64 = 1.3;

/// Bounds of one request.
pub struct RequestLimits {
    deadline: Duration,
    /// After this nothing is sent any more.
    too_late: Duration,
    body: Duration,
    body_bytes: usize,
    /// Of decoded fields.
    pub fields: Bounds,
}

impl RequestLimits {
    /// From the configuration.
    pub fn new(config: &Config) -> Self {
        let limits = &config.limits;
        Self {
            deadline: config.request_deadline(),
            too_late: config.request_deadline().mul_f64(TOO_LATE),
            body: Duration::from_millis(limits.body_timeout_ms),
            body_bytes: *limits.max_body_bytes.get_ref(),
            fields: Bounds { plaintext_bytes: limits.max_plaintext_bytes, aad_bytes: limits.max_aad_bytes },
        }
    }

    async fn read(&self, body: &mut Body, deadline: Instant) -> Result<Bytes, Error> {
        let invalid = |problem: String| Error::InvalidRequest { field: "body", problem };
        let too_long = || invalid(format!("is longer than {} bytes", self.body_bytes));
        // What Content-Length announces need not be waited for.
        if body.size_hint().lower() > self.body_bytes as u64 {
            return Err(too_long());
        }
        let until = deadline.min(Instant::now() + self.body);
        match tokio::time::timeout_at(until.into(), Limited::new(body, self.body_bytes).collect()).await {
            Ok(Ok(collected)) => Ok(collected.to_bytes()),
            Ok(Err(error)) if error.is::<LengthLimitError>() => Err(too_long()),
            Ok(Err(_)) => Err(invalid("cannot be read to its end".into())),
            Err(_) if until == deadline => Err(Error::DeadlineExceeded("reading the body")),
            Err(_) => Err(invalid(format!("did not arrive within {} ms", self.body.as_millis()))),
        }
    }
}

/// Takes what is left of a body that nobody wants. If an HTTP/2 answer ends before its request does, the stream is reset behind
/// it (RFC 9113 §8.1), and some clients, curl 7.88 among them, then drop the answer. Over HTTP/1.1 a connection that is closed before all was
/// read is reset, and the answer may be lost with it. Whether it was read to its end.
pub(crate) async fn discard(body: Body, max_bytes: usize, deadline: Instant) -> bool {
    let until = deadline.min(Instant::now() + Duration::from_secs(1));
    let mut body = Limited::new(body, max_bytes);
    let read = async {
        loop {
            match body.frame().await {
                Some(Ok(_)) => {}
                ended => return ended.is_none(),
            }
        }
    };
    tokio::time::timeout_at(until.into(), read).await.unwrap_or(false)
}

/// The protocol's only route: axum's patterns cannot say "ends with `:wrap`", so the verb is split off in [`split_verb`]. And what load
/// balancers ask for: they probe the port that they send requests to.
pub fn router(plane: Arc<DataPlane>, health: Arc<Health>) -> Router {
    let probe = get(async |State(health): State<Arc<Health>>, uri: Uri| health.probe(&uri));
    let probes = Router::new().route("/readyz", probe).with_state(health);
    Router::new().fallback(answer).with_state(plane).merge(probes)
}

/// What is known about a request so far. If the caller goes away, hyper drops the request's future, and this writes the record.
struct Open<'a> {
    plane: &'a DataPlane,
    record: Option<Record>,
    started: Instant,
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        if let Some(mut record) = self.record.take() {
            record.total = self.started.elapsed();
            record.shard = self.plane.shard_of(&record.trace);
            self.plane.metrics.observe(record.verb, record.code, record.total, &record.trace);
            if !self.plane.audit.of(&record).try_write(record) {
                self.plane.metrics.audit_lost.inc();
            }
        }
    }
}

async fn answer(State(plane): State<Arc<DataPlane>>, request: Request<Body>) -> Response<Full<Bytes>> {
    let peer = request.extensions().get::<Peer>();
    let (now, first_byte) = (Instant::now(), peer.and_then(|peer| peer.first_byte));
    let started = first_byte.unwrap_or(now);
    let deadline = started + plane.limits.deadline;
    let mut record = new_record(&plane, &request, peer.and_then(|peer| peer.address));
    record.stages.head = now - started;
    let request_id = HeaderValue::from_str(&record.request_id).expect("hexadecimal digits and a hyphen");
    let mut open = Open { plane: &plane, record: Some(record), started };
    // hyper honours Transfer-Encoding over a Content-Length beside it, and does not say that there was one; a proxy in front might see it
    // the other way round. Ending the connection leaves nothing to smuggle into (RFC 9112 §6.1).
    let mut closes = request.headers().contains_key(header::TRANSFER_ENCODING);
    let mut shared = None;

    let record = open.record.as_mut().expect("just put there");
    // A panic costs the request that caused it, and nobody else.
    let outcome =
        AssertUnwindSafe(serve(&plane, request, record, deadline, &mut closes, &mut shared)).catch_unwind().await;
    let outcome = outcome.unwrap_or_else(|_| {
        plane.metrics.panics.inc();
        Err(Error::Internal("the handler panicked"))
    });

    let mut record = open.record.take().expect("only taken here");
    record.total = started.elapsed();
    let too_late = record.total > plane.limits.too_late;
    let outcome = if too_late { Err(Error::DeadlineExceeded("answering")) } else { outcome };
    record.shard = plane.shard_of(&record.trace);
    record.code = outcome.as_ref().err().map_or("ok", Error::code);
    record.error = outcome.as_ref().err().map(ToString::to_string);
    let mut response = match outcome {
        Ok(json) => ok(json),
        Err(error) => plane.answers.to_response(&error),
    };
    record.status = (!too_late).then(|| response.status().as_u16());
    plane.failures.log(&record);
    let (verb, mut code, total, trace, stages) = (record.verb, record.code, record.total, record.trace, record.stages);
    if let Err(error) = plane.audit.of(&record).write(record, deadline).await {
        code = error.code();
        response = plane.answers.to_response(&error);
    }
    plane.metrics.observe(verb, code, total, &trace);
    plane.metrics.observe_stages(&stages, &trace);
    plane.metrics.observe_refusal(code, &trace, now);
    if too_late {
        response.extensions_mut().insert(TooLate);
    }
    if let Some(room) = shared {
        response.extensions_mut().insert(room);
    }
    response.headers_mut().insert("x-request-id", request_id);
    if closes {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

fn new_record(plane: &DataPlane, request: &Request<Body>, peer: Option<SocketAddr>) -> Record {
    let number = plane.next_request.fetch_add(1, Ordering::Relaxed);
    Record {
        time: OffsetDateTime::now_utc(),
        request_id: format!("{}-{number:x}", plane.instance),
        peer,
        verb: None,
        path: truncated(request.uri().path(), 512),
        caller: None,
        justification: None,
        unknown_reason: None,
        relative_resource_name: None,
        is_key_health_check: false,
        shard: None,
        stages: Stages::default(),
        trace: Trace::default(),
        status: None,
        code: "abandoned",
        error: None,
        total: Duration::ZERO,
    }
}

/// The checks, cheapest first; each fills the record as far as it comes. Also for a path that names nothing, a stranger learns
/// first that he is a stranger.
async fn serve(
    plane: &Arc<DataPlane>,
    request: Request<Body>,
    record: &mut Record,
    deadline: Instant,
    closes: &mut bool,
    shared: &mut Option<Room>,
) -> Result<String, Error> {
    let (head, mut body) = request.into_parts();
    let read = async {
        let split = split_verb(head.uri.path());
        record.verb = split.as_ref().ok().map(|(_, verb)| *verb);
        let is_info = dialect::INFO_PATHS.contains(&head.uri.path());
        check_head(plane, &head, if is_info { Method::GET } else { Method::POST })?;
        let asked = Instant::now();
        let caller = plane.authenticator.load().authenticate(&head.headers, deadline).await?;
        let known = Instant::now();
        record.stages.authentication = known - asked;
        let peer = head.extensions.get::<Peer>();
        if let Some(connection) = peer.and_then(|peer| peer.connection.as_ref()) {
            connection.authenticate();
        }
        record.caller = Some(Arc::clone(&caller));
        if is_info {
            return Ok(Asked::Info);
        }
        let (path, verb) = split?;
        check_media_type(&head.headers)?;
        // Before anything is read or parsed: what cannot be done in time costs as little as possible.
        plane.intake.admit(&caller, verb)?;
        if plane.ekm.is_too_much(&path, verb, &caller, deadline) {
            return Err(Error::Overloaded);
        }
        let exact = body.size_hint().exact();
        if let Some(peer) = peer {
            let waited = tokio::time::timeout_at(deadline.into(), peer.room(exact)).await;
            *shared = waited.map_err(|_| Error::DeadlineExceeded("waiting for other answers to be taken"))?;
        }
        let bytes = exact.unwrap_or(plane.limits.body_bytes as u64);
        let room = plane.intake.room(bytes.min(plane.limits.body_bytes as u64))?;
        let body = plane.limits.read(&mut body, deadline).await?;
        record.stages.body = known.elapsed();
        if let Some(shapes) = &plane.shapes {
            shapes.record(&head, verb, &body);
        }
        Ok::<_, Error>(Asked::Verb(caller, path, verb, body, room))
    }
    .await;
    let too_long = body.size_hint().lower() > plane.limits.body_bytes as u64;
    if read.is_err() && (head.version == Version::HTTP_2 || too_long) {
        let ended = discard(body, 16 * plane.limits.body_bytes, deadline).await;
        // hyper does not read the rest, and closes; the client has to know (RFC 9112 §9.3).
        *closes |= !ended && head.version != Version::HTTP_2;
    }
    let (caller, path, verb, body, _room) = match read? {
        Asked::Info => return Ok(dialect::encode_info()),
        Asked::Verb(caller, path, verb, body, room) => (caller, path, verb, body, room),
    };
    let called = Called { plane, path: &path, caller: &caller, deadline };
    match verb {
        Verb::Wrap | Verb::Unwrap | Verb::AsymmetricSign | Verb::GetPublicKey => {
            called.crypto(verb, &body, record).await
        }
        // On the heap: futures that every request would carry about, and few use.
        Verb::CreateKey | Verb::DestroyKey | Verb::CheckCryptoSpacePermissions => {
            Box::pin(called.control(verb, &body, record)).await
        }
    }
}

/// What a request turned out to be, when it has been read.
enum Asked {
    /// getInfo.
    Info,
    Verb(Arc<Caller>, KeyPath, Verb, Bytes, OwnedSemaphorePermit),
}

/// Who calls what, and until when.
struct Called<'a> {
    plane: &'a Arc<DataPlane>,
    path: &'a KeyPath,
    caller: &'a Caller,
    deadline: Instant,
}

impl Called<'_> {
    async fn crypto(&self, verb: Verb, body: &[u8], record: &mut Record) -> Result<String, Error> {
        let (plane, limits) = (self.plane, self.plane.limits.fields);
        let CryptoRequest { input, aad, why } = wire::decode(verb, self.path, body, limits)?;
        let request = self.request(verb, &why, (input.blob(), &aad), record).await?;
        let (ekm, trace) = (&plane.ekm, &mut record.trace);
        match input {
            Input::Wrap(plaintext) => {
                ekm.wrap(&request, plaintext, trace).await.map(|blob| wire::encode_wrapped(&blob))
            }
            Input::Unwrap(blob) => {
                let unwrapped = ekm.unwrap(&request, &blob, trace).await;
                unwrapped.map(|plaintext| wire::encode_unwrapped(&plaintext))
            }
            // On the heap, as those of the control plane.
            Input::Sign(to_sign) => {
                let signed = Box::pin(ekm.sign(&request, &to_sign, trace)).await;
                signed.map(|signature| dialect::encode_signed(&signature))
            }
            Input::GetPublicKey => ekm.public_key(&request, trace).map(|public| dialect::encode_public_key(&public)),
        }
    }

    async fn control(&self, verb: Verb, body: &[u8], record: &mut Record) -> Result<String, Error> {
        let ControlRequest { algorithm, permissions, why } = dialect::decode(verb, body)?;
        let request = self.request(verb, &why, (&[], &[]), record).await?;
        let (plane, trace) = (self.plane, &mut record.trace);
        match (verb, algorithm) {
            (Verb::CreateKey, Some(algorithm)) => {
                let created = control::create_key(plane, &request, algorithm, trace).await;
                created.map(|path| dialect::encode_created(&path))
            }
            (Verb::DestroyKey, _) => control::destroy_key(plane, &request, trace).await.map(|()| "{}".into()),
            _ => {
                let held = control::check_permissions(plane, &request, &permissions, trace);
                held.map(|()| dialect::encode_permissions(&permissions))
            }
        }
    }

    /// The request as the core wants it, when all of it has been read.
    async fn request<'a>(
        &'a self,
        verb: Verb,
        why: &'a Why,
        (input, aad): (&[u8], &'a [u8]),
        record: &mut Record,
    ) -> Result<ekm_core::Request<'a>, Error> {
        record.justification = Some(why.justification.clone());
        record.unknown_reason.clone_from(&why.unknown_reason);
        record.relative_resource_name.clone_from(&why.resource);
        record.is_key_health_check = why.is_key_health_check;
        if Instant::now() >= self.deadline {
            return Err(Error::DeadlineExceeded("reading the body"));
        }
        // Another frontend may have made it a moment ago: only the catalog itself can say that there is none.
        let (ekm, control) = (&self.plane.ekm, &self.plane.control);
        if !ekm.knows(self.path, verb, input) && (control.is_cut_off() || !control.catch_up(self.deadline).await) {
            return Err(Error::CatalogStale);
        }
        let &Self { path, caller, deadline, .. } = self;
        let (justification, resource) = (&why.justification, why.resource.as_deref());
        Ok(ekm_core::Request { path, caller, justification, resource, aad, deadline })
    }
}

fn ok(json: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(json)));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// `v0/keys/demo` and `wrap` from `/v0/keys/demo:wrap`; `%3A` is a colon too.
fn split_verb(path: &str) -> Result<(KeyPath, Verb), Error> {
    let no_method = || Error::NoSuchMethod("the URL does not end with a method, such as ':wrap'");
    let last = path.rfind('/').map_or(0, |at| at + 1);
    let plain = path[last..].rfind(':').map(|at| (last + at, 1));
    let encoded = path[last..].to_ascii_lowercase().rfind("%3a").map(|at| (last + at, 3));
    let (at, length) = plain.max(encoded).ok_or_else(no_method)?;
    let name = &path[at + length..];
    let verb =
        dialect::verb(name).ok_or_else(|| dialect::not_offered(name).map_or_else(no_method, Error::NotImplemented))?;
    let path =
        KeyPath::parse_encoded(&path[..at]).map_err(|_| Error::NoSuchMethod("the URL's path can name no key"))?;
    Ok((path, verb))
}

/// What the head alone decides.
fn check_head(plane: &DataPlane, head: &request::Parts, method: Method) -> Result<(), Error> {
    if head.method != method {
        return Err(Error::MethodNotAllowed);
    }
    let invalid = |problem: &str| Error::InvalidRequest { field: "header", problem: problem.into() };
    let mut hosts = head.headers.get_all(header::HOST).iter();
    let host = hosts.next();
    if hosts.next().is_some() {
        return Err(invalid("Host is there twice"));
    }
    let host = match (head.version, host) {
        (Version::HTTP_2, None) => head.uri.host(),
        (Version::HTTP_2, Some(_)) => host.and_then(|host| host.to_str().ok()),
        _ if head.uri.authority().is_some() => {
            return Err(invalid("the request line holds a whole URL instead of a path"));
        }
        (Version::HTTP_10, None) => Some(""),
        _ => Some(host.and_then(|host| host.to_str().ok()).ok_or_else(|| invalid("Host is missing"))?),
    };
    if !plane.hosts.is_empty() && !host.is_some_and(|host| plane.hosts.iter().any(|ours| same_host(host, ours))) {
        return Err(Error::Misdirected);
    }
    Ok(())
}

/// Compares names; a port does not matter, since a load balancer may have another one.
fn same_host(host: &str, ours: &str) -> bool {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    };
    name.eq_ignore_ascii_case(ours)
}

pub(crate) fn check_media_type(headers: &HeaderMap) -> Result<(), Error> {
    if headers.get(header::CONTENT_ENCODING).is_some_and(|encoding| encoding != "identity") {
        return Err(Error::UnsupportedMediaType("compressed bodies are not accepted"));
    }
    let wrong = Error::UnsupportedMediaType("the body must be JSON, with 'Content-Type: application/json'");
    let Some(value) = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()) else {
        return Err(wrong);
    };
    let (media_type, parameters) = value.split_once(';').unwrap_or((value, ""));
    let charset = parameters.trim().to_ascii_lowercase();
    let utf8 = !charset.starts_with("charset=") || charset["charset=".len()..].trim_matches('"') == "utf-8";
    if media_type.trim().eq_ignore_ascii_case("application/json") && utf8 { Ok(()) } else { Err(wrong) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_verb_is_split_off_at_the_last_colon() {
        for (path, expected) in [
            ("/v0/keys/demo:wrap", Some(("v0/keys/demo", Verb::Wrap))),
            ("/v0/keys/demo%3Aunwrap", Some(("v0/keys/demo", Verb::Unwrap))),
            ("/v0/keys/demo%3aunwrap", Some(("v0/keys/demo", Verb::Unwrap))),
            ("/demo:wrap", Some(("demo", Verb::Wrap))),
            ("/v0/keys/demo:asymmetricSign", Some(("v0/keys/demo", Verb::AsymmetricSign))),
            ("/v0/keys/demo%3AgetPublicKey", Some(("v0/keys/demo", Verb::GetPublicKey))),
            ("/v0/keys/demo:asymmetricsign", None),
            ("/v0/keys/demo:get_public_key", None),
            ("/v0/keys/demo:wrapp", None),
            ("/v0/keys/demo:WRAP", None),
            ("/v0/keys/demo:", None),
            ("/v0/keys/demo", None),
            ("/v0/keys:wrap/demo", None),
            ("/:wrap", None),
            ("/", None),
            ("/v0/a:b:wrap", None),
        ] {
            let split = split_verb(path);
            assert_eq!(split.as_ref().ok().map(|(path, verb)| (path.as_str(), *verb)), expected, "{path}");
        }
    }

    #[test]
    fn hosts_are_compared_without_case_and_port() {
        assert!(same_host("EKM.example.com:8443", "ekm.example.com"));
        assert!(same_host("ekm.example.com", "ekm.example.com"));
        assert!(!same_host("ekm.example.com.evil.example", "ekm.example.com"));
        assert!(!same_host("ekm.example.com:x", "ekm.example.com"));
    }
}
