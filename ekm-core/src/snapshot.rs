//! What a frontend knows: every key at one revision, immutable, looked up without lock and without I/O.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use uuid::Uuid;

use crate::blob::VersionId;
use crate::catalog::{Catalog, KeyRecord, KeyState, Purpose};
use crate::path::KeyPath;
use crate::policy::Policy;
use crate::version::{KeyVersion, VersionState};

/// The catalog at one revision, parsed and verified.
pub struct Snapshot {
    revision: u64,
    keys: HashMap<KeyPath, Arc<Key>>,
    health: Option<Arc<Key>>,
    rejected: Vec<String>,
    rejected_paths: HashSet<KeyPath>,
    versions: Vec<Arc<KeyVersion>>,
}

/// A key, ready for use.
pub struct Key {
    /// Never reused; part of every blob.
    pub id: Uuid,
    /// The path of its crypto space.
    pub space: KeyPath,
    /// Enabled, or paused by an operator.
    pub state: KeyState,
    /// Who may use it for what.
    pub policy: Policy,
    primary: u32,
    versions: Vec<Arc<KeyVersion>>,
}

/// The snapshot has no key under a path. Only a loaded snapshot can make one: that is how nothing else can become a 404.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("there is no key under this path")]
pub struct KeyNotFound {
    _only_here: (),
}

impl Snapshot {
    /// Checks every row and takes what is sound. A row that is not is left out, and named in [`Self::rejected`]: one bad row
    /// must not take the others' keys away. `opened` holds every version of the catalog.
    pub fn build(catalog: Catalog, opened: &HashMap<VersionId, Arc<KeyVersion>>) -> Self {
        let spaces: HashMap<_, _> = catalog.spaces.into_iter().map(|space| (space.id, space.path)).collect();
        let mut snapshot = Self {
            revision: catalog.revision,
            keys: HashMap::with_capacity(catalog.keys.len()),
            health: None,
            rejected: Vec::new(),
            rejected_paths: HashSet::new(),
            versions: Vec::new(),
        };
        for record in catalog.keys {
            match snapshot.check(&spaces, &record, opened) {
                Ok(key) => snapshot.add(record, Arc::new(key)),
                Err(problem) => {
                    snapshot.rejected.push(format!("key {}: {problem}", record.id));
                    snapshot.rejected_paths.extend(record.paths);
                }
            }
        }
        snapshot
    }

    fn check(
        &self,
        spaces: &HashMap<Uuid, KeyPath>,
        record: &KeyRecord,
        opened: &HashMap<VersionId, Arc<KeyVersion>>,
    ) -> Result<Key, String> {
        let space = spaces.get(&record.space).ok_or("its crypto space is not in the catalog")?.clone();
        let policy = Policy::parse(&record.policy).map_err(|invalid| format!("its policy is refused: {invalid}"))?;
        if let Some(path) = record.paths.iter().find(|path| self.keys.contains_key(path)) {
            return Err(format!("its path {path} belongs to another key already"));
        }
        let foreign = record.versions.iter().any(|version| version.id.key != record.id || version.id.number == 0);
        let versions: Option<Vec<_>> = record.versions.iter().map(|row| opened.get(&row.id).cloned()).collect();
        let complete = versions.filter(|rows| !foreign && rows.iter().any(|row| row.id.number == record.primary));
        let versions = complete.ok_or("its versions are incomplete or belong to another key")?;
        Ok(Key { id: record.id, space, state: record.state, policy, primary: record.primary, versions })
    }

    fn add(&mut self, record: KeyRecord, key: Arc<Key>) {
        self.versions.extend(key.versions.iter().cloned());
        match record.purpose {
            Purpose::Health => self.health = Some(key),
            Purpose::Wrap => self.keys.extend(record.paths.into_iter().map(|path| (path, Arc::clone(&key)))),
        }
    }

    /// Every version of every key.
    pub fn versions(&self) -> impl Iterator<Item = &Arc<KeyVersion>> {
        self.versions.iter()
    }

    /// The versions that cannot be served, and why.
    pub fn failed_versions(&self) -> impl Iterator<Item = (&Arc<KeyVersion>, String)> {
        self.versions.iter().filter_map(|version| match version.state() {
            VersionState::Failed { reason } => Some((version, reason)),
            VersionState::Proven | VersionState::Unproven => None,
        })
    }

    /// The key under a path.
    pub fn key(&self, path: &KeyPath) -> Result<&Arc<Key>, KeyNotFound> {
        self.keys.get(path).ok_or(KeyNotFound { _only_here: () })
    }

