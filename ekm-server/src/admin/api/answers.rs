//! What is shown: the catalog's things, HSMs, what a policy says, errors. And the questions that are no commands.

use std::collections::BTreeMap;

use ekm_core::catalog::{ApprovalState, Custody, KeyState, SpaceState, VersionState};
use ekm_core::{Algorithm, KeyPath, ShardName};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use time::OffsetDateTime;
use utoipa::ToSchema;
use uuid::Uuid;

use super::{Command, CreationWish};

/// A crypto space.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct SpaceView {
    #[schema(value_type = String)]
    pub path: KeyPath,
    pub id: Uuid,
    #[schema(value_type = String)]
    pub state: SpaceState,
    /// The HSMs for its keys' next versions.
    #[schema(value_type = String)]
    pub shard: ShardName,
    /// What callers may make in it; absent: nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub creation: Option<CreationWish>,
    pub labels: BTreeMap<String, String>,
    pub description: String,
    #[serde(with = "time::serde::rfc3339")]
    pub created_at: OffsetDateTime,
    /// The change that wrote it last.
    pub revision: u64,
}

/// A policy.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct PolicyView {
    pub name: String,
    pub id: Uuid,
    #[schema(value_type = Object)]
    pub policy: Value,
    pub description: String,
    /// The justifications that each rule accepts, presets written out.
    #[serde(default)]
    pub justifications: Vec<String>,
    /// What it replaced a short while ago: what one of these allowed and this one denies is answered with 503 for now.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub not_final: Vec<FormerPolicyView>,
    /// What the linter says about it.
    pub warnings: Vec<String>,
    /// The change that wrote it last.
    pub revision: u64,
}

/// A policy that was in force until a short while ago.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct FormerPolicyView {
    /// When what it allowed is denied for good, unless somebody confirms the change before.
    #[serde(with = "time::serde::rfc3339")]
    pub final_at: OffsetDateTime,
    #[schema(value_type = Object)]
    pub policy: Value,
}

/// A key.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct KeyView {
    /// What Cloud KMS called the key version that it is for, if a caller has made it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created_for: Option<String>,
    /// A caller has destroyed it: it unwraps nothing any more.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub destroyed_by_caller: bool,
    /// The first one names it.
    #[schema(value_type = Vec<String>)]
    pub paths: Vec<KeyPath>,
    pub id: Uuid,
    /// Its crypto space's path.
    pub space: String,
    /// Its policy's name.
    pub policy: String,
    /// The policies that it had a short while ago: what one of these allowed and the present one denies is answered with 503 for now.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub policy_not_final: Vec<FormerPolicyView>,
    /// What it does: `EXTERNAL_SYMMETRIC_ENCRYPTION`, or how it signs.
    #[serde(default)]
    #[schema(value_type = String)]
    pub algorithm: Algorithm,
    #[schema(value_type = String)]
    pub state: KeyState,
    #[serde(default, with = "time::serde::rfc3339::option", skip_serializing_if = "Option::is_none")]
    pub destroy_at: Option<OffsetDateTime>,
    /// The custody of its next version.
    #[schema(value_type = String)]
    pub custody: Custody,
    /// The version that wraps.
    pub primary_version: u32,
    pub versions: Vec<VersionView>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rotation_days: Option<u32>,
    #[serde(default, with = "time::serde::rfc3339::option", skip_serializing_if = "Option::is_none")]
    pub next_rotation_at: Option<OffsetDateTime>,
    pub labels: BTreeMap<String, String>,
    pub description: String,
    #[serde(with = "time::serde::rfc3339")]
    pub created_at: OffsetDateTime,
    /// The change that wrote it last.
    pub revision: u64,
}

/// One version of a key.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct VersionView {
    /// The HSMs that hold it, or its root key; none for custody `software`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub shard: Option<ShardName>,
    pub number: u32,
    #[schema(value_type = String)]
    pub state: VersionState,
    #[schema(value_type = String)]
    pub custody: Custody,
    /// Of a signing key: its public half, in PEM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub public_key: Option<String>,
    #[serde(with = "time::serde::rfc3339")]
    pub created_at: OffsetDateTime,
    #[serde(default, with = "time::serde::rfc3339::option", skip_serializing_if = "Option::is_none")]
    pub destroy_at: Option<OffsetDateTime>,
}

/// A dangerous change that waits, or waited, for a second person.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct ApprovalView {
    pub id: Uuid,
    #[schema(value_type = String)]
    pub state: ApprovalState,
    /// One line for people.
    pub summary: String,
    /// Exactly what is approved.
    pub command: Command,
    /// Its SHA-256: who approves names it, and so approves this and nothing else.
    pub payload_sha256: String,
    /// The revision of the thing as the requester saw it; if it has changed since, the approval comes to nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub if_revision: Option<u64>,
    pub requested_by: String,
    pub reason: String,
    #[serde(with = "time::serde::rfc3339")]
    pub requested_at: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339")]
    pub expires_at: OffsetDateTime,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decided_by: Option<String>,
    #[serde(default, with = "time::serde::rfc3339::option", skip_serializing_if = "Option::is_none")]
    pub decided_at: Option<OffsetDateTime>,
}

/// A second person's word: `POST /v1/approvals/{id}/approve` and `…/reject`.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Decision {
    /// As in the approval that was looked at.
    pub payload_sha256: String,
    #[serde(default)]
    pub reason: String,
}

