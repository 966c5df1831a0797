//! asymmetricSign.

use aws_lc_rs::digest;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::Confidence::{Choice, Likely};
use super::get_public_key::{algorithm_of, fetch};
use super::target::{Reply, Target, failed, skipped, text};
use super::{Check, Outcome, Stop, check};
use crate::remote::signature::verify;

const REQUEST: &str = "request";
const ERRORS: &str = "errors";

pub(super) const CHECKS: &[Check] = &[
    check("sign.answers", Likely, "response", "data is signed", "200, a signature that the public key proves", |t| {
        fits(t, &signed(t, &json!({"data": STANDARD.encode("data")}))?, b"data")
    }),
    check("sign.largest", Likely, REQUEST, "64 KiB of data", "200, a signature that the public key proves", |t| {
        let data = [7; 64 * 1024];
        fits(t, &signed(t, &json!({"data": STANDARD.encode(data)}))?, &data)
    }),
    check("sign.digest", Choice, REQUEST, "a digest instead of data", "200, a signature of the digest's data", |t| {
        let algorithm = algorithm_of(&fetch(t)?)?;
        let hash = match algorithm.rsplit_once("_SHA").map(|(_, bits)| bits) {
            Some("256") => &digest::SHA256,
            Some("384") => &digest::SHA384,
            _ => &digest::SHA512,
        };
        let digest = STANDARD.encode(digest::digest(hash, b"data"));
        fits(t, &signed(t, &json!({"digest": digest}))?, b"data")
    }),
    check("sign.missing", Likely, ERRORS, "no data", "400", |t| sign(t, &json!({}))?.is(&[400])),
    check("sign.base64", Likely, ERRORS, "data that is not base64", "400", |t| {
        sign(t, &json!({"data": "!!!"}))?.is(&[400])
    }),
    check("sign.type", Likely, ERRORS, "data that is a number", "400", |t| sign(t, &json!({"data": 5}))?.is(&[400])),
    check("sign.unknown-field", Likely, "proto3 JSON", "a field that is not known", "200: it is ignored", |t| {
        sign(t, &json!({"data": "AAAA", "aFieldOfTomorrow": [1]}))?.is(&[200])
    }),
    check("sign.unknown-key", Likely, ERRORS, "a key that is not there", "404", |t| {
        sign(t, &json!({"data": "AAAA"}))?;
        let path = t.unknown_beside(t.sign_key()?);
        t.post(&format!("{path}:asymmetricSign"), &json!({"data": "AAAA"})).is(&[404])
    }),
    check("sign.kind", Choice, ERRORS, "a key that wraps", "400", |t| {
        sign(t, &json!({"data": "AAAA"}))?;
        t.post(&format!("{}:asymmetricSign", t.options.key_path), &json!({"data": "AAAA"})).is(&[400])
    }),
    check("sign.no-token", Likely, "ID token", "no token", "401", |t| {
        t.post_as(None, &format!("{}:asymmetricSign", t.sign_key()?), r#"{"data":"AAAA"}"#.into()).is(&[401])
    }),
];

/// Asks for a signature, if there is a key to ask for and the EKM has the method.
fn sign(t: &Target, body: &Value) -> Result<Reply, Stop> {
    let mut body = body.clone();
    body["additionalContext"] = t.context(1);
    t.post(&format!("{}:asymmetricSign", t.sign_key()?), &body).implemented()
}

fn signed(t: &Target, body: &Value) -> Result<Vec<u8>, Stop> {
    sign(t, body)?.bytes("signature")
}

fn fits(t: &Target, signature: &[u8], data: &[u8]) -> Outcome {
    let answer = fetch(t)?;
    let algorithm = algorithm_of(&answer).map_err(|_| skipped("getPublicKey does not tell the algorithm"))?;
    match verify(&algorithm, &text(&answer, "publicKey")?, data, signature) {
        Ok(()) => Ok(algorithm),
        Err(problem) => Err(failed(problem)),
    }
}
