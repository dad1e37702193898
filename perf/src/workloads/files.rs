//! Images and files, made and filled before anything is measured.

use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};
use rustix::fs::{Advice, fadvise};

/// A file of `len_bytes`, all of it written.
pub fn make_file(path: &Path, len_bytes: u64) -> Result<()> {
    std::fs::File::create(path)?.set_len(len_bytes)?;
    allocate(path)
}

/// Writes a file over with its own content, so that no hole is left: a first write into a hole costs the file system
/// more than a second one. Nothing of it stays in the page cache, where it would count as this process's.
pub fn allocate(path: &Path) -> Result<()> {
    let fail = || format!("cannot allocate {}", path.display());
    let file = std::fs::OpenOptions::new().read(true).write(true).open(path).with_context(fail)?;
    let len_bytes = file.metadata()?.len();
    let mut part = vec![0; 1 << 20];
    let mut at = 0;
    while at < len_bytes {
        let len = usize::try_from(len_bytes - at).unwrap_or(usize::MAX).min(part.len());
        file.read_exact_at(&mut part[..len], at).with_context(fail)?;
        file.write_all_at(&part[..len], at).with_context(fail)?;
        at += len as u64;
    }
    file.sync_all().with_context(fail)?;
    fadvise(&file, 0, None, Advice::DontNeed).with_context(fail)
}

/// Runs mkfs.vexfs.
pub fn make_image(mkfs: &Path, image: &Path, args: &[&str]) -> Result<()> {
    run("mkfs.vexfs", vexfs_harness::command(mkfs).arg(image).args(args))
}

/// Gives an image another size.
pub fn resize_image(vexctl: &Path, image: &Path, bytes: u64) -> Result<()> {
    let mut command = vexfs_harness::command(vexctl);
    run("vexctl resize", command.arg("resize").arg(image).arg("--size").arg(bytes.to_string()))
}

/// Runs a command to its end; what it says is in the error.
pub fn run(name: &str, command: &mut Command) -> Result<()> {
    let output = command.output().with_context(|| format!("cannot run {name}"))?;
    if !output.status.success() {
        bail!("{name}: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

/// A path as an argument.
pub fn path_text(path: &Path) -> Result<&str> {
    path.to_str().with_context(|| format!("{} is not UTF-8", path.display()))
}
