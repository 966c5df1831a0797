//! One connection: TLS handshake, HTTP/1.1 or HTTP/2 by ALPN, and the clocks that end it.
//!
//! The clocks are ours because hyper's do not cover this: its header time-out also cuts idle keep-alive connections, and HTTP/2
//! has none at all. One thing they see late: a head that begins in the same read as the request before it counts as idle
//! for a second, or until its next byte.

use std::fmt;
use std::future::{Future, poll_fn};
use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use axum::Router;
use bytes::Bytes;
use http::{HeaderValue, header};
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::pki_types::CertificateDer;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, watch};
use tower::ServiceExt;

use crate::answer::Answer;
use crate::config::Limits;
use crate::resting::Resting;

/// More than any real request has; hyper answers 431 to more.
const MAX_HEADERS: usize = 64;
const MAX_HEAD_BYTES: usize = 16 * 1024;
const MAX_HTTP2_STREAMS: u32 = 64;
/// What is read ahead of a request under way, and what of answers may wait to be sent before the next request is read: hyper would hold
/// 400 KiB of each for a client that asks and does not read.
const MAX_BUFFER_BYTES: usize = 32 * 1024;
/// A connection without a request for so long gives its buffers back. To have them again costs a request a microsecond or two.
const REST_AFTER: Duration = Duration::from_secs(1);
/// What may be under way on an HTTP/2 connection: bodies that have not been read, and again bodies of requests until their answers have been taken.
const HTTP2_KIB: u32 = 256;
/// A body of which nobody says how long it is counts as so much.
const UNKNOWN_BODY_KIB: u32 = 32;

/// An HTTP/2 peer whose time is over hears of it by GOAWAY, and has so long to say what it has sent meanwhile: that is still answered.
const FAREWELL: Duration = Duration::from_secs(1);

/// Why a connection ends: no request has come, ever.
const SILENT: &str = "first_byte_timeout";
/// Or since the last one.
const IDLE: &str = "idle_timeout";

/// The other end of a connection, in a request's extensions.
#[derive(Clone, Debug, Default)]
pub struct Peer {
    /// Its address; none on a Unix socket.
    pub address: Option<SocketAddr>,
    /// Its certificate, which an authority of the configuration has signed.
    pub certificate: Option<Arc<CertificateDer<'static>>>,
    /// Its user id, as the kernel says; on a Unix socket only.
    pub uid: Option<u32>,
    /// When the first byte of this request came; only HTTP/1.1 tells.
    pub first_byte: Option<Instant>,
    /// Its connection, to be told when a token of the peer's was good.
    pub connection: Option<Arc<Activity>>,
    /// Of its connection, in KiB; over HTTP/2 only.
    pub room: Option<Arc<Semaphore>>,
}

/// A request's share of its connection's room, kept until its answer has been taken. In a response's extensions.
pub type Room = Arc<OwnedSemaphorePermit>;

impl Peer {
    /// Waits until other answers on the connection have been taken, if their requests and this one have too much in their bodies. Over HTTP/1.1
    /// there is one at a time.
    pub async fn room(&self, body_bytes: Option<u64>) -> Option<Room> {
        let kib = body_bytes.map_or(UNKNOWN_BODY_KIB, |bytes| u32::try_from(bytes.div_ceil(1024)).unwrap_or(u32::MAX));
        let room = Arc::clone(self.room.as_ref()?).acquire_many_owned(kib.clamp(1, HTTP2_KIB)).await;
        room.ok().map(Arc::new)
    }
}

/// In a response's extensions: nobody waits for it any more, so it is not sent, and its connection or stream ends.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("an answer came too late to be sent")]
pub struct TooLate;

/// How far the end of the process has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd)]
pub enum Drain {
    /// Not at all.
    Serving,
    /// Load balancers are told: connections end behind their next answer, new ones are still served.
    Leaving,
    /// Nothing new is accepted, and connections end when their requests have.
    Draining,
}

