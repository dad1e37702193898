//! Mounting: by mount(2) as root, else by fusermount3 (fuse(4), fusermount3(1)).

use std::fs::File;
use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::io::FdFlags;
use rustix::mount::MountFlags;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

/// What is told to mount(2).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MountRequest {
    /// An existing directory.
    pub mountpoint: PathBuf,
    /// The source shown in /proc/mounts.
    pub fsname: String,
    /// The type shown is `fuse.` and this.
    pub subtype: &'static str,
    /// Not only the user who mounts may use it.
    pub allow_other: bool,
    /// Changes are refused by the kernel.
    pub read_only: bool,
    /// Of mount(8): `nosuid`, `noexec`, `sync`...
    pub flags: Vec<String>,
}

const PROGRAM: &str = "fusermount3";

/// Mounts; gives the descriptor on which requests arrive. Permissions are checked by the kernel
/// (`default_permissions`).
///
/// # Errors
/// What /dev/fuse, mount(2) or fusermount3 say.
pub fn mount(request: &MountRequest) -> io::Result<OwnedFd> {
    if rustix::process::geteuid().is_root() { mount_as_root(request) } else { mount_by_helper(request) }
}

/// Unmounts; `lazily` detaches a mount that is in use.
///
/// # Errors
/// EBUSY while it is in use, and what umount2(2) or fusermount3 say.
pub fn unmount(mountpoint: &Path, lazily: bool) -> io::Result<()> {
    use rustix::mount::UnmountFlags;
    if rustix::process::geteuid().is_root() {
        let flags = if lazily { UnmountFlags::DETACH } else { UnmountFlags::empty() };
        return Ok(rustix::mount::unmount(mountpoint, flags)?);
    }
    let mut command = Command::new(PROGRAM);
    command.arg(if lazily { "-uqz" } else { "-uq" }).arg("--").arg(mountpoint);
    if command.status()?.success() { Ok(()) } else { Err(io::Error::from(io::ErrorKind::ResourceBusy)) }
}

fn mount_as_root(request: &MountRequest) -> io::Result<OwnedFd> {
    let device = File::options().read(true).write(true).open("/dev/fuse")?;
    let mut data =
        format!("fd={},rootmode=40000,user_id=0,group_id=0,default_permissions", device.as_raw_fd());
    if request.allow_other {
        data.push_str(",allow_other");
    }
    let data = std::ffi::CString::new(data)?;
    let kind = format!("fuse.{}", request.subtype);
    rustix::mount::mount(
        &request.fsname,
        &request.mountpoint,
        &kind,
        kernel_flags(request),
        data.as_c_str(),
    )?;
    Ok(device.into())
}

fn kernel_flags(request: &MountRequest) -> MountFlags {
    let mut flags = MountFlags::empty();
    flags.set(MountFlags::RDONLY, request.read_only);
    for flag in &request.flags {
        match flag.as_str() {
            "suid" => flags.remove(MountFlags::NOSUID),
            "nosuid" => flags.insert(MountFlags::NOSUID),
            "dev" => flags.remove(MountFlags::NODEV),
            "nodev" => flags.insert(MountFlags::NODEV),
            "exec" => flags.remove(MountFlags::NOEXEC),
            "noexec" => flags.insert(MountFlags::NOEXEC),
            "atime" => flags.remove(MountFlags::NOATIME),
            "noatime" => flags.insert(MountFlags::NOATIME),
            "sync" => flags.insert(MountFlags::SYNCHRONOUS),
            "dirsync" => flags.insert(MountFlags::DIRSYNC),
            _ => {}
        }
    }
    flags
}

/// fusermount3 mounts (it is setuid root) and sends the descriptor over a socket.
fn mount_by_helper(request: &MountRequest) -> io::Result<OwnedFd> {
    let (ours, theirs) = UnixStream::pair()?;
    rustix::io::fcntl_setfd(&theirs, FdFlags::empty())?;
    let mut options =
        format!("fsname={},subtype={},default_permissions", escaped(&request.fsname), request.subtype);
    options.push_str(if request.read_only { ",ro" } else { ",rw" });
    if request.allow_other {
        options.push_str(",allow_other");
    }
    for flag in &request.flags {
        options.push(',');
        options.push_str(flag);
    }
    let mut child = Command::new(PROGRAM)
        .args(["-o", &options, "--"])
        .arg(&request.mountpoint)
        .env("_FUSE_COMMFD", theirs.as_raw_fd().to_string())
        .spawn()?;
    drop(theirs);
    let device = receive_descriptor(&ours);
    if !child.wait()?.success() {
        return Err(io::Error::other(format!("{PROGRAM} could not mount it; it says above why")));
    }
    let device = device?;
    rustix::io::fcntl_setfd(&device, FdFlags::CLOEXEC)?;
    Ok(device)
}

/// In options, commas and backslashes are escaped by a backslash.
fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\").replace(',', "\\,")
}

fn receive_descriptor(socket: &UnixStream) -> io::Result<OwnedFd> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    recvmsg(socket.as_fd(), &mut [IoSliceMut::new(&mut byte)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    let mut rights = control.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    rights.next().ok_or_else(|| io::Error::other(format!("{PROGRAM} sent no descriptor")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_are_applied_in_order() {
        let request = MountRequest {
            mountpoint: "/mnt".into(),
            fsname: "disk".into(),
            subtype: "vexfs",
            allow_other: true,
            read_only: true,
            flags: ["noexec", "exec", "nosuid", "noatime", "unknown"].map(str::to_owned).to_vec(),
        };
        let flags = kernel_flags(&request);
        assert!(flags.contains(MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NOATIME));
        assert!(!flags.contains(MountFlags::NOEXEC));
        assert_eq!(escaped(r"a,b\c"), r"a\,b\\c");
    }
}
