//! The load balancers' configurations in `deploy/`: they are read without a complaint, and the HTTPS proxy repeats what may be repeated.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use ekm_tests::{Authority, Connection, Ekm, Guardian, WebServer, set_up, template};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;

fn deploy() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("deploy")
}

#[test]
fn nginx_and_haproxy_read_every_configuration() {
    let output = Command::new(deploy().join("nginx/check.sh")).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
    // What setup.sh installs is there.
    for file in [
        "examples/vpc.conf",
        "examples/on-premises.conf",
        "examples/proxy-protocol.conf",
        "https.conf",
        "tcp.cfg",
        "https.cfg",
    ] {
        assert!(text.contains(&format!("{file} is fine")), "{text}");
    }
}

/// nginx or HAProxy; it ends when dropped.
struct Proxy {
    process: Child,
    address: SocketAddr,
    directory: Guardian,
}

/// One that no other test has.
fn address(number: u8) -> SocketAddr {
    let id = std::process::id();
    SocketAddr::from(([127, 100 + number, (id >> 8) as u8, id as u8], 8443))
}

impl Proxy {
    /// nginx with a configuration made for an address that no other test has.
    fn nginx(number: u8, text: &str) -> Self {
        let address = address(number);
        let directory = Guardian::new("nginx");
        let own = directory.directory().display();
        let temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"];
        let temporary = temporary.map(|name| format!("{name}_temp_path {own}/{name};")).join(" ");
        let text = text.replace("/var/log/nginx", directory.directory().to_str().unwrap());
        let text = text.replace("http {\n", &format!("http {{\n{temporary}\n"));
        // One process, which ends with its directory's guardian whatever happens; each worker has sockets of its own.
        let text = text.replace("worker_processes auto;", "worker_processes 1;");
        let text = text.replace("listen 8080;", &format!("listen {}:8080;", address.ip()));
        let file = directory.directory().join("nginx.conf");
        fs::write(&file, text.replace("listen 8443", &format!("listen {address}"))).unwrap();
        let mut command = Command::new("/usr/sbin/nginx");
        command.arg("-c").arg(&file);
        command.arg("-g").arg(format!("daemon off; master_process off; pid {own}/pid;"));
        command.stdout(Stdio::null());
        Self::start(command, address, directory)
    }

    /// HAProxy, likewise.
    fn haproxy(number: u8, text: &str) -> Self {
        let address = address(number);
        let directory = Guardian::new("haproxy");
        let text = text.replace("bind :8443", &format!("bind {address}"));
        let text = text.replace("bind :8080", &format!("bind {}:8080", address.ip()));
        // As many file descriptors as that needs are not given to everybody.
        let file = directory.directory().join("haproxy.cfg");
        fs::write(&file, text.replace("maxconn 16384", "maxconn 512")).unwrap();
        let mut command = Command::new("/usr/sbin/haproxy");
        command.arg("-db").arg("-f").arg(&file);
        command.stdout(fs::File::create(directory.directory().join("access.log")).unwrap());
        Self::start(command, address, directory)
    }

    fn start(mut command: Command, address: SocketAddr, directory: Guardian) -> Self {
        let log = fs::File::create(directory.directory().join("stderr.log")).unwrap();
        let process = command.stdin(Stdio::null()).stderr(log).spawn().expect("it is installed");
        let mut proxy = Self { process, address, directory };
        let begun = Instant::now();
        while std::net::TcpStream::connect(address).is_err() {
            let ended = proxy.process.try_wait().unwrap().is_some();
            assert!(!ended && begun.elapsed() < Duration::from_secs(30), "{}", proxy.log());
            sleep(Duration::from_millis(20));
        }
        proxy
    }

    fn log(&self) -> String {
        let logs = ["stderr.log", "error.log"].map(|name| fs::read_to_string(self.directory.directory().join(name)));
        logs.into_iter().map(Result::unwrap_or_default).collect()
    }

    /// The lines of the access log, when there are so many.
    fn lines(&self, count: usize) -> Vec<String> {
        let begun = Instant::now();
        loop {
            let text = fs::read_to_string(self.directory.directory().join("access.log")).unwrap_or_default();
            if text.lines().count() >= count || begun.elapsed() > Duration::from_secs(10) {
                return text.lines().map(str::to_owned).collect();
            }
            sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = kill_process(Pid::from_child(&self.process), Signal::TERM);
        let _ = self.process.wait();
    }
}

/// Answers with this status, and says who it is.
fn replica(directory: &Path, status: u16, name: &str) -> WebServer {
    let server = WebServer::serving_tls("{}", directory);
    let body = json!({"replica": name}).to_string();
    let head = format!("HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {}\r\n", body.len());
    server.set_answer(format!("{head}Connection: close\r\n\r\n{body}").into_bytes());
    server
}

/// A kind of HTTPS proxy.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Nginx,
    Haproxy,
}

