//! The story: what the operator types, in order, each again until it has worked, and who serves meanwhile.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::io::Write;
use std::panic::resume_unwind;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use flate2::Compression;
use flate2::write::GzEncoder;
use futures_util::stream;
use jiff::Timestamp;
use requeen_protocol::Digest;
use tokio::time::{Instant, sleep};

use super::super::kind::Kind;
use super::life::{self, Event, Killed, POINTS, Points};
use super::swarm::{Swarm, TO};
use crate::api::{DeployArgs, PolicyChoice, StatusView, UndeployArgs, UpgradeArgs};
use crate::deploy::Deployer;
use crate::ops::{Ops, TAKE_OVER_AFTER};
use crate::plan::model::{Outcome, Phase, Step};
use crate::server::store;

/// The pause before a command is typed again.
const AGAIN: Duration = Duration::from_millis(500);

/// How long a container that died takes to be started again.
const RESTART: Duration = Duration::from_secs(1);

/// No story takes longer.
const LONGEST: Duration = Duration::from_secs(3600);

/// Which nodes are upgraded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scope {
    Everything,
    OneWorker,
    /// Its engine is down for longer than the owner may go without a sign of life in the record.
    OneSlowWorker,
}

/// What follows a kill.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum After {
    /// The container is started again at once; no other coordinator serves.
    StartedAgain,
    /// A standby on another manager goes on, and the operator with it; the first one is back soon after that.
    Replaced,
    /// The same, but so late that leases have run out.
    ReplacedLate,
}

impl After {
    /// How long a rollout's owner may be silent.
    fn patience(self) -> Duration {
        match self {
            // Longer than a living owner goes without a sign of life, which is 10 s.
            After::StartedAgain | After::Replaced => Duration::from_secs(15),
            After::ReplacedLate => TAKE_OVER_AFTER,
        }
    }

    fn has_standby(self) -> bool {
        match self {
            After::StartedAgain => false,
            After::Replaced | After::ReplacedLate => true,
        }
    }
}

/// What a story was like.
pub(super) struct Told {
    /// How many coordinators were killed in it.
    pub(super) killed: usize,
    /// How often the first coordinator began each effect.
    pub(super) passed: BTreeMap<Kind, usize>,
    /// How often the second one took the rollout over.
    pub(super) taken_over: usize,
    /// How many writes the raft store refused.
    pub(super) refused: u32,
}

/// What the operator wants next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Chapter {
    Deploy,
    DeployAnother,
    Upload,
    Upgrade,
    Undeploy,
    Over,
}

pub(super) struct Story {
    pub(super) swarm: Arc<Swarm>,
    scope: Scope,
    after: After,
    chapter: Mutex<Chapter>,
    /// The manager at which the operator sits.
    operator_at: Mutex<&'static str>,
    killed: Mutex<usize>,
}

thread_local! {
    /// When this thread's story began. Each test has its own thread.
    static BEGAN: Cell<Option<Instant>> = const { Cell::new(None) };
}

/// The simulated time.
pub(super) fn now() -> Timestamp {
    let since = BEGAN.get().map_or(Duration::ZERO, |began| Instant::now() - began);
    Timestamp::from_second(1_800_000_000).and_then(|began| began.checked_add(since)).expect("a time")
}

/// Tells the story with these events.
pub(super) fn tell(scope: Scope, events: &[Event], after: After) -> Told {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_all().start_paused(true).build().expect("a runtime");
    let told = runtime.block_on(async {
        BEGAN.set(Some(Instant::now()));
        let story = Arc::new(Story {
            swarm: Swarm::new(scope == Scope::OneSlowWorker),
            scope,
            after,
            chapter: Mutex::new(Chapter::Deploy),
            operator_at: Mutex::new("m1"),
            killed: Mutex::new(0),
        });
        let points = |who| {
            let event = events.iter().copied().find(|event| event.who == who);
            Points::new(event, Arc::clone(&story.swarm))
        };
        let (first, second) = (points("m1"), points("m2"));
        let served = async {
            tokio::join!(story.keep("m1", &first), async {
                if after.has_standby() {
                    story.keep("m2", &second).await;
                }
            })
        };
        let told = tokio::select! {
            _ = served => Told {
                killed: *story.killed.lock().unwrap(),
                passed: first.begun(),
                taken_over: second.begun().get(&Kind::TakeOver).copied().unwrap_or_default(),
                refused: story.swarm.refused(),
            },
            never = story.swarm.lives() => match never {},
            () = sleep(LONGEST) => panic!("{events:?} {after:?}: stuck in {:?}\n{}", story.chapter(), story.swarm.words()),
        };
        story.swarm.check_end(scope == Scope::Everything);
        told
    });
    BEGAN.set(None);
    told
}

impl Story {
    pub(super) fn take_over_after(&self) -> Duration {
        self.after.patience()
    }

    fn chapter(&self) -> Chapter {
        *self.chapter.lock().unwrap()
    }

