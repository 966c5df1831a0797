//! `ekm hsm`: the tokens behind a frontend.

mod drain;
mod keys;

use clap::{Args, Subcommand};

use super::change::{ChangeArgs, Session};
use super::client::{Client, ServerArgs};
use super::error::{CliError, Exit};
use super::output::{escape, print, print_json, print_list, time};
use crate::admin::api::{Command, HsmView, ReplicaView};
use crate::process::Output;

#[derive(Args)]
#[command(after_help = "Examples:
  ekm hsm status
  ekm hsm verify                                          # after an alarm; --repair, as far as the catalog holds what is missing
  ekm hsm add hsm-c                                       # when its table is in every frontend's configuration
  ekm hsm retire hsm-a --reason 'end of life'
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
    /// Give replicas every key that they lack, as far as the catalog holds it wrapped by the replication key
    Replicate {
        /// This replica only
        #[arg(long, value_name = "NAME")]
        to: Option<String>,
    },
    /// Give a new replica every key, and look at each of them there
    ///
    /// First put its [[shard.replica]] table into every frontend's configuration, and restart one after the other. Without a replication
    /// key the vendor's tools have to bring the keys to it; then this only looks at them.
    Add {
        /// Its name in the configuration
        name: String,
    },
    /// Take a replica out of use for good, if the others of its shard hold every key
    ///
    /// Then take its table out of every frontend's configuration, restart one after the other, and destroy its keys with the vendor's tools.
    Retire {
        /// Its name in the configuration
        name: String,
        #[command(flatten)]
        change: ChangeArgs,
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
        HsmCommand::Verify { repair } => keys::verify(&session, repair).await,
        HsmCommand::Replicate { to } => keys::replicate(&session, to).await,
        HsmCommand::Add { name } => keys::add(&session, &name).await,
        HsmCommand::Retire { name, change } => keys::retire(&session, &name, &change).await,
        HsmCommand::Drain { name, force, wait, change } => {
            let command = Command::HsmDrain { name: name.clone(), force };
            let exit = session.change(&change, command, None).await?;
            if wait {
                drain::wait_until_idle(&session, &name).await?;
            }
            Ok(exit)
        }
        HsmCommand::Resume { name, change } => session.change(&change, Command::HsmResume { name }, None).await,
    }
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

#[cfg(test)]
pub(super) mod tests {
    use serde_json::json;

    use super::*;

    pub(super) fn replica(state: &str, in_flight: u32) -> ReplicaView {
        serde_json::from_value(json!({
            "shard": "main", "name": "hsm-a", "state": state, "since": "2026-11-22T10:00:00Z", "reason": "r", "in_flight": in_flight, "queue": 0,
            "latency_us": 1234, "operations": 1, "faults": 2, "ejections": 3, "losses": 4, "missing_keys": 5,
        }))
        .unwrap()
    }

    #[test]
    fn a_replica_without_a_way_to_its_token_has_a_row_too() {
        let row = row(&replica("joining", 0)).join("|");
        assert_eq!(row, "main|hsm-a|joining|2026-11-22T10:00:00Z||||0|0|1.2 ms|1|2|3|4|5|r");
    }
}
