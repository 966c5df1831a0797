//! Asking for a change, telling what became of it, and waiting until the frontends have it.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use clap::Args;
use ekm_core::KeyPath;
use uuid::Uuid;

use super::client::Client;
use super::error::{CliError, Exit};
use super::output::{diff, escape, print, print_json, time};
use crate::admin::api::{
    ChangeOutcome, ChangeRequest, ChangeResult, ChangeView, Command, FrontendView, KeyView, Page, SpaceView,
};
use crate::process::Output;

/// How long a command waits for the frontends.
const PROPAGATION: Duration = Duration::from_secs(5);

/// What every change takes.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Change")]
pub(super) struct ChangeArgs {
    /// Why; goes into the log of changes
    #[arg(long, value_name = "TEXT", default_value = "")]
    pub(super) reason: String,
    /// Only say what would change; exit code 3 if anything would
    #[arg(long)]
    pub(super) dry_run: bool,
    /// Do not wait until the frontends have the change
    #[arg(long)]
    pub(super) no_wait: bool,
}

/// A command's connection, and how it answers.
pub(super) struct Session {
    pub(super) client: Client,
    pub(super) output: Output,
}

impl Session {
    /// The key behind a path.
    pub(super) async fn key(&self, path: &KeyPath) -> Result<KeyView, CliError> {
        self.client.get(&format!("v1/keys/{path}"), &[]).await
    }

    /// The crypto space behind a path.
    pub(super) async fn space(&self, path: &KeyPath) -> Result<SpaceView, CliError> {
        self.client.get(&format!("v1/spaces/{path}"), &[]).await
    }

    /// Changes something, and tells what became of it.
    pub(super) async fn change(
        &self,
        args: &ChangeArgs,
        command: Command,
        if_revision: Option<u64>,
    ) -> Result<Exit, CliError> {
        let result = self.request(&args.reason, args.dry_run, command, if_revision).await?;
        self.report(&result, !args.no_wait).await
    }

    /// Changes something.
    pub(super) async fn request(
        &self,
        reason: &str,
        dry_run: bool,
        command: Command,
        if_revision: Option<u64>,
    ) -> Result<ChangeResult, CliError> {
        let target = target(&command);
        let request_id = Some(Uuid::new_v4().to_string());
        let request = ChangeRequest { command, reason: reason.into(), dry_run, if_revision, request_id };
        match (self.client.change(&request).await, if_revision) {
            (Err(CliError::Refused { status: 412, code, .. }), Some(seen)) => {
                let who = self.who_changed(&target, seen).await;
                let message = format!(
                    "{target} has changed since revision {seen}, and nothing was done{who}; look at it again, then repeat the \
                     command",
                    target = escape(&target)
                );
                Err(CliError::Refused { status: 412, code, message })
            }
            (outcome, _) => outcome,
        }
    }

    /// Who changed something after a revision, for the text of an error.
    async fn who_changed(&self, target: &str, seen: u64) -> String {
        let page: Result<Page<ChangeView>, _> = self.client.get("v1/changes", &[("limit", "100")]).await;
        page.map_or_else(|_| String::new(), |page| culprit(&page.items, target, seen))
    }

    /// Tells what became of a wish, and waits for the frontends if it was done.
    pub(super) async fn report(&self, result: &ChangeResult, wait: bool) -> Result<Exit, CliError> {
        match self.output {
            Output::Json => print_json(result),
            Output::Text => print(&describe(result)),
        }
        if wait && result.outcome == ChangeOutcome::Done {
            self.tell_spread(result.revision).await;
        }
        Ok(exit(result.outcome))
    }

