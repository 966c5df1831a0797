//! `drill-catalog`: breaks the key catalog's databases under load, and says what it cost.
//!
//! Three PostgreSQL nodes under Patroni, three members of etcd, each pair on a network of its own; frontends that wrap and unwrap
//! all the time; writers that remember what was acknowledged.

mod catalog;
mod frontends;
mod history;
mod load;
mod observer;
mod report;
mod writer;

use std::process::ExitCode;
use std::thread::sleep;
use std::time::{Duration, Instant};

use clap::{Parser, ValueEnum};
use ekm_tests::patroni::Patroni;
use ekm_tests::{Directory, namespaces};
use history::{Attempt, Outcome, Violation};
use load::Load;
use observer::Observer;
use report::Row;
use writer::Writers;

/// Breaks the key catalog's databases under load: leader crash, network partition, switchover, frozen etcd, no database at all.
///
/// As yet the frontends have their catalog in SQLite files, and the writers use tables of the drill's own in PostgreSQL.
///
/// Exit codes: 0 if every limit was kept, 1 if not, 2 if the drill cannot run here.
#[derive(Parser)]
struct Args {
    /// A crash, a switchover, and some seconds without a database: within a minute
    #[arg(long)]
    short: bool,
    /// How long there is no database
    #[arg(long, default_value_t = 30.0, value_name = "MINUTES", conflicts_with = "short")]
    without_database_minutes: f64,
    /// Pairs of a wrap and an unwrap per second, over two frontends
    #[arg(long, default_value_t = 200)]
    rate: u32,
    /// Output
    #[arg(long, value_enum, default_value_t = Output::Text)]
    output: Output,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum Output {
    Text,
    Json,
}

/// How long the cluster may take to acknowledge writes again after a fault has ended.
const RECOVERY: Duration = Duration::from_secs(60);

const FREEZE: Duration = Duration::from_secs(25);

/// For everything but the time without a database.
const TIME_LIMIT: Duration = Duration::from_secs(600);

fn main() -> ExitCode {
    let args = Args::parse();
    if let Err(error) = namespaces::enter() {
        eprintln!("drill-catalog: {error}");
        return ExitCode::from(2);
    }
    let outage =
        if args.short { Duration::from_secs(4) } else { Duration::from_secs_f64(args.without_database_minutes * 60.0) };
    std::thread::spawn(move || {
        sleep(TIME_LIMIT + outage);
        eprintln!("drill-catalog: it takes too long");
        std::process::exit(1);
    });
    let rows = drill(&args, outage);
    let passed = rows.iter().all(Row::passed);
    if args.output == Output::Json {
        print(&serde_json::json!({"passed": passed, "drills": rows}).to_string());
    }
    if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

#[expect(clippy::print_stdout, reason = "the report")]
fn print(text: &str) {
    println!("{text}");
}

/// Seconds, to the millisecond.
fn seconds(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1000.0).round() / 1000.0
}

struct Drill {
    output: Output,
    rows: Vec<Row>,
    load: Load,
    writers: Writers,
    observer: Observer,
    /// The directory of a frontend that ran once, and is free for a cold start.
    spare: Directory,
    cluster: Patroni,
}

fn drill(args: &Args, outage: Duration) -> Vec<Row> {
    let cluster = Patroni::start();
    catalog::create(&cluster.database);
    let [first, second, spare] = frontends::directories();
    let frontends = [&first, &second].map(frontends::start);
    drop(frontends::start(&spare));
    let load = Load::start([&frontends[0], &frontends[1]], args.rate);
    let observer = Observer::start(frontends);
    let writers = Writers::start(&cluster.database);
    let mut drill = Drill { output: args.output, rows: Vec::new(), load, writers, observer, spare, cluster };
    assert!(drill.writers.acknowledged_within(RECOVERY), "no write is acknowledged on a whole cluster");
    drill.load.take_slowest_ms();
    if args.output == Output::Text {
        print(&report::head());
    }

    drill.run("leader crash", Some(30.0), |drill, faults| {
        let leader = drill.cluster.wait_for_leader();
        drill.cluster.crash(leader);
        drill.expect_writes(faults);
        drill.cluster.restart(leader);
        drill.cluster.wait_healthy();
        None
    });
    if !args.short {
        drill.run("partition", Some(30.0), |drill, faults| {
            let leader = drill.cluster.wait_for_leader();
            drill.cluster.partition(leader);
            drill.expect_writes(faults);
            drill.cluster.heal(leader);
            drill.cluster.wait_healthy();
            None
        });
    }
    // Patroni's pause of two seconds, the old leader's last checkpoint, and its followers' way to the new one.
    drill.run("switchover", Some(5.0), |drill, faults| {
        faults.extend(drill.cluster.switchover().err());
        drill.expect_writes(faults);
        if !args.short {
            drill.cluster.wait_healthy();
        }
        None
    });
    if !args.short {
        drill.run("etcd frozen", Some(3.0), |drill, _| {
            drill.cluster.freeze_etcd();
            sleep(FREEZE);
            drill.cluster.thaw_etcd();
            drill.cluster.wait_healthy();
            None
        });
    }
    drill.run("no database", None, |drill, faults| {
        drill.cluster.kill_databases();
        let begun = Instant::now();
        let cold_start = frontends::time_cold_start(&drill.spare);
        sleep(outage.saturating_sub(begun.elapsed()));
        drill.cluster.start_databases();
        drill.expect_writes(faults);
        if !args.short {
            drill.cluster.wait_healthy();
        }
        cold_start.map_err(|error| faults.push(error)).ok()
    });
    drill.rows
}

impl Drill {
    /// Runs one drill, which returns the time of a cold start if it made one, and judges it.
    fn run(
        &mut self,
        name: &'static str,
        gap_limit_s: Option<f64>,
        action: impl FnOnce(&mut Self, &mut Vec<String>) -> Option<Duration>,
    ) {
        eprintln!("drill-catalog: {name} ...");
        let (from_ms, before, begun) = (self.writers.now_ms(), self.load.done(), Instant::now());
        let mut faults = Vec::new();
        let cold_start = action(self, &mut faults);
        self.expect_writes(&mut faults);
        let (to_ms, after, took) = (self.writers.now_ms(), self.load.done(), begun.elapsed());
        let mut row = self.writers.while_quiet(|attempts| {
            let write_gap_s = seconds(Duration::from_millis(history::longest_gap_ms(attempts, from_ms, to_ms)));
            let inside = attempts.iter().filter(|attempt| attempt.sent_ms >= from_ms);
            let writes = inside.filter(|attempt| matches!(attempt.outcome, Outcome::Acknowledged { .. })).count();
            Row {
                drill: name,
                took_s: seconds(took),
                write_gap_s,
                writes,
                violations: self.violations(attempts, &mut faults),
                ..Row::default()
            }
        });
        row.write_gap_limit_s = gap_limit_s;
        row.cold_start_s = cold_start.map(seconds);
        row.wraps = after.wraps - before.wraps;
        row.unwraps = after.unwraps - before.unwraps;
        row.failed = after.failed - before.failed;
        row.slowest_ms = self.load.take_slowest_ms();
        row.lost = row.violations.iter().filter(|violation| matches!(violation, Violation::Lost { .. })).count();
        row.revisions = self.observer.latest();
        row.faults = faults;
        row.judge(self.load.take_error());
        if self.output == Output::Text {
            print(&row.line());
        }
        self.rows.push(row);
    }

    /// What is wrong now and was not after the drills before.
    fn violations(&self, attempts: &[Attempt], faults: &mut Vec<String>) -> Vec<Violation> {
        let log = catalog::read_changes(&self.cluster.database).unwrap_or_else(|error| {
            faults.push(format!("the catalog's log cannot be read: {error}"));
            Vec::new()
        });
        let mut found = history::check(attempts, 0, &log, &self.observer.seen());
        found.retain(|violation| !self.rows.iter().any(|row| row.violations.contains(violation)));
        found
    }

    fn expect_writes(&self, faults: &mut Vec<String>) {
        if !self.writers.acknowledged_within(RECOVERY) {
            faults.push(format!("no write was acknowledged for {} s after the fault", RECOVERY.as_secs()));
        }
    }
}
