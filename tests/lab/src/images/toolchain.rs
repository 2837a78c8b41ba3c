//! What the product is linked with beside its crates, as the builder's own programs tell.

use std::process::Command;

use crate::command::{self, Input, docker};
use crate::{Error, LABEL, Result};

use super::product::{Build, repository};
use super::{PUBLISH, builder};

/// Asked where the product was built: what the compiler and the package manager say, a line each.
const SCRIPT: &str = "rustc --version && dpkg-query --show --showformat '${Version}\\n' libc6-dev";

/// The libraries of a builder that end up in the product.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Toolchain {
    /// The version of Rust, and so of its standard library.
    pub rust: String,
    /// The version of Debian's package with the C library.
    pub libc: String,
}

/// Asks the one who made the product that way.
pub fn toolchain(build: &Build) -> Result<Toolchain> {
    let said = match build {
        Build::Dockerfile => {
            let label = format!("{LABEL}={PUBLISH}");
            docker(&["run", "--rm", "--network", "none", "--label", &label, &builder()?, "sh", "-c", SCRIPT])?
        }
        // In the workspace, which may have a toolchain of its own.
        Build::Machine { .. } => {
            command::collect(Command::new("sh").args(["-c", SCRIPT]).current_dir(repository()), Input::Empty)?.ok()?
        }
    };
    parse(&said.stdout).ok_or(Error::Answer {
        what: "the product's builder",
        answer: said.stdout,
        expected: "rustc X, and the version of libc6-dev",
    })
}

fn parse(said: &str) -> Option<Toolchain> {
    let (rustc, libc) = said.trim_end().split_once('\n')?;
    let rust = rustc.strip_prefix("rustc ")?.split_whitespace().next()?;
    // Where several architectures are installed, each has a line, of the same version.
    let libc = libc.lines().next()?;
    Some(Toolchain { rust: rust.to_owned(), libc: libc.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_versions_are_read() {
        let said = "rustc 1.95.0 (59807616e 2026-04-14)\n2.41-12\n2.41-12\n";
        let expected = Toolchain { rust: "1.95.0".to_owned(), libc: "2.41-12".to_owned() };
        assert_eq!(parse(said), Some(expected));
        assert_eq!(parse("rustc 1.95.0\n"), None);
    }
}
