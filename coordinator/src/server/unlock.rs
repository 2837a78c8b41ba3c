//! The word to stop a manager's engine goes out together with the swarm's unlock key, fetched just then, or not at all:
//! without the key that manager would stay locked after its restart.
//!
//! The key goes beside the order, to a manager alone, which could ask its own engine for it as well. It is kept nowhere.

use axum::http::{HeaderName, HeaderValue};
use requeen_protocol::{Order, UNLOCK_HEADER, UnlockKey};

use super::words::chain;
use crate::identity::gate::{Admitted, Gate};
use crate::identity::swarm::Swarm;
use crate::plan::model::Role;

/// The order as it may go out now, and the key that goes with it.
pub(super) async fn with_key<S: Swarm>(
    gate: &Gate<S>,
    admitted: &Admitted,
    order: Order,
) -> (Order, Option<UnlockKey>) {
    match (&order, admitted) {
        (Order::Stop { .. }, Admitted::Member(Role::Manager) | Admitted::Unconfirmed) => {}
        (
            Order::Stop { .. }
            | Order::Wait { .. }
            | Order::Standby { .. }
            | Order::Stage { .. }
            | Order::Hold { .. }
            | Order::Link { .. }
            | Order::Settle { .. }
            | Order::SwitchBack { .. }
            | Order::Withdraw { .. }
            | Order::Forget { .. }
            | Order::Clean { .. },
            _,
        ) => return (order, None),
    }
    let why = match (gate.unlock_key().await, admitted) {
        (Ok(None), _) => return (order, None),
        (Ok(Some(key)), Admitted::Member(_)) => return (order, Some(key)),
        (Ok(Some(_)), Admitted::Unconfirmed) => "the managers can't say now who belongs to the swarm".to_owned(),
        (Err(error), _) => chain(&error),
    };
    tracing::debug!(why, "no stop without the unlock key");
    (Order::Wait { why: format!("the swarm's unlock key has to be fetched before the stop: {why}") }, None)
}

