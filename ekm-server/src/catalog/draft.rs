//! A change on its way into the catalog: rows are read under the head's lock, written with the next revision, and the ledger is
//! brought up to date in the same transaction.

use std::collections::HashMap;

use ekm_core::KeyPath;
use ekm_core::catalog::ledger::{Change, Class, Touched};
use ekm_core::catalog::mirror::Since;
use ekm_core::catalog::{CatalogKey, Head, KeyRecord, Kind, Mirror, SealedRow, Settings};
use ekm_storage::{CatalogStore, Commit, Name, StorageError, Write};
use serde::Serialize;
use serde::de::DeserializeOwned;
use time::OffsetDateTime;
use uuid::Uuid;

use super::open::CatalogError;

/// A change that is not committed yet. Dropping it takes everything back.
pub struct Draft<'a> {
    write: Write<'a>,
    key: &'a CatalogKey,
    head: Head,
    now: OffsetDateTime,
    /// What this frontend knows for certain, and what others have written since.
    known: Option<(&'a Mirror, Since)>,
    /// The rows as they were read.
    before: HashMap<(Kind, Uuid), SealedRow>,
    rows: Vec<SealedRow>,
    touched: Vec<Touched>,
    names: Vec<(Kind, String, Uuid)>,
    due: Vec<(&'static str, Uuid, Option<OffsetDateTime>)>,
}

/// What the log says about a change.
pub struct Entry {
    /// Who.
    pub actor: String,
    /// Who approved it.
    pub approved_by: Option<String>,
    /// Why.
    pub reason: String,
    /// What.
    pub action: String,
    /// To what.
    pub target: String,
    /// How fast it has to spread.
    pub class: Class,
    /// With which parameters.
    pub detail: serde_json::Value,
}

impl Entry {
    /// For what happens by itself.
    pub fn by_ekm(action: &str, target: &str) -> Self {
        Self {
            actor: "ekm".into(),
            approved_by: None,
            reason: String::new(),
            action: action.into(),
            target: target.into(),
            class: Class::Staged,
            detail: serde_json::json!({}),
        }
    }
}

impl<'a> Draft<'a> {
    /// On a transaction that has just begun. `first` stands for the head of a catalog that does not exist yet.
    pub fn begin(
        write: Write<'a>,
        key: &'a CatalogKey,
        first: Option<Head>,
        now: OffsetDateTime,
    ) -> Result<Self, CatalogError> {
        let head = match (write.head(), first) {
            (Some(sealed), _) => key.open_head(sealed).map_err(ekm_core::catalog::Tampered::Head)?,
            (None, Some(first)) => first,
            (None, None) => return Err(StorageError::Empty.into()),
        };
        // The log's times never go back, however clocks jump.
        let now = now.max(head.at);
        let (before, rows, touched) = (HashMap::new(), Vec::new(), Vec::new());
        Ok(Self { write, key, head, now, known: None, before, rows, touched, names: Vec::new(), due: Vec::new() })
    }

    /// By a frontend that follows the catalog. It changes nothing but what it can vouch for: a row that was taken back to an earlier state
    /// would else be the newest one from then on, with everybody's blessing.
    pub async fn follow(store: &'a CatalogStore, mirror: &'a Mirror) -> Result<Self, CatalogError> {
        let mut draft = Self::begin(store.write().await?, mirror.key(), None, OffsetDateTime::now_utc())?;
        let (mut log, mut after) = (Vec::new(), mirror.revision());
        while after < draft.revision()
            && let page = draft.write.changes(after).await?
            && let Some(last) = page.last()
        {
            after = last.revision;
            log.extend(page);
        }
        if draft.epoch() > mirror.head().epoch {
            return Err(CatalogError::Behind); // restored on purpose, and not yet taken over here
        }
        let head = draft.write.head().ok_or(StorageError::Empty)?;
        let since = mirror.since(head, log)?;
        draft.known = Some((mirror, since));
        Ok(draft)
    }

    /// The same transaction, without what was put so far.
    pub fn start_over(self) -> Result<Self, CatalogError> {
        Ok(Self { known: self.known, ..Self::begin(self.write, self.key, None, self.now)? })
    }

    /// The revision that the catalog has before this change.
    pub fn revision(&self) -> u64 {
        self.head.revision
    }

    /// The revision that this change makes: nobody else can take it.
    pub fn next_revision(&self) -> u64 {
        self.head.revision + 1
    }

    /// What counts as now for this change.
    pub fn now(&self) -> OffsetDateTime {
        self.now
    }

    /// A record, with the revision that wrote it.
    pub async fn read<T: DeserializeOwned>(&mut self, kind: Kind, id: Uuid) -> Result<Option<(T, u64)>, CatalogError> {
        let row = self.write.row(kind.name(), id).await?;
        if let Some((mirror, since)) = &self.known {
            let (table, wrong) = ("records", format!("{} {id}", kind.name()));
            let checked = mirror.check_row(since, kind, id, row.as_ref());
            checked.map_err(|problem| StorageError::Row { table, row: wrong, problem: problem.into() })?;
        }
        let Some(row) = row else { return Ok(None) };
        let record = self.key.open_row(&row).map_err(|problem| refused(&row, problem))?;
        let revision = row.revision;
        self.before.insert((kind, id), row);
        Ok(Some((record, revision)))
    }

    /// What holds for the whole catalog, with the revision that wrote it.
    pub async fn settings(&mut self) -> Result<(Settings, u64), CatalogError> {
        Ok(self.read(Kind::Settings, Uuid::nil()).await?.unwrap_or_default())
    }

    /// A record as it will be after this change, for looking at.
    pub async fn peek<T: DeserializeOwned>(&mut self, kind: Kind, id: Uuid) -> Result<Option<T>, CatalogError> {
        if let Some(row) = self.before.get(&(kind, id)) {
            return Ok(Some(self.key.open_row(row).map_err(|problem| refused(row, problem))?));
        }
        Ok(self.read(kind, id).await?.map(|(record, _)| record))
    }

    /// What a path or name belongs to, now or once, or after this change.
    pub async fn id_of(&mut self, kind: Kind, name: &str) -> Result<Option<Uuid>, CatalogError> {
        if let Some((.., id)) = self.names.iter().find(|(known, given, _)| (*known, given.as_str()) == (kind, name)) {
            return Ok(Some(*id));
        }
        let id = self.write.id_of(kind.name(), name).await?;
        // Somebody may have taken the name away from a key that still has it.
        let known = || self.known.as_ref()?.0.snapshot().key(&KeyPath::parse(name).ok()?).ok().map(|key| key.id);
        Ok(if kind == Kind::Key { id.or_else(known) } else { id })
    }

    /// What the same request has been answered, if it was carried out already.
    pub async fn answered(&mut self, request: &str) -> Result<Option<Vec<u8>>, CatalogError> {
        Ok(self.write.request(request).await?.map(|(_, answer)| answer))
    }

    /// Gives a path or name out, for ever.
    pub fn name(&mut self, kind: Kind, name: &str, id: Uuid) {
        self.names.push((kind, name.to_owned(), id));
    }

    /// Writes a record. One that was there has been read before.
    pub fn put(&mut self, kind: Kind, id: Uuid, record: &impl Serialize) -> Result<(), CatalogError> {
        let row = self.key.seal_row(kind, id, self.next_revision(), record)?;
        let term = self.key.term(&row);
        match self.before.get(&(kind, id)) {
            Some(before) => self.head.sum.subtract(&self.key.term(before)),
            None => self.head.rows += 1,
        }
        self.head.sum.add(&term);
        self.touched.push(Touched { kind, id, term });
        self.before.insert((kind, id), row.clone());
        self.rows.push(row);
        Ok(())
    }

    /// Writes a key, and notes when it has to be looked at again.
    pub fn put_key(&mut self, key: &KeyRecord) -> Result<(), CatalogError> {
        // A bug of ours: better no change than a row that every frontend refuses.
        key.check().map_err(|problem| {
            tracing::error!(code = "internal", key = key.name(), problem, "the new row of a key is not sound");
            CatalogError::Internal(format!("the new row of {}: {problem}", key.name()))
        })?;
        self.put(Kind::Key, key.id, key)?;
        self.look_again(Kind::Key, key.id, key.next_due());
        Ok(())
    }

    /// Notes when a row has to be looked at again; `None` for never.
    pub fn look_again(&mut self, kind: Kind, id: Uuid, at: Option<OffsetDateTime>) {
        self.due.push((kind.name(), id, at));
    }

    /// Makes it last. `request` is the request's id with its answer, for a request that may be repeated. Returns the revision.
    pub async fn commit(mut self, entry: Entry, request: Option<(&str, &[u8])>) -> Result<u64, CatalogError> {
        let revision = self.next_revision();
        let change = Change {
            revision,
            at: self.now,
            actor: entry.actor,
            approved_by: entry.approved_by,
            reason: entry.reason,
            action: entry.action,
            target: entry.target,
            class: entry.class,
            detail: entry.detail,
            rows: self.touched,
            previous: self.head.chain,
        };
        (self.head.revision, self.head.at, self.head.chain) = (revision, self.now, change.hash());
        let (head, sealed) = (self.key.seal_head(&self.head)?, self.key.seal_change(&change)?);
        let names: Vec<_> =
            self.names.iter().map(|(kind, name, id)| Name { kind: kind.name(), name, id: *id }).collect();
        let commit = Commit { head: &head, rows: &self.rows, names: &names, change: &sealed, due: &self.due, request };
        self.write.commit(commit).await?;
        Ok(revision)
    }

    /// Takes everything back.
    pub async fn abandon(self) -> Result<(), StorageError> {
        self.write.abandon().await
    }

    /// Begins another epoch: the database was taken back to an earlier state on purpose, and what frontends remember of later ones does
    /// not count any more.
    pub fn begin_epoch(&mut self, epoch: u64) {
        self.head.epoch = epoch;
    }

    /// The epoch before this change.
    pub fn epoch(&self) -> u64 {
        self.head.epoch
    }
}

fn refused(row: &SealedRow, problem: String) -> StorageError {
    StorageError::Row { table: "records", row: format!("{} {}", row.kind, row.id), problem }
}
