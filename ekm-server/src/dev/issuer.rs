//! A token issuer of our own: an RSA key and its JWKS, in files. Real tokens, checked by the same code as Google's.

use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use aws_lc_rs::encoding::AsDer;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::{KeyPair, KeySize};
use aws_lc_rs::signature::{self, KeyPair as _};
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::pki_types::pem::PemObject;
use serde_json::json;

use super::files::{make_directory, write_new};
use crate::start_error::StartError;

pub(crate) const NAME: &str = "https://issuer.localhost";
pub(crate) const KEY_ID: &str = "ekm-dev";

pub(crate) struct Issuer {
    key: KeyPair,
    name: String,
    key_id: String,
}

impl Issuer {
    pub(super) fn open_or_make(directory: &Path) -> Result<Self, StartError> {
        if !directory.join("jwks.json").exists() || !key_file(directory).exists() {
            make(directory)?;
        }
        Self::open(directory)
    }

    pub(super) fn open(directory: &Path) -> Result<Self, StartError> {
        Self::open_key(&key_file(directory), NAME.into(), KEY_ID.into())
    }

    /// An issuer of this name whose RSA key is in a PKCS#8 file.
    pub(crate) fn open_key(file: &Path, name: String, key_id: String) -> Result<Self, StartError> {
        let der = PrivatePkcs8KeyDer::from_pem_file(file).map_err(|error| {
            StartError::Dev(format!("{}: {error}; 'ekm dev' on this directory makes an issuer", file.display()))
        })?;
        let key = KeyPair::from_pkcs8(der.secret_pkcs8_der());
        let key = key.map_err(|error| StartError::Dev(format!("{}: {error}", file.display())))?;
        Ok(Self { key, name, key_id })
    }

    /// Signs an ID token like Google's for a Cloud EKM service agent.
    pub(crate) fn mint(&self, caller: &str, audience: &str, ttl_s: u64) -> Result<String, StartError> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let now = now.map_err(|_| StartError::Dev("the clock is before 1970".into()))?.as_secs();
        let header = json!({"alg": "RS256", "kid": self.key_id, "typ": "JWT"});
        let claims = json!({
            "iss": self.name, "aud": audience, "sub": "100000000000000000001", "email": caller, "email_verified": true,
            "iat": now, "exp": now + ttl_s,
        });
        let encode = |json: serde_json::Value| URL_SAFE_NO_PAD.encode(json.to_string());
        let signed = format!("{}.{}", encode(header), encode(claims));
        let mut signature = vec![0; self.key.public_modulus_len()];
        self.key
            .sign(&signature::RSA_PKCS1_SHA256, &SystemRandom::new(), signed.as_bytes(), &mut signature)
            .map_err(|_| StartError::Dev("cannot sign a token".into()))?;
        Ok(format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature)))
    }
}

/// Where an issuer's key is in its directory.
pub(crate) fn key_file(directory: &Path) -> PathBuf {
    directory.join("private-key.pem")
}

fn make(directory: &Path) -> Result<(), StartError> {
    make_directory(directory)?;
    let failed = |_| StartError::Dev("cannot make an RSA key".into());
    let key = KeyPair::generate(KeySize::Rsa2048).map_err(failed)?;
    let der = key.as_der().map_err(failed)?;
    let pem = zeroize::Zeroizing::new(format!(
        "-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----\n",
        STANDARD.encode(der.as_ref())
    ));
    write_new(&key_file(directory), &pem)?;
    let public = key.public_key();
    let number = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
    let jwk = json!({
        "kty": "RSA", "use": "sig", "alg": "RS256", "kid": KEY_ID,
        "n": number(public.modulus().big_endian_without_leading_zero()),
        "e": number(public.exponent().big_endian_without_leading_zero()),
    });
    write_new(&directory.join("jwks.json"), &json!({"keys": [jwk]}).to_string())
}
