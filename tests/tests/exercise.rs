//! Random operations on one file against a copy of its bytes in memory, as fsx does it (which `make posix-test` runs): by read and
//! write, by mmap, by O_DIRECT, with truncations, holes and copies, across each border of data classes (FORMAT.md section 2), with
//! remounts in between.

use std::fmt::Write as _;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rustix::fs::{Advice, FallocateFlags, SeekFrom, copy_file_range, fadvise, fallocate, seek};
use rustix::io::Errno;
use rustix::mm::{MapFlags, MsyncFlags, ProtFlags, mmap, msync, munmap};
use vexfs_tests::settings;
use vexfs_tests::stage::Stage;

const PAGE: usize = 4096;
/// Bytes of the file that are exercised, from [`Exerciser::base`] on.
const LEN: usize = 384 << 10;
/// Most bytes of one operation.
const STEP: usize = 96 << 10;

/// Operations between two remounts.
const STEPS: usize = 700;

/// Bytes at an address that is a multiple of a page, for O_DIRECT.
struct Aligned {
    bytes: Vec<u8>,
    skip: usize,
    len: usize,
}

impl Aligned {
    fn new(len: usize) -> Self {
        let bytes = vec![0; len + PAGE];
        let skip = bytes.as_ptr().align_offset(PAGE);
        Self { bytes, skip, len }
    }

    fn get(&mut self) -> &mut [u8] {
        &mut self.bytes[self.skip..self.skip + self.len]
    }
}

/// A file on a mount, and what it must hold.
struct Exerciser {
    path: PathBuf,
    file: File,
    direct: File,
    /// Where in the file the exercised part begins; all before is a hole.
    base: u64,
    /// The exercised part; zeros from `size` on.
    good: Vec<u8>,
    /// Bytes of the exercised part that the file has.
    size: usize,
    rng: StdRng,
    /// What was done, for people.
    log: Vec<String>,
}

fn open(path: &Path, flags: rustix::fs::OFlags) -> File {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).custom_flags(flags.bits().cast_signed());
    options.open(path).expect("the file can be opened")
}

impl Exerciser {
    fn new(path: PathBuf, base: u64, seed: u64) -> Self {
        let file = open(&path, rustix::fs::OFlags::empty());
        file.set_len(base).expect("a hole before the part");
        Self {
            direct: open(&path, rustix::fs::OFlags::DIRECT),
            file,
            path,
            base,
            good: vec![0; LEN],
            size: 0,
            rng: StdRng::seed_from_u64(seed),
            log: Vec::new(),
        }
    }

    /// After a remount; nothing may have it open during one.
    fn reopen(self) -> impl FnOnce() -> Self {
        let Exerciser { path, base, good, size, rng, log, .. } = self;
        move || {
            let file = open(&path, rustix::fs::OFlags::empty());
            let direct = open(&path, rustix::fs::OFlags::DIRECT);
            Exerciser { path, file, direct, base, good, size, rng, log }
        }
    }

    fn note(&mut self, what: &str, at: usize, len: usize) {
        self.log.push(format!("{what} {at:#x}..{:#x}, size {:#x}", at + len, self.size));
    }

    fn fail(&self, why: &str) -> ! {
        let last = self.log.len().saturating_sub(30);
        let mut text = String::new();
        for line in &self.log[last..] {
            let _ = writeln!(text, "  {line}");
        }
        panic!(
            "{why}\nbase {:#x}, offsets from there; the last of {} operations:\n{text}",
            self.base,
            self.log.len()
        );
    }

    fn check(&self, how: &str, at: usize, found: &[u8]) {
        let expected = &self.good[at..at + found.len()];
        if let Some(first) = expected.iter().zip(found).position(|(a, b)| a != b) {
            let bad = expected.iter().zip(found).filter(|(a, b)| a != b).count();
            let (want, got) = (expected[first], found[first]);
            self.fail(&format!(
                "{how}: {bad} bytes differ, the first at {:#x}: {got:#x}, not {want:#x}",
                at + first
            ));
        }
    }

    /// A range inside of the part, maybe beyond the file's end; `align` divides both ends.
    fn range(&mut self, align: usize) -> (usize, usize) {
        let at = self.rng.random_range(0..LEN) / align * align;
        let len = self.rng.random_range(0..STEP).min(LEN - at) / align * align;
        (at, len)
    }

    /// A range that the file has.
    fn present(&mut self) -> (usize, usize) {
        let at = self.rng.random_range(0..=self.size);
        (at, self.rng.random_range(0..STEP).min(self.size - at))
    }

    fn fill(&mut self, bytes: &mut [u8]) {
        self.rng.fill(bytes);
    }

    /// The file holds `bytes` at `at` from now on.
    fn put(&mut self, at: usize, bytes: &[u8]) {
        self.good[at..at + bytes.len()].copy_from_slice(bytes);
        if !bytes.is_empty() {
            self.size = self.size.max(at + bytes.len());
        }
    }

