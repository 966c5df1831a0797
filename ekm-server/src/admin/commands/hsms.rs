//! HSM replicas: drained and resumed; and which shards there are.

use std::collections::BTreeSet;
use std::sync::Arc;

use ekm_core::ShardName;
use ekm_core::catalog::ledger::Class;
use ekm_core::catalog::{Kind, Outcome, Settings};
use ekm_core::custody::Custodian;
use ekm_core::hsm::{Replica, Shard, State};
use serde_json::json;
use uuid::Uuid;

use super::{Effect, Seen};
use crate::admin::error::AdminError;
use crate::catalog::Draft;

/// Which replicas are serving is what this frontend sees; others may see something else.
pub(super) async fn drain(
    draft: &mut Draft<'_>,
    custodian: &Custodian,
    name: &str,
    force: bool,
    seen: &Seen,
) -> Result<Effect, AdminError> {
    let shard = shard_with(custodian, name)?;
    let (mut record, revision) = draft.settings().await?;
    seen.may_be(revision)?;
    let before = record.drained_replicas.clone();
    // One that was drained a moment ago may still seem to be serving.
    let stays = |replica: &&Arc<Replica>| replica.name() != name && !before.contains(replica.name());
    let serving = shard.replicas().iter().filter(stays).any(|replica| replica.status().state == State::Serving);
    if !serving && !force && !before.contains(name) {
        return Err(AdminError::Impossible(format!(
            "no other HSM replica of its shard is serving on this frontend: without {name}, keys in the HSM would be answered with 503. \
             Look at 'ekm hsm status' and bring another one back first, or take --force"
        )));
    }
    record.drained_replicas.insert(name.to_owned());
    let mut effect = put_drained(draft, &record, &before, name)?;
    if !serving && effect.outcome == Outcome::Changed {
        effect.warnings.push(
            "no other HSM replica of its shard is serving on this frontend: keys in the HSM are answered with 503 until one is"
                .into(),
        );
    }
    Ok(effect)
}

pub(super) async fn resume(
    draft: &mut Draft<'_>,
    custodian: &Custodian,
    name: &str,
    seen: &Seen,
) -> Result<Effect, AdminError> {
    let (mut record, revision) = draft.settings().await?;
    seen.may_be(revision)?;
    let before = record.drained_replicas.clone();
    // One that has left the configuration since can be forgotten so.
    if !record.drained_replicas.remove(name) {
        shard_with(custodian, name)?;
    }
    put_drained(draft, &record, &before, name)
}

fn put_drained(
    draft: &mut Draft<'_>,
    record: &Settings,
    before: &BTreeSet<String>,
    name: &str,
) -> Result<Effect, AdminError> {
    let outcome = if record.drained_replicas == *before { Outcome::Unchanged } else { Outcome::Changed };
    draft.put(Kind::Settings, Uuid::nil(), record)?;
    let (before, after) = (json!({"drained_replicas": before}), json!({"drained_replicas": record.drained_replicas}));
    Ok(Effect { class: Class::Fast, before, after, outcome, ..Effect::on(name) })
}

/// The shard of a replica.
pub(in crate::admin) fn shard_with<'a>(custodian: &'a Custodian, name: &str) -> Result<&'a Shard, AdminError> {
    let shards = custodian.shards();
    let has = |shard: &&Shard| shard.replicas().iter().any(|replica| replica.name() == name);
    if let Some(shard) = shards.iter().find(has) {
        return Ok(shard);
    }
    let names: Vec<_> = shards.iter().flat_map(Shard::replicas).map(|replica| replica.name()).collect();
    let known = match names[..] {
        [] => "this frontend has no HSM".to_owned(),
        _ => format!("those of this frontend are: {}", names.join(", ")),
    };
    Err(AdminError::Impossible(format!("there is no HSM replica '{}'; {known}", name.escape_debug())))
}

pub(super) fn must_be_shard(custodian: &Custodian, name: &ShardName) -> Result<(), AdminError> {
    let known = custodian.shard(name).is_some() || (custodian.shards().is_empty() && name.is_main());
    if known { Ok(()) } else { Err(AdminError::invalid("shard", which_shards(custodian))) }
}

pub(super) fn which_shards(custodian: &Custodian) -> String {
    let names: Vec<_> = custodian.shards().iter().map(|shard| shard.name().as_str()).collect();
    match names[..] {
        [] => "this frontend has no HSM, so there is only main".into(),
        _ => format!("write one of those that this frontend has: {}", names.join(", ")),
    }
}
