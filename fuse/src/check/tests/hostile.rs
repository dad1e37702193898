//! Volumes spoiled at random above the store's checksums: a check always ends and says what is wrong, a repair leaves a
//! volume that is clean, and the file system logic gives errors on all of it, never a panic.

use std::sync::Arc;

use layout::addr::PAGE;
use layout::error::Error;
use layout::fs::{Fs, RenameFlags, SetAttr, XattrFlags};
use layout::inode::{Ino, Kind, ROOT_INO};
use layout::page_store::PageStore;
use layout::testing::mount;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::super::{Mode, Stop};
use super::check;
use super::image::{self, NOW, new};
use crate::engine::ram::RamDevice;

/// Cases of a usual run; VEXFS_FSCK_CASES says otherwise.
const CASES: u64 = 600;
/// Reads, writes and discards of one walk: more is a loop.
const CALLS_MAX: u64 = 3_000_000;

fn cases() -> std::ops::Range<u64> {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let first = number("VEXFS_TEST_SEED").unwrap_or(1);
    first..first + number("VEXFS_FSCK_CASES").unwrap_or(CASES)
}

fn spoil(device: &RamDevice, rng: &mut StdRng, pages: &[u64]) {
    // Metadata is few pages among many: each region gets its turn.
    let low = rng.random_range(0..3) > 0;
    let some: Vec<u64> = pages.iter().copied().filter(|page| (*page < 1 << 45) == low).collect();
    let pages = if some.is_empty() { pages } else { &some };
    let number = pages[rng.random_range(0..pages.len())];
    let mut page = device.page(number);
    match rng.random_range(0..9) {
        0 => page.fill(0),
        1 => page = device.page(pages[rng.random_range(0..pages.len())]),
        2 => rng.fill(&mut page[..]),
        3 => {
            let at = rng.random_range(0..PAGE / 8) * 8;
            let value =
                [0, 1, 2, 3, 7, 64, 255, 1 << 20, 1 << 35, 1 << 48, u64::MAX][rng.random_range(0..11)];
            page[at..at + 8].copy_from_slice(&u64::to_le_bytes(value));
        }
        4 => {
            let at = rng.random_range(0..PAGE / 4) * 4;
            let value = [0u32, 1, 2, 16, 255, 0xffff, u32::MAX][rng.random_range(0..7)];
            page[at..at + 4].copy_from_slice(&value.to_le_bytes());
        }
        5 => {
            let at = rng.random_range(0..300);
            page[at] = rng.random();
        }
        6 => {
            // Two fields change places.
            let (a, b) = (rng.random_range(0..PAGE / 8) * 8, rng.random_range(0..PAGE / 8) * 8);
            for i in 0..8 {
                page.swap(a + i, b + i);
            }
        }
        _ => {
            let at = rng.random_range(0..PAGE);
            page[at] ^= 1 << rng.random_range(0..8);
        }
    }
    if number == 0 && rng.random_range(0..4) > 0 {
        page[12..16].fill(0);
        let crc = crc32c(&page);
        page[12..16].copy_from_slice(&crc.to_le_bytes());
    }
    device.put(number, &page);
}

/// RFC 3720's polynomial, bit by bit.
fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0u32, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ (0x82f6_3b78 & (crc & 1).wrapping_neg()))
    })
}

