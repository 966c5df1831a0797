//! A scenario's file: who asks for what, how fast, what goes wrong meanwhile, and what is expected.

use std::collections::BTreeMap;
use std::fmt::Write;

use ekm_tests::Fault;
use serde::{Deserialize, Serialize};
use toml::Spanned;

use crate::hostile::Hostile;

/// The whole file.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scenario {
    pub name: String,
    /// What it shows, in a sentence; stands in the report.
    #[serde(default)]
    pub about: String,
    /// Of all random choices: the same seed gives the same arrivals.
    #[serde(default = "one")]
    pub seed: u64,
    /// What `load` is a multiple of. Measured at the start if a phase needs it and it is not given.
    pub capacity_per_s: Option<Spanned<f64>>,
    /// Before the first phase, at its rate; not measured.
    #[serde(default = "two_seconds")]
    pub warm_up_seconds: f64,
    #[serde(default)]
    pub client: Client,
    #[serde(default)]
    pub rig: Rig,
    #[serde(default = "one_caller")]
    pub callers: Vec<Spanned<Callers>>,
    #[serde(default = "one_key")]
    pub keys: Vec<Spanned<Keys>>,
    pub mix: Vec<Spanned<Mix>>,
    pub phase: Vec<Spanned<Phase>>,
    #[serde(default)]
    pub fault: Vec<Spanned<FaultAt>>,
    #[serde(default)]
    pub hostile: Vec<Spanned<Hostile>>,
    #[serde(default)]
    pub objective: Vec<Spanned<Objective>>,
}

/// How requests are sent.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Client {
    pub protocol: Protocol,
    /// To each frontend.
    pub connections: usize,
    /// Of the generator; each has its own connections.
    pub threads: usize,
    /// From the time on the schedule to the answer; Cloud KMS gives up after 150 ms.
    pub timeout_ms: f64,
    /// More are not sent, and counted. Default: what may come at the highest rate until the last retry's time-out, and half as much again.
    pub max_outstanding: Option<usize>,
    pub arrivals: Arrivals,
    pub retry: Option<Retry>,
}

