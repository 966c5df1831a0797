//! The scenario's file, comparisons and pages.

use std::collections::BTreeMap;
use std::path::Path;

use crate::conditions::Conditions;
use crate::objectives::at_most;
use crate::recording::Kind;
use crate::refusals::RefusalSummary;
use crate::results::{GeneratorReport, LatencySummary, PhaseSummary, Results, Series, Summary, VERSION, Verdict};
use crate::scenario::{Protocol, Scenario};
use crate::{compare, median, report_html, report_table};

const MINIMAL: &str = "name = \"x\"\n[[mix]]\nverb = \"wrap\"\n[[phase]]\nname = \"a\"\nseconds = 1\nrate = 1\n";

#[test]
fn every_scenario_in_the_repository_is_read() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios");
    let files: Vec<_> = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(files.len() >= 8, "{files:?}");
    for file in files {
        let text = std::fs::read_to_string(&file).unwrap();
        let scenario = Scenario::parse(&file.display().to_string(), &text).unwrap();
        assert_eq!(file.file_stem().unwrap().to_str().unwrap(), scenario.name);
        assert!(!scenario.about.is_empty() && !scenario.objective.is_empty(), "{}", scenario.name);
        assert!(text.contains("# Passes if"), "{}", scenario.name);
    }
}

#[test]
fn an_error_in_a_scenario_names_the_line_and_what_is_wrong() {
    for (lines, line, expected) in [
        ("[client]\nprotocl = \"http1\"", 9, "unknown field `protocl`"),
        ("[client]\nprotocol = \"http3\"", 9, "unknown variant `http3`"),
        ("[[phase]]\nname = \"b\"\nseconds = 1", 8, "exactly one of rate, load, rates and loads"),
        ("[[phase]]\nname = \"b\"\nseconds = 1\nrate = 1\nload = 1", 8, "exactly one of"),
        ("[[phase]]\nname = \"b\"\nseconds = -1\nrate = 1", 8, "seconds is more than 0"),
        ("[[phase]]\nname = \"a\"\nseconds = 1\nrate = 1", 8, "another of [[phase]] called 'a'"),
        ("[[phase]]\nname = \"b\"\nseconds = 1\nrates = { nobody = 1 }", 8, "no [[callers]] is called 'nobody'"),
        ("[[mix]]\nverb = \"sign\"", 8, "no [[keys]] with an algorithm for sign"),
        ("[[objective]]\nphases = [\"z\"]", 8, "no [[phase]] is called 'z'; there are 'a'"),
        ("[[objective]]\nwithin_ms = 3", 8, "within_ms goes with success_percent"),
        ("[[objective]]\nverb = \"wrap\"\nrefusal_p999_ms = 1", 8, "is of all callers and verbs together"),
        ("[[fault]]\nfrontend = 2\nrestart = true", 8, "frontend is 1 to 1"),
        ("[[fault]]\nrestart = true\nsignal = \"KILL\"", 8, "exactly one of signal, restart"),
        ("[[fault]]\nhsm_slowdown = 5", 8, "need one with a device_ms"),
        ("[[fault]]\nhsm = { effect = \"hnag\" }", 9, "hnag"),
        ("[[hostile]]\nphase = \"z\"\nkind = \"idle\"\nconnections = 1", 8, "no [[phase]] is called 'z'"),
        ("[[hostile]]\nphase = \"a\"\nkind = \"rude\"\nconnections = 1", 10, "unknown variant `rude`"),
        ("[[hostile]]\nphase = \"a\"\nkind = \"idle\"\nconnections = 0", 8, "connections is 1 to 20000"),
        ("[[hostile]]\nphase = \"a\"\nkind = \"idle\"\nconnections = 1\nrate = 0.0", 8, "rate is more than 0"),
        ("[[objective]]\nmemory_rise_mib = 16", 8, "against goes with"),
        ("[[objective]]\nagainst = \"z\"\np99_rise_ms = 5", 8, "no [[phase]] is called 'z'"),
        ("[[callers]]\nname = \"c\"\ncount = 0", 8, "count is at least 1"),
        ("[[keys]]\nname = \"k\"\ncount = 2\npath = \"v0/keys/k\"", 8, "has an '{n}'"),
    ] {
        let problem = Scenario::parse("x.toml", &format!("{MINIMAL}{lines}\n")).unwrap_err();
        assert!(problem.starts_with(&format!("x.toml:{line}: ")), "{lines}\n{problem}");
        assert!(problem.contains(expected), "{lines}\n{problem}");
    }
}

