//! What a scenario's file says of hostile clients.

use serde::{Deserialize, Serialize};

/// Clients that are alike, during a phase.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hostile {
    pub phase: String,
    pub kind: Kind,
    /// From 1.
    #[serde(default = "one")]
    pub frontend: usize,
    /// At once, at most.
    pub connections: usize,
    /// Of all together: who has been cut off comes back.
    #[serde(default = "hundred")]
    pub opens_per_s: f64,
    /// What each connection does a second, if it does anything: see [`Kind`].
    #[serde(default = "one_f64")]
    pub rate: f64,
}

/// What they do. `rate` counts what is named in the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// Nothing at all, once TCP is connected.
    Silent,
    /// Nothing after the TLS handshake.
    SilentAfterTls,
    /// One good request, then nothing.
    Idle,
    /// A head that never ends: bytes.
    SlowHead,
    /// A body that is announced and comes bit by bit: bytes. Then the next one.
    SlowBody,
    /// A chunked body that never ends: chunks of 1 KiB.
    EndlessBody,
    /// Asks for more than he reads: bytes read.
    SlowReader,
    /// Connects, and resets the connection.
    Reset,
    /// The same after the TLS handshake.
    ResetAfterTls,
    /// Random bytes in the place of a TLS handshake.
    Garbage,
    /// Requests that break the rules of HTTP/1.1, one on each connection.
    Malformed,
    /// Requests that are taken back at once: requests.
    H2RapidReset,
    /// Requests that make the server reset them: requests.
    H2MadeYouReset,
    /// A head in ever more frames: frames.
    H2Continuation,
    /// Pings whose answers nobody reads: frames.
    H2Ping,
    /// The same with settings: frames.
    H2Settings,
    /// A body in frames without a byte: frames.
    H2EmptyData,
    /// As many requests as fit, half of them large, and no window for their answers.
    H2ZeroWindow,
}

impl Kind {
    /// As in the file.
    pub fn name(self) -> String {
        serde_json::to_value(self).ok().and_then(|name| Some(name.as_str()?.to_owned())).unwrap_or_default()
    }
}

impl Hostile {
    /// Bounds that a slip of the pen would break.
    pub fn check(&self, frontends: usize) -> Result<(), String> {
        if !(1..=20_000).contains(&self.connections) {
            return Err("connections is 1 to 20000".into());
        }
        if !(0.0..=1000.0).contains(&self.opens_per_s) || self.opens_per_s == 0.0 {
            return Err("opens_per_s is more than 0 and at most 1000".into());
        }
        if !(0.0..=1_000_000.0).contains(&self.rate) || self.rate == 0.0 {
            return Err("rate is more than 0 and at most 1000000".into());
        }
        if self.frontend == 0 || self.frontend > frontends {
            return Err(format!("frontend is 1 to {frontends}, as [rig] says"));
        }
        Ok(())
    }
}

fn one() -> usize {
    1
}

fn hundred() -> f64 {
    100.0
}

fn one_f64() -> f64 {
    1.0
}
