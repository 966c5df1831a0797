//! The service: built from a configuration, run until a signal, drained.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use ekm_core::custody::Custodian;
use ekm_core::{Ekm, KeyPath, Snapshot};
use ekm_storage::CatalogStore;
use futures_util::future::join_all;
use tokio::runtime::{Builder, EnterGuard, Handle, Runtime};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use crate::admin::{Admin, AdminPlane};
use crate::audit::AuditLogs;
use crate::auth::Authenticator;
use crate::background::{Unserved, watch_certificates, watch_hangup, watch_health, watch_versions};
use crate::catalog::{self, Follower, Gate, Upkeep};
use crate::config::Config;
use crate::connection::Drain;
use crate::control::Control;
use crate::custodian;
use crate::health::Health;
use crate::hsm_audit;
use crate::intake::Intake;
use crate::listener::Listener;
use crate::metrics::Metrics;
use crate::ops::{self, Ops};
use crate::reload::Reload;
use crate::router::{self, DataPlane, FailureLog, RequestLimits};
use crate::shapes::Shapes;
use crate::start_error::StartError;
use crate::status::Answers;
use crate::tls::{self, Certificate, CertificateError};
use crate::watchdog;

/// A service that listens and is not running yet.
pub struct App {
    plane: Arc<DataPlane>,
    health: Arc<Health>,
    store: Arc<CatalogStore>,
    gate: Arc<Gate>,
    follower: Follower,
    certificate: Arc<Certificate>,
    ekm_listener: Listener,
    ops_listener: Listener,
    aside: Aside,
    reload: Option<Reload>,
    watchdog_patience: Duration,
    admin: Option<AdminPlane>,
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
    /// Opens the HSM, the catalog, and the listeners. Everything that can fail at start fails here; an HSM that is away may come later.
    pub async fn build(config: &Config, shapes: Option<Shapes>) -> Result<Self, StartError> {
        let custodian = custodian::open_for_service(config).await?;
        let store = catalog::open_store(&config.catalog, false).await?;
        Self::build_with(config, custodian, store, shapes).await
    }

    /// As [`Self::build`], with a custodian and a catalog that are open already: a token is logged in once per process.
    pub async fn build_with(
        config: &Config,
        custodian: Custodian,
        store: CatalogStore,
        shapes: Option<Shapes>,
    ) -> Result<Self, StartError> {
        let metrics = Arc::new(Metrics::new(config.profile.name(), custodian.shards()));
        let (certificate, key) = (&config.server.certificate_file, &config.server.private_key_file);
        let certificate = Arc::new(Certificate::load(certificate, key)?);
        let tls = tls::server_config(Arc::clone(&certificate), None).map_err(CertificateError::Pair)?;
        let audit = AuditLogs::open(config, &metrics)?;
        let authenticator = Authenticator::start(&config.auth, Arc::clone(&metrics)).await?;
        let ekm = Ekm::new(Snapshot::default(), custodian);

        let (store, gate) = (Arc::new(store), Arc::new(Gate::default()));
        let plane = Arc::new(DataPlane {
            control: Control::new(Arc::clone(&store), Arc::clone(&gate)),
            ekm,
            authenticator: ArcSwap::from_pointee(authenticator),
            shapes,
            audit,
            metrics: Arc::clone(&metrics),
            hosts: config.server.hosts.get_ref().clone(),
            limits: RequestLimits::new(config),
            answers: Answers::new(&config.server),
            intake: Intake::new(&config.limits),
            unserved: Unserved::default(),
            failures: FailureLog::default(),
            instance: uuid::Uuid::new_v4().simple().to_string()[..12].to_owned(),
            next_request: AtomicU64::new(1),
        });
        let key_file = catalog::key_file(config)?;
        let shared = (Arc::clone(&store), Arc::clone(&plane), Arc::clone(&gate));
        let mut follower = Follower::new(&config.catalog, shared.0, shared.1, shared.2, key_file);
        follower.start().await?;

        let health = Arc::new(Health::new(&plane.ekm));
        let ops = ops::router(Ops { plane: Arc::clone(&plane), health: Arc::clone(&health), gate: Arc::clone(&gate) });
        let bind = |name, address, tls, router| {
            let listener = Listener::bind(name, address, tls, router, &config.limits, Arc::clone(&metrics));
            listener.map_err(|cause| StartError::Listen { address, cause })
        };
        let aside = Aside::start()?;
        let ops_listener = {
            let _there = aside.enter();
            bind("ops", config.ops.listen, None, ops)?
        };
        let tls = TlsAcceptor::from(Arc::new(tls));
        let ekm_router = router::router(Arc::clone(&plane), Arc::clone(&health));
        let admin = match &config.admin {
            Some(admin) => {
                let shared = (Arc::clone(&store), Arc::clone(&plane), Arc::clone(&gate));
                let service = Arc::new(Admin::new(shared.0, shared.1, shared.2));
                Some(AdminPlane::start(config, admin.get_ref(), service, &certificate, Arc::clone(&metrics)).await?)
            }
            None => None,
        };
        Ok(Self {
            ekm_listener: bind("ekm", config.server.listen, Some(tls), ekm_router)?
                .bound_strangers(config.limits.max_unauthenticated_connections()),
            ops_listener,
            aside,
            reload: None,
            watchdog_patience: Duration::from_millis(config.limits.watchdog_ms),
            admin,
            plane,
            health,
            store,
            gate,
            follower,
            certificate,
            drain_delay: Duration::from_millis(config.limits.drain_delay_ms.unwrap_or_default()),
            drain_timeout: Duration::from_millis(config.limits.drain_timeout_ms),
            health_patience: config.request_deadline(),
        })
    }

