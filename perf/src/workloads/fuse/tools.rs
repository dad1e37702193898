//! What people do: unpack a source tree, clone a repository, look at its state, remove it.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::Result;

use super::super::files::{path_text, run};
use super::meter::Meter;
use super::tree::{Tree, git};
use crate::contender::Work;

/// Repeats a command: `prepare` makes the place new each time and does not count.
fn commands(
    time: Duration,
    prepare: impl Fn() -> Result<()>,
    command: impl Fn() -> Result<()>,
) -> Result<Work> {
    let mut meter = Meter::default();
    while meter.elapsed() < time {
        prepare()?;
        meter.batch(|count, _| count < 1, |_| command(), || Ok(()))?;
    }
    Ok(meter.work())
}

fn unpack(tree: &Tree, into: &Path) -> Result<()> {
    let archive = path_text(&tree.sources.archive)?;
    run("tar", vexfs_harness::command("tar").args(["-C", path_text(into)?, "-xf", archive]))
}

fn clone(tree: &Tree, into: &Path) -> Result<()> {
    let mut command = git(into);
    run(
        "git clone",
        command.args(["clone", "-q", "--no-hardlinks"]).arg(&tree.sources.repository).arg("clone"),
    )
}

fn emptied(tree: &Tree) -> Result<()> {
    tree.tidy()?;
    tree.made().map(drop)
}

/// 1,200 files.
pub fn untar(tree: &Tree, time: Duration) -> Result<Work> {
    let made = tree.made()?;
    commands(time, || emptied(tree), || unpack(tree, &made))
}

/// The same, with its history.
pub fn git_clone(tree: &Tree, time: Duration) -> Result<Work> {
    let made = tree.made()?;
    commands(time, || emptied(tree), || clone(tree, &made))
}

/// Looks at each file of a clone.
pub fn git_status(tree: &Tree, time: Duration) -> Result<Work> {
    let made = tree.made()?;
    clone(tree, &made)?;
    let repository = made.join("clone");
    commands(time, || Ok(()), || run("git status", git(&repository).args(["status", "--short"])))
}

/// rm -r of what was unpacked.
pub fn remove_tree(tree: &Tree, time: Duration) -> Result<Work> {
    let made = tree.made()?;
    commands(time, || unpack(tree, &made), || Ok(fs::remove_dir_all(made.join("tree"))?))
}
