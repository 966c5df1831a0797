//! What goes between a frontend and its HSM worker. They carry plaintext, so they are wiped, and no serialisation library sees them.
//!
//! Jobs and answers are messages: a number, 4 bytes, little-endian, by which the answer finds its job, and the rest. The socket keeps them
//! apart. At the beginning there are texts, on another socket: a length, 4 bytes, and that many bytes.
//!
//! Both ends are the same program, so there is no version; what does not parse ends the connection.

use std::io::{self, Read};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};
use uuid::Uuid;
use zeroize::Zeroizing;

use super::fault::{Class, Fault};
use super::job::{Answer, Outcome, Proof, Request, TokenKey};
use crate::algorithm::SigningAlgorithm;
use crate::blob::{GcmSealed, VersionId};
use crate::public_key::PublicKey;
use crate::secret::Plaintext;

/// Longer than any request: 64 KiB of plaintext and as much AAD.
pub(super) const MAX_BYTES: usize = 1 << 18;

/// In the place of a signing algorithm: the key is none for signatures.
const NO_SIGNATURES: u8 = u8::MAX;
/// A public key of 4096 bits, and some more.
const KEY_BYTES: usize = 600;

/// What is being written; begins with room for its length, or its number.
struct Writer(Zeroizing<Vec<u8>>);

impl Writer {
    fn new(tag: u8, capacity: usize) -> Self {
        // With the capacity it needs: a buffer that grows leaves unwiped copies behind.
        let mut bytes = Zeroizing::new(Vec::with_capacity(capacity + 256));
        bytes.extend_from_slice(&[0, 0, 0, 0, tag]);
        Self(bytes)
    }

    fn bytes(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(&u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_le_bytes());
        self.0.extend_from_slice(bytes);
        self
    }

    fn id(mut self, id: VersionId) -> Self {
        self.0.extend_from_slice(&id.to_bytes());
        self
    }

    fn key(self, key: &TokenKey) -> Self {
        let frame = self.id(key.id);
        match &key.proof {
            Proof::CheckBlob(blob) => frame.byte(0).bytes(blob),
            Proof::PublicKey(public) => frame.byte(1).signs(Some(public.algorithm())).bytes(public.der()),
            Proof::Unique => frame.byte(2),
            Proof::New => frame.byte(3),
        }
    }

    fn signs(self, algorithm: Option<SigningAlgorithm>) -> Self {
        self.byte(algorithm.map_or(NO_SIGNATURES, SigningAlgorithm::to_byte))
    }

    fn byte(mut self, byte: u8) -> Self {
        self.0.push(byte);
        self
    }

    fn numbered(mut self, number: u32) -> Zeroizing<Vec<u8>> {
        self.0[..4].copy_from_slice(&number.to_le_bytes());
        self.0
    }
}

/// What is being read.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (array, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*array)
    }

    fn bytes(&mut self) -> Option<&'a [u8]> {
        let length = u32::from_le_bytes(self.array()?) as usize;
        let (bytes, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(bytes)
    }

    fn text(&mut self) -> Option<String> {
        Some(str::from_utf8(self.bytes()?).ok()?.to_owned())
    }

    fn id(&mut self) -> Option<VersionId> {
        let (key, number) = (self.array::<16>()?, self.array::<4>()?);
        Some(VersionId { key: Uuid::from_bytes(key), number: u32::from_be_bytes(number) })
    }

    fn key(&mut self) -> Option<TokenKey> {
        let id = self.id()?;
        let proof = match self.array()? {
            [0] => Proof::CheckBlob(Arc::from(self.bytes()?)),
            [1] => Proof::PublicKey(Arc::new(PublicKey::new(self.signs()??, self.bytes()?.to_vec()))),
            [2] => Proof::Unique,
            [3] => Proof::New,
            _ => return None,
        };
        Some(TokenKey { id, proof })
    }

    fn signs(&mut self) -> Option<Option<SigningAlgorithm>> {
        let [byte] = self.array()?;
        if byte == NO_SIGNATURES { Some(None) } else { SigningAlgorithm::from_byte(byte).map(Some) }
    }

    /// `value`, if nothing is left.
    fn whole<T>(&self, value: T) -> Option<T> {
        self.0.is_empty().then_some(value)
    }
}

/// A job as a session sees it.
pub(super) struct Order {
    /// By which its answer finds it.
    pub(super) number: u32,
    /// After this nobody waits any more.
    pub(super) deadline: Clock,
    /// As in [`super::job::Job`].
    pub(super) confirm: bool,
    pub(super) request: Request,
}

/// A time that means the same in both processes: CLOCK_MONOTONIC, in nanoseconds.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Clock(u64);

