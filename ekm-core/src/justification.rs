//! Key Access Justifications: the reason that Google gives with every call.

use serde::{Deserialize, Serialize};

macro_rules! reasons {
    ($($(#[$doc:meta])* $variant:ident = $number:literal, $name:literal;)*) => {
        /// The reasons of `google.cloud.kms` (AccessReason), by their protocol names.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
        pub enum Reason { $($(#[$doc])* #[serde(rename = $name)] $variant = $number,)* }

        impl Reason {
            /// Every reason, in the order of their numbers.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// The protocol's name, such as `CUSTOMER_INITIATED_ACCESS`.
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }
        }
    };
}

reasons! {
    /// 0: no reason was given, or proto3 omitted it.
    Unspecified = 0, "REASON_UNSPECIFIED";
    /// 1: Google's support, asked by the customer.
    CustomerInitiatedSupport = 1, "CUSTOMER_INITIATED_SUPPORT";
    /// 2: Google keeps its service running.
    GoogleInitiatedService = 2, "GOOGLE_INITIATED_SERVICE";
    /// 3: a legal demand.
    ThirdPartyDataRequest = 3, "THIRD_PARTY_DATA_REQUEST";
    /// 4: security, fraud, abuse, compliance.
    GoogleInitiatedReview = 4, "GOOGLE_INITIATED_REVIEW";
    /// 5: the customer's own access; refusing it breaks services.
    CustomerInitiatedAccess = 5, "CUSTOMER_INITIATED_ACCESS";
    /// 6: automatic operations such as indexing; refusing it breaks services.
    GoogleInitiatedSystemOperation = 6, "GOOGLE_INITIATED_SYSTEM_OPERATION";
    /// 7: no reason is expected for this key.
    ReasonNotExpected = 7, "REASON_NOT_EXPECTED";
    /// 8: as 5, after an emergency change; can appear for days.
    ModifiedCustomerInitiatedAccess = 8, "MODIFIED_CUSTOMER_INITIATED_ACCESS";
    /// 9: as 6, after an emergency change; can appear for days.
    ModifiedGoogleInitiatedSystemOperation = 9, "MODIFIED_GOOGLE_INITIATED_SYSTEM_OPERATION";
    /// 10: Google answers an alert of its production.
    GoogleResponseToProductionAlert = 10, "GOOGLE_RESPONSE_TO_PRODUCTION_ALERT";
    /// 11: a workflow that the customer authorised; also sent when Google cannot name the precise reason.
    CustomerAuthorizedWorkflowServicing = 11, "CUSTOMER_AUTHORIZED_WORKFLOW_SERVICING";
}

/// What a request says about its reason. Missing, unspecified and unknown are different things, and a policy
/// decides about each.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(into = "String")]
pub enum Justification {
    /// No context at all.
    Missing,
    /// A reason that we know, [`Reason::Unspecified`] included.
    Known(Reason),
    /// A name or number that we do not know.
    Unknown,
}

impl Justification {
    /// By the protocol's name; an unfamiliar one is [`Justification::Unknown`], never an error.
    pub fn from_name(name: &str) -> Self {
        Reason::ALL.iter().find(|reason| reason.name() == name).map_or(Self::Unknown, |&reason| Self::Known(reason))
    }

    /// By the enum's number (proto3 JSON accepts both).
    pub fn from_number(number: i64) -> Self {
        usize::try_from(number)
            .ok()
            .and_then(|index| Reason::ALL.get(index))
            .map_or(Self::Unknown, |&reason| Self::Known(reason))
    }

    /// For audit lines and denials.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Missing => "MISSING",
            Self::Known(reason) => reason.name(),
            Self::Unknown => "UNKNOWN",
        }
    }
}

impl From<Justification> for String {
    fn from(justification: Justification) -> Self {
        justification.name().to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_names_agree_and_what_we_do_not_know_is_unknown() {
        for (number, reason) in Reason::ALL.iter().enumerate() {
            assert_eq!(*reason as usize, number);
            assert_eq!(Justification::from_name(reason.name()), Justification::Known(*reason));
            assert_eq!(Justification::from_number(number as i64), Justification::Known(*reason));
        }
        for unknown in ["", "FOO", "customer_initiated_access"] {
            assert_eq!(Justification::from_name(unknown), Justification::Unknown);
        }
        for unknown in [-1, 12, 9999, i64::MAX] {
            assert_eq!(Justification::from_number(unknown), Justification::Unknown);
        }
    }
}
