//! createKey, destroyKey and checkCryptoSpacePermissions: what Cloud KMS does itself, on connections that let it manage keys.
//!
//! Every one of them may be repeated: createKey for the same name gets the same key, also while it is being made, also from another
//! frontend. A key is made by a task of its own, since the caller gives up after 150 ms and an HSM may take longer.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use ekm_core::blob::VersionId;
use ekm_core::catalog::ledger::Class;
use ekm_core::catalog::{KeyCreation, KeyRecord, KeyState, Kind, Outcome, SpaceRecord, VersionRecord};
use ekm_core::policy::Verb;
use ekm_core::{Algorithm, Error, Key, KeyPath, NotInUse, Request, Space, Trace};
use ekm_storage::CatalogStore;
use serde_json::json;
use tokio::sync::{Semaphore, watch};
use uuid::Uuid;

use crate::catalog::{CatalogError, Draft, Entry, Gate};
use crate::custodian::take_from_token;
use crate::router::DataPlane;

/// How many keys may be made at a time: an HSM makes one after the other, and requests for data keys come first.
const AT_A_TIME: usize = 8;
/// How long a new key may take to come into use here after it was made.
const SPREADING: Duration = Duration::from_secs(5);
/// Kept for the answer, after others were waited for.
const RESERVE: Duration = Duration::from_millis(5);

/// The way of the data plane to the catalog's database, for what it cannot do without.
pub struct Control {
    store: Arc<CatalogStore>,
    gate: Arc<Gate>,
    making: Mutex<HashMap<Wanted, watch::Receiver<Option<Made>>>>,
    room: Arc<Semaphore>,
}

/// A key by its name at Cloud KMS, in a crypto space.
type Wanted = (Uuid, String);

/// What became of it: for everybody who asked for it meanwhile.
type Made = Result<KeyPath, Refusal>;

#[derive(Clone)]
enum Refusal {
    Exists(String),
    Destroyed,
    TooMany(u32),
    NotAllowed,
    Pending,
    Hsm(String),
    Catalog(String),
}

impl Control {
    /// Nothing is being made yet.
    pub fn new(store: Arc<CatalogStore>, gate: Arc<Gate>) -> Self {
        Self { store, gate, making: Mutex::default(), room: Arc::new(Semaphore::new(AT_A_TIME)) }
    }

    /// Takes over what the catalog has by now. Whether that was so in time.
    pub async fn catch_up(&self, deadline: Instant) -> bool {
        self.gate.catch_up(deadline - RESERVE).await
    }

    /// Whether this frontend cannot follow the catalog, so that there is no sense in waiting for it.
    pub fn is_cut_off(&self) -> bool {
        self.gate.problem().is_some()
    }

