//! Return codes by the names that the specification gives them.

use cryptoki_sys::*;
use serde::{Deserialize, Serialize};

/// A return code, written as its name, or as a hexadecimal number for a vendor's own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Code {
    name: String,
    pub(crate) value: CK_RV,
}

impl TryFrom<String> for Code {
    type Error = String;

    fn try_from(name: String) -> Result<Self, String> {
        let number = || CK_RV::from_str_radix(name.strip_prefix("0x")?, 16).ok();
        let known = CODES.iter().find(|(known, _)| *known == name).map(|(_, value)| *value);
        match known.or_else(number) {
            Some(value) => Ok(Self { name, value }),
            None => Err(format!("no return code is called '{name}'")),
        }
    }
}

impl From<Code> for String {
    fn from(code: Code) -> Self {
        code.name
    }
}

macro_rules! codes {
    ($($name:ident)*) => {
        const CODES: &[(&str, CK_RV)] = &[$((stringify!($name), $name)),*];
    };
}

// What a token answers to logins, sessions, objects, and encryption.
codes! {
    CKR_ARGUMENTS_BAD CKR_ATTRIBUTE_READ_ONLY CKR_ATTRIBUTE_VALUE_INVALID CKR_BUFFER_TOO_SMALL CKR_CANT_LOCK
    CKR_CRYPTOKI_ALREADY_INITIALIZED CKR_CRYPTOKI_NOT_INITIALIZED CKR_DATA_INVALID CKR_DATA_LEN_RANGE CKR_DEVICE_ERROR
    CKR_DEVICE_MEMORY CKR_DEVICE_REMOVED CKR_ENCRYPTED_DATA_INVALID CKR_ENCRYPTED_DATA_LEN_RANGE CKR_FUNCTION_CANCELED
    CKR_FUNCTION_FAILED CKR_FUNCTION_NOT_SUPPORTED CKR_FUNCTION_REJECTED CKR_GENERAL_ERROR CKR_HOST_MEMORY
    CKR_KEY_FUNCTION_NOT_PERMITTED CKR_KEY_HANDLE_INVALID CKR_KEY_SIZE_RANGE CKR_KEY_TYPE_INCONSISTENT
    CKR_MECHANISM_INVALID CKR_MECHANISM_PARAM_INVALID CKR_OBJECT_HANDLE_INVALID CKR_OPERATION_ACTIVE
    CKR_OPERATION_NOT_INITIALIZED CKR_PIN_EXPIRED CKR_PIN_INCORRECT CKR_PIN_INVALID CKR_PIN_LEN_RANGE CKR_PIN_LOCKED
    CKR_SESSION_CLOSED CKR_SESSION_COUNT CKR_SESSION_HANDLE_INVALID CKR_SLOT_ID_INVALID CKR_TEMPLATE_INCONSISTENT
    CKR_TOKEN_NOT_PRESENT CKR_TOKEN_NOT_RECOGNIZED CKR_TOKEN_WRITE_PROTECTED CKR_USER_ALREADY_LOGGED_IN
    CKR_USER_NOT_LOGGED_IN CKR_USER_PIN_NOT_INITIALIZED
}
