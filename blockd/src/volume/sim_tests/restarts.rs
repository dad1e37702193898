//! The two kinds of restart by hand: on to the head of the log for a live session, back to the commit otherwise; and what a
//! dead daemon leaves: its segments, writes that are still under way, commands whose replies were lost.

use layout::addr::{CLASS0_BASE, COMMAND_PAGE};
use layout::command::{CMD_ATTACH, CMD_CLOSE, CMD_FREE_RANGES, CommandReply};
use zerocopy::FromBytes;

use super::corners::{mounted, send, write};
use super::driver::Driver;
use super::{content, tag_of};
use crate::device::{ClientId, IoError};
use crate::storage::Storage;
use crate::storage::sim::{Crash, SimStorage};
use crate::store::map::segments::State;

const FIRST: u64 = CLASS0_BASE >> 12;
const IMAGE_BYTES: usize = 4 << 20;
/// Of the client that comes after the restart.
const AGAIN: ClientId = ClientId(9);

fn tag(driver: &Driver, page: u64) -> u64 {
    let bytes = driver.read(AGAIN, page << 12, 4096).expect("a page can be read");
    tag_of(page, &bytes).expect("a version")
}

/// Writes as the client that came after a restart.
fn put(driver: &mut Driver, page: u64, tag: u64) {
    let ticket = driver.write(AGAIN, page << 12, &content(page, tag), false);
    driver.settle();
    Driver::outcome(&ticket).expect("a write");
}

/// The errno of a command.
fn ask(driver: &mut Driver, op: u32, session: u64, id: u64, ranges: &[(u64, u64)]) -> u32 {
    let ticket = send(driver, AGAIN, op, session, id, ranges);
    driver.settle();
    Driver::outcome(&ticket).expect("the command is answered");
    let page = driver.read(AGAIN, COMMAND_PAGE.byte(), 4096).expect("the reply");
    CommandReply::read_from_bytes(&page).expect("a reply is a page").errno.get()
}

/// A volume with a commit of version 1 of ten pages, and an open epoch with version 2 of five of them.
fn with_open_epoch() -> (Driver, u64) {
    let (mut driver, session) = mounted(1, IMAGE_BYTES);
    for page in FIRST..FIRST + 10 {
        write(&mut driver, page, 1).expect("a write");
    }
    write(&mut driver, 0, 1).expect("a commit");
    let flush = driver.flush();
    driver.settle();
    Driver::outcome(&flush).expect("a flush");
    for page in FIRST..FIRST + 5 {
        write(&mut driver, page, 2).expect("a write");
    }
    (driver, session)
}

fn restarted(driver: &Driver, crash: Crash, boot: u8) -> Driver {
    Driver::open(driver.disk.restart(crash), boot).expect("the store opens")
}

#[test]
fn a_live_session_goes_on_at_the_head_of_the_log() {
    let (driver, session) = with_open_epoch();
    let mut driver = restarted(&driver, Crash::ProcessDeath, 1);
    assert!(matches!(write(&mut driver, FIRST, 3), Err(IoError::Fenced(_))), "nobody is attached yet");
    assert_eq!(ask(&mut driver, CMD_ATTACH, session, 0, &[]), 0);
    for page in FIRST..FIRST + 10 {
        assert_eq!(tag(&driver, page), if page < FIRST + 5 { 2 } else { 1 }, "page {page:#x}");
    }
}

#[test]
fn without_its_mounter_a_volume_goes_back_to_the_commit() {
    // The machine was rebooted; or it was not, and another mounter comes.
    for (crash, boot) in [(Crash::PowerCut, 2), (Crash::ProcessDeath, 2), (Crash::ProcessDeath, 1)] {
        let (driver, session) = with_open_epoch();
        let mut driver = restarted(&driver, crash, boot);
        if boot == 2 {
            assert_eq!(ask(&mut driver, CMD_ATTACH, session, 0, &[]), libc::ESHUTDOWN as u32);
        } else {
            assert_eq!(ask(&mut driver, layout::command::CMD_OPEN, 0, 1, &[]), 0);
        }
        for page in FIRST..FIRST + 10 {
            assert_eq!(tag(&driver, page), 1, "page {page:#x} after {crash:?} in boot {boot}");
        }
    }
}

