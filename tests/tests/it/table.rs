//! What the tables of bad input have in common. Their classes are those of docs/bad-input.md; a
//! row is one request, as it goes over the wire, and what has to come back.

use std::io::ErrorKind;
use std::time::Duration;

use ekm_tests::{Answer, Connection, Ekm, base64, set_up};
use serde_json::json;

/// A plaintext that nothing but an answer may ever show.
pub const PLAINTEXT: &str = "marker-of-a-plaintext-8c1f27";
/// Longer than any of the server's clocks, also on a loaded machine.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// The path that every good request names.
pub const WRAP: &str = "/v0/keys/demo:wrap";

/// What has to come back.
#[derive(Clone, Copy, Debug)]
pub enum Expect {
    /// 200 with the verb's result.
    Good,
    /// 200, and the connection is closed after it.
    GoodThenClosed,
    /// Our own answer: google.rpc.Status, whose message contains this text.
    Refused(u16, &'static str),
    /// An answer of the HTTP library, which stopped before there was a request; the connection is closed after it.
    Framing(u16),
    /// No answer at all, only a closed connection.
    Closed,
}

/// The rows' common ground: one running service, and what was seen of it.
pub struct Table {
    pub ekm: Ekm,
    requests: Vec<(String, u16, String)>,
}

impl Table {
    pub fn over(ekm: Ekm) -> Self {
        Self { ekm, requests: Vec::new() }
    }

    /// One row: sends the bytes on a connection of their own, and checks what comes back.
    pub fn row(&mut self, class: u8, name: &str, request: impl AsRef<[u8]>, expect: Expect) {
        let name = format!("class {class}, {name}");
        let mut connection = self.ekm.connect();
        // The server may answer and close before it has taken everything.
        let _ = connection.send(request.as_ref());
        let answer = connection.read_answer();
        match (expect, &answer) {
            (Expect::Closed, Err(error)) => {
                assert!(is_closed(error), "{name}: {error} instead of a closed connection");
            }
            (Expect::Framing(status), Ok(answer)) => {
                assert_eq!(answer.status, status, "{name}: {answer:?}");
                assert!(answer.header("x-request-id").is_none(), "{name} came as far as our code: {answer:?}");
                assert!(connection.is_closed_within(PATIENCE), "{name}: the connection stays open");
            }
            (Expect::Closed, Ok(answer)) => panic!("{name}: {answer:?} instead of a closed connection"),
            (_, Ok(answer)) => self.answer(&name, answer, expect),
            (_, Err(error)) => panic!("{name}: {error}\n{}", self.ekm.log()),
        }
        if let Expect::GoodThenClosed = expect {
            assert!(connection.is_closed_within(PATIENCE), "{name}: the connection stays open");
        }
        assert!(self.ekm.is_running(), "{name} ended the service:\n{}", self.ekm.log());
    }

    /// Checks an answer that our own code gave.
    pub fn answer(&mut self, name: &str, answer: &Answer, expect: Expect) {
        let request_id = answer.header("x-request-id").unwrap_or_else(|| panic!("{name}: not ours: {answer:?}"));
        self.requests.push((request_id.to_owned(), answer.status, name.to_owned()));
        assert_eq!(answer.header("content-type"), Some("application/json"), "{name}: {answer:?}");
        match expect {
            Expect::Refused(status, message) => {
                assert_eq!(answer.status, status, "{name}: {answer:?}");
                assert_status_json(name, answer, message);
            }
            _ => {
                assert_eq!(answer.status, 200, "{name}: {answer:?}");
                let json = answer.json();
                let fields: Vec<_> = json.as_object().unwrap().keys().map(String::as_str).collect();
                let results = [&["wrappedBlob"][..], &["plaintext"], &["signature"], &["algorithm", "publicKey"]];
                assert!(results.contains(&&fields[..]), "{name}: {answer:?}");
                assert!(fields.iter().all(|field| json[field].is_string()), "{name}: {answer:?}");
            }
        }
    }

