//! What each command does to the catalog's records.

pub(super) mod hsms;
mod policies;
mod spaces;

use std::sync::Arc;

use ekm_core::catalog::ledger::Class;
use ekm_core::catalog::{
    Custody, Impossible, KeyRecord, KeyState, Kind, Outcome, PolicyRecord, Settings, SpaceRecord, SpaceState,
    VersionRecord, VersionState,
};
use ekm_core::custody::Custodian;
use ekm_core::{Algorithm, KeyPath, PublicKey};
use serde_json::{Value, json};
use uuid::Uuid;

use super::api::Command;
use super::change::class_of_policy;
use super::error::AdminError;
use super::service::{Named, not_found};
use super::views;
use crate::catalog::{Draft, default_custody};
use policies::{choose_policy, confirm, not_final_yet, parse_policy, replaced, useless, widening};

/// What a command has done to a draft.
pub(super) struct Effect {
    pub(super) target: String,
    pub(super) outcome: Outcome,
    pub(super) class: Class,
    /// The thing as people see it.
    pub(super) before: Value,
    pub(super) after: Value,
    pub(super) warnings: Vec<String>,
    /// Why this needs a second person.
    pub(super) danger: Option<String>,
}

impl Effect {
    fn on(target: impl ToString) -> Self {
        Self {
            target: target.to_string(),
            outcome: Outcome::Changed,
            class: Class::Staged,
            before: Value::Null,
            after: Value::Null,
            warnings: Vec::new(),
            danger: None,
        }
    }
}

/// The command as it stands in the log and in approvals.
pub(super) fn to_value(command: &Command) -> Value {
    serde_json::to_value(command).expect("a command has only text as map keys")
}

/// What takes an HSM its time, and is done before any lock is taken.
pub(super) enum Prepared {
    Nothing,
    /// The material of a new version.
    Version(VersionRecord),
    /// Versions as they were, and as they are in the other shard.
    Carried(Vec<(VersionRecord, VersionRecord)>),
}