/// The clocks of a connection.
#[derive(Clone, Copy, Debug)]
pub struct Clocks {
    first_byte: Duration,
    header: Duration,
    idle: Duration,
    write: Duration,
    age: Duration,
    newcomer: Duration,
    /// How long a connection is expected to say who it is.
    pub grace: Duration,
}

impl Clocks {
    /// From the configuration.
    pub fn new(limits: &Limits) -> Self {
        Self {
            first_byte: Duration::from_millis(limits.first_byte_timeout_ms),
            header: Duration::from_millis(limits.header_timeout_ms),
            idle: Duration::from_secs(limits.idle_timeout_s),
            write: Duration::from_millis(limits.write_timeout_ms),
            age: Duration::from_secs(limits.max_connection_age_s),
            newcomer: Duration::from_millis(*limits.request_deadline_ms.get_ref()),
            grace: Duration::from_millis(limits.first_byte_timeout_ms / 2),
        }
    }
}

/// What a connection is doing, and since when.
pub struct Activity {
    authenticated: AtomicBool,
    state: Mutex<State>,
    evict: Notify,
    evicted_as: OnceLock<&'static str>,
}

struct State {
    /// When it was accepted, or its handshake was over.
    begun: Instant,
    phase: Phase,
    since: Instant,
    in_flight: usize,
    /// Answers that the peer does not want yet.
    untaken: usize,
    /// Since when he has taken nothing of them.
    untaken_since: Instant,
    write_blocked: Option<Instant>,
}

#[derive(Clone, Copy, PartialEq)]
enum Phase {
    /// No byte since the handshake.
    Silent,
    /// Some bytes of a request's head.
    Head,
    /// Between two requests.
    Idle,
}

impl Default for Activity {
    /// For a connection that was just accepted.
    fn default() -> Self {
        let accepted = Instant::now();
        let state = State {
            begun: accepted,
            phase: Phase::Silent,
            since: accepted,
            in_flight: 0,
            untaken: 0,
            untaken_since: accepted,
            write_blocked: None,
        };
        Self {
            authenticated: AtomicBool::new(false),
            state: Mutex::new(state),
            evict: Notify::new(),
            evicted_as: OnceLock::new(),
        }
    }
}

impl fmt::Debug for Activity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Activity").finish_non_exhaustive()
    }
}

impl Activity {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Since when nobody has wanted anything of it; `None` while a request is under way.
    pub fn idle_since(&self) -> Option<Instant> {
        let state = self.state();
        (state.in_flight == 0).then_some(state.since)
    }

    /// Notes that a request on it had a good token.
    pub fn authenticate(&self) {
        // Written once, so that requests at the same time do not take the line from each other's caches.
        if !self.is_authenticated() {
            self.authenticated.store(true, Ordering::Relaxed);
        }
    }

    /// Whether a request on it had a good token.
    pub fn is_authenticated(&self) -> bool {
        self.authenticated.load(Ordering::Relaxed)
    }

    /// Whether its first request may still be on its way. Counts from its accept, and anew from its handshake.
    pub fn is_new(&self, now: Instant, grace: Duration) -> bool {
        let state = self.state();
        state.phase != Phase::Idle && now < state.begun + grace
    }

    /// Asks the connection to make room for another; `reason` is what it then ends with.
    pub fn evict(&self, reason: &'static str) {
        let _ = self.evicted_as.set(reason);
        self.evict.notify_one();
    }

    /// Starts the clocks anew, after the handshake.
    pub fn restart(&self) {
        let mut state = self.state();
        state.begun = Instant::now();
        state.since = state.begun;
    }

