//! The admin API's words: what can be done, and what the server answers (`answers`). `/v1/openapi.json` is made of these.

mod answers;

use std::collections::BTreeMap;

use ekm_core::catalog::Custody;
use ekm_core::{Algorithm, KeyPath, ShardName};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

pub use answers::{
    ApprovalView, CatalogView, ChangeView, Decision, ErrorView, ExplainRequest, FormerPolicyView, FrontendView,
    HsmFinding, HsmVerified, HsmVerify, HsmView, KeyView, LintView, LintWarning, Page, PolicyView, ReplicaView,
    SpaceView, TokenView, VersionView,
};

/// A wish: what to change, why, and under which conditions.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ChangeRequest {
    /// What to do.
    pub command: Command,
    /// Why; goes into the log of changes.
    #[serde(default)]
    pub reason: String,
    /// Only say what would change.
    #[serde(default)]
    pub dry_run: bool,
    /// The revision of the thing as the caller has seen it. If it has changed since, nothing is done (412). Commands that replace
    /// something (`policy-set`, `key-set-policy`, `key-update`, `space-update`, `settings-set`) must name it (428).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub if_revision: Option<u64>,
    /// Chosen by the caller: a request that is repeated under the same id is not carried out again, and gets the first answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(max_length = 64)]
    pub request_id: Option<String>,
}

/// What can be done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Command {
    /// Make a crypto space.
    SpaceCreate {
        #[schema(value_type = String)]
        path: KeyPath,
        /// The HSMs for its keys. Absent: the only shard, or `main`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        #[schema(value_type = Option<String>)]
        shard: Option<ShardName>,
        #[serde(default)]
        labels: BTreeMap<String, String>,
        #[serde(default)]
        description: String,
    },
    /// Replace labels and description of a crypto space.
    SpaceUpdate {
        #[schema(value_type = String)]
        path: KeyPath,
        labels: BTreeMap<String, String>,
        description: String,
    },
    /// Put new keys and new versions of a crypto space into another shard. Versions that are there follow by `key-move`.
    SpaceMove {
        #[schema(value_type = String)]
        path: KeyPath,
        #[schema(value_type = String)]
        shard: ShardName,
    },
    /// Let callers make keys in a crypto space, by createKey, or (without `creation`) not any more.
    SpaceSetCreation {
        #[schema(value_type = String)]
        path: KeyPath,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        creation: Option<CreationWish>,
    },
    /// Stop every key of a crypto space.
    SpaceBlock {
        #[schema(value_type = String)]
        path: KeyPath,
    },
    /// Let the keys of a crypto space go on.
    SpaceUnblock {
        #[schema(value_type = String)]
        path: KeyPath,
    },
    /// Make a policy that keys can share.
    PolicyCreate {
        name: String,
        #[schema(value_type = Object)]
        policy: Value,
        #[serde(default)]
        description: String,
    },
    /// Replace a policy, for every key that has it.
    PolicySet {
        name: String,
        #[schema(value_type = Object)]
        policy: Value,
        #[serde(default)]
        description: String,
        /// Deny at once what is not allowed any more, whatever `denial_delay_minutes` says.
        #[serde(default, rename = "final", skip_serializing_if = "std::ops::Not::not")]
        is_final: bool,
    },
    /// Deny at once what earlier changes of a policy do not allow any more.
    PolicyConfirm { name: String },
    /// Make a key: material first, proven, then the catalog.
    KeyCreate {
        #[schema(value_type = String)]
        path: KeyPath,
        /// Must exist.
        #[schema(value_type = String)]
        space: KeyPath,
        policy: PolicyChoice,
        /// Google's name for what the key does, such as `EC_SIGN_P256_SHA256`. Absent: `EXTERNAL_SYMMETRIC_ENCRYPTION`, it wraps.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        #[schema(value_type = Option<String>)]
        algorithm: Option<Algorithm>,
        /// Absent: what the configuration says.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        #[schema(value_type = Option<String>)]
        custody: Option<Custody>,
        /// Absent: rotated by hand only.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        rotation_days: Option<u32>,
        #[serde(default)]
        labels: BTreeMap<String, String>,
        #[serde(default)]
        description: String,
    },
    /// Replace labels and description of a key.
    KeyUpdate {
        #[schema(value_type = String)]
        path: KeyPath,
        labels: BTreeMap<String, String>,
        description: String,
    },
    /// Give a key one more path, for moving it between EXTERNAL and EXTERNAL_VPC.
    KeyAddPath {
        #[schema(value_type = String)]
        path: KeyPath,
        #[schema(value_type = String)]
        new: KeyPath,
    },
    /// Give a key another policy.
    KeySetPolicy {
        #[schema(value_type = String)]
        path: KeyPath,
        policy: PolicyChoice,
        /// Deny at once what is not allowed any more, whatever `denial_delay_minutes` says.
        #[serde(default, rename = "final", skip_serializing_if = "std::ops::Not::not")]
        is_final: bool,
    },
    /// Deny at once what a key's former policies allowed, and the present one does not.
    KeyConfirmPolicy {
        #[schema(value_type = String)]
        path: KeyPath,
    },
    /// Take the pause of a key, or of one version, back.
    KeyEnable {
        #[schema(value_type = String)]
        path: KeyPath,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        version: Option<u32>,
    },
    /// Pause a key, or one version.
    KeyDisable {
        #[schema(value_type = String)]
        path: KeyPath,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        version: Option<u32>,
    },
    /// Make a new version. It wraps as soon as every frontend knows it. A signing key has one version for ever.
    KeyRotate {
        #[schema(value_type = String)]
        path: KeyPath,
    },
    /// Rotate by itself, or (without days) not any more.
    KeySetRotation {
        #[schema(value_type = String)]
        path: KeyPath,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        every_days: Option<u32>,
    },
    /// Bring every version of a key into the shard of its crypto space. The HSMs that it leaves keep it until it is destroyed.
    KeyMove {
        #[schema(value_type = String)]
        path: KeyPath,
    },
    /// Destroy a key, or one version, after the grace period. Needs a second person.
    KeyDestroy {
        #[schema(value_type = String)]
        path: KeyPath,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        version: Option<u32>,
    },
    /// Take a destruction back while the grace period lasts. The key is disabled then.
    KeyUndelete {
        #[schema(value_type = String)]
        path: KeyPath,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        version: Option<u32>,
    },
    /// Take an HSM out of use, on every frontend: it gets no new operations.
    HsmDrain {
        /// The replica's name in the configuration.
        name: String,
        /// Even if no other replica serves on the frontend that is asked.
        #[serde(default)]
        force: bool,
    },
    /// Take an HSM back into use. It has to show that it works first.
    HsmResume {
        /// The replica's name in the configuration.
        name: String,
    },
    /// Change what holds for the whole catalog. Needs a second person.
    SettingsSet {
        /// At least 7; absent: as it is.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        destroy_grace_days: Option<u32>,
        /// 0 to 1440; absent: as it is. For so long after a change of a policy, what was allowed before is answered with 503, and
        /// only then with 403. Holds for later changes.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        denial_delay_minutes: Option<u32>,
    },
    /// Allow the requester to fetch the whole catalog, sealed. Needs a second person.
    CatalogExport {},
}

