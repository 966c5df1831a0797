//! The rows of schema version 1, which was SQLite only, unsealed, and without versions that anybody could make. Read once, when a
//! catalog is taken over into sealed rows.

use ekm_core::KeyPath;
use ekm_core::catalog::{Custody, KeyState, Purpose};
use uuid::Uuid;

use crate::connection::Column::{Bytes, Integer, Text};
use crate::connection::{Begin, Row, Statement, Value};
use crate::{CatalogStore, StorageError};

const TABLES: Statement =
    Statement { sql: "SELECT COUNT(*) FROM sqlite_master WHERE name = 'key_aliases'", columns: &[Integer] };
const KEYS: Statement = Statement {
    sql: "SELECT k.id, s.path, k.purpose, k.state, k.primary_version, p.document FROM keys k \
          JOIN policies p ON p.id = k.policy_id JOIN crypto_spaces s ON s.id = k.space_id ORDER BY k.id",
    columns: &[Text, Text, Text, Text, Integer, Text],
};
const PATHS: Statement =
    Statement { sql: "SELECT path FROM key_aliases WHERE key_id = $1 ORDER BY path", columns: &[Text] };
const VERSIONS: Statement = Statement {
    sql: "SELECT number, custody, COALESCE(wrapped_material, x''), check_blob FROM key_versions WHERE key_id = $1 ORDER BY number",
    columns: &[Integer, Text, Bytes, Bytes],
};

/// A key as schema version 1 had it.
#[expect(missing_docs, reason = "named as the columns were")]
pub struct OldKey {
    pub id: Uuid,
    pub space: KeyPath,
    pub purpose: Purpose,
    pub state: KeyState,
    pub primary: u32,
    pub policy: String,
    pub paths: Vec<KeyPath>,
    pub versions: Vec<OldVersion>,
}

/// A key version as schema version 1 had it.
#[expect(missing_docs, reason = "named as the columns were")]
pub struct OldVersion {
    pub number: u32,
    pub custody: Custody,
    pub wrapped_material: Option<Vec<u8>>,
    pub check_blob: Vec<u8>,
}

impl CatalogStore {
    /// The keys that schema version 1 has left; empty in a catalog that began later.
    pub async fn old_keys(&self) -> Result<Vec<OldKey>, StorageError> {
        let mut lease = self.writer().await?;
        let connection = lease.connection();
        if connection.is_postgres() || connection.row(&TABLES, &[]).await? != Some(vec![Value::Integer(1)]) {
            lease.sound();
            return Ok(Vec::new());
        }
        connection.begin(Begin::Read).await?;
        let mut keys = Vec::new();
        for row in connection.rows(&KEYS, &[]).await? {
            let mut key = old_key(&row).ok_or_else(|| refused("keys", &row))?;
            let id = [Value::from(key.id)];
            for row in connection.rows(&PATHS, &id).await? {
                key.paths.push(path(&row[0]).ok_or_else(|| refused("key_aliases", &row))?);
            }
            for row in connection.rows(&VERSIONS, &id).await? {
                key.versions.push(old_version(&row).ok_or_else(|| refused("key_versions", &row))?);
            }
            keys.push(key);
        }
        connection.rollback().await?;
        lease.sound();
        Ok(keys)
    }

    /// Removes what [`Self::old_keys`] has read, after it was taken over.
    pub async fn forget_old_keys(&self) -> Result<(), StorageError> {
        let mut lease = self.writer().await?;
        let tables = "BEGIN IMMEDIATE; DELETE FROM key_versions; DELETE FROM key_aliases; DELETE FROM keys; \
                      DELETE FROM policies; DELETE FROM crypto_spaces; COMMIT";
        lease.connection().script(tables).await?;
        lease.sound();
        Ok(())
    }
}

fn old_key(row: &Row) -> Option<OldKey> {
    let [
        Value::Text(id),
        space,
        Value::Text(purpose),
        Value::Text(state),
        Value::Integer(primary),
        Value::Text(policy),
    ] = row.as_slice()
    else {
        return None;
    };
    Some(OldKey {
        id: id.parse().ok()?,
        space: path(space)?,
        purpose: Purpose::from_name(purpose)?,
        state: KeyState::from_name(state)?,
        primary: u32::try_from(*primary).ok()?,
        policy: policy.clone(),
        paths: Vec::new(),
        versions: Vec::new(),
    })
}

fn old_version(row: &Row) -> Option<OldVersion> {
    let [Value::Integer(number), Value::Text(custody), Value::Bytes(wrapped), Value::Bytes(check_blob)] =
        row.as_slice()
    else {
        return None;
    };
    Some(OldVersion {
        number: u32::try_from(*number).ok()?,
        custody: Custody::from_name(custody)?,
        wrapped_material: (!wrapped.is_empty()).then(|| wrapped.clone()),
        check_blob: check_blob.clone(),
    })
}

fn path(value: &Value) -> Option<KeyPath> {
    match value {
        Value::Text(text) => text.parse().ok(),
        _ => None,
    }
}

fn refused(table: &'static str, row: &Row) -> StorageError {
    let row = row.iter().find_map(|value| if let Value::Text(text) = value { Some(text.clone()) } else { None });
    let problem = "it holds what no version of ekm writes".into();
    StorageError::Row { table, row: row.unwrap_or_default(), problem }
}
