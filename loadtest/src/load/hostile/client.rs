//! What all kinds share: how they connect, what they ask for, and what is counted.

use std::cell::Cell;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::pace::Pace;
use crate::scenario::Protocol;
use crate::target::{Target, Tokens};

/// For a connection to be open, TLS handshake and all.
const PATIENCE: Duration = Duration::from_secs(10);

/// Whom the hostile clients are: a caller in good standing, which is the worst case, and nobody of the scenario's.
const CALLER: &str = "service-999999999999@gcp-sa-ekms.iam.gserviceaccount.com";

/// All clients of one entry in the scenario. Its functions and those of the kinds end with an error when the service has ended the connection.
pub struct Client {
    address: SocketAddr,
    server_name: ServerName<'static>,
    http1: TlsConnector,
    http2: TlsConnector,
    /// In Host, or :authority.
    pub authority: String,
    /// Of a good wrap.
    pub path: String,
    /// With `Bearer`.
    pub bearer: String,
    /// What each connection does a second.
    pub rate: f64,
    pub counts: Counts,
}

/// What has happened.
#[derive(Default)]
pub struct Counts {
    pub opened: Cell<u64>,
    /// Connections that could not be opened.
    pub refused: Cell<u64>,
    /// Connections that the service has ended, those that could not be opened among them.
    pub failed: Cell<u64>,
    /// What was sent, or read, at the rate.
    pub pieces: Cell<u64>,
}

/// One more, or several.
pub fn add(count: &Cell<u64>, more: u64) {
    count.set(count.get() + more);
}

impl Client {
    /// Of a frontend, from 0, and a key.
    pub fn new(target: &Target, frontend: usize, tokens: &Tokens, key: &str, rate: f64) -> Self {
        Self {
            address: target.address(frontend),
            server_name: target.server_name.clone(),
            http1: target.tls(Protocol::Http1).into(),
            http2: target.tls(Protocol::Http2).into(),
            authority: target.authority.to_string(),
            path: format!("/{key}:wrap"),
            bearer: format!("Bearer {}", tokens.token(CALLER)),
            rate,
            counts: Counts::default(),
        }
    }

    /// A TCP connection that is reset when it is dropped: one that waits for its last packets would take a port of this machine for a minute.
    pub async fn tcp(&self) -> io::Result<TcpStream> {
        self.counted(self.connect(None)).await
    }

    /// After the TLS handshake.
    pub async fn tls(&self, protocol: Protocol) -> io::Result<TlsStream<TcpStream>> {
        self.counted(self.handshake(protocol, None)).await
    }

    /// The same over HTTP/1.1, with room for so many bytes that nobody has read.
    pub async fn tls_with_small_buffer(&self, bytes: u32) -> io::Result<TlsStream<TcpStream>> {
        self.counted(self.handshake(Protocol::Http1, Some(bytes))).await
    }

    async fn counted<T>(&self, opening: impl Future<Output = io::Result<T>>) -> io::Result<T> {
        let opened = timeout(PATIENCE, opening).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
        add(if opened.is_ok() { &self.counts.opened } else { &self.counts.refused }, 1);
        opened
    }

    async fn connect(&self, receive_buffer: Option<u32>) -> io::Result<TcpStream> {
        let socket = if self.address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        socket.set_zero_linger()?;
        if let Some(bytes) = receive_buffer {
            socket.set_recv_buffer_size(bytes)?;
        }
        let stream = socket.connect(self.address).await?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }

    async fn handshake(&self, protocol: Protocol, receive_buffer: Option<u32>) -> io::Result<TlsStream<TcpStream>> {
        let connector = if protocol == Protocol::Http2 { &self.http2 } else { &self.http1 };
        connector.connect(self.server_name.clone(), self.connect(receive_buffer).await?).await
    }

    /// The head of a good wrap, but for what says how long its body is.
    pub fn head(&self, length: &str) -> Vec<u8> {
        let Self { path, authority, bearer, .. } = self;
        format!(
            "POST {path} HTTP/1.1\r\nHost: {authority}\r\nAuthorization: {bearer}\r\nContent-Type: application/json\r\n{length}\r\n\r\n"
        )
        .into_bytes()
    }

    /// Sends pieces at the rate, each made from its number, and reads nothing.
    pub async fn flood<W: AsyncWrite + Unpin>(&self, to: &mut W, piece: impl Fn(u64) -> Vec<u8>) -> io::Result<()> {
        let (mut pace, mut number) = (Pace::new(self.rate), 0);
        loop {
            let due = pace.due().await;
            let bytes: Vec<u8> = (number..number + due).flat_map(&piece).collect();
            send(to, &bytes).await?;
            number += due;
            add(&self.counts.pieces, due);
        }
    }

    /// The same, but reads what is answered, so that the end of the connection is seen at once.
    pub async fn flood_and_read<S>(&self, stream: S, piece: impl Fn(u64) -> Vec<u8>) -> io::Result<()>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let (mut from, mut to) = tokio::io::split(stream);
        tokio::select! {
            ended = until_closed(&mut from) => ended,
            ended = self.flood(&mut to, piece) => ended,
        }
    }
}

/// Sends it now.
pub async fn send<W: AsyncWrite + Unpin>(to: &mut W, bytes: &[u8]) -> io::Result<()> {
    to.write_all(bytes).await?;
    to.flush().await
}

/// Waits for the service to end the connection, whatever it sends before that.
pub async fn until_closed<R: AsyncRead + Unpin>(from: &mut R) -> io::Result<()> {
    let mut buffer = [0; 4096];
    loop {
        if from.read(&mut buffer).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
}
