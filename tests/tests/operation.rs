//! Running a daemon: configuration, control socket, metrics, systemd, logs, the ways to end it.

use std::io::{Read, Write};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;
use vexfs_tests::process::{self, Background};
use vexfs_tests::programs::{ours, tool};
use vexfs_tests::stage::{Daemon, Stage};

const VOLUME_MIB: u64 = 64;

/// A configuration that serves the stage's image at its socket.
fn config(stage: &Stage, more: &str) -> std::path::PathBuf {
    let path = stage.path("config.toml");
    let text = format!(
        "name = \"disk\"\n{more}\n[[listen]]\naddress = \"unix:{}\"\n\n[[export]]\nimage = \"{}\"\nname = \"vol\"\n",
        stage.socket().display(),
        stage.image().display()
    );
    std::fs::write(&path, text).unwrap();
    path
}

fn serve(stage: &Stage, config: &Path) -> Command {
    let mut command = ours("vexfs-blockd");
    command.arg("serve").arg("--config").arg(config).env("VEXFS_RUN_DIR", stage.run_dir());
    command
}

fn qemu_io(stage: &Stage, commands: &[&str]) {
    let mut qemu = tool("qemu-io");
    qemu.args(["-f", "raw"]);
    for command in commands {
        qemu.args(["-c", command]);
    }
    process::ok(qemu.arg(stage.uri()));
}

fn json(command: &mut Command) -> Value {
    serde_json::from_str(&process::ok(command)).expect("one JSON object")
}

/// What `GET path` at a unix socket gives, head and all.
fn http(socket: &Path, path: &str) -> String {
    let mut stream = UnixStream::connect(socket).unwrap();
    stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes()).unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}

/// The value of a metric's line.
fn metric(text: &str, line: &str) -> f64 {
    let found =
        text.lines().find_map(|l| l.strip_prefix(line)).unwrap_or_else(|| panic!("no {line} in\n{text}"));
    found.trim().parse().expect("a number")
}

