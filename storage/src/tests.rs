//! One suite for both engines: each test runs against a new SQLite file and against a new database of a real PostgreSQL.

use std::sync::Arc;

use ekm_core::catalog::{SealedChange, SealedHead, SealedRow};
use ekm_tests::postgres::{self, Cluster};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::connection::Connection;
use crate::{CatalogStore, Commit, Frontend, Name, PostgresOptions, SnapshotFile, StorageError, Tls, statements};

struct Fixture {
    store: Arc<CatalogStore>,
    directory: tempfile::TempDir,
}

fn options(database: &postgres::Database) -> PostgresOptions {
    let host = |host: &String| {
        let (name, port) = host.rsplit_once(':').unwrap();
        (name.to_owned(), port.parse().unwrap())
    };
    PostgresOptions {
        hosts: database.hosts.iter().map(host).collect(),
        database: database.name.clone(),
        user: database.user.clone(),
        password: Some(database.password.clone().into()),
        tls: Tls::VerifyFull { ca_file: database.ca_file.clone(), client: None },
        prefer_follower: false,
    }
}

async fn sqlite() -> Fixture {
    let directory = tempfile::tempdir().unwrap();
    let store = CatalogStore::open_sqlite(&directory.path().join("catalog.db"), true).await.unwrap();
    Fixture { store: Arc::new(store), directory }
}

async fn postgresql() -> Fixture {
    let store = CatalogStore::postgres(options(&postgres::database()));
    Fixture { store: Arc::new(store), directory: tempfile::tempdir().unwrap() }
}

/// Runs a test on both engines, the second time as `…::postgresql`.
macro_rules! on_both {
    ($($name:ident($fixture:ident) $body:block)*) => { $(
        mod $name {
            use super::*;

            async fn run($fixture: Fixture) $body

            #[tokio::test]
            async fn sqlite() {
                run(super::sqlite().await).await;
            }

            #[tokio::test]
            async fn postgresql() {
                run(super::postgresql().await).await;
            }
        }
    )* };
}

fn head(revision: u64) -> SealedHead {
    SealedHead { catalog: Uuid::nil(), revision, body: format!("head {revision}").into_bytes() }
}

fn row(kind: &str, id: u128, revision: u64) -> SealedRow {
    SealedRow { kind: kind.to_owned().into(), id: Uuid::from_u128(id), revision, body: vec![0, 1, 255] }
}

