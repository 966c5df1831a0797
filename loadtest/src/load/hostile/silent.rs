//! Those that hold a connection and say nothing.

use std::io;

use tokio::io::AsyncReadExt;

use super::client::{Client, send, until_closed};
use crate::scenario::Protocol;

/// Not even the TLS handshake.
pub async fn before_tls(client: &Client) -> io::Result<()> {
    until_closed(&mut client.tcp().await?).await
}

/// No request.
pub async fn after_tls(client: &Client) -> io::Result<()> {
    until_closed(&mut client.tls(Protocol::Http1).await?).await
}

/// No second request. The first one is a load balancer's probe, which costs nothing behind HTTP.
pub async fn after_an_answer(client: &Client) -> io::Result<()> {
    let mut stream = client.tls(Protocol::Http1).await?;
    send(&mut stream, format!("GET /readyz HTTP/1.1\r\nHost: {}\r\n\r\n", client.authority).as_bytes()).await?;
    stream.read_u8().await?;
    until_closed(&mut stream).await
}
