//! The admin API's paths: decode, ask whether he may, call the service, encode.

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::middleware::from_fn_with_state;
use axum::routing::{MethodRouter, get, post};
use ekm_core::KeyPath;
use http::{HeaderValue, Response, StatusCode, header};
use serde_json::Value;
use uuid::Uuid;

use super::actor::Actor;
use super::api::{
    ApprovalView, CatalogView, ChangeOutcome, ChangeRequest, ChangeResult, ChangeView, Command, Decision, ErrorView,
    ExplainRequest, FrontendView, HsmVerified, HsmVerify, HsmView, KeyView, LintView, Page, PolicyView, SpaceView,
};
use super::error::{AdminError, json};
use super::gate::{Asked, At, By, Json, NothingAsked, gate};
use super::query::{ApprovalQuery, ChangesQuery, KeyQuery, PageQuery};
use super::{Plane, openapi};

type Answer = Result<Response<Body>, AdminError>;

/// Every path with its methods; the OpenAPI document has the same.
pub(super) fn table() -> Vec<(&'static str, MethodRouter<Arc<Plane>>)> {
    vec![
        ("/v1/changes", get(changes).post(change)),
        ("/v1/keys", get(keys)),
        ("/v1/keys/{*path}", get(key)),
        ("/v1/spaces", get(spaces)),
        ("/v1/spaces/{*path}", get(space)),
        ("/v1/policies", get(policies)),
        ("/v1/policies/{*name}", get(policy)),
        ("/v1/explain", post(explain)),
        ("/v1/lint", post(lint)),
        ("/v1/approvals", get(approvals)),
        ("/v1/approvals/{id}", get(approval)),
        ("/v1/approvals/{id}/approve", post(approve)),
        ("/v1/approvals/{id}/reject", post(reject)),
        ("/v1/approvals/{id}/export", get(export)),
        ("/v1/catalog", get(catalog)),
        ("/v1/hsm", get(hsm)),
        ("/v1/hsm/verify", post(verify_hsm)),
        ("/v1/frontends", get(frontends)),
        ("/v1/whoami", get(whoami)),
        ("/v1/openapi.json", get(openapi_json)),
    ]
}

pub(super) fn router(plane: Arc<Plane>) -> Router {
    let routes = table().into_iter().fold(Router::new(), |router, (path, methods)| router.route(path, methods));
    routes
        .fallback(|| async { AdminError::NoSuchRoute })
        .method_not_allowed_fallback(|| async { AdminError::MethodNotAllowed })
        .layer(from_fn_with_state(Arc::clone(&plane), gate))
        .with_state(plane)
}

/// Change something
///
/// The one way to change anything: a tagged command. Which role it takes depends on the command.
#[utoipa::path(post, path = "/v1/changes", request_body = ChangeRequest, responses(
    (status = 200, description = "Done, or what would be done", body = ChangeResult),
    (status = 202, description = "It waits for a second person", body = ChangeResult),
    (status = 404, description = "Something that the command names is not there", body = ErrorView),
    (status = 409, description = "It contradicts the state of things, or a name is taken", body = ErrorView),
    (status = 412, description = "It has changed since the caller looked at it", body = ErrorView),
    (status = 428, description = "The command replaces something, and if_revision is missing", body = ErrorView),
))]
pub(super) async fn change(
    State(plane): State<Arc<Plane>>,
    By(actor): By,
    Json(request): Json<ChangeRequest>,
) -> Answer {
    let (action, dry_run) = (request.command.action(), request.dry_run);
    let entry = Entry { actor: Arc::clone(&actor), action, subject: subject(&request.command), dry_run };
    let changed = async move {
        actor.may_ask_for(&request.command)?;
        plane.service.change(&actor, request).await
    };
    to_the_end(entry, changed).await
}

