//! `ekm apply`: keys as code. Reads a file, compares it with the catalog, shows the plan, asks, and carries it out.

mod file;
mod plan;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::io::Read;
use std::path::PathBuf;

use clap::Args;
use serde::Serialize;

use super::approval::confirm;
use super::change::Session;
use super::client::{Client, ServerArgs};
use super::error::{CliError, Exit};
use super::output::{diff, escape, print, print_json};
use crate::admin::api::{ChangeOutcome, KeyView, PolicyView, SpaceView};
use crate::catalog::{HEALTH_POLICY, HEALTH_SPACE};
use crate::process::Output;
use crate::start_error::StartError;
use file::KeysFile;
use plan::{Plan, Step, plan};

#[derive(Args)]
#[command(after_help = "Examples:
  ekm apply -f keys.yaml --plan      # exit code 3 if something would change
  ekm apply -f keys.yaml --yes --reason \"$CI_COMMIT_URL\"
  ekm apply --export > keys.yaml     # write down what is there

The file is described in docs/keys-as-code.md; a sample is deploy/config/keys.yaml. Nothing is ever deleted or destroyed.")]
pub(super) struct ApplyArgs {
    #[command(flatten)]
    server: ServerArgs,
    /// The file, YAML or JSON; '-' for standard input
    #[arg(short, long, value_name = "FILE", required_unless_present = "export")]
    file: Option<PathBuf>,
    /// Only show what would change; exit code 3 if anything would
    #[arg(long, visible_alias = "dry-run")]
    plan: bool,
    /// Do not ask
    #[arg(long)]
    yes: bool,
    /// Why; goes into the log of changes
    #[arg(long, value_name = "TEXT", default_value = "")]
    reason: String,
    /// Do not wait until the frontends have the changes
    #[arg(long)]
    no_wait: bool,
    /// Write what is there as such a file to standard output
    #[arg(long, conflicts_with_all = ["file", "plan", "yes", "reason", "no_wait"])]
    export: bool,
}

/// What the catalog holds.
#[derive(Clone, Debug, Default)]
struct There {
    spaces: Vec<SpaceView>,
    policies: Vec<PolicyView>,
    keys: Vec<KeyView>,
}

impl There {
    async fn read(client: &Client) -> Result<Self, CliError> {
        let mut there = Self {
            spaces: client.list("v1/spaces", &[], None).await?,
            policies: client.list("v1/policies", &[], None).await?,
            keys: client.list("v1/keys", &[], None).await?,
        };
        // What the service makes for itself is no operator's business.
        there.spaces.retain(|space| space.path.as_str() != HEALTH_SPACE);
        there.policies.retain(|policy| policy.name != HEALTH_POLICY);
        Ok(there)
    }

    fn policy(&self, name: &str) -> Option<&PolicyView> {
        self.policies.iter().find(|policy| policy.name == name)
    }

    /// Whether a policy belongs to one key: its name begins with the key's path. Policies to share have no slash in their names.
    fn is_own(&self, policy: &str) -> bool {
        policy.contains('/') || self.keys.iter().any(|key| key.paths.iter().any(|path| path.as_str() == policy))
    }
}

/// What `--output json` prints.
#[derive(Serialize)]
struct Report<'a> {
    /// `nothing-to-do`, `would-change`, `done`, `needs-approval`, or `stopped`.
    outcome: &'static str,
    /// Those that were carried out.
    done: &'a [Step],
    /// Those that were not.
    not_done: &'a [Step],
    warnings: &'a [String],
}

pub(super) async fn run(args: ApplyArgs) -> Result<Exit, CliError> {
    let output = args.server.output;
    let Some(file) = &args.file else {
        let there = There::read(&Client::new(&args.server)?).await?;
        return export(&KeysFile::of(&there), output);
    };
    let shown = file.display();
    let text = if file.as_os_str() == "-" {
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text).map(|_| text)
    } else {
        std::fs::read_to_string(file)
    };
    let text = text.map_err(StartError::io(format!("cannot read {shown}")))?;
    let wanted = KeysFile::parse(&text).map_err(|problem| CliError::KeysFile(format!("{shown}: {problem}")))?;
    let session = Session { client: Client::new(&args.server)?, output };
    let there = There::read(&session.client).await?;
    let plan = plan(&wanted, &there).map_err(|problems| {
        let problems = problems.iter().map(|problem| escape(problem)).collect::<Vec<_>>().join("\n");
        CliError::KeysFile(format!("{shown} cannot be applied, and nothing was done:\n{problems}"))
    })?;
    if output == Output::Text {
        print(&describe(&plan));
    }
    if plan.steps.is_empty() || args.plan {
        let (outcome, exit) =
            if plan.steps.is_empty() { ("nothing-to-do", Exit::Done) } else { ("would-change", Exit::WouldChange) };
        report(output, &plan, 0, outcome);
        return Ok(exit);
    }
    if !args.yes {
        confirm("carry this out?")?;
    }
    carry_out(&session, &plan, &args).await
}