    /// Resolves when the connection has been asked to make room, with the reason.
    pub async fn evicted(&self) -> &'static str {
        self.evict.notified().await;
        self.evicted_as.get().copied().unwrap_or("evicted")
    }

    /// Whether there has been no byte since the handshake.
    fn is_silent(&self) -> bool {
        self.state().phase == Phase::Silent
    }

    /// Since when its head was read, if it is known.
    fn request_started(&self) -> Option<Instant> {
        let mut state = self.state();
        state.in_flight += 1;
        (state.phase == Phase::Head && state.in_flight == 1).then_some(state.since)
    }

    fn request_ended(&self, answered: bool) {
        let mut state = self.state();
        state.in_flight -= 1;
        state.phase = Phase::Idle;
        state.since = Instant::now();
        if answered {
            if state.untaken == 0 {
                state.untaken_since = state.since;
            }
            state.untaken += 1;
        }
    }

    /// From when on it need not keep buffers, unless something happens.
    fn rests_at(&self) -> Option<Instant> {
        let state = self.state();
        let sent = state.in_flight == 0 && state.untaken == 0 && state.write_blocked.is_none();
        (sent && state.phase == Phase::Idle).then(|| state.since + REST_AFTER)
    }

    /// Whether it need not keep buffers: all answers have been sent for a while.
    pub fn may_rest(&self) -> bool {
        self.rests_at().is_some_and(|at| at <= Instant::now())
    }

    /// When the connection has to end if nothing happens, and why.
    fn deadline(&self, clocks: &Clocks) -> Option<(Instant, &'static str)> {
        let state = self.state();
        if let Some(blocked) = state.write_blocked {
            return Some((blocked + clocks.write, "write_timeout"));
        }
        if state.untaken > 0 {
            return Some((state.untaken_since + clocks.write, "write_timeout"));
        }
        if state.in_flight > 0 {
            return None; // the request has a deadline of its own
        }
        Some(match state.phase {
            Phase::Silent => (state.since + clocks.first_byte, SILENT),
            Phase::Head => (state.since + clocks.header, "header_timeout"),
            Phase::Idle => (state.since + clocks.idle, IDLE),
        })
    }
}

/// Serves one connection to its end, and says which way it ended. Without ALPN, or on a plain listener, it is HTTP/1.1.
///
/// What a connection needs is on the heap, and not part of the future: a thousand silent ones would hold ten times as much otherwise, since a
/// future has room for all that it may come to hold, and twice for what is moved in it.
pub fn serve<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    stream: S,
    http2: bool,
    peer: Peer,
    router: Router,
    activity: Arc<Activity>,
    clocks: Clocks,
    mut drain: watch::Receiver<Drain>,
) -> Pin<Box<dyn Future<Output = &'static str> + Send>> {
    // Not all at once, if they were made all at once.
    let age = clocks.age.mul_f64(0.8 + 0.4 * fastrand::f64());
    let connected = Instant::now();
    let peer = Peer { room: http2.then(|| Arc::new(Semaphore::new(HTTP2_KIB as usize))), ..peer };
    let too_old = connected + age;
    let watched = Watched { stream, activity: Arc::clone(&activity), count_heads: !http2, unread: Bytes::new() };
    let service = {
        let (activity, drain) = (Arc::clone(&activity), drain.clone());
        service_fn(move |mut request: hyper::Request<Incoming>| {
            let (guard, first_byte) = InFlight::new(&activity);
            request.extensions_mut().insert(Peer { first_byte, ..peer.clone() });
            let (router, drain) = (router.clone(), drain.clone());
            async move {
                // Its head was read with the request before it: hyper would serve 16 of these in one go, and let everybody else wait.
                if !http2 && first_byte.is_none() {
                    tokio::task::yield_now().await;
                }
                let Ok(mut response) = router.oneshot(request).await;
                if response.extensions().get::<TooLate>().is_some() {
                    return Err(TooLate);
                }
                // Behind an answer no request of the peer's can be on its way, as it could be on an idle connection.
                if !http2 && (Instant::now() > too_old || *drain.borrow() != Drain::Serving) {
                    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
                }
                let room = response.extensions_mut().remove::<Room>();
                Ok(response.map(|body| Answer::new(body, guard.answered(), room)))
            }
        })
    };
    if http2 {
        let mut builder = http2::Builder::new(TokioExecutor::new());
        builder
            .timer(TokioTimer::new())
            .max_concurrent_streams(MAX_HTTP2_STREAMS)
            .max_header_list_size(MAX_HEAD_BYTES as u32)
            .initial_connection_window_size(HTTP2_KIB * 1024)
            .initial_stream_window_size(HTTP2_KIB * 1024)
            // Of a client that gives up on all it has asked, at once, and has asked as much again.
            .max_pending_accept_reset_streams(2 * MAX_HTTP2_STREAMS as usize)
            .max_local_error_reset_streams(64)
            .keep_alive_interval(Duration::from_secs(20))
            .keep_alive_timeout(Duration::from_secs(5));
        // GOAWAY tells the peer which of its requests were taken, so it may come at any time.
        let leave = async move {
            tokio::select! {
                () = reached(&mut drain, Drain::Leaving) => "drained",
                () = tokio::time::sleep(age) => "aged",
            }
        };
        let connection = Box::pin(builder.serve_connection(TokioIo::new(watched), service));
        Box::pin(drive(connection, http2::Connection::graceful_shutdown, activity, clocks, leave, FAREWELL))
    } else {
        let mut builder = http1::Builder::new();
        builder.max_headers(MAX_HEADERS).max_header_size(MAX_HEAD_BYTES).header_read_timeout(None);
        builder.max_buf_size(MAX_BUFFER_BYTES);
        let connection = Box::pin(Resting::new(builder, watched, Arc::clone(&activity), service));
        let newcomer = Arc::clone(&activity);
        let leave = async move {
            reached(&mut drain, Drain::Draining).await;
            // Who has just connected has a request on its way, and not all clients send it again if the connection is closed under it.
            if newcomer.is_silent() {
                tokio::time::sleep_until((connected + clocks.newcomer).into()).await;
            }
            "drained"
        };
        Box::pin(drive(connection, Resting::graceful_shutdown, activity, clocks, leave, Duration::ZERO))
    }
}

