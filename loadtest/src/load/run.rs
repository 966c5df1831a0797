//! `ekm-load run`: from a scenario to a result.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use std::{fs, thread};

use anyhow::{Context, Result, anyhow, bail};
use bytes::Bytes;
use ekm_tests::Issuer;
use http_body_util::BodyExt;
use rustix::thread::CpuSet;
use tokio::runtime::Builder;
use tokio::task::LocalSet;

use crate::conditions::Conditions;
use crate::connection::{Sender, open};
use crate::faults::{Done, Plan};
use crate::objectives::{Judged, Seen, judge};
use crate::progress::{Live, Progress};
use crate::recording::{Kind, Recording};
use crate::requests::Requests;
use crate::resources::Sample;
use crate::results::{GeneratorReport, LatencySummary, Results, Series, Summary, VERSION, Verdict, rounded};
use crate::rig::Rig;
use crate::scenario::{Protocol, Scenario};
use crate::schedule::Schedule;
use crate::sending::{Generator, Run};
use crate::target::{Target, Tokens, email};
use crate::{Output, cores, hostile, median, print, refusals, report_html, report_table, resources, results};

/// How long a capacity is measured.
const CAPACITY: Duration = Duration::from_secs(4);

/// Requests under way while it is measured, of a service that is not ours.
const AT_ONCE: usize = 64;

/// Above these the generator was the bottleneck.
const LATE_MS: f64 = 5.0;
const CORES: f64 = 0.9;
const NOT_SENT_PERCENT: f64 = 0.1;

#[derive(clap::Args)]
pub struct Args {
    /// The file
    scenario: PathBuf,
    /// Start frontends as the scenario says, and end them
    #[arg(long, conflicts_with_all = ["url", "ca", "token_file", "issuer_key"])]
    rig: bool,
    /// An EKM that is there: https://host:port
    #[arg(long, required_unless_present = "rig", requires = "ca")]
    url: Option<String>,
    /// Whom to believe to be the EKM: a certificate in PEM
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// Keep as many of this machine's cores for the generator as it has threads, and leave the rig the others
    #[arg(long, conflicts_with = "url")]
    pin: bool,
    /// Let the scenario's hostile clients loose on it, too
    #[arg(long, requires = "url")]
    hostile: bool,
    /// The token of all callers
    #[arg(long, value_name = "FILE", conflicts_with = "issuer_key")]
    token_file: Option<PathBuf>,
    /// An issuer's private key, PKCS#8 in PEM, to make a token for each caller
    #[arg(long, value_name = "FILE")]
    issuer_key: Option<PathBuf>,
    /// The issuer's name
    #[arg(long, value_name = "URL", default_value = "https://issuer.localhost", requires = "issuer_key")]
    issuer: String,
    /// The id of its key
    #[arg(long, default_value = "ekm-dev", requires = "issuer_key")]
    issuer_kid: String,
    /// For whom the tokens are
    #[arg(long, value_name = "URL", default_value = "https://localhost", requires = "issuer_key")]
    audience: String,
    /// Let it last so long, all phases together
    #[arg(long)]
    seconds: Option<f64>,
    /// Make so many runs, each with a rig of its own if there is one; the result is the median of each figure
    #[arg(long, default_value_t = 1, value_name = "ODD NUMBER")]
    runs: usize,
    /// Another seed
    #[arg(long)]
    seed: Option<u64>,
    /// What `load` is a multiple of, in requests a second; else as in the scenario, or measured
    #[arg(long, value_name = "PER_SECOND")]
    capacity: Option<f64>,
    /// What to print
    #[arg(long, value_enum, default_value_t = Output::Text)]
    output: Output,
    /// A page with plots
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
}

/// Runs it, and shows the result. An error is one of usage.
pub fn run(args: &Args) -> Result<Verdict> {
    let name = args.scenario.display().to_string();
    let text = fs::read_to_string(&args.scenario).with_context(|| name.clone())?;
    let mut scenario = Scenario::parse(&name, &text).map_err(|problem| anyhow!(problem))?;
    if let Some(seconds) = args.seconds {
        if seconds <= 0.0 {
            bail!("--seconds is more than 0");
        }
        scenario.compress_to(seconds);
    }
    if args.runs.is_multiple_of(2) {
        bail!("--runs is odd, so that one of them is in the middle");
    }
    scenario.seed = args.seed.unwrap_or(scenario.seed);
    if !scenario.hostile.is_empty() && !args.rig && !args.hostile {
        bail!("{name} has [[hostile]] clients, an attack on whatever is at --url; if you mean it, add --hostile");
    }
    let cores = args.pin.then(|| cores::give_away(scenario.client.threads)).transpose()?;
    let measure = || measure(args, &scenario, cores.as_ref());
    let results = if args.runs == 1 { measure()? } else { measure_again(args.runs, measure)? };
    if let Some(file) = &args.html {
        let page = report_html::render(&results).map_err(|error| anyhow!("the page cannot be made: {error}"))?;
        fs::write(file, page).with_context(|| file.display().to_string())?;
    }
    match args.output {
        Output::Text => print(&report_table::render(&results)),
        Output::Json => print(&serde_json::to_string(&results)?),
    }
    Ok(results.verdict)
}

