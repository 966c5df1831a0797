//! A failed PKCS#11 call, and what it asks for.

use std::fmt;

use cryptoki::error::{Error as Pkcs11Error, RvError};

use super::profile::ProfileName;
pub use super::return_codes::{Rule, TABLE, classify};

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
    /// The caller sent a blob that this key did not make. The caller is told so; nothing is repeated, and nobody else is to blame.
    Caller,
    /// Could be what the caller sent, or the device: ask the device with a known answer. If it answers right, it was the caller's.
    Ambiguous,
    /// This session, or a handle in it, is no longer valid, or the call was cut short: open another session, and try once more.
    Session,
    /// The token has no room for this now: too many sessions, no memory, or more data than it takes at once. Nothing is wrong with
    /// it; another one may take it.
    Capacity,
    /// The token or the way to it is broken: replace the session, go elsewhere with the request, test the token.
    Device,
    /// The login is refused, or may have been counted as refused: never try again by ourselves, or the token locks itself.
    Credential,
    /// The token does not do what it has to, or lies: it is not used until somebody has looked at it.
    Integrity,
    /// This key: not on this token, there twice, or with other attributes or material. It is skipped on this token; the others are
    /// served, and the device is not blamed.
    Key,
}

impl Class {
    /// As in the documentation.
    pub fn as_str(self) -> &'static str {
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
}

impl Fault {
    /// A failed call on a token of that vendor.
    pub fn on(vendor: ProfileName, error: Pkcs11Error) -> Self {
        match error {
            Pkcs11Error::Pkcs11(code, function) => Self {
                class: classify(vendor, function, &code),
                function: format!("C_{function:?}"),
                code: code_name(&code),
            },
            // Conversions that failed because the module gave lengths or texts that cannot be.
            other => Self { class: Class::Device, function: "PKCS#11".into(), code: other.to_string() },
        }
    }

    /// A fault of the token that we found ourselves.
    pub fn integrity(function: &str, what: &str) -> Self {
        Self { class: Class::Integrity, function: function.into(), code: what.into() }
    }

    /// A fault of one key that we found ourselves.
    pub fn key(function: &str, what: &str) -> Self {
        Self { class: Class::Key, function: function.into(), code: what.into() }
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

/// Where the vendor is not known, or does not matter.
impl From<Pkcs11Error> for Fault {
    fn from(error: Pkcs11Error) -> Self {
        Self::on(ProfileName::Generic, error)
    }
}

/// `CKR_…` as the specification spells it, from the library's own name for it. Codes without a name have their number.
pub(super) fn code_name(code: &RvError) -> String {
    match code {
        RvError::VendorDefined(number) | RvError::UnknownErrorCode(number) => return format!("CKR_0x{number:08X}"),
        _ => {}
    }
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

#[cfg(test)]
mod tests {
    use cryptoki::context::Function;

    use super::*;

    #[test]
    fn a_fault_is_named_as_in_the_specification() {
        let named = |code| Fault::from(Pkcs11Error::Pkcs11(code, Function::Encrypt)).to_string();
        assert_eq!(named(RvError::DeviceError), "C_Encrypt failed with CKR_DEVICE_ERROR");
        assert_eq!(named(RvError::SessionReadWriteSoExists), "C_Encrypt failed with CKR_SESSION_READ_WRITE_SO_EXISTS");
        assert_eq!(named(RvError::VendorDefined(0x8000_001f)), "C_Encrypt failed with CKR_0x8000001F");
    }

    #[test]
    fn a_fault_is_classed_by_its_vendor_if_that_is_known() {
        let locked = || Pkcs11Error::Pkcs11(RvError::VendorDefined(0x8000_0007), Function::GenerateKey);
        assert_eq!(Fault::on(ProfileName::Luna, locked()).class, Class::Credential);
        assert_eq!(Fault::from(locked()).class, Class::Device);
    }
}
