//! All numbers in the text format of Prometheus (Exposition formats, "Text-based format"), named by its conventions:
//! base units (bytes, seconds), `_total` for what only grows.

use std::fmt::Write;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::status;
use crate::control::host::Host;
use crate::control::protocol::{ConnectionStatus, ExportStats, ExportStatus};
use crate::stats::{HistogramStats, RequestStats, StoreStats};
use crate::volume::status::VolumeStatus;

/// A family of one number for each export.
struct Family<'a, T> {
    name: &'a str,
    help: &'a str,
    value: fn(&T) -> f64,
}

const GAUGES: &[Family<'static, VolumeStatus>] = &[
    Family { name: "vexfs_image_bytes", help: "Size of the image.", value: |v| v.space.image_bytes as f64 },
    Family {
        name: "vexfs_capacity_bytes",
        help: "Data that fits at most.",
        value: |v| v.space.capacity_bytes as f64,
    },
    Family { name: "vexfs_used_bytes", help: "Data that is there.", value: |v| v.space.used_bytes as f64 },
    Family {
        name: "vexfs_available_bytes",
        help: "New data that would be taken now.",
        value: |v| v.space.available_bytes as f64,
    },
    Family {
        name: "vexfs_dead_bytes",
        help: "Replaced or discarded, and not yet given back by the cleaner.",
        value: |v| v.space.dead_bytes as f64,
    },
    Family { name: "vexfs_segments", help: "Segments of the log.", value: |v| v.space.segments as f64 },
    Family {
        name: "vexfs_free_segments",
        help: "Segments that are free.",
        value: |v| v.space.free_segments as f64,
    },
    Family { name: "vexfs_map_leaves", help: "Leaves of the committed map.", value: |v| v.map.leaves as f64 },
    Family {
        name: "vexfs_map_dirty_leaves",
        help: "Leaves changed since the last checkpoint.",
        value: |v| v.map.dirty_leaves as f64,
    },
    Family {
        name: "vexfs_open_epoch_pages",
        help: "Pages written since the mounter's last commit.",
        value: |v| v.map.open_pages as f64,
    },
    Family {
        name: "vexfs_read_only",
        help: "1 if the volume takes no writes by its configuration.",
        value: |v| f64::from(v.read_only),
    },
    Family {
        name: "vexfs_failed",
        help: "1 if the store stopped writing since the backing failed.",
        value: |v| f64::from(v.failure.is_some()),
    },
];

const STORE_COUNTERS: &[Family<'static, StoreStats>] = &[
    Family {
        name: "vexfs_log_records_total",
        help: "Records written to the log.",
        value: |s| s.records as f64,
    },
    Family {
        name: "vexfs_log_written_bytes_total",
        help: "Bytes written to the log, headers and the cleaner's copies included.",
        value: |s| s.log_bytes as f64,
    },
    Family {
        name: "vexfs_user_written_bytes_total",
        help: "Bytes of clients' data written to the log.",
        value: |s| s.user_bytes as f64,
    },
    Family {
        name: "vexfs_cleaner_moved_bytes_total",
        help: "Bytes of data that the cleaner moved.",
        value: |s| s.moved_bytes as f64,
    },
    Family {
        name: "vexfs_cleaner_segments_total",
        help: "Segments that the cleaner emptied.",
        value: |s| s.cleaned_segments as f64,
    },
    Family {
        name: "vexfs_checkpoint_written_bytes_total",
        help: "Bytes written for checkpoints.",
        value: |s| s.checkpoint_bytes as f64,
    },
    Family {
        name: "vexfs_checkpoints_without_room_total",
        help: "Checkpoints that found no room.",
        value: |s| s.checkpoints_without_room as f64,
    },
    Family {
        name: "vexfs_syncs_total",
        help: "Syncs of the image that the log asked for.",
        value: |s| s.syncs as f64,
    },
    Family {
        name: "vexfs_backing_read_bytes_total",
        help: "Bytes read from the image for clients.",
        value: |s| s.read_bytes as f64,
    },
    Family {
        name: "vexfs_map_leaf_loads_total",
        help: "Leaves of the map that were not in memory and were read from the image.",
        value: |s| s.leaf_loads as f64,
    },
    Family {
        name: "vexfs_read_errors_total",
        help: "Pages or leaves that could not be read, or whose checksum was wrong.",
        value: |s| s.read_errors as f64,
    },
    Family {
        name: "vexfs_no_space_total",
        help: "Writes refused for want of space.",
        value: |s| s.no_space as f64,
    },
];

/// The text.
pub fn text(host: &Host) -> String {
    let status = status::status(host);
    let stats = status::stats(host);
    let mut out = String::new();
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let start = since_epoch.saturating_sub(host.started().elapsed());
    head(&mut out, "vexfs_build_info", "gauge", "The daemon's version and name; always 1.");
    let labels = [("name", status.name.as_str()), ("version", status.version.as_str())];
    sample(&mut out, "vexfs_build_info", &labels, 1.0);
    head(&mut out, "vexfs_start_time_seconds", "gauge", "Since when it serves, as seconds since 1970.");
    sample(&mut out, "vexfs_start_time_seconds", &[], start.as_secs_f64());
    head(&mut out, "vexfs_connections", "gauge", "Clients that send requests.");
    let names: Vec<&str> = status.exports.iter().map(|export| export.name.as_str()).collect();
    for export in &status.exports {
        let is_its =
            |connection: &&ConnectionStatus| volume_of(&connection.export, &names) == Some(&export.name);
        let count = status.connections.iter().filter(is_its).count();
        sample(&mut out, "vexfs_connections", &[("export", &export.name)], count as f64);
    }
    head(&mut out, "vexfs_negotiations", "gauge", "Clients in their negotiation.");
    sample(&mut out, "vexfs_negotiations", &[], status.negotiations as f64);
    volumes(&mut out, &status.exports);
    stores(&mut out, &stats.exports.iter().collect::<Vec<_>>());
    out
}

