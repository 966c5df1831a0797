//! `drill-topology`: breaks replicas and a site under load, behind each of Google's reference topologies, and says what it cost.
//!
//! Five frontends in two sites, load balancers with the configurations of `deploy/`, each machine in a network namespace of its own.

mod report;

use std::process::ExitCode;
use std::thread::sleep;
use std::time::{Duration, Instant};

use clap::{Parser, ValueEnum};
use ekm_tests::drill::{self, Output, print, seconds};
use ekm_tests::namespaces;
use ekm_tests::topology::{Caller, Load, Sites, Way};
use report::{Added, Row};
use rustix::process::Signal;
use serde::Serialize;

/// Breaks one replica of five, and a whole site, behind each of the reference topologies: silent, hung, killed, drained, gone; and restarts
/// three behind one balancer, one after the other. Needs root.
///
/// On a machine that has other things to do, times are worth something only under 'chrt -r 5'.
///
/// Exit codes: 0 if every limit was kept, 1 if not, 2 if nothing could be drilled.
#[derive(Parser)]
struct Args {
    /// A few seconds for each fault; times are not judged, only that it goes on
    #[arg(long)]
    short: bool,
    /// How long each fault lasts
    #[arg(long, default_value_t = 10.0, value_name = "SECONDS", conflicts_with = "short")]
    seconds: f64,
    /// Connections
    #[arg(long, default_value_t = 24)]
    connections: u32,
    /// Requests per second, over all of them. 200 by default, 300 behind one balancer, 60 in the short form
    #[arg(long, conflicts_with = "short")]
    rate: Option<u32>,
    /// How often each of the three behind one balancer is restarted, and how many are killed. 1 in the short form
    #[arg(long, default_value_t = 10, conflicts_with = "short")]
    rounds: usize,
    /// Only this topology; may be given more than once
    #[arg(long, value_enum, value_name = "NAME")]
    topology: Vec<Way>,
    /// Only this fault; may be given more than once
    #[arg(long, value_enum, value_name = "NAME")]
    only: Vec<Fault>,
    /// Output
    #[arg(long, value_enum, default_value_t = Output::Text)]
    output: Output,
}

/// What happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
enum Fault {
    /// Nothing
    None,
    /// One replica neither answers nor refuses
    Silent,
    /// One replica's process is stopped: its kernel accepts connections, and nobody answers
    Hung,
    /// One replica's process is killed
    Killed,
    /// One replica is told to end, and does so as it should
    Drained,
    /// The first site neither answers nor refuses
    SiteGone,
    /// Each replica behind one balancer is told to end, and started again, one after the other, and all that several times
    RollingRestart,
}

impl Fault {
    const ALL: [Self; 7] =
        [Self::None, Self::Silent, Self::Hung, Self::Killed, Self::Drained, Self::SiteGone, Self::RollingRestart];

    /// Whether it is drilled there.
    fn fits(self, way: Way) -> bool {
        match self {
            Self::RollingRestart => way.is_one(),
            Self::Killed => way != Way::None,
            Self::None => !way.is_one(),
            Self::Silent | Self::Hung | Self::Drained | Self::SiteGone => way != Way::None && !way.is_one(),
        }
    }

    /// How many requests may be lost in a round, if that is promised.
    fn may_lose(self, way: Way) -> Option<usize> {
        match self {
            Self::RollingRestart => Some(0),
            Self::Killed if way.is_one() => Some(if way.repeats() { 0 } else { 5 }),
            _ => None,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Silent => "one silent",
            Self::Hung => "one hung",
            Self::Killed => "one killed",
            Self::Drained => "one drained",
            Self::SiteGone => "a site gone",
            Self::RollingRestart => "rolling restart",
        }
    }

