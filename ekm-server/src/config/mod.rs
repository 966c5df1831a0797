//! The configuration of `ekm serve`: one TOML file, every field documented here and in `deploy/config/`.
//!
//! Unknown fields are refused, units are in the names, and secrets are never in the file: it names the file or environment
//! variable that holds them. Relative file names are relative to the configuration file's directory.

mod admin;
mod check;
mod error;
mod shard;

use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ekm_core::caller::CallerPattern;
use serde::{Deserialize, Serialize};
use toml::Spanned;

pub use admin::{AdminConfig, Person};
pub use error::ConfigError;
pub use shard::{Isolation, ReplicaConfig, ShardConfig};

/// A whole configuration, parsed and checked.
#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// How strict the checks are.
    pub profile: Profile,
    /// The listener that Cloud KMS calls.
    pub server: Server,
    /// The listener for health and metrics.
    pub ops: Ops,
    /// Whom to believe.
    pub auth: Auth,
    /// Where the key catalog is.
    pub catalog: CatalogConfig,
    /// The HSMs, for custody `hsm` and `hsm-wrapped`: one shard in most deployments.
    #[serde(default, rename = "shard", skip_serializing_if = "Vec::is_empty")]
    pub shards: Vec<Spanned<ShardConfig>>,
    /// The key file, for custody `software`.
    pub software: Option<Spanned<Software>>,
    /// The audit log.
    pub audit: Audit,
    /// The admin API; absent: this process has none.
    pub admin: Option<Spanned<AdminConfig>>,
    /// The operator's log, on standard error.
    #[serde(default)]
    pub log: Log,
    /// Bounds in time and size.
    #[serde(default)]
    pub limits: Limits,
}

/// What kind of deployment this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Profile {
    /// One process for trying things out: custody `software`, key sets over plain HTTP, and long deadlines are allowed.
    Test,
    /// Production on a single site.
    Small,
}

impl Profile {
    /// The label of the metric `ekm_profile`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Test => "test",
            Self::Small => "small",
        }
    }

    /// Long enough for the load balancers' configurations in `deploy/`; where one process is tried out, there is none.
    fn drain_delay_ms(self) -> u64 {
        match self {
            Self::Test => 0,
            Self::Small => 5000,
        }
    }
}

/// The listener that Cloud KMS calls, always TLS.
#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Server {
    /// Address and port; port 0 takes a free one.
    pub listen: SocketAddr,
    /// PEM: the leaf first, then intermediates. Read again when it changes.
    pub certificate_file: PathBuf,
    /// PEM, PKCS#8 or SEC1. ECDSA P-256 costs a quarter of RSA-2048 in a handshake.
    pub private_key_file: PathBuf,
    /// The hosts that this service answers for; empty means any. Others get 421.
    #[serde(default = "defaults::hosts")]
    pub hosts: Spanned<Vec<String>>,
    /// Puts errors into `{"error":{…}}`, as some deployments of the protocol do.
    #[serde(default)]
    pub error_envelope: bool,
    /// What is answered when there is more to do than the HSMs can: 429, or 503 for load balancers and callers that take 429 for something
    /// else. A load balancer that takes 503 for a sick frontend would take all of them away.
    #[serde(default)]
    pub overload_status: OverloadStatus,
}

/// The answer to too much. A number in TOML.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(try_from = "u16", into = "u16")]
pub enum OverloadStatus {
    /// 429: no other frontend could do it either.
    #[default]
    TooManyRequests,
    /// 503.
    ServiceUnavailable,
}

impl TryFrom<u16> for OverloadStatus {
    type Error = &'static str;

    fn try_from(status: u16) -> Result<Self, Self::Error> {
        match status {
            429 => Ok(Self::TooManyRequests),
            503 => Ok(Self::ServiceUnavailable),
            _ => Err("write 429, or 503"),
        }
    }
}

impl From<OverloadStatus> for u16 {
    fn from(status: OverloadStatus) -> Self {
        match status {
            OverloadStatus::TooManyRequests => 429,
            OverloadStatus::ServiceUnavailable => 503,
        }
    }
}

/// The listener for health and metrics: plain HTTP, for the operator's network only.
#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Ops {
    /// Address and port; port 0 takes a free one.
    pub listen: SocketAddr,
}