    /// Lets SIGHUP read the configuration again, from the file that it came from.
    pub fn reload_from(&mut self, file: &Path, config: &Config) {
        self.reload = Some(Reload::new(file.to_owned(), config));
    }

    /// The service behind the admin API.
    pub fn admin_service(&self) -> Admin {
        Admin::new(Arc::clone(&self.store), Arc::clone(&self.plane), Arc::clone(&self.gate))
    }

    /// Whether callers can use a key.
    pub fn has_key(&self, path: &KeyPath) -> bool {
        self.plane.ekm.snapshot().key(path).is_ok()
    }

    /// Takes over what was changed before the service runs.
    pub async fn catch_up(&mut self) -> Result<(), StartError> {
        Ok(self.follower.catch_up().await?)
    }

    /// The addresses of the EKM listener and the ops listener, with the ports that port 0 became.
    pub fn addresses(&self) -> Result<(SocketAddr, SocketAddr), StartError> {
        let both = self.ekm_listener.address().and_then(|ekm| Ok((ekm, self.ops_listener.address()?)));
        both.map_err(StartError::io("cannot tell the address"))
    }

    /// The admin plane, if the configuration has one.
    pub fn admin(&self) -> Option<&AdminPlane> {
        self.admin.as_ref()
    }

    /// Serves until `stop`, then: readiness goes, the load balancer gets time to notice, no new connections, requests under
    /// way finish, the audit log is written out.
    pub async fn run(self, stop: impl Future<Output = ()>) -> Drained {
        let (plane, aside, mut background) = (Arc::clone(&self.plane), self.aside.handle(), JoinSet::new());
        background.spawn(async move { plane.intake.beat().await });
        if let Err(error) = watchdog::start(Arc::downgrade(&self.plane), self.watchdog_patience) {
            tracing::error!(%error, "no thread for the watchdog: nobody would notice if the runtime were stuck");
        }
        let ekm = &self.plane.ekm;
        join_all(self.health.shards().iter().map(|shard| shard.check(ekm, self.health_patience))).await;
        background.spawn(watch_health(Arc::clone(&self.health), Arc::clone(&self.plane), self.health_patience));
        let upkeep = {
            let (store, plane) = (Arc::clone(&self.store), Arc::clone(&self.plane));
            Upkeep::new(store, plane, Arc::clone(&self.gate), Arc::clone(&self.health))
        };
        background.spawn_on(upkeep.run(), &aside);
        let (stop_following, stopped) = watch::channel(false);
        let following = tokio::task::spawn_blocking(move || self.follower.run(stopped));
        background.spawn_on(watch_versions(Arc::clone(&self.plane)), &aside);
        background.spawn_on(hsm_audit::every_night(Arc::clone(&self.plane)), &aside);
        let mut certificates = vec![self.certificate];
        certificates.extend(self.admin.as_ref().and_then(AdminPlane::certificate).map(Arc::clone));
        let refresh_admin = self.admin.as_ref().map(AdminPlane::refresher);
        background.spawn(watch_certificates(certificates.clone(), Arc::clone(&self.plane)));
        background.spawn(watch_hangup(certificates, refresh_admin, self.reload, Arc::clone(&self.plane)));

        let (drain_ekm, ekm_drain) = watch::channel(Drain::Serving);
        let (drain_ops, ops_drain) = watch::channel(Drain::Serving);
        let admin = self.admin.map(|admin| aside.spawn(admin.run(ekm_drain.clone(), self.drain_timeout)));
        let ekm = tokio::spawn(self.ekm_listener.run(ekm_drain, self.drain_timeout));
        let ops = aside.spawn(self.ops_listener.run(ops_drain, Duration::from_millis(200)));
        stop.await;

        let began = Instant::now();
        tracing::info!("draining");
        self.health.drain();
        drain_ekm.send_replace(Drain::Leaving);
        tokio::time::sleep(self.drain_delay).await;
        drain_ekm.send_replace(Drain::Draining);
        let mut cut = ekm.await.unwrap_or_default();
        if let Some(admin) = admin {
            cut += admin.await.unwrap_or_default();
        }
        drain_ops.send_replace(Drain::Draining);
        let _ = ops.await;
        background.shutdown().await;
        stop_following.send_replace(true);
        let _ = following.await;
        // So that nobody waits for this frontend. If the database is away, it will be forgotten after a minute.
        let _ = tokio::time::timeout(Duration::from_secs(1), self.store.sign_off(&self.plane.instance)).await;
        // The last reference: its drop writes the audit log out, which blocks.
        let plane = self.plane;
        let _ = tokio::task::spawn_blocking(move || drop(plane)).await;
        Drained { cut, took: began.elapsed() }
    }
}

/// A runtime beside the one of requests: what people, scrapers and upkeep do there takes no thread of theirs, and is answered when theirs is
/// stuck.
struct Aside(Option<Runtime>);

impl Aside {
    fn start() -> Result<Self, StartError> {
        let built = Builder::new_multi_thread().worker_threads(1).thread_name("ekm-aside").enable_all().build();
        Ok(Self(Some(built.map_err(StartError::io("cannot start threads"))?)))
    }

    fn runtime(&self) -> &Runtime {
        self.0.as_ref().expect("there until it is dropped")
    }

    fn enter(&self) -> EnterGuard<'_> {
        self.runtime().enter()
    }

    fn handle(&self) -> Handle {
        self.runtime().handle().clone()
    }
}

impl Drop for Aside {
    fn drop(&mut self) {
        // Not by its own drop, which may not wait within another runtime.
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

/// Resolves on SIGTERM or SIGINT. Whoever sends a second one does not want to wait for the drain.
pub async fn termination() -> std::io::Result<impl Future<Output = ()>> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let mut next = async move || {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    Ok(async move {
        next().await;
        tokio::spawn(async move {
            next().await;
            tracing::warn!("a second signal: ending without finishing the drain");
            std::process::exit(130);
        });
    })
}
