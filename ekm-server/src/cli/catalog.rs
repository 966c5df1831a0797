//! `ekm catalog`: the catalog as a whole.

use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use ekm_core::catalog::ledger::Hash;
use uuid::Uuid;

use super::change::{ChangeArgs, Session};
use super::client::{Client, ServerArgs};
use super::database::{self, ConfigArgs};
use super::error::{CliError, Exit};
use super::output::{escape, fields, print, print_json, print_list, time};
use crate::admin::api::{CatalogView, ChangeView, Command, FrontendView, Page};
use crate::process::Output;
use crate::start_error::StartError;

#[derive(Args)]
#[command(after_help = "Examples:
  ekm catalog migrate --config ekm.toml
  ekm catalog status
  ekm catalog log --limit 5
  ekm catalog settings --destroy-grace-days 30 --reason 'policy of 2026'
  ekm catalog export --reason 'monthly copy'                       # asks for a second person's approval …
  ekm catalog export --approval ID --output-file catalog.export    # … and then fetches")]
pub(super) struct CatalogArgs {
    #[command(flatten)]
    server: ServerArgs,
    #[command(subcommand)]
    command: CatalogCommand,
}

#[derive(Subcommand)]
enum CatalogCommand {
    /// Bring the database's schema to this version, and begin a catalog if there is none
    ///
    /// Works on the database of a configuration file, and needs the HSM, or the key file, that wraps the catalog's key. Running
    /// frontends go on meanwhile. Repeating it does no harm.
    Migrate(ConfigArgs),
    /// Say that the database was taken back to an earlier state on purpose
    ///
    /// Frontends that know a later state refuse an earlier one, since whoever can write to the database could undo a revocation so.
    /// After a restore from a backup this makes them take it over. Look at the log first: what was done after the backup is undone, and
    /// keys that were made after it are gone from the catalog.
    AcceptRestore(ConfigArgs),
    /// Say where the catalog stands, and what this frontend refused or cannot serve
    Status,
    /// Show the log of changes, newest first
    Log {
        /// How many at most; with --verify, all if it is not given [default: 20]
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
        limit: Option<u64>,
        /// Check that each entry names the hash of the one before it, and that none is missing
        #[arg(long)]
        verify: bool,
    },
    /// List the frontends, with the revision that each has
    Frontends,
    /// Show what holds for the whole catalog, or change it; a change needs a second person
    Settings {
        /// From the approval of a destruction until material is gone, in days
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(7..=3650))]
        destroy_grace_days: Option<u32>,
        /// From a change of a policy until what was allowed before is answered with 403 and not with 503, in minutes; 0 for at once.
        /// Holds for later changes
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(0..=1440))]
        denial_delay_minutes: Option<u32>,
        #[command(flatten)]
        change: ChangeArgs,
    },
    /// Copy the whole catalog, sealed, into a file; needs a second person
    ///
    /// Without --approval it asks for one. When a second person has approved, the same person repeats it with --approval.
    Export(ExportArgs),
}

#[derive(Args)]
struct ExportArgs {
    /// The approval that a second person has given
    #[arg(long, value_name = "ID", requires = "output_file")]
    approval: Option<Uuid>,
    /// The file to make; it must not be there yet
    #[arg(long, value_name = "FILE", requires = "approval")]
    output_file: Option<PathBuf>,
    #[command(flatten)]
    change: ChangeArgs,
}

pub(super) async fn run(args: CatalogArgs) -> Result<Exit, CliError> {
    match &args.command {
        CatalogCommand::Migrate(config) => return Ok(database::migrate(config).await.map(|()| Exit::Done)?),
        CatalogCommand::AcceptRestore(config) => {
            return Ok(database::accept_restore(config).await.map(|()| Exit::Done)?);
        }
        _ => {}
    }
    let session = Session { client: Client::new(&args.server)?, output: args.server.output };
    match args.command {
        CatalogCommand::Status => {
            let catalog = catalog(&session).await?;
            match session.output {
                Output::Json => print_json(&catalog),
                Output::Text => print(&describe(&catalog)),
            }
        }
        CatalogCommand::Log { limit, verify } => return log(&session, limit, verify).await,
        CatalogCommand::Frontends => {
            let Page { items: frontends, .. } = session.client.get::<Page<FrontendView>>("v1/frontends", &[]).await?;
            let headings = ["NAME", "INSTANCE", "VERSION", "REVISION", "ALIVE", "SEEN"];
            print_list(session.output, &frontends, headings, frontend, "no frontend has said that it is there");
        }
        CatalogCommand::Settings { destroy_grace_days, denial_delay_minutes, change }
            if destroy_grace_days.is_some() || denial_delay_minutes.is_some() =>
        {
            let seen = catalog(&session).await?.settings_revision;
            let command = Command::SettingsSet { destroy_grace_days, denial_delay_minutes };
            return session.change(&change, command, Some(seen)).await;
        }
        CatalogCommand::Settings { .. } => {
            let catalog = catalog(&session).await?;
            match session.output {
                Output::Json => print_json(&catalog),
                Output::Text => print(&fields(&[
                    ("destroy grace days", catalog.destroy_grace_days.to_string()),
                    ("denial delay minutes", catalog.denial_delay_minutes.to_string()),
                    ("revision", catalog.settings_revision.to_string()),
                ])),
            }
        }
        CatalogCommand::Export(args) => return export(&session, args).await,
        CatalogCommand::Migrate(_) | CatalogCommand::AcceptRestore(_) => {} // done above, without a server
    }
    Ok(Exit::Done)
}

