//! One JWT: strict about everything that RFC 8725 warns of. The library checks signature, issuer, audience, expiry; what
//! is checked before and after it is what it leaves open.

use std::collections::BTreeMap;
use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ekm_core::caller::{Caller, TokenDefect};
use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{DecodingKey, Validation};
use serde::de::{self, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::Value;

const MAX_TOKEN_BYTES: usize = 8192;
const MAX_KID_BYTES: usize = 128;
/// Members that would fetch a key from elsewhere, bring one along, or change how the signature is computed.
const FORBIDDEN: &[&str] = &["jku", "jwk", "x5u", "x5c", "crit", "b64", "zip", "enc", "cty"];
/// JSON numbers above this are not exact everywhere (RFC 7493 §2.2).
const MAX_SAFE_INTEGER: u64 = 1 << 53;

/// A JSON object that names no member twice: parsers disagree on which one counts.
struct UniqueObject(BTreeMap<String, Value>);

impl<'de> Deserialize<'de> for UniqueObject {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Members;
        impl<'de> Visitor<'de> for Members {
            type Value = UniqueObject;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<UniqueObject, A::Error> {
                let mut members = BTreeMap::new();
                while let Some((name, value)) = map.next_entry::<String, Value>()? {
                    if members.insert(name, value).is_some() {
                        return Err(de::Error::custom("a member twice"));
                    }
                }
                Ok(UniqueObject(members))
            }
        }
        deserializer.deserialize_map(Members)
    }
}

/// The only thing that a token's header may tell us.
pub(super) struct Header {
    pub(super) kid: String,
}

/// Reads and checks the header of a token whose signature is not checked yet.
pub(super) fn header(token: &str) -> Result<Header, TokenDefect> {
    if token.len() > MAX_TOKEN_BYTES || token.split('.').count() != 3 {
        return Err(TokenDefect::Malformed);
    }
    let UniqueObject(members) = part(token, 0, TokenDefect::Header)?;
    let text = |name| members.get(name).and_then(Value::as_str);
    if text("alg") != Some("RS256") || FORBIDDEN.iter().any(|name| members.contains_key(*name)) {
        return Err(TokenDefect::Header);
    }
    if members.contains_key("typ") && !text("typ").is_some_and(|typ| typ.eq_ignore_ascii_case("JWT")) {
        return Err(TokenDefect::Header);
    }
    match text("kid") {
        Some(kid) if !kid.is_empty() && kid.len() <= MAX_KID_BYTES => Ok(Header { kid: kid.to_owned() }),
        _ => Err(TokenDefect::Header),
    }
}

/// The issuer that a token claims, to choose the key set that must confirm it.
pub(super) fn unverified_issuer(token: &str) -> Result<String, TokenDefect> {
    let UniqueObject(mut claims) = part(token, 1, TokenDefect::Claims)?;
    match claims.remove("iss") {
        Some(Value::String(issuer)) => Ok(issuer),
        _ => Err(TokenDefect::Claims),
    }
}

fn part(token: &str, index: usize, defect: TokenDefect) -> Result<UniqueObject, TokenDefect> {
    let encoded = token.split('.').nth(index).unwrap_or_default();
    let json = URL_SAFE_NO_PAD.decode(encoded).map_err(|_| TokenDefect::Malformed)?;
    serde_json::from_slice(&json).map_err(|_| defect)
}

/// The claims of a token whose signature, issuer, audience and expiry hold.
pub(super) struct Claims(BTreeMap<String, Value>);

/// Checks signature, issuer, audience, expiry.
pub(super) fn verify(token: &str, key: &DecodingKey, validation: &Validation) -> Result<Claims, TokenDefect> {
    let token = jsonwebtoken::decode::<UniqueObject>(token, key, validation).map_err(|error| match error.kind() {
        ErrorKind::InvalidSignature => TokenDefect::Signature,
        ErrorKind::ExpiredSignature | ErrorKind::ImmatureSignature => TokenDefect::Time,
        ErrorKind::InvalidAudience => TokenDefect::Audience,
        ErrorKind::InvalidIssuer => TokenDefect::Issuer,
        ErrorKind::InvalidAlgorithm | ErrorKind::InvalidAlgorithmName => TokenDefect::Header,
        // Header and claims have been decoded before; it is the signature.
        ErrorKind::Base64(_) | ErrorKind::InvalidToken => TokenDefect::Malformed,
        _ => TokenDefect::Claims,
    })?;
    let claims = Claims(token.claims.0);
    // The library is content if one of several audiences is ours; then the other one could use the token here.
    match claims.0.get("aud") {
        Some(Value::String(_)) => Ok(claims),
        Some(Value::Array(audiences)) if audiences.len() == 1 => Ok(claims),
        _ => Err(TokenDefect::Audience),
    }
}

