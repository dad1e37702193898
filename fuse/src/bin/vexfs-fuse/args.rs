//! The command lines: `vexfs-fuse`, and `mount.fuse.vexfs` as mount(8) calls it.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use clap::Parser;
use clap::error::ErrorKind;
use vexfs_fuse::mount::{MountSettings, OptionError};

const AFTER_HELP: &str = "\
Unmount with umount(8) or fusermount3 -u. They return before the last commit is written;
what opens the image next waits a few seconds for it. While the daemon of an nbd+unix mount is
away, every operation waits until it serves again, the last commit too.

A change is safe from a crash once a commit has it: one is made by fsync(2) on any file or
directory of the mount, and every 5 seconds (-o commit=). The kernel does not tell FUSE file
systems of sync(2) and syncfs(2): they write out its caches, but make no commit.

Signals:
  SIGTERM, SIGINT   Unmount (detach, if the mount is in use), commit and exit. A second one
                    exits at once, without the commit: the way out when a daemon stays away.

Exit status:
  0   Unmounted, all is committed; without -f: mounted.
  1   The mount could not be made, or the last commit failed; standard error says why.
  2   A wrong command line.
As mount.fuse.vexfs it has those of mount(8): 0, 1 (wrong call), 32 (not mounted).

Examples:
  vexfs-fuse docs.img /mnt
  vexfs-fuse 'nbd+unix:///?socket=/run/docs.sock' /mnt -o ro
  vexfs-fuse docs.img /mnt -o ro,snapshot=monday
  mount -t fuse.vexfs docs.img /mnt
A line of /etc/fstab:
  /srv/docs.img  /docs  fuse.vexfs  noatime,commit=30,nofail  0  0";

/// Mounts a VexFS volume.
#[derive(Parser, Debug)]
#[command(name = "vexfs-fuse", version, about, max_term_width = 100, after_help = AFTER_HELP)]
pub struct Args {
    /// An image file (the store runs in this process), a block device, or nbd+unix:///?socket=PATH
    /// (a volume served by vexfs-blockd)
    pub source: String,
    /// An existing directory
    pub mountpoint: PathBuf,
    /// Mount options, separated by commas: ro, rw, snapshot=NAME, allow_other, default_permissions,
    /// fsname=NAME, cache_mib=N, commit=SECONDS, threads=N, (no)uring, (no)suid, (no)dev, (no)exec, (no)atime
    #[arg(short = 'o', value_name = "OPTIONS")]
    pub options: Vec<String>,
    /// Stay in the foreground and log to standard error
    #[arg(short, long)]
    pub foreground: bool,
    /// File for log lines once in the background; without it they go to the system log
    #[arg(long, value_name = "FILE")]
    pub log: Option<PathBuf>,
    /// Internal: the process that the first one starts to stay in the background
    #[arg(long, hide = true)]
    pub background_child: bool,
}

impl Args {
    /// The command line of the process that stays in the background.
    pub fn of_background_child(&self) -> Vec<OsString> {
        let mut line: Vec<OsString> = vec!["--background-child".into()];
        for list in &self.options {
            line.extend(["-o".into(), list.into()]);
        }
        if let Some(log) = &self.log {
            line.extend(["--log".into(), log.into()]);
        }
        line.extend(["--".into(), OsString::from(&self.source), OsString::from(&self.mountpoint)]);
        line
    }
}

/// Mounts a VexFS volume, called by mount(8): "External helpers" there.
#[derive(Parser, Debug)]
#[command(name = "mount.fuse.vexfs", version, max_term_width = 100)]
struct HelperArgs {
    /// As for vexfs-fuse
    source: String,
    /// An existing directory
    mountpoint: PathBuf,
    /// Mount options, as for vexfs-fuse
    #[arg(short = 'o', value_name = "OPTIONS")]
    options: Vec<String>,
    /// Leave out options that are not known, instead of refusing them
    #[arg(short = 's')]
    sloppy: bool,
    /// Check the options, but mount nothing
    #[arg(short = 'f')]
    fake: bool,
    /// Without meaning here: there is no /etc/mtab to write
    #[arg(short = 'n')]
    no_mtab: bool,
    /// Say what is done
    #[arg(short = 'v')]
    verbose: bool,
    /// The type that mount(8) was given
    #[arg(short = 't', value_name = "TYPE")]
    fs_type: Option<String>,
}

