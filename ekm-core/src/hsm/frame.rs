//! Frames between a frontend and its HSM worker: a length, 4 bytes, little-endian, and that many bytes. They carry plaintext, so they are
//! wiped, and no serialisation library sees them.
//!
//! Both ends are the same program, so there is no version; what does not parse ends the connection.

use std::io::{self, Read};
use std::sync::Arc;
use std::time::Duration;

use uuid::Uuid;
use zeroize::{Zeroize, Zeroizing};

use super::fault::{Class, Fault};
use super::job::{Answer, Outcome, Request, TokenKey};
use crate::algorithm::SigningAlgorithm;
use crate::blob::{GcmSealed, VersionId};
use crate::public_key::PublicKey;
use crate::secret::Plaintext;

/// Longer than any request: 64 KiB of plaintext and as much AAD.
pub(super) const MAX_BYTES: usize = 1 << 20;

/// In the place of a signing algorithm: the key is none for signatures.
const NO_SIGNATURES: u8 = u8::MAX;
/// A public key of 4096 bits, and some more.
const KEY_BYTES: usize = 600;

/// A frame that is being written; begins with room for its length.
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
        // A check blob is never empty.
        let frame = self.id(key.id).bytes(key.check_blob.as_deref().unwrap_or_default());
        match &key.signs {
            None => frame.signs(None),
            Some(public) => frame.signs(Some(public.algorithm())).bytes(public.der()),
        }
    }

    fn signs(mut self, algorithm: Option<SigningAlgorithm>) -> Self {
        self.0.push(algorithm.map_or(NO_SIGNATURES, SigningAlgorithm::to_byte));
        self
    }

    fn finish(mut self) -> Zeroizing<Vec<u8>> {
        let length = u32::try_from(self.0.len() - 4).unwrap_or(u32::MAX);
        self.0[..4].copy_from_slice(&length.to_le_bytes());
        self.0
    }
}

/// A frame that is being read, without its length.
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
        let (id, check_blob) = (self.id()?, self.bytes()?);
        let signs = match self.signs()? {
            None => None,
            Some(algorithm) => Some(Arc::new(PublicKey::new(algorithm, self.bytes()?.to_vec()))),
        };
        Some(TokenKey { id, check_blob: (!check_blob.is_empty()).then(|| Arc::from(check_blob)), signs })
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

