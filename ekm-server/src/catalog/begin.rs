//! Beginning a catalog, and what `ekm catalog migrate` adds to one: the keys behind `/healthz`, the catalog's key wrapped by what is new.

use std::collections::BTreeMap;
use std::sync::Arc;

use ekm_core::blob::VersionId;
use ekm_core::catalog::{
    CatalogKey, Head, KeyRecord, Kind, PolicyRecord, Purpose, RootRecord, Settings, SpaceRecord, SpaceState,
    StoredVersion, VersionRecord, VersionState,
};
use ekm_core::custody::Custodian;
use ekm_core::policy::Policy;
use ekm_core::software::{self, KeyFile};
use ekm_core::{Algorithm, KeyPath, ShardName};
use ekm_storage::{CatalogStore, OldKey};
use time::OffsetDateTime;
use uuid::Uuid;
use zeroize::Zeroizing;

use super::draft::{Draft, Entry};
use super::open::{CatalogError, WrappedBy, context, default_custody, unlock};
use crate::custodian::take_from_token;

/// The crypto space that the service makes for itself; holds the keys behind `/healthz`.
pub const HEALTH_SPACE: &str = "v0/cryptospaces/ekm-health";
/// The health keys' policy.
pub const HEALTH_POLICY: &str = "ekm-health";

/// Opens the catalog in a database; begins it, with a key of its own and the health keys, if there is none. Takes over the rows of
/// schema version 1. The schema has been migrated.
pub async fn initialise(
    store: &CatalogStore,
    custodian: &Custodian,
    key_file: Option<&KeyFile>,
) -> Result<Arc<CatalogKey>, CatalogError> {
    let key = match store.head().await? {
        Some(head) => {
            let key = unlock(head.catalog, &store.catalog_keys().await?, custodian, key_file).await?;
            wrap_by_what_is_new(store, custodian, key_file, &key).await?;
            key
        }
        None => begin(store, custodian, key_file).await?,
    };
    take_over_old_keys(store, custodian, &key).await?;
    Ok(key)
}

async fn begin(
    store: &CatalogStore,
    custodian: &Custodian,
    key_file: Option<&KeyFile>,
) -> Result<Arc<CatalogKey>, CatalogError> {
    let (catalog, material) = (Uuid::new_v4(), Zeroizing::new(software::random()?));
    let key = Arc::new(CatalogKey::new(catalog, &material)?);
    let shards = custodian.shards().iter().map(|shard| WrappedBy::Shard(shard.name().clone()));
    let (mut wrapped, mut roots) = (Vec::new(), BTreeMap::new());
    for wrapped_by in shards.chain(key_file.map(|_| WrappedBy::File)) {
        let (by, root) = wrap(&wrapped_by, &key, custodian, key_file).await?;
        wrapped.push((wrapped_by.name(), by));
        roots.extend(root);
    }
    if wrapped.is_empty() {
        return Err(CatalogError::WrongKey(
            "there is neither an HSM nor a key file to wrap a new catalog's key".into(),
        ));
    }
    let mut health = Vec::new();
    for shard in custodian.shard_names() {
        health.push(make_health_key(custodian, &shard).await?);
    }
    // The wrapped key first: a catalog that nobody can open would be lost.
    for (wrapped_by, wrapped) in &wrapped {
        store.put_catalog_key(wrapped_by, wrapped).await?;
    }
    let now = OffsetDateTime::now_utc();
    let mut draft = Draft::begin(store.write().await?, &key, Some(Head::empty()), now)?;
    let space = SpaceRecord {
        id: Uuid::now_v7(),
        path: KeyPath::parse(HEALTH_SPACE).expect("a constant"),
        state: SpaceState::Enabled,
        shard: ShardName::default(),
        creation: None,
        labels: Default::default(),
        description: "The service's own; holds the keys behind /healthz.".into(),
        created_at: now,
    };
    // Nobody can call a health key, since it has no path; its policy is never asked.
    let policy = PolicyRecord {
        id: Uuid::now_v7(),
        name: HEALTH_POLICY.into(),
        document: Policy::allow_everybody().to_json(),
        replaced: Vec::new(),
        description: "Never asked: health keys have no path.".into(),
    };
    draft.name(Kind::Space, space.path.as_str(), space.id);
    draft.name(Kind::Policy, &policy.name, policy.id);
    draft.put(Kind::Settings, Uuid::nil(), &Settings { roots, ..Settings::default() })?;
    draft.put(Kind::Space, space.id, &space)?;
    draft.put(Kind::Policy, policy.id, &policy)?;
    for made in health {
        draft.put_key(&health_key(made, space.id, policy.id, now)?)?;
    }
    draft.commit(Entry::by_ekm("catalog-create", "the catalog"), None).await?;
    Ok(key)
}

