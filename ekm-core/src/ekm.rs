//! The two operations everything exists for.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use arc_swap::ArcSwap;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::blob;
use crate::caller::Caller;
use crate::catalog::{Catalog, Custody, KeyState};
use crate::custody::Custodian;
use crate::error::Error;
use crate::hsm::Timing;
use crate::justification::Justification;
use crate::path::KeyPath;
use crate::policy::{self, Verb};
use crate::secret::Plaintext;
use crate::snapshot::{Key, KeyVersion, Snapshot};

/// Keys, and the means to use them.
pub struct Ekm {
    snapshot: ArcSwap<Snapshot>,
    snapshot_is_stale: AtomicBool,
    custodian: Custodian,
}

/// The part of a request that decides whether it is allowed, and bounds it in time.
pub struct Request<'a> {
    /// Which key.
    pub path: &'a KeyPath,
    /// Who asks, verified.
    pub caller: &'a Caller,
    /// Why.
    pub justification: &'a Justification,
    /// The resource that Cloud KMS says it acts for, if it says so.
    pub resource: Option<&'a str>,
    /// The protocol's additionalAuthenticatedData.
    pub aad: &'a [u8],
    /// After this nobody waits for the answer.
    pub deadline: Instant,
}

/// What audit and metrics want to know about a request, filled as far as it came.
#[derive(Clone, Copy, Debug, Default)]
pub struct Trace {
    /// The catalog's revision that decided.
    pub revision: u64,
    /// The key.
    pub key: Option<Uuid>,
    /// The version used.
    pub version: Option<u32>,
    /// Where its material lives.
    pub custody: Option<Custody>,
    /// The HSM's share of the time; zero for material in process.
    pub hsm: Timing,
}

impl Ekm {
    /// Opens every key of the catalog; there is no service before that, since an empty snapshot would call every key unknown.
    pub async fn start(catalog: Catalog, custodian: Custodian) -> Self {
        let snapshot = load(catalog, &custodian, HashMap::new()).await;
        Self { snapshot: ArcSwap::from_pointee(snapshot), snapshot_is_stale: AtomicBool::new(false), custodian }
    }

    /// Takes over a newer catalog. Requests under way finish with the snapshot they have.
    pub async fn reload(&self, catalog: Catalog) {
        let known = self.snapshot.load().usable_versions();
        self.snapshot.store(Arc::new(load(catalog, &self.custodian, known).await));
    }

    /// Encrypts a data key under the key's primary version, and returns the blob.
    pub async fn wrap(&self, request: &Request<'_>, plaintext: Plaintext, trace: &mut Trace) -> Result<Vec<u8>, Error> {
        let key = self.permitted(request, Verb::Wrap, trace)?;
        let version = key.primary();
        trace.used(version);
        let sealed = self.custodian.wrap(version, request.aad, plaintext, request.deadline, &mut trace.hsm).await?;
        Ok(blob::encode(version.id, &sealed))
    }

    /// Decrypts a blob that [`Self::wrap`] made under any version of the same key.
    pub async fn unwrap(&self, request: &Request<'_>, blob: &[u8], trace: &mut Trace) -> Result<Plaintext, Error> {
        let key = self.permitted(request, Verb::Unwrap, trace)?;
        let (id, sealed) = blob::parse(blob).ok_or(Error::UnwrapFailed)?;
        let version = match key.version(id) {
            Some(version) => version,
            // Perhaps a version that a catalog we cannot read already has.
            None if id.key == key.id && self.snapshot_is_stale.load(Ordering::Relaxed) => {
                return Err(Error::CatalogStale);
            }
            None => return Err(Error::UnwrapFailed),
        };
        trace.used(version);
        self.custodian.unwrap(version, request.aad, sealed, request.deadline, &mut trace.hsm).await
    }

    /// The key, if the path names one, the policy allows this, and no operator paused it: in this order.
    fn permitted(&self, request: &Request<'_>, verb: Verb, trace: &mut Trace) -> Result<Arc<Key>, Error> {
        let snapshot = self.snapshot.load();
        trace.revision = snapshot.revision();
        let key = match snapshot.key(request.path) {
            Ok(key) => key,
            Err(_) if !snapshot.can_deny(request.path) => return Err(Error::KeyUnavailable),
            Err(_) if self.snapshot_is_stale.load(Ordering::Relaxed) => return Err(Error::CatalogStale),
            Err(not_found) => return Err(not_found.into()),
        };
        trace.key = Some(key.id);
        let &Request { caller, justification, resource, .. } = request;
        let question = policy::Request { caller, verb, justification, resource, now: OffsetDateTime::now_utc() };
        policy::decide(&key.policy, &question).map_err(Error::Denied)?;
        match key.state {
            KeyState::Enabled => Ok(Arc::clone(key)),
            KeyState::Disabled | KeyState::DestroyScheduled | KeyState::Destroyed => Err(Error::KeyDisabled),
        }
    }

    /// A real wrap and unwrap with the health key, through the same custody and queue as any request.
    pub async fn check_health(&self, deadline: Instant) -> Result<(), Error> {
        let snapshot = self.snapshot.load_full();
        let version = snapshot.health_key().ok_or(Error::KeyUnavailable)?.primary();
        let text = crate::software::random::<32>().map_err(|_| Error::Internal("no random numbers"))?;
        let (aad, mut timing) = (b"health", Timing::default());
        let sealed = self.custodian.wrap(version, aad, Plaintext::new(text.to_vec()), deadline, &mut timing).await?;
        let opened = self.custodian.unwrap(version, aad, sealed, deadline, &mut timing).await?;
        if opened.as_bytes() != text {
            return Err(Error::HsmIntegrity("unwrap did not give back what was wrapped"));
        }
        Ok(())
    }

    /// Whether the catalog could be read lately. While it could not, an unknown key is a 503 and not a 404.
    pub fn set_snapshot_stale(&self, stale: bool) {
        self.snapshot_is_stale.store(stale, Ordering::Relaxed);
    }

    /// The snapshot in use.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.snapshot.load_full()
    }

    /// The means to use keys.
    pub fn custodian(&self) -> &Custodian {
        &self.custodian
    }
}

impl Trace {
    fn used(&mut self, version: &KeyVersion) {
        self.version = Some(version.id.number);
        self.custody = Some(version.custody);
    }
}

async fn load(
    catalog: Catalog,
    custodian: &Custodian,
    mut opened: HashMap<blob::VersionId, Arc<KeyVersion>>,
) -> Snapshot {
    for record in catalog.keys.iter().flat_map(|key| &key.versions) {
        if let Entry::Vacant(place) = opened.entry(record.id) {
            place.insert(custodian.open(record).await);
        }
    }
    Snapshot::build(catalog, &opened)
}
