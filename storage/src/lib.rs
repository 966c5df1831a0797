//! The key catalog in SQL, in SQLite or PostgreSQL. The only crate that knows sqlx, and it knows nothing else: rows come sealed and
//! leave sealed (`ekm_core::catalog::ledger`).
//!
//! Every change is one transaction that takes the next revision under a row lock. The data plane never waits for this crate: it works
//! on a snapshot, and follows here what is new.

mod connection;
mod postgres;
mod read;
mod schema;
mod schema1;
mod snapshot_file;
mod statements;
#[cfg(test)]
mod tests;
mod write;

use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use sqlx::ConnectOptions;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous};
use tokio::sync::{Mutex, MutexGuard};

use connection::{Connection, bounded};
pub use postgres::{Listener, PostgresOptions, Tls};
pub use read::Frontend;
pub use schema::Schema;
pub use schema1::{OldKey, OldVersion};
pub use snapshot_file::{Saving, SnapshotFile};
pub use write::{Commit, Name, Write};

/// How long a statement may take.
const CALL_TIMEOUT: Duration = Duration::from_secs(5);

/// The key catalog.
pub struct CatalogStore {
    engine: Engine,
    /// For following; perhaps to a server that takes no changes.
    reader: Mutex<Option<Connection>>,
    /// For changes and for the newest state.
    writer: Mutex<Option<Connection>>,
    /// Whether following must be done on the leader, because the follower lags.
    leader_only: AtomicBool,
}

enum Engine {
    Sqlite { file: PathBuf, identity: (u64, u64) },
    Postgres(PostgresOptions),
}

/// Why the catalog cannot be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    /// The database said no.
    #[error("the catalog's database: {0}")]
    Database(#[from] sqlx::Error),
    /// The file cannot be opened.
    #[error(
        "cannot open the catalog {file}: {cause}; 'ekm catalog migrate' makes a new one, in a directory that is there"
    )]
    Open {
        /// The file.
        file: String,
        /// The reason.
        cause: String,
    },
    /// No server takes connections.
    #[error("no PostgreSQL server can be reached: {0}")]
    Unreachable(String),
    /// Servers answer, and none of them takes changes.
    #[error("no PostgreSQL server takes changes at the moment: {0}; if this lasts, look at the failover")]
    NoLeader(String),
    /// The file was moved away or replaced while it was open: what is read is no longer what the path names.
    #[error(
        "the catalog {0} was moved or replaced under the running service; restart it to take over the file that is there now"
    )]
    Replaced(String),
    /// There is a database, and no catalog in it.
    #[error("there is no catalog in this database; 'ekm catalog migrate' makes one")]
    Empty,
    /// The schema is older or newer than this program can use.
    #[error("the catalog's schema does not fit this version of ekm: {0}")]
    Schema(String),
    /// The database does not answer.
    #[error("the catalog's database did not answer within {} s", .0.as_secs())]
    Timeout(Duration),
    /// The connection was lost while a change was committed.
    #[error("it is not known whether the change was made ({0}); repeat the request with the same request id")]
    CommitUnknown(String),
    /// A path or name belongs, or once belonged, to something.
    #[error("{0} is taken; paths and names are never given out twice")]
    Taken(String),
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
            Self::Database(_) => "catalog_database",
            Self::Open { .. } => "catalog_open",
            Self::Unreachable(_) => "catalog_unreachable",
            Self::NoLeader(_) => "catalog_no_leader",
            Self::Replaced(_) => "catalog_replaced",
            Self::Empty => "catalog_empty",
            Self::Schema(_) => "catalog_schema",
            Self::Timeout(_) => "catalog_timeout",
            Self::CommitUnknown(_) => "commit_unknown",
            Self::Taken(_) => "name_taken",
            Self::Row { .. } => "catalog_row",
        }
    }
}

impl CatalogStore {
    /// Opens a SQLite file. With `create` a file that is not there is made; without, a mistyped name is an error and not an empty
    /// catalog.
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
        let identity = identity(file).await.map_err(|error| refused(&error))?;
        let engine = Engine::Sqlite { file: file.to_owned(), identity };
        let store =
            Self { engine, reader: Mutex::new(None), writer: Mutex::new(None), leader_only: AtomicBool::new(false) };
        store.writer().await.map_err(|error| refused(&error))?;
        Ok(store)
    }

    /// A PostgreSQL catalog. Connects when it is used, so that a frontend can start while there is no database.
    pub fn postgres(options: PostgresOptions) -> Self {
        Self {
            engine: Engine::Postgres(options),
            reader: Mutex::new(None),
            writer: Mutex::new(None),
            leader_only: AtomicBool::new(false),
        }
    }

    /// Which database this is, for people and for telling deployments apart.
    pub fn location(&self) -> String {
        match &self.engine {
            Engine::Sqlite { file, .. } => format!("sqlite {}", file.display()),
            Engine::Postgres(options) => options.location(),
        }
    }

    /// A connection that may take changes. Whoever holds it is alone with it.
    async fn writer(&self) -> Result<Lease<'_>, StorageError> {
        self.lease(&self.writer, false).await
    }

    /// A connection that is good enough for following.
    async fn reader(&self) -> Result<Lease<'_>, StorageError> {
        self.lease(&self.reader, true).await
    }

    async fn lease<'a>(
        &self,
        place: &'a Mutex<Option<Connection>>,
        follower_will_do: bool,
    ) -> Result<Lease<'a>, StorageError> {
        let mut place = bounded(CALL_TIMEOUT, async { Ok(place.lock().await) }).await?;
        if let Engine::Sqlite { file, identity: opened } = &self.engine
            && identity(file).await.ok() != Some(*opened)
        {
            *place = None; // SQLite would go on reading the old file
            return Err(StorageError::Replaced(file.display().to_string()));
        }
        let connection = match place.take() {
            Some(connection) => connection,
            None => match &self.engine {
                Engine::Sqlite { file, .. } => connect_sqlite(file).await?,
                Engine::Postgres(options) => {
                    options.connect(follower_will_do, self.leader_only.load(Ordering::Relaxed)).await?
                }
            },
        };
        Ok(Lease { place, connection: Some(connection) })
    }
}

/// A connection in use. It goes back only when it is said to be [`Lease::sound`]: after an error or a cancelled call nobody knows what
/// state it is in, so it is closed, and the server takes back what was not committed.
struct Lease<'a> {
    place: MutexGuard<'a, Option<Connection>>,
    connection: Option<Connection>,
}

impl Lease<'_> {
    fn connection(&mut self) -> &mut Connection {
        self.connection.as_mut().expect("there until it is given back")
    }

    fn sound(mut self) {
        *self.place = self.connection.take();
    }
}

async fn connect_sqlite(file: &Path) -> Result<Connection, StorageError> {
    let options = SqliteConnectOptions::new()
        .filename(file)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full) // an acknowledged key survives power loss
        .foreign_keys(true)
        .row_buffer_size(2000) // a page of a whole catalog is read while the one before is worked on
        .busy_timeout(CALL_TIMEOUT);
    bounded(CALL_TIMEOUT, async { Ok(Connection::Sqlite(options.connect().await?)) }).await
}

/// What makes a file this file: device and inode.
async fn identity(file: &Path) -> std::io::Result<(u64, u64)> {
    let metadata = tokio::fs::metadata(file).await?;
    Ok((metadata.dev(), metadata.ino()))
}
