//! The functions of PKCS#11 v2.40: each goes through [`call`] and on to the real module.
#![expect(unsafe_code, reason = "this is the C interface: pointers come from the caller and go to the real module")]
#![expect(non_snake_case, reason = "named as in the specification")]

use cryptoki_sys::*;
use serde::{Deserialize, Serialize};

use crate::shim::{Shim, call, shim};

type Session = CK_SESSION_HANDLE;
type Slot = CK_SLOT_ID;
type Object = CK_OBJECT_HANDLE;
type Objects = *mut CK_OBJECT_HANDLE;
type Mechanism = *mut CK_MECHANISM;
type Template = *mut CK_ATTRIBUTE;
type Bytes = *mut CK_BYTE;
type Length = CK_ULONG;
type Lengths = *mut CK_ULONG;
type Anything = *mut std::ffi::c_void;

macro_rules! functions {
    ($($name:ident)*) => {
        /// A function of PKCS#11.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
        #[expect(missing_docs, non_camel_case_types, reason = "named as in the specification")]
        pub enum Function { $($name),* }

        impl Function {
            /// All of them, in the order of the specification.
            pub const ALL: &[Self] = &[$(Self::$name),*];
        }

        /// What C_GetFunctionList gives.
        pub(crate) fn list(version: CK_VERSION) -> CK_FUNCTION_LIST {
            CK_FUNCTION_LIST { version, $($name: Some($name)),* }
        }
    };
}

functions! {
    C_Initialize C_Finalize C_GetInfo C_GetFunctionList C_GetSlotList C_GetSlotInfo C_GetTokenInfo C_GetMechanismList
    C_GetMechanismInfo C_InitToken C_InitPIN C_SetPIN C_OpenSession C_CloseSession C_CloseAllSessions C_GetSessionInfo
    C_GetOperationState C_SetOperationState C_Login C_Logout C_CreateObject C_CopyObject C_DestroyObject
    C_GetObjectSize C_GetAttributeValue C_SetAttributeValue C_FindObjectsInit C_FindObjects C_FindObjectsFinal
    C_EncryptInit C_Encrypt C_EncryptUpdate C_EncryptFinal C_DecryptInit C_Decrypt C_DecryptUpdate C_DecryptFinal
    C_DigestInit C_Digest C_DigestUpdate C_DigestKey C_DigestFinal C_SignInit C_Sign C_SignUpdate C_SignFinal
    C_SignRecoverInit C_SignRecover C_VerifyInit C_Verify C_VerifyUpdate C_VerifyFinal C_VerifyRecoverInit
    C_VerifyRecover C_DigestEncryptUpdate C_DecryptDigestUpdate C_SignEncryptUpdate C_DecryptVerifyUpdate
    C_GenerateKey C_GenerateKeyPair C_WrapKey C_UnwrapKey C_DeriveKey C_SeedRandom C_GenerateRandom
    C_GetFunctionStatus C_CancelFunction C_WaitForSlotEvent
}

impl Function {
    /// By its name; an unknown one is a mistake in the test, and panics.
    pub fn named(name: &str) -> Self {
        let found = Self::ALL.iter().find(|function| format!("{function:?}") == name);
        *found.unwrap_or_else(|| panic!("no function of PKCS#11 v2.40 is called '{name}'"))
    }

    /// Whether it ends what C_EncryptInit, C_DecryptInit or C_SignInit began, also when it fails.
    pub(crate) fn ends_an_operation(self) -> bool {
        matches!(self, Self::C_Encrypt | Self::C_Decrypt | Self::C_Sign)
    }

    pub(crate) fn is_cryptographic(self) -> bool {
        use Function::*;
        matches!(self, C_Encrypt | C_Decrypt | C_Sign | C_Verify | C_WrapKey | C_UnwrapKey | C_DeriveKey)
            || matches!(self, C_GenerateKey | C_GenerateKeyPair)
    }

