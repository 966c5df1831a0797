//! The integration tests: one binary, so that it is linked once.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod admin_access;
mod admin_api;
mod audit;
mod auth;
mod bad_fields;
mod bad_http;
mod bad_http2;
mod bad_json;
mod bad_path;
mod bad_tls;
mod bad_token;
mod catalog_lifecycle;
mod catalog_postgres;
mod catalog_snapshot;
mod catalog_tampering;
mod cli;
mod config;
mod docs;
mod drill;
mod fault_module;
mod golden;
mod hsm;
mod hsm_drain;
mod hsm_faults;
mod hsm_replication;
mod hsm_shards;
mod keys;
mod ops;
mod process;
mod rig;
mod slow_clients;
mod table;
mod tls;
mod wrap_unwrap;
