//! Ordinary file operations on a real mount, with the store in the process.

mod common;

use std::collections::BTreeSet;
use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use common::{Bench, can_mount};

const SIZE: u64 = 512 << 20;

fn rename_with(from: &Path, to: &Path, flags: u32) -> std::io::Result<()> {
    let flags = rustix::fs::RenameFlags::from_bits_retain(flags);
    Ok(rustix::fs::renameat_with(rustix::fs::CWD, from, rustix::fs::CWD, to, flags)?)
}

fn seek(file: &File, at: i64, whence: i32) -> std::io::Result<i64> {
    // SAFETY: lseek takes no pointers; the descriptor is open for the call.
    let found = unsafe { libc::lseek(file.as_raw_fd(), at, whence) };
    if found < 0 { Err(std::io::Error::last_os_error()) } else { Ok(found) }
}

#[test]
fn a_tree_copied_in_is_equal_after_a_remount() {
    if !can_mount() {
        return;
    }
    let bench = Bench::new(SIZE);
    let tree = bench.beside("tree");
    for d in 0..20 {
        let dir = tree.join(format!("dir{d}"));
        fs::create_dir_all(&dir).unwrap();
        for f in 0..30u64 {
            let path = dir.join(format!("file{f}"));
            fs::write(&path, vec![f as u8; (f * 977 % 20_000) as usize]).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o400 + (f as u32 % 8) * 8)).unwrap();
        }
        std::os::unix::fs::symlink(format!("dir{d}/file1"), dir.join("link")).unwrap();
        fs::hard_link(dir.join("file2"), dir.join("second")).unwrap();
    }
    let xattr = vexfs_harness::command("setfattr")
        .args(["-n", "user.color", "-v", "green"])
        .arg(tree.join("dir0/file3"))
        .status()
        .is_ok_and(|s| s.success());

    let mount = bench.mount("");
    assert!(
        vexfs_harness::command("cp").arg("-a").arg(&tree).arg(bench.path("copy")).status().unwrap().success()
    );
    mount.unmount();
    let mount = bench.mount("ro");
    let diff = vexfs_harness::command("diff")
        .args(["-r", "--no-dereference"])
        .arg(&tree)
        .arg(bench.path("copy"))
        .status();
    assert!(diff.unwrap().success(), "contents differ");
    for d in 0..20 {
        for entry in fs::read_dir(tree.join(format!("dir{d}"))).unwrap() {
            let entry = entry.unwrap();
            let here = fs::symlink_metadata(entry.path()).unwrap();
            let there = bench.path("copy").join(format!("dir{d}")).join(entry.file_name());
            let there = fs::symlink_metadata(there).unwrap();
            let facts = |m: &fs::Metadata| (m.mode(), m.nlink(), m.uid(), m.gid(), m.mtime(), m.mtime_nsec());
            assert_eq!(facts(&here), facts(&there), "{:?}", entry.path());
        }
    }
    if xattr {
        let got = run_out(
            vexfs_harness::command("getfattr")
                .args(["-n", "user.color", "--only-values"])
                .arg(bench.path("copy/dir0/file3")),
        );
        assert_eq!(got, "green");
    }
    assert!(fs::write(bench.path("new"), "x").is_err(), "a read-only mount takes no writes");
    mount.unmount();
}

fn run_out(command: &mut Command) -> String {
    String::from_utf8(common::run(command).stdout).unwrap()
}

