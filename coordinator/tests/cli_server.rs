//! The command line against a server that plays a script.

mod common;

use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, Mutex};

use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::{Json, Router};
use common::{PROGRAM, described, tarball};
use coordinator::api::{Failure, FailureKind, NodeStatus, RolloutView, Started, StatusView, StoredBundle};
use coordinator::plan::model::{Availability, Outcome, Phase, Role, Step};
use requeen_protocol::{BundleRef, Digest, RolloutId};
use serde_json::json;
use tempfile::TempDir;
use tokio::net::UnixListener;

/// What the server answers, and what it was asked.
#[derive(Default)]
struct Script {
    /// Answer to everything but `/bundle` and `/status`.
    answer: Option<Result<serde_json::Value, Failure>>,
    /// Answers to `/status`, the last one again and again.
    statuses: Vec<StatusView>,
    /// Method, path and body (its length, for a bundle) of each request but `/status`.
    asked: Vec<String>,
}

type Shared = Arc<Mutex<Script>>;

async fn play(State(script): State<Shared>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    if parts.headers.get("requeen-version").is_none() {
        return StatusCode::BAD_REQUEST.into_response();
    }
    let body = axum::body::to_bytes(body, 1 << 20).await.unwrap();
    let mut script = script.lock().unwrap();
    if parts.uri.path() == "/status" {
        let status = script.statuses[0].clone();
        if script.statuses.len() > 1 {
            script.statuses.remove(0);
        }
        return Json(status).into_response();
    }
    if parts.uri.path() == "/bundle" {
        script.asked.push(format!("{} {} {} bytes", parts.method, parts.uri, body.len()));
        return Json(stored()).into_response();
    }
    script.asked.push(format!("{} {} {}", parts.method, parts.uri, String::from_utf8_lossy(&body)));
    match script.answer.clone().unwrap() {
        Ok(value) => Json(value).into_response(),
        Err(failure) => (StatusCode::CONFLICT, Json(failure)).into_response(),
    }
}

/// A server in a folder of its own.
struct Server {
    dir: TempDir,
    script: Shared,
}

impl Server {
    fn new(script: Script) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let script = Arc::new(Mutex::new(script));
        let router = Router::new().fallback(play).with_state(Arc::clone(&script));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let listener = {
            let _guard = runtime.enter();
            UnixListener::bind(dir.path().join("s")).unwrap()
        };
        // It ends with the test's process.
        std::thread::spawn(move || runtime.block_on(async { axum::serve(listener, router).await }));
        Self { dir, script }
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("s")
    }

    fn run(&self, args: &[&str], stdin: Stdio) -> Output {
        let mut command = Command::new(PROGRAM);
        command.args(args).env_clear().env("REQUEEN_SOCKET", self.socket()).stdin(stdin).output().unwrap()
    }

    fn says(&self, args: &[&str]) -> String {
        described(&self.run(args, Stdio::null()))
    }

    fn bundle(&self) -> PathBuf {
        let path = self.dir.path().join("docker.tgz");
        std::fs::write(&path, tarball(&[("docker/dockerd", &std::fs::read("/proc/self/exe").unwrap()[..4096])]))
            .unwrap();
        path
    }

    fn asked(&self) -> Vec<String> {
        self.script.lock().unwrap().asked.clone()
    }
}

fn digest() -> Digest {
    Digest::from_hex(&"a".repeat(64)).unwrap()
}

fn stored() -> StoredBundle {
    let bundle = BundleRef {
        digest: digest(),
        size: 1,
        version: "26.1.5".into(),
        arch: "x86_64".into(),
        files: [].into(),
        unpacked: 1,
    };
    StoredBundle { bundle, ignored: vec!["docker/README".into()] }
}

fn node(hostname: &str, role: Role, step: Step, times: &[(&str, u64)]) -> NodeStatus {
    NodeStatus {
        id: format!("id-{hostname}"),
        hostname: hostname.into(),
        role,
        leader: false,
        availability: Availability::Active,
        ready: true,
        engine: "26.1.5".into(),
        step: Some(step),
        times: times.iter().map(|(name, ms)| ((*name).into(), *ms)).collect(),
        since_ms: Some(1),
        agent: None,
        silent_secs: Some(0),
        waiting: None,
        why: None,
    }
}

fn status(phase: Phase, elapsed_ms: u64, nodes: Vec<NodeStatus>) -> StatusView {
    StatusView {
        server_version: env!("CARGO_PKG_VERSION").into(),
        server_node: "m1".into(),
        has_leader: true,
        rollout: Some(RolloutView {
            id: RolloutId("r1".into()),
            to: "26.1.5".into(),
            phase,
            owner: "m1".into(),
            started_at: "2026-11-21T12:00:00Z".into(),
            elapsed_ms,
        }),
        without_record: Vec::new(),
        nodes,
    }
}

