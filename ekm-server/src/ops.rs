//! The ops listener: liveness, readiness, deep health, metrics. Plain HTTP, for the operator's network.

use std::fmt::Write;
use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use ekm_core::hsm::{self, ReplicaStatus, Shard};
use http::{StatusCode, Uri, header};
use serde::Serialize;
use time::OffsetDateTime;

use crate::catalog::Gate;
use crate::health::Health;
use crate::router::DataPlane;

/// What the ops listener looks at.
#[derive(Clone)]
pub struct Ops {
    /// The data plane.
    pub plane: Arc<DataPlane>,
    /// Its health.
    pub health: Arc<Health>,
    /// How the catalog is followed.
    pub gate: Arc<Gate>,
}

/// The routes.
pub fn router(ops: Ops) -> Router {
    Router::new()
        .route("/livez", get(|| async { "ok\n" }))
        .route("/readyz", get(readyz))
        .route("/healthz", get(healthz))
        .route("/metrics", get(metrics))
        .with_state(ops)
}

/// For load balancers. Only causes of this frontend alone take readiness away: its HSM, its drain. What all frontends share, such
/// as the issuer and the catalog's database, is shown and changes nothing: else one fault there would take all of them away.
async fn readyz(State(ops): State<Ops>, uri: Uri) -> Response {
    if !uri.query().is_some_and(|query| query.split('&').any(|part| part.starts_with("verbose"))) {
        return ops.health.probe(&uri);
    }
    let ready = match ops.health.is_ready_for(&uri) {
        Ok(ready) => ready,
        Err(unknown) => return (StatusCode::NOT_FOUND, unknown).into_response(),
    };
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let snapshot = ops.plane.ekm.snapshot();
    let mut text = String::new();
    let mark = |good| if good { "[+]" } else { "[-]" };
    let note = |good| if good { "[+]" } else { "[!]" };
    for shard in ops.health.shards() {
        let error = shard.report().error;
        let (name, wrap) = (shard.name(), error.as_deref().unwrap_or("ok"));
        let _ = writeln!(text, "{} shard {name}: wrap and unwrap with its health key: {wrap}", mark(error.is_none()));
    }
    for shard in ops.health.shards().iter().filter(|shard| shard.is_shared_trouble()) {
        let _ = writeln!(text, "[!] shard {} fails on all frontends, so this one stays ready", shard.name());
    }
    let draining = ops.health.is_draining();
    let _ = writeln!(text, "{} draining: {}", mark(!draining), if draining { "yes" } else { "no" });
    let (revision, age) = (snapshot.revision(), ops.plane.metrics.catalog_age.get());
    let read = if snapshot.revision() == 0 { "not read yet".to_owned() } else { format!("read {age:.0} s ago") };
    let _ = writeln!(text, "{} catalog: revision {revision}, {read}", note(age < 60.0));
    if let Some(problem) = ops.gate.problem() {
        let _ = writeln!(text, "[!] catalog not followed: {problem}");
    }
    for replica in ops.plane.ekm.custodian().shards().iter().flat_map(Shard::replicas) {
        let ReplicaStatus { name, state, since, reason, .. } = replica.status();
        let (good, since) = (state == hsm::State::Serving, since.as_secs());
        let _ = writeln!(text, "{} HSM replica {name}: {} for {since} s: {reason}", note(good), state.name());
    }
    let (unserved, refused) = (ops.plane.unserved.list(), snapshot.refused());
    let sound = unserved.is_empty() && refused.len() == 0;
    let _ = writeln!(
        text,
        "{} keys: {} paths, {} versions that cannot be served, {} rows refused",
        note(sound),
        snapshot.path_count(),
        unserved.len(),
        refused.len(),
    );
    for version in unserved.iter() {
        let _ = writeln!(text, "[!] cannot be served: {version}");
    }
    for row in refused {
        let _ = writeln!(text, "[!] row refused: {row}");
    }
    let not_final = snapshot.changes_not_final(OffsetDateTime::now_utc());
    if not_final > 0 {
        let _ = writeln!(
            text,
            "[!] {not_final} changes of policies are not final yet: what they deny is answered with 503"
        );
    }
    for shard in ops.plane.ekm.custodian().shards() {
        let hsm::AdmissionStatus { sessions, busy, waiting, service, .. } = shard.admission();
        let (name, ms) = (shard.name(), service.as_secs_f64() * 1000.0);
        let _ = writeln!(
            text,
            "{} shard {name}: {busy} operations under way in {sessions} sessions, {waiting} wait, {ms:.2} ms each",
            note(waiting == 0)
        );
    }
    let late_ms = ops.plane.intake.lateness().as_secs_f64() * 1000.0;
    let _ = writeln!(text, "{} tasks begin {late_ms:.1} ms late", note(late_ms < 40.0));
    for (issuer, age) in ops.plane.authenticator.load().key_set_ages() {
        let known = age.map_or("never fetched".into(), |age| format!("key set fetched {} s ago", age.as_secs()));
        let _ = writeln!(text, "{} issuer {issuer}: {known}", note(age.is_some()));
    }
    let _ = writeln!(text, "{}", if ready { "ready" } else { "not ready" });
    (status, text).into_response()
}

/// The deep checks' last results, at most about a second old: of every shard, or with `?shard=NAME` of one.
async fn healthz(State(ops): State<Ops>, uri: Uri) -> Response {
    match ops.health.shard_asked_for(&uri) {
        Ok(None) => {
            let report = ops.health.report();
            health_response(report.status, &report)
        }
        Ok(Some(shard)) => {
            let report = shard.report();
            health_response(report.status, &report)
        }
        Err(unknown) => (StatusCode::NOT_FOUND, unknown).into_response(),
    }
}

fn health_response(status: &str, report: &impl Serialize) -> Response {
    let status = if status == "ok" { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let body = serde_json::to_string(report).expect("a report has only text and numbers");
    (status, [(header::CONTENT_TYPE, "application/json")], body + "\n").into_response()
}

async fn metrics(State(ops): State<Ops>) -> Response {
    let plane = &ops.plane;
    let snapshot = plane.ekm.snapshot();
    let metrics = &plane.metrics;
    metrics.catalog_revision.set(snapshot.revision().cast_signed());
    metrics.catalog_paths.set(snapshot.path_count() as i64);
    metrics.catalog_unavailable.set(plane.unserved.list().len() as i64);
    metrics.policy_changes_not_final.set(snapshot.changes_not_final(OffsetDateTime::now_utc()) as i64);
    metrics.catalog_rejected.set(snapshot.refused().len() as i64);
    metrics.audit_queue.set(plane.audit.queue_length() as i64);
    metrics.lateness.set(plane.intake.lateness().as_secs_f64());
    metrics.set_hsm(plane.ekm.custodian().shards());
    for shard in ops.health.shards() {
        let healthy = shard.report().error.is_none();
        metrics.shard_healthy.with_label_values(&[shard.name().as_str()]).set(healthy.into());
    }
    metrics.ready.set(ops.health.is_ready().into());
    for (issuer, age) in plane.authenticator.load().key_set_ages() {
        let seconds = age.map_or(f64::INFINITY, |age| age.as_secs_f64());
        metrics.jwks_age.with_label_values(&[issuer]).set(seconds);
    }
    ([(header::CONTENT_TYPE, prometheus::TEXT_FORMAT)], metrics.render()).into_response()
}
