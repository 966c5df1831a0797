//! What each PKCS#11 return code means for us: one table by vendor, function and code. docs/hsm.md shows it to operators.

use std::mem::discriminant;

use cryptoki::context::Function::{
    self, Decrypt, DecryptInit, Encrypt, EncryptInit, GetAttributeValue, Login, SignInit, UnwrapKey, WrapKey,
};
use cryptoki::error::RvError::{self, *};

use super::fault::Class;
use super::profile::ProfileName;

/// One line of the table.
#[derive(Debug)]
pub struct Rule {
    /// The vendor that it is about; `None`: all.
    pub vendor: Option<ProfileName>,
    /// The functions that it is about; none: all.
    pub functions: &'static [Function],
    /// The codes that it is about; none: all, those of vendors and unknown ones too.
    pub codes: &'static [RvError],
    /// What they mean.
    pub class: Class,
    /// Why.
    pub why: &'static str,
    /// Whose word that is.
    pub source: &'static str,
}

impl Rule {
    fn fits(&self, vendor: ProfileName, function: Function, code: &RvError) -> bool {
        // cryptoki's functions cannot be compared otherwise.
        let same = |one: &Function| discriminant(one) == discriminant(&function);
        self.vendor.is_none_or(|named| named == vendor)
            && (self.functions.is_empty() || self.functions.iter().any(same))
            && (self.codes.is_empty() || self.codes.contains(code))
    }
}

/// The first rule that fits decides. The last one fits everything.
pub fn classify(vendor: ProfileName, function: Function, code: &RvError) -> Class {
    TABLE.iter().find(|rule| rule.fits(vendor, function, code)).map_or(Class::Device, |rule| rule.class)
}

const ANY: &[Function] = &[];

/// Codes of a vendor's own begin at CKR_VENDOR_DEFINED.
const fn own(number: std::ffi::c_ulong) -> RvError {
    VendorDefined(0x8000_0000 + number)
}

