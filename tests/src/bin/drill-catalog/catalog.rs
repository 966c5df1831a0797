//! The catalog as its operators use it: changes over the admin API of a frontend, and the log that is read afterwards.

use std::io;
use std::path::PathBuf;

use ekm_tests::{Answer, Connection, Ekm};
use serde_json::{Value, json};

use crate::history::{Change, Outcome};

/// How many entries of the log are asked for at once.
const PAGE: usize = 500;

/// The admin API of one frontend, on a connection that is kept.
pub struct Admin {
    socket: PathBuf,
    connection: Option<Connection>,
}

/// What one sending of a request came to.
pub enum Sent {
    /// This is certain.
    Certain(Outcome, String),
    /// To be sent again, under the same request id.
    Again(String),
}

impl Admin {
    /// Of this frontend.
    pub fn of(ekm: &Ekm) -> Self {
        Self { socket: ekm.ready.admin_socket.clone().expect("it has a socket"), connection: None }
    }

    fn ask(&mut self, method: &str, target: &str, body: Option<&Value>) -> io::Result<Answer> {
        let body = body.map(|body| {
            format!("Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}", body.to_string().len())
        });
        let end = body.unwrap_or_else(|| "\r\n".into());
        let request = format!("{method} {target} HTTP/1.1\r\nHost: localhost\r\n{end}");
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => Connection::open_unix(&self.socket)?,
        };
        connection.send(request.as_bytes())?;
        let answer = connection.read_answer()?;
        if answer.header("connection") != Some("close") {
            self.connection = Some(connection);
        }
        Ok(answer)
    }

    fn get(&mut self, target: &str) -> Result<Value, String> {
        // The server closes a connection that has been idle.
        let answer = self.ask("GET", target, None).or_else(|_| self.ask("GET", target, None));
        let answer = answer.map_err(|error| format!("GET {target}: {error}"))?;
        if answer.status == 200 {
            Ok(answer.json())
        } else {
            Err(format!("GET {target}: {} {}", answer.status, answer.text()))
        }
    }

    /// Sends a change once. Its id stands in the log as the reason.
    pub fn change(&mut self, id: &str, command: &Value, if_revision: Option<u64>) -> Sent {
        let body = json!({"command": command, "reason": id, "request_id": id, "if_revision": if_revision});
        match self.ask("POST", "/v1/changes", Some(&body)) {
            Err(error) => Sent::Again(error.to_string()),
            Ok(answer) => match (answer.status, answer.json()["revision"].as_u64()) {
                (200, Some(revision)) if answer.json()["outcome"] == "done" => {
                    Sent::Certain(Outcome::Acknowledged { revision }, String::new())
                }
                (502..=504, _) => Sent::Again(answer.text()),
                _ => Sent::Certain(Outcome::Refused, format!("{} {}", answer.status, answer.text())),
            },
        }
    }

    /// The change that wrote this key last.
    pub fn key_revision(&mut self, path: &str) -> Result<u64, String> {
        self.get(&format!("/v1/keys/{path}"))?["revision"].as_u64().ok_or_else(|| format!("{path} has no revision"))
    }

    /// The log's entries after a revision, oldest first.
    pub fn changes_after(&mut self, base: u64) -> Result<Vec<Change>, String> {
        let (mut changes, mut before) = (Vec::new(), None::<u64>);
        loop {
            let from = before.map_or_else(String::new, |before| format!("&before={before}"));
            let page = self.get(&format!("/v1/changes?limit={PAGE}{from}"))?;
            let items = page["items"].as_array().cloned().unwrap_or_default();
            let entries = items.iter().map(|entry| Change {
                revision: entry["revision"].as_u64().unwrap_or(0),
                id: entry["reason"].as_str().unwrap_or_default().to_owned(),
            });
            changes.extend(entries.take_while(|change| change.revision > base));
            let last = items.last().and_then(|entry| entry["revision"].as_u64());
            match last {
                Some(last) if last > base + 1 && page["next_page_token"].is_string() => before = Some(last),
                _ => break,
            }
        }
        changes.reverse();
        Ok(changes)
    }
}