/// Makes one change, whose rows carry its revision.
async fn change(store: &CatalogStore, rows: &[SealedRow], names: &[Name<'_>]) -> Result<u64, StorageError> {
    let write = store.write().await?;
    let revision = write.head().map_or(0, |head| head.revision) + 1;
    let rows: Vec<_> = rows.iter().map(|row| SealedRow { revision, ..row.clone() }).collect();
    let change = SealedChange { revision, body: vec![7] };
    let head = head(revision);
    write.commit(Commit { head: &head, rows: &rows, names, change: &change, due: &[], request: None }).await?;
    Ok(revision)
}

async fn all_rows(store: &CatalogStore) -> (SealedHead, Vec<SealedRow>) {
    let mut rows = Vec::new();
    let head = store
        .read_all(async |page| {
            rows.extend(page);
            Ok(())
        })
        .await
        .unwrap();
    (head, rows)
}

on_both! {
    every_statement_is_valid(fixture) {
        fixture.store.migrate().await.unwrap();
        let mut lease = fixture.store.writer().await.unwrap();
        let is_postgres = lease.connection().is_postgres();
        let only_postgres = [&statements::NOTIFY, &statements::IS_FOLLOWER, &statements::CLOCK];
        for statement in statements::ALL.iter().chain(only_postgres.iter().filter(|_| is_postgres)) {
            let columns = lease.connection().prepare(statement).await;
            let columns = columns.unwrap_or_else(|error| panic!("{}: {error}", statement.sql));
            assert_eq!(columns, statement.columns.len(), "{}", statement.sql);
        }
    }

    wraps_add_up_over_all_frontends(fixture) {
        fixture.store.migrate().await.unwrap();
        let [a, b] = [1, 2].map(Uuid::from_u128);
        assert_eq!(fixture.store.add_wraps(&[(b, 1, 5), (a, 1, 7)]).await.unwrap(), [5, 7]);
        assert_eq!(fixture.store.add_wraps(&[(a, 1, 1), (a, 2, 1), (b, 1, 1 << 32)]).await.unwrap(), [8, 1, (1 << 32) + 5]);
        assert!(fixture.store.add_wraps(&[]).await.unwrap().is_empty());
    }

    an_empty_database_says_that_it_is_empty_and_migrating_twice_does_no_harm(fixture) {
        assert!(matches!(fixture.store.schema().await.unwrap().check(), Err(StorageError::Empty)));
        let first = fixture.store.migrate().await.unwrap();
        assert_eq!(fixture.store.migrate().await.unwrap(), first);
        assert_eq!((first.version, first.usable_from), (Some(first.supported_to), 2));
        first.check().unwrap();
        assert_eq!(fixture.store.head().await.unwrap(), None);
    }

    a_newer_schema_is_used_as_long_as_it_suits_this_program_and_refused_after_that(fixture) {
        fixture.store.migrate().await.unwrap();
        change(&fixture.store, &[row("key", 1, 0)], &[]).await.unwrap();
        // A later program has migrated: a column more. This one goes on.
        let mut lease = fixture.store.writer().await.unwrap();
        lease.connection().script("ALTER TABLE records ADD COLUMN note TEXT").await.unwrap();
        let applied = if lease.connection().is_postgres() {
            "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) VALUES (5, 'x', TRUE, ''::BYTEA, 0)"
        } else {
            "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) VALUES (5, 'x', TRUE, x'', 0)"
        };
        lease.connection().script(applied).await.unwrap();
        lease.sound();
        fixture.store.schema().await.unwrap().check().unwrap();
        fixture.store.migrate().await.unwrap();
        assert_eq!(change(&fixture.store, &[row("key", 1, 0)], &[]).await.unwrap(), 2);
        assert_eq!(all_rows(&fixture.store).await.1.len(), 1);

        let mut lease = fixture.store.writer().await.unwrap();
        lease.connection().script("UPDATE usable_from SET schema_version = 5").await.unwrap();
        lease.sound();
        let refused = fixture.store.schema().await.unwrap().check().unwrap_err();
        assert!(refused.to_string().contains("run a newer ekm"), "{refused}");
        assert!(fixture.store.migrate().await.is_err());
    }

    what_a_change_writes_is_there_with_its_revision(fixture) {
        let store = &fixture.store;
        store.migrate().await.unwrap();
        let name = [Name { kind: "key", name: "v0/keys/a", id: Uuid::from_u128(1) }];
        assert_eq!(change(store, &[row("key", 1, 0), row("space", 1, 0)], &name).await.unwrap(), 1);
        assert_eq!(change(store, &[row("key", 2, 0)], &[]).await.unwrap(), 2);
        assert_eq!(change(store, &[row("key", 1, 0)], &[]).await.unwrap(), 3);

        assert_eq!(store.head().await.unwrap(), Some(head(3)));
        assert_eq!(all_rows(store).await, (head(3), vec![row("key", 1, 3), row("key", 2, 2), row("space", 1, 1)]));
        let newer = store.read_since(1).await.unwrap();
        assert_eq!(newer, Some((head(3), vec![row("key", 2, 2), row("key", 1, 3)])));
        assert_eq!(store.row("key", Uuid::from_u128(2)).await.unwrap(), Some(row("key", 2, 2)));
        assert_eq!(store.row("policy", Uuid::from_u128(2)).await.unwrap(), None);
        assert_eq!(store.id_of("key", "v0/keys/a").await.unwrap(), Some(Uuid::from_u128(1)));
        let log = store.changes(1, 10).await.unwrap();
        assert_eq!(log.iter().map(|change| change.revision).collect::<Vec<_>>(), [2, 3]);
        let newest_first = store.changes_before(3, 10).await.unwrap();
        assert_eq!(newest_first.iter().map(|change| change.revision).collect::<Vec<_>>(), [2, 1]);
        assert_eq!(store.rows("key", Some(Uuid::from_u128(1)), 10).await.unwrap(), [row("key", 2, 2)]);
    }

    a_name_is_given_out_once_and_a_change_that_wants_it_again_leaves_nothing(fixture) {
        let store = &fixture.store;
        store.migrate().await.unwrap();
        let name = |id| [Name { kind: "key", name: "v0/keys/a", id: Uuid::from_u128(id) }];
        change(store, &[row("key", 1, 0)], &name(1)).await.unwrap();
        let again = change(store, &[row("key", 2, 0)], &name(2)).await;
        assert!(matches!(again, Err(StorageError::Taken(path)) if path == "v0/keys/a"));
        assert_eq!(all_rows(store).await, (head(1), vec![row("key", 1, 1)]));
        let other_kind = [Name { kind: "space", name: "v0/keys/a", id: Uuid::from_u128(3) }];
        change(store, &[], &other_kind).await.unwrap();
    }

    names_are_listed_in_the_order_of_their_bytes(fixture) {
        let store = &fixture.store;
        store.migrate().await.unwrap();
        let sorted = ["v0/keys/A", "v0/keys/a", "v0/keys/a-b", "v0/keys/a/b", "v0/keys/aa", "v0/keys/b"];
        for name in sorted.iter().rev() {
            let name = Name { kind: "key", name, id: Uuid::new_v4() };
            change(store, &[], &[name]).await.unwrap();
        }
        let names = store.names("key", "", 10).await.unwrap();
        assert_eq!(names.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), sorted);
        assert_eq!(store.names("key", "v0/keys/a/b", 1).await.unwrap()[0].0, "v0/keys/aa");
    }

    a_change_that_is_dropped_or_abandoned_leaves_nothing(fixture) {
        let store = &fixture.store;
        store.migrate().await.unwrap();
        change(store, &[], &[]).await.unwrap();
        drop(store.write().await.unwrap());
        store.write().await.unwrap().abandon().await.unwrap();
        assert_eq!(change(store, &[], &[]).await.unwrap(), 2);
    }

    writers_take_their_turns_and_revisions_have_no_gaps(fixture) {
        fixture.store.migrate().await.unwrap();
        change(&fixture.store, &[], &[]).await.unwrap();
        let others = (0..4).map(|_| async {
            let store = match &fixture.store.engine {
                crate::Engine::Sqlite { file, .. } => CatalogStore::open_sqlite(file, false).await.unwrap(),
                crate::Engine::Postgres(options) => CatalogStore::postgres(options.clone()),
            };
            let mut revisions = Vec::new();
            for _ in 0..10 {
                revisions.push(change(&store, &[], &[]).await.unwrap());
            }
            revisions
        });
        let mut revisions: Vec<_> = futures_util::future::join_all(others).await.into_iter().flatten().collect();
        revisions.sort_unstable();
        assert_eq!(revisions, (2..=41).collect::<Vec<_>>());
    }

    a_request_is_remembered_with_its_answer(fixture) {
        let store = &fixture.store;
        store.migrate().await.unwrap();
        let write = store.write().await.unwrap();
        let (head, change) = (head(1), SealedChange { revision: 1, body: vec![] });
        let request = Some(("alice 1", b"answer".as_slice()));
        write.commit(Commit { head: &head, rows: &[], names: &[], change: &change, due: &[], request }).await.unwrap();
        assert_eq!(store.request("alice 1").await.unwrap(), Some((1, b"answer".to_vec())));
        assert_eq!(store.request("bob 1").await.unwrap(), None);
    }

    what_is_due_is_listed_until_it_is_not(fixture) {
        let store = &fixture.store;
        store.migrate().await.unwrap();
        let (now, id) = (OffsetDateTime::now_utc(), Uuid::from_u128(1));
        for (revision, at) in [(1, Some(now)), (2, Some(now + time::Duration::HOUR)), (3, None)] {
            let write = store.write().await.unwrap();
            let (head, change, due) = (head(revision), SealedChange { revision, body: vec![] }, [("key", id, at)]);
            write.commit(Commit { head: &head, rows: &[], names: &[], change: &change, due: &due, request: None }).await.unwrap();
            let is_due = async |at| store.due(at).await.unwrap().contains(&("key".to_owned(), id));
            assert_eq!(is_due(now).await, revision == 1);
            assert_eq!(is_due(now + time::Duration::DAY).await, revision < 3);
        }
    }

    frontends_say_that_they_are_there_until_they_sign_off(fixture) {
        let store = &fixture.store;
        store.migrate().await.unwrap();
        let seen_at = OffsetDateTime::now_utc().truncate_to_second();
        let frontend = |instance: &str, seen_at| Frontend {
            instance: instance.into(), name: "host".into(), version: "1".into(), revision: 3, seen_at, unfit: "x".into(),
        };
        store.report(&frontend("old", seen_at - 2 * time::Duration::DAY)).await.unwrap();
        store.report(&frontend("a", seen_at)).await.unwrap();
        assert_eq!(store.frontends().await.unwrap(), [frontend("a", seen_at)]);
        store.sign_off("a").await.unwrap();
        assert_eq!(store.frontends().await.unwrap(), []);
    }

    a_catalog_of_many_pages_is_read_in_one_consistent_state(fixture) {
        let store = &fixture.store;
        store.migrate().await.unwrap();
        let rows: Vec<_> = (0..4500).map(|id| row("key", id, 0)).collect();
        change(store, &rows, &[]).await.unwrap();
        assert_eq!(store.read_since(0).await.unwrap(), None, "that is no delta");
        let mut pages = 0;
        let head_then = store.read_all(async |_| {
            pages += 1;
            // A change in between belongs to the next state. SQLite's writers and readers are two connections here.
            if pages == 1 { change(store, &[row("key", 9999, 0)], &[]).await.map(drop) } else { Ok(()) }
        }).await.unwrap();
        assert_eq!((head_then, pages), (head(1), 3));
        assert_eq!(all_rows(store).await.1.len(), 4501);
    }

    a_copy_on_disk_holds_the_same_rows_and_follows(fixture) {
        let store = &fixture.store;
        store.migrate().await.unwrap();
        change(store, &[row("key", 1, 0), row("key", 2, 0)], &[]).await.unwrap();
        let file = fixture.directory.path().join("snapshot.db");
        let copy = SnapshotFile::open(&file).await.unwrap();
        let keys = vec![("hsm".to_owned(), vec![1, 2, 3])];
        let mut saving = copy.replace().await.unwrap();
        let read = store.read_all(async |rows| saving.rows(&rows).await).await.unwrap();
        saving.finish(&read, &keys, b"note").await.unwrap();
        drop(copy);

        let copy = SnapshotFile::open(&file).await.unwrap();
        assert_eq!(all_rows(copy.store()).await, all_rows(store).await);
        assert_eq!(copy.store().catalog_keys().await.unwrap(), keys);
        assert_eq!(copy.note().await.unwrap(), Some(b"note".to_vec()));
        change(store, &[row("key", 2, 0)], &[]).await.unwrap();
        let (head, rows) = store.read_since(1).await.unwrap().unwrap();
        let mut saving = copy.update().await.unwrap();
        saving.rows(&rows).await.unwrap();
        saving.finish(&head, &keys, b"later").await.unwrap();
        assert_eq!(all_rows(copy.store()).await, all_rows(store).await);

        // Interrupted: the file stays what it was.
        let mut saving = copy.replace().await.unwrap();
        saving.rows(&[row("key", 3, 9)]).await.unwrap();
        drop(saving);
        assert_eq!(all_rows(copy.store()).await, all_rows(store).await);
        use std::os::unix::fs::PermissionsExt;
        assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    }
}