impl Clock {
    pub(super) fn now() -> Self {
        let now = clock_gettime(ClockId::Monotonic);
        let (seconds, nanoseconds) = (u64::try_from(now.tv_sec), u64::try_from(now.tv_nsec));
        Self(seconds.unwrap_or(0) * 1_000_000_000 + nanoseconds.unwrap_or(0))
    }

    pub(super) fn at(instant: Instant) -> Self {
        let left = instant.saturating_duration_since(Instant::now());
        Self(Self::now().0.saturating_add(u64::try_from(left.as_nanos()).unwrap_or(u64::MAX)))
    }
}

/// The job without its number, for which there is room.
pub(super) fn encode_order(request: &Request, confirm: bool, deadline: Clock) -> Zeroizing<Vec<u8>> {
    let frame = match request {
        Request::Wrap { key, aad, plaintext } => {
            let text = plaintext.as_bytes();
            Writer::new(1, aad.len() + text.len()).key(key).bytes(aad).bytes(text)
        }
        Request::Unwrap { key, aad, sealed, checked } => {
            let frame = Writer::new(2, aad.len() + sealed.ciphertext.len()).key(key).bytes(aad);
            frame.bytes(&sealed.nonce).bytes(&sealed.ciphertext).bytes(&[u8::from(*checked)])
        }
        Request::Check { key } => Writer::new(3, KEY_BYTES).key(key),
        Request::Probe => Writer::new(4, 0),
        Request::Generate { id, label, signs, replication } => {
            let replication = replication.as_deref().unwrap_or_default();
            Writer::new(5, label.len() + replication.len())
                .id(*id)
                .signs(*signs)
                .bytes(label.as_bytes())
                .bytes(replication.as_bytes())
        }
        Request::Discard { id } => Writer::new(6, 0).id(*id),
        Request::Import { id, label, signs, replication, wrapped } => {
            let frame = Writer::new(7, label.len() + replication.len() + wrapped.len()).id(*id).signs(*signs);
            frame.bytes(label.as_bytes()).bytes(replication.as_bytes()).bytes(wrapped)
        }
        Request::Audit { key } => Writer::new(8, KEY_BYTES).key(key),
        Request::Sign { key, digest } => Writer::new(9, KEY_BYTES + digest.len()).key(key).bytes(digest),
    };
    frame.bytes(&deadline.0.to_le_bytes()).bytes(&[u8::from(confirm)]).numbered(0)
}

pub(super) fn decode_order(frame: &[u8]) -> Option<Order> {
    let mut reader = Reader(frame);
    let (number, tag) = (u32::from_le_bytes(reader.array()?), reader.array::<1>()?);
    let request = match tag[0] {
        1 => {
            let (key, aad) = (reader.key()?, reader.bytes()?.to_vec());
            Request::Wrap { key, aad, plaintext: Plaintext::new(reader.bytes()?.to_vec()) }
        }
        2 => {
            let (key, aad) = (reader.key()?, reader.bytes()?.to_vec());
            let (nonce, ciphertext) = (reader.bytes()?.try_into().ok()?, reader.bytes()?.to_vec());
            let [checked] = *reader.bytes()? else { return None };
            Request::Unwrap { key, aad, sealed: GcmSealed { nonce, ciphertext }, checked: checked == 1 }
        }
        3 => Request::Check { key: reader.key()? },
        4 => Request::Probe,
        5 => {
            let (id, signs, label, replication) = (reader.id()?, reader.signs()?, reader.text()?, reader.text()?);
            Request::Generate { id, label, signs, replication: Some(replication).filter(|label| !label.is_empty()) }
        }
        6 => Request::Discard { id: reader.id()? },
        7 => {
            let (id, signs, label, replication) = (reader.id()?, reader.signs()?, reader.text()?, reader.text()?);
            Request::Import { id, label, signs, replication, wrapped: reader.bytes()?.to_vec() }
        }
        8 => Request::Audit { key: reader.key()? },
        9 => Request::Sign { key: reader.key()?, digest: reader.bytes()?.to_vec() },
        _ => return None,
    };
    let deadline = Clock(u64::from_le_bytes(reader.bytes()?.try_into().ok()?));
    let [confirm] = *reader.bytes()? else { return None };
    reader.whole(Order { number, deadline, confirm: confirm == 1, request })
}