/// Whom to believe.
#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Auth {
    /// The token's `aud` must equal one of these: `https://<hostname>`, no port, no path.
    pub audiences: Spanned<Vec<String>>,
    /// The issuers whose tokens are accepted.
    pub issuers: Spanned<Vec<Issuer>>,
    /// By how much clocks may differ.
    #[serde(default = "defaults::clock_leeway_s")]
    pub clock_leeway_s: u64,
    /// The longest `exp - iat` that is accepted. Google's tokens live 3600 s.
    #[serde(default = "defaults::max_token_lifetime_s")]
    pub max_token_lifetime_s: u64,
}

/// One issuer of ID tokens.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Issuer {
    /// The values of `iss` that mean this issuer.
    pub iss: Vec<String>,
    /// In `[[auth.issuers]]`: the e-mail addresses that may call at all; `*` stands for any run of characters.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub callers: Vec<CallerPattern>,
    /// In `[[admin.issuers]]`: the token's `aud` must equal one of these.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub audiences: Vec<String>,
    /// Where its key set is published.
    pub jwks_url: Option<Spanned<String>>,
    /// A file with its key set instead, for networks without a way out.
    pub jwks_file: Option<PathBuf>,
    /// The HTTP proxy on the way to `jwks_url`.
    pub jwks_proxy_url: Option<String>,
    /// PEM roots to check `jwks_url` with, instead of the operating system's.
    pub jwks_ca_file: Option<PathBuf>,
    /// Where the last good key set is kept, so that a restart works while the issuer is away.
    pub jwks_cache_file: Option<PathBuf>,
    /// How often the key set is fetched.
    #[serde(default = "defaults::jwks_refresh_s")]
    pub jwks_refresh_s: u64,
}

/// Where the key catalog is, and how it is followed.
#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct CatalogConfig {
    /// A SQLite file, for a single machine. `ekm catalog migrate` makes it.
    pub sqlite_file: Option<PathBuf>,
    /// A PostgreSQL database instead.
    pub postgres: Option<Spanned<Postgres>>,
    /// 64 hexadecimal digits in a file: wraps the catalog's key beside the HSM, so that a frontend can open the catalog while the HSM is
    /// away. It opens no key material of custody `hsm` or `hsm-wrapped`. Default: that of `[software]`, if there is one.
    pub key_file: Option<PathBuf>,
    /// This frontend's own copy of the catalog, which it starts from while the database is away.
    pub snapshot_file: Option<PathBuf>,
    /// How often the catalog is asked for changes; notifications of PostgreSQL come sooner.
    #[serde(default = "defaults::poll_interval_ms")]
    pub poll_interval_ms: u64,
    /// How often the whole catalog is read and verified, besides its changes.
    #[serde(default = "defaults::verify_interval_s")]
    pub verify_interval_s: u64,
}

/// A PostgreSQL catalog.
#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Postgres {
    /// Every server that may be or become the leader, as `host:port`; the leader is found by asking.
    #[serde(with = "hosts")]
    pub hosts: Vec<(String, u16)>,
    /// The database.
    pub database: String,
    /// The role to log in as.
    pub user: String,
    /// A file that holds its password and nothing else.
    pub password_file: Option<PathBuf>,
    /// `verify-full`, or in profile `test` `off`.
    #[serde(default)]
    pub tls: PostgresTls,
    /// PEM roots to check the servers' certificates with.
    pub ca_file: Option<PathBuf>,
    /// PEM: this client's certificate, for servers that ask for one.
    pub client_certificate_file: Option<PathBuf>,
    /// PEM, PKCS#8: its key.
    pub client_key_file: Option<PathBuf>,
    /// Follow the catalog on a server that takes no changes, to spare the leader.
    #[serde(default)]
    pub prefer_follower: bool,
}

/// How connections to PostgreSQL are protected.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum PostgresTls {
    /// The server's certificate is checked, its name included. Anything less protects from nobody.
    #[default]
    VerifyFull,
    /// Plain text. Profile `test` only.
    Off,
}

/// `host:port` in TOML.
mod hosts {
    use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

