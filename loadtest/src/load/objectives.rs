//! Whether what was expected has come true.

use serde::{Deserialize, Serialize};

use crate::recording::{Cell, Kind, Recording};
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

/// Judges every limit of every objective; besides, that no answer was wrong and no good request denied.
pub fn judge(
    scenario: &Scenario,
    schedule: &Schedule,
    recording: &Recording,
    capacity_per_s: Option<f64>,
) -> Vec<Judged> {
    let measured = |cell: Cell| schedule.phases[usize::from(cell.phase)].is_measured;
    let all = recording.sum(measured);
    let mut judged = vec![
        at_most("wrong answers".into(), 0.0, Some(all.counts[Kind::Wrong as usize] as f64)),
        at_most("good requests that were denied".into(), 0.0, Some(all.counts[Kind::Denied as usize] as f64)),
    ];
    for objective in &scenario.objective {
        judged.extend(one(objective.get_ref(), scenario, schedule, recording, capacity_per_s));
    }
    judged
}

fn one(
    objective: &Objective,
    scenario: &Scenario,
    schedule: &Schedule,
    recording: &Recording,
    capacity_per_s: Option<f64>,
) -> Vec<Judged> {
    let is_meant = |cell: Cell| {
        let phase = &schedule.phases[usize::from(cell.phase)];
        let callers = &scenario.callers[usize::from(cell.group)].get_ref().name;
        phase.is_measured
            && (objective.phases.is_empty() || objective.phases.contains(&phase.name))
            && objective.callers.as_ref().is_none_or(|name| name == callers)
            && objective.verb.is_none_or(|verb| scenario.mix[usize::from(cell.kind)].get_ref().verb == verb)
    };
    let tally = recording.sum(is_meant);
    let meant = schedule
        .phases
        .iter()
        .filter(|phase| phase.is_measured && (objective.phases.is_empty() || objective.phases.contains(&phase.name)));
    let summary = Summary::of(&tally, meant.map(|phase| phase.ends_s - phase.begins_s).sum());
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
        let share = capacity_per_s.map(|capacity| rounded(100.0 * summary.goodput_per_s / capacity));
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
