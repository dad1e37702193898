//! Random operations on the bytes of files.

use layout::addr::PAGE;
use layout::error::Error;
use layout::fs::{Ino, SetAttr};
use layout::inode::{Kind, MAX_FILE_BYTES};
use layout::page_store::Timespec;
use layout::testing::model::{Answer, Model};
use layout::windows::{class_of, class_range};
use rand::Rng;

use super::clock;
use super::world::World;

/// Near the borders of all window classes.
const OFFSETS: [u64; 9] = [
    0,
    4096,
    60_000,
    (1 << 20) - 5000,
    1 << 20,
    (1 << 30) - 5000,
    1 << 30,
    (1 << 40) - 5000,
    (1 << 48) - 9000,
];

/// Bytes that tell where and when they were written.
fn content(offset: u64, len: usize, now: Timespec) -> Vec<u8> {
    (0..len as u64).map(|i| ((offset + i) / 512 + now.secs as u64 * 7) as u8 | 1).collect()
}

impl World {
    fn some_offset(&mut self, ino: Ino) -> u64 {
        let size = self.tree.names.get(ino).size;
        match self.rng.random_range(0..8) {
            // As O_APPEND does.
            0..=2 => size,
            3..=5 if size > 0 => self.rng.random_range(0..size.min(200_000)),
            _ => OFFSETS[self.rng.random_range(0..OFFSETS.len())] + self.rng.random_range(0..10_000),
        }
    }

    pub(super) fn change_bytes(&mut self) {
        let Some(ino) = self.some_file() else { return };
        match self.rng.random_range(0..14) {
            11.. => self.copy(ino),
            0..=5 => self.write(ino),
            6 | 7 => self.truncate(ino),
            8 => self.punch(ino),
            9 => self.zero(ino),
            _ => self.allocate(ino),
        }
    }

    fn write(&mut self, ino: Ino) {
        let offset = self.some_offset(ino);
        let len = match self.rng.random_range(0..10) {
            0..=2 => self.rng.random_range(1..300),
            3..=5 => PAGE,
            6..=8 => self.rng.random_range(1..20_000),
            _ => self.rng.random_range(20_000..66_000),
        };
        // Whole pages half of the time.
        let offset = if self.rng.random() { offset / PAGE as u64 * PAGE as u64 } else { offset };
        self.write_at(ino, offset, len);
    }

    /// Takes space, as long as there is some.
    pub(super) fn grow(&mut self) {
        let Some(ino) = self.some_file() else { return };
        let size = self.tree.names.get(ino).size;
        let offset = if size < 1 << 21 { size } else { self.rng.random_range(0..1 << 20) };
        let len = self.rng.random_range(1..66_000);
        self.write_at(ino, offset, len);
    }

    pub(super) fn write_at(&mut self, ino: Ino, offset: u64, len: usize) {
        let now = clock::tick();
        let bytes = &content(offset, len, now);
        self.note(format!("  write {} at {offset}, {} bytes", ino.0, bytes.len()));
        let real = self.mounted.write(ino, offset, bytes, false);
        self.spoils(&real);
        self.agree("write", real, |m| m.write(ino, offset, bytes, now));
    }

    /// Bytes of one file become those of another one, or of another part of it: whole pages are cloned.
    fn copy(&mut self, from: Ino) {
        // A clone would wait for the batch that this very thread sends.
        let Some(to) = self.some_file().filter(|_| !self.mounted.engine().is_sending()) else { return };
        let page = PAGE as u64;
        let size = self.tree.names.get(from).size;
        let whole = !self.once_in(4);
        let start = self.rng.random_range(0..size.clamp(1, 1 << 20));
        let start = if whole { start / page * page } else { start };
        // In one piece, so that it is one change: of one class, whole pages of both or of neither.
        let (class, end) = (class_of(start), size.min(start + self.rng.random_range(1..100_000)));
        let mut len = end.min(class_range(class).1).saturating_sub(start);
        let offset = match self.once_in(3) {
            true => OFFSETS[self.rng.random_range(0..OFFSETS.len())],
            false => self.rng.random_range(0..200_000),
        };
        let offset = if whole { offset / page * page } else { offset | 1 };
        if whole {
            len = len / page * page;
        } else if start % page == offset % page {
            return;
        }
        if len > 0 && (from != to || start.abs_diff(offset) >= len) {
            self.copy_at((from, start), (to, offset), len);
        }
    }

