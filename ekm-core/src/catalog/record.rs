//! The catalog's nouns, as its rows hold them: JSON in sealed bodies. Unknown fields are refused: a row that a newer version wrote
//! may mean something that this one would miss.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use uuid::Uuid;

use super::replaced::ReplacedPolicy;
use crate::algorithm::Algorithm;
use crate::blob::{Format, VersionId};
use crate::path::KeyPath;
use crate::public_key::PublicKey;
use crate::shard_name::ShardName;

/// A container of keys with a path of its own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SpaceRecord {
    /// Never reused.
    pub id: Uuid,
    /// `v0/cryptospaces/<name>`.
    pub path: KeyPath,
    /// Whether its keys are in use.
    pub state: SpaceState,
    /// Where the material of its keys' next versions lives.
    #[serde(default, skip_serializing_if = "ShardName::is_main")]
    pub shard: ShardName,
    /// Whether callers may make keys in it, by createKey.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub creation: Option<KeyCreation>,
    /// For people and filters.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// For people.
    #[serde(default)]
    pub description: String,
    /// When it was made.
    #[serde(with = "time::serde::rfc3339")]
    pub created_at: OffsetDateTime,
}

/// What callers may make in a crypto space.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyCreation {
    /// Who may, and later the policy of the keys that are made.
    pub policy: Uuid,
    /// How their material is kept.
    pub custody: Custody,
    /// Which keys; empty means any that is offered.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub algorithms: Vec<Algorithm>,
    /// How many keys of the space there may be at a time, destroyed ones not counted.
    pub max_keys: u32,
}

/// A named policy; keys refer to it by id.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PolicyRecord {
    /// Never reused.
    pub id: Uuid,
    /// Unique; for a policy that belongs to one key, the key's first path.
    pub name: String,
    /// The policy's JSON, parsed when the row is read.
    pub document: String,
    /// What it replaced and what counts still, the oldest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub replaced: Vec<ReplacedPolicy>,
    /// For people.
    #[serde(default)]
    pub description: String,
}

/// One key, with all its versions and paths.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyRecord {
    /// Never reused; part of every blob.
    pub id: Uuid,
    /// The crypto space that it belongs to.
    pub space: Uuid,
    /// Who may use it.
    pub policy: Uuid,
    /// What the key's policy was before it was given another one, as far as it counts still, the oldest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub replaced_policies: Vec<ReplacedPolicy>,
    /// What it is for.
    pub purpose: Purpose,
    /// What it does. [`Purpose::Sign`] says that it signs, and this says how.
    #[serde(default, skip_serializing_if = "Algorithm::is_symmetric")]
    pub algorithm: Algorithm,
    /// Whether it is in use.
    pub state: KeyState,
    /// When it will be destroyed; with [`KeyState::DestroyScheduled`] only.
    #[serde(default, with = "time::serde::rfc3339::option", skip_serializing_if = "Option::is_none")]
    pub destroy_at: Option<OffsetDateTime>,
    /// What Cloud KMS called the key version that it is for, if a caller has made it: the same again is the same key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created_for: Option<String>,
    /// A caller has destroyed it: it unwraps nothing any more, also while that can be taken back.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub destroyed_by_caller: bool,
    /// Every path under which callers know it, the first one first. They stay when the key is destroyed: a path is never given
    /// out twice.
    pub paths: Vec<KeyPath>,
    /// The custody of its next version.
    pub custody: Custody,
    /// The version that wraps.
    pub primary: u32,
    /// By number, from 1, none missing.
    pub versions: Vec<StoredVersion>,
    /// When new versions are made by themselves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rotation: Option<Rotation>,
    /// For people and filters.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// For people.
    #[serde(default)]
    pub description: String,
    /// When it was made.
    #[serde(with = "time::serde::rfc3339")]
    pub created_at: OffsetDateTime,
}

