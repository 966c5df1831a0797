//! Private keys of custodies `hsm-wrapped` and `software`: signatures in this process.
//!
//! At rest they are PKCS#8, wrapped like all material. In use they are a key object of AWS-LC, which has its own copy on its own heap: not in
//! locked memory, wiped when it is dropped.

use aws_lc_rs::digest::Digest;
use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der, PublicKeyX509Der};
use aws_lc_rs::rsa::{self, KeySize};
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_ASN1_SIGNING, ECDSA_P384_SHA384_ASN1_SIGNING, EcdsaKeyPair, EcdsaSigningAlgorithm, KeyPair,
    RSA_PKCS1_SHA256, RSA_PKCS1_SHA384, RSA_PKCS1_SHA512, RSA_PSS_SHA256, RSA_PSS_SHA384, RSA_PSS_SHA512, RsaEncoding,
};
use zeroize::Zeroizing;

use crate::algorithm::{Curve, Hash, Scheme, SigningAlgorithm};
use crate::public_key::PublicKey;

/// A private key that is ready to sign.
pub struct SigningKey {
    algorithm: SigningAlgorithm,
    pair: Pair,
}

enum Pair {
    Ecdsa(EcdsaKeyPair),
    Rsa(rsa::KeyPair),
}

/// AWS-LC did not do what it was asked for, and does not say why.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the signing key cannot be {0}")]
pub struct SigningFailed(&'static str);

impl SigningFailed {
    /// On its thread.
    pub(crate) const PANICKED: Self = Self("used: its thread panicked");
}

impl SigningKey {
    /// A new one. An RSA key takes seconds.
    pub fn generate(algorithm: SigningAlgorithm) -> Result<Self, SigningFailed> {
        let failed = |_| SigningFailed("made");
        let pair = match algorithm.scheme() {
            Scheme::Ecdsa(curve) => Pair::Ecdsa(EcdsaKeyPair::generate(on(curve)).map_err(failed)?),
            Scheme::RsaPss(bits) | Scheme::RsaPkcs1(bits) => {
                let size = match bits {
                    2048 => KeySize::Rsa2048,
                    3072 => KeySize::Rsa3072,
                    _ => KeySize::Rsa4096,
                };
                Pair::Rsa(rsa::KeyPair::generate(size).map_err(failed)?)
            }
        };
        Ok(Self { algorithm, pair })
    }

    /// From what [`Self::to_pkcs8`] gave. The caller wipes it.
    pub fn from_pkcs8(algorithm: SigningAlgorithm, pkcs8: &[u8]) -> Result<Self, SigningFailed> {
        let failed = |_| SigningFailed("read");
        let pair = match algorithm.scheme() {
            Scheme::Ecdsa(curve) => Pair::Ecdsa(EcdsaKeyPair::from_pkcs8(on(curve), pkcs8).map_err(failed)?),
            Scheme::RsaPss(bits) | Scheme::RsaPkcs1(bits) => {
                let pair = rsa::KeyPair::from_pkcs8(pkcs8).map_err(failed)?;
                if pair.public_modulus_len() * 8 != bits as usize {
                    return Err(SigningFailed("read: its modulus has another length"));
                }
                Pair::Rsa(pair)
            }
        };
        Ok(Self { algorithm, pair })
    }

    /// PKCS#8 (RFC 5208), unencrypted.
    pub fn to_pkcs8(&self) -> Result<Zeroizing<Vec<u8>>, SigningFailed> {
        let failed = |_| SigningFailed("written");
        match &self.pair {
            // These documents are wiped on drop.
            Pair::Ecdsa(pair) => Ok(Zeroizing::new(pair.to_pkcs8v1().map_err(failed)?.as_ref().to_vec())),
            Pair::Rsa(pair) => {
                let document: Pkcs8V1Der<'_> = pair.as_der().map_err(failed)?;
                Ok(Zeroizing::new(document.as_ref().to_vec()))
            }
        }
    }

    /// Its public half.
    pub fn public_key(&self) -> Result<PublicKey, SigningFailed> {
        let failed = |_| SigningFailed("shown");
        let document: PublicKeyX509Der<'_> = match &self.pair {
            Pair::Ecdsa(pair) => pair.public_key().as_der().map_err(failed)?,
            Pair::Rsa(pair) => pair.public_key().as_der().map_err(failed)?,
        };
        Ok(PublicKey::new(self.algorithm, document.as_ref().to_vec()))
    }

    /// The signature of a digest. P-256 takes some 20 µs, RSA with 4096 bits some 5 ms.
    pub fn sign(&self, digest: &[u8]) -> Result<Vec<u8>, SigningFailed> {
        let failed = |_| SigningFailed("used");
        let digest = Digest::import_less_safe(digest, self.algorithm.hash().function()).map_err(failed)?;
        match &self.pair {
            Pair::Ecdsa(pair) => Ok(pair.sign_digest(&digest).map_err(failed)?.as_ref().to_vec()),
            Pair::Rsa(pair) => {
                let mut signature = vec![0; pair.public_modulus_len()];
                pair.sign_digest(padding(self.algorithm), &digest, &mut signature).map_err(failed)?;
                Ok(signature)
            }
        }
    }

    /// Whether a signature costs so little that another thread would cost more.
    pub fn is_quick(&self) -> bool {
        self.algorithm.scheme() == Scheme::Ecdsa(Curve::P256)
    }
}

