//! CKM_AES_GCM on one session: the two calls that everything is for.

use cryptoki::mechanism::Mechanism;
use cryptoki::mechanism::aead::GcmParams;
use cryptoki::object::ObjectHandle;
use cryptoki::session::Session;
use cryptoki::types::Ulong;

use super::fault::{Class, Fault};
use super::profile::{IvSource, Profile};
use crate::blob::{NONCE_BYTES, TAG_BYTES};
use crate::secret::Plaintext;

/// AES-256-GCM with a fresh nonce. The nonce is read back after the call, because some HSMs draw their own; one that is missing
/// or zero would be a nonce used twice, so it is refused.
pub(super) fn encrypt(
    profile: &Profile,
    session: &Session,
    key: ObjectHandle,
    aad: &[u8],
    plaintext: &[u8],
) -> Result<([u8; NONCE_BYTES], Vec<u8>), Fault> {
    require_room(profile, "C_Encrypt", plaintext.len())?;
    let mut nonce: [u8; NONCE_BYTES] = match profile.iv {
        IvSource::Ours => crate::software::random().map_err(|_| Fault::integrity("getrandom", "no random numbers"))?,
        IvSource::Hsm => [0; NONCE_BYTES],
    };
    let failed = |error| Fault::on(profile.name, error);
    let mechanism = Mechanism::AesGcm(gcm(&mut nonce, aad).map_err(failed)?);
    let ciphertext = session.encrypt(&mechanism, key, plaintext).map_err(failed)?;
    if nonce == [0; NONCE_BYTES] {
        return Err(Fault::integrity("C_Encrypt", "a nonce of zeros"));
    }
    // A Luna in FIPS mode appends a nonce of its own, too long for our blobs.
    if ciphertext.len() != plaintext.len() + TAG_BYTES {
        return Err(Fault::integrity("C_Encrypt", "a ciphertext of the wrong length"));
    }
    Ok((nonce, ciphertext))
}

/// The reverse; an error for anything that was not made by [`encrypt`] with the same key, nonce and AAD.
pub(super) fn decrypt(
    profile: &Profile,
    session: &Session,
    key: ObjectHandle,
    mut nonce: [u8; NONCE_BYTES],
    aad: &[u8],
    ciphertext: &[u8],
) -> Result<Plaintext, Fault> {
    // Another replica, of another vendor, can have made it and can open it.
    require_room(profile, "C_Decrypt", ciphertext.len().saturating_sub(TAG_BYTES))?;
    let failed = |error| Fault::on(profile.name, error);
    let mechanism = Mechanism::AesGcm(gcm(&mut nonce, aad).map_err(failed)?);
    let plaintext = Plaintext::new(session.decrypt(&mechanism, key, ciphertext).map_err(failed)?);
    if plaintext.as_bytes().len() + TAG_BYTES != ciphertext.len() {
        return Err(Fault::integrity("C_Decrypt", "a plaintext of the wrong length"));
    }
    Ok(plaintext)
}

fn gcm<'a>(nonce: &'a mut [u8], aad: &'a [u8]) -> cryptoki::error::Result<GcmParams<'a>> {
    GcmParams::new(nonce, aad, Ulong::new(8 * TAG_BYTES as u64))
}

/// Asked for too much, vendors' libraries do not all say what is wrong.
fn require_room(profile: &Profile, function: &str, bytes: usize) -> Result<(), Fault> {
    match profile.max_plaintext_bytes {
        Some(most) if bytes > most => {
            let code = format!("a plaintext of {bytes} bytes, and this HSM takes at most {most}");
            Err(Fault { class: Class::Capacity, function: function.into(), code })
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::profile::{GENERIC, ProfileName};
    use super::*;

    #[test]
    fn a_plaintext_that_is_too_long_for_one_hsm_is_left_to_another() {
        let cloudhsm = Profile::named(ProfileName::CloudHsm);
        assert!(require_room(cloudhsm, "C_Encrypt", 16 * 1024).is_ok());
        let fault = require_room(cloudhsm, "C_Encrypt", 16 * 1024 + 1).unwrap_err();
        assert_eq!(fault.class, Class::Capacity);
        assert_eq!(fault.to_string(), "C_Encrypt: a plaintext of 16385 bytes, and this HSM takes at most 16384");
        assert!(require_room(&GENERIC, "C_Encrypt", usize::MAX).is_ok());
    }
}
