//! POSIX ACLs on a real mount, by the tools that people use.

mod common;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use common::{Bench, can_mount};

const SIZE: u64 = 256 << 20;

/// Runs a command that must succeed; gives what it prints.
fn run(program: &str, args: &[&str], path: &Path) -> String {
    let output = vexfs_harness::command(program).args(args).arg(path).output().unwrap();
    assert!(output.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// The entries that getfacl shows.
fn acl(path: &Path) -> Vec<String> {
    let shown = run("getfacl", &["--omit-header", "--numeric", "--absolute-names"], path);
    shown
        .lines()
        .filter(|line| !line.is_empty())
        .map(|line| line.split('\t').next().unwrap().into())
        .collect()
}

/// Whether user 1001 can read the file.
fn bob_reads(path: &Path) -> bool {
    let ids = ["--reuid", "1001", "--regid", "1001", "--clear-groups", "cat"];
    vexfs_harness::command("setpriv").args(ids).arg(path).output().unwrap().status.success()
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().mode() & 0o7777
}

fn chmod(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

#[test]
fn acls_are_kept_enforced_and_inherited() {
    let tools = ["setfacl", "getfacl", "setpriv"];
    let missing = tools.iter().find(|tool| vexfs_harness::command(tool).arg("--version").output().is_err());
    if let Some(tool) = missing {
        eprintln!("skipped: {tool} is not installed");
        return;
    }
    if !can_mount() {
        return;
    }
    let bench = Bench::new(SIZE);
    chmod(bench.beside("").as_path(), 0o755);
    let mount = bench.mount("");
    let file = bench.path("file");
    fs::write(&file, "secret").unwrap();
    chmod(&file, 0o600);
    assert!(!bob_reads(&file));
    run("setfacl", &["-m", "u:1001:r,g:77:rw"], &file);
    assert_eq!(
        acl(&file),
        ["user::rw-", "user:1001:r--", "group::---", "group:77:rw-", "mask::rw-", "other::---"]
    );
    assert_eq!(mode(&file), 0o660);
    assert!(bob_reads(&file));
    chmod(&file, 0o620);
    assert!(!bob_reads(&file), "the mask has no read");
    assert!(acl(&file).contains(&"mask::-w-".to_owned()));
    chmod(&file, 0o640);
    assert!(bob_reads(&file));

    // A default ACL instead of the umask; without one the umask.
    let dir = bench.path("dir");
    fs::create_dir(&dir).unwrap();
    run("setfacl", &["-m", "d:u:1001:rx,d:o::-"], &dir);
    let make = |umask: &str, what: &str| {
        let script = format!("umask {umask}; {what}");
        let status =
            vexfs_harness::command("sh").args(["-c", &script]).current_dir(bench.mountpoint()).status();
        assert!(status.unwrap().success(), "{script}");
    };
    make("077", "touch dir/f plain; mkdir dir/sub");
    let in_dir = bench.path("dir/f");
    assert_eq!(mode(&bench.path("plain")), 0o600);
    assert_eq!(acl(&in_dir), ["user::rw-", "user:1001:r-x", "group::r-x", "mask::r--", "other::---"]);
    assert_eq!(mode(&in_dir), 0o640);
    assert!(bob_reads(&in_dir));
    assert_eq!(
        acl(&bench.path("dir/sub")),
        acl(&dir)
            .iter()
            .filter(|line| line.starts_with("default"))
            .map(|line| line.trim_start_matches("default:").to_owned())
            .chain(acl(&dir).into_iter().filter(|line| line.starts_with("default")))
            .collect::<Vec<_>>()
    );

    // Copies keep them; equal ones are taken back to the mode.
    run("cp", &["-a", dir.to_str().unwrap()], &bench.path("copy"));
    assert_eq!(acl(&bench.path("copy/f")), acl(&in_dir));
    assert_eq!(acl(&bench.path("copy")), acl(&dir));
    run("setfacl", &["-b"], &file);
    assert_eq!(acl(&file), ["user::rw-", "group::---", "other::---"]);
    assert!(!bob_reads(&file));
    mount.unmount();
    let mount = bench.mount("ro");
    assert_eq!(acl(&bench.path("copy/f")).len(), 5);
    assert!(bob_reads(&bench.path("copy/f")) && !bob_reads(&file));
    mount.unmount();
}
