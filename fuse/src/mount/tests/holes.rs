//! Writes, truncates, punched holes and zeroed ranges against a model, around the borders of data classes.

use std::collections::BTreeMap;

use layout::addr::PAGE;
use proptest::prelude::*;

use super::*;
use crate::mount::holes::Seek;

const PAGE_BYTES: u64 = PAGE as u64;
/// Where data classes begin, and the start of the file.
const BORDERS: [u64; 4] = [1 << 14, 1 << 20, 1 << 30, 1 << 40];
/// Operations stay this near to a border.
const REACH: u64 = 1 << 14;

/// A range near a border.
#[derive(Clone, Copy, Debug)]
struct Span {
    at: u64,
    len: u64,
}

#[derive(Clone, Debug)]
enum Op {
    Write(Span, u8),
    Truncate(u64),
    Punch(Span),
    Zero(Span, bool),
    Allocate(Span, bool),
    Sync,
}

/// Bytes of the pages that are there; all others are holes.
#[derive(Default)]
struct Model {
    size: u64,
    pages: BTreeMap<u64, Vec<u8>>,
}

impl Model {
    fn write(&mut self, span: Span, value: u8) {
        for at in span.at..span.at + span.len {
            let page = self.pages.entry(at / PAGE_BYTES).or_insert_with(|| vec![0; PAGE]);
            page[(at % PAGE_BYTES) as usize] = value;
        }
        self.size = self.size.max(span.at + span.len);
    }

    /// Zeros from `at` up to `end`; a page is gone if nothing of it below the file's end is left.
    fn zero(&mut self, at: u64, end: u64) {
        let end = end.min(self.size);
        let inside =
            self.pages.range_mut(at / PAGE_BYTES..).take_while(|(page, _)| **page * PAGE_BYTES < end);
        let mut gone = Vec::new();
        for (page, bytes) in inside {
            let begin = page * PAGE_BYTES;
            let (from, to) = (at.max(begin), end.min(begin + PAGE_BYTES));
            if from < to {
                bytes[(from - begin) as usize..(to - begin) as usize].fill(0);
            }
            if from == begin && to == self.size.min(begin + PAGE_BYTES) {
                gone.push(*page);
            }
        }
        gone.iter().for_each(|page| drop(self.pages.remove(page)));
    }

    fn truncate(&mut self, size: u64) {
        self.pages.retain(|page, _| page * PAGE_BYTES < size);
        if let Some(last) = self.pages.get_mut(&(size / PAGE_BYTES)) {
            last[(size % PAGE_BYTES) as usize..].fill(0);
        }
        self.size = size;
    }

    fn read(&self, at: u64, len: usize) -> Vec<u8> {
        let end = (at + len as u64).min(self.size);
        let byte =
            |at: u64| self.pages.get(&(at / PAGE_BYTES)).map_or(0, |page| page[(at % PAGE_BYTES) as usize]);
        (at..end).map(byte).collect()
    }
}

fn near() -> impl Strategy<Value = u64> {
    let fine = prop_oneof![0..2 * REACH, (0..2 * REACH / PAGE_BYTES).prop_map(|page| page * PAGE_BYTES)];
    (0..BORDERS.len(), fine).prop_map(|(border, delta)| BORDERS[border] - REACH + delta)
}

fn spans() -> impl Strategy<Value = Span> {
    let short = (near(), prop_oneof![1..200u64, 1..3 * PAGE_BYTES, Just(PAGE_BYTES), Just(2 * PAGE_BYTES)]);
    let long = (near(), near()).prop_map(|(a, b)| (a.min(b), a.max(b) - a.min(b) + 1));
    prop_oneof![4 => short.boxed(), 1 => long.boxed()].prop_map(|(at, len)| Span { at, len })
}

fn ops() -> impl Strategy<Value = Op> {
    let write = (near(), 1..3 * PAGE_BYTES, 1..255u8);
    prop_oneof![
        5 => write.prop_map(|(at, len, value)| Op::Write(Span { at, len }, value)),
        2 => near().prop_map(Op::Truncate),
        4 => spans().prop_map(Op::Punch),
        4 => (spans(), any::<bool>()).prop_map(|(span, keep)| Op::Zero(span, keep)),
        1 => (spans(), any::<bool>()).prop_map(|(span, keep)| Op::Allocate(span, keep)),
        1 => Just(Op::Sync),
    ]
}

