//! The way of a change: may he? → material, if any → the head's lock → [`super::commands`] → a second person, if needed → commit.

use std::collections::BTreeMap;

use ekm_core::KeyPath;
use ekm_core::blob::VersionId;
use ekm_core::catalog::ledger::{Class, Hash};
use ekm_core::catalog::{ApprovalRecord, ApprovalState, KeyRecord, Kind, Outcome, SpaceRecord};
use ekm_storage::StorageError;
use serde_json::Value;
use time::{Duration, OffsetDateTime};
use uuid::Uuid;

use super::actor::Actor;
use super::api::{ChangeOutcome, ChangeRequest, ChangeResult, Command, Decision};
use super::commands::{self, Prepared};
use super::error::AdminError;
use super::service::{Admin, not_found};
use super::views;
use crate::catalog::{CatalogError, Draft, Entry, default_custody};
use crate::custodian::take_from_token;

/// How long a second person has.
const APPROVAL_TTL: Duration = Duration::hours(24);
/// Texts that people write into the catalog.
const MAX_TEXT_BYTES: usize = 1024;
const MAX_LABELS: usize = 64;

/// In whose name a change is made.
struct Mandate<'a> {
    actor: &'a str,
    reason: &'a str,
    request_id: Option<&'a str>,
    /// A second person has approved this.
    approval: Option<(&'a ApprovalRecord, &'a str)>,
}

impl Mandate<'_> {
    /// What the log says.
    fn entry(&self, command: &Command, action: String, target: &str, class: Class) -> Entry {
        Entry {
            actor: self.actor.into(),
            approved_by: self.approval.map(|(_, by)| by.to_owned()),
            reason: self.reason.into(),
            action,
            target: target.into(),
            class,
            detail: commands::to_value(command),
        }
    }
}

impl Admin {
    /// Does what is asked for, or says what it would do, or lets it wait for a second person.
    pub async fn change(&self, actor: &Actor, request: ChangeRequest) -> Result<ChangeResult, AdminError> {
        actor.may_ask_for(&request.command)?;
        check_texts(&request)?;
        if let Some(id) = &request.request_id
            && (id.is_empty() || id.len() > 64 || !id.bytes().all(|byte| byte.is_ascii_graphic()))
        {
            return Err(AdminError::invalid("request_id", "write 1 to 64 visible ASCII characters, such as a UUID"));
        }
        // Requests of two people never share an id.
        let request_id = request.request_id.as_ref().map(|id| format!("{} {id}", actor.name));
        if let Some(id) = &request_id
            && let Some((_, answer)) = self.store.request(id).await?
        {
            return self.repeated(id, &request.command, &answer);
        }
        let mandate =
            Mandate { actor: &actor.name, reason: &request.reason, request_id: request_id.as_deref(), approval: None };
        let mut prepared = if request.dry_run { Prepared::Nothing } else { self.prepare(&request.command).await? };
        let outcome =
            self.carry_out(&mandate, &request.command, request.if_revision, request.dry_run, &mut prepared).await;
        self.take_back(prepared).await;
        outcome
    }

    /// A second person's word about a change that waits.
    pub async fn decide(
        &self,
        actor: &Actor,
        id: Uuid,
        approve: bool,
        decision: Decision,
    ) -> Result<ChangeResult, AdminError> {
        let approval = self.approval_record(id).await?;
        // Whoever asked for something may take it back himself.
        if approve || approval.requested_by != actor.name {
            actor.may_decide()?;
        }
        let refused = |text: String| Err(AdminError::ApprovalRefused(text));
        if approval.state != ApprovalState::Requested {
            return refused(format!("it is {} already", approval.state.name()));
        }
        if approval.expires_at <= OffsetDateTime::now_utc() {
            return refused("it has expired; ask for it again".into());
        }
        if approve && approval.requested_by == actor.name {
            return refused(format!("{} asked for it; a second person has to approve it", actor.name));
        }
        let command = views::command(&approval)?;
        let payload = payload_sha256(&command);
        if decision.payload_sha256 != payload || approval.payload_sha256 != payload {
            return refused(
                "the SHA-256 is not that of this request; look at it again, and approve what you have seen".into(),
            );
        }
        if !approve {
            return self.reject(actor, &approval, &decision.reason).await;
        }
        let mut prepared = self.prepare(&command).await?;
        let mandate = Mandate {
            actor: &approval.requested_by,
            reason: &approval.reason,
            request_id: None,
            approval: Some((&approval, &actor.name)),
        };
        let outcome = self.carry_out(&mandate, &command, approval.if_revision, false, &mut prepared).await;
        self.take_back(prepared).await;
        outcome
    }

