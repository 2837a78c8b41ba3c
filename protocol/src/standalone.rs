//! Containers that are no swarm tasks: draining a node does not move them, and they end with its engine.

use serde::{Deserialize, Serialize};

/// So many of a node's standalone containers are named.
pub const STANDALONE_NAMED: usize = 50;

/// A running container that is no swarm task, and what an upgrade of its node does to it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Standalone {
    /// Its name.
    pub name: String,
    /// What becomes of it.
    pub fate: Fate,
}

/// What an upgrade of its node does to a standalone container.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fate {
    /// The engine stops it when it is stopped itself, and starts it again: its restart policy says so.
    WithEngine,
    /// It is stopped before the engine and started after it.
    StartedAgain,
    /// It is paused: it ends, is started after the engine, and paused again. What was in its memory is lost.
    PausedAgain,
    /// It was made to be removed at its end (`--rm`): once stopped it is gone.
    Lost,
}

impl Fate {
    /// All of them.
    pub const ALL: [Fate; 4] = [Fate::WithEngine, Fate::StartedAgain, Fate::PausedAgain, Fate::Lost];
}
