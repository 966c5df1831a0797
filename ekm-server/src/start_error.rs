//! Why a command or a start fails: one enum, each variant with its code in the error reference.

use std::net::SocketAddr;
use std::sync::Arc;

use ekm_core::hsm::TokenError;
use ekm_core::software::SoftwareError;
use ekm_storage::StorageError;

use crate::auth::JwksError;
use crate::catalog::CatalogError;
use crate::config::ConfigError;
use crate::tls::CertificateError;

/// Why the service, or a command of the operator's, stops. Each has an entry in the error reference under its code.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The configuration file.
    #[error("{0}")]
    Config(#[from] ConfigError),
    /// The HSM.
    #[error("{0}")]
    Token(#[from] Arc<TokenError>),
    /// The key file of custody `software`, or memory for keys.
    #[error("{0}")]
    Software(#[from] SoftwareError),
    /// The catalog's database.
    #[error("{0}")]
    Storage(#[from] StorageError),
    /// The catalog.
    #[error("{0}")]
    Catalog(#[from] CatalogError),
    /// The server's certificate.
    #[error("{0}")]
    Certificate(#[from] CertificateError),
    /// An issuer's key set, as far as its configuration goes.
    #[error("{0}")]
    KeySet(#[from] JwksError),
    /// A file that holds a secret.
    #[error("{file}: {problem}")]
    SecretFile {
        /// The file.
        file: String,
        /// What is wrong with it.
        problem: String,
    },
    /// An address that cannot be listened on.
    #[error("cannot listen on {address}: {cause}; choose another address, with --listen or --ops-listen for 'ekm dev'")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// The kernel's reason.
        cause: std::io::Error,
    },
    /// A Unix socket that cannot be listened on.
    #[error(
        "cannot listen on the Unix socket {file}: {cause}; stop the other process, or write another file in admin.socket"
    )]
    Socket {
        /// The file.
        file: String,
        /// The reason.
        cause: std::io::Error,
    },
    /// A policy file.
    #[error("the policy is refused: {0}")]
    Policy(#[from] ekm_core::policy::InvalidPolicy),
    /// The data directory of `ekm dev`.
    #[error("{0}")]
    Dev(String),
    /// `ekm dev --check` found something.
    #[error("{0}")]
    Check(String),
    /// Anything else that has to do with files and processes.
    #[error("{what}: {cause}")]
    Io {
        /// What was being done.
        what: String,
        /// The kernel's reason.
        cause: std::io::Error,
    },
}

impl StartError {
    /// The stable word for this error: heading in the error reference.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Config(_) => "config",
            Self::Token(error) => error.code(),
            Self::Software(_) => "software_custody",
            Self::Storage(error) => error.code(),
            Self::Catalog(error) => error.code(),
            Self::Certificate(_) => "certificate",
            Self::KeySet(_) => "key_set",
            Self::SecretFile { .. } => "secret_file",
            Self::Listen { .. } => "listen",
            Self::Socket { .. } => "admin_socket",
            Self::Policy(_) => "policy",
            Self::Dev(_) => "dev_data",
            Self::Check(_) => "dev_check",
            Self::Io { .. } => "io",
        }
    }

    /// For failed file operations.
    pub fn io(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let what = what.into();
        move |cause| Self::Io { what, cause }
    }
}
