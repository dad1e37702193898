//! A block device over NBD: `vexfs-blockd serve` on a raw volume, and nbdkit's file plugin on a file of the same
//! file system, both filled before. fio's nbd engine is the client of both. What the disk gives without a server stands beside.

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::fio;
use crate::contender::{Contender, Prepared, Work, Workload};
use crate::env::Env;
use crate::server::Server;

pub const CASES: &[&str] = &["read-qd1", "read-qd32", "write-qd1", "write-qd32", "write-flush-qd1"];

/// (fio's rw, queue depth, writes between flushes), in the order of [`CASES`].
const SHAPES: [(&str, u32, u32); 5] =
    [("randread", 1, 0), ("randread", 32, 0), ("randwrite", 1, 0), ("randwrite", 32, 0), ("randwrite", 1, 1)];

const VOLUME_MIB: u64 = 512;

pub fn prepare(env: &Env) -> Prepared {
    env.tool("fio")?;
    let ours = Ours { mkfs: env.program("mkfs.vexfs")?, blockd: env.program("vexfs-blockd")?, running: None };
    let nbdkit = env.tool("nbdkit")?;
    let nbdkit = |name, settings| {
        Box::new(Nbdkit { name, settings, program: nbdkit.clone(), running: None }) as Box<dyn Contender>
    };
    Ok(Workload {
        name: "nbd",
        about: "4 KiB at random over a 512 MiB volume (ours: raw, in an image a quarter larger); images and files are \
                allocated, and the volumes filled, before. vexfs-blockd reads and writes its image with O_DIRECT, \
                checks a crc at each read, and acknowledges a write when its log record has reached the image. \
                nbdkit cached answers from and into the page cache: its writes reach the disk later, by kernel \
                threads whose CPU time is in no column. nbdkit uncached (cache=none fadvise=random) asks the kernel \
                to drop each page after use, which it does not always do. 'file, no server' is fio itself on a file with O_DIRECT: what the disk gives. -flush \
                waits for durability after each write in all four.",
        cases: CASES.to_vec(),
        unit: "ops",
        contenders: vec![
            Box::new(ours),
            nbdkit("nbdkit uncached", &["cache=none", "fadvise=random"]),
            nbdkit("nbdkit cached", &[]),
            Box::new(Bare { file: None }),
        ],
    })
}

/// A server and its socket.
struct Running {
    server: Server,
    socket: PathBuf,
}

impl Running {
    fn start(program: &Path, args: &[&str], socket: PathBuf) -> Result<Self> {
        let log = socket.with_extension("log");
        let mut server = Server::spawn(program, args, log)?;
        server.wait_for_socket(&socket)?;
        let running = Self { server, socket };
        running.fio(&[
            "--rw=write".into(),
            "--bs=1m".into(),
            "--iodepth=4".into(),
            "--end_fsync=1".into(),
        ])?;
        Ok(running)
    }

    fn fio(&self, args: &[String]) -> Result<Work> {
        let mut all = vec![
            "--ioengine=nbd".to_owned(),
            format!("--uri=nbd+unix:///?socket={}", self.socket.display()),
            format!("--size={VOLUME_MIB}m"),
        ];
        all.extend_from_slice(args);
        fio::run(&all)
    }

    fn round(&self, case: usize, time: Duration) -> Result<Work> {
        self.fio(&shape_arguments(case, time))
    }
}

/// fio's arguments for a case.
fn shape_arguments(case: usize, time: Duration) -> Vec<String> {
    let (rw, depth, flush) = SHAPES[case];
    vec![
        format!("--rw={rw}"),
        "--bs=4k".into(),
        format!("--iodepth={depth}"),
        format!("--fsync={flush}"),
        "--time_based=1".into(),
        format!("--runtime={}ms", time.as_millis()),
        "--norandommap=1".into(),
        "--randrepeat=0".into(),
    ]
}

struct Ours {
    mkfs: PathBuf,
    blockd: PathBuf,
    running: Option<Running>,
}

impl Contender for Ours {
    fn name(&self) -> String {
        "vexfs-blockd".to_owned()
    }

