//! This manager's own certificate, key and root, as its engine keeps them in
//! `<data-root>/swarm/certificates`, made into a TLS server.
//!
//! They rotate while the server runs, so every new connection asks anew; files that have not changed are
//! not read twice.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use requeen_protocol::node_key::{self, NodeKey, NodeKeyError};
use requeen_protocol::{KeyRing, UnlockKey};
use rustls::pki_types::pem::{Error as PemError, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, PrivateSec1KeyDer};
use rustls::server::{NoServerSessionStorage, VerifierBuilderError, WebPkiClientVerifier};
use rustls::{RootCertStore, ServerConfig};

use super::peer::{PeerName, PeerNameError};

/// Reads the folder and remembers what it made of it.
pub(crate) struct CertificateFiles {
    dir: PathBuf,
    cached: Mutex<Option<Cached>>,
    /// What was said of a failure that the last good files bridge, so that it is said once.
    said: Mutex<String>,
    keys: Mutex<Keys>,
}

/// What opens the key where the swarm is autolocked: in memory alone.
#[derive(Default)]
struct Keys {
    ring: KeyRing,
    /// Whether the key on disk stayed closed when it was read last.
    missing: bool,
}

struct Cached {
    stamps: [Stamp; 3],
    trust_root: Option<String>,
    own: OwnTls,
}

/// What is served with.
#[derive(Clone)]
pub(crate) struct OwnTls {
    /// Requires a client certificate that chains to the swarm's root.
    pub(crate) config: Arc<ServerConfig>,
    /// The name in the node's own certificate.
    pub(crate) name: PeerName,
}

/// Tells one content of a file from another without reading it.
type Stamp = (i64, i64, u64, u64);

