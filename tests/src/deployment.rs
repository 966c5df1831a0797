//! Several frontends on one PostgreSQL catalog, and what an operator says to them.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::Arc;

use serde_json::{Value, json};

use crate::postgres::{self, Database};
use crate::process::{Directory, Ekm, run_ekm, set_up};
use crate::{Answer, CALLER, base64};

/// Frontends with the same catalog, keys, certificate and issuer, each with a directory of its own.
pub struct Deployment {
    /// The catalog's database.
    pub database: Database,
    first: Directory,
}

impl Deployment {
    /// A new catalog in a database of its own. The arguments are those of `ekm dev`,
    /// which chooses the custody.
    pub fn new(arguments: &[&str]) -> Self {
        Self::on(postgres::database(), arguments)
    }

    /// The same on a database that is there and empty.
    pub fn on(database: Database, arguments: &[&str]) -> Self {
        Self::of(database, set_up(arguments))
    }

    /// The same with what `ekm dev` has set up in this directory.
    pub fn of(database: Database, first: Directory) -> Self {
        let deployment = Self { database, first };
        // On a loaded machine, connecting may take longer than the service waits.
        let mut attempts = (0..5).map(|_| deployment.catalog_command("migrate"));
        let migrated = attempts.find(|output| !String::from_utf8_lossy(&output.stderr).contains("catalog_unreachable"));
        assert!(migrated.as_ref().is_some_and(|output| output.status.success()), "{migrated:?}");
        deployment
    }

    /// A directory for one more frontend.
    pub fn directory(&self) -> Directory {
        let copy = Arc::new(tempfile::tempdir().expect("a temporary directory"));
        let status = Command::new("cp").arg("-a").arg(self.first.path().join(".")).arg(copy.path()).status();
        assert!(status.is_ok_and(|status| status.success()), "cp");
        let _ = fs::remove_file(copy.path().join("stderr.log"));
        copy
    }

    /// The directory whose `softhsm` holds the token of all.
    pub fn token_directory(&self) -> &Path {
        self.first.path()
    }

    /// Starts one more frontend, and waits until it is ready.
    pub fn start(&self) -> Ekm {
        self.start_with(&self.directory(), "")
    }

    /// The same in this directory, with further lines for `[catalog]`.
    pub fn start_with(&self, directory: &Directory, lines: &str) -> Ekm {
        Ekm::serve(directory, |config| self.config(config, lines))
    }

    /// The same without waiting for anything but its listeners.
    pub fn start_unready(&self, directory: &Directory, lines: &str) -> Ekm {
        Ekm::serve_unready(directory, |config| self.config(config, lines))
    }

    /// A configuration with this catalog in the place of `ekm dev`'s, and with further lines for `[catalog]`.
    pub fn config(&self, config: String, lines: &str) -> String {
        let Database { hosts, name, user, password_file, ca_file, .. } = &self.database;
        let catalog = format!(
            "{lines}\n[catalog.postgres]\nhosts = {hosts:?}\ndatabase = \"{name}\"\nuser = \"{user}\"\n\
             password_file = {password_file:?}\nca_file = {ca_file:?}"
        );
        config.replace("sqlite_file = \"catalog.db\"", &catalog)
    }

    /// Runs `ekm catalog …` on the database.
    pub fn catalog_command(&self, command: &str) -> Output {
        let directory = self.directory();
        let file = directory.path().join("catalog.toml");
        let text = fs::read_to_string(directory.path().join("ekm.toml")).expect("ekm dev has been here");
        let limits = "\n[limits]\nrequest_deadline_ms = 20000\n";
        fs::write(&file, self.config(text, "") + limits).expect("writable");
        run_ekm(&["catalog", command, "--config", file.to_str().expect("ASCII")])
    }
}

impl Ekm {
    /// Asks the admin API, on its Unix socket, for a change.
    pub fn ask(&self, request: &Value) -> Answer {
        self.admin().admin("POST", "/v1/changes", None, Some(&request.to_string()))
    }

    /// Changes the catalog, and returns the answer's JSON.
    #[track_caller]
    pub fn change(&self, command: Value) -> Value {
        let answer = self.ask(&json!({"command": command, "reason": "a test"}));
        assert!(matches!(answer.status, 200 | 202), "{command}: {answer:?} {}\n{}", answer.text(), self.log());
        answer.json()
    }

    /// What the admin API shows.
    pub fn show(&self, path: &str) -> Answer {
        self.admin().admin("GET", path, None, None)
    }

    /// Makes a key that the service agent of the tests may use, in the space `v0/cryptospaces/demo`, which is made if it is not there.
    #[track_caller]
    pub fn make_key(&self, path: &str) {
        let space = json!({"command": {"type": "space-create", "path": "v0/cryptospaces/demo"}});
        let answer = self.ask(&space);
        assert!(matches!(answer.status, 200 | 409), "{}", answer.text());
        self.change(key_create(path));
    }

    /// Wraps under a key; the status, and the blob if there is one.
    pub fn try_wrap(&self, path: &str) -> (u16, String) {
        let answer = self.post(&format!("/{path}:wrap"), &json!({"plaintext": base64("text")}).to_string());
        let blob = (answer.status == 200).then(|| answer.json()["wrappedBlob"].as_str().unwrap_or_default().to_owned());
        (answer.status, blob.unwrap_or_default())
    }

    /// Unwraps under a key; the status.
    pub fn try_unwrap(&self, path: &str, blob: &str) -> u16 {
        self.post(&format!("/{path}:unwrap"), &json!({"wrappedBlob": blob}).to_string()).status
    }

    /// `/readyz?verbose`.
    pub fn state(&self) -> String {
        self.ops("/readyz?verbose").text()
    }
}

/// The command that makes a key with a policy of its own.
pub fn key_create(path: &str) -> Value {
    let policy = json!({"own": {"rules": [{"callers": [CALLER], "verbs": ["wrap", "unwrap"]}]}});
    json!({"type": "key-create", "path": path, "space": "v0/cryptospaces/demo", "policy": policy})
}
