//! The wrapped blob: what Cloud KMS stores and hands back years later. Its formats are kept for ever.
//!
//! ```text
//! 01 | key id 16 | key version 4, big-endian | nonce 12 | ciphertext, as long as the plaintext | tag 16
//! 02 | key id 16 | key version 4, big-endian | nonce 24 | ciphertext, as long as the plaintext | tag 16
//! 03 | key id 16 | key version 4, big-endian | nonce 12 | ciphertext, 16 longer than the plaintext | tag 16
//! ```
//!
//! Format 1 is AES-256-GCM with a random 96-bit nonce (NIST SP 800-38D §8.2.2): custody `software`, and what was wrapped under custody
//! `hsm` before there was format 3. Format 2 is XAES-256-GCM with a random 192-bit nonce ([`crate::xaes`]): custody `hsm-wrapped`.
//! Format 3 is format 1 around `plaintext ‖ first 16 bytes of its SHA-256`: custody `hsm`. The HSM alone checks GCM's tag, and an HSM that
//! gives back something else than it decrypted would not be found out without the digest. The additional authenticated data are
//! `format ‖ key id ‖ key version ‖ length of the caller's AAD, 8 bytes, big-endian ‖ the caller's AAD`: the header cannot be exchanged,
//! and no boundary can shift. The key's path is not bound, because a key may move to another path and keep its blobs.
//!
//! The header alone says which key opens a blob, and callers never hold key material: a blob that opens under two keys
//! (a "salamander") needs both keys, so no commitment is added.
//!
//! The root key's own secrets (material of custody `hsm-wrapped`, the catalog key) have format 1 too, and are bound otherwise
//! ([`secret_aad`]): what callers have wrapped can never be taken for one.

use uuid::Uuid;

use crate::hsm::DIGEST_BYTES;
use crate::xaes;

const HEADER_BYTES: usize = 1 + 16 + 4;
/// The length of AES-GCM's nonce, in bytes.
pub const NONCE_BYTES: usize = 12;
/// The length of AES-GCM's tag, in bytes.
pub const TAG_BYTES: usize = 16;
/// By how much a blob is longer than its plaintext at most, in bytes.
pub const OVERHEAD_BYTES: usize = HEADER_BYTES + NONCE_BYTES + DIGEST_BYTES + TAG_BYTES;
const _: () = assert!(OVERHEAD_BYTES >= HEADER_BYTES + xaes::OVERHEAD_BYTES);

/// A key version, wherever it is named: in blobs, in the AAD, and as CKA_ID on a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct VersionId {
    /// The key.
    pub key: Uuid,
    /// Its version, from 1.
    pub number: u32,
}

/// A blob's first byte: how it was encrypted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// AES-256-GCM, 96-bit nonce.
    Gcm = 1,
    /// XAES-256-GCM, 192-bit nonce.
    Xaes = 2,
    /// AES-256-GCM, 96-bit nonce, the plaintext followed by its digest.
    Checked = 3,
}

/// What a cipher makes and takes: a blob without its header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sealed {
    /// Of format 1.
    Gcm(GcmSealed),
    /// Of format 2: `nonce ‖ ciphertext ‖ tag`.
    Xaes(Vec<u8>),
    /// Of format 3.
    Checked(GcmSealed),
}

/// A nonce, and the ciphertext with its tag.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GcmSealed {
    /// Drawn afresh for every wrap.
    pub nonce: [u8; NONCE_BYTES],
    /// Ciphertext followed by the tag.
    pub ciphertext: Vec<u8>,
}

impl Sealed {
    /// The first byte of its blob.
    pub fn format(&self) -> Format {
        match self {
            Self::Gcm(_) => Format::Gcm,
            Self::Xaes(_) => Format::Xaes,
            Self::Checked(_) => Format::Checked,
        }
    }
}

/// Puts a blob together.
pub fn encode(id: VersionId, sealed: &Sealed) -> Vec<u8> {
    let parts: [&[u8]; 2] = match sealed {
        Sealed::Gcm(GcmSealed { nonce, ciphertext }) | Sealed::Checked(GcmSealed { nonce, ciphertext }) => {
            [nonce, ciphertext]
        }
        Sealed::Xaes(sealed) => [sealed, &[]],
    };
    [&header(sealed.format(), id)[..], parts[0], parts[1]].concat()
}

