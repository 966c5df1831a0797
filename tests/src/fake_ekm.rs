//! An EKM of some other vendor, in memory: it has every method, and a flaw if one is wished for.

use std::collections::HashMap;
use std::path::Path;

use aws_lc_rs::aead::{AES_256_GCM, Aad, Nonce, RandomizedNonceKey};
use aws_lc_rs::encoding::{AsDer, PublicKeyX509Der};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::{WebServer, base64};

/// What may be wrong with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flaw {
    /// Every createKey makes another key.
    CreatesTwice,
    /// The second destroyKey is an error.
    DestroysOnce,
    /// A destroyed key still wraps.
    KeepsWhatItDestroys,
    /// createKey gives a destroyed key's path again.
    GivesPathsAgain,
    /// The signature is of something else.
    SignsSomethingElse,
    /// It shows its public key as an EC point in PEM.
    ShowsABarePoint,
    /// It lets anybody call.
    LetsEverybodyIn,
    /// It holds every permission that anybody asks for.
    HoldsEveryPermission,
    /// All keys have the same material.
    HasOneKey,
    /// A failed unwrap says why.
    IsAnOracle,
}

/// The one token that it lets in.
pub const FAKE_TOKEN: &str = "eyJhbGciOiJSUzI1NiJ9.e30.c2lnbmF0dXJl";

struct FakeEkm {
    flaw: Option<Flaw>,
    /// By resource name: algorithm and path.
    made: HashMap<String, (String, String)>,
    /// By path; none is destroyed.
    keys: HashMap<String, Option<Key>>,
}

enum Key {
    Wraps(Box<RandomizedNonceKey>),
    Signs(EcdsaKeyPair),
}

