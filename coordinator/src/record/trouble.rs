//! What a failed call to the engine means for whoever wants to write: by status and text, because the
//! engine gives many of swarmkit's errors the status 500.

use bollard::errors::Error as DockerError;

/// Kinds of failure that are met in different ways.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// Somebody else changed the object since it was read: read it again.
    OutOfSequence,
    /// The managers have no leader now, or the store can't be written while they elect one: try again.
    NoLeader,
    /// The engine of this host does not answer, or not in time: try again. What was asked may have
    /// been done.
    Unreachable,
    /// The engine is no manager of a swarm.
    NotManager,
    /// The object is not there.
    NotFound,
    /// An object of that name is there already.
    Exists,
    /// Anything else: trying again does not help.
    Other,
}

/// Texts of swarmkit and the engine while the managers have no leader, lower case.
const NO_LEADER: &[&str] = &[
    "does not have a leader",
    "no elected cluster leader",
    "node lost leader status",
    "leadership was lost",
    "lost leadership",
    "no elected primary cluster manager",
    "too few managers are online",
    "raft: no leader",
    "not yet part of a raft cluster",
    "request canceled because node is stopped",
    "node is stopped",
    "context deadline exceeded",
    "code = deadlineexceeded",
    "code = unavailable",
    "transport is closing",
    "connection error",
];

impl Trouble {
    /// What `error` means.
    pub fn of(error: &DockerError) -> Self {
        if let DockerError::DockerResponseServerError { status_code, message } = error {
            return Self::of_answer(*status_code, message);
        }
        let no_answer = matches!(
            error,
            DockerError::RequestTimeoutError
                | DockerError::IOError { .. }
                | DockerError::HyperResponseError { .. }
                | DockerError::HyperLegacyError { .. }
                | DockerError::SocketNotFoundError(_)
        );
        if no_answer { Trouble::Unreachable } else { Trouble::Other }
    }

    /// What an answer with `status` and `text` means. The text is looked at first: "update out of
    /// sequence" has status 500, and so have most errors of an election.
    pub fn of_answer(status: u16, text: &str) -> Self {
        let text = text.to_ascii_lowercase();
        if text.contains("update out of sequence") {
            Trouble::OutOfSequence
        } else if text.contains("not a swarm manager") || text.contains("needs to be unlocked") {
            Trouble::NotManager
        } else if NO_LEADER.iter().any(|known| text.contains(known)) {
            Trouble::NoLeader
        } else {
            match status {
                404 => Trouble::NotFound,
                409 => Trouble::Exists,
                502..=504 => Trouble::NoLeader,
                _ => Trouble::Other,
            }
        }
    }

    /// Whether the same call may succeed a little later.
    pub fn passes(self) -> bool {
        match self {
            Trouble::NoLeader | Trouble::Unreachable => true,
            Trouble::OutOfSequence | Trouble::NotManager | Trouble::NotFound | Trouble::Exists | Trouble::Other => {
                false
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_told_apart() {
        let table = [
            (500, "rpc error: code = Unknown desc = update out of sequence", Trouble::OutOfSequence),
            (
                503,
                "The swarm does not have a leader. It's possible that too few managers are online. Make sure more \
                 than half of the managers are online.",
                Trouble::NoLeader,
            ),
            (500, "rpc error: code = Unknown desc = raft: no elected cluster leader", Trouble::NoLeader),
            (500, "rpc error: code = DeadlineExceeded desc = context deadline exceeded", Trouble::NoLeader),
            (
                500,
                "rpc error: code = Unavailable desc = connection error: desc = \"transport: dial tcp\"",
                Trouble::NoLeader,
            ),
            (504, "", Trouble::NoLeader),
            (
                503,
                "This node is not a swarm manager. Use \"docker swarm init\" or \"docker swarm join\" to connect this \
                 node to swarm and try again.",
                Trouble::NotManager,
            ),
            (503, "Swarm is encrypted and needs to be unlocked before it can be used.", Trouble::NotManager),
            (404, "config requeen-x not found", Trouble::NotFound),
            (409, "rpc error: code = AlreadyExists desc = config requeen-x already exists", Trouble::Exists),
            (400, "rpc error: code = InvalidArgument desc = only updates to Labels are allowed", Trouble::Other),
            (500, "rpc error: code = Unknown desc = raft: raft message is too large and can't be sent", Trouble::Other),
        ];
        for (status, text, expected) in table {
            assert_eq!(Trouble::of_answer(status, text), expected, "{status} {text}");
        }
    }

    #[test]
    fn no_answer_is_worth_another_try() {
        assert!(Trouble::of(&DockerError::RequestTimeoutError).passes());
        assert!(Trouble::of(&DockerError::SocketNotFoundError("/x".to_owned())).passes());
        assert!(!Trouble::of(&DockerError::APIVersionParseError {}).passes());
    }
}