/// Why the folder can't be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FilesError {
    /// A file can't be read.
    #[error("can't read {path}")]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file is no PEM of what it should hold.
    #[error("{path} does not hold {what}")]
    Pem {
        /// Which.
        path: PathBuf,
        /// What was expected in it.
        what: &'static str,
        /// Why.
        source: PemError,
    },
    /// Autolock, and no key for it.
    #[error("{path} is encrypted, since the swarm is autolocked, and its engine gives no key for it now")]
    Encrypted {
        /// Which.
        path: PathBuf,
    },
    /// No engine encrypts like that.
    #[error("{path} is encrypted in a form that is not known")]
    Form {
        /// Which.
        path: PathBuf,
        /// What of it.
        source: NodeKeyError,
    },
    /// The node's own certificate has no node's name.
    #[error("{path} is not a swarm node's certificate")]
    Name {
        /// Which.
        path: PathBuf,
        /// Why.
        source: PeerNameError,
    },
    /// A root can't be used as one.
    #[error("the swarm's root certificate can't be used")]
    Root(#[source] rustls::Error),
    /// There is no root.
    #[error("the swarm's root certificate can't verify clients")]
    Verifier(#[source] VerifierBuilderError),
    /// Certificate and key don't fit, as for an instant while they are renewed.
    #[error("certificate and key of this node can't be used together")]
    KeyPair(#[source] rustls::Error),
}

impl FilesError {
    /// What an operator can do about it.
    pub(crate) fn hint(&self) -> Option<String> {
        match self {
            FilesError::Read { path, source } if source.kind() == io::ErrorKind::NotFound => {
                let shown = path.display();
                Some(format!(
                    "mount the engine's swarm folder (`-v /var/lib/docker/swarm:/var/lib/docker/swarm:ro`, or what \
                     `docker info` names as Docker Root Dir); {shown} has to be there"
                ))
            }
            FilesError::Encrypted { .. } => Some(
                "the engine gives it while this manager is unlocked (`docker swarm unlock`) and the managers have a leader"
                    .to_owned(),
            ),
            FilesError::Read { .. }
            | FilesError::Pem { .. }
            | FilesError::Form { .. }
            | FilesError::Name { .. }
            | FilesError::Root(_)
            | FilesError::Verifier(_)
            | FilesError::KeyPair(_) => None,
        }
    }
}

const CERTIFICATE: &str = "swarm-node.crt";
const KEY: &str = "swarm-node.key";
const ROOT: &str = "swarm-root-ca.crt";

impl CertificateFiles {
    /// The files in `<swarm_dir>/certificates`.
    pub(crate) fn new(swarm_dir: &Path) -> Self {
        let dir = swarm_dir.join("certificates");
        Self { dir, cached: Mutex::new(None), said: Mutex::default(), keys: Mutex::default() }
    }

    /// Takes note of the swarm's unlock key.
    pub(crate) fn learn(&self, key: UnlockKey) {
        self.keys().ring.learn(key);
    }

    /// Whether the key on disk can't be opened with what is known.
    pub(crate) fn lacks_key(&self) -> bool {
        self.keys().missing
    }

    fn keys(&self) -> MutexGuard<'_, Keys> {
        self.keys.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The TLS server for a new connection. Clients have to chain to `trust_root`, or to the folder's own
    /// root where that is not known. Where files are caught half-renewed the last good ones go on.
    pub(crate) fn load(&self, trust_root: Option<&str>) -> Result<OwnTls, FilesError> {
        let mut cached = self.cached.lock().unwrap_or_else(PoisonError::into_inner);
        let fresh = self.stamps().and_then(|stamps| {
            if let Some(known) = &*cached
                && known.stamps == stamps
                && known.trust_root.as_deref() == trust_root
            {
                return Ok(known.own.clone());
            }
            let own = self.read(trust_root)?;
            *cached = Some(Cached { stamps, trust_root: trust_root.map(str::to_owned), own: own.clone() });
            Ok(own)
        });
        match (fresh, &*cached) {
            (Ok(own), _) => {
                self.said().clear();
                Ok(own)
            }
            (Err(error), Some(known)) => {
                let now = error.to_string();
                let mut said = self.said();
                if *said != now {
                    tracing::warn!(
                        error = &error as &dyn std::error::Error,
                        "going on with the certificate known before"
                    );
                    *said = now;
                }
                Ok(known.own.clone())
            }
            (Err(error), None) => Err(error),
        }
    }

    fn said(&self) -> MutexGuard<'_, String> {
        self.said.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn stamps(&self) -> Result<[Stamp; 3], FilesError> {
        let stamp = |name| {
            let path = self.dir.join(name);
            let of = fs::metadata(&path).map_err(|source| FilesError::Read { path, source })?;
            Ok((of.mtime(), of.mtime_nsec(), of.ino(), of.len()))
        };
        Ok([stamp(CERTIFICATE)?, stamp(KEY)?, stamp(ROOT)?])
    }

    fn read(&self, trust_root: Option<&str>) -> Result<OwnTls, FilesError> {
        let (chain_path, chain_pem) = self.text(CERTIFICATE)?;
        let (key_path, key_pem) = self.text(KEY)?;
        let chain = certificates(&chain_path, &chain_pem)?;
        let leaf = chain.first().ok_or_else(|| nothing(&chain_path, "a certificate"))?;
        let name = PeerName::of(leaf).map_err(|source| FilesError::Name { path: chain_path, source })?;
        let key = self.private_key(&key_path, &key_pem)?;
        let roots = match trust_root {
            Some(pem) => certificates(Path::new("the swarm's trust root"), pem)?,
            None => {
                let (path, pem) = self.text(ROOT)?;
                certificates(&path, &pem)?
            }
        };
        let config = server_config(chain, key, roots)?;
        Ok(OwnTls { config: Arc::new(config), name })
    }

    fn private_key(&self, path: &Path, pem: &str) -> Result<PrivateKeyDer<'static>, FilesError> {
        let mut keys = self.keys();
        keys.missing = false;
        if !node_key::is_encrypted(pem) {
            return PrivateKeyDer::from_pem_slice(without_headers(pem).as_bytes()).map_err(|source| FilesError::Pem {
                path: path.to_owned(),
                what: "a private key",
                source,
            });
        }
        match keys.ring.open(pem) {
            Ok(NodeKey::Pkcs8(der)) => Ok(PrivatePkcs8KeyDer::from(der.to_vec()).into()),
            Ok(NodeKey::Sec1(der)) => Ok(PrivateSec1KeyDer::from(der.to_vec()).into()),
            Err(NodeKeyError::WrongKey) => {
                keys.missing = true;
                Err(FilesError::Encrypted { path: path.to_owned() })
            }
            Err(source @ NodeKeyError::Form(_)) => Err(FilesError::Form { path: path.to_owned(), source }),
        }
    }

    fn text(&self, name: &str) -> Result<(PathBuf, String), FilesError> {
        let path = self.dir.join(name);
        match fs::read_to_string(&path) {
            Ok(text) => Ok((path, text)),
            Err(source) => Err(FilesError::Read { path, source }),
        }
    }
}

fn server_config(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    trusted: Vec<CertificateDer<'static>>,
) -> Result<ServerConfig, FilesError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut roots = RootCertStore::empty();
    for root in trusted {
        roots.add(root).map_err(FilesError::Root)?;
    }
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
        .build()
        .map_err(FilesError::Verifier)?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(FilesError::KeyPair)?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)
        .map_err(FilesError::KeyPair)?;
    // A resumed session would skip the check of the client's certificate.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

