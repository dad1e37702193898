//! The scan by definition over the in-memory page store.

use std::vec;
use std::vec::Vec;

use proptest::prelude::*;

use super::*;
use crate::distance::distance;
use crate::error::Error;
use crate::fs::{Fs, NewInode, RenameFlags};
use crate::inode::{Ino, Kind, ROOT_INO};
use crate::page_store::Timespec;
use crate::schema::{Element, Metric, Schema};
use crate::testing::{MemStore, commit, format_params, mount};
use crate::uapi::raw::vexfs_put_row;

const NOW: Timespec = Timespec { secs: 1_700_000_001, nanos: 0 };
const DIM: u32 = 5;
const WHO: Credentials<'_> = Credentials { uid: 7, gid: 7, groups: &[] };

/// A collection with `files` files of `rows` rows each, whose vectors are whole numbers in -3..=3.
fn volume(files: u64, rows: u64) -> (Fs<MemStore>, Ino) {
    let mut fs = mount(&MemStore::formatted(format_params())).expect("mounts");
    let new = |kind| NewInode { kind, perm: 0o755, umask: 0, uid: 0, gid: 0, rdev: 0 };
    let dir = fs.create(ROOT_INO, b"c", new(Kind::Dir), NOW).expect("creates").ino;
    let schema = Schema::new(DIM, Element::I8, Metric::L2).expect("in range");
    fs.collection_create(dir, schema, NOW).expect("makes it");
    for number in 0..files {
        let file =
            fs.create(dir, &number.to_le_bytes().map(|b| b + 1), new(Kind::File), NOW).expect("creates");
        let each: Vec<vexfs_put_row> = (0..rows)
            .map(|row| vexfs_put_row {
                offset: row.into(),
                length: 1.into(),
                tag: (1 << (row % 3)).into(),
                reserved: 0.into(),
            })
            .collect();
        let vectors = (0..rows * u64::from(DIM)).map(|i| ((i * 7 + number * 13 + i * i) % 7) as u8);
        let vectors: Vec<u8> = vectors.map(|v| v.wrapping_sub(3)).collect();
        fs.put_rows(dir, file.ino, &each, &vectors, false, NOW).expect("puts");
    }
    (fs, dir)
}

fn search(
    fs: &Fs<MemStore>,
    dir: Ino,
    query: &[u8],
    filter: Filter,
    k: usize,
) -> crate::error::Result<Vec<Hit>> {
    let rows = fs.rows_file(dir)?;
    let mut verdicts = [Verdict::EMPTY; 16];
    let mut gate = Gate::new(fs, dir, rows.inode.ino, WHO, &mut verdicts);
    let mut memory = [0; 64 * DIM as usize];
    let mut scorer = Reference::new(fs, *rows.schema(), query, &mut memory)?;
    let mut room = vec![Hit::EMPTY; k];
    let mut top = TopK::new(&mut room);
    let mut chunks = 0..rows.chunks().min(100);
    scan(&rows, &filter, &mut || chunks.next(), &mut gate, &mut scorer, &mut top, &Limit::new())?;
    Ok(top.into_sorted().to_vec())
}

const ALL: Filter = Filter { tags_any: 0, fresh_only: false };

#[test]
fn the_scan_finds_what_sorting_everything_finds() {
    let (fs, dir) = volume(9, 21);
    let rows = fs.rows_file(dir).expect("reads");
    let query = [1, 0, 0xff, 2, 0];
    for filter in [ALL, Filter { tags_any: 2, ..ALL }, Filter { tags_any: 5, ..ALL }] {
        let mut expected = Vec::new();
        for chunk in 0..rows.chunks() {
            let mut vectors = vec![0; rows.chunk_rows(chunk) * DIM as usize];
            fs.chunk_vectors(&rows, chunk, &mut vectors).expect("reads");
            for (slot, vector) in vectors.chunks_exact(DIM as usize).enumerate() {
                let id = chunk * 64 + slot as u64;
                if filter.tags_any == 0 || filter.tags_any >> (id % 21 % 3) & 1 == 1 {
                    expected.push((distance(Metric::L2, Element::I8, &query, vector), id));
                }
            }
        }
        expected.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
        for k in [1, 7, 64, 500] {
            let found = search(&fs, dir, &query, filter, k).expect("searches");
            let found: Vec<(f64, u64)> = found.iter().map(|hit| (hit.distance, hit.row)).collect();
            assert_eq!(found, expected[..k.min(expected.len())]);
        }
    }
}

