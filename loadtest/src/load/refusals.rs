//! How long the service itself took to refuse: its own histogram (`ekm_refusal_seconds`), read at the ends of phases. At the client a
//! refusal's time has the network in it, and on one machine with the service also the generator's own share of the processor.
//!
//! Only of refusals at once: of those that were in line for a session first, the waiting would be most of it.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::AtomicBool;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::faults::wait_until;
use crate::objectives::{Judged, at_most};
use crate::results::Results;
use crate::rig::Rig;
use crate::scenario::Scenario;
use crate::schedule::Schedule;

/// Of refusals that were decided at once.
const METRIC: &str = "ekm_refusal_seconds_bucket{reason=\"";
const REASONS: [&str; 3] = ["overloaded", "caller_rate", "frontend_busy"];

/// Refusals that took up to so many microseconds, and longer than the next shorter time.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Refusals(BTreeMap<u64, u64>);

/// The same for a report. Each time is the upper bound of the bucket that it is in.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RefusalSummary {
    pub count: u64,
    pub p50_ms: f64,
    pub p99_ms: f64,
    pub p999_ms: f64,
}

impl Refusals {
    /// All so far, of a page of metrics.
    fn parse(metrics: &str) -> Self {
        let mut all = Self::default();
        for reason in REASONS {
            let mut below = 0;
            for line in metrics.lines() {
                let bucket = line.strip_prefix(METRIC).and_then(|rest| rest.strip_prefix(reason)?.split_once("le=\""));
                let Some((bound, count)) = bucket.and_then(|(_, rest)| rest.split_once("\"} ")) else { continue };
                let (Ok(seconds), Ok(count)) = (bound.parse::<f64>(), count.trim().parse::<u64>()) else { continue };
                // Of a bound of "+Inf" this is the greatest there is.
                *all.0.entry((seconds * 1e6).round() as u64).or_default() += count.saturating_sub(below);
                below = count;
            }
        }
        all
    }

    /// What came after an earlier reading of the same process.
    fn since(&self, earlier: &Self) -> Self {
        let before = |bound: &u64| earlier.0.get(bound).copied().unwrap_or(0);
        Self(self.0.iter().map(|(bound, count)| (*bound, count.saturating_sub(before(bound)))).collect())
    }

    fn add(&mut self, other: &Self) {
        for (bound, count) in &other.0 {
            *self.0.entry(*bound).or_default() += count;
        }
    }

    fn count(&self) -> u64 {
        self.0.values().sum()
    }

    /// The bound that so great a share of them keeps; 0 if there are none.
    fn at_most_ms(&self, share: f64) -> f64 {
        let (rank, mut so_far) = ((self.count() as f64 * share).ceil() as u64, 0);
        let bound = self.0.iter().find(|(_, count)| {
            so_far += **count;
            so_far >= rank.max(1)
        });
        bound.map_or(0.0, |(bound, _)| *bound as f64 / 1000.0)
    }

    /// For a report.
    pub fn summary(&self) -> RefusalSummary {
        let at = |share| self.at_most_ms(share);
        RefusalSummary { count: self.count(), p50_ms: at(0.5), p99_ms: at(0.99), p999_ms: at(0.999) }
    }
}

/// By phase that is measured; none without a rig, whose metrics can be read.
pub type ByPhase = Vec<(String, Refusals)>;

/// Reads at the begin of each phase, and at the end.
pub fn watch(schedule: &Schedule, begun: Instant, rig: &Mutex<Option<Rig>>, ended: &AtomicBool) -> ByPhase {
    let mut by_phase = ByPhase::new();
    let mut before = None;
    for phase in schedule.phases.iter().filter(|phase| phase.is_measured) {
        wait_until(begun + Duration::from_secs_f64(phase.begins_s), ended);
        let Some(first) = before.take().or_else(|| read(rig)) else { return Vec::new() };
        wait_until(begun + Duration::from_secs_f64(phase.ends_s), ended);
        let Some(last) = read(rig) else { return Vec::new() };
        let mut refusals = Refusals::default();
        for (frontend, now) in &last {
            // One that was restarted meanwhile has begun anew, at another address.
            refusals.add(&first.get(frontend).map_or_else(|| now.clone(), |earlier| now.since(earlier)));
        }
        by_phase.push((phase.name.clone(), refusals));
        before = Some(last);
    }
    by_phase
}

