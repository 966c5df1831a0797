//! One token: found by label or serial, logged in once, proven before first use.

use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use cryptoki::context::{CInitializeArgs, CInitializeFlags, Pkcs11};
use cryptoki::error::{Error as Pkcs11Error, RvError};
use cryptoki::mechanism::{Mechanism, MechanismType};
use cryptoki::object::{Attribute, KeyType, ObjectClass, ObjectHandle};
use cryptoki::session::{Session, UserType};
use cryptoki::slot::{Limit, Slot};
use cryptoki::types::{AuthPin, Ulong};
use secrecy::SecretString;

use super::fault::{Class, Fault};
use super::profile::{Profile, ProfileName};
use super::self_test;
use crate::blob::VersionId;

/// A vendor's PKCS#11 library. It is never unloaded: some start threads of their own, which would lose their code.
pub struct Module {
    library: Pkcs11,
    path: String,
}

/// Which token it is and how to log in.
pub struct TokenOptions {
    /// Which of the module's tokens.
    pub selector: TokenSelector,
    /// The user PIN. Used once per login, never logged.
    pub pin: SecretString,
    /// What kind of token it is; `None`: what its library calls itself decides.
    pub profile: Option<ProfileName>,
}

/// Tokens are named by label or serial, never by slot number: slots move between restarts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TokenSelector {
    /// CKA label, trailing spaces ignored.
    Label(String),
    /// Serial number.
    Serial(String),
}

/// Why a token cannot be used. Stops the start; each has an entry in the error reference.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// The library cannot be loaded.
    #[error("cannot load the PKCS#11 module {module}: {cause}")]
    Module {
        /// Its path.
        module: String,
        /// The loader's words.
        cause: String,
    },
    /// The library does not start: it misses its own configuration, or its HSM.
    #[error(
        "the PKCS#11 module {module} does not start: {cause}; does it find its own configuration (see [shard.replica.environment]), and its HSM?"
    )]
    Initialize {
        /// Its path.
        module: String,
        /// Function and return code.
        cause: Fault,
    },
    /// No token fits the selector.
    #[error("no token with {wanted}; the module shows: {found}")]
    NotFound {
        /// `label '…'` or `serial '…'`.
        wanted: String,
        /// The tokens that are there.
        found: String,
    },
    /// Two tokens fit the selector.
    #[error("{count} tokens have {wanted}; choose by serial: {found}")]
    NotUnique {
        /// How many.
        count: usize,
        /// `label '…'` or `serial '…'`.
        wanted: String,
        /// The tokens that are there.
        found: String,
    },
    /// The PIN was refused. One attempt was made, and no other will be, so that the token does not lock itself.
    #[error("the token refused the PIN ({code}); one attempt was made and none will follow")]
    Pin {
        /// Its return code.
        code: String,
    },
    /// The token cannot do what we need.
    #[error("the token does not offer {0}, which the external key manager needs")]
    Mechanism(&'static str),
    /// The token's answers are wrong.
    #[error("the token failed its self-test: {0}")]
    SelfTest(String),
    /// A new key would have the CKA_ID of one that is there.
    #[error(
        "the token holds {0} already: another frontend is making this version now, or an attempt was interrupted; try again, and if \
         that does not help, make sure that no catalog has this version, and remove the object by hand"
    )]
    KeyExists(VersionId),
    /// What a worker process met.
    #[error("{text}")]
    Worker {
        /// As the worker's own error has it.
        code: &'static str,
        /// Its text.
        text: String,
        /// See [`TokenError::is_away`].
        away: bool,
    },
    /// Any other failed call.
    #[error("{0}")]
    Fault(Fault),
}

/// Every code that a worker can say.
const WORKER_CODES: [&str; 9] = [
    "hsm_away",
    "hsm_module",
    "hsm_initialize",
    "hsm_token_not_found",
    "hsm_token_not_unique",
    "hsm_pin",
    "hsm_mechanism",
    "hsm_self_test",
    "hsm_start_fault",
];

impl From<Pkcs11Error> for TokenError {
    fn from(error: Pkcs11Error) -> Self {
        Self::Fault(error.into())
    }
}

impl From<Fault> for TokenError {
    fn from(fault: Fault) -> Self {
        Self::Fault(fault)
    }
}

