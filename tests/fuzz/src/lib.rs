//! What is fuzzed: one function a structure, which gets any bytes and must end without a panic. What decodes is also used
//! as its readers use it, and encoded again where that must give the same.
//!
//! Checksums are made right first: they would stop almost every input at the door.

use blockd::store::format::{
    checkpoint, directory, leaf as map_leaf, record, segment, superblock as store_superblock,
};
use blockd::volume::backup::frame::FrameReader;
use layout::acl::Acl;
use layout::addr::{PAGE, PageNo, XATTR_BASE, XATTR_BYTES};
use layout::dir::branch::Branch;
use layout::dir::leaf::Leaf;
use layout::dir::page::{self, DirPlace, LEVEL_FREE};
use layout::fs::{FormatParams, NewInode};
use layout::inode::{Inline, Ino, InodeFlags, Kind, ROOT_INO, RawInode, Slot, slot, slot_mut};
use layout::page_store::{PageBytes, Timespec};
use layout::rows::headers;
use layout::schema::CollectionHeader;
use layout::superblock::Superblock;
use layout::testing::{MemStore, format_params, mount};
use layout::uapi::put::{PutReply, PutRequest, encode_put};
use layout::uapi::search::{SearchReply, SearchRequest};
use layout::xattr::{RawXattrHeader, XATTR_ENTRIES_MAX, XATTR_HEADER_BYTES};
use zerocopy::IntoBytes;

/// A function that takes anything.
pub type Target = fn(&[u8]);

/// Every target by its name, which is also that of its corpus.
pub const TARGETS: [(&str, Target); 18] = [
    ("superblock", superblock),
    ("inode", inode),
    ("dir_leaf", dir_leaf),
    ("dir_branch", dir_branch),
    ("xattr_area", xattr_area),
    ("acl", acl),
    ("row_headers", row_headers),
    ("collection_header", collection_header),
    ("put_request", put_request),
    ("search_request", search_request),
    ("replies", replies),
    ("store_superblock", store_slot),
    ("segment_header", segment_header),
    ("record", log_record),
    ("map_leaf", leaf_of_map),
    ("map_directory", directory_of_map),
    ("checkpoint", checkpoint_root),
    ("backup", backup),
];

/// A page with these bytes at its begin.
fn page_of(data: &[u8]) -> PageBytes {
    let mut page = [0; PAGE];
    let len = data.len().min(PAGE);
    page[..len].copy_from_slice(&data[..len]);
    page
}

/// The page with its crc32c at `field` made right.
fn with_crc(data: &[u8], field: usize) -> PageBytes {
    let mut page = page_of(data);
    page[field..field + 4].fill(0);
    let crc = crc32c::crc32c(&page);
    page[field..field + 4].copy_from_slice(&crc.to_le_bytes());
    page
}

fn superblock(data: &[u8]) {
    let page = with_crc(data, 12);
    for read_only in [true, false] {
        if let Ok(found) = Superblock::decode(&page, read_only) {
            assert_eq!(Superblock::decode(&found.encode(), read_only), Ok(found));
        }
    }
}

fn inode(data: &[u8]) {
    let page = page_of(data);
    for number in 0..16 {
        let (at, ino) = (Ino(number).page().unwrap_or(PageNo(0)), Ino(number));
        let raw = slot(&page, ino);
        if let Ok(Slot::Used(found)) = raw.decode(at, ino) {
            let mut again = *raw;
            found.encode(&mut again);
            assert_eq!(again.decode(at, ino), Ok(Slot::Used(found)));
            let _ = (raw.inline_bytes(), layout::windows::map(&found, found.size));
        }
    }
}

const DIR: DirPlace = DirPlace { page: PageNo(77), dir: Ino(5), index: 3 };

