//! What the map costs in memory, by an allocator that counts: at most 16 bytes a page where pages stand densely, 64
//! bytes for an isolated one, and runs cost their place once and a crc a page.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use blockd::store::format::{Loc, Mapping};
use blockd::store::map::Lookup;
use blockd::store::map::base::BaseMap;

thread_local! {
    /// Bytes that this thread has allocated and not freed.
    static BYTES: Cell<isize> = const { Cell::new(0) };
}

/// Counts bytes as the system's allocator hands them out: with 8 bytes of its own each, in steps of 16, at least 24.
struct Counting;

fn charged(size: usize) -> isize {
    (size + 8).next_multiple_of(16).max(32) as isize
}

fn count(bytes: isize) {
    // Threads that end may free after their counter is gone.
    let _ = BYTES.try_with(|counter| counter.set(counter.get() + bytes));
}

// SAFETY: every call goes to the system's allocator unchanged; the counter allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(charged(layout.size()));
        // SAFETY: the caller keeps the contract of `alloc`, which is that of the system's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        count(-charged(layout.size()));
        // SAFETY: as above; the block came from `alloc`, so from the system's allocator.
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Bytes a page of a map with these pages, mapped in this order.
fn bytes_per_page(pages: impl Iterator<Item = (u64, Mapping)>) -> f64 {
    let before = BYTES.get();
    let mut map = BaseMap::default();
    for (page, mapping) in pages {
        map.set(page, mapping);
    }
    let count = map.page_count();
    assert!(count > 10_000);
    let bytes = BYTES.get() - before;
    let first = map.mappings().next().expect("a page");
    assert_eq!(map.lookup(first.0), Lookup::Mapped(first.1));
    // What evictions are decided by is not far from the truth; the list of dirty leaves is not in it.
    let own = map.bytes() as f64;
    assert!((0.6..=1.3).contains(&(own / bytes as f64)), "the map says {own}, it is {bytes}");
    drop(map);
    assert!(BYTES.get() - before < 1024, "all is freed");
    bytes as f64 / count as f64
}

/// Some place; no two follow one another.
fn scattered(i: u64) -> Mapping {
    let mixed = i.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    Mapping {
        loc: Loc { segment: (mixed >> 40) as u32 & 0xffff, offset: (mixed >> 20) as u16 & 0xfff },
        crc: i as u32,
    }
}

/// A permutation of 0..2^bits.
fn shuffled(i: u64, bits: u32) -> u64 {
    let mask = (1 << bits) - 1;
    let mut x = i.wrapping_mul(0x9e37_79b1) & mask;
    x ^= x >> (bits / 2);
    x.wrapping_mul(0x85eb_ca6b) & mask
}

#[test]
fn dense_pages_at_scattered_places_cost_16_bytes_each_at_most() {
    for (order, bits) in [("in order", 17), ("at random", 17)] {
        let pages = (0..1u64 << bits).map(|i| if order == "in order" { i } else { shuffled(i, bits) });
        let bytes = bytes_per_page(pages.map(|page| (page, scattered(page))));
        println!("dense, scattered places, written {order}: {bytes:.1} bytes a page");
        assert!(bytes <= 16.0, "{bytes:.1} bytes a page, written {order}");
    }
}

#[test]
fn isolated_pages_cost_64_bytes_each_at_most() {
    let bits = 16;
    for order in ["in order", "at random"] {
        let units = (0..1u64 << bits).map(|i| if order == "in order" { i } else { shuffled(i, bits) });
        // The list of dirty leaves, which lasts from one checkpoint to the next, is part of it.
        let bytes = bytes_per_page(units.map(|unit| (unit * (1 << 15) + unit % 100, scattered(unit))));
        println!("isolated, written {order}: {bytes:.1} bytes a page");
        assert!(bytes <= 64.0, "{bytes:.1} bytes a page, written {order}");
    }
}

#[test]
fn runs_cost_their_place_once_and_a_crc_a_page() {
    for (run, most) in [(4u64, 12.0), (32, 6.0), (256, 5.0)] {
        let place = move |page: u64| {
            let place = shuffled(page / run, 12);
            let loc = Loc { segment: place as u32, offset: (page % run) as u16 };
            (page, Mapping { loc, crc: page as u32 })
        };
        let bytes = bytes_per_page((0..(1u64 << 17).min(run << 12)).map(place));
        println!("runs of {run} pages: {bytes:.1} bytes a page");
        assert!(bytes <= most, "{bytes:.1} bytes a page in runs of {run}");
    }
}
