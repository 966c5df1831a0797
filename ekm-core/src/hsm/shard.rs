//! A shard: replicas that hold the same keys. One of them may be gone, slow, hung or lying, and nobody notices.
//!
//! An operation goes to the better one of two replicas chosen at random ("The Power of Two Choices in Randomized Load Balancing",
//! Mitzenmacher 2001). If it is late, a second replica is asked as well, within a budget ("The Tail at Scale", Dean and Barroso 2013).
//! If it failed by the replica's fault, another one is asked once. All operations may be repeated: a wrap draws a new nonce.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use super::admission::{Admission, AdmissionStatus, Refused};
use super::fault::{Class, Fault};
use super::health::State;
use super::job::{Answer, Demand, Patience, Request, Timing, TokenKey, with_digest};
use super::replica::{Failure, Replica, ReplicaOptions};
use super::token_error::TokenError;
use crate::algorithm::SigningAlgorithm;
use crate::blob::{GcmSealed, VersionId};
use crate::error::Error;
use crate::public_key::PublicKey;
use crate::secret::Plaintext;
use crate::shard_name::ShardName;
use crate::version::Unusable;

/// Each operation earns this share of a hedge: with what can be saved up, less than one in twenty over any thousand.
const HEDGE_SHARE_PER_MILLE: i64 = 40;
/// A hedge's price, and how many can be saved up.
const HEDGE_PRICE: i64 = 1000;
const HEDGES_SAVED: i64 = 10;
/// A second replica is asked after the 95th percentile, but neither sooner nor later than that.
const HEDGE_AFTER: std::ops::RangeInclusive<Duration> = Duration::from_millis(8)..=Duration::from_millis(25);
/// Too little time for another attempt.
const TOO_LATE: Duration = Duration::from_millis(2);
/// How long the end of the process may wait for the replicas' keepers.
const SHUTDOWN_PATIENCE: Duration = Duration::from_secs(3);
/// How long a vendor's own cloning may take.
const CLONING: Duration = Duration::from_secs(30);
/// How long making a key, or taking one away, may take on one replica: an RSA key of 4096 bits takes some HSMs ten seconds. Less than a worker
/// process has for it.
const MAKING: Duration = Duration::from_secs(25);

/// How a shard works.
#[derive(Clone)]
pub struct ShardOptions {
    /// What operators, metrics and the catalog call it.
    pub name: ShardName,
    /// How many jobs may wait for their turn, and how many for each replica, whatever is predicted; one more is refused with
    /// [`Error::Overloaded`].
    pub queue_length: usize,
    /// How long one operation may take on one replica, waiting included. Shorter than any request's deadline.
    pub deadline: Duration,
    /// On how many replicas a new key has to be before it wraps.
    pub copies: usize,
    /// The label of the key on every token by which keys get from one to the others; `None` if the vendor's own cloning does that.
    pub replication: Option<String>,
    /// Its tokens, all with the same keys.
    pub replicas: Vec<ReplicaOptions>,
}

/// Replicas, and the choice between them.
pub struct Shard {
    name: ShardName,
    /// Under which root key on its tokens new secrets are wrapped.
    root: OnceLock<VersionId>,
    replicas: Arc<[Arc<Replica>]>,
    admission: Arc<Admission>,
    copies: usize,
    replication: Option<String>,
    keepers: Mutex<Vec<tokio::task::JoinHandle<()>>>,
    hedge_credit: AtomicI64,
    latencies: Latencies,
    /// See [`ShardCounts`].
    hedges: AtomicU64,
    retries: AtomicU64,
}

/// Operations beyond those that were asked for, since the start.
#[derive(Clone, Copy, Debug)]
pub struct ShardCounts {
    /// Because the first replica was late.
    pub hedges: u64,
    /// Because it failed.
    pub retries: u64,
}

/// One operation on its way, perhaps on several replicas.
struct Course {
    request: Arc<Request>,
    patience: Patience,
    /// The replicas that it was sent to, one bit for each.
    tried: AtomicU64,
}

type Attempt = (usize, Result<(Answer, Timing), Failure>);

