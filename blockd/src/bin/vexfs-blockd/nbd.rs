//! The options of `serve` about NBD: where it listens, how that is protected, what is exported.

use std::net::ToSocketAddrs;
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
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    pub tls_cert: Option<PathBuf>,

    /// The private key of the certificate: a PEM file
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    pub tls_key: Option<PathBuf>,

    /// Let only clients in that show a certificate of an authority in this PEM file
    ///
    /// Without it every client that can reach the port may read and change the volume.
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    pub tls_client_ca: Option<PathBuf>,

    /// Serve TCP without TLS: everyone who can reach the port may read and change the volume
    #[arg(long, conflicts_with = "tls_cert")]
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
    pub fn listen(&self) -> Vec<Listen> {
        let listen = |address: &Address| Listen {
            address: address.clone(),
            mode: self.mode.unwrap_or(MODE),
            tls_cert: self.tls_cert.clone(),
            tls_key: self.tls_key.clone(),
            tls_client_ca: self.tls_client_ca.clone(),
            insecure: self.insecure,
        };
        self.addresses.iter().map(listen).collect()
    }
}

/// How connections at a place are protected; TLS is read from its files.
///
/// # Errors
/// The files of TLS cannot be read or do not fit together.
pub fn security(listen: &Listen) -> Result<Security> {
    match (&listen.address, &listen.tls_cert, &listen.tls_key) {
        (Address::Unix(_), _, _) => Ok(Security::Socket),
        (Address::Tcp { .. }, Some(certificates), Some(key)) => {
            Ok(Security::Tls(TlsConfig::load(TlsFiles {
                certificates: certificates.clone(),
                key: key.clone(),
                client_authorities: listen.tls_client_ca.clone(),
            })?))
        }
        (Address::Tcp { .. }, None, None) if listen.insecure => Ok(Security::Insecure),
        (Address::Tcp { .. }, None, None) => Ok(Security::Socket),
        (Address::Tcp { .. }, _, _) => bail!("{}: TLS needs both tls_cert and tls_key", listen.address),
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
            let encrypted = listen.iter().any(|listen| listen.tls_cert.is_some());
            let host = address.strip_prefix("tcp:").unwrap_or(address);
            format!("{}://{host}/{export}", if encrypted { "nbds" } else { "nbd" })
        }
    }
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
}
