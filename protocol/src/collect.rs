//! What a coordinator may ask of nodes for a bug report, beside every order and without touching any.

use std::fmt;
use std::str::FromStr;

use crate::CollectionId;

/// What is asked: the value of [`COLLECT_HEADER`](crate::COLLECT_HEADER) in the answer to a report.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Collect {
    /// Names the collection; the node's part goes to [`COLLECT_PATH`](crate::COLLECT_PATH) and this.
    pub id: CollectionId,
    /// From when on logs are wanted, seconds since 1970-01-01T00:00:00Z.
    pub since_unix: i64,
}

/// The text is not `ID; since=SECONDS`, with an ID of lower-case hexadecimal digits.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` asks for no collection: expected `ID; since=SECONDS`")]
pub struct InvalidCollect(pub String);

impl fmt::Display for Collect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; since={}", self.id, self.since_unix)
    }
}

impl FromStr for Collect {
    type Err = InvalidCollect;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parsed = || {
            let (id, since) = text.split_once("; since=")?;
            // It becomes a part of an address.
            let plain = (1..=64).contains(&id.len()) && id.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
            plain.then_some(Self { id: id.into(), since_unix: since.parse().ok()? })
        };
        parsed().ok_or_else(|| InvalidCollect(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_goes_both_ways() {
        let asked = Collect { id: "00ff12ab".into(), since_unix: 1_763_750_000 };
        assert_eq!(asked.to_string(), "00ff12ab; since=1763750000");
        assert_eq!(asked.to_string().parse(), Ok(asked));
        for bad in ["", "none", "00ff", "; since=1", "../x; since=1", "00FF; since=1", "00ff; since=", "00ff; since=x"]
        {
            assert_eq!(bad.parse::<Collect>(), Err(InvalidCollect(bad.to_owned())));
        }
    }
}
