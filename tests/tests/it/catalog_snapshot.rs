//! A frontend's own copy of the catalog: good enough to start from while the database is away, and never believed when it is not sound.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::scope;
use std::time::Duration;

use ekm_tests::postgres::Cluster;
use ekm_tests::{Deployment, Directory, Ekm, base64, unbase64};
use serde_json::json;

const LINES: &str = "snapshot_file = \"snapshot.db\"\npoll_interval_ms = 100\nverify_interval_s = 1";
const DEMO: &str = "v0/keys/demo";
const REVOKED: &str = "v0/keys/revoked";

fn file(directory: &Directory) -> PathBuf {
    directory.path().join("snapshot.db")
}

/// A frontend that knows two keys, one of them disabled, and has written its copy.
fn knowing(deployment: &Deployment, directory: &Directory) -> Ekm {
    let ekm = deployment.start_with(directory, LINES);
    for path in [DEMO, REVOKED] {
        ekm.make_key(path);
    }
    ekm.change(json!({"type": "key-disable", "path": REVOKED}));
    saved(&ekm);
    ekm.eventually("in use", || ekm.try_wrap(REVOKED).0 == 400 && ekm.try_wrap(DEMO).0 == 200);
    ekm
}

fn saved(ekm: &Ekm) {
    let revision = ekm.show("/v1/catalog").json()["revision"].as_f64().unwrap();
    ekm.eventually("saved", || ekm.metric("ekm_snapshot_file_revision") >= revision);
}

/// One file of the copy, without its log.
fn settled(from: &Path, to: &Path) {
    for suffix in ["", "-wal", "-shm"] {
        let name = |path: &Path| PathBuf::from(format!("{}{suffix}", path.display()));
        let _ = fs::remove_file(name(to));
        if name(from).exists() {
            fs::copy(name(from), name(to)).unwrap();
        }
    }
}

#[test]
fn without_a_database_the_copy_is_served_from_and_grows_old_and_a_damaged_one_is_not() {
    let mut cluster = Cluster::start_own_with(&["fsync = off"]);
    let deployment = Deployment::on(cluster.database(), &[]);
    let other = Deployment::on(cluster.database(), &[]);
    let directory = deployment.directory();
    let ekm = knowing(&deployment, &directory);
    // A copy of another catalog, with the same key in the same place.
    let foreign = other.directory();
    drop(knowing(&other, &foreign));
    // An older copy, from before the key was disabled.
    ekm.change(json!({"type": "key-enable", "path": REVOKED}));
    saved(&ekm);
    let old = deployment.directory();
    drop(ekm);
    settled(&file(&directory), &file(&old));
    let ekm = deployment.start_with(&directory, LINES);
    ekm.change(json!({"type": "key-disable", "path": REVOKED}));
    saved(&ekm);
    let newer = ekm.try_wrap(DEMO).1;
    let mut newer = unbase64(&newer);
    newer[20] = 9; // a version that nobody has seen
    let newer = base64(newer);
    assert_eq!(ekm.try_unwrap(DEMO, &newer), 400, "the catalog was read just now");

    let blank = deployment.directory();
    drop(ekm);
    cluster.stop();
    let good = fs::read(file(&directory)).unwrap();
    assert!(
        !directory.path().join("snapshot.db-wal").exists()
            || fs::metadata(directory.path().join("snapshot.db-wal")).unwrap().len() < 4_000_000
    );

    // Nothing to start from: up, and ready as soon as the database comes.
    let waiting = deployment.start_unready(&blank, LINES);
    assert_eq!((waiting.ops("/livez").status, waiting.ops("/readyz").status), (200, 503));
    assert_eq!([DEMO, "v0/keys/unknown"].map(|path| waiting.try_wrap(path).0), [503, 503]);

    let ekm = deployment.start_with(&directory, LINES);
    assert_eq!([DEMO, REVOKED].map(|path| ekm.try_wrap(path).0), [200, 400]);
    assert!(ekm.log().contains("started from the snapshot on disk"));
    assert!(ekm.state().contains("[!] catalog not followed: "), "{}", ekm.state());
    let refused = ekm.ask(&json!({"command": {"type": "key-enable", "path": REVOKED}}));
    assert_eq!(refused.status, 503, "{}", refused.text());

    let damaged: Vec<(String, Damage)> = damages(good.len());
    // Four at a time: each is a process of its own.
    for chunk in damaged.chunks(4) {
        scope(|scope| {
            for (what, damage) in chunk {
                let (deployment, directory, foreign) = (&deployment, &directory, &foreign);
                scope.spawn(move || {
                    let copy = deployment.directory();
                    settled(&file(directory), &file(&copy));
                    damage(&file(&copy), &file(foreign));
                    let ekm = deployment.start_unready(&copy, LINES);
                    ekm.eventually("decided", || ekm.log().contains("catalog not followed"));
                    let found = [DEMO, REVOKED, "v0/keys/unknown"].map(|path| ekm.try_wrap(path).0);
                    let log = ekm.log();
                    if log.contains("started from the snapshot on disk") {
                        assert!(matches!(found, [200, 400, 404 | 503]), "{what}: {found:?}\n{log}");
                    } else {
                        assert_eq!(found, [503; 3], "{what}\n{log}");
                        assert!(log.contains("snapshot_refused"), "{what}\n{log}");
                        assert!(copy.path().join("snapshot.refused").exists(), "{what}");
                    }
                    assert_eq!(ekm.ops("/livez").status, 200, "{what}");
                });
            }
        });
    }
    let old = deployment.start_with(&old, LINES);
    assert_eq!([DEMO, REVOKED].map(|path| old.try_wrap(path).0), [200, 200], "what it knew last");

    ekm.eventually("stale", || ekm.try_wrap("v0/keys/unknown").0 == 503);
    assert_eq!([DEMO, REVOKED].map(|path| ekm.try_wrap(path).0), [200, 400], "known keys go on");
    assert_eq!(ekm.try_unwrap(DEMO, &newer), 503, "a version that others may have made since");

    cluster.start();
    waiting.eventually("ready", || waiting.ops("/readyz").status == 200);
    for ekm in [&ekm, &old, &waiting] {
        ekm.eventually("current", || {
            [DEMO, REVOKED, "v0/keys/unknown"].map(|path| ekm.try_wrap(path).0) == [200, 400, 404]
        });
    }
}

