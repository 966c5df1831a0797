//! Two results beside each other.

use std::fs;
use std::path::Path;

use crate::report_table::{figure, table};
use crate::results::{Results, Summary, VERSION};

/// Reads a result that `--output json` has written.
pub fn read(file: &Path) -> Result<Results, String> {
    let place = file.display();
    let text = fs::read_to_string(file).map_err(|error| format!("{place}: {error}"))?;
    let results: Results =
        serde_json::from_str(&text).map_err(|error| format!("{place} is no result of ekm-load: {error}"))?;
    if results.version != VERSION {
        return Err(format!("{place} has version {} of the format; this program reads {VERSION}", results.version));
    }
    Ok(results)
}

/// One figure of both.
#[derive(Clone, Debug, PartialEq)]
pub struct Change {
    pub what: String,
    pub before: f64,
    pub after: f64,
    /// Positive is better; none if it was 0 before.
    pub better_percent: Option<f64>,
}

/// Goodput, success and latencies of every phase that both have.
pub fn changes(before: &Results, after: &Results) -> Vec<Change> {
    let mut changes = Vec::new();
    for phase in &before.phases {
        if let Some(other) = after.phases.iter().find(|other| other.name == phase.name) {
            changes.extend(of(&phase.name, &phase.summary, &other.summary));
        }
    }
    changes.extend(of("all phases", &before.total, &after.total));
    changes
}

fn of(name: &str, before: &Summary, after: &Summary) -> Vec<Change> {
    let change = |what: &str, value: fn(&Summary) -> f64, more_is_better: bool| {
        let (before, after) = (value(before), value(after));
        let percent = (before != 0.0).then(|| 100.0 * (after - before) / before);
        let better_percent = percent.map(|percent| if more_is_better { percent } else { -percent });
        Change { what: format!("{name}: {what}"), before, after, better_percent }
    };
    vec![
        change("right/s", |summary| summary.goodput_per_s, true),
        change("right %", |summary| summary.success_percent, true),
        change("p50 ms", |summary| summary.right_ms.p50, false),
        change("p99 ms", |summary| summary.right_ms.p99, false),
        change("p99.9 ms", |summary| summary.right_ms.p999, false),
        change("shed p99 ms", |summary| summary.shed_ms.p99, false),
    ]
}

/// For people; what makes the two hard to compare comes first.
pub fn render(before: &Results, after: &Results) -> String {
    let mut text = String::new();
    for difference in differences(before, after) {
        text += &format!("not alike: {difference}\n");
    }
    let rows = changes(before, after).into_iter().map(|change| {
        let better = change.better_percent.map_or_else(String::new, |percent| match percent {
            percent if percent.abs() < 0.05 => "same".into(),
            percent if percent > 0.0 => format!("{percent:.1} % better"),
            percent => format!("{:.1} % worse", -percent),
        });
        vec![change.what, figure(change.before), figure(change.after), better]
    });
    text += &table(&["", "before", "after", ""], rows.collect()).to_string();
    text + &format!("\nbefore: {}, after: {}", before.verdict.name(), after.verdict.name())
}

fn differences(before: &Results, after: &Results) -> Vec<String> {
    let (one, other) = (&before.conditions, &after.conditions);
    let pairs = [
        ("scenario", before.scenario.clone(), after.scenario.clone()),
        ("build", one.build.clone(), other.build.clone()),
        ("processor", one.cpu.clone(), other.cpu.clone()),
        ("cores", one.cores.to_string(), other.cores.to_string()),
        ("target", one.target.clone(), other.target.clone()),
        ("protocol", one.protocol.name().into(), other.protocol.name().into()),
        ("connections", one.connections.to_string(), other.connections.to_string()),
        ("seed", one.seed.to_string(), other.seed.to_string()),
    ];
    let different = pairs.into_iter().filter(|(_, one, other)| one != other);
    different.map(|(what, one, other)| format!("{what} '{one}' and '{other}'")).collect()
}