#[tokio::test]
async fn a_sqlite_file_is_not_made_by_mistake_and_its_replacement_is_noticed() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("catalog.db");
    assert!(matches!(CatalogStore::open_sqlite(&file, false).await, Err(StorageError::Open { .. })));
    assert!(!file.exists());
    let store = CatalogStore::open_sqlite(&file, true).await.unwrap();
    store.migrate().await.unwrap();
    std::fs::rename(&file, directory.path().join("moved.db")).unwrap();
    assert!(matches!(store.head().await, Err(StorageError::Replaced(_))));
    std::fs::write(&file, b"").unwrap();
    assert!(matches!(store.head().await, Err(StorageError::Replaced(_))));
}

#[tokio::test]
async fn a_file_that_is_no_database_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("catalog.db");
    std::fs::write(&file, vec![b'x'; 5000]).unwrap();
    assert!(matches!(CatalogStore::open_sqlite(&file, false).await, Err(StorageError::Open { .. })));
}

#[tokio::test]
async fn a_server_that_another_authority_signed_is_refused() {
    let database = postgres::database();
    let other = rcgen::generate_simple_self_signed(vec!["localhost".into()]).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let ca_file = directory.path().join("other.pem");
    std::fs::write(&ca_file, other.cert.pem()).unwrap();
    let store = CatalogStore::postgres(PostgresOptions {
        tls: Tls::VerifyFull { ca_file, client: None },
        ..options(&database)
    });
    let refused = store.head().await.unwrap_err();
    assert!(matches!(&refused, StorageError::Unreachable(text) if text.contains("certificate")), "{refused}");
}

