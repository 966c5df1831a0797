//! Decisions and their explanations.

use proptest::prelude::*;
use time::{Date, OffsetDateTime, UtcOffset};

use super::super::{Aspect, Denial, DenialReason, Policy, Request, Verb, admit, by_grace, decide, explain};
use super::arbitrary::{asked, policy as any_policy, rule};
use super::{GOOD, at, caller, policy, wrap};
use crate::caller::{Caller, CallerPattern};
use crate::justification::{Justification, Reason};

const STRICT: &str = r#"{"rules":[
    {"callers":["reader@example.com"],"verbs":["unwrap"]},
    {"callers":["a@example.com"],"verbs":["wrap","unwrap"],
     "justifications":{"allowed":["CUSTOMER_INITIATED_ACCESS"],"missing":false,"unknown":false}}]}"#;

const NAME: &str = "projects/p/locations/eu/keyRings/r/cryptoKeys/k/cryptoKeyVersions/1";

#[test]
fn a_request_is_allowed_by_a_rule_that_fits_in_every_respect() {
    let policy = Policy::parse(STRICT).unwrap();
    assert_eq!(decide(&policy, &wrap(&caller("a@example.com"))), Ok(()));
    let reader = caller("reader@example.com");
    let request = Request { verb: Verb::Unwrap, justification: &Justification::Missing, ..wrap(&reader) };
    assert_eq!(decide(&policy, &request), Ok(()));
}

#[test]
fn a_denial_names_the_furthest_test_that_failed() {
    let policy = Policy::parse(STRICT).unwrap();
    let denied = |email, justification| {
        decide(&policy, &Request { justification, ..wrap(&caller(email)) }).unwrap_err().reason().clone()
    };
    assert_eq!(denied("b@example.com", GOOD), DenialReason::Caller);
    assert_eq!(denied("reader@example.com", GOOD), DenialReason::Verb("wrap"));
    for bad in &[Justification::Missing, Justification::Unknown, Justification::Known(Reason::Unspecified)] {
        assert_eq!(denied("a@example.com", bad), DenialReason::Justification(bad.name()));
    }
}

#[test]
fn a_rule_for_resources_matches_none_but_these() {
    let policy =
        policy(r#""resources":["projects/p/locations/*/keyRings/r/cryptoKeys/k/cryptoKeyVersions/*","projects/q/*"]"#);
    let caller = caller("a@example.com");
    let with =
        |resource| decide(&policy, &Request { resource, ..wrap(&caller) }).map_err(|denial| denial.reason().clone());
    assert_eq!(with(Some(NAME)), Ok(()));
    assert_eq!(with(Some("projects/q/anything")), Ok(()));
    assert_eq!(with(Some("projects/x/anything")), Err(DenialReason::Resource));
    assert_eq!(with(Some("")), Err(DenialReason::Resource));
    assert_eq!(with(None), Err(DenialReason::NoResource));
}

#[test]
fn a_rule_without_resources_and_times_is_for_all_of_them() {
    let caller = caller("a@example.com");
    for resource in [None, Some(NAME), Some("")] {
        for now in [at("0000-01-01T00:00:00Z"), at("9999-12-31T23:59:59Z")] {
            assert_eq!(decide(&policy(""), &Request { resource, now, ..wrap(&caller) }), Ok(()));
        }
    }
}

#[test]
fn a_rule_with_times_matches_while_one_of_them_is_open() {
    let policy = policy(
        r#""times":[{"not_before":"2026-01-01T00:00:00+01:00","not_after":"2026-06-30T00:00:00Z"},
        {"not_before":"2027-01-01T00:00:00Z"}]"#,
    );
    let caller = caller("a@example.com");
    for (now, open) in [
        ("2025-12-31T22:59:59.999Z", false),
        ("2025-12-31T23:00:00Z", true),
        ("2026-06-30T00:00:00Z", true),
        ("2026-06-30T00:00:00.000000001Z", false),
        ("2026-06-30T01:00:00+01:00", true),
        ("2027-01-01T00:00:00Z", true),
    ] {
        let decision = decide(&policy, &Request { now: at(now), ..wrap(&caller) });
        assert_eq!(
            decision.map_err(|denial| denial.reason().clone()),
            if open { Ok(()) } else { Err(DenialReason::Time) },
            "{now}"
        );
    }
}

