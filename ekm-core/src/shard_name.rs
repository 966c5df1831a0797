//! The name of a shard: the HSMs where a key version's material lives.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// What the only shard of a deployment is called, if nobody said otherwise.
const MAIN: &str = "main";
const MAX_BYTES: usize = 32;

/// 1 to 32 of `a-z 0-9 -`, beginning with a letter. [`Default`] is `main`, and costs nothing in a million versions.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ShardName(Option<Arc<str>>);

/// No name of a shard.
#[derive(Debug, thiserror::Error)]
#[error("a shard's name is 1 to {MAX_BYTES} of a-z 0-9 -, beginning with a letter")]
pub struct InvalidShardName;

impl ShardName {
    /// As text.
    pub fn as_str(&self) -> &str {
        self.0.as_deref().unwrap_or(MAIN)
    }

    /// Whether it is the one that nobody has to name.
    pub fn is_main(&self) -> bool {
        self.0.is_none()
    }
}

impl FromStr for ShardName {
    type Err = InvalidShardName;

    fn from_str(name: &str) -> Result<Self, InvalidShardName> {
        let valid = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        let begins_well = name.starts_with(|first: char| first.is_ascii_lowercase());
        if !begins_well || name.len() > MAX_BYTES || !name.bytes().all(valid) {
            return Err(InvalidShardName);
        }
        Ok(Self((name != MAIN).then(|| name.into())))
    }
}

impl TryFrom<String> for ShardName {
    type Error = InvalidShardName;

    fn try_from(name: String) -> Result<Self, InvalidShardName> {
        name.parse()
    }
}

impl From<ShardName> for String {
    fn from(name: ShardName) -> Self {
        name.as_str().into()
    }
}

impl fmt::Display for ShardName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_lower_case_and_main_is_the_default() {
        for (text, good) in [
            ("main", true),
            ("payments-2", true),
            ("a", true),
            (&"a".repeat(32), true),
            ("", false),
            ("Main", false),
            ("2a", false),
            ("-a", false),
            ("a_b", false),
            ("a b", false),
            (&"a".repeat(33), false),
        ] {
            assert_eq!(text.parse::<ShardName>().map(|name| name.to_string()).ok(), good.then(|| text.to_owned()));
        }
        assert_eq!("main".parse::<ShardName>().unwrap(), ShardName::default());
        assert_eq!(serde_json::to_string(&ShardName::default()).unwrap(), "\"main\"");
        assert!(serde_json::from_str::<ShardName>("\"A\"").is_err());
    }
}
