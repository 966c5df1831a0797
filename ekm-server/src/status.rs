//! The one place where an error becomes an answer: HTTP status, google.rpc code, and the text that the caller may read.
//!
//! What each status makes Cloud KMS do decides everything here: 403 disables the customer's key version, 503 and 429 are retried.
//! So 401, 403 and 404 are for the caller's and the policy's doing only; the tests below go through every error.

use bytes::Bytes;
use ekm_core::policy::{Denial, DenialReason};
use ekm_core::{Blame, Error};
use http::{HeaderValue, Response, StatusCode, header};
use http_body_util::Full;
use serde_json::{Value, json};

use crate::config::{OverloadStatus, Server};

/// The numbers of `google.rpc.Code` that we use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rpc {
    InvalidArgument = 3,
    NotFound = 5,
    AlreadyExists = 6,
    PermissionDenied = 7,
    ResourceExhausted = 8,
    FailedPrecondition = 9,
    Unimplemented = 12,
    Unavailable = 14,
    Unauthenticated = 16,
}

/// A code with the status that google.rpc gives it, but for a few that HTTP itself defines.
fn mapping(error: &Error) -> (StatusCode, Rpc) {
    match error {
        Error::Unauthenticated(_) => (StatusCode::UNAUTHORIZED, Rpc::Unauthenticated),
        Error::Denied(_) => (StatusCode::FORBIDDEN, Rpc::PermissionDenied),
        Error::KeyNotFound(_) | Error::SpaceNotFound(_) | Error::NoSuchMethod(_) => {
            (StatusCode::NOT_FOUND, Rpc::NotFound)
        }
        Error::InvalidRequest { .. } | Error::UnwrapFailed => (StatusCode::BAD_REQUEST, Rpc::InvalidArgument),
        Error::UnsupportedMediaType(_) => (StatusCode::UNSUPPORTED_MEDIA_TYPE, Rpc::InvalidArgument),
        Error::Misdirected => (StatusCode::MISDIRECTED_REQUEST, Rpc::InvalidArgument),
        Error::MethodNotAllowed => (StatusCode::METHOD_NOT_ALLOWED, Rpc::Unimplemented),
        Error::KeyExists(_) => (StatusCode::CONFLICT, Rpc::AlreadyExists),
        Error::NotImplemented(_) | Error::AlgorithmNotOffered(_) => (StatusCode::NOT_IMPLEMENTED, Rpc::Unimplemented),
        // As Cloud KMS itself says it: INVALID_ARGUMENT would be taken for a ciphertext that is no good.
        Error::NotInUse(_) | Error::TooManyKeys(_) | Error::WrongAlgorithm { .. } => {
            (StatusCode::BAD_REQUEST, Rpc::FailedPrecondition)
        }
        // No other frontend would have more room: the device is the bottleneck, or the caller sends too many.
        Error::Overloaded | Error::CallerRate => (StatusCode::TOO_MANY_REQUESTS, Rpc::ResourceExhausted),
        Error::DenialPending(_)
        | Error::HsmFault { .. }
        | Error::HsmTimeout
        | Error::HsmAway { .. }
        | Error::HsmIntegrity(_)
        | Error::KeyUnavailable
        | Error::KeyExhausted
        | Error::IssuerUnavailable
        | Error::CatalogStale
        | Error::CatalogUnavailable(_)
        | Error::KeyPending
        | Error::KeyGeneration(_)
        | Error::DeadlineExceeded(_)
        | Error::AuditUnavailable
        | Error::FrontendBusy(_)
        | Error::Internal(_) => (StatusCode::SERVICE_UNAVAILABLE, Rpc::Unavailable),
    }
}

/// The caller reads what he can act on. Of our own troubles he reads only the code, which the error reference explains.
fn public_message(error: &Error) -> String {
    match error.blame() {
        Blame::Caller | Blame::Policy => format!("{error} [{}]", error.code()),
        _ => format!("temporarily unavailable, try again [{}]", error.code()),
    }
}

/// The field of the request that a policy does not accept, and why: what was given, and never what would be accepted.
fn violation(denial: &Denial) -> Option<(&'static str, String)> {
    const RESOURCE: &str = "additionalContext.relativeResourceName";
    match denial.reason() {
        DenialReason::Justification(given) => {
            Some(("additionalContext.accessReasonContext.reason", format!("{given} is not accepted")))
        }
        DenialReason::NoResource => Some((RESOURCE, "is missing".into())),
        DenialReason::Resource => Some((RESOURCE, "is not accepted".into())),
        // Of no field: who called, with which verb, and when.
        DenialReason::NotAdmitted | DenialReason::Caller | DenialReason::Verb(_) | DenialReason::Time => None,
        DenialReason::NoCreation => None,
    }
}

/// How failed requests are answered.
pub struct Answers {
    envelope: bool,
    overload: StatusCode,
    /// The answer to most requests when there is too much to do, made once.
    overloaded: Bytes,
}

