//! Making keys, and looking after them: on every replica of their shard, and from one shard to another.

use std::sync::Arc;

use uuid::Uuid;
use zeroize::Zeroizing;

use super::{CHECK_TEXT, Custodian, material_context, own_patience, seal};
use crate::algorithm::{Algorithm, SigningAlgorithm};
use crate::blob::{self, Format, Sealed, VersionId};
use crate::catalog::{Custody, RootRecord, VersionRecord};
use crate::error::Error;
use crate::hsm::{Made, MakeError, Proof, Replica, Shard, Timing, TokenError, TokenKey};
use crate::secret::Plaintext;
use crate::shard_name::ShardName;
use crate::signing_key::SigningFailed;
use crate::software::{SoftwareError, random};
use crate::version::{KeyVersion, Unusable};

/// The root key's CKA_LABEL.
const ROOT_LABEL: &str = "ekm root key";

/// What is wrong with a key on one replica of the HSM.
#[derive(Clone, Debug)]
pub struct Finding {
    /// The replica's name.
    pub replica: String,
    /// What is wrong.
    pub problem: String,
    /// It was there, and is no more: the replica has been given the key.
    pub repaired: bool,
}

/// Why a new key could not be made.
#[derive(Debug, thiserror::Error)]
pub enum GenerateError {
    /// Custody `hsm` or `hsm-wrapped` without an HSM, or `software` without a key file.
    #[error("custody '{}' is not configured here", .0.name())]
    NotConfigured(Custody),
    /// It belongs on HSMs that this frontend does not have.
    #[error("the shard '{0}' is not configured on this frontend; ask one that has it")]
    NoShard(ShardName),
    /// Custody `hsm-wrapped`, and the catalog has no root key for this shard.
    #[error("custody 'hsm-wrapped' needs a root key, and the shard '{0}' has none; run 'ekm catalog migrate'")]
    NoRootKey(ShardName),
    /// The HSM is away.
    #[error("{0}")]
    Hsm(Error),
    /// The token would not make it, or made something that is no good.
    #[error(transparent)]
    Token(#[from] TokenError),
    /// The key file's side, memory, or random numbers failed.
    #[error(transparent)]
    Software(#[from] SoftwareError),
    /// It would be lost with too few HSMs.
    #[error(
        "only {copies} replicas hold the new key, and {wanted} have to (shard.copies); bring the others back ('ekm hsm status'), or \
         look at what copies keys between them"
    )]
    TooFewCopies {
        /// So many hold it.
        copies: usize,
        /// So many have to.
        wanted: usize,
    },
    /// This process could not make a key pair.
    #[error(transparent)]
    Signing(#[from] SigningFailed),
    /// The new key does not do its first wrap, unwrap or signature.
    #[error("the new key does not work: {0}")]
    FirstUse(String),
    /// It cannot go to another shard.
    #[error("{key} is not on enough tokens of the shard '{to}', and could not be given to them: {problem}")]
    NotCarried {
        /// The version.
        key: VersionId,
        /// The other shard.
        to: ShardName,
        /// Why.
        problem: String,
    },
}

impl Custodian {
    /// Makes a shard's root key and proves that it works. It can neither leave the tokens in the clear nor be used by any caller.
    pub async fn generate_root(&self, shard: &ShardName) -> Result<RootRecord, GenerateError> {
        let root = VersionId { key: Uuid::new_v4(), number: 1 };
        let shard = self.hsm_for(Custody::HsmWrapped, shard)?;
        let made = make(shard, root, ROOT_LABEL, None, async |made| {
            let wrapped_material = made.wrapped.clone();
            Ok(RootRecord { id: root.key, wrapped_material, check_blob: first_wrap(shard, root).await? })
        });
        let made = made.await?;
        shard.set_root(root);
        Ok(made)
    }

    /// Makes the material of a new key version and its check blob, and proves both. On a token, what does not work is taken away again.
    pub async fn generate(
        &self,
        algorithm: Algorithm,
        custody: Custody,
        shard: &ShardName,
        id: VersionId,
    ) -> Result<VersionRecord, GenerateError> {
        if custody == Custody::Hsm {
            return self.generate_on_tokens(algorithm, shard, id).await;
        }
        let shard = self.keeper(custody, shard)?;
        let record = match algorithm {
            Algorithm::Symmetric => {
                let material = Zeroizing::new(random()?);
                let wrapped = self.wrap_material(custody, &shard, id, &material[..]).await?;
                in_process_record(custody, shard, id, &material, wrapped)?
            }
            // What takes an HSM seconds with RSA, takes this process seconds of one thread.
            Algorithm::Signing(algorithm) => {
                let (pkcs8, public_key) = self.signing.generate(algorithm).await?;
                let wrapped_material = Some(self.wrap_material(custody, &shard, id, &pkcs8).await?);
                let (check_blob, public_key) = (Vec::new(), Some(Arc::new(public_key)));
                VersionRecord { id, custody, shard, wrapped_material, check_blob, public_key }
            }
        };
        self.first_use(record).await
    }

