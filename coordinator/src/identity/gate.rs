//! Who may come in: a node of this swarm as it is now, whatever its certificate still says.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use requeen_protocol::{NodeId, UnlockKey};
use tokio::sync::Mutex;

use super::files::{CertificateFiles, FilesError, OwnTls};
use super::peer::PeerName;
use super::swarm::{AskError, Cluster, Swarm};
use crate::hub::Clock;
use crate::plan::model::Role;

/// For how long a list of nodes is taken for what is true now.
const NODES_FRESH: Duration = Duration::from_secs(5);

/// For how long the cluster's ID and root are.
const CLUSTER_FRESH: Duration = Duration::from_secs(60);

/// A list is not asked for again sooner than this, whoever knocks and however often.
const ASK_AGAIN: Duration = Duration::from_secs(1);

/// How long one question may take: without a leader an engine answers after 20 s or more, and a node's
/// report must not wait for that.
const ASK_TIMEOUT: Duration = Duration::from_secs(3);

/// Decides who may come in, and remembers the answers that it needs for it.
pub(crate) struct Gate<S> {
    swarm: S,
    files: CertificateFiles,
    clock: Clock,
    nodes: Mutex<Known<BTreeMap<NodeId, Role>>>,
    cluster: Mutex<Known<Cluster>>,
    unlock_key: Mutex<Known<Option<UnlockKey>>>,
}

struct Known<T> {
    value: Option<Arc<T>>,
    /// When the value was got.
    got: Option<Instant>,
    /// When it was last asked for, with or without success.
    asked: Option<Instant>,
}

/// A peer that may come in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Admitted {
    /// A node of the swarm now.
    Member(Role),
    /// Its certificate is right, but the managers could not be asked who belongs to the swarm now: it
    /// may report, and nothing else.
    Unconfirmed,
}

/// Why a peer may not.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refused {
    /// A certificate of another swarm.
    #[error("node {node} is of cluster {theirs}, and this is cluster {ours}")]
    OtherCluster {
        /// Who.
        node: NodeId,
        /// The cluster in its certificate.
        theirs: String,
        /// This one.
        ours: String,
    },
    /// A node that was removed.
    #[error("node {node} is not in the swarm any more")]
    NotANode {
        /// Who.
        node: NodeId,
    },
}

impl<S: Swarm> Gate<S> {
    /// A gate that has asked nothing yet.
    pub(crate) fn new(swarm: S, files: CertificateFiles, clock: Clock) -> Self {
        let (nodes, cluster) = (Mutex::new(Known::nothing()), Mutex::new(Known::nothing()));
        Self { swarm, files, clock, nodes, cluster, unlock_key: Mutex::new(Known::nothing()) }
    }

    /// What to serve a new connection with, by the files and the root as they are now.
    pub(crate) async fn tls(&self) -> Result<OwnTls, FilesError> {
        let cluster = self.cluster().await;
        // Three `stat` calls when nothing has changed: not worth a thread.
        let load = || self.files.load(cluster.as_deref().map(|cluster| cluster.trust_root.as_str()));
        let loaded = load();
        if !self.files.lacks_key() {
            return loaded;
        }
        let mut known = self.unlock_key.lock().await;
        known.refresh(Duration::ZERO, &self.clock, || self.swarm.unlock_key()).await;
        if let Some(key) = known.value.take().and_then(Arc::into_inner).flatten() {
            self.files.learn(key);
        }
        load()
    }

    /// The swarm's unlock key as it is now, for a manager whose engine is about to be stopped; none where the swarm is not
    /// autolocked.
    pub(crate) async fn unlock_key(&self) -> Result<Option<UnlockKey>, AskError> {
        tokio::time::timeout(ASK_TIMEOUT, self.swarm.unlock_key()).await.unwrap_or(Err(AskError::Timeout))
    }

