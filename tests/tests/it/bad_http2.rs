//! Bad HTTP/2 (class 18), as raw frames over TLS: no well-behaved library would send them.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;

use ekm_tests::frames::*;
use ekm_tests::{Ekm, base64, tls_config};
use rustls::pki_types::ServerName;
use rustls::{ClientConnection, StreamOwned};
use serde_json::json;

use crate::table::{PATIENCE, PLAINTEXT, WRAP, assert_serves, good_body, is_closed, serve_with};

/// The head of a good wrap.
fn good_head(token: &str) -> Vec<u8> {
    head_with(token, &[])
}

fn head_with(token: &str, more: &[(&str, &str)]) -> Vec<u8> {
    let bearer = format!("Bearer {token}");
    let fields = [
        (":method", "POST"),
        (":scheme", "https"),
        (":authority", "localhost"),
        (":path", WRAP),
        ("authorization", &bearer),
        ("content-type", "application/json"),
    ];
    block(&[&fields[..], more].concat())
}

/// Head and body in one frame each.
fn request(stream: u32, head: &[u8], body: &[u8]) -> Vec<u8> {
    [frame(HEADERS, END_HEADERS, stream, head), frame(DATA, END_STREAM, stream, body)].concat()
}

/// An HTTP/2 connection without rules.
struct Frames {
    stream: StreamOwned<ClientConnection, TcpStream>,
    unread: Vec<u8>,
}

/// How a stream went.
#[derive(Debug, PartialEq)]
enum Outcome {
    Answered(String),
    Reset(u32),
    /// GOAWAY with an error, or only the end of the connection.
    ConnectionOver,
}

impl Frames {
    /// With preface and settings. The server's settings are acknowledged and its greater window is awaited, so that a
    /// row breaks flow control only if it means to.
    fn open(ekm: &Ekm) -> Self {
        let mut frames = Self::open_silent(ekm);
        frames.send(&[PREFACE, &frame(SETTINGS, 0, 0, &[])].concat()).unwrap();
        while !matches!(frames.next().unwrap(), (SETTINGS, 0, ..)) {}
        while !matches!(frames.next().unwrap(), (WINDOW_UPDATE, _, 0, _)) {}
        frames.send(&frame(SETTINGS, ACK, 0, &[])).unwrap();
        frames
    }

    fn open_silent(ekm: &Ekm) -> Self {
        let config = Arc::new(tls_config(&ekm.ready.ca_file, &["h2"]));
        let client = ClientConnection::new(config, ServerName::try_from("localhost").unwrap()).unwrap();
        let socket = TcpStream::connect(ekm.address()).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket.set_write_timeout(Some(PATIENCE)).unwrap();
        socket.set_nodelay(true).unwrap();
        let mut stream = StreamOwned::new(client, socket);
        while stream.conn.is_handshaking() {
            stream.conn.complete_io(&mut stream.sock).unwrap();
        }
        assert_eq!(stream.conn.alpn_protocol(), Some(&b"h2"[..]));
        Self { stream, unread: Vec::new() }
    }

    fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes).and_then(|()| self.stream.flush())
    }

    /// Kind, flags, stream, payload.
    fn next(&mut self) -> io::Result<(u8, u8, u32, Vec<u8>)> {
        loop {
            if let Some((head, rest)) = self.unread.split_first_chunk::<9>() {
                let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
                if rest.len() >= length {
                    let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]) & 0x7fff_ffff;
                    let frame = (head[3], head[4], stream, rest[..length].to_vec());
                    self.unread.drain(..9 + length);
                    return Ok(frame);
                }
            }
            // Not by StreamOwned, which would first send what is left to send, and fail if the server has closed.
            let mut buffer = [0; 16 * 1024];
            match self.stream.conn.reader().read(&mut buffer) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(read) => self.unread.extend_from_slice(&buffer[..read]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if self.stream.conn.read_tls(&mut self.stream.sock)? == 0 {
                        return Err(io::ErrorKind::UnexpectedEof.into());
                    }
                    self.stream.conn.process_new_packets().map_err(io::Error::other)?;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Reads until this stream is over.
    fn outcome(&mut self, stream: u32) -> Outcome {
        let mut body = Vec::new();
        loop {
            match self.next() {
                Ok((DATA | HEADERS, flags, id, payload)) if id == stream => {
                    // The head is HPACK; the body tells enough.
                    if payload.starts_with(b"{") || !body.is_empty() {
                        body.extend(payload);
                    }
                    if flags & END_STREAM != 0 {
                        return Outcome::Answered(String::from_utf8(body).unwrap());
                    }
                }
                Ok((RST_STREAM, _, id, payload)) if id == stream => {
                    return Outcome::Reset(u32::from_be_bytes(payload.try_into().unwrap()));
                }
                Ok((GOAWAY, _, _, payload)) if payload[4..8] != [0; 4] => return Outcome::ConnectionOver,
                Ok(_) => {}
                Err(error) => {
                    assert!(is_closed(&error), "{error}");
                    return Outcome::ConnectionOver;
                }
            }
        }
    }

    /// Whether the server closes, whatever it sends before that.
    fn is_closed(&mut self) -> bool {
        loop {
            if let Err(error) = self.next() {
                return is_closed(&error);
            }
        }
    }
}

