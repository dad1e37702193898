//! Rows against a simple model: what is put, killed, freed and stale.

use std::collections::BTreeMap;
use std::vec;
use std::vec::Vec;

use proptest::prelude::*;
use zerocopy::IntoBytes;

use super::*;
use crate::error::Error;
use crate::fs::{FreshRows, Fs, NewInode, SetAttr, XattrFlags};
use crate::inode::{Ino, InodeFlags, Kind, ROOT_INO};
use crate::page_store::Timespec;
use crate::rows::headers;
use crate::rows::set::Record;
use crate::schema::{Element, Metric};
use crate::testing::{MemStore, commit, format_params, mount};
use crate::uapi::raw::vexfs_put_row;

const NOW: Timespec = Timespec { secs: 1_700_000_001, nanos: 0 };

fn new(kind: Kind) -> NewInode {
    NewInode { kind, perm: 0o755, umask: 0, uid: 0, gid: 0, rdev: 0 }
}

fn schema(dim: u32) -> Schema {
    Schema::new(dim, Element::F32, Metric::L2).expect("in range")
}

/// A volume with one collection `c`.
fn collection(dim: u32) -> (Fs<MemStore>, Ino) {
    let mut fs = mount(&MemStore::formatted(format_params())).expect("mounts");
    let dir = fs.create(ROOT_INO, b"c", new(Kind::Dir), NOW).expect("creates").ino;
    fs.collection_create(dir, schema(dim), NOW).expect("makes the collection");
    (fs, dir)
}

fn file(fs: &mut Fs<MemStore>, dir: Ino, name: &str) -> Ino {
    fs.create(dir, name.as_bytes(), new(Kind::File), NOW).expect("creates").ino
}

fn rows(first: u64, count: usize) -> Vec<vexfs_put_row> {
    (0..count as u64)
        .map(|i| vexfs_put_row {
            offset: (first + i).into(),
            length: 1.into(),
            tag: (first + i).into(),
            reserved: 0.into(),
        })
        .collect()
}

/// Vectors whose first element is the row's tag.
fn vectors(first: u64, count: usize, dim: u32) -> Vec<u8> {
    (0..count as u64)
        .flat_map(|i| (0..dim).map(move |j| if j == 0 { (first + i) as f32 } else { j as f32 }))
        .flat_map(f32::to_le_bytes)
        .collect()
}

fn put(fs: &mut Fs<MemStore>, dir: Ino, file: Ino, tag: u64, count: usize, append: bool) -> Result<Put> {
    let dim = fs.schema(dir)?.dim();
    fs.put_rows(dir, file, &rows(tag, count), &vectors(tag, count, dim), append, NOW)
}

/// Every live row: id, file, tag; each vector is checked.
fn live(fs: &Fs<MemStore>, dir: Ino) -> BTreeMap<u64, (Ino, u64)> {
    let rows = fs.rows_file(dir).expect("reads");
    let mut found = BTreeMap::new();
    for chunk in 0..rows.chunks() {
        let page = fs.row_headers(&rows, chunk).expect("reads");
        let mut bytes = vec![0; rows.chunk_rows(chunk) * rows.schema().vector_bytes()];
        fs.chunk_vectors(&rows, chunk, &mut bytes).expect("reads");
        let each = bytes.chunks_exact(rows.schema().vector_bytes());
        for (slot, (raw, vector)) in headers(&page).iter().zip(each).enumerate() {
            if let Some(row) = raw.decode(PageNo(0)).expect("decodes") {
                assert_eq!(row.tag, row.offset);
                assert_eq!(vector, vectors(row.tag, 1, rows.schema().dim()));
                found.insert(chunk * CHUNK_ROWS + slot as u64, (row.ino, row.tag));
            }
        }
    }
    assert_eq!(rows.header.live_rows, found.len() as u64, "the header counts live rows");
    found
}

fn tags(fs: &Fs<MemStore>, dir: Ino) -> Vec<u64> {
    live(fs, dir).values().map(|(_, tag)| *tag).collect()
}

