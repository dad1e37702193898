//! Other people's clients on a volume with holes: they find them, skip them, and read the rest. A tool that
//! is not installed is named and its part passes; `make test` installs them all.

use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Output;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use blockd::device::{ClientId, Device, DeviceInfo, Done, Extent, IoError, IoOp, VolumeKind, blocking};
use blockd::volume::{CreateOptions, OpenOptions, Volume};

use crate::interop::{python, run, text, uri};
use crate::ram::tagged;
use crate::served::{Served, socket};

const MIB: u64 = 1 << 20;

/// A raw volume of 64 MiB in an image: data in [1 MiB, 2 MiB) and the 64 KiB at 40 MiB, the rest never written.
fn sparse_volume(dir: &Path) -> Arc<Volume> {
    let image = dir.join("image");
    let options = CreateOptions {
        kind: VolumeKind::Raw,
        uuid: uuid::Uuid::new_v4(),
        size_bytes: 32 * MIB,
        raw_size_bytes: 64 * MIB,
        segment_bytes: 0,
        force: false,
    };
    Volume::create(&image, &options).expect("a new volume");
    let volume = Volume::open(&image, &OpenOptions::default()).expect("the volume opens");
    let client = volume.connect();
    for (offset, len) in [(MIB, 1 << 20), (40 * MIB, 64 << 10)] {
        let op = IoOp::Write { offset, buf: tagged(offset, len), fua: false };
        blocking(&*volume, client, op).expect("written");
    }
    volume
}

/// Passes requests on and counts the bytes read.
struct CountReads {
    volume: Arc<Volume>,
    bytes_read: AtomicU64,
}

impl Device for CountReads {
    fn info(&self) -> DeviceInfo {
        self.volume.info()
    }
    fn connect(&self) -> ClientId {
        self.volume.connect()
    }
    fn disconnect(&self, client: ClientId) {
        self.volume.disconnect(client);
    }
    fn submit(&self, client: ClientId, op: IoOp, done: Done) {
        if let IoOp::Read { buf, .. } = &op {
            self.bytes_read.fetch_add(buf.len() as u64, Ordering::Relaxed);
        }
        self.volume.submit(client, op, done);
    }
    fn allocation(
        &self,
        client: ClientId,
        offset: u64,
        len: u64,
        max: usize,
    ) -> Result<Vec<Extent>, IoError> {
        self.volume.allocation(client, offset, len, max)
    }
}

fn json(output: &Output) -> serde_json::Value {
    assert!(output.status.success(), "{}", text(output));
    serde_json::from_slice(&output.stdout).expect("JSON")
}

#[test]
fn nbdinfo_and_qemu_img_map_a_sparse_volume() {
    let (dir, path) = socket();
    let volume = sparse_volume(dir.path());
    let served = Served::start(&path, volume.clone());
    // (start, length, whether it is a hole)
    let expected = [
        (0, MIB, true),
        (MIB, MIB, false),
        (2 * MIB, 38 * MIB, true),
        (40 * MIB, 64 << 10, false),
        (40 * MIB + (64 << 10), 24 * MIB - (64 << 10), true),
    ];
    let extents = |output: &Output, start: &str, is_hole: fn(&serde_json::Value) -> bool| {
        let found = json(output);
        let number = |value: &serde_json::Value| value.as_u64().expect("a number");
        let entries = found.as_array().expect("an array").iter();
        entries.map(|e| (number(&e[start]), number(&e["length"]), is_hole(e))).collect::<Vec<_>>()
    };
    if let Some(output) = run("nbdinfo", &["--map", "--json", &uri(&path)]) {
        assert_eq!(extents(&output, "offset", |e| e["type"] == 3), expected, "nbdinfo");
        let output = run("nbdinfo", &["--json", &uri(&path)]).expect("it ran just before");
        let said = json(&output);
        assert_eq!(said["structured"], true, "{said}");
        let export = &said["exports"][0];
        assert_eq!(export["contexts"], serde_json::json!(["base:allocation"]), "{said}");
        assert_eq!(export["can_df"], true, "{said}");
        assert_eq!(export["can_fast_zero"], true, "{said}");
        assert_eq!(export["can_cache"], true, "{said}");
    }
    let target = format!("nbd:unix:{}", path.display());
    if let Some(output) = run("qemu-img", &["map", "--output=json", "-f", "raw", &target]) {
        assert_eq!(extents(&output, "start", |e| e["zero"] == true), expected, "qemu-img");
    }
    served.stop();
    volume.shutdown().unwrap();
}

