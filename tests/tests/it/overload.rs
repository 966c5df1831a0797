//! More than can be done: who is refused, how, and how fast it is over. What it costs under load is measured by `ekm-load`.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Command;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use ekm_tests::{Answer, Deployment, Effect, Ekm, Fault, FaultyModule, SOFTHSM, base64, set_up};
use rustix::process::Signal;

const WRAP: &str = "/v0/keys/demo:wrap";
const UNWRAP: &str = "/v0/keys/demo:unwrap";

/// A service with one HSM of two sessions that takes so long for each call.
fn slow_hsm(ms: f64, edit: impl Fn(String) -> String) -> (Ekm, FaultyModule) {
    let directory = set_up(&["--softhsm"]);
    let module = FaultyModule::new(&directory.path().join("device"), Path::new(SOFTHSM));
    let path = module.path();
    let ekm = Ekm::serve(&directory, |config| {
        let config = config.replace(&format!("module = {SOFTHSM:?}"), &format!("module = {path:?}\nsessions = 2"));
        let config = config.replace("request_deadline_ms = 20000", "request_deadline_ms = 2000");
        edit(config.replace("\ndeadline_ms = 60", "\ndeadline_ms = 1500"))
    });
    module.inject(Fault::new(Effect::Device { ms, at_once: 2 }));
    (ekm, module)
}

