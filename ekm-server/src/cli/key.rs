//! `ekm key`: keys, from their first version to their destruction.

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, Subcommand, ValueEnum};
use ekm_core::catalog::{Custody, KeyState};
use ekm_core::{Algorithm, KeyPath};
use serde_json::json;

use super::change::{ChangeArgs, Session, changed_labels, label};
use super::client::{Client, ServerArgs};
use super::error::{CliError, Exit};
use super::output::{Rows, fields, labels, print, print_json, print_list, time};
use super::policy::{ChoiceArgs, not_final};
use crate::admin::api::{Command, KeyView};
use crate::process::Output;

#[derive(Args)]
#[command(after_help = "Examples:
  ekm key create v0/keys/orders --space v0/cryptospaces/payments --policy payments --rotation-days 90
  ekm key create v0/keys/trial --space v0/cryptospaces/payments --caller 'service-1@gcp-sa-ekms.iam.gserviceaccount.com'
  ekm key create v0/keys/release --algorithm EC_SIGN_P256_SHA256 --space v0/cryptospaces/payments --policy signers
  ekm key public-key v0/keys/release > release.pem
  ekm key list --space v0/cryptospaces/payments --state disabled
  ekm key disable v0/keys/orders --reason 'incident 4711'
  ekm key rotate v0/keys/orders --dry-run
  ekm key destroy v0/keys/orders --version 1 --reason 'TICKET-9'

'ekm apply' does the same from a file that is kept under version control.")]
pub(super) struct KeyArgs {
    #[command(flatten)]
    server: ServerArgs,
    #[command(subcommand)]
    command: KeyCommand,
}

#[derive(Subcommand)]
enum KeyCommand {
    /// Make a key: its material first, proven, then the catalog's entry
    Create(CreateArgs),
    /// List keys
    List(ListArgs),
    /// Show a key with all its versions
    Show {
        /// A path of the key
        path: KeyPath,
    },
    /// Print the public half of a signing key, in PEM
    PublicKey {
        /// A path of the key
        path: KeyPath,
    },
    /// Give a key one more path, for moving it between EXTERNAL and EXTERNAL_VPC
    ///
    /// Blobs that were wrapped under one path are opened under the other. Paths stay for ever.
    AddPath {
        /// A path that the key has
        path: KeyPath,
        /// The new one
        new: KeyPath,
        #[command(flatten)]
        change: ChangeArgs,
    },
    /// Put another policy in place of a key's
    ///
    /// If somebody changes the key at the same time, nothing is done.
    SetPolicy {
        /// A path of the key
        path: KeyPath,
        #[command(flatten)]
        policy: ChoiceArgs,
        /// Deny at once what is not allowed any more, whatever the catalog's denial delay is
        #[arg(long = "final")]
        is_final: bool,
        #[command(flatten)]
        change: ChangeArgs,
    },
    /// Deny at once what the key's former policies allowed and the present one does not
    ///
    /// With a denial delay in the catalog's settings, a change of policy becomes final by itself after that time.
    ConfirmPolicy {
        /// A path of the key
        path: KeyPath,
        #[command(flatten)]
        change: ChangeArgs,
    },
    /// Take the pause of a key, or of one version, back
    Enable(VersionArgs),
    /// Pause a key, or one version: wrap and unwrap answer FAILED_PRECONDITION, and Google does not disable its version
    Disable(VersionArgs),
    /// Make a new version; it wraps as soon as every frontend has it, and the older ones go on to unwrap. Not for signing keys
    Rotate {
        /// A path of the key
        path: KeyPath,
        #[command(flatten)]
        change: ChangeArgs,
    },
    /// Bring every version of a key to the HSMs of its crypto space's shard; for all keys of a space, see 'ekm space move'
    Move {
        /// A path of the key
        path: KeyPath,
        #[command(flatten)]
        change: ChangeArgs,
    },
    /// Let a key be rotated by itself, or not any more
    SetRotation {
        /// A path of the key
        path: KeyPath,
        #[command(flatten)]
        every: EveryArgs,
        #[command(flatten)]
        change: ChangeArgs,
    },
    /// Destroy a key, or one version, after the grace period; needs a second person
    ///
    /// Until then it still unwraps, and 'ekm key undelete' takes it back. After that nobody can decrypt what was encrypted with it.
    Destroy(VersionArgs),
    /// Take a destruction back while the grace period lasts; the key is disabled then
    Undelete(VersionArgs),
    /// Change labels and description of a key
    ///
    /// If somebody changes the key at the same time, nothing is done.
    Update {
        /// A path of the key
        path: KeyPath,
        #[command(flatten)]
        changes: UpdateArgs,
        #[command(flatten)]
        change: ChangeArgs,
    },
}

