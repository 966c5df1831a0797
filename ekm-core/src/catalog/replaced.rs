//! Two-step denials: what a policy allowed before it was changed.
//!
//! A 403 disables the key version at Google, so a slip in a policy would cost more than the time until it is noticed. What the policy
//! of a key allowed until a change is therefore first refused with 503, and with 403 when the change has become final. The documents
//! that were replaced stand in the row, each with the time until which it counts: so every frontend decides alike, without memory
//! of its own, and neither a restart nor another setting changes what was promised.

use serde::{Deserialize, Serialize};
use time::{Duration, OffsetDateTime};

use crate::policy::{self, Policy};

/// The most that a row keeps. More changes than that within one delay are somebody trying things out.
const MAX_REPLACED: usize = 4;

/// A policy that is no longer in force.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReplacedPolicy {
    /// As [`super::PolicyRecord::document`].
    pub document: String,
    /// Until then, what it allowed is refused with 503 and not with 403.
    #[serde(with = "time::serde::rfc3339")]
    pub final_at: OffsetDateTime,
}

/// What a row keeps after a change from the policy `old` to `new`. `before` is what it kept.
pub fn replaced(
    mut before: Vec<ReplacedPolicy>,
    old: &str,
    new: &Policy,
    now: OffsetDateTime,
    delay: Duration,
) -> Vec<ReplacedPolicy> {
    if delay.is_positive() {
        before.retain(|replaced| replaced.document != old);
        let final_at = now + delay;
        // For people, who read it in logs and tables.
        let final_at = final_at.replace_nanosecond(0).unwrap_or(final_at);
        before.push(ReplacedPolicy { document: old.to_owned(), final_at });
    }
    // What the new one allows for certain is denied to nobody.
    before.retain(|replaced| {
        replaced.final_at > now && !Policy::parse(&replaced.document).is_ok_and(|old| new.covers(&old))
    });
    before.sort_by_key(|replaced| replaced.final_at);
    before.split_off(before.len().saturating_sub(MAX_REPLACED))
}

/// When a request that is denied now is denied for good, if one of these allowed it.
pub fn denial_final_at(replaced: &[ReplacedPolicy], request: &policy::Request<'_>) -> Option<OffsetDateTime> {
    let former = Former::of(replaced, request.now).ok()?;
    former.iter().filter_map(|former| former.allowed_until(request)).max()
}

/// A [`ReplacedPolicy`], parsed.
pub(crate) struct Former {
    policy: Policy,
    final_at: OffsetDateTime,
}

impl Former {
    /// Those that count still.
    pub(crate) fn of(replaced: &[ReplacedPolicy], now: OffsetDateTime) -> Result<Vec<Self>, String> {
        let count = replaced.iter().filter(|replaced| replaced.final_at > now);
        count
            .map(|replaced| {
                let policy = Policy::parse(&replaced.document);
                let policy = policy.map_err(|invalid| format!("a policy that it replaced is refused: {invalid}"))?;
                Ok(Self { policy, final_at: replaced.final_at })
            })
            .collect()
    }

    /// Until when a request that is denied now is not denied for good.
    pub(crate) fn allowed_until(&self, request: &policy::Request<'_>) -> Option<OffsetDateTime> {
        let allowed = request.now < self.final_at && policy::decide(&self.policy, request).is_ok();
        allowed.then_some(self.final_at)
    }

    pub(crate) fn final_at(&self) -> OffsetDateTime {
        self.final_at
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::caller::Caller;
    use crate::justification::Justification;

    const NOW: OffsetDateTime = OffsetDateTime::UNIX_EPOCH;

    fn document(caller: &str) -> String {
        Policy::parse(&format!(r#"{{"rules":[{{"callers":["{caller}"],"verbs":["wrap"]}}]}}"#)).unwrap().to_json()
    }

    /// A chain of changes, one a minute, from the first caller's policy to the last one's.
    fn changed(callers: &[&str], delay: Duration) -> Vec<(String, i64)> {
        let mut kept = Vec::new();
        for (minute, pair) in callers.windows(2).enumerate() {
            let now = NOW + Duration::minutes(minute as i64);
            kept = replaced(kept, &document(pair[0]), &Policy::parse(&document(pair[1])).unwrap(), now, delay);
        }
        kept.into_iter().map(|kept| (kept.document, (kept.final_at - NOW).whole_minutes())).collect()
    }

    #[test]
    fn what_was_replaced_counts_until_the_delay_is_over_and_without_one_not_at_all() {
        let hour = Duration::HOUR;
        assert_eq!(changed(&["a@x", "b@x"], Duration::ZERO), []);
        assert_eq!(changed(&["a@x", "b@x"], hour), [(document("a@x"), 60)]);
        assert_eq!(changed(&["a@x", "b@x", "c@x"], hour), [(document("a@x"), 60), (document("b@x"), 61)]);
        assert_eq!(changed(&["a@x", "b@x", "c@x"], Duration::MINUTE), [(document("b@x"), 2)]);
    }

    #[test]
    fn a_change_that_takes_nothing_away_holds_nothing_back_and_mends_what_was_held() {
        let hour = Duration::HOUR;
        assert_eq!(changed(&["a@x", "*"], hour), []);
        assert_eq!(changed(&["a@x", "a@x"], hour), []);
        assert_eq!(changed(&["a@x", "b@x", "a@x"], hour), [(document("b@x"), 61)]);
        assert_eq!(changed(&["a@x", "b@x", "*@x"], hour), []);
    }

    #[test]
    fn a_denial_is_final_when_the_time_is_over_and_at_once_for_what_was_never_allowed() {
        let kept =
            replaced(Vec::new(), &document("a@x"), &Policy::parse(&document("b@x")).unwrap(), NOW, Duration::HOUR);
        let at = |email: &str, minutes| {
            let caller = Caller { email: email.into(), email_verified: true, subject: "1".into(), issuer: "i".into() };
            let (justification, now) = (&Justification::Missing, NOW + Duration::minutes(minutes));
            let verb = policy::Verb::Wrap;
            let request = policy::Request { caller: &caller, verb, justification, resource: None, now };
            denial_final_at(&kept, &request)
        };
        let end = Some(NOW + Duration::HOUR);
        assert_eq!([at("a@x", 0), at("a@x", 59), at("a@x", 60), at("a@x", 61)], [end, end, None, None]);
        assert_eq!(at("c@x", 0), None);
    }

    #[test]
    fn of_many_changes_the_last_ones_count_and_each_policy_once() {
        let kept = changed(&["a@x", "b@x", "a@x", "b@x", "c@x"], Duration::HOUR);
        assert_eq!(kept, [(document("a@x"), 62), (document("b@x"), 63)]);
        let kept = changed(&["a@x", "b@x", "c@x", "d@x", "e@x", "f@x", "g@x"], Duration::HOUR);
        assert_eq!(kept.iter().map(|(_, minute)| *minute).collect::<Vec<_>>(), [62, 63, 64, 65]);
    }
}
