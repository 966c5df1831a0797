//! What is a policy and what is refused, with which words.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::super::{Policy, decide, explain, lint};
use super::arbitrary::{asked, policy as any_policy};
use super::{at, caller, policy, with, wrap};

#[test]
fn a_policy_of_the_first_version_is_read_and_written_as_ever() {
    let json = concat!(
        r#"{"rules":[{"callers":["a@b","*"],"verbs":["wrap"],"#,
        r#""justifications":{"allowed":["REASON_UNSPECIFIED"],"missing":false,"unknown":true}}]}"#
    );
    assert_eq!(Policy::parse(json).unwrap().to_json(), json);
    let terse = r#"{"rules":[{"callers":["*"],"verbs":["unwrap"],"justifications":{"allowed":null}}]}"#;
    let full = r#"{"rules":[{"callers":["*"],"verbs":["unwrap"],"justifications":{"missing":true,"unknown":true}}]}"#;
    assert_eq!(Policy::parse(terse).unwrap().to_json(), full);
}

#[test]
fn a_preset_stays_a_name_in_the_catalog() {
    let json = concat!(
        r#"{"rules":[{"callers":["*"],"verbs":["wrap"],"#,
        r#""justifications":{"preset":"customer-only","grace_until":"2026-11-23T12:00:00Z"}}]}"#
    );
    assert_eq!(Policy::parse(json).unwrap().to_json(), json);
}

#[test]
fn a_policy_that_could_allow_nothing_or_is_not_understood_is_refused() {
    for json in [
        "",
        "null",
        "[]",
        "{}",
        r#"{"rules":null}"#,
        r#"{"rules":{}}"#,
        r#"[[{"callers":["*"],"verbs":["wrap"]}]]"#,
        r#"{"rules":[[["*"],["wrap"]]]}"#,
        r#"{"rules":[null]}"#,
        r#"{"rules":[{"callers":["*"]}]}"#,
        r#"{"rules":[{"verbs":["wrap"]}]}"#,
        r#"{"rules":[{"callers":["*"],"callers":["a@b"],"verbs":["wrap"]}]}"#,
        r#"{"rules":[{"callers":["*"],"verbs":["wrap"]}],"rules":[{"callers":["a@b"],"verbs":["wrap"]}]}"#,
        r#"{"rules":[{"callers":"*","verbs":["wrap"]}]}"#,
        r#"{"rules":[{"callers":["*"],"verbs":["WRAP"]}]}"#,
        r#"{"rules":[{"callers":["*"],"verbs":["wrap"]}],"extra":1}"#,
        r#"{"rules":[{"callers":["*"],"verbs":["wrap"]}]} {}"#,
    ] {
        assert!(Policy::parse(json).is_err(), "{json} was accepted");
    }
    for fields in [
        r#""extra":1"#,
        r#""justifications":null"#,
        r#""justifications":[["REASON_UNSPECIFIED"],false,false]"#,
        r#""justifications":{"allowed":["FOO"]}"#,
        r#""justifications":{"missing":null}"#,
        r#""justifications":{"missing":0}"#,
        r#""justifications":{"denied":[]}"#,
        r#""justifications":{"preset":null}"#,
        r#""justifications":{"preset":"customer_only"}"#,
        r#""justifications":"customer-only""#,
        r#""justifications":{"preset":"any","missing":true}"#,
        r#""justifications":{"preset":"any","unknown":false}"#,
        r#""justifications":{"preset":"customer-only","allowed":["REASON_UNSPECIFIED"]}"#,
        r#""justifications":{"grace_until":null}"#,
        r#""justifications":{"grace_until":"tomorrow"}"#,
        r#""resources":null"#,
        r#""resources":"*""#,
        r#""resources":[""]"#,
        r#""times":null"#,
        r#""times":{}"#,
        r#""times":[["2026-01-01T00:00:00Z"]]"#,
        r#""times":[{"not_before":null}]"#,
        r#""times":[{"notBefore":"2026-01-01T00:00:00Z"}]"#,
        r#""times":[{"weekdays":["Monday"]}]"#,
        r#""times":[{"weekdays":null}]"#,
        r#""times":[{"from":"8:00","to":"18:00"}]"#,
    ] {
        assert!(Policy::parse(&with(fields)).is_err(), "{fields} was accepted");
    }
}

