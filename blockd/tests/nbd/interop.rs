//! Other people's clients against our server, and another server against our client. A tool that
//! is not installed is named and its test passes; `make test` installs them all.

use std::path::Path;
use std::process::{Output, Stdio};

use blockd::buf::AlignedBuf;
use blockd::device::{Device, IoOp, blocking};
use blockd::nbd::client::{ConnectOptions, NbdClient, Target};

use crate::ram::{Ram, tagged};
use crate::served::{Served, socket};

const MIB: u64 = 1 << 20;

/// Runs a tool; `None`, with a printed reason, if it is not installed.
pub fn run(program: &str, arguments: &[&str]) -> Option<Output> {
    let mut command =
        if program == "fio" { vexfs_harness::fio(program) } else { vexfs_harness::command(program) };
    match command.args(arguments).stdin(Stdio::null()).output() {
        Ok(output) => Some(output),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            println!("skipped: {program} is not installed");
            None
        }
        Err(e) => panic!("{program}: {e}"),
    }
}

/// The Python that has libnbd's module, if any: another one may stand before the system's in the path.
pub fn python() -> &'static str {
    if Path::new("/usr/bin/python3").exists() { "/usr/bin/python3" } else { "python3" }
}

pub fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

pub fn uri(path: &Path) -> String {
    Target::socket(path).to_string()
}

#[test]
fn nbdinfo_sees_what_we_offer() {
    let (_dir, path) = socket();
    let _served = Served::start(&path, Ram::new(MIB));
    let Some(output) = run("nbdinfo", &["--json", &uri(&path)]) else { return };
    let text = text(&output);
    assert!(output.status.success(), "{text}");
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let export = &json["exports"][0];
    assert_eq!(json["protocol"], "newstyle-fixed", "{text}");
    assert_eq!(export["export-size"], MIB, "{text}");
    for can in ["can_flush", "can_fua", "can_trim", "can_zero", "can_multi_conn"] {
        assert_eq!(export[can], true, "{can} in {text}");
    }
    assert_eq!(export["is_read_only"], false, "{text}");
    assert_eq!(export["block_size_minimum"], 512, "{text}");
    assert_eq!(export["block_size_preferred"], 4096, "{text}");
    assert_eq!(export["block_size_maximum"], 32 * MIB, "{text}");
    assert!(text.contains("vexfs-blockd raw volume"), "{text}");
    let list = run("nbdinfo", &["--list", &uri(&path)]).expect("it ran just before");
    assert!(list.status.success(), "{}", self::text(&list));
}

#[test]
fn nbdcopy_copies_both_ways() {
    let (dir, path) = socket();
    let ram = Ram::new(48 * MIB);
    let _served = Served::start(&path, ram.clone());
    let mut bytes = vec![0; 48 << 20];
    for (i, word) in bytes.chunks_exact_mut(8).enumerate() {
        // A third stays zero, which nbdcopy sends as write-zeroes or trim.
        if (i >> 15) % 3 != 0 {
            word.copy_from_slice(&(i as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes());
        }
    }
    let source = dir.path().join("in");
    let target = dir.path().join("out");
    std::fs::write(&source, &bytes).unwrap();
    let Some(output) = run("nbdcopy", &["--requests=64", source.to_str().unwrap(), &uri(&path)]) else {
        return;
    };
    assert!(output.status.success(), "{}", text(&output));
    assert!(ram.bytes(0, 48 << 20) == bytes, "the device holds the file");
    let output = run("nbdcopy", &[&uri(&path), target.to_str().unwrap()]).expect("it ran just before");
    assert!(output.status.success(), "{}", text(&output));
    assert!(std::fs::read(&target).unwrap() == bytes, "the file came back");
}

#[test]
fn fio_verifies_its_writes() {
    let (dir, path) = socket();
    let _served = Served::start(&path, Ram::new(32 * MIB));
    let uri = format!("--uri={}", uri(&path));
    let state = format!("--aux-path={}", dir.path().display());
    let common =
        ["--name=v", "--ioengine=nbd", &uri, &state, "--size=16M", "--iodepth=16", "--verify_state_save=0"];
    let verify =
        ["--rw=randwrite", "--bsrange=512-64k", "--verify=crc32c", "--verify_fatal=1", "--do_verify=1"];
    let Some(output) = run("fio", &[&common[..], &verify].concat()) else { return };
    if text(&output).contains("nbd: engine not") || text(&output).contains("fio: engine nbd not loadable") {
        println!("skipped: this fio has no nbd engine");
        return;
    }
    assert!(output.status.success(), "{}", text(&output));
    let trim = ["--rw=randtrim", "--bs=64k", "--number_ios=100"];
    let output = run("fio", &[&common[..], &trim].concat()).expect("it ran just before");
    assert!(output.status.success(), "{}", text(&output));
}

#[test]
fn qemu_io_writes_zeroes_discards_and_reads_back() {
    let (_dir, path) = socket();
    let ram = Ram::new(16 * MIB);
    let _served = Served::start(&path, ram.clone());
    let target = format!("nbd:unix:{}", path.display());
    let commands = [
        "write -P 0x11 0 16M",
        "write -f -P 0xab 1M 64k",
        "write -z 2M 1M",
        "write -z -u 4M 1M",
        "discard 8M 1M",
        "flush",
        "read -P 0xab 1M 64k",
        "read -P 0x11 1114112 64k",
        "read -P 0 2M 1M",
        "read -P 0x11 3M 1M",
        "read -P 0 4M 1M",
    ];
    let mut arguments = vec!["-f", "raw"];
    for command in &commands {
        arguments.extend(["-c", command]);
    }
    arguments.push(&target);
    let Some(output) = run("qemu-io", &arguments) else { return };
    let said = text(&output);
    assert!(output.status.success(), "{said}");
    assert!(!said.to_lowercase().contains("fail") && !said.contains("error"), "{said}");
    assert_eq!(ram.bytes(MIB, 4), [0xab; 4]);
    assert_eq!(ram.bytes(8 * MIB, 4), [0; 4], "discarded");
}

#[test]
fn our_client_works_with_nbdkit() {
    let (_dir, path) = socket();
    let unix = path.to_str().unwrap();
    let spawned = vexfs_harness::command("nbdkit")
        .args(["--foreground", "--exit-with-parent", "--unix", unix, "memory", "16M"])
        .stdin(Stdio::null())
        .spawn();
    let mut nbdkit = match spawned {
        Ok(child) => child,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            println!("skipped: nbdkit is not installed");
            return;
        }
        Err(e) => panic!("nbdkit: {e}"),
    };
    let options =
        ConnectOptions { connect_timeout_ms: 20_000, reconnect: false, ..ConnectOptions::default() };
    let client = NbdClient::connect(&Target::socket(&path), options).unwrap();
    assert_eq!(client.info().size_bytes, 16 * MIB);
    let id = client.connect();
    let run = |op| blocking(&client, id, op).unwrap();
    run(IoOp::Write { offset: 8192, buf: tagged(6, 65536), fua: true });
    run(IoOp::Flush);
    let back = run(IoOp::Read { offset: 8192, buf: AlignedBuf::zeroed(65536) }).unwrap();
    assert!(back[..] == tagged(6, 65536)[..]);
    run(IoOp::WriteZeroes { offset: 8192, len_bytes: 4096, fua: false, no_hole: false });
    let back = run(IoOp::Read { offset: 8192, buf: AlignedBuf::zeroed(4096) }).unwrap();
    assert_eq!(back[..], [0; 4096]);
    drop(client);
    nbdkit.kill().unwrap();
    nbdkit.wait().unwrap();
}
