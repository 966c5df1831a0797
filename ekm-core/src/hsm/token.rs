//! One token: found by label or serial, logged in once, proven before first use.

use std::path::{Path, PathBuf};
use std::sync::Mutex;

use cryptoki::context::{CInitializeArgs, CInitializeFlags, Pkcs11};
use cryptoki::error::{Error as Pkcs11Error, RvError};
use cryptoki::mechanism::aead::GcmParams;
use cryptoki::mechanism::{Mechanism, MechanismType};
use cryptoki::object::{Attribute, AttributeType, KeyType, ObjectClass, ObjectHandle};
use cryptoki::session::{Session, UserType};
use cryptoki::slot::Slot;
use cryptoki::types::{AuthPin, Ulong};
use secrecy::SecretString;

use super::fault::{Class, Fault};
use crate::blob::VersionId;

/// Where the token is and how to log in.
pub struct TokenOptions {
    /// The vendor's PKCS#11 library.
    pub module: PathBuf,
    /// Which of the module's tokens.
    pub selector: TokenSelector,
    /// The user PIN. Used once per login, never logged.
    pub pin: SecretString,
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
    /// Any other failed call.
    #[error("{0}")]
    Fault(Fault),
}

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
            Self::NotFound { .. } => "hsm_token_not_found",
            Self::NotUnique { .. } => "hsm_token_not_unique",
            Self::Pin { .. } => "hsm_pin",
            Self::Mechanism(_) => "hsm_mechanism",
            Self::SelfTest(_) => "hsm_self_test",
            Self::Fault(_) => "hsm_start_fault",
        }
    }
}

/// A logged-in token. Login belongs to the whole process (PKCS#11 v2.40 §5.6), so it is held by one session that does nothing
/// else and lives as long as the token: closing the last session would log everybody out.
pub struct Token {
    module: Pkcs11,
    slot: Slot,
    label: String,
    is_softhsm: bool,
    pin: AuthPin,
    login: Mutex<Login>,
}

struct Login {
    anchor: Session,
    refused: bool,
}

impl Token {
    /// Loads the module, finds the token, logs in, and tests it. Once per process and module.
    pub fn open(options: TokenOptions) -> Result<Self, TokenError> {
        let module = load(&options.module)?;
        let manufacturer = module.get_library_info()?.manufacturer_id().to_owned();
        let (slot, label) = find(&module, &options.selector)?;
        require_mechanisms(&module, slot)?;

        let anchor = module.open_ro_session(slot)?;
        log_in(&anchor, &options.pin)?;
        let login = Mutex::new(Login { anchor, refused: false });
        let is_softhsm = manufacturer.starts_with("SoftHSM");
        let token = Self { module, slot, label, is_softhsm, pin: options.pin, login };
        token.self_test()?;
        Ok(token)
    }

    /// The token's label, for metrics and messages.
    pub fn label(&self) -> &str {
        &self.label
    }

    /// How many sessions serve it best if nobody says otherwise. SoftHSM has one lock around everything: measured, a second
    /// thread halves its throughput.
    pub fn preferred_sessions(&self) -> usize {
        if self.is_softhsm { 1 } else { 8 }
    }

    /// The object to work with. SoftHSM reads and locks a token object's file at every operation (25 of 40 µs, measured), so it
    /// works with a copy that lives in the session: as sensitive, as little extractable, and gone with the session. HSMs keep
    /// their objects in memory, and are asked for no copy.
    pub(super) fn usable(&self, session: &Session, object: ObjectHandle) -> ObjectHandle {
        if !self.is_softhsm {
            return object;
        }
        // Under another CKA_ID, so that no search takes the copy for the key.
        let copy = [Attribute::Token(false), Attribute::Id(b"session copy".to_vec())];
        session.copy_object(object, &copy).unwrap_or(object)
    }