#[test]
fn the_ends_of_time_are_times_like_any_other() {
    let policy =
        policy(r#""times":[{"not_before":"2026-01-01T00:00:00Z","weekdays":["monday"],"from":"22:00","to":"06:00"}]"#);
    let caller = caller("a@example.com");
    for offset in
        [UtcOffset::UTC, UtcOffset::from_hms(25, 59, 59).unwrap(), UtcOffset::from_hms(-25, -59, -59).unwrap()]
    {
        for date in [Date::MIN, Date::MAX] {
            for now in [
                date.midnight().assume_offset(offset),
                date.with_hms_nano(23, 59, 59, 999_999_999).unwrap().assume_offset(offset),
            ] {
                let request = Request { now, ..wrap(&caller) };
                let allowed = decide(&policy, &request).is_ok();
                assert_eq!(explain(&policy, &request).allowed, allowed);
                assert!(!explain(&policy, &request).to_string().is_empty());
            }
        }
    }
}

#[test]
fn an_unverified_or_foreign_address_is_not_admitted() {
    let ours = [CallerPattern::try_from("service-*@ours.example".to_owned()).unwrap()];
    assert_eq!(admit(&ours, &caller("service-1@ours.example")), Ok(()));
    let denied = |caller: &Caller| {
        admit(&ours, caller).as_ref().map_err(Denial::reason).unwrap_err() == &DenialReason::NotAdmitted
    };
    assert!(denied(&caller("service-1@theirs.example")));
    assert!(denied(&Caller { email_verified: false, ..caller("service-1@ours.example") }));
}

#[test]
fn an_explanation_tells_every_test_of_every_rule() {
    let policy = Policy::parse(
        r#"{"rules":[
        {"callers":["project:1"],"verbs":["wrap"]},
        {"callers":["a@example.com"],"verbs":["unwrap"],"resources":["projects/p/*"],
         "justifications":{"allowed":["GOOGLE_INITIATED_REVIEW"],"missing":false},
         "times":[{"weekdays":["monday"],"from":"08:00","to":"18:00"}]},
        {"callers":["*"],"verbs":["wrap"],"justifications":{"missing":false}}]}"#,
    )
    .unwrap();
    let caller = caller("a@example.com");
    let allowed = explain(&policy, &wrap(&caller));
    assert_eq!((allowed.allowed, allowed.rule), (true, Some(3)));
    let denied = explain(&policy, &Request { justification: &Justification::Missing, ..wrap(&caller) });
    assert_eq!((denied.allowed, denied.rule), (false, Some(3)));
    assert_eq!(
        denied.to_string(),
        r#"denied: the key's policy does not accept the justification MISSING; rule 3 comes nearest
rule 1 does not allow it
  - callers: "a@example.com" fits none of: project:1
  + verbs: wrap is listed
  + resources: the rule is for any resource, also for none
  + justifications: the request has none, and 'missing' is true
  + times: the rule is for any time
rule 2 does not allow it
  + callers: "a@example.com" fits a@example.com
  - verbs: wrap is not listed; listed: unwrap
  - resources: the rule is for certain resources, and the request names none
  - justifications: the request has none, and 'missing' is false
  - times: sunday 2026-11-22T12:00:00Z is in none of: monday, 08:00 to 18:00 UTC
rule 3 does not allow it
  + callers: "a@example.com" fits *
  + verbs: wrap is listed
  + resources: the rule is for any resource, also for none
  - justifications: the request has none, and 'missing' is false
  + times: the rule is for any time"#
    );
    let json = serde_json::to_value(&denied).unwrap();
    assert_eq!(json["rules"][1]["tests"][1]["field"], "verbs");
    assert_eq!(json["rules"][2]["allows"], false);
}

