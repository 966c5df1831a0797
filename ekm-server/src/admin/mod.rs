//! temporary
mod actor;
#[expect(missing_docs, reason = "the fields are named as in the JSON, with the words of the domain")]
pub mod api;
mod change;
mod commands;
mod error;
mod query;
mod service;
mod views;
pub use actor::{Actor, Role};
pub use error::AdminError;
pub use service::Admin;
