//! A replica: the threads that work on one token, behind one bounded queue.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::fault::Fault;
use super::session::TokenSession;
use super::token::{Module, Token, TokenError, TokenOptions};
use crate::blob::{GcmSealed, VersionId};
use crate::error::Error;
use crate::secret::Plaintext;
use crate::version::Unusable;

/// How long a call may still run when the process wants to end. A hung one cannot be cancelled.
const SHUTDOWN_PATIENCE: Duration = Duration::from_secs(2);

/// How a replica works.
#[derive(Clone, Copy, Debug)]
pub struct ReplicaOptions {
    /// Threads, each with a session of its own; `None` lets the token's kind decide.
    pub sessions: Option<usize>,
    /// How many jobs may wait; one more is refused with [`Error::Overloaded`].
    pub queue_length: usize,
    /// How long one operation may take, waiting included. Shorter than any request's deadline.
    pub deadline: Duration,
}

/// How long a job waited, and how long the token worked on it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Timing {
    /// From entering the queue to a worker taking it.
    pub queue: Duration,
    /// Inside PKCS#11 only.
    pub device: Duration,
}

/// The way to one token. Dropping it waits for its threads, which blocks: their sessions must be closed before the process
/// ends, or the module's own clean-up at exit races with them.
pub struct Replica {
    token: Arc<Token>,
    jobs: flume::Sender<Job>,
    threads: Vec<thread::JoinHandle<()>>,
    deadline: Duration,
}

/// An AES-256 key on the token, and the way in which it shows that it works.
#[derive(Clone)]
pub struct TokenKey {
    /// CKA_ID.
    pub id: VersionId,
    /// The known answer: a blob of this key with a known text. Without one, such as for the root key, it is a round trip.
    pub check_blob: Option<Arc<[u8]>>,
}

/// Whose time a job takes.
#[derive(Clone, Copy, Debug)]
pub enum Patience {
    /// A request's. The job ends at the request's deadline or at the HSM's, whichever is first, and is shed if the queue is full.
    Request(Instant),
    /// Our own. The job waits for room in the queue, until then.
    Own(Instant),
}

impl Patience {
    /// When nobody waits any more.
    pub(crate) fn end(self) -> Instant {
        match self {
            Self::Request(end) | Self::Own(end) => end,
        }
    }
}

struct Job {
    key: TokenKey,
    work: Work,
    entered: Instant,
    deadline: Instant,
}

/// The additional authenticated data are whole: what of a blob they bind is decided by custody.
enum Work {
    Wrap { aad: Vec<u8>, plaintext: Plaintext, reply: Reply<GcmSealed> },
    Unwrap { aad: Vec<u8>, sealed: GcmSealed, reply: Reply<Plaintext> },
    Check { reply: Reply<Result<(), Unusable>> },
}

type Reply<T> = oneshot::Sender<(Result<T, Error>, Timing)>;

impl Replica {
    /// Finds the token, logs in, tests it, and starts the threads. After a failure it can be tried again, if
    /// [`TokenError::is_away`] says so. Blocking.
    pub fn open(module: &Module, token: &TokenOptions, options: ReplicaOptions) -> Result<Self, TokenError> {
        module.initialized(|module| Ok(Self::start(Arc::new(Token::open(module, token)?), options)?))
    }

    /// Opens the sessions one after the other and starts a thread for each: the first failure stops the start, so that nothing is
    /// tried twice on a token that counts failures.
    fn start(token: Arc<Token>, options: ReplicaOptions) -> Result<Self, Fault> {
        let count = options.sessions.unwrap_or_else(|| token.preferred_sessions());
        let sessions = (0..count).map(|_| TokenSession::open(Arc::clone(&token))).collect::<Result<Vec<_>, _>>()?;
        let (jobs, queue) = flume::bounded(options.queue_length);
        let mut threads = Vec::new();
        for (number, session) in sessions.into_iter().enumerate() {
            let queue = queue.clone();
            let named = thread::Builder::new().name(format!("hsm-{number}"));
            let spawned = named.spawn(move || work(session, &queue));
            threads.push(spawned.map_err(|error| Fault::integrity("thread", &error.to_string()))?);
        }
        Ok(Self { token, jobs, threads, deadline: options.deadline })
    }

    /// The token behind the threads, for making keys. Its label is the `replica` label of metrics.
    pub fn token(&self) -> &Arc<Token> {
        &self.token
    }

