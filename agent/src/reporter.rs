//! The conversations with the coordinators: says what is true, hears what is wanted.
//!
//! There is one conversation per manager of the swarm, so that every coordinator knows what is true on this node, and one
//! that takes a rollout over needs to be told nothing. Orders come from the one that drives; the others say
//! [`Order::Standby`], which goes no further than this module.
//!
//! A report that is no longer true is withdrawn and the new one sent in its place, so the coordinators learn of a
//! change at once although they hold their answers.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use requeen_protocol::{NodeId, Order, Report, Unreached};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use crate::client::{Answer, Client, ClientError, Tried, join};
use crate::clock::{BootTime, Clock};
use crate::collect::Collector;
use crate::engine::api::{Manager, SwarmFacts};
use crate::memory;
use crate::words::chain;

/// The first pause after a failure.
const FIRST_PAUSE: Duration = Duration::from_millis(500);

/// What to say, and whom the swarm's managers are.
#[derive(Clone, Debug, PartialEq)]
pub struct Say {
    /// Where coordinators may be.
    pub swarm: SwarmFacts,
    /// The report.
    pub report: Report,
}

/// What was heard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Heard {
    /// When the request was sent that this answers: leases count from there.
    pub sent: BootTime,
    /// The order.
    pub order: Order,
}

/// A random number; a parameter, so that tests have none.
pub type Chance = fn() -> u32;

/// Randomness of the kernel. Without it the pauses are still pauses.
pub fn kernel_chance() -> u32 {
    getrandom::u32().unwrap_or_default()
}

/// Growing pauses between attempts, spread so that a hundred agents do not come back at once.
#[derive(Clone, Debug)]
pub struct Backoff {
    next: Duration,
    max: Duration,
    chance: Chance,
}

impl Backoff {
    /// Pauses from half a second up to `max`.
    pub fn new(max: Duration, chance: Chance) -> Self {
        Self { next: FIRST_PAUSE, max, chance }
    }

    /// The next pause: between half of what is due and all of it.
    pub fn pause(&mut self) -> Duration {
        let due = self.next.min(self.max);
        self.next = (due * 2).min(self.max);
        let half = due / 2;
        half + half.mul_f64(f64::from((self.chance)()) / f64::from(u32::MAX))
    }

    /// All is well again.
    pub fn reset(&mut self) {
        self.next = FIRST_PAUSE;
    }
}

/// What every conversation needs.
#[derive(Clone)]
struct Line {
    client: Client,
    clock: Clock,
    backoff: Backoff,
    say: watch::Receiver<Option<Say>>,
    heard: mpsc::Sender<Heard>,
    reached: Arc<Reached>,
    collector: Collector,
}

/// Talks with every manager until the receiver of orders or the sender of reports is gone.
///
/// After each order its conversation stays silent until there is something new in `say`: whoever hears must publish
/// again, even if nothing changed. A report without [`Report::seen`] asks for the order once more. What an answer asks for
/// beside its order is `collector`'s.
pub async fn converse(
    client: Client,
    clock: Clock,
    backoff: Backoff,
    mut say: watch::Receiver<Option<Say>>,
    heard: mpsc::Sender<Heard>,
    collector: Collector,
) {
    let reached = Arc::new(Reached::default());
    let line = Line { client, clock, backoff, say: say.clone(), heard, reached: Arc::clone(&reached), collector };
    let mut lines: BTreeMap<NodeId, (Manager, Talk)> = BTreeMap::new();
    loop {
        let managers = say.borrow_and_update().as_ref().map(|say| say.swarm.managers.clone());
        if let Some(managers) = managers {
            reached.only(&managers);
            lines.retain(|_, (manager, _)| managers.contains(manager));
            for manager in managers {
                lines.entry(manager.id.clone()).or_insert_with(|| {
                    let talk = Talk(tokio::spawn(line.clone().talk(manager.clone())));
                    (manager, talk)
                });
            }
        }
        tokio::select! {
            changed = say.changed() => if changed.is_err() { return },
            () = line.heard.closed() => return,
        }
    }
}

/// A conversation; dropped, it ends.
struct Talk(JoinHandle<()>);

impl Drop for Talk {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Line {
    async fn talk(mut self, manager: Manager) {
        // The last answer that was passed on, or that said to stand by.
        let mut last: Option<Order> = None;
        loop {
            let Some(Say { swarm, mut report }) = self.say.borrow_and_update().clone() else {
                if self.say.changed().await.is_err() {
                    return;
                }
                continue;
            };
            let node = report.node.clone();
            let again = report.seen.is_none() && !matches!(last, Some(Order::Standby { .. }));
            report.seen = if again { None } else { last.clone().map(Box::new) };
            report.unreached = self.reached.missing();
            let sent = (self.clock)();
            let answer = tokio::select! {
                answer = self.client.report(&swarm, &manager, &report, self.collector.heard_of()) => answer,
                changed = self.say.changed() => match changed {
                    Ok(()) => continue,
                    Err(_) => return,
                },
            };
            match answer {
                Ok(Answer { order, asked }) => {
                    if let Some((collect, upload)) = asked {
                        self.collector.begin(collect, upload, &report);
                    }
                    self.reached.answered(&node, &manager.id);
                    self.backoff.reset();
                    last = Some(order.clone());
                    if matches!(order, Order::Standby { .. }) {
                        continue;
                    }
                    if self.heard.send(Heard { sent, order }).await.is_err() || self.say.changed().await.is_err() {
                        return;
                    }
                }
                Err(error) => {
                    last = None;
                    self.reached.failed(&node, &manager.id, error);
                    memory::give_back();
                    tokio::select! {
                        () = tokio::time::sleep(self.backoff.pause()) => {}
                        changed = self.say.changed() => if changed.is_err() { return },
                    }
                }
            }
        }
    }
}

/// Which managers answered last time, and what was logged of it.
#[derive(Debug, Default)]
struct Reached(Mutex<Answers>);

#[derive(Debug, Default)]
struct Answers {
    /// By manager: why not, if so.
    by: BTreeMap<NodeId, Option<ClientError>>,
    /// How many managers there are.
    managers: usize,
    told: String,
}

impl Reached {
    fn answers(&self) -> MutexGuard<'_, Answers> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Forgets whoever is a manager no longer.
    fn only(&self, managers: &[Manager]) {
        let mut answers = self.answers();
        answers.by.retain(|id, _| managers.iter().any(|manager| manager.id == *id));
        answers.managers = managers.len();
    }