    /// Whether it takes a handle as an object's, and not as a key's to work with.
    pub(crate) fn takes_an_object(self) -> bool {
        use Function::*;
        matches!(self, C_CopyObject | C_DestroyObject | C_GetObjectSize | C_GetAttributeValue | C_SetAttributeValue)
    }

    /// How it fails when there is no token.
    pub(crate) fn without_token(self) -> Option<CK_RV> {
        use Function::*;
        match self {
            C_Initialize | C_Finalize | C_GetInfo | C_GetFunctionList | C_GetSlotList | C_GetSlotInfo
            | C_WaitForSlotEvent => None,
            C_GetTokenInfo | C_GetMechanismList | C_GetMechanismInfo | C_InitToken | C_OpenSession
            | C_CloseAllSessions => Some(CKR_TOKEN_NOT_PRESENT),
            _ => Some(CKR_DEVICE_REMOVED),
        }
    }
}

/// Calls the real module's function, which it may not have.
macro_rules! real {
    ($shim:ident.$name:ident($($argument:expr),*)) => {
        match $shim.real.$name {
            // SAFETY: the arguments are the caller's, who keeps to PKCS#11.
            Some(real) => unsafe { real($($argument),*) },
            None => CKR_FUNCTION_NOT_SUPPORTED,
        }
    };
}

/// Functions of the same shape: their arguments, which of these are handles of objects, and where new handles go.
macro_rules! forward {
    ($($arguments:tt $in:tt -> $out:tt: $($name:ident)+;)*) => {
        $($(forward! { @ $name $arguments $in $out })+)*
    };
    (@ $name:ident ($($argument:ident: $type:ty),*) [$($in:ident),*] [$($out:ident),*]) => {
        unsafe extern "C" fn $name($($argument: $type),*) -> CK_RV {
            call(Function::$name, |shim, _| {
                $(let $in = shim.handle_in(Function::$name, $in)?;)*
                let result = real!(shim.$name($($argument),*));
                if result == CKR_OK {
                    // SAFETY: the real module has just written a handle there.
                    $(unsafe { *$out = shim.handle_out(*$out) };)*
                }
                Ok(result)
            })
        }
    };
}

