//! A file system over FUSE: vexfs-fuse (store embedded) and libfuse's example passthrough_ll over a directory of the
//! same file system, with and without the kernel's writeback cache. The loops are ours, so that nothing but system calls is measured.

use std::fs::{self, File, OpenOptions};
use std::io::ErrorKind;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rand::Rng;
use rustix::fs::{Advice, AtFlags, CWD, StatxFlags, fadvise, statx};

use super::files::{allocate, make_image, path_text};
use crate::contender::{Contender, Prepared, Work, Workload};
use crate::cpu;
use crate::env::Env;
use crate::server::Server;

pub const CASES: &[&str] = &["create", "stat", "read4k", "write4k", "write4k-fsync"];

/// One turn of each of [`CASES`].
const LOOPS: [fn(&Tree, Duration) -> Result<Work>; 5] =
    [Tree::create, Tree::stat, Tree::read, Tree::write, Tree::write_fsync];

/// Directory of what `create` makes.
const CREATED: &str = "created";
const STAT_FILES: usize = 2000;
const DATA_PAGES: u64 = 16 << 10; // 64 MiB
const PAGE: usize = 4096;

pub fn prepare(env: &Env) -> Prepared {
    env.tool("fusermount3")?;
    let ours =
        Mounted::new(Program::Vexfs { mkfs: env.program("mkfs.vexfs")?, fuse: env.program("vexfs-fuse")? });
    let rival = |writeback| -> std::result::Result<Mounted, String> {
        Ok(Mounted::new(Program::Passthrough { program: env.rival("passthrough_ll")?, writeback }))
    };
    Ok(Workload {
        name: "fuse",
        about: "One thread; files are filled before. stat is statx with FORCE_SYNC (one request to the server \
                each). read4k drops the page from the mount's cache after each read, so that the next read of it \
                goes to the server; vexfs-fuse then reads its image with O_DIRECT and checks a crc, while \
                passthrough_ll finds it in the page cache of the file system below. write4k ends with one fsync, \
                which counts; write4k-fsync has one after each write. passthrough_ll sends each write to the \
                server, as vexfs-fuse does; with -writeback the kernel gathers them, so that pages written twice \
                are sent once. What was created is removed after the measurement."
            .to_owned(),
        cases: CASES.to_vec(),
        unit: "ops",
        contenders: vec![Box::new(ours), Box::new(rival(false)?), Box::new(rival(true)?)],
        bars: Vec::new(),
        missing: Vec::new(),
    })
}

enum Program {
    Vexfs { mkfs: PathBuf, fuse: PathBuf },
    Passthrough { program: PathBuf, writeback: bool },
}

struct Mounted {
    program: Program,
    running: Option<(Server, Tree)>,
}

impl Mounted {
    fn new(program: Program) -> Self {
        Self { program, running: None }
    }
}

impl Contender for Mounted {
    fn name(&self) -> String {
        match self.program {
            Program::Vexfs { .. } => "vexfs-fuse".to_owned(),
            Program::Passthrough { writeback: false, .. } => "passthrough_ll".to_owned(),
            Program::Passthrough { writeback: true, .. } => "passthrough_ll-writeback".to_owned(),
        }
    }

    fn start(&mut self, env: &Env) -> Result<()> {
        let mount = env.scratch().join(self.name());
        fs::create_dir(&mount)?;
        let log = mount.with_extension("log");
        let mut server = match &self.program {
            Program::Vexfs { mkfs, fuse } => {
                let image = env.scratch().join("fuse.vexfs");
                make_image(mkfs, &image, &["--size", "2G"])?;
                allocate(&image)?;
                Server::spawn(fuse, &[path_text(&image)?, path_text(&mount)?, "-f"], log)?
            }
            Program::Passthrough { program, writeback } => {
                let source = mount.with_extension("source");
                fs::create_dir(&source)?;
                let writeback = if *writeback { ",writeback" } else { "" };
                let options = format!("source={}{writeback}", source.display());
                Server::spawn(program, &["-f", "-o", &options, path_text(&mount)?], log)?
            }
        };
        server.wait_for_mount(&mount)?;
        self.running = Some((server, Tree::new(mount)?));
        Ok(())
    }

    fn round(&mut self, case: usize, time: Duration) -> Result<Work> {
        let (_, tree) = self.running.as_ref().context("not started")?;
        LOOPS[case](tree, time)
    }

    fn tidy(&mut self) -> Result<()> {
        let (_, tree) = self.running.as_ref().context("not started")?;
        tree.tidy()
    }

    fn server_pid(&self) -> Option<u32> {
        self.running.as_ref().map(|(server, _)| server.pid())
    }

    fn stop(&mut self) -> Result<()> {
        let Some((mut server, tree)) = self.running.take() else { return Ok(()) };
        drop(tree);
        server.stop()
    }
}