#[test]
fn an_explanation_shows_what_a_preset_stands_for_and_until_when_it_is_lenient() {
    let policy = policy(r#""justifications":{"preset":"reason-required","grace_until":"2026-11-22T12:00:00Z"}"#);
    let caller = caller("a@example.com");
    let because = |justification, now| {
        let explained = explain(&policy, &Request { justification, now: at(now), ..wrap(&caller) });
        let test = explained.rules[0].tests.iter().find(|test| test.field == Aspect::Justifications).unwrap().clone();
        (test.passed, test.because)
    };
    let preset = "preset reason-required = known: all; unspecified: denied; missing: denied; unknown: allowed; unspecified and \
                  missing are tolerated until 2026-11-22T12:00:00Z";
    let missing = "the request has none, and 'missing' is false; 'grace_until'";
    assert_eq!(
        because(&Justification::Missing, "2026-11-22T12:00:00Z"),
        (true, format!("{missing} tolerates it: 2026-11-22T12:00:00Z; {preset}"))
    );
    assert_eq!(
        because(&Justification::Missing, "2026-11-22T12:00:01Z"),
        (false, format!("{missing} is over: 2026-11-22T12:00:00Z; {preset}"))
    );
    let (passed, text) = because(&Justification::Known(Reason::Unspecified), "2026-11-22T12:00:00Z");
    assert!(passed && text.contains("'grace_until' tolerates it"), "{text}");
    let (passed, text) = because(&Justification::Unknown, "2026-11-22T12:00:00Z");
    assert!(
        passed && text.starts_with("the request's is not one that this version knows, and 'unknown' is true; preset")
    );
}

#[test]
fn what_only_the_time_of_grace_allows_is_known_as_such() {
    let grace = r#""justifications":{"preset":"reason-required","grace_until":"2026-11-22T12:00:00Z"}"#;
    let caller = caller("a@example.com");
    let missing = Request { justification: &Justification::Missing, ..wrap(&caller) };
    assert!(by_grace(&policy(grace), &missing));
    assert!(!by_grace(&policy(grace), &wrap(&caller)), "it gives a reason");
    assert!(!by_grace(&policy(grace), &Request { now: at("2026-11-22T12:00:01Z"), ..missing }), "it is over");
    assert!(!by_grace(&policy(r#""justifications":{"preset":"any"}"#), &missing));
    let elsewhere = format!(r#"{grace},"resources":["projects/p/*"]"#);
    assert!(!by_grace(&policy(&elsewhere), &missing), "the rule does not fit");
    let rule = |fields: &str| format!(r#"{{"callers":["*"],"verbs":["wrap"],{fields}}}"#);
    let other = rule(r#""justifications":{"preset":"any"}"#);
    let both = Policy::parse(&format!(r#"{{"rules":[{},{other}]}}"#, rule(grace))).unwrap();
    assert!(!by_grace(&both, &missing), "another rule allows it without grace");
}

#[test]
fn a_request_for_which_no_rule_names_the_caller_has_no_nearest_rule() {
    let explanation = explain(&Policy::parse(STRICT).unwrap(), &wrap(&caller("c@example.com")));
    assert_eq!((explanation.allowed, explanation.rule), (false, None));
    assert!(explanation.to_string().starts_with("denied: the key's policy does not name this caller\n"));
}

#[test]
fn what_a_request_brings_along_is_written_so_that_a_terminal_shows_it() {
    let caller = caller("a\u{1b}[31m@example.com");
    let policy = policy(r#""resources":["projects/p/*"]"#);
    let text = explain(&policy, &Request { resource: Some("\u{7}\n"), ..wrap(&caller) }).to_string();
    assert!(!text.contains(['\u{1b}', '\u{7}']), "{text:?}");
}

proptest! {
    #[test]
    fn an_explanation_has_the_verdict_of_the_decision(policy in any_policy(), asked in asked()) {
        let (explanation, decision) = (explain(&policy, &asked.request()), decide(&policy, &asked.request()));
        prop_assert_eq!(explanation.allowed, decision.is_ok());
        // Each rule on its own is decided as it is explained.
        for (rule, explained) in policy.rules().iter().zip(&explanation.rules) {
            let alone = Policy::new(vec![rule.clone()]).unwrap();
            prop_assert_eq!(decide(&alone, &asked.request()).is_ok(), explained.allows);
        }
        let first = explanation.rules.iter().find(|rule| rule.allows).map(|rule| rule.rule);
        prop_assert!(first.is_none() || first == explanation.rule);
        // The nearest rule alone gives the same denial.
        if let (Err(denial), Some(nearest)) = (decision, explanation.rule) {
            let alone = Policy::new(vec![policy.rules()[nearest - 1].clone()]).unwrap();
            prop_assert_eq!(decide(&alone, &asked.request()), Err(denial));
        }
    }

    /// The same policy without its times of grace denies just what was allowed by grace alone.
    #[test]
    fn what_is_allowed_by_grace_is_denied_without_it(policy in any_policy(), asked in asked()) {
        let mut rules = policy.rules().to_vec();
        rules.iter_mut().for_each(|rule| rule.justifications.grace_until = None);
        rules.dedup();
        if let Ok(strict) = Policy::new(rules) {
            let (lenient, strict) = (decide(&policy, &asked.request()), decide(&strict, &asked.request()));
            prop_assert_eq!(by_grace(&policy, &asked.request()), lenient.is_ok() && strict.is_err());
        }
    }

    #[test]
    fn a_further_rule_takes_nothing_away(policy in any_policy(), rule in rule(), asked in asked()) {
        let mut rules = policy.rules().to_vec();
        rules.push(rule);
        if let Ok(more) = Policy::new(rules) {
            prop_assert!(decide(&policy, &asked.request()).is_err() || decide(&more, &asked.request()).is_ok());
        }
    }

    #[test]
    fn a_rule_that_covers_another_allows_all_that_it_allows(
        wide in rule(), narrow in rule(), asked in proptest::collection::vec(asked(), 50),
    ) {
        if wide.covers(&narrow) {
            let alone = |rule| Policy::new(vec![rule]).unwrap();
            let (wide, narrow) = (alone(wide), alone(narrow));
            for asked in asked {
                prop_assert!(decide(&narrow, &asked.request()).is_err() || decide(&wide, &asked.request()).is_ok());
            }
        }
    }

    #[test]
    fn a_decision_never_panics(
        email in any::<String>(), resource in any::<Option<String>>(), s in any::<i64>(), policy in any_policy(),
    ) {
        let now = OffsetDateTime::from_unix_timestamp(s % 377_705_116_800).unwrap_or(OffsetDateTime::UNIX_EPOCH);
        let caller = caller(&email);
        let request = Request { resource: resource.as_deref(), now, ..wrap(&caller) };
        prop_assert_eq!(explain(&policy, &request).allowed, decide(&policy, &request).is_ok());
    }
}
