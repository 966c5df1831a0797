//! One version of a key: what the catalog says about it, and how far it has proven that it works.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use crate::blob::VersionId;
use crate::catalog::{Custody, VersionRecord};
use crate::error::Error;
use crate::hsm::{Proof, TokenKey};
use crate::locked::LockedKey;
use crate::nonces::NonceCount;
use crate::public_key::PublicKey;
use crate::shard_name::ShardName;
use crate::signing_key::SigningKey;

/// How soon a version that failed is tried again.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// One version of a key. It begins unproven, without any I/O: whoever first uses it, or [`crate::custody::Custodian::prove`], opens its
/// material and runs its known-answer test.
pub struct KeyVersion {
    /// Key and number.
    pub id: VersionId,
    /// How its material is kept.
    pub custody: Custody,
    /// On which HSMs, or under whose root key.
    pub shard: ShardName,
    /// A blob with a known content: the known answer. Empty only while the version is being made.
    pub(crate) check_blob: Arc<[u8]>,
    /// Of a signing key: its public half, which is its known answer.
    pub(crate) public_key: Option<Arc<PublicKey>>,
    /// The material under the key file or the root key.
    pub(crate) wrapped_material: Box<[u8]>,
    /// Set when the version has been proven.
    material: OnceLock<Material>,
    /// Whether `failure` is set: read at every use.
    failed: AtomicBool,
    failure: Mutex<Option<Box<Failure>>>,
    /// Its wraps, if its nonces are random and short.
    pub(crate) nonces: NonceCount,
    /// Held by the one who proves it.
    pub(crate) proving: tokio::sync::Mutex<()>,
}

/// The way to use a proven key version.
pub enum Material {
    /// On the token: every operation is an HSM operation.
    OnToken,
    /// In locked memory of this process. The custody says with which cipher it is used.
    InProcess(LockedKey),
    /// A private key in this process.
    Signs(Arc<SigningKey>),
}

struct Failure {
    reason: String,
    at: Instant,
}

/// How far a version has proven that it works.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VersionState {
    /// Not tried yet, or the HSM was away whenever it was tried.
    Unproven,
    /// Its material opened, and its known-answer test passed.
    Proven,
    /// It cannot be served. Tried again with its next use, at most once a second.
    Failed {
        /// For the operator.
        reason: String,
    },
}

/// Why a key, or a secret under the root key, cannot be used now.
#[derive(Debug, thiserror::Error)]
pub enum Unusable {
    /// It is this key: not on this token, or not what it should be. Trying again does not help before somebody has acted.
    #[error("{0}")]
    Lasting(String),
    /// The HSM is away, slow, or has no room: trying again may help.
    #[error("{0}")]
    Passing(Error),
}

impl From<Unusable> for Error {
    fn from(unusable: Unusable) -> Self {
        match unusable {
            Unusable::Lasting(_) => Self::KeyUnavailable,
            Unusable::Passing(error) => error,
        }
    }
}

impl KeyVersion {
    /// A version as the catalog has it, unproven.
    pub fn new(record: VersionRecord) -> Self {
        Self {
            id: record.id,
            custody: record.custody,
            shard: record.shard,
            check_blob: record.check_blob.into(),
            public_key: record.public_key,
            wrapped_material: record.wrapped_material.unwrap_or_default().into(),
            material: OnceLock::new(),
            failed: AtomicBool::new(false),
            failure: Mutex::new(None),
            nonces: NonceCount::default(),
            proving: tokio::sync::Mutex::new(()),
        }
    }

    /// Whether it was made from this row, so that what it has proven holds for the row.
    pub fn is_of(&self, record: &VersionRecord) -> bool {
        self.id == record.id
            && self.custody == record.custody
            && self.shard == record.shard
            && *self.check_blob == record.check_blob[..]
            && self.public_key == record.public_key
            && *self.wrapped_material == *record.wrapped_material.as_deref().unwrap_or_default()
    }

    /// How far it has proven that it works. Cheap, unless it failed.
    pub fn state(&self) -> VersionState {
        if self.failed.load(Ordering::Acquire)
            && let Some(failure) = &*self.failure()
        {
            return VersionState::Failed { reason: failure.reason.clone() };
        }
        if self.material.get().is_some() { VersionState::Proven } else { VersionState::Unproven }
    }

    /// The way to use it, if it is proven and has not failed since.
    pub(crate) fn proven(&self) -> Option<&Material> {
        self.material.get().filter(|_| !self.failed.load(Ordering::Acquire))
    }

    /// Its key on the token.
    pub(crate) fn token_key(&self) -> TokenKey {
        match &self.public_key {
            None => TokenKey { id: self.id, proof: Proof::CheckBlob(Arc::clone(&self.check_blob)) },
            Some(public) => TokenKey { id: self.id, proof: Proof::PublicKey(Arc::clone(public)) },
        }
    }

    /// Of a signing key: its public half.
    pub fn public_key(&self) -> Option<&Arc<PublicKey>> {
        self.public_key.as_ref()
    }

    /// Takes over what a passed test has opened.
    pub(crate) fn set_proven(&self, material: Material) -> &Material {
        let mut failure = self.failure();
        *failure = None;
        self.failed.store(false, Ordering::Release);
        self.material.get_or_init(|| material)
    }

    /// Remembers that it cannot be used, and tells the log what is new about that.
    pub(crate) fn set_failed(&self, reason: &str) {
        let mut failure = self.failure();
        if failure.as_ref().is_none_or(|known| known.reason != reason) {
            tracing::error!(key = %self.id, custody = self.custody.name(), cause = reason, "key version unavailable");
        }
        *failure = Some(Box::new(Failure { reason: reason.into(), at: Instant::now() }));
        self.failed.store(true, Ordering::Release);
    }

    /// Whether it failed so lately that trying again would be a waste.
    pub(crate) fn failed_lately(&self) -> bool {
        self.failure().as_ref().is_some_and(|failure| failure.at.elapsed() < RETRY_INTERVAL)
    }

    fn failure(&self) -> MutexGuard<'_, Option<Box<Failure>>> {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
