//! Custody: where a key's material lives, and how it is used there. The one place that chooses between them.
//!
//! Nothing here is done for all keys at once: a version is opened and proven when it is first used, so that neither a million keys nor
//! an HSM that is away holds up the start.

mod making;
mod signing;

use std::sync::Arc;
use std::time::{Duration, Instant};

use zeroize::Zeroizing;

use crate::blob::{self, Format, Sealed, VersionId};
use crate::catalog::{Custody, VersionRecord};
use crate::error::Error;
use crate::hsm::{Patience, Proof, Shard, Timing, TokenKey};
use crate::locked::{KeyArena, LockedKey};
use crate::nonces::Unsettled;
use crate::secret::Plaintext;
use crate::shard_name::ShardName;
use crate::software::{self, KeyFile, SoftwareError};
use crate::version::{KeyVersion, Material, Unusable};
use crate::xaes;

pub use making::{Finding, GenerateError};
use signing::Signing;

/// What is wrapped into every key version's check blob, without AAD: the known answer of its known-answer test.
pub(crate) const CHECK_TEXT: &[u8; 32] = b"external key manager, check blob";

/// How long making or checking one key, or one secret under the root key, may take outside any request.
const PATIENCE: Duration = Duration::from_secs(10);

/// The means to use keys, one for each custody that this process is configured for.
pub struct Custodian {
    key_file: Option<KeyFile>,
    shards: Vec<Shard>,
    keys: KeyArena,
    unsettled: Unsettled,
    signing: Signing,
}

impl Custodian {
    /// With what there is; shards have different names. Their replicas may come later: versions that wait for them prove themselves with
    /// their next use.
    pub fn new(key_file: Option<KeyFile>, shards: Vec<Shard>) -> Self {
        let (keys, unsettled, signing) = Default::default();
        Self { key_file, shards, keys, unsettled, signing }
    }

    /// The shards that this process is configured for.
    pub fn shards(&self) -> &[Shard] {
        &self.shards
    }

    /// One of them.
    pub fn shard(&self, name: &ShardName) -> Option<&Shard> {
        self.shards.iter().find(|shard| shard.name() == name)
    }

    /// Where in [`Self::shards`] a version's is; none for custody `software`, and for a shard that is not configured here.
    pub fn place_of(&self, version: &KeyVersion) -> Option<usize> {
        let on_hsm = version.custody != Custody::Software;
        self.shards.iter().position(|shard| on_hsm && *shard.name() == version.shard)
    }

    /// Their names; without an HSM that of the one shard that this process is.
    pub fn shard_names(&self) -> Vec<ShardName> {
        match &self.shards[..] {
            [] => vec![ShardName::default()],
            shards => shards.iter().map(|shard| shard.name().clone()).collect(),
        }
    }

    /// Where keys go if nobody says where: the only shard, or `main` if it is one of several.
    pub fn default_shard(&self) -> Option<ShardName> {
        match &self.shards[..] {
            [] => Some(ShardName::default()),
            [only] => Some(only.name().clone()),
            _ => self.shard(&ShardName::default()).map(|main| main.name().clone()),
        }
    }

    /// The key file of custody `software`.
    pub fn key_file(&self) -> Option<&KeyFile> {
        self.key_file.as_ref()
    }

    /// A key version of the catalog, unproven: no I/O, however many there are.
    pub fn version(&self, record: &VersionRecord) -> KeyVersion {
        KeyVersion::new(record.clone())
    }

    /// Opens a version's material and runs its known-answer test, unless both have been done. For the walk in the background.
    pub async fn prove(&self, version: &KeyVersion) -> Result<(), Error> {
        self.material(version, own_patience()).await.map(|_| ())
    }

    /// Encrypts under a key version.
    pub async fn wrap(
        &self,
        version: &KeyVersion,
        aad: &[u8],
        plaintext: Plaintext,
        patience: Patience,
        timing: &mut Timing,
    ) -> Result<Sealed, Error> {
        let format = version.custody.format();
        let aad = blob::bound_aad(format, version.id, aad);
        let material = self.material(version, patience).await?;
        if format != Format::Xaes {
            version.nonces.take(version.id, &self.unsettled).ok_or(Error::KeyExhausted)?;
        }
        match material {
            Material::OnToken => {
                let wrapped =
                    self.shard_of(version)?.wrap(version.token_key(), aad, plaintext, true, patience, timing).await;
                noting_a_loss(version, wrapped).map(Sealed::Checked)
            }
            Material::InProcess(key) => seal(format, key, &aad, plaintext.as_bytes()).map_err(|_| NO_RANDOM),
            Material::Signs(_) => Err(OTHER_KIND),
        }
    }

