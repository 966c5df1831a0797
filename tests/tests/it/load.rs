//! `ekm-load` against a real service.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use ekm_tests::{Ekm, ekm_binary};
use serde_json::Value;

fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

fn scenarios() -> PathBuf {
    repository().join("loadtest/scenarios")
}

fn load(arguments: &[&str]) -> Output {
    run("ekm-load", arguments)
}

fn run(program: &str, arguments: &[&str]) -> Output {
    let program = ekm_binary().with_file_name(program);
    Command::new(program).args(arguments).stdin(Stdio::null()).output().unwrap()
}

fn json(output: &Output) -> Value {
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|_| panic!("{} {}", text(&output.stdout), text(&output.stderr)))
}

fn written(directory: &Path, name: &str, text: &str) -> String {
    let file = directory.join(name);
    std::fs::write(&file, text).unwrap();
    file.to_str().unwrap().to_owned()
}

/// What holds of every run, on however slow a machine.
fn assert_sound(results: &Value) {
    let (total, due) = (&results["total"], results["total"]["arrivals"].as_u64().unwrap());
    assert!((150..=500).contains(&due), "three seconds at 100 a second: {total}");
    let counts = total["counts"].as_object().unwrap();
    assert_eq!(counts.values().map(|count| count.as_u64().unwrap()).sum::<u64>(), due, "{total}");
    assert!(counts["right"].as_u64().unwrap() > due / 2, "{total}");
    for none in ["wrong", "denied", "lost"] {
        assert!(!counts.contains_key(none), "{total}");
    }
    assert!(total["right_ms"]["p50"].as_f64().unwrap() > 0.0, "{total}");
}

/// How a scenario begins whose rig is quickly started. It is patient, since the machine may be busy with other tests: what is judged is that
/// answers are right.
const BEGINNING: &str = r#"
    name = "short"
    warm_up_seconds = 0.5
    [client]
    connections = 2
    timeout_ms = 10000
    [rig]
    custody = "software"
    request_deadline_ms = 9000
"#;

#[test]
fn a_fault_may_be_a_command_and_a_result_is_no_better_and_no_worse_than_itself() {
    let directory = tempfile::tempdir().unwrap();
    let scenario = r#"
        [[mix]]
        verb = "wrap"
        [[phase]]
        name = "one"
        seconds = 1.5
        rate = 100
        [[phase]]
        name = "two"
        seconds = 1.5
        rate = 50
        ramp_to = 150
        [[fault]]
        phase = "two"
        command = ["true"]
        [[objective]]
        success_percent = 50
    "#;
    let file = written(directory.path(), "short.toml", &format!("{BEGINNING}{scenario}"));
    let output = load(&["run", &file, "--rig", "--output", "json"]);
    let results = json(&output);
    // A machine that is busy with other tests may make the generator late: then nothing is said of the service.
    assert!(matches!(output.status.code(), Some(0 | 3)), "{:?} {}", output.status, results["reasons"]);
    assert_sound(&results);
    assert_eq!(results["faults"][0]["what"], "command true");
    assert!(results["faults"][0]["error"].is_null(), "{}", results["faults"]);
    let result = written(directory.path(), "result.json", &String::from_utf8_lossy(&output.stdout));
    let compared = load(&["compare", &result, &result, "--tolerate", "0"]);
    assert!(compared.status.success() && String::from_utf8_lossy(&compared.stdout).contains("all phases: p99 ms"));
}

