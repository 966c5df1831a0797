//! A certificate authority that lives as long as the test.

use std::fs;
use std::path::{Path, PathBuf};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, PKCS_ECDSA_P256_SHA256};

/// A certificate authority, and its certificate in a file that clients trust.
pub struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    /// Its certificate, PEM.
    pub ca_file: PathBuf,
}

impl Authority {
    /// A new one, with its certificate in this directory.
    pub fn new(directory: &Path) -> Self {
        let mut parameters = CertificateParams::default();
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        parameters.distinguished_name.push(DnType::CommonName, "EKM test authority");
        let issuer = CertifiedIssuer::self_signed(parameters, key()).expect("a certificate");
        let ca_file = directory.join("ca.pem");
        fs::write(&ca_file, issuer.as_ref().pem()).expect("writable");
        Self { issuer, ca_file }
    }

    /// A certificate for these DNS names and IP addresses, with the first as its common name (which is how PostgreSQL tells a
    /// client's user), and its private key, as `NAME.pem` and `NAME-key.pem` in the directory.
    pub fn issue(&self, directory: &Path, name: &str, names: &[&str]) -> (PathBuf, PathBuf) {
        let key = key();
        let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
        let mut parameters = CertificateParams::new(names.clone()).expect("names");
        parameters.distinguished_name.push(DnType::CommonName, names.first().expect("a name").as_str());
        let certificate = parameters.signed_by(&key, &self.issuer).expect("a certificate");
        let files = (directory.join(format!("{name}.pem")), directory.join(format!("{name}-key.pem")));
        fs::write(&files.0, certificate.pem()).expect("writable");
        fs::write(&files.1, key.serialize_pem()).expect("writable");
        files
    }
}

fn key() -> KeyPair {
    KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).expect("a key")
}
