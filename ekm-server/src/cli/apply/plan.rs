//! What has to be done so that the catalog becomes as a file says: a pure function of both.

use std::collections::{BTreeMap, BTreeSet};

use ekm_core::KeyPath;
use ekm_core::catalog::{KeyState, SpaceState};
use ekm_core::policy::Policy;
use serde::Serialize;
use serde_json::{Value, json};

use super::There;
use super::file::{KeysFile, WantedChoice, WantedKey, WantedPolicy, WantedSpace, WantedState};
use crate::admin::api::{Command, FieldChange, KeyView, PolicyChoice};

/// One change.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Step {
    /// Such as `key v0/keys/orders`.
    pub(super) object: String,
    /// What is sent.
    pub(super) command: Command,
    /// What it changes.
    pub(super) changes: Vec<FieldChange>,
    /// The revision of the object that the plan was made for; none for what the plan itself makes.
    pub(super) seen: Option<u64>,
}

/// Everything that has to be done, in this order, and what the operator should know.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct Plan {
    pub(super) steps: Vec<Step>,
    pub(super) warnings: Vec<String>,
}

/// Compares. The error lists what no command can bring about.
pub(super) fn plan(wanted: &KeysFile, there: &There) -> Result<Plan, Vec<String>> {
    let mut planner = Planner { there, wanted, plan: Plan::default(), problems: Vec::new() };
    wanted.spaces.iter().for_each(|space| planner.space(space));
    wanted.policies.iter().for_each(|policy| planner.policy(policy));
    wanted.keys.iter().for_each(|key| planner.key(key));
    planner.not_in_file();
    if planner.problems.is_empty() { Ok(planner.plan) } else { Err(planner.problems) }
}

struct Planner<'a> {
    there: &'a There,
    wanted: &'a KeysFile,
    plan: Plan,
    problems: Vec<String>,
}

