//! Wrong input gets a message that says what is wrong and what to do, and an exit status that is not 0.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Command;

use vexfs_tests::process;
use vexfs_tests::programs::{self, ours};
use vexfs_tests::stage::Stage;

/// Runs a program that must refuse; the message must hold one of `words` (in any case).
fn refused(command: &mut Command, words: &[&str]) {
    let mut limited = programs::tool("timeout");
    limited.arg("60").arg(command.get_program()).args(command.get_args());
    let message = process::fails(&mut limited);
    assert_ne!(message, "", "{command:?} said nothing");
    let lower = message.to_lowercase();
    assert!(words.iter().any(|word| lower.contains(word)), "{command:?} says none of {words:?}:\n{message}");
}

fn mount_point(stage: &Stage) -> std::path::PathBuf {
    let point = stage.path("mnt");
    fs::create_dir_all(&point).unwrap();
    point
}

fn mount_of(stage: &Stage, source: &str) -> Command {
    stage.mount_command(source, &mount_point(stage))
}

#[test]
fn what_is_no_image_is_refused_by_all() {
    let stage = Stage::empty();
    let image = stage.image();
    type Content = fn(&Path);
    let contents: [Content; 3] = [
        |path| File::create(path).unwrap().set_len(64 << 20).unwrap(),
        |path| fs::write(path, "not an image ".repeat(1 << 20)).unwrap(),
        |path| {
            process::ok(programs::tool("mkfs.ext4").args(["-q", "-F"]).arg(path).arg("32M"));
        },
    ];
    for content in contents {
        let _ = fs::remove_file(&image);
        content(&image);
        let before = fs::read(&image).unwrap();
        refused(&mut stage.daemon_command(), &["magic", "not a vexfs", "no vexfs"]);
        refused(&mut mount_of(&stage, image.to_str().unwrap()), &["magic", "not a vexfs", "no vexfs"]);
        assert!(fs::read(&image).unwrap() == before, "the file was changed");
    }
}

#[test]
fn what_is_not_there_is_refused() {
    let stage = Stage::empty();
    refused(&mut stage.daemon_command(), &["no such file", "does not exist"]);
    refused(&mut mount_of(&stage, stage.image().to_str().unwrap()), &["no such file", "does not exist"]);
    assert!(!stage.image().exists(), "an image appeared");
    let stage = Stage::vexfs(64);
    let mut command = stage.mount_command(stage.image().to_str().unwrap(), &stage.path("no mount point"));
    refused(&mut command, &["no such file", "does not exist"]);
}

#[test]
fn an_image_in_use_is_refused() {
    let stage = Stage::vexfs(64);
    let image = stage.image();
    let in_use = ["in use", "locked", "another process"];
    let other_uses = |stage: &Stage| {
        refused(&mut mount_of_elsewhere(stage), &in_use);
        let mut second = ours("vexfs-blockd");
        second
            .arg("serve")
            .arg(&image)
            .arg("--nbd")
            .arg(format!("unix:{}", stage.path("second").display()))
            .args(["--control", "none"]);
        refused(&mut second, &in_use);
        refused(ours("mkfs.vexfs").arg("-f").arg(&image).args(["--size", "64M"]), &in_use);
    };
    let mount = stage.mount();
    fs::write(mount.join("file"), b"content").unwrap();
    other_uses(&stage);
    mount.unmount();
    let daemon = stage.daemon();
    other_uses(&stage);
    daemon.stop();
    let mount = stage.mount();
    assert_eq!(fs::read(mount.join("file")).unwrap(), b"content");
    mount.unmount();
}

#[test]
fn an_image_that_a_mount_is_just_leaving_is_waited_for() {
    let stage = Stage::vexfs(64);
    let mount = stage.mount();
    fs::write(mount.join("file"), vec![7; 16 << 20]).unwrap();
    // It returns before the last commit is written.
    process::ok(programs::tool("fusermount3").arg("-u").arg(mount.path()));
    stage.daemon().stop();
    drop(mount);
    let mount = stage.mount();
    assert_eq!(fs::read(mount.join("file")).unwrap(), vec![7; 16 << 20]);
    mount.unmount();
}

fn mount_of_elsewhere(stage: &Stage) -> Command {
    let point = stage.path("elsewhere");
    fs::create_dir_all(&point).unwrap();
    stage.mount_command(stage.image().to_str().unwrap(), &point)
}

