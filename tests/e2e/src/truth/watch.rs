//! Watching a swarm while a rollout runs, without taking part in it.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::process::Stdio;
use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use jiff::Timestamp;
use lab::{Lab, Node, wait};

use super::{Change, Sample, Truth, api, journal};

/// Between two samples.
const EVERY: Duration = Duration::from_secs(1);

/// Between two attempts to follow the events of a manager whose engine is down.
const AGAIN: Duration = Duration::from_millis(300);

/// How long one question may take: without a leader an engine is silent for longer, and another manager knows more.
const ANSWER: &str = "2";

/// A watch ends by itself after this time, whatever becomes of the rollout.
const LIMIT: Duration = Duration::from_secs(900);

/// How long the swarm may take to answer before and after a rollout.
const SETTLED: Duration = Duration::from_secs(60);

/// Host names of managers that are not asked: cut off from the others, a manager tells of a swarm of its own.
type Unheard = Arc<Mutex<BTreeSet<String>>>;

/// A watch under way.
#[derive(Debug)]
pub struct Watch {
    lab: Lab,
    before: Sample,
    unheard: Unheard,
    stop: Arc<Stop>,
    sampler: JoinHandle<Vec<Sample>>,
    events: Receiver<Change>,
    followers: Vec<JoinHandle<()>>,
}

impl Watch {
    /// Takes a sample and begins to watch.
    pub fn start(lab: &Lab) -> Result<Self> {
        let unheard = Unheard::default();
        let before = settled_sample(lab, &unheard)?;
        let stop = Arc::new(Stop::new());
        let sampler = {
            let (lab, unheard, stop) = (lab.clone(), Arc::clone(&unheard), Arc::clone(&stop));
            thread::spawn(move || {
                let mut samples = Vec::new();
                while !stop.within(EVERY) {
                    samples.extend(take_sample(&lab, &unheard));
                }
                samples
            })
        };
        let (tell, events) = mpsc::channel();
        let since = before.at.as_second().to_string();
        let followers = lab.managers().map(|node| {
            let (node, stop, tell, since) = (node.clone(), Arc::clone(&stop), tell.clone(), since.clone());
            thread::spawn(move || follow(&node, &since, &stop, &tell))
        });
        let followers = followers.collect();
        Ok(Self { lab: lab.clone(), before, unheard, stop, sampler, events, followers })
    }

    /// Blocks until a node becomes one of `to`, or fails after `limit`. What it waited for is not lost to the truth.
    pub fn wait_for_change(&self, what: &str, limit: Duration, seen: impl Fn(&Sample) -> bool) -> Result<()> {
        wait::until_true(what, limit, || {
            Ok(match take_sample(&self.lab, &self.unheard) {
                Some(sample) if seen(&sample) => Ok(()),
                Some(sample) => Err(format!("{:?}", sample.nodes)),
                None => Err("no manager answers".to_owned()),
            })
        })
        .map_err(Into::into)
    }

    /// Cuts a node off the lab's network; until [`Watch::hear`] it is not asked.
    pub fn cut_off(&self, node: &Node) -> Result<()> {
        self.unheard.lock().unwrap_or_else(PoisonError::into_inner).insert(node.name().to_owned());
        Ok(node.disconnect()?)
    }

    /// Asks a node again that was cut off, has been connected since, and has found the others.
    pub fn hear(&self, node: &Node) {
        self.unheard.lock().unwrap_or_else(PoisonError::into_inner).remove(node.name());
    }

    /// The nodes as they were when it began.
    pub fn before(&self) -> &Sample {
        &self.before
    }

    /// Ends the watch, reads the nodes' journals, and returns everything seen.
    pub fn finish(self) -> Result<Truth> {
        let after = settled_sample(&self.lab, &self.unheard)?;
        self.stop.now();
        let samples = self.sampler.join().map_err(|_| anyhow!("the sampler panicked"))?;
        for follower in self.followers {
            follower.join().map_err(|_| anyhow!("a follower of events panicked"))?;
        }
        // Every manager tells of every change, each a moment apart: the first word counts.
        let mut told = BTreeSet::new();
        while let Ok(change) = self.events.try_recv() {
            // An engine's buffer holds events in the order in which it heard of them: `--since` may give older ones too.
            if change.at >= self.before.at {
                told.insert(by_name(change, &after)?);
            }
        }
        let changes = first_words(told);
        let mut logs = std::collections::BTreeMap::new();
        for node in self.lab.nodes() {
            let log = read_log(node, self.before.at).with_context(|| format!("the journal of {node}"))?;
            logs.insert(node.name().to_owned(), log);
        }
        Ok(Truth { before: self.before, after, samples, changes, logs })
    }
}

/// The change of a node that is known by its ID, with its host name.
fn by_name(change: Change, sample: &Sample) -> Result<Change> {
    let (name, _) = sample
        .nodes
        .iter()
        .find(|(_, node)| node.id == change.node)
        .with_context(|| format!("an event tells of a node that the swarm does not have: {}", change.node))?;
    Ok(Change { node: name.clone(), ..change })
}

