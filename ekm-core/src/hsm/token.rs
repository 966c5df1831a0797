//! One token: found by label or serial, logged in once, proven before first use.

use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use cryptoki::context::{CInitializeArgs, CInitializeFlags, Pkcs11};
use cryptoki::error::{Error as Pkcs11Error, RvError};
use cryptoki::mechanism::MechanismType;
use cryptoki::object::{Attribute, ObjectHandle};
use cryptoki::session::{Session, UserType};
use cryptoki::slot::{Limit, Slot};
use cryptoki::types::AuthPin;
use secrecy::SecretString;

use super::fault::{Class, Fault};
use super::profile::{Profile, ProfileName};
use super::self_test;
use super::token_error::TokenError;

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

    /// Until it is dropped, no other key is made or removed.
    pub(super) fn one_at_a_time(&self) -> MutexGuard<'_, ()> {
        self.making.lock().unwrap_or_else(PoisonError::into_inner)
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

    /// Whether the token says that it wraps keys with a mechanism.
    pub(super) fn wraps_with(&self, mechanism: MechanismType) -> bool {
        self.module.get_mechanism_info(self.slot, mechanism).is_ok_and(|info| info.wrap())
    }

    /// Whether the token itself answers: tells "no such key" from "no token" when a search finds nothing. Blocking.
    pub(super) fn is_present(&self) -> bool {
        self.module.get_token_info(self.slot).is_ok()
    }
}

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
