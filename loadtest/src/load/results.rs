//! A run's result, as it is written to a file and read again: everything that reports and comparisons show.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::conditions::Conditions;
use crate::faults::Done;
use crate::median::Several;
use crate::objectives::Judged;
use crate::recording::{Kind, Latencies, Recording, Tally};
use crate::refusals::RefusalSummary;
use crate::resources::{Resources, Sample};
use crate::scenario::Scenario;
use crate::schedule::Schedule;

/// Of this format.
pub const VERSION: u32 = 1;

#[derive(Debug, Serialize, Deserialize)]
pub struct Results {
    pub version: u32,
    pub scenario: String,
    pub about: String,
    pub verdict: Verdict,
    /// Why it is not `pass`.
    pub reasons: Vec<String>,
    pub conditions: Conditions,
    pub generator: GeneratorReport,
    /// The frontends' CPU time as a share of one core; none with `--url`, or if one was killed.
    pub server_cores: Option<f64>,
    pub capacity_per_s: Option<f64>,
    /// Of all phases but the warm-up.
    pub total: Summary,
    pub phases: Vec<PhaseSummary>,
    /// By group.
    pub callers: BTreeMap<String, Summary>,
    /// By verb, and where there is more than one with it by payload.
    pub verbs: BTreeMap<String, Summary>,
    /// By phase, as the service has measured it; none without a rig.
    #[serde(default)]
    pub refused_in_service: BTreeMap<String, RefusalSummary>,
    pub objectives: Vec<Judged>,
    pub faults: Vec<Done>,
    pub series: Series,
    /// If it is the median of several runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub several: Option<Several>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    Pass,
    Fail,
    /// The generator was the bottleneck.
    Inconclusive,
}

impl Verdict {
    /// For people.
    pub fn name(self) -> &'static str {
        match self {
            Self::Pass => "PASS",
            Self::Fail => "FAIL",
            Self::Inconclusive => "INCONCLUSIVE",
        }
    }
}

/// What the generator itself has to answer for.
#[derive(Debug, Serialize, Deserialize)]
pub struct GeneratorReport {
    pub threads: usize,
    /// Of each, as a share of a core.
    pub thread_cores: Vec<f64>,
    pub has_priority: bool,
    pub cpu_us_per_attempt: f64,
    /// From the time on the schedule until a request was ready to be sent.
    pub lateness_ms: LatencySummary,
    /// And until there was a connection for it.
    pub wait_for_connection_ms: LatencySummary,
    pub not_sent: u64,
    /// Why a run says nothing about the service; empty if it does.
    pub bottleneck: Vec<String>,
}

/// Requests that belong together.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Summary {
    pub arrivals: u64,
    pub offered_per_s: f64,
    pub attempts: u64,
    /// Attempts for each request that was sent.
    pub amplification: f64,
    pub goodput_per_s: f64,
    /// Right answers in per cent of what was due and was the service's to answer.
    pub success_percent: f64,
    pub counts: BTreeMap<Kind, u64>,
    /// Of attempts.
    pub statuses: BTreeMap<String, u64>,
    pub right_ms: LatencySummary,
    pub shed_ms: LatencySummary,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PhaseSummary {
    pub name: String,
    /// Since the start of the first phase.
    pub begins_s: f64,
    pub seconds: f64,
    #[serde(flatten)]
    pub summary: Summary,
    /// None without a rig.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<Resources>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LatencySummary {
    pub count: u64,
    pub mean: f64,
    pub p50: f64,
    pub p90: f64,
    pub p99: f64,
    pub p999: f64,
    pub max: f64,
}

