//! Confidential sessions, as far as they can be asked without speaking TLS inside: what must not be let in.

use serde_json::{Value, json};

use super::Confidence::Certain;
use super::target::{Reply, Target, failed, skipped};
use super::{Check, Stop, check};

const SESSION: &str = "session";

pub(super) const CHECKS: &[Check] = &[
    check(
        "session.empty-records",
        Certain,
        SESSION,
        "beginsession without records",
        "not 200 with empty records",
        |t| {
            let reply = session(t, "beginsession", &json!({"tlsRecords": ""}))?;
            match reply.json() {
                Ok(json) if json["tlsRecords"].as_str().is_none_or(str::is_empty) => {
                    Err(failed("200 with empty records"))
                }
                _ => Ok(reply.tell()),
            }
        },
    ),
    check(
        "session.garbage",
        Certain,
        SESSION,
        "beginsession with records that are no TLS",
        "not 200 with empty records",
        |t| {
            let reply = session(t, "beginsession", &json!({"tlsRecords": "AAAA"}))?;
            match reply.json() {
                Ok(json) if json["tlsRecords"].as_str().is_none_or(str::is_empty) => {
                    Err(failed("200 with empty records"))
                }
                _ => Ok(reply.tell()),
            }
        },
    ),
    check("session.unknown-handshake", Certain, SESSION, "handshake in a session that is not there", "not 200", |t| {
        session(t, "handshake", &unknown())?.is_not(200)
    }),
    check("session.unknown-finalize", Certain, SESSION, "finalize in a session that is not there", "not 200", |t| {
        let body = json!({"sessionContext": "bm9uZQ==", "attestationEvidenceRecords": ""});
        session(t, "finalize", &body)?.is_not(200)
    }),
    check(
        "session.unknown-wrap",
        Certain,
        SESSION,
        "confidentialwrap in a session that is not there",
        "not 200",
        |t| {
            let reply = t.post(&format!("{}:confidentialwrap", t.options.key_path), &unknown()).implemented()?;
            reply.is_not(200)
        },
    ),
];

fn unknown() -> Value {
    json!({"sessionContext": "bm9uZQ==", "tlsRecords": "AAAA"})
}

/// Sessions live beside the keys: at the key's URI less its last two components.
fn session(t: &Target, step: &str, body: &Value) -> Result<Reply, Stop> {
    let base = t.options.key_path.rsplitn(3, '/').nth(2).unwrap_or_default();
    let begun = t.post(&format!("{base}/session/beginsession"), &json!({"tlsRecords": ""}));
    if matches!(begun.status(), Some(404 | 405 | 501)) {
        return Err(skipped(format!("the EKM has no confidential sessions: {}", begun.tell())));
    }
    Ok(t.post(&format!("{base}/session/{step}"), body))
}
