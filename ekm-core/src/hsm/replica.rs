//! A replica: one token that holds a full copy of a shard's keys, kept usable by a task of its own.

use std::collections::HashMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use secrecy::SecretString;
use tokio::sync::{Notify, oneshot, watch};

use super::fault::{Class, Fault};
use super::health::{Health, State, Verdict, pause, slow_limit};
use super::job::{Answer, Patience, Request, Timing, without_digest};
use super::link::{Link, Queue, TokenInfo, Undone};
use super::process::{self, WorkerCommand};
use super::profile::ProfileName;
use super::token::{Module, TokenOptions, TokenSelector};
use super::token_error::TokenError;
use crate::blob::VersionId;

/// How often slowness is looked for.
const TICK: Duration = Duration::from_millis(100);
/// How long a replica that does not hold a key is not asked for it again.
const LACK_FOR: Duration = Duration::from_secs(10);
/// A way to a token that was lost after that time is opened again at once; one that does not live that long is not.
const STABLE_AFTER: Duration = Duration::from_secs(5);
/// After so many failed probes in a row the way to the token is opened anew: many libraries recover in no other way.
const PROBES_PER_LINK: usize = 2;

/// Where a token is, and how to log in.
#[derive(Clone)]
pub struct ReplicaOptions {
    /// What operators call it: the `replica` label of metrics, and the argument of `ekm hsm drain`.
    pub name: String,
    /// The vendor's library.
    pub module: PathBuf,
    /// Which of the module's tokens.
    pub selector: TokenSelector,
    /// The user PIN.
    pub pin: SecretString,
    /// What kind of HSM it is; `None` lets the library's name decide.
    pub profile: Option<ProfileName>,
    /// Sessions for requests; `None` lets the token's kind decide.
    pub sessions: Option<usize>,
    /// In which process its library runs.
    pub isolation: Isolation,
}

/// In which process a vendor's library runs.
#[derive(Clone, Debug)]
pub enum Isolation {
    /// In this one, on threads. A call that hangs keeps its thread until the process ends.
    Thread,
    /// In a process of its own, which is killed when a call hangs.
    Process(WorkerCommand),
}

/// The way to one token, and how it is.
pub struct Replica {
    pub(super) options: ReplicaOptions,
    queue_length: usize,
    deadline: Duration,
    pub(super) health: Health,
    link: ArcSwapOption<Link>,
    /// Wakes the keeper: something is wrong, or an operator wants something.
    wake: Notify,
    drained: AtomicBool,
    /// Jobs of our own that take seconds. A probe behind them would say nothing about the token.
    slow: AtomicU32,
    /// Keys that it did not hold when it was last asked.
    lacks: Mutex<HashMap<VersionId, Instant>>,
    /// How the first attempt to open it ended, or the last one if that failed.
    first: watch::Sender<Option<Result<(), Arc<TokenError>>>>,
    /// The library, once it is loaded into this process: never unloaded, because some start threads of their own.
    module: OnceLock<Arc<Module>>,
}

/// Why an operation on one replica has no result.
pub(super) enum Failure {
    /// Its token said so, or the way to it.
    Fault(Fault),
    /// There is no way to its token now.
    Away(String),
    /// Its queue is full.
    Full,
    /// It did not answer in time.
    Timeout,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fault(fault) => fault.fmt(f),
            Self::Away(reason) => f.write_str(reason),
            Self::Full => f.write_str("its queue is full"),
            Self::Timeout => f.write_str("it did not answer in time"),
        }
    }
}

/// A replica as it is now, for operators.
#[derive(Clone, Debug)]
pub struct ReplicaStatus {
    /// Its name.
    pub name: String,
    /// Where it stands.
    pub state: State,
    /// How long it has stood there.
    pub since: Duration,
    /// Why.
    pub reason: String,
    /// What is at its other end, if it is connected.
    pub token: Option<TokenInfo>,
    /// Operations under way, waiting ones included.
    pub in_flight: u32,
    /// Operations that wait.
    pub queue: usize,
    /// What an operation takes, on average.
    pub latency: Duration,
    /// Operations since the start.
    pub operations: u64,
    /// Those that failed, by the replica's fault; and probes that did.
    pub faults: u64,
    /// How often it was ejected.
    pub ejections: u64,
    /// How often the way to its token was lost: workers that crashed, or were killed because a call hung.
    pub losses: u64,
    /// Keys that it did not hold when it was last asked.
    pub lacks: usize,
}

