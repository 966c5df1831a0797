//! A map that is cheap to clone, and cheap to change a little afterwards: many small hash maps, shared until they are written to.
//!
//! A look-up costs one hash more than in a single map, and no more misses of the processor's caches; a change among a million entries
//! copies some hundred of them.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hash, RandomState};
use std::sync::Arc;

/// A power of two; a million entries make about 250 in each.
const SHARDS: usize = 4096;

#[derive(Clone)]
pub(crate) struct Shards<K, V> {
    hasher: RandomState,
    shards: Vec<Arc<HashMap<K, V, RandomState>>>,
    length: usize,
}

impl<K, V> Default for Shards<K, V> {
    fn default() -> Self {
        let hasher = RandomState::new();
        let empty = Arc::new(HashMap::with_hasher(hasher.clone()));
        Self { hasher, shards: vec![empty; SHARDS], length: 0 }
    }
}

impl<K: Clone + Eq + Hash, V: Clone> Shards<K, V> {
    pub(crate) fn get(&self, key: &K) -> Option<&V> {
        self.shards[self.place(key)].get(key)
    }

    pub(crate) fn insert(&mut self, key: K, value: V) {
        let place = self.place(&key);
        if Arc::make_mut(&mut self.shards[place]).insert(key, value).is_none() {
            self.length += 1;
        }
    }

    pub(crate) fn remove(&mut self, key: &K) {
        let place = self.place(key);
        if self.shards[place].contains_key(key) {
            Arc::make_mut(&mut self.shards[place]).remove(key);
            self.length -= 1;
        }
    }

    pub(crate) fn values(&self) -> impl Iterator<Item = &V> {
        self.shards.iter().flat_map(|shard| shard.values())
    }

    pub(crate) fn len(&self) -> usize {
        self.length
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// By bits that the shards' own tables use least.
    fn place(&self, key: &K) -> usize {
        (self.hasher.hash_one(key) >> 32) as usize % SHARDS
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_is_a_map_and_a_clone_keeps_what_it_had(steps in prop::collection::vec((any::<bool>(), 0u16..500, any::<u8>()), 0..300)) {
            let (mut shards, mut map) = (Shards::default(), HashMap::new());
            let mut clones = Vec::new();
            for (index, (insert, key, value)) in steps.into_iter().enumerate() {
                if insert {
                    shards.insert(key, value);
                    map.insert(key, value);
                } else {
                    shards.remove(&key);
                    map.remove(&key);
                }
                if index % 50 == 0 {
                    clones.push((shards.clone(), map.clone()));
                }
            }
            clones.push((shards, map));
            for (shards, map) in clones {
                prop_assert_eq!((shards.len(), shards.is_empty()), (map.len(), map.is_empty()));
                prop_assert_eq!(shards.values().count(), map.len());
                for key in 0..500 {
                    prop_assert_eq!(shards.get(&key), map.get(&key));
                }
            }
        }
    }
}
