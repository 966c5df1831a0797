//! What every request passes: who is it, one form of answer, one count. And how bodies, queries and paths are decoded.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::{Body, HttpBody};
use axum::extract::{FromRequest, FromRequestParts, Path, Query, State};
use axum::middleware::Next;
use axum::response::IntoResponse;
use bytes::Bytes;
use futures_util::FutureExt;
use http::{HeaderMap, HeaderValue, Request, Response, Version, header, request};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde::de::DeserializeOwned;

use super::Plane;
use super::actor::Actor;
use super::error::{AdminError, Code};
use crate::connection::Peer;
use crate::router::{check_media_type, discard};

const MAX_BODY_BYTES: usize = 1 << 20;

/// Around every route. Also for a path that names nothing, a stranger learns first that he is a stranger.
pub(super) async fn gate(State(plane): State<Arc<Plane>>, request: Request<Body>, next: Next) -> Response<Body> {
    let (head, mut body) = request.into_parts();
    let chunked = head.headers.contains_key(header::TRANSFER_ENCODING);
    let peer = head.extensions.get::<Peer>().cloned().unwrap_or_default();
    let entered = async {
        let actor = plane.access.actor(&head.headers, &peer).await?;
        Ok::<_, AdminError>((actor, read(&mut body, plane.body_timeout).await?))
    };
    let mut response = match entered.await {
        Ok((actor, body)) => {
            let mut request = Request::from_parts(head, Body::from(body));
            request.extensions_mut().insert(actor);
            // A panic costs the request that caused it, and nobody else.
            AssertUnwindSafe(next.run(request)).catch_unwind().await.unwrap_or_else(|_| {
                plane.metrics.panics.inc();
                AdminError::Internal("the handler panicked").into_response()
            })
        }
        Err(error) => {
            tracing::debug!(code = error.code(), %error, "admin request refused");
            if head.version == Version::HTTP_2 {
                discard(body, 16 * MAX_BODY_BYTES, Instant::now() + plane.body_timeout).await;
            }
            error.into_response()
        }
    };
    let code = response.extensions().get::<Code>().map_or("ok", |code| code.0);
    plane.metrics.admin_requests.with_label_values(&[code]).inc();
    let headers = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if chunked {
        // As on the EKM listener: nothing is left to smuggle into (RFC 9112 §6.1).
        headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

/// The person who calls.
pub(super) struct By(pub(super) Arc<Actor>);

impl<S: Sync> FromRequestParts<S> for By {
    type Rejection = AdminError;

    async fn from_request_parts(parts: &mut request::Parts, _: &S) -> Result<Self, AdminError> {
        let actor = parts.extensions.get::<Arc<Actor>>();
        Ok(Self(Arc::clone(actor.ok_or(AdminError::Internal("nobody was let in"))?)))
    }
}

/// The query, without unknown and doubled parameters.
pub(super) struct Asked<T>(pub(super) T);

impl<S: Sync, T: DeserializeOwned> FromRequestParts<S> for Asked<T> {
    type Rejection = AdminError;

    async fn from_request_parts(parts: &mut request::Parts, _: &S) -> Result<Self, AdminError> {
        let Query(query) = Query::try_from_uri(&parts.uri).map_err(|error| {
            let cause = std::error::Error::source(&error).map_or_else(|| error.to_string(), ToString::to_string);
            AdminError::invalid("query", cause)
        })?;
        Ok(Self(query))
    }
}

/// Refuses a query where there is nothing to ask for: a mistyped filter would otherwise show more than was asked for.
pub(super) struct NothingAsked;

impl<S: Sync> FromRequestParts<S> for NothingAsked {
    type Rejection = AdminError;

    async fn from_request_parts(parts: &mut request::Parts, _: &S) -> Result<Self, AdminError> {
        match parts.uri.query() {
            None | Some("") => Ok(Self),
            Some(_) => Err(AdminError::invalid("query", "this path takes none")),
        }
    }
}

/// A JSON body, without unknown and doubled fields as far as its type refuses them.
pub(super) struct Json<T>(pub(super) T);

impl<S: Sync, T: DeserializeOwned> FromRequest<S> for Json<T> {
    type Rejection = AdminError;

    async fn from_request(request: Request<Body>, _: &S) -> Result<Self, AdminError> {
        check(request.headers())?;
        // [`gate`] has read it already.
        let body = request.into_body().collect().await.map_err(|_| AdminError::Internal("taking the body"))?;
        let value = serde_json::from_slice(&body.to_bytes());
        value.map(Self).map_err(|error| AdminError::invalid("body", error.to_string()))
    }
}

fn check(headers: &HeaderMap) -> Result<(), AdminError> {
    check_media_type(headers).map_err(|error| match error {
        ekm_core::Error::UnsupportedMediaType(problem) => AdminError::UnsupportedMediaType(problem),
        _ => AdminError::Internal("checking the media type"),
    })
}

async fn read(body: &mut Body, patience: Duration) -> Result<Bytes, AdminError> {
    let too_long = || AdminError::invalid("body", format!("is longer than {MAX_BODY_BYTES} bytes"));
    // What Content-Length announces need not be waited for.
    if body.size_hint().lower() > MAX_BODY_BYTES as u64 {
        return Err(too_long());
    }
    match tokio::time::timeout(patience, Limited::new(body, MAX_BODY_BYTES).collect()).await {
        Ok(Ok(collected)) => Ok(collected.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(too_long()),
        Ok(Err(_)) => Err(AdminError::invalid("body", "cannot be read to its end")),
        Err(_) => Err(AdminError::invalid("body", format!("did not arrive within {} ms", patience.as_millis()))),
    }
}

/// What a path names: a key path, an id, a name.
pub(super) struct At<T>(pub(super) T);

impl<S: Send + Sync, T: DeserializeOwned + Send> FromRequestParts<S> for At<T> {
    type Rejection = AdminError;

    async fn from_request_parts(parts: &mut request::Parts, state: &S) -> Result<Self, AdminError> {
        let path = Path::<T>::from_request_parts(parts, state).await;
        path.map(|Path(path)| Self(path)).map_err(|rejection| AdminError::invalid("path", rejection.body_text()))
    }
}
