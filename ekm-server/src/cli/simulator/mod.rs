//! `ekm simulate-kms`: Google's side, for whoever has no project at Google, and for tests.

mod report;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, Subcommand};
use serde_json::json;

use self::report::{Done, answer, show, version_done};
use super::error::{CliError, Exit};
use crate::dev;
use crate::dev::issuer::{self, Issuer};
use crate::process::Output;
use crate::remote::read_certificates;
use crate::simulator::calling::{Caller, Patience};
use crate::simulator::cloud_kms::{CloudKms, Failure, SYMMETRIC};
use crate::simulator::envelope::{Envelope, encode};
use crate::simulator::state::{Connection, KeyManagementMode, KeyPlace, State, StateFile};

const KEY_RING: &str = "projects/simulated/locations/us-east1/keyRings/simulated";

#[derive(Args)]
#[command(after_help = "Examples, with 'ekm dev' running:
  ekm simulate-kms connect --hostname localhost --address 127.0.0.1:8443
  ekm simulate-kms create-key orders --path v0/keys/demo
  ekm simulate-kms encrypt orders --in /etc/hostname --out hostname.enc
  ekm simulate-kms decrypt --in hostname.enc --out hostname.txt
  ekm simulate-kms show")]
pub(super) struct SimulatorArgs {
    #[command(flatten)]
    google: GoogleArgs,
    #[command(subcommand)]
    command: SimulatorCommand,
}

/// How Google is played.
#[derive(Args)]
#[command(next_help_heading = "Google's side")]
struct GoogleArgs {
    /// What Google would keep: keys, versions, the connection
    #[arg(long, env = "EKM_SIMULATED_KMS", value_name = "FILE", default_value = "simulated-kms.json", global = true)]
    state: PathBuf,
    /// The number of the project whose service agent calls; a state file is one project's [default: 123456789012]
    #[arg(long, value_name = "NUMBER", global = true)]
    project_number: Option<u64>,
    /// The RSA key that signs ID tokens, PKCS#8 in PEM [default: that of 'ekm dev' in its data directory]
    #[arg(long, value_name = "FILE", global = true)]
    issuer_key: Option<PathBuf>,
    /// Its name in the tokens' `kid`
    #[arg(long, value_name = "ID", default_value = issuer::KEY_ID, global = true)]
    issuer_key_id: String,
    /// The tokens' `iss`
    #[arg(long, value_name = "URL", default_value = issuer::NAME, global = true)]
    issuer: String,
    /// How long each try may take, from connecting to the last byte
    #[arg(long, value_name = "MS", default_value_t = 150, env = "EKM_DEADLINE_MS", global = true, value_parser = clap::value_parser!(u64).range(1..))]
    deadline_ms: u64,
    /// How often a call is tried, if what went wrong may pass
    #[arg(long, value_name = "N", default_value_t = 3, global = true, value_parser = clap::value_parser!(u32).range(1..=20))]
    tries: u32,
    /// The access justification that is sent with every call
    #[arg(long, value_name = "REASON", default_value = "CUSTOMER_INITIATED_ACCESS", global = true)]
    reason: String,
    /// Send no access justification, as for a project without Key Access Justifications
    #[arg(long, global = true, conflicts_with = "reason")]
    no_reason: bool,
    /// How to answer
    #[arg(long, value_enum, default_value = "text", global = true)]
    output: Output,
}

