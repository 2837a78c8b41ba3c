//! Durations as people write and read them.

use std::time::Duration;

use jiff::Timestamp;

/// The longest time that anything may be told to wait, seconds: more is a slip of the hand.
const LONGEST: u64 = 7 * 24 * 3600;

/// A time in the past.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Since {
    /// So long ago.
    Ago(Duration),
    /// Then.
    At(Timestamp),
}

impl Since {
    /// Seconds since 1970, if it is `now`.
    pub(crate) fn unix(self, now: Timestamp) -> i64 {
        match self {
            Since::Ago(time) => now.as_second().saturating_sub_unsigned(time.as_secs()),
            Since::At(then) => then.as_second(),
        }
    }
}

/// Reads how long ago, as [`parse`] does, or a time by RFC 3339.
pub(crate) fn parse_since(text: &str) -> Result<Since, String> {
    let then = || text.parse().map(Since::At);
    parse(text).map(Since::Ago).or_else(|_| then()).map_err(|_| {
        format!("expected how long ago, such as `2h`, or a time such as `2026-11-21T12:00:00Z`, got `{text}`")
    })
}

/// Reads `90`, `90s`, `10m`, `1h` and sums of them such as `1m30s`, up to a week.
pub(crate) fn parse(text: &str) -> Result<Duration, String> {
    let wrong = || format!("expected a time such as `90s`, `10m` or `1m30s`, got `{text}`");
    let mut seconds = 0_u64;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let number: u64 = rest[..digits].parse().map_err(|_| wrong())?;
        rest = &rest[digits..];
        let unit = match rest.bytes().next() {
            Some(b's') => 1,
            Some(b'm') => 60,
            Some(b'h') => 3600,
            // Only a number that stands alone may do without a unit.
            None if digits == text.len() => 1,
            None | Some(_) => return Err(wrong()),
        };
        seconds = number.checked_mul(unit).and_then(|part| seconds.checked_add(part)).ok_or_else(wrong)?;
        rest = rest.get(1..).unwrap_or_default();
    }
    match seconds {
        0 => Err(wrong()),
        1..=LONGEST => Ok(Duration::from_secs(seconds)),
        _ => Err(format!("expected a time of {}h at most, got `{text}`", LONGEST / 3600)),
    }
}

/// Reads how long the owner of a rollout may be silent. It gives a sign of life every ten seconds, and one of them may come
/// late.
pub(crate) fn patience(text: &str) -> Result<Duration, String> {
    const SHORTEST: Duration = Duration::from_secs(25);
    match parse(text)? {
        time if time < SHORTEST => Err("expected at least `25s`: its owner renews a rollout every 10 s".to_owned()),
        time => Ok(time),
    }
}

/// `12.3s`: for times that are compared.
pub(crate) fn seconds(ms: u64) -> String {
    // Halves round up, without a detour through floating point.
    let tenths = (ms + 50) / 100;
    format!("{}.{}s", tenths / 10, tenths % 10)
}

/// `8s`, `2m05s`, `1h02m`: for times that pass.
pub(crate) fn rough(ms: u64) -> String {
    let seconds = ms / 1000;
    match (seconds / 3600, seconds / 60 % 60, seconds % 60) {
        (0, 0, s) => format!("{s}s"),
        (0, m, s) => format!("{m}m{s:02}s"),
        (h, m, _) => format!("{h}h{m:02}m"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read() {
        for (text, seconds) in [("90", 90), ("90s", 90), ("10m", 600), ("1h", 3600), ("1m30s", 90), ("168h", LONGEST)] {
            assert_eq!(parse(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
        for text in
            ["", "0", "s", "-1s", "1d", "1m30", "10 m", "1.5s", "99999999999999999999s", "9999999999999999h", "168h1s"]
        {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn times_in_the_past_are_read() {
        let now = Timestamp::from_second(10_000).unwrap();
        for (text, unix) in
            [("2h", 2800), ("90", 9910), ("1970-01-01T01:00:00Z", 3600), ("1970-01-01T01:00:00+01:00", 0)]
        {
            assert_eq!(parse_since(text).map(|since| since.unix(now)), Ok(unix), "{text}");
        }
        for text in ["", "yesterday", "2026-11-21", "12:00"] {
            assert!(parse_since(text).is_err(), "{text}");
        }
    }

    #[test]
    fn times_are_written() {
        for (ms, precise, coarse) in [
            (0, "0.0s", "0s"),
            (949, "0.9s", "0s"),
            (950, "1.0s", "0s"),
            (12_345, "12.3s", "12s"),
            (125_000, "125.0s", "2m05s"),
            (3_725_000, "3725.0s", "1h02m"),
        ] {
            assert_eq!((seconds(ms).as_str(), rough(ms).as_str()), (precise, coarse));
        }
    }
}
