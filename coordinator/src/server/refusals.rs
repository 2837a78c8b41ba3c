//! Refused clients in the log: each place once per kind of reason, and never more than so many lines, so that
//! nobody can fill it.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::doors::place;
use crate::hub::Clock;

/// How many pairs of place and kind of reason are remembered. When there are more all are forgotten, and so
/// logged once more.
const REMEMBERED: usize = 1024;

/// How many reasons of one place are logged: a node can make up new ones.
const REASONS: usize = 16;

/// How many lines there are in [`SPAN`], whoever knocks.
const LINES: u32 = 60;

/// See [`LINES`].
const SPAN: Duration = Duration::from_secs(60);

/// How much of a reason is kept and logged, characters: parts of it are the client's own words.
const LONGEST: usize = 300;

/// What was logged already.
pub(crate) struct Refusals {
    clock: Clock,
    logged: Mutex<Logged>,
}

#[derive(Default)]
struct Logged {
    pairs: BTreeSet<(IpAddr, String)>,
    /// When this span began, and how many lines there were in it.
    began: Option<Instant>,
    lines: u32,
    /// How many refusals were news and left out since the last line.
    left_out: u64,
}

impl Default for Refusals {
    fn default() -> Self {
        Self::new(Arc::new(Instant::now))
    }
}

impl Refusals {
    /// Nobody was refused yet.
    pub(crate) fn new(clock: Clock) -> Self {
        Self { clock, logged: Mutex::default() }
    }

    /// Logs that a client was refused, if it was not logged before.
    pub(crate) fn log(&self, client: IpAddr, reason: &str) {
        let reason: String = reason.chars().take(LONGEST).collect();
        match self.news(client, &kind(&reason)) {
            Some(0) => tracing::warn!(%client, reason, "client refused (logged once)"),
            Some(left_out) => tracing::warn!(%client, reason, left_out, "client refused (logged once)"),
            None => tracing::debug!(%client, reason, "client refused"),
        }
    }

    /// How many refusals were left out before this one, if it is to be logged.
    fn news(&self, client: IpAddr, kind: &str) -> Option<u64> {
        let now = (self.clock)();
        let client = place(client);
        let mut logged = self.logged.lock().unwrap_or_else(PoisonError::into_inner);
        if logged.pairs.contains(&(client, kind.to_owned())) {
            return None;
        }
        if logged.pairs.len() >= REMEMBERED {
            logged.pairs.clear();
        }
        let known = logged.pairs.range((client, String::new())..).take_while(|(other, _)| *other == client);
        let in_span = logged.began.is_some_and(|began| now.saturating_duration_since(began) < SPAN);
        if known.count() >= REASONS || (in_span && logged.lines >= LINES) {
            logged.left_out += 1;
            return None;
        }
        if !in_span {
            (logged.began, logged.lines) = (Some(now), 0);
        }
        logged.lines += 1;
        logged.pairs.insert((client, kind.to_owned()));
        Some(std::mem::take(&mut logged.left_out))
    }
}

/// What tells one reason from another: times and counts in it change while it stays.
fn kind(reason: &str) -> String {
    reason.chars().filter(|c| !c.is_ascii_digit()).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    fn refusals() -> (Refusals, Arc<AtomicU64>) {
        let (start, secs) = (Instant::now(), Arc::new(AtomicU64::new(0)));
        let clock = {
            let secs = Arc::clone(&secs);
            Arc::new(move || start + Duration::from_secs(secs.load(Ordering::SeqCst)))
        };
        (Refusals::new(clock), secs)
    }

    fn at(number: u32) -> IpAddr {
        IpAddr::from((0x0a00_0000 + number).to_be_bytes())
    }

    #[test]
    fn each_reason_is_news_once_per_place() {
        let (refusals, _) = refusals();
        assert_eq!(refusals.news(at(1), "a"), Some(0));
        assert_eq!(refusals.news(at(1), "a"), None);
        assert_eq!(refusals.news(at(1), "b"), Some(0));
        assert_eq!(refusals.news(at(2), "a"), Some(0));
        let (one, other) = ("fd00::1".parse().unwrap(), "fd00::2".parse().unwrap());
        assert_eq!((refusals.news(one, "a"), refusals.news(other, "a")), (Some(0), None));
    }

    #[test]
    fn a_reason_that_counts_seconds_is_one() {
        assert_eq!(kind("certificate expired (9 seconds ago)"), kind("certificate expired (10 seconds ago)"));
        assert_ne!(kind("certificate expired (9 seconds ago)"), kind("certificate not valid yet"));
    }

    #[test]
    fn one_place_has_only_so_many_reasons() {
        let (refusals, _) = refusals();
        let news = (0..100).filter(|number| refusals.news(at(1), &number.to_string()).is_some()).count();
        assert_eq!(news, REASONS);
        assert_eq!(refusals.news(at(2), "x"), Some(100 - REASONS as u64), "what was left out is told");
    }

    #[test]
    fn lines_and_memory_are_bounded_whoever_knocks() {
        let (refusals, secs) = refusals();
        let flood = |from: u32| (from..from + 3000).filter(|number| refusals.news(at(*number), "x").is_some()).count();
        assert_eq!(flood(0), LINES as usize);
        secs.store(59, Ordering::SeqCst);
        assert_eq!(flood(10_000), 0);
        for span in 1..40 {
            secs.store(60 * span, Ordering::SeqCst);
            assert_eq!(flood(20_000 + 3000 * u32::try_from(span).unwrap()), LINES as usize);
            assert!(refusals.logged.lock().unwrap().pairs.len() <= REMEMBERED);
        }
    }
}
