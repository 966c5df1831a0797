//! `make conformance`: the conformance suite against services of ours, one for each custody; the report that the documentation has.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;

use ekm_tests::{Custody, conformance_report};

/// What there is to choose.
#[derive(clap::Parser)]
struct Arguments {
    /// Write the table of the documentation here, too
    #[arg(long, value_name = "FILE")]
    write: Option<PathBuf>,
}

#[expect(clippy::print_stdout, reason = "the answer")]
fn main() -> ExitCode {
    let arguments = <Arguments as clap::Parser>::parse();
    let reports: BTreeMap<_, _> = Custody::ALL.into_iter().map(|custody| (custody, custody.check())).collect();
    let table = conformance_report(&reports);
    println!("{table}");
    if let Some(file) = arguments.write
        && let Err(error) = fs::write(&file, &table)
    {
        println!("cannot write {}: {error}", file.display());
        return ExitCode::FAILURE;
    }
    let failed = reports.values().any(|report| report["summary"]["failed"] != 0);
    if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}
