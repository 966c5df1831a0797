//! The integration tests: one binary, so that it is linked once.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod bad_http;
mod bad_tls;
mod slow_clients;
mod table;
mod wrap_unwrap;
