//! TLS on TCP: what is said before it, who is let in, and that the transmission under it is whole.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use blockd::nbd::server::{Export, Exports, Limits, Listener, Security, TlsConfig};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

use crate::certificates::Certificates;
use crate::peer::{DISC, FLUSH, Peer, READ, WRITE, go};
use crate::ram::{Ram, Seen, tagged};
use crate::served::Served;

const MIB: u64 = 1 << 20;
const TLS_REQUIRED: u32 = (1 << 31) + 5;

type Encrypted = StreamOwned<ClientConnection, TcpStream>;

/// A server on TCP with TLS; gives its address.
fn serve(dir: &Path, ram: &Arc<Ram>, authenticate: bool, limits: Limits) -> (Served, Certificates, String) {
    let certificates = Certificates::make(dir);
    let tls = TlsConfig::load(certificates.server(authenticate)).unwrap();
    let listener = Listener::at("tcp:127.0.0.1:0".parse().unwrap(), Security::Tls(tls));
    let exports = Exports::single(Export::new("disk", ram.clone()).unwrap());
    let (served, addresses) = Served::listening(vec![listener], exports, limits);
    let address = addresses[0].strip_prefix("tcp:").unwrap().to_owned();
    (served, certificates, address)
}

/// In the option phase, before TLS.
fn clear(address: &str) -> Peer<TcpStream> {
    let stream = TcpStream::connect(address).unwrap();
    // Only so that a failing test ends.
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let mut peer = Peer(stream);
    peer.hear_greeting();
    peer.put(&3u32.to_be_bytes());
    peer
}

fn config(folder: &Path, with_certificate: bool) -> ClientConfig {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(folder.join("ca-cert.pem")).unwrap()).unwrap();
    let builder = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots);
    if with_certificate {
        let chain = vec![CertificateDer::from_pem_file(folder.join("client-cert.pem")).unwrap()];
        let key = PrivateKeyDer::from_pem_file(folder.join("client-key.pem")).unwrap();
        builder.with_client_auth_cert(chain, key).unwrap()
    } else {
        builder.with_no_client_auth()
    }
}

fn encrypt(mut peer: Peer<TcpStream>, config: ClientConfig) -> Peer<Encrypted> {
    peer.option(5, b"");
    assert_eq!(peer.option_reply(), (5, 1, vec![]));
    let name = ServerName::try_from("localhost").unwrap();
    Peer(StreamOwned::new(ClientConnection::new(Arc::new(config), name).unwrap(), peer.0))
}

fn transmitting(address: &str, certificates: &Certificates) -> Peer<Encrypted> {
    let mut peer = encrypt(clear(address), config(&certificates.folder("client"), true));
    peer.go("disk");
    peer
}

#[test]
fn nothing_is_said_before_tls() {
    let dir = tempfile::tempdir().unwrap();
    let ram = Ram::new(MIB);
    let (_served, certificates, address) = serve(dir.path(), &ram, false, Limits::default());
    let mut peer = clear(&address);
    for (option, data) in [
        (3, vec![]),
        (6, go("disk", &[])),
        (7, go("disk", &[])),
        (8, vec![]),
        (11, vec![]),
        (99, vec![1; 50]),
    ] {
        peer.option(option, &data);
        let (answered, kind, said) = peer.option_reply();
        assert_eq!((answered, kind), (option, TLS_REQUIRED));
        assert!(!String::from_utf8_lossy(&said).contains("disk"), "no name is told");
    }
    peer.option(5, b"x");
    assert_eq!(peer.option_reply().1, (1 << 31) + 3);
    // What was said before is void after it, and TLS begins once.
    let mut peer = encrypt(peer, config(&certificates.folder("client"), false));
    peer.option(5, b"");
    assert_eq!(peer.option_reply().1, (1 << 31) + 3);
    peer.option(3, b"");
    assert_eq!(peer.option_reply(), (3, 2, b"\0\0\0\x04disk".to_vec()));
    assert_eq!(peer.option_reply().1, 1);
    assert_eq!(peer.go("disk") & (1 << 7), 0, "no DF: chunks were not chosen under TLS");
    assert_eq!(peer.read(0, 512), [0; 512]);
    // The option that has no error reply.
    let mut peer = clear(&address);
    peer.option(1, b"disk");
    peer.assert_closed();
    // To end politely is allowed.
    let mut peer = clear(&address);
    peer.option(2, b"");
    assert_eq!(peer.option_reply(), (2, 1, vec![]));
    peer.assert_closed();
}

