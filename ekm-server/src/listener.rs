//! The accept loop: how many connections there may be, and how they end.

use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::Router;
use tokio::net::{TcpListener, TcpSocket, TcpStream, UnixStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use crate::config::Limits;
use crate::connection::{self, Activity, Clocks, Drain, Peer};
use crate::metrics::Metrics;
use crate::places::Places;
use crate::socket_file::SocketFile;

/// Connections that the kernel keeps until they are accepted.
const BACKLOG: u32 = 1024;

/// What TLS takes of answers before the network does: a record.
const UNSENT_BYTES: usize = 16 * 1024;

/// A listening socket and what to do with its connections.
pub struct Listener {
    socket: Socket,
    router: Router,
    shared: Arc<Shared>,
}

enum Socket {
    Tcp(TcpListener, Option<TlsAcceptor>),
    Unix(SocketFile),
}

enum Accepted {
    Tcp(TcpStream, SocketAddr, Option<TlsAcceptor>),
    Unix(UnixStream),
}

struct Shared {
    clocks: Clocks,
    handshake_timeout: Duration,
    places: Mutex<Places>,
    name: &'static str,
    metrics: Arc<Metrics>,
}

impl Listener {
    /// Binds the address, for the runtime that this is called in. Without `tls` it speaks plain HTTP/1.1. Metrics show it under `name`.
    ///
    /// Connections on which nobody has shown a good token are bounded only by [`Self::bound_strangers`].
    pub fn bind(
        name: &'static str,
        address: SocketAddr,
        tls: Option<TlsAcceptor>,
        router: Router,
        limits: &Limits,
        metrics: Arc<Metrics>,
    ) -> std::io::Result<Self> {
        let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        let socket = Socket::Tcp(socket.listen(BACKLOG)?, tls);
        Ok(Self { socket, router, shared: Arc::new(Shared::new(name, limits, metrics)) })
    }

    /// Speaks plain HTTP/1.1 on a Unix socket; requests carry the peer's user id.
    pub fn on_socket_file(
        name: &'static str,
        socket: SocketFile,
        router: Router,
        limits: &Limits,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self { socket: Socket::Unix(socket), router, shared: Arc::new(Shared::new(name, limits, metrics)) }
    }

    /// Lets only so many connections wait for a first request with a good token.
    pub fn bound_strangers(self, max_strangers: usize) -> Self {
        self.shared.places().max_strangers = max_strangers;
        self
    }

    /// The address, with the port that port 0 became; a Unix socket has none.
    pub fn address(&self) -> std::io::Result<SocketAddr> {
        match &self.socket {
            Socket::Tcp(socket, _) => socket.local_addr(),
            Socket::Unix(_) => Err(std::io::ErrorKind::Unsupported.into()),
        }
    }

    /// Accepts until `drain` says stop, then lets every connection finish its requests. Returns how many connections were
    /// cut because they did not finish within `patience`.
    pub async fn run(self, mut drain: watch::Receiver<Drain>, patience: Duration) -> usize {
        let mut tasks = JoinSet::new();
        let mut number = 0;
        let each = drain.clone();
        loop {
            tokio::select! {
                accepted = self.socket.accept() => match accepted {
                    Ok(accepted) => {
                        number += 1;
                        self.start(&mut tasks, number, accepted, each.clone());
                    }
                    // Out of file descriptors, mostly: open connections are served meanwhile.
                    Err(error) => {
                        tracing::warn!(%error, "cannot accept");
                        tokio::time::sleep(Duration::from_millis(50)).await;
                    }
                },
                Some(_) = tasks.join_next() => {}
                () = connection::reached(&mut drain, Drain::Draining) => break,
            }
        }
        for accepted in self.socket.waiting() {
            number += 1;
            self.start(&mut tasks, number, accepted, each.clone());
        }
        drop(self.socket);
        let finished = async { while tasks.join_next().await.is_some() {} };
        let _ = tokio::time::timeout(patience, finished).await;
        tasks.len()
    }

    fn start(&self, tasks: &mut JoinSet<()>, number: u64, accepted: Accepted, drain: watch::Receiver<Drain>) {
        let activity = Arc::new(Activity::default());
        if !self.shared.admit(number, &activity) {
            return;
        }
        let (shared, router) = (Arc::clone(&self.shared), self.router.clone());
        let open = Open { shared: Arc::clone(&shared), number };
        tasks.spawn(async move {
            // On the heap, since select would have it twice.
            let served = Box::pin(async {
                let (stream, peer, tls) = match accepted {
                    Accepted::Unix(stream) => {
                        let uid = stream.peer_cred().ok().map(|credentials| credentials.uid());
                        let peer = Peer { uid, ..Peer::default() };
                        let activity = Arc::clone(&activity);
                        return connection::serve(stream, false, peer, router, activity, shared.clocks, drain).await;
                    }
                    Accepted::Tcp(stream, address, tls) => {
                        let _ = stream.set_nodelay(true);
                        let connection = Some(Arc::clone(&activity));
                        (stream, Peer { address: Some(address), connection, ..Peer::default() }, tls)
                    }
                };
                let Some(tls) = tls else {
                    let activity = Arc::clone(&activity);
                    return connection::serve(stream, false, peer, router, activity, shared.clocks, drain).await;
                };
                match shared.handshake(&tls, stream).await {
                    Ok(mut stream) => {
                        stream.get_mut().1.set_buffer_limit(Some(UNSENT_BYTES));
                        let tls = stream.get_ref().1;
                        let http2 = tls.alpn_protocol() == Some(b"h2");
                        let leaf = tls.peer_certificates().and_then(<[_]>::first);
                        let peer = Peer { certificate: leaf.map(|leaf| Arc::new(leaf.clone().into_owned())), ..peer };
                        activity.restart();
                        connection::serve(stream, http2, peer, router, Arc::clone(&activity), shared.clocks, drain)
                            .await
                    }
                    Err(reason) => reason,
                }
            });
            let reason = tokio::select! {
                biased;
                reason = served => reason,
                reason = activity.evicted() => reason,
            };
            shared.count_closed(reason);
            drop(open);
        });
    }
}

impl Socket {
    async fn accept(&self) -> std::io::Result<Accepted> {
        match self {
            Self::Tcp(socket, tls) => {
                let (stream, address) = socket.accept().await?;
                Ok(Accepted::Tcp(stream, address, tls.clone()))
            }
            Self::Unix(socket) => Ok(Accepted::Unix(socket.accept().await?)),
        }
    }

    /// Who has connected and was not accepted yet: when a socket is closed, the kernel resets them. The runtime may not have heard of the last
    /// ones, so the kernel is asked.
    fn waiting(&self) -> Vec<Accepted> {
        let Self::Tcp(socket, tls) = self else { return Vec::new() };
        let Ok(same) = socket.as_fd().try_clone_to_owned() else { return Vec::new() };
        let same = std::net::TcpListener::from(same);
        let accepted = std::iter::from_fn(|| same.accept().ok()).take(BACKLOG as usize);
        let accepted = accepted.filter_map(|(stream, address)| {
            stream.set_nonblocking(true).ok()?;
            Some(Accepted::Tcp(TcpStream::from_std(stream).ok()?, address, tls.clone()))
        });
        accepted.collect()
    }
}

impl Shared {
    fn new(name: &'static str, limits: &Limits, metrics: Arc<Metrics>) -> Self {
        Self {
            clocks: Clocks::new(limits),
            handshake_timeout: Duration::from_millis(limits.handshake_timeout_ms),
            places: Mutex::new(Places::new(limits)),
            name,
            metrics,
        }
    }

    fn places(&self) -> MutexGuard<'_, Places> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Enters a connection into the list, unless there is no place for it.
    fn admit(&self, number: u64, activity: &Arc<Activity>) -> bool {
        let admitted = self.places().admit(number, activity);
        if admitted {
            self.metrics.connections.with_label_values(&[self.name]).inc();
        } else {
            self.count_closed("refused");
        }
        admitted
    }

    fn count_closed(&self, reason: &str) {
        self.metrics.connections_closed.with_label_values(&[self.name, reason]).inc();
    }

    async fn handshake(
        &self,
        tls: &TlsAcceptor,
        stream: TcpStream,
    ) -> Result<tokio_rustls::server::TlsStream<TcpStream>, &'static str> {
        match tokio::time::timeout(self.handshake_timeout, tls.accept(stream)).await {
            Ok(Ok(stream)) => Ok(stream),
            Ok(Err(error)) => {
                tracing::debug!(%error, "handshake failed");
                Err("handshake_error")
            }
            Err(_) => Err("handshake_timeout"),
        }
    }
}

/// A place in the list of open connections.
struct Open {
    shared: Arc<Shared>,
    number: u64,
}

impl Drop for Open {
    fn drop(&mut self) {
        self.shared.metrics.connections.with_label_values(&[self.shared.name]).dec();
        self.shared.places().remove(self.number);
    }
}
