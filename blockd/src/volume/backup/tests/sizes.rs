//! Volumes that get another size between snapshots, and streams of them.

use std::io::Read;
use std::sync::mpsc;

use super::*;

/// All of a device is as it should be, and it ends where it should.
fn check_whole(device: &dyn Device, plain: &Plain, pages: u64) {
    assert_eq!(device.info().size_bytes, pages * PAGE as u64);
    check(device, plain, 0..pages);
    let past = IoOp::Read { offset: pages * PAGE as u64, buf: AlignedBuf::zeroed(PAGE) };
    blocking(device, ClientId(77), past).expect_err("it is past the end");
}

#[test]
fn a_snapshot_keeps_its_size_and_a_rollback_gives_it_back() {
    let mut source = Source::new(VolumeKind::Raw, 21);
    source.change();
    source.write_end(1);
    let large = source.snapshot("large");
    source.resize(2000);
    source.write_end(2);
    let small = source.snapshot("small");
    source.resize(2500);
    source.write_end(3);
    check_whole(&*source.volume, &source.plain, 2500);
    for (name, state, pages) in [("large", &large, RAW_PAGES), ("small", &small, 2000)] {
        check_whole(&*source.volume.open_snapshot(name).expect("it is there"), state, pages);
    }
    source.volume.snapshot_rollback("small", |_| {}).expect("it goes back");
    check_whole(&*source.volume, &small, 2000);
    source.reopen();
    check_whole(&*source.volume, &small, 2000);
    // What lay beyond does not come back.
    source.resize(2600);
    check_whole(&*source.volume, &small, 2600);
    source.volume.snapshot_rollback("large", |_| {}).expect("it goes back");
    check_whole(&*source.volume, &large, RAW_PAGES);
    source.reopen();
    check_whole(&*source.volume, &large, RAW_PAGES);
    (source.pages, source.plain) = (RAW_PAGES, large.clone());
    source.resize(2000);
    source.resize(RAW_PAGES);
    let cut: Plain = large.into_iter().filter(|(page, _)| *page < 2000).collect();
    check_whole(&*source.volume, &cut, RAW_PAGES);
}

#[test]
fn streams_carry_the_size_of_each_snapshot() {
    let mut source = Source::new(VolumeKind::Raw, 22);
    source.change();
    source.write_end(1);
    let mut states = vec![("a", source.snapshot("a"), RAW_PAGES)];
    source.resize(2000);
    source.change();
    states.push(("b", source.snapshot("b"), 2000));
    source.resize(4000);
    source.write_end(2);
    states.push(("c", source.snapshot("c"), 4000));
    source.resize(1000);
    let target = source.target();
    let full = source.send(None, "a");
    create_target(&target, Receiver::new(&full[..]).expect("a header").header(), 0).expect("a target");
    let volume = Volume::open(&target, &options()).expect("it opens");
    receive(&volume, &full).expect("a full stream");
    for pair in states.windows(2) {
        let [(from, before, pages_before), (to, after, pages_after)] = pair else { continue };
        let stream = source.send(Some(from), to);
        receive(&volume, &stream[..stream.len() - 1]).expect_err("it is not whole");
        check_whole(&*volume, before, *pages_before);
        receive(&volume, &stream).expect("it continues");
        check_whole(&*volume, after, *pages_after);
    }
    volume.shutdown().expect("a clean end");
    let volume = Volume::open(&target, &options()).expect("it opens");
    for (name, state, pages) in &states {
        check_whole(&*volume.open_snapshot(name).expect("it was received"), state, *pages);
    }
    check_whole(&*volume, &states[2].1, 4000);
}

/// Gives all of a stream but for its last byte, and says then that it has.
struct AllButTheLast<'a> {
    stream: &'a [u8],
    paused: mpsc::Sender<()>,
    go_on: mpsc::Receiver<()>,
}