fn export(file: &KeysFile, output: Output) -> Result<Exit, CliError> {
    match output {
        Output::Json => print_json(file),
        Output::Text => print(file.to_yaml().map_err(CliError::KeysFile)?.trim_end()),
    }
    Ok(Exit::Done)
}

fn describe(plan: &Plan) -> String {
    let warnings = plan.warnings.iter().map(|warning| format!("warning: {}", escape(warning)));
    let steps = plan.steps.iter().map(|step| format!("{}{}", title(step), diff(&step.changes)));
    let last = match plan.steps.len() {
        0 => "nothing to do".to_owned(),
        1 => "1 change".to_owned(),
        count => format!("{count} changes"),
    };
    warnings.chain(steps).chain([last]).collect::<Vec<_>>().join("\n")
}

fn title(step: &Step) -> String {
    format!("{}: {}", escape(&step.object), step.command.action())
}

/// In order, and no further than the first failure, or the first change that waits for a second person: what comes after it may need
/// it.
async fn carry_out(session: &Session, plan: &Plan, args: &ApplyArgs) -> Result<Exit, CliError> {
    // The objects' revisions as our own changes have left them.
    let mut revisions = HashMap::<&str, u64>::new();
    let (mut last_revision, mut waits_at) = (None, None);
    for (index, step) in plan.steps.iter().enumerate() {
        let if_revision = revisions.get(&*step.object).copied().or(step.seen);
        let result = match session.request(&args.reason, false, step.command.clone(), if_revision).await {
            Ok(result) => result,
            Err(error) => {
                report(session.output, plan, index, "stopped");
                if session.output == Output::Text {
                    let left: Vec<_> = plan.steps[index..].iter().map(|step| format!("\n  {}", title(step))).collect();
                    eprintln!("stopped: {index} of {} changes were made; not made:{}", plan.steps.len(), left.concat());
                }
                return Err(error);
            }
        };
        if result.outcome == ChangeOutcome::Done {
            last_revision = Some(result.revision);
            revisions.insert(&step.object, result.revision);
        }
        if session.output == Output::Text {
            print(&format!("{}: {}", title(step), outcome(result.outcome)));
            result.warnings.iter().for_each(|warning| print(&format!("warning: {}", escape(warning))));
            if let Some(approval) = &result.approval {
                print(&format!("a second person runs: ekm approval approve {}", approval.id));
            }
        }
        if result.outcome == ChangeOutcome::NeedsApproval {
            waits_at = Some(index);
            break;
        }
    }
    match waits_at {
        None => report(session.output, plan, plan.steps.len(), "done"),
        Some(index) => {
            report(session.output, plan, index, "needs-approval");
            eprintln!(
                "{index} of {} changes were made; after the approval, apply the file again for the rest",
                plan.steps.len()
            );
        }
    }
    if let Some(revision) = last_revision.filter(|_| !args.no_wait) {
        session.tell_spread(revision).await;
    }
    Ok(if waits_at.is_some() { Exit::NeedsApproval } else { Exit::Done })
}

fn outcome(outcome: ChangeOutcome) -> &'static str {
    match outcome {
        ChangeOutcome::Done => "done",
        ChangeOutcome::Unchanged => "it was so already",
        ChangeOutcome::NeedsApproval => "waits for a second person",
        ChangeOutcome::WouldChange | ChangeOutcome::WouldNeedApproval => "not done",
    }
}

fn report(output: Output, plan: &Plan, done: usize, outcome: &'static str) {
    if output == Output::Json {
        let (done, not_done) = plan.steps.split_at(done);
        print_json(&Report { outcome, done, not_done, warnings: &plan.warnings });
    }
}
