//! TLS for listeners: X.509 certificates from PEM files.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::RwLock;
use rustls::RootCertStore;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;

/// The files of a listener's TLS.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TlsFiles {
    /// The server's certificate, followed by those of the authorities between it and the root.
    pub certificates: PathBuf,
    /// The certificate's private key.
    pub key: PathBuf,
    /// Certificates of the authorities for clients: only a client with a certificate of theirs is let in.
    /// Without it every client is.
    pub client_authorities: Option<PathBuf>,
}

/// Why TLS cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file is not there, or is not what it should be.
    #[error("cannot read {what} from {path}: {why}; the file must be readable and in the PEM format")]
    File {
        /// What it should hold.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// The reason.
        why: String,
    },
    /// The certificate, its key or the authorities do not fit together.
    #[error("{path} cannot be used for TLS: {why}")]
    Unusable {
        /// The file to look at.
        path: PathBuf,
        /// The reason.
        why: String,
    },
}

/// TLS of a listener; see [`TlsConfig::reload`].
#[derive(Debug)]
pub struct TlsConfig {
    files: TlsFiles,
    current: RwLock<Arc<rustls::ServerConfig>>,
}

impl TlsConfig {
    /// Reads the files.
    ///
    /// # Errors
    /// [`TlsError`], naming the file.
    pub fn load(files: TlsFiles) -> Result<Arc<TlsConfig>, TlsError> {
        let current = RwLock::new(Arc::new(load(&files)?));
        Ok(Arc::new(TlsConfig { files, current }))
    }

    /// Reads the files again, for connections to come. If that fails nothing changes.
    ///
    /// # Errors
    /// [`TlsError`].
    pub fn reload(&self) -> Result<(), TlsError> {
        let fresh = Arc::new(load(&self.files)?);
        *self.current.write() = fresh;
        Ok(())
    }

    /// Clients must show a certificate.
    pub fn authenticates_clients(&self) -> bool {
        self.files.client_authorities.is_some()
    }

    pub(super) fn current(&self) -> Arc<rustls::ServerConfig> {
        Arc::clone(&self.current.read())
    }
}

fn load(files: &TlsFiles) -> Result<rustls::ServerConfig, TlsError> {
    let provider = Arc::new(ring::default_provider());
    let chain = certificates("the server's certificate", &files.certificates)?;
    let key = PrivateKeyDer::from_pem_file(&files.key).map_err(|e| TlsError::File {
        what: "the private key",
        path: files.key.clone(),
        why: e.to_string(),
    })?;
    let unusable = |path: &Path, why: String| TlsError::Unusable { path: path.into(), why };
    let builder = rustls::ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|e| unusable(&files.certificates, e.to_string()))?;
    let builder = match &files.client_authorities {
        None => builder.with_no_client_auth(),
        Some(path) => {
            let mut roots = RootCertStore::empty();
            for certificate in certificates("the clients' authorities", path)? {
                roots.add(certificate).map_err(|e| unusable(path, e.to_string()))?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
                .build()
                .map_err(|e| unusable(path, e.to_string()))?;
            builder.with_client_cert_verifier(verifier)
        }
    };
    builder.with_single_cert(chain, key).map_err(|e| {
        let why = format!("{e}; is it the key of the certificate in {}?", files.certificates.display());
        unusable(&files.key, why)
    })
}

fn certificates(what: &'static str, path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let failed = |why: String| TlsError::File { what, path: path.into(), why };
    let found = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|e| failed(e.to_string()))?;
    if found.is_empty() { Err(failed("there is no certificate in it".into())) } else { Ok(found) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(dir: &Path, name: &str) -> (PathBuf, PathBuf) {
        let made = rcgen::generate_simple_self_signed(vec![name.into()]).unwrap();
        let (certificate, key) = (dir.join(format!("{name}.crt")), dir.join(format!("{name}.key")));
        std::fs::write(&certificate, made.cert.pem()).unwrap();
        std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
        (certificate, key)
    }

    #[test]
    fn files_that_do_not_fit_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let (certificates, key) = pair(dir.path(), "a");
        let (_, other_key) = pair(dir.path(), "b");
        let good =
            TlsFiles { certificates: certificates.clone(), key: key.clone(), client_authorities: None };
        let config = TlsConfig::load(good.clone()).unwrap();
        config.reload().unwrap();
        assert!(!config.authenticates_clients());
        let with_authority = TlsFiles { client_authorities: Some(certificates.clone()), ..good.clone() };
        assert!(TlsConfig::load(with_authority).unwrap().authenticates_clients());
        let empty = dir.path().join("empty");
        std::fs::write(&empty, "nothing").unwrap();
        let missing = dir.path().join("missing");
        for (files, named, said) in [
            (TlsFiles { certificates: missing.clone(), ..good.clone() }, &missing, "certificate"),
            (TlsFiles { certificates: empty.clone(), ..good.clone() }, &empty, "no certificate"),
            (TlsFiles { key: empty.clone(), ..good.clone() }, &empty, "private key"),
            (TlsFiles { key: other_key.clone(), ..good.clone() }, &other_key, "is it the key"),
            (TlsFiles { client_authorities: Some(empty.clone()), ..good.clone() }, &empty, "authorities"),
        ] {
            let message = TlsConfig::load(files).unwrap_err().to_string();
            assert!(message.contains(said) && message.contains(named.to_str().unwrap()), "{message}");
        }
        // What was loaded stays when the files go bad.
        std::fs::write(&key, "").unwrap();
        assert!(config.reload().is_err());
        config.current();
    }
}
