//! Every metric, in one place. Names and labels are a promise: `tests/golden/metrics.txt` lists them.
//!
//! Labels come from closed sets: never a key, project, or account.

use std::time::{Duration, Instant};

use ekm_core::hsm::{Shard, State};
use ekm_core::policy::Verb;
use ekm_core::{ShardName, Trace};
use prometheus::{
    Encoder, Gauge, GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec,
    Opts, Registry, TextEncoder,
};

use crate::audit::Stages;

/// From 100 µs doubling, with the promises' thresholds (40, 80, 100, 130, 150 ms) as exact bounds.
const BUCKETS_SECONDS: &[f64] = &[
    0.0001, 0.0002, 0.0004, 0.0008, 0.0016, 0.0032, 0.0064, 0.0128, 0.0256, 0.04, 0.08, 0.1, 0.13, 0.15, 0.3, 1.0, 5.0,
];

/// Of refusals, which cost next to nothing; they are to be decided within 1 ms.
const REFUSAL_BUCKETS_SECONDS: &[f64] = &[
    0.00005, 0.0001, 0.0002, 0.0003, 0.0004, 0.0005, 0.0006, 0.0008, 0.001, 0.0015, 0.002, 0.003, 0.005, 0.01, 0.1,
    1.0, 10.0,
];

/// As labels, in the order of [`Metrics::observe_refusal`].
const REFUSALS: [&str; 4] = ["overloaded", "waited", "caller_rate", "frontend_busy"];

/// Whoever was longer than this in line for a session was not refused at once.
const IN_LINE: Duration = Duration::from_millis(1);

/// What an HSM is asked for: the first of [`Verb::ALL`].
const OPERATIONS: [Verb; 3] = [Verb::Wrap, Verb::Unwrap, Verb::AsymmetricSign];

/// As labels, in the order of [`Metrics::observe_stages`].
const STAGES: [&str; 4] = ["head", "authentication", "body", "hsm_turn"];

/// Made once, passed down.
pub struct Metrics {
    registry: Registry,
    requests: IntCounterVec,
    /// Requests of the admin API by outcome.
    pub admin_requests: IntCounterVec,
    /// By verb; the last one is for what is no verb of the protocol.
    request_seconds: Vec<Histogram>,
    stage_seconds: [Histogram; STAGES.len()],
    refusal_seconds: [Histogram; REFUSALS.len()],
    /// How late tasks begin.
    pub lateness: Gauge,
    /// In the order of the configuration.
    shards: Vec<ShardMetrics>,
    hsm_state: IntGaugeVec,
    shard_requests: IntCounterVec,
    /// 1 if a shard's deep check passes.
    pub shard_healthy: IntGaugeVec,
    /// Open connections by listener.
    pub connections: IntGaugeVec,
    /// Connections by listener and how they ended.
    pub connections_closed: IntCounterVec,
    /// Verified tokens found in the cache, or not.
    pub token_cache: IntCounterVec,
    /// Fetches of issuers' key sets.
    pub jwks_fetches: IntCounterVec,
    /// Seconds since the last good fetch.
    pub jwks_age: GaugeVec,
    /// Attempts to write the audit log that failed.
    pub audit_write_errors: IntCounter,
    /// Records lost because nobody waited and the queue was full.
    pub audit_lost: IntCounter,
    /// Records that wait for the disk.
    pub audit_queue: IntGauge,
    /// The snapshot's revision.
    pub catalog_revision: IntGauge,
    /// Seconds since the catalog was last seen to hold that revision.
    pub catalog_age: Gauge,
    /// Paths that can be called.
    pub catalog_paths: IntGauge,
    /// Key versions that cannot be served.
    pub catalog_unavailable: IntGauge,
    /// 1 while the catalog cannot be followed, or is not to be believed.
    pub catalog_follow_failed: IntGauge,
    /// The revision in the copy on disk.
    pub snapshot_file_revision: IntGauge,
    /// Requests for keys or versions that are to be destroyed, refused ones included.
    pub destroy_scheduled_uses: IntCounter,
    /// Requests without a reason that only a time of grace allowed.
    grace_uses: IntCounter,
    /// Changes of policies that are not final yet.
    pub policy_changes_not_final: IntGauge,
    /// Rows that were left out.
    pub catalog_rejected: IntGauge,
    /// Reloads of the certificate.
    pub certificate_reloads: IntCounterVec,
    /// 1 if ready.
    pub ready: IntGauge,
    /// What the last nightly walk over the HSM's keys has found and could not repair.
    pub hsm_audit_findings: IntGauge,
    /// Requests whose handler panicked.
    pub panics: IntCounter,
}

