//! What a drill found, for people and for programs.

use std::time::Duration;

use ekm_tests::drill::{Table, figure, seconds};
use serde::Serialize;

use crate::history::Violation;
use crate::revocation;

/// The result of one drill.
#[derive(Debug, Default, Serialize)]
pub struct Row {
    /// What was done.
    pub drill: &'static str,
    /// How long it took, until the cluster was whole again.
    pub took_s: f64,
    /// The longest time in which no write was acknowledged.
    pub write_gap_s: f64,
    /// What it may be.
    pub write_gap_limit_s: Option<f64>,
    /// Time from the start of a frontend to its first wrap, without a database; the longest.
    pub cold_start_s: Option<f64>,
    /// What it may be.
    pub cold_start_limit_s: Option<f64>,
    /// How often a key was disabled at one frontend while another one was watched.
    pub revocations: usize,
    /// Time from the request to disable a key to the other frontend's first refusal: 99 of 100 took no longer.
    pub revocation_p99_s: Option<f64>,
    /// What it may be.
    pub revocation_limit_s: Option<f64>,
    /// Writes that were acknowledged.
    pub writes: usize,
    /// Wraps done meanwhile.
    pub wraps: u64,
    /// Unwraps done meanwhile.
    pub unwraps: u64,
    /// Of these, failed.
    pub failed: u64,
    /// The slowest of them.
    pub slowest_ms: u64,
    /// Acknowledged writes that were lost.
    pub lost: usize,
    /// The catalog's revision in each frontend, at the end.
    pub revisions: Vec<u64>,
    /// Everything that is wrong with the history of writes.
    pub violations: Vec<Violation>,
    /// Why it failed; empty if it passed.
    pub faults: Vec<String>,
}

impl Row {
    /// Takes over how long frontends took to refuse, in order, or why that is not known.
    pub fn take_revocations(&mut self, times: Result<Vec<Duration>, String>) {
        match times {
            Ok(times) => {
                self.revocations = times.len();
                self.revocation_p99_s = revocation::p99(&times).map(seconds);
            }
            Err(error) => self.faults.push(error),
        }
    }

    /// Adds everything that kept no limit to the faults.
    pub fn judge(&mut self, load_error: Option<String>) {
        let mut fault = |wrong: bool, text: String| {
            if wrong {
                self.faults.push(text);
            }
        };
        if let Some(limit) = self.write_gap_limit_s {
            fault(
                self.write_gap_s > limit,
                format!("no write was acknowledged for {:.2} s, more than {limit} s", self.write_gap_s),
            );
        }
        if let (Some(p99), Some(limit)) = (self.revocation_p99_s, self.revocation_limit_s) {
            fault(p99 > limit, format!("a frontend took a disabled key for {p99:.2} s, longer than {limit} s"));
        }
        if let (Some(took), Some(limit)) = (self.cold_start_s, self.cold_start_limit_s) {
            fault(took > limit, format!("a cold start took {took:.2} s, more than {limit} s"));
        }
        let error = load_error.unwrap_or_default();
        fault(self.failed > 0, format!("{} wraps and unwraps failed, the first one: {error}", self.failed));
        fault(self.wraps == 0 || self.unwraps == 0, "nothing was wrapped and unwrapped".into());
        fault(self.writes == 0, "nothing was written".into());
        for violation in self.violations.iter().take(10) {
            fault(true, violation.to_string());
        }
        let more = self.violations.len().saturating_sub(10);
        fault(more > 0, format!("{more} more faults of this kind"));
    }

    /// Whether every limit was kept.
    pub fn passed(&self) -> bool {
        self.faults.is_empty()
    }

    /// As a line of the table.
    pub fn line(&self) -> String {
        let revisions: Vec<_> = self.revisions.iter().map(u64::to_string).collect();
        let cells = [
            self.drill.to_owned(),
            figure(Some(self.took_s), 1),
            figure(Some(self.write_gap_s), 2),
            figure(self.write_gap_limit_s, 0),
            self.writes.to_string(),
            self.wraps.to_string(),
            self.unwraps.to_string(),
            self.failed.to_string(),
            self.slowest_ms.to_string(),
            self.lost.to_string(),
            figure(self.cold_start_s, 2),
            figure(self.revocation_p99_s, 2),
            figure(self.revocation_limit_s, 0),
            revisions.join(" "),
        ];
        TABLE.line(cells, &self.faults)
    }
}

/// The columns.
pub const TABLE: Table<14> = Table([
    ("drill", 24),
    ("took s", 8),
    ("gap s", 8),
    ("limit", 6),
    ("writes", 8),
    ("wraps", 9),
    ("unwraps", 9),
    ("failed", 8),
    ("slowest ms", 12),
    ("lost", 6),
    ("cold s", 8),
    ("revoke p99 s", 14),
    ("limit", 6),
    ("revisions", 14),
]);