#[derive(Args)]
struct CreateArgs {
    /// The path that Cloud KMS will call, such as v0/keys/orders
    path: KeyPath,
    /// The crypto space that it belongs to; 'ekm space create' makes one
    #[arg(long, value_name = "PATH")]
    space: KeyPath,
    #[command(flatten)]
    policy: ChoiceArgs,
    /// What the key does, by Google's name [default: EXTERNAL_SYMMETRIC_ENCRYPTION, it wraps]
    #[arg(long, value_name = "NAME", value_parser = algorithm())]
    algorithm: Option<Algorithm>,
    /// Where the material lives [default: what the server's configuration says]
    #[arg(long, value_enum)]
    custody: Option<CustodyName>,
    /// Rotate by itself, every so many days [default: by hand only]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    rotation_days: Option<u32>,
    /// For people and filters; repeat for more
    #[arg(long = "label", value_name = "NAME=VALUE", value_parser = label)]
    labels: Vec<(String, String)>,
    /// For people
    #[arg(long, value_name = "TEXT", default_value = "")]
    description: String,
    #[command(flatten)]
    change: ChangeArgs,
}

#[derive(Args)]
struct ListArgs {
    /// Keys of this crypto space
    #[arg(long, value_name = "PATH")]
    space: Option<KeyPath>,
    /// Keys in this state
    #[arg(long, value_enum)]
    state: Option<StateName>,
    /// Keys with this label
    #[arg(long, value_name = "NAME=VALUE", value_parser = label)]
    label: Option<(String, String)>,
    /// Keys with a path that begins like this
    #[arg(long, value_name = "TEXT")]
    prefix: Option<String>,
    /// How many at most
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
}

#[derive(Args)]
struct VersionArgs {
    /// A path of the key
    path: KeyPath,
    /// This version only [default: the key as a whole]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    version: Option<u32>,
    #[command(flatten)]
    change: ChangeArgs,
}

#[derive(Args)]
#[group(required = true, multiple = false)]
struct EveryArgs {
    /// From one rotation to the next
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    every_days: Option<u32>,
    /// Not any more
    #[arg(long)]
    off: bool,
}

/// What `update` changes of a key or a crypto space.
#[derive(Args)]
#[group(required = true, multiple = true)]
pub(super) struct UpdateArgs {
    /// Set a label; repeat for more
    #[arg(long = "label", value_name = "NAME=VALUE", value_parser = label)]
    pub(super) labels: Vec<(String, String)>,
    /// Take a label away; repeat for more
    #[arg(long = "remove-label", value_name = "NAME")]
    pub(super) remove_labels: Vec<String>,
    /// For people
    #[arg(long, value_name = "TEXT")]
    pub(super) description: Option<String>,
}

/// One of those that there are, so that help, completion and mistakes can name them.
fn algorithm() -> impl TypedValueParser<Value = Algorithm> {
    PossibleValuesParser::new(Algorithm::all().map(Algorithm::name)).try_map(|name| name.parse::<Algorithm>())
}

#[derive(Clone, Copy, ValueEnum)]
pub(super) enum CustodyName {
    /// An object on the token that never leaves it
    Hsm,
    /// In the catalog, wrapped by the HSM's root key
    HsmWrapped,
    /// In the catalog, wrapped by a key file; for development only
    Software,
}

impl From<CustodyName> for Custody {
    fn from(name: CustodyName) -> Self {
        match name {
            CustodyName::Hsm => Self::Hsm,
            CustodyName::HsmWrapped => Self::HsmWrapped,
            CustodyName::Software => Self::Software,
        }
    }
}

#[derive(Clone, Copy, ValueEnum)]
enum StateName {
    /// In use
    Enabled,
    /// Paused
    Disabled,
    /// Waits for the end of its grace period
    DestroyScheduled,
    /// Gone; its paths stay taken
    Destroyed,
}

