//! What came of requests, as counts and histograms: by phase, callers and kind of request, and over time.

use std::collections::BTreeMap;
use std::time::Duration;

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

/// What came of a request. What is not its right answer in time is no success, whatever the reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// 200, and what it should be.
    Right,
    /// 200, and something else.
    Wrong,
    /// 429.
    TooManyRequests,
    /// 503.
    Unavailable,
    /// Any other 4xx: that it was the caller's fault, or that he may not. He is not told so by mistake.
    Denied,
    /// Any other status.
    Failed,
    /// No answer in time.
    Timeout,
    /// The connection was lost, or there was none.
    Lost,
    /// The generator had no place or no connection for it: says nothing about the service.
    NotSent,
}

impl Kind {
    /// All of them, in this order.
    pub const ALL: [Self; 9] = [
        Self::Right,
        Self::Wrong,
        Self::TooManyRequests,
        Self::Unavailable,
        Self::Denied,
        Self::Failed,
        Self::Timeout,
        Self::Lost,
        Self::NotSent,
    ];

    /// Of an answer that is not 200.
    pub fn of_status(status: u16) -> Self {
        match status {
            429 => Self::TooManyRequests,
            503 => Self::Unavailable,
            400..500 => Self::Denied,
            _ => Self::Failed,
        }
    }

    /// For people.
    pub fn name(self) -> &'static str {
        match self {
            Self::Right => "right",
            Self::Wrong => "wrong",
            Self::TooManyRequests => "429",
            Self::Unavailable => "503",
            Self::Denied => "other 4xx",
            Self::Failed => "other status",
            Self::Timeout => "timeout",
            Self::Lost => "lost",
            Self::NotSent => "not sent",
        }
    }

    /// Whether the service has said that it has no room.
    pub fn is_shed(self) -> bool {
        matches!(self, Self::TooManyRequests | Self::Unavailable)
    }
}

/// One count for each kind.
pub type Counts = [u64; Kind::ALL.len()];

/// Longer is counted as this.
const HIGHEST_US: u64 = 120_000_000;

/// Latencies in microseconds.
pub type Latencies = Histogram<u32>;

/// An empty one, with so many digits.
fn latencies(digits: u8) -> Latencies {
    Histogram::new_with_bounds(1, HIGHEST_US, digits).expect("these bounds are possible")
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(HIGHEST_US)
}

/// Requests that belong together.
#[derive(Clone)]
pub struct Tally {
    /// Requests that were due.
    pub arrivals: u64,
    /// Those that were sent, again if it was again.
    pub attempts: u64,
    /// What came of the requests in the end.
    pub counts: Counts,
    /// What was answered to attempts.
    pub statuses: BTreeMap<u16, u64>,
    /// From the time on the schedule to the right answer.
    pub right: Latencies,
    /// The same to 429 and 503, where that was the end of it.
    pub shed: Latencies,
}

impl Tally {
    /// With latencies in so many digits.
    pub fn new(digits: u8) -> Self {
        Self {
            arrivals: 0,
            attempts: 0,
            counts: Counts::default(),
            statuses: BTreeMap::new(),
            right: latencies(digits),
            shed: latencies(digits),
        }
    }

    fn end(&mut self, kind: Kind, took: Duration) {
        self.counts[kind as usize] += 1;
        if kind == Kind::Right {
            self.right.saturating_record(micros(took));
        } else if kind.is_shed() {
            self.shed.saturating_record(micros(took));
        }
    }

    /// Adds another one's requests.
    pub fn add(&mut self, other: &Self) {
        self.arrivals += other.arrivals;
        self.attempts += other.attempts;
        for (sum, count) in self.counts.iter_mut().zip(other.counts) {
            *sum += count;
        }
        for (status, count) in &other.statuses {
            *self.statuses.entry(*status).or_default() += count;
        }
        self.right.add(&other.right).expect("both have the same bounds");
        self.shed.add(&other.shed).expect("both have the same bounds");
    }
}

/// Which requests belong together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cell {
    pub phase: u16,
    pub group: u16,
    /// The index in the mix.
    pub kind: u16,
}

/// Everything that one thread has seen.
#[derive(Clone)]
pub struct Recording {
    cells: BTreeMap<Cell, Tally>,
    /// By interval, then by group.
    series: Vec<Vec<Option<Box<Tally>>>>,
    interval: Duration,
    /// How much later than it was due a request was ready to be sent.
    pub lateness: Latencies,
    /// How long requests then waited for a free connection.
    pub waits: Latencies,
}

impl Recording {
    /// Over a time, in so many parts that a plot is not too fine.
    pub fn new(seconds: f64, groups: usize) -> Self {
        const STEPS: [f64; 8] = [0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0];
        let step = STEPS.into_iter().find(|step| seconds / step <= 150.0).unwrap_or(60.0);
        let intervals = (seconds / step).ceil() as usize + 1;
        Self {
            cells: BTreeMap::new(),
            series: vec![vec![None; groups]; intervals],
            interval: Duration::from_secs_f64(step),
            lateness: latencies(3),
            waits: latencies(3),
        }
    }

    /// Of the plots.
    pub fn interval(&self) -> Duration {
        self.interval
    }