    async fn reject(&self, actor: &Actor, approval: &ApprovalRecord, reason: &str) -> Result<ChangeResult, AdminError> {
        let mirror = self.mirror()?;
        let mut draft = Draft::follow(&self.store, &mirror).await?;
        let target = approval.summary.clone();
        settle(&mut draft, approval, ApprovalState::Rejected, &actor.name).await?;
        let entry =
            Entry { actor: actor.name.clone(), reason: reason.into(), ..Entry::by_ekm("approval-reject", &target) };
        let revision = draft.commit(entry, None).await?;
        Ok(result(ChangeOutcome::Done, revision, target))
    }

    /// Under the head's lock, from here to the commit. Takes the material if it is used, or if nobody knows whether it was.
    async fn carry_out(
        &self,
        mandate: &Mandate<'_>,
        command: &Command,
        if_revision: Option<u64>,
        dry_run: bool,
        prepared: &mut Prepared,
    ) -> Result<ChangeResult, AdminError> {
        let mirror = self.mirror()?;
        let mut draft = Draft::follow(&self.store, &mirror).await?;
        if let Some(id) = mandate.request_id
            && let Some(answer) = draft.answered(id).await?
        {
            draft.abandon().await?;
            return self.repeated(id, command, &answer);
        }
        let custodian = self.plane.ekm.custodian();
        let effect = commands::apply(&mut draft, command, if_revision, prepared, custodian).await?;
        let mut answer = result(ChangeOutcome::Done, draft.revision(), effect.target.clone());
        answer.changes = views::difference(&effect.before, &effect.after);
        answer.warnings.clone_from(&effect.warnings);
        let needs_approval = effect.danger.is_some() && mandate.approval.is_none();
        if effect.outcome == Outcome::Unchanged && mandate.approval.is_none() {
            draft.abandon().await?;
            answer.outcome = ChangeOutcome::Unchanged;
            return Ok(answer);
        }
        if dry_run {
            draft.abandon().await?;
            answer.outcome = if needs_approval { ChangeOutcome::WouldNeedApproval } else { ChangeOutcome::WouldChange };
            return Ok(answer);
        }
        if let (true, Some(danger)) = (needs_approval, &effect.danger) {
            return self.ask_for_approval(draft.start_over()?, mandate, command, if_revision, danger, answer).await;
        }
        if let Some((approval, by)) = mandate.approval {
            settle(&mut draft, approval, ApprovalState::Approved, by).await?;
        }
        let entry = mandate.entry(command, command.action(), &effect.target, effect.class);
        let outcome = self.commit(draft, mandate, command, entry, answer).await;
        // If nobody knows whether the catalog has it, it stays.
        let is_unknown = matches!(&outcome, Err(AdminError::Catalog(error)) if error.is_unknown());
        if outcome.is_ok() || is_unknown {
            *prepared = Prepared::Nothing;
        }
        outcome
    }

    /// Together with the answer, for whoever repeats the request.
    async fn commit(
        &self,
        draft: Draft<'_>,
        mandate: &Mandate<'_>,
        command: &Command,
        entry: Entry,
        mut answer: ChangeResult,
    ) -> Result<ChangeResult, AdminError> {
        answer.revision = draft.next_revision();
        let stored = mandate.request_id.map(|id| self.stored_answer(id, command, &answer)).transpose()?;
        draft.commit(entry, mandate.request_id.zip(stored.as_deref())).await?;
        self.gate.nudge();
        Ok(answer)
    }