#[test]
fn a_refusal_names_the_rule_and_says_what_to_do() {
    let first = r#"{"callers":["a@b"],"verbs":["wrap","unwrap"]}"#;
    let times =
        |times: &str| format!(r#"{{"callers":["*"],"verbs":["wrap"],"times":[{{"weekdays":["monday"]}},{times}]}}"#);
    for (second, expected) in [
        (
            r#"{"callers":[],"verbs":["wrap"]}"#.into(),
            "rule 2 has no callers, so it matches nothing; list at least one",
        ),
        (r#"{"callers":["*"],"verbs":[]}"#.into(), "rule 2 has no verbs"),
        (r#"{"callers":["*"],"verbs":["wrap"],"resources":[]}"#.into(), "rule 2 has no resources"),
        (r#"{"callers":["*"],"verbs":["wrap"],"times":[]}"#.into(), "rule 2 has no times"),
        (
            r#"{"callers":["*"],"verbs":["wrap"],"justifications":{"allowed":[],"missing":false,"unknown":false}}"#
                .into(),
            "rule 2 has no justification that it would accept",
        ),
        (
            // A rule that is good for the time of grace only would deny everything on the day after.
            r#"{"callers":["*"],"verbs":["wrap"],"justifications":{"allowed":[],"missing":false,"unknown":false,
                "grace_until":"2030-01-01T00:00:00Z"}}"#
                .into(),
            "rule 2 has no justification that it would accept",
        ),
        (
            r#"{"callers":["*"],"verbs":["wrap"],"justifications":{"preset":"any","missing":true}}"#.into(),
            "rule 2: a preset stands for 'allowed', 'missing' and 'unknown'; write either the preset or these",
        ),
        (first.into(), "rule 2 is the same as rule 1; remove one of them"),
        (times("{}"), "rule 2 has a time window, number 2, that has no bound"),
        (times(r#"{"weekdays":[]}"#), "number 2, that opens on no weekday"),
        (times(r#"{"from":"08:00"}"#), "number 2, that has one of 'from' and 'to'"),
        (times(r#"{"from":"08:00","to":"08:00"}"#), "number 2, that opens and closes at the same time"),
        (
            times(r#"{"not_before":"2026-01-01T00:00:00Z","not_after":"2026-01-01T01:00:00+01:00"}"#),
            "number 2, that has a 'not_before' that is not earlier than its 'not_after'",
        ),
        (
            // A Thursday and a Friday.
            times(r#"{"not_before":"2026-01-01T00:00:00Z","not_after":"2026-01-02T12:00:00Z","weekdays":["sunday"]}"#),
            "number 2, that never opens",
        ),
        (r#"{"callers":["nonsense"],"verbs":["wrap"]}"#.into(), "rule 2: a caller is an e-mail address"),
        (r#"{"callers":["a@b","c@exаmple.com"],"verbs":["wrap"]}"#.into(), "rule 2: a caller consists of ASCII"),
        (
            r#"{"callers":["project:my-project"],"verbs":["wrap"]}"#.into(),
            "rule 2: after 'project:' comes the project's number",
        ),
        (r#"{"callers":["*"],"verbs":["wrap"],"resources":["/p"]}"#.into(), "rule 2: a resource is a name relative to"),
        (r#"{"callers":["*"],"verbs":["destroy"]}"#.into(), "rule 2: unknown variant `destroy`"),
        (
            r#"{"callers":["*"],"verbs":["wrap"],"caller":1}"#.into(),
            "rule 2: unknown field `caller`, expected one of `callers`",
        ),
        ("[]".into(), "rule 2: invalid type: sequence, expected an object in braces"),
        (times(r#"{"not_after":"soon"}"#), "rule 2: this is no date and time"),
        (times(r#"{"to":"noon"}"#), "rule 2: this is no time of day"),
    ] {
        let second: String = second;
        let error = Policy::parse(&format!(r#"{{"rules":[{first},{second}]}}"#)).unwrap_err().to_string();
        assert!(error.contains(expected), "{second} gave:\n{error}");
        assert_eq!(error.matches("rule 2").count(), 1, "{error}");
    }
    let error = Policy::parse(r#"{"rules":[]}"#).unwrap_err().to_string();
    assert!(error.starts_with("it has no rules"), "{error}");
}

#[test]
fn a_policy_may_be_as_large_as_its_bounds_and_no_larger() {
    let rules = |count: usize| {
        let rules: Vec<_> = (0..count).map(|n| json!({"callers": [format!("a{n}@b")], "verbs": ["wrap"]})).collect();
        json!({ "rules": rules }).to_string()
    };
    assert!(Policy::parse(&rules(200)).is_ok());
    assert_eq!(
        Policy::parse(&rules(201)).unwrap_err().to_string(),
        "it has 201 rules, and at most 200 are taken; name callers and resources by patterns with '*'"
    );
    let patterns = |callers: usize, resources: usize| {
        let callers: Vec<_> = (0..callers).map(|n| format!("a{n}@b")).collect();
        let resources: Vec<_> = (0..resources).map(|n| format!("projects/p{n}/*")).collect();
        json!({"rules": [{"callers": callers, "resources": resources, "verbs": ["wrap"]}]}).to_string()
    };
    assert!(Policy::parse(&patterns(600, 400)).is_ok());
    let error = Policy::parse(&patterns(600, 401)).unwrap_err().to_string();
    assert!(error.starts_with("it has 1001 callers, resources and times, and at most 1000"), "{error}");
    let padded = |length: usize| with("") + &" ".repeat(length - with("").len());
    assert!(Policy::parse(&padded(64 * 1024)).is_ok());
    let error = Policy::parse(&padded(64 * 1024 + 1)).unwrap_err().to_string();
    assert!(error.starts_with("it has 65537 bytes, and at most 65536"), "{error}");
}

#[test]
fn a_policy_that_would_be_too_long_to_be_read_from_the_catalog_is_refused_at_once() {
    let rules = |length: usize| {
        let rules = (0..200).map(|n| json!({"callers": [format!("{}@{n}", "a".repeat(length))], "verbs": ["wrap"]}));
        json!({"rules": Vec::from_iter(rules)}).to_string()
    };
    // Written out, each rule gets its justifications, which are absent here.
    let long = rules(270);
    assert!(long.len() < Policy::MAX_BYTES);
    let error = Policy::parse(&long).unwrap_err().to_string();
    assert!(error.contains(" bytes, and at most 65536"), "{error}");
    let written = Policy::parse(&rules(200)).unwrap().to_json();
    assert!(Policy::parse(&written).is_ok());
}

#[test]
fn no_way_leads_around_validation() {
    assert!(serde_json::from_str::<Policy>(r#"{"rules":[]}"#).is_err());
    assert!(serde_json::from_value::<Policy>(json!({"rules": [{"callers": [], "verbs": ["wrap"]}]})).is_err());
    assert!(Policy::new(Vec::new()).is_err());
}

#[test]
fn the_policy_of_the_development_mode_is_valid() {
    let everybody = Policy::allow_everybody();
    assert_eq!(Policy::parse(&everybody.to_json()).unwrap(), everybody);
    assert_eq!(decide(&policy(""), &wrap(&caller("a@b"))), Ok(()));
}

#[test]
fn the_examples_in_the_documentation_are_policies() {
    let documentation = include_str!("../../../../docs/policies.md");
    let examples: Vec<_> =
        documentation.split("```json\n").skip(1).map(|rest| rest.split("```").next().unwrap()).collect();
    let [policy, rule] = examples[..] else { panic!("a policy and a rule are expected") };
    let policy = Policy::parse(policy).unwrap();
    Policy::parse(&format!(r#"{{"rules":[{rule}]}}"#)).unwrap();
    let codes: Vec<_> = lint(&policy, at("2026-11-22T12:00:00Z")).into_iter().map(|warning| warning.code).collect();
    assert_eq!(codes, ["missing_denied", "unknown_denied"]);
}

/// JSON that is often nearly a policy.
fn any_json() -> impl Strategy<Value = Value> {
    let names = [
        "rules",
        "callers",
        "verbs",
        "resources",
        "justifications",
        "allowed",
        "missing",
        "unknown",
        "preset",
        "grace_until",
        "times",
        "not_before",
        "not_after",
        "weekdays",
        "from",
        "to",
        "extra",
    ];
    let texts = [
        "*",
        "a@b",
        "project:1",
        "project:",
        "wrap",
        "unwrap",
        "projects/*",
        "//",
        "CUSTOMER_INITIATED_ACCESS",
        "customer-only",
        "monday",
        "08:00",
        "07:00",
        "2026-01-01T00:00:00Z",
        "-9999-01-01T00:00:00Z",
        "9999-12-31T23:59:60Z",
        "0000-01-01T00:00:00+23:59",
    ];
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        any::<String>().prop_map(Value::from),
        proptest::sample::select(texts.to_vec()).prop_map(Value::from),
    ];
    leaf.prop_recursive(5, 40, 6, move |inner| {
        let name = proptest::sample::select(names.to_vec()).prop_map(str::to_owned);
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            proptest::collection::hash_map(name, inner, 0..6).prop_map(Value::from_iter),
        ]
    })
}

fn survives(json: &str) {
    match Policy::parse(json) {
        Err(error) => assert!(!error.to_string().is_empty()),
        Ok(policy) => {
            assert_eq!(Policy::parse(&policy.to_json()).unwrap(), policy);
            let caller = caller("a@b");
            explain(&policy, &wrap(&caller)).to_string();
            lint(&policy, at("2026-11-22T12:00:00Z"));
        }
    }
}

proptest! {
    #[test]
    fn any_text_is_a_policy_or_refused(text in any::<String>()) {
        survives(&text);
    }

    #[test]
    fn any_json_is_a_policy_or_refused(json in any_json()) {
        survives(&json.to_string());
        survives(&json!({"rules": [json]}).to_string());
        survives(&json!({"rules": [{"callers": ["*"], "verbs": ["wrap"], "times": [json]}]}).to_string());
    }

    #[test]
    fn a_policy_with_one_character_exchanged_is_a_policy_or_refused(
        policy in any_policy(), place in any::<proptest::sample::Index>(), with in any::<char>(),
    ) {
        let mut letters: Vec<char> = policy.to_json().chars().collect();
        let place = place.index(letters.len());
        letters[place] = with;
        survives(&letters.into_iter().collect::<String>());
    }

    #[test]
    fn a_policy_survives_the_way_through_the_catalog(policy in any_policy(), asked in asked()) {
        let read = Policy::parse(&policy.to_json()).unwrap();
        prop_assert_eq!(decide(&read, &asked.request()), decide(&policy, &asked.request()));
        prop_assert_eq!(read, policy);
    }
}
