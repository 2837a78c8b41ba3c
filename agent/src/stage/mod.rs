//! Getting a target ready: everything slow and everything that can fail, before anything is touched.

pub mod bundle;
mod elf;
pub(crate) mod folders;
pub mod preflight;
pub mod version;
