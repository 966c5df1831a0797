//! Which warnings a policy gets, and that they are true.

use proptest::prelude::*;

use super::super::{Policy, admits_everybody, decide, lint};
use super::arbitrary::{asked, policy as any_policy};
use super::at;

const ALL: &[&str] = &[
    "everybody",
    "every_project",
    "no_service_agent",
    "wrap_without_unwrap",
    "resource_required",
    "resource_not_in_project",
    "resource_without_version",
    "resource_pins_version",
    "customer_access_denied",
    "system_operation_denied",
    "workflow_servicing_denied",
    "modified_reason_denied",
    "missing_denied",
    "unknown_denied",
    "missing_allowed",
    "unknown_allowed",
    "grace_needless",
    "grace_over",
    "grace_long",
    "expired",
    "expires_soon",
    "closes",
    "shadowed",
];

fn warnings(rules: &str) -> Vec<(usize, &'static str)> {
    let policy = Policy::parse(&format!(r#"{{"rules":[{rules}]}}"#)).unwrap();
    lint(&policy, at("2026-11-22T12:00:00Z")).into_iter().map(|warning| (warning.rule, warning.code)).collect()
}

/// The warnings about a rule of one project with these further fields.
fn about(fields: &str) -> Vec<&'static str> {
    let rule = format!(r#"{{"callers":["project:1"],"verbs":["wrap","unwrap"]{fields}}}"#);
    warnings(&rule).into_iter().map(|(_, code)| code).collect()
}

#[test]
fn a_plain_rule_for_a_project_gets_no_warning() {
    assert_eq!(about(""), [""; 0]);
}

#[test]
fn each_trap_has_its_warning() {
    let reasons = |reasons: &str, more: &str| {
        about(&format!(r#","justifications":{{"allowed":[{reasons}],{more}"unknown":false}}"#))
    };
    let resource = |resource: &str| about(&format!(r#","resources":["{resource}"]"#));
    let plain = r#""CUSTOMER_INITIATED_ACCESS","GOOGLE_INITIATED_SYSTEM_OPERATION""#;
    let modified = r#""MODIFIED_CUSTOMER_INITIATED_ACCESS","MODIFIED_GOOGLE_INITIATED_SYSTEM_OPERATION""#;
    let workflow = r#""CUSTOMER_AUTHORIZED_WORKFLOW_SERVICING""#;
    let all = format!("{plain},{modified},{workflow}");
    let mut seen = Vec::new();
    let mut check = |given: Vec<&'static str>, expected: &[&str]| {
        assert_eq!(given, expected);
        seen.extend(given);
    };
    let only = |caller: &str, verbs: &str| {
        let given = warnings(&format!(r#"{{"callers":["{caller}"],"verbs":[{verbs}]}}"#));
        given.into_iter().map(|(_, code)| code).collect::<Vec<_>>()
    };
    check(only("*", r#""wrap","unwrap""#), &["everybody"]);
    check(only("service-*@gcp-sa-ekms.iam.gserviceaccount.com", r#""unwrap""#), &["every_project"]);
    check(only("me@example.com", r#""unwrap""#), &["no_service_agent"]);
    check(only("project:1", r#""wrap""#), &["wrap_without_unwrap"]);
    check(resource("projects/p/*"), &["resource_required"]);
    check(resource("*/cryptoKeys/k/cryptoKeyVersions/*"), &["resource_required"]);
    check(resource("folders/f/*"), &["resource_required", "resource_not_in_project"]);
    check(resource("project"), &["resource_required", "resource_not_in_project"]);
    check(resource("projects/p/*/cryptoKeys/k"), &["resource_required", "resource_without_version"]);
    check(resource("projects/p/*/cryptoKeys/k/cryptoKeyVersions/1"), &["resource_required", "resource_pins_version"]);
    check(reasons(&all, r#""missing":false,"#), &["missing_denied", "unknown_denied"]);
    check(reasons(&all, ""), &["unknown_denied", "missing_allowed"]);
    check(about(&format!(r#","justifications":{{"allowed":[{all}]}}"#)), &["missing_allowed", "unknown_allowed"]);
    check(
        reasons(&format!("{plain},{workflow}"), ""),
        &["modified_reason_denied", "modified_reason_denied", "unknown_denied", "missing_allowed"],
    );
    check(
        reasons(&format!("{plain},{modified}"), ""),
        &["workflow_servicing_denied", "unknown_denied", "missing_allowed"],
    );
    check(
        reasons(workflow, ""),
        &["customer_access_denied", "system_operation_denied", "unknown_denied", "missing_allowed"],
    );
    let preset = |fields: &str| about(&format!(r#","justifications":{{{fields}}}"#));
    check(preset(r#""preset":"any""#), &[]);
    check(preset(r#""preset":"reason-required""#), &["missing_denied"]);
    check(preset(r#""preset":"customer-only""#), &["missing_denied", "unknown_denied"]);
    let grace = |until: &str| preset(&format!(r#""preset":"reason-required","grace_until":"{until}""#));
    check(grace("2026-11-22T11:59:59Z"), &["missing_denied", "grace_over"]);
    check(grace("2026-11-22T12:00:00Z"), &["missing_denied"]);
    check(grace("2026-11-29T12:00:00Z"), &["missing_denied"]);
    check(grace("2026-11-29T12:00:01Z"), &["missing_denied", "grace_long"]);
    check(preset(r#""grace_until":"2026-11-23T12:00:00Z""#), &["grace_needless"]);
    check(about(r#","times":[{"not_after":"2026-11-22T11:59:59Z"}]"#), &["expired", "closes"]);
    check(about(r#","times":[{"not_after":"2026-11-22T12:00:00Z"}]"#), &["expires_soon", "closes"]);
    check(about(r#","times":[{"not_after":"2026-12-22T11:59:59Z"}]"#), &["expires_soon", "closes"]);
    check(about(r#","times":[{"not_after":"2026-12-22T12:00:00Z"}]"#), &["closes"]);
    let twice = warnings(
        r#"{"callers":["project:1","project:2"],"verbs":["wrap","unwrap"]},
        {"callers":["project:2"],"verbs":["unwrap"]}"#,
    );
    assert_eq!(twice, [(2, "shadowed")]);
    seen.extend(["shadowed"]);
    for code in ALL {
        assert!(seen.contains(code), "nothing gives {code}");
    }
    for code in seen {
        assert!(ALL.contains(&code), "{code} is missing from the list");
    }
}

#[test]
fn another_rule_can_make_up_for_what_a_rule_does_not_accept() {
    let strict = r#"{"callers":["project:1"],"verbs":["wrap","unwrap"],
        "justifications":{"allowed":["CUSTOMER_INITIATED_ACCESS"],"missing":false,"unknown":false}}"#;
    let denied = |other: &str| {
        let given = warnings(&format!("{strict},{other}"));
        given.into_iter().filter(|(rule, code)| *rule == 1 && code.ends_with("_denied")).count()
    };
    let others = r#""justifications":{"allowed":["GOOGLE_INITIATED_SYSTEM_OPERATION",
        "CUSTOMER_AUTHORIZED_WORKFLOW_SERVICING",
        "MODIFIED_CUSTOMER_INITIATED_ACCESS"],"missing":true,"unknown":true}"#;
    assert_eq!(denied(&format!(r#"{{"callers":["project:1","project:2"],"verbs":["wrap","unwrap"],{others}}}"#)), 1);
    assert_eq!(denied(&format!(r#"{{"callers":["project:2"],"verbs":["wrap","unwrap"],{others}}}"#)), 5);
    assert_eq!(denied(&format!(r#"{{"callers":["project:1"],"verbs":["unwrap"],{others}}}"#)), 5);
    assert_eq!(
        denied(&format!(
            r#"{{"callers":["project:1"],"verbs":["wrap","unwrap"],"resources":["projects/*"],{others}}}"#
        )),
        5
    );
}

#[test]
fn unwrap_may_stand_in_another_rule_than_wrap() {
    let wrap = r#"{"callers":["project:1","project:2"],"verbs":["wrap"]}"#;
    assert_eq!(
        warnings(&format!(r#"{wrap},{{"callers":["*-2@*"],"verbs":["unwrap"]}}"#)),
        [(1, "wrap_without_unwrap")]
    );
    assert_eq!(warnings(&format!(r#"{wrap},{{"callers":["project:1","project:2"],"verbs":["unwrap"]}}"#)), []);
}

#[test]
fn of_two_rules_that_allow_the_same_only_the_later_one_is_superfluous() {
    let agent = r#"{"callers":["service-1@gcp-sa-ekms.iam.gserviceaccount.com"],"verbs":["wrap","unwrap"]}"#;
    let project = r#"{"callers":["project:1"],"verbs":["unwrap","wrap"]}"#;
    assert_eq!(warnings(&format!("{agent},{project}")), [(2, "shadowed")]);
    let times = r#"{"callers":["project:1"],"verbs":["unwrap"],"times":[{"weekdays":["monday"]}]}"#;
    assert_eq!(warnings(&format!("{times},{project}")), [(1, "closes"), (1, "shadowed")]);
}

#[test]
fn a_policy_for_everybody_is_known_as_such_whatever_else_it_asks_for() {
    assert!(admits_everybody(&Policy::allow_everybody()));
    let second = |caller: &str| {
        let rules = format!(
            r#"{{"rules":[{{"callers":["project:1"],"verbs":["wrap"]}},
            {{"callers":["project:2","{caller}"],"verbs":["unwrap"],
            "times":[{{"weekdays":["monday"]}}]}}]}}"#
        );
        admits_everybody(&Policy::parse(&rules).unwrap())
    };
    assert!(second("*@*") && second("**"));
    assert!(!second("*@example.com") && !second("service-*@gcp-sa-ekms.iam.gserviceaccount.com"));
}

#[test]
fn every_warning_is_in_the_documentation_and_no_other() {
    let documented: Vec<_> = include_str!("../../../../docs/policies.md")
        .split_once("## Warnings")
        .unwrap()
        .1
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split_once('`').map(|(code, _)| code))
        .collect();
    assert_eq!(documented, ALL);
}

proptest! {
    #[test]
    fn a_shadowed_rule_can_go_without_a_change(
        policy in any_policy(), asked in proptest::collection::vec(asked(), 20),
    ) {
        let warnings = lint(&policy, asked[0].now);
        let shadowed = |rule| warnings.iter().any(|warning| warning.code == "shadowed" && warning.rule == rule);
        // All of them at once: none of two rules is gone because of the other.
        let left = policy.rules().iter().enumerate().filter(|(index, _)| !shadowed(index + 1));
        let left = Policy::new(left.map(|(_, rule)| rule.clone()).collect()).unwrap();
        for asked in asked {
            prop_assert_eq!(decide(&left, &asked.request()).is_ok(), decide(&policy, &asked.request()).is_ok());
        }
    }
}
