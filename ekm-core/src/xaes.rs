//! XAES-256-GCM: AES-256-GCM with a key of its own for each message, drawn from a random 192-bit nonce.
//!
//! Specified in <https://c2sp.org/XAES-256-GCM>. A key may seal 2^80 messages, where AES-256-GCM with random nonces ends at 2^32.
//! Of the many keys in use only 32 bytes each rest in memory: schedules are expanded for each message, and wiped. [`Key`], of which there
//! is one, keeps its own.

use aes_gcm::aes::Aes256;
use aes_gcm::aes::cipher::{BlockCipherEncrypt, KeyInit};
use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use zeroize::{Zeroize, Zeroizing};

use crate::blob::TAG_BYTES;
use crate::locked::Locked;
use crate::secret::Plaintext;
use crate::software::{SoftwareError, random};

/// The nonce's length, in bytes.
pub const NONCE_BYTES: usize = 24;
/// By how much a sealed text is longer than its plaintext, in bytes.
pub const OVERHEAD_BYTES: usize = NONCE_BYTES + TAG_BYTES;

/// A key in locked memory of its own, ready for many messages. Has neither `Debug` nor `Serialize`.
pub struct Key(Locked<Expanded>);

impl Key {
    /// Expands a key into locked memory. The caller wipes his copy.
    pub fn new(bytes: &[u8; 32]) -> Result<Self, SoftwareError> {
        Ok(Self(Locked::new(Expanded::new(bytes))?))
    }

    /// As [`seal`].
    pub fn seal(&self, aad: &[u8], plaintext: &[u8]) -> Result<Vec<u8>, SoftwareError> {
        Ok(self.0.seal(random()?, aad, plaintext))
    }

    /// As [`open`].
    pub fn open(&self, aad: &[u8], sealed: &[u8]) -> Option<Plaintext> {
        self.0.open(aad, sealed)
    }
}

/// Encrypts with a fresh random nonce: `nonce ‖ ciphertext ‖ tag`.
pub fn seal(key: &[u8; 32], aad: &[u8], plaintext: &[u8]) -> Result<Vec<u8>, SoftwareError> {
    Ok(Expanded::new(key).seal(random()?, aad, plaintext))
}

/// Decrypts what [`seal`] made; `None` if key, AAD and sealed text do not belong together.
pub fn open(key: &[u8; 32], aad: &[u8], sealed: &[u8]) -> Option<Plaintext> {
    Expanded::new(key).open(aad, sealed)
}

/// What does not depend on the message: the key's schedule, and K1. Wiped when dropped.
struct Expanded {
    cipher: Aes256,
    k1: Zeroizing<[u8; 16]>,
}

impl Expanded {
    fn new(key: &[u8; 32]) -> Self {
        let cipher = Aes256::new(key.into());
        let mut k1 = Zeroizing::new([0; 16]);
        cipher.encrypt_block((&mut *k1).into());
        double(&mut k1);
        Self { cipher, k1 }
    }

    fn seal(&self, nonce: [u8; NONCE_BYTES], aad: &[u8], plaintext: &[u8]) -> Vec<u8> {
        let (cipher, gcm_nonce) = self.subkey(&nonce);
        // With room for all of it, so that no plaintext stays behind where a vector has grown.
        let mut sealed = Vec::with_capacity(plaintext.len() + OVERHEAD_BYTES);
        sealed.extend_from_slice(&nonce);
        sealed.extend_from_slice(plaintext);
        let tag = cipher
            .seal_in_place_separate_tag(gcm_nonce, Aad::from(aad), &mut sealed[NONCE_BYTES..])
            .expect("AES-GCM takes 64 GiB; what is sealed here is bounded far below");
        sealed.extend_from_slice(tag.as_ref());
        sealed
    }

    fn open(&self, aad: &[u8], sealed: &[u8]) -> Option<Plaintext> {
        let (nonce, ciphertext) = sealed.split_first_chunk::<NONCE_BYTES>()?;
        let (cipher, gcm_nonce) = self.subkey(nonce);
        let mut buffer = ciphertext.to_vec();
        let length_bytes = cipher.open_in_place(gcm_nonce, Aad::from(aad), &mut buffer).ok()?.len();
        buffer.truncate(length_bytes);
        Some(Plaintext::new(buffer))
    }

