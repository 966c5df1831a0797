//! `ekm catalog migrate` and `accept-restore`: what is done to a catalog's database with a configuration file, and not over the API.

use std::path::PathBuf;

use clap::Args;
use time::OffsetDateTime;

use super::output::print;
use crate::catalog::{self, Draft, Entry};
use crate::config::Config;
use crate::custodian;
use crate::process::start_process;
use crate::start_error::StartError;

#[derive(Args)]
pub(super) struct ConfigArgs {
    /// The configuration file that names the catalog and the HSM
    #[arg(long, env = "EKM_CONFIG", value_name = "FILE")]
    config: PathBuf,
}

impl ConfigArgs {
    fn read(&self) -> Result<Config, StartError> {
        let config = Config::read(&self.config)?;
        start_process(&config)?;
        Ok(config)
    }
}

pub(super) async fn migrate(args: &ConfigArgs) -> Result<(), StartError> {
    let config = &args.read()?;
    let store = catalog::open_store(&config.catalog, true).await?;
    let before = store.schema().await?;
    let after = store.migrate().await?;
    let custodian = custodian::open(config).await?;
    let key = catalog::initialise(&store, &custodian, catalog::key_file(config)?.as_ref()).await?;
    let version = |schema: Option<i64>| schema.map_or("none".to_owned(), |version| version.to_string());
    let (from, to) = (version(before.version), version(after.version));
    let schema = if from == to { format!("schema {to}, as before") } else { format!("schema {from} → {to}") };
    print(&format!("{}: {schema}; catalog {}", store.location(), key.catalog()));
    Ok(())
}

pub(super) async fn accept_restore(args: &ConfigArgs) -> Result<(), StartError> {
    let config = &args.read()?;
    let store = catalog::open_store(&config.catalog, false).await?;
    let custodian = custodian::open(config).await?;
    let key = catalog::initialise(&store, &custodian, catalog::key_file(config)?.as_ref()).await?;
    let write = store.write().await?;
    let mut draft = Draft::begin(write, &key, None, OffsetDateTime::now_utc())?;
    let epoch = draft.epoch() + 1;
    draft.begin_epoch(epoch);
    let entry = Entry::by_ekm("catalog-accept-restore", "the catalog");
    let revision = draft.commit(entry, None).await?;
    print(&format!("{}: epoch {epoch} begins at revision {revision}; frontends take it over", store.location()));
    Ok(())
}
