//! An issuer's key set: fetched in the background, served stale while the issuer is away, replaced only by a sound one.
//!
//! "There is no such key" is said only about a set that was fetched after the question came; until then, and while the
//! issuer cannot be reached, the answer is that we do not know ([`Error::IssuerUnavailable`]).

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ekm_core::Error;
use ekm_core::caller::TokenDefect;
use jsonwebtoken::DecodingKey;
use serde::Deserialize;
use tokio::sync::{Notify, watch};

use crate::config::Issuer;
use crate::metrics::Metrics;

const MAX_BYTES: usize = 256 * 1024;
const MAX_KEYS: usize = 32;
/// Random key ids must not become a flood at the issuer's door.
const MIN_INTERVAL: Duration = Duration::from_secs(2);
/// After a failure the next attempt does not wait for the normal interval.
const RETRY_INTERVAL: Duration = Duration::from_secs(10);
const FETCH_TIMEOUT: Duration = Duration::from_secs(5);

/// Why a key set was not taken. The one in use stays.
#[derive(Debug, thiserror::Error)]
pub enum JwksError {
    /// Not there, not readable, not reachable.
    #[error("cannot get the key set: {0}")]
    Fetch(String),
    /// There, but not fit for use.
    #[error("the key set is refused: {0}")]
    Refused(String),
    /// Proxy or root certificates in the configuration do not work.
    #[error("cannot set up the way to the key set: {0}")]
    Setup(String),
}

type Keys = HashMap<String, Arc<DecodingKey>>;

/// One issuer's key set and the task that keeps it fresh; the task ends with this.
pub(super) struct Jwks {
    shared: Arc<Shared>,
    attempts: watch::Receiver<Attempt>,
    task: tokio::task::JoinHandle<()>,
}

struct Shared {
    current: ArcSwap<KeySet>,
    wanted: Notify,
}

struct KeySet {
    keys: Keys,
    generation: u64,
    fetched: Option<Instant>,
}

#[derive(Clone, Copy)]
struct Attempt {
    started: Instant,
    succeeded: bool,
}

impl Drop for Jwks {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Jwks {
    /// Starts the background task, and waits for its first attempt.
    pub(super) async fn start(issuer: &Issuer, metrics: Arc<Metrics>) -> Result<Self, JwksError> {
        let source = Source::new(issuer)?;
        if let Source::File(_) = &source {
            // A file that is not there or no good is a mistake in the configuration, and no outage elsewhere.
            parse(&source.fetch().await?)?;
        }
        let empty = KeySet { keys: Keys::new(), generation: 0, fetched: None };
        let shared = Arc::new(Shared { current: ArcSwap::from_pointee(empty), wanted: Notify::new() });
        let never = Attempt { started: Instant::now(), succeeded: false };
        let (report, mut attempts) = watch::channel(never);
        let refresher = Refresher {
            name: issuer.iss[0].clone(),
            interval: Duration::from_secs(issuer.jwks_refresh_s.max(1)),
            source,
            shared: Arc::clone(&shared),
            report,
            metrics,
        };
        let task = tokio::spawn(refresher.run());
        let _ = tokio::time::timeout(FETCH_TIMEOUT + Duration::from_secs(1), attempts.changed()).await;
        Ok(Self { shared, attempts, task })
    }

    /// The key with this id, and the generation of the set that holds it.
    pub(super) async fn key(&self, kid: &str, deadline: Instant) -> Result<(Arc<DecodingKey>, u64), Error> {
        let asked = Instant::now();
        if let Some(found) = self.find(kid) {
            return Ok(found);
        }
        self.shared.wanted.notify_one();
        let mut attempts = self.attempts.clone();
        let newer = attempts.wait_for(|attempt| attempt.started >= asked);
        let attempt = match tokio::time::timeout_at(deadline.into(), newer).await {
            Ok(Ok(attempt)) => *attempt,
            _ => return Err(Error::IssuerUnavailable),
        };
        match self.find(kid) {
            Some(found) => Ok(found),
            None if attempt.succeeded => Err(TokenDefect::UnknownKey.into()),
            None => Err(Error::IssuerUnavailable),
        }
    }

    fn find(&self, kid: &str) -> Option<(Arc<DecodingKey>, u64)> {
        let current = self.shared.current.load();
        current.keys.get(kid).map(|key| (Arc::clone(key), current.generation))
    }

    /// Grows with every set that differs from the one before.
    pub(super) fn generation(&self) -> u64 {
        self.shared.current.load().generation
    }

    pub(super) fn age(&self) -> Option<Duration> {
        self.shared.current.load().fetched.map(|fetched| fetched.elapsed())
    }