#[test]
fn random_writes_reads_and_truncates_agree_with_a_model() {
    if !can_mount() {
        return;
    }
    let bench = Bench::new(SIZE);
    let mut mount = bench.mount("commit=1");
    let mut model: Vec<u8> = Vec::new();
    let mut x = 99u64;
    let mut random = |below: u64| {
        x = x.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (x >> 33) % below
    };
    for round in 0..4 {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(bench.path("f"))
            .unwrap();
        for step in 0..300 {
            let at = random(3 << 20);
            let len = if random(4) == 0 { random(300_000) } else { random(9_000) };
            match random(10) {
                0 => {
                    file.set_len(at).unwrap();
                    model.resize(at as usize, 0);
                }
                1..=5 => {
                    let bytes = vec![(step % 251) as u8 + 1; len as usize];
                    file.write_all_at(&bytes, at).unwrap();
                    if model.len() < (at + len) as usize && len > 0 {
                        model.resize((at + len) as usize, 0);
                    }
                    model[at as usize
                        ..(at + len) as usize * usize::from(len > 0) + at as usize * usize::from(len == 0)]
                        .copy_from_slice(&bytes);
                }
                6 => file.sync_all().unwrap(),
                7 => {
                    let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
                    // SAFETY: fallocate takes no pointers; the descriptor is open for the call.
                    let done = unsafe { libc::fallocate(file.as_raw_fd(), mode, at as i64, len as i64 + 1) };
                    assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
                    let end = ((at + len + 1) as usize).min(model.len());
                    if (at as usize) < end {
                        model[at as usize..end].fill(0);
                    }
                }
                _ => {
                    let mut got = vec![0; len as usize];
                    let n = read_up_to(&file, &mut got, at);
                    let end = model.len().min((at + len) as usize);
                    let expected = model.get(at as usize..end).unwrap_or(&[]);
                    assert!(got[..n] == *expected, "round {round}, step {step}: {len} bytes at {at}");
                }
            }
        }
        drop(file);
        mount.unmount();
        mount = bench.mount("commit=1");
        assert!(fs::read(bench.path("f")).unwrap() == model, "after remount {round}");
    }
    mount.unmount();
}

fn read_up_to(file: &File, buf: &mut [u8], at: u64) -> usize {
    let mut done = 0;
    while done < buf.len() {
        match file.read_at(&mut buf[done..], at + done as u64).unwrap() {
            0 => break,
            n => done += n,
        }
    }
    done
}

#[test]
fn files_cross_the_borders_of_data_classes() {
    if !can_mount() {
        return;
    }
    let bench = Bench::new(SIZE);
    let mount = bench.mount("");
    let borders: [u64; 3] = [1 << 20, 1 << 30, 1 << 40];
    let file = OpenOptions::new().read(true).write(true).create_new(true).open(bench.path("f")).unwrap();
    for (i, border) in borders.into_iter().enumerate() {
        file.write_all_at(&[i as u8 + 1; 10_000], border - 5_000).unwrap();
    }
    // A close(2) has the kernel write back what it holds, and ask for the blocks again.
    drop(File::open(bench.path("f")).unwrap());
    let check = |file: &File| {
        for (i, border) in borders.into_iter().enumerate() {
            let mut got = [0; 10_002];
            let n = read_up_to(file, &mut got, border - 5_001);
            assert!(n >= 10_001);
            assert!(got[0] == 0 && got[1..10_001].iter().all(|&b| b == i as u8 + 1), "border {border}");
        }
        let meta = file.metadata().unwrap();
        assert_eq!(meta.len(), (1 << 40) + 5_000);
        assert_eq!(meta.blocks(), 3 * 4 * 8, "three writes of four pages each");
        let mut at = 0;
        for border in borders {
            let data = seek(file, at, libc::SEEK_DATA).unwrap();
            assert_eq!(data as u64, (border - 5_000) / 4096 * 4096);
            at = seek(file, data, libc::SEEK_HOLE).unwrap();
            assert_eq!(at as u64, (border + 5_000).next_multiple_of(4096).min(meta.len()));
        }
        let past = seek(file, at, libc::SEEK_DATA).unwrap_err();
        assert_eq!(past.raw_os_error(), Some(libc::ENXIO));
    };
    check(&file);
    drop(file);
    mount.unmount();
    let mount = bench.mount("");
    check(&File::open(bench.path("f")).unwrap());
    fs::remove_file(bench.path("f")).unwrap();
    mount.unmount();
}