#[test]
fn a_scenario_made_longer_or_shorter_has_its_bursts_and_faults_at_the_same_places() {
    let burst = "burst = { every_seconds = 0.5, lasts_seconds = 0.1, times = 2.0 }\n";
    let fault = "[[fault]]\nat_seconds = 0.5\nlasts_seconds = 0.2\nsignal = \"STOP\"\n";
    let mut scenario = Scenario::parse("x", &format!("{MINIMAL}{burst}{fault}")).unwrap();
    scenario.compress_to(10.0);
    let (phase, fault) = (scenario.phase[0].get_ref(), scenario.fault[0].get_ref());
    let burst = phase.burst.as_ref().unwrap();
    assert_eq!((phase.seconds, burst.every_seconds, burst.lasts_seconds, burst.times), (10.0, 5.0, 1.0, 2.0));
    assert_eq!((fault.at_seconds, fault.lasts_seconds), (5.0, Some(2.0)));
}

fn summary(right: u64, p99: f64) -> Summary {
    let right_ms = LatencySummary { count: right, mean: 1.0, p50: 1.0, p90: 2.0, p99, p999: p99, max: p99 };
    Summary {
        arrivals: 1000,
        offered_per_s: 100.0,
        attempts: 1000,
        amplification: 1.0,
        goodput_per_s: right as f64 / 10.0,
        success_percent: right as f64 / 10.0,
        counts: BTreeMap::from([(Kind::Right, right), (Kind::Timeout, 1000 - right)]),
        statuses: BTreeMap::from([("200".into(), right)]),
        right_ms,
        shed_ms: LatencySummary::default(),
    }
}

fn results(right: u64, p99: f64) -> Results {
    let phase = |name: &str, begins_s| PhaseSummary {
        name: name.into(),
        begins_s,
        seconds: 5.0,
        summary: summary(right, p99),
        resources: None,
    };
    let latencies = LatencySummary::default;
    Results {
        version: VERSION,
        scenario: "made <up>".into(),
        about: "\"quoted\" & <b>bold</b>".into(),
        verdict: Verdict::Fail,
        reasons: vec!["<script>alert(1)</script>".into()],
        conditions: Conditions {
            at: "2026-11-22T10:00:00Z".into(),
            commit: "abc".into(),
            build: "debug".into(),
            cpu: "a processor".into(),
            cores: 2,
            kernel: "6".into(),
            load_average: 0.5,
            target: "nothing".into(),
            protocol: Protocol::Http2,
            connections: 1,
            timeout_ms: 150.0,
            seed: 1,
        },
        generator: GeneratorReport {
            threads: 1,
            thread_cores: vec![0.1],
            has_priority: true,
            cpu_us_per_attempt: 10.0,
            lateness_ms: latencies(),
            wait_for_connection_ms: latencies(),
            not_sent: 0,
            bottleneck: Vec::new(),
        },
        server_cores: None,
        capacity_per_s: None,
        total: summary(right, p99),
        phases: vec![phase("a", 0.0), phase("b", 5.0)],
        callers: BTreeMap::new(),
        verbs: BTreeMap::new(),
        refused_in_service: BTreeMap::new(),
        objectives: Vec::new(),
        faults: Vec::new(),
        series: Series {
            interval_s: 1.0,
            at_s: vec![0.0, 1.0, 2.0],
            offered_per_s: vec![100.0; 3],
            attempts_per_s: vec![100.0; 3],
            goodput_per_s: vec![90.0, 80.0, 90.0],
            per_s: BTreeMap::from([(Kind::Right, vec![90.0, 80.0, 90.0])]),
            p50_ms: vec![Some(1.0), None, Some(1.0)],
            p99_ms: vec![Some(5.0), None, Some(5.0)],
            max_ms: vec![Some(9.0), None, Some(9.0)],
            shed_p99_ms: vec![None; 3],
            ..Series::default()
        },
        several: None,
    }
}

#[test]
fn a_page_needs_nothing_from_elsewhere_and_runs_nothing() {
    let page = report_html::render(&results(900, 5.0)).unwrap();
    assert!(page.matches("<svg").count() >= 5, "{page}");
    // The name of SVG's vocabulary is no address that is looked up.
    let page = page.replace("http://www.w3.org/2000/svg", "");
    for forbidden in
        ["http:", "https:", "//", "src=", "href", "url(", "@import", "<script", "<link", "<iframe", "onload", "<b>"]
    {
        assert!(!page.contains(forbidden), "{forbidden}");
    }
    assert!(page.contains("made &lt;up&gt;"));
}

#[test]
fn a_result_that_is_written_and_read_is_the_same() {
    let file = std::env::temp_dir().join(format!("ekm-load-test-{}.json", std::process::id()));
    let written = serde_json::to_string(&results(900, 5.0)).unwrap();
    std::fs::write(&file, &written).unwrap();
    let read = compare::read(&file).unwrap();
    std::fs::write(&file, "{}").unwrap();
    let problem = compare::read(&file).unwrap_err();
    std::fs::remove_file(&file).unwrap();
    assert_eq!(serde_json::to_string(&read).unwrap(), written);
    assert!(problem.contains("is no result of ekm-load"), "{problem}");
}

