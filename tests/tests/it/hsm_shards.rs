//! Two shards, each with HSMs of its own: what happens in one costs the other nothing, and keys move from one to the other.

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use ekm_tests::{Directory, Effect, Ekm, Fault, FaultyModule, SOFTHSM, key_create, run_ekm};
use serde_json::{Value, json};

use crate::cli::run;
use crate::hsm_drain::{two_replicas, wait_until};
use crate::hsm_replication::put_replication_key;

const SPACE: &str = "v0/cryptospaces/payments";
const KEY: &str = "v0/keys/card";

/// As [`two_replicas`], but hsm-b is a shard of its own, `payments`, with an audit log of its own. The catalog knows both. Each
/// shard has its replication key, if there are any.
fn two_shards(module: &str, replication_keys: Option<[u8; 2]>) -> Directory {
    let directory = two_replicas();
    let keys = replication_keys.into_iter().flatten();
    ["softhsm", "softhsm-b"].iter().zip(keys).for_each(|(token, key)| put_replication_key(&directory, token, key));
    let lines = replication_keys.map_or("", |_| "replication_key_label = \"ekm-replication\"\n");
    let file = directory.path().join("ekm.toml");
    let config = fs::read_to_string(&file).unwrap();
    let (main, second) = config.split_once("[[shard.replica]]\nname = \"hsm-b\"").unwrap();
    let payments = format!(
        "[[shard]]\nname = \"payments\"\naudit_file = \"payments.jsonl\"\ndeadline_ms = 2000\n{lines}[[shard.replica]]\nname = \"hsm-b\""
    );
    let main = main.replacen("[[shard]]\n", &format!("[[shard]]\n{lines}"), 1);
    let config = format!("{main}{payments}{}", second.replacen(SOFTHSM, module, 1));
    fs::write(&file, &config).unwrap();
    let patient = directory.path().join("migrate.toml");
    fs::write(&patient, format!("{config}\n[limits]\nrequest_deadline_ms = 20000\n")).unwrap();
    let migrated = run_ekm(&["catalog", "migrate", "--config", patient.to_str().unwrap()]);
    assert!(migrated.status.success(), "{migrated:?}");
    directory
}

fn start(directory: &Directory) -> Ekm {
    let ekm = Ekm::serve(directory, |config| config);
    wait_until(&ekm, "hsm-a", "serving");
    wait_until(&ekm, "hsm-b", "serving");
    ekm
}

fn make_key(ekm: &Ekm, path: &str, custody: &str) {
    let mut command = key_create(path);
    command["space"] = json!(SPACE);
    command["custody"] = json!(custody);
    ekm.change(command);
    ekm.eventually("known", || ekm.try_wrap(path).0 == 200);
}

fn shards_of(ekm: &Ekm, key: &str) -> Vec<Value> {
    let key = ekm.show(&format!("/v1/keys/{key}")).json();
    key["versions"].as_array().unwrap().iter().map(|version| version["shard"].clone()).collect()
}

/// In every custody that HSMs have a part in.
#[test]
fn a_signing_key_moves_to_another_shard_and_goes_on_to_sign_there() {
    let directory = two_shards(SOFTHSM, Some([7, 7]));
    let ekm = start(&directory);
    ekm.change(json!({"type": "space-create", "path": SPACE, "shard": "main"}));
    let keys = [("v0/keys/on-hsm", "hsm"), ("v0/keys/wrapped", "hsm-wrapped")];
    let sign = |key: &str| ekm.post(&format!("/{key}:asymmetricSign"), &json!({"data": "AA=="}).to_string()).status;
    let public = |key: &str| ekm.post(&format!("/{key}:getPublicKey"), "{}").json()["publicKey"].clone();
    for (key, custody) in keys {
        let mut command = key_create(key);
        (command["space"], command["custody"]) = (json!(SPACE), json!(custody));
        command["algorithm"] = json!("EC_SIGN_P256_SHA256");
        let verbs = ["asymmetricSign", "getPublicKey"];
        command["policy"] = json!({"own": {"rules": [{"callers": [ekm_tests::CALLER], "verbs": verbs}]}});
        ekm.change_here(&command);
        assert_eq!((sign(key), shards_of(&ekm, key)), (200, vec![json!("main")]));
    }
    let before = keys.map(|(key, _)| public(key));
    run(&ekm, &["space", "move", SPACE, "--to", "payments"]).ends(0);
    for (key, _) in keys {
        ekm.eventually("moved", || shards_of(&ekm, key) == [json!("payments")] && sign(key) == 200);
    }
    assert_eq!(keys.map(|(key, _)| public(key)), before);
    ekm.eventually("told", || ekm.metric("ekm_shard_requests_total{code=\"ok\",shard=\"payments\"}") >= 2.0);
}

