//! The report of the connectivity test: adds up what the clients wrote and places each failure
//! against the steps that were under way. Pure: lines and spans in, a report and its text out.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use super::line::{Failure, Line, Summary};

/// Failures that the text shows; JSON has all of them.
const SHOWN: usize = 40;

/// Different remarks of the engines that are kept.
const MAX_REMARKS: usize = 10;

/// A step of a rollout on one node, and when it was under way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepSpan {
    /// The node's hostname.
    pub node: String,
    /// The step, in the words of `status`.
    pub step: String,
    /// When it began.
    pub from: Timestamp,
    /// When it ended; absent while it is under way.
    pub to: Option<Timestamp>,
}

impl StepSpan {
    /// Whether any instant of the failed request lies in the step.
    fn meets(&self, failure: &Failure) -> bool {
        let took = SignedDuration::from_millis(failure.took_ms.try_into().unwrap_or(i64::MAX));
        let end = failure.time.checked_add(took).unwrap_or(Timestamp::MAX);
        self.from <= end && self.to.is_none_or(|to| failure.time <= to)
    }
}

/// What the clients saw.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProbeReport {
    /// Requests of all clients, each counted from its first answer on.
    pub requests_total: u64,
    /// How many of them failed.
    pub failed_total: u64,
    /// Every client there was, the ended ones included.
    pub clients: Vec<ClientTotals>,
    /// The failures in order of time, as far as the logs still hold them.
    pub failures: Vec<PlacedFailure>,
    /// What the reader should know about these numbers.
    pub notes: Vec<String>,
}

/// One client's counts: its last word.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClientTotals {
    /// The client's name.
    pub client: String,
    /// When counting began.
    pub since: Timestamp,
    /// When it last wrote.
    pub until: Timestamp,
    /// Requests ended.
    pub requests: u64,
    /// How many of them failed.
    pub failed: u64,
    /// Requests that failed before the first answer; not in the other counts.
    pub before_first_answer: u64,
    /// Whether it was told to stop.
    pub ended: bool,
}

/// A failure and the steps under way at its time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlacedFailure {
    /// What the client wrote.
    #[serde(flatten)]
    pub failure: Failure,
    /// The steps under way; none: the failure is not the rollout's.
    pub during: Vec<StepAt>,
}

/// A step on a node.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct StepAt {
    /// The node's hostname.
    pub node: String,
    /// The step.
    pub step: String,
}

/// Reads log lines one by one; keeps the failures and the last summary of every client.
#[derive(Debug, Default)]
pub(super) struct Tally {
    clients: BTreeMap<String, Seen>,
    failures: Vec<Failure>,
    remarks: BTreeSet<String>,
}

#[derive(Debug, Default)]
struct Seen {
    last: Option<Summary>,
    failures: u64,
    first_failure: Option<Timestamp>,
    last_failure: Option<Timestamp>,
}

impl Tally {
    /// Takes one line of the service's logs. What is not a client's line is the engine's remark
    /// ("incomplete log stream", "node … is not available") and goes to the notes.
    pub(super) fn line(&mut self, text: &str) {
        let text = text.trim();
        match serde_json::from_str(text) {
            Ok(Line::Failure(failure)) => {
                let seen = self.clients.entry(failure.client.clone()).or_default();
                seen.failures += 1;
                seen.first_failure = seen.first_failure.min(Some(failure.time)).or(Some(failure.time));
                seen.last_failure = seen.last_failure.max(Some(failure.time));
                self.failures.push(failure);
            }
            Ok(Line::Summary(summary)) => {
                let seen = self.clients.entry(summary.client.clone()).or_default();
                if seen.last.as_ref().is_none_or(|last| last.time <= summary.time) {
                    seen.last = Some(summary);
                }
            }
            Err(_) if text.is_empty() => {}
            Err(_) => self.remark(text),
        }
    }

    /// Keeps a remark for the notes, once.
    pub(super) fn remark(&mut self, text: &str) {
        if self.remarks.len() < MAX_REMARKS {
            self.remarks.insert(text.to_owned());
        }
    }

    /// The report of all that was read.
    pub(super) fn report(self, steps: &[StepSpan]) -> ProbeReport {
        let mut report = ProbeReport::default();
        for (client, seen) in self.clients {
            let mut notes = Vec::new();
            let totals = seen.totals(client, &mut notes);
            report.requests_total += totals.requests;
            report.failed_total += totals.failed;
            report.clients.push(totals);
            report.notes.append(&mut notes);
        }
        let mut failures = self.failures;
        failures.sort_by(|a, b| (a.time, &a.client).cmp(&(b.time, &b.client)));
        report.failures = failures.into_iter().map(|failure| place(failure, steps)).collect();
        if report.clients.is_empty() {
            report.notes.push("the logs hold no line of any client".to_owned());
        }
        let remarks = self.remarks.into_iter();
        report.notes.extend(remarks.map(|remark| format!("not from a client: {remark}")));
        report
    }
}

