//! The daemon on the network: its options, and a flood of connections that say nothing.

use std::io::Read;
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;

use blockd::device::VolumeKind;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::certificates::Certificates;
use crate::common::daemon::Daemon;
use crate::daemon::{Place, place};
use crate::peer::Peer;

/// A line of /proc/PID/status, its number.
fn status(daemon: &Daemon, key: &str) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{}/status", daemon.child.id())).unwrap();
    let line = text.lines().find(|line| line.starts_with(key)).expect("the key is there");
    line.split_whitespace().nth(1).and_then(|number| number.parse().ok()).expect("a number")
}

fn descriptors(daemon: &Daemon) -> usize {
    std::fs::read_dir(format!("/proc/{}/fd", daemon.child.id())).unwrap().count()
}

/// The daemon on a unix socket and a TCP port of its choice; gives the port's address.
fn on_tcp(place: &Place, arguments: &[&str]) -> (Daemon, String) {
    let mut command = Daemon::command(&place.image, &place.socket);
    command.args(["--nbd", "tcp:127.0.0.1:0"]).args(arguments);
    let daemon = Daemon::run(&mut command);
    let uri = daemon.ready.split_whitespace().last().expect("an address");
    let address = uri.split_once("://").unwrap().1.split('/').next().unwrap().to_owned();
    (daemon, address)
}

#[test]
fn a_thousand_half_open_connections_cost_little_and_keep_nobody_out() {
    // Both ends of half of them are ours to open.
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).unwrap();
    let place = place(VolumeKind::Raw);
    let (daemon, address) = on_tcp(&place, &["--insecure"]);
    let (threads, memory, files) =
        (status(&daemon, "Threads:"), status(&daemon, "VmRSS:"), descriptors(&daemon));
    let mut silent_unix = Vec::new();
    let mut silent_tcp = Vec::new();
    for i in 0..1000 {
        silent_unix.push(UnixStream::connect(&place.socket).unwrap());
        silent_tcp.push(TcpStream::connect(&address).unwrap());
        if i % 100 == 99 {
            // In the middle of it a good client comes in, and is served.
            let mut good = Peer::transmitting(&place.socket);
            assert_eq!(good.write(0, 512 * i, &[7; 512]), 0);
            let mut tcp = Peer(TcpStream::connect(&address).unwrap());
            tcp.hear_greeting();
            tcp.put(&3u32.to_be_bytes());
            tcp.go("");
            assert_eq!(tcp.read(512 * i, 512), [7; 512]);
        }
    }
    // Two connections may still be on their way out.
    let more = status(&daemon, "Threads:").saturating_sub(threads);
    assert!(more <= 8, "{more} more threads");
    let more = status(&daemon, "VmRSS:").saturating_sub(memory);
    assert!(more < 32 << 10, "{more} KiB more");
    // Those sent away are closed sooner or later; on a busy machine not at once.
    while descriptors(&daemon).saturating_sub(files) > 2 * 256 + 40 {
        std::thread::yield_now();
    }
    // Those that came first were sent away, those that came last still wait.
    let mut rest = Vec::new();
    silent_unix[0].read_to_end(&mut rest).expect("closed");
    assert_eq!(rest.len(), 18, "the greeting, then the end");
    silent_unix[999].set_nonblocking(true).unwrap();
    let mut greeting = [0; 18];
    while silent_unix[999].read_exact(&mut greeting).is_err() {}
    assert_eq!(
        silent_unix[999].read(&mut [0; 1]).unwrap_err().kind(),
        std::io::ErrorKind::WouldBlock,
        "the last one is still there"
    );
    assert_eq!(daemon.stop(), Some(0), "it does not wait for them");
}

