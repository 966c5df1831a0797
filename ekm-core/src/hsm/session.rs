//! One session on a token, owned by one thread, with its cache of key handles.

use std::collections::HashMap;
use std::sync::Arc;

use cryptoki::object::ObjectHandle;
use cryptoki::session::Session;

use super::fault::{Class, Fault};
use super::gcm::{decrypt, encrypt};
use super::replica::TokenKey;
use super::token::{Token, key_template, logged_in};
use crate::blob::{self, Format, GcmSealed, Sealed, VersionId};
use crate::custody::CHECK_TEXT;
use crate::error::Error;
use crate::secret::Plaintext;
use crate::version::Unusable;

pub(super) struct TokenSession {
    token: Arc<Token>,
    session: Session,
    handles: HashMap<VersionId, ObjectHandle>,
}

impl TokenSession {
    pub(super) fn open(token: Arc<Token>) -> Result<Self, Fault> {
        let session = token.session()?;
        Ok(Self { token, session, handles: HashMap::new() })
    }

    pub(super) fn wrap(&mut self, key: &TokenKey, aad: &[u8], plaintext: &Plaintext) -> Result<GcmSealed, Error> {
        self.encrypt(key.id, aad, plaintext.as_bytes()).map_err(ours)
    }

    /// An ambiguous refusal is the caller's fault only if the same key, on the same session, still shows that it works.
    pub(super) fn unwrap(&mut self, key: &TokenKey, aad: &[u8], sealed: &GcmSealed) -> Result<Plaintext, Error> {
        match self.decrypt(key.id, aad, sealed) {
            Ok(plaintext) => Ok(plaintext),
            Err(fault) if fault.class == Class::Caller => Err(Error::UnwrapFailed),
            Err(fault) if fault.class == Class::Ambiguous => match self.try_check(key) {
                Ok(()) => Err(Error::UnwrapFailed),
                Err(_) => {
                    self.renew().map_err(ours)?;
                    Err(ours(fault))
                }
            },
            Err(fault) => Err(ours(fault)),
        }
    }

    /// The known-answer test of one key.
    pub(super) fn check(&mut self, key: &TokenKey) -> Result<(), Unusable> {
        self.try_check(key).map_err(|fault| match fault.class {
            Class::Integrity => Unusable::Lasting(fault.to_string()),
            _ => Unusable::Passing(ours(fault)),
        })
    }

    /// The check blob opens to the known text. If it is refused: does the key work at all, and is it just not the one that made it?
    fn try_check(&mut self, key: &TokenKey) -> Result<(), Fault> {
        let wrong = || Fault::integrity("C_Decrypt", "the check blob does not open to its known text");
        let Some(check_blob) = &key.check_blob else { return self.round_trip(key.id) };
        let Some((id, Sealed::Gcm(sealed))) = blob::parse(check_blob) else { return Err(wrong()) };
        match self.decrypt(key.id, &blob::bound_aad(Format::Gcm, key.id, b""), &sealed) {
            Ok(opened) if id == key.id && opened.as_bytes() == CHECK_TEXT => Ok(()),
            Ok(_) => Err(wrong()),
            Err(fault) if matches!(fault.class, Class::Caller | Class::Ambiguous) => {
                self.round_trip(key.id)?;
                Err(wrong())
            }
            Err(fault) => Err(fault),
        }
    }

    /// The key encrypts, and decrypts it again. A refusal of its own ciphertext is the device's fault.
    fn round_trip(&mut self, id: VersionId) -> Result<(), Fault> {
        let aad = blob::secret_aad(id, b"round trip");
        let sealed = self.encrypt(id, &aad, CHECK_TEXT)?;
        let opened = self.decrypt(id, &aad, &sealed).map_err(|fault| match fault.class {
            Class::Caller | Class::Ambiguous => Fault { class: Class::Device, ..fault },
            _ => fault,
        })?;
        match opened.as_bytes() == CHECK_TEXT {
            true => Ok(()),
            false => Err(Fault::integrity("C_Decrypt", "it does not give back what was encrypted")),
        }
    }

    fn encrypt(&mut self, id: VersionId, aad: &[u8], plaintext: &[u8]) -> Result<GcmSealed, Fault> {
        let (nonce, ciphertext) = self.renewing(id, |session, key| encrypt(session, key, aad, plaintext))?;
        Ok(GcmSealed { nonce, ciphertext })
    }

    fn decrypt(&mut self, id: VersionId, aad: &[u8], sealed: &GcmSealed) -> Result<Plaintext, Fault> {
        self.renewing(id, |session, key| decrypt(session, key, sealed.nonce, aad, &sealed.ciphertext))
    }

    /// Runs a call with a key's handle, and once more on a new session if this one turns out to be invalid. After a device's fault
    /// the session is replaced too, but the call is not repeated: the caller's time is better spent elsewhere.
    fn renewing<T>(
        &mut self,
        id: VersionId,
        call: impl Fn(&Session, ObjectHandle) -> Result<T, Fault>,
    ) -> Result<T, Fault> {
        match self.handle(id).and_then(|key| call(&self.session, key)) {
            Err(fault) if fault.class == Class::Session => {
                self.renew()?;
                let key = self.handle(id)?;
                call(&self.session, key)
            }
            Err(fault) if fault.class == Class::Device => {
                self.renew()?;
                Err(fault)
            }
            outcome => outcome,
        }
    }

    fn renew(&mut self) -> Result<(), Fault> {
        self.handles.clear();
        self.session = self.token.session()?;
        Ok(())
    }

    fn handle(&mut self, id: VersionId) -> Result<ObjectHandle, Fault> {
        if let Some(&handle) = self.handles.get(&id) {
            return Ok(handle);
        }
        match self.session.find_objects(&key_template(id))?[..] {
            [object] => {
                let handle = self.token.usable(&self.session, object);
                self.handles.insert(id, handle);
                Ok(handle)
            }
            // A search without a login, or on a token that went away, finds nothing and calls it success.
            [] if !logged_in(&self.session)? => {
                Err(Fault { class: Class::Session, function: "C_FindObjects".into(), code: "the login is gone".into() })
            }
            [] if !self.token.is_present() => {
                Err(Fault { class: Class::Device, function: "C_GetTokenInfo".into(), code: "the token is gone".into() })
            }
            [] => Err(Fault::integrity("C_FindObjects", "the token does not hold the key")),
            _ => Err(Fault::integrity("C_FindObjects", "the token holds two keys with the same CKA_ID")),
        }
    }
}

/// A fault as the request's error: never the caller's.
fn ours(fault: Fault) -> Error {
    match fault.class {
        Class::Integrity if fault.function == "C_FindObjects" => Error::KeyUnavailable,
        Class::Capacity => Error::Overloaded,
        _ => Error::HsmFault { function: fault.function, code: fault.code },
    }
}