impl Planner<'_> {
    fn step(&mut self, object: &str, seen: Option<u64>, command: Command, changes: Vec<FieldChange>) {
        self.plan.steps.push(Step { object: object.into(), command, changes, seen });
    }

    fn space(&mut self, wanted: &WantedSpace) {
        let object = format!("space {}", wanted.path);
        let path = || wanted.path.clone();
        let Some(there) = self.there.spaces.iter().find(|space| space.path == wanted.path) else {
            let (labels, description) =
                (wanted.labels.clone().unwrap_or_default(), wanted.description.clone().unwrap_or_default());
            let mut changes = vec![change("path", Value::Null, json!(wanted.path))];
            changes.extend(metadata((&BTreeMap::new(), ""), (&labels, &description)));
            let shard = wanted.shard.clone();
            changes.extend(shard.as_ref().map(|shard| change("shard", Value::Null, json!(shard))));
            self.step(&object, None, Command::SpaceCreate { path: path(), shard, labels, description }, changes);
            if wanted.state == Some(SpaceState::Blocked) {
                let changes = vec![change("state", json!("enabled"), json!("blocked"))];
                self.step(&object, None, Command::SpaceBlock { path: path() }, changes);
            }
            return;
        };
        let seen = Some(there.revision);
        if let Some(shard) = wanted.shard.as_ref().filter(|shard| **shard != there.shard) {
            self.problems.push(format!(
                "{object} is in shard {}, and the file says {shard}: 'ekm space move {} --to {shard}' brings its keys there",
                there.shard, wanted.path
            ));
        }
        let labels = wanted.labels.clone().unwrap_or_else(|| there.labels.clone());
        let description = wanted.description.clone().unwrap_or_else(|| there.description.clone());
        let changes = metadata((&there.labels, &there.description), (&labels, &description));
        if !changes.is_empty() {
            self.step(&object, seen, Command::SpaceUpdate { path: path(), labels, description }, changes);
        }
        let Some(state) = wanted.state.filter(|state| *state != there.state) else { return };
        let command = match state {
            SpaceState::Blocked => Command::SpaceBlock { path: path() },
            SpaceState::Enabled => {
                self.plan.warnings.push(format!("{object} is blocked, and the file lets its keys go on"));
                Command::SpaceUnblock { path: path() }
            }
        };
        let changes = vec![change("state", json!(there.state.name()), json!(state.name()))];
        self.step(&object, seen, command, changes);
    }

    fn policy(&mut self, wanted: &WantedPolicy) {
        let object = format!("policy {}", wanted.name);
        let (name, policy) = (wanted.name.clone(), wanted.policy.clone());
        let Some(there) = self.there.policy(&wanted.name) else {
            let description = wanted.description.clone().unwrap_or_default();
            let mut changes = vec![change("policy", Value::Null, policy.clone())];
            changes.extend(metadata((&BTreeMap::new(), ""), (&BTreeMap::new(), &description)));
            self.step(&object, None, Command::PolicyCreate { name, policy, description }, changes);
            return;
        };
        let description = wanted.description.clone().unwrap_or_else(|| there.description.clone());
        let mut changes = Vec::new();
        compare("policy", &normal(&there.policy), &normal(&policy), &mut changes);
        changes.extend(metadata((&BTreeMap::new(), &there.description), (&BTreeMap::new(), &description)));
        if !changes.is_empty() {
            let command = Command::PolicySet { name, policy, description, is_final: false };
            self.step(&object, Some(there.revision), command, changes);
        }
    }

    fn key(&mut self, wanted: &WantedKey) {
        let Some(first) = wanted.paths.first() else { return };
        let object = format!("key {first}");
        let in_file = self.wanted.spaces.iter().any(|space| space.path == wanted.space);
        if !in_file && !self.there.spaces.iter().any(|space| space.path == wanted.space) {
            self.problems
                .push(format!("{object}: the space {} is neither in the file nor in the catalog", wanted.space));
        }
        if let WantedChoice::Named(name) = &wanted.policy {
            let in_file = self.wanted.policies.iter().any(|policy| policy.name == *name);
            if !in_file && self.there.policy(name).is_none() {
                self.problems.push(format!("{object}: the policy {name} is neither in the file nor in the catalog"));
            }
        }
        let mut found = self.there.keys.iter().filter(|key| key.paths.iter().any(|path| wanted.paths.contains(path)));
        match (found.next(), found.next()) {
            (None, _) => self.new_key(&object, wanted),
            (Some(key), None) => self.old_key(&object, wanted, key),
            (Some(a), Some(b)) => {
                let (a, b) = (name(a), name(b));
                self.problems.push(format!("{object}: its paths belong to several keys in the catalog, {a} and {b}"));
            }
        }
    }

    fn new_key(&mut self, object: &str, wanted: &WantedKey) {
        let path = &wanted.paths[0];
        let labels = wanted.labels.clone().unwrap_or_default();
        let description = wanted.description.clone().unwrap_or_default();
        let rotation_days = wanted.rotation_days.filter(|days| *days > 0);
        let mut changes = vec![
            change("path", Value::Null, json!(path)),
            change("space", Value::Null, json!(wanted.space)),
            change("policy", Value::Null, wanted.policy.clone().into()),
        ];
        changes.extend(wanted.algorithm.map(|algorithm| change("algorithm", Value::Null, json!(algorithm.name()))));
        changes.extend(wanted.custody.map(|custody| change("custody", Value::Null, json!(custody.name()))));
        changes.extend(rotation_days.map(|days| change("rotation_days", Value::Null, json!(days))));
        changes.extend(metadata((&BTreeMap::new(), ""), (&labels, &description)));
        let command = Command::KeyCreate {
            path: path.clone(),
            space: wanted.space.clone(),
            policy: choice(&wanted.policy),
            algorithm: wanted.algorithm,
            custody: wanted.custody,
            rotation_days,
            labels,
            description,
        };
        self.step(object, None, command, changes);
        self.paths(object, None, path, &wanted.paths[1..]);
        if wanted.state == Some(WantedState::Disabled) {
            let changes = vec![change("state", json!("enabled"), json!("disabled"))];
            self.step(object, None, Command::KeyDisable { path: path.clone(), version: None }, changes);
        }
    }

    fn old_key(&mut self, object: &str, wanted: &WantedKey, there: &KeyView) {
        if matches!(there.state, KeyState::DestroyScheduled | KeyState::Destroyed) {
            self.problems.push(format!(
                "{object} is {} in the catalog: take it out of the file, or take the destruction back while there is time \
                 ('ekm key undelete')",
                there.state.name()
            ));
            return;
        }
        if there.space != wanted.space.as_str() {
            self.problems
                .push(format!("{object} is in the space {}, and a key cannot be moved to another", there.space));
        }
        if let Some(algorithm) = wanted.algorithm.filter(|algorithm| *algorithm != there.algorithm) {
            self.problems.push(format!(
                "{object} has algorithm {}, and that of a key that is there cannot be changed to {}",
                there.algorithm.name(),
                algorithm.name()
            ));
        }
        if let Some(custody) = wanted.custody.filter(|custody| *custody != there.custody) {
            self.problems.push(format!(
                "{object} has custody {}, and that of a key that is there cannot be changed to {}",
                there.custody.name(),
                custody.name()
            ));
        }
        let Some(path) = there.paths.first().cloned() else { return };
        let seen = Some(there.revision);
        // Pausing comes before everything else, going on after everything else.
        let state = wanted.state.filter(|state| (*state == WantedState::Enabled) != (there.state == KeyState::Enabled));
        if state == Some(WantedState::Disabled) {
            let changes = vec![change("state", json!("enabled"), json!("disabled"))];
            self.step(object, seen, Command::KeyDisable { path: path.clone(), version: None }, changes);
        }
        let new: Vec<_> = wanted.paths.iter().filter(|path| !there.paths.contains(path)).cloned().collect();
        self.paths(object, seen, &path, &new);
        for path in there.paths.iter().filter(|path| !wanted.paths.contains(path)) {
            self.plan
                .warnings
                .push(format!("{object} also has the path {path}, which is not in the file; paths stay for ever"));
        }
        let labels = wanted.labels.clone().unwrap_or_else(|| there.labels.clone());
        let description = wanted.description.clone().unwrap_or_else(|| there.description.clone());
        let changes = metadata((&there.labels, &there.description), (&labels, &description));
        if !changes.is_empty() {
            self.step(object, seen, Command::KeyUpdate { path: path.clone(), labels, description }, changes);
        }
        let every_days = wanted.rotation_days.map_or(there.rotation_days, |days| Some(days).filter(|days| *days > 0));
        if every_days != there.rotation_days {
            let changes = vec![change("rotation_days", json!(there.rotation_days), json!(every_days))];
            self.step(object, seen, Command::KeySetRotation { path: path.clone(), every_days }, changes);
        }
        let changes = self.policy_changes(&wanted.policy, there);
        if !changes.is_empty() {
            let policy = choice(&wanted.policy);
            let command = Command::KeySetPolicy { path: path.clone(), policy, is_final: false };
            self.step(object, seen, command, changes);
        }
        if state == Some(WantedState::Enabled) {
            self.plan.warnings.push(format!(
                "{object} is disabled, and the file enables it: make sure that nobody has paused it for a reason"
            ));
            let changes = vec![change("state", json!("disabled"), json!("enabled"))];
            self.step(object, seen, Command::KeyEnable { path, version: None }, changes);
        }
    }

    fn paths(&mut self, object: &str, seen: Option<u64>, path: &KeyPath, new: &[KeyPath]) {
        for new in new {
            let command = Command::KeyAddPath { path: path.clone(), new: new.clone() };
            self.step(object, seen, command, vec![change("paths", Value::Null, json!(new))]);
        }
    }

    fn policy_changes(&self, wanted: &WantedChoice, there: &KeyView) -> Vec<FieldChange> {
        let mut changes = Vec::new();
        match (wanted, self.there.is_own(&there.policy)) {
            (WantedChoice::Named(name), _) => compare("policy", &json!(there.policy), &json!(name), &mut changes),
            (WantedChoice::Own(policy), true) => {
                let before = self.there.policy(&there.policy).map_or(Value::Null, |before| normal(&before.policy));
                compare("policy", &before, &normal(policy), &mut changes);
            }
            (WantedChoice::Own(policy), false) => changes.push(change("policy", json!(there.policy), policy.clone())),
        }
        changes
    }

    /// Nothing is ever deleted, so what a file leaves out is only told.
    fn not_in_file(&mut self) {
        let (wanted, there) = (self.wanted, self.there);
        let paths: BTreeSet<_> = wanted.keys.iter().flat_map(|key| &key.paths).collect();
        let alive = |key: &&KeyView| matches!(key.state, KeyState::Enabled | KeyState::Disabled);
        let spaces = there.spaces.iter().filter(|there| !wanted.spaces.iter().any(|space| space.path == there.path));
        let policies =
            there.policies.iter().filter(|there| !wanted.policies.iter().any(|policy| policy.name == there.name));
        let keys = there.keys.iter().filter(alive).filter(|key| !key.paths.iter().any(|path| paths.contains(path)));
        let objects = spaces.map(|space| format!("space {}", space.path));
        let objects = objects.chain(
            policies.filter(|policy| !there.is_own(&policy.name)).map(|policy| format!("policy {}", policy.name)),
        );
        let objects = objects.chain(keys.map(|key| format!("key {}", name(key))));
        let left_out =
            objects.map(|object| format!("{object} is in the catalog and not in the file; it stays as it is"));
        self.plan.warnings.extend(left_out);
    }
}

