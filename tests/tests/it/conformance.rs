//! The conformance suite: a service of ours passes it, and servers that only look like an EKM do not.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use ekm_tests::{
    Custody, Directory, Ekm, FAKE_TOKEN, Flaw, WebServer, conformance_report, ekm_binary, serve_fake_ekm, set_up,
};
use serde_json::{Value, json};

use crate::cli::{Run, finish};

fn conformance(url: &str, files: &Path, arguments: &[&str]) -> Run {
    let mut command = Command::new(ekm_binary());
    command.args(["conformance", "--url", url, "--token-file", "token", "--timeout-ms", "20000"]).args(arguments);
    command.current_dir(files).stdin(Stdio::null()).env("EKM_DEADLINE_MS", "20000");
    finish(command)
}

/// The verdict of a check.
fn verdict<'a>(report: &'a Value, id: &str) -> &'a str {
    let found = report["checks"].as_array().unwrap().iter().find(|check| check["id"] == id);
    found.unwrap_or_else(|| panic!("there is no check {id}"))["verdict"].as_str().unwrap()
}

#[test]
fn a_service_of_ours_conforms_in_either_custody_as_the_documentation_says() {
    let reports: BTreeMap<_, _> = Custody::ALL.into_iter().map(|custody| (custody, custody.check())).collect();
    for report in reports.values() {
        for check in report["checks"].as_array().unwrap() {
            assert_ne!(check["verdict"], "fail", "{check:#}");
            assert!(
                check["verdict"] != "skipped" || check["method"].as_str().unwrap().contains("onfidential"),
                "{check:#}"
            );
        }
        assert!(report["summary"]["passed"].as_u64().unwrap() >= 100, "{}", report["summary"]);
    }
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("docs/conformance-report.md");
    let found = conformance_report(&reports);
    if std::env::var_os("EKM_UPDATE_GOLDEN").is_some() {
        fs::write(&file, &found).unwrap();
    }
    assert_eq!(
        fs::read_to_string(&file).unwrap(),
        found,
        "run it with EKM_UPDATE_GOLDEN=1, and look at what has changed"
    );
}

#[test]
fn the_report_of_a_few_checks_is_readable() {
    let ekm = Ekm::dev(&[]);
    let files = tempfile::tempdir().unwrap();
    fs::write(files.path().join("token"), ekm.issuer().token()).unwrap();
    let options = ["--certificate", ekm.ready.ca_file.to_str().unwrap()];
    let text = conformance(&ekm.ready.base_url, files.path(), &options).ends(0).stdout;
    assert!(text.contains("pass     wrap.answers ") && text.contains(" passed, 0 failed, "), "{text}");
    let chosen = [&options[..], &["--only", "unwrap.aad", "--output", "json"]].concat();
    let chosen = conformance(&ekm.ready.base_url, files.path(), &chosen).ends(0).json();
    assert_eq!(chosen["checks"].as_array().unwrap().len(), 2);
    ekm.assert_not_leaked(&[&ekm.issuer().token()]);
}

#[test]
fn a_server_that_answers_the_same_to_everybody_does_not_conform() {
    let directory = set_up(&[]);
    let answer = json!({"wrappedBlob": "c2FtZQ==", "plaintext": "ZGF0YSBrZXk="});
    let server = WebServer::serving_tls(&answer.to_string(), directory.path());
    let url = format!("https://localhost:{}", server.address().port());
    fs::write(directory.path().join("token"), "a.b.c").unwrap();
    let options = ["--ca-file", "tls/certificate.pem"];
    let report = [&options[..], &["--output", "json"]].concat();
    let run = conformance(&url, directory.path(), &report).ends(1);
    let json = run.json();
    run.fails("not_conformant", "authentication.missing");
    for (id, expected) in [
        ("authentication.valid", "pass"),
        ("authentication.missing", "fail"),
        ("authentication.expired", "skipped"),
        ("wrap.answers", "pass"),
        ("wrap.fresh", "differs"),
        ("wrap.missing", "fail"),
        ("wrap.unknown-key", "fail"),
        ("unwrap.aad", "pass"),
        ("unwrap.round-trip", "fail"),
        ("unwrap.changed", "fail"),
        ("unwrap.other-aad", "fail"),
    ] {
        assert_eq!(verdict(&json, id), expected, "{id}");
    }
    // What is a choice of ours fails nobody, unless asked to.
    let lenient = ["--only", "wrap.fresh", "--only", "wrap.answers"];
    conformance(&url, directory.path(), &[&options[..], &lenient].concat()).ends(0);
    let strict = [&options[..], &lenient, &["--strict"]].concat();
    conformance(&url, directory.path(), &strict).fails("not_conformant", "wrap.fresh");
    // And where nothing passes, nothing is proven.
    let nothing = [&options[..], &["--only", "wrap.fresh"]].concat();
    conformance(&url, directory.path(), &nothing).fails("not_conformant", "no check passed");
}

