//! `ekm policy`: policies that keys can share, and questions to them.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use ekm_core::caller::Caller;
use ekm_core::justification::Justification;
use ekm_core::policy::{InvalidPolicy, Justifications, Policy, Preset, Request, Verb, explain, lint};
use ekm_core::{Algorithm, KeyPath};
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::change::{ChangeArgs, Session};
use super::client::{Client, ServerArgs};
use super::error::{CliError, Exit};
use super::output::{escape, escape_lines, fields, print, print_json, print_list, time};
use crate::admin::api::{Command, ExplainRequest, FormerPolicyView, PolicyChoice, PolicyView};
use crate::process::Output;
use crate::start_error::StartError;

#[derive(Args)]
#[command(after_help = "Examples:
  ekm policy lint payments.json
  ekm policy create payments payments.json --reason 'TICKET-7'
  ekm policy explain --policy payments --caller service-1@gcp-sa-ekms.iam.gserviceaccount.com --verb wrap
  ekm policy explain --file payments.json --caller a@example.com --verb unwrap --at 2026-12-24T18:00:00Z
  ekm policy set payments payments.json --final --reason 'incident 4711'    # denies at once

The language of policies is described in docs/policies.md.")]
pub(super) struct PolicyArgs {
    #[command(flatten)]
    server: ServerArgs,
    #[command(subcommand)]
    command: PolicyCommand,
}

#[derive(Subcommand)]
enum PolicyCommand {
    /// Make a policy that keys can share
    Create {
        /// Its name: 1 to 63 of a-z 0-9 - _ .
        name: String,
        /// The policy in JSON
        file: PathBuf,
        /// For people
        #[arg(long, value_name = "TEXT", default_value = "")]
        description: String,
        #[command(flatten)]
        change: ChangeArgs,
    },
    /// List the policies
    List {
        /// How many at most
        #[arg(long, value_name = "N")]
        limit: Option<usize>,
    },
    /// Show a policy, and what the linter says about it
    Show {
        /// Its name; 'ekm key show' has that of a key's own policy
        name: String,
    },
    /// Replace a policy, for every key that has it
    ///
    /// If somebody changes it at the same time, nothing is done.
    Set {
        /// Its name
        name: String,
        /// The policy in JSON
        file: PathBuf,
        /// For people [default: as it is]
        #[arg(long, value_name = "TEXT")]
        description: Option<String>,
        /// Deny at once what is not allowed any more, whatever the catalog's denial delay is
        #[arg(long = "final")]
        is_final: bool,
        #[command(flatten)]
        change: ChangeArgs,
    },
    /// Deny at once what earlier changes of a policy do not allow any more
    ///
    /// With a denial delay in the catalog's settings, what a policy allowed until it was changed is first answered with 503, which
    /// costs no key version at Google, and becomes a denial by itself after that time. 'ekm policy show' says what is not final yet.
    Confirm {
        /// Its name
        name: String,
        #[command(flatten)]
        change: ChangeArgs,
    },
    /// List the presets for justifications, and what each stands for; needs no server
    Presets,
    /// Ask a policy whether a request would be allowed, and why; a file is asked without a server
    Explain(ExplainArgs),
    /// Say what a policy may do that its author did not mean; needs no server
    Lint {
        /// The policy in JSON
        file: PathBuf,
    },
}

#[derive(Args)]
struct ExplainArgs {
    #[command(flatten)]
    policy: Asked,
    /// The e-mail address in the token
    #[arg(long, value_name = "EMAIL")]
    caller: String,
    /// What is asked for
    #[arg(long, value_parser = clap::builder::PossibleValuesParser::new(Verb::ALL.map(Verb::name)))]
    verb: String,
    /// The Key Access Justification, such as CUSTOMER_INITIATED_ACCESS [default: a request without one]
    #[arg(long, value_name = "REASON")]
    justification: Option<String>,
    /// The Cloud KMS resource name [default: a request without one]
    #[arg(long, value_name = "NAME")]
    resource: Option<String>,
    /// When, such as 2026-12-24T18:00:00Z [default: now]
    #[arg(long, value_name = "TIME", value_parser = moment)]
    at: Option<OffsetDateTime>,
}

#[derive(Args)]
#[group(required = true, multiple = false)]
struct Asked {
    /// Ask the policy of this key
    #[arg(long, value_name = "PATH")]
    key: Option<KeyPath>,
    /// Ask the policy of this name
    #[arg(long, value_name = "NAME")]
    policy: Option<String>,
    /// Ask the policy in this file
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
}

fn moment(text: &str) -> Result<OffsetDateTime, String> {
    OffsetDateTime::parse(text, &Rfc3339).map_err(|_| "write a time like 2026-12-24T18:00:00Z".into())
}

