//! Taking an HSM out of use and back: two SoftHSM tokens with the same keys, each in a worker process of its own.

use std::fs;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use ekm_tests::{Directory, Ekm, set_up};
use serde_json::{Value, json};

use crate::cli::run;
use crate::keys::sqlite;

const KEY: &str = "v0/keys/demo";

/// A directory that `ekm serve` can start from, with the replicas hsm-a and hsm-b: the second is a copy of the first one's files.
pub(crate) fn two_replicas() -> Directory {
    let directory = set_up(&["--softhsm"]);
    let (first, second) = (directory.path().join("softhsm"), directory.path().join("softhsm-b"));
    let copied = Command::new("cp").arg("-a").args([&first, &second]).status();
    assert!(copied.is_ok_and(|status| status.success()), "cp");
    let library = fs::read_to_string(second.join("softhsm2.conf")).unwrap();
    fs::write(second.join("softhsm2.conf"), library.replace("softhsm/tokens", "softhsm-b/tokens")).unwrap();

    let file = directory.path().join("ekm.toml");
    let config = fs::read_to_string(&file).unwrap();
    let (before, rest) = config.split_once("[[shard]]\n").unwrap();
    let (hsm, after) = rest.split_once("[audit]").unwrap();
    let module = hsm.lines().find(|line| line.starts_with("module = ")).unwrap();
    let replica = |name: &str, directory: &std::path::Path| {
        format!(
            "[[shard.replica]]\nname = \"{name}\"\n{module}\ntoken_label = \"ekm-dev\"\npin_file = \"softhsm/pin\"\n\
             [shard.replica.environment]\nSOFTHSM2_CONF = {:?}\n",
            directory.join("softhsm2.conf")
        )
    };
    let hsm = format!("deadline_ms = 10000\n{}{}", replica("hsm-a", &first), replica("hsm-b", &second));
    fs::write(&file, format!("{before}[[shard]]\n{hsm}[audit]{after}")).unwrap();
    directory
}

/// A replica as `GET /v1/hsm` shows it.
fn replica(ekm: &Ekm, name: &str) -> Value {
    let hsm = ekm.show("/v1/hsm").json();
    let found = hsm["replicas"].as_array().unwrap().iter().find(|replica| replica["name"] == name);
    found.unwrap_or_else(|| panic!("no {name} in {hsm}")).clone()
}

fn operations(ekm: &Ekm, name: &str) -> u64 {
    replica(ekm, name)["operations"].as_u64().unwrap()
}

pub(crate) fn wait_until(ekm: &Ekm, name: &str, state: &str) {
    ekm.eventually(state, || replica(ekm, name)["state"] == state);
}

/// With both replicas serving.
pub(crate) fn serve(directory: &Directory, edit: impl FnOnce(String) -> String) -> Ekm {
    let ekm = Ekm::serve(directory, edit);
    for name in ["hsm-a", "hsm-b"] {
        wait_until(&ekm, name, "serving");
    }
    ekm
}

