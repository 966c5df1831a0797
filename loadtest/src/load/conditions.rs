//! Under which conditions a run was made: without them its figures mean nothing.

use std::fs;
use std::process::Command;

use serde::{Deserialize, Serialize};

use crate::scenario::{Protocol, Scenario};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Conditions {
    /// RFC 3339, UTC.
    pub at: String,
    pub commit: String,
    /// `debug` or `release`: the generator's, and with a rig the service's.
    pub build: String,
    pub cpu: String,
    pub cores: usize,
    pub kernel: String,
    /// Over the last minute, before the run.
    pub load_average: f64,
    /// What was asked.
    pub target: String,
    pub protocol: Protocol,
    pub connections: usize,
    pub timeout_ms: f64,
    pub seed: u64,
}

impl Conditions {
    /// Now. `pinned`: the generator has cores of its own.
    pub fn now(scenario: &Scenario, url: Option<&str>, pinned: bool) -> Self {
        let read = |file: &str| fs::read_to_string(file).unwrap_or_default();
        let cpuinfo = read("/proc/cpuinfo");
        let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
        let client = &scenario.client;
        Self {
            at: now(),
            commit: commit(),
            build: if cfg!(debug_assertions) { "debug" } else { "release" }.into(),
            cpu: model.map_or("unknown", |(_, model)| model).into(),
            // With --pin, this thread has not all of them.
            cores: cpuinfo.lines().filter(|line| line.starts_with("processor")).count(),
            kernel: read("/proc/sys/kernel/osrelease").trim().into(),
            load_average: read("/proc/loadavg")
                .split(' ')
                .next()
                .and_then(|text| text.parse().ok())
                .unwrap_or_default(),
            target: url.map_or_else(|| rig(scenario), |url| format!("{url}, over the network as it is"))
                + if pinned { ", the generator on cores of its own" } else { "" }
                + if scenario.hostile.is_empty() {
                    ""
                } else {
                    "; hostile clients beside the generator, behind all others"
                },
            protocol: client.protocol,
            connections: client.connections,
            timeout_ms: client.timeout_ms,
            seed: scenario.seed,
        }
    }
}

fn rig(scenario: &Scenario) -> String {
    let rig = &scenario.rig;
    let device = rig.device_ms.map_or_else(|| "no device time".into(), |ms| format!("{ms} ms a call"));
    let frontends = if rig.frontends == 1 { "1 frontend".into() } else { format!("{} frontends", rig.frontends) };
    let custody = match rig.custody {
        crate::scenario::Custody::Software => "custody software".into(),
        custody => format!(
            "custody {}, SoftHSM with {} sessions, {device}, isolation {}",
            custody.name(),
            rig.sessions,
            rig.isolation
        ),
    };
    format!("{frontends} on this machine, {custody}")
}

fn now() -> String {
    let format = &time::format_description::well_known::Rfc3339;
    let now = time::OffsetDateTime::now_utc().replace_nanosecond(0);
    now.ok().and_then(|now| now.format(format).ok()).unwrap_or_default()
}

/// Of the working directory, as git says it; `+` if something was changed since.
fn commit() -> String {
    let git = |arguments: &[&str]| {
        let output = Command::new("git").args(arguments).output().ok().filter(|output| output.status.success())?;
        Some(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let changed = git(&["status", "--porcelain", "--untracked-files=no"]).is_some_and(|text| !text.is_empty());
    git(&["rev-parse", "--short", "HEAD"])
        .map_or_else(|| "unknown".into(), |commit| commit + if changed { "+" } else { "" })
}
