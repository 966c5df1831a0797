//! The external key manager's service: listeners, protocol, authentication, operations.
//!
//! A request's way: [`listener`] → [`connection`] → [`router`] → [`auth`] → [`wire`] → `ekm_core`, and back through
//! [`status`]. [`app`] puts the parts together.

pub mod admin;
mod answer;
pub mod app;
pub mod audit;
pub mod auth;
mod background;
pub mod catalog;
pub mod cli;
pub mod config;
mod conformance;
pub mod connection;
mod control;
mod custodian;
mod descriptors;
mod dev;
mod dialect;
mod hardening;
pub mod health;
mod hsm_audit;
mod intake;
pub mod listener;
mod logging;
pub mod metrics;
pub mod ops;
mod places;
mod process;
mod reload;
mod remote;
mod resting;
pub mod router;
pub mod shapes;
mod simulator;
mod socket_file;
pub mod start_error;
pub mod status;
pub mod tls;
mod watchdog;
pub mod wire;