/// The log of changes, newest first
#[utoipa::path(get, path = "/v1/changes", params(ChangesQuery), responses((status = 200, body = Page<ChangeView>)))]
pub(super) async fn changes(State(plane): State<Arc<Plane>>, Asked(query): Asked<ChangesQuery>) -> Answer {
    ok(&plane.service.changes(query.before, query.limit).await?)
}

/// Keys
#[utoipa::path(get, path = "/v1/keys", params(KeyQuery), responses((status = 200, body = Page<KeyView>)))]
pub(super) async fn keys(State(plane): State<Arc<Plane>>, Asked(query): Asked<KeyQuery>) -> Answer {
    ok(&plane.service.keys(query).await?)
}

/// One key, by any of its paths
#[utoipa::path(get, path = "/v1/keys/{path}", params(
    ("path" = String, Path, description = "The key's path with its slashes, such as v0/keys/orders"),
), responses(
    (status = 200, body = KeyView),
    (status = 404, description = "There is no such key", body = ErrorView),
))]
pub(super) async fn key(State(plane): State<Arc<Plane>>, At(path): At<KeyPath>, _: NothingAsked) -> Answer {
    ok(&plane.service.key(&path).await?)
}

/// Crypto spaces
#[utoipa::path(get, path = "/v1/spaces", params(PageQuery), responses((status = 200, body = Page<SpaceView>)))]
pub(super) async fn spaces(State(plane): State<Arc<Plane>>, Asked(query): Asked<PageQuery>) -> Answer {
    ok(&plane.service.spaces(query).await?)
}

/// One crypto space
#[utoipa::path(get, path = "/v1/spaces/{path}", params(
    ("path" = String, Path, description = "Its path with its slashes, such as v0/cryptospaces/payments"),
), responses(
    (status = 200, body = SpaceView),
    (status = 404, description = "There is no such crypto space", body = ErrorView),
))]
pub(super) async fn space(State(plane): State<Arc<Plane>>, At(path): At<KeyPath>, _: NothingAsked) -> Answer {
    ok(&plane.service.space(&path).await?)
}

/// Policies
#[utoipa::path(get, path = "/v1/policies", params(PageQuery), responses((status = 200, body = Page<PolicyView>)))]
pub(super) async fn policies(State(plane): State<Arc<Plane>>, Asked(query): Asked<PageQuery>) -> Answer {
    ok(&plane.service.policies(query).await?)
}

/// One policy
#[utoipa::path(get, path = "/v1/policies/{name}", params(
    ("name" = String, Path, description = "Its name; that of a key's own policy is the key's first path, with its slashes"),
), responses(
    (status = 200, body = PolicyView),
    (status = 404, description = "There is no such policy", body = ErrorView),
))]
pub(super) async fn policy(State(plane): State<Arc<Plane>>, At(name): At<String>, _: NothingAsked) -> Answer {
    ok(&plane.service.policy(&name).await?)
}

/// Would a policy allow a request, and which rule decides?
///
/// Changes nothing.
#[utoipa::path(post, path = "/v1/explain", request_body = ExplainRequest, responses(
    (status = 200, description = "The verdict, and what every rule says", body = Object),
    (status = 404, description = "There is no such key or policy", body = ErrorView),
))]
pub(super) async fn explain(State(plane): State<Arc<Plane>>, Json(request): Json<ExplainRequest>) -> Answer {
    ok(&plane.service.explain(request).await?)
}

/// What in a policy will surprise whoever wrote it?
///
/// Takes the policy's JSON. Changes nothing.
#[utoipa::path(post, path = "/v1/lint", request_body = Object, responses((status = 200, body = LintView)))]
pub(super) async fn lint(State(plane): State<Arc<Plane>>, Json(policy): Json<Value>) -> Answer {
    ok(&LintView { warnings: plane.service.lint(policy).await? })
}

/// What waits, or waited, for a second person
#[utoipa::path(get, path = "/v1/approvals", params(ApprovalQuery), responses((status = 200, body = Page<ApprovalView>)))]
pub(super) async fn approvals(State(plane): State<Arc<Plane>>, Asked(query): Asked<ApprovalQuery>) -> Answer {
    let ApprovalQuery { state, page_size, page_token } = query;
    ok(&plane.service.approvals(state, PageQuery { page_size, page_token }).await?)
}

