//! Signing keys on a token: made, copied, and used. The digest is ours, so that every token is asked for the same three mechanisms, which all of
//! them have; what they differ in is found out from the token itself.

use cryptoki::mechanism::rsa::{PkcsMgfType, PkcsPssParams};
use cryptoki::mechanism::{Mechanism, MechanismType};
use cryptoki::object::{Attribute, AttributeType, KeyType, ObjectClass, ObjectHandle};
use cryptoki::session::Session;
use cryptoki::types::Ulong;

use super::fault::Fault;
use super::keys::{CLOSED, NEVER_OPEN};
use super::profile::Profile;
use super::token::Token;
use super::token_error::TokenError;
use crate::algorithm::{Curve, Hash, Scheme, SigningAlgorithm};
use crate::blob::VersionId;
use crate::custody::CHECK_TEXT;
use crate::public_key::{PublicKey, ecdsa_der};

/// A signature of a digest.
pub(super) fn sign(
    profile: &Profile,
    session: &Session,
    key: ObjectHandle,
    algorithm: SigningAlgorithm,
    digest: &[u8],
) -> Result<Vec<u8>, Fault> {
    let made = match algorithm.scheme() {
        Scheme::Ecdsa(_) => session.sign(&Mechanism::Ecdsa, key, digest),
        Scheme::RsaPss(_) => session.sign(&Mechanism::RsaPkcsPss(pss(algorithm.hash())), key, digest),
        Scheme::RsaPkcs1(_) => {
            let info = [digest_info(algorithm.hash()), digest].concat();
            session.sign(&Mechanism::RsaPkcs, key, &info)
        }
    };
    let made = made.map_err(|error| Fault::on(profile.name, error))?;
    let wrong_length = || Fault::integrity("C_Sign", "a signature of the wrong length");
    match algorithm.scheme() {
        Scheme::Ecdsa(curve) if made.len() == 2 * curve.field_bytes() => Ok(ecdsa_der(&made)),
        Scheme::RsaPss(bits) | Scheme::RsaPkcs1(bits) if made.len() * 8 == bits as usize => Ok(made),
        _ => Err(wrong_length()),
    }
}

/// The key signs the known text so that its public half verifies it.
pub(super) fn prove(
    profile: &Profile,
    session: &Session,
    handle: ObjectHandle,
    public: &PublicKey,
) -> Result<(), Fault> {
    let digest = public.algorithm().hash().of(CHECK_TEXT);
    // A device that fails now and then may do so here: one wrong signature is not enough to call a key another one.
    for _ in 0..2 {
        let signature = sign(profile, session, handle, public.algorithm(), &digest)?;
        if public.verifies(&digest, &signature) {
            return Ok(());
        }
    }
    Err(Fault::key("C_Sign", "its signature does not verify with the key's public half: the material is another one"))
}

fn pss(hash: Hash) -> PkcsPssParams {
    let (hash_alg, mgf) = match hash {
        Hash::Sha256 => (MechanismType::SHA256, PkcsMgfType::MGF1_SHA256),
        Hash::Sha384 => (MechanismType::SHA384, PkcsMgfType::MGF1_SHA384),
        Hash::Sha512 => (MechanismType::SHA512, PkcsMgfType::MGF1_SHA512),
    };
    PkcsPssParams { hash_alg, mgf, s_len: Ulong::new(hash.bytes() as u64) }
}

/// What stands before the digest in PKCS #1 v1.5 (RFC 8017 §9.2, note 1).
fn digest_info(hash: Hash) -> &'static [u8] {
    match hash {
        Hash::Sha256 => b"\x30\x31\x30\x0d\x06\x09\x60\x86\x48\x01\x65\x03\x04\x02\x01\x05\x00\x04\x20",
        Hash::Sha384 => b"\x30\x41\x30\x0d\x06\x09\x60\x86\x48\x01\x65\x03\x04\x02\x02\x05\x00\x04\x30",
        Hash::Sha512 => b"\x30\x51\x30\x0d\x06\x09\x60\x86\x48\x01\x65\x03\x04\x02\x03\x05\x00\x04\x40",
    }
}

/// Finds a key version's private key.
pub(super) fn key_template(id: VersionId) -> [Attribute; 2] {
    [Attribute::Class(ObjectClass::PRIVATE_KEY), Attribute::Id(id.to_bytes().to_vec())]
}