    /// Opens a session for a worker. Logs in again only if the token has forgotten the login, and never after it refused the PIN.
    pub(super) fn session(&self) -> Result<Session, Fault> {
        let session = self.module.open_ro_session(self.slot)?;
        if logged_in(&session)? {
            return Ok(session);
        }
        let mut login = self.login.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if login.refused {
            let code = "the PIN was refused before; restart with the right one".into();
            return Err(Fault { class: Class::Credential, function: "C_Login".into(), code });
        }
        if !logged_in(&session)? {
            let anchor = self.module.open_ro_session(self.slot)?;
            if let Err(error) = log_in(&anchor, &self.pin) {
                login.refused = matches!(error, TokenError::Pin { .. });
                let code = error.to_string();
                return Err(Fault { class: Class::Credential, function: "C_Login".into(), code });
            }
            login.anchor = anchor;
        }
        Ok(session)
    }

    /// Whether the token itself answers: tells "no such key" from "no token" when a search finds nothing. Blocking.
    pub(super) fn is_present(&self) -> bool {
        self.module.get_token_info(self.slot).is_ok()
    }

    /// Makes an AES-256 key on the token: sensitive, not extractable, found again by CKA_ID. Blocking.
    pub fn generate_key(&self, id: VersionId, label: &str) -> Result<(), TokenError> {
        let session = self.module.open_rw_session(self.slot)?;
        let mut template = aes_template(true);
        template.push(Attribute::Id(id.to_bytes().to_vec()));
        template.push(Attribute::Label(label.as_bytes().to_vec()));
        let key = session.generate_key(&Mechanism::AesKeyGen, &template)?;
        require_guarded(&session, key)
    }

    /// Removes a key that was generated but never entered the catalog. Blocking.
    pub fn discard_key(&self, id: VersionId) -> Result<(), TokenError> {
        let session = self.module.open_rw_session(self.slot)?;
        for key in session.find_objects(&key_template(id))? {
            session.destroy_object(key)?;
        }
        Ok(())
    }

    /// Known answer, fresh nonces, honest tags: on session objects, so that nothing stays behind.
    fn self_test(&self) -> Result<(), TokenError> {
        let session = self.module.open_rw_session(self.slot)?;
        known_answer(&session)?;
        let key = session.generate_key(&Mechanism::AesKeyGen, &aes_template(false))?;
        let outcome = round_trip(&session, key);
        session.destroy_object(key)?;
        outcome
    }
}

fn load(path: &Path) -> Result<Pkcs11, TokenError> {
    let refused = |cause: String| TokenError::Module { module: path.display().to_string(), cause };
    let module = Pkcs11::new(path).map_err(|error| refused(error.to_string()))?;
    module
        .initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK))
        .map_err(|error| refused(error.to_string()))?;
    Ok(module)
}

