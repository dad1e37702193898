//! Streams of hostile clients: the server lives, and serves the next one.

use std::sync::Arc;

use blockd::device::Device;
use blockd::nbd::server::{Export, Exports, Limits, Listener, SnapshotExports};
use proptest::prelude::*;

use super::pieces::{option_piece, request_piece};
use super::{drive, runner};
use crate::peer::Peer;
use crate::ram::Ram;
use crate::served::{Served, socket};

#[test]
fn random_bytes_never_harm_the_server() {
    let (_dir, path) = socket();
    let (ram, snapshot) = (Ram::new(1 << 20), Ram::new(1 << 20));
    let exports = Exports::single(Export::new("disk", ram.clone()).unwrap());
    exports.add(Export::new("ro", ram.clone()).unwrap().read_only()).unwrap();
    exports.set_default("disk");
    let opened = snapshot.clone();
    exports.add_source(SnapshotExports::new(
        "disk",
        move |name| match name {
            "snap" => Ok(Some(opened.clone() as Arc<dyn Device>)),
            "bad" => Err("it cannot be read".into()),
            _ => Ok(None),
        },
        || vec!["snap".into(), "bad".into()],
    ));
    let (_served, _) = Served::listening(vec![Listener::unix(&path)], exports, Limits::default());
    let pieces = (
        0..4,
        proptest::collection::vec(option_piece(), 0..10),
        proptest::collection::vec(request_piece(), 0..24),
    );
    runner(1)
        .run(&pieces, |(stage, options, requests)| {
            let (options, requests) = (options.concat(), requests.concat());
            match stage {
                0 => drive(Peer::transmitting(&path).0, &requests),
                1 => drive(Peer::structured(&path).0, &requests),
                2 => drive(Peer::extended(&path).0, &requests),
                _ => {
                    let mut peer = Peer::greeted(&path);
                    peer.put(&3u32.to_be_bytes());
                    drive(peer.0, &[options, requests].concat())
                }
            };
            ram.wait_connected(0);
            snapshot.wait_connected(0);
            Ok(())
        })
        .unwrap();
    assert_eq!(Peer::transmitting(&path).read(0, 512).len(), 512);
}

#[test]
fn a_greeting_of_random_bytes_ends_the_connection() {
    let (_dir, path) = socket();
    let ram = Ram::new(1 << 20);
    let _served = Served::start(&path, ram.clone());
    let bytes = proptest::collection::vec(any::<u8>(), 0..200);
    runner(1)
        .run(&bytes, |bytes| {
            let answer = drive(Peer::greeted(&path).0, &bytes);
            prop_assert!(answer.len() < 64 << 10);
            ram.wait_connected(0);
            Ok(())
        })
        .unwrap();
    assert_eq!(Peer::transmitting(&path).read(0, 512).len(), 512);
}