impl Default for Client {
    fn default() -> Self {
        let (protocol, arrivals) = (Protocol::Http2, Arrivals::Poisson);
        Self { protocol, connections: 8, threads: 1, timeout_ms: 150.0, max_outstanding: None, arrivals, retry: None }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// One request at a time on a connection.
    Http1,
    /// Many at once.
    Http2,
}

impl Protocol {
    /// For people.
    pub fn name(self) -> &'static str {
        match self {
            Self::Http1 => "HTTP/1.1",
            Self::Http2 => "HTTP/2",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Arrivals {
    /// Independent of each other, as those of many clients are.
    Poisson,
    /// Evenly spaced.
    Uniform,
}

/// What a client does that was not answered well.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Retry {
    /// Besides the first.
    pub attempts: u8,
    /// From the failure until the next attempt; half as much to one and a half times as much, by chance.
    pub after_ms: f64,
    /// By which `after_ms` grows from one attempt to the next.
    #[serde(default = "one_f64")]
    pub factor: f64,
    #[serde(default = "RetryOn::all")]
    pub on: Vec<RetryOn>,
    /// Retries in per cent of first attempts; no more than that, with ten to begin with.
    pub budget_percent: Option<f64>,
    /// Wait at least as long as the answer's RetryInfo says.
    #[serde(default)]
    pub honour_retry_info: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub enum RetryOn {
    #[serde(rename = "429")]
    TooManyRequests,
    #[serde(rename = "503")]
    Unavailable,
    /// No answer in time.
    #[serde(rename = "timeout")]
    Timeout,
    /// The connection was lost.
    #[serde(rename = "lost")]
    Lost,
}

impl RetryOn {
    fn all() -> Vec<Self> {
        vec![Self::TooManyRequests, Self::Unavailable, Self::Timeout, Self::Lost]
    }
}

/// What `--rig` starts.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Rig {
    /// More than one share a catalog in PostgreSQL, and have an HSM each.
    pub frontends: usize,
    pub custody: Custody,
    /// Of each frontend's HSM; also how many calls it works on at once if it has a `device_ms`.
    pub sessions: usize,
    /// What each encryption, decryption and signature takes.
    pub device_ms: Option<f64>,
    /// `process` or `thread`.
    pub isolation: String,
    pub request_deadline_ms: u64,
    pub hsm_deadline_ms: u64,
    /// Lines for the end of the service's configuration, which is in `[limits]` there.
    pub config: String,
}

impl Default for Rig {
    fn default() -> Self {
        Self {
            frontends: 1,
            custody: Custody::Hsm,
            sessions: 8,
            device_ms: None,
            isolation: "process".into(),
            request_deadline_ms: 100,
            hsm_deadline_ms: 60,
            config: String::new(),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Custody {
    Hsm,
    HsmWrapped,
    Software,
}

impl Custody {
    /// As the service calls it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Hsm => "hsm",
            Self::HsmWrapped => "hsm-wrapped",
            Self::Software => "software",
        }
    }
}

/// A group of callers that are alike.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Callers {
    pub name: String,
    #[serde(default = "one_usize")]
    pub count: usize,
    /// 0: each as often as the others. 1: the second half as often as the first, the third a third as often, and so on.
    #[serde(default)]
    pub zipf: f64,
    /// Of the phase's rate, beside the other groups'. Default: their number.
    pub share: Option<f64>,
    /// Names of the sets of keys that they use; default: all. Of each kind the first.
    #[serde(default)]
    pub keys: Vec<String>,
    /// With `{n}` for their number. Default: service agents of as many projects.
    pub email: Option<String>,
}

impl Callers {
    /// Of a rate, beside the other groups'.
    pub fn share(&self) -> f64 {
        self.share.unwrap_or(self.count as f64)
    }
}

/// A set of keys that are alike.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Keys {
    pub name: String,
    #[serde(default = "one_usize")]
    pub count: usize,
    /// As that of callers.
    #[serde(default)]
    pub zipf: f64,
    /// With `{n}` for their number, from 1. The rig makes them; with `--url` they have to be there.
    pub path: Option<String>,
    /// Default: the rig's.
    pub custody: Option<Custody>,
    /// Of signing keys, Google's name.
    pub algorithm: Option<String>,
}

impl Keys {
    /// The path of one of them.
    pub fn path(&self, index: usize) -> String {
        let pattern = self.path.clone().unwrap_or_else(|| format!("v0/keys/load-{}-{{n}}", self.name));
        pattern.replace("{n}", &(index + 1).to_string())
    }
}

/// A kind of request.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mix {
    pub verb: Verb,
    /// Beside the others'.
    #[serde(default = "one_f64")]
    pub share: f64,
    /// What is wrapped, unwrapped or signed.
    #[serde(default = "data_key_bytes")]
    pub payload_bytes: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verb {
    Wrap,
    Unwrap,
    Sign,
    PublicKey,
    /// A wrap that says that it is Cloud KMS's look at the key's health.
    HealthCheck,
}

impl Verb {
    /// As in the file.
    pub fn name(self) -> &'static str {
        match self {
            Self::Wrap => "wrap",
            Self::Unwrap => "unwrap",
            Self::Sign => "sign",
            Self::PublicKey => "public-key",
            Self::HealthCheck => "health-check",
        }
    }

    /// Whether it needs a signing key.
    pub fn needs_signing_key(self) -> bool {
        matches!(self, Self::Sign | Self::PublicKey)
    }
}

/// A time with one rate, or one that rises or falls.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Phase {
    pub name: String,
    pub seconds: f64,
    /// Requests a second, of all callers.
    pub rate: Option<f64>,
    /// The same as a multiple of the capacity.
    pub load: Option<f64>,
    /// Requests a second of each group of callers.
    pub rates: Option<BTreeMap<String, f64>>,
    /// The same as multiples of the capacity.
    pub loads: Option<BTreeMap<String, f64>>,
    /// Where `rate` or `load` is to be at the end.
    pub ramp_to: Option<f64>,
    pub burst: Option<Burst>,
}

