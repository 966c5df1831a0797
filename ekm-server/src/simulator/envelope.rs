//! Envelope encryption, as a Google service does it with a key of the customer's: the data under a data key, the data key under Google's
//! own key, and that under the EKM's. Only the last step leaves Google.

use aws_lc_rs::aead::{AES_256_GCM, Aad, Nonce, RandomizedNonceKey};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

const KEY_BYTES: usize = 32;
const NONCE_BYTES: usize = 12;

/// What `encrypt` writes: the data, and its data key as only EKM and Google together can open it.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Envelope {
    /// The key's name.
    pub(crate) key: String,
    pub(crate) version: u32,
    /// The EKM's blob. Base64.
    pub(crate) wrapped_data_key: String,
    /// Nonce, ciphertext, tag. Base64.
    pub(crate) ciphertext: String,
}

/// A new AES-256 key.
pub(crate) fn new_key() -> Result<Zeroizing<[u8; KEY_BYTES]>, String> {
    let mut key = Zeroizing::new([0; KEY_BYTES]);
    aws_lc_rs::rand::fill(key.as_mut_slice()).map_err(|_| "no random numbers".to_owned())?;
    Ok(key)
}

/// AES-256-GCM: nonce ‖ ciphertext ‖ tag.
pub(crate) fn seal(key: &[u8], plaintext: &[u8], aad: &[u8]) -> Result<Vec<u8>, String> {
    let failed = |_| "cannot encrypt".to_owned();
    let mut text = plaintext.to_vec();
    let nonce = cipher(key)?.seal_in_place_append_tag(Aad::from(aad), &mut text).map_err(failed)?;
    Ok([&nonce.as_ref()[..], &text].concat())
}

/// The reverse; none if anything was changed.
pub(crate) fn open(key: &[u8], sealed: &[u8], aad: &[u8]) -> Result<Option<Zeroizing<Vec<u8>>>, String> {
    let Some((nonce, text)) = sealed.split_at_checked(NONCE_BYTES) else { return Ok(None) };
    let nonce = Nonce::try_assume_unique_for_key(nonce).expect("as long as a nonce");
    let mut text = Zeroizing::new(text.to_vec());
    let Ok(length) = cipher(key)?.open_in_place(nonce, Aad::from(aad), &mut text).map(|text| text.len()) else {
        return Ok(None);
    };
    text.truncate(length);
    Ok(Some(text))
}

fn cipher(key: &[u8]) -> Result<RandomizedNonceKey, String> {
    RandomizedNonceKey::new(&AES_256_GCM, key).map_err(|_| "a key is not 32 bytes long".to_owned())
}

/// Reads base64 that this program has written.
pub(crate) fn decode(text: &str, what: &str) -> Result<Zeroizing<Vec<u8>>, String> {
    STANDARD.decode(text).map(Zeroizing::new).map_err(|_| format!("{what} is not base64"))
}

/// Standard base64.
pub(crate) fn encode(bytes: &[u8]) -> String {
    STANDARD.encode(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sealed_opens_with_its_key_and_aad_only() {
        let key = new_key().unwrap();
        let sealed = seal(key.as_slice(), b"text", b"aad").unwrap();
        let opened = |key: &[u8], sealed: &[u8], aad: &[u8]| open(key, sealed, aad).unwrap().map(|text| text.to_vec());
        assert_eq!(opened(key.as_slice(), &sealed, b"aad").unwrap(), b"text");
        assert_eq!(opened(key.as_slice(), &sealed, b"other"), None);
        assert_eq!(opened(new_key().unwrap().as_slice(), &sealed, b"aad"), None);
        for bit in 0..sealed.len() * 8 {
            let mut changed = sealed.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(opened(key.as_slice(), &changed, b"aad"), None, "bit {bit}");
        }
        for length in 0..sealed.len() {
            assert_eq!(opened(key.as_slice(), &sealed[..length], b"aad"), None, "cut at {length}");
        }
        assert!(open(b"short", &sealed, b"aad").is_err());
        assert_ne!(sealed, seal(key.as_slice(), b"text", b"aad").unwrap());
    }
}