#[test]
fn mkfs_refuses_what_is_too_small_or_used() {
    let stage = Stage::empty();
    refused(ours("mkfs.vexfs").arg(stage.image()).args(["--size", "100K"]), &["small", "at least"]);
    let device = stage.path("device");
    File::create(&device).unwrap().set_len(8192).unwrap();
    refused(ours("mkfs.vexfs").arg(&device), &["small", "at least"]);

    let stage = Stage::vexfs(64);
    let before = fs::read(stage.image()).unwrap();
    refused(ours("mkfs.vexfs").arg(stage.image()).args(["--size", "64M"]), &["-f", "force"]);
    assert!(fs::read(stage.image()).unwrap() == before, "mkfs changed what it refused");
    process::ok(ours("mkfs.vexfs").arg("-f").arg(stage.image()).args(["--size", "64M"]));
}

#[test]
fn mkfs_refuses_what_looks_used_unless_it_is_forced() {
    let stage = Stage::empty();
    let image = stage.image();
    type Content = fn(&Path);
    let contents: [(&str, Content); 5] = [
        ("ext4", |path| drop(process::ok(programs::tool("mkfs.ext4").args(["-q", "-F"]).arg(path)))),
        ("swap", |path| drop(process::ok(programs::tool("mkswap").arg(path)))),
        // The signature of a partition table, and nothing else.
        ("partition", |path| write_at(path, 510, &[0x55, 0xaa])),
        ("raw volume", |path| {
            fs::remove_file(path).unwrap();
            process::ok(ours("mkfs.vexfs").arg(path).args(["--raw", "--size", "64M"]));
        }),
        ("something", |path| write_at(path, (1 << 20) - 1, b"x")),
    ];
    for (what, content) in contents {
        let _ = fs::remove_file(&image);
        File::create(&image).unwrap().set_len(64 << 20).unwrap();
        content(&image);
        let before = fs::read(&image).unwrap();
        refused(ours("mkfs.vexfs").arg(&image), &["-f"]);
        assert!(fs::read(&image).unwrap() == before, "mkfs changed {what}");
        process::ok(ours("mkfs.vexfs").arg("-f").arg(&image));
        stage.mount().unmount();
    }
}

fn write_at(path: &Path, offset: u64, bytes: &[u8]) {
    File::options().write(true).open(path).unwrap().write_all_at(bytes, offset).unwrap();
}

#[test]
fn a_volume_has_the_label_and_uuid_it_was_given() {
    const UUID: &str = "01234567-89ab-cdef-0123-456789abcdef";
    let stage = Stage::empty();
    let mkfs = || {
        let mut command = ours("mkfs.vexfs");
        command.arg(stage.image()).args(["--size", "64M"]);
        command
    };
    let label = "ä".repeat(16);
    refused(mkfs().args(["-L", &format!("{label}x")]), &["32"]);
    refused(mkfs().args(["-U", "1234"]), &["uuid"]);
    assert!(!stage.image().exists(), "what is refused leaves no image");
    process::ok(mkfs().args(["-L", &label, "-U", UUID]));
    stage.mount().unmount();
    let shown = process::ok(ours("vexfs-dump").arg("--json").arg(stage.image()));
    let shown: serde_json::Value = serde_json::from_str(&shown).unwrap();
    let plain = UUID.replace('-', "");
    assert_eq!(shown["superblock"]["label"], *label);
    assert_eq!(shown["superblock"]["uuid"].as_str().map(|text| text.replace('-', "")), Some(plain.clone()));
    assert_eq!(shown["status"]["uuid"].as_str().map(|text| text.replace('-', "")), Some(plain));
}

#[test]
fn a_raw_volume_is_no_file_system() {
    let stage = Stage::raw(64);
    refused(&mut mount_of(&stage, stage.image().to_str().unwrap()), &["raw"]);
    let daemon = stage.daemon();
    refused(&mut mount_of(&stage, &stage.uri()), &["raw", "not a vexfs", "no vexfs", "magic"]);
    daemon.stop();
}

