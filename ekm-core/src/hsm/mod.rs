//! The HSM: a PKCS#11 token, and the threads that work on it.
//!
//! - [`Module`]: the vendor's library. [`Token`]: the module is initialised once, the user logged in once, and the token proves itself before first use.
//! - `session`: one logged-in session with its cache of key handles; blocking. `gcm`: the two calls that it makes.
//! - [`Replica`]: threads that own one session each, behind one bounded queue; async.
//! - [`fault`]: a failed call, and what its return code means. [`profile`]: how vendors' tokens differ.
//!
//! No PKCS#11 call ever runs on an async worker. There is no trait over tokens: PKCS#11 is the one way to an HSM, and
//! custody `software` needs no token.

pub mod fault;
mod gcm;
pub mod profile;
mod replica;
mod return_codes;
mod self_test;
mod session;
#[cfg(test)]
mod tests;
mod token;

pub use replica::{Patience, Replica, ReplicaOptions, Timing, TokenKey};
pub use token::{Module, Token, TokenError, TokenOptions, TokenSelector, initialize_softhsm_token};
