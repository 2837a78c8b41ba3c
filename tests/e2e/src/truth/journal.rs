//! A node's journal: when its engine stopped and started, and which permits its executor used. Parsers only.

use anyhow::{Context, Result};
use jiff::Timestamp;
use serde_json::Value;

use super::NodeLog;

/// The units of an engine and of the executor.
pub const UNITS: [&str; 2] = [ENGINE, EXECUTOR];

const ENGINE: &str = "docker.service";
const EXECUTOR: &str = "requeen-executor.service";

/// systemd's message IDs (`SD_MESSAGE_UNIT_*` in sd-messages.h).
const STOPPING: &str = "de5b426a63be47a7b6ac3eaac82e2f6f";
const STARTED: &str = "39f53479d3a045ac8e11786248231fbf";

/// What precedes a permit's ID in the executor's log.
const PERMIT: &str = "by permit ";

/// Reads lines of `journalctl --output=json` of [`UNITS`].
pub fn read(text: &str) -> Result<NodeLog> {
    let mut log = NodeLog::default();
    for line in text.lines().filter(|line| !line.is_empty()) {
        let entry: Value = serde_json::from_str(line).with_context(|| format!("no journal entry: {line}"))?;
        let field = |name: &str| entry.get(name).and_then(Value::as_str).unwrap_or_default();
        let micros: i64 = field("__REALTIME_TIMESTAMP").parse().context("an entry of the journal has no time")?;
        let at = Timestamp::from_microsecond(micros)?;
        match (field("UNIT"), field("MESSAGE_ID")) {
            (ENGINE, STOPPING) => log.stops.push(at),
            (ENGINE, STARTED) => log.starts.push(at),
            _ if field("_SYSTEMD_UNIT") == EXECUTOR => log.permits.extend(permit(field("MESSAGE")).map(|id| (at, id))),
            _ => {}
        }
    }
    Ok(log)
}

fn permit(message: &str) -> Option<String> {
    let (_, rest) = message.split_once(PERMIT)?;
    rest.split_whitespace().next().map(str::to_owned)
}

/// Reads lines of `SECONDS DIGEST PATH`: the time of a set's manifest and the digest of its dockerd.
pub fn sets(text: &str) -> Result<Vec<(String, Timestamp)>> {
    let mut sets = Vec::new();
    for line in text.lines() {
        let (time, digest) = line.split_once(' ').with_context(|| format!("no time and digest: {line}"))?;
        let (seconds, fraction) = time.split_once('.').unwrap_or((time, "0"));
        let nanos = format!("{fraction:0<9}");
        let at = Timestamp::new(seconds.parse()?, nanos[..9].parse()?)?;
        sets.push((digest.to_owned(), at));
    }
    Ok(sets)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stops_starts_and_permits_are_read() {
        let text = r#"{"__REALTIME_TIMESTAMP":"1000000","UNIT":"docker.service","MESSAGE_ID":"de5b426a63be47a7b6ac3eaac82e2f6f","MESSAGE":"Stopping docker.service"}
{"__REALTIME_TIMESTAMP":"1500000","_SYSTEMD_UNIT":"docker.service","MESSAGE":"by permit not-of-the-executor"}
{"__REALTIME_TIMESTAMP":"2000000","UNIT":"docker.service","MESSAGE_ID":"39f53479d3a045ac8e11786248231fbf"}
{"__REALTIME_TIMESTAMP":"900000","_SYSTEMD_UNIT":"requeen-executor.service","MESSAGE":"INFO stopping by permit p1 node=x"}
"#;
        let log = read(text).expect("a journal");
        assert_eq!(log.stops, [Timestamp::from_second(1).expect("a time")]);
        assert_eq!(log.starts, [Timestamp::from_second(2).expect("a time")]);
        assert_eq!(log.permits, [(Timestamp::from_millisecond(900).expect("a time"), "p1".to_owned())]);
        assert!(read("nonsense").is_err());
    }

    #[test]
    fn sets_have_times_with_fractions() {
        let sets = sets("12.5000000000 abc\n13 def\n").expect("two sets");
        assert_eq!(sets[0], ("abc".to_owned(), Timestamp::from_millisecond(12_500).expect("a time")));
        assert_eq!(sets[1].0, "def");
        assert!(super::sets("12").is_err());
    }
}
