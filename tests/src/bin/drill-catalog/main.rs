//! `drill-catalog`: breaks the key catalog's databases under load, and says what it cost.
//!
//! Three PostgreSQL nodes under Patroni, three members of etcd, each pair on a network of its own; two frontends that wrap and unwrap
//! all the time; writers at their admin APIs that remember what was acknowledged.

mod catalog;
mod frontends;
mod history;
mod load;
mod observer;
mod probe;
mod report;
mod revocation;
mod writer;

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::thread::sleep;
use std::time::{Duration, Instant};

use catalog::Admin;
use clap::Parser;
use ekm_tests::drill::{self, Output, print, seconds};
use ekm_tests::patroni::Patroni;
use ekm_tests::postgres::PgBouncer;
use ekm_tests::{Directory, Ekm, namespaces};
use history::{Attempt, Outcome, Violation};
use load::Load;
use observer::Observer;
use probe::Probe;
use report::Row;
use writer::Writers;

/// Breaks the key catalog's databases under load: leader crash, network partition, switchover, frozen etcd, no database at all. And
/// disables a key, to see how soon the other frontend refuses it.
///
/// Exit codes: 0 if every limit was kept, 1 if not, 2 if nothing could be drilled.
#[derive(Parser)]
struct Args {
    /// Some revocations, a crash, a switchover, and some seconds without a database: about a minute
    #[arg(long)]
    short: bool,
    /// How long there is no database
    #[arg(long, default_value_t = 30.0, value_name = "MINUTES", conflicts_with = "short")]
    without_database_minutes: f64,
    /// Pairs of a wrap and an unwrap per second, over two frontends
    #[arg(long, default_value_t = 200)]
    rate: u32,
    /// Only this drill, by its name in the table; may be given more than once
    #[arg(long, value_name = "NAME")]
    only: Vec<String>,
    /// A directory in which to leave the logs of the nodes and the frontends
    #[arg(long, value_name = "DIR")]
    logs: Option<PathBuf>,
    /// Output
    #[arg(long, value_enum, default_value_t = Output::Text)]
    output: Output,
}

/// How long the cluster may take to acknowledge writes again after a fault has ended.
const RECOVERY: Duration = Duration::from_secs(60);

const FREEZE: Duration = Duration::from_secs(25);

/// How long frontends may take to come to the log's end after the last write.
const FOLLOWING: Duration = Duration::from_secs(10);

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
    let output = args.output;
    drill::finish("drill-catalog", output, &run(args, outage), Row::passed)
}

struct Drill {
    args: Args,
    outage: Duration,
    rows: Vec<Row>,
    load: Load,
    writers: Writers,
    observer: Observer,
    frontends: Arc<[Ekm; 2]>,
    /// The first frontend's, to read the log.
    admin: Admin,
    /// The revision before the writers'.
    base: u64,
    /// The directory of a frontend that ran once, and is free for a cold start.
    spare: Directory,
    /// One for a frontend that hears no notifications.
    deaf: Directory,
    cluster: Patroni,
}

fn run(args: Args, outage: Duration) -> Vec<Row> {
    let cluster = Patroni::start();
    probe::create(&cluster.database);
    let [first, second, spare, deaf] = frontends::set_up_directories(&cluster.database);
    let frontends = Arc::new([&first, &second].map(frontends::start));
    let base = frontends::make_keys(&frontends[0]);
    frontends::start(&spare).eventually_copied(base);
    frontends[1]
        .eventually("at the first one's revision", || frontends[1].metric("ekm_catalog_revision") >= base as f64);
    let load = Load::start(frontends.each_ref(), args.rate);
    let observer = Observer::start(Arc::clone(&frontends));
    let writers = Writers::start(frontends.each_ref());
    let admin = Admin::of(&frontends[0]);
    let mut drill =
        Drill { args, outage, rows: Vec::new(), load, writers, observer, frontends, admin, base, spare, deaf, cluster };
    assert!(drill.writers.acknowledged_within(RECOVERY), "no write is acknowledged on a whole cluster");
    drill.load.take_slowest_ms();
    if drill.args.output == Output::Text {
        print(&report::TABLE.head());
    }
    drill.run_all();
    if let Some(directory) = &drill.args.logs {
        fs::create_dir_all(directory).expect("writable");
        drill.cluster.keep_logs(directory);
        for (name, directory_of) in [("frontend1", &first), ("frontend2", &second), ("spare", &drill.spare)] {
            fs::copy(directory_of.path().join("stderr.log"), directory.join(format!("{name}.log"))).expect("a log");
        }
    }
    drill.rows
}

