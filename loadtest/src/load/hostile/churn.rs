//! Those that come and go.

use std::io;

use super::client::{Client, send, until_closed};
use crate::scenario::Protocol;

/// Requests that break the rules, in a way each.
const MALFORMED: [&str; 8] = [
    "GET / HTTP/9.9\r\n\r\n",
    "\u{16}\u{3}\u{1}garbage\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffffff\r\n",
    "GET / HTTP/1.1\r\nHost : a\r\n\r\n",
    "GET / HTTP/1.1\nHost: a\u{0}\n\n",
];

/// Connects, and is gone.
pub async fn reset(client: &Client) -> io::Result<()> {
    client.tcp().await.map(drop)
}

/// The same after the TLS handshake.
pub async fn reset_after_tls(client: &Client) -> io::Result<()> {
    client.tls(Protocol::Http1).await.map(drop)
}

/// What is no TLS, now and then with the first bytes of it.
pub async fn garbage(client: &Client) -> io::Result<()> {
    let mut stream = client.tcp().await?;
    let mut bytes = [0; 512];
    fastrand::fill(&mut bytes);
    if fastrand::bool() {
        bytes[..6].copy_from_slice(&[22, 3, 1, 1, 250, 1]);
    }
    send(&mut stream, &bytes).await?;
    until_closed(&mut stream).await
}

/// One such request.
pub async fn malformed(client: &Client) -> io::Result<()> {
    let mut stream = client.tls(Protocol::Http1).await?;
    send(&mut stream, MALFORMED[fastrand::usize(..MALFORMED.len())].as_bytes()).await?;
    until_closed(&mut stream).await
}