/// Again and again more for a short time.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Burst {
    pub every_seconds: f64,
    pub lasts_seconds: f64,
    /// As much as the phase's rate.
    pub times: f64,
}

/// Something that goes wrong, or is done, at a time.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FaultAt {
    /// From the start of this phase …
    pub phase: Option<String>,
    /// … or of the first one, if none is named.
    #[serde(default)]
    pub at_seconds: f64,
    /// Until it is undone, if it can be; default: until the end of the phase that is named.
    pub lasts_seconds: Option<f64>,
    /// From 1.
    #[serde(default = "one_usize")]
    pub frontend: usize,
    /// To the frontend's process. STOP is undone by CONT.
    pub signal: Option<SignalName>,
    /// Ends the frontend as an operator does, waits for its end, and starts it again.
    #[serde(default)]
    pub restart: bool,
    /// Every call takes so many times as long in the frontends' HSMs; needs a `device_ms`.
    pub hsm_slowdown: Option<f64>,
    /// A fault of the frontend's HSM, as in the fault module's control file.
    pub hsm: Option<Fault>,
    /// A program with its arguments. It finds the frontends' process ids in EKM_LOAD_PIDS, separated by spaces.
    pub command: Option<Vec<String>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum SignalName {
    Kill,
    Term,
    Hup,
    Stop,
    Cont,
}

/// What is expected. Every limit that is given has to be kept.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Objective {
    /// In these phases together; default: in all.
    pub phases: Vec<String>,
    /// In each of them by itself, but for `against`.
    pub each_phase: bool,
    /// The phase that `p99_rise_ms` and the other rises are measured from.
    pub against: Option<String>,
    /// Of this group only.
    pub callers: Option<String>,
    pub verb: Option<Verb>,
    /// Right answers within `within_ms`, at least, in per cent of what was due.
    pub success_percent: Option<f64>,
    pub within_ms: Option<f64>,
    /// Right answers a second, at least.
    pub goodput_per_s: Option<f64>,
    /// The same in per cent of the capacity.
    pub goodput_percent_of_capacity: Option<f64>,
    /// Of right answers, at most.
    pub accepted_p50_ms: Option<f64>,
    pub accepted_p99_ms: Option<f64>,
    pub accepted_p999_ms: Option<f64>,
    /// Of 429 and 503, at most.
    pub shed_p99_ms: Option<f64>,
    pub shed_p999_ms: Option<f64>,
    /// Of refusals at once, from the end of the request's head, as the service itself has measured it, at most. Needs a rig.
    pub refusal_p999_ms: Option<f64>,
    /// Attempts for each request, at most.
    pub amplification: Option<f64>,
    /// Requests that were shed, at least, in per cent of what was due: that there was an overload at all.
    pub shed_percent_at_least: Option<f64>,
    /// By which right answers' p99 may be above that in `against`.
    pub p99_rise_ms: Option<f64>,
    /// Resident memory of a frontend, without its HSM's workers, at its highest.
    pub memory_mib: Option<f64>,
    /// The same above that in `against`.
    pub memory_rise_mib: Option<f64>,
    /// Of a frontend's file descriptors and threads.
    pub descriptors_rise: Option<f64>,
    pub threads_rise: Option<f64>,
}

impl Objective {
    fn has_rise(&self) -> bool {
        [self.p99_rise_ms, self.memory_rise_mib, self.descriptors_rise, self.threads_rise].iter().any(Option::is_some)
    }
}

