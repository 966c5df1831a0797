//! Which justifications a rule accepts.

use std::fmt;

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use super::{Preset, Timestamp, strict};
use crate::justification::{Justification, Reason};

/// Separate decisions: about reasons that we know, `REASON_UNSPECIFIED` among them, about none at all, and about reasons that we do not
/// know. The default allows all of them, which is Google's own default for keys without Key Access Justifications.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Written", into = "Written")]
pub struct Justifications {
    /// Where the other fields come from, if nobody wrote them one by one.
    pub(super) preset: Option<Preset>,
    /// The known reasons that are allowed; absent means every one of them, `REASON_UNSPECIFIED` included.
    pub(super) allowed: Option<Vec<Reason>>,
    /// Whether a request without any context is allowed.
    pub(super) missing: bool,
    /// Whether a reason that this version does not know is allowed.
    pub(super) unknown: bool,
    /// Until then, this moment included, a request without any context or with `REASON_UNSPECIFIED` is tolerated all the same: after
    /// Key Access Justifications are switched on for a project, such requests still come for up to a day.
    pub(super) grace_until: Option<Timestamp>,
}

/// As it is written: a preset, or the fields one by one.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    #[serde(default, deserialize_with = "strict::present", skip_serializing_if = "Option::is_none")]
    preset: Option<Preset>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    allowed: Option<Vec<Reason>>,
    #[serde(default, deserialize_with = "strict::present", skip_serializing_if = "Option::is_none")]
    missing: Option<bool>,
    #[serde(default, deserialize_with = "strict::present", skip_serializing_if = "Option::is_none")]
    unknown: Option<bool>,
    #[serde(default, deserialize_with = "strict::present", skip_serializing_if = "Option::is_none")]
    grace_until: Option<Timestamp>,
}

impl TryFrom<Written> for Justifications {
    type Error = &'static str;

    fn try_from(written: Written) -> Result<Self, Self::Error> {
        let Written { preset, allowed, missing, unknown, grace_until } = written;
        match preset {
            Some(_) if allowed.is_some() || missing.is_some() || unknown.is_some() => {
                Err("a preset stands for 'allowed', 'missing' and 'unknown'; write either the preset or these")
            }
            Some(preset) => Ok(Self { grace_until, ..preset.into() }),
            None => {
                let [missing, unknown] = [missing, unknown].map(|written| written.unwrap_or(true));
                Ok(Self { preset, allowed, missing, unknown, grace_until })
            }
        }
    }
}

impl From<Justifications> for Written {
    fn from(expanded: Justifications) -> Self {
        let Justifications { preset, allowed, missing, unknown, grace_until } = expanded;
        match preset {
            Some(_) => Self { preset, allowed: None, missing: None, unknown: None, grace_until },
            None => Self { preset, allowed, missing: Some(missing), unknown: Some(unknown), grace_until },
        }
    }
}

impl From<Preset> for Justifications {
    fn from(preset: Preset) -> Self {
        let (allowed, missing, unknown) = (preset.allowed(), preset.missing(), preset.unknown());
        Self { preset: Some(preset), allowed, missing, unknown, grace_until: None }
    }
}

impl Default for Justifications {
    fn default() -> Self {
        Self { preset: None, allowed: None, missing: true, unknown: true, grace_until: None }
    }
}

impl Justifications {
    pub(super) fn accept(&self, justification: &Justification, now: OffsetDateTime) -> bool {
        self.accept_lastingly(justification) || self.tolerate(justification, now)
    }

    /// Without the time of grace.
    pub(super) fn accept_lastingly(&self, justification: &Justification) -> bool {
        match justification {
            Justification::Missing => self.missing,
            Justification::Unknown => self.unknown,
            Justification::Known(reason) => self.allowed.as_ref().is_none_or(|allowed| allowed.contains(reason)),
        }
    }

    /// By the time of grace alone.
    pub(super) fn tolerate(&self, justification: &Justification, now: OffsetDateTime) -> bool {
        let in_time = |until: Timestamp| now.unix_timestamp_nanos() <= until.nanos();
        gives_no_reason(justification) && self.grace_until.is_some_and(in_time)
    }

    /// Whether there is nothing that it accepts when a time of grace is over.
    pub(super) fn accept_nothing(&self) -> bool {
        self.allowed.as_ref().is_some_and(Vec::is_empty) && !self.missing && !self.unknown
    }

    /// Whether it accepts whatever `other` accepts, at any time.
    pub(super) fn cover(&self, other: &Self) -> bool {
        let known = Reason::ALL.iter().map(|&reason| Justification::Known(reason));
        let mut all = known.chain([Justification::Missing, Justification::Unknown]);
        all.all(|justification| self.accept_until(&justification) >= other.accept_until(&justification))
    }

    /// In nanoseconds since 1970; `None` if never.
    fn accept_until(&self, justification: &Justification) -> Option<i128> {
        if self.accept_lastingly(justification) {
            return Some(i128::MAX);
        }
        self.grace_until.filter(|_| gives_no_reason(justification)).map(Timestamp::nanos)
    }
}

/// What still comes while Key Access Justifications are being switched on.
pub(super) fn gives_no_reason(justification: &Justification) -> bool {
    matches!(justification, Justification::Missing | Justification::Known(Reason::Unspecified))
}