/// Every operation on everything that can be found; only that it ends counts.
pub fn walk<P: PageStore>(fs: &mut Fs<P>, rng: &mut StdRng) {
    let (mut inodes, mut names) = (Vec::new(), Vec::new());
    for number in 0..fs.superblock().next_ino.min(500) {
        let ino = Ino(number);
        let mut out = vec![0; 70_000];
        let Ok(inode) = fs.inode(ino) else { continue };
        inodes.push(ino);
        let _ = (fs.path(ino, ROOT_INO, &mut out), fs.parent(ino), fs.readlink(ino, &mut out));
        let _ = (fs.collection_of(ino), fs.first_vector(ino, &mut out), fs.map(&inode, inode.size));
        let _ = fs.listxattr(ino, &mut |name| assert!(!name.is_empty()));
        for name in [&b"user.small"[..], b"user.large"] {
            let _ = fs.getxattr(ino, name, &mut out);
        }
        let _ = fs.readdir(ino, 0, &mut |entry| {
            names.push((ino, entry.name.to_vec()));
            names.len() % 500 != 0
        });
        if let Ok(rows) = fs.rows_file(ino) {
            for chunk in 0..rows.chunks().min(8) {
                let _ = fs.row_headers(&rows, chunk).map(drop);
                let _ = fs.chunk_vectors(&rows, chunk, &mut out[..96]);
            }
        }
    }
    for (dir, name) in &names {
        let _ = fs.lookup(*dir, name);
    }
    for i in 0..40 {
        let (Some((dir, name)), Some((to, other))) = (
            names.get(rng.random_range(0..names.len().max(1))),
            names.get(rng.random_range(0..names.len().max(1))),
        ) else {
            return;
        };
        let ino = inodes[rng.random_range(0..inodes.len())];
        let fresh = format!("{i:0>200}").into_bytes();
        let _ = match rng.random_range(0..13) {
            0 => fs.create(*dir, &fresh, new(Kind::File), NOW).map(drop),
            1 => fs.create(*dir, &fresh, new(Kind::Dir), NOW).map(drop),
            2 => fs.symlink(*dir, &fresh, &[b'x'; 400], 0, 0, NOW).map(drop),
            3 => fs.link(ino, *dir, &fresh, NOW).map(drop),
            4 => fs.unlink(*dir, name, NOW).map(drop),
            5 => fs.rmdir(*dir, name, NOW).map(drop),
            6 => fs.rename(*dir, name, *to, other, RenameFlags::EXCHANGE, NOW).map(drop),
            7 => fs.rename(*dir, name, *to, &fresh, RenameFlags::empty(), NOW).map(drop),
            8 => fs
                .setattr(ino, SetAttr { size: Some(1 << rng.random_range(0..49)), ..SetAttr::default() }, NOW)
                .map(drop),
            9 => fs.setxattr(ino, b"user.a", &[1; 3000], XattrFlags::empty(), NOW).map(drop),
            10 => fs.removexattr(ino, b"user.small", NOW).map(drop),
            11 => fs.kill_rows(ino).map(drop),
            _ => fs.prepare_write(ino, 1u64 << rng.random_range(0..48), 9000).map(drop),
        };
    }
    let _ = fs.reap_orphans(u64::MAX);
}

fn mounted_walk(device: &RamDevice, rng: &mut StdRng) {
    let store = image::store(device);
    store.set_fault(Some((CALLS_MAX, Error::Io(layout::addr::PageNo(0)))));
    if let Ok(mut fs) = mount(&store) {
        walk(&mut fs, rng);
    }
    assert!(store.calls() < CALLS_MAX, "a walk of {} calls", store.calls());
}

fn one_case(good: &Arc<RamDevice>, seed: u64) -> &'static str {
    let rng = &mut StdRng::seed_from_u64(seed);
    let device = good.fork();
    let pages = device.mapped();
    for _ in 0..rng.random_range(1..4) {
        spoil(&device, rng, &pages);
    }
    mounted_walk(&device, rng);
    let (looked, seen) = check(&device, Mode::Look);
    let looked = match looked {
        Ok(outcome) => outcome,
        Err(Stop::Unusable(why)) => {
            assert!(!why.contains("fault of fsck"), "seed {seed}: {why}");
            assert!(matches!(check(&device, Mode::Repair).0, Err(Stop::Unusable(_))), "seed {seed}");
            return "unusable";
        }
        Err(other) => panic!("seed {seed}: {other}"),
    };
    assert!(matches!(looked.exit_code(), 0 | 4), "seed {seed}");
    let (repaired, notes) = check(&device, Mode::Repair);
    let repaired = repaired.unwrap_or_else(|e| panic!("seed {seed}: {e}\n{}", notes.text()));
    assert_eq!(looked.findings > 0, repaired.findings > 0, "seed {seed}: both find something, or none does");
    let (again, notes) = check(&device, Mode::Look);
    let again = again.unwrap_or_else(|e| panic!("seed {seed}: {e}"));
    assert_eq!(again.findings, 0, "seed {seed}: after the repair\n{}", notes.text());
    let gaps_only = notes.codes().iter().all(|code| *code == "number-gap");
    assert!(gaps_only, "seed {seed}: after the repair\n{}", notes.text());
    let fs = mount(&image::store(&device)).unwrap_or_else(|e| panic!("seed {seed}: {e}"));
    // The checker of the file system logic's own tests agrees.
    let checked = if again.notes == 0 { layout::testing::check(&fs) } else { Ok(()) };
    assert!(checked.is_ok(), "seed {seed}: {checked:?}\nfound at first:\n{}", seen.text());
    mounted_walk(&device, rng);
    if repaired.findings > 0 { "repaired" } else { "unharmed" }
}

#[test]
fn spoiled_volumes_are_checked_repaired_and_clean_afterwards() {
    let good = [image::device(image::rich(20).store()), image::device(image::rich(700).store())];
    let mut counts = std::collections::BTreeMap::new();
    for seed in cases() {
        let which = usize::from(seed.is_multiple_of(8));
        *counts.entry(one_case(&good[which], seed)).or_insert(0) += 1;
    }
    eprintln!("{counts:?}");
    assert!(counts.get("repaired").is_some_and(|n| n * 3 > cases().count()), "{counts:?}");
}
