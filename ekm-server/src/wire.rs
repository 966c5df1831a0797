//! The names of wrap and unwrap on the wire, and what all verbs have in common there; those that are less certain are in [`dialect`]. Read
//! tolerantly, written strictly.
//!
//! Google's `google.cloud.ekms.v0` in proto3 JSON: lowerCamelCase (snake_case is read too), bytes in base64, `null` is absent, unknown
//! fields are ignored. Certain: the names of wrap and unwrap. Observed once: `RelativeResourceName`.

use std::borrow::Cow;
use std::fmt;

use base64::Engine;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use ekm_core::json::Object;
use ekm_core::justification::Justification;
use ekm_core::policy::Verb;
use ekm_core::{Error, KeyPath, Plaintext, ToSign};
use serde::de::{self, Visitor};
use serde::{Deserialize, Deserializer};

use crate::dialect;

const READING: GeneralPurposeConfig =
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
const STANDARD: GeneralPurpose = GeneralPurpose::new(&alphabet::STANDARD, READING);
const URL_SAFE: GeneralPurpose = GeneralPurpose::new(&alphabet::URL_SAFE, READING);

/// Every field that wrap or unwrap may carry.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Body<'a> {
    #[serde(borrow, alias = "key_path")]
    key_path: Option<Text<'a>>,
    #[serde(borrow)]
    plaintext: Option<Text<'a>>,
    #[serde(borrow, alias = "wrapped_blob")]
    wrapped_blob: Option<Text<'a>>,
    #[serde(borrow, alias = "additional_authenticated_data")]
    additional_authenticated_data: Option<Text<'a>>,
    #[serde(borrow, alias = "additional_context")]
    additional_context: Option<Object<Context<'a>>>,
}

/// In whose name, and why; the same in every verb.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Context<'a> {
    #[serde(borrow, alias = "relative_resource_name", alias = "RelativeResourceName")]
    relative_resource_name: Option<Text<'a>>,
    #[serde(alias = "access_reason_context")]
    access_reason_context: Option<Object<AccessReasonContext>>,
    #[serde(alias = "is_key_health_check")]
    is_key_health_check: Option<bool>,
}

#[derive(Deserialize)]
struct AccessReasonContext {
    reason: Option<Reason>,
}

/// A string of the body, not copied unless it has escapes.
#[derive(Deserialize)]
pub(crate) struct Text<'a>(#[serde(borrow)] pub(crate) Cow<'a, str>);

/// An enum of proto3 JSON: name or number. How it is written, if we do not know it.
struct Reason(Justification, Option<String>);

impl Reason {
    fn new(justification: Justification, written: &dyn fmt::Display) -> Self {
        let unknown = justification == Justification::Unknown;
        Self(justification, unknown.then(|| truncated(&written.to_string(), 64)))
    }
}

impl<'de> Deserialize<'de> for Reason {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct NameOrNumber;
        impl Visitor<'_> for NameOrNumber {
            type Value = Reason;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("the name or number of a reason")
            }
            fn visit_str<E: de::Error>(self, name: &str) -> Result<Reason, E> {
                Ok(Reason::new(Justification::from_name(name), &name))
            }
            fn visit_i64<E: de::Error>(self, number: i64) -> Result<Reason, E> {
                Ok(Reason::new(Justification::from_number(number), &number))
            }
            fn visit_u64<E: de::Error>(self, number: u64) -> Result<Reason, E> {
                let known = i64::try_from(number).map_or(Justification::Unknown, Justification::from_number);
                Ok(Reason::new(known, &number))
            }
        }
        deserializer.deserialize_any(NameOrNumber)
    }
}

/// What to work on, by verb.
pub enum Input {
    /// wrap: the data key.
    Wrap(Plaintext),
    /// unwrap: the blob.
    Unwrap(Vec<u8>),
    /// asymmetricSign.
    Sign(ToSign),
    /// getPublicKey needs nothing.
    GetPublicKey,
}

impl Input {
    /// What names a key version: unwrap's blob, and nothing else.
    pub fn blob(&self) -> &[u8] {
        match self {
            Self::Unwrap(blob) => blob,
            Self::Wrap(_) | Self::Sign(_) | Self::GetPublicKey => &[],
        }
    }
}

/// A request, decoded.
pub struct CryptoRequest {
    /// What to work on.
    pub input: Input,
    /// The caller's additional authenticated data; absent and empty are the same.
    pub aad: Vec<u8>,
    /// In whose name, and why.
    pub why: Why,
}