#[test]
fn clear_bytes_behind_starttls_are_not_taken_for_encrypted_ones() {
    let dir = tempfile::tempdir().unwrap();
    let ram = Ram::new(MIB);
    let (_served, _certificates, address) = serve(dir.path(), &ram, false, Limits::default());
    let mut peer = clear(&address);
    let mut bytes = b"IHAVEOPT\0\0\0\x05\0\0\0\0".to_vec();
    bytes.extend(b"IHAVEOPT\0\0\0\x07");
    let data = go("disk", &[]);
    bytes.extend((data.len() as u32).to_be_bytes());
    bytes.extend(data);
    peer.put(&bytes);
    assert_eq!(peer.option_reply(), (5, 1, vec![]));
    // A TLS alert at most, then the end.
    let mut rest = Vec::new();
    let _ = peer.0.read_to_end(&mut rest);
    assert!(rest.len() < 64 && !rest.windows(4).any(|w| w == b"disk"), "{rest:?}");
    assert_eq!(ram.connected(), 0);
}

#[test]
fn only_clients_of_the_authority_are_let_in() {
    let dir = tempfile::tempdir().unwrap();
    let ram = Ram::new(MIB);
    let (_served, certificates, address) = serve(dir.path(), &ram, true, Limits::default());
    for (folder, with_certificate) in [("client", false), ("stranger", true)] {
        let mut peer = encrypt(clear(&address), config(&certificates.folder(folder), with_certificate));
        // In TLS 1.3 the client learns of it with the first answer.
        let asked = peer.0.write_all(b"IHAVEOPT\0\0\0\x03\0\0\0\0").and_then(|()| peer.0.flush());
        let answer = asked.and_then(|()| peer.0.read_exact(&mut [0; 20]));
        assert!(answer.is_err(), "{folder} {with_certificate}");
    }
    assert_eq!(transmitting(&address, &certificates).read(0, 512), [0; 512]);
    ram.wait_connected(0);
}

#[test]
fn much_data_in_both_directions_is_whole() {
    let dir = tempfile::tempdir().unwrap();
    let ram = Ram::new(64 * MIB);
    let (served, certificates, address) = serve(dir.path(), &ram, true, Limits::default());
    let mut peer = transmitting(&address, &certificates);
    let bytes: Vec<u8> = (0..32 << 20).map(|i: u32| (i / 977) as u8).collect();
    assert_eq!(peer.write(0, 4096, &bytes), 0);
    assert!(peer.read(4096, 32 << 20) == bytes);
    for i in 0..50 {
        assert_eq!(peer.write(1, i * 8192, &tagged(i, 8192)), 0);
        assert!(peer.read(i * 8192, 8192)[..] == tagged(i, 8192)[..]);
    }
    assert_eq!(peer.call(0, FLUSH, 0, 0), 0);
    let [connection] = &served.stopper().connections()[..] else { panic!("one connection") };
    assert!(connection.tls && connection.export == "disk" && connection.peer.starts_with("127.0.0.1:"));
    peer.request(0, DISC, 1, 0, 0);
    // The server closes TLS first, then the connection.
    let mut rest = Vec::new();
    assert_eq!(peer.0.read_to_end(&mut rest).expect("close_notify came"), 0);
    ram.wait_connected(0);
}

#[test]
fn a_half_closed_client_gets_its_answers() {
    let dir = tempfile::tempdir().unwrap();
    let ram = Ram::new(MIB);
    let (_served, certificates, address) = serve(dir.path(), &ram, false, Limits::default());
    for polite in [true, false] {
        let mut peer = transmitting(&address, &certificates);
        ram.hold();
        peer.request(0, WRITE, 1, 0, 4096);
        peer.put(&[7; 4096]);
        peer.request(0, READ, 2, 8192, 512);
        ram.wait_held(2);
        if polite {
            peer.0.conn.send_close_notify();
        }
        peer.0.flush().unwrap();
        peer.0.sock.shutdown(Shutdown::Write).unwrap();
        ram.release_all();
        assert_eq!(peer.reply(), (0, 1));
        assert_eq!(peer.reply(), (0, 2));
        peer.take(512);
        ram.wait_connected(0);
    }
}

