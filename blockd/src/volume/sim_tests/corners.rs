//! Corners that random lives seldom reach: late copies, images full to the brim, commands sent again.

use layout::addr::{CLASS0_BASE, COMMAND_PAGE, MAP_UNIT_PAGES};
use layout::command::{CMD_ATTACH, CMD_FREE_RANGES, CMD_OPEN, COMMAND_MAGIC, Command, CommandReply};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use zerocopy::{FromBytes, FromZeros, IntoBytes};

use super::driver::{Driver, Ticket, new_image};
use super::{content, for_seeds, once_in, tag_of};
use crate::device::{ClientId, IoError, VolumeKind};
use crate::storage::sim::{Crash, SimStorage};
use crate::store::format::checkpoint::{Payload, Root, SegmentUsage};
use crate::store::format::segment::Stream;
use crate::store::format::superblock::{SLOTS, Superblock};
use crate::store::map::Lookup;
use crate::store::map::segments::State;

pub(super) const CLIENT: ClientId = ClientId(1);

/// Sends a command without waiting for it.
pub(super) fn send(
    driver: &mut Driver,
    client: ClientId,
    op: u32,
    session: u64,
    id: u64,
    ranges: &[(u64, u64)],
) -> Ticket {
    let mut command = Command::new_zeroed();
    command.magic = COMMAND_MAGIC;
    command.op = op.into();
    command.session = session.into();
    command.id = id.into();
    command.boot_id = [1; 16];
    command.range_count = (ranges.len() as u32).into();
    for (to, (first, count)) in command.ranges.iter_mut().zip(ranges) {
        to.first_page = (*first).into();
        to.page_count = (*count).into();
    }
    driver.write(client, COMMAND_PAGE.byte(), command.as_bytes(), false)
}

/// A VexFS volume with a session.
pub(super) fn mounted(seed: u64, image_bytes: usize) -> (Driver, u64) {
    let image = new_image(VolumeKind::VexFs, image_bytes, 0);
    let mut driver = Driver::open(SimStorage::new(image, seed), 1).expect("a new store opens");
    let ticket = send(&mut driver, CLIENT, CMD_OPEN, 0, 1, &[]);
    driver.settle();
    Driver::outcome(&ticket).expect("OPEN is carried out");
    let page = driver.read(CLIENT, COMMAND_PAGE.byte(), 4096).expect("the reply");
    let session = CommandReply::read_from_bytes(&page).expect("a reply").session.get();
    (driver, session)
}

