//! Who is let in to the admin API, who he is then, and what is refused before anything is done.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use ekm_tests::{Answer, Connection, Directory, Ekm, Issuer, curl_over_http2, run_ekm, set_up, tls_config};
use rcgen::{CertificateParams, DnType, IsCa, KeyPair, PKCS_ECDSA_P256_SHA256, SanType};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Value, json};

/// An authority for client certificates.
struct Authority {
    issuer: rcgen::Issuer<'static, KeyPair>,
    file: PathBuf,
}

fn key() -> KeyPair {
    KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap()
}

impl Authority {
    fn new(directory: &Path, name: &str) -> Self {
        let mut parameters = CertificateParams::new([]).unwrap();
        parameters.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        parameters.distinguished_name.push(DnType::CommonName, name);
        let (key, file) = (key(), directory.join(name));
        fs::write(&file, parameters.self_signed(&key).unwrap().pem()).unwrap();
        Self { issuer: rcgen::Issuer::new(parameters, key), file }
    }

    /// TLS settings of somebody whose certificate has this e-mail address and this common name.
    fn client(&self, ekm: &Ekm, email: &str, common_name: &str) -> rustls::ClientConfig {
        let mut parameters = CertificateParams::new([]).unwrap();
        parameters.subject_alt_names.push(SanType::Rfc822Name(email.try_into().unwrap()));
        parameters.distinguished_name.push(DnType::CommonName, common_name);
        let key = key();
        let certificate = parameters.signed_by(&key, &self.issuer).unwrap();
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(&ekm.ready.ca_file).unwrap()).unwrap();
        let provider = std::sync::Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let private = PrivateKeyDer::from_pem_slice(key.serialize_pem().as_bytes()).unwrap();
        config
            .unwrap()
            .with_root_certificates(roots)
            .with_client_auth_cert(vec![certificate.der().clone()], private)
            .unwrap()
    }
}

/// `ekm serve` with a network listener for the admin API; `developer` is known by all that he has.
fn serve(directory: &Directory, authority: &Authority) -> Ekm {
    let lines = format!("[admin]\nlisten = \"127.0.0.1:0\"\nclient_ca_file = {:?}", authority.file);
    Ekm::serve(directory, |config| {
        let all = "name = \"developer\"\ncertificate = \"dev@example.com\"\nemail = \"dev@localhost\"";
        config.replace("[admin]", &lines).replace("name = \"developer\"", all)
    })
}

fn over_tls(ekm: &Ekm, config: rustls::ClientConfig, token: Option<&str>) -> std::io::Result<Answer> {
    let mut connection = Connection::open_with(ekm.ready.admin_address.unwrap(), config)?;
    let token = token.map_or(String::new(), |token| format!("Authorization: Bearer {token}\r\n"));
    connection.send(format!("GET /v1/whoami HTTP/1.1\r\nHost: localhost\r\n{token}\r\n").as_bytes())?;
    connection.read_answer()
}

/// Status and code.
fn outcome(answer: &Answer) -> (u16, String) {
    (answer.status, answer.json()["code"].as_str().unwrap_or_default().to_owned())
}

#[test]
fn a_person_is_one_name_by_certificate_token_and_user_id_and_others_are_not_let_in() {
    let directory = set_up(&[]);
    let (ours, other) = (Authority::new(directory.path(), "ours"), Authority::new(directory.path(), "other"));
    let ekm = serve(&directory, &ours);
    let anonymous = || tls_config(&ekm.ready.ca_file, &["http/1.1"]);
    let token = |email: &str| ekm.issuer().token_with(json!({"aud": "ekm-admin", "email": email}));

    let developer = json!({"name": "developer", "roles": ["viewer", "operator", "key-admin", "security-officer"]});
    for answer in [
        over_tls(&ekm, ours.client(&ekm, "dev@example.com", "somebody"), None).unwrap(),
        over_tls(&ekm, ours.client(&ekm, "other@example.com", "dev@example.com"), None).unwrap(),
        over_tls(&ekm, anonymous(), Some(&token("dev@localhost"))).unwrap(),
        ekm.admin().admin("GET", "/v1/whoami", None, None),
        ekm.admin().admin("GET", "/v1/whoami", Some(&token("dev@localhost")), None),
    ] {
        assert_eq!((answer.status, answer.json()), (200, developer.clone()));
        assert_eq!(answer.header("cache-control"), Some("no-store"));
    }

    // A token was chosen for the request; certificate and user id only say where it comes from.
    for answer in [
        over_tls(&ekm, ours.client(&ekm, "dev@example.com", "x"), Some(&ekm.second_person())).unwrap(),
        ekm.admin().admin("GET", "/v1/whoami", Some(&ekm.second_person()), None),
    ] {
        assert_eq!(answer.json(), json!({"name": "second", "roles": ["security-officer"]}));
    }

    let stranger = over_tls(&ekm, ours.client(&ekm, "eve@example.com", "Eve"), None).unwrap();
    assert_eq!(outcome(&stranger), (403, "admin_unknown_person".into()));
    let message = stranger.message();
    assert!(message.contains("[\"eve@example.com\", \"Eve\"]"), "{message}");
    assert!(message.contains("add certificate = \"eve@example.com\""), "{message}");

    assert!(over_tls(&ekm, other.client(&ekm, "dev@example.com", "x"), None).is_err(), "another authority");
    let nobody = over_tls(&ekm, anonymous(), None).unwrap();
    assert_eq!(outcome(&nobody), (401, "admin_unauthenticated".into()));
    assert_eq!(nobody.header("www-authenticate"), Some("Bearer"));
    assert!(ekm.metric("ekm_admin_requests_total{code=\"ok\"}") >= 7.0);
    assert_eq!(ekm.metric("ekm_admin_requests_total{code=\"admin_unknown_person\"}"), 1.0);
}

