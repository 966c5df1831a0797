//! Connections, keys, and the life of their versions, as a customer asks Cloud KMS for them.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::calling::{Caller, Route};
use super::envelope::{self, encode};
use super::error_domain::{Api, ErrorDomain, KmsError};
use super::state::{Connection, Key, KeyManagementMode, KeyPlace, State, Version, VersionState};
use crate::remote::signature::ALGORITHMS;

/// The one algorithm of keys that encrypt.
pub(crate) const SYMMETRIC: &str = "EXTERNAL_SYMMETRIC_ENCRYPTION";
/// What a connection that makes and destroys keys has to be allowed. The protocol's names for it are not public.
const PERMISSIONS: [&str; 2] = ["createKey", "destroyKey"];
/// How many certificates a connection may have.
const MAX_PINS: usize = 10;

/// Why an operation fails.
#[derive(Debug)]
pub(crate) enum Failure {
    /// As Cloud KMS would tell its customer.
    Kms(KmsError),
    /// The simulator cannot do it.
    Usage(String),
}

impl From<String> for Failure {
    fn from(problem: String) -> Self {
        Self::Usage(problem)
    }
}

impl From<KmsError> for Failure {
    fn from(error: KmsError) -> Self {
        Self::Kms(error)
    }
}

/// The simulated service, for one project.
pub(crate) struct CloudKms {
    pub(crate) state: State,
    pub(crate) caller: Caller,
    /// The access justification that goes with every call; none sends no context for it at all.
    pub(crate) reason: Option<String>,
}

impl CloudKms {
    /// Makes the connection, or replaces it. An EKM that is away, or another one, fails this.
    pub(crate) async fn connect(&mut self, connection: Connection) -> Result<(), Failure> {
        let invalid = |what: &str| Err(KmsError::own("INVALID_ARGUMENT", what).into());
        if !(1..=MAX_PINS).contains(&connection.certificates.len()) {
            return invalid("a connection has 1 to 10 certificates");
        }
        let has_space = connection.crypto_space_path.is_some();
        if has_space != (connection.key_management_mode == KeyManagementMode::CloudKms) {
            return invalid("mode CLOUD_KMS needs a crypto space, and mode MANUAL has none");
        }
        let before = self.state.connection.replace(connection);
        let verified = self.verify_connectivity().await;
        if verified.is_err() {
            self.state.connection = before;
        }
        verified
    }

    /// Opens TLS to every endpoint, and asks for permissions if Cloud KMS is to manage keys.
    pub(crate) async fn verify_connectivity(&mut self) -> Result<(), Failure> {
        let connection = self.connection()?.clone();
        self.caller.reach(&Route::through(&connection, "")?).await??;
        let Some(space) = &connection.crypto_space_path else { return Ok(()) };
        let location = self.state.key_ring.split("/keyRings/").next().unwrap_or_default();
        let mut body = self.context(&format!("{location}/ekmConnections/simulated"));
        body["permissions"] = json!(PERMISSIONS);
        let route = Route::through(&connection, space)?;
        let held = |answer: &Value| {
            let held = answer["permissions"].as_array()?;
            Some(PERMISSIONS.iter().all(|wanted| held.iter().any(|held| held == wanted)))
        };
        let api = Api::CheckCryptoSpacePermissions;
        if !self.caller.call(api, &route, &self.state.service_agent(), &body, held).await?? {
            return Err(KmsError::external(ErrorDomain::ExternalPermissionDenied, api).into());
        }
        Ok(())
    }

    /// Makes a key with its first version. `place` is none if Cloud KMS is to make it in the EKM.
    pub(crate) async fn create_key(
        &mut self,
        name: &str,
        algorithm: &str,
        place: Option<KeyPlace>,
    ) -> Result<(), Failure> {
        if self.state.keys.contains_key(name) {
            return Err(KmsError::own("ALREADY_EXISTS", format!("there is a key '{name}'")).into());
        }
        let algorithm = algorithm.strip_prefix("ALGORITHM_").unwrap_or(algorithm);
        if algorithm != SYMMETRIC && !ALGORITHMS.iter().any(|(known, _)| *known == algorithm) {
            let known: Vec<_> = ALGORITHMS.iter().map(|(known, _)| *known).collect();
            let text = format!("'{algorithm}' is none of the algorithms: {SYMMETRIC}, {}", known.join(", "));
            return Err(KmsError::own("INVALID_ARGUMENT", text).into());
        }
        let version = self.new_version(name, 1, algorithm, place).await?;
        let versions = BTreeMap::from([(1, version)]);
        self.state.keys.insert(name.into(), Key { algorithm: algorithm.into(), primary: 1, versions });
        Ok(())
    }