/// Keeps a change only where the node's availability differs from what was told before.
fn first_words(told: BTreeSet<Change>) -> Vec<Change> {
    let mut changes: Vec<Change> = Vec::new();
    for change in told {
        let last = changes.iter().rev().find(|other| other.node == change.node);
        if last.is_none_or(|other| other.to != change.to) {
            changes.push(change);
        }
    }
    changes
}

/// The word to stop, and the limit after which it counts as said.
#[derive(Debug)]
struct Stop {
    said: Mutex<bool>,
    changed: Condvar,
    deadline: Instant,
}

impl Stop {
    fn new() -> Self {
        Self { said: Mutex::new(false), changed: Condvar::new(), deadline: Instant::now() + LIMIT }
    }

    fn now(&self) {
        *self.said.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.changed.notify_all();
    }

    /// Waits for the word, for `pause` at most; whether it was said.
    fn within(&self, pause: Duration) -> bool {
        let said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.changed.wait_timeout_while(said, pause, |said| !*said);
        let (said, _) = waited.unwrap_or_else(PoisonError::into_inner);
        *said || Instant::now() > self.deadline
    }
}

fn settled_sample(lab: &Lab, unheard: &Unheard) -> Result<Sample> {
    let sample = wait::until("a manager that answers", SETTLED, || {
        Ok(take_sample(lab, unheard).map_or(wait::Seen::NotYet(String::new()), wait::Seen::Done))
    });
    Ok(sample?)
}

/// Nodes and tasks by the first manager that knows them.
fn take_sample(lab: &Lab, unheard: &Unheard) -> Option<Sample> {
    let script = format!(
        "for path in nodes tasks; do curl --silent --fail --max-time {ANSWER} --unix-socket /var/run/docker.sock \
         http://engine/$path || exit 1; echo; done"
    );
    let unheard = unheard.lock().unwrap_or_else(PoisonError::into_inner).clone();
    lab.managers().filter(|manager| !unheard.contains(manager.name())).find_map(|manager| {
        let at = Timestamp::now();
        let answer = manager.exec(&["sh", "-c", &script]).ok().filter(lab::command::Output::success)?;
        let mut lines = answer.stdout.lines().filter(|line| !line.is_empty());
        api::sample(at, lines.next()?, lines.next()?).ok()
    })
}

/// Passes on every change of availability that a manager tells, until the word to stop.
fn follow(node: &Node, since: &str, stop: &Stop, tell: &mpsc::Sender<Change>) {
    // The shell says which process has to be ended: killing the client here would leave it running there.
    let script = format!(
        "echo $$; exec timeout {} docker events --since {since} --filter type=node --format '{{{{json .}}}}'",
        LIMIT.as_secs()
    );
    while !stop.within(AGAIN) {
        let mut command = node.command(&["sh", "-c", &script], false);
        let command = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        let Ok(mut child) = command.spawn() else { continue };
        let Some(output) = child.stdout.take() else { continue };
        let mut lines = BufReader::new(output).lines().map_while(std::result::Result::ok);
        let pid = lines.next();
        thread::scope(|scope| {
            let reader = scope.spawn(|| {
                for line in lines {
                    if let Ok(Some(change)) = api::change(&line) {
                        // Nobody listens any more once the watch has ended.
                        let _ = tell.send(change);
                    }
                }
            });
            while !reader.is_finished() {
                if stop.within(AGAIN) {
                    if let Some(pid) = &pid {
                        let _ = node.exec(&["kill", pid]);
                    }
                    break;
                }
            }
        });
        let _ = child.wait();
    }
}

fn read_log(node: &Node, since: Timestamp) -> Result<super::NodeLog> {
    let since = format!("@{}", since.as_second());
    let mut args = vec!["journalctl", "--no-pager", "--output=json", "--since", &since];
    for unit in journal::UNITS {
        args.extend(["--unit", unit]);
    }
    let mut log = journal::read(&node.exec(&args)?.ok()?.stdout)?;
    let sets = "cd /var/lib/requeen/engines 2>/dev/null || exit 0; for set in */set.json; do \
                folder=$(dirname \"$set\"); [ -f \"$folder/dockerd\" ] && [ ! -L \"$folder\" ] || continue; \
                echo \"$(stat -c %.9Y \"$set\") $(sha256sum < \"$folder/dockerd\" | cut -c1-64)\"; done";
    for (digest, at) in journal::sets(&node.sh(sets)?.stdout)? {
        // Two sets may share a dockerd: the later one is the one that matters.
        let known = log.sets.entry(digest).or_insert(at);
        *known = at.max(*known);
    }
    Ok(log)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::truth::Availability;

    #[test]
    fn the_first_word_on_a_change_counts() {
        let at = |second, to| Change { at: Timestamp::from_second(second).expect("a time"), node: "m1".to_owned(), to };
        let told = [at(1, Availability::Drain), at(2, Availability::Drain), at(3, Availability::Active)];
        let changes = first_words(told.into_iter().collect());
        assert_eq!(changes, [at(1, Availability::Drain), at(3, Availability::Active)]);
    }

    #[test]
    fn a_watch_that_is_told_to_stop_stops() {
        let stop = Stop::new();
        assert!(!stop.within(Duration::ZERO));
        stop.now();
        assert!(stop.within(Duration::from_secs(60)));
    }
}
