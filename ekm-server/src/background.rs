//! What goes on beside the requests: health, key versions, certificate, SIGHUP.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use ekm_core::catalog::Custody;
use ekm_core::{Error, KeyVersion, ShardName, Snapshot, VersionState};
use futures_util::future::join_all;
use tokio::signal::unix::{SignalKind, signal};

use crate::health::{self, Health};
use crate::reload::Reload;
use crate::router::DataPlane;
use crate::tls::Certificate;

/// How often the certificate files are looked at.
const CERTIFICATE_INTERVAL: Duration = Duration::from_secs(5);

/// Between two walks over the key versions.
const VERSIONS_INTERVAL: Duration = Duration::from_secs(1);

/// The deep checks, every second; of each shard by itself, so that none waits for another.
pub async fn watch_health(health: Arc<Health>, plane: Arc<DataPlane>, patience: Duration) {
    let watches = health.shards().iter().map(async |shard| {
        loop {
            tokio::time::sleep(health::INTERVAL).await;
            shard.check(&plane.ekm, patience).await;
        }
    });
    join_all(watches).await;
}

/// Which key versions cannot be served, by name and with the reason.
#[derive(Default)]
pub struct Unserved(ArcSwap<Vec<String>>);

impl Unserved {
    /// As the last walk found it.
    pub fn list(&self) -> Arc<Vec<String>> {
        self.0.load_full()
    }
}

/// Proves every key version before somebody needs it, one at a time, and those that failed again and again: a key may be restored. Gives
/// replicas of the HSM keys that they lack.
/// After a walk that found nothing to do, waits for the next snapshot.
pub async fn watch_versions(plane: Arc<DataPlane>) {
    let mut proven_revision = None;
    loop {
        let snapshot = plane.ekm.snapshot();
        if proven_revision != Some(snapshot.revision()) {
            let unserved = prove_all(&plane, &snapshot).await;
            proven_revision = unserved.is_empty().then(|| snapshot.revision());
            if **plane.unserved.0.load() != unserved {
                tracing::warn!(
                    versions = unserved.len(),
                    first = unserved.first(),
                    "key versions that cannot be served"
                );
                plane.unserved.0.store(Arc::new(unserved));
            }
        }
        plane.ekm.custodian().restore_lacking(|id| snapshot.version(id).map(AsRef::as_ref)).await;
        tokio::time::sleep(VERSIONS_INTERVAL).await;
    }
}

async fn prove_all(plane: &DataPlane, snapshot: &Snapshot) -> Vec<String> {
    let (mut unserved, mut proofs) = (Vec::new(), 0usize);
    let mut away: HashMap<ShardName, String> = HashMap::new();
    let custodian = plane.ekm.custodian();
    // Keys of shards that other frontends serve are no trouble of this one.
    let is_ours = |version: &KeyVersion| {
        version.custody == Custody::Software || custodian.shards().is_empty() || custodian.place_of(version).is_some()
    };
    for (index, key) in snapshot.keys().enumerate() {
        if index % 1000 == 0 {
            tokio::task::yield_now().await; // a million keys take a while
        }
        let unproven = key.living_versions().filter(|version| version.state() != VersionState::Proven);
        for version in unproven.filter(|version| is_ours(version)) {
            proofs += 1;
            if proofs.is_multiple_of(16) {
                tokio::task::yield_now().await; // a proof in this process is some microseconds of ciphers
            }
            let reason = match (away.get(&version.shard), version.custody) {
                // Without the HSM the others need not be asked.
                (Some(reason), Custody::Hsm | Custody::HsmWrapped) => Some(String::clone(reason)),
                _ => match custodian.prove(version).await {
                    Ok(()) => None,
                    Err(error) => {
                        let reason = match version.state() {
                            VersionState::Failed { reason } => reason,
                            _ => error.to_string(),
                        };
                        if matches!(error, Error::HsmAway { .. }) {
                            away.insert(version.shard.clone(), reason.clone());
                        }
                        Some(reason)
                    }
                },
            };
            if let Some(reason) = reason {
                let name = key.paths.first().map_or("the health key".to_owned(), ToString::to_string);
                let (number, custody) = (version.id.number, version.custody.name());
                unserved.push(format!("{name} version {number} ({custody}): {reason}"));
            }
        }
    }
    unserved
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

/// SIGHUP: certificates, key sets and what can change of the configuration are read again, the audit log is opened again.
pub async fn watch_hangup(
    certificates: Vec<Arc<Certificate>>,
    refresh_admin: Option<impl Fn() + Send>,
    mut reload: Option<Reload>,
    plane: Arc<DataPlane>,
) {
    let Ok(mut hangup) = signal(SignalKind::hangup()) else { return };
    while hangup.recv().await.is_some() {
        tracing::info!("SIGHUP: reading certificate, key sets and configuration again, reopening the audit log");
        plane.audit.reopen();
        if let Some(reload) = &mut reload {
            reload.apply(&plane).await;
        }
        plane.authenticator.load().refresh();
        refresh_admin.iter().for_each(|refresh| refresh());
        for certificate in &certificates {
            reload_certificate(certificate, &plane).await;
        }
    }
}