/// What additionalContext says.
pub struct Why {
    /// Why.
    pub justification: Justification,
    /// How a reason that we do not know is written, cut at 64 bytes; for the audit line.
    pub unknown_reason: Option<String>,
    /// Google's name of the key version, cut at 1024 bytes; for the policy and the audit line.
    pub resource: Option<String>,
    /// Google's own probe; changes nothing but what audit and metrics say.
    pub is_key_health_check: bool,
}

impl Why {
    pub(crate) fn of(context: Option<Context<'_>>) -> Self {
        let reason =
            context.as_ref().and_then(|context| context.access_reason_context.as_ref()).map(|Object(reason)| reason);
        Self {
            justification: match reason {
                None => Justification::Missing,
                // proto3 leaves out an enum whose value is 0, REASON_UNSPECIFIED.
                Some(AccessReasonContext { reason: None }) => Justification::from_number(0),
                Some(AccessReasonContext { reason: Some(Reason(justification, _)) }) => justification.clone(),
            },
            unknown_reason: reason.and_then(|context| context.reason.as_ref()?.1.clone()),
            is_key_health_check: context.as_ref().and_then(|context| context.is_key_health_check).unwrap_or(false),
            resource: context
                .and_then(|context| context.relative_resource_name)
                .map(|Text(name)| truncated(&name, 1024)),
        }
    }
}

/// How long decoded fields may be.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Plaintext of wrap, data of asymmetricSign. A blob may be longer by the blob format's overhead.
    pub plaintext_bytes: usize,
    /// Additional authenticated data.
    pub aad_bytes: usize,
}

/// Decodes a body.
pub fn decode(verb: Verb, path: &KeyPath, body: &[u8], bounds: Bounds) -> Result<CryptoRequest, Error> {
    if matches!(verb, Verb::AsymmetricSign | Verb::GetPublicKey) {
        let (input, why) = dialect::decode_signing(verb, path, body, bounds)?;
        return Ok(CryptoRequest { input, aad: Vec::new(), why });
    }
    let body: Body<'_> = object(body)?;
    agree(body.key_path.as_ref(), path)?;
    let input = match verb {
        Verb::Wrap if body.wrapped_blob.is_some() => return Err(invalid("body", EXCLUSIVE)),
        Verb::Unwrap if body.plaintext.is_some() => return Err(invalid("body", EXCLUSIVE)),
        Verb::Wrap => Input::Wrap(Plaintext::new(required("plaintext", body.plaintext, bounds.plaintext_bytes)?)),
        Verb::Unwrap => {
            let limit = bounds.plaintext_bytes + ekm_core::blob::OVERHEAD_BYTES;
            Input::Unwrap(required("wrappedBlob", body.wrapped_blob, limit)?)
        }
        _ => return Err(Error::Internal("a call of another kind was read as wrap or unwrap")),
    };
    let aad = match &body.additional_authenticated_data {
        Some(aad) => bytes("additionalAuthenticatedData", aad, bounds.aad_bytes)?,
        None => Vec::new(),
    };
    Ok(CryptoRequest { input, aad, why: Why::of(body.additional_context.map(|Object(context)| context)) })
}

/// A path in the body is that of the URL.
pub(crate) fn agree(stated: Option<&Text<'_>>, path: &KeyPath) -> Result<(), Error> {
    match stated {
        Some(Text(stated)) if KeyPath::parse(stated).as_ref() != Ok(path) => {
            Err(invalid("keyPath", "does not agree with the path in the URL"))
        }
        _ => Ok(()),
    }
}

const EXCLUSIVE: &str = "plaintext and wrappedBlob exclude each other";

pub(crate) fn required(field: &'static str, value: Option<Text<'_>>, limit: usize) -> Result<Vec<u8>, Error> {
    bytes(field, &value.ok_or_else(|| invalid(field, "is missing"))?, limit)
}

/// The answer to wrap.
pub fn encode_wrapped(blob: &[u8]) -> String {
    answer("wrappedBlob", blob)
}

/// The answer to unwrap.
pub fn encode_unwrapped(plaintext: &Plaintext) -> String {
    answer("plaintext", plaintext.as_bytes())
}

pub(crate) fn answer(field: &str, value: &[u8]) -> String {
    let mut json = String::with_capacity(field.len() + value.len().div_ceil(3) * 4 + 8);
    json.push_str("{\"");
    json.push_str(field);
    json.push_str("\":\"");
    base64::engine::general_purpose::STANDARD.encode_string(value, &mut json);
    json.push_str("\"}");
    json
}