impl TokenError {
    /// The stable word for this error: heading in the error reference.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Module { .. } => "hsm_module",
            Self::Initialize { .. } => "hsm_initialize",
            Self::NotFound { .. } => "hsm_token_not_found",
            Self::NotUnique { .. } => "hsm_token_not_unique",
            Self::Pin { .. } => "hsm_pin",
            Self::Mechanism(_) => "hsm_mechanism",
            Self::SelfTest(_) => "hsm_self_test",
            Self::KeyExists(_) => "hsm_key_exists",
            Self::Worker { code, .. } => code,
            Self::Fault(_) => "hsm_start_fault",
        }
    }

    /// As a worker process has told it.
    pub(super) fn of_worker(code: &str, text: &str, away: bool) -> Self {
        let known = WORKER_CODES.into_iter().find(|known| *known == code);
        Self::Worker { code: known.unwrap_or("hsm_worker"), text: text.into(), away }
    }

    /// Whether the HSM, or the way to it, may just be away, so that the same attempt can succeed later. All else needs an operator
    /// first; a refused PIN above all.
    pub fn is_away(&self) -> bool {
        match self {
            Self::NotFound { .. } | Self::Initialize { .. } => true,
            Self::Worker { away, .. } => *away,
            Self::Fault(fault) => !matches!(fault.class, Class::Credential | Class::Integrity | Class::Key),
            Self::Module { .. }
            | Self::NotUnique { .. }
            | Self::Pin { .. }
            | Self::Mechanism(_)
            | Self::SelfTest(_)
            | Self::KeyExists(_) => false,
        }
    }

    /// Whether the token has refused to be logged in to, so that another attempt may lock it.
    pub(super) fn is_credential(&self) -> bool {
        match self {
            Self::Pin { .. } => true,
            Self::Fault(fault) => fault.class == Class::Credential,
            // A worker does not say which class of fault it was.
            Self::Worker { code, away, .. } => *code == "hsm_pin" || *code == "hsm_start_fault" && !away,
            _ => false,
        }
    }
}

impl Module {
    /// Loads the library. It is not asked for anything yet.
    pub fn load(path: &Path) -> Result<Self, TokenError> {
        let library = Pkcs11::new(path)
            .map_err(|error| TokenError::Module { module: path.display().to_string(), cause: error.to_string() })?;
        // One reference more than anybody holds: it stays loaded.
        std::mem::forget(library.clone());
        Ok(Self { library, path: path.display().to_string() })
    }

    /// `C_Initialize`, and `use_it`; `C_Finalize` if that fails, when nothing of it is in use any more: what a library shows is what it
    /// found when it was initialised, so another attempt needs another `C_Initialize`.
    pub(super) fn initialized<T>(
        &self,
        use_it: impl FnOnce(&Pkcs11) -> Result<T, TokenError>,
    ) -> Result<T, TokenError> {
        match self.library.initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK)) {
            // By an attempt before this one, which could not finalise it.
            Ok(()) | Err(Pkcs11Error::Pkcs11(RvError::CryptokiAlreadyInitialized, _)) => {}
            Err(error) => return Err(TokenError::Initialize { module: self.path.clone(), cause: error.into() }),
        }
        let used = use_it(&self.library);
        if used.is_err() {
            self.finalize();
        }
        used
    }

    /// `C_Finalize`. Whoever calls it knows that nothing of the module is in use.
    pub(super) fn finalize(&self) {
        let _ = self.library.clone().finalize();
    }
}

/// A logged-in token. Login belongs to the whole process (PKCS#11 v2.40 §5.6), so it is held by one session that does nothing
/// else and lives as long as the token: closing the last session would log everybody out.
pub struct Token {
    module: Pkcs11,
    slot: Slot,
    label: String,
    profile: &'static Profile,
    pin: AuthPin,
    login: Mutex<Login>,
    /// One object is made or removed at a time.
    making: Mutex<()>,
    /// Of SoftHSM: nobody looks for a key while one is being made, which would fail half-way and leave what it has of it; nor while a
    /// session makes its copy, which has the key's CKA_ID first, and only then its own.
    looking: Mutex<()>,
}

struct Login {
    anchor: Session,
    refused: bool,
}

impl Token {
    /// Finds the token, logs in, and tests it. Once per process and module. Blocking.
    pub(super) fn open(module: &Pkcs11, options: &TokenOptions) -> Result<Self, TokenError> {
        let profile = match options.profile {
            Some(name) => Profile::named(name),
            None => {
                let library = module.get_library_info()?;
                Profile::of_library(library.manufacturer_id(), library.library_description())
            }
        };
        let failed = |error| Fault::on(profile.name, error);
        let (slot, label) = find(module, &options.selector)?;
        require_mechanisms(module, slot)?;
        tracing::info!(token = label, profile = %profile.name, tested = profile.tested, "HSM profile");

        let anchor = open_session(module, slot, profile).map_err(failed)?;
        log_in(profile, &anchor, &options.pin)?;
        let login = Mutex::new(Login { anchor, refused: false });
        let token = Self {
            module: module.clone(),
            slot,
            label,
            profile,
            pin: options.pin.clone(),
            login,
            making: Mutex::default(),
            looking: Mutex::default(),
        };
        self_test::run(profile, &token.module.open_rw_session(slot).map_err(failed)?)?;
        Ok(token)
    }