/// What has to come back on stream 1.
#[derive(Clone, Copy, Debug)]
enum Expect {
    Good,
    /// An answer with this text.
    Says(&'static str),
    /// Either the stream is reset, or it is answered with an empty 4xx by the HTTP library.
    StreamOver,
    ConnectionOver,
}

fn row(ekm: &mut Ekm, name: &str, frames: impl AsRef<[u8]>, expect: Expect) {
    let mut connection = Frames::open(ekm);
    // The server may close before it has taken everything.
    let _ = connection.send(frames.as_ref());
    let outcome = connection.outcome(1);
    let fits = match (expect, &outcome) {
        (Expect::Good, Outcome::Answered(body)) => body.contains("wrappedBlob"),
        (Expect::Says(message), Outcome::Answered(body)) => body.contains("\"code\":") && body.contains(message),
        (Expect::StreamOver, Outcome::Reset(_)) => true,
        (Expect::StreamOver, Outcome::Answered(body)) => body.is_empty(),
        (Expect::ConnectionOver, Outcome::ConnectionOver) => connection.is_closed(),
        _ => false,
    };
    assert!(fits, "class 18, {name}: {outcome:?} instead of {expect:?}\n{}", ekm.log());
    assert!(ekm.is_running(), "class 18, {name} ended the service:\n{}", ekm.log());
}

fn finish(ekm: &mut Ekm) {
    assert!(ekm.is_running());
    assert_serves(&mut ekm.connect(), &ekm.ready.token);
    assert!(!ekm.log().contains("panic"), "{}", ekm.log());
    assert_eq!(ekm.metric("ekm_panics_total"), 0.0);
    ekm.assert_not_leaked(&[&ekm.ready.token, PLAINTEXT, &base64(PLAINTEXT)]);
}

#[test]
fn frames_that_break_the_protocol_end_the_stream_or_the_connection() {
    let mut ekm = Ekm::dev(&[]);
    let ekm = &mut ekm;
    let token = ekm.ready.token.clone();
    let body = good_body().into_bytes();
    let head = good_head(&token);
    let good = request(1, &head, &body);
    let before = |bytes: Vec<u8>| [&bytes[..], &good].concat();
    let headers = |flags: u8, stream: u32| frame(HEADERS, flags, stream, &head);
    use Expect::{ConnectionOver, Good, Says, StreamOver};

    row(ekm, "a good request, the yardstick", &good, Good);
    let bytes: Vec<u8> = body.iter().flat_map(|&byte| frame(DATA, 0, 1, &[byte])).collect();
    let bytes = [headers(END_HEADERS, 1), bytes, frame(DATA, END_STREAM, 1, &[])].concat();
    row(ekm, "a body in frames of 1 byte", bytes, Good);
    row(ekm, "a frame of an unknown kind", before(frame(0x42, 0xff, 0, b"x")), Good);
    row(ekm, "an unknown setting", before(setting(0x4242, 1)), Good);
    let padded = frame(DATA, END_STREAM | PADDED, 1, &[&[3], &body[..], &[0; 3]].concat());
    row(ekm, "padding", [headers(END_HEADERS, 1), padded].concat(), Good);
    let trailers = frame(HEADERS, END_HEADERS | END_STREAM, 1, &literal("a", "b"));
    row(ekm, "trailers", [headers(END_HEADERS, 1), frame(DATA, 0, 1, &body), trailers].concat(), Good);

    row(ekm, "a second preface", before(PREFACE.to_vec()), ConnectionOver);
    row(ekm, "headers on stream 0", headers(END_HEADERS, 0), ConnectionOver);
    row(ekm, "headers on an even stream", headers(END_HEADERS, 2), ConnectionOver);
    row(
        ekm,
        "headers on a stream of before",
        [headers(END_HEADERS, 5), headers(END_HEADERS, 3)].concat(),
        ConnectionOver,
    );
    row(ekm, "headers twice on one stream", [headers(END_HEADERS, 1), headers(END_HEADERS, 1)].concat(), StreamOver);
    row(ekm, "data on stream 0", frame(DATA, 0, 0, b"x"), ConnectionOver);
    row(ekm, "data on a stream that is not open", frame(DATA, 0, 7, b"x"), ConnectionOver);
    row(ekm, "a reset of stream 0", frame(RST_STREAM, 0, 0, &[0; 4]), ConnectionOver);
    row(ekm, "a reset of a stream that is not open", frame(RST_STREAM, 0, 7, &[0; 4]), ConnectionOver);
    row(ekm, "a reset of 3 bytes", frame(RST_STREAM, 0, 1, &[0; 3]), ConnectionOver);
    row(ekm, "a window that grows by 0", frame(WINDOW_UPDATE, 0, 0, &[0; 4]), ConnectionOver);
    row(ekm, "a window above 2^31", frame(WINDOW_UPDATE, 0, 0, &[0x7f, 0xff, 0xff, 0xff]), ConnectionOver);
    row(ekm, "settings of 5 bytes", frame(SETTINGS, 0, 0, &[0; 5]), ConnectionOver);
    row(ekm, "settings on a stream", frame(SETTINGS, 0, 1, &[]), ConnectionOver);
    row(ekm, "an acknowledgement with content", frame(SETTINGS, ACK, 0, &[0; 6]), ConnectionOver);
    row(ekm, "ENABLE_PUSH of 2", setting(2, 2), ConnectionOver);
    row(ekm, "an initial window of 2^31", setting(INITIAL_WINDOW_SIZE, 1 << 31), ConnectionOver);
    row(ekm, "frames of 1 byte at most", setting(5, 1), ConnectionOver);
    row(ekm, "a ping of 7 bytes", frame(PING, 0, 0, &[0; 7]), ConnectionOver);
    row(ekm, "a ping on a stream", frame(PING, 0, 1, &[0; 8]), ConnectionOver);
    row(ekm, "a push from the client", frame(PUSH_PROMISE, END_HEADERS, 1, &[0, 0, 0, 2]), ConnectionOver);
    row(ekm, "a continuation of nothing", frame(CONTINUATION, END_HEADERS, 1, &head), ConnectionOver);
    let between = [headers(0, 1), frame(PING, 0, 0, &[0; 8])].concat();
    row(ekm, "a ping between headers and continuation", between, ConnectionOver);
    let other = [headers(0, 1), frame(CONTINUATION, END_HEADERS, 3, &head)].concat();
    row(ekm, "a continuation of another stream", other, ConnectionOver);
    let long = [headers(END_HEADERS, 1), frame(DATA, END_STREAM, 1, &[b' '; 16_385])].concat();
    row(ekm, "a frame above the greatest size", long, ConnectionOver);
    let padding = [headers(END_HEADERS, 1), frame(DATA, PADDED, 1, &[200, 1, 2])].concat();
    row(ekm, "more padding than frame", padding, ConnectionOver);
    let itself = frame(HEADERS, END_HEADERS | 0x20, 1, &[&[0, 0, 0, 1, 9], &head[..]].concat());
    row(ekm, "a stream that depends on itself", itself, StreamOver);
    row(ekm, "HTTP/1.1 instead", format!("POST {WRAP} HTTP/1.1\r\nHost: localhost\r\n\r\n"), ConnectionOver);
    row(ekm, "zeros", [0; 1000], ConnectionOver);
    row(ekm, "ones", [0xff; 1000], ConnectionOver);

    for (name, bytes) in [
        ("index 0", &[0x80][..]),
        ("an index that there is not", &[0xff, 0x20]),
        ("a number without end", &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]),
        ("a table above its bound", &[0x3f, 0xff, 0xff, 0x7f]),
        ("a string longer than the block", &[0x00, 0x7f, 0x10, b'a']),
        ("a Huffman code that there is not", &[0x00, 0x84, 0xff, 0xff, 0xff, 0xff, 0x01, b'a']),
        ("a size change at the end", &[0x82, 0x3f]),
    ] {
        let bytes = frame(HEADERS, END_HEADERS | END_STREAM, 1, bytes);
        row(ekm, &format!("HPACK: {name}"), bytes, ConnectionOver);
    }

