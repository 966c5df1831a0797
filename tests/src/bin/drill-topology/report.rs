//! What a drill found, for people and for programs.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use ekm_tests::drill::{Table, figure, seconds};
use ekm_tests::topology::Sample;
use serde::Serialize;

/// What a frontend answers that finds its machine short of processors: all of them are on this one, so it says nothing about the way there.
const BUSY: &str = "[frontend_busy]";

/// What no machine explains.
const OTHER_BYTES: &str = "other bytes than were wrapped";

fn is_denial(failure: &str) -> bool {
    ["401", "403", "404"].iter().any(|code| failure.starts_with(code))
}

/// How many messages of a kind are shown.
const SHOWN: usize = 4;

/// The result of one fault behind one topology.
#[derive(Debug, Default, Serialize)]
pub struct Row {
    /// How the replicas are reached.
    pub topology: &'static str,
    /// What happened.
    pub fault: &'static str,
    /// From the fault until it ended.
    pub took_s: f64,
    /// Requests meanwhile.
    pub requests: usize,
    /// Those without a right answer in time.
    pub failed: usize,
    /// Those that the client had to send again, because the connection was closed instead of an answer.
    pub repeated: usize,
    /// Rounds of the fault.
    pub rounds: usize,
    /// Requests that failed or had to be sent again, in the round where they were the most.
    pub lost_in_worst_round: usize,
    /// How many these may be, if that is judged.
    pub may_lose: Option<usize>,
    /// Those that a frontend refused because this machine is short of processors.
    pub busy: usize,
    /// From the fault until the last of those that failed was begun.
    pub last_failure_s: Option<f64>,
    /// Of those that had one on a connection that was there: half took no longer.
    pub p50_ms: f64,
    /// 99 of 100 took no longer.
    pub p99_ms: f64,
    /// Of those that made a connection: half took no longer.
    pub new_p50_ms: f64,
    /// 99 of 100 took no longer.
    pub new_p99_ms: f64,
    /// The slowest right answer.
    pub slowest_ms: f64,
    /// How long requests may fail, if that is judged.
    pub limit_s: Option<f64>,
    /// What was answered instead, and how often.
    pub failures: BTreeMap<String, usize>,
    /// Why it failed; empty if it passed.
    pub faults: Vec<String>,
}

impl Row {
    /// Nothing measured yet.
    pub fn new(topology: &'static str, fault: &'static str, limit: Option<Duration>) -> Self {
        Self { topology, fault, limit_s: limit.map(seconds), ..Self::default() }
    }

    /// Takes over the requests since the fault began, for each of its rounds.
    pub fn take(&mut self, rounds: &[Instant], samples: &[Sample]) {
        (self.rounds, self.requests) = (rounds.len(), samples.len());
        let mut lost = vec![0; rounds.len()];
        for sample in samples {
            let busy = sample.failure.as_ref().is_some_and(|failure| failure.contains(BUSY));
            // What was under way when a round began is lost to that round.
            let ended = sample.at + sample.took;
            let round = rounds.iter().filter(|&&round| round <= ended).count().saturating_sub(1);
            self.repeated += usize::from(sample.repeated);
            lost[round] += usize::from(sample.repeated || (sample.failure.is_some() && !busy));
            if let Some(failure) = &sample.failure {
                if busy {
                    self.busy += 1;
                    continue;
                }
                *self.failures.entry(failure.clone()).or_default() += 1;
                self.failed += 1;
                let after = seconds(sample.at.saturating_duration_since(rounds[round]));
                self.last_failure_s = Some(self.last_failure_s.unwrap_or_default().max(after));
            }
        }
        self.lost_in_worst_round = lost.into_iter().max().unwrap_or_default();
        let right = |connected| {
            let right = samples.iter().filter(|sample| sample.failure.is_none() && sample.connected == connected);
            let mut times: Vec<_> = right.map(|sample| ms(sample.took)).collect();
            times.sort_by(f64::total_cmp);
            times
        };
        let (kept, new) = (right(false), right(true));
        (self.p50_ms, self.p99_ms) = (quantile(&kept, 0.5), quantile(&kept, 0.99));
        (self.new_p50_ms, self.new_p99_ms) = (quantile(&new, 0.5), quantile(&new, 0.99));
        self.slowest_ms = quantile(&kept, 1.0).max(quantile(&new, 1.0));
    }

