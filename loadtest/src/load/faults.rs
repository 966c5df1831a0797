//! What goes wrong during a run, when it was planned to.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::Signal;
use serde::{Deserialize, Serialize};

use crate::rig::Rig;
use crate::scenario::{FaultAt, Scenario, SignalName};
use crate::schedule::Schedule;
use crate::target::Target;

/// What was done, and when, since the start of the first phase.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Done {
    pub what: String,
    pub at_s: f64,
    /// When that was over, if it took time.
    pub until_s: Option<f64>,
    /// Why it could not be done.
    pub error: Option<String>,
}

/// A fault with its times on the schedule, since the start.
struct Planned {
    fault: FaultAt,
    begins_s: f64,
    ends_s: Option<f64>,
}

/// Everything that is to happen.
pub struct Plan {
    faults: Vec<Planned>,
    origin_s: f64,
}

impl Plan {
    /// Of a scenario.
    pub fn new(scenario: &Scenario, schedule: &Schedule) -> Self {
        let measured = schedule.phases.iter().filter(|phase| phase.is_measured);
        let origin_s = measured.clone().next().map_or(0.0, |phase| phase.begins_s);
        let faults = scenario.fault.iter().map(|fault| {
            let fault = fault.get_ref().clone();
            let phase = fault.phase.as_ref().and_then(|name| measured.clone().find(|phase| phase.name == *name));
            let begins_s = phase.map_or(origin_s, |phase| phase.begins_s) + fault.at_seconds;
            let ends_s = fault.lasts_seconds.map(|lasts| begins_s + lasts).or(phase.map(|phase| phase.ends_s));
            Planned { fault, begins_s, ends_s }
        });
        Self { faults: faults.collect(), origin_s }
    }

    /// Lets everything happen, each fault in a thread of its own, until `ended`. Says what was done.
    pub fn run(&self, begun: Instant, rig: &Mutex<Option<Rig>>, target: &Arc<Target>, ended: &AtomicBool) -> Vec<Done> {
        thread::scope(|scope| {
            let threads =
                self.faults.iter().map(|planned| scope.spawn(|| self.happen(planned, begun, rig, target, ended)));
            let threads: Vec<_> = threads.collect();
            threads.into_iter().filter_map(|thread| thread.join().expect("it does not panic")).collect()
        })
    }

    fn happen(
        &self,
        planned: &Planned,
        begun: Instant,
        rig: &Mutex<Option<Rig>>,
        target: &Arc<Target>,
        ended: &AtomicBool,
    ) -> Option<Done> {
        let seconds = |time: f64| begun + Duration::from_secs_f64(time);
        if !wait_until(seconds(planned.begins_s), ended) {
            return None;
        }
        let since_origin = || begun.elapsed().as_secs_f64() - self.origin_s;
        let mut done = Done { what: what(&planned.fault), at_s: since_origin(), until_s: None, error: None };
        let undo = match begin(&planned.fault, rig, target) {
            Ok(undo) => undo,
            Err(error) => {
                done.error = Some(format!("{error:#}"));
                return Some(done);
            }
        };
        match (undo, planned.ends_s) {
            (Undo::Over, _) => done.until_s = Some(since_origin()),
            (Undo::Nothing, _) | (_, None) => {}
            (undo, Some(ends_s)) => {
                wait_until(seconds(ends_s), ended);
                done.error = undo.end(&planned.fault, rig).err().map(|error| format!("{error:#}"));
                done.until_s = Some(since_origin());
            }
        }
        Some(done)
    }
}

/// How a fault ends.
enum Undo {
    /// It does not.
    Nothing,
    /// It has, by itself.
    Over,
    Continue,
    Speed,
    Lift(u64),
}

impl Undo {
    fn end(self, fault: &FaultAt, rig: &Mutex<Option<Rig>>) -> Result<()> {
        with(rig, |rig| match self {
            Self::Nothing | Self::Over => Ok(()),
            Self::Continue => rig.signal(fault.frontend - 1, Signal::CONT),
            Self::Speed => {
                rig.slow_down(1.0);
                Ok(())
            }
            Self::Lift(id) => {
                rig.lift(fault.frontend - 1, id);
                Ok(())
            }
        })
    }
}

fn begin(fault: &FaultAt, rig: &Mutex<Option<Rig>>, target: &Target) -> Result<Undo> {
    let frontend = fault.frontend - 1;
    if let Some(command) = &fault.command {
        return run_command(command, rig);
    }
    with(rig, |rig| {
        if let Some(name) = fault.signal {
            rig.signal(frontend, signal(name))?;
            return Ok(if name == SignalName::Stop { Undo::Continue } else { Undo::Nothing });
        }
        if fault.restart {
            let address = rig.restart(frontend);
            target.moved(frontend, address);
            return Ok(Undo::Over);
        }
        if let Some(times) = fault.hsm_slowdown {
            rig.slow_down(times);
            return Ok(Undo::Speed);
        }
        let injected = fault.hsm.clone().and_then(|fault| rig.inject(frontend, fault));
        Ok(Undo::Lift(injected.context("this rig has no HSM that can have a fault")?))
    })
}

fn with<T>(rig: &Mutex<Option<Rig>>, act: impl FnOnce(&mut Rig) -> Result<T>) -> Result<T> {
    let mut rig = rig.lock().unwrap_or_else(PoisonError::into_inner);
    let rig = rig.as_mut().context("without --rig, only commands are possible")?;
    // The harness gives up by a panic, as it should in a test.
    catch_unwind(AssertUnwindSafe(|| act(rig))).unwrap_or_else(|_| bail!("the rig has failed; the reason is above"))
}

fn run_command(command: &[String], rig: &Mutex<Option<Rig>>) -> Result<Undo> {
    let pids = rig.lock().unwrap_or_else(PoisonError::into_inner).as_ref().map(Rig::pids).unwrap_or_default();
    let pids: Vec<_> = pids.iter().map(ToString::to_string).collect();
    let mut process = Command::new(&command[0]);
    process.args(&command[1..]).env("EKM_LOAD_PIDS", pids.join(" ")).stdin(Stdio::null()).stdout(Stdio::null());
    let status = process.status().with_context(|| format!("'{}' cannot be run", command[0]))?;
    ensure!(status.success(), "'{}' ended with {status}", command[0]);
    Ok(Undo::Over)
}

/// Whether the time has come, and the run is not over before.
pub fn wait_until(time: Instant, ended: &AtomicBool) -> bool {
    loop {
        let left = time.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return true;
        }
        if ended.load(Ordering::Relaxed) {
            return false;
        }
        thread::sleep(left.min(Duration::from_millis(50)));
    }
}

fn signal(name: SignalName) -> Signal {
    match name {
        SignalName::Kill => Signal::KILL,
        SignalName::Term => Signal::TERM,
        SignalName::Hup => Signal::HUP,
        SignalName::Stop => Signal::STOP,
        SignalName::Cont => Signal::CONT,
    }
}

fn what(fault: &FaultAt) -> String {
    let frontend = fault.frontend;
    if let Some(signal) = fault.signal {
        return format!("frontend {frontend} gets SIG{}", format!("{signal:?}").to_uppercase());
    }
    if fault.restart {
        return format!("frontend {frontend} is restarted");
    }
    if let Some(times) = fault.hsm_slowdown {
        return format!("every HSM is {times} times slower");
    }
    if let Some(command) = &fault.command {
        return format!("command {}", command.join(" "));
    }
    let effect = fault.hsm.as_ref().map(|fault| serde_json::to_string(&fault.effect).unwrap_or_default());
    format!("the HSM of frontend {frontend}: {}", effect.unwrap_or_default())
}
