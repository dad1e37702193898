//! The line that says on what machine the figures were taken.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde::Serialize;

/// What the figures depend on.
#[derive(Debug, Serialize)]
pub struct Machine {
    /// CPU model.
    pub cpu: String,
    /// CPUs that this process may use.
    pub cpus: usize,
    /// RAM in MiB.
    pub memory_mib: u64,
    /// Kernel release.
    pub kernel: String,
    /// Type of the file system under the scratch directory.
    pub file_system: String,
    /// UTC date.
    pub date: String,
}

impl Machine {
    /// The machine this runs on.
    pub fn this(scratch: &Path) -> Self {
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
        Self {
            cpu: field(&cpuinfo, "model name").unwrap_or("unknown CPU").to_owned(),
            cpus: std::thread::available_parallelism().map_or(0, usize::from),
            memory_mib: field(&meminfo, "MemTotal")
                .and_then(|text| text.split(' ').next()?.parse::<u64>().ok())
                .map_or(0, |kib| kib / 1024),
            kernel: fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned(),
            file_system: output("stat", &["-f", "-c", "%T", &scratch.to_string_lossy()]),
            date: output("date", &["-u", "+%Y-%m-%d"]),
        }
    }
}

impl std::fmt::Display for Machine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { cpu, cpus, memory_mib, kernel, file_system, date } = self;
        write!(f, "{date} | Linux {kernel} | {cpus} x {cpu} | {memory_mib} MiB | {file_system}")
    }
}

fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let line = text.lines().find(|line| line.starts_with(name))?;
    Some(line.split_once(':')?.1.trim())
}

fn output(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output();
    output.map_or_else(|_| "unknown".to_owned(), |o| String::from_utf8_lossy(&o.stdout).trim().to_owned())
}