    /// Whether the owner of a certificate that chains to the swarm's root may come in.
    pub(crate) async fn admit(&self, peer: &PeerName) -> Result<Admitted, Refused> {
        if let Some(ours) = self.cluster_id().await
            && peer.cluster != ours
        {
            return Err(Refused::OtherCluster { node: peer.node.clone(), theirs: peer.cluster.clone(), ours });
        }
        let now = || (self.clock)();
        let mut known = self.nodes.lock().await;
        let listed = |known: &Known<BTreeMap<NodeId, Role>>| {
            known.value.as_ref().and_then(|nodes| nodes.get(&peer.node).copied())
        };
        // A node that is missing may have joined since: ask again at once, as often as is bearable.
        let limit = if listed(&known).is_some() { NODES_FRESH } else { ASK_AGAIN };
        known.refresh(limit, &self.clock, || self.swarm.nodes()).await;
        let fresh = known.age(now()).is_some_and(|age| age < NODES_FRESH);
        match (listed(&known), fresh) {
            (Some(role), true) => Ok(Admitted::Member(role)),
            (Some(_), false) => Ok(Admitted::Unconfirmed),
            (None, false) => Ok(Admitted::Unconfirmed),
            (None, true) => Err(Refused::NotANode { node: peer.node.clone() }),
        }
    }

    /// The cluster's ID: from the managers, else from this node's own certificate.
    async fn cluster_id(&self) -> Option<String> {
        match self.cluster().await {
            Some(cluster) => Some(cluster.id.clone()),
            None => self.files.load(None).ok().map(|own| own.name.cluster),
        }
    }

    async fn cluster(&self) -> Option<Arc<Cluster>> {
        let mut known = self.cluster.lock().await;
        known.refresh(CLUSTER_FRESH, &self.clock, || self.swarm.cluster()).await;
        known.value.clone()
    }
}

impl<T> Known<T> {
    fn nothing() -> Self {
        Self { value: None, got: None, asked: None }
    }

    fn age(&self, now: Instant) -> Option<Duration> {
        self.got.map(|got| now.saturating_duration_since(got))
    }