#[test]
fn rows_of_another_life_of_their_file_are_dead_whatever_their_flags_say() {
    let (mut fs, dir) = volume(2, 3);
    commit(&mut fs, NOW);
    let store = fs.store().clone();
    let rows = fs.rows_file(dir).expect("reads");
    let found = |store: &MemStore| -> Vec<u64> {
        let fs = mount(store).expect("mounts");
        search(&fs, dir, &[0; DIM as usize], ALL, 10).expect("searches").iter().map(|hit| hit.row).collect()
    };
    assert_eq!(found(&store).len(), 6);
    let page = rows.row_page(0).expect("maps");
    for (at, value) in [(8, 9), (0, 200)] {
        // Row 1: another generation; an inode number that was never used.
        let copy = store.fork();
        let mut bytes = copy.get(page);
        bytes[64 + at] = value;
        copy.put(page, &bytes);
        let mut left = found(&copy);
        left.sort_unstable();
        assert_eq!(left, [0, 2, 3, 4, 5], "byte {at}");
    }
    // A file that names another rows file.
    let file = fs.lookup(dir, &0u64.to_le_bytes().map(|b| b + 1)).expect("there").ino;
    fs.inode_update(file, |inode| inode.rows_ino = Ino(dir.0)).expect("writes");
    assert_eq!(search(&fs, dir, &[0; DIM as usize], ALL, 10).expect("searches").len(), 3);
}

#[test]
fn a_link_is_found_wherever_it_is_below() {
    let (mut fs, dir) = volume(1, 1);
    let new = |kind| NewInode { kind, perm: 0o755, umask: 0, uid: 0, gid: 0, rdev: 0 };
    let mut dirs = vec![dir];
    for name in [b"a", b"b", b"c", b"d", b"e", b"f"] {
        let above = dirs[dirs.len() / 2];
        dirs.push(fs.create(above, name, new(Kind::Dir), NOW).expect("creates").ino);
        for other in 0..40u8 {
            fs.create(above, &[b'x', name[0], other + 1], new(Kind::File), NOW).expect("creates");
        }
    }
    for at in dirs.clone() {
        let file = fs.create(ROOT_INO, b"first", new(Kind::File), NOW).expect("creates").ino;
        fs.link(file, at, b"kept", NOW).expect("links");
        fs.unlink(ROOT_INO, b"first", NOW).expect("unlinks");
        assert_eq!(fs.inode(file).expect("there").place_dir, Ino(0), "the place is unknown now");

        let (mut path, mut above) = ([0; 300], [0; 300]);
        let len = fs.search_path(file, dir, dir, &mut path).expect("found");
        let above_len = fs.path(at, dir, &mut above).expect("a path");
        let name: &[u8] = if at == dir { b"kept" } else { b"/kept" };
        assert_eq!(path[..len], [&above[..above_len], name].concat());
        assert_eq!(fs.find_link(file, dir).expect("walks").map(|(found, _)| found), Some(at));
        for scope in &dirs {
            let below = fs.path(at, *scope, &mut [0; 300]).is_ok();
            assert_eq!(fs.find_link(file, *scope).expect("walks").is_some(), below, "{at:?} in {scope:?}");
        }
        fs.unlink(at, b"kept", NOW).expect("unlinks");
    }
}

#[test]
fn a_file_is_found_by_any_of_its_names_below_the_scope() {
    let (mut fs, dir) = volume(1, 1);
    let new = |kind| NewInode { kind, perm: 0o755, umask: 0, uid: 0, gid: 0, rdev: 0 };
    let outside = fs.create(ROOT_INO, b"outside", new(Kind::Dir), NOW).expect("creates").ino;
    let sub = fs.create(dir, b"sub", new(Kind::Dir), NOW).expect("creates").ino;
    let name = 0u64.to_le_bytes().map(|b| b + 1);
    let file = fs.lookup(dir, &name).expect("there").ino;
    let query = [0; DIM as usize];
    let count = |fs: &Fs<MemStore>, scope| {
        let rows = fs.rows_file(dir).expect("reads");
        let mut verdicts = [Verdict::EMPTY; 16];
        let mut gate = Gate::new(fs, scope, rows.inode.ino, WHO, &mut verdicts);
        let mut memory = [0; 64 * DIM as usize];
        let mut scorer = Reference::new(fs, *rows.schema(), &query, &mut memory).expect("fits");
        let mut room = [Hit::EMPTY; 4];
        let mut top = TopK::new(&mut room);
        let mut chunks = 0..rows.chunks();
        scan(&rows, &ALL, &mut || chunks.next(), &mut gate, &mut scorer, &mut top, &Limit::new())
            .expect("scans");
        top.into_sorted().len()
    };
    assert_eq!([dir, sub].map(|scope| count(&fs, scope)), [1, 0]);
    // Out of the collection, into a directory of it, and the first name away.
    fs.link(file, outside, b"out", NOW).expect("links");
    assert_eq!([dir, sub].map(|scope| count(&fs, scope)), [1, 0]);
    fs.link(file, sub, b"in", NOW).expect("links");
    assert_eq!([dir, sub].map(|scope| count(&fs, scope)), [1, 1]);
    fs.rename(dir, &name, outside, b"moved", RenameFlags::empty(), NOW).expect("renames");
    assert_eq!([dir, sub].map(|scope| count(&fs, scope)), [1, 1], "the place is outside now");
    let mut path = [0; 100];
    let len = fs.search_path(file, dir, dir, &mut path).expect("a path");
    assert_eq!(&path[..len], b"sub/in");
    fs.unlink(sub, b"in", NOW).expect("unlinks");
    assert_eq!([dir, sub].map(|scope| count(&fs, scope)), [0, 0]);
    assert_eq!(fs.search_path(file, dir, dir, &mut path), Err(Error::NotFound));
    fs.rename(outside, b"out", dir, b"back", RenameFlags::empty(), NOW).expect("renames");
    assert_eq!([dir, sub].map(|scope| count(&fs, scope)), [1, 0]);
}

