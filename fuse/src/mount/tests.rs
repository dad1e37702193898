//! A real mount over a device in RAM.

mod commits;
mod holes;
mod limits;

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use blockd::buf::AlignedBuf;
use blockd::device::{ClientId, Device, DeviceInfo, Done, IoError, IoOp, blocking};
use blockd::session::{BootId, GrantCell, OpenMode, Session};
use layout::addr::CLASS0_BASE;
use layout::fs::{FormatParams, Ino, InodeFlags, NewInode, SetAttr, format};
use layout::inode::Kind;
use layout::page_store::Timespec;
use parking_lot::{Condvar, Mutex};

use super::{MountSettings, Mounted, Running, mount};
use crate::engine::ram::RamDevice;
use crate::engine::{Engine, EngineOptions};

const FILE: NewInode = NewInode { kind: Kind::File, perm: 0o644, umask: 0, uid: 0, gid: 0, rdev: 0 };

/// An empty file system in RAM.
pub(super) fn formatted() -> Arc<RamDevice> {
    formatted_with(1 << 20)
}

/// An empty file system with room for so many pages.
fn formatted_with(pages_max: u64) -> Arc<RamDevice> {
    let device = RamDevice::new(pages_max);
    let client = device.connect();
    let params = FormatParams {
        uuid: [7; 16],
        label: [0; 32],
        hash_key: [9; 16],
        now: Timespec { secs: 1, nanos: 0 },
        root_uid: 0,
        root_gid: 0,
        root_perm: 0o755,
    };
    format(params, &mut |page, bytes| {
        let op = IoOp::Write { offset: page.byte(), buf: AlignedBuf::from_slice(&bytes[..]), fua: true };
        blocking(&*device, client, op).unwrap();
    });
    device
}

/// A device whose next read of file bytes waits until it is let go.
struct SlowRead {
    inner: Arc<RamDevice>,
    /// Armed, and somebody is waiting.
    state: Mutex<(bool, bool)>,
    changed: Condvar,
}

impl SlowRead {
    fn new(inner: Arc<RamDevice>) -> Arc<Self> {
        Arc::new(SlowRead { inner, state: Mutex::default(), changed: Condvar::new() })
    }

    /// From now on a read waits.
    fn hold(&self) {
        self.state.lock().0 = true;
    }

    /// Waits for the reader.
    fn wait(&self) {
        let mut state = self.state.lock();
        while !state.1 {
            self.changed.wait(&mut state);
        }
    }

    fn let_go(&self) {
        self.state.lock().0 = false;
        self.changed.notify_all();
    }
}

impl Device for SlowRead {
    fn info(&self) -> DeviceInfo {
        self.inner.info()
    }

    fn connect(&self) -> ClientId {
        self.inner.connect()
    }

    fn disconnect(&self, client: ClientId) {
        self.inner.disconnect(client);
    }

    fn submit(&self, client: ClientId, op: IoOp, done: Done) {
        if matches!(op, IoOp::Read { offset, .. } if offset >= CLASS0_BASE) {
            let mut state = self.state.lock();
            while state.0 {
                state.1 = true;
                self.changed.notify_all();
                self.changed.wait(&mut state);
            }
        }
        self.inner.submit(client, op, done);
    }
}

/// The operations of a mount, without a kernel.
pub(super) fn mounted(device: Arc<dyn Device>) -> Arc<Mounted> {
    let (client, cell) = (device.connect(), GrantCell::default());
    let boot = BootId([1; 16]);
    let session = Session::open(Arc::clone(&device), client, OpenMode::ReadWrite, boot, &cell).unwrap();
    let engine = Engine::new(device, client, Some(session), EngineOptions::default()).unwrap();
    Mounted::new(engine, 7, false).unwrap()
}

