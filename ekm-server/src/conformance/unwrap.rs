//! unwrap.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};

use super::Confidence::{Certain, Choice, Likely};
use super::target::{Target, failed, same};
use super::{Check, Outcome, Stop, check};

const REQUEST: &str = "request";
const RESPONSE: &str = "response";
const READING: &str = "proto3 JSON";
const ERRORS: &str = "errors";
const AAD: &[u8] = b"additional data";
const FOREIGN: &str = "400: Cloud KMS reports DECRYPTION_FAILED";

pub(super) const CHECKS: &[Check] = &[
    check("unwrap.round-trip", Certain, RESPONSE, "what was wrapped, of several lengths", "the same plaintext", |t| {
        for length in [1, 32, 60, 4096, 64 * 1024] {
            let plaintext: Vec<u8> = (0..length).map(|at| (at % 251) as u8).collect();
            let blob = t.blob(&plaintext, b"")?;
            same(&t.unwrap(&t.body("wrappedBlob", &blob, b"")).bytes("plaintext")?, &plaintext, "plaintext")?;
        }
        Ok("the same plaintext".into())
    }),
    check("unwrap.aad", Certain, RESPONSE, "what was wrapped with AAD", "the same plaintext", |t| {
        let blob = t.blob(b"data key", AAD)?;
        let got = t.unwrap(&t.body("wrappedBlob", &blob, AAD)).bytes("plaintext")?;
        same(&got, &b"data key".to_vec(), "plaintext")
    }),
    check(
        "unwrap.aad-empty",
        Likely,
        READING,
        "wrapped without AAD, unwrapped with empty AAD",
        "the same plaintext",
        |t| {
            let mut body = t.body("wrappedBlob", &t.blob(b"data key", b"")?, b"");
            body["additionalAuthenticatedData"] = json!("");
            same(&t.unwrap(&body).bytes("plaintext")?, &b"data key".to_vec(), "plaintext")
        },
    ),
    check("unwrap.again", Certain, RESPONSE, "the same blob twice", "the same plaintext", |t| {
        let body = t.body("wrappedBlob", &t.blob(b"data key", AAD)?, AAD);
        same(&t.unwrap(&body).bytes("plaintext")?, &t.unwrap(&body).bytes("plaintext")?, "plaintext")
    }),
    check("unwrap.url-safe", Likely, READING, "the blob in URL-safe base64 without padding", "200", |t| {
        let mut body = t.body("wrappedBlob", &t.blob(b"data key", b"")?, b"");
        let blob = t.blob(b"data key", b"")?;
        body["wrappedBlob"] = json!(URL_SAFE_NO_PAD.encode(blob));
        t.unwrap(&body).is(&[200])
    }),
    check("unwrap.health-check", Certain, "access justifications", "Google's own health check", "200", |t| {
        let mut body = t.body("wrappedBlob", &t.blob(b"data key", b"")?, b"");
        body["additionalContext"]["isKeyHealthCheck"] = json!(true);
        t.unwrap(&body).is(&[200])
    }),
    check(
        "unwrap.cache",
        Choice,
        RESPONSE,
        "the answer does not let Google keep the plaintext",
        "no allowedCacheDuration",
        |t| {
            let json = t.unwrap(&t.body("wrappedBlob", &t.blob(b"data key", b"")?, b"")).json()?;
            let allows = json.get("allowedCacheDuration").is_some();
            if allows { Err(failed("allowedCacheDuration is there")) } else { Ok("not there".into()) }
        },
    ),
    check("unwrap.changed", Likely, ERRORS, "a blob with one bit changed, at several places", FOREIGN, |t| {
        let blob = t.blob(b"data key", AAD)?;
        for at in [0, blob.len() / 4, blob.len() / 2, blob.len() - 1] {
            let mut changed = blob.clone();
            changed[at] ^= 1;
            t.unwrap(&t.body("wrappedBlob", &changed, AAD)).is(&[400])?;
        }
        Ok("400 each".into())
    }),
    check("unwrap.truncated", Likely, ERRORS, "a blob without its last byte, and one byte of it", FOREIGN, |t| {
        let blob = t.blob(b"data key", AAD)?;
        t.unwrap(&t.body("wrappedBlob", &blob[..blob.len() - 1], AAD)).is(&[400])?;
        t.unwrap(&t.body("wrappedBlob", &blob[..1], AAD)).is(&[400])
    }),
    check("unwrap.extended", Likely, ERRORS, "a blob with a byte behind it", FOREIGN, |t| {
        let blob = t.blob(b"data key", AAD)?;
        t.unwrap(&t.body("wrappedBlob", &[&blob[..], &[0]].concat(), AAD)).is(&[400])
    }),
    check("unwrap.other-aad", Likely, ERRORS, "other AAD than it was wrapped with", FOREIGN, |t| {
        t.unwrap(&t.body("wrappedBlob", &t.blob(b"data key", AAD)?, b"other data")).is(&[400])
    }),
    check("unwrap.no-aad", Likely, ERRORS, "no AAD, and it was wrapped with some", FOREIGN, |t| {
        t.unwrap(&t.body("wrappedBlob", &t.blob(b"data key", AAD)?, b"")).is(&[400])
    }),
    check("unwrap.foreign", Likely, ERRORS, "bytes that nobody has wrapped", FOREIGN, |t| {
        t.unwrap(&t.body("wrappedBlob", &[0x5a; 100], AAD)).is(&[400])
    }),
    check("unwrap.other-key", Likely, ERRORS, "a blob of another key", FOREIGN, |t| {
        let other = t.other_key()?;
        let blob = t.post(&format!("{other}:wrap"), &t.body("plaintext", b"data key", b"")).bytes("wrappedBlob")?;
        t.unwrap(&t.body("wrappedBlob", &blob, b"")).is(&[400])
    }),
    check(
        "unwrap.no-oracle",
        Choice,
        ERRORS,
        "changed, cut, with other AAD: nobody can tell them apart",
        "one and the same answer",
        no_oracle,
    ),
    check("unwrap.missing", Likely, ERRORS, "no blob", "400", |t| {
        t.unwrap(&json!({"additionalContext": t.context(1)})).is(&[400])
    }),
    check("unwrap.null", Likely, READING, "a blob of null", "400", |t| with_blob(t, Value::Null)),
    check("unwrap.base64", Likely, ERRORS, "a blob that is not base64", "400", |t| with_blob(t, json!("!!!"))),
    check("unwrap.type", Likely, ERRORS, "a blob that is a list", "400", |t| with_blob(t, json!(["AAAA"]))),
    check("unwrap.unknown-key", Likely, ERRORS, "a key that is not there", "404", |t| {
        let path = format!("{}:unwrap", t.unknown_beside(&t.options.key_path));
        t.post(&path, &t.body("wrappedBlob", &[0x5a; 100], b"")).is(&[404])
    }),
    check("unwrap.no-token", Likely, "ID token", "no token", "401", |t| {
        let body = t.body("wrappedBlob", &t.blob(b"data key", b"")?, b"");
        t.post_as(None, &format!("{}:unwrap", t.options.key_path), body.to_string()).is(&[401])
    }),
    check("unwrap.kind", Choice, ERRORS, "a key that signs", "400", |t| {
        t.post(&format!("{}:unwrap", t.sign_key()?), &t.body("wrappedBlob", &[0x5a; 100], b"")).is(&[400])
    }),
    check(
        "unwrap.resource",
        Certain,
        REQUEST,
        "another relativeResourceName than it was wrapped with",
        "the same plaintext",
        |t| {
            // A key that moves from EXTERNAL to EXTERNAL_VPC keeps its material.
            let mut body = t.body("wrappedBlob", &t.blob(b"data key", b"")?, b"");
            body["additionalContext"] = t.context(2);
            same(&t.unwrap(&body).bytes("plaintext")?, &b"data key".to_vec(), "plaintext")
        },
    ),
];

fn with_blob(t: &Target, blob: Value) -> Outcome {
    t.unwrap(&json!({"wrappedBlob": blob, "additionalContext": t.context(1)})).is(&[400])
}

fn no_oracle(t: &Target) -> Outcome {
    let blob = t.blob(b"data key", AAD)?;
    let mut changed = blob.clone();
    changed[blob.len() / 2] ^= 1;
    let bad: [(&[u8], &[u8]); 4] =
        [(&changed, AAD), (&blob[..blob.len() - 1], AAD), (&blob, b"other data"), (&[0x5a; 100], AAD)];
    let replies = bad.map(|(blob, aad)| t.unwrap(&t.body("wrappedBlob", blob, aad)));
    let first = &replies[0];
    if replies.iter().all(|reply| reply.whole().is_some() && reply.whole() == first.whole()) {
        return Ok(first.tell());
    }
    let told: Vec<_> = replies.iter().map(super::target::Reply::tell).collect();
    Err(Stop::Failed(told.join(" | ")))
}
