//! Reads that get what stood in a place before: its segment was cleaned and used again while they were under way.

use std::collections::HashSet;
use std::io;
use std::sync::Arc;

use parking_lot::Mutex;

use super::content;
use super::driver::{Driver, new_image};
use crate::device::{ClientId, IoError, VolumeKind};
use crate::storage::sim::{Crash, SimStorage, flip_bit};
use crate::storage::{Read, Storage, WriteQueue};
use crate::store::clean::Tuning;
use crate::store::recover::{self, RecoverOptions};

const PAGES: u64 = 40;

/// A backing whose places, armed, each give an older content once.
struct Stale {
    old: Vec<u8>,
    now: SimStorage,
    /// Places read since; `None` while nothing is stale.
    read: Mutex<Option<HashSet<u64>>>,
}

impl Storage for Stale {
    fn len_bytes(&self) -> u64 {
        self.now.len_bytes()
    }
    fn read_batch(&self, reads: &mut [Read<'_>]) {
        for read in reads {
            let stale = self.read.lock().as_mut().is_some_and(|seen| seen.insert(read.offset));
            if stale {
                let start = read.offset as usize;
                read.buf.copy_from_slice(&self.old[start..start + read.buf.len()]);
            } else {
                self.now.read_batch(std::slice::from_mut(read));
            }
        }
    }
    fn write_all(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.now.write_all(offset, bytes)
    }
    fn sync(&self) -> io::Result<()> {
        self.now.sync()
    }
    fn discard(&self, offset: u64, len_bytes: u64) {
        self.now.discard(offset, len_bytes);
    }
    fn queue(&self) -> io::Result<Box<dyn WriteQueue>> {
        self.now.queue()
    }
}

#[test]
fn what_a_read_missed_is_read_again_and_a_bad_page_is_an_error() {
    let image = new_image(VolumeKind::Raw, 4 << 20, PAGES * 4096);
    let mut driver = Driver::open(SimStorage::new(image, 1), 1).expect("a new store opens");
    let mut write = |pages: std::ops::Range<u64>| {
        for page in pages {
            driver.write(ClientId(1), page * 4096, &content(page, page + 1), false);
        }
        driver.settle();
        driver.checkpoint();
        driver.settle();
        driver.disk.image_after(Crash::ProcessDeath)
    };
    let old = write(0..PAGES / 2);
    let mut now = write(PAGES / 2..PAGES);
    let options = RecoverOptions {
        read_only: true,
        boot_id: [1; 16],
        tuning: Tuning::default(),
        map_bytes_max: 64 << 10,
        discard: false,
    };
    let open = |now: Vec<u8>| {
        let storage = Stale { old: old.clone(), now: SimStorage::new(now, 2), read: Mutex::default() };
        let storage = Arc::new(storage);
        let opened = recover::open(Arc::clone(&storage) as Arc<dyn Storage>, &options).expect("it opens");
        (storage, opened.shared)
    };
    let (storage, shared) = open(now.clone());
    let mut bytes = vec![0; 4096];
    shared.read_run(0, &mut bytes).expect("its leaf is read with the first page");
    *storage.read.lock() = Some(HashSet::new());
    for page in 0..PAGES {
        shared.read_run(page, &mut bytes).expect("a page");
        assert!(bytes == content(page, page + 1), "page {page}");
    }

    // Bad on the backing: an error, as ever.
    let newest = shared.maps.read().lookup(PAGES - 1);
    let crate::store::map::Lookup::Mapped(mapping) = newest else { panic!("the page is mapped") };
    flip_bit(&mut now, shared.geometry.byte(mapping.loc) * 8 + 77);
    let (_, shared) = open(now);
    assert!(matches!(shared.read_run(PAGES - 1, &mut bytes), Err(IoError::Io(_))));
    shared.read_run(PAGES - 2, &mut bytes).expect("its neighbour is good");
}
