//! Who calls: the identity inside a verified token.

use serde::{Deserialize, Serialize};

/// A caller whose token was verified: signature, issuer, audience, and time all hold.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Caller {
    /// The token's `email`, mostly a Cloud EKM service agent.
    pub email: String,
    /// The token's `email_verified`.
    pub email_verified: bool,
    /// The token's `sub`.
    pub subject: String,
    /// The token's `iss`.
    pub issuer: String,
}

/// E-mail addresses, with `*` for any run of characters: `service-*@gcp-sa-ekms.iam.gserviceaccount.com`, or `*` alone for
/// every caller. Compared byte by byte: look-alike letters never match.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct CallerPattern(String);

impl CallerPattern {
    /// Whether `email` fits.
    pub fn matches(&self, email: &str) -> bool {
        let mut parts = self.0.split('*');
        let first = parts.next().unwrap_or_default();
        let Some(mut rest) = email.strip_prefix(first) else { return false };
        let mut last = None;
        for part in parts {
            if let Some(middle) = last.replace(part) {
                match rest.find(middle) {
                    Some(at) => rest = &rest[at + middle.len()..],
                    None => return false,
                }
            }
        }
        match last {
            Some(end) => rest.ends_with(end),
            None => rest.is_empty(),
        }
    }
}

impl TryFrom<String> for CallerPattern {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        if text.trim() != text || text.is_empty() {
            return Err("a caller is an e-mail address, or a pattern with '*' in it, without spaces around");
        }
        if !text.contains(['@', '*']) {
            return Err("a caller is an e-mail address, or a pattern with '*' in it; this has neither '@' nor '*'");
        }
        Ok(Self(text))
    }
}

impl From<CallerPattern> for String {
    fn from(pattern: CallerPattern) -> Self {
        pattern.0
    }
}

/// What is wrong with a token. The text goes to the caller (401), so it never repeats anything of the token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenDefect {
    /// No `Authorization` header.
    #[error("no Authorization header; send 'Authorization: Bearer <ID token>'")]
    Missing,
    /// Two headers, another scheme, or not three base64url parts.
    #[error("the Authorization header does not hold one bearer token in JWS compact form")]
    Malformed,
    /// Not RS256, or the header carries members that could redirect the check (`jku`, `jwk`, `x5u`, `x5c`, `crit`, `b64`).
    #[error("the token's header is not acceptable; RS256 with a 'kid' and nothing that changes the check is")]
    Header,
    /// The issuer's key set does not hold the key that the token names.
    #[error("the token is signed with a key that its issuer does not publish")]
    UnknownKey,
    /// The signature does not fit.
    #[error("the token's signature does not fit")]
    Signature,
    /// `iss` is none of ours.
    #[error("the token's issuer is not trusted here")]
    Issuer,
    /// `aud` is not ours, or not ours alone.
    #[error("the token is for another audience")]
    Audience,
    /// Expired, not yet valid, or living longer than allowed.
    #[error("the token is expired, not yet valid, or valid for too long")]
    Time,
    /// A claim is missing, doubled, or of the wrong type.
    #[error("the token's claims are incomplete or contradictory")]
    Claims,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pattern(text: &str) -> CallerPattern {
        CallerPattern::try_from(text.to_owned()).unwrap()
    }

    #[test]
    fn a_star_stands_for_any_run_and_everything_else_for_itself() {
        let agents = pattern("service-*@gcp-sa-ekms.iam.gserviceaccount.com");
        assert!(agents.matches("service-123@gcp-sa-ekms.iam.gserviceaccount.com"));
        assert!(!agents.matches("service-123@gcp-sa-ekms.iam.gserviceaccount.com.evil.example"));
        assert!(!agents.matches("xservice-123@gcp-sa-ekms.iam.gserviceaccount.com"));
        assert!(!agents.matches("service-123@gcp-sa-ekms.iam.gserviceaccount.cоm"), "Cyrillic o");
        assert!(pattern("*").matches("anyone@example.com"));
        assert!(pattern("a@example.com").matches("a@example.com"));
        assert!(!pattern("a@example.com").matches("aa@example.com"));
        assert!(pattern("a*b*c").matches("a-b-b-c"));
        assert!(!pattern("a*a").matches("a"), "the two ends must not overlap");
    }

    #[test]
    fn a_blank_pattern_is_refused() {
        for text in ["", " ", " a@example.com", "nonsense"] {
            assert!(CallerPattern::try_from(text.to_owned()).is_err());
        }
    }
}
