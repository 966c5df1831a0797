//! What goes on beside the requests: health, catalog, key versions, certificate, SIGHUP.

use std::sync::Arc;
use std::time::{Duration, Instant};

use ekm_core::{Ekm, Error, VersionState};
use ekm_storage::{CatalogStore, StorageError};
use tokio::signal::unix::{SignalKind, signal};

use crate::health::{self, Health};
use crate::router::DataPlane;
use crate::tls::Certificate;

/// How often the certificate files are looked at.
const CERTIFICATE_INTERVAL: Duration = Duration::from_secs(5);

/// Between two walks over the key versions.
const VERSIONS_INTERVAL: Duration = Duration::from_secs(1);

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
    loop {
        tokio::time::sleep(interval).await;
        let snapshot = plane.ekm.snapshot();
        let outcome = match store.revision().await {
            Ok(revision) if revision == snapshot.revision() => Ok(()),
            Ok(_) => reload(&store, &plane.ekm).await,
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

/// Proves every key version before somebody needs it, one at a time, and those that failed again and again: a key may be restored.
pub async fn watch_versions(plane: Arc<DataPlane>) {
    loop {
        let snapshot = plane.ekm.snapshot();
        for version in snapshot.versions().filter(|version| version.state() != VersionState::Proven) {
            // What is wrong with a version is in the log and in its state; without the HSM the others need not be asked.
            if let Err(Error::HsmAway { .. }) = plane.ekm.custodian().prove(version).await {
                break;
            }
        }
        tokio::time::sleep(VERSIONS_INTERVAL).await;
    }
}

async fn reload(store: &CatalogStore, ekm: &Ekm) -> Result<(), StorageError> {
    ekm.reload(store.load().await?);
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
    tracing::info!(revision, paths, "catalog loaded");
}

/// Takes over a changed certificate.
pub async fn watch_certificate(certificate: Arc<Certificate>, plane: Arc<DataPlane>) {
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
pub async fn watch_hangup(certificate: Arc<Certificate>, plane: Arc<DataPlane>) {
    let Ok(mut hangup) = signal(SignalKind::hangup()) else { return };
    while hangup.recv().await.is_some() {
        tracing::info!("SIGHUP: reading certificate and key sets again, reopening the audit log");
        plane.audit.reopen();
        plane.authenticator.refresh();
        reload_certificate(&certificate, &plane).await;
    }
}