    /// Asks if the value is older than `limit` and nobody has asked just now. On failure the old value stays.
    async fn refresh<F>(&mut self, limit: Duration, clock: &Clock, ask: impl FnOnce() -> F)
    where
        F: Future<Output = Result<T, AskError>>,
    {
        let now = clock();
        let fresh = self.age(now).is_some_and(|age| age < limit);
        let asked_just_now = self.asked.is_some_and(|asked| now.saturating_duration_since(asked) < ASK_AGAIN);
        if fresh || asked_just_now {
            return;
        }
        let answer = tokio::time::timeout(ASK_TIMEOUT, ask()).await.unwrap_or(Err(AskError::Timeout));
        let now = clock();
        self.asked = Some(now);
        match answer {
            Ok(value) => {
                self.value = Some(Arc::new(value));
                self.got = Some(now);
            }
            Err(error) => tracing::debug!(error = &error as &dyn std::error::Error, "going on with what is known"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;
    use crate::identity::test_pki::Root;

    #[derive(Default)]
    struct Fake {
        nodes: std::sync::Mutex<Option<BTreeMap<NodeId, Role>>>,
        asked: AtomicU64,
        unlock_key: std::sync::Mutex<Option<UnlockKey>>,
        asked_for_key: AtomicU64,
    }

    impl Swarm for Arc<Fake> {
        async fn cluster(&self) -> Result<Cluster, AskError> {
            Err(AskError::Timeout)
        }

        async fn nodes(&self) -> Result<BTreeMap<NodeId, Role>, AskError> {
            self.asked.fetch_add(1, Ordering::SeqCst);
            self.nodes.lock().unwrap().clone().ok_or(AskError::Timeout)
        }

        async fn unlock_key(&self) -> Result<Option<UnlockKey>, AskError> {
            self.asked_for_key.fetch_add(1, Ordering::SeqCst);
            Ok(self.unlock_key.lock().unwrap().clone())
        }
    }

    struct World {
        fake: Arc<Fake>,
        millis: Arc<AtomicU64>,
        gate: Gate<Arc<Fake>>,
        dir: tempfile::TempDir,
    }

    fn world() -> World {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::new();
        root.node("m1", "swarm-manager", "ours").install(dir.path(), &root.pem);
        let (fake, millis) = (Arc::new(Fake::default()), Arc::new(AtomicU64::new(0)));
        let start = Instant::now();
        let clock: Clock = {
            let millis = Arc::clone(&millis);
            Arc::new(move || start + Duration::from_millis(millis.load(Ordering::SeqCst)))
        };
        let gate = Gate::new(Arc::clone(&fake), CertificateFiles::new(dir.path()), clock);
        World { fake, millis, gate, dir }
    }

    impl World {
        fn list(&self, nodes: Option<&[(&str, Role)]>) {
            *self.fake.nodes.lock().unwrap() =
                nodes.map(|nodes| nodes.iter().map(|&(id, role)| (NodeId::from(id), role)).collect());
        }

        fn pass(&self, millis: u64) {
            self.millis.fetch_add(millis, Ordering::SeqCst);
        }

        async fn admit(&self, node: &str) -> Result<Admitted, Refused> {
            self.gate.admit(&PeerName { node: NodeId::from(node), cluster: "ours".to_owned() }).await
        }
    }

    #[tokio::test]
    async fn a_key_that_is_encrypted_in_the_middle_is_opened_by_the_swarms_own() {
        let world = world();
        assert!(world.gate.tls().await.is_ok());
        assert_eq!(world.fake.asked_for_key.load(Ordering::SeqCst), 0, "the key is not encrypted");

        let unlock = |byte: u8| UnlockKey::parse(&format!("SWMKEY-1-{}", "AQID".repeat(usize::from(byte)))).unwrap();
        let root = Root::new();
        let renewed = root.node("renewed", "swarm-manager", "ours");
        renewed.install(world.dir.path(), &root.pem);
        renewed.encrypt(world.dir.path(), &unlock(1));
        // Who has served before goes on until it has the key, and does not ask at each knock.
        for _ in 0..5 {
            assert_eq!(world.gate.tls().await.unwrap().name.node.as_str(), "m1");
        }
        assert_eq!(world.fake.asked_for_key.load(Ordering::SeqCst), 1);
        *world.fake.unlock_key.lock().unwrap() = Some(unlock(1));
        world.pass(1_000);
        assert_eq!(world.gate.tls().await.unwrap().name.node.as_str(), "renewed");

        let again = root.node("again", "swarm-manager", "ours");
        again.install(world.dir.path(), &root.pem);
        again.encrypt(world.dir.path(), &unlock(2));
        *world.fake.unlock_key.lock().unwrap() = Some(unlock(2));
        world.pass(1_000);
        assert_eq!(world.gate.tls().await.unwrap().name.node.as_str(), "again", "the key was rotated");
        assert_eq!(world.fake.asked_for_key.load(Ordering::SeqCst), 3);
    }

    #[tokio::test]
    async fn the_role_is_the_swarms() {
        let world = world();
        world.list(Some(&[("w1", Role::Worker)]));
        assert_eq!(world.admit("w1").await, Ok(Admitted::Member(Role::Worker)));
        world.list(Some(&[("w1", Role::Manager)]));
        world.pass(5_000);
        assert_eq!(world.admit("w1").await, Ok(Admitted::Member(Role::Manager)));
    }

    #[tokio::test]
    async fn another_cluster_is_refused_even_while_nobody_answers() {
        let world = world();
        let peer = PeerName { node: NodeId::from("w1"), cluster: "theirs".to_owned() };
        assert!(matches!(
            world.gate.admit(&peer).await,
            Err(Refused::OtherCluster { ours, .. }) if ours == "ours"
        ));
    }

    #[tokio::test]
    async fn a_removed_node_is_refused_and_a_new_one_let_in() {
        let world = world();
        world.list(Some(&[("w1", Role::Worker)]));
        assert!(world.admit("w1").await.is_ok());
        world.list(Some(&[("w2", Role::Worker)]));
        world.pass(1_000);
        assert!(world.admit("w2").await.is_ok(), "a list older than a second is asked for again");
        assert_eq!(world.admit("w1").await, Err(Refused::NotANode { node: NodeId::from("w1") }));
    }

    #[tokio::test]
    async fn knocking_does_not_ask_the_swarm_each_time() {
        let world = world();
        world.list(Some(&[("w1", Role::Worker)]));
        for _ in 0..50 {
            let _ = world.admit("stranger").await;
            let _ = world.admit("w1").await;
        }
        assert_eq!(world.fake.asked.load(Ordering::SeqCst), 1);
    }

    #[tokio::test]
    async fn without_a_leader_nodes_may_only_report() {
        let world = world();
        assert_eq!(world.admit("w1").await, Ok(Admitted::Unconfirmed), "nothing was ever known");
        world.list(Some(&[("w1", Role::Worker)]));
        world.pass(1_000);
        assert_eq!(world.admit("w1").await, Ok(Admitted::Member(Role::Worker)));
        world.list(None);
        world.pass(5_000);
        assert_eq!(world.admit("w1").await, Ok(Admitted::Unconfirmed), "the list is old");
    }
}
