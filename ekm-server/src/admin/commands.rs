//! What each command does to the catalog's records.

use std::collections::BTreeSet;
use std::sync::Arc;

use ekm_core::catalog::ledger::Class;
use ekm_core::catalog::{
    self, Custody, Impossible, KeyCreation, KeyRecord, KeyState, Kind, Outcome, PolicyRecord, ReplacedPolicy, Settings,
    SpaceRecord, SpaceState, VersionRecord, VersionState,
};
use ekm_core::custody::Custodian;
use ekm_core::hsm::{Replica, Shard, State};
use ekm_core::policy::{self, Policy, Verb};
use ekm_core::{Algorithm, KeyPath, PublicKey, ShardName};
use serde_json::{Value, json};
use time::format_description::well_known::Rfc3339;
use uuid::Uuid;

use super::api::{Command, PolicyChoice};
use super::change::class_of_policy;
use super::error::AdminError;
use super::service::{Named, not_found};
use super::views;
use crate::catalog::{Draft, default_custody};

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
            if !path.as_str().starts_with("v0/cryptospaces/") {
                return Err(AdminError::invalid("path", "a crypto space's path begins with v0/cryptospaces/"));
            }
            free(draft, Kind::Space, path.as_str()).await?;
            let shard = match shard {
                Some(shard) => shard.clone(),
                None => {
                    custodian.default_shard().ok_or_else(|| AdminError::invalid("shard", which_shards(custodian)))?
                }
            };
            must_be_shard(custodian, &shard)?;
            let record = SpaceRecord {
                id: Uuid::now_v7(),
                path: path.clone(),
                state: SpaceState::Enabled,
                shard,
                creation: None,
                labels: labels.clone(),
                description: description.clone(),
                created_at: draft.now(),
            };
            draft.name(Kind::Space, path.as_str(), record.id);
            draft.put(Kind::Space, record.id, &record)?;
            Ok(Effect { after: view_space(&record, None), ..Effect::on(path) })
        }
        Command::SpaceUpdate { path, labels, description } => {
            let (mut record, revision) = named::<SpaceRecord>(draft, Kind::Space, path.as_str()).await?;
            seen.must_be(revision)?;
            let before = view_space(&record, creation_policy(draft, &record).await?);
            (record.labels, record.description) = (labels.clone(), description.clone());
            put_space(draft, &record, before, path).await
        }
        Command::SpaceMove { path, shard } => {
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
        Command::SpaceSetCreation { path, creation } => {
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
        Command::SpaceBlock { path } => set_space(draft, path, SpaceState::Blocked, &seen).await,
        Command::SpaceUnblock { path } => set_space(draft, path, SpaceState::Enabled, &seen).await,
        Command::PolicyCreate { name, policy, description } => {
            check_policy_name(name)?;
            let (record, effect) = new_policy(draft, name, policy, description).await?;
            Ok(Effect { after: view_policy(&record), ..effect })
        }
        Command::PolicySet { name, policy, description, is_final } => {
            let (mut record, revision) = named::<PolicyRecord>(draft, Kind::Policy, name).await?;
            seen.must_be(revision)?;
            let (before, old) = (view_policy(&record), parse_policy(&record.document)?);
            let new = parse_policy(&policy.to_string())?;
            let kept = std::mem::take(&mut record.replaced);
            record.replaced = replaced(draft, kept, &record.document, &new, *is_final).await?;
            (record.document, record.description) = (new.to_json(), description.clone());
            let mut effect = Effect::on(name);
            (effect.class, effect.danger) = (class_of_policy(&old, &new), widening(name, Some(&old), &new));
            (effect.warnings, effect.before, effect.after) =
                (views::warnings(&record.document), before, view_policy(&record));
            effect.warnings.extend(not_final_yet(&record.replaced, &format!("ekm policy confirm {name}")));
            effect.outcome = if effect.before == effect.after { Outcome::Unchanged } else { Outcome::Changed };
            draft.put(Kind::Policy, record.id, &record)?;
            Ok(effect)
        }
        Command::PolicyConfirm { name } => {
            let (mut record, revision) = named::<PolicyRecord>(draft, Kind::Policy, name).await?;
            seen.may_be(revision)?;
            let effect = confirm(&mut record.replaced, name);
            draft.put(Kind::Policy, record.id, &record)?;
            Ok(effect)
        }
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
        Command::HsmDrain { name, force } => drain(draft, custodian, name, *force, &seen).await,
        Command::HsmResume { name } => resume(draft, custodian, name, &seen).await,
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

async fn set_space(
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

/// A policy that is there, or a new one of the key's own, named after it; a second one gets a number.
async fn choose_policy(
    draft: &mut Draft<'_>,
    path: &KeyPath,
    choice: &PolicyChoice,
) -> Result<(PolicyRecord, Effect), AdminError> {
    match choice {
        PolicyChoice::Named(name) => {
            let (record, _) = named::<PolicyRecord>(draft, Kind::Policy, name).await?;
            let warnings = views::warnings(&record.document);
            Ok((record, Effect { warnings, ..Effect::on(name) }))
        }
        PolicyChoice::Own(policy) => {
            let mut name = path.to_string();
            for number in 2.. {
                if draft.id_of(Kind::Policy, &name).await?.is_none() {
                    break;
                }
                name = format!("{path}.{number}");
            }
            new_policy(draft, &name, policy, "").await
        }
    }
}

async fn new_policy(
    draft: &mut Draft<'_>,
    name: &str,
    policy: &Value,
    description: &str,
) -> Result<(PolicyRecord, Effect), AdminError> {
    free(draft, Kind::Policy, name).await?;
    let policy = parse_policy(&policy.to_string())?;
    let (id, document) = (Uuid::now_v7(), policy.to_json());
    let (name_owned, description) = (name.to_owned(), description.to_owned());
    let record = PolicyRecord { id, name: name_owned, document, replaced: Vec::new(), description };
    draft.name(Kind::Policy, name, id);
    draft.put(Kind::Policy, id, &record)?;
    let (danger, warnings) = (widening(name, None, &policy), views::warnings(&record.document));
    Ok((record, Effect { danger, warnings, ..Effect::on(name) }))
}

/// What a row keeps of the policies before, if the catalog lets denials wait and the operator does not want them at once.
async fn replaced(
    draft: &mut Draft<'_>,
    before: Vec<ReplacedPolicy>,
    old: &str,
    new: &Policy,
    is_final: bool,
) -> Result<Vec<ReplacedPolicy>, AdminError> {
    if is_final {
        return Ok(Vec::new());
    }
    let minutes = draft.settings().await?.0.denial_delay_minutes.min(Settings::MAX_DENIAL_DELAY_MINUTES);
    Ok(catalog::replaced(before, old, new, draft.now(), time::Duration::minutes(minutes.into())))
}

fn not_final_yet(replaced: &[ReplacedPolicy], confirm: &str) -> Option<String> {
    let last = replaced.iter().map(|former| former.final_at).max()?.format(&Rfc3339).ok()?;
    Some(format!(
        "what was allowed until now, and is not any more, is answered with 503 [denial_pending] until {last}, and with 403 after that; \
         '{confirm}' makes it final"
    ))
}

fn confirm(replaced: &mut Vec<ReplacedPolicy>, target: &str) -> Effect {
    let before = std::mem::take(replaced).len();
    let outcome = if before == 0 { Outcome::Unchanged } else { Outcome::Changed };
    let (before, after) =
        (json!({"former policies that still count": before}), json!({"former policies that still count": 0}));
    Effect { class: Class::Fast, before, after, outcome, ..Effect::on(target) }
}

fn parse_policy(document: &str) -> Result<Policy, AdminError> {
    Policy::parse(document).map_err(|invalid| AdminError::invalid("policy", invalid.to_string()))
}

/// Whether everybody is let in who was not before.
fn widening(name: &str, old: Option<&Policy>, new: &Policy) -> Option<String> {
    let widens = policy::admits_everybody(new) && !old.is_some_and(policy::admits_everybody);
    widens.then(|| format!("let every caller use {name}"))
}

/// A policy that allows nothing of what the key does.
fn useless(policy: &PolicyRecord, algorithm: Algorithm) -> Option<String> {
    let parsed = Policy::parse(&policy.document).ok()?;
    let fits = |verb: &Verb| verb.uses(algorithm);
    let verbs: Vec<_> = Verb::ALL.into_iter().filter(fits).map(Verb::name).collect();
    (!parsed.rules().iter().flat_map(|rule| &rule.verbs).any(fits)).then(|| {
        format!(
            "the policy '{}' allows nobody what a key with algorithm {} does: {}",
            policy.name,
            algorithm.name(),
            verbs.join(" and ")
        )
    })
}

fn check_policy_name(name: &str) -> Result<(), AdminError> {
    let problem = "a policy's name is 1 to 63 of a-z 0-9 - _ .";
    let valid = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-_.".contains(&byte);
    if (1..=63).contains(&name.len()) && name.bytes().all(valid) {
        Ok(())
    } else {
        Err(AdminError::invalid("name", problem))
    }
}

/// Which replicas are serving is what this frontend sees; others may see something else.
async fn drain(
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

async fn resume(draft: &mut Draft<'_>, custodian: &Custodian, name: &str, seen: &Seen) -> Result<Effect, AdminError> {
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
pub(super) fn shard_with<'a>(custodian: &'a Custodian, name: &str) -> Result<&'a Shard, AdminError> {
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

fn must_be_shard(custodian: &Custodian, name: &ShardName) -> Result<(), AdminError> {
    let known = custodian.shard(name).is_some() || (custodian.shards().is_empty() && name.is_main());
    if known { Ok(()) } else { Err(AdminError::invalid("shard", which_shards(custodian))) }
}

fn which_shards(custodian: &Custodian) -> String {
    let names: Vec<_> = custodian.shards().iter().map(|shard| shard.name().as_str()).collect();
    match names[..] {
        [] => "this frontend has no HSM, so there is only main".into(),
        _ => format!("write one of those that this frontend has: {}", names.join(", ")),
    }
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

/// The name of the policy for making keys in a space.
async fn creation_policy(draft: &mut Draft<'_>, space: &SpaceRecord) -> Result<Option<String>, AdminError> {
    let Some(creation) = &space.creation else { return Ok(None) };
    let policy = draft.peek::<PolicyRecord>(Kind::Policy, creation.policy).await?;
    Ok(policy.map(|policy| policy.name))
}

fn view_space(record: &SpaceRecord, creation_policy: Option<String>) -> Value {
    to_json(&views::space(record.clone(), creation_policy, 0))
}

fn view_policy(record: &PolicyRecord) -> Value {
    to_json(&views::policy(record.clone(), 0))
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
