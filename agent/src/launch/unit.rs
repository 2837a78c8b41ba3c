//! The executor as a unit of the host's systemd: what it is, and the two calls that start it. How they get there is the
//! business of the ways.

use zbus::Variant;

/// The executor's unit.
pub(crate) const UNIT: &str = "requeen-executor.service";
/// systemd's name on a bus.
pub(super) const SYSTEMD: &str = "org.freedesktop.systemd1";
/// systemd's object.
pub(super) const OBJECT: &str = "/org/freedesktop/systemd1";
/// Its interface.
pub(super) const MANAGER: &str = "org.freedesktop.systemd1.Manager";
/// Clears what is left of a dead unit, which would refuse the name. That there is none is the usual case.
pub(super) const RESET: &str = "ResetFailedUnit";
/// Starts the unit. A job accepted is no promise that the process lives.
pub(super) const START: &str = "StartTransientUnit";

/// One command of a unit, as systemd takes it: program, arguments, whether failure is ignored.
type Exec = (String, Vec<String>, bool);
/// The properties of a unit.
type Properties = Vec<(&'static str, Variant<'static>)>;
/// An auxiliary unit; none is needed, but the call has a place for them.
type Auxiliary = (&'static str, Properties);
/// What [`START`] takes: name, what becomes of the jobs in its way, properties, auxiliary units.
pub(super) type Start = (&'static str, &'static str, Properties, Vec<Auxiliary>);

/// The arguments of [`RESET`].
pub(super) const fn reset() -> (&'static str,) {
    (UNIT,)
}

/// The arguments of [`START`] for a unit that runs `argv`.
pub(super) fn start(argv: &[String]) -> Start {
    (UNIT, "replace", properties(argv), Vec::new())
}

/// Whether systemd refused because the unit is there: it runs, or is about to be started again.
pub(super) fn is_there(refusal: &str) -> bool {
    // In the words of systemd since version 233, and of those before it.
    ["was already loaded or has a fragment file", "already exists"].iter().any(|words| refusal.contains(words))
}

fn properties(argv: &[String]) -> Properties {
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

#[cfg(test)]
mod tests {
    use super::is_there;

    #[test]
    fn a_unit_that_is_there_is_told_from_one_that_is_refused() {
        let refused = |why: &str| is_there(&format!("systemd refused to start requeen-executor.service: {why}"));
        assert!(refused("Unit requeen-executor.service was already loaded or has a fragment file."));
        assert!(refused("org.freedesktop.systemd1.UnitExists: Unit requeen-executor.service already exists."));
        assert!(!refused("Access denied"));
    }
}