impl Scenario {
    /// Reads a file's text. `file` stands before the line in errors.
    pub fn parse(file: &str, text: &str) -> Result<Self, String> {
        let line = |at: usize| text[..at.min(text.len())].matches('\n').count() + 1;
        let scenario: Self = toml::from_str(text).map_err(|error| {
            let at = error.span().map_or(1, |span| line(span.start));
            format!("{file}:{at}: {}", error.message().trim())
        })?;
        scenario.check().map_err(|(at, problem)| format!("{file}:{}: {problem}", line(at)))?;
        Ok(scenario)
    }

    fn check(&self) -> Result<(), (usize, String)> {
        let Client { connections, threads, timeout_ms, max_outstanding, retry, .. } = &self.client;
        let nowhere = |problem: &str| Err((0, problem.to_owned()));
        if *connections == 0 || *threads == 0 || *timeout_ms <= 0.0 || *max_outstanding == Some(0) {
            return nowhere("in [client], connections, threads, timeout_ms and max_outstanding are more than 0");
        }
        if connections < threads {
            return nowhere("in [client], connections is at least threads: each thread has its own");
        }
        if retry.as_ref().is_some_and(|retry| retry.after_ms < 0.0 || retry.factor <= 0.0) {
            return nowhere("in [client.retry], after_ms is at least 0 and factor more than 0");
        }
        if self.rig.frontends == 0 || self.rig.sessions == 0 {
            return nowhere("in [rig], frontends and sessions are at least 1");
        }
        if let Some(capacity) = &self.capacity_per_s
            && *capacity.get_ref() <= 0.0
        {
            return Err((capacity.span().start, "capacity_per_s is more than 0".into()));
        }
        for (what, names) in [
            ("[[callers]]", names(&self.callers, |callers| &callers.name)),
            ("[[keys]]", names(&self.keys, |keys| &keys.name)),
            ("[[phase]]", names(&self.phase, |phase| &phase.name)),
        ] {
            for (index, (name, at)) in names.iter().enumerate() {
                if names[..index].iter().any(|(earlier, _)| earlier == name) {
                    return Err((*at, format!("there is another of {what} called '{name}'")));
                }
            }
        }
        if self.mix.is_empty() || self.phase.is_empty() || self.callers.is_empty() || self.keys.is_empty() {
            return nowhere(
                "at least one [[mix]] and one [[phase]] are needed, and callers and keys if they are given",
            );
        }
        each(&self.callers, |callers| self.check_callers(callers))?;
        each(&self.keys, |keys| {
            let good =
                keys.count > 0 && (keys.count == 1 || keys.path.as_ref().is_none_or(|path| path.contains("{n}")));
            good.then_some(()).ok_or_else(|| "count is at least 1, and with more than one path has an '{n}'".into())
        })?;
        each(&self.mix, |mix| self.check_mix(mix))?;
        each(&self.phase, |phase| self.check_phase(phase))?;
        each(&self.fault, |fault| self.check_fault(fault))?;
        each(&self.hostile, |hostile| {
            self.known("[[phase]]", &hostile.phase, &names(&self.phase, |phase| &phase.name))?;
            hostile.check(self.rig.frontends)
        })?;
        each(&self.objective, |objective| self.check_objective(objective))
    }

    fn check_callers(&self, callers: &Callers) -> Result<(), String> {
        if callers.count == 0 || callers.share.is_some_and(|share| share < 0.0) {
            return Err("count is at least 1 and share at least 0".into());
        }
        if callers.count > 1 && callers.email.as_ref().is_some_and(|email| !email.contains("{n}")) {
            return Err("email has an '{n}' if there is more than one caller".into());
        }
        callers.keys.iter().try_for_each(|name| self.known("[[keys]]", name, &names(&self.keys, |keys| &keys.name)))?;
        Ok(())
    }

