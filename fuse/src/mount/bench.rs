//! What the operations cost below the FUSE adapter, over a device in RAM. Run it alone:
//! `cargo test --release -p vexfs-fuse --lib -- --ignored cost_of_operations --nocapture`.

use std::time::Duration;

use blockd::device::Device;
use layout::fs::{Ino, NewInode, SetAttr};
use layout::inode::{Kind, ROOT_INO};

use super::Mounted;
use super::tests::{formatted, mounted};

const DIRS: u32 = 20;
const FILES: u32 = 1000;

/// What this thread has had of a processor; other processes do not count.
fn processor_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec.cast_unsigned(), u32::try_from(time.tv_nsec).unwrap_or(0))
}

/// Runs `f` for each file; tells the time of one.
fn measure(what: &str, m: &Mounted, mut f: impl FnMut(u32, u32)) {
    let mut spent = Duration::ZERO;
    for dir in 0..DIRS {
        let begin = processor_time();
        (0..FILES).for_each(|file| f(dir, file));
        spent += processor_time() - begin;
        if dir % 5 == 4 {
            m.sync().unwrap();
        }
    }
    println!("{what:>12}: {:>6} ns", spent.as_nanos() / u128::from(DIRS * FILES));
}

#[test]
#[ignore = "a measurement"]
fn cost_of_operations() {
    let device = formatted();
    let m = mounted(device as std::sync::Arc<dyn Device>);
    let new = |kind| NewInode { kind, perm: 0o755, uid: 0, gid: 0, rdev: 0, umask: 0 };
    let dir = |d: u32| m.create(ROOT_INO, format!("dir{d}").as_bytes(), new(Kind::Dir), false).unwrap().ino;
    let dirs: Vec<Ino> = (0..DIRS).map(dir).collect();
    let names: Vec<Vec<u8>> = (0..FILES).map(|i| format!("file number {i}").into_bytes()).collect();
    let mut files = vec![ROOT_INO; (DIRS * FILES) as usize];
    let at = |d: u32, f: u32| (d * FILES + f) as usize;
    measure("create", &m, |d, f| {
        files[at(d, f)] = m.create(dirs[d as usize], &names[f as usize], new(Kind::File), false).unwrap().ino;
    });
    measure("lookup", &m, |d, f| {
        m.lookup(dirs[d as usize], &names[f as usize]).unwrap();
    });
    measure("getattr", &m, |d, f| {
        m.inode(files[at(d, f)]).unwrap();
    });
    let set = SetAttr { perm: Some(0o600), ..SetAttr::default() };
    measure("setattr", &m, |d, f| {
        m.setattr(files[at(d, f)], set, false).unwrap();
    });
    let bytes = vec![7; 4096];
    measure("write 4 KiB", &m, |d, f| m.write(files[at(d, f)], 0, &bytes, false).unwrap());
    measure("read 4 KiB", &m, |d, f| {
        m.read(files[at(d, f)], 0, 4096).unwrap();
    });
    measure("rename", &m, |d, f| {
        let new_name = format!("new name {f}");
        let (dir, old) = (dirs[d as usize], &names[f as usize]);
        m.rename((dir, old), (dir, new_name.as_bytes()), layout::fs::RenameFlags::empty()).unwrap();
    });
    measure("unlink", &m, |d, f| {
        m.unlink(dirs[d as usize], format!("new name {f}").as_bytes()).unwrap();
    });
}
