//! What a policy's no looks like: to the caller, to the operator, and while it is not final.

use ekm_tests::{Answer, CALLER, Ekm, base64};
use serde_json::{Value, json};

const KEY: &str = "v0/keys/orders";
const VIOLATION: &str = "additionalContext.accessReasonContext.reason";

fn rules(justifications: &Value) -> Value {
    json!({"rules": [{"callers": [CALLER], "verbs": ["wrap", "unwrap"], "justifications": justifications}]})
}

/// A key with the shared policy `orders`.
fn with_policy(policy: &Value) -> Ekm {
    let ekm = Ekm::dev(&[]);
    ekm.change(json!({"type": "policy-create", "name": "orders", "policy": policy}));
    let space = &ekm.ready.crypto_space_path;
    ekm.change_here(&json!({"type": "key-create", "path": KEY, "space": space, "policy": {"named": "orders"}}));
    ekm
}

fn wrap(ekm: &Ekm, context: Value) -> Answer {
    let body = json!({"plaintext": base64("x"), "additionalContext": context});
    ekm.post(&format!("/{KEY}:wrap"), &body.to_string())
}

fn wrap_because(ekm: &Ekm, reason: &str) -> Answer {
    wrap(ekm, json!({"accessReasonContext": {"reason": reason}}))
}

/// Replaces something that was seen, and waits until it is served.
#[track_caller]
fn replace(ekm: &Ekm, command: Value, seen: &str) -> Value {
    let revision = ekm.show(seen).json()["revision"].clone();
    let answer = ekm.ask(&json!({"command": command, "reason": "a test", "if_revision": revision}));
    assert_eq!(answer.status, 200, "{command}: {}", answer.text());
    let revision = answer.json()["revision"].as_f64().unwrap();
    ekm.eventually("served", || ekm.metric("ekm_catalog_revision") >= revision);
    answer.json()
}

fn set_policy(ekm: &Ekm, policy: &Value, is_final: bool) -> Value {
    let command = json!({"type": "policy-set", "name": "orders", "policy": policy, "final": is_final});
    replace(ekm, command, "/v1/policies/orders")
}

fn set_delay(ekm: &Ekm, minutes: u32) {
    let seen = ekm.show("/v1/catalog").json()["settings_revision"].clone();
    let command = json!({"type": "settings-set", "denial_delay_minutes": minutes});
    let asked = ekm.ask(&json!({"command": command, "reason": "a test", "if_revision": seen}));
    assert_eq!(asked.status, 202, "{}", asked.text());
    let approval = asked.json()["approval"].clone();
    let target = format!("/v1/approvals/{}/approve", approval["id"].as_str().unwrap());
    let decision = json!({"payload_sha256": approval["payload_sha256"]}).to_string();
    assert_eq!(ekm.admin().admin("POST", &target, Some(&ekm.second_person()), Some(&decision)).status, 200);
    let settings = ekm.show("/v1/catalog").json();
    assert_eq!((&settings["denial_delay_minutes"], &settings["destroy_grace_days"]), (&json!(minutes), &json!(30)));
}

/// The last line of the audit log, when there are so many.
fn audited(ekm: &Ekm, count: usize) -> Value {
    ekm.eventually("audited", || ekm.audit().len() >= count);
    ekm.audit()[count - 1].clone()
}

