//! The simulated Cloud KMS against a running service, and against servers that answer what no service of ours would.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use aws_lc_rs::encoding::{AsDer, PublicKeyX509Der};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair};
use ekm_tests::{
    Authority, CALLER, Directory, Ekm, FaultProxy, Flaw, Mode, WebServer, base64, ekm_binary, serve_fake_ekm, set_up,
};
use serde_json::{Value, json};

use crate::cli::{Run, finish};

/// A project of its own, whose issuer is that of a data directory of `ekm dev`.
pub(crate) struct Project {
    dev: PathBuf,
    pub(crate) files: tempfile::TempDir,
}

impl Project {
    pub(crate) fn of(dev: &Directory) -> Self {
        Self { dev: dev.path().to_owned(), files: tempfile::tempdir().unwrap() }
    }

    /// With a connection to this service, and a key `orders` that is its demo key.
    fn with_key(ekm: &Ekm) -> Self {
        let project = Self::of(&ekm.directory);
        project.connect(&ekm.address().to_string()).ends(0);
        project.run(&["create-key", "orders", "--path", "v0/keys/demo"]).ends(0);
        project
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(ekm_binary());
        command.arg("simulate-kms").args(arguments).stdin(Stdio::null()).current_dir(self.files.path());
        command.env("EKM_DEV_DATA", &self.dev).env("EKM_DEADLINE_MS", "20000").env_remove("EKM_SIMULATED_KMS");
        command
    }

    pub(crate) fn run(&self, arguments: &[&str]) -> Run {
        finish(self.command(arguments))
    }

    fn connect(&self, address: &str) -> Run {
        self.run(&["connect", "--address", address])
    }

    /// The JSON of a command that fails with this error.
    #[track_caller]
    pub(crate) fn fails(&self, arguments: &[&str], name: &str) -> Value {
        let run = self.run(&[arguments, &["--output", "json"]].concat()).ends(1);
        let json = run.json();
        assert_eq!(json["error"]["name"], name, "{json:#}");
        run.fails("cloud_kms_reports", name);
        json
    }

    fn encrypt(&self) -> Run {
        self.run(&["encrypt", "orders", "--in", self.data(), "--out", "data.enc"])
    }

    fn decrypt(&self) -> Run {
        self.run(&["decrypt", "--in", "data.enc", "--out", "data.out"])
    }

    /// A file to encrypt.
    pub(crate) fn data(&self) -> &str {
        fs::write(self.files.path().join("data"), DATA).unwrap();
        "data"
    }

    pub(crate) fn read(&self, file: &str) -> Vec<u8> {
        fs::read(self.files.path().join(file)).unwrap()
    }

    /// A version's state.
    fn state(&self, key: &str, version: &str) -> Value {
        self.run(&["show", "--output", "json"]).ends(0).json()["result"]["keys"][key]["versions"][version].clone()
    }
}

const DATA: &str = "what the customer has encrypted";
const ENCRYPT: [&str; 6] = ["encrypt", "orders", "--in", "data", "--out", "data.enc"];

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn what_is_encrypted_is_decrypted_and_only_with_the_same_aad() {
    let ekm = Ekm::dev(&[]);
    let project = Project::with_key(&ekm);
    let encrypt = ["encrypt", "orders", "--in", project.data(), "--out", "data.enc", "--aad", "order 7"];
    project.run(&encrypt).ends(0);
    let envelope = String::from_utf8(project.read("data.enc")).unwrap();
    assert!(!envelope.contains(DATA) && !envelope.contains(&base64(DATA)), "{envelope}");
    let decrypt = ["decrypt", "--in", "data.enc", "--out", "data.out", "--aad"];
    project.run(&[&decrypt[..], &["order 7"]].concat()).ends(0);
    assert_eq!(project.read("data.out"), DATA.as_bytes());

    let other_aad = [&decrypt[..], &["order 8"]].concat();
    let error = project.fails(&other_aad, "DECRYPTION_FAILED");
    assert_eq!((&error["error"]["code"], &error["error"]["effect"]), (&json!("INVALID_ARGUMENT"), &Value::Null));
    assert_eq!(project.state("orders", "1")["state"], "ENABLED");

    // Who called, for what, and why.
    let wrap = ekm.audit().into_iter().rfind(|line| line["verb"] == "wrap").unwrap();
    let version = "projects/simulated/locations/us-east1/keyRings/simulated/cryptoKeys/orders/cryptoKeyVersions/1";
    assert_eq!(wrap["relative_resource_name"], version, "{wrap}");
    assert_eq!(
        (&wrap["caller"], &wrap["justification"]),
        (&json!(CALLER), &json!("CUSTOMER_INITIATED_ACCESS")),
        "{wrap}"
    );
    // Google's own key is kept, and shown to nobody.
    let shown = project.run(&["show", "--output", "json"]).ends(0).stdout;
    assert!(!shown.contains("inner_key"), "{shown}");
}

