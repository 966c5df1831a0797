//! The frontends of the drill: `ekm serve` on one catalog, with directories of their own.

use std::fs;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ekm_tests::postgres::Database;
use ekm_tests::{CALLER, Directory, Ekm, base64, run_ekm, set_up};
use serde_json::json;

use crate::catalog::{Admin, Sent};
use crate::history::Outcome;

/// The keys that writers change.
pub const WRITTEN: [&str; 2] = ["v0/keys/written-a", "v0/keys/written-b"];

/// The key that is paused and let go on, to see when frontends refuse it.
pub const REVOKED: &str = "v0/keys/revoked";

/// How long a cold start may take before nobody waits for it any more.
const PATIENCE: Duration = Duration::from_secs(20);

/// Directories for frontends with the same key file, certificate and issuer, and begins the catalog that they share.
pub fn set_up_directories<const COUNT: usize>(database: &Database) -> [Directory; COUNT] {
    let first = set_up(&[]);
    let directories = std::array::from_fn(|number| if number == 0 { Arc::clone(&first) } else { copy(&first) });
    for directory in &directories {
        use_database(directory, database);
    }
    let config = first.path().join("ekm.toml");
    let output = run_ekm(&["catalog", "migrate", "--config", config.to_str().expect("ASCII")]);
    assert!(output.status.success(), "ekm catalog migrate: {}", String::from_utf8_lossy(&output.stderr));
    directories
}

fn copy(from: &Directory) -> Directory {
    let to = Arc::new(tempfile::tempdir().expect("a temporary directory"));
    let status = Command::new("cp").arg("-a").arg(from.path().join(".")).arg(to.path()).status();
    assert!(status.is_ok_and(|status| status.success()), "cp");
    to
}

/// Has the frontend of this directory use this database.
pub fn use_database(directory: &Directory, database: &Database) {
    let config = directory.path().join("ekm.toml");
    let text = fs::read_to_string(&config).expect("readable");
    let (head, rest) = text.split_once("[catalog]\n").expect("a section");
    let rest = rest.split_once("\n[software]").expect("another one").1;
    let Database { hosts, name, user, password_file, ca_file, .. } = database;
    let catalog = format!(
        "[catalog]\nsnapshot_file = \"snapshot.db\"\n[catalog.postgres]\nhosts = {hosts:?}\ndatabase = {name:?}\nuser = {user:?}\n\
         password_file = {password_file:?}\nca_file = {ca_file:?}\n"
    );
    fs::write(&config, format!("{head}{catalog}\n[software]{rest}")).expect("writable");
}

/// Starts a frontend.
pub fn start(directory: &Directory) -> Ekm {
    Ekm::serve(directory, |config| config)
}

/// Makes the keys of the drill; returns the catalog's revision after that.
pub fn make_keys(ekm: &Ekm) -> u64 {
    let mut admin = Admin::of(ekm);
    let policy = json!({"rules": [{"callers": [CALLER], "verbs": ["wrap", "unwrap"]}]});
    let space = "v0/cryptospaces/drill";
    let key = |path: &str| json!({"type": "key-create", "path": path, "space": space, "policy": {"own": policy}});
    let mut commands = vec![json!({"type": "space-create", "path": space}), key("v0/keys/demo"), key(REVOKED)];
    commands.extend(WRITTEN.map(key));
    let mut revision = 0;
    for (number, command) in commands.iter().enumerate() {
        match admin.change(&format!("made{number}"), command, None) {
            Sent::Certain(Outcome::Acknowledged { revision: made }, _) => revision = made,
            Sent::Certain(_, error) | Sent::Again(error) => panic!("{command}: {error}"),
        }
    }
    revision
}

/// Starts a frontend, and measures the time until it has wrapped.
pub fn time_cold_start(directory: &Directory) -> Result<Duration, String> {
    let begun = Instant::now();
    let ekm = Ekm::serve_unready(directory, |config| config);
    loop {
        let answer = ekm.post("/v0/keys/demo:wrap", &json!({"plaintext": base64("cold")}).to_string());
        if answer.status == 200 {
            return Ok(begun.elapsed());
        }
        if begun.elapsed() > PATIENCE {
            return Err(format!("a frontend's first wrap: {} {}", answer.status, answer.text()));
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}
