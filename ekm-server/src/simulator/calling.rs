//! One call as Cloud KMS makes it: a token, a deadline for each try, other endpoints and further tries after what may pass.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use http::Method;
use reqwest::Url;
use secrecy::SecretString;
use serde::Serialize;
use serde_json::Value;

use super::error_domain::{Api, ErrorDomain, KmsError};
use super::state::{Connection, KeyPlace};
use crate::dev::issuer::Issuer;
use crate::remote::{Answer, Call, NoAnswer, RemoteEkm, Trust, read_certificates};

/// An ID token of Google's is valid for an hour.
const TOKEN_TTL_S: u64 = 3600;

/// How long and how often.
#[derive(Clone, Copy)]
pub(crate) struct Patience {
    /// For one try, from connecting to the last byte.
    pub(crate) deadline: Duration,
    pub(crate) tries: u32,
}

/// Between two tries.
const PAUSE: Duration = Duration::from_millis(25);

/// One try.
#[derive(Serialize)]
pub(crate) struct Attempt {
    pub(crate) method: Api,
    pub(crate) endpoint: String,
    pub(crate) path: String,
    /// None if nothing came back.
    pub(crate) status: Option<u16>,
    pub(crate) took_ms: f64,
    /// What Cloud KMS makes of it.
    pub(crate) error: Option<ErrorDomain>,
    /// What the EKM said, for people.
    pub(crate) detail: String,
    pub(crate) retried: bool,
}

/// Where to call: a name, its endpoints, and whom to believe.
pub(crate) struct Route {
    base: Url,
    endpoints: Vec<Option<SocketAddr>>,
    trust: Trust,
    path: String,
}

impl Route {
    /// To a path behind the connection.
    pub(crate) fn through(connection: &Connection, path: &str) -> Result<Self, String> {
        let base = format!("https://{}", connection.hostname);
        let base = Url::parse(&base).map_err(|error| format!("'{}': {error}", connection.hostname))?;
        let endpoints = connection.addresses.iter().copied().map(Some).collect();
        Ok(Self { base, endpoints, trust: connection.trust()?, path: path.into() })
    }

    /// To a version's key. An invalid URI is the customer's error.
    pub(crate) fn to(place: &KeyPlace, connection: Option<&Connection>) -> Result<Result<Self, KmsError>, String> {
        match place {
            KeyPlace::ExternalVpc { ekm_connection_key_path } => {
                let connection = connection.ok_or("there is no connection; 'ekm simulate-kms connect' makes one")?;
                Self::through(connection, ekm_connection_key_path).map(Ok)
            }
            KeyPlace::External { external_key_uri, ca_file } => {
                let invalid = || KmsError::external(ErrorDomain::ExternalKeyUriInvalid, Api::Encrypt);
                let parsed = Url::parse(external_key_uri).ok().filter(|uri| {
                    uri.scheme() == "https" && uri.has_host() && uri.query().is_none() && uri.fragment().is_none()
                });
                let Some(uri) = parsed else { return Ok(Err(invalid())) };
                let trust = match ca_file {
                    Some(file) => Trust::Authorities(read_certificates(file)?),
                    None => Trust::System,
                };
                let path = uri.path().trim_start_matches('/').to_owned();
                let mut base = uri;
                base.set_path("");
                Ok(Ok(Self { base, endpoints: vec![None], trust, path }))
            }
        }
    }

    fn clients(&self) -> Result<Vec<(String, RemoteEkm)>, String> {
        let client = |address: &Option<SocketAddr>| {
            let name = address.map_or_else(|| self.base.authority().to_owned(), |address| address.to_string());
            Ok((name, RemoteEkm::new(&self.base, *address, &self.trust)?))
        };
        self.endpoints.iter().map(client).collect()
    }
}

/// Who calls, and what was called so far.
pub(crate) struct Caller {
    issuer: Issuer,
    patience: Patience,
    /// Every try, in order.
    pub(crate) attempts: Vec<Attempt>,
}

impl Caller {
    pub(crate) fn new(issuer: Issuer, patience: Patience) -> Self {
        Self { issuer, patience, attempts: Vec::new() }
    }

