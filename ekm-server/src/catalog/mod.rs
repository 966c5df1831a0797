//! The catalog as this process uses it: opened with the HSM or a key file, followed by the data plane, changed by operators.

mod begin;
mod draft;
mod follower;
mod open;
mod own_copy;
mod upkeep;

pub use begin::{HEALTH_POLICY, HEALTH_SPACE, initialise};
pub use draft::{Draft, Entry};
pub use follower::{Follower, Gate};
pub use open::{CatalogError, default_custody, key_file, open_store};
pub use own_copy::load;
pub use upkeep::Upkeep;
