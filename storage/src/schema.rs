//! Schema versions: migrations are only ever added, and this program says which versions it can use.

use std::ops::RangeInclusive;

use sqlx::SqlSafeStr;
use sqlx::migrate::{Migration, MigrationType, Migrator};

use crate::connection::{Begin, Connection, Value};
use crate::{CatalogStore, StorageError, statements};

/// The versions whose tables this program reads and writes.
pub(crate) const SUPPORTED: RangeInclusive<i64> = 4..=4;

/// The first catalog was SQLite only.
const FIRST: &str = include_str!("../migrations/0001_catalog.sql");
const RECORDS: &str = include_str!("../migrations/0002_records.sql");
const WRAPS: &str = include_str!("../migrations/0003_wraps.sql");
const UNFIT: &str = include_str!("../migrations/0004_unfit.sql");

/// What a database holds, and what this program can use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Schema {
    /// The version in the database; `None` if there are no tables.
    pub version: Option<i64>,
    /// Programs that know this version can use it; older ones cannot.
    pub usable_from: i64,
    /// The oldest version that this program can use.
    pub supported_from: i64,
    /// The newest one that it knows.
    pub supported_to: i64,
}

impl Schema {
    /// Whether this program can use the database. A schema that is newer than the program is fine as long as it still suits programs of
    /// this version: so that the schema can be migrated while old frontends run.
    pub fn check(&self) -> Result<(), StorageError> {
        let supports = format!("this program uses versions {} to {}", self.supported_from, self.supported_to);
        match self.version {
            None => Err(StorageError::Empty),
            Some(version) if version < self.supported_from => Err(StorageError::Schema(format!(
                "the database has version {version}, and {supports}; run 'ekm catalog migrate'"
            ))),
            Some(version) if version > self.supported_to && self.usable_from > self.supported_to => {
                Err(StorageError::Schema(format!(
                    "the database has version {version}, which only programs from version {} on can use, and {supports}; \
                     run a newer ekm",
                    self.usable_from
                )))
            }
            Some(_) => Ok(()),
        }
    }
}

impl CatalogStore {
    /// Which schema the database has.
    pub async fn schema(&self) -> Result<Schema, StorageError> {
        let mut lease = self.reader().await?;
        let schema = schema(lease.connection()).await?;
        lease.sound();
        Ok(schema)
    }

    /// Brings the schema to the newest version that this program knows. One that is newer already is left alone.
    pub async fn migrate(&self) -> Result<Schema, StorageError> {
        let mut lease = self.writer().await?;
        let before = schema(lease.connection()).await?;
        if before.version.is_some_and(|version| version > before.supported_to) {
            before.check()?;
        } else {
            let refused = |error: sqlx::migrate::MigrateError| StorageError::Schema(error.to_string());
            match lease.connection() {
                Connection::Sqlite(connection) => migrator(false).run(connection).await.map_err(refused)?,
                Connection::Postgres(connection) => migrator(true).run(connection).await.map_err(refused)?,
            }
        }
        let after = schema(lease.connection()).await?;
        lease.sound();
        Ok(after)
    }
}

fn migrator(postgres: bool) -> Migrator {
    let words = if postgres { ["BYTEA", "TEXT COLLATE \"C\"", ""] } else { ["BLOB", "TEXT", "WITHOUT ROWID"] };
    let words = ["BYTES", "NAME_TEXT", "CLUSTERED"].into_iter().zip(words);
    let records = words.fold(RECORDS.to_owned(), |sql, (word, meant)| sql.replace(word, meant));
    let records = sqlx::AssertSqlSafe(records).into_sql_str();
    let migration =
        |version, name: &'static str, sql| Migration::new(version, name.into(), MigrationType::Simple, sql, false);
    let mut migrations = vec![
        migration(2, "records", records),
        migration(3, "wraps", WRAPS.into_sql_str()),
        migration(4, "unfit", UNFIT.into_sql_str()),
    ];
    if !postgres {
        migrations.insert(0, migration(1, "catalog", FIRST.into_sql_str()));
    }
    let mut migrator = Migrator::with_migrations(migrations);
    migrator.set_locking(false); // a session's lock does not work through a pooler; the tables' own locks order two migrations
    migrator
}

/// In one transaction: outside of one a pooler may carry out another client's statement instead.
async fn schema(connection: &mut Connection) -> Result<Schema, StorageError> {
    connection.begin(Begin::Read).await?;
    let schema = read(connection).await?;
    connection.rollback().await?;
    Ok(schema)
}

async fn read(connection: &mut Connection) -> Result<Schema, StorageError> {
    let (supported_from, supported_to) = (*SUPPORTED.start(), *SUPPORTED.end());
    let mut schema = Schema { version: None, usable_from: supported_to, supported_from, supported_to };
    let migrations = if connection.is_postgres() {
        "SELECT COUNT(*) FROM information_schema.tables WHERE table_name = '_sqlx_migrations' AND table_schema = current_schema()"
    } else {
        "SELECT COUNT(*) FROM sqlite_master WHERE name = '_sqlx_migrations'"
    };
    let count = crate::connection::Statement { sql: migrations, columns: &[crate::connection::Column::Integer] };
    if connection.row(&count, &[]).await? != Some(vec![Value::Integer(1)]) {
        return Ok(schema);
    }
    if let Some([Value::Integer(version)]) = connection.row(&statements::SCHEMA_VERSION, &[]).await?.as_deref() {
        schema.version = Some(*version);
        if *version >= 2
            && let Some([Value::Integer(from)]) = connection.row(&statements::USABLE_FROM, &[]).await?.as_deref()
        {
            schema.usable_from = *from;
        }
    }
    Ok(schema)
}
