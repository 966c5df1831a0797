//! `ekm-load`: sends requests on schedule, whatever comes of them, and says what came of them.
//!
//! - [`scenario`]: the file. [`schedule`], [`choice`]: when what is due. [`requests`], [`target`]: what is sent, to whom, as whom.
//! - [`sending`]: the generator's threads. [`thread`], [`connection`], [`clock`]: one of them. [`cores`]: where they run.
//! - [`rig`], [`faults`], [`hostile`]: a service of our own, what goes wrong there, and who means it no good.
//! - [`recording`], [`resources`], [`refusals`], [`results`], [`objectives`], [`conditions`]: what was seen; [`median`]: in several runs.
//!   [`progress`], [`report_table`], [`report_html`],
//!   [`charts`], [`compare`]: how it is shown.

mod charts;
mod choice;
mod clock;
mod compare;
mod conditions;
mod connection;
mod cores;
mod faults;
mod hostile;
mod median;
mod objectives;
mod progress;
mod recording;
mod refusals;
mod report_html;
mod report_table;
mod requests;
mod resources;
mod results;
mod rig;
mod run;
mod scenario;
mod schedule;
mod sending;
mod target;
#[cfg(test)]
mod tests;
mod thread;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand, ValueEnum};
use results::Verdict;

/// What is taken and given back for each request is a good part of what it costs.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Sends requests on schedule, whatever comes of them, and says what came of them.
#[derive(Parser)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Runs a scenario.
    ///
    /// Exit codes: 0 if every objective was met, 1 if not, 2 if it could not be run, 3 if the generator was the bottleneck, so that the
    /// run says nothing about the service.
    Run(Box<run::Args>),
    /// Shows two results beside each other
    Compare {
        /// What `--output json` has written
        before: PathBuf,
        /// The same, later
        after: PathBuf,
        /// Exit code 1 if a figure has become worse by more than this
        #[arg(long, value_name = "PERCENT")]
        tolerate: Option<f64>,
    },
}

/// How a result is shown.
#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum Output {
    Text,
    Json,
}

fn main() -> ExitCode {
    match Args::parse().command {
        Command::Run(args) => match run::run(&args) {
            Ok(Verdict::Pass) => ExitCode::SUCCESS,
            Ok(Verdict::Fail) => ExitCode::FAILURE,
            Ok(Verdict::Inconclusive) => ExitCode::from(3),
            Err(error) => usage(&format!("{error:#}")),
        },
        Command::Compare { before, after, tolerate } => match (compare::read(&before), compare::read(&after)) {
            (Ok(before), Ok(after)) => {
                print(&compare::render(&before, &after));
                let worst = compare::changes(&before, &after).into_iter().filter_map(|change| change.better_percent);
                let worst = worst.fold(0.0, f64::min);
                if tolerate.is_some_and(|tolerate| -worst > tolerate) { ExitCode::FAILURE } else { ExitCode::SUCCESS }
            }
            (Err(problem), _) | (_, Err(problem)) => usage(&problem),
        },
    }
}

/// One text on standard output.
#[expect(clippy::print_stdout, reason = "the report")]
fn print(text: &str) {
    println!("{text}");
}

fn usage(problem: &str) -> ExitCode {
    eprintln!("ekm-load: {problem}");
    ExitCode::from(2)
}
