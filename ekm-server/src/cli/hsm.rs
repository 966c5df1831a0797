//! `ekm hsm`: the tokens behind a frontend, and taking one of them out for maintenance.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use clap::{Args, Subcommand};
use serde_json::json;

use super::change::{ChangeArgs, Session};
use super::client::{Client, ServerArgs};
use super::error::{CliError, Exit};
use super::output::{escape, print, print_json, print_list, time};
use crate::admin::api::{Command, HsmFinding, HsmVerified, HsmVerify, HsmView, ReplicaView};
use crate::process::Output;

/// How long `--wait` waits. Operations end within milliseconds; a frontend that does not follow the catalog goes on sending them.
const DRAIN_PATIENCE: Duration = Duration::from_secs(60);

#[derive(Args)]
#[command(after_help = "Examples:
  ekm hsm status
  ekm hsm verify --repair                                 # after a new token, or an alarm
  ekm hsm drain hsm-a --wait --reason 'firmware 7.8'    # then work on it
  ekm hsm resume hsm-a --reason 'firmware 7.8 is on it'")]
pub(super) struct HsmArgs {
    #[command(flatten)]
    server: ServerArgs,
    #[command(subcommand)]
    command: HsmCommand,
}

#[derive(Subcommand)]
enum HsmCommand {
    /// Show the HSM's replicas as the frontend that answers sees them
    Status,
    /// Look at every key on every replica: there, once, not extractable, and the same everywhere
    Verify {
        /// Give replicas the keys that they lack, as far as the catalog holds them wrapped by the replication key
        #[arg(long)]
        repair: bool,
    },
    /// Take a replica out of use on every frontend; operations under way finish
    ///
    /// It stays so, over restarts too, until 'ekm hsm resume'. Refused if no other replica is serving on the frontend that answers.
    Drain {
        /// The replica's name in the configuration
        name: String,
        /// Even if no other replica is serving: keys in the HSM are answered with 503 then
        #[arg(long)]
        force: bool,
        /// Return when nothing is under way on it any more, on the frontend that answers
        #[arg(long, conflicts_with_all = ["no_wait", "dry_run"])]
        wait: bool,
        #[command(flatten)]
        change: ChangeArgs,
    },
    /// Take a replica back into use, as soon as it has shown that it works
    Resume {
        /// The replica's name in the configuration
        name: String,
        #[command(flatten)]
        change: ChangeArgs,
    },
}

pub(super) async fn run(args: HsmArgs) -> Result<Exit, CliError> {
    let session = Session { client: Client::new(&args.server)?, output: args.server.output };
    match args.command {
        HsmCommand::Status => {
            status(&session).await?;
            Ok(Exit::Done)
        }
        HsmCommand::Verify { repair } => verify(&session, repair).await,
        HsmCommand::Drain { name, force, wait, change } => {
            let command = Command::HsmDrain { name: name.clone(), force };
            let exit = session.change(&change, command, None).await?;
            if wait {
                wait_until_idle(&session, &name).await?;
            }
            Ok(exit)
        }
        HsmCommand::Resume { name, change } => session.change(&change, Command::HsmResume { name }, None).await,
    }
}

/// Page by page, so that progress can be seen and nothing is lost when it is stopped.
async fn verify(session: &Session, repair: bool) -> Result<Exit, CliError> {
    let terminal = std::io::stderr().is_terminal();
    let (mut after, mut checked, mut findings) = (None, 0, Vec::new());
    let away = loop {
        let page: HsmVerified = session.client.ask("v1/hsm/verify", &json!(HsmVerify { after, repair })).await?;
        checked += page.checked;
        findings.extend(page.findings);
        if terminal {
            eprint!("\r\u{1b}[K{checked} of {} keys, {} findings", page.keys, findings.len());
        }
        after = page.next;
        if after.is_none() {
            break page.away;
        }
    };
    if terminal {
        eprintln!();
    }
    for replica in &away {
        eprintln!("{} is away: nobody has looked at it", escape(replica));
    }
    let open = findings.iter().filter(|finding| !finding.repaired).count();
    let headings = ["KEY", "VERSION", "REPLICA", "REPAIRED", "PROBLEM"];
    print_list(
        session.output,
        &findings,
        headings,
        finding_row,
        "every replica that is here holds every key as it should",
    );
    match open {
        0 if away.is_empty() => Ok(Exit::Done),
        0 => Err(CliError::Findings(format!("{} of the replicas could not be looked at", away.len()))),
        _ => Err(CliError::Findings(format!("{open} of {checked} keys are not on every replica as they should be"))),
    }
}

fn finding_row(finding: &HsmFinding) -> [String; 5] {
    [
        finding.key.clone(),
        finding.version.to_string(),
        finding.replica.clone(),
        if finding.repaired { "yes" } else { "no" }.into(),
        finding.problem.clone(),
    ]
}