#[test]
fn a_chmod_during_a_write_is_not_undone_by_it() {
    let device = SlowRead::new(formatted());
    let m = mounted(Arc::clone(&device) as Arc<dyn Device>);
    let ino = m.create(Ino(2), b"f", FILE, true).unwrap().ino;
    m.write(ino, 0, &[1; 4096], true).unwrap();
    m.sync().unwrap();
    device.hold();
    let writer = {
        let m = Arc::clone(&m);
        // As the kernel writes back a mapped page: without the inode's lock.
        std::thread::spawn(move || m.write(ino, 10, b"x", true))
    };
    device.wait();
    m.setattr(ino, SetAttr { perm: Some(0o600), ..SetAttr::default() }, true).unwrap();
    device.let_go();
    writer.join().unwrap().unwrap();
    assert_eq!(m.inode(ino).unwrap().perm, 0o600);
}

#[test]
fn an_overwrite_from_the_kernels_cache_changes_its_page_alone() {
    let m = mounted(formatted());
    m.leave_times_to_kernel();
    let ino = m.create(Ino(2), b"f", FILE, true).unwrap().ino;
    m.write_late(ino, 0, &[1; 8192], true).unwrap();
    m.sync().unwrap();
    m.write_late(ino, 4096, &[2; 4096], true).unwrap();
    assert_eq!(m.engine().charged_and_dirty(), (1, 1), "the inode is as it was");
    m.write_late(ino, 8192, &[3; 4096], true).unwrap();
    assert_eq!(m.engine().charged_and_dirty(), (3, 3), "it has another size now");
    assert_eq!(m.inode(ino).unwrap().size, 12_288);
}

#[test]
fn a_file_without_a_name_goes_with_its_last_handle_unless_it_was_linked() {
    let m = mounted(formatted());
    let used = || m.space().unwrap().inodes - m.space().unwrap().inodes_free;
    let before = used();
    let lost = m.tmpfile(Ino(2), FILE).unwrap().ino;
    let kept = m.tmpfile(Ino(2), FILE).unwrap().ino;
    m.write(lost, 0, b"lost", true).unwrap();
    m.write(kept, 0, b"kept", true).unwrap();
    m.open(lost).unwrap();
    m.release(lost);
    assert_eq!(&*m.read(lost, 0, 9).unwrap(), b"lost", "a handle is still open");
    m.link(kept, Ino(2), b"name").unwrap();
    m.release(lost);
    m.release(kept);
    assert!(m.inode(lost).is_err());
    assert_eq!(used(), before + 1);
    assert_eq!(m.lookup(Ino(2), b"name").unwrap().ino, kept);
    assert_eq!(&*m.read(kept, 0, 9).unwrap(), b"kept");
}

/// A mount in a temporary directory, unmounted when dropped.
struct TestMount {
    running: Option<Running>,
    dir: tempfile::TempDir,
}

