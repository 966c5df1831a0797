//! The process: how it starts, stops, and dies.

use std::net::{TcpListener, TcpStream};
use std::sync::Arc;

use ekm_tests::{Connection, Ekm, base64, run_ekm, set_up};
use rustix::process::Signal;
use serde_json::json;

#[test]
fn sigterm_and_sigint_finish_requests_under_way_and_lose_no_audit_line() {
    for (signal, arguments) in [(Signal::TERM, &[][..]), (Signal::INT, &["--softhsm"])] {
        let mut ekm = Ekm::dev(arguments);
        let mut idle = ekm.connect();
        assert_eq!(idle.post("/v0/keys/demo:wrap", &ekm.ready.token, r#"{"plaintext":"AA=="}"#).status, 200);
        let mut busy = ekm.connect();
        let head = format!(
            "POST /v0/keys/demo:wrap HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {}\r\nContent-Type: application/json\r\n\
             Content-Length: 20\r\n\r\n",
            ekm.ready.token
        );
        busy.send(head.as_bytes()).unwrap();
        // The head must be taken as a request before the signal, or the connection counts as idle.
        ekm.eventually("asked for its body", || ekm.metric("ekm_token_cache_total{result=\"hit\"}") >= 1.0);
        ekm.signal(signal);
        assert!(idle.is_closed_within(std::time::Duration::from_secs(30)), "an idle connection is closed");
        busy.send(br#"{"plaintext":"AA=="}"#).unwrap();
        assert_eq!(busy.read_answer().unwrap().status, 200);
        assert!(busy.is_closed_within(std::time::Duration::from_secs(30)), "and then closed, too");
        assert!(ekm.wait().success());
        let codes: Vec<_> = ekm.audit().iter().map(|line| line["code"].clone()).collect();
        assert_eq!(codes, ["ok", "ok"]);
    }
}

/// Load balancers without health checks send connections until nobody takes them any more.
#[test]
fn whoever_has_connected_when_the_end_comes_gets_an_answer_to_his_first_request() {
    let directory = set_up(&[]);
    let times = "handshake_timeout_ms = 60000\ndrain_timeout_ms = 60000\nwatchdog_ms = 60000\n";
    let mut ekm = Ekm::serve(&directory, |config| config + times);
    let silent: Vec<_> = (0..4).map(|_| ekm.connect()).collect();
    ekm.signal(Signal::STOP);
    // The kernel takes connections meanwhile.
    let waiting: Vec<_> = (0..32).map(|_| TcpStream::connect(ekm.address()).unwrap()).collect();
    ekm.signal(Signal::TERM);
    ekm.signal(Signal::CONT);
    let waiting = waiting.into_iter().map(|stream| Connection::over(stream, &ekm.ready.ca_file).unwrap());
    for mut connection in waiting.collect::<Vec<_>>().into_iter().chain(silent) {
        let answer = connection.post("/v0/keys/demo:wrap", &ekm.ready.token, r#"{"plaintext":"AA=="}"#);
        assert_eq!((answer.status, answer.header("connection")), (200, Some("close")));
    }
    assert!(ekm.wait().success());
}

#[test]
fn a_second_signal_ends_a_drain_that_takes_its_time() {
    let directory = set_up(&[]);
    let mut ekm = Ekm::serve(&directory, |config| config + "drain_delay_ms = 3600000\n");
    ekm.signal(Signal::TERM);
    ekm.eventually("draining", || ekm.ops("/readyz").status == 503);
    assert!(ekm.is_running());
    assert_eq!(ekm.wrap(b"x", b"").len() % 4, 0, "requests are still served");
    ekm.signal(Signal::TERM);
    assert_eq!(ekm.wait().code(), Some(130));
}

#[test]
fn a_killed_process_starts_again_with_the_same_keys_and_a_readable_audit_log() {
    let ekm = Ekm::dev(&["--softhsm"]);
    let blob = ekm.wrap(b"x", b"");
    ekm.eventually("audited", || ekm.audit().len() == 1);
    let directory = Arc::clone(&ekm.directory);
    drop(ekm); // SIGKILL
    let again = Ekm::dev_in(&directory, &[]);
    assert_eq!(again.unwrap(&blob, b"").json(), json!({"plaintext": base64("x")}));
    again.eventually("audited", || again.audit().len() == 2);
}

#[test]
fn serve_runs_on_what_dev_has_made() {
    let dev = Ekm::dev(&[]);
    let blob = dev.wrap(b"x", b"");
    let directory = Arc::clone(&dev.directory);
    drop(dev);
    let serve = Ekm::serve(&directory, |config| config);
    assert_eq!(serve.unwrap(&blob, b"").status, 200);
}

#[test]
fn a_second_dev_on_the_same_directory_is_refused() {
    let ekm = Ekm::dev(&[]);
    let output = run_ekm(&["dev", "--data", ekm.directory.path().to_str().unwrap(), "--check"]);
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1));
    assert!(error.starts_with("error[dev_data]: another 'ekm dev' uses"), "{error}");
    assert_eq!(ekm.unwrap(&ekm.wrap(b"x", b""), b"").status, 200, "the first one goes on");
}

#[test]
fn a_lost_configuration_or_certificate_is_made_again_and_costs_no_key() {
    for arguments in [&[][..], &["--softhsm"]] {
        let first = Ekm::dev(arguments);
        let blob = first.wrap(b"kept", b"");
        let directory = Arc::clone(&first.directory);
        drop(first);
        std::fs::remove_file(directory.path().join("ekm.toml")).unwrap();
        std::fs::remove_file(directory.path().join("tls/certificate.pem")).unwrap();
        let again = Ekm::dev_in(&directory, &[]);
        assert_eq!(again.unwrap(&blob, b"").json(), json!({"plaintext": base64("kept")}));
    }
}

#[test]
fn an_address_in_use_is_named() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let directory = tempfile::tempdir().unwrap();
    let output = run_ekm(&["dev", "--data", directory.path().to_str().unwrap(), "--listen", &address]);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(error.starts_with(&format!("error[listen]: cannot listen on {address}")), "{error}");
}

#[test]
fn the_process_leaves_no_core_dump_and_cannot_be_looked_into() {
    let ekm = Ekm::dev(&[]);
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", ekm.pid())).unwrap();
    let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
    assert_eq!(core.split_whitespace().nth(4), Some("0"), "{core}");
    // A process that is not dumpable has its /proc files owned by root, whoever runs it; as root, its memory maps tell.
    let maps = std::fs::read_to_string(format!("/proc/{}/smaps", ekm.pid())).unwrap_or_default();
    let locked =
        maps.lines().filter(|line| line.starts_with("VmFlags:") && line.contains(" lo ") && line.contains(" dd "));
    assert!(maps.is_empty() || locked.count() >= 2, "key material is in locked memory that is not dumped");
}
