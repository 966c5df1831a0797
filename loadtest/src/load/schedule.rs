//! When requests are due. Made from rates alone: no answer, and no lack of one, changes it.

use std::time::Duration;

use fastrand::Rng;

use crate::choice::Weights;
use crate::scenario::{Arrivals, Callers, Phase, Scenario};

/// A scenario's times and rates, with the capacity put in.
#[derive(Clone, Debug)]
pub struct Schedule {
    /// In time's order, without gaps.
    segments: Vec<Segment>,
    /// In time's order.
    pub phases: Vec<PhaseTimes>,
    arrivals: Arrivals,
    seed: u64,
}

/// A phase, and when it is.
#[derive(Clone, Debug)]
pub struct PhaseTimes {
    pub name: String,
    pub begins_s: f64,
    pub ends_s: f64,
    /// Whether it counts: the warm-up does not.
    pub is_measured: bool,
}

/// A time in which the rate is constant, or changes evenly.
#[derive(Clone, Debug)]
struct Segment {
    begins_s: f64,
    seconds: f64,
    from_per_s: f64,
    to_per_s: f64,
    phase: usize,
    groups: Weights,
}

/// A request that is due.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Arrival {
    /// Since the start.
    pub due: Duration,
    pub phase: usize,
    /// Of callers.
    pub group: usize,
}

/// The name of what comes before the first phase.
pub const WARM_UP: &str = "warm-up";

impl Schedule {
    /// Of a scenario. `capacity_per_s` is used where a load is given instead of a rate.
    pub fn new(scenario: &Scenario, capacity_per_s: f64) -> Self {
        let (arrivals, seed) = (scenario.client.arrivals, scenario.seed);
        let mut schedule = Self { segments: Vec::new(), phases: Vec::new(), arrivals, seed };
        if scenario.warm_up_seconds > 0.0 {
            let first = scenario.phase[0].get_ref();
            let seconds = scenario.warm_up_seconds;
            let warm_up = Phase { name: WARM_UP.into(), seconds, burst: None, ramp_to: None, ..first.clone() };
            schedule.add(scenario, &warm_up, capacity_per_s, false);
        }
        for phase in &scenario.phase {
            schedule.add(scenario, phase.get_ref(), capacity_per_s, true);
        }
        schedule
    }

    fn add(&mut self, scenario: &Scenario, phase: &Phase, capacity_per_s: f64, is_measured: bool) {
        let begins_s = self.seconds();
        let (index, ends_s) = (self.phases.len(), begins_s + phase.seconds);
        self.phases.push(PhaseTimes { name: phase.name.clone(), begins_s, ends_s, is_measured });
        let unit = if phase.load.is_some() || phase.loads.is_some() { capacity_per_s } else { 1.0 };
        let callers = || scenario.callers.iter().map(|callers| callers.get_ref());
        let (from, groups) = match phase.rates.as_ref().or(phase.loads.as_ref()) {
            Some(rates) => {
                let of = |name: &String| rates.get(name).copied().unwrap_or(0.0);
                (rates.values().sum(), Weights::new(callers().map(|callers| of(&callers.name))))
            }
            None => {
                let share = callers().map(Callers::share);
                (phase.rate.or(phase.load).unwrap_or(0.0), Weights::new(share))
            }
        };
        let (from_per_s, to_per_s) = (unit * from, unit * phase.ramp_to.unwrap_or(from));
        let whole = Segment { begins_s, seconds: phase.seconds, from_per_s, to_per_s, phase: index, groups };
        let Some(burst) = &phase.burst else { return self.segments.push(whole) };
        let mut at = begins_s;
        while at < ends_s {
            for (seconds, times) in
                [(burst.lasts_seconds, burst.times), (burst.every_seconds - burst.lasts_seconds, 1.0)]
            {
                let (seconds, rate) = (seconds.min(ends_s - at), from_per_s * times);
                if seconds > 0.0 {
                    let part = Segment { begins_s: at, seconds, from_per_s: rate, to_per_s: rate, ..whole.clone() };
                    self.segments.push(part);
                }
                at += seconds.max(0.0);
            }
        }
    }

    /// How long it lasts.
    pub fn seconds(&self) -> f64 {
        self.phases.last().map_or(0.0, |phase| phase.ends_s)
    }

    /// The highest rate that it ever has.
    pub fn peak_per_s(&self) -> f64 {
        self.segments.iter().flat_map(|segment| [segment.from_per_s, segment.to_per_s]).fold(0.0, f64::max)
    }

    /// One thread's part of what is due, in time's order.
    pub fn part(&self, thread: usize, threads: usize) -> Part<'_> {
        let random = Rng::with_seed(self.seed.wrapping_mul(0x9E37_79B9).wrapping_add(thread as u64));
        let threads_f64 = threads as f64;
        let mut part =
            Part { schedule: self, threads: threads_f64, random, segment: 0, segment_begins: 0.0, next: 0.0 };
        // Evenly spaced, the threads take turns.
        part.next = match self.arrivals {
            Arrivals::Uniform => (thread as f64 + 0.5) / threads_f64,
            Arrivals::Poisson => part.exponential(),
        };
        part
    }
}

/// One thread's part. Time is measured in requests: the n-th is due when the rate, summed over time, has come to n.
pub struct Part<'a> {
    schedule: &'a Schedule,
    threads: f64,
    random: Rng,
    segment: usize,
    /// Requests before this segment.
    segment_begins: f64,
    /// The next one.
    next: f64,
}

impl Part<'_> {
    fn exponential(&mut self) -> f64 {
        -(1.0 - self.random.f64()).ln()
    }
}

