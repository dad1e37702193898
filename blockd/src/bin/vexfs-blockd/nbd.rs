//! The options of `serve` about NBD: where it listens, how that is protected, what is exported.

use std::net::{SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Result, bail};
use blockd::device::Device;
use blockd::handover::{Handed, Kind};
use blockd::nbd::client::Target;
use blockd::nbd::server::{Address, Export, Listener, MODE, Security, TlsConfig, TlsFiles};
use clap::Args as ClapArgs;

use crate::config::{self, Listen};

#[derive(ClapArgs, Debug)]
pub struct Nbd {
    /// Where to listen: unix:PATH, or tcp:HOST[:PORT]; may be given several times
    ///
    /// A unix socket gets mode 0600 (see --mode). A socket file that nobody listens on is replaced; one that
    /// is in use is left alone. The file is removed at the end. TCP needs --tls-cert and --tls-key, or
    /// --insecure; without PORT it is 10809.
    #[arg(long = "nbd", value_name = "ADDRESS", required_unless_present = "config")]
    pub addresses: Vec<Address>,

    /// Name of the NBD export; the empty name always works too
    #[arg(long, value_name = "NAME", requires = "image")]
    pub export: Option<String>,

    /// Size of a logical block, in bytes: clients are told it, and smaller requests are refused
    ///
    /// A power of two. Without it a raw volume takes requests of any length (smaller ones than 4096 cost a read of
    /// the rest of the page), and a VexFS volume those of whole pages. A disk for the kernel or a virtual machine
    /// has blocks of 512 or 4096.
    #[arg(long, value_name = "BYTES", requires = "image")]
    pub block_size: Option<u32>,

    /// Permissions of unix sockets, octal [default: 0600]
    #[arg(long, value_name = "MODE", value_parser = mode, requires = "addresses")]
    pub mode: Option<u32>,

    /// The server's X.509 certificate, and those up to its root, for TLS on TCP: a PEM file
    #[arg(long, value_name = "FILE", requires = "tls_key", requires = "addresses")]
    pub tls_cert: Option<PathBuf>,

    /// The private key of the certificate: a PEM file
    #[arg(long, value_name = "FILE", requires = "tls_cert", requires = "addresses")]
    pub tls_key: Option<PathBuf>,

    /// Let only clients in that show a certificate of an authority in this PEM file
    ///
    /// Without it every client that can reach the port may read and change the volume.
    #[arg(long, value_name = "FILE", requires = "tls_cert", requires = "addresses")]
    pub tls_client_ca: Option<PathBuf>,

    /// Serve TCP without TLS: everyone who can reach the port may read and change the volume
    #[arg(long, conflicts_with = "tls_cert", requires = "addresses")]
    pub insecure: bool,
}

/// Permissions from octal digits.
///
/// # Errors
/// A sentence that says what is wanted.
pub fn mode(text: &str) -> Result<u32, String> {
    match u32::from_str_radix(text, 8) {
        Ok(mode @ 0..=0o777) if mode & 0o600 == 0o600 => Ok(mode),
        _ => Err("write three octal digits that let the owner read and write, such as 0660".into()),
    }
}

impl Nbd {
    /// The addresses, each protected as the flags say.
    ///
    /// # Errors
    /// There are flags for TCP, and no such address.
    pub fn listen(&self) -> Result<Vec<Listen>> {
        let is_tcp = |address: &Address| matches!(address, Address::Tcp { .. });
        if (self.insecure || self.tls_cert.is_some()) && !self.addresses.iter().any(is_tcp) {
            bail!("--insecure and --tls-cert are for TCP, and no --nbd is tcp:HOST[:PORT]; {BY_MODE}");
        }
        let listen = |address: &Address| {
            let for_tcp = |file: &Option<PathBuf>| file.clone().filter(|_| is_tcp(address));
            Listen {
                address: address.clone(),
                mode: self.mode.unwrap_or(MODE),
                tls_cert: for_tcp(&self.tls_cert),
                tls_key: for_tcp(&self.tls_key),
                tls_client_ca: for_tcp(&self.tls_client_ca),
                insecure: self.insecure && is_tcp(address),
            }
        };
        Ok(self.addresses.iter().map(listen).collect())
    }
}