impl TestMount {
    /// `None`, with the reason printed, where mounting is not possible.
    fn new(device: &Arc<RamDevice>, options: &str) -> Option<Self> {
        if !Path::new("/dev/fuse").exists() || !rustix::process::geteuid().is_root() {
            eprintln!("skipped: mounting needs root and /dev/fuse");
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        let mut settings = MountSettings::new(dir.path().to_owned());
        settings.apply(options).unwrap();
        let device = Arc::clone(device) as Arc<dyn Device>;
        let running = mount(device, &GrantCell::default(), "ram", settings).unwrap();
        Some(TestMount { running: Some(running), dir })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn unmount(mut self) {
        self.running.take().unwrap().finish().unwrap();
    }
}

impl Drop for TestMount {
    fn drop(&mut self) {
        if let Some(running) = self.running.take() {
            let _ = running.finish();
        }
    }
}

#[test]
fn blocks_of_a_sparse_file_are_right_after_its_mtime_was_set_alone() {
    use rustix::fs::{Timespec, Timestamps, UTIME_OMIT, futimens};
    let device = formatted();
    let Some(m) = TestMount::new(&device, "") else { return };
    let file = fs::File::create(m.path("f")).unwrap();
    file.write_all_at(&[1; 4096], 0).unwrap();
    file.write_all_at(&[1; 4096], 1 << 20).unwrap();
    file.sync_all().unwrap();
    let omit = Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT };
    let times = Timestamps { last_access: omit, last_modification: Timespec { tv_sec: 1000, tv_nsec: 5 } };
    futimens(&file, &times).unwrap();
    let meta = file.metadata().unwrap();
    assert_eq!((meta.mtime(), meta.mtime_nsec(), meta.blocks()), (1000, 5, 16));
    m.unmount();
}

#[test]
fn files_directories_and_links_survive_a_remount() {
    let device = formatted();
    let Some(m) = TestMount::new(&device, "") else { return };
    fs::create_dir_all(m.path("a/b")).unwrap();
    fs::write(m.path("a/b/file"), b"hello").unwrap();
    fs::hard_link(m.path("a/b/file"), m.path("hard")).unwrap();
    std::os::unix::fs::symlink("a/b/file", m.path("soft")).unwrap();
    fs::set_permissions(m.path("hard"), fs::Permissions::from_mode(0o640)).unwrap();
    fs::rename(m.path("a/b"), m.path("c")).unwrap();
    let big: Vec<u8> = (0..3_000_000u32).map(|i| (i * 7 % 251) as u8).collect();
    fs::write(m.path("big"), &big).unwrap();
    m.unmount();

    let m = TestMount::new(&device, "").unwrap();
    assert_eq!(fs::read(m.path("c/file")).unwrap(), b"hello");
    assert_eq!(fs::read_link(m.path("soft")).unwrap(), Path::new("a/b/file"));
    let meta = fs::metadata(m.path("hard")).unwrap();
    assert_eq!((meta.nlink(), meta.mode() & 0o7777), (2, 0o640));
    assert_eq!(fs::read(m.path("big")).unwrap(), big);
    assert_eq!(fs::metadata(m.path("big")).unwrap().blocks(), 3_000_000u64.div_ceil(4096) * 8);
    let mut names: Vec<_> =
        fs::read_dir(m.path("")).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    assert_eq!(names, ["a", "big", "c", "hard", "soft"]);
    m.unmount();
}

#[test]
fn a_listing_that_cannot_be_read_fails_instead_of_ending() {
    let device = formatted();
    let Some(m) = TestMount::new(&device, "") else { return };
    fs::create_dir(m.path("d")).unwrap();
    fs::File::create(m.path("d/sparse")).unwrap().set_len(1 << 20).unwrap();
    fs::write(m.path("d/other"), "").unwrap();
    for i in 0..10 {
        fs::hard_link(m.path("d/other"), m.path(&format!("d/{i}"))).unwrap();
    }
    m.unmount();
    let m = TestMount::new(&device, "").unwrap();
    fs::metadata(m.path("d/other")).unwrap();
    let dir = fs::File::open(m.path("d")).unwrap();
    // What the listing needs is in memory, but for the allocation map (blocks of a sparse file).
    device.fail_reads(IoError::Io("bad backing".to_owned()));
    let mut buf = Vec::with_capacity(4096);
    let mut listed = 0;
    for round in 0.. {
        let mut entries = rustix::fs::RawDir::new(&dir, buf.spare_capacity_mut());
        let Some(first) = entries.next() else { break };
        let Err(error) = first else {
            listed += 1;
            while !entries.is_buffer_empty() {
                listed += u32::from(entries.next().unwrap().is_ok());
            }
            // A new name makes the kernel ask for attributes with the next entries.
            fs::metadata(m.path(&format!("d/{round}"))).unwrap();
            continue;
        };
        assert_eq!(error, rustix::io::Errno::IO);
        return;
    }
    assert_eq!(listed, 2 + 12, "the listing was cut short without an error");
}

#[test]
fn an_unlinked_open_file_lives_until_its_last_close() {
    let device = formatted();
    let Some(m) = TestMount::new(&device, "") else { return };
    let file = fs::OpenOptions::new().read(true).write(true).create_new(true).open(m.path("f")).unwrap();
    file.write_all_at(&[5; 10_000], 0).unwrap();
    fs::remove_file(m.path("f")).unwrap();
    assert!(!m.path("f").exists());
    let mut buf = [0; 10];
    file.read_exact_at(&mut buf, 9_000).unwrap();
    assert_eq!(buf, [5; 10]);
    file.write_all_at(&[6; 10], 20_000).unwrap();
    assert_eq!(file.metadata().unwrap().nlink(), 0);
    drop(file);
    m.unmount();
}