/// One version of a key, as its row holds it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StoredVersion {
    /// From 1.
    pub number: u32,
    /// What it may be used for.
    pub state: VersionState,
    /// When it will be destroyed; with [`VersionState::DestroyScheduled`] only.
    #[serde(default, with = "time::serde::rfc3339::option", skip_serializing_if = "Option::is_none")]
    pub destroy_at: Option<OffsetDateTime>,
    /// How the material is kept.
    pub custody: Custody,
    /// On which HSMs, or under whose root key.
    #[serde(default, skip_serializing_if = "ShardName::is_main")]
    pub shard: ShardName,
    /// The shards that it was moved away from: the key is on their HSMs, too, until it is destroyed.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub left_on: BTreeSet<ShardName>,
    /// The material under the root key or the key file; never in the clear. Gone when destroyed.
    #[serde(default, with = "base64_option", skip_serializing_if = "Option::is_none")]
    pub wrapped_material: Option<Vec<u8>>,
    /// The known answer of the version's known-answer test. Empty for a signing key, whose known answer is `public_key`.
    #[serde(with = "base64_bytes")]
    pub check_blob: Vec<u8>,
    /// Of a signing key: DER SubjectPublicKeyInfo.
    #[serde(default, with = "base64_option", skip_serializing_if = "Option::is_none")]
    pub public_key: Option<Vec<u8>>,
    /// When it was made.
    #[serde(with = "time::serde::rfc3339")]
    pub created_at: OffsetDateTime,
}

/// Scheduled rotation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rotation {
    /// From one rotation to the next.
    pub every_days: u32,
    /// When the next version is made.
    #[serde(with = "time::serde::rfc3339")]
    pub next_at: OffsetDateTime,
}

/// What holds for the whole catalog; one row, under the nil id.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// From the approval of a destruction until material is gone.
    pub destroy_grace_days: u32,
    /// From a change of a policy until what was allowed before is denied for good; 0 for at once.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub denial_delay_minutes: u32,
    /// The HSM replicas that operators have taken out of use, by their names.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub drained_replicas: BTreeSet<String>,
    /// The shards' root keys, to look after them on every replica. Those that were made before they were noted here are missing.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub roots: BTreeMap<ShardName, RootRecord>,
}

/// A shard's root key: an object on its tokens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RootRecord {
    /// CKA_ID, with the number 1.
    pub id: Uuid,
    /// Wrapped by the replication key, if there was one when it was made.
    #[serde(default, with = "base64_option", skip_serializing_if = "Option::is_none")]
    pub wrapped_material: Option<Vec<u8>>,
    /// A known text, wrapped by it when it was made.
    #[serde(with = "base64_bytes")]
    pub check_blob: Vec<u8>,
}

impl Settings {
    /// The least that may be set.
    pub const MIN_GRACE_DAYS: u32 = 7;
    /// The most minutes that a denial may be held back: a day.
    pub const MAX_DENIAL_DELAY_MINUTES: u32 = 24 * 60;
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the shape that serde calls")]
fn is_zero(number: &u32) -> bool {
    *number == 0
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            destroy_grace_days: 30,
            denial_delay_minutes: 0,
            drained_replicas: BTreeSet::new(),
            roots: BTreeMap::new(),
        }
    }
}

/// A dangerous change that waits for a second person.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ApprovalRecord {
    /// Never reused.
    pub id: Uuid,
    /// The change to make, as it was requested.
    pub command: serde_json::Value,
    /// SHA-256 of `command`'s canonical JSON, in hexadecimal: what the second person approves.
    pub payload_sha256: String,
    /// The revision of the thing as the requester saw it; if it has changed since, the approval comes to nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub if_revision: Option<u64>,
    /// One line for people.
    pub summary: String,
    /// Who asked for it.
    pub requested_by: String,
    /// Why.
    pub reason: String,
    /// When.
    #[serde(with = "time::serde::rfc3339")]
    pub requested_at: OffsetDateTime,
    /// After that nobody can approve it.
    #[serde(with = "time::serde::rfc3339")]
    pub expires_at: OffsetDateTime,
    /// Where it stands.
    pub state: ApprovalState,
    /// Who approved or rejected it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decided_by: Option<String>,
    /// When.
    #[serde(default, with = "time::serde::rfc3339::option", skip_serializing_if = "Option::is_none")]
    pub decided_at: Option<OffsetDateTime>,
}

