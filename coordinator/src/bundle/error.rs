//! Every way in which a tarball is no bundle, in words an operator can act on.

use std::io;
use std::path::PathBuf;

use requeen_protocol::{Digest, EngineFile};

/// Why a tarball can't be used.
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    /// The file can't be opened or read.
    #[error("can't read the bundle {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It does not begin like gzip.
    #[error("the bundle is not gzip: it begins with {begin}")]
    NotGzip {
        /// Its first two bytes, as text for people.
        begin: String,
    },
    /// It ends before its archive does.
    #[error("the bundle is truncated: it ends after {bytes} bytes, in the middle of its archive")]
    Truncated {
        /// Its length.
        bytes: u64,
    },
    /// It can't be inflated, or what comes out is no tar archive.
    #[error("the bundle is damaged")]
    Damaged {
        /// What the decoder says.
        source: io::Error,
    },
    /// Nothing of that name that could be installed.
    #[error("there is no dockerd inside the bundle")]
    NoDockerd,
    /// dockerd is no ELF file.
    #[error("`{entry}` in the bundle is not an ELF executable")]
    NotElf {
        /// Its path in the archive.
        entry: String,
    },
    /// An executable of another machine.
    #[error("`{entry}` in the bundle is built for {found}, this node is {host}")]
    WrongArch {
        /// Its path in the archive.
        entry: String,
        /// What it is built for.
        found: String,
        /// What is wanted.
        host: String,
    },
    /// An absolute path, or one with `..`.
    #[error("the entry `{entry}` leads out of the bundle")]
    Escapes {
        /// Its path in the archive.
        entry: String,
    },
    /// A link, a device or the like.
    #[error("the entry `{entry}` is a {kind}, not a regular file")]
    NotRegular {
        /// Its path in the archive.
        entry: String,
        /// What it is.
        kind: &'static str,
    },
    /// Two entries that would become one file.
    #[error("`{name}` is in the bundle twice")]
    Duplicate {
        /// The name.
        name: String,
    },
    /// An entry above the limit, refused by its header.
    #[error("the entry `{entry}` has {size} bytes, more than the {limit} that any file of an engine may have")]
    TooBig {
        /// Its path in the archive.
        entry: String,
        /// What its header says.
        size: u64,
        /// The limit.
        limit: u64,
    },
    /// All entries together are above the limit, in bytes or in number.
    #[error("the bundle unpacks to more than {limit}")]
    TooMuch {
        /// The limit, with its unit.
        limit: String,
    },
    /// The digest is not the one that was asked for.
    #[error("the bundle's digest is {found}, expected {expected}")]
    Digest {
        /// What was asked for.
        expected: Digest,
        /// What it is.
        found: Digest,
    },
}

impl BundleError {
    /// What to do about it.
    pub fn hint(&self) -> String {
        match self {
            BundleError::Read { .. } => "give the path of a tarball that this user may read".into(),
            BundleError::NotGzip { .. } => {
                "a bundle is Docker's static tarball (.tgz) as published; was an error page saved in its place?".into()
            }
            BundleError::Truncated { .. } => "download or copy it again, and compare its length".into(),
            BundleError::Damaged { .. } => "download or copy it again, and give its digest with --digest".into(),
            BundleError::NoDockerd => {
                let names: Vec<_> = EngineFile::ALL.iter().map(|file| file.name()).collect();
                format!("a bundle holds these files, under `docker/` or at its top: {}", names.join(", "))
            }
            BundleError::NotElf { .. } => "take the tarball for Linux".into(),
            BundleError::WrongArch { host, .. } => format!("take the tarball for {host}"),
            BundleError::Escapes { .. }
            | BundleError::NotRegular { .. }
            | BundleError::Duplicate { .. }
            | BundleError::TooBig { .. }
            | BundleError::TooMuch { .. } => "don't trust this file; take Docker's static tarball as published".into(),
            BundleError::Digest { .. } => "take the file that the digest was published for, or correct --digest".into(),
        }
    }
}
