//! The unlock keys that this process knows: of an autolocked swarm, and in memory alone.
//!
//! A manager of such a swarm keeps its TLS key encrypted, and its engine is locked after every start. While it is unlocked
//! its own engine gives the key, and the coordinator gives it once more with the word to stop the engine. Nothing of it is
//! ever written: a process that begins while the engine is down or locked has none, and waits for the operator.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use requeen_protocol::node_key::{NodeKey, NodeKeyError};
use requeen_protocol::{KeyRing, UnlockKey};
use tokio::sync::Notify;

use crate::engine::raw::{self, RawError};
use crate::host::HostRoot;
use crate::identity::{Files, IdentityError, Stamp};
use crate::words::chain;

/// How long the engine may take for its key: without a leader it gives none.
const ASK_LIMIT: Duration = Duration::from_secs(5);

/// How long the engine may take to be unlocked: it answers when it is back in its swarm.
const UNLOCK_LIMIT: Duration = Duration::from_secs(30);

/// What the operator types on a locked manager.
pub const COMMAND: &str = "docker swarm unlock";

/// The engine stays locked.
#[derive(Debug, thiserror::Error)]
pub enum UnlockError {
    /// It needs another key.
    #[error("the engine says that the unlock key is not the right one")]
    WrongKey,
    /// It could not be told, or says that something else is wrong.
    #[error("the engine could not be unlocked")]
    Failed(#[source] RawError),
}

/// See the module. Copies share what they know.
#[derive(Clone, Debug, Default)]
pub struct Keys(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    known: Mutex<Known>,
    /// An encrypted file was met that no key opens.
    missed: Notify,
}

#[derive(Debug, Default)]
struct Known {
    ring: KeyRing,
    /// Whether the last encrypted file that was met stayed closed.
    missing: bool,
    /// The files that could be read last.
    read: Option<Stamp>,
}

impl Keys {
    fn known(&self) -> MutexGuard<'_, Known> {
        self.0.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes note of a key; true if it was not known.
    pub fn learn(&self, key: UnlockKey) -> bool {
        self.known().ring.learn(key)
    }

    /// The keys, newest first.
    pub fn all(&self) -> Vec<UnlockKey> {
        self.known().ring.keys().to_vec()
    }

    /// Whether a key is needed and not known.
    pub fn is_missing(&self) -> bool {
        self.known().missing
    }

    /// Opens a node's encrypted key.
    pub fn open(&self, pem: &str) -> Result<NodeKey, NodeKeyError> {
        let mut known = self.known();
        let opened = known.ring.open(pem);
        known.missing = matches!(opened, Err(NodeKeyError::WrongKey));
        if known.missing {
            self.0.missed.notify_one();
        }
        opened
    }

    /// Sees to it that the node's certificate files can be read: asks the engine for the key where they are encrypted and
    /// no key opens them. True if it gave one that was not known. Whoever calls this knows that the engine may be called.
    pub async fn keep_up(&self, root: &HostRoot, data_root: &str) -> bool {
        let files = Files::new(root, data_root);
        let stamp = files.stamp();
        if self.known().read.as_ref() == Some(&stamp) {
            return false;
        }
        match files.load(self) {
            Ok(_) => {
                let mut known = self.known();
                (known.read, known.missing) = (Some(stamp), false);
                false
            }
            Err(IdentityError::Encrypted { .. }) => self.ask(root).await,
            // Whoever needs them says so.
            Err(IdentityError::Read { .. } | IdentityError::Pem { .. } | IdentityError::Form { .. }) => false,
        }
    }

    async fn ask(&self, root: &HostRoot) -> bool {
        match key_of(root).await {
            Ok(Some(key)) => self.learn(key),
            Ok(None) => false,
            Err(error) => {
                tracing::debug!("no unlock key: {}", chain(&error));
                false
            }
        }
    }

