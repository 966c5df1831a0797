//! The command line: what can be asked of `ekm`, and how errors are told.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::admin::AdminPlane;
use crate::app::{App, termination};
use crate::config::Config;
use crate::process::{runtime, start_process};
use crate::start_error::StartError;
use crate::{catalog_command, dev};

/// An external key manager for Google Cloud: Cloud KMS keys with protection level EXTERNAL or EXTERNAL_VPC call it over HTTPS
/// to wrap and unwrap data keys, and it does so with keys that never leave your HSM.
///
/// Begin with 'ekm dev': it needs nothing and prints commands to paste.
#[derive(Parser)]
#[command(name = "ekm", version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

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
    /// Until SIGTERM or SIGINT, which finish the requests under way. SIGHUP reads certificate and key sets again and opens the
    /// audit log again. The log goes to standard error.
    Serve(ServeArgs),
    /// Say what is wrong with a configuration file, or that nothing is
    CheckConfig(CheckConfigArgs),
    /// Make the catalog's database ready, or accept that it was restored from a backup
    Catalog(catalog_command::CatalogArgs),
}

#[derive(Args)]
struct ServeArgs {
    /// The configuration file; samples are in deploy/config/
    #[arg(long, env = "EKM_CONFIG", value_name = "FILE")]
    config: PathBuf,
}

#[derive(Args)]
struct CheckConfigArgs {
    /// The configuration file
    file: PathBuf,
    /// Print what the file amounts to, defaults filled in, secrets left out
    #[arg(long)]
    print_effective: bool,
}

/// Runs the command line. Exit codes: 0 done, 1 failed (the reason is on standard error), 2 the command line itself is wrong.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let done = match cli.command {
        Command::Dev(args) => dev::run(args),
        Command::Serve(args) => serve(&args),
        Command::CheckConfig(args) => check_config(&args),
        Command::Catalog(args) => catalog_command::run(&args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error[{}]: {error}", error.code());
            ExitCode::FAILURE
        }
    }
}

fn serve(args: &ServeArgs) -> Result<(), StartError> {
    let config = Config::read(&args.config)?;
    start_process(&config)?;
    runtime()?.block_on(async {
        let stop = termination().await.map_err(StartError::io("cannot listen to signals"))?;
        let app = App::build(&config).await?;
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
