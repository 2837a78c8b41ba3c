//! How many connections the agents' port holds, and which one is closed when there are too many.
//!
//! Until its TLS handshake is done a connection is a stranger's. A stranger is never turned away for want of
//! room: it takes that of the one which has been there longest, first of the place that holds most. A handshake
//! takes milliseconds, so a node that comes is through long before its turn is up, whatever others do or leave.
//! From then on the connection counts for that node alone: no stranger closes it, and no other node.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use requeen_protocol::NodeId;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

/// How many connections there may be.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Strangers in all.
    pub(crate) strangers: usize,
    /// Strangers from one place.
    pub(crate) strangers_from_one: usize,
    /// Connections of one node.
    pub(crate) of_one_node: usize,
}

impl Limits {
    /// As it is outside tests.
    pub(crate) const USUAL: Self = Self {
        // After a restart of the coordinator all nodes come back at once, each from its own place: a thousand fit,
        // at some 20 KB each. Who wants to fill this needs 32 places.
        strangers: 1024,
        // A node opens three at a time at most. Nodes behind one address, if any, come within seconds of each other.
        strangers_from_one: 32,
        // The task's report, its download, the executor's report; and once more, while those that a pulled cable
        // has cut are not known to be dead.
        of_one_node: 8,
    };
}

/// See the module.
pub(crate) struct Doors {
    limits: Limits,
    held: Mutex<Held>,
}

/// Open connections by whose they are; of each the oldest first.
type Open<K> = BTreeMap<K, BTreeMap<u64, CancellationToken>>;

#[derive(Default)]
struct Held {
    /// The next connection's number: they grow, so that the smallest is the oldest.
    next: u64,
    strangers: Open<IpAddr>,
    nodes: Open<NodeId>,
}

/// A connection's room, given back when this is dropped.
pub(crate) struct Visitor {
    doors: Arc<Doors>,
    number: u64,
    who: Who,
    close: CancellationToken,
}

enum Who {
    Stranger(IpAddr),
    Node(NodeId),
}

impl Doors {
    /// Nobody is there yet.
    pub(crate) fn new(limits: Limits) -> Self {
        Self { limits, held: Mutex::default() }
    }

    /// Makes room for a new connection from `address`.
    pub(crate) fn knock(self: &Arc<Self>, address: IpAddr) -> Visitor {
        let place = place(address);
        let close = CancellationToken::new();
        let mut held = self.held();
        let number = held.next;
        held.next += 1;
        if count(&held.strangers, &place) >= self.limits.strangers_from_one {
            close_oldest(&mut held.strangers, &place);
        } else if held.strangers.values().map(BTreeMap::len).sum::<usize>() >= self.limits.strangers {
            held.close_a_stranger();
        }
        held.strangers.entry(place).or_default().insert(number, close.clone());
        drop(held);
        Visitor { doors: Arc::clone(self), number, who: Who::Stranger(place), close }
    }

    /// Closes a stranger's connection, if there is one: this process has run out of descriptors.
    pub(crate) fn shed(&self) {
        self.held().close_a_stranger();
    }

    /// How many strangers and how many connections of nodes there are.
    #[cfg(test)]
    pub(crate) fn count(&self) -> (usize, usize) {
        let held = self.held();
        (held.strangers.values().map(BTreeMap::len).sum(), held.nodes.values().map(BTreeMap::len).sum())
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        // Nothing here can panic half-way through a change.
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Held {
    /// Closes the oldest connection of the place that holds most.
    fn close_a_stranger(&mut self) {
        let age = |open: &BTreeMap<u64, CancellationToken>| open.keys().next().copied();
        let first = self.strangers.iter().max_by_key(|(_, open)| (open.len(), Reverse(age(open))));
        if let Some(place) = first.map(|(place, _)| *place) {
            close_oldest(&mut self.strangers, &place);
        }
    }
}

impl Visitor {
    /// From now on this is a connection of `node`, whose oldest is closed if it has too many.
    pub(crate) fn admit(&mut self, node: &NodeId) {
        let Who::Stranger(place) = self.who else { return };
        let mut held = self.doors.held();
        // One that was told to close stays told.
        if !leave(&mut held.strangers, &place, self.number) {
            return;
        }
        if count(&held.nodes, node) >= self.doors.limits.of_one_node {
            close_oldest(&mut held.nodes, node);
        }
        held.nodes.entry(node.clone()).or_default().insert(self.number, self.close.clone());
        drop(held);
        self.who = Who::Node(node.clone());
    }

    /// Waits until the connection has to be closed to make room.
    pub(crate) fn must_go(&self) -> WaitForCancellationFutureOwned {
        self.close.clone().cancelled_owned()
    }

    /// Why it has to.
    pub(crate) fn why(&self) -> String {
        match &self.who {
            Who::Stranger(_) => "others came while it had not shown a certificate".to_owned(),
            Who::Node(node) => format!("node {node} has opened newer connections"),
        }
    }
}

impl Drop for Visitor {
    fn drop(&mut self) {
        let mut held = self.doors.held();
        match &self.who {
            Who::Stranger(place) => leave(&mut held.strangers, place, self.number),
            Who::Node(node) => leave(&mut held.nodes, node, self.number),
        };
    }
}

/// What counts as one place: an IPv4 address, or the 64 bits of an IPv6 address that name a network, since whoever
/// has one address there can take any other.
pub(crate) fn place(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => IpAddr::V4(address),
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX))),
    }
}

