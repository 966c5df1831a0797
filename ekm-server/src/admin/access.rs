//! From a connection and a request's headers to a person.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ekm_core::Error;
use http::{HeaderMap, header};

use super::actor::Actor;
use super::certificate;
use super::error::AdminError;
use crate::auth::{Authenticator, JwksError};
use crate::config::{AdminConfig, Auth, Person};
use crate::connection::Peer;
use crate::metrics::Metrics;

/// How long an issuer's key set may be waited for.
const PATIENCE: Duration = Duration::from_secs(5);

/// Who the people are, and how they are recognised.
pub(super) struct Access {
    people: People,
    authenticator: Option<Authenticator>,
}

impl Access {
    pub(super) async fn start(admin: &AdminConfig, auth: &Auth, metrics: Arc<Metrics>) -> Result<Self, JwksError> {
        let authenticator = match &*admin.issuers {
            [] => None,
            issuers => Some(Authenticator::start_for_people(issuers, auth, metrics).await?),
        };
        Ok(Self { people: People::new(admin.people.get_ref()), authenticator })
    }

    /// The person behind a request. A token counts before the certificate and the user id: it is the one that was chosen for this
    /// request.
    pub(super) async fn actor(&self, headers: &HeaderMap, peer: &Peer) -> Result<Arc<Actor>, AdminError> {
        if headers.contains_key(header::AUTHORIZATION) {
            let Some(authenticator) = &self.authenticator else {
                let problem = "the request has an Authorization header, and no issuer is configured whose tokens are believed; \
                               leave it out, or add [[admin.issuers]]";
                return Err(AdminError::Unauthenticated(problem.into()));
            };
            return match authenticator.authenticate(headers, Instant::now() + PATIENCE).await {
                Ok(caller) => self.people.by_email(&caller.email),
                Err(Error::Unauthenticated(defect)) => Err(AdminError::Unauthenticated(defect.to_string())),
                Err(Error::Denied(_)) => {
                    Err(AdminError::UnknownPerson("the token's e-mail address is not verified".into()))
                }
                Err(Error::IssuerUnavailable) => Err(AdminError::IssuerUnavailable),
                Err(_) => Err(AdminError::Internal("checking the token")),
            };
        }
        if let Some(certificate) = &peer.certificate {
            let names = certificate::names(certificate);
            let unreadable = || AdminError::UnknownPerson("the certificate's names cannot be read".into());
            return self.people.by_certificate(&names.ok_or_else(unreadable)?);
        }
        match peer.uid {
            Some(uid) => self.people.by_uid(uid),
            None => Err(AdminError::Unauthenticated(
                "the request has neither a client certificate nor an Authorization header with a token".into(),
            )),
        }
    }

    pub(super) fn refresh(&self) {
        self.authenticator.iter().for_each(Authenticator::refresh);
    }
}

/// Everyone in the configuration, by what is seen of him.
struct People {
    by_certificate: HashMap<String, Arc<Actor>>,
    by_email: HashMap<String, Arc<Actor>>,
    by_uid: HashMap<u32, Arc<Actor>>,
}

impl People {
    fn new(people: &[Person]) -> Self {
        let (mut by_certificate, mut by_email, mut by_uid) = (HashMap::new(), HashMap::new(), HashMap::new());
        for person in people {
            let actor = Arc::new(Actor { name: person.name.clone(), roles: person.roles.clone() });
            by_certificate.extend(person.certificate.clone().map(|name| (name, Arc::clone(&actor))));
            by_email.extend(person.email.clone().map(|email| (email, Arc::clone(&actor))));
            by_uid.extend(person.uid.map(|uid| (uid, actor)));
        }
        Self { by_certificate, by_email, by_uid }
    }

    fn by_email(&self, email: &str) -> Result<Arc<Actor>, AdminError> {
        let found = self.by_email.get(email).map(Arc::clone);
        found.ok_or_else(|| unknown(&format!("the token is of {email}"), &format!("email = {email:?}")))
    }

    fn by_uid(&self, uid: u32) -> Result<Arc<Actor>, AdminError> {
        let found = self.by_uid.get(&uid).map(Arc::clone);
        found.ok_or_else(|| unknown(&format!("the process that calls has user id {uid}"), &format!("uid = {uid}")))
    }

    /// A certificate with the names of two people is nobody's: it would be chance which of them acts.
    fn by_certificate(&self, names: &[String]) -> Result<Arc<Actor>, AdminError> {
        let mut found: Vec<_> = names.iter().filter_map(|name| self.by_certificate.get(name)).collect();
        found.dedup_by(|a, b| a.name == b.name);
        match &found[..] {
            [one] => Ok(Arc::clone(one)),
            [] => {
                let seen = if names.is_empty() { "no name".to_owned() } else { format!("{names:?}") };
                let first = names.first().map_or("name", |name| name);
                Err(unknown(&format!("the client certificate has {seen}"), &format!("certificate = {first:?}")))
            }
            several => {
                let several = several.iter().map(|actor| &*actor.name).collect::<Vec<_>>().join(" and ");
                Err(AdminError::UnknownPerson(format!("the client certificate has names of {several}")))
            }
        }
    }
}

fn unknown(seen: &str, add: &str) -> AdminError {
    AdminError::UnknownPerson(format!(
        "{seen}, and nobody in [[admin.people]] has that; to let this person in, add {add} to his table, and restart"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::Role;

    fn person(name: &str) -> Person {
        let certificate = Some(format!("{name}@example.com"));
        Person { name: name.into(), roles: vec![Role::Viewer], email: certificate.clone(), certificate, uid: None }
    }

    #[test]
    fn a_person_has_one_name_however_he_comes() {
        let mut alice = person("alice");
        alice.uid = Some(1000);
        let people = People::new(&[alice, person("bob")]);
        let names = ["elsewhere.example.com".to_owned(), "alice@example.com".to_owned()];
        for found in [people.by_email("alice@example.com"), people.by_uid(1000), people.by_certificate(&names)] {
            assert_eq!(found.unwrap().name, "alice");
        }
        assert_eq!(people.by_email("bob@example.com").unwrap().name, "bob");
    }

    #[test]
    fn who_is_nobody_learns_what_was_seen_and_what_to_add() {
        let people = People::new(&[person("alice"), person("bob")]);
        let both = ["alice@example.com".to_owned(), "bob@example.com".to_owned()];
        let text = |found: Result<Arc<Actor>, AdminError>| found.unwrap_err().to_string();
        assert!(text(people.by_email("Alice@example.com")).contains("add email = \"Alice@example.com\""));
        assert!(text(people.by_uid(7)).contains("add uid = 7"));
        assert!(text(people.by_certificate(&["x".into()])).contains("add certificate = \"x\""));
        assert!(text(people.by_certificate(&[])).contains("no name"));
        assert!(text(people.by_certificate(&both)).contains("names of alice and bob"));
    }
}
