//! Policies: who may use a key, for what, and with which justification. Typed, total, without I/O.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::caller::{Caller, CallerPattern};
use crate::justification::{Justification, Reason};

/// What a caller asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Verb {
    /// Encrypt a data key.
    Wrap,
    /// Decrypt a data key.
    Unwrap,
}

impl Verb {
    /// The protocol's name, after the colon of the URL.
    pub fn name(self) -> &'static str {
        match self {
            Self::Wrap => "wrap",
            Self::Unwrap => "unwrap",
        }
    }
}

/// The rules for one or more keys. A request is allowed if at least one rule allows it; there is no default rule.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Policy {
    /// Never empty: [`Policy::parse`] refuses a policy that could allow nothing.
    pub rules: Vec<Rule>,
}

/// Allows the listed callers the listed verbs, if the justification fits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// Any of these.
    pub callers: Vec<CallerPattern>,
    /// Any of these.
    pub verbs: Vec<Verb>,
    /// Which reasons are good enough.
    #[serde(default)]
    pub justifications: Justifications,
}

/// Three separate decisions: about reasons that we know, about none at all, and about reasons that we do not know.
/// The default allows all three, which is Google's own default for keys without Key Access Justifications.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Justifications {
    /// The known reasons that are allowed; absent means every one of them, `REASON_UNSPECIFIED` included.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allowed: Option<Vec<Reason>>,
    /// Whether a request without any context is allowed.
    #[serde(default = "yes")]
    pub missing: bool,
    /// Whether a reason that this version does not know is allowed.
    #[serde(default = "yes")]
    pub unknown: bool,
}

fn yes() -> bool {
    true
}

impl Default for Justifications {
    fn default() -> Self {
        Self { allowed: None, missing: true, unknown: true }
    }
}

impl Justifications {
    fn allow(&self, justification: &Justification) -> bool {
        match justification {
            Justification::Missing => self.missing,
            Justification::Unknown => self.unknown,
            Justification::Known(reason) => self.allowed.as_ref().is_none_or(|allowed| allowed.contains(reason)),
        }
    }
}

/// Why a stored or written policy is refused. Such a policy is never evaluated.
#[derive(Debug, thiserror::Error)]
pub enum InvalidPolicy {
    /// Not JSON, an unknown field, a wrong type, an unknown verb or reason.
    #[error("{0}")]
    Syntax(#[from] serde_json::Error),
    /// A policy that could allow nothing would deny everything, and a denial disables key versions at Google.
    #[error("{} has no {what}; what can match nothing denies by accident", if *.rule == 0 { "it".into() } else { format!("rule {rule}") })]
    Blank {
        /// Counted from 1; 0 stands for the policy itself.
        rule: usize,
        /// What is empty.
        what: &'static str,
    },
}

impl Policy {
    /// Parses and validates the JSON form that the catalog stores.
    pub fn parse(json: &str) -> Result<Self, InvalidPolicy> {
        let policy: Self = serde_json::from_str(json)?;
        if policy.rules.is_empty() {
            return Err(InvalidPolicy::Blank { rule: 0, what: "rules" });
        }
        for (index, rule) in policy.rules.iter().enumerate() {
            let blank = |what| Err(InvalidPolicy::Blank { rule: index + 1, what });
            if rule.callers.is_empty() {
                return blank("callers");
            }
            if rule.verbs.is_empty() {
                return blank("verbs");
            }
            let justifications = &rule.justifications;
            let none_known = justifications.allowed.as_ref().is_some_and(Vec::is_empty);
            if none_known && !justifications.missing && !justifications.unknown {
                return blank("justification that it would accept");
            }
        }
        Ok(policy)
    }

    /// Every caller, both verbs, every justification: the policy of `ekm dev`.
    pub fn allow_everybody() -> Self {
        let everybody = CallerPattern::try_from("*".to_owned()).expect("'*' is a pattern");
        let rule = Rule {
            callers: vec![everybody],
            verbs: vec![Verb::Wrap, Verb::Unwrap],
            justifications: Justifications::default(),
        };
        Self { rules: vec![rule] }
    }

    /// The JSON form that [`Policy::parse`] reads.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("a policy has no map with keys that are not text")
    }
}

/// A complete decision against a request. Only this module can make one, and only by evaluating a rule: that is how
/// nothing else can become a 403, which would make Google disable the key version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Denial {
    reason: DenialReason,
}

/// The most advanced of the tests that a request failed.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum DenialReason {
    /// The token is valid, but its e-mail address is not one that may call this service at all.
    NotAdmitted,
    /// No rule names the caller.
    Caller,
    /// Rules name the caller, but not for this verb.
    Verb(&'static str),
    /// Rules name caller and verb, but not this justification.
    Justification(&'static str),
}

impl Denial {
    /// What failed.
    pub fn reason(&self) -> &DenialReason {
        &self.reason
    }
}

impl fmt::Display for Denial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.reason {
            DenialReason::NotAdmitted => write!(f, "this e-mail address is not one that may call this service"),
            DenialReason::Caller => write!(f, "the key's policy does not name this caller"),
            DenialReason::Verb(verb) => write!(f, "the key's policy does not allow this caller to {verb}"),
            DenialReason::Justification(given) => {
                write!(f, "the key's policy does not accept the justification {given}")
            }
        }
    }
}

