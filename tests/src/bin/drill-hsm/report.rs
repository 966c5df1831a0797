//! What a drill found, for people and for programs.

use std::time::{Duration, Instant};

use ekm_tests::drill::{Table, figure, seconds};
use serde::Serialize;

use crate::load::{Outcome, Sample};

/// Cloud KMS gives up after that time.
const IN_TIME: Duration = Duration::from_millis(150);

/// The share of requests that have the right answer in time, in per cent.
const IN_TIME_PERCENT: f64 = 99.9;

/// On a machine that has other things to do.
const RIGHT_PERCENT: f64 = 50.0;

/// Operations beyond those that were asked for, in per cent.
const EXTRA_PERCENT: f64 = 5.0;

/// How many messages of a kind are shown.
const SHOWN: usize = 3;

/// What a drill promises.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Limits {
    /// From the fault until the replica is out of use; none if it may stay.
    pub out_ms: Option<f64>,
    /// From the fault's end until it serves again.
    pub back_s: Option<f64>,
    /// Whether times and shares are judged: not on a machine that has other things to do.
    pub times: bool,
    /// Whether every single request has to be answered.
    pub no_failure: bool,
}

/// The result of one drill.
#[derive(Debug, Default, Serialize)]
pub struct Row {
    /// What was done.
    pub drill: &'static str,
    /// From the fault until its replica served again.
    pub took_s: f64,
    /// Requests meanwhile.
    pub requests: usize,
    /// The right answer within 150 ms, as a share of them.
    pub in_time_percent: f64,
    /// The right answer at any time, as a share of them.
    pub right_percent: f64,
    /// Half of them took no longer.
    pub p50_ms: f64,
    /// 99 of 100 took no longer.
    pub p99_ms: f64,
    /// The slowest one.
    pub slowest_ms: f64,
    /// How late this machine woke the thread that sent a request, at worst: if that is long, the times say little of the service.
    pub stall_ms: f64,
    /// Answers that were none, such as 503.
    pub failed: usize,
    /// 400, 401, 403 and 404.
    pub denied: usize,
    /// Other bytes than were wrapped.
    pub wrong: usize,
    /// Blobs that were wrapped, and unwrapped again by an HSM without faults.
    pub blobs: usize,
    /// Of these, those that it did not open.
    pub lost: usize,
    /// From the fault until the replica was out of use.
    pub out_ms: Option<f64>,
    /// From the fault's end until it served again.
    pub back_s: Option<f64>,
    /// Other replicas that were out of use meanwhile.
    pub others_out: Vec<String>,
    /// Second attempts because the first was late.
    pub hedges: f64,
    /// Second attempts because the first failed.
    pub retries: f64,
    /// Both, in per cent of the requests.
    pub extra_percent: f64,
    /// Operations per second, where that is the question.
    pub per_s: Option<f64>,
    /// Rubbish that was sent besides.
    pub tampered: Option<usize>,
    /// What it was judged by.
    pub limits: Limits,
    /// Why it failed; empty if it passed.
    pub faults: Vec<String>,
}

impl Row {
    /// Takes over the requests that were due since a moment.
    pub fn take_samples(&mut self, samples: &[Sample], since: Instant) {
        let mut samples: Vec<_> = samples.iter().filter(|sample| sample.due >= since).collect();
        samples.sort_unstable_by_key(|sample| sample.took);
        let quantile = |share: f64| {
            let place = (share * samples.len() as f64).ceil() as usize;
            samples.get(place.saturating_sub(1)).map_or(0.0, |sample| ms(sample.took))
        };
        (self.p50_ms, self.p99_ms, self.slowest_ms) = (quantile(0.5), quantile(0.99), quantile(1.0));
        self.stall_ms = samples.iter().map(|sample| ms(sample.late)).fold(0.0, f64::max);
        self.requests = samples.len();
        let in_time =
            samples.iter().filter(|sample| sample.outcome == Outcome::Right && sample.took <= IN_TIME).count();
        let right = samples.iter().filter(|sample| sample.outcome == Outcome::Right).count();
        let percent = |count: usize| 100.0 * count as f64 / samples.len().max(1) as f64;
        (self.in_time_percent, self.right_percent) = (percent(in_time), percent(right));
        let (mut denied, mut failed) = (Vec::new(), Vec::new());
        for sample in samples {
            match &sample.outcome {
                Outcome::Right => {}
                Outcome::Wrong => self.wrong += 1,
                Outcome::Denied(text) => denied.push(text.clone()),
                Outcome::Failed(text) => failed.push(text.clone()),
            }
        }
        (self.denied, self.failed) = (denied.len(), failed.len());
        self.faults.extend(denied.into_iter().take(SHOWN).map(|text| format!("a good request was denied: {text}")));
        if self.limits.no_failure {
            self.faults.extend(failed.into_iter().take(SHOWN).map(|text| format!("a request failed: {text}")));
        }
    }