type Damage = Box<dyn Fn(&Path, &Path) + Sync + Send>;

/// Ways to spoil a file of this length; each is given the file, and one of another catalog.
fn damages(length: usize) -> Vec<(String, Damage)> {
    fn bytes(change: impl Fn(&mut Vec<u8>) + Sync + Send + 'static) -> Damage {
        Box::new(move |file, _| {
            let mut content = fs::read(file).unwrap();
            change(&mut content);
            fs::write(file, content).unwrap();
        })
    }
    let mut all: Vec<(String, Damage)> = vec![
        ("empty".into(), bytes(Vec::clear)),
        ("half".into(), bytes(move |content| content.truncate(length / 2))),
        ("without its end".into(), bytes(move |content| content.truncate(length - 1000))),
        ("text".into(), bytes(|content| *content = b"not a database".to_vec())),
        ("doubled".into(), bytes(|content| content.extend(content.clone()))),
        ("of another catalog".into(), Box::new(|file, foreign| settled(foreign, file))),
        (
            "a directory".into(),
            Box::new(|file, _| {
                fs::remove_file(file).unwrap();
                fs::create_dir(file).unwrap();
            }),
        ),
    ];
    for part in 0..5 {
        let at = length * part / 5 + 37;
        all.push((
            format!("flipped around {at}"),
            bytes(move |content| {
                let end = (at + 600).min(content.len());
                content[at..end].iter_mut().step_by(50).for_each(|byte| *byte ^= 0x21);
            }),
        ));
    }
    all
}

#[test]
fn a_copy_that_cannot_be_written_is_told_and_stops_nothing() {
    let deployment = Deployment::new(&[]);
    let directory = deployment.directory();
    let ekm = deployment.start_with(&directory, "snapshot_file = \"nowhere/snapshot.db\"");
    ekm.make_key(DEMO);
    ekm.eventually("served", || ekm.try_wrap(DEMO).0 == 200);
    assert!(ekm.log().contains("snapshot_write"), "{}", ekm.log());
    assert_eq!(ekm.metric("ekm_snapshot_file_revision"), 0.0);
    // The place comes later.
    fs::create_dir(directory.path().join("nowhere")).unwrap();
    ekm.change(json!({"type": "key-disable", "path": DEMO}));
    saved(&ekm);
}

