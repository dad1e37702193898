//! The options of `serve` about NBD: where it listens, how that is protected, what is exported.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result};
use blockd::device::Device;
use blockd::nbd::client::Target;
use blockd::nbd::server::{Address, Export, Listener, MODE, Security, TlsConfig, TlsFiles};
use clap::Args as ClapArgs;

#[derive(ClapArgs, Debug)]
pub struct Nbd {
    /// Where to listen: unix:PATH, or tcp:HOST[:PORT]; may be given several times
    ///
    /// A unix socket gets mode 0600 (see --mode). A socket file that nobody listens on is replaced; one that
    /// is in use is left alone. The file is removed at the end. TCP needs --tls-cert and --tls-key, or
    /// --insecure; without PORT it is 10809.
    #[arg(long = "nbd", value_name = "ADDRESS", required = true)]
    pub addresses: Vec<Address>,

    /// Name of the NBD export; the empty name always works too
    #[arg(long, value_name = "NAME", default_value = "")]
    pub export: String,

    /// Size of a logical block, in bytes: clients are told it, and smaller requests are refused
    ///
    /// A power of two. Without it a raw volume takes requests of any length (smaller ones than 4096 cost a read of
    /// the rest of the page), and a VexFS volume those of whole pages. A disk for the kernel or a virtual machine
    /// has blocks of 512 or 4096.
    #[arg(long, value_name = "BYTES")]
    pub block_size: Option<u32>,

    /// Permissions of unix sockets, octal
    #[arg(long, value_name = "MODE", value_parser = mode, default_value = "0600")]
    pub mode: u32,

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

fn mode(text: &str) -> Result<u32, String> {
    match u32::from_str_radix(text, 8) {
        Ok(mode @ 0..=0o777) if mode & 0o600 == 0o600 => Ok(mode),
        _ => Err("write three octal digits that let the owner read and write, such as 0660".into()),
    }
}

impl Nbd {
    /// The listeners, with TLS read from its files.
    pub fn listeners(&self) -> Result<Vec<Listener>> {
        let tls = match (&self.tls_cert, &self.tls_key) {
            (Some(certificates), Some(key)) => Some(TlsConfig::load(TlsFiles {
                certificates: certificates.clone(),
                key: key.clone(),
                client_authorities: self.tls_client_ca.clone(),
            })?),
            _ => None,
        };
        let listener = |address: &Address| {
            let security = match (address, &tls) {
                (Address::Unix(_), _) => Security::Socket,
                (Address::Tcp { .. }, Some(tls)) => Security::Tls(Arc::clone(tls)),
                (Address::Tcp { .. }, None) if self.insecure => Security::Insecure,
                (Address::Tcp { .. }, None) => Security::Socket,
            };
            Listener::at(address.clone(), security).mode(self.mode)
        };
        Ok(self.addresses.iter().map(listener).collect())
    }

    /// The device under its name.
    pub fn export(&self, device: Arc<dyn Device>) -> Result<Export> {
        let export = Export::new(self.export.as_str(), device).context("--export")?;
        match self.block_size {
            Some(bytes) => export.with_block_size(bytes).context("--block-size"),
            None => Ok(export),
        }
    }

    /// How clients name what is served at `address`, one of the bound ones.
    pub fn uri(&self, address: &str) -> String {
        let path = address.strip_prefix("unix:").map(PathBuf::from);
        match path {
            Some(socket) => Target { socket, export: self.export.clone() }.to_string(),
            None => {
                let scheme = if self.tls_cert.is_some() { "nbds" } else { "nbd" };
                let host = address.strip_prefix("tcp:").unwrap_or(address);
                format!("{scheme}://{host}/{}", self.export)
            }
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
