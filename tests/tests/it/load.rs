//! `ekm-load` against a real service.

use std::path::Path;
use std::process::{Command, Output, Stdio};

use ekm_tests::{Ekm, ekm_binary};
use serde_json::Value;

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

#[test]
fn a_scenario_with_a_rig_of_its_own_has_every_verb_answered_and_a_page_to_show() {
    let directory = tempfile::tempdir().unwrap();
    // Patience, since the machine may be busy with other tests; what is judged is that answers are right.
    let scenario = r#"
        name = "short"
        warm_up_seconds = 0.5
        [client]
        connections = 2
        timeout_ms = 10000
        [rig]
        custody = "software"
        request_deadline_ms = 9000
        [[callers]]
        name = "a"
        count = 3
        [[callers]]
        name = "b"
        share = 1
        [[keys]]
        name = "data"
        count = 2
        zipf = 1.0
        [[keys]]
        name = "signing"
        algorithm = "EC_SIGN_P256_SHA256"
        [[mix]]
        verb = "wrap"
        [[mix]]
        verb = "unwrap"
        [[mix]]
        verb = "sign"
        [[mix]]
        verb = "public-key"
        [[mix]]
        verb = "health-check"
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
    let (file, page) = (written(directory.path(), "short.toml", scenario), directory.path().join("page.html"));
    let output = load(&["run", &file, "--rig", "--output", "json", "--html", page.to_str().unwrap()]);
    let results = json(&output);
    // A machine that is busy with other tests may make the generator late: then nothing is said of the service.
    assert!(matches!(output.status.code(), Some(0 | 3)), "{:?} {}", output.status, results["reasons"]);
    assert_sound(&results);
    assert_eq!(results["phases"].as_array().unwrap().len(), 2);
    assert_eq!(results["verbs"].as_object().unwrap().len(), 5);
    assert!(results["verbs"].as_object().unwrap().values().all(|verb| verb["right_ms"]["count"].as_u64() > Some(0)));
    assert_eq!(results["callers"].as_object().unwrap().len(), 2);
    assert_eq!(results["faults"][0]["what"], "command true");
    assert!(results["faults"][0]["error"].is_null(), "{}", results["faults"]);
    assert!(std::fs::read_to_string(page).unwrap().contains("</html>"));
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
fn three_runs_are_one_result_and_the_service_says_how_fast_it_refuses() {
    let directory = tempfile::tempdir().unwrap();
    let scenario = r#"
        name = "refused"
        warm_up_seconds = 0.5
        [client]
        connections = 2
        timeout_ms = 10000
        [rig]
        custody = "software"
        request_deadline_ms = 9000
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
    let file = written(directory.path(), "refused.toml", scenario);
    let output = load(&["run", &file, "--rig", "--runs", "3", "--output", "json"]);
    let results = json(&output);
    assert!(matches!(output.status.code(), Some(0 | 3)), "{:?} {}", output.status, results["reasons"]);
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
    let directory = tempfile::tempdir().unwrap();
    // Patience and few clients: how fast the others are answered is for `make drill-load` to say, on a machine of its own.
    let mut scenario = r#"
        name = "hostile"
        warm_up_seconds = 0
        [client]
        connections = 2
        timeout_ms = 20000
        [rig]
        custody = "software"
        request_deadline_ms = 19000
        [[mix]]
        verb = "unwrap"
        [[phase]]
        name = "calm"
        seconds = 1
        rate = 50
        [[phase]]
        name = "attack"
        seconds = 5
        rate = 50
        [[objective]]
        phases = ["attack"]
        against = "calm"
        memory_rise_mib = 64
    "#
    .to_owned();
    for kind in HOSTILE {
        let settings = "connections = 3\nopens_per_s = 5\nrate = 50";
        scenario += &format!("\n[[hostile]]\nphase = \"attack\"\nkind = \"{kind}\"\n{settings}\n");
    }
    let file = written(directory.path(), "hostile.toml", &scenario);
    let elsewhere = load(&["run", &file, "--url", "https://localhost:1", "--ca", "none", "--token-file", "none"]);
    let problem = String::from_utf8_lossy(&elsewhere.stderr).into_owned();
    assert!(elsewhere.status.code() == Some(2) && problem.contains("add --hostile"), "{problem}");

    // On a busy machine, a kind may not have got its turn.
    let attempt = || json(&load(&["run", &file, "--rig", "--output", "json"]));
    let had_turns = |results: &Value| results["faults"].as_array().unwrap().iter().all(|done| done["error"].is_null());
    let results = (0..3).map(|_| attempt()).find(had_turns).expect("all kinds had their turn once in three runs");
    for kind in HOSTILE {
        let said = format!("hostile clients, {kind}, at most 3 at once: ");
        let done = results["faults"].as_array().unwrap();
        assert!(done.iter().any(|done| done["what"].as_str().unwrap().starts_with(&said)), "{kind}: {done:?}");
    }
    let counts = results["total"]["counts"].as_object().unwrap();
    assert!(counts["right"].as_u64().unwrap() > 100, "{counts:?}");
    for none in ["wrong", "denied", "failed", "lost", "timeout"] {
        assert!(!counts.contains_key(none), "{none}: {counts:?}");
    }
    let grown = results["objectives"].as_array().unwrap().iter().find(|judged| judged["limit"] == 64.0).unwrap();
    assert_eq!(grown["passed"], true, "{grown}");
    assert!(results["phases"][1]["resources"]["descriptors"].as_u64() > Some(0), "{}", results["phases"][1]);
}
