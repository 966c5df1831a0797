//! The operations everything exists for.

use std::sync::Arc;
use std::time::Instant;

use arc_swap::ArcSwap;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::algorithm::{Hash, SigningAlgorithm};
use crate::blob;
use crate::caller::Caller;
use crate::catalog::{Custody, KeyState, SpaceState, VersionState};
use crate::custody::Custodian;
use crate::error::{Error, NotInUse};
use crate::hsm::{Demand, Patience, Timing, Urgency};
use crate::justification::Justification;
use crate::path::KeyPath;
use crate::policy::{self, Aspect, Denial, Verb};
use crate::public_key::PublicKey;
use crate::secret::Plaintext;
use crate::shard_name::ShardName;
use crate::snapshot::{Key, Snapshot, Space};
use crate::version::KeyVersion;

/// Keys, and the means to use them.
pub struct Ekm {
    snapshot: ArcSwap<Snapshot>,
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
    /// How its material is kept.
    pub custody: Option<Custody>,
    /// The place of its shard in [`Custodian::shards`]; none for custody `software`.
    pub shard: Option<usize>,
    /// The key, or this version, is to be destroyed: somebody still needs it.
    pub destroy_scheduled: bool,
    /// What the key's policy found fault with.
    pub denied_by: Option<Aspect>,
    /// With [`Error::DenialPending`], when the answer becomes a denial.
    pub denial_final_at: Option<OffsetDateTime>,
    /// It gives no reason, and only a time of grace allows that.
    pub by_grace: bool,
    /// The HSM's share of the time; zero for material in process.
    pub hsm: Timing,
}

impl Ekm {
    /// With a snapshot that may be empty: then every request answers 503 until [`Self::publish`].
    pub fn new(snapshot: Snapshot, custodian: Custodian) -> Self {
        Self { snapshot: ArcSwap::from_pointee(snapshot), custodian }
    }

    /// Takes over a newer snapshot. Requests under way finish with the one they have.
    pub fn publish(&self, snapshot: Snapshot) {
        self.snapshot.store(Arc::new(snapshot));
    }

    /// Encrypts a data key under the key's primary version, and returns the blob.
    pub async fn wrap(&self, request: &Request<'_>, plaintext: Plaintext, trace: &mut Trace) -> Result<Vec<u8>, Error> {
        let key = self.permitted(request, Verb::Wrap, trace)?;
        if key.state == KeyState::DestroyScheduled {
            return Err(Error::NotInUse(NotInUse::KeyDestroyScheduled)); // what it wrapped now would be lost soon
        }
        let version = key.primary();
        trace.used(version, &self.custodian);
        let sealed = self
            .custodian
            .wrap(version, request.aad, plaintext, request.patience(Urgency::Wrap), &mut trace.hsm)
            .await?;
        Ok(blob::encode(version.id, &sealed))
    }

    /// Decrypts a blob that [`Self::wrap`] made under any version of the same key.
    pub async fn unwrap(&self, request: &Request<'_>, blob: &[u8], trace: &mut Trace) -> Result<Plaintext, Error> {
        let key = self.permitted(request, Verb::Unwrap, trace)?;
        let (id, sealed) = blob::parse(blob).ok_or(Error::UnwrapFailed)?;
        let (state, version) = key.version(id).ok_or(Error::UnwrapFailed)?;
        trace.used(version, &self.custodian);
        match state {
            VersionState::Pending | VersionState::Enabled => {}
            VersionState::DestroyScheduled => trace.destroy_scheduled = true,
            VersionState::Disabled => return Err(Error::NotInUse(NotInUse::VersionDisabled)),
            VersionState::Destroyed => return Err(Error::NotInUse(NotInUse::Destroyed)),
        }
        self.custodian.unwrap(version, request.aad, sealed, request.patience(Urgency::Unwrap), &mut trace.hsm).await
    }

    /// Signs data, or its digest, under a signing key.
    pub async fn sign(&self, request: &Request<'_>, input: &ToSign, trace: &mut Trace) -> Result<Vec<u8>, Error> {
        let key = self.permitted(request, Verb::AsymmetricSign, trace)?;
        if key.state == KeyState::DestroyScheduled {
            return Err(Error::NotInUse(NotInUse::KeyDestroyScheduled));
        }
        let version = key.primary();
        trace.used(version, &self.custodian);
        let digest = input.digest(public_key(version)?.algorithm())?;
        self.custodian.sign(version, digest, request.patience(Urgency::Sign), &mut trace.hsm).await
    }

    /// The public half of a signing key, from the snapshot.
    pub fn public_key(&self, request: &Request<'_>, trace: &mut Trace) -> Result<Arc<PublicKey>, Error> {
        let key = self.permitted(request, Verb::GetPublicKey, trace)?;
        let version = key.primary();
        trace.used(version, &self.custodian);
        public_key(version).cloned()
    }

