//! A blocking HTTP/1.1 client that also sends what no client should; and curl, for what a common HTTP/2 client does.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

/// A client's TLS settings that trust one certificate and offer these protocols.
pub fn tls_config(ca_file: &Path, alpn: &[&str]) -> ClientConfig {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(ca_file).expect("a certificate")).expect("a certificate");
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let mut config = config.expect("versions").with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
    config
}

enum Stream {
    Plain(TcpStream),
    Tls(Box<StreamOwned<ClientConnection, TcpStream>>),
    Unix(UnixStream),
}

/// One connection.
pub struct Connection {
    stream: Stream,
    unread: Vec<u8>,
}

/// One answer.
#[derive(Debug)]
pub struct Answer {
    /// HTTP status.
    pub status: u16,
    /// Header lines, names in lower case.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: Vec<u8>,
}

impl Answer {
    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON.
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }

    /// A header's value, by its name in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(header, _)| header == name).map(|(_, value)| &**value)
    }

    /// `message` of a google.rpc.Status.
    pub fn message(&self) -> String {
        self.json()["message"].as_str().unwrap_or_default().to_owned()
    }
}

impl Connection {
    /// TLS to `localhost` at this address, trusting this certificate.
    pub fn open(address: SocketAddr, ca_file: &Path) -> io::Result<Self> {
        Self::open_with(address, tls_config(ca_file, &["http/1.1"]))
    }

    /// TLS with settings of the test's own.
    pub fn open_with(address: SocketAddr, config: ClientConfig) -> io::Result<Self> {
        Self::shake_hands(tcp(address)?, config)
    }

    /// The same, with less patience than usual: for TCP, and for each time that the server is waited for.
    pub fn open_within(address: SocketAddr, config: ClientConfig, patience: Duration) -> io::Result<Self> {
        let begun = Instant::now();
        let stream = TcpStream::connect_timeout(&address, patience)?;
        let left = patience.saturating_sub(begun.elapsed()).max(Duration::from_millis(1));
        stream.set_read_timeout(Some(left))?;
        stream.set_write_timeout(Some(left))?;
        stream.set_nodelay(true)?;
        Self::shake_hands(stream, config)
    }

    /// TLS over a connection that there is, with all the time that it has.
    pub fn over(stream: TcpStream, ca_file: &Path) -> io::Result<Self> {
        Self::shake_hands(stream, tls_config(ca_file, &["http/1.1"]))
    }

    fn shake_hands(stream: TcpStream, config: ClientConfig) -> io::Result<Self> {
        let name = ServerName::try_from("localhost").expect("a name");
        let client = ClientConnection::new(Arc::new(config), name).map_err(io::Error::other)?;
        let mut stream = StreamOwned::new(client, stream);
        stream.flush()?;
        while stream.conn.is_handshaking() {
            stream.conn.complete_io(&mut stream.sock)?;
        }
        Ok(Self { stream: Stream::Tls(Box::new(stream)), unread: Vec::new() })
    }

    /// How long to wait for the server from now on, each time that it is waited for.
    pub fn set_patience(&self, patience: Duration) -> io::Result<()> {
        let (read, write) = match &self.stream {
            Stream::Plain(stream) => {
                (stream.set_read_timeout(Some(patience)), stream.set_write_timeout(Some(patience)))
            }
            Stream::Tls(stream) => {
                (stream.sock.set_read_timeout(Some(patience)), stream.sock.set_write_timeout(Some(patience)))
            }
            Stream::Unix(stream) => (stream.set_read_timeout(Some(patience)), stream.set_write_timeout(Some(patience))),
        };
        read.and(write)
    }

    /// Plain TCP.
    pub fn open_plain(address: SocketAddr) -> io::Result<Self> {
        Ok(Self { stream: Stream::Plain(tcp(address)?), unread: Vec::new() })
    }

    /// A Unix socket.
    pub fn open_unix(file: &Path) -> io::Result<Self> {
        let stream = UnixStream::connect(file)?;
        stream.set_read_timeout(Some(Duration::from_secs(60)))?;
        stream.set_write_timeout(Some(Duration::from_secs(60)))?;
        Ok(Self { stream: Stream::Unix(stream), unread: Vec::new() })
    }

    /// The TLS side of the connection.
    pub fn tls(&self) -> Option<&ClientConnection> {
        match &self.stream {
            Stream::Tls(stream) => Some(&stream.conn),
            Stream::Plain(_) | Stream::Unix(_) => None,
        }
    }

