//! What a key does, by Google's names (`CryptoKeyVersionAlgorithm`): it wraps, or signs in one of ten ways.

use aws_lc_rs::digest;
use aws_lc_rs::signature::{self, VerificationAlgorithm};
use serde::{Deserialize, Serialize};

/// What a key does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "&'static str")]
pub enum Algorithm {
    /// wrap and unwrap.
    #[default]
    Symmetric,
    /// asymmetricSign and getPublicKey.
    Signing(SigningAlgorithm),
}

/// The one name that is no signature's.
const SYMMETRIC: &str = "EXTERNAL_SYMMETRIC_ENCRYPTION";
/// In some of Google's texts before each name.
const PREFIX: &str = "ALGORITHM_";

/// How a key signs. The curve or the modulus, the padding, and the digest: all fixed by the name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SigningAlgorithm(u8);

/// The mathematics of a signature.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    /// ECDSA on a curve of NIST's; signatures in DER.
    Ecdsa(Curve),
    /// RSASSA-PSS with a modulus of so many bits. The salt is as long as the digest, and MGF1 uses the same hash.
    RsaPss(u32),
    /// RSASSA-PKCS1-v1_5 with a modulus of so many bits.
    RsaPkcs1(u32),
}

/// A curve of NIST's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Curve {
    /// secp256r1.
    P256,
    /// secp384r1.
    P384,
}

/// A hash of the SHA-2 family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hash {
    /// SHA-256.
    Sha256,
    /// SHA-384.
    Sha384,
    /// SHA-512.
    Sha512,
}

/// By place: [`SigningAlgorithm`] is one, so that it is a byte in every key.
static SIGNING: [(&str, Scheme, Hash); 10] = [
    ("EC_SIGN_P256_SHA256", Scheme::Ecdsa(Curve::P256), Hash::Sha256),
    ("EC_SIGN_P384_SHA384", Scheme::Ecdsa(Curve::P384), Hash::Sha384),
    ("RSA_SIGN_PSS_2048_SHA256", Scheme::RsaPss(2048), Hash::Sha256),
    ("RSA_SIGN_PSS_3072_SHA256", Scheme::RsaPss(3072), Hash::Sha256),
    ("RSA_SIGN_PSS_4096_SHA256", Scheme::RsaPss(4096), Hash::Sha256),
    ("RSA_SIGN_PSS_4096_SHA512", Scheme::RsaPss(4096), Hash::Sha512),
    ("RSA_SIGN_PKCS1_2048_SHA256", Scheme::RsaPkcs1(2048), Hash::Sha256),
    ("RSA_SIGN_PKCS1_3072_SHA256", Scheme::RsaPkcs1(3072), Hash::Sha256),
    ("RSA_SIGN_PKCS1_4096_SHA256", Scheme::RsaPkcs1(4096), Hash::Sha256),
    ("RSA_SIGN_PKCS1_4096_SHA512", Scheme::RsaPkcs1(4096), Hash::Sha512),
];

impl Algorithm {
    /// Everything that is offered.
    pub fn all() -> impl Iterator<Item = Self> {
        std::iter::once(Self::Symmetric).chain(SigningAlgorithm::all().map(Self::Signing))
    }

    /// Google's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Symmetric => SYMMETRIC,
            Self::Signing(signing) => signing.name(),
        }
    }

    /// By Google's name, with or without `ALGORITHM_` before it.
    pub fn from_name(name: &str) -> Option<Self> {
        let name = name.strip_prefix(PREFIX).unwrap_or(name);
        Self::all().find(|algorithm| algorithm.name() == name)
    }

    /// How it signs, if it does.
    pub fn signing(self) -> Option<SigningAlgorithm> {
        match self {
            Self::Symmetric => None,
            Self::Signing(signing) => Some(signing),
        }
    }

    /// Whether it wraps.
    pub fn is_symmetric(&self) -> bool {
        *self == Self::Symmetric
    }
}

/// No name of a [`Algorithm`] that is offered.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("there is no algorithm '{}'; there are {}", .0.escape_debug(), offered())]
pub struct UnknownAlgorithm(String);

fn offered() -> String {
    Algorithm::all().map(Algorithm::name).collect::<Vec<_>>().join(", ")
}

impl std::str::FromStr for Algorithm {
    type Err = UnknownAlgorithm;

    fn from_str(name: &str) -> Result<Self, UnknownAlgorithm> {
        let unknown = || UnknownAlgorithm(name.chars().take(64).collect());
        Self::from_name(name).ok_or_else(unknown)
    }
}

impl TryFrom<String> for Algorithm {
    type Error = UnknownAlgorithm;

    fn try_from(name: String) -> Result<Self, UnknownAlgorithm> {
        name.parse()
    }
}

impl From<Algorithm> for &'static str {
    fn from(algorithm: Algorithm) -> Self {
        algorithm.name()
    }
}

impl SigningAlgorithm {
    /// All of them.
    pub fn all() -> impl Iterator<Item = Self> {
        (0..).zip(&SIGNING).map(|(place, _)| Self(place))
    }

