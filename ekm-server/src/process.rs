//! What the commands have in common: environment, log, hardening, threads, forms of output.

use std::collections::BTreeMap;
use std::os::unix::process::CommandExt;
use std::process::Command;

use clap::ValueEnum;

use crate::config::{Config, Isolation};
use crate::start_error::StartError;
use crate::{descriptors, hardening, logging};

/// How a command answers.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For people
    Text,
    /// For machines
    Json,
}

/// What every command that holds keys does first: environment, log, hardening.
pub fn start_process(config: &Config) -> Result<(), StartError> {
    let in_this_process = config.shards.iter().filter(|shard| shard.get_ref().isolation == Isolation::Thread);
    let replicas = in_this_process.flat_map(|shard| &shard.get_ref().replica);
    ensure_environment(&replicas.flat_map(|replica| replica.get_ref().environment.clone()).collect())?;
    let started = logging::start(&config.log);
    started.map_err(|problem| StartError::Io { what: problem, cause: std::io::ErrorKind::InvalidInput.into() })?;
    hardening::harden();
    descriptors::make_room(config.limits.max_connections);
    // reqwest takes the process's default; everything else is told explicitly.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    Ok(())
}

/// Vendors' libraries read environment variables. Setting one in a running process races with every reader, so the process starts
/// itself anew, under the same process id.
pub fn ensure_environment(wanted: &BTreeMap<String, String>) -> Result<(), StartError> {
    if wanted.iter().all(|(name, value)| std::env::var_os(name).is_some_and(|set| set == **value)) {
        return Ok(());
    }
    let this = std::env::current_exe().map_err(StartError::io("cannot find this program's file"))?;
    let error = Command::new(this).args(std::env::args_os().skip(1)).envs(wanted).exec();
    Err(StartError::io("cannot start anew with shard.replica.environment")(error))
}

/// The machine's name, by which people know a frontend.
pub fn host_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

/// The async runtime, one worker for each core.
pub fn runtime() -> Result<tokio::runtime::Runtime, StartError> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(StartError::io("cannot start threads"))
}