/// Changes the records. Without what should be `prepared` (a dry run) it is made up.
pub(super) async fn apply(
    draft: &mut Draft<'_>,
    command: &Command,
    if_revision: Option<u64>,
    prepared: &Prepared,
    custodian: &Custodian,
) -> Result<Effect, AdminError> {
    let made = match prepared {
        Prepared::Version(made) => Some(made),
        Prepared::Nothing | Prepared::Carried(_) => None,
    };
    let seen = Seen { if_revision };
    match command {
        Command::SpaceCreate { path, shard, labels, description } => {
            spaces::create(draft, path, shard.as_ref(), labels, description, custodian).await
        }
        Command::SpaceUpdate { path, labels, description } => {
            spaces::update(draft, path, labels, description, &seen).await
        }
        Command::SpaceMove { path, shard } => spaces::move_to(draft, path, shard, custodian, &seen).await,
        Command::SpaceSetCreation { path, creation } => {
            spaces::set_creation(draft, path, creation.as_ref(), custodian, &seen).await
        }
        Command::SpaceBlock { path } => spaces::set_state(draft, path, SpaceState::Blocked, &seen).await,
        Command::SpaceUnblock { path } => spaces::set_state(draft, path, SpaceState::Enabled, &seen).await,
        Command::PolicyCreate { name, policy, description } => policies::create(draft, name, policy, description).await,
        Command::PolicySet { name, policy, description, is_final } => {
            policies::set(draft, name, policy, description, *is_final, &seen).await
        }
        Command::PolicyConfirm { name } => policies::confirm_all(draft, name, &seen).await,
        Command::KeyConfirmPolicy { path } => {
            let (mut record, revision) = named::<KeyRecord>(draft, Kind::Key, path.as_str()).await?;
            seen.may_be(revision)?;
            let effect = confirm(&mut record.replaced_policies, path.as_str());
            draft.put_key(&record)?;
            Ok(effect)
        }
        Command::KeyCreate { path, space, policy, algorithm, custody, rotation_days, labels, description } => {
            let algorithm = algorithm.unwrap_or_default();
            if path.as_str().starts_with("v0/cryptospaces/") {
                return Err(AdminError::invalid(
                    "path",
                    "v0/cryptospaces/ is for crypto spaces; v0/keys/NAME is usual",
                ));
            }
            free(draft, Kind::Key, path.as_str()).await?;
            let (space, _) = named::<SpaceRecord>(draft, Kind::Space, space.as_str()).await?;
            let (policy, mut effect) = choose_policy(draft, path, policy).await?;
            let custody = custody.unwrap_or_else(|| default_custody(custodian));
            effect.warnings.extend(useless(&policy, algorithm));
            let made = made.cloned().unwrap_or_else(|| imagined(Uuid::now_v7(), 1, algorithm, custody, &space));
            let now = draft.now();
            let mut record = KeyRecord::new(made, space.id, policy.id, algorithm, now)?;
            record.paths.push(path.clone());
            (record.labels, record.description) = (labels.clone(), description.clone());
            record.set_rotation(*rotation_days, now)?;
            draft.name(Kind::Key, path.as_str(), record.id);
            draft.put_key(&record)?;
            effect.target = path.to_string();
            effect.after = view_key(draft, &record).await?;
            Ok(effect)
        }
        Command::KeyUpdate { path, labels, description } => {
            change_key(draft, path, &seen, true, Class::Staged, |key, _| {
                let same = key.labels == *labels && key.description == *description;
                (key.labels, key.description) = (labels.clone(), description.clone());
                Ok(if same { Outcome::Unchanged } else { Outcome::Changed })
            })
            .await
        }
        Command::KeyAddPath { path, new } => {
            free(draft, Kind::Key, new.as_str()).await?;
            let effect = change_key(draft, path, &seen, false, Class::Staged, |key, _| {
                if key.state == KeyState::Destroyed {
                    let problem = format!("{path} is destroyed");
                    return Err(Impossible { problem, help: "give the path to another key" });
                }
                key.paths.push(new.clone());
                Ok(Outcome::Changed)
            })
            .await?;
            let id = key_id(draft, path).await?;
            draft.name(Kind::Key, new.as_str(), id);
            Ok(effect)
        }
        Command::KeySetPolicy { path, policy, is_final } => {
            let (record, _) = named::<KeyRecord>(draft, Kind::Key, path.as_str()).await?;
            let former = draft.read::<PolicyRecord>(Kind::Policy, record.policy).await?.map(|(former, _)| former);
            let old = former.as_ref().map(|former| parse_policy(&former.document)).transpose()?;
            let (chosen, about) = choose_policy(draft, path, policy).await?;
            let new = parse_policy(&chosen.document)?;
            let class = old.as_ref().map_or(Class::Fast, |old| class_of_policy(old, &new));
            let mut kept = record.replaced_policies;
            if let Some(former) = former {
                // What was not denied for good under the policy that it had is not denied for good under this one either.
                kept.extend(former.replaced);
                kept = replaced(draft, kept, &former.document, &new, *is_final).await?;
            }
            let pending = not_final_yet(&kept, &format!("ekm key confirm-policy {path}"));
            let mut effect = change_key(draft, path, &seen, true, class, |key, _| {
                let before = std::mem::replace(&mut key.policy, chosen.id);
                if before == chosen.id && !is_final {
                    return Ok(Outcome::Unchanged);
                }
                let kept_before = std::mem::replace(&mut key.replaced_policies, kept);
                let same = before == chosen.id && kept_before == key.replaced_policies;
                Ok(if same { Outcome::Unchanged } else { Outcome::Changed })
            })
            .await?;
            effect.danger = widening(path.as_str(), old.as_ref(), &new);
            effect.warnings = about.warnings;
            effect.warnings.extend(pending.filter(|_| effect.outcome == Outcome::Changed));
            effect.warnings.extend(useless(&chosen, record.algorithm));
            Ok(effect)
        }
        Command::KeyEnable { path, version } => {
            change_key(draft, path, &seen, false, Class::Fast, |key, _| match version {
                Some(number) => key.set_version_enabled(*number, true),
                None => key.enable(),
            })
            .await
        }
        Command::KeyDisable { path, version } => {
            change_key(draft, path, &seen, false, Class::Fast, |key, _| match version {
                Some(number) => key.set_version_enabled(*number, false),
                None => key.disable(),
            })
            .await
        }
        Command::KeyRotate { path } => {
            let (record, _) = named::<KeyRecord>(draft, Kind::Key, path.as_str()).await?;
            let space = space_of(draft, &record).await?;
            let made = made.cloned().unwrap_or_else(|| {
                imagined(record.id, record.next_version(), record.algorithm, record.custody, &space)
            });
            change_key(draft, path, &seen, false, Class::Staged, |key, now| key.add_version(made.clone(), now)).await
        }
        Command::KeyMove { path } => {
            let (record, _) = named::<KeyRecord>(draft, Kind::Key, path.as_str()).await?;
            let space = space_of(draft, &record).await?;
            let carried = match prepared {
                Prepared::Carried(carried) => carried.clone(),
                Prepared::Nothing | Prepared::Version(_) => {
                    let there = |from: VersionRecord| VersionRecord { shard: space.shard.clone(), ..from };
                    elsewhere(&record, &space).map(|from| (from.clone(), there(from))).collect()
                }
            };
            if carried.iter().any(|(_, to)| to.shard != space.shard) {
                return Err(AdminError::Impossible(format!(
                    "{} has got another shard meanwhile; try again",
                    space.path
                )));
            }
            change_key(draft, path, &seen, false, Class::Staged, |key, _| {
                let mut outcome = Outcome::Unchanged;
                for (from, to) in carried {
                    if key.move_version(&from, to)? == Outcome::Changed {
                        outcome = Outcome::Changed;
                    }
                }
                Ok(outcome)
            })
            .await
        }
        Command::KeySetRotation { path, every_days } => {
            change_key(draft, path, &seen, false, Class::Staged, |key, now| key.set_rotation(*every_days, now)).await
        }
        Command::KeyDestroy { path, version } => {
            let settings = draft.settings().await?.0;
            let mut effect = change_key(draft, path, &seen, false, Class::Fast, |key, now| match version {
                Some(number) => key.schedule_version_destruction(*number, now, &settings),
                None => key.schedule_destruction(now, &settings),
            })
            .await?;
            let what =
                version.map_or_else(|| format!("{path}, all versions"), |number| format!("{path} version {number}"));
            let days = settings.destroy_grace_days.max(Settings::MIN_GRACE_DAYS);
            effect.danger = Some(format!("destroy {what}, {days} days after the approval"));
            let lost = version.map_or("what only this key can unwrap", |_| "what this version has wrapped");
            effect.warnings.push(format!(
                "{lost} is lost {days} days after the approval; until then it still unwraps, and 'ekm key undelete' takes it back"
            ));
            Ok(effect)
        }
        Command::KeyUndelete { path, version } => {
            change_key(draft, path, &seen, false, Class::Fast, |key, _| match version {
                Some(number) => key.undelete_version(*number),
                None => key.undelete(),
            })
            .await
        }
        Command::HsmDrain { name, force } => hsms::drain(draft, custodian, name, *force, &seen).await,
        Command::HsmResume { name } => hsms::resume(draft, custodian, name, &seen).await,
        Command::SettingsSet { destroy_grace_days: days, denial_delay_minutes: minutes } => {
            let (mut record, revision) = draft.settings().await?;
            seen.must_be(revision)?;
            let view = |settings: &Settings| json!({"destroy_grace_days": settings.destroy_grace_days, "denial_delay_minutes": settings.denial_delay_minutes});
            let (before, mut dangers) = (view(&record), Vec::new());
            if let Some(days) = *days {
                if !(Settings::MIN_GRACE_DAYS..=3650).contains(&days) {
                    let least = Settings::MIN_GRACE_DAYS;
                    return Err(AdminError::invalid("destroy_grace_days", format!("write {least} to 3650")));
                }
                record.destroy_grace_days = days;
                dangers.push(format!("let destruction wait {days} days from now on"));
            }
            if let Some(minutes) = *minutes {
                if minutes > Settings::MAX_DENIAL_DELAY_MINUTES {
                    let most = Settings::MAX_DENIAL_DELAY_MINUTES;
                    return Err(AdminError::invalid("denial_delay_minutes", format!("write 0 to {most}")));
                }
                record.denial_delay_minutes = minutes;
                dangers.push(format!("let denials by changed policies wait {minutes} minutes from now on"));
            }
            if dangers.is_empty() {
                return Err(AdminError::invalid("command", "write at least one setting"));
            }
            let after = view(&record);
            let outcome = if before == after { Outcome::Unchanged } else { Outcome::Changed };
            draft.put(Kind::Settings, Uuid::nil(), &record)?;
            Ok(Effect { before, after, outcome, danger: Some(dangers.join("; ")), ..Effect::on("settings") })
        }
        Command::CatalogExport {} => {
            let danger = Some("export the whole catalog, sealed".to_owned());
            Ok(Effect { danger, ..Effect::on("the catalog") })
        }
    }
}

