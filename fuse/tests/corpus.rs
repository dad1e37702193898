//! Every kept input of the fuzz targets (tests/fuzz) goes through the same functions, and each seed is still what the code
//! writes. VEXFS_WRITE_SEEDS=1 writes them anew after a change of the format.

#[path = "../../tests/fuzz/src/lib.rs"]
mod targets;

use std::fs;
use std::path::{Path, PathBuf};

use blockd::device::VolumeKind;
use blockd::store::format::{
    Geometry, Loc, Mapping, checkpoint, directory, leaf, record, segment, superblock as store_superblock,
};
use blockd::volume::backup::Header;
use blockd::volume::backup::frame::{FrameWriter, Point};
use layout::addr::{PAGE, PageNo};
use layout::dir::branch::Child;
use layout::dir::leaf::Entry;
use layout::dir::page::DirPlace;
use layout::fs::XattrFlags;
use layout::inode::{Inline, Ino, Inode, Kind, ROOT_INO, slot_mut};
use layout::page_store::Timespec;
use layout::rows::{RawRow, Row, headers_mut, set};
use layout::schema::{CollectionHeader, Element, Metric, Schema};
use layout::testing::{MemStore, commit, format_params, mount};
use layout::uapi::put::{PutReply, PutRequest, encode_put};
use layout::uapi::raw::vexfs_put_row;
use layout::uapi::search::SearchRequest;
use targets::{TARGETS, UUID};
use zerocopy::IntoBytes;

fn corpus() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fuzz/corpus")
}

#[test]
fn every_kept_input_goes_through_its_target() {
    for (name, target) in TARGETS {
        let mut inputs = 0;
        for entry in fs::read_dir(corpus().join(name)).unwrap_or_else(|e| panic!("{name}: {e}")) {
            let input = fs::read(entry.unwrap().path()).unwrap();
            assert!(input.len() <= 16 << 10, "{name}: kept inputs are small");
            targets::run(name, &input);
            // And cut short, and with single bytes changed.
            for cut in [0, 1, input.len() / 2, input.len().saturating_sub(1)] {
                target(&input[..cut]);
            }
            for at in (0..input.len()).step_by(input.len() / 200 + 1) {
                let mut changed = input.clone();
                changed[at] ^= 0x81;
                target(&changed);
            }
            inputs += 1;
        }
        assert!(inputs > 0, "{name} has no kept input");
        target(&[]);
    }
}

/// cargo refuses a manifest that names a target twice, and `make fuzz-cover` runs those that it names.
#[test]
fn the_manifest_names_each_target_once() {
    let fuzz = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fuzz");
    let manifest = fs::read_to_string(fuzz.join("Cargo.toml")).unwrap();
    let (_, bins) = manifest.split_once("[[bin]]").unwrap();
    let mut named: Vec<_> = bins.lines().filter_map(|line| line.strip_prefix("name = ")).collect();
    let mut targets: Vec<_> = TARGETS.iter().map(|(name, _)| format!("\"{name}\"")).collect();
    named.sort_unstable();
    targets.sort_unstable();
    assert_eq!(named, targets);
    for (name, _) in TARGETS {
        let source = fs::read_to_string(fuzz.join(format!("fuzz_targets/{name}.rs"))).unwrap();
        assert!(source.contains(&format!("vexfs_fuzz::run(\"{name}\", data)")), "{name}: {source}");
    }
}

#[test]
fn seeds_are_what_the_code_writes() {
    for (target, bytes) in seeds() {
        // Pages are kept without the zeros at their end.
        let end = bytes.iter().rposition(|b| *b != 0).map_or(0, |at| at + 1);
        let path = corpus().join(target).join("seed");
        if std::env::var_os("VEXFS_WRITE_SEEDS").is_some() {
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, &bytes[..end]).unwrap();
        }
        let kept = fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        assert!(kept == bytes[..end], "{target}: write the seeds anew (VEXFS_WRITE_SEEDS=1)");
    }
}

/// A good structure for each target.
fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    let mut seeds = file_system_seeds();
    seeds.extend(store_seeds());
    let mut stream = Vec::new();
    let mut writer = FrameWriter::new(&mut stream);
    let header = Header {
        kind: VolumeKind::VexFs,
        uuid: UUID,
        raw_bytes: 0,
        image_bytes: 64 << 20,
        pages_max: 1,
        from: None,
        to: Point { name: "monday".into(), time_ns: 1 },
    };
    writer.header(&header).unwrap();
    writer.data(77, &[5; PAGE]).unwrap();
    writer.holes(&[(100, 3)]).unwrap();
    writer.trailer().unwrap();
    seeds.push(("backup", stream));
    seeds.extend(request_seeds());
    seeds
}

