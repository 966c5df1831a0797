//! A way to a token, opened once: its queues, and who takes jobs from them. Threads of this process, or a worker process.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::fault::Fault;
use super::job::Job;
use super::process::Process;
use super::profile::ProfileName;
use super::session::TokenSession;
use super::token::{Module, Token, TokenError, TokenOptions};

/// How long a call may still run when the process wants to end. A hung one cannot be cancelled.
const SHUTDOWN_PATIENCE: Duration = Duration::from_secs(2);

/// How many jobs of our own may wait: probes, and keys that are made.
const CONTROL_QUEUE: usize = 16;

/// A way to a token.
pub(super) struct Link {
    /// Where jobs go in.
    pub(super) jobs: Queues<flume::Sender<Job>>,
    /// What is at its other end.
    pub(super) token: TokenInfo,
    /// Why it is of no use any more, once it is. Threads never say so.
    pub(super) lost: watch::Receiver<Option<String>>,
    pub(super) _hands: Hands,
}

/// Who takes jobs out. Dropping it ends them.
#[expect(dead_code, reason = "they are kept, and dropped")]
pub(super) enum Hands {
    Threads(Threads),
    Process(Process),
}

/// The queues in front of a token's sessions: one end of each.
pub(super) struct Queues<T> {
    /// For requests.
    pub(super) work: T,
    /// For our own jobs, on a session that requests do not use: a probe that waited behind them would say nothing about the token.
    pub(super) control: T,
}

/// Where jobs go in, and where they come out. So many requests can wait.
pub(super) fn queues(length: usize) -> (Queues<flume::Sender<Job>>, Queues<flume::Receiver<Job>>) {
    let ((work, at_work), (control, in_control)) = (flume::bounded(length), flume::bounded(CONTROL_QUEUE));
    (Queues { work, control }, Queues { work: at_work, control: in_control })
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
        let (jobs, queues) = queues(queue_length);
        let mut threads = Threads { module: Arc::clone(module), running: Vec::new() };
        threads.start("hsm-control".into(), control, queues.control)?;
        for (number, session) in sessions.into_iter().enumerate() {
            threads.start(format!("hsm-{number}"), session, queues.work.clone())?;
        }
        Ok(Self { jobs, token: info, lost: watch::channel(None).1, _hands: Hands::Threads(threads) })
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
