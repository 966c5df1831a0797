//! Following the catalog: what is new is verified, published to the data plane, and kept on disk.
//!
//! On a thread of its own, since verifying a million rows takes seconds.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use ekm_core::catalog::{CatalogKey, Mirror, SealedHead, SealedRow, Tampered};
use ekm_core::hsm::Shard;
use ekm_core::software::KeyFile;
use ekm_storage::{CatalogStore, Listener, StorageError};
use tokio::sync::{Notify, watch};

use super::open::{CatalogError, unlock};
use super::own_copy::{OwnCopy, load};
use crate::config::CatalogConfig;
use crate::router::DataPlane;

/// Between two attempts to listen.
const LISTEN_AGAIN: Duration = Duration::from_secs(5);
/// Between two looks at the catalog, however often somebody wants one.
const MIN_POLL_INTERVAL: Duration = Duration::from_millis(2);
/// How long a follower of the database may lag behind a hint before the leader is asked.
const LAG_PATIENCE: Duration = Duration::from_secs(1);
/// How often the copy on disk is confirmed while nothing changes.
const CONFIRM_INTERVAL: Duration = Duration::from_secs(600);

/// What the follower and the rest of the process tell each other.
#[derive(Default)]
pub struct Gate {
    mirror: Mutex<Option<Arc<Mirror>>>,
    changed: Notify,
    problem: Mutex<Option<String>>,
    /// When the last look at the catalog began that came to an end, well or not.
    looked: watch::Sender<Option<(Instant, bool)>>,
}

