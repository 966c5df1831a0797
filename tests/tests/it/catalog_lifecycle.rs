//! Changes that nobody should be able to make: approvals that are used in the wrong way, and commands that make no sense.

use std::fs;
use std::path::Path;
use std::thread::scope;

use ekm_tests::{Answer, CALLER, Directory, Ekm, key_create, set_up};
use serde_json::{Value, json};

const KEY: &str = "v0/keys/orders";

/// Asks for a change that needs a second person.
fn asked(ekm: &Ekm, command: Value) -> Value {
    let answer = ekm.ask(&json!({"command": command, "reason": "a test"}));
    assert_eq!(answer.status, 202, "{}", answer.text());
    answer.json()["approval"].clone()
}

fn decide(ekm: &Ekm, token: Option<&str>, approval: &Value, word: &str, payload: &str) -> Answer {
    let target = format!("/v1/approvals/{}/{word}", approval["id"].as_str().unwrap());
    ekm.admin().admin("POST", &target, token, Some(&json!({"payload_sha256": payload}).to_string()))
}

fn approve(ekm: &Ekm, approval: &Value) -> Answer {
    decide(ekm, Some(&ekm.second_person()), approval, "approve", approval["payload_sha256"].as_str().unwrap())
}

#[track_caller]
fn refused(answer: &Answer, status: u16, code: &str) {
    assert_eq!((answer.status, answer.json()["code"].as_str()), (status, Some(code)), "{}", answer.text());
}

fn with_key() -> Ekm {
    let ekm = Ekm::dev(&[]);
    ekm.make_key(KEY);
    ekm.eventually("served", || ekm.try_wrap(KEY).0 == 200);
    ekm
}

fn state(ekm: &Ekm) -> Value {
    ekm.show(&format!("/v1/keys/{KEY}")).json()["state"].clone()
}

