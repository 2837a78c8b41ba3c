//! Points in time as people write them.

use std::time::Duration;

use jiff::Timestamp;

use super::duration;

/// Seconds of a day. Times of day are UTC, which has no others.
const DAY: i64 = 24 * 3600;

/// A point in time to come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Until {
    /// Exactly this one.
    At(Timestamp),
    /// The next time that it is so late in UTC, in seconds of the day.
    Clock(i64),
    /// So long from now.
    In(Duration),
}

/// Reads `2026-11-22T06:00:00+01:00`, `06:00` and `2h`.
pub(crate) fn parse(text: &str) -> Result<Until, String> {
    if let Ok(at) = text.parse::<Timestamp>() {
        return Ok(Until::At(at));
    }
    if let Some(seconds) = clock(text) {
        return Ok(Until::Clock(seconds));
    }
    duration::parse(text).map(Until::In).map_err(|_| {
        format!("expected a time such as `2026-11-22T06:00:00+01:00`, `06:00` (UTC) or `2h` (from now), got `{text}`")
    })
}

fn clock(text: &str) -> Option<i64> {
    let two_digits = |part: &str, below: i64| -> Option<i64> {
        let digits = part.len() == 2 && part.bytes().all(|b| b.is_ascii_digit());
        part.parse().ok().filter(|number| digits && *number < below)
    };
    let (hours, minutes) = text.split_once(':')?;
    Some(two_digits(hours, 24)? * 3600 + two_digits(minutes, 60)? * 60)
}

impl Until {
    /// The point in time that was meant at `now`, in whole seconds unless it was given otherwise.
    pub(crate) fn seen_from(self, now: Timestamp) -> Timestamp {
        let now = now.as_second();
        let second = match self {
            Until::At(at) => return at,
            Until::Clock(seconds) => {
                let today = now - now.rem_euclid(DAY) + seconds;
                if today > now { today } else { today + DAY }
            }
            Until::In(duration) => now.saturating_add(i64::try_from(duration.as_secs()).unwrap_or(i64::MAX)),
        };
        Timestamp::from_second(second).unwrap_or(Timestamp::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_meant_from_now_on() {
        let now = "2026-11-21T22:30:15.5Z".parse().unwrap();
        for (text, meant) in [
            ("2026-11-22T06:00:00+01:00", "2026-11-22T05:00:00Z"),
            ("2026-11-22T06:00:00Z", "2026-11-22T06:00:00Z"),
            // Also what has been: the server refuses it.
            ("2020-01-01T00:00:00Z", "2020-01-01T00:00:00Z"),
            ("22:31", "2026-11-21T22:31:00Z"),
            ("22:30", "2026-11-22T22:30:00Z"),
            ("06:00", "2026-11-22T06:00:00Z"),
            ("00:00", "2026-11-22T00:00:00Z"),
            ("2h", "2026-11-22T00:30:15Z"),
            ("90", "2026-11-21T22:31:45Z"),
            ("1h30m", "2026-11-22T00:00:15Z"),
        ] {
            assert_eq!(parse(text).unwrap().seen_from(now).to_string(), meant, "{text}");
        }
        assert!(parse("1000000000000h").is_err(), "farther than the calendar goes");
    }

    #[test]
    fn what_could_be_meant_in_two_ways_is_not_read() {
        for text in
            ["", "6:00", "24:00", "06:60", "06:00:00", "06:00+1", "+6:00", "2026-11-22T06:00:00", "tomorrow", "2d", "0"]
        {
            let error = parse(text).unwrap_err();
            assert!(error.contains("(UTC)") && error.contains(text), "{error}");
        }
    }
}
