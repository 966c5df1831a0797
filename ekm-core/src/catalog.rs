//! The catalog's nouns, as `storage` reads them: plain data, not yet checked against policy grammar or HSM.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::blob::VersionId;
use crate::path::KeyPath;

/// Everything that a frontend needs to serve, at one revision.
#[derive(Clone, Debug, Default)]
pub struct Catalog {
    /// Grows by one with every change.
    pub revision: u64,
    /// Every crypto space.
    pub spaces: Vec<CryptoSpace>,
    /// Every key, the health key included.
    pub keys: Vec<KeyRecord>,
}

/// A container of keys with a path of its own.
#[derive(Clone, Debug)]
pub struct CryptoSpace {
    /// Never reused.
    pub id: Uuid,
    /// `v0/cryptospaces/<name>`.
    pub path: KeyPath,
}

/// One key, with all its versions and paths.
#[derive(Clone, Debug)]
pub struct KeyRecord {
    /// Never reused; part of every blob.
    pub id: Uuid,
    /// The crypto space that it belongs to.
    pub space: Uuid,
    /// What it is for.
    pub purpose: Purpose,
    /// Whether an operator has paused it.
    pub state: KeyState,
    /// Every path under which callers know it.
    pub paths: Vec<KeyPath>,
    /// The policy's JSON, parsed when the snapshot is built.
    pub policy: String,
    /// The version that wraps.
    pub primary: u32,
    /// Every version that may still unwrap.
    pub versions: Vec<VersionRecord>,
}

/// One version's material, or where it is.
#[derive(Clone, Debug)]
pub struct VersionRecord {
    /// Key and number.
    pub id: VersionId,
    /// Where the material lives.
    pub custody: Custody,
    /// The material under the key file (`software`); never in the clear.
    pub wrapped_material: Option<Vec<u8>>,
    /// The known text of [`crate::custody`], wrapped under this version when it was made: the known answer of every later start.
    pub check_blob: Vec<u8>,
}

/// What a key is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Purpose {
    /// wrap and unwrap, called by Cloud KMS.
    Wrap,
    /// The service's own wrap and unwrap behind `/healthz`; it has no path, so nobody else can use it.
    Health,
}

/// An operator's word about a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum KeyState {
    /// In use.
    Enabled,
    /// Paused: wrap and unwrap answer FAILED_PRECONDITION, which does not disable the version at Google.
    Disabled,
    /// Unwraps, so that a mistake is noticed while it can be taken back; does not wrap any more.
    DestroyScheduled,
    /// The material is gone; the paths stay taken.
    Destroyed,
}

/// Whether a crypto space's keys are in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SpaceState {
    /// In use.
    Enabled,
    /// None of its keys is.
    Blocked,
}

/// What a version may be used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum VersionState {
    /// Unwraps, does not wrap yet.
    Pending,
    /// Unwraps, and wraps if it is the primary.
    Enabled,
    /// Neither.
    Disabled,
    /// Unwraps; can be undeleted.
    DestroyScheduled,
    /// The material is gone.
    Destroyed,
}

/// Where an approval stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ApprovalState {
    /// Waits for a second person.
    Requested,
    /// Approved, and the change was made.
    Approved,
    /// Rejected or taken back.
    Rejected,
    /// Nobody decided in time.
    Expired,
}

/// Where a key's material lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Custody {
    /// An object on the token that never leaves it; every operation is an HSM operation.
    Hsm,
    /// In the catalog, wrapped by the root key in the HSM; operations run in this process.
    HsmWrapped,
    /// In the catalog, wrapped by a key file; operations run in this process. For development only.
    Software,
}

macro_rules! stored_names {
    ($($type:ident { $($variant:ident = $name:literal),* })*) => { $(
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

stored_names! {
    Purpose { Wrap = "wrap", Health = "health" }
    KeyState { Enabled = "enabled", Disabled = "disabled", DestroyScheduled = "destroy-scheduled", Destroyed = "destroyed" }
    SpaceState { Enabled = "enabled", Blocked = "blocked" }
    VersionState {
        Pending = "pending", Enabled = "enabled", Disabled = "disabled", DestroyScheduled = "destroy-scheduled",
        Destroyed = "destroyed"
    }
    ApprovalState { Requested = "requested", Approved = "approved", Rejected = "rejected", Expired = "expired" }
    Custody { Hsm = "hsm", HsmWrapped = "hsm-wrapped", Software = "software" }
}