    pub(super) fn copy_at(&mut self, from: (Ino, u64), to: (Ino, u64), len: u64) {
        let now = clock::tick();
        self.note(format!("  copy {len} bytes of {} at {} to {} at {}", from.0.0, from.1, to.0.0, to.1));
        let real = self.mounted.copy(from, to, len, false);
        self.spoils(&real);
        // What the device was sent is charged, and not dirty.
        self.sent_early = Some(self.open_epoch());
        let source = self.tree.names.get(from.0);
        let byte = |at: u64| {
            source.pages.get(&(at / PAGE as u64)).map_or(0, |page| page[(at % PAGE as u64) as usize])
        };
        let bytes: Vec<u8> = (from.1..from.1 + len).map(byte).collect();
        if let Some((copied, ())) = self.agree("copy", real, |m| m.write(to.0, to.1, &bytes, now)) {
            assert_eq!(copied, len);
        }
    }

    fn truncate(&mut self, ino: Ino) {
        let size = if self.once_in(4) { 0 } else { self.some_offset(ino) };
        self.truncate_to(ino, size);
    }

    pub(super) fn truncate_to(&mut self, ino: Ino, size: u64) {
        let now = clock::tick();
        let set = SetAttr { size: Some(size), ..SetAttr::default() };
        self.note(format!("  truncate {} to {size}", ino.0));
        let real = self.mounted.setattr(ino, set, false);
        self.spoils(&real);
        self.agree("truncate", real, |m| m.setattr(ino, set, now));
    }

    fn punch(&mut self, ino: Ino) {
        let offset = self.some_offset(ino);
        let len = [100, 4096, 30_000, 1 << 31][self.rng.random_range(0..4)];
        self.punch_at(ino, offset, len);
    }

    pub(super) fn punch_at(&mut self, ino: Ino, offset: u64, len: u64) {
        let now = clock::tick();
        self.note(format!("  punch {} at {offset}, {len} bytes", ino.0));
        let real = self.mounted.punch_hole(ino, offset, len, false);
        self.spoils(&real);
        self.agree("punch", real, |m| zero(m, ino, (offset, len), true, now));
    }

    fn zero(&mut self, ino: Ino) {
        let (offset, now) = (self.some_offset(ino), clock::tick());
        let (len, keep_size) = (self.rng.random_range(1..100_000), self.rng.random());
        self.note(format!("  zero {} at {offset}, {len} bytes, {keep_size}", ino.0));
        let real = self.mounted.zero_range(ino, offset, len, keep_size, false);
        self.spoils(&real);
        self.agree("zero", real, |m| zero(m, ino, (offset, len), keep_size, now));
    }

    fn allocate(&mut self, ino: Ino) {
        let offset = self.some_offset(ino);
        let (len, keep_size) = (self.rng.random_range(1..100_000), self.rng.random());
        self.allocate_at(ino, offset, len, keep_size);
    }

    pub(super) fn allocate_at(&mut self, ino: Ino, offset: u64, len: u64, keep_size: bool) {
        let now = clock::tick();
        self.note(format!("  allocate {} at {offset}, {len} bytes, {keep_size}", ino.0));
        let real = self.mounted.allocate(ino, offset, len, keep_size, true);
        self.spoils(&real);
        self.agree("allocate", real, |m| {
            let (node, end) = (m.get(ino), offset + len);
            if end > MAX_FILE_BYTES {
                return Err(Error::TooBig);
            }
            if keep_size || end <= node.size {
                return Ok(());
            }
            let set = SetAttr { size: Some(end), perm: Some(node.perm), ..SetAttr::default() };
            m.setattr(ino, set, now)
        });
    }

    /// A change of bytes that fails for another reason than the caller's may be done in part.
    fn spoils<T>(&mut self, real: &Result<T, Error>) {
        if matches!(real, Err(Error::Io(_) | Error::Aborted | Error::Fenced | Error::Corrupt(_))) {
            self.broken = true;
        }
    }
}

/// What FALLOC_FL_ZERO_RANGE does; with `keep_size` FALLOC_FL_PUNCH_HOLE too.
fn zero(
    model: &mut Model,
    ino: Ino,
    (offset, len): (u64, u64),
    keep_size: bool,
    now: Timespec,
) -> Answer<()> {
    let node = model.at(ino);
    assert_eq!(node.kind, Kind::File);
    let range_end = offset + len;
    if range_end > MAX_FILE_BYTES {
        return Err(Error::TooBig);
    }
    let size = if keep_size { node.size } else { node.size.max(range_end) };
    let end = range_end.min(node.size);
    if offset >= end && size == node.size {
        return Ok(());
    }
    let page_bytes = PAGE as u64;
    if offset < end {
        for (index, page) in node.pages.range_mut(offset / page_bytes..end.div_ceil(page_bytes)) {
            let begin = index * page_bytes;
            let from = offset.saturating_sub(begin).min(page_bytes) as usize;
            let to = (end - begin).min(page_bytes) as usize;
            std::sync::Arc::make_mut(page)[from..to].fill(0);
        }
    }
    node.size = size;
    (node.times[1], node.times[2]) = (now, now);
    node.drop_privileges();
    Ok(())
}
