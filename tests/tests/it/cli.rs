//! The operator's command line against the admin API of a running service.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use ekm_tests::{Ekm, ekm_binary};
use serde_json::{Value, json};

const AGENT: &str = "service-123456789012@gcp-sa-ekms.iam.gserviceaccount.com";

/// What one command did.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Run {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    pub(crate) fn code(&self) -> i32 {
        self.code
    }

    /// Fails unless it ended with this exit code.
    #[track_caller]
    pub(crate) fn ends(self, code: i32) -> Self {
        assert_eq!(self.code, code, "{self:?}");
        self
    }

    /// Fails unless it failed with this error.
    #[track_caller]
    pub(crate) fn fails(self, code: &str, text: &str) {
        let expected = format!("error[{code}]: ");
        assert!(self.code == 1 && self.stderr.contains(&expected) && self.stderr.contains(text), "{self:?}");
    }
}

fn command(ekm: &Ekm, arguments: &[&str]) -> Command {
    let mut command = Command::new(ekm_binary());
    command.args(arguments).stdin(Stdio::null());
    command.env("EKM_ADMIN", format!("unix:{}", ekm.directory.path().join("admin.sock").display()));
    command.env_remove("EKM_ADMIN_TOKEN");
    command
}

/// Runs a command to its end.
pub(crate) fn finish(mut command: Command) -> Run {
    let output = command.output().expect("ekm starts");
    let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
    Run { code: output.status.code().unwrap_or(-1), stdout: text(output.stdout), stderr: text(output.stderr) }
}

/// As the user who started the service.
pub(crate) fn run(ekm: &Ekm, arguments: &[&str]) -> Run {
    finish(command(ekm, arguments))
}

/// As the second person.
fn run_as_second(ekm: &Ekm, arguments: &[&str]) -> Run {
    let data = ekm.directory.path().to_str().unwrap();
    let token = ["dev", "--data", data, "token", "--caller", "second@localhost", "--audience", "ekm-admin"];
    let token = run(ekm, &token).ends(0).stdout;
    let mut command = command(ekm, arguments);
    command.env("EKM_ADMIN_TOKEN", token.trim());
    finish(command)
}

fn show(ekm: &Ekm, path: &str) -> Value {
    run(ekm, &["key", "show", path, "--output", "json"]).ends(0).json()
}

