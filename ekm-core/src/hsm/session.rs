//! One session on a token, owned by one thread, with its cache of key handles. Everything that a token is asked for happens here.

use std::collections::HashMap;
use std::sync::Arc;

use cryptoki::object::{Attribute, ObjectHandle};
use cryptoki::session::Session;

use super::fault::{Class, Fault};
use super::gcm::{decrypt, encrypt};
use super::job::{Answer, Proof, Request, TokenKey};
use super::keys::{generate_session_key, key_template};
use super::profile::Profile;
use super::signing;
use super::token::{Token, logged_in};
use super::token_error::TokenError;
use crate::blob::{self, Format, GcmSealed, Sealed, VersionId};
use crate::custody::CHECK_TEXT;
use crate::secret::Plaintext;

pub(super) struct TokenSession {
    token: Arc<Token>,
    session: Session,
    /// Each key with the proof that it has given.
    handles: HashMap<VersionId, (Proof, ObjectHandle)>,
    /// A key that lives as long as the session, for probes.
    probe: Option<ObjectHandle>,
}

impl TokenSession {
    pub(super) fn open(token: Arc<Token>) -> Result<Self, Fault> {
        let session = token.session()?;
        Ok(Self { token, session, handles: HashMap::new(), probe: None })
    }

    /// Does what is asked for. `confirm` as in [`super::job::Job`].
    pub(super) fn serve(&mut self, request: &Request, confirm: bool) -> Result<Answer, Fault> {
        match request {
            Request::Wrap { key, aad, plaintext } => self.wrap(key, aad, plaintext).map(Answer::Wrapped),
            Request::Unwrap { key, aad, sealed, .. } => self.unwrap(key, aad, sealed, confirm).map(Answer::Unwrapped),
            Request::Sign { key, digest } => self.sign(key, digest).map(Answer::Signed),
            Request::Check { key } => self.check(key).map(|()| Answer::Done),
            Request::Probe => self.probe().map(|()| Answer::Done),
            Request::Audit { key } => self.audit(key).map(|()| Answer::Done),
            Request::Generate { id, label, signs: None, replication } => {
                made(self.token.generate_key(*id, label, replication.as_deref()).map(exported))
            }
            Request::Generate { id, label, signs: Some(algorithm), replication } => {
                let pair = self.token.generate_pair(*id, label, *algorithm, replication.as_deref());
                made(pair.map(|(public, wrapped)| Answer::Pair { public: public.der().to_vec(), wrapped }))
            }
            Request::Import { id, label, signs: None, replication, wrapped } => {
                made(self.token.import_key(*id, label, replication, wrapped).map(exported))
            }
            Request::Import { id, label, signs: Some(algorithm), replication, wrapped } => {
                made(self.token.import_pair(*id, label, *algorithm, replication, wrapped).map(|()| Answer::Done))
            }
            Request::Discard { id } => {
                self.handles.remove(id);
                self.token.discard_key(*id).map(|()| Answer::Done).map_err(fault)
            }
        }
    }

    /// An HSM that answers wrong and calls it success would lose a data key for ever: what cannot be opened again was not wrapped.
    fn wrap(&mut self, key: &TokenKey, aad: &[u8], plaintext: &Plaintext) -> Result<GcmSealed, Fault> {
        self.renewing(key, |profile, session, handle| {
            let sealed = encrypt(profile, session, handle, aad, plaintext.as_bytes());
            let (nonce, ciphertext) = sealed.map_err(devices)?;
            let opened = decrypt(profile, session, handle, nonce, aad, &ciphertext).map_err(devices)?;
            match opened.as_bytes() == plaintext.as_bytes() {
                true => Ok(GcmSealed { nonce, ciphertext }),
                false => Err(Fault::integrity("C_Encrypt", "what it made does not open to what was encrypted")),
            }
        })
    }

