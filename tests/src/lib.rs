//! The harness: real processes, real HSMs, real tokens, in directories of their own that vanish with the test.

mod authority;
mod client;
mod conformance;
mod deployment;
pub mod drill;
mod fake_ekm;
mod faults;
pub mod frames;
mod guardian;
mod issuer;
mod kryoptic;
pub mod namespaces;
pub mod patroni;
pub mod postgres;
mod process;
mod proxy;
pub mod template;
pub mod topology;
mod web;

pub use authority::Authority;
pub use client::{Answer, Connection, curl_over_http2, tls_config};
pub use conformance::{Custody, conformance_report, run_conformance};
pub use deployment::{Deployment, key_create};
pub use fake_ekm::{FAKE_TOKEN, Flaw, serve_fake_ekm};
pub use faults::{Effect, Fault, FaultyModule, SOFTHSM};
pub use guardian::Guardian;
pub use issuer::Issuer;
pub use kryoptic::{kryoptic, set_up_kryoptic};
pub use process::{Directory, Ekm, Ready, ekm_binary, run_ekm, set_up};
pub use proxy::{FaultProxy, Mode};
pub use web::WebServer;

/// A service agent's address, admitted by `ekm dev`'s configuration.
pub const CALLER: &str = "service-123456789012@gcp-sa-ekms.iam.gserviceaccount.com";

/// Standard base64, as the protocol writes it.
pub fn base64(bytes: impl AsRef<[u8]>) -> String {
    use base64::Engine;
    base64::engine::general_purpose::STANDARD.encode(bytes)
}

/// The reverse of [`base64`].
pub fn unbase64(text: &str) -> Vec<u8> {
    use base64::Engine;
    base64::engine::general_purpose::STANDARD.decode(text).expect("standard base64")
}