/// What the caller has seen.
struct Seen {
    if_revision: Option<u64>,
}

impl Seen {
    /// For what replaces something: the caller must have seen what he replaces.
    fn must_be(&self, found: u64) -> Result<(), AdminError> {
        if self.if_revision.is_none() {
            return Err(AdminError::RevisionRequired);
        }
        self.may_be(found)
    }

    /// For what does not: if he names what he has seen, it must be so.
    fn may_be(&self, found: u64) -> Result<(), AdminError> {
        match self.if_revision {
            Some(expected) if expected != found => Err(AdminError::RevisionDiffers { expected, found }),
            _ => Ok(()),
        }
    }
}

async fn change_key(
    draft: &mut Draft<'_>,
    path: &KeyPath,
    seen: &Seen,
    replaces: bool,
    class: Class,
    change: impl FnOnce(&mut KeyRecord, time::OffsetDateTime) -> Result<Outcome, Impossible>,
) -> Result<Effect, AdminError> {
    let (mut record, revision) = named::<KeyRecord>(draft, Kind::Key, path.as_str()).await?;
    if replaces {
        seen.must_be(revision)?
    } else {
        seen.may_be(revision)?
    }
    let before = view_key(draft, &record).await?;
    let outcome = change(&mut record, draft.now())?;
    let after = view_key(draft, &record).await?;
    if outcome == Outcome::Changed {
        draft.put_key(&record)?;
    }
    Ok(Effect { outcome, class, before, after, ..Effect::on(path) })
}

