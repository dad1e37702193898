//! What the clients of a volume asked, and how it ended.

use std::time::Duration;

use crossbeam_utils::CachePadded;
use serde::{Deserialize, Serialize};

use super::{Counter, Histogram, HistogramStats};

/// Kinds of requests that are told apart.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Debug)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Bytes out.
    Read,
    /// Bytes in.
    Write,
    /// All acknowledged made durable.
    Flush,
    /// A range given back.
    Trim,
    /// A range of zeros.
    WriteZeroes,
    /// Questions: block status, prefetching.
    Other,
}

impl Kind {
    /// Each of them, in the order of the enum.
    pub const ALL: [Kind; 6] =
        [Kind::Read, Kind::Write, Kind::Flush, Kind::Trim, Kind::WriteZeroes, Kind::Other];

    /// Its name in JSON and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Read => "read",
            Kind::Write => "write",
            Kind::Flush => "flush",
            Kind::Trim => "trim",
            Kind::WriteZeroes => "write_zeroes",
            Kind::Other => "other",
        }
    }
}

#[derive(Default, Debug)]
struct OfKind {
    latency: Histogram,
    bytes: Counter,
    errors: Counter,
}

/// Counters of one volume; each kind in cache lines of its own.
#[derive(Default, Debug)]
pub struct RequestCounters {
    kinds: [CachePadded<OfKind>; 6],
}

impl RequestCounters {
    /// Counts a request that ended, `took` after it was received. Its bytes count if it was carried out.
    pub fn finished(&self, kind: Kind, len_bytes: u64, took: Duration, ok: bool) {
        let counters = &self.kinds[kind as usize];
        counters.latency.record(took);
        if ok {
            if kind != Kind::Other {
                counters.bytes.add(len_bytes);
            }
        } else {
            counters.errors.inc();
        }
    }

    /// As of now, in the order of [`Kind::ALL`].
    pub fn stats(&self) -> Vec<RequestStats> {
        let of = |(kind, c): (Kind, &CachePadded<OfKind>)| RequestStats {
            kind,
            bytes: c.bytes.get(),
            errors: c.errors.get(),
            latency: c.latency.stats(),
        };
        Kind::ALL.into_iter().zip(&self.kinds).map(of).collect()
    }
}

/// Requests of one kind since the start.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct RequestStats {
    /// Which.
    pub kind: Kind,
    /// Bytes of those that were carried out; none for [`Kind::Other`].
    pub bytes: u64,
    /// Those that failed or were refused.
    pub errors: u64,
    /// From the receipt of each to its reply; its count is that of all requests.
    pub latency: HistogramStats,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_counted_apart_and_failures_bring_no_bytes() {
        let counters = RequestCounters::default();
        counters.finished(Kind::Read, 4096, Duration::from_micros(7), true);
        counters.finished(Kind::Read, 512, Duration::from_micros(7), true);
        counters.finished(Kind::WriteZeroes, 1 << 40, Duration::from_micros(7), false);
        let stats = counters.stats();
        for (kind, stats) in Kind::ALL.into_iter().zip(&stats) {
            assert_eq!(kind, stats.kind);
            let expected = match kind {
                Kind::Read => (2, 4608, 0),
                Kind::WriteZeroes => (1, 0, 1),
                _ => (0, 0, 0),
            };
            assert_eq!((stats.latency.count(), stats.bytes, stats.errors), expected, "{kind:?}");
            assert_eq!(serde_json::to_value(kind).unwrap(), kind.name());
        }
    }
}
