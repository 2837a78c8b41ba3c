//! The figures' numbers, what they must be, and how they are shown. Pure.

use std::fmt::Write as _;

use serde::Serialize;

pub use super::engine_down::EngineDown;
pub use super::memory::AgentRss;
use super::spread::{Pair, Spread};
pub use super::unpack::VerifyUnpack;
pub use super::whole::Whole;
use crate::Suite;

/// What an engine may be down, as a part of the fastest swap by hand.
const ENGINE_DOWN_RATIO: f64 = 1.10;

/// What a whole swarm may take, as a part of the procedure.
const SWARM_RATIO: f64 = 0.45;

/// What verifying and unpacking may take, as a part of what the usual programs take.
const VERIFY_UNPACK_RATIO: f64 = 0.5;

/// What an idle agent may keep in memory.
const AGENT_RSS_BYTES: u64 = 6 * MIB;

/// What the image may weigh.
const IMAGE_BYTES: u64 = 12_000_000;

/// So many requests the connectivity test makes at least, or its silence means nothing.
const PROBE_REQUESTS: u64 = 1000;

const MIB: u64 = 1024 * 1024;

/// The image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Image {
    /// Its size on an engine, without compression.
    pub image_bytes: u64,
}

/// What was measured. As JSON it is one flat object; a figure that was not asked for is not in it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// Whether less was measured than the figures ask for.
    pub quick: bool,
    /// The suite whose engine the nodes started with.
    pub from: Suite,
    /// The version that they were upgraded to.
    pub to: String,
    /// See [`EngineDown`].
    #[serde(flatten)]
    pub engine_down: Option<EngineDown>,
    /// See [`Whole`].
    #[serde(flatten)]
    pub swarm: Option<Whole>,
    /// See [`AgentRss`].
    #[serde(flatten)]
    pub agent_rss: Option<AgentRss>,
    /// See [`Image`].
    #[serde(flatten)]
    pub image: Option<Image>,
    /// See [`VerifyUnpack`].
    #[serde(flatten)]
    pub verify_unpack: Option<VerifyUnpack>,
}

/// A line of the table.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Row {
    figure: &'static str,
    ours: String,
    theirs: String,
    ratio: String,
    must: String,
    /// Whether it is what it must be; nothing where nothing is asked.
    kept: Option<bool>,
}

impl Row {
    /// A comparison.
    fn compared(figure: &'static str, sides: (String, String), ratio: f64, limit: f64) -> Self {
        let (ours, theirs) = sides;
        let kept = Some(ratio <= limit);
        Self { figure, ours, theirs, ratio: format!("{ratio:.3}"), must: format!("≤ {limit:.2}"), kept }
    }

    /// A number with a limit and nothing to compare with.
    fn alone(figure: &'static str, ours: String, must: &str, kept: Option<bool>) -> Self {
        Self { figure, ours, theirs: String::new(), ratio: String::new(), must: must.to_owned(), kept }
    }
}

impl Report {
    /// One without a figure.
    pub fn new(from: Suite, to: &str, quick: bool) -> Self {
        let to = to.to_owned();
        Self { quick, from, to, engine_down: None, swarm: None, agent_rss: None, image: None, verify_unpack: None }
    }

    /// Whether a figure is not what it must be.
    pub fn missed(&self) -> bool {
        self.rows().iter().any(|row| row.kept == Some(false))
    }

    /// The table for people.
    pub fn table(&self) -> String {
        let mut text = format!(
            "{:<28} {:<30} {:<30} {:<6} {:<10} \n",
            "FIGURE", "OURS: MEDIAN (MIN–MAX, N)", "THEIRS", "RATIO", "MUST BE"
        );
        for Row { figure, ours, theirs, ratio, must, kept } in self.rows() {
            let verdict = match kept {
                Some(true) => "ok",
                Some(false) => "NOT",
                None => "",
            };
            // Writing to a text can't fail.
            let _ = writeln!(text, "{figure:<28} {ours:<30} {theirs:<30} {ratio:<6} {must:<10} {verdict}");
        }
        let _ = writeln!(text, "\nFrom the engine of {} to {}.", self.from, self.to);
        if self.quick {
            text.push_str("A quick run: too little was measured for these to be the project's figures.\n");
        }
        text.lines().map(|line| line.trim_end().to_owned() + "\n").collect()
    }

