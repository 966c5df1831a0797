//! What a frontend knows: every key at one revision, immutable, looked up without lock and without I/O.
//!
//! The large maps share what did not change ([`SharedMap`]), so a change of one key among a million costs little.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use time::OffsetDateTime;
use uuid::Uuid;

use crate::algorithm::Algorithm;
use crate::blob::VersionId;
use crate::catalog::replaced::Former;
use crate::catalog::{
    Custody, KeyCreation, KeyRecord, KeyState, Kind, PolicyRecord, Purpose, Settings, SpaceRecord, SpaceState,
    VersionState,
};
use crate::path::KeyPath;
use crate::policy::{self, Policy};
use crate::shard_name::ShardName;
use crate::shared_map::SharedMap;
use crate::version::KeyVersion;

/// The catalog at one revision, parsed and verified. Cheap to clone.
#[derive(Clone, Default)]
pub struct Snapshot {
    revision: u64,
    paths: SharedMap<KeyPath, Arc<Key>>,
    keys: SharedMap<Uuid, Arc<Key>>,
    spaces: Arc<HashMap<Uuid, Arc<Space>>>,
    policies: SharedMap<Uuid, Arc<Policy>>,
    /// What policies, and keys' choices of one, replaced a short while ago, under the id of the policy or key.
    former: SharedMap<Uuid, Arc<[Former]>>,
    /// Keys that callers have made: crypto space and name at Cloud KMS.
    created: SharedMap<(Uuid, Box<str>), Uuid>,
    /// Keys of each crypto space that are not destroyed.
    space_keys: Arc<HashMap<Uuid, u32>>,
    /// One for each shard.
    health: Arc<HashMap<ShardName, Arc<Key>>>,
    drained_replicas: Arc<BTreeSet<String>>,
    /// The shards' root keys, as far as they are noted.
    roots: Arc<HashMap<Uuid, Arc<KeyVersion>>>,
    refused: Arc<HashMap<(String, Uuid), String>>,
    /// While a catalog is loaded anew: what was ready for use before.
    before: KnownKeys,
}

/// What was ready for use before a catalog is loaded anew, to be looked up by other threads.
pub(crate) type KnownKeys = Option<Arc<SharedMap<Uuid, Arc<Key>>>>;

/// A key, ready for use.
pub struct Key {
    /// Never reused; part of every blob.
    pub id: Uuid,
    /// What an operator said about it.
    pub state: KeyState,
    /// What it does.
    pub algorithm: Algorithm,
    /// Every path; the first one names it.
    pub paths: Vec<KeyPath>,
    /// A caller has destroyed it, and it unwraps nothing any more.
    pub destroyed_by_caller: bool,
    /// What Cloud KMS called the key version that it is for, if a caller has made it.
    pub created_for: Option<Box<str>>,
    purpose: Purpose,
    space: Uuid,
    policy: Uuid,
    /// One of `versions`, where a request finds it without a further step through memory.
    primary: Arc<KeyVersion>,
    versions: Box<[(VersionState, Arc<KeyVersion>)]>,
}

/// A crypto space.
pub struct Space {
    /// `v0/cryptospaces/<name>`.
    pub path: KeyPath,
    /// Whether its keys are in use.
    pub state: SpaceState,
    /// Where the material of its keys' next versions lives.
    pub shard: ShardName,
    /// Whether callers may make keys in it.
    pub creation: Option<KeyCreation>,
    id: Uuid,
}

/// The snapshot has no key under a path. Only a loaded snapshot can make one: that is how nothing else can become a 404.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("there is no key under this path")]
pub struct KeyNotFound {
    _only_here: (),
}

/// As [`KeyNotFound`], for a crypto space.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("there is no crypto space under this path")]
pub struct SpaceNotFound {
    _only_here: (),
}

impl Space {
    /// Never reused.
    pub fn id(&self) -> Uuid {
        self.id
    }
}

impl Snapshot {
    pub(crate) fn empty_successor(&self) -> Self {
        Self { before: Some(Arc::new(self.keys.clone())), ..Self::default() }
    }

    pub(crate) fn before(&self) -> &KnownKeys {
        &self.before
    }