async fn make_health_key(custodian: &Custodian, shard: &ShardName) -> Result<VersionRecord, CatalogError> {
    let id = VersionId { key: Uuid::now_v7(), number: 1 };
    Ok(custodian.generate(Algorithm::Symmetric, default_custody(custodian), shard, id).await?)
}

fn health_key(made: VersionRecord, space: Uuid, policy: Uuid, now: OffsetDateTime) -> Result<KeyRecord, CatalogError> {
    let key = KeyRecord::new(made, space, policy, Algorithm::Symmetric, now);
    let key = key.map_err(|impossible| CatalogError::Internal(impossible.problem))?;
    Ok(KeyRecord { purpose: Purpose::Health, ..key })
}

/// Notes a shard that was configured after the catalog was begun: its root key, and a health key.
async fn add_shard(
    store: &CatalogStore,
    custodian: &Custodian,
    key: &CatalogKey,
    (shard, root): (ShardName, RootRecord),
) -> Result<(), CatalogError> {
    let made = make_health_key(custodian, &shard).await?;
    let added = async {
        let now = OffsetDateTime::now_utc();
        let mut draft = Draft::begin(store.write().await?, key, None, now)?;
        let space = draft.id_of(Kind::Space, HEALTH_SPACE).await?;
        let policy = draft.id_of(Kind::Policy, HEALTH_POLICY).await?;
        let (Some(space), Some(policy)) = (space, policy) else {
            return Err(CatalogError::Internal("the catalog has no crypto space for health keys".into()));
        };
        draft.put_key(&health_key(made.clone(), space, policy, now)?)?;
        let (mut settings, _) = draft.settings().await?;
        settings.roots.insert(shard.clone(), root);
        draft.put(Kind::Settings, Uuid::nil(), &settings)?;
        draft.commit(Entry::by_ekm("shard-add", shard.as_str()), None).await?;
        Ok(())
    };
    let added = added.await;
    if added.as_ref().is_err_and(|error| !error.is_unknown()) {
        take_from_token(custodian, [made]).await;
    }
    added
}

/// The catalog's key, wrapped: by a new root key in a shard, or by the key file.
async fn wrap(
    by: &WrappedBy,
    key: &CatalogKey,
    custodian: &Custodian,
    key_file: Option<&KeyFile>,
) -> Result<(Vec<u8>, Option<(ShardName, RootRecord)>), CatalogError> {
    let context = context(key.catalog());
    match (by, key_file) {
        (WrappedBy::Shard(shard), _) => {
            let root = custodian.generate_root(shard).await?;
            let wrapped = custodian.wrap_secret(shard, &context, key.material()).await;
            let wrapped = wrapped.map_err(|error| CatalogError::Locked(error.to_string()))?;
            Ok((wrapped, Some((shard.clone(), root))))
        }
        (WrappedBy::File, Some(file)) => Ok((file.wrap_secret(&context, key.material())?, None)),
        (WrappedBy::File, None) => Err(CatalogError::Internal("there is no key file".into())),
    }
}

