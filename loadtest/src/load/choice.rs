//! Choices by chance, some more likely than others.

use fastrand::Rng;

/// Chooses one of several by their weights.
#[derive(Clone, Debug)]
pub struct Weights {
    /// Sums of the weights so far; the last one is all of them.
    sums: Vec<f64>,
}

impl Weights {
    /// By these weights, of which one at least is more than 0.
    pub fn new(weights: impl IntoIterator<Item = f64>) -> Self {
        let mut sum = 0.0;
        let sums = weights.into_iter().map(|weight| {
            sum += weight;
            sum
        });
        Self { sums: sums.collect() }
    }

    /// Zipf's law: the n-th has the weight 1/n^s. All alike if `s` is 0.
    pub fn zipf(count: usize, s: f64) -> Self {
        Self::new((1..=count).map(|n| (n as f64).powf(-s)))
    }

    /// One of them, from 0.
    pub fn choose(&self, random: &mut Rng) -> usize {
        if self.sums.len() < 2 {
            return 0;
        }
        let place = random.f64() * self.sums[self.sums.len() - 1];
        self.sums.partition_point(|sum| *sum <= place).min(self.sums.len() - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn with_zipf_the_first_of_ten_is_chosen_ten_times_as_often_as_the_tenth() {
        let (weights, mut random, mut counts) = (Weights::zipf(10, 1.0), Rng::with_seed(1), [0.0; 10]);
        for _ in 0..200_000 {
            counts[weights.choose(&mut random)] += 1.0;
        }
        let ratio: f64 = counts[0] / counts[9];
        assert!((9.0..11.0).contains(&ratio), "{counts:?}");
    }

    #[test]
    fn what_has_no_weight_is_never_chosen() {
        let (weights, mut random) = (Weights::new([0.0, 1.0, 0.0]), Rng::with_seed(1));
        assert!((0..10_000).all(|_| weights.choose(&mut random) == 1));
    }
}
