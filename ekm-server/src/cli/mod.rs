//! The command line: what can be asked of `ekm`, and how errors are told.

mod apply;
mod approval;
mod catalog;
mod change;
mod client;
mod completion;
mod conformance;
mod database;
mod error;
mod hsm;
mod key;
mod output;
mod policy;
mod simulator;
mod space;
mod topology;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, CommandFactory, Parser, Subcommand};

use crate::admin::AdminPlane;
use crate::app::{App, termination};
use crate::config::Config;
use crate::dev;
use crate::hardening;
use crate::process::{runtime, start_process};
use crate::shapes::Shapes;
use crate::start_error::StartError;
pub use error::CliError;
use error::Exit;

/// An external key manager for Google Cloud: Cloud KMS keys with protection level EXTERNAL or EXTERNAL_VPC call it over HTTPS
/// to wrap and unwrap data keys, and it does so with keys that never leave your HSM.
///
/// Begin with 'ekm dev': it needs nothing and prints commands to paste.
#[derive(Parser)]
#[command(name = "ekm", version, max_term_width = 100, after_help = EXIT_CODES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

const EXIT_CODES: &str = "Exit codes:
  0  done, or nothing to do
  1  failed; the reason is on standard error, with its code in docs/errors.md
  2  the command line itself is wrong
  3  a dry run or a plan: something would change
  4  it waits for a second person's approval";

#[derive(Subcommand)]
enum Command {
    /// Run everything embedded in one directory, for trying things out
    ///
    /// Catalog, certificate, token issuer, and one key. Without an HSM the keys live in this process. With --softhsm they live
    /// in a SoftHSM token that ekm makes in its directory, with --pkcs11 in a token of yours. Started again on the same
    /// directory, it goes on with the same keys.
    Dev(dev::DevArgs),
    /// Run the service
    ///
    /// Until SIGTERM or SIGINT, which finish the requests under way. SIGHUP reads the certificate, the key sets, and of the
    /// configuration [auth] and limits.caller_requests_per_s again, and opens the audit log again. The log goes to standard error.
    Serve(ServeArgs),
    /// Say what is wrong with a configuration file, or that nothing is
    CheckConfig(CheckConfigArgs),
    /// Make keys, list them, pause, rotate and destroy them
    Key(key::KeyArgs),
    /// Make crypto spaces, list them, stop all keys of one
    Space(space::SpaceArgs),
    /// Make policies that keys can share, and ask them questions
    Policy(policy::PolicyArgs),
    /// Look at the catalog as a whole: its state, its log, its frontends, its settings
    Catalog(catalog::CatalogArgs),
    /// Look at the HSM's replicas, take one out for maintenance, and back
    Hsm(hsm::HsmArgs),
    /// Approve or reject dangerous changes, as the second person
    Approval(approval::ApprovalArgs),
    /// Bring the catalog to what a file says: keys as code
    Apply(apply::ApplyArgs),
    /// Play Google: call an EKM as Cloud KMS does, with keys, data keys, and a connection of its own
    ///
    /// With 'ekm dev' running it needs nothing else. It shows what Cloud KMS would make of every answer, as far as that is known.
    SimulateKms(simulator::SimulatorArgs),
    /// Check an EKM, anybody's, against the protocol, as a black box
    Conformance(conformance::ConformanceArgs),
    /// Choose the way from Cloud KMS to an EKM, and look at the one that was built
    Topology(topology::TopologyArgs),
    /// Talk to one HSM token for 'ekm serve', which starts this process
    #[command(hide = true)]
    HsmWorker,
    /// Print a script that completes commands in your shell
    Completion(completion::CompletionArgs),
    /// Write manual pages
    Man(completion::ManArgs),
}

#[derive(Args)]
struct ServeArgs {
    /// The configuration file; samples are in deploy/config/
    #[arg(long, env = "EKM_CONFIG", value_name = "FILE")]
    config: PathBuf,
    /// Append to this file how requests look: names and types, never values. For finding out what Google sends
    #[arg(long, value_name = "FILE")]
    record_shapes: Option<PathBuf>,
}

#[derive(Args)]
struct CheckConfigArgs {
    /// The configuration file
    file: PathBuf,
    /// Print what the file amounts to, defaults filled in, secrets left out
    #[arg(long)]
    print_effective: bool,
}

/// Runs the command line; the exit codes are in `ekm --help`.
pub fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(exit) => exit.into(),
        Err(error) => {
            eprintln!("error[{}]: {error}", error.heading());
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<Exit, CliError> {
    match command {
        Command::Dev(args) => dev::run(args)?,
        Command::Serve(args) => serve(&args)?,
        Command::CheckConfig(args) => check_config(&args)?,
        Command::Key(args) => return runtime()?.block_on(key::run(args)),
        Command::Space(args) => return runtime()?.block_on(space::run(args)),
        Command::Policy(args) => return runtime()?.block_on(policy::run(args)),
        Command::Catalog(args) => return runtime()?.block_on(catalog::run(args)),
        Command::Hsm(args) => return runtime()?.block_on(hsm::run(args)),
        Command::Approval(args) => return runtime()?.block_on(approval::run(args)),
        Command::Apply(args) => return runtime()?.block_on(apply::run(args)),
        Command::SimulateKms(args) => return runtime()?.block_on(simulator::run(args)),
        Command::Conformance(args) => return conformance::run(&args),
        Command::Topology(args) => return topology::run(&args),
        Command::HsmWorker => hsm_worker()?,
        Command::Completion(args) => return Ok(completion::completion(&args, Cli::command())),
        Command::Man(args) => return completion::man(&args, Cli::command()),
    }
    Ok(Exit::Done)
}

fn serve(args: &ServeArgs) -> Result<(), StartError> {
    let config = Config::read(&args.config)?;
    start_process(&config)?;
    runtime()?.block_on(async {
        let stop = termination().await.map_err(StartError::io("cannot listen to signals"))?;
        let shapes = args.record_shapes.as_deref().map(Shapes::open).transpose();
        let mut app = App::build(&config, shapes.map_err(StartError::io("cannot open the file for shapes"))?).await?;
        app.reload_from(&args.config, &config);
        let (ekm, ops) = app.addresses()?;
        let (version, profile) = (env!("CARGO_PKG_VERSION"), config.profile.name());
        let admin = app.admin().and_then(AdminPlane::address).map(tracing::field::display);
        let admin_socket = app.admin().and_then(AdminPlane::socket).map(|file| tracing::field::display(file.display()));
        tracing::info!(%ekm, %ops, admin, admin_socket, version, profile, "listening");
        let drained = app.run(stop).await;
        tracing::info!(cut = drained.cut, took_ms = drained.took.as_millis() as u64, "drained");
        Ok(())
    })
}

fn hsm_worker() -> Result<(), StartError> {
    // Else it is called "exe", after the link that it was started by.
    if let Err(error) = rustix::thread::set_name(c"ekm-hsm-worker") {
        tracing::debug!(%error, "the worker has no name of its own");
    }
    hardening::harden();
    ekm_core::hsm::worker::run().map_err(StartError::io("the HSM worker ends"))
}

#[expect(clippy::print_stdout, reason = "the answer")]
fn check_config(args: &CheckConfigArgs) -> Result<(), StartError> {
    let config = Config::read(&args.file)?;
    if args.print_effective {
        print!("{}", config.to_redacted_toml());
    } else {
        let (file, profile) = (args.file.display(), config.profile.name());
        println!(
            "{file}: fine (profile {profile}); its values, that is: files and HSM are tried when 'ekm serve' starts"
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests;