/// The median of several runs. One that says nothing about the service is made again, as long as fewer of them say nothing than were asked for.
fn measure_again(wanted: usize, measure: impl Fn() -> Result<Results>) -> Result<Results> {
    let (mut runs, mut inconclusive) = (Vec::new(), Vec::new());
    while runs.len() < wanted {
        let again = if inconclusive.is_empty() { "" } else { "; one that said nothing is made again" };
        eprintln!("run {} of {wanted}{again}", runs.len() + 1);
        let results = measure()?;
        eprintln!("run {} of {wanted}: {}", runs.len() + 1, results.verdict.name());
        if results.verdict != Verdict::Inconclusive {
            runs.push(results);
            continue;
        }
        results.reasons.iter().for_each(|reason| eprintln!("  {reason}"));
        inconclusive.push(results);
        if inconclusive.len() == wanted {
            return Ok(median::of(inconclusive, 0)?);
        }
    }
    Ok(median::of(runs, inconclusive.len())?)
}

/// One run. `cores` are the generator's own.
fn measure(args: &Args, scenario: &Scenario, cores: Option<&CpuSet>) -> Result<Results> {
    let conditions = Conditions::now(scenario, args.url.as_deref(), cores.is_some());
    let rig = args.rig.then(|| {
        eprintln!("starting {}", conditions.target);
        // The harness gives up by a panic, as it should in a test.
        let started = catch_unwind(AssertUnwindSafe(|| Rig::start(scenario)));
        started.map_err(|_| anyhow!("the rig could not be started; the reason is above"))
    });
    let rig = rig.transpose()?;
    let (target, tokens) = match &rig {
        Some(rig) => (rig.target(), rig.tokens()),
        None => elsewhere(args)?,
    };
    let (target, tokens) = (Arc::new(target), Arc::new(tokens));
    let requests = prepare(scenario, &target, &tokens)?;
    let requests = Arc::new(requests);
    let generator = Generator { scenario, target: Arc::clone(&target), requests, tokens: Arc::clone(&tokens), cores };
    let given = args.capacity.or(scenario.capacity_per_s.as_ref().map(|capacity| *capacity.get_ref()));
    let capacity_per_s = match given {
        None if scenario.needs_capacity() => {
            eprintln!("measuring the capacity");
            let at_once = rig.as_ref().map_or(AT_ONCE, Rig::full);
            Some(rounded(generator.measure_capacity(at_once, CAPACITY)?))
        }
        given => given,
    };
    let schedule = Schedule::new(scenario, capacity_per_s.unwrap_or_default());
    let rig = Mutex::new(rig);
    let live = Arc::new(Live::default());
    let (plan, ended) = (Plan::new(scenario, &schedule), AtomicBool::new(false));
    let cpu = || rig.lock().unwrap_or_else(PoisonError::into_inner).as_ref().map(Rig::cpu);
    let cpu_before = cpu();
    let hostile = hostile::Plan::new(scenario, &schedule);
    let observed = thread::scope(|scope| {
        let (plan, hostile, rig, target, tokens, ended) = (&plan, &hostile, &rig, &target, &tokens, &ended);
        let schedule = &schedule;
        let mut beside = None;
        let _progress = Progress::start(&live, schedule);
        let run = generator.run(schedule, &live, |begun: Instant| {
            let faults = scope.spawn(move || plan.run(begun, rig, target, ended));
            let hostile = scope.spawn(move || hostile.run(begun, target, tokens, cores, ended));
            let samples = scope.spawn(move || resources::watch(begun, rig, ended));
            let refused = scope.spawn(move || refusals::watch(schedule, begun, rig, ended));
            beside = Some((faults, hostile, samples, refused));
        });
        ended.store(true, Ordering::Relaxed);
        let (faults, hostile, samples, refused) = beside.expect("it began");
        let mut faults = [faults, hostile].map(|thread| thread.join().expect("it does not panic")).concat();
        faults.sort_by(|one, other| one.at_s.total_cmp(&other.at_s));
        let (samples, refused) = (samples.join(), refused.join());
        let (samples, refused) = (samples.expect("it does not panic"), refused.expect("it does not panic"));
        run.map(|run| Observed { run, faults, samples, refused })
    })?;
    // A frontend that was killed or restarted has taken its figure with it.
    let server = cpu_before.zip(cpu()).and_then(|(before, after)| after.checked_sub(before));
    let untouched = !scenario.fault.iter().any(|fault| fault.get_ref().restart || fault.get_ref().signal.is_some());
    let server_cores = server.filter(|_| untouched).map(|cpu| rounded(cpu.as_secs_f64() / schedule.seconds()));
    let mut results = summarise(scenario, &schedule, conditions, capacity_per_s, observed);
    results.server_cores = server_cores;
    Ok(results)
}