forward! {
    (arguments: Anything) [] -> []: C_Initialize;
    (info: *mut CK_INFO) [] -> []: C_GetInfo;
    (flags: CK_FLAGS, slot: *mut Slot, reserved: Anything) [] -> []: C_WaitForSlotEvent;

    (slot: Slot, list: *mut CK_MECHANISM_TYPE, count: Lengths) [] -> []: C_GetMechanismList;
    (slot: Slot, mechanism: CK_MECHANISM_TYPE, info: *mut CK_MECHANISM_INFO) [] -> []: C_GetMechanismInfo;
    (slot: Slot, pin: Bytes, length: Length, label: Bytes) [] -> []: C_InitToken;

    (session: Session, pin: Bytes, length: Length) [] -> []: C_InitPIN;
    (session: Session, old: Bytes, old_length: Length, new: Bytes, new_length: Length) [] -> []: C_SetPIN;
    (session: Session, info: *mut CK_SESSION_INFO) [] -> []: C_GetSessionInfo;
    (session: Session, state: Bytes, length: Length, encrypting: Object, authenticating: Object)
        [encrypting, authenticating] -> []: C_SetOperationState;
    (session: Session) [] -> []: C_Logout C_FindObjectsFinal C_GetFunctionStatus C_CancelFunction;

    (session: Session, template: Template, count: Length, new: Objects) [] -> [new]: C_CreateObject;
    (session: Session, object: Object, template: Template, count: Length, new: Objects) [object] -> [new]: C_CopyObject;
    (session: Session, object: Object) [object] -> []: C_DestroyObject C_DigestKey;
    (session: Session, object: Object, size: Lengths) [object] -> []: C_GetObjectSize;
    (session: Session, object: Object, template: Template, count: Length) [object] -> []:
        C_GetAttributeValue C_SetAttributeValue;
    (session: Session, template: Template, count: Length) [] -> []: C_FindObjectsInit;

    (session: Session, mechanism: Mechanism, key: Object) [key] -> []:
        C_EncryptInit C_DecryptInit C_SignInit C_SignRecoverInit C_VerifyInit C_VerifyRecoverInit;
    (session: Session, mechanism: Mechanism) [] -> []: C_DigestInit;
    (session: Session, input: Bytes, length: Length, output: Bytes, output_length: Lengths) [] -> []:
        C_EncryptUpdate C_DecryptUpdate C_Digest C_SignRecover C_VerifyRecover C_DigestEncryptUpdate
        C_DecryptDigestUpdate C_SignEncryptUpdate C_DecryptVerifyUpdate;
    (session: Session, input: Bytes, length: Length) [] -> []:
        C_DigestUpdate C_SignUpdate C_VerifyUpdate C_VerifyFinal C_SeedRandom C_GenerateRandom;
    (session: Session, output: Bytes, length: Lengths) [] -> []:
        C_GetOperationState C_EncryptFinal C_DecryptFinal C_DigestFinal C_SignFinal;
    (session: Session, input: Bytes, length: Length, signature: Bytes, signature_length: Length) [] -> []: C_Verify;

    (session: Session, mechanism: Mechanism, template: Template, count: Length, key: Objects)
        [] -> [key]: C_GenerateKey;
    (session: Session, mechanism: Mechanism, public_template: Template, public_count: Length,
        private_template: Template, private_count: Length, public: Objects, private: Objects)
        [] -> [public, private]: C_GenerateKeyPair;
    (session: Session, mechanism: Mechanism, wrapping: Object, key: Object, output: Bytes, length: Lengths)
        [wrapping, key] -> []: C_WrapKey;
    (session: Session, mechanism: Mechanism, unwrapping: Object, input: Bytes, length: Length, template: Template,
        count: Length, key: Objects) [unwrapping] -> [key]: C_UnwrapKey;
    (session: Session, mechanism: Mechanism, base: Object, template: Template, count: Length, key: Objects)
        [base] -> [key]: C_DeriveKey;
}

/// The one function that a module exports; an application finds the others through it.
///
/// # Safety
///
/// `list` points to where a pointer may be written, or is NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn C_GetFunctionList(list: *mut *mut CK_FUNCTION_LIST) -> CK_RV {
    match shim() {
        Ok(_) if list.is_null() => CKR_ARGUMENTS_BAD,
        Ok(shim) => {
            // SAFETY: it is not NULL. Applications read the table and do not write to it.
            unsafe { *list = (&raw const shim.table).cast_mut() };
            CKR_OK
        }
        Err(_) => CKR_GENERAL_ERROR,
    }
}

unsafe extern "C" fn C_Finalize(reserved: Anything) -> CK_RV {
    call(Function::C_Finalize, |shim, _| {
        let result = real!(shim.C_Finalize(reserved));
        if result == CKR_OK {
            shim.sessions().clear();
        }
        Ok(result)
    })
}

/// A token that was pulled is in no list of slots with a token.
unsafe extern "C" fn C_GetSlotList(with_token: CK_BBOOL, slots: *mut Slot, count: Lengths) -> CK_RV {
    call(Function::C_GetSlotList, |shim, _| {
        if with_token == CK_TRUE && !count.is_null() && shim.is_removed() {
            // SAFETY: it is not NULL, and for one number.
            unsafe { *count = 0 };
            return Ok(CKR_OK);
        }
        Ok(real!(shim.C_GetSlotList(with_token, slots, count)))
    })
}

unsafe extern "C" fn C_GetSlotInfo(slot: Slot, info: *mut CK_SLOT_INFO) -> CK_RV {
    call(Function::C_GetSlotInfo, |shim, _| {
        let result = real!(shim.C_GetSlotInfo(slot, info));
        if result == CKR_OK && shim.is_removed() {
            // SAFETY: the real module has just written there.
            unsafe { (*info).flags &= !CKF_TOKEN_PRESENT };
        }
        Ok(result)
    })
}