fn dir_leaf(data: &[u8]) {
    let mut page = page_of(data);
    let Ok(header) = page::check(&page, DIR) else { return };
    if header.level != 0 {
        return;
    }
    let leaf = Leaf::new(&page, DIR.page, header.count);
    let all = leaf.check_all().is_ok();
    let _ = (leaf.free_bytes(), leaf.split_point(), leaf.lower_bound(1 << 40));
    let entries: Vec<_> = (0..header.count).map(|i| leaf.entry(i).map(|e| e.key)).collect();
    if all && header.count > 1 {
        layout::dir::leaf::remove(&mut page, DIR.page, header.count / 2).expect("a leaf in order");
        assert!(Leaf::new(&page, DIR.page, entries.len() - 1).check_all().is_ok());
    }
}

fn dir_branch(data: &[u8]) {
    let page = page_of(data);
    let Ok(header) = page::check(&page, DIR) else { return };
    if header.level == 0 || header.level == LEVEL_FREE {
        return;
    }
    let branch = Branch::new(&page, DIR.page, header.count);
    for key in [0, 16, 1 << 40, u64::MAX] {
        if let Ok(position) = branch.position(key) {
            assert!(position < header.count);
        }
    }
    assert!(branch.child(header.count).is_err());
}

/// Attributes of a file as the file system logic reads and changes them; the first byte chooses inline or overflow.
fn xattr_area(data: &[u8]) {
    let Some((choice, entries)) = data.split_first() else { return };
    let store = MemStore::formatted(FormatParams { uuid: [0; 16], ..format_params() });
    let mut fs = mount(&store).expect("a new volume");
    let now = Timespec::default();
    let new = NewInode { kind: Kind::File, perm: 0o644, uid: 0, gid: 0, umask: 0, rdev: 0 };
    let mut inode = fs.create(ROOT_INO, b"f", new, now).expect("a file");
    let page = inode.ino.page().unwrap_or(PageNo(0));
    let mut table = store.get(page);
    let raw: &mut RawInode = slot_mut(&mut table, inode.ino);
    if choice % 2 == 0 {
        let len = entries.len().min(raw.inline.len());
        (inode.inline, inode.inline_len) =
            if len > 0 { (Inline::Xattr, len as u16) } else { (Inline::Nothing, 0) };
        raw.inline[..len].copy_from_slice(&entries[..len]);
    } else {
        inode.flags |= InodeFlags::XATTR_OVERFLOW;
        let len = entries.len().min(XATTR_ENTRIES_MAX);
        let mut area = RawXattrHeader::new(&inode, len).as_bytes().to_vec();
        area.extend_from_slice(&entries[..len]);
        assert_eq!(area.len(), XATTR_HEADER_BYTES + len);
        let first = PageNo::containing(XATTR_BASE + inode.ino.0 * XATTR_BYTES);
        for (i, part) in area.chunks(PAGE).enumerate() {
            store.put(first.add(i as u64), &page_of(part));
        }
    }
    inode.encode(raw);
    store.put(page, &table);
    let mut names = Vec::new();
    let _ = fs.listxattr(inode.ino, &mut |name| names.push(name.to_vec()));
    let mut value = vec![0; 70_000];
    for name in names.iter().take(20) {
        let _ = fs.getxattr(inode.ino, name, &mut value);
    }
    let _ = fs.setxattr(inode.ino, b"user.fuzz", b"value", layout::fs::XattrFlags::empty(), now);
    for name in names.iter().take(20) {
        let _ = fs.removexattr(inode.ino, name, now);
    }
}

fn acl(data: &[u8]) {
    if let Ok(Some(found)) = Acl::parse(data) {
        assert_eq!(Acl::parse(found.bytes()), Ok(Some(found)));
        assert!(found.mode() <= 0o777);
    }
}

fn row_headers(data: &[u8]) {
    let page = page_of(data);
    for raw in headers(&page) {
        if let Ok(Some(row)) = raw.decode(PageNo(9)) {
            let again = layout::rows::RawRow::live(&row);
            assert_eq!(again.decode(PageNo(9)), Ok(Some(row)));
        }
    }
}

fn collection_header(data: &[u8]) {
    let page = page_of(data);
    if let Ok(found) = CollectionHeader::decode(PageNo(9), &page) {
        let mut again = [0; PAGE];
        found.encode(&mut again);
        assert!(again == page);
        let _ = found.schema.chunk_offset(found.next_row);
    }
}