/// `None` for a job that was dropped, because nobody waits for it any more.
pub(super) fn encode_answer(number: u32, outcome: Option<&Outcome>) -> Zeroizing<Vec<u8>> {
    let Some((result, took)) = outcome else { return Writer::new(7, 0).numbered(number) };
    let took = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX).to_le_bytes();
    let frame = match result {
        Ok(Answer::Wrapped(sealed)) => {
            Writer::new(1, sealed.ciphertext.len()).bytes(&took).bytes(&sealed.nonce).bytes(&sealed.ciphertext)
        }
        Ok(Answer::Unwrapped(plaintext)) => {
            let text = plaintext.as_bytes();
            Writer::new(2, text.len()).bytes(&took).bytes(text)
        }
        Ok(Answer::Done) => Writer::new(3, 0).bytes(&took),
        Ok(Answer::Exported(wrapped)) => Writer::new(5, wrapped.len()).bytes(&took).bytes(wrapped),
        Ok(Answer::Exists) => Writer::new(6, 0).bytes(&took),
        Ok(Answer::Signed(signature)) => Writer::new(9, signature.len()).bytes(&took).bytes(signature),
        // What was wrapped is never empty.
        Ok(Answer::Pair { public, wrapped }) => {
            let wrapped = wrapped.as_deref().unwrap_or_default();
            Writer::new(8, public.len() + wrapped.len()).bytes(&took).bytes(public).bytes(wrapped)
        }
        Err(Fault { class, function, code }) => Writer::new(4, function.len() + code.len())
            .bytes(&took)
            .bytes(class.as_str().as_bytes())
            .bytes(function.as_bytes())
            .bytes(code.as_bytes()),
    };
    frame.numbered(number)
}

/// The reverse of [`encode_answer`].
pub(super) fn decode_answer(frame: &[u8]) -> Option<(u32, Option<Outcome>)> {
    let mut reader = Reader(frame);
    let (number, tag) = (u32::from_le_bytes(reader.array()?), reader.array::<1>()?);
    if tag == [7] {
        return reader.whole((number, None));
    }
    let took = Duration::from_nanos(u64::from_le_bytes(reader.bytes()?.try_into().ok()?));
    let result = match tag[0] {
        1 => {
            let nonce = reader.bytes()?.try_into().ok()?;
            Ok(Answer::Wrapped(GcmSealed { nonce, ciphertext: reader.bytes()?.to_vec() }))
        }
        2 => Ok(Answer::Unwrapped(Plaintext::new(reader.bytes()?.to_vec()))),
        3 => Ok(Answer::Done),
        4 => {
            let class = class(&reader.text()?)?;
            Err(Fault { class, function: reader.text()?, code: reader.text()? })
        }
        5 => Ok(Answer::Exported(reader.bytes()?.to_vec())),
        6 => Ok(Answer::Exists),
        9 => Ok(Answer::Signed(reader.bytes()?.to_vec())),
        8 => {
            let (public, wrapped) = (reader.bytes()?.to_vec(), reader.bytes()?);
            Ok(Answer::Pair { public, wrapped: (!wrapped.is_empty()).then(|| wrapped.to_vec()) })
        }
        _ => return None,
    };
    reader.whole((number, Some((result, took))))
}

fn class(name: &str) -> Option<Class> {
    use Class::{Ambiguous, Caller, Capacity, Credential, Device, Integrity, Key, Session};
    let all = [Caller, Ambiguous, Session, Capacity, Device, Credential, Integrity, Key];
    all.into_iter().find(|class| class.as_str() == name)
}

/// A frame of texts, for the beginning of a connection.
pub(super) fn encode_texts(texts: &[&str]) -> Zeroizing<Vec<u8>> {
    let length = texts.iter().map(|text| text.len() + 4).sum();
    let frame = texts.iter().fold(Writer::new(0, length), |frame, text| frame.bytes(text.as_bytes()));
    let length = u32::try_from(frame.0.len() - 4).unwrap_or(u32::MAX);
    frame.numbered(length)
}

/// Reads texts, and nothing beyond them: sockets may follow, which a plain read would lose. `None` at the end of the connection.
pub(super) fn read_texts(stream: &mut impl Read) -> io::Result<Option<Vec<Zeroizing<String>>>> {
    let mut head = [0; 4];
    match stream.read_exact(&mut head) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        read => read?,
    }
    let length = u32::from_le_bytes(head) as usize;
    let invalid = |text| io::Error::new(io::ErrorKind::InvalidData, text);
    if length > MAX_BYTES {
        return Err(invalid("texts of more than 256 KiB"));
    }
    let mut frame = Zeroizing::new(vec![0; length]);
    stream.read_exact(&mut frame)?;
    decode_texts(&frame).map(Some).ok_or_else(|| invalid("texts that do not parse"))
}