/// One entry of the log of changes.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct ChangeView {
    pub revision: u64,
    #[serde(with = "time::serde::rfc3339")]
    pub at: OffsetDateTime,
    pub actor: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub approved_by: Option<String>,
    pub reason: String,
    /// Such as `key-disable`.
    pub action: String,
    pub target: String,
    /// `fast` or `staged`.
    pub class: String,
    /// The command with its parameters.
    #[schema(value_type = Object)]
    pub detail: Value,
    /// SHA-256 of `entry`.
    pub hash: String,
    /// SHA-256 of the entry before.
    pub previous: String,
    /// The entry as it is chained, JSON as text: everything above, and the rows that the change wrote.
    pub entry: String,
}

/// A page of a list.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Page<T> {
    pub items: Vec<T>,
    /// Give it as `page_token` to get the next page; absent on the last one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_page_token: Option<String>,
}

/// A question to a policy: would this be allowed, and which rule decides?
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ExplainRequest {
    /// A key's path; its policy is asked …
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub key: Option<KeyPath>,
    /// … or a policy's name …
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy_name: Option<String>,
    /// … or a policy that is nowhere yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub policy: Option<Value>,
    /// An e-mail address.
    pub caller: String,
    /// `wrap`, `unwrap`, `asymmetricSign` or `getPublicKey`.
    pub verb: String,
    /// A reason's name; absent for a request without any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub justification: Option<String>,
    /// The Cloud KMS resource name; absent for a request without one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resource: Option<String>,
    /// Absent: now.
    #[serde(default, with = "time::serde::rfc3339::option", skip_serializing_if = "Option::is_none")]
    pub at: Option<OffsetDateTime>,
}

/// A frontend as it said last that it is there.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct FrontendView {
    pub name: String,
    pub instance: String,
    pub version: String,
    pub revision: u64,
    #[serde(with = "time::serde::rfc3339")]
    pub seen_at: OffsetDateTime,
    /// Whether it has said so within the last 30 seconds.
    pub alive: bool,
}

/// What holds for the whole catalog, and where it stands: `GET /v1/catalog`.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct CatalogView {
    pub id: Uuid,
    /// Where it is, without credentials.
    pub location: String,
    pub revision: u64,
    pub epoch: u64,
    pub schema_version: i64,
    pub supported_schema_versions: String,
    pub rows: u64,
    pub destroy_grace_days: u32,
    pub denial_delay_minutes: u32,
    /// The change that wrote the settings last; 0 for the defaults.
    pub settings_revision: u64,
    /// What this frontend refused, and why.
    pub refused_rows: Vec<String>,
    /// Which keys this frontend cannot serve, and why; the first hundred.
    pub unserved_keys: Vec<String>,
    pub frontends: Vec<FrontendView>,
}

/// The HSM as one frontend sees it: `GET /v1/hsm`.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct HsmView {
    /// The frontend that answers, as in `GET /v1/frontends`.
    pub frontend: String,
    pub instance: String,
    /// In the order of its configuration; none if it has no HSM.
    pub replicas: Vec<ReplicaView>,
    /// Operations that were sent to a second replica because the first one was late, since the start.
    pub hedges: u64,
    /// Operations that were sent to another replica because the first one failed, since the start.
    pub retries: u64,
}

/// One token that holds the keys.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct ReplicaView {
    /// The replicas of a shard hold the same keys.
    pub shard: String,
    pub name: String,
    /// `joining`, `verifying`, `serving`, `suspect`, `ejected`, `probing`, `drained` or `refused`.
    pub state: String,
    #[serde(with = "time::serde::rfc3339")]
    pub since: OffsetDateTime,
    /// Why it is in this state.
    pub reason: String,
    /// Absent while there is no way to the token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<TokenView>,
    /// Operations that somebody waits for, queued ones included.
    pub in_flight: u32,
    /// Operations that wait.
    pub queue: u64,
    /// What an operation takes, on average.
    pub latency_us: u64,
    /// Operations since the start.
    pub operations: u64,
    /// Operations and probes that failed by its fault, since the start.
    pub faults: u64,
    /// How often it was taken out of use because a probe had failed, since the start.
    pub ejections: u64,
    /// How often the way to its token was lost, since the start.
    pub losses: u64,
    /// Keys that it lately did not hold.
    pub missing_keys: u64,
}

/// What is at the other end.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct TokenView {
    pub label: String,
    /// What kind of HSM it is.
    pub profile: String,
    /// Sessions for requests.
    pub sessions: u64,
}

/// Which keys to look at on every replica of the HSM: `POST /v1/hsm/verify`.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct HsmVerify {
    /// Go on after this key; absent for the first ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<Uuid>,
    /// Give replicas the keys that they lack, wrapped by the replication key.
    #[serde(default)]
    pub repair: bool,
    /// On this replica only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub only: Option<String>,
    /// On every replica of its shard but this one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub without: Option<String>,
}

/// What was found.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct HsmVerified {
    /// Keys in custody `hsm` and root keys, in all.
    pub keys: u64,
    /// Keys that were looked at now.
    pub checked: u64,
    /// Where to go on; absent at the end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<Uuid>,
    pub findings: Vec<HsmFinding>,
    /// Replicas to which there is no way now, so that nobody has looked at them.
    pub away: Vec<String>,
}

/// A key version that a replica does not hold as it should.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct HsmFinding {
    pub key: String,
    pub version: u32,
    pub replica: String,
    pub problem: String,
    /// It holds it now.
    pub repaired: bool,
}

/// What the linter says about a policy: `POST /v1/lint`.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct LintView {
    pub warnings: Vec<LintWarning>,
}

/// What will surprise whoever wrote a policy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LintWarning {
    /// The stable word for it.
    pub code: String,
    /// Counted from 1.
    pub rule: u64,
    /// What happens, and what to do.
    pub text: String,
}

/// An error: what is wrong, and what to do.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct ErrorView {
    /// The heading in the error reference.
    pub code: String,
    pub message: String,
}