    pub(super) fn refresh(&self) {
        self.shared.wanted.notify_one();
    }
}

struct Refresher {
    name: String,
    interval: Duration,
    source: Source,
    shared: Arc<Shared>,
    report: watch::Sender<Attempt>,
    metrics: Arc<Metrics>,
}

impl Refresher {
    async fn run(self) {
        let mut seen = Vec::new();
        if let Some(cached) = self.source.cached().await {
            self.take(cached, &mut seen, None);
        }
        loop {
            let started = Instant::now();
            let outcome = self.source.fetch().await.and_then(|document| {
                let parsed = parse(&document)?;
                Ok((document, parsed))
            });
            let succeeded = outcome.is_ok();
            match outcome {
                Ok((document, keys)) => {
                    self.metrics.jwks_fetches.with_label_values(&[&self.name, "ok"]).inc();
                    self.source.keep(&document).await;
                    self.take((document, keys), &mut seen, Some(started));
                }
                Err(error) => {
                    self.metrics.jwks_fetches.with_label_values(&[&self.name, "error"]).inc();
                    tracing::error!(issuer = self.name, %error, "key set not fetched; what there was before stays in use");
                }
            }
            self.report.send_replace(Attempt { started, succeeded });
            let pause = if succeeded { self.interval } else { self.interval.min(RETRY_INTERVAL) };
            let _ = tokio::time::timeout(pause, self.shared.wanted.notified()).await;
            tokio::time::sleep_until((started + self.source.min_interval()).into()).await;
        }
    }

    fn take(&self, (document, keys): (Vec<u8>, Keys), seen: &mut Vec<u8>, fetched: Option<Instant>) {
        let changed = *seen != document;
        let generation = self.shared.current.load().generation + u64::from(changed);
        if changed {
            tracing::info!(issuer = self.name, keys = keys.len(), "key set loaded");
            *seen = document;
        }
        self.shared.current.store(Arc::new(KeySet { keys, generation, fetched }));
    }
}

/// Where a key set comes from.
enum Source {
    File(PathBuf),
    Url { url: String, client: reqwest::Client, cache: Option<PathBuf> },
}

impl Source {
    fn new(issuer: &Issuer) -> Result<Self, JwksError> {
        let url = match (&issuer.jwks_url, &issuer.jwks_file) {
            (Some(url), _) => url.get_ref().clone(),
            (None, Some(file)) => return Ok(Self::File(file.clone())),
            (None, None) => return Err(JwksError::Setup("neither jwks_url nor jwks_file".into())),
        };
        let setup = |error: &dyn std::fmt::Display| JwksError::Setup(error.to_string());
        // No redirects and no proxy from the environment: the key set comes from where the configuration says, or not at all.
        let mut client =
            reqwest::Client::builder().timeout(FETCH_TIMEOUT).redirect(reqwest::redirect::Policy::none()).no_proxy();
        if let Some(proxy) = &issuer.jwks_proxy_url {
            client = client.proxy(reqwest::Proxy::all(proxy).map_err(|error| setup(&error))?);
        }
        if let Some(file) = &issuer.jwks_ca_file {
            let pem = std::fs::read(file).map_err(|error| setup(&error))?;
            let roots = reqwest::Certificate::from_pem_bundle(&pem).map_err(|error| setup(&error))?;
            client = client.tls_certs_only(roots);
        }
        let client = client.build().map_err(|error| setup(&error))?;
        Ok(Self::Url { url, client, cache: issuer.jwks_cache_file.clone() })
    }

    fn min_interval(&self) -> Duration {
        match self {
            Self::File(_) => Duration::ZERO,
            Self::Url { .. } => MIN_INTERVAL,
        }
    }

    async fn fetch(&self) -> Result<Vec<u8>, JwksError> {
        let too_long = || JwksError::Refused(format!("longer than {MAX_BYTES} bytes"));
        match self {
            Self::File(file) => {
                let document = tokio::fs::read(file).await;
                let document = document.map_err(|error| JwksError::Fetch(format!("{}: {error}", file.display())))?;
                if document.len() > MAX_BYTES { Err(too_long()) } else { Ok(document) }
            }
            Self::Url { url, client, .. } => {
                let failed = |error: reqwest::Error| JwksError::Fetch(chain(&error));
                let mut response = client.get(url).send().await.map_err(failed)?;
                if response.status() != http::StatusCode::OK {
                    return Err(JwksError::Fetch(format!("{url} answers {}", response.status())));
                }
                let mut document = Vec::new();
                while let Some(chunk) = response.chunk().await.map_err(failed)? {
                    document.extend_from_slice(&chunk);
                    if document.len() > MAX_BYTES {
                        return Err(too_long());
                    }
                }
                Ok(document)
            }
        }
    }

    /// The set of an earlier run, so that a restart works while the issuer is away.
    async fn cached(&self) -> Option<(Vec<u8>, Keys)> {
        let Self::Url { cache: Some(file), .. } = self else { return None };
        let document = tokio::fs::read(file).await.ok()?;
        parse(&document).ok().map(|keys| (document, keys))
    }