#[test]
fn a_client_that_takes_no_answers_is_bounded_and_cut_at_the_end() {
    let dir = tempfile::tempdir().unwrap();
    let ram = Ram::new(64 * MIB);
    let limits = Limits { requests: 8, payload_bytes: 4 << 20, drain_timeout_ms: 1, ..Limits::default() };
    let (served, certificates, address) = serve(dir.path(), &ram, false, limits);
    let mut peer = transmitting(&address, &certificates);
    for cookie in 0..64 {
        peer.request(0, READ, cookie, 0, 1 << 20);
    }
    assert_eq!(peer.reply(), (0, 0));
    served.stop();
    // The budget, and what sockets and the bridge hold.
    let read = ram.take_seen().len();
    assert!(read < 32, "{read} reads of 1 MiB were begun");
    assert_eq!(ram.connected(), 0);
}

#[test]
fn a_client_cut_off_in_a_write_writes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let ram = Ram::new(MIB);
    let (_served, certificates, address) = serve(dir.path(), &ram, false, Limits::default());
    let mut peer = transmitting(&address, &certificates);
    peer.request(0, WRITE, 1, 0, 65536);
    peer.put(&[1; 60_000]);
    drop(peer);
    ram.wait_connected(0);
    assert_eq!(ram.take_seen(), []);
    // What the old connection began comes before what the new one sends.
    let mut old = transmitting(&address, &certificates);
    ram.hold();
    old.request(0, WRITE, 1, 0, 512);
    old.put(&[1; 512]);
    ram.wait_held(1);
    drop(old);
    let mut new = transmitting(&address, &certificates);
    new.request(0, WRITE, 2, 0, 512);
    new.put(&[2; 512]);
    ram.release_all();
    assert_eq!(new.reply(), (0, 2));
    assert_eq!(ram.bytes(0, 512), [2; 512]);
    assert_eq!(ram.take_seen().len(), 2);
}

#[test]
fn stopping_waits_for_encrypted_answers() {
    let dir = tempfile::tempdir().unwrap();
    let ram = Ram::new(4 * MIB);
    let (served, certificates, address) = serve(dir.path(), &ram, false, Limits::default());
    let mut peer = transmitting(&address, &certificates);
    ram.hold();
    for cookie in 0..3 {
        peer.request(0, READ, cookie, 0, 1 << 20);
    }
    ram.wait_held(3);
    served.stopper().stop();
    ram.release_all();
    let stopping = std::thread::spawn(move || served.stop());
    for cookie in 0..3 {
        assert_eq!(peer.reply(), (0, cookie));
        peer.take(1 << 20);
    }
    let mut rest = Vec::new();
    assert_eq!(peer.0.read_to_end(&mut rest).expect("close_notify came"), 0);
    drop(peer);
    stopping.join().unwrap();
    assert_eq!(ram.connected(), 0);
    assert!(ram.take_seen().iter().all(|seen| matches!(seen, Seen::Read(..))));
}

#[test]
fn a_silent_tls_handshake_ends_at_the_limit_and_a_unix_socket_has_no_tls() {
    let dir = tempfile::tempdir().unwrap();
    let ram = Ram::new(MIB);
    let limits = Limits { handshake_timeout_ms: 300, ..Limits::default() };
    let (_served, _certificates, address) = serve(dir.path(), &ram, false, limits);
    let mut peer = clear(&address);
    peer.option(5, b"");
    assert_eq!(peer.option_reply(), (5, 1, vec![]));
    peer.assert_closed();
    let path = dir.path().join("sock");
    let _unix = Served::start(&path, ram);
    let mut peer = Peer::negotiating(&path);
    peer.option(5, b"");
    assert_eq!(peer.option_reply().1, (1 << 31) + 2, "by policy");
    peer.go("disk");
}
