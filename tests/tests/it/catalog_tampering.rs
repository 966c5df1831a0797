//! Somebody who can write SQL: destroys rows, and cannot read one, change one, bring an old one back, or have an operator do it for him.

use std::thread::sleep;
use std::time::Duration;

use ekm_tests::{CALLER, Deployment, Ekm, base64};
use serde_json::json;

const EAGER: &str = "verify_interval_s = 1\npoll_interval_ms = 50";
const DEMO: &str = "v0/keys/demo";

/// The revision that this frontend holds.
fn revision(ekm: &Ekm) -> u64 {
    ekm.show("/v1/catalog").json()["revision"].as_u64().unwrap()
}

fn id_of(ekm: &Ekm, path: &str) -> String {
    ekm.show(&format!("/v1/keys/{path}")).json()["id"].as_str().unwrap().to_owned()
}

/// A key, and one that was disabled after it had been in use; and a running frontend that knows it.
struct Scene {
    deployment: Deployment,
    running: Ekm,
    /// Of the key that is disabled.
    id: String,
    other: String,
}

const KEY: &str = "v0/keys/revoked";
const OTHER: &str = "v0/keys/other";

impl Scene {
    fn new() -> Self {
        let deployment = Deployment::new(&[]);
        let running = deployment.start_with(&deployment.directory(), EAGER);
        for path in [DEMO, KEY, OTHER] {
            running.make_key(path);
        }
        running.eventually("served", || running.try_wrap(OTHER).0 == 200);
        let (id, other) = (id_of(&running, KEY), id_of(&running, OTHER));
        deployment
            .database
            .psql("CREATE TABLE enabled AS SELECT * FROM records; CREATE TABLE enabled_head AS SELECT * FROM head");
        running.change(json!({"type": "key-disable", "path": KEY}));
        running.eventually("disabled", || running.try_wrap(KEY).0 == 400);
        // What a restore brings back must be the same to the last byte.
        deployment.database.psql(
            "CREATE TABLE good AS SELECT * FROM records; CREATE TABLE good_head AS SELECT * FROM head;\
             CREATE TABLE good_changes AS SELECT * FROM changes; CREATE TABLE good_names AS SELECT * FROM names;\
             CREATE TABLE good_keys AS SELECT * FROM catalog_keys",
        );
        Self { deployment, running, id, other }
    }

    /// Runs SQL; `{id}` is the disabled key's, `{other}` the other one's.
    fn tamper(&self, sql: &str) {
        let sql = sql.replace("{id}", &self.id).replace("{other}", &self.other);
        // One transaction: a frontend must not see a repair half done.
        self.deployment.database.psql(&format!("BEGIN; {sql}; COMMIT"));
    }

    fn repair(&self) {
        self.tamper(
            "DELETE FROM records; INSERT INTO records SELECT * FROM good; DELETE FROM head; INSERT INTO head SELECT * FROM good_head; \
             DELETE FROM changes; INSERT INTO changes SELECT * FROM good_changes; DELETE FROM names; \
             INSERT INTO names SELECT * FROM good_names; DELETE FROM catalog_keys; INSERT INTO catalog_keys SELECT * FROM good_keys",
        );
        let alarms = ["ekm_catalog_rejected_rows", "ekm_catalog_follow_failed"];
        self.running.eventually("sound again", || alarms.iter().all(|alarm| self.running.metric(alarm) == 0.0));
    }
}

