//! The unlock key of an autolocked swarm, and the keys of managers that it opens.
//!
//! The key is for memory alone: it can't be serialized, prints as nothing, and leaves no copy behind where it goes.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use zeroize::Zeroizing;

use crate::node_key::{self, NodeKey, NodeKeyError};

/// What every unlock key begins with; the rest is base64 without padding (swarmkit, `manager/encryption`).
const PREFIX: &str = "SWMKEY-1-";

/// So many keys are remembered. A rotation makes a new one, and a manager that was down meanwhile has the one before.
const KEPT: usize = 4;

/// The text is no unlock key. It is not repeated: it may be one that was mistyped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("this is no unlock key of a swarm: one begins with {PREFIX}")]
pub struct InvalidUnlockKey;

/// The key with which managers of an autolocked swarm are unlocked after each start of their engine.
#[derive(Clone, PartialEq, Eq)]
pub struct UnlockKey {
    text: Zeroizing<String>,
    bytes: Zeroizing<Vec<u8>>,
}

impl UnlockKey {
    /// Reads the key as `GET /swarm/unlockkey` gives it.
    pub fn parse(text: &str) -> Result<Self, InvalidUnlockKey> {
        let encoded = text.strip_prefix(PREFIX).ok_or(InvalidUnlockKey)?;
        let bytes = Zeroizing::new(STANDARD_NO_PAD.decode(encoded).map_err(|_| InvalidUnlockKey)?);
        if bytes.is_empty() {
            return Err(InvalidUnlockKey);
        }
        Ok(Self { text: Zeroizing::new(text.to_owned()), bytes })
    }

    /// As `POST /swarm/unlock` takes it, and [`crate::UNLOCK_HEADER`]. For nothing else.
    pub fn expose(&self) -> &str {
        &self.text
    }

    /// The passphrase of what is encrypted with it.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

impl fmt::Debug for UnlockKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("UnlockKey")
    }
}

/// The unlock keys that a program has heard of, newest first.
#[derive(Clone, Debug, Default)]
pub struct KeyRing(Vec<UnlockKey>);

impl KeyRing {
    /// Takes note of a key; true if it was not known.
    pub fn learn(&mut self, key: UnlockKey) -> bool {
        let before = self.0.len();
        self.0.retain(|known| *known != key);
        let new = self.0.len() == before;
        self.0.insert(0, key);
        self.0.truncate(KEPT);
        new
    }

    /// The keys, newest first.
    pub fn keys(&self) -> &[UnlockKey] {
        &self.0
    }

    /// Opens a node's encrypted key with whichever fits.
    pub fn open(&self, pem: &str) -> Result<NodeKey, NodeKeyError> {
        let mut tried = Err(NodeKeyError::WrongKey);
        for key in &self.0 {
            tried = node_key::open(pem, key);
            match &tried {
                Err(NodeKeyError::WrongKey) => {}
                Ok(_) | Err(NodeKeyError::Form(_)) => break,
            }
        }
        tried
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(byte: u8) -> UnlockKey {
        UnlockKey::parse(&format!("{PREFIX}{}", STANDARD_NO_PAD.encode([byte; 32]))).unwrap()
    }

    #[test]
    fn a_key_is_read_as_engines_give_it_and_never_printed() {
        let text = "SWMKEY-1-//79/Pv6+fj39vX08/Lx8O/u7ezr6uno5+bl5OPi4eA";
        let key = UnlockKey::parse(text).unwrap();
        assert_eq!((key.expose(), key.bytes().len(), key.bytes()[..3].to_vec()), (text, 32, vec![0xff, 0xfe, 0xfd]));
        let shown = format!("{key:?} {:?} {:?}", Some(&key), KeyRing(vec![key.clone()]));
        assert!(!shown.contains("SWMKEY") && !shown.contains("254"), "{shown}");
        for wrong in
            ["", "SWMKEY-1-", "SWMKEY-2-AAAA", "SWMTKN-1-AAAA", "SWMKEY-1-AA==", "SWMKEY-1-A*A", "SWMKEY-1-AAAA\n"]
        {
            let error = UnlockKey::parse(wrong).unwrap_err();
            assert!(!error.to_string().contains("AA"), "{error}");
        }
    }

    #[test]
    fn the_last_keys_are_remembered_newest_first() {
        let mut ring = KeyRing::default();
        for byte in 1..=6 {
            assert!(ring.learn(key(byte)));
        }
        assert_eq!(ring.keys(), [key(6), key(5), key(4), key(3)]);
        assert!(!ring.learn(key(4)));
        assert_eq!(ring.keys(), [key(4), key(6), key(5), key(3)]);
    }
}
