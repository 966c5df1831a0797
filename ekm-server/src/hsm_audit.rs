//! Whether every replica of the HSMs holds every key as it should: all of them every night, and when an operator asks.

use std::sync::Arc;
use std::time::Duration;

use ekm_core::catalog::Custody;
use ekm_core::{KeyVersion, Snapshot};
use uuid::Uuid;

use crate::admin::api::HsmFinding;
use crate::router::DataPlane;

/// From the start of the service to the first walk, and from one walk to the next.
const FIRST_AFTER: Duration = Duration::from_secs(3600);
const INTERVAL: Duration = Duration::from_secs(24 * 3600);
/// Between two keys, so that requests come first.
const PAUSE: Duration = Duration::from_millis(20);

/// Everything that is an object on HSMs, in a fixed order: keys of custody `hsm`, and root keys.
pub fn objects(snapshot: &Snapshot) -> Vec<Uuid> {
    let keys = snapshot.keys().filter(|key| key.is_on_the_hsm()).map(|key| key.id);
    let mut objects: Vec<_> = keys.chain(snapshot.roots().keys().copied()).collect();
    objects.sort_unstable();
    objects
}

/// What is wrong with one of them on the replicas.
pub async fn look_at(
    plane: &DataPlane,
    snapshot: &Snapshot,
    object: Uuid,
    repair: bool,
    wanted: impl Fn(&str) -> bool,
) -> Vec<HsmFinding> {
    let key = snapshot.key_by_id(object);
    let versions: Vec<&Arc<KeyVersion>> = match key {
        Some(key) => key.living_versions().filter(|version| version.custody == Custody::Hsm).collect(),
        None => snapshot.roots().get(&object).into_iter().collect(),
    };
    let mut findings = Vec::new();
    for version in versions {
        let name = || match key.map(|key| key.paths.first()) {
            Some(Some(path)) => path.to_string(),
            Some(None) => "the health key".into(),
            None => format!("the root key of shard {}", version.shard),
        };
        for found in plane.ekm.custodian().audit(version, repair, |replica| wanted(replica.name())).await {
            findings.push(HsmFinding {
                key: name(),
                version: version.id.number,
                replica: found.replica,
                problem: found.problem,
                repaired: found.repaired,
            });
        }
    }
    findings
}

/// Every night, for as long as the service runs. Nothing is ever deleted because of what it finds.
pub async fn every_night(plane: Arc<DataPlane>) {
    tokio::time::sleep(FIRST_AFTER).await;
    loop {
        let (snapshot, mut findings) = (plane.ekm.snapshot(), 0);
        let objects = objects(&snapshot);
        for object in &objects {
            for found in look_at(&plane, &snapshot, *object, true, |_| true).await {
                findings += i64::from(!found.repaired);
                tracing::error!(
                    code = "hsm_key_missing",
                    key = found.key,
                    version = found.version,
                    replica = found.replica,
                    problem = found.problem,
                    repaired = found.repaired,
                    "a replica does not hold a key as it should"
                );
            }
            tokio::time::sleep(PAUSE).await;
        }
        plane.metrics.hsm_audit_findings.set(findings);
        tracing::info!(keys = objects.len(), findings, "the HSM's keys have been looked at");
        tokio::time::sleep(INTERVAL).await;
    }
}