/// Which of the volumes' exports a client's export is, or is a snapshot of (`NAME@SNAPSHOT`, which has no further `@`).
fn volume_of<'a>(export: &str, names: &[&'a str]) -> Option<&'a str> {
    let named = |wanted: &str| names.iter().copied().find(|name| *name == wanted);
    named(export).or_else(|| named(export.rsplit_once('@')?.0))
}

fn volumes(out: &mut String, exports: &[ExportStatus]) {
    for family in GAUGES {
        head(out, family.name, "gauge", family.help);
        for export in exports {
            sample(out, family.name, &[("export", &export.name)], (family.value)(&export.volume));
        }
    }
}

fn stores(out: &mut String, exports: &[(&String, &ExportStats)]) {
    for family in STORE_COUNTERS {
        head(out, family.name, "counter", family.help);
        for (name, stats) in exports {
            sample(out, family.name, &[("export", name)], (family.value)(&stats.store));
        }
    }
    let name = "vexfs_checkpoint_duration_seconds";
    head(out, name, "histogram", "How long checkpoints took.");
    for (export, stats) in exports {
        histogram(out, name, &[("export", export)], &stats.store.checkpoints);
    }
    let requests: Vec<([(&str, &str); 2], &RequestStats)> = exports
        .iter()
        .flat_map(|(export, stats)| {
            stats.requests.iter().map(|of| ([("export", export.as_str()), ("op", of.kind.name())], of))
        })
        .collect();
    let name = "vexfs_request_duration_seconds";
    head(out, name, "histogram", "Clients' requests, from the receipt to the reply.");
    requests.iter().for_each(|(labels, of)| histogram(out, name, labels, &of.latency));
    let name = "vexfs_request_bytes_total";
    head(out, name, "counter", "Bytes of clients' requests that were carried out.");
    requests.iter().for_each(|(labels, of)| sample(out, name, labels, of.bytes as f64));
    let name = "vexfs_request_errors_total";
    head(out, name, "counter", "Clients' requests that failed or were refused.");
    requests.iter().for_each(|(labels, of)| sample(out, name, labels, of.errors as f64));
}

fn head(out: &mut String, name: &str, kind: &str, help: &str) {
    // Writing to a string cannot fail.
    let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
}

fn sample(out: &mut String, name: &str, labels: &[(&str, &str)], value: f64) {
    out.push_str(name);
    for (i, (key, value)) in labels.iter().enumerate() {
        let _ = write!(out, "{}{key}=\"{}\"", if i == 0 { '{' } else { ',' }, escape(value));
    }
    let end = if labels.is_empty() { "" } else { "}" };
    let _ = writeln!(out, "{end} {value}");
}

fn histogram(out: &mut String, name: &str, labels: &[(&str, &str)], stats: &HistogramStats) {
    let mut total = 0;
    for (i, count) in stats.buckets.iter().enumerate() {
        total += count;
        let bound = HistogramStats::upper_bound(i).map_or("+Inf".to_owned(), |b| b.as_secs_f64().to_string());
        let labels: Vec<(&str, &str)> = labels.iter().copied().chain([("le", bound.as_str())]).collect();
        sample(out, &format!("{name}_bucket"), &labels, total as f64);
    }
    sample(out, &format!("{name}_sum"), labels, Duration::from_nanos(stats.sum_ns).as_secs_f64());
    sample(out, &format!("{name}_count"), labels, total as f64);
}

fn escape(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::Histogram;

    #[test]
    fn labels_are_escaped_and_numbers_plain() {
        let mut out = String::new();
        sample(&mut out, "x_bytes", &[("export", "a\"b\\c\nd"), ("op", "read")], 12e15);
        sample(&mut out, "y", &[], 0.25);
        assert_eq!(out, "x_bytes{export=\"a\\\"b\\\\c\\nd\",op=\"read\"} 12000000000000000\ny 0.25\n");
    }

    #[test]
    fn a_snapshots_clients_are_those_of_its_volume() {
        let names = ["a", "a@b", ""];
        for (export, volume) in [
            ("a", Some("a")),
            ("a@x", Some("a")),
            ("a@b", Some("a@b")),
            ("a@b@x", Some("a@b")),
            ("@x", Some("")),
        ] {
            assert_eq!(volume_of(export, &names), volume, "{export}");
        }
        assert_eq!(volume_of("c@a", &names), None);
    }

    #[test]
    fn histograms_are_cumulative_and_end_in_infinity() {
        let histogram = Histogram::default();
        histogram.record(Duration::from_micros(3));
        histogram.record(Duration::from_secs(100));
        let mut out = String::new();
        super::histogram(&mut out, "d_seconds", &[("op", "read")], &histogram.stats());
        assert!(out.contains("d_seconds_bucket{op=\"read\",le=\"0.000002\"} 0\n"), "{out}");
        assert!(out.contains("d_seconds_bucket{op=\"read\",le=\"0.000004\"} 1\n"), "{out}");
        assert!(out.contains("d_seconds_bucket{op=\"read\",le=\"+Inf\"} 2\n"), "{out}");
        assert!(out.contains("d_seconds_count{op=\"read\"} 2\n"), "{out}");
        assert!(out.contains("d_seconds_sum{op=\"read\"} 100.000003\n"), "{out}");
    }
}
