//! What `ekm simulate-kms` says: every call with what Cloud KMS makes of it, and what came of that.

use std::io::IsTerminal;

use serde_json::{Value, json};

use super::super::error::{CliError, Exit};
use super::super::output::{Rows, fields, print, print_json};
use crate::process::Output;
use crate::simulator::calling::Attempt;
use crate::simulator::cloud_kms::{CloudKms, Failure};
use crate::simulator::error_domain::{ErrorDomain, KmsError};
use crate::simulator::state::{KeyManagementMode, State};

/// What an operation has to say, as text and as JSON.
pub(super) struct Done {
    pub(super) text: String,
    pub(super) json: Value,
}

impl Done {
    pub(super) fn new(text: impl Into<String>, json: Value) -> Self {
        Self { text: text.into(), json }
    }
}

pub(super) fn version_done(kms: &CloudKms, name: &str, number: u32, what: &str) -> Done {
    let version = &kms.state.keys[name].versions[&number];
    let place = &version.place;
    let text = format!("key '{name}' {what} ({}, {})", place.protection_level(), place.name());
    let json = json!({
        "key": name, "version": number, "state": version.state, "protection_level": place.protection_level(),
        "place": place.name(),
    });
    Done::new(text, json)
}

pub(super) fn show(state: &State) -> Done {
    let mut text = fields(&[
        ("project", state.project_number.to_string()),
        ("service agent", state.service_agent()),
        ("key ring", state.key_ring.clone()),
    ]);
    if let Some(connection) = &state.connection {
        let addresses: Vec<_> = connection.addresses.iter().map(ToString::to_string).collect();
        let mode = match connection.key_management_mode {
            KeyManagementMode::Manual => "MANUAL",
            KeyManagementMode::CloudKms => "CLOUD_KMS",
        };
        text += "\n\n";
        text += &fields(&[
            ("connection to", connection.hostname.clone()),
            ("endpoints", addresses.join(", ")),
            ("certificates", connection.certificates.len().to_string()),
            ("mode", mode.into()),
            ("crypto space", connection.crypto_space_path.clone().unwrap_or_default()),
        ]);
    }
    let mut rows = Rows::new(["KEY", "VERSION", "STATE", "LEVEL", "PLACE", "ALGORITHM", "WHY"]);
    for (name, key) in &state.keys {
        for (number, version) in &key.versions {
            let primary = if *number == key.primary { " primary" } else { "" };
            rows.push([
                name.clone(),
                format!("{number}{primary}"),
                version.state.name().into(),
                version.place.protection_level().into(),
                version.place.name().into(),
                key.algorithm.clone(),
                version.disabled_because.clone().unwrap_or_default(),
            ]);
        }
    }
    if !state.keys.is_empty() {
        text += "\n\n";
        text += &rows.render(std::io::stdout().is_terminal());
    }
    let mut json = serde_json::to_value(state).expect("map keys are names and numbers");
    for key in json["keys"].as_object_mut().into_iter().flat_map(|keys| keys.values_mut()) {
        for version in key["versions"].as_object_mut().into_iter().flat_map(|versions| versions.values_mut()) {
            version.as_object_mut().map(|version| version.remove("inner_key"));
        }
    }
    json["service_agent"] = json!(state.service_agent());
    Done { text, json }
}

/// Prints what the EKM was asked, what Cloud KMS made of it, and what came of that.
pub(super) fn answer(output: Output, kms: &CloudKms, done: Result<Done, Failure>) -> Result<Exit, CliError> {
    let attempts = &kms.caller.attempts;
    let error = match &done {
        Err(Failure::Usage(problem)) => return Err(CliError::Simulator(problem.clone())),
        Err(Failure::Kms(error)) => Some(error.clone()),
        Ok(_) => None,
    };
    match output {
        Output::Json => {
            let result = done.as_ref().map_or(Value::Null, |done| done.json.clone());
            let error = error.as_ref().map(|error| {
                json!({
                    "name": error.name(), "code": error.code, "message": error.message, "effect": error.effect,
                    "retriable": error.domain.is_some_and(ErrorDomain::is_retried),
                })
            });
            print_json(&json!({"ok": error.is_none(), "result": result, "error": error, "calls": attempts}));
        }
        Output::Text => {
            let calls = table(attempts, error.as_ref());
            let text = done.as_ref().map_or("", |done| done.text.as_str());
            let parts: Vec<_> = [calls.as_str(), text].into_iter().filter(|part| !part.is_empty()).collect();
            if !parts.is_empty() {
                print(&parts.join("\n\n"));
            }
        }
    }
    let Some(error) = error else { return Ok(Exit::Done) };
    let effect = error.effect.as_ref().map(|effect| format!("; {effect}")).unwrap_or_default();
    Err(CliError::CloudKms(format!("{}: {}{effect}", error.name(), error.message)))
}

fn table(attempts: &[Attempt], error: Option<&KmsError>) -> String {
    if attempts.is_empty() {
        return String::new();
    }
    let mut rows = Rows::new(["METHOD", "ENDPOINT", "HTTP", "MS", "CLOUD KMS REPORTS", "EFFECT", "THE EKM SAID"]);
    for (at, attempt) in attempts.iter().enumerate() {
        let is_last = at + 1 == attempts.len();
        let effect = match error.and_then(|error| error.effect.clone()).filter(|_| is_last) {
            Some(effect) => effect,
            None if attempt.retried => "tried again".into(),
            None => String::new(),
        };
        rows.push([
            attempt.method.verb().into(),
            attempt.endpoint.clone(),
            attempt.status.map_or_else(String::new, |status| status.to_string()),
            format!("{:.1}", attempt.took_ms),
            attempt.error.map_or("ok", ErrorDomain::name).into(),
            effect,
            attempt.detail.clone(),
        ]);
    }
    rows.render(std::io::stdout().is_terminal())
}