#[test]
fn a_health_check_takes_the_whole_way_and_says_that_it_is_one() {
    let ekm = Ekm::dev(&[]);
    let project = Project::with_key(&ekm);
    project.run(&["health-check", "orders"]).ends(0);
    let audit = ekm.audit();
    let (checks, others): (Vec<_>, Vec<_>) = audit.iter().partition(|line| line["is_key_health_check"] == true);
    let verbs: Vec<_> = checks.iter().map(|line| &line["verb"]).collect();
    assert_eq!(verbs, ["wrap", "unwrap"], "{others:?}");
}

#[test]
fn a_denial_disables_the_version_and_nothing_else_does() {
    let ekm = Ekm::dev(&[]);
    let reasons = json!({"allowed": ["CUSTOMER_INITIATED_ACCESS"], "missing": false, "unknown": false});
    let rule = json!({"callers": [CALLER], "verbs": ["wrap", "unwrap"], "justifications": reasons});
    ekm.create_key("v0/keys/strict", &rule);
    let project = Project::of(&ekm.directory);
    project.connect(&ekm.address().to_string()).ends(0);
    project.run(&["create-key", "orders", "--path", "v0/keys/strict"]).ends(0);
    project.data();

    for reason in [&["--reason", "GOOGLE_INITIATED_REVIEW"][..], &["--reason", "OF_TOMORROW"], &["--no-reason"]] {
        let error = project.fails(&[&ENCRYPT[..], reason].concat(), "EXTERNAL_PERMISSION_DENIED");
        assert_eq!(error["error"]["effect"], "version 1 of key 'orders' is disabled now");
        assert_eq!(error["calls"].as_array().unwrap().len(), 1, "a denial is not tried again");
        let version = project.state("orders", "1");
        assert_eq!(version["state"], "DISABLED");
        assert_eq!(version["disabled_because"], "EXTERNAL_PERMISSION_DENIED");
        // With the right reason it is too late: the EKM is not even asked.
        let refused = project.fails(&ENCRYPT, "FAILED_PRECONDITION");
        assert_eq!(refused["calls"], json!([]));
        project.run(&["enable", "orders"]).ends(0);
        project.encrypt().ends(0);
    }

    // An operator's pause is no denial.
    ekm.change_here(&json!({"type": "key-disable", "path": "v0/keys/strict"}));
    project.fails(&["decrypt", "--in", "data.enc", "--out", "data.out"], "UNEXPECTED_ERROR");
    assert_eq!(project.state("orders", "1")["state"], "ENABLED");
    ekm.change_here(&json!({"type": "key-enable", "path": "v0/keys/strict"}));
    project.decrypt().ends(0);
    assert_eq!(project.read("data.out"), DATA.as_bytes());
}

#[test]
fn a_project_that_was_not_granted_the_key_cannot_make_one_from_it() {
    let ekm = Ekm::dev(&[]);
    ekm.create_key("v0/keys/granted", &json!({"callers": [CALLER], "verbs": ["wrap", "unwrap"]}));
    let project = Project::of(&ekm.directory);
    project.run(&["connect", "--address", &ekm.address().to_string(), "--project-number", "7"]).ends(0);
    project.fails(&["create-key", "orders", "--path", "v0/keys/granted"], "EXTERNAL_PERMISSION_DENIED");
    assert_eq!(project.run(&["show", "--output", "json"]).ends(0).json()["result"]["keys"], json!({}));
    project.run(&["show", "--project-number", "8"]).fails("simulate_kms", "is of project 7");
    project.fails(&["create-key", "orders", "--path", "v0/keys/none"], "EXTERNAL_NOT_FOUND");
}