    /// A key as it is in use, or was before a catalog is loaded anew.
    pub(crate) fn known_key(&self, id: Uuid) -> Option<&Arc<Key>> {
        self.keys.get(&id).or_else(|| self.before.as_ref()?.get(&id))
    }

    pub(crate) fn finish(&mut self, revision: u64) {
        self.revision = revision;
        self.before = None;
    }

    pub(crate) fn put_space(&mut self, id: Uuid, space: Space) {
        Arc::make_mut(&mut self.spaces).insert(id, Arc::new(space));
    }

    pub(crate) fn put_policy(&mut self, id: Uuid, policy: Arc<Policy>, former: Vec<Former>) {
        self.policies.insert(id, policy);
        self.put_former(id, former);
    }

    fn put_former(&mut self, id: Uuid, former: Vec<Former>) {
        if former.is_empty() {
            self.former.remove(&id);
        } else {
            self.former.insert(id, former.into());
        }
    }

    pub(crate) fn put_key(&mut self, key: &Arc<Key>, former: Vec<Former>) -> Result<(), String> {
        let foreign = |path: &&KeyPath| self.paths.get(path).is_some_and(|other| other.id != key.id);
        if let Some(path) = key.paths.iter().find(foreign) {
            return Err(format!("its path {path} belongs to another key already"));
        }
        if let Some(old) = self.index(key) {
            for gone in old.paths.iter().filter(|path| !key.paths.contains(path)) {
                self.paths.remove(gone);
            }
        }
        self.put_former(key.id, former);
        Ok(())
    }

    pub(crate) fn put_settings(&mut self, id: Uuid, settings: Settings) -> Result<(), String> {
        same_id(id, Uuid::nil())?;
        self.drained_replicas = Arc::new(settings.drained_replicas);
        let roots = settings
            .roots
            .into_iter()
            .map(|(shard, root)| (root.id, Arc::new(KeyVersion::new(root.into_record(shard)))));
        self.roots = Arc::new(roots.collect());
        Ok(())
    }

    /// Returns what was in its place.
    fn index(&mut self, key: &Arc<Key>) -> Option<Arc<Key>> {
        if key.purpose == Purpose::Health {
            // A catalog that was begun without an HSM has one of custody `software` as well.
            let shard = &key.primary.shard;
            if key.is_on_the_hsm() || !self.health.contains_key(shard) {
                Arc::make_mut(&mut self.health).insert(shard.clone(), Arc::clone(key));
            }
        }
        for path in &key.paths {
            self.paths.insert(path.clone(), Arc::clone(key));
        }
        if let Some(name) = &key.created_for {
            self.created.insert((key.space, name.clone()), key.id);
        }
        let before = self.keys.insert(key.id, Arc::clone(key));
        let counts = |key: &Arc<Key>| u32::from(key.state != KeyState::Destroyed);
        let (gone, come) = (before.as_ref().map_or(0, counts), counts(key));
        if gone != come {
            let count = Arc::make_mut(&mut self.space_keys).entry(key.space).or_default();
            *count = *count + come - gone;
        }
        before
    }

    /// Leaves a row out, and remembers why: one bad row must not take the others' keys away.
    pub(crate) fn refuse(&mut self, kind: &str, id: Uuid, problem: String) {
        Arc::make_mut(&mut self.refused).insert((kind.to_owned(), id), problem);
    }

    pub(crate) fn accept(&mut self, kind: Kind, id: Uuid) {
        if !self.refused.is_empty() {
            Arc::make_mut(&mut self.refused).remove(&(kind.name().to_owned(), id));
        }
    }

    /// Goes on with what was in use before.
    pub(crate) fn keep(&mut self, kind: Kind, id: Uuid, before: &Self) {
        match kind {
            Kind::Space => {
                if let Some(space) = before.spaces.get(&id) {
                    Arc::make_mut(&mut self.spaces).insert(id, Arc::clone(space));
                }
            }
            Kind::Policy => {
                if let Some(policy) = before.policies.get(&id) {
                    self.policies.insert(id, Arc::clone(policy));
                }
            }
            Kind::Key => before.keys.get(&id).into_iter().for_each(|key| drop(self.index(key))),
            Kind::Approval | Kind::Settings => {}
        }
        if let (Kind::Policy | Kind::Key, Some(former)) = (kind, before.former.get(&id)) {
            self.former.insert(id, Arc::clone(former));
        }
    }

