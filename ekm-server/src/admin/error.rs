//! What the admin API answers when it does not do what was asked: the one place that turns an error into HTTP.

use axum::body::Body;
use axum::response::IntoResponse;
use ekm_storage::StorageError;
use http::{HeaderValue, Response, StatusCode, header};

use super::actor::Role;
use super::api::ErrorView;
use crate::catalog::CatalogError;

/// Why a request was not carried out.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// The request itself is wrong.
    #[error("{field}: {problem}")]
    Invalid {
        /// Where.
        field: String,
        /// What is wrong, and what would be right.
        problem: String,
    },
    /// Nobody is known to be calling.
    #[error("{0}")]
    Unauthenticated(String),
    /// The token may be good; the issuer's keys cannot be had.
    #[error("the token's issuer cannot be asked for its keys; try again")]
    IssuerUnavailable,
    /// It is known who calls, and he is not among the people.
    #[error("{0}")]
    UnknownPerson(String),
    /// One of the people, without the role.
    #[error("{name} does not have the role '{}', which this needs; roles are given in [[admin.people]]", .role.name())]
    Forbidden {
        /// Who.
        name: String,
        /// The smallest role that is enough.
        role: Role,
    },
    /// There is no such key, crypto space, policy or approval.
    #[error("{0}")]
    NotFound(String),
    /// The API has no such path.
    #[error("there is no such path; /v1/openapi.json lists what there is")]
    NoSuchRoute,
    /// The API has the path, with another method.
    #[error("this path has other methods; /v1/openapi.json lists them")]
    MethodNotAllowed,
    /// The body is not declared as JSON.
    #[error("{0}")]
    UnsupportedMediaType(&'static str),
    /// It contradicts the state that the thing is in.
    #[error("{0}")]
    Impossible(String),
    /// A path or name belongs, or once belonged, to something.
    #[error("{0} is taken; paths and names are never given out twice")]
    Taken(String),
    /// It has changed since the caller looked at it.
    #[error(
        "it has changed in between: if_revision is {expected}, and it is at {found}; look at it again and repeat with that"
    )]
    RevisionDiffers {
        /// What the request names.
        expected: u64,
        /// What there is.
        found: u64,
    },
    /// Whoever replaces something must say what he has seen.
    #[error("this replaces something: name the revision that you have seen in if_revision")]
    RevisionRequired,
    /// The approval cannot be decided so.
    #[error("{0}")]
    ApprovalRefused(String),
    /// The catalog cannot be read or changed.
    #[error("{0}")]
    Catalog(#[from] CatalogError),
    /// Too much at once.
    #[error("too many changes wait already; try again")]
    Busy,
    /// A bug.
    #[error("internal error: {0}; the log has more")]
    Internal(&'static str),
}

impl AdminError {
    /// The stable word for this error: heading in the error reference.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Invalid { .. } => "admin_invalid",
            Self::Unauthenticated(_) => "admin_unauthenticated",
            Self::IssuerUnavailable => "issuer_unavailable",
            Self::UnknownPerson(_) => "admin_unknown_person",
            Self::Forbidden { .. } => "admin_role_missing",
            Self::NotFound(_) => "admin_not_found",
            Self::NoSuchRoute => "admin_no_such_path",
            Self::MethodNotAllowed => "admin_method_not_allowed",
            Self::UnsupportedMediaType(_) => "unsupported_media_type",
            Self::Impossible(_) => "admin_impossible",
            Self::Taken(_) => "admin_taken",
            Self::RevisionDiffers { .. } => "admin_revision_differs",
            Self::RevisionRequired => "admin_revision_required",
            Self::ApprovalRefused(_) => "admin_approval_refused",
            Self::Catalog(error) => error.code(),
            Self::Busy => "admin_busy",
            Self::Internal(_) => "internal",
        }
    }

    /// For a field of the request.
    pub fn invalid(field: &str, problem: impl Into<String>) -> Self {
        Self::Invalid { field: field.into(), problem: problem.into() }
    }

    /// The HTTP status.
    pub fn status(&self) -> StatusCode {
        match self {
            Self::Invalid { .. } => StatusCode::BAD_REQUEST,
            Self::Unauthenticated(_) => StatusCode::UNAUTHORIZED,
            Self::UnknownPerson(_) | Self::Forbidden { .. } => StatusCode::FORBIDDEN,
            Self::NotFound(_) | Self::NoSuchRoute => StatusCode::NOT_FOUND,
            Self::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
            Self::UnsupportedMediaType(_) => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::Impossible(_) | Self::Taken(_) | Self::ApprovalRefused(_) => StatusCode::CONFLICT,
            Self::Catalog(CatalogError::Storage(StorageError::Taken(_))) => StatusCode::CONFLICT,
            // What does not pass by itself must not look as if it did: clients try a 503 again.
            Self::Catalog(CatalogError::Generate(error)) if error.is_lasting() => StatusCode::CONFLICT,
            Self::Catalog(
                CatalogError::WrongKey(_)
                | CatalogError::Tampered(_)
                | CatalogError::Internal(_)
                | CatalogError::Storage(StorageError::Row { .. } | StorageError::Schema(_) | StorageError::Empty),
            ) => StatusCode::INTERNAL_SERVER_ERROR,
            Self::RevisionDiffers { .. } => StatusCode::PRECONDITION_FAILED,
            Self::RevisionRequired => StatusCode::PRECONDITION_REQUIRED,
            Self::IssuerUnavailable | Self::Catalog(_) | Self::Busy => StatusCode::SERVICE_UNAVAILABLE,
            Self::Internal(_) => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }
}

/// What the metric counts; in an answer's extensions.
#[derive(Clone, Copy)]
pub(super) struct Code(pub(super) &'static str);

impl IntoResponse for AdminError {
    fn into_response(self) -> Response<Body> {
        let view = ErrorView { code: self.code().to_owned(), message: self.to_string() };
        let mut response = json(self.status(), &view);
        if matches!(self, Self::Unauthenticated(_)) {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response.extensions_mut().insert(Code(self.code()));
        response
    }
}

/// An answer.
pub(super) fn json(status: StatusCode, value: &impl serde::Serialize) -> Response<Body> {
    let text = serde_json::to_string(value).expect("an answer has only text as map keys");
    let mut response = Response::new(Body::from(text));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

impl From<StorageError> for AdminError {
    fn from(error: StorageError) -> Self {
        Self::Catalog(error.into())
    }
}