    fn both(&mut self, cell: Cell, due: Duration, change: impl Fn(&mut Tally)) {
        change(self.cells.entry(cell).or_insert_with(|| Tally::new(3)));
        let interval = (due.as_nanos() / self.interval.as_nanos()) as usize;
        let last = self.series.len() - 1;
        let tally = &mut self.series[interval.min(last)][usize::from(cell.group)];
        change(tally.get_or_insert_with(|| Box::new(Tally::new(2))));
    }

    /// A request is due.
    pub fn arrival(&mut self, cell: Cell, due: Duration) {
        self.both(cell, due, |tally| tally.arrivals += 1);
    }

    /// An attempt was sent, and answered with this status if it was answered. `due` is the request's.
    pub fn attempt(&mut self, cell: Cell, due: Duration, status: Option<u16>) {
        self.both(cell, due, |tally| {
            tally.attempts += 1;
            if let Some(status) = status {
                *tally.statuses.entry(status).or_default() += 1;
            }
        });
    }

    /// A request has come to its end, so long after it was due.
    pub fn end(&mut self, cell: Cell, due: Duration, kind: Kind, took: Duration) {
        self.both(cell, due, |tally| tally.end(kind, took));
    }

    /// How late a request was ready to be sent.
    pub fn late(&mut self, late: Duration) {
        self.lateness.saturating_record(micros(late).max(1));
    }

    /// How long a request waited for a free connection.
    pub fn waited(&mut self, wait: Duration) {
        self.waits.saturating_record(micros(wait).max(1));
    }

    /// Adds what another thread has seen of the same run.
    pub fn add(&mut self, other: &Self) {
        for (cell, tally) in &other.cells {
            self.cells.entry(*cell).or_insert_with(|| Tally::new(3)).add(tally);
        }
        for (mine, theirs) in self.series.iter_mut().flatten().zip(other.series.iter().flatten()) {
            match (mine, theirs) {
                (_, None) => {}
                (Some(mine), Some(theirs)) => mine.add(theirs),
                (mine @ None, theirs) => mine.clone_from(theirs),
            }
        }
        self.lateness.add(&other.lateness).expect("both have the same bounds");
        self.waits.add(&other.waits).expect("both have the same bounds");
    }

    /// All requests of some cells together.
    pub fn sum(&self, wanted: impl Fn(Cell) -> bool) -> Tally {
        let mut sum = Tally::new(3);
        self.cells.iter().filter(|(cell, _)| wanted(**cell)).for_each(|(_, tally)| sum.add(tally));
        sum
    }

    /// The requests of each interval: of one group, or of all.
    pub fn over_time(&self, group: Option<usize>) -> Vec<Tally> {
        let intervals = self.series.iter().map(|groups| {
            let mut sum = Tally::new(2);
            let wanted = groups.iter().enumerate().filter(|(index, _)| group.is_none_or(|group| group == *index));
            wanted.filter_map(|(_, tally)| tally.as_ref()).for_each(|tally| sum.add(tally));
            sum
        });
        intervals.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CELL: Cell = Cell { phase: 0, group: 0, kind: 0 };

    fn recording(latencies_ms: impl Iterator<Item = u64>) -> Recording {
        let mut recording = Recording::new(10.0, 2);
        for ms in latencies_ms {
            let due = Duration::from_millis(ms % 10_000);
            recording.arrival(CELL, due);
            recording.attempt(CELL, due, Some(200));
            recording.end(CELL, due, Kind::Right, Duration::from_millis(ms));
        }
        recording
    }

    #[test]
    fn recordings_of_threads_put_together_are_the_recording_of_one() {
        let (mut even, odd) = (recording((0..1000).step_by(2)), recording((1..1000).step_by(2)));
        even.add(&odd);
        let (one, sum) = (recording(0..1000).sum(|_| true), even.sum(|_| true));
        assert_eq!((sum.arrivals, sum.attempts, &sum.counts, &sum.statuses), (1000, 1000, &one.counts, &one.statuses));
        assert_eq!(sum.right, one.right);
        let over_time = |recording: &Recording| -> Vec<u64> {
            recording.over_time(None).iter().map(|tally| tally.counts[Kind::Right as usize]).collect()
        };
        assert_eq!(over_time(&even), over_time(&recording(0..1000)));
    }

    #[test]
    fn percentiles_are_those_of_the_latencies_within_a_thousandth() {
        let right = recording(1..=1000).sum(|_| true).right;
        for (quantile, expected) in [(0.5, 500_000.0), (0.99, 990_000.0), (0.999, 999_000.0)] {
            let found = right.value_at_quantile(quantile) as f64;
            assert!((found / expected - 1.0).abs() < 0.002, "{quantile}: {found}");
        }
    }

    #[test]
    fn an_interval_has_what_was_due_in_it_whenever_it_was_answered() {
        let mut recording = Recording::new(10.0, 1);
        recording.end(CELL, Duration::from_millis(150), Kind::Timeout, Duration::from_secs(9));
        let over_time = recording.over_time(None);
        assert_eq!(over_time.iter().position(|tally| tally.counts[Kind::Timeout as usize] == 1), Some(1));
    }
}