    fn making(&self) -> MutexGuard<'_, HashMap<Wanted, watch::Receiver<Option<Made>>>> {
        self.making.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Makes the key of that name in a crypto space, or finds it.
pub async fn create_key(
    plane: &Arc<DataPlane>,
    request: &Request<'_>,
    algorithm: Algorithm,
    trace: &mut Trace,
) -> Result<KeyPath, Error> {
    let space = plane.ekm.permitted_in_space(request, Verb::CreateKey, trace)?;
    let name = request.resource.unwrap_or_default();
    let creation = space.creation.clone().ok_or(Error::Internal("a crypto space was permitted without creation"))?;
    if !creation.algorithms.is_empty() && !creation.algorithms.contains(&algorithm) {
        let offered: Vec<_> = creation.algorithms.iter().map(|algorithm| algorithm.name()).collect();
        let text = format!("this crypto space makes {} only", offered.join(", "));
        return Err(Error::AlgorithmNotOffered(text));
    }
    if let Some(key) = plane.ekm.snapshot().created_for(&space, name) {
        trace.key = Some(key.id);
        return Ok(found(key, algorithm)?);
    }
    let path = wait_for(plane, space, name, creation, algorithm, request).await?;
    trace.key = plane.ekm.snapshot().key(&path).ok().map(|key| key.id);
    Ok(path)
}

/// The key under the name, if it is the one that is asked for.
fn found(key: &Key, algorithm: Algorithm) -> Result<KeyPath, Refusal> {
    if key.algorithm != algorithm {
        return Err(Refusal::Exists(key.algorithm.name().into()));
    }
    if key.destroyed_by_caller || key.state == KeyState::Destroyed {
        return Err(Refusal::Destroyed);
    }
    key.paths.first().cloned().ok_or(Refusal::Pending)
}

/// Joins whoever makes this key already, or has it made.
async fn wait_for(
    plane: &Arc<DataPlane>,
    space: Arc<Space>,
    name: &str,
    creation: KeyCreation,
    algorithm: Algorithm,
    request: &Request<'_>,
) -> Result<KeyPath, Error> {
    let wanted = (space.id(), name.to_owned());
    let mut outcome = {
        let mut making = plane.control.making();
        match making.get(&wanted) {
            Some(outcome) => outcome.clone(),
            None => {
                let room = Arc::clone(&plane.control.room).try_acquire_owned().map_err(|_| Error::Overloaded)?;
                let (done, outcome) = watch::channel(None);
                making.insert(wanted.clone(), outcome.clone());
                let done_with = wanted.clone();
                let order = Order {
                    space,
                    name: name.to_owned(),
                    creation,
                    algorithm,
                    caller: request.caller.email.to_string(),
                    reason: request.justification.name().to_owned(),
                };
                let plane = Arc::clone(plane);
                tokio::spawn(async move {
                    let made = order.carry_out(&plane).await;
                    // First out of the map: whoever comes now finds it in the snapshot, or begins anew.
                    plane.control.making().remove(&done_with);
                    done.send_replace(Some(made));
                    drop(room);
                });
                outcome
            }
        }
    };
    let deadline = request.deadline - RESERVE;
    let made = tokio::time::timeout_at(deadline.into(), outcome.wait_for(Option::is_some)).await;
    match made {
        Ok(Ok(made)) => match made.clone() {
            // Whoever joined may have asked for another algorithm under the same name.
            Some(Ok(path)) => match plane.ekm.snapshot().key(&path) {
                Ok(key) => Ok(found(key, algorithm)?),
                Err(_) => Err(Error::KeyPending),
            },
            Some(Err(refusal)) => Err(refusal.into()),
            None => Err(Error::KeyPending),
        },
        Ok(Err(_)) => {
            plane.control.making().remove(&wanted);
            Err(Error::Internal("the task that made a key has ended"))
        }
        Err(_) => Err(Error::KeyPending),
    }
}

/// A key to be made.
struct Order {
    space: Arc<Space>,
    name: String,
    creation: KeyCreation,
    algorithm: Algorithm,
    caller: String,
    reason: String,
}

impl Order {
    async fn carry_out(&self, plane: &DataPlane) -> Result<KeyPath, Refusal> {
        let control = &plane.control;
        if control.store.id_of(Kind::Key.name(), &self.catalog_name()).await.map_err(catalog)?.is_some() {
            return self.in_catalog(plane).await;
        }
        let count = plane.ekm.snapshot().key_count(&self.space);
        if count >= self.creation.max_keys {
            return Err(Refusal::TooMany(count));
        }
        let id = VersionId { key: Uuid::now_v7(), number: 1 };
        let made = plane.ekm.custodian().generate(self.algorithm, self.creation.custody, &self.space.shard, id).await;
        let made = made.map_err(|error| Refusal::Hsm(error.to_string()))?;
        let added = self.add(plane, made.clone()).await;
        match &added {
            Ok(true) => {}
            // Nobody knows whether the catalog has it, so it stays.
            Err(error) if error.is_unknown() => {}
            Ok(false) | Err(_) => take_from_token(plane.ekm.custodian(), [made]).await,
        }
        match added {
            Ok(_) => self.in_catalog(plane).await,
            Err(error) => Err(catalog(error)),
        }
    }

    /// Puts the key into the catalog, unless another frontend was faster or it is not wanted any more.
    async fn add(&self, plane: &DataPlane, made: VersionRecord) -> Result<bool, CatalogError> {
        let control = &plane.control;
        let mirror = control.gate.known()?;
        let mut draft = Draft::follow(&control.store, &mirror).await?;
        let now = draft.now();
        let space = draft.read::<SpaceRecord>(Kind::Space, self.space.id()).await?;
        let creation = space.and_then(|(space, _)| space.creation);
        let taken = draft.id_of(Kind::Key, &self.catalog_name()).await?.is_some();
        if taken || creation.as_ref() != Some(&self.creation) {
            draft.abandon().await?;
            return Ok(false);
        }
        let path =
            KeyPath::parse(&format!("v0/keys/{}", made.id.key)).expect("a UUID has no characters that paths refuse");
        let record = KeyRecord::new(made, self.space.id(), self.creation.policy, self.algorithm, now);
        let mut record = record.map_err(|impossible| CatalogError::Internal(impossible.problem))?;
        record.paths.push(path.clone());
        record.created_for = Some(self.name.clone());
        draft.name(Kind::Key, path.as_str(), record.id);
        draft.name(Kind::Key, &self.catalog_name(), record.id);
        draft.put_key(&record)?;
        let detail = json!({"relativeResourceName": self.name, "algorithm": self.algorithm.name()});
        let entry = Entry {
            actor: self.caller.clone(),
            reason: self.reason.clone(),
            detail,
            ..Entry::by_ekm("create-key", path.as_str())
        };
        draft.commit(entry, None).await?;
        control.gate.nudge();
        Ok(true)
    }

