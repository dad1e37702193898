//! Hostile streams to the real daemon: it lives, its memory is bounded, and the image is whole afterwards.

use std::os::unix::net::UnixStream;
use std::process::Stdio;

use blockd::device::VolumeKind;
use blockd::volume::{OpenOptions, Volume};

use super::pieces::{option_piece, request_piece};
use super::{drive, runner};
use crate::common::daemon::Daemon;
use crate::daemon::place;
use crate::peer::{Peer, READ, WRITE, long_request, request};

/// Most memory that the daemon ever had, in KiB.
fn peak_kib(daemon: &Daemon) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{}/status", daemon.child.id())).unwrap();
    let line = text.lines().find(|line| line.starts_with("VmHWM:")).expect("VmHWM");
    line.split_whitespace().nth(1).and_then(|number| number.parse().ok()).expect("a number")
}

#[test]
fn the_daemon_outlives_hostile_streams_in_bounded_memory() {
    let place = place(VolumeKind::Raw);
    let log = place.image.with_extension("log");
    let mut command = Daemon::command(&place.image, &place.socket);
    command.stderr(Stdio::from(std::fs::File::create(&log).unwrap()));
    let daemon = Daemon::run(&mut command);
    assert_eq!(Peer::transmitting(&place.socket).write(0, 0, &[7; 4096]), 0);
    let before = peak_kib(&daemon);
    let pieces = (
        0..4,
        proptest::collection::vec(option_piece(), 0..10),
        proptest::collection::vec(request_piece(), 0..24),
    );
    runner(1)
        .run(&pieces, |(stage, options, requests)| {
            let (options, requests) = (options.concat(), requests.concat());
            match stage {
                0 => drive(Peer::transmitting(&place.socket).0, &requests),
                1 => drive(Peer::structured(&place.socket).0, &requests),
                2 => drive(Peer::extended(&place.socket).0, &requests),
                _ => {
                    let mut peer = Peer::greeted(&place.socket);
                    peer.put(&3u32.to_be_bytes());
                    drive(peer.0, &[options, requests].concat())
                }
            };
            Ok(())
        })
        .unwrap();
    // Announced, never sent: many connections, each with the largest payload it may announce.
    let held: Vec<UnixStream> = (0..24)
        .map(|i| {
            let mut peer = Peer::extended(&place.socket);
            peer.put(&long_request(32, WRITE, 1, 0, 32 << 20));
            let mut other = Peer::transmitting(&place.socket);
            if i < 12 {
                other.put(&request(0, READ, 1, 0, 16 << 20));
            }
            peer.0
        })
        .collect();
    drop(held);
    let more = peak_kib(&daemon).saturating_sub(before);
    // Streams come one at a time, with 64 MiB of payload at most; pages that nobody touched do not count.
    assert!(more < 512 << 10, "{more} KiB more at the peak");
    assert_eq!(Peer::transmitting(&place.socket).read(0, 512).len(), 512);
    assert_eq!(daemon.stop(), Some(0));
    let said = std::fs::read_to_string(&log).unwrap();
    assert!(!said.contains("panicked"), "{said}");
    Volume::open(&place.image, &OpenOptions::default()).expect("the image is whole").shutdown().unwrap();
}
