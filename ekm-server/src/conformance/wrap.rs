//! wrap.

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use http::Method;
use serde_json::{Value, json};

use super::Confidence::{Certain, Choice, Likely};
use super::target::{Target, failed};
use super::{Check, Outcome, check};
use crate::remote::Call;

const REQUEST: &str = "request";
const READING: &str = "proto3 JSON";
const ERRORS: &str = "errors";
const CONTEXT: &str = "access justifications";
/// The largest plaintext of Cloud KMS, and what its own encryption adds.
const LARGEST_BYTES: usize = 64 * 1024 + 100;

pub(super) const CHECKS: &[Check] = &[
    check("wrap.answers", Certain, "response", "a data key is wrapped", "200, wrappedBlob in standard base64", |t| {
        let blob = t.blob(&[7; 32], b"aad")?;
        if blob.is_empty() { Err(failed("200, and wrappedBlob is empty")) } else { Ok(format!("{} bytes", blob.len())) }
    }),
    check("wrap.media-type", Likely, "response", "the answer says that it is JSON", "application/json", |t| {
        let reply = t.wrap(&t.body("plaintext", b"x", b""));
        reply.is(&[200])?;
        let got = reply.media_type().unwrap_or("no media type").to_owned();
        if got.starts_with("application/json") { Ok(got) } else { Err(failed(got)) }
    }),
    check("wrap.secret", Certain, "response", "the plaintext is not in the blob", "a blob without it", |t| {
        let plaintext = b"a plaintext that nothing else would hold";
        let blob = t.blob(plaintext, b"")?;
        let shown = blob.windows(8).any(|bytes| plaintext.windows(8).any(|piece| piece == bytes));
        if shown { Err(failed("a part of the plaintext is in the blob")) } else { Ok("not in it".into()) }
    }),
    check("wrap.fresh", Choice, "response", "the same plaintext twice", "two blobs that differ", |t| {
        if t.blob(b"same", b"")? == t.blob(b"same", b"")? {
            Err(failed("the same blob"))
        } else {
            Ok("they differ".into())
        }
    }),
    check("wrap.largest", Certain, REQUEST, "64 KiB with what Cloud KMS adds, and 64 KiB of AAD", "200", |t| {
        t.wrap(&t.body("plaintext", &[7; LARGEST_BYTES], &[8; 64 * 1024])).is(&[200])
    }),
    check("wrap.oversize", Choice, REQUEST, "a plaintext of 1 MiB", "400 or 413", |t| {
        t.wrap(&t.body("plaintext", &[7; 1 << 20], b"")).is(&[400, 413])
    }),
    check("wrap.health-check", Certain, CONTEXT, "Google's own health check", "200", |t| {
        with(t, |body| body["additionalContext"]["isKeyHealthCheck"] = json!(true), &[200])
    }),
    check("wrap.missing", Likely, ERRORS, "no plaintext", "400", |t| {
        t.wrap(&json!({"additionalContext": t.context(1)})).is(&[400])
    }),
    check("wrap.null", Likely, READING, "a plaintext of null", "400", |t| {
        with(t, |body| body["plaintext"] = Value::Null, &[400])
    }),
    check("wrap.base64", Likely, ERRORS, "a plaintext that is not base64", "400", |t| {
        with(t, |body| body["plaintext"] = json!("!!!"), &[400])
    }),
    check("wrap.aad-base64", Likely, ERRORS, "AAD that is not base64", "400", |t| {
        with(t, |body| body["additionalAuthenticatedData"] = json!("!!!"), &[400])
    }),
    check("wrap.type", Likely, ERRORS, "a plaintext that is a number", "400", |t| {
        with(t, |body| body["plaintext"] = json!(5), &[400])
    }),
    check("wrap.context-type", Likely, ERRORS, "a context that is a text", "400", |t| {
        with(t, |body| body["additionalContext"] = json!("x"), &[400])
    }),
    check("wrap.reason-type", Likely, ERRORS, "a reason that is an object", "400", |t| {
        with(t, |body| body["additionalContext"]["accessReasonContext"]["reason"] = json!({}), &[400])
    }),
    check("wrap.empty-body", Likely, ERRORS, "no body", "400", |t| raw(t, "", &[400])),
    check("wrap.json", Likely, ERRORS, "a body that is no JSON", "400", |t| raw(t, "{\"plaintext\":", &[400])),
    check("wrap.list", Likely, ERRORS, "a body that is a list", "400", |t| raw(t, "[]", &[400])),
    check("wrap.twice", Choice, READING, "a field twice", "400", |t| {
        raw(t, r#"{"plaintext":"AAAA","plaintext":"AAAB"}"#, &[400])
    }),
    check("wrap.unknown-field", Likely, READING, "a field that is not known", "200: it is ignored", |t| {
        with(t, |body| body["aFieldOfTomorrow"] = json!({"a": [1, {"b": null}]}), &[200])
    }),
    check("wrap.null-field", Likely, READING, "null for what may be absent", "200", |t| {
        with(t, |body| body["additionalAuthenticatedData"] = Value::Null, &[200])
    }),
    check("wrap.url-safe", Likely, READING, "URL-safe base64 without padding", "200", |t| {
        with(t, |body| body["plaintext"] = json!(URL_SAFE_NO_PAD.encode([0xfb, 0xff, 0xbf, 0xfe])), &[200])
    }),
    check("wrap.snake-case", Likely, READING, "names in snake_case", "200", |t| {
        let context = t.context(1);
        let body = json!({
            "plaintext": "AAAA", "additional_authenticated_data": "AAAA",
            "additional_context": {
                "relative_resource_name": context["relativeResourceName"],
                "access_reason_context": context["accessReasonContext"],
                "is_key_health_check": true,
            },
        });
        t.wrap(&body).is(&[200])
    }),
    check("wrap.charset", Likely, REQUEST, "application/json; charset=utf-8", "200", |t| {
        let body = t.body("plaintext", b"x", b"").to_string();
        let path = format!("{}:wrap", t.options.key_path);
        let (token, content_type) = (Some(&t.options.tokens.good), Some("application/json; charset=utf-8"));
        t.send(&Call { method: Method::POST, path: &path, token, content_type, body }).is(&[200])
    }),
    check("wrap.reason-number", Likely, CONTEXT, "a reason by its number", "200", |t| {
        with(t, |body| body["additionalContext"]["accessReasonContext"]["reason"] = json!(5), &[200])
    }),
    check("wrap.reason-missing", Likely, CONTEXT, "no context at all", "200 or 403, by the key's policy", |t| {
        t.wrap(&json!({"plaintext": STANDARD.encode("x")})).is(&[200, 403])
    }),
    check(
        "wrap.reason-unspecified",
        Likely,
        CONTEXT,
        "a reason context without a reason",
        "200 or 403, by the key's policy",
        |t| with(t, |body| body["additionalContext"]["accessReasonContext"] = json!({}), &[200, 403]),
    ),
    check(
        "wrap.reason-unknown",
        Choice,
        CONTEXT,
        "a reason that nobody knows",
        "200 or 403, by the key's policy",
        |t| {
            let reason = json!("REASON_OF_TOMORROW");
            with(t, |body| body["additionalContext"]["accessReasonContext"]["reason"] = reason, &[200, 403])
        },
    ),
    check("wrap.key-path", Choice, REQUEST, "keyPath in the body, as in the URL", "200", |t| {
        with(t, |body| body["keyPath"] = json!(t.options.key_path), &[200])
    }),
    check("wrap.key-path-other", Choice, REQUEST, "another keyPath in the body than in the URL", "400", |t| {
        with(t, |body| body["keyPath"] = json!(t.unknown_beside(&t.options.key_path)), &[400])
    }),
    check("wrap.unknown-key", Likely, ERRORS, "a key that is not there", "404", |t| {
        let path = format!("{}:wrap", t.unknown_beside(&t.options.key_path));
        t.post(&path, &t.body("plaintext", b"x", b"")).is(&[404])
    }),
    check("wrap.error-body", Likely, ERRORS, "the body of an error", "google.rpc.Status: code 3 and a message", |t| {
        let reply = t.wrap(&json!({}));
        reply.is(&[400])?;
        let status = reply.rpc_status()?;
        // Google's own envelope repeats the HTTP status there, and has the name beside it.
        let matches = status["code"] == 3 || status["status"] == "INVALID_ARGUMENT";
        if matches { Ok(reply.tell()) } else { Err(failed(format!("code {}", status["code"]))) }
    }),
    check("wrap.unknown-method", Choice, ERRORS, "a method that is not there", "404 or 501", |t| {
        t.post(&format!("{}:wrapAndSing", t.options.key_path), &t.body("plaintext", b"x", b"")).is(&[404, 501])
    }),
    check("wrap.get", Certain, REQUEST, "GET instead of POST", "404 or 405", |t| {
        let path = format!("{}:wrap", t.options.key_path);
        let token = Some(&t.options.tokens.good);
        t.send(&Call { method: Method::GET, path: &path, token, content_type: None, body: String::new() })
            .is(&[404, 405])
    }),
    check("wrap.encoded-colon", Choice, REQUEST, "%3A instead of the colon before the verb", "200", |t| {
        t.post(&format!("{}%3Awrap", t.options.key_path), &t.body("plaintext", b"x", b"")).is(&[200])
    }),
    check("wrap.kind", Choice, ERRORS, "a key that signs", "400", |t| {
        let reply = t.post(&format!("{}:wrap", t.sign_key()?), &t.body("plaintext", b"x", b""));
        reply.is(&[400])
    }),
    check("wrap.time", Certain, "deadline", "ten wraps, one after the other", "a median below the deadline", |t| {
        let mut times = Vec::new();
        for _ in 0..10 {
            let reply = t.wrap(&t.body("plaintext", &[7; 60], b""));
            reply.is(&[200])?;
            times.push(reply.took);
        }
        times.sort();
        let (median, limit) = (times[5], t.options.deadline);
        let got = format!("median {:.1} ms, slowest {:.1} ms", ms(median), ms(times[9]));
        if median < limit { Ok(got) } else { Err(failed(got)) }
    }),
];

fn ms(time: std::time::Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

/// A good request, changed.
fn with(t: &Target, change: impl FnOnce(&mut Value), statuses: &[u16]) -> Outcome {
    let mut body = t.body("plaintext", b"x", b"");
    change(&mut body);
    t.wrap(&body).is(statuses)
}

fn raw(t: &Target, body: &str, statuses: &[u16]) -> Outcome {
    t.post_as(Some(&t.options.tokens.good), &format!("{}:wrap", t.options.key_path), body.into()).is(statuses)
}
