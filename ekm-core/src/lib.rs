//! The domain of the external key manager: who may use which key, how a wrapped blob looks, and how the
//! HSM is driven. Knows neither HTTP nor SQL nor the environment.
//!
//! A request enters at [`Ekm::wrap`], [`Ekm::unwrap`], [`Ekm::sign`] or [`Ekm::public_key`] and passes, in this order, the [`Snapshot`] (is there such a key?),
//! the [`policy`] (may this caller?), and the key's [`custody`] ([`hsm`] or [`software`]).

mod algorithm;
pub mod blob;
pub mod caller;
pub mod catalog;
pub mod custody;
mod ekm;
mod error;
mod glob;
pub mod hsm;
pub mod json;
pub mod justification;
mod locked;
pub mod nonces;
mod path;
pub mod policy;
pub mod public_key;
mod secret;
mod shard_name;
mod shared_map;
pub mod signing_key;
mod snapshot;
pub mod software;
mod version;
pub mod xaes;

pub use algorithm::{Algorithm, Curve, Hash, Scheme, SigningAlgorithm, UnknownAlgorithm};
pub use ekm::{Ekm, Request, ToSign, Trace};
pub use error::{Blame, Error, NotInUse};
pub use locked::{KeyArena, Locked, LockedKey};
pub use path::{InvalidPath, KeyPath};
pub use public_key::PublicKey;
pub use secret::Plaintext;
pub use shard_name::{InvalidShardName, ShardName};
pub use snapshot::{Key, KeyNotFound, Snapshot, Space, SpaceNotFound};
pub use version::{KeyVersion, Unusable, VersionState};