    pub(super) fn serialize<S: Serializer>(hosts: &[(String, u16)], serializer: S) -> Result<S::Ok, S::Error> {
        hosts.iter().map(|(host, port)| format!("{host}:{port}")).collect::<Vec<_>>().serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<(String, u16)>, D::Error> {
        let texts = Vec::<String>::deserialize(deserializer)?;
        let parse = |text: String| {
            let (host, port) = text.rsplit_once(':')?;
            let host = host.trim_start_matches('[').trim_end_matches(']');
            (!host.is_empty()).then_some((host.to_owned(), port.parse().ok()?))
        };
        let parsed = texts.into_iter().map(|text| {
            let refused = format!("'{text}' is no host and port; write \"db1.example.com:5432\"");
            parse(text).ok_or_else(|| de::Error::custom(refused))
        });
        parsed.collect()
    }
}

/// Custody `software`. Refused outside profile `test`.
#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Software {
    /// 64 hexadecimal digits.
    pub key_file: PathBuf,
}

/// The audit log: one JSON object a line, one line a request.
#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Audit {
    /// Appended to; opened again on SIGHUP, for logrotate.
    pub file: PathBuf,
    /// How many lines may wait for the disk. When it is full, requests wait until their deadline and are then refused with 503:
    /// nothing is answered without a record.
    #[serde(default = "defaults::audit_queue_length")]
    pub queue_length: usize,
}

/// The operator's log, on standard error.
#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Log {
    /// Directives as in `info,ekm_server=debug`.
    pub filter: String,
    /// How lines look.
    pub format: LogFormat,
}

impl Default for Log {
    fn default() -> Self {
        Self { filter: "info".into(), format: LogFormat::Auto }
    }
}

/// How lines of the log look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// Text on a terminal, else JSON.
    Auto,
    /// For people.
    Text,
    /// For machines.
    Json,
}

/// Bounds in time and size. The defaults fit Cloud KMS, which gives up after 150 ms.
#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// From the request's first byte to the answer; then 503. An answer that is a third later is not sent at all.
    pub request_deadline_ms: Spanned<u64>,
    /// A JSON body; a longer one is 400.
    pub max_body_bytes: Spanned<usize>,
    /// What may be wrapped: 64 KiB at Cloud KMS, and its own ciphertext around it.
    pub max_plaintext_bytes: usize,
    /// additionalAuthenticatedData.
    pub max_aad_bytes: usize,
    /// How many requests a second each caller may send, with two seconds' worth at once; more are 429. Absent: as many as he likes; callers
    /// wait for the HSM in turn in any case.
    pub caller_requests_per_s: Option<NonZeroU32>,
    /// Memory for the bodies of requests under way, in MiB; when it is used up, others are 503.
    pub body_memory_mib: usize,
    /// Open connections; one more closes the one that has been idle longest, first of those without a good token so far.
    pub max_connections: usize,
    /// Of those, the ones to the EKM listener on which no request has had a good token yet; one more closes the one of them that has been idle
    /// longest. Newcomers are left half of `first_byte_timeout_ms` in peace, even if they are more. Absent: a quarter of
    /// `max_connections`.
    pub max_unauthenticated_connections: Option<usize>,
    /// From accept to the end of the handshake.
    pub handshake_timeout_ms: u64,
    /// From the handshake to the first byte of a request.
    pub first_byte_timeout_ms: u64,
    /// From the first to the last byte of a request's head.
    pub header_timeout_ms: u64,
    /// For the body to arrive.
    pub body_timeout_ms: u64,
    /// For the peer to take bytes of an answer.
    pub write_timeout_ms: u64,
    /// Between two requests on a connection. Longer than that of a load balancer that closes idle connections, so that it closes first;
    /// shorter than what one that forgets them takes (600 s at Google).
    pub idle_timeout_s: u64,
    /// A connection that is older is closed behind an answer, give or take a fifth, so that load spreads again after a frontend was away.
    pub max_connection_age_s: u64,
    /// If nothing runs any more for so long, the process ends, for its supervisor to start it anew.
    pub watchdog_ms: u64,
    /// After SIGTERM: how long to serve on while /readyz already says no, so that load balancers notice. Each answer closes its connection
    /// then. Absent: 5000, and 0 in profile `test`.
    pub drain_delay_ms: Option<u64>,
    /// After that: how long connections may finish.
    pub drain_timeout_ms: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            request_deadline_ms: Spanned::new(0..0, 100),
            max_body_bytes: Spanned::new(0..0, 256 * 1024),
            max_plaintext_bytes: 65 * 1024,
            max_aad_bytes: 64 * 1024,
            caller_requests_per_s: None,
            body_memory_mib: 64,
            max_connections: 2000,
            max_unauthenticated_connections: None,
            handshake_timeout_ms: 3_000,
            first_byte_timeout_ms: 5_000,
            header_timeout_ms: 2_000,
            body_timeout_ms: 5_000,
            write_timeout_ms: 10_000,
            idle_timeout_s: 75,
            max_connection_age_s: 600,
            watchdog_ms: 5_000,
            drain_delay_ms: None,
            drain_timeout_ms: 10_000,
        }
    }
}

