//! The command line of fsck.vexfs.

use std::ffi::OsString;

use clap::Parser;
use vexfs_fuse::check::Mode;

const AFTER_HELP: &str = "\
Without -y, -p or -a nothing is changed.

Exit status (of fsck(8); sums of these never occur):
  0   Nothing is wrong.
  1   Errors were repaired.
  4   Errors are left: run it with -y, or restore what it cannot repair.
  8   The volume could not be checked; standard error says why.
  16  A wrong command line.
  32  Cancelled by SIGINT or SIGTERM. Nothing was changed.

Examples:
  fsck.vexfs docs.img                                  what is wrong?
  fsck.vexfs -y docs.img                               repair it
  fsck.vexfs --data docs.img                           read every byte of every file too
  fsck.vexfs 'nbd+unix:///?socket=/run/docs.sock'      a volume that a daemon serves";

/// Check, and with -y repair, the file system of a VexFS volume that nobody has mounted.
#[derive(Parser, Debug)]
#[command(name = "fsck.vexfs", version, max_term_width = 100, after_help = AFTER_HELP)]
pub struct Args {
    /// An image file or block device made by mkfs.vexfs, or nbd+unix:///?socket=PATH.
    pub source: String,
    /// Change nothing: the default.
    #[arg(short = 'n', conflicts_with_all = ["yes", "preen", "auto"])]
    pub no: bool,
    /// Repair whatever can be repaired, without asking.
    #[arg(short = 'y', conflicts_with_all = ["preen", "auto"])]
    pub yes: bool,
    /// As at boot: a volume that was unmounted in order is not looked at; otherwise repair what loses nothing, and stop
    /// with status 4 at anything else.
    #[arg(short = 'p')]
    pub preen: bool,
    /// The same as -p.
    #[arg(short = 'a')]
    pub auto: bool,
    /// With -p or -a: check even a volume that was unmounted in order.
    #[arg(short = 'f', long)]
    pub force: bool,
    /// Write progress to this file descriptor, as fsck(8) wants it: lines of pass, done, total, source. 0 or nothing: a
    /// bar on standard error, which a terminal gets in any case.
    #[arg(short = 'C', value_name = "FD")]
    pub progress: Option<u32>,
    /// Say more: passes, notes, every finding.
    #[arg(short = 'v', long)]
    pub verbose: bool,
    /// Findings as JSON, one a line, and a summary as the last line.
    #[arg(long)]
    pub json: bool,
    /// Read every page of every file too; what cannot be read is told with its path.
    #[arg(long)]
    pub data: bool,
    /// Check this snapshot of the volume, which changes for nobody. What serves the volume may be in use.
    #[arg(long, value_name = "NAME", conflicts_with_all = ["yes", "preen", "auto"])]
    pub snapshot: Option<String>,
    /// With a daemon's export: end the session of a mounter that is dead. Fatal to one that is alive.
    #[arg(long)]
    pub fence: bool,
}

impl Args {
    /// What may be done.
    pub fn mode(&self) -> Mode {
        match (self.yes, self.preen || self.auto) {
            (true, _) => Mode::Repair,
            (_, true) => Mode::Preen,
            _ => Mode::Look,
        }
    }
}

/// `-C` without a number means `-C0`.
pub fn normalise(args: impl Iterator<Item = OsString>) -> Vec<OsString> {
    let mut args: Vec<OsString> = args.collect();
    for i in 1..args.len() {
        let is_number = |arg: &OsString| arg.to_str().is_some_and(|text| text.parse::<u32>().is_ok());
        if args[i] == "-C" && !args.get(i + 1).is_some_and(is_number) {
            args[i] = "-C0".into();
        }
    }
    args
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(args: &[&str]) -> Result<Args, clap::Error> {
        Args::try_parse_from(normalise(args.iter().map(OsString::from)))
    }

    #[test]
    fn what_fsck_passes_on_is_understood() {
        for (line, mode, fd) in [
            (&["fsck.vexfs", "-a", "-C0", "x"][..], Mode::Preen, Some(0)),
            (&["fsck.vexfs", "-C", "x"], Mode::Look, Some(0)),
            (&["fsck.vexfs", "-C", "7", "-y", "x"], Mode::Repair, Some(7)),
            (&["fsck.vexfs", "-p", "-f", "x"], Mode::Preen, None),
        ] {
            let args = parse(line).unwrap();
            assert_eq!((args.mode(), args.progress, args.source.as_str()), (mode, fd, "x"), "{line:?}");
        }
        assert!(parse(&["fsck.vexfs", "-n", "-y", "x"]).is_err());
        assert!(parse(&["fsck.vexfs"]).is_err());
    }
}