/// As on the EKM listener: an answer that leaves before its request is complete gets lost with some clients.
#[test]
fn curl_over_http2_always_reads_why_it_was_refused() {
    let directory = set_up(&[]);
    let ekm = serve(&directory, &Authority::new(directory.path(), "ours"));
    let url = format!("https://localhost:{}", ekm.ready.admin_address.unwrap().port());
    let (big, bigger) = (directory.path().join("big.json"), directory.path().join("bigger.json"));
    fs::write(&big, format!("{{\"reason\":\"{}\"}}", "A".repeat(1_000_000))).unwrap();
    fs::write(&bigger, format!("{{\"reason\":\"{}\"}}", "A".repeat(1_100_000))).unwrap();
    let good = format!("Authorization: Bearer {}", ekm.second_person());
    for (header, path, file, status) in [
        ("X: no token", "/v1/changes", &big, 401),
        (&*good, "/v1/nothing", &big, 404),
        (&*good, "/v1/keys", &big, 405),
        (&*good, "/v1/changes", &big, 400),
        (&*good, "/v1/changes", &bigger, 400),
    ] {
        for _ in 0..5 {
            let (url, body) = (format!("{url}{path}"), format!("@{}", file.display()));
            let (stdout, stderr) = curl_over_http2(&ekm.ready.ca_file, &url, header, &body);
            assert!(stdout.ends_with(&format!(" {status} 2")) && stdout.starts_with("{\"code\":"), "{stdout} {stderr}");
        }
    }
}

#[test]
fn without_issuers_a_client_without_a_certificate_is_turned_away_in_the_handshake() {
    let directory = set_up(&[]);
    let authority = Authority::new(directory.path(), "ours");
    let ekm = Ekm::serve(&directory, |config| {
        let (before, _) = config.split_once("[admin]").unwrap();
        format!(
            "{before}[admin]\nlisten = \"127.0.0.1:0\"\nclient_ca_file = {:?}\n[[admin.people]]\nname = \"alice\"\n\
             roles = [\"auditor\"]\ncertificate = \"alice@example.com\"\n[limits]\nrequest_deadline_ms = 20000\n",
            authority.file
        )
    });
    let client = || authority.client(&ekm, "alice@example.com", "Alice");
    assert_eq!(over_tls(&ekm, client(), None).unwrap().json(), json!({"name": "alice", "roles": ["viewer"]}));
    assert!(over_tls(&ekm, tls_config(&ekm.ready.ca_file, &["http/1.1"]), None).is_err());
    let answer = over_tls(&ekm, client(), Some("a.b.c")).unwrap();
    assert_eq!(outcome(&answer), (401, "admin_unauthenticated".into()));
    assert!(answer.message().contains("add [[admin.issuers]]"), "{answer:?}");
    assert!(ekm.ready.admin_socket.is_none());
}

