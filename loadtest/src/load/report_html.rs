//! A result as a page that needs nothing else: no network, no script.

use std::error::Error;
use std::fmt::Write;

use crate::charts::{Chart, Line};
use crate::recording::Kind;
use crate::report_table::{RESOURCES, conditions, figure, resources_row};
use crate::results::{Results, Summary};
use crate::{median, refusals};

const STYLE: &str = "body{font:15px/1.45 system-ui,sans-serif;max-width:62rem;margin:2rem auto;padding:0 1rem;color:#222;background:#fff}\
    h1{font-size:1.5rem;margin-bottom:.2rem}h2{font-size:1.1rem;margin-top:2rem}table{border-collapse:collapse;font-size:.9rem;width:100%}\
    td,th{padding:.25rem .6rem;border-bottom:1px solid #ddd;text-align:right;font-variant-numeric:tabular-nums}\
    td:first-child,th:first-child{text-align:left}svg{width:100%;height:auto}.pass{color:#00734c}.fail{color:#b00020}\
    .inconclusive{color:#8a5a00}.conditions{color:#555;font-size:.85rem}";

/// The whole page.
pub fn render(results: &Results) -> Result<String, Box<dyn Error>> {
    let name = escaped(&results.scenario);
    let verdict = results.verdict.name();
    let mut html = format!(
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>{name}: {verdict}</title><style>{STYLE}</style></head>\
         <body>\n<h1>{name}: <span class=\"{}\">{verdict}</span></h1>\n<p>{}</p>\n",
        verdict.to_lowercase(),
        escaped(results.about.trim()),
    );
    for reason in &results.reasons {
        writeln!(html, "<p class=\"{}\">{}</p>", verdict.to_lowercase(), escaped(reason))?;
    }
    html += "<p class=\"conditions\">";
    html += &conditions(results).iter().map(|line| escaped(line)).collect::<Vec<_>>().join("<br>");
    html += "</p>\n<h2>Expected</h2>\n";
    html += &table(
        &["what", "limit", "measured", ""],
        results.objectives.iter().map(|judged| {
            let measured = judged.measured.map_or_else(|| "nothing measured".into(), figure);
            let class = if judged.passed { "pass" } else { "fail" };
            let verdict = format!("<span class=\"{class}\">{}</span>", if judged.passed { "ok" } else { "missed" });
            [escaped(&judged.text), figure(judged.limit), measured, verdict].to_vec()
        }),
    );
    if !results.faults.is_empty() {
        html += "<h2>What was done</h2>\n<ul>\n";
        for fault in &results.faults {
            let until = fault.until_s.map_or_else(String::new, |until| format!(" until {until:.1} s"));
            let error = fault.error.as_ref().map_or_else(String::new, |error| format!(": failed, {error}"));
            writeln!(html, "<li>at {:.1} s{until}: {}</li>", fault.at_s, escaped(&format!("{}{error}", fault.what)))?;
        }
        html += "</ul>\n";
    }
    html += "<h2>Phases</h2>\n";
    let phases = results.phases.iter().map(|phase| (phase.name.as_str(), &phase.summary));
    html += &summaries(phases.chain([("all phases", &results.total)]));
    if let Some((head, rows)) = refusals::rows(results) {
        html += "<h2>Refusals, from the request's head to the answer, inside the service</h2>\n";
        html += &table(&head, rows.into_iter().map(|row| row.iter().map(|cell| escaped(cell)).collect()));
    }
    let seen = results.phases.iter().filter_map(|phase| Some((&phase.name, phase.resources.as_ref()?)));
    let rows: Vec<_> = seen.map(|(name, resources)| [vec![escaped(name)], resources_row(resources)].concat()).collect();
    if !rows.is_empty() {
        html += "<h2>What the service held, at most, and used</h2>\n";
        html += &table(&[&[""], &RESOURCES[..]].concat(), rows.into_iter());
    }
    for (heading, chart) in charts(results) {
        writeln!(html, "<h2>{heading}</h2>\n{}", chart.svg()?)?;
    }
    if results.callers.len() > 1 {
        html += "<h2>Callers</h2>\n";
        html += &summaries(results.callers.iter().map(|(name, summary)| (name.as_str(), summary)));
    }
    if results.verbs.len() > 1 {
        html += "<h2>Kinds of requests</h2>\n";
        html += &summaries(results.verbs.iter().map(|(name, summary)| (name.as_str(), summary)));
    }
    if let Some((head, rows)) = median::rows(results) {
        html += "<h2>Runs</h2>\n";
        let rows = rows.into_iter().map(|row| row.iter().map(|cell| escaped(cell)).collect());
        html += &table(&head.each_ref().map(String::as_str), rows);
    }
    Ok(html + "</body></html>\n")
}

