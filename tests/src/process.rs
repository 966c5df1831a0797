//! `ekm` as a child process.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde::Deserialize;

use crate::client::{Answer, Connection};
use crate::issuer::Issuer;

/// How long anything may take on a loaded machine before a test gives up.
const PATIENCE: Duration = Duration::from_secs(60);

/// The binary, beside the test's own. `cargo test` alone does not build it; `make test` does.
pub fn ekm_binary() -> PathBuf {
    let own = std::env::current_exe().expect("a test runs from a file");
    let found = own.ancestors().map(|directory| directory.join("ekm")).find(|file| file.is_file());
    found.expect("target/<profile>/ekm is missing: run 'cargo build' first, or 'make test'")
}

/// Runs `ekm` to its end, with its output.
pub fn run_ekm(arguments: &[&str]) -> Output {
    Command::new(ekm_binary()).args(arguments).stdin(Stdio::null()).output().expect("ekm starts")
}

/// A data directory that is removed at the end; shared by the processes that use it one after the other.
pub type Directory = Arc<tempfile::TempDir>;

/// The line that `ekm dev --output json` prints when ready.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "named as in the line")]
pub struct Ready {
    pub base_url: String,
    pub ops_url: String,
    pub ca_file: PathBuf,
    pub key_path: String,
    pub crypto_space_path: String,
    pub token: String,
    pub custody: String,
    pub admin_socket: Option<PathBuf>,
    #[serde(skip)]
    pub admin_address: Option<SocketAddr>,
}

/// A running service; killed when dropped.
pub struct Ekm {
    child: Child,
    /// Everything that it keeps.
    pub directory: Directory,
    /// What `ekm dev` said; for `ekm serve` made up from its log.
    pub ready: Ready,
}

/// A directory that `ekm dev` has set up and left, for `ekm serve` or for another start.
pub fn set_up(arguments: &[&str]) -> Directory {
    Arc::clone(&Ekm::dev(arguments).directory)
}

impl Ekm {
    /// `ekm dev` in a new directory, with deadlines that a loaded test machine keeps.
    pub fn dev(arguments: &[&str]) -> Self {
        Self::dev_in(&Arc::new(tempfile::tempdir().expect("a temporary directory")), arguments)
    }

