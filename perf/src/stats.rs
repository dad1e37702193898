//! The few statistics of the reports. Medians, since a round that another process disturbed should not count;
//! both kinds of ratio, since rounds drift together and a per-round ratio cancels the drift.

/// Median of `values`; the mean of the two middle ones for an even count. `None` for none.
pub fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => None,
        n if n % 2 == 1 => Some(sorted[middle]),
        _ => Some((sorted[middle - 1] + sorted[middle]) / 2.0),
    }
}

/// A set of measured values in short.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub struct Summary {
    /// The median.
    pub median: f64,
    /// Smallest value.
    pub min: f64,
    /// Largest value.
    pub max: f64,
    /// Median absolute deviation from the median, unscaled.
    pub mad: f64,
}

impl Summary {
    /// `None` for no values.
    pub fn of(values: &[f64]) -> Option<Self> {
        let middle = median(values)?;
        let deviations: Vec<f64> = values.iter().map(|v| (v - middle).abs()).collect();
        Some(Self {
            median: middle,
            min: values.iter().copied().fold(f64::INFINITY, f64::min),
            max: values.iter().copied().fold(f64::NEG_INFINITY, f64::max),
            mad: median(&deviations)?,
        })
    }
}

/// Ours over the rival's.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub struct Ratio {
    /// Our median over the rival's median.
    pub of_medians: f64,
    /// Median, min, max and deviation of the ratios of each round.
    pub per_round: Summary,
}

impl Ratio {
    /// Values of the same round stand at the same index. `None` when there are none, or a rival's value is 0.
    pub fn of(ours: &[f64], rival: &[f64]) -> Option<Self> {
        if rival.contains(&0.0) {
            return None;
        }
        let per_round: Vec<f64> = ours.iter().zip(rival).map(|(o, r)| o / r).collect();
        Some(Self { of_medians: median(ours)? / median(rival)?, per_round: Summary::of(&per_round)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn median_of_odd_even_and_none() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), Some(2.5));
        assert_eq!(median(&[]), None);
    }

    #[test]
    fn one_disturbed_round_does_not_move_the_summary() {
        let quiet = Summary::of(&[10.0, 11.0, 10.0, 9.0, 10.0]).unwrap();
        let disturbed = Summary::of(&[10.0, 11.0, 10.0, 9.0, 500.0]).unwrap();
        assert_eq!(quiet.median, disturbed.median);
        assert_eq!(disturbed.mad, 1.0);
        assert_eq!((disturbed.min, disturbed.max), (9.0, 500.0));
    }

    #[test]
    fn per_round_ratio_cancels_drift() {
        // The machine slows down by half on the way; ours is twice as fast in every round.
        let ratio = Ratio::of(&[200.0, 150.0, 100.0], &[100.0, 75.0, 50.0]).unwrap();
        assert_eq!(ratio.per_round, Summary { median: 2.0, min: 2.0, max: 2.0, mad: 0.0 });
        assert_eq!(ratio.of_medians, 2.0);
    }

    #[test]
    fn a_ratio_to_nothing_is_none() {
        assert_eq!(Ratio::of(&[1.0], &[0.0]), None);
        assert_eq!(Ratio::of(&[], &[]), None);
    }
}