/// What protects the rest.
const BY_MODE: &str = "a unix socket is protected by its mode";

/// Checks that an address is protected in a way that fits it; reads no file.
///
/// # Errors
/// What does not fit.
pub fn check(listen: &Listen) -> Result<()> {
    let Listen { address, tls_cert, tls_key, tls_client_ca, insecure, .. } = listen;
    let tls = tls_cert.is_some() || tls_key.is_some() || tls_client_ca.is_some();
    match address {
        Address::Unix(_) if tls || *insecure => {
            bail!(
                "{address}: tls_cert, tls_key, tls_client_ca and insecure are for TCP; {BY_MODE}, so leave them out"
            )
        }
        Address::Unix(_) => {}
        Address::Tcp { .. } if tls && *insecure => {
            bail!("{address}: with insecure = true there is no TLS; leave it out, or tls_cert and the others")
        }
        Address::Tcp { .. } if tls && (tls_cert.is_none() || tls_key.is_none()) => {
            bail!("{address}: TLS needs both tls_cert and tls_key")
        }
        Address::Tcp { .. } if !tls && !insecure => bail!(
            "{address} without TLS lets everyone who can reach it read and change the volume; give a certificate and its key \
             (tls_cert and tls_key, or --tls-cert and --tls-key), or say that it is meant (insecure = true, or --insecure)"
        ),
        Address::Tcp { .. } => {}
    }
    Ok(())
}

/// How connections at a place are protected; TLS is read from its files.
///
/// # Errors
/// The files of TLS cannot be read or do not fit together.
pub fn security(listen: &Listen) -> Result<Security> {
    check(listen)?;
    match (&listen.address, &listen.tls_cert, &listen.tls_key) {
        (Address::Unix(_), _, _) => Ok(Security::Socket),
        (Address::Tcp { .. }, Some(certificates), Some(key)) => {
            Ok(Security::Tls(TlsConfig::load(TlsFiles {
                certificates: certificates.clone(),
                key: key.clone(),
                client_authorities: listen.tls_client_ca.clone(),
            })?))
        }
        (Address::Tcp { .. }, _, _) => Ok(Security::Insecure),
    }
}

/// The listeners; sockets that were handed over are taken out of `handed` and used.
///
/// # Errors
/// As [`security`].
pub fn listeners(listen: &[Listen], handed: &mut Vec<Handed>) -> Result<Vec<Listener>> {
    let mut out = Vec::new();
    for listen in listen {
        let security = security(listen)?;
        let addresses = bound_addresses(&listen.address);
        let (mine, others): (Vec<_>, Vec<_>) = std::mem::take(handed)
            .into_iter()
            .partition(|handed| handed.state.kind == Kind::Nbd && addresses.contains(&handed.state.address));
        *handed = others;
        if mine.is_empty() {
            out.push(Listener::at(listen.address.clone(), security.clone()).mode(listen.mode));
        }
        out.extend(mine.into_iter().map(|Handed { socket, state }| match state.activated {
            true => Listener::inherited(socket, security.clone()),
            false => Listener::adopted(socket, security.clone()),
        }));
    }
    let (activated, others): (Vec<_>, Vec<_>) = std::mem::take(handed)
        .into_iter()
        .partition(|handed| handed.state.kind == Kind::Nbd && handed.state.activated);
    *handed = others;
    out.extend(activated.into_iter().map(|handed| Listener::inherited(handed.socket, Security::Socket)));
    Ok(out)
}

/// What a socket that is bound to an address says of itself; several if a host has several addresses.
fn bound_addresses(address: &Address) -> Vec<String> {
    match address {
        Address::Unix(_) => vec![address.to_string()],
        // One that cannot be resolved is said to be so when it is bound.
        Address::Tcp { host, port } => (host.as_str(), *port)
            .to_socket_addrs()
            .map_or_else(|_| Vec::new(), |found| found.map(|address| format!("tcp:{address}")).collect()),
    }
}

/// A device under its name.
///
/// # Errors
/// The name or the block size do not fit.
pub fn export(config: &config::Export, device: Arc<dyn Device>) -> Result<Export> {
    let export = Export::new(config.name.as_str(), device)?;
    Ok(match config.block_size {
        Some(bytes) => export.with_block_size(bytes)?,
        None => export,
    })
}

