//! The EKM under test: how it is asked, and what its replies are compared with.

use std::cell::{OnceCell, RefCell};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::Method;
use secrecy::SecretString;
use serde_json::{Value, json};
use tokio::runtime::Runtime;

use super::{Outcome, Stop};
use crate::remote::{Answer, Call, NoAnswer, RemoteEkm};

/// What to test with.
pub(crate) struct Options {
    pub(crate) key_path: String,
    pub(crate) other_key_path: Option<String>,
    pub(crate) sign_key_path: Option<String>,
    pub(crate) crypto_space: Option<String>,
    pub(crate) tokens: Tokens,
    /// For one request.
    pub(crate) timeout: Duration,
    /// What Cloud KMS would wait.
    pub(crate) deadline: Duration,
}

/// Who to be.
pub(crate) struct Tokens {
    /// Of somebody who may use the key.
    pub(crate) good: SecretString,
    pub(crate) expired: Option<SecretString>,
    pub(crate) wrong_audience: Option<SecretString>,
    /// A valid one of somebody who may not use the key.
    pub(crate) denied: Option<SecretString>,
}

/// The EKM under test.
pub(crate) struct Target {
    runtime: Runtime,
    ekm: RemoteEkm,
    pub(super) options: Options,
    /// In the names of what is made, so that two runs do not meet.
    run: String,
    /// Paths of keys that were made and not destroyed yet.
    made: RefCell<Vec<String>>,
    create_key: OnceCell<Result<(), String>>,
}

/// What came back, and what was asked.
pub(super) struct Reply {
    verb: String,
    outcome: Result<Answer, NoAnswer>,
    pub(super) took: Duration,
}

impl Target {
    pub(crate) fn new(runtime: Runtime, ekm: RemoteEkm, options: Options) -> Self {
        let run = uuid::Uuid::new_v4().simple().to_string();
        Self { runtime, ekm, options, run, made: RefCell::default(), create_key: OnceCell::new() }
    }

    /// Whether there is anybody; what is answered does not matter.
    pub(crate) fn reach(&self) -> Result<(), NoAnswer> {
        let call = Call { method: Method::GET, path: "", token: None, content_type: None, body: String::new() };
        self.send(&call).outcome.map(|_| ())
    }

    /// Sends anything. Once more if the connection was lost: an EKM that refuses a long body unread may close the connection behind its
    /// answer, and the next request meets that. Every method can be repeated.
    pub(super) fn send(&self, call: &Call<'_>) -> Reply {
        let verb = call.path.rsplit([':', '/']).next().unwrap_or_default().to_owned();
        let once = || {
            let started = Instant::now();
            let outcome = self.runtime.block_on(self.ekm.call(call, self.options.timeout));
            (outcome, started.elapsed())
        };
        let (outcome, took) = match once() {
            (Err(NoAnswer::Network(_)), _) => once(),
            done => done,
        };
        Reply { verb, outcome, took }
    }

    /// Posts JSON with the good token.
    pub(super) fn post(&self, path_and_verb: &str, body: &Value) -> Reply {
        self.post_as(Some(&self.options.tokens.good), path_and_verb, body.to_string())
    }

    /// Posts any text as JSON, as anybody.
    pub(super) fn post_as(&self, token: Option<&SecretString>, path_and_verb: &str, body: String) -> Reply {
        let content_type = Some("application/json");
        self.send(&Call { method: Method::POST, path: path_and_verb, token, content_type, body })
    }

    pub(super) fn wrap(&self, body: &Value) -> Reply {
        self.post(&format!("{}:wrap", self.options.key_path), body)
    }

    pub(super) fn unwrap(&self, body: &Value) -> Reply {
        self.post(&format!("{}:unwrap", self.options.key_path), body)
    }

    /// A blob of these bytes; nothing about unwrap can be said without one.
    pub(super) fn blob(&self, plaintext: &[u8], aad: &[u8]) -> Result<Vec<u8>, Stop> {
        self.wrap(&self.body("plaintext", plaintext, aad)).bytes("wrappedBlob")
    }

    /// A request as Cloud KMS sends it.
    pub(super) fn body(&self, field: &str, value: &[u8], aad: &[u8]) -> Value {
        let mut body = json!({
            field: STANDARD.encode(value),
            "additionalContext": self.context(1),
        });
        if !aad.is_empty() {
            body["additionalAuthenticatedData"] = json!(STANDARD.encode(aad));
        }
        body
    }

    /// The context of a key version of this run's own.
    pub(super) fn context(&self, version: u32) -> Value {
        let key = format!("projects/conformance/locations/us-east1/keyRings/r/cryptoKeys/{}", self.run);
        json!({
            "relativeResourceName": format!("{key}/cryptoKeyVersions/{version}"),
            "accessReasonContext": {"reason": "CUSTOMER_INITIATED_ACCESS"},
        })
    }

    /// A path beside this one that names nothing.
    pub(super) fn unknown_beside(&self, path: &str) -> String {
        let directory = path.rsplit_once('/').map_or("", |(directory, _)| directory);
        format!("{directory}/{}", self.run)
    }

    pub(super) fn other_key(&self) -> Result<&str, Stop> {
        self.options.other_key_path.as_deref().ok_or_else(|| skipped("needs --other-key-path"))
    }

    pub(super) fn sign_key(&self) -> Result<&str, Stop> {
        self.options.sign_key_path.as_deref().ok_or_else(|| skipped("needs --sign-key-path"))
    }

    pub(super) fn crypto_space(&self) -> Result<&str, Stop> {
        self.options.crypto_space.as_deref().ok_or_else(|| skipped("needs --crypto-space"))
    }