#[test]
fn a_daemon_is_configured_watched_and_drained() {
    let stage = Stage::raw(VOLUME_MIB);
    let metrics = stage.path("metrics");
    let config = config(&stage, &format!("metrics = [\"unix:{}\"]", metrics.display()));
    let checked = process::ok(ours("vexfs-blockd").arg("check-config").arg(&config));
    assert!(checked.contains("is good") && checked.contains("\"vol\""), "{checked}");
    let daemon = stage.daemon_by(&mut serve(&stage, &config));

    let before = json(stage.vexctl().args(["stats", "--json"]));
    qemu_io(&stage, &["write -P 7 0 1M", "write -z -u 1M 1M", "flush", "read -P 7 0 1M", "discard 0 64k"]);
    let text = process::ok(stage.vexctl().arg("status"));
    assert!(
        text.contains("disk: serving") && text.contains("\"vol\"") && text.contains("64.0 MiB"),
        "{text}"
    );
    let status = json(stage.vexctl().args(["status", "--json", "--daemon", "disk"]));
    assert_eq!(status["exports"][0]["volume"]["space"]["used_bytes"], (1 << 20) - (64 << 10));
    assert_eq!(status["pid"], daemon.pid());
    let after = json(stage.vexctl().args(["stats", "--json"]));
    let ops = |stats: &Value, kind: &str| -> u64 {
        let requests = stats["exports"]["vol"]["requests"].as_array().unwrap();
        let of = requests.iter().find(|of| of["kind"] == kind).unwrap();
        of["latency"]["buckets"].as_array().unwrap().iter().map(|n| n.as_u64().unwrap()).sum()
    };
    for kind in ["read", "write", "write_zeroes", "flush", "trim"] {
        assert!(ops(&after, kind) > ops(&before, kind), "{kind}: {after}");
    }
    let shown = process::ok(stage.vexctl().arg("stats"));
    assert!(shown.contains("write_zeroes") && shown.contains("export \"vol\""), "{shown}");

    let text = http(&metrics, "/metrics");
    assert!(text.starts_with("HTTP/1.1 200"), "{text}");
    assert_eq!(metric(&text, "vexfs_used_bytes{export=\"vol\"}"), f64::from((1 << 20) - (64 << 10)));
    assert_eq!(metric(&text, "vexfs_request_bytes_total{export=\"vol\",op=\"write\"}"), f64::from(1 << 20));
    assert_eq!(metric(&text, "vexfs_failed{export=\"vol\"}"), 0.0);

    let checkpoints =
        || metric(&http(&metrics, "/metrics"), "vexfs_checkpoint_duration_seconds_count{export=\"vol\"}");
    let before = checkpoints();
    let done = process::ok(stage.vexctl().args(["checkpoint", "vol"]));
    assert!(done.contains("checkpoint written"), "{done}");
    let unknown = process::fails(stage.vexctl().args(["checkpoint", "nonsense"]));
    assert!(unknown.contains("nonsense") && unknown.contains("vol"), "{unknown}");
    assert!(checkpoints() > before, "{before} checkpoints before");

    let tuned = json(stage.vexctl().args(["tune", "cleaner_mib_per_s=7", "checkpoint_mib=16", "--json"]));
    assert_eq!(
        (&tuned["vol"]["cleaner_mib_per_s"], &tuned["vol"]["checkpoint_mib"]),
        (&7.into(), &16.into())
    );
    let bad = process::fails(stage.vexctl().args(["tune", "cleaner_mib_per_s=9", "free_segments=1000"]));
    assert!(bad.contains("too many to aim for"), "{bad}");
    let shown = process::ok(stage.vexctl().arg("tune"));
    assert!(shown.lines().any(|line| line.split_whitespace().eq(["cleaner_mib_per_s", "7"])), "{shown}");

    let drained = process::ok(stage.vexctl().arg("drain"));
    assert!(drained.contains("drained"), "{drained}");
    daemon.ends();
    assert!(!stage.socket().exists() && !metrics.exists(), "the sockets are gone");
    assert_eq!(std::fs::read_dir(stage.run_dir()).unwrap().count(), 0, "the control socket too");
    let nobody = process::fails(stage.vexctl().arg("status"));
    assert!(nobody.contains("no daemon"), "{nobody}");
}

#[test]
fn a_wrong_configuration_is_refused_with_its_line() {
    let stage = Stage::raw(VOLUME_MIB);
    let config = config(&stage, "nmae = \"x\"");
    for command in [&mut serve(&stage, &config), ours("vexfs-blockd").arg("check-config").arg(&config)] {
        let refused = process::fails(command);
        assert!(refused.contains("line 2") && refused.contains("nmae"), "{refused}");
    }
    assert!(!stage.socket().exists());
    let missing = process::fails(ours("vexfs-blockd").args(["check-config", "/nonexistent"]));
    assert!(missing.contains("/nonexistent"), "{missing}");
}

#[test]
fn systemd_hears_of_it_and_the_log_is_json() {
    let stage = Stage::raw(VOLUME_MIB);
    let notify = stage.path("notify");
    let socket = UnixDatagram::bind(&notify).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let mut command = stage.daemon_command();
    command.args(["--log-format", "json"]).env("NOTIFY_SOCKET", &notify);
    // Half of this is the period; without WATCHDOG_PID it is for every process.
    command.env("WATCHDOG_USEC", "200000");
    let mut process = Background::spawn(&mut command, &stage.path("json.log"));
    let mut heard = String::new();
    let mut buffer = [0; 4096];
    let mut hear = |what: &str| {
        while !heard.contains(what) {
            let got = socket
                .recv(&mut buffer)
                .unwrap_or_else(|error| panic!("{what} never came ({error}): {heard}"));
            heard.push_str(&String::from_utf8_lossy(&buffer[..got]));
        }
    };
    hear("READY=1");
    hear("WATCHDOG=1");
    hear("STATUS=serving");
    assert!(UnixStream::connect(stage.socket()).is_ok(), "ready is when clients can connect");
    process.terminate();
    hear("STOPPING=1");
    assert!(process.wait().success());
    let log = process.log();
    let events: Vec<Value> = log
        .lines()
        .filter(|line| line.starts_with('{'))
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert!(events.iter().any(|event| event["message"] == "stopping" && event["signal"] == 15), "{log}");
    assert_eq!(
        log.lines().filter(|line| !line.starts_with('{')).count(),
        1,
        "but for the one on stdout: {log}"
    );
}

