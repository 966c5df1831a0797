//! checkCryptoSpacePermissions.

use serde_json::json;

use super::Confidence::{Choice, Likely};
use super::target::{Reply, Target, failed};
use super::{Check, Stop, check};

const RESPONSE: &str = "response";
const ERRORS: &str = "errors";

pub(super) const CHECKS: &[Check] = &[
    check("crypto-space.answers", Likely, RESPONSE, "createKey and destroyKey", "200, a list of permissions", |t| {
        let json = ask(t, &["createKey", "destroyKey"])?.json()?;
        let held = json["permissions"].as_array().ok_or_else(|| failed("200, and permissions is no list"))?;
        Ok(format!("{} held", held.len()))
    }),
    check("crypto-space.none", Choice, RESPONSE, "no permissions", "200, none of them held", |t| {
        let json = ask(t, &[])?.json()?;
        let none = json["permissions"].as_array().is_none_or(Vec::is_empty);
        if none { Ok("none".into()) } else { Err(failed("some")) }
    }),
    check(
        "crypto-space.unknown-permission",
        Choice,
        RESPONSE,
        "a permission that nobody knows",
        "403, or 200 without it",
        |t| {
            let reply = ask(t, &["singLullabies"])?;
            if reply.status() == Some(403) {
                return Ok(reply.tell());
            }
            let json = reply.json()?;
            let held = json["permissions"].as_array().is_some_and(|held| held.contains(&json!("singLullabies")));
            if held { Err(failed("200, and it is held")) } else { Ok("200 without it".into()) }
        },
    ),
    check("crypto-space.unknown", Choice, ERRORS, "a crypto space that is not there", "404", |t| {
        ask(t, &["createKey"])?;
        let path = format!("{}:checkCryptoSpacePermissions", t.unknown_beside(t.crypto_space()?));
        t.post(&path, &json!({"permissions": ["createKey"], "additionalContext": t.context(1)})).is(&[404])
    }),
    check("crypto-space.type", Likely, ERRORS, "permissions that are a text", "400", |t| {
        ask(t, &["createKey"])?;
        let path = format!("{}:checkCryptoSpacePermissions", t.crypto_space()?);
        t.post(&path, &json!({"permissions": "createKey", "additionalContext": t.context(1)})).is(&[400])
    }),
    check("crypto-space.no-token", Likely, "ID token", "no token", "401", |t| {
        let path = format!("{}:checkCryptoSpacePermissions", t.crypto_space()?);
        t.post_as(None, &path, r#"{"permissions":["createKey"]}"#.into()).is(&[401])
    }),
];

fn ask(t: &Target, permissions: &[&str]) -> Result<Reply, Stop> {
    let path = format!("{}:checkCryptoSpacePermissions", t.crypto_space()?);
    t.post(&path, &json!({"permissions": permissions, "additionalContext": t.context(1)})).implemented()
}