#[test]
fn a_shard_whose_hsm_hangs_costs_no_other_shard_a_request() {
    let modules = tempfile::tempdir().unwrap();
    let faulty = FaultyModule::new(&modules.path().join("faulty"), Path::new(SOFTHSM));
    let directory = two_shards(faulty.path().to_str().unwrap(), None);
    let ekm = start(&directory);
    ekm.change(json!({"type": "space-create", "path": SPACE, "shard": "payments"}));
    make_key(&ekm, KEY, "hsm");
    assert_eq!(shards_of(&ekm, KEY), [json!("payments")]);
    ekm.eventually("healthy", || ekm.ops("/healthz").status == 200);

    faulty.inject(Fault::new(Effect::Hang));
    ekm.eventually("noticed", || ekm.ops("/healthz?shard=payments").status == 503);
    for _ in 0..50 {
        assert_eq!(ekm.unwrap(&ekm.wrap(b"x", b""), b"").status, 200, "{}", ekm.log());
    }
    assert_eq!(ekm.try_wrap(KEY).0, 503);
    ekm.eventually("not ready", || ekm.ops("/readyz?shard=payments").status == 503);
    assert_eq!([ekm.ops("/readyz").status, ekm.ops("/readyz?shard=main").status], [200, 200], "one shard is enough");
    assert_eq!([ekm.ops("/healthz").status, ekm.ops("/healthz?shard=main").status], [503, 200]);
    let report = ekm.ops("/healthz").json();
    assert_eq!((&report["shards"]["main"]["status"], &report["status"]), (&json!("ok"), &json!("failing")));
    let unknown = ekm.ops("/healthz?shard=retail");
    assert_eq!(
        (unknown.status, unknown.text().trim()),
        (404, "this frontend has no such shard; it has main, payments")
    );
    assert_eq!(ekm.metric("ekm_shard_healthy{shard=\"main\"}"), 1.0);
    assert_eq!(ekm.metric("ekm_shard_healthy{shard=\"payments\"}"), 0.0);
    assert!(ekm.metric("ekm_shard_requests_total{code=\"ok\",shard=\"main\"}") >= 100.0);

    faulty.clear();
    ekm.eventually("served again", || ekm.try_wrap(KEY).0 == 200);
    drop(ekm);
    let lines = |file: &str| fs::read_to_string(directory.path().join(file)).unwrap();
    let (payments, main) = (lines("payments.jsonl"), lines("audit.jsonl"));
    assert!(payments.lines().all(|line| line.contains("\"shard\":\"payments\"")), "{payments}");
    assert!(payments.contains("\"code\":\"ok\"") && main.contains("\"shard\":\"main\""));
    assert!(!main.contains("\"shard\":\"payments\""), "every line is where it belongs");
}