    /// Signs a digest under a signing key. Its length is the algorithm's. A signature that does not verify never leaves.
    pub async fn sign(
        &self,
        version: &KeyVersion,
        digest: Vec<u8>,
        patience: Patience,
        timing: &mut Timing,
    ) -> Result<Vec<u8>, Error> {
        let public = version.public_key.as_ref().ok_or(OTHER_KIND)?;
        match self.material(version, patience).await? {
            Material::OnToken => {
                let signed = self.shard_of(version)?.sign(version.token_key(), digest, patience, timing).await;
                noting_a_loss(version, signed)
            }
            Material::Signs(key) => self.signing.sign(key, public, digest, patience.end()).await,
            Material::InProcess(_) => Err(OTHER_KIND),
        }
    }

    /// Decrypts what [`Self::wrap`] made under the same version.
    pub async fn unwrap(
        &self,
        version: &KeyVersion,
        aad: &[u8],
        sealed: Sealed,
        patience: Patience,
        timing: &mut Timing,
    ) -> Result<Plaintext, Error> {
        let format = sealed.format();
        if !version.custody.opens(format) {
            return Err(Error::UnwrapFailed);
        }
        let aad = blob::bound_aad(format, version.id, aad);
        match (self.material(version, patience).await?, sealed) {
            (Material::OnToken, Sealed::Gcm(sealed) | Sealed::Checked(sealed)) => {
                let (shard, checked) = (self.shard_of(version)?, format == Format::Checked);
                let unwrapped = shard.unwrap(version.token_key(), aad, sealed, checked, patience, timing).await;
                noting_a_loss(version, unwrapped)
            }
            (Material::OnToken, Sealed::Xaes(_)) => Err(Error::UnwrapFailed),
            (Material::InProcess(key), sealed) => open(key, &aad, &sealed).ok_or(Error::UnwrapFailed),
            (Material::Signs(_), _) => Err(OTHER_KIND),
        }
    }

