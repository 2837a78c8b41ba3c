//! The first way: a transient unit of the host's systemd, asked for over the host's system bus.

use std::time::Duration;

use zbus::Connection;
use zbus::connection::Builder;

use super::unit::{self, MANAGER, OBJECT, RESET, START, SYSTEMD, UNIT};
use crate::host::HostRoot;

/// The bus, as a path of the host.
const BUS: &str = "/run/dbus/system_bus_socket";
const CALL_LIMIT: Duration = Duration::from_secs(10);

/// The unit was not started.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BusError {
    /// The bus can't be reached.
    #[error("{BUS} can't be reached")]
    Connect(#[source] zbus::Error),
    /// systemd refused.
    #[error("systemd refused to start {UNIT}")]
    Start(#[source] zbus::Error),
}

/// Asks for the unit.
pub(crate) async fn start(root: &HostRoot, argv: &[String]) -> Result<(), BusError> {
    let address = format!("unix:path={}", root.join(BUS).display());
    let bus = Builder::address(address.as_str()).method_timeout(CALL_LIMIT).build().await.map_err(BusError::Connect)?;
    // Refused where nothing is left of an earlier one.
    let _ = call(&bus, RESET, &unit::reset()).await;
    call(&bus, START, &unit::start(argv)).await.map_err(BusError::Start)
}

async fn call<B>(bus: &Connection, method: &str, body: &B) -> Result<(), zbus::Error>
where
    B: serde::Serialize + zbus::wire::DynamicType,
{
    bus.call_method(Some(SYSTEMD), OBJECT, Some(MANAGER), method, body).await.map(drop)
}
