//! Bad framing of HTTP/1.1 (classes 1 to 11 and 14 to 17), as raw bytes over TLS.

use ekm_tests::{Ekm, base64};

use crate::table::Expect::{Closed, Framing, Good, GoodThenClosed, Refused};
use crate::table::{Table, WRAP, assert_serves, good_body, good_headers, is_closed, post, post_json, serve_with};

/// A good wrap whose body is announced by these lines instead of Content-Length.
fn framed(token: &str, lines: &str, body: impl AsRef<[u8]>) -> Vec<u8> {
    let headers = good_headers(token);
    let head = format!("POST {WRAP} HTTP/1.1\r\nHost: localhost\r\n{headers}{lines}\r\n");
    [head.as_bytes(), body.as_ref()].concat()
}

/// The good body as one chunk.
fn one_chunk() -> String {
    let body = good_body();
    format!("{:x}\r\n{body}\r\n0\r\n\r\n", body.len())
}

const CHUNKED: &str = "Transfer-Encoding: chunked\r\n";

#[test]
fn a_body_whose_length_is_doubtful_is_refused_and_the_connection_closed() {
    let mut table = Table::over(serve_with("body_timeout_ms = 60000")); // 300 000 chunks take a loaded machine long
    let token = table.ekm.ready.token.clone();
    let (body, chunked) = (good_body(), one_chunk());
    let length = body.len();
    let with_length = |value: &str| framed(&token, &format!("Content-Length: {value}\r\n"), &body);
    let with_encoding = |value: &str| framed(&token, &format!("Transfer-Encoding: {value}\r\n"), &chunked);

    // hyper honours Transfer-Encoding, as RFC 9112 §6.3 says, and router.rs closes: nothing to smuggle into.
    let both = format!("Content-Length: {length}\r\n{CHUNKED}");
    table.row(1, "Content-Length before Transfer-Encoding", framed(&token, &both, &chunked), GoodThenClosed);
    let both = format!("{CHUNKED}Content-Length: {length}\r\n");
    table.row(1, "Content-Length after Transfer-Encoding", framed(&token, &both, &chunked), GoodThenClosed);
    let both = format!("{CHUNKED}Content-Length: 0\r\n");
    let smuggled = [chunked.as_bytes(), &post_json(WRAP, &token, &body)].concat();
    table.row(1, "a second request behind both", framed(&token, &both, smuggled), GoodThenClosed);
    table.row(1, "HTTP/1.0 with Transfer-Encoding", with_version(&with_encoding("chunked"), "HTTP/1.0"), Framing(400));

    let twice = format!("Content-Length: {length}\r\nContent-Length: {}\r\n", length + 1);
    table.row(2, "two different lengths", framed(&token, &twice, &body), Framing(400));
    // Allowed by RFC 9112 §6.3: both say the same.
    let twice = format!("Content-Length: {length}\r\nContent-Length: {length}\r\n");
    table.row(2, "the same length twice", framed(&token, &twice, &body), Good);
    table.row(2, "a list of lengths", with_length(&format!("{length}, {}", length + 1)), Framing(400));

    table.row(3, "a plus sign", with_length(&format!("+{length}")), Framing(400));
    table.row(3, "a minus sign", with_length("-1"), Framing(400));
    table.row(3, "hexadecimal", with_length(&format!("0x{length:x}")), Framing(400));
    table.row(3, "a space inside", with_length("1 0"), Framing(400));
    table.row(3, "empty", with_length(""), Framing(400));
    table.row(3, "a fraction", with_length("10.0"), Framing(400));
    table.row(3, "digits that are not ASCII", with_length("\u{0661}"), Framing(400));
    table.row(3, "2^64", with_length("18446744073709551616"), Framing(400));
    // hyper reserves its greatest numbers; below them a length is believed, and the body's own bound counts.
    table.row(3, "2^64 - 1", with_length("18446744073709551615"), Framing(431));

    for value in ["identity", "xchunked", "chunked, identity", "chunkedx", "\"chunked\"", "chunked;x=y", ""] {
        table.row(4, &format!("Transfer-Encoding '{value}'"), with_encoding(value), Framing(400));
    }
    table.row(4, "white space around the value", with_encoding(" chunked \t"), GoodThenClosed);
    table.row(4, "capitals", with_encoding("CHUNKED"), GoodThenClosed);
    let twice = format!("{CHUNKED}Transfer-Encoding: identity\r\n");
    table.row(4, "two Transfer-Encodings", framed(&token, &twice, &chunked), Framing(400));
    table.row(4, "a vertical tab before the value", with_encoding("\x0bchunked"), Framing(400));
    // RFC 9112 §6.1 would have 501 here. We never decompress: who means it sends no JSON, and the connection ends.
    table.row(4, "a compressed transfer", with_encoding("gzip, chunked"), GoodThenClosed);

    let unreadable = Refused(400, "body: cannot be read to its end");
    let in_chunks = |chunks: &str| framed(&token, CHUNKED, chunks);
    table.row(5, "chunk size above 2^64", in_chunks("10000000000000000\r\nx"), unreadable);
    table.row(5, "negative chunk size", in_chunks("-2\r\n{}\r\n0\r\n\r\n"), unreadable);
    table.row(5, "no chunk size", in_chunks("\r\n{}\r\n0\r\n\r\n"), unreadable);
    table.row(5, "chunk size with 0x", in_chunks("0x2\r\n{}\r\n0\r\n\r\n"), unreadable);
    table.row(5, "no CRLF after the chunk", in_chunks("2\r\n{}0\r\n\r\n"), unreadable);
    table.row(5, "chunk longer than its size", in_chunks("1\r\n{}\r\n0\r\n\r\n"), unreadable);
    table.row(5, "bare LF after the chunk size", in_chunks("2\n{}\r\n0\r\n\r\n"), unreadable);
    table.row(5, "chunk extension of 64 KiB", in_chunks(&format!("2;{}\r\n{{}}\r\n", "x".repeat(65536))), unreadable);
    let trailers = format!("2\r\n{{}}\r\n0\r\nTrailer: {}\r\n\r\n", "x".repeat(1 << 20));
    table.row(5, "trailers of 1 MiB", in_chunks(&trailers), unreadable);
    let trailers = format!("2\r\n{{}}\r\n0\r\n{}\r\n", "A: b\r\n".repeat(10_000));
    table.row(5, "10 000 trailers", in_chunks(&trailers), unreadable);
    let many = "1\r\n \r\n".repeat(300_000);
    table.row(5, "300 000 chunks of 1 byte", in_chunks(&many), Refused(400, "body: is longer than 262144 bytes"));
    let long = post_json(WRAP, &token, vec![b' '; 1 << 20]);
    table.row(5, "a body of 1 MiB", long, Refused(400, "body: is longer than 262144 bytes"));

    table.finish(&[]);
}

