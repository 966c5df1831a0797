//! A way to a token, opened once: its queues, and who takes jobs from them. Threads of this process, or a worker process.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use tokio::sync::{oneshot, watch};

use super::fault::Fault;
use super::job::{Job, Outcome, Patience, Request};
use super::lane::Lane;
use super::process::Process;
use super::profile::ProfileName;
use super::session::TokenSession;
use super::token::{Module, Token, TokenOptions};
use super::token_error::TokenError;

/// How long a call may still run when the process wants to end. A hung one cannot be cancelled.
const SHUTDOWN_PATIENCE: Duration = Duration::from_secs(2);

/// How many jobs of our own may wait: probes, and keys that are made.
const CONTROL_QUEUE: usize = 16;

/// A way to a token.
pub(super) struct Link {
    /// For requests.
    pub(super) work: Queue,
    /// For our own jobs, on a session that requests do not use: a probe that waited behind them would say nothing about the token.
    pub(super) control: Queue,
    /// What is at its other end.
    pub(super) token: TokenInfo,
    /// Why it is of no use any more, once it is. Threads never say so.
    pub(super) lost: watch::Receiver<Option<String>>,
    pub(super) _hands: Hands,
}

/// Who works at the other end. Dropping it ends them.
#[expect(dead_code, reason = "they are kept, and dropped")]
pub(super) enum Hands {
    Threads(Threads),
    Process(Process),
}

/// Where jobs go in, and wait for a session.
pub(super) enum Queue {
    Threads(flume::Sender<Job>),
    Process(Arc<Lane>),
}

/// Why a job was not done.
pub(super) enum Undone {
    /// Too many wait already.
    Full,
    /// The way is lost, or the job's time was over before a session came to it.
    Dropped,
}

impl Queue {
    /// How many jobs wait.
    pub(super) fn len(&self) -> usize {
        match self {
            Self::Threads(jobs) => jobs.len(),
            Self::Process(lane) => lane.waiting(),
        }
    }

    /// What comes of a job, and when a session took it. Whoever does not wait any more drops this.
    pub(super) async fn ask(
        &self,
        request: &Arc<Request>,
        confirm: bool,
        deadline: Instant,
        patience: Patience,
    ) -> Result<(Instant, Outcome), Undone> {
        let jobs = match self {
            Self::Threads(jobs) => jobs,
            Self::Process(lane) => return lane.ask(request, confirm, deadline, patience).await,
        };
        let (reply, answer) = oneshot::channel();
        let job = Job { request: Arc::clone(request), confirm, deadline, reply };
        match patience {
            Patience::Request(_) => jobs.try_send(job).map_err(|refused| match refused {
                flume::TrySendError::Full(_) => Undone::Full,
                flume::TrySendError::Disconnected(_) => Undone::Dropped,
            })?,
            Patience::Own(_) => jobs.send_async(job).await.map_err(|_| Undone::Dropped)?,
        }
        answer.await.map_err(|_| Undone::Dropped)
    }
}

/// A token as it describes itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenInfo {
    /// Its label.
    pub label: String,
    /// What kind of HSM it is.
    pub profile: ProfileName,
    /// Sessions for requests.
    pub sessions: usize,
}

/// An opened token and its sessions, not yet at work.
pub(super) struct Opened {
    pub(super) info: TokenInfo,
    pub(super) sessions: Vec<TokenSession>,
    pub(super) control: TokenSession,
}

/// Finds the token, logs in, tests it, and opens the sessions one after the other: the first failure ends the attempt, so that nothing is
/// tried twice on a token that counts failures. Blocking.
pub(super) fn open_sessions(
    module: &Module,
    options: &TokenOptions,
    sessions: Option<usize>,
) -> Result<Opened, TokenError> {
    module.initialized(|module| {
        let token = Arc::new(Token::open(module, options)?);
        let count = sessions.unwrap_or_else(|| token.preferred_sessions());
        let open = || TokenSession::open(Arc::clone(&token));
        let sessions = (0..count).map(|_| open()).collect::<Result<Vec<_>, Fault>>()?;
        let (label, profile) = (token.label().to_owned(), token.profile().name);
        let info = TokenInfo { label, profile, sessions: count };
        Ok(Opened { info, sessions, control: open()? })
    })
}

impl Link {
    /// Opens the token in this process. Blocking.
    pub(super) fn in_threads(
        module: &Arc<Module>,
        options: &TokenOptions,
        sessions: Option<usize>,
        queue_length: usize,
    ) -> Result<Self, TokenError> {
        let Opened { info, sessions, control } = open_sessions(module, options, sessions)?;
        let (work, jobs) = flume::bounded(queue_length);
        let (control_work, control_jobs) = flume::bounded(CONTROL_QUEUE);
        let mut threads = Threads { module: Arc::clone(module), running: Vec::new() };
        threads.start("hsm-control".into(), control, control_jobs)?;
        for (number, session) in sessions.into_iter().enumerate() {
            threads.start(format!("hsm-{number}"), session, jobs.clone())?;
        }
        let (work, control) = (Queue::Threads(work), Queue::Threads(control_work));
        Ok(Self { work, control, token: info, lost: watch::channel(None).1, _hands: Hands::Threads(threads) })
    }

    /// Resolves with the reason when the link is of no use any more.
    pub(super) async fn loss(&self) -> String {
        let mut lost = self.lost.clone();
        let reason = lost.wait_for(Option::is_some).await.ok().and_then(|reason| reason.clone());
        match reason {
            Some(reason) => reason,
            None => std::future::pending().await,
        }
    }
}

/// Threads that own one session each, of a module that nobody else in this process uses. Dropping them waits for the current calls: their
/// sessions must be closed before the process ends, or the module's own clean-up at exit races with them.
pub(super) struct Threads {
    module: Arc<Module>,
    running: Vec<thread::JoinHandle<()>>,
}

impl Threads {
    fn start(&mut self, name: String, session: TokenSession, queue: flume::Receiver<Job>) -> Result<(), Fault> {
        let spawned = thread::Builder::new().name(name).spawn(move || work(session, &queue));
        self.running.push(spawned.map_err(|error| Fault::integrity("thread", &error.to_string()))?);
        Ok(())
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        // The senders are gone before this, so the threads end after their current job.
        let patience = Instant::now() + SHUTDOWN_PATIENCE;
        let mut hung = false;
        for thread in self.running.drain(..) {
            while !thread.is_finished() && Instant::now() < patience {
                thread::sleep(Duration::from_millis(1));
            }
            if thread.is_finished() {
                let _ = thread.join();
            } else {
                hung = true;
            }
        }
        match hung {
            // What a library shows is what it found when it was initialised.
            false => self.module.finalize(),
            true => tracing::error!("a PKCS#11 call hangs; nobody waits for it any more"),
        }
    }
}

/// A worker's life: take a job, drop it if nobody waits for it any more, else do it.
fn work(mut session: TokenSession, queue: &flume::Receiver<Job>) {
    while let Ok(job) = queue.recv() {
        if job.abandoned() {
            continue;
        }
        let taken = Instant::now();
        let result = session.serve(&job.request, job.confirm);
        let _ = job.reply.send((taken, (result, taken.elapsed())));
    }
}
