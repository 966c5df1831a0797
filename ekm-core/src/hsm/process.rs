//! The frontend's side of a worker process: started, given its PIN once, watched, and killed when a call hangs.
//!
//! Every session of the worker has a socket of its own, so that one that hangs holds up nobody.

use std::io::{self, IoSliceMut, Write};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use secrecy::ExposeSecret;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use zeroize::Zeroizing;

use super::frame::{self, Inbox};
use super::job::{Job, Outcome};
use super::link::{Hands, Link, TokenInfo, queues};
use super::token::{TokenError, TokenOptions, TokenSelector};

/// From the start of a worker until it is logged in. HSMs on a network take their time; one that hangs must not hold it for ever.
const START_PATIENCE: Duration = Duration::from_secs(30);

/// How a worker is started.
#[derive(Clone, Debug)]
pub struct WorkerCommand {
    /// The program; it runs [`super::worker::run`].
    pub program: PathBuf,
    /// What `ps` shows in its place.
    pub name: String,
    /// Its arguments.
    pub arguments: Vec<String>,
    /// What the vendor's library reads, such as SOFTHSM2_CONF.
    pub environment: Vec<(String, String)>,
    /// How long a call may take before the worker counts as hung, and is killed.
    pub hang_after: Duration,
}

/// A running worker, and who carries jobs to it.
pub(super) struct Process {
    _worker: Worker,
    tasks: Vec<JoinHandle<()>>,
}

impl Drop for Process {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

/// The process. Dropping it kills it.
struct Worker(Child);

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts a worker and waits until it has logged in. Blocking; within a runtime, whose tasks then carry the jobs.
pub(super) fn open(
    command: &WorkerCommand,
    module: &Path,
    options: &TokenOptions,
    sessions: Option<usize>,
    queue_length: usize,
) -> Result<Link, TokenError> {
    let began = |error: io::Error| TokenError::Worker {
        code: "hsm_worker",
        text: format!("the worker process of this HSM does not start: {error}"),
        away: true,
    };
    let (ours, theirs) = UnixStream::pair().map_err(began)?;
    let child = Command::new(&command.program)
        .arg0(&command.name)
        .args(&command.arguments)
        .envs(command.environment.iter().map(|(name, value)| (name, value)))
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .stdout(Stdio::null())
        .spawn();
    let worker = Worker(child.map_err(began)?);
    ours.set_read_timeout(Some(START_PATIENCE)).map_err(began)?;
    (&ours).write_all(&introduction(module, options, sessions)).map_err(began)?;
    let token = greeting(&ours).map_err(began)??;

    let (jobs, queues) = queues(queue_length);
    let (loss, lost) = watch::channel(None);
    let (mut tasks, loss) = (Vec::new(), Arc::new(loss));
    for number in 0..=token.sessions {
        let stream = receive_socket(&ours).map_err(began)?;
        let queue = if number == 0 { &queues.control } else { &queues.work };
        // Our own jobs, such as making a key, may take longer than a request has time for.
        let patience = if number == 0 { START_PATIENCE } else { command.hang_after };
        tasks.push(tokio::spawn(carry(stream, queue.clone(), patience, Arc::clone(&loss))));
    }
    tasks.push(tokio::spawn(watch_end(ours, loss)));
    Ok(Link { jobs, token, lost, _hands: Hands::Process(Process { _worker: worker, tasks }) })
}

/// What the worker says first: which token it has opened, or why it has not.
fn greeting(control: &UnixStream) -> io::Result<Result<TokenInfo, TokenError>> {
    let mut inbox = Inbox::exact();
    let answered = inbox.read(&mut &*control)?;
    let ended = || io::Error::other("it ended before it was logged in");
    let texts = answered.then(|| inbox.take(frame::decode_texts)).flatten().ok_or_else(ended)?;
    let texts: Vec<&str> = texts.iter().map(|text| text.as_str()).collect();
    match texts[..] {
        ["ready", label, profile, sessions] => Ok(Ok(TokenInfo {
            label: label.into(),
            profile: profile.parse().map_err(|_| ended())?,
            sessions: sessions.parse().map_err(|_| ended())?,
        })),
        ["refused", code, text, away] => Ok(Err(TokenError::of_worker(code, text, away == "away"))),
        _ => Err(ended()),
    }
}

/// What a worker has to know. The one time that the PIN is handed over.
fn introduction(module: &Path, options: &TokenOptions, sessions: Option<usize>) -> Zeroizing<Vec<u8>> {
    let (kind, name) = match &options.selector {
        TokenSelector::Label(label) => ("label", label),
        TokenSelector::Serial(serial) => ("serial", serial),
    };
    let sessions = sessions.map_or(String::new(), |count| count.to_string());
    let profile = options.profile.map_or("", |profile| profile.as_str());
    frame::encode_texts(&[&module.to_string_lossy(), kind, name, options.pin.expose_secret(), profile, &sessions])
}

/// One socket of a session, sent along with one byte (unix(7), SCM_RIGHTS).
fn receive_socket(control: &UnixStream) -> io::Result<tokio::net::UnixStream> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    let received = recvmsg(control, &mut [IoSliceMut::new(&mut byte)], &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
    let sockets = ancillary.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut sockets) => sockets.next(),
        _ => None,
    });
    match sockets {
        Some(socket) if received.bytes == 1 => {
            let stream = UnixStream::from(socket);
            stream.set_nonblocking(true)?;
            tokio::net::UnixStream::from_std(stream)
        }
        _ => Err(io::Error::other("it sent no socket for a session")),
    }
}

/// Carries jobs to one session and answers back.
async fn carry(
    mut stream: tokio::net::UnixStream,
    queue: flume::Receiver<Job>,
    hang_after: Duration,
    loss: Arc<watch::Sender<Option<String>>>,
) {
    let mut inbox = Inbox::new();
    while let Ok(job) = queue.recv_async().await {
        if job.abandoned() {
            continue;
        }
        let taken = Instant::now();
        let request = frame::encode_request(&job.request, job.confirm);
        let reason = match tokio::time::timeout(hang_after, exchange(&mut stream, &request, &mut inbox)).await {
            Ok(Ok(outcome)) => {
                let _ = job.reply.send((taken, outcome));
                continue;
            }
            Ok(Err(error)) => format!("its worker process has ended, or spoken nonsense: {error}"),
            Err(_) => format!("a call has hung for {} ms; its worker process is killed", hang_after.as_millis()),
        };
        lose(&loss, reason);
        return;
    }
}

async fn exchange(stream: &mut tokio::net::UnixStream, request: &[u8], inbox: &mut Inbox) -> io::Result<Outcome> {
    stream.write_all(request).await?;
    loop {
        let length = stream.read(inbox.room()).await?;
        if inbox.add(length)? {
            let outcome = inbox.take(frame::decode_outcome);
            return outcome.ok_or_else(|| io::Error::other("an answer that does not parse"));
        }
    }
}

/// The worker holds the other end of the control socket as long as it lives.
async fn watch_end(control: UnixStream, loss: Arc<watch::Sender<Option<String>>>) {
    let converted = control.set_nonblocking(true).and_then(|()| tokio::net::UnixStream::from_std(control));
    if let Ok(mut control) = converted {
        let _ = control.read(&mut [0]).await;
    }
    lose(&loss, "its worker process has ended".into());
}

/// The first reason counts: the others follow from it.
fn lose(loss: &watch::Sender<Option<String>>, reason: String) {
    loss.send_if_modified(|lost| {
        let first = lost.is_none();
        lost.get_or_insert(reason);
        first
    });
}