/// Columns over time. A request is in the interval in which it was due.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Series {
    pub interval_s: f64,
    /// Of each interval's begin, since the start of the first phase.
    pub at_s: Vec<f64>,
    pub offered_per_s: Vec<f64>,
    pub attempts_per_s: Vec<f64>,
    pub goodput_per_s: Vec<f64>,
    pub per_s: BTreeMap<Kind, Vec<f64>>,
    /// None where nothing was answered well.
    pub p50_ms: Vec<Option<f64>>,
    pub p99_ms: Vec<Option<f64>>,
    pub max_ms: Vec<Option<f64>>,
    pub shed_p99_ms: Vec<Option<f64>>,
    /// Of the frontend that had most; none without a rig.
    #[serde(default)]
    pub memory_mib: Vec<Option<f64>>,
    /// By group, where there is more than one.
    pub callers_goodput_per_s: BTreeMap<String, Vec<f64>>,
    pub callers_p99_ms: BTreeMap<String, Vec<Option<f64>>>,
}

impl LatencySummary {
    /// Milliseconds of a histogram of microseconds.
    pub fn of(latencies: &Latencies) -> Self {
        let at = |quantile: f64| rounded(latencies.value_at_quantile(quantile) as f64 / 1000.0);
        if latencies.is_empty() {
            return Self::default();
        }
        Self {
            count: latencies.len(),
            mean: rounded(latencies.mean() / 1000.0),
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            p999: at(0.999),
            max: rounded(latencies.max() as f64 / 1000.0),
        }
    }
}

/// To the thousandth.
pub fn rounded(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}

impl Summary {
    /// Over so many seconds.
    pub fn of(tally: &Tally, seconds: f64) -> Self {
        let right = tally.counts[Kind::Right as usize];
        let sent = tally.arrivals - tally.counts[Kind::NotSent as usize];
        let counts = Kind::ALL.into_iter().map(|kind| (kind, tally.counts[kind as usize]));
        Self {
            arrivals: tally.arrivals,
            offered_per_s: rounded(tally.arrivals as f64 / seconds),
            attempts: tally.attempts,
            amplification: rounded(tally.attempts as f64 / sent.max(1) as f64),
            goodput_per_s: rounded(right as f64 / seconds),
            success_percent: rounded(100.0 * right as f64 / sent.max(1) as f64),
            counts: counts.filter(|(_, count)| *count > 0).collect(),
            statuses: tally.statuses.iter().map(|(status, count)| (status.to_string(), *count)).collect(),
            right_ms: LatencySummary::of(&tally.right),
            shed_ms: LatencySummary::of(&tally.shed),
        }
    }

    /// How many ended so.
    pub fn count(&self, kind: Kind) -> u64 {
        self.counts.get(&kind).copied().unwrap_or(0)
    }

    /// 429 and 503.
    pub fn shed(&self) -> u64 {
        self.count(Kind::TooManyRequests) + self.count(Kind::Unavailable)
    }
}

/// Each phase but the warm-up. `resources` are those of all phases.
pub fn phases(schedule: &Schedule, recording: &Recording, resources: &[Option<Resources>]) -> Vec<PhaseSummary> {
    let origin = origin_s(schedule);
    let measured = schedule.phases.iter().enumerate().filter(|(_, phase)| phase.is_measured);
    let summaries = measured.map(|(index, phase)| {
        let seconds = phase.ends_s - phase.begins_s;
        let tally = recording.sum(|cell| usize::from(cell.phase) == index);
        let (name, begins_s) = (phase.name.clone(), rounded(phase.begins_s - origin));
        let (summary, resources) = (Summary::of(&tally, seconds), resources[index].clone());
        PhaseSummary { name, begins_s, seconds: rounded(seconds), summary, resources }
    });
    summaries.collect()
}

/// Of the first phase that is measured.
pub fn origin_s(schedule: &Schedule) -> f64 {
    schedule.phases.iter().find(|phase| phase.is_measured).map_or(0.0, |phase| phase.begins_s)
}

/// Of all phases that are measured.
pub fn measured_seconds(schedule: &Schedule) -> f64 {
    schedule.seconds() - origin_s(schedule)
}

