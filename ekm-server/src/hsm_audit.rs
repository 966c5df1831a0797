//! Whether every replica of the HSM holds every key as it should: all of them every night, and when an operator asks.

use std::sync::Arc;
use std::time::Duration;

use ekm_core::Key;
use ekm_core::catalog::Custody;

use crate::admin::api::HsmFinding;
use crate::router::DataPlane;

/// From the start of the service to the first walk, and from one walk to the next.
const FIRST_AFTER: Duration = Duration::from_secs(3600);
const INTERVAL: Duration = Duration::from_secs(24 * 3600);
/// Between two keys, so that requests come first.
const PAUSE: Duration = Duration::from_millis(20);

/// What is wrong with a key's versions on the replicas.
pub async fn key(plane: &DataPlane, key: &Key, repair: bool) -> Vec<HsmFinding> {
    let mut findings = Vec::new();
    for version in key.living_versions().filter(|version| version.custody == Custody::Hsm) {
        for found in plane.ekm.custodian().audit(version, repair).await {
            findings.push(HsmFinding {
                key: key.paths.first().map_or("the health key".into(), ToString::to_string),
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
        let (mut keys, mut findings) = (0, 0);
        for key in plane.ekm.snapshot().keys().filter(|key| key.is_on_the_hsm()) {
            for found in self::key(&plane, key, true).await {
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
            keys += 1;
            tokio::time::sleep(PAUSE).await;
        }
        plane.metrics.hsm_audit_findings.set(findings);
        tracing::info!(keys, findings, "the HSM's keys have been looked at");
        tokio::time::sleep(INTERVAL).await;
    }
}