    let bearer = format!("Bearer {token}");
    let pseudo = [(":method", "POST"), (":scheme", "https"), (":authority", "localhost"), (":path", WRAP)];
    let rest = [("authorization", &*bearer), ("content-type", "application/json")];
    let without = |name: &str| {
        let fields: Vec<_> = pseudo.iter().chain(&rest).copied().filter(|(field, _)| *field != name).collect();
        request(1, &block(&fields), &body)
    };
    let with = |name: &str, value: &str| request(1, &head_with(&token, &[(name, value)]), &body);
    row(ekm, "no :method", without(":method"), StreamOver);
    row(ekm, "no :scheme", without(":scheme"), StreamOver);
    row(ekm, "no :path", without(":path"), StreamOver);
    // `ekm dev` answers for any host, so that none at all will do too.
    row(ekm, "no :authority", without(":authority"), Good);
    row(ekm, "a pseudo-header behind the others", with(":path", WRAP), StreamOver);
    row(ekm, "a pseudo-header of answers", with(":status", "200"), StreamOver);
    // RFC 9113 §5.4 allows to end more than the stream, and the library does where the block itself is bad.
    row(ekm, "an unknown pseudo-header", with(":x", "y"), ConnectionOver);
    row(ekm, "capitals in a name", with("Accept", "x"), ConnectionOver);
    row(ekm, "an empty name", with("", "x"), ConnectionOver);
    row(ekm, "a line end in a value", with("x", "a\r\nb: c"), ConnectionOver);
    row(ekm, "NUL in a value", with("x", "a\0b"), ConnectionOver);
    row(ekm, "Connection", with("connection", "close"), StreamOver);
    row(ekm, "Transfer-Encoding", with("transfer-encoding", "chunked"), StreamOver);
    row(ekm, "Upgrade", with("upgrade", "websocket"), StreamOver);
    row(ekm, "TE: gzip", with("te", "gzip"), StreamOver);
    row(ekm, "TE: trailers", with("te", "trailers"), Good);
    row(ekm, "a Content-Length that is too small", with("content-length", "3"), StreamOver);
    row(ekm, "a Content-Length that is too great", with("content-length", "9999"), StreamOver);
    row(ekm, "a Content-Length that is no number", with("content-length", "x"), StreamOver);
    row(ekm, "a second Host", with("host", "localhost"), Good);
    row(
        ekm,
        "Host twice",
        request(1, &head_with(&token, &[("host", "a"), ("host", "b")]), &body),
        Says("Host is there twice"),
    );
    row(ekm, "a second token", with("authorization", &bearer), Says("one bearer token"));
    row(ekm, "a compressed body", with("content-encoding", "gzip"), Says("compressed bodies are not accepted"));
    let changed = |name: &str, value: &str| {
        let fields = pseudo.map(|(field, old)| (field, if field == name { value } else { old }));
        request(1, &block(&[&fields[..], &rest].concat()), &body)
    };
    row(ekm, "method GET", changed(":method", "GET"), Says("called with POST"));
    row(ekm, "CONNECT with a path", changed(":method", "CONNECT"), StreamOver);
    row(ekm, "an unknown path", changed(":path", "/v0/keys/unknown:wrap"), Says("no key"));
    row(ekm, "a path that names nothing", changed(":path", "/v0/keys/%2e%2e:wrap"), Says("can name no key"));
    row(ekm, "an empty path", changed(":path", ""), StreamOver);
    row(ekm, "path *", changed(":path", "*"), Says("does not end with"));
    row(ekm, "a space in the path", changed(":path", "/a b:wrap"), StreamOver);
    row(ekm, "a bad token", request(1, &good_head("x"), &body), Says("one bearer token"));
    row(
        ekm,
        "a body that is too long",
        {
            let frames: Vec<u8> = (0..20).flat_map(|_| frame(DATA, 0, 1, &[b' '; 16_384])).collect();
            [headers(END_HEADERS, 1), frames].concat()
        },
        Says("is longer than 262144 bytes"),
    );

