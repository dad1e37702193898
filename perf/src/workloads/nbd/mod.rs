//! A block device over NBD: `vexfs-blockd serve` on a raw volume, and nbdkit's file plugin and qemu-storage-daemon on
//! files of the same file system, all filled before. fio's nbd engine is the client of all. What the disk gives
//! without a server stands beside.
//!
//! Three workloads: on the disk, on tmpfs (nothing but the servers' own work), and with less memory than data.

mod bare;
mod served;

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::bars::{Bar, Bound, Metric};
use crate::cgroup::{Group, Limit};
use crate::contender::{Contender, Prepared, Workload};
use crate::env::Env;
use bare::Bare;
use served::{Place, Program, Served};

/// What fio does in a case.
struct Shape {
    name: &'static str,
    rw: &'static str,
    block: &'static str,
    depth: u32,
    /// Writes between flushes; 0 = none.
    flush_every: u32,
    /// A flush at the end, whose time counts.
    flush_at_end: bool,
}

const fn shape(name: &'static str, rw: &'static str, block: &'static str, depth: u32) -> Shape {
    Shape { name, rw, block, depth, flush_every: 0, flush_at_end: false }
}

/// In this order: what was written at random is scattered in our log, and so would be what is then read in sequence.
const SHAPES: [Shape; 9] = [
    shape("seq-write-qd1", "write", "128k", 1),
    shape("seq-write-qd32", "write", "128k", 32),
    shape("seq-read-qd1", "read", "128k", 1),
    shape("seq-read-qd32", "read", "128k", 32),
    shape("read-qd1", "randread", "4k", 1),
    shape("read-qd32", "randread", "4k", 32),
    shape("write-qd1", "randwrite", "4k", 1),
    shape("write-qd32", "randwrite", "4k", 32),
    Shape { flush_every: 1, ..shape("write-flush-qd1", "randwrite", "4k", 1) },
];
const SMALL_RAM_SHAPES: [Shape; 1] =
    [Shape { flush_at_end: true, ..shape("write-qd32-flushed", "randwrite", "4k", 32) }];

/// Cases on the disk and on tmpfs.
pub const CASES: &[&str] = &names(&SHAPES);
/// Cases with little memory.
pub const SMALL_RAM_CASES: &[&str] = &names(&SMALL_RAM_SHAPES);

const fn names<const N: usize>(shapes: &[Shape; N]) -> [&'static str; N] {
    let mut names = [""; N];
    let mut i = 0;
    while i < N {
        names[i] = shapes[i].name;
        i += 1;
    }
    names
}

/// fio's arguments for a case.
fn arguments(shape: &Shape, time: Duration) -> Vec<String> {
    let mut args = vec![
        format!("--rw={}", shape.rw),
        format!("--bs={}", shape.block),
        format!("--iodepth={}", shape.depth),
        format!("--fsync={}", shape.flush_every),
        "--time_based=1".into(),
        format!("--runtime={}ms", time.as_millis()),
        "--norandommap=1".into(),
        "--randrepeat=0".into(),
    ];
    if shape.flush_at_end {
        args.push("--end_fsync=1".into());
    }
    args
}

const MIB: u64 = 1 << 20;
const VOLUME_MIB: u64 = 512;
const SMALL_RAM_VOLUME_MIB: u64 = 1024;
const SMALL_RAM_MIB: u64 = 256;

const OURS: &str = "vexfs-blockd";
const OURS_CACHED: &str = "vexfs-blockd writeback";
const OURS_ROOMY: &str = "vexfs-blockd 2x image";
const NBDKIT: &str = "nbdkit";
const NBDKIT_UNCACHED: &str = "nbdkit uncached";
const QEMU: &str = "qemu-storage-d. cached";
const QEMU_DIRECT: &str = "qemu-storage-d. direct";

fn bar(case: &'static str, ours: &'static str, metric: Metric, bound: Bound, rival: &'static str) -> Bar {
    Bar { case, ours, metric, bound, rival }
}

