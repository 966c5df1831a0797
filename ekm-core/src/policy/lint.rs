//! What a policy may do that its author did not mean. Warnings refuse nothing.

use serde::Serialize;
use time::{Duration, OffsetDateTime};

use super::{Policy, ResourcePattern, Rule, Verb};
use crate::caller::CallerPattern;
use crate::justification::{Justification, Reason};

const SOON: Duration = Duration::days(30);
/// Google needs a day to take Key Access Justifications into use; some more are for planning.
const LONG_GRACE: Duration = Duration::days(7);

/// Something about a rule that its author should know.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Warning {
    /// The stable word for it; the documentation lists all of them.
    pub code: &'static str,
    /// Counted from 1.
    pub rule: usize,
    /// What happens, and what to do.
    pub text: String,
}

/// Reads the rules one after another. `now` tells which of their times are over.
pub fn lint(policy: &Policy, now: OffsetDateTime) -> Vec<Warning> {
    let mut warnings = Vec::new();
    for (index, rule) in policy.rules().iter().enumerate() {
        let mut warn = |code, text: String| warnings.push(Warning { code, rule: index + 1, text });
        callers(rule, &mut warn);
        verbs(policy, rule, &mut warn);
        resources(rule, &mut warn);
        justifications(policy, index, &mut warn);
        grace(rule, now, &mut warn);
        times(rule, now, &mut warn);
        shadows(policy, index, &mut warn);
    }
    warnings
}

/// Whether a rule has a caller that is everybody who is admitted at all, whatever else the rule asks for.
pub fn admits_everybody(policy: &Policy) -> bool {
    policy.rules().iter().any(|rule| rule.callers.iter().any(CallerPattern::matches_every_address))
}