#[test]
fn a_drained_hsm_gets_nothing_on_any_frontend_over_restarts_too_until_it_is_resumed_and_no_request_fails() {
    let directory = two_replicas();
    let ekm = serve(&directory, |config| config);
    let with_another_socket = |config: String| config.replace("admin.sock", "other.sock");
    let other = serve(&directory, with_another_socket);
    let (stop, done, failed) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
    std::thread::scope(|scope| {
        // Also when an assertion fails: else the scope waits for ever.
        let stopped = StopAtEnd(&stop);
        for _ in 0..2 {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let (status, blob) = ekm.try_wrap(KEY);
                    let good = status == 200 && ekm.try_unwrap(KEY, &blob) == 200;
                    if good { &done } else { &failed }.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        let some_more = || {
            let before = done.load(Ordering::Relaxed);
            ekm.eventually("served", || done.load(Ordering::Relaxed) > before + 20);
        };
        some_more();
        assert!(operations(&ekm, "hsm-a") > 0 && operations(&ekm, "hsm-b") > 0, "both take part");

        let drained = run(&ekm, &["hsm", "drain", "hsm-a", "--wait", "--reason", "firmware"]).ends(0).stdout;
        assert!(
            drained.contains("hsm-a: done, revision ") && drained.contains("hsm-a: nothing is under way on "),
            "{drained}"
        );
        assert!(drained.contains("  drained_replicas: [] → [\"hsm-a\"]\n"), "{drained}");
        let (idle, busy) = (operations(&ekm, "hsm-a"), operations(&ekm, "hsm-b"));
        some_more();
        assert_eq!(operations(&ekm, "hsm-a"), idle, "it got one more");
        assert!(operations(&ekm, "hsm-b") > busy);
        let shown = replica(&ekm, "hsm-a");
        assert_eq!((&shown["state"], &shown["in_flight"]), (&json!("drained"), &json!(0)), "{shown}");
        assert!(ekm.state().contains("[!] HSM replica hsm-a: drained for "), "{}", ekm.state());
        assert_eq!(ekm.metric("ekm_hsm_replica_state{replica=\"hsm-a\",shard=\"main\",state=\"drained\"}"), 1.0);

        wait_until(&other, "hsm-a", "drained");
        drop(other);
        let other = Ekm::serve(&directory, with_another_socket);
        assert_eq!(replica(&other, "hsm-a")["state"], "drained", "from its first moment");
        assert_eq!(other.try_wrap(KEY).0, 200);

        run(&ekm, &["hsm", "resume", "hsm-a"]).ends(0);
        for frontend in [&ekm, &other] {
            wait_until(frontend, "hsm-a", "serving");
        }
        ekm.eventually("in use again", || operations(&ekm, "hsm-a") > idle);
        drop(stopped);
    });
    assert_eq!(failed.into_inner(), 0, "of {}:\n{}", done.into_inner(), ekm.log());

    let log = ekm.show("/v1/changes?limit=2").json();
    let entry = |index: usize, field: &str| log["items"][index][field].clone();
    assert_eq!((entry(0, "action"), entry(0, "target")), (json!("hsm-resume"), json!("hsm-a")));
    assert_eq!((entry(1, "action"), entry(1, "class")), (json!("hsm-drain"), json!("fast")));
    assert_eq!((entry(1, "actor"), entry(1, "reason")), (json!("developer"), json!("firmware")));
}

struct StopAtEnd<'a>(&'a AtomicBool);

impl Drop for StopAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn an_hsm_stays_drained_when_somebody_takes_the_row_away_that_says_so() {
    let directory = two_replicas();
    let eager = "[catalog]\nverify_interval_s = 1\npoll_interval_ms = 50";
    let ekm = serve(&directory, |config| config.replace("[catalog]", eager));
    run(&ekm, &["hsm", "drain", "hsm-a", "--wait"]).ends(0);
    sqlite(&directory, "CREATE TABLE good AS SELECT * FROM records; DELETE FROM records WHERE kind = 'settings'");
    ekm.eventually("refused", || ekm.metric("ekm_catalog_rejected_rows") == 1.0);
    assert_eq!(replica(&ekm, "hsm-a")["state"], "drained");
    sqlite(&directory, "INSERT INTO records SELECT * FROM good WHERE kind = 'settings'");
    ekm.eventually("sound", || ekm.metric("ekm_catalog_rejected_rows") == 0.0);
    assert_eq!(replica(&ekm, "hsm-a")["state"], "drained");
    run(&ekm, &["hsm", "resume", "hsm-a"]).ends(0);
    wait_until(&ekm, "hsm-a", "serving");
}

