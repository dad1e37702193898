//! Corners that random lives seldom reach: late copies, images full to the brim, commands sent again.

use super::driver::{Driver, new_image};
use super::{content, tag_of};
use crate::device::{ClientId, IoError, VolumeKind};
use crate::storage::sim::SimStorage;
use crate::store::map::Lookup;
use crate::store::map::segments::State;

const CLIENT: ClientId = ClientId(1);

fn write(driver: &mut Driver, page: u64, tag: u64) -> Result<(), IoError> {
    let ticket = driver.write(CLIENT, page * 4096, &content(page, tag), false);
    driver.settle();
    Driver::outcome(&ticket)
}

#[test]
fn a_copy_that_comes_late_does_not_bring_old_bytes_back() {
    let image = new_image(VolumeKind::Raw, 2 << 20, 64 * 4096);
    let mut driver = Driver::open(SimStorage::new(image, 1), 1).expect("a new store opens");
    write(&mut driver, 0, 1).expect("a write");
    for tag in 1..20 {
        write(&mut driver, 1, tag).expect("a write");
    }
    let Lookup::Mapped(old) = driver.store().maps.read().lookup(0) else { panic!("page 0 is mapped") };
    let state = driver.store().maps.read().segments.get(old.loc.segment).map(|s| s.state);
    assert_eq!(state, Some(State::Closed));
    // The cleaner reads the segment, and is slow to hand the copies over. Meanwhile the segment dies,
    // is used again, and the same page comes to stand at the same place with other bytes.
    let late = driver.copies_of(old.loc.segment);
    assert!(!late.is_empty());
    let newest = (2..5000).find(|&tag| {
        write(&mut driver, 0, tag).expect("a write");
        driver.checkpoint();
        driver.settle();
        let found = driver.store().maps.read().lookup(0);
        matches!(found, Lookup::Mapped(m) if m.loc == old.loc)
    });
    let newest = newest.expect("the place is used again");
    driver.relocate(late);
    let bytes = driver.read(CLIENT, 0, 4096).expect("a page");
    assert_eq!(tag_of(0, &bytes), Some(newest));
    driver.check_usage();
}
