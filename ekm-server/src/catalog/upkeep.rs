//! What happens to the catalog without anybody asking: a new version is promoted when every frontend knows it, keys are rotated, what is
//! to be destroyed is destroyed, approvals expire.
//!
//! Every frontend does it; the head's lock orders them, and whoever comes second finds nothing left to do.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use ekm_core::blob::VersionId;
use ekm_core::catalog::{
    ApprovalRecord, ApprovalState, KeyRecord, KeyState, Kind, Mirror, Outcome, VersionRecord, VersionState,
};
use ekm_core::nonces::{ALARM_AT, ROTATE_AT};
use ekm_storage::{CatalogStore, Frontend};
use time::OffsetDateTime;
use uuid::Uuid;

use super::draft::{Draft, Entry};
use super::follower::Gate;
use super::open::CatalogError;
use crate::custodian::take_from_token;
use crate::health::Health;
use crate::process::host_name;
use crate::router::DataPlane;

const INTERVAL: Duration = Duration::from_secs(1);
/// How often a frontend says that it is there while its revision stays the same.
const REPORT_INTERVAL: Duration = Duration::from_secs(10);
/// A frontend that has not been heard of for so long is not waited for.
const GONE_AFTER: Duration = Duration::from_secs(60);
/// A frontend that has said nothing for so long is asked nothing about its health.
const SILENT_AFTER: Duration = Duration::from_secs(25);
/// How often it says how often keys have wrapped.
const SETTLE_INTERVAL: Duration = Duration::from_secs(5);
/// By how much this machine's clock may have left the database's, or its own monotonic one, before nothing is destroyed.
const CLOCK_TOLERANCE: Duration = Duration::from_secs(300);

/// The upkeep of the catalog by one frontend.
pub struct Upkeep {
    store: Arc<CatalogStore>,
    plane: Arc<DataPlane>,
    gate: Arc<Gate>,
    started: (Instant, SystemTime),
    health: Arc<Health>,
    reported: Option<((u64, String), Instant)>,
    settled_at: Instant,
    clock_was_sound: bool,
}

impl Upkeep {
    /// Not running yet.
    pub fn new(store: Arc<CatalogStore>, plane: Arc<DataPlane>, gate: Arc<Gate>, health: Arc<Health>) -> Self {
        let now = Instant::now();
        let started = (now, SystemTime::now());
        Self { store, plane, gate, health, started, reported: None, settled_at: now, clock_was_sound: true }
    }

    /// Until the process ends. While the database is away there is nothing to do.
    pub async fn run(mut self) {
        loop {
            if let Err(error) = self.turn().await {
                tracing::debug!(%error, "no upkeep of the catalog");
            }
            tokio::time::sleep(INTERVAL).await;
        }
    }

    async fn turn(&mut self) -> Result<(), CatalogError> {
        let Some(mirror) = self.gate.mirror() else { return Ok(()) };
        self.report().await?;
        self.compare().await?;
        if self.settled_at.elapsed() > SETTLE_INTERVAL {
            self.settled_at = Instant::now();
            self.settle_wraps(&mirror).await?;
        }
        let now = OffsetDateTime::now_utc();
        let due = self.store.due(now).await?;
        if due.is_empty() {
            return Ok(());
        }
        let (clock_is_sound, frontends) = (self.clock_is_sound().await?, self.store.frontends().await?);
        for (kind, id) in due {
            let done = match Kind::from_name(&kind) {
                Some(Kind::Key) => self.look_at_key(&mirror, id, now, clock_is_sound, &frontends).await,
                Some(Kind::Approval) => self.expire(&mirror, id).await,
                _ => Ok(()),
            };
            if let Err(error) = done {
                tracing::error!(code = error.code(), %error, kind, %id, "upkeep failed; it is tried again");
            }
        }
        Ok(())
    }

    /// Whether the others have the same trouble.
    async fn compare(&self) -> Result<(), CatalogError> {
        if self.health.unfit().is_empty() {
            return Ok(());
        }
        let now = OffsetDateTime::now_utc();
        let mut others = self.store.frontends().await?;
        others.retain(|other| other.instance != self.plane.instance && now - other.seen_at < SILENT_AFTER);
        self.health.compare(others.iter().map(|other| &*other.unfit));
        Ok(())
    }

