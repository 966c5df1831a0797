//! What a server shows before anything is asked of it: TCP, TLS, certificates. Nothing is believed, and nothing is sent.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{WebPkiSupportedAlgorithms, aws_lc_rs, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, Error, ProtocolVersion, SignatureScheme};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

/// A server's side of one handshake.
pub(crate) struct Shown {
    /// The address that this machine called from.
    pub(crate) from: SocketAddr,
    pub(crate) tls: Duration,
    pub(crate) version: Option<ProtocolVersion>,
    /// The leaf first.
    pub(crate) chain: Vec<CertificateDer<'static>>,
}

/// How far it came.
pub(crate) enum NoHandshake {
    Tcp(String),
    Tls(String),
}

/// Connects to an address, and shakes hands under this name; each has `patience`.
pub(crate) async fn look(
    address: SocketAddr,
    name: ServerName<'static>,
    patience: Duration,
) -> Result<Shown, NoHandshake> {
    let (from, _, stream) = connect(address, patience).await.map_err(NoHandshake::Tcp)?;
    let provider = Arc::new(aws_lc_rs::default_provider());
    let verifier = Arc::new(Anybody { algorithms: provider.signature_verification_algorithms });
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let config = config.map_err(|error| NoHandshake::Tls(error.to_string()))?;
    let config = config.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth();
    let begun = Instant::now();
    let connected = timeout(patience, TlsConnector::from(Arc::new(config)).connect(name, stream)).await;
    let stream = connected.map_err(|_| NoHandshake::Tls(format!("no handshake within {} ms", patience.as_millis())))?;
    let stream = stream.map_err(|error| NoHandshake::Tls(error.to_string()))?;
    let tls = begun.elapsed();
    let session = stream.get_ref().1;
    let chain = session.peer_certificates().unwrap_or_default().iter().map(|one| one.clone().into_owned()).collect();
    Ok(Shown { from, tls, version: session.protocol_version(), chain })
}

/// How long a TCP connection takes, and the address that it is made from.
pub(crate) async fn connect(
    address: SocketAddr,
    patience: Duration,
) -> Result<(SocketAddr, Duration, TcpStream), String> {
    let begun = Instant::now();
    let connected = timeout(patience, TcpStream::connect(address)).await;
    let stream = connected.map_err(|_| format!("no answer within {} ms", patience.as_millis()))?;
    let stream = stream.map_err(|error| error.to_string())?;
    let took = begun.elapsed();
    Ok((stream.local_addr().map_err(|error| error.to_string())?, took, stream))
}

/// Takes any certificate: it is only looked at, and the connection is given up.
#[derive(Debug)]
struct Anybody {
    algorithms: WebPkiSupportedAlgorithms,
}

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
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
