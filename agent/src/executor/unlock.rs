//! Unlocking the manager whose engine this executor has just started: with the keys that it has in memory, and never
//! twice with one that was refused.

use std::time::Duration;

use requeen_protocol::UnlockKey;
use tokio::time::Instant;

use crate::engine::api::Api;
use crate::host::HostRoot;
use crate::unlock::{COMMAND, Keys, UnlockError, unlock};
use crate::words::chain;

/// After a failure that says nothing of the key, the next attempt is not made sooner.
const AGAIN: Duration = Duration::from_secs(2);

/// An engine that was put back has so long to take the key. Then its node's work ends: the operator reads the rest.
const OLD_ENGINE_LIMIT: Duration = Duration::from_secs(60);

/// How often it is looked at meanwhile.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// A manager's API can take 20 s.
const API_LIMIT: Duration = Duration::from_secs(60);

/// What was tried on an engine that is locked.
#[derive(Debug, Default)]
pub(super) struct Unlocking {
    refused: Vec<UnlockKey>,
    /// What an attempt ended with that may end otherwise, and when.
    failed: Option<(String, Instant)>,
    /// What was logged.
    said: String,
}

impl Unlocking {
    /// Tries the keys that were not refused yet, and says for what a locked engine waits.
    pub(super) async fn attempt(&mut self, root: &HostRoot, keys: &Keys) -> String {
        let tried = match &self.failed {
            Some((words, at)) if at.elapsed() < AGAIN => Err(words.clone()),
            Some(_) | None => self.try_each(root, &keys.all()).await,
        };
        let Err(words) = tried else {
            tracing::info!(step = "unlock", "the manager is unlocked");
            return "unlocked just now".to_owned();
        };
        if self.said != words {
            tracing::warn!(step = "unlock", "{words}");
            self.said.clone_from(&words);
        }
        words
    }

    /// Whether another attempt may end otherwise although no other key becomes known.
    fn may_try_again(&self) -> bool {
        self.failed.is_some()
    }

    async fn try_each(&mut self, root: &HostRoot, known: &[UnlockKey]) -> Result<(), String> {
        self.failed = None;
        for key in known {
            if self.refused.contains(key) {
                continue;
            }
            match unlock(root, key).await {
                Ok(()) => return Ok(()),
                Err(UnlockError::WrongKey) => self.refused.push(key.clone()),
                Err(error @ UnlockError::Failed(_)) => {
                    let words = format!("locked: {}; if it stays so, type `{COMMAND}` on this node", chain(&error));
                    self.failed = Some((words.clone(), Instant::now()));
                    return Err(words);
                }
            }
        }
        Err(if known.is_empty() {
            format!("locked, and no unlock key is known here any more: type `{COMMAND}` on this node")
        } else {
            format!("locked, and the unlock key that was given does not fit: type `{COMMAND}` on this node")
        })
    }
}

/// Unlocks the old engine that was put back, where it is locked; what to do about it, if it stays so. An engine that
/// answers knows already whether it is.
pub(super) async fn old_engine(root: &HostRoot, keys: &Keys) -> Option<String> {
    let end = Instant::now() + OLD_ENGINE_LIMIT;
    let mut unlocking = Unlocking::default();
    let mut words = None;
    loop {
        let swarm = async { Api::connect(root, API_LIMIT).await?.swarm().await };
        if !swarm.await.is_ok_and(|swarm| swarm.is_locked()) {
            return None;
        }
        if words.is_some() && (!unlocking.may_try_again() || Instant::now() >= end) {
            return words;
        }
        words = Some(unlocking.attempt(root, keys).await);
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

#[cfg(test)]
#[path = "unlock_tests.rs"]
mod tests;
