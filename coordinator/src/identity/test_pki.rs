//! Certificates as a swarm's CA makes them, for tests.

use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use pkcs8::PrivateKeyInfoRef;
use pkcs8::pkcs5::pbes2::Parameters;
use rcgen::{
    BasicConstraints, Certificate, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, date_time_ymd,
};
use requeen_protocol::UnlockKey;

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
    /// What it sends after the leaf, as DER.
    pub(crate) above: Vec<Vec<u8>>,
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
        self.sign(node_params(cn, ou, o))
    }

    /// The same, good from the first to the second year's beginning only.
    pub(crate) fn node_from_to(&self, cn: &str, ou: &str, o: &str, years: (i32, i32)) -> Node {
        let mut params = node_params(cn, ou, o);
        params.not_before = date_time_ymd(years.0, 1, 1);
        params.not_after = date_time_ymd(years.1, 1, 1);
        self.sign(params)
    }

    fn sign(&self, params: CertificateParams) -> Node {
        let key = key();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        Node::new(&certificate, &key, Vec::new())
    }

    /// A web server's certificate for these names and addresses, signed by this root.
    pub(crate) fn web(&self, names: &[&str]) -> Node {
        let key = key();
        let names: Vec<_> = names.iter().map(|&name| name.to_owned()).collect();
        let certificate = CertificateParams::new(names).unwrap().signed_by(&key, &self.issuer).unwrap();
        Node::new(&certificate, &key, Vec::new())
    }
}

/// A certificate of the same looks that nobody else has signed.
pub(crate) fn self_signed(cn: &str, ou: &str, o: &str) -> Node {
    let key = key();
    let certificate = node_params(cn, ou, o).self_signed(&key).unwrap();
    Node::new(&certificate, &key, Vec::new())
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
    fn new(certificate: &Certificate, key: &KeyPair, above: Vec<Vec<u8>>) -> Self {
        let (der, pem) = (certificate.der().to_vec(), certificate.pem());
        Self { certificate: der, above, pem, key_pem: key.serialize_pem() }
    }

    /// A certificate for another name, signed with this node's key as if it were a CA's.
    pub(crate) fn forge(&self, own: (&str, &str, &str), forged: (&str, &str, &str)) -> Self {
        let issuer = Issuer::new(node_params(own.0, own.1, own.2), KeyPair::from_pem(&self.key_pem).unwrap());
        let key = key();
        let certificate = node_params(forged.0, forged.1, forged.2).signed_by(&key, &issuer).unwrap();
        Self::new(&certificate, &key, vec![self.certificate.clone()])
    }

    /// Writes the folder `certificates` into `swarm_dir` as an engine does: the key with RFC 1421 headers.
    pub(crate) fn install(&self, swarm_dir: &Path, root_pem: &str) {
        let dir = swarm_dir.join("certificates");
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join("swarm-node.crt"), &self.pem).unwrap();
        std::fs::write(dir.join("swarm-root-ca.crt"), root_pem).unwrap();
        std::fs::write(dir.join("swarm-node.key"), self.key_with_headers()).unwrap();
    }

    /// Encrypts the installed key as a manager of an autolocked swarm does.
    pub(crate) fn encrypt(&self, swarm_dir: &Path, key: &UnlockKey) {
        let text = key.expose();
        let passphrase = STANDARD_NO_PAD.decode(text.strip_prefix("SWMKEY-1-").unwrap()).unwrap();
        let plain = KeyPair::from_pem(&self.key_pem).unwrap().serialize_der();
        let how = Parameters::generate_pbkdf2_sha256_aes256cbc(2048, b"saltsalt", [7; 16]).unwrap();
        let sealed = PrivateKeyInfoRef::try_from(&*plain).unwrap().encrypt_with_params(how, passphrase).unwrap();
        let body = STANDARD.encode(sealed.as_bytes());
        let label = "ENCRYPTED PRIVATE KEY";
        let pem =
            format!("-----BEGIN {label}-----\nkek-version: 9\nraft-dek: EgRA=\n\n{body}\n-----END {label}-----\n");
        std::fs::write(swarm_dir.join("certificates/swarm-node.key"), pem).unwrap();
    }

    /// The key as an engine writes it.
    pub(crate) fn key_with_headers(&self) -> String {
        let (begin, rest) = self.key_pem.split_once('\n').unwrap();
        format!("{begin}\nkek-version: 0\nraft-dek: EgRAAAAAkJ2\n  folded\n\n{rest}")
    }
}
