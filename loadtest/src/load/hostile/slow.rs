//! Those that send, or read, for ever.

use std::io;

use ekm_tests::base64;
use tokio::io::AsyncReadExt;

use super::client::{Client, add, send};
use super::pace::Pace;
use crate::scenario::Protocol;

/// More than any answer needs.
const BODY_BYTES: usize = 4096;

/// What Cloud KMS takes at most.
const PLAINTEXT_BYTES: usize = 64 * 1024;

/// As small as the kernel lets it be.
const BUFFER_BYTES: u32 = 4096;

/// More than fits between a server that writes and a client that does not read.
const REQUESTS: usize = 100;

/// A head, byte by byte, with ever more header lines.
pub async fn head(client: &Client) -> io::Result<()> {
    let stream = client.tls(Protocol::Http1).await?;
    let start = format!("POST {} HTTP/1.1\r\nHost: {}\r\n", client.path, client.authority).into_bytes();
    let more = b"A: b\r\n";
    let byte = |number: u64| {
        let number = number as usize;
        vec![start.get(number).copied().unwrap_or_else(|| more[(number - start.len()) % more.len()])]
    };
    client.flood_and_read(stream, byte).await
}

/// A body of some length, byte by byte.
pub async fn body(client: &Client) -> io::Result<()> {
    let mut stream = client.tls(Protocol::Http1).await?;
    send(&mut stream, &client.head(&format!("Content-Length: {BODY_BYTES}"))).await?;
    client.flood_and_read(stream, |_| vec![b' ']).await
}

/// A chunked body, chunk by chunk.
pub async fn endless_body(client: &Client) -> io::Result<()> {
    let mut stream = client.tls(Protocol::Http1).await?;
    send(&mut stream, &client.head("Transfer-Encoding: chunked")).await?;
    let chunk = [&b"400\r\n"[..], &[b' '; 0x400], b"\r\n"].concat();
    client.flood_and_read(stream, |_| chunk.clone()).await
}

/// Many requests with long answers, of which only some bytes are read.
pub async fn reader(client: &Client) -> io::Result<()> {
    let stream = client.tls_with_small_buffer(BUFFER_BYTES).await?;
    let (mut from, mut to) = tokio::io::split(stream);
    let body = format!("{{\"plaintext\":\"{}\"}}", base64(vec![b'p'; PLAINTEXT_BYTES]));
    let request = [client.head(&format!("Content-Length: {}", body.len())), body.into_bytes()].concat();
    let asking = async {
        for _ in 0..REQUESTS {
            send(&mut to, &request).await?;
        }
        std::future::pending().await
    };
    let reading = async {
        let mut pace = Pace::new(client.rate);
        loop {
            for _ in 0..pace.due().await {
                from.read_u8().await?;
                add(&client.counts.pieces, 1);
            }
        }
    };
    tokio::select! {
        ended = asking => ended,
        ended = reading => ended,
    }
}