    /// The way to use a version, proven first if it is not.
    async fn material<'a>(&self, version: &'a KeyVersion, patience: Patience) -> Result<&'a Material, Error> {
        match version.proven() {
            Some(material) => Ok(material),
            // On the heap: a future that every request would carry about, and few use.
            None => Box::pin(self.prove_within(version, patience)).await,
        }
    }

    /// One at a time for each version; whoever waited takes over what the one before found.
    async fn prove_within<'a>(&self, version: &'a KeyVersion, patience: Patience) -> Result<&'a Material, Error> {
        let proof = async {
            let _one_at_a_time = version.proving.lock().await;
            if let Some(material) = version.proven() {
                return Ok(material);
            }
            if version.failed_lately() {
                return Err(Error::KeyUnavailable);
            }
            match self.test(version, patience).await {
                Ok(material) => Ok(version.set_proven(material)),
                Err(Unusable::Lasting(reason)) => {
                    version.set_failed(&reason);
                    Err(Error::KeyUnavailable)
                }
                Err(Unusable::Passing(error)) => Err(error),
            }
        };
        tokio::time::timeout_at(patience.end().into(), proof).await.map_err(|_| Error::HsmTimeout)?
    }

    /// Opens the material, and the check blob with it.
    async fn test(&self, version: &KeyVersion, patience: Patience) -> Result<Material, Unusable> {
        let (id, wrapped) = (version.id, &version.wrapped_material);
        let material = match (version.custody, &self.key_file) {
            (Custody::Hsm, _) => {
                self.shard_of(version)?.check(version.token_key(), patience).await?;
                return Ok(Material::OnToken);
            }
            (Custody::HsmWrapped, _) => {
                self.unwrap_secret_within(&version.shard, &material_context(id), wrapped, patience).await?
            }
            (Custody::Software, Some(file)) => file.unwrap_material(id, wrapped).map_err(lasting)?,
            (Custody::Software, None) => return Err(lasting(GenerateError::NotConfigured(version.custody))),
        };
        if let Some(public) = &version.public_key {
            return self.signing.prove(material, Arc::clone(public)).await.map(Material::Signs);
        }
        let material = <[u8; 32]>::try_from(material.as_bytes()).map(Zeroizing::new);
        let material = material.map_err(|_| Unusable::Lasting("its material is not 32 bytes long".into()))?;
        let key = self.keys.store(&material).map_err(|error| lasting(SoftwareError::from(error)))?;
        let wrong = || Unusable::Lasting("its check blob does not open to the known text".into());
        let (named, sealed) = blob::parse(&version.check_blob).ok_or_else(wrong)?;
        let aad = blob::bound_aad(version.custody.format(), id, b"");
        let opened = open(&key, &aad, &sealed).ok_or_else(wrong)?;
        if named != id || sealed.format() != version.custody.format() || opened.as_bytes() != CHECK_TEXT {
            return Err(wrong());
        }
        Ok(Material::InProcess(key))
    }

    fn shard_of(&self, version: &KeyVersion) -> Result<&Shard, Unusable> {
        self.here(&version.shard)
    }

    /// A shard, or that there is none.
    fn here(&self, name: &ShardName) -> Result<&Shard, Unusable> {
        self.shard(name).ok_or_else(|| match self.shards[..] {
            [] => lasting("no HSM is configured here"),
            _ => lasting(format!("the shard '{name}' is not configured here")),
        })
    }

    /// Wraps a secret of ours under a shard's root key: a blob of format 1 that names the root key. `context` says what the secret is
    /// for: it opens for the same context only.
    pub async fn wrap_secret(&self, shard: &ShardName, context: &[u8], secret: &[u8]) -> Result<Vec<u8>, Unusable> {
        let shard = self.here(shard)?;
        let root = shard.root().ok_or_else(|| lasting(format!("the shard '{}' has no root key", shard.name())))?;
        let (key, aad) = (TokenKey { id: root, proof: Proof::Unique }, blob::secret_aad(root, context));
        let (secret, mut timing) = (Plaintext::new(secret.to_vec()), Timing::default());
        let wrapped = shard.wrap(key, aad, secret, false, own_patience(), &mut timing).await;
        Ok(blob::encode(root, &Sealed::Gcm(wrapped.map_err(|error| under_root(root, error))?)))
    }

    /// The reverse of [`Self::wrap_secret`]. Lasting if the token does not hold that root key, or it did not make this blob for this
    /// context: mostly another token than the one that the secret was wrapped on.
    pub async fn unwrap_secret(&self, shard: &ShardName, context: &[u8], blob: &[u8]) -> Result<Plaintext, Unusable> {
        self.unwrap_secret_within(shard, context, blob, own_patience()).await
    }

    async fn unwrap_secret_within(
        &self,
        shard: &ShardName,
        context: &[u8],
        blob: &[u8],
        patience: Patience,
    ) -> Result<Plaintext, Unusable> {
        let shard = self.here(shard)?;
        let Some((root, Sealed::Gcm(sealed))) = blob::parse(blob) else {
            return Err(lasting("what should be wrapped by the root key is no blob of format 1"));
        };
        let (key, aad) = (TokenKey { id: root, proof: Proof::Unique }, blob::secret_aad(root, context));
        let unwrapped = shard.unwrap(key, aad, sealed, false, patience, &mut Timing::default()).await;
        unwrapped.map_err(|error| under_root(root, error))
    }

    /// What was wrapped since the last call, by version, for those that `version` still finds. Each is to be settled or put back.
    pub fn unsettled_wraps<'a>(&self, version: impl Fn(VersionId) -> Option<&'a KeyVersion>) -> Vec<(VersionId, u64)> {
        let ids = self.unsettled.take().into_iter();
        ids.filter_map(|id| Some((id, version(id)?.nonces.fresh()))).collect()
    }

    /// All frontends together have wrapped `total` times, `told` of these as [`Self::unsettled_wraps`] has told.
    pub fn settle_wraps(&self, version: &KeyVersion, told: u64, total: u64) {
        version.nonces.settle(told, total, version.id, &self.unsettled);
    }

    /// What was told could not be noted.
    pub fn put_back_wraps(&self, ids: impl IntoIterator<Item = VersionId>) {
        self.unsettled.put_back(ids);
    }
}

/// [`crate::Ekm`] asks a key only for what its algorithm does.
const OTHER_KIND: Error = Error::Internal("a key was asked for what another kind of key does");

const NO_RANDOM: Error = Error::Internal("the operating system gives no random numbers");

