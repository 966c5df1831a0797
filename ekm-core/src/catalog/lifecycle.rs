//! What may become of keys, versions and crypto spaces. Pure: a record, a wish, and the time give a changed record or a refusal.
//!
//! ```text
//! version   pending ──promote──▶ enabled ◀──enable / disable──▶ disabled
//!              │                    │                               │ ▲
//!              └────────────────────┴──── schedule destruction ─────┤ │
//!                                                                   ▼ │ undelete
//!                                                     destroy-scheduled
//!                                                                   │ the grace period is over
//!                                                                   ▼
//!                                                               destroyed
//!
//! key       enabled ◀──▶ disabled ──▶ destroy-scheduled ──▶ destroyed, in the same way, with all its versions
//! space     enabled ◀──block / unblock──▶ blocked
//! ```
//!
//! What was undeleted is disabled, as at Cloud KMS: somebody has to want it back in use.

use time::{Duration, OffsetDateTime};
use uuid::Uuid;

use super::record::{
    Custody, KeyRecord, KeyState, Rotation, Settings, SpaceRecord, SpaceState, StoredVersion, VersionRecord,
};
use super::record::{Purpose, VersionState};
use crate::algorithm::Algorithm;

/// Whether a wish changed anything. Wishing for what is so already is no error, so that everything can be repeated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The record is different now.
    Changed,
    /// It was so already.
    Unchanged,
}

/// A wish that the present state does not allow.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{problem}; {help}")]
pub struct Impossible {
    /// What stands against it.
    pub problem: String,
    /// What to do instead.
    pub help: &'static str,
}

fn impossible<T>(problem: impl Into<String>, help: &'static str) -> Result<T, Impossible> {
    Err(Impossible { problem: problem.into(), help })
}

const NEW_KEY: &str = "what is destroyed stays destroyed; make another key, under another path";
const UNDELETE: &str = "take the destruction back first, with 'ekm key undelete'";

impl SpaceRecord {
    /// Stops every key of the space, or lets them go on.
    pub fn set_state(&mut self, state: SpaceState) -> Outcome {
        let before = std::mem::replace(&mut self.state, state);
        if before == state { Outcome::Unchanged } else { Outcome::Changed }
    }
}

impl KeyRecord {
    /// A key of one version, enabled, without paths and labels.
    pub fn new(
        made: VersionRecord,
        space: Uuid,
        policy: Uuid,
        algorithm: Algorithm,
        now: OffsetDateTime,
    ) -> Result<Self, Impossible> {
        let mut key = Self {
            id: made.id.key,
            space,
            policy,
            replaced_policies: Vec::new(),
            purpose: Purpose::of(algorithm),
            algorithm,
            state: KeyState::Enabled,
            destroy_at: None,
            created_for: None,
            destroyed_by_caller: false,
            paths: Vec::new(),
            custody: made.custody,
            primary: 0,
            versions: Vec::new(),
            rotation: None,
            labels: Default::default(),
            description: String::new(),
            created_at: now,
        };
        key.add_version(made, now)?;
        Ok(key)
    }

    /// Takes a pause back.
    pub fn enable(&mut self) -> Result<Outcome, Impossible> {
        self.set_state(KeyState::Enabled)
    }

    /// Pauses the key.
    pub fn disable(&mut self) -> Result<Outcome, Impossible> {
        self.set_state(KeyState::Disabled)
    }

    fn set_state(&mut self, state: KeyState) -> Result<Outcome, Impossible> {
        match self.state {
            KeyState::Destroyed => impossible(format!("{} is destroyed", self.name()), NEW_KEY),
            KeyState::DestroyScheduled => {
                impossible(format!("{} is to be destroyed and cannot be {}", self.name(), state.name()), UNDELETE)
            }
            before if before == state => Ok(Outcome::Unchanged),
            _ => {
                self.state = state;
                Ok(Outcome::Changed)
            }
        }
    }

    /// Begins the grace period of the whole key. It does not wrap any more, and still unwraps.
    pub fn schedule_destruction(&mut self, now: OffsetDateTime, settings: &Settings) -> Result<Outcome, Impossible> {
        if self.purpose == Purpose::Health {
            return impossible("the health key is the service's own", "leave it; it protects no data");
        }
        match self.state {
            KeyState::Destroyed | KeyState::DestroyScheduled => Ok(Outcome::Unchanged),
            KeyState::Enabled | KeyState::Disabled => {
                self.state = KeyState::DestroyScheduled;
                self.destroy_at = Some(end_of_grace(now, settings));
                Ok(Outcome::Changed)
            }
        }
    }

