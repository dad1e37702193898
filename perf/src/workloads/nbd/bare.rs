//! fio on a file, without a server.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;

use super::{Shape, arguments};
use crate::contender::{Contender, Work};
use crate::env::Env;
use crate::workloads::files::{make_file, path_text};
use crate::workloads::fio;

/// As it stands in the report.
pub const NAME: &str = "file, no server";

/// A preallocated file, used with O_DIRECT.
pub struct Bare {
    file: PathBuf,
    len_bytes: u64,
    shapes: &'static [Shape],
}

impl Bare {
    pub fn new(file: PathBuf, len_bytes: u64, shapes: &'static [Shape]) -> Self {
        Bare { file, len_bytes, shapes }
    }
}

impl Contender for Bare {
    fn name(&self) -> String {
        NAME.to_owned()
    }

    fn start(&mut self, _env: &Env) -> Result<()> {
        make_file(&self.file, self.len_bytes)
    }

    fn round(&mut self, case: usize, time: Duration) -> Result<Work> {
        let mut all = vec![
            "--ioengine=io_uring".to_owned(),
            "--direct=1".to_owned(),
            format!("--filename={}", path_text(&self.file)?),
            format!("--size={}", self.len_bytes),
        ];
        all.extend(arguments(&self.shapes[case], time));
        fio::run(&all)
    }

    fn server_pid(&self) -> Option<u32> {
        None
    }

    fn stop(&mut self) -> Result<()> {
        Ok(std::fs::remove_file(&self.file)?)
    }
}
