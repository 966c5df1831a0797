//! From records to what people read, and the difference between two of them.

use ekm_core::catalog::ledger::Change;
use ekm_core::catalog::{ApprovalRecord, Custody, KeyCreation, KeyRecord, PolicyRecord, ReplacedPolicy, SpaceRecord};
use ekm_core::hsm::ReplicaStatus;
use ekm_core::policy::{self, Policy};
use ekm_core::{PublicKey, ShardName};
use serde::Deserialize;
use serde_json::{Map, Value};
use time::OffsetDateTime;

use super::api::{
    ApprovalView, ChangeView, Command, CreationWish, FieldChange, FormerPolicyView, KeyView, PolicyView, ReplicaView,
    SpaceView, TokenView, VersionView,
};
use super::error::AdminError;

/// A crypto space; `creation_policy` is the name of the policy that its `creation` refers to.
pub(super) fn space(record: SpaceRecord, creation_policy: Option<String>, revision: u64) -> SpaceView {
    let SpaceRecord { id, path, state, shard, creation, labels, description, created_at } = record;
    let creation = creation.map(|KeyCreation { policy, custody, algorithms, max_keys }| CreationWish {
        policy: creation_policy.unwrap_or_else(|| policy.to_string()),
        custody: Some(custody),
        algorithms,
        max_keys,
    });
    SpaceView { path, id, state, shard, creation, labels, description, created_at, revision }
}

pub(super) fn policy(record: PolicyRecord, revision: u64) -> PolicyView {
    PolicyView {
        policy: document(&record.document),
        justifications: justifications(&record.document),
        not_final: not_final(&record.replaced),
        warnings: warnings(&record.document),
        name: record.name,
        id: record.id,
        description: record.description,
        revision,
    }
}

fn document(document: &str) -> Value {
    serde_json::from_str(document).unwrap_or(Value::Null)
}

/// What each rule accepts, with presets written out.
fn justifications(document: &str) -> Vec<String> {
    let policy = Policy::parse(document).ok();
    let rules = policy.iter().flat_map(|policy| policy.rules()).enumerate();
    rules.map(|(index, rule)| format!("rule {}: {}", index + 1, rule.justifications)).collect()
}

fn not_final(replaced: &[ReplacedPolicy]) -> Vec<FormerPolicyView> {
    let now = OffsetDateTime::now_utc();
    let pending = replaced.iter().filter(|former| former.final_at > now);
    pending.map(|former| FormerPolicyView { final_at: former.final_at, policy: document(&former.document) }).collect()
}

/// What the linter says about a policy.
pub(super) fn warnings(document: &str) -> Vec<String> {
    let Ok(policy) = Policy::parse(document) else { return Vec::new() };
    let warnings = policy::lint(&policy, OffsetDateTime::now_utc());
    warnings.into_iter().map(|warning| format!("{} [{}]", warning.text, warning.code)).collect()
}

/// A key; `space` and `policy` are the names of what it refers to.
pub(super) fn key(record: KeyRecord, space: String, policy: String, revision: u64) -> KeyView {
    let signing = record.algorithm.signing();
    let pem = |der| signing.map(|signing| PublicKey::new(signing, der).pem());
    let versions = record.versions.into_iter().map(|version| VersionView {
        public_key: version.public_key.and_then(pem),
        number: version.number,
        state: version.state,
        custody: version.custody,
        shard: Some(version.shard).filter(|_| version.custody != Custody::Software),
        created_at: version.created_at,
        destroy_at: version.destroy_at,
    });
    KeyView {
        created_for: record.created_for,
        destroyed_by_caller: record.destroyed_by_caller,
        paths: record.paths,
        id: record.id,
        space,
        policy,
        policy_not_final: not_final(&record.replaced_policies),
        algorithm: record.algorithm,
        state: record.state,
        destroy_at: record.destroy_at,
        custody: record.custody,
        primary_version: record.primary,
        versions: versions.collect(),
        rotation_days: record.rotation.as_ref().map(|rotation| rotation.every_days),
        next_rotation_at: record.rotation.map(|rotation| rotation.next_at),
        labels: record.labels,
        description: record.description,
        created_at: record.created_at,
        revision,
    }
}

