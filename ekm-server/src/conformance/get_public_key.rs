//! getPublicKey.

use serde_json::{Value, json};

use super::Confidence::{Certain, Choice, Likely};
use super::target::{Target, failed, same, text};
use super::{Check, Stop, check};
use crate::remote::signature::ALGORITHMS;

const RESPONSE: &str = "response";
const ERRORS: &str = "errors";

pub(super) const CHECKS: &[Check] = &[
    check("get-public-key.answers", Likely, RESPONSE, "the key's public half", "200, publicKey in PEM", |t| {
        let pem = text(&fetch(t)?, "publicKey")?;
        let parsed = x509_parser::pem::parse_x509_pem(pem.as_bytes());
        match parsed {
            Ok((_, pem)) if pem.label == "PUBLIC KEY" => Ok("PEM, PUBLIC KEY".into()),
            _ => Err(failed("publicKey is not PEM of a SubjectPublicKeyInfo")),
        }
    }),
    check("get-public-key.algorithm", Choice, RESPONSE, "the key's algorithm", "a name of Cloud KMS's", |t| {
        algorithm_of(&fetch(t)?)
    }),
    check("get-public-key.again", Certain, RESPONSE, "the same key twice", "the same public key", |t| {
        same(&text(&fetch(t)?, "publicKey")?, &text(&fetch(t)?, "publicKey")?, "public key")
    }),
    check("get-public-key.unknown-key", Likely, ERRORS, "a key that is not there", "404", |t| {
        fetch(t)?;
        let path = t.unknown_beside(t.sign_key()?);
        t.post(&format!("{path}:getPublicKey"), &json!({"additionalContext": t.context(1)})).is(&[404])
    }),
    check("get-public-key.kind", Choice, ERRORS, "a key that wraps", "400", |t| {
        fetch(t)?;
        let path = format!("{}:getPublicKey", t.options.key_path);
        t.post(&path, &json!({"additionalContext": t.context(1)})).is(&[400])
    }),
    check("get-public-key.no-token", Likely, "ID token", "no token", "401", |t| {
        t.post_as(None, &format!("{}:getPublicKey", t.sign_key()?), "{}".into()).is(&[401])
    }),
];

/// The answer, if there is a key to ask for and the EKM has the method.
pub(super) fn fetch(t: &Target) -> Result<Value, Stop> {
    let path = format!("{}:getPublicKey", t.sign_key()?);
    t.post(&path, &json!({"additionalContext": t.context(1)})).implemented()?.json()
}

/// Its algorithm, without `ALGORITHM_`.
pub(super) fn algorithm_of(answer: &Value) -> Result<String, Stop> {
    let algorithm = text(answer, "algorithm")?;
    let name = algorithm.strip_prefix("ALGORITHM_").unwrap_or(&algorithm);
    if ALGORITHMS.iter().any(|(known, _)| *known == name) {
        return Ok(name.to_owned());
    }
    Err(failed(format!("algorithm '{name}'")))
}
