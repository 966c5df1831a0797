//! Tokens: issuers that rotate, vanish, and publish rubbish, and callers that are not admitted.

use std::sync::Arc;

use ekm_tests::{Answer, CALLER, Ekm, Issuer, WebServer, set_up};
use serde_json::json;

const BODY: &str = r#"{"plaintext":"AA=="}"#;

/// A service whose issuer publishes its keys at a URL, with whatever else the test wants in the issuer's table.
fn with_url(server: &WebServer, more: &str) -> Ekm {
    let directory = set_up(&[]);
    serve_with_url(&directory, server, more)
}

fn serve_with_url(directory: &ekm_tests::Directory, server: &WebServer, more: &str) -> Ekm {
    Ekm::serve(directory, |config| {
        let url = format!("jwks_url = \"http://{}/certs\"\n{more}", server.address());
        config.replace("jwks_file = \"issuer/jwks.json\"", &url)
    })
}

fn wrap(ekm: &Ekm, token: &str) -> Answer {
    ekm.connect().post("/v0/keys/demo:wrap", token, BODY)
}

/// Google tries again after 503, so a test does too.
fn wrap_until_decided(ekm: &Ekm, token: &str) -> u16 {
    let mut status = 503;
    ekm.eventually("decided", || {
        status = wrap(ekm, token).status;
        status != 503
    });
    status
}

fn jwks(issuers: &[&Issuer]) -> String {
    json!({"keys": issuers.iter().map(|issuer| issuer.jwk()).collect::<Vec<_>>()}).to_string()
}

#[test]
fn a_new_key_of_the_issuer_is_accepted_without_a_restart_and_an_unknown_one_is_not() {
    let (old, new, foreign) = (Issuer::new("old"), Issuer::new("new"), Issuer::new("foreign"));
    let server = WebServer::serving(&jwks(&[&old]));
    let ekm = with_url(&server, "");
    assert_eq!(wrap(&ekm, &old.token()).status, 200);
    server.set_document(&jwks(&[&old, &new]));
    assert_eq!(wrap_until_decided(&ekm, &new.token()), 200);
    assert_eq!(wrap(&ekm, &old.token()).status, 200);
    assert_eq!(wrap_until_decided(&ekm, &foreign.token()), 401);
}

#[test]
fn a_key_that_the_issuer_takes_back_is_no_longer_accepted_even_from_the_cache() {
    let (old, new) = (Issuer::new("old"), Issuer::new("new"));
    let server = WebServer::serving(&jwks(&[&old]));
    let ekm = with_url(&server, "");
    let token = old.token();
    assert_eq!(wrap(&ekm, &token).status, 200);
    server.set_document(&jwks(&[&new]));
    assert_eq!(wrap_until_decided(&ekm, &new.token()), 200);
    assert_eq!(wrap_until_decided(&ekm, &token), 401);
}

#[test]
fn while_the_issuer_is_away_known_keys_go_on_and_unknown_ones_are_503() {
    let (known, unknown) = (Issuer::new("known"), Issuer::new("unknown"));
    let server = WebServer::serving(&jwks(&[&known]));
    let ekm = with_url(&server, "");
    assert_eq!(wrap(&ekm, &known.token()).status, 200);
    let good = jwks(&[&known, &unknown]);
    let rubbish = [
        Vec::new(),
        b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\n\r\n".to_vec(),
        b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n".to_vec(),
        b"HTTP/1.1 200 OK\r\nContent-Length: 11\r\n\r\n{\"keys\":[]}".to_vec(),
        b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n".to_vec(),
        [b"HTTP/1.1 200 OK\r\nContent-Length: 600000\r\n\r\n".to_vec(), vec![b' '; 600_000]].concat(),
    ];
    for answer in rubbish {
        server.set_answer(answer.clone());
        let (hits, token) = (server.hits(), unknown.token());
        let answered = wrap(&ekm, &token);
        assert_eq!(answered.status, 503, "{}", String::from_utf8_lossy(&answer[..answer.len().min(60)]));
        assert!(answered.message().ends_with("[issuer_unavailable]"));
        ekm.eventually("asked", || server.hits() > hits || wrap(&ekm, &token).status != 503);
        assert_eq!(wrap(&ekm, &known.token()).status, 200, "a known key goes on");
    }
    server.set_document(&good);
    assert_eq!(wrap_until_decided(&ekm, &unknown.token()), 200);
}

