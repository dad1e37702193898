//! The one module that knows the FUSE crate (fuser 0.18): requests in, replies out.
//!
//! The kernel checks permissions (`default_permissions`) and caches names, attributes and file pages
//! for long, since this process is the only writer of the volume.

mod convert;
mod invalidate;
mod serve;

use std::io;
use std::path::Path;
use std::sync::Arc;

use fuser::{BackgroundSession, Config, MountOption, Session, SessionACL};

use super::options::MountSettings;
use super::session_files::Sessions;
use super::volume::Mounted;
use crate::session::SessionSettings;

/// Serves the requests of one mount.
pub struct Adapter {
    mounted: Arc<Mounted>,
    sessions: Sessions,
}

/// A connection to the kernel, served by threads until it is unmounted.
pub struct Connection(BackgroundSession);

impl Adapter {
    /// Mounts and starts serving.
    ///
    /// # Errors
    /// What mount(2) or /dev/fuse say.
    pub fn start(mounted: Arc<Mounted>, settings: &MountSettings, fsname: &str) -> io::Result<Connection> {
        let sessions = Sessions::new(Arc::clone(&mounted), SessionSettings::default());
        let adapter = Adapter { mounted: Arc::clone(&mounted), sessions };
        let mut config = Config::default();
        config.mount_options = mount_options(settings, fsname);
        config.acl = if settings.allow_other { SessionACL::All } else { SessionACL::Owner };
        config.n_threads = Some(settings.threads.max(2));
        config.clone_fd = true;
        let session = Session::new(adapter, Path::new(&settings.mountpoint), &config)?;
        invalidate::install(&mounted, session.notifier())?;
        Ok(Connection(session.spawn()?))
    }
}

impl Connection {
    /// Whether the kernel has ended the connection: unmounted, or aborted.
    pub fn has_ended(&self) -> bool {
        self.0.guard.is_finished()
    }

    /// Lets go of an ended (or detached) connection. Dropping the FUSE crate's handle would unmount
    /// a second time (its `is_mounted` takes POLLERR for a live mount), and hit whatever was mounted
    /// there meanwhile; what is leaked ends with the process.
    pub fn leave(self) {
        std::mem::forget(self.0);
    }
}

fn mount_options(settings: &MountSettings, fsname: &str) -> Vec<MountOption> {
    let mut options = vec![
        MountOption::FSName(fsname.to_owned()),
        MountOption::CUSTOM("subtype=vexfs".to_owned()),
        MountOption::DefaultPermissions,
        if settings.read_only { MountOption::RO } else { MountOption::RW },
    ];
    for flag in &settings.kernel_flags {
        let option = match flag.as_str() {
            "suid" => MountOption::Suid,
            "nosuid" => MountOption::NoSuid,
            "dev" => MountOption::Dev,
            "nodev" => MountOption::NoDev,
            "exec" => MountOption::Exec,
            "noexec" => MountOption::NoExec,
            "atime" => MountOption::Atime,
            "noatime" => MountOption::NoAtime,
            "sync" => MountOption::Sync,
            "dirsync" => MountOption::DirSync,
            _ => continue,
        };
        options.push(option);
    }
    options
}
