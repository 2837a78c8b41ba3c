//! The Debian suites whose engines the lab knows.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A Debian suite, and with it one version of Docker Engine.
///
/// The versions named below are those of autumn 2026; the one that counts is read from the binaries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Suite {
    /// Debian 11: Docker Engine 20.10.5.
    Bullseye,
    /// Debian 12: Docker Engine 20.10.24.
    Bookworm,
    /// Debian 13: Docker Engine 26.1.5.
    Trixie,
    /// Debian's development suite: Docker Engine 28.5.2.
    Sid,
}

impl Suite {
    /// Every suite, oldest engine first.
    pub const ALL: [Self; 4] = [Self::Bullseye, Self::Bookworm, Self::Trixie, Self::Sid];

    /// The suite's name in an archive.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Bullseye => "bullseye",
            Self::Bookworm => "bookworm",
            Self::Trixie => "trixie",
            Self::Sid => "sid",
        }
    }
}

impl fmt::Display for Suite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A name that is no [`Suite`].
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is no suite of the lab: use bullseye, bookworm, trixie or sid")]
pub struct UnknownSuite(String);

impl FromStr for Suite {
    type Err = UnknownSuite;

    fn from_str(text: &str) -> Result<Self, UnknownSuite> {
        Self::ALL.into_iter().find(|suite| suite.name() == text).ok_or_else(|| UnknownSuite(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_reads_back() {
        for suite in Suite::ALL {
            assert_eq!(suite.to_string().parse::<Suite>().expect("its own name"), suite);
        }
        assert!("bookwyrm".parse::<Suite>().is_err());
    }
}
