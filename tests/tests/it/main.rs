//! The integration tests: one binary, so that it is linked once.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod audit;
mod auth;
mod config;
mod docs;
mod golden;
mod hsm;
mod keys;
mod ops;
mod process;
mod tls;
mod wrap_unwrap;
