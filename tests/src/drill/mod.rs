//! What the drills have in common: a client that keeps its connection, and the table of results.

mod client;
mod table;

use std::process::ExitCode;
use std::time::Duration;

use clap::ValueEnum;
use serde::Serialize;

pub use client::Client;
pub use table::{Table, figure};

/// How results are shown.
#[derive(Clone, Copy, PartialEq, ValueEnum)]
#[expect(missing_docs, reason = "named as on the command line")]
pub enum Output {
    Text,
    Json,
}

/// One line on standard output.
#[expect(clippy::print_stdout, reason = "the report")]
pub fn print(text: &str) {
    println!("{text}");
}

/// Seconds, to the millisecond.
pub fn seconds(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1000.0).round() / 1000.0
}

/// The end of a drill: the whole as JSON if it was asked for, and the exit code. 2 if no row was chosen.
pub fn finish<Row: Serialize>(drill: &str, output: Output, rows: &[Row], passed: fn(&Row) -> bool) -> ExitCode {
    if rows.is_empty() {
        eprintln!("{drill}: no drill has this name, or not in the short form; names are those in the table");
        return ExitCode::from(2);
    }
    let passed = rows.iter().all(passed);
    if output == Output::Json {
        print(&serde_json::json!({"passed": passed, "drills": rows}).to_string());
    }
    if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
