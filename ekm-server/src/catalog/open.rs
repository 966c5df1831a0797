//! Opening a catalog: finding its database, unwrapping its key, and beginning a new one.

use std::sync::Arc;

use ekm_core::blob::{self, VersionId};
use ekm_core::catalog::{
    CatalogKey, Custody, Head, KeyRecord, KeyState, Kind, PolicyRecord, Purpose, Settings, SpaceRecord, SpaceState,
    StoredVersion, VersionState,
};
use ekm_core::custody::{Custodian, GenerateError};
use ekm_core::policy::Policy;
use ekm_core::software::{self, KeyFile, SoftwareError};
use ekm_core::{KeyPath, Unusable};
use ekm_storage::{CatalogStore, OldKey, PostgresOptions, StorageError, Tls};
use secrecy::ExposeSecret;
use time::OffsetDateTime;
use uuid::Uuid;
use zeroize::Zeroizing;

use super::draft::{Draft, Entry};
use crate::config::{CatalogConfig, Config, PostgresTls};
use crate::custodian::read_secret;
use crate::start_error::StartError;

/// The crypto space that the service makes for itself; holds the key behind `/healthz`.
pub const HEALTH_SPACE: &str = "v0/cryptospaces/ekm-health";
/// The health key's policy.
pub const HEALTH_POLICY: &str = "ekm-health";