fn certificates(path: &Path, pem: &str) -> Result<Vec<CertificateDer<'static>>, FilesError> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.as_bytes()).collect();
    let found = found.map_err(|source| FilesError::Pem { path: path.to_owned(), what: "certificates", source })?;
    if found.is_empty() { Err(nothing(path, "a certificate")) } else { Ok(found) }
}

fn nothing(path: &Path, what: &'static str) -> FilesError {
    FilesError::Pem { path: path.to_owned(), what, source: PemError::NoItemsFound }
}

/// The PEM text without RFC 1421 headers: engines keep `kek-version` and `raft-dek` there, and PEM
/// readers of today take them for base64.
fn without_headers(pem: &str) -> String {
    let mut out = String::with_capacity(pem.len());
    let mut in_headers = false;
    for line in pem.lines() {
        if line.starts_with("-----BEGIN ") {
            in_headers = true;
        } else if in_headers {
            // Base64 has no colon; a folded header goes on after a space.
            if line.contains(':') || line.starts_with([' ', '\t']) || line.is_empty() {
                continue;
            }
            in_headers = false;
        }
        out.push_str(line);
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use std::error::Error;

    use super::*;
    use crate::identity::test_pki::Root;

    #[test]
    fn headers_are_cut_off_and_nothing_else() {
        let plain = "-----BEGIN PRIVATE KEY-----\nAAAA\nBBBB\n-----END PRIVATE KEY-----\n";
        assert_eq!(without_headers(plain), plain);
        let headed = plain.replace("AAAA", "kek-version: 17\nraft-dek: abc=\n\tmore\n\nAAAA");
        assert_eq!(without_headers(&headed), plain);
    }

    #[test]
    fn an_encrypted_key_is_opened_once_the_swarms_key_is_known() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::new();
        let node = root.node("n", "swarm-manager", "c");
        node.install(dir.path(), &root.pem);
        let unlock = UnlockKey::parse("SWMKEY-1-AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8").unwrap();
        node.encrypt(dir.path(), &unlock);
        let files = CertificateFiles::new(dir.path());
        for other in [None, Some("SWMKEY-1-QUJDREVGR0hJSktMTU5PUFFSU1RVVldYWVr//v38+/o")] {
            if let Some(text) = other {
                files.learn(UnlockKey::parse(text).unwrap());
            }
            let Err(error) = files.load(None) else { panic!("accepted") };
            assert!(matches!(error, FilesError::Encrypted { .. }), "{error}");
            assert!(files.lacks_key() && error.hint().unwrap().contains("docker swarm unlock"));
        }
        files.learn(unlock);
        assert_eq!(files.load(None).unwrap().name.node.as_str(), "n");
        assert!(!files.lacks_key());

        let odd =
            "-----BEGIN ENCRYPTED PRIVATE KEY-----\nkek-version: 9\n\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n";
        fs::write(dir.path().join("certificates").join(KEY), odd).unwrap();
        let Err(error) = CertificateFiles::new(dir.path()).load(None) else { panic!("accepted") };
        assert!(matches!(error, FilesError::Encrypted { .. } | FilesError::Form { .. }), "{error}");
    }

    #[test]
    fn a_missing_folder_is_named_with_the_mount() {
        let dir = tempfile::tempdir().unwrap();
        let Err(error) = CertificateFiles::new(dir.path()).load(None) else { panic!("accepted") };
        assert!(error.to_string().contains("certificates/swarm-node.crt"), "{error}");
        assert!(error.source().is_some());
        assert!(error.hint().unwrap().contains("-v /var/lib/docker/swarm"));
    }

    #[test]
    fn a_renewed_certificate_is_taken_and_a_half_renewed_one_waits() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::new();
        root.node("n", "swarm-manager", "c").install(dir.path(), &root.pem);
        let files = CertificateFiles::new(dir.path());
        let first = files.load(None).unwrap();
        assert!(Arc::ptr_eq(&first.config, &files.load(None).unwrap().config), "unchanged files are not read twice");

        let renewed = root.node("renamed", "swarm-manager", "c");
        fs::write(dir.path().join("certificates").join(CERTIFICATE), &renewed.pem).unwrap();
        assert!(Arc::ptr_eq(&first.config, &files.load(None).unwrap().config), "the key does not fit yet");
        renewed.install(dir.path(), &root.pem);
        assert_eq!(files.load(None).unwrap().name.node.as_str(), "renamed");

        let other = Root::new();
        let before = files.load(None).unwrap();
        assert!(!Arc::ptr_eq(&before.config, &files.load(Some(&other.pem)).unwrap().config));
    }
}