fn own_patience() -> Patience {
    Patience::Own(Instant::now() + PATIENCE)
}

fn lasting(cause: impl ToString) -> Unusable {
    Unusable::Lasting(cause.to_string())
}

/// Material of custody `hsm-wrapped` belongs to one key version: rows of the catalog cannot be exchanged.
fn material_context(id: VersionId) -> Vec<u8> {
    [&b"ekm hsm-wrapped material v1"[..], &id.to_bytes()].concat()
}

fn seal(format: Format, key: &[u8; 32], aad: &[u8], plaintext: &[u8]) -> Result<Sealed, SoftwareError> {
    match format {
        Format::Gcm => software::seal(key, aad, plaintext).map(Sealed::Gcm),
        Format::Xaes => xaes::seal(key, aad, plaintext).map(Sealed::Xaes),
        Format::Checked => unreachable!("only an HSM's work is checked"),
    }
}

fn open(key: &LockedKey, aad: &[u8], sealed: &Sealed) -> Option<Plaintext> {
    match sealed {
        Sealed::Gcm(sealed) => software::open(key, aad, sealed),
        Sealed::Xaes(sealed) => xaes::open(key, aad, sealed),
        Sealed::Checked(_) => None,
    }
}

/// A key that was proven and is no longer on the token has to prove itself again before it is used.
fn noting_a_loss<T>(version: &KeyVersion, outcome: Result<T, Error>) -> Result<T, Error> {
    if matches!(outcome, Err(Error::KeyUnavailable)) {
        version.set_failed("the token does not hold the key any more");
    }
    outcome
}