/// What is known of one shard.
struct ShardMetrics {
    name: ShardName,
    hedges: IntCounter,
    retries: IntCounter,
    sessions: IntGauge,
    waiting: IntGauge,
    refused: IntCounter,
    expired: IntCounter,
    replicas: Vec<ReplicaMetrics>,
}

/// What is known of one replica.
struct ReplicaMetrics {
    queue_seconds: Histogram,
    operation_seconds: [Histogram; 3],
    queue: IntGauge,
    in_flight: IntGauge,
    missing_keys: IntGauge,
    operations: IntCounter,
    faults: IntCounter,
    ejections: IntCounter,
    losses: IntCounter,
}

impl Metrics {
    /// All metrics, at their beginning.
    pub fn new(profile: &str, shards: &[Shard]) -> Self {
        let registry = Registry::new();
        let make = Maker { registry: &registry };
        let request_seconds =
            make.histograms("ekm_request_seconds", "From the request's head to the answer.", &["verb"]);
        let stage_seconds = make.histograms("ekm_stage_seconds", "What a request's time goes into.", &["stage"]);
        let refusal_seconds = make.add(HistogramVec::new(
            HistogramOpts::new(
                "ekm_refusal_seconds",
                "From the end of the request's head until it is refused because there is too much to do.",
            )
            .buckets(REFUSAL_BUCKETS_SECONDS.to_vec()),
            &["reason"],
        ));
        let shards = make.shards(shards);
        let build = make.gauges("ekm_build_info", "1, with the version as label.", &["version"]);
        build.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        make.gauges("ekm_profile", "1, with the profile as label.", &["profile"]).with_label_values(&[profile]).set(1);
        let metrics = Self {
            requests: make.counters("ekm_requests_total", "Requests by verb and outcome.", &["verb", "code"]),
            admin_requests: make.counters("ekm_admin_requests_total", "Admin requests by outcome.", &["code"]),
            request_seconds: verbs().map(|verb| request_seconds.with_label_values(&[verb])).collect(),
            stage_seconds: STAGES.map(|stage| stage_seconds.with_label_values(&[stage])),
            refusal_seconds: REFUSALS.map(|reason| refusal_seconds.with_label_values(&[reason])),
            lateness: make.float_gauge("ekm_task_lateness_seconds", "How much later than they should tasks begin."),
            shards,
            hsm_state: make.gauges(
                "ekm_hsm_replica_state",
                "1 for the state of a replica.",
                &["shard", "replica", "state"],
            ),
            shard_requests: make.counters(
                "ekm_shard_requests_total",
                "Requests for keys of a shard, by outcome.",
                &["shard", "code"],
            ),
            shard_healthy: make.gauges("ekm_shard_healthy", "1 if the shard's deep check passes.", &["shard"]),
            connections: make.gauges("ekm_connections", "Open connections.", &["listener"]),
            connections_closed: make.counters(
                "ekm_connections_closed_total",
                "Connections by how they ended.",
                &["listener", "reason"],
            ),
            token_cache: make.counters("ekm_token_cache_total", "Look-ups of verified tokens.", &["result"]),
            jwks_fetches: make.counters("ekm_jwks_fetches_total", "Fetches of key sets.", &["issuer", "result"]),
            jwks_age: make.float_gauges("ekm_jwks_age_seconds", "Since the last good fetch.", &["issuer"]),
            audit_write_errors: make.counter("ekm_audit_write_errors_total", "Failed writes of the audit log."),
            audit_lost: make.counter("ekm_audit_lost_total", "Records of abandoned requests that found no room."),
            audit_queue: make.gauge("ekm_audit_queue_length", "Audit records that wait for the disk."),
            catalog_revision: make.gauge("ekm_catalog_revision", "The revision in use."),
            catalog_age: make.float_gauge("ekm_catalog_age_seconds", "Since the catalog was last read."),
            catalog_paths: make.gauge("ekm_catalog_paths", "Key paths that can be called."),
            catalog_unavailable: make.gauge("ekm_catalog_unavailable_versions", "Key versions that cannot be served."),
            catalog_follow_failed: make
                .gauge("ekm_catalog_follow_failed", "1 while the catalog cannot be read or is not to be believed."),
            snapshot_file_revision: make.gauge("ekm_snapshot_file_revision", "The revision in the copy on disk."),
            destroy_scheduled_uses: make.counter(
                "ekm_destroy_scheduled_uses_total",
                "Requests for keys or versions that are to be destroyed, refused ones included.",
            ),
            grace_uses: make.counter(
                "ekm_justification_grace_uses_total",
                "Requests without a reason that only 'grace_until' allowed.",
            ),
            policy_changes_not_final: make
                .gauge("ekm_policy_changes_not_final", "Changes of policies whose denials are answered with 503 yet."),
            catalog_rejected: make.gauge("ekm_catalog_rejected_rows", "Rows left out of the snapshot."),
            certificate_reloads: make.counters("ekm_certificate_reloads_total", "Certificate reloads.", &["result"]),
            ready: make.gauge("ekm_ready", "1 if ready for traffic."),
            hsm_audit_findings: make.gauge(
                "ekm_hsm_audit_findings",
                "Keys that a replica did not hold as it should, in the nightly audit.",
            ),
            panics: make.counter("ekm_panics_total", "Requests that ended in a panic."),
            registry,
        };
        // A counter that appears only with its first event cannot be alerted on.
        for verb in verbs().filter(|verb| *verb != "-") {
            for code in ["ok", "denied", "denial_pending"] {
                metrics.requests.with_label_values(&[verb, code]);
            }
        }
        metrics.admin_requests.with_label_values(&["ok"]);
        for result in ["ok", "error"] {
            metrics.certificate_reloads.with_label_values(&[result]);
        }
        metrics
    }