#[test]
fn a_control_socket_in_use_is_only_a_warning_unless_it_was_asked_for() {
    let stage = Stage::raw(VOLUME_MIB);
    let first = stage.daemon();
    let other = Stage::raw(VOLUME_MIB);
    let mut command = other.daemon_command();
    command.env("VEXFS_RUN_DIR", stage.run_dir());
    let second = other.daemon_by(&mut command);
    assert!(second.log().contains("without a control socket"), "{}", second.log());
    let status = json(stage.vexctl().args(["status", "--json"]));
    assert_eq!(status["pid"], first.pid());
    second.stop();
    let path = format!("unix:{}", stage.run_dir().join("image.sock").display());
    let refused = process::fails(other.daemon_command().args(["--control", &path]));
    assert!(refused.contains("another server is listening"), "{refused}");
    first.stop();
}

#[test]
fn a_killed_daemons_control_socket_is_replaced() {
    let stage = Stage::raw(VOLUME_MIB);
    stage.daemon().kill();
    assert!(stage.run_dir().join("image.sock").exists());
    let dead = process::fails(stage.vexctl().arg("status"));
    assert!(dead.contains("no daemon answers"), "{dead}");
    let daemon = stage.daemon();
    assert_eq!(json(stage.vexctl().args(["status", "--json"]))["pid"], daemon.pid());
    daemon.stop();
}

/// fio that writes and verifies for some seconds.
fn fio(stage: &Stage) -> Background {
    let mut fio = vexfs_tests::programs::fio();
    fio.args([
        "--name=x",
        "--ioengine=nbd",
        "--rw=randwrite",
        "--bsrange=4k-32k",
        "--size=24m",
        "--iodepth=16",
    ]);
    fio.args([
        "--verify=crc32c",
        "--verify_fatal=1",
        "--verify_backlog=512",
        "--rate_iops=700",
        "--randrepeat=1",
    ]);
    fio.arg(format!("--uri={}", stage.uri())).current_dir(stage.path("."));
    Background::spawn(&mut fio, &stage.path("fio.log"))
}

fn pid(stage: &Stage) -> Option<u64> {
    let output = process::output(stage.vexctl().args(["status", "--json", "--daemon", "image"]));
    serde_json::from_slice::<Value>(&output.stdout).ok()?["pid"].as_u64()
}

fn clients(stage: &Stage) -> usize {
    json(stage.vexctl().args(["status", "--json"]))["connections"].as_array().unwrap().len()
}

/// Waits until fio's requests arrive.
fn wait_for_client(stage: &Stage, fio: &mut Background) {
    fio.wait_until("fio being connected", || clients(stage) > 0);
}

#[test]
fn a_running_fio_sees_no_error_when_new_processes_take_over() {
    let stage = Stage::raw(VOLUME_MIB);
    let mut daemon = stage.daemon();
    let mut fio = fio(&stage);
    for round in 0..3 {
        wait_for_client(&stage, &mut fio);
        let successor = Background::spawn(
            stage.daemon_command().args(["--takeover", "--log", "blockd=debug"]),
            &stage.path(&format!("successor-{round}.log")),
        );
        daemon.ends();
        assert!(stage.socket().exists() && stage.run_dir().join("image.sock").exists(), "the sockets stay");
        assert_eq!(pid(&stage), Some(successor.pid().into()), "{}", successor.log());
        daemon = successor.into();
        assert!(fio.ended().is_none() || round > 0, "fio outlasts a hand-over: {}", fio.log());
    }
    assert!(fio.wait().success(), "{}\n{}", fio.log(), daemon.log());
    daemon.stop();
    assert!(!stage.socket().exists(), "the last one removes the socket");
}