    async fn generate_on_tokens(
        &self,
        algorithm: Algorithm,
        shard: &ShardName,
        id: VersionId,
    ) -> Result<VersionRecord, GenerateError> {
        let custody = Custody::Hsm;
        let hsm = self.hsm_for(custody, shard)?;
        make(hsm, id, &object_label(id), algorithm.signing(), async |made| {
            let (wrapped_material, public_key) = (made.wrapped.clone(), made.public_key.clone());
            let check_blob = match &public_key {
                None => first_wrap(hsm, id).await?,
                Some(public) => {
                    let key = TokenKey { id, proof: Proof::PublicKey(Arc::clone(public)) };
                    hsm.require_copies(&key).await.map_err(|error| not_made(id, error))?;
                    Vec::new()
                }
            };
            let shard = shard.clone();
            self.first_use(VersionRecord { id, custody, shard, wrapped_material, check_blob, public_key }).await
        })
        .await
    }

    /// The shard whose root key wraps material of a custody, or none that matters for the key file; looked at before anything is made.
    fn keeper(&self, custody: Custody, shard: &ShardName) -> Result<ShardName, GenerateError> {
        if custody == Custody::Software {
            self.key_file.as_ref().ok_or(GenerateError::NotConfigured(custody))?;
            return Ok(ShardName::default());
        }
        self.hsm_for(custody, shard)?.root().ok_or_else(|| GenerateError::NoRootKey(shard.clone()))?;
        Ok(shard.clone())
    }

    async fn wrap_material(
        &self,
        custody: Custody,
        shard: &ShardName,
        id: VersionId,
        material: &[u8],
    ) -> Result<Vec<u8>, GenerateError> {
        match (custody, &self.key_file) {
            (Custody::Software, Some(file)) => Ok(file.wrap_material(id, material)?),
            (Custody::Software, None) => Err(GenerateError::NotConfigured(custody)),
            _ => Ok(self.wrap_secret(shard, &material_context(id), material).await?),
        }
    }

    /// The same version in another shard: its key is given to the replicas there, or its material wrapped by the root key there. Where it
    /// was it stays, since frontends that have not heard of this use it there.
    pub async fn carry(&self, record: VersionRecord, to: &ShardName) -> Result<VersionRecord, GenerateError> {
        let target = self.hsm_for(record.custody, to)?;
        let id = record.id;
        let carried = match record.custody {
            Custody::Software => record,
            Custody::HsmWrapped => {
                target.root().ok_or_else(|| GenerateError::NoRootKey(to.clone()))?;
                let (context, wrapped) = (material_context(id), record.wrapped_material.unwrap_or_default());
                let material = self.unwrap_secret(&record.shard, &context, &wrapped).await?;
                let wrapped_material = Some(self.wrap_secret(to, &context, material.as_bytes()).await?);
                VersionRecord { shard: to.clone(), wrapped_material, ..record }
            }
            Custody::Hsm => {
                let version = self.version(&record);
                for replica in target.replicas() {
                    if target.check_on(replica, &version.token_key()).await.is_err() {
                        // What goes wrong shows in the count of copies.
                        let given = give(target, replica, &version).await;
                        if let Err(problem) = given.map_err(|error| not_made(id, error)) {
                            tracing::warn!(replica = replica.name(), key = %id, %problem, "a moved key is not on this replica");
                        }
                    }
                }
                let copies = target.require_copies(&version.token_key()).await;
                copies.map_err(|error| GenerateError::NotCarried {
                    key: id,
                    to: to.clone(),
                    problem: not_made(id, error).to_string(),
                })?;
                VersionRecord { shard: to.clone(), ..record }
            }
        };
        self.first_use(carried).await
    }

    /// Looks at a key version on the replicas of its shard that are `wanted`; with `repair`, gives the key to those that do not hold it, as
    /// far as the catalog has it.
    pub async fn audit(&self, version: &KeyVersion, repair: bool, wanted: impl Fn(&Replica) -> bool) -> Vec<Finding> {
        let (Some(shard), mut findings) = (self.shard(&version.shard), Vec::new()) else { return Vec::new() };
        for replica in shard.replicas().iter().filter(|replica| wanted(replica)) {
            let Err(problem) = shard.audit_key(replica, &version.token_key()).await else { continue };
            let repaired = repair && give(shard, replica, version).await.is_ok();
            findings.push(Finding { replica: replica.name().into(), problem, repaired });
        }
        findings
    }

    /// Gives replicas what they were found to lack, as far as the catalog holds it. `version` finds a key version of the catalog.
    pub async fn restore_lacking<'a>(&self, version: impl Fn(VersionId) -> Option<&'a KeyVersion>) {
        for shard in &self.shards {
            for replica in shard.replicas() {
                for id in replica.lacking() {
                    let Some(version) = version(id).filter(|version| !version.wrapped_material.is_empty()) else {
                        continue;
                    };
                    let name = replica.name();
                    match give(shard, replica, version).await {
                        Ok(()) => {
                            tracing::info!(replica = name, key = %id, "a replica has been given a key that it lacked");
                        }
                        Err(error) => {
                            tracing::warn!(replica = name, key = %id, ?error, "a replica still lacks a key");
                        }
                    }
                }
            }
        }
    }

