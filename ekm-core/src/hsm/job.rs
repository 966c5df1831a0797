//! What a token is asked to do, by whom, and what comes of it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::fault::Fault;
use crate::algorithm::SigningAlgorithm;
use crate::blob::{GcmSealed, VersionId};
use crate::public_key::PublicKey;
use crate::secret::Plaintext;

/// A key on the token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenKey {
    /// CKA_ID.
    pub id: VersionId,
    /// What tells it from other keys.
    pub proof: Proof,
}

impl TokenKey {
    /// Of a private key: its public half.
    pub fn public_key(&self) -> Option<&Arc<PublicKey>> {
        match &self.proof {
            Proof::PublicKey(public) => Some(public),
            Proof::CheckBlob(_) | Proof::Unique | Proof::New => None,
        }
    }
}

/// How a key shows that it works, and that it is the one that is meant. The id alone does not say so: of two rotations at the same time
/// one is taken back, and the next one makes another key under that id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Proof {
    /// An AES-256 key: a blob of this key with a known text.
    CheckBlob(Arc<[u8]>),
    /// A private key: what it signs verifies with its public half.
    PublicKey(Arc<PublicKey>),
    /// A root key, an AES-256 key whose id no other key ever has: a round trip.
    Unique,
    /// An AES-256 key that is being made, before its check blob: a round trip, and no session remembers which object it was.
    New,
}

/// Whose time a job takes.
#[derive(Clone, Copy, Debug)]
pub enum Patience {
    /// A request's. The job ends at the request's deadline or at the HSM's, whichever is first, and is refused if there is too much to do.
    Request(Demand),
    /// Our own. The job waits for room in the queue, until then.
    Own(Instant),
}

impl Patience {
    /// When nobody waits any more.
    pub(crate) fn end(self) -> Instant {
        match self {
            Self::Request(Demand { deadline, .. }) | Self::Own(deadline) => deadline,
        }
    }
}

/// A request's claim to a session.
#[derive(Clone, Copy, Debug)]
pub struct Demand {
    /// After this nobody waits for the answer.
    pub deadline: Instant,
    /// Whose it is: the same number for the same caller.
    pub caller: u64,
    /// How much depends on it.
    pub urgency: Urgency,
}

/// How much depends on an operation, when not all can be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Urgency {
    /// Data that cannot be read until it is done.
    Unwrap,
    /// Data that is not written yet.
    Wrap,
    /// Signatures.
    Sign,
    /// Our own question whether the shard works, one at a time: it has a place of its own.
    Health,
}

impl Urgency {
    /// How much of a request's time it may wait for a session.
    pub(super) fn share_of_time(self) -> f64 {
        match self {
            Self::Unwrap => 0.16,
            Self::Wrap => 0.10,
            Self::Sign => 0.08,
            Self::Health => 1.0,
        }
    }
}

/// How long a job waited, how long the token worked on it, and which token it was.
#[derive(Clone, Copy, Debug, Default)]
pub struct Timing {
    /// For a turn among all that want the shard.
    pub turn: Duration,
    /// From entering the replica's queue to a session taking it.
    pub queue: Duration,
    /// Inside PKCS#11 only.
    pub device: Duration,
    /// The replica that answered, by its place in the shard.
    pub replica: usize,
}

/// What a token is asked for. The additional authenticated data are whole: what of a blob they bind is decided by custody.
pub(super) enum Request {
    /// Encrypts, and decrypts the result again before it counts: what cannot be opened would be lost for ever.
    Wrap { key: TokenKey, aad: Vec<u8>, plaintext: Plaintext },
    /// Decrypts. `checked`: what comes out carries a digest.
    Unwrap { key: TokenKey, aad: Vec<u8>, sealed: GcmSealed, checked: bool },
    /// Signs a digest, of the length that the key's algorithm says.
    Sign { key: TokenKey, digest: Vec<u8> },
    /// The known-answer test of one key.
    Check { key: TokenKey },
    /// Whether the token works at all, with a key of this session.
    Probe,
    /// As [`Self::Check`], and that the key cannot leave the token.
    Audit { key: TokenKey },
    /// Makes a key on the token, a pair if it `signs`; with a replication key's label, gives it back wrapped by that one.
    Generate { id: VersionId, label: String, signs: Option<SigningAlgorithm>, replication: Option<String> },
    /// Takes over a key that another token has given back.
    Import { id: VersionId, label: String, signs: Option<SigningAlgorithm>, replication: String, wrapped: Vec<u8> },
    /// Takes a key off the token.
    Discard { id: VersionId },
}