fn on(curve: Curve) -> &'static EcdsaSigningAlgorithm {
    match curve {
        Curve::P256 => &ECDSA_P256_SHA256_ASN1_SIGNING,
        Curve::P384 => &ECDSA_P384_SHA384_ASN1_SIGNING,
    }
}

fn padding(algorithm: SigningAlgorithm) -> &'static dyn RsaEncoding {
    match (matches!(algorithm.scheme(), Scheme::RsaPss(_)), algorithm.hash()) {
        (true, Hash::Sha256) => &RSA_PSS_SHA256,
        (true, Hash::Sha384) => &RSA_PSS_SHA384,
        (true, Hash::Sha512) => &RSA_PSS_SHA512,
        (false, Hash::Sha256) => &RSA_PKCS1_SHA256,
        (false, Hash::Sha384) => &RSA_PKCS1_SHA384,
        (false, Hash::Sha512) => &RSA_PKCS1_SHA512,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_of_each_algorithm_signs_what_its_public_half_verifies_also_after_it_was_written_and_read() {
        for algorithm in SigningAlgorithm::all() {
            let made = SigningKey::generate(algorithm).unwrap();
            let key = SigningKey::from_pkcs8(algorithm, &made.to_pkcs8().unwrap()).unwrap();
            let public = made.public_key().unwrap();
            assert_eq!(key.public_key().unwrap(), public);
            public.check().unwrap();
            let digest = algorithm.hash().of(b"text");
            let signature = key.sign(&digest).unwrap();
            assert!(public.verifies(&digest, &signature), "{}", algorithm.name());
            assert!(!public.verifies(&algorithm.hash().of(b"other"), &signature), "{}", algorithm.name());
            assert!(!public.verifies(&digest, &signature[1..]) && !public.verifies(&digest[1..], &signature));
            assert!(key.sign(&digest[1..]).is_err());
            for other in SigningAlgorithm::all().filter(|other| other.scheme() != algorithm.scheme()) {
                let same_key = matches!(
                    (algorithm.scheme(), other.scheme()),
                    (Scheme::RsaPss(a), Scheme::RsaPkcs1(b)) | (Scheme::RsaPkcs1(a), Scheme::RsaPss(b)) if a == b
                );
                let read = SigningKey::from_pkcs8(other, &made.to_pkcs8().unwrap());
                assert_eq!(read.is_ok(), same_key, "{} as {}", algorithm.name(), other.name());
                if same_key && other.hash() == algorithm.hash() {
                    let as_other = PublicKey::new(other, public.der().to_vec());
                    assert!(!as_other.verifies(&digest, &signature), "one padding is not the other");
                }
            }
        }
    }
}