impl Answers {
    /// From the configuration.
    pub fn new(server: &Server) -> Self {
        let overload = match server.overload_status {
            OverloadStatus::TooManyRequests => StatusCode::TOO_MANY_REQUESTS,
            OverloadStatus::ServiceUnavailable => StatusCode::SERVICE_UNAVAILABLE,
        };
        let answers = Self { envelope: server.error_envelope, overload, overloaded: Bytes::new() };
        let overloaded = answers.body(&Error::Overloaded, answers.mapping(&Error::Overloaded).1);
        Self { overloaded, ..answers }
    }

    /// The answer to one.
    pub fn to_response(&self, error: &Error) -> Response<Full<Bytes>> {
        let (status, rpc) = self.mapping(error);
        let body = match error {
            Error::Overloaded => self.overloaded.clone(),
            _ => self.body(error, rpc),
        };
        with_headers(status, body)
    }

    fn mapping(&self, error: &Error) -> (StatusCode, Rpc) {
        match (mapping(error), self.overload) {
            ((StatusCode::TOO_MANY_REQUESTS, _), StatusCode::SERVICE_UNAVAILABLE) => (self.overload, Rpc::Unavailable),
            (mapped, _) => mapped,
        }
    }

    fn body(&self, error: &Error, rpc: Rpc) -> Bytes {
        let body = body(error, rpc);
        let body = if self.envelope { json!({"error": body}) } else { body };
        body.to_string().into()
    }
}

