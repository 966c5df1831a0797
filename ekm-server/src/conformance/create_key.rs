//! createKey. What is made here is destroyed when all checks are over.

use serde_json::json;

use super::Confidence::{Certain, Choice, Likely};
use super::target::{Target, failed, same, skipped, text};
use super::{Check, Outcome, Stop, check};

const RESPONSE: &str = "response";
const IDEMPOTENCE: &str = "idempotence";
const ERRORS: &str = "errors";
const SYMMETRIC: &str = "ALGORITHM_EXTERNAL_SYMMETRIC_ENCRYPTION";

pub(super) const CHECKS: &[Check] = &[
    check("create-key.answers", Likely, RESPONSE, "a key that wraps", "200, keyPath", |t| t.created(1)),
    check("create-key.usable", Certain, RESPONSE, "the new key, at once", "it wraps and unwraps", |t| {
        wraps(t, &t.created(1)?)
    }),
    check("create-key.again", Likely, IDEMPOTENCE, "the same call again", "the same path", |t| {
        same(&t.created(1)?, &t.created(1)?, "path")
    }),
    check(
        "create-key.next-version",
        Likely,
        IDEMPOTENCE,
        "the next version of the Cloud KMS key",
        "another path",
        |t| {
            if t.created(1)? == t.created(2)? { Err(failed("the same path")) } else { Ok("another path".into()) }
        },
    ),
    check("create-key.separate", Certain, RESPONSE, "a blob of the first version under the second one", "400", |t| {
        let (first, second) = (t.created(1)?, t.created(2)?);
        let blob = t.post(&format!("{first}:wrap"), &t.body("plaintext", b"data key", b"")).bytes("wrappedBlob")?;
        t.post(&format!("{second}:unwrap"), &t.body("wrappedBlob", &blob, b"")).is(&[400])
    }),
    check("create-key.other-algorithm", Choice, IDEMPOTENCE, "the same version with another algorithm", "409", |t| {
        t.created(1)?;
        t.create(1, "ALGORITHM_EC_SIGN_P256_SHA256")?.is(&[409])
    }),
    check("create-key.short-name", Choice, RESPONSE, "the algorithm without ALGORITHM_", "the same path", |t| {
        let path = t.created(1)?;
        same(&text(&t.create(1, "EXTERNAL_SYMMETRIC_ENCRYPTION")?.json()?, "keyPath")?, &path, "path")
    }),
    check("create-key.signing", Likely, RESPONSE, "a key that signs", "200, and it signs", |t| {
        t.created(1)?;
        let reply = t.create(3, "ALGORITHM_EC_SIGN_P256_SHA256")?;
        if reply.status() == Some(501) {
            return Err(skipped("the EKM makes no keys that sign: 501"));
        }
        let path = text(&reply.json()?, "keyPath")?;
        let body = json!({"data": "AAAA", "additionalContext": t.context(3)});
        t.post(&format!("{path}:asymmetricSign"), &body).implemented()?.is(&[200])
    }),
    check("create-key.unsupported", Choice, ERRORS, "an algorithm that nobody knows", "400 or 501", |t| {
        t.created(1)?;
        t.create(4, "ALGORITHM_OF_TOMORROW")?.is(&[400, 501])
    }),
    check("create-key.no-algorithm", Choice, ERRORS, "no algorithm", "400", |t| {
        t.created(1)?;
        t.post(&format!("{}:createKey", t.crypto_space()?), &json!({"additionalContext": t.context(5)})).is(&[400])
    }),
    check("create-key.no-name", Choice, ERRORS, "no relativeResourceName, which names the call", "400", |t| {
        t.created(1)?;
        t.post(&format!("{}:createKey", t.crypto_space()?), &json!({"algorithm": SYMMETRIC})).is(&[400])
    }),
    check("create-key.unknown-space", Choice, ERRORS, "a crypto space that is not there", "404", |t| {
        t.created(1)?;
        let path = t.unknown_beside(t.crypto_space()?);
        let body = json!({"algorithm": SYMMETRIC, "additionalContext": t.context(6)});
        t.post(&format!("{path}:createKey"), &body).is(&[404])
    }),
    check("create-key.no-token", Likely, "ID token", "no token", "401", |t| {
        let body = json!({"algorithm": SYMMETRIC, "additionalContext": t.context(7)}).to_string();
        t.post_as(None, &format!("{}:createKey", t.crypto_space()?), body).is(&[401])
    }),
];

fn wraps(t: &Target, path: &str) -> Outcome {
    let blob = t.post(&format!("{path}:wrap"), &t.body("plaintext", b"data key", b"aad")).bytes("wrappedBlob")?;
    let got = t.post(&format!("{path}:unwrap"), &t.body("wrappedBlob", &blob, b"aad")).bytes("plaintext")?;
    same(&got, &b"data key".to_vec(), "plaintext").map_err(|stop| match stop {
        Stop::Failed(got) => failed(format!("unwrap gave {got}")),
        other => other,
    })
}