/// Why a catalog cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum CatalogError {
    /// Its database.
    #[error("{0}")]
    Storage(#[from] StorageError),
    /// Its rows.
    #[error("{0}")]
    Tampered(#[from] ekm_core::catalog::Tampered),
    /// Its key needs an HSM that is away. Passes by itself.
    #[error("the catalog's key cannot be unwrapped now: {0}")]
    Locked(String),
    /// Its key does not open here.
    #[error("the catalog's key does not open: {0}; it needs the token or the key file that the catalog was made with")]
    WrongKey(String),
    /// The catalog was restored, and this frontend still has the one before. Passes by itself.
    #[error("the catalog was restored, and this frontend is taking it over; try again")]
    Behind,
    /// New material.
    #[error("{0}")]
    Generate(#[from] GenerateError),
    /// Memory or random numbers.
    #[error("{0}")]
    Software(#[from] SoftwareError),
    /// A bug.
    #[error("internal error: {0}; nothing was changed")]
    Internal(String),
}

impl CatalogError {
    /// Whether the change may have been made all the same.
    pub fn is_unknown(&self) -> bool {
        matches!(self, Self::Storage(StorageError::CommitUnknown(_)))
    }

    /// The stable word for this error: heading in the error reference.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Storage(error) => error.code(),
            Self::Tampered(_) => "catalog_tampered",
            Self::Locked(_) => "catalog_locked",
            Self::WrongKey(_) => "catalog_key",
            Self::Behind => "catalog_behind",
            Self::Generate(_) => "key_generation",
            Self::Software(_) => "software_custody",
            Self::Internal(_) => "internal",
        }
    }
}

/// The database that a configuration names. Only with `create` is a SQLite file made.
pub async fn open_store(config: &CatalogConfig, create: bool) -> Result<CatalogStore, StartError> {
    let Some(postgres) = &config.postgres else {
        let file = config.sqlite_file.as_ref().expect("the configuration was checked: one of the two is there");
        return Ok(CatalogStore::open_sqlite(file, create).await?);
    };
    let postgres = postgres.get_ref();
    let password = postgres.password_file.as_deref().map(read_secret).transpose()?;
    let tls = match (&postgres.ca_file, postgres.tls) {
        (Some(ca_file), PostgresTls::VerifyFull) => Tls::VerifyFull {
            ca_file: ca_file.clone(),
            client: postgres.client_certificate_file.clone().zip(postgres.client_key_file.clone()),
        },
        _ => Tls::Off,
    };
    Ok(CatalogStore::postgres(PostgresOptions {
        hosts: postgres.hosts.clone(),
        database: postgres.database.clone(),
        user: postgres.user.clone(),
        password,
        tls,
        prefer_follower: postgres.prefer_follower,
    }))
}

/// The key file that may hold the catalog's key: its own, or that of custody `software`.
pub fn key_file(config: &Config) -> Result<Option<KeyFile>, StartError> {
    let file =
        config.catalog.key_file.as_ref().or(config.software.as_ref().map(|software| &software.get_ref().key_file));
    let Some(file) = file else { return Ok(None) };
    Ok(Some(KeyFile::parse(read_secret(file)?.expose_secret())?))
}

fn context(catalog: Uuid) -> Vec<u8> {
    [b"ekm catalog key v1".as_slice(), catalog.as_bytes()].concat()
}

/// Unwraps the catalog's key: by the HSM's root key, or while the HSM is away by the key file.
pub async fn unlock(
    catalog: Uuid,
    wrapped_keys: &[(String, Vec<u8>)],
    custodian: &Custodian,
    key_file: Option<&KeyFile>,
) -> Result<Arc<CatalogKey>, CatalogError> {
    let (mut locked, mut wrong) = (None, Vec::new());
    for (wrapped_by, wrapped) in wrapped_keys {
        let material = match (wrapped_by.as_str(), key_file) {
            ("hsm", _) => {
                if let Some((root, _)) = blob::parse(wrapped) {
                    custodian.set_root(root);
                }
                match custodian.unwrap_secret(&context(catalog), wrapped).await {
                    Ok(material) => Some(material),
                    Err(Unusable::Passing(error)) => {
                        locked = Some(error.to_string());
                        None
                    }
                    Err(Unusable::Lasting(reason)) => {
                        wrong.push(reason);
                        None
                    }
                }
            }
            ("file", Some(file)) => {
                let material = file.unwrap_secret(&context(catalog), wrapped);
                if material.is_none() {
                    wrong.push("the key file is not the one that wrapped it".to_owned());
                }
                material
            }
            _ => None,
        };
        let material = material.and_then(|bytes| <[u8; 32]>::try_from(bytes.as_bytes()).ok().map(Zeroizing::new));
        if let Some(material) = material {
            return Ok(Arc::new(CatalogKey::new(catalog, &material)?));
        }
    }
    match locked {
        Some(reason) => Err(CatalogError::Locked(reason)),
        None if wrong.is_empty() => {
            Err(CatalogError::WrongKey("it is wrapped by nothing that is configured here".into()))
        }
        None => Err(CatalogError::WrongKey(wrong.join("; "))),
    }
}

/// The custody that a configuration stands for when nothing else is said.
pub fn default_custody(custodian: &Custodian) -> Custody {
    if custodian.shard().is_some() { Custody::Hsm } else { Custody::Software }
}

/// Opens the catalog in a database; begins it, with a key of its own and the health key, if there is none. Takes over the rows of
/// schema version 1. The schema has been migrated.
pub async fn initialise(
    store: &CatalogStore,
    custodian: &Custodian,
    key_file: Option<&KeyFile>,
) -> Result<Arc<CatalogKey>, CatalogError> {
    if let Some(head) = store.head().await? {
        let key = unlock(head.catalog, &store.catalog_keys().await?, custodian, key_file).await?;
        wrap_by_what_is_new(store, custodian, key_file, &key).await?;
        take_over_old_keys(store, custodian, &key).await?;
        return Ok(key);
    }
    let (catalog, material) = (Uuid::new_v4(), Zeroizing::new(software::random()?));
    let key = Arc::new(CatalogKey::new(catalog, &material)?);
    let wrapped = wrap_everywhere(catalog, &material, custodian, key_file).await?;
    if wrapped.is_empty() {
        return Err(CatalogError::WrongKey(
            "there is neither an HSM nor a key file to wrap a new catalog's key".into(),
        ));
    }
    let health = custodian.generate(default_custody(custodian), VersionId { key: Uuid::now_v7(), number: 1 }).await?;
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
        labels: Default::default(),
        description: "The service's own; holds the key behind /healthz.".into(),
        created_at: now,
    };
    // Nobody can call the health key, since it has no path; its policy is never asked.
    let policy = PolicyRecord {
        id: Uuid::now_v7(),
        name: HEALTH_POLICY.into(),
        document: Policy::allow_everybody().to_json(),
        description: "Never asked: the health key has no path.".into(),
    };
    let key_record = KeyRecord {
        id: health.id.key,
        space: space.id,
        policy: policy.id,
        purpose: Purpose::Health,
        state: KeyState::Enabled,
        destroy_at: None,
        paths: Vec::new(),
        custody: health.custody,
        primary: 1,
        versions: vec![StoredVersion {
            number: 1,
            state: VersionState::Enabled,
            destroy_at: None,
            custody: health.custody,
            wrapped_material: health.wrapped_material,
            check_blob: health.check_blob,
            created_at: now,
        }],
        rotation: None,
        labels: Default::default(),
        description: String::new(),
        created_at: now,
    };
    draft.name(Kind::Space, space.path.as_str(), space.id);
    draft.name(Kind::Policy, &policy.name, policy.id);
    draft.put(Kind::Settings, Uuid::nil(), &Settings::default())?;
    draft.put(Kind::Space, space.id, &space)?;
    draft.put(Kind::Policy, policy.id, &policy)?;
    draft.put_key(&key_record)?;
    draft.commit(Entry::by_ekm("catalog-create", "the catalog"), None).await?;
    take_over_old_keys(store, custodian, &key).await?;
    Ok(key)
}