#[test]
fn tcp_needs_tls_or_the_word() {
    let place = place(VolumeKind::Raw);
    let refused = |arguments: &[&str]| {
        let output = Daemon::command(&place.image, &place.socket).args(arguments).output().unwrap();
        assert!(output.stdout.is_empty(), "no ready line");
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    let (code, said) = refused(&["--nbd", "tcp:127.0.0.1:0"]);
    assert_eq!(code, Some(1));
    assert!(
        said.contains("--tls-cert") && said.contains("--insecure") && said.contains("127.0.0.1"),
        "{said}"
    );
    assert!(!place.socket.exists(), "the other socket is removed again");
    let (code, said) = refused(&["--nbd", "tcp:127.0.0.1:0", "--tls-cert", "/nonexistent"]);
    assert_eq!(code, Some(2), "a certificate without a key");
    assert!(said.contains("--tls-key"), "{said}");
    let (code, said) =
        refused(&["--nbd", "tcp:127.0.0.1:0", "--tls-cert", "/nonexistent", "--tls-key", "/nonexistent"]);
    assert_eq!(code, Some(1));
    assert!(said.contains("/nonexistent") && said.contains("PEM"), "{said}");
    let (code, said) = refused(&["--mode", "7777"]);
    assert_eq!(code, Some(2));
    assert!(said.contains("0660"), "{said}");
    let (code, said) = refused(&["--block-size", "1000"]);
    assert_eq!(code, Some(1));
    assert!(said.contains("power of two"), "{said}");
}

#[test]
fn options_reach_the_sockets_and_exports() {
    let place = place(VolumeKind::Raw);
    let certificates = Certificates::make(place.image.parent().unwrap());
    let files = certificates.server(true);
    let path = |path: &std::path::Path| path.to_str().unwrap().to_owned();
    let authorities = path(files.client_authorities.as_ref().unwrap());
    let (daemon, address) = on_tcp(
        &place,
        &[
            "--mode",
            "0660",
            "--block-size",
            "512",
            "--export",
            "disk",
            "--tls-cert",
            &path(&files.certificates),
            "--tls-key",
            &path(&files.key),
            "--tls-client-ca",
            &authorities,
        ],
    );
    assert!(daemon.ready.contains("nbds://127.0.0.1:") && daemon.ready.contains("nbd+unix:///disk?socket="));
    assert_eq!(std::fs::metadata(&place.socket).unwrap().permissions().mode() & 0o777, 0o660);
    // The unix socket has no TLS, TCP nothing else.
    let mut unix = Peer::negotiating(&place.socket);
    unix.go("disk");
    assert_eq!(unix.call(0, 0, 0, 256), 22, "less than a block");
    assert_eq!(unix.read(512, 512), [0; 512]);
    let mut tcp = Peer(TcpStream::connect(&address).unwrap());
    tcp.hear_greeting();
    tcp.put(&3u32.to_be_bytes());
    tcp.option(3, b"");
    assert_eq!(tcp.option_reply().1, (1 << 31) + 5, "TLS is required");
    if let Ok(output) = vexfs_harness::command("nbdinfo")
        .arg("--size")
        .arg(format!(
            "nbds://{address}/disk?tls-certificates={}",
            certificates.folder("client").to_str().unwrap()
        ))
        .output()
    {
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert_eq!(said.trim(), (16u64 << 20).to_string(), "{output:?}");
    }
    assert_eq!(daemon.stop(), Some(0));
}

#[test]
fn what_serve_refuses_check_config_refuses_too() {
    let place = place(VolumeKind::Raw);
    let config = place.image.with_file_name("config.toml");
    let run = |head: &str, listen: &str, export: &str, command: &[&str]| {
        let text = format!(
            "control = \"none\"\n{head}\n[[listen]]\n{listen}\n[[export]]\nimage = \"{}\"\n{export}\n",
            place.image.display()
        );
        std::fs::write(&config, text).unwrap();
        vexfs_harness::command(env!("CARGO_BIN_EXE_vexfs-blockd"))
            .args(command)
            .arg(&config)
            .output()
            .unwrap()
    };
    let unix = format!("address = \"unix:{}\"", place.socket.display());
    let tcp = "address = \"tcp:127.0.0.1:0\"";
    let files = "tls_cert = \"/nonexistent\"\ntls_key = \"/nonexistent\"";
    for (head, listen, export, word) in [
        ("", tcp, "", "insecure = true"),
        ("", &format!("{tcp}\n{files}"), "", "/nonexistent"),
        ("", &format!("{unix}\n{files}"), "", "protected by its mode"),
        ("", &unix, "block_size = 777", "power of two"),
        ("log = \"foo=bar=baz\"", &unix, "", "is no filter"),
    ] {
        for command in [&["check-config"][..], &["serve", "--config"]] {
            let output = run(head, listen, export, command);
            let said = String::from_utf8(output.stderr).unwrap();
            assert_eq!(output.status.code(), Some(1), "{command:?} {listen} {export}: {said}");
            assert!(said.contains(word), "{command:?}: {said}");
        }
    }
    let good = run("", &unix, "name = \"x\"\nsnapshot = \"monday\"", &["check-config"]);
    let said = String::from_utf8(good.stdout).unwrap();
    assert!(good.status.success() && said.contains("snapshot \"monday\" of"), "{said}");
}

#[test]
fn only_the_port_with_tls_is_announced_as_such() {
    let place = place(VolumeKind::Raw);
    let files = Certificates::make(place.image.parent().unwrap()).server(false);
    let config = place.image.with_file_name("config.toml");
    let text = format!(
        "control = \"none\"\n[[listen]]\naddress = \"tcp:127.0.0.1:0\"\ntls_cert = {:?}\ntls_key = {:?}\n\
         [[listen]]\naddress = \"tcp:127.0.0.2:0\"\ninsecure = true\n[[export]]\nimage = {:?}\n",
        files.certificates, files.key, place.image
    );
    std::fs::write(&config, text).unwrap();
    let mut command = vexfs_harness::command(env!("CARGO_BIN_EXE_vexfs-blockd"));
    let daemon = Daemon::run(command.args(["serve", "--config"]).arg(&config));
    let ready = &daemon.ready;
    assert!(ready.contains("nbds://127.0.0.1:") && ready.contains("nbd://127.0.0.2:"), "{ready}");
    assert_eq!(daemon.stop(), Some(0));
}

#[test]
fn so_many_clients_as_are_set_are_served_and_the_next_is_told_what_to_do() {
    let place = place(VolumeKind::Raw);
    let mut command = Daemon::command(&place.image, &place.socket);
    let daemon = Daemon::run(command.args(["--connections", "2"]));
    let _clients = [(); 2].map(|()| Peer::transmitting(&place.socket));
    let mut third = Peer::negotiating(&place.socket);
    third.option(7, &crate::peer::go("", &[]));
    let (_, kind, said) = third.option_reply();
    let said = String::from_utf8_lossy(&said);
    assert_eq!(kind, (1 << 31) + 2, "by policy");
    assert!(said.contains("all 2 connections") && said.contains("--connections"), "{said}");
    assert_eq!(daemon.stop(), Some(0));
}