/// The bars of issue 3 on the disk.
fn disk_bars() -> Vec<Bar> {
    let mut bars = vec![
        bar("read-qd32", OURS, Metric::ServerCpu, Bound::AtMost(1.0), NBDKIT),
        bar("write-qd32", OURS, Metric::ServerCpu, Bound::AtMost(1.0), NBDKIT),
        bar("write-flush-qd1", OURS, Metric::Rate, Bound::AtLeast(0.9), bare::NAME),
    ];
    for case in ["seq-read-qd1", "seq-read-qd32", "seq-write-qd1", "seq-write-qd32"] {
        // With the same caching.
        bars.push(bar(case, OURS, Metric::Rate, Bound::AtLeast(1.0), NBDKIT_UNCACHED));
        bars.push(bar(case, OURS_CACHED, Metric::Rate, Bound::AtLeast(1.0), NBDKIT));
    }
    bars
}

fn tmpfs_bars() -> Vec<Bar> {
    let mut bars = Vec::new();
    for case in ["read-qd1", "write-qd1"] {
        bars.push(bar(case, OURS, Metric::P50, Bound::AtMost(1.25), NBDKIT));
    }
    for case in ["read-qd32", "write-qd32"] {
        bars.push(bar(case, OURS, Metric::ServerCpu, Bound::AtMost(1.0), NBDKIT));
    }
    for case in ["seq-read-qd1", "seq-read-qd32", "seq-write-qd1", "seq-write-qd32"] {
        bars.push(bar(case, OURS, Metric::Rate, Bound::AtLeast(1.0), NBDKIT));
    }
    bars
}

/// The contenders, as far as they are installed.
struct Stable<'a> {
    env: &'a Env,
    shapes: &'static [Shape],
    place: Place,
    contenders: Vec<Box<dyn Contender>>,
    missing: Vec<String>,
}

impl<'a> Stable<'a> {
    fn new(env: &'a Env, shapes: &'static [Shape], place: Place) -> Result<Self, String> {
        env.tool("fio")?;
        let mut stable = Stable { env, shapes, place, contenders: Vec::new(), missing: Vec::new() };
        stable.ours(OURS, false, &[])?;
        Ok(stable)
    }

    fn add(&mut self, name: &'static str, program: Program) {
        self.contenders.push(Box::new(Served::new(name, program, self.place.clone(), self.shapes)));
    }

    /// Adds ours, with settings of `serve`, and in an image of twice the volume's size if it is to be `roomy`.
    fn ours(
        &mut self,
        name: &'static str,
        roomy: bool,
        settings: &'static [&'static str],
    ) -> Result<(), String> {
        let (mkfs, blockd) = (self.env.program("mkfs.vexfs")?, self.env.program("vexfs-blockd")?);
        let resize = if roomy { Some(self.env.program("vexctl")?) } else { None };
        self.add(name, Program::Ours { mkfs, blockd, resize, settings });
        Ok(())
    }

    /// Adds a rival, or notes that it is not there.
    fn rival(&mut self, name: &'static str, tool: &str, make: impl FnOnce(PathBuf) -> Program) {
        match self.env.tool(tool) {
            Ok(program) => self.add(name, make(program)),
            Err(why) => self.missing.push(format!("{name}: {why}")),
        }
    }

    fn nbdkit(&mut self, name: &'static str, settings: &'static [&'static str]) {
        self.rival(name, "nbdkit", |program| Program::Nbdkit { program, settings });
    }

    fn qemu(&mut self, name: &'static str, direct: bool) {
        self.rival(name, "qemu-storage-daemon", |program| Program::Qemu { program, direct });
    }

    fn workload(self, name: &'static str, about: String, cases: &[&'static str], bars: Vec<Bar>) -> Workload {
        let Stable { contenders, missing, .. } = self;
        Workload { name, about, cases: cases.to_vec(), unit: "ops", contenders, bars, missing }
    }
}

