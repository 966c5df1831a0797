//! What SIGHUP changes without a restart: who may call, and how much. The rest of the file is compared, and named if it has changed.

use std::path::PathBuf;
use std::sync::Arc;

use toml::{Table, Value};

use crate::auth::Authenticator;
use crate::config::Config;
use crate::router::DataPlane;

/// The configuration file, and what runs of it.
pub struct Reload {
    file: PathBuf,
    running: Table,
}

impl Reload {
    /// `config` runs, and was read from `file`.
    pub fn new(file: PathBuf, config: &Config) -> Self {
        Self { file, running: table(config) }
    }

    /// Reads the file again. What is wrong with it is logged, and what runs goes on.
    pub async fn apply(&mut self, plane: &DataPlane) {
        let config = match Config::read(&self.file) {
            Ok(config) => config,
            Err(error) => {
                tracing::error!(code = "config", %error, "the configuration was not read again; the running one stays");
                return;
            }
        };
        let (new, mut for_a_restart) = (table(&config), Vec::new());
        for (section, setting) in changed(&self.running, &new) {
            match (&*section, setting.as_deref()) {
                ("auth", _) => {
                    if let Err(problem) = replace_authenticator(&config, plane).await {
                        tracing::error!(code = "config", problem, "[auth] was not taken over; the running one stays");
                        continue;
                    }
                }
                ("limits", Some("caller_requests_per_s")) => plane.intake.set_rate(config.limits.caller_requests_per_s),
                (section, setting) => {
                    for_a_restart.push(setting.map_or(section.to_owned(), |setting| format!("{section}.{setting}")));
                    continue;
                }
            }
            take_over(&mut self.running, &new, &section, setting.as_deref());
            tracing::info!(section, setting, "configuration in use");
        }
        if !for_a_restart.is_empty() {
            let settings = for_a_restart.join(", ");
            tracing::warn!(code = "config_needs_restart", settings, "changed in the file, and in use after a restart");
        }
    }
}

/// A new one that cannot judge every token is not put in the place of one that can.
async fn replace_authenticator(config: &Config, plane: &DataPlane) -> Result<(), String> {
    let started = Authenticator::start(&config.auth, Arc::clone(&plane.metrics)).await;
    let authenticator = started.map_err(|error| error.to_string())?;
    if let Some((issuer, _)) = authenticator.key_set_ages().find(|(_, age)| age.is_none()) {
        return Err(format!("the key set of the issuer {issuer} cannot be had; send SIGHUP again when it can"));
    }
    plane.authenticator.store(Arc::new(authenticator));
    Ok(())
}

fn table(config: &Config) -> Table {
    Table::try_from(config).expect("a configuration that was parsed can be printed")
}

/// Of `[auth]` as a whole, of other tables each setting.
fn changed(old: &Table, new: &Table) -> Vec<(String, Option<String>)> {
    let mut found = Vec::new();
    for section in keys(old, new) {
        match (old.get(section), new.get(section)) {
            (old, new) if old == new => {}
            (Some(Value::Table(old)), Some(Value::Table(new))) if section != "auth" => {
                let settings = keys(old, new).filter(|setting| old.get(*setting) != new.get(*setting));
                found.extend(settings.map(|setting| (section.to_owned(), Some(setting.to_owned()))));
            }
            _ => found.push((section.to_owned(), None)),
        }
    }
    found
}

fn keys<'a>(old: &'a Table, new: &'a Table) -> impl Iterator<Item = &'a str> {
    let added = new.keys().filter(|key| !old.contains_key(*key));
    old.keys().chain(added).map(String::as_str)
}

fn take_over(running: &mut Table, new: &Table, section: &str, setting: Option<&str>) {
    let (running, new, name) = match (setting, running.get_mut(section), new.get(section)) {
        (Some(setting), Some(Value::Table(running)), Some(Value::Table(new))) => (running, new, setting),
        _ => (running, new, section),
    };
    match new.get(name) {
        Some(value) => running.insert(name.to_owned(), value.clone()),
        None => running.remove(name),
    };
}
