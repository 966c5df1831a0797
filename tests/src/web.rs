//! A small web server, for issuers that publish their keys, or fail to.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

/// Answers every GET with the same bytes, until told otherwise.
pub struct WebServer {
    address: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    answer: Mutex<Vec<u8>>,
    hits: AtomicUsize,
    ended: AtomicBool,
}

impl WebServer {
    /// Serves this document as JSON.
    pub fn serving(document: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address");
        let shared = Shared { answer: Mutex::default(), hits: AtomicUsize::new(0), ended: AtomicBool::new(false) };
        let server = Self { address, shared: Arc::new(shared) };
        server.set_document(document);
        let shared = Arc::clone(&server.shared);
        thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                if shared.ended.load(Ordering::Relaxed) {
                    return;
                }
                let _ = shared.answer(&client);
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
        *self.shared.answer.lock().unwrap_or_else(PoisonError::into_inner) = answer;
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// How often it was asked.
    pub fn hits(&self) -> usize {
        self.shared.hits.load(Ordering::Relaxed)
    }
}

impl Shared {
    fn answer(&self, mut client: &TcpStream) -> std::io::Result<()> {
        for line in BufReader::new(client).lines() {
            if line?.is_empty() {
                break;
            }
        }
        self.hits.fetch_add(1, Ordering::Relaxed);
        let answer = self.answer.lock().unwrap_or_else(PoisonError::into_inner).clone();
        client.write_all(&answer)
    }
}

impl Drop for WebServer {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::Relaxed);
        let _ = TcpStream::connect(self.address);
    }
}