#[test]
fn a_restart_works_while_the_issuer_is_away_if_its_key_set_was_kept() {
    let issuer = Issuer::new("kept");
    let server = WebServer::serving(&jwks(&[&issuer]));
    let ekm = with_url(&server, "jwks_cache_file = \"kept.json\"");
    let directory = Arc::clone(&ekm.directory);
    ekm.eventually("kept", || directory.path().join("kept.json").exists());
    drop(ekm);
    server.set_answer(Vec::new());
    let ekm = serve_with_url(&directory, &server, "jwks_cache_file = \"kept.json\"");
    assert_eq!(wrap(&ekm, &issuer.token()).status, 200);
}

#[test]
fn a_key_set_comes_over_tls_from_the_configured_root_only_and_through_a_proxy_if_there_is_one() {
    let issuer = Issuer::new("far");
    let directory = set_up(&[]);
    let serve =
        |lines: String| Ekm::serve(&directory, |config| config.replace("jwks_file = \"issuer/jwks.json\"", &lines));

    let tls = WebServer::serving_tls(&jwks(&[&issuer]), directory.path());
    let url = format!("jwks_url = \"https://localhost:{}/certs\"", tls.address().port());
    let trusting = serve(format!("{url}\njwks_ca_file = \"tls/certificate.pem\""));
    assert_eq!(wrap(&trusting, &issuer.token()).status, 200);
    drop(trusting);
    let doubting = serve(url);
    assert_eq!(wrap(&doubting, &issuer.token()).status, 503, "a certificate that nobody vouches for");
    drop(doubting);

    let proxy = WebServer::serving(&jwks(&[&issuer]));
    let proxied =
        serve(format!("jwks_url = \"http://issuer.invalid/certs\"\njwks_proxy_url = \"http://{}\"", proxy.address()));
    assert_eq!(wrap(&proxied, &issuer.token()).status, 200);
}

#[test]
fn a_service_that_never_had_a_key_set_is_ready_and_answers_503() {
    let server = WebServer::serving("this is no key set");
    let ekm = with_url(&server, "");
    assert_eq!(wrap(&ekm, &Issuer::new("any").token()).status, 503);
    assert!(ekm.ops("/readyz?verbose").text().contains("[!] issuer https://issuer.localhost: never fetched"));
}

#[test]
fn random_key_ids_do_not_become_a_flood_at_the_issuers_door() {
    let issuer = Issuer::new("known");
    let server = WebServer::serving(&jwks(&[&issuer]));
    let ekm = with_url(&server, "");
    let (before, begun) = (server.hits(), std::time::Instant::now());
    std::thread::scope(|scope| {
        for thread in 0..8 {
            let (ekm, issuer) = (&ekm, &issuer);
            scope.spawn(move || {
                for round in 0..5 {
                    let token = issuer.token_with_header(json!({"kid": format!("{thread}-{round}")}));
                    assert!([401, 503].contains(&wrap(ekm, &token).status));
                }
            });
        }
    });
    let fetches = (server.hits() - before) as u64;
    let allowed = begun.elapsed().as_secs() / 2 + 2;
    assert!(fetches <= allowed, "{fetches} fetches in {:?}", begun.elapsed());
}

#[test]
fn a_jwks_file_that_changes_is_read_when_a_token_asks_for_it() {
    let ekm = Ekm::dev(&[]);
    let (own, new) = (ekm.issuer(), Issuer::new("new"));
    assert_eq!(wrap(&ekm, &new.token()).status, 401);
    std::fs::write(ekm.directory.path().join("issuer/jwks.json"), jwks(&[&own, &new])).unwrap();
    assert_eq!(wrap(&ekm, &new.token()).status, 200);
}

