//! The HSM, with SoftHSM in a directory of the test's own: what is refused at start, and what happens while running.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Output;

use ekm_tests::{CALLER, Directory, Ekm, base64, run_ekm, set_up, unbase64};
use serde_json::{Value, json};

const WRAP: &str = r#"{"plaintext":"AA=="}"#;

fn rule() -> Value {
    json!({"callers": [CALLER], "verbs": ["wrap", "unwrap"]})
}

fn softhsm() -> Directory {
    set_up(&["--softhsm"])
}

/// Changes the configuration of a directory, runs `ekm dev --check` on it, and expects this error.
fn refused(directory: &Directory, change: impl Fn(&str) -> String, code: &str, words: &str) {
    let config = directory.path().join("ekm.toml");
    let text = fs::read_to_string(&config).unwrap();
    fs::write(&config, change(&text)).unwrap();
    let error = stderr(&check(directory));
    assert!(error.starts_with(&format!("error[{code}]: ")) && error.contains(words), "{error}");
    fs::write(&config, text).unwrap();
}

fn check(directory: &Directory) -> Output {
    run_ekm(&["dev", "--data", directory.path().to_str().unwrap(), "--check", "--deadline-ms", "20000"])
}

fn stderr(output: &Output) -> String {
    assert!(!output.status.success());
    let text = String::from_utf8_lossy(&output.stderr);
    text.lines().filter(|line| !line.starts_with('{')).collect::<Vec<_>>().join("\n")
}

#[test]
fn a_token_that_cannot_be_used_stops_the_start_with_its_reason() {
    let directory = softhsm();
    let same = str::to_owned;
    refused(
        &directory,
        |text| text.replace("\"ekm-dev\"", "\"other\""),
        "hsm_token_not_found",
        "label 'ekm-dev' serial '",
    );
    refused(&directory, |text| text.replace("libsofthsm2.so", "none.so"), "hsm_module", "none.so");
    refused(&directory, |text| text.replace("softhsm2.conf", "none.conf"), "hsm_initialize", "CKR_GENERAL_ERROR");
    refused(&directory, |text| text.replace("/usr/lib/softhsm/libsofthsm2.so", "/bin/true"), "hsm_module", "/bin/true");

    let pin_file = directory.path().join("softhsm/pin");
    fs::set_permissions(&pin_file, fs::Permissions::from_mode(0o644)).unwrap();
    refused(&directory, same, "secret_file", "everybody may read it (mode 644); run 'chmod 600' on it");
    fs::set_permissions(&pin_file, fs::Permissions::from_mode(0o600)).unwrap();

    let pin = fs::read_to_string(&pin_file).unwrap();
    fs::write(&pin_file, "").unwrap();
    refused(&directory, same, "secret_file", "it is empty");
    fs::write(&pin_file, "1234").unwrap();
    refused(&directory, same, "hsm_pin", "one attempt was made and none will follow");
    fs::write(&pin_file, pin + "\n").unwrap();
    assert!(
        check(&directory).status.success(),
        "and with everything put right it works, a newline after the PIN included"
    );
}

#[test]
fn two_tokens_with_the_same_label_are_told_apart_by_serial_only() {
    let directory = softhsm();
    let config = directory.path().join("softhsm/softhsm2.conf");
    let made = std::process::Command::new("softhsm2-util")
        .env("SOFTHSM2_CONF", &config)
        .args(["--init-token", "--free", "--label", "ekm-dev", "--pin", "1234", "--so-pin", "1234"])
        .output()
        .expect("softhsm2-util: apt-get install softhsm2");
    assert!(made.status.success());
    refused(&directory, str::to_owned, "hsm_token_not_unique", "2 tokens have label 'ekm-dev'; choose by serial");
}

#[test]
fn a_directory_made_for_one_custody_is_not_used_for_another() {
    let directory = set_up(&[]);
    let data = directory.path().to_str().unwrap();
    let error = stderr(&run_ekm(&["dev", "--data", data, "--softhsm", "--check"]));
    assert!(error.contains("was set up with custody 'software', and its keys are there"), "{error}");
    let error = stderr(&run_ekm(&["dev", "--data", data, "--pkcs11", "/usr/lib/softhsm/libsofthsm2.so", "--check"]));
    assert!(error.contains("add --token-label LABEL and --pin-file FILE"), "{error}");
}

