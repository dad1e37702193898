//! The contenders: file systems, mounted.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use vexfs_harness::FuseRings;

use super::super::files::{allocate, make_file, make_image, path_text, run};
use super::LOOPS;
use super::tree::Tree;
use crate::contender::{Contender, Work};
use crate::env::Env;
use crate::server::Server;

/// Bytes of an image.
const IMAGE: (&str, u64) = ("3G", 3 << 30);

/// What is mounted.
pub enum Program {
    Vexfs { mkfs: PathBuf, fuse: PathBuf, ring: Option<FuseRings> },
    PassthroughLl { program: PathBuf },
    PassthroughHp { program: PathBuf },
    Ext4 { mkfs: PathBuf },
}

/// A contender.
pub struct Mounted {
    name: &'static str,
    program: Program,
    running: Option<(Option<Server>, Tree)>,
}

impl Mounted {
    pub fn new(name: &'static str, program: Program) -> Self {
        Mounted { name, program, running: None }
    }

    fn mount(&self, env: &Env, at: &Path) -> Result<Option<Server>> {
        let log = at.with_extension("log");
        let image = at.with_extension("image");
        let source = at.with_extension("source");
        let mut server = match &self.program {
            Program::Vexfs { mkfs, fuse, ring } => {
                make_image(mkfs, &image, &["--size", IMAGE.0])?;
                allocate(&image)?;
                let transport = if ring.is_some() { "uring" } else { "nouring" };
                Server::spawn(fuse, &[path_text(&image)?, path_text(at)?, "-f", "-o", transport], log)?
            }
            Program::PassthroughLl { program } => {
                fs::create_dir(&source)?;
                let options = format!("source={},writeback,cache=always,timeout=86400", source.display());
                Server::spawn(program, &["-f", "-o", &options, path_text(at)?], log)?
            }
            Program::PassthroughHp { program } => {
                fs::create_dir(&source)?;
                Server::spawn(program, &[path_text(&source)?, path_text(at)?], log)?
            }
            Program::Ext4 { mkfs } => {
                make_file(&image, IMAGE.1)?;
                run("mkfs.ext4", vexfs_harness::command(mkfs).args(["-q", "-F", path_text(&image)?]))?;
                let mut mount = vexfs_harness::command(env.tool("mount").map_err(anyhow::Error::msg)?);
                run("mount", mount.args(["-o", "loop", path_text(&image)?, path_text(at)?]))?;
                return Ok(None);
            }
        };
        server.wait_for_mount(at)?;
        Ok(Some(server))
    }
}

impl Contender for Mounted {
    fn name(&self) -> String {
        self.name.to_owned()
    }

    fn start(&mut self, env: &Env) -> Result<()> {
        let at = env.scratch().join(self.name.replace(' ', "-"));
        fs::create_dir(&at)?;
        let server = self.mount(env, &at)?;
        self.running = Some((server, Tree::new(at, &env.scratch().join("sources"))?));
        Ok(())
    }

    /// passthrough writes to a descriptor with O_DIRECT from memory that is not aligned: EINVAL. passthrough_hp cannot set
    /// times by descriptor, which tar and git need: EOPNOTSUPP.
    fn can(&self, case: usize) -> bool {
        let cannot: &[&str] = match self.program {
            Program::PassthroughLl { .. } => &["write4k-direct"],
            Program::PassthroughHp { .. } => {
                &["write4k-direct", "untar", "git-clone", "git-status", "remove-tree"]
            }
            Program::Vexfs { .. } | Program::Ext4 { .. } => &[],
        };
        !cannot.contains(&LOOPS[case].0)
    }

    fn round(&mut self, case: usize, time: Duration) -> Result<Work> {
        let (_, tree) = self.running.as_ref().context("not started")?;
        LOOPS[case].1(tree, time)
    }

    fn tidy(&mut self) -> Result<()> {
        let (_, tree) = self.running.as_ref().context("not started")?;
        tree.tidy()
    }

    fn server_pid(&self) -> Option<u32> {
        self.running.as_ref().and_then(|(server, _)| Some(server.as_ref()?.pid()))
    }

    fn stop(&mut self) -> Result<()> {
        let Some((server, tree)) = self.running.take() else { return Ok(()) };
        let at = tree.into_root();
        match server {
            Some(mut server) => server.stop(),
            None => run("umount", vexfs_harness::command("umount").arg(at)),
        }
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // A server's mount goes with the server.
        if let Some((None, tree)) = self.running.take() {
            let _ = vexfs_harness::command("umount").arg("-l").arg(tree.into_root()).status();
        }
    }
}