    async fn keep(&self, document: &[u8]) {
        let Self::Url { cache: Some(file), .. } = self else { return };
        if let Err(error) = replace(file, document).await {
            tracing::warn!(%error, file = %file.display(), "cannot keep the key set for the next start");
        }
    }
}

async fn replace(file: &Path, content: &[u8]) -> std::io::Result<()> {
    let new = file.with_extension("new");
    tokio::fs::write(&new, content).await?;
    tokio::fs::rename(&new, file).await
}

/// An error with its causes: the outer one alone says only "error sending request".
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

#[derive(Deserialize)]
struct Document {
    keys: Vec<Jwk>,
}

#[derive(Deserialize)]
struct Jwk {
    kty: String,
    kid: Option<String>,
    #[serde(rename = "use")]
    usage: Option<String>,
    alg: Option<String>,
    n: Option<String>,
    e: Option<String>,
}

/// Takes the RSA signing keys of a set (RFC 7517). Keys for other purposes are passed over; a weak or doubtful key refuses
/// the whole set, since an issuer that publishes it has a problem that a person must look at.
fn parse(document: &[u8]) -> Result<Keys, JwksError> {
    let refused = |problem: &str| JwksError::Refused(problem.to_owned());
    let document: Document = serde_json::from_slice(document).map_err(|error| refused(&error.to_string()))?;
    if document.keys.len() > MAX_KEYS {
        return Err(refused(&format!("more than {MAX_KEYS} keys")));
    }
    let mut keys = Keys::new();
    for key in document.keys {
        let for_us = key.kty == "RSA"
            && key.usage.is_none_or(|usage| usage == "sig")
            && key.alg.is_none_or(|algorithm| algorithm == "RS256");
        if !for_us {
            continue;
        }
        let number = |text: Option<String>| URL_SAFE_NO_PAD.decode(text.unwrap_or_default()).unwrap_or_default();
        let (modulus, exponent) = (number(key.n), number(key.e));
        let bits = modulus.len() * 8 - modulus.first().map_or(0, |byte| byte.leading_zeros() as usize);
        if !(2048..=4096).contains(&bits) {
            return Err(refused(&format!("an RSA key of {bits} bits; 2048 to 4096 are accepted")));
        }
        if exponent != [1, 0, 1] {
            return Err(refused("an RSA key whose exponent is not 65537"));
        }
        let Some(kid) = key.kid.filter(|kid| !kid.is_empty()) else { return Err(refused("a key without 'kid'")) };
        if keys.insert(kid, Arc::new(DecodingKey::from_rsa_raw_components(&modulus, &exponent))).is_some() {
            return Err(refused("two keys with the same 'kid'"));
        }
    }
    if keys.is_empty() {
        return Err(refused("no RSA signing key in it"));
    }
    Ok(keys)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn jwk(kid: &str, modulus_bytes: usize, exponent: &str) -> String {
        let modulus = URL_SAFE_NO_PAD.encode(vec![0xff; modulus_bytes]);
        format!(r#"{{"kty":"RSA","use":"sig","alg":"RS256","kid":"{kid}","n":"{modulus}","e":"{exponent}"}}"#)
    }

    fn set(keys: &[String]) -> String {
        format!(r#"{{"keys":[{}]}}"#, keys.join(","))
    }

    #[test]
    fn the_rsa_signing_keys_of_a_set_are_taken_and_others_passed_over() {
        let ec = r#"{"kty":"EC","kid":"e","crv":"P-256","x":"AA","y":"AA"}"#.to_owned();
        let encryption = jwk("c", 256, "AQAB").replace("\"sig\"", "\"enc\"");
        let keys = parse(set(&[jwk("a", 256, "AQAB"), ec, encryption, jwk("b", 512, "AQAB")]).as_bytes()).unwrap();
        let mut ids: Vec<_> = keys.into_keys().collect();
        ids.sort();
        assert_eq!(ids, ["a", "b"]);
    }

    #[test]
    fn a_doubtful_set_is_refused_as_a_whole() {
        let good = jwk("a", 256, "AQAB");
        for document in [
            String::new(),
            "[]".into(),
            "{}".into(),
            set(&[]),
            "{\"keys\":null}".into(),
            set(&[good.clone(), jwk("b", 64, "AQAB")]),
            set(&[good.clone(), jwk("b", 2048, "AQAB")]),
            set(&[good.clone(), jwk("b", 256, "AQ")]),
            set(&[good.clone(), good.clone()]),
            set(&[good.replace("\"a\"", "\"\"")]),
            set(&vec![good.clone(); 33]),
            set(&[good.replace("RSA", "EC")]),
        ] {
            assert!(parse(document.as_bytes()).is_err(), "{document} was accepted");
        }
    }
}