#[test]
fn a_token_must_be_sound_for_this_audience_and_of_somebody_who_is_known() {
    let ekm = Ekm::dev(&[]);
    let (issuer, now) = (ekm.issuer(), Issuer::now());
    let good = json!({"aud": "ekm-admin", "email": "second@localhost"});
    let with = |changes: Value| {
        let mut claims = good.clone();
        claims.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
        issuer.token_with(claims)
    };
    let forged = Issuer::new("ekm-dev").token_with(good.clone());
    for (name, token, status, code, text) in [
        ("expired", with(json!({"iat": now - 7200, "exp": now - 3600})), 401, "admin_unauthenticated", "expired"),
        ("wrong audience", with(json!({"aud": "https://localhost"})), 401, "admin_unauthenticated", "another audience"),
        ("wrong issuer", with(json!({"iss": "https://evil.example"})), 401, "admin_unauthenticated", "not trusted"),
        ("wrong key", forged, 401, "admin_unauthenticated", "signature"),
        ("no token", "nonsense".into(), 401, "admin_unauthenticated", ""),
        ("unverified", with(json!({"email_verified": false})), 403, "admin_unknown_person", "not verified"),
        (
            "unknown",
            with(json!({"email": "eve@localhost"})),
            403,
            "admin_unknown_person",
            "add email = \"eve@localhost\"",
        ),
    ] {
        let answer = ekm.admin().admin("GET", "/v1/whoami", Some(&token), None);
        assert_eq!(outcome(&answer), (status, code.into()), "{name}");
        assert!(answer.message().contains(text), "{name}: {answer:?}");
        ekm.assert_not_leaked(&[&token]);
    }
    // And a token for people is none for Cloud KMS.
    let answer = ekm.connect().post("/v0/keys/demo:wrap", &with(json!({})), r#"{"plaintext":"AA=="}"#);
    assert_eq!(answer.status, 401);
}

#[test]
fn the_token_that_ekm_dev_prints_for_the_second_person_works() {
    let ekm = Ekm::dev(&[]);
    let data = ekm.directory.path().to_str().unwrap();
    let output = run_ekm(&["dev", "--data", data, "token", "--caller", "second@localhost", "--audience", "ekm-admin"]);
    let token = String::from_utf8(output.stdout).unwrap();
    assert_eq!(ekm.admin().admin("GET", "/v1/whoami", Some(token.trim()), None).json()["name"], "second");
}

#[test]
fn a_process_of_a_user_who_is_not_known_is_refused_on_the_unix_socket() {
    let directory = set_up(&[]);
    let uid = rustix::process::getuid().as_raw();
    let ekm = Ekm::serve(&directory, |config| config.replace(&format!("uid = {uid}"), &format!("uid = {}", uid + 1)));
    let answer = ekm.admin().admin("GET", "/v1/whoami", None, None);
    assert_eq!(outcome(&answer), (403, "admin_unknown_person".into()));
    assert!(answer.message().contains(&format!("add uid = {uid}")), "{answer:?}");
}

#[test]
fn a_role_that_is_missing_is_named_and_the_attempt_is_in_the_log() {
    let directory = set_up(&[]);
    let ekm = Ekm::serve(&directory, |config| config);
    let second = ekm.second_person();
    let command = r#"{"command": {"type": "key-disable", "path": "v0/keys/demo"}, "reason": "a reason of his own"}"#;
    let answer = ekm.admin().admin("POST", "/v1/changes", Some(&second), Some(command));
    assert_eq!(outcome(&answer), (403, "admin_role_missing".into()));
    assert!(answer.message().starts_with("second does not have the role 'operator'"), "{answer:?}");
    let log = ekm.log();
    let line = log.lines().find(|line| line.contains("admin request")).unwrap_or_else(|| panic!("{log}"));
    let line: Value = serde_json::from_str(line).unwrap();
    let fields = ["actor", "action", "subject", "outcome"].map(|field| line[field].as_str().unwrap());
    assert_eq!(fields, ["second", "key-disable", "v0/keys/demo", "admin_role_missing"]);
    assert!(!log.contains("a reason of his own"));
}

#[test]
fn what_is_no_proper_request_is_refused_with_the_place() {
    let ekm = Ekm::dev(&[]);
    let mut connection = ekm.admin();
    for (method, target, body, status, code, text) in [
        ("GET", "/v1/nothing", None, 404, "admin_no_such_path", ""),
        ("GET", "/", None, 404, "admin_no_such_path", ""),
        ("GET", "/v1/keys/", None, 404, "admin_no_such_path", ""),
        ("DELETE", "/v1/keys", None, 405, "admin_method_not_allowed", ""),
        ("GET", "/v1/lint", None, 405, "admin_method_not_allowed", ""),
        ("GET", "/v1/keys?sapce=v0/x", None, 400, "admin_invalid", "unknown field `sapce`"),
        ("GET", "/v1/keys?state=enabled&state=disabled", None, 400, "admin_invalid", "duplicate field `state`"),
        ("GET", "/v1/keys?state=gone", None, 400, "admin_invalid", "unknown variant `gone`"),
        ("GET", "/v1/keys?label=x", None, 400, "admin_invalid", "name=value"),
        ("GET", "/v1/keys?page_size=0", None, 400, "admin_invalid", "1 to 1000"),
        ("GET", "/v1/changes?limit=1001", None, 400, "admin_invalid", "1 to 1000"),
        ("GET", "/v1/whoami?verbose", None, 400, "admin_invalid", "query"),
        ("GET", "/v1/keys/v0//x", None, 400, "admin_invalid", "path"),
        ("GET", "/v1/approvals/1", None, 400, "admin_invalid", "path"),
        ("POST", "/v1/changes", Some("{"), 400, "admin_invalid", "body: EOF"),
        ("POST", "/v1/changes", Some("{}"), 400, "admin_invalid", "missing field `command`"),
        ("POST", "/v1/changes", Some(r#"{"command":{"type":"key-explode"}}"#), 400, "admin_invalid", "key-explode"),
        (
            "POST",
            "/v1/changes",
            Some(r#"{"command":{"type":"key-enable","path":"v0/k"},"reasn":""}"#),
            400,
            "admin_invalid",
            "unknown field `reasn`",
        ),
        (
            "POST",
            "/v1/changes",
            Some(r#"{"command":{"type":"key-enable","path":"v0/k","versoin":1}}"#),
            400,
            "admin_invalid",
            "unknown field `versoin`",
        ),
    ] {
        let answer = connection.admin(method, target, None, body);
        assert_eq!(outcome(&answer), (status, code.into()), "{method} {target} {body:?}");
        assert!(answer.message().contains(text), "{target} {body:?}: {answer:?}");
        assert_eq!(answer.header("content-type"), Some("application/json"), "{target}");
    }
    for (media_type, code) in
        [("text/plain", "unsupported_media_type"), ("application/json; charset=latin1", "unsupported_media_type")]
    {
        let answer = connection.post_with("/v1/changes", &format!("Content-Type: {media_type}\r\n"), b"{}");
        assert_eq!(outcome(&answer), (415, code.into()), "{media_type}");
    }
    let long = format!("{{\"reason\": \"{}\"}}", "x".repeat(1 << 20));
    let answer = ekm.admin().admin("POST", "/v1/changes", None, Some(&long));
    assert_eq!(outcome(&answer), (400, "admin_invalid".into()));
    assert!(answer.message().contains("longer than 1048576 bytes"), "{answer:?}");
    let chunked = "POST /v1/lint HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n{\r\n0\r\n\r\n";
    let answer = ekm.admin().request(chunked);
    assert_eq!((answer.status, answer.header("connection")), (400, Some("close")));
    assert_eq!(ekm.metric("ekm_panics_total"), 0.0);
}

#[test]
fn the_socket_is_for_its_owner_is_not_taken_from_a_live_process_and_goes_with_its_own() {
    let directory = set_up(&[]);
    // `set_up` kills its process, and so leaves the socket's file behind.
    let file = directory.path().join("admin.sock");
    assert!(file.exists());
    let mut ekm = Ekm::serve(&directory, |config| config);
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    let config = directory.path().join("serve.toml");
    let second = run_ekm(&["serve", "--config", config.to_str().unwrap()]);
    let stderr = String::from_utf8_lossy(&second.stderr);
    assert_eq!(second.status.code(), Some(1));
    assert!(stderr.contains("error[admin_socket]") && stderr.contains("another process listens"), "{stderr}");
    assert_eq!(ekm.admin().admin("GET", "/v1/whoami", None, None).status, 200);
    ekm.signal(rustix::process::Signal::TERM);
    assert!(ekm.wait().success());
    assert!(!file.exists());
}

#[test]
fn a_directory_from_before_the_admin_api_goes_on_without_it_and_says_what_to_add() {
    let directory = set_up(&[]);
    let file = directory.path().join("ekm.toml");
    let text = fs::read_to_string(&file).unwrap();
    let (before, _) = text.split_once("# The admin API.").unwrap();
    fs::write(&file, before).unwrap();
    let ekm = Ekm::dev_in(&directory, &[]);
    assert_eq!(
        (&ekm.ready.admin_socket, ekm.post("/v0/keys/demo:wrap", r#"{"plaintext":"AA=="}"#).status),
        (&None, 200)
    );
    let log = ekm.log();
    let (_, section) = log.split_once("append this and start again:\n\n").unwrap_or_else(|| panic!("{log}"));
    drop(ekm);
    fs::write(&file, format!("{before}\n{section}")).unwrap();
    let ekm = Ekm::dev_in(&directory, &[]);
    assert_eq!(ekm.admin().admin("GET", "/v1/whoami", None, None).json()["name"], "developer");
}
