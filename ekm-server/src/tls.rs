//! TLS for the EKM listener and the admin plane: one certificate each, exchanged while running.
//!
//! TLS 1.3 and 1.2, X25519MLKEM768 preferred, no session tickets: with an ECDSA certificate a resumed handshake costs as much as a
//! full one (measured: 80 and 84 µs), and tickets would not work across frontends.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use arc_swap::ArcSwap;
use rustls::RootCertStore;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{ClientHello, NoClientAuth, NoServerSessionStorage, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;

/// Why a certificate cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// Not there or no PEM.
    #[error("{file}: {cause}")]
    File {
        /// The file.
        file: String,
        /// What is wrong.
        cause: String,
    },
    /// Key and certificate do not belong together, or the key's kind is not supported.
    #[error("certificate and private key do not work together: {0}")]
    Pair(rustls::Error),
}

/// The certificate in use, and the files that it comes from.
pub struct Certificate {
    certificate_file: PathBuf,
    private_key_file: PathBuf,
    current: ArcSwap<CertifiedKey>,
}

impl std::fmt::Debug for Certificate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Certificate({})", self.certificate_file.display())
    }
}

impl ResolvesServerCert for Certificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current.load_full())
    }
}

impl Certificate {
    /// Reads both files. Blocking.
    pub fn load(certificate_file: &Path, private_key_file: &Path) -> Result<Self, CertificateError> {
        let current = ArcSwap::from_pointee(read(certificate_file, private_key_file)?);
        Ok(Self { certificate_file: certificate_file.into(), private_key_file: private_key_file.into(), current })
    }

    /// Reads both files again; says whether the certificate is another one now. If they are not fit, the old one stays. Blocking.
    pub fn reload(&self) -> Result<bool, CertificateError> {
        let new = read(&self.certificate_file, &self.private_key_file)?;
        if new.cert == self.current.load().cert {
            return Ok(false);
        }
        self.current.store(Arc::new(new));
        Ok(true)
    }
}

fn read(certificate_file: &Path, private_key_file: &Path) -> Result<CertifiedKey, CertificateError> {
    let refused = |file: &Path, cause: String| CertificateError::File { file: file.display().to_string(), cause };
    let chain = CertificateDer::pem_file_iter(certificate_file)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|error| refused(certificate_file, error.to_string()))?;
    if chain.is_empty() {
        return Err(refused(certificate_file, "there is no certificate in it".into()));
    }
    let key =
        PrivateKeyDer::from_pem_file(private_key_file).map_err(|error| refused(private_key_file, error.to_string()))?;
    CertifiedKey::from_der(chain, key, &aws_lc_rs::default_provider()).map_err(CertificateError::Pair)
}

/// Believes client certificates of the authorities in a file; with `optional` a client may also come without one. Blocking.
pub fn client_verifier(ca_file: &Path, optional: bool) -> Result<Arc<dyn ClientCertVerifier>, CertificateError> {
    let refused = |cause: String| CertificateError::File { file: ca_file.display().to_string(), cause };
    let mut roots = RootCertStore::empty();
    let authorities = CertificateDer::pem_file_iter(ca_file).map_err(|error| refused(error.to_string()))?;
    for authority in authorities {
        let added = authority.map_err(|error| refused(error.to_string())).map(|authority| roots.add(authority))?;
        added.map_err(|error| refused(error.to_string()))?;
    }
    let provider = Arc::new(aws_lc_rs::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
    let verifier = if optional { verifier.allow_unauthenticated() } else { verifier };
    verifier.build().map_err(|error| refused(error.to_string()))
}

/// The server's side of TLS; without `clients` nobody is asked for a certificate.
pub fn server_config(
    certificate: Arc<Certificate>,
    clients: Option<Arc<dyn ClientCertVerifier>>,
) -> Result<rustls::ServerConfig, rustls::Error> {
    let mut config = rustls::ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_client_cert_verifier(clients.unwrap_or_else(|| Arc::new(NoClientAuth)))
        .with_cert_resolver(certificate);
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}
