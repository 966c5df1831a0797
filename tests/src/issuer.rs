//! A token issuer that also signs what no issuer should.

use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::{KeyPair, KeySize};
use aws_lc_rs::signature::{KeyPair as _, RSA_PKCS1_SHA256, RsaEncoding};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::pki_types::pem::PemObject;
use serde_json::{Value, json};

/// An RSA key, its id, and the name of its issuer.
pub struct Issuer {
    key: KeyPair,
    kid: String,
    name: String,
}

impl Issuer {
    /// The issuer of a data directory of `ekm dev`.
    pub fn of(directory: &Path) -> Self {
        let file = directory.join("issuer/private-key.pem");
        Self::with_key(&file, "ekm-dev", "https://issuer.localhost").expect("ekm dev has made it")
    }

    /// With the key in this file, PKCS#8 in PEM.
    pub fn with_key(file: &Path, kid: &str, name: &str) -> Result<Self, String> {
        let der = PrivatePkcs8KeyDer::from_pem_file(file).map_err(|error| format!("no PKCS#8 key in PEM: {error}"))?;
        let key = KeyPair::from_pkcs8(der.secret_pkcs8_der()).map_err(|error| format!("no RSA key: {error}"))?;
        Ok(Self { key, kid: kid.into(), name: name.into() })
    }

    /// A new key, under this id, that claims to be the same issuer.
    pub fn new(kid: &str) -> Self {
        let key = KeyPair::generate(KeySize::Rsa2048).expect("an RSA key");
        Self { key, kid: kid.into(), name: "https://issuer.localhost".into() }
    }

    /// Seconds since 1970.
    pub fn now() -> u64 {
        SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs()
    }

    /// The header of a good token.
    pub fn header(&self) -> Value {
        json!({"alg": "RS256", "kid": self.kid, "typ": "JWT"})
    }

    /// The claims of a good token.
    pub fn claims(&self) -> Value {
        let now = Self::now();
        json!({"iss": self.name, "aud": "https://localhost", "sub": "1", "email": crate::CALLER, "email_verified": true,
               "iat": now, "exp": now + 3600})
    }

    /// A good token.
    pub fn token(&self) -> String {
        self.sign(&self.header(), &self.claims())
    }

    /// A good token but for some claims; `null` takes one away.
    pub fn token_with(&self, changes: Value) -> String {
        self.sign(&self.header(), &changed(self.claims(), changes))
    }

    /// A good token but for some members of its header; `null` takes one away.
    pub fn token_with_header(&self, changes: Value) -> String {
        self.sign(&changed(self.header(), changes), &self.claims())
    }

    /// Signs any header and claims.
    pub fn sign(&self, header: &Value, claims: &Value) -> String {
        self.sign_text(&header.to_string(), &claims.to_string())
    }

    /// Signs any two texts.
    pub fn sign_text(&self, header: &str, claims: &str) -> String {
        self.sign_as(&RSA_PKCS1_SHA256, header, claims)
    }

    /// Signs any two texts with another RSA scheme.
    pub fn sign_as(&self, scheme: &'static dyn RsaEncoding, header: &str, claims: &str) -> String {
        let signed = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims));
        let mut signature = vec![0; self.key.public_modulus_len()];
        self.key.sign(scheme, &SystemRandom::new(), signed.as_bytes(), &mut signature).expect("a signature");
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
    }

    /// The public key's DER, which algorithm confusion uses as an HMAC key.
    pub fn public_key_der(&self) -> Vec<u8> {
        self.key.public_key().as_ref().to_vec()
    }

    /// Its key, as an entry of a JWKS.
    pub fn jwk(&self) -> Value {
        let public = self.key.public_key();
        json!({"kty": "RSA", "use": "sig", "alg": "RS256", "kid": self.kid,
               "n": URL_SAFE_NO_PAD.encode(public.modulus().big_endian_without_leading_zero()),
               "e": URL_SAFE_NO_PAD.encode(public.exponent().big_endian_without_leading_zero())})
    }
}

fn changed(mut object: Value, changes: Value) -> Value {
    let members = object.as_object_mut().expect("an object");
    for (name, value) in changes.as_object().expect("an object") {
        if value.is_null() {
            members.remove(name);
        } else {
            members.insert(name.clone(), value.clone());
        }
    }
    object
}