    /// Makes another version, which is the primary one from now on.
    pub(crate) async fn rotate(&mut self, name: &str, place: Option<KeyPlace>) -> Result<u32, Failure> {
        let key = self.key(name)?;
        let number = key.versions.keys().last().map_or(1, |last| last + 1);
        let algorithm = key.algorithm.clone();
        let version = self.new_version(name, number, &algorithm, place).await?;
        let key = self.state.keys.get_mut(name).expect("found above");
        key.versions.insert(number, version);
        key.primary = number;
        Ok(number)
    }

    async fn new_version(
        &mut self,
        name: &str,
        number: u32,
        algorithm: &str,
        place: Option<KeyPlace>,
    ) -> Result<Version, Failure> {
        let cloud_kms = self.state.connection.as_ref().and_then(|connection| connection.crypto_space_path.clone());
        let made_by_us = place.is_none();
        let place = match (place, cloud_kms) {
            (Some(KeyPlace::ExternalVpc { .. }), Some(_)) => {
                let what = "the connection's mode is CLOUD_KMS: Cloud KMS makes the key, and its path is not given";
                return Err(KmsError::own("INVALID_ARGUMENT", what).into());
            }
            (Some(place), _) => place,
            (None, Some(space)) => self.make_in_ekm(&space, name, number, algorithm).await?,
            (None, None) => {
                let what = "a key path or key URI is needed, unless the connection's mode is CLOUD_KMS";
                return Err(KmsError::own("INVALID_ARGUMENT", what).into());
            }
        };
        let inner_key = encode(envelope::new_key()?.as_slice());
        let version = Version { state: VersionState::Enabled, disabled_because: None, place, inner_key };
        // Whoever cannot use the key learns it now.
        let resource = self.state.resource_name(name, number);
        let tried = match algorithm {
            SYMMETRIC => {
                let probe = envelope::new_key()?;
                self.wrap(&version, &resource, probe.as_slice(), b"", false).await.map(|_| ())
            }
            _ => self.fetch_public_key(&version, &resource).await.map(|_| ()),
        };
        tried.map_err(|failure| match failure {
            Failure::Kms(mut error) if made_by_us => {
                let path = version.place.name();
                error.effect = Some(format!("the EKM has made {path}, and will give it again to the same call"));
                Failure::Kms(error)
            }
            other => other,
        })?;
        Ok(version)
    }

    async fn make_in_ekm(
        &mut self,
        space: &str,
        name: &str,
        number: u32,
        algorithm: &str,
    ) -> Result<KeyPlace, Failure> {
        let mut body = self.context(&self.state.resource_name(name, number));
        body["algorithm"] = json!(format!("ALGORITHM_{algorithm}"));
        let route = Route::through(self.connection()?, space)?;
        let path = |answer: &Value| answer["keyPath"].as_str().filter(|path| !path.is_empty()).map(str::to_owned);
        let path = self.caller.call(Api::CreateKey, &route, &self.state.service_agent(), &body, path).await??;
        Ok(KeyPlace::ExternalVpc { ekm_connection_key_path: path })
    }

    /// Says where a version's key is from now on; it has to be the same key, under another path or URI.
    pub(crate) fn update(&mut self, name: &str, version: Option<u32>, place: Option<KeyPlace>) -> Result<u32, Failure> {
        let place = place.ok_or_else(|| KmsError::own("INVALID_ARGUMENT", "a key path or key URI is needed"))?;
        let number = self.number(name, version)?;
        self.version_mut(name, number).place = place;
        Ok(number)
    }