fn find(module: &Pkcs11, selector: &TokenSelector) -> Result<(Slot, String), TokenError> {
    let mut tokens = Vec::new();
    for slot in module.get_slots_with_initialized_token()? {
        let info = module.get_token_info(slot)?;
        tokens.push((slot, info.label().trim_end().to_owned(), info.serial_number().trim_end().to_owned()));
    }
    let list = tokens.iter().map(|(_, label, serial)| format!("label '{label}' serial '{serial}'"));
    let found = if tokens.is_empty() { "no initialised token".into() } else { list.collect::<Vec<_>>().join(", ") };
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

fn log_in(session: &Session, pin: &AuthPin) -> Result<(), TokenError> {
    match session.login(UserType::User, Some(pin)) {
        Ok(()) | Err(Pkcs11Error::Pkcs11(RvError::UserAlreadyLoggedIn, _)) => Ok(()),
        Err(error) => {
            let fault = Fault::from(error);
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

fn aes_template(on_token: bool) -> Vec<Attribute> {
    vec![
        Attribute::Class(ObjectClass::SECRET_KEY),
        Attribute::KeyType(KeyType::AES),
        Attribute::ValueLen(Ulong::new(32)),
        Attribute::Token(on_token),
        Attribute::Private(true),
        Attribute::Sensitive(true),
        Attribute::Extractable(false),
        Attribute::Encrypt(true),
        Attribute::Decrypt(true),
    ]
}

/// Trust, but verify: the token must confirm what the template asked for. cryptoki leaves out attributes that a token does
/// not show, so absence is failure too.
fn require_guarded(session: &Session, key: ObjectHandle) -> Result<(), TokenError> {
    let asked = [
        AttributeType::Sensitive,
        AttributeType::AlwaysSensitive,
        AttributeType::NeverExtractable,
        AttributeType::Local,
    ];
    let shown = session.get_attributes(key, &asked)?;
    let wanted = [
        Attribute::Sensitive(true),
        Attribute::AlwaysSensitive(true),
        Attribute::NeverExtractable(true),
        Attribute::Local(true),
    ];
    if wanted.iter().all(|attribute| shown.contains(attribute)) {
        return Ok(());
    }
    session.destroy_object(key)?;
    Err(TokenError::SelfTest("a new key is not sensitive, never extractable, and made on the token".into()))
}

/// NIST's GCM test case 16 ("The Galois/Counter Mode of Operation", appendix B), on an imported session key. Tokens that
/// refuse to import keys (FIPS mode) are left to the round trip.
fn known_answer(session: &Session) -> Result<(), TokenError> {
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
    let Ok(key) = session.create_object(&template) else {
        tracing::info!("the token does not import keys; its known-answer test is a round trip only");
        return Ok(());
    };
    let mut iv = IV;
    let mechanism = Mechanism::AesGcm(GcmParams::new(&mut iv, AAD, Ulong::new(128))?);
    let answer = session.encrypt(&mechanism, key, PLAINTEXT);
    session.destroy_object(key)?;
    // A token that draws the IV itself cannot give the known answer, and says so in the IV.
    if answer? != CIPHERTEXT && iv == IV {
        return Err(TokenError::SelfTest("AES-256-GCM gives a wrong answer to NIST's test case 16".into()));
    }
    Ok(())
}

/// Encrypts twice, decrypts, and checks that a flipped bit is refused and costs nothing but that one call.
fn round_trip(session: &Session, key: ObjectHandle) -> Result<(), TokenError> {
    let failed = |what: &str| Err(TokenError::SelfTest(what.into()));
    let (aad, text) = (b"ekm self-test", [0x5a; 32]);
    let (iv, ciphertext) = super::session::encrypt(session, key, aad, &text)?;
    let (second_iv, second) = super::session::encrypt(session, key, aad, &text)?;
    if iv == second_iv || ciphertext == second {
        return failed("it encrypts the same text twice to the same result");
    }
    if super::session::decrypt(session, key, iv, aad, &ciphertext)?.as_bytes() != text {
        return failed("it does not decrypt what it encrypted");
    }
    let mut changed = ciphertext.clone();
    changed[0] ^= 1;
    if super::session::decrypt(session, key, iv, aad, &changed).is_ok() {
        return failed("it decrypts a changed ciphertext");
    }
    if super::session::decrypt(session, key, iv, aad, &ciphertext)?.as_bytes() != text {
        return failed("it no longer decrypts after a refused ciphertext");
    }
    Ok(())
}

/// Makes a token in SoftHSM's configured directory: what `softhsm2-util --init-token` does, without PINs on a command line.
/// Blocking; leaves the module unloaded.
pub fn initialize_softhsm_token(
    module: &Path,
    label: &str,
    so_pin: &SecretString,
    pin: &SecretString,
) -> Result<(), TokenError> {
    let module = load(module)?;
    let slots = module.get_all_slots()?;
    let slot = *slots.last().ok_or(TokenError::NotFound { wanted: "a free slot".into(), found: "no slot".into() })?;
    module.init_token(slot, so_pin, label)?;
    let session = module.open_rw_session(slot)?;
    session.login(UserType::So, Some(so_pin))?;
    session.init_pin(pin)?;
    session.logout()?;
    session.close()?;
    module.finalize()?;
    Ok(())
}