    /// Adds everything that kept no limit to the faults.
    pub fn judge(&mut self, short: bool, nothing_may_fail: bool) {
        let mut fault = |wrong: bool, text: String| {
            if wrong {
                self.faults.push(text);
            }
        };
        let (requests, failed) = (self.requests, self.failed);
        fault(requests == 0, "nothing was asked for".into());
        fault(self.failures.contains_key(OTHER_BYTES), "an unwrap gave other bytes".into());
        let denied = self.failures.keys().find(|text| is_denial(text));
        fault(denied.is_some(), format!("a good request was denied: {denied:?}"));
        fault(short && nothing_may_fail && failed > 0, format!("{failed} requests failed: {:?}", self.failures));
        if let Some(limit) = self.may_lose {
            // In the short form only what a client sees that sends again.
            let lost = if short { failed } else { self.lost_in_worst_round };
            fault(lost > limit, format!("{lost} requests were lost in a round; the limit is {limit}"));
        }
        if let (Some(limit), Some(last)) = (self.limit_s, self.last_failure_s) {
            let text =
                format!("the last of {failed} failures of {requests} was after {last:.2} s; the limit is {limit} s");
            fault(last > limit, text);
        }
    }

    /// Whether it failed in a way that a machine short of time explains.
    pub fn may_be_the_machines(&self) -> bool {
        !self.passed() && !self.failures.keys().any(|text| text == OTHER_BYTES || is_denial(text))
    }

    /// Whether every limit was kept.
    pub fn passed(&self) -> bool {
        self.faults.is_empty()
    }

    /// As a line of the table.
    pub fn line(&self) -> String {
        let cells = [
            format!("{:22}{}", self.topology, self.fault),
            figure(Some(self.took_s), 1),
            self.requests.to_string(),
            self.failed.to_string(),
            self.repeated.to_string(),
            self.lost_in_worst_round.to_string(),
            self.may_lose.map_or_else(|| "-".into(), |limit| limit.to_string()),
            self.busy.to_string(),
            figure(self.last_failure_s, 2),
            figure(self.limit_s, 0),
            figure(Some(self.p50_ms), 1),
            figure(Some(self.p99_ms), 1),
            figure(Some(self.new_p50_ms), 1),
            figure(Some(self.new_p99_ms), 1),
            figure(Some(self.slowest_ms), 0),
        ];
        let mut text = TABLE.line(cells, &self.faults);
        for (failure, count) in self.failures.iter().take(SHOWN) {
            text += &format!("\n    {count} × {failure}");
        }
        text
    }
}

/// What each way adds to the latency, beside no balancer at all.
pub struct Added;

impl Added {
    /// Of the rows without a fault; empty without something to compare with.
    pub fn table(rows: &[Row]) -> String {
        let mut quiet = rows.iter().filter(|row| row.fault == "none");
        let Some(none) = quiet.next().filter(|row| row.topology == "no balancer") else { return String::new() };
        let table = Table([("\nadded latency, ms", 24), ("p50", 8), ("p99", 8), ("new p50", 10), ("new p99", 10)]);
        let mut text = table.head();
        for row in quiet {
            let added = |with: f64, without: f64| format!("{:+.2}", with - without);
            let cells = [
                added(row.p50_ms, none.p50_ms),
                added(row.p99_ms, none.p99_ms),
                added(row.new_p50_ms, none.new_p50_ms),
                added(row.new_p99_ms, none.new_p99_ms),
            ];
            text += &format!("\n{:23}{:>8}{:>8}{:>10}{:>10}", row.topology, cells[0], cells[1], cells[2], cells[3]);
        }
        text
    }
}

fn quantile(sorted: &[f64], share: f64) -> f64 {
    let place = (share * sorted.len() as f64).ceil() as usize;
    sorted.get(place.saturating_sub(1)).copied().unwrap_or_default()
}

fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}

/// The columns.
pub const TABLE: Table<15> = Table([
    ("topology              fault", 38),
    ("took s", 8),
    ("requests", 10),
    ("failed", 8),
    ("again", 7),
    ("worst", 7),
    ("limit", 7),
    ("busy", 6),
    ("last fail s", 13),
    ("limit s", 9),
    ("p50 ms", 8),
    ("p99 ms", 8),
    ("new p50", 9),
    ("new p99", 9),
    ("slowest", 9),
]);
