//! A daemon among enemies: file systems that are full, files cut short or mixed up under it, clients that vanish. A clear
//! error each, no wrong data, and nothing lost that was acknowledged.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::mount::{MountFlags, UnmountFlags, mount, mount_remount, unmount};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use vexfs_tests::nbd::{Client, Kind};
use vexfs_tests::process::{self, Background};
use vexfs_tests::programs;
use vexfs_tests::stage::{Daemon, Stage};
use vexfs_tests::wait;

const BLOCK: usize = 64 << 10;

/// Block `number` as it is written in round `round`.
fn block(number: u64, round: u64) -> Vec<u8> {
    let words = (0..BLOCK as u64 / 8).map(|i| (number << 32 | i).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ round);
    words.flat_map(u64::to_le_bytes).collect()
}

fn at(number: u64) -> u64 {
    number * BLOCK as u64
}

fn connect(stage: &Stage) -> Client {
    Client::connect(&stage.socket()).expect("the daemon serves")
}

/// Writes blocks in turn until one fails; gives how many were acknowledged, and the error.
fn fill(client: &mut Client, round: u64) -> (u64, io::Error) {
    let blocks = client.size_bytes / BLOCK as u64;
    let failed = (0..blocks).find_map(|n| Some((n, client.write(at(n), &block(n, round)).err()?)));
    failed.unwrap_or_else(|| panic!("all {blocks} blocks could be written"))
}

fn assert_blocks(client: &mut Client, blocks: u64, round: u64) {
    for n in 0..blocks {
        let found = client.read(at(n), BLOCK).unwrap_or_else(|e| panic!("block {n}: {e}"));
        assert!(found == block(n, round), "block {n} holds something else");
    }
}

/// Reads all: right or EIO. How many gave EIO.
fn count_bad_blocks(client: &mut Client, blocks: u64, round: u64) -> u64 {
    let mut bad = 0;
    for n in 0..blocks {
        match client.read(at(n), BLOCK) {
            Ok(found) => assert!(found == block(n, round), "wrong data in block {n}"),
            Err(e) => {
                assert_eq!(e.raw_os_error(), Some(5), "block {n}: {e} instead of EIO");
                bad += 1;
            }
        }
    }
    bad
}

/// A tmpfs of its own, unmounted when dropped.
struct SmallFs {
    path: PathBuf,
}

impl SmallFs {
    fn mount(path: PathBuf, size_mib: u64) -> Self {
        fs::create_dir_all(&path).expect("a mount point can be made");
        let size = std::ffi::CString::new(format!("size={size_mib}m")).expect("no NUL");
        mount("tmpfs", &path, "tmpfs", MountFlags::empty(), size.as_c_str())
            .expect("tmpfs can be mounted (these tests need root)");
        SmallFs { path }
    }

    fn remount(&self, flags: MountFlags, data: &str) {
        let data = std::ffi::CString::new(data).expect("no NUL");
        mount_remount(&self.path, flags, data.as_c_str()).expect("tmpfs can be remounted");
    }
}

impl Drop for SmallFs {
    fn drop(&mut self) {
        if let Err(e) = unmount(&self.path, UnmountFlags::DETACH) {
            eprintln!("unmounting {}: {e}", self.path.display());
        }
    }
}

/// mkfs for a raw volume of `mib` in an image at `path`.
fn make_raw(path: &Path, mib: u64) {
    process::ok(programs::ours("mkfs.vexfs").arg(path).args(["--raw", "--size", &format!("{mib}M")]));
}

/// The daemon on an image that is not the stage's own.
fn serve(stage: &Stage, image: &Path, extra: &[&str]) -> Command {
    let mut command = programs::ours("vexfs-blockd");
    command
        .arg("serve")
        .arg(image)
        .args(["--nbd", &format!("unix:{}", stage.socket().display())])
        .args(extra);
    command
}

fn says(daemon: &Daemon, words: &str) {
    assert!(daemon.log().contains(words), "the daemon does not say {words:?}:\n{}", daemon.log());
}

