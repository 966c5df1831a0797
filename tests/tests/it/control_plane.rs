//! What Cloud KMS does itself: keys that it makes and destroys, against frontends that share a catalog.

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use ekm_tests::{Deployment, Directory, Effect, Ekm, Fault, FaultyModule, SOFTHSM, postgres, set_up};
use serde_json::{Value, json};

use crate::cli::run;
use crate::hsm_replication::with_replication_key;
use crate::simulator::Project;

const SPACE: &str = "v0/cryptospaces/demo";
const SYMMETRIC: &str = "EXTERNAL_SYMMETRIC_ENCRYPTION";

fn name(version: u32) -> String {
    format!("projects/p/locations/europe-west3/keyRings/r/cryptoKeys/k/cryptoKeyVersions/{version}")
}

fn context(version: u32) -> Value {
    json!({"relativeResourceName": name(version), "accessReasonContext": {"reason": "CUSTOMER_INITIATED_ACCESS"}})
}

fn create_body(algorithm: &str, version: u32) -> String {
    json!({"algorithm": algorithm, "additionalContext": context(version)}).to_string()
}

/// The status, and the path or the error's text.
fn create(ekm: &Ekm, algorithm: &str, version: u32) -> (u16, String) {
    let answer = ekm.post(&format!("/{SPACE}:createKey"), &create_body(algorithm, version));
    let json = answer.json();
    let text = json["keyPath"].as_str().or(json["message"].as_str()).unwrap_or_default();
    (answer.status, text.to_owned())
}

#[track_caller]
fn created(ekm: &Ekm, version: u32) -> String {
    let (status, path) = create(ekm, SYMMETRIC, version);
    assert_eq!(status, 200, "{path}\n{}", ekm.log());
    path
}

fn destroy(ekm: &Ekm, path: &str) -> u16 {
    ekm.post(&format!("/{path}:destroyKey"), &json!({"additionalContext": context(1)}).to_string()).status
}

/// Lets everybody make keys in the space.
fn allow_creation(ekm: &Ekm, extra: Value) {
    let verbs =
        ["wrap", "unwrap", "asymmetricSign", "getPublicKey", "createKey", "destroyKey", "checkCryptoSpacePermissions"];
    let policy = json!({"rules": [{"callers": ["service-*@gcp-sa-ekms.iam.gserviceaccount.com"], "verbs": verbs}]});
    ekm.ask(&json!({"command": {"type": "space-create", "path": SPACE}}));
    ekm.ask(&json!({"command": {"type": "policy-create", "name": "cloud-kms", "policy": policy}}));
    let mut creation = json!({"policy": "cloud-kms", "max_keys": 1000});
    creation.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    let answer = ekm.change(json!({"type": "space-set-creation", "path": SPACE, "creation": creation}));
    assert_ne!(answer["outcome"], "needs-approval", "{answer}");
    until_known(ekm, &answer);
}

/// Waits until a frontend has what a change has done.
fn until_known(ekm: &Ekm, change: &Value) {
    let revision = change["revision"].as_f64().unwrap();
    ekm.eventually("known", || ekm.metric("ekm_catalog_revision") >= revision);
}

/// Two frontends on one PostgreSQL catalog that hardly ever look at it by themselves.
fn two_frontends() -> (Deployment, Ekm, Ekm) {
    let deployment = Deployment::new(&[]);
    let lazily = |deployment: &Deployment| deployment.start_with(&deployment.directory(), "poll_interval_ms = 60000");
    let (a, b) = (lazily(&deployment), lazily(&deployment));
    allow_creation(&a, json!({}));
    (deployment, a, b)
}

#[test]
fn a_key_that_one_frontend_has_made_is_used_by_the_other_at_once_and_made_once_only() {
    let (_deployment, a, b) = two_frontends();
    for version in 1..=20 {
        let path = created(&a, version);
        let (status, blob) = b.try_wrap(&path);
        assert_eq!(status, 200, "version {version}: {}", b.log());
        assert_eq!(a.try_unwrap(&path, &blob), 200);
        assert_eq!([created(&b, version), created(&a, version)], [path.clone(), path.clone()], "again");
        if version % 5 == 0 {
            assert_eq!([destroy(&b, &path), destroy(&a, &path), destroy(&b, &path)], [200; 3]);
            assert_eq!([a.try_wrap(&path).0, b.try_unwrap(&path, &blob)], [400, 400], "at once, everywhere");
            let (status, text) = create(&a, SYMMETRIC, version);
            assert!(status == 400 && text.contains("was destroyed"), "{text}");
        }
    }
    assert_eq!(a.try_wrap("v0/keys/nobody").0, 404, "what nobody has made stays unknown");
    let unknown = a.post("/v0/cryptospaces/nobody:createKey", &create_body(SYMMETRIC, 1));
    assert_eq!(unknown.status, 404);
}

