//! The way from a frontend to the sessions of its worker process: one socket that keeps messages apart (unix(7), SOCK_SEQPACKET), at whose
//! other end all sessions wait. Whichever is free takes the next job, so one that hangs holds up nobody.
//!
//! The request's own task sends its job, because each task and each thread between it and the token has to be woken. What comes back is
//! handed out by one task.

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::{SendFlags, send};
use tokio::net::unix::pipe;
use tokio::sync::{Semaphore, oneshot};
use zeroize::{Zeroize, Zeroizing};

use super::frame::{self, Clock, MAX_BYTES};
use super::job::{Outcome, Patience, Request};
use super::link::Undone;

/// So many jobs may be in the socket beyond those that the sessions work on, or one for each session if these are more: a session then finds
/// its next job without having slept, and the token need not wait for us. What waits here instead costs nothing if it is given up.
const AHEAD: usize = 4;

/// The frontend's end.
pub(super) struct Lane {
    socket: OwnedFd,
    sessions: usize,
    /// How many jobs may wait here, outside the socket.
    queue_length: usize,
    /// Room for jobs in the socket.
    room: Semaphore,
    waiting: AtomicUsize,
    under_way: Mutex<UnderWay>,
}

struct UnderWay {
    last_number: u32,
    /// In the order in which they were sent, which is the order in which sessions take them.
    jobs: VecDeque<Sent>,
}

struct Sent {
    number: u32,
    /// When a session took it, or will find it at once. Later if others are before it.
    taken: Instant,
    reply: oneshot::Sender<(Instant, Outcome)>,
}

impl Lane {
    pub(super) fn new(socket: OwnedFd, sessions: usize, queue_length: usize) -> Self {
        let ahead = sessions.max(AHEAD).min(queue_length);
        let under_way = UnderWay { last_number: 0, jobs: VecDeque::with_capacity(sessions + ahead) };
        let (room, waiting) = (Semaphore::new(sessions + ahead), AtomicUsize::new(0));
        let queue_length = queue_length - ahead;
        Self { socket, sessions, queue_length, room, waiting, under_way: Mutex::new(under_way) }
    }

    /// How many jobs wait, here or in the socket.
    pub(super) fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed) + self.under_way().jobs.len().saturating_sub(self.sessions)
    }

    /// Sends a job, and waits for what comes of it. Whoever does not wait any more drops this: a job that is not sent yet never will be.
    pub(super) async fn ask(
        &self,
        request: &Request,
        confirm: bool,
        deadline: Instant,
        patience: Patience,
    ) -> Result<(Instant, Outcome), Undone> {
        let room = match self.room.try_acquire() {
            Ok(room) => room,
            Err(_) => {
                let waiting = Waiting::among(&self.waiting);
                if waiting.others >= self.queue_length && matches!(patience, Patience::Request(_)) {
                    return Err(Undone::Full);
                }
                self.room.acquire().await.map_err(|_| Undone::Dropped)?
            }
        };
        let mut frame = frame::encode_order(request, confirm, Clock::at(deadline));
        let answer = loop {
            let (number, answer) = self.expect().ok_or(Undone::Dropped)?;
            frame[..4].copy_from_slice(&number.to_le_bytes());
            let sent = send(&self.socket, &frame, SendFlags::DONTWAIT | SendFlags::NOSIGNAL);
            let Err(error) = sent else { break answer };
            self.expect_no_more(number);
            match error {
                // Large ones fill the socket.
                Errno::AGAIN => self.writable().await.map_err(|_| Undone::Dropped)?,
                _ => return Err(Undone::Dropped),
            }
        };
        room.forget(); // until it is answered
        answer.await.map_err(|_| Undone::Dropped)
    }

    async fn writable(&self) -> io::Result<()> {
        pipe::Sender::from_owned_fd_unchecked(self.socket.try_clone()?)?.writable().await
    }

    /// Hands out what comes back, as long as the worker lives and no call hangs; then says why it does not any more.
    pub(super) async fn hand_out(&self, hang_after: Duration) -> String {
        let ended = |error: io::Error| format!("its worker process has ended, or spoken nonsense: {error}");
        let _closed = Closing(self);
        // As the end of a pipe, it is watched for answers alone: else each session that takes a job would wake us to say that there is room.
        let socket = match self.socket.try_clone().and_then(pipe::Receiver::from_owned_fd_unchecked) {
            Ok(socket) => socket,
            Err(error) => return ended(error),
        };
        let mut inbox = Zeroizing::new(vec![0; MAX_BYTES]);
        let mut oldest = std::pin::pin!(tokio::time::sleep(hang_after));
        loop {
            tokio::select! {
                biased;
                ready = socket.readable() => {
                    if let Err(error) = ready.and_then(|()| self.hand_out_all(&socket, &mut inbox)) {
                        return ended(error);
                    }
                }
                () = &mut oldest => {
                    let (now, taken) = (Instant::now(), self.oldest());
                    if taken.is_some_and(|taken| taken + hang_after <= now) {
                        return format!("a call has hung for {} ms; its worker process is killed", hang_after.as_millis());
                    }
                    oldest.as_mut().reset((taken.unwrap_or(now) + hang_after).into());
                }
            }
        }
    }

    fn hand_out_all(&self, socket: &pipe::Receiver, inbox: &mut [u8]) -> io::Result<()> {
        loop {
            let length = match socket.try_read(inbox) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(length) => length,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            };
            let answer = frame::decode_answer(&inbox[..length]);
            inbox[..length].zeroize();
            let (number, outcome) = answer.ok_or_else(|| io::Error::other("an answer that does not parse"))?;
            self.settle(number, outcome).ok_or_else(|| io::Error::other("an answer that nobody has asked for"))?;
        }
    }

    fn under_way(&self) -> MutexGuard<'_, UnderWay> {
        self.under_way.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `None` if nobody hands out answers any more.
    fn expect(&self) -> Option<(u32, oneshot::Receiver<(Instant, Outcome)>)> {
        let (reply, answer) = oneshot::channel();
        let (taken, mut under_way) = (Instant::now(), self.under_way());
        if self.room.is_closed() {
            return None;
        }
        let number = under_way.last_number.wrapping_add(1);
        under_way.last_number = number;
        under_way.jobs.push_back(Sent { number, taken, reply });
        Some((number, answer))
    }

    fn expect_no_more(&self, number: u32) {
        self.under_way().jobs.retain(|job| job.number != number);
    }

    /// A job is done, or was dropped at the other end because nobody waits for it any more.
    fn settle(&self, number: u32, outcome: Option<Outcome>) -> Option<()> {
        let (now, mut under_way) = (Instant::now(), self.under_way());
        let place = under_way.jobs.iter().position(|job| job.number == number)?;
        let job = under_way.jobs.remove(place)?;
        // The session that is free now takes the first one that no other has.
        if let Some(next) = self.sessions.checked_sub(1).and_then(|last| under_way.jobs.get_mut(last)) {
            next.taken = now;
        }
        self.room.add_permits(1);
        drop(under_way);
        if let Some(outcome) = outcome {
            let _ = job.reply.send((job.taken, outcome));
        }
        Some(())
    }

    /// When the session took its job that has been busy the longest.
    fn oldest(&self) -> Option<Instant> {
        self.under_way().jobs.front().map(|job| job.taken)
    }
}