    fn row(self) -> &'static (&'static str, Scheme, Hash) {
        &SIGNING[usize::from(self.0)]
    }

    /// Google's name.
    pub fn name(self) -> &'static str {
        self.row().0
    }

    /// The mathematics.
    pub fn scheme(self) -> Scheme {
        self.row().1
    }

    /// The hash that is signed.
    pub fn hash(self) -> Hash {
        self.row().2
    }

    /// As one byte, for the way to a worker.
    pub(crate) fn to_byte(self) -> u8 {
        self.0
    }

    /// The reverse of [`Self::to_byte`].
    pub(crate) fn from_byte(byte: u8) -> Option<Self> {
        Self::all().find(|algorithm| algorithm.0 == byte)
    }

    /// What verifies its signatures.
    pub(crate) fn verification(self) -> &'static dyn VerificationAlgorithm {
        match (self.scheme(), self.hash()) {
            (Scheme::Ecdsa(Curve::P256), _) => &signature::ECDSA_P256_SHA256_ASN1,
            (Scheme::Ecdsa(Curve::P384), _) => &signature::ECDSA_P384_SHA384_ASN1,
            (Scheme::RsaPss(_) | Scheme::RsaPkcs1(_), _) => self.rsa_verification(),
        }
    }

    /// The same for RSA.
    pub(crate) fn rsa_verification(self) -> &'static signature::RsaParameters {
        match (matches!(self.scheme(), Scheme::RsaPss(_)), self.hash()) {
            (true, Hash::Sha256) => &signature::RSA_PSS_2048_8192_SHA256,
            (true, Hash::Sha384) => &signature::RSA_PSS_2048_8192_SHA384,
            (true, Hash::Sha512) => &signature::RSA_PSS_2048_8192_SHA512,
            (false, Hash::Sha256) => &signature::RSA_PKCS1_2048_8192_SHA256,
            (false, Hash::Sha384) => &signature::RSA_PKCS1_2048_8192_SHA384,
            (false, Hash::Sha512) => &signature::RSA_PKCS1_2048_8192_SHA512,
        }
    }
}

impl Curve {
    /// The length of a coordinate, and of each half of a signature.
    pub fn field_bytes(self) -> usize {
        match self {
            Self::P256 => 32,
            Self::P384 => 48,
        }
    }
}

impl Hash {
    /// As the protocol's `digest` names it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Sha256 => "sha256",
            Self::Sha384 => "sha384",
            Self::Sha512 => "sha512",
        }
    }

    /// The length of a digest.
    pub fn bytes(self) -> usize {
        self.function().output_len()
    }

    /// The hash of `data`.
    pub fn of(self, data: &[u8]) -> Vec<u8> {
        digest::digest(self.function(), data).as_ref().to_vec()
    }

    pub(crate) fn function(self) -> &'static digest::Algorithm {
        match self {
            Self::Sha256 => &digest::SHA256,
            Self::Sha384 => &digest::SHA384,
            Self::Sha512 => &digest::SHA512,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_read_with_and_without_its_prefix_and_written_without() {
        assert_eq!(Algorithm::all().count(), 11);
        for algorithm in Algorithm::all() {
            let json = serde_json::to_string(&algorithm).unwrap();
            assert_eq!(json, format!("\"{}\"", algorithm.name()));
            assert_eq!(serde_json::from_str::<Algorithm>(&json).unwrap(), algorithm);
            assert_eq!(format!("ALGORITHM_{}", algorithm.name()).parse(), Ok(algorithm));
        }
        for signing in SigningAlgorithm::all() {
            assert_eq!(SigningAlgorithm::from_byte(signing.to_byte()), Some(signing));
        }
        assert_eq!(SigningAlgorithm::from_byte(10), None);
    }

    #[test]
    fn a_name_says_which_mathematics_it_stands_for() {
        for signing in SigningAlgorithm::all() {
            let scheme = match signing.scheme() {
                Scheme::Ecdsa(Curve::P256) => "EC_SIGN_P256".into(),
                Scheme::Ecdsa(Curve::P384) => "EC_SIGN_P384".into(),
                Scheme::RsaPss(bits) => format!("RSA_SIGN_PSS_{bits}"),
                Scheme::RsaPkcs1(bits) => format!("RSA_SIGN_PKCS1_{bits}"),
            };
            assert_eq!(signing.name(), format!("{scheme}_{}", signing.hash().name().to_uppercase()));
        }
    }

    #[test]
    fn an_unknown_name_is_answered_with_those_that_there_are() {
        for name in
            ["", "ALGORITHM_", "ec_sign_p256_sha256", "EC_SIGN_P521_SHA512", "ALGORITHM_ALGORITHM_EC_SIGN_P256_SHA256"]
        {
            let error = name.parse::<Algorithm>().unwrap_err().to_string();
            assert!(error.ends_with(", RSA_SIGN_PKCS1_4096_SHA512") && error.contains(&format!("'{name}'")), "{error}");
        }
    }
}