/// The four decisions, also of a preset.
impl fmt::Display for Justifications {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(preset) = self.preset {
            write!(f, "preset {} = ", preset.name())?;
        }
        let accepts = |reason: Reason| self.accept_lastingly(&Justification::Known(reason));
        let named: Vec<_> = Reason::ALL.iter().copied().filter(|&reason| reason != Reason::Unspecified).collect();
        let allowed: Vec<_> = named.iter().filter(|&&reason| accepts(reason)).map(|reason| reason.name()).collect();
        let known = match allowed.len() {
            0 => "none".to_owned(),
            count if count == named.len() => "all".to_owned(),
            _ => allowed.join(", "),
        };
        let word = |accepted| if accepted { "allowed" } else { "denied" };
        let unspecified = word(accepts(Reason::Unspecified));
        let (missing, unknown) = (word(self.missing), word(self.unknown));
        write!(f, "known: {known}; unspecified: {unspecified}; missing: {missing}; unknown: {unknown}")?;
        match self.grace_until {
            Some(until) => write!(f, "; unspecified and missing are tolerated until {until}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOME_DAY: OffsetDateTime = OffsetDateTime::UNIX_EPOCH;

    #[test]
    fn missing_unspecified_unknown_and_known_are_four_separate_decisions() {
        for case in 0..16u8 {
            let [missing, unspecified, unknown, known] = [case & 1 > 0, case & 2 > 0, case & 4 > 0, case & 8 > 0];
            let mut allowed = Vec::new();
            allowed.extend(unspecified.then_some(Reason::Unspecified));
            allowed.extend(known.then_some(Reason::GoogleInitiatedReview));
            let rules = Justifications { preset: None, allowed: Some(allowed), missing, unknown, grace_until: None };
            let accept = |justification| rules.accept(&justification, SOME_DAY);
            assert_eq!(accept(Justification::Missing), missing);
            assert_eq!(accept(Justification::Known(Reason::Unspecified)), unspecified);
            assert_eq!(accept(Justification::Unknown), unknown);
            assert_eq!(accept(Justification::Known(Reason::GoogleInitiatedReview)), known);
            assert_eq!(rules.accept_nothing(), case == 0);
        }
    }

    #[test]
    fn a_preset_decides_about_each_reason_as_the_documentation_says() {
        use Justification::{Known, Missing, Unknown};
        let accepted = |preset: Preset| {
            let rules = Justifications::from(preset);
            let numbers = (0..12).filter(|&n| rules.accept(&Justification::from_number(n), SOME_DAY));
            let others = [Missing, Unknown].map(|justification| rules.accept(&justification, SOME_DAY));
            (numbers.collect::<Vec<_>>(), others)
        };
        assert_eq!(accepted(Preset::Any), ((0..12).collect(), [true, true]));
        assert_eq!(accepted(Preset::ReasonRequired), ((1..12).collect(), [false, true]));
        assert_eq!(accepted(Preset::CustomerOnly), (vec![5, 6, 8, 9, 11], [false, false]));
        let [any, required, customer] = Preset::ALL.map(Justifications::from);
        assert!(any.cover(&required) && required.cover(&customer) && !customer.cover(&required));
        assert!(!required.accept(&Known(Reason::Unspecified), SOME_DAY));
    }

    #[test]
    fn a_preset_is_shown_expanded() {
        let shown = Preset::ALL.map(|preset| Justifications::from(preset).to_string());
        assert_eq!(
            shown,
            [
                "preset any = known: all; unspecified: allowed; missing: allowed; unknown: allowed",
                "preset reason-required = known: all; unspecified: denied; missing: denied; unknown: allowed",
                "preset customer-only = known: CUSTOMER_INITIATED_ACCESS, GOOGLE_INITIATED_SYSTEM_OPERATION, \
                 MODIFIED_CUSTOMER_INITIATED_ACCESS, MODIFIED_GOOGLE_INITIATED_SYSTEM_OPERATION, \
                 CUSTOMER_AUTHORIZED_WORKFLOW_SERVICING; unspecified: denied; missing: denied; unknown: denied",
            ]
        );
    }

    #[test]
    fn a_time_of_grace_is_for_requests_without_a_reason_and_ends() {
        let until = "2026-11-23T12:00:00Z";
        let grace_until = Some(Timestamp::try_from(until.to_owned()).unwrap());
        let rules = Justifications { grace_until, ..Preset::CustomerOnly.into() };
        let end = OffsetDateTime::parse(until, &time::format_description::well_known::Rfc3339).unwrap();
        let after = end + time::Duration::NANOSECOND;
        for without in [Justification::Missing, Justification::Known(Reason::Unspecified)] {
            assert!(rules.accept(&without, end) && !rules.accept(&without, after));
        }
        for other in [Justification::Unknown, Justification::Known(Reason::GoogleInitiatedReview)] {
            assert!(!rules.accept(&other, end));
        }
        assert!(rules.accept(&Justification::Known(Reason::CustomerInitiatedAccess), after));
        assert!(rules.to_string().ends_with("; unspecified and missing are tolerated until 2026-11-23T12:00:00Z"));
        let plain = Justifications::from(Preset::CustomerOnly);
        assert!(rules.cover(&plain) && !plain.cover(&rules));
        let later = Timestamp::try_from("2026-11-24T12:00:00Z".to_owned()).unwrap();
        assert!(Justifications { grace_until: Some(later), ..rules.clone() }.cover(&rules));
        assert!(!rules.cover(&Justifications { grace_until: Some(later), ..rules.clone() }));
        assert!(Justifications::default().cover(&rules));
    }
}
