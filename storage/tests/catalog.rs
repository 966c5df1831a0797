//! The catalog against a real SQLite file.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use ekm_core::KeyPath;
use ekm_core::blob::VersionId;
use ekm_core::catalog::{Custody, KeyState, Purpose, VersionRecord};
use ekm_core::policy::Policy;
use ekm_storage::{CatalogStore, NewKey, StorageError};
use uuid::Uuid;

struct Fixture {
    store: CatalogStore,
    directory: tempfile::TempDir,
    space: KeyPath,
}

fn path(text: &str) -> KeyPath {
    KeyPath::parse(text).unwrap()
}

async fn fixture() -> Fixture {
    let directory = tempfile::tempdir().unwrap();
    let store = CatalogStore::open_sqlite(&directory.path().join("catalog.db"), true).await.unwrap();
    let space = path("v0/cryptospaces/s");
    store.ensure_space(&space).await.unwrap();
    Fixture { store, directory, space }
}

impl Fixture {
    async fn add(&self, key_path: &KeyPath) -> Result<Uuid, StorageError> {
        let id = Uuid::new_v4();
        let version = VersionRecord {
            id: VersionId { key: id, number: 1 },
            custody: Custody::Hsm,
            wrapped_material: None,
            check_blob: vec![1, 2, 3],
        };
        let (policy, space) = (Policy::allow_everybody(), &self.space);
        let new =
            NewKey { id, space, purpose: Purpose::Wrap, path: Some(key_path), policy: &policy, version: &version };
        self.store.add_key(new).await.map(|_| id)
    }
}

#[tokio::test]
async fn a_key_is_read_back_as_it_was_written_also_after_reopening() {
    let fixture = fixture().await;
    let id = fixture.add(&path("v0/keys/a")).await.unwrap();
    let file = fixture.directory.path().join("catalog.db");
    drop(fixture.store);
    let catalog = CatalogStore::open_sqlite(&file, false).await.unwrap().load().await.unwrap();
    let [key] = &catalog.keys[..] else { panic!("one key") };
    assert_eq!((key.id, key.state, key.purpose, key.primary), (id, KeyState::Enabled, Purpose::Wrap, 1));
    assert_eq!(key.paths, [path("v0/keys/a")]);
    assert_eq!(Policy::parse(&key.policy).unwrap(), Policy::allow_everybody());
    assert_eq!((key.versions[0].custody, &key.versions[0].check_blob[..]), (Custody::Hsm, &[1, 2, 3][..]));
    assert_eq!(catalog.spaces[0].path, fixture.space);
}

#[tokio::test]
async fn every_change_takes_exactly_one_revision_and_a_failed_one_none() {
    let fixture = fixture().await;
    assert_eq!(fixture.store.revision().await.unwrap(), 1);
    fixture.store.ensure_space(&fixture.space).await.unwrap();
    assert_eq!(fixture.store.revision().await.unwrap(), 1, "nothing changed");
    fixture.add(&path("v0/keys/a")).await.unwrap();
    assert!(matches!(fixture.add(&path("v0/keys/a")).await, Err(StorageError::PathTaken(_))));
    assert_eq!(fixture.store.revision().await.unwrap(), 2);
    assert_eq!(fixture.store.set_key_state(&path("v0/keys/a"), KeyState::Disabled).await.unwrap(), 3);
    assert_eq!(fixture.store.load().await.unwrap().keys[0].state, KeyState::Disabled);
    assert_eq!(fixture.store.load().await.unwrap().keys.len(), 1, "the refused key left nothing behind");
}

#[tokio::test]
async fn a_key_can_have_several_paths_and_a_path_only_one_key() {
    let fixture = fixture().await;
    let (a, b, alias) = (path("v0/keys/a"), path("v0/keys/b"), path("vpc/a"));
    fixture.add(&a).await.unwrap();
    fixture.add(&b).await.unwrap();
    fixture.store.add_path(&a, &alias).await.unwrap();
    assert!(matches!(fixture.store.add_path(&b, &alias).await, Err(StorageError::PathTaken(_))));
    assert!(matches!(fixture.store.add_path(&path("v0/none"), &path("x")).await, Err(StorageError::NotFound(_))));
    let keys = fixture.store.load().await.unwrap().keys;
    assert!(keys.iter().any(|key| key.paths == [a.clone(), alias.clone()]));
}

#[tokio::test]
async fn two_processes_that_add_the_same_path_at_once_make_one_key() {
    let fixture = fixture().await;
    let file = fixture.directory.path().join("catalog.db");
    let other = Fixture {
        store: CatalogStore::open_sqlite(&file, false).await.unwrap(),
        directory: tempfile::tempdir().unwrap(),
        space: fixture.space.clone(),
    };
    for round in 0..20 {
        let contested = path(&format!("v0/keys/{round}"));
        let (one, two) = tokio::join!(fixture.add(&contested), other.add(&contested));
        assert!(one.is_ok() ^ two.is_ok(), "{one:?} {two:?}");
    }
    assert_eq!(fixture.store.load().await.unwrap().keys.len(), 20);
}

#[tokio::test]
async fn a_missing_file_is_not_taken_for_an_empty_catalog() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("typo.db");
    assert!(matches!(CatalogStore::open_sqlite(&file, false).await, Err(StorageError::Open { .. })));
    assert!(!file.exists());
}

#[tokio::test]
async fn a_file_that_is_no_database_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("catalog.db");
    std::fs::write(&file, "this is a text file, long enough to be looked at as a database header").unwrap();
    assert!(CatalogStore::open_sqlite(&file, false).await.is_err());
}

#[tokio::test]
async fn a_file_that_is_replaced_or_moved_away_is_noticed() {
    let fixture = fixture().await;
    let file = fixture.directory.path().join("catalog.db");
    std::fs::rename(&file, file.with_extension("away")).unwrap();
    assert!(matches!(fixture.store.revision().await, Err(StorageError::Replaced(_))));
    std::fs::copy(file.with_extension("away"), &file).unwrap();
    assert!(matches!(fixture.store.revision().await, Err(StorageError::Replaced(_))));
    std::fs::rename(file.with_extension("away"), &file).unwrap();
    assert!(fixture.store.revision().await.is_ok());
}

#[tokio::test]
async fn a_new_catalog_is_for_its_owner_only_and_a_policy_can_be_exchanged() {
    use std::os::unix::fs::PermissionsExt;
    let fixture = fixture().await;
    let mode = std::fs::metadata(fixture.directory.path().join("catalog.db")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    fixture.add(&path("v0/keys/a")).await.unwrap();
    let policy = Policy::parse(r#"{"rules":[{"callers":["a@b"],"verbs":["wrap"]}]}"#).unwrap();
    assert_eq!(fixture.store.set_policy(&path("v0/keys/a"), &policy).await.unwrap(), 3);
    assert_eq!(Policy::parse(&fixture.store.load().await.unwrap().keys[0].policy).unwrap(), policy);
}
