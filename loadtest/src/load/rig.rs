//! `--rig`: frontends of our own, with the keys of the scenario.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use ekm_tests::{Deployment, Directory, Effect, Ekm, Fault, FaultyModule, Issuer, SOFTHSM, set_up};
use rustix::process::Signal;
use serde_json::json;

use crate::scenario::{Custody, Rig as Settings, Scenario};
use crate::target::{Target, Tokens};

/// The crypto space of the keys.
const SPACE: &str = "v0/cryptospaces/load";

/// Of the configuration that `ekm dev` writes and the harness changes.
const DEADLINE: &str = "request_deadline_ms = 20000";

/// An HSM may be busy for a moment.
const ATTEMPTS: usize = 10;

/// Running frontends.
pub struct Rig {
    settings: Settings,
    frontends: Vec<Frontend>,
    /// Ends after them.
    deployment: Option<Deployment>,
}

struct Frontend {
    /// `None` while it is restarted, or after it was killed.
    ekm: Option<Ekm>,
    directory: Directory,
    /// Its HSM, and the number of the fault that is its device time.
    device: Option<(FaultyModule, u64)>,
}

impl Rig {
    /// Starts the frontends, and makes the keys.
    pub fn start(scenario: &Scenario) -> Self {
        let settings = scenario.rig.clone();
        let arguments: &[&str] = if settings.custody == Custody::Software { &[] } else { &["--softhsm"] };
        let mut rig = Self { settings, frontends: Vec::new(), deployment: None };
        if rig.settings.frontends == 1 {
            rig.add(set_up(arguments));
        } else {
            let deployment = Deployment::new(arguments);
            let directories: Vec<_> = (0..rig.settings.frontends).map(|_| deployment.directory()).collect();
            rig.deployment = Some(deployment);
            directories.into_iter().for_each(|directory| rig.add(directory));
        }
        rig.make_keys(scenario);
        rig.slow_down(1.0);
        rig
    }

    fn add(&mut self, directory: Directory) {
        // It takes its time when the keys are made, and not before.
        let device = self.settings.device_ms.filter(|_| self.settings.custody != Custody::Software).map(|_| {
            let module = FaultyModule::new(&directory.path().join("device"), Path::new(SOFTHSM));
            let id = module.inject(Fault::new(Effect::Device { ms: 0.0, at_once: self.settings.sessions }));
            (module, id)
        });
        let mut frontend = Frontend { ekm: None, directory, device };
        frontend.ekm = Some(self.serve(&frontend));
        self.frontends.push(frontend);
    }

    fn serve(&self, frontend: &Frontend) -> Ekm {
        let Settings { sessions, isolation, request_deadline_ms, hsm_deadline_ms, config: lines, .. } = &self.settings;
        Ekm::serve(&frontend.directory, |config| {
            let config = match &self.deployment {
                Some(deployment) => deployment.config(config, ""),
                None => config,
            };
            let softhsm = format!("module = {SOFTHSM:?}");
            let module = frontend.device.as_ref().map(|(module, _)| format!("module = {:?}", module.path()));
            let config = config
                .replace("isolation = \"thread\"", &format!("isolation = {isolation:?}"))
                .replace("deadline_ms = 60", &format!("deadline_ms = {hsm_deadline_ms}"))
                .replace(&softhsm, &format!("{}\nsessions = {sessions}", module.as_ref().unwrap_or(&softhsm)))
                .replace(DEADLINE, &format!("request_deadline_ms = {request_deadline_ms}"));
            format!("{config}\n{lines}\n")
        })
    }

    fn make_keys(&self, scenario: &Scenario) {
        let Some(first) = self.frontends[0].ekm.as_ref() else { return };
        first.change(json!({"type": "space-create", "path": SPACE}));
        let mut callers = vec!["service-*@gcp-sa-ekms.iam.gserviceaccount.com".to_owned()];
        callers.extend(
            scenario
                .callers
                .iter()
                .filter_map(|callers| callers.get_ref().email.clone())
                .map(|email| email.replace("{n}", "*")),
        );
        let verbs = ["wrap", "unwrap", "asymmetricSign", "getPublicKey"];
        let policy = json!({"rules": [{"callers": callers, "verbs": verbs}]});
        first.change(json!({"type": "policy-create", "name": "load", "policy": policy}));
        let mut revision = 0.0;
        for keys in &scenario.keys {
            let keys = keys.get_ref();
            for index in 0..keys.count {
                let mut command = json!({
                    "type": "key-create", "path": keys.path(index), "space": SPACE, "policy": {"named": "load"},
                    "custody": keys.custody.unwrap_or(self.settings.custody).name(),
                });
                if let Some(algorithm) = &keys.algorithm {
                    command["algorithm"] = algorithm.as_str().into();
                }
                revision = make(first, &command)["revision"].as_f64().unwrap_or(revision);
            }
        }
        for ekm in self.running() {
            ekm.eventually("served", || ekm.metric("ekm_catalog_revision") >= revision);
        }
    }