#[test]
fn rows_that_sql_has_changed_are_refused_one_by_one_and_all_other_keys_go_on() {
    let scene = Scene::new();
    let running = &scene.running;
    // What is done; whether the disabled key and the other one are still known to a frontend that starts afterwards.
    let cases = [
        (
            "UPDATE records r SET body = s.body FROM good s WHERE r.id IN ('{id}', '{other}') AND s.id IN ('{id}', '{other}') AND s.id <> r.id",
            false,
            false,
        ),
        ("UPDATE records SET body = set_byte(body, 40, get_byte(body, 40) # 1) WHERE id = '{id}'", false, true),
        (
            "UPDATE records r SET body = e.body, revision = e.revision FROM enabled e WHERE r.id = '{id}' AND e.id = '{id}'",
            false,
            true,
        ),
        ("UPDATE records r SET body = e.body FROM enabled e WHERE r.id = '{id}' AND e.id = '{id}'", false, true),
        ("DELETE FROM records WHERE id = '{id}'", false, true),
        (
            "INSERT INTO records SELECT kind, '00000000-0000-4000-8000-000000000000', revision, body FROM good WHERE id = '{id}'",
            true,
            true,
        ),
        (
            "INSERT INTO records SELECT kind, id, revision + 1000, body FROM good WHERE id = '{id}' ON CONFLICT (kind, id) DO UPDATE SET revision = 9999",
            false,
            true,
        ),
        ("INSERT INTO records SELECT 'space', id, revision, body FROM good WHERE id = '{id}'", true, true),
        ("INSERT INTO records SELECT E'k\\n\\u0001ind', id, revision, body FROM good WHERE id = '{id}'", true, true),
        ("UPDATE records SET body = '' WHERE id = '{id}'", false, true),
        ("UPDATE records SET body = decode(repeat('7b', 8000000), 'hex') WHERE id = '{id}'", false, true),
        ("UPDATE records SET revision = -revision WHERE id = '{id}'", false, true),
        ("UPDATE records SET id = 'nonsense' WHERE id = '{id}'", false, true),
        ("INSERT INTO records SELECT kind, upper(id), revision, body FROM enabled WHERE id = '{id}'", true, true),
        ("INSERT INTO records SELECT 'key', '{' || id || '}', -1, body FROM enabled WHERE id = '{id}'", true, true),
    ];
    for (sql, key_is_known, other_is_known) in cases {
        scene.tamper(sql);
        running.eventually(&format!("alarmed by {sql}"), || running.metric("ekm_catalog_rejected_rows") >= 1.0);
        assert!(running.state().contains("[!] row refused: "), "{}", running.state());
        let cold = scene.deployment.start_with(&scene.deployment.directory(), EAGER);
        for (ekm, expected) in [
            (running, [200, 400, 200]),
            (&cold, [200, if key_is_known { 400 } else { 503 }, if other_is_known { 200 } else { 503 }]),
        ] {
            assert_eq!([DEMO, KEY, OTHER].map(|path| ekm.try_wrap(path).0), expected, "{sql}\n{}", ekm.state());
            assert_eq!(
                ekm.try_wrap("v0/keys/unknown").0,
                503,
                "while a row is refused nobody knows whose it was: {sql}"
            );
            assert!(ekm.metric("ekm_catalog_rejected_rows") >= 1.0, "{sql}");
        }
        assert!(cold.log().contains("\"code\":\"catalog_row\""), "{sql}\n{}", cold.log());
        // The others can still be changed and taken away.
        assert_eq!(
            running.ask(&json!({"command": {"type": "key-disable", "path": DEMO}, "dry_run": true})).status,
            200,
            "{sql}"
        );
        scene.repair();
    }
    assert_eq!(running.try_wrap("v0/keys/unknown").0, 404);
    // And it still follows.
    running.change(json!({"type": "key-disable", "path": DEMO}));
    running.eventually("disabled", || running.try_wrap(DEMO).0 == 400);
}

#[test]
fn a_head_or_a_wrapped_key_that_sql_has_changed_stops_nobody_who_runs_and_opens_nothing_for_who_starts() {
    let scene = Scene::new();
    let running = &scene.running;
    for sql in [
        "UPDATE head SET revision = revision + 1",
        "UPDATE head SET revision = revision - 1",
        "UPDATE head SET revision = -1",
        "UPDATE head SET body = set_byte(body, 40, get_byte(body, 40) # 1)",
        "UPDATE head SET catalog_id = '00000000-0000-4000-8000-000000000000'",
        "UPDATE head SET catalog_id = 'nonsense'",
        "DELETE FROM head",
        "DELETE FROM head; INSERT INTO head SELECT * FROM enabled_head",
    ] {
        scene.tamper(sql);
        running.eventually(&format!("alarmed by {sql}"), || running.metric("ekm_catalog_follow_failed") == 1.0);
        assert!(running.state().contains("[!] catalog not followed: "), "{}", running.state());
        assert_eq!([DEMO, KEY, OTHER].map(|path| running.try_wrap(path).0), [200, 400, 200], "{sql}");
        let refused = running.ask(&json!({"command": {"type": "key-enable", "path": KEY}}));
        assert_eq!(refused.status, 500, "{sql}: {}", refused.text());
        scene.repair();
    }
    scene.tamper("UPDATE catalog_keys SET wrapped = set_byte(wrapped, 20, get_byte(wrapped, 20) # 1)");
    assert_eq!([DEMO, KEY, OTHER].map(|path| running.try_wrap(path).0), [200, 400, 200]);
    running.change(json!({"type": "key-disable", "path": DEMO}));
    running.eventually("disabled", || running.try_wrap(DEMO).0 == 400);
}