#[test]
fn mapped_files_are_written_back() {
    if !can_mount() {
        return;
    }
    let bench = Bench::new(SIZE);
    let mount = bench.mount("");
    let file = OpenOptions::new().read(true).write(true).create_new(true).open(bench.path("f")).unwrap();
    file.set_len(100_000).unwrap();
    // SAFETY: a shared mapping of an open file of 100,000 bytes; nobody truncates it while it is mapped.
    let map = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            100_000,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED,
            file.as_raw_fd(),
            0,
        )
    };
    assert_ne!(map, libc::MAP_FAILED);
    // SAFETY: the mapping above, used only here until it is unmapped.
    let bytes = unsafe { std::slice::from_raw_parts_mut(map.cast::<u8>(), 100_000) };
    bytes[70_000..70_005].copy_from_slice(b"hello");
    // SAFETY: the address and length of the mapping above; `bytes` is not used afterwards.
    unsafe {
        assert_eq!(libc::msync(map, 100_000, libc::MS_SYNC), 0);
        assert_eq!(libc::munmap(map, 100_000), 0);
    }
    drop(file);
    mount.unmount();
    let mount = bench.mount("");
    let got = fs::read(bench.path("f")).unwrap();
    assert_eq!(&got[69_999..70_006], b"\0hello\0");
    mount.unmount();
}

#[test]
fn renames_do_what_their_flags_say() {
    if !can_mount() {
        return;
    }
    let bench = Bench::new(SIZE);
    let mount = bench.mount("");
    let (a, b) = (bench.path("a"), bench.path("b"));
    fs::write(&a, "a").unwrap();
    fs::write(&b, "b").unwrap();
    let exists = rename_with(&a, &b, libc::RENAME_NOREPLACE).unwrap_err();
    assert_eq!(exists.raw_os_error(), Some(libc::EEXIST));
    rename_with(&a, &b, libc::RENAME_EXCHANGE).unwrap();
    assert_eq!((fs::read(&a).unwrap(), fs::read(&b).unwrap()), (b"b".to_vec(), b"a".to_vec()));
    let held = File::open(&b).unwrap();
    fs::rename(&a, &b).unwrap();
    assert_eq!(fs::read(&b).unwrap(), b"b");
    let mut old = String::new();
    (&held).read_to_string(&mut old).unwrap();
    assert_eq!(old, "a", "a replaced file lives on in its handles");
    fs::create_dir_all(bench.path("d/e")).unwrap();
    let inside = fs::rename(bench.path("d"), bench.path("d/e/f")).unwrap_err();
    assert_eq!(inside.raw_os_error(), Some(libc::EINVAL));
    let full = fs::remove_dir(bench.path("d")).unwrap_err();
    assert_eq!(full.raw_os_error(), Some(libc::ENOTEMPTY));
    drop(held);
    mount.unmount();
}

#[test]
fn listings_stay_stable_while_names_come_and_go() {
    if !can_mount() {
        return;
    }
    let bench = Bench::new(SIZE);
    let mount = bench.mount("");
    for i in 0..3000 {
        File::create(bench.path(&format!("keep{i}"))).unwrap();
        File::create(bench.path(&format!("gone{i}"))).unwrap();
    }
    let mut seen = BTreeSet::new();
    for (n, entry) in fs::read_dir(bench.mountpoint()).unwrap().enumerate() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        assert!(seen.insert(name.clone()), "{name} is listed twice");
        if n < 3000 {
            let _ = fs::remove_file(bench.path(&format!("gone{n}")));
            File::create(bench.path(&format!("new{n}"))).unwrap();
        }
    }
    let kept = seen.iter().filter(|name| name.starts_with("keep")).count();
    assert_eq!(kept, 3000, "names that were there all the time are listed once");
    assert!(!seen.contains(".vexfs"));
    mount.unmount();
}