    /// Counts one request. `verb` is `None` for what is no verb of the protocol.
    pub fn observe(&self, verb: Option<Verb>, code: &str, total: Duration, trace: &Trace) {
        let (index, name) = match verb {
            Some(verb) => (verb as usize, verb.name()),
            None => (Verb::ALL.len(), "-"),
        };
        self.requests.with_label_values(&[name, code]).inc();
        self.request_seconds[index].observe(total.as_secs_f64());
        if trace.destroy_scheduled {
            self.destroy_scheduled_uses.inc();
        }
        if trace.by_grace {
            self.grace_uses.inc();
        }
        let Some(shard) = trace.shard.and_then(|place| self.shards.get(place)) else { return };
        self.shard_requests.with_label_values(&[shard.name.as_str(), code]).inc();
        if !trace.hsm.device.is_zero() && index < OPERATIONS.len() {
            let hsm = &shard.replicas[trace.hsm.replica];
            hsm.queue_seconds.observe(trace.hsm.queue.as_secs_f64());
            hsm.operation_seconds[index].observe(trace.hsm.device.as_secs_f64());
        }
    }

    /// What the stages of a request took, as far as it came.
    pub fn observe_stages(&self, stages: &Stages, trace: &Trace) {
        let took = [stages.head, stages.authentication, stages.body, trace.hsm.turn];
        for (histogram, took) in self.stage_seconds.iter().zip(took) {
            if !took.is_zero() {
                histogram.observe(took.as_secs_f64());
            }
        }
    }

    /// If this is the code of a refusal because there is too much to do: how long that has taken, its audit record included.
    pub fn observe_refusal(&self, code: &str, trace: &Trace, head_read: Instant) {
        let place = match code {
            "overloaded" if trace.hsm.turn < IN_LINE => 0,
            "overloaded" => 1,
            "caller_rate" => 2,
            "frontend_busy" => 3,
            _ => return,
        };
        self.refusal_seconds[place].observe(head_read.elapsed().as_secs_f64());
    }

    /// Takes over how the replicas are now.
    pub fn set_hsm(&self, shards: &[Shard]) {
        for (shard, metrics) in shards.iter().zip(&self.shards) {
            self.set_replicas(shard, metrics);
            advance(&metrics.hedges, shard.counts().hedges);
            advance(&metrics.retries, shard.counts().retries);
            let admission = shard.admission();
            metrics.sessions.set(admission.sessions as i64);
            metrics.waiting.set(admission.waiting as i64);
            advance(&metrics.refused, admission.refused);
            advance(&metrics.expired, admission.expired);
        }
    }

    fn set_replicas(&self, shard: &Shard, metrics: &ShardMetrics) {
        for (replica, hsm) in shard.replicas().iter().zip(&metrics.replicas) {
            let status = replica.status();
            for state in State::ALL {
                let labels = [shard.name().as_str(), status.name.as_str(), state.name()];
                self.hsm_state.with_label_values(&labels).set((state == status.state).into());
            }
            hsm.queue.set(status.queue as i64);
            hsm.in_flight.set(status.in_flight.into());
            hsm.missing_keys.set(status.lacks as i64);
            for (counter, value) in [
                (&hsm.operations, status.operations),
                (&hsm.faults, status.faults),
                (&hsm.ejections, status.ejections),
                (&hsm.losses, status.losses),
            ] {
                advance(counter, value);
            }
        }
    }

    /// Everything in Prometheus' text format.
    pub fn render(&self) -> Vec<u8> {
        let mut text = Vec::new();
        TextEncoder::new().encode(&self.registry.gather(), &mut text).expect("writing to memory does not fail");
        text
    }
}

/// As labels.
fn verbs() -> impl Iterator<Item = &'static str> {
    Verb::ALL.iter().map(|verb| verb.name()).chain(["-"])
}