    /// Whether "there is no such key" can be said about a path at all: not if its row was left out, and not if there is no key
    /// at all, which is more likely a catalog that was lost than a question about nothing.
    pub fn can_deny(&self, path: &KeyPath) -> bool {
        !self.keys.is_empty() && !self.rejected_paths.contains(path)
    }

    /// The key behind `/healthz`, if the catalog has one.
    pub fn health_key(&self) -> Option<&Arc<Key>> {
        self.health.as_ref()
    }

    /// The catalog's revision that this was built from.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// How many paths can be called.
    pub fn path_count(&self) -> usize {
        self.keys.len()
    }

    /// How many key versions cannot be used.
    pub fn unavailable_count(&self) -> usize {
        self.failed_versions().count()
    }

    /// The rows that were left out, and why.
    pub fn rejected(&self) -> &[String] {
        &self.rejected
    }
}

impl Key {
    /// The version that wraps.
    pub fn primary(&self) -> &Arc<KeyVersion> {
        let id = VersionId { key: self.id, number: self.primary };
        self.version(id).expect("checked when the snapshot was built")
    }

    /// The version that a blob names; `None` if it is not one of this key's.
    pub fn version(&self, id: VersionId) -> Option<&Arc<KeyVersion>> {
        self.versions.iter().find(|version| version.id == id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::{CryptoSpace, Custody, VersionRecord};

    fn build(catalog: Catalog) -> Snapshot {
        let rows = catalog.keys.iter().flat_map(|key| &key.versions);
        let opened = rows.map(|row| (row.id, Arc::new(KeyVersion::new(row)))).collect();
        Snapshot::build(catalog, &opened)
    }

    fn catalog(change: impl FnOnce(&mut KeyRecord)) -> Catalog {
        let (space, key) = (Uuid::new_v4(), Uuid::new_v4());
        let version = VersionRecord {
            id: VersionId { key, number: 1 },
            custody: Custody::Hsm,
            wrapped_material: None,
            check_blob: vec![1],
        };
        let mut record = KeyRecord {
            id: key,
            space,
            purpose: Purpose::Wrap,
            state: KeyState::Enabled,
            paths: vec![KeyPath::parse("v0/keys/a").unwrap(), KeyPath::parse("v0/keys/alias").unwrap()],
            policy: Policy::allow_everybody().to_json(),
            primary: 1,
            versions: vec![version],
        };
        let mut good = record.clone();
        good.id = Uuid::new_v4();
        good.versions[0].id.key = good.id;
        good.paths = vec![KeyPath::parse("v0/keys/good").unwrap()];
        change(&mut record);
        let space = CryptoSpace { id: space, path: KeyPath::parse("v0/cryptospaces/s").unwrap() };
        Catalog { revision: 7, spaces: vec![space], keys: vec![good, record] }
    }

    #[test]
    fn a_key_is_found_under_each_of_its_paths() {
        let snapshot = build(catalog(|_| ()));
        let key = |path| snapshot.key(&KeyPath::parse(path).unwrap()).map(|key| key.id);
        assert_eq!(key("v0/keys/a"), key("v0/keys/alias"));
        assert!(key("v0/keys/a").is_ok());
        assert!(key("v0/keys/A").is_err());
        assert_eq!((snapshot.revision(), snapshot.path_count()), (7, 3));
    }

    #[test]
    fn an_empty_catalog_denies_nothing() {
        let path = KeyPath::parse("v0/keys/none").unwrap();
        assert!(!build(Catalog::default()).can_deny(&path));
        assert!(build(catalog(|_| ())).can_deny(&path));
    }

    #[test]
    fn a_bad_row_is_left_out_and_named_and_the_others_stay() {
        let changes: [fn(&mut KeyRecord); 7] = [
            |key| key.policy = String::new(),
            |key| key.policy = r#"{"rules":[]}"#.into(),
            |key| key.space = Uuid::new_v4(),
            |key| key.primary = 2,
            |key| key.versions.clear(),
            |key| key.versions[0].id.key = Uuid::new_v4(),
            |key| key.paths = vec![KeyPath::parse("v0/keys/good").unwrap()],
        ];
        for change in changes {
            let snapshot = build(catalog(change));
            assert_eq!(snapshot.rejected().len(), 1);
            assert!(snapshot.key(&KeyPath::parse("v0/keys/good").unwrap()).is_ok());
            let denies = |path| snapshot.can_deny(&KeyPath::parse(path).unwrap());
            let conflict = snapshot.rejected()[0].contains("another key already");
            assert!(denies("v0/keys/none") && (conflict || !denies("v0/keys/alias")));
        }
    }
}