#[test]
fn ten_thousand_calls_at_a_time_for_one_name_make_one_key() {
    let (_deployment, a, b) = two_frontends();
    let (calls, paths) = (AtomicUsize::new(0), std::sync::Mutex::new(std::collections::BTreeSet::new()));
    std::thread::scope(|scope| {
        for thread in 0..32 {
            let (ekm, calls, paths) = (if thread % 2 == 0 { &a } else { &b }, &calls, &paths);
            scope.spawn(move || {
                let (mut connection, token) = (ekm.connect(), ekm.ready.token.clone());
                while calls.fetch_add(1, Ordering::Relaxed) < 10_000 {
                    let answer = connection.post(&format!("/{SPACE}:createKey"), &token, &create_body(SYMMETRIC, 1));
                    assert!(matches!(answer.status, 200 | 503), "{}", answer.text());
                    if answer.status == 200 {
                        paths.lock().unwrap().insert(answer.json()["keyPath"].as_str().unwrap().to_owned());
                    }
                }
            });
        }
    });
    assert_eq!(paths.into_inner().unwrap().len(), 1);
    let made: Vec<_> = a.show("/v1/changes?limit=100").json()["items"].as_array().unwrap().clone();
    let made: Vec<_> = made.iter().filter(|change| change["action"] == "create-key").collect();
    assert_eq!(made.len(), 1);
    assert!(made[0]["actor"].as_str().unwrap().ends_with("@gcp-sa-ekms.iam.gserviceaccount.com"), "{}", made[0]);
    assert_eq!(made[0]["reason"], "CUSTOMER_INITIATED_ACCESS");
}

#[test]
fn a_key_that_is_made_for_signatures_signs_and_is_destroyed() {
    let ekm = Ekm::dev(&[]);
    allow_creation(&ekm, json!({}));
    let mut path = String::new();
    // An RSA key takes longer than Cloud KMS waits; it asks again.
    for (version, algorithm) in [(1, "RSA_SIGN_PSS_2048_SHA256"), (2, "ALGORITHM_EC_SIGN_P256_SHA256")] {
        ekm.eventually("made", || {
            let (status, text) = create(&ekm, algorithm, version);
            path = text;
            status == 200
        });
        assert_eq!(create(&ekm, algorithm, version), (200, path.clone()));
        assert_eq!(create(&ekm, SYMMETRIC, version).0, 409);
        let ask = |verb: &str| {
            let body = json!({"data": "AA==", "additionalContext": context(version)});
            ekm.post(&format!("/{path}:{verb}"), &body.to_string())
        };
        let shown = ask("getPublicKey").json();
        assert_eq!(shown["algorithm"], algorithm.trim_start_matches("ALGORITHM_"));
        assert!(shown["publicKey"].as_str().unwrap().starts_with("-----BEGIN PUBLIC KEY-----"), "{shown}");
        assert_eq!(ask("asymmetricSign").status, 200);
    }
    assert_eq!(destroy(&ekm, &path), 200);
    let answer = ekm.post(&format!("/{path}:asymmetricSign"), &json!({"data": "AA=="}).to_string());
    assert_eq!(answer.status, 400, "{}", answer.text());
    assert_eq!(ekm.post(&format!("/{path}:getPublicKey"), "{}").status, 400);
}

