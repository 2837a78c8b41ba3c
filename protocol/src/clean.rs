//! What became of an order to clean.

use serde::{Deserialize, Serialize};

use crate::Problem;

/// How an order to clean ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "result", rename_all = "kebab-case")]
pub enum Cleaning {
    /// What could go is gone.
    Done {
        /// What is still there, and why.
        left: Vec<Left>,
        /// How many things more are still there than `left` names.
        more: u64,
    },
    /// Nothing was touched: the node's files are in use.
    Refused {
        /// By what.
        problem: Problem,
    },
}

/// Something that is still in the agent's folder. Paths are the host's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "because", rename_all = "kebab-case")]
pub enum Left {
    /// The way back: a set of engine files that was installed, or a copy of a manager's swarm folder.
    Backup {
        /// Its folder.
        path: String,
    },
    /// A coordinator serves on this host, and takes its own files away itself.
    Coordinator {
        /// Its socket.
        path: String,
    },
    /// Nobody of Requeen's made it, so it is not touched.
    Unknown {
        /// Where it is.
        path: String,
    },
    /// It should have gone.
    Failed {
        /// Where it is.
        path: String,
        /// Why it is still there.
        why: String,
    },
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::NodeState;

    #[test]
    fn what_is_left_travels_with_its_reason() {
        let left = vec![
            Left::Backup { path: "/b".to_owned() },
            Left::Failed { path: "/f".to_owned(), why: "it is busy".to_owned() },
        ];
        let state = NodeState::Cleaned { backups: false, cleaning: Cleaning::Done { left, more: 3 } };
        let json = serde_json::to_string(&state).unwrap();
        assert_eq!(
            json,
            r#"{"state":"cleaned","backups":false,"cleaning":{"result":"done","left":[{"because":"backup","path":"/b"},{"because":"failed","path":"/f","why":"it is busy"}],"more":3}}"#
        );
        assert_eq!(serde_json::from_str::<NodeState>(&json).unwrap(), state);
    }
}
