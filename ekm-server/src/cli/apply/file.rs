//! The file of `ekm apply`: spaces, policies and keys as they should be. A field that is not there is left as it is in the
//! catalog, so that a file can say as little as its author cares for.

use std::collections::{BTreeMap, BTreeSet};

use ekm_core::catalog::{Custody, KeyState, SpaceState};
use ekm_core::policy::Policy;
use ekm_core::{Algorithm, KeyPath, ShardName};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::There;
use crate::cli::output::escape_lines;

/// The whole file.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct KeysFile {
    #[serde(default)]
    pub(super) spaces: Vec<WantedSpace>,
    #[serde(default)]
    pub(super) policies: Vec<WantedPolicy>,
    #[serde(default)]
    pub(super) keys: Vec<WantedKey>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct WantedSpace {
    pub(super) path: KeyPath,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) state: Option<SpaceState>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) shard: Option<ShardName>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) labels: Option<BTreeMap<String, String>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) description: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct WantedPolicy {
    pub(super) name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) description: Option<String>,
    pub(super) policy: Value,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct WantedKey {
    /// The first one names it.
    pub(super) paths: Vec<KeyPath>,
    pub(super) space: KeyPath,
    pub(super) policy: WantedChoice,
    /// Absent for a new key: it wraps.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) algorithm: Option<Algorithm>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) custody: Option<Custody>,
    /// 0: rotated by hand only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) rotation_days: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) labels: Option<BTreeMap<String, String>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) description: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) state: Option<WantedState>,
}

/// A file pauses keys; it never destroys one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum WantedState {
    Enabled,
    Disabled,
}

/// A policy's name, or a policy of the key's own.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Value", into = "Value")]
pub(super) enum WantedChoice {
    Named(String),
    Own(Value),
}

impl TryFrom<Value> for WantedChoice {
    type Error = &'static str;

    fn try_from(value: Value) -> Result<Self, Self::Error> {
        match value {
            Value::String(name) => Ok(Self::Named(name)),
            policy @ Value::Object(_) => Ok(Self::Own(policy)),
            _ => Err("a key's policy is a policy's name, or a policy with its rules"),
        }
    }
}

impl From<WantedChoice> for Value {
    fn from(choice: WantedChoice) -> Self {
        match choice {
            WantedChoice::Named(name) => Self::String(name),
            WantedChoice::Own(policy) => policy,
        }
    }
}

impl KeysFile {
    /// Reads YAML, or JSON, which is YAML too. Unknown fields and doubled keys are refused, with the line.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let file: Self = serde_saphyr::from_str(text).map_err(|error| escape_lines(&error.to_string()))?;
        let problems = file.problems();
        if problems.is_empty() { Ok(file) } else { Err(problems.join("\n")) }
    }

    /// What the file contradicts itself in, or could never become.
    fn problems(&self) -> Vec<String> {
        let (mut problems, mut spaces, mut names, mut paths) =
            (Vec::new(), BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
        for space in &self.spaces {
            if !spaces.insert(&space.path) {
                problems.push(format!("space {} is there twice", space.path));
            }
        }
        for policy in &self.policies {
            if !names.insert(&policy.name) {
                problems.push(format!("policy {} is there twice", policy.name));
            }
            problems.extend(refused(&policy.policy).map(|why| format!("policy {}: {why}", policy.name)));
        }
        for (index, key) in self.keys.iter().enumerate() {
            let Some(first) = key.paths.first() else {
                problems.push(format!("key number {} has no path", index + 1));
                continue;
            };
            for path in &key.paths {
                if !paths.insert(path) {
                    problems.push(format!("key {first}: the path {path} is there twice"));
                }
            }
            if let WantedChoice::Own(policy) = &key.policy {
                problems.extend(refused(policy).map(|why| format!("key {first}: its policy is refused: {why}")));
            }
        }
        problems.iter().map(|problem| escape_lines(problem)).collect()
    }

    /// What is there, as a file that would make it so. Keys that are destroyed, or will be, are left out.
    pub(super) fn of(there: &There) -> Self {
        let text = |text: &String| Some(text.clone()).filter(|text| !text.is_empty());
        let labels = |labels: &BTreeMap<_, _>| Some(labels.clone()).filter(|labels| !labels.is_empty());
        let spaces = there.spaces.iter().map(|space| WantedSpace {
            path: space.path.clone(),
            state: Some(space.state),
            shard: Some(space.shard.clone()).filter(|shard| !shard.is_main()),
            labels: labels(&space.labels),
            description: text(&space.description),
        });
        let policies = there.policies.iter().filter(|policy| !there.is_own(&policy.name)).map(|policy| WantedPolicy {
            name: policy.name.clone(),
            description: text(&policy.description),
            policy: policy.policy.clone(),
        });
        let keys = there.keys.iter().filter_map(|key| {
            let state = match key.state {
                KeyState::Enabled => WantedState::Enabled,
                KeyState::Disabled => WantedState::Disabled,
                KeyState::DestroyScheduled | KeyState::Destroyed => return None,
            };
            let own = there.policy(&key.policy).filter(|policy| there.is_own(&policy.name));
            Some(WantedKey {
                paths: key.paths.clone(),
                space: KeyPath::parse(&key.space).ok()?,
                policy: own
                    .map_or(WantedChoice::Named(key.policy.clone()), |own| WantedChoice::Own(own.policy.clone())),
                algorithm: Some(key.algorithm).filter(|algorithm| !algorithm.is_symmetric()),
                custody: Some(key.custody),
                rotation_days: key.rotation_days,
                labels: labels(&key.labels),
                description: text(&key.description),
                state: Some(state),
            })
        });
        Self { spaces: spaces.collect(), policies: policies.collect(), keys: keys.collect() }
    }

    /// YAML that [`Self::parse`] reads.
    pub(super) fn to_yaml(&self) -> Result<String, String> {
        serde_saphyr::to_string(self).map_err(|error| error.to_string())
    }
}

