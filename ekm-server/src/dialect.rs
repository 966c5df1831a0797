//! The names on the wire that are our choice, or only likely: what a first live run against Google may correct, in one file.
//!
//! Google publishes protos of wrap and unwrap ([`crate::wire`]: certain). Of the control plane it documents what the calls are for, the
//! `:verb` form, and the reason codes; what stands in their bodies is told by one implementation that ran against Cloud KMS, or by nobody.
//! `docs/wire.md` says how to find out, with `ekm serve --record-shapes`.
//!
//! | name | confidence |
//! |---|---|
//! | the verbs after the colon | certain |
//! | createKey's `algorithm`, with and without `ALGORITHM_`; `keyPath` in its answer | likely |
//! | `additionalContext` in createKey and destroyKey, as in wrap | likely |
//! | asymmetricSign: `data` in, `signature` out; getPublicKey: `publicKey` out | likely |
//! | asymmetricSign: `digest` in, in two forms; getPublicKey: `algorithm` out | our choice |
//! | checkCryptoSpacePermissions: `permissions`, in both directions, and their names | our choice |
//! | getInfo: its paths, its method and its whole answer | our choice |

use ekm_core::json::Object;
use ekm_core::policy::Verb;
use ekm_core::{Algorithm, Error, Hash, KeyPath, Plaintext, PublicKey, ToSign};
use serde::Deserialize;
use serde_json::json;

use crate::wire::{Bounds, Context, Input, Text, Why, agree, answer, bytes, invalid, object, required};

/// Where getInfo is asked for.
pub const INFO_PATHS: [&str; 4] =
    ["/v0/info", "/info", "/.well-known/external-key-manager", "/.well-known/external-key-manager/info"];

/// What a verb is called after the colon.
pub fn verb(name: &str) -> Option<Verb> {
    Verb::from_name(name)
}

/// Verbs of the protocol that are not offered.
pub fn not_offered(name: &str) -> Option<&'static str> {
    match name {
        "confidentialwrap" | "confidential-wrap" => Some("confidentialwrap"),
        "confidentialunwrap" | "confidential-unwrap" => Some("confidentialunwrap"),
        _ => None,
    }
}

/// Every field of a control-plane call.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Body<'a> {
    #[serde(borrow)]
    algorithm: Option<Text<'a>>,
    #[serde(borrow)]
    permissions: Option<Vec<Text<'a>>>,
    #[serde(borrow, alias = "additional_context")]
    additional_context: Option<Object<Context<'a>>>,
}

/// Every field of asymmetricSign and getPublicKey.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct SigningBody<'a> {
    #[serde(borrow, alias = "key_path")]
    key_path: Option<Text<'a>>,
    #[serde(borrow)]
    data: Option<Text<'a>>,
    #[serde(borrow)]
    digest: Option<GivenDigest<'a>>,
    #[serde(borrow, alias = "additional_context")]
    additional_context: Option<Object<Context<'a>>>,
}

/// Bytes, or a message that says by its field which hash has made them.
#[derive(Deserialize)]
#[serde(untagged)]
enum GivenDigest<'a> {
    #[serde(borrow)]
    Bytes(Text<'a>),
    Named(#[serde(borrow)] Object<NamedDigest<'a>>),
}

#[derive(Deserialize)]
struct NamedDigest<'a> {
    #[serde(borrow)]
    sha256: Option<Text<'a>>,
    #[serde(borrow)]
    sha384: Option<Text<'a>>,
    #[serde(borrow)]
    sha512: Option<Text<'a>>,
}

/// A control-plane call, decoded.
pub struct ControlRequest {
    /// Of createKey.
    pub algorithm: Option<Algorithm>,
    /// Of checkCryptoSpacePermissions: those that we know. Others are held by nobody.
    pub permissions: Vec<Verb>,
    /// In whose name, and why.
    pub why: Why,
}

/// Decodes a body of createKey, destroyKey or checkCryptoSpacePermissions.
pub fn decode(verb: Verb, body: &[u8]) -> Result<ControlRequest, Error> {
    let body: Body<'_> = object(body)?;
    let why = Why::of(body.additional_context.map(|Object(context)| context));
    let algorithm = match (verb, body.algorithm) {
        (Verb::CreateKey, None) => return Err(invalid("algorithm", "is missing")),
        (Verb::CreateKey, Some(Text(name))) => Some(algorithm(&name)?),
        _ => None,
    };
    if verb == Verb::CreateKey && why.resource.as_ref().is_none_or(|name| name.is_empty()) {
        let problem = "is missing: it is how the same request is known again";
        return Err(invalid("additionalContext.relativeResourceName", problem));
    }
    let permissions = body.permissions.unwrap_or_default();
    let permissions = permissions.iter().filter_map(|Text(name)| Verb::from_name(name)).collect();
    Ok(ControlRequest { algorithm, permissions, why })
}

fn algorithm(name: &str) -> Result<Algorithm, Error> {
    if name.is_empty() || name.len() > 64 || !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_') {
        return Err(invalid("algorithm", "is no name of an algorithm"));
    }
    name.parse().map_err(|unknown: ekm_core::UnknownAlgorithm| Error::AlgorithmNotOffered(unknown.to_string()))
}

