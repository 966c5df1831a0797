//! The service: built from a configuration, run until a signal, drained.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use ekm_core::Ekm;
use ekm_core::custody::Custodian;
use ekm_core::hsm::{Replica, ReplicaOptions, Token, TokenError, TokenOptions, TokenSelector};
use ekm_core::software::{KeyFile, SoftwareError};
use ekm_storage::{CatalogStore, StorageError};
use secrecy::SecretString;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use crate::audit::AuditLog;
use crate::auth::{Authenticator, JwksError};
use crate::config::{Config, ConfigError, Hsm};
use crate::health::{self, Health};
use crate::listener::Listener;
use crate::metrics::Metrics;
use crate::ops::{self, Ops};
use crate::router::{self, DataPlane, RequestLimits};
use crate::tls::{self, Certificate, CertificateError};

/// How often the certificate files are looked at.
const CERTIFICATE_INTERVAL: Duration = Duration::from_secs(5);

/// Why the service, or a command of the operator's, stops. Each has an entry in the error reference under its code.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The configuration file.
    #[error("{0}")]
    Config(#[from] ConfigError),
    /// The HSM.
    #[error("{0}")]
    Token(#[from] TokenError),
    /// The key file of custody `software`, or memory for keys.
    #[error("{0}")]
    Software(#[from] SoftwareError),
    /// The catalog.
    #[error("{0}")]
    Catalog(#[from] StorageError),
    /// The server's certificate.
    #[error("{0}")]
    Certificate(#[from] CertificateError),
    /// An issuer's key set, as far as its configuration goes.
    #[error("{0}")]
    KeySet(#[from] JwksError),
    /// A file that holds a secret.
    #[error("{file}: {problem}")]
    SecretFile {
        /// The file.
        file: String,
        /// What is wrong with it.
        problem: String,
    },
    /// An address that cannot be listened on.
    #[error("cannot listen on {address}: {cause}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// The kernel's reason.
        cause: std::io::Error,
    },
    /// A new key could not be made.
    #[error("{0}")]
    Generate(#[from] ekm_core::custody::GenerateError),
    /// A policy file.
    #[error("the policy is refused: {0}")]
    Policy(#[from] ekm_core::policy::InvalidPolicy),
    /// The data directory of `ekm dev`.
    #[error("{0}")]
    Dev(String),
    /// `ekm dev --check` found something.
    #[error("{0}")]
    Check(String),
    /// Anything else that has to do with files and processes.
    #[error("{what}: {cause}")]
    Io {
        /// What was being done.
        what: String,
        /// The kernel's reason.
        cause: std::io::Error,
    },
}

impl StartError {
    /// The stable word for this error: heading in the error reference.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Config(_) => "config",
            Self::Token(error) => error.code(),
            Self::Software(_) => "software_custody",
            Self::Catalog(error) => error.code(),
            Self::Certificate(_) => "certificate",
            Self::KeySet(_) => "key_set",
            Self::SecretFile { .. } => "secret_file",
            Self::Listen { .. } => "listen",
            Self::Generate(_) => "key_generation",
            Self::Policy(_) => "policy",
            Self::Dev(_) => "dev_data",
            Self::Check(_) => "dev_check",
            Self::Io { .. } => "io",
        }
    }

    /// For failed file operations.
    pub fn io(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let what = what.into();
        move |cause| Self::Io { what, cause }
    }
}

/// A service that listens and is not running yet.
pub struct App {
    plane: Arc<DataPlane>,
    health: Arc<Health>,
    store: CatalogStore,
    certificate: Arc<Certificate>,
    ekm_listener: Listener,
    ops_listener: Listener,
    poll_interval: Duration,
    stale_after: Duration,
    drain_delay: Duration,
    drain_timeout: Duration,
    health_patience: Duration,
}

/// How a run ended.
pub struct Drained {
    /// Connections that had not finished in time.
    pub cut: usize,
    /// From the signal to the end.
    pub took: Duration,
}

impl App {
    /// Opens the HSM, the catalog, and the listeners. Everything that can fail at start fails here.
    pub async fn build(config: &Config) -> Result<Self, StartError> {
        let custodian = open_custodian(config).await?;
        let store = CatalogStore::open_sqlite(&config.catalog.sqlite_file, false).await?;
        Self::build_with(config, custodian, store).await
    }

    /// As [`Self::build`], with a custodian and a catalog that are open already: a token is logged in once per process.
    pub async fn build_with(config: &Config, custodian: Custodian, store: CatalogStore) -> Result<Self, StartError> {
        let replica = custodian.replica.as_ref().map_or("software", |replica| replica.token().label());
        let metrics = Arc::new(Metrics::new(config.profile.name(), replica));
        let (certificate, key) = (&config.server.certificate_file, &config.server.private_key_file);
        let certificate = Arc::new(Certificate::load(certificate, key)?);
        let tls = tls::server_config(Arc::clone(&certificate)).map_err(CertificateError::Pair)?;
        let audit = &config.audit;
        let audit = AuditLog::open(&audit.file, audit.queue_length, metrics.audit_write_errors.clone())
            .map_err(StartError::io(format!("cannot open the audit log {}", audit.file.display())))?;
        let authenticator = Authenticator::start(&config.auth, Arc::clone(&metrics)).await?;
        let ekm = Ekm::start(store.load().await?, custodian).await;
        log_snapshot(&ekm);

        let plane = Arc::new(DataPlane {
            ekm,
            authenticator,
            audit,
            metrics: Arc::clone(&metrics),
            hosts: config.server.hosts.clone(),
            limits: RequestLimits::new(config),
            error_envelope: config.server.error_envelope,
            instance: uuid::Uuid::new_v4().simple().to_string()[..12].to_owned(),
            next_request: AtomicU64::new(1),
        });
        let health = Arc::new(Health::default());
        let ops = ops::router(Ops { plane: Arc::clone(&plane), health: Arc::clone(&health) });
        let bind = async |address, tls, router| {
            let listener = Listener::bind(address, tls, router, &config.limits, Arc::clone(&metrics)).await;
            listener.map_err(|cause| StartError::Listen { address, cause })
        };
        let tls = TlsAcceptor::from(Arc::new(tls));
        let ekm_router = router::router(Arc::clone(&plane));
        Ok(Self {
            ekm_listener: bind(config.server.listen, Some(tls), ekm_router).await?,
            ops_listener: bind(config.ops.listen, None, ops).await?,
            plane,
            health,
            store,
            certificate,
            poll_interval: Duration::from_millis(config.catalog.poll_interval_ms.max(10)),
            stale_after: Duration::from_secs(config.catalog.stale_after_s),
            drain_delay: Duration::from_millis(config.limits.drain_delay_ms),
            drain_timeout: Duration::from_millis(config.limits.drain_timeout_ms),
            health_patience: config.request_deadline(),
        })
    }

    /// The EKM listener's address.
    pub fn ekm_address(&self) -> std::io::Result<SocketAddr> {
        self.ekm_listener.address()
    }

    /// The ops listener's address.
    pub fn ops_address(&self) -> std::io::Result<SocketAddr> {
        self.ops_listener.address()
    }

    /// Serves until `stop`, then: readiness goes, the load balancer gets time to notice, no new connections, requests under
    /// way finish, the audit log is written out.
    pub async fn run(self, stop: impl Future<Output = ()>) -> Drained {
        self.health.check(&self.plane.ekm, self.health_patience).await;
        let mut background = JoinSet::new();
        background.spawn(watch_health(Arc::clone(&self.health), Arc::clone(&self.plane), self.health_patience));
        background.spawn(watch_catalog(self.store, Arc::clone(&self.plane), self.poll_interval, self.stale_after));
        background.spawn(watch_certificate(Arc::clone(&self.certificate), Arc::clone(&self.plane)));
        background.spawn(watch_hangup(Arc::clone(&self.certificate), Arc::clone(&self.plane)));

        let (drain_ekm, ekm_draining) = watch::channel(false);
        let (drain_ops, ops_draining) = watch::channel(false);
        let ekm = tokio::spawn(self.ekm_listener.run(ekm_draining, self.drain_timeout));
        let ops = tokio::spawn(self.ops_listener.run(ops_draining, Duration::from_millis(200)));
        stop.await;

        let began = Instant::now();
        tracing::info!("draining");
        self.health.drain();
        tokio::time::sleep(self.drain_delay).await;
        drain_ekm.send_replace(true);
        let cut = ekm.await.unwrap_or_default();
        drain_ops.send_replace(true);
        let _ = ops.await;
        background.shutdown().await;
        // The last reference: its drop writes the audit log out, which blocks.
        let plane = self.plane;
        let _ = tokio::task::spawn_blocking(move || drop(plane)).await;
        Drained { cut, took: began.elapsed() }
    }
}

/// Resolves on SIGTERM or SIGINT.
pub async fn termination() -> std::io::Result<impl Future<Output = ()>> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}

/// Opens what the configuration gives us to use keys with. The HSM's part blocks, so it runs on a thread of its own.
pub async fn open_custodian(config: &Config) -> Result<Custodian, StartError> {
    let key_file = match &config.software {
        Some(software) => {
            let text = read_secret(&software.get_ref().key_file)?;
            Some(KeyFile::parse(secrecy::ExposeSecret::expose_secret(&text))?)
        }
        None => None,
    };
    let replica = match &config.hsm {
        Some(hsm) => {
            let (token, options) = (token_options(hsm)?, replica_options(hsm));
            let started = tokio::task::spawn_blocking(move || {
                let token = Arc::new(Token::open(token)?);
                Replica::start(token, options).map_err(TokenError::from)
            });
            let started = started.await.map_err(|_| TokenError::SelfTest("the PKCS#11 module panicked".into()))?;
            Some(started?)
        }
        None => None,
    };
    Ok(Custodian { key_file, replica })
}

fn token_options(hsm: &Hsm) -> Result<TokenOptions, StartError> {
    let pin = match (&hsm.pin_file, &hsm.pin_env) {
        (Some(file), _) => read_secret(file)?,
        (None, name) => {
            let name = name.as_deref().unwrap_or_default();
            let problem = || "this environment variable is named in hsm.pin_env and not set".to_owned();
            let value = std::env::var(name);
            value.map_err(|_| StartError::SecretFile { file: name.into(), problem: problem() })?.into()
        }
    };
    let label = hsm.token_label.clone().map(TokenSelector::Label);
    let selector = label.or_else(|| hsm.token_serial.clone().map(TokenSelector::Serial));
    let selector = selector.unwrap_or_else(|| TokenSelector::Label(String::new()));
    Ok(TokenOptions { module: hsm.module.get_ref().clone(), selector, pin })
}

fn replica_options(hsm: &Hsm) -> ReplicaOptions {
    ReplicaOptions {
        sessions: hsm.sessions.as_ref().map(|sessions| *sessions.get_ref()),
        queue_length: hsm.queue_length,
        deadline: Duration::from_millis(*hsm.deadline_ms.get_ref()),
    }
}

/// Reads a file that holds one secret and nothing else. A file that everybody may read holds no secret.
pub fn read_secret(file: &Path) -> Result<SecretString, StartError> {
    use std::os::unix::fs::PermissionsExt;
    let refused = |problem: String| StartError::SecretFile { file: file.display().to_string(), problem };
    let metadata = std::fs::metadata(file).map_err(|error| refused(error.to_string()))?;
    let mode = metadata.permissions().mode() & 0o777;
    if mode & 0o007 != 0 {
        return Err(refused(format!("everybody may read it (mode {mode:03o}); run 'chmod 600' on it")));
    }
    let text = std::fs::read_to_string(file).map_err(|error| refused(error.to_string()))?;
    let secret = SecretString::from(text.trim_end_matches(['\r', '\n']));
    drop(zeroize::Zeroizing::new(text));
    if secrecy::ExposeSecret::expose_secret(&secret).is_empty() {
        return Err(refused("it is empty".into()));
    }
    Ok(secret)
}

async fn watch_health(health: Arc<Health>, plane: Arc<DataPlane>, patience: Duration) {
    loop {
        tokio::time::sleep(health::INTERVAL).await;
        health.check(&plane.ekm, patience).await;
    }
}

/// Asks the catalog for its revision and takes over what is new. While the catalog cannot be read, the snapshot in use goes on,
/// and only after `stale_after` does an unknown key stop being a 404.
async fn watch_catalog(store: CatalogStore, plane: Arc<DataPlane>, interval: Duration, stale_after: Duration) {
    let mut last_read = Instant::now();
    let mut last_retry = Instant::now();
    loop {
        tokio::time::sleep(interval).await;
        let snapshot = plane.ekm.snapshot();
        // A key whose material was missing may be back: look again now and then.
        let retry = snapshot.unavailable_count() > 0 && last_retry.elapsed() > Duration::from_secs(30);
        let outcome = match store.revision().await {
            Ok(revision) if revision == snapshot.revision() && !retry => Ok(()),
            Ok(_) => {
                last_retry = Instant::now();
                reload(&store, &plane.ekm).await
            }
            Err(error) => Err(error),
        };
        match outcome {
            Ok(()) => last_read = Instant::now(),
            Err(error) => tracing::error!(code = error.code(), %error, "catalog not read; the snapshot in use stays"),
        }
        let age = last_read.elapsed();
        plane.metrics.catalog_age.set(age.as_secs_f64());
        plane.ekm.set_snapshot_stale(age > stale_after);
    }
}

async fn reload(store: &CatalogStore, ekm: &Ekm) -> Result<(), StorageError> {
    ekm.reload(store.load().await?).await;
    log_snapshot(ekm);
    Ok(())
}

fn log_snapshot(ekm: &Ekm) {
    let snapshot = ekm.snapshot();
    for problem in snapshot.rejected() {
        tracing::error!(problem, "catalog row refused");
    }
    let (revision, paths) = (snapshot.revision(), snapshot.path_count());
    tracing::info!(revision, paths, unavailable = snapshot.unavailable_count(), "catalog loaded");
}

async fn watch_certificate(certificate: Arc<Certificate>, plane: Arc<DataPlane>) {
    loop {
        tokio::time::sleep(CERTIFICATE_INTERVAL).await;
        reload_certificate(&certificate, &plane).await;
    }
}

async fn reload_certificate(certificate: &Arc<Certificate>, plane: &DataPlane) {
    let certificate = Arc::clone(certificate);
    let reloads = &plane.metrics.certificate_reloads;
    match tokio::task::spawn_blocking(move || certificate.reload()).await {
        Ok(Ok(false)) | Err(_) => {}
        Ok(Ok(true)) => {
            reloads.with_label_values(&["ok"]).inc();
            tracing::info!("new certificate in use");
        }
        Ok(Err(error)) => {
            reloads.with_label_values(&["error"]).inc();
            tracing::error!(%error, "certificate not reloaded; the one in use stays");
        }
    }
}

/// SIGHUP: certificate and key sets are read again, the audit log is opened again.
async fn watch_hangup(certificate: Arc<Certificate>, plane: Arc<DataPlane>) {
    let Ok(mut hangup) = signal(SignalKind::hangup()) else { return };
    while hangup.recv().await.is_some() {
        tracing::info!("SIGHUP: reading certificate and key sets again, reopening the audit log");
        plane.audit.reopen();
        plane.authenticator.refresh();
        reload_certificate(&certificate, &plane).await;
    }
}
