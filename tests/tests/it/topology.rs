//! `ekm topology`: the way to an EKM, chosen and looked at.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use ekm_tests::{Ekm, FaultProxy, Mode, WebServer, ekm_binary};
use serde_json::{Value, json};

use crate::cli::{Run, finish};

fn topology(arguments: &[&str], files: &Path) -> Run {
    let mut command = Command::new(ekm_binary());
    command.arg("topology").args(arguments).current_dir(files).stdin(Stdio::null()).env("EKM_DEADLINE_MS", "20000");
    finish(command)
}

/// With a good token, and the certificate pinned unless other arguments say otherwise.
fn preflight(ekm: &Ekm, arguments: &[&str]) -> Run {
    let files = ekm.directory.path();
    fs::write(files.join("token"), &ekm.ready.token).unwrap();
    let mut line = vec!["preflight", "--token-file", "token", "--output", "json", "--requests", "3"];
    if !arguments.contains(&"--url") {
        line.extend(["--url", &ekm.ready.base_url]);
    }
    if !arguments.contains(&"--pin-cert") && !arguments.contains(&"--ca-file") {
        line.extend(["--pin-cert", "tls/certificate.pem"]);
    }
    let run = topology(&[&line, arguments].concat(), files);
    assert!(!run.stdout.contains(&ekm.ready.token) && !run.stderr.contains(&ekm.ready.token));
    run
}

fn verdicts(run: &Run) -> Vec<(String, String)> {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let checks = run.json()["checks"].as_array().unwrap().clone();
    checks.iter().map(|check| (text(&check["check"]), text(&check["verdict"]))).collect()
}

fn verdict(run: &Run, id: &str) -> String {
    let all = verdicts(run);
    all.iter().find(|(check, _)| check == id).unwrap_or_else(|| panic!("no {id} in {all:?}")).1.clone()
}

#[test]
fn a_preflight_of_a_healthy_ekm_passes_but_for_the_missing_network() {
    let ekm = Ekm::dev(&[]);
    for options in [&["--pin-cert", "tls/certificate.pem"], &["--ca-file", "tls/certificate.pem"]] {
        let run = preflight(&ekm, options).ends(0);
        let warned: Vec<_> = verdicts(&run).into_iter().filter(|(_, verdict)| verdict != "pass").collect();
        // A machine that does other things may resolve or connect slowly.
        let expected = ["route.source", "name.resolves", "tcp.connect"];
        assert!(warned.iter().all(|(check, _)| expected.contains(&&**check)), "{warned:?}");
        assert_eq!(verdict(&run, "route.source"), "warn");
        assert_eq!(run.json()["checks"].as_array().unwrap().len(), 11, "{:#}", run.json());
    }
    let text = topology(
        &["preflight", "--url", &ekm.ready.base_url, "--token-file", "token", "--pin-cert", "tls/certificate.pem"],
        ekm.directory.path(),
    );
    assert!(text.ends(0).stdout.contains("pass  request.wrap-unwrap"));
}

#[test]
fn a_preflight_tells_another_certificate_from_the_one_that_is_pinned() {
    let (ekm, other) = (Ekm::dev(&[]), Ekm::dev(&[]));
    let run = preflight(&ekm, &["--pin-cert", other.ready.ca_file.to_str().unwrap()]);
    assert_eq!(verdict(&run, "certificate.pin"), "fail");
    let all = verdicts(&run);
    assert!(all.iter().all(|(check, _)| check != "request.wrap-unwrap"), "the token is not sent there: {all:?}");
    run.fails("preflight_failed", "certificate.pin");
    let run = preflight(&ekm, &["--ca-file", other.ready.ca_file.to_str().unwrap()]);
    assert_eq!(verdict(&run, "request.wrap-unwrap"), "fail");
    run.fails("preflight_failed", "request.wrap-unwrap");
}

#[test]
fn a_preflight_names_the_step_that_fails() {
    let ekm = Ekm::dev(&[]);
    let fails = |arguments: &[&str], check: &str| {
        let run = preflight(&ekm, arguments);
        assert_eq!(verdicts(&run).last().unwrap(), &(check.to_owned(), "fail".to_owned()), "{run:?}");
        run.fails("preflight_failed", check);
    };
    fails(&["--url", "https://no-such-host.invalid"], "name.resolves");
    let gone = WebServer::serving("{}").address().to_string();
    fails(&["--address", &gone], "tcp.connect");
    let plain = WebServer::serving("{}");
    fails(&["--address", &plain.address().to_string()], "tls.handshake");
    let silent = FaultProxy::to(ekm.address());
    silent.set(Mode::Stall);
    fails(&["--address", &silent.address().to_string(), "--timeout-ms", "500"], "tls.handshake");
    fails(&["--key", "v0/keys/nobody-has-this"], "request.wrap-unwrap");
}

#[test]
fn a_preflight_says_what_a_refusal_means() {
    let ekm = Ekm::dev(&[]);
    let denied = ekm.issuer().token_with(json!({"email": "somebody@example.com"}));
    let files = ekm.directory.path();
    fs::write(files.join("denied"), denied).unwrap();
    let line =
        ["preflight", "--url", &ekm.ready.base_url, "--token-file", "denied", "--pin-cert", "tls/certificate.pem"];
    let run = topology(&line, files);
    assert!(run.stdout.contains("wrap: 403") && run.stdout.contains("would disable the key version"), "{run:?}");
    run.fails("preflight_failed", "request.wrap-unwrap");
    topology(&["preflight", "--url", "http://localhost", "--token-file", "denied"], files)
        .fails("preflight", "https://");
    fs::write(files.join("empty"), "").unwrap();
    let line = ["preflight", "--url", "https://localhost", "--token-file", "empty"];
    topology(&line, files).fails("preflight", "no ID token");
}

#[test]
fn advice_is_a_table_or_a_document_and_an_error_where_nothing_fits() {
    let files = tempfile::tempdir().unwrap();
    let text = topology(&["advise"], files.path()).ends(0).stdout;
    assert!(text.starts_with("vpc: ") && text.contains("\ndirect    possible  "), "{text}");
    let run = topology(&["advise", "--multi-region", "--internet", "--output", "json"], files.path()).ends(0);
    assert_eq!(run.json()["topology"]["name"], "internet");
    topology(&["advise", "--multi-region"], files.path()).fails("no_topology", "regional only");
}