/// The header that carries the key. Whoever prints headers leaves its value out.
pub(super) fn header(key: &UnlockKey) -> Option<(HeaderName, HeaderValue)> {
    let mut value = HeaderValue::from_str(key.expose()).ok()?;
    value.set_sensitive(true);
    Some((HeaderName::from_static(UNLOCK_HEADER), value))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::{Arc, Mutex};
    use std::time::{Duration, Instant};

    use requeen_protocol::{LeaseId, NodeId, NodeState, PermitId, Report};

    use super::super::tests::{CLUSTER, Got, word, world};
    use super::*;
    use crate::hub::Driven;
    use crate::identity::files::CertificateFiles;
    use crate::identity::swarm::{AskError, Cluster};
    use crate::plan::model::{Availability, LeaseRecord, ManagerPolicy, Step, Work};
    use crate::plan::simulation;

    const KEY: &str = "SWMKEY-1-AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8";

    /// What the engine answers when it is asked for the key: nothing if it can't.
    struct Keys(Mutex<Option<Option<UnlockKey>>>);

    impl Swarm for Arc<Keys> {
        async fn cluster(&self) -> Result<Cluster, AskError> {
            Err(AskError::Timeout)
        }

        async fn nodes(&self) -> Result<BTreeMap<NodeId, Role>, AskError> {
            Err(AskError::Timeout)
        }

        async fn unlock_key(&self) -> Result<Option<UnlockKey>, AskError> {
            self.0.lock().unwrap().clone().ok_or(AskError::Timeout)
        }
    }

    fn permit() -> Order {
        let lease = LeaseRecord { id: LeaseId::from("l"), epoch: 1, forced: false };
        let lease = lease.to_wire(&"r".into(), &"m1".into());
        Order::Stop { permit: requeen_protocol::StopPermit { id: PermitId::from("p"), lease, valid_secs: 20 } }
    }

    #[tokio::test]
    async fn no_manager_is_stopped_before_the_key_is_known() {
        let key = UnlockKey::parse(KEY).unwrap();
        let keys = Arc::new(Keys(Mutex::new(None)));
        let files = CertificateFiles::new(std::path::Path::new("/nowhere"));
        let gate = Gate::new(Arc::clone(&keys), files, Arc::new(Instant::now));
        let manager = Admitted::Member(Role::Manager);
        for admitted in [&manager, &Admitted::Unconfirmed] {
            let (order, key) = with_key(&gate, admitted, permit()).await;
            let Order::Wait { why } = order else { panic!("{order:?} without a key") };
            assert!(why.contains("unlock key") && why.contains("in time") && key.is_none(), "{why}");
        }
        assert_eq!(with_key(&gate, &Admitted::Member(Role::Worker), permit()).await, (permit(), None));
        let settle = Order::Wait { why: "no rollout".to_owned() };
        assert_eq!(with_key(&gate, &manager, settle.clone()).await, (settle, None));

        *keys.0.lock().unwrap() = Some(None);
        for admitted in [&manager, &Admitted::Unconfirmed] {
            assert_eq!(with_key(&gate, admitted, permit()).await, (permit(), None), "not autolocked");
        }
        *keys.0.lock().unwrap() = Some(Some(key.clone()));
        assert_eq!(with_key(&gate, &manager, permit()).await, (permit(), Some(key)));
        let (order, key) = with_key(&gate, &Admitted::Unconfirmed, permit()).await;
        assert!(matches!(order, Order::Wait { .. }) && key.is_none(), "who asks may be no manager: {order:?}");
    }

    #[test]
    fn the_header_is_not_printed() {
        let key = UnlockKey::parse(KEY).unwrap();
        let (name, value) = header(&key).unwrap();
        assert_eq!((name.as_str(), value.to_str().unwrap()), ("requeen-unlock-key", KEY));
        assert!(!format!("{value:?}").contains("SWMKEY"));
    }

    #[tokio::test]
    async fn the_key_is_in_the_answer_that_stops_a_manager_and_in_no_other() {
        let world = world(Duration::ZERO).await;
        let views = [("m1", Role::Manager), ("w1", Role::Worker)].map(|(id, role)| {
            let mut view = simulation::node(id, role);
            view.id = NodeId::from(id);
            view
        });
        let mut rollout = simulation::rollout(&views, simulation::policy(ManagerPolicy::Rolling, 1));
        let lease = LeaseRecord { id: LeaseId::from("l"), epoch: 1, forced: false };
        for entry in rollout.nodes.values_mut() {
            let work = Work::Permitted { permit: PermitId::from("p"), index: 1 };
            entry.step = Step::Working { lease: lease.clone(), before: Availability::Active, work };
        }
        let id = rollout.request.id.clone();
        world.hub.set_has_leader(true);
        world.hub.set_rollout(Some(Driven { rollout, here: true, owner: "m1".to_owned() }));
        *world.fake.unlock_key.lock().unwrap() = Some(UnlockKey::parse(KEY).unwrap());

        let manager = world.root.node("m1", "swarm-manager", CLUSTER);
        let linked = NodeState::Linked { rollout: id, lease: lease.id, task_containers: 0 };
        let told = |got: Got| {
            let (_, headers, body) = got.unwrap();
            assert!(!String::from_utf8_lossy(&body).contains("SWMKEY"), "the order itself has the key");
            let key = headers.get(UNLOCK_HEADER).map(|value| value.to_str().unwrap().to_owned());
            (serde_json::from_slice::<Order>(&body).unwrap(), key)
        };
        let say = |node, seen| Report { state: linked.clone(), ..word(node, seen) };
        let (stop, key) = told(world.report(&manager, &say("m1", None)).await);
        assert!(matches!(stop, Order::Stop { .. }) && key.as_deref() == Some(KEY), "{stop:?}");
        let idle = Report { state: NodeState::Idle, ..word("m1", None) };
        assert_eq!(told(world.report(&manager, &idle).await).1, None);
        let (stop, key) = told(world.report(&world.worker(), &say("w1", None)).await);
        assert!(matches!(stop, Order::Stop { .. }) && key.is_none(), "a worker has no lock: {stop:?}");
    }
}