    fn step(&mut self) {
        match self.rng.random_range(0..100) {
            0..16 => self.write(),
            16..30 => self.read(),
            30..42 => self.map_write(),
            42..52 => self.map_read(),
            52..60 => self.direct_write(),
            60..66 => self.direct_read(),
            66..73 => self.truncate(),
            73..81 => self.hole(),
            81..84 => self.allocate(),
            84..90 => self.copy(),
            90..94 => self.find_holes(),
            94..96 => self.sync(),
            _ => {
                self.note("forget caches", 0, 0);
                fadvise(&self.file, 0, None, Advice::DontNeed).expect("advice is taken");
            }
        }
        let size = self.file.metadata().expect("it has attributes").len();
        if size != self.base + self.size as u64 {
            self.fail(&format!("the size is {:#x} beyond the base", size.wrapping_sub(self.base)));
        }
    }

    fn write(&mut self) {
        let (at, len) = self.range(1);
        self.note("write", at, len);
        let mut bytes = vec![0; len];
        self.fill(&mut bytes);
        self.file.write_all_at(&bytes, self.base + at as u64).expect("a write");
        self.put(at, &bytes);
    }

    fn read(&mut self) {
        let (at, len) = self.present();
        self.note("read", at, len);
        let mut bytes = vec![0; len];
        self.file.read_exact_at(&mut bytes, self.base + at as u64).expect("a read");
        self.check("read", at, &bytes);
    }

    fn direct_write(&mut self) {
        let (at, len) = self.range(512);
        self.note("direct write", at, len);
        let mut bytes = Aligned::new(len);
        self.rng.fill(bytes.get());
        self.direct.write_all_at(bytes.get(), self.base + at as u64).expect("a direct write");
        self.put(at, bytes.get());
    }

    fn direct_read(&mut self) {
        let (at, len) = self.range(512);
        self.note("direct read", at, len);
        let mut bytes = Aligned::new(len);
        let got = self.direct.read_at(bytes.get(), self.base + at as u64).expect("a direct read");
        if got != len.min(self.size.saturating_sub(at)) {
            self.fail(&format!("a direct read gave {got:#x} bytes"));
        }
        self.check("direct read", at, &bytes.get()[..got]);
    }

    /// Maps the pages of a range that the file has and hands them out, to the end of the last page.
    fn mapped(&self, at: usize, len: usize, look: impl FnOnce(&mut [u8])) {
        let begin = at / PAGE * PAGE;
        let bytes = (at + len).next_multiple_of(PAGE) - begin;
        let (protection, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED);
        // SAFETY: a new mapping at an address that the kernel chooses, of pages that the file has: nobody truncates it meanwhile.
        // Nothing else in this process refers to its bytes; it is unmapped below, after its last use.
        unsafe {
            let start =
                mmap(std::ptr::null_mut(), bytes, protection, flags, &self.file, self.base + begin as u64)
                    .expect("the file can be mapped");
            look(std::slice::from_raw_parts_mut(start.cast::<u8>(), bytes));
            if at.is_multiple_of(3) {
                msync(start, bytes, MsyncFlags::SYNC).expect("msync");
            }
            munmap(start, bytes).expect("munmap");
        }
    }

    fn map_write(&mut self) {
        let (at, len) = self.present();
        self.note("map write", at, len);
        if len == 0 {
            return;
        }
        let mut bytes = vec![0; len];
        self.fill(&mut bytes);
        self.mapped(at, len, |map| map[at % PAGE..at % PAGE + len].copy_from_slice(&bytes));
        self.put(at, &bytes);
    }

    fn map_read(&mut self) {
        let (at, len) = self.present();
        self.note("map read", at, len);
        if len == 0 {
            return;
        }
        let mut found = Vec::new();
        self.mapped(at, len, |map| found.extend_from_slice(map));
        let begin = at / PAGE * PAGE;
        let inside = found.len().min(self.size - begin);
        self.check("map read", begin, &found[..inside]);
        if found[inside..].iter().any(|b| *b != 0) {
            self.fail("map read: not zeros beyond the end of the file");
        }
    }

    fn truncate(&mut self) {
        let to = self.rng.random_range(0..=LEN);
        self.note("truncate", to, 0);
        self.file.set_len(self.base + to as u64).expect("a truncation");
        self.good[to..].fill(0);
        self.size = to;
    }

    fn hole(&mut self) {
        let (at, len) = self.range(1);
        if len == 0 {
            return;
        }
        let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        let zero = FallocateFlags::ZERO_RANGE;
        let (what, flags) = match self.rng.random_range(0..4) {
            0 => ("zero, keep size", zero | FallocateFlags::KEEP_SIZE),
            1 => ("zero", zero),
            _ => ("punch", punch),
        };
        self.note(what, at, len);
        match fallocate(&self.file, flags, self.base + at as u64, len as u64) {
            // Not every file system can (ZERO_RANGE), and it must have done nothing then.
            Err(Errno::OPNOTSUPP) if flags != punch => return,
            done => done.expect("a hole"),
        }
        if flags == zero {
            self.size = self.size.max(at + len);
        }
        self.good[at..at + len].fill(0);
    }

