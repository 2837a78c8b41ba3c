//! A host in a temporary directory, as Debian lays it out, for the tests of this crate.

use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::PathBuf;

use flate2::write::GzEncoder;
use requeen_protocol::{BundleRef, Digest, EngineFile};
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;

use super::layout::{Layout, discover};
use super::{HostRoot, files};
use crate::journal::{Phase, RaftCopy, Work};
use crate::sets::{SetId, Store};

/// The version that [`TestHost`]'s engine is said to have.
pub(crate) const OLD_VERSION: &str = "20.10.24+dfsg1";

/// Where a manager's engine keeps what its swarm needs.
pub(crate) const SWARM_FOLDER: &str = "/var/lib/docker/swarm";

/// A host in a temporary directory.
pub(crate) struct TestHost {
    _dir: TempDir,
    pub(crate) root: HostRoot,
}

impl TestHost {
    /// A host with Debian's units and every engine file but those in `without`.
    pub(crate) fn new(without: &[EngineFile]) -> Self {
        let dir = folder();
        let host = Self { root: HostRoot::new(dir.path()), _dir: dir };
        for (path, text) in [
            (
                "/usr/lib/systemd/system/docker.service",
                "[Service]\nEnvironmentFile=-/etc/default/docker\nExecStart=/usr/sbin/dockerd -H fd:// $DOCKER_OPTS\n",
            ),
            ("/usr/lib/systemd/system/docker.socket", "[Socket]\n"),
            ("/usr/lib/systemd/system/containerd.service", "[Service]\nExecStart=/usr/bin/containerd\n"),
        ] {
            host.write(path, text.as_bytes(), 0o644);
        }
        for &file in EngineFile::ALL {
            if without.contains(&file) {
                continue;
            }
            let content = format!("old {file}");
            match file {
                EngineFile::DockerInit => {
                    host.write("/usr/bin/tini-static", content.as_bytes(), 0o755);
                    symlink("tini-static", host.root.join("/usr/bin/docker-init")).unwrap();
                }
                EngineFile::Dockerd | EngineFile::DockerProxy | EngineFile::Runc => {
                    host.write(&format!("/usr/sbin/{file}"), content.as_bytes(), 0o755);
                }
                EngineFile::Docker | EngineFile::Containerd | EngineFile::Ctr | EngineFile::ContainerdShimRuncV2 => {
                    host.write(&format!("/usr/bin/{file}"), content.as_bytes(), 0o755);
                }
            }
        }
        host
    }

    /// Writes a file and the folders above it.
    pub(crate) fn write(&self, path: &str, bytes: &[u8], mode: u32) -> PathBuf {
        let at = self.root.join(path);
        fs::create_dir_all(at.parent().unwrap()).unwrap();
        fs::write(&at, bytes).unwrap();
        fs::set_permissions(&at, Permissions::from_mode(mode)).unwrap();
        at
    }

    /// Makes the host a manager of a swarm: what is in its swarm folder, as moby names it.
    pub(crate) fn make_manager(&self) {
        for (path, text) in [
            ("docker-state.json", "{}"),
            ("state.json", "[]"),
            ("certificates/swarm-root-ca.crt", "root"),
            ("certificates/swarm-node.key", "key"),
            ("raft/snap-v3-encrypted/1.snap", "snapshot"),
            ("raft/wal-v3-encrypted/0.wal", "log\n"),
            ("raft/wal-v3-encrypted/0.tmp", ""),
            ("worker/tasks.db", "tasks"),
        ] {
            self.write(&format!("{SWARM_FOLDER}/{path}"), text.as_bytes(), 0o600);
        }
        // Reserved for the log that comes next.
        let next = self.root.join(SWARM_FOLDER).join("raft/wal-v3-encrypted/0.tmp");
        fs::File::options().write(true).open(next).unwrap().set_len(1 << 20).unwrap();
        self.certify("swarm-manager");
    }

    /// Gives the node a certificate of this role.
    pub(crate) fn certify(&self, role: &str) {
        let mut params = rcgen::CertificateParams::new(vec!["node".to_owned()]).unwrap();
        params.distinguished_name.push(rcgen::DnType::OrganizationalUnitName, role);
        let certificate = params.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap();
        self.write(&format!("{SWARM_FOLDER}/certificates/swarm-node.crt"), certificate.pem().as_bytes(), 0o644);
    }

