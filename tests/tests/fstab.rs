//! mount(8) and /etc/fstab: the helper `mount.fuse.vexfs`, in a namespace of its own; and snapshots as mounts.

use std::fs;
use std::process::Command;

use vexfs_tests::stage::Stage;
use vexfs_tests::{process, programs};

/// Runs a bash script as in a machine of its own where `make install` put the helper: mounts and processes that it leaves end
/// with it. `$1` is the scratch directory, which has `image` and `mnt`.
fn in_namespace(stage: &Stage, script: &str) -> Command {
    let sbin = stage.path("sbin");
    if !sbin.exists() {
        fs::create_dir(&sbin).unwrap();
        fs::create_dir_all(stage.path("mnt")).unwrap();
        let program = programs::ours("vexfs-fuse").get_program().to_owned();
        std::os::unix::fs::symlink(program, sbin.join("mount.fuse.vexfs")).unwrap();
    }
    let mut command = programs::tool("unshare");
    // mount(8) looks for helpers in /sbin alone.
    let prepare = "cd \"$1\"; mount --bind sbin \"$(readlink -f /sbin)\"";
    command.args([
        "--mount",
        "--pid",
        "--fork",
        "--kill-child",
        "--mount-proc",
        "bash",
        "-euo",
        "pipefail",
        "-c",
    ]);
    command.arg(format!("{prepare}\n{script}")).arg("bash").arg(stage.path(""));
    command
}

/// Commands for [`in_namespace`] that several scripts use.
const COMMON: &str = r#"
gone() { for _ in $(seq 1 1000); do pgrep -x vexfs-fuse >/dev/null || return 0; sleep 0.01; done; return 1; }
refused() { # STATUS COMMAND...
  local status=0; "${@:2}" || status=$?
  [ $status -eq "$1" ] || { echo "status $status, not $1: ${*:2}"; return 1; }
}
"#;

#[test]
fn a_line_of_fstab_mounts_the_volume() {
    let stage = Stage::vexfs(64);
    let script = format!(
        "{COMMON}{}",
        r#"
        echo "$1image $1mnt fuse.vexfs noexec,commit=30,nofail,x-systemd.automount 0 0" >fstab
        mount -T fstab "$1mnt"
        # It is live when mount(8) returns, and looks as the line says.
        findmnt -nro SOURCE,FSTYPE "$1mnt" | grep -Fx "$1image fuse.vexfs"
        findmnt -nro OPTIONS "$1mnt" | grep -F noexec
        echo first >mnt/file
        umount mnt
        # At once: the last commit is waited for.
        mount -a -T fstab
        [ "$(cat mnt/file)" = first ]
        # It is known as mounted, and so is not mounted over.
        mount -a -T fstab
        [ "$(grep -c "$1mnt " /proc/mounts)" -eq 1 ]
        umount mnt
        gone
        "#
    );
    process::ok(&mut in_namespace(&stage, &script));
}

#[test]
fn mount_gets_the_statuses_it_knows() {
    let stage = Stage::vexfs(64);
    let script = format!(
        "{COMMON}{}",
        r#"
        refused 32 mount -t fuse.vexfs "$1nothing" mnt 2>said
        grep -F "$1nothing" said
        refused 1 mount -t fuse.vexfs -o speed=11 "$1image" mnt 2>said
        grep -F speed=11 said
        # -f: only tried, -s: what is not known is left out.
        mount -f -t fuse.vexfs "$1image" mnt
        if mountpoint -q mnt; then exit 1; fi
        mount -v -s -t fuse.vexfs -o ro,speed=11 "$1image" mnt
        mountpoint -q mnt
        refused 1 touch mnt/file
        umount mnt
        gone
        "#
    );
    process::ok(&mut in_namespace(&stage, &script));
}

#[test]
fn a_snapshot_is_mounted_read_only() {
    let stage = Stage::vexfs(64);
    let mount = stage.mount();
    fs::write(mount.join("file"), b"then").unwrap();
    mount.unmount();
    process::ok(stage.vexctl().args(["snapshot", "create"]).arg(stage.image()).arg("monday"));
    let mount = stage.mount();
    fs::write(mount.join("file"), b"now").unwrap();
    fs::write(mount.join("later"), b"").unwrap();
    mount.unmount();

    let script = format!(
        "{COMMON}{}",
        r#"
        echo "$1image $1mnt fuse.vexfs snapshot=monday 0 0" >fstab
        mount -T fstab "$1mnt"
        [ "$(cat mnt/file)" = then ]
        [ "$(ls mnt)" = file ]
        findmnt -nro OPTIONS mnt | grep -E '^ro,'
        refused 1 touch mnt/more 2>said
        grep -F 'Read-only file system' said
        umount mnt
        gone
        refused 32 mount -t fuse.vexfs -o snapshot=tuesday "$1image" mnt 2>said
        grep -F tuesday said
        "#
    );
    process::ok(&mut in_namespace(&stage, &script));

    // Through a daemon, beside the live volume.
    let daemon = stage.daemon();
    let live = stage.mount_daemon();
    assert_eq!(fs::read(live.join("file")).unwrap(), b"now");
    let old = stage.mount_snapshot_of_daemon("monday", &stage.path("old"));
    assert_eq!(fs::read(old.join("file")).unwrap(), b"then");
    assert!(!old.join("later").exists());
    fs::write(live.join("file"), b"still live").unwrap();
    assert_eq!(fs::read(old.join("file")).unwrap(), b"then");
    old.unmount();
    live.unmount();
    daemon.stop();

    let mount = stage.mount();
    assert_eq!(fs::read(mount.join("file")).unwrap(), b"still live");
    mount.unmount();
}
