//! What an engine is made of.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{Digest, RolloutId};

macro_rules! engine_files {
    ($($(#[$doc:meta])* $variant:ident = $name:literal),+ $(,)?) => {
        /// A file of the engine. Only files of exactly these names are ever taken from a bundle or
        /// replaced on a host.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub enum EngineFile {
            $($(#[$doc])* #[serde(rename = $name)] $variant),+
        }

        impl EngineFile {
            /// Every known file.
            pub const ALL: &[EngineFile] = &[$(EngineFile::$variant),+];

            /// The name of the file, in bundles and on hosts.
            pub fn name(self) -> &'static str {
                match self {
                    $(EngineFile::$variant => $name),+
                }
            }

            /// The file of that name, if it is one of the engine's.
            pub fn from_name(name: &str) -> Option<Self> {
                match name {
                    $($name => Some(EngineFile::$variant),)+
                    _ => None,
                }
            }
        }
    };
}

engine_files! {
    /// The engine itself.
    Dockerd = "dockerd",
    /// The command-line client.
    Docker = "docker",
    /// PID 1 of containers started with `--init`.
    DockerInit = "docker-init",
    /// The userland proxy of published ports.
    DockerProxy = "docker-proxy",
    /// The container supervisor.
    Containerd = "containerd",
    /// containerd's own client.
    Ctr = "ctr",
    /// containerd's shim, API version 2.
    ContainerdShimRuncV2 = "containerd-shim-runc-v2",
    /// The OCI runtime.
    Runc = "runc",
}

impl EngineFile {
    /// Whether containerd must be restarted for a change of this file to take effect. The shim and
    /// runc are executed anew for every container, so they need no restart.
    pub fn restarts_containerd(self) -> bool {
        match self {
            EngineFile::Containerd => true,
            EngineFile::Dockerd
            | EngineFile::Docker
            | EngineFile::DockerInit
            | EngineFile::DockerProxy
            | EngineFile::Ctr
            | EngineFile::ContainerdShimRuncV2
            | EngineFile::Runc => false,
        }
    }
}

impl fmt::Display for EngineFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// One file of an engine on a host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileFact {
    /// Absolute path in the host's root.
    pub path: String,
    /// Digest of its content.
    pub digest: Digest,
}

/// The engine that a node runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EngineFacts {
    /// Version that the running engine's API gives, without a package's suffix being cut off.
    pub version: String,
    /// Highest API version of the running engine.
    pub api_version: String,
    /// When dockerd started, microseconds of the boot-time clock (systemd's monotonic start time).
    pub started_us: u64,
    /// The engine's files as they are on disk now.
    pub files: BTreeMap<EngineFile, FileFact>,
}

/// The set of engine files that a swap installed last on a host, whatever is there now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Installed {
    /// The set.
    pub set: Digest,
    /// Version of its dockerd.
    pub version: String,
    /// Digest of every file of it.
    pub files: BTreeMap<EngineFile, Digest>,
    /// For files whose content is another one now: the package that owns the path, where one does.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub owners: BTreeMap<EngineFile, String>,
}

/// A bundle that can be fetched from the coordinator.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BundleRef {
    /// Digest of the tarball.
    pub digest: Digest,
    /// Length of the tarball, bytes.
    pub size: u64,
    /// Version of its dockerd, as the coordinator read it from the binary.
    pub version: String,
    /// Machine architecture of its binaries, as `uname -m` names it.
    pub arch: String,
    /// Digests of the files inside that will be installed.
    pub files: BTreeMap<EngineFile, Digest>,
    /// Sum of those files' lengths, bytes.
    pub unpacked: u64,
}

/// What a rollout puts on the nodes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Target {
    /// The files of a bundle.
    Bundle(BundleRef),
    /// The set that ran on each node before the last rollout that changed it.
    Previous {
        /// The rollout that is taken back, for the record.
        of: RolloutId,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_go_both_ways() {
        for &file in EngineFile::ALL {
            assert_eq!(EngineFile::from_name(file.name()), Some(file));
            assert_eq!(serde_json::to_string(&file).unwrap(), format!("\"{file}\""));
        }
        assert_eq!(EngineFile::from_name("docker/dockerd"), None);
    }
}