    row(
        ekm,
        "a header of 17 KiB",
        {
            let long = head_with(&token, &[("x", &"a".repeat(17 << 10))]);
            let (first, second) = long.split_at(16_000);
            [frame(HEADERS, END_STREAM, 1, first), frame(CONTINUATION, END_HEADERS, 1, second)].concat()
        },
        StreamOver,
    );
    // 4 KB once, and then by one byte each for as often as there is room.
    let entry = [&[0x40], &text("x")[..], &text(&"a".repeat(3900))].concat();
    let bomb = [&head[..], &entry, &[0xbe; 10_000]].concat();
    row(ekm, "HPACK bomb", frame(HEADERS, END_HEADERS | END_STREAM, 1, &bomb), ConnectionOver);
    let pieces: Vec<u8> = head.iter().flat_map(|&byte| frame(CONTINUATION, 0, 1, &[byte])).collect();
    let pieces = [frame(HEADERS, 0, 1, &[]), pieces, frame(CONTINUATION, END_HEADERS, 1, &[])].concat();
    row(ekm, "a head in continuations of 1 byte", pieces, ConnectionOver);
    finish(ekm);
}

#[test]
fn no_preface_and_no_http1_behind_alpn_h2_is_an_answer() {
    let mut ekm = serve_with("first_byte_timeout_ms = 400");
    let mut silent = Frames::open_silent(&ekm);
    assert!(silent.is_closed(), "silent after the handshake");
    let mut only_preface = Frames::open(&ekm);
    assert!(only_preface.is_closed(), "silent after the preface");
    let mut half = Frames::open_silent(&ekm);
    half.send(&PREFACE[..10]).unwrap();
    assert!(half.is_closed(), "half a preface");
    let mut http1 = Frames::open_silent(&ekm);
    http1.send(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    assert!(http1.is_closed(), "HTTP/1.1 instead");
    finish(&mut ekm);
}

fn resident_kib(ekm: &Ekm) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", ekm.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// Sends pieces, each made from its number, until the server has had enough of them, or `times` of them. Meanwhile
/// others are served, and afterwards the service has not grown much.
fn flood(ekm: &mut Ekm, name: &str, first: &[u8], times: u32, piece: impl Fn(u32) -> Vec<u8> + Send) -> Frames {
    let before = resident_kib(ekm);
    let mut frames = Frames::open(ekm);
    let _ = frames.send(first);
    let frames = std::thread::scope(|scope| {
        let flooding = scope.spawn(move || {
            // In packets of some size, as a flood would be.
            let mut bytes = Vec::new();
            for number in 0..times {
                bytes.extend(piece(number));
                if bytes.len() > 16_000 || number + 1 == times {
                    if frames.send(&bytes).is_err() {
                        break;
                    }
                    bytes.clear();
                }
            }
            frames
        });
        while !flooding.is_finished() {
            assert_serves(&mut ekm.connect(), &ekm.ready.token);
        }
        flooding.join().unwrap()
    });
    assert!(ekm.is_running(), "{name} ended the service:\n{}", ekm.log());
    assert_serves(&mut ekm.connect(), &ekm.ready.token);
    let grown = resident_kib(ekm).saturating_sub(before);
    assert!(grown < 64 << 10, "{name}: {grown} KiB more");
    frames
}

#[test]
fn floods_end_their_connection_and_do_not_keep_others_waiting() {
    let mut ekm =
        serve_with("first_byte_timeout_ms = 1000\nidle_timeout_s = 1\nwrite_timeout_ms = 1000\nbody_timeout_ms = 1000");
    let ekm = &mut ekm;
    let token = ekm.ready.token.clone();
    let head = good_head(&token);
    let open = frame(HEADERS, END_HEADERS, 1, &head);

    let reset = |number: u32| {
        let stream = 2 * number + 1;
        [frame(HEADERS, END_HEADERS, stream, &head), frame(RST_STREAM, 0, stream, &[0, 0, 0, 8])].concat()
    };
    assert!(flood(ekm, "rapid reset", &[], 5000, reset).is_closed(), "rapid reset");
    let bad_reset = |number: u32| {
        let stream = 2 * number + 1;
        // The server resets these itself: MadeYouReset.
        [frame(HEADERS, END_HEADERS, stream, &head), frame(WINDOW_UPDATE, 0, stream, &[0; 4])].concat()
    };
    assert!(flood(ekm, "resets by the server", &[], 5000, bad_reset).is_closed(), "resets by the server");

    let start = frame(HEADERS, 0, 1, &head);
    let more = |_| frame(CONTINUATION, 0, 1, &literal("a", "b"));
    assert!(flood(ekm, "continuations", &start, 100_000, more).is_closed(), "continuations");
    let empty = |_| frame(CONTINUATION, 0, 1, &[]);
    assert!(flood(ekm, "empty continuations", &start, 100_000, empty).is_closed(), "empty continuations");

    let empty = |_| frame(DATA, 0, 1, &[]);
    assert!(flood(ekm, "empty data", &open, 300_000, empty).is_closed(), "empty data");
    let refused = frame(HEADERS, END_HEADERS, 1, &good_head("x"));
    assert!(flood(ekm, "empty data of a refused request", &refused, 300_000, empty).is_closed(), "after a refusal");
    let padded = |_| frame(DATA, PADDED, 1, &[&[255][..], &[0; 255]].concat());
    assert!(flood(ekm, "data of padding", &open, 20_000, padded).is_closed(), "padding");

    // Nobody reads the answers to these, so they pile up until the server's clock ends it.
    let ping = |number: u32| frame(PING, 0, 0, &u64::from(number).to_be_bytes());
    assert!(flood(ekm, "pings", &[], 500_000, ping).is_closed(), "pings");
    assert!(flood(ekm, "settings", &[], 300_000, |_| frame(SETTINGS, 0, 0, &[])).is_closed(), "settings");
    let windows = |number: u32| setting(INITIAL_WINDOW_SIZE, number % 2 * 1000);
    assert!(flood(ekm, "changing settings", &open, 300_000, windows).is_closed(), "changing settings");
    let priority = |number: u32| frame(PRIORITY, 0, 2 * number + 1, &[0, 0, 0, 0, 1]);
    assert!(flood(ekm, "priorities", &[], 300_000, priority).is_closed(), "priorities");
    let window = |_| frame(WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1]);
    assert!(flood(ekm, "window updates", &[], 300_000, window).is_closed(), "window updates");
    let unknown = |_| frame(0x42, 0, 0, &[0; 100]);
    assert!(flood(ekm, "unknown frames", &[], 100_000, unknown).is_closed(), "unknown frames");
    finish(ekm);
}

