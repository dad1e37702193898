//! Copies on a mount share what they have with the original, and are copies all the same.

mod common;

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use blockd::device::Device;
use blockd::nbd::server::{Export, Exports, Limits, Listener, Server, Stopper};
use blockd::volume::{OpenOptions as VolumeOptions, Volume};
use common::{Bench, can_mount, run};

/// Over the border of the first two classes of a file's bytes, and no whole number of pages.
const BYTES: usize = (24 << 20) + 1234;

fn content(seed: u64) -> Vec<u8> {
    let mut word = seed;
    let mut bytes = Vec::with_capacity(BYTES + 8);
    while bytes.len() < BYTES {
        word = word.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        bytes.extend_from_slice(&word.to_le_bytes());
    }
    bytes.truncate(BYTES);
    bytes
}

/// A daemon in this process, whose counters can be seen.
struct Daemon {
    volume: Arc<Volume>,
    stopper: Stopper,
    thread: JoinHandle<()>,
    source: String,
}

impl Daemon {
    fn start(bench: &Bench) -> Daemon {
        let socket = bench.beside("socket");
        let volume = Volume::open(&bench.image(), &VolumeOptions::default()).unwrap();
        let export = Export::new("", Arc::clone(&volume) as Arc<dyn Device>).expect("an export");
        let listener = vec![Listener::unix(&socket)];
        let server = Server::bind(listener, Exports::single(export), Limits::default()).unwrap();
        let stopper = server.stopper();
        let source = format!("nbd+unix:///?socket={}", socket.display());
        Daemon { volume, stopper, thread: thread::spawn(move || drop(server.run())), source }
    }

    fn stop(self) {
        self.stopper.stop();
        self.thread.join().unwrap();
        self.volume.shutdown().unwrap();
    }

    /// Bytes of clients that were written to the log.
    fn written(&self) -> u64 {
        self.volume.store_stats().user_bytes
    }
}

fn sync(bench: &Bench, name: &str) {
    File::open(bench.path(name)).unwrap().sync_all().unwrap();
}

fn cp(bench: &Bench, from: &str, to: &str) {
    let output = run(vexfs_harness::command("cp").arg(bench.path(from)).arg(bench.path(to)));
    assert!(output.status.success(), "{output:?}");
}

fn write(bench: &Bench, name: &str, at: usize, bytes: &[u8], expected: &mut [u8]) {
    let file = OpenOptions::new().write(true).open(bench.path(name)).unwrap();
    file.write_all_at(bytes, at as u64).unwrap();
    file.sync_all().unwrap();
    expected[at..at + bytes.len()].copy_from_slice(bytes);
}