#[test]
fn a_collection_is_made_once_and_not_inside_another() {
    let (mut fs, dir) = collection(4);
    assert_eq!(fs.schema(dir), Ok(schema(4)));
    assert_eq!(fs.collection_create(dir, schema(4), NOW), Err(Error::Exists));
    let sub = fs.create(dir, b"sub", new(Kind::Dir), NOW).expect("creates").ino;
    assert!(matches!(fs.collection_create(sub, schema(4), NOW), Err(Error::Invalid(_))));
    let plain = file(&mut fs, sub, "f");
    assert_eq!(fs.collection_create(plain, schema(4), NOW), Err(Error::NotDir));
    assert_eq!(fs.collection_of(plain), Ok(dir));
    assert_eq!(fs.collection_of(ROOT_INO), Err(Error::NotFound));
    assert!(matches!(fs.rows_file(sub), Err(Error::Invalid(_))));
}

#[test]
fn put_replaces_append_adds_and_the_chain_begins_with_the_newest() {
    let (mut fs, dir) = collection(3);
    let f = file(&mut fs, dir, "f");
    assert_eq!(put(&mut fs, dir, f, 10, 2, false), Ok(Put { first_row: 0, count: 2 }));
    assert_eq!(put(&mut fs, dir, f, 20, 1, false), Ok(Put { first_row: 2, count: 1 }));
    assert_eq!(tags(&fs, dir), [20]);
    assert_eq!(put(&mut fs, dir, f, 30, 2, true), Ok(Put { first_row: 3, count: 2 }));
    assert_eq!(tags(&fs, dir), [20, 30, 31]);
    let inode = fs.inode(f).expect("reads");
    assert_eq!((inode.row_count, inode.first_row), (3, 4));
    assert!(inode.flags.contains(InodeFlags::ROWS_FRESH));

    let mut vector = [0; 12];
    assert_eq!(fs.first_vector(f, &mut vector), Ok(12));
    assert_eq!(vector[..], vectors(30, 1, 3));
    assert_eq!(fs.first_vector(f, &mut []), Ok(12));
    assert_eq!(fs.first_vector(f, &mut [0; 4]), Err(Error::Range));

    assert_eq!(put(&mut fs, dir, f, 0, 0, false), Ok(Put { first_row: 0, count: 0 }));
    assert!(tags(&fs, dir).is_empty());
    assert_eq!(fs.first_vector(f, &mut vector), Err(Error::NoAttr));
    assert_eq!(fs.inode(f).expect("reads").row_count, 0);
}

#[test]
fn bad_puts_say_why_and_change_nothing() {
    let (mut fs, dir) = collection(3);
    let f = file(&mut fs, dir, "f");
    put(&mut fs, dir, f, 10, 2, false).expect("puts");
    let before = fs.inode(f);
    let nan = [f32::NAN, 0.0, 0.0].map(f32::to_le_bytes).concat();
    let mut beyond = rows(1, 1);
    beyond[0].offset = u64::MAX.into();
    for result in [
        fs.put_rows(dir, f, &rows(1, 2), &vectors(1, 1, 3), false, NOW),
        fs.put_rows(dir, f, &rows(1, 1), &vectors(1, 1, 4), false, NOW),
        fs.put_rows(dir, f, &rows(1, 1), &nan, false, NOW),
        fs.put_rows(dir, f, &beyond, &vectors(1, 1, 3), false, NOW),
        fs.put_rows(dir, dir, &rows(1, 1), &vectors(1, 1, 3), false, NOW),
        fs.put_rows(ROOT_INO, f, &rows(1, 1), &vectors(1, 1, 3), false, NOW),
    ] {
        assert!(matches!(result, Err(Error::Invalid(_))), "{result:?}");
    }
    assert_eq!(fs.inode(f), before);
    assert_eq!(tags(&fs, dir), [10, 11]);
    assert!(!fs.is_poisoned());
}