    /// For how long requests may fail, from the fault on; `None` if that is not promised.
    fn limit(self, way: Way) -> Option<Duration> {
        match (self, way) {
            (Self::RollingRestart, _) => None,
            (Self::Killed, way) if way.is_one() => None,
            (Self::None | Self::Drained, _) => Some(Duration::ZERO),
            // nginx sees who does not accept connections, and not who accepts and is silent.
            (Self::Hung, Way::DirectNginx | Way::Vpc) => None,
            (Self::Silent | Self::Killed, _) => Some(Duration::from_secs(2)),
            (Self::Hung, _) => Some(Duration::from_secs(3)),
            (Self::SiteGone, _) => Some(Duration::from_secs(5)),
        }
    }
}

/// As patient as Cloud KMS.
const PATIENCE: Duration = Duration::from_millis(150);

/// On a machine that has other things to do, so many times as long.
const STRETCH_SHORT: u64 = 10;
const PATIENCE_SHORT: Duration = Duration::from_millis(150 * STRETCH_SHORT);

/// What a machine with other things to do has spoilt is drilled again.
const ATTEMPTS_SHORT: usize = 3;

/// After which a connection is replaced; more often where there is less time in which a new one could meet the fault.
const REQUESTS_OF_A_CONNECTION: u32 = 50;
const REQUESTS_SHORT: u32 = 12;

/// Until nothing has failed for two seconds.
const RECOVERY: Duration = Duration::from_secs(30);
const CALM: Duration = Duration::from_secs(2);

/// For how long one that was killed is away, where several are, one after the other: longer than any balancer needs to find out.
const KILLED_FOR: Duration = Duration::from_secs(3);

/// What nginx forgets failures after, and more.
const REST: Duration = Duration::from_secs(3);

fn main() -> ExitCode {
    let args = Args::parse();
    if let Err(error) = namespaces::enter() {
        eprintln!("drill-topology: {error}");
        return ExitCode::from(2);
    }
    let args = if args.short { Args { rate: Some(60), rounds: 1, ..args } } else { args };
    let output = args.output;
    drill::finish("drill-topology", output, &run(&args), Row::passed)
}

fn run(args: &Args) -> Vec<Row> {
    // In the short form a drain is shorter, too.
    let limits = match args.short {
        true => "request_deadline_ms = 1500\ndrain_delay_ms = 1500\n",
        false => "request_deadline_ms = 100\ndrain_delay_ms = 5000\n",
    };
    let mut sites = Sites::start(limits);
    if args.output == Output::Text {
        print(&conditions(args));
        print(&report::TABLE.head());
    }
    let ways = Way::value_variants().iter().copied();
    let ways = ways.filter(|way| args.topology.is_empty() || args.topology.contains(way));
    let mut rows: Vec<Row> = Vec::new();
    for way in ways {
        let faults = Fault::ALL.into_iter().filter(|fault| args.only.is_empty() || args.only.contains(fault));
        let faults: Vec<_> = faults.filter(|fault| fault.fits(way)).collect();
        if faults.is_empty() {
            continue;
        }
        let (stretch, patience, requests) = match args.short {
            true => (STRETCH_SHORT, PATIENCE_SHORT, REQUESTS_SHORT),
            false => (1, PATIENCE, REQUESTS_OF_A_CONNECTION),
        };
        let rig = sites.build(way, stretch);
        let caller = Caller::new(rig.address, sites.origin.path(), patience, requests);
        let interval = Duration::from_secs(1) * args.connections / rate(args, way).max(1);
        let load = Load::start(&caller, args.connections, interval);
        for fault in faults {
            eprintln!("drill-topology: {}, {} ...", way.name(), fault.name());
            let mut row = drill(args, &mut sites, way, fault, &load);
            for _ in 1..ATTEMPTS_SHORT {
                if args.short && row.may_be_the_machines() {
                    eprintln!("drill-topology: again, after {:?}", row.faults);
                    row = drill(args, &mut sites, way, fault, &load);
                }
            }
            if args.output == Output::Text {
                print(&row.line());
            }
            rows.push(row);
        }
    }
    if args.output == Output::Text {
        print(&Added::table(&rows));
    }
    rows
}

fn rate(args: &Args, way: Way) -> u32 {
    args.rate.unwrap_or(if way.is_one() { 300 } else { 200 })
}