    /// As [`Self::schedule_destruction`], but the caller says so whose data it protects: it does not unwrap any more.
    pub fn destroy_for_caller(&mut self, now: OffsetDateTime, settings: &Settings) -> Result<Outcome, Impossible> {
        let scheduled = self.schedule_destruction(now, settings)?;
        let known = std::mem::replace(&mut self.destroyed_by_caller, true) || self.state == KeyState::Destroyed;
        Ok(if known { scheduled } else { Outcome::Changed })
    }

    /// Takes a scheduled destruction back. The key is disabled then.
    pub fn undelete(&mut self) -> Result<Outcome, Impossible> {
        match self.state {
            KeyState::Destroyed => impossible(format!("{} is destroyed", self.name()), NEW_KEY),
            KeyState::DestroyScheduled => {
                self.state = KeyState::Disabled;
                self.destroy_at = None;
                self.destroyed_by_caller = false;
                Ok(Outcome::Changed)
            }
            KeyState::Enabled | KeyState::Disabled => Ok(Outcome::Unchanged),
        }
    }

    /// Forgets the material of everything whose grace period is over. Returns the versions whose material has to be taken from the
    /// token.
    pub fn destroy_what_is_due(&mut self, now: OffsetDateTime) -> Vec<VersionRecord> {
        let whole = self.state == KeyState::DestroyScheduled && self.destroy_at.is_some_and(|at| at <= now);
        if whole {
            self.state = KeyState::Destroyed;
            self.destroy_at = None;
            self.rotation = None;
        }
        let mut gone = Vec::new();
        for index in 0..self.versions.len() {
            let version = &self.versions[index];
            let due = version.state == VersionState::DestroyScheduled && version.destroy_at.is_some_and(|at| at <= now);
            if version.state != VersionState::Destroyed && (whole || due) {
                let record = self.version_record(version);
                let left_on =
                    version.left_on.iter().map(|shard| VersionRecord { shard: shard.clone(), ..record.clone() });
                gone.extend(left_on);
                gone.push(record);
                let version = &mut self.versions[index];
                version.state = VersionState::Destroyed;
                version.destroy_at = None;
                version.wrapped_material = None;
            }
        }
        gone
    }

    /// When the next thing is to be done without anybody asking: a rotation, a promotion, or a destruction.
    pub fn next_due(&self) -> Option<OffsetDateTime> {
        let versions = self.versions.iter().filter_map(|version| match version.state {
            VersionState::Pending => Some(version.created_at),
            VersionState::DestroyScheduled => version.destroy_at,
            _ => None,
        });
        let rotation =
            self.rotation.as_ref().filter(|_| self.state == KeyState::Enabled).map(|rotation| rotation.next_at);
        versions.chain(self.destroy_at).chain(rotation).min()
    }

    /// The number that the next version will have.
    pub fn next_version(&self) -> u32 {
        self.versions.last().map_or(1, |version| version.number + 1)
    }

    /// Adds a version whose material exists and is proven. It unwraps at once, and wraps after [`Self::promote`]. The first version
    /// of a key needs no waiting: nobody has the key yet.
    pub fn add_version(&mut self, made: VersionRecord, now: OffsetDateTime) -> Result<Outcome, Impossible> {
        if matches!(self.state, KeyState::Destroyed | KeyState::DestroyScheduled) {
            return impossible(format!("{} is {}", self.name(), self.state.name()), UNDELETE);
        }
        if made.id.key != self.id || made.id.number != self.next_version() {
            return impossible(format!("{} has got another version meanwhile", self.name()), "try again");
        }
        if let Some(pending) = self.versions.iter().find(|version| version.state == VersionState::Pending) {
            return impossible(
                format!("version {} of {} is not in use yet", pending.number, self.name()),
                "wait some seconds until every frontend knows it",
            );
        }
        let first = self.versions.is_empty();
        if !first {
            self.may_be_rotated()?;
        }
        if self.algorithm.signing() != made.public_key.as_ref().map(|public| public.algorithm()) {
            return impossible(
                format!("what was made for {} is no key for {}", self.name(), self.algorithm.name()),
                "try again",
            );
        }
        self.versions.push(StoredVersion {
            number: made.id.number,
            state: if first { VersionState::Enabled } else { VersionState::Pending },
            destroy_at: None,
            custody: made.custody,
            shard: made.shard,
            left_on: Default::default(),
            wrapped_material: made.wrapped_material,
            check_blob: made.check_blob,
            public_key: made.public_key.map(|public| public.der().to_vec()),
            created_at: now,
        });
        if first {
            self.primary = made.id.number;
        }
        if let Some(rotation) = &mut self.rotation {
            rotation.next_at = now + Duration::days(rotation.every_days.into());
        }
        Ok(Outcome::Changed)
    }

