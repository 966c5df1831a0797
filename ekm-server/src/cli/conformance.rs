//! `ekm conformance`: a black-box check of any EKM against the protocol.

use std::io::IsTerminal;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use reqwest::Url;
use secrecy::SecretString;
use serde_json::json;

use super::error::{CliError, Exit};
use super::output::{Rows, escape, print, print_json};
use crate::conformance::{self, Confidence, Finding, Options, Target, Tokens, Verdict};
use crate::process::{Output, runtime};
use crate::remote::{RemoteEkm, Trust, read_certificates, read_token};

#[derive(Args)]
#[command(after_help = "Example, in the directory of a running 'ekm dev':
  ekm conformance --url https://localhost:8443 --ca-file tls/certificate.pem --token-file token  # from 'ekm dev token > token'")]
pub(super) struct ConformanceArgs {
    /// The EKM: https://host:port
    #[arg(long, value_name = "URL")]
    url: Url,
    /// A file that holds a valid ID token and nothing else
    #[arg(long, value_name = "FILE")]
    token_file: PathBuf,
    /// A key that the token's owner may wrap and unwrap with
    #[arg(long, value_name = "PATH", default_value = "v0/keys/demo")]
    key_path: String,
    /// Another one, which must not open the first one's blobs
    #[arg(long, value_name = "PATH")]
    other_key_path: Option<String>,
    /// A key that the token's owner may sign with
    #[arg(long, value_name = "PATH")]
    sign_key_path: Option<String>,
    /// A crypto space that the token's owner may make keys in; those made are destroyed again
    #[arg(long, value_name = "PATH")]
    crypto_space: Option<String>,
    /// A file with a token that was valid once
    #[arg(long, value_name = "FILE")]
    expired_token_file: Option<PathBuf>,
    /// A file with a token for another audience
    #[arg(long, value_name = "FILE")]
    wrong_audience_token_file: Option<PathBuf>,
    /// A file with a valid token of somebody who may not use the key
    #[arg(long, value_name = "FILE")]
    denied_token_file: Option<PathBuf>,
    /// Certificates that the EKM's is checked against, PEM [default: those of the system]
    #[arg(long, value_name = "FILE", conflicts_with = "certificates")]
    ca_file: Option<PathBuf>,
    /// The EKM's own certificate, PEM or DER, as an EKM connection pins it; repeat for more
    #[arg(long = "certificate", value_name = "FILE")]
    certificates: Vec<PathBuf>,
    /// Where the host is, instead of asking DNS
    #[arg(long, value_name = "IP:PORT")]
    address: Option<SocketAddr>,
    /// What to write into `Host` instead of the URL's host
    #[arg(long, value_name = "HOST")]
    host_header: Option<String>,
    /// Only checks whose id begins so, such as wrap or wrap.reason; repeat for more
    #[arg(long, value_name = "PREFIX")]
    only: Vec<String>,
    /// Let checks fail too that rest on a choice of this project's
    #[arg(long)]
    strict: bool,
    /// How long Cloud KMS would wait for an answer
    #[arg(long, value_name = "MS", env = "EKM_DEADLINE_MS", default_value_t = 150)]
    deadline_ms: u64,
    /// How long to wait for an answer here, so as to see it
    #[arg(long, value_name = "MS", default_value_t = 5000)]
    timeout_ms: u64,
    /// How to answer
    #[arg(long, value_enum, default_value = "text")]
    output: Output,
}

pub(super) fn run(args: &ConformanceArgs) -> Result<Exit, CliError> {
    let setup = CliError::ConformanceSetup;
    let trust = match &args.ca_file {
        Some(file) => Trust::Authorities(read_certificates(file).map_err(setup)?),
        None if args.certificates.is_empty() => Trust::System,
        None => {
            let leaf = |file: &PathBuf| Ok(read_certificates(file)?.swap_remove(0));
            Trust::Pins(args.certificates.iter().map(leaf).collect::<Result<_, _>>().map_err(setup)?)
        }
    };
    let ekm = RemoteEkm::new(&args.url, args.address, &trust).map_err(setup)?;
    let optional = |file: &Option<PathBuf>| file.as_deref().map(token).transpose();
    let options = Options {
        key_path: args.key_path.trim_matches('/').to_owned(),
        other_key_path: args.other_key_path.clone(),
        sign_key_path: args.sign_key_path.clone(),
        crypto_space: args.crypto_space.clone(),
        tokens: Tokens {
            good: token(&args.token_file)?,
            expired: optional(&args.expired_token_file)?,
            wrong_audience: optional(&args.wrong_audience_token_file)?,
            denied: optional(&args.denied_token_file)?,
        },
        timeout: Duration::from_millis(args.timeout_ms),
        deadline: Duration::from_millis(args.deadline_ms),
    };
    let target = Target::new(runtime()?, ekm.with_host_header(args.host_header.clone()), options);
    target.reach().map_err(|cause| setup(format!("cannot test {}: {cause}", args.url)))?;
    let findings = conformance::run(&target, &args.only, args.strict);
    let left = target.destroy_what_was_made();
    if !left.is_empty() {
        eprintln!("note: these keys were made, and could not be destroyed: {}", escape(&left.join(", ")));
    }
    if findings.is_empty() {
        return Err(setup(format!("no check's id begins with {}", args.only.join(" or "))));
    }
    report(args, &findings);
    let failed: Vec<_> = with(&findings, Verdict::Fail).map(|finding| finding.id).collect();
    match failed.is_empty() {
        // Where nothing could be asked, nothing is proven.
        true if with(&findings, Verdict::Pass).next().is_none() => {
            Err(CliError::NotConformant("no check passed: all were skipped, or differ".into()))
        }
        true => Ok(Exit::Done),
        false => Err(CliError::NotConformant(format!(
            "{} of {} checks failed: {}",
            failed.len(),
            findings.len(),
            failed.join(", ")
        ))),
    }
}

fn with(findings: &[Finding], verdict: Verdict) -> impl Iterator<Item = &Finding> {
    findings.iter().filter(move |finding| finding.verdict == verdict)
}

fn report(args: &ConformanceArgs, findings: &[Finding]) {
    let count = |verdict| with(findings, verdict).count();
    let (passed, failed) = (count(Verdict::Pass), count(Verdict::Fail));
    let (differing, skipped) = (count(Verdict::Differs), count(Verdict::Skipped));
    if args.output == Output::Json {
        let summary = json!({"passed": passed, "failed": failed, "differing": differing, "skipped": skipped});
        print_json(&json!({"url": args.url.as_str(), "strict": args.strict, "summary": summary, "checks": findings}));
        return;
    }
    let mut rows = Rows::new(["VERDICT", "CHECK", "CONFIDENCE", "WHAT", "EXPECTED", "GOT"]);
    for finding in findings {
        let confidence = match finding.confidence {
            Confidence::Certain => "certain",
            Confidence::Likely => "likely",
            Confidence::Choice => "choice",
        };
        rows.push([
            finding.verdict.name().into(),
            finding.id.into(),
            confidence.into(),
            finding.title.into(),
            finding.expected.into(),
            finding.got.clone(),
        ]);
    }
    print(&rows.render(std::io::stdout().is_terminal()));
    print(&format!("\n{passed} passed, {failed} failed, {differing} differ, {skipped} skipped"));
}

fn token(file: &Path) -> Result<SecretString, CliError> {
    read_token(file).map_err(CliError::ConformanceSetup)
}
