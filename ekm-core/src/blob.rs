//! The wrapped blob: what Cloud KMS stores and hands back years later. Its format is kept for ever.
//!
//! ```text
//! format 1 byte | key id 16 | key version 4, big-endian | nonce 12 | ciphertext, as long as the plaintext | tag 16
//! ```
//!
//! Format 1 is AES-256-GCM with a random 96-bit nonce (NIST SP 800-38D §8.2.2). The additional authenticated data are
//! `format ‖ key id ‖ key version ‖ length of the caller's AAD, 8 bytes, big-endian ‖ the caller's AAD`: the header cannot be exchanged,
//! and no boundary can shift. The key's path is not bound, because a key may move to another path and keep its blobs.
//!
//! The header alone says which key opens a blob, and callers never hold key material: a blob that opens under two keys
//! (a "salamander") needs both keys, so no commitment is added.

use uuid::Uuid;

/// The only format so far.
const FORMAT: u8 = 1;
const HEADER_BYTES: usize = 1 + 16 + 4;
/// AES-GCM's nonce, in bytes.
pub const NONCE_BYTES: usize = 12;
/// AES-GCM's tag, in bytes.
pub const TAG_BYTES: usize = 16;
/// By how much a blob is longer than its plaintext, in bytes.
pub const OVERHEAD_BYTES: usize = HEADER_BYTES + NONCE_BYTES + TAG_BYTES;

/// A key version, wherever it is named: in blobs, in the AAD, and as CKA_ID on a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct VersionId {
    /// The key.
    pub key: Uuid,
    /// Its version, from 1.
    pub number: u32,
}

/// A nonce, and the ciphertext with its tag: what a cipher makes and takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sealed {
    /// Drawn afresh for every wrap.
    pub nonce: [u8; NONCE_BYTES],
    /// Ciphertext followed by the tag.
    pub ciphertext: Vec<u8>,
}

/// Puts a blob together.
pub fn encode(id: VersionId, sealed: &Sealed) -> Vec<u8> {
    let mut blob = Vec::with_capacity(HEADER_BYTES + NONCE_BYTES + sealed.ciphertext.len());
    push_header(&mut blob, id);
    blob.extend_from_slice(&sealed.nonce);
    blob.extend_from_slice(&sealed.ciphertext);
    blob
}

/// Takes a blob apart; `None` if it is not one of ours. Total: no input panics.
pub fn parse(blob: &[u8]) -> Option<(VersionId, Sealed)> {
    let (&format, rest) = blob.split_first()?;
    let (key, rest) = rest.split_first_chunk::<16>()?;
    let (number, rest) = rest.split_first_chunk::<4>()?;
    let (&nonce, ciphertext) = rest.split_first_chunk::<NONCE_BYTES>()?;
    if format != FORMAT || ciphertext.len() < TAG_BYTES {
        return None;
    }
    let id = VersionId { key: Uuid::from_bytes(*key), number: u32::from_be_bytes(*number) };
    Some((id, Sealed { nonce, ciphertext: ciphertext.to_vec() }))
}

/// The additional authenticated data that a blob is bound to.
pub fn bound_aad(id: VersionId, caller_aad: &[u8]) -> Vec<u8> {
    let mut aad = Vec::with_capacity(HEADER_BYTES + 8 + caller_aad.len());
    push_header(&mut aad, id);
    aad.extend_from_slice(&(caller_aad.len() as u64).to_be_bytes());
    aad.extend_from_slice(caller_aad);
    aad
}

fn push_header(bytes: &mut Vec<u8>, id: VersionId) {
    bytes.push(FORMAT);
    bytes.extend_from_slice(id.key.as_bytes());
    bytes.extend_from_slice(&id.number.to_be_bytes());
}

impl VersionId {
    /// The bytes of CKA_ID for this version's key on a PKCS#11 token: key id and version, as in a blob.
    pub fn to_bytes(self) -> [u8; 20] {
        let mut bytes = [0; 20];
        bytes[..16].copy_from_slice(self.key.as_bytes());
        bytes[16..].copy_from_slice(&self.number.to_be_bytes());
        bytes
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    prop_compose! {
        fn any_blob()(key: [u8; 16], number: u32, nonce: [u8; 12], ciphertext in proptest::collection::vec(any::<u8>(), 16..200))
            -> (VersionId, Sealed) {
            (VersionId { key: Uuid::from_bytes(key), number }, Sealed { nonce, ciphertext })
        }
    }

    proptest! {
        #[test]
        fn parsing_what_was_encoded_gives_it_back((id, sealed) in any_blob()) {
            prop_assert_eq!(parse(&encode(id, &sealed)), Some((id, sealed)));
        }

        #[test]
        fn parsing_never_panics_and_is_exact(bytes in proptest::collection::vec(any::<u8>(), 0..120)) {
            if let Some((id, sealed)) = parse(&bytes) {
                prop_assert_eq!(encode(id, &sealed), bytes);
            }
        }

        #[test]
        fn two_different_bindings_never_give_the_same_aad(
            (a, _) in any_blob(), (b, _) in any_blob(),
            x in proptest::collection::vec(any::<u8>(), 0..40), y in proptest::collection::vec(any::<u8>(), 0..40),
        ) {
            prop_assert_eq!(bound_aad(a, &x) == bound_aad(b, &y), a == b && x == y);
        }
    }

    #[test]
    fn a_blob_cut_short_of_header_nonce_and_tag_is_none_of_ours() {
        let id = VersionId { key: Uuid::nil(), number: 1 };
        let blob = encode(id, &Sealed { nonce: [1; 12], ciphertext: vec![0; 16] });
        assert_eq!(blob.len(), OVERHEAD_BYTES);
        assert!(parse(&blob).is_some());
        for length in 0..blob.len() {
            assert_eq!(parse(&blob[..length]), None);
        }
    }
}