impl Shard {
    /// Begins to open the replicas, each in its own time. Within a runtime.
    pub fn start(options: ShardOptions) -> Self {
        let ShardOptions { name, queue_length, deadline, copies, replication, replicas } = options;
        let replicas = replicas.into_iter().map(|options| Arc::new(Replica::new(options, queue_length, deadline)));
        let replicas: Arc<[_]> = replicas.collect();
        let keep = |replica: &Arc<Replica>| tokio::spawn(Arc::clone(replica).keep(Arc::clone(&replicas)));
        let keepers = Mutex::new(replicas.iter().map(keep).collect());
        let (hedge_credit, hedges, retries) = (AtomicI64::new(0), AtomicU64::new(0), AtomicU64::new(0));
        let latencies = Latencies::default();
        let (root, admission) = (OnceLock::new(), Admission::new(queue_length));
        Self { name, root, replicas, admission, copies, replication, keepers, hedge_credit, latencies, hedges, retries }
    }

    /// Waits until every replica was tried once. The first error that does not pass by itself, such as a refused PIN; replicas that are
    /// away are waited for no longer than `patience`.
    pub async fn opened(&self, patience: Duration) -> Result<(), Arc<TokenError>> {
        let deadline = tokio::time::Instant::now() + patience;
        for replica in self.replicas.iter() {
            match tokio::time::timeout_at(deadline, replica.first_attempt()).await {
                Ok(Err(error)) if !error.is_away() => return Err(error),
                Ok(_) | Err(_) => {}
            }
        }
        Ok(())
    }

    /// Whether a replica can be used now; if not, why the first one of them cannot.
    pub fn one_is_here(&self) -> Result<(), Arc<TokenError>> {
        let Some(reason) = self.away() else { return Ok(()) };
        let first = self.replicas.iter().find_map(|replica| replica.first_error());
        Err(first.unwrap_or_else(|| Arc::new(TokenError::of_worker("hsm_away", &reason, true))))
    }

    /// What operators, metrics and the catalog call it.
    pub fn name(&self) -> &ShardName {
        &self.name
    }

    /// The root key under which new secrets are wrapped.
    pub fn root(&self) -> Option<VersionId> {
        self.root.get().copied()
    }

    /// Names the root key, once the catalog that names it is open. The first one stays.
    pub fn set_root(&self, root: VersionId) {
        let _ = self.root.set(root);
    }

    /// The replicas, in the order of the configuration.
    pub fn replicas(&self) -> &[Arc<Replica>] {
        &self.replicas
    }

    /// What was done more than once.
    pub fn counts(&self) -> ShardCounts {
        ShardCounts { hedges: self.hedges.load(Ordering::Relaxed), retries: self.retries.load(Ordering::Relaxed) }
    }

    /// Why no replica can be used now; `None` if one can.
    pub fn away(&self) -> Option<String> {
        let states = self.replicas.iter().map(|replica| (replica, replica.health.now()));
        let mut reasons = Vec::new();
        for (replica, (state, _, reason)) in states {
            if state.is_usable() {
                return None;
            }
            reasons.push(format!("{} is {}: {reason}", replica.name(), state.name()));
        }
        Some(reasons.join("; "))
    }

    /// Encrypts under a key on the tokens. `checked`: with a digest inside, by which a wrong plaintext is found when it is decrypted.
    pub async fn wrap(
        &self,
        key: TokenKey,
        aad: Vec<u8>,
        plaintext: Plaintext,
        checked: bool,
        patience: Patience,
        timing: &mut Timing,
    ) -> Result<GcmSealed, Error> {
        let plaintext = if checked { with_digest(&plaintext) } else { plaintext };
        match self.run(Request::Wrap { key, aad, plaintext }, patience, timing).await.map_err(ours)? {
            Answer::Wrapped(sealed) => Ok(sealed),
            _ => Err(CONFUSED),
        }
    }

    /// Decrypts under a key on the tokens. `checked` as when it was wrapped.
    pub async fn unwrap(
        &self,
        key: TokenKey,
        aad: Vec<u8>,
        sealed: GcmSealed,
        checked: bool,
        patience: Patience,
        timing: &mut Timing,
    ) -> Result<Plaintext, Error> {
        match self.run(Request::Unwrap { key, aad, sealed, checked }, patience, timing).await.map_err(ours)? {
            Answer::Unwrapped(plaintext) => Ok(plaintext),
            _ => Err(CONFUSED),
        }
    }

