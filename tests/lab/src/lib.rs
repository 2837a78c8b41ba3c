//! The lab: real swarms of real engines on one machine.
//!
//! A [`Lab`] is a Docker Swarm whose nodes run systemd, or sysvinit ([`Init`]), and one of Debian's Docker Engines ([`Suite`] names which). They are
//! containers, or machines with a kernel, a disk and a power cord of their own ([`Kind`]). Nothing is pulled: [`images`] makes the nodes' images and the product's own from Debian
//! packages, and [`engines`] makes the `docker-VERSION.tgz` bundles that an upgrade is given. All of it is cached by
//! the digest of what it was made from.
//!
//! Everything the lab makes on the machine's engine carries the label [`LABEL`] with the lab's name, and only what
//! carries that label is ever removed. There is no other record of a lab of containers; one of machines has a folder of its
//! name below the cache, and a network namespace. A killed run leaves these, and the next [`Lab::up`] or [`Lab::down`] of
//! that name finds them.
//!
//! [`release`] makes what users get, of the product's image, and puts it into a registry; [`registry`] is one that runs
//! on a lab's node.
//!
//! What may not live here: anything that knows how an upgrade works. [`product`] starts what an operator would start,
//! with the operator's commands; the scenarios belong to the end-to-end tests.

pub mod apt;
mod archive;
pub mod bench;
pub mod cache;
pub mod checks;
pub mod command;
mod commit;
mod container;
pub mod demo;
pub mod engines;
mod error;
pub mod figures;
pub mod images;
mod init;
mod kind;
mod machine;
mod network;
mod node;
pub mod product;
pub mod registry;
pub mod release;
pub mod rig;
mod status;
mod suite;
mod swarm;
pub mod tools;
pub mod wait;
pub mod writes;

pub use error::{Error, Result};
pub use init::{Init, UnknownInit};
pub use kind::Kind;
pub use machine::Weather;
pub use node::{Node, Role};
pub use status::{LabStatus, NodeStatus};
pub use suite::Suite;
pub use swarm::{Lab, Spec};

/// The label that every container, network and volume of a lab carries; its value is the lab's name.
pub const LABEL: &str = "io.requeen.lab";