/// How clients name an export that is served at `address`, one of the bound ones.
pub fn uri(address: &str, export: &str, listen: &[Listen]) -> String {
    match address.strip_prefix("unix:") {
        Some(socket) => Target { socket: socket.into(), export: export.into() }.to_string(),
        None => {
            let encrypted = place_of(address, listen).is_some_and(|listen| listen.tls_cert.is_some());
            let host = address.strip_prefix("tcp:").unwrap_or(address);
            format!("{}://{host}/{export}", if encrypted { "nbds" } else { "nbd" })
        }
    }
}

/// Which of the configured places a bound TCP address is at.
fn place_of<'a>(address: &str, listen: &'a [Listen]) -> Option<&'a Listen> {
    let bound: SocketAddr = address.strip_prefix("tcp:")?.parse().ok()?;
    let is_at = |listen: &&Listen, port_wanted: u16| match &listen.address {
        Address::Tcp { host, port } if *port == port_wanted => {
            let found = (host.as_str(), bound.port()).to_socket_addrs();
            found.is_ok_and(|mut found| found.any(|address| address == bound))
        }
        _ => false,
    };
    // Port 0 is any that nobody asked for.
    listen.iter().find(|one| is_at(one, bound.port())).or_else(|| listen.iter().find(|one| is_at(one, 0)))
}

const _: () = assert!(MODE == 0o600, "the default of --mode");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_are_octal_and_leave_the_owner_in() {
        assert_eq!(mode("0660"), Ok(0o660));
        assert_eq!(mode("600"), Ok(0o600));
        for text in ["", "9", "0x1b0", "1777", "060", "0400"] {
            assert!(mode(text).unwrap_err().contains("0660"), "{text}");
        }
    }

    fn listen(text: &str) -> Listen {
        toml::from_str(text).unwrap()
    }

    #[test]
    fn what_protects_an_address_fits_it() {
        let tls = "tls_cert = \"c\"\ntls_key = \"k\"";
        for (address, more, word) in [
            ("unix:/s", tls, "protected by its mode"),
            ("unix:/s", "tls_client_ca = \"a\"", "protected by its mode"),
            ("unix:/s", "insecure = true", "protected by its mode"),
            ("tcp:127.0.0.1", "", "insecure = true"),
            ("tcp:127.0.0.1", "tls_cert = \"c\"", "both tls_cert and tls_key"),
            ("tcp:127.0.0.1", "tls_client_ca = \"a\"", "both tls_cert and tls_key"),
            ("tcp:127.0.0.1", &format!("{tls}\ninsecure = true"), "no TLS"),
        ] {
            let said = check(&listen(&format!("address = \"{address}\"\n{more}"))).unwrap_err().to_string();
            assert!(said.contains(word) && said.contains(address), "{said}");
        }
        for good in ["address = \"unix:/s\"", "address = \"tcp:[::1]\"\ninsecure = true"] {
            check(&listen(good)).unwrap();
        }
        check(&listen(&format!("address = \"tcp:localhost\"\n{tls}"))).unwrap();
    }

    #[test]
    fn only_addresses_with_tls_are_said_to_have_it() {
        let listen = [
            listen("address = \"tcp:127.0.0.1:1\"\ntls_cert = \"c\"\ntls_key = \"k\""),
            listen("address = \"tcp:127.0.0.1:2\"\ninsecure = true"),
            listen("address = \"tcp:127.0.0.2:0\"\ntls_cert = \"c\"\ntls_key = \"k\""),
            listen("address = \"tcp:[::1]:0\"\ninsecure = true"),
        ];
        for (address, expected) in [
            ("tcp:127.0.0.1:1", "nbds://127.0.0.1:1/x"),
            ("tcp:127.0.0.1:2", "nbd://127.0.0.1:2/x"),
            ("tcp:127.0.0.2:3333", "nbds://127.0.0.2:3333/x"),
            ("tcp:[::1]:4444", "nbd://[::1]:4444/x"),
            ("unix:/s", "nbd+unix:///x?socket=/s"),
        ] {
            assert_eq!(uri(address, "x", &listen), expected);
        }
    }
}
