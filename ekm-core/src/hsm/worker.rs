//! The worker process: one token, and nothing else. It loads the vendor's library so that the frontend does not have to: a call that
//! hangs, or a library that crashes, costs this process and not the service.
//!
//! It knows no configuration and no catalog, and no network unless its HSM is on one ([`super::confine`]). On standard input it has a
//! socket to its frontend, which tells it once which token to open, with the PIN; it answers with one socket for each session. When the
//! frontend goes, it goes.

use std::io::{self, IoSlice, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread;
use std::time::Instant;

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use rustix::process::{Signal, getpid, kill_process};
use secrecy::SecretString;

use super::frame::Inbox;
use super::link::{Opened, open_sessions};
use super::profile::Profile;
use super::session::TokenSession;
use super::token::{Module, TokenError, TokenOptions, TokenSelector};
use super::{confine, frame};

/// A worker's whole life. Returns only if there is nothing to do: standard input is no frontend's socket.
pub fn run() -> io::Result<()> {
    let control = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
    let mut inbox = Inbox::new();
    if !inbox.read(&mut &control)? {
        return Ok(());
    }
    let texts = inbox.take(frame::decode_texts);
    let texts: Vec<&str> = texts.iter().flatten().map(|text| text.as_str()).collect();
    let [module, kind, name, pin, profile, sessions] = texts[..] else {
        return Err(io::Error::other("'ekm hsm-worker' is started by 'ekm serve', and not by hand"));
    };
    let selector = match kind {
        "serial" => TokenSelector::Serial(name.into()),
        _ => TokenSelector::Label(name.into()),
    };
    let options = TokenOptions { selector, pin: SecretString::from(pin), profile: profile.parse().ok() };
    let sessions = sessions.parse().ok();
    drop(texts);
    confine::confine()?;
    let opened = Module::load(Path::new(module)).and_then(|module| open_sessions(&module, &options, sessions));
    match opened {
        Ok(opened) => {
            if !Profile::named(opened.info.profile).network {
                confine::without_network()?;
            }
            serve(&control, opened)?;
        }
        Err(error) => refuse(&control, &error)?,
    }
    // Whatever ends the connection: the frontend is gone, or wants this process to be.
    let _ = inbox.read(&mut &control);
    die()
}

fn refuse(control: &UnixStream, error: &TokenError) -> io::Result<()> {
    let away = if error.is_away() { "away" } else { "" };
    (&*control).write_all(&frame::encode_texts(&["refused", error.code(), &error.to_string(), away]))
}

fn serve(control: &UnixStream, opened: Opened) -> io::Result<()> {
    let Opened { info, sessions, control: own } = opened;
    let count = sessions.len().to_string();
    (&*control).write_all(&frame::encode_texts(&["ready", &info.label, info.profile.as_str(), &count]))?;
    for (number, session) in std::iter::once(own).chain(sessions).enumerate() {
        let (ours, theirs) = UnixStream::pair()?;
        send_socket(control, theirs.as_fd())?;
        let named = thread::Builder::new().name(format!("session-{number}"));
        named.spawn(move || answer(session, ours))?;
    }
    Ok(())
}

fn send_socket(control: &UnixStream, socket: BorrowedFd<'_>) -> io::Result<()> {
    let (mut space, sockets) = ([MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))], [socket]);
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    ancillary.push(SendAncillaryMessage::ScmRights(&sockets));
    sendmsg(control, &[IoSlice::new(&[0])], &mut ancillary, SendFlags::empty())?;
    Ok(())
}

/// A session's life.
fn answer(mut session: TokenSession, mut stream: UnixStream) {
    let mut inbox = Inbox::new();
    let served = loop {
        let request = match inbox.read(&mut stream) {
            Ok(true) => inbox.take(frame::decode_request),
            Ok(false) => break Ok(()),
            Err(error) => break Err(error),
        };
        let Some((request, confirm)) = request else { break Err(io::Error::other("a request that does not parse")) };
        let began = Instant::now();
        let outcome = (session.serve(&request, confirm), began.elapsed());
        if let Err(error) = stream.write_all(&frame::encode_outcome(&outcome)) {
            break Err(error);
        }
    };
    if let Err(error) = served {
        tracing::debug!(%error, "a session's connection has ended");
    }
    // Frontends end all connections at once.
    die()
}

/// At once, without the library's own clean-up, which may hang as well as any other call.
fn die() -> ! {
    let _ = kill_process(getpid(), Signal::KILL);
    unreachable!("nobody survives SIGKILL")
}
