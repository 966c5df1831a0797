use std::sync::{Arc, Mutex};

use axum::Router;
use axum::http::{StatusCode as Status, Uri};
use axum::response::IntoResponse;
use serde_json::json;
use tower::ServiceExt;

use super::*;
use crate::admin::api::{ChangeOutcome, Command};

/// A server on a Unix socket that gives these answers, one after the other, and remembers what it was asked.
pub(in crate::cli) struct Server {
    directory: tempfile::TempDir,
    asked: Arc<Mutex<Vec<(String, String)>>>,
}

impl Server {
    pub(in crate::cli) fn start(answers: Vec<(u16, Value)>) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let listener = tokio::net::UnixListener::bind(directory.path().join("admin.sock")).unwrap();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (log, answers) = (Arc::clone(&asked), Arc::new(Mutex::new(answers.into_iter())));
        let answer = move |uri: Uri, body: String| {
            log.lock().unwrap().push((uri.to_string(), body));
            let (status, body) = answers.lock().unwrap().next().expect("an answer is left");
            std::future::ready((Status::from_u16(status).unwrap(), body.to_string()).into_response())
        };
        tokio::spawn(async move {
            let router = Router::new().fallback(answer);
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let router = router.clone();
                let service = hyper::service::service_fn(move |request: http::Request<hyper::body::Incoming>| {
                    router.clone().oneshot(request.map(axum::body::Body::new))
                });
                let connection = hyper::server::conn::http1::Builder::new()
                    .serve_connection(hyper_util::rt::TokioIo::new(stream), service);
                tokio::spawn(async move {
                    let _ = connection.await;
                });
            }
        });
        Self { directory, asked }
    }

    pub(in crate::cli) fn client(&self) -> Client {
        let mut client = client(&format!("unix:{}", self.directory.path().join("admin.sock").display())).unwrap();
        client.patience = Duration::from_secs(2);
        client
    }

    pub(in crate::cli) fn asked(&self) -> Vec<(String, String)> {
        self.asked.lock().unwrap().clone()
    }
}

fn client(server: &str) -> Result<Client, CliError> {
    Client::new(&ServerArgs {
        server: Some(server.into()),
        ca_file: None,
        client_certificate: None,
        client_key: None,
        token_file: None,
        output: Output::Text,
    })
}

fn away() -> (u16, Value) {
    (503, json!({"code": "catalog_unavailable", "message": "the catalog is away"}))
}

fn request() -> ChangeRequest {
    let path = ekm_core::KeyPath::parse("v0/keys/a").unwrap();
    let (command, request_id) = (Command::KeyRotate { path }, Some("one".into()));
    ChangeRequest { command, reason: String::new(), dry_run: false, if_revision: None, request_id }
}

