//! What TOML's grammar cannot say: values that contradict each other or can never work.

use std::ops::Range;

use super::error::Finding;
use super::{Config, Issuer, PostgresTls, Profile, admin, shard};

/// Cloud KMS's clock, which also runs on the network between.
const CLOUD_KMS_TIMEOUT_MS: u64 = 150;

pub(super) fn check(config: &Config) -> Result<(), Finding> {
    check_listeners(config)?;
    check_limits(config)?;
    check_auth(config)?;
    check_catalog(config)?;
    if let Some(section) = &config.admin {
        admin::check(config, section.span(), section.get_ref())?;
    }
    if let Err(error) = tracing_subscriber::EnvFilter::try_new(&config.log.filter) {
        return finding(
            0..0,
            format!("log.filter: {error}"),
            "write directives such as \"info\" or \"info,ekm_server=debug\"",
        );
    }
    shard::check(config)?;
    match (&config.software, config.profile) {
        (Some(software), Profile::Small) => finding(
            software.span(),
            "custody 'software' keeps keys outside an HSM, and this profile does not allow that",
            "remove [software] and write a [[shard]] of HSMs, or set profile = \"test\"",
        ),
        (None, _) if config.shards.is_empty() => finding(
            0..0,
            "there is nothing to keep keys in",
            "write a [[shard]] of HSMs, or [software] in profile \"test\"",
        ),
        _ => Ok(()),
    }
}

pub(super) fn finding(span: Range<usize>, problem: impl Into<String>, help: impl Into<String>) -> Result<(), Finding> {
    Err(Finding { span, problem: problem.into(), help: help.into() })
}

fn check_listeners(config: &Config) -> Result<(), Finding> {
    let hosts = &config.server.hosts;
    if let Some(host) = hosts.get_ref().iter().find(|host| host.is_empty() || host.contains([':', '/'])) {
        return finding(
            hosts.span(),
            format!("'{host}' would never match: a host is a name, without scheme, port and path"),
            "write \"ekm.example.com\"",
        );
    }
    if config.server.listen == config.ops.listen && config.ops.listen.port() != 0 {
        return finding(0..0, "both listeners have the same address", "give [ops] another port, such as 9443");
    }
    Ok(())
}

/// `Cloud KMS's 150 ms > request deadline`, and in [`shard`] `> HSM deadline`: the outer one must never give up while the inner one still
/// works.
fn check_limits(config: &Config) -> Result<(), Finding> {
    let request = &config.limits.request_deadline_ms;
    if *request.get_ref() == 0 {
        return finding(request.span(), "limits.request_deadline_ms is 0", "write a time in milliseconds, such as 100");
    }
    if *request.get_ref() >= CLOUD_KMS_TIMEOUT_MS && config.profile != Profile::Test {
        return finding(
            request.span(),
            format!("Cloud KMS gives up after {CLOUD_KMS_TIMEOUT_MS} ms, network included; this answers too late"),
            "write less, such as 100",
        );
    }
    let (body, limits) = (&config.limits.max_body_bytes, &config.limits);
    if limits.body_memory_mib * 1024 * 1024 < *body.get_ref() {
        return finding(
            0..0,
            "limits.body_memory_mib is less than one body of max_body_bytes",
            "leave it out for the default, which is 64",
        );
    }
    if limits.watchdog_ms < 1000 || limits.max_connection_age_s == 0 {
        return finding(
            0..0,
            "limits.watchdog_ms is less than 1000, or max_connection_age_s is 0",
            "leave them out for the defaults: a machine that is busy for a moment is no reason to end",
        );
    }
    if !(1..=limits.max_connections).contains(&limits.max_unauthenticated_connections()) {
        return finding(
            0..0,
            format!(
                "limits.max_unauthenticated_connections is {}: everybody begins as one of them, and they count among limits.max_connections, {}",
                limits.max_unauthenticated_connections(),
                limits.max_connections
            ),
            "write 1 to max_connections, or leave it out for the default, which is a quarter of max_connections",
        );
    }
    let needed = (limits.max_plaintext_bytes + limits.max_aad_bytes).div_ceil(3) * 4 + 4096;
    if *body.get_ref() < needed {
        return finding(
            body.span(),
            format!(
                "max_body_bytes is too small for max_plaintext_bytes and max_aad_bytes in base64: {needed} are needed"
            ),
            "write at least that, or lower the other two",
        );
    }
    Ok(())
}