fn name(key: &KeyView) -> String {
    key.paths.first().map_or_else(|| key.id.to_string(), ToString::to_string)
}

fn choice(wanted: &WantedChoice) -> PolicyChoice {
    match wanted {
        WantedChoice::Named(name) => PolicyChoice::Named(name.clone()),
        WantedChoice::Own(policy) => PolicyChoice::Own(policy.clone()),
    }
}

/// A policy with its defaults filled in, so that two ways to write one are no difference.
fn normal(policy: &Value) -> Value {
    let parsed = Policy::parse(&policy.to_string());
    parsed.ok().and_then(|parsed| serde_json::to_value(parsed).ok()).unwrap_or_else(|| policy.clone())
}

fn change(field: &str, before: Value, after: Value) -> FieldChange {
    FieldChange { field: field.into(), before, after }
}

fn metadata(before: (&BTreeMap<String, String>, &str), after: (&BTreeMap<String, String>, &str)) -> Vec<FieldChange> {
    let mut changes = Vec::new();
    compare("labels", &json!(before.0), &json!(after.0), &mut changes);
    let text = |text: &str| if text.is_empty() { Value::Null } else { json!(text) };
    compare("description", &text(before.1), &text(after.1), &mut changes);
    changes
}

/// The smallest differences between two values, each under the name of its place.
fn compare(field: &str, before: &Value, after: &Value, changes: &mut Vec<FieldChange>) {
    match (before, after) {
        (Value::Object(old), Value::Object(new)) => {
            let names: BTreeSet<_> = old.keys().chain(new.keys()).collect();
            for name in names {
                let at = |object: &serde_json::Map<_, _>| object.get(name).cloned().unwrap_or(Value::Null);
                compare(&format!("{field}.{name}"), &at(old), &at(new), changes);
            }
        }
        (Value::Array(old), Value::Array(new)) => {
            for index in 0..old.len().max(new.len()) {
                let at = |array: &[Value]| array.get(index).cloned().unwrap_or(Value::Null);
                compare(&format!("{field}.{}", index + 1), &at(old), &at(new), changes);
            }
        }
        (before, after) if before == after => {}
        (before, after) => changes.push(change(field, before.clone(), after.clone())),
    }
}
