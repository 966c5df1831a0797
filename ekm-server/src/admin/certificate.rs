//! The names in a client certificate whose chain has been checked.

use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

/// E-mail addresses, host names and URIs among the subject alternative names, then common names; `None` if it cannot be read.
pub(super) fn names(der: &[u8]) -> Option<Vec<String>> {
    let (_, certificate) = X509Certificate::from_der(der).ok()?;
    let alternatives = certificate.subject_alternative_name().ok()?;
    let mut names = Vec::new();
    for name in alternatives.iter().flat_map(|extension| &extension.value.general_names) {
        if let GeneralName::RFC822Name(name) | GeneralName::DNSName(name) | GeneralName::URI(name) = name {
            names.push((*name).to_owned());
        }
    }
    names.extend(certificate.subject().iter_common_name().filter_map(|name| Some(name.as_str().ok()?.to_owned())));
    Some(names)
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, DnType, KeyPair, PKCS_ECDSA_P256_SHA256, SanType};

    use super::*;

    #[test]
    fn alternative_names_and_the_common_name_are_read_and_addresses_are_not() {
        let mut parameters = CertificateParams::new(["host.example.com".into(), "192.0.2.1".into()]).unwrap();
        parameters.subject_alt_names.push(SanType::Rfc822Name("a@example.com".try_into().unwrap()));
        parameters.subject_alt_names.push(SanType::URI("spiffe://example.com/a".try_into().unwrap()));
        parameters.distinguished_name.push(DnType::CommonName, "Alice");
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        let der = parameters.self_signed(&key).unwrap();
        assert_eq!(names(der.der()).unwrap(), ["host.example.com", "a@example.com", "spiffe://example.com/a", "Alice"]);
        assert_eq!(names(&der.der()[..100]), None);
    }
}
