//! The agent: one binary with two lives on a node of a swarm.
//!
//! The *task* ([`task`]) runs in a container of a global service. It reports what is true on its node,
//! gets a target ready, and hands over to the *executor* ([`executor`]) when the node is granted a
//! lease. The executor is a process of the host, so it outlives the engine that it replaces.
//!
//! What the executor does to its host goes through one place, [`effect`].
//!
//! [`host`], [`stage`], [`sets`], [`swap`], [`journal`], [`boot`], [`recovery`], [`installed`], [`raft_copy`] and [`clean`] work on the host's files and know neither
//! the network nor the engine's API. Nothing here speaks to the swarm's control API: what a node
//! should do is the coordinator's word, and it comes through [`client`]. What it asks for a bug report,
//! [`collect`] gathers.

pub mod boot;
pub mod clean;
pub mod cli;
pub mod client;
pub mod clock;
pub mod collect;
pub mod effect;
pub mod engine;
pub mod executor;
pub mod host;
pub mod identity;
pub mod installed;
pub mod journal;
pub mod launch;
pub mod lock;
pub mod memo;
pub mod memory;
pub mod packages;
pub mod priority;
pub mod raft_copy;
pub mod recovery;
pub mod reporter;
pub mod sets;
pub mod stage;
pub mod staged;
pub mod standalone;
pub mod swap;
pub mod task;
pub mod unlock;
mod words;
