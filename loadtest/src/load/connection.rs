//! Connections: opened, used by whoever has a request, and opened anew when they are lost.

use std::error::Error;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::{TrySendError, http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::ClientConfig;
use tokio::net::TcpStream;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{sleep, timeout, timeout_at};
use tokio_rustls::TlsConnector;

use crate::recording::Kind;
use crate::scenario::Protocol;
use crate::target::Target;
use crate::thread::{Job, Outcome, Thread};

/// Requests at once on an HTTP/2 connection; the service allows 64, and others 100.
pub const STREAMS: usize = 64;

/// How long connecting may take, TLS handshake included.
const CONNECT: Duration = Duration::from_secs(2);

/// Between two attempts to connect.
const AGAIN: Duration = Duration::from_millis(50);

type Body = Full<Bytes>;

/// Sends requests on one connection.
pub enum Sender {
    Http1(http1::SendRequest<Body>),
    Http2(http2::SendRequest<Body>),
}

impl Sender {
    /// Sends one, and waits for the head of its answer.
    pub async fn send(&mut self, request: Request<Body>) -> Result<Response<Incoming>, TrySendError<Request<Body>>> {
        match self {
            Self::Http1(sender) => sender.try_send_request(request).await,
            Self::Http2(sender) => sender.try_send_request(request).await,
        }
    }

    /// Waits until another one can be sent.
    pub async fn ready(&mut self) -> bool {
        match self {
            Self::Http1(sender) => sender.ready().await.is_ok(),
            Self::Http2(sender) => sender.ready().await.is_ok(),
        }
    }

    fn is_closed(&self) -> bool {
        match self {
            Self::Http1(sender) => sender.is_closed(),
            Self::Http2(sender) => sender.is_closed(),
        }
    }
}

/// Opens a connection. What drives it is a task of its own; `ended` is called when that ends.
pub async fn open(
    target: &Target,
    frontend: usize,
    tls: &Arc<ClientConfig>,
    protocol: Protocol,
    ended: impl FnOnce() + 'static,
) -> io::Result<(Sender, JoinHandle<()>)> {
    let connecting = async {
        let stream = TcpStream::connect(target.address(frontend)).await?;
        stream.set_nodelay(true)?;
        TlsConnector::from(Arc::clone(tls)).connect(target.server_name.clone(), stream).await
    };
    let stream = TokioIo::new(timeout(CONNECT, connecting).await??);
    Ok(match protocol {
        Protocol::Http1 => {
            let (sender, connection) = http1::handshake(stream).await.map_err(io::Error::other)?;
            let driver = tokio::task::spawn_local(async move {
                let _ = connection.await;
                ended();
            });
            (Sender::Http1(sender), driver)
        }
        Protocol::Http2 => {
            let mut builder = http2::Builder::new(TokioExecutor::new());
            builder.initial_max_send_streams(STREAMS).initial_connection_window_size(1 << 20);
            let (sender, connection) = builder.handshake(stream).await.map_err(io::Error::other)?;
            let driver = tokio::task::spawn_local(async move {
                let _ = connection.await;
                ended();
            });
            (Sender::Http2(sender), driver)
        }
    })
}

/// Keeps one connection to a frontend until the run is over.
pub async fn keep(
    thread: Rc<Thread>,
    target: Arc<Target>,
    frontend: usize,
    tls: Arc<ClientConfig>,
    protocol: Protocol,
) {
    while !thread.has_ended() {
        let this = Rc::clone(&thread);
        let Ok((sender, driver)) = open(&target, frontend, &tls, protocol, move || this.disconnected()).await else {
            sleep(AGAIN).await;
            continue;
        };
        thread.connected();
        match sender {
            Sender::Http1(_) => work(Rc::clone(&thread), sender).await,
            Sender::Http2(sender) => {
                let mut streams = JoinSet::new();
                for _ in 0..STREAMS {
                    streams.spawn_local(work(Rc::clone(&thread), Sender::Http2(sender.clone())));
                }
                drop(sender);
                while streams.join_next().await.is_some() {}
            }
        }
        if protocol == Protocol::Http1 && !driver.is_finished() {
            driver.abort();
            thread.disconnected();
        }
    }
}

/// Sends one request after the other for as long as the connection is open.
async fn work(thread: Rc<Thread>, mut sender: Sender) {
    while let Some(job) = thread.take(|| !sender.is_closed()).await {
        match timeout_at(thread.deadline(&job).into(), exchange(&thread, &job, &mut sender)).await {
            Ok(Exchange::Answered(outcome)) => thread.finish(job, outcome),
            Ok(Exchange::NotSent) => return thread.give_back(job),
            Ok(Exchange::Lost) => return thread.finish(job, Outcome::none(Kind::Lost)),
            Err(_) => {
                thread.finish(job, Outcome::none(Kind::Timeout));
                // On HTTP/1.1 the answer may still come, and would be taken for the next one's.
                if matches!(sender, Sender::Http1(_)) {
                    return;
                }
            }
        }
        if !sender.ready().await {
            return;
        }
    }
}

enum Exchange {
    Answered(Outcome),
    /// The connection was closed before: any client would send it again.
    NotSent,
    Lost,
}

async fn exchange(thread: &Thread, job: &Job, sender: &mut Sender) -> Exchange {
    let response = match sender.send(thread.request(job)).await {
        Ok(response) => response,
        Err(mut error) => {
            let unsent = error.take_message().is_some() || is_refused(&error.into_error());
            return if unsent { Exchange::NotSent } else { Exchange::Lost };
        }
    };
    let status = response.status().as_u16();
    let Ok(body) = whole(response.into_body()).await else { return Exchange::Lost };
    let kind = match status {
        200 if thread.ask(job).is_right(&body) => Kind::Right,
        200 => Kind::Wrong,
        _ => Kind::of_status(status),
    };
    let retry_after = if thread.retry.is_some() && kind.is_shed() { retry_delay(&body) } else { None };
    Exchange::Answered(Outcome { kind, status: Some(status), retry_after })
}

/// Whether an HTTP/2 server has said that it has not looked at the request.
fn is_refused(error: &hyper::Error) -> bool {
    let Some(error) = error.source().and_then(|source| source.downcast_ref::<h2::Error>()) else { return false };
    error.reason() == Some(h2::Reason::REFUSED_STREAM)
        || (error.is_go_away() && error.reason() == Some(h2::Reason::NO_ERROR))
}

/// An answer's body, without a copy if it comes in one piece.
async fn whole(mut body: Incoming) -> Result<Bytes, hyper::Error> {
    let mut whole = Bytes::new();
    while let Some(frame) = body.frame().await {
        if let Ok(data) = frame?.into_data() {
            whole = if whole.is_empty() { data } else { [whole, data].concat().into() };
        }
    }
    Ok(whole)
}

/// `"retryDelay": "0.05s"`, wherever it is.
fn retry_delay(body: &[u8]) -> Option<Duration> {
    let text = std::str::from_utf8(body).ok()?;
    let (_, rest) = text.split_once("\"retryDelay\"")?;
    let value = rest.split('"').nth(1)?.strip_suffix('s')?;
    Duration::try_from_secs_f64(value.parse().ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_delay_of_retry_info_is_read() {
        let body =
            br#"{"code":8,"details":[{"@type":"type.googleapis.com/google.rpc.RetryInfo","retryDelay":"0.05s"}]}"#;
        assert_eq!(retry_delay(body), Some(Duration::from_millis(50)));
        assert_eq!(retry_delay(b"{\"code\":14}"), None);
        assert_eq!(retry_delay(b"{\"retryDelay\":\"-1s\"}"), None);
    }
}