impl Limits {
    /// As configured, or the default.
    pub fn max_unauthenticated_connections(&self) -> usize {
        self.max_unauthenticated_connections.unwrap_or(self.max_connections.div_ceil(4))
    }
}

mod defaults {
    use toml::Spanned;

    pub(super) fn hosts() -> Spanned<Vec<String>> {
        Spanned::new(0..0, Vec::new())
    }
    pub(super) fn clock_leeway_s() -> u64 {
        60
    }
    pub(super) fn max_token_lifetime_s() -> u64 {
        3700
    }
    pub(super) fn jwks_refresh_s() -> u64 {
        3600
    }
    pub(super) fn poll_interval_ms() -> u64 {
        500
    }
    pub(super) fn verify_interval_s() -> u64 {
        600
    }
    pub(super) fn audit_queue_length() -> usize {
        8192
    }
}

impl Config {
    /// Reads, parses and checks a file.
    pub fn read(file: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(file).map_err(|error| ConfigError::unreadable(file, &error))?;
        let mut config = Self::parse(&text, file)?;
        config.resolve(file.parent().unwrap_or(Path::new("")));
        Ok(config)
    }

    /// Parses and checks a text; `file` is its name in error texts.
    pub fn parse(text: &str, file: &Path) -> Result<Self, ConfigError> {
        let mut config: Self = toml::from_str(text).map_err(|error| ConfigError::syntax(file, text, &error))?;
        check::check(&config).map_err(|finding| finding.in_file(file, text))?;
        config.limits.drain_delay_ms.get_or_insert(config.profile.drain_delay_ms());
        let strangers = config.limits.max_unauthenticated_connections();
        config.limits.max_unauthenticated_connections = Some(strangers);
        Ok(config)
    }

    /// Makes file names relative to the configuration file's directory.
    fn resolve(&mut self, base: &Path) {
        let mut files =
            vec![&mut self.server.certificate_file, &mut self.server.private_key_file, &mut self.audit.file];
        let catalog = &mut self.catalog;
        files.extend(
            [&mut catalog.sqlite_file, &mut catalog.key_file, &mut catalog.snapshot_file].into_iter().flatten(),
        );
        if let Some(postgres) = &mut catalog.postgres {
            let postgres = postgres.get_mut();
            files.extend(&mut postgres.password_file);
            files.extend(&mut postgres.ca_file);
            files.extend(&mut postgres.client_certificate_file);
            files.extend(&mut postgres.client_key_file);
        }
        let mut issuers: Vec<_> = self.auth.issuers.get_mut().iter_mut().collect();
        if let Some(admin) = &mut self.admin {
            let admin = admin.get_mut();
            files.extend(&mut admin.certificate_file);
            files.extend(&mut admin.private_key_file);
            files.extend(&mut admin.client_ca_file);
            files.extend(admin.socket.as_mut().map(Spanned::get_mut));
            issuers.extend(&mut admin.issuers);
        }
        for issuer in issuers {
            files.extend(&mut issuer.jwks_file);
            files.extend(&mut issuer.jwks_ca_file);
            files.extend(&mut issuer.jwks_cache_file);
        }
        for shard in self.shards.iter_mut().map(Spanned::get_mut) {
            files.extend(&mut shard.audit_file);
            files.extend(shard.replica.iter_mut().filter_map(|replica| replica.get_mut().pin_file.as_mut()));
        }
        if let Some(software) = &mut self.software {
            files.push(&mut software.get_mut().key_file);
        }
        for file in files {
            *file = base.join(&file);
        }
    }

    /// The effective configuration as TOML, without secrets: defaults filled in, file names resolved, passwords in proxy URLs and
    /// environment values for the vendor's library replaced.
    pub fn to_redacted_toml(&self) -> String {
        let mut value = toml::Value::try_from(self).expect("a configuration that was parsed can be printed");
        redact(&mut value, "");
        toml::to_string(&value).expect("TOML prints its own values")
    }

