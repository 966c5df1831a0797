//! `drill-hsm`: breaks HSMs under load, one of three at a time, and says what it cost.
//!
//! `ekm serve` with three SoftHSM tokens that hold the same keys, each behind a module that has faults on request. Requests are sent on
//! schedule; blobs that were wrapped meanwhile are unwrapped again by a fourth token that never had a fault.

mod load;
mod report;
mod site;
mod tampering;
mod throughput;
mod watch;

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;
use std::thread::sleep;
use std::time::{Duration, Instant};

use clap::Parser;
use ekm_tests::drill::{self, Output, print, seconds};
use ekm_tests::{Effect, Ekm, Fault};
use load::Load;
use report::{Limits, Row, ms};
use serde_json::json;
use site::{Hsm, Origin, REPLICAS};
use watch::Watch;

/// Breaks HSMs under load, one of three at a time: hung, slow, failing, crashing, pulled, lying. Sends rubbish; takes every HSM out and
/// back, as for an upgrade; measures throughput.
///
/// Exit codes: 0 if every limit was kept, 1 if not, 2 if nothing could be drilled.
#[derive(Parser)]
struct Args {
    /// The most telling drills, for a few seconds each; times are not judged
    #[arg(long)]
    short: bool,
    /// How long each fault lasts
    #[arg(long, default_value_t = 20.0, value_name = "SECONDS", conflicts_with = "short")]
    seconds: f64,
    /// Requests per second; one in five is a wrap. 100 in the short form
    #[arg(long, default_value_t = 300, conflicts_with = "short")]
    rate: u32,
    /// Tampered blobs
    #[arg(long, default_value_t = 100_000, conflicts_with = "short")]
    tampered: u64,
    /// Only this drill, by its name in the table; may be given more than once
    #[arg(long, value_name = "NAME")]
    only: Vec<String>,
    /// A directory in which to leave the service's log
    #[arg(long, value_name = "DIR")]
    logs: Option<PathBuf>,
    /// Output
    #[arg(long, value_enum, default_value_t = Output::Text)]
    output: Output,
}

/// How long replicas may take to serve before a drill begins.
const PATIENCE: Duration = Duration::from_secs(60);

/// What a replica that has come back takes until it has its full share.
const SLOW_START: Duration = Duration::from_secs(4);

/// How long a replica is watched that should come back.
const COMING_BACK: Duration = Duration::from_secs(60);

/// Between two faults that happen at once.
const AGAIN: Duration = Duration::from_secs(1);

/// A drill in which this machine stalled says nothing about the service, and is done again.
const ATTEMPTS: usize = 3;

/// The HSM whose throughput is measured: what is left to the service of each operation is a twentieth of its time.
const MEASURED_SESSIONS: usize = 16;
const MEASURED_MS: f64 = 50.0;
const MEASURED_SHARE: f64 = 0.95;

fn main() -> ExitCode {
    let args = Args::parse();
    let output = args.output;
    drill::finish("drill-hsm", output, &run(args), Row::passed)
}

struct Drill {
    args: Args,
    rows: Vec<Row>,
    watch: Watch,
    ekm: Ekm,
    hsms: [Hsm; 3],
    checker: Ekm,
    origin: Origin,
}

/// A fault that is under way, or what else happens meanwhile.
struct Scene<'a> {
    ekm: &'a Ekm,
    hsms: &'a [Hsm; 3],
    /// The one that has the fault.
    hsm: &'a Hsm,
    watch: &'a Watch,
    load: &'a Load,
    /// How long it lasts.
    time: Duration,
}

