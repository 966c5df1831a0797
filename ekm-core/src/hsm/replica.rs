//! A replica: the threads that work on one token, behind one bounded queue.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::fault::Fault;
use super::session::TokenSession;
use super::token::Token;
use crate::blob::Sealed;
use crate::error::Error;
use crate::secret::Plaintext;
use crate::snapshot::KeyVersion;

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

struct Job {
    version: Arc<KeyVersion>,
    aad: Vec<u8>,
    work: Work,
    entered: Instant,
    deadline: Instant,
}

enum Work {
    Wrap(Plaintext, Reply<Sealed>),
    Unwrap(Sealed, Reply<Plaintext>),
    Check(Reply<()>),
}

type Reply<T> = oneshot::Sender<(Result<T, Error>, Timing)>;

impl Replica {
    /// Opens the sessions one after the other and starts a thread for each: the first failure stops the start, so that nothing is
    /// tried twice on a token that counts failures. Blocking.
    pub fn start(token: Arc<Token>, options: ReplicaOptions) -> Result<Self, Fault> {
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

    /// Encrypts a data key under a key version on the token.
    pub async fn wrap(
        &self,
        version: &Arc<KeyVersion>,
        aad: &[u8],
        plaintext: Plaintext,
        deadline: Instant,
        timing: &mut Timing,
    ) -> Result<Sealed, Error> {
        self.run(version, aad, deadline, timing, |reply| Work::Wrap(plaintext, reply)).await
    }

    /// Decrypts a data key under a key version on the token.
    pub async fn unwrap(
        &self,
        version: &Arc<KeyVersion>,
        aad: &[u8],
        sealed: Sealed,
        deadline: Instant,
        timing: &mut Timing,
    ) -> Result<Plaintext, Error> {
        self.run(version, aad, deadline, timing, |reply| Work::Unwrap(sealed, reply)).await
    }

    /// The known-answer test of one key version. Waits in the queue like any job; `patience` is its deadline.
    pub async fn check(&self, version: &Arc<KeyVersion>, patience: Duration) -> Result<(), Error> {
        let (reply, answer) = oneshot::channel();
        let deadline = Instant::now() + patience;
        let job = Job::new(version, b"", Work::Check(reply), deadline);
        let answered = async {
            self.jobs.send_async(job).await.map_err(|_| Error::Internal("the HSM threads are gone"))?;
            answer.await.map_err(|_| Error::HsmTimeout)?.0
        };
        tokio::time::timeout_at(deadline.into(), answered).await.map_err(|_| Error::HsmTimeout)?
    }

    async fn run<T>(
        &self,
        version: &Arc<KeyVersion>,
        aad: &[u8],
        request_deadline: Instant,
        timing: &mut Timing,
        work: impl FnOnce(Reply<T>) -> Work,
    ) -> Result<T, Error> {
        let (reply, answer) = oneshot::channel();
        let deadline = request_deadline.min(Instant::now() + self.deadline);
        self.jobs.try_send(Job::new(version, aad, work(reply), deadline)).map_err(|refused| match refused {
            flume::TrySendError::Full(_) => Error::Overloaded,
            flume::TrySendError::Disconnected(_) => Error::Internal("the HSM threads are gone"),
        })?;
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
    fn new(version: &Arc<KeyVersion>, aad: &[u8], work: Work, deadline: Instant) -> Self {
        Self { version: Arc::clone(version), aad: aad.to_vec(), work, entered: Instant::now(), deadline }
    }

    fn abandoned(&self) -> bool {
        let closed = match &self.work {
            Work::Wrap(_, reply) => reply.is_closed(),
            Work::Unwrap(_, reply) => reply.is_closed(),
            Work::Check(reply) => reply.is_closed(),
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
            Work::Wrap(plaintext, reply) => {
                let outcome = session.wrap(job.version.id, &job.aad, &plaintext);
                let _ = reply.send((outcome, timing(started)));
            }
            Work::Unwrap(sealed, reply) => {
                let outcome = session.unwrap(&job.version, &job.aad, &sealed);
                let _ = reply.send((outcome, timing(started)));
            }
            Work::Check(reply) => {
                let outcome = session.check(&job.version).map_err(|fault| {
                    tracing::error!(key = %job.version.id, %fault, "known-answer test failed");
                    Error::KeyUnavailable
                });
                let _ = reply.send((outcome, timing(started)));
            }
        }
    }
}
