//! HTTP/1.1 on a connection that mostly rests. hyper keeps 16 KiB of buffers for as long as it has a connection, three quarters of what that
//! holds; so it has one only from the first byte of a request until there has been none for a while.

use std::error::Error;
use std::future::Future;
use std::mem;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use hyper::body::{Body, Incoming};
use hyper::server::conn::http1::{Builder, Connection};
use hyper::service::HttpService;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};

use crate::connection::{Activity, Watched};

/// A connection, from its first byte to its last.
pub struct Resting<S, F: HttpService<Incoming>> {
    builder: Builder,
    activity: Arc<Activity>,
    state: State<S, F>,
}

enum State<S, F: HttpService<Incoming>> {
    Rests(TokioIo<Watched<S>>, F),
    Serves(Box<Connection<TokioIo<Watched<S>>, F>>),
    /// Never seen from outside.
    Changes,
}

impl<S, F, B> Resting<S, F>
where
    S: AsyncRead + AsyncWrite + Unpin,
    F: HttpService<Incoming, ResBody = B> + Unpin,
    F::Error: Into<Box<dyn Error + Send + Sync>>,
    B: Body + 'static,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    /// Serves what comes.
    pub fn new(builder: Builder, stream: Watched<S>, activity: Arc<Activity>, service: F) -> Self {
        Self { builder, activity, state: State::Rests(TokioIo::new(stream), service) }
    }

    /// Ends it behind the request under way.
    pub fn graceful_shutdown(mut self: Pin<&mut Self>) {
        Pin::new(self.wake()).graceful_shutdown();
    }

    fn wake(&mut self) -> &mut Connection<TokioIo<Watched<S>>, F> {
        self.state = match mem::replace(&mut self.state, State::Changes) {
            State::Rests(io, service) => State::Serves(Box::new(self.builder.serve_connection(io, service))),
            serves => serves,
        };
        match &mut self.state {
            State::Serves(connection) => connection,
            State::Rests(..) | State::Changes => unreachable!("it was just made"),
        }
    }

    /// Nothing is lost: all has been sent, and what hyper has read of a next request is read again.
    fn rest(&mut self) {
        if let State::Serves(connection) = mem::replace(&mut self.state, State::Changes) {
            let mut parts = connection.into_parts();
            parts.io.inner_mut().unread(parts.read_buf);
            self.state = State::Rests(parts.io, parts.service);
        }
    }
}

impl<S, F, B> Future for Resting<S, F>
where
    S: AsyncRead + AsyncWrite + Unpin,
    F: HttpService<Incoming, ResBody = B> + Unpin,
    F::Error: Into<Box<dyn Error + Send + Sync>>,
    B: Body + 'static,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    type Output = hyper::Result<()>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        loop {
            if let State::Rests(io, _) = &mut self.state {
                ready!(io.inner_mut().poll_readable(context));
            }
            // Also for its end, or an error: hyper knows how to close.
            let outcome = Pin::new(self.wake()).poll(context);
            if outcome.is_ready() || !self.activity.may_rest() {
                return outcome;
            }
            self.rest();
        }
    }
}
