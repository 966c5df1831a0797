//! What a PKCS#11 return code means for us: one table by (function, code).

use std::fmt;

use cryptoki::context::Function;
use cryptoki::error::{Error as Pkcs11Error, RvError};

/// A failed PKCS#11 call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// What to do about it.
    pub class: Class,
    /// The function that failed, such as `C_Decrypt`.
    pub function: String,
    /// Its return code, such as `CKR_DEVICE_ERROR`, or what went wrong besides.
    pub code: String,
}

/// What a return code asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// The caller sent a blob that this key did not make.
    Caller,
    /// Could be the caller's or the device's: ask the device with a known answer.
    /// SoftHSM says GENERAL_ERROR for a wrong tag, nShield FUNCTION_FAILED.
    Ambiguous,
    /// This session, or a handle in it, is no longer valid: open another one, and try once more.
    Session,
    /// The token has no room for more right now.
    Capacity,
    /// The token or the way to it is broken.
    Device,
    /// The PIN is wrong, locked, or expired: never try again by ourselves.
    Credential,
    /// The key or mechanism does not do what it should: configuration, or a lying device.
    Integrity,
    /// This key: it is not on this token, or twice, or with other material. The device is not to blame; another replica may have it.
    Key,
}

impl Class {
    const ALL: [Self; 8] = [
        Self::Caller,
        Self::Ambiguous,
        Self::Session,
        Self::Capacity,
        Self::Device,
        Self::Credential,
        Self::Integrity,
        Self::Key,
    ];

    /// The word between a worker and its frontend.
    pub fn name(self) -> &'static str {
        match self {
            Self::Caller => "caller",
            Self::Ambiguous => "ambiguous",
            Self::Session => "session",
            Self::Capacity => "capacity",
            Self::Device => "device",
            Self::Credential => "credential",
            Self::Integrity => "integrity",
            Self::Key => "key",
        }
    }

    /// The reverse of [`Self::name`].
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|class| class.name() == name)
    }
}

impl Fault {
    /// A fault that we found ourselves.
    pub fn integrity(function: &str, what: &str) -> Self {
        Self { class: Class::Integrity, function: function.into(), code: what.into() }
    }

    /// That this token cannot serve this key.
    pub fn key(what: &str) -> Self {
        Self { class: Class::Key, function: "C_FindObjects".into(), code: what.into() }
    }

    /// Whether the token refused a ciphertext: mostly the caller's fault.
    pub fn is_refusal(&self) -> bool {
        matches!(self.class, Class::Caller | Class::Ambiguous)
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let joint = if self.code.starts_with("CKR_") { " failed with" } else { ":" };
        write!(f, "{}{joint} {}", self.function, self.code)
    }
}

impl From<Pkcs11Error> for Fault {
    fn from(error: Pkcs11Error) -> Self {
        match error {
            Pkcs11Error::Pkcs11(code, function) => {
                Self { class: classify(function, &code), function: format!("C_{function:?}"), code: code_name(&code) }
            }
            // Conversions that failed because the module gave lengths or texts that cannot be.
            other => Self { class: Class::Device, function: "PKCS#11".into(), code: other.to_string() },
        }
    }
}

/// `CKR_…` as the specification spells it, from the library's own name for it.
fn code_name(code: &RvError) -> String {
    let variant = format!("{code:?}");
    let mut name = String::from("CKR");
    for character in variant.chars() {
        if character.is_ascii_uppercase() {
            name.push('_');
        }
        name.push(character.to_ascii_uppercase());
    }
    name
}

/// The table. PKCS#11 v2.40 §5.1 says what each code means; the comments say where tokens differ.
pub fn classify(function: Function, code: &RvError) -> Class {
    use RvError as R;
    let decrypting = matches!(function, Function::Decrypt | Function::DecryptFinal);
    match code {
        R::EncryptedDataInvalid | R::EncryptedDataLenRange if decrypting => Class::Caller,
        R::GeneralError | R::FunctionFailed | R::ArgumentsBad | R::DataInvalid | R::DataLenRange if decrypting => {
            Class::Ambiguous
        }
        R::SessionHandleInvalid
        | R::SessionClosed
        | R::UserNotLoggedIn
        | R::ObjectHandleInvalid
        | R::KeyHandleInvalid
        | R::OperationActive
        | R::OperationNotInitialized => Class::Session,
        R::SessionCount | R::DeviceMemory | R::HostMemory => Class::Capacity,
        R::PinIncorrect | R::PinInvalid | R::PinLenRange | R::PinExpired | R::PinLocked | R::UserPinNotInitialized => {
            Class::Credential
        }
        R::KeyFunctionNotPermitted
        | R::KeyTypeInconsistent
        | R::KeySizeRange
        | R::MechanismInvalid
        | R::MechanismParamInvalid => Class::Integrity,
        _ => Class::Device,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_callers_rubbish_is_never_taken_for_a_broken_device() {
        for code in [RvError::EncryptedDataInvalid, RvError::EncryptedDataLenRange] {
            assert_eq!(classify(Function::Decrypt, &code), Class::Caller);
        }
        for code in [RvError::GeneralError, RvError::FunctionFailed] {
            assert_eq!(classify(Function::Decrypt, &code), Class::Ambiguous);
            assert_eq!(classify(Function::Encrypt, &code), Class::Device);
        }
    }

    #[test]
    fn a_credential_error_is_in_a_class_of_its_own() {
        for code in [RvError::PinIncorrect, RvError::PinLocked, RvError::PinExpired] {
            assert_eq!(classify(Function::Login, &code), Class::Credential);
        }
    }

    #[test]
    fn a_fault_is_named_as_in_the_specification() {
        let fault = Fault::from(Pkcs11Error::Pkcs11(RvError::DeviceError, Function::Encrypt));
        assert_eq!(fault.to_string(), "C_Encrypt failed with CKR_DEVICE_ERROR");
    }
}