#[test]
fn a_crypto_space_says_who_may_make_what_and_how_much() {
    let ekm = Ekm::dev(&[]);
    let answer = ekm.post("/v0/cryptospaces/other:createKey", &create_body(SYMMETRIC, 1));
    assert_eq!(answer.status, 404);
    ekm.change(json!({"type": "space-create", "path": "v0/cryptospaces/other"}));
    let answer = ekm.post("/v0/cryptospaces/other:createKey", &create_body(SYMMETRIC, 1));
    assert_eq!(answer.status, 403);
    assert!(answer.message().contains("the crypto space does not let callers make keys"), "{}", answer.message());

    allow_creation(&ekm, json!({"algorithms": [SYMMETRIC], "max_keys": 3}));
    let (status, text) = create(&ekm, "RSA_SIGN_PKCS1_2048_SHA256", 1);
    assert!(status == 501 && text.contains("this crypto space makes EXTERNAL_SYMMETRIC_ENCRYPTION only"), "{text}");
    let (status, text) = create(&ekm, "EC_SIGN_SECP256K1_SHA256", 1);
    assert!(status == 501 && text.contains("EC_SIGN_P256_SHA256"), "{text}");
    // The demo key is one of the three.
    let first = created(&ekm, 1);
    created(&ekm, 2);
    let (status, text) = create(&ekm, SYMMETRIC, 3);
    assert!(status == 400 && text.contains("has 3 keys, which is as many as it may"), "{text}");
    assert_eq!(created(&ekm, 1), first, "what is there is there");

    let check = |permissions: Value| {
        ekm.post(&format!("/{SPACE}:checkCryptoSpacePermissions"), &json!({"permissions": permissions}).to_string())
    };
    assert_eq!(check(json!(["createKey", "destroyKey"])).json(), json!({"permissions": ["createKey", "destroyKey"]}));
    assert_eq!(check(json!(["fly"])).json(), json!({"permissions": []}));
    run(&ekm, &["space", "deny-creation", SPACE]).ends(0);
    assert_eq!(check(json!(["createKey"])).status, 403);
    assert_eq!(create(&ekm, SYMMETRIC, 3).0, 403);
    assert_eq!(ekm.try_wrap(&first).0, 200, "keys that are there go on");
    run(&ekm, &["space", "allow-creation", SPACE, "--policy", "nobody"]).fails("admin_not_found", "nobody");
    run(&ekm, &["space", "allow-creation", SPACE, "--policy", "cloud-kms", "--algorithm", SYMMETRIC]).ends(0);
    let shown = run(&ekm, &["space", "show", SPACE]).ends(0).stdout;
    assert!(
        shown.contains("by policy cloud-kms, up to 1000 keys, custody software, EXTERNAL_SYMMETRIC_ENCRYPTION"),
        "{shown}"
    );
    run(&ekm, &["space", "block", SPACE]).ends(0);
    assert_eq!(create(&ekm, SYMMETRIC, 9).0, 400);
}

#[test]
fn an_operator_brings_back_what_a_caller_has_destroyed() {
    let ekm = Ekm::dev(&[]);
    let path = created(&ekm, 1);
    let (_, blob) = ekm.try_wrap(&path);
    assert_eq!(destroy(&ekm, &path), 200);
    let shown = ekm.show(&format!("/v1/keys/{path}")).json();
    assert_eq!((&shown["state"], &shown["destroyed_by_caller"]), (&json!("destroy-scheduled"), &json!(true)));
    assert_eq!(shown["created_for"], name(1));
    run(&ekm, &["key", "undelete", &path]).ends(0);
    run(&ekm, &["key", "enable", &path]).ends(0);
    assert_eq!(ekm.try_unwrap(&path, &blob), 200);
    assert_eq!(created(&ekm, 1), path, "and it is the key for that name again");
}

#[test]
fn a_key_whose_caller_gave_up_is_made_all_the_same_and_only_once() {
    let directory = set_up(&["--softhsm"]);
    let module = with_faults(&directory);
    let ekm = Ekm::serve(&directory, |config| config.replace("deadline_ms = 60\n", "deadline_ms = 10000\n"));
    ekm.eventually("ready", || ekm.ops("/readyz").status == 200);
    let slow = module.inject(Fault::new(Effect::Delay { ms: 1500.0, sigma: 0.0 }).of("C_GenerateKey"));
    for _ in 0..3 {
        let (mut connection, body) = (ekm.connect(), create_body(SYMMETRIC, 1));
        let head = format!(
            "POST /{SPACE}:createKey HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {}\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            ekm.ready.token,
            body.len()
        );
        connection.send((head + &body).as_bytes()).unwrap();
        std::thread::sleep(Duration::from_millis(200));
    }
    let path = created(&ekm, 1);
    module.lift(slow);
    assert_eq!(ekm.try_wrap(&path).0, 200);
    assert_eq!(created(&ekm, 1), path);
    let changes = ekm.show("/v1/changes?limit=100").json();
    let made = changes["items"].as_array().unwrap().iter().filter(|change| change["action"] == "create-key");
    assert_eq!(made.count(), 1);
}

