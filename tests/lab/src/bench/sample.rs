//! The sampler on a node: asks the engine's API again and again, and notes when it was gone.
//!
//! `cargo lab bench` copies the lab's own program to the nodes and runs `lab sample-api` there. It knows nothing of who
//! stops the engine, so it measures both sides of a comparison alike: an outage lasts from the last good answer before
//! it to the first good answer after it. A connection that waits in the socket's queue while an engine starts is left
//! there, so the first answer is seen when it comes and not at the next attempt.

use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// What the sampler prints once the API has answered: whatever happens from then on is seen.
pub(super) const READY: &str = "ready";

/// What it prints at the end of each outage.
pub(super) const BACK: &str = "back";

/// What is asked. Any engine answers it, whatever API versions it has.
const REQUEST: &[u8] = b"GET /_ping HTTP/1.1\r\nHost: docker\r\nConnection: close\r\n\r\n";

/// How long one answer may take. What is slower says neither that the API is there nor that it is gone.
const PATIENCE: Duration = Duration::from_secs(2);

/// How long the first good answer may take, and how long an outage may last: nobody waits for a sampler longer.
const LIMIT: Duration = Duration::from_secs(300);

/// A time in which the API was gone. Nanoseconds of the machine's monotonic clock, which all of its containers share.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outage {
    /// The last good answer before it.
    pub last_good_ns: u64,
    /// The first good answer after it.
    pub first_good_ns: u64,
}

impl Outage {
    /// How long it was, seconds.
    pub fn seconds(&self) -> f64 {
        seconds_between(self.last_good_ns, self.first_good_ns)
    }
}

/// What a sampler saw.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Samples {
    /// How often it asked.
    pub asked: u64,
    /// The outages that have ended.
    pub outages: Vec<Outage>,
}

impl Samples {
    /// The one outage of a swap on `node`.
    pub(super) fn only_outage(&self, node: &str) -> Result<Outage> {
        match self.outages.as_slice() {
            [outage] => Ok(*outage),
            others => Err(Error::Outages { node: node.to_owned(), count: others.len() }),
        }
    }
}

/// One attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    /// As it should be.
    Good,
    /// None in time.
    Late,
    /// Nobody is there, or somebody who hung up or said no.
    Gone,
}

/// Turns answers into outages.
#[derive(Debug, Default)]
struct Tracker {
    samples: Samples,
    last_good_ns: Option<u64>,
    gone: bool,
}

impl Tracker {
    /// Takes an answer, and when it was there or was given up. Returns what whoever waits must hear of it.
    fn take(&mut self, answer: Answer, at_ns: u64) -> Option<&'static str> {
        self.samples.asked += 1;
        match answer {
            Answer::Good => {
                let before = self.last_good_ns.replace(at_ns);
                let gone = std::mem::take(&mut self.gone);
                let Some(last_good_ns) = before else { return Some(READY) };
                if !gone {
                    return None;
                }
                self.samples.outages.push(Outage { last_good_ns, first_good_ns: at_ns });
                Some(BACK)
            }
            // A busy machine can delay an answer; an engine that stops always hangs up on somebody.
            Answer::Late => None,
            Answer::Gone => {
                self.gone = true;
                None
            }
        }
    }
}

/// Asks every `every` until standard input ends, then prints [`Samples`] as one line of JSON. Before that it prints
/// [`READY`] once and [`BACK`] after each outage.
pub fn run(socket: &Path, every: Duration, out: &mut impl Write) -> Result<()> {
    let mut print = |line: &str| {
        writeln!(out, "{line}").and_then(|()| out.flush()).map_err(Error::file("write to", "standard output"))
    };
    let end = end_of_input();
    let mut tracker = Tracker::default();
    let begun_ns = monotonic_ns()?;
    while !end.load(Ordering::Acquire) {
        let answer = ask(socket);
        let at_ns = monotonic_ns()?;
        if let Some(word) = tracker.take(answer, at_ns) {
            print(word)?;
        }
        if seconds_between(tracker.last_good_ns.unwrap_or(begun_ns), at_ns) > LIMIT.as_secs_f64() {
            let last = format!("{answer:?}").to_lowercase();
            return Err(Error::Timeout { what: format!("an answer on {}", socket.display()), waited: LIMIT, last });
        }
        // The interval of a measurement, not a wait for anything.
        thread::sleep(every);
    }
    let line = serde_json::to_string(&tracker.samples).map_err(|source| Error::Json { what: "the samples", source })?;
    print(&line)
}

/// Becomes true when standard input ends: whoever started the sampler has enough, or is gone.
fn end_of_input() -> Arc<AtomicBool> {
    let end = Arc::new(AtomicBool::new(false));
    let told = Arc::clone(&end);
    thread::spawn(move || {
        // An input that can't be read has ended too.
        let _ = io::copy(&mut io::stdin(), &mut io::sink());
        told.store(true, Ordering::Release);
    });
    end
}