fn charts(results: &Results) -> Vec<(&'static str, Chart<'static>)> {
    let series = &results.series;
    let marks: Vec<_> = results.phases.iter().skip(1).map(|phase| phase.begins_s).collect();
    let over_time = |name: &str, values: &[f64]| Line {
        name: name.into(),
        points: series.at_s.iter().copied().zip(values.iter().copied().map(Some)).collect(),
    };
    let latencies = |name: &str, values: &[Option<f64>]| Line {
        name: name.into(),
        points: series.at_s.iter().copied().zip(values.iter().copied()).collect(),
    };
    let plot = |y, lines, is_log| Chart { x: "seconds", y, lines, is_log, marks: marks.clone() };
    let mut charts = Vec::new();
    if results.phases.len() > 1 {
        let mut phases: Vec<_> = results.phases.iter().map(|phase| &phase.summary).collect();
        phases.sort_by(|one, other| one.offered_per_s.total_cmp(&other.offered_per_s));
        let over_load = |name: &str, value: fn(&Summary) -> Option<f64>| Line {
            name: name.into(),
            points: phases.iter().map(|summary| (summary.offered_per_s, value(summary))).collect(),
        };
        let chart = |y, lines, is_log| Chart { x: "requests due a second", y, lines, is_log, marks: Vec::new() };
        let mut goodput = vec![over_load("right answers", |summary| Some(summary.goodput_per_s))];
        if let Some(capacity) = results.capacity_per_s {
            let points = phases.iter().map(|summary| (summary.offered_per_s, Some(capacity)));
            goodput.push(Line { name: "capacity".into(), points: points.collect() });
        }
        charts.push((
            "Goodput over offered load, a point for each phase",
            chart("right answers a second", goodput, false),
        ));
        let lines = vec![
            over_load("right answers, p50", |summary| (summary.right_ms.count > 0).then_some(summary.right_ms.p50)),
            over_load("right answers, p99", |summary| (summary.right_ms.count > 0).then_some(summary.right_ms.p99)),
            over_load("429 and 503, p99", |summary| (summary.shed_ms.count > 0).then_some(summary.shed_ms.p99)),
        ];
        charts.push(("Latency over offered load", chart("ms", lines, true)));
    }
    let mut rates = vec![over_time("due", &series.offered_per_s), over_time("right answers", &series.goodput_per_s)];
    if results.total.amplification > 1.0 {
        rates.push(over_time("sent, with retries", &series.attempts_per_s));
    }
    charts.push(("Offered load and goodput over time", plot("requests a second", rates, false)));
    let lines = vec![
        latencies("p50", &series.p50_ms),
        latencies("p99", &series.p99_ms),
        latencies("slowest", &series.max_ms),
        latencies("429 and 503, p99", &series.shed_p99_ms),
    ];
    charts.push(("Latency over time, from the time on the schedule", plot("ms", lines, true)));
    let lines = Kind::ALL.iter().filter_map(|kind| Some(over_time(kind.name(), series.per_s.get(kind)?))).collect();
    charts.push(("What came of requests over time", plot("requests a second", lines, false)));
    if series.memory_mib.iter().any(Option::is_some) {
        let lines = vec![latencies("of the frontend that had most", &series.memory_mib)];
        charts.push(("Resident memory over time, without HSM workers", plot("MiB", lines, false)));
    }
    if !series.callers_goodput_per_s.is_empty() {
        let lines = series.callers_goodput_per_s.iter().map(|(name, values)| over_time(name, values)).collect();
        charts.push(("Goodput of each group of callers", plot("right answers a second", lines, false)));
        let lines = series.callers_p99_ms.iter().map(|(name, values)| latencies(name, values)).collect();
        charts.push(("p99 of each group of callers", plot("ms", lines, true)));
    }
    charts
}

fn summaries<'a>(rows: impl Iterator<Item = (&'a str, &'a Summary)>) -> String {
    let head =
        ["", "due", "due/s", "right/s", "right %", "p50 ms", "p99 ms", "p99.9 ms", "shed", "shed p99 ms", "other ends"];
    let rows = rows.map(|(name, summary)| {
        let (right, shed) = (&summary.right_ms, &summary.shed_ms);
        let others = summary.counts.iter().filter(|(kind, _)| **kind != Kind::Right && !kind.is_shed());
        let others: Vec<_> = others.map(|(kind, count)| format!("{count} {}", kind.name())).collect();
        let some = |count: u64, value: f64| if count > 0 { figure(value) } else { "–".into() };
        vec![
            escaped(name),
            summary.arrivals.to_string(),
            format!("{:.0}", summary.offered_per_s),
            format!("{:.0}", summary.goodput_per_s),
            format!("{:.2}", summary.success_percent),
            some(right.count, right.p50),
            some(right.count, right.p99),
            some(right.count, right.p999),
            summary.shed().to_string(),
            some(shed.count, shed.p99),
            others.join(", "),
        ]
    });
    table(&head, rows)
}

/// The cells are HTML already.
fn table(head: &[&str], rows: impl Iterator<Item = Vec<String>>) -> String {
    let mut html = "<table><thead><tr>".to_owned();
    head.iter().for_each(|cell| html += &format!("<th>{cell}</th>"));
    html += "</tr></thead><tbody>\n";
    for row in rows {
        html += "<tr>";
        row.iter().for_each(|cell| html += &format!("<td>{cell}</td>"));
        html += "</tr>\n";
    }
    html + "</tbody></table>\n"
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
