//! `ekm space`: crypto spaces, which hold keys and can be stopped as a whole.

use clap::{Args, Subcommand};
use ekm_core::KeyPath;

use super::change::{ChangeArgs, Session, changed_labels, label};
use super::client::{Client, ServerArgs};
use super::error::{CliError, Exit};
use super::key::UpdateArgs;
use super::output::{fields, labels, print, print_json, print_list, time};
use crate::admin::api::{Command, SpaceView};
use crate::process::Output;

#[derive(Args)]
#[command(after_help = "Examples:
  ekm space create v0/cryptospaces/payments --label team=payments
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
        SpaceCommand::Create { path, labels, description, change } => {
            (change, Command::SpaceCreate { path, labels: labels.into_iter().collect(), description }, None)
        }
        SpaceCommand::Update { path, changes, change } => {
            let seen = session.space(&path).await?;
            let labels = changed_labels(seen.labels, changes.labels, &changes.remove_labels);
            let description = changes.description.unwrap_or(seen.description);
            (change, Command::SpaceUpdate { path, labels, description }, Some(seen.revision))
        }
        SpaceCommand::Block { path, change } => (change, Command::SpaceBlock { path }, None),
        SpaceCommand::Unblock { path, change } => (change, Command::SpaceUnblock { path }, None),
    };
    session.change(&change, command, if_revision).await
}

async fn list(session: &Session, limit: Option<usize>) -> Result<Exit, CliError> {
    let spaces: Vec<SpaceView> = session.client.list("v1/spaces", &[], limit).await?;
    let row = |space: &SpaceView| {
        [space.path.to_string(), space.state.name().into(), labels(&space.labels), space.description.clone()]
    };
    let none = "no crypto spaces yet; 'ekm space create PATH' makes one";
    print_list(session.output, &spaces, ["PATH", "STATE", "LABELS", "DESCRIPTION"], row, none);
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
            ("labels", labels(&space.labels)),
            ("description", space.description),
            ("created", time(space.created_at)),
            ("revision", space.revision.to_string()),
        ])),
    }
    Ok(Exit::Done)
}