fn file(ekm: &Ekm, name: &str, text: &str) -> PathBuf {
    let file = ekm.directory.path().join(name);
    fs::write(&file, text).unwrap();
    file
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn wrap_status(ekm: &Ekm, path: &str) -> u16 {
    ekm.post(&format!("/{path}:wrap"), r#"{"plaintext":"AA=="}"#).status
}

/// A crypto space, a policy, and a key of both.
fn with_key() -> Ekm {
    let ekm = Ekm::dev(&[]);
    let policy = json!({"rules": [{"callers": [AGENT], "verbs": ["wrap", "unwrap"]}]});
    let policy = file(&ekm, "orders.json", &policy.to_string());
    run(&ekm, &["space", "create", "v0/cryptospaces/shop", "--label", "team=shop"]).ends(0);
    run(&ekm, &["policy", "create", "orders", text(&policy)]).ends(0);
    let create = ["key", "create", "v0/keys/orders", "--space", "v0/cryptospaces/shop", "--policy", "orders"];
    run(&ekm, &create).ends(0);
    ekm
}

#[test]
fn a_key_is_made_shown_paused_rotated_and_every_change_is_told_field_by_field() {
    let ekm = with_key();
    ekm.eventually("served", || wrap_status(&ekm, "v0/keys/orders") == 200);
    let list = run(&ekm, &["key", "list", "--space", "v0/cryptospaces/shop"]).ends(0).stdout;
    assert_eq!(list, "v0/keys/orders  enabled  software  1  v0/cryptospaces/shop  orders  -\n");

    let disabled = run(&ekm, &["key", "disable", "v0/keys/orders", "--reason", "incident 7"]).ends(0).stdout;
    assert!(
        disabled.contains("v0/keys/orders: done, revision ") && disabled.contains("\n  state: enabled → disabled\n"),
        "{disabled}"
    );
    assert!(disabled.ends_with("1 of 1 frontends have it\n"), "{disabled}");
    assert_eq!(wrap_status(&ekm, "v0/keys/orders"), 400, "the command ended when the frontend had it");
    let again = run(&ekm, &["key", "disable", "v0/keys/orders"]).ends(0).stdout;
    assert!(again.contains("it was so already"), "{again}");
    run(&ekm, &["key", "enable", "v0/keys/orders"]).ends(0);
    assert_eq!(wrap_status(&ekm, "v0/keys/orders"), 200);

    run(&ekm, &["key", "rotate", "v0/keys/orders"]).ends(0);
    assert_eq!(show(&ekm, "v0/keys/orders")["versions"].as_array().unwrap().len(), 2);
    run(&ekm, &["key", "set-rotation", "v0/keys/orders", "--every-days", "90"]).ends(0);
    assert_eq!(show(&ekm, "v0/keys/orders")["rotation_days"], 90);
    run(&ekm, &["key", "set-rotation", "v0/keys/orders", "--off"]).ends(0);
    assert_eq!(show(&ekm, "v0/keys/orders").get("rotation_days"), None);

    let updated = ["key", "update", "v0/keys/orders", "--label", "team=shop", "--description", "orders of the shop"];
    run(&ekm, &updated).ends(0);
    run(&ekm, &["key", "update", "v0/keys/orders", "--label", "tier=1", "--remove-label", "team"]).ends(0);
    let key = show(&ekm, "v0/keys/orders");
    assert_eq!((&key["labels"], &key["description"]), (&json!({"tier": "1"}), &json!("orders of the shop")));
    run(&ekm, &["key", "add-path", "v0/keys/orders", "v0/vpc/orders"]).ends(0);
    assert_eq!(wrap_status(&ekm, "v0/vpc/orders"), 200);
    run(&ekm, &["space", "block", "v0/cryptospaces/shop"]).ends(0);
    assert_eq!(wrap_status(&ekm, "v0/keys/orders"), 400);
    run(&ekm, &["space", "unblock", "v0/cryptospaces/shop"]).ends(0);

    run(&ekm, &["key", "set-policy", "v0/keys/orders", "--caller", "other@example.com"]).ends(0);
    assert_eq!(wrap_status(&ekm, "v0/keys/orders"), 403);
    run(&ekm, &["key", "set-policy", "v0/keys/orders", "--policy", "orders"]).ends(0);
    assert_eq!(wrap_status(&ekm, "v0/keys/orders"), 200);
}

#[test]
fn destruction_needs_a_second_person_and_can_be_taken_back() {
    let ekm = with_key();
    let asked = run(&ekm, &["key", "destroy", "v0/keys/orders", "--reason", "not used any more"]).ends(4).stdout;
    let (_, id) = asked.rsplit_once("a second person runs: ekm approval approve ").unwrap();
    let id = id.lines().next().unwrap();
    assert_eq!(show(&ekm, "v0/keys/orders")["state"], "enabled", "nothing is changed yet");
    assert!(run(&ekm, &["approval", "list"]).ends(0).stdout.starts_with(&format!("{id}  requested  ")));

    run(&ekm, &["approval", "approve", id]).fails("not_confirmed", "add --yes");
    run(&ekm, &["approval", "approve", id, "--yes"]).fails("admin_approval_refused", "second person");
    let other = "00".repeat(32);
    run_as_second(&ekm, &["approval", "approve", id, "--payload-sha256", &other])
        .fails("approval_payload", "not what was looked at");

    let approval = run_as_second(&ekm, &["approval", "show", id, "--output", "json"]).ends(0).json();
    let looked_at = approval["payload_sha256"].as_str().unwrap();
    let approved = run_as_second(&ekm, &["approval", "approve", id, "--payload-sha256", looked_at]).ends(0);
    assert!(approved.stderr.contains("\"type\": \"key-destroy\""), "what is approved is shown: {approved:?}");
    assert_eq!(show(&ekm, "v0/keys/orders")["state"], "destroy-scheduled");
    run_as_second(&ekm, &["approval", "approve", id, "--yes"]).fails("admin_approval_refused", "approved already");

    run(&ekm, &["key", "undelete", "v0/keys/orders"]).ends(0);
    assert_eq!(show(&ekm, "v0/keys/orders")["state"], "disabled");

    let asked =
        run(&ekm, &["key", "destroy", "v0/keys/orders", "--reason", "again", "--output", "json"]).ends(4).json();
    let id = asked["approval"]["id"].as_str().unwrap();
    run_as_second(&ekm, &["approval", "reject", id, "--reason", "no"]).ends(0);
    assert_eq!(show(&ekm, "v0/keys/orders")["state"], "disabled");
}

#[test]
fn a_dry_run_changes_nothing_and_says_by_its_exit_code_whether_it_would() {
    let ekm = with_key();
    let before = show(&ekm, "v0/keys/orders");
    let disable = run(&ekm, &["key", "disable", "v0/keys/orders", "--dry-run"]).ends(3).stdout;
    assert!(disable.contains("dry run") && disable.contains("state: enabled → disabled"), "{disable}");
    run(&ekm, &["key", "enable", "v0/keys/orders", "--dry-run"]).ends(0);
    let destroy = run(&ekm, &["key", "destroy", "v0/keys/orders", "--dry-run", "--output", "json"]).ends(3).json();
    assert_eq!(destroy["outcome"], "would-need-approval");
    assert_eq!(show(&ekm, "v0/keys/orders"), before);
}

#[test]
fn a_file_is_applied_once_and_then_there_is_nothing_to_do() {
    let ekm = Ekm::dev(&[]);
    let sample = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("deploy/config/keys.yaml");
    let sample = text(&sample);
    let plan = run(&ekm, &["apply", "-f", sample, "--plan"]).ends(3).stdout;
    assert!(plan.contains("key v0/keys/orders: key-create\n") && plan.ends_with("5 changes\n"), "{plan}");
    assert!(plan.contains("warning: key v0/keys/demo is in the catalog and not in the file"), "{plan}");
    assert!(!plan.contains("ekm-health"), "the service's own is not told: {plan}");
    run(&ekm, &["apply", "-f", sample]).fails("not_confirmed", "add --yes");
    run(&ekm, &["key", "show", "v0/keys/orders"]).fails("admin_not_found", "v0/keys/orders");

    let applied = run(&ekm, &["apply", "-f", sample, "--yes", "--reason", "TICKET-1"]).ends(0).stdout;
    assert!(applied.ends_with("1 of 1 frontends have it\n"), "{applied}");
    let again = run(&ekm, &["apply", "-f", sample, "--yes", "--output", "json"]).ends(0).json();
    assert_eq!((&again["outcome"], &again["done"]), (&json!("nothing-to-do"), &json!([])));

    let changed = fs::read_to_string(sample).unwrap().replace("rotation_days: 90", "rotation_days: 30");
    let changed = file(&ekm, "changed.yaml", &changed);
    let plan = run(&ekm, &["apply", "-f", text(&changed), "--plan"]).ends(3).stdout;
    assert!(plan.contains("  rotation_days: 90 → 30\n1 change\n"), "{plan}");
    run(&ekm, &["apply", "-f", text(&changed), "--yes"]).ends(0);
    assert_eq!(show(&ekm, "v0/keys/orders")["rotation_days"], 30);

    let exported = file(&ekm, "exported.yaml", &run(&ekm, &["apply", "--export"]).ends(0).stdout);
    let plan = run(&ekm, &["apply", "-f", text(&exported), "--plan"]).ends(0).stdout;
    assert_eq!(plan, "nothing to do\n");
}

#[test]
fn a_file_that_fails_half_way_says_what_was_done_and_what_was_not() {
    let ekm = Ekm::dev(&[]);
    let keys = file(
        &ekm,
        "keys.yaml",
        "spaces:\n  - path: v0/cryptospaces/a\n  - path: v0/not-a-space\n  - path: v0/cryptospaces/c\n",
    );
    let stopped = run(&ekm, &["apply", "-f", text(&keys), "--yes"]);
    assert!(
        stopped.stderr.contains("1 of 3 changes were made; not made:\n  space v0/not-a-space: space-create\n"),
        "{stopped:?}"
    );
    stopped.fails("admin_invalid", "v0/cryptospaces/");
    run(&ekm, &["space", "show", "v0/cryptospaces/a"]).ends(0);
    run(&ekm, &["space", "show", "v0/cryptospaces/c"]).fails("admin_not_found", "v0/cryptospaces/c");

    let wrong = file(&ekm, "wrong.yaml", "keys:\n  - path: v0/keys/a\n");
    run(&ekm, &["apply", "-f", text(&wrong), "--yes"]).fails("keys_file", "2");
}

#[test]
fn of_people_who_change_a_key_at_the_same_time_nobody_loses_what_was_told_to_be_done() {
    let ekm = with_key();
    let begun: Vec<_> = (0..6)
        .map(|number| {
            let label = format!("n{number}=1");
            let mut command = command(&ekm, &["key", "update", "v0/keys/orders", "--no-wait", "--label", &label]);
            (number, command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap())
        })
        .collect();
    let mut done = serde_json::Map::new();
    for (number, child) in begun {
        let output = child.wait_with_output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        if output.status.success() {
            done.insert(format!("n{number}"), "1".into());
        } else {
            assert!(stderr.contains("v0/keys/orders has changed since revision"), "{stderr}");
            assert!(stderr.contains("meanwhile developer has made the change key-update"), "{stderr}");
        }
    }
    assert!(!done.is_empty());
    assert_eq!(show(&ekm, "v0/keys/orders")["labels"], Value::Object(done));
}

#[test]
fn every_answer_can_be_had_as_one_json_document() {
    let ekm = with_key();
    for arguments in [
        &["key", "list"][..],
        &["key", "show", "v0/keys/orders"],
        &["key", "disable", "v0/keys/orders"],
        &["space", "list"],
        &["space", "show", "v0/cryptospaces/shop"],
        &["policy", "list"],
        &["policy", "show", "orders"],
        &["policy", "explain", "--policy", "orders", "--caller", AGENT, "--verb", "wrap"],
        &["approval", "list"],
        &["catalog", "status"],
        &["catalog", "log"],
        &["catalog", "frontends"],
        &["catalog", "settings"],
        &["hsm", "status"],
    ] {
        run(&ekm, &[arguments, &["--output", "json"]].concat()).ends(0).json();
    }
    let all: Value = run(&ekm, &["key", "list", "--output", "json"]).ends(0).json();
    assert_eq!(all.as_array().unwrap().len(), 2);
    let one: Value = run(&ekm, &["key", "list", "--output", "json", "--limit", "1"]).ends(0).json();
    assert_eq!(one.as_array().unwrap().len(), 1);
    for (filter, expected) in [
        (&["--prefix", "v0/keys/or"][..], 1),
        (&["--state", "disabled"], 1),
        (&["--label", "team=nobody"], 0),
        (&["--space", "v0/cryptospaces/shop"], 1),
    ] {
        let found = run(&ekm, &[&["key", "list", "--output", "json"], filter].concat()).ends(0).json();
        assert_eq!(found.as_array().unwrap().len(), expected, "{filter:?}");
    }
}

#[test]
fn a_policy_is_replaced_and_answers_the_same_here_and_there() {
    let ekm = with_key();
    let policy = json!({"rules": [{"callers": ["a@example.com"], "verbs": ["wrap", "unwrap"]}]});
    let policy = file(&ekm, "new.json", &policy.to_string());
    run(&ekm, &["policy", "set", "orders", text(&policy), "--reason", "moved"]).ends(0);
    let question = ["--caller", "a@example.com", "--verb", "wrap", "--at", "2026-11-22T10:00:00Z"];
    let ask = |policy: &[&str]| run(&ekm, &[&["policy", "explain"], policy, &question].concat()).ends(0).stdout;
    let here = ask(&["--file", text(&policy)]);
    assert!(here.starts_with("allowed: rule 1 allows it\n"), "{here}");
    assert_eq!(ask(&["--policy", "orders"]), here);
    assert_eq!(ask(&["--key", "v0/keys/orders"]), here);
    let blank = file(&ekm, "blank.json", r#"{"rules":[]}"#);
    run(&ekm, &["policy", "set", "orders", text(&blank)]).fails("policy", "it has no rules");
    run(&ekm, &["policy", "lint", text(&blank)]).fails("policy", "it has no rules");
}

#[test]
fn a_change_that_is_not_final_is_shown_and_confirmed_and_presets_are_written_out() {
    let ekm = with_key();
    let delay = ["catalog", "settings", "--denial-delay-minutes", "5", "--reason", "careful", "--output", "json"];
    let id = run(&ekm, &delay).ends(4).json()["approval"]["id"].as_str().unwrap().to_owned();
    run_as_second(&ekm, &["approval", "approve", &id, "--yes"]).ends(0);
    let rule =
        json!({"callers": [AGENT], "verbs": ["wrap", "unwrap"], "justifications": {"preset": "reason-required"}});
    let policy = file(&ekm, "strict.json", &json!({"rules": [rule]}).to_string());
    let set = run(&ekm, &["policy", "set", "orders", text(&policy)]).ends(0).stdout;
    assert!(set.contains("warning: what was allowed until now, and is not any more, is answered with 503"), "{set}");
    let shown = run(&ekm, &["policy", "show", "orders"]).ends(0).stdout;
    let preset = "preset reason-required = known: all; unspecified: denied; missing: denied; unknown: allowed";
    assert!(shown.contains(&format!("\nrule 1: {preset}\n")), "{shown}");
    assert!(shown.contains("'ekm policy confirm orders' denies it at once\nuntil 20"), "{shown}");
    let question = ["policy", "explain", "--policy", "orders", "--caller", AGENT, "--verb", "wrap"];
    let explained = run(&ekm, &question).ends(0).stdout;
    assert!(explained.contains("\nnot final: a former policy allowed it, so it is answered with 503"), "{explained}");
    assert!(explained.contains(&format!("- justifications: the request has none, and 'missing' is false; {preset}")));
    run(&ekm, &["policy", "confirm", "orders", "--reason", "as meant"]).ends(0);
    assert!(!run(&ekm, &["policy", "show", "orders"]).ends(0).stdout.contains("not final"));
    assert!(run(&ekm, &["policy", "presets"]).ends(0).stdout.contains(&format!("\n{preset}\n")));

    let other = ["key", "set-policy", "v0/keys/orders", "--caller", AGENT, "--justifications", "customer-only"];
    run(&ekm, &other).ends(0);
    let shown = run(&ekm, &["key", "show", "v0/keys/orders"]).ends(0).stdout;
    assert!(shown.contains("'ekm key confirm-policy v0/keys/orders' denies it at once"), "{shown}");
    run(&ekm, &["key", "confirm-policy", "v0/keys/orders"]).ends(0);
    assert!(!run(&ekm, &["key", "show", "v0/keys/orders"]).ends(0).stdout.contains("not final"));
}

#[test]
fn the_catalog_tells_its_state_and_its_log_is_one_chain() {
    let ekm = with_key();
    let status = run(&ekm, &["catalog", "status"]).ends(0).stdout;
    assert!(status.contains("1 of 1 have revision"), "{status}");
    let log = run(&ekm, &["catalog", "log", "--verify"]).ends(0);
    assert!(log.stdout.contains("key-create") && log.stderr.contains("are one chain"), "{log:?}");
    assert_eq!(run(&ekm, &["catalog", "log", "--limit", "2"]).ends(0).stdout.lines().count(), 2);

    let export = run(&ekm, &["catalog", "export", "--reason", "copy", "--output", "json"]).ends(4).json();
    let id = export["approval"]["id"].as_str().unwrap();
    let copy = ekm.directory.path().join("copy");
    let fetch = ["catalog", "export", "--approval", id, "--output-file", text(&copy)];
    run(&ekm, &fetch).fails("admin_approval_refused", "no export that was approved");
    run_as_second(&ekm, &["approval", "approve", id, "--yes"]).ends(0);
    run(&ekm, &fetch).ends(0);
    assert!(fs::metadata(&copy).unwrap().len() > 0);
    run(&ekm, &fetch).fails("io", "cannot write");
}

#[test]
fn the_settings_are_changed_by_two_people() {
    let ekm = Ekm::dev(&[]);
    let days = ["catalog", "settings", "--destroy-grace-days", "8", "--reason", "shorter", "--output", "json"];
    let id = run(&ekm, &days).ends(4).json()["approval"]["id"].as_str().unwrap().to_owned();
    run_as_second(&ekm, &["approval", "approve", &id, "--yes"]).ends(0);
    let settings = run(&ekm, &["catalog", "settings", "--output", "json"]).ends(0).json();
    assert_eq!(settings["destroy_grace_days"], 8);
}

#[test]
fn an_error_says_what_to_do_and_nothing_is_changed() {
    let ekm = Ekm::dev(&[]);
    let revision = || run(&ekm, &["catalog", "status", "--output", "json"]).ends(0).json()["revision"].clone();
    let before = revision();
    let blank = file(&ekm, "blank.json", r#"{"rules":[{"callers":[],"verbs":["wrap"]}]}"#);
    let create = ["key", "create", "v0/keys/a", "--space", "v0/cryptospaces/demo"];
    for (policy, code, words) in [
        (&["--policy", "none"][..], "admin_not_found", "none"),
        (&["--caller", " "], "policy", "without spaces around"),
        (&["--caller", "nonsense"], "policy", "neither '@' nor '*'"),
        (&["--policy-file", text(&blank)], "policy", "the policy is refused: rule 1 has no callers"),
        (&["--policy-file", "/does/not/exist"], "io", "cannot read /does/not/exist"),
    ] {
        run(&ekm, &[&create, policy].concat()).fails(code, words);
    }
    for (arguments, code, words) in [
        (&["key", "show", "v0/keys/none"][..], "admin_not_found", "v0/keys/none"),
        (&["key", "disable", "v0/keys/none"], "admin_not_found", "v0/keys/none"),
        (&["key", "set-policy", "v0/keys/none", "--caller", AGENT], "admin_not_found", "v0/keys/none"),
        (&["key", "add-path", "v0/keys/none", "v0/keys/x"], "admin_not_found", "v0/keys/none"),
        (
            &["key", "create", "v0/keys/demo", "--space", "v0/cryptospaces/demo", "--caller", AGENT],
            "admin_taken",
            "v0/keys/demo",
        ),
        (&["key", "list", "--server", "unix:/does/not/exist"], "admin_unreachable", "is the server running"),
        (&["key", "list", "--server", "localhost"], "admin_connection", "unix:/path/admin.sock"),
    ] {
        run(&ekm, arguments).fails(code, words);
    }
    for (arguments, words) in [
        (&["key", "show", "v0//keys"][..], "a key path has no empty segment"),
        (&["key", "show", "v0/keys/a:b"], "a key path consists of"),
        (&create, "--caller"),
    ] {
        let refused = run(&ekm, arguments).ends(2);
        assert!(refused.stderr.contains(words), "{refused:?}");
    }
    let mut stranger = command(&ekm, &["key", "list"]);
    stranger.env("EKM_ADMIN_TOKEN", "nonsense");
    finish(stranger).fails("admin_unauthenticated", "");
    let second = run_as_second(&ekm, &["key", "disable", "v0/keys/demo"]);
    second.fails("admin_role_missing", "operator");
    assert_eq!(revision(), before);
}

#[test]
fn the_socket_of_ekm_dev_is_found_without_an_address() {
    let ekm = Ekm::dev(&[]);
    let mut list = command(&ekm, &["key", "list"]);
    list.env_remove("EKM_ADMIN").env("EKM_DEV_DATA", ekm.directory.path());
    assert!(finish(list).ends(0).stdout.starts_with("v0/keys/demo  "));
}