    /// The specification's "Detailed key derivation algorithm": a KDF of NIST SP 800-108r1 with AES-CMAC, unrolled.
    ///
    /// The derived key is used by AWS-LC, which reads a catalog's rows, of less than a thousand bytes, several times as fast as the
    /// `aes-gcm` crate, and wipes what it has expanded.
    fn subkey(&self, nonce: &[u8; NONCE_BYTES]) -> (LessSafeKey, Nonce) {
        let mut derived = Zeroizing::new([0; 32]);
        let (blocks, _) = derived.as_chunks_mut::<16>();
        for (counter, block) in (1..).zip(blocks.iter_mut()) {
            block[..4].copy_from_slice(&[0, counter, b'X', 0]);
            block[4..].copy_from_slice(&nonce[..12]);
            block.iter_mut().zip(self.k1.iter()).for_each(|(byte, mask)| *byte ^= mask);
            self.cipher.encrypt_block(block.into());
        }
        let mut gcm_nonce = [0; 12];
        gcm_nonce.copy_from_slice(&nonce[12..]);
        let key = UnboundKey::new(&AES_256_GCM, &*derived).expect("a key of 256 bits has 32 bytes");
        (LessSafeKey::new(key), Nonce::assume_unique_for_key(gcm_nonce))
    }
}

/// Times x in GF(2^128), as in CMAC (NIST SP 800-38B §6.1), without a branch on the secret.
fn double(block: &mut [u8; 16]) {
    let mut value = u128::from_be_bytes(*block);
    let carry = value >> 127;
    value = (value << 1) ^ (carry * 0b1000_0111);
    *block = value.to_be_bytes();
    value.zeroize();
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use shake::digest::{ExtendableOutput, Update, XofReader};

    use super::*;

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    #[test]
    fn the_published_vectors_hold() {
        let nonce = *b"ABCDEFGHIJKLMNOPQRSTUVWX";
        let vectors: [(u8, &[u8], &str); 2] = [
            (1, b"", "ce546ef63c9cc60765923609b33a9a1974e96e52daf2fcf7075e2271"),
            (3, b"c2sp.org/XAES-256-GCM", "986ec1832593df5443a179437fd083bf3fdb41abd740a21f71eb769d"),
        ];
        for (byte, aad, ciphertext) in vectors {
            let sealed = Expanded::new(&[byte; 32]).seal(nonce, aad, b"XAES-256-GCM");
            assert_eq!((&sealed[..24], hex(&sealed[24..])), (&nonce[..], ciphertext.to_owned()));
            assert_eq!(open(&[byte; 32], aad, &sealed).unwrap().as_bytes(), b"XAES-256-GCM");
        }
    }

    /// The specification's accumulated test, 10 000 iterations.
    #[test]
    fn the_published_accumulated_hash_holds() {
        fn vector(random: &mut impl XofReader) -> Vec<u8> {
            let mut length = [0];
            random.read(&mut length);
            let mut bytes = vec![0; length[0].into()];
            random.read(&mut bytes);
            bytes
        }
        let (mut random, mut hash) = (shake::Shake128::default().finalize_xof(), shake::Shake128::default());
        for _ in 0..10_000 {
            let (mut key, mut nonce) = ([0; 32], [0; 24]);
            random.read(&mut key);
            random.read(&mut nonce);
            let (plaintext, aad) = (vector(&mut random), vector(&mut random));
            let sealed = Expanded::new(&key).seal(nonce, &aad, &plaintext);
            hash.update(&sealed[NONCE_BYTES..]);
            assert_eq!(open(&key, &aad, &sealed).unwrap().as_bytes(), plaintext);
        }
        let mut digest = [0; 32];
        hash.finalize_xof().read(&mut digest);
        assert_eq!(hex(&digest), "e6b9edf2df6cec60c8cbd864e2211b597fb69a529160cd040d56c0c210081939");
    }

    #[test]
    fn two_sealings_of_the_same_text_differ_and_both_open() {
        let key = Key::new(&[9; 32]).unwrap();
        let (a, b) = (key.seal(b"aad", b"text").unwrap(), key.seal(b"aad", b"text").unwrap());
        assert_ne!(a, b);
        assert_eq!(a.len(), 4 + OVERHEAD_BYTES);
        for sealed in [a, b] {
            assert_eq!(key.open(b"aad", &sealed).unwrap().as_bytes(), b"text");
            assert!(key.open(b"other", &sealed).is_none());
            assert!(Key::new(&[8; 32]).unwrap().open(b"aad", &sealed).is_none());
        }
    }

    proptest! {
        #[test]
        fn a_changed_or_cut_sealing_never_opens(
            plaintext in proptest::collection::vec(any::<u8>(), 0..80), place: prop::sample::Index, bits in 1u8..,
        ) {
            let sealed = seal(&[5; 32], b"aad", &plaintext).unwrap();
            let mut changed = sealed.clone();
            *place.get_mut(&mut changed) ^= bits;
            prop_assert!(open(&[5; 32], b"aad", &changed).is_none());
            prop_assert!(open(&[5; 32], b"aad", &sealed[..place.index(sealed.len())]).is_none());
        }
    }
}