#[test]
fn a_changed_file_makes_its_rows_stale_until_the_next_put() {
    let (mut fs, dir) = collection(3);
    let f = file(&mut fs, dir, "f");
    put(&mut fs, dir, f, 1, 1, false).expect("puts");
    let version = |fs: &Fs<MemStore>| fs.inode(f).expect("reads").data_version;
    let row_version = |fs: &Fs<MemStore>, row: usize| {
        let page = fs.row_headers(&fs.rows_file(dir).expect("reads"), 0).expect("reads");
        headers(&page)[row].decode(PageNo(0)).expect("decodes").expect("live").data_version
    };
    assert_eq!(row_version(&fs, 0), version(&fs));
    fs.prepare_write(f, 0, 10).expect("writes");
    fs.finish_write(f, 10, NOW).expect("writes");
    assert_ne!(row_version(&fs, 0), version(&fs), "stale");
    let once = version(&fs);
    fs.prepare_write(f, 10, 10).expect("writes");
    assert_eq!(version(&fs), once, "one step per put is enough");
    put(&mut fs, dir, f, 2, 1, true).expect("puts");
    assert_eq!(row_version(&fs, 1), version(&fs), "the new row is fresh");
    assert_ne!(row_version(&fs, 0), version(&fs), "the old row stays stale");
    fs.setattr(f, SetAttr { size: Some(1), ..SetAttr::default() }, NOW).expect("truncates");
    assert_ne!(row_version(&fs, 1), version(&fs), "a truncate counts as well");
}

#[test]
fn rows_die_with_their_file_and_a_reused_number_does_not_revive_them() {
    let (mut fs, dir) = collection(3);
    let f = file(&mut fs, dir, "f");
    let other = file(&mut fs, dir, "g");
    put(&mut fs, dir, f, 1, 3, false).expect("puts");
    put(&mut fs, dir, other, 7, 1, false).expect("puts");
    assert_eq!(fs.unlink(dir, b"f", NOW).expect("unlinks").nlink, 0);
    fs.reap(f).expect("frees");
    assert_eq!(tags(&fs, dir), [7]);
    commit(&mut fs, NOW);
    let again = file(&mut fs, dir, "again");
    assert_eq!(again, f, "the number is used again");
    assert_eq!(fs.inode(again).expect("reads").row_count, 0);
    assert_eq!(fs.first_vector(again, &mut []), Err(Error::NoAttr));
}

#[test]
fn a_chain_that_leads_back_to_itself_ends() {
    let (mut fs, dir) = collection(2);
    let f = file(&mut fs, dir, "f");
    put(&mut fs, dir, f, 0, 3, false).expect("puts");
    let rows = fs.rows_file(dir).expect("reads");
    let page = rows.row_page(0).expect("mapped");
    let mut bytes = fs.store().get(page);
    // The third row is followed by the second one.
    bytes[2 * 64 + 48..][..8].copy_from_slice(&2u64.to_le_bytes());
    fs.store().put(page, &bytes);
    fs.inode_update(f, |inode| inode.row_count = u32::MAX).expect("updates");
    assert!(matches!(fs.row_set(f), Err(Error::Corrupt(_))));
    // The file must go all the same.
    fs.unlink(dir, b"f", NOW).expect("unlinks");
    assert_eq!(fs.reap(f), Ok(()));
    assert_eq!(fs.rows_file(dir).expect("reads").header.live_rows, 0);
}

