//! How much the store writes for each byte of a user: the real store over memory, without threads, by seed.
//!
//! A raw volume is filled, overwritten three times in the workload's pattern, and then measured while it is overwritten once more. All
//! that reaches the backing counts: data, record headers, what the cleaner moves, checkpoints.

use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use blockd::buf::AlignedBuf;
use blockd::device::VolumeKind;
use blockd::storage::memory::MemoryStorage;
use blockd::store::Shared;
use blockd::store::create::{NewStore, create};
use blockd::store::format::segment::Stream;
use blockd::store::map::segments::State;
use blockd::volume::OpenOptions;
use blockd::volume::stepped::Stepped;
use clap::{Args, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde::Serialize;
use serde_json::json;

const PAGE: u64 = 4096;
/// Batches between looks at how the image is used.
const SPACE_EVERY: u64 = 64;

/// What is measured, and how.
#[derive(Debug, Args)]
pub struct Options {
    /// Size of the image, in MiB.
    #[arg(long, default_value_t = 2048, value_parser = clap::value_parser!(u64).range(16..))]
    image_mib: u64,
    /// Size of a segment, in KiB; 0: as mkfs chooses.
    #[arg(long, default_value_t = 0)]
    segment_kib: u64,
    /// Live pages of the volume, in percent of the pages of the image.
    #[arg(long, default_value_t = 80, value_parser = clap::value_parser!(u64).range(1..=95))]
    utilisation: u64,
    /// Pages that are written together.
    #[arg(long, default_value_t = 128, value_parser = clap::value_parser!(u64).range(1..=256))]
    batch: u64,
    /// Bytes of log between checkpoints, in MiB; 0: as the daemon does by default.
    #[arg(long, default_value_t = 0)]
    checkpoint_mib: u64,
    /// Times that the volume is overwritten before the measurement.
    #[arg(long, default_value_t = 3)]
    turns_before: u64,
    /// Times that it is overwritten while it is measured.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..))]
    turns: u64,
    /// Of the random numbers.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Only this pattern; may be repeated.
    #[arg(long, value_enum)]
    only: Vec<Pattern>,
    /// One JSON object per pattern.
    #[arg(long)]
    json: bool,
}

/// Which pages are overwritten.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Pattern {
    /// All alike.
    Uniform,
    /// Nine of ten writes go to a tenth of the pages.
    HotCold,
    /// Zipf with exponent 0.99.
    Zipf,
}

impl Pattern {
    const ALL: [Pattern; 3] = [Pattern::Uniform, Pattern::HotCold, Pattern::Zipf];

    fn name(self) -> &'static str {
        match self {
            Pattern::Uniform => "uniform",
            Pattern::HotCold => "90/10 hot-cold",
            Pattern::Zipf => "zipf 0.99",
        }
    }

    /// At most this at 80 % utilisation.
    fn bar(self) -> f64 {
        match self {
            Pattern::Uniform => 2.9,
            Pattern::HotCold => 2.0,
            Pattern::Zipf => 2.3,
        }
    }
}

/// Draws pages. Ranks of the skewed patterns are scattered over the volume.
struct Pages {
    pattern: Pattern,
    rng: StdRng,
    count: u64,
    stride: u64,
    /// Zipf: the sum over the ranks up to each.
    sums: Vec<f64>,
}

impl Pages {
    fn new(pattern: Pattern, count: u64, seed: u64) -> Self {
        let mut sum = 0.0;
        let mut sums = Vec::new();
        if pattern == Pattern::Zipf {
            sums = (1..=count)
                .map(|rank| {
                    sum += (rank as f64).powf(-0.99);
                    sum
                })
                .collect();
        }
        let coprime = |n: &u64| gcd(*n, count) == 1;
        let stride = (count * 5 / 8 + 1..).find(coprime).unwrap_or(1);
        Pages { pattern, rng: StdRng::seed_from_u64(seed), count, stride, sums }
    }

