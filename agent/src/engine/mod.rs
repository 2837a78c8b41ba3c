//! The engine that runs on the node, from outside: its API, its files' digests, its units.
//!
//! What lives here observes or commands, and decides nothing.

pub mod api;
pub mod facts;
pub mod raw;
pub mod systemd;
