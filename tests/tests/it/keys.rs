//! Keys and their policies, made with `ekm key` beside a running service.

use std::fs;

use ekm_tests::{Directory, Ekm, run_ekm, set_up};
use serde_json::{Value, json};

fn serving() -> (Ekm, Directory) {
    let directory = set_up(&[]);
    (Ekm::serve(&directory, |config| config), directory)
}

/// Runs `ekm key …` and returns standard output, or standard error if it failed.
fn key(directory: &Directory, arguments: &[&str]) -> Result<String, String> {
    let config = directory.path().join("serve.toml");
    let output = run_ekm(&[&["key", "--config", config.to_str().unwrap()], arguments].concat());
    let text = |bytes| String::from_utf8(bytes).unwrap();
    if output.status.success() { Ok(text(output.stdout)) } else { Err(text(output.stderr)) }
}

fn wrap(ekm: &Ekm, path: &str, context: Value) -> (u16, String) {
    let mut body = json!({"plaintext": "AA=="});
    if !context.is_null() {
        body["additionalContext"] = context;
    }
    let answer = ekm.post(&format!("/{path}:wrap"), &body.to_string());
    (answer.status, if answer.status == 200 { String::new() } else { answer.message() })
}

#[test]
fn a_new_key_is_served_without_a_restart_and_a_paused_one_is_a_failed_precondition() {
    let (ekm, directory) = serving();
    let path = "v0/keys/new";
    assert_eq!(wrap(&ekm, path, Value::Null), (404, "there is no key under this path [key_not_found]".into()));
    key(&directory, &["create", path, "--caller", "service-*@gcp-sa-ekms.iam.gserviceaccount.com"]).unwrap();
    ekm.eventually("served", || wrap(&ekm, path, Value::Null).0 == 200);

    key(&directory, &["disable", path]).unwrap();
    ekm.eventually("paused", || wrap(&ekm, path, Value::Null).0 == 400);
    let paused = ekm.post(&format!("/{path}:wrap"), r#"{"plaintext":"AA=="}"#).json();
    assert_eq!(paused, json!({"code": 9, "message": "the key is disabled [key_disabled]"}));
    key(&directory, &["enable", path]).unwrap();
    ekm.eventually("back", || wrap(&ekm, path, Value::Null).0 == 200);
}

#[test]
fn a_key_with_two_paths_opens_its_blobs_under_either() {
    let (ekm, directory) = serving();
    let blob = ekm.wrap(b"moved", b"");
    key(&directory, &["add-path", "v0/keys/demo", "v0/vpc/demo"]).unwrap();
    let body = json!({"wrappedBlob": blob}).to_string();
    ekm.eventually("served", || ekm.post("/v0/vpc/demo:unwrap", &body).status == 200);
    assert_eq!(ekm.post("/v0/keys/demo:unwrap", &body).status, 200);
}

#[test]
fn a_policy_can_be_exchanged_and_seen() {
    let (ekm, directory) = serving();
    assert_eq!(wrap(&ekm, "v0/keys/demo", Value::Null).0, 200);
    key(&directory, &["set-policy", "v0/keys/demo", "--caller", "somebody@else.example"]).unwrap();
    ekm.eventually("taken over", || wrap(&ekm, "v0/keys/demo", Value::Null).0 == 403);
    let rows: Value = serde_json::from_str(&key(&directory, &["list", "--output", "json"]).unwrap()).unwrap();
    assert_eq!(rows[0]["policy"]["rules"][0]["callers"], json!(["somebody@else.example"]));
    key(&directory, &["set-policy", "v0/keys/demo", "--caller", "*"]).unwrap();
    ekm.eventually("back", || wrap(&ekm, "v0/keys/demo", Value::Null).0 == 200);
}

#[test]
fn a_key_whose_row_was_spoilt_is_a_503_and_never_a_404() {
    let (ekm, directory) = serving();
    key(&directory, &["create", "v0/keys/other", "--caller", "*"]).unwrap();
    ekm.eventually("served", || wrap(&ekm, "v0/keys/other", Value::Null).0 == 200);
    sqlite(
        &directory,
        "UPDATE policies SET document = '{\"rules\":[]}' WHERE id = (SELECT policy_id FROM keys JOIN key_aliases ON id = key_id
         WHERE path = 'v0/keys/other'); UPDATE catalog SET revision = revision + 1",
    );
    ekm.eventually("refused", || wrap(&ekm, "v0/keys/other", Value::Null).0 != 200);
    let (status, message) = wrap(&ekm, "v0/keys/other", Value::Null);
    assert_eq!((status, &*message), (503, "temporarily unavailable, try again [key_unavailable]"));
    assert_eq!(wrap(&ekm, "v0/keys/demo", Value::Null).0, 200, "the others go on");
    assert_eq!(wrap(&ekm, "v0/keys/none", Value::Null).0, 404);
    assert_eq!(ekm.metric("ekm_catalog_rejected_rows"), 1.0);
    assert!(ekm.log().contains("its policy is refused"), "{}", ekm.log());
}

