//! Several frontends on one catalog: they follow each other, never lose an acknowledged change, and never do one twice.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::sync::Mutex;
use std::thread::{scope, sleep};
use std::time::{Duration, Instant};

use ekm_tests::postgres::{self, Database, PgBouncer};
use ekm_tests::{Answer, Connection, Deployment, Ekm, key_create, run_ekm, unbase64};
use rustix::process::Signal;
use serde_json::{Value, json};

const KEY: &str = "v0/keys/orders";

/// The key version that a blob names.
fn version(blob: &str) -> u8 {
    unbase64(blob)[20]
}

fn primary(ekm: &Ekm) -> Value {
    ekm.show(&format!("/v1/keys/{KEY}")).json()["primary_version"].clone()
}

/// Fails unless the log has one entry for each revision and is one chain, and this frontend finds nothing wrong.
fn assert_adds_up(ekm: &Ekm, database: &Database) {
    let gaps =
        "SELECT (SELECT count(*) FROM changes) = revision, (SELECT max(revision) FROM changes) = revision FROM head";
    assert_eq!(database.psql(gaps), "t|t");
    let socket = format!("unix:{}", ekm.ready.admin_socket.as_ref().unwrap().display());
    let verified = run_ekm(&["catalog", "log", "--verify", "--server", &socket]);
    assert!(verified.status.success(), "{verified:?}");
    assert_eq!((ekm.metric("ekm_catalog_rejected_rows"), ekm.metric("ekm_catalog_follow_failed")), (0.0, 0.0));
}

#[test]
fn frontends_follow_each_other_and_a_new_version_wraps_when_all_have_it() {
    let deployment = Deployment::new(&[]);
    let [one, two] = [deployment.start(), deployment.start()];
    one.make_key(KEY);
    two.eventually("known", || two.try_wrap(KEY).0 == 200);
    let old = two.try_wrap(KEY).1;
    two.eventually("reported", || two.show("/v1/frontends").json()["items"].as_array().unwrap().len() == 2);

    one.signal(Signal::STOP);
    two.change(json!({"type": "key-rotate", "path": KEY}));
    sleep(Duration::from_secs(3));
    assert_eq!((primary(&two), version(&two.try_wrap(KEY).1)), (json!(1), 1), "one frontend does not know it yet");
    one.signal(Signal::CONT);
    two.eventually("promoted", || primary(&two) == 2);
    for (from, to) in [(&one, &two), (&two, &one)] {
        from.eventually("wraps with it", || version(&from.try_wrap(KEY).1) == 2);
        let new = from.try_wrap(KEY).1;
        assert_eq!([&new, &old].map(|blob| to.try_unwrap(KEY, blob)), [200, 200]);
    }
    two.change(json!({"type": "space-block", "path": "v0/cryptospaces/demo"}));
    one.eventually("blocked", || one.try_wrap(KEY).0 == 400);
    assert_adds_up(&one, &deployment.database);
}