    /// The key, if the path names one, the policy allows this, and no operator stopped it: in this order.
    fn permitted(&self, request: &Request<'_>, verb: Verb, trace: &mut Trace) -> Result<Arc<Key>, Error> {
        let snapshot = self.snapshot.load();
        trace.revision = snapshot.revision();
        let key = match snapshot.key(request.path) {
            Ok(key) => key,
            Err(_) if !snapshot.can_deny() => return Err(Error::KeyUnavailable),
            Err(not_found) => return Err(not_found.into()),
        };
        trace.key = Some(key.id);
        trace.shard = self.custodian.place_of(key.primary());
        // Their rows may have been refused; without them nothing can be decided, so nothing is denied.
        let policy = snapshot.policy(key).ok_or(Error::KeyUnavailable)?;
        let space = snapshot.space(key).ok_or(Error::KeyUnavailable)?;
        let question = question(request, verb);
        // Policies of keys that wrap say nothing of signing: whoever may use the key is told what it is, and not denied, which would
        // disable his version for a mistyped path. Strangers are told nothing.
        let is_for_another = verb != Verb::DestroyKey && !verb.uses(key.algorithm);
        let with = |verb| policy::Request { verb, ..question };
        let uses = || Verb::ALL.into_iter().filter(|verb| verb.uses(key.algorithm));
        if !(is_for_another && uses().any(|verb| policy::decide(policy, &with(verb)).is_ok())) {
            let formerly = uses().filter(|_| is_for_another).chain([verb]);
            let final_at = || formerly.filter_map(|verb| snapshot.denial_final_at(key, &with(verb))).max();
            judged(policy::decide(policy, &question), final_at, trace)?;
        }
        if is_for_another {
            return Err(Error::WrongAlgorithm { verb: verb.name(), algorithm: key.algorithm.name() });
        }
        trace.by_grace = policy::by_grace(policy, &question);
        if verb == Verb::DestroyKey {
            return Ok(Arc::clone(key)); // whatever state it is in
        }
        if space.state == SpaceState::Blocked {
            return Err(Error::NotInUse(NotInUse::SpaceBlocked));
        }
        match key.state {
            KeyState::Enabled => {}
            KeyState::DestroyScheduled if key.destroyed_by_caller => return Err(Error::NotInUse(NotInUse::Destroyed)),
            KeyState::DestroyScheduled => trace.destroy_scheduled = true,
            KeyState::Disabled => return Err(Error::NotInUse(NotInUse::KeyDisabled)),
            KeyState::Destroyed => return Err(Error::NotInUse(NotInUse::Destroyed)),
        }
        Ok(Arc::clone(key))
    }

    /// The key to destroy, if the path names one and its policy allows that.
    pub fn permitted_to_destroy(&self, request: &Request<'_>, trace: &mut Trace) -> Result<Arc<Key>, Error> {
        self.permitted(request, Verb::DestroyKey, trace)
    }

    /// The crypto space under a path, if its policy allows a verb there.
    pub fn permitted_in_space(
        &self,
        request: &Request<'_>,
        verb: Verb,
        trace: &mut Trace,
    ) -> Result<Arc<Space>, Error> {
        let space = self.known_space(request, trace)?;
        let snapshot = self.snapshot.load();
        let policy = match &space.creation {
            Some(creation) => Some(snapshot.creation_policy(creation).ok_or(Error::KeyUnavailable)?),
            None => None,
        };
        let question = question(request, verb);
        let final_at = || snapshot.denial_in_space_final_at(space.creation.as_ref()?, &question);
        judged(policy::decide_in_space(policy.map(AsRef::as_ref), &question), final_at, trace)?;
        trace.by_grace = policy.is_some_and(|policy| policy::by_grace(policy, &question));
        if space.state == SpaceState::Blocked {
            return Err(Error::NotInUse(NotInUse::SpaceBlocked));
        }
        Ok(space)
    }

    /// The crypto space under a path.
    pub fn known_space(&self, request: &Request<'_>, trace: &mut Trace) -> Result<Arc<Space>, Error> {
        let snapshot = self.snapshot.load();
        trace.revision = snapshot.revision();
        let space = match snapshot.space_at(request.path) {
            Ok(space) => space,
            Err(_) if snapshot.refused().len() > 0 || snapshot.revision() == 0 => return Err(Error::KeyUnavailable),
            Err(not_found) => return Err(not_found.into()),
        };
        trace.shard = self.custodian.shards().iter().position(|shard| *shard.name() == space.shard);
        Ok(Arc::clone(space))
    }

    /// Whether the snapshot knows what a request is about: a crypto space, a key, and for unwrap the key's version that the blob names. What it
    /// does not know may have been made by another frontend a moment ago, so it has to be brought up to date before anybody is told.
    pub fn knows(&self, path: &KeyPath, verb: Verb, input: &[u8]) -> bool {
        let snapshot = self.snapshot.load();
        if snapshot.revision() == 0 {
            return true; // nobody is told that anything is unknown before the catalog was read
        }
        if verb.is_for_spaces() {
            return snapshot.space_at(path).is_ok();
        }
        let Ok(key) = snapshot.key(path) else { return false };
        let named = if verb == Verb::Unwrap { blob::parse(input).map(|(id, _)| id) } else { None };
        named.is_none_or(|id| id.key != key.id || key.version(id).is_some())
    }

