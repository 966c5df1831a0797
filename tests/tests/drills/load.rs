//! The scenarios of `make drill-load`, each for some seconds.
//!
//! What is judged does not depend on how fast the machine is: that answers are right, or refusals; that what goes wrong does so, and
//! is seen; that what an HSM cannot do is refused; and that the report has what the tables in loadtest/RESULTS.md are made of.
//! Whether the scenario's own objectives are met is not judged, so that `ekm-load` may end with exit code 1, or with 3 where it was too slow
//! itself.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use ekm_tests::ekm_binary;
use serde_json::Value;

use crate::turn;

/// A machine that has other things to do may spoil a run: connections that are not opened in time, a fault that has come too late.
const ATTEMPTS: usize = 3;

/// In the short form, what a client and the service wait for is no matter of milliseconds.
const PATIENT: [(&str, &str); 2] = [
    ("[client]\n", "[client]\ntimeout_ms = 20000\n"),
    ("[rig]\n", "[rig]\nrequest_deadline_ms = 19000\nhsm_deadline_ms = 9000\n"),
];

/// Instead of what is in the file, an HSM that does so little that this machine can ask for more, however busy it is. Clients are patient, so that
/// who gives up is the service.
const OVERLOADED: (&str, &str) = ("[client]\n", "[client]\ntimeout_ms = 20000\n");

/// At so low a rate, one of many would wait longer for its first request than the service lets it (`first_byte_timeout_ms`).
const ONE_CONNECTION: &str = "connections = 1\n";

/// To make a key in SoftHSM takes a tenth of a second.
const FEW: (&str, &str) = ("count = 20", "count = 5");

/// A scenario's file as it is run here.
struct Short {
    name: &'static str,
    text: String,
    arguments: Vec<&'static str>,
}

impl Short {
    fn new(name: &'static str) -> Self {
        let text = fs::read_to_string(scenarios().join(format!("{name}.toml"))).unwrap();
        let short = Self { name, text, arguments: Vec::new() };
        let short = if name == "overload" { short.with("\nwarm_up_seconds = 3", "") } else { short };
        short.with("\nabout = ", "\nwarm_up_seconds = 0.5\nabout = ")
    }

    /// With this instead of that.
    fn with(mut self, there: &str, instead: &str) -> Self {
        assert!(self.text.contains(there), "{} has no {there:?}", self.name);
        self.text = self.text.replace(there, instead);
        self
    }

    fn all(self, changes: &[(&str, &str)]) -> Self {
        changes.iter().fold(self, |short, (there, instead)| short.with(there, instead))
    }

    fn capacity(mut self, per_s: &'static str) -> Self {
        self.arguments.extend(["--capacity", per_s]);
        self
    }

    /// One run, that lasts so long; an error if it says nothing.
    fn attempt(&self, seconds: usize) -> Result<Report, String> {
        let directory = tempfile::tempdir().unwrap();
        let (file, page) = (directory.path().join("scenario.toml"), directory.path().join("page.html"));
        fs::write(&file, &self.text).unwrap();
        let mut command = Command::new(ekm_binary().with_file_name("ekm-load"));
        command.arg("run").arg(&file).args(["--rig", "--output", "json", "--html"]).arg(&page).args(&self.arguments);
        command.args(["--seconds", &seconds.to_string()]);
        let output = command.stdin(Stdio::null()).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        match output.status.code() {
            Some(0 | 1 | 3) => {}
            Some(2) if said.contains("could be opened") || said.contains("before the start: 503") => return Err(said),
            _ => panic!("{}: {}\n{said}", self.name, output.status),
        }
        let results = serde_json::from_slice(&output.stdout).unwrap();
        let report = Report { results, page: fs::read_to_string(page).unwrap() };
        report.assert_sound(self.name);
        Ok(report)
    }