async fn hsm(session: &Session) -> Result<HsmView, CliError> {
    session.client.get("v1/hsm", &[]).await
}

async fn status(session: &Session) -> Result<(), CliError> {
    let hsm = hsm(session).await?;
    if let Output::Json = session.output {
        print_json(&hsm);
        return Ok(());
    }
    print(&format!(
        "frontend {} (instance {}), since its start: {} hedges, {} retries",
        escape(&hsm.frontend),
        escape(&hsm.instance),
        hsm.hedges,
        hsm.retries
    ));
    let headings = [
        "SHARD",
        "NAME",
        "STATE",
        "SINCE",
        "TOKEN",
        "PROFILE",
        "SESSIONS",
        "IN FLIGHT",
        "QUEUE",
        "LATENCY",
        "OPERATIONS",
        "FAULTS",
        "EJECTIONS",
        "LOSSES",
        "MISSING KEYS",
        "REASON",
    ];
    print_list(session.output, &hsm.replicas, headings, row, "this frontend has no HSM");
    Ok(())
}

fn row(replica: &ReplicaView) -> [String; 16] {
    let token = replica.token.as_ref();
    [
        replica.shard.clone(),
        replica.name.clone(),
        replica.state.clone(),
        time(replica.since),
        token.map_or_else(String::new, |token| token.label.clone()),
        token.map_or_else(String::new, |token| token.profile.clone()),
        token.map_or_else(String::new, |token| token.sessions.to_string()),
        replica.in_flight.to_string(),
        replica.queue.to_string(),
        format!("{:.1} ms", replica.latency_us as f64 / 1000.0),
        replica.operations.to_string(),
        replica.faults.to_string(),
        replica.ejections.to_string(),
        replica.losses.to_string(),
        replica.missing_keys.to_string(),
        replica.reason.clone(),
    ]
}

/// Waits until the frontend that answers sends a replica nothing any more, and nobody waits for anything from it.
async fn wait_until_idle(session: &Session, name: &str) -> Result<(), CliError> {
    let (begun, terminal) = (Instant::now(), std::io::stderr().is_terminal());
    let mut told = false;
    loop {
        let hsm = hsm(session).await?;
        let found = hsm.replicas.iter().find(|replica| replica.name == name);
        let where_ = format!("on {} (instance {})", escape(&hsm.frontend), escape(&hsm.instance));
        let left = found.and_then(left);
        if told && terminal {
            eprint!("\r\u{1b}[K");
        }
        let Some(left) = left else {
            if let Output::Text = session.output {
                print(&format!("{}: nothing is under way {where_}", escape(name)));
            }
            return Ok(());
        };
        if begun.elapsed() > DRAIN_PATIENCE {
            return Err(CliError::Draining(format!(
                "{} is still in use {where_} after {} s: {left}; it stays marked as drained, and 'ekm hsm status' shows how it goes on",
                escape(name),
                DRAIN_PATIENCE.as_secs()
            )));
        }
        if terminal {
            eprint!("{} {where_}: {left}", escape(name));
            told = true;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// Why a replica is not idle yet.
fn left(replica: &ReplicaView) -> Option<String> {
    match (replica.state.as_str(), replica.in_flight) {
        ("drained" | "refused", 0) => None,
        ("drained" | "refused", count) => Some(format!("{count} operations are under way")),
        (state, _) => Some(format!("it is {} yet", escape(state))),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn replica(state: &str, in_flight: u32) -> ReplicaView {
        serde_json::from_value(json!({
            "shard": "main", "name": "hsm-a", "state": state, "since": "2026-11-22T10:00:00Z", "reason": "r", "in_flight": in_flight, "queue": 0,
            "latency_us": 1234, "operations": 1, "faults": 2, "ejections": 3, "losses": 4, "missing_keys": 5,
        }))
        .unwrap()
    }

    #[test]
    fn a_replica_is_idle_when_it_gets_nothing_new_and_has_nothing_left() {
        assert_eq!(left(&replica("drained", 0)), None);
        assert_eq!(left(&replica("refused", 0)), None, "nothing is sent to it either");
        assert_eq!(left(&replica("drained", 2)), Some("2 operations are under way".into()));
        assert_eq!(left(&replica("serving", 0)), Some("it is serving yet".into()), "the frontend has not heard of it");
    }

    #[test]
    fn a_replica_without_a_way_to_its_token_has_a_row_too() {
        let row = row(&replica("joining", 0)).join("|");
        assert_eq!(row, "main|hsm-a|joining|2026-11-22T10:00:00Z||||0|0|1.2 ms|1|2|3|4|5|r");
    }
}
