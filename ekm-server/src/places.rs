//! Who may stay when there are too many connections.
//!
//! Until a request on it has had a good token, a connection is a stranger's. Strangers have a bound of their own, so that idle ones can neither take
//! much memory nor push out the connections that callers keep open.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::config::Limits;
use crate::connection::{Activity, Clocks};

type List = HashMap<u64, Arc<Activity>>;

/// The open connections of a listener.
pub struct Places {
    max_connections: usize,
    /// No more than this many, but for those that are busy, and newcomers.
    pub max_strangers: usize,
    grace: Duration,
    /// Those known by now among them are moved before anybody has to go.
    strangers: List,
    known: List,
}

impl Places {
    /// Without a bound on strangers.
    pub fn new(limits: &Limits) -> Self {
        Self {
            max_connections: limits.max_connections,
            max_strangers: limits.max_connections,
            grace: Clocks::new(limits).grace,
            strangers: List::new(),
            known: List::new(),
        }
    }

    /// Enters a connection, if there is a place for it, or another one can go for it.
    pub fn admit(&mut self, number: u64, activity: &Arc<Activity>) -> bool {
        if self.is_full() || self.has_too_many_strangers() {
            self.known.extend(self.strangers.extract_if(|_, activity| activity.is_authenticated()));
            if !self.make_room() {
                return false;
            }
        }
        self.strangers.insert(number, Arc::clone(activity));
        true
    }

    /// Strikes out a connection.
    pub fn remove(&mut self, number: u64) -> Option<Arc<Activity>> {
        self.strangers.remove(&number).or_else(|| self.known.remove(&number))
    }

    fn is_full(&self) -> bool {
        self.strangers.len() + self.known.len() >= self.max_connections
    }

    fn has_too_many_strangers(&self) -> bool {
        self.strangers.len() >= self.max_strangers
    }

    /// Whoever goes has no request under way. Strangers who have had their time are first. If all strangers are newcomers, one of them goes only
    /// when there is no place for anybody more, and before a known one only if they have more places than strangers may: else, where known ones
    /// who are idle have all the places, newcomers could only push out each other.
    fn make_room(&mut self) -> bool {
        let now = Instant::now();
        let had_its_time = || idle_longest(&self.strangers, |activity| !activity.is_new(now, self.grace));
        let newcomer = || idle_longest(&self.strangers, |_| true);
        let known = || idle_longest(&self.known, |_| true);
        let (goes, reason) = match (self.is_full(), self.has_too_many_strangers()) {
            (false, false) => return true,
            (false, true) => match had_its_time() {
                None => return true,
                goes => (goes, "evicted_unauthenticated"),
            },
            (true, true) => (had_its_time().or_else(newcomer).or_else(known), "evicted"),
            (true, false) => (had_its_time().or_else(known).or_else(newcomer), "evicted"),
        };
        let gone = goes.and_then(|number| self.remove(number));
        gone.inspect(|activity| activity.evict(reason)).is_some()
    }
}

/// Of those that count.
fn idle_longest(list: &List, counts: impl Fn(&Activity) -> bool) -> Option<u64> {
    let candidates = list.iter().filter(|(_, activity)| counts(activity));
    let idle = candidates.filter_map(|(&number, activity)| Some((activity.idle_since()?, number)));
    idle.min().map(|(_, number)| number)
}
