//! `ekm completion` and `ekm man`: made from the definition of the command line itself.

use std::path::PathBuf;

use clap::Args;
use clap_complete::Shell;

use super::error::{CliError, Exit};
use super::output::print;
use crate::start_error::StartError;

#[derive(Args)]
#[command(after_help = "Examples:
  ekm completion bash > /etc/bash_completion.d/ekm
  ekm completion zsh > /usr/local/share/zsh/site-functions/_ekm
  ekm completion fish > ~/.config/fish/completions/ekm.fish")]
pub(super) struct CompletionArgs {
    /// For which shell
    #[arg(value_enum)]
    shell: Shell,
}

#[derive(Args)]
#[command(after_help = "Example:
  ekm man --output-dir /usr/local/share/man/man1")]
pub(super) struct ManArgs {
    /// Where to write a page for every command; must be there
    #[arg(long, value_name = "DIR")]
    output_dir: PathBuf,
}

pub(super) fn completion(args: &CompletionArgs, mut command: clap::Command) -> Exit {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut command, "ekm", &mut script);
    print(String::from_utf8_lossy(&script).trim_end());
    Exit::Done
}

pub(super) fn man(args: &ManArgs, command: clap::Command) -> Result<Exit, CliError> {
    let failed = StartError::io(format!("cannot write to {}", args.output_dir.display()));
    clap_mangen::generate_to(command, &args.output_dir).map_err(failed)?;
    Ok(Exit::Done)
}