#[test]
fn a_jwks_file_that_is_not_there_or_no_good_stops_the_start() {
    let directory = set_up(&[]);
    let file = directory.path().join("issuer/jwks.json");
    let check = || {
        let output = ekm_tests::run_ekm(&["serve", "--config", directory.path().join("ekm.toml").to_str().unwrap()]);
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    std::fs::write(&file, "{\"keys\":[]}").unwrap();
    assert!(check().contains("error[key_set]: the key set is refused: no RSA signing key in it"));
    std::fs::remove_file(&file).unwrap();
    assert!(check().contains("error[key_set]: cannot get the key set: "));
}

#[test]
fn a_valid_token_of_somebody_else_is_403_and_says_why() {
    let ekm = Ekm::dev(&[]);
    let issuer = ekm.issuer();
    for changes in [
        json!({"email": "service-1@evil.example"}),
        json!({"email": "service-1@gcp-sa-ekms.iam.gserviceaccount.com.evil.example"}),
        json!({"email": "sеrvice-1@gcp-sa-ekms.iam.gserviceaccount.com"}), // a Cyrillic е
        json!({"email_verified": false}),
    ] {
        let answer = wrap(&ekm, &issuer.token_with(changes.clone()));
        assert_eq!((answer.status, answer.json()["code"].as_i64()), (403, Some(7)), "{changes}");
        assert_eq!(answer.message(), "this e-mail address is not one that may call this service [denied]");
    }
}

#[test]
fn each_of_several_issuers_vouches_with_its_own_keys_for_its_own_callers_only() {
    let directory = set_up(&[]);
    let second = Issuer::new("second");
    std::fs::write(directory.path().join("second.json"), jwks(&[&second])).unwrap();
    let ekm = Ekm::serve(&directory, |config| {
        let issuer = "[[auth.issuers]]\niss = [\"https://second.example\", \"second.example\"]\n\
                      callers = [\"*@second.example\"]\njwks_file = \"second.json\"\n\n[catalog]";
        config.replace("[catalog]", issuer)
    });
    // The demo key's policy would let the first issuer's callers in only.
    ekm.create_key("v0/keys/both", &json!({"callers": [CALLER, "agent@second.example"], "verbs": ["wrap"]}));
    let wrap = |ekm: &Ekm, token: &str| ekm.connect().post("/v0/keys/both:wrap", token, BODY);
    let first = ekm.issuer();
    for iss in ["https://second.example", "second.example"] {
        let good = second.token_with(json!({"iss": iss, "email": "agent@second.example"}));
        assert_eq!(wrap(&ekm, &good).status, 200);
    }
    assert_eq!(wrap(&ekm, &first.token()).status, 200);
    let foreign_caller = second.token_with(json!({"iss": "https://second.example"}));
    assert_eq!(wrap(&ekm, &foreign_caller).status, 403, "the first issuer's callers are not the second's");
    let foreign_key = first.token_with(json!({"iss": "https://second.example", "email": "agent@second.example"}));
    assert_eq!(wrap(&ekm, &foreign_key).status, 401, "the first issuer's key does not sign for the second");
}

#[test]
fn dev_token_mints_what_its_options_say() {
    let ekm = Ekm::dev(&[]);
    let mint = |options: &[&str]| {
        let data = ["dev", "token", "--data", ekm.directory.path().to_str().unwrap()];
        let output = ekm_tests::run_ekm(&[&data, options].concat());
        assert!(output.status.success());
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    };
    assert_eq!(wrap(&ekm, &mint(&[])).status, 200);
    assert_eq!(wrap(&ekm, &mint(&["--caller", "service-7@gcp-sa-ekms.iam.gserviceaccount.com"])).status, 200);
    assert_eq!(wrap(&ekm, &mint(&["--caller", "mallory@example.com"])).status, 403);
    assert_eq!(wrap(&ekm, &mint(&["--audience", "https://other.example"])).status, 401);
    assert_eq!(wrap(&ekm, &mint(&["--ttl", "7200"])).status, 401, "longer than max_token_lifetime_s");
    assert_eq!(wrap(&ekm, &mint(&["--ttl", "60"])).status, 200);
}
