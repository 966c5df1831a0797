//! Custody: where a key's material lives, and how it is used there. The one place that chooses between them.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::blob::{self, Sealed, VersionId};
use crate::catalog::{Custody, VersionRecord};
use crate::error::Error;
use crate::hsm::{Replica, Timing};
use crate::secret::Plaintext;
use crate::snapshot::{KeyVersion, Material};
use crate::software::{KeyFile, SoftwareError};

/// What is wrapped into every key version's check blob, without AAD: the known answer of its known-answer test.
pub(crate) const CHECK_TEXT: &[u8; 32] = b"external key manager, check blob";

/// How long making or checking one key may take, outside any request.
const PATIENCE: Duration = Duration::from_secs(10);

/// The means to use keys, one for each custody that this process is configured for.
pub struct Custodian {
    /// Custody `software`.
    pub key_file: Option<KeyFile>,
    /// Custody `hsm`.
    pub replica: Option<Replica>,
}

/// Why a new key version could not be made.
#[derive(Debug, thiserror::Error)]
pub enum GenerateError {
    /// Custody `hsm` without an HSM, or `software` without a key file.
    #[error("custody '{}' is not configured here", .0.name())]
    NotConfigured(Custody),
    /// The token would not make it, or made something that is no good.
    #[error(transparent)]
    Token(#[from] crate::hsm::TokenError),
    /// The key file's side failed.
    #[error(transparent)]
    Software(#[from] SoftwareError),
    /// The new key does not do its first wrap or unwrap.
    #[error("the new key does not work: {0}")]
    FirstUse(Error),
}

impl Custodian {
    /// Encrypts under a key version.
    pub async fn wrap(
        &self,
        version: &Arc<KeyVersion>,
        aad: &[u8],
        plaintext: Plaintext,
        deadline: Instant,
        timing: &mut Timing,
    ) -> Result<Sealed, Error> {
        match (&version.material, &self.replica) {
            (Material::OnToken, Some(replica)) => replica.wrap(version, aad, plaintext, deadline, timing).await,
            (Material::InProcess(cipher), _) => cipher
                .wrap(&blob::bound_aad(version.id, aad), plaintext.as_bytes())
                .map_err(|_| Error::Internal("the operating system gives no random numbers")),
            (Material::Unavailable, _) | (Material::OnToken, None) => Err(Error::KeyUnavailable),
        }
    }

    /// Decrypts what [`Self::wrap`] made under the same version.
    pub async fn unwrap(
        &self,
        version: &Arc<KeyVersion>,
        aad: &[u8],
        sealed: Sealed,
        deadline: Instant,
        timing: &mut Timing,
    ) -> Result<Plaintext, Error> {
        match (&version.material, &self.replica) {
            (Material::OnToken, Some(replica)) => replica.unwrap(version, aad, sealed, deadline, timing).await,
            (Material::InProcess(cipher), _) => {
                cipher.unwrap(&blob::bound_aad(version.id, aad), &sealed).ok_or(Error::UnwrapFailed)
            }
            (Material::Unavailable, _) | (Material::OnToken, None) => Err(Error::KeyUnavailable),
        }
    }

    /// Gets a key version of the catalog ready, and runs its known-answer test. What fails becomes
    /// [`Material::Unavailable`], with a line in the log that says why: the other keys are served all the same.
    pub async fn open(&self, record: &VersionRecord) -> Arc<KeyVersion> {
        match self.try_open(record).await {
            Ok(version) => version,
            Err(cause) => {
                tracing::error!(key = %record.id, custody = record.custody.name(), cause, "key version unavailable");
                Arc::new(version(record, Material::Unavailable))
            }
        }
    }

    async fn try_open(&self, record: &VersionRecord) -> Result<Arc<KeyVersion>, String> {
        let material = match (record.custody, &self.key_file, &self.replica) {
            (Custody::Hsm, _, Some(_)) => Material::OnToken,
            (Custody::Software, Some(file), _) => {
                let wrapped = record.wrapped_material.as_deref().unwrap_or_default();
                Material::InProcess(file.open(record.id, wrapped).map_err(|error| error.to_string())?)
            }
            (custody, ..) => return Err(GenerateError::NotConfigured(custody).to_string()),
        };
        let version = Arc::new(version(record, material));
        self.check(&version).await.map_err(|error| error.to_string())?;
        Ok(version)
    }

    /// The known-answer test: the check blob opens to the known text.
    async fn check(&self, version: &Arc<KeyVersion>) -> Result<(), Error> {
        if let (Material::OnToken, Some(replica)) = (&version.material, &self.replica) {
            return replica.check(version, PATIENCE).await;
        }
        let (id, sealed) = blob::parse(&version.check_blob).ok_or(Error::KeyUnavailable)?;
        let opened = self.unwrap(version, b"", sealed, Instant::now() + PATIENCE, &mut Timing::default()).await?;
        if id != version.id || opened.as_bytes() != CHECK_TEXT {
            return Err(Error::KeyUnavailable);
        }
        Ok(())
    }

    /// Makes the material of a new key version and its check blob. On a token, what does not work is taken away again.
    pub async fn generate(&self, custody: Custody, id: VersionId) -> Result<VersionRecord, GenerateError> {
        match (custody, &self.key_file, &self.replica) {
            (Custody::Software, Some(file), _) => {
                let (cipher, wrapped) = file.generate_material(id)?;
                let sealed = cipher.wrap(&blob::bound_aad(id, b""), CHECK_TEXT)?;
                let check_blob = blob::encode(id, &sealed);
                Ok(VersionRecord { id, custody, wrapped_material: Some(wrapped), check_blob })
            }
            (Custody::Hsm, _, Some(replica)) => {
                on_token(replica, move |token| token.generate_key(id, &format!("ekm {id}"))).await?;
                let record = self.first_use(id).await;
                if record.is_err()
                    && let Err(error) = on_token(replica, move |token| token.discard_key(id)).await
                {
                    tracing::error!(%error, key = %id, "a key that does not work stays on the token");
                }
                record.map_err(GenerateError::FirstUse)
            }
            (custody, ..) => Err(GenerateError::NotConfigured(custody)),
        }
    }

    async fn first_use(&self, id: VersionId) -> Result<VersionRecord, Error> {
        let mut record = VersionRecord { id, custody: Custody::Hsm, wrapped_material: None, check_blob: Vec::new() };
        let unproven = Arc::new(version(&record, Material::OnToken));
        let text = Plaintext::new(CHECK_TEXT.to_vec());
        let sealed = self.wrap(&unproven, b"", text, Instant::now() + PATIENCE, &mut Timing::default()).await?;
        record.check_blob = blob::encode(id, &sealed);
        self.check(&Arc::new(version(&record, Material::OnToken))).await?;
        Ok(record)
    }
}

fn version(record: &VersionRecord, material: Material) -> KeyVersion {
    KeyVersion { id: record.id, custody: record.custody, material, check_blob: record.check_blob.clone() }
}

/// Key generation needs a session of its own, and blocks.
async fn on_token(
    replica: &Replica,
    call: impl FnOnce(&crate::hsm::Token) -> Result<(), crate::hsm::TokenError> + Send + 'static,
) -> Result<(), GenerateError> {
    let token = Arc::clone(replica.token());
    let called = tokio::task::spawn_blocking(move || call(&token)).await;
    called.map_err(|_| GenerateError::FirstUse(Error::Internal("a thread panicked")))?.map_err(GenerateError::Token)
}