    /// Calls until there is an answer that is no passing trouble, and reads from it what `read` finds.
    pub(crate) async fn call<T>(
        &mut self,
        api: Api,
        route: &Route,
        service_agent: &str,
        body: &Value,
        read: impl Fn(&Value) -> Option<T>,
    ) -> Result<Result<T, KmsError>, String> {
        let audience = format!("https://{}", route.base.host_str().unwrap_or_default());
        let token = self.issuer.mint(service_agent, &audience, TOKEN_TTL_S).map_err(|error| error.to_string())?;
        let token = SecretString::from(token);
        let path = format!("{}:{}", route.path, api.verb());
        let clients = route.clients()?;
        let call = Call {
            method: Method::POST,
            path: &path,
            token: Some(&token),
            content_type: Some("application/json"),
            body: body.to_string(),
        };
        for (number, (endpoint, client)) in (1..=self.patience.tries).zip(clients.iter().cycle()) {
            let mut value = None;
            let judge = |outcome: &Result<Answer, NoAnswer>| {
                let json = outcome.as_ref().ok().and_then(|answer| serde_json::from_slice(&answer.body).ok());
                value = json.as_ref().and_then(&read);
                let unusable = value.is_none().then_some(ErrorDomain::UnexpectedResponse);
                ErrorDomain::of(api, outcome).or(unusable)
            };
            match self.attempt(api, endpoint, client, &call, number, judge).await {
                Verdict::TryAgain => tokio::time::sleep(PAUSE).await,
                Verdict::Failed(error) => return Ok(Err(KmsError::external(error, api))),
                Verdict::Answered => return Ok(Ok(value.expect("what cannot be used has failed"))),
            }
        }
        Err("there is nobody to call, or not even one try".into())
    }

    /// Whether there is anybody who answers, at every endpoint; what is answered does not matter, since the path of GetInfo is not public.
    pub(crate) async fn reach(&mut self, route: &Route) -> Result<Result<(), KmsError>, String> {
        let call = Call { method: Method::GET, path: "v0/info", token: None, content_type: None, body: String::new() };
        for (endpoint, client) in &route.clients()? {
            for number in 1.. {
                let judge = |outcome: &Result<Answer, NoAnswer>| {
                    outcome.as_ref().err().and_then(|_| ErrorDomain::of(Api::GetInfo, outcome))
                };
                match self.attempt(Api::GetInfo, endpoint, client, &call, number, judge).await {
                    Verdict::TryAgain => tokio::time::sleep(PAUSE).await,
                    Verdict::Failed(error) => return Ok(Err(KmsError::external(error, Api::GetInfo))),
                    Verdict::Answered => break,
                }
            }
        }
        Ok(Ok(()))
    }

    /// One try, noted.
    async fn attempt(
        &mut self,
        api: Api,
        endpoint: &str,
        client: &RemoteEkm,
        call: &Call<'_>,
        number: u32,
        judge: impl FnOnce(&Result<Answer, NoAnswer>) -> Option<ErrorDomain>,
    ) -> Verdict {
        let started = Instant::now();
        let outcome = client.call(call, self.patience.deadline).await;
        let took_ms = started.elapsed().as_secs_f64() * 1000.0;
        let error = judge(&outcome);
        let retried = error.is_some_and(ErrorDomain::is_retried) && number < self.patience.tries;
        self.attempts.push(Attempt {
            method: api,
            endpoint: endpoint.into(),
            path: call.path.into(),
            status: outcome.as_ref().ok().map(|answer| answer.status),
            took_ms: (took_ms * 100.0).round() / 100.0,
            error,
            detail: detail(&outcome),
            retried,
        });
        match error {
            Some(_) if retried => Verdict::TryAgain,
            Some(error) => Verdict::Failed(error),
            None => Verdict::Answered,
        }
    }
}

/// What becomes of a try.
enum Verdict {
    Answered,
    TryAgain,
    Failed(ErrorDomain),
}

/// What the EKM said, cut. Of a body only an error's message, since a success holds a secret.
fn detail(outcome: &Result<Answer, NoAnswer>) -> String {
    let answer = match outcome {
        Ok(answer) if answer.status == 200 => return String::new(),
        Ok(answer) => answer,
        Err(error) => return error.to_string(),
    };
    let json: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
    let status = if json["error"].is_object() { &json["error"] } else { &json };
    crate::wire::truncated(status["message"].as_str().unwrap_or_default(), 300)
}