#[test]
fn the_last_hsm_in_use_is_drained_by_force_only() {
    let directory = two_replicas();
    let ekm = serve(&directory, |config| config);
    run(&ekm, &["hsm", "drain", "hsm-x"]).fails("admin_impossible", "those of this frontend are: hsm-a, hsm-b");
    run(&ekm, &["hsm", "resume", "hsm-x"]).fails("admin_impossible", "there is no HSM replica 'hsm-x'");
    run(&ekm, &["hsm", "resume", "hsm-a"]).ends(0);
    assert!(run(&ekm, &["hsm", "drain", "hsm-a", "--dry-run"]).ends(3).stdout.contains("this would change"));
    assert_eq!(replica(&ekm, "hsm-a")["state"], "serving", "nothing was changed yet");

    run(&ekm, &["hsm", "drain", "hsm-a"]).ends(0);
    let again = run(&ekm, &["hsm", "drain", "hsm-a", "--wait"]).ends(0).stdout;
    assert!(again.contains("it was so already"), "{again}");
    run(&ekm, &["hsm", "drain", "hsm-b"])
        .fails("admin_impossible", "no other HSM replica of its shard is serving on this frontend");
    assert_eq!(ekm.try_wrap(KEY).0, 200);

    let forced = run(&ekm, &["hsm", "drain", "hsm-b", "--force", "--wait"]).ends(0).stdout;
    assert!(forced.contains("warning: no other HSM replica of its shard is serving"), "{forced}");
    let answer = ekm.post(&format!("/{KEY}:wrap"), r#"{"plaintext":"AA=="}"#);
    assert_eq!((answer.status, answer.message().ends_with("[hsm_away]")), (503, true), "{}", answer.text());
    let status = run(&ekm, &["hsm", "status"]).ends(0).stdout;
    assert!(status.starts_with("frontend ") && status.matches("  drained  ").count() == 2, "{status}");
    run(&ekm, &["hsm", "resume", "hsm-b"]).ends(0);
    ekm.eventually("served", || ekm.try_wrap(KEY).0 == 200);

    let catalog = ekm.show("/v1/catalog").json();
    assert_eq!(catalog["destroy_grace_days"], 30, "the other settings are as they were");
}

#[test]
fn everybody_with_a_role_sees_the_hsm_and_operators_drain_it() {
    let directory = two_replicas();
    let people = ["viewer", "operator", "security-officer"].map(|role| {
        format!("\n[[admin.people]]\nname = \"{role}\"\nroles = [\"{role}\"]\nemail = \"{role}@localhost\"\n")
    });
    let ekm = serve(&directory, |config| config + &people.concat());
    let ask = |role: &str, method: &str, path: &str, command: Option<Value>| {
        let token = ekm.issuer().token_with(json!({"aud": "ekm-admin", "email": format!("{role}@localhost")}));
        let body = command.map(|command| json!({"command": command}).to_string());
        ekm.admin().admin(method, path, Some(&token), body.as_deref())
    };
    for role in ["viewer", "operator", "security-officer"] {
        assert_eq!(ask(role, "GET", "/v1/hsm", None).status, 200, "{role}");
        for word in ["hsm-drain", "hsm-resume"] {
            let answer = ask(role, "POST", "/v1/changes", Some(json!({"type": word, "name": "hsm-a"})));
            let expected = if role == "operator" { 200 } else { 403 };
            assert_eq!(answer.status, expected, "{role} {word}: {}", answer.text());
        }
    }
}

#[test]
fn a_key_that_one_hsm_lacks_is_counted_until_it_has_been_cloned() {
    let directory = two_replicas();
    let ekm = serve(&directory, |config| config.replace("[[shard]]\n", "[[shard]]\ncopies = 1\n"));
    ekm.make_key("v0/keys/new");
    let missing = || replica(&ekm, "hsm-b")["missing_keys"].as_u64().unwrap();
    let wrap = || ekm.try_wrap("v0/keys/new").0;
    ekm.eventually("served", || wrap() == 200);
    ekm.eventually("noticed", || wrap() == 200 && missing() == 1);
    assert_eq!(ekm.metric("ekm_hsm_missing_keys{replica=\"hsm-b\",shard=\"main\"}"), 1.0);
    assert!(ekm.log().contains("\"code\":\"hsm_key_missing\""), "{}", ekm.log());
    let [from, to] = ["softhsm/tokens/.", "softhsm-b/tokens"].map(|place| directory.path().join(place));
    assert!(Command::new("cp").arg("-a").args([from, to]).status().unwrap().success());
    ekm.eventually("no longer missing", || wrap() == 200 && missing() == 0);
}

/// So that an operator who looks for it finds it.
#[test]
fn a_worker_process_has_a_name() {
    let ekm = serve(&two_replicas(), |config| config);
    let output = Command::new("ps").args(["--ppid", &ekm.pid().to_string(), "-o", "comm=,args="]).output().unwrap();
    let workers = String::from_utf8_lossy(&output.stdout);
    assert_eq!(workers, "ekm-hsm-worker  ekm hsm-worker\n".repeat(2));
}