type Refusal = (u16, u8, &'static str);
const NOT_FOUND: Refusal = (404, 5, "not found");
const INVALID: Refusal = (400, 3, "invalid");

/// Serves one over TLS, with the certificate of a data directory of `ekm dev`. Its keys are `v0/keys/a`, `v0/keys/b`, and `v0/keys/s`, which
/// signs; its crypto space is `v0/cryptospaces/c`.
pub fn serve_fake_ekm(flaw: Option<Flaw>, directory: &Path) -> WebServer {
    let mut fake = FakeEkm { flaw, made: HashMap::new(), keys: HashMap::new() };
    for path in ["v0/keys/a", "v0/keys/b"] {
        let key = fake.new_key("EXTERNAL_SYMMETRIC_ENCRYPTION");
        fake.keys.insert(path.into(), key);
    }
    let key = fake.new_key("EC_SIGN_P256_SHA256");
    fake.keys.insert("v0/keys/s".into(), key);
    let fake = std::sync::Mutex::new(fake);
    let server = WebServer::serving_tls("{}", directory);
    server.set_handler(move |request| {
        let (status, body) = match fake.lock().expect("no panics").answer(request) {
            Ok(body) => (200, body),
            Err((status, code, message)) => (status, json!({"code": code, "message": message})),
        };
        let (body, connection) = (body.to_string(), "Content-Type: application/json\r\nConnection: close");
        format!("HTTP/1.1 {status} x\r\nContent-Length: {}\r\n{connection}\r\n\r\n{body}", body.len()).into_bytes()
    });
    server
}

impl FakeEkm {
    fn has(&self, flaw: Flaw) -> bool {
        self.flaw == Some(flaw)
    }

    fn answer(&mut self, request: &str) -> Result<Value, Refusal> {
        let (head, body) = request.split_once("\r\n\r\n").ok_or(INVALID)?;
        let mut words = head.split(' ');
        let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        if method == "GET" {
            return if target == "/v0/info" { Ok(json!({})) } else { Err(NOT_FOUND) };
        }
        let token =
            head.lines().find_map(|line| line.to_ascii_lowercase().starts_with("authorization: ").then(|| &line[22..]));
        if token != Some(FAKE_TOKEN) && !self.has(Flaw::LetsEverybodyIn) {
            return Err((401, 16, "who are you?"));
        }
        let target = target.replace("%3A", ":");
        let (path, verb) = target.trim_start_matches('/').rsplit_once(':').ok_or(NOT_FOUND)?;
        let body: Value = serde_json::from_str(body).map_err(|_| INVALID)?;
        let space = |answer| if path == "v0/cryptospaces/c" { answer } else { Err(NOT_FOUND) };
        match verb {
            "wrap" => self.wrap(path, &body),
            "unwrap" => self.unwrap(path, &body),
            "asymmetricSign" => self.sign(path, &body),
            "getPublicKey" => self.public_key(path),
            "checkCryptoSpacePermissions" => space(self.permissions(&body)),
            "createKey" if path == "v0/cryptospaces/c" => self.create(&body),
            "createKey" => Err(NOT_FOUND),
            "destroyKey" => self.destroy(path),
            _ => Err((501, 12, "not implemented")),
        }
    }

    fn key(&self, path: &str) -> Result<&Key, Refusal> {
        let path = if self.has(Flaw::HasOneKey) && path != "v0/keys/s" && self.keys.contains_key(path) {
            "v0/keys/a"
        } else {
            path
        };
        self.keys.get(path).ok_or(NOT_FOUND)?.as_ref().ok_or((400, 9, "destroyed"))
    }

    fn wrap(&self, path: &str, body: &Value) -> Result<Value, Refusal> {
        let Key::Wraps(key) = self.key(path)? else { return Err(INVALID) };
        let mut text = bytes(&body["plaintext"])?;
        let nonce = key.seal_in_place_append_tag(Aad::from(bytes_or_none(body)?), &mut text).map_err(|_| INVALID)?;
        Ok(json!({"wrappedBlob": base64([&nonce.as_ref()[..], &text].concat())}))
    }

    fn unwrap(&self, path: &str, body: &Value) -> Result<Value, Refusal> {
        let Key::Wraps(key) = self.key(path)? else { return Err(INVALID) };
        let blob = bytes(&body["wrappedBlob"])?;
        let cut = if self.has(Flaw::IsAnOracle) { (400, 3, "too short") } else { INVALID };
        let (nonce, text) = blob.split_at_checked(12).ok_or(cut)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| INVALID)?;
        let (aad, mut text) = (bytes_or_none(body)?, text.to_vec());
        let wrong = if self.has(Flaw::IsAnOracle) && text.len() == 24 { (400, 3, "wrong AAD") } else { INVALID };
        let plaintext = key.open_in_place(nonce, Aad::from(aad), &mut text).map_err(|_| wrong)?;
        Ok(json!({"plaintext": base64(plaintext)}))
    }

    fn sign(&self, path: &str, body: &Value) -> Result<Value, Refusal> {
        let Key::Signs(key) = self.key(path)? else { return Err(INVALID) };
        let mut data = bytes(&body["data"])?;
        if self.has(Flaw::SignsSomethingElse) {
            data.push(0);
        }
        let signature = key.sign(&SystemRandom::new(), &data).map_err(|_| INVALID)?;
        Ok(json!({"signature": base64(signature)}))
    }

    fn public_key(&self, path: &str) -> Result<Value, Refusal> {
        let Key::Signs(key) = self.key(path)? else { return Err(INVALID) };
        let der: PublicKeyX509Der<'_> = key.public_key().as_der().map_err(|_| INVALID)?;
        let (label, der) = match self.has(Flaw::ShowsABarePoint) {
            true => ("EC PUBLIC KEY", key.public_key().as_ref()),
            false => ("PUBLIC KEY", der.as_ref()),
        };
        let pem = format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", base64(der));
        Ok(json!({"publicKey": pem, "algorithm": "EC_SIGN_P256_SHA256"}))
    }

    fn permissions(&self, body: &Value) -> Result<Value, Refusal> {
        let known = |wanted: &&Value| {
            self.has(Flaw::HoldsEveryPermission) || **wanted == "createKey" || **wanted == "destroyKey"
        };
        let held: Vec<_> = body["permissions"].as_array().ok_or(INVALID)?.iter().filter(known).collect();
        Ok(json!({"permissions": held}))
    }

    fn create(&mut self, body: &Value) -> Result<Value, Refusal> {
        let algorithm = body["algorithm"].as_str().ok_or(INVALID)?.trim_start_matches("ALGORITHM_").to_owned();
        let mut name = body["additionalContext"]["relativeResourceName"].as_str().ok_or(INVALID)?.to_owned();
        if self.has(Flaw::CreatesTwice) {
            name += &format!("/{}", self.keys.len());
        }
        let key = self.new_key(&algorithm).ok_or((501, 12, "not implemented"))?;
        if let Some((known, path)) = self.made.get(&name) {
            return match self.keys[path] {
                _ if *known != algorithm => Err((409, 6, "another algorithm")),
                Some(_) => Ok(json!({"keyPath": path})),
                None if self.has(Flaw::GivesPathsAgain) => Ok(json!({"keyPath": path})),
                None => Err((400, 9, "destroyed")),
            };
        }
        let path = format!("v0/keys/made-{}", self.keys.len());
        self.keys.insert(path.clone(), Some(key));
        self.made.insert(name, (algorithm, path.clone()));
        Ok(json!({"keyPath": path}))
    }

    fn destroy(&mut self, path: &str) -> Result<Value, Refusal> {
        if self.has(Flaw::KeepsWhatItDestroys) {
            return self.key(path).map(|_| json!({}));
        }
        let key = self.keys.get_mut(path).ok_or(NOT_FOUND)?;
        let was_there = key.take().is_some();
        if !was_there && self.has(Flaw::DestroysOnce) { Err(NOT_FOUND) } else { Ok(json!({})) }
    }

    fn new_key(&self, algorithm: &str) -> Option<Key> {
        match algorithm {
            "EXTERNAL_SYMMETRIC_ENCRYPTION" => {
                let mut key = [0; 32];
                aws_lc_rs::rand::fill(&mut key).ok()?;
                Some(Key::Wraps(Box::new(RandomizedNonceKey::new(&AES_256_GCM, &key).ok()?)))
            }
            "EC_SIGN_P256_SHA256" => Some(Key::Signs(EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING).ok()?)),
            _ => None,
        }
    }
}

fn bytes(value: &Value) -> Result<Vec<u8>, Refusal> {
    STANDARD.decode(value.as_str().ok_or(INVALID)?).map_err(|_| INVALID)
}

fn bytes_or_none(body: &Value) -> Result<Vec<u8>, Refusal> {
    match &body["additionalAuthenticatedData"] {
        Value::Null => Ok(Vec::new()),
        value => bytes(value),
    }
}
