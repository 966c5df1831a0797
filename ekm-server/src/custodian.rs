//! From a configuration to the means to use keys: the HSM and the key file, with their secrets.

use std::path::Path;
use std::thread;
use std::time::Duration;

use ekm_core::catalog::{Custody, VersionRecord};
use ekm_core::custody::{self, Custodian};
use ekm_core::hsm::{Module, Replica, ReplicaOptions, TokenError, TokenOptions, TokenSelector};
use ekm_core::software::KeyFile;
use secrecy::{ExposeSecret, SecretString};
use tokio::sync::oneshot;
use zeroize::Zeroizing;

use crate::config::{Config, Hsm};
use crate::start_error::StartError;

/// How long a start waits for the HSM before it serves without.
const START_PATIENCE: Duration = Duration::from_secs(10);
/// Between two attempts to open an HSM that is away.
const RETRY_INTERVAL: Duration = Duration::from_secs(3);

/// Opens what the configuration gives us to use keys with; an HSM that is away is an error. For commands that make keys.
pub async fn open(config: &Config) -> Result<Custodian, StartError> {
    let key_file = key_file(config)?;
    let hsm = match &config.hsm {
        Some(hsm) => {
            let mut opening = Opening::new(hsm)?;
            custody::Hsm::Here(finished(opening.attempt().await)?)
        }
        None => custody::Hsm::NotConfigured,
    };
    Ok(Custodian::new(key_file, hsm))
}

/// As [`open`], but an HSM that is away does not stop the start: [`AwayHsm::wait`] brings it in when it comes. A configuration that is
/// wrong does, and a refused PIN.
pub async fn open_for_service(config: &Config) -> Result<(Custodian, Option<AwayHsm>), StartError> {
    let key_file = key_file(config)?;
    let Some(hsm) = &config.hsm else { return Ok((Custodian::new(key_file, custody::Hsm::NotConfigured), None)) };
    let mut opening = Opening::new(hsm)?;
    let reason = match tokio::time::timeout(START_PATIENCE, opening.attempt()).await {
        Ok(outcome) => match finished(outcome) {
            Ok(replica) => return Ok((Custodian::new(key_file, custody::Hsm::Here(replica)), None)),
            Err(error) if error.is_away() => format!("{error} [{}]", error.code()),
            Err(error) => return Err(error.into()),
        },
        Err(_) => format!("opening it has taken longer than {} s and goes on", START_PATIENCE.as_secs()),
    };
    tracing::error!(reason, "the HSM is away; serving without it until it comes");
    Ok((Custodian::new(key_file, custody::Hsm::Away { reason }), Some(AwayHsm { opening })))
}

/// An HSM that was away when the service started.
pub struct AwayHsm {
    opening: Opening,
}

impl AwayHsm {
    /// Tries again every few seconds until the HSM is here, and gives it to the custodian. Ends without it if the HSM refuses the PIN,
    /// because the next refusal could lock the token.
    pub async fn wait(mut self, custodian: &Custodian) {
        loop {
            // The attempt that the start did not wait for may still be under way.
            match finished(self.opening.attempt().await) {
                Ok(replica) => {
                    tracing::info!(token = replica.token().label(), "the HSM has come");
                    return custodian.set_replica(replica);
                }
                Err(error) => {
                    let code = error.code();
                    custodian.set_hsm_away(format!("{error} [{code}]"));
                    if matches!(error, TokenError::Pin { .. }) {
                        tracing::error!(code, %error, "the HSM is not tried again; correct the PIN and restart");
                        return;
                    }
                    tracing::warn!(code, %error, "the HSM is still away");
                }
            }
            tokio::time::sleep(RETRY_INTERVAL).await;
        }
    }
}

/// The library, loaded once, and what it takes to open the token behind it.
struct Opening {
    attempt: Option<oneshot::Receiver<Attempt>>,
    /// `None` while an attempt has it.
    parts: Option<Parts>,
}

struct Parts {
    module: Module,
    token: TokenOptions,
    options: ReplicaOptions,
}

type Attempt = (Parts, Result<Replica, TokenError>);

impl Opening {
    fn new(hsm: &Hsm) -> Result<Self, StartError> {
        let (token, options) = (token_options(hsm)?, replica_options(hsm));
        let module = Module::load(hsm.module.get_ref())?;
        Ok(Self { attempt: None, parts: Some(Parts { module, token, options }) })
    }

    /// One attempt, on a thread of its own: it blocks, perhaps for ever, and must not hold up the end of the process. Whoever gives up
    /// waiting can ask again, for the same attempt. `None` if it panicked, and ever after.
    async fn attempt(&mut self) -> Option<Result<Replica, TokenError>> {
        if let Some(parts) = self.parts.take() {
            let (answer, attempt) = oneshot::channel();
            thread::spawn(move || {
                let outcome = Replica::open(&parts.module, &parts.token, parts.options);
                let _ = answer.send((parts, outcome));
            });
            self.attempt = Some(attempt);
        }
        let finished = self.attempt.as_mut()?.await;
        self.attempt = None;
        let (parts, outcome) = finished.ok()?;
        self.parts = Some(parts);
        Some(outcome)
    }
}

fn finished(attempt: Option<Result<Replica, TokenError>>) -> Result<Replica, TokenError> {
    attempt.unwrap_or_else(|| Err(TokenError::SelfTest("the PKCS#11 module panicked".into())))
}

fn key_file(config: &Config) -> Result<Option<KeyFile>, StartError> {
    let Some(software) = &config.software else { return Ok(None) };
    let text = read_secret(&software.get_ref().key_file)?;
    Ok(Some(KeyFile::parse(text.expose_secret())?))
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
    Ok(TokenOptions { selector, pin, profile: hsm.profile })
}

fn replica_options(hsm: &Hsm) -> ReplicaOptions {
    ReplicaOptions {
        sessions: hsm.sessions.as_ref().map(|sessions| *sessions.get_ref()),
        queue_length: hsm.queue_length,
        deadline: Duration::from_millis(*hsm.deadline_ms.get_ref()),
    }
}

/// Takes the objects of versions that the catalog does not need off the token: of destroyed ones after it says that they are, since an
/// object that stays by mistake can be removed later, and one that is gone by mistake cannot be brought back; and of new ones that never
/// came into it.
pub async fn take_from_token(custodian: &Custodian, versions: impl IntoIterator<Item = VersionRecord>) {
    for version in versions.into_iter().filter(|version| version.custody == Custody::Hsm) {
        if let Err(error) = custodian.destroy(version.id).await {
            tracing::error!(%error, key = %version.id, "an object that the catalog does not need stays on the token; remove it by hand");
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