/// The policy of a key, as the command line names it.
#[derive(Args)]
pub(super) struct ChoiceArgs {
    #[command(flatten)]
    source: Source,
    /// With --caller: which justifications are good enough, one of 'ekm policy presets' [default: any]
    #[arg(long, value_name = "PRESET", conflicts_with_all = ["policy", "policy_file"], value_parser = preset)]
    justifications: Option<Preset>,
}

fn preset(name: &str) -> Result<Preset, String> {
    let names = Preset::ALL.map(Preset::name).join(", ");
    Preset::from_name(name).ok_or_else(|| format!("the presets are {names}"))
}

#[derive(Args)]
#[group(required = true, multiple = false)]
struct Source {
    /// A policy that is there, by its name ('ekm policy list')
    #[arg(long, value_name = "NAME")]
    policy: Option<String>,
    /// A policy of the key's own: who may use it; '*' in it stands for any run of characters. Repeat for more
    #[arg(long = "caller", value_name = "EMAIL")]
    callers: Vec<String>,
    /// A policy of the key's own, in JSON
    #[arg(long, value_name = "FILE")]
    policy_file: Option<PathBuf>,
}

impl ChoiceArgs {
    /// For a key that does this.
    pub(super) fn choice(self, algorithm: Algorithm) -> Result<PolicyChoice, CliError> {
        let Source { policy, callers, policy_file } = self.source;
        if let Some(name) = policy {
            return Ok(PolicyChoice::Named(name));
        }
        if let Some(file) = policy_file {
            return Ok(PolicyChoice::Own(read_policy(&file)?.1));
        }
        let verbs: Vec<_> = Verb::ALL.into_iter().filter(|verb| verb.uses(algorithm)).collect();
        let mut document = json!({"rules": [{"callers": callers, "verbs": verbs}]});
        if let Some(preset) = self.justifications {
            document["rules"][0]["justifications"] = json!({"preset": preset});
        }
        parse(&document.to_string())?;
        Ok(PolicyChoice::Own(document))
    }
}

/// A policy from a file, checked before it is sent, and as it is written there.
fn read_policy(file: &Path) -> Result<(Policy, Value), CliError> {
    let text = std::fs::read_to_string(file).map_err(StartError::io(format!("cannot read {}", file.display())))?;
    let policy = parse(&text)?;
    let document = serde_json::from_str(&text).map_err(|error| CliError::Start(InvalidPolicy::from(error).into()))?;
    Ok((policy, document))
}

fn parse(text: &str) -> Result<Policy, CliError> {
    Ok(Policy::parse(text).map_err(StartError::from)?)
}

pub(super) async fn run(args: PolicyArgs) -> Result<Exit, CliError> {
    let output = args.server.output;
    let session = || Ok::<_, CliError>(Session { client: Client::new(&args.server)?, output });
    match args.command {
        PolicyCommand::Create { name, file, description, change } => {
            let (_, policy) = read_policy(&file)?;
            session()?.change(&change, Command::PolicyCreate { name, policy, description }, None).await
        }
        PolicyCommand::Set { name, file, description, is_final, change } => {
            let (_, policy) = read_policy(&file)?;
            let session = session()?;
            let seen: PolicyView = session.client.get(&format!("v1/policies/{name}"), &[]).await?;
            let description = description.unwrap_or(seen.description);
            let command = Command::PolicySet { name, policy, description, is_final };
            session.change(&change, command, Some(seen.revision)).await
        }
        PolicyCommand::Confirm { name, change } => {
            session()?.change(&change, Command::PolicyConfirm { name }, None).await
        }
        PolicyCommand::Presets => {
            let presets = Preset::ALL.map(|preset| (preset.name(), Justifications::from(preset).to_string()));
            let json = |(name, meaning): &(&str, String)| json!({"name": name, "meaning": meaning});
            match output {
                Output::Json => print_json(&presets.iter().map(json).collect::<Vec<_>>()),
                Output::Text => presets.iter().for_each(|(_, meaning)| print(meaning)),
            }
            Ok(Exit::Done)
        }
        PolicyCommand::List { limit } => {
            let policies: Vec<PolicyView> = session()?.client.list("v1/policies", &[], limit).await?;
            let row = |policy: &PolicyView| {
                let rules = policy.policy["rules"].as_array().map_or(0, Vec::len);
                let warnings = policy.warnings.len().to_string();
                [
                    policy.name.clone(),
                    rules.to_string(),
                    warnings,
                    policy.revision.to_string(),
                    policy.description.clone(),
                ]
            };
            let headings = ["NAME", "RULES", "WARNINGS", "REVISION", "DESCRIPTION"];
            print_list(output, &policies, headings, row, "no policies yet; 'ekm policy create NAME FILE' makes one");
            Ok(Exit::Done)
        }
        PolicyCommand::Show { name } => {
            let policy: PolicyView = session()?.client.get(&format!("v1/policies/{name}"), &[]).await?;
            match output {
                Output::Json => print_json(&policy),
                Output::Text => print(&describe(&policy)),
            }
            Ok(Exit::Done)
        }
        PolicyCommand::Explain(question) => ask(question, output, session).await,
        PolicyCommand::Lint { file } => {
            let warnings = lint(&read_policy(&file)?.0, OffsetDateTime::now_utc());
            match output {
                Output::Json => print_json(&warnings),
                Output::Text if warnings.is_empty() => print("fine: no warnings"),
                Output::Text => warnings.iter().for_each(|warning| {
                    print(&format!("warning[{}]: rule {}: {}", warning.code, warning.rule, escape(&warning.text)));
                }),
            }
            Ok(Exit::Done)
        }
    }
}