#[test]
fn streams_that_do_not_go_on_are_ended_and_bounded_in_number() {
    let mut ekm = serve_with("idle_timeout_s = 1\nwrite_timeout_ms = 1000\nbody_timeout_ms = 500");
    let token = ekm.ready.token.clone();
    let head = good_head(&token);

    // No window: the answer cannot be sent, and waits no longer than any.
    let mut stalled = Frames::open(&ekm);
    stalled.send(&[setting(INITIAL_WINDOW_SIZE, 0), request(1, &head, good_body().as_bytes())].concat()).unwrap();
    assert!(stalled.is_closed(), "a window of 0");

    // A body that does not come is answered like over HTTP/1.1.
    let mut waiting = Frames::open(&ekm);
    waiting.send(&frame(HEADERS, END_HEADERS, 1, &head)).unwrap();
    let outcome = waiting.outcome(1);
    assert!(
        matches!(&outcome, Outcome::Answered(body) if body.contains("did not arrive within 500 ms")),
        "{outcome:?}"
    );
    assert!(waiting.is_closed(), "idle");

    // More streams at a time than allowed are refused one by one (REFUSED_STREAM), and the others are answered.
    let mut many = Frames::open(&ekm);
    for number in 0..100 {
        many.send(&frame(HEADERS, END_HEADERS, 2 * number + 1, &head)).unwrap();
    }
    let (mut answered, mut refused) = (0u32, 0);
    while answered + refused < 100 {
        match many.next().unwrap() {
            (RST_STREAM, _, _, code) if code == [0, 0, 0, 7] => refused += 1,
            (DATA, flags, ..) if flags & END_STREAM != 0 => answered += 1,
            (GOAWAY, _, _, payload) => panic!("{payload:?}"),
            _ => {}
        }
    }
    assert!(answered >= 64 && refused > 0, "{answered} answered, {refused} refused");

    // Gone in the middle of streams.
    let mut gone = Frames::open(&ekm);
    for number in 0..10 {
        gone.send(&frame(HEADERS, END_HEADERS, 2 * number + 1, &head)).unwrap();
    }
    let started = |ekm: &Ekm| {
        ekm.metric("ekm_token_cache_total{result=\"hit\"}") + ekm.metric("ekm_token_cache_total{result=\"miss\"}")
    };
    // Under way before their caller goes, so that they are requests.
    ekm.eventually("under way", || started(&ekm) == f64::from(answered) + 12.0);
    drop(gone);
    ekm.eventually("audited", || ekm.audit().len() == answered as usize + 12);
    for line in ekm.audit() {
        assert_eq!(line["status"].is_null(), line["code"] == "abandoned", "{line}");
    }
    finish(&mut ekm);
}