/// Takes a blob apart; `None` if it is not one of ours. Total: no input panics.
pub fn parse(blob: &[u8]) -> Option<(VersionId, Sealed)> {
    let (&format, rest) = blob.split_first()?;
    let (key, rest) = rest.split_first_chunk::<16>()?;
    let (number, rest) = rest.split_first_chunk::<4>()?;
    let sealed = match format {
        1 => Sealed::Gcm(gcm(rest, TAG_BYTES)?),
        2 if rest.len() >= xaes::OVERHEAD_BYTES => Sealed::Xaes(rest.to_vec()),
        3 => Sealed::Checked(gcm(rest, DIGEST_BYTES + TAG_BYTES)?),
        _ => return None,
    };
    Some((VersionId { key: Uuid::from_bytes(*key), number: u32::from_be_bytes(*number) }, sealed))
}

fn gcm(bytes: &[u8], least_bytes: usize) -> Option<GcmSealed> {
    let (&nonce, ciphertext) = bytes.split_first_chunk::<NONCE_BYTES>()?;
    (ciphertext.len() >= least_bytes).then(|| GcmSealed { nonce, ciphertext: ciphertext.to_vec() })
}

/// The additional authenticated data that a blob is bound to.
pub fn bound_aad(format: Format, id: VersionId, caller_aad: &[u8]) -> Vec<u8> {
    [&header(format, id)[..], &(caller_aad.len() as u64).to_be_bytes(), caller_aad].concat()
}

/// The additional authenticated data of a secret that the root key wraps. It begins with what is no format, so that no blob that a
/// caller can have made, under whatever key and with whatever AAD, opens as a secret; else whoever may wrap under a key on the token
/// and write into the catalog could pass his own material off as ours.
pub(crate) fn secret_aad(root: VersionId, context: &[u8]) -> Vec<u8> {
    [&b"ekm secret v1"[..], &root.to_bytes(), &(context.len() as u64).to_be_bytes(), context].concat()
}

fn header(format: Format, id: VersionId) -> [u8; HEADER_BYTES] {
    let mut bytes = [format as u8; HEADER_BYTES];
    bytes[1..].copy_from_slice(&id.to_bytes());
    bytes
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
        fn any_blob()(
            key: [u8; 16], number: u32, nonce: [u8; 12], format in 1..=3,
            ciphertext in proptest::collection::vec(any::<u8>(), 40..200),
        ) -> (VersionId, Sealed) {
            let sealed = match format {
                1 => Sealed::Gcm(GcmSealed { nonce, ciphertext: ciphertext[..ciphertext.len() - 24].to_vec() }),
                2 => Sealed::Xaes(ciphertext),
                _ => Sealed::Checked(GcmSealed { nonce, ciphertext }),
            };
            (VersionId { key: Uuid::from_bytes(key), number }, sealed)
        }
    }

    proptest! {
        #[test]
        fn parsing_what_was_encoded_gives_it_back((id, sealed) in any_blob()) {
            prop_assert_eq!(parse(&encode(id, &sealed)), Some((id, sealed)));
        }

        #[test]
        fn parsing_never_panics_and_is_exact(format in 0u8..5, mut bytes in proptest::collection::vec(any::<u8>(), 0..120)) {
            if let Some(first) = bytes.first_mut() {
                *first = format;
            }
            if let Some((id, sealed)) = parse(&bytes) {
                prop_assert_eq!(encode(id, &sealed), bytes);
            }
        }

        #[test]
        fn two_different_bindings_never_give_the_same_aad(
            (a, sealed_a) in any_blob(), (b, sealed_b) in any_blob(),
            x in proptest::collection::vec(any::<u8>(), 0..40), y in proptest::collection::vec(any::<u8>(), 0..40),
        ) {
            let (f, g) = (sealed_a.format(), sealed_b.format());
            prop_assert_eq!(bound_aad(f, a, &x) == bound_aad(g, b, &y), f == g && a == b && x == y);
            prop_assert_eq!(secret_aad(a, &x) == secret_aad(b, &y), a == b && x == y);
            prop_assert_ne!(bound_aad(f, a, &x), secret_aad(a, &x));
        }
    }

    #[test]
    fn a_blob_cut_short_of_header_nonce_and_tag_is_none_of_ours() {
        let id = VersionId { key: Uuid::nil(), number: 1 };
        let gcm = Sealed::Gcm(GcmSealed { nonce: [1; 12], ciphertext: vec![0; 16] });
        let checked = Sealed::Checked(GcmSealed { nonce: [1; 12], ciphertext: vec![0; 32] });
        for (sealed, overhead) in [(gcm, 49), (Sealed::Xaes(vec![0; 40]), 61), (checked, OVERHEAD_BYTES)] {
            let blob = encode(id, &sealed);
            assert_eq!(blob.len(), overhead);
            assert!(parse(&blob).is_some());
            for length in 0..blob.len() {
                assert_eq!(parse(&blob[..length]), None);
            }
        }
    }
}