/// A request under way; also ended when the caller goes away and hyper drops its future.
struct InFlight(Option<Arc<Activity>>);

impl InFlight {
    fn new(activity: &Arc<Activity>) -> (Self, Option<Instant>) {
        let first_byte = activity.request_started();
        (Self(Some(Arc::clone(activity))), first_byte)
    }

    fn answered(mut self) -> Untaken {
        let activity = self.0.take().expect("it goes with this");
        activity.request_ended(true);
        Untaken(activity)
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        if let Some(activity) = &self.0 {
            activity.request_ended(false);
        }
    }
}

/// An answer that waits for its peer to want it: over HTTP/2 until the stream has a window, over HTTP/1.1 until there is room in the buffer.
pub struct Untaken(Arc<Activity>);

impl Untaken {
    /// Some of it was taken.
    pub fn goes_on(&self) {
        self.0.state().untaken_since = Instant::now();
    }
}

impl Drop for Untaken {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.untaken -= 1;
        state.untaken_since = Instant::now();
    }
}

/// Resolves when the end has come so far, or whoever could begin it is gone.
pub async fn reached(drain: &mut watch::Receiver<Drain>, far: Drain) {
    let _ = drain.wait_for(|&drain| drain >= far).await;
}

/// `farewell`: how long a connection that nobody wants anything of is kept, once it has been told to end.
async fn drive<C: Future<Output = hyper::Result<()>>>(
    mut connection: Pin<Box<C>>,
    shut_down: impl FnOnce(Pin<&mut C>),
    activity: Arc<Activity>,
    clocks: Clocks,
    leave: impl Future<Output = &'static str>,
    farewell: Duration,
) -> &'static str {
    let mut expired = pin!(expired(&activity, &clocks));
    let left = tokio::select! {
        biased; // the connection first: what it reads and writes moves the clocks
        outcome = &mut connection => return if outcome.is_ok() { "closed" } else { "error" },
        reason = &mut expired => {
            if matches!(reason, SILENT | IDLE) {
                shut_down(connection.as_mut());
                let _ = tokio::time::timeout(farewell, connection).await;
            }
            return reason;
        }
        reason = activity.evicted() => return reason,
        left = leave => left,
    };
    shut_down(connection.as_mut());
    tokio::select! {
        biased;
        outcome = &mut connection => if outcome.is_ok() { left } else { "error" },
        reason = &mut expired => reason,
    }
}

