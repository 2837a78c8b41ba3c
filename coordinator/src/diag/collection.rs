//! What is being collected from nodes: who was asked, and whose part has arrived. It lies beside everything
//! that concerns rollouts; no order depends on it.

use std::collections::BTreeMap;
use std::fs::File;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use requeen_protocol::{Collect, CollectionId, NodeId};
use tokio::sync::watch;

/// The collection that is open, if one is. There is one at a time.
pub(crate) struct Collections {
    open: Mutex<Option<Open>>,
    changed: watch::Sender<u64>,
}

struct Open {
    collect: Collect,
    nodes: BTreeMap<NodeId, Delivery>,
}

/// How far a node's part is.
#[derive(Debug, Default)]
pub(crate) enum Delivery {
    /// Its agent has not called since.
    #[default]
    Unasked,
    /// It was told.
    Asked,
    /// Its part is being received.
    Arriving,
    /// It is here.
    Arrived(Part),
    /// It can't be taken, and why.
    Refused(String),
}

impl Delivery {
    /// Whether nothing more comes of it.
    pub(crate) fn is_settled(&self) -> bool {
        match self {
            Delivery::Arrived(_) | Delivery::Refused(_) => true,
            Delivery::Unasked | Delivery::Asked | Delivery::Arriving => false,
        }
    }
}

/// A node's part: a tarball in a file that has no name any more, and is gone with this.
#[derive(Debug)]
pub(crate) struct Part {
    pub(crate) file: File,
    /// Its length, bytes.
    pub(crate) bytes: u64,
}

/// A part is not wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Unwanted {
    /// No collection of that ID is open, or not any more.
    #[error("no such collection is open")]
    Closed,
    /// The node is not asked.
    #[error("this node was not asked")]
    NotAsked,
    /// It is here, or on its way.
    #[error("this node's part is here already")]
    Here,
}

impl Default for Collections {
    fn default() -> Self {
        Self { open: Mutex::default(), changed: watch::Sender::new(0) }
    }
}

impl Collections {
    /// Opens a collection, unless one is open.
    pub(crate) fn open(
        self: &Arc<Self>,
        collect: Collect,
        nodes: impl IntoIterator<Item = NodeId>,
    ) -> Option<OpenCollection> {
        let mut open = self.held();
        if open.is_some() {
            return None;
        }
        let id = collect.id.clone();
        let nodes = nodes.into_iter().map(|node| (node, Delivery::default())).collect();
        *open = Some(Open { collect, nodes });
        Some(OpenCollection { all: Arc::clone(self), id })
    }

    /// What to ask of a node whose agent heard of `heard_of` last. Asked again and again until it has: an answer
    /// may be lost.
    pub(crate) fn wanted(&self, node: &NodeId, heard_of: &str) -> Option<Collect> {
        let mut held = self.held();
        let open = held.as_mut().filter(|open| open.collect.id.as_str() != heard_of)?;
        let delivery = open.nodes.get_mut(node)?;
        match delivery {
            Delivery::Unasked | Delivery::Asked => {
                *delivery = Delivery::Asked;
                Some(open.collect.clone())
            }
            Delivery::Arriving | Delivery::Arrived(_) | Delivery::Refused(_) => None,
        }
    }

    /// A node's part begins to arrive.
    pub(crate) fn receive(self: &Arc<Self>, id: &CollectionId, node: &NodeId) -> Result<Arriving, Unwanted> {
        let mut held = self.held();
        let open = held.as_mut().filter(|open| open.collect.id == *id).ok_or(Unwanted::Closed)?;
        let delivery = open.nodes.get_mut(node).ok_or(Unwanted::NotAsked)?;
        match delivery {
            Delivery::Unasked | Delivery::Asked => *delivery = Delivery::Arriving,
            Delivery::Arriving | Delivery::Arrived(_) | Delivery::Refused(_) => return Err(Unwanted::Here),
        }
        Ok(Arriving { all: Arc::clone(self), id: id.clone(), node: node.clone() })
    }

    /// Says how a node's part stands now, if its collection is still open.
    fn settle(&self, id: &CollectionId, node: &NodeId, delivery: Delivery) -> Result<(), Unwanted> {
        {
            let mut held = self.held();
            let open = held.as_mut().filter(|open| open.collect.id == *id).ok_or(Unwanted::Closed)?;
            open.nodes.insert(node.clone(), delivery);
        }
        self.changed.send_modify(|count| *count += 1);
        Ok(())
    }

    fn held(&self) -> MutexGuard<'_, Option<Open>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A collection for as long as somebody waits for it: dropped, it is closed, and what has arrived is gone.
pub(crate) struct OpenCollection {
    all: Arc<Collections>,
    id: CollectionId,
}

impl OpenCollection {
    /// Fires whenever a part has arrived or is refused. Subscribe first, look second, then wait.
    pub(crate) fn changed(&self) -> watch::Receiver<u64> {
        self.all.changed.subscribe()
    }

