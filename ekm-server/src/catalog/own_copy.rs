//! This frontend's own copy of the catalog on disk, for starts while the database is away.

use std::path::{Path, PathBuf};
use std::time::Duration;

use ekm_core::catalog::ledger::Sum;
use ekm_core::catalog::{CatalogKey, Mirror, SealedHead, SealedRow, Tampered};
use ekm_core::custody::Custodian;
use ekm_core::software::KeyFile;
use ekm_storage::{CatalogStore, SnapshotFile, StorageError};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use super::open::{CatalogError, unlock};

/// What is noted beside the rows, sealed under the catalog key.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Note {
    /// The database that it is a copy of.
    location: String,
    /// When the database held exactly this, by this machine's clock.
    #[serde(with = "time::serde::rfc3339")]
    confirmed_at: OffsetDateTime,
}

/// The copy.
pub(super) struct OwnCopy {
    path: PathBuf,
    file: Option<SnapshotFile>,
    location: String,
    /// The revision that it holds; `None` if it has to be written anew.
    revision: Option<u64>,
}

/// A copy that was read.
pub(super) struct Loaded {
    pub(super) mirror: Mirror,
    pub(super) head: SealedHead,
    /// The catalog key's wrapped forms, one of which opened.
    pub(super) keys: Vec<(String, Vec<u8>)>,
    /// Since when the database has not confirmed it; `None` if the clock says that this is in the future.
    pub(super) age: Option<Duration>,
}

impl OwnCopy {
    pub(super) fn new(path: &Path, location: String) -> Self {
        Self { path: path.to_owned(), file: None, location, revision: None }
    }

    /// Reads the copy. One that is not sound, or not ours, is moved aside, and the start goes on without it. One that cannot be opened
    /// because the HSM is away stays.
    pub(super) async fn load(
        &mut self,
        custodian: &Custodian,
        key_file: Option<&KeyFile>,
    ) -> Result<Option<Loaded>, CatalogError> {
        if !self.path.exists() {
            return Ok(None);
        }
        match self.try_load(custodian, key_file).await {
            Ok(loaded) => {
                self.revision = Some(loaded.mirror.revision());
                Ok(Some(loaded))
            }
            Err(CatalogError::Locked(reason)) => Err(CatalogError::Locked(reason)),
            Err(error) => {
                self.file = None;
                let aside = self.path.with_extension("refused");
                let file = self.path.display();
                tracing::error!(
                    code = "snapshot_refused", %error, %file, aside = %aside.display(),
                    "the snapshot on disk is refused and moved aside; the catalog has to come from the database"
                );
                for extension in ["-wal", "-shm"] {
                    let _ = std::fs::remove_file(with_suffix(&self.path, extension));
                }
                let _ = std::fs::rename(&self.path, aside);
                Ok(None)
            }
        }
    }

    async fn try_load(&mut self, custodian: &Custodian, key_file: Option<&KeyFile>) -> Result<Loaded, CatalogError> {
        let file = SnapshotFile::open(&self.path).await?;
        let file = self.file.insert(file);
        let store = file.store();
        let head = store.head().await?.ok_or(StorageError::Empty)?;
        let keys = store.catalog_keys().await?;
        let key = unlock(head.catalog, &keys, custodian, key_file).await?;
        let note = file.note().await?.ok_or(StorageError::Empty)?;
        let note: Note = key.open_note("snapshot", &note).map_err(Tampered::Head)?;
        if note.location != self.location {
            let problem = format!("it is a copy of {}, and this deployment uses {}", note.location, self.location);
            return Err(Tampered::Head(problem).into());
        }
        let (head, mirror) = load(store, &Mirror::new(key)).await?;
        let age = (OffsetDateTime::now_utc() - note.confirmed_at).try_into().ok();
        Ok(Loaded { mirror, head, keys, age })
    }

    /// Brings the copy to the state that has just been read: the newer rows if it holds what came before, else everything. The file keeps
    /// what it has unless the new rows add up: a row that somebody has changed never replaces a good one.
    pub(super) async fn save(
        &mut self,
        store: &CatalogStore,
        key: &CatalogKey,
        before: u64,
        head: &SealedHead,
        rows: &[SealedRow],
        keys: &[(String, Vec<u8>)],
    ) -> Result<(), CatalogError> {
        // After a failure both stay empty: the file is opened anew, and written as a whole.
        let (file, held) = (self.file.take(), self.revision.take());
        let file = match file {
            Some(file) => file,
            None => SnapshotFile::open(&self.path).await?,
        };
        let note = Note { location: self.location.clone(), confirmed_at: OffsetDateTime::now_utc() };
        let note = key.seal_note("snapshot", &note)?;
        if held == Some(before) {
            let mut saving = file.update().await?;
            saving.rows(rows).await?;
            saving.finish(head, keys, &note).await?;
            (self.file, self.revision) = (Some(file), Some(head.revision));
            return Ok(());
        }
        let mut saving = file.replace().await?;
        let (mut sum, mut count) = (Sum::default(), 0);
        let found = store.read_all(async |rows| {
            rows.iter().for_each(|row| sum.add(&key.term(row)));
            count += rows.len() as u64;
            saving.rows(&rows).await
        });
        let found = found.await?;
        let opened = key.open_head(&found).map_err(Tampered::Head)?;
        if (sum, count) != (opened.sum, opened.rows) {
            return Err(Tampered::Rows.into());
        }
        if found.revision < head.revision {
            return Err(Tampered::Backwards { known: head.revision, found: found.revision }.into());
        }
        saving.finish(&found, keys, &note).await?;
        (self.file, self.revision) = (Some(file), Some(found.revision));
        Ok(())
    }

    /// Its place.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The revision that a start from it would begin with.
    pub(super) fn revision(&self) -> Option<u64> {
        self.revision
    }
}

/// Reads a whole catalog into a new mirror.
pub async fn load(store: &CatalogStore, before: &Mirror) -> Result<(SealedHead, Mirror), CatalogError> {
    let mut loading = before.begin_load();
    let head = store
        .read_all(async |rows| {
            loading.push(rows);
            Ok(())
        })
        .await?;
    let mirror = loading.finish(&head, before)?;
    Ok((head, mirror))
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}
