//! What a lab's nodes are made of.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// What a lab's nodes are made of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Containers on the machine's engine: quick, and all of them on the machine's own kernel and page cache.
    #[default]
    Container,
    /// User-mode-Linux machines: each with a kernel, a disk and a power cord of its own. Slower.
    Machine,
}

impl Kind {
    /// Its name on a command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Container => "container",
            Self::Machine => "machine",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A name that is no [`Kind`].
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is no kind of node: use container or machine")]
pub struct UnknownKind(String);

impl FromStr for Kind {
    type Err = UnknownKind;

    fn from_str(text: &str) -> Result<Self, UnknownKind> {
        let kinds = [Self::Container, Self::Machine];
        kinds.into_iter().find(|kind| kind.name() == text).ok_or_else(|| UnknownKind(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_reads_back() {
        for kind in [Kind::Container, Kind::Machine] {
            assert_eq!(kind.to_string().parse::<Kind>().expect("its own name"), kind);
        }
        assert!("vm".parse::<Kind>().is_err());
    }
}