/// A google.rpc.Status.
fn body(error: &Error, rpc: Rpc) -> Value {
    let mut body = json!({"code": rpc as u8, "message": public_message(error)});
    let bad_request = |field: &str, problem: &str| {
        let violation = json!({"field": field, "description": problem});
        json!([{"@type": "type.googleapis.com/google.rpc.BadRequest", "fieldViolations": [violation]}])
    };
    match error {
        Error::InvalidRequest { field, problem } => body["details"] = bad_request(field, problem),
        Error::Denied(denial) | Error::DenialPending(denial) => {
            if let Some((field, problem)) = violation(denial) {
                body["details"] = bad_request(field, &problem);
            }
        }
        Error::Overloaded | Error::CallerRate => {
            body["details"] = json!([{"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "0.05s"}]);
        }
        _ => {}
    }
    body
}

fn with_headers(status: StatusCode, body: Bytes) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    match status {
        StatusCode::UNAUTHORIZED => {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        StatusCode::METHOD_NOT_ALLOWED => {
            headers.insert(header::ALLOW, HeaderValue::from_static("POST"));
        }
        StatusCode::TOO_MANY_REQUESTS => {
            headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        _ => {}
    }
    response
}

#[cfg(test)]
mod tests {
    use ekm_core::caller::{Caller, TokenDefect};
    use ekm_core::{KeyPath, NotInUse, Snapshot, policy};

    use super::*;

    fn denial() -> Denial {
        let caller = Caller { email: "a@b".into(), email_verified: false, subject: "1".into(), issuer: "i".into() };
        policy::admit(&[], &caller).unwrap_err()
    }

    fn space_not_found() -> Error {
        let path = KeyPath::parse("v0/cryptospaces/x").unwrap();
        Snapshot::default().space_at(&path).err().unwrap().into()
    }

    fn not_found() -> Error {
        Snapshot::default().key(&KeyPath::parse("v0/keys/none").unwrap()).err().unwrap().into()
    }

    /// Every error there is. The match makes the compiler ask for a row when a variant is added.
    fn every_error() -> Vec<(Error, u16, u8)> {
        let complete = |error: &Error| match error {
            Error::Unauthenticated(_) | Error::KeyNotFound(_) | Error::NoSuchMethod(_) | Error::MethodNotAllowed => {}
            Error::UnsupportedMediaType(_) | Error::Misdirected | Error::InvalidRequest { .. } => {}
            Error::UnwrapFailed | Error::NotImplemented(_) | Error::Denied(_) | Error::NotInUse(_) => {}
            Error::DenialPending(_) | Error::WrongAlgorithm { .. } => {}
            Error::HsmFault { .. }
            | Error::HsmTimeout
            | Error::HsmAway { .. }
            | Error::HsmIntegrity(_)
            | Error::KeyUnavailable
            | Error::KeyExhausted => {}
            Error::Overloaded | Error::IssuerUnavailable | Error::CatalogStale | Error::DeadlineExceeded(_) => {}
            Error::AuditUnavailable | Error::Internal(_) | Error::CallerRate | Error::FrontendBusy(_) => {}
            Error::SpaceNotFound(_) | Error::KeyExists(_) | Error::AlgorithmNotOffered(_) | Error::TooManyKeys(_) => {}
            Error::CatalogUnavailable(_) | Error::KeyPending | Error::KeyGeneration(_) => {}
        };
        let rows = vec![
            (Error::Unauthenticated(TokenDefect::Missing), 401, 16),
            (not_found(), 404, 5),
            (space_not_found(), 404, 5),
            (Error::KeyExists("x".into()), 409, 6),
            (Error::AlgorithmNotOffered("x".into()), 501, 12),
            (Error::TooManyKeys(3), 400, 9),
            (Error::CatalogUnavailable("x".into()), 503, 14),
            (Error::KeyPending, 503, 14),
            (Error::KeyGeneration("x".into()), 503, 14),
            (Error::NoSuchMethod("x"), 404, 5),
            (Error::MethodNotAllowed, 405, 12),
            (Error::UnsupportedMediaType("x"), 415, 3),
            (Error::Misdirected, 421, 3),
            (Error::InvalidRequest { field: "plaintext", problem: "x".into() }, 400, 3),
            (Error::UnwrapFailed, 400, 3),
            (Error::WrongAlgorithm { verb: "wrap", algorithm: "EC_SIGN_P256_SHA256" }, 400, 9),
            (Error::NotImplemented("createKey"), 501, 12),
            (Error::Denied(denial()), 403, 7),
            (Error::DenialPending(denial()), 503, 14),
            (Error::NotInUse(NotInUse::KeyDisabled), 400, 9),
            (Error::NotInUse(NotInUse::Destroyed), 400, 9),
            (Error::HsmFault { function: "C_Encrypt".into(), code: "CKR_DEVICE_ERROR".into() }, 503, 14),
            (Error::HsmTimeout, 503, 14),
            (Error::HsmAway { reason: "x".into() }, 503, 14),
            (Error::HsmIntegrity("x"), 503, 14),
            (Error::KeyUnavailable, 503, 14),
            (Error::KeyExhausted, 503, 14),
            (Error::Overloaded, 429, 8),
            (Error::CallerRate, 429, 8),
            (Error::FrontendBusy("x"), 503, 14),
            (Error::IssuerUnavailable, 503, 14),
            (Error::CatalogStale, 503, 14),
            (Error::DeadlineExceeded("hsm"), 503, 14),
            (Error::AuditUnavailable, 503, 14),
            (Error::Internal("x"), 503, 14),
        ];
        rows.iter().for_each(|(error, ..)| complete(error));
        rows
    }

    #[test]
    fn every_error_has_its_status_and_code() {
        for (error, status, code) in every_error() {
            let (got_status, got_code) = mapping(&error);
            assert_eq!((got_status.as_u16(), got_code as u8), (status, code), "{error:?}");
        }
    }

    #[test]
    fn a_denial_names_the_field_and_what_was_given_and_not_what_would_be_accepted() {
        let policy = policy::Policy::parse(
            r#"{"rules":[{"callers":["a@b"],"verbs":["wrap"],"resources":["projects/secret/*"],
                "justifications":{"allowed":["GOOGLE_INITIATED_REVIEW"],"missing":false,"unknown":false}}]}"#,
        )
        .unwrap();
        let denied = |email: &str, justification, resource| {
            let caller = Caller { email: email.into(), email_verified: true, subject: "1".into(), issuer: "i".into() };
            let (verb, now) = (policy::Verb::Wrap, time::OffsetDateTime::UNIX_EPOCH);
            let request = policy::Request { caller: &caller, verb, justification: &justification, resource, now };
            let denial = policy::decide(&policy, &request).unwrap_err();
            let text = body(&Error::Denied(denial.clone()), Rpc::PermissionDenied).to_string();
            assert!(!text.contains("secret") && !text.contains("REVIEW"), "{text}");
            violation(&denial)
        };
        use ekm_core::justification::{Justification, Reason};
        let (good, resource) =
            (Justification::Known(Reason::GoogleInitiatedReview), "additionalContext.relativeResourceName");
        let reason = "additionalContext.accessReasonContext.reason";
        for (justification, name) in [
            (Justification::Missing, "MISSING"),
            (Justification::Unknown, "UNKNOWN"),
            (Justification::Known(Reason::Unspecified), "REASON_UNSPECIFIED"),
            (Justification::Known(Reason::CustomerInitiatedSupport), "CUSTOMER_INITIATED_SUPPORT"),
        ] {
            let expected = (reason, format!("{name} is not accepted"));
            assert_eq!(denied("a@b", justification, Some("projects/secret/k")), Some(expected));
        }
        assert_eq!(denied("a@b", good.clone(), None), Some((resource, "is missing".into())));
        assert_eq!(denied("a@b", good.clone(), Some("projects/p")), Some((resource, "is not accepted".into())));
        assert_eq!(denied("b@b", good, None), None);
    }

    #[test]
    fn only_the_callers_fault_or_an_evaluated_policy_gives_401_403_or_404() {
        for (error, ..) in every_error() {
            let (status, _) = mapping(&error);
            if [401, 403, 404].contains(&status.as_u16()) {
                assert!(
                    matches!(error.blame(), Blame::Caller | Blame::Policy),
                    "{error:?} would deny by our own fault"
                );
            }
        }
    }

    #[test]
    fn the_caller_reads_nothing_of_our_inner_life() {
        for (error, ..) in every_error() {
            if !matches!(error.blame(), Blame::Caller | Blame::Policy) {
                let message = public_message(&error);
                assert_eq!(message, format!("temporarily unavailable, try again [{}]", error.code()));
            }
        }
    }
}
