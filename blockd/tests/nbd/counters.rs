//! What clients ask is counted: by kind, with its bytes, its failures and how long it took.

use blockd::device::{Device, IoError, IoOp, VolumeKind, blocking};
use blockd::nbd::client::{ConnectOptions, NbdClient, Target};
use blockd::stats::{Kind, RequestStats};
use blockd::volume::{CreateOptions, OpenOptions, Volume};

use crate::ram::tagged;
use crate::served::Served;

const MIB: u64 = 1 << 20;

fn of(stats: &[RequestStats], kind: Kind) -> (u64, u64, u64) {
    let stats = stats.iter().find(|stats| stats.kind == kind).expect("every kind is there");
    (stats.latency.count(), stats.bytes, stats.errors)
}

#[test]
fn requests_and_what_the_store_did_for_them_are_counted() {
    let dir = tempfile::tempdir().unwrap();
    let (image, socket) = (dir.path().join("image"), dir.path().join("sock"));
    let options = CreateOptions {
        kind: VolumeKind::Raw,
        uuid: uuid::Uuid::from_u128(42),
        size_bytes: 256 * MIB,
        raw_size_bytes: 16 * MIB,
        segment_bytes: 0,
        force: false,
    };
    Volume::create(&image, &options).unwrap();
    let volume = Volume::open(&image, &OpenOptions::default()).unwrap();
    let served = Served::start(&socket, volume.clone());
    let client = NbdClient::connect(&Target::socket(&socket), ConnectOptions::fail_fast()).unwrap();
    let id = client.connect();
    for i in 0..10 {
        blocking(&client, id, IoOp::Write { offset: i * 8192, buf: tagged(i + 1, 8192), fua: false })
            .unwrap();
    }
    let read = |offset| IoOp::Read { offset, buf: blockd::buf::AlignedBuf::zeroed(4096) };
    for i in 0..7 {
        blocking(&client, id, read(i * 4096)).unwrap();
    }
    blocking(&client, id, IoOp::Flush).unwrap();
    blocking(&client, id, IoOp::Trim { offset: 0, len_bytes: 8192, fua: false }).unwrap();
    blocking(&client, id, IoOp::WriteZeroes { offset: MIB, len_bytes: MIB, fua: false, no_hole: false })
        .unwrap();
    // The image is cut short under the daemon: what is read from there fails, and is counted as failed.
    std::fs::OpenOptions::new().write(true).open(&image).unwrap().set_len(8192).unwrap();
    let failed = blocking(&client, id, read(2 * 8192));
    assert!(matches!(failed, Err(IoError::Io(_))), "{failed:?}");

    let stats = volume.counters().stats();
    assert_eq!(of(&stats, Kind::Write), (10, 10 * 8192, 0));
    assert_eq!(of(&stats, Kind::Read), (8, 7 * 4096, 1));
    assert_eq!(of(&stats, Kind::Flush), (1, 0, 0));
    assert_eq!(of(&stats, Kind::Trim), (1, 8192, 0));
    assert_eq!(of(&stats, Kind::WriteZeroes), (1, MIB, 0));
    assert!(stats.iter().filter(|s| s.latency.count() > 0).all(|s| s.latency.sum_ns > 0));

    let store = volume.store_stats();
    assert_eq!(store.user_bytes, 10 * 8192);
    assert!(store.records >= 1 && store.log_bytes > store.user_bytes, "{store:?}");
    assert_eq!(store.read_bytes, 8 * 4096);
    assert!(store.syncs >= 1 && store.read_errors >= 1 && store.moved_bytes == 0, "{store:?}");
    let status = volume.status();
    assert_eq!((status.kind.as_str(), status.size_bytes, status.read_only), ("raw", 16 * MIB, false));
    assert_eq!((status.space.used_bytes, status.space.image_bytes), (9 * 8192, 256 * MIB));
    assert!(status.space.dead_bytes >= 8192, "{status:?}");
    assert!(status.space.available_bytes < status.space.capacity_bytes);
    assert_eq!(status.failure, None);

    drop(client);
    served.stop();
    // The image is too short for a checkpoint to be of use, but the daemon does not notice by itself.
    let _ = volume.shutdown();
}
