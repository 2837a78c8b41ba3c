//! Failures in the operator's words.

use requeen_protocol::RolloutId;

use crate::api::{Failure, FailureKind};
use crate::observe::ObserveError;
use crate::plan::model::Phase;
use crate::plan::reasons::Refusal;
use crate::probe::ProbeError;
use crate::record::{RecordError, Trouble};
use crate::server::words::chain;

/// A refusal: nothing has changed.
pub(super) fn refused(error: impl Into<String>, hint: impl Into<String>) -> Failure {
    Failure { kind: FailureKind::Refused, error: error.into(), hint: Some(hint.into()) }
}

/// All refusals in one, with the hint of the first.
pub(super) fn refused_by(refusals: &[Refusal]) -> Option<Failure> {
    let first = refusals.first()?;
    let words: Vec<_> = refusals.iter().map(|refusal| refusal.what.as_str()).collect();
    Some(refused(words.join("\n"), first.hint.clone()))
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        refused(refusal.what, refusal.hint)
    }
}

/// The phase in the operator's words.
pub(super) fn phase_words(phase: &Phase) -> String {
    match phase {
        Phase::Running => "running".to_owned(),
        Phase::Paused => "paused".to_owned(),
        Phase::Halted { reason } => format!("halted: {reason}"),
        Phase::Aborting => "being aborted".to_owned(),
        Phase::Ended { aborted: false } => "ended".to_owned(),
        Phase::Ended { aborted: true } => "aborted".to_owned(),
    }
}

/// Another rollout has to end first.
pub(super) fn open(id: &RolloutId, phase: &Phase) -> Failure {
    refused(
        format!("rollout {id} is open ({})", phase_words(phase)),
        "follow it with `requeen status --watch`, or end it with `requeen abort`",
    )
}

fn no_leader(error: &dyn std::error::Error) -> Failure {
    refused(
        format!("the swarm's managers have no leader: {}", chain(error)),
        "bring a majority of the managers back first; during an election try again after 20 s",
    )
}

fn by_trouble(trouble: Option<Trouble>, error: &dyn std::error::Error) -> Failure {
    match trouble {
        Some(Trouble::NoLeader) => no_leader(error),
        Some(Trouble::NotManager) => refused(chain(error), "run the coordinator on a manager that is in the swarm"),
        Some(Trouble::Unreachable) => Failure {
            kind: FailureKind::Unreachable,
            error: chain(error),
            hint: Some("is the engine of this manager running (`systemctl status docker`)?".to_owned()),
        },
        Some(Trouble::OutOfSequence) => refused(chain(error), "somebody else changes it again and again; try again"),
        Some(Trouble::NotFound | Trouble::Exists | Trouble::Other) | None => {
            Failure { kind: FailureKind::Failed, error: chain(error), hint: None }
        }
    }
}

impl From<ObserveError> for Failure {
    fn from(error: ObserveError) -> Self {
        match &error {
            ObserveError::Connect { .. } => by_trouble(Some(Trouble::Unreachable), &error),
            ObserveError::NotActive { state } if state == "locked" => refused(
                chain(&error),
                "type `docker swarm unlock` on this manager; what was under way then goes on by itself",
            ),
            ObserveError::NotActive { .. } | ObserveError::NotManager { .. } => {
                by_trouble(Some(Trouble::NotManager), &error)
            }
            ObserveError::Info(source)
            | ObserveError::Nodes(source)
            | ObserveError::Tasks(source)
            | ObserveError::Services(source) => by_trouble(Some(Trouble::of(source)), &error),
        }
    }
}

impl From<RecordError> for Failure {
    fn from(error: RecordError) -> Self {
        match &error {
            RecordError::Open { id, phase } => open(id, phase),
            RecordError::NoneOpen => refused(error.to_string(), "`requeen status` shows the last one"),
            RecordError::Unreadable { name, .. } => refused(
                chain(&error),
                format!(
                    "use the version that wrote it; or, if no node is in work, remove it: `docker config rm {name}`"
                ),
            ),
            RecordError::List(_)
            | RecordError::Create { .. }
            | RecordError::Write { .. }
            | RecordError::Remove { .. } => by_trouble(error.trouble(), &error),
        }
    }
}

impl From<ProbeError> for Failure {
    fn from(error: ProbeError) -> Self {
        let text = chain(&error);
        match (&error, text.split_once("\nhint: ")) {
            (ProbeError::NoClients, Some((what, hint))) => refused(what, hint),
            (ProbeError::ListServices(source) | ProbeError::ReadLogs { source, .. }, _) => {
                by_trouble(Some(Trouble::of(source)), &error)
            }
            (
                ProbeError::NoClients
                | ProbeError::Listen { .. }
                | ProbeError::Serve(_)
                | ProbeError::Resolver(_)
                | ProbeError::Write(_)
                | ProbeError::Check(_)
                | ProbeError::Steps(_)
                | ProbeError::Json(_),
                _,
            ) => Failure { kind: FailureKind::Failed, error: text, hint: None },
        }
    }
}

#[cfg(test)]
mod tests {
    use bollard::errors::Error as DockerError;

    use super::*;

    fn answer(status_code: u16, message: &str) -> DockerError {
        DockerError::DockerResponseServerError { status_code, message: message.to_owned() }
    }

    #[test]
    fn exit_codes_follow_the_trouble() {
        let table = [
            (
                Failure::from(ObserveError::Nodes(answer(503, "The swarm does not have a leader."))),
                FailureKind::Refused,
            ),
            (Failure::from(ObserveError::Info(DockerError::RequestTimeoutError)), FailureKind::Unreachable),
            (Failure::from(ObserveError::Tasks(answer(500, "disk on fire"))), FailureKind::Failed),
            (Failure::from(ObserveError::NotActive { state: "locked".to_owned() }), FailureKind::Refused),
            (Failure::from(RecordError::NoneOpen), FailureKind::Refused),
            (
                Failure::from(RecordError::Open { id: RolloutId::from("r1"), phase: Phase::Paused }),
                FailureKind::Refused,
            ),
            (Failure::from(ProbeError::NoClients), FailureKind::Refused),
        ];
        for (failure, kind) in table {
            assert_eq!(failure.kind, kind, "{}", failure.error);
        }
        let locked = Failure::from(ObserveError::NotActive { state: "locked".to_owned() });
        assert!(locked.hint.unwrap().contains("docker swarm unlock"));
        let open = Failure::from(RecordError::Open { id: RolloutId::from("r1"), phase: Phase::Paused });
        assert_eq!(open.error, "rollout r1 is open (paused)");
    }
}
