//! `ekm space`: crypto spaces, which hold keys and can be stopped as a whole.

use std::io::IsTerminal;

use clap::{Args, Subcommand};
use ekm_core::catalog::{Custody, VersionState};
use ekm_core::{Algorithm, KeyPath, ShardName};

use serde_json::json;

use super::change::{ChangeArgs, Session, changed_labels, describe, exit, label};
use super::client::{Client, ServerArgs};
use super::error::{CliError, Exit};
use super::key::{CustodyName, UpdateArgs};
use super::output::{escape, fields, labels, print, print_json, print_list, time};
use crate::admin::api::{Command, CreationWish, KeyView, SpaceView, VersionView};
use crate::process::Output;

#[derive(Args)]
#[command(after_help = "Examples:
  ekm space create v0/cryptospaces/payments --label team=payments
  ekm space move v0/cryptospaces/payments --to payments --reason 'HSMs of its own'
  ekm space block v0/cryptospaces/payments --reason 'incident 4711'   # stops all its keys
  ekm space unblock v0/cryptospaces/payments")]
pub(super) struct SpaceArgs {
    #[command(flatten)]
    server: ServerArgs,
    #[command(subcommand)]
    command: SpaceCommand,
}

#[derive(Subcommand)]
enum SpaceCommand {
    /// Make a crypto space
    Create {
        /// Its path, such as v0/cryptospaces/payments
        path: KeyPath,
        /// The HSMs for its keys, by their name in the configuration. Default: the only one, or main
        #[arg(long, value_name = "NAME")]
        shard: Option<ShardName>,
        /// For people and filters; repeat for more
        #[arg(long = "label", value_name = "NAME=VALUE", value_parser = label)]
        labels: Vec<(String, String)>,
        /// For people
        #[arg(long, value_name = "TEXT", default_value = "")]
        description: String,
        #[command(flatten)]
        change: ChangeArgs,
    },
    /// List the crypto spaces
    List {
        /// How many at most
        #[arg(long, value_name = "N")]
        limit: Option<usize>,
    },
    /// Show a crypto space
    Show {
        /// Its path
        path: KeyPath,
    },
    /// Change labels and description of a crypto space
    ///
    /// If somebody changes it at the same time, nothing is done.
    Update {
        /// Its path
        path: KeyPath,
        #[command(flatten)]
        changes: UpdateArgs,
        #[command(flatten)]
        change: ChangeArgs,
    },
    /// Bring a crypto space's keys to other HSMs, one after the other; callers notice nothing
    ///
    /// Keys of custody hsm go by the replication key, which has to be the same in both shards, or by the vendor's cloning. The HSMs that
    /// they leave keep them until they are destroyed. If it is interrupted, run it again.
    Move {
        /// Its path
        path: KeyPath,
        /// Their new shard, by its name in the configuration
        #[arg(long, value_name = "SHARD")]
        to: ShardName,
        #[command(flatten)]
        change: ChangeArgs,
    },
    /// Let callers make keys in a crypto space, as Cloud KMS does on connections whose key management mode is CLOUD_KMS
    AllowCreation {
        /// Its path
        path: KeyPath,
        /// Who may, by its rules for createKey and destroyKey; it becomes the policy of the keys that are made
        #[arg(long, value_name = "NAME")]
        policy: String,
        /// How many keys the space may have at a time
        #[arg(long, value_name = "N", default_value_t = 1000)]
        max_keys: u32,
        /// Only keys of this algorithm, by Google's name; repeat for more [default: any]
        #[arg(long = "algorithm", value_name = "NAME")]
        algorithms: Vec<Algorithm>,
        /// How their material is kept [default: what the configuration says]
        #[arg(long)]
        custody: Option<CustodyName>,
        #[command(flatten)]
        change: ChangeArgs,
    },
    /// Let callers make no more keys in a crypto space; those that are there go on
    DenyCreation {
        /// Its path
        path: KeyPath,
        #[command(flatten)]
        change: ChangeArgs,
    },
    /// Stop every key of a crypto space: wrap and unwrap answer FAILED_PRECONDITION
    Block {
        /// Its path
        path: KeyPath,
        #[command(flatten)]
        change: ChangeArgs,
    },
    /// Let the keys of a crypto space go on, each as its own state says
    Unblock {
        /// Its path
        path: KeyPath,
        #[command(flatten)]
        change: ChangeArgs,
    },
}