    /// Sends bytes as they are.
    pub fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        match &mut self.stream {
            Stream::Plain(stream) => stream.write_all(bytes),
            Stream::Unix(stream) => stream.write_all(bytes),
            Stream::Tls(stream) => stream.write_all(bytes).and_then(|()| stream.flush()),
        }
    }

    /// Sends a POST with these headers, complete with Host and Content-Length, and reads the answer.
    pub fn post_with(&mut self, target: &str, headers: &str, body: &[u8]) -> Answer {
        let head =
            format!("POST {target} HTTP/1.1\r\nHost: localhost\r\n{headers}Content-Length: {}\r\n\r\n", body.len());
        // The server may answer and close before it has taken the whole body.
        let _ = self.send(&[head.as_bytes(), body].concat());
        self.read_answer().expect("an answer")
    }

    /// Sends a POST of JSON with a bearer token.
    pub fn post(&mut self, target: &str, token: &str, body: &str) -> Answer {
        let headers = format!("Authorization: Bearer {token}\r\nContent-Type: application/json\r\n");
        self.post_with(target, &headers, body.as_bytes())
    }

    /// Sends a request of the admin API, with a token and a JSON body if there are any, and reads the answer.
    pub fn admin(&mut self, method: &str, target: &str, token: Option<&str>, body: Option<&str>) -> Answer {
        let token = token.map_or(String::new(), |token| format!("Authorization: Bearer {token}\r\n"));
        let body = body.map_or(String::new(), |body| {
            format!("Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}", body.len())
        });
        let end = if body.is_empty() { "\r\n" } else { "" };
        self.request(&format!("{method} {target} HTTP/1.1\r\nHost: localhost\r\n{token}{body}{end}"))
    }

    /// Sends a whole request as text, and reads the answer.
    pub fn request(&mut self, text: &str) -> Answer {
        let _ = self.send(text.as_bytes());
        self.read_answer().expect("an answer")
    }

    /// Reads one answer; an error of kind `UnexpectedEof` if the server closed instead.
    pub fn read_answer(&mut self) -> io::Result<Answer> {
        let head_end = loop {
            if let Some(at) = find(&self.unread, b"\r\n\r\n") {
                break at + 4;
            }
            self.read_more()?;
        };
        let head = String::from_utf8_lossy(&self.unread[..head_end]).into_owned();
        let mut lines = head.lines();
        let status = lines.next().and_then(|line| line.split(' ').nth(1)?.parse().ok());
        let status = status.ok_or_else(|| io::Error::other(format!("no status in {head:?}")))?;
        let headers: Vec<_> = lines
            .filter_map(|line| line.split_once(':'))
            .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
            .collect();
        let length =
            headers.iter().find(|(name, _)| name == "content-length").and_then(|(_, value)| value.parse().ok());
        let length: usize = length.unwrap_or(0);
        while self.unread.len() < head_end + length {
            self.read_more()?;
        }
        let body = self.unread[head_end..head_end + length].to_vec();
        self.unread.drain(..head_end + length);
        Ok(Answer { status, headers, body })
    }

    /// Whether the server has closed, or does within `patience`, without sending anything more.
    pub fn is_closed_within(&mut self, patience: Duration) -> bool {
        let set = match &self.stream {
            Stream::Plain(stream) => stream.set_read_timeout(Some(patience)),
            Stream::Tls(stream) => stream.sock.set_read_timeout(Some(patience)),
            Stream::Unix(stream) => stream.set_read_timeout(Some(patience)),
        };
        set.expect("a time-out");
        match self.read_more() {
            Ok(()) => false,
            Err(error) => !matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut),
        }
    }

    /// Whether the server has closed already, as far as this machine knows. For TLS only.
    pub fn is_closed(&mut self) -> bool {
        let blocking = |stream: &Stream, blocking: bool| match stream {
            Stream::Tls(stream) => stream.sock.set_nonblocking(!blocking),
            Stream::Plain(_) | Stream::Unix(_) => Err(io::ErrorKind::Unsupported.into()),
        };
        blocking(&self.stream, false).expect("a socket under TLS");
        let read = self.read_more();
        blocking(&self.stream, true).expect("a socket under TLS");
        read.is_err_and(|error| error.kind() != io::ErrorKind::WouldBlock)
    }

    fn read_more(&mut self) -> io::Result<()> {
        let mut buffer = [0; 16 * 1024];
        let read = match &mut self.stream {
            Stream::Plain(stream) => stream.read(&mut buffer),
            Stream::Unix(stream) => stream.read(&mut buffer),
            Stream::Tls(stream) => read_tls(stream, &mut buffer),
        };
        match read {
            Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(read) => {
                self.unread.extend_from_slice(&buffer[..read]);
                Ok(())
            }
            // By a signal that has nothing to do with it; whoever wants more asks again.
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(()),
            Err(error) => Err(error),
        }
    }
}

/// Reads without writing: [`StreamOwned`] would first send what is left to send, and fail if the server has closed,
/// though its answer is there to be read.
fn read_tls(stream: &mut StreamOwned<ClientConnection, TcpStream>, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        match stream.conn.reader().read(buffer) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            outcome => return outcome,
        }
        let read = stream.conn.read_tls(&mut stream.sock)?;
        stream.conn.process_new_packets().map_err(io::Error::other)?;
        if read == 0 {
            return Ok(0);
        }
    }
}

fn tcp(address: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&address, Duration::from_secs(10))?;
    stream.set_read_timeout(Some(Duration::from_secs(60)))?;
    stream.set_write_timeout(Some(Duration::from_secs(60)))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|window| window == needle)
}

/// Posts JSON with curl over HTTP/2; `@FILE` for the content of a file. The answer's body, its status and HTTP's version, and what curl says.
pub fn curl_over_http2(ca_file: &Path, url: &str, header: &str, body: &str) -> (String, String) {
    let output = std::process::Command::new("curl")
        .args(["--http2", "--silent", "--show-error", "--write-out", " %{http_code} %{http_version}", "--cacert"])
        .arg(ca_file)
        .args(["-H", header, "-H", "Content-Type: application/json", "-d", body, url])
        .output()
        .expect("curl");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (text(&output.stdout), text(&output.stderr))
}