#[test]
fn a_first_start_that_fails_does_not_bind_the_directory_to_the_mistake() {
    let directory = tempfile::tempdir().unwrap();
    let data = directory.path().to_str().unwrap();
    let none = directory.path().join("pin");
    fs::write(&none, "1234").unwrap();
    fs::set_permissions(&none, fs::Permissions::from_mode(0o600)).unwrap();
    let pin = none.to_str().unwrap();
    let mistaken = ["dev", "--data", data, "--check", "--pkcs11", "/bin/true", "--token-label", "x", "--pin-file", pin];
    assert!(stderr(&run_ekm(&mistaken)).starts_with("error[hsm_module]"));
    let output = run_ekm(&["dev", "--data", data, "--check", "--softhsm", "--deadline-ms", "20000"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn a_token_of_ones_own_is_used_by_label_and_pin_file() {
    let made = softhsm();
    let own = tempfile::tempdir().unwrap();
    let pin_file = made.path().join("softhsm/pin");
    let output = std::process::Command::new(ekm_tests::ekm_binary())
        .env("SOFTHSM2_CONF", made.path().join("softhsm/softhsm2.conf"))
        .args(["dev", "--check", "--deadline-ms", "20000", "--pkcs11", "/usr/lib/softhsm/libsofthsm2.so", "--data"])
        .arg(own.path())
        .args(["--token-label", "ekm-dev", "--pin-file"])
        .arg(&pin_file)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("custody hsm"), "{text}{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn a_key_that_the_token_lost_answers_503_and_the_others_go_on() {
    let directory = softhsm();
    Ekm::dev_in(&directory, &[]).create_key("v0/keys/lost", &rule());
    remove_newest_object(&directory);

    let ekm = Ekm::serve(&directory, |config| config);
    let answer = ekm.post("/v0/keys/lost:wrap", WRAP);
    assert_eq!((answer.status, answer.json()["code"].as_i64()), (503, Some(14)), "{}", answer.text());
    assert!(answer.message().ends_with("[key_unavailable]"));
    assert_eq!(ekm.post("/v0/keys/demo:wrap", WRAP).status, 200);
    ekm.eventually("noticed", || ekm.metric("ekm_catalog_unavailable_versions") == 1.0);
    let report = ekm.ops("/readyz?verbose").text();
    assert!(report.contains("[!] keys: 2 paths, 1 versions that cannot be served, 0 rows refused"), "{report}");
    assert_eq!(unserved(&ekm), ["v0/keys/lost version 1 (hsm)"], "{report}");
    assert!(report.contains("C_FindObjects: the token does not hold the key"), "{report}");
}

/// Takes SoftHSM's token away and brings it back.
struct Token {
    here: PathBuf,
    away: PathBuf,
}

impl Token {
    fn of(directory: &Directory) -> Self {
        let softhsm = directory.path().join("softhsm");
        Self { here: softhsm.join("tokens"), away: softhsm.join("away") }
    }

    fn take(&self) {
        fs::rename(&self.here, &self.away).unwrap();
    }

    fn bring_back(&self) {
        let _ = fs::remove_dir(&self.here);
        fs::rename(&self.away, &self.here).unwrap();
    }
}

/// Which key versions readiness names, without their reasons.
fn unserved(ekm: &Ekm) -> Vec<String> {
    let report = ekm.ops("/readyz?verbose").text();
    let lines = report.lines().filter_map(|line| line.strip_prefix("[!] cannot be served: "));
    let mut names: Vec<_> = lines.map(|line| line.split_once(": ").unwrap().0.to_owned()).collect();
    names.sort();
    names
}

#[test]
fn a_catalog_that_only_the_hsm_opens_is_a_503_with_its_reason_until_the_hsm_comes() {
    let directory = softhsm();
    let token = Token::of(&directory);
    for empty in [true, false] {
        // SoftHSM starts without its token, or does not start at all.
        token.take();
        let (reason, code) = if empty {
            fs::create_dir(&token.here).unwrap();
            ("no token with label 'ekm-dev'; the module shows: no initialised token", "[hsm_token_not_found]")
        } else {
            ("does not start: C_Initialize failed with CKR_GENERAL_ERROR", "[hsm_initialize]")
        };
        let ekm = Ekm::serve_unready(&directory, |config| config);
        for path in ["demo", "none"] {
            let answer = ekm.post(&format!("/v0/keys/{path}:wrap"), WRAP);
            assert_eq!((answer.status, answer.json()["code"].as_i64()), (503, Some(14)), "{}", answer.text());
            assert!(answer.message().ends_with("[key_unavailable]"), "{}", answer.text());
        }
        let report = ekm.ops("/readyz?verbose");
        assert_eq!((report.status, ekm.ops("/readyz").status, ekm.ops("/livez").status), (503, 503, 200));
        let report = report.text();
        assert!(report.contains(reason) && report.contains(code), "{report}");
        assert!(report.contains("[catalog_locked]"), "{report}");

        token.bring_back();
        ekm.eventually("ready", || ekm.ops("/readyz").status == 200);
        let blob = ekm.wrap(b"x", b"");
        assert_eq!(ekm.unwrap(&blob, b"").json(), json!({"plaintext": base64("x")}));
    }
}

#[test]
fn with_a_key_file_the_catalog_opens_without_the_hsm_and_exactly_the_keys_in_it_are_a_503() {
    let directory = softhsm();
    let config = directory.path().join("ekm.toml");
    for (name, digits) in [("catalog.key", "5a"), ("software.key", "a5")] {
        let file = directory.path().join(name);
        fs::write(&file, digits.repeat(32)).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    }
    let text = fs::read_to_string(&config).unwrap();
    let text = text.replace("[catalog]", "[catalog]\nkey_file = \"catalog.key\"");
    fs::write(&config, text + "\n[software]\nkey_file = \"software.key\"\n").unwrap();
    let migrated = run_ekm(&["catalog", "migrate", "--config", config.to_str().unwrap()]);
    assert!(migrated.status.success(), "{}", String::from_utf8_lossy(&migrated.stderr));
    let ekm = Ekm::serve(&directory, |config| config);
    for custody in ["software", "hsm-wrapped"] {
        ekm.change_here(&json!({
            "type": "key-create", "path": format!("v0/keys/{custody}"), "space": "v0/cryptospaces/demo",
            "custody": custody, "policy": {"own": {"rules": [rule()]}},
        }));
    }
    drop(ekm);

    let token = Token::of(&directory);
    token.take();
    let ekm = Ekm::serve_unready(&directory, |config| config);
    for path in ["demo", "hsm-wrapped"] {
        let answer = ekm.post(&format!("/v0/keys/{path}:wrap"), WRAP);
        assert_eq!((answer.status, answer.json()["code"].as_i64()), (503, Some(14)), "{}", answer.text());
        assert!(answer.message().ends_with("[hsm_away]"), "{}", answer.text());
    }
    assert_eq!(ekm.post("/v0/keys/software:wrap", WRAP).status, 200, "a key that needs no HSM goes on");
    assert_eq!(ekm.post("/v0/keys/none:wrap", WRAP).status, 404, "and the catalog knows which keys there are");
    let expected = [
        "the health key version 1 (hsm)",
        "v0/keys/demo version 1 (hsm)",
        "v0/keys/hsm-wrapped version 1 (hsm-wrapped)",
    ];
    ekm.eventually("named", || unserved(&ekm) == expected);
    let report = ekm.ops("/readyz?verbose");
    assert_eq!(report.status, 503);
    assert!(report.text().contains("C_Initialize failed with CKR_GENERAL_ERROR"), "{}", report.text());
    assert_eq!(ekm.metric("ekm_catalog_unavailable_versions"), 3.0);

    token.bring_back();
    ekm.eventually("ready", || ekm.ops("/readyz").status == 200);
    for path in ["demo", "hsm-wrapped"] {
        assert_eq!(ekm.post(&format!("/v0/keys/{path}:wrap"), WRAP).status, 200);
    }
    ekm.eventually("no longer named", || unserved(&ekm).is_empty());
}

#[test]
fn a_pin_that_an_hsm_refuses_stops_the_start_and_is_not_tried_again_when_the_hsm_comes_late() {
    let directory = softhsm();
    fs::write(directory.path().join("softhsm/pin"), "1234").unwrap();
    let config = directory.path().join("ekm.toml");
    let error = stderr(&run_ekm(&["serve", "--config", config.to_str().unwrap()]));
    assert!(error.starts_with("error[hsm_pin]: "), "{error}");

    let token = Token::of(&directory);
    token.take();
    let ekm = Ekm::serve_unready(&directory, |config| config);
    token.bring_back();
    ekm.eventually("refused", || ekm.ops("/readyz?verbose").text().contains("[hsm_pin]"));
    assert_eq!(ekm.log().matches("the HSM is not tried again; correct it and restart").count(), 1);
    let answer = ekm.post("/v0/keys/demo:wrap", WRAP);
    assert_eq!((answer.status, answer.message().ends_with("[key_unavailable]")), (503, true), "{}", answer.text());
}

/// SoftHSM locks a key's file to read it. Whoever holds that lock makes its calls hang, as a lost network does with an HSM.
#[test]
fn an_hsm_that_hangs_is_503_in_time_and_429_when_the_queue_is_full_until_it_comes_back() {
    let directory = softhsm();
    let dev = Ekm::dev_in(&directory, &[]);
    let ekm = Ekm::serve(&directory, |config| {
        config
            .replace("admin.sock", "serve.sock")
            .replace("[catalog]", "[catalog]\npoll_interval_ms = 3600000")
            .replace("request_deadline_ms = 20000", "request_deadline_ms = 2000")
            .replace("deadline_ms = 60", "queue_length = 2\ndeadline_ms = 1000")
    });
    let wrap = || ekm.post("/v0/keys/demo:wrap", WRAP);
    assert_eq!(wrap().status, 200);
    dev.create_key("v0/keys/b", &rule());
    drop(dev);
    let file = fs::File::options().write(true).open(newest_object(&directory)).unwrap();
    rustix::fs::fcntl_lock(&file, rustix::fs::FlockOperation::LockExclusive).unwrap();

    // A change of its own makes the service find the new key; it tries it, and the one HSM thread hangs in that call.
    ekm.change_here(&json!({"type": "space-create", "path": "v0/cryptospaces/other"}));
    ekm.eventually("hanging", || wrap().message().ends_with("[hsm_timeout]"));
    let codes = std::thread::scope(|scope| {
        let requests: Vec<_> = (0..10).map(|_| scope.spawn(wrap)).collect();
        let answers = requests.into_iter().map(|request| request.join().unwrap());
        answers.map(|answer| (answer.status, answer.json()["code"].as_u64().unwrap())).collect::<Vec<_>>()
    });
    assert!(codes.iter().all(|code| [(503, 14), (429, 8)].contains(code)), "{codes:?}");
    assert!(codes.contains(&(429, 8)), "a queue of 2 sheds some of 10: {codes:?}");
    ekm.eventually("unready", || ekm.ops("/readyz").status == 503);
    assert_eq!(ekm.ops("/livez").status, 200);

    assert!(ekm.log().contains("\"code\":\"hsm_timeout\""), "the operator's log says so:\n{}", ekm.log());

    drop(file);
    ekm.eventually("back", || wrap().status == 200);
    ekm.eventually("ready", || ekm.ops("/readyz").status == 200);
}

fn remove_newest_object(directory: &Directory) {
    fs::remove_file(newest_object(directory)).unwrap();
}

fn newest_object(directory: &Directory) -> PathBuf {
    let tokens = directory.path().join("softhsm/tokens");
    let token = fs::read_dir(tokens).unwrap().next().unwrap().unwrap().path();
    let files = fs::read_dir(token).unwrap().map(|entry| entry.unwrap());
    let objects = files.filter(|file| {
        let name = file.file_name().into_string().unwrap();
        name.ends_with(".object") && name != "token.object"
    });
    objects.max_by_key(|file| file.metadata().unwrap().modified().unwrap()).unwrap().path()
}

#[test]
fn a_token_that_goes_away_is_a_503_and_never_a_denial() {
    let ekm = Ekm::dev(&["--softhsm"]);
    let blob = ekm.wrap(b"x", b"");
    let (tokens, away) = (ekm.directory.path().join("softhsm/tokens"), ekm.directory.path().join("softhsm/away"));
    fs::rename(&tokens, &away).unwrap();
    let mut statuses = std::collections::BTreeSet::new();
    for _ in 0..20 {
        statuses.insert(ekm.unwrap(&blob, b"").status);
        statuses.insert(ekm.post("/v0/keys/demo:wrap", WRAP).status);
        // Rubbish, too, must not become the caller's fault while the device cannot confirm it.
        let mut changed = unbase64(&blob);
        *changed.last_mut().unwrap() ^= 1;
        let answer = ekm.unwrap(&base64(&changed), b"");
        assert!([400, 503].contains(&answer.status), "{answer:?}");
    }
    assert!(statuses.iter().all(|status| [200, 503].contains(status)), "{statuses:?}");
    fs::rename(&away, &tokens).unwrap();
    assert_eq!(ekm.ops("/livez").status, 200);
}

#[test]
fn every_wrap_and_unwrap_is_one_hsm_operation_each() {
    let ekm = Ekm::dev(&["--softhsm"]);
    let blob = ekm.wrap(b"x", b"");
    for _ in 0..4 {
        assert_eq!(ekm.unwrap(&blob, b"").json(), json!({"plaintext": base64("x")}));
    }
    let count = |verb| {
        ekm.metric(&format!(
            "ekm_hsm_operation_seconds_count{{operation=\"{verb}\",replica=\"ekm-dev\",shard=\"main\"}}"
        ))
    };
    assert_eq!((count("wrap"), count("unwrap")), (1.0, 4.0));
}

/// opencryptoki's soft token has AES without GCM, and a description that is not as PKCS#11 says. Its daemon needs root.
#[test]
fn a_token_without_aes_gcm_stops_the_start_and_is_not_waited_for() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: opencryptoki's daemon needs root");
        return;
    }
    let module = format!("/usr/lib/{}-linux-gnu/libopencryptoki.so.0", std::env::consts::ARCH);
    let directory = set_up(&[]);
    let pin_file = directory.path().join("pin");
    fs::write(&pin_file, "87654321").unwrap();
    fs::set_permissions(&pin_file, fs::Permissions::from_mode(0o600)).unwrap();
    let config = directory.path().join("ekm.toml");
    let hsm = format!(
        "\n[[shard]]\ndeadline_ms = 60\n[[shard.replica]]\nmodule = \"{module}\"\ntoken_label = \"ekm\"\npin_file = \"pin\"\n"
    );
    fs::write(&config, fs::read_to_string(&config).unwrap() + &hsm).unwrap();
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/src/opencryptoki.sh");
    let output = std::process::Command::new("unshare")
        .args(["--mount", "--pid", "--ipc", "--fork", "--mount-proc", "--kill-child=KILL", "sh", script, &module])
        .args(["timeout", "60"]) // if it is waited for
        .arg(ekm_tests::ekm_binary())
        .args(["serve", "--config"])
        .arg(&config)
        .output()
        .unwrap();
    let error = stderr(&output);
    assert!(error.contains("error[hsm_mechanism]: the token does not offer CKM_AES_GCM"), "{error}{output:?}");
}

/// The vendor's library runs in a process that can do little else, and holds the HSM's PIN neither on its command line nor in its
/// environment.
#[test]
fn a_worker_process_is_confined_and_goes_with_its_frontend() {
    let directory = softhsm();
    let pin = fs::read_to_string(directory.path().join("softhsm/pin")).unwrap();
    let ekm = Ekm::serve(&directory, |text| text.replace("isolation = \"thread\"", "isolation = \"process\""));
    assert_eq!(ekm.post("/v0/keys/demo:wrap", WRAP).status, 200);
    let worker = worker_of(&ekm);
    let read = |name: &str| String::from_utf8_lossy(&fs::read(format!("/proc/{worker}/{name}")).unwrap()).into_owned();
    let status = read("status");
    for line in ["NoNewPrivs:\t1", "Seccomp:\t2", "Seccomp_filters:\t2"] {
        assert!(status.contains(line), "{status}");
    }
    assert!(!read("cmdline").contains(pin.trim()) && !read("environ").contains(pin.trim()));
    let (libraries, ours) = (read("maps"), fs::read_to_string(format!("/proc/{}/maps", ekm.pid())).unwrap());
    assert!(libraries.contains("libsofthsm2") && !ours.contains("libsofthsm2"), "the frontend loads no vendor's code");

    ekm.signal(rustix::process::Signal::KILL);
    let gone = || !std::path::Path::new(&format!("/proc/{worker}")).exists();
    let patience = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while !gone() {
        assert!(std::time::Instant::now() < patience, "the worker outlives its frontend");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}

/// The one child process of a frontend.
fn worker_of(ekm: &Ekm) -> u32 {
    let tasks = fs::read_dir(format!("/proc/{}/task", ekm.pid())).unwrap().map(|task| task.unwrap().path());
    let children = tasks.map(|task| fs::read_to_string(task.join("children")).unwrap_or_default()).collect::<String>();
    children.split_whitespace().next().expect("a worker").parse().unwrap()
}
