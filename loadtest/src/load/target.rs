//! Where requests go, and as whom: an EKM's frontends, and tokens for its callers.

use std::fs;
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ekm_tests::{Issuer, tls_config};
use http::uri::Authority;
use rustls::ClientConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};

use crate::scenario::{Callers, Protocol};

/// Half of a token's life: after that it is made anew.
pub const TOKEN_AGE: Duration = Duration::from_secs(1800);

/// An EKM's frontends. Where they are may change while they are restarted.
pub struct Target {
    frontends: Mutex<Vec<SocketAddr>>,
    /// In Host, or :authority.
    pub authority: Authority,
    /// In the certificate.
    pub server_name: ServerName<'static>,
    pub ca_file: PathBuf,
}

impl Target {
    /// Frontends on this machine, with a certificate for `localhost`.
    pub fn local(frontends: Vec<SocketAddr>, ca_file: PathBuf) -> Self {
        let server_name = ServerName::try_from("localhost").expect("a name");
        let authority = Authority::from_static("localhost");
        Self { frontends: Mutex::new(frontends), authority, server_name, ca_file }
    }

    /// The one that a URL names.
    pub fn at(url: &str, ca_file: PathBuf) -> Result<Self, String> {
        let bad = || format!("--url '{url}' is no address of an EKM; write https://host:port");
        let authority = url.strip_prefix("https://").map(|rest| rest.trim_end_matches('/')).ok_or_else(bad)?;
        let authority: Authority = authority.parse().map_err(|_| bad())?;
        let host = authority.host().trim_matches(['[', ']']).to_owned();
        let server_name = ServerName::try_from(host.clone()).map_err(|_| bad())?;
        let looked_up = (host.as_str(), authority.port_u16().unwrap_or(443)).to_socket_addrs();
        let looked_up = looked_up.map_err(|error| format!("--url '{url}': the host is not found: {error}"))?;
        let first = looked_up.into_iter().next().ok_or_else(|| format!("--url '{url}': the host has no address"))?;
        CertificateDer::from_pem_file(&ca_file)
            .map_err(|error| format!("--ca {}: no certificate in PEM: {error}", ca_file.display()))?;
        Ok(Self { frontends: Mutex::new(vec![first]), authority, server_name, ca_file })
    }

    /// How many frontends there are.
    pub fn len(&self) -> usize {
        self.frontends.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Where a frontend is now.
    pub fn address(&self, frontend: usize) -> SocketAddr {
        self.frontends.lock().unwrap_or_else(PoisonError::into_inner)[frontend]
    }

    /// A frontend has moved.
    pub fn moved(&self, frontend: usize, address: SocketAddr) {
        self.frontends.lock().unwrap_or_else(PoisonError::into_inner)[frontend] = address;
    }

    /// A client's TLS settings.
    pub fn tls(&self, protocol: Protocol) -> Arc<ClientConfig> {
        let alpn = match protocol {
            Protocol::Http1 => "http/1.1",
            Protocol::Http2 => "h2",
        };
        Arc::new(tls_config(&self.ca_file, &[alpn]))
    }
}

/// Who makes the callers' tokens.
pub enum Tokens {
    /// One for all callers.
    Fixed(String),
    /// An issuer whose key we have.
    Minted { issuer: Issuer, audience: String },
}

impl Tokens {
    /// The token in a file.
    pub fn from_file(file: &Path) -> Result<Self, String> {
        let text = fs::read_to_string(file).map_err(|error| format!("--token-file {}: {error}", file.display()))?;
        Ok(Self::Fixed(text.trim().to_owned()))
    }

    /// A caller's token, new if we can make one.
    pub fn token(&self, email: &str) -> String {
        match self {
            Self::Fixed(token) => token.clone(),
            Self::Minted { issuer, audience } => {
                issuer.token_with(serde_json::json!({"email": email, "aud": audience, "sub": email}))
            }
        }
    }
}

/// A caller's address. Without a pattern, the service agent of a project of his own; `before` are the callers of other groups.
pub fn email(callers: &Callers, before: usize, index: usize) -> String {
    match &callers.email {
        Some(pattern) => pattern.replace("{n}", &(index + 1).to_string()),
        None => format!("service-{}@gcp-sa-ekms.iam.gserviceaccount.com", 100_000_000_001 + before + index),
    }
}