/// Of each frontend that answers; none if there is no rig.
fn read(rig: &Mutex<Option<Rig>>) -> Option<BTreeMap<SocketAddr, Refusals>> {
    let addresses = rig.lock().unwrap_or_else(PoisonError::into_inner).as_ref()?.ops_addresses();
    let read = |address| Some((address, Refusals::parse(&metrics(address).ok()?)));
    Some(addresses.into_iter().filter_map(read).collect())
}

fn metrics(address: SocketAddr) -> std::io::Result<String> {
    let patience = Duration::from_secs(10);
    let mut stream = TcpStream::connect_timeout(&address, patience)?;
    stream.set_read_timeout(Some(patience))?;
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}

/// The limits for it. Where nobody could look there is nothing to be judged.
pub fn judge(scenario: &Scenario, by_phase: &ByPhase) -> Vec<Judged> {
    let mut judged = Vec::new();
    for objective in scenario.objective.iter().map(|objective| objective.get_ref()).filter(|_| !by_phase.is_empty()) {
        let Some(limit) = objective.refusal_p999_ms else { continue };
        let mut refusals = Refusals::default();
        let is_meant = |name: &String| objective.phases.is_empty() || objective.phases.contains(name);
        by_phase.iter().filter(|(name, _)| is_meant(name)).for_each(|(_, of_phase)| refusals.add(of_phase));
        let of =
            if objective.phases.is_empty() { String::new() } else { format!(" in {}", objective.phases.join(", ")) };
        let text = format!("refused, in the service: p99.9, ms{of}");
        judged.push(at_most(text, limit, Some(refusals.at_most_ms(0.999))));
    }
    judged
}

/// A row for each phase in which something was refused, under these heads.
pub fn rows(results: &Results) -> Option<([&'static str; 5], Vec<Vec<String>>)> {
    let phases = results.phases.iter().filter_map(|phase| {
        let of_phase = results.refused_in_service.get(&phase.name).filter(|of_phase| of_phase.count > 0)?;
        let times = [of_phase.p50_ms, of_phase.p99_ms, of_phase.p999_ms].map(|ms| format!("{ms}"));
        Some([&[phase.name.clone(), of_phase.count.to_string()], &times[..]].concat())
    });
    let rows: Vec<_> = phases.collect();
    (!rows.is_empty())
        .then_some((["refused, in the service", "at once", "p50 ms", "p99 ms", "p99.9 ms, at most"], rows))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// So many up to 100 µs, up to 1 ms, and longer.
    fn page(reason: &str, [fast, slow, beyond]: [u64; 3]) -> String {
        let line = |bound: &str, count: u64| format!("{METRIC}{reason}\",le=\"{bound}\"}} {count}\n");
        line("0.0001", fast) + &line("0.001", fast + slow) + &line("+Inf", fast + slow + beyond)
    }

    #[test]
    fn a_phase_has_what_came_between_two_readings_of_all_that_was_refused_at_once() {
        let before = Refusals::parse(&page("overloaded", [100, 0, 0]));
        let page = page("overloaded", [1098, 1, 0]) + &page("caller_rate", [1, 0, 0]) + &page("waited", [0, 0, 7]);
        let after = Refusals::parse(&page);
        let summary = after.since(&before).summary();
        assert_eq!(summary, RefusalSummary { count: 1000, p50_ms: 0.1, p99_ms: 0.1, p999_ms: 0.1 });
    }

    #[test]
    fn one_in_a_hundred_that_takes_longer_is_in_the_percentiles_and_what_is_beyond_the_last_bound_keeps_no_limit() {
        let of = |counts| Refusals::parse(&page("overloaded", counts)).summary();
        assert_eq!(of([990, 10, 0]), RefusalSummary { count: 1000, p50_ms: 0.1, p99_ms: 0.1, p999_ms: 1.0 });
        assert!(of([990, 5, 5]).p999_ms > 1e9);
        assert_eq!(of([0, 0, 0]), RefusalSummary::default());
    }
}
