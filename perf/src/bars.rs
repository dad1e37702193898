//! Bars: what a ratio has to reach, and whether it does.

use serde::Serialize;

use crate::stats::{Ratio, Summary};

/// What is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Metric {
    /// Operations per second.
    Rate,
    /// Median latency.
    P50,
    /// CPU time of the server for an operation.
    ServerCpu,
}

impl std::fmt::Display for Metric {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Metric::Rate => "rate",
            Metric::P50 => "p50",
            Metric::ServerCpu => "server CPU",
        })
    }
}

/// Of ours over the rival's, in the same rounds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Bound {
    AtLeast(f64),
    AtMost(f64),
}

impl Bound {
    fn holds(self, ratio: f64) -> bool {
        match self {
            Bound::AtLeast(limit) => ratio >= limit,
            Bound::AtMost(limit) => ratio <= limit,
        }
    }
}

impl std::fmt::Display for Bound {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Bound::AtLeast(limit) => write!(f, ">= {limit:.2}"),
            Bound::AtMost(limit) => write!(f, "<= {limit:.2}"),
        }
    }
}

/// One bar: `metric` of `ours` against `bound` times that of `rival`.
#[derive(Debug, Clone, Copy)]
pub struct Bar {
    /// The case it is about.
    pub case: &'static str,
    /// One of our contenders.
    pub ours: &'static str,
    /// What is compared.
    pub metric: Metric,
    /// What the ratio must be.
    pub bound: Bound,
    /// The rival.
    pub rival: &'static str,
}

/// What came of a bar.
#[derive(Debug, Clone, Serialize)]
pub struct Verdict {
    pub ours: &'static str,
    pub metric: Metric,
    pub bound: Bound,
    pub rival: &'static str,
    /// Median of the rounds' ratios, and their range.
    pub ratio: Summary,
    /// Whether that median holds.
    pub held: bool,
}

impl Bar {
    /// Judges by the values of each round; `None` without values (one of them did not run).
    pub fn judge(&self, ours: &[f64], rival: &[f64]) -> Option<Verdict> {
        let ratio = Ratio::of(ours, rival)?.per_round;
        let Bar { ours, metric, bound, rival, .. } = *self;
        Some(Verdict { ours, metric, bound, rival, ratio, held: bound.holds(ratio.median) })
    }
}

impl std::fmt::Display for Verdict {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Summary { median, min, max, .. } = self.ratio;
        let held = if self.held { "held" } else { "MISSED" };
        let Verdict { ours, metric, bound, rival, .. } = self;
        write!(f, "bar: {metric} of {ours} {bound} x {rival}: {median:.2} ({min:.2}..{max:.2}) {held}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BAR: Bar =
        Bar { case: "c", ours: "a", metric: Metric::Rate, bound: Bound::AtLeast(2.0), rival: "b" };

    #[test]
    fn a_bar_is_judged_by_the_median_of_the_rounds() {
        let verdict = BAR.judge(&[20.0, 30.0, 10.0], &[10.0, 10.0, 10.0]).unwrap();
        assert!(verdict.held && verdict.ratio.median == 2.0, "{verdict}");
        let missed = BAR.judge(&[20.0, 30.0, 10.0], &[10.1, 10.0, 10.0]).unwrap();
        assert!(!missed.held);
        assert!(missed.to_string().ends_with("MISSED"), "{missed}");
        let at_most = Bar { bound: Bound::AtMost(1.25), ..BAR };
        assert!(at_most.judge(&[5.0], &[4.0]).unwrap().held);
        assert!(!at_most.judge(&[5.1], &[4.0]).unwrap().held);
    }

    #[test]
    fn without_a_rival_there_is_no_verdict() {
        assert!(BAR.judge(&[1.0], &[]).is_none());
    }
}
