//! One coordinator's life: what [`crate::server::serve`] starts, in one task, so that a kill ends all of it at once.

use std::collections::BTreeMap;
use std::panic::resume_unwind;
use std::sync::{Arc, Mutex, Once};
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::super::kind::{Kind, Side};
use super::story::{Story, now};
use super::swarm::Swarm;
use crate::deploy::Deployer;
use crate::drive;
use crate::hub::Hub;
use crate::ops::{Ops, World};
use crate::server::{SOCKET, operator, store};

/// What happens, and where.
#[derive(Clone, Copy, Debug)]
pub(super) struct Event {
    pub(super) what: What,
    /// The manager of the coordinator that it happens to.
    pub(super) who: &'static str,
    pub(super) kind: Kind,
    pub(super) side: Side,
    /// At which passing of that point, from 1.
    pub(super) nth: usize,
}

/// What happens to a coordinator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum What {
    /// It is killed.
    Killed,
    /// From there on the raft store takes no writes, for a while.
    NoWrites,
    /// From there on the managers have no leader, for a while.
    NoLeader,
}

/// How long a trouble of the managers lasts.
const TROUBLE: Duration = Duration::from_secs(30);

/// What a kill unwinds with. It is caught at the edge of the coordinator's task, when nothing of it is left.
pub(super) struct Killed;

/// The points that the coordinators of one manager come by.
pub(super) struct Points {
    event: Mutex<Option<Event>>,
    swarm: Arc<Swarm>,
    passed: Mutex<BTreeMap<(Kind, Side), usize>>,
}

tokio::task_local! {
    /// Whose points are passed: a test's other tasks, and other tests, pass nobody's.
    pub(super) static POINTS: Arc<Points>;
}

impl Points {
    pub(super) fn new(event: Option<Event>, swarm: Arc<Swarm>) -> Arc<Self> {
        static ARMED: Once = Once::new();
        ARMED.call_once(|| {
            for kind in Kind::ALL {
                for side in [Side::Before, Side::After] {
                    let pass = move || {
                        if POINTS.try_with(|points| points.pass(*kind, side)) == Ok(Some(What::Killed)) {
                            resume_unwind(Box::new(Killed));
                        }
                    };
                    fail::cfg_callback(kind.point(side), pass).expect("a fail point takes a callback");
                }
            }
        });
        Arc::new(Self { event: Mutex::new(event), swarm, passed: Mutex::default() })
    }

    /// Counts, and says what happens now.
    fn pass(&self, kind: Kind, side: Side) -> Option<What> {
        let mut passed = self.passed.lock().unwrap();
        let times = passed.entry((kind, side)).or_default();
        *times += 1;
        let now = |event: &mut Event| (event.kind, event.side, event.nth) == (kind, side, *times);
        let what = self.event.lock().unwrap().take_if(now)?.what;
        match what {
            What::Killed => {}
            What::NoWrites => self.swarm.refuses_writes(TROUBLE),
            What::NoLeader => self.swarm.loses_leader(TROUBLE),
        }
        Some(what)
    }

    /// How often each effect was begun.
    pub(super) fn begun(&self) -> BTreeMap<Kind, usize> {
        let passed = self.passed.lock().unwrap();
        let begun = passed.iter().filter(|((_, side), _)| *side == Side::Before);
        begun.map(|((kind, _), times)| (*kind, *times)).collect()
    }
}

/// Serves on the manager `me` until the story is over.
pub(super) async fn serve(story: Arc<Story>, me: &'static str) {
    let dir = story.swarm.data_dir(me);
    let bundles = dir.join("bundles");
    store::prepare(&bundles).await.unwrap();
    let _console = operator::listen(&dir.join(SOCKET)).await.unwrap();
    let hub = Arc::new(Hub::new(Arc::new(|| tokio::time::Instant::now().into_std())));
    story.swarm.meets(me, &hub);
    let engine = Arc::new(story.swarm.engine(me));
    let world = World { now, ..World::real() };
    let mut ops = Ops::in_world(Arc::clone(&hub), Arc::clone(&engine), dir, world);
    ops.take_over_after = story.take_over_after();
    let ops = Arc::new(ops);
    let deployer = Deployer::new(engine, hub, requeen_protocol::DEFAULT_PORT, "1", "/nowhere".into());
    tokio::select! {
        () = drive::run(Arc::clone(&ops), CancellationToken::new()) => {}
        () = story.told_by_operator(me, &ops, &deployer, &bundles) => {}
    }
}