    fn next(&mut self) -> u64 {
        let hot = (self.count / 10).max(1);
        let rank = match self.pattern {
            Pattern::Uniform => return self.rng.random_range(0..self.count),
            Pattern::HotCold if self.rng.random_ratio(9, 10) => self.rng.random_range(0..hot),
            Pattern::HotCold => self.rng.random_range(hot..self.count),
            Pattern::Zipf => {
                let all = self.sums.last().copied().unwrap_or(1.0);
                let x = self.rng.random_range(0.0..all);
                self.sums.partition_point(|&sum| sum < x) as u64
            }
        };
        (u128::from(rank) * u128::from(self.stride) % u128::from(self.count)) as u64
    }
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// What was written while it was measured, in bytes.
#[derive(Clone, Copy, Default)]
struct Written {
    user: u64,
    backing: u64,
    moved: u64,
    checkpoints: u64,
    /// Headers of records and segments, those of the cleaner apart.
    user_headers: u64,
    moved_headers: u64,
}

/// What the image's pages are, in percent of them.
#[derive(Clone, Copy, Default, Serialize)]
struct Space {
    /// Segments that may be taken.
    free: f64,
    /// Segments that wait to be free: for a sync, or for a checkpoint.
    emptied: f64,
    /// Segments of the map.
    map: f64,
    /// Heads of the log, as far as they are not written.
    heads: f64,
    /// Pages of data segments that are no data: headers of records and of segments, and what is left at their ends.
    headers: f64,
    /// Data that is dead.
    dead: f64,
    /// Data that is alive.
    live: f64,
    /// Live pages of a data segment, in percent of its pages: what the cleaner's work depends on.
    utilisation: f64,
}

impl Space {
    fn of(store: &Shared) -> Self {
        let maps = store.maps.read();
        let pages = u64::from(store.geometry.segment_pages);
        let mut counts = [0u64; 6];
        let [free, emptied, map, heads, filled, live] = &mut counts;
        for s in maps.segments.all() {
            *live += if s.stream == Stream::Meta { 0 } else { u64::from(s.live()) };
            match s.state {
                State::Free => *free += pages,
                _ if s.stream == Stream::Meta => *map += pages,
                State::Open => {
                    *heads += pages - u64::from(s.used_pages);
                    *filled += u64::from(s.used_pages);
                }
                State::Closed if s.live() == 0 => *emptied += pages,
                State::Closed => *filled += pages,
            }
        }
        // Two of a segment's pages, and one for each record.
        let percent = |count: u64| count as f64 * 100.0 / (pages * maps.segments.all().len() as u64) as f64;
        let log = store.counters.stats();
        let data = (log.user_bytes + log.moved_bytes) as f64 / log.log_bytes as f64;
        let ends = 1.0 - 2.0 / pages as f64;
        let headers = percent(*filled) * (1.0 - data * ends);
        Space {
            free: percent(*free),
            emptied: percent(*emptied),
            map: percent(*map),
            heads: percent(*heads),
            headers,
            dead: percent(*filled) - headers - percent(*live),
            live: percent(*live),
            utilisation: *live as f64 * 100.0 / *filled as f64,
        }
    }

    fn add(&mut self, other: Space, weight: f64) {
        let pairs = [
            (&mut self.free, other.free),
            (&mut self.emptied, other.emptied),
            (&mut self.map, other.map),
            (&mut self.heads, other.heads),
            (&mut self.headers, other.headers),
            (&mut self.dead, other.dead),
            (&mut self.live, other.live),
            (&mut self.utilisation, other.utilisation),
        ];
        for (sum, value) in pairs {
            *sum += value * weight;
        }
    }
}

impl std::fmt::Display for Space {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{:.1} % live, {:.1} dead, {:.2} headers and ends, {:.2} map, {:.2} free, {:.2} emptied, {:.2} heads; data segments are \
             {:.1} % live",
            self.live,
            self.dead,
            self.headers,
            self.map,
            self.free,
            self.emptied,
            self.heads,
            self.utilisation
        )
    }
}

struct Run {
    volume: Stepped,
    storage: MemoryStorage,
    user_bytes: u64,
    version: u64,
}

impl Run {
    fn new(options: &Options) -> Result<Self> {
        let image_bytes = options.image_mib << 20;
        let storage = MemoryStorage::new(image_bytes);
        let volume_pages = image_bytes / PAGE * options.utilisation / 100;
        let new = NewStore {
            kind: VolumeKind::Raw,
            uuid: [1; 16],
            raw_bytes: volume_pages * PAGE,
            segment_bytes: options.segment_kib << 10,
        };
        create(Arc::new(storage.clone()), new).context("making the store")?;
        let mut open = OpenOptions { boot_id: [1; 16], ..OpenOptions::default() };
        if options.checkpoint_mib > 0 {
            open.checkpoint_bytes = options.checkpoint_mib << 20;
        }
        let volume = Stepped::open(Arc::new(storage.clone()), &open).context("opening the store")?;
        Ok(Run { volume, storage, user_bytes: 0, version: 0 })
    }

