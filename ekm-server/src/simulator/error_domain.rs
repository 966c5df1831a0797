//! What Cloud KMS makes of an EKM's answer: the error domains of its public error reference. Which HTTP status leads to which of them
//! is not public; a status means here what `google.rpc` gives it.

use serde::Serialize;
use serde_json::Value;

use crate::remote::{Answer, NoAnswer};

/// What Cloud KMS calls an EKM for, by the names in its error reference.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(crate) enum Api {
    Encrypt,
    Decrypt,
    AsymmetricSign,
    GetPublicKey,
    CreateKey,
    DestroyKey,
    CheckCryptoSpacePermissions,
    GetInfo,
}

impl Api {
    /// The verb in the URL.
    pub(crate) fn verb(self) -> &'static str {
        match self {
            Self::Encrypt => "wrap",
            Self::Decrypt => "unwrap",
            Self::AsymmetricSign => "asymmetricSign",
            Self::GetPublicKey => "getPublicKey",
            Self::CreateKey => "createKey",
            Self::DestroyKey => "destroyKey",
            Self::CheckCryptoSpacePermissions => "checkCryptoSpacePermissions",
            Self::GetInfo => "getInfo",
        }
    }

    /// What was to be reached.
    pub(crate) fn element(self) -> Element {
        match self {
            Self::CreateKey | Self::CheckCryptoSpacePermissions => Element::CryptoSpace,
            Self::GetInfo => Element::Host,
            _ => Element::Key,
        }
    }
}

/// What was to be reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Element {
    Key,
    CryptoSpace,
    Host,
}

impl Element {
    fn name(self) -> &'static str {
        match self {
            Self::Key => "key",
            Self::CryptoSpace => "crypto space",
            Self::Host => "EKM host",
        }
    }
}

/// The error domain, in `violation[1].type` of what Cloud KMS answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub(crate) enum ErrorDomain {
    ExternalPermissionDenied,
    ExternalNotFound,
    ExternalKeyUriInvalid,
    Dns,
    ExternalResourceExhausted,
    UnreachableNetwork,
    OverloadedEkm,
    Timeout,
    TlsCert,
    UnexpectedResponse,
    ExternalServerError,
    ExternalNotImplemented,
    UnexpectedError,
    DecryptionFailed,
}