impl From<StateName> for KeyState {
    fn from(name: StateName) -> Self {
        match name {
            StateName::Enabled => Self::Enabled,
            StateName::Disabled => Self::Disabled,
            StateName::DestroyScheduled => Self::DestroyScheduled,
            StateName::Destroyed => Self::Destroyed,
        }
    }
}

pub(super) async fn run(args: KeyArgs) -> Result<Exit, CliError> {
    let session = Session { client: Client::new(&args.server)?, output: args.server.output };
    let (change, command, if_revision) = match args.command {
        KeyCommand::List(filter) => return list(&session, filter).await,
        KeyCommand::Show { path } => return show(&session, &path).await,
        KeyCommand::PublicKey { path } => return public_key(&session, &path).await,
        KeyCommand::Create(args) => {
            let CreateArgs { path, space, policy, algorithm, custody, rotation_days, .. } = args;
            let (policy, labels) = (policy.choice(algorithm.unwrap_or_default())?, args.labels.into_iter().collect());
            let (custody, description) = (custody.map(Into::into), args.description);
            let command =
                Command::KeyCreate { path, space, policy, algorithm, custody, rotation_days, labels, description };
            (args.change, command, None)
        }
        KeyCommand::AddPath { path, new, change } => (change, Command::KeyAddPath { path, new }, None),
        KeyCommand::SetPolicy { path, policy, is_final, change } => {
            let key = session.key(&path).await?;
            let policy = policy.choice(key.algorithm)?;
            (change, Command::KeySetPolicy { path, policy, is_final }, Some(key.revision))
        }
        KeyCommand::ConfirmPolicy { path, change } => (change, Command::KeyConfirmPolicy { path }, None),
        KeyCommand::Enable(VersionArgs { path, version, change }) => {
            (change, Command::KeyEnable { path, version }, None)
        }
        KeyCommand::Disable(VersionArgs { path, version, change }) => {
            (change, Command::KeyDisable { path, version }, None)
        }
        KeyCommand::Move { path, change } => (change, Command::KeyMove { path }, None),
        KeyCommand::Rotate { path, change } => (change, Command::KeyRotate { path }, None),
        KeyCommand::SetRotation { path, every, change } => {
            let seen = session.key(&path).await?.revision;
            (change, Command::KeySetRotation { path, every_days: every.every_days }, Some(seen))
        }
        KeyCommand::Destroy(VersionArgs { path, version, change }) => {
            (change, Command::KeyDestroy { path, version }, None)
        }
        KeyCommand::Undelete(VersionArgs { path, version, change }) => {
            (change, Command::KeyUndelete { path, version }, None)
        }
        KeyCommand::Update { path, changes, change } => {
            let seen = session.key(&path).await?;
            let labels = changed_labels(seen.labels, changes.labels, &changes.remove_labels);
            let description = changes.description.unwrap_or(seen.description);
            (change, Command::KeyUpdate { path, labels, description }, Some(seen.revision))
        }
    };
    session.change(&change, command, if_revision).await
}

async fn list(session: &Session, filter: ListArgs) -> Result<Exit, CliError> {
    let label = filter.label.map(|(name, value)| format!("{name}={value}"));
    let query = [
        ("space", filter.space.as_ref().map(KeyPath::as_str)),
        ("state", filter.state.map(|state| KeyState::from(state).name())),
        ("label", label.as_deref()),
        ("prefix", filter.prefix.as_deref()),
    ];
    let query: Vec<_> = query.into_iter().filter_map(|(name, value)| Some((name, value?))).collect();
    let none = if query.is_empty() {
        "no keys yet; 'ekm key create PATH --space PATH --policy NAME' makes one"
    } else {
        "no key is like that"
    };
    let keys: Vec<KeyView> = session.client.list("v1/keys", &query, filter.limit).await?;
    let headings = ["PATHS", "STATE", "CUSTODY", "VERSION", "SPACE", "POLICY", "NEXT ROTATION"];
    print_list(session.output, &keys, headings, row, none);
    Ok(Exit::Done)
}

fn row(key: &KeyView) -> [String; 7] {
    [
        paths(key),
        state(key.state.name(), key.destroy_at),
        key.custody.name().into(),
        key.primary_version.to_string(),
        key.space.clone(),
        key.policy.clone(),
        key.next_rotation_at.map(time).unwrap_or_default(),
    ]
}