unsafe extern "C" fn C_GetTokenInfo(slot: Slot, info: *mut CK_TOKEN_INFO) -> CK_RV {
    call(Function::C_GetTokenInfo, |shim, _| {
        let result = real!(shim.C_GetTokenInfo(slot, info));
        if let (CKR_OK, Some(limit)) = (result, shim.session_limit()) {
            // SAFETY: the real module has just written there.
            let info = unsafe { &mut *info };
            (info.ulMaxSessionCount, info.ulMaxRwSessionCount) = (limit as CK_ULONG, limit as CK_ULONG);
        }
        Ok(result)
    })
}

unsafe extern "C" fn C_OpenSession(
    slot: Slot,
    flags: CK_FLAGS,
    application: Anything,
    notify: CK_NOTIFY,
    session: *mut Session,
) -> CK_RV {
    call(Function::C_OpenSession, |shim, _| {
        let limit = shim.session_limit();
        let mut sessions = shim.sessions(); // held, so that no two calls take the last one
        if limit.is_some_and(|limit| sessions.len() >= limit) {
            return Err(CKR_SESSION_COUNT);
        }
        let result = real!(shim.C_OpenSession(slot, flags, application, notify, session));
        if result == CKR_OK {
            // SAFETY: the real module has just written there.
            sessions.insert(unsafe { *session }, slot);
        }
        Ok(result)
    })
}

unsafe extern "C" fn C_CloseSession(session: Session) -> CK_RV {
    call(Function::C_CloseSession, |shim, _| {
        let mut sessions = shim.sessions(); // held, because another thread may get the same number next
        let result = real!(shim.C_CloseSession(session));
        if result == CKR_OK {
            sessions.remove(&session);
        }
        Ok(result)
    })
}

unsafe extern "C" fn C_CloseAllSessions(slot: Slot) -> CK_RV {
    call(Function::C_CloseAllSessions, |shim, _| {
        let mut sessions = shim.sessions();
        let result = real!(shim.C_CloseAllSessions(slot));
        if result == CKR_OK {
            sessions.retain(|_, its_slot| *its_slot != slot);
        }
        Ok(result)
    })
}

unsafe extern "C" fn C_Login(session: Session, user: CK_USER_TYPE, pin: Bytes, length: Length) -> CK_RV {
    call(Function::C_Login, |shim, _| {
        if shim.pin_limit().is_some_and(|limit| shim.counts.refused_pins() >= limit) {
            return Err(CKR_PIN_LOCKED);
        }
        let result = real!(shim.C_Login(session, user, pin, length));
        if result == CKR_PIN_INCORRECT {
            shim.counts.refuse_pin();
        }
        Ok(result)
    })
}

unsafe extern "C" fn C_FindObjects(session: Session, objects: Objects, room: Length, found: Lengths) -> CK_RV {
    call(Function::C_FindObjects, |shim, _| {
        let result = real!(shim.C_FindObjects(session, objects, room, found));
        if result == CKR_OK {
            // SAFETY: the real module has just written so many handles there.
            let handles = unsafe { std::slice::from_raw_parts_mut(objects, *found as usize) };
            handles.iter_mut().for_each(|handle| *handle = shim.handle_out(*handle));
        }
        Ok(result)
    })
}

/// Without room for the output it is a question about its length.
macro_rules! encryption {
    ($($name:ident)*) => {$(
        unsafe extern "C" fn $name(
            session: Session,
            input: Bytes,
            length: Length,
            output: Bytes,
            output_length: Lengths,
        ) -> CK_RV {
            let real = |shim: &Shim| real!(shim.$name(session, input, length, output, output_length));
            if output.is_null() {
                return shim().map_or(CKR_GENERAL_ERROR, real);
            }
            call(Function::$name, |shim, verdict| {
                let result = real(shim);
                // SAFETY: the real module has just written there, and says how much.
                unsafe {
                    if result == CKR_OK && verdict.flip_bit && *output_length > 0 {
                        *output ^= 1;
                    }
                }
                Ok(result)
            })
        }
    )*};
}

encryption! { C_Encrypt C_Decrypt C_Sign }