impl Token {
    /// Makes a key pair: the private key sensitive and not extractable, as [`Token::generate_key`] makes a secret one. The public half lives as
    /// long as the session: the catalog has it. Blocking, with RSA for seconds.
    pub fn generate_pair(
        &self,
        id: VersionId,
        label: &str,
        algorithm: SigningAlgorithm,
        replication: Option<&str>,
    ) -> Result<(PublicKey, Option<Vec<u8>>), TokenError> {
        let guard = if replication.is_some() { &CLOSED[..] } else { &NEVER_OPEN };
        self.make(id, &key_template(id), guard, |session| {
            let private = private_template(id, label, algorithm, replication.is_some());
            let (mechanism, public) = public_template(algorithm);
            // With RSA it may take seconds, in which no session could begin to use a key.
            let _until_it_is_whole = matches!(algorithm.scheme(), Scheme::Ecdsa(_)).then(|| self.nobody_looks());
            let pair = session.generate_key_pair(&mechanism, &public, &private);
            let (public, key) = pair.map_err(|error| self.fault(error))?;
            let shown = self.public_key(session, public, algorithm);
            let _ = session.destroy_object(public);
            let wrap_out = |shown| match replication {
                Some(replication) => Ok((shown, Some(self.wrap_private_out(session, key, replication)?))),
                None => Ok((shown, None)),
            };
            shown.and_then(wrap_out).map(|made| (key, made)).or_else(|error| self.undo(session, key, error))
        })
    }

    /// From what the token gives. SoftHSM has no CKA_PUBLIC_KEY_INFO.
    fn public_key(
        &self,
        session: &Session,
        public: ObjectHandle,
        algorithm: SigningAlgorithm,
    ) -> Result<PublicKey, TokenError> {
        let asked = match algorithm.scheme() {
            Scheme::Ecdsa(_) => &[AttributeType::EcPoint][..],
            Scheme::RsaPss(_) | Scheme::RsaPkcs1(_) => &[AttributeType::Modulus, AttributeType::PublicExponent],
        };
        let shown = session.get_attributes(public, asked).map_err(|error| self.fault(error))?;
        let key = match &shown[..] {
            [Attribute::EcPoint(point)] => PublicKey::from_point(algorithm, bare_point(point)),
            [Attribute::Modulus(n), Attribute::PublicExponent(e)]
            | [Attribute::PublicExponent(e), Attribute::Modulus(n)] => PublicKey::from_rsa(algorithm, n, e),
            _ => {
                return Err(TokenError::SelfTest("it does not show the public half of a key that it has made".into()));
            }
        };
        key.map_err(|error| TokenError::SelfTest(format!("of a new key's public half: {error}")))
    }

    /// Wraps a new private key by the replication key, as PKCS#8, and closes it.
    fn wrap_private_out(&self, session: &Session, key: ObjectHandle, replication: &str) -> Result<Vec<u8>, TokenError> {
        let by = self.replication_key(session, replication)?;
        let wrapping = if self.wraps_with(MechanismType::AES_KEY_WRAP_PAD) {
            Wrapping::KeyWrapPad
        } else if self.wraps_with(MechanismType::AES_CBC_PAD) {
            let iv = crate::software::random().map_err(|_| Fault::integrity("getrandom", "no random numbers"))?;
            Wrapping::CbcPad(iv)
        } else {
            return Err(TokenError::Mechanism("CKM_AES_KEY_WRAP_PAD or CKM_AES_CBC_PAD for wrapping"));
        };
        let wrapped = session.wrap_key(&wrapping.mechanism(), by, key).map_err(|error| self.fault(error))?;
        self.close(session, key)?;
        Ok(wrapping.write(&wrapped))
    }

    /// Takes over a private key that another token has wrapped by the replication key. Blocking.
    pub fn import_pair(
        &self,
        id: VersionId,
        label: &str,
        algorithm: SigningAlgorithm,
        replication: &str,
        wrapped: &[u8],
    ) -> Result<(), TokenError> {
        let unknown = || Fault::key("C_UnwrapKey", "a wrapped private key in a form that this version does not know");
        let (wrapping, wrapped) = Wrapping::read(wrapped).ok_or_else(unknown)?;
        self.make(id, &key_template(id), &CLOSED, |session| {
            let template = private_template(id, label, algorithm, false);
            let _until_it_is_whole = self.nobody_looks();
            let by = self.replication_key(session, replication)?;
            let made = session.unwrap_key(&wrapping.mechanism(), by, wrapped, &template);
            Ok((made.map_err(|error| self.fault(error))?, ()))
        })
    }
}

