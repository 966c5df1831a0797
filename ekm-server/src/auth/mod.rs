//! Who calls: Google-style OIDC ID tokens in the `Authorization` header.
//!
//! Checked before the body is read. 401 says that the token is not valid for us, 403 that a valid caller is not admitted; if
//! the issuer's keys cannot be had, neither is known, and the answer is 503.

mod jwks;
mod token;

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use aws_lc_rs::digest;
use ekm_core::caller::{Caller, CallerPattern, TokenDefect};
use ekm_core::{Error, policy};
use http::{HeaderMap, header};
use jsonwebtoken::{Algorithm, Validation};
use quick_cache::sync::Cache;

use crate::config::{Auth, Issuer};
use crate::metrics::Metrics;
use jwks::Jwks;
pub use jwks::JwksError;

/// Tokens live an hour; what is checked about them only once must not count as long.
const CACHED_FOR: Duration = Duration::from_secs(300);
const CACHED_TOKENS: usize = 4096;

/// Checks tokens.
pub struct Authenticator {
    issuers: Vec<TrustedIssuer>,
    leeway_s: u64,
    max_lifetime_s: u64,
    /// By SHA-256 of the token, only accepted ones: an RS256 check costs more than the rest of a request.
    verified: Cache<[u8; 32], Verified>,
    metrics: Arc<Metrics>,
}

struct TrustedIssuer {
    names: Vec<String>,
    admitted: Vec<CallerPattern>,
    validation: Validation,
    jwks: Jwks,
}

#[derive(Clone)]
struct Verified {
    caller: Arc<Caller>,
    until: Instant,
    issuer: usize,
    key_set: u64,
}

impl Authenticator {
    /// Loads every issuer's key set, waiting a few seconds for those behind a URL; one that does not come is fetched
    /// again in the background, and its tokens are answered with 503 meanwhile.
    pub async fn start(config: &Auth, metrics: Arc<Metrics>) -> Result<Self, JwksError> {
        let audiences = config.audiences.get_ref();
        let issuers = config.issuers.get_ref().iter().map(|issuer| (issuer, &**audiences, issuer.callers.clone()));
        Self::start_with(issuers, config, metrics).await
    }

    /// As [`Self::start`], for the issuers of the admin API, which have audiences of their own; everybody with a verified e-mail
    /// address is admitted here, and the list of people decides.
    pub async fn start_for_people(issuers: &[Issuer], config: &Auth, metrics: Arc<Metrics>) -> Result<Self, JwksError> {
        let everybody = CallerPattern::try_from("*".to_owned()).expect("a constant");
        let issuers = issuers.iter().map(|issuer| (issuer, &*issuer.audiences, vec![everybody.clone()]));
        Self::start_with(issuers, config, metrics).await
    }

    async fn start_with(
        trusted: impl Iterator<Item = (&Issuer, &[String], Vec<CallerPattern>)>,
        config: &Auth,
        metrics: Arc<Metrics>,
    ) -> Result<Self, JwksError> {
        let mut issuers = Vec::new();
        for (issuer, audiences, admitted) in trusted {
            let mut validation = Validation::new(Algorithm::RS256);
            validation.leeway = config.clock_leeway_s;
            validation.validate_nbf = true;
            validation.set_required_spec_claims(&["exp", "iss", "aud", "sub"]);
            validation.set_audience(audiences);
            validation.set_issuer(&issuer.iss);
            issuers.push(TrustedIssuer {
                names: issuer.iss.clone(),
                admitted,
                validation,
                jwks: Jwks::start(issuer, Arc::clone(&metrics)).await?,
            });
        }
        Ok(Self {
            issuers,
            leeway_s: config.clock_leeway_s,
            max_lifetime_s: config.max_token_lifetime_s,
            verified: Cache::new(CACHED_TOKENS),
            metrics,
        })
    }

    /// The caller behind a request's headers.
    pub async fn authenticate(&self, headers: &HeaderMap, deadline: Instant) -> Result<Arc<Caller>, Error> {
        let token = bearer(headers)?;
        let mut hash = [0; 32];
        hash.copy_from_slice(digest::digest(&digest::SHA256, token.as_bytes()).as_ref());
        if let Some(known) = self.verified.get(&hash)
            && known.until > Instant::now()
            && known.key_set == self.issuers[known.issuer].jwks.generation()
        {
            self.metrics.token_cache.with_label_values(&["hit"]).inc();
            return Ok(known.caller);
        }
        self.metrics.token_cache.with_label_values(&["miss"]).inc();
        let verified = self.verify(token, deadline).await?;
        let caller = Arc::clone(&verified.caller);
        self.verified.insert(hash, verified);
        Ok(caller)
    }

    async fn verify(&self, text: &str, deadline: Instant) -> Result<Verified, Error> {
        let header = token::header(text)?;
        let claimed_issuer = token::unverified_issuer(text)?;
        let index = self.issuers.iter().position(|issuer| issuer.names.contains(&claimed_issuer));
        let index = index.ok_or(TokenDefect::Issuer)?;
        let issuer = &self.issuers[index];
        let (key, key_set) = issuer.jwks.key(&header.kid, deadline).await?;
        let claims = token::verify(text, &key, &issuer.validation)?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_err(|_| Error::Internal("clock before 1970"))?;
        let expires = claims.check_time(now.as_secs(), self.leeway_s, self.max_lifetime_s)?;
        let caller = claims.into_caller()?;
        policy::admit(&issuer.admitted, &caller).map_err(Error::Denied)?;
        let left = Duration::from_secs(expires.saturating_sub(now.as_secs())).min(CACHED_FOR);
        Ok(Verified { caller: Arc::new(caller), until: Instant::now() + left, issuer: index, key_set })
    }

    /// Asks every issuer for its key set now, on SIGHUP.
    pub fn refresh(&self) {
        self.issuers.iter().for_each(|issuer| issuer.jwks.refresh());
    }

    /// For each issuer its name, and how old its key set is; `None` if there is none.
    pub fn key_set_ages(&self) -> impl Iterator<Item = (&str, Option<Duration>)> {
        self.issuers.iter().map(|issuer| (&*issuer.names[0], issuer.jwks.age()))
    }
}

/// Exactly one `Authorization: Bearer <token>`.
fn bearer(headers: &HeaderMap) -> Result<&str, TokenDefect> {
    let mut values = headers.get_all(header::AUTHORIZATION).iter();
    let value = values.next().ok_or(TokenDefect::Missing)?;
    if values.next().is_some() {
        return Err(TokenDefect::Malformed);
    }
    value.to_str().ok().and_then(|text| text.strip_prefix("Bearer ")).ok_or(TokenDefect::Malformed)
}