#[test]
fn full_dead_chunks_are_unmapped() {
    let (mut fs, dir) = collection(100);
    let f = file(&mut fs, dir, "f");
    let g = file(&mut fs, dir, "g");
    put(&mut fs, dir, f, 0, 100, false).expect("puts");
    put(&mut fs, dir, g, 1000, 100, false).expect("puts");
    // Rows 0..100 are f's, 100..200 are g's: chunk 0 is f's alone, chunk 1 shared, 2 and the begun 3 g's.
    let before = fs.store().mapped().len();
    fs.kill_rows(f).expect("kills");
    let chunk_pages = 1 + fs.schema(dir).expect("reads").chunk_vector_pages() as usize;
    assert_eq!(fs.store().mapped().len(), before - chunk_pages);
    assert_eq!(live(&fs, dir).len(), 100);
    fs.kill_rows(g).expect("kills");
    assert_eq!(fs.store().mapped().len(), before - 3 * chunk_pages, "chunk 3 is not full yet");
    put(&mut fs, dir, g, 5, 100, false).expect("puts");
    assert_eq!(live(&fs, dir).len(), 100);
    fs.kill_rows(g).expect("kills");
    assert!(live(&fs, dir).is_empty());
}

#[test]
fn rows_outlive_a_move_and_end_with_their_collection() {
    let (mut fs, dir) = collection(3);
    let f = file(&mut fs, dir, "f");
    put(&mut fs, dir, f, 1, 2, false).expect("puts");
    fs.rename(dir, b"f", ROOT_INO, b"f", crate::fs::RenameFlags::empty(), NOW).expect("moves");
    assert_eq!(tags(&fs, dir), [1, 2], "a rename does not touch rows");
    let other = fs.create(ROOT_INO, b"d", new(Kind::Dir), NOW).expect("creates").ino;
    fs.collection_create(other, schema(5), NOW).expect("makes it");
    assert!(matches!(put(&mut fs, other, f, 9, 1, true), Err(Error::Invalid(_))), "an append elsewhere");
    let rows_ino = fs.inode(dir).expect("reads").rows_ino;
    fs.rmdir(ROOT_INO, b"c", NOW).expect("removes");
    fs.reap(dir).expect("frees");
    assert_eq!(fs.hidden_inode(rows_ino), Err(Error::NotFound), "the rows file is gone");
    assert_eq!(fs.first_vector(f, &mut []), Err(Error::NoAttr));

    // The number of the rows file comes back as another collection's; f's chain must not reach into it.
    commit(&mut fs, NOW);
    let mut third = Ino(0);
    for name in [b"x", b"y", b"z"] {
        third = fs.create(ROOT_INO, name, new(Kind::Dir), NOW).expect("creates").ino;
        fs.collection_create(third, schema(3), NOW).expect("makes it");
        if fs.inode(third).expect("reads").rows_ino == rows_ino {
            break;
        }
    }
    assert_eq!(fs.inode(third).expect("reads").rows_ino, rows_ino);
    let g = file(&mut fs, third, "g");
    put(&mut fs, third, g, 50, 3, false).expect("puts");
    assert_eq!(fs.first_vector(f, &mut []), Err(Error::NoAttr));
    put(&mut fs, other, f, 9, 1, false).expect("puts");
    assert_eq!(tags(&fs, third), [50, 51, 52]);
    assert_eq!(tags(&fs, other), [9]);
}

#[test]
fn rows_cross_the_borders_of_data_classes() {
    // 1024 x f32: a chunk has 65 pages, so the fourth one crosses 1 MiB.
    let (mut fs, dir) = collection(1024);
    let f = file(&mut fs, dir, "f");
    put(&mut fs, dir, f, 0, 300, false).expect("puts");
    assert_eq!(live(&fs, dir).len(), 300);
    fs.kill_rows(f).expect("kills");
    let rows = fs.rows_file(dir).expect("reads");
    let left = (0..rows.chunks())
        .filter(|chunk| fs.store().get(rows.row_page(*chunk).expect("maps")) != [0; PAGE])
        .count();
    assert_eq!(left, 1, "only the begun chunk still has pages");
}

