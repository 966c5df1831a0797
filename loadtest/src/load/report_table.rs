//! A result as tables for a terminal.

use std::fmt::Write;

use comfy_table::{CellAlignment, ContentArrangement, Table, presets};

use crate::recording::Kind;
use crate::resources::Resources;
use crate::results::{LatencySummary, Results, Summary, Verdict};
use crate::{median, refusals};

/// All of it.
pub fn render(results: &Results) -> String {
    let mut text = format!("{}: {}\n", results.scenario, results.about.trim());
    for line in conditions(results) {
        let _ = writeln!(text, "{line}");
    }
    let mut rows = Vec::new();
    for phase in &results.phases {
        rows.push(row(&phase.name, &phase.summary));
    }
    rows.push(row("all phases", &results.total));
    if results.callers.len() > 1 {
        rows.extend(results.callers.iter().map(|(name, summary)| row(&format!("callers {name}"), summary)));
    }
    if results.verbs.len() > 1 {
        rows.extend(results.verbs.iter().map(|(name, summary)| row(name, summary)));
    }
    let head = [
        "",
        "due/s",
        "right/s",
        "right %",
        "p50 ms",
        "p99 ms",
        "p99.9",
        "max",
        "shed/s",
        "shed p99",
        "sent each",
        "other ends",
    ];
    let _ = writeln!(text, "\n{}", table(&head, rows));
    if let Some((head, rows)) = refusals::rows(results) {
        let _ = writeln!(text, "\n{}", table(&head, rows));
    }
    if let Some(table) = resources(results) {
        let _ = writeln!(text, "\n{table}");
    }
    if let Some((head, rows)) = median::rows(results) {
        let _ = writeln!(text, "\n{}\n", table(&head.each_ref().map(String::as_str), rows));
    }
    for fault in &results.faults {
        let until = fault.until_s.map_or_else(String::new, |until| format!(" until {until:.1} s"));
        let error = fault.error.as_ref().map_or_else(String::new, |error| format!(": FAILED, {error}"));
        let _ = writeln!(text, "at {:.1} s{until}: {}{error}", fault.at_s, fault.what);
    }
    let objectives = results.objectives.iter().map(|judged| {
        let measured = judged.measured.map_or_else(|| "nothing measured".into(), figure);
        let verdict = if judged.passed { "ok" } else { "MISSED" };
        vec![judged.text.clone(), figure(judged.limit), measured, verdict.into()]
    });
    let _ = writeln!(text, "\n{}", table(&["expected", "limit", "measured", ""], objectives.collect()));
    let _ = write!(text, "{}", results.verdict.name());
    for reason in &results.reasons {
        let _ = write!(text, "\n  {reason}");
    }
    if results.verdict == Verdict::Inconclusive {
        text += "\n  this run says nothing about the service";
    }
    text
}

/// Under which the figures were measured, and what the generator itself did.
pub fn conditions(results: &Results) -> Vec<String> {
    let (conditions, generator) = (&results.conditions, &results.generator);
    let cores: Vec<_> = generator.thread_cores.iter().map(|share| format!("{:.0} %", 100.0 * share)).collect();
    let priority = if generator.has_priority { "with priority" } else { "without priority" };
    let mut lines = vec![
        format!(
            "{}, commit {}, {} build, {} x {}, Linux {}, load average {} before",
            conditions.at,
            conditions.commit,
            conditions.build,
            conditions.cores,
            conditions.cpu,
            conditions.kernel,
            conditions.load_average
        ),
        format!(
            "{}; {}, {} connections to each frontend, time-out {} ms, seed {}",
            conditions.target,
            conditions.protocol.name(),
            conditions.connections,
            conditions.timeout_ms,
            conditions.seed
        ),
        format!(
            "generator: {} of a core {priority}, {:.0} us for each request; late by {} ms (p99), then {} ms (p99) without a connection",
            cores.join(" + "),
            generator.cpu_us_per_attempt,
            generator.lateness_ms.p99,
            generator.wait_for_connection_ms.p99,
        ),
    ];
    if let Some(capacity) = results.capacity_per_s {
        lines.push(format!("capacity {capacity:.0} requests a second"));
    }
    if let Some(several) = &results.several {
        let again = match several.inconclusive {
            0 => String::new(),
            count => format!("; {count} more said nothing about the service"),
        };
        lines.push(format!(
            "every figure is the median of {} runs{again}; the conditions are the first one's",
            several.runs
        ));
    }
    if let Some(cores) = results.server_cores {
        lines.push(format!("service: {cores:.2} cores"));
    }
    lines
}

/// What the service held and used; none without a rig.
fn resources(results: &Results) -> Option<Table> {
    let seen = results.phases.iter().filter_map(|phase| Some((&phase.name, phase.resources.as_ref()?)));
    let rows: Vec<_> = seen.map(|(name, resources)| [vec![name.clone()], resources_row(resources)].concat()).collect();
    (!rows.is_empty()).then(|| table(&[&[""], &RESOURCES[..]].concat(), rows))
}

/// The heads of [`resources_row`].
pub const RESOURCES: [&str; 6] = ["memory MiB", "anonymous", "workers MiB", "descriptors", "threads", "cores"];

/// The highest of each, of one frontend, but for the processor time of all.
pub fn resources_row(resources: &Resources) -> Vec<String> {
    let Resources { memory_mib, anonymous_mib, workers_mib, descriptors, threads, cores } = resources;
    let [memory, anonymous, workers] = [memory_mib, anonymous_mib, workers_mib].map(|mib| format!("{mib:.1}"));
    vec![
        memory,
        anonymous,
        workers,
        descriptors.to_string(),
        threads.to_string(),
        cores.map_or_else(|| "-".into(), figure),
    ]
}

fn row(name: &str, summary: &Summary) -> Vec<String> {
    let latency = |latencies: &LatencySummary, value: f64| if latencies.count > 0 { figure(value) } else { "-".into() };
    let per_s = |count: u64| {
        let seconds = summary.arrivals as f64 / summary.offered_per_s.max(f64::MIN_POSITIVE);
        format!("{:.0}", if summary.arrivals == 0 { 0.0 } else { count as f64 / seconds })
    };
    let right = &summary.right_ms;
    let usual = |kind: &Kind| *kind == Kind::Right || kind.is_shed();
    let others = summary.counts.iter().filter(|(kind, _)| !usual(kind));
    let others: Vec<_> = others.map(|(kind, count)| format!("{count} {}", kind.name())).collect();
    vec![
        name.to_owned(),
        format!("{:.0}", summary.offered_per_s),
        format!("{:.0}", summary.goodput_per_s),
        format!("{:.2}", summary.success_percent),
        latency(right, right.p50),
        latency(right, right.p99),
        latency(right, right.p999),
        latency(right, right.max),
        per_s(summary.shed()),
        latency(&summary.shed_ms, summary.shed_ms.p99),
        format!("{:.2}", summary.amplification),
        others.join(", "),
    ]
}

/// With as many digits as mean something; two behind the point tell 99.95 % from all.
pub fn figure(value: f64) -> String {
    if value.fract() == 0.0 || value.abs() >= 100.0 { format!("{value:.0}") } else { format!("{value:.2}") }
}

/// The first column to the left, figures to the right.
pub fn table(head: &[&str], rows: Vec<Vec<String>>) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Dynamic);
    table.set_header(head.to_vec());
    table.add_rows(rows);
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}