    /// Sets the deadline of a request, and shortens or lengthens the HSMs' in proportion.
    pub fn set_deadline(&mut self, deadline: Duration) -> Result<(), ConfigError> {
        let milliseconds = u64::try_from(deadline.as_millis()).unwrap_or(u64::MAX);
        *self.limits.request_deadline_ms.get_mut() = milliseconds;
        for shard in &mut self.shards {
            *shard.get_mut().deadline_ms.get_mut() = milliseconds / 5 * 3;
        }
        check::check(self).map_err(|finding| finding.in_file(Path::new("--deadline-ms"), ""))
    }

    /// The deadline of a request.
    pub fn request_deadline(&self) -> Duration {
        Duration::from_millis(*self.limits.request_deadline_ms.get_ref())
    }
}

fn redact(value: &mut toml::Value, key: &str) {
    match value {
        toml::Value::Table(table) if key == "environment" => {
            table.iter_mut().for_each(|(_, value)| *value = "(redacted)".into());
        }
        toml::Value::Table(table) => table.iter_mut().for_each(|(key, value)| redact(value, key)),
        toml::Value::Array(array) => array.iter_mut().for_each(|value| redact(value, key)),
        toml::Value::String(text) => {
            if let Some((scheme, rest)) = text.split_once("://")
                && let Some((_, host)) = rest.rsplit_once('@')
            {
                *text = format!("{scheme}://(redacted)@{host}");
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The sample configurations in `deploy/config/`.
    const SAMPLES: [(&str, &str); 2] = [
        ("test.toml", include_str!("../../../deploy/config/test.toml")),
        ("small.toml", include_str!("../../../deploy/config/small.toml")),
    ];

    fn parse(text: &str) -> Result<Config, String> {
        Config::parse(text, Path::new("ekm.toml")).map_err(|error| error.to_string())
    }

    #[test]
    fn every_sample_is_accepted_and_its_effective_form_too() {
        for (name, text) in SAMPLES {
            let config = parse(text).unwrap_or_else(|error| panic!("{name}: {error}"));
            let effective = config.to_redacted_toml();
            parse(&effective).unwrap_or_else(|error| panic!("{name}, effective: {error}\n{effective}"));
        }
    }

    #[test]
    fn a_frontend_that_ends_serves_on_for_a_while_unless_something_is_tried_out_or_the_file_says_otherwise() {
        let drain_delay_ms = |text: &str| parse(text).expect("a good file").limits.drain_delay_ms;
        let [(_, test), (_, small)] = SAMPLES;
        assert_eq!((drain_delay_ms(test), drain_delay_ms(small)), (Some(0), Some(5000)));
        for text in [test, small] {
            assert_eq!(drain_delay_ms(&text.replace("[limits]", "[limits]\ndrain_delay_ms = 7")), Some(7));
        }
    }

    #[test]
    fn every_option_that_a_sample_mentions_in_a_comment_exists() {
        for (name, text) in SAMPLES {
            // Commented-out settings look like `#option = value`, without a space; prose has one.
            let lines =
                text.lines().map(|line| line.strip_prefix('#').filter(|rest| !rest.starts_with(' ')).unwrap_or(line));
            let everything = lines.collect::<Vec<_>>().join("\n");
            if let Err(error) = toml::from_str::<Config>(&everything) {
                panic!("{name} with all comments taken away: {error}");
            }
        }
    }

    #[test]
    fn a_wrong_file_is_refused_with_place_and_remedy() {
        let (_, good) = SAMPLES[1];
        for (from, to, expected) in [
            ("[audit]", "[audti]", "did you mean 'audit'?"),
            ("profile = \"small\"", "profile = \"smal\"", "unknown variant"),
            ("module = ", "modul = ", "did you mean 'module'?"),
            ("listen = \"0.0.0.0:8443\"", "listen = 8443", "socket address"),
            ("listen = \"0.0.0.0:8443\"", "listen = \"localhost\"", "such as \"0.0.0.0:8443\""),
            (
                "[catalog]\nsqlite_file = \"/var/lib/ekm/catalog.db\"",
                "",
                "the samples in deploy/config/ have every field",
            ),
            ("deadline_ms = 60", "deadline_ms = 100", "shorter than limits.request_deadline_ms"),
            ("request_deadline_ms = 100", "request_deadline_ms = 150", "Cloud KMS gives up after 150 ms"),
            ("deadline_ms = 60", "deadline_ms = \"60 ms\"", "invalid type: string"),
            ("#hang_ms = 1000", "hang_ms = 50", "hang_ms must be longer"),
            ("#isolation = ", "isolation = \"thread\"\n#", "libsofthsm2.so is there twice"),
            ("name = \"hsm-b\"", "name = \"hsm-a\"", "hsm-a is there twice"),
            ("#copies = 2", "copies = 3", "copies must be"),
            ("name = \"hsm-b\"", "name = \"\"", "is no name"),
            ("max_body_bytes = 262144", "max_body_bytes = 1000", "max_body_bytes"),
            (
                "#max_unauthenticated_connections = 500",
                "max_unauthenticated_connections = 2001",
                "max_connections, 2000",
            ),
            ("#max_unauthenticated_connections = 500", "max_unauthenticated_connections = 0", "write 1 to"),
            ("audiences = [\"https://ekm.example.com\"]", "audiences = []", "audiences"),
            ("audiences = [\"https://ekm.example.com\"]", "audiences = [\"https://ekm.example.com/\"]", "no path"),
            ("token_label = \"ekm\"", "", "token_label"),
            ("pin_file = ", "pin_env = \"EKM_PIN\"\npin_file = ", "pin_file"),
            ("[[shard]]", "[software]\nkey_file = \"k\"\n[[shard]]", "profile = \"test\""),
            ("jwks_url = \"https:", "jwks_url = \"http:", "https"),
            ("#sessions = 1", "sessions = 0", "sessions"),
            ("#profile = \"softhsm\"", "profile = \"luna7\"", "there is no HSM profile 'luna7'; there are softhsm,"),
            ("hosts = [\"ekm", "hosts = [\"https://ekm", "a host is a name"),
            ("hosts = [\"ekm.example.com", "hosts = [\"ekm.example.com:8443", "a host is a name"),
            ("listen = \"127.0.0.1:9443\"", "listen = \"0.0.0.0:8443\"", "both listeners"),
            ("filter = \"info\"", "filter = \"=loud=\"", "log.filter"),
            ("jwks_url = \"https://www.googleapis.com/oauth2/v3/certs\"", "jwks_file = \"f\"", "jwks_cache_file"),
            ("\ncallers = [", "\naudiences = [\"a\"]\ncallers = [", "stand in [auth]"),
            ("listen = \"0.0.0.0:9444\"", "", "listens nowhere"),
            ("listen = \"0.0.0.0:9444\"", "listen = \"0.0.0.0:8443\"", "address of another listener"),
            ("listen = \"0.0.0.0:9444\"", "listen = \"127.0.0.1:9443\"", "address of another listener"),
            ("client_ca_file = ", "#client_ca_file = ", "nobody could log in"),
            ("#socket = ", "socket = ", "whoever is root"),
            ("client_ca_file = ", "certificate_file = \"c\"\nclient_ca_file = ", "only one of certificate_file"),
            ("roles = [\"security-officer\"]", "roles = []", "bob has no roles"),
            ("roles = [\"security-officer\"]", "roles = [\"security-offiser\"]", "did you mean 'security-officer'?"),
            ("certificate = \"bob@example.com\"", "", "bob could never log in"),
            ("certificate = \"bob@example.com\"", "email = \"bob@example.com\"", "bob could never log in"),
            ("certificate = \"bob@example.com\"", "certificate = \"Alice@example.com\"", "have the same identity"),
            ("certificate = \"bob@example.com\"", "certificate = \" \"", "is blank"),
            ("name = \"bob\"", "name = \"alice\"", "alice is there twice"),
            ("name = \"bob\"", "name = \"\"", "is no name"),
        ] {
            assert!(good.contains(from), "the sample no longer has {from:?}");
            let error = parse(&good.replacen(from, to, 1)).err().unwrap_or_else(|| panic!("{to:?} was accepted"));
            assert!(error.contains(expected), "{to:?} gave:\n{error}");
            assert!(error.contains("--> ekm.toml:"), "no place in:\n{error}");
        }
    }

    #[test]
    fn the_effective_configuration_shows_no_secret() {
        let (_, sample) = SAMPLES[1];
        let text = sample
            .replacen("jwks_url", "jwks_proxy_url = \"http://user:hunter2@proxy:3128\"\njwks_url", 1)
            .replacen("[shard.replica.environment]", "[shard.replica.environment]\nVENDOR_PASSWORD = \"hunter2\"", 1);
        let effective = parse(&text).unwrap().to_redacted_toml();
        assert!(!effective.contains("hunter2"), "{effective}");
        assert!(effective.contains("http://(redacted)@proxy:3128"), "{effective}");
    }
}
