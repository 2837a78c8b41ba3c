//! Durations as people write and read them.

use std::time::Duration;

/// Reads `90`, `90s`, `10m`, `1h` and sums of them such as `1m30s`.
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
    if seconds == 0 { Err(wrong()) } else { Ok(Duration::from_secs(seconds)) }
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
        for (text, seconds) in [("90", 90), ("90s", 90), ("10m", 600), ("1h", 3600), ("1m30s", 90)] {
            assert_eq!(parse(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
        for text in ["", "0", "s", "-1s", "1d", "1m30", "10 m", "1.5s", "99999999999999999999s", "9999999999999999h"] {
            assert!(parse(text).is_err(), "{text}");
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