    fn unwrap(&mut self, key: &TokenKey, aad: &[u8], sealed: &GcmSealed, confirm: bool) -> Result<Plaintext, Fault> {
        let unwrapped = self.renewing(key, |profile, session, handle| {
            decrypt(profile, session, handle, sealed.nonce, aad, &sealed.ciphertext)
        });
        match unwrapped {
            // It is the caller's fault only if the same key, on the same session, still shows that it works.
            Err(refusal) if confirm && refusal.is_refusal() => match self.check(key) {
                Ok(()) => Err(refusal),
                Err(broken) => {
                    self.renew()?;
                    Err(broken)
                }
            },
            unwrapped => unwrapped,
        }
    }

    /// What comes out is verified by the frontend, in whose process there is no vendor's library.
    fn sign(&mut self, key: &TokenKey, digest: &[u8]) -> Result<Vec<u8>, Fault> {
        let Some(public) = key.public_key() else { return Err(Fault::key("C_Sign", "the key is none for signatures")) };
        self.renewing(key, |profile, session, handle| {
            signing::sign(profile, session, handle, public.algorithm(), digest)
        })
    }

    /// The known-answer test of one key.
    fn check(&mut self, key: &TokenKey) -> Result<(), Fault> {
        self.renewing(key, |profile, session, handle| prove(profile, session, handle, key))
    }

    /// As [`Self::check`], and the object's attributes.
    fn audit(&mut self, key: &TokenKey) -> Result<(), Fault> {
        self.check(key)?;
        let found = self.token.find(&self.session, &template(key))?;
        found.into_iter().try_for_each(|object| self.token.require_closed(&self.session, object))
    }

    /// A round trip under a key of this session.
    fn probe(&mut self) -> Result<(), Fault> {
        // A session that cannot say so is gone as well.
        if !matches!(logged_in(&self.session), Ok(true)) {
            self.renew()?;
        }
        let key = match self.probe {
            Some(key) => key,
            None => *self.probe.insert(self.generate_probe()?),
        };
        let tried = round_trip(self.token.profile(), &self.session, key, b"probe");
        if tried.is_err() {
            self.renew()?;
        }
        tried
    }

    fn generate_probe(&self) -> Result<ObjectHandle, Fault> {
        generate_session_key(&self.session).map_err(|error| self.token.fault(error))
    }