#[test]
fn a_connection_whose_time_is_over_says_so_and_answers_what_was_on_its_way() {
    for (timeout, before) in [("first_byte_timeout_ms = 500", 0), ("idle_timeout_s = 1", 1)] {
        let ekm = serve_with(timeout);
        let head = good_head(&ekm.ready.token);
        let mut frames = Frames::open(&ekm);
        for _ in 0..before {
            frames.send(&request(1, &head, good_body().as_bytes())).unwrap();
            assert!(matches!(frames.outcome(1), Outcome::Answered(_)));
        }
        let payload = loop {
            if let (GOAWAY, _, _, payload) = frames.next().expect(timeout) {
                break payload;
            }
        };
        assert_eq!(payload[4..8], [0; 4], "{timeout}: no error");
        // Not acknowledged yet, so that the service cannot know what is on its way.
        frames.send(&request(3, &head, good_body().as_bytes())).unwrap();
        assert!(matches!(frames.outcome(3), Outcome::Answered(body) if body.contains("wrappedBlob")), "{timeout}");
        assert!(frames.is_closed(), "{timeout}");
    }
}

#[test]
fn slow_resets_leave_an_audit_line_each() {
    let mut ekm = Ekm::dev(&[]);
    let head = good_head(&ekm.ready.token);
    let mut frames = Frames::open(&ekm);
    for number in 0..50 {
        let stream = 2 * number + 1;
        frames.send(&frame(HEADERS, END_HEADERS, stream, &head)).unwrap();
        // Under way before it is taken back, so that it is a request.
        ekm.eventually("under way", || {
            ekm.metric("ekm_token_cache_total{result=\"hit\"}") + ekm.metric("ekm_token_cache_total{result=\"miss\"}")
                > f64::from(number)
        });
        frames.send(&frame(RST_STREAM, 0, stream, &[0, 0, 0, 8])).unwrap();
    }
    ekm.eventually("audited", || ekm.audit().len() == 50);
    for line in ekm.audit() {
        let taken_back = line["code"] == "abandoned" && line["status"].is_null();
        assert!(taken_back || line["code"] == "invalid_request", "{line}");
    }
    // The connection itself is still good.
    frames.send(&request(101, &head, good_body().as_bytes())).unwrap();
    assert!(matches!(frames.outcome(101), Outcome::Answered(body) if body.contains("wrappedBlob")));
    finish(&mut ekm);
}