#[tokio::test]
async fn the_leader_is_found_among_the_hosts_and_a_notification_comes_from_it() {
    let mut cluster = Cluster::start_own();
    let follower = cluster.follower();
    let database = cluster.database();
    let leader_only = options(&database);
    let followed = options(&follower.showing(&database));
    let hosts = [followed.hosts.clone(), leader_only.hosts.clone()].concat();
    let store = CatalogStore::postgres(PostgresOptions { hosts, ..leader_only.clone() });
    store.migrate().await.unwrap();
    let mut listener = store.listen().await.unwrap().unwrap();
    assert_eq!(change(&store, &[row("key", 1, 0)], &[]).await.unwrap(), 1);
    assert_eq!(tokio::time::timeout(std::time::Duration::from_secs(10), listener.changed()).await.unwrap().unwrap(), 1);

    follower.catch_up_with(&cluster);
    let reader = CatalogStore::postgres(followed);
    assert_eq!(reader.head().await.unwrap(), Some(head(1)), "a follower will do for reading");
    assert!(matches!(reader.write().await, Err(StorageError::NoLeader(_))));
    assert!(matches!(reader.listen().await, Err(StorageError::NoLeader(_))));

    follower.promote();
    cluster.kill();
    let mut tries = 0;
    while let Err(error) = change(&store, &[], &[]).await {
        tries += 1;
        assert!(tries < 100, "the new leader is never found: {error}");
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
}

#[tokio::test]
async fn a_server_that_stops_answering_is_not_waited_for_for_ever() {
    let cluster = Cluster::start_own();
    let store = CatalogStore::postgres(options(&cluster.database()));
    store.migrate().await.unwrap();
    change(&store, &[], &[]).await.unwrap();
    cluster.pause();
    let hung = store.head().await;
    cluster.resume();
    assert!(matches!(hung, Err(StorageError::Timeout(_) | StorageError::Unreachable(_))), "{hung:?}");
    assert_eq!(store.head().await.unwrap(), Some(head(1)));
}

#[tokio::test]
async fn everything_but_notifications_works_through_a_transaction_pooler() {
    let database = postgres::database();
    let pooler = postgres::PgBouncer::before(&database);
    let store = CatalogStore::postgres(options(&pooler.database));
    store.migrate().await.unwrap();
    for revision in 1..=20 {
        assert_eq!(change(&store, &[row("key", 1, 0)], &[]).await.unwrap(), revision);
        assert_eq!(all_rows(&store).await, (head(revision), vec![row("key", 1, revision)]));
    }
}

#[test]
fn no_connection_is_shared_before_it_is_sound() {
    // Leases are moved between tasks; a connection in a broken transaction never is.
    fn is_send<T: Send>() {}
    is_send::<Connection>();
    is_send::<CatalogStore>();
}

/// A pooler gives a server's connection to the next client as soon as a transaction is over, and outside of one that is even between the
/// parsing of a statement and its execution.
#[tokio::test(flavor = "multi_thread")]
async fn through_a_pooler_the_schema_is_never_the_answer_to_somebody_elses_question() {
    let bouncer = postgres::PgBouncer::before(&postgres::database());
    let store = || CatalogStore::postgres(options(&bouncer.database));
    store().migrate().await.unwrap();
    let mut clients = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let store = store();
        clients.spawn(async move {
            for _ in 0..100 {
                assert_eq!(store.schema().await.unwrap().version, Some(*crate::schema::SUPPORTED.end()));
            }
        });
    }
    while let Some(client) = clients.join_next().await {
        client.unwrap();
    }
}
