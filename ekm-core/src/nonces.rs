//! How often a key version may still wrap. A nonce of 96 random bits may be drawn 2^32 times under one key (NIST SP 800-38D §8.3), by all
//! replicas and frontends together; then two being equal, which would give the plaintexts' difference away, is no longer unlikely enough.
//!
//! Each frontend counts what it has wrapped, and settles with the catalog's database every few seconds. What is lost with a frontend that
//! crashes, some seconds' worth, is nothing beside the bound.

use std::collections::HashSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::blob::VersionId;

/// Nobody may wrap more often.
pub const BOUND: u64 = 1 << 32;
/// By then the version should have been rotated.
pub const ROTATE_AT: u64 = 1 << 31;
/// Somebody should know.
pub const ALARM_AT: u64 = 1 << 30;

/// One version's count.
#[derive(Default)]
pub(crate) struct NonceCount {
    /// Wraps of this frontend that the database does not know of.
    fresh: AtomicU64,
    /// What the database knew when this frontend last settled.
    settled: AtomicU64,
}

/// The versions that have wrapped since this frontend last settled.
#[derive(Default)]
pub(crate) struct Unsettled(Mutex<HashSet<VersionId>>);

impl NonceCount {
    /// Counts a wrap; `None` if it must not be made.
    pub(crate) fn take(&self, id: VersionId, unsettled: &Unsettled) -> Option<()> {
        let fresh = self.fresh.fetch_add(1, Ordering::Relaxed);
        if fresh + self.settled.load(Ordering::Relaxed) >= BOUND {
            self.fresh.fetch_sub(1, Ordering::Relaxed);
            return None;
        }
        if fresh == 0 {
            unsettled.0.lock().unwrap_or_else(PoisonError::into_inner).insert(id);
        }
        Some(())
    }

    /// What the database is to be told.
    pub(crate) fn fresh(&self) -> u64 {
        self.fresh.load(Ordering::Relaxed)
    }

    /// The database has been told of `told`, and knows of `total` now.
    pub(crate) fn settle(&self, told: u64, total: u64, id: VersionId, unsettled: &Unsettled) {
        self.settled.fetch_max(total, Ordering::Relaxed);
        if self.fresh.fetch_sub(told, Ordering::Relaxed) > told {
            unsettled.0.lock().unwrap_or_else(PoisonError::into_inner).insert(id);
        }
    }
}

impl Unsettled {
    /// All of them; they are settled or put back.
    pub(crate) fn take(&self) -> HashSet<VersionId> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The database could not be told.
    pub(crate) fn put_back(&self, ids: impl IntoIterator<Item = VersionId>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).extend(ids);
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    #[test]
    fn a_version_wraps_up_to_the_bound_and_not_once_more() {
        let (count, unsettled) = (NonceCount::default(), Unsettled::default());
        let id = VersionId { key: Uuid::nil(), number: 1 };
        assert_eq!(count.take(id, &unsettled), Some(()));
        assert_eq!(unsettled.take(), HashSet::from([id]));
        // Other frontends have wrapped, too.
        count.settle(1, BOUND - 2, id, &unsettled);
        assert!(unsettled.take().is_empty());
        assert_eq!([1, 2, 3].map(|_| count.take(id, &unsettled)), [Some(()), Some(()), None]);
        assert_eq!(count.fresh(), 2);
    }

    #[test]
    fn what_was_wrapped_while_it_was_settled_is_settled_the_next_time() {
        let (count, unsettled) = (NonceCount::default(), Unsettled::default());
        let id = VersionId { key: Uuid::nil(), number: 1 };
        count.take(id, &unsettled);
        let told = count.fresh();
        unsettled.take();
        count.take(id, &unsettled);
        assert!(unsettled.take().is_empty());
        count.settle(told, 1, id, &unsettled);
        assert_eq!((unsettled.take(), count.fresh()), (HashSet::from([id]), 1));
    }
}