/// What an error means for a secret under a root key.
fn under_root(root: VersionId, error: Error) -> Unusable {
    match error {
        Error::KeyUnavailable => {
            Unusable::Lasting(format!("the token does not hold the root {root}; is it the right token?"))
        }
        Error::UnwrapFailed => Unusable::Lasting(format!(
            "it was not wrapped by the root {root} on this token, or for something else, or was changed"
        )),
        error => Unusable::Passing(error),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use uuid::Uuid;

    use super::*;
    use crate::algorithm::Algorithm;
    use crate::version::VersionState;

    fn custodian() -> Custodian {
        Custodian::new(Some(KeyFile::parse(&KeyFile::generate().unwrap()).unwrap()), Vec::new())
    }

    fn id() -> VersionId {
        VersionId { key: Uuid::new_v4(), number: 1 }
    }

    fn wait<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(future)
    }

    fn wrap(custodian: &Custodian, version: &KeyVersion, aad: &[u8], text: &[u8]) -> Result<Sealed, Error> {
        let (text, deadline) = (Plaintext::new(text.to_vec()), Instant::now() + PATIENCE);
        wait(custodian.wrap(version, aad, text, Patience::Own(deadline), &mut Timing::default()))
    }

    /// As [`crate::Ekm::unwrap`] does it: whatever is no blob of this version is the caller's fault.
    fn unwrap(custodian: &Custodian, version: &KeyVersion, aad: &[u8], blob: &[u8]) -> Result<Vec<u8>, Error> {
        let Some((_, sealed)) = blob::parse(blob).filter(|(id, _)| *id == version.id) else {
            return Err(Error::UnwrapFailed);
        };
        let deadline = Instant::now() + PATIENCE;
        let unwrapped = wait(custodian.unwrap(version, aad, sealed, Patience::Own(deadline), &mut Timing::default()));
        unwrapped.map(|plaintext| plaintext.as_bytes().to_vec())
    }

    /// A proven version whose material is in this process.
    fn in_process(custodian: &Custodian, custody: Custody, id: VersionId) -> KeyVersion {
        let record = making::in_process_record(custody, ShardName::default(), id, &[7; 32], Vec::new()).unwrap();
        let version = custodian.version(&record);
        version.set_proven(Material::InProcess(custodian.keys.store(&[7; 32]).unwrap()));
        version
    }

    proptest! {
        #[test]
        fn a_blob_opens_under_its_version_and_aad_only_and_no_mutation_of_it_ever_does(
            wrapped in any::<bool>(),
            text in proptest::collection::vec(any::<u8>(), 0..100),
            aad in proptest::collection::vec(any::<u8>(), 0..20), other_aad in proptest::collection::vec(any::<u8>(), 0..20),
            place: prop::sample::Index, bits in 1u8.., added: u8,
        ) {
            let (custodian, id) = (custodian(), id());
            let version = in_process(&custodian, if wrapped { Custody::HsmWrapped } else { Custody::Software }, id);
            let blob = blob::encode(id, &wrap(&custodian, &version, &aad, &text).unwrap());
            prop_assert_eq!(blob[0], if wrapped { 2 } else { 1 });
            prop_assert_eq!(unwrap(&custodian, &version, &aad, &blob).unwrap(), &text[..]);

            let refused = |blob: &[u8], aad: &[u8]| matches!(unwrap(&custodian, &version, aad, blob), Err(Error::UnwrapFailed));
            let mut changed = blob.clone();
            *place.get_mut(&mut changed) ^= bits;
            prop_assert!(refused(&changed, &aad));
            prop_assert!(refused(&blob[..place.index(blob.len())], &aad));
            prop_assert!(refused(&[&blob[..], &[added]].concat(), &aad));
            prop_assert!(aad == other_aad || refused(&blob, &other_aad));
        }
    }

    #[test]
    fn a_version_takes_only_the_format_of_its_custody_even_under_the_same_material() {
        let (custodian, id) = (custodian(), id());
        let versions = [Custody::Software, Custody::HsmWrapped].map(|custody| in_process(&custodian, custody, id));
        for (version, other) in [(&versions[0], &versions[1]), (&versions[1], &versions[0])] {
            let blob = blob::encode(id, &wrap(&custodian, version, b"", b"text").unwrap());
            assert!(unwrap(&custodian, version, b"", &blob).is_ok());
            assert!(matches!(unwrap(&custodian, other, b"", &blob), Err(Error::UnwrapFailed)));
            let mut renamed = blob.clone();
            renamed[0] = 3 - blob[0];
            assert!(matches!(unwrap(&custodian, other, b"", &renamed), Err(Error::UnwrapFailed)));
        }
    }

    #[test]
    fn a_version_is_unproven_until_its_first_use_and_failed_if_its_material_does_not_open() {
        let (custodian, id) = (custodian(), id());
        let record =
            wait(custodian.generate(Algorithm::Symmetric, Custody::Software, &ShardName::default(), id)).unwrap();
        let version = custodian.version(&record);
        assert_eq!(version.state(), VersionState::Unproven);
        wrap(&custodian, &version, b"", b"text").unwrap();
        assert_eq!(version.state(), VersionState::Proven);

        let changes: [fn(&mut VersionRecord); 5] = [
            |record| record.wrapped_material = None,
            |record| *record.wrapped_material.as_mut().unwrap().last_mut().unwrap() ^= 1,
            |record| *record.check_blob.last_mut().unwrap() ^= 1,
            |record| record.check_blob.clear(),
            |record| record.id.number = 2,
        ];
        for change in changes {
            let mut changed = record.clone();
            change(&mut changed);
            assert!(version.is_of(&record) && !version.is_of(&changed));
            let version = custodian.version(&changed);
            assert!(matches!(wrap(&custodian, &version, b"", b"text"), Err(Error::KeyUnavailable)));
            assert!(matches!(version.state(), VersionState::Failed { .. }));
        }
        let elsewhere = Custodian::new(None, Vec::new());
        for custody in [Custody::Software, Custody::Hsm, Custody::HsmWrapped] {
            let version = elsewhere.version(&VersionRecord { custody, ..record.clone() });
            assert!(matches!(wait(elsewhere.prove(&version)), Err(Error::KeyUnavailable)));
            let VersionState::Failed { reason } = version.state() else { panic!("not failed") };
            assert!(reason.contains("configured here"), "{reason}");
        }
    }

    #[test]
    fn whoever_waits_for_a_proof_waits_no_longer_than_the_deadline() {
        let (custodian, id) = (custodian(), id());
        let version = custodian.version(
            &wait(custodian.generate(Algorithm::Symmetric, Custody::Software, &ShardName::default(), id)).unwrap(),
        );
        let held = version.proving.try_lock().unwrap();
        let (text, deadline) = (Plaintext::new(vec![1]), Instant::now() + Duration::from_millis(50));
        let error =
            wait(custodian.wrap(&version, b"", text, Patience::Own(deadline), &mut Timing::default())).err().unwrap();
        assert!(matches!(error, Error::HsmTimeout) && Instant::now() >= deadline);
        drop(held);
        wrap(&custodian, &version, b"", b"text").unwrap();
    }
}
