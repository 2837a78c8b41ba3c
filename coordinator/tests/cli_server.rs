//! The command line against a server that plays a script.

#[path = "cli_server/closed_pipes.rs"]
mod closed_pipes;
mod common;
#[path = "cli_server/interrupts.rs"]
mod interrupts;
#[path = "cli_server/terminal.rs"]
mod terminal;

use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, Mutex};

use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::http::request::Parts;
use axum::response::{IntoResponse, Response};
use axum::{Json, Router};
use common::{PROGRAM, described, tarball};
use coordinator::api::{
    Failure, FailureKind, Fetched, Fetching, NodeStatus, RolloutView, Started, StatusView, StoredBundle, TimeLimit,
};
use coordinator::plan::model::{Availability, Outcome, Phase, Role, Step};
use requeen_protocol::{BundleRef, Digest, RolloutId};
use serde_json::json;
use tempfile::TempDir;
use tokio::net::UnixListener;

/// What the server answers, and what it was asked.
#[derive(Default)]
struct Script {
    /// Answer to everything but `/bundle` and `/status`; none: it is kept waiting.
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
    let answer = script.lock().unwrap().answer(&parts, &body);
    match answer {
        Some(answer) => answer,
        None => std::future::pending().await,
    }
}

impl Script {
    /// What is answered to a request, if anything.
    fn answer(&mut self, head: &Parts, body: &[u8]) -> Option<Response> {
        if head.uri.path() == "/status" {
            let status = self.statuses[0].clone();
            if self.statuses.len() > 1 {
                self.statuses.remove(0);
            }
            return Some(Json(status).into_response());
        }
        if head.uri.path() == "/bundle" {
            self.asked.push(format!("{} {} {} bytes", head.method, head.uri, body.len()));
            return Some(Json(stored()).into_response());
        }
        self.asked.push(format!("{} {} {}", head.method, head.uri, String::from_utf8_lossy(body)));
        if head.uri.path() == "/fetch" {
            return Some(fetched(&String::from_utf8_lossy(body)).into_response());
        }
        if let (Some(Ok(serde_json::Value::String(said))), "/diag") = (&self.answer, head.uri.path()) {
            return Some(said.clone().into_response());
        }
        Some(match self.answer.clone()? {
            Ok(value) => Json(value).into_response(),
            Err(failure) => (StatusCode::CONFLICT, Json(failure)).into_response(),
        })
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

/// How a fetch goes: fails, where the URL says so.
fn fetched(question: &str) -> String {
    let lines = [(0, None), (1 << 20, Some("connection reset")), (1 << 20, Some("connection reset")), (2 << 20, None)];
    let lines =
        lines.map(|(done, trouble)| Fetching { done, total: Some(2 << 20), trouble: trouble.map(str::to_owned) });
    let lines: String = lines.iter().map(|line| serde_json::to_string(line).unwrap() + "\n").collect();
    let end = if question.contains("nowhere") {
        let error = "can't fetch https://nowhere/docker.tgz".into();
        Fetched::Failed(Failure { kind: FailureKind::Unreachable, error, hint: Some("try again later".into()) })
    } else {
        Fetched::Stored(stored())
    };
    // Whatever happened to it: an answer without its end is none.
    if question.contains("dies") { lines } else { lines + &serde_json::to_string(&end).unwrap() }
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
        troubles: vec![],
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
            limit: None,
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
    Some(Ok(serde_json::to_value(Started::Rollout { id: RolloutId("r1".into()), notes: vec![] }).unwrap()))
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
    let seen = server.says(&[
        "upgrade",
        "--bundle",
        bundle.to_str().unwrap(),
        "--only",
        "m1,w1",
        "--manual",
        "--keep-raft-copy",
    ]);
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
            "start_timeout_secs": 120, "stage_timeout_secs": 600, "only_outdated": false, "not_after": null,
            "keep_raft_copy": true,
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
fn a_bundle_is_fetched_by_the_server() {
    let server = Server::new(Script { answer: started(), statuses: story(), asked: vec![] });
    let digest = digest().to_string();
    let ca_file = server.dir.path().join("ca.pem");
    let authority = rcgen::generate_simple_self_signed(["authority".to_owned()]).unwrap();
    // What else is in the file stays here.
    std::fs::write(&ca_file, authority.signing_key.serialize_pem() + &authority.cert.pem()).unwrap();
    let upgrade = |url: &str, more: &[&str]| {
        let args = [&["upgrade", "--bundle", url, "--digest", &digest, "--detach"], more].concat();
        server.says(&args)
    };
    let seen = upgrade("https://example.com/docker.tgz?token=t", &["--ca-file", ca_file.to_str().unwrap()]);
    insta::assert_snapshot!(seen, @"
    exit: 0
    --- stdout
    rollout r1 has begun
    --- stderr
    the server fetches https://example.com/docker.tgz
    broken off after 1.00 MiB, trying again: connection reset
    left out of the bundle, as no file of an engine: docker/README
    hint: `requeen status --watch` follows it
    ");
    let asked = server.asked();
    assert_eq!(asked.len(), 2, "{asked:?}");
    let question: serde_json::Value = serde_json::from_str(asked[0].strip_prefix("POST /fetch ").unwrap()).unwrap();
    let root = base64::Engine::encode(&base64::prelude::BASE64_STANDARD, authority.cert.der());
    assert_eq!(question, json!({"url": "https://example.com/docker.tgz?token=t", "digest": digest, "roots": [root]}));

    insta::assert_snapshot!(upgrade("https://nowhere/docker.tgz", &["--json"]), @"
    exit: 3
    --- stdout
    --- stderr
    error: can't fetch https://nowhere/docker.tgz
    hint: try again later
    ");
    let seen = upgrade("https://dies/docker.tgz", &["--json"]);
    assert!(seen.starts_with("exit: 3\n") && seen.contains("POST /fetch"), "{seen}");
    assert_eq!(server.asked().len(), 4, "no rollout without a bundle");
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
    let error = "node w1 can't have a lease now: managers go first: m1".to_owned();
    let failure = Failure { kind: FailureKind::Refused, error, hint: Some("wait".to_owned()) };
    let script = || Script { answer: Some(Err(failure.clone())), ..Script::default() };
    let server = Server::new(script());
    insta::assert_snapshot!(server.says(&["grant", "w1", "--force"]), @"
    exit: 2
    --- stdout
    --- stderr
    note: node w1 can't have a lease now: managers go first: m1; --force overrides the order of nodes, the number at work, the quorum and `--not-after`
    error: not confirmed: node w1 can't have a lease now: managers go first: m1; --force overrides the order of nodes, the number at work, the quorum and `--not-after`
    hint: say yes on a terminal, or give --yes
    ");
    let [asked, forced] = [false, true].map(|force| format!(r#"POST /grant {{"node":"w1","force":{force}}}"#));
    assert_eq!(server.asked(), std::slice::from_ref(&asked));
    let server = Server::new(script());
    server.says(&["grant", "w1", "--force", "--yes"]);
    assert_eq!(server.asked(), [asked.clone(), forced]);
    // Nothing speaks against it.
    let server = Server::new(Script { answer: Some(Ok(json!({}))), ..Script::default() });
    assert!(server.says(&["grant", "w1", "--force"]).starts_with("exit: 0\n"));
    assert_eq!(server.asked(), [asked]);
}

#[test]
fn a_slot_is_not_freed_without_a_word() {
    let view = json!({
        "rollout": "r1", "id": "id-w1", "hostname": "w1", "role": "worker",
        "swarm": {"availability": "drain", "ready": false, "reachable": null}, "before": "active",
        "step": "swapping", "since_ms": 61000, "agent": null, "said": null, "silent_secs": null,
        "meaning": ["it may be anywhere"], "hint": "look at it", "released": true,
    });
    let script = || Script { answer: Some(Ok(view.clone())), ..Script::default() };
    let server = Server::new(script());
    insta::assert_snapshot!(server.says(&["release", "w1"]), @"
    exit: 2
    --- stdout
    w1 holds a slot of rollout r1
      role:          worker
      availability:  drain (active before)
      in the swarm:  down
      step:          swapping, for 1m01s
      agent:         not heard since this coordinator runs
    what it means to free its slot:
      - it may be anywhere
    --- stderr
    error: not confirmed: w1 keeps its slot
    hint: say yes on a terminal, or give --yes
    ");
    let look = r#"POST /release {"node":"w1","at":null}"#;
    assert_eq!(server.asked(), [look]);
    let server = Server::new(script());
    let seen = server.says(&["release", "w1", "--yes"]);
    let words = "w1 is released: rollout r1 goes on without it\n--- stderr\nhint: look at it\n";
    assert!(seen.starts_with("exit: 0\n") && seen.ends_with(words), "{seen}");
    assert_eq!(server.asked(), [look, r#"POST /release {"node":"w1","at":"swapping"}"#]);
    let output = Server::new(script()).run(&["release", "w1", "--yes", "--json"], Stdio::null());
    assert_eq!(serde_json::from_slice::<serde_json::Value>(&output.stdout).unwrap(), view);
}

#[test]
fn resuming_says_that_the_time_limit_is_lifted() {
    for lifted in [false, true] {
        let mut status = status(Phase::Running, 100, vec![]);
        let not_after = "2026-11-22T06:00:00Z".parse().unwrap();
        status.rollout.as_mut().unwrap().limit = Some(TimeLimit { not_after, lifted });
        let answer = serde_json::to_value(status).unwrap();
        for (verb, says) in [("resume", lifted), ("pause", false)] {
            let server = Server::new(Script { answer: Some(Ok(answer.clone())), ..Script::default() });
            let seen = server.says(&[verb]);
            let note = "note: the time limit, not after 2026-11-22T06:00:00Z, is lifted\n";
            assert_eq!(seen.contains(note), says, "{verb} {lifted}: {seen}");
        }
    }
}

#[test]
fn history_is_asked_for_by_id() {
    let empty = json!({"rollouts": [], "unreadable": []});
    let server = Server::new(Script { answer: Some(Ok(empty)), ..Script::default() });
    assert_eq!(server.says(&["history"]), "exit: 0\n--- stdout\nno rollout is on record\n--- stderr\n");
    let failure = Failure { kind: FailureKind::Refused, error: "no rollout".into(), hint: Some("look".into()) };
    let server = Server::new(Script { answer: Some(Err(failure)), ..Script::default() });
    assert!(server.says(&["history", "2026/ü"]).starts_with("exit: 2\n"));
    assert_eq!(server.asked(), ["GET /history/2026%2F%C3%BC "]);
}

#[test]
fn a_time_limit_goes_to_the_server_as_a_point_in_time() {
    let answer = Some(Ok(serde_json::to_value(Started::NothingToDo).unwrap()));
    let server = Server::new(Script { answer, ..Script::default() });
    let bundle = server.bundle();
    let limit = "2999-01-02T03:04:00+01:00";
    server.says(&["upgrade", "--bundle", bundle.to_str().unwrap(), "--only-outdated", "--not-after", limit]);
    let asked = server.asked();
    let question: serde_json::Value = serde_json::from_str(asked[1].strip_prefix("POST /rollouts ").unwrap()).unwrap();
    assert_eq!((&question["only_outdated"], &question["not_after"]), (&json!(true), &json!("2999-01-02T02:04:00Z")));
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

fn deployment(services: &[&str]) -> serde_json::Value {
    json!({
        "services": services, "records": ["requeen-r1"],
        "reached": [
            {"id": "id-m1", "hostname": "m1", "by_hand": false}, {"id": "id-w1", "hostname": "w1", "by_hand": true},
        ],
        "silent": [{"hostname": "w2", "why": "its agent has been silent for 99 s", "command": "rm -rf x"}],
    })
}

#[test]
fn undeploy_says_what_it_removes_and_asks() {
    let server = Server::new(Script { answer: Some(Ok(deployment(&["requeen-agent"]))), ..Script::default() });
    insta::assert_snapshot!(server.says(&["undeploy", "--backups"]), @"
    exit: 2
    --- stdout
    --- stderr
    this will be removed:
      service requeen-agent
      1 record: swarm configs requeen-r1
      on m1, w1: agents' programs in /var/lib/requeen/bin; journal, records and bundles in /var/lib/requeen/agent; sets of engine files in /var/lib/requeen/engines that are no backups
      on m1, w1: the backups in /var/lib/requeen/engines and the copies in /var/lib/requeen/raft-copies: nothing is left to go back to
      on this manager: bundles in the server's folder
    engines, their files, and files that are not Requeen's stay as they are
    w2 is not cleaned: its agent has been silent for 99 s
    error: not confirmed: undeploy removes what is listed above
    hint: say yes on a terminal, or give --yes
    ");
    assert_eq!(server.asked(), ["GET /undeploy "]);
}

#[test]
fn undeploy_with_a_word_does_not_ask() {
    let answer = json!({
        "nothing": false, "services": ["requeen-agent"], "records": ["requeen-r1"],
        "cleaned": [{"hostname": "w1", "by_hand": true, "left": [], "more": 0}],
        "silent": [], "troubles": [], "server_node": "m1", "data_dir": "/var/lib/requeen",
    });
    let server = Server::new(Script { answer: Some(Ok(answer.clone())), ..Script::default() });
    insta::assert_snapshot!(server.says(&["undeploy", "--yes"]), @"
    exit: 0
    --- stdout
    removed service requeen-agent
    removed 1 record of rollouts
    cleaned w1
    agents that were started by hand still run on w1; type there:
      docker rm -f requeen-agent
    last the coordinator and the command on m1; type there:
      docker rm -f requeen && rm -f /var/lib/requeen/requeen.sock /usr/local/bin/requeen
    --- stderr
    ");
    assert_eq!(server.asked(), [r#"POST /undeploy {"backups":false}"#]);
    let output = server.run(&["undeploy", "--yes", "--json"], Stdio::null());
    assert_eq!(serde_json::from_slice::<serde_json::Value>(&output.stdout).unwrap(), answer);
}

#[test]
fn where_nothing_is_deployed_nobody_is_asked() {
    let nothing = json!({"services": [], "records": [], "reached": [], "silent": []});
    let server = Server::new(Script { answer: Some(Ok(nothing)), ..Script::default() });
    assert_eq!(server.says(&["undeploy"]), "exit: 0\n--- stdout\nnothing is deployed\n--- stderr\n");
    assert_eq!(server.asked(), ["GET /undeploy "]);
}

#[test]
fn a_changed_file_is_shown_and_exits_with_1() {
    let digest = |letter: &str| format!("sha256:{}", letter.repeat(64));
    let answer = json!({
        "newest": {"rollout": "r1", "version": "28.5.2"},
        "nodes": [
            {"id": "id-m1", "hostname": "m1", "role": "manager", "leader": true, "engine": "28.5.2", "rollout": "r1",
             "verdict": "ok"},
            {"id": "id-w1", "hostname": "w1", "role": "worker", "leader": false, "engine": "28.5.2", "rollout": "r1",
             "verdict": "drifted", "restart_pending": false, "files": [
                {"file": "ctr", "path": "/usr/bin/ctr", "installed": digest("a"), "found": digest("b"),
                 "owner": "containerd"}]},
        ],
    });
    let server = Server::new(Script { answer: Some(Ok(answer.clone())), ..Script::default() });
    insta::assert_snapshot!(server.says(&["verify"]), @"
    exit: 1
    --- stdout
    installed last: 28.5.2, by rollout r1
    NODE  ROLE    ENGINE  FILES         INSTALLED BY
    m1    leader  28.5.2  ok            r1
    w1    worker  28.5.2  drifted: ctr  r1
    w1: /usr/bin/ctr is bbbbbbbbbbbb, installed was aaaaaaaaaaaa; package containerd owns it
    --- stderr
    ");
    let output = server.run(&["verify", "--json"], Stdio::null());
    assert_eq!(
        (output.status.code(), serde_json::from_slice::<serde_json::Value>(&output.stdout).unwrap()),
        (Some(1), answer)
    );
}

/// What a server says that has collected from two nodes of three, and the archive.
fn collected() -> Option<Result<serde_json::Value, Failure>> {
    let lines = [
        r#"{"event":"begun","rollout":"r1","made":"2026-11-21T12:00:00Z","nodes":["m1","w1","w2"]}"#,
        r#"{"event":"node","hostname":"w1","collected":true,"why":null}"#,
        r#"{"event":"node","hostname":"m1","collected":true,"why":null}"#,
        r#"{"event":"node","hostname":"w2","collected":false,"why":"no agent has called from this node"}"#,
        r#"{"event":"archive"}"#,
        "the archive\nand more of it",
    ];
    Some(Ok(lines.join("\n").into()))
}

#[test]
fn an_archive_is_written_once_and_the_missing_are_named() {
    let server = Server::new(Script { answer: collected(), ..Script::default() });
    let run = |args: &[&str]| {
        let mut command = Command::new(PROGRAM);
        command.args(args).env_clear().env("REQUEEN_SOCKET", server.socket()).current_dir(server.dir.path());
        described(&command.stdin(Stdio::null()).output().unwrap())
    };
    insta::assert_snapshot!(run(&["diag", "--nodes", "m1,w1", "--nodes", "w2", "--since", "1970-01-01T00:01:00Z"]), @"
    exit: 0
    --- stdout
    requeen-diag-r1.tar.gz
    --- stderr
    w1: collected
    m1: collected
    warning: w2 is missing in the archive: no agent has called from this node
    2 of 3 nodes are in the archive
    hint: look through it before you attach it to a report; its MANIFEST.txt says what was left out
    ");
    assert_eq!(server.asked(), [r#"POST /diag {"nodes":["m1","w1","w2"],"since_unix":60}"#]);
    let path = server.dir.path().join("requeen-diag-r1.tar.gz");
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "the archive\nand more of it");
    let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&path).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);

    // By its own name and by a given one: what is there stays as it is.
    std::fs::write(&path, "mine").unwrap();
    for args in [&["diag"][..], &["diag", "-o", "requeen-diag-r1.tar.gz"]] {
        insta::allow_duplicates! {
            insta::assert_snapshot!(run(args), @"
            exit: 2
            --- stdout
            --- stderr
            error: requeen-diag-r1.tar.gz is there already
            hint: remove it, or name another file: `-o FILE`
            ");
        }
    }
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "mine");
    assert!(run(&["diag", "-o", "no/such/folder.tgz"]).starts_with("exit: 1\n"));
}

#[test]
fn an_archive_goes_to_stdout_or_its_summary_does() {
    let server = Server::new(Script { answer: collected(), ..Script::default() });
    let output = server.run(&["diag", "-o", "-"], Stdio::null());
    assert_eq!(String::from_utf8(output.stdout).unwrap(), "the archive\nand more of it");
    assert_eq!(output.status.code(), Some(0));
    assert!(server.says(&["diag", "-o", "-", "--json"]).starts_with("exit: 2\n"));

    let path = server.dir.path().join("x.tgz");
    let output = server.run(&["diag", "--json", "-o", path.to_str().unwrap()], Stdio::null());
    let summary: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(summary["file"], path.to_str().unwrap());
    assert_eq!(summary["nodes"][0], json!({ "hostname": "w1", "collected": true, "why": null }));
    assert_eq!(summary["nodes"][2]["collected"], false);
    assert!(String::from_utf8(output.stderr).unwrap().contains("warning: w2 is missing"));
}

#[test]
fn a_collection_that_breaks_off_leaves_nothing() {
    let begun = r#"{"event":"begun","rollout":null,"made":"2026-11-21T12:00:00Z","nodes":["m1"]}"#;
    let server = Server::new(Script { answer: Some(Ok(format!("{begun}\n{{\"event\"").into())), ..Script::default() });
    let path = server.dir.path().join("x.tgz");
    let seen = server.says(&["diag", "-o", path.to_str().unwrap()]);
    assert!(seen.starts_with("exit: 3\n"), "{seen}");
    assert!(!path.exists());
}
