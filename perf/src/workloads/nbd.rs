//! A block device over NBD: `vexfs-blockd serve` on a raw volume, and nbdkit's file plugin on a file of the same
//! file system, both filled before. fio's nbd engine is the client of both.

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
    let nbdkit = Nbdkit { program: env.tool("nbdkit")?, running: None };
    Ok(Workload {
        name: "nbd",
        about: "4 KiB at random over a 512 MiB volume that was written once. nbdkit answers from and into the page \
                cache; VexFS reads and writes its backing file with O_DIRECT and acknowledges a write when the \
                log record has reached it. -flush waits for durability after each write on both.",
        cases: CASES.to_vec(),
        unit: "ops",
        contenders: vec![Box::new(ours), Box::new(nbdkit)],
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
        let (rw, depth, flush) = SHAPES[case];
        self.fio(&[
            format!("--rw={rw}"),
            "--bs=4k".into(),
            format!("--iodepth={depth}"),
            format!("--fsync={flush}"),
            "--time_based=1".into(),
            format!("--runtime={}ms", time.as_millis()),
            "--norandommap=1".into(),
            "--randrepeat=0".into(),
        ])
    }
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
        let socket = env.scratch().join("ours.sock");
        let listen = format!("unix:{}", socket.display());
        let args = ["serve", path_text(&image)?, "--nbd", &listen];
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
    program: PathBuf,
    running: Option<Running>,
}

impl Contender for Nbdkit {
    fn name(&self) -> String {
        "nbdkit file".to_owned()
    }

    fn start(&mut self, env: &Env) -> Result<()> {
        let file = env.scratch().join("nbdkit.raw");
        let size = VOLUME_MIB << 20;
        std::fs::File::create(&file)?.set_len(size)?;
        let socket = env.scratch().join("nbdkit.sock");
        let args =
            ["--foreground", "--unix", path_text(&socket)?, "file", &format!("file={}", path_text(&file)?)];
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