fn request_seeds() -> Vec<(&'static str, Vec<u8>)> {
    let row = vexfs_put_row { offset: 0.into(), length: 9.into(), tag: 3.into(), reserved: 0.into() };
    let vector: Vec<u8> = [0.5f32, 1.0].iter().flat_map(|f| f.to_le_bytes()).collect();
    let put = PutRequest {
        append: true,
        dim: 2,
        element: 1,
        rows: &[row],
        vectors: &vector,
        file: b"a/file",
        publish_as: Some(b"name"),
    };
    let mut put_bytes = vec![0; 4096];
    let len = encode_put(&put, &mut put_bytes).unwrap();
    put_bytes.truncate(len);
    let search = SearchRequest {
        fresh_only: true,
        tags_any: 7,
        k: 10,
        dim: 2,
        element: 1,
        query: &vector,
        subdir: b"a/b",
    };
    let mut search_bytes = vec![0; 4096];
    let len = search.encode(&mut search_bytes).unwrap();
    search_bytes.truncate(len);
    let reply = PutReply { answer: Err(28), message: "no space" };
    let reply = [reply.header().unwrap().as_bytes(), reply.message.as_bytes()].concat();
    vec![("put_request", put_bytes), ("search_request", search_bytes), ("replies", reply)]
}

fn file_system_seeds() -> Vec<(&'static str, Vec<u8>)> {
    let now = Timespec { secs: 1_700_000_000, nanos: 5 };
    let mut fs = mount(&MemStore::formatted(format_params())).unwrap();
    commit(&mut fs, now);
    let superblock = fs.superblock().encode();

    let mut table = [0; PAGE];
    for (number, kind) in
        [(2, Kind::Dir), (3, Kind::File), (4, Kind::Symlink), (5, Kind::Rows), (6, Kind::Fifo)]
    {
        let mut inode = Inode::new(Ino(number), 1, kind, 0o644, now);
        inode.place_dir = ROOT_INO;
        let raw = slot_mut(&mut table, Ino(number));
        if kind == Kind::Symlink {
            (inode.size, inode.inline, inode.inline_len) = (5, Inline::Symlink, 5);
            raw.inline[..5].copy_from_slice(b"where");
        }
        inode.encode(raw);
    }
    *slot_mut(&mut table, Ino(7)) = layout::inode::RawInode::free(Ino(7), 3);

    let at = DirPlace { page: PageNo(77), dir: Ino(5), index: 3 };
    let (mut leaf, mut branch) = ([0; PAGE], [0; PAGE]);
    layout::dir::page::init(&mut leaf, at, 0, 9);
    layout::dir::page::init(&mut branch, at, 1, 0);
    for i in 0..6 {
        let key = 16 * (i as u64 + 1);
        let entry = Entry { key, ino: Ino(key), kind: Kind::File, name: b"a name" };
        layout::dir::leaf::insert(&mut leaf, at.page, i, &entry).unwrap();
        layout::dir::branch::insert(&mut branch, at.page, i, Child { key, index: i as u32 + 1 }).unwrap();
    }

    let file = fs.create(ROOT_INO, b"f", new_file(), now).unwrap().ino;
    fs.setxattr(file, b"user.a", b"one", XattrFlags::empty(), now).unwrap();
    fs.setxattr(file, b"user.b", b"two", XattrFlags::empty(), now).unwrap();
    let page = fs.store().get(file.page().unwrap());
    let entries = layout::inode::slot(&page, file).inline_bytes().to_vec();

    let mut rows = [0; PAGE];
    for (i, raw) in headers_mut(&mut rows).iter_mut().enumerate().take(5) {
        let row = Row {
            ino: Ino(3),
            generation: 1,
            data_version: 0,
            offset: 10,
            length: 20,
            tag: i as u64,
            next: Some(i as u64 + 1),
        };
        *raw = RawRow::live(&row);
    }
    let mut collection = [0; PAGE];
    let schema = Schema::new(24, Element::F32, Metric::Cosine).unwrap();
    CollectionHeader { schema, dir: 9, next_row: 130, live_rows: 100 }.encode(&mut collection);
    let mut acl = Vec::from(2u32.to_le_bytes());
    for (tag, perm, id) in [
        (1u16, 6u16, u32::MAX),
        (2, 4, 100),
        (4, 4, u32::MAX),
        (8, 5, 7),
        (0x10, 7, u32::MAX),
        (0x20, 1, u32::MAX),
    ] {
        acl.extend([&tag.to_le_bytes()[..], &perm.to_le_bytes(), &id.to_le_bytes()].concat());
    }
    let shape = set::SetShape::new(Schema::new(2, Element::F16, Metric::L2).unwrap(), 1).unwrap();
    let record = set::Record { offset: 1, length: 2, tag: 3, stale: true }.bytes();
    let stream = [&record[..], &[4, 5, 6, 7]].concat();
    let part = set::Part { shape, stream_crc: set::CRC32C.checksum(&stream), part: 0, bytes: &stream };
    vec![
        ("acl", acl),
        ("row_set_part", [&part.header()[..], &stream].concat()),
        ("superblock", superblock.to_vec()),
        ("inode", table.to_vec()),
        ("dir_leaf", leaf.to_vec()),
        ("dir_branch", branch.to_vec()),
        ("xattr_area", [vec![1], entries].concat()),
        ("row_headers", rows.as_bytes().to_vec()),
        ("collection_header", collection.to_vec()),
    ]
}

