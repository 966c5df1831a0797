//! The decision. Denials are made here and nowhere else.

use std::fmt;

use serde::Serialize;
use time::OffsetDateTime;

use super::{Policy, Rule, Verb};
use crate::caller::{Caller, CallerPattern};
use crate::justification::Justification;

/// All that a decision depends on.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// Who asks, verified.
    pub caller: &'a Caller,
    /// For what.
    pub verb: Verb,
    /// Why.
    pub justification: &'a Justification,
    /// The resource that Cloud KMS says it acts for, if it says so.
    pub resource: Option<&'a str>,
    /// When.
    pub now: OffsetDateTime,
}

/// What a rule tests, in this order. Each has the name of the rule's field.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Aspect {
    /// Who.
    Callers,
    /// For what.
    Verbs,
    /// On behalf of which resource.
    Resources,
    /// Why.
    Justifications,
    /// When.
    Times,
}

impl Aspect {
    pub(super) const ALL: [Self; 5] = [Self::Callers, Self::Verbs, Self::Resources, Self::Justifications, Self::Times];

    /// The rule's field.
    pub fn name(self) -> &'static str {
        match self {
            Self::Callers => "callers",
            Self::Verbs => "verbs",
            Self::Resources => "resources",
            Self::Justifications => "justifications",
            Self::Times => "times",
        }
    }
}

impl Rule {
    pub(super) fn passes(&self, aspect: Aspect, request: &Request<'_>) -> bool {
        match aspect {
            Aspect::Callers => self.callers.iter().any(|pattern| pattern.matches(&request.caller.email)),
            Aspect::Verbs => self.verbs.contains(&request.verb),
            Aspect::Resources => self.resources.as_ref().is_none_or(|patterns| {
                request.resource.is_some_and(|name| patterns.iter().any(|pattern| pattern.matches(name)))
            }),
            Aspect::Justifications => self.justifications.accept(request.justification, request.now),
            Aspect::Times => {
                self.times.as_ref().is_none_or(|windows| windows.iter().any(|window| window.is_open(request.now)))
            }
        }
    }
}

/// A complete decision against a request. Only this module can make one, and only by evaluating a rule: that is how
/// nothing else can become a 403, which would make Google disable the key version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Denial {
    reason: DenialReason,
}

/// The most advanced of the tests that a request failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DenialReason {
    /// The token is valid, but its e-mail address is not one that may call this service at all.
    NotAdmitted,
    /// No rule names the caller.
    Caller,
    /// Rules name the caller, but not for this verb.
    Verb(&'static str),
    /// Rules name caller and verb, but only for certain resources, and the request names none.
    NoResource,
    /// Rules name caller and verb, but not this resource.
    Resource,
    /// Rules name all of these, but not this justification.
    Justification(&'static str),
    /// Rules name everything, but not for this time.
    Time,
    /// Callers make no keys in this crypto space.
    NoCreation,
}

impl Denial {
    /// What failed.
    pub fn reason(&self) -> &DenialReason {
        &self.reason
    }

    /// What failed, as a rule's field; none if no rule was asked.
    pub fn aspect(&self) -> Option<Aspect> {
        match self.reason {
            DenialReason::NotAdmitted | DenialReason::NoCreation => None,
            DenialReason::Caller => Some(Aspect::Callers),
            DenialReason::Verb(_) => Some(Aspect::Verbs),
            DenialReason::NoResource | DenialReason::Resource => Some(Aspect::Resources),
            DenialReason::Justification(_) => Some(Aspect::Justifications),
            DenialReason::Time => Some(Aspect::Times),
        }
    }
}

impl fmt::Display for Denial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.reason {
            DenialReason::NotAdmitted => write!(f, "this e-mail address is not one that may call this service"),
            DenialReason::Caller => write!(f, "the key's policy does not name this caller"),
            DenialReason::Verb(verb) => write!(f, "the key's policy does not allow this caller to {verb}"),
            DenialReason::NoResource => {
                write!(f, "the key's policy allows this for certain resources only, and the request names none")
            }
            DenialReason::Resource => write!(f, "the key's policy does not name the request's resource"),
            DenialReason::Justification(given) => {
                write!(f, "the key's policy does not accept the justification {given}")
            }
            DenialReason::NoCreation => write!(f, "the crypto space does not let callers make keys"),
            DenialReason::Time => write!(f, "the key's policy does not allow this at this time"),
        }
    }
}

/// Decides about one use of a key. Pure: same input, same answer.
pub fn decide(policy: &Policy, request: &Request<'_>) -> Result<(), Denial> {
    let mut furthest = Aspect::Callers;
    for rule in policy.rules() {
        match Aspect::ALL.into_iter().find(|&aspect| !rule.passes(aspect, request)) {
            None => return Ok(()),
            Some(failed) => furthest = furthest.max(failed),
        }
    }
    let reason = match furthest {
        Aspect::Callers => DenialReason::Caller,
        Aspect::Verbs => DenialReason::Verb(request.verb.name()),
        Aspect::Resources if request.resource.is_none() => DenialReason::NoResource,
        Aspect::Resources => DenialReason::Resource,
        Aspect::Justifications => DenialReason::Justification(request.justification.name()),
        Aspect::Times => DenialReason::Time,
    };
    Err(Denial { reason })
}

/// Whether a request that is allowed is so only because a time of grace for requests without a reason is not over.
pub fn by_grace(policy: &Policy, request: &Request<'_>) -> bool {
    let (reason, now) = (request.justification, request.now);
    let mut tolerant = policy.rules().iter().filter(|rule| rule.justifications.tolerate(reason, now)).peekable();
    if tolerant.peek().is_none() {
        return false;
    }
    let fits = |rule: &Rule| Aspect::ALL.into_iter().all(|aspect| rule.passes(aspect, request));
    let lastingly = |rule: &Rule| rule.justifications.accept_lastingly(reason);
    tolerant.any(fits) && !policy.rules().iter().any(|rule| lastingly(rule) && fits(rule))
}

/// Decides about a verb for a crypto space, whose policy there is only if callers may make keys in it.
pub fn decide_in_space(policy: Option<&Policy>, request: &Request<'_>) -> Result<(), Denial> {
    let policy = policy.ok_or(Denial { reason: DenialReason::NoCreation })?;
    decide(policy, request)
}

/// Decides whether a verified caller may use the service at all: its address is verified and fits a pattern.
pub fn admit(admitted: &[CallerPattern], caller: &Caller) -> Result<(), Denial> {
    if caller.email_verified && admitted.iter().any(|pattern| pattern.matches(&caller.email)) {
        return Ok(());
    }
    Err(Denial { reason: DenialReason::NotAdmitted })
}