/// Standard or URL-safe base64, padded or not, never both alphabets; no spaces, no stray bits at the end.
pub(crate) fn bytes(field: &'static str, Text(text): &Text<'_>, limit: usize) -> Result<Vec<u8>, Error> {
    if text.len() / 4 * 3 > limit + 3 {
        return Err(invalid(field, format!("is longer than {limit} bytes")));
    }
    let url_safe = text.bytes().any(|byte| matches!(byte, b'-' | b'_'));
    let engine = if url_safe { &URL_SAFE } else { &STANDARD };
    let decoded = engine.decode(text.as_bytes()).map_err(|_| invalid(field, "is not base64"))?;
    if decoded.len() > limit {
        return Err(invalid(field, format!("is longer than {limit} bytes")));
    }
    Ok(decoded)
}

pub(crate) fn invalid(field: &'static str, problem: impl Into<String>) -> Error {
    Error::InvalidRequest { field, problem: problem.into() }
}

/// One JSON object with known fields of the right types; others are ignored.
pub(crate) fn object<'a, T>(body: &'a [u8]) -> Result<T, Error>
where
    Object<T>: Deserialize<'a>,
{
    // As a whole, since the parser does not look into unknown fields.
    let body = std::str::from_utf8(body).map_err(|_| invalid("body", "is not JSON: it is not UTF-8"))?;
    serde_json::from_str(body).map(|Object(object)| object).map_err(|error| invalid("body", describe(&error)))
}

/// serde's texts can quote values of the request, so only place and kind are told.
fn describe(error: &serde_json::Error) -> String {
    let what = match error.classify() {
        serde_json::error::Category::Eof => "ends too early",
        serde_json::error::Category::Syntax => "is not JSON",
        serde_json::error::Category::Data => "has a field twice, or of the wrong type",
        serde_json::error::Category::Io => "cannot be read",
    };
    format!("{what} (line {}, column {})", error.line(), error.column())
}

/// At most `bytes` bytes, cut between characters.
pub fn truncated(text: &str, bytes: usize) -> String {
    text[..text.floor_char_boundary(bytes)].to_owned()
}

#[cfg(test)]
mod tests {
    use ekm_core::Hash;
    use ekm_core::justification::Reason as R;
    use proptest::prelude::*;

    use super::*;

    const BOUNDS: Bounds = Bounds { plaintext_bytes: 64, aad_bytes: 32 };

    fn wrap(body: &str) -> Result<CryptoRequest, Error> {
        decode(Verb::Wrap, &KeyPath::parse("v0/keys/demo").unwrap(), body.as_bytes(), BOUNDS)
    }

    impl Input {
        fn as_bytes(&self) -> &[u8] {
            match self {
                Self::Wrap(input) | Self::Sign(ToSign::Data(input)) => input.as_bytes(),
                Self::Unwrap(input) | Self::Sign(ToSign::Digest(input, _)) => input,
                Self::GetPublicKey => &[],
            }
        }
    }

    fn sign(body: &str) -> Result<CryptoRequest, Error> {
        decode(Verb::AsymmetricSign, &KeyPath::parse("v0/keys/demo").unwrap(), body.as_bytes(), BOUNDS)
    }

