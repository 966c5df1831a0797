//! What a token has to show before it is used. On session objects, so that nothing stays behind.

use cryptoki::mechanism::Mechanism;
use cryptoki::mechanism::aead::GcmParams;
use cryptoki::object::{Attribute, KeyType, ObjectClass, ObjectHandle};
use cryptoki::session::Session;
use cryptoki::types::Ulong;

use super::fault::{Class, Fault};
use super::gcm::{decrypt, encrypt};
use super::keys::generate_session_key;
use super::profile::{IvSource, Profile};
use super::token_error::TokenError;
use crate::blob::TAG_BYTES;

/// Known answer, fresh nonces, honest tags.
pub(super) fn run(profile: &Profile, session: &Session) -> Result<(), TokenError> {
    let failed = |error| Fault::on(profile.name, error);
    known_answer(profile, session)?;
    let key = generate_session_key(session).map_err(failed)?;
    let outcome = round_trip(profile, session, key);
    session.destroy_object(key).map_err(failed)?;
    outcome
}

/// NIST's GCM test case 16 ("The Galois/Counter Mode of Operation", appendix B), on an imported session key. Tokens that may
/// refuse to import keys (FIPS mode), and do, are left to the round trip.
fn known_answer(profile: &Profile, session: &Session) -> Result<(), TokenError> {
    const KEY: [u8; 32] = *b"\xfe\xff\xe9\x92\x86\x65\x73\x1c\x6d\x6a\x8f\x94\x67\x30\x83\x08\
        \xfe\xff\xe9\x92\x86\x65\x73\x1c\x6d\x6a\x8f\x94\x67\x30\x83\x08";
    const IV: [u8; 12] = *b"\xca\xfe\xba\xbe\xfa\xce\xdb\xad\xde\xca\xf8\x88";
    const AAD: &[u8] = b"\xfe\xed\xfa\xce\xde\xad\xbe\xef\xfe\xed\xfa\xce\xde\xad\xbe\xef\xab\xad\xda\xd2";
    const PLAINTEXT: &[u8] = b"\xd9\x31\x32\x25\xf8\x84\x06\xe5\xa5\x59\x09\xc5\xaf\xf5\x26\x9a\
        \x86\xa7\xa9\x53\x15\x34\xf7\xda\x2e\x4c\x30\x3d\x8a\x31\x8a\x72\
        \x1c\x3c\x0c\x95\x95\x68\x09\x53\x2f\xcf\x0e\x24\x49\xa6\xb5\x25\
        \xb1\x6a\xed\xf5\xaa\x0d\xe6\x57\xba\x63\x7b\x39";
    const CIPHERTEXT: &[u8] = b"\x52\x2d\xc1\xf0\x99\x56\x7d\x07\xf4\x7f\x37\xa3\x2a\x84\x42\x7d\
        \x64\x3a\x8c\xdc\xbf\xe5\xc0\xc9\x75\x98\xa2\xbd\x25\x55\xd1\xaa\
        \x8c\xb0\x8e\x48\x59\x0d\xbb\x3d\xa7\xb0\x8b\x10\x56\x82\x88\x38\
        \xc5\xf6\x1e\x63\x93\xba\x7a\x0a\xbc\xc9\xf6\x62\x76\xfc\x6e\xce\x0f\x4e\x17\x68\xcd\xdf\x88\x53\xbb\x2d\x55\x1b";
    let template = [
        Attribute::Class(ObjectClass::SECRET_KEY),
        Attribute::KeyType(KeyType::AES),
        Attribute::Token(false),
        Attribute::Value(KEY.to_vec()),
        Attribute::Encrypt(true),
        Attribute::Decrypt(true),
    ];
    let failed = |error| Fault::on(profile.name, error);
    let key = match session.create_object(&template).map_err(failed) {
        Ok(key) => key,
        Err(fault) if profile.imports_keys => return Err(fault.into()),
        Err(_) => {
            tracing::info!("the token does not import keys; its known-answer test is a round trip only");
            return Ok(());
        }
    };
    let (ciphertext, wrong) =
        (CIPHERTEXT, || Err(TokenError::SelfTest("NIST's AES-256-GCM test case 16 fails".into())));
    let opened = decrypt(profile, session, key, IV, AAD, ciphertext);
    let mut iv = IV;
    let made = match profile.iv {
        IvSource::Ours => {
            let mechanism =
                Mechanism::AesGcm(GcmParams::new(&mut iv, AAD, Ulong::new(8 * TAG_BYTES as u64)).map_err(failed)?);
            Some(session.encrypt(&mechanism, key, PLAINTEXT).map_err(failed))
        }
        // It takes none of ours, so there is no known answer.
        IvSource::Hsm => None,
    };
    session.destroy_object(key).map_err(failed)?;
    if opened?.as_bytes() != PLAINTEXT {
        return wrong();
    }
    match made.transpose().map_err(own_iv)? {
        // A token that draws the IV itself cannot give the known answer, and says so in the IV.
        Some(made) if made != ciphertext && iv == IV => wrong(),
        _ => Ok(()),
    }
}

/// What may be a refusal of our IV is worth more words.
fn own_iv(fault: Fault) -> TokenError {
    match fault.class {
        Class::Ambiguous => TokenError::SelfTest(format!(
            "{fault}; perhaps this HSM draws its nonces itself, and another profile than the one in use fits it"
        )),
        _ => fault.into(),
    }
}

/// Encrypts twice, decrypts, and checks that a flipped bit is refused and costs nothing but that one call.
fn round_trip(profile: &Profile, session: &Session, key: ObjectHandle) -> Result<(), TokenError> {
    let failed = |what: &str| Err(TokenError::SelfTest(what.into()));
    let (aad, text) = (b"ekm self-test", [0x5a; 32]);
    let (iv, ciphertext) = encrypt(profile, session, key, aad, &text).map_err(own_iv)?;
    let (second_iv, second) = encrypt(profile, session, key, aad, &text)?;
    if iv == second_iv || ciphertext == second {
        return failed("it encrypts the same text twice to the same result");
    }
    if decrypt(profile, session, key, iv, aad, &ciphertext)?.as_bytes() != text {
        return failed("it does not decrypt what it encrypted");
    }
    let mut changed = ciphertext.clone();
    changed[0] ^= 1;
    if decrypt(profile, session, key, iv, aad, &changed).is_ok() {
        return failed("it decrypts a changed ciphertext");
    }
    if decrypt(profile, session, key, iv, aad, &ciphertext)?.as_bytes() != text {
        return failed("it no longer decrypts after a refused ciphertext");
    }
    Ok(())
}
