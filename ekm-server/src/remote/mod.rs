//! An EKM seen from outside, over HTTPS: whoever's it is. `ekm simulate-kms`, `ekm conformance` and `ekm topology preflight` call through
//! this.

pub(crate) mod causes;
mod pins;
pub(crate) mod probe;
pub(crate) mod signature;
mod token_file;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::{Method, header};
use reqwest::Url;
use rustls::pki_types::CertificateDer;
use secrecy::{ExposeSecret, SecretString};

pub(crate) use pins::{PinnedLeaf, read_certificates};
pub(crate) use token_file::read_token;

/// Whom we believe to be the EKM.
#[derive(Clone)]
pub(crate) enum Trust {
    /// Whoever has a certificate of an authority that the system trusts.
    System,
    /// Whoever has a certificate of one of these.
    Authorities(Vec<CertificateDer<'static>>),
    /// Whoever has one of these very certificates, for the host's name.
    Pins(Vec<CertificateDer<'static>>),
}

/// One address of an EKM, and a client that keeps its connection open.
pub(crate) struct RemoteEkm {
    client: reqwest::Client,
    base: Url,
    host_header: Option<String>,
}

/// One request.
pub(crate) struct Call<'a> {
    pub(crate) method: Method,
    /// With the verb: `v0/keys/demo:wrap`.
    pub(crate) path: &'a str,
    pub(crate) token: Option<&'a SecretString>,
    pub(crate) content_type: Option<&'a str>,
    pub(crate) body: String,
}

/// What came back.
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) content_type: Option<String>,
    pub(crate) body: Vec<u8>,
}

/// Why nothing came back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum NoAnswer {
    /// Not within the time.
    Timeout,
    /// The host's name leads nowhere.
    Dns(String),
    /// The certificate, or TLS itself.
    Tls(String),
    /// Refused, reset, closed.
    Network(String),
}

impl std::fmt::Display for NoAnswer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Timeout => f.write_str("timed out"),
            Self::Dns(cause) => write!(f, "name not resolved: {cause}"),
            Self::Tls(cause) => write!(f, "TLS: {cause}"),
            Self::Network(cause) => write!(f, "network: {cause}"),
        }
    }
}

impl RemoteEkm {
    /// The EKM at a URL such as `https://ekm.example.com:8443`, whose name is looked up unless `address` says where it is.
    pub(crate) fn new(base: &Url, address: Option<SocketAddr>, trust: &Trust) -> Result<Self, String> {
        // The process's default is what reqwest takes.
        let provider = rustls::crypto::aws_lc_rs::default_provider();
        let _ = provider.clone().install_default();
        let Some(host) = base.host_str().filter(|_| base.scheme() == "https") else {
            return Err(format!("'{base}' is no address of an EKM; write https://host:port"));
        };
        let mut builder = reqwest::Client::builder()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .retry(reqwest::retry::never());
        if let Some(address) = address {
            builder = builder.resolve(host, address);
        }
        let failed = |error: &reqwest::Error| format!("cannot set up the connection: {}", causes::root_cause(error));
        builder = match trust {
            Trust::System => builder,
            Trust::Authorities(authorities) => {
                let roots: Result<Vec<_>, _> =
                    authorities.iter().map(|der| reqwest::Certificate::from_der(der)).collect();
                builder.tls_certs_only(roots.map_err(|error| failed(&error))?)
            }
            Trust::Pins(pins) => {
                let verifier = PinnedLeaf::new(pins.clone(), &provider);
                let config = rustls::ClientConfig::builder_with_provider(Arc::new(provider))
                    .with_safe_default_protocol_versions()
                    .map_err(|error| error.to_string())?;
                let config = config.dangerous().with_custom_certificate_verifier(Arc::new(verifier));
                builder.tls_backend_preconfigured(config.with_no_client_auth())
            }
        };
        let client = builder.build().map_err(|error| failed(&error))?;
        // `.resolve` takes the URL's port over the address's own, and port 443 in a URL is none.
        let mut base = base.clone();
        if let Some(address) = address {
            let _ = base.set_port(Some(address.port()));
        }
        Ok(Self { client, base, host_header: None })
    }

    /// Sends another name in `Host` than the one that TLS asks for.
    pub(crate) fn with_host_header(mut self, host: Option<String>) -> Self {
        self.host_header = host;
        self
    }

    /// Sends one request, and waits until `deadline` for the whole answer; connecting counts too.
    pub(crate) async fn call(&self, call: &Call<'_>, deadline: Duration) -> Result<Answer, NoAnswer> {
        let url = format!("{}/{}", self.base.as_str().trim_end_matches('/'), call.path.trim_start_matches('/'));
        let mut request = self.client.request(call.method.clone(), url).timeout(deadline);
        if let Some(token) = call.token {
            request = request.bearer_auth(token.expose_secret());
        }
        if let Some(content_type) = call.content_type {
            request = request.header(header::CONTENT_TYPE, content_type);
        }
        if let Some(host) = &self.host_header {
            request = request.header(header::HOST, host);
        }
        let response = request.body(call.body.clone()).send().await.map_err(|error| no_answer(&error))?;
        let status = response.status().as_u16();
        let content_type = response.headers().get(header::CONTENT_TYPE);
        let content_type = content_type.and_then(|value| value.to_str().ok()).map(str::to_owned);
        let body = response.bytes().await.map_err(|error| no_answer(&error))?.to_vec();
        Ok(Answer { status, content_type, body })
    }
}

fn no_answer(error: &reqwest::Error) -> NoAnswer {
    let cause = causes::root_cause(error);
    if let Some(tls) = causes::causes(error).find_map(causes::tls_error) {
        return NoAnswer::Tls(tls.to_string());
    }
    if error.is_timeout() {
        return NoAnswer::Timeout;
    }
    // hyper-util has no type for it that can be reached.
    if causes::causes(error).any(|cause| cause.to_string() == "dns error") {
        return NoAnswer::Dns(cause);
    }
    NoAnswer::Network(cause)
}