/// One approval
#[utoipa::path(get, path = "/v1/approvals/{id}", params(("id" = Uuid, Path)), responses(
    (status = 200, body = ApprovalView),
    (status = 404, description = "There is no such approval", body = ErrorView),
))]
pub(super) async fn approval(State(plane): State<Arc<Plane>>, At(id): At<Uuid>, _: NothingAsked) -> Answer {
    ok(&plane.service.approval(id).await?)
}

/// Approve, and so carry out, what somebody else asked for
///
/// Takes the role security-officer.
#[utoipa::path(post, path = "/v1/approvals/{id}/approve", params(("id" = Uuid, Path)), request_body = Decision, responses(
    (status = 200, description = "It was carried out", body = ChangeResult),
    (status = 404, description = "There is no such approval", body = ErrorView),
    (status = 409, description = "It cannot be approved: decided, expired, one's own, another payload", body = ErrorView),
))]
pub(super) async fn approve(
    State(plane): State<Arc<Plane>>,
    By(actor): By,
    At(id): At<Uuid>,
    Json(decision): Json<Decision>,
) -> Answer {
    let entry = Entry::of_decision(&actor, "approve", id);
    let decided = async move {
        actor.may_decide()?;
        plane.service.decide(&actor, id, true, decision).await
    };
    to_the_end(entry, decided).await
}

/// Reject what somebody else asked for, or take one's own request back
///
/// Takes the role security-officer, unless it is one's own.
#[utoipa::path(post, path = "/v1/approvals/{id}/reject", params(("id" = Uuid, Path)), request_body = Decision, responses(
    (status = 200, description = "It will not be carried out", body = ChangeResult),
    (status = 404, description = "There is no such approval", body = ErrorView),
    (status = 409, description = "It cannot be rejected: decided, expired, another payload", body = ErrorView),
))]
pub(super) async fn reject(
    State(plane): State<Arc<Plane>>,
    By(actor): By,
    At(id): At<Uuid>,
    Json(decision): Json<Decision>,
) -> Answer {
    let entry = Entry::of_decision(&actor, "reject", id);
    let decided = async move {
        if let Err(error) = actor.may_decide()
            && plane.service.approval(id).await?.requested_by != actor.name
        {
            return Err(error);
        }
        plane.service.decide(&actor, id, false, decision).await
    };
    to_the_end(entry, decided).await
}

/// The whole catalog, sealed
///
/// After a `catalog-export` was approved, for whoever asked for it.
#[utoipa::path(get, path = "/v1/approvals/{id}/export", params(("id" = Uuid, Path)), responses(
    (status = 200, description = "The export", body = String, content_type = "application/octet-stream"),
    (status = 404, description = "There is no such approval", body = ErrorView),
    (status = 409, description = "It is no approved export", body = ErrorView),
))]
pub(super) async fn export(
    State(plane): State<Arc<Plane>>,
    By(actor): By,
    At(id): At<Uuid>,
    _: NothingAsked,
) -> Answer {
    let entry = Entry::of_decision(&actor, "export", id);
    let exported = async {
        actor.may_ask_for(&Command::CatalogExport {})?;
        plane.service.export(&actor, id).await
    };
    let exported = exported.await;
    entry.write(exported.as_ref().map_or_else(AdminError::code, |_| "done"));
    let mut response = Response::new(Body::from(exported?));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    Ok(response)
}

/// Where the catalog stands, and what holds for all of it
#[utoipa::path(get, path = "/v1/catalog", responses((status = 200, body = CatalogView)))]
pub(super) async fn catalog(State(plane): State<Arc<Plane>>, _: NothingAsked) -> Answer {
    ok(&plane.service.catalog().await?)
}

