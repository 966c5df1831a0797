//! Making keys: material first, proven, then the catalog.

use ekm_core::KeyPath;
use ekm_core::blob::VersionId;
use ekm_core::catalog::{Custody, Purpose};
use ekm_core::custody::Custodian;
use ekm_core::policy::Policy;
use ekm_storage::{CatalogStore, NewKey};
use uuid::Uuid;

use crate::start_error::StartError;

/// The custody that a configuration stands for.
pub fn custody_of(custodian: &Custodian) -> Custody {
    if custodian.has_hsm() { Custody::Hsm } else { Custody::Software }
}

/// Makes a key with its first version, and its crypto space and the catalog's health key if they are missing. Returns the
/// catalog's revision that holds it.
pub async fn create_key(
    store: &CatalogStore,
    custodian: &Custodian,
    space: &KeyPath,
    path: &KeyPath,
    policy: &Policy,
) -> Result<u64, StartError> {
    let catalog = store.load().await?;
    // Checked before material is made; the catalog checks again when the row is written.
    if catalog.keys.iter().any(|key| key.paths.contains(path)) {
        return Err(ekm_storage::StorageError::PathTaken(path.clone()).into());
    }
    store.ensure_space(space).await?;
    if !catalog.keys.iter().any(|key| key.purpose == Purpose::Health) {
        // Nobody can call it, since it has no path; its policy is never asked.
        add(store, custodian, space, None, Purpose::Health, &Policy::allow_everybody()).await?;
    }
    add(store, custodian, space, Some(path), Purpose::Wrap, policy).await
}

async fn add(
    store: &CatalogStore,
    custodian: &Custodian,
    space: &KeyPath,
    path: Option<&KeyPath>,
    purpose: Purpose,
    policy: &Policy,
) -> Result<u64, StartError> {
    let id = Uuid::new_v4();
    let version = custodian.generate(custody_of(custodian), VersionId { key: id, number: 1 }).await?;
    Ok(store.add_key(NewKey { id, space, purpose, path, policy, version: &version }).await?)
}
