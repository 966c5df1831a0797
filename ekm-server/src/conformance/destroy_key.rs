//! destroyKey, of keys that createKey has made.

use serde_json::json;

use super::Confidence::{Certain, Choice, Likely};
use super::target::{Reply, failed};
use super::{Check, check};

const RESPONSE: &str = "response";
const ERRORS: &str = "errors";

pub(super) const CHECKS: &[Check] = &[
    check("destroy-key.answers", Likely, RESPONSE, "a key that is there", "200, a JSON object", |t| {
        implemented_destroy(t, 20)?.json().map(|_| "200".into())
    }),
    check("destroy-key.again", Likely, "idempotence", "the same key twice", "200 both times", |t| {
        let path = t.created(21)?;
        t.destroy(&path).implemented()?.is(&[200])?;
        t.destroy(&path).is(&[200])
    }),
    check("destroy-key.wraps-no-more", Likely, RESPONSE, "wrap with a destroyed key", "400 or 404", |t| {
        let path = t.created(22)?;
        t.destroy(&path).implemented()?.is(&[200])?;
        t.post(&format!("{path}:wrap"), &t.body("plaintext", b"data key", b"")).is(&[400, 404])
    }),
    check(
        "destroy-key.path-stays-taken",
        Certain,
        RESPONSE,
        "createKey under the destroyed key's name",
        "not its path",
        |t| {
            let path = t.created(23)?;
            t.destroy(&path).implemented()?.is(&[200])?;
            let reply = t.create(23, "ALGORITHM_EXTERNAL_SYMMETRIC_ENCRYPTION")?;
            match reply.json() {
                Ok(json) if json["keyPath"] == json!(path) => Err(failed("200, and the same path")),
                _ => Ok(reply.tell()),
            }
        },
    ),
    check("destroy-key.unknown-key", Choice, ERRORS, "a key that is not there", "404", |t| {
        let path = t.unknown_beside(&t.created(1)?);
        t.post(&format!("{path}:destroyKey"), &json!({"additionalContext": t.context(1)})).implemented()?.is(&[404])
    }),
    check("destroy-key.no-token", Likely, "ID token", "no token", "401, and the key is still there", |t| {
        let path = t.created(24)?;
        t.post_as(None, &format!("{path}:destroyKey"), "{}".into()).is(&[401])?;
        t.post(&format!("{path}:wrap"), &t.body("plaintext", b"data key", b"")).is(&[200])?;
        Ok("401, and the key wraps".into())
    }),
];

fn implemented_destroy(t: &super::Target, version: u32) -> Result<Reply, super::Stop> {
    t.destroy(&t.created(version)?).implemented()
}
