//! Which inode owns which window: 8 bytes a window in use, in chunks of 512.

use std::collections::BTreeMap;

const CHUNK: u64 = 512;

/// The windows of one class.
#[derive(Default)]
pub struct Windows {
    /// Inode number, 0 = nobody's.
    owners: BTreeMap<u64, Box<[u64; CHUNK as usize]>>,
    owned: u64,
}

impl Windows {
    /// Gives a window to an inode; the owner that it has already, if any.
    pub fn own(&mut self, window: u64, ino: u64) -> Option<u64> {
        let owners = self.owners.entry(window / CHUNK).or_insert_with(|| Box::new([0; CHUNK as usize]));
        let owner = &mut owners[(window % CHUNK) as usize];
        if *owner != 0 {
            return Some(*owner);
        }
        *owner = ino;
        self.owned += 1;
        None
    }

    /// The owner of a window.
    pub fn owner(&self, window: u64) -> Option<u64> {
        let owners = self.owners.get(&(window / CHUNK))?;
        Some(owners[(window % CHUNK) as usize]).filter(|owner| *owner != 0)
    }

    /// Takes a window from its owner.
    pub fn disown(&mut self, window: u64) {
        if let Some(owners) = self.owners.get_mut(&(window / CHUNK)) {
            let owner = &mut owners[(window % CHUNK) as usize];
            self.owned -= u64::from(*owner != 0);
            *owner = 0;
        }
    }

    /// One past the highest window in use.
    pub fn end(&self) -> u64 {
        self.owners
            .iter()
            .rev()
            .find_map(|(chunk, owners)| {
                owners.iter().rposition(|o| *o != 0).map(|at| chunk * CHUNK + at as u64 + 1)
            })
            .unwrap_or(0)
    }

    /// The first window from `from` on that is in use, and its owner.
    pub fn next_owned(&self, from: u64) -> Option<(u64, u64)> {
        self.owners
            .range(from / CHUNK..)
            .flat_map(|(chunk, owners)| (chunk * CHUNK..).zip(owners.iter().copied()))
            .find(|(window, owner)| *window >= from && *owner != 0)
    }

    /// Windows in use.
    pub fn owned(&self) -> u64 {
        self.owned
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_has_one_owner() {
        let mut windows = Windows::default();
        assert_eq!((windows.own(1000, 5), windows.own(1000, 6)), (None, Some(5)));
        assert_eq!(
            (windows.owner(1000), windows.owner(999), windows.end(), windows.owned()),
            (Some(5), None, 1001, 1)
        );
        assert_eq!((windows.next_owned(3), windows.next_owned(1001)), (Some((1000, 5)), None));
        windows.disown(1000);
        assert_eq!((windows.owner(1000), windows.end(), windows.owned()), (None, 0, 0));
    }
}
