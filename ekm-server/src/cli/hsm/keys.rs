//! Which keys are on which replica: `ekm hsm verify`, `replicate`, `add`, `retire`.

use std::io::IsTerminal;

use serde_json::json;

use super::super::change::{ChangeArgs, Session};
use super::super::error::{CliError, Exit};
use super::super::output::{escape, print, print_list};
use super::drain::wait_until_idle;
use crate::admin::api::{Command, HsmFinding, HsmVerified, HsmVerify};
use crate::process::Output;

/// What was found on the replicas that were looked at.
struct Found {
    checked: u64,
    findings: Vec<HsmFinding>,
    away: Vec<String>,
}

/// Page by page, so that progress can be seen and nothing is lost when it is stopped.
async fn look(session: &Session, mut request: HsmVerify) -> Result<Found, CliError> {
    let terminal = std::io::stderr().is_terminal();
    let mut found = Found { checked: 0, findings: Vec::new(), away: Vec::new() };
    loop {
        let page: HsmVerified = session.client.ask("v1/hsm/verify", &json!(request)).await?;
        found.checked += page.checked;
        found.findings.extend(page.findings);
        if terminal {
            eprint!("\r\u{1b}[K{} of {} keys, {} findings", found.checked, page.keys, found.findings.len());
        }
        if page.next.is_none() {
            found.away = page.away;
            break;
        }
        request.after = page.next;
    }
    if terminal {
        eprintln!();
    }
    for replica in &found.away {
        eprintln!("{} is away: nobody has looked at it", escape(replica));
    }
    Ok(found)
}

impl Found {
    fn print(&self, output: Output, none: &str) {
        let headings = ["KEY", "VERSION", "REPLICA", "REPAIRED", "PROBLEM"];
        print_list(output, &self.findings, headings, finding_row, none);
    }

    fn verdict(&self) -> Result<Exit, CliError> {
        let open = self.findings.iter().filter(|finding| !finding.repaired).count();
        match open {
            0 if self.away.is_empty() => Ok(Exit::Done),
            0 => Err(CliError::Findings(format!("{} of the replicas could not be looked at", self.away.len()))),
            _ => {
                let checked = self.checked;
                Err(CliError::Findings(format!("{open} of {checked} keys are not on every replica as they should be")))
            }
        }
    }
}

fn finding_row(finding: &HsmFinding) -> [String; 5] {
    [
        finding.key.clone(),
        finding.version.to_string(),
        finding.replica.clone(),
        if finding.repaired { "yes" } else { "no" }.into(),
        finding.problem.clone(),
    ]
}

pub(super) async fn verify(session: &Session, repair: bool) -> Result<Exit, CliError> {
    let found = look(session, HsmVerify { after: None, repair, only: None, without: None }).await?;
    found.print(session.output, "every replica that is here holds every key as it should");
    found.verdict()
}

pub(super) async fn replicate(session: &Session, to: Option<String>) -> Result<Exit, CliError> {
    let found = look(session, HsmVerify { after: None, repair: true, only: to, without: None }).await?;
    found.print(session.output, "nothing was missing");
    found.verdict()
}

pub(super) async fn add(session: &Session, name: &str) -> Result<Exit, CliError> {
    let everything = |repair| HsmVerify { after: None, repair, only: Some(name.into()), without: None };
    let given = look(session, everything(true)).await?;
    given.print(session.output, "it has every key already");
    given.verdict()?;
    // What it was given, and what it had, as it is there now.
    let found = look(session, everything(false)).await?;
    found.verdict()?;
    if let Output::Text = session.output {
        let (name, given) = (escape(name), given.findings.len());
        print(&format!(
            "{name} holds {} keys as it should, {given} of them given to it now; 'ekm hsm status' shows whether it is serving",
            found.checked
        ));
    }
    Ok(Exit::Done)
}

pub(super) async fn retire(session: &Session, name: &str, change: &ChangeArgs) -> Result<Exit, CliError> {
    let others =
        look(session, HsmVerify { after: None, repair: false, only: None, without: Some(name.into()) }).await?;
    if !others.findings.is_empty() {
        others.print(session.output, "");
    }
    others.verdict()?;
    let command = Command::HsmDrain { name: name.into(), force: false };
    let exit = session.change(change, command, None).await?;
    if change.dry_run {
        return Ok(exit);
    }
    wait_until_idle(session, name).await?;
    if let Output::Text = session.output {
        print(&format!(
            "Now take the table of {0} out of every frontend's configuration and restart one after the other, then destroy its keys with \
             the vendor's tools. 'ekm hsm resume {0}' takes all of this back until then, and forgets it afterwards.",
            escape(name)
        ));
    }
    Ok(exit)
}