    /// Writes the wish down, to be looked at by somebody else.
    async fn ask_for_approval(
        &self,
        mut draft: Draft<'_>,
        mandate: &Mandate<'_>,
        command: &Command,
        if_revision: Option<u64>,
        danger: &str,
        mut answer: ChangeResult,
    ) -> Result<ChangeResult, AdminError> {
        if mandate.reason.trim().is_empty() {
            draft.abandon().await?;
            return Err(AdminError::invalid(
                "reason",
                "this needs a second person, who has to know why; say it in reason",
            ));
        }
        let now = draft.now();
        let record = ApprovalRecord {
            id: Uuid::now_v7(),
            command: commands::to_value(command),
            payload_sha256: payload_sha256(command),
            summary: danger.into(),
            if_revision,
            requested_by: mandate.actor.into(),
            reason: mandate.reason.into(),
            requested_at: now,
            expires_at: now + APPROVAL_TTL,
            state: ApprovalState::Requested,
            decided_by: None,
            decided_at: None,
        };
        draft.put(Kind::Approval, record.id, &record)?;
        draft.look_again(Kind::Approval, record.id, Some(record.expires_at));
        answer.outcome = ChangeOutcome::NeedsApproval;
        answer.approval = Some(views::approval(record)?);
        let entry = mandate.entry(command, "approval-request".into(), danger, Class::Staged);
        self.commit(draft, mandate, command, entry, answer).await
    }

    /// Sealed: it repeats what the rows hold, and whoever repeats a request relies on it.
    fn stored_answer(&self, id: &str, command: &Command, result: &ChangeResult) -> Result<Vec<u8>, AdminError> {
        let stored = serde_json::json!({"payload_sha256": payload_sha256(command), "result": result});
        Ok(self.catalog_key()?.seal_note(&note_name(id), &stored).map_err(CatalogError::from)?)
    }

    /// A request under an id that was carried out already: the same one gets the same answer.
    fn repeated(&self, id: &str, command: &Command, answer: &[u8]) -> Result<ChangeResult, AdminError> {
        let refused = |problem| StorageError::Row { table: "requests", row: id.to_owned(), problem };
        let stored: Value = self.catalog_key()?.open_note(&note_name(id), answer).map_err(refused)?;
        if stored["payload_sha256"] != payload_sha256(command) {
            return Err(AdminError::Impossible("this request id belongs to another request; choose a new one".into()));
        }
        serde_json::from_value(stored["result"].clone())
            .map_err(|_| AdminError::Internal("a stored answer is not understood"))
    }

    /// Material for a new version, or for versions in another shard, before any lock is taken: an HSM may take its time.
    async fn prepare(&self, command: &Command) -> Result<Prepared, AdminError> {
        let custodian = self.plane.ekm.custodian();
        let (algorithm, custody, space, id) = match command {
            Command::KeyCreate { path, space, algorithm, custody, .. } => {
                // Looked at before material is made, and again under the lock.
                if self.store.id_of(Kind::Key.name(), path.as_str()).await?.is_some() {
                    return Err(AdminError::Taken(path.to_string()));
                }
                let (space, _) = self.named::<SpaceRecord>(Kind::Space, space.as_str()).await?;
                let custody = custody.unwrap_or_else(|| default_custody(custodian));
                (algorithm.unwrap_or_default(), custody, space, VersionId { key: Uuid::now_v7(), number: 1 })
            }
            Command::KeyRotate { path } => {
                let (record, space) = self.key_and_space(path).await?;
                record.may_be_rotated()?;
                let id = VersionId { key: record.id, number: record.next_version() };
                (record.algorithm, record.custody, space, id)
            }
            Command::KeyMove { path } => {
                let (record, space) = self.key_and_space(path).await?;
                let mut carried = Vec::new();
                for from in commands::elsewhere(&record, &space) {
                    let to = custodian.carry(from.clone(), &space.shard).await.map_err(CatalogError::from)?;
                    carried.push((from, to));
                }
                return Ok(Prepared::Carried(carried));
            }
            _ => return Ok(Prepared::Nothing),
        };
        let made = custodian.generate(algorithm, custody, &space.shard, id).await.map_err(CatalogError::from)?;
        Ok(Prepared::Version(made))
    }