fn callers(rule: &Rule, warn: &mut impl FnMut(&'static str, String)) {
    if let Some(caller) = rule.callers.iter().find(|caller| caller.matches_every_address()) {
        warn(
            "everybody",
            format!(
                "the caller '{}' is everybody whom this service admits; name your projects instead, such as \
                 project:123456789012",
                caller.as_str()
            ),
        );
    } else if let Some(caller) = rule.callers.iter().find(|caller| caller.matches_every_service_agent()) {
        warn(
            "every_project",
            format!(
                "the caller '{}' is the Cloud EKM service agent of every project in Google Cloud, also of other \
                 customers; name your projects instead, such as project:123456789012",
                caller.as_str()
            ),
        );
    }
    for caller in rule.callers.iter().filter(|caller| !caller.matches_some_service_agent()) {
        warn(
            "no_service_agent",
            format!(
                "the caller '{}' is not a Cloud EKM service agent, so Cloud KMS never calls by that name; if it is \
                 meant to be one, write project:<project number>",
                caller.as_str()
            ),
        );
    }
}

fn verbs(policy: &Policy, rule: &Rule, warn: &mut impl FnMut(&'static str, String)) {
    if !rule.verbs.contains(&Verb::Wrap) {
        return;
    }
    let may_unwrap =
        |caller| policy.rules().iter().any(|rule| rule.verbs.contains(&Verb::Unwrap) && rule.covers_caller(caller));
    for caller in rule.callers.iter().filter(|caller| !may_unwrap(caller)) {
        warn(
            "wrap_without_unwrap",
            format!(
                "the caller '{}' may wrap, and no rule that allows unwrap names it: it could not read again what it \
                 encrypts; add \"unwrap\", or make sure that somebody else reads",
                caller.as_str()
            ),
        );
    }
}

fn resources(rule: &Rule, warn: &mut impl FnMut(&'static str, String)) {
    let Some(patterns) = &rule.resources else { return };
    warn(
        "resource_required",
        "the rule does not match a request that names no resource; unless another rule allows it, it is denied with \
         403, which makes Google disable the key version; look at your audit log whether every request names one"
            .into(),
    );
    for pattern in patterns {
        if let Some((code, problem)) = trap(pattern) {
            warn(code, format!("the resource '{}' {problem}", pattern.as_str()));
        }
    }
}

fn trap(pattern: &ResourcePattern) -> Option<(&'static str, &'static str)> {
    const FIRST: &str = "projects/";
    let text = pattern.as_str();
    let literal = text.split('*').next().unwrap_or_default();
    if !(literal.starts_with(FIRST) || FIRST.starts_with(literal) && literal.len() < text.len()) {
        return Some((
            "resource_not_in_project",
            "does not begin with 'projects/', as every name of a Cloud KMS key does; write projects/<project \
             id>/locations/*/keyRings/<key ring>/cryptoKeys/<key>/cryptoKeyVersions/*",
        ));
    }
    let mut from_the_end = text.rsplit('/');
    let (last, before) = (from_the_end.next()?, from_the_end.next()?);
    match before {
        "cryptoKeys" if !last.contains('*') => Some((
            "resource_without_version",
            "names a key, and Cloud KMS names key versions; put /cryptoKeyVersions/* behind it",
        )),
        "cryptoKeyVersions" if !last.contains('*') => Some((
            "resource_pins_version",
            "names one key version: after a rotation the next one is not allowed; write /cryptoKeyVersions/*",
        )),
        _ => None,
    }
}

fn justifications(policy: &Policy, index: usize, warn: &mut impl FnMut(&'static str, String)) {
    let rule = &policy.rules()[index];
    let substitutes: Vec<_> = policy.rules().iter().filter(|other| other.covers_resources_and_times(rule)).collect();
    let denied = |justification: &Justification| {
        !rule.justifications.accept_lastingly(justification) && !accepted_by(&substitutes, rule, justification)
    };
    let reason_denied = |reason| denied(&Justification::Known(reason));
    let mut warn_denied = |code, what: &str, why: &str, how: &str| {
        warn(
            code,
            format!(
                "the rule does not accept {what}: {why}; unless another rule allows such a request, it is denied with \
                 403, which makes Google disable the key version; {how}"
            ),
        );
    };
    let list = match rule.justifications.preset {
        Some(_) => "write 'allowed', with it, in place of the preset",
        None => "list it in 'allowed'",
    };
    use Reason as R;
    if reason_denied(R::CustomerInitiatedAccess) {
        let why = "that is your own use of your data";
        warn_denied("customer_access_denied", R::CustomerInitiatedAccess.name(), why, list);
    }
    if reason_denied(R::GoogleInitiatedSystemOperation) {
        let why = "that is how services index, move and keep your data";
        warn_denied("system_operation_denied", R::GoogleInitiatedSystemOperation.name(), why, list);
    }
    if reason_denied(R::CustomerAuthorizedWorkflowServicing) {
        let why = "that is also what Google sends when one of its systems cannot name the precise reason";
        warn_denied("workflow_servicing_denied", R::CustomerAuthorizedWorkflowServicing.name(), why, list);
    }
    // Whoever refuses the plain reason has been told so.
    let modified = [
        (R::CustomerInitiatedAccess, R::ModifiedCustomerInitiatedAccess),
        (R::GoogleInitiatedSystemOperation, R::ModifiedGoogleInitiatedSystemOperation),
    ];
    for (_, modified) in
        modified.into_iter().filter(|&(plain, modified)| !reason_denied(plain) && reason_denied(modified))
    {
        let why = "it can come in place of the plain reason for days after an emergency at Google";
        warn_denied("modified_reason_denied", modified.name(), why, list);
    }
    if denied(&Justification::Missing) {
        let why = "the protocol lets a request come without one";
        let how = "look at your audit log whether every request has one, or set 'missing' to true; while Key Access \
                   Justifications are being switched on, 'grace_until' tolerates it";
        warn_denied("missing_denied", "a request without any justification", why, how);
    }
    if denied(&Justification::Unknown) {
        let why = "Google adds reasons from time to time";
        let how = "update ekm before Google sends a new one, or set 'unknown' to true";
        warn_denied("unknown_denied", "a reason that this version of ekm does not know", why, how);
    }
    // What a preset allows beside its list is no forgotten default.
    let lists_reasons = rule.justifications.allowed.is_some() && rule.justifications.preset.is_none();
    if lists_reasons && rule.justifications.missing {
        let text = "the rule lists reasons, and allows a request that gives none at all; set 'missing' \
                    to false if only the listed reasons are good enough";
        warn("missing_allowed", text.into());
    }
    if lists_reasons && rule.justifications.unknown {
        let text = "the rule lists reasons, and allows every reason that this version of ekm does not \
                    know, such as one that Google adds later; set 'unknown' to false if only the listed reasons are \
                    good enough";
        warn("unknown_allowed", text.into());
    }
}

/// Whether for each caller and verb of a rule one of these rules accepts the justification.
fn accepted_by(substitutes: &[&Rule], rule: &Rule, justification: &Justification) -> bool {
    let accepting = || substitutes.iter().filter(|other| other.justifications.accept_lastingly(justification));
    rule.callers.iter().all(|caller| {
        let allowed = |verb| accepting().any(|other| other.verbs.contains(verb) && other.covers_caller(caller));
        rule.verbs.iter().all(allowed)
    })
}

fn grace(rule: &Rule, now: OffsetDateTime, warn: &mut impl FnMut(&'static str, String)) {
    let Some(until) = rule.justifications.grace_until else { return };
    let without = [Justification::Missing, Justification::Known(Reason::Unspecified)];
    if without.iter().all(|justification| rule.justifications.accept_lastingly(justification)) {
        let text = "the rule accepts a request without a reason at any time, so 'grace_until' changes nothing; remove it, or set \
                    'missing' to false and list reasons in 'allowed'";
        return warn("grace_needless", text.into());
    }
    let left_ns = until.nanos() - now.unix_timestamp_nanos();
    if left_ns < 0 {
        warn("grace_over", format!("'grace_until' is over since {until}; remove it"));
    } else if left_ns > LONG_GRACE.whole_nanoseconds() {
        let text = format!(
            "requests without a reason are tolerated until {until}, for more than a week; Google needs up to 24 hours after \
             Key Access Justifications are switched on; take an earlier time"
        );
        warn("grace_long", text);
    }
}

fn times(rule: &Rule, now: OffsetDateTime, warn: &mut impl FnMut(&'static str, String)) {
    let Some(windows) = &rule.times else { return };
    let over = |end: i128| end < now.unix_timestamp_nanos();
    for (index, window) in windows.iter().enumerate() {
        let number = index + 1;
        let Some(end) = window.not_after else { continue };
        if over(end.nanos()) {
            warn(
                "expired",
                format!("time window {number} is over since {end} and never opens again; remove it, or extend it"),
            );
        } else if over(end.nanos() - SOON.whole_nanoseconds()) {
            let text = format!(
                "time window {number} is over at {end}, within 30 days, and never opens again; extend it in time"
            );
            warn("expires_soon", text);
        }
    }
    warn(
        "closes",
        "the rule matches nothing outside its times: a request that then no other rule allows is denied with 403, \
         which makes Google disable the key version; to pause a key, disable it instead"
            .into(),
    );
}

/// Rules only ever allow, so one that another covers changes nothing. Of two that cover each other, the later one is
/// superfluous.
fn shadows(policy: &Policy, index: usize, warn: &mut impl FnMut(&'static str, String)) {
    let (rule, rules) = (&policy.rules()[index], policy.rules());
    let shadow = rules.iter().enumerate().find(|&(other, covering)| {
        other != index && covering.covers(rule) && (other < index || !rule.covers(covering))
    });
    if let Some((other, _)) = shadow {
        let other = other + 1;
        warn(
            "shadowed",
            format!("rule {other} allows all that this rule allows, so it changes nothing; remove one of the two"),
        );
    }
}