/// What a custodian makes and opens: one version's material, or where it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VersionRecord {
    /// Key and number.
    pub id: VersionId,
    /// How the material is kept.
    pub custody: Custody,
    /// On which HSMs, or under whose root key. Of no meaning for custody `software`.
    pub shard: ShardName,
    /// The material under the root key (`hsm-wrapped`) or the key file (`software`); never in the clear.
    pub wrapped_material: Option<Vec<u8>>,
    /// The known text of [`crate::custody`], wrapped under this version when it was made: the known answer of every later start. Empty for a
    /// signing key.
    pub check_blob: Vec<u8>,
    /// Of a signing key: its public half, which is its known answer.
    pub public_key: Option<Arc<PublicKey>>,
}

impl Purpose {
    /// Of a key that callers use.
    pub fn of(algorithm: Algorithm) -> Self {
        if algorithm.is_symmetric() { Self::Wrap } else { Self::Sign }
    }
}

impl KeyRecord {
    /// What the custodian needs to use a version.
    pub fn version_record(&self, version: &StoredVersion) -> VersionRecord {
        version.clone().into_record(self.id, self.algorithm)
    }

    /// The version with a number.
    pub fn version(&self, number: u32) -> Option<&StoredVersion> {
        self.versions.iter().find(|version| version.number == number)
    }

    /// The first path; a health key has none.
    pub fn name(&self) -> String {
        self.paths.first().map_or_else(|| self.id.to_string(), ToString::to_string)
    }
}

impl RootRecord {
    /// What the custodian needs to look after it.
    pub(crate) fn into_record(self, shard: ShardName) -> VersionRecord {
        VersionRecord {
            id: VersionId { key: self.id, number: 1 },
            custody: Custody::Hsm,
            shard,
            wrapped_material: self.wrapped_material,
            check_blob: self.check_blob,
            public_key: None,
        }
    }
}

impl StoredVersion {
    /// As [`KeyRecord::version_record`].
    pub(crate) fn into_record(self, key: Uuid, algorithm: Algorithm) -> VersionRecord {
        let public_key = |(algorithm, der)| Arc::new(PublicKey::new(algorithm, der));
        VersionRecord {
            public_key: algorithm.signing().zip(self.public_key).map(public_key),
            id: VersionId { key, number: self.number },
            custody: self.custody,
            shard: self.shard,
            wrapped_material: self.wrapped_material,
            check_blob: self.check_blob,
        }
    }
}

impl Custody {
    /// The format of blobs that its versions make.
    pub fn format(self) -> Format {
        match self {
            Self::Hsm => Format::Checked,
            Self::HsmWrapped => Format::Xaes,
            Self::Software => Format::Gcm,
        }
    }

    /// Whether its versions open blobs of a format: the one that they make, and those that they once made.
    pub fn opens(self, format: Format) -> bool {
        format == self.format() || (self, format) == (Self::Hsm, Format::Gcm)
    }
}

/// Words that are stored: kebab-case in JSON, the same in tables and audit lines.
macro_rules! words {
    ($($(#[$doc:meta])* $type:ident { $($(#[$variant_doc:meta])* $variant:ident = $name:literal,)* })*) => { $(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub enum $type { $($(#[$variant_doc])* #[serde(rename = $name)] $variant,)* }

        impl $type {
            /// The word in the catalog, in audit lines and in tables.
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $name),* }
            }

            /// The reverse of [`Self::name`]; `None` for a word that this version does not know.
            pub fn from_name(name: &str) -> Option<Self> {
                match name { $($name => Some(Self::$variant),)* _ => None }
            }
        }
    )* };
}

