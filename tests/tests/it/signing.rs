//! asymmetricSign and getPublicKey, as Cloud KMS would call them; signatures are verified by the openssl command line.

use std::fs;
use std::process::Command;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ekm_tests::{CALLER, Directory, Effect, Ekm, Fault, base64, key_create, unbase64};
use serde_json::{Value, json};

use crate::cli::run;
use crate::hsm_drain::{serve, two_replicas, wait_until};
use crate::hsm_faults::before_hsm_b;
use crate::hsm_replication::{objects, put_replication_key};
use crate::table::Expect::{self, Good, Refused};
use crate::table::{PLAINTEXT, Table, post_json};

const KEY: &str = "v0/keys/release";
const P256: &str = "EC_SIGN_P256_SHA256";

/// The command that makes a signing key, with a policy of its own.
fn signing_key(path: &str, algorithm: &str) -> Value {
    let mut command = key_create(path);
    command["algorithm"] = json!(algorithm);
    command["policy"] = json!({"own": {"rules": [{"callers": [CALLER], "verbs": ["asymmetricSign", "getPublicKey"]}]}});
    command
}

fn make(ekm: &Ekm, path: &str, algorithm: &str) {
    ekm.change_here(&signing_key(path, algorithm));
}

fn sign(ekm: &Ekm, path: &str, body: Value) -> Vec<u8> {
    let answer = ekm.post(&format!("/{path}:asymmetricSign"), &body.to_string());
    assert_eq!(answer.status, 200, "{}\n{}", answer.text(), ekm.log());
    unbase64(answer.json()["signature"].as_str().unwrap())
}

fn public_key(ekm: &Ekm, path: &str) -> String {
    let answer = ekm.post(&format!("/{path}:getPublicKey"), "{}");
    assert_eq!(answer.status, 200, "{}\n{}", answer.text(), ekm.log());
    answer.json()["publicKey"].as_str().unwrap().to_owned()
}

/// What `openssl dgst` says to a signature of `data`.
fn openssl_verifies(algorithm: &str, pem: &str, data: &[u8], signature: &[u8]) -> bool {
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str, content: &[u8]| {
        let file = directory.path().join(name);
        fs::write(&file, content).unwrap();
        file
    };
    let hash = algorithm.rsplit('_').next().unwrap().to_lowercase();
    let mut openssl = Command::new("openssl");
    openssl.arg("dgst").arg(format!("-{hash}"));
    if algorithm.contains("_PSS_") {
        openssl.args(["-sigopt", "rsa_padding_mode:pss", "-sigopt", "rsa_pss_saltlen:digest"]);
        openssl.args(["-sigopt", &format!("rsa_mgf1_md:{hash}")]);
    }
    openssl.arg("-verify").arg(file("key.pem", pem.as_bytes()));
    openssl.arg("-signature").arg(file("signature", signature)).arg(file("data", data));
    openssl.output().expect("openssl: apt-get install openssl").status.success()
}

fn digest(hash: &str, data: &[u8]) -> Vec<u8> {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("data");
    fs::write(&file, data).unwrap();
    Command::new("openssl").arg("dgst").args([&format!("-{hash}"), "-binary"]).arg(file).output().unwrap().stdout
}

#[test]
fn a_signature_of_data_or_of_its_digest_verifies_with_the_public_key_that_the_service_shows() {
    let ekm = Ekm::dev(&[]);
    for algorithm in [P256, "EC_SIGN_P384_SHA384", "RSA_SIGN_PSS_2048_SHA256", "RSA_SIGN_PKCS1_4096_SHA512"] {
        let path = format!("v0/keys/{}", algorithm.to_lowercase());
        make(&ekm, &path, algorithm);
        let pem = public_key(&ekm, &path);
        let hash = algorithm.rsplit('_').next().unwrap().to_lowercase();
        let data = b"what Cloud KMS was asked to sign";
        let digest = base64(digest(&hash, data));
        for body in [json!({"data": base64(data)}), json!({"digest": digest}), json!({"digest": {hash: digest}})] {
            let signature = sign(&ekm, &path, body.clone());
            assert!(openssl_verifies(algorithm, &pem, data, &signature), "{algorithm} {body}");
            assert!(!openssl_verifies(algorithm, &pem, b"other", &signature), "{algorithm} {body}");
        }
        let largest = vec![7; 64 * 1024];
        let signature = sign(&ekm, &path, json!({"data": base64(&largest)}));
        assert!(openssl_verifies(algorithm, &pem, &largest, &signature));
        let shown = run(&ekm, &["key", "public-key", &path]);
        assert_eq!(shown.stdout, pem);
        assert!(run(&ekm, &["key", "show", &path]).stdout.contains(algorithm));
    }
    for (verb, count) in [("asymmetricSign", 16.0), ("getPublicKey", 4.0)] {
        assert_eq!(ekm.metric(&format!("ekm_requests_total{{code=\"ok\",verb=\"{verb}\"}}")), count);
        let line = ekm.audit().into_iter().rfind(|line| line["verb"] == verb).unwrap();
        assert_eq!(
            (&line["code"], &line["custody"], &line["key_version"]),
            (&json!("ok"), &json!("software"), &json!(1))
        );
    }
}