impl Claims {
    /// Checks the times, all in seconds since 1970, and returns when the token expires.
    pub(super) fn check_time(&self, now: u64, leeway: u64, max_lifetime: u64) -> Result<u64, TokenDefect> {
        let time = |name| match self.0.get(name) {
            None => Ok(None),
            Some(value) => value.as_u64().filter(|&time| time < MAX_SAFE_INTEGER).map(Some).ok_or(TokenDefect::Claims),
        };
        let expires = time("exp")?.ok_or(TokenDefect::Claims)?;
        let issued = time("iat")?.ok_or(TokenDefect::Claims)?;
        let not_before = time("nbf")?.unwrap_or(issued);
        let begun = issued.max(not_before) <= now + leeway;
        let over = expires + leeway <= now;
        let short = expires > issued && expires - issued <= max_lifetime;
        if begun && !over && short { Ok(expires) } else { Err(TokenDefect::Time) }
    }

    /// The identity.
    pub(super) fn into_caller(mut self) -> Result<Caller, TokenDefect> {
        let mut text = |name| match self.0.remove(name) {
            Some(Value::String(text)) if !text.is_empty() && text.len() <= 512 => Ok(text),
            _ => Err(TokenDefect::Claims),
        };
        let (email, subject, issuer) = (text("email")?, text("sub")?, text("iss")?);
        match self.0.get("email_verified") {
            Some(&Value::Bool(email_verified)) => Ok(Caller { email, email_verified, subject, issuer }),
            _ => Err(TokenDefect::Claims),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn token(header: &str) -> String {
        format!("{}.e30.c2ln", URL_SAFE_NO_PAD.encode(header))
    }

    #[test]
    fn a_header_that_could_redirect_the_check_is_refused() {
        assert_eq!(header(&token(r#"{"alg":"RS256","kid":"a","typ":"JWT"}"#)).map(|h| h.kid), Ok("a".into()));
        for text in [
            r#"{"alg":"none","kid":"a"}"#,
            r#"{"alg":"None","kid":"a"}"#,
            r#"{"alg":"HS256","kid":"a"}"#,
            r#"{"alg":["RS256"],"kid":"a"}"#,
            r#"{"kid":"a"}"#,
            r#"{"alg":"RS256"}"#,
            r#"{"alg":"RS256","kid":""}"#,
            r#"{"alg":"RS256","kid":5}"#,
            r#"{"alg":"RS256","kid":"a","kid":"b"}"#,
            r#"{"alg":"RS256","alg":"none","kid":"a"}"#,
            r#"{"alg":"RS256","kid":"a","jku":"https://evil.example"}"#,
            r#"{"alg":"RS256","kid":"a","crit":["b64"],"b64":false}"#,
            r#"{"alg":"RS256","kid":"a","jwk":{}}"#,
            r#"{"alg":"RS256","kid":"a","x5c":[]}"#,
            r#"{"alg":"RS256","kid":"a","typ":"at+jwt"}"#,
            r#"{"alg":"RS256","kid":"a","cty":"JWT"}"#,
            "[]",
            "",
            "\"RS256\"",
        ] {
            assert!(header(&token(text)).is_err(), "{text} was accepted");
        }
        assert!(header(&token(&format!(r#"{{"alg":"RS256","kid":"{}"}}"#, "k".repeat(129)))).is_err());
    }

    #[test]
    fn times_are_checked_against_each_other_and_the_clock() {
        let check = |json: &str| {
            let UniqueObject(claims) = serde_json::from_str(json).unwrap();
            Claims(claims).check_time(1000, 60, 3700)
        };
        assert_eq!(check(r#"{"iat":900,"exp":4500}"#), Ok(4500));
        assert_eq!(check(r#"{"iat":1059,"exp":1100}"#), Ok(1100), "within the leeway");
        assert_eq!(check(r#"{"iat":900,"exp":941}"#), Ok(941), "within the leeway");
        for bad in [
            r#"{"iat":900,"exp":940}"#,
            r#"{"iat":1061,"exp":1100}"#,
            r#"{"iat":900,"nbf":1061,"exp":1100}"#,
            r#"{"iat":900,"exp":4601}"#,
            r#"{"exp":4500}"#,
            r#"{"iat":900}"#,
            r#"{"iat":900,"exp":"4500"}"#,
            r#"{"iat":900,"exp":-1}"#,
            r#"{"iat":900,"exp":4500.5}"#,
            r#"{"iat":"900","exp":4500}"#,
            r#"{"iat":900,"nbf":"x","exp":4500}"#,
            r#"{"iat":2000,"exp":1500}"#,
            r#"{"iat":900,"exp":18446744073709551615}"#,
        ] {
            assert!(check(bad).is_err(), "{bad} was accepted");
        }
    }

    proptest! {
        #[test]
        fn reading_a_token_never_panics(text in "[A-Za-z0-9_.=-]{0,120}") {
            let _ = header(&text);
            let _ = unverified_issuer(&text);
        }

        #[test]
        fn reading_any_header_never_panics(json in "\\{?.{0,80}\\}?") {
            let _ = header(&token(&json));
        }
    }
}
