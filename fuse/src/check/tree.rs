//! A directory's B+-tree (FORMAT.md section 5.3), read in order without trust and without recursion: every page once,
//! keys inside the bounds that the pages above give, leaves chained, free pages listed.

use layout::addr::{PAGE, PageNo};
use layout::dir::branch::Branch;
use layout::dir::leaf::Leaf;
use layout::dir::page::{self, DirHeader, DirPlace, LEVEL_FREE};
use layout::error::Error;
use layout::inode::{Inode, Kind};
use layout::name::Name;
use layout::windows::map_page;

use super::bits::SparseBits;
use super::context::Check;
use super::finding::{Code, Finding};
use super::pool::{Pool, Run};
use crate::engine::PageArc;

/// An entry, free of its page.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Kept {
    /// Hash of the name and ordinal.
    pub key: u64,
    /// The inode.
    pub ino: u64,
    /// Its kind, as the entry has it.
    pub kind: Kind,
    /// The name.
    pub name: Vec<u8>,
}

/// What breaks a tree.
pub type Broken = Box<Finding>;

/// A leaf: its device page, its bytes, its entries; none behind the last one.
pub type Step = Result<Option<(PageNo, PageArc, usize)>, Broken>;

struct Frame {
    at: DirPlace,
    bytes: PageArc,
    header: DirHeader,
    /// The next child to visit.
    pos: usize,
    low: u64,
    high: u64,
}

/// The leaves of a tree, in order.
pub struct TreeWalk {
    dir: Inode,
    started: bool,
    frames: Vec<Frame>,
    seen: SparseBits,
    /// The leaf given last, and the one that it says comes next.
    last_leaf: Option<(PageNo, u32)>,
    /// Key given last.
    last_key: u64,
    used: u32,
    free_head: u32,
}

impl TreeWalk {
    /// Of this directory.
    pub fn new(dir: &Inode) -> Self {
        TreeWalk {
            dir: *dir,
            started: false,
            frames: Vec::new(),
            seen: SparseBits::default(),
            last_leaf: None,
            last_key: 0,
            used: 0,
            free_head: 0,
        }
    }

    fn finding(&self, code: Code) -> Finding {
        Finding::new(code).ino(self.dir.ino.0)
    }

    fn broken<T>(&self, page: PageNo, what: &str, expected: u64, found: u64) -> Run<Result<T, Broken>> {
        Ok(Err(Box::new(self.finding(Code::DirTree).page(page.0).values(expected, found).detail(what))))
    }

    fn damaged<T>(&self, error: &Error) -> Run<Result<T, Broken>> {
        Ok(Err(Box::new(self.finding(Code::DirPage).of(error))))
    }

    fn load(&mut self, pool: &mut Pool, index: u32) -> Run<Result<(DirPlace, PageArc, DirHeader), Broken>> {
        let at = u64::from(index) * PAGE as u64;
        let table = self.dir.ino.page().unwrap_or(PageNo(0));
        let Some(page) = map_page(&self.dir, u64::from(index)).filter(|_| at < self.dir.size) else {
            return self.broken(table, "a page's index lies beyond the directory", self.dir.size, at);
        };
        if !self.seen.insert(u64::from(index)) {
            return self.broken(page, "a page stands twice in the tree", 1, 2);
        }
        let bytes = match pool.read(page)? {
            Ok(bytes) => bytes,
            Err(why) => return Ok(Err(Box::new(self.finding(Code::DirPage).page(page.0).detail(why.0)))),
        };
        let place = DirPlace { page, dir: self.dir.ino, index };
        match page::check(&bytes, place) {
            Ok(header) => Ok(Ok((place, bytes, header))),
            Err(error) => self.damaged(&error),
        }
    }

    /// The next leaf, checked; after the last one everything else of the tree is checked too.
    ///
    /// # Errors
    /// [`super::pool::Stop`]; inside, what breaks the tree.
    pub fn next(&mut self, pool: &mut Pool) -> Run<Step> {
        macro_rules! attempt {
            ($value:expr) => {
                match $value? {
                    Ok(value) => value,
                    Err(broken) => return Ok(Err(broken)),
                }
            };
        }
        if self.dir.size == 0 {
            return Ok(Ok(None));
        }
        if !self.started {
            self.started = true;
            let (at, bytes, header) = attempt!(self.load(pool, 0));
            (self.used, self.free_head) = (header.used, header.free_head);
            if u64::from(header.used) * PAGE as u64 != self.dir.size {
                return self.broken(
                    at.page,
                    "pages used by the tree",
                    self.dir.size / PAGE as u64,
                    header.used.into(),
                );
            }
            if header.level == LEVEL_FREE {
                return self.broken(at.page, "the root is a free page", 0, LEVEL_FREE.into());
            }
            if header.level > 0 && header.count < 2 {
                return self.broken(at.page, "a root with one child", 2, header.count as u64);
            }
            let frame = Frame { at, bytes, header, pos: 0, low: 0, high: u64::MAX };
            if header.level == 0 {
                return self.leaf(frame);
            }
            self.enter(pool, frame)?;
        }
        while let Some(frame) = self.frames.last_mut() {
            if frame.pos == frame.header.count {
                self.frames.pop();
                continue;
            }
            let (page, level, pos) = (frame.at.page, frame.header.level, frame.pos);
            let branch = Branch::new(&frame.bytes, page, frame.header.count);
            let child = branch.child(pos);
            let next = if pos + 1 < frame.header.count {
                branch.child(pos + 1).map(|c| c.key)
            } else {
                Ok(frame.high)
            };
            let (child, high) = match (child, next) {
                (Ok(child), Ok(high)) => (child, high),
                (Err(error), _) | (_, Err(error)) => return self.damaged(&error),
            };
            let low = if pos == 0 { frame.low } else { child.key };
            if low >= high || high > frame.high {
                let most = frame.high;
                return self.broken(page, "keys of an internal page in ascending order", most, high);
            }
            frame.pos += 1;
            let (at, bytes, header) = attempt!(self.load(pool, child.index));
            if header.level == LEVEL_FREE || header.level + 1 != level {
                return self.broken(
                    at.page,
                    "level of a child page",
                    u64::from(level) - 1,
                    header.level.into(),
                );
            }
            let frame = Frame { at, bytes, header, pos: 0, low, high };
            if header.level == 0 {
                return self.leaf(frame);
            }
            self.enter(pool, frame)?;
        }
        self.end(pool)
    }

