//! What is kept of each inode during a check: 6 bytes, in chunks of 4096 inodes that exist only where the
//! inode table is mapped. 100 million inodes take 600 MB.

use std::collections::{BTreeMap, HashMap};

use layout::inode::Kind;

/// Inodes of one chunk.
pub const CHUNK: u64 = 4096;
/// From here on a count stands in the overflow table.
const MANY: u8 = 255;
const KIND: u8 = 0x0f;
const FREE: u8 = 9;
const REACHED: u8 = 0x10;
const PLACED: u8 = 0x20;
const LISTED: u8 = 0x40;
const ORPHAN: u8 = 0x80;

struct Chunk {
    /// Kind (0: never used, 9: free) and marks.
    state: [u8; CHUNK as usize],
    /// Names found; for a directory its subdirectories.
    links: [u8; CHUNK as usize],
    /// [`fingerprint`] of the place.
    place: [u32; CHUNK as usize],
}

/// What a slot of the inode table is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum State {
    /// Never used.
    Never,
    /// Free.
    Free,
    /// In use.
    Used(Kind),
}

/// Stands for a place (directory and key): equal places have equal ones, others differ but once in 2^32.
pub fn fingerprint(dir: u64, key: u64) -> u32 {
    let mixed = (dir ^ key.rotate_left(29)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    ((mixed ^ (mixed >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9) >> 32) as u32
}

/// All inodes.
#[derive(Default)]
pub struct Census {
    chunks: BTreeMap<u64, Box<Chunk>>,
    overflow: HashMap<u64, u32>,
    used: u64,
    end: u64,
}

impl Census {
    fn chunk(&mut self, ino: u64) -> &mut Chunk {
        self.chunks.entry(ino / CHUNK).or_insert_with(|| {
            Box::new(Chunk {
                state: [0; CHUNK as usize],
                links: [0; CHUNK as usize],
                place: [0; CHUNK as usize],
            })
        })
    }

    fn bits(&self, ino: u64) -> u8 {
        self.chunks.get(&(ino / CHUNK)).map_or(0, |chunk| chunk.state[(ino % CHUNK) as usize])
    }

    fn set_bits(&mut self, ino: u64, bits: u8) {
        self.chunk(ino).state[(ino % CHUNK) as usize] = bits;
    }

    /// What an inode is.
    pub fn state(&self, ino: u64) -> State {
        match self.bits(ino) & KIND {
            0 => State::Never,
            FREE => State::Free,
            code => Kind::from_code(code).map_or(State::Never, State::Used),
        }
    }

    /// Says what an inode is; its marks stay.
    pub fn set_state(&mut self, ino: u64, state: State) {
        let code = match state {
            State::Never => 0,
            State::Free => FREE,
            State::Used(kind) => kind as u8,
        };
        let was_used = matches!(self.state(ino), State::Used(_));
        let is_used = matches!(state, State::Used(_));
        self.used = self.used + u64::from(is_used) - u64::from(was_used);
        let marks = if is_used { self.bits(ino) & !KIND } else { 0 };
        self.set_bits(ino, marks | code);
        if code != 0 {
            self.end = self.end.max(ino + 1);
        }
    }

    /// The kind of an inode in use.
    pub fn kind(&self, ino: u64) -> Option<Kind> {
        match self.state(ino) {
            State::Used(kind) => Some(kind),
            State::Never | State::Free => None,
        }
    }

    /// Inodes in use.
    pub fn used(&self) -> u64 {
        self.used
    }

    /// One past the highest inode that is, or was, in use.
    pub fn end(&self) -> u64 {
        self.end
    }

    fn mark(&mut self, ino: u64, mark: u8, on: bool) {
        let bits = self.bits(ino);
        self.set_bits(ino, if on { bits | mark } else { bits & !mark });
    }

    /// It has a name that leads to the root.
    pub fn is_reached(&self, ino: u64) -> bool {
        self.bits(ino) & REACHED != 0
    }

    /// See [`Census::is_reached`].
    pub fn set_reached(&mut self, ino: u64) {
        self.mark(ino, REACHED, true);
    }

    /// Its place is one of its names.
    pub fn is_placed(&self, ino: u64) -> bool {
        self.bits(ino) & PLACED != 0
    }

    /// See [`Census::is_placed`].
    pub fn set_placed(&mut self, ino: u64) {
        self.mark(ino, PLACED, true);
    }

    /// It was met on the orphan list or on a free stack.
    pub fn is_listed(&self, ino: u64) -> bool {
        self.bits(ino) & LISTED != 0
    }

    /// See [`Census::is_listed`].
    pub fn set_listed(&mut self, ino: u64) {
        self.mark(ino, LISTED, true);
    }

    /// It has no link.
    pub fn is_orphan(&self, ino: u64) -> bool {
        self.bits(ino) & ORPHAN != 0
    }

    /// See [`Census::is_orphan`].
    pub fn set_orphan(&mut self, ino: u64, on: bool) {
        self.mark(ino, ORPHAN, on);
    }

    /// The fingerprint of its place.
    pub fn place(&self, ino: u64) -> u32 {
        self.chunks.get(&(ino / CHUNK)).map_or(0, |chunk| chunk.place[(ino % CHUNK) as usize])
    }

    /// See [`Census::place`].
    pub fn set_place(&mut self, ino: u64, place: u32) {
        self.chunk(ino).place[(ino % CHUNK) as usize] = place;
    }

    /// Counts a name, or a subdirectory.
    pub fn add_link(&mut self, ino: u64) {
        let count = &mut self.chunk(ino).links[(ino % CHUNK) as usize];
        if *count < MANY {
            *count += 1;
        }
        if *count == MANY {
            *self.overflow.entry(ino).or_insert(u32::from(MANY) - 1) += 1;
        }
    }

    /// Names, or subdirectories, counted.
    pub fn links(&self, ino: u64) -> u32 {
        let count = self.chunks.get(&(ino / CHUNK)).map_or(0, |chunk| chunk.links[(ino % CHUNK) as usize]);
        if count == MANY { self.overflow.get(&ino).copied().unwrap_or(0) } else { u32::from(count) }
    }

    /// Free inodes, the highest first.
    pub fn free_from_above(&self) -> impl Iterator<Item = u64> + '_ {
        let numbers = self.chunks.keys().rev().flat_map(|chunk| (chunk * CHUNK..(chunk + 1) * CHUNK).rev());
        numbers.filter(|ino| self.state(*ino) == State::Free)
    }

    /// The first inode from `from` on for which `wanted` holds, given what it is.
    pub fn find(&self, from: u64, wanted: impl Fn(&Self, u64, State) -> bool) -> Option<u64> {
        self.chunks
            .range(from / CHUNK..)
            .flat_map(|(chunk, _)| (chunk * CHUNK).max(from)..(chunk + 1) * CHUNK)
            .find(|ino| wanted(self, *ino, self.state(*ino)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_beyond_a_byte_overflow_into_the_table() {
        let mut census = Census::default();
        for links in 1..=1000 {
            census.add_link(7);
            assert_eq!(census.links(7), links);
        }
        assert_eq!(census.links(8), 0);
    }

    #[test]
    fn marks_go_with_the_life_of_an_inode() {
        let mut census = Census::default();
        census.set_state(5, State::Used(Kind::Dir));
        census.set_reached(5);
        census.set_state(5, State::Used(Kind::File));
        assert!(census.is_reached(5));
        assert_eq!((census.used(), census.end(), census.kind(5)), (1, 6, Some(Kind::File)));
        census.set_state(5, State::Free);
        assert!(!census.is_reached(5));
        assert_eq!((census.used(), census.state(5), census.state(1 << 35)), (0, State::Free, State::Never));
        assert_eq!(census.find(0, |_, _, s| s == State::Free), Some(5));
        assert_eq!(census.find(6, |_, _, s| s == State::Free), None);
    }
}
