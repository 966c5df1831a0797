//! The way to the admin API: over a Unix socket or TLS, with time-outs, and with patience for a failover of the database.

use std::io::{self, IsTerminal};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use clap::Args;
use reqwest::{Method, StatusCode, Url};
use secrecy::{ExposeSecret, SecretString};
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::error::CliError;
use super::output::escape;
use crate::admin::api::{ChangeRequest, ChangeResult, Decision, ErrorView, Page};
use crate::dev;
use crate::process::Output;
use crate::remote::causes::{self, causes, tls_error};
use crate::start_error::StartError;

/// How long one request may take: making a key in an HSM can take seconds.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// A failover of the database takes about as long.
const PATIENCE: Duration = Duration::from_secs(20);
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(4);
const PAGE_SIZE: usize = 500;

/// Where the server is, and who we are.
#[derive(Args)]
#[command(next_help_heading = "Connection")]
pub(super) struct ServerArgs {
    /// The admin API: unix:/path/admin.sock or https://host:port [default: the socket of 'ekm dev' in its data directory]
    #[arg(long, env = "EKM_ADMIN", value_name = "ADDRESS", global = true)]
    server: Option<String>,
    /// Certificates that the server's is checked against, in PEM [default: those of the system]
    #[arg(long, env = "EKM_ADMIN_CA", value_name = "FILE", global = true)]
    ca_file: Option<PathBuf>,
    /// Our certificate with its chain, in PEM, for mutual TLS
    #[arg(long, env = "EKM_ADMIN_CERTIFICATE", value_name = "FILE", global = true, requires = "client_key")]
    client_certificate: Option<PathBuf>,
    /// The private key of our certificate, in PEM
    #[arg(long, env = "EKM_ADMIN_KEY", value_name = "FILE", global = true, requires = "client_certificate")]
    client_key: Option<PathBuf>,
    /// A file that holds an ID token and nothing else; or put the token into the environment variable EKM_ADMIN_TOKEN
    #[arg(long, env = "EKM_ADMIN_TOKEN_FILE", value_name = "FILE", global = true)]
    token_file: Option<PathBuf>,
    /// How to answer
    #[arg(long, value_enum, default_value = "text", global = true)]
    pub(super) output: Output,
}

/// One command's connection to the admin API.
pub(super) struct Client {
    http: reqwest::Client,
    base: Url,
    /// As the operator knows it, for errors.
    place: String,
    token: Option<SecretString>,
    patience: Duration,
    /// Whether the server has ever taken a connection: if it never has, waiting would hide a wrong address.
    reached: AtomicBool,
}

impl Client {
    pub(super) fn new(args: &ServerArgs) -> Result<Self, CliError> {
        let place = match args.server.as_ref().filter(|place| !place.is_empty()) {
            Some(server) => server.clone(),
            None => format!("unix:{}", dev_socket()?.display()),
        };
        // The process's default is what reqwest takes.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let builder = reqwest::Client::builder()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(REQUEST_TIMEOUT);
        let (builder, base) = if let Some(socket) = place.strip_prefix("unix:") {
            (builder.unix_socket(PathBuf::from(socket)), "http://localhost".to_owned())
        } else if place.starts_with("https://") {
            (tls(builder, args)?, place.clone())
        } else {
            return Err(CliError::Connection(format!(
                "'{}' is no address of an admin API; write unix:/path/admin.sock or https://host:port",
                escape(&place)
            )));
        };
        let base = Url::parse(&base).map_err(|error| CliError::Connection(format!("'{}': {error}", escape(&place))))?;
        let built = builder.build();
        let http = built
            .map_err(|error| CliError::Connection(format!("cannot set up the connection: {}", root_cause(&error))))?;
        Ok(Self { http, base, place, token: token(args)?, patience: PATIENCE, reached: AtomicBool::new(false) })
    }

    /// Reads one thing; `path` is split at its slashes.
    pub(super) async fn get<T: DeserializeOwned>(&self, path: &str, query: &[(&str, &str)]) -> Result<T, CliError> {
        let body = self.patiently(Method::GET, self.url(path, query), None).await?;
        self.parse(&body)
    }

    /// Reads bytes.
    pub(super) async fn get_bytes(&self, path: &str) -> Result<Vec<u8>, CliError> {
        self.patiently(Method::GET, self.url(path, &[]), None).await
    }

    /// Reads a list to its end, or as far as `limit`.
    pub(super) async fn list<T: DeserializeOwned>(
        &self,
        path: &str,
        query: &[(&str, &str)],
        limit: Option<usize>,
    ) -> Result<Vec<T>, CliError> {
        let limit = limit.unwrap_or(usize::MAX);
        let page_size = limit.clamp(1, PAGE_SIZE).to_string();
        let (mut items, mut token) = (Vec::new(), None::<String>);
        loop {
            let mut query = [query, &[("page_size", page_size.as_str())]].concat();
            if let Some(token) = &token {
                query.push(("page_token", token));
            }
            let page: Page<T> = self.get(path, &query).await?;
            items.extend(page.items);
            let before = token;
            token = page.next_page_token;
            // A server that gives the same page for ever must not keep us for ever.
            if token.is_none() || token == before || items.len() >= limit {
                items.truncate(limit);
                return Ok(items);
            }
        }
    }