    /// Enables or disables a version; the EKM does not hear of it.
    pub(crate) fn set_enabled(&mut self, name: &str, version: Option<u32>, enabled: bool) -> Result<u32, Failure> {
        let number = self.number(name, version)?;
        let version = self.version_mut(name, number);
        match version.state {
            VersionState::Enabled | VersionState::Disabled => {
                version.state = if enabled { VersionState::Enabled } else { VersionState::Disabled };
                version.disabled_because = None;
                Ok(number)
            }
            state => Err(wrong_state(name, number, state).into()),
        }
    }

    /// Schedules a version's destruction; with `now`, as if its time had come: then the EKM is told, if Cloud KMS manages its keys.
    pub(crate) async fn destroy(&mut self, name: &str, version: Option<u32>, now: bool) -> Result<u32, Failure> {
        let number = self.number(name, version)?;
        if self.version_mut(name, number).state == VersionState::Destroyed {
            return Err(wrong_state(name, number, VersionState::Destroyed).into());
        }
        self.version_mut(name, number).state = VersionState::DestroyScheduled;
        if !now {
            return Ok(number);
        }
        let managed = self.state.connection.as_ref().is_some_and(|connection| connection.crypto_space_path.is_some());
        let version = self.state.keys[name].versions[&number].clone();
        if managed && matches!(version.place, KeyPlace::ExternalVpc { .. }) {
            let body = self.context(&self.state.resource_name(name, number));
            self.call_key(Api::DestroyKey, &version, &body, |answer| answer.is_object().then_some(())).await?;
        }
        let version = self.version_mut(name, number);
        version.state = VersionState::Destroyed;
        version.inner_key.clear();
        Ok(number)
    }

    /// Takes back a destruction whose time has not come. As at Cloud KMS, the version is disabled then.
    pub(crate) fn restore(&mut self, name: &str, version: Option<u32>) -> Result<u32, Failure> {
        let number = self.number(name, version)?;
        let version = self.version_mut(name, number);
        match version.state {
            VersionState::DestroyScheduled => version.state = VersionState::Disabled,
            state => return Err(wrong_state(name, number, state).into()),
        }
        Ok(number)
    }

    pub(super) fn connection(&self) -> Result<&Connection, String> {
        let none = || "there is no connection yet; 'ekm simulate-kms connect' makes one".to_owned();
        self.state.connection.as_ref().ok_or_else(none)
    }

    pub(super) fn key(&self, name: &str) -> Result<&Key, KmsError> {
        let unknown = || KmsError::own("NOT_FOUND", format!("there is no key '{name}'"));
        self.state.keys.get(name).ok_or_else(unknown)
    }

    fn number(&self, name: &str, version: Option<u32>) -> Result<u32, KmsError> {
        let key = self.key(name)?;
        let number = version.unwrap_or(key.primary);
        if !key.versions.contains_key(&number) {
            return Err(KmsError::own("NOT_FOUND", format!("key '{name}' has no version {number}")));
        }
        Ok(number)
    }

    pub(super) fn version_mut(&mut self, name: &str, number: u32) -> &mut Version {
        let key = self.state.keys.get_mut(name).expect("looked up before");
        key.versions.get_mut(&number).expect("looked up before")
    }

    /// A version to be used, if it can be and is for that.
    pub(super) fn take(&self, name: &str, version: Option<u32>, symmetric: bool) -> Result<(Version, u32), KmsError> {
        let number = self.number(name, version)?;
        let key = &self.state.keys[name];
        if (key.algorithm == SYMMETRIC) != symmetric {
            let what = format!("key '{name}' has algorithm {}, which is not for this", key.algorithm);
            return Err(KmsError::own("FAILED_PRECONDITION", what));
        }
        let version = key.versions[&number].clone();
        match version.state {
            VersionState::Enabled => Ok((version, number)),
            state => Err(wrong_state(name, number, state)),
        }
    }
}

fn wrong_state(name: &str, number: u32, state: VersionState) -> KmsError {
    KmsError::own("FAILED_PRECONDITION", format!("version {number} of key '{name}' is {}", state.name()))
}