/// Decides about one use of a key. Pure: same input, same answer.
pub fn decide(policy: &Policy, caller: &Caller, verb: Verb, justification: &Justification) -> Result<(), Denial> {
    let mut furthest = DenialReason::Caller;
    for rule in &policy.rules {
        if !rule.callers.iter().any(|pattern| pattern.matches(&caller.email)) {
            continue;
        }
        if !rule.verbs.contains(&verb) {
            furthest = furthest.max(DenialReason::Verb(verb.name()));
            continue;
        }
        if rule.justifications.allow(justification) {
            return Ok(());
        }
        furthest = furthest.max(DenialReason::Justification(justification.name()));
    }
    Err(Denial { reason: furthest })
}

/// Decides whether a verified caller may use the service at all: its address is verified and fits a pattern.
pub fn admit(admitted: &[CallerPattern], caller: &Caller) -> Result<(), Denial> {
    if caller.email_verified && admitted.iter().any(|pattern| pattern.matches(&caller.email)) {
        return Ok(());
    }
    Err(Denial { reason: DenialReason::NotAdmitted })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn caller(email: &str) -> Caller {
        Caller { email: email.into(), email_verified: true, subject: "1".into(), issuer: "i".into() }
    }

    const STRICT: &str = r#"{"rules":[
        {"callers":["reader@example.com"],"verbs":["unwrap"]},
        {"callers":["a@example.com"],"verbs":["wrap","unwrap"],
         "justifications":{"allowed":["CUSTOMER_INITIATED_ACCESS"],"missing":false,"unknown":false}}]}"#;

    #[test]
    fn a_request_is_allowed_by_a_rule_that_fits_in_every_respect() {
        let policy = Policy::parse(STRICT).unwrap();
        let good = Justification::Known(Reason::CustomerInitiatedAccess);
        assert_eq!(decide(&policy, &caller("a@example.com"), Verb::Wrap, &good), Ok(()));
        assert_eq!(decide(&policy, &caller("reader@example.com"), Verb::Unwrap, &Justification::Missing), Ok(()));
    }

    #[test]
    fn a_denial_names_the_furthest_test_that_failed() {
        let policy = Policy::parse(STRICT).unwrap();
        let denied = |email, verb, justification: &Justification| {
            decide(&policy, &caller(email), verb, justification).unwrap_err().reason
        };
        let good = Justification::Known(Reason::CustomerInitiatedAccess);
        assert_eq!(denied("b@example.com", Verb::Wrap, &good), DenialReason::Caller);
        assert_eq!(denied("reader@example.com", Verb::Wrap, &good), DenialReason::Verb("wrap"));
        for bad in [Justification::Missing, Justification::Unknown, Justification::Known(Reason::Unspecified)] {
            assert_eq!(denied("a@example.com", Verb::Wrap, &bad), DenialReason::Justification(bad.name()));
        }
    }

    #[test]
    fn missing_unspecified_unknown_and_known_are_four_separate_decisions() {
        for case in 0..16u8 {
            let [missing, unspecified, unknown, known] = [case & 1 > 0, case & 2 > 0, case & 4 > 0, case & 8 > 0];
            let mut allowed = Vec::new();
            allowed.extend(unspecified.then_some(Reason::Unspecified));
            allowed.extend(known.then_some(Reason::GoogleInitiatedReview));
            let rules = Justifications { allowed: Some(allowed), missing, unknown };
            assert_eq!(rules.allow(&Justification::Missing), missing);
            assert_eq!(rules.allow(&Justification::Known(Reason::Unspecified)), unspecified);
            assert_eq!(rules.allow(&Justification::Unknown), unknown);
            assert_eq!(rules.allow(&Justification::Known(Reason::GoogleInitiatedReview)), known);
        }
    }

    #[test]
    fn a_policy_that_could_allow_nothing_is_refused() {
        for json in [
            "",
            "{}",
            r#"{"rules":[]}"#,
            r#"{"rules":null}"#,
            r#"{"rules":[{"callers":[],"verbs":["wrap"]}]}"#,
            r#"{"rules":[{"callers":[""],"verbs":["wrap"]}]}"#,
            r#"{"rules":[{"callers":["*"],"verbs":[]}]}"#,
            r#"{"rules":[{"callers":["*"],"verbs":["destroy"]}]}"#,
            r#"{"rules":[{"callers":["*"],"verbs":["wrap"],"justifications":{"allowed":[],"missing":false,"unknown":false}}]}"#,
            r#"{"rules":[{"callers":["*"],"verbs":["wrap"],"justifications":{"allowed":["FOO"]}}]}"#,
            r#"{"rules":[{"callers":["*"],"verbs":["wrap"]}],"extra":1}"#,
        ] {
            assert!(Policy::parse(json).is_err(), "{json} was accepted");
        }
    }

    #[test]
    fn a_policy_survives_the_way_through_the_catalog() {
        for policy in [Policy::parse(STRICT).unwrap(), Policy::allow_everybody()] {
            assert_eq!(Policy::parse(&policy.to_json()).unwrap(), policy);
        }
    }

    #[test]
    fn an_unverified_or_foreign_address_is_not_admitted() {
        let ours = [CallerPattern::try_from("service-*@ours.example".to_owned()).unwrap()];
        assert_eq!(admit(&ours, &caller("service-1@ours.example")), Ok(()));
        assert!(admit(&ours, &caller("service-1@theirs.example")).is_err());
        let unverified = Caller { email_verified: false, ..caller("service-1@ours.example") };
        assert!(admit(&ours, &unverified).is_err());
    }
}