impl Drill {
    fn run_all(&mut self) {
        let short = self.args.short;
        self.run("revocation", Self::revoke);
        if !short {
            self.run("revocation by polling", Self::revoke_by_polling);
        }
        self.run("leader crash", Self::crash);
        if !short {
            self.run("partition", Self::partition);
            self.run("partition of databases", Self::isolate);
        }
        self.run("switchover", Self::switch_over);
        if !short {
            self.run("patronictl switchover", Self::order_switchover);
            self.run("etcd frozen", Self::freeze_etcd);
        }
        self.run("no database", Self::go_without_database);
    }

    fn revoke(&mut self, row: &mut Row) {
        row.revocation_limit_s = Some(self.limit_s(5.0));
        let [first, second] = &*self.frontends;
        let times = revocation::measure(&self.writers, first, second, "revoked", self.revocations());
        row.take_revocations(times);
    }

    /// Notifications do not get through a pooler of transactions: the session that listens is nobody's when nothing is under way.
    fn revoke_by_polling(&mut self, row: &mut Row) {
        row.revocation_limit_s = Some(self.limit_s(60.0));
        let bouncer = PgBouncer::before(&self.cluster.database);
        frontends::use_database(&self.deaf, &bouncer.database);
        let deaf = frontends::start(&self.deaf);
        let times = revocation::measure(&self.writers, &self.frontends[0], &deaf, "polled", self.revocations());
        row.take_revocations(times);
    }

    fn revocations(&self) -> u32 {
        if self.args.short { 5 } else { 50 }
    }

    fn crash(&mut self, row: &mut Row) {
        row.write_gap_limit_s = Some(self.limit_s(30.0));
        let leader = self.cluster.wait_for_leader();
        self.cluster.crash(leader);
        self.expect_writes(row);
        self.cluster.restart(leader);
        self.cluster.wait_healthy();
    }

    fn partition(&mut self, row: &mut Row) {
        row.write_gap_limit_s = Some(self.limit_s(30.0));
        let leader = self.cluster.wait_for_leader();
        self.cluster.partition(leader);
        self.expect_writes(row);
        self.cluster.heal(leader);
        self.cluster.wait_healthy();
    }

    /// The frontends still reach the old leader, which does not know yet that it is none any more.
    fn isolate(&mut self, row: &mut Row) {
        row.write_gap_limit_s = Some(self.limit_s(30.0));
        let leader = self.cluster.wait_for_leader();
        if !probe::once(&self.cluster.database, leader) {
            row.faults.push("the leader acknowledged no write before it was cut off".into());
        }
        self.cluster.isolate(leader);
        let probe = Probe::start(&self.cluster.database, leader);
        self.expect_writes(row);
        let (tried, acknowledged) = probe.end();
        self.cluster.rejoin(leader);
        self.cluster.wait_healthy();
        if tried == 0 || acknowledged > 0 {
            row.faults.push(format!("the leader that was cut off acknowledged {acknowledged} of {tried} writes"));
        }
    }

    /// The leader is stopped in an orderly way, as for maintenance, and started again when another one leads.
    fn switch_over(&mut self, row: &mut Row) {
        row.write_gap_limit_s = Some(self.limit_s(3.0));
        let leader = self.cluster.wait_for_leader();
        self.cluster.stop(leader);
        self.expect_writes(row);
        self.cluster.restart(leader);
        if !self.args.short {
            self.cluster.wait_healthy();
        }
    }

    /// How long the writes' gap is depends on what Patroni sleeps, so it is measured and not judged.
    fn order_switchover(&mut self, row: &mut Row) {
        row.faults.extend(self.cluster.switchover().err());
        self.expect_writes(row);
        if !self.args.short {
            self.cluster.wait_healthy();
        }
    }