/// The table. What a vendor says in its own way comes before what the specification says.
pub static TABLE: &[Rule] = &[
    Rule {
        vendor: Some(ProfileName::Kryoptic),
        functions: &[EncryptInit, DecryptInit, SignInit],
        codes: &[GeneralError],
        class: Class::Session,
        why: "the login is gone",
        source: "our tests",
    },
    Rule {
        vendor: Some(ProfileName::CloudHsm),
        functions: &[GetAttributeValue],
        codes: &[DeviceError],
        class: Class::Capacity,
        why: "too many calls at once",
        source: "AWS, CloudHSM User Guide, Known issues",
    },
    Rule {
        vendor: Some(ProfileName::Luna),
        functions: ANY,
        // CKR_USER_LOCKED_OUT, CKR_CHALLENGE_INCORRECT
        codes: &[own(0x07), own(0x67)],
        class: Class::Credential,
        why: "the user is locked out, or the challenge secret is wrong",
        source: "Thales, cryptoki_v2.h",
    },
    Rule {
        vendor: Some(ProfileName::Luna),
        functions: ANY,
        // CKR_MAX_OBJECT_COUNT_EXCEEDED, CKR_HSM_STORAGE_FULL, CKR_CONTAINER_OBJECT_STORAGE_FULL, CKR_LICENSE_CAPACITY_EXCEEDED
        codes: &[own(0x1b), own(0x2a), own(0x2c), own(0x31)],
        class: Class::Capacity,
        why: "the partition or the HSM is full",
        source: "Thales, cryptoki_v2.h",
    },
    Rule {
        vendor: Some(ProfileName::Luna),
        functions: ANY,
        // CKR_UNABLE_TO_CONNECT, CKR_PARTITION_DISABLED, CKR_SP_TIMEOUT, CKR_TIMEOUT, CKR_MTK_ZEROIZED, CKR_DEVICE_TIMEOUT,
        // CKR_HSM_TAMPERED, CKR_HSM_RESTART_REQUIRED
        codes: &[own(0x1f), own(0x20), own(0x23), own(0x24), own(0x26), own(0x2b), own(0x76), own(0x8d)],
        class: Class::Device,
        why: "no connection, a time-out, or an HSM that is disabled, tampered with, or waits for a restart",
        source: "Thales, cryptoki_v2.h",
    },
    Rule {
        vendor: Some(ProfileName::Luna),
        functions: ANY,
        // CKR_KEY_NOT_ACTIVE
        codes: &[own(0x136)],
        class: Class::Key,
        why: "the key is outside its time of validity",
        source: "Thales, cryptoki_v2.h",
    },
    Rule {
        vendor: Some(ProfileName::NShield),
        functions: ANY,
        // CKR_FIPS_FUNCTION_NOT_SUPPORTED, CKR_FIPS_MECHANISM_INVALID, CKR_FIPS_TEMPLATE_INCONSISTENT, CKR_FIPS_TOKEN_NOT_PRESENT
        codes: &[own(0x54), own(0x70), own(0xd1), own(0xe0)],
        class: Class::Integrity,
        why: "FIPS mode does not allow it, or not without a card in the reader (CKR_0x800000E0)",
        source: "Entrust, pkcs11extra.h",
    },
    Rule {
        vendor: None,
        functions: ANY,
        codes: &[
            PinIncorrect,
            PinInvalid,
            PinLenRange,
            PinExpired,
            PinLocked,
            PinTooWeak,
            UserPinNotInitialized,
            NewPinMode,
            NextOtp,
        ],
        class: Class::Credential,
        why: "the PIN is wrong, locked, expired, or not enough",
        source: "PKCS#11 v2.40 §5.1.6",
    },
    Rule {
        vendor: None,
        functions: ANY,
        codes: &[
            SessionHandleInvalid,
            SessionClosed,
            UserNotLoggedIn,
            ObjectHandleInvalid,
            KeyHandleInvalid,
            WrappingKeyHandleInvalid,
            UnwrappingKeyHandleInvalid,
            OperationActive,
            OperationNotInitialized,
        ],
        class: Class::Session,
        why: "the session, its login, a handle in it, or its order of calls is lost",
        source: "PKCS#11 v2.40 §5.1.2, §5.1.6",
    },
    Rule {
        vendor: None,
        functions: &[Login],
        codes: &[FunctionCanceled, Cancel],
        class: Class::Credential,
        why: "somebody has cancelled the login at the HSM",
        source: "PKCS#11 v2.40 §5.1.6",
    },
    Rule {
        vendor: None,
        functions: ANY,
        codes: &[FunctionCanceled, Cancel, FunctionNotParallel],
        class: Class::Session,
        why: "the library stopped the call half-way",
        source: "PKCS#11 v2.40 §5.1.4, §5.1.6",
    },
    Rule {
        vendor: None,
        functions: ANY,
        codes: &[SessionCount, DeviceMemory, HostMemory],
        class: Class::Capacity,
        why: "too many sessions, or no memory, on the token or here",
        source: "PKCS#11 v2.40 §5.1.1, §5.1.3",
    },
    Rule {
        vendor: None,
        functions: ANY,
        codes: &[DeviceError, DeviceRemoved, TokenNotPresent, TokenNotRecognized, SlotIdInvalid],
        class: Class::Device,
        why: "the token, its slot, or the way to it is broken or gone",
        source: "PKCS#11 v2.40 §5.1.2, §5.1.3",
    },
    Rule {
        vendor: None,
        functions: ANY,
        codes: &[CryptokiNotInitialized, LibraryLoadFailed],
        class: Class::Device,
        why: "the library was finalised under us, or misses a part; it has to be initialised again",
        source: "PKCS#11 v2.40 §5.1.6",
    },
    Rule {
        vendor: None,
        functions: &[Login],
        codes: &[UserTooManyTypes],
        class: Class::Capacity,
        why: "another program has logged somebody else in; no PIN was checked",
        source: "PKCS#11 v2.40 §5.1.6",
    },
    Rule {
        vendor: None,
        functions: &[Login],
        codes: &[UserAnotherAlreadyLoggedIn, UserTypeInvalid, SessionReadOnlyExists],
        class: Class::Integrity,
        why: "this process is logged in as somebody else, or the token has no such user; no PIN was checked",
        source: "PKCS#11 v2.40 §5.1.6",
    },
    Rule {
        vendor: None,
        functions: &[Login],
        codes: &[GeneralError, FunctionFailed],
        class: Class::Device,
        why: "how libraries say that they do not reach their HSM; a wrong PIN has codes of its own",
        source: "PKCS#11 v2.40 §5.1.1",
    },
    Rule {
        vendor: None,
        functions: &[Login],
        codes: &[],
        class: Class::Credential,
        why: "it may have been counted as a wrong PIN: AWS CloudHSM says CKR_ARGUMENTS_BAD to a PIN that is not user:password",
        source: "our caution; reported for AWS CloudHSM",
    },
    Rule {
        vendor: None,
        functions: ANY,
        codes: &[
            KeyFunctionNotPermitted,
            KeyTypeInconsistent,
            KeySizeRange,
            WrappingKeySizeRange,
            WrappingKeyTypeInconsistent,
            UnwrappingKeySizeRange,
            UnwrappingKeyTypeInconsistent,
        ],
        class: Class::Key,
        why: "the object with this CKA_ID is not a key for what it is asked to do",
        source: "PKCS#11 v2.40 §5.1.6",
    },
    Rule {
        vendor: None,
        functions: &[WrapKey],
        codes: &[KeyUnextractable, KeyNotWrappable],
        class: Class::Key,
        why: "the key must not leave the token, or not under this wrapping key",
        source: "PKCS#11 v2.40 §5.1.6",
    },
    Rule {
        vendor: None,
        functions: &[UnwrapKey],
        codes: &[
            WrappedKeyInvalid,
            WrappedKeyLenRange,
            EncryptedDataInvalid,
            EncryptedDataLenRange,
            DataInvalid,
            DataLenRange,
        ],
        class: Class::Key,
        why: "what was to be unwrapped was not wrapped by this key",
        source: "PKCS#11 v2.40 §5.1.6",
    },
    Rule {
        vendor: None,
        functions: &[Decrypt],
        codes: &[EncryptedDataInvalid, EncryptedDataLenRange],
        class: Class::Caller,
        why: "the blob was not made by this key, or was changed. Kryoptic says so",
        source: "PKCS#11 v2.40 §5.1.6; our tests",
    },
    Rule {
        vendor: None,
        functions: &[Encrypt],
        codes: &[DataInvalid, DataLenRange],
        class: Class::Capacity,
        why: "more plaintext than the token takes at once",
        source: "PKCS#11 v2.40 §5.1.6",
    },
    Rule {
        vendor: None,
        functions: &[EncryptInit, DecryptInit, Encrypt, Decrypt],
        codes: &[MechanismParamInvalid, ArgumentsBad],
        class: Class::Ambiguous,
        why: "the parameters hold the caller's additional data, which the token may find too long",
        source: "our caution",
    },
    Rule {
        vendor: None,
        functions: &[SignInit],
        codes: &[
            MechanismInvalid,
            MechanismParamInvalid,
            FunctionNotSupported,
            CurveNotSupported,
            DomainParamsInvalid,
            ActionProhibited,
        ],
        class: Class::Key,
        why: "the token does not make this kind of signature, or its policy forbids it; it may do all else",
        source: "PKCS#11 v2.40 §5.1.6",
    },
    Rule {
        vendor: None,
        functions: ANY,
        codes: &[
            MechanismInvalid,
            MechanismParamInvalid,
            FunctionNotSupported,
            CurveNotSupported,
            FunctionRejected,
            ActionProhibited,
            AttributeReadOnly,
            AttributeSensitive,
            AttributeTypeInvalid,
            AttributeValueInvalid,
            DomainParamsInvalid,
            InformationSensitive,
            TemplateIncomplete,
            TemplateInconsistent,
        ],
        class: Class::Integrity,
        why: "the token does not do what we need, or its policy forbids it",
        source: "PKCS#11 v2.40 §5.1.6",
    },
    Rule {
        vendor: None,
        functions: ANY,
        codes: &[SessionReadOnly, SessionParallelNotSupported, SessionReadWriteSoExists, TokenWriteProtected],
        class: Class::Integrity,
        why: "the token, or how it is logged in to, does not allow this kind of session",
        source: "PKCS#11 v2.40 §5.1.6",
    },
    Rule {
        vendor: None,
        functions: ANY,
        codes: &[FipsSelfTestFailed],
        class: Class::Integrity,
        why: "the token has failed its own test",
        source: "PKCS#11 v2.40 §5.1.6",
    },
    Rule {
        vendor: None,
        functions: &[Decrypt],
        codes: &[],
        class: Class::Ambiguous,
        why: "a wrong tag is CKR_GENERAL_ERROR for SoftHSM, CKR_FUNCTION_FAILED for nShield, and who knows what for others",
        source: "our tests for SoftHSM, reported for nShield",
    },
    Rule {
        vendor: None,
        functions: ANY,
        codes: &[],
        class: Class::Device,
        why: "everything else, CKR_GENERAL_ERROR and CKR_FUNCTION_FAILED above all, and codes that nobody knows",
        source: "PKCS#11 v2.40 §5.1.1",
    },
];

#[cfg(test)]
mod tests;
