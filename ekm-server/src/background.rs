//! What goes on beside the requests: health, catalog, certificate, SIGHUP.

use std::sync::Arc;
use std::time::{Duration, Instant};

use ekm_core::Ekm;
use ekm_storage::{CatalogStore, StorageError};
use tokio::signal::unix::{SignalKind, signal};

use crate::health::{self, Health};
use crate::router::DataPlane;
use crate::tls::Certificate;

/// How often the certificate files are looked at.
const CERTIFICATE_INTERVAL: Duration = Duration::from_secs(5);

/// The deep check, every second.
pub async fn watch_health(health: Arc<Health>, plane: Arc<DataPlane>, patience: Duration) {
    loop {
        tokio::time::sleep(health::INTERVAL).await;
        health.check(&plane.ekm, patience).await;
    }
}

/// Asks the catalog for its revision and takes over what is new. While the catalog cannot be read, the snapshot in use goes on,
/// and only after `stale_after` does an unknown key stop being a 404.
pub async fn watch_catalog(store: CatalogStore, plane: Arc<DataPlane>, interval: Duration, stale_after: Duration) {
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

/// Tells what a new snapshot holds, and what was left out.
pub fn log_snapshot(ekm: &Ekm) {
    let snapshot = ekm.snapshot();
    for problem in snapshot.rejected() {
        tracing::error!(problem, "catalog row refused");
    }
    let (revision, paths) = (snapshot.revision(), snapshot.path_count());
    tracing::info!(revision, paths, unavailable = snapshot.unavailable_count(), "catalog loaded");
}

/// Takes over changed certificates.
pub async fn watch_certificates(certificates: Vec<Arc<Certificate>>, plane: Arc<DataPlane>) {
    loop {
        tokio::time::sleep(CERTIFICATE_INTERVAL).await;
        for certificate in &certificates {
            reload_certificate(certificate, &plane).await;
        }
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

/// SIGHUP: certificates and key sets are read again, the audit log is opened again.
pub async fn watch_hangup(
    certificates: Vec<Arc<Certificate>>,
    refresh_admin: Option<impl Fn() + Send>,
    plane: Arc<DataPlane>,
) {
    let Ok(mut hangup) = signal(SignalKind::hangup()) else { return };
    while hangup.recv().await.is_some() {
        tracing::info!("SIGHUP: reading certificate and key sets again, reopening the audit log");
        plane.audit.reopen();
        plane.authenticator.refresh();
        refresh_admin.iter().for_each(|refresh| refresh());
        for certificate in &certificates {
            reload_certificate(certificate, &plane).await;
        }
    }
}
