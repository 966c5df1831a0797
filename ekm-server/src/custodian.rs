//! From a configuration to the means to use keys: the HSM and the key file, with their secrets.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use ekm_core::custody::Custodian;
use ekm_core::hsm::{Replica, ReplicaOptions, Token, TokenError, TokenOptions, TokenSelector};
use ekm_core::software::KeyFile;
use secrecy::{ExposeSecret, SecretString};
use zeroize::Zeroizing;

use crate::config::{Config, Hsm};
use crate::start_error::StartError;

/// Opens what the configuration gives us to use keys with. The HSM's part blocks, so it runs on a thread of its own.
pub async fn open(config: &Config) -> Result<Custodian, StartError> {
    let key_file = match &config.software {
        Some(software) => {
            let text = read_secret(&software.get_ref().key_file)?;
            Some(KeyFile::parse(text.expose_secret())?)
        }
        None => None,
    };
    let replica = match &config.hsm {
        Some(hsm) => {
            let (token, options) = (token_options(hsm)?, replica_options(hsm));
            let started = tokio::task::spawn_blocking(move || {
                let token = Arc::new(Token::open(token)?);
                Replica::start(token, options).map_err(TokenError::from)
            });
            let started = started.await.map_err(|_| TokenError::SelfTest("the PKCS#11 module panicked".into()))?;
            Some(started?)
        }
        None => None,
    };
    Ok(Custodian { key_file, replica })
}

fn token_options(hsm: &Hsm) -> Result<TokenOptions, StartError> {
    let pin = match (&hsm.pin_file, &hsm.pin_env) {
        (Some(file), _) => read_secret(file)?,
        (None, name) => {
            let name = name.as_deref().unwrap_or_default();
            let problem = || "this environment variable is named in hsm.pin_env and not set".to_owned();
            let value = std::env::var(name);
            value.map_err(|_| StartError::SecretFile { file: name.into(), problem: problem() })?.into()
        }
    };
    let label = hsm.token_label.clone().map(TokenSelector::Label);
    let selector = label.or_else(|| hsm.token_serial.clone().map(TokenSelector::Serial));
    let selector = selector.unwrap_or_else(|| TokenSelector::Label(String::new()));
    Ok(TokenOptions { module: hsm.module.get_ref().clone(), selector, pin })
}

fn replica_options(hsm: &Hsm) -> ReplicaOptions {
    ReplicaOptions {
        sessions: hsm.sessions.as_ref().map(|sessions| *sessions.get_ref()),
        queue_length: hsm.queue_length,
        deadline: Duration::from_millis(*hsm.deadline_ms.get_ref()),
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