    /// Runs a call with a key's handle, and once more on a new session if this one turns out to be invalid. After a device's fault
    /// the session is replaced too, but the call is not repeated: the caller's time is better spent elsewhere.
    fn renewing<T>(
        &mut self,
        key: &TokenKey,
        call: impl Fn(&'static Profile, &Session, ObjectHandle) -> Result<T, Fault>,
    ) -> Result<T, Fault> {
        let profile = self.token.profile();
        match self.handle(key).and_then(|handle| call(profile, &self.session, handle)) {
            Err(fault) if fault.class == Class::Session || self.has_lost_its_login(&fault) => {
                self.renew()?;
                let handle = self.handle(key)?;
                call(profile, &self.session, handle)
            }
            Err(fault) if matches!(fault.class, Class::Device | Class::Integrity) => {
                self.renew()?;
                Err(fault)
            }
            outcome => outcome,
        }
    }

    /// Not every vendor's code for it is in the table.
    fn has_lost_its_login(&self, fault: &Fault) -> bool {
        matches!(fault.class, Class::Device | Class::Ambiguous) && matches!(logged_in(&self.session), Ok(false))
    }

    fn renew(&mut self) -> Result<(), Fault> {
        self.handles.clear();
        self.probe = None;
        self.session = self.token.session()?;
        Ok(())
    }

    /// A key is looked for, and shows that it is the one that made its check blob, before its first use on every new session: after a
    /// failover of the vendor's own, the same id may stand for other material. For another proof it is looked for again: what a rotation
    /// made that was taken back may still be usable here.
    fn handle(&mut self, key: &TokenKey) -> Result<ObjectHandle, Fault> {
        if let Some((proof, handle)) = self.handles.get(&key.id)
            && *proof == key.proof
        {
            return Ok(*handle);
        }
        let template = template(key);
        let found = match key.proof {
            Proof::New => self.token.find(&self.session, &template),
            _ => self.token.find_to_keep(&self.session, &template),
        };
        match found?[..] {
            [handle] => {
                if matches!(key.proof, Proof::CheckBlob(_) | Proof::PublicKey(_)) {
                    prove(self.token.profile(), &self.session, handle, key)?;
                }
                if key.proof != Proof::New {
                    self.handles.insert(key.id, (key.proof.clone(), handle));
                }
                Ok(handle)
            }
            // A search without a login, or on a token that went away, finds nothing and calls it success.
            [] if !logged_in(&self.session)? => {
                Err(Fault { class: Class::Session, function: "C_FindObjects".into(), code: "the login is gone".into() })
            }
            [] if !self.token.is_present() => {
                Err(Fault { class: Class::Device, function: "C_GetTokenInfo".into(), code: "the token is gone".into() })
            }
            [] => Err(Fault::key("C_FindObjects", "the token does not hold the key")),
            _ => Err(Fault::key("C_FindObjects", "the token holds two keys with the same CKA_ID")),
        }
    }
}

/// Finds a key's object.
fn template(key: &TokenKey) -> Vec<Attribute> {
    match key.proof {
        Proof::PublicKey(_) => signing::key_template(key.id).into(),
        Proof::CheckBlob(_) | Proof::Unique | Proof::New => key_template(key.id).into(),
    }
}

/// The check blob opens to the known text. If it is refused: does the key work at all, and is it just not the one that made it?
fn prove(profile: &Profile, session: &Session, handle: ObjectHandle, key: &TokenKey) -> Result<(), Fault> {
    let check_blob = match &key.proof {
        Proof::CheckBlob(blob) => blob,
        Proof::PublicKey(public) => return signing::prove(profile, session, handle, public),
        Proof::Unique | Proof::New => return round_trip(profile, session, handle, b"round trip"),
    };
    let wrong =
        || Fault::key("C_Decrypt", "the check blob does not open to its known text: the material is another one");
    let Some((id, Sealed::Gcm(sealed))) = blob::parse(check_blob) else { return Err(wrong()) };
    let aad = blob::bound_aad(Format::Gcm, key.id, b"");
    let known_answer = || decrypt(profile, session, handle, sealed.nonce, &aad, &sealed.ciphertext);
    // A device that fails now and then may do so here: one refusal is not enough to call a key another one.
    match known_answer().or_else(|fault| if fault.is_refusal() { known_answer() } else { Err(fault) }) {
        Ok(opened) if id == key.id && opened.as_bytes() == CHECK_TEXT => Ok(()),
        Err(fault) if !fault.is_refusal() => Err(fault),
        Ok(_) | Err(_) => {
            round_trip(profile, session, handle, b"round trip")?;
            Err(wrong())
        }
    }
}

/// The key encrypts, and decrypts it again.
fn round_trip(profile: &Profile, session: &Session, handle: ObjectHandle, aad: &[u8]) -> Result<(), Fault> {
    let (nonce, ciphertext) = encrypt(profile, session, handle, aad, CHECK_TEXT).map_err(devices)?;
    let opened = decrypt(profile, session, handle, nonce, aad, &ciphertext).map_err(devices)?;
    match opened.as_bytes() == CHECK_TEXT {
        true => Ok(()),
        false => Err(Fault::integrity("C_Decrypt", "it does not give back what was encrypted")),
    }
}

/// A refusal of the token's own ciphertext is the device's fault.
fn devices(fault: Fault) -> Fault {
    if fault.is_refusal() { Fault { class: Class::Device, ..fault } } else { fault }
}

fn exported(wrapped: Option<Vec<u8>>) -> Answer {
    wrapped.map_or(Answer::Done, Answer::Exported)
}

fn made(outcome: Result<Answer, TokenError>) -> Result<Answer, Fault> {
    match outcome {
        Ok(answer) => Ok(answer),
        Err(TokenError::KeyExists(_)) => Ok(Answer::Exists),
        Err(error) => Err(fault(error)),
    }
}

fn fault(error: TokenError) -> Fault {
    match error {
        TokenError::Fault(fault) => fault,
        error => Fault::integrity("PKCS#11", &error.to_string()),
    }
}