#[test]
fn a_denial_says_what_was_given_in_its_answer_and_in_the_audit_line() {
    let ekm = with_policy(&rules(&json!({"preset": "customer-only"})));
    for (number, (context, given, unknown)) in [
        (json!({}), "MISSING", None),
        (json!({"accessReasonContext": {}}), "REASON_UNSPECIFIED", None),
        (json!({"accessReasonContext": {"reason": "GOOGLE_\n1"}}), "UNKNOWN", Some("GOOGLE_\n1")),
        (json!({"accessReasonContext": {"reason": 4711}}), "UNKNOWN", Some("4711")),
        (json!({"accessReasonContext": {"reason": "CUSTOMER_INITIATED_SUPPORT"}}), "CUSTOMER_INITIATED_SUPPORT", None),
    ]
    .into_iter()
    .enumerate()
    {
        let answer = wrap(&ekm, context);
        let violation = json!({"field": VIOLATION, "description": format!("{given} is not accepted")});
        assert_eq!(answer.status, 403, "{given}");
        assert_eq!(
            answer.json()["details"],
            json!([{"@type": "type.googleapis.com/google.rpc.BadRequest", "fieldViolations": [violation]}])
        );
        // What would be accepted is the operator's business.
        assert!(!answer.text().contains("CUSTOMER_INITIATED_ACCESS"), "{}", answer.text());
        let line = audited(&ekm, number + 1);
        for (field, expected) in [
            ("code", json!("denied")),
            ("denied_by", json!("justifications")),
            ("justification", json!(given)),
            ("unknown_reason", json!(unknown)),
            ("denial_final_at", json!(null)),
        ] {
            assert_eq!(line[field], expected, "{field} for {given}");
        }
    }
    assert_eq!(wrap_because(&ekm, "CUSTOMER_INITIATED_ACCESS").status, 200);
    assert_eq!(audited(&ekm, 6)["denied_by"], json!(null));

    let policy = json!({"rules": [{"callers": [CALLER], "verbs": ["wrap"], "resources": ["projects/secret/*"]}]});
    set_policy(&ekm, &policy, false);
    for (context, description) in
        [(json!({}), "is missing"), (json!({"relativeResourceName": "projects/p"}), "is not accepted")]
    {
        let answer = wrap(&ekm, context);
        let violation = &answer.json()["details"][0]["fieldViolations"][0];
        assert_eq!(violation, &json!({"field": "additionalContext.relativeResourceName", "description": description}));
        assert!(!answer.text().contains("secret"), "{}", answer.text());
    }
    assert_eq!(audited(&ekm, 8)["denied_by"], "resources");
}

#[test]
fn requests_without_a_reason_are_tolerated_until_the_time_of_grace_is_over() {
    let grace = |until: &str| rules(&json!({"preset": "customer-only", "grace_until": until}));
    let ekm = with_policy(&grace("2999-01-01T00:00:00Z"));
    let statuses = || {
        let contexts =
            [json!({}), json!({"accessReasonContext": {}}), json!({"accessReasonContext": {"reason": "FOO"}})];
        contexts.map(|context| wrap(&ekm, context).status)
    };
    assert_eq!(
        statuses(),
        [200, 200, 403],
        "an unknown reason is none of those that come while justifications are switched on"
    );
    assert_eq!(wrap_because(&ekm, "CUSTOMER_INITIATED_ACCESS").status, 200);
    assert_eq!(ekm.metric("ekm_justification_grace_uses_total"), 2.0);
    audited(&ekm, 4);
    let by_grace: Vec<_> = ekm.audit().iter().map(|line| line["by_grace"].clone()).collect();
    assert_eq!(by_grace, [json!(true), json!(true), json!(null), json!(null)]);
    let warnings = ekm.show("/v1/policies/orders").json()["warnings"].to_string();
    assert!(warnings.contains("[grace_long]"), "{warnings}");
    set_policy(&ekm, &grace("2020-01-01T00:00:00Z"), false);
    assert_eq!(statuses(), [403, 403, 403]);
    assert_eq!(ekm.metric("ekm_justification_grace_uses_total"), 2.0);
}

