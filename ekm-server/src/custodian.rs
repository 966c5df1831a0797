//! From a configuration to the means to use keys: the HSM and the key file, with their secrets.

use std::path::Path;
use std::time::{Duration, Instant};

use ekm_core::catalog::{Custody, VersionRecord};
use ekm_core::custody::Custodian;
use ekm_core::hsm::{Isolation, ReplicaOptions, Shard, ShardOptions, TokenSelector, WorkerCommand};
use ekm_core::software::KeyFile;
use secrecy::{ExposeSecret, SecretString};
use zeroize::Zeroizing;

use crate::config::{self, Config, ReplicaConfig, ShardConfig};
use crate::start_error::StartError;

/// How long a start waits for the HSM before it goes on without.
const START_PATIENCE: Duration = Duration::from_secs(10);

/// Opens what the configuration gives us to use keys with; an HSM that is away is an error. For commands that make keys.
pub async fn open(config: &Config) -> Result<Custodian, StartError> {
    let custodian = open_for_service(config).await?;
    custodian.shards().iter().try_for_each(Shard::one_is_here)?;
    Ok(custodian)
}

/// As [`open`], but an HSM that is away does not stop the start: it is used when it comes. A configuration that is wrong does, and a
/// refused PIN.
pub async fn open_for_service(config: &Config) -> Result<Custodian, StartError> {
    let key_file = key_file(config)?;
    let options = config.shards.iter().map(|shard| shard_options(shard.get_ref())).collect::<Result<Vec<_>, _>>()?;
    let shards: Vec<_> = options.into_iter().map(Shard::start).collect();
    let patience = Instant::now() + START_PATIENCE;
    for shard in &shards {
        shard.opened(patience.saturating_duration_since(Instant::now())).await?;
        if let Some(reason) = shard.away() {
            tracing::error!(shard = %shard.name(), reason, "the HSM is away; serving without it until it comes");
        }
    }
    Ok(Custodian::new(key_file, shards))
}

fn key_file(config: &Config) -> Result<Option<KeyFile>, StartError> {
    let Some(software) = &config.software else { return Ok(None) };
    let text = read_secret(&software.get_ref().key_file)?;
    Ok(Some(KeyFile::parse(text.expose_secret())?))
}

fn shard_options(shard: &ShardConfig) -> Result<ShardOptions, StartError> {
    let replicas = shard.replica.iter().map(|replica| replica_options(shard, replica.get_ref()));
    Ok(ShardOptions {
        name: shard.name.clone(),
        queue_length: shard.queue_length,
        deadline: Duration::from_millis(*shard.deadline_ms.get_ref()),
        copies: shard.copies.as_ref().map_or(shard.replica.len().min(2), |copies| *copies.get_ref()),
        replication: shard.replication_key_label.clone(),
        replicas: replicas.collect::<Result<_, _>>()?,
    })
}

fn replica_options(shard: &ShardConfig, replica: &ReplicaConfig) -> Result<ReplicaOptions, StartError> {
    let label = replica.token_label.clone().map(TokenSelector::Label);
    let selector = label.or_else(|| replica.token_serial.clone().map(TokenSelector::Serial));
    let isolation = match shard.isolation {
        config::Isolation::Thread => Isolation::Thread,
        config::Isolation::Process => Isolation::Process(WorkerCommand {
            // This program, even if its file has been replaced since: a worker of another version might not understand us.
            program: "/proc/self/exe".into(),
            name: "ekm".into(),
            arguments: vec!["hsm-worker".into()],
            environment: replica.environment.clone().into_iter().collect(),
            hang_after: shard.hang_after(),
        }),
    };
    Ok(ReplicaOptions {
        name: replica.name().into(),
        module: replica.module.get_ref().clone(),
        selector: selector.unwrap_or_else(|| TokenSelector::Label(String::new())),
        pin: pin(replica)?,
        profile: replica.profile,
        sessions: replica.sessions.as_ref().map(|sessions| *sessions.get_ref()),
        isolation,
    })
}

fn pin(replica: &ReplicaConfig) -> Result<SecretString, StartError> {
    match (&replica.pin_file, &replica.pin_env) {
        (Some(file), _) => read_secret(file),
        (None, name) => {
            let name = name.as_deref().unwrap_or_default();
            let problem =
                || "this environment variable is named in pin_env of an [[shard.replica]] and not set".to_owned();
            let value = std::env::var(name);
            Ok(value.map_err(|_| StartError::SecretFile { file: name.into(), problem: problem() })?.into())
        }
    }
}

/// Takes the objects of versions that the catalog does not need off the token: of destroyed ones after it says that they are, since an
/// object that stays by mistake can be removed later, and one that is gone by mistake cannot be brought back; and of new ones that never
/// came into it.
pub async fn take_from_token(custodian: &Custodian, versions: impl IntoIterator<Item = VersionRecord>) {
    for version in versions.into_iter().filter(|version| version.custody == Custody::Hsm) {
        if let Err(error) = custodian.destroy(&version.shard, version.id).await {
            tracing::error!(%error, key = %version.id, shard = %version.shard, "an object that the catalog does not need stays on the token; remove it by hand");
        }
    }
}

/// Reads a file that holds one secret and nothing else. A file that everybody may read holds no secret.
pub fn read_secret(file: &Path) -> Result<SecretString, StartError> {
    use std::os::unix::fs::PermissionsExt;
    let refused = |problem: String| StartError::SecretFile { file: file.display().to_string(), problem };
    let metadata = std::fs::metadata(file).map_err(|error| refused(error.to_string()))?;
    if !metadata.is_file() {
        return Err(refused("it is no file".into()));
    }
    let mode = metadata.permissions().mode() & 0o777;
    if mode & 0o007 != 0 {
        return Err(refused(format!("everybody may read it (mode {mode:03o}); run 'chmod 600' on it")));
    }
    let text = std::fs::read_to_string(file).map_err(|error| refused(error.to_string()))?;
    let secret = SecretString::from(text.trim_end_matches(['\r', '\n']));
    drop(Zeroizing::new(text));
    if secret.expose_secret().is_empty() {
        return Err(refused("it is empty".into()));
    }
    Ok(secret)
}
