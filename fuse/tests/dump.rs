//! vexfs-dump as a program, over a real image.

mod common;

use std::fs;
use std::process::Output;

use common::{Bench, can_mount, run};
use serde_json::Value;

fn dump(args: &[&str]) -> Output {
    run(vexfs_harness::command(env!("CARGO_BIN_EXE_vexfs-dump")).args(args))
}

fn json(args: &[&str]) -> Value {
    let output = dump(&[&["--json"], args].concat());
    assert!(output.status.success(), "{args:?}: {output:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn structures_are_shown_by_path_number_and_address() {
    if !can_mount() {
        return;
    }
    let bench = Bench::new(64 << 20);
    let image = bench.image();
    let source = image.to_str().unwrap();
    let mount = bench.mount("");
    fs::create_dir(bench.path("a")).unwrap();
    fs::write(bench.path("a/b"), vec![7; 3 << 20]).unwrap();
    std::os::unix::fs::symlink("where", bench.path("a/link")).unwrap();
    for i in 0..300 {
        fs::File::create(bench.path(&format!("a/{i:0>200}"))).unwrap();
    }
    xattr(&bench.path("a/b"));
    mount.unmount();

    assert_eq!(json(&[source])["superblock"]["clean"], true);
    assert_eq!(json(&[source, "status"])["session_live"], false);
    let inode = json(&[source, "inode", "/a/b"]);
    assert_eq!((inode["path"].as_str(), inode["size"].as_u64()), (Some("/a/b"), Some(3 << 20)));
    let number = inode["inode"].as_u64().unwrap().to_string();
    assert_eq!(json(&[source, "inode", &number]), inode);
    assert_eq!(json(&[source, "inode", "/a/link"])["inline"], "target \"where\"");
    let map = json(&[source, "map", &number]);
    assert_eq!(map["mapped_pages"], 768);
    assert_eq!(map["runs"].as_array().unwrap().len(), 2, "the first MiB, and the rest in a window");
    let tree = json(&[source, "dir", "/a"]);
    let pages = tree["pages"].as_array().unwrap();
    assert_eq!(pages[0]["level"], 1);
    let entries: usize = pages.iter().filter_map(|page| page["entries"].as_array()).map(Vec::len).sum();
    assert_eq!((entries, tree["entries"].as_u64()), (302, Some(302)));
    let root = pages[0]["page"].as_u64().unwrap();
    assert_eq!(json(&[source, "page", &format!("{root:#x}")])["content"]["level"], 1);
    let slots = json(&[source, "page", &inode["page"].to_string()]);
    assert_eq!(slots["inodes"].as_array().unwrap().len(), 8);
    for page in ["0", "1", "2", "0x80000000", "0x2000000000000"] {
        assert!(dump(&[source, "page", page]).status.success(), "{page}");
    }
    let text = String::from_utf8(dump(&[source, "dir", "2"]).stdout).unwrap();
    assert!(text.contains("kind dir  name a"), "{text}");

    let store = json(&[source, "store"]);
    assert_eq!(store["superblocks"].as_array().unwrap().len(), 2);
    let segments = store["checkpoint"]["segments"].as_array().unwrap();
    let user = segments.iter().find(|s| s["stream"] == "user").unwrap()["segment"].to_string();
    let records = json(&[source, "segment", &user]);
    assert_eq!(records["header"]["stream"], "user");
    for segment in segments {
        assert!(dump(&[source, "segment", &segment["segment"].to_string()]).status.success());
    }
}

fn xattr(path: &std::path::Path) {
    rustix::fs::setxattr(path, "user.large", &[1; 2000], rustix::fs::XattrFlags::empty()).unwrap();
}

#[test]
fn what_is_not_there_is_said() {
    let bench = Bench::new(64 << 20);
    let image = bench.image();
    let source = image.to_str().unwrap();
    for (args, status, words) in [
        (&[source, "inode", "/nothing"][..], 1, "not found"),
        (&[source, "inode", "99999999999999"], 1, "no inode has the number"),
        (&[source, "dir", "77"], 1, "not in use"),
        (&[source, "segment", "100000"], 1, "its segments are"),
        (&["/nowhere"], 1, "mkfs.vexfs"),
        (&[source, "inode", "a"], 2, "neither an inode number nor a path"),
    ] {
        let output = dump(args);
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(status), "{args:?}: {said}");
        assert!(said.contains(words), "{args:?}: {said}");
    }
    fs::write(&image, vec![0xa5; 64 << 20]).unwrap();
    assert_eq!(dump(&[source]).status.code(), Some(1));
    assert!(dump(&[source, "store"]).status.success(), "what is damaged is shown as damaged");
}