    pub(crate) fn layout(&self) -> Layout {
        discover(&self.root).unwrap()
    }

    pub(crate) fn store(&self) -> Store {
        Store::open(&self.root).unwrap()
    }

    /// Makes a set of files with this content, as a staged bundle would.
    pub(crate) fn new_set(&self, files: &[(EngineFile, &str)], version: &str) -> SetId {
        let mut layout = self.layout();
        layout.targets.clear();
        layout.present.clear();
        for (file, content) in files {
            let path = format!("/incoming/{file}");
            self.write(&path, content.as_bytes(), 0o755);
            layout.targets.insert(*file, path);
            layout.present.insert(*file);
        }
        let set = self.store().capture(&layout, version).unwrap();
        fs::remove_dir_all(self.root.join("/incoming")).unwrap();
        set
    }

    /// What is read through each target's path; nothing where nothing is.
    pub(crate) fn contents(&self, layout: &Layout) -> BTreeMap<EngineFile, String> {
        layout
            .targets
            .iter()
            .filter_map(|(&file, target)| {
                let text = self.root.read_to_string(target).ok()?;
                Some((file, text))
            })
            .collect()
    }
}

/// A folder in memory, where files have attributes there (Linux 6.6): thousands of hosts are made and synced.
pub(crate) fn folder() -> TempDir {
    let in_memory = tempfile::tempdir_in("/dev/shm").ok();
    in_memory
        .filter(|dir| xattr::set(dir.path(), "user.requeen-test", b"").is_ok())
        .unwrap_or_else(|| tempfile::tempdir().unwrap())
}

/// Work that has just begun.
pub(crate) fn work(lease: &str, epoch: u64) -> Work {
    Work {
        rollout: "r1".into(),
        lease: lease.into(),
        epoch,
        boot_id: "boot".to_owned(),
        lease_ends_ms: 1_000,
        from_version: "20.10.24".to_owned(),
        to_version: "26.1.5".to_owned(),
        start_timeout_secs: 90,
        containerd_restart: true,
        plan: None,
        stopped_at_ms: None,
        raft_copy: RaftCopy::NotWanted,
        phase: Phase::Leased,
    }
}

/// The digest of some bytes.
pub(crate) fn digest_of(bytes: &[u8]) -> Digest {
    files::finish(Sha256::new_with_prefix(bytes))
}

/// Gzips a tarball.
pub(crate) fn gzip(tar: &[u8]) -> Vec<u8> {
    let mut gz = GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gz.write_all(tar).unwrap();
    gz.finish().unwrap()
}

/// One entry of a tarball.
pub(crate) fn entry(tar: &mut tar::Builder<Vec<u8>>, kind: tar::EntryType, path: &str, data: &[u8]) {
    let mut header = tar::Header::new_gnu();
    // Around the library's own checks, as a hostile archive would be made.
    header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
    header.set_entry_type(kind);
    header.set_size(data.len() as u64);
    header.set_mode(0o644);
    header.set_cksum();
    tar.append(&header, data).unwrap();
}

/// A bundle of regular files, and its description.
pub(crate) fn bundle(files: &[(&str, &[u8])], version: &str) -> (Vec<u8>, BundleRef) {
    let mut tar = tar::Builder::new(Vec::new());
    for (path, data) in files {
        entry(&mut tar, tar::EntryType::Regular, path, data);
    }
    let bytes = gzip(&tar.into_inner().unwrap());
    let known: BTreeMap<EngineFile, Digest> = files
        .iter()
        .filter_map(|(path, data)| {
            let name = path.rsplit('/').next()?;
            Some((EngineFile::from_name(name)?, digest_of(data)))
        })
        .collect();
    let bundle = BundleRef {
        digest: digest_of(&bytes),
        size: bytes.len() as u64,
        version: version.to_owned(),
        arch: "x86_64".to_owned(),
        unpacked: files.iter().map(|(_, data)| data.len() as u64).sum(),
        files: known,
    };
    (bytes, bundle)
}
