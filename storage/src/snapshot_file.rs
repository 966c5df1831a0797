//! A frontend's own copy of the catalog: the sealed rows in a SQLite file, so that it can start while the database is away.
//!
//! The file has the catalog's own tables: what is read from it is verified in the same way, row by row and as a whole. A transaction
//! replaces one state by the next, so the file never holds half of one.

use std::path::Path;

use ekm_core::catalog::{SealedHead, SealedRow};

use crate::connection::{Begin, Connection};
use crate::{CatalogStore, StorageError, statements};

/// A frontend's own copy of the catalog.
pub struct SnapshotFile {
    store: CatalogStore,
}

impl SnapshotFile {
    /// Opens the file, or makes it.
    pub async fn open(file: &Path) -> Result<Self, StorageError> {
        let store = CatalogStore::open_sqlite(file, true).await?;
        store.migrate().await?;
        Ok(Self { store })
    }

    /// The copy, to be read like any catalog.
    pub fn store(&self) -> &CatalogStore {
        &self.store
    }

    /// What the frontend has noted about the copy, sealed; `None` if the file is new.
    pub async fn note(&self) -> Result<Option<Vec<u8>>, StorageError> {
        Ok(self.store.request(NOTE).await?.map(|(_, note)| note))
    }

    /// Begins to replace everything in the file.
    pub async fn replace(&self) -> Result<Saving<'_>, StorageError> {
        self.begin("DELETE FROM head; DELETE FROM records; DELETE FROM catalog_keys").await
    }

    /// Begins to add newer rows.
    pub async fn update(&self) -> Result<Saving<'_>, StorageError> {
        self.begin("DELETE FROM head; DELETE FROM catalog_keys").await
    }

    /// Writes everything into the one file, so that it can be copied.
    pub async fn close(self) -> Result<(), StorageError> {
        let mut lease = self.store.writer().await?;
        lease.connection().script("PRAGMA journal_mode = DELETE").await
    }

    async fn begin(&self, clear: &'static str) -> Result<Saving<'_>, StorageError> {
        let mut lease = self.store.writer().await?;
        lease.connection().begin(Begin::Write).await?;
        lease.connection().script(clear).await?;
        Ok(Saving { lease })
    }
}

/// The note's place.
const NOTE: &str = "note";

/// A state of the catalog on its way into the file.
pub struct Saving<'a> {
    lease: crate::Lease<'a>,
}

impl Saving<'_> {
    /// Adds rows, or puts them in the place of older ones.
    pub async fn rows(&mut self, rows: &[SealedRow]) -> Result<(), StorageError> {
        let connection: &mut Connection = self.lease.connection();
        for row in rows {
            let parameters = [row.kind.as_ref().into(), row.id.into(), row.revision.into(), row.body.as_slice().into()];
            connection.execute(&statements::PUT_RECORD, &parameters).await?;
        }
        Ok(())
    }

    /// Makes it the file's state.
    pub async fn finish(
        mut self,
        head: &SealedHead,
        keys: &[(String, Vec<u8>)],
        note: &[u8],
    ) -> Result<(), StorageError> {
        let connection = self.lease.connection();
        let parameters = [head.catalog.into(), head.revision.into(), head.body.as_slice().into()];
        connection.execute(&statements::INSERT_HEAD, &parameters).await?;
        for (wrapped_by, wrapped) in keys {
            let parameters = [wrapped_by.as_str().into(), wrapped.as_slice().into()];
            connection.execute(&statements::PUT_CATALOG_KEY, &parameters).await?;
        }
        connection.script("DELETE FROM requests").await?;
        connection.execute(&statements::INSERT_REQUEST, &[NOTE.into(), head.revision.into(), note.into()]).await?;
        connection.commit().await?;
        self.lease.sound();
        Ok(())
    }
}