    /// At Cloud KMS each version of a signing key has a path of its own, since each has another public key.
    pub fn may_be_rotated(&self) -> Result<(), Impossible> {
        match self.purpose {
            Purpose::Sign => impossible(
                format!(
                    "{} signs, and a signing key has one version for ever: its public key is known to others",
                    self.name()
                ),
                "make another key under another path, and a new version in Cloud KMS that names it",
            ),
            Purpose::Wrap | Purpose::Health => Ok(()),
        }
    }

    /// Puts a version into another shard, where [`crate::custody::Custodian::carry`] has made it usable.
    pub fn move_version(&mut self, from: &VersionRecord, carried: VersionRecord) -> Result<Outcome, Impossible> {
        let name = self.name();
        let (key, algorithm) = (self.id, self.algorithm);
        let version = self.version_mut(from.id.number)?;
        if version.clone().into_record(key, algorithm) != *from {
            return impossible(format!("version {} of {name} has changed meanwhile", from.id.number), "try again");
        }
        if version.shard == carried.shard {
            return Ok(Outcome::Unchanged);
        }
        let before = std::mem::replace(&mut version.shard, carried.shard);
        if version.custody == Custody::Hsm {
            version.left_on.remove(&version.shard);
            version.left_on.insert(before);
        }
        version.wrapped_material = carried.wrapped_material;
        Ok(Outcome::Changed)
    }

    /// Lets a version wrap from now on.
    pub fn promote(&mut self, number: u32) -> Result<Outcome, Impossible> {
        let name = self.name();
        let version = self.version_mut(number)?;
        match version.state {
            VersionState::Pending => version.state = VersionState::Enabled,
            VersionState::Enabled => {}
            state => {
                let problem = format!("version {number} of {name} is {} and cannot wrap", state.name());
                return impossible(problem, "enable it first");
            }
        }
        let before = std::mem::replace(&mut self.primary, number);
        Ok(if before == number { Outcome::Unchanged } else { Outcome::Changed })
    }

    /// Pauses one version, or takes the pause back. The primary cannot be paused alone.
    pub fn set_version_enabled(&mut self, number: u32, enabled: bool) -> Result<Outcome, Impossible> {
        let (name, primary) = (self.name(), self.primary);
        let version = self.version_mut(number)?;
        let wanted = if enabled { VersionState::Enabled } else { VersionState::Disabled };
        match version.state {
            state if state == wanted => Ok(Outcome::Unchanged),
            VersionState::Enabled if number == primary => impossible(
                format!("version {number} of {name} is the one that wraps"),
                "disable the whole key, or rotate it first",
            ),
            VersionState::Enabled | VersionState::Disabled => {
                version.state = wanted;
                Ok(Outcome::Changed)
            }
            VersionState::Pending => impossible(
                format!("version {number} of {name} is not in use yet"),
                "wait some seconds until every frontend knows it",
            ),
            VersionState::DestroyScheduled => {
                impossible(format!("version {number} of {name} is to be destroyed"), UNDELETE)
            }
            VersionState::Destroyed => impossible(format!("version {number} of {name} is destroyed"), NEW_KEY),
        }
    }

    /// Begins the grace period of one version, which may not be the primary.
    pub fn schedule_version_destruction(
        &mut self,
        number: u32,
        now: OffsetDateTime,
        settings: &Settings,
    ) -> Result<Outcome, Impossible> {
        let (name, primary) = (self.name(), self.primary);
        let version = self.version_mut(number)?;
        match version.state {
            VersionState::Destroyed | VersionState::DestroyScheduled => Ok(Outcome::Unchanged),
            _ if number == primary => impossible(
                format!("version {number} of {name} is the one that wraps"),
                "destroy the whole key, or rotate it first",
            ),
            _ => {
                version.state = VersionState::DestroyScheduled;
                version.destroy_at = Some(end_of_grace(now, settings));
                Ok(Outcome::Changed)
            }
        }
    }

