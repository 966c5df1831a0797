//! AES keys on a token: made, copied from one token to another, shown to be closed, and removed. `signing` does so with pairs.

use cryptoki::mechanism::Mechanism;
use cryptoki::object::{Attribute, KeyType, ObjectClass, ObjectHandle};
use cryptoki::session::Session;
use cryptoki::types::Ulong;

use super::fault::Fault;
use super::token::Token;
use super::token_error::TokenError;
use crate::blob::VersionId;

impl Token {
    /// Makes an AES-256 key on the token: sensitive, not extractable, found again by CKA_ID. With the label of a replication key, returns
    /// it wrapped by that one, for the shard's other tokens; only until then is it extractable. Blocking.
    ///
    /// Two rotations at the same time choose the same id. Neither may touch the other's key, which may be in the catalog already: with
    /// two under one id, nobody could tell which one has wrapped, and whoever cleaned up would take both.
    pub fn generate_key(
        &self,
        id: VersionId,
        label: &str,
        replication: Option<&str>,
    ) -> Result<Option<Vec<u8>>, TokenError> {
        let guard = if replication.is_some() { &CLOSED[..] } else { &NEVER_OPEN };
        self.make(id, &key_template(id), guard, |session| {
            let mut template = object_template(id, label, replication.is_some());
            template.push(Attribute::ValueLen(Ulong::new(32)));
            let _until_it_is_whole = self.nobody_looks();
            let key = session.generate_key(&Mechanism::AesKeyGen, &template).map_err(|error| self.fault(error))?;
            let wrapped = replication.map(|replication| self.wrap_out(session, key, replication)).transpose();
            wrapped.map(|wrapped| (key, wrapped)).or_else(|error| self.undo(session, key, error))
        })
    }

    /// Takes over a key that another token has wrapped by the replication key; returns none that is wrapped. Blocking.
    pub fn import_key(
        &self,
        id: VersionId,
        label: &str,
        replication: &str,
        wrapped: &[u8],
    ) -> Result<Option<Vec<u8>>, TokenError> {
        self.make(id, &key_template(id), &CLOSED, |session| {
            let _until_it_is_whole = self.nobody_looks();
            let by = self.replication_key(session, replication)?;
            let made = session.unwrap_key(&Mechanism::AesKeyWrap, by, wrapped, &object_template(id, label, false));
            Ok((made.map_err(|error| self.fault(error))?, None))
        })
    }

    /// Puts one object on the token, of which there is none under its id yet.
    pub(super) fn make<T>(
        &self,
        id: VersionId,
        template: &[Attribute],
        guard: &[Attribute],
        put: impl FnOnce(&Session) -> Result<(ObjectHandle, T), TokenError>,
    ) -> Result<T, TokenError> {
        let _one_at_a_time = self.one_at_a_time();
        let session = self.rw_session()?;
        if !self.find(&session, template)?.is_empty() {
            return Err(TokenError::KeyExists(id));
        }
        let (key, made) = put(&session)?;
        // Of two that have looked at the same time and found nothing, the later one sees both.
        let found = self.find(&session, template)?.len();
        if found != 1 {
            let _ = session.destroy_object(key); // perhaps the other one's cleaning up was faster
            return Err(match found {
                0 => Fault::integrity("C_FindObjects", "the token does not show the key that it has just made").into(),
                _ => TokenError::KeyExists(id),
            });
        }
        match self.require(&session, key, guard) {
            Ok(()) => Ok(made),
            Err(fault) => self.undo(&session, key, TokenError::SelfTest(fault.code)),
        }
    }

    pub(super) fn undo<T>(&self, session: &Session, key: ObjectHandle, error: TokenError) -> Result<T, TokenError> {
        session.destroy_object(key).map_err(|error| self.fault(error))?;
        Err(error)
    }

    /// Wraps a new key by the replication key (AES key wrap, RFC 3394), and closes it.
    fn wrap_out(&self, session: &Session, key: ObjectHandle, replication: &str) -> Result<Vec<u8>, TokenError> {
        let failed = |error| self.fault(error);
        let by = self.replication_key(session, replication)?;
        let wrapped = session.wrap_key(&Mechanism::AesKeyWrap, by, key).map_err(failed)?;
        self.close(session, key)?;
        Ok(wrapped)
    }