    /// How each node's part stands.
    pub(crate) fn look<T>(&self, look: impl FnOnce(&BTreeMap<NodeId, Delivery>) -> T) -> T {
        let held = self.all.held();
        match held.as_ref() {
            Some(open) => look(&open.nodes),
            None => look(&BTreeMap::new()),
        }
    }

    /// Closes it, and gives what has arrived.
    pub(crate) fn close(self) -> BTreeMap<NodeId, Delivery> {
        self.take()
    }

    fn take(&self) -> BTreeMap<NodeId, Delivery> {
        self.all.held().take_if(|open| open.collect.id == self.id).map(|open| open.nodes).unwrap_or_default()
    }
}

impl Drop for OpenCollection {
    fn drop(&mut self) {
        self.take();
    }
}

/// A part on its way; dropped before it has arrived, its node is asked for it again.
pub(crate) struct Arriving {
    all: Arc<Collections>,
    id: CollectionId,
    node: NodeId,
}

impl Arriving {
    /// It is here.
    pub(crate) fn arrived(self, part: Part) -> Result<(), Unwanted> {
        self.all.settle(&self.id, &self.node, Delivery::Arrived(part))
    }

    /// It can't be taken.
    pub(crate) fn refused(self, why: &str) {
        // Where nobody waits any more nobody has to know.
        let _ = self.all.settle(&self.id, &self.node, Delivery::Refused(why.to_owned()));
    }
}

impl Drop for Arriving {
    fn drop(&mut self) {
        let mut held = self.all.held();
        let open = held.as_mut().filter(|open| open.collect.id == self.id);
        if let Some(delivery) = open.and_then(|open| open.nodes.get_mut(&self.node))
            && matches!(delivery, Delivery::Arriving)
        {
            *delivery = Delivery::Asked;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn collect(id: &str) -> Collect {
        Collect { id: id.into(), since_unix: 0 }
    }

    fn part() -> Part {
        Part { file: tempfile::tempfile().unwrap(), bytes: 0 }
    }

    fn node(name: &str) -> NodeId {
        NodeId::from(name)
    }

    #[test]
    fn a_node_is_asked_until_its_part_is_here() {
        let all = Arc::new(Collections::default());
        assert_eq!(all.wanted(&node("a"), "none"), None, "nothing is open");
        let open = all.open(collect("1"), [node("a"), node("b")]).unwrap();
        assert!(all.open(collect("2"), [node("a")]).is_none(), "one at a time");
        assert_eq!(all.wanted(&node("a"), "none"), Some(collect("1")));
        assert_eq!(all.wanted(&node("a"), "none"), Some(collect("1")), "the answer may have been lost");
        assert_eq!(all.wanted(&node("a"), "1"), None, "it is at it");
        assert_eq!(all.wanted(&node("c"), "none"), None, "not asked");

        let arriving = all.receive(&"1".into(), &node("a")).unwrap();
        assert_eq!(all.wanted(&node("a"), "none"), None);
        assert_eq!(all.receive(&"1".into(), &node("a")).err(), Some(Unwanted::Here));
        drop(arriving);
        assert_eq!(all.wanted(&node("a"), "none"), Some(collect("1")), "it broke off");

        let mut changed = open.changed();
        all.receive(&"1".into(), &node("a")).unwrap().arrived(part()).unwrap();
        assert!(changed.has_changed().unwrap());
        changed.mark_unchanged();
        all.receive(&"1".into(), &node("b")).unwrap().refused("too large");
        assert!(changed.has_changed().unwrap());
        assert!(open.look(|nodes| nodes.values().all(Delivery::is_settled)));
        let got = open.close();
        assert!(matches!(&got[&node("a")], Delivery::Arrived(_)));
        assert!(matches!(&got[&node("b")], Delivery::Refused(why) if why == "too large"));
    }

    #[test]
    fn what_nobody_waits_for_is_closed() {
        let all = Arc::new(Collections::default());
        let open = all.open(collect("1"), [node("a")]).unwrap();
        assert_eq!(all.receive(&"2".into(), &node("a")).err(), Some(Unwanted::Closed));
        assert_eq!(all.receive(&"1".into(), &node("b")).err(), Some(Unwanted::NotAsked));
        let late = all.receive(&"1".into(), &node("a")).unwrap();
        drop(open);
        let next = all.open(collect("2"), [node("a")]).unwrap();
        assert_eq!(late.arrived(part()), Err(Unwanted::Closed), "another one's part");
        assert!(next.look(|nodes| matches!(nodes[&node("a")], Delivery::Unasked)));
    }
}
