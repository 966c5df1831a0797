//! Which justifications a rule accepts.

use serde::{Deserialize, Serialize};

use crate::justification::{Justification, Reason};

/// Three separate decisions: about reasons that we know, about none at all, and about reasons that we do not know.
/// The default allows all three, which is Google's own default for keys without Key Access Justifications.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Justifications {
    /// The known reasons that are allowed; absent means every one of them, `REASON_UNSPECIFIED` included.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allowed: Option<Vec<Reason>>,
    /// Whether a request without any context is allowed.
    #[serde(default = "yes")]
    pub missing: bool,
    /// Whether a reason that this version does not know is allowed.
    #[serde(default = "yes")]
    pub unknown: bool,
}

fn yes() -> bool {
    true
}

impl Default for Justifications {
    fn default() -> Self {
        Self { allowed: None, missing: true, unknown: true }
    }
}

impl Justifications {
    pub(super) fn accept(&self, justification: &Justification) -> bool {
        match justification {
            Justification::Missing => self.missing,
            Justification::Unknown => self.unknown,
            Justification::Known(reason) => self.allowed.as_ref().is_none_or(|allowed| allowed.contains(reason)),
        }
    }

    /// Whether there is nothing that it accepts.
    pub(super) fn accept_nothing(&self) -> bool {
        self.allowed.as_ref().is_some_and(Vec::is_empty) && !self.missing && !self.unknown
    }

    /// Whether it accepts whatever `other` accepts.
    pub(super) fn cover(&self, other: &Self) -> bool {
        let known = Reason::ALL.iter().map(|&reason| Justification::Known(reason));
        let mut all = known.chain([Justification::Missing, Justification::Unknown]);
        all.all(|justification| self.accept(&justification) || !other.accept(&justification))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_unspecified_unknown_and_known_are_four_separate_decisions() {
        for case in 0..16u8 {
            let [missing, unspecified, unknown, known] = [case & 1 > 0, case & 2 > 0, case & 4 > 0, case & 8 > 0];
            let mut allowed = Vec::new();
            allowed.extend(unspecified.then_some(Reason::Unspecified));
            allowed.extend(known.then_some(Reason::GoogleInitiatedReview));
            let rules = Justifications { allowed: Some(allowed), missing, unknown };
            assert_eq!(rules.accept(&Justification::Missing), missing);
            assert_eq!(rules.accept(&Justification::Known(Reason::Unspecified)), unspecified);
            assert_eq!(rules.accept(&Justification::Unknown), unknown);
            assert_eq!(rules.accept(&Justification::Known(Reason::GoogleInitiatedReview)), known);
            assert_eq!(rules.accept_nothing(), case == 0);
        }
    }
}
