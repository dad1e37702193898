//! Files keep their vectors where tools copy and move them (FORMAT.md sections 6.3 and 6.6).

mod common;

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use common::{Bench, Mount, can_mount};

const SIZE: u64 = 512 << 20;
const DIM: usize = 300;

/// A mount with collections `a` and `b`, `other` of another dimension, and a directory `plain`.
struct Stage {
    bench: Bench,
    mount: Option<Mount>,
}

impl Stage {
    fn new() -> Option<Self> {
        if !can_mount() {
            return None;
        }
        let bench = Bench::new(SIZE);
        let mount = Some(bench.mount(""));
        for (name, dim) in [("a", DIM), ("b", DIM), ("other", 2), ("plain", 0)] {
            let dir = bench.path(name);
            fs::create_dir(&dir).unwrap();
            if dim > 0 {
                let schema = format!(r#"{{"dim":{dim},"element":"f32","metric":"l2"}}"#);
                fs::write(dir.join(".vexfs/schema"), schema).unwrap();
            }
        }
        Some(Stage { bench, mount })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.bench.path(name)
    }

    fn remount(&mut self) {
        self.mount.take().unwrap().unmount();
        self.mount = Some(self.bench.mount(""));
    }

    /// Writes a file of collection `a` and gives it `rows` rows, the first of which is `x` from the origin.
    fn file(&self, name: &str, rows: usize, x: f32) {
        fs::write(self.path("a").join(name), format!("bytes of {name}")).unwrap();
        let vector = |row: usize| {
            let mut vector = vec!["0".to_owned(); DIM];
            (vector[0], vector[1]) = (x.to_string(), row.to_string());
            vector.join(",")
        };
        let rows: Vec<String> = (0..rows)
            .map(|row| format!(r#"{{"vector":[{}],"offset":{row},"length":1,"tag":{row}}}"#, vector(row)))
            .collect();
        let reply = self.ask("a", "put", &format!(r#"{{"file":"{name}","rows":[{}]}}"#, rows.join(",")));
        assert!(reply.get("error").is_none(), "{reply}");
    }

    fn ask(&self, dir: &str, kind: &str, request: &str) -> serde_json::Value {
        let path = self.path(dir).join(".vexfs").join(kind);
        let mut file = OpenOptions::new().read(true).write(true).open(path).unwrap();
        file.write_all(request.as_bytes()).unwrap();
        let mut reply = String::new();
        file.read_to_string(&mut reply).unwrap();
        serde_json::from_str(&reply).unwrap()
    }

    /// Rows found below a directory: path -> number of rows, and of them stale.
    fn found(&self, dir: &str) -> BTreeMap<String, (u32, u32)> {
        let dim = if dir == "other" { 2 } else { DIM };
        let vector = vec!["0"; dim].join(",");
        let reply = self.ask(dir, "search", &format!(r#"{{"vector":[{vector}],"k":1000}}"#));
        let mut found = BTreeMap::new();
        for hit in reply["results"].as_array().unwrap_or_else(|| panic!("{reply}")) {
            let entry: &mut (u32, u32) = found.entry(hit["path"].as_str().unwrap().to_owned()).or_default();
            entry.0 += 1;
            entry.1 += u32::from(hit["stale"].as_bool().unwrap());
        }
        found
    }

    /// Runs a command with the mount point as its directory.
    fn run(&self, script: &str) -> String {
        let output = vexfs_harness::command("sh")
            .args(["-ec", script])
            .current_dir(self.bench.mountpoint())
            .output()
            .unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success() && stderr.is_empty(), "{script}: {stderr}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// The attributes of a file's rows.
    fn rows(&self, name: &str) -> BTreeMap<String, Vec<u8>> {
        let path = self.path(name);
        let mut names = [0; 65536];
        let len = rustix::fs::listxattr(&path, &mut names[..]).unwrap();
        let names =
            names[..len].split(|byte| *byte == 0).map(|name| String::from_utf8(name.to_vec()).unwrap());
        names
            .filter(|name| name.starts_with("user.vexfs"))
            .map(|name| {
                let mut value = [0; 65536];
                let len = rustix::fs::getxattr(&path, name.as_str(), &mut value[..]).unwrap();
                (name, value[..len].to_vec())
            })
            .collect()
    }
}

fn fresh(names: &[(&str, u32)]) -> BTreeMap<String, (u32, u32)> {
    names.iter().map(|(name, rows)| ((*name).to_owned(), (*rows, 0))).collect()
}

fn stale(names: &[(&str, u32)]) -> BTreeMap<String, (u32, u32)> {
    names.iter().map(|(name, rows)| ((*name).to_owned(), (*rows, *rows))).collect()
}

fn installed(tool: &str) -> bool {
    let is_there = vexfs_harness::command(tool).arg("--version").output().is_ok();
    if !is_there {
        eprintln!("skipped: {tool} is not installed");
    }
    is_there
}

#[test]
fn cp_keeps_rows_in_and_out_of_collections_and_through_plain_directories() {
    let Some(mut stage) = Stage::new() else { return };
    stage.file("one", 1, 1.0);
    stage.file("many", 60, 2.0);
    stage.file("some", 30, 3.0);
    assert_eq!(stage.rows("a/one").keys().collect::<Vec<_>>(), ["user.vexfs.rows"]);
    assert_eq!(stage.rows("a/many").len(), 5, "74 KB in parts of 16");
    stage.run("cp -a a/one a/many a/some b/; cp -a a/one a/twin; cp -r a/one a/bytes; cp --reflink=never -r a/one b/bytes");
    assert_eq!(stage.found("a"), fresh(&[("one", 1), ("many", 60), ("some", 30), ("twin", 1)]));
    assert_eq!(stage.found("b"), fresh(&[("one", 1), ("many", 60), ("some", 30)]));
    for name in ["one", "many"] {
        assert_eq!(
            stage.rows(&format!("a/{name}")),
            stage.rows(&format!("b/{name}")),
            "equal rows, equal values"
        );
    }

    // Out, where they are kept, also over a remount; and back.
    stage.run("cp -a a/one a/some plain/; rm a/one a/some");
    assert_eq!(stage.rows("plain/some"), stage.rows("b/some"));
    stage.remount();
    assert_eq!(stage.rows("plain/some"), stage.rows("b/some"));
    stage.run("cp -a plain/one plain/some a/");
    assert_eq!(stage.found("a"), fresh(&[("one", 1), ("many", 60), ("some", 30), ("twin", 1)]));
    // A put of one's own takes the place of what was kept.
    stage.run("cp -a plain/one other/");
    assert_eq!(stage.found("other"), fresh(&[]), "vectors of another kind");
    assert_eq!(stage.rows("other/one"), stage.rows("a/one"), "are kept");
    stage.run("cp -a other/one a/again");
    assert_eq!(stage.found("a")["again"], (1, 0));
    let put = stage.ask("other", "put", r#"{"file":"one","rows":[{"vector":[1,1],"length":1}]}"#);
    assert!(put.get("error").is_none(), "{put}");
    assert_ne!(stage.rows("other/one"), stage.rows("a/one"));
    // Stale rows stay stale.
    stage.run("echo more >> a/some; cp -a a/some a/stale");
    assert_eq!([stage.found("a")["some"], stage.found("a")["stale"]], [(30, 30), (30, 30)]);
    // Over a file that has rows; what has none takes them away.
    stage.run("cp -a a/twin b/many; cp -a plain/one b/some");
    assert_eq!(stage.found("b"), fresh(&[("one", 1), ("many", 1), ("some", 1)]));
}

#[test]
fn rsync_keeps_rows_and_has_nothing_to_do_the_second_time() {
    if !installed("rsync") {
        return;
    }
    let Some(stage) = Stage::new() else { return };
    stage.file("one", 1, 1.0);
    stage.file("many", 60, 2.0);
    stage.file("some", 30, 3.0);
    stage.run("rsync -aX a/ b/; rsync -aX --exclude many a/ plain/");
    let all = fresh(&[("one", 1), ("many", 60), ("some", 30)]);
    assert_eq!(stage.found("b"), all);
    for to in ["b", "plain"] {
        assert_eq!(stage.run(&format!("rsync -aXi --exclude many a/ {to}/")), "", "{to}");
    }
    assert_eq!(stage.run("rsync -aXi a/ b/"), "");
    // Fewer rows, none, and changed bytes.
    stage.file("many", 2, 5.0);
    stage.run("echo more >> a/one; setfattr -x user.vexfs.rows a/some");
    assert_eq!(stage.rows("a/some").len(), 0);
    stage.run("rsync -aX a/ b/");
    let expected = BTreeMap::from([("one".to_owned(), (1, 1)), ("many".to_owned(), (2, 0))]);
    assert_eq!([stage.found("a"), stage.found("b")], [expected.clone(), expected]);
    assert_eq!(stage.run("rsync -aXi a/ b/"), "");
    stage.run("rm a/*; rsync -aX plain/ a/");
    assert_eq!(stage.found("a"), fresh(&[("one", 1), ("some", 30)]));
}

#[test]
fn tar_keeps_rows_both_ways() {
    let Some(stage) = Stage::new() else { return };
    stage.file("one", 1, 1.0);
    stage.file("many", 60, 2.0);
    fs::write(stage.path("a/large"), vec![7; 3 << 20]).unwrap();
    stage.run("echo '{}' > /dev/null; cp -a a/one a/stale; echo more >> a/stale");
    let archive = stage.bench.beside("archive.tar");
    let archive = archive.display();
    stage.run(&format!("tar --xattrs -cf {archive} -C a ."));
    stage.run(&format!("tar --xattrs -xf {archive} -C b; sync"));
    let mut expected = fresh(&[("one", 1), ("many", 60)]);
    expected.insert("stale".to_owned(), (1, 1));
    assert_eq!(stage.found("a"), expected);
    assert_eq!(stage.found("b"), expected, "attributes come before the bytes");
    assert_eq!(fs::read(stage.path("b/large")).unwrap(), vec![7; 3 << 20]);
    assert_eq!(fs::read(stage.path("b/one")).unwrap(), b"bytes of one");
    // Over what is there, and with later changes.
    stage.run(&format!("echo more >> b/one; tar --xattrs -xf {archive} -C b"));
    assert_eq!(stage.found("b"), expected);
    stage.run("echo more >> b/one");
    assert_eq!(stage.found("b")["one"], (1, 1));
}

#[test]
fn renames_and_links_leave_rows_with_their_files() {
    let Some(mut stage) = Stage::new() else { return };
    for (i, name) in ["one", "two", "three", "four"].into_iter().enumerate() {
        stage.file(name, 1, i as f32);
    }
    let all = fresh(&[("one", 1), ("two", 1), ("three", 1), ("four", 1)]);
    assert_eq!(stage.found("a"), all);
    // Within; out and back; over a file with rows.
    stage.run("mkdir a/sub; mv a/one a/sub/uno; mv a/two plain/; mv a/three a/four");
    assert_eq!(stage.found("a"), fresh(&[("sub/uno", 1), ("four", 1)]));
    assert_eq!(stage.rows("plain/two").len(), 1, "it keeps its rows outside");
    stage.remount();
    stage.run("mv plain/two a/back");
    assert_eq!(stage.found("a"), fresh(&[("sub/uno", 1), ("four", 1), ("back", 1)]));
    // Into another collection: found again where its rows are set again, as every copy does.
    stage.run("mv a/four b/");
    assert_eq!((stage.found("b"), stage.rows("b/four").len()), (fresh(&[]), 1));
    stage.run("cp -a b/four b/copy; mv b/copy b/four");
    assert_eq!(stage.found("b"), fresh(&[("four", 1)]));
    assert_eq!(stage.found("a"), fresh(&[("sub/uno", 1), ("back", 1)]));
    // Exchanged names.
    let flags = rustix::fs::RenameFlags::EXCHANGE;
    let (here, there) = (stage.path("a/back"), stage.path("b/four"));
    rustix::fs::renameat_with(rustix::fs::CWD, &here, rustix::fs::CWD, &there, flags).unwrap();
    assert_eq!((stage.found("a"), stage.found("b")), (fresh(&[("sub/uno", 1)]), fresh(&[])));
    rustix::fs::renameat_with(rustix::fs::CWD, &here, rustix::fs::CWD, &there, flags).unwrap();

    // A whole tree of links outside hides nothing; a link is found while one name is below.
    stage.run("cp -al a plain/snapshot; ln a/back a/sub/link");
    assert_eq!(stage.found("a"), fresh(&[("sub/uno", 1), ("back", 1)]));
    assert_eq!(stage.found("a/sub"), fresh(&[("link", 1), ("uno", 1)]).into_iter().collect());
    stage.run("rm a/back");
    assert_eq!(stage.found("a"), fresh(&[("sub/uno", 1), ("sub/link", 1)]));
    stage.run("rm a/sub/link");
    assert_eq!(stage.found("a"), fresh(&[("sub/uno", 1)]));
    assert_eq!(stage.rows("plain/snapshot/back").len(), 1);
    stage.run("mv plain/snapshot/back a/");
    assert_eq!(stage.found("a"), fresh(&[("sub/uno", 1), ("back", 1)]));
    // A link in another collection; a put by that name makes it that one's.
    stage.run("ln a/back b/linked");
    assert_eq!(stage.found("b"), fresh(&[("four", 1)]));
    let vector = vec!["1"; DIM].join(",");
    stage.ask("b", "put", &format!(r#"{{"file":"linked","rows":[{{"vector":[{vector}],"length":1}}]}}"#));
    assert_eq!(stage.found("b"), fresh(&[("four", 1), ("linked", 1)]));
    assert_eq!(stage.found("a"), fresh(&[("sub/uno", 1)]));
}

#[test]
fn changed_bytes_make_rows_stale() {
    let Some(stage) = Stage::new() else { return };
    let scripts = [
        "echo other > a/f",
        "echo more >> a/f",
        "truncate -s 3 a/f",
        "truncate -s 300 a/f",
        "fallocate -p -o 0 -l 4 a/f",
        "fallocate -z -o 0 -l 4 a/f",
        "dd if=/dev/zero of=a/f bs=1 count=1 conv=notrunc status=none",
    ];
    for script in scripts {
        stage.file("f", 2, 1.0);
        assert_eq!(stage.found("a"), fresh(&[("f", 2)]));
        stage.run("touch a/f; chmod 600 a/f; cat a/f > /dev/null");
        assert_eq!(stage.found("a"), fresh(&[("f", 2)]));
        stage.run(script);
        assert_eq!(stage.found("a"), stale(&[("f", 2)]), "{script}");
        let listed: serde_json::Value = serde_json::from_str(&stage.run("cat a/.vexfs/stale")).unwrap();
        assert_eq!((&listed["rows"], &listed["rows_stale"]), (&2.into(), &2.into()));
        assert_eq!(listed["files"][0]["path"], "f");
    }
    stage.run("rm a/f");
    assert_eq!(stage.found("a"), fresh(&[]));
}

#[test]
fn damaged_and_foreign_values_are_refused() {
    let Some(stage) = Stage::new() else { return };
    stage.file("f", 40, 1.0);
    let parts = stage.rows("a/f");
    assert_eq!(parts.len(), 4);
    let set = |path: &Path, name: &str, value: &[u8]| {
        rustix::fs::setxattr(path, name, value, rustix::fs::XattrFlags::empty())
    };
    for dir in ["a", "plain"] {
        let g = stage.path(dir).join("g");
        fs::write(&g, "bytes").unwrap();
        let mut bad = parts["user.vexfs.rows"].clone();
        bad[100] ^= 1;
        let invalid = Err(rustix::io::Errno::INVAL);
        assert_eq!(set(&g, "user.vexfs.rows", &bad), invalid);
        assert_eq!(set(&g, "user.vexfs.rows", b""), invalid);
        assert_eq!(set(&g, "user.vexfs.rows.2", &parts["user.vexfs.rows.1"]), invalid);
        let in_dir = set(&stage.path(dir), "user.vexfs.rows", &parts["user.vexfs.rows"]);
        assert_eq!(in_dir, Err(rustix::io::Errno::OPNOTSUPP));
    }
    // Parts in any order; until the last one nothing changes.
    let g = stage.path("a/g");
    for name in ["user.vexfs.rows.3", "user.vexfs.rows", "user.vexfs.rows", "user.vexfs.rows.1"] {
        set(&g, name, &parts[name]).unwrap();
        assert_eq!(stage.found("a"), fresh(&[("f", 40)]));
    }
    set(&g, "user.vexfs.rows.2", &parts["user.vexfs.rows.2"]).unwrap();
    assert_eq!(stage.found("a"), fresh(&[("f", 40), ("g", 40)]));
    assert_eq!(stage.rows("a/g"), parts);
}

#[test]
fn rows_set_while_a_file_is_written_hold_for_its_bytes() {
    let Some(stage) = Stage::new() else { return };
    stage.file("f", 1, 1.0);
    let value = &stage.rows("a/f")["user.vexfs.rows"];
    let set = |file: &fs::File| {
        rustix::fs::fsetxattr(file, "user.vexfs.rows", value, rustix::fs::XattrFlags::empty()).unwrap();
    };
    // Written before and after the attribute: what the kernel holds back comes in any order.
    let mut file = fs::File::create(stage.path("a/g")).unwrap();
    file.write_all(b"first ").unwrap();
    set(&file);
    file.write_all(b"second").unwrap();
    drop(file);
    let found = |stage: &Stage| stage.found("a")["g"];
    common::wait_for("the close arrives", || found(&stage) == (1, 0));
    stage.run("echo third >> a/g");
    assert_eq!(found(&stage), (1, 1), "the next writer did not know of them");
    // A reader with its handle open keeps nothing waiting.
    let reader = fs::File::open(stage.path("a/g")).unwrap();
    let writer = OpenOptions::new().append(true).open(stage.path("a/g")).unwrap();
    set(&writer);
    drop(writer);
    common::wait_for("the close arrives", || found(&stage) == (1, 0));
    stage.run("echo fourth >> a/g");
    common::wait_for("stale again", || found(&stage) == (1, 1));
    drop(reader);
    assert_eq!(found(&stage), (1, 1));
}
