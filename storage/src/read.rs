//! Reading the catalog.

use std::collections::HashMap;

use ekm_core::blob::VersionId;
use ekm_core::catalog::{Catalog, CryptoSpace, Custody, KeyRecord, KeyState, Purpose, VersionRecord};
use sqlx::sqlite::SqliteRow;
use sqlx::{Row, SqliteConnection};
use uuid::Uuid;

use crate::{CatalogStore, StorageError, bounded};

impl CatalogStore {
    /// The current revision; grows by one with every change. Also notices when the file is no longer the one at its path: SQLite
    /// itself would go on reading the old one.
    pub async fn revision(&self) -> Result<u64, StorageError> {
        if crate::identity(&self.file).await.ok() != Some(self.identity) {
            return Err(StorageError::Replaced(self.file.display().to_string()));
        }
        bounded(async {
            let row = sqlx::query("SELECT revision FROM catalog WHERE singleton = 1").fetch_one(&self.pool).await?;
            Ok::<_, sqlx::Error>(row.try_get::<i64, _>(0)?.cast_unsigned())
        })
        .await
    }

    /// The whole catalog at one revision.
    pub async fn load(&self) -> Result<Catalog, StorageError> {
        bounded(async {
            let mut tx = self.pool.begin().await?;
            let revision = sqlx::query("SELECT revision FROM catalog WHERE singleton = 1").fetch_one(&mut *tx).await?;
            let revision = revision.try_get::<i64, _>(0)?.cast_unsigned();
            let spaces = spaces(&mut tx).await?;
            let mut aliases = aliases(&mut tx).await?;
            let mut versions = versions(&mut tx).await?;
            let mut keys = keys(&mut tx).await?;
            for key in &mut keys {
                key.paths = aliases.remove(&key.id).unwrap_or_default();
                key.versions = versions.remove(&key.id).unwrap_or_default();
            }
            Ok::<_, StorageError>(Catalog { revision, spaces, keys })
        })
        .await
    }
}

async fn spaces(tx: &mut SqliteConnection) -> Result<Vec<CryptoSpace>, StorageError> {
    let rows = sqlx::query("SELECT id, path FROM crypto_spaces").fetch_all(tx).await?;
    rows.iter()
        .map(|row| {
            let field = Field { table: "crypto_spaces", row };
            Ok(CryptoSpace { id: field.parse("id")?, path: field.parse("path")? })
        })
        .collect()
}

async fn keys(tx: &mut SqliteConnection) -> Result<Vec<KeyRecord>, StorageError> {
    let query = "SELECT k.id AS id, k.space_id AS space_id, k.purpose AS purpose, k.state AS state,
                        k.primary_version AS primary_version, p.document AS document
                 FROM keys k JOIN policies p ON p.id = k.policy_id";
    let rows = sqlx::query(query).fetch_all(tx).await?;
    rows.iter()
        .map(|row| {
            let field = Field { table: "keys", row };
            Ok(KeyRecord {
                id: field.parse("id")?,
                space: field.parse("space_id")?,
                purpose: field.word("purpose", Purpose::from_name)?,
                state: field.word("state", KeyState::from_name)?,
                paths: Vec::new(),
                policy: row.try_get("document")?,
                primary: field.number("primary_version")?,
                versions: Vec::new(),
            })
        })
        .collect()
}

async fn aliases(tx: &mut SqliteConnection) -> Result<HashMap<Uuid, Vec<ekm_core::KeyPath>>, StorageError> {
    let mut paths: HashMap<_, Vec<_>> = HashMap::new();
    for row in &sqlx::query("SELECT path, key_id FROM key_aliases ORDER BY path").fetch_all(tx).await? {
        let field = Field { table: "key_aliases", row };
        paths.entry(field.parse("key_id")?).or_default().push(field.parse("path")?);
    }
    Ok(paths)
}

async fn versions(tx: &mut SqliteConnection) -> Result<HashMap<Uuid, Vec<VersionRecord>>, StorageError> {
    let query = "SELECT key_id, number, custody, wrapped_material, check_blob FROM key_versions ORDER BY number";
    let mut versions: HashMap<_, Vec<_>> = HashMap::new();
    for row in &sqlx::query(query).fetch_all(tx).await? {
        let field = Field { table: "key_versions", row };
        let key: Uuid = field.parse("key_id")?;
        versions.entry(key).or_default().push(VersionRecord {
            id: VersionId { key, number: field.number("number")? },
            custody: field.word("custody", Custody::from_name)?,
            wrapped_material: row.try_get("wrapped_material")?,
            check_blob: row.try_get("check_blob")?,
        });
    }
    Ok(versions)
}

/// One row, for error texts that name what is wrong where.
struct Field<'a> {
    table: &'static str,
    row: &'a SqliteRow,
}

impl Field<'_> {
    fn parse<T: std::str::FromStr<Err: ToString>>(&self, column: &str) -> Result<T, StorageError> {
        let text: &str = self.row.try_get(column)?;
        text.parse().map_err(|error: T::Err| self.refused(column, text, &error.to_string()))
    }

    fn word<T>(&self, column: &str, from_name: impl Fn(&str) -> Option<T>) -> Result<T, StorageError> {
        let text: &str = self.row.try_get(column)?;
        from_name(text).ok_or_else(|| self.refused(column, text, "this version of ekm does not know the word"))
    }

    fn number(&self, column: &str) -> Result<u32, StorageError> {
        let number: i64 = self.row.try_get(column)?;
        u32::try_from(number).map_err(|_| self.refused(column, &number.to_string(), "out of range"))
    }

    fn refused(&self, column: &str, value: &str, problem: &str) -> StorageError {
        let row = self.row.try_get::<&str, _>(0).unwrap_or("?").to_owned();
        StorageError::Row { table: self.table, row, problem: format!("{column} '{value}': {problem}") }
    }
}
