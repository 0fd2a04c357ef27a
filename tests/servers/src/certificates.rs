//! Certificates of a test's own.

use std::{
    fs,
    path::{Path, PathBuf},
};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, date_time_ymd,
};
use tempfile::TempDir;

/// A certificate authority. Its files are gone with it.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    dir: TempDir,
}

/// A certificate and its key, as PEM files.
#[derive(Clone, Debug)]
pub struct Certificate {
    /// The certificate.
    pub certificate: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

impl Authority {
    /// One that nobody has trusted before.
    pub fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).expect("an authority needs no names");
        params.distinguished_name.push(DnType::CommonName, "an authority of tests");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().expect("cannot make a key");
        let own = params.self_signed(&key).expect("cannot sign a certificate");
        let dir = tempfile::Builder::new().prefix("test-ca-").tempdir().expect("cannot create a directory");
        write(&dir.path().join(CA), &own.pem());
        Self { issuer: Issuer::new(params, key), dir }
    }

    /// Its own certificate, which clients and servers are to trust.
    pub fn ca_file(&self) -> PathBuf {
        self.dir.path().join(CA)
    }

    /// A certificate for these host names and addresses, for servers and clients alike.
    pub fn issue(&self, names: &[&str]) -> Certificate {
        self.sign(names, false)
    }

    /// One whose time was over long ago.
    pub fn issue_expired(&self, names: &[&str]) -> Certificate {
        self.sign(names, true)
    }

    fn sign(&self, names: &[&str], expired: bool) -> Certificate {
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        let mut params = CertificateParams::new(names).expect("a name that certificates cannot carry");
        params.distinguished_name.push(DnType::CommonName, "a test");
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        if expired {
            params.not_before = date_time_ymd(2001, 1, 1);
            params.not_after = date_time_ymd(2002, 1, 1);
        }
        let key = KeyPair::generate().expect("cannot make a key");
        let certificate = params.signed_by(&key, &self.issuer).expect("cannot sign a certificate");
        let file = |kind: &str| self.dir.path().join(format!("{:016x}.{kind}", fastrand::u64(..)));
        let files = Certificate { certificate: file("crt"), key: file("key") };
        write(&files.certificate, &certificate.pem());
        write(&files.key, &key.serialize_pem());
        files
    }
}

impl Default for Authority {
    fn default() -> Self {
        Self::new()
    }
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authority").field("ca_file", &self.ca_file()).finish_non_exhaustive()
    }
}

const CA: &str = "ca.crt";

fn write(path: &Path, text: &str) {
    fs::write(path, text).expect("cannot write a certificate");
}