async fn catalog(session: &Session) -> Result<CatalogView, CliError> {
    session.client.get("v1/catalog", &[]).await
}

fn describe(catalog: &CatalogView) -> String {
    let alive = catalog.frontends.iter().filter(|frontend| frontend.alive);
    let current = alive.clone().filter(|frontend| frontend.revision >= catalog.revision).count();
    let mut text = fields(&[
        ("catalog", catalog.id.to_string()),
        ("location", catalog.location.clone()),
        ("revision", catalog.revision.to_string()),
        ("epoch", catalog.epoch.to_string()),
        ("schema", format!("{} (this version supports {})", catalog.schema_version, catalog.supported_schema_versions)),
        ("rows", catalog.rows.to_string()),
        ("destroy grace days", catalog.destroy_grace_days.to_string()),
        ("denial delay minutes", catalog.denial_delay_minutes.to_string()),
        ("frontends", format!("{current} of {} have revision {}", alive.count(), catalog.revision)),
    ]);
    for (what, items) in [("refused row", &catalog.refused_rows), ("key not served", &catalog.unserved_keys)] {
        for item in items {
            text += &format!("\nwarning: {what}: {}", escape(item));
        }
    }
    text
}

fn frontend(frontend: &FrontendView) -> [String; 6] {
    [
        frontend.name.clone(),
        frontend.instance.clone(),
        frontend.version.clone(),
        frontend.revision.to_string(),
        if frontend.alive { "yes".into() } else { "no".into() },
        time(frontend.seen_at),
    ]
}

async fn log(session: &Session, limit: Option<u64>, verify: bool) -> Result<Exit, CliError> {
    let wanted = limit.unwrap_or(if verify { u64::MAX } else { 20 });
    let mut entries: Vec<ChangeView> = Vec::new();
    let mut before = None::<String>;
    loop {
        let left = wanted - entries.len() as u64;
        let size = left.min(500).to_string();
        let mut query = vec![("limit", size.as_str())];
        query.extend(before.as_deref().map(|before| ("before", before)));
        let page: Page<ChangeView> = session.client.get("v1/changes", &query).await?;
        let last = page.items.last().map(|entry| entry.revision);
        entries.extend(page.items);
        // The pages end with revision 1, an empty one, or one that does not go back.
        let goes_back = last.map(|last| last.to_string()).filter(|last| before.as_ref() != Some(last));
        if entries.len() as u64 >= wanted || last == Some(1) || goes_back.is_none() {
            break;
        }
        before = goes_back;
    }
    if verify {
        check_chain(&entries, limit.is_none()).map_err(CliError::Log)?;
    }
    let row = |entry: &ChangeView| {
        let by = entry.approved_by.as_ref().map_or(entry.actor.clone(), |second| format!("{}, {second}", entry.actor));
        [
            entry.revision.to_string(),
            time(entry.at),
            by,
            entry.action.clone(),
            entry.target.clone(),
            entry.reason.clone(),
        ]
    };
    print_list(session.output, &entries, ["REVISION", "AT", "BY", "ACTION", "TARGET", "REASON"], row, "no changes yet");
    if verify {
        eprintln!("{} entries are one chain", entries.len());
    }
    Ok(Exit::Done)
}

