//! Changing the catalog: one transaction a change, and the next revision in it.

use ekm_core::KeyPath;
use ekm_core::catalog::{KeyState, Purpose, VersionRecord};
use ekm_core::policy::Policy;
use sqlx::{Row, SqliteConnection};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use uuid::Uuid;

use crate::{CatalogStore, StorageError, bounded};

/// A key whose first version's material exists already: a key enters the catalog only when it has been used once.
pub struct NewKey<'a> {
    /// Chosen before the material was made, since the material is bound to it.
    pub id: Uuid,
    /// The crypto space, which must exist.
    pub space: &'a KeyPath,
    /// What it is for.
    pub purpose: Purpose,
    /// The first path; a health key has none.
    pub path: Option<&'a KeyPath>,
    /// Who may use it.
    pub policy: &'a Policy,
    /// The first version.
    pub version: &'a VersionRecord,
}

impl CatalogStore {
    /// Makes a crypto space, or finds the one that is there.
    pub async fn ensure_space(&self, path: &KeyPath) -> Result<(), StorageError> {
        bounded(async {
            let mut tx = self.pool.begin_with("BEGIN IMMEDIATE").await?;
            if space_id(&mut tx, path).await?.is_some() {
                return Ok(());
            }
            sqlx::query("INSERT INTO crypto_spaces (id, path, created_at) VALUES ($1, $2, $3)")
                .bind(Uuid::new_v4().to_string())
                .bind(path.as_str())
                .bind(now())
                .execute(&mut *tx)
                .await?;
            next_revision(&mut tx).await?;
            tx.commit().await.map_err(StorageError::from)
        })
        .await
    }

    /// Adds a key with its first version. Returns the revision.
    pub async fn add_key(&self, key: NewKey<'_>) -> Result<u64, StorageError> {
        bounded(async {
            let mut tx = self.pool.begin_with("BEGIN IMMEDIATE").await?;
            let space = space_id(&mut tx, key.space).await?;
            let space = space.ok_or_else(|| StorageError::NotFound(key.space.clone()))?;
            let policy = add_policy(&mut tx, key.policy).await?;
            sqlx::query(
                "INSERT INTO keys (id, space_id, policy_id, purpose, state, primary_version, created_at)
                 VALUES ($1, $2, $3, $4, $5, $6, $7)",
            )
            .bind(key.id.to_string())
            .bind(space)
            .bind(&policy)
            .bind(key.purpose.name())
            .bind(KeyState::Enabled.name())
            .bind(i64::from(key.version.id.number))
            .bind(now())
            .execute(&mut *tx)
            .await?;
            if let Some(path) = key.path {
                add_alias(&mut tx, path, key.id).await?;
            }
            sqlx::query(
                "INSERT INTO key_versions (key_id, number, custody, wrapped_material, check_blob, created_at)
                 VALUES ($1, $2, $3, $4, $5, $6)",
            )
            .bind(key.id.to_string())
            .bind(i64::from(key.version.id.number))
            .bind(key.version.custody.name())
            .bind(key.version.wrapped_material.as_deref())
            .bind(&key.version.check_blob)
            .bind(now())
            .execute(&mut *tx)
            .await?;
            let revision = next_revision(&mut tx).await?;
            tx.commit().await?;
            Ok::<_, StorageError>(revision)
        })
        .await
    }

    /// Gives a key another path, so that it can move between EXTERNAL and EXTERNAL_VPC. Returns the revision.
    pub async fn add_path(&self, existing: &KeyPath, path: &KeyPath) -> Result<u64, StorageError> {
        bounded(async {
            let mut tx = self.pool.begin_with("BEGIN IMMEDIATE").await?;
            let key = key_id(&mut tx, existing).await?;
            add_alias(&mut tx, path, key).await?;
            let revision = next_revision(&mut tx).await?;
            tx.commit().await?;
            Ok::<_, StorageError>(revision)
        })
        .await
    }

    /// Puts another policy in place of a key's. Returns the revision.
    pub async fn set_policy(&self, path: &KeyPath, policy: &Policy) -> Result<u64, StorageError> {
        bounded(async {
            let mut tx = self.pool.begin_with("BEGIN IMMEDIATE").await?;
            let key = key_id(&mut tx, path).await?;
            let policy = add_policy(&mut tx, policy).await?;
            let query = sqlx::query("UPDATE keys SET policy_id = $1 WHERE id = $2").bind(policy).bind(key.to_string());
            query.execute(&mut *tx).await?;
            let revision = next_revision(&mut tx).await?;
            tx.commit().await?;
            Ok::<_, StorageError>(revision)
        })
        .await
    }

    /// Pauses a key, or takes the pause back. Returns the revision.
    pub async fn set_key_state(&self, path: &KeyPath, state: KeyState) -> Result<u64, StorageError> {
        bounded(async {
            let mut tx = self.pool.begin_with("BEGIN IMMEDIATE").await?;
            let key = key_id(&mut tx, path).await?;
            sqlx::query("UPDATE keys SET state = $1 WHERE id = $2")
                .bind(state.name())
                .bind(key.to_string())
                .execute(&mut *tx)
                .await?;
            let revision = next_revision(&mut tx).await?;
            tx.commit().await?;
            Ok::<_, StorageError>(revision)
        })
        .await
    }
}

async fn space_id(tx: &mut SqliteConnection, path: &KeyPath) -> Result<Option<String>, StorageError> {
    let row = sqlx::query("SELECT id FROM crypto_spaces WHERE path = $1").bind(path.as_str()).fetch_optional(tx);
    Ok(row.await?.map(|row| row.try_get(0)).transpose()?)
}

async fn key_id(tx: &mut SqliteConnection, path: &KeyPath) -> Result<Uuid, StorageError> {
    let row = sqlx::query("SELECT key_id FROM key_aliases WHERE path = $1").bind(path.as_str()).fetch_optional(tx);
    let row = row.await?.ok_or_else(|| StorageError::NotFound(path.clone()))?;
    let text: String = row.try_get(0)?;
    text.parse().map_err(|error: uuid::Error| StorageError::Row {
        table: "key_aliases",
        row: path.to_string(),
        problem: error.to_string(),
    })
}

async fn add_policy(tx: &mut SqliteConnection, policy: &Policy) -> Result<String, StorageError> {
    let id = Uuid::new_v4().to_string();
    let query = sqlx::query("INSERT INTO policies (id, document) VALUES ($1, $2)").bind(&id).bind(policy.to_json());
    query.execute(tx).await?;
    Ok(id)
}

async fn add_alias(tx: &mut SqliteConnection, path: &KeyPath, key: Uuid) -> Result<(), StorageError> {
    let inserted = sqlx::query("INSERT INTO key_aliases (path, key_id) VALUES ($1, $2)")
        .bind(path.as_str())
        .bind(key.to_string())
        .execute(tx)
        .await;
    match inserted {
        Err(sqlx::Error::Database(error)) if error.is_unique_violation() => Err(StorageError::PathTaken(path.clone())),
        other => Ok(other.map(drop)?),
    }
}

async fn next_revision(tx: &mut SqliteConnection) -> Result<u64, StorageError> {
    let row = sqlx::query("UPDATE catalog SET revision = revision + 1 WHERE singleton = 1 RETURNING revision");
    Ok(row.fetch_one(tx).await?.try_get::<i64, _>(0)?.cast_unsigned())
}

fn now() -> String {
    OffsetDateTime::now_utc().format(&Rfc3339).expect("RFC 3339 has room for every time until the year 9999")
}