#[derive(Subcommand)]
enum SimulatorCommand {
    /// Make the EKM connection, or replace it; it has to be reached
    Connect {
        /// The name in the EKM's certificate, and, without a port, in the tokens' audience
        #[arg(long, value_name = "HOST", default_value = "localhost")]
        hostname: String,
        /// Where that is; repeat for more: when one fails, the next one is tried
        #[arg(long = "address", value_name = "IP:PORT", default_value = "127.0.0.1:8443")]
        addresses: Vec<SocketAddr>,
        /// A file with the EKM's own certificate, PEM or DER; repeat for more, ten at most [default: that of 'ekm dev']
        #[arg(long = "certificate", value_name = "FILE")]
        certificates: Vec<PathBuf>,
        /// Who makes and destroys keys in the EKM
        #[arg(long, value_enum, default_value = "manual")]
        mode: KeyManagementMode,
        /// The crypto space for new keys, for --mode cloud-kms
        #[arg(long, value_name = "PATH")]
        crypto_space: Option<String>,
    },
    /// Open TLS to every endpoint of the connection; with mode CLOUD_KMS ask for permissions too
    VerifyConnectivity,
    /// Make a key: by a path behind the connection, by a URI, or, with mode CLOUD_KMS, in the EKM
    CreateKey {
        /// Its name, for these commands
        key: String,
        #[command(flatten)]
        place: PlaceArgs,
        /// What it is for; an algorithm such as EC_SIGN_P256_SHA256 makes a key that signs
        #[arg(long, default_value = SYMMETRIC)]
        algorithm: String,
    },
    /// Encrypt a file with a new data key, which the EKM wraps
    Encrypt {
        /// The key
        key: String,
        #[command(flatten)]
        files: FileArgs,
        /// Additional authenticated data: to be given again for decrypting
        #[arg(long, value_name = "TEXT", default_value = "")]
        aad: String,
    },
    /// Decrypt what 'encrypt' wrote; the file names key and version
    Decrypt {
        #[command(flatten)]
        files: FileArgs,
        /// The additional authenticated data that it was encrypted with
        #[arg(long, value_name = "TEXT", default_value = "")]
        aad: String,
    },
    /// Have the EKM sign a file, and check the signature
    Sign {
        #[command(flatten)]
        version: VersionArgs,
        #[command(flatten)]
        files: FileArgs,
    },
    /// Fetch a public key
    PublicKey {
        #[command(flatten)]
        version: VersionArgs,
    },
    /// Wrap and unwrap once as Google's own health check
    HealthCheck {
        /// The key
        key: String,
    },
    /// Make another version, which encrypts from now on: a new path or URI, or, with mode CLOUD_KMS, a new key in the EKM
    Rotate {
        /// The key
        key: String,
        #[command(flatten)]
        place: PlaceArgs,
    },
    /// Say that a version's key has another path or URI now, as when it moves from EXTERNAL to EXTERNAL_VPC
    Update {
        #[command(flatten)]
        version: VersionArgs,
        #[command(flatten)]
        place: PlaceArgs,
    },
    /// Enable a version again, after a denial for instance
    Enable(VersionArgs),
    /// Disable a version
    Disable(VersionArgs),
    /// Schedule a version's destruction
    Destroy {
        #[command(flatten)]
        version: VersionArgs,
        /// As if its time had come: with mode CLOUD_KMS the EKM is told to destroy its key
        #[arg(long)]
        now: bool,
    },
    /// Take a scheduled destruction back; the version is disabled then
    Restore(VersionArgs),
    /// Show the connection, the keys and their versions
    #[command(visible_alias = "status")]
    Show,
}

/// Where the EKM has the key.
#[derive(Args)]
#[group(multiple = false)]
struct PlaceArgs {
    /// The key's path behind the connection: protection level EXTERNAL_VPC
    #[arg(long, value_name = "PATH")]
    path: Option<String>,
    /// The key's URI: protection level EXTERNAL
    #[arg(long, value_name = "URI")]
    uri: Option<String>,
    #[command(flatten)]
    ca: CaArgs,
}

#[derive(Args)]
struct CaArgs {
    /// Certificates that the EKM's is checked against for --uri, PEM; Google takes those of public authorities only
    #[arg(long, value_name = "FILE", requires = "uri", conflicts_with = "path")]
    ca_file: Option<PathBuf>,
}

#[derive(Args)]
struct FileArgs {
    /// The file to read
    #[arg(long = "in", value_name = "FILE")]
    from: PathBuf,
    /// The file to write
    #[arg(long = "out", value_name = "FILE")]
    to: PathBuf,
}

#[derive(Args)]
struct VersionArgs {
    /// The key
    key: String,
    /// The version's number [default: the primary one]
    #[arg(long, value_name = "N")]
    key_version: Option<u32>,
}

pub(super) async fn run(args: SimulatorArgs) -> Result<Exit, CliError> {
    let SimulatorArgs { google: args, command } = &args;
    let GoogleArgs { state, project_number, reason, no_reason, output, .. } = args;
    let file = StateFile::open(state).map_err(CliError::Simulator)?;
    let kept = file.read().map_err(CliError::Simulator)?;
    if let (Some(kept), Some(wanted)) = (&kept, project_number)
        && kept.project_number != *wanted
    {
        return Err(CliError::Simulator(format!(
            "{} is of project {}; name another file with --state for project {wanted}",
            state.display(),
            kept.project_number
        )));
    }
    let new = || State {
        project_number: project_number.unwrap_or(123_456_789_012),
        key_ring: KEY_RING.into(),
        connection: None,
        keys: std::collections::BTreeMap::new(),
    };
    let issuer_key = match &args.issuer_key {
        Some(file) => file.clone(),
        None => issuer::key_file(&dev::data()?.join("issuer")),
    };
    let issuer = Issuer::open_key(&issuer_key, args.issuer.clone(), args.issuer_key_id.clone())?;
    let patience = Patience { deadline: Duration::from_millis(args.deadline_ms), tries: args.tries };
    let mut kms = CloudKms {
        state: kept.unwrap_or_else(new),
        caller: Caller::new(issuer, patience),
        reason: (!no_reason).then(|| reason.clone()),
    };
    let done = carry_out(&mut kms, command).await;
    // A denial changes the state too.
    file.write(&kms.state).map_err(CliError::Simulator)?;
    answer(*output, &kms, done)
}