    /// Keeps a coordinator on the manager `me`, as the restart policy of its container does.
    async fn keep(self: &Arc<Self>, me: &'static str, points: &Arc<Points>) {
        while self.chapter() != Chapter::Over {
            self.swarm.until_up(me, true).await;
            let mut task = tokio::spawn(POINTS.scope(Arc::clone(points), life::serve(Arc::clone(self), me)));
            tokio::select! {
                ended = &mut task => match ended {
                    Ok(()) => {}
                    Err(error) => {
                        let panic = error.into_panic();
                        if !panic.is::<Killed>() {
                            resume_unwind(panic);
                        }
                        *self.killed.lock().unwrap() += 1;
                        self.after_kill(me).await;
                    }
                },
                // Its container ends with its engine.
                () = self.swarm.until_up(me, false) => {
                    task.abort();
                    let _ = task.await;
                }
            }
        }
    }

    async fn after_kill(&self, me: &'static str) {
        let mut away = RESTART;
        if self.after.has_standby() && me == "m1" {
            *self.operator_at.lock().unwrap() = "m2";
            away += self.after.patience() * 2;
        }
        let back = Instant::now() + away;
        while Instant::now() < back && self.chapter() != Chapter::Over {
            sleep(RESTART).await;
        }
    }

    /// What the operator types on the manager `me`, until all is done.
    pub(super) async fn told_by_operator(&self, me: &'static str, ops: &Ops, deployer: &Deployer, bundles: &Path) {
        while self.chapter() != Chapter::Over {
            if *self.operator_at.lock().unwrap() == me {
                let now = self.chapter();
                if let Some(next) = self.command(now, ops, deployer, bundles).await {
                    *self.chapter.lock().unwrap() = next;
                    continue;
                }
            }
            sleep(AGAIN).await;
        }
    }

    /// One command; gives the next chapter where it has worked.
    async fn command(&self, now: Chapter, ops: &Ops, deployer: &Deployer, bundles: &Path) -> Option<Chapter> {
        let image = |name: &str| DeployArgs { image: Some(name.to_owned()), print: false };
        match now {
            Chapter::Deploy => {
                deployer.deploy(&image("requeen:1")).await.ok()?;
                Some(Chapter::DeployAnother)
            }
            Chapter::DeployAnother => {
                deployer.deploy(&image("requeen:2")).await.ok()?;
                Some(Chapter::Upload)
            }
            Chapter::Upload => {
                upload(bundles).await?;
                Some(Chapter::Upgrade)
            }
            Chapter::Upgrade => {
                let status = ops.status().await.ok()?;
                match status.rollout.as_ref().map(|rollout| &rollout.phase) {
                    Some(Phase::Ended { aborted: false }) => {
                        self.check_done(&status);
                        Some(Chapter::Undeploy)
                    }
                    Some(Phase::Running) => None,
                    Some(other @ (Phase::Paused | Phase::Halted { .. } | Phase::Aborting | Phase::Ended { .. })) => {
                        panic!("the rollout is {other:?}")
                    }
                    None => {
                        // The operator may sit elsewhere now.
                        let bundle = upload(bundles).await?;
                        ops.start(self.args(bundle), 0).await.ok();
                        None
                    }
                }
            }
            Chapter::Undeploy => {
                let done = ops.undeploy(UndeployArgs { backups: true }).await.ok()?;
                assert!(done.troubles.is_empty(), "{:?}", done.troubles);
                Some(Chapter::Over)
            }
            Chapter::Over => None,
        }
    }

    fn args(&self, bundle: Digest) -> UpgradeArgs {
        UpgradeArgs {
            bundle,
            policy: PolicyChoice::Rolling,
            workers_at_once: 1,
            only: match self.scope {
                Scope::Everything => Vec::new(),
                Scope::OneWorker | Scope::OneSlowWorker => vec!["w1".to_owned()],
            },
            exclude: Vec::new(),
            manual: false,
            accept_control_plane_outage: false,
            allow_downgrade: false,
            start_timeout_secs: 60,
            stage_timeout_secs: 60,
            only_outdated: false,
            not_after: None,
            keep_raft_copy: false,
        }
    }

    fn check_done(&self, status: &StatusView) {
        for node in &status.nodes {
            let upgraded = matches!(&node.step, Some(Step::Done { outcome: Outcome::Upgraded { .. } }));
            let outside = self.scope != Scope::Everything && node.id != "w1" && node.step.is_none();
            assert!(upgraded || outside, "{} has ended as {:?}", node.id, node.step);
        }
    }
}

/// The operator's file, into the coordinator's folder.
async fn upload(bundles: &Path) -> Option<Digest> {
    let body = stream::iter([Ok(bundle().into())]);
    store::store(bundles, std::pin::pin!(body), None, None).await.ok().map(|stored| stored.bundle.digest)
}

/// The least that is a bundle.
pub(super) fn bundle() -> Vec<u8> {
    let mut dockerd = vec![0; 64];
    dockerd[..6].copy_from_slice(b"\x7fELF\x02\x01");
    dockerd[18] = 62;
    dockerd.extend(format!(r#"-X \"github.com/docker/docker/dockerversion.Version={TO}\" "#).into_bytes());
    let mut tar = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(dockerd.len() as u64);
    header.set_mode(0o755);
    tar.append_data(&mut header, "docker/dockerd", dockerd.as_slice()).unwrap();
    let mut gz = GzEncoder::new(Vec::new(), Compression::fast());
    gz.write_all(&tar.into_inner().unwrap()).unwrap();
    gz.finish().unwrap()
}
