//! The engine that runs on the node, from outside: its API, its files' digests, its units.
//!
//! What lives here observes or commands, and decides nothing.

pub mod api;
pub mod containers;
pub mod facts;
pub(crate) mod leftover;
pub mod raw;
pub mod systemd;
pub mod sysv;

use std::sync::Arc;

use crate::host::HostRoot;
use crate::host::layout::Layout;
use crate::host::manager::ServiceManager;

/// What commands the engine of a host.
pub fn control(root: &HostRoot, layout: &Layout) -> Arc<dyn systemd::EngineControl> {
    match layout.manager {
        ServiceManager::Systemd => Arc::new(systemd::Systemd::new(root, layout)),
        ServiceManager::SysV | ServiceManager::OpenRc => Arc::new(sysv::Scripts::new(root, layout)),
    }
}