fn refused(policy: &Value) -> Option<String> {
    Policy::parse(&policy.to_string()).err().map(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sample_is_a_good_file() {
        let sample = KeysFile::parse(include_str!("../../../../deploy/config/keys.yaml")).unwrap();
        assert!(!sample.spaces.is_empty() && !sample.policies.is_empty() && !sample.keys.is_empty());
        assert_eq!(KeysFile::parse(&sample.to_yaml().unwrap()).unwrap(), sample);
        assert_eq!(KeysFile::parse(&serde_json::to_string(&sample).unwrap()).unwrap(), sample, "JSON is YAML");
    }

    #[test]
    fn mistakes_are_refused_with_their_line() {
        for (text, line, expected) in [
            ("spaces:\n  - path: v0/cryptospaces/a\n    lables: {}\n", "3", "lables"),
            ("spaces:\n  - path: v0/cryptospaces/a\n    path: v0/cryptospaces/b\n", "3", "duplicate"),
            ("spaces:\n  - path: v0/cryptospaces/a\n    labels:\n      a: b\n      a: c\n", "5", "duplicate"),
            ("spaces:\n  - path: v0//a\n", "2", "empty segment"),
            ("policies:\n  - name: a\n    policy: {rules: [], rules: []}\n", "3", "duplicate"),
            ("keys:\n  - paths: [v0/keys/a]\n    space: v0/cryptospaces/a\n    policy: 7\n", "4", "a policy's name"),
            ("keys:\n  - paths: [v0/keys/a]\n    space: s\n    policy: p\n    state: destroyed\n", "5", "destroyed"),
        ] {
            let error = KeysFile::parse(text).unwrap_err();
            assert!(error.contains(expected) && error.contains(line), "{text}\ngave:\n{error}");
        }
    }

    #[test]
    fn what_contradicts_itself_is_refused_by_name() {
        let key = "{paths: [v0/keys/a], space: s, policy: p}";
        for (text, expected) in [
            ("spaces: [{path: s}, {path: s}]".into(), "space s is there twice"),
            ("policies: [{name: p, policy: {rules: []}}]".into(), "policy p: it has no rules"),
            ("keys: [{paths: [], space: s, policy: p}]".into(), "key number 1 has no path"),
            (format!("keys: [{key}, {key}]"), "key v0/keys/a: the path v0/keys/a is there twice"),
            (
                "keys: [{paths: [a], space: s, policy: {rules: []}}]".into(),
                "key a: its policy is refused: it has no rules",
            ),
        ] {
            let error = KeysFile::parse(&text).unwrap_err();
            assert!(error.contains(expected), "{text}\ngave:\n{error}");
        }
    }
}
