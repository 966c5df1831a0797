//! `ekm dev`: everything embedded in one directory. It writes a real configuration file and then runs the same service as
//! `ekm serve`; what it adds is the set-up.

mod banner;
mod check;
pub(crate) mod files;
pub(crate) mod issuer;
mod setup;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, Subcommand};
use ekm_core::KeyPath;
use ekm_core::policy::Verb;
use serde_json::json;

use crate::admin::api::{ChangeRequest, Command, CreationWish, PolicyChoice};
use crate::admin::{Actor, AdminError, AdminPlane, Role};
use crate::app::{App, termination};
use crate::config::Config;
use crate::process::{Output, runtime, start_process};
use crate::start_error::StartError;
use crate::{catalog, custodian};
use issuer::Issuer;
use setup::Setup;

const SPACE_PATH: &str = "v0/cryptospaces/demo";
const KEY_PATH: &str = "v0/keys/demo";
/// For keys that callers make.
const CREATION_POLICY: &str = "cloud-kms";
const AUDIENCE: &str = "https://localhost";
const CALLERS: &str = "service-*@gcp-sa-ekms.iam.gserviceaccount.com";
const CALLER: &str = "service-123456789012@gcp-sa-ekms.iam.gserviceaccount.com";
const TOKEN_TTL_S: u64 = 3600;

#[derive(Args)]
pub(crate) struct DevArgs {
    /// Where everything is kept [default: ekm-dev in the user's data home]
    #[arg(long, env = "EKM_DEV_DATA", value_name = "DIR", global = true)]
    data: Option<PathBuf>,
    /// Do every operation in the HSM behind this PKCS#11 library
    #[arg(long, value_name = "LIBRARY")]
    pkcs11: Option<PathBuf>,
    /// The label of the HSM's token
    #[arg(long, value_name = "LABEL", requires = "pkcs11")]
    token_label: Option<String>,
    /// A file that holds the token's user PIN and nothing else
    #[arg(long, value_name = "FILE", requires = "token_label")]
    pin_file: Option<PathBuf>,
    /// Do every operation in a SoftHSM token, made in the data directory
    #[arg(long, conflicts_with = "token_label")]
    softhsm: bool,
    /// Where Cloud KMS would call; port 0 takes a free one [default: 127.0.0.1:8443, or what ekm.toml says]
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<SocketAddr>,
    /// Health and metrics; port 0 takes a free one [default: 127.0.0.1:9443, or what ekm.toml says]
    #[arg(long, value_name = "ADDRESS")]
    ops_listen: Option<SocketAddr>,
    /// How long a request may take, in milliseconds. Cloud KMS gives up after 150; more helps on slow machines [default: 100,
    /// or what ekm.toml says]
    #[arg(long, value_name = "MS", value_parser = clap::value_parser!(u64).range(10..))]
    deadline_ms: Option<u64>,
    /// What to print when ready
    #[arg(long, value_enum, default_value = "text")]
    output: Output,
    /// Start, wrap, unwrap, compare, print both latencies, and exit
    #[arg(long)]
    check: bool,
    #[command(subcommand)]
    command: Option<DevCommand>,
}

#[derive(Subcommand)]
enum DevCommand {
    /// Print an ID token, signed by the issuer in the data directory
    Token {
        /// The e-mail address in it
        #[arg(long, default_value = CALLER, value_name = "EMAIL")]
        caller: String,
        /// The audience in it
        #[arg(long, default_value = AUDIENCE, value_name = "AUD")]
        audience: String,
        /// How long it is valid
        #[arg(long, default_value_t = TOKEN_TTL_S, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=315_360_000))]
        ttl: u64,
    },
}

pub(crate) fn run(args: DevArgs) -> Result<(), StartError> {
    let data = match &args.data {
        Some(data) => data.clone(),
        None => default_data()?,
    };
    if let Some(DevCommand::Token { caller, audience, ttl }) = &args.command {
        let issuer = Issuer::open(&data.join("issuer"))?;
        print(&issuer.mint(caller, audience, *ttl)?);
        return Ok(());
    }
    let setup = Setup::prepare(&data, &args)?;
    let mut config = Config::read(&setup.config_file)?;
    config.server.listen = args.listen.unwrap_or(config.server.listen);
    config.ops.listen = args.ops_listen.unwrap_or(config.ops.listen);
    if config.admin.is_none() {
        config_without_admin(&setup.config_file);
    }
    if let Some(milliseconds) = args.deadline_ms {
        config.set_deadline(Duration::from_millis(milliseconds))?;
    }
    if args.check {
        config.server.listen.set_port(0);
        config.ops.listen.set_port(0);
    }
    start_process(&config)?;
    let served = setup.ensure_token(&config).and_then(|()| runtime()?.block_on(serve(&config, &setup, &args)));
    if served.is_err() && config.catalog.sqlite_file.as_ref().is_some_and(|file| !file.exists()) {
        setup.forget(); // no key was made yet, so the next attempt may ask for something else
    }
    served
}