pub(super) async fn run(args: SpaceArgs) -> Result<Exit, CliError> {
    let session = Session { client: Client::new(&args.server)?, output: args.server.output };
    let (change, command, if_revision) = match args.command {
        SpaceCommand::List { limit } => return list(&session, limit).await,
        SpaceCommand::Show { path } => return show(&session, &path).await,
        SpaceCommand::Create { path, shard, labels, description, change } => {
            (change, Command::SpaceCreate { path, shard, labels: labels.into_iter().collect(), description }, None)
        }
        SpaceCommand::Update { path, changes, change } => {
            let seen = session.space(&path).await?;
            let labels = changed_labels(seen.labels, changes.labels, &changes.remove_labels);
            let description = changes.description.unwrap_or(seen.description);
            (change, Command::SpaceUpdate { path, labels, description }, Some(seen.revision))
        }
        SpaceCommand::Move { path, to, change } => return move_keys(&session, path, to, &change).await,
        SpaceCommand::AllowCreation { path, policy, max_keys, algorithms, custody, change } => {
            let custody = custody.map(Into::into);
            let creation = Some(CreationWish { policy, custody, algorithms, max_keys });
            (change, Command::SpaceSetCreation { path, creation }, None)
        }
        SpaceCommand::DenyCreation { path, change } => {
            (change, Command::SpaceSetCreation { path, creation: None }, None)
        }
        SpaceCommand::Block { path, change } => (change, Command::SpaceBlock { path }, None),
        SpaceCommand::Unblock { path, change } => (change, Command::SpaceUnblock { path }, None),
    };
    session.change(&change, command, if_revision).await
}

fn creation(wish: &CreationWish) -> String {
    let names: Vec<_> = wish.algorithms.iter().map(|algorithm| algorithm.name()).collect();
    let algorithms = if names.is_empty() { "any algorithm".into() } else { names.join(", ") };
    let custody = wish.custody.map_or("", Custody::name);
    format!("by policy {}, up to {} keys, custody {custody}, {algorithms}", escape(&wish.policy), wish.max_keys)
}

/// The space first, so that nothing new is made where its keys leave; then key by key, so that nothing is lost when it is stopped.
async fn move_keys(session: &Session, path: KeyPath, to: ShardName, args: &ChangeArgs) -> Result<Exit, CliError> {
    let command = Command::SpaceMove { path: path.clone(), shard: to.clone() };
    let space = session.request(&args.reason, args.dry_run, command, None).await?;
    let keys: Vec<KeyView> = session.client.list("v1/keys", &[("space", path.as_str())], None).await?;
    let leaves = |version: &VersionView| {
        version.state != VersionState::Destroyed && version.shard.as_ref().is_some_and(|shard| *shard != to)
    };
    let keys: Vec<_> = keys.into_iter().filter(|key| key.versions.iter().any(leaves)).collect();
    let text = matches!(session.output, Output::Text);
    if args.dry_run {
        match text {
            true => print(&format!("{}\n{} keys would be brought to {to}", describe(&space), keys.len())),
            false => print_json(&json!({"space": space, "keys": keys.len()})),
        }
        return Ok(exit(space.outcome));
    }
    let (mut moved, mut failed, terminal) = (0, Vec::new(), std::io::stderr().is_terminal());
    let mut revision = space.revision;
    for (place, key) in keys.iter().enumerate() {
        if terminal {
            eprint!("\r\u{1b}[K{place} of {} keys, {} not moved", keys.len(), failed.len());
        }
        let name = &key.paths[0];
        match session.request(&args.reason, false, Command::KeyMove { path: name.clone() }, None).await {
            Ok(result) => (moved, revision) = (moved + 1, result.revision),
            Err(error) => failed.push((name.clone(), error.to_string())),
        }
    }
    if terminal {
        eprint!("\r\u{1b}[K");
    }
    match text {
        true => print(&format!("{path} is in {to}: {moved} of {} keys moved", keys.len())),
        false => print_json(&json!({"space": space, "moved": moved, "failed": failed})),
    }
    if !args.no_wait {
        session.tell_spread(revision).await;
    }
    if let Some((first, error)) = failed.first() {
        return Err(CliError::NotMoved(format!(
            "{} keys were not moved, and go on where they are; run this again. The first is {first}: {error}",
            failed.len()
        )));
    }
    Ok(Exit::Done)
}

async fn list(session: &Session, limit: Option<usize>) -> Result<Exit, CliError> {
    let spaces: Vec<SpaceView> = session.client.list("v1/spaces", &[], limit).await?;
    let row = |space: &SpaceView| {
        [
            space.path.to_string(),
            space.state.name().into(),
            space.shard.to_string(),
            labels(&space.labels),
            space.description.clone(),
        ]
    };
    let none = "no crypto spaces yet; 'ekm space create PATH' makes one";
    print_list(session.output, &spaces, ["PATH", "STATE", "SHARD", "LABELS", "DESCRIPTION"], row, none);
    Ok(Exit::Done)
}

async fn show(session: &Session, path: &KeyPath) -> Result<Exit, CliError> {
    let space = session.space(path).await?;
    match session.output {
        Output::Json => print_json(&space),
        Output::Text => print(&fields(&[
            ("path", space.path.to_string()),
            ("id", space.id.to_string()),
            ("state", space.state.name().into()),
            ("shard", space.shard.to_string()),
            ("creation", space.creation.as_ref().map_or("none: callers make no keys".into(), creation)),
            ("labels", labels(&space.labels)),
            ("description", space.description),
            ("created", time(space.created_at)),
            ("revision", space.revision.to_string()),
        ])),
    }
    Ok(Exit::Done)
}
