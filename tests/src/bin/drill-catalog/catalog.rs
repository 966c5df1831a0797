//! The catalog as the drill uses it: how it is written, and how its log is read afterwards. As yet it has tables of the drill's own,
//! with a head row for the revision, as the catalog has.

use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use ekm_tests::postgres::{Database, programs};

use crate::history::{Change, Outcome};

/// How long a writer waits for an answer.
const PATIENCE: Duration = Duration::from_secs(4);

/// Makes the tables, with revision 0.
pub fn create(database: &Database) {
    database.psql(
        "CREATE TABLE head (revision bigint); INSERT INTO head VALUES (0);\
         CREATE TABLE changes (revision bigint PRIMARY KEY, id text)",
    );
}

/// Changes the catalog once, on the host with this number, which may not take writes.
pub fn write_change(database: &Database, host: usize, id: &str) -> Outcome {
    let sql = format!(
        "WITH head AS (UPDATE head SET revision = revision + 1 RETURNING revision) \
         INSERT INTO changes SELECT revision, '{id}' FROM head RETURNING revision"
    );
    let one = Database { hosts: vec![database.hosts[host].clone()], ..database.clone() };
    let url = one.url().replace("target_session_attrs=any", "target_session_attrs=read-write");
    let mut psql = Command::new(programs().join("psql"));
    psql.args(["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-c", &sql, &url]).env("PGCONNECT_TIMEOUT", "2");
    psql.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = psql.spawn().expect("psql starts");
    let begun = Instant::now();
    while child.try_wait().expect("a child").is_none() {
        if begun.elapsed() > PATIENCE {
            let _ = child.kill();
            let _ = child.wait();
            return Outcome::Unknown;
        }
        sleep(Duration::from_millis(2));
    }
    let output = child.wait_with_output().expect("a child");
    let errors = String::from_utf8_lossy(&output.stderr);
    let revision = String::from_utf8_lossy(&output.stdout).trim().parse();
    match revision {
        // PostgreSQL acknowledges a commit that stopped waiting for its follower, with a warning.
        Ok(revision) if output.status.success() && errors.is_empty() => Outcome::Acknowledged { revision },
        _ if errors.starts_with("psql: error: connection to server at") => Outcome::Refused,
        _ => Outcome::Unknown,
    }
}

/// The whole log, from the node that takes writes.
///
/// # Errors
/// What PostgreSQL says.
pub fn read_changes(database: &Database) -> Result<Vec<Change>, String> {
    let text = database.try_psql("SELECT revision, id FROM changes ORDER BY revision")?;
    let lines = text.lines().filter_map(|line| line.split_once('|'));
    Ok(lines.map(|(revision, id)| Change { revision: revision.parse().unwrap_or(0), id: id.into() }).collect())
}
