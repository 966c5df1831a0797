//! The admin plane: who keeps the keys, beside who uses them.
//!
//! A request's way: a listener of its own → [`gate`] (who is it? one answer for every error) → [`routes`] (may he? decode) →
//! [`Admin`], the service that does it.

mod access;
mod actor;
#[expect(missing_docs, reason = "the fields are named as in the JSON, with the words of the domain")]
pub mod api;
mod certificate;
mod change;
mod commands;
mod error;
mod gate;
mod openapi;
mod query;
mod routes;
mod service;
mod views;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use crate::config::{AdminConfig, Config};
use crate::connection::Drain;
use crate::listener::Listener;
use crate::metrics::Metrics;
use crate::socket_file::SocketFile;
use crate::start_error::StartError;
use crate::tls::{self, Certificate, CertificateError};
use access::Access;
pub use actor::{Actor, Role};
pub use error::AdminError;
pub use openapi::document as openapi_document;
pub use query::{ApprovalQuery, ChangesQuery, KeyQuery, PageQuery};
pub use service::Admin;

/// What the handlers work with; made once, shared by all requests.
struct Plane {
    service: Arc<Admin>,
    access: Arc<Access>,
    metrics: Arc<Metrics>,
    body_timeout: Duration,
}

/// The admin plane: listening, and not running yet.
pub struct AdminPlane {
    access: Arc<Access>,
    listeners: Vec<Listener>,
    address: Option<SocketAddr>,
    socket: Option<PathBuf>,
    /// Its own certificate; none if it shares the server's.
    certificate: Option<Arc<Certificate>>,
}

impl AdminPlane {
    /// Opens the listeners. `server` is the certificate of the EKM listener, which is also this one's unless there is another.
    pub async fn start(
        config: &Config,
        admin: &AdminConfig,
        service: Arc<Admin>,
        server: &Arc<Certificate>,
        metrics: Arc<Metrics>,
    ) -> Result<Self, StartError> {
        let access = Arc::new(Access::start(admin, &config.auth, Arc::clone(&metrics)).await?);
        let body_timeout = Duration::from_millis(config.limits.body_timeout_ms);
        let (shared, counted) = (Arc::clone(&access), Arc::clone(&metrics));
        let router = routes::router(Arc::new(Plane { service, access: shared, metrics: counted, body_timeout }));
        let mut plane = Self { access, listeners: Vec::new(), address: None, socket: None, certificate: None };
        if let Some(address) = admin.listen {
            if let (Some(file), Some(key)) = (&admin.certificate_file, &admin.private_key_file) {
                plane.certificate = Some(Arc::new(Certificate::load(file, key)?));
            }
            let clients = admin.client_ca_file.as_ref();
            let clients = clients.map(|file| tls::client_verifier(file, !admin.issuers.is_empty())).transpose()?;
            let certificate = Arc::clone(plane.certificate.as_ref().unwrap_or(server));
            let tls = tls::server_config(certificate, clients).map_err(CertificateError::Pair)?;
            let tls = Some(TlsAcceptor::from(Arc::new(tls)));
            let bound = Listener::bind("admin", address, tls, router.clone(), &config.limits, Arc::clone(&metrics));
            let listener = bound.map_err(|cause| StartError::Listen { address, cause })?;
            plane.address = Some(listener.address().map_err(StartError::io("cannot tell the address"))?);
            plane.listeners.push(listener);
        }
        if let Some(file) = &admin.socket {
            let file = file.get_ref();
            let bound = SocketFile::bind(file).await;
            let socket = bound.map_err(|cause| StartError::Socket { file: file.display().to_string(), cause })?;
            plane.listeners.push(Listener::on_socket_file("admin-socket", socket, router, &config.limits, metrics));
            plane.socket = Some(file.clone());
        }
        Ok(plane)
    }

    /// The network listener's address, with the port that port 0 became.
    pub fn address(&self) -> Option<SocketAddr> {
        self.address
    }

    /// The Unix socket's file.
    pub fn socket(&self) -> Option<&PathBuf> {
        self.socket.as_ref()
    }

    /// Its own certificate, to be read again when it changes; none if it shares the server's.
    pub fn certificate(&self) -> Option<&Arc<Certificate>> {
        self.certificate.as_ref()
    }

    /// Asks every issuer for its key set when called, on SIGHUP.
    pub fn refresher(&self) -> impl Fn() + Send + 'static {
        let access = Arc::clone(&self.access);
        move || access.refresh()
    }

    /// Serves until `drain` says stop; returns how many connections had to be cut.
    pub async fn run(self, drain: watch::Receiver<Drain>, patience: Duration) -> usize {
        let mut running = JoinSet::new();
        for listener in self.listeners {
            running.spawn(listener.run(drain.clone(), patience));
        }
        running.join_all().await.into_iter().sum()
    }
}
