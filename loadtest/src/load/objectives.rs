//! Whether what was expected has come true.

use serde::{Deserialize, Serialize};

use crate::recording::{Cell, Kind, Recording, Tally};
use crate::resources::Resources;
use crate::results::{LatencySummary, Summary, rounded};
use crate::scenario::{Objective, Scenario};
use crate::schedule::Schedule;

/// One limit of one objective.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Judged {
    /// What was expected.
    pub text: String,
    pub limit: f64,
    /// None if nothing was there to be measured.
    pub measured: Option<f64>,
    pub passed: bool,
}

/// What objectives are judged by.
pub struct Seen<'a> {
    pub scenario: &'a Scenario,
    pub schedule: &'a Schedule,
    pub recording: &'a Recording,
    /// Of each phase, the warm-up among them.
    pub resources: &'a [Option<Resources>],
    pub capacity_per_s: Option<f64>,
}

/// Judges every limit of every objective; besides, that no answer was wrong and no good request denied.
pub fn judge(seen: &Seen) -> Vec<Judged> {
    let all = seen.recording.sum(|cell| seen.schedule.phases[usize::from(cell.phase)].is_measured);
    let mut judged = vec![
        at_most("wrong answers".into(), 0.0, Some(all.counts[Kind::Wrong as usize] as f64)),
        at_most("good requests that were denied".into(), 0.0, Some(all.counts[Kind::Denied as usize] as f64)),
    ];
    for objective in &seen.scenario.objective {
        let objective = objective.get_ref();
        if !objective.each_phase {
            judged.extend(one(objective, seen));
            continue;
        }
        for phase in seen.phases(&objective.phases).filter(|(_, name)| objective.against.as_deref() != Some(*name)) {
            judged.extend(one(&Objective { phases: vec![phase.1.to_owned()], ..objective.clone() }, seen));
        }
    }
    judged
}

impl Seen<'_> {
    /// Number and name of those that are meant: all, if none are named.
    fn phases(&self, named: &[String]) -> impl Iterator<Item = (usize, &str)> {
        let phases = self.schedule.phases.iter().enumerate().filter(|(_, phase)| phase.is_measured);
        let meant = phases.filter(|(_, phase)| named.is_empty() || named.contains(&phase.name));
        meant.map(|(index, phase)| (index, phase.name.as_str()))
    }

    /// The requests that an objective means, in these phases.
    fn tally(&self, objective: &Objective, phases: &[String]) -> Tally {
        let meant: Vec<_> = self.phases(phases).map(|(index, _)| index).collect();
        self.recording.sum(|cell: Cell| {
            let callers = &self.scenario.callers[usize::from(cell.group)].get_ref().name;
            meant.contains(&usize::from(cell.phase))
                && objective.callers.as_ref().is_none_or(|name| name == callers)
                && objective.verb.is_none_or(|verb| self.scenario.mix[usize::from(cell.kind)].get_ref().verb == verb)
        })
    }

    /// A frontend's memory at its highest in these phases.
    fn memory_mib(&self, phases: &[String]) -> Option<f64> {
        self.phases(phases).filter_map(|(index, _)| Some(self.resources[index].as_ref()?.memory_mib)).reduce(f64::max)
    }
}

