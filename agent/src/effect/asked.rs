//! What the executor asks of the engine for containers that are no swarm tasks: effects like the others, but the engine does
//! them, and may take its time.

use std::time::Duration;

use strum::{EnumDiscriminants, EnumIter, IntoStaticStr};

use super::fail_point;
use crate::engine::api::{Api, ApiError};
use crate::engine::containers;
use crate::host::HostRoot;

/// Something that the engine does for the executor.
#[derive(EnumDiscriminants)]
#[strum_discriminants(name(AskedKind), doc = "The name of what the engine does, without its data.")]
#[strum_discriminants(derive(EnumIter, IntoStaticStr), strum(serialize_all = "kebab-case"))]
pub enum Asked<'a> {
    /// A container ends, as it is configured to.
    StopContainer {
        /// Its ID.
        id: &'a str,
        /// How long it may take before it is killed.
        patience: Duration,
    },
    /// A container runs again.
    StartContainer {
        /// The engine.
        api: &'a Api,
        /// Its ID.
        id: &'a str,
    },
    /// A container that runs is paused.
    PauseContainer {
        /// The engine.
        api: &'a Api,
        /// Its ID.
        id: &'a str,
    },
}

/// Has it done.
pub(crate) async fn ask(root: &HostRoot, asked: Asked<'_>) -> Result<(), ApiError> {
    let name = AskedKind::from(&asked).into();
    fail_point("before", name);
    let done = asked.apply(root).await;
    fail_point("after", name);
    done
}

impl Asked<'_> {
    async fn apply(self, root: &HostRoot) -> Result<(), ApiError> {
        match self {
            Asked::StopContainer { id, patience } => containers::stop(root, id, patience).await,
            Asked::StartContainer { api, id } => api.start_container(id).await,
            Asked::PauseContainer { api, id } => api.pause_container(id).await,
        }
    }
}