#[test]
fn what_does_not_answer_in_time_is_tried_again_and_at_another_endpoint() {
    let ekm = Ekm::dev(&[]);
    let (first, second) = (FaultProxy::to(ekm.address()), FaultProxy::to(ekm.address()));
    let project = Project::of(&ekm.directory);
    let addresses = [first.address().to_string(), second.address().to_string()];
    project.run(&["connect", "--address", &addresses[0], "--address", &addresses[1]]).ends(0);
    project.run(&["create-key", "orders", "--path", "v0/keys/demo"]).ends(0);
    project.data();

    first.set(Mode::Stall);
    second.set(Mode::Stall);
    let begun = Instant::now();
    let silent = project.fails(&[&ENCRYPT[..], &["--deadline-ms", "150", "--tries", "3"]].concat(), "TIMEOUT");
    assert!(begun.elapsed() >= Duration::from_millis(450));
    let calls = silent["calls"].as_array().unwrap();
    let told: Vec<_> = calls.iter().map(|call| (&call["endpoint"], &call["error"], &call["retried"])).collect();
    let (one, two, timeout) = (json!(addresses[0]), json!(addresses[1]), json!("TIMEOUT"));
    assert_eq!(told, [(&one, &timeout, &json!(true)), (&two, &timeout, &json!(true)), (&one, &timeout, &json!(false))]);
    assert_eq!(project.state("orders", "1")["state"], "ENABLED");

    second.set(Mode::Forward);
    let run = project.run(&[&ENCRYPT[..], &["--deadline-ms", "3000", "--output", "json"]].concat()).ends(0);
    let errors: Vec<_> = run.json()["calls"].as_array().unwrap().iter().map(|call| call["error"].clone()).collect();
    assert_eq!(errors, [timeout, Value::Null]);

    first.set(Mode::Cut);
    second.set(Mode::Cut);
    let cut = project.fails(&ENCRYPT, "UNREACHABLE_NETWORK");
    assert_eq!(cut["calls"].as_array().unwrap().len(), 3);
    // A connection is made only with an EKM that is there.
    project.fails(&["connect", "--address", &addresses[0]], "UNREACHABLE_NETWORK");
    first.set(Mode::Forward);
    project.encrypt().ends(0);
}

