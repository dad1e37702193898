//! Real files copied in, and found again after a remount: a tree of thousands, and one big file.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;

use vexfs_tests::load::page::{PAGE, Stamp};
use vexfs_tests::stage::Stage;
use vexfs_tests::{process, programs, settings, tree};
use walkdir::WalkDir;

const FILES_AT_LEAST: usize = 5000;

/// Copies directories of this machine to `to` until there are enough files.
fn gather(to: &Path) {
    fs::create_dir(to).unwrap();
    let mut files = 0;
    for source in
        ["/usr/include", "/usr/share/perl", "/usr/share/doc", "/usr/share/zoneinfo", "/usr/lib/python3"]
    {
        if files >= FILES_AT_LEAST || !Path::new(source).is_dir() {
            continue;
        }
        process::ok(programs::tool("cp").args(["-a", source]).arg(to));
        files = WalkDir::new(to)
            .into_iter()
            .filter(|entry| entry.as_ref().unwrap().file_type().is_file())
            .count();
    }
    assert!(files >= FILES_AT_LEAST, "this machine has but {files} files in the usual places");
}

/// What a tree of documents lacks.
fn add_oddities(root: &Path) {
    let odd = root.join("odd");
    fs::create_dir(&odd).unwrap();
    fs::write(odd.join("empty"), b"").unwrap();
    fs::write(odd.join(" name with\nnewline, ü and \u{1F980}"), b"x").unwrap();
    fs::write(odd.join("n".repeat(255)), b"the longest name").unwrap();
    std::os::unix::fs::symlink("t".repeat(1000), odd.join("long symlink")).unwrap();
    std::os::unix::fs::symlink("nowhere", odd.join("dangling")).unwrap();
    fs::write(odd.join("linked"), b"many names").unwrap();
    for number in 0..20 {
        fs::hard_link(odd.join("linked"), odd.join(format!("link-{number}"))).unwrap();
    }
    for mode in [0o000, 0o4755, 0o2755, 0o1777, 0o640] {
        let path = odd.join(format!("mode-{mode:o}"));
        fs::write(&path, b"mode").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    }
    let sparse = File::create(odd.join("sparse")).unwrap();
    // Into the third class of windows (FORMAT.md section 2), which begins at 1 GiB.
    sparse.set_len(1100 << 20).unwrap();
    sparse.write_all_at(b"island", 1050 << 20).unwrap();
    let attributes = File::create(odd.join("attributes")).unwrap();
    for (name, bytes) in [("user.small", 10), ("user.empty", 0), ("user.large", 2000)] {
        rustix::fs::fsetxattr(&attributes, name, &vec![7; bytes], rustix::fs::XattrFlags::empty()).unwrap();
    }
    let wide = odd.join("wide");
    fs::create_dir(&wide).unwrap();
    for number in 0..3000 {
        fs::write(wide.join(format!("file number {number}")), format!("{number}")).unwrap();
    }
    fs::create_dir_all(odd.join("deep/".repeat(100))).unwrap();
}

fn copy_in(source: &Path, mount: &Path) {
    process::ok(programs::tool("cp").arg("-a").arg(source).arg(mount));
}

fn assert_same(source: &Path, copy: &Path) {
    process::ok(programs::tool("diff").args(["-r", "--no-dereference"]).arg(source).arg(copy));
    tree::assert_equal(source, copy);
}

#[test]
fn a_tree_survives_remounts_embedded_and_by_the_daemon() {
    let stage = Stage::vexfs(2048);
    let source = stage.path("tree");
    gather(&source);
    add_oddities(&source);

    let mount = stage.mount();
    copy_in(&source, mount.path());
    mount.unmount();

    let mount = stage.mount();
    assert_same(&source, &mount.join("tree"));
    mount.terminate();

    // The same volume through the daemon, and a second copy made there.
    let daemon = stage.daemon();
    let mount = stage.mount_daemon();
    assert_same(&source, &mount.join("tree"));
    fs::create_dir(mount.join("second")).unwrap();
    copy_in(&source, &mount.join("second"));
    mount.unmount();
    daemon.stop();

    let daemon = stage.daemon();
    let mount = stage.mount_daemon();
    assert_same(&source, &mount.join("second/tree"));
    mount.unmount();
    daemon.stop();

    // And away with it: the volume can be emptied and stays sound.
    let mount = stage.mount();
    for name in ["tree", "second"] {
        fs::remove_dir_all(mount.join(name)).unwrap();
    }
    mount.unmount();
    let mount = stage.mount();
    assert_eq!(fs::read_dir(mount.path()).unwrap().count(), 0);
    mount.unmount();
}

#[test]
fn a_big_file_reads_back_after_a_remount() {
    // By default just beyond the first GiB, where the third data class begins.
    let mib = settings::big_file_mib(1100);
    let stage = Stage::vexfs(mib * 3 / 2 + 512);
    let block = |number: u64| -> Vec<u8> {
        let pages = (0..256).map(|page| Stamp { file: 1, page: number * 256 + page, version: 1 });
        pages.flat_map(Stamp::bytes).collect()
    };

    let mount = stage.mount();
    let mut file = File::create(mount.join("big")).unwrap();
    for number in 0..mib {
        file.write_all(&block(number)).unwrap();
    }
    drop(file);
    mount.unmount();

    let mount = stage.mount();
    let mut file = File::open(mount.join("big")).unwrap();
    assert_eq!(file.metadata().unwrap().len(), mib << 20);
    let mut bytes = vec![0; 256 * PAGE];
    for number in 0..mib {
        file.read_exact(&mut bytes).unwrap();
        assert!(bytes == block(number), "MiB {number} differs");
    }
    drop(file);
    mount.unmount();
}