fn run(args: Args) -> Vec<Row> {
    let args = if args.short { Args { rate: 100, ..args } } else { args };
    let origin = Origin::new();
    let (ekm, hsms) = origin.three();
    let checker = origin.checker();
    let watch = Watch::start(&ekm);
    let mut drill = Drill { args, rows: Vec::new(), watch, ekm, hsms, checker, origin };
    if drill.args.output == Output::Text {
        print(&drill.conditions());
        print(&report::TABLE.head());
    }
    drill.run_all();
    if let Some(directory) = &drill.args.logs {
        fs::create_dir_all(directory).expect("writable");
        fs::write(directory.join("ekm.log"), drill.ekm.log()).expect("writable");
    }
    drill.rows
}

impl Drill {
    fn conditions(&self) -> String {
        let build = if cfg!(debug_assertions) { "a debug build" } else { "a release build" };
        let cores = std::thread::available_parallelism().map_or(0, usize::from);
        let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
        format!(
            "{build} on {cores} cores with a load of {} before it began; {} HSMs with {} sessions and {} ms a call; \
             {} requests/s, one in {} a wrap",
            load.split(' ').next().unwrap_or_default(),
            REPLICAS.len(),
            site::SESSIONS,
            site::DEVICE_MS,
            self.args.rate,
            load::WRAP_EVERY,
        )
    }

    fn run_all(&mut self) {
        let short = self.args.short;
        let (stays, errors, slowness) = (None, Some(250.0), Some(1000.0));
        let slower = |times: f64| {
            let delay = Effect::Delay { ms: site::DEVICE_MS * (times - 1.0), sigma: 0.0 };
            vec![Fault::new(delay).of("C_Encrypt").of("C_Decrypt").of("C_GenerateKey")]
        };
        if !short {
            self.run("no fault", Limits { no_failure: true, ..self.limits(None) }, |scene, _| sleep(scene.time));
        }
        self.fault("hung", slowness, vec![Fault::new(Effect::Hang)]);
        if !short {
            self.fault("10 times slower", stays, slower(10.0));
            self.fault("50 times slower", slowness, slower(50.0));
        }
        self.fault("device errors", errors, vec![Fault::code("CKR_DEVICE_ERROR")]);
        if !short {
            let refuses = vec![Fault::code("CKR_FUNCTION_FAILED").of("C_Decrypt")];
            self.fault("refuses to decrypt", slowness, refuses);
        }
        let now_and_then = [("CKR_DEVICE_ERROR", "C_Encrypt"), ("CKR_DEVICE_ERROR", "C_Decrypt")]
            .into_iter()
            .chain([("CKR_GENERAL_ERROR", "C_Decrypt"), ("CKR_FUNCTION_FAILED", "C_Decrypt")]);
        let now_and_then =
            now_and_then.map(|(code, function)| Fault::code(code).of(function).with_probability(0.05 / 3.0));
        self.fault("errors now and then", stays, now_and_then.collect());
        self.run("worker killed", self.limits(errors), |scene, row| scene.kill_workers(row));
        if !short {
            self.fault("library crashes", errors, vec![Fault::new(Effect::Crash)]);
        }
        self.fault("token pulled", errors, vec![Fault::new(Effect::Remove)]);
        if !short {
            self.run("sessions lost", self.limits(stays), |scene, _| scene.lose_sessions());
        }
        self.fault("wrong results", errors, vec![Fault::new(Effect::FlipBit)]);
        if !short {
            let lies = vec![Fault::new(Effect::FlipBit).with_probability(0.05)];
            self.fault("wrong now and then", stays, lies);
        }
        let (count, per_s) = if short { (500, 100) } else { (self.args.tampered, 400) };
        let limits = Limits { back_s: None, ..self.limits(stays) };
        self.run("tampered blobs", limits, move |scene, row| scene.tamper(row, count, per_s));
        if !short {
            let limits = Limits { back_s: None, no_failure: true, ..self.limits(stays) };
            self.run("upgrade of all", limits, |scene, row| scene.upgrade(row));
            self.measure_throughput();
        }
    }

    fn limits(&self, out_ms: Option<f64>) -> Limits {
        let back_s = if self.args.short { 45.0 } else { 15.0 };
        Limits { out_ms, back_s: Some(back_s), times: !self.args.short, no_failure: false }
    }