/// The living versions of a key that are not in its crypto space's shard.
pub(super) fn elsewhere<'a>(record: &'a KeyRecord, space: &'a SpaceRecord) -> impl Iterator<Item = VersionRecord> + 'a {
    let versions = record.versions.iter().filter(|version| {
        version.state != VersionState::Destroyed && version.custody != Custody::Software && version.shard != space.shard
    });
    versions.map(|version| record.version_record(version))
}

/// The crypto space of a key.
async fn space_of(draft: &mut Draft<'_>, key: &KeyRecord) -> Result<SpaceRecord, AdminError> {
    let space = draft.read::<SpaceRecord>(Kind::Space, key.space).await?;
    space.map(|(space, _)| space).ok_or_else(|| not_found(Kind::Space, &key.space.to_string()))
}

async fn free(draft: &mut Draft<'_>, kind: Kind, name: &str) -> Result<(), AdminError> {
    match draft.id_of(kind, name).await? {
        Some(_) => Err(AdminError::Taken(name.into())),
        None => Ok(()),
    }
}

async fn named<T: Named>(draft: &mut Draft<'_>, kind: Kind, name: &str) -> Result<(T, u64), AdminError> {
    let id = draft.id_of(kind, name).await?.ok_or_else(|| not_found(kind, name))?;
    let (record, revision): (T, u64) = draft.read(kind, id).await?.ok_or_else(|| not_found(kind, name))?;
    record.must_have(name)?;
    Ok((record, revision))
}

async fn key_id(draft: &mut Draft<'_>, path: &KeyPath) -> Result<Uuid, AdminError> {
    draft.id_of(Kind::Key, path.as_str()).await?.ok_or_else(|| not_found(Kind::Key, path.as_str()))
}

/// For dry runs: nothing is made.
fn imagined(key: Uuid, number: u32, algorithm: Algorithm, custody: Custody, space: &SpaceRecord) -> VersionRecord {
    let id = ekm_core::blob::VersionId { key, number };
    let (wrapped_material, check_blob, shard) = (None, Vec::new(), space.shard.clone());
    let public_key = algorithm.signing().map(|signing| Arc::new(PublicKey::new(signing, Vec::new())));
    VersionRecord { id, custody, shard, wrapped_material, check_blob, public_key }
}

async fn view_key(draft: &mut Draft<'_>, record: &KeyRecord) -> Result<Value, AdminError> {
    let space = draft.peek::<SpaceRecord>(Kind::Space, record.space).await?;
    let policy = draft.peek::<PolicyRecord>(Kind::Policy, record.policy).await?;
    let space = space.map_or_else(String::new, |space| space.path.to_string());
    let policy = policy.map_or_else(String::new, |policy| policy.name);
    Ok(to_json(&views::key(record.clone(), space, policy, 0)))
}

fn to_json(view: &impl serde::Serialize) -> Value {
    serde_json::to_value(view).expect("a view has only text as map keys")
}

impl From<Impossible> for AdminError {
    fn from(impossible: Impossible) -> Self {
        Self::Impossible(impossible.to_string())
    }
}
