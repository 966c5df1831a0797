//! What the rig's frontends hold and use during each phase: memory, descriptors, threads, processor time.

use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use ekm_loadtest::{anonymous_mib, children, cpu_us, rss_mib, threads};
use serde::{Deserialize, Serialize};

use crate::faults::wait_until;
use crate::results::rounded;
use crate::rig::Rig;
use crate::schedule::Schedule;

/// Between two looks. What comes and goes within it is not seen.
const EVERY: Duration = Duration::from_millis(200);

/// Of one phase: the highest of each.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Resources {
    /// Resident, of the frontend that had most, the pages of its program among them, without its HSM's workers.
    pub memory_mib: f64,
    /// The part of it that is not the program's: heap and stacks.
    pub anonymous_mib: f64,
    /// Resident, of one frontend's workers together.
    pub workers_mib: f64,
    /// Of one frontend.
    pub descriptors: u64,
    /// Of one frontend.
    pub threads: u64,
    /// Processor time of all frontends with their workers as a share of one core; none if one was restarted.
    pub cores: Option<f64>,
}

/// One look.
#[derive(Clone, Debug)]
pub struct Sample {
    /// Since the start of the schedule.
    pub at_s: f64,
    pub memory_mib: f64,
    anonymous_mib: f64,
    workers_mib: f64,
    descriptors: u64,
    threads: u64,
    cpu_us: f64,
}

/// Looks again and again until `ended`; nothing without a rig.
pub fn watch(begun: Instant, rig: &Mutex<Option<Rig>>, ended: &AtomicBool) -> Vec<Sample> {
    let mut samples = Vec::new();
    let mut due = begun;
    while !ended.load(Ordering::Relaxed) && wait_until(due, ended) {
        let pids = rig.lock().unwrap_or_else(PoisonError::into_inner).as_ref().map(Rig::pids);
        let Some(pids) = pids else { break };
        samples.extend(look(&pids, begun));
        due = (due + EVERY).max(Instant::now());
    }
    samples
}

/// None if there is no frontend now.
fn look(pids: &[u32], begun: Instant) -> Option<Sample> {
    let at_s = begun.elapsed().as_secs_f64();
    let one = |pid: u32| {
        let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).ok()?.count() as u64;
        let workers_mib = children(pid).into_iter().filter_map(|child| rss_mib(child).ok()).sum();
        let (memory_mib, anonymous_mib) = (rss_mib(pid).ok()?, anonymous_mib(pid).ok()?);
        let (threads, cpu_us) = (threads(pid).ok()?, cpu_us(pid).ok()?);
        Some(Sample { at_s, memory_mib, anonymous_mib, workers_mib, descriptors, threads, cpu_us })
    };
    pids.iter().filter_map(|pid| one(*pid)).reduce(|one, other| Sample {
        at_s,
        memory_mib: one.memory_mib.max(other.memory_mib),
        anonymous_mib: one.anonymous_mib.max(other.anonymous_mib),
        workers_mib: one.workers_mib.max(other.workers_mib),
        descriptors: one.descriptors.max(other.descriptors),
        threads: one.threads.max(other.threads),
        cpu_us: one.cpu_us + other.cpu_us,
    })
}

/// Of each phase of the schedule, the warm-up among them.
pub fn by_phase(samples: &[Sample], schedule: &Schedule) -> Vec<Option<Resources>> {
    let phases = schedule.phases.iter().map(|phase| {
        let within: Vec<_> =
            samples.iter().filter(|sample| (phase.begins_s..phase.ends_s).contains(&sample.at_s)).collect();
        let (first, last) = (within.first()?, within.last()?);
        let highest =
            |value: fn(&Sample) -> f64| rounded(within.iter().map(|sample| value(sample)).fold(0.0, f64::max));
        let share = (last.cpu_us - first.cpu_us) / 1e6 / (last.at_s - first.at_s);
        Some(Resources {
            memory_mib: highest(|sample| sample.memory_mib),
            anonymous_mib: highest(|sample| sample.anonymous_mib),
            workers_mib: highest(|sample| sample.workers_mib),
            descriptors: within.iter().map(|sample| sample.descriptors).max()?,
            threads: within.iter().map(|sample| sample.threads).max()?,
            cores: Some(rounded(share)).filter(|share| share.is_finite() && *share >= 0.0),
        })
    });
    phases.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scenario::Scenario;

    #[test]
    fn a_phase_has_the_highest_of_what_was_seen_in_it() {
        let text = "name = \"x\"\nwarm_up_seconds = 0\n[[mix]]\nverb = \"wrap\"\n[[phase]]\nname = \"a\"\nseconds = 10\nrate = 1\n\
                    [[phase]]\nname = \"b\"\nseconds = 10\nrate = 1";
        let schedule = Schedule::new(&Scenario::parse("x", text).unwrap(), 0.0);
        let sample = |at_s: f64, memory_mib: f64| Sample {
            at_s,
            memory_mib,
            anonymous_mib: 2.0,
            workers_mib: 1.0,
            descriptors: 9,
            threads: 3,
            cpu_us: 500_000.0 * at_s,
        };
        let seen = by_phase(&[sample(0.0, 5.0), sample(6.0, 30.0), sample(9.0, 7.0), sample(12.0, 8.0)], &schedule);
        let first = seen[0].as_ref().unwrap();
        assert_eq!((first.memory_mib, first.descriptors, first.cores), (30.0, 9, Some(0.5)));
        assert_eq!(seen[1].as_ref().unwrap().memory_mib, 8.0);
        assert_eq!(by_phase(&[], &schedule), [None, None]);
    }

    #[test]
    fn this_process_is_seen_with_what_it_has() {
        let sample = look(&[std::process::id()], Instant::now()).unwrap();
        assert!(sample.memory_mib > 1.0 && sample.descriptors >= 3 && sample.threads >= 1, "{sample:?}");
        assert!(look(&[], Instant::now()).is_none());
    }
}
