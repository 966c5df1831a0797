//! `ekm approval`: the second person's side of a dangerous change.

use std::io::{IsTerminal, Write};

use clap::{Args, Subcommand, ValueEnum};
use ekm_core::catalog::ApprovalState;
use ekm_core::catalog::ledger::Hash;
use serde_json::Value;
use uuid::Uuid;

use super::change::Session;
use super::client::{Client, ServerArgs};
use super::error::{CliError, Exit};
use super::output::{diff, escape, fields, json, print, print_json, print_list, time};
use crate::admin::api::{ApprovalView, Decision};
use crate::process::Output;

#[derive(Args)]
#[command(after_help = "Examples:
  ekm approval list
  ekm approval approve 3f0e9a52-51a6-4c2e-a5ba-2e6b2ad11c0e --reason 'checked with the owner'
  ekm approval reject 3f0e9a52-51a6-4c2e-a5ba-2e6b2ad11c0e --reason 'wrong key'

Who has asked for a change cannot approve it.")]
pub(super) struct ApprovalArgs {
    #[command(flatten)]
    server: ServerArgs,
    #[command(subcommand)]
    command: ApprovalCommand,
}

#[derive(Subcommand)]
enum ApprovalCommand {
    /// List approvals, those that wait if nothing else is asked for
    List {
        /// Approvals in this state
        #[arg(long, value_enum, default_value = "requested")]
        state: StateName,
        /// How many at most
        #[arg(long, value_name = "N")]
        limit: Option<usize>,
    },
    /// Show an approval with exactly what is approved
    Show {
        /// Its id
        id: Uuid,
    },
    /// Approve a change, which is made at once
    ///
    /// Shows exactly what is approved, and asks. What is sent is the SHA-256 of what was shown, so nothing else can be approved.
    Approve {
        /// Its id
        id: Uuid,
        /// What was looked at before, by its SHA-256; if it is the same, no question is asked
        #[arg(long, value_name = "HEX")]
        payload_sha256: Option<String>,
        /// Do not ask
        #[arg(long)]
        yes: bool,
        /// Why; goes into the log of changes
        #[arg(long, value_name = "TEXT", default_value = "")]
        reason: String,
        /// Do not wait until the frontends have the change
        #[arg(long)]
        no_wait: bool,
    },
    /// Reject a change, or take one's own request back
    Reject {
        /// Its id
        id: Uuid,
        /// Why; goes into the log of changes
        #[arg(long, value_name = "TEXT", default_value = "")]
        reason: String,
    },
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum StateName {
    /// Waits for a second person
    Requested,
    /// Approved, and the change was made
    Approved,
    /// Rejected or taken back
    Rejected,
    /// Nobody decided in time
    Expired,
    /// Every one
    All,
}

impl StateName {
    fn state(self) -> Option<ApprovalState> {
        match self {
            Self::Requested => Some(ApprovalState::Requested),
            Self::Approved => Some(ApprovalState::Approved),
            Self::Rejected => Some(ApprovalState::Rejected),
            Self::Expired => Some(ApprovalState::Expired),
            Self::All => None,
        }
    }
}

pub(super) async fn run(args: ApprovalArgs) -> Result<Exit, CliError> {
    let session = Session { client: Client::new(&args.server)?, output: args.server.output };
    match args.command {
        ApprovalCommand::List { state, limit } => {
            let query: Vec<_> = state.state().map(|state| ("state", state.name())).into_iter().collect();
            let approvals: Vec<ApprovalView> = session.client.list("v1/approvals", &query, limit).await?;
            let headings = ["ID", "STATE", "REQUESTED BY", "UNTIL", "WHAT"];
            print_list(session.output, &approvals, headings, row, "no approval is like that");
            Ok(Exit::Done)
        }
        ApprovalCommand::Show { id } => {
            let shown = Shown::read(&session, id).await?;
            match session.output {
                Output::Json => print_json(&shown.view),
                Output::Text => print(&shown.text),
            }
            Ok(Exit::Done)
        }
        ApprovalCommand::Approve { id, payload_sha256, yes, reason, no_wait } => {
            let shown = Shown::read(&session, id).await?;
            eprintln!("{}", shown.text);
            let named = match payload_sha256 {
                Some(named) if named.eq_ignore_ascii_case(&shown.payload_sha256) => true,
                Some(named) => {
                    return Err(CliError::Payload(format!(
                        "this is not what was looked at: its SHA-256 is {}, and not {}",
                        shown.payload_sha256,
                        escape(&named)
                    )));
                }
                None => false,
            };
            if !yes && !named {
                confirm("approve this?")?;
            }
            shown.decide(&session, id, "approve", reason, !no_wait).await
        }
        ApprovalCommand::Reject { id, reason } => {
            let shown = Shown::read(&session, id).await?;
            shown.decide(&session, id, "reject", reason, false).await
        }
    }
}

fn row(approval: &ApprovalView) -> [String; 5] {
    [
        approval.id.to_string(),
        approval.state.name().into(),
        approval.requested_by.clone(),
        time(approval.expires_at),
        approval.summary.clone(),
    ]
}

/// An approval as the operator sees it.
struct Shown {
    view: Value,
    text: String,
    /// Of the command that is in `text`.
    payload_sha256: String,
}

impl Shown {
    async fn read(session: &Session, id: Uuid) -> Result<Self, CliError> {
        let view: Value = session.client.get(&format!("v1/approvals/{id}"), &[]).await?;
        let approval: ApprovalView = serde_json::from_value(view.clone()).map_err(|error| {
            CliError::Answer(format!("this version of ekm does not understand the approval: {error}"))
        })?;
        let payload_sha256 = sha256_of(&view["command"]);
        // Whoever approves must not have to believe the server about what the hash is of.
        if !payload_sha256.eq_ignore_ascii_case(&approval.payload_sha256) {
            return Err(CliError::Payload(format!(
                "the server's SHA-256 {} is not that of the command that it shows, {payload_sha256}; do not approve this",
                escape(&approval.payload_sha256)
            )));
        }
        Ok(Self { text: describe(&approval, &view["command"]), view, payload_sha256 })
    }