/// Decodes a body of asymmetricSign or getPublicKey; the latter may have none.
pub fn decode_signing(verb: Verb, path: &KeyPath, body: &[u8], bounds: Bounds) -> Result<(Input, Why), Error> {
    let body: SigningBody<'_> = object(if verb == Verb::GetPublicKey && body.is_empty() { b"{}" } else { body })?;
    agree(body.key_path.as_ref(), path)?;
    let input = match verb {
        Verb::GetPublicKey => Input::GetPublicKey,
        _ => Input::Sign(to_sign(body.data, body.digest, bounds.plaintext_bytes)?),
    };
    Ok((input, Why::of(body.additional_context.map(|Object(context)| context))))
}

/// The data, or its digest. That the digest fits the key is seen where the key is known.
fn to_sign(data: Option<Text<'_>>, digest: Option<GivenDigest<'_>>, limit: usize) -> Result<ToSign, Error> {
    let given = |text: &Text<'_>| bytes("digest", text, Hash::Sha512.bytes());
    match (data, digest) {
        (Some(_), Some(_)) => Err(invalid("body", "data and digest exclude each other")),
        (data, None) => Ok(ToSign::Data(Plaintext::new(required("data", data, limit)?))),
        (None, Some(GivenDigest::Bytes(text))) => Ok(ToSign::Digest(given(&text)?, None)),
        (None, Some(GivenDigest::Named(Object(NamedDigest { sha256, sha384, sha512 })))) => {
            let named = [(Hash::Sha256, sha256), (Hash::Sha384, sha384), (Hash::Sha512, sha512)];
            let mut named = named.into_iter().filter_map(|(hash, text)| Some((hash, text?)));
            match (named.next(), named.next()) {
                (Some((hash, text)), None) => Ok(ToSign::Digest(given(&text)?, Some(hash))),
                _ => Err(invalid("digest", "names exactly one of sha256, sha384 and sha512")),
            }
        }
    }
}

/// The answer to asymmetricSign.
pub fn encode_signed(signature: &[u8]) -> String {
    answer("signature", signature)
}

/// The answer to getPublicKey.
pub fn encode_public_key(public: &PublicKey) -> String {
    let (pem, algorithm) = (public.pem(), public.algorithm().name());
    json!({"publicKey": pem, "algorithm": algorithm}).to_string()
}

/// The answer to createKey.
pub fn encode_created(path: &KeyPath) -> String {
    json!({"keyPath": path.as_str()}).to_string()
}

/// The answer to checkCryptoSpacePermissions.
pub fn encode_permissions(held: &[Verb]) -> String {
    json!({"permissions": held.iter().map(|verb| verb.name()).collect::<Vec<_>>()}).to_string()
}

/// The answer to getInfo.
pub fn encode_info() -> String {
    let methods: Vec<_> = Verb::ALL.iter().map(|verb| verb.name()).collect();
    let algorithms: Vec<_> = Algorithm::all().map(Algorithm::name).collect();
    json!({"apiVersion": "v0", "methods": methods, "algorithms": algorithms}).to_string()
}

#[cfg(test)]
mod tests {
    use ekm_core::justification::{Justification, Reason};

    use super::*;

    fn create(body: &str) -> Result<ControlRequest, Error> {
        decode(Verb::CreateKey, body.as_bytes())
    }

    const CONTEXT: &str = r#""additionalContext":{"relativeResourceName":"projects/p/…/cryptoKeyVersions/1",
        "accessReasonContext":{"reason":"CUSTOMER_INITIATED_ACCESS"}}"#;

    #[test]
    fn an_algorithm_is_read_with_and_without_its_prefix() {
        for name in ["EXTERNAL_SYMMETRIC_ENCRYPTION", "ALGORITHM_EXTERNAL_SYMMETRIC_ENCRYPTION"] {
            let request = create(&format!(r#"{{"algorithm":"{name}",{CONTEXT}}}"#)).unwrap();
            assert_eq!(request.algorithm, Some(Algorithm::Symmetric));
            assert_eq!(request.why.justification, Justification::Known(Reason::CustomerInitiatedAccess));
            assert_eq!(request.why.resource.as_deref(), Some("projects/p/…/cryptoKeyVersions/1"));
        }
    }

    #[test]
    fn what_cannot_be_understood_is_refused_by_field() {
        for (body, expected) in [
            (format!("{{{CONTEXT}}}"), "algorithm"),
            (format!(r#"{{"algorithm":"",{CONTEXT}}}"#), "algorithm"),
            (format!(r#"{{"algorithm":"a b",{CONTEXT}}}"#), "algorithm"),
            (format!(r#"{{"algorithm":5,{CONTEXT}}}"#), "body"),
            (r#"{"algorithm":"EXTERNAL_SYMMETRIC_ENCRYPTION"}"#.into(), "additionalContext.relativeResourceName"),
            ("[]".into(), "body"),
        ] {
            let Err(Error::InvalidRequest { field, .. }) = create(&body) else { panic!("{body}") };
            assert_eq!(field, expected, "{body}");
        }
        let unknown = create(&format!(r#"{{"algorithm":"EC_SIGN_SECP256K1_SHA256",{CONTEXT}}}"#));
        let Err(Error::AlgorithmNotOffered(text)) = unknown else { panic!("not offered") };
        assert!(text.contains("EC_SIGN_P256_SHA256"), "{text}");
    }
}