const WAITING: Step = Step::Waiting { by_hand: false, forced: false };

fn upgraded(engine_down_ms: u64) -> Step {
    Step::Done { outcome: Outcome::Upgraded { engine_down_ms } }
}

fn started() -> Option<Result<serde_json::Value, Failure>> {
    Some(Ok(serde_json::to_value(Started::Rollout { id: RolloutId("r1".into()) }).unwrap()))
}

/// Two nodes, looked at before, during and after.
fn story() -> Vec<StatusView> {
    let before = |phase| {
        status(phase, 100, vec![node("m1", Role::Manager, WAITING, &[]), node("w1", Role::Worker, WAITING, &[])])
    };
    let m1 = || node("m1", Role::Manager, upgraded(1234), &[("granted", 200), ("draining", 900), ("upgraded", 4000)]);
    vec![
        before(Phase::Running),
        status(Phase::Running, 4200, vec![m1(), node("w1", Role::Worker, WAITING, &[])]),
        status(
            Phase::Ended { aborted: false },
            9000,
            vec![m1(), node("w1", Role::Worker, upgraded(900), &[("granted", 4300), ("upgraded", 8900)])],
        ),
    ]
}

#[test]
fn an_upgrade_is_followed_to_its_end() {
    let server = Server::new(Script { answer: started(), statuses: story(), asked: vec![] });
    let bundle = server.bundle();
    let seen = server.says(&["upgrade", "--bundle", bundle.to_str().unwrap(), "--only", "m1,w1", "--manual"]);
    insta::assert_snapshot!(seen, @"
    exit: 0
    --- stdout
    0.2s m1 manager granted
    0.9s m1 manager draining
    4.0s m1 manager upgraded (engine down 1.2s)
    4.3s w1 worker granted
    8.9s w1 worker upgraded (engine down 0.9s)
    9.0s rollout r1 ended
    NODE  ROLE     ENGINE  OUTCOME   ENGINE DOWN
    m1    manager  26.1.5  upgraded  1.2s
    w1    worker   26.1.5  upgraded  0.9s
    2 of 2 nodes changed to 26.1.5 in 9.0s (rollout r1)
    --- stderr
    left out of the bundle, as no file of an engine: docker/README
    rollout r1 has begun; Ctrl-C detaches
    ");
    let length = std::fs::metadata(bundle).unwrap().len();
    let asked = server.asked();
    assert_eq!(asked[0], format!("PUT /bundle?name=docker.tgz {length} bytes"));
    let question = asked[1].strip_prefix("POST /rollouts ").unwrap();
    assert_eq!(
        serde_json::from_str::<serde_json::Value>(question).unwrap(),
        json!({
            "bundle": digest(), "policy": "auto", "workers_at_once": 1, "only": ["m1", "w1"], "exclude": [],
            "manual": true, "accept_control_plane_outage": false, "allow_downgrade": false,
            "start_timeout_secs": 120, "stage_timeout_secs": 600,
        })
    );
}

#[test]
fn for_scripts_each_change_is_a_line_of_json() {
    let server = Server::new(Script { answer: started(), statuses: story(), asked: vec![] });
    let output = server.run(&["upgrade", "--json", "--bundle", server.bundle().to_str().unwrap()], Stdio::null());
    assert_eq!(output.status.code(), Some(0));
    let lines: Vec<serde_json::Value> =
        String::from_utf8(output.stdout).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines[0], json!({"started": "rollout", "id": "r1"}));
    assert_eq!(lines[1]["step"], "granted");
    assert_eq!(
        lines[3],
        json!({
            "event": "step", "elapsed_ms": 4000, "id": "id-m1", "node": "m1", "role": "manager", "step": "upgraded",
            "detail": "engine down 1.2s",
        })
    );
    assert_eq!((&lines.last().unwrap()["event"], &lines.last().unwrap()["exit"]), (&json!("end"), &json!(0)));
}