    /// One run that says something: in which all that was to go wrong did, and what is asked for is so. Each lasts longer than the one before.
    fn run_until(&self, seconds: usize, says_something: impl Fn(&Report) -> bool) -> Report {
        let mut problem = String::new();
        for attempt in 1..=ATTEMPTS {
            match self.attempt(attempt * seconds) {
                Ok(report) if report.faults_were_made() && says_something(&report) => return report,
                Ok(report) => problem = report.summary(),
                Err(error) => problem = error,
            }
        }
        panic!("{}: none of {ATTEMPTS} runs says anything; the last one: {problem}", self.name);
    }

    fn run(&self, seconds: usize) -> Report {
        self.run_until(seconds, |_| true)
    }
}

/// A report, as figures and as a page.
struct Report {
    results: Value,
    page: String,
}

impl Report {
    /// What holds of every run, on however slow a machine.
    fn assert_sound(&self, name: &str) {
        let (results, total) = (&self.results, &self.results["total"]);
        assert_eq!(results["scenario"], name);
        let counts = total["counts"].as_object().unwrap();
        let sum: u64 = counts.values().map(|count| count.as_u64().unwrap()).sum();
        assert!(sum > 0 && total["arrivals"] == sum, "{total}");
        for none in ["wrong", "denied", "failed"] {
            assert!(!counts.contains_key(none), "{name}: {total}");
        }
        for status in total["statuses"].as_object().unwrap().keys() {
            assert!(["200", "429", "503"].contains(&status.as_str()), "{name}: {total}");
        }
        assert!(counts["right"].as_u64() > Some(0), "{name}: {total}");
        for figure in ["p50", "p99", "p999"] {
            assert!(total["right_ms"][figure].as_f64() > Some(0.0), "{name}: {total}");
        }
        for phase in results["phases"].as_array().unwrap() {
            for figure in ["arrivals", "offered_per_s", "goodput_per_s", "success_percent"] {
                assert!(phase[figure].is_number(), "{name}: {figure}: {phase}");
            }
            let phase = phase["name"].as_str().unwrap();
            assert!(self.page.contains(&format!("<td>{phase}</td>")), "{name}: no row of {phase}");
            assert!(results["refused_in_service"][phase]["p999_ms"].is_number(), "{name}: {phase}");
        }
        let held = self.held();
        assert!(!held.is_empty(), "{name}: {results}");
        for resources in held {
            for figure in ["memory_mib", "anonymous_mib", "descriptors", "threads"] {
                assert!(resources[figure].as_f64() > Some(0.0), "{name}: {resources}");
            }
        }
        for objective in results["objectives"].as_array().unwrap() {
            assert!(objective["text"].is_string() && objective["limit"].is_number(), "{name}: {objective}");
        }
        for heading in [
            "Expected",
            "Phases",
            "What the service held, at most, and used",
            "Offered load and goodput over time",
            "Latency over time, from the time on the schedule",
            "What came of requests over time",
            "Resident memory over time, without HSM workers",
        ] {
            assert!(self.page.contains(&format!("<h2>{heading}</h2>")), "{name}: {heading}");
        }
        assert!(self.page.contains("</html>") && self.page.matches("<svg").count() >= 4);
    }

    /// By phase, where somebody could look.
    fn held(&self) -> Vec<&Value> {
        let phases = self.results["phases"].as_array().unwrap().iter();
        phases.map(|phase| &phase["resources"]).filter(|resources| resources.is_object()).collect()
    }

    fn faults(&self) -> &Vec<Value> {
        self.results["faults"].as_array().unwrap()
    }

    fn faults_were_made(&self) -> bool {
        self.faults().iter().all(|fault| fault["error"].is_null())
    }

    fn assert_fault(&self, what: &str) {
        let fault = self.faults().iter().find(|fault| fault["what"] == what);
        let fault = fault.unwrap_or_else(|| panic!("{what}: {:?}", self.faults()));
        assert!(fault["at_s"].as_f64() >= Some(0.0), "{fault}");
        assert!(self.page.contains(what), "{what}");
    }