impl Gate {
    /// What this frontend knows for certain, once it has read the catalog.
    pub fn mirror(&self) -> Option<Arc<Mirror>> {
        self.mirror.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The same, for what cannot do without; the error says why it is not open yet.
    pub fn known(&self) -> Result<Arc<Mirror>, CatalogError> {
        let locked = || CatalogError::Locked(self.problem().unwrap_or_else(|| "it is being opened".into()));
        self.mirror().ok_or_else(locked)
    }

    /// Something was changed here: look at once.
    pub fn nudge(&self) {
        self.changed.notify_one();
    }

    /// Looks at the catalog at once, together with everybody who wants that now, and waits until what was found is in use. False if it
    /// could not be read, or not by `until`.
    pub async fn catch_up(&self, until: Instant) -> bool {
        let (asked, mut looked) = (Instant::now(), self.looked.subscribe());
        self.nudge();
        let since = |looked: &Option<(Instant, bool)>| looked.is_some_and(|(began, _)| began >= asked);
        let seen = tokio::time::timeout_at(until.into(), looked.wait_for(since)).await;
        matches!(seen, Ok(Ok(seen)) if seen.is_some_and(|(_, well)| well))
    }

    /// Why the catalog could not be followed the last time.
    pub fn problem(&self) -> Option<String> {
        self.problem.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set_mirror(&self, mirror: Arc<Mirror>) {
        *self.mirror.lock().unwrap_or_else(PoisonError::into_inner) = Some(mirror);
    }

    fn set_problem(&self, problem: Option<String>) {
        *self.problem.lock().unwrap_or_else(PoisonError::into_inner) = problem;
    }
}

/// Keeps the data plane's snapshot up to date.
pub struct Follower {
    store: Arc<CatalogStore>,
    plane: Arc<DataPlane>,
    gate: Arc<Gate>,
    key_file: Option<KeyFile>,
    copy: Option<OwnCopy>,
    mirror: Option<Arc<Mirror>>,
    /// The catalog key's wrapped forms as they last opened.
    keys: Vec<(String, Vec<u8>)>,
    /// As it was read last.
    head: Option<SealedHead>,
    /// Whether the rows did when all of them were read last.
    added_up: bool,
    read_at: Instant,
    /// How old the snapshot was at `read_at`.
    age_then: Duration,
    verified_at: Instant,
    saved_at: Instant,
    /// Whether the copy on disk has to be written as a whole. Not at once, since a large one takes longer to write than to read.
    whole_copy_due: bool,
    poll_interval: Duration,
    verify_interval: Duration,
}

impl Follower {
    /// Not started yet.
    pub fn new(
        config: &CatalogConfig,
        store: Arc<CatalogStore>,
        plane: Arc<DataPlane>,
        gate: Arc<Gate>,
        key_file: Option<KeyFile>,
    ) -> Self {
        let now = Instant::now();
        Self {
            copy: config.snapshot_file.as_deref().map(|file| OwnCopy::new(file, store.location())),
            store,
            plane,
            gate,
            key_file,
            mirror: None,
            keys: Vec::new(),
            head: None,
            added_up: true,
            read_at: now,
            age_then: Duration::MAX,
            verified_at: now,
            saved_at: now,
            whole_copy_due: false,
            poll_interval: Duration::from_millis(config.poll_interval_ms.max(10)),
            verify_interval: Duration::from_secs(config.verify_interval_s.max(1)),
        }
    }

    /// The first snapshot: from the copy on disk, then what the database has since. Fails for what will not pass by itself; without
    /// database or HSM the service starts all the same, serves what it can, and says what it cannot.
    pub async fn start(&mut self) -> Result<(), CatalogError> {
        if let Some(copy) = &mut self.copy {
            match copy.load(self.plane.ekm.custodian(), self.key_file.as_ref()).await {
                Ok(Some(loaded)) => {
                    let revision = loaded.mirror.revision();
                    tracing::info!(
                        revision,
                        age_s = loaded.age.map(|age| age.as_secs()),
                        "started from the snapshot on disk"
                    );
                    self.age_then = loaded.age.unwrap_or(Duration::MAX);
                    (self.head, self.keys) = (Some(loaded.head), loaded.keys);
                    self.publish(loaded.mirror);
                }
                Ok(None) => {}
                Err(error) => tracing::error!(code = error.code(), %error, "the snapshot on disk cannot be opened yet"),
            }
        }
        match self.catch_up().await {
            Ok(()) => self.note_age(),
            Err(error) if self.mirror.is_none() && is_lasting(&error) => return Err(error),
            Err(error) => self.note_failure(&error),
        }
        Ok(())
    }

    /// Follows until `stop`. Blocks: it is a thread's whole life.
    pub fn run(mut self, stop: watch::Receiver<bool>) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        match runtime {
            Ok(runtime) => runtime.block_on(self.follow(stop)),
            Err(error) => tracing::error!(%error, "the catalog is not followed"),
        }
    }

    async fn follow(&mut self, mut stop: watch::Receiver<bool>) {
        // Connections belong to the runtime that made them.
        self.store.look_again(false).await;
        let (mut listener, mut connecting) = (None, None::<Connecting>);
        let mut looked_at = Instant::now();
        let (mut tried_at, mut expected) = (None::<Instant>, None::<(u64, Instant)>);
        loop {
            tokio::select! {
                _ = stop.wait_for(|stop| *stop) => return,
                () = self.write_whole_copy() => {}
            }
            if listener.is_none() && connecting.is_none() && tried_at.is_none_or(|at| at.elapsed() > LISTEN_AGAIN) {
                tried_at = Some(Instant::now());
                let store = Arc::clone(&self.store);
                // Beside the polling: servers that are gone are waited for.
                connecting = Some(tokio::spawn(async move { store.listen().await }));
            }
            let interval =
                if expected.is_some() { self.poll_interval.min(Duration::from_millis(20)) } else { self.poll_interval };
            let gate = Arc::clone(&self.gate);
            tokio::select! {
                _ = stop.wait_for(|stop| *stop) => return,
                () = tokio::time::sleep(interval) => {}
                () = gate.changed.notified() => {}
                connected = finished(&mut connecting) => {
                    connecting = None;
                    listener = connected.unwrap_or_else(|error| {
                        tracing::debug!(%error, "no notifications; polling goes on");
                        None
                    });
                }
                hint = hint(&mut listener) => match hint {
                    Ok(revision) => expected = Some((revision, Instant::now())),
                    Err(error) => {
                        tracing::debug!(%error, "notifications lost; polling goes on");
                        listener = None;
                        self.store.look_again(false).await;
                    }
                },
            }
            // Whoever asks for keys that are not there must not keep the database busy.
            let pause = MIN_POLL_INTERVAL.saturating_sub(looked_at.elapsed());
            tokio::time::sleep(pause).await;
            looked_at = Instant::now();
            let caught_up = tokio::select! {
                _ = stop.wait_for(|stop| *stop) => return,
                caught_up = self.catch_up() => caught_up,
            };
            self.gate.looked.send_replace(Some((looked_at, caught_up.is_ok())));
            match caught_up {
                Ok(()) => {
                    self.gate.set_problem(None);
                    self.plane.metrics.catalog_follow_failed.set(0);
                }
                Err(error) => self.note_failure(&error),
            }
            let revision = self.mirror.as_deref().map_or(0, Mirror::revision);
            match expected {
                Some((wanted, _)) if revision >= wanted => expected = None,
                Some((_, since)) if since.elapsed() > LAG_PATIENCE => {
                    self.store.look_again(true).await;
                    expected = None;
                }
                _ => {}
            }
            self.note_age();
        }
    }

    /// Takes over what is new.
    pub async fn catch_up(&mut self) -> Result<(), CatalogError> {
        if self.head.is_none() {
            self.store.schema().await?.check()?;
        }
        let head = self.store.head().await?.ok_or(StorageError::Empty)?;
        let Some(mirror) = self.mirror.clone() else {
            let key = self.unlock(&head).await?;
            return self.load_all(&Mirror::new(key)).await;
        };
        // The head itself would be refused, too; but perhaps after a whole catalog was read for nothing.
        if mirror.key().catalog() != head.catalog {
            return Err(Tampered::Head("it is another catalog than the one that this frontend knows".into()).into());
        }
        if self.verified_at.elapsed() > self.verify_interval {
            self.verified_at = Instant::now(); // also when it fails: it is a lot of work
            return self.load_all(&mirror).await;
        }
        if self.head.as_ref() == Some(&head) {
            self.read();
            if self.saved_at.elapsed() > CONFIRM_INTERVAL {
                self.save(head.revision, &head, &[]).await;
            }
            return Ok(());
        }
        let (revision, newer) = (mirror.revision(), self.store.read_since(mirror.revision()).await?);
        let mut next = Mirror::clone(&mirror);
        let applied = match &newer {
            Some((head, rows)) => next.apply(head, rows),
            None => Err(Tampered::Rows), // too many for a delta
        };
        match (applied, newer) {
            (Ok(()), Some((head, rows))) => {
                self.head = Some(head.clone());
                self.publish(next);
                self.read();
                self.save(revision, &head, &rows).await;
                Ok(())
            }
            (Err(Tampered::Rows), _) => self.load_all(&mirror).await,
            (Err(Tampered::Backwards { .. }), _) => self.maybe_backwards(revision).await,
            (Err(tampered), _) => Err(tampered.into()),
            (Ok(()), None) => unreachable!("without rows nothing was applied"),
        }
    }

    async fn unlock(&mut self, head: &SealedHead) -> Result<Arc<CatalogKey>, CatalogError> {
        let keys = self.store.catalog_keys().await?;
        let key = unlock(head.catalog, &keys, self.plane.ekm.custodian(), self.key_file.as_ref()).await?;
        self.keys = keys;
        Ok(key)
    }

    /// Takes over what wraps the catalog key now, for the copy on disk, if it opens: else it would spread from a damaged database to all
    /// copies, and nobody could start any more.
    async fn renew_keys(&mut self, key: &CatalogKey) -> Result<(), CatalogError> {
        let found = self.store.catalog_keys().await?;
        if found == self.keys {
            return Ok(());
        }
        let opened = unlock(key.catalog(), &found, self.plane.ekm.custodian(), self.key_file.as_ref()).await;
        match opened {
            Ok(opened) if opened.material() == key.material() => self.keys = found,
            Ok(_) => tracing::error!(
                code = "catalog_key",
                "the database holds another key for this catalog; it is not taken over"
            ),
            Err(error) => {
                tracing::error!(code = error.code(), %error, "the catalog's key in the database is not taken over")
            }
        }
        Ok(())
    }

    /// Reads the whole catalog. If it does not add up, takes over what the log vouches for.
    async fn load_all(&mut self, before: &Mirror) -> Result<(), CatalogError> {
        let (head, mirror) = match load(&self.store, before).await {
            Err(CatalogError::Tampered(Tampered::Rows)) => {
                self.added_up = false;
                tracing::error!(
                    code = "catalog_tampered",
                    "the catalog's rows do not add up to what its head says; looking for the wrong ones in its log"
                );
                let mut rows = Vec::new();
                let head = self
                    .store
                    .read_all(async |page| {
                        rows.extend(page);
                        Ok(())
                    })
                    .await?;
                let log = self.log_since(0).await?;
                let mirror = before.salvage(&head, rows, log)?;
                (head, mirror)
            }
            Err(CatalogError::Tampered(Tampered::Backwards { .. })) => {
                return self.maybe_backwards(before.revision()).await;
            }
            loaded => {
                let loaded = loaded?;
                self.added_up = true;
                loaded
            }
        };
        let (known, found) = (before.head(), mirror.head());
        if known.revision > 0 && known.epoch == found.epoch && known.chain != found.chain {
            before.since(&head, self.log_since(known.revision).await?)?;
        }
        let is_new = self.head.as_ref() != Some(&head);
        self.head = Some(head.clone());
        self.publish(mirror);
        self.read();
        self.verified_at = Instant::now();
        let lags = self.copy.as_ref().is_some_and(|copy| copy.revision() != Some(head.revision));
        self.whole_copy_due = is_new || lags;
        Ok(())
    }

    /// Writes the copy on disk, if the whole catalog was read, and is in use already.
    async fn write_whole_copy(&mut self) {
        if std::mem::take(&mut self.whole_copy_due)
            && let Some(head) = self.head.clone()
        {
            self.save(u64::MAX, &head, &[]).await;
        }
    }

    async fn log_since(&self, mut revision: u64) -> Result<Vec<ekm_core::catalog::SealedChange>, StorageError> {
        let mut log = Vec::new();
        while let page = self.store.changes(revision, 1000).await?
            && let Some(last) = page.last()
        {
            revision = last.revision;
            log.extend(page);
        }
        Ok(log)
    }

    /// An earlier state: a follower of the database that lags, which is nothing; or the database was taken back.
    async fn maybe_backwards(&self, known: u64) -> Result<(), CatalogError> {
        let newest = self.store.newest_head().await?.ok_or(StorageError::Empty)?;
        if newest.revision >= known {
            self.store.look_again(true).await;
            return Ok(());
        }
        Err(Tampered::Backwards { known, found: newest.revision }.into())
    }

    fn publish(&mut self, mirror: Mirror) {
        let mirror = Arc::new(mirror);
        self.gate.set_mirror(Arc::clone(&mirror));
        self.plane.ekm.publish(mirror.snapshot().clone());
        let snapshot = mirror.snapshot();
        // Without knowing they stay as they are.
        if let Some(drained) = snapshot.drained_replicas() {
            let replicas = self.plane.ekm.custodian().shards().iter().flat_map(Shard::replicas);
            replicas.for_each(|replica| replica.set_drained(drained.contains(replica.name())));
        }
        for problem in snapshot.refused() {
            tracing::error!(code = "catalog_row", problem, "catalog row refused");
        }
        tracing::info!(revision = snapshot.revision(), paths = snapshot.path_count(), "catalog in use");
        self.mirror = Some(mirror);
    }

    fn read(&mut self) {
        (self.read_at, self.age_then) = (Instant::now(), Duration::ZERO);
    }

    async fn save(&mut self, before: u64, head: &SealedHead, rows: &[SealedRow]) {
        let Some(key) = self.mirror.as_ref().map(|mirror| Arc::clone(mirror.key())) else { return };
        // While rows are refused the copy keeps its good ones; newer ones can be added if it holds all that came before.
        if self.copy.as_ref().is_none_or(|copy| !self.added_up && copy.revision() != Some(before)) {
            return;
        }
        if let Err(error) = self.renew_keys(&key).await {
            tracing::error!(code = error.code(), %error, "the catalog's key in the database cannot be read");
        }
        if let Some(copy) = &mut self.copy {
            if let Err(error) = copy.save(&self.store, &key, before, head, rows, &self.keys).await {
                tracing::error!(
                    code = "snapshot_write", %error, file = %copy.path().display(),
                    "the snapshot on disk is not written; a restart while the database is away would begin with an older one or none"
                );
            }
            self.saved_at = Instant::now();
            let revision = copy.revision().unwrap_or_default();
            self.plane.metrics.snapshot_file_revision.set(revision.cast_signed());
        }
    }

    fn note_age(&self) {
        let age = self.age_then.saturating_add(self.read_at.elapsed());
        self.plane.metrics.catalog_age.set(age.as_secs_f64());
    }

    fn note_failure(&self, error: &CatalogError) {
        let text = format!("{error} [{}]", error.code());
        // Once for each kind of trouble, not twice a second.
        if self.gate.problem().as_ref() != Some(&text) {
            tracing::error!(code = error.code(), %error, "catalog not followed; the snapshot in use stays");
        }
        self.gate.set_problem(Some(text));
        self.plane.metrics.catalog_follow_failed.set(1);
        self.note_age();
    }
}

/// An attempt to listen.
type Connecting = tokio::task::JoinHandle<Result<Option<Listener>, StorageError>>;

/// Never resolves without an attempt.
async fn finished(connecting: &mut Option<Connecting>) -> Result<Option<Listener>, StorageError> {
    match connecting {
        Some(attempt) => attempt.await.unwrap_or_else(|panicked| Err(StorageError::Unreachable(panicked.to_string()))),
        None => std::future::pending().await,
    }
}

/// Never resolves without a listener.
async fn hint(listener: &mut Option<Listener>) -> Result<u64, StorageError> {
    match listener {
        Some(listener) => listener.changed().await,
        None => std::future::pending().await,
    }
}

/// What a start cannot wait for to pass.
fn is_lasting(error: &CatalogError) -> bool {
    match error {
        CatalogError::Locked(_) => false,
        CatalogError::Storage(error) => !matches!(
            error,
            StorageError::Unreachable(_)
                | StorageError::NoLeader(_)
                | StorageError::Timeout(_)
                | StorageError::Database(_)
        ),
        _ => true,
    }
}