    /// Asks for a change. It is sent again, under the same request id, until it is answered.
    pub(super) async fn change(&self, request: &ChangeRequest) -> Result<ChangeResult, CliError> {
        debug_assert!(request.request_id.is_some(), "without it a repeated request could be carried out twice");
        let body = self.patiently(Method::POST, self.url("v1/changes", &[]), Some(&json(request))).await?;
        self.parse(&body)
    }

    /// Asks something whose question is too long for a URL.
    pub(super) async fn ask<T: DeserializeOwned>(&self, path: &str, question: &Value) -> Result<T, CliError> {
        let body = self.patiently(Method::POST, self.url(path, &[]), Some(question)).await?;
        self.parse(&body)
    }

    /// Decides about an approval. Never sent twice: the second time it would be refused as decided, by ourselves.
    pub(super) async fn decide(&self, id: &str, verb: &str, decision: &Decision) -> Result<ChangeResult, CliError> {
        let url = self.url(&format!("v1/approvals/{id}/{verb}"), &[]);
        let answer = self.once(&Method::POST, &url, Some(&json(decision))).await;
        let body = answer.map_err(|failure| match failure {
            Failure::Final(error) => error,
            Failure::Passing { error, sent: false } => error,
            Failure::Passing { error, sent: true } => CliError::Unreachable(format!(
                "{error}; it is not known whether this was carried out: look with 'ekm approval show {id}'"
            )),
        })?;
        self.parse(&body)
    }

    fn url(&self, path: &str, query: &[(&str, &str)]) -> Url {
        let mut url = self.base.clone();
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().extend(path.split('/'));
        }
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        url
    }

    fn parse<T: DeserializeOwned>(&self, body: &[u8]) -> Result<T, CliError> {
        serde_json::from_slice(body).map_err(|error| {
            CliError::Answer(format!(
                "{} answered something that this version of ekm does not understand: {error}; is it the admin API of the same \
                 version?",
                self.place
            ))
        })
    }

    async fn patiently(&self, method: Method, url: Url, body: Option<&Value>) -> Result<Vec<u8>, CliError> {
        let (begun, mut pause, mut told) = (Instant::now(), FIRST_PAUSE, false);
        loop {
            let error = match self.once(&method, &url, body).await {
                Ok(body) => return Ok(body),
                Err(Failure::Final(error)) => return Err(error),
                Err(Failure::Passing { error, .. }) => error,
            };
            let waited = begun.elapsed();
            if !self.reached.load(Ordering::Relaxed) || waited + pause > self.patience {
                return Err(error);
            }
            if io::stderr().is_terminal() {
                told = true;
                eprint!("\r\x1b[Kwaiting for the server, {} s: {}", waited.as_secs(), escape(&error.to_string()));
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
            if told {
                eprint!("\r\x1b[K");
            }
        }
    }

    async fn once(&self, method: &Method, url: &Url, body: Option<&Value>) -> Result<Vec<u8>, Failure> {
        let mut request = self.http.request(method.clone(), url.clone()).header("accept", "application/json");
        if let Some(token) = &self.token {
            request = request.bearer_auth(token.expose_secret());
        }
        if let Some(body) = body {
            request = request.header("content-type", "application/json").body(body.to_string());
        }
        let response = request.send().await.map_err(|error| self.lost(&error))?;
        self.reached.store(true, Ordering::Relaxed);
        let status = response.status();
        let body = response.bytes().await.map_err(|error| self.lost(&error))?.to_vec();
        if status.is_success() {
            return Ok(body);
        }
        let error = self.refused(status, &body);
        // A proxy in front says 502 or 504 for what is 503 behind it.
        let passing = matches!(status.as_u16(), 502..=504);
        Err(if passing { Failure::Passing { error, sent: true } } else { Failure::Final(error) })
    }

    fn refused(&self, status: StatusCode, body: &[u8]) -> CliError {
        let Ok(ErrorView { code, message }) = serde_json::from_slice(body) else {
            let text: String = String::from_utf8_lossy(body).chars().take(200).collect();
            return CliError::Answer(format!(
                "{} answered {status} and not like the admin API ({}); is it the admin listener's address?",
                self.place,
                escape(&text)
            ));
        };
        let mut message = super::output::escape_lines(&message);
        if status == StatusCode::UNAUTHORIZED && self.token.is_none() {
            message.push_str("; no token was sent: name one with --token-file or EKM_ADMIN_TOKEN, or a certificate with --client-certificate");
        }
        CliError::Refused { status: status.as_u16(), code, message }
    }

    fn lost(&self, error: &reqwest::Error) -> Failure {
        let place = escape(&self.place);
        if let Some(tls) = causes(error).find_map(tls_error) {
            return Failure::Final(CliError::Untrusted(untrusted(&place, tls)));
        }
        if !error.is_connect() {
            let what = if error.is_timeout() {
                "did not answer in time".into()
            } else {
                format!("lost us: {}", root_cause(error))
            };
            return Failure::Passing { error: CliError::Unreachable(format!("{place} {what}")), sent: true };
        }
        let kind = causes(error).filter_map(|cause| cause.downcast_ref::<io::Error>()).last().map(io::Error::kind);
        let hint = match kind {
            Some(io::ErrorKind::NotFound) => "there is no such socket: is the server running, and is it this socket? 'ekm dev' makes one in its data directory".into(),
            Some(io::ErrorKind::ConnectionRefused) => "nobody listens there: is the server running?".into(),
            Some(io::ErrorKind::PermissionDenied) => "this user may not use the socket".into(),
            _ => root_cause(error),
        };
        let error = CliError::Unreachable(format!(
            "cannot reach the admin API at {place}: {hint}; --server or EKM_ADMIN names another"
        ));
        Failure::Passing { error, sent: false }
    }
}