#[test]
fn a_service_that_is_there_is_asked_over_http1_and_what_is_missed_is_exit_code_1() {
    let (ekm, directory) = (Ekm::dev(&[]), tempfile::tempdir().unwrap());
    let scenario = r#"
        name = "there"
        warm_up_seconds = 0
        [client]
        protocol = "http1"
        connections = 4
        timeout_ms = 10000
        [[keys]]
        name = "demo"
        path = "v0/keys/demo"
        [[mix]]
        verb = "unwrap"
        [[phase]]
        name = "one"
        seconds = 3
        rate = 100
        [[objective]]
        accepted_p50_ms = 0.0001
    "#;
    let file = written(directory.path(), "there.toml", scenario);
    let (token, ca) = (written(directory.path(), "token", &ekm.ready.token), ekm.ready.ca_file.to_str().unwrap());
    let there = ["--url", &ekm.ready.base_url, "--ca", ca];
    let issuer_key = ekm.directory.path().join("issuer/private-key.pem");
    for tokens in [["--token-file", &token], ["--issuer-key", issuer_key.to_str().unwrap()]] {
        let output = load(&[&["run", &file, "--output", "json"], &tokens[..], &there[..]].concat());
        let results = json(&output);
        assert_sound(&results);
        assert!(matches!(output.status.code(), Some(1 | 3)), "{:?} {}", output.status, results["reasons"]);
        let missed = results["objectives"].as_array().unwrap().iter().filter(|judged| judged["passed"] == false);
        assert_eq!(missed.count(), 1, "{}", results["objectives"]);
        assert!(!String::from_utf8_lossy(&output.stdout).contains(&ekm.ready.token));
    }

    let denied = written(directory.path(), "no-token", "no token");
    let output = load(&[&["run", &file, "--token-file", &denied], &there[..]].concat());
    let problem = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.code() == Some(2) && problem.contains("a wrap before the start: 401"), "{problem}");
}

#[test]
fn hostile_clients_are_let_loose_on_a_service_elsewhere_only_if_it_is_said() {
    let file = scenarios().join("hostile-clients.toml").to_str().unwrap().to_owned();
    let elsewhere = load(&["run", &file, "--url", "https://localhost:1", "--ca", "none", "--token-file", "none"]);
    let problem = String::from_utf8_lossy(&elsewhere.stderr).into_owned();
    assert!(elsewhere.status.code() == Some(2) && problem.contains("add --hostile"), "{problem}");
}

/// `make drill-load` with a program in the place of `ekm-load` that ends as it is told; whether it was passed, what it said, and what was run.
fn drill_load(directory: &Path, ends: &str, variables: &[&str]) -> (bool, String, Vec<String>) {
    let program = written(directory, "ekm-load.sh", &format!("echo \"$@\" >> {}/calls\n{ends}", directory.display()));
    let mut make = Command::new("make");
    // This may be run by make itself, whose variables are for another target.
    ["MAKEFLAGS", "MAKELEVEL", "MFLAGS", "RUNS", "SECONDS"].into_iter().for_each(|name| _ = make.env_remove(name));
    make.current_dir(repository()).args(["--silent", "--old-file=build-load", "drill-load"]).args(variables);
    make.arg(format!("EKM_LOAD=sh {program}")).arg(format!("REPORTS={}", directory.display()));
    let output = make.stdin(Stdio::null()).output().unwrap();
    let calls = std::fs::read_to_string(directory.join("calls")).unwrap();
    std::fs::remove_file(directory.join("calls")).unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    (output.status.success(), said, calls.lines().map(str::to_owned).collect())
}

#[test]
fn one_command_runs_every_scenario_whatever_comes_of_one_and_names_those_that_were_not_passed() {
    let temporary = tempfile::tempdir().unwrap();
    let directory = temporary.path();
    let files = std::fs::read_dir(scenarios()).unwrap().map(|file| file.unwrap().path());
    let names: BTreeSet<_> = files.map(|file| file.file_stem().unwrap().to_str().unwrap().to_owned()).collect();
    let call = |name: &str, options: &str| {
        let pin = if name == "hostile-clients" { "" } else { "--pin " };
        format!("run loadtest/scenarios/{name}.toml --rig {pin}{options} --html {}/{name}.html", directory.display())
    };

    let ends = "case $2 in */overload.toml) exit 1;; */steady.toml) exit 3;; */soak.toml) exit 2;; esac";
    let (passed, said, calls) = drill_load(directory, ends, &["RUNS=1", "SECONDS=2"]);
    assert!(!passed && said.ends_with("not passed: overload steady soak\n"), "{said}");
    let expected = names.iter().map(|name| call(name, "--runs 1 --seconds 2"));
    assert_eq!(calls.len(), names.len(), "{calls:?}");
    assert_eq!(BTreeSet::from_iter(calls), expected.collect());

    let (passed, said, calls) = drill_load(directory, "exit 0", &[]);
    assert!(passed && !said.contains("not passed"), "{said}");
    let runs = |name: &String| if name == "soak" { "--runs 1" } else { "--runs 3" };
    let expected = names.iter().map(|name| call(name, runs(name)));
    assert_eq!(BTreeSet::from_iter(calls), expected.collect());
}