fn count<K: Ord>(open: &Open<K>, whose: &K) -> usize {
    open.get(whose).map_or(0, BTreeMap::len)
}

fn close_oldest<K: Ord>(open: &mut Open<K>, whose: &K) {
    let oldest = open.get(whose).and_then(|theirs| theirs.first_key_value());
    if let Some((number, close)) = oldest.map(|(number, close)| (*number, close.clone())) {
        leave(open, whose, number);
        close.cancel();
    }
}

/// Takes a connection out; whether it was still there.
fn leave<K: Ord>(open: &mut Open<K>, whose: &K, number: u64) -> bool {
    let Some(theirs) = open.get_mut(whose) else { return false };
    let there = theirs.remove(&number).is_some();
    if theirs.is_empty() {
        open.remove(whose);
    }
    there
}

#[cfg(test)]
mod tests {
    use super::*;

    fn doors(strangers: usize, strangers_from_one: usize, of_one_node: usize) -> Arc<Doors> {
        Arc::new(Doors::new(Limits { strangers, strangers_from_one, of_one_node }))
    }

    fn at(last: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, last])
    }

    fn told(visitors: &[Visitor]) -> Vec<bool> {
        visitors.iter().map(|visitor| visitor.close.is_cancelled()).collect()
    }

    #[test]
    fn of_one_place_the_oldest_goes() {
        let doors = doors(10, 2, 1);
        let visitors: Vec<_> = [1, 2, 1, 1].map(|last| doors.knock(at(last))).into();
        assert_eq!(told(&visitors), [true, false, false, false]);
        assert_eq!(doors.count(), (3, 0));
        drop(visitors);
        assert_eq!(doors.count(), (0, 0));
        assert!(doors.held().strangers.is_empty(), "no place is remembered");
    }

    #[test]
    fn in_all_the_oldest_of_the_place_that_holds_most_goes() {
        let doors = doors(4, 3, 1);
        let mut visitors: Vec<_> = [1, 2, 2, 3].map(|last| doors.knock(at(last))).into();
        visitors.push(doors.knock(at(4)));
        assert_eq!(told(&visitors), [false, true, false, false, false]);
        // Now each place holds one.
        visitors.push(doors.knock(at(5)));
        assert_eq!(told(&visitors), [true, true, false, false, false, false]);
        doors.shed();
        assert_eq!(told(&visitors), [true, true, true, false, false, false]);
        assert_eq!(doors.count(), (3, 0));
    }

    #[test]
    fn a_node_is_closed_by_its_own_connections_only() {
        let doors = doors(2, 2, 2);
        let (one, two) = (NodeId::from("n1"), NodeId::from("n2"));
        let admitted = |node| {
            let mut visitor = doors.knock(at(1));
            visitor.admit(node);
            visitor
        };
        let nodes: Vec<_> = [&one, &two, &one].map(admitted).into();
        let strangers: Vec<_> = (0..9).map(|last| doors.knock(at(last))).collect();
        assert_eq!(told(&nodes), [false; 3]);
        assert_eq!(doors.count(), (2, 3));
        doors.shed();
        doors.shed();
        doors.shed();
        assert_eq!(doors.count(), (0, 3));
        let newer = admitted(&one);
        assert_eq!(told(&nodes), [true, false, false]);
        assert!(!newer.close.is_cancelled());
        assert!(nodes[0].why().contains("n1"), "{}", nodes[0].why());
        assert!(strangers[0].why().contains("certificate"), "{}", strangers[0].why());
        drop((nodes, newer));
        assert_eq!(doors.count(), (0, 0));
    }

    #[test]
    fn who_was_told_to_close_is_not_admitted() {
        let doors = doors(1, 1, 1);
        let mut late = doors.knock(at(1));
        let newer = doors.knock(at(2));
        late.admit(&NodeId::from("n1"));
        assert_eq!((late.close.is_cancelled(), doors.count()), (true, (1, 0)));
        drop((late, newer));
        assert_eq!(doors.count(), (0, 0));
    }

    #[test]
    fn places_are_addresses_or_networks() {
        let parsed = |text: &str| place(text.parse().unwrap());
        assert_eq!(parsed("10.0.0.1"), parsed("::ffff:10.0.0.1"));
        assert_ne!(parsed("10.0.0.1"), parsed("10.0.0.2"));
        assert_eq!(parsed("fd00:1:2:3::1"), parsed("fd00:1:2:3:ffff::2"));
        assert_ne!(parsed("fd00:1:2:3::1"), parsed("fd00:1:2:4::1"));
    }
}