#[test]
fn a_wrapped_key_that_somebody_spoiled_in_the_database_does_not_reach_the_copies() {
    let deployment = Deployment::new(&[]);
    let directory = deployment.directory();
    let ekm = knowing(&deployment, &directory);
    for sql in [
        "UPDATE catalog_keys SET wrapped = set_byte(wrapped, 20, get_byte(wrapped, 20) # 1)",
        "DELETE FROM catalog_keys",
    ] {
        deployment.database.psql(sql);
        ekm.change(json!({"type": "key-enable", "path": REVOKED}));
        ekm.change(json!({"type": "key-disable", "path": REVOKED}));
        saved(&ekm);
    }
    assert!(ekm.log().contains("\"code\":\"catalog_key\""), "{}", ekm.log());
    drop(ekm);
    let again = deployment.start_with(&directory, LINES);
    assert_eq!([DEMO, REVOKED].map(|path| again.try_wrap(path).0), [200, 400]);
}

#[test]
fn a_copy_knows_better_than_a_database_that_was_taken_back() {
    let deployment = Deployment::new(&[]);
    let directory = deployment.directory();
    let ekm = knowing(&deployment, &directory);
    ekm.change(json!({"type": "key-enable", "path": REVOKED}));
    deployment.database.psql("CREATE TABLE old AS SELECT * FROM records; CREATE TABLE old_head AS SELECT * FROM head");
    ekm.change(json!({"type": "key-disable", "path": REVOKED}));
    saved(&ekm);
    drop(ekm);
    deployment.database.psql(
        "BEGIN; DELETE FROM records; INSERT INTO records SELECT * FROM old; DELETE FROM head; INSERT INTO head SELECT * FROM old_head; \
         DELETE FROM changes WHERE revision > (SELECT revision FROM head); COMMIT",
    );
    let again = deployment.start_with(&directory, LINES);
    std::thread::sleep(Duration::from_millis(1500));
    assert_eq!([DEMO, REVOKED].map(|path| again.try_wrap(path).0), [200, 400], "{}", again.state());
    assert!(again.state().contains("ekm catalog accept-restore"), "{}", again.state());
    drop(again);
    let third = deployment.start_with(&Arc::clone(&directory), LINES);
    assert_eq!(third.try_wrap(REVOKED).0, 400, "nor does it forget");
}

#[test]
fn a_row_that_sql_has_changed_does_not_replace_the_good_one_in_the_copy() {
    let mut cluster = Cluster::start_own_with(&["fsync = off"]);
    let deployment = Deployment::on(cluster.database(), &[]);
    let directory = deployment.directory();
    let ekm = knowing(&deployment, &directory);
    let id = ekm.show(&format!("/v1/keys/{REVOKED}")).json()["id"].as_str().unwrap().to_owned();
    // No delta fits any more: the next change has the whole catalog read.
    deployment.database.psql(&format!("UPDATE records SET revision = revision + 1000 WHERE id = '{id}'"));
    ekm.change(json!({"type": "key-disable", "path": DEMO}));
    ekm.eventually("followed", || ekm.try_wrap(DEMO).0 == 400);
    // The copy is dealt with before the next change is in use.
    ekm.make_key("v0/keys/later");
    ekm.eventually("served", || ekm.try_wrap("v0/keys/later").0 == 200);
    assert!(ekm.metric("ekm_catalog_rejected_rows") >= 1.0);
    drop(ekm);
    let kept = deployment.directory();
    settled(&file(&directory), &file(&kept));

    // A frontend that starts from it still knows better than the database, and saves again as soon as that is sound.
    let ekm = deployment.start_with(&directory, LINES);
    ekm.eventually("followed", || ekm.try_wrap(DEMO).0 == 400);
    assert!(ekm.metric("ekm_catalog_rejected_rows") >= 1.0, "{}", ekm.state());
    assert_eq!(ekm.try_wrap(REVOKED).0, 400, "{}", ekm.log());
    deployment.database.psql(&format!("UPDATE records SET revision = revision - 1000 WHERE id = '{id}'"));
    ekm.eventually("sound again", || ekm.metric("ekm_catalog_rejected_rows") == 0.0);
    saved(&ekm);
    drop(ekm);

    cluster.stop();
    for (directory, demo) in [(&kept, 200), (&directory, 400)] {
        let ekm = deployment.start_with(directory, LINES);
        assert!(ekm.log().contains("started from the snapshot on disk"), "{}", ekm.log());
        assert_eq!([DEMO, REVOKED].map(|path| ekm.try_wrap(path).0), [demo, 400], "{}", ekm.log());
    }
}