/// The same request under another version.
fn with_version(request: &[u8], version: &str) -> Vec<u8> {
    String::from_utf8(request.to_vec()).unwrap().replace("HTTP/1.1", version).into_bytes()
}

#[test]
fn a_head_that_breaks_the_grammar_is_refused() {
    let mut table = Table::over(Ekm::dev(&[]));
    let token = table.ekm.ready.token.clone();
    let good = post_json(WRAP, &token, good_body());
    let with_line = |line: &[u8]| {
        let at = good.windows(2).position(|window| window == b"\r\n").unwrap() + 2;
        [&good[..at], line, b"\r\n", &good[at..]].concat()
    };

    // RFC 9112 §2.2 allows to take a bare LF for a line end, and hyper does; no header means another thing by it.
    let bare = String::from_utf8(good.clone()).unwrap().replace("\r\n", "\n");
    table.row(6, "bare LF as line end", bare, Good);
    table.row(6, "bare CR as line end", with_line(b"A: b\rC: d"), Framing(400));
    table.row(6, "a folded line", with_line(b"A: b\r\n c"), Framing(400));
    table.row(6, "a folded first line", with_line(b" A: b"), Framing(400));
    table.row(6, "NUL in a value", with_line(b"A: b\0c"), Framing(400));
    table.row(6, "NUL in a name", with_line(b"A\0: b"), Framing(400));
    table.row(6, "DEL in a value", with_line(b"A: \x7f"), Framing(400));
    table.row(6, "0x80 in a name", with_line(b"A\x80: b"), Framing(400));
    // RFC 9110 §5.5: opaque bytes, and this header means nothing to us.
    table.row(6, "0x80 in the value of a header that nobody reads", with_line(b"A: \x80"), Good);
    table.row(6, "space before the colon", with_line(b"A : b"), Framing(400));
    table.row(6, "space in a name", with_line(b"A B: b"), Framing(400));
    table.row(6, "no colon", with_line(b"A"), Framing(400));
    table.row(6, "empty name", with_line(b": b"), Framing(400));

    let long = |length: usize| "x".repeat(length);
    table.row(7, "request line of 17 KiB", post_json(&format!("/{}:wrap", long(17 << 10)), &token, ""), Framing(431));
    table.row(7, "request line of 1 MiB", post_json(&format!("/{}:wrap", long(1 << 20)), &token, ""), Framing(431));
    table.row(7, "a header of 17 KiB", with_line(format!("A: {}", long(17 << 10)).as_bytes()), Framing(431));
    table.row(7, "a header of 1 MiB", with_line(format!("A: {}", long(1 << 20)).as_bytes()), Framing(431));
    table.row(7, "a name of 70 KiB", with_line(format!("{}: b", long(70 << 10)).as_bytes()), Framing(431));
    table.row(7, "100 headers", with_line("A: b\r\n".repeat(100).trim_end().as_bytes()), Framing(431));
    table.row(7, "10 000 headers", with_line("A: b\r\n".repeat(10_000).trim_end().as_bytes()), Framing(431));
    table.row(7, "a method of 20 KiB", [long(20 << 10).as_bytes(), &good[..]].concat(), Framing(431));

    table.row(8, "HTTP/0.9", "GET /\r\n\r\n", Framing(400));
    table.row(8, "HTTP/9.9", with_version(&good, "HTTP/9.9"), Framing(400));
    table.row(8, "HTTP/1.2", with_version(&good, "HTTP/1.2"), Framing(400));
    table.row(8, "http/1.1 in small letters", with_version(&good, "http/1.1"), Framing(400));
    table.row(8, "HTTP/2 without ALPN for it", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", Closed);
    table.row(8, "garbage", "\u{1}\u{2}\u{3}\u{4}\r\n\r\n", Framing(400));
    table.row(8, "a ClientHello inside of TLS", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", Framing(400));
    table.row(8, "a space too many", with_version(&good, " HTTP/1.1"), Framing(400));
    table.row(8, "RFC 9112 §2.2: empty lines before the request", [b"\r\n\r\n", &good[..]].concat(), Good);

    table.finish(&[]);
}

#[test]
fn only_posts_to_this_host_of_plain_json_are_served() {
    let first = Ekm::dev(&[]);
    let directory = first.directory.clone();
    drop(first);
    let hosts = |config: String| config.replace("[server]", "[server]\nhosts = [\"localhost\"]");
    let mut table = Table::over(Ekm::serve(&directory, hosts));
    let token = table.ekm.ready.token.clone();
    let (headers, body) = (good_headers(&token), good_body());
    let good = String::from_utf8(post_json(WRAP, &token, &body)).unwrap();

    let wrong = Refused(405, "called with POST");
    for method in ["GET", "PUT", "DELETE", "OPTIONS", "TRACE", "PATCH", "post", "FOO"] {
        table.row(10, &format!("method {method}"), good.replace("POST", method), wrong);
    }
    table.row(10, "OPTIONS *", "OPTIONS * HTTP/1.1\r\nHost: localhost\r\n\r\n", wrong);
    table.row(10, "CONNECT", "CONNECT localhost:443 HTTP/1.1\r\nHost: localhost\r\n\r\n", wrong);
    table.row(10, "a method of 1 KiB", good.replace("POST", &"M".repeat(1024)), wrong);
    table.row(10, "a space in the method", good.replace("POST", "PO ST"), Framing(400));

    let with_host = |lines: &str| good.replace("Host: localhost\r\n", lines);
    table.row(11, "no Host", with_host(""), Refused(400, "Host is missing"));
    table.row(
        11,
        "Host twice",
        with_host("Host: localhost\r\nHost: localhost\r\n"),
        Refused(400, "Host is there twice"),
    );
    table.row(11, "another Host", with_host("Host: evil.example\r\n"), Refused(421, "does not answer for the host"));
    table.row(11, "an empty Host", with_host("Host:\r\n"), Refused(421, "does not answer for the host"));
    for host in
        ["localhost.evil.example", "localhost:x", "xlocalhost", "localhost@evil.example", "localhost, localhost"]
    {
        let request = with_host(&format!("Host: {host}\r\n"));
        table.row(11, &format!("Host '{host}'"), request, Refused(421, "does not answer for the host"));
    }
    table.row(11, "Host with another port", with_host("Host: LOCALHOST:1\r\n"), Good);
    table.row(11, "bytes above 0x7f in Host", with_host("Host: löcalhost\r\n"), Refused(400, "Host"));
    let absolute = good.replace(WRAP, &format!("https://localhost{WRAP}"));
    table.row(11, "a whole URL as target", absolute, Refused(400, "a whole URL instead of a path"));
    let absolute = good.replace(WRAP, &format!("https://evil.example{WRAP}"));
    table.row(11, "a whole URL of another host", absolute, Refused(400, "a whole URL instead of a path"));
    table.row(11, "only an authority as target", good.replace(WRAP, "localhost:443"), Refused(400, "a whole URL"));
    table.row(11, "HTTP/1.0 without Host", with_version(with_host("").as_bytes(), "HTTP/1.0"), Refused(421, "host"));
    table.row(11, "no target", good.replace(WRAP, ""), Framing(400));
    table.row(11, "a target without slash", good.replace(WRAP, &WRAP[1..]), Framing(400));

    let websocket = format!("{headers}Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n");
    table.row(15, "upgrade to a websocket", post(WRAP, &websocket, &body), Good);
    let h2c = format!("{headers}Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n");
    table.row(15, "upgrade to h2c", post(WRAP, &h2c, &body), Good);

    let bomb = [&[0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3][..], &[0; 100_000]].concat();
    for encoding in ["gzip", "br", "deflate", "zstd", "GZIP", "gzip, identity", "x"] {
        let headers = format!("{headers}Content-Encoding: {encoding}\r\n");
        let refused = Refused(415, "compressed bodies are not accepted");
        table.row(16, &format!("Content-Encoding {encoding}"), post(WRAP, &headers, &bomb), refused);
    }
    let identity = format!("{headers}Content-Encoding: identity\r\n");
    table.row(16, "Content-Encoding identity", post(WRAP, &identity, &body), Good);

    let with_type = |lines: &str| post(WRAP, &format!("Authorization: Bearer {token}\r\n{lines}"), &body);
    let wrong = Refused(415, "Content-Type: application/json");
    table.row(17, "no Content-Type", with_type(""), wrong);
    for media_type in [
        "",
        "text/plain",
        "application/x-www-form-urlencoded",
        "application/jsonp",
        "application/json, text/plain",
        "json",
        "application/json; charset=utf-16",
        "application/json;charset=\"UTF-32\"",
        "application/json; charset=latin1",
        "application/grpc",
    ] {
        table.row(17, &format!("'{media_type}'"), with_type(&format!("Content-Type: {media_type}\r\n")), wrong);
    }
    for media_type in ["application/json; charset=utf-8", "APPLICATION/JSON;charset=\"UTF-8\"", "application/json;"] {
        table.row(17, &format!("'{media_type}'"), with_type(&format!("Content-Type: {media_type}\r\n")), Good);
    }

    table.finish(&[]);
}

#[test]
fn a_head_request_is_refused_without_a_body() {
    let ekm = Ekm::dev(&[]);
    let mut connection = ekm.connect();
    connection
        .send(format!("HEAD {WRAP} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").as_bytes())
        .unwrap();
    // The length belongs to the body that a POST would have had; none follows, so reading it meets the end.
    let error = connection.read_answer().unwrap_err();
    assert!(is_closed(&error), "{error}");
    ekm.eventually("audited", || ekm.audit().iter().any(|line| line["code"] == "method_not_allowed"));
    assert_serves(&mut ekm.connect(), &ekm.ready.token);
}

#[test]
fn pipelined_requests_are_answered_in_their_order() {
    let ekm = Ekm::dev(&[]);
    let mut connection = ekm.connect();
    let token = &ekm.ready.token;
    let mut expected = Vec::new();
    let mut requests = Vec::new();
    for number in 0..100 {
        // Good ones, and bad ones in between that must not shift the order.
        let (status, path) = if number % 10 == 3 { (404, "/v0/keys/unknown:wrap") } else { (200, WRAP) };
        let blob_length = 100 + number;
        let body = serde_json::json!({"plaintext": base64(vec![7; blob_length])}).to_string();
        requests.extend(post_json(path, token, body));
        expected.push((status, blob_length));
    }
    connection.send(&requests).unwrap();
    let mut last_id = String::new();
    for (number, (status, plaintext_length)) in expected.into_iter().enumerate() {
        let answer = connection.read_answer().unwrap();
        assert_eq!(answer.status, status, "request {number}: {answer:?}");
        let id = answer.header("x-request-id").unwrap().to_owned();
        assert_ne!(id, last_id);
        last_id = id;
        if status == 200 {
            let blob = ekm_tests::unbase64(answer.json()["wrappedBlob"].as_str().unwrap());
            assert_eq!(blob.len(), plaintext_length + 49, "request {number} has another one's answer");
        }
    }
    ekm.eventually("audited", || ekm.audit().len() == 100);
    ekm.assert_not_leaked(&[token]);
}

#[test]
fn a_caller_who_waits_for_100_continue_is_told_no_before_he_sends_his_body() {
    let mut table = Table::over(Ekm::dev(&[]));
    let token = table.ekm.ready.token.clone();
    let length = good_body().len();
    let head = |target: &str, token: &str, extra: &str| {
        let headers = good_headers(token);
        format!("POST {target} HTTP/1.1\r\nHost: localhost\r\n{headers}{extra}Content-Length: {length}\r\n\r\n")
    };
    let expect = "Expect: 100-continue\r\n";
    // `row` takes the first answer, so a 100 would fail each of these.
    table.row(14, "bad token", head(WRAP, "x", expect), Refused(401, "one bearer token"));
    table.row(14, "no such method", head("/v0/keys/demo:wrapp", &token, expect), Refused(404, "does not end with"));
    let typed = head(WRAP, &token, expect).replace("application/json", "text/plain");
    table.row(14, "wrong type", typed, Refused(415, "Content-Type"));
    let get = head(WRAP, &token, expect).replace("POST", "GET");
    table.row(14, "wrong method", get, Refused(405, "POST"));

    let mut connection = table.ekm.connect();
    connection.send(head(WRAP, &token, expect).as_bytes()).unwrap();
    assert_eq!(connection.read_answer().unwrap().status, 100);
    connection.send(good_body().as_bytes()).unwrap();
    let answer = connection.read_answer().unwrap();
    table.answer("class 14, a good request", &answer, Good);

    // An expectation that nobody knows: RFC 9110 §10.1.1 allows 417, and allows to go on.
    let unknown = format!("{}{}", head(WRAP, &token, "Expect: tea\r\n"), good_body());
    table.row(14, "an unknown expectation", unknown, Good);
    table.finish(&[]);
}

#[test]
fn a_body_that_was_not_read_is_never_taken_for_a_request() {
    let mut table = Table::over(Ekm::dev(&[]));
    let token = table.ekm.ready.token.clone();
    let smuggled = post_json(WRAP, &token, good_body());
    let headers = good_headers(&token);
    for (name, refused, status) in [
        ("401", post_json(WRAP, "bad", &smuggled), 401),
        ("404", post_json("/v0/keys/demo:none", &token, &smuggled), 404),
        ("405", [b"GET".as_slice(), &post(WRAP, &headers, &smuggled)[4..]].concat(), 405),
        ("415", post(WRAP, &format!("{headers}Content-Encoding: gzip\r\n"), &smuggled), 415),
    ] {
        let mut connection = table.ekm.connect();
        connection.send(&refused).unwrap();
        let answer = connection.read_answer().unwrap();
        table.answer(name, &answer, Refused(status, ""));
        // The connection ends here, or goes on behind the body; then it meets this request next, not the smuggled one.
        let next = format!("OPTIONS {WRAP} HTTP/1.1\r\nHost: localhost\r\n\r\n");
        match connection.send(next.as_bytes()).and_then(|()| connection.read_answer()) {
            Ok(answer) => table.answer(name, &answer, Refused(405, "")),
            Err(error) => assert!(is_closed(&error), "{name}: {error}"),
        }
    }
    assert_eq!(table.ekm.metric("ekm_requests_total{code=\"ok\",verb=\"wrap\"}"), 0.0);
    table.finish(&[]);
}

#[test]
fn a_body_that_is_too_long_costs_the_connection_nothing() {
    let ekm = Ekm::dev(&[]);
    let (mut connection, token) = (ekm.connect(), ekm.ready.token.clone());
    for _ in 0..2 {
        let answer = connection.post("/v0/keys/demo:wrap", &token, &"x".repeat(1 << 20));
        assert_eq!((answer.status, answer.header("connection")), (400, None));
    }
}