    /// Signs a digest under a private key on the tokens.
    pub async fn sign(
        &self,
        key: TokenKey,
        digest: Vec<u8>,
        patience: Patience,
        timing: &mut Timing,
    ) -> Result<Vec<u8>, Error> {
        match self.run(Request::Sign { key, digest }, patience, timing).await.map_err(ours)? {
            Answer::Signed(signature) => Ok(signature),
            _ => Err(CONFUSED),
        }
    }

    /// The known-answer test of one key, on a replica that holds it.
    pub async fn check(&self, key: TokenKey, patience: Patience) -> Result<(), Unusable> {
        match self.run(Request::Check { key }, patience, &mut Timing::default()).await {
            Ok(_) => Ok(()),
            Err(Failure::Fault(fault)) if fault.class == Class::Key => Err(Unusable::Lasting(fault.to_string())),
            Err(failure) => Err(Unusable::Passing(ours(failure))),
        }
    }

    /// Makes a key on one replica, a pair if it `signs`. With a replication key the others get it from here, wrapped by that one; else by the vendor's own
    /// means. What it needs to be used is checked in [`Self::require_copies`].
    pub async fn generate_key(
        &self,
        id: VersionId,
        label: &str,
        signs: Option<SigningAlgorithm>,
    ) -> Result<Made, MakeError> {
        // Always the first one that can: of two frontends that make the same version at the same time, one finds the other's there.
        let place = self.replicas.iter().position(|replica| replica.health.state() == State::Serving);
        let place = place.ok_or_else(|| MakeError::from(self.none()))?;
        let request = Request::Generate { id, label: label.into(), signs, replication: self.replication.clone() };
        let mut made = Made { id, wrapped: None, public_key: None, on: 1 << place };
        let wrapped = match (self.replicas[place].control(request, MAKING).await?, signs) {
            (Answer::Exists, _) => return Err(MakeError::Exists),
            (Answer::Exported(wrapped), None) => Some(wrapped),
            (Answer::Done, None) => None,
            (Answer::Pair { public, wrapped }, Some(algorithm)) => {
                made.public_key = Some(Arc::new(PublicKey::new(algorithm, public)));
                wrapped
            }
            _ => return Err(MakeError::Failed(CONFUSED)),
        };
        let (Some(wrapped), Some(replication)) = (wrapped, &self.replication) else { return Ok(made) };
        for (other, replica) in self.replicas.iter().enumerate().filter(|(other, _)| *other != place) {
            let (label, replication, wrapped) = (label.into(), replication.clone(), wrapped.clone());
            match replica.control(Request::Import { id, label, signs, replication, wrapped }, MAKING).await {
                Ok(Answer::Exists) => {
                    tracing::warn!(replica = replica.name(), key = %id, "another key has its id here")
                }
                Ok(_) => made.on |= 1 << other,
                Err(failure) => {
                    tracing::warn!(replica = replica.name(), key = %id, %failure, "a new key is not on this replica");
                }
            }
        }
        made.wrapped = Some(wrapped);
        Ok(made)
    }

    /// Waits until enough replicas hold a new key, and it shows on each of them that it is the same one.
    pub async fn require_copies(&self, key: &TokenKey) -> Result<(), MakeError> {
        let patience = Instant::now() + CLONING;
        loop {
            let mut copies = 0;
            for replica in self.replicas.iter() {
                copies += usize::from(self.check_on(replica, key).await.is_ok());
            }
            if copies >= self.copies {
                return Ok(());
            }
            if self.replication.is_some() || Instant::now() > patience {
                return Err(MakeError::TooFewCopies { copies, wanted: self.copies });
            }
            tokio::time::sleep(Duration::from_millis(500)).await; // the vendor's own cloning
        }
    }

    /// Whether one replica holds a key, and the same one.
    pub async fn check_on(&self, replica: &Replica, key: &TokenKey) -> Result<(), MakeError> {
        replica.control(Request::Check { key: key.clone() }, MAKING).await?;
        replica.has_key(key.id);
        Ok(())
    }