#[test]
fn what_a_change_of_policy_denies_is_refused_with_503_until_the_change_is_final() {
    let (wide, narrow) = (rules(&json!({"preset": "any"})), rules(&json!({"preset": "customer-only"})));
    let ekm = with_policy(&wide);
    let review = || wrap_because(&ekm, "GOOGLE_INITIATED_REVIEW");
    // Off unless somebody wants it.
    set_policy(&ekm, &narrow, false);
    assert_eq!(review().status, 403);
    set_policy(&ekm, &wide, false);
    set_delay(&ekm, 60);
    assert_eq!((review().status, ekm.metric("ekm_policy_changes_not_final")), (200, 0.0));

    let changed = set_policy(&ekm, &narrow, false);
    assert!(changed["warnings"].to_string().contains("'ekm policy confirm orders' makes it final"), "{changed}");
    let answer = review();
    assert_eq!(answer.status, 503);
    assert!(
        answer.message().ends_with("GOOGLE_INITIATED_REVIEW; this is not final yet [denial_pending]"),
        "{}",
        answer.text()
    );
    assert_eq!(answer.json()["details"][0]["fieldViolations"][0]["field"], VIOLATION);
    assert_eq!(wrap_because(&ekm, "CUSTOMER_INITIATED_ACCESS").status, 200);
    // Somebody whom the former policy did not let in either is denied as ever.
    let stranger = ekm.issuer().token_with(json!({"email": "service-9@gcp-sa-ekms.iam.gserviceaccount.com"}));
    assert_eq!(ekm.connect().post(&format!("/{KEY}:wrap"), &stranger, r#"{"plaintext":"AA=="}"#).status, 403);

    assert_eq!(ekm.metric("ekm_policy_changes_not_final"), 1.0);
    assert_eq!(ekm.metric("ekm_requests_total{code=\"denial_pending\",verb=\"wrap\"}"), 1.0);
    assert!(ekm.state().contains("[!] 1 changes of policies are not final yet"), "{}", ekm.state());
    let shown = ekm.show("/v1/policies/orders").json();
    assert_eq!(shown["not_final"][0]["policy"], wide, "{shown}");
    let line = ekm.audit().into_iter().find(|line| line["code"] == "denial_pending").unwrap();
    assert_eq!((&line["status"], &line["denied_by"]), (&json!(503), &json!("justifications")));
    assert_eq!(line["denial_final_at"], shown["not_final"][0]["final_at"]);
    let log = ekm.log();
    let alarm = log.lines().find(|line| line.contains("denied by a change of policy that is not final")).unwrap();
    assert!(alarm.contains(CALLER) && alarm.contains(KEY) && alarm.contains("GOOGLE_INITIATED_REVIEW"), "{alarm}");
    let question = json!({"key": KEY, "caller": CALLER, "verb": "wrap", "justification": "GOOGLE_INITIATED_REVIEW"});
    let explained = ekm.admin().admin("POST", "/v1/explain", None, Some(&question.to_string())).json();
    assert_eq!((&explained["allowed"], &explained["final_at"]), (&json!(false), &shown["not_final"][0]["final_at"]));

    // A second slip does not make the first one final.
    let narrower = rules(&json!({"allowed": ["CUSTOMER_INITIATED_ACCESS"], "missing": false, "unknown": false}));
    set_policy(&ekm, &narrower, false);
    assert_eq!((review().status, wrap_because(&ekm, "GOOGLE_INITIATED_SYSTEM_OPERATION").status), (503, 503));

    ekm.change_here(&json!({"type": "policy-confirm", "name": "orders"}));
    assert_eq!((review().status, wrap_because(&ekm, "GOOGLE_INITIATED_SYSTEM_OPERATION").status), (403, 403));
    assert_eq!(ekm.metric("ekm_policy_changes_not_final"), 0.0);
    assert_eq!(ekm.change(json!({"type": "policy-confirm", "name": "orders"}))["outcome"], "unchanged");

    // In an incident, at once.
    set_policy(&ekm, &wide, false);
    assert_eq!(review().status, 200);
    set_policy(&ekm, &narrow, true);
    assert_eq!(review().status, 403);
}

#[test]
fn a_key_that_gets_another_policy_is_not_denied_for_good_either_also_after_a_restart() {
    let (wide, narrow) = (rules(&json!({"preset": "any"})), rules(&json!({"preset": "customer-only"})));
    let ekm = with_policy(&wide);
    set_delay(&ekm, 60);
    ekm.change(json!({"type": "policy-create", "name": "narrow", "policy": narrow}));
    let choose = |ekm: &Ekm, policy: &str, is_final: bool| {
        let command = json!({"type": "key-set-policy", "path": KEY, "policy": {"named": policy}, "final": is_final});
        replace(ekm, command, &format!("/v1/keys/{KEY}"))
    };
    let changed = choose(&ekm, "narrow", false);
    assert!(
        changed["warnings"].to_string().contains("'ekm key confirm-policy v0/keys/orders' makes it final"),
        "{changed}"
    );
    let review = |ekm: &Ekm| wrap_because(ekm, "GOOGLE_INITIATED_REVIEW").status;
    assert_eq!(review(&ekm), 503);
    assert_eq!(ekm.show(&format!("/v1/keys/{KEY}")).json()["policy_not_final"][0]["policy"], wide);

    let directory = std::sync::Arc::clone(&ekm.directory);
    drop(ekm);
    let ekm = Ekm::serve(&directory, |config| config);
    assert_eq!(review(&ekm), 503);
    ekm.change_here(&json!({"type": "key-confirm-policy", "path": KEY}));
    assert_eq!(review(&ekm), 403);

    choose(&ekm, "orders", false);
    assert_eq!(review(&ekm), 200);
    choose(&ekm, "narrow", true);
    assert_eq!(review(&ekm), 403);
    assert_eq!(ekm.show(&format!("/v1/keys/{KEY}")).json()["policy_not_final"], json!(null));
}
