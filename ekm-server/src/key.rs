//! `ekm key`: keys in the catalog of a configuration file. A running `ekm serve` takes changes over within its poll interval.

use std::io::IsTerminal;
use std::path::PathBuf;

use clap::{Args, Subcommand};
use ekm_core::KeyPath;
use ekm_core::caller::CallerPattern;
use ekm_core::catalog::{KeyRecord, KeyState, Purpose};
use ekm_core::policy::{Policy, Rule};
use ekm_storage::CatalogStore;
use serde_json::json;

use crate::config::Config;
use crate::process::{Output, runtime, start_process};
use crate::start_error::StartError;
use crate::{custodian, provision};

#[derive(Args)]
pub(crate) struct KeyArgs {
    /// The configuration file that names the catalog and the HSM
    #[arg(long, env = "EKM_CONFIG", value_name = "FILE", global = true, required = false, default_value = "ekm.toml")]
    config: PathBuf,
    /// How to answer
    #[arg(long, value_enum, default_value = "text", global = true)]
    output: Output,
    #[command(subcommand)]
    command: KeyCommand,
}

#[derive(Subcommand)]
enum KeyCommand {
    /// Make a key in the HSM, prove that it works, and enter it into the catalog
    Create {
        /// The path that Cloud KMS will call, such as v0/keys/orders
        path: KeyPath,
        /// The crypto space; made if it is not there
        #[arg(long, default_value = "v0/cryptospaces/default")]
        space: KeyPath,
        #[command(flatten)]
        policy: PolicyArgs,
    },
    /// Put another policy in place of a key's
    SetPolicy {
        /// A path of the key
        path: KeyPath,
        #[command(flatten)]
        policy: PolicyArgs,
    },
    /// Show every key
    List,
    /// Give a key one more path, for moving it between EXTERNAL and EXTERNAL_VPC
    AddPath {
        /// A path that the key has
        path: KeyPath,
        /// The new one
        new: KeyPath,
    },
    /// Pause a key: wrap and unwrap answer FAILED_PRECONDITION, and Google does not disable its version
    Disable {
        /// A path of the key
        path: KeyPath,
    },
    /// Take a pause back
    Enable {
        /// A path of the key
        path: KeyPath,
    },
}

#[derive(Args)]
#[group(required = true, multiple = false)]
struct PolicyArgs {
    /// Who may wrap and unwrap, with any justification; '*' in it stands for any run of characters. Repeat for more
    #[arg(long = "caller", value_name = "EMAIL", value_parser = caller)]
    callers: Vec<CallerPattern>,
    /// A policy in JSON instead, as described in docs/policies.md
    #[arg(long, value_name = "FILE")]
    policy: Option<PathBuf>,
}

fn caller(text: &str) -> Result<CallerPattern, String> {
    CallerPattern::try_from(text.to_owned()).map_err(str::to_owned)
}

pub(crate) fn run(args: KeyArgs) -> Result<(), StartError> {
    let config = Config::read(&args.config)?;
    start_process(&config)?;
    runtime()?.block_on(change(&config, args))
}

async fn change(config: &Config, args: KeyArgs) -> Result<(), StartError> {
    // Only `create` may begin a catalog: a mistyped file name must not look like one without keys.
    let create = matches!(args.command, KeyCommand::Create { .. });
    let store = CatalogStore::open_sqlite(&config.catalog.sqlite_file, create).await?;
    let (path, revision) = match args.command {
        KeyCommand::List => {
            list(&store.load().await?.keys, args.output);
            return Ok(());
        }
        KeyCommand::Create { path, space, policy } => {
            let policy = policy_of(policy)?;
            let custodian = custodian::open(config).await?;
            let revision = provision::create_key(&store, &custodian, &space, &path, &policy).await?;
            (path, revision)
        }
        KeyCommand::SetPolicy { path, policy } => {
            let revision = store.set_policy(&path, &policy_of(policy)?).await?;
            (path, revision)
        }
        KeyCommand::AddPath { path, new } => {
            let revision = store.add_path(&path, &new).await?;
            (new, revision)
        }
        KeyCommand::Disable { path } => {
            let revision = store.set_key_state(&path, KeyState::Disabled).await?;
            (path, revision)
        }
        KeyCommand::Enable { path } => {
            let revision = store.set_key_state(&path, KeyState::Enabled).await?;
            (path, revision)
        }
    };
    match args.output {
        Output::Json => print(&json!({"path": path, "revision": revision}).to_string()),
        Output::Text => print(&format!(
            "{path}: done, catalog revision {revision}; running frontends follow within {} ms",
            config.catalog.poll_interval_ms
        )),
    }
    Ok(())
}

fn policy_of(PolicyArgs { callers, policy }: PolicyArgs) -> Result<Policy, StartError> {
    let Some(file) = policy else {
        return Ok(Policy::new(vec![Rule::for_callers(callers)])?);
    };
    let text = std::fs::read_to_string(&file).map_err(StartError::io(format!("cannot read {}", file.display())))?;
    Ok(Policy::parse(&text)?)
}

fn list(keys: &[KeyRecord], output: Output) {
    let mut keys: Vec<_> = keys.iter().filter(|key| key.purpose == Purpose::Wrap).collect();
    keys.sort_by(|a, b| a.paths.cmp(&b.paths));
    let custody = |key: &KeyRecord| key.versions.last().map_or("-", |version| version.custody.name());
    if output == Output::Json {
        let rows = keys.iter().map(|key| {
            json!({"id": key.id.to_string(), "paths": key.paths, "state": key.state.name(), "primary_version": key.primary,
                   "custody": custody(key), "policy": serde_json::from_str::<serde_json::Value>(&key.policy).ok()})
        });
        return print(&serde_json::Value::from_iter(rows).to_string());
    }
    if keys.is_empty() {
        return print("no keys yet; 'ekm key create PATH --caller EMAIL' makes one");
    }
    let rows = keys.iter().flat_map(|key| {
        key.paths.iter().map(|path| {
            [
                path.to_string(),
                key.state.name().into(),
                key.primary.to_string(),
                custody(key).into(),
                key.id.to_string(),
            ]
        })
    });
    let mut rows: Vec<_> = rows.collect();
    if std::io::stdout().is_terminal() {
        rows.insert(0, ["PATH", "STATE", "VERSION", "CUSTODY", "KEY"].map(String::from));
    }
    let width = |column: usize| rows.iter().map(|row| row[column].len()).max().unwrap_or(0);
    let widths = [0, 1, 2, 3, 4].map(width);
    for row in &rows {
        let cells = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}"));
        print(cells.collect::<Vec<_>>().join("  ").trim_end());
    }
}

#[expect(clippy::print_stdout, reason = "the command's answer")]
fn print(text: &str) {
    println!("{text}");
}