    fn check_mix(&self, mix: &Mix) -> Result<(), String> {
        if mix.share <= 0.0 {
            return Err("share is more than 0".into());
        }
        if mix.payload_bytes == 0 || mix.payload_bytes > 65_536 {
            return Err("payload_bytes is 1 to 65536, which is what Cloud KMS takes".into());
        }
        let without = self.callers.iter().find(|callers| self.keys_for(callers.get_ref(), mix.verb).is_none());
        if let Some(callers) = without {
            let (name, verb) = (&callers.get_ref().name, mix.verb);
            let kind = if verb.needs_signing_key() { "with an algorithm" } else { "without an algorithm" };
            return Err(format!("callers '{name}' have no [[keys]] {kind} for {}", verb.name()));
        }
        Ok(())
    }

    fn check_phase(&self, phase: &Phase) -> Result<(), String> {
        let Phase { seconds, rate, load, rates, loads, ramp_to, burst, .. } = phase;
        let given = [rate.is_some(), load.is_some(), rates.is_some(), loads.is_some()];
        if given.into_iter().filter(|given| *given).count() != 1 {
            return Err("a phase has exactly one of rate, load, rates and loads".into());
        }
        if ramp_to.is_some() && rate.or(*load).is_none() {
            return Err("ramp_to goes with rate or load".into());
        }
        let groups = rates.iter().chain(loads).flat_map(BTreeMap::keys);
        let known = names(&self.callers, |callers| &callers.name);
        groups.into_iter().try_for_each(|name| self.known("[[callers]]", name, &known))?;
        let all = [*rate, *load, *ramp_to]
            .into_iter()
            .flatten()
            .chain(rates.iter().chain(loads).flat_map(|map| map.values().copied()));
        if *seconds <= 0.0 || all.clone().any(|rate| !(0.0..=10_000_000.0).contains(&rate)) || all.sum::<f64>() == 0.0 {
            return Err("seconds is more than 0, and so is the rate".into());
        }
        if let Some(Burst { every_seconds, lasts_seconds, times }) = burst
            && (*lasts_seconds <= 0.0 || every_seconds <= lasts_seconds || *times <= 0.0 || ramp_to.is_some())
        {
            return Err("a burst lasts less long than from one to the next, and a phase with ramp_to has none".into());
        }
        Ok(())
    }

    fn check_fault(&self, fault: &FaultAt) -> Result<(), String> {
        let FaultAt { phase, at_seconds, lasts_seconds, frontend, signal, restart, hsm_slowdown, hsm, command } = fault;
        let given = [signal.is_some(), *restart, hsm_slowdown.is_some(), hsm.is_some(), command.is_some()];
        if given.into_iter().filter(|given| *given).count() != 1 {
            return Err("a fault has exactly one of signal, restart, hsm_slowdown, hsm and command".into());
        }
        if *at_seconds < 0.0 || lasts_seconds.is_some_and(|lasts| lasts <= 0.0) {
            return Err("at_seconds is at least 0, lasts_seconds more".into());
        }
        if let Some(phase) = phase {
            self.known("[[phase]]", phase, &names(&self.phase, |phase| &phase.name))?;
        }
        if *frontend == 0 || *frontend > self.rig.frontends {
            return Err(format!("frontend is 1 to {}, as [rig] says", self.rig.frontends));
        }
        let device = self.rig.device_ms.is_some() && self.rig.custody != Custody::Software;
        if hsm_slowdown.is_some_and(|times| times <= 0.0) || ((hsm_slowdown.is_some() || hsm.is_some()) && !device) {
            return Err("faults of an HSM need one with a device_ms in [rig]; hsm_slowdown is more than 0".into());
        }
        if command.as_ref().is_some_and(Vec::is_empty) {
            return Err("command is a program with its arguments".into());
        }
        Ok(())
    }