    fn start(&mut self, env: &Env) -> Result<()> {
        let image = env.scratch().join("nbd.vexfs");
        make_image(&self.mkfs, &image, &["--raw", "--size", &format!("{VOLUME_MIB}M")])?;
        allocate(&image)?;
        let socket = env.scratch().join("ours.sock");
        let listen = format!("unix:{}", socket.display());
        let args = ["serve", path_text(&image)?, "--nbd", &listen, "--control", "none"];
        self.running = Some(Running::start(&self.blockd, &args, socket)?);
        Ok(())
    }

    fn round(&mut self, case: usize, time: Duration) -> Result<Work> {
        self.running.as_ref().context("not started")?.round(case, time)
    }

    fn server_pid(&self) -> Option<u32> {
        self.running.as_ref().map(|running| running.server.pid())
    }

    fn stop(&mut self) -> Result<()> {
        self.running.take().map_or(Ok(()), |mut running| running.server.stop())
    }
}

struct Nbdkit {
    name: &'static str,
    /// Of the file plugin.
    settings: &'static [&'static str],
    program: PathBuf,
    running: Option<Running>,
}

impl Contender for Nbdkit {
    fn name(&self) -> String {
        self.name.to_owned()
    }

    fn start(&mut self, env: &Env) -> Result<()> {
        let file = env.scratch().join(self.name.replace(' ', "-")).with_extension("raw");
        let socket = file.with_extension("sock");
        make_file(&file)?;
        let file = format!("file={}", path_text(&file)?);
        let mut args = vec!["--foreground", "--unix", path_text(&socket)?, "file", &file];
        args.extend_from_slice(self.settings);
        self.running = Some(Running::start(&self.program, &args, socket.clone())?);
        Ok(())
    }

    fn round(&mut self, case: usize, time: Duration) -> Result<Work> {
        self.running.as_ref().context("not started")?.round(case, time)
    }

    fn server_pid(&self) -> Option<u32> {
        self.running.as_ref().map(|running| running.server.pid())
    }

    fn stop(&mut self) -> Result<()> {
        self.running.take().map_or(Ok(()), |mut running| running.server.stop())
    }
}

/// fio on a file, without a server.
struct Bare {
    file: Option<PathBuf>,
}

impl Contender for Bare {
    fn name(&self) -> String {
        "file, no server".to_owned()
    }

    fn start(&mut self, env: &Env) -> Result<()> {
        let file = env.scratch().join("bare.raw");
        make_file(&file)?;
        self.file = Some(file);
        Ok(())
    }

    fn round(&mut self, case: usize, time: Duration) -> Result<Work> {
        let file = self.file.as_ref().context("not started")?;
        let mut all = vec![
            "--ioengine=io_uring".to_owned(),
            "--direct=1".to_owned(),
            format!("--filename={}", path_text(file)?),
            format!("--size={VOLUME_MIB}m"),
        ];
        all.extend(shape_arguments(case, time));
        fio::run(&all)
    }

    fn server_pid(&self) -> Option<u32> {
        None
    }

    fn stop(&mut self) -> Result<()> {
        Ok(())
    }
}

/// A file of the volume's size, all of it written.
fn make_file(path: &Path) -> Result<()> {
    std::fs::File::create(path)?.set_len(VOLUME_MIB << 20)?;
    allocate(path)
}

/// Writes a file over with its own content, so that no hole is left: a first write into a hole costs the file system
/// more than a second one.
pub fn allocate(path: &Path) -> Result<()> {
    let fail = || format!("cannot allocate {}", path.display());
    let file = std::fs::OpenOptions::new().read(true).write(true).open(path).with_context(fail)?;
    let len_bytes = file.metadata()?.len();
    let mut part = vec![0; 1 << 20];
    let mut at = 0;
    while at < len_bytes {
        let len = usize::try_from(len_bytes - at).unwrap_or(usize::MAX).min(part.len());
        file.read_exact_at(&mut part[..len], at).with_context(fail)?;
        file.write_all_at(&part[..len], at).with_context(fail)?;
        at += len as u64;
    }
    file.sync_all().with_context(fail)
}

/// Runs mkfs.vexfs.
pub fn make_image(mkfs: &Path, image: &Path, args: &[&str]) -> Result<()> {
    let output = Command::new(mkfs).arg(image).args(args).output().context("cannot run mkfs.vexfs")?;
    if !output.status.success() {
        bail!("mkfs.vexfs: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

/// A path as an argument.
pub fn path_text(path: &Path) -> Result<&str> {
    path.to_str().with_context(|| format!("{} is not UTF-8", path.display()))
}
