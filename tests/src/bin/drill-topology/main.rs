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

/// Breaks one replica of five, and a whole site, behind each of the reference topologies: silent, hung, killed, drained, gone. Needs root.
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
    /// Requests per second, over all of them. 60 in the short form
    #[arg(long, default_value_t = 200, conflicts_with = "short")]
    rate: u32,
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
}

impl Fault {
    const ALL: [Self; 6] = [Self::None, Self::Silent, Self::Hung, Self::Killed, Self::Drained, Self::SiteGone];

    fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Silent => "one silent",
            Self::Hung => "one hung",
            Self::Killed => "one killed",
            Self::Drained => "one drained",
            Self::SiteGone => "a site gone",
        }
    }

    /// For how long requests may fail, from the fault on; `None` if that is not promised.
    fn limit(self, way: Way) -> Option<Duration> {
        match (self, way) {
            (Self::None | Self::Drained, _) => Some(Duration::ZERO),
            // nginx sees who does not accept connections, and not who accepts and is silent.
            (Self::Hung, Way::DirectNginx | Way::Vpc) => None,
            // It tries again with a request, every two seconds, and finds out one by one about the connections that it keeps.
            (Self::Silent | Self::Hung, Way::DirectHttps) => None,
            (Self::Silent | Self::Killed, _) => Some(Duration::from_secs(2)),
            (Self::Hung, _) => Some(Duration::from_secs(3)),
            (Self::SiteGone, _) => Some(Duration::from_secs(5)),
        }
    }
}

/// As patient as Cloud KMS.
const PATIENCE: Duration = Duration::from_millis(150);

/// On a machine that has other things to do.
const PATIENCE_SHORT: Duration = Duration::from_millis(1500);

/// After which a connection is replaced; more often where there is less time in which a new one could meet the fault.
const REQUESTS_OF_A_CONNECTION: u32 = 50;
const REQUESTS_SHORT: u32 = 12;

/// Until nothing has failed for two seconds.
const RECOVERY: Duration = Duration::from_secs(30);
const CALM: Duration = Duration::from_secs(2);

/// What nginx forgets failures after, and more.
const REST: Duration = Duration::from_secs(3);

fn main() -> ExitCode {
    let args = Args::parse();
    if let Err(error) = namespaces::enter() {
        eprintln!("drill-topology: {error}");
        return ExitCode::from(2);
    }
    let args = if args.short { Args { rate: 60, ..args } } else { args };
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
    let all = [Way::None, Way::Direct, Way::DirectNginx, Way::DirectHttps, Way::Internet, Way::Vpc];
    let ways = all.into_iter().filter(|way| args.topology.is_empty() || args.topology.contains(way));
    let mut rows: Vec<Row> = Vec::new();
    for way in ways {
        let rig = sites.build(way);
        let (patience, requests) = match args.short {
            true => (PATIENCE_SHORT, REQUESTS_SHORT),
            false => (PATIENCE, REQUESTS_OF_A_CONNECTION),
        };
        let caller = Caller::new(rig.address, sites.origin.path(), patience, requests);
        let load = Load::start(&caller, args.connections, Duration::from_secs(1) * args.connections / args.rate.max(1));
        for fault in Fault::ALL {
            let chosen = args.only.is_empty() || args.only.contains(&fault);
            if chosen && (way != Way::None || fault == Fault::None) {
                eprintln!("drill-topology: {}, {} ...", way.name(), fault.name());
                let row = drill(args, &mut sites, way, fault, &load);
                if args.output == Output::Text {
                    print(&row.line());
                }
                rows.push(row);
            }
        }
    }
    if args.output == Output::Text {
        print(&Added::table(&rows));
    }
    rows
}

fn drill(args: &Args, sites: &mut Sites, way: Way, fault: Fault, load: &Load) -> Row {
    let time = if args.short { PATIENCE_SHORT } else { Duration::from_secs_f64(args.seconds) };
    let mut row = Row::new(way.name(), fault.name(), fault.limit(way).filter(|_| !args.short));
    if !load.is_well_within(RECOVERY, CALM) {
        row.faults.push("requests fail before it begins".into());
    }
    let began = Instant::now();
    match fault {
        Fault::None => {}
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
    sleep(time);
    // However slow this machine is: while the fault lasts, requests are answered again.
    let promised = fault.limit(way).is_some();
    if args.short && promised && !load.is_well_within(RECOVERY, CALM) {
        row.faults.push("requests go on failing".into());
    }
    let samples = load.since(began);
    row.take(began, &samples);
    row.took_s = seconds(began.elapsed());
    match fault {
        Fault::None => {}
        Fault::Silent => sites.a[0].heal(),
        Fault::Hung => sites.a[0].signal(Signal::CONT),
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

fn conditions(args: &Args) -> String {
    let build = if cfg!(debug_assertions) { "a debug build" } else { "a release build" };
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    format!(
        "{build} on {cores} cores with a load of {} before it began; three replicas in one site, two in the other, no delay between; {} \
         requests/s on {} connections, a new connection after {}",
        load.split(' ').next().unwrap_or_default(),
        args.rate,
        args.connections,
        if args.short { REQUESTS_SHORT } else { REQUESTS_OF_A_CONNECTION },
    )
}