fn new_file() -> layout::fs::NewInode {
    layout::fs::NewInode { kind: Kind::File, perm: 0o644, uid: 0, gid: 0, umask: 0, rdev: 0 }
}

fn store_seeds() -> Vec<(&'static str, Vec<u8>)> {
    let at = Loc { segment: 3, offset: 5 };
    let slot = store_superblock::Superblock {
        uuid: UUID,
        generation: 9,
        kind: VolumeKind::VexFs,
        geometry: Geometry { segment_pages: 4096, segments: 100 },
        root: Mapping { loc: at, crc: 77 },
        backing_bytes: 2 << 30,
        raw_bytes: 0,
        compat: 0,
        ro_compat: 0,
        clones: false,
        incarnation: 4,
        session: 0,
        boot_id: [1; 16],
        next_seq: 1000,
    };
    let header = segment::SegmentHeader {
        uuid: UUID,
        segment: 3,
        stream: segment::Stream::User,
        use_seq: 17,
        incarnation: 4,
    };
    let mut segment_page = vec![0; PAGE];
    header.encode_into(&mut segment_page);
    let record = record::Record {
        uuid: UUID,
        at,
        use_seq: 17,
        seq: 1000,
        epoch: 50,
        incarnation: 4,
        durable_seq: 990,
        written_seq: 999,
        flags: record::FLAG_COMMIT,
        next: None,
        session: Default::default(),
        entries: vec![
            record::Entry::Write { first: 1 << 34, crcs: vec![1, 2, 3] },
            record::Entry::Discard { first: 99, count: 5 },
        ],
    };
    let mut record_page = vec![0; PAGE];
    record.encode_into(&mut record_page);
    let mut leaf_page = vec![0; PAGE];
    let run = leaf::Run { rel: 7, count: 2, offset: 9, segment: 3 };
    assert!(leaf::encode_into(UUID, 0, [(run, &[5, 6][..])].into_iter(), &mut leaf_page));
    let refs = [directory::Ref {
        key: 0,
        target: directory::Target::Page { page: Mapping { loc: at, crc: 3 }, count: 4 },
    }];
    let mut directory_page = vec![0; PAGE];
    directory::encode_into(UUID, 0, 0, &refs, &mut directory_page);
    let position = checkpoint::Position { at, use_seq: 17 };
    let root = checkpoint::Root {
        uuid: UUID,
        generation: 9,
        next_seq: 1000,
        next_use_seq: 20,
        epoch: 50,
        payload_bytes: 0,
        segment_count: 0,
        map_count: 0,
        open_discards: 0,
        positions: [position, position],
        session: record::SessionState::default(),
        last_snapshot: 0,
        rollback: None,
        referrer_count: 0,
        snapshot_count: 0,
        runs: Vec::new(),
    };
    let mut root_page = vec![0; PAGE];
    root.encode_into(&mut root_page);
    vec![
        ("store_superblock", slot.encode()),
        ("segment_header", segment_page),
        ("record", record_page),
        ("map_leaf", leaf_page),
        ("map_directory", directory_page),
        ("checkpoint", root_page),
    ]
}