impl Read for AllButTheLast<'_> {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        if self.stream.len() == 1 {
            let _ = self.paused.send(());
            let _ = self.go_on.recv();
            return Ok(0);
        }
        let n = buf.len().min(self.stream.len() - 1);
        buf[..n].copy_from_slice(&self.stream[..n]);
        self.stream = &self.stream[n..];
        Ok(n)
    }
}

#[test]
fn a_receive_that_is_broken_off_leaves_the_size_that_the_volume_had() {
    for (before, after) in [(2000, 3000), (3000, 2000)] {
        let mut source = Source::new(VolumeKind::Raw, 24);
        source.pages = 2000;
        source.change();
        source.resize(before);
        let a = source.snapshot("a");
        source.resize(after);
        source.pages = 2000;
        source.change();
        let b = source.snapshot("b");
        let (full, ab) = (source.send(None, "a"), source.send(Some("a"), "b"));
        let (target, copy) = (source.target(), source.dir.path().join("copy.img"));
        create_target(&target, Receiver::new(&full[..]).expect("a header").header(), 0).expect("a target");
        let volume = Volume::open(&target, &options()).expect("it opens");
        receive(&volume, &full).expect("a full stream");
        check_whole(&*volume, &a, before);
        volume.shutdown().expect("a clean end");
        resize_image(&target, after);
        let volume = Volume::open(&target, &options()).expect("it opens");
        let (paused, is_paused) = mpsc::channel();
        let (let_go, go_on) = mpsc::channel();
        std::thread::scope(|scope| {
            let half = AllButTheLast { stream: &ab, paused, go_on };
            let receiving = scope.spawn(|| volume.receive(Receiver::new(half)?, |_| {}));
            is_paused.recv().expect("it is nearly whole");
            // As a machine leaves it that dies now.
            std::fs::copy(&target, &copy).expect("a copy");
            drop(let_go);
            receiving.join().expect("no panic").expect_err("it is not whole");
        });
        check_whole(&*volume, &a, after);
        let read_only = OpenOptions { read_only: true, ..options() };
        for options in [&read_only, &options()] {
            let volume = Volume::open(&copy, options).expect("it opens");
            check_whole(&*volume, &a, after);
            volume.shutdown().expect("a clean end");
        }
        receive(&volume, &ab).expect("it continues");
        check_whole(&*volume, &b, after);
        // This one is gone back to, size and all.
        volume.snapshot_rollback("a", |_| {}).expect("it goes back");
        check_whole(&*volume, &a, before);
    }
}

#[test]
fn a_stream_cannot_leave_anything_beyond_the_size_it_gives() {
    let mut source = Source::new(VolumeKind::Raw, 23);
    source.change();
    source.write_end(1);
    let a = source.snapshot("a");
    source.resize(2000);
    source.snapshot("b");
    let (full, ab) = (source.send(None, "a"), source.send(Some("a"), "b"));
    let target = source.target();
    create_target(&target, Receiver::new(&full[..]).expect("a header").header(), 0).expect("a target");
    let volume = Volume::open(&target, &options()).expect("it opens");
    receive(&volume, &full).expect("a full stream");
    let header = Receiver::new(&ab[..]).expect("a header").header().clone();
    let beyond = Frame::Data { first: 2000, bytes: vec![1; PAGE] };
    let error = receive(&volume, &forged(&header, &[beyond])).expect_err("its own size says no");
    assert!(matches!(&error, BackupError::Stream(why) if why.contains("no volume")), "{error}");
    check_whole(&*volume, &a, RAW_PAGES);
    // One that does not say that the rest is gone.
    receive(&volume, &forged(&header, &[])).expect("it continues");
    volume.shutdown().expect("a clean end");
    drop(volume);
    resize_image(&target, RAW_PAGES);
    let volume = Volume::open(&target, &options()).expect("it opens");
    let kept: Plain = a.into_iter().filter(|(page, _)| *page < 2000).collect();
    check_whole(&*volume, &kept, RAW_PAGES);
}