async fn serve(config: &Config, setup: &Setup, args: &DevArgs) -> Result<(), StartError> {
    let stop = termination().await.map_err(StartError::io("cannot listen to signals"))?;
    let custodian = custodian::open(config).await?;
    let custody = catalog::default_custody(&custodian);
    let store = catalog::open_store(&config.catalog, true).await?;
    store.migrate().await?;
    catalog::initialise(&store, &custodian, catalog::key_file(config)?.as_ref()).await?;
    let mut app = App::build_with(config, custodian, store, None).await?;
    make_demo_key(&mut app).await?;
    let (ekm, ops) = app.addresses()?;
    let ready = Ready {
        ekm,
        ops,
        ca_file: setup.certificate_file(),
        token: setup.issuer.mint(CALLER, AUDIENCE, TOKEN_TTL_S)?,
        custody,
        admin_socket: app.admin().and_then(AdminPlane::socket).cloned(),
    };
    if args.check {
        let (end, ended) = tokio::sync::oneshot::channel::<()>();
        let running = tokio::spawn(app.run(async {
            let _ = ended.await;
        }));
        let outcome = check::check(&ready).await;
        drop(end);
        let _ = running.await;
        return outcome.map(|report| print(&report));
    }
    match args.output {
        Output::Json => print(&ready.to_json()),
        Output::Text => print(&banner::banner(&ready, setup, args.data.is_some(), config)),
    }
    app.run(stop).await;
    Ok(())
}

/// The key that the printed commands use, with a policy that lets in whoever the issuer's `callers` let in.
async fn make_demo_key(app: &mut App) -> Result<(), StartError> {
    let path = |text| KeyPath::parse(text).expect("a constant");
    if app.has_key(&path(KEY_PATH)) {
        return Ok(());
    }
    let policy = json!({"rules": [{"callers": [CALLERS], "verbs": ["wrap", "unwrap"]}]});
    let space = Command::SpaceCreate {
        path: path(SPACE_PATH),
        shard: None,
        labels: BTreeMap::new(),
        description: String::new(),
    };
    let key = Command::KeyCreate {
        algorithm: None,
        path: path(KEY_PATH),
        space: path(SPACE_PATH),
        policy: PolicyChoice::Own(policy),
        custody: None,
        rotation_days: None,
        labels: BTreeMap::new(),
        description: "For trying things out.".into(),
    };
    let rules = json!({"rules": [{"callers": [CALLERS], "verbs": Verb::ALL}]});
    let policy = Command::PolicyCreate {
        name: CREATION_POLICY.into(),
        policy: rules,
        description: "For keys that Cloud KMS makes itself.".into(),
    };
    let creation =
        CreationWish { policy: CREATION_POLICY.into(), custody: None, algorithms: Vec::new(), max_keys: 1000 };
    let creation = Command::SpaceSetCreation { path: path(SPACE_PATH), creation: Some(creation) };
    let actor = Actor { name: "ekm dev".into(), roles: vec![Role::KeyAdmin] };
    let admin = app.admin_service();
    for command in [space, policy, creation, key] {
        let (reason, dry_run) = ("the first start of ekm dev".to_owned(), false);
        let request = ChangeRequest { command, reason, dry_run, if_revision: None, request_id: None };
        match admin.change(&actor, request).await {
            Ok(_) | Err(AdminError::Taken(_)) => {}
            Err(error) => return Err(StartError::Dev(format!("cannot make the demo key: {error}"))),
        }
    }
    app.catch_up().await
}

/// Says how a directory that is older than the admin API gets it.
#[expect(clippy::print_stderr, reason = "the log is not there yet")]
fn config_without_admin(file: &Path) {
    eprintln!(
        "note: {} has no [admin], so there is no admin API here; to get it, append this and start again:\n\n{}",
        file.display(),
        setup::admin_section()
    );
}

/// What runs where.
struct Ready {
    ekm: SocketAddr,
    ops: SocketAddr,
    ca_file: PathBuf,
    token: String,
    custody: ekm_core::catalog::Custody,
    /// None in a directory that was set up before there was one.
    admin_socket: Option<PathBuf>,
}

impl Ready {
    fn base_url(&self) -> String {
        format!("https://localhost:{}", self.ekm.port())
    }

    fn ops_url(&self) -> String {
        format!("http://{}", self.ops)
    }

    fn to_json(&self) -> String {
        serde_json::json!({
            "base_url": self.base_url(),
            "ops_url": self.ops_url(),
            "ca_file": self.ca_file,
            "key_path": KEY_PATH,
            "crypto_space_path": SPACE_PATH,
            "token": self.token,
            "custody": self.custody.name(),
            "admin_socket": self.admin_socket,
        })
        .to_string()
    }
}

/// Where other commands look for what `ekm dev` made.
pub(crate) fn data() -> Result<PathBuf, StartError> {
    std::env::var_os("EKM_DEV_DATA").map_or_else(default_data, |data| Ok(PathBuf::from(data)))
}

/// As the XDG base directory specification has it.
fn default_data() -> Result<PathBuf, StartError> {
    let home = |name| std::env::var_os(name).filter(|value| Path::new(value).is_absolute()).map(PathBuf::from);
    let data = home("XDG_DATA_HOME").or_else(|| Some(home("HOME")?.join(".local/share")));
    Ok(data
        .ok_or_else(|| StartError::Dev("there is no home directory; name a directory with --data".into()))?
        .join("ekm-dev"))
}

#[expect(clippy::print_stdout, reason = "the command's answer")]
fn print(text: &str) {
    println!("{text}");
}
