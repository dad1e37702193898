//! A raw volume served over NBD, used by tools that know nothing of us.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

use rand::rngs::StdRng;
use rand::{RngCore, SeedableRng};
use vexfs_tests::stage::Stage;
use vexfs_tests::{process, programs, settings};

const VOLUME_MIB: u64 = 128;

fn raw_stage() -> Stage {
    Stage::raw(VOLUME_MIB)
}

#[test]
fn fio_verifies_random_writes_also_after_a_restart_and_a_kill() {
    let stage = raw_stage();
    let daemon = stage.daemon();
    let fio = |name: &str, extra: &[&str]| {
        let mut command = programs::fio();
        command.args(["--ioengine=nbd", "--rw=randwrite", "--iodepth=32", "--size=96m", "--verify=crc32c"]);
        command.args([
            "--verify_fatal=1",
            "--verify_state_save=0",
            "--randrepeat=1",
            "--end_fsync=1",
            "--bs=4k",
        ]);
        command.args([&format!("--name={name}"), &format!("--uri={}", stage.uri())]).args(extra);
        command.current_dir(stage.path(""));
        process::ok(&mut command);
    };
    fio("first", &["--do_verify=1"]);
    daemon.stop();
    let daemon = stage.daemon();
    fio("first", &["--verify_only=1"]);
    fio("second", &["--do_verify=1", "--randseed=77", "--bsrange=512-256k", "--blockalign=512"]);
    daemon.kill();
    let daemon = stage.daemon();
    fio("second", &["--verify_only=1", "--randseed=77", "--bsrange=512-256k", "--blockalign=512"]);
    daemon.stop();
}

/// A file with data, zeros and holes, as large as the volume.
fn mixed_file(path: &Path) {
    let file = File::create(path).unwrap();
    file.set_len(VOLUME_MIB << 20).unwrap();
    let mut rng = StdRng::seed_from_u64(settings::seed());
    let mut block = vec![0; 1 << 20];
    for mib in (0..VOLUME_MIB).step_by(3) {
        rng.fill_bytes(&mut block);
        file.write_all_at(&block, mib << 20).unwrap();
    }
    block.fill(0);
    file.write_all_at(&block, 5 << 20).unwrap();
}

fn copy(from: &str, to: &str) {
    process::ok(programs::tool("nbdcopy").args(["--flush", from, to]));
}

fn assert_same(a: &Path, b: &Path) {
    process::ok(programs::tool("cmp").arg(a).arg(b));
}

#[test]
fn nbdcopy_both_ways() {
    let stage = raw_stage();
    let (source, back) = (stage.path("source"), stage.path("back"));
    mixed_file(&source);
    let daemon = stage.daemon();
    copy(source.to_str().unwrap(), &stage.uri());
    copy(&stage.uri(), back.to_str().unwrap());
    assert_same(&source, &back);
    daemon.stop();

    let daemon = stage.daemon();
    fs::remove_file(&back).unwrap();
    copy(&stage.uri(), back.to_str().unwrap());
    assert_same(&source, &back);
    daemon.stop();
}

fn qemu_io(stage: &Stage, commands: &[&str]) {
    let mut command = programs::tool("qemu-io");
    command.args(["-f", "raw"]);
    for text in commands {
        command.args(["-c", text]);
    }
    let output = process::ok(command.arg(stage.uri()));
    assert!(!output.contains("failed") && !output.contains("error"), "{output}");
}

#[test]
fn qemu_writes_with_fua_discards_and_writes_zeroes() {
    let stage = raw_stage();
    let daemon = stage.daemon();
    qemu_io(
        &stage,
        &[
            "write -P 0x11 0 1M",
            "write -f -P 0x22 1M 1M",
            "write -P 0x33 2M 64k",
            "flush",
            "discard 64k 128k",
            "write -z 512k 64k",
            "write -z -u 1M 256k",
            "write -P 0x44 700000 1000",
            "aio_write -P 0x55 3M 512k",
            "aio_write -P 0x66 4M 512k",
            "aio_flush",
            "flush",
        ],
    );
    let read = [
        "read -P 0x11 0 64k",
        "read -P 0 64k 128k",
        "read -P 0x11 192k 320k",
        "read -P 0 512k 64k",
        "read -P 0x11 576k 110176",
        "read -P 0x44 700000 1000",
        "read -P 0x11 701000 347576",
        "read -P 0 1M 256k",
        "read -P 0x22 1280k 768k",
        "read -P 0x33 2M 64k",
        "read -P 0x55 3M 512k",
        "read -P 0x66 4M 512k",
        "read -P 0 5M 1M",
    ];
    qemu_io(&stage, &read);
    daemon.kill();
    let daemon = stage.daemon();
    qemu_io(&stage, &read);
    daemon.stop();
}

#[test]
fn what_fua_or_flush_acknowledged_survives_kill_9() {
    let stage = raw_stage();
    for round in 1..=settings::rounds(5) {
        let daemon = stage.daemon();
        let pattern = 1 + round % 250;
        qemu_io(
            &stage,
            &[
                &format!("write -f -P {pattern} {}k 64k", round * 64),
                &format!("write -P {} 64M 1M", pattern + 1),
                "flush",
                &format!("discard {}k 4k", round * 64),
                "flush",
            ],
        );
        daemon.kill();
        let daemon = stage.daemon();
        qemu_io(
            &stage,
            &[
                &format!("read -P 0 {}k 4k", round * 64),
                &format!("read -P {pattern} {}k 60k", round * 64 + 4),
                &format!("read -P {} 64M 1M", pattern + 1),
            ],
        );
        daemon.kill();
    }
}

#[test]
fn ext4_on_a_raw_volume_is_clean() {
    let stage = raw_stage();
    let (made, back) = (stage.path("ext4"), stage.path("back"));
    let content =
        ["/usr/include/linux", "/usr/include", "/etc"].into_iter().find(|path| Path::new(path).is_dir());
    let mut mkfs: Command = programs::tool("mkfs.ext4");
    mkfs.args(["-q", "-F", "-d", content.unwrap()]).arg(&made).arg(format!("{VOLUME_MIB}M"));
    process::ok(&mut mkfs);

    let daemon = stage.daemon();
    copy(made.to_str().unwrap(), &stage.uri());
    daemon.kill();
    let daemon = stage.daemon();
    copy(&stage.uri(), back.to_str().unwrap());
    daemon.stop();
    process::ok(programs::tool("e2fsck").arg("-fn").arg(&back));
    assert_same(&made, &back);
}
