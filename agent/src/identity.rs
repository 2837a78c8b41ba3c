//! Who this node is: what its own engine says of the swarm, and the certificate that the swarm gave it.
//!
//! Certificates rotate while the agent runs, so they are read again for every new connection. What
//! the engine says is kept while it is down.

use std::io;
use std::path::PathBuf;
use std::time::SystemTime;

use requeen_protocol::node_key::{self, NodeKey, NodeKeyError};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, PrivateSec1KeyDer};

use crate::host::HostRoot;
use crate::unlock::{COMMAND, Keys};

/// The node's certificate could not be read.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// A file can't be read.
    #[error("{path} can't be read; is this node in a swarm?")]
    Read {
        /// The file, as a path of the host.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// A file holds no usable PEM.
    #[error("{path} holds no certificate or key in PEM")]
    Pem {
        /// The file, as a path of the host.
        path: String,
        /// Why.
        source: rustls::pki_types::pem::Error,
    },
    /// The key is encrypted, since the swarm is autolocked, and no key that is known opens it.
    #[error(
        "{path} is encrypted, and its engine, which is down, locked or without a leader, gives no key for it: if this \
         manager is locked, type `{COMMAND}` on it"
    )]
    Encrypted {
        /// The file, as a path of the host.
        path: String,
    },
    /// The key is encrypted in another way than engines do it.
    #[error("{path} is encrypted in a form that is not known")]
    Form {
        /// The file, as a path of the host.
        path: String,
        /// What of it.
        source: NodeKeyError,
    },
}

/// Certificate, key and root of this node.
#[derive(Debug)]
pub struct Material {
    /// The node's certificate, leaf first.
    pub chain: Vec<CertificateDer<'static>>,
    /// Its key.
    pub key: PrivateKeyDer<'static>,
    /// The swarm's root certificates: more than one while the root is being rotated.
    pub roots: Vec<CertificateDer<'static>>,
}

/// Changes whenever a certificate file does.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stamp(Vec<Option<SystemTime>>);

/// The node's certificate files.
#[derive(Clone, Debug)]
pub struct Files {
    root: HostRoot,
    dir: PathBuf,
}

impl Files {
    /// The files of an engine whose data directory is `data_root` (a path of the host).
    pub fn new(root: &HostRoot, data_root: &str) -> Self {
        Self { root: root.clone(), dir: PathBuf::from(data_root).join("swarm/certificates") }
    }

    /// What the files are like now, without reading them.
    pub fn stamp(&self) -> Stamp {
        let time = |name| {
            let path = self.root.resolve(self.dir.join(name)).ok()?;
            std::fs::metadata(path).ok()?.modified().ok()
        };
        Stamp(["swarm-node.crt", "swarm-node.key", "swarm-root-ca.crt"].map(time).to_vec())
    }

    /// Reads them. A key that is encrypted is opened with one of `keys`.
    pub fn load(&self, keys: &Keys) -> Result<Material, IdentityError> {
        let chain = self.certificates("swarm-node.crt")?;
        let roots = self.certificates("swarm-root-ca.crt")?;
        let (path, text) = self.read("swarm-node.key")?;
        let key = if node_key::is_encrypted(&text) {
            match keys.open(&text) {
                Ok(NodeKey::Pkcs8(der)) => PrivatePkcs8KeyDer::from(der.to_vec()).into(),
                Ok(NodeKey::Sec1(der)) => PrivateSec1KeyDer::from(der.to_vec()).into(),
                Err(NodeKeyError::WrongKey) => return Err(IdentityError::Encrypted { path }),
                Err(source @ NodeKeyError::Form(_)) => return Err(IdentityError::Form { path, source }),
            }
        } else {
            PrivateKeyDer::from_pem_slice(strip_headers(&text).as_bytes())
                .map_err(|source| IdentityError::Pem { path, source })?
        };
        Ok(Material { chain, key, roots })
    }

    /// Whether the node's certificate is a manager's. Swarmkit writes the role into the subject and the names, and nothing
    /// else of a worker's has that word.
    pub fn names_a_manager(&self) -> Result<bool, IdentityError> {
        const ROLE: &[u8] = b"swarm-manager";
        let chain = self.certificates("swarm-node.crt")?;
        Ok(chain.first().is_some_and(|leaf| leaf.windows(ROLE.len()).any(|part| part == ROLE)))
    }