    /// How this kind of token differs from others.
    pub fn profile(&self) -> &'static Profile {
        self.profile
    }

    /// A failed call on this token.
    pub(super) fn fault(&self, error: Pkcs11Error) -> Fault {
        Fault::on(self.profile.name, error)
    }

    /// The token's label, for metrics and messages.
    pub fn label(&self) -> &str {
        &self.label
    }

    /// How many sessions serve it best if nobody says otherwise: as many as its profile says, if the token has room for them beside
    /// the one that holds the login and the one that makes keys.
    pub fn preferred_sessions(&self) -> usize {
        let limit = self.module.get_token_info(self.slot).map(|token| token.max_session_count());
        within(self.profile.sessions, limit.unwrap_or(Limit::Unavailable))
    }

    /// The token's objects that a session finds by a template.
    pub(super) fn find(&self, session: &Session, template: &[Attribute]) -> Result<Vec<ObjectHandle>, Fault> {
        let _one_at_a_time = self.nobody_looks();
        session.find_objects(template).map_err(|error| self.fault(error))
    }

    /// As [`Self::find`]. If it is one, it is the one to work with: the token's, or a copy that lives in the session, if the token's
    /// profile says so; as sensitive, as little extractable, and gone with the session. Such a copy outlives the token's object.
    pub(super) fn find_to_keep(&self, session: &Session, template: &[Attribute]) -> Result<Vec<ObjectHandle>, Fault> {
        let _one_at_a_time = self.nobody_looks();
        let mut found = session.find_objects(template).map_err(|error| self.fault(error))?;
        if self.profile.session_copy
            && let [object] = &mut found[..]
        {
            // Under another CKA_ID, so that no search takes the copy for the key.
            let copy = [Attribute::Token(false), Attribute::Id(b"session copy".to_vec())];
            *object = session.copy_object(*object, &copy).unwrap_or(*object);
        }
        Ok(found)
    }

    /// Until it is dropped, no other session looks for a key or makes its copy of one.
    pub(super) fn nobody_looks(&self) -> Option<MutexGuard<'_, ()>> {
        self.profile.session_copy.then(|| self.looking.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Opens a session for a worker. Logs in again only if the token has forgotten the login, and never after it refused the PIN.
    pub(super) fn session(&self) -> Result<Session, Fault> {
        let session = self.open_session()?;
        if logged_in(&session)? {
            return Ok(session);
        }
        let mut login = self.login.lock().unwrap_or_else(PoisonError::into_inner);
        let refusal = |code: String| Fault { class: Class::Credential, function: "C_Login".into(), code };
        if login.refused {
            return Err(refusal("the PIN was refused before; restart with the right one".into()));
        }
        if !logged_in(&session)? {
            let anchor = self.open_session()?;
            match log_in(self.profile, &anchor, &self.pin) {
                Ok(()) => login.anchor = anchor,
                Err(TokenError::Fault(fault)) => return Err(fault),
                Err(error) => {
                    login.refused = true;
                    return Err(refusal(error.to_string()));
                }
            }
        }
        Ok(session)
    }

    fn open_session(&self) -> Result<Session, Fault> {
        open_session(&self.module, self.slot, self.profile).map_err(|error| self.fault(error))
    }

    /// A session that may write to the token.
    pub(super) fn rw_session(&self) -> Result<Session, Fault> {
        self.module.open_rw_session(self.slot).map_err(|error| self.fault(error))
    }

    /// Whether the token itself answers: tells "no such key" from "no token" when a search finds nothing. Blocking.
    pub(super) fn is_present(&self) -> bool {
        self.module.get_token_info(self.slot).is_ok()
    }

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
        let _one_at_a_time = self.making.lock().unwrap_or_else(PoisonError::into_inner);
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

    /// Whether the token says that it wraps keys with a mechanism.
    pub(super) fn wraps_with(&self, mechanism: MechanismType) -> bool {
        self.module.get_mechanism_info(self.slot, mechanism).is_ok_and(|info| info.wrap())
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
        let _one_at_a_time = self.making.lock().unwrap_or_else(PoisonError::into_inner);
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

fn find(module: &Pkcs11, selector: &TokenSelector) -> Result<(Slot, String), TokenError> {
    let (mut tokens, mut silent) = (Vec::new(), Vec::new());
    for slot in module.get_slots_with_token()? {
        match module.get_token_info(slot) {
            Ok(info) if !info.token_initialized() => {}
            Ok(info) => {
                tokens.push((slot, info.label().trim_end().to_owned(), info.serial_number().trim_end().to_owned()));
            }
            // The trouble of a slot that may be none of ours.
            Err(error) => silent.push((slot, Fault::from(error))),
        }
    }
    // opencryptoki breaks the rules for descriptions, so that its tokens have no label to be chosen by; what else they lack is the
    // better reason, and one that stops the start.
    if tokens.is_empty() {
        for (slot, _) in silent.iter().filter(|(_, fault)| !fault.code.starts_with("CKR_")) {
            require_mechanisms(module, *slot)?;
        }
    }
    let shown = tokens.iter().map(|(_, label, serial)| format!("label '{label}' serial '{serial}'"));
    let shown = shown.chain(silent.iter().map(|(slot, fault)| format!("slot {slot} without a description ({fault})")));
    let found = match shown.collect::<Vec<_>>().join(", ") {
        none if none.is_empty() => "no initialised token".into(),
        found => found,
    };
    let wanted = match selector {
        TokenSelector::Label(label) => format!("label '{label}'"),
        TokenSelector::Serial(serial) => format!("serial '{serial}'"),
    };
    tokens.retain(|(_, label, serial)| match selector {
        TokenSelector::Label(wanted) => label == wanted,
        TokenSelector::Serial(wanted) => serial == wanted,
    });
    match tokens.len() {
        0 => Err(TokenError::NotFound { wanted, found }),
        1 => Ok((tokens[0].0, tokens.remove(0).1)),
        count => Err(TokenError::NotUnique { count, wanted, found }),
    }
}

fn require_mechanisms(module: &Pkcs11, slot: Slot) -> Result<(), TokenError> {
    let offered = module.get_mechanism_list(slot)?;
    for (needed, name) in [(MechanismType::AES_KEY_GEN, "CKM_AES_KEY_GEN"), (MechanismType::AES_GCM, "CKM_AES_GCM")] {
        if !offered.contains(&needed) {
            return Err(TokenError::Mechanism(name));
        }
    }
    Ok(())
}

/// As many workers' sessions as are wanted, if the token has room for them and two of ours, but for one at least.
fn within(wanted: usize, limit: Limit) -> usize {
    match limit {
        Limit::Max(most) => wanted.min(usize::try_from(most).unwrap_or(usize::MAX).saturating_sub(2)).max(1),
        Limit::Unavailable | Limit::Infinite => wanted,
    }
}

fn open_session(module: &Pkcs11, slot: Slot, profile: &Profile) -> cryptoki::error::Result<Session> {
    if profile.read_write_only { module.open_rw_session(slot) } else { module.open_ro_session(slot) }
}

fn log_in(profile: &Profile, session: &Session, pin: &AuthPin) -> Result<(), TokenError> {
    match session.login(UserType::User, Some(pin)) {
        Ok(()) | Err(Pkcs11Error::Pkcs11(RvError::UserAlreadyLoggedIn, _)) => Ok(()),
        Err(error) => {
            let fault = Fault::on(profile.name, error);
            Err(match fault.class {
                Class::Credential => TokenError::Pin { code: fault.code },
                _ => TokenError::Fault(fault),
            })
        }
    }
}

pub(super) fn logged_in(session: &Session) -> Result<bool, Fault> {
    use cryptoki::session::SessionState::{RoUser, RwUser};
    Ok(matches!(session.get_session_info()?.session_state(), RoUser | RwUser))
}

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

/// Makes a token in SoftHSM's configured directory: what `softhsm2-util --init-token` does, without PINs on a command line.
/// Blocking; leaves the module unloaded.
pub fn initialize_softhsm_token(
    module: &Path,
    label: &str,
    so_pin: &SecretString,
    pin: &SecretString,
) -> Result<(), TokenError> {
    let loaded = Module::load(module)?;
    loaded.initialized(|module| {
        let slots = module.get_all_slots()?;
        let none = || TokenError::NotFound { wanted: "a free slot".into(), found: "no slot".into() };
        let slot = *slots.last().ok_or_else(none)?;
        module.init_token(slot, so_pin, label)?;
        let session = module.open_rw_session(slot)?;
        session.login(UserType::So, Some(so_pin))?;
        session.init_pin(pin)?;
        session.logout()?;
        Ok(session.close()?)
    })?;
    Ok(loaded.library.finalize()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_with_few_sessions_is_asked_for_no_more_than_it_has() {
        assert_eq!(within(8, Limit::Infinite), 8);
        assert_eq!(within(8, Limit::Unavailable), 8);
        assert_eq!(within(8, Limit::Max(100)), 8);
        assert_eq!(within(8, Limit::Max(6)), 4);
        assert_eq!(within(8, Limit::Max(1)), 1);
    }
}
