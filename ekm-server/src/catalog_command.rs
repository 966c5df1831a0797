//! `ekm catalog migrate` and `accept-restore`: what is done to a catalog's database with a configuration file, and not over the API.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use time::OffsetDateTime;

use crate::catalog::{self, CatalogError, Draft, Entry};
use crate::config::Config;
use crate::custodian;
use crate::process::{runtime, start_process};
use crate::start_error::StartError;

#[derive(Args)]
pub(crate) struct CatalogArgs {
    #[command(subcommand)]
    command: CatalogCommand,
}

#[derive(Subcommand)]
enum CatalogCommand {
    /// Bring the database's schema to this version, and begin a catalog if there is none
    ///
    /// Needs the HSM, or the key file, that wraps the catalog's key. Running frontends go on meanwhile. Repeating it does no harm.
    Migrate(ConfigArgs),
    /// Say that the database was taken back to an earlier state on purpose
    ///
    /// Frontends that know a later state refuse an earlier one, since whoever can write to the database could undo a revocation so.
    /// After a restore from a backup, stop the frontends from falling behind with this. Look at the log first: what was done after the
    /// backup is undone, keys that were made after it are gone from the catalog.
    AcceptRestore(ConfigArgs),
}

#[derive(Args)]
struct ConfigArgs {
    /// The configuration file that names the catalog and the HSM
    #[arg(long, env = "EKM_CONFIG", value_name = "FILE")]
    config: PathBuf,
}

pub(crate) fn run(args: &CatalogArgs) -> Result<(), StartError> {
    let (CatalogCommand::Migrate(file) | CatalogCommand::AcceptRestore(file)) = &args.command;
    let config = Config::read(&file.config)?;
    start_process(&config)?;
    let answer = runtime()?.block_on(async {
        match &args.command {
            CatalogCommand::Migrate(_) => migrate(&config).await,
            CatalogCommand::AcceptRestore(_) => accept_restore(&config).await,
        }
    })?;
    print(&answer);
    Ok(())
}

async fn migrate(config: &Config) -> Result<String, StartError> {
    let store = catalog::open_store(&config.catalog, true).await?;
    let before = store.schema().await?;
    let after = store.migrate().await?;
    let custodian = custodian::open(config).await?;
    let key = catalog::initialise(&store, &custodian, catalog::key_file(config)?.as_ref()).await?;
    let version = |schema: Option<i64>| schema.map_or("none".to_owned(), |version| version.to_string());
    let (from, to) = (version(before.version), version(after.version));
    let schema = if from == to { format!("schema {to}, as before") } else { format!("schema {from} → {to}") };
    Ok(format!("{}: {schema}; catalog {}", store.location(), key.catalog()))
}

async fn accept_restore(config: &Config) -> Result<String, StartError> {
    let store = catalog::open_store(&config.catalog, false).await?;
    let custodian = custodian::open(config).await?;
    let key = catalog::initialise(&store, &custodian, catalog::key_file(config)?.as_ref()).await?;
    let write = store.write().await?;
    let mut draft = Draft::begin(write, &key, None, OffsetDateTime::now_utc())?;
    let epoch = draft.epoch() + 1;
    draft.begin_epoch(epoch);
    let entry = Entry::by_ekm("catalog-accept-restore", "the catalog");
    let revision = draft.commit(entry, None).await.map_err(CatalogError::from)?;
    Ok(format!("{}: epoch {epoch} begins at revision {revision}; frontends take it over", store.location()))
}

#[expect(clippy::print_stdout, reason = "the command's answer")]
fn print(text: &str) {
    println!("{text}");
}