#[test]
fn a_dead_nbd_peer_is_refused() {
    let stage = Stage::empty();
    refused(&mut mount_of(&stage, &stage.uri()), &["connect", "no such file"]);
    // A socket file without anyone behind it.
    drop(UnixListener::bind(stage.path("socket")).unwrap());
    refused(&mut mount_of(&stage, &stage.uri()), &["connect", "refused"]);
    // Someone who speaks another protocol.
    fs::remove_file(stage.path("socket")).unwrap();
    let listener = UnixListener::bind(stage.path("socket")).unwrap();
    let stranger = std::thread::spawn(move || {
        for _ in 0..1 {
            let (mut peer, _) = listener.accept().unwrap();
            let _ = peer.write_all(b"220 ready for mail, and not for blocks\r\n");
        }
    });
    refused(&mut mount_of(&stage, &stage.uri()), &["nbd", "magic", "protocol"]);
    stranger.join().unwrap();
}

#[test]
fn wrong_arguments_are_refused() {
    let stage = Stage::empty();
    refused(ours("mkfs.vexfs").arg(stage.image()).args(["--size", "many"]), &["size"]);
    refused(&mut ours("vexfs-blockd"), &["usage"]);
    refused(&mut ours("vexfs-fuse"), &["usage"]);
    refused(&mut ours("vexctl"), &["usage"]);
    let mut bad_listen = ours("vexfs-blockd");
    bad_listen.arg("serve").arg(stage.image()).args(["--nbd", "carrier-pigeon:1"]);
    refused(&mut bad_listen, &["unix:", "--nbd"]);
}

#[test]
fn a_full_image_says_so_and_loses_nothing() {
    let stage = Stage::vexfs(128);
    let mount = stage.mount();
    fs::write(mount.join("before"), vec![1; 1 << 20]).unwrap();
    let chunk = vec![2; 1 << 20];
    let mut file = File::create(mount.join("filler")).unwrap();
    let error = (0..512).find_map(|_| file.write_all(&chunk).and_then(|()| file.sync_data()).err());
    let error = error.expect("512 MiB do not fit into 128");
    assert_eq!(error.raw_os_error(), Some(28), "ENOSPC, not {error}");
    drop(file);

    // What was there is still there, can be read, and room can be made.
    assert!(fs::read(mount.join("before")).unwrap() == vec![1; 1 << 20]);
    fs::remove_file(mount.join("filler")).unwrap();
    File::open(mount.path()).unwrap().sync_all().unwrap();
    fs::write(mount.join("after"), vec![3; 8 << 20]).unwrap();
    mount.unmount();
    let mount = stage.mount();
    assert!(fs::read(mount.join("before")).unwrap() == vec![1; 1 << 20]);
    assert!(fs::read(mount.join("after")).unwrap() == vec![3; 8 << 20]);
    mount.unmount();
}

/// CRC-32C (RFC 3720), bit by bit, so that the tests share no code with what they test.
fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc: u32, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ if crc & 1 == 1 { 0x82F6_3B78 } else { 0 })
    })
}

/// Changes both slots of the store's superblock (FORMAT.md, section 4) and gives them a right checksum.
fn edit_superblocks(image: &Path, edit: impl Fn(&mut [u8])) {
    let file = File::options().read(true).write(true).open(image).unwrap();
    for slot in [0, 8 * 4096] {
        let mut page = vec![0; 4096];
        file.read_exact_at(&mut page, slot).unwrap();
        assert_eq!(&page[..8], b"VEXFSTOR");
        let stored = u32::from_le_bytes(page[12..16].try_into().unwrap());
        page[12..16].fill(0);
        assert_eq!(crc32c(&page), stored, "the checksum is not where FORMAT.md says");
        edit(&mut page);
        let crc = crc32c(&page);
        page[12..16].copy_from_slice(&crc.to_le_bytes());
        file.write_all_at(&page, slot).unwrap();
    }
}

#[test]
fn an_image_of_the_future_is_refused() {
    let stage = Stage::vexfs(64);
    let mount = stage.mount();
    fs::write(mount.join("file"), b"content").unwrap();
    mount.unmount();
    let image = stage.image().to_str().unwrap().to_owned();
    let (version, incompat) = (8, 96 + 5);
    for byte in [version, incompat] {
        edit_superblocks(&stage.image(), |page| page[byte] ^= 0x40);
        let words = ["feature", "version", "newer"];
        refused(&mut stage.daemon_command(), &words);
        refused(&mut mount_of(&stage, &image), &words);
        edit_superblocks(&stage.image(), |page| page[byte] ^= 0x40);
    }
    let mount = stage.mount();
    assert_eq!(fs::read(mount.join("file")).unwrap(), b"content");
    mount.unmount();
}
