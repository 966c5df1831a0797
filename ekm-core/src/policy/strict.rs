//! Reading policies strictly: an object is written as an object, an optional field is there or not, an error names its
//! rule.

use std::fmt;

use serde::de::{self, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

use super::{InvalidPolicy, Policy, Rule, Window};
use crate::json::Object;

/// A policy that is well-formed, and not yet validated.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Unchecked {
    #[serde(deserialize_with = "rules")]
    rules: Vec<Rule>,
}

impl Unchecked {
    pub(super) fn read(json: &str) -> Result<Self, serde_json::Error> {
        serde_json::from_str(json).map(|Object(unchecked)| unchecked)
    }
}

impl TryFrom<Unchecked> for Policy {
    type Error = InvalidPolicy;

    fn try_from(unchecked: Unchecked) -> Result<Self, InvalidPolicy> {
        Self::new(unchecked.rules)
    }
}

pub(super) fn object<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<T, D::Error> {
    Object::deserialize(deserializer).map(|Object(value)| value)
}

/// An optional field: left out, or with a value. `null` would widen a rule where somebody forgot to fill in its bound.
pub(super) fn present<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Option<T>, D::Error> {
    T::deserialize(deserializer).map(Some)
}

pub(super) fn windows<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Vec<Window>>, D::Error> {
    let windows = Vec::<Object<Window>>::deserialize(deserializer)?;
    Ok(Some(windows.into_iter().map(|Object(window)| window).collect()))
}

fn rules<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Rule>, D::Error> {
    struct Rules;
    impl<'de> Visitor<'de> for Rules {
        type Value = Vec<Rule>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a list of rules")
        }
        fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Vec<Rule>, A::Error> {
            let mut rules = Vec::new();
            loop {
                let number = rules.len() + 1;
                let named = |error: A::Error| de::Error::custom(format_args!("rule {number}: {error}"));
                match list.next_element().map_err(named)? {
                    Some(Object(rule)) => rules.push(rule),
                    None => return Ok(rules),
                }
            }
        }
    }
    deserializer.deserialize_seq(Rules)
}