fn ask(socket: &Path) -> Answer {
    match attempt(socket) {
        Ok(true) => Answer::Good,
        Ok(false) => Answer::Gone,
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => Answer::Late,
        Err(_) => Answer::Gone,
    }
}

/// Whether the answer is a success.
fn attempt(socket: &Path) -> io::Result<bool> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.write_all(REQUEST)?;
    // As much as `HTTP/1.1 200`.
    let mut status = [0; 12];
    stream.read_exact(&mut status)?;
    Ok(status.starts_with(b"HTTP/1.") && status.ends_with(b" 200"))
}

/// The machine's monotonic clock, nanoseconds.
pub(super) fn monotonic_ns() -> Result<u64> {
    let time = clock_gettime(ClockId::CLOCK_MONOTONIC).map_err(|errno| Error::Clock(errno.into()))?;
    Ok(nanos(Duration::from(time)))
}

/// The seconds between two times of that clock; none if the second is not the later one.
pub(super) fn seconds_between(from_ns: u64, to_ns: u64) -> f64 {
    Duration::from_nanos(to_ns.saturating_sub(from_ns)).as_secs_f64()
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    fn outages(answers: &[(Answer, u64)]) -> Vec<(u64, u64)> {
        let mut tracker = Tracker::default();
        let words: Vec<_> = answers.iter().filter_map(|&(answer, at_ns)| tracker.take(answer, at_ns)).collect();
        let mut expected = vec![BACK; tracker.samples.outages.len()];
        expected.insert(0, READY);
        assert_eq!(words, expected);
        assert_eq!(tracker.samples.asked, answers.len() as u64);
        tracker.samples.outages.iter().map(|outage| (outage.last_good_ns, outage.first_good_ns)).collect()
    }

    #[test]
    fn an_outage_is_from_good_to_good() {
        use Answer::{Gone, Good, Late};
        assert_eq!(outages(&[(Good, 1), (Good, 2), (Gone, 3), (Late, 4), (Gone, 5), (Good, 6), (Good, 7)]), [(2, 6)]);
        assert_eq!(outages(&[(Gone, 1), (Good, 2), (Good, 3)]), [], "before the first answer nothing is known");
        assert_eq!(outages(&[(Good, 1), (Late, 2), (Good, 9)]), [], "slow is not gone");
        assert_eq!(outages(&[(Good, 1), (Gone, 2)]), [], "one that has not ended has no length");
        assert_eq!(outages(&[(Good, 1), (Gone, 2), (Good, 3), (Gone, 4), (Good, 6)]), [(1, 3), (3, 6)]);
    }

    #[test]
    fn a_swap_has_one_outage() {
        let outage = Outage { last_good_ns: 1_000_000_000, first_good_ns: 2_500_000_000 };
        let samples = |outages: &[Outage]| Samples { asked: 9, outages: outages.to_vec() };
        let only = samples(&[outage]).only_outage("w1").expect("one");
        assert!((only.seconds() - 1.5).abs() < 1e-9);
        for wrong in [samples(&[]), samples(&[outage, outage])] {
            let error = wrong.only_outage("w1").expect_err("not one").to_string();
            assert!(error.contains("w1"), "{error}");
        }
    }

    #[test]
    fn only_a_success_is_good() {
        let folder = tempfile::tempdir().expect("a folder");
        let socket = folder.path().join("docker.sock");
        assert_eq!(ask(&socket), Answer::Gone, "nothing is there");
        let listener = UnixListener::bind(&socket).expect("a socket");
        for (said, expected) in [
            ("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nOK", Answer::Good),
            ("HTTP/1.1 503 Service Unavailable\r\n\r\n", Answer::Gone),
            ("", Answer::Gone),
        ] {
            let heard = thread::scope(|scope| {
                let asked = scope.spawn(|| ask(&socket));
                let (mut stream, _) = listener.accept().expect("a client");
                let mut request = [0; REQUEST.len()];
                stream.read_exact(&mut request).expect("its request");
                stream.write_all(said.as_bytes()).expect("our answer");
                drop(stream);
                asked.join().expect("no panic")
            });
            assert_eq!(heard, expected, "{said:?}");
        }
        drop(listener);
        assert_eq!(ask(&socket), Answer::Gone, "nobody listens");
    }

    #[test]
    fn what_is_printed_reads_back() {
        let samples = Samples { asked: 3, outages: vec![Outage { last_good_ns: 1, first_good_ns: 2 }] };
        let text = serde_json::to_string(&samples).expect("JSON");
        assert_eq!(serde_json::from_str::<Samples>(&text).expect("the same"), samples);
    }
}