/// The HSM's replicas, as the frontend that answers sees them
#[utoipa::path(get, path = "/v1/hsm", responses((status = 200, body = HsmView)))]
pub(super) async fn hsm(State(plane): State<Arc<Plane>>, _: NothingAsked) -> Answer {
    ok(&plane.service.hsm())
}

/// Look at keys on every replica of the HSM
///
/// Some of them at a time; each answer says where to go on. Takes the role operator.
#[utoipa::path(post, path = "/v1/hsm/verify", request_body = HsmVerify, responses((status = 200, body = HsmVerified)))]
pub(super) async fn verify_hsm(
    State(plane): State<Arc<Plane>>,
    By(actor): By,
    Json(request): Json<HsmVerify>,
) -> Answer {
    actor.may_verify_hsm()?;
    ok(&plane.service.verify_hsm(request).await?)
}

/// Every frontend that has said lately that it is there
#[utoipa::path(get, path = "/v1/frontends", responses((status = 200, body = Page<FrontendView>)))]
pub(super) async fn frontends(State(plane): State<Arc<Plane>>, _: NothingAsked) -> Answer {
    ok(&plane.service.frontends().await?)
}

/// Who the service thinks is calling
#[utoipa::path(get, path = "/v1/whoami", responses((status = 200, body = Actor)))]
pub(super) async fn whoami(By(actor): By, _: NothingAsked) -> Answer {
    ok(&*actor)
}

/// This document
#[utoipa::path(get, path = "/v1/openapi.json", responses((status = 200, body = Object)))]
pub(super) async fn openapi_json(_: NothingAsked) -> Answer {
    ok(&openapi::document())
}

fn ok(value: &impl serde::Serialize) -> Answer {
    Ok(json(StatusCode::OK, value))
}

/// Goes on when the caller goes away: a change is made and logged, or not begun.
async fn to_the_end(
    entry: Entry,
    changed: impl Future<Output = Result<ChangeResult, AdminError>> + Send + 'static,
) -> Answer {
    let task = tokio::spawn(async move {
        let changed = changed.await;
        entry.write(changed.as_ref().map_or_else(AdminError::code, |result| outcome(result.outcome)));
        changed
    });
    // A panic goes on here, and is caught and counted where those of all handlers are.
    let result = task.await.unwrap_or_else(|error| match error.try_into_panic() {
        Ok(panic) => std::panic::resume_unwind(panic),
        Err(_) => Err(AdminError::Internal("the change was cancelled")),
    })?;
    let accepted = result.outcome == ChangeOutcome::NeedsApproval;
    Ok(json(if accepted { StatusCode::ACCEPTED } else { StatusCode::OK }, &result))
}

fn outcome(outcome: ChangeOutcome) -> &'static str {
    match outcome {
        ChangeOutcome::Done => "done",
        ChangeOutcome::Unchanged => "unchanged",
        ChangeOutcome::WouldChange => "would-change",
        ChangeOutcome::WouldNeedApproval => "would-need-approval",
        ChangeOutcome::NeedsApproval => "needs-approval",
    }
}

/// A line of the operator's log for each wish: who, what, about which thing; no bodies, no reasons.
struct Entry {
    actor: Arc<Actor>,
    action: String,
    subject: String,
    dry_run: bool,
}

impl Entry {
    fn of_decision(actor: &Arc<Actor>, action: &str, id: Uuid) -> Self {
        Self { actor: Arc::clone(actor), action: action.into(), subject: id.to_string(), dry_run: false }
    }

    fn write(&self, outcome: &str) {
        let Self { actor, action, subject, dry_run } = self;
        tracing::info!(actor = actor.name, action, subject, dry_run, outcome, "admin request");
    }
}

/// What a command is about: a path or a name.
fn subject(command: &Command) -> String {
    let value = serde_json::to_value(command).unwrap_or_default();
    let named = value.get("path").or_else(|| value.get("name")).and_then(Value::as_str);
    named.unwrap_or("catalog").to_owned()
}