fn drill(args: &Args, sites: &mut Sites, way: Way, fault: Fault, load: &Load) -> Row {
    let time = if args.short { PATIENCE_SHORT } else { Duration::from_secs_f64(args.seconds) };
    let mut row = Row::new(way.name(), fault.name(), fault.limit(way).filter(|_| !args.short));
    // A machine that has other things to do has more requests under way; what is lost to a TCP proxy are those.
    row.may_lose = fault.may_lose(way).filter(|&lost| !args.short || lost == 0);
    if !load.is_well_within(RECOVERY, CALM) {
        row.faults.push("requests fail before it begins".into());
    }
    let began = Instant::now();
    let mut rounds = vec![began];
    match fault {
        Fault::None => {}
        Fault::RollingRestart => rounds = (0..args.rounds).map(|_| restart_each(sites)).collect(),
        Fault::Killed if way.is_one() => {
            rounds = (0..args.rounds).map(|round| kill_one(sites, round, time.min(KILLED_FOR))).collect();
        }
        Fault::Silent => sites.a[0].silence(),
        Fault::Hung => sites.a[0].signal(Signal::STOP),
        Fault::Killed => {
            sites.a[0].signal(Signal::KILL);
            sites.a[0].wait();
        }
        // Until it has closed its last connection.
        Fault::Drained => {
            sites.a[0].signal(Signal::TERM);
            sites.a[0].wait();
        }
        Fault::SiteGone => sites.lose_site_a(),
    }
    if rounds.len() == 1 && !way.is_one() {
        sleep(time);
    } else {
        sleep(CALM);
    }
    // However slow this machine is: while the fault lasts, requests are answered again.
    let promised = fault.limit(way).is_some() || fault.may_lose(way).is_some();
    if args.short && promised && !load.is_well_within(RECOVERY, CALM) {
        row.faults.push("requests go on failing".into());
    }
    let samples = load.since(began);
    row.take(&rounds, &samples);
    row.took_s = seconds(began.elapsed());
    match fault {
        Fault::None => {}
        Fault::Silent => sites.a[0].heal(),
        Fault::Hung => sites.a[0].signal(Signal::CONT),
        Fault::RollingRestart => {}
        Fault::Killed if way.is_one() => {}
        Fault::Killed | Fault::Drained => {
            sites.a[0].restart();
            sites.a[0].wait_until_ready();
        }
        Fault::SiteGone => sites.restore_site_a(),
    }
    if !args.short && fault != Fault::None {
        sleep(REST);
    }
    row.judge(args.short, fault == Fault::Drained);
    row
}

/// As for an upgrade: the next one when the one before wants traffic again, whether balancers know that yet or not.
fn restart_each(sites: &mut Sites) -> Instant {
    let began = Instant::now();
    for replica in &mut sites.a {
        replica.signal(Signal::TERM);
        replica.wait();
        replica.restart();
        replica.wait_until_ready();
    }
    began
}

/// Another one each time.
fn kill_one(sites: &mut Sites, round: usize, away: Duration) -> Instant {
    let replicas = sites.a.len();
    let replica = &mut sites.a[round % replicas];
    let began = Instant::now();
    replica.signal(Signal::KILL);
    replica.wait();
    sleep(away);
    replica.restart();
    replica.wait_until_ready();
    // Until balancers use it again.
    sleep(CALM);
    began
}

fn conditions(args: &Args) -> String {
    let build = if cfg!(debug_assertions) { "a debug build" } else { "a release build" };
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    format!(
        "{build} on {cores} cores with a load of {} before it began; three replicas in one site, two in the other, no delay between; {} \
         requests/s ({} to one balancer) on {} connections, a new connection after {}; {} rounds of restarts",
        load.split(' ').next().unwrap_or_default(),
        rate(args, Way::Direct),
        rate(args, Way::OneNginx),
        args.connections,
        if args.short { REQUESTS_SHORT } else { REQUESTS_OF_A_CONNECTION },
        args.rounds,
    )
}