/// By group of callers.
pub fn by_callers(scenario: &Scenario, schedule: &Schedule, recording: &Recording) -> BTreeMap<String, Summary> {
    let groups = scenario.callers.iter().enumerate().map(|(index, callers)| {
        let of =
            |phase: u16, group: u16| schedule.phases[usize::from(phase)].is_measured && usize::from(group) == index;
        let tally = recording.sum(|cell| of(cell.phase, cell.group));
        (callers.get_ref().name.clone(), Summary::of(&tally, measured_seconds(schedule)))
    });
    groups.collect()
}

/// By kind of request.
pub fn by_verb(scenario: &Scenario, schedule: &Schedule, recording: &Recording) -> BTreeMap<String, Summary> {
    let verbs = scenario.mix.iter().enumerate().map(|(index, mix)| {
        let of = |phase: u16, kind: u16| schedule.phases[usize::from(phase)].is_measured && usize::from(kind) == index;
        let tally = recording.sum(|cell| of(cell.phase, cell.kind));
        let mix = mix.get_ref();
        let same = scenario.mix.iter().filter(|other| other.get_ref().verb == mix.verb).count();
        let name =
            if same == 1 { mix.verb.name().into() } else { format!("{} {} B", mix.verb.name(), mix.payload_bytes) };
        (name, Summary::of(&tally, measured_seconds(schedule)))
    });
    verbs.collect()
}

impl Series {
    /// Of a run, without the warm-up.
    pub fn of(scenario: &Scenario, schedule: &Schedule, recording: &Recording, samples: &[Sample]) -> Self {
        let (interval_s, origin) = (recording.interval().as_secs_f64(), origin_s(schedule));
        let mut series = Self { interval_s, ..Self::default() };
        // An interval that is cut short by the end, or by the warm-up's, would look like a fall in the rate.
        let whole = |index: usize| {
            let begins = index as f64 * interval_s;
            begins >= origin - 1e-9 && begins + interval_s <= schedule.seconds() + 1e-9
        };
        let p99 = |latencies: &Latencies| Some(LatencySummary::of(latencies).p99).filter(|_| !latencies.is_empty());
        for (index, tally) in recording.over_time(None).iter().enumerate().filter(|(index, _)| whole(*index)) {
            let per_s = |count: u64| rounded(count as f64 / interval_s);
            let latencies = LatencySummary::of(&tally.right);
            let some = |value: f64| Some(value).filter(|_| latencies.count > 0);
            series.at_s.push(rounded(index as f64 * interval_s - origin));
            series.offered_per_s.push(per_s(tally.arrivals));
            series.attempts_per_s.push(per_s(tally.attempts));
            series.goodput_per_s.push(per_s(tally.counts[Kind::Right as usize]));
            for kind in Kind::ALL {
                series.per_s.entry(kind).or_default().push(per_s(tally.counts[kind as usize]));
            }
            series.p50_ms.push(some(latencies.p50));
            series.p99_ms.push(some(latencies.p99));
            series.max_ms.push(some(latencies.max));
            series.shed_p99_ms.push(p99(&tally.shed));
            let interval = index as f64 * interval_s..(index + 1) as f64 * interval_s;
            let within = samples.iter().filter(|sample| interval.contains(&sample.at_s));
            series.memory_mib.push(within.map(|sample| rounded(sample.memory_mib)).reduce(f64::max));
        }
        series.per_s.retain(|_, column| column.iter().any(|value| *value > 0.0));
        if scenario.callers.len() > 1 {
            for (group, callers) in scenario.callers.iter().enumerate() {
                let tallies = recording.over_time(Some(group));
                let tallies = tallies.iter().enumerate().filter(|(index, _)| whole(*index)).map(|(_, tally)| tally);
                let goodput =
                    tallies.clone().map(|tally| rounded(tally.counts[Kind::Right as usize] as f64 / interval_s));
                let name = callers.get_ref().name.clone();
                series.callers_goodput_per_s.insert(name.clone(), goodput.collect());
                series.callers_p99_ms.insert(name, tallies.map(|tally| p99(&tally.right)).collect());
            }
        }
        series
    }
}