/// How a private key was wrapped; the first byte of the wrapped form says it. A catalog's row is sealed, so that nothing is lost by a mechanism
/// that does not authenticate; and an imported key has to sign before it counts.
enum Wrapping {
    /// CKM_AES_KEY_WRAP_PAD, RFC 5649.
    KeyWrapPad,
    /// CKM_AES_CBC_PAD, where the other one is not to be had.
    CbcPad([u8; 16]),
}

impl Wrapping {
    fn mechanism(&self) -> Mechanism<'static> {
        match self {
            Self::KeyWrapPad => Mechanism::AesKeyWrapPad,
            Self::CbcPad(iv) => Mechanism::AesCbcPad(*iv),
        }
    }

    fn write(&self, wrapped: &[u8]) -> Vec<u8> {
        match self {
            Self::KeyWrapPad => [&[1], wrapped].concat(),
            Self::CbcPad(iv) => [&[2], &iv[..], wrapped].concat(),
        }
    }

    fn read(bytes: &[u8]) -> Option<(Self, &[u8])> {
        match bytes.split_first()? {
            (1, wrapped) => Some((Self::KeyWrapPad, wrapped)),
            (2, rest) => rest.split_first_chunk().map(|(iv, wrapped)| (Self::CbcPad(*iv), wrapped)),
            _ => None,
        }
    }
}

/// CKA_EC_POINT is a point in a DER OCTET STRING (PKCS#11 v2.40, mechanisms, §2.3.3); some tokens leave that out.
fn bare_point(shown: &[u8]) -> &[u8] {
    match shown {
        [0x04, length, point @ ..] if usize::from(*length) == point.len() => point,
        point => point,
    }
}

/// The mechanism that makes a pair, and its public half.
fn public_template(algorithm: SigningAlgorithm) -> (Mechanism<'static>, Vec<Attribute>) {
    let mut template = vec![Attribute::Token(false), Attribute::Verify(true)];
    let mechanism = match algorithm.scheme() {
        Scheme::Ecdsa(curve) => {
            template.push(Attribute::EcParams(oid(curve).to_vec()));
            Mechanism::EccKeyPairGen
        }
        Scheme::RsaPss(bits) | Scheme::RsaPkcs1(bits) => {
            template.push(Attribute::ModulusBits(Ulong::new(bits.into())));
            template.push(Attribute::PublicExponent(vec![1, 0, 1]));
            Mechanism::RsaPkcsKeyPairGen
        }
    };
    (mechanism, template)
}

/// A key version's private key. It signs, and does nothing else.
fn private_template(id: VersionId, label: &str, algorithm: SigningAlgorithm, extractable: bool) -> Vec<Attribute> {
    let mut template = vec![
        Attribute::Class(ObjectClass::PRIVATE_KEY),
        Attribute::Token(true),
        Attribute::Private(true),
        Attribute::Sensitive(true),
        Attribute::Extractable(extractable),
        Attribute::Sign(true),
        Attribute::Id(id.to_bytes().to_vec()),
        Attribute::Label(label.as_bytes().to_vec()),
    ];
    match algorithm.scheme() {
        Scheme::Ecdsa(_) => template.extend([Attribute::KeyType(KeyType::EC), Attribute::Derive(false)]),
        Scheme::RsaPss(_) | Scheme::RsaPkcs1(_) => {
            let nothing_else = [Attribute::Decrypt(false), Attribute::Unwrap(false)];
            template.push(Attribute::KeyType(KeyType::RSA));
            template.extend(nothing_else);
        }
    }
    template
}

/// A curve's object identifier in DER.
fn oid(curve: Curve) -> &'static [u8] {
    match curve {
        Curve::P256 => b"\x06\x08\x2a\x86\x48\xce\x3d\x03\x01\x07",
        Curve::P384 => b"\x06\x05\x2b\x81\x04\x00\x22",
    }
}