fn decode_texts(frame: &[u8]) -> Option<Vec<Zeroizing<String>>> {
    let mut reader = Reader(frame);
    if reader.array::<1>()? != [0] {
        return None;
    }
    let mut texts = Vec::new();
    while !reader.0.is_empty() {
        texts.push(Zeroizing::new(reader.text()?));
    }
    Some(texts)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn bytes() -> impl Strategy<Value = Vec<u8>> {
        proptest::collection::vec(any::<u8>(), 0..100)
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_decoded_and_nothing_else_is(
            key: [u8; 16], number: u32, blob in bytes(), aad in bytes(), text in bytes(), nonce: [u8; 12], confirm: bool,
        ) {
            let id = VersionId { key: Uuid::from_bytes(key), number };
            let key = TokenKey { id, proof: Proof::CheckBlob(blob.clone().into()) };
            let algorithm = SigningAlgorithm::from_byte(number.to_le_bytes()[0] % 10);
            let public = PublicKey::new(algorithm.unwrap(), blob.clone());
            let private = TokenKey { id, proof: Proof::PublicKey(Arc::new(public)) };
            let sealed = GcmSealed { nonce, ciphertext: text.clone() };
            let requests = [
                Request::Wrap { key: key.clone(), aad: aad.clone(), plaintext: Plaintext::new(text.clone()) },
                Request::Unwrap { key: key.clone(), aad, sealed: sealed.clone(), checked: confirm },
                Request::Check { key: key.clone() },
                Request::Check { key: TokenKey { id, proof: Proof::Unique } },
                Request::Check { key: TokenKey { id, proof: Proof::New } },
                Request::Audit { key },
                Request::Audit { key: private.clone() },
                Request::Sign { key: private, digest: text.clone() },
                Request::Probe,
                Request::Generate { id, label: "ekm".into(), signs: None, replication: None },
                Request::Generate { id, label: "ekm".into(), signs: algorithm, replication: Some("by".into()) },
                Request::Import { id, label: "ekm".into(), signs: None, replication: "by".into(), wrapped: blob.clone() },
                Request::Import { id, label: "ekm".into(), signs: algorithm, replication: "by".into(), wrapped: blob.clone() },
                Request::Discard { id },
            ];
            for request in requests {
                let deadline = Clock(u64::from(number) << 17);
                let mut frame = encode_order(&request, confirm, deadline);
                frame[..4].copy_from_slice(&number.to_le_bytes());
                let order = decode_order(&frame).unwrap();
                prop_assert!((order.number, order.confirm, order.deadline) == (number, confirm, deadline));
                prop_assert_eq!(&encode_order(&order.request, confirm, deadline)[4..], &frame[4..]);
                prop_assert!(decode_order(&frame[..frame.len() - 1]).is_none());
            }
            let took = Duration::from_nanos(77);
            let fault = Fault { class: Class::Session, function: "C_Encrypt".into(), code: "CKR_OK".into() };
            let pair = Answer::Pair { public: text.clone(), wrapped: (!blob.is_empty()).then(|| blob.clone()) };
            let answers = [Ok(pair), Ok(Answer::Signed(text.clone())), Ok(Answer::Wrapped(sealed)), Ok(Answer::Unwrapped(Plaintext::new(text))), Ok(Answer::Exported(blob)), Ok(Answer::Exists), Ok(Answer::Done), Err(fault)];
            for outcome in answers.into_iter().map(|answer| Some((answer, took))).chain([None]) {
                let frame = encode_answer(number, outcome.as_ref());
                let (decoded, answer) = decode_answer(&frame).unwrap();
                prop_assert_eq!(decoded, number);
                prop_assert_eq!(answer.as_ref().map(|(_, took)| *took), outcome.map(|(_, took)| took));
                prop_assert_eq!(encode_answer(number, answer.as_ref()), frame.clone());
                prop_assert!(decode_answer(&frame[..frame.len() - 1]).is_none());
            }
        }

        #[test]
        fn no_bytes_panic(frame in bytes()) {
            let _ = (decode_order(&frame), decode_answer(&frame), decode_texts(&frame));
        }
    }

    #[test]
    fn texts_come_back_as_they_were_and_nothing_beyond_them_is_read() {
        let long = "x".repeat(100_000);
        let mut stream = [&encode_texts(&["a", "", "PIN", &long])[..], b"beyond"].concat();
        let mut rest = &stream[..];
        let texts = read_texts(&mut rest).unwrap().unwrap();
        assert_eq!(texts.iter().map(|text| text.as_str()).collect::<Vec<_>>(), ["a", "", "PIN", &long]);
        assert_eq!(rest, b"beyond");
        assert!(read_texts(&mut &b""[..]).unwrap().is_none(), "the connection has ended");
        stream.truncate(1000);
        assert!(read_texts(&mut &stream[..]).is_err(), "it has ended too soon");
        assert!(read_texts(&mut &u32::MAX.to_le_bytes()[..]).is_err(), "endless");
    }

    #[test]
    fn a_deadline_means_the_same_on_the_other_side() {
        let later = Clock::at(Instant::now() + Duration::from_secs(5));
        assert!(Clock::now() < later && later.0 <= Clock::now().0 + 5_000_000_000);
        assert!(Clock::at(Instant::now()) <= Clock::now(), "what is over is over");
    }
}
