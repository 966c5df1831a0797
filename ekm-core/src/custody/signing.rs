//! Signatures in this process, for custodies `hsm-wrapped` and `software`. An RSA signature takes milliseconds of a processor, so that they run on
//! threads of their own, as many at a time as there are processors: a burst of them must not stand in the way of everything else.

use std::sync::Arc;
use std::time::Instant;

use tokio::sync::Semaphore;
use zeroize::Zeroizing;

use super::{CHECK_TEXT, lasting};
use crate::algorithm::SigningAlgorithm;
use crate::error::Error;
use crate::public_key::PublicKey;
use crate::secret::Plaintext;
use crate::signing_key::{SigningFailed, SigningKey};
use crate::version::Unusable;

/// How many slow signatures run at a time.
pub(super) struct Signing {
    slots: Arc<Semaphore>,
}

impl Default for Signing {
    fn default() -> Self {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        Self { slots: Arc::new(Semaphore::new(processors)) }
    }
}

impl Signing {
    /// A new key: PKCS#8, and its public half.
    pub(super) async fn generate(
        &self,
        algorithm: SigningAlgorithm,
    ) -> Result<(Zeroizing<Vec<u8>>, PublicKey), SigningFailed> {
        let make = move || {
            let key = SigningKey::generate(algorithm)?;
            Ok((key.to_pkcs8()?, key.public_key()?))
        };
        tokio::task::spawn_blocking(make).await.unwrap_or(Err(SigningFailed::PANICKED))
    }

    /// Reads a key, and has it sign the known text so that its public half verifies it.
    pub(super) async fn prove(&self, pkcs8: Plaintext, public: Arc<PublicKey>) -> Result<Arc<SigningKey>, Unusable> {
        let prove = move || {
            let key = SigningKey::from_pkcs8(public.algorithm(), pkcs8.as_bytes()).map_err(lasting)?;
            let digest = public.algorithm().hash().of(CHECK_TEXT);
            match public.verifies(&digest, &key.sign(&digest).map_err(lasting)?) {
                true => Ok(Arc::new(key)),
                false => Err(lasting("its signature does not verify with the key's public half")),
            }
        };
        let slot = Arc::clone(&self.slots).acquire_owned().await;
        let proven = tokio::task::spawn_blocking(move || {
            let _slot = slot;
            prove()
        });
        proven.await.unwrap_or_else(|_| Err(lasting(SigningFailed::PANICKED)))
    }

    /// A signature of a digest, verified.
    pub(super) async fn sign(
        &self,
        key: &Arc<SigningKey>,
        public: &Arc<PublicKey>,
        digest: Vec<u8>,
        deadline: Instant,
    ) -> Result<Vec<u8>, Error> {
        if key.is_quick() {
            return sign(key, public, &digest);
        }
        let too_late = || Error::DeadlineExceeded("waiting to sign");
        let slot = tokio::time::timeout_at(deadline.into(), Arc::clone(&self.slots).acquire_owned());
        let slot = slot.await.map_err(|_| too_late())?;
        let (key, public) = (Arc::clone(key), Arc::clone(public));
        let signed = tokio::task::spawn_blocking(move || {
            let _slot = slot;
            if Instant::now() >= deadline { Err(too_late()) } else { sign(&key, &public, &digest) }
        });
        // Nobody waits for what comes too late; it ends by itself.
        let signed = tokio::time::timeout_at(deadline.into(), signed).await;
        signed.map_err(|_| Error::DeadlineExceeded("signing"))?.unwrap_or(Err(FAILED))
    }
}

const FAILED: Error = Error::Internal("a signature could not be made");

fn sign(key: &SigningKey, public: &PublicKey, digest: &[u8]) -> Result<Vec<u8>, Error> {
    let signature = key.sign(digest).map_err(|_| FAILED)?;
    match public.verifies(digest, &signature) {
        true => Ok(signature),
        false => Err(Error::Internal("a signature does not verify")),
    }
}
