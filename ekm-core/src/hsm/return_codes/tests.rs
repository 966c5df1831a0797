//! The table as a whole, its most important promises, and the operators' guide that shows it.

use std::fmt::Write;

use cryptoki::error::Rv;

use super::*;
use crate::hsm::fault::code_name;
use crate::hsm::profile::PROFILES;

/// The functions that we call and that can fail in their own ways; the others are as
/// `C_OpenSession`.
const CALLED: [Function; 10] = [
    Function::OpenSession,
    Login,
    EncryptInit,
    Encrypt,
    DecryptInit,
    Decrypt,
    WrapKey,
    UnwrapKey,
    SignInit,
    Function::Sign,
];

/// Every code that cryptoki has a name for, one of a vendor's, and one of nobody's.
fn every_code() -> Vec<RvError> {
    let code = |number| match Rv::from(number) {
        Rv::Error(UnknownErrorCode(_)) | Rv::Ok => None,
        Rv::Error(code) => Some(code),
    };
    (0..0x1000).filter_map(code).chain([own(0x7fff_0000), UnknownErrorCode(0x7fff_0000)]).collect()
}

/// The whole of what the table says without a vendor, in a form to be read in a review: a column for each function.
#[test]
fn every_code_has_the_class_that_the_golden_table_gives_it() {
    assert_eq!(every_code().len(), 95, "cryptoki knows other codes than when the table was made: class them");
    let heads = CALLED.map(|function| format!("C_{function:?}"));
    let rows = every_code().into_iter().map(|code| {
        let class = |function| classify(ProfileName::Generic, function, &code).as_str().to_owned();
        (code_name(&code), CALLED.map(class))
    });
    let rows = [("code".to_owned(), heads)].into_iter().chain(rows);
    let lines =
        rows.map(|(code, cells)| format!("{code:36}{}", cells.map(|cell| format!("{cell:15}")).concat().trim_end()));
    let matrix = lines.collect::<Vec<_>>().join("\n");
    let golden = include_str!("../../../../tests/golden/return-codes.txt");
    assert_eq!(golden.trim_end(), matrix, "tests/golden/return-codes.txt differs from:\n{matrix}\n");
}

#[test]
fn a_callers_rubbish_is_never_taken_for_a_broken_device() {
    for profile in PROFILES {
        let class = |code| classify(profile.name, Decrypt, &code);
        for code in [EncryptedDataInvalid, EncryptedDataLenRange] {
            assert_eq!(class(code), Class::Caller);
        }
        for code in [GeneralError, FunctionFailed, DataInvalid, ArgumentsBad, SignatureInvalid, own(0x7fff_0000)] {
            assert_eq!(class(code), Class::Ambiguous, "{} {code:?}", profile.name);
        }
    }
    for code in [GeneralError, FunctionFailed] {
        assert_eq!(classify(ProfileName::Generic, Encrypt, &code), Class::Device);
    }
}

/// Callers send a digest of a fixed length and no more, so that nothing which goes wrong is their fault.
#[test]
fn a_signature_that_fails_is_never_called_the_callers_fault() {
    for profile in PROFILES {
        for code in every_code() {
            for function in [SignInit, Function::Sign] {
                let class = classify(profile.name, function, &code);
                assert!(!matches!(class, Class::Caller | Class::Ambiguous), "{function:?} {code:?}");
            }
        }
    }
}

#[test]
fn a_callers_rubbish_never_takes_a_key_or_an_hsm_out_of_service_but_for_codes_that_name_it() {
    let named = [
        KeyFunctionNotPermitted,
        KeyTypeInconsistent,
        KeySizeRange,
        MechanismInvalid,
        FunctionNotSupported,
        FipsSelfTestFailed,
    ];
    for code in [EncryptedDataInvalid, GeneralError, FunctionFailed, MechanismParamInvalid, ArgumentsBad, DataLenRange]
    {
        for function in [Encrypt, EncryptInit, Decrypt] {
            let class = classify(ProfileName::Generic, function, &code);
            assert!(!matches!(class, Class::Integrity | Class::Key | Class::Credential), "{function:?} {code:?}");
        }
    }
    for code in named {
        let class = classify(ProfileName::Generic, Decrypt, &code);
        assert!(matches!(class, Class::Integrity | Class::Key), "{code:?}");
    }
}