    /// How many jobs wait.
    pub fn queue_length(&self) -> usize {
        self.jobs.len()
    }

    /// Encrypts under a key on the token.
    pub async fn wrap(
        &self,
        key: TokenKey,
        aad: Vec<u8>,
        plaintext: Plaintext,
        patience: Patience,
        timing: &mut Timing,
    ) -> Result<GcmSealed, Error> {
        self.run(key, patience, timing, |reply| Work::Wrap { aad, plaintext, reply }).await
    }

    /// Decrypts under a key on the token.
    pub async fn unwrap(
        &self,
        key: TokenKey,
        aad: Vec<u8>,
        sealed: GcmSealed,
        patience: Patience,
        timing: &mut Timing,
    ) -> Result<Plaintext, Error> {
        self.run(key, patience, timing, |reply| Work::Unwrap { aad, sealed, reply }).await
    }

    /// The known-answer test of one key.
    pub async fn check(&self, key: TokenKey, patience: Patience) -> Result<(), Unusable> {
        let checked = self.run(key, patience, &mut Timing::default(), |reply| Work::Check { reply }).await;
        checked.map_err(Unusable::Passing)?
    }

    async fn run<T>(
        &self,
        key: TokenKey,
        patience: Patience,
        timing: &mut Timing,
        work: impl FnOnce(Reply<T>) -> Work,
    ) -> Result<T, Error> {
        let (reply, answer) = oneshot::channel();
        let entered = Instant::now();
        let deadline = match patience {
            Patience::Request(deadline) => deadline.min(entered + self.deadline),
            Patience::Own(deadline) => deadline,
        };
        let job = Job { key, work: work(reply), entered, deadline };
        let gone = Error::Internal("the HSM threads are gone");
        match patience {
            Patience::Request(_) => self.jobs.try_send(job).map_err(|refused| match refused {
                flume::TrySendError::Full(_) => Error::Overloaded,
                flume::TrySendError::Disconnected(_) => gone,
            })?,
            Patience::Own(_) => {
                let sent = tokio::time::timeout_at(deadline.into(), self.jobs.send_async(job)).await;
                sent.map_err(|_| Error::HsmTimeout)?.map_err(|_| gone)?;
            }
        }
        // Dropping `answer` tells the worker that nobody waits any more.
        match tokio::time::timeout_at(deadline.into(), answer).await {
            Ok(Ok((outcome, measured))) => {
                *timing = measured;
                outcome
            }
            Ok(Err(_)) | Err(_) => Err(Error::HsmTimeout),
        }
    }
}

impl Drop for Replica {
    fn drop(&mut self) {
        // Without a sender the threads end after their current job.
        (self.jobs, _) = flume::bounded(0);
        let patience = Instant::now() + SHUTDOWN_PATIENCE;
        for thread in self.threads.drain(..) {
            while !thread.is_finished() && Instant::now() < patience {
                thread::sleep(Duration::from_millis(1));
            }
            if thread.is_finished() {
                let _ = thread.join();
            } else {
                tracing::error!("a PKCS#11 call hangs; the process ends without waiting for it");
            }
        }
    }
}

impl Job {
    fn abandoned(&self) -> bool {
        let closed = match &self.work {
            Work::Wrap { reply, .. } => reply.is_closed(),
            Work::Unwrap { reply, .. } => reply.is_closed(),
            Work::Check { reply } => reply.is_closed(),
        };
        closed || self.deadline <= Instant::now()
    }
}

/// A worker's life: take a job, drop it if nobody waits for it any more, else do it.
fn work(mut session: TokenSession, queue: &flume::Receiver<Job>) {
    while let Ok(job) = queue.recv() {
        if job.abandoned() {
            continue;
        }
        let started = Instant::now();
        let timing = |started: Instant| Timing { queue: started - job.entered, device: started.elapsed() };
        match job.work {
            Work::Wrap { aad, plaintext, reply } => {
                let outcome = session.wrap(&job.key, &aad, &plaintext);
                let _ = reply.send((outcome, timing(started)));
            }
            Work::Unwrap { aad, sealed, reply } => {
                let outcome = session.unwrap(&job.key, &aad, &sealed);
                let _ = reply.send((outcome, timing(started)));
            }
            Work::Check { reply } => {
                let outcome = session.check(&job.key);
                let _ = reply.send((Ok(outcome), timing(started)));
            }
        }
    }
}
