//! Why a decision is as it is, test by test, for people who write policies.

use std::fmt;

use serde::Serialize;
use time::format_description::well_known::Rfc3339;
use time::{OffsetDateTime, UtcOffset};

use super::justifications::gives_no_reason;
use super::{Aspect, Policy, Request, Rule, Weekday, decide};
use crate::justification::Justification;

/// What a policy says to a request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Explanation {
    /// The verdict, the same as that of [`decide`].
    pub allowed: bool,
    /// Counted from 1: the first rule that allows the request, or the first of those that it failed last; none if no
    /// rule names the caller.
    pub rule: Option<usize>,
    /// The verdict in words; of a denial, those that the caller reads.
    pub verdict: String,
    /// Every rule, in the order of the policy.
    pub rules: Vec<RuleExplanation>,
}

/// What one rule says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RuleExplanation {
    /// Counted from 1.
    pub rule: usize,
    /// Whether every test passed.
    pub allows: bool,
    /// Every test, also those behind one that failed.
    pub tests: Vec<Test>,
}

/// One test of a rule.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Test {
    /// The rule's field.
    pub field: Aspect,
    /// Whether the request fits.
    pub passed: bool,
    /// Why.
    pub because: String,
}

/// Tells what each rule says to a request. Costs more than [`decide`], and is not for the way of a request.
pub fn explain(policy: &Policy, request: &Request<'_>) -> Explanation {
    let rules: Vec<_> =
        policy.rules().iter().enumerate().map(|(index, rule)| explain_rule(index + 1, rule, request)).collect();
    if let Some(first) = rules.iter().find(|rule| rule.allows) {
        let (rule, verdict) = (first.rule, format!("rule {} allows it", first.rule));
        return Explanation { allowed: true, rule: Some(rule), verdict, rules };
    }
    let passed = |rule: &RuleExplanation| rule.tests.iter().take_while(|test| test.passed).count();
    let furthest = rules.iter().map(passed).max().unwrap_or(0);
    let rule = rules.iter().find(|rule| furthest > 0 && passed(rule) == furthest).map(|rule| rule.rule);
    let verdict = decide(policy, request).err().map_or_else(String::new, |denial| denial.to_string());
    Explanation { allowed: false, rule, verdict, rules }
}

fn explain_rule(number: usize, rule: &Rule, request: &Request<'_>) -> RuleExplanation {
    let test = |field| {
        let passed = rule.passes(field, request);
        Test { field, passed, because: because(field, passed, rule, request) }
    };
    let tests = Aspect::ALL.map(test).to_vec();
    RuleExplanation { rule: number, allows: tests.iter().all(|test| test.passed), tests }
}

fn because(field: Aspect, passed: bool, rule: &Rule, request: &Request<'_>) -> String {
    match field {
        Aspect::Callers => {
            let email = &request.caller.email;
            match rule.callers.iter().find(|pattern| pattern.matches(email)) {
                Some(pattern) => format!("{email:?} fits {}", pattern.as_str()),
                None => format!("{email:?} fits none of: {}", some(rule.callers.iter().map(|caller| caller.as_str()))),
            }
        }
        Aspect::Verbs => {
            let verb = request.verb.name();
            let listed = some(rule.verbs.iter().map(|verb| verb.name()));
            if passed { format!("{verb} is listed") } else { format!("{verb} is not listed; listed: {listed}") }
        }
        Aspect::Resources => resources(rule, request),
        Aspect::Justifications => justifications(rule, request),
        Aspect::Times => times(rule, request.now),
    }
}

fn resources(rule: &Rule, request: &Request<'_>) -> String {
    let Some(patterns) = &rule.resources else { return "the rule is for any resource, also for none".into() };
    let Some(name) = request.resource else {
        return "the rule is for certain resources, and the request names none".into();
    };
    match patterns.iter().find(|pattern| pattern.matches(name)) {
        Some(pattern) => format!("{name:?} fits {}", pattern.as_str()),
        None => format!("{name:?} fits none of: {}", some(patterns.iter().map(|pattern| pattern.as_str()))),
    }
}

fn justifications(rule: &Rule, request: &Request<'_>) -> String {
    let justification = request.justification.name();
    let passed = rule.justifications.accept_lastingly(request.justification);
    let mut text = match (request.justification, &rule.justifications.allowed) {
        (Justification::Missing, _) => format!("the request has none, and 'missing' is {passed}"),
        (Justification::Unknown, _) => {
            format!("the request's is not one that this version knows, and 'unknown' is {passed}")
        }
        (Justification::Known(_), None) => format!("{justification} is known, and every known reason is allowed"),
        (Justification::Known(_), Some(_)) if passed => format!("{justification} is listed in 'allowed'"),
        (Justification::Known(_), Some(allowed)) => {
            let listed = some(allowed.iter().map(|reason| reason.name()));
            format!("{justification} is not listed in 'allowed'; listed: {listed}")
        }
    };
    if let Some(until) = rule.justifications.grace_until.filter(|_| !passed && gives_no_reason(request.justification)) {
        let tolerated = rule.justifications.tolerate(request.justification, request.now);
        text += &format!("; 'grace_until' {}: {until}", if tolerated { "tolerates it" } else { "is over" });
    }
    if rule.justifications.preset.is_some() {
        text += &format!("; {}", rule.justifications);
    }
    text
}

fn times(rule: &Rule, now: OffsetDateTime) -> String {
    let Some(windows) = &rule.times else { return "the rule is for any time".into() };
    let utc = now.checked_to_offset(UtcOffset::UTC).unwrap_or(now);
    let at = utc.format(&Rfc3339).unwrap_or_else(|_| utc.to_string());
    let day = Weekday::of(now.unix_timestamp().div_euclid(24 * 60 * 60)).name();
    match windows.iter().find(|window| window.is_open(now)) {
        Some(window) => format!("{day} {at} is in: {window}"),
        None => {
            let windows: Vec<_> = windows.iter().map(ToString::to_string).collect();
            format!("{day} {at} is in none of: {}", some(windows.iter().map(String::as_str)))
        }
    }
}

/// The first few, so that a long rule does not bury the answer.
fn some<'a>(listed: impl ExactSizeIterator<Item = &'a str>) -> String {
    const SHOWN: usize = 8;
    let more = listed.len().saturating_sub(SHOWN);
    let mut text = listed.take(SHOWN).collect::<Vec<_>>().join("; ");
    if text.is_empty() {
        text.push_str("nothing");
    }
    if more > 0 {
        text.push_str(&format!("; and {more} more"));
    }
    text
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let nearest = match self.rule {
            Some(rule) if !self.allowed => format!("; rule {rule} comes nearest"),
            _ => String::new(),
        };
        write!(f, "{}: {}{nearest}", if self.allowed { "allowed" } else { "denied" }, self.verdict)?;
        for rule in &self.rules {
            write!(f, "\nrule {} {}", rule.rule, if rule.allows { "allows it" } else { "does not allow it" })?;
            for test in &rule.tests {
                let (sign, field) = (if test.passed { '+' } else { '-' }, test.field.name());
                write!(f, "\n  {sign} {field}: {}", test.because)?;
            }
        }
        Ok(())
    }
}