/// Resolves when the connection has to end. Looks at the clocks whenever the connection's task runs, and arms its timer only
/// when the deadline comes closer, so that a request costs no timer.
async fn expired(activity: &Activity, clocks: &Clocks) -> &'static str {
    let far = Duration::from_secs(3600);
    let mut timer = pin!(tokio::time::sleep(far));
    poll_fn(|context| {
        loop {
            let now = Instant::now();
            let (deadline, reason) = activity.deadline(clocks).unwrap_or((now + far, ""));
            if deadline <= now {
                return Poll::Ready(reason);
            }
            let rests_at = activity.rests_at().filter(|at| *at > now);
            let deadline = tokio::time::Instant::from_std(rests_at.map_or(deadline, |at| at.min(deadline)));
            if deadline < timer.deadline() || timer.is_elapsed() {
                timer.as_mut().reset(deadline);
            }
            ready!(timer.as_mut().poll(context));
        }
    })
    .await
}

/// A stream that tells [`Activity`] about its bytes.
pub struct Watched<S> {
    stream: S,
    activity: Arc<Activity>,
    /// HTTP/2 peers send control frames between requests; only HTTP/1.1 bytes are always a head.
    count_heads: bool,
    /// Was read, and is read once more.
    unread: Bytes,
}

impl<S: AsyncRead + Unpin> Watched<S> {
    /// Resolves when there is something to read, the end and errors included.
    pub fn poll_readable(&mut self, context: &mut Context<'_>) -> Poll<()> {
        if self.unread.is_empty() {
            let mut byte = [0];
            let mut buffer = ReadBuf::new(&mut byte);
            let _ = ready!(Pin::new(&mut *self).poll_read(context, &mut buffer));
            self.unread = Bytes::copy_from_slice(buffer.filled());
        }
        Poll::Ready(())
    }

    /// Takes back what was read too much: the beginning of a request, if it is anything.
    pub fn unread(&mut self, bytes: Bytes) {
        if !bytes.is_empty() {
            self.note_head();
            self.unread = bytes; // an empty one has memory behind it, too
        }
    }

    fn note_head(&self) {
        let mut state = self.activity.state();
        if self.count_heads && state.in_flight == 0 && state.phase != Phase::Head {
            state.phase = Phase::Head;
            state.since = Instant::now();
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.unread.is_empty() {
            let length = self.unread.len().min(buffer.remaining());
            buffer.put_slice(&self.unread.split_to(length));
            // With what follows: hyper would take twice the buffer for what comes after a single byte.
            return match Pin::new(&mut self.stream).poll_read(context, buffer) {
                Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
                _ => Poll::Ready(Ok(())),
            };
        }
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(context, buffer))?;
        if buffer.filled().len() > before {
            self.note_head();
        }
        Poll::Ready(Ok(()))
    }
}

impl<S> Watched<S> {
    /// Notes since when the peer takes no more bytes.
    fn noted<T>(&self, poll: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        let mut state = self.activity.state();
        match poll {
            Poll::Pending => drop(state.write_blocked.get_or_insert_with(Instant::now)),
            Poll::Ready(_) => state.write_blocked = None,
        }
        poll
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let poll = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.noted(poll)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let poll = Pin::new(&mut self.stream).poll_flush(context);
        self.noted(poll)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let poll = Pin::new(&mut self.stream).poll_shutdown(context);
        self.noted(poll)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let poll = Pin::new(&mut self.stream).poll_write_vectored(context, slices);
        self.noted(poll)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