#[test]
fn a_row_that_sql_has_taken_back_is_not_made_the_newest_by_the_next_change() {
    let scene = Scene::new();
    let running = &scene.running;
    let before = revision(running);
    scene.tamper("UPDATE records r SET body = e.body, revision = e.revision FROM enabled e WHERE r.id = '{id}' AND e.id = '{id}'");
    let shown = running.show(&format!("/v1/keys/{KEY}"));
    let seen = if shown.status == 200 { shown.json()["revision"].as_u64().unwrap() } else { 1 };
    let update = json!({"type": "key-update", "path": KEY, "labels": {"team": "a"}, "description": ""});
    let answer = running.ask(&json!({"command": update, "if_revision": seen}));
    assert_eq!(answer.status, 500, "{}", answer.text());
    let rotated = running.ask(&json!({"command": {"type": "key-rotate", "path": KEY}}));
    assert_eq!(rotated.status, 500, "{}", rotated.text());
    assert_eq!(revision(running), before);
    let cold = scene.deployment.start_with(&scene.deployment.directory(), EAGER);
    let cold_answer = cold.ask(&json!({"command": {"type": "key-rotate", "path": KEY}}));
    assert_eq!(cold_answer.status, 500, "{}", cold_answer.text());
    assert_eq!((running.try_wrap(KEY).0, cold.try_wrap(KEY).0), (400, 503));
    scene.repair();
    running.change(json!({"type": "key-rotate", "path": KEY}));
    running.eventually("rotated", || running.show(&format!("/v1/keys/{KEY}")).json()["primary_version"] == 2);
    assert_eq!(running.try_wrap(KEY).0, 400, "it is disabled as before");
}

#[test]
fn a_database_that_was_taken_back_is_refused_even_after_others_have_gone_on_with_it() {
    let scene = Scene::new();
    let running = &scene.running;
    let back = "DELETE FROM records; INSERT INTO records SELECT * FROM enabled; DELETE FROM head; INSERT INTO head SELECT * FROM enabled_head; \
                DELETE FROM changes WHERE revision > (SELECT revision FROM head)";
    scene.tamper(back);
    running.eventually("alarmed", || running.metric("ekm_catalog_follow_failed") == 1.0);
    assert!(running.state().contains("ekm catalog accept-restore"), "{}", running.state());
    // Who knows better does not build on it …
    let refused = running.ask(&json!({"command": {"type": "key-disable", "path": OTHER}}));
    assert_eq!(refused.status, 500, "{}", refused.text());
    // … and who knows nothing cannot help it: later revisions on another history.
    let cold = scene.deployment.start_with(&scene.deployment.directory(), EAGER);
    assert_eq!(cold.try_wrap(KEY).0, 200, "a frontend without memory cannot know");
    for number in 0..3 {
        cold.make_key(&format!("v0/keys/later-{number}"));
    }
    sleep(Duration::from_millis(2500)); // longer than the interval of verification
    assert_eq!([DEMO, KEY, OTHER].map(|path| running.try_wrap(path).0), [200, 400, 200], "{}", running.state());
    assert_eq!(running.metric("ekm_catalog_follow_failed"), 1.0);

    let accepted = scene.deployment.catalog_command("accept-restore");
    assert!(accepted.status.success(), "{accepted:?}");
    running.eventually("taken over", || running.try_wrap(KEY).0 == 200 && running.try_wrap("v0/keys/later-2").0 == 200);
    assert_eq!(running.metric("ekm_catalog_follow_failed"), 0.0);
    running.change(json!({"type": "key-disable", "path": KEY}));
    cold.eventually("disabled", || cold.try_wrap(KEY).0 == 400 && running.try_wrap(KEY).0 == 400);
}

#[test]
fn names_that_sql_has_exchanged_do_not_lead_a_change_to_another_key() {
    let scene = Scene::new();
    let running = &scene.running;
    scene.tamper(
        "UPDATE names SET id = CASE name WHEN 'v0/keys/revoked' THEN '{other}' ELSE '{id}' END \
         WHERE name IN ('v0/keys/revoked', 'v0/keys/other')",
    );
    for command in [
        json!({"type": "key-enable", "path": KEY}),
        json!({"type": "key-disable", "path": OTHER}),
        json!({"type": "key-destroy", "path": OTHER}),
        json!({"type": "key-rotate", "path": OTHER}),
    ] {
        let answer = running.ask(&json!({"command": command, "reason": "a test"}));
        assert_eq!(
            (answer.status, answer.json()["code"].as_str()),
            (500, Some("catalog_row")),
            "{command}: {}",
            answer.text()
        );
    }
    assert_eq!(running.show(&format!("/v1/keys/{OTHER}")).status, 500);
    assert_eq!(
        [DEMO, KEY, OTHER].map(|path| running.try_wrap(path).0),
        [200, 400, 200],
        "the data plane does not ask there"
    );
    scene.repair();
    // A path that was taken away is not given out again.
    scene.tamper("DELETE FROM names WHERE name = 'v0/keys/revoked'");
    let again = running.ask(&json!({"command": ekm_tests::key_create(KEY)}));
    assert_eq!((again.status, again.json()["code"].as_str()), (409, Some("admin_taken")), "{}", again.text());
}