    /// The key under a path.
    pub fn key(&self, path: &KeyPath) -> Result<&Arc<Key>, KeyNotFound> {
        self.paths.get(path).ok_or(KeyNotFound { _only_here: () })
    }

    /// Whether "there is no such key" can be said at all: not if a row was refused, since it might be that key's, and not if there is
    /// no key at all, which is more likely a catalog that was lost than a question about nothing.
    pub fn can_deny(&self) -> bool {
        !self.paths.is_empty() && self.refused.is_empty()
    }

    /// A key's policy; `None` if its row was refused.
    pub fn policy(&self, key: &Key) -> Option<&Arc<Policy>> {
        self.policies.get(&key.policy)
    }

    /// Whether a request that the key's policy denies was allowed until a change that is not final yet; and when it will be.
    pub fn denial_final_at(&self, key: &Key, request: &policy::Request<'_>) -> Option<OffsetDateTime> {
        self.formerly_allowed_until(&[key.policy, key.id], request)
    }

    /// The same for a verb of crypto spaces.
    pub fn denial_in_space_final_at(
        &self,
        creation: &KeyCreation,
        request: &policy::Request<'_>,
    ) -> Option<OffsetDateTime> {
        self.formerly_allowed_until(&[creation.policy], request)
    }

    fn formerly_allowed_until(&self, ids: &[Uuid], request: &policy::Request<'_>) -> Option<OffsetDateTime> {
        let former = ids.iter().filter_map(|id| self.former.get(id));
        former.flat_map(|former| former.iter()).filter_map(|former| former.allowed_until(request)).max()
    }

    /// How many policies, and keys that were given another one, have changed in a way that is not final yet.
    pub fn changes_not_final(&self, now: OffsetDateTime) -> usize {
        let pending = |former: &&Arc<[Former]>| former.iter().any(|former| now < former.final_at());
        self.former.values().filter(pending).count()
    }

    /// A key's crypto space; `None` if its row was refused.
    pub fn space(&self, key: &Key) -> Option<&Arc<Space>> {
        self.spaces.get(&key.space)
    }

    /// A crypto space by its path.
    pub fn space_at(&self, path: &KeyPath) -> Result<&Arc<Space>, SpaceNotFound> {
        self.spaces.values().find(|space| space.path == *path).ok_or(SpaceNotFound { _only_here: () })
    }

    /// The policy for making keys in a crypto space; `None` if its row was refused.
    pub fn creation_policy(&self, creation: &KeyCreation) -> Option<&Arc<Policy>> {
        self.policies.get(&creation.policy)
    }

    /// The key that a caller has made under a name of Cloud KMS'.
    pub fn created_for(&self, space: &Space, name: &str) -> Option<&Arc<Key>> {
        self.keys.get(self.created.get(&(space.id, name.into()))?)
    }

    /// How many keys of a crypto space are not destroyed.
    pub fn key_count(&self, space: &Space) -> u32 {
        self.space_keys.get(&space.id).copied().unwrap_or_default()
    }

    /// The key behind a shard's `/healthz`, if the catalog has one.
    pub fn health_key(&self, shard: &ShardName) -> Option<&Arc<Key>> {
        self.health.get(shard)
    }

    /// The HSM replicas that operators have taken out of use; `None` if the row that says so was refused, and nobody knows.
    pub fn drained_replicas(&self) -> Option<&BTreeSet<String>> {
        let refused = self.refused.contains_key(&(Kind::Settings.name().to_owned(), Uuid::nil()));
        (!refused).then_some(&self.drained_replicas)
    }

    /// Every key, the health key included.
    pub fn keys(&self) -> impl Iterator<Item = &Arc<Key>> {
        self.keys.values()
    }