    fn answered(&self, node: &NodeId, manager: &NodeId) {
        let mut answers = self.answers();
        answers.by.insert(manager.clone(), None);
        if !answers.told.is_empty() {
            tracing::info!(%node, %manager, "the coordinator answers");
            answers.told.clear();
        }
    }

    /// A manager without a coordinator is no news; that there is none at all is said once.
    fn failed(&self, node: &NodeId, manager: &NodeId, why: ClientError) {
        let mut answers = self.answers();
        tracing::debug!(%node, %manager, "{}", chain(&why));
        answers.by.insert(manager.clone(), Some(why));
        let nobody = answers.by.len() == answers.managers && answers.by.values().all(Option::is_some);
        if !nobody {
            return;
        }
        let text = answers.words();
        let kind = without_numbers(&text);
        if kind != answers.told {
            tracing::info!(%node, "waiting for a coordinator: {text}");
            answers.told = kind;
        }
    }

    fn missing(&self) -> Vec<Unreached> {
        let answers = self.answers();
        let tried = answers.by.iter().filter_map(|(manager, why)| match why {
            Some(ClientError::Unreached(tried)) => {
                Some(Unreached { manager: manager.clone(), at: tried.addr.to_string(), why: tried.why.clone() })
            }
            Some(ClientError::Identity(_) | ClientError::Tls(_) | ClientError::Build(_) | ClientError::NoBundle(_))
            | None => None,
        });
        tried.collect()
    }
}

impl Answers {
    fn words(&self) -> String {
        let mut tried: Vec<Tried> = Vec::new();
        for why in self.by.values().flatten() {
            match why {
                ClientError::Unreached(one) => tried.push(one.clone()),
                // It is the same for every manager: this node's own.
                own @ (ClientError::Identity(_)
                | ClientError::Tls(_)
                | ClientError::Build(_)
                | ClientError::NoBundle(_)) => return chain(own),
            }
        }
        format!("no manager answers as coordinator: {}", join(&tried))
    }
}

/// What tells one trouble from another: how long a certificate has been out of date is told anew each second.
fn without_numbers(text: &str) -> String {
    text.chars().filter(|c| !c.is_ascii_digit()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trouble_that_counts_seconds_is_one() {
        let expired = |secs: u32| format!("m1 at 10.0.0.1:9047: certificate expired ({secs} seconds ago)");
        assert_eq!(without_numbers(&expired(9)), without_numbers(&expired(10)));
        assert_ne!(without_numbers(&expired(9)), without_numbers("m1 at 10.0.0.1:9047: connection refused"));
    }

    #[test]
    fn pauses_grow_and_end() {
        let mut low = Backoff::new(Duration::from_secs(15), || 0);
        let mut high = Backoff::new(Duration::from_secs(15), || u32::MAX);
        let due = [500, 1000, 2000, 4000, 8000, 15000, 15000].map(Duration::from_millis);
        for due in due {
            assert_eq!(low.pause(), due / 2);
            assert_eq!(high.pause(), due);
        }
        low.reset();
        assert_eq!(low.pause(), FIRST_PAUSE / 2);
    }

    fn manager(id: &str) -> Manager {
        Manager { id: id.into(), addr: "10.0.0.1:2377".parse().unwrap() }
    }

    fn unreached(id: &str) -> ClientError {
        ClientError::Unreached(Tried {
            manager: id.into(),
            addr: "10.0.0.1:9047".parse().unwrap(),
            why: "connection refused".to_owned(),
        })
    }

    #[test]
    fn only_silence_on_all_sides_is_told() {
        let (reached, node) = (Reached::default(), NodeId::from("n"));
        reached.only(&[manager("a"), manager("b")]);
        reached.failed(&node, &"a".into(), unreached("a"));
        assert_eq!(reached.answers().told, "", "b has not been tried yet");
        reached.answered(&node, &"b".into());
        reached.failed(&node, &"a".into(), unreached("a"));
        assert_eq!(reached.answers().told, "");
        let missing: Vec<_> = reached.missing().into_iter().map(|missing| missing.manager).collect();
        assert_eq!(missing, [NodeId::from("a")]);
        reached.failed(&node, &"b".into(), unreached("b"));
        assert!(reached.answers().told.contains("b at ...:: connection refused"));
        reached.answered(&node, &"a".into());
        assert_eq!(reached.answers().told, "");
    }

    #[test]
    fn who_manages_no_longer_is_forgotten() {
        let reached = Reached::default();
        reached.only(&[manager("a"), manager("b")]);
        reached.failed(&"n".into(), &"a".into(), unreached("a"));
        reached.only(&[manager("b")]);
        assert_eq!(reached.missing(), []);
    }
}
