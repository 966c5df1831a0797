//! The data directory of `ekm dev`: made once, gone on with ever after.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ekm_core::hsm::initialize_softhsm_token;
use ekm_core::software::KeyFile;

use super::DevArgs;
use super::files::{make_directory, write_missing, write_new};
use super::issuer::Issuer;
use crate::config::{Config, ReplicaConfig};
use crate::custodian::read_secret;
use crate::socket_file::MAX_PATH_BYTES;
use crate::start_error::StartError;

const CONFIG: &str = "ekm.toml";
const SOFTHSM_LABEL: &str = "ekm-dev";
const SOFTHSM_LIBRARIES: &[&str] = &[
    "/usr/lib/softhsm/libsofthsm2.so",
    "/usr/lib/x86_64-linux-gnu/softhsm/libsofthsm2.so",
    "/usr/lib/aarch64-linux-gnu/softhsm/libsofthsm2.so",
    "/usr/lib64/pkcs11/libsofthsm2.so",
    "/usr/lib64/softhsm/libsofthsm2.so",
];

/// A prepared data directory, locked against a second `ekm dev`.
pub(super) struct Setup {
    pub(super) directory: PathBuf,
    pub(super) config_file: PathBuf,
    pub(super) issuer: Issuer,
    _lock: File,
}

/// What the flags ask for.
enum Wanted {
    Software,
    SoftHsm { module: PathBuf },
    Pkcs11 { module: PathBuf, label: String, pin_file: PathBuf },
}

impl Setup {
    /// Makes what is missing. Nothing that is there is changed: flags that ask for another custody are refused.
    pub(super) fn prepare(directory: &Path, args: &DevArgs) -> Result<Self, StartError> {
        let io = |what: &str| StartError::io(format!("{what} {}", directory.display()));
        make_directory(directory)?;
        let directory = &directory.canonicalize().map_err(io("cannot find the directory"))?;
        let lock = File::create(directory.join("lock")).map_err(io("cannot write in"))?;
        if lock.try_lock().is_err() {
            let place = directory.display();
            return Err(StartError::Dev(format!(
                "another 'ekm dev' uses {place}; stop it, or name another directory with --data"
            )));
        }
        let config_file = directory.join(CONFIG);
        if config_file.exists() {
            agree(directory, args, &Config::read(&config_file)?)?;
        } else {
            // A configuration that was lost: the keys say which custody it was.
            let softhsm = directory.join("softhsm/tokens").exists() && args.pkcs11.is_none() && !args.softhsm;
            let longest = MAX_PATH_BYTES - "/admin.sock".len();
            if directory.as_os_str().len() > longest {
                return Err(StartError::Dev(format!(
                    "the name of {} has no room for a Unix socket in it: it may be {longest} bytes long; name another directory with --data",
                    directory.display()
                )));
            }
            let wanted = if softhsm { Wanted::SoftHsm { module: find_softhsm()? } } else { wanted(args)? };
            let text = make(directory, &wanted)?;
            // Last, so that a set-up that was interrupted begins anew.
            write_new(&config_file, &text)?;
        }
        make_certificate(directory)?;
        let issuer = Issuer::open_or_make(&directory.join("issuer"))?;
        Ok(Self { directory: directory.clone(), config_file, issuer, _lock: lock })
    }

    pub(super) fn certificate_file(&self) -> PathBuf {
        self.directory.join("tls/certificate.pem")
    }

    /// Takes back the configuration of a first start that failed.
    pub(super) fn forget(&self) {
        let _ = fs::remove_file(&self.config_file);
    }

    /// Makes the SoftHSM token, if this directory is set up for one and does not have it yet.
    pub(super) fn ensure_token(&self, config: &Config) -> Result<(), StartError> {
        let tokens = self.directory.join("softhsm/tokens");
        let replica = config.shards.first().and_then(|shard| shard.get_ref().replica.first());
        let Some(replica) = replica.filter(|_| tokens.exists()) else { return Ok(()) };
        if fs::read_dir(&tokens).map_err(StartError::io("cannot read the SoftHSM directory"))?.next().is_some() {
            return Ok(());
        }
        let (so_pin, pin) = (self.directory.join("softhsm/so-pin"), self.directory.join("softhsm/pin"));
        let module = replica.get_ref().module.get_ref();
        let made = initialize_softhsm_token(module, SOFTHSM_LABEL, &read_secret(&so_pin)?, &read_secret(&pin)?);
        Ok(made.map_err(Arc::new)?)
    }
}