    /// A key, the health keys included.
    pub fn key_by_id(&self, id: Uuid) -> Option<&Arc<Key>> {
        self.keys.get(&id)
    }

    /// The shards' root keys, by their ids: objects on HSMs as key versions are.
    pub fn roots(&self) -> &HashMap<Uuid, Arc<KeyVersion>> {
        &self.roots
    }

    /// A version of any key, or a root key.
    pub fn version(&self, id: VersionId) -> Option<&Arc<KeyVersion>> {
        match self.keys.get(&id.key) {
            Some(key) => key.version_at_all(id),
            None => self.roots.get(&id.key),
        }
    }

    /// The catalog's revision that this was built from.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// How many paths can be called.
    pub fn path_count(&self) -> usize {
        self.paths.len()
    }

    /// The rows that were left out, and why.
    pub fn refused(&self) -> impl ExactSizeIterator<Item = String> {
        self.refused.iter().map(|((kind, id), problem)| format!("{kind} {id}: {problem}"))
    }
}

fn same_id(row: Uuid, record: Uuid) -> Result<(), String> {
    if row == record { Ok(()) } else { Err("its id contradicts itself".into()) }
}

impl Space {
    /// From the row with this id.
    pub(crate) fn new(row: Uuid, record: SpaceRecord) -> Result<Self, String> {
        same_id(row, record.id)?;
        let SpaceRecord { id, path, state, shard, creation, .. } = record;
        Ok(Self { path, state, shard, creation, id })
    }
}

/// A policy, from the row with this id.
pub(crate) fn policy_of(row: Uuid, record: &PolicyRecord) -> Result<Arc<Policy>, String> {
    same_id(row, record.id)?;
    let policy = Policy::parse(&record.document).map_err(|invalid| format!("its policy is refused: {invalid}"))?;
    Ok(Arc::new(policy))
}

impl Key {
    /// From the row with this id. Versions of `known` that have not changed are taken over, with what they have proven.
    pub(crate) fn new(row: Uuid, record: KeyRecord, known: Option<&Arc<Self>>) -> Result<Self, String> {
        same_id(row, record.id)?;
        record.check()?;
        let versions = record.versions.into_iter().map(|stored| {
            let (state, wanted) = (stored.state, stored.into_record(record.id, record.algorithm));
            let known = known.and_then(|key| key.version_at_all(wanted.id)).filter(|known| known.is_of(&wanted));
            (state, known.cloned().unwrap_or_else(|| Arc::new(KeyVersion::new(wanted))))
        });
        let versions: Box<[(VersionState, Arc<KeyVersion>)]> = versions.collect();
        let primary = versions.iter().find(|(_, version)| version.id.number == record.primary);
        Ok(Self {
            primary: Arc::clone(&primary.ok_or("it has no primary version")?.1),
            versions,
            id: record.id,
            algorithm: record.algorithm,
            state: record.state,
            paths: record.paths,
            destroyed_by_caller: record.destroyed_by_caller,
            created_for: record.created_for.map(Into::into),
            purpose: record.purpose,
            space: record.space,
            policy: record.policy,
        })
    }

    /// The version that wraps.
    pub fn primary(&self) -> &Arc<KeyVersion> {
        &self.primary
    }

    /// The version that a blob names, with its state; `None` if it is not one of this key's.
    pub fn version(&self, id: VersionId) -> Option<(VersionState, &Arc<KeyVersion>)> {
        let found = self.versions.iter().find(|(_, version)| version.id == id);
        found.map(|(state, version)| (*state, version))
    }

    /// Every version that is not destroyed.
    pub fn living_versions(&self) -> impl Iterator<Item = &Arc<KeyVersion>> {
        self.versions.iter().filter(|(state, _)| *state != VersionState::Destroyed).map(|(_, version)| version)
    }

    /// Whether a version of it lives on the HSM.
    pub fn is_on_the_hsm(&self) -> bool {
        self.living_versions().any(|version| version.custody == Custody::Hsm)
    }

    fn version_at_all(&self, id: VersionId) -> Option<&Arc<KeyVersion>> {
        self.versions.iter().find(|(_, version)| version.id == id).map(|(_, version)| version)
    }
}
