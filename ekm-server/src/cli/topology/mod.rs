//! `ekm topology`: which of the ways from Cloud KMS to an EKM fits, and whether the one that was built works.

mod advise;
mod preflight;

use clap::{Args, Subcommand};

use super::error::{CliError, Exit};

#[derive(Args)]
#[command(after_help = "Examples:
  ekm topology advise --sites 2 --rtt-ms 8
  ekm topology advise --multi-region --internet
  ekm topology preflight --url https://ekm.example.com --token-file token --key v0/keys/orders --pin-cert ekm.pem")]
pub(super) struct TopologyArgs {
    #[command(subcommand)]
    command: TopologyCommand,
}

#[derive(Subcommand)]
enum TopologyCommand {
    /// Choose among Google's reference topologies: say what you have and need, and see what fits, why, and where it ends
    ///
    /// Nothing is asked over the network. What a topology can do is from Google's reference architectures for Cloud EKM; where those leave
    /// a choice, such as what high throughput is, the answer says that it is a judgement.
    Advise(advise::AdviseArgs),
    /// Look at a running EKM from where Cloud KMS would call it: name, route, TCP, TLS, certificate, latency, a wrap and an unwrap
    ///
    /// Run it on a machine in the VPC network and region of the EKM connection, or on the internet if that is where Cloud KMS comes from:
    /// it sees that machine's way to the EKM and no other. Every line says what to do. Exit code 0 if nothing fails; warnings do not fail.
    Preflight(Box<preflight::PreflightArgs>),
}

pub(super) fn run(args: &TopologyArgs) -> Result<Exit, CliError> {
    match &args.command {
        TopologyCommand::Advise(args) => advise::run(args),
        TopologyCommand::Preflight(args) => preflight::run(args),
    }
}