#[test]
fn attributes_are_kept_and_their_limits_told() {
    if !can_mount() {
        return;
    }
    let bench = Bench::new(SIZE);
    let mount = bench.mount("");
    fs::write(bench.path("f"), "x").unwrap();
    let path = CString::new(bench.path("f").as_os_str().as_bytes()).unwrap();
    let set = |name: &str, value: &[u8], flags: i32| {
        let name = CString::new(name).unwrap();
        // SAFETY: NUL-terminated strings and a value of the length given, alive during the call.
        let done = unsafe {
            libc::setxattr(path.as_ptr(), name.as_ptr(), value.as_ptr().cast(), value.len(), flags)
        };
        if done == 0 { Ok(()) } else { Err(std::io::Error::last_os_error().raw_os_error()) }
    };
    let get = |name: &str| {
        let name = CString::new(name).unwrap();
        let mut value = vec![0u8; 70_000];
        // SAFETY: NUL-terminated strings and a buffer of the length given, alive during the call.
        let len =
            unsafe { libc::getxattr(path.as_ptr(), name.as_ptr(), value.as_mut_ptr().cast(), value.len()) };
        usize::try_from(len)
            .map(|len| value[..len].to_vec())
            .map_err(|_| std::io::Error::last_os_error().raw_os_error())
    };
    assert_eq!(get("user.none"), Err(Some(libc::ENODATA)));
    set("user.small", b"value", libc::XATTR_CREATE).unwrap();
    assert_eq!(set("user.small", b"v", libc::XATTR_CREATE), Err(Some(libc::EEXIST)));
    assert_eq!(set("user.other", b"v", libc::XATTR_REPLACE), Err(Some(libc::ENODATA)));
    set("user.large", &[7; 5_000], 0).unwrap();
    set("trusted.overlay", b"y", 0).unwrap();
    assert_eq!(set("system.posix_acl_access", b"junk", 0), Err(Some(libc::EOPNOTSUPP)));
    mount.unmount();
    let mount = bench.mount("");
    assert_eq!(get("user.small").unwrap(), b"value");
    assert_eq!(get("user.large").unwrap(), [7; 5_000]);
    mount.unmount();
}

#[test]
fn only_the_owner_keeps_suid_bits_through_a_write() {
    if !can_mount() {
        return;
    }
    let bench = Bench::new(SIZE);
    fs::set_permissions(bench.beside(""), fs::Permissions::from_mode(0o755)).unwrap();
    let mount = bench.mount("");
    let path = bench.path("f");
    fs::write(&path, "x").unwrap();
    let mode = || fs::metadata(&path).unwrap().mode() & 0o7777;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o6777)).unwrap();
    OpenOptions::new().append(true).open(&path).unwrap().write_all(b"root").unwrap();
    assert_eq!(mode(), 0o6777, "root has CAP_FSETID");
    let as_user = |script: &str| {
        let mut command = vexfs_harness::command("setpriv");
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups", "sh", "-c", script]);
        assert!(command.arg("sh").arg(&path).status().unwrap().success());
    };
    as_user("echo user >> \"$1\"");
    assert_eq!(mode(), 0o777);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o6777)).unwrap();
    as_user(": > \"$1\"");
    assert_eq!(mode(), 0o777, "a truncate counts as a write");
    mount.unmount();
}