fn paths(key: &KeyView) -> String {
    key.paths.iter().map(KeyPath::as_str).collect::<Vec<_>>().join(",")
}

fn state(name: &str, destroy_at: Option<time::OffsetDateTime>) -> String {
    destroy_at.map_or_else(|| name.into(), |at| format!("{name} for {}", time(at)))
}

async fn public_key(session: &Session, path: &KeyPath) -> Result<Exit, CliError> {
    let key = session.key(path).await?;
    let primary = key.versions.iter().find(|version| version.number == key.primary_version);
    let Some(pem) = primary.and_then(|version| version.public_key.as_ref()) else {
        let problem = format!("{path} has algorithm {}: only keys that sign have a public key", key.algorithm.name());
        return Err(CliError::NoPublicKey(problem));
    };
    match session.output {
        Output::Json => print_json(&json!({"publicKey": pem, "algorithm": key.algorithm})),
        Output::Text => print(pem.trim_end()),
    }
    Ok(Exit::Done)
}

async fn show(session: &Session, path: &KeyPath) -> Result<Exit, CliError> {
    let key = session.key(path).await?;
    match session.output {
        Output::Json => print_json(&key),
        Output::Text => print(&describe(&key)),
    }
    Ok(Exit::Done)
}

fn describe(key: &KeyView) -> String {
    let mut text = fields(&[
        ("paths", paths(key)),
        ("id", key.id.to_string()),
        ("space", key.space.clone()),
        ("policy", key.policy.clone()),
        ("algorithm", key.algorithm.name().into()),
        ("state", state(key.state.name(), key.destroy_at)),
        ("custody", key.custody.name().into()),
        ("primary version", key.primary_version.to_string()),
        ("rotation", key.rotation_days.map(|days| format!("every {days} days")).unwrap_or_default()),
        ("next rotation", key.next_rotation_at.map(time).unwrap_or_default()),
        ("labels", labels(&key.labels)),
        ("description", key.description.clone()),
        ("created", time(key.created_at)),
        ("revision", key.revision.to_string()),
    ]);
    text += &not_final(&key.policy_not_final, &format!("ekm key confirm-policy {}", paths(key)));
    let mut rows = Rows::new(["VERSION", "STATE", "CUSTODY", "CREATED"]);
    for version in &key.versions {
        let state = state(version.state.name(), version.destroy_at);
        rows.push([version.number.to_string(), state, version.custody.name().into(), time(version.created_at)]);
    }
    text += &format!("\n\nversions\n{}", rows.render(false));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> KeyView {
        serde_json::from_value(json!({
            "paths": ["v0/keys/a", "v0/vpc/a"], "id": uuid::Uuid::nil(), "space": "v0/cryptospaces/s", "policy": "p\u{1b}[2J",
            "state": "destroy-scheduled", "destroy_at": "2026-12-22T10:00:00Z", "custody": "hsm-wrapped", "primary_version": 2,
            "versions": [
                {"number": 1, "state": "enabled", "custody": "hsm", "created_at": "2026-11-21T10:00:00.123Z"},
                {"number": 2, "state": "pending", "custody": "hsm-wrapped", "created_at": "2026-11-22T10:00:00Z"},
            ],
            "labels": {"team": "payments"}, "description": "", "created_at": "2026-11-21T10:00:00Z", "revision": 7,
        }))
        .unwrap()
    }

    #[test]
    fn a_key_is_a_row_with_all_its_paths() {
        let mut rows = Rows::new(["", "", "", "", "", "", ""]);
        rows.push(row(&key()));
        let expected = "v0/keys/a,v0/vpc/a  destroy-scheduled for 2026-12-22T10:00:00Z  hsm-wrapped  2  v0/cryptospaces/s  \
                        p\\u{1b}[2J  -";
        assert_eq!(rows.render(false), expected);
    }

    #[test]
    fn a_key_is_shown_with_its_versions() {
        let text = describe(&key());
        assert!(text.contains("labels           team=payments"), "{text}");
        assert!(
            text.ends_with(
                "1  enabled  hsm          2026-11-21T10:00:00Z\n2  pending  hsm-wrapped  2026-11-22T10:00:00Z"
            ),
            "{text}"
        );
        assert!(!text.contains("description") && !text.contains('\u{1b}'), "{text}");
    }
}