#[test]
fn a_file_system_that_fills_up_under_a_sparse_image() {
    let stage = Stage::empty();
    let small = SmallFs::mount(stage.path("small"), 24);
    let image = small.path.join("image");
    make_raw(&image, 64);
    let mut command = serve(&stage, &image, &[]);
    let daemon = stage.daemon_by(&mut command);
    let mut client = connect(&stage);
    let (blocks, error) = fill(&mut client, 1);
    assert!(matches!(error.raw_os_error(), Some(5 | 28)), "{error}");
    assert!(blocks > 100, "only {blocks} blocks fit 24 MiB");
    says(&daemon, "free space there");
    // Reads go on, writes do not.
    assert_blocks(&mut client, blocks, 1);
    assert!(client.write(0, &block(0, 2)).is_err() && client.flush().is_err());
    daemon.kill();
    small.remount(MountFlags::empty(), "size=200m");
    let daemon = stage.daemon_by(&mut command);
    let mut client = connect(&stage);
    assert_blocks(&mut client, blocks, 1);
    for n in 0..client.size_bytes / BLOCK as u64 {
        client.write(at(n), &block(n, 2)).expect("there is room now");
    }
    client.flush().expect("there is room now");
    daemon.stop();
    let daemon = stage.daemon_by(&mut command);
    assert_blocks(&mut connect(&stage), 1000, 2);
    daemon.stop();
}

#[test]
fn a_file_cut_short_under_the_daemon() {
    let stage = Stage::raw(64);
    let daemon = stage.daemon();
    let mut client = connect(&stage);
    let blocks = client.size_bytes / BLOCK as u64;
    for n in 0..blocks {
        client.write(at(n), &block(n, 1)).expect("a write");
    }
    client.flush().expect("a flush");
    let file = File::options().write(true).open(stage.image()).unwrap();
    let full = file.metadata().unwrap().len();
    file.set_len(full / 4).unwrap();
    let bad = count_bad_blocks(&mut client, blocks, 1);
    assert!(bad > blocks / 4 && bad < blocks, "{bad} of {blocks} blocks are bad");
    says(&daemon, "image byte");
    daemon.kill();
    file.set_len(full / 4).unwrap();
    let message = process::fails(&mut stage.daemon_command());
    assert!(message.contains("cut short") && message.contains("restore its length"), "{message}");
    drop(file);
}

#[test]
fn a_backing_that_can_only_be_read() {
    let stage = Stage::empty();
    let small = SmallFs::mount(stage.path("small"), 100);
    let image = small.path.join("image");
    make_raw(&image, 32);
    let daemon = stage.daemon_by(&mut serve(&stage, &image, &[]));
    let mut client = connect(&stage);
    for n in 0..100 {
        client.write(at(n), &block(n, 1)).expect("a write");
    }
    client.flush().expect("a flush");
    // Killed, so that there is a log to replay; that must not be written down either.
    daemon.kill();
    small.remount(MountFlags::RDONLY, "");
    let before = fs::read(&image).unwrap();
    let message = process::fails(&mut serve(&stage, &image, &[]));
    assert!(message.to_lowercase().contains("read-only"), "{message}");
    let daemon = stage.daemon_by(&mut serve(&stage, &image, &["--read-only"]));
    let mut client = connect(&stage);
    assert_blocks(&mut client, 100, 1);
    assert_eq!(client.write(0, &block(0, 2)).unwrap_err().raw_os_error(), Some(1), "EPERM");
    daemon.stop();
    assert!(fs::read(&image).unwrap() == before, "the image was changed");
    small.remount(MountFlags::empty(), "");
    let daemon = stage.daemon_by(&mut serve(&stage, &image, &[]));
    assert_blocks(&mut connect(&stage), 100, 1);
    daemon.stop();
}

/// Bytes of a segment and their number, by FORMAT.md section 4.1.
fn geometry(image: &[u8]) -> (usize, usize) {
    let u32_at = |at: usize| u32::from_le_bytes(image[at..at + 4].try_into().unwrap()) as usize;
    (u32_at(44) * 4096, u32_at(48))
}