/// Wraps a new catalog key by everything that is configured: the HSM, under a new root key, and the key file.
async fn wrap_everywhere(
    catalog: Uuid,
    material: &[u8; 32],
    custodian: &Custodian,
    key_file: Option<&KeyFile>,
) -> Result<Vec<(&'static str, Vec<u8>)>, CatalogError> {
    let mut wrapped = Vec::new();
    if custodian.shard().is_some() {
        let root = custodian.generate_root().await?;
        custodian.set_root(root);
        let by_hsm = custodian.wrap_secret(root, &context(catalog), material).await;
        wrapped.push(("hsm", by_hsm.map_err(|error| CatalogError::Locked(error.to_string()))?));
    }
    if let Some(file) = key_file {
        wrapped.push(("file", file.wrap_secret(&context(catalog), material)?));
    }
    Ok(wrapped)
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
    let policy = PolicyRecord { id: Uuid::now_v7(), name, document: old.policy.clone(), description: String::new() };
    let versions = old.versions.iter().map(|version| StoredVersion {
        number: version.number,
        state: VersionState::Enabled,
        destroy_at: None,
        custody: version.custody,
        wrapped_material: version.wrapped_material.clone(),
        check_blob: version.check_blob.clone(),
        created_at: now,
    });
    let record = KeyRecord {
        id: old.id,
        space,
        policy: policy.id,
        purpose: Purpose::Wrap,
        state: old.state,
        destroy_at: None,
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

/// A key file that was configured later, or an HSM that was added later, gets the catalog's key, too.
async fn wrap_by_what_is_new(
    store: &CatalogStore,
    custodian: &Custodian,
    key_file: Option<&KeyFile>,
    key: &CatalogKey,
) -> Result<(), CatalogError> {
    let there = store.catalog_keys().await?;
    let missing = |name: &str| !there.iter().any(|(wrapped_by, _)| wrapped_by == name);
    let catalog = key.catalog();
    if let Some(file) = key_file.filter(|_| missing("file")) {
        store.put_catalog_key("file", &file.wrap_secret(&context(catalog), key.material())?).await?;
    }
    if custodian.shard().is_some_and(|shard| shard.away().is_none()) && missing("hsm") {
        let root = custodian.generate_root().await?;
        custodian.set_root(root);
        let wrapped = custodian.wrap_secret(root, &context(catalog), key.material()).await;
        store.put_catalog_key("hsm", &wrapped.map_err(|error| CatalogError::Locked(error.to_string()))?).await?;
    }
    Ok(())
}