#[test]
fn only_a_pinned_certificate_for_the_hosts_name_is_believed() {
    let directory = set_up(&[]);
    let authority = Authority::new(directory.path());
    let (certificate, key) = authority.issue(directory.path(), "ekm", &["localhost"]);
    let dev = directory.path().join("tls/certificate.pem");
    fs::copy(&certificate, &dev).unwrap();
    fs::copy(&key, directory.path().join("tls/private-key.pem")).unwrap();
    let ekm = Ekm::dev_in(&directory, &[]);
    let project = Project::of(&ekm.directory);
    let address = ekm.address().to_string();
    fn connecting<'a>(address: &'a str, more: &[&'a str]) -> Vec<&'a str> {
        [&["connect", "--address", address][..], more].concat()
    }

    project.run(&connecting(&address, &["--certificate", text(&certificate)])).ends(0);
    let ca = text(&authority.ca_file);
    let message = |json: &Value| json["calls"][0]["detail"].as_str().unwrap().to_owned();
    let issuer_only = project.fails(&connecting(&address, &["--certificate", ca]), "TLS_CERT");
    assert!(message(&issuer_only).contains("none of those pinned"), "{issuer_only:#}");
    // The next one is pinned before the server shows it.
    project.run(&connecting(&address, &["--certificate", ca, "--certificate", text(&certificate)])).ends(0);
    let other_name = connecting(&address, &["--certificate", text(&certificate), "--hostname", "ekm.example.com"]);
    let other_name = project.fails(&other_name, "TLS_CERT");
    assert!(message(&other_name).contains("ekm.example.com"), "{other_name:#}");
    let eleven: Vec<_> = (0..11).flat_map(|_| ["--certificate", ca]).collect();
    project.fails(&connecting(&address, &eleven), "INVALID_ARGUMENT");
    project.run(&connecting(&address, &["--certificate", "/dev/null"])).fails("simulate_kms", "no certificate in it");
    // What failed changed nothing.
    project.run(&["verify-connectivity"]).ends(0);
    let shown = project.run(&["show", "--output", "json"]).ends(0).json();
    assert_eq!(shown["result"]["connection"]["certificates"].as_array().unwrap().len(), 2);
}

#[test]
fn a_pinned_certificate_that_has_expired_is_not_believed() {
    let directory = set_up(&[]);
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
    let mut parameters = rcgen::CertificateParams::new(["localhost".into()]).unwrap();
    parameters.not_after = rcgen::date_time_ymd(2024, 1, 1);
    let certificate = parameters.self_signed(&key).unwrap();
    fs::write(directory.path().join("tls/certificate.pem"), certificate.pem()).unwrap();
    fs::write(directory.path().join("tls/private-key.pem"), key.serialize_pem()).unwrap();
    let server = WebServer::serving_tls("{}", directory.path());
    let project = Project::of(&directory);
    let connect = ["connect", "--address", &server.address().to_string()];
    let expired = project.fails(&connect, "TLS_CERT");
    assert!(expired["calls"][0]["detail"].as_str().unwrap().contains("has expired"), "{expired:#}");
}

#[test]
fn a_key_is_used_by_its_uri_too_and_only_with_a_certificate_of_an_authority() {
    let ekm = Ekm::dev(&[]);
    let project = Project::of(&ekm.directory);
    let uri = format!("{}/v0/keys/demo", ekm.ready.base_url);
    let create = ["create-key", "orders", "--uri", &uri];
    // That of `ekm dev` is nobody's whom the system trusts.
    project.fails(&create, "TLS_CERT");
    let ca_file = text(&ekm.ready.ca_file);
    project.run(&[&create[..], &["--ca-file", ca_file]].concat()).ends(0);
    assert_eq!(project.state("orders", "1")["protection_level"], "EXTERNAL");
    project.encrypt().ends(0);
    project.decrypt().ends(0);
    assert_eq!(project.read("data.out"), DATA.as_bytes());

    let unknown = format!("{}/v0/keys/none", ekm.ready.base_url);
    project.fails(&["create-key", "other", "--uri", &unknown, "--ca-file", ca_file], "EXTERNAL_NOT_FOUND");
    for uri in ["http://localhost/v0/keys/demo", "v0/keys/demo", "https://localhost/v0/keys/demo?x"] {
        project.fails(&["create-key", "other", "--uri", uri], "EXTERNAL_KEY_URI_INVALID");
    }
    project.fails(&["create-key", "other"], "INVALID_ARGUMENT");

    // The key moves behind a connection, under another path, and opens what it has wrapped.
    ekm.change_here(&json!({"type": "key-add-path", "path": "v0/keys/demo", "new": "v0/vpc/demo"}));
    project.connect(&ekm.address().to_string()).ends(0);
    project.run(&["update", "orders", "--path", "v0/vpc/demo"]).ends(0);
    assert_eq!(project.state("orders", "1")["protection_level"], "EXTERNAL_VPC");
    project.decrypt().ends(0);
}

#[test]
fn a_rotated_key_has_a_new_path_and_opens_what_the_old_one_encrypted() {
    let ekm = Ekm::dev(&[]);
    ekm.create_key("v0/keys/next", &json!({"callers": [CALLER], "verbs": ["wrap", "unwrap"]}));
    let project = Project::with_key(&ekm);
    project.encrypt().ends(0);
    project.fails(&["rotate", "orders"], "INVALID_ARGUMENT");
    project.fails(&["rotate", "orders", "--path", "v0/keys/none"], "EXTERNAL_NOT_FOUND");
    project.run(&["rotate", "orders", "--path", "v0/keys/next"]).ends(0);
    project.run(&["encrypt", "orders", "--in", "data", "--out", "data2.enc"]).ends(0);
    let version = |file: &str| serde_json::from_slice::<Value>(&project.read(file)).unwrap()["version"].clone();
    assert_eq!((version("data.enc"), version("data2.enc")), (json!(1), json!(2)));
    let paths: Vec<_> =
        ekm.audit().iter().filter(|line| line["verb"] == "wrap").map(|line| line["path"].clone()).collect();
    assert_eq!(paths.last().unwrap(), "/v0/keys/next:wrap", "{paths:?}");
    project.decrypt().ends(0);

    // The first version goes, and comes back as long as its time has not come.
    project.run(&["destroy", "orders", "--key-version", "1"]).ends(0);
    project.fails(&["decrypt", "--in", "data.enc", "--out", "data.out"], "FAILED_PRECONDITION");
    project.run(&["restore", "orders", "--key-version", "1"]).ends(0);
    assert_eq!(project.state("orders", "1")["state"], "DISABLED");
    project.run(&["enable", "orders", "--key-version", "1"]).ends(0);
    project.decrypt().ends(0);
    project.run(&["destroy", "orders", "--key-version", "1", "--now"]).ends(0);
    project.fails(&["restore", "orders", "--key-version", "1"], "FAILED_PRECONDITION");
    project.fails(&["decrypt", "--in", "data.enc", "--out", "data.out"], "FAILED_PRECONDITION");
    project.run(&["decrypt", "--in", "data2.enc", "--out", "data.out"]).ends(0);
}

/// A server that gives one answer to everything, with a project that is connected to it.
fn with_web_server(answer: &Value, connect: &[&str]) -> (WebServer, Project, Directory) {
    let directory = set_up(&[]);
    let server = WebServer::serving_tls(&answer.to_string(), directory.path());
    let project = Project::of(&directory);
    project.run(&[&["connect", "--address", &server.address().to_string()][..], connect].concat()).ends(0);
    (server, project, directory)
}

#[test]
fn every_answer_of_an_ekm_is_told_as_cloud_kms_tells_it() {
    let (server, project, _directory) = with_web_server(&json!({"wrappedBlob": "AAAA"}), &[]);
    project.run(&["create-key", "orders", "--path", "v0/keys/x"]).ends(0);
    project.encrypt().ends(0);
    let good = json!({"wrappedBlob": "AAAA"}).to_string();
    let paused = r#"{"error":{"code":400,"status":"FAILED_PRECONDITION","message":"paused"}}"#;
    let decrypt = ["decrypt", "--in", "data.enc", "--out", "data.out"];
    for (arguments, status, body, name, tries, disables) in [
        (&ENCRYPT[..], 401, "{}", "EXTERNAL_PERMISSION_DENIED", 1, true),
        (&ENCRYPT, 403, "{}", "EXTERNAL_PERMISSION_DENIED", 1, true),
        (&ENCRYPT, 404, "{}", "EXTERNAL_NOT_FOUND", 1, false),
        (&ENCRYPT, 400, "{}", "UNEXPECTED_ERROR", 1, false),
        (&ENCRYPT, 429, "{}", "EXTERNAL_RESOURCE_EXHAUSTED", 3, false),
        (&ENCRYPT, 503, "{}", "OVERLOADED_EKM", 3, false),
        (&ENCRYPT, 500, "{}", "EXTERNAL_SERVER_ERROR", 1, false),
        (&ENCRYPT, 501, "{}", "EXTERNAL_NOT_IMPLEMENTED", 1, false),
        (&ENCRYPT, 302, "{}", "UNEXPECTED_RESPONSE", 1, false),
        (&ENCRYPT, 201, &good, "UNEXPECTED_RESPONSE", 1, false),
        (&ENCRYPT, 200, "{}", "UNEXPECTED_RESPONSE", 1, false),
        (&ENCRYPT, 200, "<html>", "UNEXPECTED_RESPONSE", 1, false),
        (&ENCRYPT, 200, r#"{"wrappedBlob":"_-_-"}"#, "UNEXPECTED_RESPONSE", 1, false),
        (&decrypt, 400, r#"{"code":3,"message":"no"}"#, "DECRYPTION_FAILED", 1, false),
        (&decrypt, 400, r#"{"code":9,"message":"paused"}"#, "UNEXPECTED_ERROR", 1, false),
        (&decrypt, 400, paused, "UNEXPECTED_ERROR", 1, false),
        // Something, but not what was wrapped.
        (&decrypt, 200, r#"{"plaintext":"AAAA"}"#, "UNEXPECTED_RESPONSE", 1, false),
    ] {
        let head = format!("HTTP/1.1 {status} x\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
        server.set_answer((head + body).into_bytes());
        let json = project.fails(arguments, name);
        assert_eq!(json["calls"].as_array().unwrap().len(), tries, "{status} {body}: {json:#}");
        let expected = if disables { "DISABLED" } else { "ENABLED" };
        assert_eq!(project.state("orders", "1")["state"], expected, "{status} {body}");
        project.run(&["enable", "orders"]).ends(0);
    }
}

#[test]
fn the_token_is_for_the_host_without_its_port_and_of_the_projects_service_agent() {
    use ekm_tests::unbase64;
    let (server, project, _directory) = with_web_server(&json!({"wrappedBlob": "AAAA"}), &["--project-number", "42"]);
    project.run(&["create-key", "orders", "--path", "v0/keys/x", "--no-reason"]).ends(0);
    let request = server.last_request();
    assert!(request.starts_with("POST /v0/keys/x:wrap HTTP/1.1\r\n"), "{request}");
    let token = request.to_ascii_lowercase().find("bearer ").map(|at| &request[at + 7..]).unwrap();
    let claims = token.split('.').nth(1).unwrap().replace('-', "+").replace('_', "/");
    let padded = format!("{claims}{}", "=".repeat((4 - claims.len() % 4) % 4));
    let claims: Value = serde_json::from_slice(&unbase64(&padded)).unwrap();
    assert_eq!(claims["aud"], "https://localhost");
    assert_eq!(claims["email"], "service-42@gcp-sa-ekms.iam.gserviceaccount.com");
    assert_eq!(claims["email_verified"], true);
    assert!(!request.contains("accessReasonContext"), "{request}");
}

/// An EKM that implements what ours does not yet, as far as one answer to everything can.
#[test]
fn cloud_kms_makes_and_destroys_keys_over_a_connection_of_that_mode() {
    let answer = json!({"permissions": ["destroyKey", "createKey"], "keyPath": "v0/keys/made", "wrappedBlob": "AAAA"});
    let mode = ["--mode", "cloud-kms", "--crypto-space", "v0/cryptospaces/x"];
    let (server, project, _directory) = with_web_server(&answer, &mode);
    let asked = server.last_request();
    assert!(asked.starts_with("POST /v0/cryptospaces/x:checkCryptoSpacePermissions "), "{asked}");
    let created = project.run(&["create-key", "orders", "--output", "json"]).ends(0).json();
    let calls: Vec<_> = created["calls"].as_array().unwrap().iter().map(|call| call["path"].clone()).collect();
    assert_eq!(calls, ["v0/cryptospaces/x:createKey", "v0/keys/made:wrap"]);
    assert_eq!(project.state("orders", "1")["ekm_connection_key_path"], "v0/keys/made");
    project.fails(&["create-key", "other", "--path", "v0/keys/chosen"], "INVALID_ARGUMENT");
    project.run(&["rotate", "orders"]).ends(0);
    assert!(server.last_request().contains("cryptoKeys/orders/cryptoKeyVersions/2"), "{}", server.last_request());
    let before = server.hits();
    project.run(&["destroy", "orders", "--key-version", "2"]).ends(0);
    assert_eq!(server.hits(), before, "the EKM hears of it when the time has come");
    project.run(&["destroy", "orders", "--key-version", "2", "--now"]).ends(0);
    assert!(server.last_request().starts_with("POST /v0/keys/made:destroyKey "), "{}", server.last_request());
    assert_eq!(project.state("orders", "2")["state"], "DESTROYED");

    server.set_document(&json!({"permissions": ["createKey"]}).to_string());
    project.fails(&["verify-connectivity"], "EXTERNAL_PERMISSION_DENIED");
    server.set_answer(b"HTTP/1.1 501 x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".to_vec());
    project.fails(&["rotate", "orders"], "EXTERNAL_NOT_IMPLEMENTED");
    // The first version's destruction is not believed done before the EKM says so.
    project.fails(&["destroy", "orders", "--key-version", "1", "--now"], "EXTERNAL_NOT_IMPLEMENTED");
    assert_eq!(project.state("orders", "1")["state"], "DESTROY_SCHEDULED");
    // No permissions, no connection; and a crypto space goes with this mode only.
    let address = server.address().to_string();
    project.fails(&["connect", "--address", &address, "--crypto-space", "v0/cryptospaces/x"], "INVALID_ARGUMENT");
    project.fails(&["connect", "--address", &address, "--mode", "cloud-kms"], "INVALID_ARGUMENT");
}

#[test]
fn a_signature_is_taken_only_if_the_public_key_proves_it() {
    let key = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING).unwrap();
    let der: PublicKeyX509Der<'_> = key.public_key().as_der().unwrap();
    let pem = format!("-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n", base64(der.as_ref()));
    let signature = key.sign(&SystemRandom::new(), DATA.as_bytes()).unwrap();
    let answer = json!({"publicKey": pem, "algorithm": "EC_SIGN_P256_SHA256", "signature": base64(signature.as_ref())});
    let (server, project, _directory) = with_web_server(&answer, &[]);
    project.run(&["create-key", "seal", "--path", "v0/keys/x", "--algorithm", "EC_SIGN_P256_SHA256"]).ends(0);
    assert!(project.run(&["public-key", "seal"]).ends(0).stdout.contains(pem.trim()));
    project.data();
    project.run(&["sign", "seal", "--in", "data", "--out", "signature"]).ends(0);
    assert_eq!(project.read("signature"), signature.as_ref());
    fs::write(project.files.path().join("other"), "something else").unwrap();
    project.fails(&["sign", "seal", "--in", "other", "--out", "signature"], "UNEXPECTED_RESPONSE");
    project.fails(&["encrypt", "seal", "--in", "data", "--out", "data.enc"], "FAILED_PRECONDITION");
    project.fails(&["create-key", "odd", "--path", "v0/keys/x", "--algorithm", "EC_SIGN_P521"], "INVALID_ARGUMENT");
    server.set_answer(b"HTTP/1.1 501 x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".to_vec());
    let missing = project.fails(&["sign", "seal", "--in", "data", "--out", "signature"], "EXTERNAL_NOT_IMPLEMENTED");
    assert!(missing["error"]["message"].as_str().unwrap().contains("asymmetricSign"), "{missing:#}");
}

/// An EKM of another vendor, which has every method.
#[test]
fn keys_that_cloud_kms_makes_live_and_die_with_their_versions() {
    let directory = set_up(&[]);
    // It knows no issuer, so it has to let everybody in.
    let server = serve_fake_ekm(Some(Flaw::LetsEverybodyIn), directory.path());
    let project = Project::of(&directory);
    let mode = ["--mode", "cloud-kms", "--crypto-space", "v0/cryptospaces/c"];
    project.run(&[&["connect", "--address", &server.address().to_string()][..], &mode].concat()).ends(0);
    project.run(&["create-key", "orders"]).ends(0);
    project.encrypt().ends(0);
    project.run(&["rotate", "orders"]).ends(0);
    let path = |version| project.state("orders", version)["ekm_connection_key_path"].clone();
    assert_ne!(path("1"), path("2"));
    project.decrypt().ends(0);
    assert_eq!(project.read("data.out"), DATA.as_bytes());
    project.run(&["destroy", "orders", "--key-version", "1", "--now"]).ends(0);
    // Also for whoever knows the path.
    project.run(&["connect", "--address", &server.address().to_string()]).ends(0);
    let destroyed = path("1");
    project.fails(&["create-key", "thief", "--path", destroyed.as_str().unwrap()], "UNEXPECTED_ERROR");
    project.run(&["create-key", "heir", "--path", path("2").as_str().unwrap()]).ends(0);
    let sign = ["create-key", "seal", "--path", "v0/keys/s", "--algorithm", "EC_SIGN_P256_SHA256"];
    project.run(&sign).ends(0);
    project.run(&["sign", "seal", "--in", project.data(), "--out", "signature"]).ends(0);
}
