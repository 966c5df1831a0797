//! The certificate that the EKM shows: for this name, in its time, and the one that is pinned.

use std::path::PathBuf;

use aws_lc_rs::digest;
use rustls::client::verify_server_name;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::server::ParsedCertificate;
use time::OffsetDateTime;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::{Line, Verdict, line};
use crate::cli::output;
use crate::remote::probe::Shown;

/// As long before its end as Cloud KMS itself begins to warn.
const SOON_DAYS: i64 = 30;

/// Adds what there is to say; returns whether it makes sense to go on.
pub(super) fn lines(
    lines: &mut Vec<Line>,
    shown: &Shown,
    name: &ServerName<'_>,
    pins: &[(&PathBuf, CertificateDer<'static>)],
) -> bool {
    let Some(leaf) = shown.chain.first() else {
        lines.push(line("tls.name", Verdict::Fail, "no certificate was shown", "configure one"));
        return false;
    };
    lines.push(named(leaf, name));
    lines.push(expiry(leaf, OffsetDateTime::now_utc()));
    if !pins.is_empty() {
        lines.push(pinned(leaf, pins));
    } else if shown.chain.len() == 1 && !is_self_signed(leaf) {
        let advice = "put the certificates between it and its authority into the same file, the leaf first: not everybody has them";
        lines.push(line("certificate.chain", Verdict::Warn, "the leaf alone", advice));
    } else {
        lines.push(line(
            "certificate.chain",
            Verdict::Pass,
            format!("{} shown, the leaf included", shown.chain.len()),
            "",
        ));
    }
    lines.iter().all(|line| line.verdict != Verdict::Fail)
}

fn named(leaf: &CertificateDer<'_>, name: &ServerName<'_>) -> Line {
    let verified = ParsedCertificate::try_from(leaf).and_then(|leaf| verify_server_name(&leaf, name));
    let name = name.to_str();
    match verified {
        Ok(()) => line("tls.name", Verdict::Pass, format!("the certificate is for {name}"), ""),
        Err(error) => {
            let advice = "the certificate needs the connection's hostname among its subject alternative names, or the connection another \
                          hostname";
            line("tls.name", Verdict::Fail, format!("not for {name}: {error}"), advice)
        }
    }
}

fn expiry(leaf: &CertificateDer<'_>, now: OffsetDateTime) -> Line {
    const CHECK: &str = "certificate.expiry";
    let Some((begins, ends)) = validity(leaf) else {
        return line(CHECK, Verdict::Fail, "the certificate cannot be read", "make a new one");
    };
    let days = (ends - now).whole_days();
    let until = output::time(ends);
    if now < begins {
        let advice = "wait, or look at the clocks";
        return line(CHECK, Verdict::Fail, format!("not valid before {}", output::time(begins)), advice);
    }
    if now >= ends {
        let advice = "Cloud KMS refuses it: make a new one, pin it beside this one, and have the EKM show it";
        return line(CHECK, Verdict::Fail, format!("expired on {until}"), advice);
    }
    let verdict = if days < SOON_DAYS { Verdict::Warn } else { Verdict::Pass };
    let advice = "make the next one now, pin it in the EKM connection beside this one, then have the EKM show it";
    line(CHECK, verdict, format!("{days} days, until {until}"), advice)
}

/// As an EKM connection does it: one of those pinned, and not one that was issued under it.
fn pinned(leaf: &CertificateDer<'_>, pins: &[(&PathBuf, CertificateDer<'static>)]) -> Line {
    const CHECK: &str = "certificate.pin";
    if let Some((file, _)) = pins.iter().find(|(_, pin)| pin == leaf) {
        return line(CHECK, Verdict::Pass, format!("it is {}", file.display()), "");
    }
    let found = format!("SHA-256 {} is none of {}", fingerprint(leaf), pins.len());
    let advice = "pin the certificate that is shown, the leaf and not its authority's, if its fingerprint is the one that you expect; if \
                  not, somebody else answers";
    line(CHECK, Verdict::Fail, found, advice)
}

fn validity(certificate: &CertificateDer<'_>) -> Option<(OffsetDateTime, OffsetDateTime)> {
    let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
    let at = |seconds| OffsetDateTime::from_unix_timestamp(seconds).ok();
    let validity = certificate.validity();
    Some((at(validity.not_before.timestamp())?, at(validity.not_after.timestamp())?))
}

fn is_self_signed(certificate: &CertificateDer<'_>) -> bool {
    X509Certificate::from_der(certificate).is_ok_and(|(_, one)| one.subject() == one.issuer())
}

fn fingerprint(certificate: &CertificateDer<'_>) -> String {
    let digest = digest::digest(&digest::SHA256, certificate);
    digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use time::Duration;

    use super::*;

    fn certificate(days: i64) -> CertificateDer<'static> {
        let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
        let mut parameters = rcgen::CertificateParams::new(vec!["ekm.example.com".to_owned()]).unwrap();
        (parameters.not_before, parameters.not_after) = (now(), now() + Duration::days(days));
        parameters.self_signed(&key).unwrap().der().clone()
    }

    fn now() -> OffsetDateTime {
        OffsetDateTime::UNIX_EPOCH + Duration::days(20_000)
    }

    #[test]
    fn a_certificate_that_ends_within_thirty_days_is_warned_of() {
        let verdict = |days, after| expiry(&certificate(days), now() + Duration::hours(after)).verdict;
        assert_eq!(verdict(90, 1), Verdict::Pass);
        assert_eq!(verdict(30, 1), Verdict::Warn);
        assert_eq!(verdict(30, 24 * 30), Verdict::Fail);
        assert_eq!(verdict(30, -1), Verdict::Fail);
    }

    #[test]
    fn a_pin_is_the_leaf_itself() {
        let (leaf, other, file) = (certificate(90), certificate(90), PathBuf::from("ekm.pem"));
        assert_eq!(pinned(&leaf, &[(&file, other.clone()), (&file, leaf.clone())]).verdict, Verdict::Pass);
        let refused = pinned(&leaf, &[(&file, other)]);
        assert!(refused.verdict == Verdict::Fail && refused.found.contains(&fingerprint(&leaf)), "{refused:?}");
    }

    #[test]
    fn a_certificate_is_for_its_own_name_only() {
        let verdict = |name: &str| named(&certificate(90), &ServerName::try_from(name.to_owned()).unwrap()).verdict;
        assert_eq!(verdict("ekm.example.com"), Verdict::Pass);
        assert_eq!(verdict("example.com"), Verdict::Fail);
    }
}
