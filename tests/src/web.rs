//! A small web server, for issuers that publish their keys, or fail to; also a proxy, as far as a proxy for plain HTTP goes.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};

/// Answers every request with the same bytes, until told otherwise.
pub struct WebServer {
    address: SocketAddr,
    shared: Arc<Shared>,
}

type Handler = Box<dyn Fn(&str) -> Vec<u8> + Send>;

struct Shared {
    answer: Mutex<Handler>,
    hits: AtomicUsize,
    last_request: Mutex<String>,
    ended: AtomicBool,
}

impl WebServer {
    /// Serves this document as JSON.
    pub fn serving(document: &str) -> Self {
        Self::start(document, None)
    }

    /// The same over TLS, with the certificate of a data directory of `ekm dev`.
    pub fn serving_tls(document: &str, directory: &Path) -> Self {
        let certificate = CertificateDer::from_pem_file(directory.join("tls/certificate.pem")).expect("a certificate");
        let key = PrivateKeyDer::from_pem_file(directory.join("tls/private-key.pem")).expect("a key");
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let config = config.expect("versions").with_no_client_auth().with_single_cert(vec![certificate], key);
        Self::start(document, Some(Arc::new(config.expect("a pair"))))
    }

    fn start(document: &str, tls: Option<Arc<ServerConfig>>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address");
        let (answer, last_request) = (Mutex::new(Box::new(|_: &str| Vec::new()) as Handler), Mutex::default());
        let shared = Shared { answer, hits: AtomicUsize::new(0), last_request, ended: AtomicBool::new(false) };
        let server = Self { address, shared: Arc::new(shared) };
        server.set_document(document);
        let shared = Arc::clone(&server.shared);
        thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                if shared.ended.load(Ordering::Relaxed) {
                    return;
                }
                let _ = match &tls {
                    None => shared.answer(client),
                    Some(tls) => ServerConnection::new(Arc::clone(tls))
                        .map_err(std::io::Error::other)
                        .and_then(|tls| shared.answer(StreamOwned::new(tls, client))),
                };
            }
        });
        server
    }

    /// Serves this document from now on.
    pub fn set_document(&self, document: &str) {
        let length = document.len();
        let head = format!("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n");
        self.set_answer(format!("{head}Connection: close\r\n\r\n{document}").into_bytes());
    }

    /// Sends these bytes from now on, whatever they are.
    pub fn set_answer(&self, answer: Vec<u8>) {
        self.set_handler(move |_| answer.clone());
    }

    /// Answers from now on with the bytes that this makes of a request, head and body.
    pub fn set_handler(&self, handler: impl Fn(&str) -> Vec<u8> + Send + 'static) {
        *self.shared.answer.lock().unwrap_or_else(PoisonError::into_inner) = Box::new(handler);
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The last request, head and body.
    pub fn last_request(&self) -> String {
        self.shared.last_request.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// How often it was asked.
    pub fn hits(&self) -> usize {
        self.shared.hits.load(Ordering::Relaxed)
    }
}

impl Shared {
    fn answer<S: Read + Write>(&self, client: S) -> std::io::Result<()> {
        let mut client = BufReader::new(client);
        let (mut request, mut body_bytes) = (String::new(), 0);
        loop {
            let mut line = String::new();
            let is_last = client.read_line(&mut line)? <= 2;
            let lower = line.to_ascii_lowercase();
            if let Some(length) = lower.strip_prefix("content-length:").and_then(|text| text.trim().parse().ok()) {
                body_bytes = length;
            }
            request += &line;
            if is_last {
                break;
            }
        }
        let mut body = vec![0; body_bytes];
        client.read_exact(&mut body)?;
        request += &String::from_utf8_lossy(&body);
        self.last_request.lock().unwrap_or_else(PoisonError::into_inner).clone_from(&request);
        self.hits.fetch_add(1, Ordering::Relaxed);
        let answer = self.answer.lock().unwrap_or_else(PoisonError::into_inner)(&request);
        client.get_mut().write_all(&answer)?;
        client.get_mut().flush()
    }
}

impl Drop for WebServer {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::Relaxed);
        let _ = TcpStream::connect(self.address);
    }
}