/// An EKM that is there already.
fn elsewhere(args: &Args) -> Result<(Target, Tokens)> {
    let (Some(url), Some(ca)) = (&args.url, &args.ca) else {
        bail!("name an EKM with --url and --ca, or start one with --rig")
    };
    let target = Target::at(url, ca.clone()).map_err(|problem| anyhow!(problem))?;
    let tokens = match (&args.token_file, &args.issuer_key) {
        (Some(file), None) => Tokens::from_file(file).map_err(|problem| anyhow!(problem))?,
        (None, Some(key)) => {
            let issuer = Issuer::with_key(key, &args.issuer_kid, &args.issuer);
            let issuer = issuer.map_err(|problem| anyhow!("--issuer-key {}: {problem}", key.display()))?;
            Tokens::Minted { issuer, audience: args.audience.clone() }
        }
        _ => bail!("give the callers a token with --token-file, or make them with --issuer-key"),
    };
    Ok((target, tokens))
}

/// Makes all requests; blobs for unwraps are made by wraps.
fn prepare(scenario: &Scenario, target: &Target, tokens: &Tokens) -> Result<Requests> {
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let local = LocalSet::new();
    let mut emails = Vec::new();
    for callers in &scenario.callers {
        let before = emails.len();
        emails.extend((0..callers.get_ref().count).map(|index| email(callers.get_ref(), before, index)));
    }
    let mut sender: Option<Sender> = None;
    let wrap = |path: &str, caller: usize, body: &str| {
        let token = tokens.token(&emails[caller]);
        local.block_on(&runtime, async {
            let mut problem = String::new();
            for _ in 0..20 {
                match once(target, &mut sender, path, &token, body).await {
                    Ok((200, answer)) => {
                        let answer: serde_json::Value = serde_json::from_slice(&answer).unwrap_or_default();
                        let blob = answer["wrappedBlob"].as_str().map(str::to_owned);
                        return blob.ok_or_else(|| format!("{path}: a wrap was answered without a blob"));
                    }
                    Ok((status, answer)) => {
                        problem =
                            format!("{path}: a wrap before the start: {status} {}", String::from_utf8_lossy(&answer));
                        if !matches!(status, 429 | 503) {
                            break;
                        }
                    }
                    Err(error) => {
                        sender = None;
                        problem = format!("{path}: a wrap before the start: {error:#}");
                    }
                }
                tokio::time::sleep(Duration::from_millis(250)).await;
            }
            Err(problem)
        })
    };
    Requests::new(scenario, target, wrap).map_err(|problem| anyhow!(problem))
}

/// One wrap on a connection that is kept.
async fn once(
    target: &Target,
    sender: &mut Option<Sender>,
    path: &str,
    token: &str,
    body: &str,
) -> Result<(u16, Bytes)> {
    let sender = match sender {
        Some(sender) => sender,
        None => sender.insert(open(target, 0, &target.tls(Protocol::Http1), Protocol::Http1, || ()).await?.0),
    };
    sender.ready().await;
    let request = http::Request::post(format!("/{path}:wrap"))
        .header(http::header::HOST, target.authority.as_str())
        .header(http::header::AUTHORIZATION, format!("Bearer {token}"))
        .header(http::header::CONTENT_TYPE, "application/json")
        .body(body.to_owned().into())?;
    let response = sender.send(request).await.map_err(|error| error.into_error())?;
    Ok((response.status().as_u16(), response.into_body().collect().await?.to_bytes()))
}

/// What was seen of a run.
struct Observed {
    run: Run,
    /// Hostile clients among them.
    faults: Vec<Done>,
    samples: Vec<Sample>,
    refused: refusals::ByPhase,
}

