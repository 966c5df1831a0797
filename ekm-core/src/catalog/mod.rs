//! The key catalog: what it holds ([`record`]), what may become of it ([`lifecycle`]), how it is sealed against the database that
//! stores it ([`ledger`]), and how a frontend follows it ([`mirror`]).

pub mod ledger;
pub mod lifecycle;
pub mod mirror;
pub mod record;

pub use ledger::{CatalogKey, Head, SealedChange, SealedHead, SealedRow};
pub use lifecycle::{Impossible, Outcome};
pub use mirror::{Loading, Mirror, Tampered};
pub use record::{
    ApprovalRecord, ApprovalState, Custody, KeyCreation, KeyRecord, KeyState, Kind, PolicyRecord, Purpose, RootRecord,
    Rotation, Settings, SpaceRecord, SpaceState, StoredVersion, VersionRecord, VersionState,
};