fn put_request(data: &[u8]) {
    if let Ok(request) = PutRequest::parse(data) {
        let mut again = vec![0; data.len()];
        assert_eq!(encode_put(&request, &mut again), Ok(data.len()));
        assert!(again == data);
    }
}

fn search_request(data: &[u8]) {
    if let Ok(request) = SearchRequest::parse(data) {
        let mut again = vec![0; data.len()];
        assert_eq!(request.encode(&mut again), Ok(data.len()));
        assert!(again == data);
    }
}

fn replies(data: &[u8]) {
    let _ = PutReply::parse(data);
    if let Ok(reply) = SearchReply::parse(data) {
        let _ = reply.hits().map(|hit| hit.path.len()).sum::<usize>();
    }
}

fn store_slot(data: &[u8]) {
    if let Ok(found) = store_superblock::Superblock::decode(&with_crc(data, 12)) {
        assert_eq!(store_superblock::Superblock::decode(&found.encode()), Ok(found));
    }
}

fn segment_header(data: &[u8]) {
    if let Ok(found) = segment::SegmentHeader::decode(&with_crc(data, 8)) {
        let mut again = [0; PAGE];
        found.encode_into(&mut again);
        assert_eq!(segment::SegmentHeader::decode(&again), Ok(found));
    }
}

fn log_record(data: &[u8]) {
    if let Ok(found) = record::Record::decode(&with_crc(data, 8)) {
        let pages: u64 = found.entries.iter().map(|entry| u64::from(entry.pages())).sum();
        assert!(pages < 1 << 32);
    }
}

/// The uuid that seeds of the map's structures have.
pub const UUID: [u8; 16] = [7; 16];

fn leaf_of_map(data: &[u8]) {
    let page = with_crc(data, 8);
    let key = page[32..40].iter().rev().fold(0, |key, byte| key << 8 | u64::from(*byte));
    if let Ok(found) = map_leaf::decode(UUID, key, &page) {
        assert!(found.runs.iter().all(|run| run.end() <= 1 << 15));
        assert_eq!(found.runs.iter().map(map_leaf::Run::crc_count).sum::<usize>(), found.crcs.len());
    }
}

fn directory_of_map(data: &[u8]) {
    let page = with_crc(data, 8);
    let key = page[32..40].iter().rev().fold(0, |key, byte| key << 8 | u64::from(*byte));
    for level in 0..3 {
        if let Ok(found) = directory::decode(UUID, level, key, &page) {
            assert!(found.windows(2).all(|pair| pair[0].key < pair[1].key));
        }
    }
}

fn checkpoint_root(data: &[u8]) {
    let page = with_crc(data, 8);
    if let Ok(root) = checkpoint::Root::decode(&page) {
        // The payload is what stands behind the page.
        let _ = checkpoint::Payload::decode(&root, data.get(PAGE..).unwrap_or(&[]));
    }
}

/// A stream of frames, each with its number and crc32c made right.
fn backup(data: &[u8]) {
    const HEAD: usize = 24;
    let mut stream = data.to_vec();
    let (mut at, mut number) = (0, 0u64);
    while let Some(head) = stream.get(at..at + HEAD) {
        let len = u32::from_le_bytes([head[16], head[17], head[18], head[19]]) as usize;
        let end = (at + HEAD).saturating_add(len);
        if end > stream.len() {
            break;
        }
        stream[at + 8..at + 16].copy_from_slice(&number.to_le_bytes());
        stream[at + 20..at + HEAD].fill(0);
        let crc = crc32c::crc32c(&stream[at..end]);
        stream[at + 20..at + HEAD].copy_from_slice(&crc.to_le_bytes());
        (at, number) = (end, number + 1);
    }
    let mut reader = FrameReader::new(&stream[..]);
    while let Ok(Some(_)) = reader.frame() {}
}

/// Runs one target.
///
/// # Panics
/// When there is no such target, or it has found something.
pub fn run(name: &str, data: &[u8]) {
    let target = TARGETS.iter().find(|(its_name, _)| *its_name == name);
    target.unwrap_or_else(|| panic!("no target is called {name}")).1(data);
}
