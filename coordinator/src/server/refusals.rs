//! Refused clients in the log: each address once per reason, so that nobody can fill it.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};

/// How many pairs of address and reason are remembered. When there are more all are forgotten, and so
/// logged once more.
const REMEMBERED: usize = 1024;

/// What was logged already.
#[derive(Default)]
pub(crate) struct Refusals {
    logged: Mutex<BTreeSet<(IpAddr, String)>>,
}

impl Refusals {
    /// Logs that a client was refused, if it was not logged before.
    pub(crate) fn log(&self, client: IpAddr, reason: &str) {
        if self.is_news(client, reason) {
            tracing::warn!(%client, reason, "client refused (logged once)");
        }
    }

    fn is_news(&self, client: IpAddr, reason: &str) -> bool {
        let mut logged = self.logged.lock().unwrap_or_else(PoisonError::into_inner);
        if logged.len() >= REMEMBERED {
            logged.clear();
        }
        logged.insert((client, reason.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reason_is_news_once_per_client() {
        let refusals = Refusals::default();
        let (one, two) = (IpAddr::from([10, 0, 0, 1]), IpAddr::from([10, 0, 0, 2]));
        assert!(refusals.is_news(one, "a"));
        assert!(!refusals.is_news(one, "a"));
        assert!(refusals.is_news(one, "b"));
        assert!(refusals.is_news(two, "a"));
    }

    #[test]
    fn memory_is_bounded() {
        let refusals = Refusals::default();
        for number in 0..3 * REMEMBERED {
            refusals.is_news(IpAddr::from([10, 0, 0, 1]), &number.to_string());
        }
        assert!(refusals.logged.lock().unwrap().len() <= REMEMBERED);
    }
}
