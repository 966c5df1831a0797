//! The key catalog: what it holds ([`record`]), what may become of it ([`lifecycle`]), how it is sealed against the database that
//! stores it ([`ledger`]), and how a frontend follows it ([`mirror`]), and how a policy changes in two steps
//! ([`replaced`]).

pub mod ledger;
pub mod lifecycle;
pub mod mirror;
pub mod record;
pub mod replaced;

pub use ledger::{CatalogKey, Head, SealedChange, SealedHead, SealedRow};
pub use lifecycle::{Impossible, Outcome};
pub use mirror::{Loading, Mirror, Tampered};
pub use record::{
    ApprovalRecord, ApprovalState, Custody, KeyCreation, KeyRecord, KeyState, Kind, PolicyRecord, Purpose, RootRecord,
    Rotation, Settings, SpaceRecord, SpaceState, StoredVersion, VersionRecord, VersionState,
};
pub use replaced::{ReplacedPolicy, denial_final_at, replaced};