/// On the disk.
pub fn prepare(env: &Env) -> Prepared {
    let place = Place { directory: env.scratch().to_path_buf(), volume_bytes: VOLUME_MIB * MIB, limit: None };
    let mut stable = Stable::new(env, &SHAPES, place)?;
    stable.ours(OURS_CACHED, false, &["--cache", "writeback"])?;
    stable.nbdkit(NBDKIT_UNCACHED, &["cache=none", "fadvise=random"]);
    stable.nbdkit(NBDKIT, &[]);
    stable.qemu(QEMU, false);
    stable.qemu(QEMU_DIRECT, true);
    let bare = Bare::new(env.scratch().join("bare.raw"), VOLUME_MIB * MIB, &SHAPES);
    stable.contenders.push(Box::new(bare));
    let about = format!(
        "4 KiB at random, and 128 KiB in sequence, over a {VOLUME_MIB} MiB volume (ours: raw, in an image a quarter \
         larger); images and files are allocated, and the volumes filled, before. vexfs-blockd reads and writes its \
         image with O_DIRECT (with --cache writeback through the page cache), checks a crc at each read, and acknowledges a write when its log record has reached the \
         image. nbdkit and qemu-storage-daemon cached answer from and into the page cache: their writes reach the disk \
         later, by kernel threads whose CPU time is in no column. nbdkit uncached (cache=none fadvise=random) asks the \
         kernel to drop each page after use, which it does not always do. qemu-storage-daemon direct (cache.direct=on) \
         uses O_DIRECT. '{}' is fio itself on a file with O_DIRECT: what the disk gives. -flush waits for durability \
         after each write in all.",
        bare::NAME
    );
    Ok(stable.workload("nbd", about, CASES, disk_bars()))
}

/// On tmpfs.
pub fn prepare_tmpfs(env: &Env) -> Prepared {
    let directory = env.memory_scratch(4 * VOLUME_MIB * MIB)?;
    let place = Place { directory, volume_bytes: VOLUME_MIB * MIB, limit: None };
    let mut stable = Stable::new(env, &SHAPES, place)?;
    stable.nbdkit(NBDKIT, &[]);
    stable.qemu(QEMU, false);
    let about = format!(
        "As nbd, but images and files are on tmpfs: no disk is waited for, so that what remains is the work of the \
         servers. {VOLUME_MIB} MiB volumes."
    );
    Ok(stable.workload("nbd-tmpfs", about, CASES, tmpfs_bars()))
}

/// With less memory than data.
pub fn prepare_small_ram(env: &Env) -> Prepared {
    let limit = Limit { parent: env.memory_group().map(Path::to_path_buf), bytes: SMALL_RAM_MIB * MIB };
    // Tried here, and made anew for each server.
    let (about_limit, limit) = match Group::new(&limit) {
        Ok(group) => {
            (format!("Each server runs within {SMALL_RAM_MIB} MiB ({})", group.describe()), Some(limit))
        }
        Err(why) => (
            format!(
                "NO MEMORY LIMIT ({why}): the page cache holds everything, so these figures say nothing about little memory"
            ),
            None,
        ),
    };
    let limited = limit.is_some();
    let place =
        Place { directory: env.scratch().to_path_buf(), volume_bytes: SMALL_RAM_VOLUME_MIB * MIB, limit };
    let mut stable = Stable::new(env, &SMALL_RAM_SHAPES, place)?;
    // With room for a log: judged by no bar.
    stable.ours(OURS_ROOMY, true, &[])?;
    stable.nbdkit(NBDKIT, &[]);
    stable.qemu(QEMU_DIRECT, true);
    let about = format!(
        "4 KiB writes at random over a {SMALL_RAM_VOLUME_MIB} MiB volume; the flush at the end is inside the timing. {about_limit}. \
         '{OURS_ROOMY}' has an image of twice the volume's size instead of 1.25 times."
    );
    let case = SMALL_RAM_SHAPES[0].name;
    let bars = if limited {
        vec![
            bar(case, OURS, Metric::Rate, Bound::AtLeast(2.0), QEMU_DIRECT),
            bar(case, OURS, Metric::Rate, Bound::AtLeast(1.2), NBDKIT),
        ]
    } else {
        Vec::new()
    };
    Ok(stable.workload("nbd-small-ram", about, SMALL_RAM_CASES, bars))
}