    /// Whether one replica holds a key as it should: there, once, closed, and the same as everywhere. What is wrong, if something is;
    /// nothing, if there is no way to the token.
    pub async fn audit_key(&self, replica: &Replica, key: &TokenKey) -> Result<(), String> {
        match replica.control(Request::Audit { key: key.clone() }, MAKING).await {
            Ok(_) => {
                replica.has_key(key.id);
                Ok(())
            }
            Err(Failure::Away(_)) => Ok(()),
            Err(failure) => Err(failure.to_string()),
        }
    }

    /// Gives a replica a key that it lacks, as it was made.
    pub async fn restore_key(
        &self,
        replica: &Replica,
        key: TokenKey,
        label: &str,
        wrapped: &[u8],
    ) -> Result<(), MakeError> {
        let Some(replication) = self.replication.clone() else { return Err(MakeError::NoReplicationKey) };
        let (id, label, wrapped) = (key.id, label.into(), wrapped.to_vec());
        let signs = key.public_key().map(|public| public.algorithm());
        // If it exists there, another frontend has done it; or it is another key, as the check shows.
        replica.control(Request::Import { id, label, signs, replication, wrapped }, MAKING).await?;
        self.check_on(replica, &key).await
    }

    /// Takes a key that was made and is not needed off the replicas that it was put on.
    pub async fn discard_made(&self, made: &Made) -> Result<(), MakeError> {
        self.discard(made.id, made.on).await
    }

    /// Takes a key off every replica. Those that cannot be reached keep it; then this is an error.
    pub async fn discard_key(&self, id: VersionId) -> Result<(), MakeError> {
        self.discard(id, u64::MAX).await
    }

    async fn discard(&self, id: VersionId, on: u64) -> Result<(), MakeError> {
        let mut outcome = Ok(());
        for (_, replica) in self.replicas.iter().enumerate().filter(|(place, _)| on >> place & 1 == 1) {
            if let Err(failure) = replica.control(Request::Discard { id }, MAKING).await {
                outcome = Err(failure.into());
            }
        }
        outcome
    }

    async fn run(&self, request: Request, patience: Patience, timing: &mut Timing) -> Result<Answer, Failure> {
        let entered = Instant::now();
        let _turn = match patience {
            Patience::Request(demand) => {
                let turn = self.admission.enter(demand, self.sessions()).await;
                timing.turn = entered.elapsed();
                Some(turn.map_err(|Refused| Failure::Full)?)
            }
            Patience::Own(_) => None,
        };
        let course = Course { request: Arc::new(request), patience, tried: AtomicU64::new(0) };
        let earned = self.hedge_credit.load(Ordering::Relaxed) + HEDGE_SHARE_PER_MILLE;
        self.hedge_credit.store(earned.min(HEDGES_SAVED * HEDGE_PRICE), Ordering::Relaxed);
        let (answer, measured) = match self.answered(&course).await {
            Ok(answered) => answered,
            Err(failure) => {
                if matches!(failure, Failure::Timeout) {
                    self.admission.note(entered.elapsed() - timing.turn);
                }
                return Err(failure);
            }
        };
        self.admission.note(measured.device);
        self.latencies.note(measured.queue + measured.device);
        *timing = Timing { turn: timing.turn, ..measured };
        Ok(answer)
    }

    /// Whether an operation would be refused now, because there is too much to do. A refusal that [`Self::wrap`] and the others repeat.
    pub fn would_refuse(&self, demand: &Demand) -> bool {
        self.admission.would_refuse(demand, self.sessions())
    }

    /// How many wait, and for what.
    pub fn admission(&self) -> AdmissionStatus {
        self.admission.status()
    }

    /// Of the replicas that can be used.
    fn sessions(&self) -> usize {
        let usable = self.replicas.iter().filter(|replica| replica.health.state().is_usable());
        usable.map(|replica| replica.sessions()).sum()
    }