#[test]
fn a_segment_of_another_image() {
    const BLOCKS: u64 = 600;
    let stages = [Stage::raw(64), Stage::raw(64)];
    for (round, stage) in (1..).zip(&stages) {
        let daemon = stage.daemon();
        let mut client = connect(stage);
        for n in 0..BLOCKS {
            client.write(at(n), &block(n, round)).expect("a write");
        }
        // Half in the checkpoint, half in the log.
        client.flush().expect("a flush");
        if round == 1 {
            daemon.stop();
            let daemon = stage.daemon();
            let mut client = connect(stage);
            for n in 0..BLOCKS / 2 {
                client.write(at(n), &block(n, round)).expect("a write");
            }
            client.flush().expect("a flush");
            daemon.kill();
        } else {
            daemon.kill();
        }
    }
    let [ours, other] = stages.each_ref().map(|stage| fs::read(stage.image()).unwrap());
    let stage = &stages[0];
    let (segment_bytes, segments) = geometry(&ours);
    let mut noticed = 0;
    for segment in 0..segments {
        let start = (64 << 10) + segment * segment_bytes;
        let range = start..start + segment_bytes;
        if ours[range.clone()] == other[range.clone()] {
            continue;
        }
        let file = File::options().write(true).open(stage.image()).unwrap();
        file.write_all_at(&ours, 0).unwrap();
        file.write_all_at(&other[range.clone()], range.start as u64).unwrap();
        drop(file);
        let log = stage.path("daemon.log");
        let _ = fs::remove_file(&log);
        let mut daemon = Background::spawn(&mut stage.daemon_command(), &log);
        let serves = wait::until("the daemon to serve or to refuse", || {
            if let Some(status) = daemon.ended() {
                process::assert_refused("a mixed image", status, &daemon.log());
                return Some(false);
            }
            UnixStream::connect(stage.socket()).is_ok().then_some(true)
        });
        if serves {
            let bad = count_bad_blocks(&mut connect(stage), BLOCKS, 1);
            noticed += u64::from(bad > 0);
            daemon.kill();
        } else {
            let text = daemon.log();
            assert!(
                ["damaged at", "damaged near", "cannot be read"].iter().any(|w| text.contains(w)),
                "{text}"
            );
            assert!(text.contains("byte "), "it names no place: {text}");
            noticed += 1;
        }
        daemon.assert_no_panic();
    }
    assert!(noticed >= 3, "only {noticed} of {segments} segments made a difference");
    File::options().write(true).open(stage.image()).unwrap().write_all_at(&ours, 0).unwrap();
    let daemon = stage.daemon();
    assert_blocks(&mut connect(stage), BLOCKS, 1);
    daemon.stop();
}

#[test]
fn of_daemons_started_at_once_one_serves() {
    let stage = Stage::raw(64);
    let socket = |i: usize| stage.path(&format!("socket-{i}"));
    let mut daemons: Vec<Background> = (0..6)
        .map(|i| {
            let mut command = programs::ours("vexfs-blockd");
            command.arg("serve").arg(stage.image()).args(["--nbd", &format!("unix:{}", socket(i).display())]);
            command.arg("--control").arg("none");
            Background::spawn(&mut command, &stage.path(&format!("log-{i}")))
        })
        .collect();
    wait::until("all but one to give up", || {
        (daemons.iter_mut().map(|d| usize::from(d.ended().is_none())).sum::<usize>() <= 1).then_some(())
    });
    let mut serving = None;
    for (i, daemon) in daemons.iter_mut().enumerate() {
        match daemon.ended() {
            Some(status) => {
                process::assert_refused("a second daemon", status, &daemon.log());
                assert!(daemon.log().contains("in use"), "{}", daemon.log());
            }
            None => serving = Some(i),
        }
    }
    let i = serving.expect("one of them has the image");
    let mut client = wait::until("the one to serve", || Client::connect(&socket(i)).ok());
    client.write(0, &block(0, 1)).expect("a write");
    assert_blocks(&mut client, 1, 1);
    daemons[i].terminate();
    assert!(daemons[i].wait().success(), "{}", daemons[i].log());
}