/// What a call as mount helper asks for.
#[derive(Debug)]
pub enum Helper {
    /// To mount, in the background.
    Mount(Args),
    /// Nothing: it was a try (`-f`), or a question (`--help`).
    Nothing,
}

/// Why a helper's command line is refused.
#[derive(Debug, thiserror::Error)]
pub enum HelperError {
    /// Its form.
    #[error("{0}")]
    Form(#[from] clap::Error),
    /// An option.
    #[error(transparent)]
    Option(#[from] OptionError),
}

/// Whether the program was called by the name of a mount helper.
pub fn is_helper(program: Option<&OsStr>) -> bool {
    let name = program.map(Path::new).and_then(Path::file_name).unwrap_or_default();
    name.as_encoded_bytes().starts_with(b"mount.")
}

/// Reads the command line of a mount helper, `line[0]` being the program's name.
///
/// # Errors
/// [`HelperError`].
pub fn helper(line: impl IntoIterator<Item = OsString>) -> Result<Helper, HelperError> {
    let args = match HelperArgs::try_parse_from(line) {
        Ok(args) => args,
        Err(told) if matches!(told.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) => {
            // It can't be told otherwise.
            let _ = told.print();
            return Ok(Helper::Nothing);
        }
        Err(error) => return Err(error.into()),
    };
    let mut options = Vec::new();
    let mut settings = MountSettings::new(args.mountpoint.clone());
    for option in args.options.iter().flat_map(|list| list.split(',')) {
        match settings.apply(option) {
            Ok(()) => options.push(option.to_owned()),
            Err(error) if args.sloppy && error.is_unknown() => {}
            Err(error) => return Err(error.into()),
        }
    }
    if args.verbose {
        eprintln!(
            "mount.fuse.vexfs: {} on {}, options {:?}",
            args.source,
            args.mountpoint.display(),
            options.join(",")
        );
    }
    if args.fake {
        return Ok(Helper::Nothing);
    }
    Ok(Helper::Mount(Args {
        source: args.source,
        mountpoint: args.mountpoint,
        options,
        foreground: false,
        log: None,
        background_child: false,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn called(line: &[&str]) -> Result<Helper, HelperError> {
        helper(line.iter().map(OsString::from))
    }

    #[test]
    fn mount_helpers_are_known_by_name() {
        assert!(is_helper(Some(OsStr::new("/sbin/mount.fuse.vexfs"))));
        assert!(!is_helper(Some(OsStr::new("/mount.d/vexfs-fuse"))));
        assert!(!is_helper(None));
    }

    #[test]
    fn the_calls_of_mount_are_understood() {
        let line = ["mount.fuse.vexfs", "/a b", "/mnt", "-s", "-n", "-v", "-t", "fuse.vexfs"];
        let line = [&line[..], &["-o", "rw,noexec,speed=11,commit=30"]].concat();
        let Ok(Helper::Mount(args)) = called(&line) else { panic!("not understood") };
        assert_eq!((args.source.as_str(), args.mountpoint.to_str()), ("/a b", Some("/mnt")));
        assert_eq!(args.options, ["rw", "noexec", "commit=30"]);
        let child = args.of_background_child();
        let again = Args::try_parse_from([OsString::from("vexfs-fuse")].into_iter().chain(child)).unwrap();
        assert!(again.background_child);
        assert_eq!((again.source, again.mountpoint), (args.source, args.mountpoint));
        assert_eq!(again.options, args.options);
    }

    #[test]
    fn wrong_calls_are_refused_and_tries_mount_nothing() {
        assert!(matches!(
            called(&["mount.fuse.vexfs", "a", "b", "-o", "speed=11"]),
            Err(HelperError::Option(_))
        ));
        assert!(matches!(
            called(&["mount.fuse.vexfs", "a", "b", "-s", "-o", "commit=x"]),
            Err(HelperError::Option(_))
        ));
        assert!(matches!(called(&["mount.fuse.vexfs", "a"]), Err(HelperError::Form(_))));
        assert!(matches!(called(&["mount.fuse.vexfs", "a", "b", "-f"]), Ok(Helper::Nothing)));
    }
}