/// A key file or a shard that was configured after the catalog was begun gets the catalog's key, too; a shard a health key before, so that what
/// was interrupted is done again.
async fn wrap_by_what_is_new(
    store: &CatalogStore,
    custodian: &Custodian,
    key_file: Option<&KeyFile>,
    key: &CatalogKey,
) -> Result<(), CatalogError> {
    let there = store.catalog_keys().await?;
    let here = custodian.shards().iter().filter(|shard| shard.away().is_none());
    let here = here.map(|shard| WrappedBy::Shard(shard.name().clone())).chain(key_file.map(|_| WrappedBy::File));
    for wrapped_by in here.filter(|by| !there.iter().any(|(name, _)| *name == by.name())) {
        let (wrapped, root) = wrap(&wrapped_by, key, custodian, key_file).await?;
        if let Some(root) = root {
            add_shard(store, custodian, key, root).await?;
        }
        store.put_catalog_key(&wrapped_by.name(), &wrapped).await?;
    }
    Ok(())
}

/// What a schema of version 1 had: plain rows, one change each way. Every key version has proven itself when it was made.
async fn take_over_old_keys(
    store: &CatalogStore,
    custodian: &Custodian,
    key: &Arc<CatalogKey>,
) -> Result<(), CatalogError> {
    let old = store.old_keys().await?;
    for old in old.iter().filter(|old| old.purpose == Purpose::Wrap) {
        take_over(store, custodian, key, old).await?;
    }
    if !old.is_empty() {
        store.forget_old_keys().await?;
    }
    Ok(())
}

async fn take_over(
    store: &CatalogStore,
    custodian: &Custodian,
    key: &Arc<CatalogKey>,
    old: &OldKey,
) -> Result<(), CatalogError> {
    let now = OffsetDateTime::now_utc();
    let mut draft = Draft::begin(store.write().await?, key, None, now)?;
    if draft.read::<KeyRecord>(Kind::Key, old.id).await?.is_some() {
        return Ok(draft.abandon().await?); // an attempt that was interrupted had come this far
    }
    let space = match draft.id_of(Kind::Space, old.space.as_str()).await? {
        Some(id) => id,
        None => {
            let id = Uuid::now_v7();
            let (path, state) = (old.space.clone(), SpaceState::Enabled);
            let record = SpaceRecord {
                id,
                path,
                state,
                shard: ShardName::default(),
                creation: None,
                labels: Default::default(),
                description: String::new(),
                created_at: now,
            };
            draft.name(Kind::Space, old.space.as_str(), id);
            draft.put(Kind::Space, id, &record)?;
            id
        }
    };
    let name = old.paths.first().map_or_else(|| old.id.to_string(), ToString::to_string);
    let (id, document, description) = (Uuid::now_v7(), old.policy.clone(), String::new());
    let policy = PolicyRecord { id, name, document, replaced: Vec::new(), description };
    let versions = old.versions.iter().map(|version| StoredVersion {
        number: version.number,
        state: VersionState::Enabled,
        destroy_at: None,
        custody: version.custody,
        shard: ShardName::default(),
        left_on: Default::default(),
        wrapped_material: version.wrapped_material.clone(),
        check_blob: version.check_blob.clone(),
        public_key: None,
        created_at: now,
    });
    let record = KeyRecord {
        id: old.id,
        space,
        policy: policy.id,
        replaced_policies: Vec::new(),
        purpose: Purpose::Wrap,
        algorithm: Algorithm::Symmetric,
        state: old.state,
        destroy_at: None,
        created_for: None,
        destroyed_by_caller: false,
        paths: old.paths.clone(),
        custody: old.versions.last().map_or(default_custody(custodian), |version| version.custody),
        primary: old.primary,
        versions: versions.collect(),
        rotation: None,
        labels: Default::default(),
        description: String::new(),
        created_at: now,
    };
    draft.name(Kind::Policy, &policy.name, policy.id);
    for path in &record.paths {
        draft.name(Kind::Key, path.as_str(), record.id);
    }
    draft.put(Kind::Policy, policy.id, &policy)?;
    draft.put_key(&record)?;
    draft.commit(Entry::by_ekm("catalog-take-over", &record.name()), None).await?;
    Ok(())
}
