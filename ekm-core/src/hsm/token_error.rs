//! Why a token cannot be used.

use cryptoki::error::Error as Pkcs11Error;

use super::fault::{Class, Fault};
use crate::blob::VersionId;

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