    /// After the last row: nothing broke, nothing leaked, and every request that we answered has one audit line.
    pub fn finish(mut self, secrets: &[&str]) {
        assert!(!self.requests.is_empty(), "a table without rows tests nothing");
        assert!(self.ekm.is_running());
        let blob = self.ekm.wrap(PLAINTEXT.as_bytes(), b"aad");
        assert_eq!(self.ekm.unwrap(&blob, b"aad").json(), json!({"plaintext": base64(PLAINTEXT)}));
        assert!(!self.ekm.log().contains("panic"), "{}", self.ekm.log());
        assert_eq!(self.ekm.metric("ekm_panics_total"), 0.0);
        let (ekm, requests) = (&self.ekm, &self.requests);
        // The writer is a thread of its own, so the last lines may come a moment after the answer.
        let mut lines = std::collections::HashMap::new();
        ekm.eventually("an audit line for every request", || {
            lines.clear();
            for line in ekm.audit() {
                let id = line["request_id"].as_str().unwrap().to_owned();
                assert!(lines.insert(id, line).is_none(), "a request has two audit lines");
            }
            requests.iter().all(|(id, ..)| lines.contains_key(id))
        });
        for (id, status, name) in requests {
            let line = &lines[id];
            assert_eq!(line["status"], *status, "{name}: {line}");
            assert_eq!(line["code"] == "ok", *status == 200, "{name}: {line}");
            assert_eq!(line["error"].is_null(), *status == 200, "{name}: {line}");
        }
        let encoded = base64(PLAINTEXT);
        let mut leaks = vec![PLAINTEXT, &encoded, ekm.ready.token.as_str()];
        leaks.extend(secrets.iter().filter(|secret| secret.len() >= 16));
        ekm.assert_not_leaked(&leaks);
    }
}

/// Whether this says that the other side closed, orderly or not.
pub fn is_closed(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset | ErrorKind::BrokenPipe)
        || matches!(error.kind(), ErrorKind::ConnectionAborted | ErrorKind::NotConnected)
}

/// google.rpc.Status: `code` and `message` always, and nothing else but `details`.
fn assert_status_json(name: &str, answer: &Answer, message: &str) {
    let json = answer.json();
    let code = match answer.status {
        // FAILED_PRECONDITION
        400 if message.contains("[key_disabled]") || answer.message().contains("[wrong_algorithm]") => 9,
        400 | 415 | 421 => 3,
        401 => 16,
        403 => 7,
        404 => 5,
        405 | 501 => 12,
        429 => 8,
        503 => 14,
        status => panic!("{name}: no code is defined for {status}"),
    };
    assert_eq!(json["code"], code, "{name}: {json}");
    assert!(answer.message().contains(message), "{name}: '{message}' is not in {json}");
    let known = |member: &String| ["code", "message", "details"].contains(&member.as_str());
    assert!(json.as_object().unwrap().keys().all(known), "{name}: {json}");
    if answer.status == 401 {
        assert_eq!(answer.header("www-authenticate"), Some("Bearer"), "{name}: {answer:?}");
    }
}

/// The body of a good wrap.
pub fn good_body() -> String {
    json!({"plaintext": base64(PLAINTEXT), "additionalAuthenticatedData": base64("aad")}).to_string()
}

/// A request's bytes: a request line, further header lines (each with its line end), a body with its length.
pub fn post(target: &str, headers: &str, body: impl AsRef<[u8]>) -> Vec<u8> {
    let body = body.as_ref();
    let head = format!("POST {target} HTTP/1.1\r\nHost: localhost\r\n{headers}Content-Length: {}\r\n\r\n", body.len());
    [head.as_bytes(), body].concat()
}

/// The header lines of a good request.
pub fn good_headers(token: &str) -> String {
    format!("Authorization: Bearer {token}\r\nContent-Type: application/json\r\n")
}

/// A POST of a JSON body with a good head.
pub fn post_json(target: &str, token: &str, body: impl AsRef<[u8]>) -> Vec<u8> {
    post(target, &good_headers(token), body)
}

/// A good wrap on a connection that is there already.
pub fn assert_serves(connection: &mut Connection, token: &str) {
    let answer = connection.post(WRAP, token, &good_body());
    assert_eq!(answer.status, 200, "{answer:?}");
}

/// `ekm serve` with these lines in `[limits]`.
pub fn serve_with(limits: &str) -> Ekm {
    let directory = set_up(&[]);
    Ekm::serve(&directory, |config| config.replace("request_deadline_ms", &format!("{limits}\nrequest_deadline_ms")))
}
