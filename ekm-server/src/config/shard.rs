//! `[[shard]]`: the HSMs.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Duration;

use ekm_core::ShardName;
use ekm_core::hsm::profile::ProfileName;
use serde::{Deserialize, Serialize};
use toml::Spanned;

use super::Config;
use super::check::finding;
use super::error::Finding;

/// A shard: tokens of PKCS#11 modules that hold the same keys. What happens in one shard costs the others nothing.
#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct ShardConfig {
    /// What operators, metrics and the catalog call it, the same on every frontend. Default: `main`.
    #[serde(default)]
    pub name: ShardName,
    /// In which process the vendors' libraries run.
    #[serde(default)]
    pub isolation: Isolation,
    /// Requests for its keys are recorded here, and not in `[audit]`'s file.
    pub audit_file: Option<PathBuf>,
    /// How many operations may wait for their turn, and how many for each token, though they could be done in time; one more is 429.
    #[serde(default = "default_queue_length")]
    pub queue_length: usize,
    /// How long an operation may take on one token, once it has its turn.
    #[serde(default = "default_deadline_ms")]
    pub deadline_ms: Spanned<u64>,
    /// A call that takes longer hangs: its worker process is killed, and started anew. Default: a second, or twice `deadline_ms`.
    pub hang_ms: Option<Spanned<u64>>,
    /// On how many tokens a new key has to be before it wraps. Default: 2, or 1 if there is one token.
    pub copies: Option<Spanned<usize>>,
    /// The CKA_LABEL of an AES key that every token holds, by which new keys get from one token to the others. Default: the vendor's
    /// own cloning does that.
    pub replication_key_label: Option<String>,
    /// The tokens. Requests go to whichever does best; one that is sick is left out.
    pub replica: Vec<Spanned<ReplicaConfig>>,
}

/// One token that holds a full copy of the keys.
#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct ReplicaConfig {
    /// What operators and metrics call it, the same on every frontend, and no other's in any shard. Default: the token's label or serial.
    pub name: Option<String>,
    /// The vendor's library.
    pub module: Spanned<PathBuf>,
    /// The token's label. Slots have no fixed numbers, so they cannot be named.
    pub token_label: Option<String>,
    /// The token's serial number, if two have the same label.
    pub token_serial: Option<String>,
    /// A file that holds the user PIN and nothing else.
    pub pin_file: Option<PathBuf>,
    /// An environment variable that holds the user PIN.
    pub pin_env: Option<String>,
    /// What kind of HSM it is, as in docs/hsm.md. Default: what the library calls itself decides.
    pub profile: Option<ProfileName>,
    /// Sessions for requests. Default: 1 for SoftHSM, which has one lock around everything, else 8.
    pub sessions: Option<Spanned<usize>>,
    /// Environment variables that the vendor's library reads, such as SOFTHSM2_CONF. With isolation "thread", ekm starts itself anew
    /// with them.
    #[serde(default)]
    pub environment: BTreeMap<String, String>,
}

/// In which process the vendors' libraries run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Isolation {
    /// In a worker process for each replica: a call that hangs, or a library that crashes, costs that process and no request.
    #[default]
    Process,
    /// In this one. A little faster, and a library that crashes takes everything with it.
    Thread,
}

impl ShardConfig {
    /// After how long a call hangs.
    pub fn hang_after(&self) -> Duration {
        let chosen = self.hang_ms.as_ref().map(|hang_ms| *hang_ms.get_ref());
        Duration::from_millis(chosen.unwrap_or_else(|| 1000.max(2 * self.deadline_ms.get_ref())))
    }

    /// The libraries, for messages.
    pub fn modules(&self) -> String {
        let modules = self.replica.iter().map(|replica| replica.get_ref().module.get_ref().display().to_string());
        modules.collect::<Vec<_>>().join(", ")
    }
}

impl ReplicaConfig {
    /// Its name.
    pub fn name(&self) -> &str {
        let token = self.token_label.as_deref().or(self.token_serial.as_deref());
        self.name.as_deref().or(token).unwrap_or_default()
    }
}

fn default_queue_length() -> usize {
    256
}

fn default_deadline_ms() -> Spanned<u64> {
    Spanned::new(0..0, 60)
}