#[test]
fn a_signing_key_is_not_rotated_and_is_paused_and_destroyed_like_any_other() {
    let ekm = Ekm::dev(&[]);
    make(&ekm, KEY, P256);
    let mine = public_key(&ekm, KEY);
    let refused = run(&ekm, &["key", "rotate", KEY]);
    refused.fails("admin_impossible", "a signing key has one version for ever");
    run(&ekm, &["key", "set-rotation", KEY, "--every-days", "90"]).fails("admin_impossible", "one version for ever");
    let mut rotating = signing_key("v0/keys/rotating", P256);
    rotating["rotation_days"] = json!(90);
    let answer = ekm.ask(&json!({"command": rotating, "reason": "test"}));
    assert!(answer.text().contains("one version for ever"), "{}", answer.text());

    run(&ekm, &["key", "public-key", "v0/keys/demo"]).fails("no_public_key", "EXTERNAL_SYMMETRIC_ENCRYPTION");
    let unknown = run(&ekm, &["key", "create", "v0/keys/x", "--algorithm", "EC_SIGN_P521_SHA512"]);
    assert!(unknown.code == 2 && unknown.stderr.contains(P256), "{unknown:?}");

    let status = |verb: &str| {
        let answer = ekm.post(&format!("/{KEY}:{verb}"), &json!({"data": "AA=="}).to_string());
        (answer.status, answer.json()["code"].clone(), answer.text())
    };
    ekm.change_here(&json!({"type": "key-disable", "path": KEY}));
    for verb in ["asymmetricSign", "getPublicKey"] {
        let (status, code, text) = status(verb);
        assert_eq!((status, code), (400, json!(9)), "{text}");
        assert!(text.contains("[key_disabled]"), "{text}");
    }
    ekm.change_here(&json!({"type": "key-enable", "path": KEY}));
    assert_eq!((status("asymmetricSign").0, public_key(&ekm, KEY)), (200, mine));

    // A policy for the other kind of key is pointed out.
    let mut useless = signing_key("v0/keys/useless", P256);
    useless["policy"] = key_create("x")["policy"].clone();
    let warnings = ekm.change(useless)["warnings"].to_string();
    assert!(warnings.contains("allows nobody what a key with algorithm EC_SIGN_P256_SHA256 does"), "{warnings}");
    assert!(ekm.show("/v1/openapi.json").text().contains("EC_SIGN_P256_SHA256"));
}

