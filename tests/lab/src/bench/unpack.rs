//! Verifying and unpacking a bundle: the agent's own code against `sha256sum`, `tar` and `sync`, on this machine.
//!
//! The work is done by the agent's bench `verify_unpack`, compiled as the product is; this only runs it.

use serde::{Deserialize, Serialize};

use super::spread::Pair;
use crate::command::{self, Input};
use crate::engines::Bundle;
use crate::images::without_own_package;
use crate::{Error, Result, cache, checks};

/// The figure. Times in seconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct VerifyUnpack {
    /// The agent's time as a part of the programs'.
    pub verify_unpack_ratio: f64,
    /// The agent's median.
    pub verify_unpack_ours: f64,
    /// The programs' median.
    pub verify_unpack_theirs: f64,
    /// All of it.
    pub verify_unpack: Pair,
}

/// What the bench prints: seconds of each run.
#[derive(Debug, Deserialize)]
struct Runs {
    ours: Vec<f64>,
    theirs: Vec<f64>,
}

/// Runs the bench, and compiles it if need be.
pub(super) fn measure(runs: u32, target: &Bundle) -> Result<VerifyUnpack> {
    tracing::info!("compile and run the agent's bench");
    // Beside the bundle: both sides read and write one file system, which is on a disk.
    let folder = cache::folder("bench")?;
    let mut cargo = checks::cargo(&["bench", "--locked", "--quiet", "--package", "requeen-agent"]);
    cargo.args(["--bench", "verify_unpack", "--"]).arg(&target.path).arg("--folder").arg(&folder);
    cargo.args(["--runs", &runs.to_string()]);
    without_own_package(&mut cargo);
    let said = command::collect(&mut cargo, Input::Empty)?.ok()?;
    figure(&said.stdout)
}

fn figure(said: &str) -> Result<VerifyUnpack> {
    let line = said.lines().rev().find(|line| line.starts_with('{')).unwrap_or_default();
    let runs: Runs =
        serde_json::from_str(line).map_err(|source| Error::Json { what: "the bench verify_unpack", source })?;
    let pair = Pair::of("verify + unpack", &runs.ours, &runs.theirs)?;
    Ok(VerifyUnpack {
        verify_unpack_ratio: pair.ratio(),
        verify_unpack_ours: pair.ours.median,
        verify_unpack_theirs: pair.theirs.median,
        verify_unpack: pair,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_benchs_line_is_read() {
        let read = figure("\n{\"ours\":[0.5,0.4,0.9],\"theirs\":[1.0,1.0,2.0]}\n").expect("a figure");
        assert!((read.verify_unpack_ratio - 0.5).abs() < 1e-9);
        assert_eq!((read.verify_unpack.ours.n, read.verify_unpack.theirs.max), (3, 2.0));
        for wrong in ["", "{}", "{\"ours\":[],\"theirs\":[1.0]}"] {
            assert!(figure(wrong).is_err(), "{wrong:?}");
        }
    }
}
