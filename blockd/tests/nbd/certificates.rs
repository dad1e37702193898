//! Certificates made for one test: two authorities, and what the first has signed.

use std::path::{Path, PathBuf};

use blockd::nbd::server::TlsFiles;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose,
};

/// PEM files in a directory; `client/` and `stranger/` have the names that libnbd and QEMU look for.
pub struct Certificates {
    dir: PathBuf,
}

fn authority(name: &str) -> CertifiedIssuer<'static, KeyPair> {
    let mut params = CertificateParams::new(vec![]).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
    params.distinguished_name.push(DnType::CommonName, name);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

impl Certificates {
    pub fn make(dir: &Path) -> Certificates {
        let (good, other) = (authority("the authority"), authority("another authority"));
        let made = Certificates { dir: dir.into() };
        let sign = |issuer: &CertifiedIssuer<'_, KeyPair>, usage, folder: &str, name: &str| {
            let mut params = CertificateParams::new(vec!["localhost".into(), "127.0.0.1".into()]).unwrap();
            params.distinguished_name.push(DnType::CommonName, format!("{folder} {name}"));
            params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
            params.extended_key_usages = vec![usage];
            let key = KeyPair::generate().unwrap();
            let certificate = params.signed_by(&key, issuer).unwrap();
            let folder = dir.join(folder);
            std::fs::create_dir_all(&folder).unwrap();
            std::fs::write(folder.join(format!("{name}-cert.pem")), certificate.pem()).unwrap();
            std::fs::write(folder.join(format!("{name}-key.pem")), key.serialize_pem()).unwrap();
            std::fs::write(folder.join("ca-cert.pem"), good.pem()).unwrap();
        };
        sign(&good, ExtendedKeyUsagePurpose::ServerAuth, "server", "server");
        sign(&good, ExtendedKeyUsagePurpose::ClientAuth, "client", "client");
        sign(&other, ExtendedKeyUsagePurpose::ClientAuth, "stranger", "client");
        made
    }

    /// What the server reads; with `authenticate` only clients of the first authority are let in.
    pub fn server(&self, authenticate: bool) -> TlsFiles {
        let server = self.dir.join("server");
        TlsFiles {
            certificates: server.join("server-cert.pem"),
            key: server.join("server-key.pem"),
            client_authorities: authenticate.then(|| server.join("ca-cert.pem")),
        }
    }

    /// The folder of a client: `client`, or `stranger`, whom the first authority does not know.
    pub fn folder(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }
}
