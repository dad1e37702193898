//! Where programs are.

use std::path::PathBuf;
use std::process::Command;

/// target/<profile>, two above this test executable (target/<profile>/deps/test-hash).
fn profile_dir() -> PathBuf {
    let exe = std::env::current_exe().expect("the test executable has a path");
    exe.ancestors().nth(2).expect("it stands in target/<profile>/deps").to_path_buf()
}

/// One of our programs, as a command.
///
/// # Panics
/// It was not built.
pub fn ours(name: &str) -> Command {
    // A binary's name can't hold a dot in cargo: mkfs.vexfs is built as mkfs-vexfs.
    let path = profile_dir().join(name.replace('.', "-"));
    assert!(path.is_file(), "{} is not there: run `cargo build --workspace --bins` before", path.display());
    vexfs_harness::command(path)
}

/// A tool of the system, as a command.
///
/// # Panics
/// It is not installed.
pub fn tool(name: &str) -> Command {
    vexfs_harness::command(path_of(name))
}

/// fio, as a command.
///
/// # Panics
/// It is not installed.
pub fn fio() -> Command {
    vexfs_harness::fio(path_of("fio"))
}

fn path_of(name: &str) -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let sbin = ["/usr/sbin", "/sbin"].map(PathBuf::from);
    let found =
        std::env::split_paths(&path).chain(sbin).map(|dir| dir.join(name)).find(|file| file.is_file());
    found.unwrap_or_else(|| panic!("{name} is not installed: run tests/scripts/deps.sh"))
}

/// A new directory on a real file system (not tmpfs: O_DIRECT and space), removed when dropped.
pub fn scratch() -> tempfile::TempDir {
    let parent = profile_dir().join("e2e");
    std::fs::create_dir_all(&parent).expect("target/<profile>/e2e can be made");
    tempfile::Builder::new().prefix("t").tempdir_in(parent).expect("a scratch directory can be made")
}