impl Replica {
    pub(super) fn new(options: ReplicaOptions, queue_length: usize, deadline: Duration) -> Self {
        Self {
            options,
            queue_length,
            deadline,
            health: Health::new(Instant::now()),
            link: ArcSwapOption::empty(),
            wake: Notify::new(),
            drained: AtomicBool::new(false),
            slow: AtomicU32::new(0),
            lacks: Mutex::default(),
            first: watch::channel(None).0,
            module: OnceLock::new(),
        }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.options.name
    }

    /// How it is.
    pub fn status(&self) -> ReplicaStatus {
        let (state, since, reason) = self.health.now();
        let (link, counts) = (self.link.load(), &self.health.counts);
        let count = |count: &AtomicU64| count.load(Ordering::Relaxed);
        ReplicaStatus {
            name: self.options.name.clone(),
            state,
            since: since.elapsed(),
            reason,
            token: link.as_ref().map(|link| link.token.clone()),
            in_flight: self.health.in_flight(),
            queue: link.as_ref().map_or(0, |link| link.work.len()),
            latency: self.health.latency(),
            operations: count(&counts.operations),
            faults: count(&counts.faults),
            ejections: count(&counts.ejections),
            losses: count(&counts.losses),
            lacks: self.lacks().len(),
        }
    }

    /// How many sessions it has for requests; none without a way to its token.
    pub(super) fn sessions(&self) -> usize {
        self.link.load().as_ref().map_or(0, |link| link.token.sessions)
    }

    /// Whether one of them has nothing to do.
    pub(super) fn has_idle_session(&self) -> bool {
        (self.health.in_flight() as usize) < self.sessions()
    }

    /// Takes it out of use, or back. Operations under way finish.
    pub fn set_drained(&self, drained: bool) {
        if self.drained.swap(drained, Ordering::Relaxed) != drained {
            match drained {
                true => self.health.drain(Instant::now()),
                false => self.health.resume(Instant::now()),
            }
            tracing::info!(replica = self.name(), drained, "an operator has changed a replica");
            self.wake.notify_one();
        }
    }

    /// Whether it did not hold a key when it was last asked, lately.
    pub(super) fn lacks_key(&self, key: VersionId) -> bool {
        self.lacks().get(&key).is_some_and(|at| at.elapsed() < LACK_FOR)
    }

    /// It holds a key that it may have lacked before.
    pub(super) fn has_key(&self, key: VersionId) {
        self.lacks().remove(&key);
    }

    /// The keys that it did not hold when it was last asked.
    pub fn lacking(&self) -> Vec<VersionId> {
        self.lacks().keys().copied().collect()
    }

    fn lacks(&self) -> std::sync::MutexGuard<'_, HashMap<VersionId, Instant>> {
        self.lacks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until it was tried to open it once. Whether that worked, and if not, why.
    pub(super) async fn first_attempt(&self) -> Result<(), Arc<TokenError>> {
        let mut first = self.first.subscribe();
        match first.wait_for(Option::is_some).await {
            Ok(outcome) => outcome.clone().unwrap_or(Ok(())),
            Err(_) => Ok(()),
        }
    }

    /// Why the last attempt to open it failed, if it did.
    pub(super) fn first_error(&self) -> Option<Arc<TokenError>> {
        self.first.borrow().as_ref().and_then(|first| first.as_ref().err().map(Arc::clone))
    }