#[test]
fn copies_skip_the_holes_and_compare_equal() {
    let (dir, path) = socket();
    let device = Arc::new(CountReads { volume: sparse_volume(dir.path()), bytes_read: AtomicU64::new(0) });
    let served = Served::start(&path, device.clone());
    let copy = dir.path().join("copy");
    if let Some(output) = run("nbdcopy", &[&uri(&path), copy.to_str().unwrap()]) {
        assert!(output.status.success(), "{}", text(&output));
        let read = device.bytes_read.load(Ordering::Relaxed);
        // nbdcopy reads 256 KiB around the 64 KiB.
        assert!((MIB + (64 << 10)..=MIB + (256 << 10)).contains(&read), "{read} of 64 MiB were read");
        let bytes = std::fs::read(&copy).unwrap();
        assert_eq!(bytes.len(), 64 << 20);
        assert!(bytes[1 << 20..2 << 20] == tagged(MIB, 1 << 20)[..]);
        assert!(bytes[40 << 20..][..64 << 10] == tagged(40 * MIB, 64 << 10)[..]);
        assert!(bytes[2 << 20..40 << 20].iter().all(|&b| b == 0));
    } else {
        let file = std::fs::File::create(&copy).unwrap();
        file.set_len(64 * MIB).unwrap();
        file.write_all_at(&tagged(MIB, 1 << 20), MIB).unwrap();
        file.write_all_at(&tagged(40 * MIB, 64 << 10), 40 * MIB).unwrap();
    }
    let target = format!("nbd:unix:{}", path.display());
    let compare = ["compare", "-f", "raw", "-F", "raw", &target, copy.to_str().unwrap()];
    if let Some(output) = run("qemu-img", &compare) {
        assert!(output.status.success(), "{}", text(&output));
        let file = std::fs::OpenOptions::new().write(true).open(&copy).unwrap();
        file.write_all_at(b"x", 30 * MIB).unwrap();
        let output = run("qemu-img", &compare).expect("it ran just before");
        assert_eq!(output.status.code(), Some(1), "one byte differs: {}", text(&output));
    }
    served.stop();
    device.volume.shutdown().unwrap();
}

const SCRIPT: &str = r#"
import sys
try:
    import nbd
except ImportError:
    sys.exit(77)
h = nbd.NBD()
h.set_strict_mode(0)
h.add_meta_context(nbd.CONTEXT_BASE_ALLOCATION)
h.connect_unix(sys.argv[1])
assert h.get_structured_replies_negotiated() and h.can_meta_context(nbd.CONTEXT_BASE_ALLOCATION)
assert h.can_df() and h.can_fast_zero() and h.can_cache()
MIB = 1 << 20
def status(count, offset, flags=0):
    found = []
    def extent(context, at, entries, error):
        assert context == nbd.CONTEXT_BASE_ALLOCATION and at == offset
        found.extend(zip(entries[::2], entries[1::2]))
    h.block_status(count, offset, extent, flags)
    return found
assert status(4 * MIB, 0) == [(MIB, 3), (MIB, 0), (2 * MIB, 3)], status(4 * MIB, 0)
assert status(4 * MIB, 0, nbd.CMD_FLAG_REQ_ONE) == [(MIB, 3)]
assert status(4096, MIB) == [(4096, 0)]
chunks = []
def chunk(data, offset, kind, error):
    chunks.append((offset, len(data), kind))
data = h.pread_structured(4 * MIB, 0, chunk)
assert [(o, k) for o, n, k in chunks] == [(0, nbd.READ_HOLE), (MIB, nbd.READ_DATA), (2 * MIB, nbd.READ_HOLE)], chunks
word = MIB.to_bytes(8, "little")
assert data == bytes(MIB) + word * (MIB // 8) + bytes(2 * MIB)
chunks = []
h.pread_structured(4 * MIB, 0, chunk, nbd.CMD_FLAG_DF)
assert chunks == [(0, 4 * MIB, nbd.READ_DATA)], chunks
h.zero(4096, MIB, nbd.CMD_FLAG_FAST_ZERO)
assert h.pread(8192, MIB) == bytes(4096) + word * 512
assert status(8192, MIB) == [(4096, 3), (4096, 0)]
h.cache(MIB, 0)
try:
    status(4096, 64 * MIB)
    sys.exit("a status behind the end was given")
except nbd.Error as e:
    assert e.errnum == 22, e
h.shutdown()
"#;

#[test]
fn libnbd_reads_in_chunks_and_asks_for_block_status() {
    let (dir, path) = socket();
    let volume = sparse_volume(dir.path());
    let served = Served::start(&path, volume.clone());
    let Some(output) = run(python(), &["-c", SCRIPT, path.to_str().unwrap()]) else { return };
    if output.status.code() == Some(77) {
        println!("skipped: python3-libnbd is not installed");
        return;
    }
    assert!(output.status.success(), "{}", text(&output));
    served.stop();
    volume.shutdown().unwrap();
}