#[test]
fn any_failing_page_leaves_a_put_undone_or_the_mount_stopped() {
    let (mut fs, dir) = collection(40);
    let f = file(&mut fs, dir, "f");
    put(&mut fs, dir, f, 0, 70, false).expect("puts");
    commit(&mut fs, NOW);
    let image = fs.store().fork();
    let mut failures = 0;
    for calls in 0.. {
        let store = image.fork();
        let mut fs = mount(&store).expect("mounts");
        store.set_fault(Some((calls, Error::NoSpace)));
        let result = put(&mut fs, dir, f, 1000, 70, false);
        store.set_fault(None);
        match result {
            Ok(_) => {
                assert_eq!(tags(&fs, dir).len(), 70);
                break;
            }
            Err(_) if fs.is_poisoned() => {
                store.rollback();
                let fs = mount(&store).expect("mounts");
                assert_eq!(tags(&fs, dir), (0..70).collect::<Vec<_>>());
            }
            Err(error) => {
                assert_eq!(error, Error::NoSpace);
                assert_eq!(tags(&fs, dir), (0..70).collect::<Vec<_>>(), "after {calls} calls");
                put(&mut fs, dir, f, 1000, 70, false).expect("works once there is space");
                assert_eq!(tags(&fs, dir), (1000..1070).collect::<Vec<_>>());
            }
        }
        failures += 1;
    }
    assert!(failures > 10, "{failures} calls could fail");
}

/// A step of the model test.
#[derive(Clone, Debug)]
enum Step {
    Put { file: usize, count: usize, append: bool },
    Kill { file: usize },
    Remove { file: usize },
    Commit,
    Crash,
}

