//! The worker process: one token, and nothing else. It loads the vendor's library so that the frontend does not have to: a call that
//! hangs, or a library that crashes, costs this process and not the service.
//!
//! It knows no configuration and no catalog, and no network unless its HSM is on one ([`super::confine`]). On standard input it has a
//! socket to its frontend, which tells it once which token to open, with the PIN; it answers with two sockets: one for the session that
//! does the frontend's own jobs, and one at which all others wait. When the frontend goes, it goes.

use std::io::{self, IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::Instant;

use rustix::io::retry_on_intr;
use rustix::net::{
    AddressFamily, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recv,
    send, sendmsg, socketpair,
};
use rustix::process::{Signal, getpid, kill_process};
use secrecy::SecretString;
use zeroize::{Zeroize, Zeroizing};

use super::fault::Fault;
use super::frame::{Clock, MAX_BYTES, Order};
use super::job::{Answer, Request};
use super::link::{Opened, open_sessions};
use super::profile::Profile;
use super::session::TokenSession;
use super::token::{Module, TokenOptions, TokenSelector};
use super::token_error::TokenError;
use super::{confine, frame};

/// A worker's whole life. Returns only if there is nothing to do: standard input is no frontend's socket.
pub fn run() -> io::Result<()> {
    let control = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
    let Some(texts) = frame::read_texts(&mut &control)? else { return Ok(()) };
    let words: Vec<&str> = texts.iter().map(|text| text.as_str()).collect();
    let [module, kind, name, pin, profile, sessions] = words[..] else {
        return Err(io::Error::other("'ekm hsm-worker' is started by 'ekm serve', and not by hand"));
    };
    let selector = match kind {
        "serial" => TokenSelector::Serial(name.into()),
        _ => TokenSelector::Label(name.into()),
    };
    let options = TokenOptions { selector, pin: SecretString::from(pin), profile: profile.parse().ok() };
    let (module, sessions) = (PathBuf::from(module), sessions.parse().ok());
    drop(texts); // the PIN
    confine::confine()?;
    let opened = Module::load(&module).and_then(|module| open_sessions(&module, &options, sessions));
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
    let _ = (&control).read(&mut [0]);
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
    for (name, sessions) in [("control", vec![own]), ("session", sessions)] {
        let (kind, flags) = (SocketType::SEQPACKET, SocketFlags::CLOEXEC);
        let (ours, theirs) = socketpair(AddressFamily::UNIX, kind, flags, None)?;
        send_socket(control, theirs.as_fd())?;
        let ours = Arc::new(ours);
        for (number, session) in sessions.into_iter().enumerate() {
            let socket = Arc::clone(&ours);
            let named = thread::Builder::new().name(format!("{name}-{number}"));
            named.spawn(move || live(session, &socket))?;
        }
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
fn live(mut session: TokenSession, socket: &OwnedFd) {
    if let Err(error) = answer(socket, |request, confirm| session.serve(request, confirm)) {
        tracing::debug!(%error, "a session's connection has ended");
    }
    // Frontends end all connections at once.
    die()
}

/// Takes jobs until the other end is gone. One whose time is over is not done any more.
fn answer(socket: &OwnedFd, mut serve: impl FnMut(&Request, bool) -> Result<Answer, Fault>) -> io::Result<()> {
    let mut inbox = Zeroizing::new(vec![0; MAX_BYTES]);
    loop {
        let (_, length) = retry_on_intr(|| recv(socket, &mut inbox[..], RecvFlags::empty()))?;
        if length == 0 {
            return Ok(());
        }
        let order = frame::decode_order(&inbox[..length]);
        inbox[..length].zeroize();
        let Order { number, deadline, confirm, request } =
            order.ok_or_else(|| io::Error::other("a job that does not parse"))?;
        let outcome = (Clock::now() < deadline).then(|| {
            let began = Instant::now();
            (serve(&request, confirm), began.elapsed())
        });
        let answer = frame::encode_answer(number, outcome.as_ref());
        retry_on_intr(|| send(socket, &answer, SendFlags::NOSIGNAL))?;
    }
}

/// At once, without the library's own clean-up, which may hang as well as any other call.
fn die() -> ! {
    let _ = kill_process(getpid(), Signal::KILL);
    unreachable!("nobody survives SIGKILL")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_job_whose_time_is_over_does_not_reach_the_token() {
        let (kind, flags) = (SocketType::SEQPACKET, SocketFlags::CLOEXEC);
        let (frontend, worker) = socketpair(AddressFamily::UNIX, kind, flags, None).unwrap();
        let (now, later) = (Clock::now(), Clock::at(Instant::now() + Duration::from_secs(20)));
        for (number, deadline) in [(1_u32, later), (2, now), (3, later)] {
            let mut order = frame::encode_order(&Request::Probe, false, deadline);
            order[..4].copy_from_slice(&number.to_le_bytes());
            send(&frontend, &order, SendFlags::empty()).unwrap();
        }
        rustix::net::shutdown(&frontend, rustix::net::Shutdown::Write).unwrap();
        let mut served = 0;
        answer(&worker, |_, _| {
            served += 1;
            Ok(Answer::Done)
        })
        .unwrap();
        assert_eq!(served, 2);
        for (number, done) in [(1, true), (2, false), (3, true)] {
            let mut inbox = [0; 100];
            let length = recv(&frontend, &mut inbox[..], RecvFlags::empty()).unwrap().1;
            let (answered, outcome) = frame::decode_answer(&inbox[..length]).unwrap();
            assert_eq!((answered, outcome.is_some()), (number, done));
        }
    }
}
