//! A map that is cheap to clone, and cheap to change a little afterwards: many small hash maps, shared until they are written to.
//!
//! A look-up costs as much as in a single map: one hash, and no more misses of the processor's caches. A change among a million entries
//! copies some hundred of them.

use std::hash::{BuildHasher, Hash, RandomState};
use std::sync::Arc;

use hashbrown::HashTable;
use hashbrown::hash_table::Entry;

/// A power of two; a million entries make about 250 in each.
const PARTS: usize = 4096;

#[derive(Clone)]
pub(crate) struct SharedMap<K, V> {
    hasher: RandomState,
    parts: Vec<Arc<HashTable<(K, V)>>>,
    length: usize,
}

impl<K, V> Default for SharedMap<K, V> {
    fn default() -> Self {
        Self { hasher: RandomState::new(), parts: vec![Arc::default(); PARTS], length: 0 }
    }
}

impl<K: Clone + Eq + Hash, V: Clone> SharedMap<K, V> {
    pub(crate) fn get(&self, key: &K) -> Option<&V> {
        let hash = self.hasher.hash_one(key);
        self.parts[place(hash)].find(hash, |(there, _)| there == key).map(|(_, value)| value)
    }

    /// Returns what was in its place.
    pub(crate) fn insert(&mut self, key: K, value: V) -> Option<V> {
        let (hasher, hash) = (&self.hasher, self.hasher.hash_one(&key));
        let part = Arc::make_mut(&mut self.parts[place(hash)]);
        match part.entry(hash, |(there, _)| *there == key, |(there, _)| hasher.hash_one(there)) {
            Entry::Occupied(mut entry) => Some(std::mem::replace(&mut entry.get_mut().1, value)),
            Entry::Vacant(entry) => {
                entry.insert((key, value));
                self.length += 1;
                None
            }
        }
    }

    pub(crate) fn remove(&mut self, key: &K) {
        let hash = self.hasher.hash_one(key);
        let part = &mut self.parts[place(hash)];
        if part.find(hash, |(there, _)| there == key).is_some()
            && let Ok(entry) = Arc::make_mut(part).find_entry(hash, |(there, _)| there == key)
        {
            entry.remove();
            self.length -= 1;
        }
    }

    pub(crate) fn values(&self) -> impl Iterator<Item = &V> {
        self.parts.iter().flat_map(|part| part.iter()).map(|(_, value)| value)
    }

    pub(crate) fn len(&self) -> usize {
        self.length
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.length == 0
    }
}

/// By bits that the parts' own tables use least.
fn place(hash: u64) -> usize {
    (hash >> 32) as usize % PARTS
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_is_a_map_and_a_clone_keeps_what_it_had(steps in prop::collection::vec((any::<bool>(), 0u16..500, any::<u8>()), 0..300)) {
            let (mut ours, mut map) = (SharedMap::default(), HashMap::new());
            let mut clones = Vec::new();
            for (index, (insert, key, value)) in steps.into_iter().enumerate() {
                if insert {
                    ours.insert(key, value);
                    map.insert(key, value);
                } else {
                    ours.remove(&key);
                    map.remove(&key);
                }
                if index % 50 == 0 {
                    clones.push((ours.clone(), map.clone()));
                }
            }
            clones.push((ours, map));
            for (ours, map) in clones {
                prop_assert_eq!((ours.len(), ours.is_empty()), (map.len(), map.is_empty()));
                prop_assert_eq!(ours.values().count(), map.len());
                for key in 0..500 {
                    prop_assert_eq!(ours.get(&key), map.get(&key));
                }
            }
        }
    }
}