/// The files that the loops work on.
struct Tree {
    root: PathBuf,
    data: File,
}

impl Tree {
    fn new(root: PathBuf) -> Result<Self> {
        fs::create_dir(root.join("stat"))?;
        for index in 0..STAT_FILES {
            File::create(stat_path(&root, index))?;
        }
        let data =
            OpenOptions::new().read(true).write(true).create(true).truncate(true).open(root.join("data"))?;
        for page in 0..DATA_PAGES / 256 {
            data.write_all_at(&vec![page as u8; 256 * PAGE], page * 256 * PAGE as u64)?;
        }
        data.sync_all()?;
        fadvise(&data, 0, None, Advice::Random)?;
        Ok(Self { root, data })
    }

    /// Creates empty files, a new directory for each thousand.
    fn create(&self, time: Duration) -> Result<Work> {
        let top = self.root.join(CREATED);
        fs::create_dir(&top)?;
        let mut directory = PathBuf::new();
        repeat(time, |count| {
            if count.is_multiple_of(1000) {
                directory = top.join(format!("{count}"));
                fs::create_dir(&directory)?;
            }
            File::create_new(directory.join(format!("file-{count}")))?;
            Ok(())
        })
    }

    /// Removes what `create` made.
    fn tidy(&self) -> Result<()> {
        match fs::remove_dir_all(self.root.join(CREATED)) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                Err(error).context("cannot remove what was created")
            }
            _ => Ok(()),
        }
    }

    fn stat(&self, time: Duration) -> Result<Work> {
        let mut rng = rand::rng();
        repeat(time, |_| {
            let path = stat_path(&self.root, rng.random_range(0..STAT_FILES));
            statx(CWD, &path, AtFlags::STATX_FORCE_SYNC, StatxFlags::BASIC_STATS)?;
            Ok(())
        })
    }

    fn read(&self, time: Duration) -> Result<Work> {
        let mut rng = rand::rng();
        let mut page = [0; PAGE];
        fadvise(&self.data, 0, None, Advice::DontNeed)?;
        repeat(time, |_| {
            let offset = rng.random_range(0..DATA_PAGES) * PAGE as u64;
            self.data.read_exact_at(&mut page, offset)?;
            fadvise(&self.data, offset, std::num::NonZeroU64::new(PAGE as u64), Advice::DontNeed)?;
            Ok(())
        })
    }

    fn write(&self, time: Duration) -> Result<Work> {
        let start = Instant::now();
        let cpu = cpu::of_this_thread()?;
        let written = self.write_pages(time, |_| Ok(()))?;
        self.data.sync_data()?;
        Ok(Work {
            operations: written.operations,
            elapsed: start.elapsed(),
            client_cpu: cpu::of_this_thread()? - cpu,
            p50: written.p50,
            p99: written.p99,
        })
    }

    fn write_fsync(&self, time: Duration) -> Result<Work> {
        self.write_pages(time, File::sync_data)
    }

    fn write_pages(&self, time: Duration, after: impl Fn(&File) -> std::io::Result<()>) -> Result<Work> {
        let mut rng = rand::rng();
        let page: [u8; PAGE] = [rng.random(); PAGE];
        repeat(time, |_| {
            self.data.write_all_at(&page, rng.random_range(0..DATA_PAGES) * PAGE as u64)?;
            Ok(after(&self.data)?)
        })
    }
}

fn stat_path(root: &Path, index: usize) -> PathBuf {
    root.join("stat").join(format!("file-{index}"))
}

/// Calls `operation` with 0, 1, 2... for about `time`.
fn repeat(time: Duration, mut operation: impl FnMut(u64) -> Result<()>) -> Result<Work> {
    let mut latencies = Vec::new();
    let cpu = cpu::of_this_thread()?;
    let start = Instant::now();
    let mut last = Duration::ZERO;
    while last < time {
        operation(latencies.len() as u64)?;
        let now = start.elapsed();
        latencies.push(now - last);
        last = now;
    }
    let client_cpu = cpu::of_this_thread()? - cpu;
    let operations = latencies.len();
    let mut nth = |n: usize| *latencies.select_nth_unstable(n).1;
    let (p50, p99) = (nth(operations / 2), nth(operations * 99 / 100));
    Ok(Work { operations: operations as u64, elapsed: last, client_cpu, p50: Some(p50), p99: Some(p99) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loops_do_what_they_say_on_a_plain_directory() {
        let directory = tempfile::tempdir().unwrap();
        let tree = Tree::new(directory.path().to_path_buf()).unwrap();
        for work in LOOPS.map(|work| work(&tree, Duration::from_millis(5)).unwrap()) {
            assert!(work.operations > 0 && work.elapsed >= Duration::from_millis(5));
        }
        tree.tidy().unwrap();
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 2, "what create made is gone");
    }
}