    /// Tells the database how often this frontend has wrapped, and has a key rotated that has done so too often.
    async fn settle_wraps(&self, mirror: &Mirror) -> Result<(), CatalogError> {
        let (custodian, snapshot) = (self.plane.ekm.custodian(), self.plane.ekm.snapshot());
        let wraps = custodian.unsettled_wraps(|id| snapshot.version(id).map(AsRef::as_ref));
        if wraps.is_empty() {
            return Ok(());
        }
        let rows: Vec<_> = wraps.iter().map(|(id, fresh)| (id.key, id.number, *fresh)).collect();
        let totals = match self.store.add_wraps(&rows).await {
            Ok(totals) => totals,
            Err(error) => {
                custodian.put_back_wraps(wraps.into_iter().map(|(id, _)| id));
                return Err(error.into());
            }
        };
        for ((id, told), total) in wraps.into_iter().zip(totals) {
            let Some(version) = snapshot.version(id) else { continue };
            custodian.settle_wraps(version, told, total);
            if total >= ALARM_AT && total - told < ALARM_AT {
                tracing::warn!(code = "key_exhausted", key = %id, wraps = total, "a key version should be rotated soon");
            }
            if total >= ROTATE_AT
                && let Err(error) = self.rotate_worn(mirror, id).await
            {
                tracing::error!(code = "key_exhausted", key = %id, wraps = total, %error, "a key version has to be rotated");
            }
        }
        Ok(())
    }

    async fn rotate_worn(&self, mirror: &Mirror, id: VersionId) -> Result<(), CatalogError> {
        let mut draft = Draft::follow(&self.store, mirror).await?;
        let record = draft.read::<KeyRecord>(Kind::Key, id.key).await?;
        draft.abandon().await?;
        let is_worn = move |record: &KeyRecord, _| record.next_version() == id.number + 1;
        match record {
            Some((record, _)) if is_worn(&record, OffsetDateTime::now_utc()) => {
                self.rotate(mirror, record, is_worn).await
            }
            _ => Ok(()),
        }
    }

    async fn report(&mut self) -> Result<(), CatalogError> {
        let now = (self.plane.ekm.snapshot().revision(), self.health.unfit());
        if self.reported.as_ref().is_some_and(|(said, at)| *said == now && at.elapsed() < REPORT_INTERVAL) {
            return Ok(());
        }
        let (revision, unfit) = now.clone();
        let name = host_name();
        let (instance, version) = (self.plane.instance.clone(), env!("CARGO_PKG_VERSION").to_owned());
        let seen_at = OffsetDateTime::now_utc();
        self.store.report(&Frontend { instance, name, version, revision, seen_at, unfit }).await?;
        self.reported = Some((now, Instant::now()));
        Ok(())
    }

    async fn look_at_key(
        &self,
        mirror: &Mirror,
        id: Uuid,
        now: OffsetDateTime,
        clock_is_sound: bool,
        frontends: &[Frontend],
    ) -> Result<(), CatalogError> {
        let mut draft = Draft::follow(&self.store, mirror).await?;
        let Some((mut record, revision)) = draft.read::<KeyRecord>(Kind::Key, id).await? else {
            return Ok(draft.abandon().await?);
        };
        let pending = record.versions.iter().find(|version| version.state == VersionState::Pending);
        if let Some(number) = pending.map(|version| version.number) {
            if everybody_has(frontends, revision, now) && record.promote(number) == Ok(Outcome::Changed) {
                draft.put_key(&record)?;
                return self.commit(draft, "key-promote", &record).await;
            }
            return Ok(draft.abandon().await?);
        }
        let gone = if clock_is_sound { record.destroy_what_is_due(draft.now()) } else { Vec::new() };
        if !gone.is_empty() {
            draft.put_key(&record)?;
            self.commit(draft, "key-destroy-due", &record).await?;
            take_from_token(self.plane.ekm.custodian(), gone).await;
            return Ok(());
        }
        let is_due = |record: &KeyRecord, now| record.rotation.as_ref().is_some_and(|rotation| rotation.next_at <= now);
        let rotates = record.state == KeyState::Enabled && is_due(&record, draft.now());
        draft.abandon().await?;
        if rotates { self.rotate(mirror, record, is_due).await } else { Ok(()) }
    }