#[test]
fn a_daemon_starts_its_own_successor_at_sigusr2() {
    let stage = Stage::raw(VOLUME_MIB);
    let daemon = stage.daemon();
    let mut fio = fio(&stage);
    wait_for_client(&stage, &mut fio);
    let old = daemon.pid();
    process::ok(Command::new("kill").args(["-USR2", &old.to_string()]));
    daemon.ends();
    let new = pid(&stage).expect("the successor answers");
    assert_ne!(new, u64::from(old));
    assert!(fio.wait().success(), "{}", fio.log());
    process::ok(stage.vexctl().arg("drain"));
    vexfs_tests::wait::until("the end of the successor", || {
        (!Path::new(&format!("/proc/{new}")).exists()).then_some(())
    });
}

#[test]
fn a_successor_that_dies_leaves_everything_as_it_was() {
    let stage = Stage::raw(VOLUME_MIB);
    let daemon = stage.daemon();
    let mut fio = fio(&stage);
    wait_for_client(&stage, &mut fio);
    for round in 0..3 {
        let mut successor = UnixStream::connect(stage.run_dir().join("image.sock")).unwrap();
        successor.write_all(b"{\"cmd\":\"takeover\"}\n").unwrap();
        let mut said = [0; 8];
        successor.read_exact(&mut said).unwrap();
        assert_eq!(&said, b"VEXFSHO1", "round {round}: {}", daemon.log());
        drop(successor);
        vexfs_tests::wait::until("the daemon being back", || pid(&stage));
    }
    assert_eq!(pid(&stage), Some(daemon.pid().into()));
    assert!(fio.wait().success(), "{}\n{}", fio.log(), daemon.log());
    assert!(daemon.log().contains("going on in this process"), "{}", daemon.log());
    daemon.stop();
}

#[test]
fn a_mount_goes_on_in_its_session_when_a_new_process_takes_over() {
    let stage = Stage::vexfs(128);
    let mut daemon = stage.daemon();
    let mount = stage.mount_daemon();
    for round in 0..3 {
        let name = format!("before-{round}");
        std::fs::write(mount.join(&name), vec![round; 1 << 20]).unwrap();
        let successor = Background::spawn(
            stage.daemon_command().arg("--takeover"),
            &stage.path(&format!("successor-{round}.log")),
        );
        daemon.ends();
        assert!(std::fs::read(mount.join(&name)).unwrap() == vec![round; 1 << 20]);
        let file = std::fs::File::create(mount.join(format!("after-{round}"))).unwrap();
        (&file).write_all(b"x").unwrap();
        file.sync_all().unwrap();
        daemon = successor.into();
    }
    mount.unmount();
    daemon.stop();
    let log = std::fs::read_to_string(stage.path("fuse.log")).unwrap();
    assert!(!log.contains("WARN") && !log.contains("ERROR"), "the mount noticed nothing: {log}");
}

/// A take-over that fails leaves the old daemon as it was: reachable, with its clients.
fn assert_goes_on(stage: &Stage, daemon: &Daemon, mut fio: Background) {
    vexfs_tests::wait::until("the daemon being back", || pid(stage));
    assert_eq!(pid(stage), Some(daemon.pid().into()));
    assert!(stage.socket().exists() && stage.run_dir().join("image.sock").exists(), "the sockets stay");
    assert!(fio.wait().success(), "{}\n{}", fio.log(), daemon.log());
    process::ok(tool("nbdinfo").arg("--size").arg(stage.uri()));
}