impl ErrorDomain {
    /// As Google writes it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::ExternalPermissionDenied => "EXTERNAL_PERMISSION_DENIED",
            Self::ExternalNotFound => "EXTERNAL_NOT_FOUND",
            Self::ExternalKeyUriInvalid => "EXTERNAL_KEY_URI_INVALID",
            Self::Dns => "DNS",
            Self::ExternalResourceExhausted => "EXTERNAL_RESOURCE_EXHAUSTED",
            Self::UnreachableNetwork => "UNREACHABLE_NETWORK",
            Self::OverloadedEkm => "OVERLOADED_EKM",
            Self::Timeout => "TIMEOUT",
            Self::TlsCert => "TLS_CERT",
            Self::UnexpectedResponse => "UNEXPECTED_RESPONSE",
            Self::ExternalServerError => "EXTERNAL_SERVER_ERROR",
            Self::ExternalNotImplemented => "EXTERNAL_NOT_IMPLEMENTED",
            Self::UnexpectedError => "UNEXPECTED_ERROR",
            Self::DecryptionFailed => "DECRYPTION_FAILED",
        }
    }

    /// The code of the `google.rpc.Status` around it.
    pub(crate) fn rpc(self) -> &'static str {
        match self {
            Self::DecryptionFailed => "INVALID_ARGUMENT",
            _ => "FAILED_PRECONDITION",
        }
    }

    /// Whether Cloud KMS calls again by itself.
    pub(crate) fn is_retried(self) -> bool {
        matches!(self, Self::ExternalResourceExhausted | Self::UnreachableNetwork | Self::OverloadedEkm | Self::Timeout)
    }

    /// What went wrong; the words are ours.
    pub(crate) fn describe(self, api: Api) -> String {
        let element = api.element().name();
        match self {
            Self::ExternalPermissionDenied => format!("the EKM denied permission for the {element}"),
            Self::ExternalNotFound => format!("the EKM does not know the {element}"),
            Self::ExternalKeyUriInvalid => "the key URI has an invalid form".into(),
            Self::Dns => format!("the host name of the {element} cannot be resolved"),
            Self::ExternalResourceExhausted => "the EKM throttles".into(),
            Self::UnreachableNetwork => format!("the {element} cannot be reached: a network error"),
            Self::OverloadedEkm => "the EKM says that it is overloaded".into(),
            Self::Timeout => format!("no answer in time for the {element}"),
            Self::TlsCert => format!("the TLS certificate before the {element} cannot be validated"),
            Self::UnexpectedResponse => format!("the EKM's answer for the {element} is unusable"),
            Self::ExternalServerError => format!("the EKM failed for the {element}"),
            Self::ExternalNotImplemented => format!("the EKM does not implement {}", api.verb()),
            Self::UnexpectedError => format!("an unexpected error for the {element}"),
            Self::DecryptionFailed => "the EKM says that it cannot unwrap this".into(),
        }
    }

    /// The domain of an answer; none if it is a success, whose body is still to be read.
    pub(crate) fn of(api: Api, outcome: &Result<Answer, NoAnswer>) -> Option<Self> {
        let answer = match outcome {
            Ok(answer) => answer,
            Err(NoAnswer::Timeout) => return Some(Self::Timeout),
            Err(NoAnswer::Dns(_)) => return Some(Self::Dns),
            Err(NoAnswer::Tls(_)) => return Some(Self::TlsCert),
            Err(NoAnswer::Network(_)) => return Some(Self::UnreachableNetwork),
        };
        Some(match answer.status {
            200 => return None,
            // What becomes of 401 is not documented; the worse case is assumed.
            401 | 403 => Self::ExternalPermissionDenied,
            404 => Self::ExternalNotFound,
            400 if api == Api::Decrypt && !is_failed_precondition(&answer.body) => Self::DecryptionFailed,
            429 => Self::ExternalResourceExhausted,
            501 => Self::ExternalNotImplemented,
            503 => Self::OverloadedEkm,
            500..=599 => Self::ExternalServerError,
            400..=499 => Self::UnexpectedError,
            _ => Self::UnexpectedResponse,
        })
    }
}

/// An EKM says so of a key that is paused: its blobs are as good as before.
fn is_failed_precondition(body: &[u8]) -> bool {
    let Ok(body) = serde_json::from_slice::<Value>(body) else { return false };
    let status = if body["error"].is_object() { &body["error"] } else { &body };
    status["code"] == 9 || status["status"] == "FAILED_PRECONDITION"
}

/// What a customer reads from Cloud KMS.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct KmsError {
    /// The code of the `google.rpc.Status`.
    pub(crate) code: &'static str,
    /// None for what Cloud KMS refuses without asking the EKM.
    pub(crate) domain: Option<ErrorDomain>,
    pub(crate) message: String,
    /// What Cloud KMS changed by itself.
    pub(crate) effect: Option<String>,
}

impl KmsError {
    /// Refused by Cloud KMS itself.
    pub(crate) fn own(code: &'static str, message: impl Into<String>) -> Self {
        Self { code, domain: None, message: message.into(), effect: None }
    }

    pub(crate) fn external(domain: ErrorDomain, api: Api) -> Self {
        Self { code: domain.rpc(), domain: Some(domain), message: domain.describe(api), effect: None }
    }

    /// The domain, or the code if there is none.
    pub(crate) fn name(&self) -> &'static str {
        self.domain.map_or(self.code, ErrorDomain::name)
    }
}
