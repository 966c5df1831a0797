//! Checking an EKM's signatures with the public key that it shows.

use aws_lc_rs::signature::{self, UnparsedPublicKey, VerificationAlgorithm};
use x509_parser::prelude::FromDer;
use x509_parser::x509::SubjectPublicKeyInfo;

/// The algorithms of Cloud KMS that sign data, by their names there.
pub(crate) const ALGORITHMS: [(&str, &dyn VerificationAlgorithm); 10] = [
    ("EC_SIGN_P256_SHA256", &signature::ECDSA_P256_SHA256_ASN1),
    ("EC_SIGN_P384_SHA384", &signature::ECDSA_P384_SHA384_ASN1),
    ("RSA_SIGN_PSS_2048_SHA256", &signature::RSA_PSS_2048_8192_SHA256),
    ("RSA_SIGN_PSS_3072_SHA256", &signature::RSA_PSS_2048_8192_SHA256),
    ("RSA_SIGN_PSS_4096_SHA256", &signature::RSA_PSS_2048_8192_SHA256),
    ("RSA_SIGN_PSS_4096_SHA512", &signature::RSA_PSS_2048_8192_SHA512),
    ("RSA_SIGN_PKCS1_2048_SHA256", &signature::RSA_PKCS1_2048_8192_SHA256),
    ("RSA_SIGN_PKCS1_3072_SHA256", &signature::RSA_PKCS1_2048_8192_SHA256),
    ("RSA_SIGN_PKCS1_4096_SHA256", &signature::RSA_PKCS1_2048_8192_SHA256),
    ("RSA_SIGN_PKCS1_4096_SHA512", &signature::RSA_PKCS1_2048_8192_SHA512),
];

/// Says why `signature` is not one of `data` under this PEM key, if it is not.
pub(crate) fn verify(algorithm: &str, public_key_pem: &str, data: &[u8], signature: &[u8]) -> Result<(), String> {
    let name = algorithm.strip_prefix("ALGORITHM_").unwrap_or(algorithm);
    let found = ALGORITHMS.iter().find(|(known, _)| *known == name);
    let (_, verification) =
        found.ok_or_else(|| format!("'{algorithm}' is no algorithm of Cloud KMS that signs data"))?;
    let (_, pem) = x509_parser::pem::parse_x509_pem(public_key_pem.as_bytes())
        .map_err(|_| "the public key is not PEM".to_owned())?;
    if pem.label != "PUBLIC KEY" {
        return Err(format!("the public key's PEM is called '{}' and not 'PUBLIC KEY'", pem.label.escape_debug()));
    }
    let (_, info) = SubjectPublicKeyInfo::from_der(&pem.contents)
        .map_err(|_| "the public key is no SubjectPublicKeyInfo".to_owned())?;
    let key = UnparsedPublicKey::new(*verification, &info.subject_public_key.data);
    key.verify(data, signature).map_err(|_| format!("the signature is not one of {name} with the key's public key"))
}

#[cfg(test)]
mod tests {
    use aws_lc_rs::encoding::{AsDer, PublicKeyX509Der};
    use aws_lc_rs::rand::SystemRandom;
    use aws_lc_rs::rsa::{KeyPair as RsaKeyPair, KeySize};
    use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair, RSA_PSS_SHA256};
    use base64::Engine;
    use base64::engine::general_purpose::STANDARD;

    use super::*;

    fn pem(der: &[u8]) -> String {
        format!("-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n", STANDARD.encode(der))
    }

    #[test]
    fn a_signature_fits_its_data_its_key_and_its_algorithm_and_nothing_else() {
        let ec = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING).unwrap();
        let der: PublicKeyX509Der<'_> = ec.public_key().as_der().unwrap();
        let signature = ec.sign(&SystemRandom::new(), b"data").unwrap();
        let key = pem(der.as_ref());
        verify("EC_SIGN_P256_SHA256", &key, b"data", signature.as_ref()).unwrap();
        verify("ALGORITHM_EC_SIGN_P256_SHA256", &key, b"data", signature.as_ref()).unwrap();
        assert!(verify("EC_SIGN_P256_SHA256", &key, b"other", signature.as_ref()).is_err());
        assert!(verify("RSA_SIGN_PSS_2048_SHA256", &key, b"data", signature.as_ref()).is_err());
        assert!(verify("HMAC_SHA256", &key, b"data", signature.as_ref()).unwrap_err().contains("no algorithm"));

        let rsa = RsaKeyPair::generate(KeySize::Rsa2048).unwrap();
        let der: PublicKeyX509Der<'_> = rsa.public_key().as_der().unwrap();
        let mut signature = vec![0; rsa.public_modulus_len()];
        rsa.sign(&RSA_PSS_SHA256, &SystemRandom::new(), b"data", &mut signature).unwrap();
        verify("RSA_SIGN_PSS_2048_SHA256", &pem(der.as_ref()), b"data", &signature).unwrap();
        assert!(verify("RSA_SIGN_PKCS1_2048_SHA256", &pem(der.as_ref()), b"data", &signature).is_err());
    }

    #[test]
    fn what_is_no_public_key_is_told() {
        let refused = |pem: &str| verify("EC_SIGN_P256_SHA256", pem, b"", b"").unwrap_err();
        assert!(refused("").contains("not PEM"));
        assert!(refused("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n").contains("'CERTIFICATE'"));
        assert!(
            refused("-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n").contains("no SubjectPublicKey")
        );
    }
}
