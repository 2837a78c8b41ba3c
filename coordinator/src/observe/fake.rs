//! An engine for tests: the part of the API that the coordinator uses, with swarmkit's rules for
//! versions, over a real unix socket.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};

use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde_json::{Value, json};
use tokio::net::UnixListener;

use super::Engine;

/// What the engine holds.
#[derive(Default)]
pub(crate) struct World {
    pub(crate) nodes: BTreeMap<String, Value>,
    pub(crate) configs: BTreeMap<String, Value>,
    pub(crate) services: BTreeMap<String, Value>,
    pub(crate) tasks: Vec<Value>,
    pub(crate) index: u64,
    /// Writes that are to fail with this status and text, last first.
    pub(crate) failing: Vec<(u16, String)>,
    /// How often somebody else writes a config just before it is written.
    pub(crate) rivals: u32,
    /// Every availability that was set, in order.
    pub(crate) availabilities: Vec<(String, String)>,
    /// Whether no write gets into the raft store, though everything can be read.
    pub(crate) read_only: bool,
    /// How many writes were refused for that.
    pub(crate) refused: u32,
    /// Whether every list fails for want of a leader.
    pub(crate) leaderless: bool,
}

pub(crate) const NO_LEADER: &str = "The swarm does not have a leader. It's possible that too few managers are online.";

/// What a write meets while the raft store takes none.
const NO_STORE: &str = "rpc error: code = DeadlineExceeded desc = context deadline exceeded";

type Shared = Arc<Mutex<World>>;

/// A running fake; its folder goes with it.
pub(crate) struct Fake {
    pub(crate) dir: tempfile::TempDir,
    shared: Shared,
    servers: Mutex<Vec<tokio::task::JoinHandle<()>>>,
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.servers.lock().unwrap().iter().for_each(tokio::task::JoinHandle::abort);
    }
}

impl Fake {
    /// A swarm of `managers` and `workers`, of which the first manager leads and answers.
    pub(crate) fn start(managers: &[&str], workers: &[&str]) -> Self {
        let mut world = World { index: 100, ..World::default() };
        for (n, name) in managers.iter().enumerate() {
            world.nodes.insert((*name).to_owned(), node(name, "manager", Some(n == 0)));
        }
        for name in workers {
            world.nodes.insert((*name).to_owned(), node(name, "worker", None));
        }
        let dir = tempfile::tempdir().unwrap();
        let shared: Shared = Arc::new(Mutex::new(world));
        let me = managers.first().unwrap();
        let servers = Mutex::new(vec![serve(&dir.path().join("docker.sock"), &shared, me)]);
        Self { dir, shared, servers }
    }

    /// The engine of another manager of the same swarm.
    pub(crate) fn engine_of(&self, me: &str) -> Engine {
        let socket = self.dir.path().join(format!("{me}.sock"));
        self.servers.lock().unwrap().push(serve(&socket, &self.shared, me));
        Engine::new(socket)
    }

    pub(crate) fn world(&self) -> MutexGuard<'_, World> {
        self.shared.lock().unwrap()
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.dir.path().join("docker.sock")
    }

    pub(crate) fn engine(&self) -> Engine {
        Engine::new(self.socket())
    }

    pub(crate) fn availability(&self, node: &str) -> String {
        self.world().nodes[node]["Spec"]["Availability"].as_str().unwrap().to_owned()
    }
}

/// Answers on `socket` as the engine of `me`.
fn serve(socket: &std::path::Path, shared: &Shared, me: &str) -> tokio::task::JoinHandle<()> {
    let listener = UnixListener::bind(socket).unwrap();
    let info = json!({"Swarm": {"NodeID": me, "LocalNodeState": "active", "ControlAvailable": true}});
    let api = Router::new()
        .route("/info", get(async || Json(info)))
        .route("/nodes", get(nodes))
        .route("/tasks", get(tasks))
        .route("/services", get(services))
        .route("/services/create", post(create_service))
        .route("/services/{id}", axum::routing::delete(delete_service))
        .route("/services/{id}/update", post(update_service))
        .route("/nodes/{id}", get(inspect_node))
        .route("/nodes/{id}/update", post(update_node))
        .route("/configs", get(configs))
        .route("/configs/create", post(create_config))
        .route("/configs/{id}", axum::routing::delete(delete_config))
        .route("/configs/{id}/update", post(update_config))
        .with_state(Arc::clone(shared));
    let app = Router::new()
        .route("/version", get(async || Json(json!({"ApiVersion": "1.41"}))))
        .nest("/v1.41", api.clone())
        .merge(api);
    tokio::spawn(async move { axum::serve(listener, app).await.unwrap() })
}

fn node(name: &str, role: &str, leader: Option<bool>) -> Value {
    let mut node = json!({
        "ID": name, "Version": {"Index": 10},
        "Spec": {"Role": role, "Availability": "active", "Labels": {"zone": name}, "Name": format!("the-{name}")},
        "Description": {"Hostname": format!("host-{name}"), "Engine": {"EngineVersion": "20.10.24"}},
        "Status": {"State": "ready", "Addr": "10.0.0.1"},
    });
    if let Some(leader) = leader {
        node["ManagerStatus"] = json!({"Leader": leader, "Reachability": "reachable", "Addr": "10.0.0.1:2377"});
    }
    node
}

fn fail(status: u16, text: &str) -> Response {
    (StatusCode::from_u16(status).unwrap(), Json(json!({"message": text}))).into_response()
}

impl World {
    fn list(&self, all: &BTreeMap<String, Value>) -> Response {
        if self.leaderless {
            return fail(503, NO_LEADER);
        }
        Json(all.values().cloned().collect::<Vec<_>>()).into_response()
    }

