//! The command line and the configuration file.

use std::fs;
use std::path::Path;

use ekm_tests::{Ekm, run_ekm, set_up};

fn deploy(file: &str) -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/config").join(file).to_str().unwrap().to_owned()
}

fn output(arguments: &[&str]) -> (Option<i32>, String, String) {
    let output = run_ekm(arguments);
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

#[test]
fn check_config_says_fine_or_where_and_what() {
    let small = deploy("small.toml");
    let (code, stdout, stderr) = output(&["check-config", &small]);
    assert_eq!((code, &*stderr), (Some(0), ""));
    assert!(stdout.starts_with(&format!("{small}: fine (profile small)")), "{stdout}");
    let directory = tempfile::tempdir().unwrap();
    let wrong = directory.path().join("wrong.toml");
    fs::write(&wrong, fs::read_to_string(&small).unwrap().replace("token_label", "token_lable")).unwrap();
    let (code, stdout, stderr) = output(&["check-config", wrong.to_str().unwrap()]);
    assert_eq!((code, &*stdout), (Some(1), ""));
    assert!(stderr.starts_with("error[config]: unknown field `token_lable`"), "{stderr}");
    assert!(stderr.contains("wrong.toml:") && stderr.contains("= help: did you mean 'token_label'?"), "{stderr}");
    let (code, _, stderr) = output(&["check-config", "/does/not/exist.toml"]);
    assert!(code == Some(1) && stderr.starts_with("error[config]: cannot read /does/not/exist.toml"), "{stderr}");
}

#[test]
fn the_effective_configuration_is_a_configuration() {
    let directory = tempfile::tempdir().unwrap();
    let effective = directory.path().join("effective.toml");
    let (code, stdout, _) = output(&["check-config", "--print-effective", &deploy("small.toml")]);
    assert_eq!(code, Some(0));
    assert!(stdout.contains("idle_timeout_s = 75"), "{stdout}");
    fs::write(&effective, stdout).unwrap();
    assert_eq!(output(&["check-config", effective.to_str().unwrap()]).0, Some(0));
}

#[test]
fn a_wrong_command_line_is_exit_code_2_and_says_what_there_is() {
    for arguments in [
        &["srve"][..],
        &["dev", "--lisen", "x"],
        &["dev", "--listen", "localhost"],
        &["serve"],
        &["key", "list", "--output", "xml"],
    ] {
        let (code, stdout, stderr) = output(arguments);
        assert_eq!((code, &*stdout), (Some(2), ""), "{arguments:?}");
        assert!(stderr.starts_with("error: "), "{stderr}");
    }
}

#[test]
fn every_command_explains_itself() {
    for (arguments, words) in [
        (&["--help"][..], "Begin with 'ekm dev'"),
        (&["dev", "--help"], "--softhsm"),
        (&["dev", "token", "--help"], "--audience"),
        (&["serve", "--help"], "SIGHUP"),
        (&["check-config", "--help"], "--print-effective"),
        (&["key", "--help"], "add-path"),
        (&["key", "create", "--help"], "--policy"),
    ] {
        let (code, stdout, _) = output(arguments);
        assert_eq!(code, Some(0));
        assert!(stdout.contains(words), "{arguments:?}: {stdout}");
    }
}

#[test]
fn serve_refuses_a_deadline_chain_that_contradicts_itself() {
    let directory = set_up(&["--softhsm"]);
    let config = directory.path().join("ekm.toml");
    let text = fs::read_to_string(&config).unwrap().replace("deadline_ms = 60", "deadline_ms = 100");
    fs::write(&config, text).unwrap();
    let (code, _, stderr) = output(&["serve", "--config", config.to_str().unwrap()]);
    assert_eq!(code, Some(1));
    assert!(
        stderr.contains("a shard's deadline_ms must be shorter than limits.request_deadline_ms, which is 100"),
        "{stderr}"
    );
}

#[test]
fn errors_come_in_an_envelope_if_asked_for() {
    let directory = set_up(&[]);
    let ekm = Ekm::serve(&directory, |config| {
        config.replace("[server]", "[server]\nerror_envelope = true\nhosts = [\"localhost\"]")
    });
    assert_eq!(ekm.post("/v0/keys/none:wrap", r#"{"plaintext":"AA=="}"#).json()["error"]["code"], 5);
    let headers = format!("Authorization: Bearer {}\r\n", ekm.ready.token);
    let foreign =
        format!("POST /v0/keys/demo:wrap HTTP/1.1\r\nHost: other.example\r\n{headers}Content-Length: 0\r\n\r\n");
    assert_eq!(ekm.connect().request(&foreign).status, 421);
}
