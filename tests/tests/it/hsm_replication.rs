//! New keys get from one HSM to the others wrapped by a replication key, which a ceremony has put on all of them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use ekm_tests::{Directory, Ekm, SOFTHSM, key_create, run_ekm, set_up};
use serde_json::json;

use crate::cli::run;
use crate::hsm_drain::{serve, two_replicas};

const KEY: &str = "v0/keys/orders";

/// Two tokens, the named ones of which hold a replication key.
pub(crate) fn with_replication_key(holders: &[&str]) -> Directory {
    let directory = two_replicas();
    let file = directory.path().join("ekm.toml");
    let config = fs::read_to_string(&file).unwrap();
    let label = "[[shard]]\nreplication_key_label = \"ekm-replication\"\n";
    fs::write(&file, config.replacen("[[shard]]\n", label, 1)).unwrap();
    holders.iter().for_each(|token| put_replication_key(&directory, token, 7));
    directory
}

/// As in a ceremony; all of its bytes are the same.
pub(crate) fn put_replication_key(directory: &Directory, token: &str, byte: u8) {
    let value = directory.path().join("replication-key");
    fs::write(&value, [byte; 32]).unwrap();
    let pin = fs::read_to_string(directory.path().join("softhsm/pin")).unwrap();
    let output = Command::new("softhsm2-util")
        .args(["--import"])
        .arg(&value)
        .args(["--aes", "--token", "ekm-dev", "--label", "ekm-replication", "--id", "0e", "--pin", pin.trim()])
        .env("SOFTHSM2_CONF", directory.path().join(token).join("softhsm2.conf"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
}

fn start(directory: &Directory) -> Ekm {
    serve(directory, |config| config)
}

/// The token's objects, the newest last.
pub(crate) fn objects(directory: &Directory, token: &str) -> Vec<PathBuf> {
    let tokens = directory.path().join(token).join("tokens");
    let token = fs::read_dir(tokens).unwrap().next().unwrap().unwrap().path();
    let files = fs::read_dir(token).unwrap().map(|file| file.unwrap().path());
    let is_object = |file: &Path| file.extension().is_some_and(|extension| extension == "object");
    let mut objects: Vec<_> = files.filter(|file| is_object(file) && !file.ends_with("token.object")).collect();
    objects.sort_by_key(|file| file.metadata().unwrap().modified().unwrap());
    objects
}

fn with_one_hsm_only(ekm: &Ekm, drained: &str, work: impl FnOnce()) {
    assert_eq!(ekm.ask(&json!({"command": {"type": "hsm-drain", "name": drained}, "reason": "test"})).status, 200);
    ekm.eventually("drained", || ekm.state().contains(&format!("HSM replica {drained}: drained")));
    work();
    assert_eq!(ekm.ask(&json!({"command": {"type": "hsm-resume", "name": drained}, "reason": "test"})).status, 200);
    ekm.eventually("serving", || ekm.state().contains(&format!("HSM replica {drained}: serving")));
}

#[test]
fn a_new_key_is_on_every_replica_before_it_wraps_and_one_that_loses_it_gets_it_back() {
    let directory = with_replication_key(&["softhsm", "softhsm-b"]);
    let count = || ["softhsm", "softhsm-b"].map(|token| objects(&directory, token).len());
    let before = count();
    let ekm = start(&directory);
    ekm.make_key(KEY);
    assert_eq!(count(), before.map(|count| count + 1));
    ekm.eventually("served", || ekm.try_wrap(KEY).0 == 200);
    let blob = ekm.try_wrap(KEY).1;
    for drained in ["hsm-a", "hsm-b"] {
        with_one_hsm_only(&ekm, drained, || {
            assert_eq!(ekm.try_unwrap(KEY, &blob), 200);
            assert_eq!(ekm.try_wrap(KEY).0, 200);
        });
    }

    drop(ekm);
    fs::remove_file(objects(&directory, "softhsm-b").last().unwrap()).unwrap();
    let ekm = start(&directory);
    // A replica that has just come back gets few requests at first.
    ekm.eventually("restored", || {
        assert_eq!(ekm.try_unwrap(KEY, &blob), 200, "the replica that lacks it is skipped, and nothing is denied");
        count() == before.map(|count| count + 1)
    });
    ekm.eventually("told", || ekm.log().contains("a replica has been given a key that it lacked"));
    with_one_hsm_only(&ekm, "hsm-a", || assert_eq!(ekm.try_unwrap(KEY, &blob), 200));
}

#[test]
fn a_key_that_would_be_on_too_few_replicas_is_not_made_and_leaves_nothing_behind() {
    let directory = with_replication_key(&["softhsm"]);
    let count = || ["softhsm", "softhsm-b"].map(|token| objects(&directory, token).len());
    let ekm = start(&directory);
    let before = count();
    let answer = ekm.ask(&json!({"command": key_create(KEY), "reason": "test"}));
    let message = answer.json()["message"].as_str().unwrap().to_owned();
    assert_eq!((answer.status, answer.json()["code"].as_str()), (503, Some("key_generation")), "{message}");
    assert!(message.contains("only 1 replicas hold the new key, and 2 have to"), "{message}");
    assert_eq!(count(), before);
    assert!(ekm.log().contains("the token holds no replication key 'ekm-replication'"), "{}", ekm.log());
}

/// Writes the configuration with these tokens as replicas, whose names they are.
fn configure(directory: &Directory, tokens: &[&str]) {
    let file = directory.path().join("ekm.toml");
    let config = fs::read_to_string(&file).unwrap();
    let (before, rest) = config.split_once("[[shard]]\n").unwrap();
    let (_, after) = rest.split_once("[audit]").unwrap();
    let replicas = tokens.iter().map(|token| {
        format!(
            "[[shard.replica]]\nname = {token:?}\nmodule = {SOFTHSM:?}\ntoken_label = \"ekm-dev\"\npin_file = \"softhsm/pin\"\n\
             [shard.replica.environment]\nSOFTHSM2_CONF = {:?}\n",
            directory.path().join(token).join("softhsm2.conf")
        )
    });
    let shard =
        format!("deadline_ms = 60\nreplication_key_label = \"ekm-replication\"\n{}", replicas.collect::<String>());
    fs::write(&file, format!("{before}[[shard]]\n{shard}[audit]{after}")).unwrap();
}

fn serve_patiently(directory: &Directory) -> Ekm {
    Ekm::serve(directory, |config| config.replace("deadline_ms = 60\n", "deadline_ms = 10000\n"))
}

/// An empty token, with the PIN of the first one and the replication key.
fn new_token(directory: &Directory, name: &str) {
    let token = directory.path().join(name);
    fs::create_dir_all(token.join("tokens")).unwrap();
    let settings = fs::read_to_string(directory.path().join("softhsm/softhsm2.conf")).unwrap();
    fs::write(token.join("softhsm2.conf"), settings.replace("softhsm/tokens", &format!("{name}/tokens"))).unwrap();
    let pin = fs::read_to_string(directory.path().join("softhsm/pin")).unwrap();
    let output = Command::new("softhsm2-util")
        .args(["--init-token", "--free", "--label", "ekm-dev", "--so-pin", "12345678", "--pin", pin.trim()])
        .env("SOFTHSM2_CONF", token.join("softhsm2.conf"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    put_replication_key(directory, name, 7);
}

#[test]
fn an_hsm_is_replaced_by_an_empty_one_with_two_commands_and_everything_still_opens() {
    let directory = set_up(&["--softhsm"]);
    put_replication_key(&directory, "softhsm", 7);
    configure(&directory, &["softhsm"]);
    // A catalog whose root key was made with the replication key, too.
    fs::remove_file(directory.path().join("catalog.db")).unwrap();
    let config = directory.path().join("ekm.toml");
    assert!(run_ekm(&["catalog", "migrate", "--config", config.to_str().unwrap()]).status.success());
    let ekm = serve_patiently(&directory);
    ekm.make_key(KEY);
    let mut wrapped = key_create("v0/keys/wrapped");
    wrapped["custody"] = json!("hsm-wrapped");
    ekm.change(wrapped);
    let blobs = [KEY, "v0/keys/wrapped"].map(|key| (key, ekm.try_wrap(key).1));
    run(&ekm, &["hsm", "retire", "softhsm"]).fails("admin_impossible", "no other HSM replica of its shard is serving");
    drop(ekm);

    new_token(&directory, "softhsm-new");
    configure(&directory, &["softhsm", "softhsm-new"]);
    let ekm = serve_patiently(&directory);
    let added = run(&ekm, &["hsm", "add", "softhsm-new"]).ends(0).stdout;
    // The service may have given it some by itself by then. The third one is the root key.
    assert!(added.contains("softhsm-new holds 3 keys as it should, "), "{added}");
    ekm.eventually("serving", || ekm.state().contains("HSM replica softhsm-new: serving"));
    let retired = run(&ekm, &["hsm", "retire", "softhsm", "--reason", "end of life"]).ends(0).stdout;
    assert!(retired.contains("Now take the table of softhsm out of every frontend's configuration"), "{retired}");
    drop(ekm);

    configure(&directory, &["softhsm-new"]);
    fs::remove_dir_all(directory.path().join("softhsm/tokens")).unwrap();
    let ekm = serve_patiently(&directory);
    for (key, blob) in &blobs {
        assert_eq!(ekm.try_unwrap(key, blob), 200, "{key}");
    }
    let replicated = run(&ekm, &["hsm", "replicate"]).ends(0).stdout;
    assert_eq!(replicated, "", "nothing was missing");
    run(&ekm, &["hsm", "resume", "softhsm"]).ends(0);
}

#[test]
fn verify_names_what_a_replica_does_not_hold_and_with_a_replication_key_it_can_be_repaired() {
    let directory = two_replicas();
    let ekm = serve(&directory, |config| config);
    run(&ekm, &["hsm", "verify"]).ends(0);
    drop(ekm);
    // The demo key's object; the health key's and the root key's are older.
    fs::remove_file(objects(&directory, "softhsm-b").last().unwrap()).unwrap();
    let ekm = Ekm::serve(&directory, |config| config);
    let verified = run(&ekm, &["hsm", "verify", "--repair", "--output", "json"]);
    let expected = json!({
        "key": "v0/keys/demo", "version": 1, "replica": "hsm-b", "repaired": false,
        "problem": "C_FindObjects: the token does not hold the key",
    });
    assert_eq!(verified.json(), json!([expected]));
    verified.fails("hsm_key_missing", "1 of 3 keys");
    run(&ekm, &["hsm", "retire", "hsm-a"]).fails("hsm_key_missing", "1 of 3 keys");
    assert!(ekm.state().contains("HSM replica hsm-a: serving"), "nothing was done");
    drop(ekm);

    // A key that was made with a replication key can be had again, even while nobody uses it.
    let directory = with_replication_key(&["softhsm", "softhsm-b"]);
    let ekm = start(&directory);
    ekm.make_key(KEY);
    drop(ekm);
    fs::remove_file(objects(&directory, "softhsm-b").last().unwrap()).unwrap();
    let ekm = start(&directory);
    run(&ekm, &["hsm", "verify", "--repair"]).ends(0);
    run(&ekm, &["hsm", "verify"]).ends(0);
    assert_eq!(objects(&directory, "softhsm").len(), objects(&directory, "softhsm-b").len());
}