#[test]
fn a_search_has_the_rights_of_who_opened_the_session_file() {
    if !can_mount() {
        return;
    }
    let bench = Bench::new(SIZE);
    fs::set_permissions(bench.beside(""), fs::Permissions::from_mode(0o755)).unwrap();
    // A program with the rights of root that reads its standard input, as su and sudo do.
    let set_uid = bench.beside("cat");
    fs::copy("/bin/cat", &set_uid).unwrap();
    fs::set_permissions(&set_uid, fs::Permissions::from_mode(0o4755)).unwrap();
    let mount = bench.mount("");
    fs::set_permissions(bench.path(""), fs::Permissions::from_mode(0o755)).unwrap();
    fs::write(bench.path(".vexfs/schema"), r#"{"dim":2,"element":"f32","metric":"l2"}"#).unwrap();
    fs::write(bench.path("secret-name"), "x").unwrap();
    fs::set_permissions(bench.path("secret-name"), fs::Permissions::from_mode(0o600)).unwrap();
    let mut put = OpenOptions::new().read(true).write(true).open(bench.path(".vexfs/put")).unwrap();
    put.write_all(br#"{"file":"secret-name","rows":[{"vector":[0,0],"length":1}]}"#).unwrap();
    let mut reply = String::new();
    put.read_to_string(&mut reply).unwrap();
    assert!(reply.contains("first_row"), "{reply}");
    drop(put);

    let script = r#"exec 3<>"$1"; printf '{"vector":[0,0]}' >&3; "$2" <&3"#;
    let mut command = vexfs_harness::command("setpriv");
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups", "sh", "-c", script, "sh"]);
    let output = command.arg(bench.path(".vexfs/search")).arg(&set_uid).output().unwrap();
    let reply = String::from_utf8(output.stdout).unwrap();
    assert!(reply.contains("results"), "{reply} {:?}", output.stderr);
    assert!(!reply.contains("secret-name"), "the request of nobody was answered as root: {reply}");
    mount.unmount();
}

#[test]
fn a_full_volume_says_so_at_write_and_deletes_still_work() {
    if !can_mount() {
        return;
    }
    let bench = Bench::new(64 << 20);
    let mount = bench.mount("");
    fs::write(bench.path("keep"), vec![1; 1 << 20]).unwrap();
    File::open(bench.path("keep")).unwrap().sync_all().unwrap();
    let mut files = 0;
    let error = loop {
        let result = fs::write(bench.path(&format!("fill{files}")), vec![2; 1 << 20]);
        files += 1;
        if let Err(error) = result {
            break error;
        }
        assert!(files < 100, "64 MiB took {files} MiB");
    };
    assert_eq!(error.raw_os_error(), Some(libc::ENOSPC));
    assert!(files > 20, "only {files} MiB fit into 64 MiB");
    // Nothing is lost, and nothing stops.
    File::open(bench.path("keep")).unwrap().sync_all().unwrap();
    assert_eq!(fs::read(bench.path("keep")).unwrap(), vec![1; 1 << 20]);
    for i in 0..files {
        fs::remove_file(bench.path(&format!("fill{i}"))).unwrap();
    }
    File::open(bench.path("keep")).unwrap().sync_all().unwrap();
    let again = OpenOptions::new().write(true).create_new(true).open(bench.path("again")).unwrap();
    for i in 0..16u64 {
        again.write_all_at(&[3; 1 << 20], i << 20).unwrap();
    }
    again.sync_all().unwrap();
    drop(again);
    mount.unmount();
    let mount = bench.mount("");
    assert_eq!(fs::read(bench.path("keep")).unwrap(), vec![1; 1 << 20]);
    assert_eq!(fs::read(bench.path("again")).unwrap(), vec![3; 16 << 20]);
    mount.unmount();
}

/// struct file_handle of open_by_handle_at(2), with room for any.
#[repr(C)]
struct Handle {
    bytes: u32,
    kind: i32,
    data: [u8; libc::MAX_HANDLE_SZ as usize],
}

impl Handle {
    fn of(path: &Path) -> Handle {
        let path = CString::new(path.as_os_str().as_bytes()).unwrap();
        let mut handle = Handle { bytes: libc::MAX_HANDLE_SZ as u32, kind: 0, data: [0; 128] };
        let mut mount = 0;
        // SAFETY: a NUL-terminated path, a handle with as much room as it says, and an int, alive during the call.
        let done = unsafe {
            libc::name_to_handle_at(
                libc::AT_FDCWD,
                path.as_ptr(),
                (&raw mut handle).cast(),
                &raw mut mount,
                0,
            )
        };
        assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
        handle
    }

    fn open(&mut self, mount: &File) -> std::io::Result<File> {
        // SAFETY: a handle that the kernel made, alive during the call; the descriptor is new, and nobody else's.
        unsafe {
            let fd = libc::open_by_handle_at(mount.as_raw_fd(), (&raw mut *self).cast(), libc::O_RDONLY);
            if fd < 0 { Err(std::io::Error::last_os_error()) } else { Ok(File::from_raw_fd(fd)) }
        }
    }
}

#[test]
fn file_handles_outlive_a_mount_and_end_with_their_file() {
    if !can_mount() {
        return;
    }
    let bench = Bench::new(SIZE);
    let mount = bench.mount("");
    fs::create_dir(bench.path("dir")).unwrap();
    fs::write(bench.path("dir/kept"), "content").unwrap();
    fs::write(bench.path("dir/gone"), "").unwrap();
    let [mut dir, mut kept, mut gone] =
        ["dir", "dir/kept", "dir/gone"].map(|name| Handle::of(&bench.path(name)));
    fs::remove_file(bench.path("dir/gone")).unwrap();
    mount.unmount();
    let mount = bench.mount("");
    let root = File::open(bench.mountpoint()).unwrap();
    let mut content = String::new();
    kept.open(&root).unwrap().read_to_string(&mut content).unwrap();
    assert_eq!(content, "content");
    assert!(dir.open(&root).unwrap().metadata().unwrap().is_dir());
    assert_eq!(gone.open(&root).unwrap_err().raw_os_error(), Some(libc::ESTALE));
    drop(root);
    mount.unmount();
}

#[test]
fn a_change_of_a_file_shows_in_its_times_also_where_little_space_is_left() {
    if !can_mount() {
        return;
    }
    let bench = Bench::new(64 << 20);
    let mount = bench.mount("");
    let path = bench.path("f");
    fs::write(&path, "before").unwrap();
    let space = || rustix::fs::statvfs(bench.mountpoint()).unwrap();
    for number in 0.. {
        let space = space();
        if space.f_bavail < space.f_blocks / 16 {
            break;
        }
        let mut file = File::create(bench.path(&format!("filling {number}"))).unwrap();
        file.write_all(&vec![number as u8 | 1; 1 << 20]).unwrap();
        file.sync_all().unwrap();
    }
    let mut file = OpenOptions::new().append(true).open(&path).unwrap();
    let before = fs::metadata(&path).unwrap().modified().unwrap();
    // The kernel's clock for times of files has steps of up to 10 ms.
    std::thread::sleep(std::time::Duration::from_millis(30));
    file.write_all(b" and after").unwrap();
    assert!(fs::metadata(&path).unwrap().modified().unwrap() > before);
    file.sync_all().unwrap();
    drop(file);
    mount.unmount();
}

#[test]
fn holes_of_more_files_than_there_are_threads_are_told_at_once() {
    if !can_mount() {
        return;
    }
    let bench = Bench::new(SIZE);
    let mount = bench.mount("threads=2");
    let files: Vec<File> = (0..6)
        .map(|i| {
            let path = bench.path(&format!("f{i}"));
            let mut file = OpenOptions::new().create_new(true).write(true).read(true).open(path).unwrap();
            file.write_all(&vec![i | 1; 2 << 20]).unwrap();
            file
        })
        .collect();
    // The kernel holds back what was written, and each of these waits for it.
    let threads: Vec<_> = files
        .into_iter()
        .map(|file| std::thread::spawn(move || seek(&file, 0, libc::SEEK_HOLE).unwrap()))
        .collect();
    common::wait_for("all are told", || threads.iter().all(|thread| thread.is_finished()));
    for thread in threads {
        assert_eq!(thread.join().unwrap(), 2 << 20);
    }
    mount.unmount();
}

#[test]
fn appends_and_offsets_of_one_handle_work() {
    if !can_mount() {
        return;
    }
    let bench = Bench::new(SIZE);
    let mount = bench.mount("");
    let mut file = OpenOptions::new().read(true).append(true).create(true).open(bench.path("f")).unwrap();
    for i in 0..500 {
        writeln!(file, "line {i}").unwrap();
    }
    file.seek(SeekFrom::Start(0)).unwrap();
    let mut text = String::new();
    file.read_to_string(&mut text).unwrap();
    assert_eq!(text.lines().count(), 500);
    assert_eq!(text.lines().last(), Some("line 499"));
    let space = rustix::fs::statvfs(bench.mountpoint()).unwrap();
    assert_eq!(space.f_frsize, 4096);
    assert!(space.f_bavail <= space.f_bfree && space.f_bfree < space.f_blocks);
    assert!(space.f_blocks * 4096 <= SIZE);
    drop(file);
    mount.unmount();
}

#[test]
fn what_a_mapping_changes_is_no_request_of_somebody_else() {
    if !can_mount() {
        return;
    }
    let bench = Bench::new(SIZE);
    let mount = bench.mount("");
    fs::create_dir(bench.path("d")).unwrap();
    let open = || OpenOptions::new().read(true).write(true).open(bench.path("d/.vexfs/put")).unwrap();
    let mine = open();
    mine.write_all_at(&[b' '; 4096], 0).unwrap();
    // The kernel writes back by the handle that was opened last.
    let other = open();
    let (both, shared) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED);
    // SAFETY: a new mapping of an open file, which overlaps nothing.
    let mapped = unsafe { libc::mmap(std::ptr::null_mut(), 4096, both, shared, mine.as_raw_fd(), 0) };
    if mapped != libc::MAP_FAILED {
        // SAFETY: the page is mapped for writing, the file has 4096 bytes for the kernel, and nobody else uses the page.
        let synced = unsafe {
            mapped.cast::<u8>().write(b'x');
            libc::msync(mapped, 4096, libc::MS_SYNC)
        };
        assert_eq!(synced, -1, "there is nobody to whom it could go");
        // SAFETY: it was mapped above, and nothing points there any more.
        unsafe { libc::munmap(mapped, 4096) };
    }
    other.write_all_at(br#"{"file":"f","rows":[]}"#, 0).unwrap();
    drop((mine, other));
    mount.unmount();
}

#[test]
fn whoever_changes_the_bytes_of_a_program_does_not_keep_its_privileges() {
    if !can_mount() {
        return;
    }
    let bench = Bench::new(SIZE);
    let mount = bench.mount("");
    for dir in [bench.beside(""), bench.path("")] {
        fs::set_permissions(dir, fs::Permissions::from_mode(0o755)).unwrap();
    }
    let file = bench.path("f");
    fs::write(bench.path("source"), vec![7; 200_000]).unwrap();
    let clone = "import os; os.copy_file_range(os.open('source', 0), os.open('f', os.O_WRONLY), 131072)";
    let clone = format!("python3 -c \"{clone}\"");
    let changes = [
        clone.as_str(),
        "printf x >> f",
        "printf x | dd of=f conv=notrunc bs=1 status=none",
        "fallocate -l 20000 f",
        "fallocate -z -o 10 -l 10 f",
        "fallocate -p -o 10 -l 10 f",
        "truncate -s 30000 f",
        "cp source f",
        ": > f",
    ];
    for change in changes {
        fs::write(&file, [1; 9000]).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o6777)).unwrap();
        assert_eq!(fs::metadata(&file).unwrap().mode() & 0o7777, 0o6777);
        let script = format!("cd '{}' && {change}", bench.path("").display());
        let done = vexfs_harness::command("sh").args(["-c", &script]).uid(65534).gid(65534).status();
        assert!(done.unwrap().success(), "{change}");
        assert_eq!(fs::metadata(&file).unwrap().mode() & 0o7777, 0o777, "after {change}");
    }
    mount.unmount();
}

#[test]
fn whoever_looks_for_holes_does_not_wait_for_the_others() {
    if !can_mount() {
        return;
    }
    let bench = Bench::new(SIZE);
    let mount = bench.mount("threads=2");
    // More at once than there are threads, each with bytes that the kernel hands over only now.
    std::thread::scope(|scope| {
        for n in 0..8 {
            let path = bench.path(&format!("f{n}"));
            scope.spawn(move || {
                let file = File::create(path).unwrap();
                for round in 0..30u64 {
                    file.write_all_at(&[1; 10_000], round << 20).unwrap();
                    assert_eq!(
                        seek(&file, (round << 20) as i64, libc::SEEK_DATA).unwrap(),
                        (round << 20) as i64
                    );
                }
            });
        }
    });
    mount.unmount();
}