/// Counts a job as waiting until it is dropped.
struct Waiting<'a> {
    all: &'a AtomicUsize,
    others: usize,
}

impl<'a> Waiting<'a> {
    fn among(all: &'a AtomicUsize) -> Self {
        Self { all, others: all.fetch_add(1, Ordering::Relaxed) }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.all.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Nobody gets an answer any more when it is dropped.
struct Closing<'a>(&'a Lane);

impl Drop for Closing<'_> {
    fn drop(&mut self) {
        self.0.room.close();
        self.0.under_way().jobs.clear();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, recv, socketpair};
    use tokio::task::JoinHandle;

    use super::super::frame::Order;
    use super::super::job::{Answer, Demand, Proof, TokenKey, Urgency};
    use super::*;
    use crate::blob::VersionId;
    use crate::secret::Plaintext;

    const LONG: Duration = Duration::from_secs(20);
    const DONE: Outcome = (Ok(Answer::Done), Duration::ZERO);

    type Asked = JoinHandle<Result<(Instant, Outcome), Undone>>;

    struct Fixture {
        lane: Arc<Lane>,
        worker: OwnedFd,
        handing: JoinHandle<String>,
    }

    impl Fixture {
        fn new(sessions: usize, queue_length: usize, hang_after: Duration) -> Self {
            let (kind, flags) = (SocketType::SEQPACKET, SocketFlags::CLOEXEC);
            let (ours, worker) = socketpair(AddressFamily::UNIX, kind, flags, None).unwrap();
            rustix::io::ioctl_fionbio(&ours, true).unwrap();
            let lane = Arc::new(Lane::new(ours, sessions, queue_length));
            let handing = Arc::clone(&lane);
            Self { lane, worker, handing: tokio::spawn(async move { handing.hand_out(hang_after).await }) }
        }

        async fn ask(&self, count: usize, request: impl Fn() -> Request) -> Vec<Asked> {
            let deadline = Instant::now() + LONG;
            let ask = |request: Request| {
                let lane = Arc::clone(&self.lane);
                let patience = Patience::Request(Demand { deadline, caller: 1, urgency: Urgency::Unwrap });
                tokio::spawn(async move { lane.ask(&request, false, deadline, patience).await })
            };
            let asked = (0..count).map(|_| ask(request())).collect();
            everybody_else().await;
            asked
        }

        /// What is in the socket.
        fn take(&self) -> Vec<Order> {
            let mut inbox = vec![0; MAX_BYTES];
            let next = || {
                let length = recv(&self.worker, &mut inbox[..], RecvFlags::DONTWAIT).ok()?.1;
                Some(frame::decode_order(&inbox[..length]).unwrap())
            };
            std::iter::from_fn(next).collect()
        }