impl Iterator for Part<'_> {
    type Item = Arrival;

    fn next(&mut self) -> Option<Arrival> {
        loop {
            let segment = self.schedule.segments.get(self.segment)?;
            let (from, to) = (segment.from_per_s / self.threads, segment.to_per_s / self.threads);
            let within = self.next - self.segment_begins;
            let whole = segment.seconds * (from + to) / 2.0;
            if within >= whole {
                self.segment += 1;
                self.segment_begins += whole;
                continue;
            }
            let seconds = time_until(within, from, to, segment.seconds);
            let due = Duration::from_secs_f64(segment.begins_s + seconds);
            let (phase, group) = (segment.phase, segment.groups.choose(&mut self.random));
            self.next += match self.schedule.arrivals {
                Arrivals::Uniform => 1.0,
                Arrivals::Poisson => self.exponential(),
            };
            return Some(Arrival { due, phase, group });
        }
    }
}

/// When a rate that goes evenly from one value to another has come to so many requests: `from·t + (to−from)·t²/2T = requests`, in the
/// form that stays exact when both rates are almost the same.
fn time_until(requests: f64, from: f64, to: f64, seconds: f64) -> f64 {
    let slope = (to - from) / seconds;
    let root = (from * from + 2.0 * slope * requests).max(0.0).sqrt();
    (2.0 * requests / (from + root)).clamp(0.0, seconds)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schedule(phases: &str) -> Schedule {
        let text = format!("name = \"x\"\nwarm_up_seconds = 0\n[[mix]]\nverb = \"wrap\"\n{phases}");
        Schedule::new(&Scenario::parse("x", &text).unwrap(), 1000.0)
    }

    fn due(schedule: &Schedule, threads: usize) -> Vec<f64> {
        let parts = (0..threads).flat_map(|thread| schedule.part(thread, threads));
        let mut due: Vec<_> = parts.map(|arrival| arrival.due.as_secs_f64()).collect();
        due.sort_by(f64::total_cmp);
        due
    }

    fn between(due: &[f64], from: f64, to: f64) -> usize {
        due.iter().filter(|due| (from..to).contains(due)).count()
    }

    #[test]
    fn uniform_arrivals_are_evenly_spaced_whatever_the_number_of_threads() {
        let text = "[client]\narrivals = \"uniform\"\n[[phase]]\nname = \"a\"\nseconds = 10\nrate = 100";
        let schedule = schedule(text);
        for threads in [1, 2, 3] {
            let due = due(&schedule, threads);
            assert_eq!(due.len(), 1000);
            assert!(due.windows(2).all(|pair| (pair[1] - pair[0] - 0.01).abs() < 1e-6), "{threads}");
        }
    }

    #[test]
    fn poisson_arrivals_have_the_rate_and_the_variance_of_a_poisson_process() {
        let schedule = schedule("[[phase]]\nname = \"a\"\nseconds = 1000\nrate = 100");
        let due = due(&schedule, 2);
        let counts: Vec<_> = (0..1000).map(|s| between(&due, f64::from(s), f64::from(s + 1)) as f64).collect();
        let mean = counts.iter().sum::<f64>() / 1000.0;
        let variance = counts.iter().map(|count| (count - mean).powi(2)).sum::<f64>() / 1000.0;
        assert!((98.0..102.0).contains(&mean) && (85.0..115.0).contains(&variance), "{mean} {variance}");
    }

    #[test]
    fn the_same_seed_gives_the_same_arrivals() {
        let schedule = schedule("[[phase]]\nname = \"a\"\nseconds = 1\nrate = 100");
        assert!(schedule.part(0, 1).eq(schedule.part(0, 1)));
        assert!(schedule.part(0, 2).ne(schedule.part(1, 2)));
    }

    #[test]
    fn a_ramp_has_its_rate_at_every_time() {
        let text = "[client]\narrivals = \"uniform\"\n[[phase]]\nname = \"a\"\nseconds = 10\nrate = 0\nramp_to = 200";
        let due = due(&schedule(text), 1);
        assert_eq!(due.len(), 1000);
        for s in 0..10_u8 {
            let (from, expected) = (f64::from(s), 20.0 * f64::from(s) + 10.0);
            assert!((between(&due, from, from + 1.0) as f64 - expected).abs() <= 1.0, "second {s}");
        }
    }

    #[test]
    fn a_burst_comes_again_and_again() {
        let text = "[client]\narrivals = \"uniform\"\n[[phase]]\nname = \"a\"\nseconds = 4\nrate = 100\n\
                    burst = { every_seconds = 2, lasts_seconds = 0.5, times = 10 }";
        let due = due(&schedule(text), 1);
        let counts = [(0.0, 0.5), (0.5, 2.0), (2.0, 2.5), (2.5, 4.0)].map(|(from, to)| between(&due, from, to) as i64);
        let close = counts.into_iter().zip([500, 150, 500, 150]).all(|(count, expected)| (count - expected).abs() <= 1);
        assert!(close, "{counts:?}");
    }

    #[test]
    fn a_load_is_a_multiple_of_the_capacity_and_groups_have_rates_of_their_own() {
        let text = "[[callers]]\nname = \"a\"\n[[callers]]\nname = \"b\"\n[[phase]]\nname = \"p\"\nseconds = 10\n\
                    loads = { a = 0.2, b = 0.8 }";
        let schedule = schedule(text);
        let arrivals: Vec<_> = schedule.part(0, 1).collect();
        let of_b = arrivals.iter().filter(|arrival| arrival.group == 1).count();
        assert!((9_600..10_400).contains(&arrivals.len()), "{}", arrivals.len());
        assert!((7_600..8_400).contains(&of_b), "{of_b}");
    }
}
