//! Whether one rule allows whatever another allows. `true` is certain; `false` may only mean that several rules or
//! windows together would be needed.

use super::{ResourcePattern, Rule, Window};
use crate::caller::CallerPattern;

impl Rule {
    pub(super) fn covers(&self, other: &Self) -> bool {
        other.verbs.iter().all(|verb| self.verbs.contains(verb))
            && self.justifications.cover(&other.justifications)
            && other.callers.iter().all(|caller| self.covers_caller(caller))
            && self.covers_resources_and_times(other)
    }

    pub(super) fn covers_caller(&self, caller: &CallerPattern) -> bool {
        self.callers.iter().any(|mine| mine.covers(caller))
    }

    pub(super) fn covers_resources_and_times(&self, other: &Self) -> bool {
        each_in_one(self.resources.as_deref(), other.resources.as_deref(), ResourcePattern::covers)
            && each_in_one(self.times.as_deref(), other.times.as_deref(), Window::covers)
    }
}

/// Whether each of `others` is covered by one of `mine`. No list at all is no bound.
fn each_in_one<T>(mine: Option<&[T]>, others: Option<&[T]>, covers: impl Fn(&T, &T) -> bool) -> bool {
    let Some(mine) = mine else { return true };
    others.is_some_and(|others| others.iter().all(|other| mine.iter().any(|mine| covers(mine, other))))
}

impl super::Policy {
    /// Whether everything that `other` allows is certainly allowed by this policy, too: each of its rules is covered by one of ours.
    /// `false` is no certainty of the contrary.
    pub fn covers(&self, other: &Self) -> bool {
        other.rules().iter().all(|theirs| self.rules().iter().any(|ours| ours.covers(theirs)))
    }
}
