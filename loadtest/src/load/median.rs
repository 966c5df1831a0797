//! Several runs of one scenario as one result: every figure is the median of its own, with the least and the most beside it.
//!
//! A machine that others use, too, spoils a run now and then; the median of three does not show it.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::recording::Kind;
use crate::report_table::figure;
use crate::results::{Results, Summary, Verdict};

/// What a result says of the runs that it is the median of.
#[derive(Debug, Serialize, Deserialize)]
pub struct Several {
    pub runs: usize,
    /// Made again, since they said nothing.
    pub inconclusive: usize,
    pub ranges: Vec<Range>,
}

/// One figure over all runs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Range {
    /// Of which phase, group, or kind of requests.
    pub of: String,
    pub what: String,
    pub least: f64,
    pub median: f64,
    pub most: f64,
}

/// An odd number of runs, each of which says something, unless all say nothing. An error is one of this program.
pub fn of(runs: Vec<Results>, inconclusive: usize) -> Result<Results, serde_json::Error> {
    let values = runs.iter().map(serde_json::to_value).collect::<Result<Vec<_>, _>>()?;
    let mut median: Results = serde_json::from_value(middle(&values.iter().collect::<Vec<_>>()))?;
    let summaries = median.phases.iter_mut().map(|phase| &mut phase.summary).chain([&mut median.total]);
    for summary in summaries.chain(median.callers.values_mut()).chain(median.verbs.values_mut()) {
        summary.counts.retain(|_, count| *count > 0); // of what came of requests in one run only
    }
    // With an odd number the median keeps a limit if more than half do.
    for (place, judged) in median.objectives.iter_mut().enumerate() {
        let passed = runs.iter().filter(|run| run.objectives.get(place).is_some_and(|judged| judged.passed)).count();
        judged.passed = 2 * passed > runs.len();
    }
    (median.verdict, median.reasons) = verdict(&runs, &median);
    median.several = Some(Several { runs: runs.len(), inconclusive, ranges: ranges(&runs) });
    Ok(median)
}

/// A wrong answer in one run is wrong, whatever the median is.
fn verdict(runs: &[Results], median: &Results) -> (Verdict, Vec<String>) {
    let is_wrong = |run: &&Results| run.total.count(Kind::Wrong) + run.total.count(Kind::Denied) > 0;
    let says_nothing = |run: &&Results| run.verdict == Verdict::Inconclusive;
    if let Some(run) = runs.iter().find(is_wrong).or_else(|| runs.iter().find(says_nothing)) {
        return (run.verdict, run.reasons.clone());
    }
    let missed = median.objectives.iter().filter(|judged| !judged.passed).count();
    match missed {
        0 => (Verdict::Pass, Vec::new()),
        _ => (Verdict::Fail, vec![format!("{missed} of {} limits were missed", median.objectives.len())]),
    }
}

/// Of each number the middle one; of all else what the first has.
fn middle(values: &[&Value]) -> Value {
    let there: Vec<_> = values.iter().copied().filter(|value| !value.is_null()).collect();
    // Where most have nothing to show, there is nothing.
    let Some(first) = there.first().filter(|_| 2 * there.len() > values.len()) else { return Value::Null };
    match first {
        Value::Number(_) => {
            let mut numbers = there.clone();
            numbers.sort_by(|one, other| number(one).total_cmp(&number(other)));
            numbers[numbers.len() / 2].clone()
        }
        Value::Array(items) if there.iter().all(|value| value.as_array().map(Vec::len) == Some(items.len())) => {
            let of_place = |place| middle(&values.iter().map(|value| &value[place]).collect::<Vec<_>>());
            (0..items.len()).map(of_place).collect()
        }
        Value::Object(_) => {
            let keys = there.iter().filter_map(|value| value.as_object()).flat_map(|object| object.keys());
            let of_key = |key: &String| {
                let all: Vec<_> = values.iter().map(|value| value.get(key)).collect();
                // A count that is left out is one of nothing.
                let absent = if all.iter().flatten().any(|value| value.is_number()) { 0.into() } else { Value::Null };
                (key.clone(), middle(&all.iter().map(|value| value.unwrap_or(&absent)).collect::<Vec<_>>()))
            };
            Value::Object(keys.map(of_key).collect())
        }
        other => (*other).clone(),
    }
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_default()
}

fn ranges(runs: &[Results]) -> Vec<Range> {
    let Some(first) = runs.first() else { return Vec::new() };
    let mut ranges = Vec::new();
    for (place, phase) in first.phases.iter().enumerate() {
        of_summaries(&phase.name, runs, |run| run.phases.get(place).map(|phase| &phase.summary), &mut ranges);
    }
    of_summaries("all phases", runs, |run| Some(&run.total), &mut ranges);
    if first.callers.len() > 1 {
        for name in first.callers.keys() {
            of_summaries(&format!("callers {name}"), runs, |run| run.callers.get(name), &mut ranges);
        }
    }
    if first.verbs.len() > 1 {
        for name in first.verbs.keys() {
            of_summaries(name, runs, |run| run.verbs.get(name), &mut ranges);
        }
    }
    for (place, judged) in first.objectives.iter().enumerate() {
        let measured = runs.iter().filter_map(|run| run.objectives.get(place)?.measured);
        ranges.extend(range("expected", &judged.text, measured.collect()));
    }
    if let Some(capacity) = range("capacity", "1/s", runs.iter().filter_map(|run| run.capacity_per_s).collect()) {
        ranges.push(capacity);
    }
    ranges
}

/// What a summary shows, if there is any.
type Figure = fn(&Summary) -> Option<f64>;

const FIGURES: [(&str, Figure); 6] = [
    ("right/s", |summary| Some(summary.goodput_per_s)),
    ("right %", |summary| Some(summary.success_percent)),
    ("p50 ms", |summary| (summary.right_ms.count > 0).then_some(summary.right_ms.p50)),
    ("p99 ms", |summary| (summary.right_ms.count > 0).then_some(summary.right_ms.p99)),
    ("p99.9 ms", |summary| (summary.right_ms.count > 0).then_some(summary.right_ms.p999)),
    ("shed p99 ms", |summary| (summary.shed_ms.count > 0).then_some(summary.shed_ms.p99)),
];

fn of_summaries(of: &str, runs: &[Results], which: impl Fn(&Results) -> Option<&Summary>, ranges: &mut Vec<Range>) {
    for (what, figure) in FIGURES {
        ranges.extend(range(of, what, runs.iter().filter_map(|run| figure(which(run)?)).collect()));
    }
}

/// A row for each figure, under these heads, if there was more than one run.
pub fn rows(results: &Results) -> Option<([String; 5], Vec<Vec<String>>)> {
    let several = results.several.as_ref()?;
    let head = [format!("median of {} runs", several.runs), "".into(), "least".into(), "median".into(), "most".into()];
    let rows = several.ranges.iter().map(|range| {
        let Range { of, what, least, median, most } = range;
        vec![of.clone(), what.clone(), figure(*least), figure(*median), figure(*most)]
    });
    Some((head, rows.collect()))
}

/// None if no run has it.
fn range(of: &str, what: &str, mut values: Vec<f64>) -> Option<Range> {
    values.sort_by(f64::total_cmp);
    let (least, most, median) = (*values.first()?, *values.last()?, values[values.len() / 2]);
    Some(Range { of: of.into(), what: what.into(), least, median, most })
}
