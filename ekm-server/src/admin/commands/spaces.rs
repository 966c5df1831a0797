//! Crypto spaces.

use std::collections::BTreeMap;

use ekm_core::catalog::ledger::Class;
use ekm_core::catalog::{KeyCreation, Kind, Outcome, PolicyRecord, SpaceRecord, SpaceState};
use ekm_core::custody::Custodian;
use ekm_core::policy::Verb;
use ekm_core::{KeyPath, ShardName};
use serde_json::Value;
use uuid::Uuid;

use super::hsms::{must_be_shard, which_shards};
use super::policies::{parse_policy, widening};
use super::{Effect, Seen, free, named, to_json};
use crate::admin::api::CreationWish;
use crate::admin::error::AdminError;
use crate::admin::views;
use crate::catalog::{Draft, default_custody};

pub(super) async fn create(
    draft: &mut Draft<'_>,
    path: &KeyPath,
    shard: Option<&ShardName>,
    labels: &BTreeMap<String, String>,
    description: &str,
    custodian: &Custodian,
) -> Result<Effect, AdminError> {
    if !path.as_str().starts_with("v0/cryptospaces/") {
        return Err(AdminError::invalid("path", "a crypto space's path begins with v0/cryptospaces/"));
    }
    free(draft, Kind::Space, path.as_str()).await?;
    let shard = match shard {
        Some(shard) => shard.clone(),
        None => custodian.default_shard().ok_or_else(|| AdminError::invalid("shard", which_shards(custodian)))?,
    };
    must_be_shard(custodian, &shard)?;
    let record = SpaceRecord {
        id: Uuid::now_v7(),
        path: path.clone(),
        state: SpaceState::Enabled,
        shard,
        creation: None,
        labels: labels.clone(),
        description: description.to_owned(),
        created_at: draft.now(),
    };
    draft.name(Kind::Space, path.as_str(), record.id);
    draft.put(Kind::Space, record.id, &record)?;
    Ok(Effect { after: view_space(&record, None), ..Effect::on(path) })
}

pub(super) async fn update(
    draft: &mut Draft<'_>,
    path: &KeyPath,
    labels: &BTreeMap<String, String>,
    description: &str,
    seen: &Seen,
) -> Result<Effect, AdminError> {
    let (mut record, revision) = named::<SpaceRecord>(draft, Kind::Space, path.as_str()).await?;
    seen.must_be(revision)?;
    let before = view_space(&record, creation_policy(draft, &record).await?);
    (record.labels, record.description) = (labels.clone(), description.to_owned());
    put_space(draft, &record, before, path).await
}

pub(super) async fn move_to(
    draft: &mut Draft<'_>,
    path: &KeyPath,
    shard: &ShardName,
    custodian: &Custodian,
    seen: &Seen,
) -> Result<Effect, AdminError> {
    must_be_shard(custodian, shard)?;
    let (mut record, revision) = named::<SpaceRecord>(draft, Kind::Space, path.as_str()).await?;
    seen.may_be(revision)?;
    let before = view_space(&record, creation_policy(draft, &record).await?);
    record.shard = shard.clone();
    let mut effect = put_space(draft, &record, before, path).await?;
    effect.warnings.push(format!(
        "keys that are there stay where they are until 'ekm key move' brings each of them to {shard}; 'ekm space move' does so for all"
    ));
    Ok(effect)
}

/// What callers may make in it, or nothing.
pub(super) async fn set_creation(
    draft: &mut Draft<'_>,
    path: &KeyPath,
    creation: Option<&CreationWish>,
    custodian: &Custodian,
    seen: &Seen,
) -> Result<Effect, AdminError> {
    let (mut record, revision) = named::<SpaceRecord>(draft, Kind::Space, path.as_str()).await?;
    seen.may_be(revision)?;
    let before = view_space(&record, creation_policy(draft, &record).await?);
    let (mut danger, mut warnings) = (None, Vec::new());
    record.creation = match creation {
        None => None,
        Some(wish) => {
            let (policy, _) = named::<PolicyRecord>(draft, Kind::Policy, &wish.policy).await?;
            let document = parse_policy(&policy.document)?;
            if !document.rules().iter().any(|rule| rule.verbs.contains(&Verb::CreateKey)) {
                warnings.push(format!("no rule of {} allows createKey, so nobody can make a key", wish.policy));
            }
            danger = widening(path.as_str(), None, &document);
            let custody = wish.custody.unwrap_or_else(|| default_custody(custodian));
            let (algorithms, max_keys) = (wish.algorithms.clone(), wish.max_keys);
            Some(KeyCreation { policy: policy.id, custody, algorithms, max_keys })
        }
    };
    let mut effect = put_space(draft, &record, before, path).await?;
    (effect.danger, effect.class) = (danger, Class::Staged);
    effect.warnings.extend(warnings);
    Ok(effect)
}

pub(super) async fn set_state(
    draft: &mut Draft<'_>,
    path: &KeyPath,
    state: SpaceState,
    seen: &Seen,
) -> Result<Effect, AdminError> {
    let (mut record, revision) = named::<SpaceRecord>(draft, Kind::Space, path.as_str()).await?;
    seen.may_be(revision)?;
    let before = view_space(&record, creation_policy(draft, &record).await?);
    record.set_state(state);
    Ok(Effect { class: Class::Fast, ..put_space(draft, &record, before, path).await? })
}

async fn put_space(
    draft: &mut Draft<'_>,
    record: &SpaceRecord,
    before: Value,
    path: &KeyPath,
) -> Result<Effect, AdminError> {
    let after = view_space(record, creation_policy(draft, record).await?);
    let outcome = if before == after { Outcome::Unchanged } else { Outcome::Changed };
    draft.put(Kind::Space, record.id, record)?;
    Ok(Effect { before, after, outcome, ..Effect::on(path) })
}

/// The name of the policy for making keys in a space.
async fn creation_policy(draft: &mut Draft<'_>, space: &SpaceRecord) -> Result<Option<String>, AdminError> {
    let Some(creation) = &space.creation else { return Ok(None) };
    let policy = draft.peek::<PolicyRecord>(Kind::Policy, creation.policy).await?;
    Ok(policy.map(|policy| policy.name))
}

fn view_space(record: &SpaceRecord, creation_policy: Option<String>) -> Value {
    to_json(&views::space(record.clone(), creation_policy, 0))
}