#[test]
fn a_blob_of_another_key_is_the_same_400_as_rubbish() {
    let (ekm, directory) = serving();
    key(&directory, &["create", "v0/keys/other", "--caller", "*"]).unwrap();
    ekm.eventually("served", || wrap(&ekm, "v0/keys/other", Value::Null).0 == 200);
    let blob = ekm.wrap(b"x", b"");
    let answer = ekm.post("/v0/keys/other:unwrap", &json!({"wrappedBlob": blob}).to_string());
    let rubbish = ekm.post("/v0/keys/other:unwrap", r#"{"wrappedBlob":"AAAA"}"#);
    assert_eq!((answer.status, answer.text()), (400, rubbish.text()));
}

#[test]
fn a_policy_decides_about_caller_verb_and_justification_and_a_denial_names_which() {
    let (ekm, directory) = serving();
    let policy = directory.path().join("policy.json");
    let document = json!({"rules": [
        {"callers": ["service-*@gcp-sa-ekms.iam.gserviceaccount.com"], "verbs": ["wrap"],
         "justifications": {"allowed": ["CUSTOMER_INITIATED_ACCESS"], "missing": false, "unknown": false}},
    ]});
    fs::write(&policy, document.to_string()).unwrap();
    key(&directory, &["create", "v0/keys/strict", "--policy", policy.to_str().unwrap()]).unwrap();
    let strict = "v0/keys/strict";
    let reason = |reason: Value| json!({"accessReasonContext": {"reason": reason}});
    ekm.eventually("served", || wrap(&ekm, strict, reason("CUSTOMER_INITIATED_ACCESS".into())).0 == 200);
    assert_eq!(wrap(&ekm, strict, reason(5.into())).0, 200);
    for (context, given) in [
        (Value::Null, "MISSING"),
        (json!({}), "MISSING"),
        (json!({"accessReasonContext": {}}), "REASON_UNSPECIFIED"),
        (reason("GOOGLE_INITIATED_REVIEW".into()), "GOOGLE_INITIATED_REVIEW"),
        (reason("FOO".into()), "UNKNOWN"),
        (reason(9999.into()), "UNKNOWN"),
        // A health check bypasses nothing.
        (json!({"accessReasonContext": {"reason": 4}, "isKeyHealthCheck": true}), "GOOGLE_INITIATED_REVIEW"),
    ] {
        let expected = format!("the key's policy does not accept the justification {given} [denied]");
        assert_eq!(wrap(&ekm, strict, context), (403, expected));
    }
    let answer = ekm.post("/v0/keys/strict:unwrap", r#"{"wrappedBlob":"AAAA"}"#);
    assert_eq!(answer.message(), "the key's policy does not allow this caller to unwrap [denied]");
    ekm.eventually("audited", || {
        ekm.audit().iter().any(|line| line["code"] == "denied" && line["justification"] == "UNKNOWN")
    });
}

#[test]
fn a_policy_decides_about_the_resource_that_google_names() {
    let (ekm, directory) = serving();
    let policy = directory.path().join("policy.json");
    let document = json!({"rules": [{"callers": ["*"], "verbs": ["wrap"], "resources": ["projects/p/*"]}]});
    fs::write(&policy, document.to_string()).unwrap();
    key(&directory, &["create", "v0/keys/bound", "--policy", policy.to_str().unwrap()]).unwrap();
    let named = |name: &str| json!({"relativeResourceName": name});
    ekm.eventually("served", || wrap(&ekm, "v0/keys/bound", named("projects/p/locations/eu")).0 == 200);
    for (context, problem) in [
        (named("projects/q/locations/eu"), "the key's policy does not name the request's resource"),
        (json!({}), "the key's policy allows this for certain resources only, and the request names none"),
    ] {
        assert_eq!(wrap(&ekm, "v0/keys/bound", context), (403, format!("{problem} [denied]")));
    }
}

#[test]
fn wrong_input_to_ekm_key_says_what_to_do_and_changes_nothing() {
    let (_ekm, directory) = serving();
    let before = key(&directory, &["list", "--output", "json"]).unwrap();
    let blank = directory.path().join("blank.json");
    fs::write(&blank, r#"{"rules":[{"callers":[],"verbs":["wrap"]}]}"#).unwrap();
    for (arguments, expected) in [
        (&["create", "v0/keys/demo", "--caller", "*"][..], "error[catalog_path_taken]"),
        (&["create", "v0//keys", "--caller", "*"], "a key path has no empty segment"),
        (&["create", "v0/keys/a:b", "--caller", "*"], "a key path consists of"),
        (&["create", "v0/keys/x"], "--caller"),
        (&["create", "v0/keys/x", "--caller", " "], "without spaces around"),
        (&["create", "v0/keys/x", "--caller", "nonsense"], "neither '@' nor '*'"),
        (&["set-policy", "v0/keys/none", "--caller", "*"], "error[catalog_not_found]"),
        (
            &["create", "v0/keys/x", "--policy", blank.to_str().unwrap()],
            "error[policy]: the policy is refused: rule 1 has no callers",
        ),
        (&["create", "v0/keys/x", "--policy", "/does/not/exist"], "error[io]: cannot read /does/not/exist"),
        (&["disable", "v0/keys/none"], "error[catalog_not_found]"),
        (&["add-path", "v0/keys/none", "v0/keys/x"], "error[catalog_not_found]"),
        (&["add-path", "v0/keys/demo", "v0/keys/demo"], "error[catalog_path_taken]"),
    ] {
        let error = key(&directory, arguments).unwrap_err();
        assert!(error.contains(expected), "{arguments:?} gave:\n{error}");
    }
    assert_eq!(key(&directory, &["list", "--output", "json"]).unwrap(), before);
}

#[test]
fn a_list_is_a_table_for_people_and_json_for_machines() {
    let (_ekm, directory) = serving();
    let table = key(&directory, &["list"]).unwrap();
    assert!(table.starts_with("v0/keys/demo  enabled  1  software  "), "{table}");
    let rows: Value = serde_json::from_str(&key(&directory, &["list", "--output", "json"]).unwrap()).unwrap();
    assert_eq!(rows[0]["paths"], json!(["v0/keys/demo"]));
    assert_eq!((&rows[0]["state"], &rows[0]["custody"]), (&json!("enabled"), &json!("software")));
}

fn sqlite(directory: &Directory, statement: &str) {
    let file = directory.path().join("catalog.db");
    let status = std::process::Command::new("sqlite3").arg(file).arg(statement).status();
    assert!(status.expect("sqlite3: apt-get install sqlite3").success());
}

#[test]
fn a_catalog_that_cannot_be_read_stops_nothing_but_answers_about_unknown_keys() {
    let directory = set_up(&[]);
    let ekm = Ekm::serve(&directory, |config| {
        config.replace("[catalog]", "[catalog]\nstale_after_s = 1\npoll_interval_ms = 50")
    });
    assert_eq!(wrap(&ekm, "v0/keys/none", Value::Null).0, 404);
    sqlite(&directory, "ALTER TABLE catalog RENAME TO hidden");
    ekm.eventually("stale", || wrap(&ekm, "v0/keys/none", Value::Null).0 == 503);
    assert_eq!(wrap(&ekm, "v0/keys/demo", Value::Null).0, 200, "a known key goes on");
    let mut newer = ekm_tests::unbase64(&ekm.wrap(b"x", b""));
    newer[20] = 2; // the key's version 2, which this catalog may have and the snapshot has not
    let body = json!({"wrappedBlob": ekm_tests::base64(&newer)}).to_string();
    assert_eq!(ekm.post("/v0/keys/demo:unwrap", &body).status, 503);
    assert_eq!(ekm.ops("/readyz").status, 200, "and the frontend stays ready");
    sqlite(&directory, "ALTER TABLE hidden RENAME TO catalog");
    ekm.eventually("fresh again", || wrap(&ekm, "v0/keys/none", Value::Null).0 == 404);
    // Replaced by a copy: what the service reads is no longer what `ekm key` changes.
    let file = directory.path().join("catalog.db");
    fs::rename(&file, file.with_extension("old")).unwrap();
    fs::copy(file.with_extension("old"), &file).unwrap();
    ekm.eventually("stale", || wrap(&ekm, "v0/keys/none", Value::Null).0 == 503);
    assert!(ekm.log().contains("was moved or replaced under the running service; restart it"), "{}", ekm.log());
    assert_eq!(wrap(&ekm, "v0/keys/demo", Value::Null).0, 200, "a known key goes on");
    fs::rename(file.with_extension("old"), &file).unwrap();
    ekm.eventually("fresh again", || wrap(&ekm, "v0/keys/none", Value::Null).0 == 404);
}
