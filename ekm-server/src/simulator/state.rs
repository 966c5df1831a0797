//! What Google would keep: one project's keys, their versions, and the EKM connection, in one JSON file.

use std::collections::BTreeMap;
use std::fs::File;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use clap::ValueEnum;
use rustls::pki_types::CertificateDer;
use serde::{Deserialize, Serialize};

use crate::dev::files::write_new;
use crate::remote::Trust;

/// One simulated project.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct State {
    /// The service agent, which calls the EKM, is named after it.
    pub(crate) project_number: u64,
    /// `projects/…/locations/…/keyRings/…`.
    pub(crate) key_ring: String,
    pub(crate) connection: Option<Connection>,
    /// By name.
    pub(crate) keys: BTreeMap<String, Key>,
}

/// An EKM connection, for keys of protection level `EXTERNAL_VPC`.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Connection {
    pub(crate) hostname: String,
    /// The endpoints of the Service Directory service; the next one is tried when one fails.
    pub(crate) addresses: Vec<SocketAddr>,
    /// DER in base64.
    pub(crate) certificates: Vec<String>,
    pub(crate) key_management_mode: KeyManagementMode,
    /// For `CLOUD_KMS` only.
    pub(crate) crypto_space_path: Option<String>,
}

/// Who makes and destroys keys in the EKM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub(crate) enum KeyManagementMode {
    /// People, in the EKM
    Manual,
    /// Cloud KMS, with createKey and destroyKey
    CloudKms,
}

/// A CryptoKey.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Key {
    /// Without `ALGORITHM_` in front.
    pub(crate) algorithm: String,
    /// The version that encrypts.
    pub(crate) primary: u32,
    pub(crate) versions: BTreeMap<u32, Version>,
}

/// A CryptoKeyVersion.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct Version {
    pub(crate) state: VersionState,
    /// Why it is disabled, if Cloud KMS did that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) disabled_because: Option<String>,
    #[serde(flatten)]
    pub(crate) place: KeyPlace,
    /// Google's own key for the inner ciphertext: what the EKM gets to wrap is no data key. Base64.
    pub(crate) inner_key: String,
}

/// As in `google.cloud.kms.v1`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub(crate) enum VersionState {
    Enabled,
    Disabled,
    DestroyScheduled,
    Destroyed,
}

impl VersionState {
    /// As Google writes it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Enabled => "ENABLED",
            Self::Disabled => "DISABLED",
            Self::DestroyScheduled => "DESTROY_SCHEDULED",
            Self::Destroyed => "DESTROYED",
        }
    }
}

/// Where the EKM has the key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "protection_level", rename_all = "SCREAMING_SNAKE_CASE")]
pub(crate) enum KeyPlace {
    /// Over the internet, by its whole URI.
    External {
        external_key_uri: String,
        /// Certificates to check the EKM's against; Google has none of these, only public ones.
        ca_file: Option<PathBuf>,
    },
    /// Over the connection, by its path there.
    ExternalVpc { ekm_connection_key_path: String },
}

impl KeyPlace {
    /// The URI or path.
    pub(crate) fn name(&self) -> &str {
        match self {
            Self::External { external_key_uri, .. } => external_key_uri,
            Self::ExternalVpc { ekm_connection_key_path } => ekm_connection_key_path,
        }
    }

    /// As Google writes it.
    pub(crate) fn protection_level(&self) -> &'static str {
        match self {
            Self::External { .. } => "EXTERNAL",
            Self::ExternalVpc { .. } => "EXTERNAL_VPC",
        }
    }
}

impl Connection {
    /// Whom it believes.
    pub(crate) fn trust(&self) -> Result<Trust, String> {
        let decoded: Result<Vec<_>, _> =
            self.certificates.iter().map(|der| STANDARD.decode(der).map(CertificateDer::from)).collect();
        Ok(Trust::Pins(decoded.map_err(|_| "a pinned certificate is not base64".to_owned())?))
    }
}

impl State {
    /// The name of a version, as Google sends it with every call.
    pub(crate) fn resource_name(&self, key: &str, version: u32) -> String {
        format!("{}/cryptoKeys/{key}/cryptoKeyVersions/{version}", self.key_ring)
    }

    /// Who calls the EKM.
    pub(crate) fn service_agent(&self) -> String {
        format!("service-{}@gcp-sa-ekms.iam.gserviceaccount.com", self.project_number)
    }
}

/// The state's file, locked against other commands.
pub(crate) struct StateFile {
    file: PathBuf,
    _lock: File,
}

impl StateFile {
    /// Waits for other commands on files in this directory. It is the directory that is locked, because the file is replaced.
    pub(crate) fn open(file: &Path) -> Result<Self, String> {
        let directory = match file.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let opened = File::open(directory).and_then(|directory| directory.lock().map(|()| directory));
        let lock = opened.map_err(|error| format!("cannot use the directory {}: {error}", directory.display()))?;
        Ok(Self { file: file.to_owned(), _lock: lock })
    }

    /// None if there is no file yet.
    pub(crate) fn read(&self) -> Result<Option<State>, String> {
        let place = self.file.display();
        let text = match std::fs::read_to_string(&self.file) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(format!("cannot read {place}: {error}")),
        };
        let parsed = serde_json::from_str(&text);
        parsed.map(Some).map_err(|error| format!("{place} is no state of 'ekm simulate-kms': {error}"))
    }

    pub(crate) fn write(&self, state: &State) -> Result<(), String> {
        let text = serde_json::to_string_pretty(state).expect("map keys are names and numbers");
        write_new(&self.file, &(text + "\n")).map_err(|error| error.to_string())
    }
}