/// The HTTPS proxy before these two, where the second one is asked only when the first has failed.
fn https(kind: Kind, number: u8, origin: &Path, replicas: [SocketAddr; 2]) -> (Proxy, PathBuf) {
    let edge = Authority::new(origin);
    edge.issue(origin, "edge", &["localhost", "ekm.example.com"]);
    let file = |name: &str| origin.join(name).to_str().unwrap().to_owned();
    let [first, second] = replicas;
    // Their trouble is what is looked at: they are not to be left out for it.
    let text = match kind {
        Kind::Nginx => {
            let sample = fs::read_to_string(deploy().join("nginx/https.conf")).unwrap();
            let (head, rest) = sample.split_once("        server 10.20.1.11").unwrap();
            let (_, tail) = rest.split_once("        keepalive 64;").unwrap();
            let servers = format!("        server {first} max_fails=0;\n        server {second} max_fails=0 backup;\n");
            format!("{head}{servers}        keepalive 64;{tail}")
        }
        Kind::Haproxy => {
            let sample = fs::read_to_string(deploy().join("haproxy/https.cfg")).unwrap();
            let lines = sample.lines().filter(|line| !line.starts_with("    server a3"));
            let text: String = lines.map(|line| format!("{line}\n")).collect();
            text.replace("10.20.1.11:8443", &first.to_string())
                .replace("10.20.1.12:8443", &second.to_string())
                .replace(" verifyhost ekm.example.com check ", " verifyhost ekm.example.com ")
                .replace("balance leastconn", "balance first")
        }
    };
    // And this machine may be slow.
    let times = [("105ms", "20s"), ("40ms", "10s"), ("125ms", "20s"), ("150ms", "20s")];
    let text = times.into_iter().fold(text, |text, (from, to)| text.replace(from, to));
    let text = text.replace("ekm.example.com", "localhost");
    let proxy = match kind {
        Kind::Nginx => {
            let text = text
                .replace("/etc/nginx/ekm-ca.pem", &file("tls/certificate.pem"))
                .replace("/etc/nginx/tls/certificate.pem", &file("edge.pem"))
                .replace("/etc/nginx/tls/private-key.pem", &file("edge-key.pem"));
            Proxy::nginx(number, &text)
        }
        Kind::Haproxy => {
            fs::copy(file("edge-key.pem"), file("edge.pem.key")).unwrap();
            let text = text
                .replace("/etc/haproxy/ekm-ca.pem", &file("tls/certificate.pem"))
                .replace("/etc/haproxy/tls/certificate.pem", &file("edge.pem"));
            Proxy::haproxy(number, &text)
        }
    };
    (proxy, edge.ca_file)
}

#[test]
fn nginx_repeats_what_may_be_repeated_after_503_and_never_after_429() {
    repeats_what_may_be_repeated(Kind::Nginx, 1, "replica_status=\"503, 200\"");
}

#[test]
fn haproxy_repeats_what_may_be_repeated_after_503_and_never_after_429() {
    repeats_what_may_be_repeated(Kind::Haproxy, 6, "replica=replicas/a2 retries=+1 ");
}