impl Request {
    /// The key that it is about, if it uses one.
    pub(super) fn key(&self) -> Option<&TokenKey> {
        match self {
            Self::Wrap { key, .. } | Self::Unwrap { key, .. } | Self::Sign { key, .. } => Some(key),
            Self::Check { key } | Self::Audit { key } => Some(key),
            Self::Probe | Self::Generate { .. } | Self::Import { .. } | Self::Discard { .. } => None,
        }
    }

    /// Whether it may well take a token seconds, though nothing is wrong.
    pub(super) fn is_slow(&self) -> bool {
        matches!(self, Self::Generate { signs: Some(_), .. })
    }
}

/// What a token gives back.
pub(super) enum Answer {
    /// Of [`Request::Wrap`].
    Wrapped(GcmSealed),
    /// Of [`Request::Unwrap`].
    Unwrapped(Plaintext),
    /// Of [`Request::Sign`].
    Signed(Vec<u8>),
    /// Of [`Request::Generate`] with a replication key.
    Exported(Vec<u8>),
    /// Of [`Request::Generate`] for a pair: the public half in DER, and with a replication key the private one wrapped.
    Pair { public: Vec<u8>, wrapped: Option<Vec<u8>> },
    /// Of [`Request::Generate`] and [`Request::Import`]: the token holds a key under this id already, and nothing was done.
    Exists,
    /// Of all others.
    Done,
}

/// What a session answers: the answer, or what failed; and how long it took.
pub(super) type Outcome = (Result<Answer, Fault>, Duration);

/// A request on its way to a session.
pub(super) struct Job {
    pub(super) request: Arc<Request>,
    /// A ciphertext that is refused counts as the caller's fault only if the key shows that it works.
    pub(super) confirm: bool,
    /// After this nobody waits any more.
    pub(super) deadline: Instant,
    /// Gone if nobody waits any more. With the time at which a session took the job.
    pub(super) reply: oneshot::Sender<(Instant, Outcome)>,
}

impl Job {
    pub(super) fn abandoned(&self) -> bool {
        self.reply.is_closed() || self.deadline <= Instant::now()
    }
}

/// The length of the digest that blobs of format 3 carry inside, in bytes.
pub(crate) const DIGEST_BYTES: usize = 16;

/// A plaintext followed by its digest: the first half of its SHA-256. GCM's tag is checked inside the HSM, so that nothing vouches for
/// what comes out of it but this.
pub(super) fn with_digest(plaintext: &Plaintext) -> Plaintext {
    let bytes = plaintext.as_bytes();
    // With the capacity it needs: a buffer that grows leaves unwiped copies behind.
    let mut whole = Vec::with_capacity(bytes.len() + DIGEST_BYTES);
    whole.extend_from_slice(bytes);
    whole.extend_from_slice(&digest(bytes));
    Plaintext::new(whole)
}

/// The reverse of [`with_digest`]; `None` if the digest is another one.
pub(super) fn without_digest(whole: &Plaintext) -> Option<Plaintext> {
    let (bytes, carried) = whole.as_bytes().split_last_chunk::<DIGEST_BYTES>()?;
    (digest(bytes) == *carried).then(|| Plaintext::new(bytes.to_vec()))
}

fn digest(bytes: &[u8]) -> [u8; DIGEST_BYTES] {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes);
    *digest.as_ref().first_chunk().expect("SHA-256 has 32 bytes")
}