    async fn answered(&self, course: &Course) -> Result<(Answer, Timing), Failure> {
        let first = self.choose(course).ok_or_else(|| self.none())?;
        let (replica, outcome) = self.hedged(course, first).await;
        let failure = match outcome {
            Ok(answered) => return Ok(answered),
            Err(failure) => failure,
        };
        if course.patience.end().saturating_duration_since(Instant::now()) < TOO_LATE {
            return Err(failure);
        }
        if failure.is_refusal() {
            return self.confirmed(course, replica).await;
        }
        let Some(second) = self.choose(course) else { return Err(failure) };
        self.retries.fetch_add(1, Ordering::Relaxed);
        match self.attempt(second, course, false).await.1 {
            Err(refusal) if refusal.is_refusal() => self.confirmed(course, second).await,
            Err(_) => Err(failure),
            answered => answered,
        }
    }

    /// A refused ciphertext is the caller's fault if another replica refuses it, too, and shows that the key works there. With one
    /// replica, the same one is asked.
    async fn confirmed(&self, course: &Course, refuser: usize) -> Result<(Answer, Timing), Failure> {
        let other = self.choose(course).unwrap_or(refuser);
        let (_, outcome) = self.attempt(other, course, true).await;
        if outcome.is_ok() {
            self.replicas[refuser].blame("it refused a ciphertext that opens");
        }
        outcome
    }

    /// One attempt, and another one beside it if the first is late.
    async fn hedged(&self, course: &Course, first: usize) -> Attempt {
        let mut attempt = std::pin::pin!(self.attempt(first, course, false));
        if self.replicas.len() < 2 || matches!(course.patience, Patience::Own(_)) {
            return attempt.await;
        }
        tokio::select! {
            biased;
            outcome = &mut attempt => return outcome,
            () = tokio::time::sleep(self.latencies.hedge_after()) => {}
        }
        let second = self.choose(course).filter(|_| !self.admission.is_shedding() && self.take_hedge());
        let Some(second) = second else { return attempt.await };
        self.hedges.fetch_add(1, Ordering::Relaxed);
        let mut other = std::pin::pin!(self.attempt(second, course, false));
        tokio::select! {
            biased;
            outcome = &mut attempt => if outcome.1.is_ok() { outcome } else { other.await },
            outcome = &mut other => if outcome.1.is_ok() { outcome } else { attempt.await },
        }
    }

    async fn attempt(&self, replica: usize, course: &Course, confirm: bool) -> Attempt {
        course.tried.fetch_or(1 << replica, Ordering::Relaxed);
        let outcome = self.replicas[replica].run(&course.request, confirm, course.patience).await;
        (replica, outcome.map(|(answer, timing)| (answer, Timing { replica, ..timing })))
    }

    fn take_hedge(&self) -> bool {
        let taken = self.hedge_credit.fetch_sub(HEDGE_PRICE, Ordering::Relaxed);
        if taken < HEDGE_PRICE {
            self.hedge_credit.fetch_add(HEDGE_PRICE, Ordering::Relaxed);
        }
        taken >= HEDGE_PRICE
    }

    /// The better of two replicas that can do it, chosen at random: of those with an idle session, if there are any, and suspect ones only if
    /// there is no other.
    fn choose(&self, course: &Course) -> Option<usize> {
        let (tried, key) = (course.tried.load(Ordering::Relaxed), course.request.key());
        let fit = |state: State, replica: &Replica| {
            replica.health.state() == state && key.is_none_or(|key| !replica.lacks_key(key.id))
        };
        let untried = |fit: &dyn Fn(&Replica) -> bool| {
            let bits =
                self.replicas.iter().enumerate().filter(|(index, replica)| tried >> index & 1 == 0 && fit(replica));
            bits.fold(0u64, |bits, (index, _)| bits | 1 << index)
        };
        let serving = untried(&|replica| fit(State::Serving, replica));
        let idle = serving & untried(&Replica::has_idle_session);
        let candidates = match (idle, serving) {
            (0, 0) => untried(&|replica| fit(State::Suspect, replica)),
            (0, serving) => serving,
            (idle, _) => idle,
        };
        if candidates == 0 && tried == 0 {
            // All that could do it lack the key, as far as anybody knows. One of them says so.
            return self.replicas.iter().position(|replica| replica.health.state().is_usable());
        }
        let count = candidates.count_ones();
        if count <= 1 {
            return (count == 1).then(|| candidates.trailing_zeros() as usize);
        }
        let first = fastrand::u32(0..count);
        let second = (first + fastrand::u32(1..count)) % count;
        let now = Instant::now();
        let [a, b] = [first, second].map(|place| nth_bit(candidates, place));
        let cost = |index: usize| self.replicas[index].health.cost(now);
        // Only if it is clearly better: what little they differ by is chance, and must not leave one of them without requests.
        Some(if cost(b) < 0.8 * cost(a) { b } else { a })
    }