    fn rows(&self) -> Vec<Row> {
        let mut rows = Vec::new();
        if let Some(figure) = &self.engine_down {
            for (way, pair) in
                [("engine down, upgrade", &figure.engine_down_up), ("engine down, rollback", &figure.engine_down_back)]
            {
                rows.push(Row::compared(way, both(pair), pair.ratio(), ENGINE_DOWN_RATIO));
            }
        }
        if let Some(figure) = &self.swarm {
            let sides = (format!("{:.1} s", figure.swarm_ours), format!("{:.1} s", figure.swarm_theirs));
            rows.push(Row::compared("whole swarm, 3 + 2", sides, figure.swarm_ratio, SWARM_RATIO));
            let floor = format!("{:.1} s", figure.swarm_floor);
            rows.push(Row::alone("  what can't be avoided", floor, "", None));
            let probe = format!("{} of {} failed", figure.probe_failed, figure.probe_requests);
            let kept = figure.probe_failed == 0 && figure.probe_requests >= PROBE_REQUESTS;
            rows.push(Row::alone("  requests meanwhile", probe, "0 failed", Some(kept)));
        }
        if let Some(figure) = &self.agent_rss {
            for (moment, bytes) in [
                ("agent's memory, idle", figure.agent_idle_rss_bytes),
                ("agent's memory, after staging", figure.agent_staged_rss_bytes),
            ] {
                rows.push(Row::alone(moment, tenths(bytes, MIB, "MiB"), "≤ 6 MiB", Some(bytes <= AGENT_RSS_BYTES)));
            }
        }
        if let Some(Image { image_bytes }) = self.image {
            let kept = Some(image_bytes <= IMAGE_BYTES);
            rows.push(Row::alone("image", tenths(image_bytes, 1_000_000, "MB"), "≤ 12 MB", kept));
        }
        if let Some(figure) = &self.verify_unpack {
            let pair = &figure.verify_unpack;
            rows.push(Row::compared("verify + unpack", both(pair), figure.verify_unpack_ratio, VERIFY_UNPACK_RATIO));
        }
        rows
    }
}

fn both(pair: &Pair) -> (String, String) {
    (spread(&pair.ours), spread(&pair.theirs))
}

fn spread(Spread { n, min, median, max }: &Spread) -> String {
    format!("{median:.3} s ({min:.3}–{max:.3}, {n})")
}

