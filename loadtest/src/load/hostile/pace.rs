//! So many a second, and no more.

use std::time::Duration;

use tokio::time::{Instant, sleep_until};

/// What is due at a higher rate is sent together: a wake-up for each would cost the machine more than what is sent.
const TOGETHER: Duration = Duration::from_millis(5);

/// What could not be sent for longer is not made up for.
const MADE_UP_S: f64 = 0.1;

/// The first is due at once.
pub struct Pace {
    per_s: f64,
    begun: Instant,
    taken: u64,
}

impl Pace {
    /// From now on.
    pub fn new(per_s: f64) -> Self {
        Self { per_s, begun: Instant::now(), taken: 0 }
    }

    /// Waits until something is due, and says how much.
    pub async fn due(&mut self) -> u64 {
        let next = self.begun + Duration::from_secs_f64(self.taken as f64 / self.per_s);
        if next > Instant::now() {
            sleep_until(next.max(Instant::now() + TOGETHER)).await;
        }
        self.take(self.begun.elapsed())
    }

    /// What is due then; one, if it was called too early.
    fn take(&mut self, elapsed: Duration) -> u64 {
        let due = (elapsed.as_secs_f64() * self.per_s) as u64 + 1;
        let most = (self.per_s * MADE_UP_S) as u64 + 1;
        let now = due.saturating_sub(self.taken).clamp(1, most);
        self.taken = due.max(self.taken + 1);
        now
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_due_is_the_rate_and_a_pause_is_not_made_up_for() {
        for per_s in [300.0, 20_000.0] {
            let mut pace = Pace::new(per_s);
            let sum: u64 = (0..2000).map(|step| pace.take(Duration::from_millis(5 * step))).sum();
            assert!((sum as f64 - 9.995 * per_s).abs() <= 2.0, "{per_s}: {sum}");
            let after_a_minute = pace.take(Duration::from_secs(70));
            assert!(after_a_minute as f64 <= 0.1 * per_s + 1.0, "{per_s}: {after_a_minute}");
        }
        let mut slow = Pace::new(1.0);
        assert_eq!([0, 1, 2, 3].map(|second| slow.take(Duration::from_secs(second))), [1; 4]);
    }
}