    /// One operation for a request, on a session that it shares with others.
    pub(super) async fn run(
        &self,
        request: &Arc<Request>,
        confirm: bool,
        patience: Patience,
    ) -> Result<(Answer, Timing), Failure> {
        let Some(link) = self.link.load_full() else { return Err(Failure::Away(self.health.now().2)) };
        let (entered, _in_flight) = (Instant::now(), self.health.begin());
        let deadline = match patience {
            Patience::Request(demand) => demand.deadline.min(entered + self.deadline),
            Patience::Own(deadline) => deadline,
        };
        let mut waiting = Waiting { replica: self, since: entered, answered: false };
        let outcome = self.send(&link.work, request, confirm, deadline, patience).await;
        waiting.answered = true;
        let outcome = outcome.and_then(|(answer, timing)| {
            let answer = checked(request, answer).map_err(Failure::Fault)?;
            Ok((answer, timing))
        });
        if outcome.is_ok()
            && let Some(key) = request.key()
        {
            self.has_key(key.id); // perhaps cloned by the vendor's own means
        }
        let verdict = match &outcome {
            Ok((_, timing)) => Some(Verdict::Sound(timing.queue + timing.device)),
            Err(Failure::Fault(fault)) => match fault.class {
                Class::Caller | Class::Ambiguous => Some(Verdict::Sound(entered.elapsed())),
                Class::Capacity => None,
                Class::Key => {
                    self.note_lack(request, fault);
                    None
                }
                Class::Session | Class::Device | Class::Credential | Class::Integrity => {
                    Some(Verdict::Fault(&fault.code))
                }
            },
            Err(Failure::Timeout) => Some(Verdict::Fault("it did not answer in time")),
            Err(Failure::Away(_)) => Some(Verdict::Fault("the way to its token was lost")),
            Err(Failure::Full) => None,
        };
        if let Some(verdict) = verdict
            && self.health.note(verdict, Instant::now())
        {
            tracing::warn!(replica = self.name(), reason = self.health.now().2, "replica suspect");
            self.wake.notify_one();
        }
        outcome
    }

    /// It was not as it should be, as another replica has shown.
    pub(super) fn blame(&self, reason: &str) {
        if self.health.note(Verdict::Fault(reason), Instant::now()) {
            self.wake.notify_one();
        }
    }

    /// Something of our own, on a session that requests do not use.
    pub(super) async fn control(&self, request: Request, within: Duration) -> Result<Answer, Failure> {
        let Some(link) = self.link.load_full() else { return Err(Failure::Away(self.health.now().2)) };
        let deadline = Instant::now() + within;
        let _slow = request.is_slow().then(|| Slow::begin(&self.slow));
        let sent = self.send(&link.control, &Arc::new(request), false, deadline, Patience::Own(deadline)).await;
        sent.map(|(answer, _)| answer)
    }

    async fn send(
        &self,
        queue: &Queue,
        request: &Arc<Request>,
        confirm: bool,
        deadline: Instant,
        patience: Patience,
    ) -> Result<(Answer, Timing), Failure> {
        let entered = Instant::now();
        // Not to wait any more tells the session. A job that waited until its end is dropped there, too.
        let asked = queue.ask(request, confirm, deadline, patience);
        match tokio::time::timeout_at(deadline.into(), asked).await {
            Ok(Ok((taken, (result, device)))) => {
                let timing = Timing { queue: taken - entered, device, ..Timing::default() };
                result.map(|answer| (answer, timing)).map_err(Failure::Fault)
            }
            Ok(Err(Undone::Full)) => Err(Failure::Full),
            Ok(Err(Undone::Dropped)) if Instant::now() < deadline => {
                Err(Failure::Away("the way to the token was lost".into()))
            }
            Ok(Err(Undone::Dropped)) | Err(_) => Err(Failure::Timeout),
        }
    }

    fn note_lack(&self, request: &Request, fault: &Fault) {
        let Some(key) = request.key() else { return };
        let mut lacks = self.lacks();
        lacks.retain(|_, at| at.elapsed() < LACK_FOR);
        if lacks.insert(key.id, Instant::now()).is_none() {
            tracing::error!(
                code = "hsm_key_missing", replica = self.name(), key = %key.id, cause = fault.code,
                "this replica cannot serve a key; it is skipped for that key only"
            );
        }
    }

    /// What operations take on the replicas beside this one: the median.
    fn others(&self, all: &[Arc<Self>]) -> Option<Duration> {
        let others = all.iter().filter(|other| other.name() != self.name() && other.health.state() == State::Serving);
        let mut latencies: Vec<_> = others.map(|other| other.health.latency()).filter(|took| !took.is_zero()).collect();
        latencies.sort();
        latencies.get(latencies.len() / 2).copied()
    }