/// A number of bytes in a unit, rounded up to a tenth: what is shown as the limit is within it.
fn tenths(bytes: u64, unit: u64, name: &str) -> String {
    let tenths = (bytes * 10).div_ceil(unit);
    format!("{}.{} {name}", tenths / 10, tenths % 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(ours: f64, theirs: f64) -> Pair {
        Pair::of("x", &[ours], &[theirs]).expect("values")
    }

    fn good() -> Report {
        Report {
            engine_down: Some(EngineDown::of(pair(1.0, 1.0), pair(1.1, 1.0))),
            swarm: Some(Whole {
                swarm_ratio: 0.4,
                swarm_ours: 100.0,
                swarm_theirs: 250.0,
                swarm_floor: 71.25,
                probe_requests: 50_000,
                probe_failed: 0,
            }),
            agent_rss: Some(AgentRss { agent_idle_rss_bytes: 5 * MIB, agent_staged_rss_bytes: 6 * MIB }),
            image: Some(Image { image_bytes: 11_673_256 }),
            verify_unpack: Some(VerifyUnpack {
                verify_unpack_ratio: 0.5,
                verify_unpack_ours: 1.0,
                verify_unpack_theirs: 2.0,
                verify_unpack: pair(1.0, 2.0),
            }),
            ..Report::new(Suite::Bookworm, "26.1.5+dfsg1", false)
        }
    }

    #[test]
    fn limits_are_kept_up_to_the_limit() {
        let report = good();
        assert!(!report.missed(), "{}", report.table());
        assert_eq!(report.rows().len(), 9);
    }

    #[test]
    fn each_figure_can_miss() {
        type Spoil = fn(&mut Report);
        let spoils: [(&str, Spoil); 9] = [
            ("upgrade", |report| report.engine_down = Some(EngineDown::of(pair(1.2, 1.0), pair(1.0, 1.0)))),
            ("rollback", |report| report.engine_down = Some(EngineDown::of(pair(1.0, 1.0), pair(1.2, 1.0)))),
            ("swarm", |report| report.swarm.as_mut().expect("a figure").swarm_ratio = 0.46),
            ("failed", |report| report.swarm.as_mut().expect("a figure").probe_failed = 1),
            ("asked too little", |report| report.swarm.as_mut().expect("a figure").probe_requests = 3),
            ("idle", |report| report.agent_rss.as_mut().expect("a figure").agent_idle_rss_bytes = 6 * MIB + 1),
            ("staged", |report| report.agent_rss.as_mut().expect("a figure").agent_staged_rss_bytes = 6 * MIB + 1),
            ("image", |report| report.image = Some(Image { image_bytes: 12_000_001 })),
            ("unpack", |report| report.verify_unpack.as_mut().expect("a figure").verify_unpack_ratio = 0.51),
        ];
        for (what, spoil) in spoils {
            let mut report = good();
            spoil(&mut report);
            assert!(report.missed(), "{what}");
            let table = report.table();
            assert_eq!(table.lines().filter(|line| line.ends_with("NOT")).count(), 1, "{what}:\n{table}");
        }
    }

    #[test]
    fn the_table_is_for_people() {
        let table = good().table();
        let line = |begin: &str| table.lines().find(|line| line.starts_with(begin)).unwrap_or_default().to_owned();
        let words = |line: String| line.split_whitespace().collect::<Vec<_>>().join(" ");
        assert_eq!(
            words(line("engine down, rollback")),
            "engine down, rollback 1.100 s (1.100–1.100, 1) 1.000 s (1.000–1.000, 1) 1.100 ≤ 1.10 ok"
        );
        assert_eq!(words(line("whole swarm")), "whole swarm, 3 + 2 100.0 s 250.0 s 0.400 ≤ 0.45 ok");
        assert_eq!(words(line("  requests")), "requests meanwhile 0 of 50000 failed 0 failed ok");
        assert_eq!(words(line("image")), "image 11.7 MB ≤ 12 MB ok");
        assert_eq!(line("From"), "From the engine of bookworm to 26.1.5+dfsg1.");
        assert!(!table.contains("quick run"));
        assert!(Report { quick: true, ..good() }.table().contains("quick run"));
    }

    #[test]
    fn the_json_is_one_flat_object() {
        let json = serde_json::to_value(good()).expect("JSON");
        for key in [
            "engine_down_ratio",
            "engine_down_ours",
            "engine_down_theirs",
            "swarm_ratio",
            "swarm_ours",
            "swarm_theirs",
            "swarm_floor",
            "probe_requests",
            "probe_failed",
            "agent_idle_rss_bytes",
            "agent_staged_rss_bytes",
            "image_bytes",
            "verify_unpack_ratio",
            "verify_unpack_ours",
            "verify_unpack_theirs",
        ] {
            assert!(json.get(key).is_some_and(serde_json::Value::is_number), "{key} in {json:#}");
        }
        let part = serde_json::to_value(Report { engine_down: None, swarm: None, ..good() }).expect("JSON");
        assert!(part.get("engine_down_ratio").is_none() && part.get("swarm_ratio").is_none());
    }
}