    fn phase(&self, name: &str) -> &Value {
        let mut phases = self.results["phases"].as_array().unwrap().iter();
        phases.find(|phase| phase["name"] == name).unwrap()
    }

    /// What a limit on this was compared with.
    fn assert_measured(&self, what: &str) {
        let objectives = self.results["objectives"].as_array().unwrap();
        let of = |objective: &&Value| objective["text"].as_str().unwrap().contains(what);
        let objective = objectives.iter().find(of).unwrap_or_else(|| panic!("{what}: {objectives:?}"));
        assert!(objective["measured"].is_number(), "{objective}");
    }

    /// All that was sent had its right answer.
    fn assert_all_right(&self) {
        let total = &self.results["total"];
        let others = ["too_many_requests", "unavailable", "timeout", "lost"];
        assert!(others.into_iter().all(|kind| count(total, kind) == 0), "{total}");
        assert!(total["success_percent"] == 100.0, "{total}");
    }

    fn summary(&self) -> String {
        let Value::Object(results) = &self.results else { return String::new() };
        let of = |name: &str| results[name].to_string();
        ["reasons", "faults", "total", "phases", "callers"].map(of).join("\n")
    }
}

fn scenarios() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("loadtest/scenarios")
}

/// How many requests of a phase, of callers, or of all ended so.
fn count(summary: &Value, kind: &str) -> u64 {
    summary["counts"][kind].as_u64().unwrap_or(0)
}

fn shed(summary: &Value) -> u64 {
    count(summary, "too_many_requests") + count(summary, "unavailable")
}

#[test]
fn steady_load_of_every_verb_has_right_answers_alone() {
    let _turn = turn();
    let report = Short::new("steady")
        .all(&PATIENT)
        .with("count = 50", "count = 5")
        .with("connections = 4\n", ONE_CONNECTION)
        .run(2);
    report.assert_all_right();
    assert!(report.results["capacity_per_s"].as_f64() > Some(0.0), "it is measured at the start");
    let verbs = report.results["verbs"].as_object().unwrap();
    assert_eq!(verbs.len(), 6, "{verbs:?}");
    assert!(report.page.contains("<h2>Kinds of requests</h2>"));
    report.assert_measured("right answers' p99");
}

#[test]
fn more_than_an_hsm_can_do_is_refused_and_what_it_can_do_is_done() {
    let _turn = turn();
    // 2 sessions of 40 ms: no more than 50 calls a second, of 500 at the end.
    let short = Short::new("overload").capacity("50").all(&[
        OVERLOADED,
        FEW,
        ("connections = 256\n", "connections = 64\n"),
        (
            "sessions = 8\ndevice_ms = 8",
            "sessions = 2\ndevice_ms = 40\nrequest_deadline_ms = 1000\nhsm_deadline_ms = 900",
        ),
    ]);
    let report = short.run(5);
    for phase in ["5x", "10x"] {
        let phase = report.phase(phase);
        assert!(shed(phase) > 0 && phase["shed_ms"]["p99"].as_f64() > Some(0.0), "{phase}");
    }
    let refused = &report.results["refused_in_service"]["10x"];
    assert!(refused["count"].as_u64() > Some(0) && refused["p999_ms"].as_f64() > Some(0.0), "{refused}");
    report.assert_measured("refused, in the service");
    for heading in ["Goodput over offered load, a point for each phase", "Latency over offered load"] {
        assert!(report.page.contains(heading), "{heading}");
    }
    assert!(report.page.contains("Refusals, from the request's head to the answer, inside the service"));
}

