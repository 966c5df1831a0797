//! Who calls: the identity inside a verified token.

use std::hash::{DefaultHasher, Hasher};

use serde::{Deserialize, Serialize};

use crate::glob;

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

impl Caller {
    /// The same number for the same address; another one for another, but for chance.
    pub fn number(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        hasher.write(self.email.as_bytes());
        hasher.finish()
    }
}

/// E-mail addresses, with `*` for any run of characters: `service-*@gcp-sa-ekms.iam.gserviceaccount.com`, or `*` alone
/// for every caller; or `project:123`, the Cloud EKM service agent of the project with this number. Compared byte by
/// byte.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct CallerPattern(String);

const AGENT_PREFIX: &str = "service-";
const AGENT_SUFFIX: &str = "@gcp-sa-ekms.iam.gserviceaccount.com";

/// The address of a project's Cloud EKM service agent.
fn service_agent(project_number: &str) -> String {
    format!("{AGENT_PREFIX}{project_number}{AGENT_SUFFIX}")
}

impl CallerPattern {
    /// Whether `email` fits.
    pub fn matches(&self, email: &str) -> bool {
        match self.project_number() {
            Some(number) => {
                email.strip_prefix(AGENT_PREFIX).and_then(|rest| rest.strip_suffix(AGENT_SUFFIX)) == Some(number)
            }
            None => glob::matches(&self.0, email),
        }
    }

    /// As it was written.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    fn project_number(&self) -> Option<&str> {
        self.0.strip_prefix("project:")
    }

    /// Whether it matches whatever `other` matches.
    pub(crate) fn covers(&self, other: &Self) -> bool {
        match (self.project_number(), other.project_number()) {
            (_, Some(number)) => self.matches(&service_agent(number)),
            (Some(_), None) => self.matches(&other.0),
            (None, None) => glob::covers(&self.0, &other.0),
        }
    }

    /// Whether it matches every e-mail address that has a dot in its domain, as every address of Google's has: `*`,
    /// `*@*`, `*.*`. Such a pattern has no letter, and stars at both ends; what it has in between, `a@b.c` has too.
    pub(crate) fn matches_every_address(&self) -> bool {
        let bare =
            self.0.starts_with('*') && self.0.ends_with('*') && self.0.bytes().all(|byte| b"*@.".contains(&byte));
        bare && self.matches("a@b.c")
    }

    /// Whether it matches the Cloud EKM service agent of every project. A pattern without a digit matches all of them
    /// or none.
    pub(crate) fn matches_every_service_agent(&self) -> bool {
        !self.0.bytes().any(|byte| byte.is_ascii_digit()) && self.matches_some_service_agent()
    }

    /// Whether it matches the Cloud EKM service agent of any project. Digits of the pattern can only be in the
    /// project's number, and its stars can be empty; so if any number fits, then the one that is made of these digits
    /// alone does.
    pub(crate) fn matches_some_service_agent(&self) -> bool {
        let digits: String = self.0.chars().filter(char::is_ascii_digit).collect();
        self.matches(&service_agent(if digits.is_empty() { "1" } else { &digits }))
    }
}

impl TryFrom<String> for CallerPattern {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        if text.trim() != text || text.is_empty() {
            return Err("a caller is an e-mail address, or a pattern with '*' in it, without spaces around");
        }
        if !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(
                "a caller consists of ASCII letters, digits and signs, without spaces in it; write it anew by hand: \
                        a letter that only looks like one of these would never match",
            );
        }
        if let Some(number) = text.strip_prefix("project:") {
            // Exactly as it stands in the address, or it would never match.
            if number.starts_with('0')
                || !number.bytes().all(|byte| byte.is_ascii_digit())
                || number.parse::<u64>().is_err()
            {
                return Err("after 'project:' comes the project's number, such as project:123456789012; not its id: \
                            'gcloud projects describe ID --format=\"value(projectNumber)\"' tells the number");
            }
            return Ok(Self(text));
        }
        if !text.contains(['@', '*']) {
            return Err("a caller is an e-mail address, or a pattern with '*' in it; this has neither '@' nor '*'");
        }
        if text.starts_with('@') || text.ends_with('@') || text.matches('@').count() > 1 {
            return Err(
                "a caller is an e-mail address, or a pattern with '*' in it; it has one '@', and something on \
                        either side of it, or it would never match",
            );
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
    use proptest::prelude::*;

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
    }

    #[test]
    fn a_project_stands_for_its_service_agent_alone() {
        let project = pattern("project:123");
        assert!(project.matches("service-123@gcp-sa-ekms.iam.gserviceaccount.com"));
        for foreign in
            ["service-1234@gcp-sa-ekms.iam.gserviceaccount.com", "service-123@example.com", "project:123", ""]
        {
            assert!(!project.matches(foreign), "{foreign}");
        }
    }

    #[test]
    fn a_pattern_that_can_match_no_address_is_refused() {
        for text in [
            "",
            " ",
            " a@example.com",
            "nonsense",
            "a b@example.com",
            "a@exаmple.com",
            "a\u{7f}@example.com",
            "a\u{200b}@b",
            "@example.com",
            "a@",
            "*@",
            "a@b@c",
            "project:",
            "project:*",
            "project:0",
            "project:0123",
            "project:my-project",
            "project:-1",
            "project:99999999999999999999999",
            "project:١٢",
            "project:+1",
        ] {
            assert!(CallerPattern::try_from(text.to_owned()).is_err(), "{text:?} was accepted");
        }
    }

    #[test]
    fn a_pattern_that_matches_everybody_is_known_as_such() {
        for text in ["*", "**", "*@*", "**@**", "*.*", "*@*.*", "*.**"] {
            assert!(pattern(text).matches_every_address(), "{text}");
        }
        for text in ["a*", "*a*", "*@*.com", "*.*@*", "*.*.*", "*@.*", "*@b", ".*", "*.", "project:1", "a@b.c"] {
            assert!(!pattern(text).matches_every_address(), "{text}");
        }
    }

    #[test]
    fn it_is_known_which_patterns_match_service_agents() {
        for (text, some, every) in [
            ("*", true, true),
            ("service-*@gcp-sa-ekms.iam.gserviceaccount.com", true, true),
            ("*gserviceaccount.com", true, true),
            ("project:123", true, false),
            ("service-12*@gcp-sa-ekms.iam.gserviceaccount.com", true, false),
            ("*1*2*", true, false),
            ("service-123@gcp-sa-ekms.iam.gserviceaccount.com", true, false),
            ("service-123@gcp-sa-cloudkms.iam.gserviceaccount.com", false, false),
            ("*@example.com", false, false),
            ("me@example.com", false, false),
            ("*1x*", false, false),
        ] {
            assert_eq!(
                (pattern(text).matches_some_service_agent(), pattern(text).matches_every_service_agent()),
                (some, every),
                "{text}"
            );
        }
    }

    #[test]
    fn a_project_and_its_service_agent_cover_each_other() {
        let (project, agent) = (pattern("project:12"), pattern("service-12@gcp-sa-ekms.iam.gserviceaccount.com"));
        assert!(project.covers(&agent) && agent.covers(&project) && pattern("*-12@*").covers(&project));
        assert!(!project.covers(&pattern("service-*@gcp-sa-ekms.iam.gserviceaccount.com")));
        assert!(!project.covers(&pattern("project:1")) && !pattern("a@b").covers(&project));
    }

    proptest! {
        #[test]
        fn any_text_is_a_pattern_or_refused(text in any::<String>(), email in any::<String>()) {
            if let Ok(pattern) = CallerPattern::try_from(text) {
                pattern.matches(&email);
            }
        }
    }
}
