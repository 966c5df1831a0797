//! The admin plane's part of the configuration: where it listens, and who the people are.

use std::net::SocketAddr;
use std::ops::Range;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use toml::Spanned;

use super::check::{check_key_set, finding};
use super::error::Finding;
use super::{Config, Issuer, Profile};
use crate::admin::Role;

/// The admin API: where it is called, and by whom.
#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct AdminConfig {
    /// Address and port, always TLS; port 0 takes a free one. Absent: nothing listens on the network.
    pub listen: Option<SocketAddr>,
    /// PEM: the leaf first, then intermediates. Absent: the server's.
    pub certificate_file: Option<PathBuf>,
    /// PEM. Absent: the server's.
    pub private_key_file: Option<PathBuf>,
    /// PEM: the authorities whose client certificates are believed. Read at start.
    pub client_ca_file: Option<PathBuf>,
    /// A Unix socket, for its owner only. In profile `test` only: whoever is root on a machine can be anybody there.
    pub socket: Option<Spanned<PathBuf>>,
    /// The issuers whose tokens say who a person is.
    #[serde(default)]
    pub issuers: Vec<Issuer>,
    /// Who may do what.
    #[serde(default = "nobody")]
    pub people: Spanned<Vec<Person>>,
}

/// One person, under one name, however he logs in: so a second person is really another one.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Person {
    /// Stands in the log of changes and in approvals.
    pub name: String,
    /// What he may do.
    pub roles: Vec<Role>,
    /// A name in his client certificate: an e-mail address, host name or URI among its subject alternative names, or its common name.
    pub certificate: Option<String>,
    /// The verified e-mail address in his token.
    pub email: Option<String>,
    /// The user id of his processes, on the Unix socket.
    pub uid: Option<u32>,
}

fn nobody() -> Spanned<Vec<Person>> {
    Spanned::new(0..0, Vec::new())
}

pub(super) fn check(config: &Config, span: Range<usize>, admin: &AdminConfig) -> Result<(), Finding> {
    check_listener(config, &span, admin)?;
    if admin.certificate_file.is_some() != admin.private_key_file.is_some() {
        return finding(
            span,
            "[admin] has only one of certificate_file and private_key_file",
            "write both, or neither to use the server's",
        );
    }
    for issuer in &admin.issuers {
        if issuer.audiences.is_empty() {
            return finding(span, "an issuer in [admin] has no 'audiences'", "write audiences = [\"ekm-admin\"]");
        }
        if !issuer.callers.is_empty() {
            return finding(
                span,
                "'callers' has no meaning in [admin]: who may call is said in [[admin.people]]",
                "remove it",
            );
        }
        check_key_set(config.profile, span.clone(), issuer)?;
    }
    check_people(admin)
}

fn check_listener(config: &Config, span: &Range<usize>, admin: &AdminConfig) -> Result<(), Finding> {
    if let Some(socket) = &admin.socket
        && config.profile != Profile::Test
    {
        return finding(
            socket.span(),
            "a Unix socket makes whoever is root on this machine into any of the people; this profile does not allow it",
            "remove it and set admin.listen, with client_ca_file or [[admin.issuers]]",
        );
    }
    let Some(listen) = admin.listen else {
        if admin.socket.is_none() {
            return finding(span.clone(), "[admin] listens nowhere", "write listen = \"0.0.0.0:9444\"");
        }
        return Ok(());
    };
    if admin.client_ca_file.is_none() && admin.issuers.is_empty() {
        return finding(
            span.clone(),
            "admin.listen without client_ca_file and without [[admin.issuers]]: nobody could log in",
            "name the authority of your people's certificates in client_ca_file, or add an [[admin.issuers]] table",
        );
    }
    if listen.port() != 0 && [config.server.listen, config.ops.listen].contains(&listen) {
        return finding(
            span.clone(),
            "admin.listen is the address of another listener",
            "give [admin] another port, such as 9444",
        );
    }
    Ok(())
}

fn check_people(admin: &AdminConfig) -> Result<(), Finding> {
    let (span, people) = (admin.people.span(), admin.people.get_ref());
    let refuse = |problem: String, help: &str| finding(span.clone(), problem, help);
    if people.is_empty() {
        return refuse("[admin] names nobody".into(), "add an [[admin.people]] table for everyone who may call");
    }
    for (index, person) in people.iter().enumerate() {
        let name = &person.name;
        if name.trim() != name || name.is_empty() {
            return refuse(format!("'{name}' is no name"), "write a name without spaces around it");
        }
        if person.roles.is_empty() {
            return refuse(format!("{name} has no roles"), "write roles = [\"viewer\"], or more");
        }
        let identities = [person.certificate.as_deref(), person.email.as_deref()];
        if identities.iter().flatten().any(|text| text.trim() != *text || text.is_empty()) {
            return refuse(format!("an identity of {name} is blank or has spaces around it"), "write it as it is seen");
        }
        let usable = person.certificate.is_some() && admin.client_ca_file.is_some()
            || person.email.is_some() && !admin.issuers.is_empty()
            || person.uid.is_some() && admin.socket.is_some();
        if !usable {
            return refuse(
                format!("{name} could never log in"),
                "write at least one of: certificate (with admin.client_ca_file), email (with [[admin.issuers]]), uid (with admin.socket)",
            );
        }
        for other in &people[..index] {
            if other.name.eq_ignore_ascii_case(name) {
                return refuse(
                    format!("{name} is there twice"),
                    "write one table for one person, with all identities in it",
                );
            }
            let same = |a: &Option<String>, b: &Option<String>| matches!((a, b), (Some(a), Some(b)) if a.eq_ignore_ascii_case(b));
            if same(&person.certificate, &other.certificate)
                || same(&person.email, &other.email)
                || person.uid.is_some() && person.uid == other.uid
            {
                return refuse(
                    format!("{name} and {} have the same identity", other.name),
                    "give each person an identity of his own; otherwise he could approve his own requests under the other name",
                );
            }
        }
    }
    Ok(())
}
