//! The HSM: PKCS#11 tokens, the processes and threads that work on them, and the choice between them.
//!
//! A request goes this way:
//!
//! - `admission`: whether it can be done in time at all, and whose turn it is.
//! - [`Shard`]: chooses among replicas that hold the same keys, asks a second one if the first is late or fails.
//! - [`Replica`]: one token, with its state (`health`), and the task that keeps it usable.
//! - `link`: the bounded queue in front of its sessions. They run on threads of this process, or in a worker process of their own
//!   (`process` and `lane` are the frontend's side of it, [`worker`] the other, `frame` what goes between them).
//! - `session`: one logged-in session with its cache of key handles; blocking. `gcm`, `signing`: the calls that it makes. `keys`: keys are made and
//!   removed.
//!
//! [`Module`] is the vendor's library, [`Token`] is found, logged in to and tested; [`fault`] is a failed call and what its return code
//! means; [`profile`] says how vendors' tokens differ.
//!
//! No PKCS#11 call ever runs on an async worker. There is no trait over tokens: PKCS#11 is the one way to an HSM, and
//! custody `software` needs no token.

mod admission;
mod confine;
pub mod fault;
mod frame;
mod gcm;
mod health;
mod job;
mod keys;
mod lane;
mod link;
mod process;
pub mod profile;
mod replica;
mod return_codes;
mod self_test;
mod session;
mod shard;
mod signing;
#[cfg(test)]
mod tests;
mod token;
mod token_error;
pub mod worker;

pub use admission::AdmissionStatus;
pub use health::State;
pub(crate) use job::DIGEST_BYTES;
pub use job::{Demand, Patience, Proof, Timing, TokenKey, Urgency};
pub use link::TokenInfo;
pub use process::WorkerCommand;
pub use replica::{Isolation, Replica, ReplicaOptions, ReplicaStatus};
pub use shard::{Made, MakeError, Shard, ShardCounts, ShardOptions};
pub use token::{Module, Token, TokenOptions, TokenSelector, initialize_softhsm_token};
pub use token_error::TokenError;