    /// Material first, outside of any transaction, since an HSM may take its time; then the row, if nobody else was faster.
    async fn rotate(
        &self,
        mirror: &Mirror,
        record: KeyRecord,
        still: impl Fn(&KeyRecord, OffsetDateTime) -> bool,
    ) -> Result<(), CatalogError> {
        let id = VersionId { key: record.id, number: record.next_version() };
        // The row that every frontend has verified.
        let snapshot = self.plane.ekm.snapshot();
        let space = snapshot.key_by_id(record.id).and_then(|key| snapshot.space(key));
        let Some(space) = space else {
            return Err(CatalogError::Internal(format!(
                "{} is not in the snapshot with its crypto space",
                record.name()
            )));
        };
        let made = self.plane.ekm.custodian().generate(record.algorithm, record.custody, &space.shard, id).await?;
        let added = self.add_version(mirror, &record, &made, still).await;
        // Else its object would be in the way of the next rotation; but if nobody knows whether it is in the catalog, it stays.
        let may_be_used = added.as_ref().map_or_else(CatalogError::is_unknown, |added| *added);
        if !may_be_used {
            take_from_token(self.plane.ekm.custodian(), [made]).await;
        }
        added.map(|_| ())
    }

    /// Whether it was added.
    async fn add_version(
        &self,
        mirror: &Mirror,
        record: &KeyRecord,
        made: &VersionRecord,
        still: impl Fn(&KeyRecord, OffsetDateTime) -> bool,
    ) -> Result<bool, CatalogError> {
        let mut draft = Draft::follow(&self.store, mirror).await?;
        let now = draft.now();
        if let Some((mut record, _)) = draft.read::<KeyRecord>(Kind::Key, record.id).await?
            && still(&record, now)
            && record.add_version(made.clone(), now) == Ok(Outcome::Changed)
        {
            draft.put_key(&record)?;
            self.commit(draft, "key-rotate", &record).await?;
            return Ok(true);
        }
        draft.abandon().await?;
        Ok(false)
    }

    async fn expire(&self, mirror: &Mirror, id: Uuid) -> Result<(), CatalogError> {
        let mut draft = Draft::follow(&self.store, mirror).await?;
        if let Some((mut record, _)) = draft.read::<ApprovalRecord>(Kind::Approval, id).await?
            && record.state == ApprovalState::Requested
            && record.expires_at <= draft.now()
        {
            record.state = ApprovalState::Expired;
            draft.put(Kind::Approval, id, &record)?;
            draft.look_again(Kind::Approval, id, None);
            draft.commit(Entry::by_ekm("approval-expire", &record.summary), None).await?;
            return Ok(());
        }
        Ok(draft.abandon().await?)
    }

    async fn commit(&self, draft: Draft<'_>, action: &str, record: &KeyRecord) -> Result<(), CatalogError> {
        let revision = draft.commit(Entry::by_ekm(action, &record.name()), None).await?;
        tracing::info!(action, key = record.name(), revision, "upkeep of the catalog");
        self.gate.nudge();
        Ok(())
    }

    /// Whether the time can be trusted with destroying something: this machine's clock has gone as its monotonic one since the start,
    /// and the database's clock agrees.
    async fn clock_is_sound(&mut self) -> Result<bool, CatalogError> {
        let (instant, system) = self.started;
        let ours = SystemTime::now();
        let jumped = ours.duration_since(system).map_or(Duration::MAX, |went| went.abs_diff(instant.elapsed()));
        let apart = self
            .store
            .clock()
            .await?
            .map_or(Duration::ZERO, |theirs| (OffsetDateTime::now_utc() - theirs).unsigned_abs());
        let sound = jumped < CLOCK_TOLERANCE && apart < CLOCK_TOLERANCE;
        if !sound && std::mem::replace(&mut self.clock_was_sound, sound) {
            tracing::error!(
                code = "clock",
                jumped_s = jumped.as_secs(),
                apart_s = apart.as_secs(),
                "this machine's clock has jumped or is not the database's; nothing is destroyed until it is right and ekm restarted"
            );
        }
        Ok(sound)
    }
}

/// Whether every frontend holds a revision. One that has not been heard of for long does not count: if it still runs, it is cut off, and
/// calls no version unknown.
fn everybody_has(frontends: &[Frontend], revision: u64, now: OffsetDateTime) -> bool {
    frontends
        .iter()
        .all(|frontend| frontend.revision >= revision || (now - frontend.seen_at).unsigned_abs() > GONE_AFTER)
}