#[test]
fn a_daemon_of_another_image_takes_nothing_over() {
    let stage = Stage::raw(VOLUME_MIB);
    let daemon = stage.daemon();
    let mut fio = fio(&stage);
    wait_for_client(&stage, &mut fio);
    let other = stage.path("other/image.img");
    std::fs::create_dir(other.parent().unwrap()).unwrap();
    process::ok(ours("mkfs.vexfs").arg(&other).args(["--raw", "--size", "64M"]));
    let mut command = ours("vexfs-blockd");
    command.arg("serve").arg(&other).arg("--nbd").arg(format!("unix:{}", stage.socket().display()));
    let refused = process::fails(command.arg("--takeover").env("VEXFS_RUN_DIR", stage.run_dir()));
    assert!(refused.contains("is volume") && refused.contains("--name"), "{refused}");
    assert_goes_on(&stage, &daemon, fio);
    daemon.stop();
}

#[test]
fn a_successor_that_cannot_serve_leaves_the_sockets_where_they_are() {
    let stage = Stage::raw(VOLUME_MIB);
    let daemon = stage.daemon();
    let mut fio = fio(&stage);
    wait_for_client(&stage, &mut fio);
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let metrics = format!("tcp:{}", taken.local_addr().unwrap());
    let refused = process::fails(stage.daemon_command().args(["--takeover", "--metrics", &metrics]));
    assert!(refused.contains("cannot serve metrics"), "{refused}");
    assert_goes_on(&stage, &daemon, fio);
    daemon.stop();
    assert!(!stage.socket().exists(), "it removes the socket in the end");
}

#[test]
fn a_signal_to_stop_in_a_hand_over_ends_it() {
    let stage = Stage::raw(VOLUME_MIB);
    let daemon = stage.daemon();
    // One that negotiates keeps the hand-over waiting for a moment.
    let mut silent = UnixStream::connect(stage.socket()).unwrap();
    silent.read_exact(&mut [0; 18]).unwrap();
    let mut successor = UnixStream::connect(stage.run_dir().join("image.sock")).unwrap();
    successor.write_all(b"{\"cmd\":\"takeover\"}\n").unwrap();
    process::ok(Command::new("kill").args(["-TERM", &daemon.pid().to_string()]));
    // If the signal came too late, it had everything offered, and refuses by going away.
    let offered = successor.read_exact(&mut [0; 8]).is_ok();
    drop(successor);
    let log = daemon.ends();
    assert_eq!(offered, log.contains("going on in this process"), "{log}");
    assert!(!stage.socket().exists() && !stage.run_dir().join("image.sock").exists(), "{log}");
}

#[test]
fn taking_over_from_nobody_is_refused() {
    let stage = Stage::raw(VOLUME_MIB);
    let refused = process::fails(stage.daemon_command().arg("--takeover"));
    assert!(refused.contains("image.sock") && refused.contains("is it running"), "{refused}");
    let without = process::fails(stage.daemon_command().args(["--takeover", "--control", "none"]));
    assert!(without.contains("control socket"), "{without}");
}

#[test]
fn systemds_sockets_are_listened_on_and_left() {
    let stage = Stage::raw(VOLUME_MIB);
    let config = stage.path("config.toml");
    std::fs::write(
        &config,
        format!("control = \"none\"\n[[export]]\nimage = \"{}\"\n", stage.image().display()),
    )
    .unwrap();
    let mut command = tool("systemd-socket-activate");
    command.arg("-l").arg(stage.socket()).arg("--fdname=nbd").arg(ours("vexfs-blockd").get_program());
    command.args(["serve", "--config"]).arg(&config);
    let mut process = Background::spawn(&mut command, &stage.path("activate.log"));
    process.wait_until("the socket", || stage.socket().exists());
    qemu_io(&stage, &["write -P 7 0 1M", "read -P 7 0 1M"]);
    assert!(process.log().contains("serving"), "{}", process.log());
    process.terminate();
    assert!(process.wait().success(), "{}", process.log());
    assert!(stage.socket().exists(), "it is not ours to remove");
}