    #[test]
    fn data_or_a_digest_in_either_of_its_forms_is_what_is_to_be_signed() {
        for (body, expected, hash) in [
            (r#"{"data":"3q2+7w=="}"#, &b"\xde\xad\xbe\xef"[..], None),
            (r#"{"data":"","digest":null,"plaintext":"AA=="}"#, b"", None),
            (r#"{"digest":"3q2-7w"}"#, b"\xde\xad\xbe\xef", None),
            (r#"{"digest":{"sha256":"AAEC"}}"#, b"\x00\x01\x02", Some(Hash::Sha256)),
            (r#"{"digest":{"sha384":"AAEC","sha256":null,"other":1}}"#, b"\x00\x01\x02", Some(Hash::Sha384)),
        ] {
            let input = sign(body).unwrap().input;
            assert_eq!(input.as_bytes(), expected, "{body}");
            let Input::Sign(to_sign) = input else { panic!("{body}") };
            assert!(
                matches!(to_sign, ToSign::Data(_)) || matches!(to_sign, ToSign::Digest(_, said) if said == hash),
                "{body}"
            );
        }
        for (body, field) in [
            ("{}", "data"),
            (r#"{"plaintext":"AA=="}"#, "data"),
            (r#"{"data":null,"digest":null}"#, "data"),
            (r#"{"data":"AA==","digest":"AA=="}"#, "body"),
            (r#"{"data":"!"}"#, "data"),
            (r#"{"data":5}"#, "body"),
            (r#"{"data":["AA=="]}"#, "body"),
            (r#"{"digest":5}"#, "body"),
            (r#"{"digest":["AA=="]}"#, "body"),
            (r#"{"digest":{"sha256":5}}"#, "body"),
            (r#"{"digest":"!"}"#, "digest"),
            (r#"{"digest":{}}"#, "digest"),
            (r#"{"digest":{"sha1":"AA=="}}"#, "digest"),
            (r#"{"digest":{"sha256":"AA==","sha512":"AA=="}}"#, "digest"),
            (r#"{"digest":{"sha256":"AA==","sha256":"AA=="}}"#, "body"),
        ] {
            match sign(body) {
                Err(Error::InvalidRequest { field: got, .. }) => assert_eq!(got, field, "{body}"),
                Err(other) => panic!("{body}: {other:?}"),
                Ok(_) => panic!("{body} was accepted"),
            }
        }
        let long = |field: &str, bytes: usize| {
            format!(r#"{{"{field}":"{}"}}"#, base64::engine::general_purpose::STANDARD.encode(vec![7; bytes]))
        };
        assert!(sign(&long("data", 64)).is_ok() && sign(&long("data", 65)).is_err());
        assert!(sign(&long("digest", 64)).is_ok() && sign(&long("digest", 65)).is_err());
    }

    #[test]
    fn asking_for_a_public_key_needs_no_body_and_may_have_one() {
        let ask =
            |body: &str| decode(Verb::GetPublicKey, &KeyPath::parse("v0/keys/demo").unwrap(), body.as_bytes(), BOUNDS);
        assert!(ask("").is_ok() && ask("{}").is_ok());
        assert!(ask(r#"{"additionalContext":{"accessReasonContext":{"reason":5}}}"#).is_ok());
        assert!(ask(" ").is_err() && ask("[]").is_err() && ask(r#"{"keyPath":"v0/keys/other"}"#).is_err());
    }

    fn unwrap(body: &str) -> Result<CryptoRequest, Error> {
        decode(Verb::Unwrap, &KeyPath::parse("v0/keys/demo").unwrap(), body.as_bytes(), BOUNDS)
    }

    #[test]
    fn the_published_example_is_understood() {
        let request = wrap(
            r#"{"plaintext":"3q2+7w==","additionalAuthenticatedData":"Y3R4",
                "additionalContext":{"relativeResourceName":"projects/p/locations/us-east1/keyRings/r/cryptoKeys/k/cryptoKeyVersions/1",
                "accessReasonContext":{"reason":"CUSTOMER_INITIATED_ACCESS"},"isKeyHealthCheck":true}}"#,
        )
        .unwrap();
        assert_eq!(request.input.as_bytes(), b"\xde\xad\xbe\xef");
        assert_eq!(request.aad, b"ctx");
        assert_eq!(request.why.justification, Justification::Known(R::CustomerInitiatedAccess));
        assert!(request.why.is_key_health_check);
        assert!(request.why.resource.unwrap().ends_with("cryptoKeyVersions/1"));
    }

    #[test]
    fn spellings_that_differ_mean_the_same() {
        for body in [
            r#"{"plaintext":"-_-_","additional_authenticated_data":"Y3R4eA"}"#,
            r#"{"plaintext":"+/+/","additionalAuthenticatedData":"Y3R4eA==","unknown":{"a":[1]},"keyPath":null}"#,
            r#"{"plaintext":"+\/+\/","additionalAuthenticatedData":"Y3R4eA","keyPath":"v0/keys/demo","wrappedBlob":null}"#,
        ] {
            let request = wrap(body).unwrap();
            assert_eq!((request.input.as_bytes(), &request.aad[..]), (&b"\xfb\xff\xbf"[..], &b"ctxx"[..]), "{body}");
        }
    }

    #[test]
    fn a_missing_unspecified_and_unknown_justification_are_told_apart() {
        for (context, expected) in [
            ("null", Justification::Missing),
            ("{}", Justification::Missing),
            (r#"{"accessReasonContext":null}"#, Justification::Missing),
            (r#"{"accessReasonContext":{}}"#, Justification::Known(R::Unspecified)),
            (r#"{"accessReasonContext":{"reason":null}}"#, Justification::Known(R::Unspecified)),
            (r#"{"access_reason_context":{"reason":5}}"#, Justification::Known(R::CustomerInitiatedAccess)),
            (r#"{"accessReasonContext":{"reason":9999}}"#, Justification::Unknown),
            (r#"{"accessReasonContext":{"reason":-1}}"#, Justification::Unknown),
            (r#"{"accessReasonContext":{"reason":18446744073709551615}}"#, Justification::Unknown),
            (r#"{"accessReasonContext":{"reason":"FOO"}}"#, Justification::Unknown),
        ] {
            let body = format!(r#"{{"plaintext":"AA==","additionalContext":{context}}}"#);
            assert_eq!(wrap(&body).unwrap().why.justification, expected, "{context}");
        }
    }

    #[test]
    fn what_cannot_be_understood_is_refused_by_field_and_without_its_value() {
        for (body, field) in [
            ("", "body"),
            (" ", "body"),
            ("null", "body"),
            ("[]", "body"),
            ("{", "body"),
            ("{}{}", "body"),
            ("{} //", "body"),
            ("\u{feff}{}", "body"),
            (r#"{"plaintext":NaN}"#, "body"),
            (r#"{"plaintext":5}"#, "body"),
            (r#"{"plaintext":["AA=="]}"#, "body"),
            (r#"{"plaintext":"AA==","plaintext":"AA=="}"#, "body"),
            (r#"{"plaintext":"AA==","additionalContext":{"isKeyHealthCheck":"true"}}"#, "body"),
            (r#"{"plaintext":"AA==","additionalContext":{"accessReasonContext":{"reason":5.5}}}"#, "body"),
            (
                r#"{"plaintext":"AA==","additionalAuthenticatedData":"AA==","additional_authenticated_data":"AAA="}"#,
                "body",
            ),
            (r#"{"plaintext":"\ud800"}"#, "body"),
            ("{}", "plaintext"),
            (r#"{"plaintext":null}"#, "plaintext"),
            (r#"{"plaintext":"AA==","wrappedBlob":"AA=="}"#, "body"),
            (r#"{"plaintext":"A"}"#, "plaintext"),
            (r#"{"plaintext":"AB=="}"#, "plaintext"),
            (r#"{"plaintext":"AA== "}"#, "plaintext"),
            (r#"{"plaintext":"AA=A"}"#, "plaintext"),
            (r#"{"plaintext":"+-+-"}"#, "plaintext"),
            (r#"{"plaintext":"AAAA","keyPath":"v0/keys/other"}"#, "keyPath"),
            (r#"{"plaintext":"AAAA","additionalAuthenticatedData":"!"}"#, "additionalAuthenticatedData"),
        ] {
            match wrap(body) {
                Err(Error::InvalidRequest { field: got, .. }) => assert_eq!(got, field, "{body}"),
                Err(other) => panic!("{body}: {other:?}"),
                Ok(_) => panic!("{body} was accepted"),
            }
        }
    }

    #[test]
    fn a_field_may_be_as_long_as_its_bound_and_no_longer() {
        let encoded = |length| base64::engine::general_purpose::STANDARD.encode(vec![7; length]);
        let body = |plaintext, aad| {
            format!(r#"{{"plaintext":"{}","additionalAuthenticatedData":"{}"}}"#, encoded(plaintext), encoded(aad))
        };
        assert_eq!(wrap(&body(0, 0)).unwrap().input.as_bytes(), b"");
        assert!(wrap(&body(64, 32)).is_ok());
        assert!(wrap(&body(65, 32)).is_err());
        assert!(wrap(&body(64, 33)).is_err());
        let blob = |length| format!(r#"{{"wrappedBlob":"{}"}}"#, encoded(length));
        assert!(unwrap(&blob(64 + ekm_core::blob::OVERHEAD_BYTES)).is_ok());
        assert!(unwrap(&blob(65 + ekm_core::blob::OVERHEAD_BYTES)).is_err());
    }

    #[test]
    fn answers_are_strict() {
        assert_eq!(encode_wrapped(b"\xfb\xff\xbf\x00"), r#"{"wrappedBlob":"+/+/AA=="}"#);
        assert_eq!(encode_unwrapped(&Plaintext::new(Vec::new())), r#"{"plaintext":""}"#);
    }

    proptest! {
        #[test]
        fn decoding_never_panics(body in ".{0,200}") {
            let _ = wrap(&body);
        }

        #[test]
        fn what_we_write_we_can_read(value in proptest::collection::vec(any::<u8>(), 0..64)) {
            let request = wrap(&encode_unwrapped(&Plaintext::new(value.clone()))).unwrap();
            prop_assert_eq!(request.input.as_bytes(), &value[..]);
        }
    }
}