#[test]
fn a_crypto_space_moves_to_other_hsms_while_it_is_in_use_and_no_request_fails() {
    let directory = two_shards(SOFTHSM, Some([7, 7]));
    let ekm = start(&directory);
    run(&ekm, &["space", "create", SPACE]).ends(0);
    for (path, custody) in [(KEY, "hsm"), ("v0/keys/wrapped", "hsm-wrapped")] {
        make_key(&ekm, path, custody);
    }
    let old = ekm.try_wrap(KEY).1;
    let other =
        Ekm::serve(&directory, |config| config.replace("admin.sock", "other.sock").replace(".jsonl", "2.jsonl"));

    let dry = run(&ekm, &["space", "move", SPACE, "--to", "payments", "--dry-run"]).ends(3).stdout;
    assert!(dry.contains("2 keys would be brought to payments"), "{dry}");
    let (stop, done, failed) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for ekm in [&ekm, &other] {
            let (stop, done, failed) = (&stop, &done, &failed);
            scope.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    for key in [KEY, "v0/keys/wrapped"] {
                        let (status, blob) = ekm.try_wrap(key);
                        let good = status == 200 && ekm.try_unwrap(key, &blob) == 200;
                        if good { done } else { failed }.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
        }
        let moved = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let arguments = ["space", "move", SPACE, "--to", "payments", "--reason", "HSMs of its own"];
            let moved = run(&ekm, &arguments).ends(0).stdout;
            assert!(moved.contains(&format!("{SPACE} is in payments: 2 of 2 keys moved")), "{moved}");
            let before = done.load(Ordering::Relaxed);
            ekm.eventually("served", || done.load(Ordering::Relaxed) > before + 50);
        }));
        stop.store(true, Ordering::Relaxed);
        moved.unwrap();
    });
    assert_eq!(failed.into_inner(), 0, "of {}:\n{}", done.into_inner(), ekm.log());
    for key in [KEY, "v0/keys/wrapped"] {
        assert_eq!(shards_of(&ekm, key), [json!("payments")]);
    }
    assert_eq!(ekm.try_unwrap(KEY, &old), 200, "what was wrapped before the move");
    let again = run(&ekm, &["space", "move", SPACE, "--to", "payments"]).ends(0).stdout;
    assert!(again.contains("0 of 0 keys moved"), "{again}");

    // New versions are made in the new shard, and a frontend without the old one serves the keys.
    run(&ekm, &["key", "rotate", KEY]).ends(0);
    assert_eq!(shards_of(&ekm, KEY), [json!("payments"), json!("payments")]);
    drop((ekm, other));
    let alone = Ekm::serve(&directory, |config| {
        let (before, shards) = config.split_once("[[shard]]\n").unwrap();
        format!("{before}[[shard]]\n{}", shards.split_once("[[shard]]\n").unwrap().1)
    });
    wait_until(&alone, "hsm-b", "serving");
    assert_eq!(alone.try_unwrap(KEY, &old), 200);
    assert_eq!(alone.try_wrap("v0/keys/demo").0, 503, "a key of the other shard is no 404");
    assert!(alone.state().contains(" 0 versions that cannot be served"), "not its trouble: {}", alone.state());
}

#[test]
fn a_key_that_cannot_be_given_to_the_other_hsms_stays_where_it_is_and_in_use() {
    let directory = two_shards(SOFTHSM, Some([7, 8]));
    let ekm = start(&directory);
    run(&ekm, &["space", "create", SPACE, "--shard", "main"]).ends(0);
    make_key(&ekm, KEY, "hsm");
    let refused = || run(&ekm, &["space", "move", SPACE, "--to", "payments"]);
    refused().fails("keys_not_moved", "1 keys were not moved, and go on where they are");
    refused().fails("keys_not_moved", "is not on enough tokens of the shard 'payments'");
    assert_eq!(shards_of(&ekm, KEY), [json!("main")]);
    assert_eq!(ekm.try_wrap(KEY).0, 200);
    let unknown = run(&ekm, &["space", "create", "v0/cryptospaces/x", "--shard", "retail"]);
    unknown.fails("admin_invalid", "write one of those that this frontend has: main, payments");
}