    /// `ekm dev` in a directory that may have been used before.
    pub fn dev_in(directory: &Directory, arguments: &[&str]) -> Self {
        let mut command = Command::new(ekm_binary());
        command.arg("dev").arg("--data").arg(directory.path());
        command.args(["--listen", "127.0.0.1:0", "--ops-listen", "127.0.0.1:0", "--output", "json"]);
        if !arguments.contains(&"--deadline-ms") {
            command.args(["--deadline-ms", "20000"]);
        }
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log_file(directory));
        let mut child = command.spawn().expect("ekm starts");
        let mut line = String::new();
        let stdout = child.stdout.take().expect("piped");
        BufReader::new(stdout).read_line(&mut line).expect("readable");
        let Ok(ready) = serde_json::from_str(&line) else {
            let _ = child.wait();
            panic!("ekm dev printed {line:?} and this on standard error:\n{}", read_log(directory));
        };
        Self { child, directory: Arc::clone(directory), ready }
    }

    /// `ekm serve` with the configuration that `ekm dev` left in the directory, changed by `edit`, on free ports.
    pub fn serve(directory: &Directory, edit: impl FnOnce(String) -> String) -> Self {
        let serving = Self::serve_unready(directory, edit);
        serving.wait_until_ready();
        serving
    }

    /// As [`Self::serve`], for a service that listens and may not be ready for long.
    pub fn serve_unready(directory: &Directory, edit: impl FnOnce(String) -> String) -> Self {
        Self::serve_with(directory, &[], edit)
    }

    /// The same with further arguments.
    pub fn serve_with(directory: &Directory, arguments: &[&str], edit: impl FnOnce(String) -> String) -> Self {
        Self::serve_by(Command::new(ekm_binary()), directory, arguments, edit)
    }

    /// The same by a command that ends with `ekm`: a profiler's.
    pub fn serve_by(
        mut command: Command,
        directory: &Directory,
        arguments: &[&str],
        edit: impl FnOnce(String) -> String,
    ) -> Self {
        let config = directory.path().join("serve.toml");
        let text = fs::read_to_string(directory.path().join("ekm.toml")).expect("ekm dev has been here");
        let text = text.replace(":8443", ":0").replace(":9443", ":0").replace("\"warn\"", "\"info\"");
        let limits = "\n[limits]\nrequest_deadline_ms = 20000\n";
        fs::write(&config, edit(text + limits)).expect("writable");
        let logged_before = read_log(directory).len();
        command.arg("serve").arg("--config").arg(&config).args(arguments).stdin(Stdio::null()).stdout(Stdio::null());
        let mut child = command.stderr(log_file(directory)).spawn().expect("ekm starts");
        let begun = Instant::now();
        let addresses = loop {
            let log = read_log(directory).split_off(logged_before);
            let lines = log.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
            if let Some(line) = lines.into_iter().find(|line| line["message"] == "listening") {
                break line;
            }
            assert!(child.try_wait().expect("a child").is_none(), "ekm serve ended:\n{log}");
            assert!(begun.elapsed() < PATIENCE, "ekm serve does not come up:\n{log}");
            std::thread::sleep(Duration::from_millis(20));
        };
        let address =
            |name: &str| -> SocketAddr { addresses[name].as_str().expect("an address").parse().expect("one") };
        let ready = Ready {
            base_url: format!("https://localhost:{}", address("ekm").port()),
            ops_url: format!("http://{}", address("ops")),
            ca_file: directory.path().join("tls/certificate.pem"),
            key_path: "v0/keys/demo".into(),
            crypto_space_path: "v0/cryptospaces/demo".into(),
            token: Issuer::of(directory.path()).token(),
            custody: String::new(),
            admin_address: addresses["admin"].as_str().map(|text| text.parse().expect("an address")),
            admin_socket: addresses["admin_socket"].as_str().map(PathBuf::from),
        };
        Self { child, directory: Arc::clone(directory), ready }
    }

    fn wait_until_ready(&self) {
        self.eventually("ready", || self.ops("/readyz").status == 200);
    }

    /// Waits until something is so; fails with the log if it never is.
    pub fn eventually(&self, what: &str, mut condition: impl FnMut() -> bool) {
        let begun = Instant::now();
        while !condition() {
            assert!(begun.elapsed() < PATIENCE, "never {what}:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// The EKM listener's address.
    pub fn address(&self) -> SocketAddr {
        let port = self.ready.base_url.rsplit(':').next().expect("a port");
        SocketAddr::from(([127, 0, 0, 1], port.parse().expect("a port")))
    }

    /// A new TLS connection, HTTP/1.1.
    pub fn connect(&self) -> Connection {
        let opened = Connection::open(self.address(), &self.ready.ca_file);
        opened.unwrap_or_else(|error| panic!("no connection: {error}\n{}", self.log()))
    }

    /// One request on a connection of its own, with a good token and JSON.
    pub fn post(&self, path_and_verb: &str, body: &str) -> Answer {
        self.connect().post(path_and_verb, &self.ready.token, body)
    }

    /// Wraps under the demo key, and returns the blob in base64.
    pub fn wrap(&self, plaintext: &[u8], aad: &[u8]) -> String {
        let body = serde_json::json!({
            "plaintext": crate::base64(plaintext), "additionalAuthenticatedData": crate::base64(aad),
        });
        let answer = self.post("/v0/keys/demo:wrap", &body.to_string());
        assert_eq!(answer.status, 200, "{answer:?}\n{}", self.log());
        answer.json()["wrappedBlob"].as_str().expect("a blob").to_owned()
    }

    /// Unwraps under the demo key.
    pub fn unwrap(&self, blob: &str, aad: &[u8]) -> Answer {
        let body = serde_json::json!({"wrappedBlob": blob, "additionalAuthenticatedData": crate::base64(aad)});
        self.post("/v0/keys/demo:unwrap", &body.to_string())
    }

    /// Waits until its copy of the catalog on disk is as new as that.
    pub fn eventually_copied(&self, revision: u64) {
        self.eventually("copied", || self.metric("ekm_snapshot_file_revision") >= revision as f64);
    }

    /// A new connection to the admin API's Unix socket: there, `ekm dev` calls its own user `developer`.
    pub fn admin(&self) -> Connection {
        Connection::open_unix(self.ready.admin_socket.as_ref().expect("an admin socket")).expect("a connection")
    }

    /// As [`Self::change`], and waits until this frontend serves what was changed.
    pub fn change_here(&self, command: &serde_json::Value) {
        let revision = self.change(command.clone())["revision"].as_f64().expect("a revision");
        self.eventually("served", || self.metric("ekm_catalog_revision") >= revision);
    }

    /// Makes a key in the demo key's crypto space, with one rule as its policy, and waits until it is served.
    pub fn create_key(&self, path: &str, rule: &serde_json::Value) {
        self.change_here(&serde_json::json!({
            "type": "key-create", "path": path, "space": self.ready.crypto_space_path,
            "policy": {"own": {"rules": [rule]}},
        }));
    }

    /// A token of `ekm dev`'s second person.
    pub fn second_person(&self) -> String {
        self.issuer().token_with(serde_json::json!({"aud": "ekm-admin", "email": "second@localhost"}))
    }

    /// GET on the ops listener.
    pub fn ops(&self, path: &str) -> Answer {
        let address = self.ready.ops_url.strip_prefix("http://").expect("http").parse().expect("an address");
        Connection::open_plain(address)
            .expect("TCP")
            .request(&format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"))
    }

    /// The value of one metric, by its name with labels as in the text format; 0 if it is not there.
    pub fn metric(&self, name: &str) -> f64 {
        let text = self.ops("/metrics").text();
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok());
        line.unwrap_or(0.0)
    }

    /// The issuer whose tokens it accepts.
    pub fn issuer(&self) -> Issuer {
        Issuer::of(self.directory.path())
    }

    /// Everything on standard error, over all processes in this directory.
    pub fn log(&self) -> String {
        read_log(&self.directory)
    }

    /// Every line of the audit log.
    pub fn audit(&self) -> Vec<serde_json::Value> {
        let text = fs::read_to_string(self.directory.path().join("audit.jsonl")).unwrap_or_default();
        text.lines().map(|line| serde_json::from_str(line).expect("every audit line is JSON")).collect()
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.child.id().cast_signed()).expect("a process id");
        kill_process(pid, signal).expect("it is there");
    }

    /// Waits for its end.
    pub fn wait(&mut self) -> ExitStatus {
        let begun = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().expect("a child") {
                return status;
            }
            assert!(begun.elapsed() < PATIENCE, "ekm does not end:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().expect("a child").is_none()
    }

    /// Fails if any of these texts is in the log or the audit log.
    pub fn assert_not_leaked(&self, secrets: &[&str]) {
        let audit = fs::read_to_string(self.directory.path().join("audit.jsonl")).unwrap_or_default();
        for (place, text) in [("log", self.log()), ("audit log", audit), ("metrics", self.ops("/metrics").text())] {
            for secret in secrets {
                assert!(!text.contains(secret), "a secret is in the {place}: {secret}");
            }
        }
    }
}

impl Drop for Ekm {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn log_file(directory: &Directory) -> File {
    let file = directory.path().join("stderr.log");
    File::options().append(true).create(true).open(file).expect("writable")
}

fn read_log(directory: &Directory) -> String {
    read(&directory.path().join("stderr.log"))
}

fn read(file: &Path) -> String {
    let mut text = Vec::new();
    if let Ok(mut file) = File::open(file) {
        let _ = file.read_to_end(&mut text);
    }
    String::from_utf8_lossy(&text).into_owned()
}