fn summarise(
    scenario: &Scenario,
    schedule: &Schedule,
    conditions: Conditions,
    capacity_per_s: Option<f64>,
    observed: Observed,
) -> Results {
    let Observed { run, faults, samples, refused } = observed;
    let recording = &run.recording;
    let resources = resources::by_phase(&samples, schedule);
    let all = recording.sum(|cell| schedule.phases[usize::from(cell.phase)].is_measured);
    let total = Summary::of(&all, results::measured_seconds(schedule));
    let generator = generator_report(&run, recording, &total);
    let mut objectives = judge(&Seen { scenario, schedule, recording, resources: &resources, capacity_per_s });
    objectives.extend(refusals::judge(scenario, &refused));
    let failed = faults.iter().filter_map(|fault| Some(format!("{}: {}", fault.what, fault.error.as_ref()?)));
    let says_nothing: Vec<_> = generator.bottleneck.iter().cloned().chain(failed).collect();
    let (verdict, reasons) = verdict(&objectives, says_nothing, &total);
    Results {
        version: VERSION,
        scenario: scenario.name.clone(),
        about: scenario.about.clone(),
        verdict,
        reasons,
        conditions,
        generator,
        server_cores: None,
        capacity_per_s,
        total,
        phases: results::phases(schedule, recording, &resources),
        callers: results::by_callers(scenario, schedule, recording),
        verbs: results::by_verb(scenario, schedule, recording),
        refused_in_service: refused.iter().map(|(phase, refusals)| (phase.clone(), refusals.summary())).collect(),
        objectives,
        faults,
        series: Series::of(scenario, schedule, recording, &samples),
        several: None,
    }
}

fn generator_report(run: &Run, recording: &Recording, total: &Summary) -> GeneratorReport {
    let cores = |cost: &crate::sending::Cost| rounded(cost.cpu.as_secs_f64() / cost.wall.as_secs_f64());
    let thread_cores: Vec<_> = run.costs.iter().map(cores).collect();
    let cpu: Duration = run.costs.iter().map(|cost| cost.cpu).sum();
    let attempts = recording.sum(|_| true).attempts;
    let (lateness_ms, not_sent) = (LatencySummary::of(&recording.lateness), total.count(Kind::NotSent));
    let mut bottleneck = Vec::new();
    if lateness_ms.p99 > LATE_MS {
        bottleneck.push(format!(
            "one request in a hundred was sent {} ms late or more; {LATE_MS} ms is the limit",
            lateness_ms.p99
        ));
    }
    if let Some(busiest) = thread_cores.iter().copied().reduce(f64::max).filter(|busiest| *busiest > CORES) {
        bottleneck.push(format!(
            "a thread of the generator used {:.0} % of a core; add threads in [client]",
            100.0 * busiest
        ));
    }
    let percent = 100.0 * not_sent as f64 / total.arrivals.max(1) as f64;
    if percent > NOT_SENT_PERCENT {
        bottleneck.push(format!(
            "{not_sent} requests ({percent:.1} %) were not sent: generator saturated; add connections or max_outstanding in [client]"
        ));
    }
    GeneratorReport {
        threads: run.costs.len(),
        thread_cores,
        has_priority: run.costs.iter().all(|cost| cost.has_priority),
        cpu_us_per_attempt: rounded(cpu.as_secs_f64() * 1e6 / attempts.max(1) as f64),
        lateness_ms,
        wait_for_connection_ms: LatencySummary::of(&recording.waits),
        not_sent,
        bottleneck,
    }
}

/// A wrong answer is wrong whoever was the bottleneck. `says_nothing`: why a run says nothing else about the service.
fn verdict(objectives: &[Judged], says_nothing: Vec<String>, total: &Summary) -> (Verdict, Vec<String>) {
    if total.count(Kind::Wrong) + total.count(Kind::Denied) > 0 {
        return (Verdict::Fail, vec!["good requests were answered wrongly or denied".into()]);
    }
    if !says_nothing.is_empty() {
        return (Verdict::Inconclusive, says_nothing);
    }
    if total.arrivals == 0 {
        return (Verdict::Inconclusive, vec!["nothing was due".into()]);
    }
    let missed: Vec<_> = objectives.iter().filter(|judged| !judged.passed).collect();
    match missed.len() {
        0 => (Verdict::Pass, Vec::new()),
        count => (Verdict::Fail, vec![format!("{count} of {} limits were missed", objectives.len())]),
    }
}
