//! Certificates as a swarm's CA makes them, for tests.

use std::path::Path;

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256,
};

/// A swarm's root CA.
pub(crate) struct Root {
    issuer: Issuer<'static, KeyPair>,
    /// Its certificate.
    pub(crate) pem: String,
}

/// A node's certificate and key.
pub(crate) struct Node {
    /// The leaf, as DER.
    pub(crate) certificate: Vec<u8>,
    /// The leaf, as PEM.
    pub(crate) pem: String,
    /// The key, as PEM without headers.
    pub(crate) key_pem: String,
}

fn key() -> KeyPair {
    KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap()
}

impl Root {
    /// A root with a key of its own.
    pub(crate) fn new() -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, "swarm-ca");
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(1));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = key();
        let pem = params.self_signed(&key).unwrap().pem();
        Self { issuer: Issuer::new(params, key), pem }
    }

    /// A node's certificate, signed by this root. An empty `cn` or `o` is left out.
    pub(crate) fn node(&self, cn: &str, ou: &str, o: &str) -> Node {
        let key = key();
        let certificate = node_params(cn, ou, o).signed_by(&key, &self.issuer).unwrap();
        Node { certificate: certificate.der().to_vec(), pem: certificate.pem(), key_pem: key.serialize_pem() }
    }
}

/// A certificate of the same looks that nobody else has signed.
pub(crate) fn self_signed(cn: &str, ou: &str, o: &str) -> Node {
    let key = key();
    let certificate = node_params(cn, ou, o).self_signed(&key).unwrap();
    Node { certificate: certificate.der().to_vec(), pem: certificate.pem(), key_pem: key.serialize_pem() }
}

fn node_params(cn: &str, ou: &str, o: &str) -> CertificateParams {
    let mut params = CertificateParams::new(vec![ou.to_owned(), format!("{cn}x")]).unwrap();
    params.distinguished_name = DistinguishedName::new();
    for (kind, value) in [(DnType::OrganizationName, o), (DnType::OrganizationalUnitName, ou), (DnType::CommonName, cn)]
    {
        if !value.is_empty() {
            params.distinguished_name.push(kind, value);
        }
    }
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params
}

impl Node {
    /// Writes the folder `certificates` into `swarm_dir` as an engine does: the key with RFC 1421 headers.
    pub(crate) fn install(&self, swarm_dir: &Path, root_pem: &str) {
        let dir = swarm_dir.join("certificates");
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join("swarm-node.crt"), &self.pem).unwrap();
        std::fs::write(dir.join("swarm-root-ca.crt"), root_pem).unwrap();
        std::fs::write(dir.join("swarm-node.key"), self.key_with_headers()).unwrap();
    }

    /// The key as an engine writes it.
    pub(crate) fn key_with_headers(&self) -> String {
        let (begin, rest) = self.key_pem.split_once('\n').unwrap();
        format!("{begin}\nkek-version: 0\nraft-dek: EgRAAAAAkJ2\n  folded\n\n{rest}")
    }
}
