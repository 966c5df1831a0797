//! The conformance suite with everything that it can ask, against a service of ours.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::issuer::Issuer;
use crate::key_create;
use crate::process::{Ekm, ekm_binary};

/// Where a service of ours keeps its keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Custody {
    /// In its own process.
    Software,
    /// In a SoftHSM token.
    SoftHsm,
}

impl Custody {
    /// Those that a report is about.
    pub const ALL: [Self; 2] = [Self::Software, Self::SoftHsm];

    fn name(self) -> &'static str {
        match self {
            Self::Software => "`software`",
            Self::SoftHsm => "`hsm`, SoftHSM",
        }
    }

    /// The report on a new service, in JSON.
    pub fn check(self) -> Value {
        let ekm = match self {
            Self::Software => Ekm::dev(&[]),
            Self::SoftHsm => Ekm::dev(&["--softhsm"]),
        };
        run_conformance(&ekm)
    }
}

/// Asks everything.
pub fn run_conformance(ekm: &Ekm) -> Value {
    ekm.change(key_create("v0/keys/mine"));
    let mut signing = key_create("v0/keys/signing");
    signing["algorithm"] = json!("EC_SIGN_P256_SHA256");
    signing["policy"]["own"]["rules"][0]["verbs"] = json!(["asymmetricSign", "getPublicKey", "wrap", "unwrap"]);
    ekm.change(signing);
    let (issuer, now) = (ekm.issuer(), Issuer::now());
    let files = tempfile::tempdir().expect("a temporary directory");
    for (file, token) in [
        ("token", issuer.token()),
        ("expired", issuer.token_with(json!({"iat": now - 7200, "exp": now - 3600}))),
        ("audience", issuer.token_with(json!({"aud": "https://ekm.example.com"}))),
        ("denied", issuer.token_with(json!({"email": "service-1@gcp-sa-ekms.iam.gserviceaccount.com"}))),
    ] {
        fs::write(files.path().join(file), token).expect("writable");
    }
    let mut command = Command::new(ekm_binary());
    command
        .args(["conformance", "--url", &ekm.ready.base_url, "--token-file", "token", "--timeout-ms", "20000"])
        .args(["--key-path", "v0/keys/mine", "--other-key-path", "v0/keys/demo", "--sign-key-path", "v0/keys/signing"])
        .args(["--crypto-space", &ekm.ready.crypto_space_path, "--expired-token-file", "expired"])
        .args(["--wrong-audience-token-file", "audience", "--denied-token-file", "denied", "--output", "json"])
        .arg("--certificate")
        .arg(&ekm.ready.ca_file);
    command.current_dir(files.path()).stdin(Stdio::null()).env("EKM_DEADLINE_MS", "20000");
    let output = command.output().expect("ekm starts");
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}\n{}", ekm.log()))
}

/// The table in the documentation: a row for each check, a column for each service.
pub fn conformance_report(reports: &BTreeMap<Custody, Value>) -> String {
    let mut text = "# What `ekm conformance` finds in `ekm`\n\n\
        `make conformance` makes this table: the [suite](conformance.md) against a new service for each custody, with every option. CI compares.\n\n"
        .to_owned();
    for (custody, report) in reports {
        let count = |verdict: &str| report["summary"][verdict].as_u64().unwrap_or_default();
        let (passed, failed, differ, skipped) =
            (count("passed"), count("failed"), count("differing"), count("skipped"));
        let _ = writeln!(
            text,
            "- Custody {}: {passed} passed, {failed} failed, {differ} differ, {skipped} skipped.",
            custody.name()
        );
    }
    text += "\n| check | confidence | what is asked |";
    reports.keys().for_each(|custody| text += &format!(" {} |", custody.name()));
    text += "\n|---|---|---|";
    reports.keys().for_each(|_| text += "---|");
    text += "\n";
    let Some(first) = reports.values().next() else { return text };
    for (place, check) in first["checks"].as_array().into_iter().flatten().enumerate() {
        let field = |name: &str| check[name].as_str().unwrap_or_default().replace('|', "\\|");
        let _ = write!(text, "| `{}` | {} | {} |", field("id"), field("confidence"), field("title"));
        for report in reports.values() {
            let _ = write!(text, " {} |", report["checks"][place]["verdict"].as_str().unwrap_or_default());
        }
        text.push('\n');
    }
    text
}
