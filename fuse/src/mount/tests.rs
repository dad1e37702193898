//! A real mount over a device in RAM.

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use blockd::buf::AlignedBuf;
use blockd::device::{Device, IoOp, blocking};
use blockd::session::GrantCell;
use layout::fs::{FormatParams, format};
use layout::page_store::Timespec;

use super::{MountSettings, Running, mount};
use crate::engine::ram::RamDevice;

/// An empty file system in RAM.
fn formatted() -> Arc<RamDevice> {
    let device = RamDevice::new(1 << 20);
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