fn step() -> impl Strategy<Value = Step> {
    let put = (0..6usize, 0..90usize, any::<bool>()).prop_map(|(file, count, append)| Step::Put {
        file,
        count,
        append,
    });
    prop_oneof![
        6 => put,
        2 => (0..6usize).prop_map(|file| Step::Kill { file }),
        2 => (0..6usize).prop_map(|file| Step::Remove { file }),
        1 => Just(Step::Commit),
        1 => Just(Step::Crash),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn rows_follow_the_model(steps in proptest::collection::vec(step(), 1..40)) {
        let (mut fs, dir) = collection(17);
        commit(&mut fs, NOW);
        let mut files: [Option<(Ino, Vec<u64>)>; 6] = Default::default();
        let mut committed = files.clone();
        let mut tag = 1;
        for step in steps {
            match step {
                Step::Put { file: at, count, append } => {
                    let (ino, tags) = files[at].get_or_insert_with(|| {
                        (file(&mut fs, dir, &std::format!("{at}")), Vec::new())
                    });
                    put(&mut fs, dir, *ino, tag, count, append).expect("puts");
                    if !append {
                        tags.clear();
                    }
                    tags.extend(tag..tag + count as u64);
                    tag += count as u64;
                }
                Step::Kill { file } => {
                    if let Some((ino, tags)) = &mut files[file] {
                        fs.kill_rows(*ino).expect("kills");
                        tags.clear();
                    }
                }
                Step::Remove { file } => {
                    if let Some((ino, _)) = files[file].take() {
                        fs.unlink(dir, std::format!("{file}").as_bytes(), NOW).expect("unlinks");
                        fs.reap(ino).expect("frees");
                    }
                }
                Step::Commit => {
                    commit(&mut fs, NOW);
                    committed = files.clone();
                }
                Step::Crash => {
                    let store = fs.store().clone();
                    store.rollback();
                    fs = mount(&store).expect("mounts");
                    files = committed.clone();
                }
            }
            let found = live(&fs, dir);
            let mut expected: Vec<(Ino, u64)> =
                files.iter().flatten().flat_map(|(ino, tags)| tags.iter().map(|tag| (*ino, *tag))).collect();
            expected.sort_by_key(|(_, tag)| *tag);
            let mut found: Vec<_> = found.into_values().collect();
            found.sort_by_key(|(_, tag)| *tag);
            prop_assert_eq!(found, expected);
            for (ino, tags) in files.iter().flatten() {
                prop_assert_eq!(fs.inode(*ino).expect("reads").row_count as usize, tags.len());
            }
        }
    }

    #[test]
    fn spoiled_pages_give_errors_and_never_panic(page in any::<u16>(), at in 0..PAGE, byte: u8) {
        let (mut fs, dir) = collection(17);
        let f = file(&mut fs, dir, "f");
        put(&mut fs, dir, f, 0, 100, false).expect("puts");
        commit(&mut fs, NOW);
        let store = fs.store().clone();
        let mapped = store.mapped();
        let number = mapped[page as usize % mapped.len()];
        let mut bytes = store.get(number);
        bytes[at] = byte;
        store.put(number, &bytes);
        let Ok(mut fs) = mount(&store) else { return Ok(()) };
        let _ = fs.rows_file(dir).map(|rows| {
            for chunk in 0..rows.chunks().min(10) {
                if let Ok(page) = fs.row_headers(&rows, chunk) {
                    for raw in headers(&page) {
                        let _ = raw.decode(PageNo(0));
                    }
                }
                let _ = fs.chunk_vectors(&rows, chunk, &mut [0; 17 * 4]);
            }
        });
        let _ = fs.first_vector(f, &mut [0; 17 * 4]);
        let _ = put(&mut fs, dir, f, 0, 100, true);
        let _ = fs.kill_rows(f);
        let _ = rows(0, 1).as_bytes();
    }
}

/// Something that happens to a file.
type Change<'a> = dyn Fn(&mut Fs<MemStore>) + 'a;

/// The whole stream of a file's set, read in pieces of `piece` bytes.
fn stream(fs: &Fs<MemStore>, file: Ino, piece: u64) -> Vec<u8> {
    let Some(set) = fs.row_set(file).expect("reads") else { return Vec::new() };
    let mut memory = vec![0; set.shape.schema.vector_bytes()];
    let mut stream = Vec::new();
    let total = set.shape.stream_bytes();
    for from in (0..total).step_by(piece as usize) {
        let range = (from, total.min(from + piece));
        let mut put = |bytes: &[u8]| stream.extend_from_slice(bytes);
        fs.read_row_set(&set, range, &mut memory, &mut put).expect("reads");
    }
    assert_eq!(stream.len() as u64, total);
    stream
}

/// Puts a stream, as a mounter does.
fn restore(fs: &mut Fs<MemStore>, dir: Ino, file: Ino, stream: &[u8], dim: u32) {
    let records: Vec<_> =
        stream.chunks(32 + dim as usize * 4).map(|record| Record::parse(record).expect("a record")).collect();
    let rows: Vec<_> = records
        .iter()
        .map(|(record, _)| vexfs_put_row {
            offset: record.offset.into(),
            length: record.length.into(),
            tag: record.tag.into(),
            reserved: 0.into(),
        })
        .collect();
    let vectors: Vec<u8> = records.iter().flat_map(|(_, vector)| vector.to_vec()).collect();
    let stale = |row: usize| records[row].0.stale;
    fs.put_marked_rows(dir, file, &rows, &vectors, &stale, false, NOW).expect("puts");
}

fn write(fs: &mut Fs<MemStore>, file: Ino) {
    fs.prepare_write(file, 0, 1).expect("writes");
    fs.finish_write(file, 1, NOW).expect("writes");
}

#[test]
fn a_set_has_all_rows_and_makes_the_same_ones_again() {
    let (mut fs, dir) = collection(5);
    let (f, g) = (file(&mut fs, dir, "f"), file(&mut fs, dir, "g"));
    assert_eq!(fs.row_set(f), Ok(None));
    fs.put_rows(dir, f, &rows(0, 70), &vectors(0, 70, 5), false, NOW).expect("puts");
    write(&mut fs, f);
    fs.put_rows(dir, f, &rows(100, 30), &vectors(100, 30, 5), true, NOW).expect("appends");
    let set = stream(&fs, f, 1 << 20);
    assert_eq!(set, stream(&fs, f, 17), "in any pieces");
    let flags: Vec<bool> = set.chunks(52).map(|r| Record::parse(r).expect("a record").0.stale).collect();
    assert_eq!(flags, [vec![false; 30], vec![true; 70]].concat());

    restore(&mut fs, dir, g, &set, 5);
    assert_eq!(stream(&fs, g, 4096), set, "stale rows stay stale");
    assert!(fs.inode(g).expect("reads").flags.contains(InodeFlags::ROWS_FRESH));
    write(&mut fs, g);
    write(&mut fs, g);
    let all_stale = stream(&fs, g, 4096);
    assert!(all_stale.chunks(52).all(|r| Record::parse(r).expect("a record").0.stale));
    restore(&mut fs, dir, f, &all_stale, 5);
    assert!(!fs.inode(f).expect("reads").flags.contains(InodeFlags::ROWS_FRESH));
    write(&mut fs, f);
    assert_eq!(stream(&fs, f, 4096), all_stale);
    assert_eq!(crate::testing::check(&fs), Ok(()));
}

#[test]
fn a_put_takes_the_place_of_a_kept_set() {
    let (mut fs, dir) = collection(5);
    let f = file(&mut fs, dir, "f");
    for name in [&b"user.vexfs.rows"[..], b"user.other", b"user.vexfs.rows.1", b"user.vexfs.rowsy"] {
        fs.setxattr(f, name, b"kept", XattrFlags::empty(), NOW).expect("sets");
    }
    fs.put_rows(dir, f, &rows(0, 1), &vectors(0, 1, 5), false, NOW).expect("puts");
    let mut names = Vec::new();
    fs.listxattr(f, &mut |name| names.push(name.to_vec())).expect("lists");
    assert_eq!(names, [b"user.other".to_vec(), b"user.vexfs.rowsy".to_vec()]);
}

#[test]
fn rows_put_before_the_bytes_are_fresh_again_if_nothing_else_happened() {
    let (mut fs, dir) = collection(5);
    let f = file(&mut fs, dir, "f");
    assert_eq!(FreshRows::of(&fs.inode(f).expect("reads")), None);
    let put = |fs: &mut Fs<MemStore>| {
        fs.put_rows(dir, f, &rows(0, 2), &vectors(0, 2, 5), false, NOW).expect("puts");
        FreshRows::of(&fs.inode(f).expect("reads")).expect("fresh")
    };
    let before = put(&mut fs);
    let set = stream(&fs, f, 4096);
    assert_eq!(fs.rows_fresh_again(&before), Ok(false), "still fresh");
    write(&mut fs, f);
    fs.setattr(f, SetAttr { size: Some(9000), ..SetAttr::default() }, NOW).expect("grows");
    assert_ne!(stream(&fs, f, 4096), set);
    assert_eq!(fs.rows_fresh_again(&before), Ok(true));
    assert_eq!(stream(&fs, f, 4096), set);
    write(&mut fs, f);
    assert_ne!(stream(&fs, f, 4096), set, "later bytes count");

    let changes: [&Change<'_>; 4] = [
        &|fs| fs.put_rows(dir, f, &rows(0, 2), &vectors(0, 2, 5), false, NOW).map(drop).expect("puts"),
        &|fs| fs.put_rows(dir, f, &rows(0, 1), &vectors(0, 1, 5), true, NOW).map(drop).expect("appends"),
        &|fs| fs.kill_rows(f).map(drop).expect("kills"),
        &|fs| {
            fs.rows_fresh_again(&FreshRows::of(&fs.inode(f).expect("reads")).unwrap_or(before))
                .expect("asks");
            fs.unlink(dir, b"f", NOW).expect("unlinks");
            fs.reap(f).expect("frees");
        },
    ];
    for (i, change) in changes.into_iter().enumerate() {
        let before = put(&mut fs);
        write(&mut fs, f);
        change(&mut fs);
        if i < 2 {
            write(&mut fs, f);
        }
        assert_eq!(fs.rows_fresh_again(&before), Ok(false), "change {i}");
    }
}