/// Takes over a count that is kept elsewhere.
fn advance(counter: &IntCounter, value: u64) {
    counter.inc_by(value.saturating_sub(counter.get()));
}

/// Makes and registers; a name used twice is a bug found by the first test that starts.
struct Maker<'a> {
    registry: &'a Registry,
}

impl Maker<'_> {
    fn add<T: prometheus::core::Collector + Clone + 'static>(&self, made: prometheus::Result<T>) -> T {
        let collector = made.expect("a valid name");
        self.registry.register(Box::new(collector.clone())).expect("a name that is not taken");
        collector
    }
    fn shards(&self, shards: &[Shard]) -> Vec<ShardMetrics> {
        let by = &["shard", "replica"];
        let queue_seconds = self.histograms("ekm_hsm_queue_seconds", "Waiting for the HSM.", by);
        let operation =
            self.histograms("ekm_hsm_operation_seconds", "Inside the HSM only.", &["shard", "replica", "operation"]);
        let queue = self.gauges("ekm_hsm_queue_length", "Operations that wait for the HSM.", by);
        let in_flight = self.gauges("ekm_hsm_in_flight", "Operations under way, waiting ones included.", by);
        let missing = self.gauges("ekm_hsm_missing_keys", "Keys that a replica lately did not hold.", by);
        let operations = self.counters("ekm_hsm_operations_total", "Operations.", by);
        let faults = self.counters("ekm_hsm_faults_total", "Operations and probes that failed by the HSM's fault.", by);
        let ejections = self.counters("ekm_hsm_ejections_total", "How often a replica was taken out of use.", by);
        let losses = self.counters("ekm_hsm_losses_total", "How often the way to a token was lost, or killed.", by);
        let hedges = self.counters(
            "ekm_hsm_hedges_total",
            "Operations sent to a second replica because the first was late.",
            &["shard"],
        );
        let retries = self.counters(
            "ekm_hsm_retries_total",
            "Operations sent to a second replica because the first failed.",
            &["shard"],
        );
        let sessions = self.gauges("ekm_shard_sessions", "Sessions of the replicas that can be used.", &["shard"]);
        let waiting = self.gauges("ekm_shard_waiting", "Requests that wait for a session.", &["shard"]);
        let shed = self.counters(
            "ekm_shard_shed_total",
            "Requests refused because they would wait too long, or given up because they did.",
            &["shard", "how"],
        );
        let of = |labels: [&str; 2]| ReplicaMetrics {
            queue_seconds: queue_seconds.with_label_values(&labels),
            operation_seconds: OPERATIONS.map(|verb| operation.with_label_values(&[labels[0], labels[1], verb.name()])),
            queue: queue.with_label_values(&labels),
            in_flight: in_flight.with_label_values(&labels),
            missing_keys: missing.with_label_values(&labels),
            operations: operations.with_label_values(&labels),
            faults: faults.with_label_values(&labels),
            ejections: ejections.with_label_values(&labels),
            losses: losses.with_label_values(&labels),
        };
        let of_shard = |shard: &Shard| {
            let name = shard.name().as_str();
            ShardMetrics {
                name: shard.name().clone(),
                hedges: hedges.with_label_values(&[name]),
                retries: retries.with_label_values(&[name]),
                sessions: sessions.with_label_values(&[name]),
                waiting: waiting.with_label_values(&[name]),
                refused: shed.with_label_values(&[name, "refused"]),
                expired: shed.with_label_values(&[name, "expired"]),
                replicas: shard.replicas().iter().map(|replica| of([name, replica.name()])).collect(),
            }
        };
        shards.iter().map(of_shard).collect()
    }
    fn counter(&self, name: &str, help: &str) -> IntCounter {
        self.add(IntCounter::new(name, help))
    }
    fn counters(&self, name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
        self.add(IntCounterVec::new(Opts::new(name, help), labels))
    }
    fn gauge(&self, name: &str, help: &str) -> IntGauge {
        self.add(IntGauge::new(name, help))
    }
    fn gauges(&self, name: &str, help: &str, labels: &[&str]) -> IntGaugeVec {
        self.add(IntGaugeVec::new(Opts::new(name, help), labels))
    }
    fn float_gauge(&self, name: &str, help: &str) -> Gauge {
        self.add(Gauge::new(name, help))
    }
    fn float_gauges(&self, name: &str, help: &str, labels: &[&str]) -> GaugeVec {
        self.add(GaugeVec::new(Opts::new(name, help), labels))
    }
    fn histograms(&self, name: &str, help: &str, labels: &[&str]) -> HistogramVec {
        self.add(HistogramVec::new(HistogramOpts::new(name, help).buckets(BUCKETS_SECONDS.to_vec()), labels))
    }
}