#[test]
fn a_login_is_only_repeated_after_codes_that_say_that_no_pin_was_checked() {
    let repeated = |vendor, code: &RvError| {
        !matches!(classify(vendor, Login, code), Class::Credential | Class::Integrity | Class::Key)
    };
    for profile in PROFILES {
        let repeated: Vec<_> = every_code().into_iter().filter(|code| repeated(profile.name, code)).collect();
        for code in &repeated {
            assert!(!code_name(code).contains("_PIN"), "{code:?}");
        }
        for code in [PinIncorrect, PinLocked, ArgumentsBad, UserAnotherAlreadyLoggedIn, own(0x7fff_0000)] {
            assert!(!repeated.contains(&code), "{code:?}");
        }
        for code in [DeviceError, TokenNotPresent, GeneralError, SessionCount, UserTooManyTypes] {
            assert!(repeated.contains(&code), "{code:?}");
        }
    }
}

#[test]
fn a_vendors_code_has_its_meaning_on_that_vendors_token_only() {
    let class = |vendor, function, code| classify(vendor, function, &code);
    assert_eq!(class(ProfileName::Kryoptic, DecryptInit, GeneralError), Class::Session);
    assert_eq!(class(ProfileName::Kryoptic, SignInit, GeneralError), Class::Session);
    assert_eq!(class(ProfileName::Generic, SignInit, MechanismInvalid), Class::Key);
    assert_eq!(class(ProfileName::SoftHsm, DecryptInit, GeneralError), Class::Device);
    assert_eq!(class(ProfileName::CloudHsm, GetAttributeValue, DeviceError), Class::Capacity);
    assert_eq!(class(ProfileName::CloudHsm, Encrypt, DeviceError), Class::Device);
    assert_eq!(class(ProfileName::Luna, Login, own(0x07)), Class::Credential);
    assert_eq!(class(ProfileName::Luna, Decrypt, own(0x1f)), Class::Device, "no connection is not the caller's fault");
    assert_eq!(class(ProfileName::Utimaco, Decrypt, own(0x1f)), Class::Ambiguous);
    assert_eq!(class(ProfileName::NShield, Function::GenerateKey, own(0xe0)), Class::Integrity);
    assert_eq!(class(ProfileName::Generic, Function::GenerateKey, own(0xe0)), Class::Device);
}

#[test]
fn no_rule_hides_another_and_the_last_one_fits_everything() {
    let last = TABLE.last().unwrap();
    assert!(last.vendor.is_none() && last.functions.is_empty() && last.codes.is_empty());
    for (number, rule) in TABLE.iter().enumerate() {
        let vendor = rule.vendor.unwrap_or(ProfileName::Generic);
        let function = rule.functions.first().copied().unwrap_or(GetAttributeValue);
        for code in rule.codes {
            let decides = TABLE.iter().find(|other| other.fits(vendor, function, code));
            assert!(
                decides.is_some_and(|other| std::ptr::eq(other, rule)),
                "rule {number} for {code:?} is never reached"
            );
        }
    }
}

/// What operators read is what the program does.
#[test]
fn the_operators_guide_shows_this_table() {
    let mut shown = String::from("| code | of | means | because |\n|---|---|---|---|\n");
    for rule in TABLE {
        let codes = rule.codes.iter().map(code_name).collect::<Vec<_>>().join(", ");
        let functions = rule.functions.iter().map(|function| format!("C_{function:?}")).collect::<Vec<_>>().join(", ");
        let of = [functions, rule.vendor.map(|vendor| format!("on {vendor}")).unwrap_or_default()];
        let of = of.iter().filter(|part| !part.is_empty()).cloned().collect::<Vec<_>>().join(" ");
        let codes = if codes.is_empty() { "any other" } else { &codes };
        let Rule { class, why, source, .. } = rule;
        writeln!(shown, "| {codes} | {of} | {} | {why} ({source}) |", class.as_str()).unwrap();
    }
    let guide = include_str!("../../../../docs/hsm.md");
    assert!(guide.contains(&shown), "docs/hsm.md must show this table:\n\n{shown}");
    for class in ["caller", "ambiguous", "session", "capacity", "device", "credential", "integrity", "key"] {
        assert!(guide.contains(&format!("\n- **{class}**: ")), "docs/hsm.md must say what is done about '{class}'");
        assert!(TABLE.iter().any(|rule| rule.class.as_str() == class), "{class}");
    }
}