    fn check_objective(&self, objective: &Objective) -> Result<(), String> {
        let phases = names(&self.phase, |phase| &phase.name);
        objective
            .phases
            .iter()
            .chain(&objective.against)
            .try_for_each(|name| self.known("[[phase]]", name, &phases))?;
        if objective.against.is_some() != objective.has_rise() {
            return Err(
                "against goes with p99_rise_ms, memory_rise_mib, descriptors_rise or threads_rise, and they with it"
                    .into(),
            );
        }
        if let Some(name) = &objective.callers {
            self.known("[[callers]]", name, &names(&self.callers, |callers| &callers.name))?;
        }
        if let Some(verb) = objective.verb
            && !self.mix.iter().any(|mix| mix.get_ref().verb == verb)
        {
            return Err(format!("no [[mix]] has the verb {}", verb.name()));
        }
        if objective.refusal_p999_ms.is_some() && (objective.callers.is_some() || objective.verb.is_some()) {
            return Err(
                "refusal_p999_ms is of all callers and verbs together: the service does not tell them apart".into()
            );
        }
        if objective.within_ms.is_some() && objective.success_percent.is_none() {
            return Err("within_ms goes with success_percent".into());
        }
        Ok(())
    }

    fn known(&self, what: &str, name: &str, names: &[(&str, usize)]) -> Result<(), String> {
        if names.iter().any(|(known, _)| *known == name) {
            return Ok(());
        }
        let mut problem = format!("no {what} is called '{name}'; there are");
        for (index, (known, _)) in names.iter().enumerate() {
            let _ = write!(problem, "{} '{known}'", if index == 0 { "" } else { "," });
        }
        Err(problem)
    }

    /// The index of the set of keys that these callers use for a verb.
    pub fn keys_for(&self, callers: &Callers, verb: Verb) -> Option<usize> {
        let fits = |keys: &Keys| {
            let named = callers.keys.is_empty() || callers.keys.contains(&keys.name);
            named && keys.algorithm.is_some() == verb.needs_signing_key()
        };
        self.keys.iter().position(|keys| fits(keys.get_ref()))
    }

    /// Whether a phase's rate is a multiple of the capacity.
    pub fn needs_capacity(&self) -> bool {
        self.phase.iter().any(|phase| phase.get_ref().load.is_some() || phase.get_ref().loads.is_some())
    }

    /// Makes it last so long, bursts and faults and all; but not the warm-up, for a service needs that.
    pub fn compress_to(&mut self, seconds: f64) {
        let whole: f64 = self.phase.iter().map(|phase| phase.get_ref().seconds).sum();
        let factor = seconds / whole;
        for phase in &mut self.phase {
            let phase = phase.get_mut();
            phase.seconds *= factor;
            if let Some(burst) = &mut phase.burst {
                burst.every_seconds *= factor;
                burst.lasts_seconds *= factor;
            }
        }
        for fault in &mut self.fault {
            let fault = fault.get_mut();
            fault.at_seconds *= factor;
            fault.lasts_seconds = fault.lasts_seconds.map(|lasts| lasts * factor);
        }
    }
}

fn names<T>(all: &[Spanned<T>], name: fn(&T) -> &String) -> Vec<(&str, usize)> {
    all.iter().map(|one| (name(one.get_ref()).as_str(), one.span().start)).collect()
}

fn each<T>(all: &[Spanned<T>], check: impl Fn(&T) -> Result<(), String>) -> Result<(), (usize, String)> {
    all.iter().try_for_each(|one| check(one.get_ref()).map_err(|problem| (one.span().start, problem)))
}

fn one() -> u64 {
    1
}

fn one_usize() -> usize {
    1
}

fn one_f64() -> f64 {
    1.0
}

fn two_seconds() -> f64 {
    2.0
}

/// What Cloud KMS wraps most.
fn data_key_bytes() -> usize {
    32
}

fn one_caller() -> Vec<Spanned<Callers>> {
    let callers = Callers { name: "callers".into(), count: 1, zipf: 0.0, share: None, keys: Vec::new(), email: None };
    vec![Spanned::new(0..0, callers)]
}

fn one_key() -> Vec<Spanned<Keys>> {
    let keys = Keys { name: "keys".into(), count: 1, zipf: 0.0, path: None, custody: None, algorithm: None };
    vec![Spanned::new(0..0, keys)]
}