#[test]
fn a_client_that_goes_away_amid_a_write() {
    let stage = Stage::raw(64);
    let daemon = stage.daemon();
    let mut good = connect(&stage);
    for n in 0..16 {
        good.write(at(n), &block(n, 1)).expect("a write");
    }
    let bytes: Vec<u8> = (0..16).flat_map(|n| block(n, 2)).collect();
    for cut in [0, 1, 4095, 4096, 100_000, bytes.len() - 1] {
        let mut bad = connect(&stage);
        let header = Client::header(Kind::Write, 7, 0, bytes.len() as u32);
        bad.stream().write_all(&header).unwrap();
        bad.stream().write_all(&bytes[..cut]).unwrap();
        drop(bad);
        // A header alone, or half of one.
        let mut bad = connect(&stage);
        bad.stream().write_all(&header[..cut % 28]).unwrap();
        drop(bad);
        assert_blocks(&mut good, 16, 1);
    }
    // All of it, and gone before the reply: either, but each block whole.
    let mut bad = connect(&stage);
    bad.stream().write_all(&Client::header(Kind::Write, 7, 0, bytes.len() as u32)).unwrap();
    bad.stream().write_all(&bytes).unwrap();
    drop(bad);
    wait::until("the write to arrive", || {
        (0..16).all(|n| good.read(at(n), BLOCK).expect("a read") == block(n, 2)).then_some(())
    });
    good.flush().expect("a flush");
    daemon.stop();
    let daemon = stage.daemon();
    assert_blocks(&mut connect(&stage), 16, 2);
    daemon.stop();
}

#[test]
fn a_thousand_half_open_connections() {
    let limit = getrlimit(Resource::Nofile);
    let wanted = limit.maximum.map_or(4096, |most| most.min(4096));
    setrlimit(Resource::Nofile, Rlimit { current: Some(wanted), maximum: limit.maximum }).unwrap();
    let stage = Stage::raw(64);
    let daemon = stage.daemon();
    let mut before = connect(&stage);
    before.write(0, &block(0, 1)).expect("a write");
    let mut idle = Vec::new();
    for i in 0..1000u32 {
        let mut stream = UnixStream::connect(stage.socket()).expect("the daemon listens");
        // Some say nothing, some stop in the middle of the handshake. One that was cut off may fail to write.
        let _ = stream.write_all(&[0, 0, 0, 3, 0x49, 0x48, 0x41][..(i % 8).min(7) as usize]);
        idle.push(stream);
    }
    // Who was there is served, and who comes is too.
    assert_blocks(&mut before, 1, 1);
    let mut good = wait::until("a good client to be served", || Client::connect(&stage.socket()).ok());
    good.write(at(1), &block(1, 1)).expect("a write");
    good.flush().expect("a flush");
    assert_blocks(&mut good, 2, 1);
    drop(idle);
    assert_blocks(&mut connect(&stage), 2, 1);
    drop((before, good));
    daemon.stop();
}

#[test]
fn a_write_that_fails_in_the_middle() {
    // Past a limit on the size of files a write gives EFBIG, or is cut short at it.
    for io in ["auto", "sync"] {
        let stage = Stage::raw(64);
        let mut command = programs::tool("sh");
        command.args(["-c", "trap '' XFSZ; exec prlimit --fsize=30000000 \"$@\"", "sh"]);
        let daemon = stage.daemon_command();
        command.arg(daemon.get_program()).args(daemon.get_args()).args(["--io", io]);
        command.env("VEXFS_RUN_DIR", stage.run_dir());
        let daemon = stage.daemon_by(&mut command);
        let mut client = connect(&stage);
        let (blocks, error) = fill(&mut client, 1);
        assert_eq!(error.raw_os_error(), Some(5), "{error}");
        assert!(blocks > 200, "only {blocks} blocks fit 30 MB");
        says(&daemon, "stopped writing");
        assert_blocks(&mut client, blocks, 1);
        assert!(client.flush().is_err(), "nothing is made durable any more");
        daemon.kill();
        let daemon = stage.daemon();
        let mut client = connect(&stage);
        assert_blocks(&mut client, blocks, 1);
        for n in 0..client.size_bytes / BLOCK as u64 {
            client.write(at(n), &block(n, 2)).expect("the limit is gone");
        }
        daemon.stop();
        let daemon = stage.daemon();
        assert_blocks(&mut connect(&stage), 1000, 2);
        daemon.stop();
    }
}
