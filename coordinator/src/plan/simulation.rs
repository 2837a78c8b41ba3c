//! A swarm that exists only in memory, driven through whole rollouts in random order.
//!
//! Real swarms are in the end-to-end tests; this one exists for interleavings that no lab can produce in
//! number: every agent, task and raft write may be late, and engines fail. The invariants are checked after
//! every single event. Here is what other tests of the planner are made of too; [`world`] has what happens, [`hosts`] what
//! agents and swarm do, [`checks`] what must hold at every instant, and [`properties`] how whole rollouts end.

mod checks;
mod hosts;
mod properties;
mod world;

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use requeen_protocol::{
    BundleRef, Digest, EngineFacts, NodeId, NodeState, Preflight, Report, RolloutId, Speaker, Target,
};

use super::model::{
    AgentView, Availability, Entry, ManagerPolicy, NodeView, Owner, Phase, Policy, Request, Role, Rollout, SCHEMA, Step,
};

pub(crate) fn node(name: &str, role: Role) -> NodeView {
    NodeView {
        id: NodeId(format!("id-{name}")),
        hostname: name.to_owned(),
        role,
        availability: Availability::Active,
        ready: true,
        leader: name == "m1",
        reachable: role == Role::Manager,
        engine_version: "20.10.24".to_owned(),
        addr: String::new(),
        index: 1,
    }
}

pub(crate) fn agent(view: &NodeView, state: NodeState) -> AgentView {
    AgentView {
        report: Report {
            node: view.id.clone(),
            agent_version: "0".to_owned(),
            speaker: Speaker::Task,
            boot_id: "boot".to_owned(),
            engine: Some(EngineFacts {
                version: view.engine_version.clone(),
                api_version: "1.41".to_owned(),
                started_us: 1,
                files: BTreeMap::new(),
            }),
            installed: None,
            state,
            seen: None,
            memo: None,
            unreached: Vec::new(),
            troubles: Vec::new(),
        },
        silent_secs: 0,
        state_secs: 0,
    }
}

pub(crate) fn staged(rollout: &RolloutId) -> NodeState {
    NodeState::Staged {
        rollout: rollout.clone(),
        preflight: Preflight {
            from: "20.10.24".to_owned(),
            to: "26.1.5".to_owned(),
            set: digest(),
            changes: vec![requeen_protocol::EngineFile::Dockerd],
            standalone: Vec::new(),
            containers: Vec::new(),
            containers_more: 0,
            raft_copy_bytes: None,
            notes: Vec::new(),
        },
    }
}

pub(crate) fn digest() -> Digest {
    Digest::from_hex(&"0".repeat(64)).expect("a digest")
}

pub(crate) fn rollout(nodes: &[NodeView], policy: Policy) -> Rollout {
    let id = RolloutId("r1".to_owned());
    Rollout {
        request: Request {
            schema: SCHEMA,
            id,
            target: Target::Bundle(BundleRef {
                digest: digest(),
                size: 1,
                version: "26.1.5".to_owned(),
                arch: "x86_64".to_owned(),
                files: BTreeMap::new(),
                unpacked: 1,
            }),
            policy,
            started_by_uid: 0,
            started_at: Timestamp::UNIX_EPOCH,
            short_services: Vec::new(),
            scope_all: true,
            excluded: BTreeSet::new(),
        },
        phase: Phase::Running,
        owner: Owner { node: nodes[0].id.clone(), epoch: 1, renewed: Timestamp::UNIX_EPOCH, elapsed_ms: None },
        nodes: nodes
            .iter()
            .map(|view| {
                let entry = Entry {
                    hostname: view.hostname.clone(),
                    role: view.role,
                    from: view.engine_version.clone(),
                    joined: false,
                    step: Step::Waiting { by_hand: false, forced: false },
                    times: Vec::new(),
                    troubles: Vec::new(),
                };
                (view.id.clone(), entry)
            })
            .collect(),
        limit_lifted: false,
    }
}

pub(crate) fn policy(managers: ManagerPolicy, workers_at_once: u32) -> Policy {
    Policy {
        managers,
        workers_at_once,
        manual: false,
        accept_control_plane_outage: false,
        allow_downgrade: false,
        start_timeout_secs: 120,
        join_timeout_secs: 120,
        not_after: None,
        keep_raft_copy: false,
    }
}