    /// Whether the shard can do without this one: never without the last, and never without more than half of all.
    fn may_be_ejected(&self, all: &[Arc<Self>]) -> bool {
        let others = || all.iter().filter(|other| other.name() != self.name()).map(|other| other.health.state());
        let ejected = others().filter(|state| matches!(state, State::Ejected | State::Probing)).count();
        others().any(State::is_usable) && ejected < all.len() / 2
    }

    /// Keeps the replica usable: opens it, probes it, opens it again. Ends when the token refuses the PIN, or cannot do what is needed.
    pub(super) async fn keep(self: Arc<Self>, all: Arc<[Arc<Self>]>) {
        let (mut failures, mut was_open) = (0, false);
        loop {
            match self.open().await {
                Ok(link) => {
                    was_open = true;
                    let (link, opened_at) = (Arc::new(link), Instant::now());
                    self.health.opened(Instant::now());
                    if self.drained.load(Ordering::Relaxed) {
                        self.health.drain(Instant::now());
                    }
                    self.link.store(Some(Arc::clone(&link)));
                    tracing::info!(replica = self.name(), token = link.token.label, "replica opened");
                    let loss = self.watch(&link, &all).await;
                    let (Loss::Passing(reason) | Loss::Lasting(reason)) = &loss;
                    self.health.counts.losses.fetch_add(1, Ordering::Relaxed);
                    match loss {
                        Loss::Passing(_) => self.health.lost(reason, Instant::now()),
                        Loss::Lasting(_) => self.health.refused(reason, Instant::now()),
                    }
                    self.link.store(None);
                    tracing::error!(
                        code = "hsm_replica_lost",
                        replica = self.name(),
                        reason,
                        "the way to a replica is lost"
                    );
                    // Ending threads or a process blocks.
                    let _ = tokio::task::spawn_blocking(move || drop(link)).await;
                    if let Loss::Lasting(_) = loss {
                        return; // another login could lock the token
                    }
                    if opened_at.elapsed() > STABLE_AFTER {
                        failures = 0;
                        continue; // at once
                    }
                }
                Err(error) => {
                    let (code, text) = (error.code(), format!("{error} [{}]", error.code()));
                    // What a token could do before it may be able to do again. A refused PIN is never tried twice.
                    let passes = error.is_away() || was_open && !error.is_credential();
                    let error = Arc::new(error);
                    match passes {
                        true => self.health.lost(&text, Instant::now()),
                        false => self.health.refused(&text, Instant::now()),
                    }
                    let first = self.first.send_replace(Some(Err(Arc::clone(&error)))).is_none();
                    if !passes {
                        tracing::error!(
                            code,
                            error = text,
                            replica = self.name(),
                            "the HSM is not tried again; correct it and restart"
                        );
                        return;
                    }
                    if first || failures % 10 == 1 {
                        tracing::warn!(code, error = text, replica = self.name(), "the HSM is away; it is tried again");
                    }
                }
            }
            tokio::time::sleep(pause(failures)).await;
            failures += 1;
        }
    }

    /// Watches an open link until it is of no use any more; says why, and whether another one may be opened.
    async fn watch(&self, link: &Link, all: &[Arc<Self>]) -> Loss {
        let (mut next_probe, mut failed) = (Instant::now(), 0);
        let mut lost = std::pin::pin!(link.loss());
        loop {
            tokio::select! {
                reason = &mut lost => return Loss::Passing(reason),
                () = self.wake.notified() => next_probe = Instant::now(),
                () = tokio::time::sleep_until(next_probe.min(Instant::now() + TICK).into()) => {}
            }
            let (now, others) = (Instant::now(), self.others(all));
            if self.health.note_slowness(others, now) {
                tracing::warn!(replica = self.name(), reason = self.health.now().2, "replica suspect");
                next_probe = now;
            }
            if now < next_probe {
                continue;
            }
            if self.slow.load(Ordering::Relaxed) > 0 {
                next_probe = now + TICK;
                continue;
            }
            self.health.begin_probe(now);
            let before = self.health.state();
            let outcome = tokio::select! {
                reason = &mut lost => return Loss::Passing(reason),
                outcome = self.probe() => outcome,
            };
            let outcome = match outcome {
                Err(Failure::Fault(fault)) if fault.class == Class::Credential => {
                    return Loss::Lasting(fault.to_string());
                }
                outcome => outcome.map_err(|failure| format!("a probe has failed: {failure}")),
            };
            failed = if outcome.is_ok() { 0 } else { failed + 1 };
            let wait = self.health.probed(outcome, slow_limit(others), || self.may_be_ejected(all), Instant::now());
            self.tell(before);
            if self.health.state() == State::Serving {
                self.first.send_if_modified(|first| first.replace(Ok(())).is_none_or(|first| first.is_err()));
            }
            next_probe = Instant::now() + wait;
            if failed > PROBES_PER_LINK && self.health.state() == State::Ejected {
                return Loss::Passing(format!("{failed} probes in a row have failed: {}", self.health.now().2));
            }
        }
    }