    /// Takes one version's scheduled destruction back. It is disabled then.
    pub fn undelete_version(&mut self, number: u32) -> Result<Outcome, Impossible> {
        let name = self.name();
        let version = self.version_mut(number)?;
        match version.state {
            VersionState::Destroyed => impossible(format!("version {number} of {name} is destroyed"), NEW_KEY),
            VersionState::DestroyScheduled => {
                version.state = VersionState::Disabled;
                version.destroy_at = None;
                Ok(Outcome::Changed)
            }
            _ => Ok(Outcome::Unchanged),
        }
    }

    /// Makes new versions come by themselves, or stops that.
    pub fn set_rotation(&mut self, every_days: Option<u32>, now: OffsetDateTime) -> Result<Outcome, Impossible> {
        if matches!(self.state, KeyState::Destroyed | KeyState::DestroyScheduled) {
            return impossible(format!("{} is {}", self.name(), self.state.name()), UNDELETE);
        }
        if every_days == self.rotation.as_ref().map(|rotation| rotation.every_days) {
            return Ok(Outcome::Unchanged);
        }
        if every_days.is_some() {
            self.may_be_rotated()?;
        }
        if every_days.is_some_and(|days| !(1..=3650).contains(&days)) {
            return impossible("a rotation period is 1 to 3650 days", "90 is usual");
        }
        self.rotation =
            every_days.map(|every_days| Rotation { every_days, next_at: now + Duration::days(every_days.into()) });
        Ok(Outcome::Changed)
    }

    fn version_mut(&mut self, number: u32) -> Result<&mut StoredVersion, Impossible> {
        let name = self.name();
        let found = self.versions.iter_mut().find(|version| version.number == number);
        found.ok_or_else(|| Impossible {
            problem: format!("{name} has no version {number}"),
            help: "'ekm key show' lists its versions",
        })
    }

    /// What every row must hold to, whoever wrote it.
    pub fn check(&self) -> Result<(), String> {
        let numbered = self.versions.iter().enumerate().all(|(index, version)| version.number as usize == index + 1);
        if !numbered || self.versions.is_empty() {
            return Err("its versions are not numbered from 1 without gaps".into());
        }
        let Some(primary) = self.version(self.primary) else { return Err("its primary version is missing".into()) };
        if self.state != KeyState::Destroyed && primary.state != VersionState::Enabled {
            return Err(format!("its primary version is {}", primary.state.name()));
        }
        if (self.state == KeyState::DestroyScheduled) != self.destroy_at.is_some() {
            return Err("its state and its time of destruction contradict each other".into());
        }
        for version in &self.versions {
            let number = version.number;
            if (version.state == VersionState::DestroyScheduled) != version.destroy_at.is_some() {
                return Err(format!("version {number}: state and time of destruction contradict each other"));
            }
            if version.state == VersionState::Destroyed && version.wrapped_material.is_some() {
                return Err(format!("version {number} is destroyed and has material"));
            }
            if self.state == KeyState::Destroyed && version.state != VersionState::Destroyed {
                return Err(format!("version {number} is {} in a destroyed key", version.state.name()));
            }
        }
        if (self.purpose == Purpose::Health) != self.paths.is_empty() {
            return Err("only a health key has no path".into());
        }
        if (self.purpose == Purpose::Sign) != self.algorithm.signing().is_some() {
            return Err("its purpose and its algorithm contradict each other".into());
        }
        let has_public_key = |version: &StoredVersion| version.public_key.is_some();
        if self.versions.iter().any(|version| has_public_key(version) != (self.purpose == Purpose::Sign)) {
            return Err("a signing key has a public key, and no other key has".into());
        }
        Ok(())
    }
}

fn end_of_grace(now: OffsetDateTime, settings: &Settings) -> OffsetDateTime {
    now + Duration::days(settings.destroy_grace_days.max(Settings::MIN_GRACE_DAYS).into())
}

#[cfg(test)]
mod tests;