    /// From now on nobody gets it off the token.
    pub(super) fn close(&self, session: &Session, key: ObjectHandle) -> Result<(), Fault> {
        let closed = session.update_attributes(key, &[Attribute::Extractable(false)]);
        closed.map_err(|error| self.fault(error))
    }

    /// The one key under that label: put on every token of the shard in a ceremony, by the vendor's tools.
    pub(super) fn replication_key(&self, session: &Session, label: &str) -> Result<ObjectHandle, TokenError> {
        let template = [
            Attribute::Class(ObjectClass::SECRET_KEY),
            Attribute::KeyType(KeyType::AES),
            Attribute::Label(label.as_bytes().to_vec()),
        ];
        match session.find_objects(&template).map_err(|error| self.fault(error))?[..] {
            [key] => Ok(key),
            [] => Err(Fault::key("C_FindObjects", &format!("the token holds no replication key '{label}'")).into()),
            _ => Err(Fault::key("C_FindObjects", &format!("the token holds two keys with label '{label}'")).into()),
        }
    }

    /// Whether a key of ours is closed, wherever it was made.
    pub(super) fn require_closed(&self, session: &Session, key: ObjectHandle) -> Result<(), Fault> {
        self.require(session, key, &CLOSED)
    }

    /// Trust, but verify: the token must confirm what the template asked for. cryptoki leaves out attributes that a token does not
    /// show, so absence is failure too.
    fn require(&self, session: &Session, key: ObjectHandle, guard: &[Attribute]) -> Result<(), Fault> {
        let asked: Vec<_> = guard.iter().map(Attribute::attribute_type).collect();
        let shown = session.get_attributes(key, &asked).map_err(|error| self.fault(error))?;
        match guard.iter().find(|wanted| !shown.contains(wanted)) {
            None => Ok(()),
            Some(missing) => {
                Err(Fault::key("C_GetAttributeValue", &format!("the key is not guarded: {missing:?} is not shown")))
            }
        }
    }

    /// Removes a key that was generated but never entered the catalog. Blocking.
    pub fn discard_key(&self, id: VersionId) -> Result<(), TokenError> {
        let _one_at_a_time = self.one_at_a_time();
        let failed = |error| self.fault(error);
        let _until_it_is_gone = self.nobody_looks();
        let session = self.rw_session()?;
        // Of whichever kind: the id is its alone.
        for key in session.find_objects(&[Attribute::Id(id.to_bytes().to_vec())]).map_err(failed)? {
            session.destroy_object(key).map_err(failed)?;
        }
        Ok(())
    }
}

/// A key that went to other tokens, or came from one, was extractable once.
pub(super) const CLOSED: [Attribute; 2] = [Attribute::Sensitive(true), Attribute::Extractable(false)];
/// A key that was made here, and stays.
pub(super) const NEVER_OPEN: [Attribute; 4] = [
    Attribute::Sensitive(true),
    Attribute::AlwaysSensitive(true),
    Attribute::NeverExtractable(true),
    Attribute::Local(true),
];

/// Finds a key version's object.
pub(super) fn key_template(id: VersionId) -> [Attribute; 3] {
    [Attribute::Class(ObjectClass::SECRET_KEY), Attribute::KeyType(KeyType::AES), Attribute::Id(id.to_bytes().to_vec())]
}

/// What every AES key of ours is.
fn aes_template(on_token: bool, extractable: bool) -> Vec<Attribute> {
    vec![
        Attribute::Class(ObjectClass::SECRET_KEY),
        Attribute::KeyType(KeyType::AES),
        Attribute::Token(on_token),
        Attribute::Private(true),
        Attribute::Sensitive(true),
        Attribute::Extractable(extractable),
        Attribute::Encrypt(true),
        Attribute::Decrypt(true),
    ]
}

/// A key version's object.
fn object_template(id: VersionId, label: &str, extractable: bool) -> Vec<Attribute> {
    let mut template = aes_template(true, extractable);
    template.push(Attribute::Id(id.to_bytes().to_vec()));
    template.push(Attribute::Label(label.as_bytes().to_vec()));
    template
}

/// Makes a key that is gone with its session.
pub(super) fn generate_session_key(session: &Session) -> cryptoki::error::Result<ObjectHandle> {
    let mut template = aes_template(false, false);
    template.push(Attribute::ValueLen(Ulong::new(32)));
    session.generate_key(&Mechanism::AesKeyGen, &template)
}
