//! A frontend's verified copy of the catalog: follows it by its rows, and lets nothing in that the ledger does not vouch for.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::thread::JoinHandle;

use time::OffsetDateTime;
use uuid::Uuid;

use super::ledger::{CatalogKey, Change, Hash, Head, SealedChange, SealedHead, SealedRow, Sum};
use super::record::{KeyRecord, Kind, PolicyRecord, Settings};
use super::replaced::{Former, ReplacedPolicy};
use crate::policy::Policy;
use crate::shared_map::SharedMap;
use crate::snapshot::{Key, KnownKeys, Snapshot, Space, policy_of};

/// Why rows are not taken over. What the frontend held before stays in use.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Tampered {
    /// The head does not open.
    #[error("the catalog's head is refused: {0}")]
    Head(String),
    /// An earlier state than the one that this frontend knows.
    #[error(
        "the catalog went back from revision {known} to {found}; if a backup was restored on purpose, run 'ekm catalog accept-restore'"
    )]
    Backwards {
        /// What this frontend holds.
        known: u64,
        /// What the database says.
        found: u64,
    },
    /// Another history than the one that this frontend knows, though perhaps a longer one.
    #[error(
        "the catalog's log does not go on from revision {known} as this frontend knows it: the database was taken back, and changed since; \
         if a backup was restored on purpose, run 'ekm catalog accept-restore'"
    )]
    Fork {
        /// What this frontend holds.
        known: u64,
    },
    /// Rows are missing, changed, exchanged, or brought back from an earlier state.
    #[error("the catalog's rows do not add up to what its head says")]
    Rows,
    /// The log of changes is not the one that the head vouches for.
    #[error("the catalog's log is refused at revision {revision}: {problem}")]
    Log {
        /// Where.
        revision: u64,
        /// What.
        problem: String,
    },
}

/// The rows that a frontend has verified, and the snapshot made of them. Cheap to clone.
#[derive(Clone)]
pub struct Mirror {
    key: Arc<CatalogKey>,
    head: Head,
    rows: SharedMap<(Kind, Uuid), Held>,
    snapshot: Snapshot,
}

/// What the data plane needs of a row.
enum Record {
    Space(Space),
    Policy(Arc<Policy>, Vec<Former>),
    Key(Arc<Key>, Vec<Former>),
    Settings(Settings),
    /// Approvals, and kinds that this version does not know.
    NotServed,
}

/// A row's term, and what is in it. `known` is the key that it may be, as it was before.
fn open(key: &CatalogKey, row: &SealedRow, known: Option<&Arc<Key>>) -> (Sum, Result<Record, String>) {
    let id = row.id;
    let record = match Kind::from_name(&row.kind) {
        Some(Kind::Space) => key.open_row(row).and_then(|record| Space::new(id, record)).map(Record::Space),
        Some(Kind::Policy) => key
            .open_row(row)
            .and_then(|record: PolicyRecord| Ok(Record::Policy(policy_of(id, &record)?, former(&record.replaced)?))),
        Some(Kind::Key) => key.open_row(row).and_then(|record: KeyRecord| {
            let former = former(&record.replaced_policies)?;
            Ok(Record::Key(Arc::new(Key::new(id, record, known)?), former))
        }),
        Some(Kind::Settings) => key.open_row(row).map(Record::Settings),
        Some(Kind::Approval) | None => Ok(Record::NotServed),
    };
    (key.term(row), record)
}

fn former(replaced: &[ReplacedPolicy]) -> Result<Vec<Former>, String> {
    Former::of(replaced, OffsetDateTime::now_utc())
}

/// A row's place in the sum.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Held {
    revision: u64,
    term: Sum,
}

/// Which rows others have written since a mirror was made, according to the log.
pub struct Since(HashMap<(Kind, Uuid), Held>);

impl Mirror {
    /// Of an empty catalog, at revision 0.
    pub fn new(key: Arc<CatalogKey>) -> Self {
        Self { key, head: Head::empty(), rows: SharedMap::default(), snapshot: Snapshot::default() }
    }

    /// Begins to read the same catalog anew, beside the one in use: key versions that are ready for use stay so.
    pub fn begin_load(&self) -> Loading {
        Loading { mirror: self.empty_successor(), opening: VecDeque::new() }
    }

    /// Takes over the rows that are newer than this mirror. If they do not fit, nothing has changed, and the whole catalog has to be
    /// looked at.
    pub fn apply(&mut self, head: &SealedHead, rows: &[SealedRow]) -> Result<(), Tampered> {
        let head = self.newer(head)?;
        if head.epoch != self.head.epoch {
            return Err(Tampered::Rows); // another history: only a whole load can tell what is in it
        }
        let (mut sum, mut count) = (self.head.sum, self.head.rows);
        for row in rows {
            let held = Kind::from_name(&row.kind).and_then(|kind| self.rows.get(&(kind, row.id)));
            match held {
                Some(held) if held.revision >= row.revision => return Err(Tampered::Rows),
                Some(held) => sum.subtract(&held.term),
                None => count += 1,
            }
            sum.add(&self.key.term(row));
        }
        if (sum, count) != (head.sum, head.rows) {
            return Err(Tampered::Rows);
        }
        for row in rows {
            let (term, record) = open(&self.key, row, self.snapshot.known_key(row.id));
            self.take(row, term, record);
        }
        self.finish(head);
        Ok(())
    }