    fn certificates(&self, name: &str) -> Result<Vec<CertificateDer<'static>>, IdentityError> {
        let (path, text) = self.read(name)?;
        let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(strip_headers(&text).as_bytes()).collect();
        match found {
            Ok(found) if !found.is_empty() => Ok(found),
            Ok(_) => Err(IdentityError::Pem { path, source: rustls::pki_types::pem::Error::NoItemsFound }),
            Err(source) => Err(IdentityError::Pem { path, source }),
        }
    }

    fn read(&self, name: &str) -> Result<(String, String), IdentityError> {
        let path = self.dir.join(name);
        match self.root.read_to_string(&path) {
            Ok(text) => Ok((path.display().to_string(), text)),
            Err(source) => Err(IdentityError::Read { path: path.display().to_string(), source }),
        }
    }
}

/// Takes RFC 1421 headers (`kek-version: 0`, `raft-dek: …`) out of PEM: swarmkit writes them into the
/// node's key, and parsers of today refuse them.
fn strip_headers(pem: &str) -> String {
    let mut out = String::with_capacity(pem.len());
    for line in pem.lines() {
        // Neither base64 nor a boundary line has a colon.
        if !line.contains(':') && !line.trim().is_empty() {
            out.push_str(line);
            out.push('\n');
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use requeen_protocol::UnlockKey;

    use super::*;
    use crate::unlock::testing::{SEALED, UNLOCK};

    fn files() -> (tempfile::TempDir, Files, rcgen::KeyPair) {
        let pair = rcgen::KeyPair::generate().unwrap();
        let cert = rcgen::CertificateParams::new(vec!["node".to_owned()]).unwrap().self_signed(&pair).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path().join("var/lib/docker/swarm/certificates");
        std::fs::create_dir_all(&at).unwrap();
        std::fs::write(at.join("swarm-node.crt"), cert.pem()).unwrap();
        std::fs::write(at.join("swarm-root-ca.crt"), cert.pem().repeat(2)).unwrap();
        std::fs::write(at.join("swarm-node.key"), pair.serialize_pem()).unwrap();
        let files = Files::new(&HostRoot::new(dir.path()), "/var/lib/docker");
        (dir, files, pair)
    }

    #[test]
    fn a_managers_certificate_is_told_from_a_workers() {
        let (dir, files, pair) = files();
        let path = dir.path().join("var/lib/docker/swarm/certificates/swarm-node.crt");
        for (role, manager) in [("swarm-manager", true), ("swarm-worker", false)] {
            let mut params = rcgen::CertificateParams::new(vec!["node".to_owned()]).unwrap();
            params.distinguished_name.push(rcgen::DnType::OrganizationalUnitName, role);
            std::fs::write(&path, params.self_signed(&pair).unwrap().pem()).unwrap();
            assert_eq!(files.names_a_manager().unwrap(), manager, "{role}");
        }
    }

    #[test]
    fn a_key_with_headers_is_read() {
        let (dir, files, pair) = files();
        let path = dir.path().join("var/lib/docker/swarm/certificates/swarm-node.key");
        let pem = pair.serialize_pem().replacen("-----\n", "-----\nkek-version: 0\nraft-dek: CiCsP5Q=\n\n", 1);
        std::fs::write(path, pem.replace("\r", "")).unwrap();
        let material = files.load(&Keys::default()).unwrap();
        assert_eq!(material.key.secret_der(), pair.serialize_der());
        assert_eq!((material.chain.len(), material.roots.len()), (1, 2));
    }

    #[test]
    fn a_locked_key_is_named() {
        let (dir, files, _) = files();
        let path = dir.path().join("var/lib/docker/swarm/certificates/swarm-node.key");
        std::fs::write(&path, SEALED).unwrap();
        let keys = Keys::default();
        let error = files.load(&keys).unwrap_err();
        assert!(matches!(error, IdentityError::Encrypted { .. }) && error.to_string().contains("docker swarm unlock"));
        assert!(keys.is_missing());
        keys.learn(UnlockKey::parse(UNLOCK).unwrap());
        assert!(matches!(files.load(&keys).unwrap().key, PrivateKeyDer::Pkcs8(_)));
        assert!(!keys.is_missing());
        std::fs::write(path, SEALED.replace("PRIVATE", "PUBLIC")).unwrap();
        assert!(matches!(files.load(&keys), Err(IdentityError::Form { .. })));
    }

    #[test]
    fn a_new_certificate_changes_the_stamp() {
        let (dir, files, _) = files();
        let before = files.stamp();
        assert_eq!(before, files.stamp());
        let path = dir.path().join("var/lib/docker/swarm/certificates/swarm-node.crt");
        let file = std::fs::File::options().write(true).open(path).unwrap();
        file.set_modified(SystemTime::UNIX_EPOCH).unwrap();
        assert_ne!(before, files.stamp());
    }
}
