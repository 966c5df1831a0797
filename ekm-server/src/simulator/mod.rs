//! Google's side of Cloud EKM, as far as it is known: `ekm simulate-kms`. It knows no more of the EKM than Google does.
//!
//! [`cloud_kms`] and [`operations`] do what a customer asks for, [`calling`] makes one call of it with a token, a deadline and retries,
//! [`error_domain`] says what Cloud KMS would make of the answer, and [`state`] keeps what Google would keep.

pub(crate) mod calling;
pub(crate) mod cloud_kms;
pub(crate) mod envelope;
pub(crate) mod error_domain;
mod operations;
pub(crate) mod state;