#[test]
fn bad_requests_to_sign_are_refused_by_field_and_sign_nothing() {
    let ekm = Ekm::dev(&[]);
    let more = [("v0/keys/rsa", "RSA_SIGN_PSS_4096_SHA512"), (KEY, P256)];
    more.iter().for_each(|(path, algorithm)| make(&ekm, path, algorithm));
    let mut only_shown = signing_key("v0/keys/shown", P256);
    only_shown["policy"] = json!({"own": {"rules": [{"callers": [CALLER], "verbs": ["getPublicKey"]}]}});
    ekm.change_here(&only_shown);
    ekm.create_key("v0/keys/foreign", &json!({"callers": ["somebody@else.example"], "verbs": ["wrap", "unwrap"]}));
    let mut table = Table::over(ekm);
    let token = table.ekm.ready.token.clone();
    let mut row = |class: u8, name: &str, target: &str, body: &str, expect: Expect| {
        table.row(class, name, post_json(&format!("/{target}"), &token, body), expect);
    };
    let text = base64(PLAINTEXT);
    let data = json!({"data": text}).to_string();
    let bytes = |field: &str, length: usize| json!({field: STANDARD.encode(vec![7; length])}).to_string();
    let sign = "v0/keys/release:asymmetricSign";
    row(73, "good", sign, &data, Good);
    row(73, "nothing to sign, and that is signed", sign, &json!({"data": ""}).to_string(), Good);
    row(73, "snake case and null", sign, &json!({"data": text, "digest": null, "key_path": null}).to_string(), Good);
    row(73, "no input", sign, "{}", Refused(400, "data: is missing"));
    row(73, "another verb's input", sign, &json!({"plaintext": text}).to_string(), Refused(400, "data: is missing"));
    row(73, "both", sign, &json!({"data": text, "digest": text}).to_string(), Refused(400, "data and digest exclude"));
    row(73, "no base64", sign, &json!({"data": "!"}).to_string(), Refused(400, "data: is not base64"));
    row(
        73,
        "a number",
        sign,
        &json!({"data": 5}).to_string(),
        Refused(400, "body: has a field twice, or of the wrong"),
    );
    row(73, "as long as it may be", sign, &bytes("data", 65 * 1024), Good);
    row(73, "longer", sign, &bytes("data", 65 * 1024 + 1), Refused(400, "data: is longer than 66560 bytes"));
    row(
        73,
        "another path",
        sign,
        &json!({"data": text, "keyPath": "v0/keys/rsa"}).to_string(),
        Refused(400, "keyPath: "),
    );
    row(73, "no body", sign, "", Refused(400, "body: ends too early"));

    let wrong = Refused(400, "digest: is 20 bytes, and EC_SIGN_P256_SHA256 takes sha256 of 32 bytes");
    row(74, "SHA-1", sign, &bytes("digest", 20), wrong);
    for length in [0, 31, 33, 48, 64] {
        row(74, &format!("{length} bytes"), sign, &bytes("digest", length), Refused(400, "takes sha256 of 32 bytes"));
    }
    row(74, "a byte too much for all", sign, &bytes("digest", 65), Refused(400, "digest: is longer than 64 bytes"));
    let named = |hash: &str, length: usize| json!({"digest": {hash: STANDARD.encode(vec![7; length])}}).to_string();
    row(74, "good", sign, &named("sha256", 32), Good);
    row(74, "another hash", sign, &named("sha512", 64), Refused(400, "digest: is sha512, and EC_SIGN_P256_SHA256"));
    row(74, "another hash of the same length", sign, &named("sha384", 32), Refused(400, "digest: is sha384, and"));
    row(74, "too short for its name", sign, &named("sha256", 31), Refused(400, "takes sha256 of 32 bytes"));
    row(74, "unknown hash", sign, &named("sha1", 20), Refused(400, "names exactly one of sha256, sha384 and sha512"));
    row(74, "none", sign, r#"{"digest":{}}"#, Refused(400, "names exactly one of"));
    let two = json!({"digest": {"sha256": text, "sha384": text}}).to_string();
    row(74, "two hashes", sign, &two, Refused(400, "names exactly one of"));
    row(74, "a list", sign, r#"{"digest":["AA=="]}"#, Refused(400, "body: "));
    row(74, "good", "v0/keys/rsa:asymmetricSign", &named("sha512", 64), Good);
    row(
        74,
        "SHA-256 for SHA-512",
        "v0/keys/rsa:asymmetricSign",
        &named("sha256", 32),
        Refused(400, "takes sha512 of 64"),
    );

    let not_for = |algorithm: &'static str| Refused(400, algorithm);
    let symmetric = not_for("the key's algorithm is EXTERNAL_SYMMETRIC_ENCRYPTION, which is not for asymmetricSign");
    row(75, "signing with a key that wraps", "v0/keys/demo:asymmetricSign", &data, symmetric);
    let shown = not_for("EXTERNAL_SYMMETRIC_ENCRYPTION, which is not for getPublicKey [wrong_algorithm]");
    row(75, "the public half of a key that wraps", "v0/keys/demo:getPublicKey", "{}", shown);
    let allowed = json!({"callers": [CALLER], "verbs": ["wrap", "unwrap", "asymmetricSign"]});
    let plaintext = json!({"plaintext": text}).to_string();
    let signs = Refused(400, "the key's algorithm is EC_SIGN_P256_SHA256, which is not for wrap [wrong_algorithm]");
    row(75, "wrapping with a key that signs", "v0/keys/release:wrap", &plaintext, signs);
    let stranger = Refused(403, "the key's policy does not name this caller");
    row(75, "a stranger is told nothing", "v0/keys/foreign:asymmetricSign", &data, stranger);
    row(75, "a stranger is told nothing", "v0/keys/foreign:getPublicKey", "{}", stranger);
    row(75, "an unknown key", "v0/keys/none:asymmetricSign", &data, Refused(404, "there is no key"));
    row(75, "an unknown key", "v0/keys/none:getPublicKey", "{}", Refused(404, "there is no key"));
    let denied = Refused(403, "does not allow this caller to asymmetricSign");
    row(75, "a verb that the policy leaves out", "v0/keys/shown:asymmetricSign", &data, denied);
    row(75, "the one that it has", "v0/keys/shown:getPublicKey", "{}", Good);
    row(75, "no body", "v0/keys/shown:getPublicKey", "", Good);
    row(75, "a list", "v0/keys/shown:getPublicKey", "[]", Refused(400, "body: "));

    let both = json!({"type": "key-create", "path": "v0/keys/signs", "space": "v0/cryptospaces/demo", "algorithm": P256,
                      "policy": {"own": {"rules": [allowed]}}});
    table.ekm.change_here(&both);
    let mut row = |name: &str, target: &str, body: &str, expect: Expect| {
        table.row(75, name, post_json(&format!("/{target}"), &token, body), expect);
    };
    let unwrap = json!({"wrappedBlob": text}).to_string();
    let wrong = Refused(400, "the key's algorithm is EC_SIGN_P256_SHA256, which is not for wrap [wrong_algorithm]");
    row("wrapping with a key that signs", "v0/keys/signs:wrap", &plaintext, wrong);
    row("unwrapping with it", "v0/keys/signs:unwrap", &unwrap, Refused(400, "not for unwrap [wrong_algorithm]"));
    row("signing with it", "v0/keys/signs:asymmetricSign", &data, Good);
    table.finish(&[]);
}

/// Two tokens in worker processes, with a replication key.
fn replicated() -> Directory {
    let directory = two_replicas();
    ["softhsm", "softhsm-b"].iter().for_each(|token| put_replication_key(&directory, token, 7));
    directory
}

fn with_replication_key(config: String) -> String {
    config.replace("[[shard]]\n", "[[shard]]\nreplication_key_label = \"ekm-replication\"\n")
}

#[test]
fn a_signing_key_is_on_every_hsm_and_one_that_loses_it_gets_it_back() {
    let directory = replicated();
    let ekm = serve(&directory, with_replication_key);
    for (path, algorithm) in [(KEY, P256), ("v0/keys/rsa", "RSA_SIGN_PKCS1_2048_SHA256")] {
        make(&ekm, path, algorithm);
        let pem = public_key(&ekm, path);
        for drained in ["hsm-a", "hsm-b"] {
            ekm.change(json!({"type": "hsm-drain", "name": drained}));
            wait_until(&ekm, drained, "drained");
            let signature = sign(&ekm, path, json!({"data": base64("text")}));
            assert!(openssl_verifies(algorithm, &pem, b"text", &signature), "{algorithm}, {drained} drained");
            ekm.change(json!({"type": "hsm-resume", "name": drained}));
            wait_until(&ekm, drained, "serving");
        }
    }
    let line = ekm.audit().into_iter().rfind(|line| line["verb"] == "asymmetricSign").unwrap();
    assert_eq!((&line["custody"], &line["shard"]), (&json!("hsm"), &json!("main")), "{line}");
    assert!(
        ekm.metric("ekm_hsm_operation_seconds_count{operation=\"asymmetricSign\",replica=\"hsm-a\",shard=\"main\"}")
            > 0.0
    );
    run(&ekm, &["hsm", "verify"]).ends(0);
    drop(ekm);

    let objects = objects(&directory, "softhsm-b");
    objects.iter().rev().take(2).for_each(|file| fs::remove_file(file).unwrap());
    let ekm = serve(&directory, with_replication_key);
    for _ in 0..20 {
        sign(&ekm, KEY, json!({"data": base64("text")}));
    }
    run(&ekm, &["hsm", "verify", "--repair"]).ends(0);
    run(&ekm, &["hsm", "verify"]).ends(0);
    ekm.change(json!({"type": "hsm-drain", "name": "hsm-a"}));
    wait_until(&ekm, "hsm-a", "drained");
    let signature = sign(&ekm, KEY, json!({"data": base64("text")}));
    assert!(openssl_verifies(P256, &public_key(&ekm, KEY), b"text", &signature));
}

#[test]
fn a_wrong_signature_never_leaves_and_another_hsm_is_asked() {
    let directory = replicated();
    let module = before_hsm_b(&directory);
    let ekm = serve(&directory, with_replication_key);
    make(&ekm, KEY, P256);
    let pem = public_key(&ekm, KEY);
    for _ in 0..20 {
        sign(&ekm, KEY, json!({"data": base64("text")}));
    }
    // A busy machine may have been too slow for hsm-b to get it at once; one that lacks it is not asked.
    ekm.eventually("both hold it", || ekm.metric("ekm_hsm_missing_keys{replica=\"hsm-b\",shard=\"main\"}") == 0.0);
    module.inject(Fault::new(Effect::FlipBit).of("C_Sign"));
    // Which one is asked is chance: until the wrong one has been.
    ekm.eventually("blamed", || {
        let signature = sign(&ekm, KEY, json!({"data": base64("text")}));
        assert!(openssl_verifies(P256, &pem, b"text", &signature));
        ekm.metric("ekm_hsm_faults_total{replica=\"hsm-b\",shard=\"main\"}") > 0.0
    });
    ekm.change(json!({"type": "hsm-drain", "name": "hsm-a", "force": true}));
    wait_until(&ekm, "hsm-a", "drained");
    let answer = ekm.post(&format!("/{KEY}:asymmetricSign"), &json!({"data": "AA=="}).to_string());
    assert_eq!(answer.status, 503, "{}", answer.text());
    module.clear();
    ekm.eventually("signing again", || {
        ekm.post(&format!("/{KEY}:asymmetricSign"), &json!({"data": "AA=="}).to_string()).status == 200
    });
}

#[test]
fn making_an_rsa_key_takes_no_hsm_out_of_service() {
    let ekm = serve(&replicated(), with_replication_key);
    make(&ekm, KEY, "RSA_SIGN_PSS_4096_SHA256");
    for name in ["hsm-a", "hsm-b"] {
        assert_eq!(ekm.metric(&format!("ekm_hsm_ejections_total{{replica=\"{name}\",shard=\"main\"}}")), 0.0);
    }
    let signature = sign(&ekm, KEY, json!({"data": base64("text")}));
    assert!(openssl_verifies("RSA_SIGN_PSS_4096_SHA256", &public_key(&ekm, KEY), b"text", &signature));
}

#[test]
fn keys_as_code_make_signing_keys_and_never_change_what_a_key_does() {
    let ekm = Ekm::dev(&[]);
    let file = ekm.directory.path().join("keys.yaml");
    let text = format!(
        "keys:\n  - paths: [{KEY}]\n    space: v0/cryptospaces/demo\n    algorithm: {P256}\n    policy: {{rules: [{{callers: ['{CALLER}'], \
         verbs: [asymmetricSign, getPublicKey]}}]}}\n"
    );
    fs::write(&file, &text).unwrap();
    let file = file.to_str().unwrap();
    run(&ekm, &["apply", "-f", file, "--yes"]).ends(0);
    let signature = sign(&ekm, KEY, json!({"data": base64("text")}));
    assert!(openssl_verifies(P256, &public_key(&ekm, KEY), b"text", &signature));
    run(&ekm, &["apply", "-f", file, "--plan"]).ends(0);
    assert!(run(&ekm, &["apply", "--export"]).stdout.contains(P256));
    fs::write(file, text.replace(P256, "RSA_SIGN_PSS_2048_SHA256")).unwrap();
    run(&ekm, &["apply", "-f", file, "--plan"]).fails("keys_file", "cannot be changed to RSA_SIGN_PSS_2048_SHA256");
}
