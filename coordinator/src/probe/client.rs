//! The clients of the connectivity test: a fixed number of requests at once, in a loop, each to an
//! address of its own choice, each failure a line of its own.

use std::io::{self, Write};
use std::net::IpAddr;
use std::num::NonZeroUsize;
use std::pin::pin;
use std::time::Duration;

use futures_util::future::join_all;
use jiff::Timestamp;
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior};

use super::line::{Failure, Line, Summary};
use super::request::{Limits, RequestError, Resolve, Target, in_one_line, send};

/// How often the counts are written.
const SUMMARY_EVERY: Duration = Duration::from_secs(1);

/// What a client does.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Its name in every line; unique among the clients.
    pub name: String,
    /// Where requests go.
    pub target: Target,
    /// How many are under way at once.
    pub concurrency: NonZeroUsize,
    /// How long each of these rests between its requests.
    pub pause: Duration,
    /// How long a request may take.
    pub limits: Limits,
}

/// A request that has ended.
struct Outcome {
    began: Timestamp,
    took: Duration,
    target: Option<IpAddr>,
    result: Result<(), RequestError>,
}

/// Sends requests until `stop`; then the requests under way are dropped uncounted, and the last
/// summary is written and returned. `choose` picks an index below its argument.
pub async fn run<R: Resolve>(
    settings: Settings,
    resolver: &R,
    choose: impl Fn(usize) -> usize,
    clock: impl Fn() -> Timestamp,
    out: &mut impl Write,
    stop: impl Future<Output = ()>,
) -> io::Result<Summary> {
    let workers = settings.concurrency.get();
    let (outcomes, mut ended) = mpsc::channel(workers);
    let work = join_all((0..workers).map(|_| {
        let (settings, choose, clock, outcomes) = (&settings, &choose, &clock, outcomes.clone());
        async move {
            loop {
                let (began, start) = (clock(), Instant::now());
                let (target, result) = send(&settings.target, settings.limits, resolver, choose).await;
                let outcome = Outcome { began, took: start.elapsed(), target, result };
                // The receiver lives as long as this loop is polled.
                let _ = outcomes.send(outcome).await;
                tokio::time::sleep(settings.pause).await;
            }
        }
    }));
    let (mut work, mut stop) = (pin!(work), pin!(stop));

    let mut ticks = tokio::time::interval(SUMMARY_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut counts = Counts::new(settings.name.clone(), clock());
    loop {
        tokio::select! {
            () = &mut stop => break,
            _ = &mut work => break,
            Some(outcome) = ended.recv() => {
                if let Some(failure) = counts.add(outcome) {
                    write(out, &Line::Failure(failure))?;
                }
            }
            _ = ticks.tick() => write(out, &Line::Summary(counts.summary(clock(), false)))?,
        }
    }
    let summary = counts.summary(clock(), true);
    write(out, &Line::Summary(summary.clone()))?;
    Ok(summary)
}

fn write(out: &mut impl Write, line: &Line) -> io::Result<()> {
    serde_json::to_writer(&mut *out, line)?;
    out.write_all(b"\n")?;
    out.flush()
}

/// The counting, apart from the sending.
struct Counts {
    client: String,
    started: Timestamp,
    first_answer: Option<Timestamp>,
    requests: u64,
    failed: u64,
    before_first_answer: u64,
    waiting: Option<String>,
}

impl Counts {
    fn new(client: String, started: Timestamp) -> Self {
        Self {
            client,
            started,
            first_answer: None,
            requests: 0,
            failed: 0,
            before_first_answer: 0,
            waiting: Some("no request has ended yet".to_owned()),
        }
    }

    /// Counts a request; a failure that counts is given back.
    fn add(&mut self, outcome: Outcome) -> Option<Failure> {
        let Outcome { began, took, target, result } = outcome;
        match (result, self.first_answer) {
            (Ok(()), first_answer) => {
                if first_answer.is_none() {
                    self.first_answer = Some(began);
                    self.waiting = None;
                }
                self.requests += 1;
                None
            }
            (Err(error), Some(first)) if began >= first => {
                self.requests += 1;
                self.failed += 1;
                Some(Failure {
                    client: self.client.clone(),
                    time: began,
                    target,
                    error: in_one_line(&error),
                    took_ms: took.as_millis().try_into().unwrap_or(u64::MAX),
                })
            }
            (Err(error), first) => {
                self.before_first_answer += 1;
                if first.is_none() {
                    self.waiting = Some(in_one_line(&error));
                }
                None
            }
        }
    }

    fn summary(&self, time: Timestamp, last: bool) -> Summary {
        Summary {
            client: self.client.clone(),
            time,
            since: self.first_answer.unwrap_or(self.started),
            requests_total: self.requests,
            failed_total: self.failed,
            before_first_answer: self.before_first_answer,
            waiting: self.waiting.clone(),
            last,
        }
    }
}
