//! CKM_AES_GCM on one session: the two calls that everything is for.

use cryptoki::mechanism::Mechanism;
use cryptoki::mechanism::aead::GcmParams;
use cryptoki::object::ObjectHandle;
use cryptoki::session::Session;
use cryptoki::types::Ulong;

use super::fault::Fault;
use crate::blob::{NONCE_BYTES, TAG_BYTES};
use crate::secret::Plaintext;

/// AES-256-GCM with a fresh nonce. The nonce is read back after the call, because some HSMs draw their own; one that is missing
/// or zero would be a nonce used twice, so it is refused.
pub(super) fn encrypt(
    session: &Session,
    key: ObjectHandle,
    aad: &[u8],
    plaintext: &[u8],
) -> Result<([u8; NONCE_BYTES], Vec<u8>), Fault> {
    let mut nonce: [u8; NONCE_BYTES] =
        crate::software::random().map_err(|_| Fault::integrity("getrandom", "no random numbers"))?;
    let mechanism = Mechanism::AesGcm(GcmParams::new(&mut nonce, aad, Ulong::new(8 * TAG_BYTES as u64))?);
    let ciphertext = session.encrypt(&mechanism, key, plaintext)?;
    if nonce == [0; NONCE_BYTES] {
        return Err(Fault::integrity("C_Encrypt", "a nonce of zeros"));
    }
    if ciphertext.len() != plaintext.len() + TAG_BYTES {
        return Err(Fault::integrity("C_Encrypt", "a ciphertext of the wrong length"));
    }
    Ok((nonce, ciphertext))
}

/// The reverse; an error for anything that was not made by [`encrypt`] with the same key, nonce and AAD.
pub(super) fn decrypt(
    session: &Session,
    key: ObjectHandle,
    mut nonce: [u8; NONCE_BYTES],
    aad: &[u8],
    ciphertext: &[u8],
) -> Result<Plaintext, Fault> {
    let mechanism = Mechanism::AesGcm(GcmParams::new(&mut nonce, aad, Ulong::new(8 * TAG_BYTES as u64))?);
    let plaintext = Plaintext::new(session.decrypt(&mechanism, key, ciphertext)?);
    if plaintext.as_bytes().len() + TAG_BYTES != ciphertext.len() {
        return Err(Fault::integrity("C_Decrypt", "a plaintext of the wrong length"));
    }
    Ok(plaintext)
}
