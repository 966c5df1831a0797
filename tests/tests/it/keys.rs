//! Keys as a running service has them: by path, by policy, and from a catalog that was spoilt or cannot be read.

use std::fs;

use ekm_tests::{CALLER, Directory, Ekm, set_up};
use serde_json::{Value, json};

fn wrap(ekm: &Ekm, path: &str, context: Value) -> (u16, String) {
    let mut body = json!({"plaintext": "AA=="});
    if !context.is_null() {
        body["additionalContext"] = context;
    }
    let answer = ekm.post(&format!("/{path}:wrap"), &body.to_string());
    (answer.status, if answer.status == 200 { String::new() } else { answer.message() })
}

fn rule() -> Value {
    json!({"callers": [CALLER], "verbs": ["wrap", "unwrap"]})
}

/// Behind the back of the service, waiting while it writes.
pub(crate) fn sqlite(directory: &Directory, statement: &str) {
    let file = directory.path().join("catalog.db");
    let status =
        std::process::Command::new("sqlite3").args(["-cmd", ".timeout 60000"]).arg(file).arg(statement).status();
    assert!(status.expect("sqlite3: apt-get install sqlite3").success());
}

#[test]
fn a_key_with_two_paths_opens_its_blobs_under_either() {
    let ekm = Ekm::dev(&[]);
    let blob = ekm.wrap(b"moved", b"");
    ekm.change_here(&json!({"type": "key-add-path", "path": "v0/keys/demo", "new": "v0/vpc/demo"}));
    let body = json!({"wrappedBlob": blob}).to_string();
    for path in ["v0/vpc/demo", "v0/keys/demo"] {
        assert_eq!(ekm.post(&format!("/{path}:unwrap"), &body).status, 200, "{path}");
    }
}

#[test]
fn a_policy_decides_about_the_resource_that_google_names() {
    let ekm = Ekm::dev(&[]);
    ekm.create_key("v0/keys/bound", &json!({"callers": [CALLER], "verbs": ["wrap"], "resources": ["projects/p/*"]}));
    let named = |name: &str| json!({"relativeResourceName": name});
    assert_eq!(wrap(&ekm, "v0/keys/bound", named("projects/p/locations/eu")).0, 200);
    for (context, problem) in [
        (named("projects/q/locations/eu"), "the key's policy does not name the request's resource"),
        (json!({}), "the key's policy allows this for certain resources only, and the request names none"),
    ] {
        assert_eq!(wrap(&ekm, "v0/keys/bound", context), (403, format!("{problem} [denied]")));
    }
}

#[test]
fn a_key_whose_row_was_spoilt_goes_on_until_a_restart_and_is_then_a_503_and_never_a_404() {
    let directory = set_up(&[]);
    let serve = || Ekm::serve(&directory, |config| config.replace("[catalog]", "[catalog]\nverify_interval_s = 1"));
    let ekm = serve();
    let spoil = |kind: &str, name: &str| {
        sqlite(
            &directory,
            &format!(
                "UPDATE records SET body = zeroblob(length(body)) WHERE kind = '{kind}'
                 AND id = (SELECT id FROM names WHERE kind = '{kind}' AND name = '{name}')"
            ),
        );
    };
    let unavailable = (503, "temporarily unavailable, try again [key_unavailable]".to_owned());
    for path in ["v0/keys/own-row", "v0/keys/policy-row"] {
        ekm.create_key(path, &rule());
        assert_eq!(wrap(&ekm, path, Value::Null).0, 200);
    }
    assert_eq!(wrap(&ekm, "v0/keys/none", Value::Null).0, 404);
    spoil("key", "v0/keys/own-row");
    spoil("policy", "v0/keys/policy-row");
    ekm.eventually("refused", || ekm.metric("ekm_catalog_rejected_rows") == 2.0);
    for path in ["v0/keys/own-row", "v0/keys/policy-row", "v0/keys/demo"] {
        assert_eq!(wrap(&ekm, path, Value::Null).0, 200, "{path}: what was read before it was spoilt stays in use");
    }
    assert_eq!(wrap(&ekm, "v0/keys/none", Value::Null), unavailable, "the spoilt row may be that key's");

    drop(ekm);
    let ekm = serve();
    for path in ["v0/keys/own-row", "v0/keys/policy-row", "v0/keys/none"] {
        assert_eq!(wrap(&ekm, path, Value::Null), unavailable, "{path}");
    }
    assert_eq!(wrap(&ekm, "v0/keys/demo", Value::Null).0, 200, "the others go on");
    let report = ekm.ops("/readyz?verbose").text();
    for kind in ["key", "policy"] {
        let rows = report.lines().filter(|line| {
            line.starts_with(&format!("[!] row refused: {kind} "))
                && line.ends_with("changed by somebody else than ekm")
        });
        assert_eq!(rows.count(), 1, "{report}");
    }
    assert!(ekm.log().contains("\"code\":\"catalog_tampered\""), "{}", ekm.log());
}

#[test]
fn a_catalog_that_cannot_be_read_stops_nothing_but_answers_about_unknown_keys() {
    let directory = set_up(&[]);
    let ekm = Ekm::serve(&directory, |config| config.replace("[catalog]", "[catalog]\npoll_interval_ms = 50"));
    assert_eq!(wrap(&ekm, "v0/keys/none", Value::Null).0, 404);
    sqlite(&directory, "ALTER TABLE head RENAME TO hidden");
    ekm.eventually("stale", || wrap(&ekm, "v0/keys/none", Value::Null).0 == 503);
    assert_eq!(wrap(&ekm, "v0/keys/demo", Value::Null).0, 200, "a known key goes on");
    let mut newer = ekm_tests::unbase64(&ekm.wrap(b"x", b""));
    newer[20] = 2; // the key's version 2, which this catalog may have and the snapshot has not
    let body = json!({"wrappedBlob": ekm_tests::base64(&newer)}).to_string();
    assert_eq!(ekm.post("/v0/keys/demo:unwrap", &body).status, 503);
    assert_eq!(ekm.ops("/readyz").status, 200, "and the frontend stays ready");
    sqlite(&directory, "ALTER TABLE hidden RENAME TO head");
    ekm.eventually("fresh again", || wrap(&ekm, "v0/keys/none", Value::Null).0 == 404);
    // Replaced by a copy: what the service reads is no longer what others change.
    let file = directory.path().join("catalog.db");
    fs::rename(&file, file.with_extension("old")).unwrap();
    fs::copy(file.with_extension("old"), &file).unwrap();
    ekm.eventually("stale", || wrap(&ekm, "v0/keys/none", Value::Null).0 == 503);
    assert!(ekm.log().contains("was moved or replaced under the running service; restart it"), "{}", ekm.log());
    assert_eq!(wrap(&ekm, "v0/keys/demo", Value::Null).0, 200, "a known key goes on");
    fs::rename(file.with_extension("old"), &file).unwrap();
    ekm.eventually("fresh again", || wrap(&ekm, "v0/keys/none", Value::Null).0 == 404);
}