#[test]
fn large_answers_that_are_not_taken_leave_no_room_for_more_and_those_that_are_taken_do() {
    let ekm = Ekm::serve(&ekm_tests::set_up(&[]), |config| {
        config.replace("request_deadline_ms = 20000", "request_deadline_ms = 1500\nwrite_timeout_ms = 300000")
    });
    let (head, body) = (good_head(&ekm.ready.token), json!({"plaintext": base64(vec![7; 60 * 1024])}).to_string());
    let large = |stream: u32| {
        let mut frames = frame(HEADERS, END_HEADERS, stream, &head);
        body.as_bytes().chunks(16 * 1024).for_each(|piece| frames.extend(frame(DATA, 0, stream, piece)));
        [frames, frame(DATA, END_STREAM, stream, &[])].concat()
    };
    // Without a length in its head a body counts as 32 KiB of 256.
    let mut deaf = Frames::open(&ekm);
    deaf.send(&setting(INITIAL_WINDOW_SIZE, 0)).unwrap();
    for number in 0..8 {
        deaf.send(&large(2 * number + 1)).unwrap();
        ekm.eventually("answered", || ekm.audit().len() == number as usize + 1);
    }
    deaf.send(&request(17, &head, good_body().as_bytes())).unwrap();
    ekm.eventually("refused", || ekm.audit().len() == 9);
    assert!(ekm.audit()[..8].iter().all(|line| line["code"] == "ok"));
    assert_eq!(ekm.audit()[8]["code"], "deadline_exceeded");

    // Windows for all of them.
    deaf.send(&frame(WINDOW_UPDATE, 0, 0, &(1u32 << 30).to_be_bytes())).unwrap();
    deaf.send(&setting(INITIAL_WINDOW_SIZE, 1 << 20)).unwrap();
    deaf.outcome(15);
    deaf.send(&request(19, &head, good_body().as_bytes())).unwrap();
    assert!(matches!(deaf.outcome(19), Outcome::Answered(_)));
}