fn one(objective: &Objective, seen: &Seen) -> Vec<Judged> {
    let tally = seen.tally(objective, &objective.phases);
    let times = seen.phases(&objective.phases).map(|(index, _)| &seen.schedule.phases[index]);
    let summary = Summary::of(&tally, times.map(|phase| phase.ends_s - phase.begins_s).sum());
    let of = whose(objective);
    let mut judged = Vec::new();
    let sent = summary.arrivals - summary.count(Kind::NotSent);
    let percent = |count: u64| (sent > 0).then(|| rounded(100.0 * count as f64 / sent as f64));
    if let Some(limit) = objective.success_percent {
        let (within, text) = match objective.within_ms {
            Some(ms) => (tally.right.count_between(0, (ms * 1000.0) as u64), format!(" within {ms} ms")),
            None => (summary.count(Kind::Right), String::new()),
        };
        judged.push(at_least(format!("right answers{text}, %{of}"), limit, percent(within)));
    }
    let goodput = Some(summary.goodput_per_s);
    if let Some(limit) = objective.goodput_per_s {
        judged.push(at_least(format!("right answers a second{of}"), limit, goodput));
    }
    if let Some(limit) = objective.goodput_percent_of_capacity {
        let share = seen.capacity_per_s.map(|capacity| rounded(100.0 * summary.goodput_per_s / capacity));
        judged.push(at_least(format!("right answers a second, % of the capacity{of}"), limit, share));
    }
    let (right, shed) = (LatencySummary::of(&tally.right), LatencySummary::of(&tally.shed));
    for (limit, what, latencies, value) in [
        (objective.accepted_p50_ms, "right answers' p50, ms", &right, right.p50),
        (objective.accepted_p99_ms, "right answers' p99, ms", &right, right.p99),
        (objective.accepted_p999_ms, "right answers' p99.9, ms", &right, right.p999),
    ] {
        if let Some(limit) = limit {
            judged.push(at_most(format!("{what}{of}"), limit, (latencies.count > 0).then_some(value)));
        }
    }
    for (limit, what, value) in
        [(objective.shed_p99_ms, "p99, ms", shed.p99), (objective.shed_p999_ms, "p99.9, ms", shed.p999)]
    {
        // Where nothing was shed there is nothing to be slow.
        if let Some(limit) = limit {
            let value = if shed.count > 0 { value } else { 0.0 };
            judged.push(at_most(format!("429 and 503, their {what}{of}"), limit, Some(value)));
        }
    }
    if let Some(limit) = objective.amplification {
        judged.push(at_most(format!("attempts for each request{of}"), limit, Some(summary.amplification)));
    }
    if let Some(limit) = objective.shed_percent_at_least {
        judged.push(at_least(format!("429 and 503, %{of}"), limit, percent(summary.shed())));
    }
    judged.extend(memory(objective, seen, &of));
    if let (Some(limit), Some(against)) = (objective.p99_rise_ms, &objective.against) {
        let calm = LatencySummary::of(&seen.tally(objective, std::slice::from_ref(against)).right);
        let rise = (right.count > 0 && calm.count > 0).then(|| rounded(right.p99 - calm.p99));
        judged.push(at_most(format!("right answers' p99 above that in {against}, ms{of}"), limit, rise));
    }
    judged
}

fn memory(objective: &Objective, seen: &Seen, of: &str) -> Vec<Judged> {
    let mut judged = Vec::new();
    let highest = seen.memory_mib(&objective.phases);
    if let Some(limit) = objective.memory_mib {
        judged.push(at_most(format!("a frontend's resident memory, MiB{of}"), limit, highest));
    }
    if let (Some(limit), Some(against)) = (objective.memory_rise_mib, &objective.against) {
        let calm = seen.memory_mib(std::slice::from_ref(against));
        let rise = highest.zip(calm).map(|(highest, calm)| rounded(highest - calm));
        judged.push(at_most(format!("a frontend's resident memory above that in {against}, MiB{of}"), limit, rise));
    }
    judged
}

fn whose(objective: &Objective) -> String {
    let mut text = String::new();
    if let Some(callers) = &objective.callers {
        text += &format!(" of {callers}");
    }
    if let Some(verb) = objective.verb {
        text += &format!(" of {}", verb.name());
    }
    if !objective.phases.is_empty() {
        text += &format!(" in {}", objective.phases.join(", "));
    }
    text
}

/// A limit from above.
pub fn at_most(text: String, limit: f64, measured: Option<f64>) -> Judged {
    Judged {
        text: format!("{text}: at most"),
        limit,
        measured,
        passed: measured.is_some_and(|measured| measured <= limit),
    }
}

fn at_least(text: String, limit: f64, measured: Option<f64>) -> Judged {
    Judged {
        text: format!("{text}: at least"),
        limit,
        measured,
        passed: measured.is_some_and(|measured| measured >= limit),
    }
}