    /// Waits until files were met that no key opens and the engine has given one that was not known.
    pub async fn learned(&self, root: &HostRoot, data_root: &str) {
        loop {
            self.0.missed.notified().await;
            if self.keep_up(root, data_root).await {
                return;
            }
        }
    }
}

/// The swarm's unlock key, as this node's engine gives it; none where the swarm is not autolocked.
async fn key_of(root: &HostRoot) -> Result<Option<UnlockKey>, RawError> {
    let root = root.clone();
    let asked = tokio::task::spawn_blocking(move || raw::get(&root, "/swarm/unlockkey", ASK_LIMIT));
    let said = asked.await.unwrap_or_else(|error| Err(RawError::Talk(std::io::Error::other(error))))?;
    Ok(said["UnlockKey"].as_str().and_then(|text| UnlockKey::parse(text).ok()))
}

/// Unlocks this node's engine with a key.
pub async fn unlock(root: &HostRoot, key: &UnlockKey) -> Result<(), UnlockError> {
    let (root, key) = (root.clone(), key.clone());
    let asked = tokio::task::spawn_blocking(move || {
        // Base64, with nothing in it that JSON would escape.
        let body = zeroize::Zeroizing::new(format!(r#"{{"UnlockKey":"{}"}}"#, key.expose()));
        raw::post(&root, "/swarm/unlock", &body, UNLOCK_LIMIT)
    });
    match asked.await.unwrap_or_else(|error| Err(RawError::Talk(std::io::Error::other(error)))) {
        Ok(()) => Ok(()),
        // Status 401, and 500 in older engines: the words are the same.
        Err(RawError::Refused(said)) if said.contains("invalid key") => Err(UnlockError::WrongKey),
        Err(error) => Err(UnlockError::Failed(error)),
    }
}

#[cfg(test)]
pub(crate) mod testing;

#[cfg(test)]
mod tests {
    use super::testing::{Engine, OTHER, SEALED, UNLOCK, write_identity};
    use super::*;

    fn key(text: &str) -> UnlockKey {
        UnlockKey::parse(text).unwrap()
    }

    #[tokio::test]
    async fn the_engine_is_asked_only_for_a_key_that_is_needed() {
        let engine = Engine::start("active", UNLOCK);
        let keys = Keys::default();
        write_identity(engine.dir(), "-----BEGIN PRIVATE KEY-----\nAA==\n-----END PRIVATE KEY-----\n");
        assert!(!keys.keep_up(&engine.root(), "/data").await);
        assert_eq!(engine.asked_for_key(), 0, "the key is not encrypted");

        write_identity(engine.dir(), SEALED);
        assert!(keys.keep_up(&engine.root(), "/data").await);
        assert_eq!((keys.all(), engine.asked_for_key()), (vec![key(UNLOCK)], 1));
        for _ in 0..3 {
            assert!(!keys.keep_up(&engine.root(), "/data").await);
        }
        assert_eq!((keys.is_missing(), engine.asked_for_key()), (false, 1));
    }

    #[tokio::test]
    async fn a_locked_engine_gives_no_key_and_is_asked_again_when_one_is_missed() {
        let engine = Engine::start("locked", UNLOCK);
        let keys = Keys::default();
        keys.learn(key(OTHER));
        write_identity(engine.dir(), SEALED);
        assert!(!keys.keep_up(&engine.root(), "/data").await);
        assert!(keys.is_missing());

        let (root, waiting) = (engine.root(), keys.clone());
        let learned = tokio::spawn(async move { waiting.learned(&root, "/data").await });
        // The operator unlocks it, and the next attempt to read the files misses the key once more.
        engine.set("active");
        assert!(keys.open(SEALED).is_err());
        tokio::time::timeout(Duration::from_secs(10), learned).await.expect("nobody asked").unwrap();
        assert_eq!(keys.all(), [key(UNLOCK), key(OTHER)]);
        assert!(keys.open(SEALED).is_ok() && !keys.is_missing());
    }

    #[tokio::test]
    async fn an_engine_takes_its_own_key_alone() {
        let engine = Engine::start("locked", UNLOCK);
        assert!(matches!(unlock(&engine.root(), &key(OTHER)).await, Err(UnlockError::WrongKey)));
        unlock(&engine.root(), &key(UNLOCK)).await.unwrap();
        let again = unlock(&engine.root(), &key(UNLOCK)).await.unwrap_err();
        assert!(matches!(again, UnlockError::Failed(_)) && chain(&again).contains("not locked"), "{}", chain(&again));
        assert!(!chain(&again).contains("SWMKEY"));
    }
}