fn wanted(args: &DevArgs) -> Result<Wanted, StartError> {
    match (&args.pkcs11, args.softhsm, &args.token_label, &args.pin_file) {
        (None, false, ..) => Ok(Wanted::Software),
        (module, true, ..) => Ok(Wanted::SoftHsm { module: module.clone().map_or_else(find_softhsm, Ok)? }),
        (Some(module), false, Some(label), Some(pin_file)) => {
            let (module, label) = (absolute(module)?, label.clone());
            Ok(Wanted::Pkcs11 { module, label, pin_file: absolute(pin_file)? })
        }
        (Some(_), false, ..) => Err(StartError::Dev(
            "--pkcs11 needs to know the token: add --token-label LABEL and --pin-file FILE, or --softhsm to make a SoftHSM token".into(),
        )),
    }
}

fn find_softhsm() -> Result<PathBuf, StartError> {
    let found = SOFTHSM_LIBRARIES.iter().map(PathBuf::from).find(|library| library.exists());
    found.ok_or_else(|| {
        StartError::Dev(
            "SoftHSM is not installed; run 'apt-get install softhsm2', or name its library with --pkcs11".into(),
        )
    })
}

fn absolute(file: &Path) -> Result<PathBuf, StartError> {
    file.canonicalize().map_err(StartError::io(format!("cannot find {}", file.display())))
}

/// A directory that holds keys of one custody is not turned into another: its keys would be lost to sight.
fn agree(directory: &Path, args: &DevArgs, config: &Config) -> Result<(), StartError> {
    if args.pkcs11.is_none() && !args.softhsm {
        return Ok(()); // goes on with what it was made for
    }
    let agrees = match (wanted(args)?, config.shards.first()) {
        (Wanted::SoftHsm { .. }, Some(_)) => directory.join("softhsm/tokens").exists(),
        (Wanted::Pkcs11 { module, label, pin_file }, Some(shard)) => {
            let same = |replica: &ReplicaConfig| {
                let same_pin_file = replica.pin_file.as_ref() == Some(&pin_file);
                *replica.module.get_ref() == module && replica.token_label.as_ref() == Some(&label) && same_pin_file
            };
            matches!(&shard.get_ref().replica[..], [replica] if same(replica.get_ref()))
        }
        _ => false,
    };
    if agrees {
        return Ok(());
    }
    let has = match config.shards.first() {
        Some(shard) => format!("the HSM behind {}", shard.get_ref().modules()),
        None => "custody 'software'".into(),
    };
    Err(StartError::Dev(format!(
        "{} was set up with {has}, and its keys are there; leave the HSM's options out to go on with it, change its ekm.toml, or \
         name another directory with --data",
        directory.display()
    )))
}

/// Writes everything that the custody needs, and returns the configuration.
fn make(directory: &Path, wanted: &Wanted) -> Result<String, StartError> {
    let custody = match wanted {
        Wanted::Software => {
            write_missing(&directory.join("software.key"), &KeyFile::generate()?)?;
            "# Keys in this process, wrapped by this file's key. 'ekm dev --softhsm' keeps them in an HSM.\n\
             [software]\nkey_file = \"software.key\"\n"
                .to_owned()
        }
        Wanted::SoftHsm { module } => {
            let softhsm = directory.join("softhsm");
            make_directory(&softhsm.join("tokens"))?;
            let tokens = toml_string(&softhsm.join("tokens"))?;
            let settings = format!("directories.tokendir = {}\nlog.level = ERROR\n", tokens.trim_matches('"'));
            write_new(&softhsm.join("softhsm2.conf"), &settings)?;
            write_missing(&softhsm.join("so-pin"), &random_pin()?)?;
            write_missing(&softhsm.join("pin"), &random_pin()?)?;
            format!(
                "# Keys in a SoftHSM token. The file with the PIN is beside it.\n\
                 {HSM}[[shard.replica]]\nmodule = {}\ntoken_label = \"{SOFTHSM_LABEL}\"\npin_file = \"softhsm/pin\"\n\
                 [shard.replica.environment]\nSOFTHSM2_CONF = {}\n",
                toml_string(module)?,
                toml_string(&softhsm.join("softhsm2.conf"))?,
            )
        }
        Wanted::Pkcs11 { module, label, pin_file } => format!(
            "# Keys in a token of yours.\n{HSM}[[shard.replica]]\nmodule = {}\ntoken_label = {}\npin_file = {}\n",
            toml_string(module)?,
            toml::Value::from(label.as_str()),
            toml_string(pin_file)?,
        ),
    };
    Ok(TEMPLATE.replace("{custody}", &custody) + "\n" + &admin_section())
}