    fn written(&self) -> Written {
        let stats = self.volume.store().counters.stats();
        Written {
            user: self.user_bytes,
            backing: self.storage.written_bytes(),
            moved: stats.moved_bytes,
            checkpoints: stats.checkpoint_bytes,
            user_headers: stats.log_bytes - stats.user_bytes - stats.moved_bytes - stats.moved_header_bytes,
            moved_headers: stats.moved_header_bytes,
        }
    }

    fn write(&mut self, pages: impl Iterator<Item = u64>) -> Result<()> {
        let (mut version, mut count) = (self.version, 0);
        let contents = pages.map(|page| {
            version += 1;
            count += 1;
            let mut buf = AlignedBuf::zeroed(PAGE as usize);
            buf[..8].copy_from_slice(&page.to_le_bytes());
            buf[8..16].copy_from_slice(&version.to_le_bytes());
            (page, buf)
        });
        self.volume.write_pages(contents).context("writing")?;
        self.user_bytes += count * PAGE;
        self.version = version;
        Ok(())
    }
}

/// Runs all patterns; an error if a bar is missed at 80 %.
pub fn run(options: &Options) -> Result<()> {
    let chosen = |p: &Pattern| options.only.is_empty() || options.only.contains(p);
    let patterns: Vec<Pattern> = Pattern::ALL.into_iter().filter(chosen).collect();
    let volume_pages = (options.image_mib << 20) / PAGE * options.utilisation / 100;
    let turns = 1 + options.turns_before + options.turns;
    let bar = ProgressBar::new(patterns.len() as u64 * turns * volume_pages);
    bar.set_style(ProgressStyle::with_template("{msg:16} {wide_bar} {percent} %, {eta} left")?);
    let mut missed = Vec::new();
    for pattern in patterns {
        bar.set_message(pattern.name());
        let mut run = Run::new(options)?;
        let geometry = run.volume.store().geometry;
        for first in (0..volume_pages).step_by(options.batch as usize) {
            run.write(first..(first + options.batch).min(volume_pages))?;
            bar.inc(options.batch);
        }
        let mut pages = Pages::new(pattern, volume_pages, options.seed);
        let mut before = Written::default();
        let mut space = Space::default();
        for turn in 0..options.turns_before + options.turns {
            if turn == options.turns_before {
                before = run.written();
            }
            let batches = volume_pages.div_ceil(options.batch);
            for batch in 0..batches {
                run.write((0..options.batch).map(|_| pages.next()))?;
                bar.inc(options.batch);
                if turn >= options.turns_before && batch % SPACE_EVERY == 0 {
                    space.add(
                        Space::of(run.volume.store()),
                        1.0 / (options.turns * batches.div_ceil(SPACE_EVERY)) as f64,
                    );
                }
            }
        }
        let after = run.written();
        let user = (after.user - before.user) as f64;
        let share = |bytes: u64| bytes as f64 / user;
        let moved_headers = share(after.moved_headers - before.moved_headers);
        let user_headers = share(after.user_headers - before.user_headers);
        let amplification = share(after.backing - before.backing);
        let moved = share(after.moved - before.moved);
        let checkpoints = share(after.checkpoints - before.checkpoints);
        let rest = amplification - 1.0 - moved - checkpoints - moved_headers - user_headers;
        let holds = amplification <= pattern.bar();
        if options.json {
            let figures = json!({
                "pattern": pattern.name(), "amplification": amplification, "bar": pattern.bar(), "holds": holds,
                "moved": moved, "checkpoints": checkpoints, "user_headers": user_headers, "moved_headers": moved_headers, "rest": rest, "space_percent": space,
                "image_mib": options.image_mib, "utilisation_percent": options.utilisation, "batch_pages": options.batch,
                "segment_bytes": geometry.segment_bytes(), "segments": geometry.segments, "seed": options.seed,
            });
            println!("{figures}");
        } else {
            let verdict = if holds { "holds" } else { "MISSED" };
            bar.suspend(|| {
                println!(
                    "{:15} {amplification:.3} (bar {:.1}: {verdict}) = 1 + {moved:.3} moved + {checkpoints:.3} checkpoints + {user_headers:.3} \
                     headers + {moved_headers:.3} of what is moved + {rest:.3} superblocks\n{:15} {} segments of {} KiB: {space}",
                    pattern.name(),
                    pattern.bar(),
                    "",
                    geometry.segments,
                    geometry.segment_bytes() >> 10,
                );
            });
        }
        if !holds && options.utilisation == 80 {
            missed.push(pattern.name());
        }
    }
    bar.finish_and_clear();
    ensure!(missed.is_empty(), "write amplification is above its bar: {}", missed.join(", "));
    Ok(())
}
