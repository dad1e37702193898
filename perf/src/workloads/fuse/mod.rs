//! File systems by what a program on them sees: vexfs-fuse (store embedded), libfuse's passthrough_ll and passthrough_hp over a
//! directory, and ext4 in a loop device. All stand on the same disk; the loops are ours, so that nothing but system calls is
//! measured.
//!
//! [`mounts`] are the contenders, [`tree`] the files that the loops in [`names`], [`bytes`] and [`tools`] work on.

mod bytes;
mod meter;
mod mounts;
mod names;
mod tools;
mod tree;

use std::time::Duration;

use anyhow::Result;

use self::mounts::{Mounted, Program};
use self::tree::Tree;
use crate::bars::{Bar, Bound, Metric};
use crate::contender::{Prepared, Work, Workload};
use crate::env::Env;

/// What a case does.
type Case = fn(&Tree, Duration) -> Result<Work>;

/// Names and loops.
const LOOPS: [(&str, Case); 21] = [
    ("create-one-dir", names::create_in_one),
    ("create-many-dirs", names::create_in_many),
    ("stat-warm", names::stat_warm),
    ("stat-cold", names::stat_cold),
    ("lookup-absent", names::lookup_absent),
    ("open", names::open),
    ("rename", names::rename),
    ("readdir", names::readdir),
    ("unlink", names::unlink),
    ("mkdir-rmdir", names::mkdir_rmdir),
    ("read4k-cached", bytes::read_cached),
    ("read4k-direct", bytes::read_direct),
    ("write4k", bytes::write_cached),
    ("write4k-direct", bytes::write_direct),
    ("write4k-fsync", bytes::write_fsync),
    ("seq-read1m", bytes::read_sequential),
    ("seq-write1m", bytes::write_sequential),
    ("untar", tools::untar),
    ("git-clone", tools::git_clone),
    ("git-status", tools::git_status),
    ("remove-tree", tools::remove_tree),
];

pub const CASES: &[&str] = &{
    let mut names = [""; LOOPS.len()];
    let mut i = 0;
    while i < LOOPS.len() {
        names[i] = LOOPS[i].0;
        i += 1;
    }
    names
};

const OURS: &str = "vexfs-fuse";
const OURS_RING: &str = "vexfs-fuse uring";
const LL: &str = "passthrough_ll";
const HP: &str = "passthrough_hp";

pub fn prepare(env: &Env) -> Prepared {
    for tool in ["fusermount3", "git", "tar"] {
        env.tool(tool)?;
    }
    let mut missing = Vec::new();
    let mut contenders: Vec<Box<dyn crate::contender::Contender>> = Vec::new();
    let mut add = |name, program: std::result::Result<Program, String>| match program {
        Ok(program) => contenders.push(Box::new(Mounted::new(name, program))),
        Err(why) => missing.push(why),
    };
    let (mkfs, fuse) = (env.program("mkfs.vexfs")?, env.program("vexfs-fuse")?);
    add(OURS, Ok(Program::Vexfs { mkfs: mkfs.clone(), fuse: fuse.clone(), ring: None }));
    let rings = vexfs_harness::FuseRings::enable()
        .map_err(|error| format!("FUSE over io_uring (Linux 6.14, root): {error}"));
    add(OURS_RING, rings.map(|ring| Program::Vexfs { mkfs, fuse, ring: Some(ring) }));
    add(LL, env.rival("passthrough_ll").map(|program| Program::PassthroughLl { program }));
    add(HP, env.rival("passthrough_hp").map(|program| Program::PassthroughHp { program }));
    add("ext4 loop", env.tool("mkfs.ext4").map(|mkfs| Program::Ext4 { mkfs }));
    Ok(Workload {
        name: "fuse",
        about: "One thread; files are filled before. passthrough_ll has the same flags as vexfs-fuse (writeback cache, caching for \
                long), passthrough_hp its own. stat-cold drops the kernel's names and inodes first (echo 2 >drop_caches), those \
                of the file system below passthrough too; vexfs-fuse keeps its own page cache. write4k and seq-write1m end with \
                one fsync, which counts. untar, git-clone, git-status and remove-tree are whole commands on a tree of 1,200 \
                files; their rate is commands per second. What was made is removed after each measurement."
            .to_owned(),
        cases: CASES.to_vec(),
        unit: "ops",
        contenders,
        bars: bars(),
        missing,
    })
}

fn bars() -> Vec<Bar> {
    let bar = |case, ours, metric, bound, rival| Bar { case, ours, metric, bound, rival };
    let mut bars = Vec::new();
    for case in [
        "create-one-dir",
        "create-many-dirs",
        "stat-warm",
        "open",
        "rename",
        "readdir",
        "unlink",
        "mkdir-rmdir",
    ] {
        bars.push(bar(case, OURS, Metric::Rate, Bound::AtLeast(1.0), LL));
        // The kernel answers these two by itself.
        if !["stat-warm", "readdir"].contains(&case) {
            bars.push(bar(case, OURS_RING, Metric::Rate, Bound::AtLeast(1.5), LL));
        }
    }
    for ours in [OURS, OURS_RING] {
        bars.push(bar("stat-cold", ours, Metric::P50, Bound::AtMost(0.7), LL));
        bars.push(bar("read4k-cached", ours, Metric::P50, Bound::AtMost(1.05), LL));
        bars.push(bar("write4k", ours, Metric::P50, Bound::AtMost(1.05), LL));
        bars.push(bar("open", ours, Metric::Rate, Bound::AtLeast(1.0), HP));
        bars.push(bar("write4k", ours, Metric::Rate, Bound::AtLeast(1.0), HP));
        bars.push(bar("write4k-fsync", ours, Metric::Rate, Bound::AtLeast(2.0), LL));
    }
    bars
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loops_do_what_they_say_on_a_plain_directory() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("root");
        std::fs::create_dir(&root).unwrap();
        let tree = Tree::new(root.clone(), &directory.path().join("sources")).unwrap();
        for (name, run) in LOOPS {
            // It drops the machine's caches.
            if name == "stat-cold" {
                continue;
            }
            let work =
                run(&tree, Duration::from_millis(5)).unwrap_or_else(|error| panic!("{name}: {error:#}"));
            assert!(work.operations > 0, "{name}");
            tree.tidy().unwrap();
        }
        let mut left: Vec<_> = std::fs::read_dir(root)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        left.sort();
        assert_eq!(left, ["data", "list", "stat"], "what the loops made is gone");
    }
}
