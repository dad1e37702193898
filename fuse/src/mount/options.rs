//! Mount options, as given after `-o`.

use std::path::PathBuf;
use std::time::Duration;

use crate::engine::EngineOptions;

/// How to mount.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MountSettings {
    /// Where.
    pub mountpoint: PathBuf,
    /// Changes are refused, and the volume's session is not taken.
    pub read_only: bool,
    /// The snapshot to mount, and not the live volume; always read-only.
    pub snapshot: Option<String>,
    /// Users other than the one who mounts may use the mount (by permission bits).
    pub allow_other: bool,
    /// The source shown in /proc/mounts.
    pub fsname: Option<String>,
    /// Mount flags for the kernel, such as `noexec` and `nosuid`.
    pub kernel_flags: Vec<String>,
    /// Bound on clean metadata pages kept, in bytes.
    pub cache_bytes: u64,
    /// Time between commits.
    pub commit_interval: Duration,
    /// Threads that serve requests.
    pub threads: usize,
    /// Requests may come by io_uring, where the kernel has it enabled.
    pub rings: bool,
}

/// An option that is not known, or has a bad value.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error(
    "mount option {option:?}: {why}; known are ro, rw, snapshot=NAME, allow_other, default_permissions, fsname=NAME, \
     cache_mib=N, commit=SECONDS, threads=N, (no)uring, and the usual (no)suid, (no)dev, (no)exec, (no)atime"
)]
pub struct OptionError {
    option: String,
    why: &'static str,
}

const UNKNOWN: &str = "not known";

impl OptionError {
    /// Whether the option is not known, rather than of a bad value.
    pub fn is_unknown(&self) -> bool {
        self.why == UNKNOWN
    }
}

impl MountSettings {
    /// The defaults: as root, like any file system, for all users.
    pub fn new(mountpoint: PathBuf) -> Self {
        MountSettings {
            mountpoint,
            read_only: false,
            snapshot: None,
            allow_other: rustix::process::geteuid().is_root(),
            fsname: None,
            kernel_flags: Vec::new(),
            cache_bytes: EngineOptions::default().cache_bytes,
            commit_interval: Duration::from_secs(5),
            threads: 16,
            rings: false,
        }
    }

    /// Applies a comma-separated list of options; those of mount(8) and fstab(5) that mean nothing
    /// here are skipped.
    ///
    /// # Errors
    /// [`OptionError`].
    pub fn apply(&mut self, list: &str) -> Result<(), OptionError> {
        for option in list.split(',').map(str::trim).filter(|o| !o.is_empty()) {
            let fail = |why| OptionError { option: option.to_owned(), why };
            let (name, value) = match option.split_once('=') {
                Some((name, value)) => (name, Some(value)),
                None => (option, None),
            };
            let number = || value.and_then(|v| v.parse::<u64>().ok()).filter(|n| *n > 0);
            let number = || number().ok_or_else(|| fail("it needs a number above 0"));
            match name {
                "ro" => self.read_only = true,
                "rw" => self.read_only = false,
                "snapshot" => {
                    let name = value.filter(|name| !name.is_empty());
                    self.snapshot =
                        Some(name.ok_or_else(|| fail("it needs the name of a snapshot"))?.to_owned());
                }
                "allow_other" => self.allow_other = true,
                // Permission bits are always checked by the kernel.
                "default_permissions" => {}
                "fsname" => self.fsname = value.map(str::to_owned),
                "cache_mib" => self.cache_bytes = number()?.saturating_mul(1 << 20),
                "commit" => self.commit_interval = Duration::from_secs(number()?),
                "threads" => self.threads = usize::try_from(number()?).unwrap_or(usize::MAX).min(256),
                "uring" => self.rings = true,
                "nouring" => self.rings = false,
                "suid" | "nosuid" | "dev" | "nodev" | "exec" | "noexec" | "atime" | "noatime" | "sync"
                | "dirsync" => self.kernel_flags.push(name.to_owned()),
                "defaults" | "auto" | "noauto" | "user" | "nouser" | "users" | "owner" | "group"
                | "nofail" | "_netdev" | "async" | "relatime" | "norelatime" | "strictatime" | "lazytime"
                | "diratime" | "nodiratime" | "comment" => {}
                _ if name.starts_with("x-") || name.starts_with("X-") => {}
                _ => return Err(fail(UNKNOWN)),
            }
        }
        // Nobody can write to one; mount(8) says rw by itself where the user says nothing.
        self.read_only |= self.snapshot.is_some();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_applied_in_order() {
        let mut settings = MountSettings::new("/mnt".into());
        settings.apply("ro,fsname=disk,noexec,commit=30,,x-systemd.automount,_netdev").unwrap();
        settings.apply("rw,cache_mib=64,threads=3,allow_other").unwrap();
        assert!(!settings.read_only && settings.allow_other);
        assert_eq!(settings.fsname.as_deref(), Some("disk"));
        assert_eq!(settings.kernel_flags, ["noexec"]);
        assert_eq!(settings.commit_interval, Duration::from_secs(30));
        assert_eq!((settings.cache_bytes, settings.threads), (64 << 20, 3));
    }

    #[test]
    fn a_snapshot_is_read_only_whatever_else_is_said() {
        let mut settings = MountSettings::new("/mnt".into());
        settings.apply("snapshot=monday,rw").unwrap();
        assert!(settings.read_only);
        assert_eq!(settings.snapshot.as_deref(), Some("monday"));
        assert!(!settings.apply("snapshot=").unwrap_err().is_unknown());
    }

    #[test]
    fn unknown_options_are_refused_by_name() {
        let mut settings = MountSettings::new("/mnt".into());
        let message = settings.apply("ro,speed=11").unwrap_err().to_string();
        assert!(message.contains("speed=11"), "{message}");
        assert!(settings.apply("commit=soon").is_err());
        assert!(settings.apply("threads=0").is_err());
    }
}
