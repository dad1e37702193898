//! A mount through NBD, whose daemon goes and comes back.

mod common;

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use blockd::device::Device;
use blockd::nbd::server::{Export, Exports, Limits, Listener, Server, Stopper};
use blockd::volume::{OpenOptions as VolumeOptions, Volume};
use common::{Bench, can_mount};

/// The daemon's part, in this process.
struct Daemon {
    volume: Arc<Volume>,
    stopper: Stopper,
    thread: JoinHandle<()>,
}

impl Daemon {
    fn start(image: &Path, socket: &Path) -> Daemon {
        let volume = Volume::open(image, &VolumeOptions::default()).unwrap();
        let export = Export::new("", Arc::clone(&volume) as Arc<dyn Device>).expect("an export");
        let server =
            Server::bind(vec![Listener::unix(socket)], Exports::single(export), Limits::default()).unwrap();
        let stopper = server.stopper();
        Daemon { volume, stopper, thread: thread::spawn(move || drop(server.run())) }
    }

    fn stop(self) {
        self.stopper.stop();
        self.thread.join().unwrap();
        self.volume.shutdown().unwrap();
    }
}

#[test]
fn a_mount_outlives_its_daemon_and_loses_nothing() {
    if !can_mount() {
        return;
    }
    let bench = Bench::new(256 << 20);
    let socket = bench.beside("socket");
    let source = format!("nbd+unix:///?socket={}", socket.display());
    let mut daemon = Daemon::start(&bench.image(), &socket);
    let mount = bench.mount_source(&source, "commit=3600");
    fs::write(bench.path("synced"), "1").unwrap();
    File::open(bench.path("synced")).unwrap().sync_all().unwrap();

    let writer = {
        let dir = bench.mountpoint();
        thread::spawn(move || {
            let file =
                OpenOptions::new().read(true).write(true).create_new(true).open(dir.join("log")).unwrap();
            for i in 0..400u64 {
                file.write_all_at(&[i as u8; 4096], i * 4096).unwrap();
                fs::write(dir.join(format!("n{i}")), i.to_string()).unwrap();
                if i % 16 == 0 {
                    file.sync_all().unwrap();
                }
            }
        })
    };
    for _ in 0..3 {
        thread::sleep(Duration::from_millis(60));
        daemon.stop();
        daemon = Daemon::start(&bench.image(), &socket);
    }
    writer.join().unwrap();
    let check = || {
        assert_eq!(fs::read_to_string(bench.path("synced")).unwrap(), "1");
        let log = fs::read(bench.path("log")).unwrap();
        assert_eq!(log.len(), 400 * 4096);
        for i in 0..400usize {
            assert!(log[i * 4096..(i + 1) * 4096].iter().all(|&b| b == i as u8), "page {i}");
            assert_eq!(fs::read_to_string(bench.path(&format!("n{i}"))).unwrap(), i.to_string());
        }
    };
    check();
    mount.unmount();
    let mount = bench.mount_source(&source, "ro");
    check();
    mount.unmount();
    daemon.stop();
}

#[test]
fn a_fenced_mount_gives_errors_and_does_not_hang() {
    if !can_mount() {
        return;
    }
    let bench = Bench::new(256 << 20);
    let socket = bench.beside("socket");
    let source = format!("nbd+unix:///?socket={}", socket.display());
    let daemon = Daemon::start(&bench.image(), &socket);
    let old = bench.mount_source(&source, "commit=3600");
    fs::write(bench.path("f"), "unsynced").unwrap();

    // Another mounter takes the volume.
    let device = Arc::clone(&daemon.volume) as Arc<dyn Device>;
    let client = device.connect();
    let boot = blockd::session::boot_id().unwrap();
    let cell = blockd::session::GrantCell::default();
    let mode = blockd::session::OpenMode::ReadWrite;
    let session = blockd::session::Session::open(device, client, mode, boot, &cell).unwrap();

    let error = File::open(bench.path("f")).and_then(|f| f.sync_all()).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EIO));
    let error = fs::write(bench.path("g"), "x").unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EIO));
    drop(old);
    session.close().unwrap();
    daemon.stop();
}