    /// Those that run.
    pub fn running(&self) -> impl Iterator<Item = &Ekm> {
        self.frontends.iter().filter_map(|frontend| frontend.ekm.as_ref())
    }

    /// Their process ids.
    pub fn pids(&self) -> Vec<u32> {
        self.running().map(Ekm::pid).collect()
    }

    /// Where their metrics are.
    pub fn ops_addresses(&self) -> Vec<SocketAddr> {
        self.running().filter_map(|ekm| ekm.ready.ops_url.strip_prefix("http://")?.parse().ok()).collect()
    }

    /// Where they are.
    pub fn target(&self) -> Target {
        let ca_file = self.frontends[0].directory.path().join("tls/certificate.pem");
        Target::local(self.running().map(Ekm::address).collect(), ca_file)
    }

    /// Whose tokens they accept.
    pub fn tokens(&self) -> Tokens {
        let issuer = Issuer::of(self.frontends[0].directory.path());
        Tokens::Minted { issuer, audience: "https://localhost".into() }
    }

    /// Sends a signal to a frontend, from 0.
    pub fn signal(&mut self, frontend: usize, signal: Signal) -> Result<()> {
        let ekm = self.frontends[frontend].ekm.as_mut().context("it was not started")?;
        ensure!(ekm.is_running(), "frontend {} does not run", frontend + 1);
        ekm.signal(signal);
        Ok(())
    }

    /// Ends a frontend as an operator does, if it still runs, and starts it again; says where it is then.
    pub fn restart(&mut self, frontend: usize) -> SocketAddr {
        if let Some(mut ekm) = self.frontends[frontend].ekm.take() {
            if ekm.is_running() {
                ekm.signal(Signal::TERM);
            }
            ekm.wait();
        }
        let started = self.serve(&self.frontends[frontend]);
        let address = started.address();
        self.frontends[frontend].ekm = Some(started);
        address
    }

    /// Every call takes so many times as long in all HSMs.
    pub fn slow_down(&mut self, times: f64) {
        let Settings { device_ms, sessions, .. } = self.settings;
        for (module, id) in self.frontends.iter_mut().filter_map(|frontend| frontend.device.as_mut()) {
            module.lift(*id);
            let ms = device_ms.unwrap_or_default() * times;
            *id = module.inject(Fault::new(Effect::Device { ms, at_once: sessions }));
        }
    }

    /// Lets something go wrong in a frontend's HSM.
    pub fn inject(&self, frontend: usize, fault: Fault) -> Option<u64> {
        self.frontends[frontend].device.as_ref().map(|(module, _)| module.inject(fault))
    }

    /// Ends that.
    pub fn lift(&self, frontend: usize, id: u64) {
        if let Some((module, _)) = &self.frontends[frontend].device {
            module.lift(id);
        }
    }

    /// What all frontends and their HSM workers have cost so far.
    pub fn cpu(&self) -> Duration {
        let cpu = self.pids().into_iter().filter_map(|pid| ekm_loadtest::cpu_us(pid).ok());
        Duration::from_secs_f64(cpu.sum::<f64>() / 1e6)
    }

    /// Requests that fill every session, and as many again that wait.
    pub fn full(&self) -> usize {
        2 * self.settings.sessions * self.settings.frontends
    }
}

/// Makes a key, and gives the answer.
fn make(ekm: &Ekm, command: &serde_json::Value) -> serde_json::Value {
    let request = json!({"command": command, "reason": "a load test"});
    for _ in 0..ATTEMPTS {
        let answer = ekm.ask(&request);
        if answer.status != 503 {
            assert_eq!(answer.status, 200, "{}: {}", command["path"], answer.text());
            return answer.json();
        }
        std::thread::sleep(Duration::from_millis(500));
    }
    panic!("{}: no HSM makes the key; see {}", command["path"], ekm.directory.path().join("stderr.log").display());
}
