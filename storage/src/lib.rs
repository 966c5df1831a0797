//! The key catalog in SQL: crypto spaces, keys, versions, aliases, policies. The only crate that knows sqlx.
//!
//! Every change is one transaction that also takes the next revision. The data plane never waits for this crate: it works
//! on a snapshot, and asks here only whether the revision has grown.

mod read;
mod write;

use std::future::Future;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use sqlx::SqlSafeStr;
use sqlx::migrate::{Migration, MigrationType, Migrator};
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteSynchronous};

pub use write::NewKey;

/// sqlx has no time-outs of its own.
const CALL_TIMEOUT: Duration = Duration::from_secs(5);

/// The migrations, oldest first. Append only.
const MIGRATIONS: &[(i64, &str, &str)] = &[(1, "catalog", include_str!("../migrations/0001_catalog.sql"))];

/// The key catalog.
#[derive(Clone)]
pub struct CatalogStore {
    pool: SqlitePool,
    file: PathBuf,
    identity: (u64, u64),
}

/// Why the catalog cannot be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    /// The database said no.
    #[error("the catalog's database: {0}")]
    Database(#[from] sqlx::Error),
    /// The file cannot be opened.
    #[error("cannot open the catalog {file}: {cause}; 'ekm key create' makes a new one, in a directory that is there")]
    Open {
        /// The file.
        file: String,
        /// The reason.
        cause: String,
    },
    /// The file was moved away or replaced while it was open: what is read is no longer what the path names.
    #[error(
        "the catalog {0} was moved or replaced under the running service; restart it to take over the file that is there now"
    )]
    Replaced(String),
    /// The schema is newer than this program, or a migration was changed after it was applied.
    #[error("the catalog's schema does not fit this version of ekm: {0}")]
    Schema(#[from] sqlx::migrate::MigrateError),
    /// The database does not answer.
    #[error("the catalog's database did not answer within {} s", CALL_TIMEOUT.as_secs())]
    Timeout,
    /// The path belongs, or once belonged, to a key.
    #[error("the path {0} is taken; paths are never given out twice")]
    PathTaken(ekm_core::KeyPath),
    /// No key or crypto space under this path.
    #[error("there is nothing under the path {0} in the catalog")]
    NotFound(ekm_core::KeyPath),
    /// A row holds what no version of this program writes.
    #[error("table {table}, row {row}: {problem}")]
    Row {
        /// The table.
        table: &'static str,
        /// The row's key.
        row: String,
        /// What is wrong with it.
        problem: String,
    },
}

impl StorageError {
    /// The stable word for this error: heading in the error reference.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Database(_) | Self::Open { .. } | Self::Replaced(_) | Self::Timeout => "catalog_database",
            Self::Schema(_) => "catalog_schema",
            Self::PathTaken(_) => "catalog_path_taken",
            Self::NotFound(_) => "catalog_not_found",
            Self::Row { .. } => "catalog_row",
        }
    }
}

impl CatalogStore {
    /// Opens a SQLite catalog and brings its schema up to date. A missing file is made only if `create` says so: a mistyped
    /// name must not look like an empty catalog.
    pub async fn open_sqlite(file: &Path, create: bool) -> Result<Self, StorageError> {
        let refused = |cause: &dyn std::fmt::Display| {
            let (file, cause) = (file.display().to_string(), cause.to_string());
            StorageError::Open { file, cause }
        };
        // Made here and not by SQLite, so that it is for its owner only; SQLite gives its other files the same mode.
        std::fs::OpenOptions::new()
            .write(true)
            .create(create)
            .mode(0o600)
            .open(file)
            .map_err(|error| refused(&error))?;
        let options = SqliteConnectOptions::new()
            .filename(file)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full) // an acknowledged key survives power loss
            .foreign_keys(true)
            .busy_timeout(CALL_TIMEOUT);
        // One connection: SQLite has one writer, and the data plane does not read here.
        let pool = SqlitePoolOptions::new().max_connections(1).acquire_timeout(CALL_TIMEOUT);
        let pool = pool.connect_with(options).await.map_err(|error| refused(&error))?;
        let identity = identity(file).await.map_err(|error| refused(&error))?;
        let store = Self { pool, file: file.to_owned(), identity };
        migrator().run(&store.pool).await?;
        Ok(store)
    }
}

/// What makes a file this file: device and inode.
async fn identity(file: &Path) -> std::io::Result<(u64, u64)> {
    let metadata = tokio::fs::metadata(file).await?;
    Ok((metadata.dev(), metadata.ino()))
}

fn migrator() -> Migrator {
    let migration = |&(version, name, sql): &(i64, &'static str, &'static str)| {
        Migration::new(version, name.into(), MigrationType::Simple, sql.into_sql_str(), false)
    };
    Migrator::with_migrations(MIGRATIONS.iter().map(migration).collect())
}

/// Every call to the database passes through here.
async fn bounded<T, E: Into<StorageError>>(call: impl Future<Output = Result<T, E>>) -> Result<T, StorageError> {
    tokio::time::timeout(CALL_TIMEOUT, call).await.map_err(|_| StorageError::Timeout)?.map_err(Into::into)
}