    /// Waits until every live frontend has a revision, and says how many have. The change is made, so failing to ask is not a
    /// failure.
    pub(super) async fn tell_spread(&self, revision: u64) {
        let begun = Instant::now();
        let (text, complete) = loop {
            let page: Result<Page<FrontendView>, _> = self.client.get("v1/frontends", &[]).await;
            let (text, complete) = match page {
                Ok(page) => spread(&page.items, revision),
                Err(error) => (format!("it is done; which frontends have it is not known: {error}"), false),
            };
            if complete || begun.elapsed() >= PROPAGATION {
                break (text, complete);
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        };
        match self.output {
            Output::Text if complete => print(&text),
            Output::Json if complete => {}
            _ => eprintln!("warning: {text}"),
        }
    }
}

/// How many of the live frontends have a revision; whether all have.
fn spread(frontends: &[FrontendView], revision: u64) -> (String, bool) {
    let alive: Vec<_> = frontends.iter().filter(|frontend| frontend.alive).collect();
    let late: Vec<_> = alive.iter().filter(|frontend| frontend.revision < revision).collect();
    let count = format!("{} of {} frontends have it", alive.len() - late.len(), alive.len());
    if late.is_empty() {
        return (count, !alive.is_empty());
    }
    let late = late.iter().map(|late| {
        format!("{} (instance {}) has revision {}", escape(&late.name), escape(&late.instance), late.revision)
    });
    let late = late.collect::<Vec<_>>().join(", ");
    (format!("{count}; {late}; 'ekm catalog frontends' shows how they go on"), false)
}

fn culprit(log: &[ChangeView], target: &str, seen: u64) -> String {
    let entry = log.iter().find(|entry| entry.revision > seen && entry.target == target);
    let Some(entry) = entry else { return String::new() };
    let reason = if entry.reason.is_empty() { String::new() } else { format!(", \"{}\"", escape(&entry.reason)) };
    format!(
        "; meanwhile {} has made the change {} at {} (revision {}{reason})",
        escape(&entry.actor),
        escape(&entry.action),
        time(entry.at),
        entry.revision
    )
}

/// What a command is about, as the log of changes has it.
fn target(command: &Command) -> String {
    use Command as C;
    match command {
        C::SpaceCreate { path, .. }
        | C::SpaceUpdate { path, .. }
        | C::SpaceMove { path, .. }
        | C::SpaceSetCreation { path, .. }
        | C::SpaceBlock { path }
        | C::SpaceUnblock { path }
        | C::KeyCreate { path, .. }
        | C::KeyUpdate { path, .. }
        | C::KeyAddPath { path, .. }
        | C::KeySetPolicy { path, .. }
        | C::KeyConfirmPolicy { path }
        | C::KeyEnable { path, .. }
        | C::KeyDisable { path, .. }
        | C::KeyRotate { path }
        | C::KeyMove { path }
        | C::KeySetRotation { path, .. }
        | C::KeyDestroy { path, .. }
        | C::KeyUndelete { path, .. } => path.to_string(),
        C::PolicyCreate { name, .. }
        | C::PolicySet { name, .. }
        | C::PolicyConfirm { name }
        | C::HsmDrain { name, .. }
        | C::HsmResume { name } => name.clone(),
        C::SettingsSet { .. } => "settings".into(),
        C::CatalogExport {} => "the catalog".into(),
    }
}

/// What became of a wish, for people.
pub(super) fn describe(result: &ChangeResult) -> String {
    let (target, revision) = (escape(&result.target), result.revision);
    let mut text = match result.outcome {
        ChangeOutcome::Done => format!("{target}: done, revision {revision}"),
        ChangeOutcome::Unchanged => format!("{target}: it was so already, revision {revision}"),
        ChangeOutcome::WouldChange => format!("{target}: dry run, this would change (tried on revision {revision})"),
        ChangeOutcome::WouldNeedApproval => {
            format!("{target}: dry run, this would wait for a second person (tried on revision {revision})")
        }
        ChangeOutcome::NeedsApproval => format!("{target}: nothing is changed yet, it waits for a second person"),
    };
    text += &diff(&result.changes);
    for warning in &result.warnings {
        text += &format!("\nwarning: {}", escape(warning));
    }
    if let (Some(approval), ChangeOutcome::NeedsApproval) = (&result.approval, result.outcome) {
        text += &format!(
            "\napproval {}, until {}\na second person runs: ekm approval approve {}",
            approval.id,
            time(approval.expires_at),
            approval.id
        );
    }
    text
}

pub(super) fn exit(outcome: ChangeOutcome) -> Exit {
    match outcome {
        ChangeOutcome::Done | ChangeOutcome::Unchanged => Exit::Done,
        ChangeOutcome::WouldChange | ChangeOutcome::WouldNeedApproval => Exit::WouldChange,
        ChangeOutcome::NeedsApproval => Exit::NeedsApproval,
    }
}

/// Splits `name=value`.
pub(super) fn label(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.into(), value.into())),
        _ => Err("write NAME=VALUE".into()),
    }
}

