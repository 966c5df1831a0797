//! What can go wrong with a request. One variant per thing that an operator or Google must tell apart.

use crate::caller::TokenDefect;
use crate::policy::Denial;
use crate::snapshot::{KeyNotFound, SpaceNotFound};

/// Why a request has no result. The text is for the operator (audit line, log); what the caller reads is decided in the
/// server's `status`, the one place that turns this into HTTP.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    // The caller's.
    /// No valid token for us.
    #[error("{0}")]
    Unauthenticated(#[from] TokenDefect),
    /// The snapshot, which is current, has no key under this path.
    #[error("{0}")]
    KeyNotFound(#[from] KeyNotFound),
    /// The snapshot, which is current, has no crypto space under this path.
    #[error("{0}")]
    SpaceNotFound(#[from] SpaceNotFound),
    /// No verb of the protocol, or a path that can name no key.
    #[error("{0}")]
    NoSuchMethod(&'static str),
    /// Anything but POST.
    #[error("the verbs of the protocol are called with POST")]
    MethodNotAllowed,
    /// Not `application/json`, or a compressed body.
    #[error("{0}")]
    UnsupportedMediaType(&'static str),
    /// A `Host` that is not ours.
    #[error("this service does not answer for the host that the request names")]
    Misdirected,
    /// A request that cannot be understood, or breaks a bound.
    #[error("{field}: {problem}")]
    InvalidRequest {
        /// The field's protocol name; `body` or `header` for the whole.
        field: &'static str,
        /// What is wrong with it, without its value.
        problem: String,
    },
    /// Wrong tag, wrong AAD, truncated, foreign: all the same, so that nobody learns which.
    #[error("the blob was not wrapped under this key, or with other additional authenticated data, or was changed")]
    UnwrapFailed,
    /// The key is of another kind than the verb is for.
    #[error("the key's algorithm is {algorithm}, which is not for {verb}")]
    WrongAlgorithm {
        /// What the caller asked for.
        verb: &'static str,
        /// What the key does.
        algorithm: &'static str,
    },
    /// createKey under a name that has a key already, of another kind.
    #[error("there is a key for this relativeResourceName already, {0}")]
    KeyExists(String),
    /// createKey for an algorithm that nobody makes here.
    #[error("{0}")]
    AlgorithmNotOffered(String),
    /// A verb of the protocol that this version does not offer.
    #[error("the method {0} is not implemented")]
    NotImplemented(&'static str),

    // The policy's and the operator's.
    /// An evaluated policy says no.
    #[error("{0}")]
    Denied(Denial),
    /// An evaluated policy says no, and said yes before a change that is not final yet.
    #[error("{0}; this is not final yet")]
    DenialPending(Denial),
    /// An operator stopped it.
    #[error("{0}")]
    NotInUse(NotInUse),
    /// The crypto space has as many keys as it may.
    #[error("the crypto space has {0} keys, which is as many as it may; destroy some, or have its bound raised")]
    TooManyKeys(u32),

    /// He may not send that many.
    #[error("this caller sends more requests a second than limits.caller_requests_per_s allows")]
    CallerRate,

    // The HSM's.
    /// The token failed at this operation.
    #[error("HSM: {function} failed with {code}")]
    HsmFault {
        /// PKCS#11 function.
        function: String,
        /// PKCS#11 return code.
        code: String,
    },
    /// The token did not answer in time; the call may still hang.
    #[error("the HSM did not answer within its deadline")]
    HsmTimeout,
    /// The HSM has not been here since the start.
    #[error("the HSM is not here: {reason}")]
    HsmAway {
        /// What the last attempt to open it met.
        reason: String,
    },
    /// The token returned something that cannot be right.
    #[error("the HSM's answer cannot be right: {0}")]
    HsmIntegrity(&'static str),
    /// The key's row in the catalog is not sound, or its material failed its test, or is no longer on the token.
    #[error(
        "the key is not available: its row was refused, or its material is not where its custody says or failed its test"
    )]
    KeyUnavailable,
    /// Its current version has wrapped as often as one may.
    #[error("the key version has wrapped 2^32 times, which is as often as it may; rotate the key")]
    KeyExhausted,
    /// An answer would come too late: there is more to do than the shard's sessions can.
    #[error("the HSM has more to do than it can in time")]
    Overloaded,

    // Others'.
    /// The issuer's keys could not be had, so a token can be neither accepted nor refused.
    #[error("the issuer's key set is not available; the token can be neither accepted nor refused")]
    IssuerUnavailable,
    /// The catalog takes no change now.
    #[error("the catalog cannot be changed now: {0}")]
    CatalogUnavailable(String),
    /// A new key that is being made, or not everywhere yet.
    #[error("the key is still being made; the same request again gets it")]
    KeyPending,
    /// A new key could not be made.
    #[error("the key could not be made: {0}")]
    KeyGeneration(String),
    /// The catalog could not be read for so long that "there is no such key" would be a guess.
    #[error("the catalog has not been readable for too long to say that a key does not exist")]
    CatalogStale,

    // Ours.
    /// This frontend does not keep up; another one may.
    #[error("this frontend does not keep up: {0}")]
    FrontendBusy(&'static str),
    /// The answer would come too late to be of use.
    #[error("the deadline passed in stage '{0}'")]
    DeadlineExceeded(&'static str),
    /// The audit record could not be queued, so the request is not answered.
    #[error("the audit log cannot be written")]
    AuditUnavailable,
    /// A bug of ours.
    #[error("internal error: {0}")]
    Internal(&'static str),
}

/// What an operator has said about a key, so that it answers FAILED_PRECONDITION, which does not disable the version at Google.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotInUse {
    /// Paused.
    #[error("the key is disabled")]
    KeyDisabled,
    /// The blob's version is paused.
    #[error("the key version that wrapped this blob is disabled")]
    VersionDisabled,
    /// All keys of the crypto space are stopped.
    #[error("the key's crypto space is blocked")]
    SpaceBlocked,
    /// Wrapping would make data that is soon lost, and signing is for keys that stay.
    #[error("the key is to be destroyed, and neither wraps nor signs any more")]
    KeyDestroyScheduled,
    /// The material is gone.
    #[error("the key, or the version that wrapped this blob, was destroyed")]
    Destroyed,
}

impl NotInUse {
    fn code(self) -> &'static str {
        match self {
            Self::KeyDisabled => "key_disabled",
            Self::VersionDisabled => "version_disabled",
            Self::SpaceBlocked => "space_blocked",
            Self::KeyDestroyScheduled => "key_destroy_scheduled",
            Self::Destroyed => "key_destroyed",
        }
    }
}

/// Whose fault an error is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blame {
    /// Another request would have succeeded.
    Caller,
    /// A rule or an operator's decision.
    Policy,
    /// The token, or the way to it.
    Hsm,
    /// The catalog's database.
    Storage,
    /// The token issuer.
    Issuer,
    /// This process.
    Us,
}

impl Error {
    /// The stable word for this error: metric label, audit field, heading in the error reference.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Unauthenticated(_) => "unauthenticated",
            Self::KeyNotFound(_) => "key_not_found",
            Self::SpaceNotFound(_) => "space_not_found",
            Self::KeyExists(_) => "key_exists",
            Self::AlgorithmNotOffered(_) => "algorithm_not_offered",
            Self::TooManyKeys(_) => "too_many_keys",
            Self::CatalogUnavailable(_) => "catalog_unavailable",
            Self::KeyPending => "key_pending",
            Self::KeyGeneration(_) => "key_generation",
            Self::NoSuchMethod(_) => "no_such_method",
            Self::MethodNotAllowed => "method_not_allowed",
            Self::UnsupportedMediaType(_) => "unsupported_media_type",
            Self::Misdirected => "misdirected",
            Self::InvalidRequest { .. } => "invalid_request",
            Self::UnwrapFailed => "unwrap_failed",
            Self::WrongAlgorithm { .. } => "wrong_algorithm",
            Self::NotImplemented(_) => "not_implemented",
            Self::Denied(_) => "denied",
            Self::DenialPending(_) => "denial_pending",
            Self::NotInUse(why) => why.code(),
            Self::HsmFault { .. } => "hsm_fault",
            Self::HsmTimeout => "hsm_timeout",
            Self::HsmAway { .. } => "hsm_away",
            Self::HsmIntegrity(_) => "hsm_integrity",
            Self::KeyUnavailable => "key_unavailable",
            Self::KeyExhausted => "key_exhausted",
            Self::Overloaded => "overloaded",
            Self::CallerRate => "caller_rate",
            Self::FrontendBusy(_) => "frontend_busy",
            Self::IssuerUnavailable => "issuer_unavailable",
            Self::CatalogStale => "catalog_stale",
            Self::DeadlineExceeded(_) => "deadline_exceeded",
            Self::AuditUnavailable => "audit_unavailable",
            Self::Internal(_) => "internal",
        }
    }

    /// Whose fault it is. Only [`Blame::Caller`] and [`Blame::Policy`] may become 401, 403, or 404.
    pub fn blame(&self) -> Blame {
        match self {
            Self::Unauthenticated(_)
            | Self::KeyNotFound(_)
            | Self::SpaceNotFound(_)
            | Self::KeyExists(_)
            | Self::AlgorithmNotOffered(_)
            | Self::NoSuchMethod(_)
            | Self::MethodNotAllowed
            | Self::UnsupportedMediaType(_)
            | Self::Misdirected
            | Self::InvalidRequest { .. }
            | Self::UnwrapFailed
            | Self::WrongAlgorithm { .. }
            | Self::NotImplemented(_) => Blame::Caller,
            Self::Denied(_) | Self::DenialPending(_) | Self::NotInUse(_) | Self::TooManyKeys(_) | Self::CallerRate => {
                Blame::Policy
            }
            Self::HsmFault { .. }
            | Self::HsmTimeout
            | Self::HsmAway { .. }
            | Self::HsmIntegrity(_)
            | Self::KeyUnavailable
            | Self::KeyExhausted
            | Self::Overloaded => Blame::Hsm,
            Self::CatalogStale | Self::CatalogUnavailable(_) => Blame::Storage,
            Self::KeyPending | Self::KeyGeneration(_) => Blame::Hsm,
            Self::IssuerUnavailable => Blame::Issuer,
            Self::DeadlineExceeded(_) | Self::AuditUnavailable | Self::FrontendBusy(_) | Self::Internal(_) => Blame::Us,
        }
    }
}