    /// Whether the shard of a key has too much to do, so that a request for it can be refused before it is read. What this does not say
    /// is decided when the request gets there.
    pub fn is_too_much(&self, path: &KeyPath, verb: Verb, caller: &Caller, deadline: Instant) -> bool {
        let Some(urgency) = urgency(verb) else { return false };
        let snapshot = self.snapshot.load();
        let Ok(key) = snapshot.key(path) else { return false };
        let version = key.primary();
        // What is kept in this process needs no session.
        let on_token = version.custody == Custody::Hsm;
        let shard = self.custodian.place_of(version).filter(|_| on_token);
        shard.is_some_and(|place| self.custodian.shards()[place].would_refuse(&demand(caller, urgency, deadline)))
    }

    /// A real wrap and unwrap with a shard's health key, through the same custody and queue as any request.
    pub async fn check_health(&self, shard: &ShardName, deadline: Instant) -> Result<(), Error> {
        let snapshot = self.snapshot.load_full();
        let version = snapshot.health_key(shard).ok_or(Error::KeyUnavailable)?.primary();
        let text = crate::software::random::<32>().map_err(|_| Error::Internal("no random numbers"))?;
        let (aad, mut timing) = (b"health", Timing::default());
        let patience = Patience::Request(Demand { deadline, caller: 0, urgency: Urgency::Health });
        let sealed = self.custodian.wrap(version, aad, Plaintext::new(text.to_vec()), patience, &mut timing).await?;
        let opened = self.custodian.unwrap(version, aad, sealed, patience, &mut timing).await?;
        if opened.as_bytes() != text {
            return Err(Error::HsmIntegrity("unwrap did not give back what was wrapped"));
        }
        Ok(())
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

impl Request<'_> {
    fn patience(&self, urgency: Urgency) -> Patience {
        Patience::Request(demand(self.caller, urgency, self.deadline))
    }
}

fn demand(caller: &Caller, urgency: Urgency, deadline: Instant) -> Demand {
    Demand { deadline, caller: caller.number(), urgency }
}

/// Of the verbs that take a session.
fn urgency(verb: Verb) -> Option<Urgency> {
    match verb {
        Verb::Unwrap => Some(Urgency::Unwrap),
        Verb::Wrap => Some(Urgency::Wrap),
        Verb::AsymmetricSign => Some(Urgency::Sign),
        Verb::GetPublicKey | Verb::CreateKey | Verb::DestroyKey | Verb::CheckCryptoSpacePermissions => None,
    }
}

/// A denial is final unless a former policy, which `final_at` asks, allowed the same.
fn judged(
    decision: Result<(), Denial>,
    final_at: impl FnOnce() -> Option<OffsetDateTime>,
    trace: &mut Trace,
) -> Result<(), Error> {
    let Err(denial) = decision else { return Ok(()) };
    trace.denied_by = denial.aspect();
    trace.denial_final_at = final_at();
    Err(match trace.denial_final_at {
        Some(_) => Error::DenialPending(denial),
        None => Error::Denied(denial),
    })
}

fn question<'a>(request: &Request<'a>, verb: Verb) -> policy::Request<'a> {
    let &Request { caller, justification, resource, .. } = request;
    policy::Request { caller, verb, justification, resource, now: OffsetDateTime::now_utc() }
}

/// [`Ekm::permitted`] has seen that it is a signing key, and a row without a public key is refused.
fn public_key(version: &KeyVersion) -> Result<&Arc<PublicKey>, Error> {
    version.public_key().ok_or(Error::Internal("a signing key without a public key"))
}

/// What a caller wants to be signed.
pub enum ToSign {
    /// Data; it is hashed here.
    Data(Plaintext),
    /// Its digest, with the hash that made it if the caller says so.
    Digest(Vec<u8>, Option<Hash>),
}

impl ToSign {
    fn digest(&self, algorithm: SigningAlgorithm) -> Result<Vec<u8>, Error> {
        let hash = algorithm.hash();
        match self {
            Self::Data(data) => Ok(hash.of(data.as_bytes())),
            Self::Digest(digest, said) if said.unwrap_or(hash) == hash && digest.len() == hash.bytes() => {
                Ok(digest.clone())
            }
            Self::Digest(digest, said) => {
                let said = said.map_or_else(|| format!("{} bytes", digest.len()), |said| said.name().to_owned());
                let wanted = format!("{} of {} bytes", hash.name(), hash.bytes());
                let problem = format!("is {said}, and {} takes {wanted}", algorithm.name());
                Err(Error::InvalidRequest { field: "digest", problem })
            }
        }
    }
}

impl Trace {
    fn used(&mut self, version: &KeyVersion, custodian: &Custodian) {
        self.shard = custodian.place_of(version);
        self.version = Some(version.id.number);
        self.custody = Some(version.custody);
    }
}