/// The answers to two verbs that `callers` ask for, all the time and all at once.
fn rush(ekm: &Ekm, callers: usize, length: Duration) -> [Vec<Answer>; 2] {
    let blob = ekm.wrap(b"x", b"");
    let bodies =
        [(WRAP, format!(r#"{{"plaintext":"{}"}}"#, base64("x"))), (UNWRAP, format!(r#"{{"wrappedBlob":"{blob}"}}"#))];
    let answers: [Mutex<Vec<Answer>>; 2] = Default::default();
    std::thread::scope(|scope| {
        for caller in 0..callers {
            let (verb, end) = (caller % 2, Instant::now() + length);
            let ((target, body), answers) = (&bodies[verb], &answers[verb]);
            scope.spawn(move || {
                let mut connection = ekm.connect();
                while Instant::now() < end {
                    let answer = connection.post(target, &ekm.ready.token, body);
                    if answer.status != 200 {
                        std::thread::sleep(Duration::from_millis(20));
                    }
                    answers.lock().unwrap().push(answer);
                }
            });
        }
    });
    answers.map(|answers| answers.into_inner().unwrap())
}

fn shed(ekm: &Ekm) -> f64 {
    ekm.metric("ekm_shard_shed_total{how=\"refused\",shard=\"main\"}")
}

#[test]
fn what_the_hsm_cannot_do_in_time_is_refused_at_once_and_wraps_before_unwraps() {
    let (ekm, module) = slow_hsm(50.0, |config| config);
    let [wraps, unwraps] = rush(&ekm, 60, Duration::from_secs(4));
    let count = |answers: &[Answer], status| answers.iter().filter(|answer| answer.status == status).count();
    // On a machine that does not keep up with the test itself, that comes on top.
    let is_busy = |answer: &Answer| answer.message().ends_with("[frontend_busy]");
    for answer in wraps.iter().chain(&unwraps).filter(|answer| answer.status != 200 && !is_busy(answer)) {
        assert_eq!((answer.status, answer.header("retry-after")), (429, Some("1")), "{}", answer.text());
        assert_eq!(answer.json()["details"][0]["retryDelay"], "0.05s", "{}", answer.text());
        assert!(answer.message().ends_with("[overloaded]"), "{}", answer.text());
    }
    let (done, refused) = (count(&unwraps, 200), count(&unwraps, 429));
    assert!(done > 20 && done > 2 * count(&wraps, 200), "{done} unwraps, {} wraps", count(&wraps, 200));
    assert!(refused + count(&wraps, 429) > 100 && shed(&ekm) > 100.0);
    assert!(ekm.state().contains("operations under way in 2 sessions"), "{}", ekm.state());
    let timed = |reason: &str| ekm.metric(&format!("ekm_refusal_seconds_count{{reason=\"{reason}\"}}"));
    assert!(timed("overloaded") > 100.0);
    assert_eq!(timed("overloaded") + timed("waited"), (refused + count(&wraps, 429)) as f64, "each 429 is timed, once");

    // Nobody who was refused has cost the HSM anything: it is not blamed, and when the rush is over it is as if nothing had been.
    let before = shed(&ekm);
    module.inject(Fault::new(Effect::Device { ms: 0.0, at_once: 2 }));
    ekm.wrap(b"x", b"");
    assert_eq!((shed(&ekm), ekm.ops("/readyz").status), (before, 200));
    let line = ekm.audit().into_iter().find(|line| line["code"] == "overloaded").unwrap();
    assert_eq!((&line["status"], &line["hsm_device_us"]), (&429.into(), &0.into()), "{line}");
}

#[test]
fn overload_is_503_where_load_balancers_take_429_for_something_else() {
    let edit = |config: String| {
        config
            .replace("[server]", "[server]\noverload_status = 503\nerror_envelope = true")
            .replace("\ndeadline_ms = 1500", "\nqueue_length = 1\ndeadline_ms = 1500")
    };
    let (ekm, _module) = slow_hsm(50.0, edit);
    let [wraps, _] = rush(&ekm, 40, Duration::from_secs(2));
    let refused = wraps.iter().find(|answer| answer.status != 200).expect("some of them are");
    assert_eq!((refused.status, &refused.json()["error"]["code"]), (503, &14.into()), "{}", refused.text());
}

#[test]
fn a_caller_has_his_rate_and_sighup_gives_him_another_and_takes_over_what_it_can() {
    let directory = set_up(&[]);
    let ekm = Ekm::serve(&directory, |config| config + "caller_requests_per_s = 1\n");
    let mut connection = ekm.connect();
    let mut statuses = |count: usize| {
        (0..count).map(|_| connection.post(WRAP, &ekm.ready.token, r#"{"plaintext":"AA=="}"#).status).collect()
    };
    let first: Vec<_> = statuses(4);
    assert_eq!(
        (first[..2].to_vec(), first.contains(&429)),
        (vec![200, 200], true),
        "two seconds' worth at once: {first:?}"
    );
    let refused = first.iter().filter(|status| **status == 429).count();
    assert_eq!(ekm.metric("ekm_refusal_seconds_count{reason=\"caller_rate\"}"), refused as f64);

    let file = directory.path().join("serve.toml");
    let config = fs::read_to_string(&file).unwrap();
    fs::write(&file, config.replace("caller_requests_per_s = 1", "caller_requests_per_s = \"x\"")).unwrap();
    ekm.signal(Signal::HUP);
    ekm.eventually("refused", || ekm.log().contains("the configuration was not read again"));

    let more = config.replace("caller_requests_per_s = 1\n", "max_connections = 77\n");
    fs::write(&file, more.replace("service-*@", "nobody-*@")).unwrap();
    ekm.signal(Signal::HUP);
    ekm.eventually("said", || ekm.log().contains("limits.max_connections"));
    ekm.eventually("taken over", || ekm.post(WRAP, r#"{"plaintext":"AA=="}"#).status == 403);

    fs::write(&file, &more).unwrap();
    ekm.signal(Signal::HUP);
    ekm.eventually("back", || ekm.post(WRAP, r#"{"plaintext":"AA=="}"#).status == 200);
    let many: Vec<u16> = statuses(50);
    assert_eq!(many, [200; 50], "no rate any more");
}

#[test]
fn the_clock_of_a_request_begins_with_its_first_byte_and_what_is_too_late_is_not_sent() {
    let ekm =
        Ekm::serve(&set_up(&[]), |config| config.replace("request_deadline_ms = 20000", "request_deadline_ms = 200"));
    let mut connection = ekm.connect();
    connection.send(b"POST /v0/keys/demo:wrap HTTP/1.1\r\n").unwrap();
    std::thread::sleep(Duration::from_millis(1000)); // less than header_timeout_ms
    let rest = format!(
        "Host: localhost\r\nAuthorization: Bearer {}\r\nContent-Type: application/json\r\nContent-Length: 20\r\n\r\n{{\"plaintext\":\"AA==\"}}",
        ekm.ready.token
    );
    connection.send(rest.as_bytes()).unwrap();
    assert!(connection.is_closed_within(Duration::from_secs(20)), "no answer, and no connection");
    ekm.eventually("audited", || ekm.audit().len() == 1);
    let line = &ekm.audit()[0];
    assert_eq!((line["status"].as_u64(), line["code"].as_str()), (None, Some("deadline_exceeded")), "{line}");
    assert!(line["head_us"].as_u64() >= Some(500_000) && line["total_us"].as_u64() >= Some(500_000), "{line}");
    ekm.eventually("served", || ekm.post(WRAP, r#"{"plaintext":"AA=="}"#).status == 200);
}

#[test]
fn an_old_connection_is_closed_behind_an_answer_and_no_request_is_lost() {
    let ekm = Ekm::serve(&set_up(&[]), |config| config + "max_connection_age_s = 3\n");
    let mut connection = ekm.connect();
    let mut post = || connection.post(WRAP, &ekm.ready.token, r#"{"plaintext":"AA=="}"#);
    assert_eq!(post().header("connection"), None);
    std::thread::sleep(Duration::from_millis(3700));
    let last = post();
    assert_eq!((last.status, last.header("connection")), (200, Some("close")));
    assert!(connection.is_closed_within(Duration::from_secs(20)));
}

#[test]
fn load_balancers_probe_the_port_that_they_send_requests_to() {
    let mut ekm = Ekm::serve(&set_up(&[]), |config| {
        config.replace("[server]", "[server]\nhosts = [\"localhost\"]") + "drain_delay_ms = 3600000\n"
    });
    // By address, without a token, as they do.
    let probe =
        |ekm: &Ekm, path: &str| ekm.connect().request(&format!("GET {path} HTTP/1.1\r\nHost: 10.0.0.1\r\n\r\n"));
    assert_eq!(probe(&ekm, "/readyz").status, 200);
    assert_eq!((probe(&ekm, "/readyz?shard=main").status, probe(&ekm, "/readyz?shard=x").status), (200, 404));
    assert_ne!(probe(&ekm, "/metrics").status, 200, "what people look at is on the other listener");
    let mut connection = ekm.connect();
    let mut post = || connection.post(WRAP, &ekm.ready.token, r#"{"plaintext":"AA=="}"#);
    assert_eq!(post().header("connection"), None);

    // While load balancers notice, requests are served, and each answer closes its connection.
    ekm.signal(Signal::TERM);
    ekm.eventually("said", || probe(&ekm, "/readyz").status == 503);
    let last = post();
    assert_eq!((last.status, last.header("connection")), (200, Some("close")));
    assert_eq!(ekm.post(WRAP, r#"{"plaintext":"AA=="}"#).status, 200, "on a new connection, too");
    assert!(ekm.is_running());
    assert!(
        ekm.audit().iter().all(|line| !line["path"].as_str().unwrap_or_default().starts_with("/readyz")),
        "probes are no requests"
    );
}

/// Frontends of one catalog lose the HSM that they share.
#[test]
fn what_all_frontends_lose_takes_none_of_them_out_and_what_one_loses_takes_it_out() {
    let deployment = Deployment::new(&["--softhsm"]);
    let modules = [0, 1, 2].map(|number| {
        FaultyModule::new(&deployment.token_directory().join(format!("device-{number}")), Path::new(SOFTHSM))
    });
    let frontends = modules.each_ref().map(|module| {
        let directory = deployment.directory();
        let file = directory.path().join("ekm.toml");
        let config = fs::read_to_string(&file).unwrap();
        fs::write(&file, config.replace(SOFTHSM, module.path().to_str().unwrap())).unwrap();
        deployment.start_with(&directory, "")
    });
    let fail = |module: &FaultyModule| {
        ["C_Encrypt", "C_Decrypt"].map(|function| module.inject(Fault::code("CKR_DEVICE_ERROR").of(function)))
    };
    let faults = fail(&modules[0]);
    frontends[0].eventually("out, since the others can", || frontends[0].ops("/readyz").status == 503);
    for fault in faults {
        modules[0].lift(fault);
    }
    frontends[0].eventually("back", || frontends[0].ops("/readyz").status == 200);

    for module in &modules {
        fail(module);
    }
    let says = |ekm: &Ekm| ekm.state().contains("fails on all frontends, so this one stays ready");
    for frontend in &frontends {
        frontend.eventually("failing, and in", || says(frontend) && frontend.ops("/readyz").status == 200);
        assert_eq!(frontend.ops("/healthz").status, 503, "for people who look, not for load balancers");
    }
}

/// Every thread of the process but those that have to notice stands still, as in a system call that does not come back.
#[test]
fn a_process_whose_runtime_is_stuck_says_so_and_ends_itself() {
    let mut ekm = Ekm::serve(&set_up(&[]), |config| config + "watchdog_ms = 1000\n");
    let threads = fs::read_dir(format!("/proc/{}/task", ekm.pid())).unwrap().map(|thread| thread.unwrap().path());
    let name = |thread: &Path| fs::read_to_string(thread.join("comm")).unwrap_or_default();
    let goes_on = |thread: &Path| ["watchdog", "ekm-aside"].contains(&name(thread).trim());
    let stuck: Vec<_> = threads.filter(|thread| !goes_on(thread)).collect();
    let ids = stuck.iter().map(|thread| thread.file_name().unwrap());
    // ptrace's PTRACE_SEIZE and PTRACE_INTERRUPT stop one thread for as long as whoever traces it lives. One that has ended is stuck, too.
    let script = "for my $call (0x4206, 0x4207) { syscall(101, $call, $_ + 0, 0, 0) for @ARGV } sleep 600";
    let mut tracer = Command::new("perl").args(["-e", script]).args(ids).spawn().unwrap();
    ekm.eventually("said", || ekm.log().contains("runtime_stuck"));
    tracer.kill().unwrap();
    tracer.wait().unwrap();
    assert_eq!(ekm.wait().signal(), Some(6), "ended, not gone on:\n{}", ekm.log());
}
