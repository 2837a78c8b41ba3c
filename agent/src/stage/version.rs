//! Versions of engines, as far as they must be ordered.

/// A version's numbers, and whether it is one before the release of those numbers. What a packager
/// appends (`20.10.24+dfsg1`, `17.06.2-ce`) does not count.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    numbers: Vec<u64>,
    // `false < true`: a pre-release sorts before its release.
    released: bool,
}

impl Version {
    /// Reads a version; nothing if it does not begin with a number.
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.trim().trim_start_matches('v');
        let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
        let (numbers, rest) = text.split_at(end);
        let mut numbers = numbers
            .split('.')
            .filter(|part| !part.is_empty())
            .map(|part| part.parse().ok())
            .collect::<Option<Vec<u64>>>()?;
        if numbers.is_empty() {
            return None;
        }
        // 28.0 and 28.0.0 are the same.
        while numbers.len() > 1 && numbers.last() == Some(&0) {
            numbers.pop();
        }
        let rest = rest.trim_start_matches(['-', '~', '+']);
        let early = ["rc", "beta", "alpha", "tp", "dev"];
        Some(Self { numbers, released: !early.iter().any(|word| rest.starts_with(word)) })
    }

    /// Whether it is this major version or a later one.
    pub fn at_least(&self, major: u64) -> bool {
        self.numbers[0] >= major
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_ordered() {
        let ascending = [
            "1.13.1",
            "17.06.2-ce",
            "18.09.1",
            "20.10.5+dfsg1",
            "20.10.24+dfsg1",
            "23.0.0-rc.1",
            "23.0",
            "v26.1.5+dfsg1",
            "28.5.2",
        ];
        for pair in ascending.windows(2) {
            assert!(Version::parse(pair[0]) < Version::parse(pair[1]), "{pair:?}");
        }
        assert_eq!(Version::parse("20.10.24+dfsg1"), Version::parse("20.10.24"));
        assert_eq!(Version::parse("28.0"), Version::parse("28.0.0"));
        assert!(Version::parse("28.0").is_some_and(|v| v.at_least(28) && !v.at_least(29)));
        for none in ["", "dev", "library-import", "99999999999999999999.0"] {
            assert_eq!(Version::parse(none), None, "{none}");
        }
    }
}