#[test]
fn what_a_slow_hsm_cannot_do_is_refused_and_when_it_is_fast_again_it_answers() {
    let _turn = turn();
    // 4 sessions of 50 ms are 80 calls a second; five times slower 16 of 56; 1,000 ms are longer than an operation may take.
    let short = Short::new("slow-hsm").capacity("80").all(&[
        OVERLOADED,
        FEW,
        (
            "sessions = 4\ndevice_ms = 4",
            "sessions = 4\ndevice_ms = 50\nrequest_deadline_ms = 1000\nhsm_deadline_ms = 900",
        ),
    ]);
    let report = short.run_until(8, |report| count(report.phase("after 20x"), "right") > 0);
    for (times, phase) in [(5, "5x slower"), (20, "20x slower")] {
        report.assert_fault(&format!("every HSM is {times} times slower"));
        assert!(shed(report.phase(phase)) > 0, "{}", report.phase(phase));
    }
    assert!(
        report.faults().iter().all(|fault| fault["until_s"].as_f64() > fault["at_s"].as_f64()),
        "{:?}",
        report.faults()
    );
}

#[test]
fn a_flood_from_one_caller_is_refused_to_him_and_not_to_the_others() {
    let _turn = turn();
    // A tenth of everything, but for the HSM.
    let short = Short::new("noisy-tenant").all(&PATIENT).all(&[
        ("caller_requests_per_s = 100", "caller_requests_per_s = 10"),
        ("quiet = 450", "quiet = 45"),
        ("noisy = 5000", "noisy = 500"),
        ("noisy = 1000", "noisy = 100"),
        ("noisy = 50 }", "noisy = 5 }"),
    ]);
    let report = short.run(5);
    let (quiet, noisy) = (&report.results["callers"]["quiet"], &report.results["callers"]["noisy"]);
    assert!(count(noisy, "too_many_requests") > count(noisy, "right"), "{noisy}");
    assert!(count(noisy, "right") > 0 && count(quiet, "right") > 4 * shed(quiet), "{noisy} {quiet}");
    assert!(report.page.contains("<h2>Callers</h2>") && report.page.contains("p99 of each group of callers"));
}

#[test]
fn clients_that_try_again_while_the_hsm_is_slow_are_seen_to_and_it_comes_out_of_it() {
    let _turn = turn();
    // 2 sessions of 20 ms are 100 calls a second; five times slower 20, of the 80 that are asked for, and three retries each.
    let short = Short::new("retry-storm").capacity("100").all(&[
        OVERLOADED,
        FEW,
        (
            "sessions = 8\ndevice_ms = 8",
            "sessions = 2\ndevice_ms = 20\nrequest_deadline_ms = 1000\nhsm_deadline_ms = 900",
        ),
    ]);
    let report = short.run_until(5, |report| count(report.phase("after"), "right") > 0);
    report.assert_fault("every HSM is 5 times slower");
    let slow = report.phase("slow");
    assert!(shed(slow) > 0 && slow["amplification"].as_f64() > Some(1.0), "{slow}");
    report.assert_measured("attempts for each request");
    assert!(report.page.contains("sent, with retries"));
}

#[test]
fn when_one_of_three_frontends_is_killed_the_others_answer() {
    let _turn = turn();
    let short = Short::new("frontend-loss").all(&PATIENT).all(&[
        FEW,
        ("connections = 4\n", ONE_CONNECTION),
        ("rate = 300", "rate = 60"),
    ]);
    let report = short.run(5);
    report.assert_fault("frontend 2 gets SIGKILL");
    report.assert_fault("frontend 2 is restarted");
    for phase in ["before", "without it", "it comes back"] {
        let phase = report.phase(phase);
        assert!(2 * count(phase, "right") > phase["arrivals"].as_u64().unwrap(), "{phase}");
        assert_eq!(count(phase, "timeout") + shed(phase), 0, "{phase}");
    }
}

#[test]
fn no_request_is_lost_when_three_frontends_are_restarted_one_after_the_other() {
    let _turn = turn();
    let report = Short::new("rolling-restart")
        .all(&PATIENT)
        .all(&[FEW, ("connections = 4\n", ONE_CONNECTION), ("rate = 300", "rate = 60")])
        .run(9);
    for frontend in 1..=3 {
        report.assert_fault(&format!("frontend {frontend} is restarted"));
    }
    assert!(report.faults().iter().all(|fault| fault["until_s"].is_number()), "{:?}", report.faults());
    report.assert_all_right();
}

