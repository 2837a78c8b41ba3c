//! Everything that the server changes in the world, and the one function that changes it.
//!
//! What is changed in the swarm is an [`InSwarm`], what is changed on the coordinator's own host an [`OnHost`]; [`perform`]
//! carries either out. Before and after each it passes a fail point, named by its [`Kind`]: a new variant does not compile
//! without one, and the tests of `walk`, which kill a coordinator at every point, fail until they have come by it. Programs
//! built without the feature `failpoints` have no such points. Nothing is decided here, and no error is worded here.
//!
//! The command line's own files (`diag`, `install`) are the operator's, and not among these.

pub(crate) mod kind;
#[cfg(test)]
mod walk;

use std::fs;
use std::io::{self, SeekFrom};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use bollard::Docker;
use bollard::errors::Error as DockerError;
use bollard::models::{ConfigSpec, NodeSpec, ServiceSpec};
use bollard::query_parameters::{UpdateConfigOptionsBuilder, UpdateNodeOptionsBuilder, UpdateServiceOptionsBuilder};
use requeen_protocol::NodeId;
use tokio::fs::File;
use tokio::io::{AsyncSeekExt, AsyncWriteExt};
use tokio::net::UnixListener;

pub(crate) use kind::Kind;
use kind::Side;

/// What is changed in the swarm. Every update is a compare-and-swap on `version`, the index of the object as it was read.
pub(crate) enum InSwarm<'a> {
    /// A rollout's record is made.
    CreateRecord { spec: ConfigSpec },
    /// What changes in a record is written.
    WriteRecord { config: &'a str, version: u64, spec: ConfigSpec, says: Says },
    /// A record is removed.
    RemoveRecord { config: &'a str },
    /// A node's spec is replaced by one that differs in its availability.
    SetAvailability { node: &'a NodeId, version: u64, spec: NodeSpec },
    /// The agents' service is made.
    CreateService { spec: ServiceSpec },
    /// It is changed.
    UpdateService { id: &'a str, version: u64, spec: ServiceSpec },
    /// A service of agents is removed.
    RemoveService { id: &'a str },
}

/// The weightiest thing that a write of a record says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Says {
    /// The rollout has another owner.
    Owner,
    /// A node has a stop permit.
    Permit,
    /// A node has a lease.
    Lease,
    /// The rollout's phase is another one.
    Phase,
    /// A node is a step further.
    Step,
    /// The owner lives.
    Renewal,
}

/// What is changed on the coordinator's own host, all of it below its data folder.
pub(crate) enum OnHost<'a> {
    /// A folder is made, with those above it, unless it is there.
    MakeFolder { dir: &'a Path },
    /// An empty folder is removed.
    RemoveFolder { dir: &'a Path },
    /// An empty file is made where there was none.
    CreateFile { path: &'a Path },
    /// A file's content changes.
    WriteFile { file: &'a mut File, content: Content<'a> },
    /// What was written to a file gets to the disk.
    SyncFile { file: &'a mut File },
    /// A file or a socket gets its final name.
    Rename { from: &'a Path, to: &'a Path },
    /// A file is removed.
    RemoveFile { path: &'a Path },
    /// The names in a folder get to the disk.
    SyncFolder { dir: &'a Path },
    /// A socket is made, and listened on.
    BindSocket { path: &'a Path, listener: &'a mut Option<UnixListener> },
    /// Nobody but its owner may connect to it.
    GuardSocket { path: &'a Path },
}

/// How a file's content changes.
pub(crate) enum Content<'a> {
    /// These bytes come after the last.
    More(&'a [u8]),
    /// It is empty again.
    None,
}

/// One change of the world. No other module implements it.
pub(crate) trait Effect {
    /// What says why it was not carried out.
    type Error;

    /// Names its fail points.
    fn kind(&self) -> Kind;

    /// Does it.
    async fn carry_out(self) -> Result<(), Self::Error>;
}

/// Carries out `effect`, between its two fail points.
pub(crate) async fn perform<E: Effect>(effect: E) -> Result<(), E::Error> {
    let kind = effect.kind();
    kind.pass(Side::Before);
    let done = effect.carry_out().await;
    kind.pass(Side::After);
    done
}

/// A change of the swarm, and the client that makes it.
impl Effect for (&Docker, InSwarm<'_>) {
    type Error = DockerError;

    fn kind(&self) -> Kind {
        match &self.1 {
            InSwarm::CreateRecord { .. } => Kind::CreateRecord,
            InSwarm::WriteRecord { says, .. } => match says {
                Says::Permit => Kind::GivePermit,
                Says::Lease => Kind::GrantLease,
                Says::Owner => Kind::TakeOver,
                Says::Phase => Kind::WritePhase,
                Says::Step => Kind::WriteStep,
                Says::Renewal => Kind::RenewRecord,
            },
            InSwarm::RemoveRecord { .. } => Kind::RemoveRecord,
            InSwarm::SetAvailability { .. } => Kind::SetAvailability,
            InSwarm::CreateService { .. } => Kind::CreateService,
            InSwarm::UpdateService { .. } => Kind::UpdateService,
            InSwarm::RemoveService { .. } => Kind::RemoveService,
        }
    }

    async fn carry_out(self) -> Result<(), DockerError> {
        let (docker, change) = self;
        let index = |version: u64| i64::try_from(version).unwrap_or(i64::MAX);
        match change {
            InSwarm::CreateRecord { spec } => docker.create_config(spec).await.map(drop),
            InSwarm::WriteRecord { config, version, spec, says: _ } => {
                let options = UpdateConfigOptionsBuilder::default().version(index(version)).build();
                docker.update_config(config, spec, options).await
            }
            InSwarm::RemoveRecord { config } => docker.delete_config(config).await,
            InSwarm::SetAvailability { node, version, spec } => {
                let options = UpdateNodeOptionsBuilder::default().version(index(version)).build();
                docker.update_node(node.as_str(), spec, options).await
            }
            InSwarm::CreateService { spec } => docker.create_service(spec, None).await.map(drop),
            InSwarm::UpdateService { id, version, spec } => {
                let version = i32::try_from(version).unwrap_or(i32::MAX);
                let options = UpdateServiceOptionsBuilder::new().version(version).build();
                docker.update_service(id, spec, options, None).await.map(drop)
            }
            InSwarm::RemoveService { id } => docker.delete_service(id).await,
        }
    }
}

impl Effect for OnHost<'_> {
    type Error = io::Error;

    fn kind(&self) -> Kind {
        match self {
            OnHost::MakeFolder { .. } => Kind::MakeFolder,
            OnHost::RemoveFolder { .. } => Kind::RemoveFolder,
            OnHost::CreateFile { .. } => Kind::CreateFile,
            OnHost::WriteFile { .. } => Kind::WriteFile,
            OnHost::SyncFile { .. } => Kind::SyncFile,
            OnHost::Rename { .. } => Kind::Rename,
            OnHost::RemoveFile { .. } => Kind::RemoveFile,
            OnHost::SyncFolder { .. } => Kind::SyncFolder,
            OnHost::BindSocket { .. } => Kind::BindSocket,
            OnHost::GuardSocket { .. } => Kind::GuardSocket,
        }
    }

    async fn carry_out(self) -> io::Result<()> {
        match self {
            OnHost::MakeFolder { dir } => fs::create_dir_all(dir),
            OnHost::RemoveFolder { dir } => fs::remove_dir(dir),
            OnHost::CreateFile { path } => fs::File::create_new(path).map(drop),
            OnHost::WriteFile { file, content: Content::More(bytes) } => file.write_all(bytes).await,
            OnHost::WriteFile { file, content: Content::None } => {
                file.set_len(0).await?;
                file.seek(SeekFrom::Start(0)).await.map(drop)
            }
            OnHost::SyncFile { file } => {
                // What the last write met comes out here; `sync_all` does not tell.
                file.flush().await?;
                file.sync_all().await
            }
            OnHost::Rename { from, to } => fs::rename(from, to),
            OnHost::RemoveFile { path } => fs::remove_file(path),
            OnHost::SyncFolder { dir } => File::open(dir).await?.sync_all().await,
            OnHost::BindSocket { path, listener } => {
                *listener = Some(UnixListener::bind(path)?);
                Ok(())
            }
            OnHost::GuardSocket { path } => fs::set_permissions(path, fs::Permissions::from_mode(0o600)),
        }
    }
}