    fn allocate(&mut self) {
        let (at, len) = self.range(1);
        if len == 0 {
            return;
        }
        let keep = self.rng.random_bool(0.3);
        self.note(if keep { "allocate, keep size" } else { "allocate" }, at, len);
        let flags = if keep { FallocateFlags::KEEP_SIZE } else { FallocateFlags::empty() };
        fallocate(&self.file, flags, self.base + at as u64, len as u64).expect("an allocation");
        if !keep {
            self.size = self.size.max(at + len);
        }
    }

    fn copy(&mut self) {
        let align = if self.rng.random_bool(0.5) { PAGE } else { 1 };
        let (from, len) = self.present();
        let from = from / align * align;
        let to = self.rng.random_range(0..LEN) / align * align;
        let len = len.min(LEN - to).min(from.abs_diff(to)) / align * align;
        self.note(&format!("copy {from:#x} to"), to, len);
        let (mut source, mut target) = (self.base + from as u64, self.base + to as u64);
        let mut left = len;
        while left > 0 {
            let done = copy_file_range(&self.file, Some(&mut source), &self.file, Some(&mut target), left);
            match done.expect("a copy") {
                0 => self.fail("copy_file_range copied nothing"),
                n => left -= n,
            }
        }
        let bytes = self.good[from..from + len].to_vec();
        self.put(to, &bytes);
    }

    /// What is told as a hole must be zeros.
    fn find_holes(&mut self) {
        self.note("find holes", 0, self.size);
        let end = self.base + self.size as u64;
        let mut at = self.base;
        while at < end {
            let data = match seek(&self.file, SeekFrom::Data(at)) {
                Ok(data) => data,
                Err(Errno::NXIO) => end,
                Err(error) => self.fail(&format!("SEEK_DATA: {error}")),
            };
            if data < at || data > end {
                self.fail(&format!("SEEK_DATA from {at:#x} gave {data:#x}"));
            }
            let hole = &self.good[(at - self.base) as usize..(data - self.base) as usize];
            if hole.iter().any(|b| *b != 0) {
                self.fail(&format!("data is told as a hole between {at:#x} and {data:#x}"));
            }
            if data == end {
                break;
            }
            match seek(&self.file, SeekFrom::Hole(data)) {
                Ok(hole) if hole > data && hole <= end => at = hole,
                other => self.fail(&format!("SEEK_HOLE from {data:#x} gave {other:x?}")),
            }
        }
    }

    fn sync(&mut self) {
        self.note("sync", 0, 0);
        if self.rng.random_bool(0.5) { self.file.sync_all() } else { self.file.sync_data() }.expect("a sync");
    }

    /// The whole part, and the hole before it.
    fn check_all(&mut self) {
        self.note("all is read", 0, self.size);
        let mut bytes = vec![1; LEN + PAGE];
        let got = self.file.read_at(&mut bytes, self.base).expect("a read");
        if got != self.size {
            self.fail(&format!("a read to the end gave {got:#x} bytes"));
        }
        self.check("read of all", 0, &bytes[..got]);
        self.find_holes();
        let before = self.base.min(256 << 10) as usize;
        let mut bytes = vec![1; before];
        self.file.read_exact_at(&mut bytes, self.base - before as u64).expect("a read");
        if bytes.iter().any(|b| *b != 0) {
            self.fail("not zeros before the part");
        }
    }

    /// After a sync: every page that is not zeros takes its space, and pages beyond the file take none.
    fn check_blocks(&self) {
        let blocks = self.file.metadata().expect("it has attributes").blocks();
        let data = self.good.chunks(PAGE).filter(|page| page.iter().any(|b| *b != 0)).count() as u64;
        let most = self.size.div_ceil(PAGE) as u64;
        if !(data * 8..=most * 8).contains(&blocks) {
            self.fail(&format!("{blocks} blocks, with {data} pages of data and {most} pages in all"));
        }
    }
}

/// Exercises a file around a border of classes.
fn exercise(border: u64) {
    let stage = Stage::vexfs(128);
    let mut mount = stage.mount();
    let base = border - LEN as u64 / 2 / PAGE as u64 * PAGE as u64;
    let mut exerciser = Exerciser::new(mount.join("file"), base, settings::seed());
    for _ in 0..3 {
        for _ in 0..STEPS {
            exerciser.step();
        }
        exerciser.check_all();
        let reopen = exerciser.reopen();
        mount.unmount();
        mount = stage.mount();
        exerciser = reopen();
        exerciser.check_all();
        exerciser.check_blocks();
    }
    drop(exerciser);
    mount.unmount();
}

#[test]
fn around_one_mib() {
    exercise(1 << 20);
}

#[test]
fn around_one_gib() {
    exercise(1 << 30);
}

#[test]
fn around_one_tib() {
    exercise(1 << 40);
}