#[tokio::test]
async fn a_change_is_sent_again_under_the_same_id_until_the_catalog_is_back() {
    let done = json!({"outcome": "done", "revision": 7, "target": "v0/keys/a", "changes": [], "warnings": []});
    let server = Server::start(vec![away(), away(), (200, done)]);
    let result = server.client().change(&request()).await.unwrap();
    assert_eq!((result.outcome, result.revision), (ChangeOutcome::Done, 7));
    let asked = server.asked();
    assert_eq!(asked.len(), 3);
    assert!(
        asked.iter().all(|(uri, body)| uri.ends_with("/v1/changes") && body.contains(r#""request_id":"one""#)),
        "{asked:?}"
    );
}

#[tokio::test]
async fn patience_has_an_end_and_the_last_answer_is_told() {
    let server = Server::start(vec![away(); 10]);
    let error = server.client().change(&request()).await.unwrap_err();
    assert_eq!((error.heading(), error.to_string()), ("catalog_unavailable".into(), "the catalog is away".into()));
}

#[tokio::test]
async fn a_decision_is_never_sent_twice() {
    let server = Server::start(vec![away(); 2]);
    let decision = Decision { payload_sha256: "00".into(), reason: String::new() };
    let error = server.client().decide("7", "approve", &decision).await.unwrap_err();
    assert!(error.to_string().contains("it is not known whether this was carried out"), "{error}");
    assert_eq!(server.asked().len(), 1);
}

#[tokio::test]
async fn a_list_is_read_to_its_end_and_no_further_than_asked() {
    let pages = || {
        vec![
            (200, json!({"items": [1, 2], "next_page_token": "a b"})),
            (200, json!({"items": [3], "next_page_token": "c"})),
            (200, json!({"items": [4]})),
        ]
    };
    let server = Server::start(pages());
    let all: Vec<u32> = server.client().list("v1/keys", &[("label", "a=b&c")], None).await.unwrap();
    assert_eq!(all, [1, 2, 3, 4]);
    assert!(
        server.asked()[1].0.ends_with("/v1/keys?label=a%3Db%26c&page_size=500&page_token=a+b"),
        "{:?}",
        server.asked()
    );
    let server = Server::start(pages());
    let some: Vec<u32> = server.client().list("v1/keys", &[], Some(3)).await.unwrap();
    assert_eq!((some, server.asked().len()), (vec![1, 2, 3], 2));
}

#[tokio::test]
async fn an_error_is_told_under_the_servers_code_and_cannot_steer_the_terminal() {
    let refused = |status, code: &str, message: &str| (status, json!({"code": code, "message": message}));
    let server = Server::start(vec![
        refused(404, "not_\u{1b}found", "no \u{1b}[2Jkey"),
        refused(401, "unauthenticated", "who are you?"),
        (502, json!("<html>")),
        (200, json!("<html>")),
    ]);
    let mut client = server.client();
    client.patience = Duration::ZERO;
    client.token = None;
    let error = client.get::<Value>("v1/keys/a", &[]).await.unwrap_err();
    assert_eq!((&*error.heading(), &*error.to_string()), ("not_\\u{1b}found", "no \\u{1b}[2Jkey"));
    let error = client.get::<Value>("v1/keys/a", &[]).await.unwrap_err();
    assert!(error.to_string().contains("name one with --token-file or EKM_ADMIN_TOKEN"), "{error}");
    let error = client.get::<Value>("v1/keys/a", &[]).await.unwrap_err();
    assert!(error.code() == "admin_answer" && error.to_string().contains("not like the admin API"), "{error}");
    let error = client.get::<Page<u32>>("v1/keys", &[]).await.unwrap_err();
    assert!(error.code() == "admin_answer" && error.to_string().contains("does not understand"), "{error}");
}

#[tokio::test]
async fn a_server_that_is_not_there_is_told_at_once() {
    let begun = Instant::now();
    let error = client("unix:/does/not/exist.sock").unwrap().get::<Value>("v1/keys", &[]).await.unwrap_err();
    assert!(error.code() == "admin_unreachable" && error.to_string().contains("there is no such socket"), "{error}");
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let error = client(&format!("https://{free}")).unwrap().get::<Value>("v1/keys", &[]).await.unwrap_err();
    assert!(error.code() == "admin_unreachable" && error.to_string().contains("nobody listens there"), "{error}");
    assert!(begun.elapsed() < Duration::from_secs(10));
}

#[tokio::test]
async fn a_server_whom_nobody_trusts_gets_nothing() {
    let key = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let (certificate, private) = (key.cert.der().clone(), key.signing_key.serialize_der());
    let config = rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate], private.try_into().unwrap())
        .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let _ = acceptor.accept(stream).await;
        }
    });
    let directory = tempfile::tempdir().unwrap();
    let other = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let ca_file = directory.path().join("ca.pem");
    std::fs::write(&ca_file, other.cert.pem()).unwrap();
    let args = ServerArgs {
        server: Some(format!("https://localhost:{port}")),
        ca_file: Some(ca_file),
        client_certificate: None,
        client_key: None,
        token_file: None,
        output: Output::Text,
    };
    let error = Client::new(&args).unwrap().get::<Value>("v1/keys", &[]).await.unwrap_err();
    assert!(error.code() == "admin_untrusted" && error.to_string().contains("--ca-file"), "{error}");
}

#[test]
fn a_wrong_connection_is_told_before_anything_is_sent() {
    let refused = |server: &str| client(server).err().map(|error| error.to_string()).unwrap_or_default();
    assert!(refused("http://localhost:1").contains("write unix:/path/admin.sock or https://host:port"));
    assert!(refused("localhost:1").contains("write unix:/path/admin.sock"));
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("empty");
    std::fs::write(&file, "\n").unwrap();
    let with = |ca: Option<&Path>, token: Option<&Path>| {
        let args = ServerArgs {
            server: Some("https://localhost:1".into()),
            ca_file: ca.map(Into::into),
            client_certificate: None,
            client_key: None,
            token_file: token.map(Into::into),
            output: Output::Text,
        };
        Client::new(&args).err().map(|error| error.to_string()).unwrap_or_default()
    };
    assert!(with(Some(&file), None).contains("there is no certificate in it"));
    assert!(with(None, Some(&file)).contains("there is no ID token in it"));
    assert!(with(None, Some(Path::new("/does/not/exist"))).contains("cannot read /does/not/exist"));
}

#[tokio::test]
async fn a_lost_update_says_who_was_first_and_that_nothing_was_done() {
    let entry = json!({
        "revision": 9, "at": "2026-11-22T10:00:00Z", "actor": "ann", "reason": "", "action": "key-update", "target": "v0/keys/a",
        "class": "staged", "detail": {}, "hash": "", "previous": "", "entry": "",
    });
    let server = Server::start(vec![
        (412, json!({"code": "admin_revision_differs", "message": "it has changed"})),
        (200, json!({"items": [entry]})),
    ]);
    let session = crate::cli::change::Session { client: server.client(), output: Output::Text };
    let error = session.request("", false, request().command, Some(8)).await.unwrap_err();
    assert_eq!(error.heading(), "admin_revision_differs");
    assert_eq!(
        error.to_string(),
        "v0/keys/a has changed since revision 8, and nothing was done; meanwhile ann has made the change key-update at \
         2026-11-22T10:00:00Z (revision 9); look at it again, then repeat the command"
    );
    assert!(server.asked()[0].1.contains(r#""if_revision":8"#));
}