fn describe(policy: &PolicyView) -> String {
    let mut text = fields(&[
        ("name", policy.name.clone()),
        ("id", policy.id.to_string()),
        ("description", policy.description.clone()),
        ("revision", policy.revision.to_string()),
    ]);
    text += &format!("\n\n{}", super::output::json(&policy.policy));
    text += "\n\njustifications";
    for rule in &policy.justifications {
        text += &format!("\n{}", escape(rule));
    }
    text += &not_final(&policy.not_final, &format!("ekm policy confirm {}", policy.name));
    for warning in &policy.warnings {
        text += &format!("\nwarning: {}", escape(warning));
    }
    text
}

/// What is answered with 503 until a change is final.
pub(super) fn not_final(former: &[FormerPolicyView], confirm: &str) -> String {
    if former.is_empty() {
        return String::new();
    }
    let mut text = format!(
        "\n\nnot final: what one of these allowed, and the policy does not allow any more, is answered with 503 [denial_pending];\n\
         '{}' denies it at once",
        escape(confirm)
    );
    for former in former {
        text += &format!("\nuntil {}: {}", time(former.final_at), escape(&former.policy.to_string()));
    }
    text
}

async fn ask(
    args: ExplainArgs,
    output: Output,
    session: impl FnOnce() -> Result<Session, CliError>,
) -> Result<Exit, CliError> {
    let explanation = match &args.policy.file {
        Some(file) => explain_here(&read_policy(file)?.0, &args),
        None => {
            let (key, policy_name) = (args.policy.key, args.policy.policy);
            let ExplainArgs { caller, verb, justification, resource, at, .. } = args;
            let request = ExplainRequest { key, policy_name, policy: None, caller, verb, justification, resource, at };
            let request = serde_json::to_value(&request).expect("a request has no maps");
            session()?.client.ask("v1/explain", &request).await?
        }
    };
    match output {
        Output::Json => print_json(&explanation),
        Output::Text => print(&escape_lines(&explanation_text(&explanation))),
    }
    Ok(Exit::Done)
}

fn explain_here(policy: &Policy, args: &ExplainArgs) -> Value {
    let caller =
        Caller { email: args.caller.clone(), email_verified: true, subject: String::new(), issuer: String::new() };
    let justification = args.justification.as_deref().map_or(Justification::Missing, Justification::from_name);
    let request = Request {
        caller: &caller,
        verb: Verb::from_name(&args.verb).expect("one of the values that clap accepts"),
        resource: args.resource.as_deref(),
        justification: &justification,
        now: args.at.unwrap_or_else(OffsetDateTime::now_utc),
    };
    serde_json::to_value(explain(policy, &request)).expect("an explanation has no maps")
}

/// The same text for an explanation from the server and for one that was made here.
fn explanation_text(explanation: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let allowed = explanation["allowed"] == true;
    let mut lines = format!("{}: {}", if allowed { "allowed" } else { "denied" }, text(&explanation["verdict"]));
    if let (Some(rule), false) = (explanation["rule"].as_u64(), allowed) {
        lines += &format!("; rule {rule} comes nearest");
    }
    if let Some(at) = explanation["final_at"].as_str() {
        lines +=
            &format!("\nnot final: a former policy allowed it, so it is answered with 503 [denial_pending] until {at}");
    }
    for rule in list(&explanation["rules"]) {
        let allows = if rule["allows"] == true { "allows it" } else { "does not allow it" };
        lines += &format!("\nrule {} {allows}", rule["rule"]);
        for test in list(&rule["tests"]) {
            let sign = if test["passed"] == true { '+' } else { '-' };
            lines += &format!("\n  {sign} {}: {}", text(&test["field"]), text(&test["because"]));
        }
    }
    lines
}
