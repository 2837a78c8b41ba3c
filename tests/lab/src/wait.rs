//! Waiting for conditions, never for a time: a poll with a bound.

use std::thread;
use std::time::{Duration, Instant};

use crate::{Error, Result};

/// Between two looks. Each look is often a `docker exec`, which takes about as long.
const PAUSE: Duration = Duration::from_millis(100);

/// What a look saw.
#[derive(Debug)]
pub enum Seen<T> {
    /// The condition holds, and this came with it.
    Done(T),
    /// Not yet: what was seen instead.
    NotYet(String),
}

/// Looks until the condition holds, or fails with [`Error::Timeout`] after `limit`, naming what was seen last.
///
/// An error from `look` ends the wait at once.
pub fn until<T>(what: &str, limit: Duration, mut look: impl FnMut() -> Result<Seen<T>>) -> Result<T> {
    let started = Instant::now();
    loop {
        match look()? {
            Seen::Done(value) => return Ok(value),
            Seen::NotYet(last) if started.elapsed() >= limit => {
                return Err(Error::Timeout { what: what.to_owned(), waited: limit, last });
            }
            Seen::NotYet(_) => thread::sleep(PAUSE),
        }
    }
}

/// Like [`until`] for a look that can only say yes, or why not yet.
pub fn until_true(what: &str, limit: Duration, mut look: impl FnMut() -> Result<Result<(), String>>) -> Result<()> {
    until(what, limit, || {
        Ok(match look()? {
            Ok(()) => Seen::Done(()),
            Err(last) => Seen::NotYet(last),
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_sight_is_told() {
        let error = until::<()>("rain", Duration::ZERO, || Ok(Seen::NotYet("sun".to_owned()))).expect_err("no rain");
        assert_eq!(error.to_string(), "waited 0 s for rain; last seen: sun");
    }

    #[test]
    fn the_first_yes_ends_it() {
        let mut looks = 0;
        let got = until("three looks", Duration::from_secs(5), || {
            looks += 1;
            Ok(if looks == 3 { Seen::Done(looks) } else { Seen::NotYet(looks.to_string()) })
        });
        assert_eq!(got.expect("in time"), 3);
    }
}