    /// Takes a destroyed version's key off the tokens.
    pub async fn destroy(&self, shard: &ShardName, id: VersionId) -> Result<(), GenerateError> {
        self.hsm_for(Custody::Hsm, shard)?.discard_key(id).await.map_err(|error| not_made(id, error))
    }

    /// What goes into the catalog has been opened once from what will be there.
    async fn first_use(&self, record: VersionRecord) -> Result<VersionRecord, GenerateError> {
        self.test(&self.version(&record), own_patience()).await?;
        Ok(record)
    }

    fn hsm_for(&self, custody: Custody, shard: &ShardName) -> Result<&Shard, GenerateError> {
        self.shard(shard).ok_or_else(|| match self.shards[..] {
            [] => GenerateError::NotConfigured(custody),
            _ => GenerateError::NoShard(shard.clone()),
        })
    }
}

impl GenerateError {
    /// Whether trying again does not help before somebody has acted.
    pub fn is_lasting(&self) -> bool {
        matches!(self, Self::NotConfigured(_) | Self::NoShard(_) | Self::NoRootKey(_) | Self::NotCarried { .. })
    }
}

impl From<Unusable> for GenerateError {
    fn from(unusable: Unusable) -> Self {
        match unusable {
            Unusable::Passing(error) => Self::Hsm(error),
            Unusable::Lasting(reason) => Self::FirstUse(reason),
        }
    }
}

/// Makes a key on the tokens, and has it proven; takes it away again if that fails.
async fn make<T>(
    shard: &Shard,
    id: VersionId,
    label: &str,
    signs: Option<SigningAlgorithm>,
    prove: impl AsyncFnOnce(&Made) -> Result<T, GenerateError>,
) -> Result<T, GenerateError> {
    let made = shard.generate_key(id, label, signs).await.map_err(|error| not_made(id, error))?;
    let proven = prove(&made).await;
    if proven.is_err()
        && let Err(error) = shard.discard_made(&made).await
    {
        tracing::error!(?error, key = %id, "a key that does not work stays on a token");
    }
    proven
}

/// A new key's check blob, once enough replicas have shown by it that they hold the same key.
async fn first_wrap(shard: &Shard, id: VersionId) -> Result<Vec<u8>, GenerateError> {
    let (key, aad) = (TokenKey { id, proof: Proof::New }, blob::bound_aad(Format::Gcm, id, b""));
    let (text, mut timing) = (Plaintext::new(CHECK_TEXT.to_vec()), Timing::default());
    let sealed = shard.wrap(key, aad, text, false, own_patience(), &mut timing).await;
    let sealed = sealed.map_err(|error| GenerateError::FirstUse(error.to_string()))?;
    let check_blob = blob::encode(id, &Sealed::Gcm(sealed));
    let key = TokenKey { id, proof: Proof::CheckBlob(check_blob.as_slice().into()) };
    shard.require_copies(&key).await.map_err(|error| not_made(id, error))?;
    Ok(check_blob)
}

/// Gives a replica a key that it does not hold, if the catalog has it wrapped by the replication key.
async fn give(shard: &Shard, replica: &Replica, version: &KeyVersion) -> Result<(), MakeError> {
    if version.wrapped_material.is_empty() {
        return Err(MakeError::NoReplicationKey);
    }
    let label = object_label(version.id);
    shard.restore_key(replica, version.token_key(), &label, &version.wrapped_material).await
}

/// A key version's CKA_LABEL.
fn object_label(id: VersionId) -> String {
    format!("ekm {id}")
}

fn not_made(id: VersionId, error: MakeError) -> GenerateError {
    match error {
        MakeError::Exists => GenerateError::Token(TokenError::KeyExists(id)),
        MakeError::TooFewCopies { copies, wanted } => GenerateError::TooFewCopies { copies, wanted },
        MakeError::NoReplicationKey => GenerateError::FirstUse("there is no replication key".into()),
        MakeError::Failed(error) => GenerateError::Hsm(error),
    }
}

pub(super) fn in_process_record(
    custody: Custody,
    shard: ShardName,
    id: VersionId,
    material: &[u8; 32],
    wrapped: Vec<u8>,
) -> Result<VersionRecord, SoftwareError> {
    let format = custody.format();
    let sealed = seal(format, material, &blob::bound_aad(format, id, b""), CHECK_TEXT)?;
    let (wrapped_material, check_blob) = (Some(wrapped), blob::encode(id, &sealed));
    Ok(VersionRecord { id, custody, shard, wrapped_material, check_blob, public_key: None })
}
