//! A server of a file or image, with fio's nbd engine as its client.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};

use super::{MIB, Shape, arguments};
use crate::cgroup::{Group, Limit};
use crate::contender::{Contender, Work};
use crate::env::Env;
use crate::server::Server;
use crate::workloads::files::{allocate, make_file, make_image, path_text, resize_image};
use crate::workloads::fio;

/// Where it runs, and over how much data.
#[derive(Clone)]
pub struct Place {
    pub directory: PathBuf,
    pub volume_bytes: u64,
    /// Of the memory of each server.
    pub limit: Option<Limit>,
}

/// What is started.
pub enum Program {
    Ours {
        mkfs: PathBuf,
        blockd: PathBuf,
        /// vexctl, if the image is to be twice as large as the volume.
        resize: Option<PathBuf>,
        /// Of `serve`.
        settings: &'static [&'static str],
    },
    Nbdkit {
        program: PathBuf,
        /// Of the file plugin.
        settings: &'static [&'static str],
    },
    Qemu {
        program: PathBuf,
        direct: bool,
    },
}

/// A path for a unix socket that no other server of this process has or had; what is there is removed when dropped.
struct Socket(PathBuf);

impl Socket {
    fn new(directory: &Path) -> Self {
        static MADE: AtomicU32 = AtomicU32::new(0);
        // Short: a socket's path has 107 bytes at most.
        Socket(directory.join(format!("s{}", MADE.fetch_add(1, Ordering::Relaxed))))
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        // Most servers have removed it.
        let _ = std::fs::remove_file(&self.0);
    }
}

/// A contender.
pub struct Served {
    name: &'static str,
    program: Program,
    place: Place,
    shapes: &'static [Shape],
    /// Listens at another path at each start: nbdkit leaves its socket behind, and refuses one that is there.
    running: Option<(Server, Socket)>,
    /// After the server, which must have left it.
    group: Option<Group>,
}

impl Served {
    pub fn new(name: &'static str, program: Program, place: Place, shapes: &'static [Shape]) -> Self {
        Served { name, program, place, shapes, running: None, group: None }
    }

    /// A file of this contender.
    fn file(&self, extension: &str) -> PathBuf {
        self.place.directory.join(self.name.replace([' ', '.'], "-")).with_extension(extension)
    }

    /// Makes its data; gives the command line.
    fn command(&self, socket: &str) -> Result<(&Path, Vec<String>)> {
        let file = self.file("image");
        let text = path_text(&file)?;
        let owned = |args: &[&str]| args.iter().map(|&arg| arg.to_owned()).collect::<Vec<String>>();
        Ok(match &self.program {
            Program::Ours { mkfs, blockd, resize, settings } => {
                let size = format!("{}M", self.place.volume_bytes / MIB);
                make_image(mkfs, &file, &["--raw", "--size", &size])?;
                if let Some(vexctl) = resize {
                    resize_image(vexctl, &file, 2 * self.place.volume_bytes)?;
                }
                allocate(&file)?;
                let listen = format!("unix:{socket}");
                let mut args = owned(&["serve", text, "--nbd", &listen, "--control", "none"]);
                args.extend(owned(settings));
                (blockd, args)
            }
            Program::Nbdkit { program, settings } => {
                make_file(&file, self.place.volume_bytes)?;
                let setting = format!("file={text}");
                let mut args = owned(&["--foreground", "--unix", socket, "file", &setting]);
                args.extend(owned(settings));
                (program, args)
            }
            Program::Qemu { program, direct } => {
                make_file(&file, self.place.volume_bytes)?;
                let direct = if *direct { "on" } else { "off" };
                let file =
                    format!("driver=file,node-name=file,filename={text},cache.direct={direct},aio=io_uring");
                let listen = format!("addr.type=unix,addr.path={socket}");
                let export = "type=nbd,id=export,node-name=file,name=,writable=on";
                (program, owned(&["--blockdev", &file, "--nbd-server", &listen, "--export", export]))
            }
        })
    }

    fn fio(&self, args: &[String]) -> Result<Work> {
        let (_, socket) = self.running.as_ref().context("not started")?;
        let mut all = vec![
            "--ioengine=nbd".to_owned(),
            format!("--uri=nbd+unix:///?socket={}", socket.0.display()),
            format!("--size={}", self.place.volume_bytes),
        ];
        all.extend_from_slice(args);
        fio::run(&all)
    }
}

impl Contender for Served {
    fn name(&self) -> String {
        self.name.to_owned()
    }

    fn start(&mut self, _env: &Env) -> Result<()> {
        let socket = Socket::new(&self.place.directory);
        let (program, args) = self.command(path_text(&socket.0)?)?;
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let group = self.place.limit.as_ref().map(Group::new).transpose().map_err(anyhow::Error::msg)?;
        let mut server = Server::spawn_in(program, &args, self.file("log"), group.as_ref())?;
        self.group = group;
        server.wait_for_socket(&socket.0)?;
        self.running = Some((server, socket));
        let fill = ["--rw=write", "--bs=1m", "--iodepth=4", "--end_fsync=1"].map(str::to_owned);
        self.fio(&fill).context("filling the volume")?;
        Ok(())
    }

    fn round(&mut self, case: usize, time: Duration) -> Result<Work> {
        self.fio(&arguments(&self.shapes[case], time))
    }

    fn server_pid(&self) -> Option<u32> {
        self.running.as_ref().map(|(server, _)| server.pid())
    }

    fn stop(&mut self) -> Result<()> {
        if let Some((mut server, _socket)) = self.running.take() {
            server.stop()?;
        }
        self.group = None;
        // Space for the next workload.
        Ok(std::fs::remove_file(self.file("image"))?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPES: &[Shape] = &[super::super::shape("read", "randread", "4k", 1)];

    #[test]
    fn a_server_is_started_again_where_one_has_run() {
        let env = Env::new(Some(&std::env::temp_dir()), None).expect("a scratch directory");
        let (Ok(program), Ok(_)) = (env.tool("nbdkit"), env.tool("fio")) else {
            println!("skipped: nbdkit or fio is not installed");
            return;
        };
        let place = Place { directory: env.scratch().to_path_buf(), volume_bytes: MIB, limit: None };
        // As another workload does, in the same directory.
        for _ in 0..2 {
            let program = Program::Nbdkit { program: program.clone(), settings: &[] };
            let mut nbdkit = Served::new("nbdkit", program, place.clone(), SHAPES);
            nbdkit.start(&env).expect("it starts");
            let pid = nbdkit.server_pid().expect("it runs");
            let work = nbdkit.round(0, Duration::from_millis(100)).expect("it serves");
            assert!(work.operations > 0);
            nbdkit.stop().expect("it ends");
            assert!(!Path::new("/proc").join(pid.to_string()).exists(), "it has ended");
        }
        let left: Vec<_> = std::fs::read_dir(env.scratch()).expect("it is there").flatten().collect();
        assert!(left.iter().all(|entry| entry.file_name() == "nbdkit.log"), "{left:?}");
    }
}