    /// Takes over what the log vouches for, row by row, when the whole does not add up. A row that is not as the log says is refused;
    /// if this frontend still holds the right one, that stays in use.
    pub fn salvage(
        &self,
        head: &SealedHead,
        rows: impl IntoIterator<Item = SealedRow>,
        log: impl IntoIterator<Item = SealedChange>,
    ) -> Result<Self, Tampered> {
        let head = self.newer(head)?;
        let mut expected = vouched_rows(&self.key, &Head::empty(), &head, log)?;
        let mut mirror = self.empty_successor();
        for row in rows {
            let found = Held { revision: row.revision, term: self.key.term(&row) };
            let place = Kind::from_name(&row.kind).and_then(|kind| expected.remove_entry(&(kind, row.id)));
            match place {
                Some((_, held)) if held == found => {
                    let (term, record) = open(&self.key, &row, mirror.snapshot.known_key(row.id));
                    mirror.take(&row, term, record);
                }
                Some((place, held)) => mirror.refuse(place, held, difference(held, found), self),
                None => mirror.snapshot.refuse(&row.kind, row.id, PUT_IN.into()),
            }
        }
        for (place, held) in expected {
            mirror.refuse(place, held, TAKEN_AWAY, self);
        }
        mirror.finish(head);
        Ok(mirror)
    }

    /// Checks that a head, of the same epoch, has grown out of the state that is held. `log` is what comes after it. A head with a later
    /// revision alone says nothing: the database may have been taken back and then changed.
    pub fn since(&self, head: &SealedHead, log: impl IntoIterator<Item = SealedChange>) -> Result<Since, Tampered> {
        let head = self.newer(head)?;
        let fork = || Tampered::Fork { known: self.head.revision };
        if head.epoch != self.head.epoch {
            return Err(fork());
        }
        // An entry that does not follow the one that is known here was made in another history.
        vouched_rows(&self.key, &self.head, &head, log).map(Since).map_err(|_| fork())
    }

    /// Whether a row is the newest under its kind and id, given what was written since. The error says what is wrong.
    pub fn check_row(&self, since: &Since, kind: Kind, id: Uuid, row: Option<&SealedRow>) -> Result<(), &'static str> {
        let expected = since.0.get(&(kind, id)).or_else(|| self.rows.get(&(kind, id)));
        let found = row.map(|row| Held { revision: row.revision, term: self.key.term(row) });
        match (expected, found) {
            (None, None) => Ok(()),
            (Some(held), Some(found)) => {
                if *held == found {
                    Ok(())
                } else {
                    Err(difference(*held, found))
                }
            }
            (Some(_), None) => Err(TAKEN_AWAY),
            (None, Some(_)) => Err(PUT_IN),
        }
    }

    /// Whether a row is older than the one that is held: for looking at, where one that is newer is welcome.
    pub fn is_outdated(&self, kind: Kind, row: &SealedRow) -> bool {
        self.rows.get(&(kind, row.id)).is_some_and(|held| row.revision < held.revision)
    }

    /// The revision that is held.
    pub fn revision(&self) -> u64 {
        self.head.revision
    }

    /// What the head said.
    pub fn head(&self) -> &Head {
        &self.head
    }

    /// What requests are served from. Cheap to clone.
    pub fn snapshot(&self) -> &Snapshot {
        &self.snapshot
    }

    /// The key that opens the catalog.
    pub fn key(&self) -> &Arc<CatalogKey> {
        &self.key
    }

    /// Opens a head, and refuses one from the past.
    fn newer(&self, sealed: &SealedHead) -> Result<Head, Tampered> {
        let head = self.key.open_head(sealed).map_err(Tampered::Head)?;
        if (head.epoch, head.revision) < (self.head.epoch, self.head.revision) {
            return Err(Tampered::Backwards { known: self.head.revision, found: head.revision });
        }
        Ok(head)
    }

    fn empty_successor(&self) -> Self {
        let mut successor = Self::new(Arc::clone(&self.key));
        successor.snapshot = self.snapshot.empty_successor();
        successor
    }

    fn finish(&mut self, head: Head) {
        self.snapshot.finish(head.revision);
        self.head = head;
    }

    /// Takes over one row that belongs here.
    fn take(&mut self, row: &SealedRow, term: Sum, record: Result<Record, String>) {
        let Some(kind) = Kind::from_name(&row.kind) else {
            return self.snapshot.refuse(&row.kind, row.id, "this version of ekm does not know the kind".into());
        };
        self.rows.insert((kind, row.id), Held { revision: row.revision, term });
        let taken = record.and_then(|record| {
            match record {
                Record::Space(space) => self.snapshot.put_space(row.id, space),
                Record::Policy(policy, former) => self.snapshot.put_policy(row.id, policy, former),
                Record::Key(key, former) => self.snapshot.put_key(&key, former)?,
                Record::Settings(settings) => self.snapshot.put_settings(row.id, settings)?,
                Record::NotServed => {}
            }
            Ok(())
        });
        match taken {
            Ok(()) => self.snapshot.accept(kind, row.id),
            Err(problem) => self.snapshot.refuse(kind.name(), row.id, problem),
        }
    }

    fn refuse(&mut self, (kind, id): (Kind, Uuid), held: Held, problem: &str, before: &Self) {
        self.rows.insert((kind, id), held);
        if before.rows.get(&(kind, id)) == Some(&held) {
            self.snapshot.keep(kind, id, &before.snapshot);
        }
        self.snapshot.refuse(kind.name(), id, problem.into());
    }
}