async fn carry_out(kms: &mut CloudKms, command: &SimulatorCommand) -> Result<Done, Failure> {
    use SimulatorCommand as C;
    Ok(match command {
        C::Connect { hostname, addresses, certificates, mode, crypto_space } => {
            let connection = Connection {
                hostname: hostname.clone(),
                addresses: addresses.clone(),
                certificates: pins(certificates)?,
                key_management_mode: *mode,
                crypto_space_path: crypto_space.clone(),
            };
            kms.connect(connection).await?;
            Done::new(format!("connected to {hostname}"), json!({"hostname": hostname}))
        }
        C::VerifyConnectivity => {
            kms.verify_connectivity().await?;
            Done::new("the EKM can be reached", json!({}))
        }
        C::CreateKey { key, place, algorithm } => {
            kms.create_key(key, algorithm, place.place()?).await?;
            version_done(kms, key, 1, "is there, version 1 is its primary one")
        }
        C::Encrypt { key, files, aad } => {
            let envelope = kms.encrypt(key, &read(&files.from)?, aad.as_bytes()).await?;
            let text = serde_json::to_string_pretty(&envelope).expect("text and a number");
            write(&files.to, text.as_bytes())?;
            let (version, file) = (envelope.version, files.to.display());
            Done::new(format!("encrypted with version {version}: {file}"), json!({"key": key, "version": version}))
        }
        C::Decrypt { files, aad } => {
            let envelope: Envelope = serde_json::from_slice(&read(&files.from)?)
                .map_err(|error| format!("{} was not written by 'encrypt': {error}", files.from.display()))?;
            write(&files.to, &kms.decrypt(&envelope, aad.as_bytes()).await?)?;
            let Envelope { key, version, .. } = envelope;
            let file = files.to.display();
            Done::new(format!("decrypted with version {version}: {file}"), json!({"key": key, "version": version}))
        }
        C::Sign { version, files } => {
            let signature = kms.sign(&version.key, version.key_version, &read(&files.from)?).await?;
            write(&files.to, &signature)?;
            let text = format!("signed, and the signature fits the public key: {}", files.to.display());
            Done::new(text, json!({"key": version.key, "signature": encode(&signature)}))
        }
        C::PublicKey { version } => {
            let pem = kms.public_key(&version.key, version.key_version).await?;
            Done::new(pem.trim_end(), json!({"key": version.key, "public_key": pem}))
        }
        C::HealthCheck { key } => {
            kms.health_check(key).await?;
            Done::new("healthy", json!({"key": key}))
        }
        C::Rotate { key, place } => {
            let number = kms.rotate(key, place.place()?).await?;
            version_done(kms, key, number, &format!("has version {number} as its primary one"))
        }
        C::Update { version: VersionArgs { key, key_version }, place } => {
            let number = kms.update(key, *key_version, place.place()?)?;
            version_done(kms, key, number, &format!("has version {number} elsewhere; 'health-check' tries it"))
        }
        C::Enable(VersionArgs { key, key_version }) => {
            let number = kms.set_enabled(key, *key_version, true)?;
            version_done(kms, key, number, &format!("has version {number} enabled"))
        }
        C::Disable(VersionArgs { key, key_version }) => {
            let number = kms.set_enabled(key, *key_version, false)?;
            version_done(kms, key, number, &format!("has version {number} disabled"))
        }
        C::Destroy { version: VersionArgs { key, key_version }, now } => {
            let number = kms.destroy(key, *key_version, *now).await?;
            let what = if *now { "destroyed" } else { "scheduled for destruction; 'restore' takes it back" };
            version_done(kms, key, number, &format!("has version {number} {what}"))
        }
        C::Restore(VersionArgs { key, key_version }) => {
            let number = kms.restore(key, *key_version)?;
            version_done(kms, key, number, &format!("has version {number} back, disabled"))
        }
        C::Show => show(&kms.state),
    })
}

impl PlaceArgs {
    fn place(&self) -> Result<Option<KeyPlace>, String> {
        if let Some(path) = &self.path {
            return Ok(Some(KeyPlace::ExternalVpc { ekm_connection_key_path: path.clone() }));
        }
        let Some(uri) = &self.uri else { return Ok(None) };
        // The state may be used from another directory.
        let absolute =
            |file: &PathBuf| file.canonicalize().map_err(|error| format!("cannot find {}: {error}", file.display()));
        let ca_file = self.ca.ca_file.as_ref().map(absolute).transpose()?;
        Ok(Some(KeyPlace::External { external_key_uri: uri.clone(), ca_file }))
    }
}

fn pins(files: &[PathBuf]) -> Result<Vec<String>, Failure> {
    let of_dev;
    let files = if files.is_empty() {
        of_dev = [dev::data().map_err(|error| error.to_string())?.join("tls/certificate.pem")];
        &of_dev[..]
    } else {
        files
    };
    // The leaf comes first in a chain, and only it can be pinned.
    let first = |file: &PathBuf| Ok(encode(&read_certificates(file)?[0]));
    files.iter().map(first).collect::<Result<_, String>>().map_err(Failure::Usage)
}

fn read(file: &Path) -> Result<Vec<u8>, String> {
    std::fs::read(file).map_err(|error| format!("cannot read {}: {error}", file.display()))
}

fn write(file: &Path, content: &[u8]) -> Result<(), String> {
    std::fs::write(file, content).map_err(|error| format!("cannot write {}: {error}", file.display()))
}