    fn none(&self) -> Failure {
        Failure::Away(self.away().unwrap_or_else(|| "no replica is in use".into()))
    }
}

/// Waits until threads have closed their sessions and workers are gone, which blocks: a library's own clean-up at the end of the process
/// races with calls under way.
impl Drop for Shard {
    fn drop(&mut self) {
        let keepers = self.keepers.get_mut().unwrap_or_else(std::sync::PoisonError::into_inner);
        keepers.iter().for_each(tokio::task::JoinHandle::abort);
        let patience = Instant::now() + SHUTDOWN_PATIENCE;
        while !keepers.iter().all(tokio::task::JoinHandle::is_finished) && Instant::now() < patience {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

impl Failure {
    fn is_refusal(&self) -> bool {
        matches!(self, Self::Fault(fault) if fault.is_refusal())
    }
}

/// A key that was made, and where.
pub struct Made {
    /// CKA_ID.
    pub id: VersionId,
    /// Wrapped by the replication key, if there is one: for replicas that do not hold it yet, and those to come.
    pub wrapped: Option<Vec<u8>>,
    /// Of a pair: its public half.
    pub public_key: Option<Arc<PublicKey>>,
    /// One bit for each replica.
    on: u64,
}

/// Why a key could not be made, or taken away.
#[derive(Debug)]
pub enum MakeError {
    /// A token holds one under this id already.
    Exists,
    /// Fewer replicas than wanted hold it, or show that they hold the same one.
    TooFewCopies {
        /// So many do.
        copies: usize,
        /// So many have to.
        wanted: usize,
    },
    /// Keys get to other replicas by the vendor's own means only.
    NoReplicationKey,
    /// Anything else.
    Failed(Error),
}

impl From<Failure> for MakeError {
    fn from(failure: Failure) -> Self {
        Self::Failed(ours(failure))
    }
}

const CONFUSED: Error = Error::Internal("a session has answered another question");

/// A failure as the request's error. A refusal is the caller's fault: it has been confirmed.
fn ours(failure: Failure) -> Error {
    match failure {
        Failure::Fault(Fault { class, function, code }) => match class {
            Class::Caller | Class::Ambiguous => Error::UnwrapFailed,
            Class::Key => Error::KeyUnavailable,
            Class::Capacity => Error::Overloaded,
            Class::Session | Class::Device | Class::Credential | Class::Integrity => Error::HsmFault { function, code },
        },
        Failure::Away(reason) => Error::HsmAway { reason },
        Failure::Full => Error::Overloaded,
        Failure::Timeout => Error::HsmTimeout,
    }
}

fn nth_bit(mut bits: u64, place: u32) -> usize {
    for _ in 0..place {
        bits &= bits - 1;
    }
    bits.trailing_zeros() as usize
}

/// What operations took lately, for the 95th percentile.
#[derive(Default)]
struct Latencies {
    recent_us: Mutex<Vec<u32>>,
    hedge_after_us: AtomicU64,
}

impl Latencies {
    /// So many are looked at together.
    const SAMPLE: usize = 128;

    fn note(&self, took: Duration) {
        // Whoever does not get the lock at once goes without: it is a sample.
        let Ok(mut recent) = self.recent_us.try_lock() else { return };
        recent.push(u32::try_from(took.as_micros()).unwrap_or(u32::MAX));
        if recent.len() >= Self::SAMPLE {
            let place = Self::SAMPLE * 95 / 100;
            let (_, percentile, _) = recent.select_nth_unstable(place);
            self.hedge_after_us.store(u64::from(*percentile), Ordering::Relaxed);
            recent.clear();
        }
    }

    fn hedge_after(&self) -> Duration {
        let percentile = Duration::from_micros(self.hedge_after_us.load(Ordering::Relaxed));
        percentile.clamp(*HEDGE_AFTER.start(), *HEDGE_AFTER.end())
    }
}
