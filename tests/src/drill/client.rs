//! A client as Cloud KMS is one: a connection that is kept, and a token that is renewed.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::client::{Answer, Connection};
use crate::issuer::Issuer;
use crate::process::Ekm;

/// A token is good for an hour.
const TOKEN_AGE: Duration = Duration::from_secs(600);

/// One keep-alive connection to a frontend for one key, made anew when the server has closed it.
pub struct Client {
    address: std::net::SocketAddr,
    ca_file: PathBuf,
    issuer: Issuer,
    key: &'static str,
    token: (Instant, String),
    connection: Option<Connection>,
}

impl Client {
    /// For this key of this frontend.
    pub fn of(ekm: &Ekm, key: &'static str) -> Self {
        let issuer = ekm.issuer();
        let token = (Instant::now(), issuer.token());
        Self { address: ekm.address(), ca_file: ekm.ready.ca_file.clone(), issuer, key, token, connection: None }
    }

    /// Wraps or unwraps, with any answer.
    pub fn ask(&mut self, verb: &str, body: &Value) -> std::io::Result<Answer> {
        if self.token.0.elapsed() > TOKEN_AGE {
            self.token = (Instant::now(), self.issuer.token());
        }
        let (body, token, key) = (body.to_string(), &self.token.1, self.key);
        let request = format!(
            "POST /{key}:{verb} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        // A server may close a connection that is idle; a client then tries again on a new one, once.
        if let Some(mut connection) = self.connection.take()
            && connection.send(request.as_bytes()).is_ok()
            && let Ok(answer) = connection.read_answer()
        {
            return Ok(self.keep(connection, answer));
        }
        let mut connection = Connection::open(self.address, &self.ca_file)?;
        connection.send(request.as_bytes())?;
        let answer = connection.read_answer()?;
        Ok(self.keep(connection, answer))
    }

    fn keep(&mut self, connection: Connection, answer: Answer) -> Answer {
        if answer.header("connection") != Some("close") {
            self.connection = Some(connection);
        }
        answer
    }

    /// Wraps or unwraps; anything but 200 is an error.
    pub fn post(&mut self, verb: &str, body: &Value) -> Result<Value, String> {
        let answer = self.ask(verb, body).map_err(|error| format!("{verb}: {error}"))?;
        if answer.status == 200 {
            Ok(answer.json())
        } else {
            Err(format!("{verb}: {} {}", answer.status, answer.text()))
        }
    }
}