/// A catalog that is being read from its first row on.
pub struct Loading {
    mirror: Mirror,
    opening: VecDeque<JoinHandle<Vec<Opened>>>,
}

/// A row without its body, its term, and what is in it.
type Opened = (SealedRow, Sum, Result<Record, String>);

impl Loading {
    /// Takes the next rows, in any order.
    pub fn push(&mut self, rows: Vec<SealedRow>) {
        // Ciphers and JSON are most of the work, and no row's depends on another's: other threads do it, some rows ahead of this one.
        let (key, before): (_, KnownKeys) = (Arc::clone(&self.mirror.key), self.mirror.snapshot.before().clone());
        let open = move |row: SealedRow| {
            let (term, record) = open(&key, &row, before.as_ref().and_then(|before| before.get(&row.id)));
            (SealedRow { body: Vec::new(), ..row }, term, record)
        };
        self.opening.push_back(std::thread::spawn(move || rows.into_iter().map(open).collect()));
        if self.opening.len() > std::thread::available_parallelism().map_or(1, usize::from) {
            self.take_next();
        }
    }

    fn take_next(&mut self) {
        let opened = self.opening.pop_front().map(|thread| thread.join().expect("opening a row does not panic"));
        for (row, term, record) in opened.into_iter().flatten() {
            self.mirror.head.sum.add(&term);
            self.mirror.head.rows += 1;
            self.mirror.take(&row, term, record);
        }
    }

    /// All rows have been taken. `before` is what was in use: this one must not be from further in the past.
    pub fn finish(mut self, head: &SealedHead, before: &Mirror) -> Result<Mirror, Tampered> {
        let head = before.newer(head)?;
        while !self.opening.is_empty() {
            self.take_next();
        }
        let mut mirror = self.mirror;
        if (mirror.head.sum, mirror.head.rows) != (head.sum, head.rows) {
            return Err(Tampered::Rows);
        }
        mirror.finish(head);
        Ok(mirror)
    }
}

const TAKEN_AWAY: &str = "it was taken away by somebody else than ekm";
const PUT_IN: &str = "it was put in by somebody else than ekm";

fn difference(held: Held, found: Held) -> &'static str {
    match found.revision.cmp(&held.revision) {
        std::cmp::Ordering::Less => "it was taken back to an earlier state",
        std::cmp::Ordering::Equal => "it was changed by somebody else than ekm",
        std::cmp::Ordering::Greater => "it claims a revision that never was",
    }
}

/// What every row that was written between two heads has to look like, according to the log in between.
fn vouched_rows(
    key: &CatalogKey,
    from: &Head,
    head: &Head,
    log: impl IntoIterator<Item = SealedChange>,
) -> Result<HashMap<(Kind, Uuid), Held>, Tampered> {
    let (mut chain, mut last, mut rows) = (from.chain, from.revision, HashMap::new());
    for sealed in log {
        if last == head.revision {
            break; // later entries belong to later heads
        }
        let change = follow(key, &sealed, last, chain)?;
        (chain, last) = (change.hash(), change.revision);
        for touched in change.rows {
            rows.insert((touched.kind, touched.id), Held { revision: change.revision, term: touched.term });
        }
    }
    if chain != head.chain || last != head.revision {
        return Err(Tampered::Log { revision: last, problem: "it does not end where the head says".into() });
    }
    Ok(rows)
}

/// Opens the entry that has to follow in the log.
pub fn follow(key: &CatalogKey, sealed: &SealedChange, last: u64, chain: Hash) -> Result<Change, Tampered> {
    let refused = |problem: &str| Tampered::Log { revision: sealed.revision, problem: problem.into() };
    let change = key.open_change(sealed).map_err(|problem| refused(&problem))?;
    if change.revision != last + 1 || sealed.revision != change.revision {
        return Err(refused("an entry is missing before it"));
    }
    if change.previous != chain {
        return Err(refused("the entry before it is not the one that it follows"));
    }
    Ok(change)
}