/// How long it takes until a frontend refuses a key that was disabled on another one, and serves it again.
fn measure(deployment: &Deployment, rounds: usize) -> [Vec<Duration>; 2] {
    let [one, two] = [deployment.start(), deployment.start()];
    one.make_key(KEY);
    two.eventually("known", || two.try_wrap(KEY).0 == 200);
    let (mut connection, mut took) = (two.connect(), [Vec::new(), Vec::new()]);
    for _ in 0..rounds {
        for (index, (command, expected)) in [("key-disable", 400), ("key-enable", 200)].into_iter().enumerate() {
            one.change(json!({"type": command, "path": KEY}));
            let begun = Instant::now();
            while connection.post(&format!("/{KEY}:wrap"), &two.ready.token, r#"{"plaintext":"AA=="}"#).status
                != expected
            {
                assert!(begun.elapsed() < Duration::from_secs(20), "not taken over:\n{}", two.log());
            }
            took[index].push(begun.elapsed());
        }
    }
    assert_adds_up(&two, &deployment.database);
    took
}

#[expect(clippy::print_stdout, reason = "figures, for people")]
fn tell(how: &str, took: [Vec<Duration>; 2]) {
    for (what, mut took) in ["revocation", "its undoing"].into_iter().zip(took) {
        took.sort();
        let at = |percent: usize| took[(took.len() * percent / 100).min(took.len() - 1)];
        println!(
            "{how}: {what} from the answer to the other frontend: p50 {:?}, p99 {:?}, of {}",
            at(50),
            at(99),
            took.len()
        );
    }
}

/// `EKM_ROUNDS` for a longer look.
fn rounds(usual: usize) -> usize {
    std::env::var("EKM_ROUNDS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(usual)
}

#[test]
fn a_revocation_reaches_the_other_frontend() {
    tell("notified", measure(&Deployment::new(&[]), rounds(20)));
}

#[test]
fn a_revocation_reaches_the_other_frontend_by_polling_alone() {
    let bouncer = PgBouncer::before(&postgres::database());
    tell("polling", measure(&Deployment::on(bouncer.database.clone(), &[]), rounds(8)));
}

#[test]
fn of_many_who_make_the_same_key_one_does_and_nothing_is_left_of_the_others() {
    let deployment = Deployment::new(&[]);
    let ekms = [deployment.start(), deployment.start()];
    ekms[0].make_key(KEY);
    let count = || deployment.database.psql("SELECT count(*) FROM records").parse::<u64>().unwrap();
    let before = count();
    let statuses = at_once(20, |number| ekms[number % 2].ask(&json!({"command": key_create("v0/keys/same")})).status);
    assert_eq!(statuses.iter().filter(|status| **status == 200).count(), 1, "{statuses:?}");
    assert!(statuses.iter().all(|status| matches!(status, 200 | 409)), "{statuses:?}");
    assert_eq!(count(), before + 2, "the key and its policy");
    for ekm in &ekms {
        ekm.eventually("served", || ekm.try_wrap("v0/keys/same").0 == 200);
    }
    assert_adds_up(&ekms[0], &deployment.database);
}

/// Calls from this many threads at once; what each returned.
fn at_once<T: Send>(count: usize, call: impl Fn(usize) -> T + Sync) -> Vec<T> {
    scope(|scope| {
        let call = &call;
        let threads: Vec<_> = (0..count).map(|number| scope.spawn(move || call(number))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

#[test]
fn a_request_that_is_repeated_is_carried_out_once_and_answered_the_same() {
    let deployment = Deployment::new(&[]);
    let ekms = [deployment.start(), deployment.start()];
    ekms[0].make_key(KEY);
    let revision = || deployment.database.psql("SELECT revision FROM head").parse::<u64>().unwrap();
    for (number, command) in [
        key_create("v0/keys/once"),
        json!({"type": "key-destroy", "path": KEY}),
        json!({"type": "key-disable", "path": KEY}),
    ]
    .into_iter()
    .enumerate()
    {
        let before = revision();
        let request = json!({"command": command, "request_id": format!("id-{number}"), "reason": "a test"});
        let answers: Vec<Answer> = at_once(8, |number| ekms[number % 2].ask(&request));
        let first = answers.iter().find(|answer| answer.status < 300).unwrap();
        for answer in &answers {
            // Who came before the first one was done and after he had begun may be told that the path is taken.
            assert!(answer.status == 409 || answer.json() == first.json(), "{} and {}", answer.text(), first.text());
        }
        assert_eq!(ekms[1].ask(&request).json(), first.json());
        assert_eq!(revision(), before + 1, "{command}");
        let other =
            ekms[1].ask(&json!({"command": {"type": "key-enable", "path": KEY}, "request_id": format!("id-{number}")}));
        assert_eq!((other.status, other.json()["code"].as_str()), (409, Some("admin_impossible")), "{}", other.text());
    }
    assert_adds_up(&ekms[0], &deployment.database);
}

#[test]
fn who_replaces_something_says_what_he_has_seen_and_of_two_one_is_told() {
    let deployment = Deployment::new(&[]);
    let ekms = [deployment.start(), deployment.start()];
    ekms[0].make_key(KEY);
    let shown = |path: &str| ekms[0].show(path).json()["revision"].clone();
    let command = |number: usize| json!({"type": "key-update", "path": KEY, "labels": {"n": number.to_string()}, "description": ""});
    let ask =
        |number: usize, seen: Value| ekms[number % 2].ask(&json!({"command": command(number), "if_revision": seen}));
    assert_eq!(ask(0, Value::Null).status, 428);
    let seen = shown(&format!("/v1/keys/{KEY}"));
    let mut statuses = at_once(6, |number| ask(number, seen.clone()).status);
    statuses.sort_unstable();
    assert_eq!(statuses, [200, 412, 412, 412, 412, 412]);
    for command in [
        json!({"type": "space-update", "path": "v0/cryptospaces/demo", "labels": {}, "description": "x"}),
        json!({"type": "key-set-policy", "path": KEY, "policy": {"named": KEY}}),
        json!({"type": "policy-set", "name": KEY, "policy": {"rules": [{"callers": ["a@b"], "verbs": ["wrap"]}]}}),
        json!({"type": "settings-set", "destroy_grace_days": 8}),
    ] {
        assert_eq!(ekms[0].ask(&json!({"command": command, "reason": "a test"})).status, 428, "{command}");
        let wrong = ekms[0].ask(&json!({"command": command, "reason": "a test", "if_revision": 9999}));
        assert_eq!(wrong.status, 412, "{command}: {}", wrong.text());
    }
}

/// The objects on the tokens of SoftHSM.
fn objects(directory: &Path) -> BTreeSet<String> {
    let tokens = fs::read_dir(directory.join("softhsm/tokens")).unwrap().flatten();
    let files = tokens.flat_map(|token| fs::read_dir(token.path()).unwrap().flatten());
    files
        .map(|file| file.file_name().into_string().unwrap())
        .filter(|name| name.ends_with(".object") && !name.starts_with("token"))
        .collect()
}

#[test]
fn rotations_at_the_same_time_never_take_each_others_key_off_the_token_and_leave_none_behind() {
    let deployment = Deployment::new(&["--softhsm"]);
    // One frontend: SoftHSM itself does not stand two processes that make objects at the same time.
    let ekm = deployment.start();
    ekm.make_key(KEY);
    ekm.eventually("served", || ekm.try_wrap(KEY).0 == 200);
    let tokens = deployment.token_directory();
    let mut blobs = vec![ekm.try_wrap(KEY).1];
    for number in 2..6 {
        let before = objects(tokens).len();
        let answers = at_once(6, |_| ekm.ask(&json!({"command": {"type": "key-rotate", "path": KEY}})));
        let texts: Vec<_> = answers.iter().map(Answer::text).collect();
        assert!(answers.iter().filter(|answer| answer.status == 200).count() <= 1, "{texts:?}");
        assert!(answers.iter().all(|answer| matches!(answer.status, 200 | 409 | 503)), "{texts:?}");
        if answers.iter().all(|answer| answer.status != 200) {
            assert_eq!(objects(tokens).len(), before, "nobody won, and nothing is left: {texts:?}");
            ekm.change(json!({"type": "key-rotate", "path": KEY}));
        }
        assert_eq!(objects(tokens).len(), before + 1, "{texts:?}");
        ekm.eventually("wraps with it", || {
            let (status, blob) = ekm.try_wrap(KEY);
            status == 200 && version(&blob) == number
        });
        blobs.push(ekm.try_wrap(KEY).1);
    }
    // The same request at the same time, and the same path: one object each.
    let before = objects(tokens).len();
    let request = json!({"command": key_create("v0/keys/once"), "request_id": "once"});
    let same = json!({"command": key_create("v0/keys/same")});
    let answers = at_once(16, |number| ekm.ask(if number < 8 { &request } else { &same }).text());
    assert_eq!(objects(tokens).len(), before + 2, "{answers:?}\n{}", ekm.log());
    // What a session remembers does not count: a frontend that starts now needs the token.
    let cold = deployment.start();
    for blob in &blobs {
        assert_eq!(cold.try_unwrap(KEY, blob), 200, "version {}", version(blob));
    }
    assert_eq!(cold.metric("ekm_catalog_unavailable_versions"), 0.0);
}

#[test]
fn a_frontend_that_is_killed_in_the_middle_of_changes_loses_none_that_it_has_acknowledged() {
    let deployment = Deployment::new(&[]);
    let directory = deployment.directory();
    let acknowledged = Mutex::new(vec![KEY.to_owned()]);
    for round in 0..6 {
        let ekm = deployment.start_with(&directory, "snapshot_file = \"snapshot.db\"\nverify_interval_s = 1");
        if round == 0 {
            ekm.make_key(KEY);
        }
        assert_eq!(ekm.metric("ekm_catalog_rejected_rows"), 0.0);
        scope(|scope| {
            for writer in 0..3 {
                let (ekm, acknowledged) = (&ekm, &acknowledged);
                scope.spawn(move || {
                    for number in 0.. {
                        let path = format!("v0/keys/r{round}w{writer}n{number}");
                        let body = json!({"command": key_create(&path)}).to_string();
                        let Ok(mut connection) = Connection::open_unix(ekm.ready.admin_socket.as_ref().unwrap()) else { return };
                        let head = format!("POST /v1/changes HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n", body.len());
                        if connection.send((head + &body).as_bytes()).is_err() {
                            return;
                        }
                        match connection.read_answer() {
                            Ok(answer) if answer.status == 200 => acknowledged.lock().unwrap().push(path),
                            Ok(_) => {} // refused, on a machine that is too busy
                            Err(_) => return,
                        }
                    }
                });
            }
            // In the middle of something, however slow the machine is.
            let (begun, before) = (Instant::now(), acknowledged.lock().unwrap().len());
            while acknowledged.lock().unwrap().len() < before + 3 && begun.elapsed() < Duration::from_secs(30) {
                sleep(Duration::from_millis(10));
            }
            sleep(Duration::from_millis(7 * round));
            ekm.signal(Signal::KILL);
        });
    }
    let last = deployment.start_with(&directory, "snapshot_file = \"snapshot.db\"");
    let cold = deployment.start();
    let acknowledged = acknowledged.into_inner().unwrap();
    assert!(acknowledged.len() > 10, "{acknowledged:?}");
    for path in &acknowledged {
        assert_eq!((last.try_wrap(path).0, cold.try_wrap(path).0), (200, 200), "{path}");
    }
    assert_adds_up(&last, &deployment.database);
    assert_adds_up(&cold, &deployment.database);
}

#[test]
fn wraps_are_counted_over_all_frontends_and_a_worn_key_is_rotated() {
    let deployment = Deployment::new(&[]);
    let frontends = [deployment.start(), deployment.start()];
    frontends[0].make_key("v0/keys/demo");
    frontends.iter().for_each(|ekm| ekm.eventually("served", || ekm.try_wrap("v0/keys/demo").0 == 200));
    let blobs = frontends.each_ref().map(|ekm| [0; 5].map(|_| ekm.wrap(b"data key", b"")));
    let key: String = unbase64(&blobs[0][0])[1..17].iter().map(|byte| format!("{byte:02x}")).collect();
    let row = format!("replace(key_id, '-', '') = '{key}'");
    let counted = || deployment.database.psql(&format!("SELECT COALESCE(SUM(count), 0) FROM wraps WHERE {row}"));
    frontends[0].eventually("settled", || counted().parse::<u64>().unwrap() >= 12);

    deployment.database.psql(&format!("UPDATE wraps SET count = 4294967296 WHERE {row}"));
    let rotated = || matches!(frontends[1].try_wrap("v0/keys/demo"), (200, blob) if version(&blob) == 2);
    frontends[1].eventually("rotated", rotated);
    for (ekm, blobs) in frontends.iter().zip(&blobs) {
        assert!(blobs.iter().all(|blob| ekm.unwrap(blob, b"").status == 200), "old versions unwrap for ever");
    }
    let log = frontends.iter().map(Ekm::log).collect::<String>();
    assert!(log.contains("\"code\":\"key_exhausted\""), "{log}");
}