    /// What a write has to get past.
    fn obstacle(&mut self) -> Option<Response> {
        if self.leaderless {
            return Some(fail(503, NO_LEADER));
        }
        if self.read_only {
            self.refused += 1;
            // Both are heard while a manager restarts.
            let (status, text) = if self.refused.is_multiple_of(2) { (503, NO_LEADER) } else { (500, NO_STORE) };
            return Some(fail(status, text));
        }
        self.failing.pop().map(|(status, text)| fail(status, &text))
    }
}

type At = State<Shared>;

async fn nodes(State(at): At) -> Response {
    let world = at.lock().unwrap();
    world.list(&world.nodes)
}

async fn configs(State(at): At) -> Response {
    let world = at.lock().unwrap();
    world.list(&world.configs)
}

async fn services(State(at): At) -> Response {
    let world = at.lock().unwrap();
    world.list(&world.services)
}

async fn tasks(State(at): At) -> Response {
    let world = at.lock().unwrap();
    if world.leaderless { fail(503, NO_LEADER) } else { Json(world.tasks.clone()).into_response() }
}

async fn create_service(State(at): At, Json(spec): Json<Value>) -> Response {
    let mut world = at.lock().unwrap();
    if let Some(refused) = world.obstacle() {
        return refused;
    }
    world.index += 1;
    let (name, index) = (spec["Name"].as_str().unwrap().to_owned(), world.index);
    if world.services.contains_key(&name) {
        return fail(409, "rpc error: code = AlreadyExists desc = name conflicts with an existing object");
    }
    world.services.insert(name.clone(), json!({"ID": name, "Version": {"Index": index}, "Spec": spec}));
    (StatusCode::CREATED, Json(json!({"ID": name}))).into_response()
}

async fn update_service(
    State(at): At,
    Path(id): Path<String>,
    Query(query): Query<BTreeMap<String, String>>,
    Json(spec): Json<Value>,
) -> Response {
    let mut world = at.lock().unwrap();
    if let Some(refused) = world.obstacle() {
        return refused;
    }
    world.index += 1;
    let index = world.index;
    let service = world.services.get_mut(&id).unwrap();
    if service["Version"]["Index"].as_u64() != query["version"].parse().ok() {
        return fail(500, "rpc error: code = Unknown desc = update out of sequence");
    }
    service["Spec"] = spec;
    service["Version"]["Index"] = index.into();
    Json(json!({})).into_response()
}

async fn delete_service(State(at): At, Path(id): Path<String>) -> Response {
    let mut world = at.lock().unwrap();
    if let Some(refused) = world.obstacle() {
        return refused;
    }
    match world.services.remove(&id) {
        Some(_) => StatusCode::OK.into_response(),
        None => fail(404, "service not found"),
    }
}

async fn inspect_node(State(at): At, Path(id): Path<String>) -> Response {
    match at.lock().unwrap().nodes.get(&id) {
        Some(node) => Json(node.clone()).into_response(),
        None => fail(404, "node not found"),
    }
}

async fn update_node(
    State(at): At,
    Path(id): Path<String>,
    Query(query): Query<BTreeMap<String, u64>>,
    Json(spec): Json<Value>,
) -> Response {
    let mut world = at.lock().unwrap();
    if let Some(refused) = world.obstacle() {
        return refused;
    }
    world.index += 1;
    let index = world.index;
    let availability = spec["Availability"].as_str().unwrap().to_owned();
    let node = world.nodes.get_mut(&id).unwrap();
    if node["Version"]["Index"] != query["version"] {
        return fail(500, "rpc error: code = Unknown desc = update out of sequence");
    }
    node["Spec"] = spec;
    node["Version"]["Index"] = index.into();
    world.availabilities.push((id, availability));
    Json(json!({})).into_response()
}

async fn create_config(State(at): At, Json(spec): Json<Value>) -> Response {
    let mut world = at.lock().unwrap();
    if let Some(refused) = world.obstacle() {
        return refused;
    }
    world.index += 1;
    let index = world.index;
    let name = spec["Name"].as_str().unwrap().to_owned();
    if world.configs.contains_key(&name) {
        return fail(409, "rpc error: code = AlreadyExists desc = config already exists");
    }
    world.configs.insert(name.clone(), json!({"ID": name, "Version": {"Index": index}, "Spec": spec}));
    (StatusCode::CREATED, Json(json!({"ID": name}))).into_response()
}

async fn delete_config(State(at): At, Path(id): Path<String>) -> Response {
    let mut world = at.lock().unwrap();
    if let Some(refused) = world.obstacle() {
        return refused;
    }
    match world.configs.remove(&id) {
        Some(_) => StatusCode::NO_CONTENT.into_response(),
        None => fail(404, "config not found"),
    }
}

async fn update_config(
    State(at): At,
    Path(id): Path<String>,
    Query(query): Query<BTreeMap<String, u64>>,
    Json(spec): Json<Value>,
) -> Response {
    let mut world = at.lock().unwrap();
    if let Some(refused) = world.obstacle() {
        return refused;
    }
    world.index += 1;
    let index = world.index;
    let rival = world.rivals > 0;
    world.rivals = world.rivals.saturating_sub(1);
    let config = world.configs.get_mut(&id).unwrap();
    if rival {
        config["Version"]["Index"] = index.into();
    }
    if config["Version"]["Index"] != query["version"] {
        return fail(500, "rpc error: code = Unknown desc = update out of sequence");
    }
    if config["Spec"]["Name"] != spec["Name"] || config["Spec"]["Data"] != spec["Data"] {
        return fail(400, "rpc error: code = InvalidArgument desc = only updates to Labels are allowed");
    }
    config["Spec"] = spec;
    config["Version"]["Index"] = (index + 1).into();
    world.index = index + 1;
    StatusCode::OK.into_response()
}