#[test]
fn a_suite_that_cannot_begin_says_why() {
    let ekm = Ekm::dev(&[]);
    let files = ekm.directory.path();
    fs::write(files.join("token"), &ekm.ready.token).unwrap();
    let url = &ekm.ready.base_url;
    let run = |arguments: &[&str]| conformance(url, files, arguments);
    run(&[]).fails("conformance", "TLS");
    let other = set_up(&[]);
    let other = other.path().join("tls/certificate.pem");
    run(&["--ca-file", other.to_str().unwrap()]).fails("conformance", "TLS");
    run(&["--certificate", other.to_str().unwrap()]).fails("conformance", "none of those pinned");
    run(&["--ca-file", "token"]).fails("conformance", "no certificate in it");
    run(&["--ca-file", "tls/certificate.pem", "--only", "wrp"]).fails("conformance", "no check's id begins with wrp");
    run(&["--ca-file", "tls/certificate.pem", "--denied-token-file", "none"]).fails("conformance", "cannot read none");
    conformance("http://localhost", files, &[]).fails("conformance", "write https://host:port");
    // As over a connection: the name is one thing, where it is another.
    let address = ekm.address().to_string();
    let pinned = ["--certificate", "tls/certificate.pem", "--address", &address, "--only", "wrap.answers"];
    conformance("https://localhost", files, &pinned).ends(0);
}

/// What fails, or differs, of an EKM of another vendor that has every method.
fn what_fails_of_a_fake_one(flaw: Option<Flaw>, directory: &Directory, only: &[&str]) -> (i32, Vec<String>) {
    let server = serve_fake_ekm(flaw, directory.path());
    fs::write(directory.path().join("token"), FAKE_TOKEN).unwrap();
    let url = format!("https://localhost:{}", server.address().port());
    let mut options =
        vec!["--ca-file", "tls/certificate.pem", "--key-path", "v0/keys/a", "--other-key-path", "v0/keys/b"];
    options.extend(["--sign-key-path", "v0/keys/s", "--crypto-space", "v0/cryptospaces/c", "--output", "json"]);
    options.extend(only.iter().flat_map(|id| ["--only", id]));
    let run = conformance(&url, directory.path(), &options);
    let report = run.json();
    let checks = report["checks"].as_array().unwrap().iter();
    let missed = checks.filter(|check| ["fail", "differs"].contains(&check["verdict"].as_str().unwrap()));
    (run.code(), missed.map(|check| check["id"].as_str().unwrap().to_owned()).collect())
}

#[test]
fn every_method_of_another_vendors_ekm_is_asked() {
    let directory = set_up(&[]);
    let methods =
        ["get-public-key", "sign", "crypto-space", "create-key", "destroy-key", "get-info", "unwrap.kind", "wrap.kind"];
    // It takes data only, which is a choice.
    assert_eq!(what_fails_of_a_fake_one(None, &directory, &methods), (0, vec!["sign.digest".to_owned()]));
}

#[test]
fn every_flaw_is_found_by_the_check_that_is_about_it() {
    let directory = set_up(&[]);
    for (flaw, fatal, found) in [
        (Flaw::CreatesTwice, true, "create-key.again"),
        (Flaw::DestroysOnce, true, "destroy-key.again"),
        (Flaw::KeepsWhatItDestroys, true, "destroy-key.wraps-no-more"),
        (Flaw::GivesPathsAgain, true, "destroy-key.path-stays-taken"),
        (Flaw::SignsSomethingElse, true, "sign.answers"),
        (Flaw::ShowsABarePoint, true, "get-public-key.answers"),
        (Flaw::LetsEverybodyIn, true, "authentication.missing"),
        (Flaw::HoldsEveryPermission, false, "crypto-space.unknown-permission"),
        (Flaw::HasOneKey, true, "create-key.separate"),
        (Flaw::HasOneKey, true, "unwrap.other-key"),
        (Flaw::IsAnOracle, false, "unwrap.no-oracle"),
    ] {
        let sound = what_fails_of_a_fake_one(None, &directory, &[found, "wrap.answers"]);
        assert_eq!(sound, (0, Vec::new()), "{found}");
        let flawed = what_fails_of_a_fake_one(Some(flaw), &directory, &[found, "wrap.answers"]);
        assert_eq!(flawed, (i32::from(fatal), vec![found.to_owned()]), "{flaw:?}");
    }
}
