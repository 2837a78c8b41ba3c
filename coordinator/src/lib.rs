//! The coordinator: observes the swarm, plans, grants leases, drains and activates nodes. It never
//! touches a host's files.
//!
//! Policy lives in [`plan`], which is pure; everything else carries out what the plan says.

pub mod api;
pub mod bundle;
pub mod cli;
mod clocks;
pub mod deploy;
pub mod diag;
pub mod drive;
mod effect;
pub mod hub;
pub mod identity;
pub mod observe;
pub mod ops;
pub mod plan;
pub mod probe;
pub mod record;
pub mod server;