    fn time(&self) -> Duration {
        if self.args.short { Duration::from_secs(3) } else { Duration::from_secs_f64(self.args.seconds) }
    }

    fn is_chosen(&self, name: &str) -> bool {
        self.args.only.is_empty() || self.args.only.iter().any(|only| only == name)
    }

    /// One replica has these faults for a while.
    fn fault(&mut self, name: &'static str, out_ms: Option<f64>, faults: Vec<Fault>) {
        let limits = self.limits(out_ms);
        self.run(name, limits, |scene, _| {
            let ids: Vec<_> = faults.iter().map(|fault| scene.hsm.module.inject(fault.clone())).collect();
            sleep(scene.time);
            ids.into_iter().for_each(|id| scene.hsm.module.lift(id));
        });
    }

    /// Runs one drill under load, and judges it; again if this machine was in the way.
    fn run(&mut self, name: &'static str, limits: Limits, action: impl Fn(&Scene<'_>, &mut Row)) {
        if !self.is_chosen(name) {
            return;
        }
        for attempt in 1..=ATTEMPTS {
            eprintln!("drill-hsm: {name} ...");
            let row = Row { drill: name, limits, attempt, ..Row::default() };
            let row = self.run_once(row, &action);
            let row = self.finish(row);
            if attempt == ATTEMPTS || !row.says_nothing() {
                break;
            }
            self.rows.pop();
        }
    }

    fn run_once(&self, mut row: Row, action: impl Fn(&Scene<'_>, &mut Row)) -> Row {
        self.wait_until_all_serve(&mut row);
        let number = self.rows.len();
        let limits = row.limits;
        let (ekm, hsms, watch, hsm) = (&self.ekm, &self.hsms, &self.watch, &self.hsms[number % REPLICAS.len()]);
        let load = Load::start(ekm, self.args.rate, ((number * ATTEMPTS + row.attempt) as u64) << 40);
        sleep(AGAIN);
        let (began, before) = (Instant::now(), extra(ekm));
        action(&Scene { ekm, hsms, hsm, watch, load: &load, time: self.time() }, &mut row);
        let ended = Instant::now();
        let back = watch.in_state_after(hsm.name(), "serving", ended, COMING_BACK);
        sleep(AGAIN);
        row.took_s = seconds(began.elapsed());
        let after = extra(ekm);
        let (samples, blobs) = load.end();
        row.take_samples(&samples, began);
        if limits.back_s.is_some() {
            row.back_s = back.map(seconds);
            row.out_ms = watch.out_after(hsm.name(), began).map(ms);
            let others = REPLICAS.iter().filter(|name| **name != hsm.name());
            row.others_out =
                others.filter(|name| watch.out_after(name, began).is_some()).map(|name| (*name).into()).collect();
        }
        (row.hedges, row.retries) = (after.0 - before.0, after.1 - before.1);
        row.extra_percent =
            100.0 * (row.hedges + row.retries) / (row.requests + row.tampered.unwrap_or(0)).max(1) as f64;
        row.take_lost(blobs.len(), load::check(&self.checker, &blobs));
        row
    }

    fn wait_until_all_serve(&self, row: &mut Row) {
        let begun = Instant::now();
        while let Some(name) = REPLICAS.iter().find(|name| !self.watch.is_in(name, "serving")) {
            if begun.elapsed() > PATIENCE {
                row.faults.push(format!("{name} does not serve before it begins"));
                break;
            }
            sleep(Duration::from_millis(20));
        }
        if !self.args.short {
            sleep(SLOW_START);
        }
    }

    fn finish(&mut self, mut row: Row) -> &Row {
        row.judge();
        if self.args.output == Output::Text {
            print(&row.line());
        }
        self.rows.push(row);
        self.rows.last().expect("it was just put there")
    }

    /// As many unwraps as the HSM can do; with one HSM, which is slow enough that this machine is not the limit.
    fn measure_throughput(&mut self) {
        if !self.is_chosen("throughput") {
            return;
        }
        let ekm = self.origin.one(MEASURED_SESSIONS, MEASURED_MS);
        let (per_s, wrong) = throughput::measure(&ekm, 2 * MEASURED_SESSIONS, self.time());
        let possible = MEASURED_SESSIONS as f64 * 1000.0 / MEASURED_MS;
        let mut row = Row { drill: "throughput", per_s: Some(per_s), took_s: seconds(self.time()), ..Row::default() };
        row.requests = (per_s * self.time().as_secs_f64()) as usize;
        row.right_percent = 100.0;
        if per_s < MEASURED_SHARE * possible {
            row.faults.push(format!(
                "{MEASURED_SESSIONS} sessions of {MEASURED_MS} ms a call can do {possible:.0} a second, and did {per_s:.1}"
            ));
        }
        if wrong > 0 {
            row.faults.push(format!("{wrong} unwraps were not right"));
        }
        self.finish(row);
    }
}