/// Puts the fault module before the token of `ekm dev`.
fn with_faults(directory: &Directory) -> FaultyModule {
    let module = FaultyModule::new(&directory.path().join("faulty"), Path::new(SOFTHSM));
    let file = directory.path().join("ekm.toml");
    let config = fs::read_to_string(&file).unwrap();
    fs::write(&file, config.replacen(SOFTHSM, module.path().to_str().unwrap(), 1)).unwrap();
    module
}

#[test]
fn a_control_call_that_cannot_be_understood_is_refused_by_field() {
    let ekm = Ekm::dev(&[]);
    let create = format!("/{SPACE}:createKey");
    for (target, body, status, field) in [
        (create.as_str(), "", 400, "body"),
        (create.as_str(), "[]", 400, "body"),
        (create.as_str(), "{}", 400, "algorithm"),
        (
            create.as_str(),
            r#"{"algorithm":"EXTERNAL_SYMMETRIC_ENCRYPTION"}"#,
            400,
            "additionalContext.relativeResourceName",
        ),
        (create.as_str(), r#"{"algorithm":"a b","additionalContext":{"relativeResourceName":"x"}}"#, 400, "algorithm"),
        (create.as_str(), r#"{"algorithm":["x"]}"#, 400, "body"),
        ("/v0/keys/demo:destroyKey", "{", 400, "body"),
        ("/v0/keys/demo:destroyKey", r#"{"additionalContext":[]}"#, 400, "body"),
        (
            "/v0/keys/demo:createKey",
            r#"{"algorithm":"EXTERNAL_SYMMETRIC_ENCRYPTION","additionalContext":{"relativeResourceName":"x"}}"#,
            404,
            "",
        ),
        ("/v0/cryptospaces/demo:destroyKey", "{}", 404, ""),
        ("/v0/cryptospaces/demo:checkCryptoSpacePermissions", r#"{"permissions":"createKey"}"#, 400, "body"),
        ("/v0/cryptospaces/demo:checkCryptoSpacePermissions", r#"{"permissions":[1]}"#, 400, "body"),
    ] {
        let answer = ekm.post(target, body);
        assert_eq!(answer.status, status, "{target} {body}: {}", answer.text());
        let violation = answer.json()["details"][0]["fieldViolations"][0]["field"].clone();
        assert_eq!(violation.as_str().unwrap_or_default(), field, "{target} {body}");
    }
    let token = ekm.ready.token.clone();
    let info = |method: &str, path: &str, token: &str| {
        let head = format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\n\r\n");
        ekm.connect().request(&head)
    };
    let answer = info("GET", "/v0/info", &token);
    assert_eq!((answer.status, &answer.json()["apiVersion"]), (200, &json!("v0")));
    assert_eq!(info("GET", "/v0/info", "x").status, 401);
    assert_eq!(info("DELETE", "/v0/info", &token).status, 405);
}

#[test]
fn a_whole_life_from_connection_to_restoration_on_two_frontends_with_postgresql_and_two_hsms() {
    let deployment = Deployment::of(postgres::database(), with_replication_key(&["softhsm", "softhsm-b"]));
    let frontend = || deployment.start_with(&deployment.directory(), "");
    let (a, b) = (frontend(), frontend());
    allow_creation(&a, json!({"custody": "hsm"}));
    let kms = Project::of(&a.directory);
    let addresses = [a.address().to_string(), b.address().to_string()];
    kms.run(&[
        "connect",
        "--mode",
        "cloud-kms",
        "--crypto-space",
        SPACE,
        "--address",
        &addresses[0],
        "--address",
        &addresses[1],
    ])
    .ends(0);
    kms.run(&["verify-connectivity"]).ends(0);
    kms.run(&["create-key", "orders"]).ends(0);
    let encrypt = |out: &str| kms.run(&["encrypt", "orders", "--in", kms.data(), "--out", out]);
    let decrypt = |file: &str| {
        kms.run(&["decrypt", "--in", file, "--out", "plain"]).ends(0);
        assert_eq!(kms.read("plain"), kms.read("data"), "{file}");
    };
    encrypt("old.enc").ends(0);
    kms.run(&["rotate", "orders"]).ends(0);
    encrypt("new.enc").ends(0);
    ["old.enc", "new.enc"].into_iter().for_each(decrypt);

    // A slip in the policy, and what it does at Google until somebody enables the version there again.
    let policy = || a.show("/v1/policies/cloud-kms").json();
    let allowing = policy()["policy"].clone();
    let set = |policy: &Value, revision: &Value| {
        let command = json!({"type": "policy-set", "name": "cloud-kms", "policy": policy});
        let answer = a.ask(&json!({"command": command, "reason": "a test", "if_revision": revision}));
        [&a, &b].into_iter().for_each(|ekm| until_known(ekm, &answer.json()));
    };
    let other = json!({"rules": [{"callers": ["project:1"], "verbs": ["wrap", "unwrap"]}]});
    set(&other, &policy()["revision"]);
    kms.fails(&["decrypt", "--in", "new.enc", "--out", "plain"], "EXTERNAL_PERMISSION_DENIED");
    set(&allowing, &policy()["revision"]);
    kms.run(&["decrypt", "--in", "new.enc", "--out", "plain"]).ends(1);
    decrypt("old.enc");
    kms.run(&["enable", "orders", "--key-version", "2"]).ends(0);
    decrypt("new.enc");

    // Destroyed at Google and taken back there; then destroyed for good there, and brought back here.
    kms.run(&["destroy", "orders", "--key-version", "1"]).ends(0);
    kms.run(&["decrypt", "--in", "old.enc", "--out", "plain"]).ends(1);
    kms.run(&["restore", "orders", "--key-version", "1"]).ends(0);
    kms.run(&["enable", "orders", "--key-version", "1"]).ends(0);
    decrypt("old.enc");
    let first = b.show("/v1/keys?page_size=100").json()["items"].as_array().unwrap().clone();
    let first =
        first.iter().find(|key| key["created_for"].as_str().is_some_and(|name| name.ends_with("Versions/1"))).unwrap();
    let path = first["paths"][0].as_str().unwrap();
    let (_, blob) = b.try_wrap(path);
    kms.run(&["destroy", "orders", "--key-version", "1"]).ends(0);
    kms.run(&["destroy", "orders", "--key-version", "1", "--now"]).ends(0);
    assert_eq!([a.try_unwrap(path, &blob), b.try_unwrap(path, &blob)], [400, 400]);
    run(&a, &["key", "undelete", path]).ends(0);
    run(&a, &["key", "enable", path]).ends(0);
    b.eventually("brought back", || b.try_unwrap(path, &blob) == 200);
}

#[test]
fn the_recorder_of_shapes_writes_each_shape_once_and_no_value() {
    let directory = set_up(&[]);
    let file = directory.path().join("shapes.jsonl");
    let ekm = Ekm::serve_with(&directory, &["--record-shapes", file.to_str().unwrap()], |config| config);
    ekm.eventually("ready", || ekm.ops("/readyz").status == 200);
    for version in 1..=3 {
        created(&ekm, version);
        ekm.wrap(b"the secret", b"the aad");
    }
    assert_eq!(ekm.post("/v0/keys/demo:wrap", "nonsense").status, 400);
    let lines = || fs::read_to_string(&file).unwrap_or_default();
    ekm.eventually("written", || lines().lines().count() == 3);
    let shapes: Vec<Value> = lines().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let create = shapes.iter().find(|shape| shape["verb"] == "createKey").unwrap();
    assert_eq!(create["body"]["additionalContext"]["accessReasonContext"], json!({"reason": "string"}));
    assert!(create["headers"].as_array().unwrap().contains(&json!("authorization")));
    for value in [name(1).as_str(), SYMMETRIC, "CUSTOMER_INITIATED", "demo", &ekm.ready.token, "nonsense"] {
        assert!(!lines().contains(value), "{value}");
    }
}