pub(super) fn write(driver: &mut Driver, page: u64, tag: u64) -> Result<(), IoError> {
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

#[test]
fn a_full_thin_volume_of_scattered_pages_goes_on() {
    // A leaf of the map for each page: the store's own pages take most of the room.
    let place = |i: u64| i * MAP_UNIT_PAGES;
    for_seeds(8, |seed| {
        let count = 600;
        let image = new_image(VolumeKind::Raw, 2 << 20, place(count) * 4096);
        let mut driver = Driver::open(SimStorage::new(image, seed), 1).expect("a new store opens");
        let mut rng = StdRng::seed_from_u64(seed);
        let mut tags = vec![0; count as usize];
        let mut refused = 0;
        for tag in 1..1500 {
            let i = if tag < 600 { tag } else { rng.random_range(0..count) };
            let at = i as usize;
            if tag > 600 && once_in(&mut rng, 4) {
                let ticket = driver.zero(CLIENT, place(i) * 4096, 4096, false);
                driver.settle();
                Driver::outcome(&ticket).expect("a discard needs no room");
                tags[at] = 0;
            } else {
                match write(&mut driver, place(i), tag) {
                    Ok(()) => tags[at] = tag,
                    Err(IoError::NoSpace) => refused += 1,
                    Err(e) => panic!("write {tag}: {e}"),
                }
            }
            if once_in(&mut rng, 100) {
                let image = driver.disk.image_after(Crash::ProcessDeath);
                driver = Driver::open(SimStorage::new(image, seed + tag), 1).expect("a full store opens");
            }
        }
        assert!(refused > 0, "the image is full at some time");
        for (i, tag) in (0..).zip(&tags) {
            let bytes = driver.read(CLIENT, place(i) * 4096, 4096).expect("a page");
            assert_eq!(tag_of(place(i), &bytes), Some(*tag), "page {i}");
        }
        driver.check_usage();
    });
}

#[test]
fn a_full_file_system_takes_frees_and_commits() {
    for_seeds(4, |seed| {
        let (mut driver, session) = mounted(seed, 2 << 20);
        // Files far apart: a leaf each.
        let place = |i: u64| (CLASS0_BASE >> 12) + i * MAP_UNIT_PAGES;
        let mut id = 1;
        let mut tag = 0;
        for round in 0..4 {
            let mut written = 0;
            loop {
                tag += 1;
                match write(&mut driver, place(written), tag) {
                    Ok(()) => written += 1,
                    Err(IoError::NoSpace) => break,
                    Err(e) => panic!("round {round}, write {written}: {e}"),
                }
                if written % 37 == 0 {
                    write(&mut driver, 0, tag).unwrap_or_else(|e| panic!("round {round}, a commit: {e}"));
                }
            }
            assert!(written > 20, "only {written} scattered pages fit 2 MiB in round {round}");
            write(&mut driver, 0, tag).unwrap_or_else(|e| panic!("round {round}, the commit: {e}"));
            id += 1;
            let ticket = send(&mut driver, CLIENT, CMD_FREE_RANGES, session, id, &[(place(0), 1 << 36)]);
            driver.settle();
            Driver::outcome(&ticket).expect("a full file system can be emptied");
            write(&mut driver, 0, tag).unwrap_or_else(|e| panic!("round {round}, the commit of a free: {e}"));
            driver.check_usage();
        }
    });
}

#[test]
fn a_command_sent_again_is_not_acknowledged_before_it_is_written() {
    for_seeds(20, |seed| {
        let (mut driver, session) = mounted(seed, 4 << 20);
        let again = ClientId(2);
        let ranges = [(CLASS0_BASE >> 12, 10)];
        let first = send(&mut driver, CLIENT, CMD_FREE_RANGES, session, 2, &ranges);
        // The connection breaks, the next one attaches and repeats the command.
        send(&mut driver, again, CMD_ATTACH, session, 0, &[]);
        let second = send(&mut driver, again, CMD_FREE_RANGES, session, 2, &ranges);
        for _ in 0..20 {
            driver.steps(0);
            assert!(second.lock().is_none() || first.lock().is_some(), "acknowledged, and not written yet");
            driver.steps(1);
        }
        driver.settle();
        Driver::outcome(&first).expect("the command");
        Driver::outcome(&second).expect("its repetition");
    });
}

#[test]
fn an_empty_write_at_the_superblock_is_no_commit() {
    let (mut driver, _) = mounted(1, 4 << 20);
    let page = CLASS0_BASE >> 12;
    write(&mut driver, page, 7).expect("a write");
    let epoch = driver.store().maps.read().epoch;
    let ticket = driver.write(CLIENT, 0, &[], false);
    driver.settle();
    Driver::outcome(&ticket).expect("nothing to do");
    assert_eq!(driver.store().maps.read().epoch, epoch);
}

#[test]
fn without_a_boot_id_no_session_survives() {
    let image = new_image(VolumeKind::VexFs, 4 << 20, 0);
    let mut driver = Driver::open(SimStorage::new(image, 1), 0).expect("a new store opens");
    let mut command = Command::new_zeroed();
    command.magic = COMMAND_MAGIC;
    command.op = CMD_OPEN.into();
    command.id = 1.into();
    let ticket = driver.write(CLIENT, COMMAND_PAGE.byte(), command.as_bytes(), false);
    driver.settle();
    Driver::outcome(&ticket).expect("OPEN is carried out");
    let image = driver.disk.image_after(Crash::PowerCut);
    let driver = Driver::open(SimStorage::new(image, 1), 0).expect("the store opens");
    assert_eq!(driver.store().maps.read().session.session(), 0);
}

/// Changes the checkpoint of an image and makes all its checksums right again.
fn forge(image: &mut [u8], change: impl Fn(&mut Root, &mut Payload)) {
    let mut sb = Superblock::decode(&image[..4096]).expect("a superblock");
    let root_at = sb.geometry.byte(sb.root.loc) as usize;
    let mut root = Root::decode(&image[root_at..root_at + 4096]).expect("a root");
    let at = sb.geometry.byte(root.runs[0].at) as usize;
    let mut payload =
        Payload::decode(&root, &image[at..at + root.payload_bytes as usize]).expect("a payload");
    change(&mut root, &mut payload);
    let mut bytes = payload.encode();
    root.payload_bytes = bytes.len() as u64;
    bytes.resize(bytes.len().next_multiple_of(4096), 0);
    image[at..at + bytes.len()].copy_from_slice(&bytes);
    root.runs[0].crc = crc32c::crc32c(&bytes);
    root.encode_into(&mut image[root_at..root_at + 4096]);
    sb.root.crc = crc32c::crc32c(&image[root_at..root_at + 4096]);
    for slot in SLOTS {
        image[slot as usize..slot as usize + 4096].copy_from_slice(&sb.encode());
    }
}

#[test]
fn a_forged_checkpoint_is_refused() {
    type Change = fn(&mut Root, &mut Payload);
    let changes: [(&str, Change); 8] = [
        ("next sequence", |root, _| root.next_seq = 0),
        ("next sequence", |root, _| root.next_seq = u64::MAX),
        ("next use number", |root, _| root.next_use_seq = u64::MAX),
        ("epoch", |root, _| root.epoch = u64::MAX),
        ("live pages", |_, payload| payload.segments[0].live_pages = u32::MAX),
        ("used pages", |_, payload| payload.segments[0].used_pages = u32::MAX),
        ("pages of the checkpoint payload", |root, _| root.runs[0].pages = u32::MAX),
        ("pages of the checkpoint payload", |root, _| root.runs.push(root.runs[0])),
    ];
    for (i, (what, change)) in changes.into_iter().enumerate() {
        let mut image = new_image(VolumeKind::Raw, 2 << 20, 64 * 4096);
        forge(&mut image, change);
        let Err(e) = Driver::open(SimStorage::new(image, 1), 1) else { panic!("change {i} is taken") };
        assert!(e.to_string().contains(what), "change {i}: {e}");
    }
}

#[test]
fn a_segment_whose_live_pages_are_a_lie_is_not_chosen_for_ever() {
    let mut image = new_image(VolumeKind::Raw, 2 << 20, 64 * 4096);
    forge(&mut image, |_, payload| {
        let lie = SegmentUsage { stream: Some(Stream::User), used_pages: 1, live_pages: 1, use_seq: 1 };
        payload.segments[5..].fill(lie);
    });
    let mut driver = Driver::open(SimStorage::new(image, 1), 1).expect("its parts are well-formed");
    for _ in 0..200 {
        if !driver.clean() {
            return;
        }
    }
    panic!("cleaning does not end");
}