    /// Asks for a key of this version number of this run.
    pub(super) fn create(&self, version: u32, algorithm: &str) -> Result<Reply, Stop> {
        let body = json!({"algorithm": algorithm, "additionalContext": self.context(version)});
        let reply = self.post(&format!("{}:createKey", self.crypto_space()?), &body);
        if let Ok(path) = reply.json().and_then(|json| text(&json, "keyPath"))
            && !self.made.borrow().contains(&path)
        {
            self.made.borrow_mut().push(path);
        }
        Ok(reply)
    }

    /// A new key that wraps, if the EKM makes keys at all.
    pub(super) fn created(&self, version: u32) -> Result<String, Stop> {
        const SYMMETRIC: &str = "ALGORITHM_EXTERNAL_SYMMETRIC_ENCRYPTION";
        self.crypto_space()?;
        let implemented = self.create_key.get_or_init(|| {
            let probe = self.create(1000, SYMMETRIC).ok().map(|reply| reply.implemented().err());
            match probe.flatten() {
                Some(Stop::Skipped(why)) => Err(why),
                _ => Ok(()),
            }
        });
        implemented.clone().map_err(Stop::Skipped)?;
        text(&self.create(version, SYMMETRIC)?.json()?, "keyPath")
    }

    pub(super) fn destroy(&self, path: &str) -> Reply {
        let reply = self.post(&format!("{path}:destroyKey"), &json!({"additionalContext": self.context(1)}));
        if reply.status() == Some(200) {
            self.made.borrow_mut().retain(|made| made != path);
        }
        reply
    }

    /// Leaves as little behind as the protocol allows; the paths of the keys that are still there.
    pub(crate) fn destroy_what_was_made(&self) -> Vec<String> {
        let mut made = self.made.take();
        made.retain(|path| self.destroy(path).status() != Some(200));
        made
    }
}

impl Reply {
    pub(super) fn status(&self) -> Option<u16> {
        self.outcome.as_ref().ok().map(|answer| answer.status)
    }

    /// Goes on unless the EKM says that it does not have this method.
    pub(super) fn implemented(self) -> Result<Self, Stop> {
        if self.status() == Some(501) {
            return Err(skipped(format!("the EKM does not implement {}: 501", self.verb)));
        }
        Ok(self)
    }

    /// Passes if the status is one of these.
    pub(super) fn is(&self, statuses: &[u16]) -> Outcome {
        match self.status() {
            Some(status) if statuses.contains(&status) => Ok(self.tell()),
            _ => Err(Stop::Failed(self.tell())),
        }
    }

    /// Passes if it is any status but this.
    pub(super) fn is_not(&self, status: u16) -> Outcome {
        match self.status() {
            Some(got) if got != status => Ok(self.tell()),
            _ => Err(Stop::Failed(self.tell())),
        }
    }

    /// The object in a 200.
    pub(super) fn json(&self) -> Result<Value, Stop> {
        let Ok(answer) = &self.outcome else { return Err(Stop::Failed(self.tell())) };
        let json: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
        match answer.status {
            200 if json.is_object() => Ok(json),
            200 => Err(failed("200, and the body is no JSON object")),
            _ => Err(Stop::Failed(self.tell())),
        }
    }

    /// The field of a 200, in the base64 that proto3 JSON writes.
    pub(super) fn bytes(&self, field: &str) -> Result<Vec<u8>, Stop> {
        let json = self.json()?;
        let Some(value) = json.get(field).or(Some(&json!(""))).and_then(Value::as_str).map(str::to_owned) else {
            return Err(failed(format!("200, and {field} is no text")));
        };
        STANDARD.decode(value).map_err(|_| failed(format!("200, and {field} is not standard base64 with padding")))
    }

    pub(super) fn media_type(&self) -> Option<&str> {
        self.outcome.as_ref().ok()?.content_type.as_deref()
    }

    /// The `google.rpc.Status` of an error, also in `{"error":…}`.
    pub(super) fn rpc_status(&self) -> Result<Value, Stop> {
        let Ok(answer) = &self.outcome else { return Err(Stop::Failed(self.tell())) };
        let json: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
        let status = if json["error"].is_object() { json["error"].clone() } else { json };
        if status["code"].is_number() && status["message"].is_string() {
            return Ok(status);
        }
        Err(failed(format!("{}, and the body has no code and message", answer.status)))
    }

    /// Status and body, to be compared.
    pub(super) fn whole(&self) -> Option<(u16, &[u8])> {
        self.outcome.as_ref().ok().map(|answer| (answer.status, &answer.body[..]))
    }

    /// For people: the status, and the message of an error. What a success holds is not told.
    pub(super) fn tell(&self) -> String {
        match &self.outcome {
            Err(error) => format!("no answer: {error}"),
            Ok(answer) if answer.status == 200 => "200".into(),
            Ok(answer) => match self.rpc_status() {
                Ok(status) => {
                    let message = crate::wire::truncated(status["message"].as_str().unwrap_or_default(), 200);
                    format!("{}: {message}", answer.status)
                }
                Err(_) => answer.status.to_string(),
            },
        }
    }
}

/// A field of an answer that is text, and not empty.
pub(super) fn text(json: &Value, field: &str) -> Result<String, Stop> {
    let found = json[field].as_str().filter(|text| !text.is_empty());
    found.map(str::to_owned).ok_or_else(|| failed(format!("200, and {field} is missing")))
}

pub(super) fn failed(got: impl Into<String>) -> Stop {
    Stop::Failed(got.into())
}

pub(super) fn skipped(why: impl Into<String>) -> Stop {
    Stop::Skipped(why.into())
}

/// Passes if two values are the same.
pub(super) fn same<T: PartialEq>(got: &T, expected: &T, what: &str) -> Outcome {
    if got == expected { Ok(format!("the same {what}")) } else { Err(failed(format!("another {what}"))) }
}
