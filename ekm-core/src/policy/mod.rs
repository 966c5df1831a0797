//! Policies: who may use a key, for what, with which justification, and when. Typed, total, without I/O.
//!
//! A policy that is there is one that passed [`Policy::new`]: it can be evaluated, and each of its rules can match
//! something.

mod cover;
mod decide;
mod explain;
mod justifications;
mod lint;
mod preset;
mod resource;
mod strict;
#[cfg(test)]
mod tests;
mod validate;
mod window;

use serde::{Deserialize, Serialize};

pub use decide::{Aspect, Denial, DenialReason, Request, admit, by_grace, decide, decide_in_space};
pub use explain::{Explanation, RuleExplanation, Test, explain};
pub use justifications::Justifications;
pub use lint::{Warning, admits_everybody, lint};
pub use preset::Preset;
pub use resource::ResourcePattern;
pub use validate::InvalidPolicy;
pub use window::{TimeOfDay, Timestamp, Weekday, Window};

use crate::algorithm::Algorithm;
use crate::caller::CallerPattern;

/// What a caller asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Verb {
    /// Encrypt a data key.
    Wrap,
    /// Decrypt a data key.
    Unwrap,
    /// Sign.
    AsymmetricSign,
    /// Show the public half of a signing key.
    GetPublicKey,
    /// Make a key in a crypto space.
    CreateKey,
    /// Destroy a key, softly.
    DestroyKey,
    /// Ask what is allowed in a crypto space.
    CheckCryptoSpacePermissions,
}

impl Verb {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Wrap,
        Self::Unwrap,
        Self::AsymmetricSign,
        Self::GetPublicKey,
        Self::CreateKey,
        Self::DestroyKey,
        Self::CheckCryptoSpacePermissions,
    ];

    /// The reverse of [`Self::name`].
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|verb| verb.name() == name)
    }

    /// Whether it is what a key with this algorithm does.
    pub fn uses(self, algorithm: Algorithm) -> bool {
        match self {
            Self::Wrap | Self::Unwrap => algorithm.is_symmetric(),
            Self::AsymmetricSign | Self::GetPublicKey => !algorithm.is_symmetric(),
            Self::CreateKey | Self::DestroyKey | Self::CheckCryptoSpacePermissions => false,
        }
    }

    /// Whether it is for a crypto space and not for a key.
    pub fn is_for_spaces(self) -> bool {
        matches!(self, Self::CreateKey | Self::CheckCryptoSpacePermissions)
    }

    /// The protocol's name, after the colon of the URL.
    pub fn name(self) -> &'static str {
        match self {
            Self::Wrap => "wrap",
            Self::Unwrap => "unwrap",
            Self::AsymmetricSign => "asymmetricSign",
            Self::GetPublicKey => "getPublicKey",
            Self::CreateKey => "createKey",
            Self::DestroyKey => "destroyKey",
            Self::CheckCryptoSpacePermissions => "checkCryptoSpacePermissions",
        }
    }
}

/// The rules for one or more keys. A request is allowed if at least one rule allows it; there is no default rule.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "strict::Unchecked")]
pub struct Policy {
    rules: Vec<Rule>,
}

/// Allows the listed callers the listed verbs, if everything else fits too.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// Any of these.
    pub callers: Vec<CallerPattern>,
    /// Any of these.
    pub verbs: Vec<Verb>,
    /// Any of these; absent means any resource, also none.
    #[serde(default, deserialize_with = "strict::present", skip_serializing_if = "Option::is_none")]
    pub resources: Option<Vec<ResourcePattern>>,
    /// Which reasons are good enough.
    #[serde(default, deserialize_with = "strict::object")]
    pub justifications: Justifications,
    /// In any of these; absent means at any time.
    #[serde(default, deserialize_with = "strict::windows", skip_serializing_if = "Option::is_none")]
    pub times: Option<Vec<Window>>,
}

impl Rule {
    /// wrap and unwrap, for any resource, with any justification, at any time.
    pub fn for_callers(callers: Vec<CallerPattern>) -> Self {
        Self {
            callers,
            verbs: vec![Verb::Wrap, Verb::Unwrap],
            resources: None,
            justifications: Justifications::default(),
            times: None,
        }
    }
}

impl Policy {
    /// The longest JSON form, as it is written and as it is stored.
    pub const MAX_BYTES: usize = 64 * 1024;
    /// The most rules.
    pub const MAX_RULES: usize = 200;
    /// The most callers, resources and time windows of all rules together.
    pub const MAX_PATTERNS: usize = 1000;

    /// Takes rules that can each match something, and refuses any others.
    pub fn new(rules: Vec<Rule>) -> Result<Self, InvalidPolicy> {
        validate::check(&rules)?;
        let policy = Self { rules };
        // What is stored has to be readable again.
        validate::bounded("bytes", Self::MAX_BYTES, policy.to_json().len())?;
        Ok(policy)
    }

    /// Parses and validates the JSON form that the catalog stores.
    pub fn parse(json: &str) -> Result<Self, InvalidPolicy> {
        validate::bounded("bytes", Self::MAX_BYTES, json.len())?;
        strict::Unchecked::read(json)?.try_into()
    }

    /// Never empty.
    pub fn rules(&self) -> &[Rule] {
        &self.rules
    }

    /// Every caller, every verb, every justification: the policy of `ekm dev`.
    pub fn allow_everybody() -> Self {
        let everybody = CallerPattern::try_from("*".to_owned()).expect("'*' is a pattern");
        Self { rules: vec![Rule { verbs: Verb::ALL.to_vec(), ..Rule::for_callers(vec![everybody]) }] }
    }

    /// The JSON form that [`Policy::parse`] reads.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("a policy has no map with keys that are not text")
    }
}
