//! A server of a file or image, with fio's nbd engine as its client.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};

use super::{MIB, Shape, arguments};
use crate::cgroup::{Group, Limit};
use crate::contender::{Contender, Work};
use crate::env::Env;
use crate::server::Server;
use crate::workloads::files::{allocate, make_file, make_image, path_text};
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

/// A contender.
pub struct Served {
    name: &'static str,
    program: Program,
    place: Place,
    shapes: &'static [Shape],
    running: Option<Server>,
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
            Program::Ours { mkfs, blockd, settings } => {
                let size = format!("{}M", self.place.volume_bytes / MIB);
                make_image(mkfs, &file, &["--raw", "--size", &size])?;
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
        anyhow::ensure!(self.running.is_some(), "not started");
        let mut all = vec![
            "--ioengine=nbd".to_owned(),
            format!("--uri=nbd+unix:///?socket={}", self.file("sock").display()),
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
        let socket = self.file("sock");
        let (program, args) = self.command(path_text(&socket)?)?;
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let group = self.place.limit.as_ref().map(Group::new).transpose().map_err(anyhow::Error::msg)?;
        let mut server = Server::spawn_in(program, &args, self.file("log"), group.as_ref())?;
        self.group = group;
        server.wait_for_socket(&socket)?;
        self.running = Some(server);
        let fill = ["--rw=write", "--bs=1m", "--iodepth=4", "--end_fsync=1"].map(str::to_owned);
        self.fio(&fill).context("filling the volume")?;
        Ok(())
    }

    fn round(&mut self, case: usize, time: Duration) -> Result<Work> {
        self.fio(&arguments(&self.shapes[case], time))
    }

    fn server_pid(&self) -> Option<u32> {
        self.running.as_ref().map(Server::pid)
    }

    fn stop(&mut self) -> Result<()> {
        if let Some(mut server) = self.running.take() {
            server.stop()?;
        }
        self.group = None;
        // Space for the next workload.
        Ok(std::fs::remove_file(self.file("image"))?)
    }
}