/// Labels after a change: some set, some taken away.
pub(super) fn changed_labels(
    mut labels: BTreeMap<String, String>,
    set: Vec<(String, String)>,
    remove: &[String],
) -> BTreeMap<String, String> {
    labels.retain(|name, _| !remove.contains(name));
    labels.extend(set);
    labels
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use time::OffsetDateTime;

    use super::*;

    fn frontend(name: &str, revision: u64, alive: bool) -> FrontendView {
        let (instance, version, seen_at) = ("i".into(), "1".into(), OffsetDateTime::UNIX_EPOCH);
        FrontendView { name: name.into(), instance, version, revision, seen_at, alive }
    }

    #[test]
    fn only_live_frontends_are_waited_for() {
        let two = [frontend("a", 7, true), frontend("b", 8, true), frontend("old", 1, false)];
        assert_eq!(spread(&two, 7), ("2 of 2 frontends have it".into(), true));
        let (text, complete) = spread(&two, 8);
        assert!(text.starts_with("1 of 2 frontends have it; a (instance i) has revision 7") && !complete, "{text}");
        assert!(!spread(&[frontend("old", 9, false)], 7).1, "nobody has it");
    }

    #[test]
    fn a_lost_update_names_who_was_first() {
        let log: Vec<ChangeView> = serde_json::from_value(json!([
            {"revision": 9, "at": "2026-11-22T10:00:00Z", "actor": "ann", "reason": "incident\n7", "action": "key-disable",
             "target": "v0/keys/a", "class": "fast", "detail": {}, "hash": "", "previous": "", "entry": ""},
        ]))
        .unwrap();
        let text = culprit(&log, "v0/keys/a", 8);
        assert_eq!(
            text,
            "; meanwhile ann has made the change key-disable at 2026-11-22T10:00:00Z (revision 9, \"incident\\n7\")"
        );
        assert_eq!(culprit(&log, "v0/keys/b", 8), "");
        assert_eq!(culprit(&log, "v0/keys/a", 9), "");
    }

    #[test]
    fn what_waits_for_a_second_person_says_what_that_person_runs() {
        let id = Uuid::new_v4();
        let result: ChangeResult = serde_json::from_value(json!({
            "outcome": "needs-approval", "revision": 3, "target": "v0/keys/a", "changes": [], "warnings": ["careful"],
            "approval": {"id": id, "state": "requested", "summary": "", "command": {"type": "key-destroy", "path": "v0/keys/a"},
                "payload_sha256": "00", "requested_by": "ann", "reason": "", "requested_at": "2026-11-22T10:00:00Z",
                "expires_at": "2026-11-29T10:00:00Z"},
        }))
        .unwrap();
        let text = describe(&result);
        assert!(text.contains("warning: careful"), "{text}");
        assert!(text.ends_with(&format!("a second person runs: ekm approval approve {id}")), "{text}");
        assert_eq!(exit(result.outcome), Exit::NeedsApproval);
    }

    #[test]
    fn labels_are_set_and_taken_away() {
        let before = BTreeMap::from([("a".to_owned(), "1".to_owned()), ("b".into(), "2".into())]);
        let after = changed_labels(before, vec![label("c=x=y").unwrap(), label("b=").unwrap()], &["a".into()]);
        assert_eq!(super::super::output::labels(&after), "b=,c=x=y");
        assert!(label("=x").is_err() && label("x").is_err());
    }
}
