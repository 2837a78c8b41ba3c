//! The one conversation with the coordinator: says what is true, hears what is wanted.
//!
//! A report that is no longer true is withdrawn and the new one sent in its place, so the
//! coordinator learns of a change at once although it holds its answers.

use std::time::Duration;

use requeen_protocol::{Order, Report};
use tokio::sync::{mpsc, watch};

use crate::client::{Client, ClientError};
use crate::clock::{BootTime, Clock};
use crate::engine::api::SwarmFacts;
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

/// Talks until the receiver of orders or the sender of reports is gone.
///
/// After each order it stays silent until there is something new in `say`: whoever hears must
/// publish again, even if nothing changed.
pub async fn converse(
    mut client: Client,
    clock: Clock,
    mut backoff: Backoff,
    mut say: watch::Receiver<Option<Say>>,
    heard: mpsc::Sender<Heard>,
) {
    let mut told = String::new();
    loop {
        let current = say.borrow_and_update().clone();
        let Some(current) = current else {
            if say.changed().await.is_err() {
                return;
            }
            continue;
        };
        let sent = clock();
        let answer = tokio::select! {
            answer = client.report(&current.swarm, &current.report) => answer,
            changed = say.changed() => match changed {
                Ok(()) => continue,
                Err(_) => return,
            },
        };
        match answer {
            Ok(order) => {
                if !told.is_empty() {
                    tracing::info!(node = %current.report.node, "the coordinator answers");
                    told.clear();
                }
                backoff.reset();
                if heard.send(Heard { sent, order }).await.is_err() || say.changed().await.is_err() {
                    return;
                }
            }
            Err(error) => {
                let text = explain(&error);
                // Said once: nothing is repeated at this level while it stays the same.
                if text != told {
                    tracing::info!(node = %current.report.node, "waiting for a coordinator: {text}");
                    told = text;
                }
                tokio::select! {
                    () = tokio::time::sleep(backoff.pause()) => {}
                    changed = say.changed() => if changed.is_err() { return },
                }
            }
        }
    }
}

fn explain(error: &ClientError) -> String {
    chain(error)
}

#[cfg(test)]
mod tests {
    use super::*;

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
}