impl Seen {
    fn totals(self, client: String, notes: &mut Vec<String>) -> ClientTotals {
        let Some(last) = self.last else {
            // Every client writes a summary at its start: the logs were rotated away.
            notes.push(format!("{client}: its summaries are not in the logs, only failures are counted"));
            let since = self.first_failure.unwrap_or(Timestamp::UNIX_EPOCH);
            return ClientTotals {
                client,
                since,
                until: self.last_failure.unwrap_or(since),
                requests: self.failures,
                failed: self.failures,
                before_first_answer: 0,
                ended: false,
            };
        };
        if let Some(why) = &last.waiting {
            let tried = last.before_first_answer;
            notes.push(format!("{client}: never got an answer, {tried} requests failed ({why})"));
        }
        // A client that was killed wrote its last failures after its last summary.
        let unsummed = self.failures.saturating_sub(last.failed_total);
        if last.failed_total > self.failures {
            let lost = last.failed_total - self.failures;
            notes.push(format!("{client}: {lost} of its failures are no longer in the logs"));
        }
        ClientTotals {
            client,
            since: last.since,
            until: self.last_failure.map_or(last.time, |time| time.max(last.time)),
            requests: last.requests_total + unsummed,
            failed: last.failed_total + unsummed,
            before_first_answer: last.before_first_answer,
            ended: last.last,
        }
    }
}

fn place(failure: Failure, steps: &[StepSpan]) -> PlacedFailure {
    let during: BTreeSet<StepAt> = steps
        .iter()
        .filter(|span| span.meets(&failure))
        .map(|span| StepAt { node: span.node.clone(), step: span.step.clone() })
        .collect();
    PlacedFailure { failure, during: during.into_iter().collect() }
}

/// The report for people.
pub fn render_text(report: &ProbeReport) -> String {
    let mut text = String::new();
    // Writing to a string can't fail; the result is of no use.
    let _ = write_text(report, &mut text);
    text
}

/// The report for scripts, in one object; the fields are [`ProbeReport`]'s.
pub fn render_json(report: &ProbeReport) -> serde_json::Result<String> {
    serde_json::to_string_pretty(report).map(|json| json + "\n")
}

fn write_text(report: &ProbeReport, text: &mut String) -> std::fmt::Result {
    let ProbeReport { requests_total, failed_total, clients, failures, notes } = report;
    writeln!(text, "{failed_total} of {requests_total} requests failed")?;

    if !clients.is_empty() {
        let width = clients.iter().map(|c| c.client.len()).max().unwrap_or(0).max("client".len());
        writeln!(text, "\n{:width$}  requests  failed  early  from … to", "client")?;
        for client in clients {
            let ClientTotals { client, since, until, requests, failed, before_first_answer, ended } = client;
            let end = if *ended { "" } else { " (last word)" };
            writeln!(
                text,
                "{client:width$}  {requests:>8}  {failed:>6}  {before_first_answer:>5}  {since:.0} … {until:.0}{end}"
            )?;
        }
    }

    if !failures.is_empty() {
        let mut by_step: BTreeMap<String, usize> = BTreeMap::new();
        for failure in failures {
            *by_step.entry(words(&failure.during)).or_default() += 1;
        }
        writeln!(text, "\nfailures by the steps under way")?;
        for (step, count) in by_step {
            writeln!(text, "{count:>6}  {step}")?;
        }
        writeln!(text, "\nfailures")?;
        for PlacedFailure { failure, during } in failures.iter().take(SHOWN) {
            let Failure { time, target, error, took_ms, .. } = failure;
            let target = target.map_or_else(|| "no address".to_owned(), |ip| ip.to_string());
            let during = words(during);
            writeln!(text, "{time:.3}  {target}  {error} ({took_ms} ms), during {during}")?;
        }
        if let Some(more) = failures.len().checked_sub(SHOWN).filter(|more| *more > 0) {
            writeln!(text, "… and {more} more; --json has all")?;
        }
    }

    if !notes.is_empty() {
        writeln!(text)?;
        for note in notes {
            writeln!(text, "note: {note}")?;
        }
    }
    Ok(())
}

fn words(during: &[StepAt]) -> String {
    if during.is_empty() {
        return "no step".to_owned();
    }
    let steps: Vec<_> = during.iter().map(|at| format!("{} {}", at.node, at.step)).collect();
    steps.join(" + ")
}

#[cfg(test)]
#[path = "report_tests.rs"]
mod tests;
