//! Lists of reasons by name, for rules that need no list of their own.

use serde::{Deserialize, Serialize};

use crate::justification::Reason;

/// What a preset means never changes, since stored policies name it; another meaning gets another name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Preset {
    /// Everything, also no reason at all: Google's own default for keys without Key Access Justifications.
    Any,
    /// Whatever reason is given, also one that this version does not know yet. None at all, and `REASON_UNSPECIFIED`, is not enough.
    ReasonRequired,
    /// The customer's own use of his data, and the reasons without which services break or which stand for it at times.
    CustomerOnly,
}

impl Preset {
    /// Every preset, from wide to narrow.
    pub const ALL: [Self; 3] = [Self::Any, Self::ReasonRequired, Self::CustomerOnly];

    /// As policies write it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Any => "any",
            Self::ReasonRequired => "reason-required",
            Self::CustomerOnly => "customer-only",
        }
    }

    /// The reverse of [`Self::name`].
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|preset| preset.name() == name)
    }

    /// The known reasons that are allowed; `None` for every one.
    pub(super) fn allowed(self) -> Option<Vec<Reason>> {
        match self {
            Self::Any => None,
            Self::ReasonRequired => {
                Some(Reason::ALL.iter().copied().filter(|&reason| reason != Reason::Unspecified).collect())
            }
            Self::CustomerOnly => Some(vec![
                Reason::CustomerInitiatedAccess,
                Reason::GoogleInitiatedSystemOperation,
                Reason::ModifiedCustomerInitiatedAccess,
                Reason::ModifiedGoogleInitiatedSystemOperation,
                Reason::CustomerAuthorizedWorkflowServicing,
            ]),
        }
    }

    pub(super) fn missing(self) -> bool {
        self == Self::Any
    }

    /// A reason that Google adds later is a reason, and whether it becomes known must not change what a preset means.
    pub(super) fn unknown(self) -> bool {
        self != Self::CustomerOnly
    }
}