#[test]
fn a_bundle_comes_through_stdin() {
    let server = Server::new(Script { answer: started(), statuses: story(), asked: vec![] });
    let bundle = server.bundle();
    let length = std::fs::metadata(&bundle).unwrap().len();
    let stdin = || Stdio::from(std::fs::File::open(&bundle).unwrap());
    let output = server.run(&["upgrade", "--bundle", "-", "--detach"], stdin());
    insta::assert_snapshot!(described(&output), @"
    exit: 0
    --- stdout
    rollout r1 has begun
    --- stderr
    left out of the bundle, as no file of an engine: docker/README
    hint: `requeen status --watch` follows it
    ");
    assert_eq!(server.asked()[0], format!("PUT /bundle?name=stdin {length} bytes"));
    // It can be compared after the upload only, and then nothing is started.
    let other = format!("sha256:{}", "b".repeat(64));
    let output = server.run(&["upgrade", "--bundle", "-", "--digest", &other], stdin());
    assert_eq!(output.status.code(), Some(2), "{}", described(&output));
    assert_eq!(server.asked().len(), 3, "{:?}", server.asked());
}

#[test]
fn a_halt_is_a_failure_with_the_engines_words() {
    let outcome = Outcome::RolledBack { reason: "dockerd exited with 1".into(), log: vec!["fatal: no".into()] };
    let nodes = vec![
        node("w1", Role::Worker, Step::Done { outcome }, &[("granted", 100), ("rolled-back", 5000)]),
        node("w2", Role::Worker, WAITING, &[]),
    ];
    let halted = status(Phase::Halted { reason: "w1 was rolled back".into() }, 6000, nodes);
    let server = Server::new(Script { answer: started(), statuses: vec![halted], asked: vec![] });
    insta::assert_snapshot!(server.says(&["rollback", "w1"]), @"
    exit: 1
    --- stdout
    0.1s w1 worker granted
    5.0s w1 worker rolled-back (dockerd exited with 1)
    6.0s rollout r1 halted: w1 was rolled back
    NODE  ROLE    ENGINE  OUTCOME      ENGINE DOWN
    w1    worker  26.1.5  rolled-back  -
    w2    worker  26.1.5  waiting      -
    0 of 2 nodes changed to 26.1.5 in 6.0s (rollout r1)
    halted: w1 was rolled back
    --- stderr
    rollout r1 has begun; Ctrl-C detaches
    w1: rolled back: dockerd exited with 1
      fatal: no
    hint: `requeen resume` goes on with the other nodes, `requeen abort` ends the rollout; after that `requeen rollback` takes it back
    ");
}

#[test]
fn a_refusal_exits_with_2_and_an_unreachable_engine_with_3() {
    for (kind, code) in [(FailureKind::Failed, 1), (FailureKind::Refused, 2), (FailureKind::Unreachable, 3)] {
        let failure = Failure { kind, error: "a rollout is open (r0)".into(), hint: Some("`requeen abort`".into()) };
        let server = Server::new(Script { answer: Some(Err(failure)), ..Script::default() });
        assert_eq!(
            server.says(&["pause"]),
            format!("exit: {code}\n--- stdout\n--- stderr\nerror: a rollout is open (r0)\nhint: `requeen abort`\n")
        );
    }
}

#[test]
fn nothing_to_do_is_success() {
    let answer = Some(Ok(serde_json::to_value(Started::NothingToDo).unwrap()));
    let server = Server::new(Script { answer, ..Script::default() });
    let seen = server.says(&["upgrade", "--bundle", server.bundle().to_str().unwrap()]);
    assert!(seen.starts_with("exit: 0\n--- stdout\nnothing to do"), "{seen}");
}

#[test]
fn force_is_not_taken_without_a_word() {
    let script = || Script { answer: Some(Ok(json!({}))), statuses: story(), asked: vec![] };
    let server = Server::new(script());
    insta::assert_snapshot!(server.says(&["grant", "w1", "--force"]), @"
    exit: 2
    --- stdout
    --- stderr
    note: --force grants w1 its lease whatever the order of nodes, the number of workers in work and the quorum of the managers say
    error: not confirmed: --force grants w1 its lease whatever the order of nodes, the number of workers in work and the quorum of the managers say
    hint: say yes on a terminal, or give --yes
    ");
    assert_eq!(server.asked(), Vec::<String>::new());
    let server = Server::new(script());
    assert!(server.says(&["grant", "w1", "--force", "--yes"]).starts_with("exit: 0\n"));
    assert_eq!(server.asked(), [r#"POST /grant {"node":"w1","force":true}"#]);
}

#[test]
fn a_server_that_restarts_is_waited_for() {
    let server = Server::new(Script { statuses: story(), ..Script::default() });
    let hidden = server.dir.path().join("hidden");
    std::fs::rename(server.socket(), &hidden).unwrap();
    let mut child = Command::new(PROGRAM)
        .args(["status", "--watch"])
        .env_clear()
        .env("REQUEEN_SOCKET", server.socket())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // It says so itself when the server has been gone for long; until then it must not end.
    let mut words = std::io::BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    std::io::BufRead::read_line(&mut words, &mut line).unwrap();
    assert!(line.starts_with("the server does not answer"), "{line}");
    std::fs::rename(&hidden, server.socket()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", described(&output));
    line.clear();
    std::io::BufRead::read_line(&mut words, &mut line).unwrap();
    assert!(line.starts_with("the server answers again"), "{line}");
}