#[test]
fn cp_moves_no_data_and_each_copy_goes_its_own_way() {
    if !can_mount() {
        return;
    }
    let bench = Bench::new(256 << 20);
    let daemon = Daemon::start(&bench);
    let mount = bench.mount_source(&daemon.source, "commit=3600");
    let mut a = content(1);
    fs::write(bench.path("a"), &a).unwrap();
    sync(&bench, "a");

    let before = daemon.written();
    cp(&bench, "a", "b");
    sync(&bench, "b");
    let copied = daemon.written() - before;
    assert!(copied < 1 << 20, "{copied} bytes were written for a copy of {BYTES}");
    let mut b = a.clone();
    assert!(fs::read(bench.path("b")).unwrap() == b);

    // What is not on the device yet is cloned too.
    write(&bench, "b", 5 << 20, &content(2)[..300_000], &mut b);
    let file = OpenOptions::new().write(true).open(bench.path("a")).unwrap();
    file.write_all_at(b"not synced", 100).unwrap();
    a[100..110].copy_from_slice(b"not synced");
    cp(&bench, "a", "c");
    let c = a.clone();
    drop(file);
    write(&bench, "a", 9 << 20, &content(3)[..100_000], &mut a);
    let check = |a: &[u8], b: &[u8], c: &[u8]| {
        for (name, expected) in [("a", a), ("b", b), ("c", c)] {
            assert!(fs::read(bench.path(name)).unwrap() == *expected, "{name}");
        }
    };
    check(&a, &b, &c);
    sync(&bench, "c");
    daemon.volume.snapshot_create("then").unwrap();

    // The mounter dies, the daemon goes on.
    let (a_then, b_then) = (a.clone(), b.clone());
    write(&bench, "a", 0, &content(4)[..6 << 20], &mut a);
    write(&bench, "b", 1 << 20, &content(5)[..1 << 20], &mut b);
    mount.kill();
    let mount = bench.mount_source(&daemon.source, "commit=3600");
    check(&a, &b, &c);
    mount.unmount();
    daemon.stop();
    let mount = bench.mount("ro,snapshot=then");
    check(&a_then, &b_then, &c);
    mount.unmount();

    // Only a part of one copy is left of what three files shared: the cleaner finds it.
    let daemon = Daemon::start(&bench);
    let mount = bench.mount_source(&daemon.source, "commit=3600");
    check(&a, &b, &c);
    daemon.volume.snapshot_delete_and_settle("then", |_| {}).unwrap();
    fs::remove_file(bench.path("a")).unwrap();
    fs::remove_file(bench.path("c")).unwrap();
    for at in (0..20 << 20).step_by(2 << 20) {
        write(&bench, "b", at, &content(6)[..1 << 20], &mut b);
    }
    let cleaned = daemon.volume.compact(|_| true).unwrap();
    assert!(cleaned.copied_bytes > 0 && cleaned.freed_segments > 0, "{cleaned:?}");
    assert!(fs::read(bench.path("b")).unwrap() == b);
    mount.unmount();
    daemon.stop();
    let fsck = run(vexfs_harness::command(env!("CARGO_BIN_EXE_fsck-vexfs")).arg(bench.image()));
    assert_eq!(fsck.status.code(), Some(0), "{fsck:?}");
    let mount = bench.mount("ro");
    assert!(fs::read(bench.path("b")).unwrap() == b);
    mount.unmount();
}

#[test]
fn holes_stay_holes_and_ragged_ranges_are_copied() {
    use std::os::unix::fs::MetadataExt;
    if !can_mount() {
        return;
    }
    let bench = Bench::new(256 << 20);
    let mount = bench.mount("");
    let bytes = content(7);
    let sparse =
        OpenOptions::new().read(true).write(true).create_new(true).open(bench.path("sparse")).unwrap();
    sparse.write_all_at(&bytes[..200_000], 0).unwrap();
    sparse.write_all_at(&bytes[..200_000], 40 << 20).unwrap();
    sparse.set_len(50 << 20).unwrap();
    sparse.sync_all().unwrap();
    cp(&bench, "sparse", "copy");
    let (original, copy) =
        (fs::metadata(bench.path("sparse")).unwrap(), fs::metadata(bench.path("copy")).unwrap());
    assert_eq!((copy.len(), copy.blocks()), (original.len(), original.blocks()));
    assert!(fs::read(bench.path("copy")).unwrap() == fs::read(bench.path("sparse")).unwrap());

    // From and to bytes that begin no page, in other files and in the same one, past the border of two classes.
    let to = OpenOptions::new().read(true).write(true).open(bench.path("copy")).unwrap();
    let mut expected = fs::read(bench.path("copy")).unwrap();
    for (from_copy, from, into, len) in
        [(false, 5000, 905_000, 190_001), (false, 77, 2000, 150_000), (true, 4096, 3 << 20, 180_224)]
    {
        let source = if from_copy { &to } else { &sparse };
        let mut done = 0;
        while done < len {
            let (mut off_in, mut off_out) = (from + done as u64, into + done as u64);
            let copied =
                rustix::fs::copy_file_range(source, Some(&mut off_in), &to, Some(&mut off_out), len - done);
            done += copied.unwrap();
        }
        let (from, into) = (from as usize, into as usize);
        let part =
            if from_copy { expected[from..from + len].to_vec() } else { bytes[from..from + len].to_vec() };
        expected[into..into + len].copy_from_slice(&part);
    }
    assert!(fs::read(bench.path("copy")).unwrap() == expected);
    drop((sparse, to));
    mount.unmount();
    let mount = bench.mount("ro");
    assert!(fs::read(bench.path("copy")).unwrap() == expected);
    mount.unmount();
}