#[test]
fn three_runs_are_one_result_and_the_service_says_how_fast_it_refuses() {
    let directory = tempfile::tempdir().unwrap();
    let scenario = r#"
        config = "caller_requests_per_s = 10"
        [[mix]]
        verb = "wrap"
        [[phase]]
        name = "flood"
        seconds = 1.5
        rate = 100
        [[objective]]
        refusal_p999_ms = 100000
    "#;
    let file = written(directory.path(), "refused.toml", &format!("{BEGINNING}{scenario}"));
    let output = load(&["run", &file, "--rig", "--pin", "--runs", "3", "--output", "json"]);
    if std::thread::available_parallelism().unwrap().get() == 1 {
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(2) && said.contains("run it without --pin"), "{said}");
        return;
    }
    let results = json(&output);
    assert!(matches!(output.status.code(), Some(0 | 3)), "{:?} {}", output.status, results["reasons"]);
    let target = results["conditions"]["target"].as_str().unwrap();
    assert!(target.ends_with("the generator on cores of its own"), "{target}");
    let several = &results["several"];
    assert_eq!(several["runs"], 3, "{several}");
    for range in several["ranges"].as_array().unwrap() {
        let [least, median, most] = ["least", "median", "most"].map(|what| range[what].as_f64().unwrap());
        assert!(least <= median && median <= most, "{range}");
    }
    let (refused, counts) = (&results["refused_in_service"]["flood"], &results["total"]["counts"]);
    assert!(
        refused["count"].as_u64().unwrap() > 20 && refused["p999_ms"].as_f64().unwrap() > 0.0,
        "{refused} {counts}"
    );
    let objectives = results["objectives"].as_array().unwrap();
    let judged = objectives.iter().find(|judged| judged["limit"] == 100_000.0).unwrap();
    assert!(judged["passed"] == true && judged["measured"].as_f64().unwrap() > 0.0, "{judged}");

    let even = load(&["run", &file, "--rig", "--runs", "2"]);
    assert_eq!((even.status.code(), String::from_utf8_lossy(&even.stderr).contains("--runs is odd")), (Some(2), true));
}

#[test]
fn the_price_of_a_request_is_told_with_the_floors_and_softhsms_shares_of_it() {
    let output = run("ekm-bench", &["--custody", "softhsm", "--seconds", "0.5", "--repeat", "1", "--output", "json"]);
    let rows = json(&output);
    assert_eq!(rows.as_array().unwrap().len(), 6, "three verbs over two protocols: {rows}");
    for row in rows.as_array().unwrap() {
        let number = |name: &str| row[name].as_f64().unwrap();
        let (total, floor) = (number("server_cpu_us"), number("floor_cpu_us"));
        assert!((number("requests_per_cpu_s") * total / 1e6 - 1.0).abs() < 0.01, "{row}");
        if row["verb"] == "asymmetricSign" {
            assert!(row["device_cpu_us"].is_null() && row["above_floor_and_device_us"].is_null(), "{row}");
            continue;
        }
        let device = number("device_cpu_us");
        assert!(device > 0.0 && device < total, "{row}");
        assert!((number("above_floor_and_device_us") - (total - floor - device)).abs() < 0.01, "{row}");
    }
}

#[test]
fn where_there_is_no_device_none_is_measured_and_what_is_above_the_floor_is_told() {
    let output = run("ekm-bench", &["--custody", "software", "--seconds", "0.2", "--repeat", "1", "--output", "json"]);
    let rows = json(&output);
    for row in rows.as_array().unwrap() {
        let number = |name: &str| row[name].as_f64().unwrap();
        assert!(row["device_cpu_us"].is_null(), "{row}");
        let above = number("server_cpu_us") - number("floor_cpu_us");
        assert!((number("above_floor_and_device_us") - above).abs() < 0.01, "{row}");
    }
    assert_eq!(rows.as_array().unwrap().len(), 6, "three verbs over two protocols: {rows}");
}
