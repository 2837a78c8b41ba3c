//! The first way: a transient unit of the host's systemd, asked for over the host's system bus.

use std::time::Duration;

use zbus::Connection;
use zbus::Variant;
use zbus::connection::Builder;

use crate::host::HostRoot;

/// The executor's unit.
pub(crate) const UNIT: &str = "requeen-executor.service";

/// The bus, as a path of the host.
const BUS: &str = "/run/dbus/system_bus_socket";
const SYSTEMD: &str = "org.freedesktop.systemd1";
const OBJECT: &str = "/org/freedesktop/systemd1";
const MANAGER: &str = "org.freedesktop.systemd1.Manager";
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

/// One command of a unit, as systemd takes it: program, arguments, whether failure is ignored.
type Exec = (String, Vec<String>, bool);
/// An auxiliary unit; none is needed, but the call has a place for them.
type Auxiliary = (String, Vec<(String, Variant<'static>)>);

/// Asks for the unit. A job accepted is no promise that the process lives.
pub(crate) async fn start(root: &HostRoot, argv: &[String]) -> Result<(), BusError> {
    let address = format!("unix:path={}", root.join(BUS).display());
    let bus = Builder::address(address.as_str()).method_timeout(CALL_LIMIT).build().await.map_err(BusError::Connect)?;
    // What is left of a dead one would refuse the name. That there is none is the usual case.
    let _ = call(&bus, "ResetFailedUnit", &(UNIT,)).await;
    let none: Vec<Auxiliary> = Vec::new();
    call(&bus, "StartTransientUnit", &(UNIT, "replace", properties(argv), none)).await.map_err(BusError::Start)
}

async fn call<B>(bus: &Connection, method: &str, body: &B) -> Result<(), zbus::Error>
where
    B: serde::Serialize + zbus::wire::DynamicType,
{
    bus.call_method(Some(SYSTEMD), OBJECT, Some(MANAGER), method, body).await.map(drop)
}

fn properties(argv: &[String]) -> Vec<(&'static str, Variant<'static>)> {
    let program = argv.first().cloned().unwrap_or_default();
    let exec: Vec<Exec> = vec![(program, argv.to_vec(), false)];
    vec![
        ("Description", Variant::new("Requeen executor: replaces this node's Docker Engine")),
        ("Type", Variant::new("exec")),
        ("ExecStart", Variant::new(exec)),
        ("Restart", Variant::new("on-failure")),
        ("RestartUSec", Variant::new(2_000_000_u64)),
        // It must end up with a running engine however often it dies on the way.
        ("StartLimitIntervalUSec", Variant::new(0_u64)),
        // Between the stop and the start nothing else on the node matters as much.
        ("OOMScoreAdjust", Variant::new(-500_i32)),
        // Tied to nothing: what it stops and starts must not take it along.
        ("DefaultDependencies", Variant::new(false)),
    ]
}
