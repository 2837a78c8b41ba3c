//! What a machine wrote to its disk, write by write, and the disk as a power cut at any flush would have left it.
//!
//! [`Log`] reads what dm-log-writes wrote, [`Replay`] carries it out on a copy of the disk that the machine began with, up
//! to one flush after the other, and mounts what is there then. A disk promises no more than that what was written before
//! a flush outlives it: so a state for each flush is what a program's syncs have to be right for.
//!
//! What may not live here: anything that knows what should be on the disk.

mod log;
mod replay;

use std::path::PathBuf;

pub use log::{Entry, Log, What};
pub use replay::{Replay, replay};

/// A disk, and all that was written to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recording {
    /// The disk as it was before the first write.
    pub disk: PathBuf,
    /// The log of the writes.
    pub log: PathBuf,
}
