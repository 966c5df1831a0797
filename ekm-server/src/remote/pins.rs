//! Pinned certificates, as in an EKM connection of Cloud KMS: the server shows one of them itself, not one that was issued under it.

use std::path::Path;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_name;
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, DigitallySignedStruct, Error, SignatureScheme};
use x509_parser::prelude::{ASN1Time, FromDer, X509Certificate};

/// Believes whoever holds the private key of a pinned certificate that is valid now, for the host's name.
#[derive(Debug)]
pub(crate) struct PinnedLeaf {
    pins: Vec<CertificateDer<'static>>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl PinnedLeaf {
    pub(crate) fn new(pins: Vec<CertificateDer<'static>>, provider: &CryptoProvider) -> Self {
        Self { pins, algorithms: provider.signature_verification_algorithms }
    }
}

impl ServerCertVerifier for PinnedLeaf {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if !self.pins.iter().any(|pin| pin == leaf) {
            return Err(Error::General("the server's certificate is none of those pinned".into()));
        }
        verify_server_name(&ParsedCertificate::try_from(leaf)?, name)?;
        let bad = || Error::InvalidCertificate(CertificateError::BadEncoding);
        let (_, certificate) = X509Certificate::from_der(leaf).map_err(|_| bad())?;
        let now = i64::try_from(now.as_secs()).ok().and_then(|now| ASN1Time::from_timestamp(now).ok());
        if !certificate.validity().is_valid_at(now.ok_or_else(bad)?) {
            return Err(Error::General("the server's certificate has expired, or is not valid yet".into()));
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signature, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// The certificates in a file, PEM or DER.
pub(crate) fn read_certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let place = file.display();
    let content = std::fs::read(file).map_err(|error| format!("cannot read {place}: {error}"))?;
    if X509Certificate::from_der(&content).is_ok_and(|(rest, _)| rest.is_empty()) {
        return Ok(vec![content.into()]);
    }
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&content).collect();
    match found {
        Ok(found) if !found.is_empty() => Ok(found),
        _ => Err(format!("{place}: there is no certificate in it; PEM or DER is expected")),
    }
}