fn repeats_what_may_be_repeated(kind: Kind, number: u8, in_the_log: &str) {
    let origin = set_up(&[]);
    let [first, second] = ["first", "second"].map(|name| replica(origin.path(), 200, name));
    let (proxy, ca_file) = https(kind, number, origin.path(), [first.address(), second.address()]);
    let ask = |path: &str| {
        let mut connection = Connection::open(proxy.address, &ca_file).unwrap();
        let answer = connection.post(path, "a.b.c", "{}");
        (answer.status, answer.json()["replica"].as_str().unwrap_or_default().to_owned())
    };
    assert_eq!(ask("/v0/keys/a:wrap"), (200, "first".into()), "{}", proxy.log());
    let request = first.last_request().to_ascii_lowercase();
    assert!(request.contains("authorization: bearer a.b.c") && request.contains("host: localhost"), "{request}");

    let fail = |status: u16| {
        let head = format!("HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: 19\r\n");
        first.set_answer(format!("{head}Connection: close\r\n\r\n{{\"replica\":\"first\"}}").into_bytes());
    };
    fail(503);
    for verb in ["wrap", "unwrap", "asymmetricSign", "getPublicKey", "checkCryptoSpacePermissions"] {
        assert_eq!(ask(&format!("/v0/keys/a:{verb}")), (200, "second".into()), "{verb}\n{}", proxy.log());
    }
    for verb in ["createKey", "destroyKey"] {
        assert_eq!(ask(&format!("/v0/keys/a:{verb}")), (503, "first".into()), "{verb}");
    }
    // What is lost on its way may have been done.
    first.set_answer(Vec::new());
    assert_eq!(ask("/v0/keys/a:wrap"), (200, "second".into()), "{}", proxy.log());
    assert_eq!(ask("/v0/keys/a:createKey"), (503, String::new()), "{}", proxy.log());
    for status in [400, 401, 403, 404, 429, 500] {
        fail(status);
        assert_eq!(ask("/v0/keys/a:wrap"), (status, "first".into()));
    }
    let lines = proxy.lines(16);
    let retried = lines.iter().find(|line| line.contains("a:unwrap")).unwrap();
    assert!(retried.contains(in_the_log), "{retried}");
    assert!(lines.iter().all(|line| !line.contains("a.b.c")), "{lines:?}");
}

#[test]
fn nginx_answers_503_and_nothing_that_disables_keys_when_no_replica_answers() {
    answers_503_when_no_replica_does(Kind::Nginx, [2, 3]);
}

#[test]
fn haproxy_answers_503_and_nothing_that_disables_keys_when_no_replica_answers() {
    answers_503_when_no_replica_does(Kind::Haproxy, [7, 8]);
}

fn answers_503_when_no_replica_does(kind: Kind, numbers: [u8; 2]) {
    let origin = set_up(&[]);
    let [first, second] = [0, 1].map(|_| WebServer::serving("{}").address()); // gone at once
    let (proxy, ca_file) = https(kind, numbers[0], origin.path(), [first, second]);
    let answer = Connection::open(proxy.address, &ca_file).unwrap().post("/v0/keys/a:wrap", "a.b.c", "{}");
    assert_eq!(answer.status, 503, "{answer:?}");
    assert_eq!(answer.json()["code"], 14);

    // Nor when somebody without the EKM's certificate answers.
    let stranger = tempfile::tempdir().unwrap();
    let own = Authority::new(stranger.path());
    fs::create_dir(stranger.path().join("tls")).unwrap();
    own.issue(&stranger.path().join("tls"), "certificate", &["localhost"]);
    fs::rename(stranger.path().join("tls/certificate-key.pem"), stranger.path().join("tls/private-key.pem")).unwrap();
    let stranger = replica(stranger.path(), 200, "stranger");
    let (proxy, ca_file) = https(kind, numbers[1], origin.path(), [stranger.address(), stranger.address()]);
    let answer = Connection::open(proxy.address, &ca_file).unwrap().post("/v0/keys/a:wrap", "a.b.c", "{}");
    assert_eq!((answer.status, stranger.last_request()), (503, String::new()));
}

#[test]
fn through_the_tcp_proxy_the_ekm_shows_its_own_certificate_and_with_the_proxy_protocol_no_connection_comes_about() {
    let ekm = Ekm::dev(&[]);
    let through = |number, proxy_protocol| {
        let template = fs::read_to_string(deploy().join("nginx/stream.conf.tftpl")).unwrap();
        let variables = json!({
            "listen_port": 8443, "primary": ["127.0.0.1:1", ekm.address().to_string()], "backup": [],
            "proxy_protocol": proxy_protocol, "connect_timeout_ms": 10_000, "worker_connections": 512,
        });
        Proxy::nginx(number, &template::render(&template, &variables).replace("110ms", "20s"))
    };
    let nginx = through(4, false);
    // One of the two replicas refuses, which nobody notices but the log.
    for _ in 0..4 {
        let mut connection = Connection::open(nginx.address, &ekm.ready.ca_file).unwrap();
        let body = json!({"plaintext": "bXkgZGF0YSBrZXk="}).to_string();
        assert_eq!(connection.post("/v0/keys/demo:wrap", &ekm.ready.token, &body).status, 200, "{}", nginx.log());
    }
    let lines = nginx.lines(4);
    let retried = lines.iter().find(|line| line.contains("replicas=\"127.0.0.1:1, 127.0.0.1:"));
    assert!(retried.is_some_and(|line| line.contains("connect_s=\"-, ")), "{lines:?}");

    let nginx = through(5, true);
    assert!(Connection::open(nginx.address, &ekm.ready.ca_file).is_err());
}
