//! Why a command fails, and with which exit code it ends.

use std::process::ExitCode;

use super::output::escape;
use crate::start_error::StartError;

/// How a command that did not fail ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    /// It is done, or was so already.
    Done,
    /// A dry run or a plan: something would change.
    WouldChange,
    /// It waits for a second person.
    NeedsApproval,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(match exit {
            Exit::Done => 0,
            Exit::WouldChange => 3,
            Exit::NeedsApproval => 4,
        })
    }
}

/// Why a command of the operator's fails. Each has an entry in the error reference under its code.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// A command that does not speak with the admin API, or a file.
    #[error("{0}")]
    Start(#[from] StartError),
    /// The admin API's own answer, under its own code.
    #[error("{message}")]
    Refused {
        /// The HTTP status.
        status: u16,
        /// The heading in the error reference.
        code: String,
        /// What is wrong, and what to do.
        message: String,
    },
    /// Nobody listens there, or the answer did not come.
    #[error("{0}")]
    Unreachable(String),
    /// TLS: the server's certificate, or ours.
    #[error("{0}")]
    Untrusted(String),
    /// Somebody else answered.
    #[error("{0}")]
    Answer(String),
    /// The options that say where the server is and who we are.
    #[error("{0}")]
    Connection(String),
    /// The file of `ekm apply`.
    #[error("{0}")]
    KeysFile(String),
    /// A question was not answered with yes, or nobody could be asked.
    #[error("{0}")]
    NotConfirmed(String),
    /// What is to be approved is not what was looked at.
    #[error("{0}")]
    Payload(String),
    /// The log of changes is not one chain.
    #[error("{0}")]
    Log(String),
    /// A replica that was drained is still in use.
    #[error("{0}")]
    Draining(String),
    /// A replica does not hold a key as it should.
    #[error("{0}")]
    Findings(String),
    /// The simulator of Cloud KMS cannot do it: options, files.
    #[error("{0}")]
    Simulator(String),
    /// What the simulated Cloud KMS tells its customer.
    #[error("{0}")]
    CloudKms(String),
    /// The conformance suite cannot begin: options, files.
    #[error("{0}")]
    ConformanceSetup(String),
    /// An EKM failed required checks.
    #[error("{0}")]
    NotConformant(String),
    /// No topology does what is wanted.
    #[error("{0}")]
    NoTopology(String),
    /// A preflight cannot begin: options, files.
    #[error("{0}")]
    PreflightSetup(String),
    /// Checks of the way to an EKM failed.
    #[error("{0}")]
    PreflightFailed(String),
    /// Keys that should go to another shard stay where they are.
    #[error("{0}")]
    NotMoved(String),
    /// A key that wraps has no public half.
    #[error("{0}")]
    NoPublicKey(String),
}

impl CliError {
    /// The heading in the error reference; an answer of the admin API brings its own.
    pub fn heading(&self) -> String {
        match self {
            Self::Refused { code, .. } => escape(code).into_owned(),
            _ => self.code().into(),
        }
    }

    /// The stable word for this error.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Start(error) => error.code(),
            Self::Unreachable(_) => "admin_unreachable",
            Self::Untrusted(_) => "admin_untrusted",
            Self::Refused { .. } | Self::Answer(_) => "admin_answer",
            Self::Connection(_) => "admin_connection",
            Self::KeysFile(_) => "keys_file",
            Self::NotConfirmed(_) => "not_confirmed",
            Self::Payload(_) => "approval_payload",
            Self::Log(_) => "catalog_log",
            Self::Draining(_) => "hsm_draining",
            Self::Findings(_) => "hsm_key_missing",
            Self::Simulator(_) => "simulate_kms",
            Self::CloudKms(_) => "cloud_kms_reports",
            Self::ConformanceSetup(_) => "conformance",
            Self::NotConformant(_) => "not_conformant",
            Self::NoTopology(_) => "no_topology",
            Self::PreflightSetup(_) => "preflight",
            Self::PreflightFailed(_) => "preflight_failed",
            Self::NotMoved(_) => "keys_not_moved",
            Self::NoPublicKey(_) => "no_public_key",
        }
    }
}