/// Hedges and retries so far.
fn extra(ekm: &Ekm) -> (f64, f64) {
    (ekm.metric("ekm_hsm_hedges_total"), ekm.metric("ekm_hsm_retries_total"))
}

impl Scene<'_> {
    fn kill_workers(&self, row: &mut Row) {
        let begun = Instant::now();
        let mut killed = 0;
        while begun.elapsed() < self.time {
            killed += usize::from(self.hsm.kill_worker(self.ekm));
            sleep(2 * AGAIN);
        }
        if killed == 0 {
            row.faults.push("no worker process was found to kill".into());
        }
    }

    fn lose_sessions(&self) {
        let begun = Instant::now();
        for effect in [Effect::LoseSessions, Effect::LogOut, Effect::StaleHandles].iter().cycle() {
            if begun.elapsed() >= self.time {
                return;
            }
            let id = self.hsm.module.inject(Fault::new(effect.clone()));
            sleep(AGAIN);
            self.hsm.module.lift(id);
        }
    }

    fn tamper(&self, row: &mut Row, count: u64, per_s: u32) {
        let before = self.ejections();
        let answers = tampering::send(self.ekm, self.load, count, per_s);
        row.tampered = Some(answers.counts.values().sum());
        let one_400 = answers.counts.len() == 1 && answers.counts.keys().all(|answer| answer.starts_with("400 "));
        // "Try again" is right, too, but no more often than for others.
        if !one_400 || row.limits.times && answers.again as f64 > report::late_share() * count as f64 {
            row.faults.push(format!("tampered blobs were not all answered 400 with the same text: {answers:?}"));
        }
        if row.limits.times && self.ejections() != before {
            row.faults.push("replicas were ejected".into());
        }
    }

    /// So far, of each.
    fn ejections(&self) -> [f64; 3] {
        REPLICAS.map(|name| self.ekm.metric(&format!("ekm_hsm_ejections_total{{replica=\"{name}\",shard=\"main\"}}")))
    }

    /// As the runbook says: one after the other is drained, is away for a while, and is resumed.
    fn upgrade(&self, row: &mut Row) {
        for hsm in self.hsms {
            let name = hsm.name();
            self.ekm.change(json!({"type": "hsm-drain", "name": name}));
            self.expect(name, "drained", row);
            let id = hsm.module.inject(Fault::new(Effect::Remove));
            sleep(self.time / 4);
            hsm.module.lift(id);
            self.ekm.change(json!({"type": "hsm-resume", "name": name}));
            self.expect(name, "serving", row);
            sleep(AGAIN);
        }
    }

    fn expect(&self, name: &str, state: &str, row: &mut Row) {
        if self.watch.in_state_after(name, state, Instant::now(), COMING_BACK).is_none() {
            row.faults.push(format!("{name} was never {state}"));
        }
    }
}
