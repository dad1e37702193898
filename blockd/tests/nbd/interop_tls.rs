//! Other people's clients over TLS, and on extended headers. A tool that is not installed is named and its part
//! passes.

use std::sync::Arc;

use blockd::nbd::server::{Export, Exports, Limits, Listener, Security, TlsConfig};

use crate::certificates::Certificates;
use crate::interop::{python, run, text};
use crate::ram::Ram;
use crate::served::Served;

const MIB: u64 = 1 << 20;

struct Secure {
    _served: Served,
    ram: Arc<Ram>,
    certificates: Certificates,
    port: String,
}

fn secure(dir: &std::path::Path) -> Secure {
    let certificates = Certificates::make(dir);
    let tls = TlsConfig::load(certificates.server(true)).unwrap();
    let listener = Listener::at("tcp:127.0.0.1:0".parse().unwrap(), Security::Tls(tls));
    let ram = Ram::new(16 * MIB);
    let exports = Exports::single(Export::new("disk", ram.clone()).unwrap());
    exports.add(Export::new("other", Ram::new(MIB)).unwrap().read_only()).unwrap();
    exports.set_default("disk");
    let (served, addresses) = Served::listening(vec![listener], exports, Limits::default());
    let port = addresses[0].rsplit(':').next().unwrap().to_owned();
    Secure { _served: served, ram, certificates, port }
}

impl Secure {
    fn uri(&self, folder: &str) -> String {
        let folder = self.certificates.folder(folder);
        format!("nbds://localhost:{}/disk?tls-certificates={}", self.port, folder.display())
    }
}

fn content() -> Vec<u8> {
    (0..16u32 << 20).map(|i| if (i >> 19) % 3 == 0 { 0 } else { (i / 977) as u8 }).collect()
}

#[test]
fn libnbd_works_over_tls_and_strangers_do_not() {
    let dir = tempfile::tempdir().unwrap();
    let secure = secure(dir.path());
    let Some(output) = run("nbdinfo", &["--json", &secure.uri("client")]) else { return };
    assert!(output.status.success(), "{}", text(&output));
    let said: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(said["TLS"], true, "{said}");
    assert_eq!(said["exports"][0]["export-size"], 16 * MIB, "{said}");
    let output = run("nbdinfo", &["--list", "--json", &secure.uri("client")]).expect("it ran just before");
    let said: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let exports = said["exports"].as_array().expect("exports");
    let names: Vec<_> = exports.iter().map(|export| export["export-name"].as_str().unwrap()).collect();
    assert_eq!(names, ["disk", "other"], "{said}");
    assert_eq!(exports[1]["is_read_only"], true, "{said}");
    // No certificate of the authority; no TLS at all.
    let output = run("nbdinfo", &[&secure.uri("stranger")]).expect("it ran just before");
    assert!(!output.status.success(), "{}", text(&output));
    let output =
        run("nbdinfo", &[&format!("nbd://localhost:{}/disk", secure.port)]).expect("it ran just before");
    assert!(!output.status.success() && text(&output).contains("TLS"), "{}", text(&output));
    let (source, target) = (dir.path().join("in"), dir.path().join("out"));
    std::fs::write(&source, content()).unwrap();
    if let Some(output) = run("nbdcopy", &[source.to_str().unwrap(), &secure.uri("client")]) {
        assert!(output.status.success(), "{}", text(&output));
        assert!(secure.ram.bytes(0, 16 << 20) == content(), "the device holds the file");
        let output = run("nbdcopy", &[&secure.uri("client"), target.to_str().unwrap()]).expect("it ran");
        assert!(output.status.success(), "{}", text(&output));
        assert!(std::fs::read(&target).unwrap() == content(), "the file came back");
    }
    secure.ram.wait_connected(0);
}

#[test]
fn qemu_works_over_tls_and_strangers_do_not() {
    let dir = tempfile::tempdir().unwrap();
    let secure = secure(dir.path());
    let credentials = |folder: &str| {
        let folder = secure.certificates.folder(folder);
        format!("tls-creds-x509,id=tls0,endpoint=client,dir={}", folder.display())
    };
    let image = format!(
        "driver=nbd,export=disk,server.type=inet,server.host=localhost,server.port={},tls-creds=tls0",
        secure.port
    );
    let commands = [
        "write -P 0x11 0 4M",
        "write -f -P 0xab 1M 64k",
        "write -z -u 2M 1M",
        "discard 3M 512k",
        "flush",
        "read -P 0xab 1M 64k",
        "read -P 0 2M 1M",
    ];
    let object = credentials("client");
    let mut arguments = vec!["--object", &object, "--image-opts", &image];
    for command in &commands {
        arguments.extend(["-c", command]);
    }
    let Some(output) = run("qemu-io", &arguments) else { return };
    let said = text(&output);
    assert!(output.status.success() && !said.contains("rror") && !said.contains("ailed"), "{said}");
    assert_eq!(secure.ram.bytes(MIB, 4), [0xab; 4]);
    let object = credentials("stranger");
    let arguments = ["--object", &object, "--image-opts", &image, "-c", "read 0 4k"];
    let output = run("qemu-io", &arguments).expect("it ran just before");
    assert!(!output.status.success(), "{}", text(&output));
    let object = credentials("client");
    let map = ["map", "--output=json", "--object", &object, "--image-opts", &image];
    let Some(output) = run("qemu-img", &map) else { return };
    assert!(output.status.success(), "{}", text(&output));
    let found: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let extents = found.as_array().expect("an array");
    let holes: u64 =
        extents.iter().filter(|e| e["zero"] == true).map(|e| e["length"].as_u64().unwrap()).sum();
    assert_eq!(holes, 13 * MIB + (512 << 10), "{found}");
    secure.ram.wait_connected(0);
}