#[test]
fn a_path_is_by_the_name_that_the_search_went_by() {
    let (mut fs, dir) = volume(1, 1);
    let new = |kind| NewInode { kind, perm: 0o755, umask: 0, uid: 0, gid: 0, rdev: 0 };
    let secret = fs.create(dir, b"secret", new(Kind::Dir), NOW).expect("creates").ino;
    let sub = fs.create(dir, b"sub", new(Kind::Dir), NOW).expect("creates").ino;
    let file = fs.create(secret, b"place", new(Kind::File), NOW).expect("creates").ino;
    fs.link(file, sub, b"in", NOW).expect("links");
    let mut path = [0; 100];
    let len = fs.search_path(file, sub, dir, &mut path).expect("a path");
    assert_eq!(&path[..len], b"sub/in", "its place lies below another directory than the one searched");
    let len = fs.search_path(file, secret, dir, &mut path).expect("a path");
    assert_eq!(&path[..len], b"secret/place");
}

#[test]
fn a_file_is_found_however_deep_it_lies() {
    let (mut fs, dir) = volume(1, 1);
    let new = |kind| NewInode { kind, perm: 0o755, umask: 0, uid: 0, gid: 0, rdev: 0 };
    let mut deep = dir;
    for _ in 0..6000 {
        deep = fs.create(deep, b"d", new(Kind::Dir), NOW).expect("creates").ino;
    }
    let name = 0u64.to_le_bytes().map(|b| b + 1);
    fs.rename(dir, &name, deep, b"f", RenameFlags::empty(), NOW).expect("renames");
    assert_eq!(search(&fs, dir, &[0; DIM as usize], ALL, 3).map(|hits| hits.len()), Ok(1));
    // Directories in a loop end in no verdict.
    fs.inode_update(dir, |inode| inode.place_dir = deep).expect("writes");
    assert_eq!(search(&fs, dir, &[0; DIM as usize], ALL, 3).map(|hits| hits.len()), Ok(0));
}

proptest! {
    #[test]
    fn a_spoiled_volume_gives_errors_and_never_panics(page in any::<u16>(), at in 0..4096usize, byte: u8, more: u8) {
        let (mut fs, dir) = volume(5, 20);
        commit(&mut fs, NOW);
        let store = fs.store().clone();
        let mapped = store.mapped();
        let number = mapped[page as usize % mapped.len()];
        let mut bytes = store.get(number);
        // Structures stand at the beginning of pages and of 512-byte slots: hit those more often.
        let at = if more & 1 == 0 { at } else { at % 8 * 512 + usize::from(more) % 192 };
        bytes[at] = byte;
        store.put(number, &bytes);
        let Ok(fs) = mount(&store) else { return Ok(()) };
        for number in 0..20 {
            if let Ok(Some(set)) = fs.row_set(Ino(number)) {
                let (mut memory, mut len) = ([0; DIM as usize], 0);
                let all = (0, set.shape.stream_bytes());
                if fs.read_row_set(&set, all, &mut memory, &mut |piece| len += piece.len()).is_ok() {
                    prop_assert_eq!(len as u64, set.shape.stream_bytes());
                }
            }
        }
        if let Ok(hits) = search(&fs, dir, &[0; DIM as usize], ALL, 30) {
            for hit in hits {
                let _ = fs.search_path(hit.ino, dir, dir, &mut [0; 300]);
            }
        }
    }
}
