//! Medians, and how far single measurements lie apart. Pure.

use serde::Serialize;

use crate::{Error, Result};

/// What was measured several times.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Spread {
    /// How often.
    pub n: usize,
    /// The least.
    pub min: f64,
    /// The middle one, or between the two in the middle.
    pub median: f64,
    /// The most.
    pub max: f64,
}

impl Spread {
    /// Of these values, of which there must be one.
    pub fn of(what: &'static str, values: &[f64]) -> Result<Self> {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let (Some(&min), Some(&max)) = (sorted.first(), sorted.last()) else {
            return Err(Error::NothingMeasured { what });
        };
        let n = sorted.len();
        // The same one twice where the number is odd.
        let median = f64::midpoint(sorted[(n - 1) / 2], sorted[n / 2]);
        Ok(Self { n, min, median, max })
    }
}

/// Both sides of a comparison, in the same unit.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Pair {
    /// The product's.
    pub ours: Spread,
    /// What it is compared with.
    pub theirs: Spread,
}

impl Pair {
    /// Of the values of both sides.
    pub fn of(what: &'static str, ours: &[f64], theirs: &[f64]) -> Result<Self> {
        Ok(Self { ours: Spread::of(what, ours)?, theirs: Spread::of(what, theirs)? })
    }

    /// The median of ours as a part of the median of theirs.
    pub fn ratio(&self) -> f64 {
        self.ours.median / self.theirs.median
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_in_the_middle() {
        let odd = Spread::of("x", &[3.0, 1.0, 9.0]).expect("three values");
        assert_eq!(odd, Spread { n: 3, min: 1.0, median: 3.0, max: 9.0 });
        let even = Spread::of("x", &[4.0, 1.0, 2.0, 100.0]).expect("four values");
        assert_eq!((even.n, even.median), (4, 3.0));
        assert!(Spread::of("x", &[]).is_err());
    }

    #[test]
    fn the_ratio_is_that_of_the_medians() {
        let pair = Pair::of("x", &[1.0, 2.0, 30.0], &[4.0]).expect("values on both sides");
        assert!((pair.ratio() - 0.5).abs() < 1e-9);
    }
}
