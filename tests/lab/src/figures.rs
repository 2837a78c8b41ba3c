//! What a run of the tests counts, beside whether they passed: power cuts, crashes, kills, and how each of them ended.
//!
//! A test appends one line of JSON, with the fields that it knows of, to the file that [`VARIABLE`] names, and nothing where it
//! is not set. So tests of any crate can, without a word to each other.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// Names the file.
pub const VARIABLE: &str = "REQUEEN_FIGURES";

/// The figures of one test, or the sum of many tests' figures.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Figures {
    /// Power cuts in the middle of a node's work.
    pub power_cuts: u64,
    /// Those after which the node ended upgraded or exactly as it was, with the files of one set.
    pub power_cuts_coherent: u64,
    /// States of a node's disk after a flush in the middle of its work, as a power cut would have left it.
    pub flushes: u64,
    /// Those from which the node's recovery came to the files of one set.
    pub flushes_coherent: u64,
    /// Instants, before or after an effect on a host or in the swarm, at which a process was ended.
    pub fail_points: u64,
    /// Those after which everything ended as it should.
    pub fail_points_passed: u64,
    /// Coordinators killed in the middle of a rollout.
    pub coordinator_kills: u64,
    /// Those whose rollout was brought to its end by another.
    pub coordinator_kills_ended: u64,
    /// Scenarios on real engines.
    pub scenarios: u64,
    /// Those that passed.
    pub scenarios_passed: u64,
    /// The longest that an engine was away whose successor failed: from its stop to its first answer again, seconds. The time for
    /// which the successor was waited for is in it.
    pub rollback_worst_s: f64,
    /// The longest time that a recovery took at a boot, seconds.
    pub recovery_boot_s: f64,
    /// With which each random run can be run again.
    pub seeds: Vec<String>,
}

impl Figures {
    /// Both together: counts added, times the longer one.
    #[must_use]
    pub fn and(mut self, other: Self) -> Self {
        self.seeds.extend(other.seeds);
        Self {
            power_cuts: self.power_cuts + other.power_cuts,
            power_cuts_coherent: self.power_cuts_coherent + other.power_cuts_coherent,
            flushes: self.flushes + other.flushes,
            flushes_coherent: self.flushes_coherent + other.flushes_coherent,
            fail_points: self.fail_points + other.fail_points,
            fail_points_passed: self.fail_points_passed + other.fail_points_passed,
            coordinator_kills: self.coordinator_kills + other.coordinator_kills,
            coordinator_kills_ended: self.coordinator_kills_ended + other.coordinator_kills_ended,
            scenarios: self.scenarios + other.scenarios,
            scenarios_passed: self.scenarios_passed + other.scenarios_passed,
            rollback_worst_s: self.rollback_worst_s.max(other.rollback_worst_s),
            recovery_boot_s: self.recovery_boot_s.max(other.recovery_boot_s),
            seeds: self.seeds,
        }
    }

    /// Adds them to the run's, if somebody wants those.
    ///
    /// # Errors
    /// The file can't be written.
    pub fn note(&self) -> Result<()> {
        std::env::var_os(VARIABLE).map_or(Ok(()), |path| self.append(Path::new(&path)))
    }

    fn append(&self, path: &Path) -> Result<()> {
        let line = serde_json::to_string(self).map_err(|source| Error::Json { what: "the figures", source })? + "\n";
        let file = OpenOptions::new().create(true).append(true).open(path);
        // In one write: other tests append too.
        file.and_then(|mut file| file.write_all(line.as_bytes())).map_err(Error::file("write", path))
    }

    /// The sum of all lines of a file; of none where there is no file.
    ///
    /// # Errors
    /// The file can't be read, or a line in it is something else.
    pub fn read(path: &Path) -> Result<Self> {
        let text = match fs::read_to_string(path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
            read => read.map_err(Error::file("read", path))?,
        };
        Self::sum(&text)
    }

    fn sum(text: &str) -> Result<Self> {
        text.lines().try_fold(Self::default(), |sum, line| {
            let figures = serde_json::from_str(line).map_err(|source| Error::Json { what: "the figures", source })?;
            Ok(sum.and(figures))
        })
    }

    /// Whether everything that was tried ended as it should.
    pub fn all_ended_well(&self) -> bool {
        self.power_cuts == self.power_cuts_coherent
            && self.flushes == self.flushes_coherent
            && self.fail_points == self.fail_points_passed
            && self.coordinator_kills == self.coordinator_kills_ended
            && self.scenarios == self.scenarios_passed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_needs_only_what_its_test_knows() {
        let text = "{\"power_cuts\":2,\"power_cuts_coherent\":2,\"recovery_boot_s\":0.05,\"seeds\":[\"7\"]}\n\
                    {\"power_cuts\":1,\"power_cuts_coherent\":0,\"recovery_boot_s\":0.03,\"seeds\":[\"8\"]}\n\
                    {\"scenarios\":3,\"scenarios_passed\":3}\n";
        let sum = Figures::sum(text).expect("three lines");
        assert_eq!((sum.power_cuts, sum.power_cuts_coherent, sum.scenarios), (3, 2, 3));
        assert!((sum.recovery_boot_s - 0.05).abs() < 1e-9);
        assert_eq!(sum.seeds, ["7", "8"]);
        assert!(!sum.all_ended_well());
        assert!(Figures::sum("{\"power_cut\":1}").is_err(), "a misspelt field would be lost");
    }

    #[test]
    fn what_tests_append_is_read_again() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("figures.jsonl");
        assert_eq!(Figures::read(&path).expect("no file"), Figures::default());
        let one = Figures { fail_points: 4, fail_points_passed: 4, ..Figures::default() };
        one.append(&path).expect("appended");
        one.append(&path).expect("appended");
        let sum = Figures::read(&path).expect("two lines");
        assert_eq!(sum, Figures { fail_points: 8, fail_points_passed: 8, ..Figures::default() });
        assert!(sum.all_ended_well());
    }
}