/// What callers may make in a crypto space.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreationWish {
    /// A policy's name: it says who may, by its rules for `createKey` and `destroyKey`, and becomes the policy of the keys that are made.
    pub policy: String,
    /// Absent: what the configuration says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub custody: Option<Custody>,
    /// Google's names; none means any that is offered.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(value_type = Vec<String>)]
    pub algorithms: Vec<Algorithm>,
    /// How many keys the space may have at a time.
    pub max_keys: u32,
}

/// The policy of a key: one that is there, or one of its own, which gets the key's path as its name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum PolicyChoice {
    /// A policy's name.
    Named(String),
    /// A policy's JSON.
    #[schema(value_type = Object)]
    Own(Value),
}

/// What became of a wish.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct ChangeResult {
    /// What became of it.
    pub outcome: ChangeOutcome,
    /// The catalog's revision after it; for a dry run, the one that it was tried on.
    pub revision: u64,
    /// What it is about: a path or a name.
    pub target: String,
    /// What changes, field by field.
    pub changes: Vec<FieldChange>,
    /// What a tired operator should read before going on.
    pub warnings: Vec<String>,
    /// With `needs-approval`: what a second person has to approve.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub approval: Option<ApprovalView>,
}

/// What became of a wish.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ChangeOutcome {
    /// It was done.
    Done,
    /// It was so already.
    Unchanged,
    /// A dry run: it would be done.
    WouldChange,
    /// A dry run: it would wait for a second person.
    WouldNeedApproval,
    /// It waits for a second person.
    NeedsApproval,
}

/// One field before and after; `null` for what is not there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FieldChange {
    /// Such as `state` or `versions.2.state`.
    pub field: String,
    pub before: Value,
    pub after: Value,
}

impl Command {
    /// The word in the log, such as `key-disable`.
    pub fn action(&self) -> String {
        let value = serde_json::to_value(self).expect("a command has only text as map keys");
        value["type"].as_str().unwrap_or_default().to_owned()
    }
}