/// Every shard for itself, and what they have to share: names, and in one process the libraries.
pub(super) fn check(config: &Config) -> Result<(), Finding> {
    let (mut seen, mut audit_files) = (Seen::default(), BTreeSet::from([&config.audit.file]));
    if config.audit.queue_length == 0 {
        return finding(0..0, "a queue_length is 0, so nothing could ever wait", "leave it out for the default");
    }
    let mut names = BTreeSet::new();
    for spanned in &config.shards {
        let (span, shard) = (spanned.span(), spanned.get_ref());
        if !names.insert(&shard.name) {
            let problem = format!("shard {} is there twice", shard.name);
            return finding(span, problem, "give each [[shard]] a name of its own");
        }
        if shard.audit_file.as_ref().is_some_and(|file| !audit_files.insert(file)) {
            return finding(span, "this audit_file is another log's already", "give each shard a file of its own");
        }
        check_times(config, shard)?;
        check_replicas(shard, spanned, &mut seen)?;
    }
    Ok(())
}

/// `request deadline > HSM deadline < hang`.
fn check_times(config: &Config, shard: &ShardConfig) -> Result<(), Finding> {
    let (deadline, request) = (&shard.deadline_ms, config.limits.request_deadline_ms.get_ref());
    if deadline.get_ref() >= request {
        return finding(
            deadline.span(),
            format!("a shard's deadline_ms must be shorter than limits.request_deadline_ms, which is {request}"),
            "an operation that takes the request's whole time leaves none for the answer; write less here, such as 60",
        );
    }
    match &shard.hang_ms {
        Some(hang_ms) if hang_ms.get_ref() <= deadline.get_ref() => finding(
            hang_ms.span(),
            format!("hang_ms must be longer than deadline_ms, which is {}", deadline.get_ref()),
            "leave it out for 1000: an HSM that is merely slow is not to lose its worker process",
        ),
        _ => Ok(()),
    }
}

/// What no two replicas may share.
#[derive(Default)]
struct Seen<'a> {
    names: BTreeSet<&'a str>,
    in_this_process: BTreeSet<&'a PathBuf>,
}

fn check_replicas<'a>(
    shard: &'a ShardConfig,
    spanned: &Spanned<ShardConfig>,
    seen: &mut Seen<'a>,
) -> Result<(), Finding> {
    if shard.queue_length == 0 {
        let problem = "a queue_length is 0, so nothing could ever wait";
        return finding(spanned.span(), problem, "leave it out for the default");
    }
    if let Some(copies) = &shard.copies
        && !(1..=shard.replica.len()).contains(copies.get_ref())
    {
        let problem = format!("copies must be 1 to the number of replicas, which is {}", shard.replica.len());
        return finding(copies.span(), problem, "no key could ever be made; leave it out for 2");
    }
    for replica in &shard.replica {
        check_replica(replica.get_ref())?;
        let (name, module) = (replica.get_ref().name(), replica.get_ref().module.get_ref());
        if name.is_empty() || !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte)) {
            return finding(
                replica.span(),
                format!("'{name}' is no name for a replica"),
                "write a name of A-Z a-z 0-9 - _ .",
            );
        }
        if !seen.names.insert(name) {
            return finding(
                replica.span(),
                format!("replica {name} is there twice"),
                "give each replica a name of its own",
            );
        }
        if shard.isolation == Isolation::Thread && !seen.in_this_process.insert(module) {
            return finding(
                replica.get_ref().module.span(),
                format!("with isolation \"thread\", {} is there twice", module.display()),
                "a library is initialised once in a process: leave isolation out, so that each replica has a process of its own",
            );
        }
    }
    match shard.replica.len() {
        1..=64 => Ok(()),
        0 => finding(spanned.span(), "this shard has no replica", "write a [[shard.replica]] table for each token"),
        _ => finding(spanned.span(), "this shard has more than 64 replicas", "divide them among several shards"),
    }
}

fn check_replica(replica: &ReplicaConfig) -> Result<(), Finding> {
    let span = replica.module.span();
    if replica.token_label.is_some() == replica.token_serial.is_some() {
        return finding(span, "a replica needs either token_label or token_serial", "write exactly one of the two");
    }
    if replica.pin_file.is_some() == replica.pin_env.is_some() {
        return finding(span, "a replica needs either pin_file or pin_env", "write exactly one of the two");
    }
    if let Some(sessions) = &replica.sessions
        && !(1..=256).contains(sessions.get_ref())
    {
        return finding(sessions.span(), "sessions must be 1 to 256", "leave it out for a default that fits the token");
    }
    Ok(())
}