#[test]
fn a_log_with_a_hole_is_found_by_its_readers() {
    let scene = Scene::new();
    let running = &scene.running;
    let socket = format!("unix:{}", running.ready.admin_socket.as_ref().unwrap().display());
    let verify = || ekm_tests::run_ekm(&["catalog", "log", "--verify", "--server", &socket]);
    assert!(verify().status.success(), "{:?}", verify());
    for sql in [
        "DELETE FROM changes WHERE revision = 3",
        "UPDATE changes c SET body = g.body FROM good_changes g WHERE c.revision = 3 AND g.revision = 4",
    ] {
        scene.tamper(sql);
        assert!(!verify().status.success(), "{sql}: {:?}", verify());
        // The rows add up, so nobody is stopped by it. With a wrong row beside it nobody can tell which one, and nothing changes.
        scene.tamper("DELETE FROM records WHERE id = '{id}'");
        running.eventually("alarmed", || running.metric("ekm_catalog_follow_failed") == 1.0);
        assert_eq!([DEMO, KEY, OTHER].map(|path| running.try_wrap(path).0), [200, 400, 200]);
        scene.repair();
    }
    // An entry from the far future keeps nobody reading for ever.
    scene.tamper("INSERT INTO changes VALUES (9223372036854775807, ''); DELETE FROM records WHERE id = '{id}'");
    running.eventually("alarmed", || running.metric("ekm_catalog_rejected_rows") == 1.0);
    assert_eq!([DEMO, KEY, OTHER].map(|path| running.try_wrap(path).0), [200, 400, 200]);
    scene.repair();
}

#[test]
fn a_dump_of_the_database_tells_paths_and_nothing_else() {
    let deployment = Deployment::new(&[]);
    let ekm = deployment.start();
    ekm.make_key("v0/keys/visible-path");
    let everybody = json!({"rules": [{"callers": ["secret-caller@example.com", "*"], "verbs": ["wrap"]}]});
    let narrow = json!({"rules": [{"callers": ["secret-caller@example.com"], "verbs": ["wrap"]}]});
    for (id, command) in [
        (
            "r1",
            json!({"type": "policy-create", "name": "shared", "policy": narrow, "description": "secret-description"}),
        ),
        ("r2", json!({"type": "policy-create", "name": "open", "policy": everybody})),
        (
            "r3",
            json!({"type": "key-update", "path": "v0/keys/visible-path", "labels": {"secret-label": "1"}, "description": "secret-words"}),
        ),
    ] {
        let mut request = json!({"command": command, "reason": "secret-reason", "request_id": id});
        if id == "r3" {
            request["if_revision"] = ekm.show("/v1/keys/v0/keys/visible-path").json()["revision"].clone();
        }
        let answer = ekm.ask(&request);
        assert!(matches!(answer.status, 200 | 202), "{}", answer.text());
        assert_eq!(ekm.ask(&request).json(), answer.json(), "a repeated request gets the first answer");
    }
    let dump = deployment.database.dump();
    assert!(dump.contains("visible-path"), "paths are in clear, so that the database can keep them unique");
    let key = fs_text(&ekm, "software.key");
    let bytes = bodies(&dump);
    for secret in
        ["secret-", CALLER, "gserviceaccount", "wrap\"", "check_blob", key.trim(), "external key manager, check blob"]
    {
        assert!(!dump.contains(secret), "{secret} is in the dump");
        assert!(!bytes.iter().any(|body| contains(body, secret.as_bytes())), "{secret} is in a column of bytes");
        let encoded = base64(secret);
        assert!(
            !bytes.iter().any(|body| contains(body, encoded.trim_end_matches('=').as_bytes())),
            "{secret} in base64"
        );
    }
    assert!(bytes.len() > 10);
}

fn fs_text(ekm: &Ekm, name: &str) -> String {
    std::fs::read_to_string(ekm.directory.path().join(name)).unwrap()
}

/// Every column of bytes in a dump.
fn bodies(dump: &str) -> Vec<Vec<u8>> {
    let fields = dump.split(['\t', '\n']).filter_map(|field| field.strip_prefix("\\\\x"));
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
    fields.map(|hex| hex.as_bytes().chunks_exact(2).map(byte).collect()).collect()
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    haystack.windows(needle.len()).any(|window| window == needle)
}