/// Each of them; `ekm-load` knows no other.
const HOSTILE: [&str; 18] = [
    "silent",
    "silent-after-tls",
    "idle",
    "slow-head",
    "slow-body",
    "endless-body",
    "slow-reader",
    "reset",
    "reset-after-tls",
    "garbage",
    "malformed",
    "h2-rapid-reset",
    "h2-made-you-reset",
    "h2-continuation",
    "h2-ping",
    "h2-settings",
    "h2-empty-data",
    "h2-zero-window",
];

#[test]
fn beside_hostile_clients_of_every_kind_the_others_have_right_answers_and_the_service_does_not_grow() {
    let _turn = turn();
    // Few at once, since they go behind all others: on a busy machine many would have no turn at all. Even so, a kind may not have one in each run.
    let short = Short::new("hostile-clients").all(&PATIENT).all(&[
        ("connections = 8\n", ONE_CONNECTION),
        ("rate = 300", "rate = 50"),
        ("connections = 1000\n", "connections = 20\n"),
        ("connections = 200\n", "connections = 20\n"),
        ("connections = 5000\n", "connections = 20\n"),
        ("connections = 50\n", "connections = 20\n"),
        ("memory_rise_mib = 16", "memory_rise_mib = 64"),
    ]);
    let mut without_turn = HOSTILE.to_vec();
    for attempt in 1..=ATTEMPTS {
        let Ok(report) = short.attempt(16 * attempt) else { continue };
        report.assert_all_right();
        let made: Vec<_> = report.faults().iter().filter(|fault| fault["error"].is_null()).collect();
        without_turn.retain(|kind| {
            let said = format!("hostile clients, {kind}, at most ");
            !made.iter().any(|fault| fault["what"].as_str().unwrap().starts_with(&said))
        });
        let objectives = report.results["objectives"].as_array().unwrap();
        let grown: Vec<_> = objectives.iter().filter(|judged| judged["limit"] == 64.0).collect();
        assert_eq!(grown.len(), 19, "{grown:?}");
        assert!(grown.iter().all(|judged| judged["passed"] == true || judged["measured"].is_null()), "{grown:?}");
        if without_turn.is_empty() {
            return;
        }
    }
    panic!("in no run had they their turn: {without_turn:?}");
}

#[test]
fn memory_is_measured_with_many_connections_and_keys() {
    let _turn = turn();
    // Making ten thousand keys would be most of it.
    let short = Short::new("connections").all(&PATIENT).all(&[
        ("connections = 1000", "connections = 40"),
        ("count = 10000", "count = 200"),
        ("rate = 300", "rate = 100"),
    ]);
    let report = short.run(2);
    report.assert_all_right();
    assert!(report.phase("steady")["resources"]["descriptors"].as_u64() > Some(40), "{}", report.phase("steady"));
    report.assert_measured("a frontend's resident memory, MiB");
}

#[test]
fn a_day_in_some_seconds_has_its_bursts_and_right_answers_alone() {
    let _turn = turn();
    let report = Short::new("soak")
        .all(&PATIENT)
        .with("count = 100", "count = 5")
        .with("connections = 8\n", ONE_CONNECTION)
        .capacity("100")
        .run(6);
    report.assert_all_right();
    // The night is 10 a second; noon 30, and twice as many for a tenth of it; the afternoon 60.
    let due = |phase: &str| report.phase(phase)["offered_per_s"].as_f64().unwrap();
    assert!(due("night") < due("noon") && due("noon") < due("afternoon"), "{}", report.summary());
    for what in
        ["resident memory above that in noon", "file descriptors above those in noon", "threads above those in noon"]
    {
        report.assert_measured(what);
    }
    assert!(report.held().iter().any(|held| held["workers_mib"].as_f64() > Some(0.0)), "{:?}", report.held());
}