#[test]
fn each_start_is_an_incarnation_of_its_own_and_takes_fresh_segments() {
    let (mut driver, session) = with_open_epoch();
    for start in 0..5u64 {
        let heads = |driver: &Driver| -> Vec<usize> {
            let maps = driver.store().maps.read();
            let open = maps.segments.all().iter().enumerate().filter(|(_, s)| s.state == State::Open);
            open.map(|(i, _)| i).collect()
        };
        let (before, incarnation) = (heads(&driver), driver.core.incarnation);
        let image = driver.disk.image();
        driver = restarted(&driver, Crash::ProcessDeath, 1);
        assert_eq!(driver.core.incarnation, incarnation + 1);
        let after = heads(&driver);
        assert!(after.iter().all(|head| !before.contains(head)), "start {start}: {before:?}, then {after:?}");
        assert_eq!(ask(&mut driver, CMD_ATTACH, session, 0, &[]), 0);
        for page in FIRST..FIRST + 5 {
            put(&mut driver, page, 10 + start);
        }
        let now = driver.disk.image();
        for head in before {
            let range = (64 << 10) * (head + 1)..(64 << 10) * (head + 2);
            let blocks = image[range.clone()].chunks(4096).zip(now[range].chunks(4096));
            // Given back, or as it was; never written.
            let same = |(a, b): (&[u8], &[u8])| a == b || b.iter().all(|&byte| byte == 0xdd);
            assert!(
                blocks.into_iter().all(same),
                "start {start} wrote into segment {head} of the one before"
            );
        }
    }
}

#[test]
fn writes_of_a_dead_daemon_that_land_late_are_nothing() {
    let (mut driver, session) = with_open_epoch();
    for page in FIRST..FIRST + 5 {
        driver.write(super::corners::CLIENT, page << 12, &content(page, 77), false);
    }
    let died = driver.disk.image();
    driver.settle();
    let landed = driver.disk.image();
    // Its successor starts before they land.
    let mut driver = Driver::open(SimStorage::new(died.clone(), 3), 1).expect("the store opens");
    assert_eq!(ask(&mut driver, CMD_ATTACH, session, 0, &[]), 0);
    put(&mut driver, FIRST + 7, 5);
    let mut late = 0;
    for (i, (a, b)) in died.chunks(4096).zip(landed.chunks(4096)).enumerate() {
        if a != b {
            driver.disk.write_all(i as u64 * 4096, b).expect("a late write");
            late += 1;
        }
    }
    assert!(late >= 6, "a record of five pages was under way, not {late} pages");
    for _ in 0..2 {
        for page in FIRST..FIRST + 10 {
            let expected = match page - FIRST {
                0..5 => 2,
                7 => 5,
                _ => 1,
            };
            assert_eq!(tag(&driver, page), expected, "page {page:#x}");
        }
        driver.check_usage();
        driver = restarted(&driver, Crash::ProcessDeath, 1);
        assert_eq!(ask(&mut driver, CMD_ATTACH, session, 0, &[]), 0);
    }
}

#[test]
fn a_command_sent_again_to_the_next_daemon_is_not_carried_out_again() {
    let (mut driver, session) = with_open_epoch();
    let ranges = [(FIRST, 10)];
    let freed = send(&mut driver, super::corners::CLIENT, CMD_FREE_RANGES, session, 2, &ranges);
    driver.settle();
    Driver::outcome(&freed).expect("the command");
    write(&mut driver, FIRST + 3, 8).expect("a write");
    // The reply was lost with the daemon.
    let mut driver = restarted(&driver, Crash::ProcessDeath, 1);
    assert_eq!(ask(&mut driver, CMD_ATTACH, session, 0, &[]), 0);
    assert_eq!(ask(&mut driver, CMD_FREE_RANGES, session, 2, &ranges), 0);
    assert_eq!(tag(&driver, FIRST + 3), 8, "what was written after the command stays");
    assert_eq!(tag(&driver, FIRST), 0);
    // CLOSE too: its session is over, and its reply is kept.
    assert_eq!(ask(&mut driver, CMD_CLOSE, session, 3, &[]), 0);
    let mut driver = restarted(&driver, Crash::PowerCut, 2);
    assert_eq!(ask(&mut driver, CMD_CLOSE, session, 3, &[]), 0);
    assert_eq!(ask(&mut driver, CMD_CLOSE, session, 4, &[]), libc::ESHUTDOWN as u32);
    assert_eq!(tag(&driver, FIRST), 1, "what was not committed is gone");
}