    /// Takes over the blobs that another HSM did not open.
    pub fn take_lost(&mut self, blobs: usize, lost: Vec<Outcome>) {
        (self.blobs, self.lost) = (blobs, lost.len());
        let texts = lost.into_iter().take(SHOWN);
        self.faults.extend(texts.map(|outcome| format!("a blob that was wrapped does not open: {outcome:?}")));
    }

    /// Adds everything that kept no limit to the faults.
    pub fn judge(&mut self) {
        let Self { limits, out_ms, back_s, requests, .. } = *self;
        let mut fault = |wrong: bool, text: String| {
            if wrong {
                self.faults.push(text);
            }
        };
        fault(requests == 0, "nothing was asked for".into());
        fault(self.wrong > 0, format!("{} unwraps gave other bytes than were wrapped", self.wrong));
        if let Some(limit) = limits.back_s {
            let back = back_s.map_or_else(|| "did not come back".into(), |s| format!("came back after {s:.1} s"));
            fault(back_s.is_none_or(|back_s| back_s > limit), format!("the replica {back}; the limit is {limit} s"));
        }
        if !limits.times {
            let right = self.right_percent;
            return fault(right < RIGHT_PERCENT, format!("{right:.1} % were right, fewer than {RIGHT_PERCENT} %"));
        }
        if let Some(limit) = limits.out_ms {
            let out = out_ms.map_or_else(|| "stayed in use".into(), |ms| format!("was in use for {ms:.0} ms"));
            fault(out_ms.is_none_or(|out_ms| out_ms > limit), format!("the replica {out}; the limit is {limit} ms"));
        }
        fault(
            self.in_time_percent < IN_TIME_PERCENT,
            format!(
                "{:.2} % were right within 150 ms, fewer than {IN_TIME_PERCENT} %; this machine itself was late by {:.0} ms",
                self.in_time_percent, self.stall_ms
            ),
        );
        fault(
            self.extra_percent > EXTRA_PERCENT,
            format!("{:.1} % were done twice, more than {EXTRA_PERCENT} %", self.extra_percent),
        );
        fault(!self.others_out.is_empty(), format!("others were out of use: {}", self.others_out.join(", ")));
    }

    /// Whether every limit was kept.
    pub fn passed(&self) -> bool {
        self.faults.is_empty()
    }

    /// As a line of the table.
    pub fn line(&self) -> String {
        let cells = [
            self.drill.to_owned(),
            figure(Some(self.took_s), 1),
            self.requests.to_string(),
            figure(Some(self.in_time_percent), 2),
            figure(Some(self.p50_ms), 1),
            figure(Some(self.p99_ms), 1),
            figure(Some(self.slowest_ms), 0),
            figure(Some(self.stall_ms), 0),
            self.failed.to_string(),
            self.denied.to_string(),
            self.wrong.to_string(),
            self.blobs.to_string(),
            self.lost.to_string(),
            figure(self.out_ms, 0),
            figure(self.limits.out_ms, 0),
            figure(self.back_s, 1),
            figure(self.limits.back_s, 0),
            figure(Some(self.extra_percent), 1),
        ];
        let mut text = TABLE.line(cells, &self.faults);
        if let Some(per_s) = self.per_s {
            text += &format!("\n    {per_s:.1} a second");
        }
        if let Some(tampered) = self.tampered {
            text += &format!("\n    and {tampered} tampered blobs");
        }
        text
    }
}

/// Milliseconds, to the microsecond.
pub fn ms(duration: Duration) -> f64 {
    seconds(duration * 1000)
}

/// The columns.
pub const TABLE: Table<18> = Table([
    ("drill", 26),
    ("took s", 8),
    ("requests", 10),
    ("in time %", 11),
    ("p50 ms", 8),
    ("p99 ms", 8),
    ("max ms", 8),
    ("stall ms", 10),
    ("failed", 8),
    ("denied", 8),
    ("wrong", 7),
    ("blobs", 7),
    ("lost", 6),
    ("out ms", 8),
    ("limit", 7),
    ("back s", 8),
    ("limit", 7),
    ("extra %", 9),
]);