fn check_auth(config: &Config) -> Result<(), Finding> {
    let audiences = &config.auth.audiences;
    if audiences.get_ref().is_empty() {
        return finding(
            audiences.span(),
            "without audiences no token is acceptable",
            "write [\"https://<the hostname that Cloud KMS calls>\"]",
        );
    }
    for audience in audiences.get_ref() {
        let host = audience.strip_prefix("https://").unwrap_or_default();
        if host.is_empty() || host.contains(['/', ':', '?', '#', '@']) || host != host.to_ascii_lowercase() {
            return finding(
                audiences.span(),
                format!(
                    "the audience '{audience}' is never in a token: Google writes https://<hostname>, in lower case, no port, no path"
                ),
                "write \"https://ekm.example.com\"",
            );
        }
    }
    let issuers = &config.auth.issuers;
    if issuers.get_ref().is_empty() {
        return finding(issuers.span(), "without issuers no token is acceptable", "add an [[auth.issuers]] table");
    }
    issuers.get_ref().iter().try_for_each(|issuer| check_issuer(config.profile, issuers.span(), issuer))
}

fn check_issuer(profile: Profile, span: Range<usize>, issuer: &Issuer) -> Result<(), Finding> {
    if issuer.callers.is_empty() {
        return finding(
            span,
            "an issuer has no 'callers', so every token of it would be denied, and a denial disables key versions at Google",
            "write callers = [\"service-*@gcp-sa-ekms.iam.gserviceaccount.com\"]",
        );
    }
    if !issuer.audiences.is_empty() {
        return finding(span, "the audiences of these issuers stand in [auth]", "remove 'audiences' here");
    }
    check_key_set(profile, span, issuer)
}

/// What holds for the issuers of `[auth]` and of `[admin]`.
pub(super) fn check_key_set(profile: Profile, span: Range<usize>, issuer: &Issuer) -> Result<(), Finding> {
    if issuer.iss.is_empty() || issuer.iss.iter().any(String::is_empty) {
        return finding(span, "an issuer has no 'iss'", "write iss = [\"https://accounts.google.com\", …]");
    }
    match (&issuer.jwks_url, &issuer.jwks_file) {
        (Some(url), None) => {
            let plain_http = profile == Profile::Test && url.get_ref().starts_with("http://");
            if !url.get_ref().starts_with("https://") && !plain_http {
                return finding(
                    url.span(),
                    "jwks_url must begin with https://: whoever changes the key set on the way can sign tokens",
                    "write https://, or put the key set into a file and name it in jwks_file",
                );
            }
            Ok(())
        }
        (None, Some(_)) if issuer.jwks_cache_file.is_some() => {
            finding(span, "jwks_cache_file goes with jwks_url only", "remove it: a jwks_file is always there")
        }
        (None, Some(_)) => Ok(()),
        _ => finding(span, "an issuer needs either jwks_url or jwks_file", "write exactly one of the two"),
    }
}

fn check_catalog(config: &Config) -> Result<(), Finding> {
    let catalog = &config.catalog;
    let mut others = catalog.sqlite_file.iter().chain(&catalog.key_file).chain([&config.audit.file]);
    if catalog.snapshot_file.as_ref().is_some_and(|snapshot| others.any(|other| other == snapshot)) {
        return finding(
            0..0,
            "catalog.snapshot_file names a file that is something else already; it would be replaced",
            "give the snapshot a file of its own",
        );
    }
    let postgres = match (&catalog.sqlite_file, &catalog.postgres) {
        (Some(_), None) => return Ok(()),
        (None, Some(postgres)) => postgres,
        _ => {
            return finding(
                0..0,
                "the catalog is either a SQLite file or a PostgreSQL database",
                "write exactly one of catalog.sqlite_file and [catalog.postgres]",
            );
        }
    };
    let (span, postgres) = (postgres.span(), postgres.get_ref());
    if postgres.hosts.is_empty() {
        return finding(span, "catalog.postgres has no hosts", "write hosts = [\"db1.example.com:5432\", …]");
    }
    match (postgres.tls, &postgres.ca_file) {
        (PostgresTls::Off, _) if config.profile != Profile::Test => {
            return finding(
                span,
                "connections to the catalog in plain text are for profile \"test\" only",
                "leave tls out, and name the roots of the servers' certificates in ca_file",
            );
        }
        (PostgresTls::VerifyFull, None) => {
            return finding(
                span,
                "without ca_file the database's certificate cannot be checked",
                "name a file with the PEM roots that its certificate comes from",
            );
        }
        _ => {}
    }
    if postgres.client_certificate_file.is_some() != postgres.client_key_file.is_some() {
        return finding(span, "a client certificate needs its key, and the other way round", "write both or neither");
    }
    if postgres.password_file.is_none() && postgres.client_certificate_file.is_none() {
        return finding(
            span,
            "nothing proves to the database who this is",
            "write password_file, or client_certificate_file and client_key_file",
        );
    }
    if catalog.snapshot_file.is_none() && config.profile != Profile::Test {
        return finding(
            span,
            "without catalog.snapshot_file a frontend cannot start while the database is away",
            "write snapshot_file = \"/var/lib/ekm/catalog-snapshot.db\"",
        );
    }
    Ok(())
}