    async fn key_and_space(&self, path: &KeyPath) -> Result<(KeyRecord, SpaceRecord), AdminError> {
        let (record, _) = self.named::<KeyRecord>(Kind::Key, path.as_str()).await?;
        let space = self.record::<SpaceRecord>(Kind::Space, record.space).await?;
        let (space, _) = space.ok_or_else(|| not_found(Kind::Space, &record.space.to_string()))?;
        Ok((record, space))
    }

    /// What was made and not used. Keys that were carried into another shard stay there: the next attempt needs them.
    async fn take_back(&self, prepared: Prepared) {
        if let Prepared::Version(made) = prepared {
            take_from_token(self.plane.ekm.custodian(), [made]).await;
        }
    }
}

fn note_name(request: &str) -> String {
    format!("request {request}")
}

fn result(outcome: ChangeOutcome, revision: u64, target: String) -> ChangeResult {
    ChangeResult { outcome, revision, target, changes: Vec::new(), warnings: Vec::new(), approval: None }
}

/// Marks an approval as decided, in the same transaction as what follows from it: it works once.
async fn settle(
    draft: &mut Draft<'_>,
    approval: &ApprovalRecord,
    state: ApprovalState,
    by: &str,
) -> Result<(), AdminError> {
    let found = draft.read::<ApprovalRecord>(Kind::Approval, approval.id).await?;
    let Some((mut record, _)) = found.filter(|(record, _)| record == approval && record.expires_at > draft.now())
    else {
        return Err(AdminError::ApprovalRefused("somebody else has decided it in between, or it has expired".into()));
    };
    record.state = state;
    record.decided_by = Some(by.to_owned());
    record.decided_at = Some(draft.now());
    draft.put(Kind::Approval, record.id, &record)?;
    draft.look_again(Kind::Approval, record.id, None);
    Ok(())
}

/// What a second person approves: the command, with its fields in alphabetical order.
pub(super) fn payload_sha256(command: &Command) -> String {
    // serde_json's maps are sorted.
    Hash::of(commands::to_value(command).to_string().as_bytes()).to_string()
}

fn check_texts(request: &ChangeRequest) -> Result<(), AdminError> {
    let text = |field: &str, text: &str| {
        if text.len() > MAX_TEXT_BYTES {
            return Err(AdminError::invalid(field, format!("it has at most {MAX_TEXT_BYTES} bytes")));
        }
        if text.chars().any(|c| c.is_control() && c != '\n') {
            return Err(AdminError::invalid(field, "it has control characters"));
        }
        Ok(())
    };
    let labels = |labels: &BTreeMap<String, String>| {
        if labels.len() > MAX_LABELS {
            return Err(AdminError::invalid("labels", format!("there are at most {MAX_LABELS}")));
        }
        let word = |word: &str| {
            word.len() <= 63 && word.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"_-".contains(&b))
        };
        match labels.iter().find(|(name, value)| name.is_empty() || !word(name) || !word(value)) {
            Some((name, _)) => Err(AdminError::invalid(
                "labels",
                format!("'{}': names and values are a-z 0-9 _ -, at most 63", name.escape_debug()),
            )),
            None => Ok(()),
        }
    };
    text("reason", &request.reason)?;
    match &request.command {
        Command::SpaceCreate { labels: map, description, .. }
        | Command::SpaceUpdate { labels: map, description, .. }
        | Command::KeyCreate { labels: map, description, .. }
        | Command::KeyUpdate { labels: map, description, .. } => {
            labels(map)?;
            text("description", description)
        }
        Command::PolicyCreate { description, .. } | Command::PolicySet { description, .. } => {
            text("description", description)
        }
        _ => Ok(()),
    }?;
    if let Command::KeyDestroy { version: Some(0), .. } | Command::KeyUndelete { version: Some(0), .. } =
        &request.command
    {
        return Err(AdminError::invalid("version", "versions count from 1"));
    }
    Ok(())
}

/// How fast a change of policy has to spread: at once, unless it is certain that nobody loses anything.
pub(super) fn class_of_policy(old: &ekm_core::policy::Policy, new: &ekm_core::policy::Policy) -> Class {
    if new.covers(old) { Class::Staged } else { Class::Fast }
}