/// Entries newest first. `whole`: the last one must be the first change.
fn check_chain(entries: &[ChangeView], whole: bool) -> Result<(), String> {
    for shown in entries {
        let problem = |text: &str| Err(format!("revision {}: {text}: the log was changed", shown.revision));
        if Hash::of(shown.entry.as_bytes()).to_string() != shown.hash {
            return problem("its hash is not that of the entry");
        }
        // What people read has to be what was hashed.
        let chained: serde_json::Value = serde_json::from_str(&shown.entry).unwrap_or_default();
        let read = serde_json::to_value(shown).expect("an entry has only text as map keys");
        let fields =
            ["revision", "at", "actor", "approved_by", "reason", "action", "target", "class", "detail", "previous"];
        if fields.iter().any(|field| chained.get(field) != read.get(field)) {
            return problem("what is shown is not what was hashed");
        }
    }
    for pair in entries.windows(2) {
        let [later, earlier] = pair else { continue };
        if earlier.revision + 1 != later.revision {
            return Err(format!("behind revision {} comes {}: entries are missing", later.revision, earlier.revision));
        }
        if later.previous != earlier.hash {
            return Err(format!(
                "revision {} was made after another entry than the log's revision {}: the log was changed",
                later.revision, earlier.revision
            ));
        }
    }
    match entries.last() {
        Some(first) if whole && first.revision != 1 => {
            Err(format!("the log begins with revision {}: entries are missing", first.revision))
        }
        Some(first) if whole && first.previous.bytes().any(|byte| byte != b'0') => {
            Err("revision 1 names an entry before it".into())
        }
        _ => Ok(()),
    }
}

async fn export(session: &Session, args: ExportArgs) -> Result<Exit, CliError> {
    let (Some(approval), Some(file)) = (args.approval, args.output_file) else {
        let change = &args.change;
        let result = session.request(&change.reason, change.dry_run, Command::CatalogExport {}, None).await?;
        let exit = session.report(&result, !change.no_wait).await?;
        if let (Output::Text, Some(approval)) = (session.output, &result.approval) {
            print(&format!("then: ekm catalog export --approval {} --output-file FILE", approval.id));
        }
        return Ok(exit);
    };
    let bytes = session.client.get_bytes(&format!("v1/approvals/{approval}/export")).await?;
    write_new(&file, &bytes).map_err(StartError::io(format!("cannot write {}", file.display())))?;
    match session.output {
        Output::Json => print_json(&serde_json::json!({"file": file, "bytes": bytes.len()})),
        Output::Text => print(&format!("{}: {} bytes, sealed with the catalog key", file.display(), bytes.len())),
    }
    Ok(Exit::Done)
}

fn write_new(file: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let mut file = std::fs::File::options().write(true).create_new(true).mode(0o600).open(file)?;
    file.write_all(bytes)?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// Newest first, as the API answers.
    fn log(length: u64) -> Vec<ChangeView> {
        let mut previous = "0".repeat(64);
        let mut entries: Vec<ChangeView> = (1..=length)
            .map(|revision| {
                let mut fields = json!({
                    "revision": revision, "at": "2026-11-22T10:00:00Z", "actor": "ann", "reason": "", "action": "key-rotate",
                    "target": "v0/keys/a", "class": "staged", "detail": {}, "rows": [], "previous": previous,
                });
                let entry = fields.to_string();
                previous = Hash::of(entry.as_bytes()).to_string();
                fields["hash"] = previous.clone().into();
                fields["entry"] = entry.into();
                serde_json::from_value(fields).unwrap()
            })
            .collect();
        entries.reverse();
        entries
    }

    #[test]
    fn a_log_is_one_chain_or_is_refused() {
        assert_eq!(check_chain(&log(3), true), Ok(()));
        assert_eq!(check_chain(&log(3)[..2], false), Ok(()));
        assert_eq!(check_chain(&[], true), Ok(()));
        let broken = |change: &dyn Fn(&mut Vec<ChangeView>)| {
            let mut log = log(3);
            change(&mut log);
            check_chain(&log, true).unwrap_err()
        };
        assert!(broken(&|log| drop(log.remove(1))).contains("entries are missing"));
        assert!(broken(&|log| drop(log.pop())).contains("the log begins with revision 2"));
        assert!(broken(&|log| log[1].actor = "eve".into()).contains("not what was hashed"));
        assert!(broken(&|log| log[1].entry = log[1].entry.replace("ann", "eve")).contains("not that of the entry"));
        let forged = broken(&|log| {
            log[1].actor = "eve".into();
            log[1].entry = log[1].entry.replace("ann", "eve");
            log[1].hash = Hash::of(log[1].entry.as_bytes()).to_string();
        });
        assert!(forged.contains("revision 3 was made after another entry"), "{forged}");
    }
}