words! {
    /// The kinds of rows.
    Kind {
        /// [`SpaceRecord`].
        Space = "space",
        /// [`PolicyRecord`].
        Policy = "policy",
        /// [`KeyRecord`].
        Key = "key",
        /// [`ApprovalRecord`].
        Approval = "approval",
        /// [`Settings`].
        Settings = "settings",
    }
    /// What a key is for.
    Purpose {
        /// wrap and unwrap, called by Cloud KMS.
        Wrap = "wrap",
        /// asymmetricSign and getPublicKey, called by Cloud KMS.
        Sign = "sign",
        /// The service's own wrap and unwrap behind `/healthz`; it has no path, so nobody else can use it.
        Health = "health",
    }
    /// Whether a crypto space's keys are in use.
    SpaceState {
        /// In use.
        Enabled = "enabled",
        /// None of its keys is: wrap and unwrap answer FAILED_PRECONDITION.
        Blocked = "blocked",
    }
    /// What a key may be used for.
    KeyState {
        /// In use.
        Enabled = "enabled",
        /// Paused: wrap and unwrap answer FAILED_PRECONDITION, which does not disable the version at Google.
        Disabled = "disabled",
        /// Unwraps, so that a mistake is noticed while it can be taken back; does not wrap any more.
        DestroyScheduled = "destroy-scheduled",
        /// The material is gone; the paths stay taken.
        Destroyed = "destroyed",
    }
    /// What a version may be used for.
    VersionState {
        /// Made and proven, unwraps, does not wrap yet: first every frontend must know it.
        Pending = "pending",
        /// Unwraps, and wraps if it is the primary.
        Enabled = "enabled",
        /// Neither.
        Disabled = "disabled",
        /// Unwraps; can be undeleted.
        DestroyScheduled = "destroy-scheduled",
        /// The material is gone.
        Destroyed = "destroyed",
    }
    /// How a key's material is kept.
    Custody {
        /// An object on the token that never leaves it; every operation is an HSM operation.
        Hsm = "hsm",
        /// In the catalog, wrapped by the root key in the HSM; operations run in this process.
        HsmWrapped = "hsm-wrapped",
        /// In the catalog, wrapped by a key file; operations run in this process. For development only.
        Software = "software",
    }
    /// Where an approval stands.
    ApprovalState {
        /// Waits for a second person.
        Requested = "requested",
        /// A second person has approved it, and the change was made.
        Approved = "approved",
        /// Somebody has rejected it, or the requester has taken it back.
        Rejected = "rejected",
        /// Nobody decided in time.
        Expired = "expired",
    }
}

mod base64_bytes {
    use std::borrow::Cow;

    use base64::Engine;
    use base64::engine::general_purpose::STANDARD;
    use serde::{Deserialize, Deserializer, Serializer, de};

    pub(super) fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(bytes))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        /// Not copied if it stands in the JSON as it is.
        #[derive(Deserialize)]
        struct Text<'a>(#[serde(borrow)] Cow<'a, str>);
        let Text(text) = Text::deserialize(deserializer)?;
        STANDARD.decode(text.as_bytes()).map_err(|_| de::Error::custom("no base64"))
    }
}

mod base64_option {
    use serde::{Deserialize, Deserializer, Serializer};

    #[expect(clippy::ref_option, reason = "the shape that serde calls")]
    pub(super) fn serialize<S: Serializer>(bytes: &Option<Vec<u8>>, serializer: S) -> Result<S::Ok, S::Error> {
        match bytes {
            Some(bytes) => super::base64_bytes::serialize(bytes, serializer),
            None => serializer.serialize_none(),
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Vec<u8>>, D::Error> {
        #[derive(Deserialize)]
        struct Bytes(#[serde(with = "super::base64_bytes")] Vec<u8>);
        Ok(Option::<Bytes>::deserialize(deserializer)?.map(|bytes| bytes.0))
    }
}