fn compare(m: &Mounted, ino: Ino, model: &Model) -> Result<(), TestCaseError> {
    let inode = m.inode(ino).unwrap();
    prop_assert_eq!(inode.size, model.size);
    let len = 2 * REACH as usize;
    for border in BORDERS {
        let at = border - REACH;
        prop_assert!(*m.read(ino, at, len).unwrap() == *model.read(at, len), "bytes near {:#x}", border);
    }
    prop_assert_eq!(
        m.blocks(&inode).unwrap(),
        model.pages.len() as u64 * 8,
        "pages {:?}",
        model.pages.keys()
    );
    for page in model.pages.keys() {
        let at = page * PAGE_BYTES;
        prop_assert_eq!(m.seek(ino, at, Seek::Data), Ok(Some(at)));
        let end = at + PAGE_BYTES;
        if !model.pages.contains_key(&(page + 1)) {
            prop_assert_eq!(m.seek(ino, at, Seek::Hole), Ok(Some(end.min(model.size))));
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn zeroed_and_punched_ranges_are_as_the_model_says(ops in prop::collection::vec(ops(), 1..40)) {
        let m = mounted(formatted());
        let ino = m.create(Ino(2), b"f", FILE, true).unwrap().ino;
        let mut model = Model::default();
        for op in &ops {
            match *op {
                Op::Write(span, value) => {
                    m.write(ino, span.at, &vec![value; span.len as usize], true).unwrap();
                    model.write(span, value);
                }
                Op::Truncate(size) => {
                    m.setattr(ino, SetAttr { size: Some(size), ..SetAttr::default() }, true).unwrap();
                    model.truncate(size);
                }
                Op::Punch(span) => {
                    m.punch_hole(ino, span.at, span.len, false).unwrap();
                    model.zero(span.at, span.at + span.len);
                }
                // So much is not free: it is refused, and nothing changes.
                Op::Zero(Span { at, len }, keep) if len > 1 << 31 => {
                    prop_assert_eq!(m.zero_range(ino, at, len, keep, false), Err(layout::error::Error::NoSpace));
                }
                Op::Allocate(Span { at, len }, keep) if len > 1 << 31 => {
                    prop_assert_eq!(m.allocate(ino, at, len, keep, true), Err(layout::error::Error::NoSpace));
                }
                Op::Zero(span, keep) => {
                    m.zero_range(ino, span.at, span.len, keep, false).unwrap();
                    model.zero(span.at, span.at + span.len);
                    model.size = if keep { model.size } else { model.size.max(span.at + span.len) };
                }
                Op::Allocate(span, keep) => {
                    m.allocate(ino, span.at, span.len, keep, true).unwrap();
                    model.size = if keep { model.size } else { model.size.max(span.at + span.len) };
                }
                Op::Sync => m.sync().unwrap(),
            }
            compare(&m, ino, &model)?;
        }
    }
}

#[test]
fn a_hole_punched_where_nothing_is_takes_no_window() {
    let m = mounted(formatted());
    let ino = m.create(Ino(2), b"f", FILE, true).unwrap().ino;
    m.setattr(ino, SetAttr { size: Some(1 << 45), ..SetAttr::default() }, true).unwrap();
    m.punch_hole(ino, 5, 1 << 44, false).unwrap();
    m.zero_range(ino, (1 << 45) - 7, 1 << 20, false, false).unwrap();
    let inode = m.inode(ino).unwrap();
    assert_eq!((inode.windows, inode.size), ([0; 3], (1 << 45) - 7 + (1 << 20)));
    assert_eq!(m.blocks(&inode), Ok(0));
    for refused in [
        m.punch_hole(ino, 1 << 48, 1, false),
        m.zero_range(ino, u64::MAX, 2, true, false),
        m.allocate(ino, 1 << 48, 1, true, true),
    ] {
        assert_eq!(refused, Err(layout::error::Error::TooBig));
    }
}

#[test]
fn zeroed_bytes_make_rows_stale_and_take_privileges() {
    let m = mounted(formatted());
    let ino = m.create(Ino(2), b"f", NewInode { perm: 0o6755, ..FILE }, true).unwrap().ino;
    m.write(ino, 0, &[1; 9000], true).unwrap();
    let changes: [&dyn Fn() -> layout::error::Result<()>; 3] =
        [&|| m.punch_hole(ino, 10, 10, false), &|| m.zero_range(ino, 8999, 1, true, false), &|| {
            m.zero_range(ino, 9000, 5000, false, false)
        }];
    for change in changes {
        let set = SetAttr { perm: Some(0o6755), ..SetAttr::default() };
        m.setattr(ino, set, true).unwrap();
        let fresh = |inode: &mut layout::fs::Inode| inode.flags |= InodeFlags::ROWS_FRESH;
        let before = m.fs.write().inode_update(ino, fresh).unwrap();
        change().unwrap();
        let after = m.inode(ino).unwrap();
        assert_eq!(after.data_version, before.data_version + 1);
        assert!(!after.flags.contains(InodeFlags::ROWS_FRESH));
        assert_eq!(after.perm, 0o755);
    }
    let set = SetAttr { perm: Some(0o6755), ..SetAttr::default() };
    m.setattr(ino, set, true).unwrap();
    m.punch_hole(ino, 10, 10, true).unwrap();
    m.zero_range(ino, 14_000, 100, false, true).unwrap();
    m.allocate(ino, 15_000, 100, false, true).unwrap();
    assert_eq!(m.inode(ino).unwrap().perm, 0o6755, "they stay for whom may set them");
    m.allocate(ino, 16_000, 100, false, false).unwrap();
    assert_eq!(m.inode(ino).unwrap().perm, 0o755);
    let before = m.inode(ino).unwrap();
    m.punch_hole(ino, 17_000, 100, false).unwrap();
    m.zero_range(ino, 17_000, 100, true, false).unwrap();
    assert_eq!(m.inode(ino).unwrap(), before, "beyond the end nothing changes");
}