    async fn decide(
        self,
        session: &Session,
        id: Uuid,
        verb: &str,
        reason: String,
        wait: bool,
    ) -> Result<Exit, CliError> {
        let decision = Decision { payload_sha256: self.payload_sha256, reason };
        let result = session.client.decide(&id.to_string(), verb, &decision).await?;
        if verb == "approve" {
            return session.report(&result, wait).await;
        }
        match session.output {
            Output::Json => print_json(&result),
            Output::Text => print(&format!("{id}: rejected, revision {}{}", result.revision, diff(&result.changes))),
        }
        Ok(Exit::Done)
    }
}

/// Of the canonical JSON: keys sorted, no blanks.
fn sha256_of(command: &Value) -> String {
    Hash::of(command.to_string().as_bytes()).to_string()
}

fn describe(approval: &ApprovalView, command: &Value) -> String {
    let text = fields(&[
        ("approval", approval.id.to_string()),
        ("state", approval.state.name().into()),
        ("what", approval.summary.clone()),
        ("requested by", approval.requested_by.clone()),
        ("reason", approval.reason.clone()),
        ("requested", time(approval.requested_at)),
        ("until", time(approval.expires_at)),
        ("decided by", approval.decided_by.clone().unwrap_or_default()),
        ("decided", approval.decided_at.map(time).unwrap_or_default()),
        ("SHA-256", approval.payload_sha256.clone()),
    ]);
    format!("{text}\n\n{}", json(command))
}

/// Asks on the terminal; without one, `--yes` has to say it.
pub(super) fn confirm(question: &str) -> Result<(), CliError> {
    if !std::io::stdin().is_terminal() {
        return Err(CliError::NotConfirmed("nobody can be asked without a terminal; add --yes".into()));
    }
    eprint!("{question} [y/N] ");
    let _ = std::io::stderr().flush();
    let mut answer = String::new();
    let _ = std::io::stdin().read_line(&mut answer);
    match answer.trim() {
        "y" | "Y" | "yes" => Ok(()),
        _ => Err(CliError::NotConfirmed("nothing was done".into())),
    }
}

#[cfg(test)]
mod tests {
    use aws_lc_rs::digest::{SHA256, digest};
    use serde_json::json;

    use super::*;

    #[test]
    fn the_hash_is_of_the_sorted_command_without_blanks() {
        let command: Value =
            serde_json::from_str(r#"{"version": 1, "type": "key-destroy", "path": "v0/keys/a"}"#).unwrap();
        let canonical = r#"{"path":"v0/keys/a","type":"key-destroy","version":1}"#;
        let expected: String =
            digest(&SHA256, canonical.as_bytes()).as_ref().iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(sha256_of(&command), expected);
        assert_ne!(sha256_of(&json!({"type": "key-destroy", "path": "v0/keys/b"})), expected);
    }

    #[test]
    fn what_is_approved_is_shown_whole_and_cannot_steer_the_terminal() {
        let command = json!({"type": "key-destroy", "path": "v0/keys/a"});
        let approval: ApprovalView = serde_json::from_value(json!({
            "id": Uuid::nil(), "state": "requested", "summary": "destroy\u{1b}[2J", "command": command, "payload_sha256": "ab",
            "requested_by": "ann", "reason": "", "requested_at": "2026-11-22T10:00:00Z", "expires_at": "2026-11-29T10:00:00Z",
        }))
        .unwrap();
        let text = describe(&approval, &command);
        assert!(
            text.contains("\"path\": \"v0/keys/a\"") && text.contains("until         2026-11-29T10:00:00Z"),
            "{text}"
        );
        assert!(!text.contains('\u{1b}'), "{text}");
    }
}
