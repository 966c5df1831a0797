//! Tests of the whole; what belongs to one file alone is tested there.

mod arbitrary;
mod deciding;
mod linting;
mod parsing;
mod windows;

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::{Policy, Request, Verb};
use crate::caller::Caller;
use crate::justification::{Justification, Reason};

pub(super) const GOOD: &Justification = &Justification::Known(Reason::CustomerInitiatedAccess);

pub(super) fn caller(email: &str) -> Caller {
    Caller { email: email.into(), email_verified: true, subject: "1".into(), issuer: "i".into() }
}

pub(super) fn at(text: &str) -> OffsetDateTime {
    OffsetDateTime::parse(text, &Rfc3339).unwrap()
}

/// A wrap by this caller, now, for no resource.
pub(super) fn wrap<'a>(caller: &'a Caller) -> Request<'a> {
    let now = at("2026-11-22T12:00:00Z");
    Request { caller, verb: Verb::Wrap, justification: GOOD, resource: None, now }
}

/// A policy with one rule, for everybody and both verbs, with these further fields.
pub(super) fn with(fields: &str) -> String {
    format!(
        r#"{{"rules":[{{"callers":["*"],"verbs":["wrap","unwrap"]{}{fields}}}]}}"#,
        if fields.is_empty() { "" } else { "," }
    )
}

pub(super) fn policy(fields: &str) -> Policy {
    Policy::parse(&with(fields)).unwrap()
}
