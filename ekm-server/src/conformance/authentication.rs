//! Who may call: the ID token, before anything else.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use secrecy::{ExposeSecret, SecretString};

use super::Confidence::{Certain, Choice, Likely};
use super::target::{Reply, Target, skipped};
use super::{Check, Stop, check};

const TOKEN: &str = "ID token";

pub(super) const CHECKS: &[Check] = &[
    check("authentication.valid", Certain, TOKEN, "a valid token is let in", "200", |t| {
        wrap_as(t, Some(&t.options.tokens.good)).is(&[200])
    }),
    check("authentication.missing", Likely, TOKEN, "no token", "401", |t| wrap_as(t, None).is(&[401])),
    check("authentication.garbage", Likely, TOKEN, "a token that is none", "401", |t| {
        wrap_as(t, Some(&"not-a-token".into())).is(&[401])
    }),
    check("authentication.unsigned", Likely, TOKEN, "the good token's claims, alg none, no signature", "401", |t| {
        let token = t.options.tokens.good.expose_secret();
        let claims = token.split('.').nth(1).ok_or_else(|| skipped("the token has no claims"))?;
        let header = URL_SAFE_NO_PAD.encode(r#"{"alg":"none","typ":"JWT"}"#);
        wrap_as(t, Some(&format!("{header}.{claims}.").into())).is(&[401])
    }),
    check(
        "authentication.signature",
        Certain,
        TOKEN,
        "the good token with one bit of its signature changed",
        "401",
        |t| wrap_as(t, Some(&with_changed_signature(t.options.tokens.good.expose_secret())?)).is(&[401]),
    ),
    check("authentication.expired", Certain, TOKEN, "a token whose time is over", "401", |t| {
        let token = t.options.tokens.expired.as_ref().ok_or_else(|| skipped("needs --expired-token-file"))?;
        wrap_as(t, Some(token)).is(&[401])
    }),
    check("authentication.audience", Certain, TOKEN, "a token for somebody else", "401", |t| {
        let token = t.options.tokens.wrong_audience.as_ref();
        wrap_as(t, Some(token.ok_or_else(|| skipped("needs --wrong-audience-token-file"))?)).is(&[401])
    }),
    check("authentication.denied", Likely, "errors", "a valid token of somebody who may not use the key", "403", |t| {
        let token = t.options.tokens.denied.as_ref().ok_or_else(|| skipped("needs --denied-token-file"))?;
        wrap_as(t, Some(token)).is(&[403])
    }),
    check("authentication.first", Choice, TOKEN, "no token, and a body that is no JSON", "401", |t| {
        t.post_as(None, &format!("{}:wrap", t.options.key_path), "{".into()).is(&[401])
    }),
    check("authentication.unknown-key", Choice, TOKEN, "no token, and a key that is not there", "401", |t| {
        let path = format!("{}:wrap", t.unknown_beside(&t.options.key_path));
        t.post_as(None, &path, t.body("plaintext", b"x", b"").to_string()).is(&[401])
    }),
];

fn wrap_as(t: &Target, token: Option<&SecretString>) -> Reply {
    t.post_as(token, &format!("{}:wrap", t.options.key_path), t.body("plaintext", b"x", b"").to_string())
}

fn with_changed_signature(token: &str) -> Result<SecretString, Stop> {
    let none = || skipped("the token has no signature");
    let (signed, signature) = token.rsplit_once('.').ok_or_else(none)?;
    let mut signature = URL_SAFE_NO_PAD.decode(signature).map_err(|_| none())?;
    *signature.first_mut().ok_or_else(none)? ^= 1;
    Ok(format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature)).into())
}