/// Why one attempt failed.
enum Failure {
    /// Another attempt would fail like this one.
    Final(CliError),
    /// It may be over soon.
    Passing {
        error: CliError,
        /// Whether the server may have carried the request out.
        sent: bool,
    },
}

fn json(value: &impl serde::Serialize) -> Value {
    serde_json::to_value(value).expect("the API's types have only text as map keys")
}

fn untrusted(place: &str, error: &rustls::Error) -> String {
    use rustls::{AlertDescription as Alert, CertificateError as Bad, Error};
    let hint = match error {
        Error::InvalidCertificate(Bad::UnknownIssuer | Bad::BadSignature) => {
            "its certificate was issued by nobody whom we trust: name the right certificates with --ca-file".into()
        }
        Error::InvalidCertificate(Bad::NotValidForName | Bad::NotValidForNameContext { .. }) => {
            "its certificate is for another name: use the name in it".into()
        }
        Error::InvalidCertificate(Bad::Expired | Bad::ExpiredContext { .. }) => "its certificate has expired".into(),
        Error::AlertReceived(Alert::CertificateRequired) => {
            "it asks for a certificate: name yours with --client-certificate and --client-key".into()
        }
        Error::AlertReceived(_) => format!("it does not accept our side ({error}); check --client-certificate"),
        Error::InvalidMessage(_) => "it does not speak TLS: is it the admin listener's port?".into(),
        _ => error.to_string(),
    };
    format!("no secure connection to {place}: {hint}")
}

/// The cause behind all others, safe for a terminal.
fn root_cause(error: &reqwest::Error) -> String {
    escape(&causes::root_cause(error)).into_owned()
}

fn tls(mut builder: reqwest::ClientBuilder, args: &ServerArgs) -> Result<reqwest::ClientBuilder, CliError> {
    let wrong = |file: &Path, error: &reqwest::Error| {
        CliError::Connection(format!("{}: {}; PEM is expected", file.display(), root_cause(error)))
    };
    if let Some(file) = &args.ca_file {
        let roots = reqwest::Certificate::from_pem_bundle(&read(file)?).map_err(|error| wrong(file, &error))?;
        if roots.is_empty() {
            return Err(CliError::Connection(format!(
                "{}: there is no certificate in it; PEM is expected",
                file.display()
            )));
        }
        builder = builder.tls_certs_only(roots);
    }
    if let (Some(certificate), Some(key)) = (&args.client_certificate, &args.client_key) {
        let mut pem = zeroize::Zeroizing::new(read(certificate)?);
        pem.push(b'\n');
        pem.extend_from_slice(&zeroize::Zeroizing::new(read(key)?));
        builder = builder.identity(reqwest::Identity::from_pem(&pem).map_err(|error| wrong(certificate, &error))?);
    }
    Ok(builder)
}

fn token(args: &ServerArgs) -> Result<Option<SecretString>, CliError> {
    let token = match &args.token_file {
        Some(file) => String::from_utf8(read(file)?).unwrap_or_default(),
        None => std::env::var("EKM_ADMIN_TOKEN").unwrap_or_default(),
    };
    let token = token.trim();
    if token.is_empty() && args.token_file.is_none() {
        return Ok(None);
    }
    if token.is_empty() || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        let place = args.token_file.as_ref().map_or("EKM_ADMIN_TOKEN".into(), |file| file.display().to_string());
        return Err(CliError::Connection(format!("{place}: there is no ID token in it")));
    }
    Ok(Some(token.into()))
}

fn read(file: &Path) -> Result<Vec<u8>, CliError> {
    Ok(std::fs::read(file).map_err(StartError::io(format!("cannot read {}", file.display())))?)
}

fn dev_socket() -> Result<PathBuf, CliError> {
    Ok(dev::data()?.join("admin.sock"))
}

#[cfg(test)]
#[path = "client_tests.rs"]
pub(super) mod tests;