    /// Whether the token does what it should now.
    async fn probe(&self) -> Result<Duration, Failure> {
        let began = Instant::now();
        self.control(Request::Probe, self.deadline).await.map(|_| began.elapsed())
    }

    fn tell(&self, before: State) {
        let (state, _, reason) = self.health.now();
        match state {
            _ if state == before => {}
            State::Serving => tracing::info!(replica = self.name(), reason, "replica serving"),
            State::Ejected if before != State::Probing => {
                tracing::error!(code = "hsm_replica_ejected", replica = self.name(), reason, "replica ejected");
            }
            _ => {}
        }
    }

    /// One attempt, on a thread of its own: it blocks, perhaps for ever, and must not hold up the end of the process.
    async fn open(self: &Arc<Self>) -> Result<Link, TokenError> {
        let (answer, opened) = oneshot::channel();
        let (this, runtime) = (Arc::clone(self), tokio::runtime::Handle::current());
        std::thread::spawn(move || {
            let _entered = runtime.enter();
            let _ = answer.send(this.open_blocking());
        });
        opened.await.unwrap_or_else(|_| Err(TokenError::SelfTest("the PKCS#11 module panicked".into())))
    }

    fn open_blocking(&self) -> Result<Link, TokenError> {
        let ReplicaOptions { module, selector, pin, profile, sessions, isolation, .. } = &self.options;
        let token = TokenOptions { selector: selector.clone(), pin: pin.clone(), profile: *profile };
        match isolation {
            Isolation::Thread => {
                let loaded = match self.module.get() {
                    Some(module) => Arc::clone(module),
                    None => Arc::new(Module::load(module)?),
                };
                let _ = self.module.set(Arc::clone(&loaded));
                Link::in_threads(&loaded, &token, *sessions, self.queue_length)
            }
            Isolation::Process(worker) => process::open(worker, module, &token, *sessions, self.queue_length),
        }
    }
}

/// Why a link is of no use any more.
enum Loss {
    /// Another one may be better.
    Passing(String),
    /// The token has refused the PIN: an operator has to act.
    Lasting(String),
}

/// An operation that is waited for. If nobody waits any more, because another replica was faster, that says something of this one, too.
struct Waiting<'a> {
    replica: &'a Replica,
    since: Instant,
    answered: bool,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if !self.answered && self.replica.health.note_silence(self.since.elapsed(), Instant::now()) {
            self.replica.wake.notify_one();
        }
    }
}

/// A job of our own that takes seconds, while it lasts.
struct Slow<'a>(&'a AtomicU32);

impl<'a> Slow<'a> {
    fn begin(count: &'a AtomicU32) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for Slow<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A plaintext without its digest, if it carries one; a signature that is one. Wrong ones never leave, whoever made them.
fn checked(request: &Request, answer: Answer) -> Result<Answer, Fault> {
    match (request, answer) {
        (Request::Unwrap { checked: true, .. }, Answer::Unwrapped(plaintext)) => {
            let plaintext = without_digest(&plaintext);
            plaintext
                .map(Answer::Unwrapped)
                .ok_or_else(|| Fault::integrity("C_Decrypt", "a plaintext that was changed"))
        }
        (Request::Sign { key, digest }, Answer::Signed(signature)) => {
            let verifies = key.public_key().is_some_and(|public| public.verifies(digest, &signature));
            let wrong = || Fault::integrity("C_Sign", "a signature that does not verify");
            verifies.then_some(Answer::Signed(signature)).ok_or_else(wrong)
        }
        (_, answer) => Ok(answer),
    }
}
