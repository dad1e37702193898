//! Prints comparisons for people.

use crate::rounds::Comparison;
use crate::stats::Summary;

/// The text of one comparison: a line for each contender, one for each ratio.
pub fn text(comparison: &Comparison) -> String {
    let Comparison { case, unit, contenders, ratios, bars } = comparison;
    let mut out = format!(
        "{case:<26}{:>14} {:>25} {:>13} {:>13} {:>10} {:>10}\n",
        format!("{unit}/s"),
        "min..max",
        format!("server µs/{}", singular(unit)),
        "client µs",
        "p50 µs",
        "p99 µs"
    );
    for figures in contenders {
        let rate = figures.rate.map_or_else(|| "-".to_owned(), |rate| thousands(rate.median));
        let spread = figures.rate.map_or_else(
            || "-".to_owned(),
            |rate| format!("{}..{}", thousands(rate.min), thousands(rate.max)),
        );
        out += &format!(
            "  {:<24}{rate:>14} {spread:>25} {:>13} {:>13} {:>10} {:>10}\n",
            figures.name,
            short(figures.server_cpu_us),
            short(figures.client_cpu_us),
            short(figures.p50_us),
            short(figures.p99_us)
        );
    }
    for (rival, ratio) in contenders[1..].iter().zip(ratios) {
        if let Some(ratio) = ratio {
            let Summary { median, min, max, .. } = ratio.per_round;
            out += &format!(
                "  ours / {}: {:.2} of medians, {median:.2} by rounds ({min:.2}..{max:.2})\n",
                rival.name, ratio.of_medians
            );
        }
    }
    for verdict in bars {
        out += &format!("  {verdict}\n");
    }
    out
}

fn singular(unit: &str) -> &str {
    unit.strip_suffix('s').unwrap_or(unit)
}

fn short(summary: Option<Summary>) -> String {
    match summary.map(|summary| summary.median) {
        None => "-".to_owned(),
        Some(value) if value < 1.0 => format!("{value:.4}"),
        Some(value) => format!("{value:.1}"),
    }
}

fn thousands(value: f64) -> String {
    let digits = format!("{value:.0}");
    let mut out = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bars::{Bar, Bound, Metric};
    use crate::rounds::Figures;
    use crate::stats::Ratio;

    #[test]
    fn thousands_are_grouped() {
        assert_eq!(thousands(0.4), "0");
        assert_eq!(thousands(999.0), "999");
        assert_eq!(thousands(1_234_567.0), "1,234,567");
    }

    #[test]
    fn a_report_names_both_and_the_ratio() {
        let figures = |name: &str, rates: &[f64]| Figures {
            name: name.to_owned(),
            rates: rates.to_vec(),
            rate: Summary::of(rates),
            server_cpu_us: None,
            client_cpu_us: Summary::of(&[3.25]),
            p50_us: None,
            p99_us: None,
        };
        let bar = Bar {
            case: "read",
            ours: "ours",
            metric: Metric::Rate,
            bound: Bound::AtLeast(2.0),
            rival: "rival",
        };
        let text = text(&Comparison {
            case: "nbd/read".to_owned(),
            unit: "ops".to_owned(),
            contenders: vec![figures("ours", &[3000.0]), figures("rival", &[1500.0])],
            ratios: vec![Ratio::of(&[3000.0], &[1500.0])],
            bars: bar.judge(&[3000.0], &[1500.0]).into_iter().collect(),
        });
        assert!(text.contains("server µs/op"), "{text}");
        assert!(text.contains("3,000..3,000"), "{text}");
        assert!(text.contains("ours / rival: 2.00 of medians, 2.00 by rounds (2.00..2.00)"), "{text}");
        assert!(text.contains("bar: rate of ours >= 2.00 x rival: 2.00 (2.00..2.00) held"), "{text}");
    }
}
