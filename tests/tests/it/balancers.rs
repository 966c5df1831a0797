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
    for file in
        ["examples/vpc.conf", "examples/on-premises.conf", "examples/proxy-protocol.conf", "https.conf", "tcp.cfg"]
    {
        assert!(text.contains(&format!("{file} is fine")), "{text}");
    }
}

/// nginx; it ends when dropped.
struct Nginx {
    process: Child,
    address: SocketAddr,
    directory: Guardian,
}

impl Nginx {
    /// With a configuration made for an address that no other test has.
    fn start(number: u8, text: &str) -> Self {
        let id = std::process::id();
        let address = SocketAddr::from(([127, 100 + number, (id >> 8) as u8, id as u8], 8443));
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
        let log = fs::File::create(directory.directory().join("stderr.log")).unwrap();
        command.arg("-g").arg(format!("daemon off; master_process off; pid {own}/pid;"));
        let process = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().expect("nginx starts");
        let mut nginx = Self { process, address, directory };
        let begun = Instant::now();
        while std::net::TcpStream::connect(address).is_err() {
            let ended = nginx.process.try_wait().unwrap().is_some();
            assert!(!ended && begun.elapsed() < Duration::from_secs(30), "{}", nginx.log());
            sleep(Duration::from_millis(20));
        }
        nginx
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

impl Drop for Nginx {
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

/// The HTTPS proxy before these two, the second one as the backup.
fn https(number: u8, origin: &Path, replicas: [SocketAddr; 2]) -> (Nginx, PathBuf) {
    let edge = Authority::new(origin);
    edge.issue(origin, "edge", &["localhost", "ekm.example.com"]);
    let sample = fs::read_to_string(deploy().join("nginx/https.conf")).unwrap();
    let (head, rest) = sample.split_once("        server 10.20.1.11").unwrap();
    let (_, tail) = rest.split_once("        keepalive 64;").unwrap();
    let [first, second] = replicas;
    // Their trouble is what is looked at: they are not to be left out for it. And this machine may be slow.
    let servers = format!("        server {first} max_fails=0;\n        server {second} max_fails=0 backup;\n");
    let text = format!("{head}{servers}        keepalive 64;{tail}")
        .replace("ekm.example.com", "localhost")
        .replace("/etc/nginx/ekm-ca.pem", origin.join("tls/certificate.pem").to_str().unwrap())
        .replace("/etc/nginx/tls/certificate.pem", origin.join("edge.pem").to_str().unwrap())
        .replace("/etc/nginx/tls/private-key.pem", origin.join("edge-key.pem").to_str().unwrap())
        .replace("40ms", "10s")
        .replace("110ms", "20s")
        .replace("150ms", "20s");
    (Nginx::start(number, &text), edge.ca_file)
}

#[test]
fn the_https_proxy_repeats_what_may_be_repeated_after_503_and_never_after_429() {
    let origin = set_up(&[]);
    let [first, second] = ["first", "second"].map(|name| replica(origin.path(), 200, name));
    let (nginx, ca_file) = https(1, origin.path(), [first.address(), second.address()]);
    let ask = |path: &str| {
        let mut connection = Connection::open(nginx.address, &ca_file).unwrap();
        let answer = connection.post(path, "a.b.c", "{}");
        (answer.status, answer.json()["replica"].as_str().unwrap_or_default().to_owned())
    };
    assert_eq!(ask("/v0/keys/a:wrap"), (200, "first".into()), "{}", nginx.log());
    let request = first.last_request().to_ascii_lowercase();
    assert!(request.contains("authorization: bearer a.b.c") && request.contains("host: localhost"), "{request}");

    let fail = |status: u16| {
        let head = format!("HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: 19\r\n");
        first.set_answer(format!("{head}Connection: close\r\n\r\n{{\"replica\":\"first\"}}").into_bytes());
    };
    fail(503);
    for verb in ["wrap", "unwrap", "asymmetricSign", "getPublicKey", "checkCryptoSpacePermissions"] {
        assert_eq!(ask(&format!("/v0/keys/a:{verb}")), (200, "second".into()), "{verb}\n{}", nginx.log());
    }
    for verb in ["createKey", "destroyKey"] {
        assert_eq!(ask(&format!("/v0/keys/a:{verb}")), (503, "first".into()), "{verb}");
    }
    for status in [400, 401, 403, 404, 429, 500] {
        fail(status);
        assert_eq!(ask("/v0/keys/a:wrap"), (status, "first".into()));
    }
    let lines = nginx.lines(14);
    let retried = lines.iter().find(|line| line.contains("a:unwrap")).unwrap();
    assert!(retried.contains("replica_status=\"503, 200\""), "{retried}");
    assert!(lines.iter().all(|line| !line.contains("a.b.c")), "{lines:?}");
}

#[test]
fn the_https_proxy_answers_503_and_nothing_that_disables_keys_when_no_replica_answers() {
    let origin = set_up(&[]);
    let [first, second] = [0, 1].map(|_| WebServer::serving("{}").address()); // gone at once
    let (nginx, ca_file) = https(2, origin.path(), [first, second]);
    let answer = Connection::open(nginx.address, &ca_file).unwrap().post("/v0/keys/a:wrap", "a.b.c", "{}");
    assert_eq!(answer.status, 503, "{answer:?}");
    assert_eq!(answer.json()["code"], 14);

    // Nor when somebody without the EKM's certificate answers.
    let stranger = tempfile::tempdir().unwrap();
    let own = Authority::new(stranger.path());
    fs::create_dir(stranger.path().join("tls")).unwrap();
    own.issue(&stranger.path().join("tls"), "certificate", &["localhost"]);
    fs::rename(stranger.path().join("tls/certificate-key.pem"), stranger.path().join("tls/private-key.pem")).unwrap();
    let stranger = replica(stranger.path(), 200, "stranger");
    let (nginx, ca_file) = https(3, origin.path(), [stranger.address(), stranger.address()]);
    let answer = Connection::open(nginx.address, &ca_file).unwrap().post("/v0/keys/a:wrap", "a.b.c", "{}");
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
        Nginx::start(number, &template::render(&template, &variables).replace("110ms", "20s"))
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