pub(super) fn approval(record: ApprovalRecord) -> Result<ApprovalView, AdminError> {
    Ok(ApprovalView {
        command: command(&record)?,
        id: record.id,
        state: record.state,
        summary: record.summary,
        payload_sha256: record.payload_sha256,
        if_revision: record.if_revision,
        requested_by: record.requested_by,
        reason: record.reason,
        requested_at: record.requested_at,
        expires_at: record.expires_at,
        decided_by: record.decided_by,
        decided_at: record.decided_at,
    })
}

/// What an approval is for.
pub(super) fn command(record: &ApprovalRecord) -> Result<Command, AdminError> {
    Command::deserialize(&record.command).map_err(|_| AdminError::Internal("an approval's command is not understood"))
}

pub(super) fn replica(shard: &ShardName, status: ReplicaStatus) -> ReplicaView {
    let token = status.token.map(|token| TokenView {
        label: token.label,
        profile: token.profile.as_str().into(),
        sessions: token.sessions as u64,
    });
    ReplicaView {
        shard: shard.to_string(),
        name: status.name,
        state: status.state.name().into(),
        since: OffsetDateTime::now_utc() - status.since,
        reason: status.reason,
        token,
        in_flight: status.in_flight,
        queue: status.queue as u64,
        latency_us: u64::try_from(status.latency.as_micros()).unwrap_or(u64::MAX),
        operations: status.operations,
        faults: status.faults,
        ejections: status.ejections,
        losses: status.losses,
        missing_keys: status.lacks as u64,
    }
}

pub(super) fn change(change: Change) -> ChangeView {
    ChangeView {
        entry: change.to_json(),
        hash: change.hash().to_string(),
        previous: change.previous.to_string(),
        revision: change.revision,
        at: change.at,
        actor: change.actor,
        approved_by: change.approved_by,
        reason: change.reason,
        action: change.action,
        target: change.target,
        class: change.class.name().into(),
        detail: change.detail,
    }
}

/// What differs, field by field. What changes with every write, or only says in other words what changes, is left out.
pub(super) fn difference(before: &Value, after: &Value) -> Vec<FieldChange> {
    let mut changes = Vec::new();
    compare("", before, after, &mut changes);
    let told_elsewhere = ["revision", "warnings", "justifications", "not_final", "policy_not_final"];
    changes.retain(|change| !told_elsewhere.contains(&change.field.as_str()));
    changes
}

fn compare(field: &str, before: &Value, after: &Value, changes: &mut Vec<FieldChange>) {
    let inside = |name: &str| if field.is_empty() { name.to_owned() } else { format!("{field}.{name}") };
    match (named(before), named(after)) {
        // A policy is read as a whole.
        (Some(before), Some(after)) if field != "policy" => {
            let mut names: Vec<_> = before.keys().chain(after.keys()).collect();
            names.sort();
            names.dedup();
            for name in names {
                let (before, after) = (before.get(name), after.get(name));
                compare(&inside(name), before.unwrap_or(&Value::Null), after.unwrap_or(&Value::Null), changes);
            }
        }
        _ if before != after => {
            changes.push(FieldChange { field: field.to_owned(), before: before.clone(), after: after.clone() });
        }
        _ => {}
    }
}

/// An object's fields; a list of versions counts as fields by their numbers, and what is not there has none.
fn named(value: &Value) -> Option<Map<String, Value>> {
    match value {
        Value::Object(fields) => Some(fields.clone()),
        Value::Array(items) if items.iter().all(|item| item.get("number").is_some()) && !items.is_empty() => {
            Some(items.iter().map(|item| (item["number"].to_string(), item.clone())).collect())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_difference_names_the_fields_and_counts_versions_by_their_numbers() {
        let before = json!({"state": "enabled", "revision": 1, "labels": {"a": "1"}, "versions": [{"number": 1, "state": "enabled"}]});
        let after = json!({"state": "disabled", "revision": 2, "labels": {"a": "1", "b": "2"},
                           "versions": [{"number": 1, "state": "enabled"}, {"number": 2, "state": "pending"}]});
        let fields: Vec<_> = difference(&before, &after).into_iter().map(|change| change.field).collect();
        assert_eq!(fields, ["labels.b", "state", "versions.2"]);
        assert_eq!(difference(&before, &before), []);
    }
}