        fn answer(&self, order: &Order, outcome: Option<&Outcome>) {
            send(&self.worker, &frame::encode_answer(order.number, outcome), SendFlags::empty()).unwrap();
        }

        /// Does all that is asked for.
        async fn work_off(&self, asked: Vec<Asked>) {
            while !asked.iter().all(Asked::is_finished) {
                self.take().iter().for_each(|order| self.answer(order, Some(&DONE)));
                everybody_else().await;
            }
            for asked in asked {
                assert!(asked.await.unwrap().is_ok());
            }
        }
    }

    async fn everybody_else() {
        for _ in 0..1000 {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn the_socket_holds_what_the_sessions_work_on_and_a_little_more_and_the_rest_waits_here() {
        for (sessions, in_socket) in [(1, 1 + AHEAD), (16, 32)] {
            let fixture = Fixture::new(sessions, 100, LONG);
            let asked = fixture.ask(80, || Request::Probe).await;
            let orders = fixture.take();
            assert_eq!((orders.len(), fixture.lane.waiting()), (in_socket, 80 - sessions));
            orders.iter().for_each(|order| fixture.answer(order, Some(&DONE)));
            fixture.work_off(asked).await;
        }
    }

    #[tokio::test]
    async fn so_many_wait_and_one_more_is_refused_and_who_does_not_wait_any_more_is_not_sent() {
        let fixture = Fixture::new(1, AHEAD + 2, LONG);
        let in_socket = fixture.ask(1 + AHEAD, || Request::Probe).await;
        let mut asked = fixture.ask(3, || Request::Probe).await;
        assert!(matches!(asked.remove(2).await.unwrap(), Err(Undone::Full)));
        asked.remove(0).abort();
        everybody_else().await;
        assert_eq!(fixture.lane.waiting(), AHEAD + 1);
        fixture.work_off(in_socket).await;
        fixture.work_off(asked).await;
        assert_eq!(fixture.lane.under_way().last_number as usize, 1 + AHEAD + 1);
    }

    #[tokio::test]
    async fn large_jobs_fill_the_socket_and_are_all_done() {
        let fixture = Fixture::new(64, 0, LONG);
        let id = VersionId { key: uuid::Uuid::nil(), number: 1 };
        let largest = || Request::Wrap {
            key: TokenKey { id, proof: Proof::New },
            aad: vec![1; 1 << 16],
            plaintext: Plaintext::new(vec![2; 1 << 16]),
        };
        let asked = fixture.ask(64, largest).await;
        let orders = fixture.take();
        assert!(!orders.is_empty() && orders.len() < 64, "{} were sent at once", orders.len());
        orders.iter().for_each(|order| fixture.answer(order, Some(&DONE)));
        fixture.work_off(asked).await;
    }

    #[tokio::test]
    async fn a_hung_call_holds_up_nobody_and_is_found_out_however_busy_the_others_are() {
        let hang_after = Duration::from_millis(100);
        let fixture = Fixture::new(2, 100, hang_after);
        let (began, hung) = (Instant::now(), fixture.ask(1, || Request::Probe).await.remove(0));
        assert_eq!(fixture.take().len(), 1, "taken, and never answered");
        while !fixture.handing.is_finished() {
            let asked = fixture.ask(1, || Request::Probe).await.remove(0);
            fixture.take().iter().for_each(|order| fixture.answer(order, Some(&DONE)));
            everybody_else().await;
            assert!(fixture.handing.is_finished() || asked.is_finished(), "another session does it");
        }
        assert!(began.elapsed() >= hang_after);
        assert!(fixture.handing.await.unwrap().contains("hung for 100 ms"));
        assert!(matches!(hung.await.unwrap(), Err(Undone::Dropped)));
    }

    #[tokio::test]
    async fn a_job_that_waits_behind_a_long_call_does_not_count_as_hung() {
        let hang_after = Duration::from_millis(400);
        let fixture = Fixture::new(1, 100, hang_after);
        let asked = fixture.ask(3, || Request::Probe).await;
        let orders = fixture.take();
        assert_eq!(orders.len(), 3, "one under way, two ahead");
        for order in orders {
            tokio::time::sleep(hang_after * 6 / 10).await;
            fixture.answer(&order, Some(&DONE));
        }
        fixture.work_off(asked).await;
        assert!(!fixture.handing.is_finished());
    }

    #[tokio::test]
    async fn a_job_that_the_worker_drops_is_undone_and_so_are_all_when_it_ends() {
        let fixture = Fixture::new(1, 100, LONG);
        let mut asked = fixture.ask(2 + AHEAD, || Request::Probe).await;
        fixture.answer(&fixture.take()[0], None);
        assert!(matches!(asked.remove(0).await.unwrap(), Err(Undone::Dropped)));
        let _under_way = fixture.take();
        asked.extend(fixture.ask(1, || Request::Probe).await);
        drop(fixture.worker);
        assert!(fixture.handing.await.unwrap().contains("its worker process has ended"));
        for asked in asked {
            assert!(matches!(asked.await.unwrap(), Err(Undone::Dropped)), "under way, and waiting");
        }
    }
}