#[test]
fn an_approval_works_once_for_what_was_seen_and_by_somebody_else() {
    let ekm = with_key();
    let destroy = json!({"type": "key-destroy", "path": KEY});
    let approval = asked(&ekm, destroy.clone());
    let payload = approval["payload_sha256"].as_str().unwrap();
    refused(&decide(&ekm, None, &approval, "approve", payload), 409, "admin_approval_refused");
    let second = ekm.second_person();
    for other in ["", "00", &"0".repeat(64), &payload.to_uppercase()] {
        refused(&decide(&ekm, Some(&second), &approval, "approve", other), 409, "admin_approval_refused");
    }
    let other = asked(&ekm, json!({"type": "key-destroy", "path": "v0/keys/demo"}));
    refused(&decide(&ekm, Some(&second), &other, "approve", payload), 409, "admin_approval_refused");
    assert_eq!(state(&ekm), "enabled");
    // Many at once, some of them rejecting: one word counts.
    let words = ["approve", "reject", "approve", "approve", "reject", "approve"];
    let answers: Vec<_> = scope(|scope| {
        let (ekm, second, approval) = (&ekm, &second, &approval);
        let threads = words.map(|word| scope.spawn(move || decide(ekm, Some(second), approval, word, payload)));
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let done: Vec<_> = words.iter().zip(&answers).filter(|(_, answer)| answer.status == 200).collect();
    assert_eq!(done.len(), 1, "{answers:?}");
    assert!(answers.iter().all(|answer| matches!(answer.status, 200 | 409)), "{answers:?}");
    assert_eq!(state(&ekm), if *done[0].0 == "approve" { "destroy-scheduled" } else { "enabled" });
    for word in ["approve", "reject"] {
        refused(&decide(&ekm, Some(&second), &approval, word, payload), 409, "admin_approval_refused");
    }
    // Taken back by who asked for it, it stays so.
    let mine = decide(&ekm, None, &other, "reject", other["payload_sha256"].as_str().unwrap());
    assert_eq!(mine.status, 200, "{}", mine.text());
    refused(&approve(&ekm, &other), 409, "admin_approval_refused");
    assert_eq!(ekm.show("/v1/keys/v0/keys/demo").json()["state"], "enabled");
    let nowhere = json!({"id": "00000000-0000-4000-8000-000000000000", "payload_sha256": payload});
    refused(&approve(&ekm, &nowhere), 404, "admin_not_found");
}

#[test]
fn a_person_does_not_become_a_second_one_by_another_login() {
    let directory: Directory = set_up(&[]);
    let ekm = Ekm::serve(&directory, |config| {
        config.replace("name = \"developer\"", "name = \"developer\"\nemail = \"dev@localhost\"")
    });
    let approval = asked(&ekm, json!({"type": "key-destroy", "path": "v0/keys/demo"}));
    let token = ekm.issuer().token_with(json!({"aud": "ekm-admin", "email": "dev@localhost"}));
    let answer = decide(&ekm, Some(&token), &approval, "approve", approval["payload_sha256"].as_str().unwrap());
    refused(&answer, 409, "admin_approval_refused");
    // Nor does the way in change the person's requests.
    let same = json!({"command": {"type": "key-disable", "path": "v0/keys/demo"}, "request_id": "1"});
    let first = ekm.ask(&same);
    let again = ekm.admin().admin("POST", "/v1/changes", Some(&token), Some(&same.to_string()));
    assert_eq!((first.status, again.json()), (200, first.json()));
}

#[test]
fn an_approval_for_something_that_has_changed_since_comes_to_nothing() {
    let ekm = with_key();
    let seen = ekm.show(&format!("/v1/keys/{KEY}")).json()["revision"].clone();
    let answer =
        ekm.ask(&json!({"command": {"type": "key-destroy", "path": KEY}, "if_revision": seen, "reason": "a test"}));
    let approval = answer.json()["approval"].clone();
    ekm.change(json!({"type": "key-disable", "path": KEY}));
    refused(&approve(&ekm, &approval), 412, "admin_revision_differs");
    assert_eq!(state(&ekm), "disabled");
    let shown = ekm.show(&format!("/v1/approvals/{}", approval["id"].as_str().unwrap())).json();
    assert_eq!(shown["state"], "requested");
}

#[test]
fn what_is_to_be_destroyed_unwraps_and_does_not_wrap_and_can_be_had_back() {
    let ekm = with_key();
    let blob = ekm.try_wrap(KEY).1;
    assert_eq!(approve(&ekm, &asked(&ekm, json!({"type": "key-destroy", "path": KEY}))).status, 200);
    ekm.eventually("not wrapping", || ekm.try_wrap(KEY).0 == 400);
    assert_eq!(ekm.try_unwrap(KEY, &blob), 200);
    assert!(ekm.metric("ekm_destroy_scheduled_uses_total") >= 1.0);
    for command in ["key-enable", "key-disable", "key-rotate"] {
        let answer = ekm.ask(&json!({"command": {"type": command, "path": KEY}}));
        refused(&answer, 409, "admin_impossible");
    }
    refused(&ekm.ask(&json!({"command": key_create(KEY)})), 409, "admin_taken");
    let alias = json!({"type": "key-add-path", "path": "v0/keys/demo", "new": KEY});
    refused(&ekm.ask(&json!({"command": alias})), 409, "admin_taken");

    let undelete = json!({"type": "key-undelete", "path": KEY});
    assert_eq!(ekm.change(undelete.clone())["outcome"], "done");
    assert_eq!(ekm.change(undelete)["outcome"], "unchanged");
    assert_eq!(state(&ekm), "disabled");
    ekm.change(json!({"type": "key-enable", "path": KEY}));
    ekm.eventually("wraps", || ekm.try_wrap(KEY).0 == 200);
    assert_eq!(ekm.try_unwrap(KEY, &blob), 200);
}

#[test]
fn commands_that_make_no_sense_are_the_callers_fault_and_change_nothing() {
    let ekm = with_key();
    let revision = || ekm.show("/v1/catalog").json()["revision"].clone();
    let policy = |rules: Value| json!({"type": "policy-create", "name": "p", "policy": {"rules": rules}});
    let rule = json!({"callers": [CALLER], "verbs": ["wrap"]});
    let key = |change: Value| {
        let mut command = key_create("v0/keys/new");
        command.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
        command
    };
    let mut deep = json!({});
    for _ in 0..60 {
        deep = json!({"a": [deep]});
    }
    let mut commands = vec![
        json!({"type": "policy-create", "name": "p", "policy": deep}),
        json!({"type": "policy-create", "name": "p", "policy": null}),
        json!({"type": "policy-create", "name": "p", "policy": "rules"}),
        policy(json!([])),
        policy(json!([{"callers": [], "verbs": ["wrap"]}])),
        policy(json!([{"callers": ["x".repeat(100_000)], "verbs": ["wrap"]}])),
        policy(json!(vec![rule.clone(); 20_000])),
        key(json!({"rotation_days": -1})),
        key(json!({"rotation_days": 4_294_967_296_u64})),
        key(json!({"rotation_days": 1.5})),
        key(json!({"custody": "hsm-software"})),
        key(json!({"labels": {"": "x"}})),
        key(json!({"labels": {"Team": "x"}})),
        key(json!({"labels": {"t\u{435}am": "x"}})),
        key(json!({"labels": {"team": "x".repeat(64)}})),
        key(json!({"labels": {"team": null}})),
        key(json!({"description": "x".repeat(1025)})),
        key(json!({"description": "\u{1b}[2J"})),
        key(json!({"space": "v0/cryptospaces/"})),
        key(json!({"policy": {"own": {"rules": [rule]}, "named": "x"}})),
        key(json!({"unknown": 1})),
        json!({"type": "key-disable", "path": KEY, "version": -1}),
        json!({"type": "key-destroy", "path": KEY, "version": 0}),
        json!({"type": "key-disable", "path": KEY, "version": 18_446_744_073_709_551_615_u64}),
        json!({"type": "key-explode", "path": KEY}),
        json!({"type": "space-create", "path": "v0/keys/space"}),
        json!({"type": "settings-set", "destroy_grace_days": 6}),
        json!({"type": "settings-set", "destroy_grace_days": 4_294_967_295_u64}),
        json!({}),
        json!([]),
        json!(null),
    ];
    for path in [
        "",
        "/",
        "v0/keys/",
        "v0//keys",
        "v0/keys/..",
        "v0/keys/a b",
        "v0/keys/\u{0}",
        "v0/keys/a\n",
        "v0/keys/%61",
        "v0/keys/\u{43e}rders",
        "v0/keys/ord\u{200b}ers",
        "v0/keys/a:wrap",
        "v0/cryptospaces/demo",
    ] {
        commands.push(key(json!({"path": path})));
    }
    commands.push(key(json!({"path": format!("v0/keys/{}", "x".repeat(2000))})));
    for name in ["", ".", "Shared", "a/b", "p\u{43e}licy", "a b", "a\n"] {
        if name != "." {
            commands.push(json!({"type": "policy-create", "name": name, "policy": {"rules": [rule]}}));
        }
    }
    commands.push(json!({"type": "policy-create", "name": "x".repeat(64), "policy": {"rules": [rule]}}));
    let before = revision();
    for command in commands {
        let answer = ekm.ask(&json!({"command": command, "reason": "a test", "if_revision": null}));
        let text = command.to_string();
        let shown = &text[..text.len().min(200)];
        assert!(
            matches!(answer.status, 400 | 413 | 422 | 404 | 409 | 428),
            "{shown}: {} {}",
            answer.status,
            answer.text()
        );
        assert!(answer.text().len() < 2000, "the answer repeats what was sent: {shown}");
    }
    for request in [
        json!({"command": {"type": "key-disable", "path": KEY}, "request_id": ""}),
        json!({"command": {"type": "key-disable", "path": KEY}, "request_id": "x".repeat(65)}),
        json!({"command": {"type": "key-disable", "path": KEY}, "request_id": "a b"}),
        json!({"command": {"type": "key-disable", "path": KEY}, "request_id": "\u{e9}"}),
        json!({"command": {"type": "key-disable", "path": KEY}, "if_revision": -1}),
        json!({"command": {"type": "key-disable", "path": KEY}, "if_revision": 1e300}),
        json!({"command": {"type": "key-disable", "path": KEY}, "reason": "\u{0}"}),
        json!({"command": {"type": "key-disable", "path": KEY}, "dry_run": "yes"}),
        json!({"command": {"type": "key-disable", "path": KEY}, "force": true}),
    ] {
        let answer = ekm.ask(&request);
        assert!(matches!(answer.status, 400 | 422), "{request}: {} {}", answer.status, answer.text());
    }
    for target in [
        "/v1/changes?limit=0",
        "/v1/changes?limit=18446744073709551615",
        "/v1/changes?before=18446744073709551615",
        "/v1/changes?before=-1",
        "/v1/keys?page_size=0",
        "/v1/keys?page_size=99999999999",
        "/v1/keys?page_token=%00",
        "/v1/keys?prefix=%ff",
        "/v1/keys?label=x",
        "/v1/keys?state=none",
        "/v1/approvals?page_token=x",
        "/v1/approvals/x",
        "/v1/policies/%00",
        "/v1/policies/..%2f",
    ] {
        let status = ekm.show(target).status;
        assert!(matches!(status, 200 | 400 | 404 | 422), "{target}: {status}");
    }
    assert_eq!(revision(), before);
    assert_eq!(ekm.try_wrap(KEY).0, 200);
    // What is odd and allowed.
    ekm.change(policy_all_denied());
    ekm.make_key(&format!("v0/keys/{}", "x".repeat(200)));
    ekm.make_key("v0/keys/null");
    ekm.make_key("v0/keys/-._~");
}

fn policy_all_denied() -> Value {
    let rule = json!({"callers": ["nobody@example.com"], "verbs": ["unwrap"]});
    json!({"type": "policy-create", "name": "nobody", "policy": {"rules": [rule]}})
}

/// Nobody's clock can be turned forward to destroy a key before its time, or back to put changes into another order.
#[test]
fn a_clock_that_jumps_destroys_nothing_and_the_times_of_the_log_never_go_back() {
    let directory = set_up(&["--softhsm"]);
    let clock = directory.path().join("clock");
    fs::write(&clock, "+0").unwrap();
    let library = format!("/usr/lib/{}-linux-gnu/faketime/libfaketime.so.1", std::env::consts::ARCH);
    assert!(Path::new(&library).exists(), "libfaketime is missing: apt-get install faketime");
    // ekm starts itself anew with what an HSM's library needs.
    let environment = format!(
        "[shard.replica.environment]\nLD_PRELOAD = {library:?}\nFAKETIME_TIMESTAMP_FILE = {clock:?}\nFAKETIME_NO_CACHE = \"1\"\n\
         FAKETIME_DONT_FAKE_MONOTONIC = \"1\"\n"
    );
    let ekm = Ekm::serve(&directory, |text| text.replace("[shard.replica.environment]\n", &environment));
    ekm.make_key(KEY);
    ekm.eventually("served", || ekm.try_wrap(KEY).0 == 200);
    let blob = ekm.try_wrap(KEY).1;
    let approval = asked(&ekm, json!({"type": "key-destroy", "path": KEY}));
    assert_eq!(approve(&ekm, &approval).status, 200);
    assert_eq!(state(&ekm), "destroy-scheduled");

    fs::write(&clock, "+60d").unwrap();
    ekm.eventually("noticed", || ekm.log().contains("\"code\":\"clock\""));
    ekm.change(json!({"type": "space-create", "path": "v0/cryptospaces/from-the-future"}));
    fs::write(&clock, "-60d").unwrap();
    ekm.change(json!({"type": "space-create", "path": "v0/cryptospaces/from-the-past"}));
    fs::write(&clock, "+0").unwrap();
    assert_eq!(state(&ekm), "destroy-scheduled");
    ekm.eventually("unwraps", || ekm.try_unwrap(KEY, &blob) == 200);
    let changes = ekm.show("/v1/changes").json()["items"].as_array().unwrap().clone();
    let times: Vec<_> = changes.iter().rev().map(|change| change["at"].as_str().unwrap().to_owned()).collect();
    assert!(times.is_sorted(), "{times:?}");
}
