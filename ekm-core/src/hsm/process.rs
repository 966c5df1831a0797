//! The frontend's side of a worker process: started, given its PIN once, watched, and killed when a call hangs.

use std::io::{self, IoSliceMut, Write};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use secrecy::ExposeSecret;
use tokio::io::AsyncReadExt;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use zeroize::Zeroizing;

use super::frame;
use super::lane::Lane;
use super::link::{Hands, Link, Queue, TokenInfo};
use super::token::{TokenOptions, TokenSelector};
use super::token_error::TokenError;

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

/// A running worker, and who hands out its answers.
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

/// Starts a worker and waits until it has logged in. Blocking; within a runtime, whose tasks then hand out the answers.
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

    let (loss, lost) = watch::channel(None);
    let (mut tasks, loss) = (Vec::new(), Arc::new(loss));
    let mut lane = |sessions, hang_after| {
        let lane = Arc::new(Lane::new(receive_socket(&ours).map_err(began)?, sessions, queue_length));
        let (handing, loss) = (Arc::clone(&lane), Arc::clone(&loss));
        tasks.push(tokio::spawn(async move { lose(&loss, handing.hand_out(hang_after).await) }));
        Ok::<_, TokenError>(Queue::Process(lane))
    };
    // Our own jobs, such as making a key, may take longer than a request has time for.
    let control = lane(1, START_PATIENCE)?;
    let work = lane(token.sessions, command.hang_after)?;
    tasks.push(tokio::spawn(watch_end(ours, loss)));
    Ok(Link { work, control, token, lost, _hands: Hands::Process(Process { _worker: worker, tasks }) })
}

/// What the worker says first: which token it has opened, or why it has not.
fn greeting(control: &UnixStream) -> io::Result<Result<TokenInfo, TokenError>> {
    let ended = || io::Error::other("it ended before it was logged in");
    let texts = frame::read_texts(&mut &*control)?.ok_or_else(ended)?;
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

/// A socket to sessions, sent along with one byte (unix(7), SCM_RIGHTS).
fn receive_socket(control: &UnixStream) -> io::Result<OwnedFd> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    let received = recvmsg(control, &mut [IoSliceMut::new(&mut byte)], &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
    let socket = ancillary.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut sockets) => sockets.next(),
        _ => None,
    });
    let none = || io::Error::other("it sent no socket for its sessions");
    let socket = socket.filter(|_| received.bytes == 1).ok_or_else(none)?;
    rustix::io::ioctl_fionbio(&socket, true)?;
    Ok(socket)
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