    /// As the catalog has it by now: made by this frontend or by another one.
    async fn in_catalog(&self, plane: &DataPlane) -> Result<KeyPath, Refusal> {
        let patience = Instant::now() + SPREADING;
        while plane.control.gate.catch_up(patience).await {
            if let Some(key) = plane.ekm.snapshot().created_for(&self.space, &self.name) {
                return found(key, self.algorithm);
            }
            let wished = plane.ekm.snapshot().space_at(&self.space.path).ok().and_then(|space| space.creation.clone());
            if wished.as_ref() != Some(&self.creation) {
                return Err(Refusal::NotAllowed);
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Err(Refusal::Pending)
    }

    /// Under which the catalog gives the name out once and for ever. No path has a blank, so it is nobody's path.
    fn catalog_name(&self) -> String {
        format!("{} {}", self.space.id(), self.name)
    }
}

/// Destroys a key: it is of no use any more, and can be brought back while the grace period lasts.
pub async fn destroy_key(plane: &DataPlane, request: &Request<'_>, trace: &mut Trace) -> Result<(), Error> {
    let key = plane.ekm.permitted_to_destroy(request, trace)?;
    if key.destroyed_by_caller || key.state == KeyState::Destroyed {
        return Ok(());
    }
    let destroyed = async {
        mark_destroyed(plane, request, key.id).await.map_err(|error| Error::CatalogUnavailable(error.to_string()))?;
        // The next call may come here.
        let gone = || plane.ekm.snapshot().key_by_id(key.id).is_none_or(|key| key.destroyed_by_caller);
        while !gone() {
            if !plane.control.catch_up(request.deadline).await {
                return Err(Error::CatalogStale);
            }
        }
        Ok(())
    };
    let deadline = request.deadline - RESERVE;
    let destroyed = tokio::time::timeout_at(deadline.into(), destroyed).await;
    destroyed.unwrap_or(Err(Error::DeadlineExceeded("destroying the key")))
}

async fn mark_destroyed(plane: &DataPlane, request: &Request<'_>, id: Uuid) -> Result<(), CatalogError> {
    let control = &plane.control;
    let mirror = control.gate.known()?;
    let mut draft = Draft::follow(&control.store, &mirror).await?;
    let (settings, _) = draft.settings().await?;
    let now = draft.now();
    let record = draft.read::<KeyRecord>(Kind::Key, id).await?;
    let Some((mut record, _)) = record else { return Ok(draft.abandon().await?) };
    let outcome = record.destroy_for_caller(now, &settings);
    if outcome.map_err(|impossible| CatalogError::Internal(impossible.problem))? == Outcome::Unchanged {
        return Ok(draft.abandon().await?);
    }
    draft.put_key(&record)?;
    let detail = json!({"relativeResourceName": request.resource});
    let entry = Entry {
        actor: request.caller.email.to_string(),
        reason: request.justification.name().to_owned(),
        detail,
        class: Class::Fast,
        ..Entry::by_ekm("destroy-key", &record.name())
    };
    draft.commit(entry, None).await?;
    control.gate.nudge();
    Ok(())
}

/// A denial if there is one of the verbs that the caller may not use in a crypto space.
pub fn check_permissions(
    plane: &DataPlane,
    request: &Request<'_>,
    asked: &[Verb],
    trace: &mut Trace,
) -> Result<(), Error> {
    if asked.is_empty() {
        plane.ekm.known_space(request, trace)?;
    }
    for verb in asked {
        plane.ekm.permitted_in_space(request, *verb, trace)?;
    }
    Ok(())
}

fn catalog(error: impl ToString) -> Refusal {
    Refusal::Catalog(error.to_string())
}

impl From<Refusal> for Error {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Exists(what) => Self::KeyExists(what),
            Refusal::Destroyed => Self::NotInUse(NotInUse::Destroyed),
            Refusal::TooMany(count) => Self::TooManyKeys(count),
            // The next attempt is decided anew.
            Refusal::NotAllowed | Refusal::Pending => Self::KeyPending,
            Refusal::Hsm(reason) => Self::KeyGeneration(reason),
            Refusal::Catalog(reason) => Self::CatalogUnavailable(reason),
        }
    }
}
