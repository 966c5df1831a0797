//! What makes rules a policy. Nothing here depends on the time: a policy that was accepted once stays acceptable.

use super::{Policy, Rule};

/// Why a stored or written policy is refused. Such a policy is never evaluated.
#[derive(Debug, thiserror::Error)]
pub enum InvalidPolicy {
    /// Not JSON, an unknown field, a wrong type, an unknown verb or reason, a pattern that can match nothing.
    #[error("{0}")]
    Syntax(#[from] serde_json::Error),
    /// More than is evaluated in no time for every request.
    #[error("it has {has} {what}, and at most {at_most} are taken; name callers and resources by patterns with '*'")]
    TooLarge {
        /// What there is too much of.
        what: &'static str,
        /// The bound.
        at_most: usize,
        /// More than that.
        has: usize,
    },
    /// No rules would deny everything, and a denial disables key versions at Google.
    #[error("it has no rules, so it would deny everything; write at least one, or disable the key to pause it")]
    NoRules,
    /// A rule that matches nothing, contradicts itself, or is there twice.
    #[error("rule {rule} {problem}")]
    Rule {
        /// Counted from 1.
        rule: usize,
        /// What is wrong with it and what to do, to be read after the rule's number.
        problem: String,
    },
}

pub(super) fn check(rules: &[Rule]) -> Result<(), InvalidPolicy> {
    if rules.is_empty() {
        return Err(InvalidPolicy::NoRules);
    }
    bounded("rules", Policy::MAX_RULES, rules.len())?;
    let patterns = |rule: &Rule| {
        rule.callers.len() + rule.resources.as_ref().map_or(0, Vec::len) + rule.times.as_ref().map_or(0, Vec::len)
    };
    bounded("callers, resources and times", Policy::MAX_PATTERNS, rules.iter().map(patterns).sum())?;
    for (index, rule) in rules.iter().enumerate() {
        let refused = |problem: String| Err(InvalidPolicy::Rule { rule: index + 1, problem });
        if let Some(problem) = blank(rule) {
            return refused(problem.into());
        }
        for (index, window) in rule.times.iter().flatten().enumerate() {
            if let Some(defect) = window.defect() {
                return refused(format!("has a time window, number {}, that {defect}", index + 1));
            }
        }
        if let Some(first) = rules[..index].iter().position(|earlier| earlier == rule) {
            return refused(format!("is the same as rule {}; remove one of them", first + 1));
        }
    }
    Ok(())
}

pub(super) fn bounded(what: &'static str, at_most: usize, has: usize) -> Result<(), InvalidPolicy> {
    if has > at_most { Err(InvalidPolicy::TooLarge { what, at_most, has }) } else { Ok(()) }
}

/// What can match nothing denies by accident.
fn blank(rule: &Rule) -> Option<&'static str> {
    if rule.callers.is_empty() {
        return Some("has no callers, so it matches nothing; list at least one, or remove the rule");
    }
    if rule.verbs.is_empty() {
        return Some("has no verbs, so it matches nothing; list \"wrap\", \"unwrap\", or both, or remove the rule");
    }
    if rule.resources.as_ref().is_some_and(Vec::is_empty) {
        return Some(
            "has no resources, so it matches nothing; list at least one, or leave 'resources' out to allow any",
        );
    }
    if rule.justifications.accept_nothing() {
        return Some(
            "has no justification that it would accept, so it matches nothing; list reasons in 'allowed', or remove \
            the rule",
        );
    }
    if rule.times.as_ref().is_some_and(Vec::is_empty) {
        return Some("has no times, so it matches nothing; list at least one, or leave 'times' out for any time");
    }
    None
}
