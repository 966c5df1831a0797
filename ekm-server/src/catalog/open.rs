//! Opening a catalog: finding its database, unwrapping its key.

use std::sync::Arc;

use ekm_core::blob;
use ekm_core::catalog::{CatalogKey, Custody};
use ekm_core::custody::{Custodian, GenerateError};
use ekm_core::software::{KeyFile, SoftwareError};
use ekm_core::{ShardName, Unusable};
use ekm_storage::{CatalogStore, PostgresOptions, StorageError, Tls};
use secrecy::ExposeSecret;
use uuid::Uuid;
use zeroize::Zeroizing;

use crate::config::{CatalogConfig, Config, PostgresTls};
use crate::custodian::read_secret;
use crate::start_error::StartError;

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

pub(super) fn context(catalog: Uuid) -> Vec<u8> {
    [b"ekm catalog key v1".as_slice(), catalog.as_bytes()].concat()
}

/// What the catalog's key is wrapped by, as the database calls it: the key file, or a shard's root key.
#[derive(PartialEq, Eq)]
pub(super) enum WrappedBy {
    File,
    Shard(ShardName),
}

impl WrappedBy {
    pub(super) fn name(&self) -> String {
        match self {
            Self::File => "file".into(),
            Self::Shard(shard) if shard.is_main() => "hsm".into(),
            Self::Shard(shard) => format!("hsm:{shard}"),
        }
    }

    pub(super) fn from_name(name: &str) -> Option<Self> {
        match name.split_once(':') {
            None if name == "file" => Some(Self::File),
            None if name == "hsm" => Some(Self::Shard(ShardName::default())),
            Some(("hsm", shard)) => Some(Self::Shard(shard.parse().ok()?)),
            _ => None,
        }
    }
}

/// Tells each shard under which root key its secrets are, and unwraps the catalog's key: by a shard that is there, or by the key file.
pub async fn unlock(
    catalog: Uuid,
    wrapped_keys: &[(String, Vec<u8>)],
    custodian: &Custodian,
    key_file: Option<&KeyFile>,
) -> Result<Arc<CatalogKey>, CatalogError> {
    let wrapped_keys: Vec<_> =
        wrapped_keys.iter().filter_map(|(name, wrapped)| Some((WrappedBy::from_name(name)?, wrapped))).collect();
    for (wrapped_by, wrapped) in &wrapped_keys {
        if let WrappedBy::Shard(shard) = wrapped_by
            && let (Some(shard), Some((root, _))) = (custodian.shard(shard), blob::parse(wrapped))
        {
            shard.set_root(root);
        }
    }
    let (mut locked, mut wrong) = (None, Vec::new());
    for (wrapped_by, wrapped) in &wrapped_keys {
        let material = match (wrapped_by, key_file) {
            (WrappedBy::Shard(shard), _) if custodian.shard(shard).is_some() => {
                match custodian.unwrap_secret(shard, &context(catalog), wrapped).await {
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
            (WrappedBy::File, Some(file)) => {
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
    if custodian.shards().is_empty() { Custody::Software } else { Custody::Hsm }
}