    /// The promise; in the short form, which runs beside other tests, only what is out of all proportion fails.
    fn limit_s(&self, promised_s: f64) -> f64 {
        if self.args.short { promised_s * 20.0 } else { promised_s }
    }

    fn freeze_etcd(&mut self, row: &mut Row) {
        row.write_gap_limit_s = Some(self.limit_s(3.0));
        self.cluster.freeze_etcd();
        sleep(FREEZE);
        self.cluster.thaw_etcd();
        self.cluster.wait_healthy();
    }

    /// Two cold starts: hosts that refuse, and hosts that do not answer at all.
    fn go_without_database(&mut self, row: &mut Row) {
        self.cluster.kill_databases();
        let begun = Instant::now();
        let refused = frontends::time_cold_start(&self.spare);
        self.cluster.partition_all();
        let silent = frontends::time_cold_start(&self.spare);
        sleep(self.outage.saturating_sub(begun.elapsed()));
        self.cluster.heal_all();
        self.cluster.start_databases();
        self.expect_writes(row);
        if !self.args.short {
            self.cluster.wait_healthy();
        }
        row.cold_start_limit_s = Some(self.limit_s(5.0));
        for cold_start in [refused, silent] {
            match cold_start {
                Ok(took) => row.cold_start_s = Some(seconds(took).max(row.cold_start_s.unwrap_or_default())),
                Err(error) => row.faults.push(error),
            }
        }
    }

    /// Runs one drill, which fills in what only it knows, and judges it.
    fn run(&mut self, name: &'static str, action: impl FnOnce(&mut Self, &mut Row)) {
        if !self.args.only.is_empty() && !self.args.only.iter().any(|only| only == name) {
            return;
        }
        eprintln!("drill-catalog: {name} ...");
        let (from_ms, before, begun) = (self.writers.now_ms(), self.load.done(), Instant::now());
        let mut row = Row { drill: name, ..Row::default() };
        action(self, &mut row);
        self.expect_writes(&mut row);
        let (to_ms, after, took) = (self.writers.now_ms(), self.load.done(), begun.elapsed());
        row.took_s = seconds(took);
        let Self { admin, observer, rows, base, .. } = self;
        self.writers.while_quiet(|attempts| {
            row.write_gap_s = seconds(Duration::from_millis(history::longest_gap_ms(attempts, from_ms, to_ms)));
            let inside = attempts.iter().filter(|attempt| attempt.ended_ms >= from_ms);
            row.writes = inside.filter(|attempt| matches!(attempt.outcome, Outcome::Acknowledged { .. })).count();
            row.violations = violations(admin, observer, *base, attempts).unwrap_or_else(|error| {
                row.faults.push(format!("the catalog's log cannot be read: {error}"));
                Vec::new()
            });
            row.violations.retain(|violation| !rows.iter().any(|row| row.violations.contains(violation)));
        });
        row.faults.extend(self.writers.take_faults());
        row.wraps = after.wraps - before.wraps;
        row.unwraps = after.unwraps - before.unwraps;
        row.failed = after.failed - before.failed;
        row.slowest_ms = self.load.take_slowest_ms();
        row.lost = row.violations.iter().filter(|violation| matches!(violation, Violation::Lost { .. })).count();
        row.revisions = self.observer.latest();
        row.judge(self.load.take_error());
        if self.args.output == Output::Text {
            print(&row.line());
        }
        self.rows.push(row);
    }

    fn expect_writes(&self, row: &mut Row) {
        if !self.writers.acknowledged_within(RECOVERY) {
            row.faults.push(format!("no write was acknowledged for {} s after the fault", RECOVERY.as_secs()));
        }
    }
}

/// Everything that is wrong so far, while nothing is being written.
fn violations(
    admin: &mut Admin,
    observer: &Observer,
    base: u64,
    attempts: &[Attempt],
) -> Result<Vec<Violation>, String> {
    let log = admin.changes_after(base)?;
    observer.wait_for(log.last().map_or(base, |change| change.revision), FOLLOWING);
    Ok(history::check(attempts, base, &log, &observer.seen()))
}