pub(super) fn encode_request(request: &Request, confirm: bool) -> Zeroizing<Vec<u8>> {
    let frame = match request {
        Request::Wrap { key, aad, plaintext } => {
            let text = plaintext.as_bytes();
            Writer::new(1, aad.len() + text.len()).key(key).bytes(aad).bytes(text)
        }
        Request::Unwrap { key, aad, sealed, checked } => {
            let frame = Writer::new(2, aad.len() + sealed.ciphertext.len()).key(key).bytes(aad);
            frame.bytes(&sealed.nonce).bytes(&sealed.ciphertext).bytes(&[u8::from(confirm), u8::from(*checked)])
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
    frame.finish()
}

pub(super) fn decode_request(frame: &[u8]) -> Option<(Request, bool)> {
    let mut reader = Reader(frame);
    let (tag, mut confirm) = (reader.array::<1>()?, false);
    let request = match tag[0] {
        1 => {
            let (key, aad) = (reader.key()?, reader.bytes()?.to_vec());
            Request::Wrap { key, aad, plaintext: Plaintext::new(reader.bytes()?.to_vec()) }
        }
        2 => {
            let (key, aad) = (reader.key()?, reader.bytes()?.to_vec());
            let (nonce, ciphertext) = (reader.bytes()?.try_into().ok()?, reader.bytes()?.to_vec());
            let [confirmed, checked] = *reader.bytes()? else { return None };
            confirm = confirmed == 1;
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
    reader.whole((request, confirm))
}

pub(super) fn encode_outcome((result, took): &Outcome) -> Zeroizing<Vec<u8>> {
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
        Ok(Answer::Signed(signature)) => Writer::new(7, signature.len()).bytes(&took).bytes(signature),
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
    frame.finish()
}

pub(super) fn decode_outcome(frame: &[u8]) -> Option<Outcome> {
    let mut reader = Reader(frame);
    let tag = reader.array::<1>()?;
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
        7 => Ok(Answer::Signed(reader.bytes()?.to_vec())),
        8 => {
            let (public, wrapped) = (reader.bytes()?.to_vec(), reader.bytes()?);
            Ok(Answer::Pair { public, wrapped: (!wrapped.is_empty()).then(|| wrapped.to_vec()) })
        }
        _ => return None,
    };
    reader.whole((result, took))
}

fn class(name: &str) -> Option<Class> {
    use Class::{Ambiguous, Caller, Capacity, Credential, Device, Integrity, Key, Session};
    let all = [Caller, Ambiguous, Session, Capacity, Device, Credential, Integrity, Key];
    all.into_iter().find(|class| class.as_str() == name)
}

/// What has come in of one frame: one call of the kernel reads all of most frames. Wiped after use.
pub(super) struct Inbox {
    buffer: Zeroizing<Vec<u8>>,
    filled: usize,
    exact: bool,
}

impl Inbox {
    pub(super) fn new() -> Self {
        Self { buffer: Zeroizing::new(vec![0; 4096]), filled: 0, exact: false }
    }

    /// One that reads nothing beyond a frame: sockets may follow, which a plain read would lose.
    pub(super) fn exact() -> Self {
        Self { exact: true, ..Self::new() }
    }

    /// Where to read to.
    pub(super) fn room(&mut self) -> &mut [u8] {
        let end = match (self.exact, self.whole()) {
            (false, _) => self.buffer.len(),
            (true, None) => 4,
            (true, Some(whole)) => whole,
        };
        &mut self.buffer[self.filled..end]
    }

    /// The frame's length with its length, once that has come.
    fn whole(&self) -> Option<usize> {
        let head = self.buffer[..self.filled].first_chunk()?;
        Some(4 + u32::from_le_bytes(*head) as usize)
    }

    /// So much was read; none is the end of the connection. Whether the frame is whole.
    pub(super) fn add(&mut self, length: usize) -> io::Result<bool> {
        if length == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.filled += length;
        let Some(whole) = self.whole() else { return Ok(false) };
        if whole > 4 + MAX_BYTES || whole < self.filled {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a frame of more than 1 MiB, or two at once"));
        }
        if whole >= self.buffer.len() {
            // Not by growing, which leaves an unwiped copy behind.
            let mut larger = Zeroizing::new(vec![0; whole + 1]);
            larger[..self.filled].copy_from_slice(&self.buffer[..self.filled]);
            self.buffer = larger;
        }
        Ok(whole == self.filled)
    }

    /// The whole frame without its length, for `use_it`.
    pub(super) fn take<T>(&mut self, use_it: impl FnOnce(&[u8]) -> T) -> T {
        let used = use_it(&self.buffer[4..self.filled]);
        self.buffer[..self.filled].zeroize();
        self.filled = 0;
        used
    }

    /// Reads one frame; `false` at the end of the connection.
    pub(super) fn read(&mut self, stream: &mut impl Read) -> io::Result<bool> {
        loop {
            match stream.read(self.room()) {
                Ok(0) if self.filled == 0 => return Ok(false),
                Ok(length) if self.add(length)? => return Ok(true),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}

/// A frame of texts, for the beginning of a connection.
pub(super) fn encode_texts(texts: &[&str]) -> Zeroizing<Vec<u8>> {
    let length = texts.iter().map(|text| text.len() + 4).sum();
    texts.iter().fold(Writer::new(0, length), |frame, text| frame.bytes(text.as_bytes())).finish()
}

/// The reverse of [`encode_texts`].
pub(super) fn decode_texts(frame: &[u8]) -> Option<Vec<Zeroizing<String>>> {
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
            let key = TokenKey { id, check_blob: (!blob.is_empty()).then(|| blob.clone().into()), signs: None };
            let algorithm = SigningAlgorithm::from_byte(number.to_le_bytes()[0] % 10);
            let public = PublicKey::new(algorithm.unwrap(), blob.clone());
            let private = TokenKey { signs: Some(Arc::new(public)), ..key.clone() };
            let sealed = GcmSealed { nonce, ciphertext: text.clone() };
            let requests = [
                Request::Wrap { key: key.clone(), aad: aad.clone(), plaintext: Plaintext::new(text.clone()) },
                Request::Unwrap { key: key.clone(), aad, sealed: sealed.clone(), checked: confirm },
                Request::Check { key: key.clone() },
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
                let frame = encode_request(&request, confirm);
                prop_assert_eq!(u32::from_le_bytes(frame[..4].try_into().unwrap()) as usize, frame.len() - 4);
                let (decoded, confirmed) = decode_request(&frame[4..]).unwrap();
                prop_assert_eq!(encode_request(&decoded, confirmed), frame.clone());
                prop_assert!(decode_request(&frame[4..frame.len() - 1]).is_none());
            }
            let took = Duration::from_nanos(77);
            let fault = Fault { class: Class::Session, function: "C_Encrypt".into(), code: "CKR_OK".into() };
            let pair = Answer::Pair { public: text.clone(), wrapped: (!blob.is_empty()).then(|| blob.clone()) };
            let answers = [Ok(pair), Ok(Answer::Signed(text.clone())), Ok(Answer::Wrapped(sealed)), Ok(Answer::Unwrapped(Plaintext::new(text))), Ok(Answer::Exported(blob)), Ok(Answer::Exists), Ok(Answer::Done), Err(fault)];
            for answer in answers {
                let frame = encode_outcome(&(answer, took));
                let decoded = decode_outcome(&frame[4..]).unwrap();
                prop_assert_eq!(decoded.1, took);
                prop_assert_eq!(encode_outcome(&decoded), frame.clone());
                prop_assert!(decode_outcome(&frame[4..frame.len() - 1]).is_none());
            }
        }

        #[test]
        fn no_bytes_panic(frame in bytes()) {
            let _ = (decode_request(&frame), decode_outcome(&frame), decode_texts(&frame));
        }
    }

    #[test]
    fn an_inbox_gives_back_frames_of_any_length_however_they_come_and_refuses_endless_ones() {
        for length in [0, 1, 4091, 4092, 4093, 100_000, MAX_BYTES - 1] {
            let text = "x".repeat(length.saturating_sub(4));
            let frame = encode_texts(&[&text]);
            let mut inbox = Inbox::new();
            for step in [1000, frame.len(), 4096] {
                for part in frame.chunks(step) {
                    let mut part = part;
                    while !part.is_empty() {
                        let room = inbox.room();
                        let (now, later) = part.split_at(part.len().min(room.len()));
                        room[..now.len()].copy_from_slice(now);
                        let whole = inbox.add(now.len()).unwrap();
                        part = later;
                        assert_eq!(whole, part.is_empty() && std::ptr::eq(part.as_ptr(), frame.as_ptr_range().end));
                    }
                }
                assert_eq!(*decode_texts_of(&mut inbox)[0], text);
            }
        }
        let mut inbox = Inbox::new();
        inbox.room()[..4].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(inbox.add(4).is_err());
    }

    fn decode_texts_of(inbox: &mut Inbox) -> Vec<Zeroizing<String>> {
        inbox.take(decode_texts).unwrap()
    }

    #[test]
    fn texts_come_back_as_they_were() {
        let frame = encode_texts(&["a", "", "PIN"]);
        let texts = decode_texts(&frame[4..]).unwrap();
        assert_eq!(texts.iter().map(|text| text.as_str()).collect::<Vec<_>>(), ["a", "", "PIN"]);
    }
}