/// The admin plane of a developer: himself on the Unix socket, and a second person for what takes two.
pub(super) fn admin_section() -> String {
    ADMIN.replace("{uid}", &rustix::process::getuid().as_raw().to_string())
}

const HSM: &str = "[[shard]]\n# The library in this process: one process to stop. 'ekm serve' has \"process\" by default.\n\
                   isolation = \"thread\"\n# Shorter than the request's deadline.\ndeadline_ms = 60\n\n";

const TEMPLATE: &str = r#"# Made by 'ekm dev'. A whole configuration: 'ekm serve --config' takes it too.
# Every option is explained in the samples in deploy/config/.

profile = "test"

[server]
listen = "127.0.0.1:8443"
certificate_file = "tls/certificate.pem"
private_key_file = "tls/private-key.pem"

[ops]
listen = "127.0.0.1:9443"

[auth]
audiences = ["https://localhost"]

# Our own issuer; 'ekm dev token' signs tokens with its key.
[[auth.issuers]]
iss = ["https://issuer.localhost"]
callers = ["service-*@gcp-sa-ekms.iam.gserviceaccount.com"]
jwks_file = "issuer/jwks.json"

[catalog]
sqlite_file = "catalog.db"

{custody}
[audit]
file = "audit.jsonl"

[log]
filter = "warn"
"#;

const ADMIN: &str = r#"# The admin API. This user is 'developer'; nobody approves his own requests, so there is a second person, with a token:
# ekm dev token --caller second@localhost --audience ekm-admin
[admin]
socket = "admin.sock"

[[admin.issuers]]
iss = ["https://issuer.localhost"]
audiences = ["ekm-admin"]
jwks_file = "issuer/jwks.json"

[[admin.people]]
name = "developer"
roles = ["viewer", "operator", "key-admin", "security-officer"]
uid = {uid}

[[admin.people]]
name = "second"
roles = ["security-officer"]
email = "second@localhost"
"#;

fn make_certificate(directory: &Path) -> Result<(), StartError> {
    let tls = directory.join("tls");
    if tls.join("certificate.pem").exists() {
        return Ok(());
    }
    make_directory(&tls)?;
    let failed = |error: rcgen::Error| StartError::Dev(format!("cannot make a certificate: {error}"));
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).map_err(failed)?;
    let names = ["localhost", "127.0.0.1", "::1"].map(String::from);
    let mut parameters = rcgen::CertificateParams::new(names).map_err(failed)?;
    parameters.distinguished_name.push(rcgen::DnType::CommonName, "ekm dev");
    let certificate = parameters.self_signed(&key).map_err(failed)?;
    write_new(&tls.join("private-key.pem"), &key.serialize_pem())?;
    write_new(&tls.join("certificate.pem"), &certificate.pem())
}

fn random_pin() -> Result<String, StartError> {
    let mut bytes = [0u8; 16];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_| StartError::Dev("no random numbers".into()))?;
    Ok(bytes.iter().map(|byte| char::from(b'0' + byte % 10)).collect())
}

fn toml_string(file: &Path) -> Result<String, StartError> {
    let text = file.to_str().ok_or_else(|| StartError::Dev(format!("{} is not UTF-8", file.display())))?;
    Ok(toml::Value::from(text).to_string())
}