/// Every refusal as a program sees it.
const SCRIPT: &str = r#"
import sys
try:
    import nbd
except ImportError:
    sys.exit(77)
import errno
def fails(call, *numbers):
    try:
        call()
    except nbd.Error as e:
        assert e.errnum in numbers, (e.errnum, str(e))
        return str(e)
    sys.exit("nothing failed")
def connect(name, *, strict=0):
    h = nbd.NBD()
    h.set_strict_mode(strict)
    h.set_export_name(name)
    h.connect_unix(sys.argv[1])
    return h
MIB = 1 << 20
h = connect("disk")
assert h.get_size() == 16 * MIB and h.can_multi_conn() and h.can_cache()
assert h.get_block_size(nbd.SIZE_MINIMUM) == 512
# The server's own sentence comes with the number, and the connection goes on.
fails(lambda: h.pread(512, 16 * MIB), errno.EINVAL)
fails(lambda: h.pread(100, 0), errno.EINVAL)
fails(lambda: h.pread(512, 7), errno.EINVAL)
fails(lambda: h.pwrite(bytes(512), 16 * MIB), errno.ENOSPC)
fails(lambda: h.pwrite(bytes(513), 0), errno.EINVAL)
fails(lambda: h.trim(1 << 20, 16 * MIB - 512), errno.EINVAL)
fails(lambda: h.zero(1 << 20, 16 * MIB - 512), errno.ENOSPC)
fails(lambda: h.cache(512, 16 * MIB), errno.EINVAL)
fails(lambda: h.block_status(512, 0, lambda *a: 0), errno.EINVAL, errno.ENOTSUP)
fails(lambda: h.pread(33 * MIB, 0), errno.EINVAL, errno.ERANGE)
h.pwrite(b"x" * 512, 512)
assert h.pread(1024, 0) == bytes(512) + b"x" * 512
h.cache(MIB, 0)
r = connect("ro")
assert r.is_read_only()
fails(lambda: r.pwrite(bytes(512), 0), errno.EPERM)
fails(lambda: r.trim(512, 0), errno.EPERM)
fails(lambda: r.zero(512, 0), errno.EPERM)
assert r.pread(512, 512) == b"x" * 512
r.flush()
# Names.
text = fails(lambda: connect("nothing"), errno.ENOENT, errno.EINVAL, 0)
h2 = nbd.NBD()
h2.set_opt_mode(True)
h2.connect_unix(sys.argv[1])
names = []
h2.opt_list(lambda name, description: names.append(name))
assert names == ["disk", "ro"], names
h2.set_export_name("nothing")
fails(h2.opt_info, errno.ENOENT, errno.EINVAL, 0)
h2.set_export_name("ro")
h2.opt_info()
assert h2.get_size() == 16 * MIB and h2.is_read_only()
contexts = []
h2.add_meta_context("base:allocation")
h2.opt_list_meta_context(contexts.append)
assert contexts == ["base:allocation"], contexts
h2.set_export_name("disk")
h2.opt_go()
h2.pwrite(b"y" * 512, 0, nbd.CMD_FLAG_FUA)
# What one connection wrote, another reads, and makes durable.
assert h.pread(512, 0) == b"y" * 512
h.flush()
h2.shutdown()
h.shutdown()
r.shutdown()
"#;

#[test]
fn libnbd_is_told_every_refusal_and_goes_on() {
    let (_dir, path) = crate::served::socket();
    let ram = Ram::new(16 * MIB);
    let exports = Exports::single(Export::new("disk", ram.clone()).unwrap());
    exports.add(Export::new("ro", ram.clone()).unwrap().read_only()).unwrap();
    exports.set_default("disk");
    let (_served, _) = Served::listening(vec![Listener::unix(&path)], exports, Limits::default());
    let Some(output) = run(python(), &["-c", SCRIPT, path.to_str().unwrap()]) else { return };
    if output.status.code() == Some(77) {
        println!("skipped: python3-libnbd is not installed");
        return;
    }
    assert!(output.status.success(), "{}", text(&output));
    ram.wait_connected(0);
}