    /// Goes down into an internal page; the leaves below it are read at once.
    fn enter(&mut self, pool: &mut Pool, frame: Frame) -> Run<()> {
        if frame.header.level == 1 {
            let branch = Branch::new(&frame.bytes, frame.at.page, frame.header.count);
            let children = (0..frame.header.count).filter_map(|i| branch.child(i).ok());
            let pages: Vec<PageNo> = children.filter_map(|c| map_page(&self.dir, c.index.into())).collect();
            pool.prefetch(pages)?;
        }
        self.frames.push(frame);
        Ok(())
    }

    fn leaf(&mut self, frame: Frame) -> Run<Step> {
        let Frame { at, bytes, header, low, high, .. } = frame;
        if let Some((page, next)) = self.last_leaf
            && next != at.index
        {
            return self.broken(page, "right sibling of a leaf", at.index.into(), next.into());
        }
        self.last_leaf = Some((at.page, header.next));
        let leaf = Leaf::new(&bytes, at.page, header.count);
        if let Err(error) = leaf.check_all() {
            return self.damaged(&error);
        }
        for i in 0..header.count {
            let entry = match leaf.entry(i) {
                Ok(entry) => entry,
                Err(error) => return self.damaged(&error),
            };
            if entry.key < low || entry.key >= high || entry.key <= self.last_key {
                return self.broken(at.page, "key of an entry between those around it", low, entry.key);
            }
            self.last_key = entry.key;
        }
        Ok(Ok(Some((at.page, bytes, header.count))))
    }

    /// What remains once the leaves are through.
    fn end(&mut self, pool: &mut Pool) -> Run<Step> {
        if let Some((page, next)) = self.last_leaf.take()
            && next != 0
        {
            return self.broken(page, "right sibling of the last leaf", 0, next.into());
        }
        while self.free_head != 0 {
            let (at, _, header) = match self.load(pool, self.free_head)? {
                Ok(loaded) => loaded,
                Err(broken) => return Ok(Err(broken)),
            };
            if header.level != LEVEL_FREE {
                return self.broken(
                    at.page,
                    "a page on the free list",
                    LEVEL_FREE.into(),
                    header.level.into(),
                );
            }
            self.free_head = header.next;
        }
        let root = map_page(&self.dir, 0).unwrap_or(PageNo(0));
        if self.seen.count() != u64::from(self.used) {
            return self.broken(
                root,
                "pages in the tree and on its free list",
                self.used.into(),
                self.seen.count(),
            );
        }
        Ok(Ok(None))
    }
}

impl Check<'_> {
    /// Whether a name may stand under a key.
    pub(super) fn key_fits(&self, key: u64, name: &[u8]) -> bool {
        Name::new(name).is_ok_and(|name| {
            let first = name.first_key(&self.superblock.hash_key);
            (first..first + 16).contains(&key)
        })
    }

    /// The inode and the name of an entry with this key; none if there is none, or the way to it is damaged.
    pub(super) fn entry_at(&mut self, dir: &Inode, key: u64) -> Run<Option<(u64, String)>> {
        let mut index = 0;
        for _ in 0..page::MAX_LEVELS {
            let place =
                map_page(dir, u64::from(index)).filter(|_| u64::from(index) * (PAGE as u64) < dir.size);
            let Some(page_no) = place else { return Ok(None) };
            let Ok(bytes) = self.pool.read(page_no)? else { return Ok(None) };
            let at = DirPlace { page: page_no, dir: dir.ino, index };
            let Ok(header) = page::check(&bytes, at) else { return Ok(None) };
            if header.level == LEVEL_FREE {
                return Ok(None);
            }
            if header.level == 0 {
                let leaf = Leaf::new(&bytes, page_no, header.count);
                let entry =
                    leaf.lower_bound(key).ok().filter(|i| *i < header.count).and_then(|i| leaf.entry(i).ok());
                return Ok(entry
                    .filter(|entry| entry.key == key)
                    .map(|entry| (entry.ino.0, String::from_utf8_lossy(entry.name).into_owned())));
            }
            let branch = Branch::new(&bytes, page_no, header.count);
            let Ok(child) = branch.position(key).and_then(|pos| branch.child(pos)) else { return Ok(None) };
            index = child.index;
        }
        Ok(None)
    }
}