#[test]
fn a_comparison_says_what_has_become_better_and_worse_and_what_is_not_alike() {
    let (before, mut after) = (results(900, 5.0), results(990, 10.0));
    after.conditions.build = "release".into();
    let changes = compare::changes(&before, &after);
    let change = |what: &str| changes.iter().find(|change| change.what == what).unwrap().better_percent;
    assert_eq!(change("a: right/s"), Some(10.0));
    assert_eq!(change("b: p99 ms"), Some(-100.0));
    assert_eq!(change("all phases: shed p99 ms"), None);
    let text = compare::render(&before, &after);
    assert!(text.contains("not alike: build 'debug' and 'release'"), "{text}");
    assert!(text.contains("100.0 % worse"), "{text}");
    assert!(!compare::render(&before, &before).contains("not alike"));
}

/// As `overload` has it in one phase: refused within so many milliseconds.
fn refused(p999_ms: f64) -> Results {
    let refused = RefusalSummary { count: 100, p50_ms: 0.1, p99_ms: p999_ms, p999_ms };
    let judged = at_most("refused, in the service: p99.9, ms".into(), 1.0, Some(p999_ms));
    Results {
        refused_in_service: BTreeMap::from([("b".into(), refused)]),
        objectives: vec![judged],
        verdict: if p999_ms > 1.0 { Verdict::Fail } else { Verdict::Pass },
        ..results(900, 5.0)
    }
}

#[test]
fn of_several_runs_each_figure_is_the_median_and_so_is_what_is_judged() {
    let runs = [(900, 7.0), (1000, 5.0), (990, 6.0)].map(|(right, p99)| Results {
        capacity_per_s: Some(p99),
        verdict: Verdict::Pass,
        ..results(right, p99)
    });
    let median = median::of(runs.into(), 1).unwrap();
    assert_eq!((median.total.goodput_per_s, median.total.right_ms.p99, median.capacity_per_s), (99.0, 6.0, Some(6.0)));
    assert_eq!(median.phases[1].summary.count(Kind::Timeout), 10, "100, none and 10");
    let mostly_right = median::of([1000, 1000, 900].map(|right| results(right, 1.0)).into(), 0).unwrap();
    assert_eq!(mostly_right.total.counts.keys().collect::<Vec<_>>(), [&Kind::Right], "none else in most runs");
    assert_eq!(median.series.p50_ms, [Some(1.0), None, Some(1.0)]);
    assert_eq!(median.verdict, Verdict::Pass);
    let several = median.several.as_ref().unwrap();
    let range = several.ranges.iter().find(|range| range.of == "b" && range.what == "p99 ms").unwrap();
    assert_eq!((several.runs, several.inconclusive), (3, 1));
    assert_eq!((range.least, range.median, range.most), (5.0, 6.0, 7.0));
    for report in [report_table::render(&median), report_html::render(&median).unwrap()] {
        assert!(report.contains("median of 3 runs; 1 more said nothing about the service"), "{report}");
        assert!(report.contains("least"), "{report}");
    }
    let written = serde_json::to_string(&median).unwrap();
    let read: Results = serde_json::from_str(&written).unwrap();
    assert_eq!(serde_json::to_string(&read).unwrap(), written);
}

#[test]
fn one_run_of_three_may_miss_a_limit_and_none_may_answer_wrongly() {
    let median = |runs: [Results; 3]| median::of(runs.into(), 0).unwrap();
    let good = median([refused(0.4), refused(9.0), refused(0.5)]);
    assert_eq!(
        (good.verdict, good.objectives[0].measured, good.objectives[0].passed),
        (Verdict::Pass, Some(0.5), true)
    );
    let bad = median([refused(0.4), refused(9.0), refused(1.5)]);
    assert_eq!((bad.verdict, bad.objectives[0].passed, bad.reasons.len()), (Verdict::Fail, false, 1));
    let mut wrong = refused(0.4);
    (wrong.verdict, wrong.reasons) = (Verdict::Fail, vec!["good requests were answered wrongly or denied".into()]);
    wrong.total.counts.insert(Kind::Wrong, 1);
    let median = median([refused(0.4), refused(0.4), wrong]);
    assert_eq!((median.verdict, median.total.count(Kind::Wrong)), (Verdict::Fail, 0), "{:?}", median.reasons);
    assert!(median.reasons[0].contains("answered wrongly"), "{:?}", median.reasons);
}

#[test]
fn a_report_has_what_the_service_says_of_its_refusals() {
    let results = refused(0.4);
    for report in [report_table::render(&results), report_html::render(&results).unwrap()] {
        assert!(report.contains("refused, in the service"), "{report}");
        assert!(report.contains("p99.9 ms, at most"), "{report}");
    }
}

#[test]
fn the_table_says_why_a_run_says_nothing() {
    let mut results = results(900, 5.0);
    (results.verdict, results.reasons) = (Verdict::Inconclusive, vec!["a thread used 99 % of a core".into()]);
    let text = report_table::render(&results);
    assert!(
        text.contains("INCONCLUSIVE\n  a thread used 99 % of a core\n  this run says nothing about the service"),
        "{text}"
    );
    assert!(text.contains("100 timeout"), "{text}");
}
