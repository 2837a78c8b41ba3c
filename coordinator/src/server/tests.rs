//! The agents' port from outside, over real TLS: who is let in, and what those get.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use axum::http::{HeaderMap, Method, Request, StatusCode, header};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use requeen_protocol::{
    BUNDLE_PATH, CLOCK_HEADER, COLLECT_HEADER, COLLECT_PATH, Collect, Digest, ErrorBody, NO_COLLECTION, NodeId,
    NodeState, Order, PROTOCOL_HEADER, PROTOCOL_VERSION, REPORT_PATH, Report, Speaker, UnlockKey, WANTED_HEADER,
};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use sha2::Digest as _;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::agents::{self, Agents};
use super::doors::Doors;
use crate::diag::collection::{Delivery, OpenCollection};
use crate::hub::Hub;
use crate::identity::files::CertificateFiles;
use crate::identity::gate::Gate;
use crate::identity::swarm::{AskError, Cluster, Swarm};
use crate::identity::test_pki::{Node, Root, self_signed};
use crate::plan::model::Role;
use crate::server::store::bundle_path;
use crate::server::words::chain;

pub(super) const CLUSTER: &str = "cluster-1";

/// The largest part of a collection here: small enough to be sent although nobody reads it.
const MAX_PART: u64 = 1000;

/// A swarm as its managers would describe it.
pub(super) struct Fake {
    cluster: Cluster,
    nodes: Mutex<Option<BTreeMap<NodeId, Role>>>,
    pub(super) unlock_key: Mutex<Option<UnlockKey>>,
}

impl Swarm for Arc<Fake> {
    async fn cluster(&self) -> Result<Cluster, AskError> {
        Ok(self.cluster.clone())
    }

    async fn nodes(&self) -> Result<BTreeMap<NodeId, Role>, AskError> {
        self.nodes.lock().unwrap().clone().ok_or(AskError::Timeout)
    }

    async fn unlock_key(&self) -> Result<Option<UnlockKey>, AskError> {
        Ok(self.unlock_key.lock().unwrap().clone())
    }
}

pub(super) struct World {
    pub(super) root: Root,
    pub(super) fake: Arc<Fake>,
    pub(super) hub: Arc<Hub>,
    pub(super) doors: Arc<Doors>,
    pub(super) address: SocketAddr,
    pub(super) dir: tempfile::TempDir,
    _stop: DropGuard,
}

pub(super) async fn world(long_poll: Duration) -> World {
    world_with(|agents| agents.long_poll = long_poll).await
}

/// A port that `change` has changed.
pub(super) async fn world_with(change: impl FnOnce(&mut Agents<Arc<Fake>>)) -> World {
    let dir = tempfile::tempdir().unwrap();
    let root = Root::new();
    root.node("m1", "swarm-manager", CLUSTER).install(dir.path(), &root.pem);
    let nodes = [("m1", Role::Manager), ("w1", Role::Worker), ("w2", Role::Worker)];
    let nodes = nodes.into_iter().map(|(id, role)| (NodeId::from(id), role)).collect();
    let cluster = Cluster { id: CLUSTER.to_owned(), trust_root: root.pem.clone() };
    let fake = Arc::new(Fake { cluster, nodes: Mutex::new(Some(nodes)), unlock_key: Mutex::default() });
    let gate = Gate::new(Arc::clone(&fake), CertificateFiles::new(dir.path()), Arc::new(Instant::now));
    let hub = Arc::new(Hub::default());
    let mut agents = Agents::new(gate, Arc::clone(&hub), dir.path().to_owned());
    agents.max_collected = MAX_PART;
    change(&mut agents);
    let doors = Arc::clone(&agents.doors);

    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let stop = CancellationToken::new();
    tokio::spawn(agents::serve(listener, Arc::new(agents), stop.clone().cancelled_owned()));
    World { root, fake, hub, doors, address, dir, _stop: stop.drop_guard() }
}

/// What a client got: an answer, or a connection that ended.
pub(super) type Got = Result<(StatusCode, HeaderMap, Bytes), String>;

impl World {
    pub(super) async fn ask(&self, identity: Option<&Node>, request: Request<Full<Bytes>>) -> Got {
        ask(self.address, identity, request).await
    }

    pub(super) async fn report(&self, identity: &Node, report: &Report) -> Got {
        self.ask(Some(identity), post(report)).await
    }

    pub(super) fn worker(&self) -> Node {
        self.root.node("w1", "swarm-worker", CLUSTER)
    }
}

pub(super) async fn ask(address: SocketAddr, identity: Option<&Node>, request: Request<Full<Bytes>>) -> Got {
    let text = |error: &dyn std::error::Error| chain(error);
    let stream = TcpStream::connect(address).await.unwrap();
    let connector = TlsConnector::from(Arc::new(client(identity)));
    let name = ServerName::try_from("swarm-manager").unwrap();
    let stream = connector.connect(name, stream).await.map_err(|error| text(&error))?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(|error| text(&error))?;
    let driver = tokio::spawn(connection);
    let answer = match sender.send_request(request).await {
        Ok(answer) => answer,
        Err(error) => {
            drop(sender);
            // The connection knows more of it than the request: the peer's alert.
            let cause = driver.await.unwrap().err();
            return Err(cause.map_or_else(|| text(&error), |cause| text(&cause)));
        }
    };
    let (head, body) = answer.into_parts();
    let body = body.collect().await.map_err(|error| text(&error))?.to_bytes();
    Ok((head.status, head.headers, body))
}

pub(super) fn client(identity: Option<&Node>) -> ClientConfig {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyServer));
    match identity {
        None => config.with_no_client_auth(),
        Some(node) => {
            let sent = std::iter::once(&node.certificate).chain(&node.above);
            let chain = sent.map(|der| CertificateDer::from(der.clone())).collect();
            let key = PrivateKeyDer::from_pem_slice(node.key_pem.as_bytes()).unwrap();
            config.with_client_auth_cert(chain, key).unwrap()
        }
    }
}

/// These tests are about clients, so theirs take any server.
#[derive(Debug)]
struct AnyServer;

impl ServerCertVerifier for AnyServer {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        rustls::crypto::ring::default_provider().signature_verification_algorithms.supported_schemes()
    }
}

pub(super) fn request(method: Method, path: &str) -> axum::http::request::Builder {
    Request::builder()
        .method(method)
        .uri(path)
        .header(header::HOST, "coordinator")
        .header(PROTOCOL_HEADER, PROTOCOL_VERSION.to_string())
}

pub(super) fn post(report: &Report) -> Request<Full<Bytes>> {
    let body = serde_json::to_vec(report).unwrap();
    request(Method::POST, REPORT_PATH).body(Full::from(body)).unwrap()
}

fn get(path: &str, range: Option<&str>) -> Request<Full<Bytes>> {
    let mut builder = request(Method::GET, path);
    if let Some(range) = range {
        builder = builder.header(header::RANGE, range);
    }
    builder.body(Full::default()).unwrap()
}

pub(super) fn word(node: &str, seen: Option<Order>) -> Report {
    Report {
        node: NodeId::from(node),
        agent_version: "1".to_owned(),
        speaker: Speaker::Task,
        boot_id: "b".to_owned(),
        engine: None,
        installed: None,
        state: NodeState::Idle,
        seen: seen.map(Box::new),
        memo: None,
        unreached: Vec::new(),
        troubles: Vec::new(),
    }
}

pub(super) fn order(got: Got) -> Order {
    let (status, _, body) = got.unwrap();
    assert_eq!(status, StatusCode::OK, "{body:?}");
    serde_json::from_slice(&body).unwrap()
}

pub(super) fn refusal(got: Got) -> (StatusCode, ErrorBody) {
    let (status, _, body) = got.unwrap();
    (status, serde_json::from_slice(&body).unwrap())
}

pub(super) fn store(dir: &Path, content: &[u8]) -> Digest {
    let digest = Digest::from_hex(&hex::encode(sha2::Sha256::digest(content))).unwrap();
    std::fs::write(bundle_path(dir, &digest), content).unwrap();
    digest
}

#[tokio::test]
async fn a_node_of_the_swarm_gets_its_order() {
    let world = world(Duration::ZERO).await;
    let order = order(world.report(&world.worker(), &word("w1", None)).await);
    assert!(matches!(order, Order::Wait { .. }), "{order:?}");
    assert_eq!(world.hub.agents()[&NodeId::from("w1")].report, word("w1", None));
}

#[tokio::test]
async fn strangers_get_no_further_than_the_handshake() {
    let world = world(Duration::ZERO).await;
    let other_swarm = Root::new().node("w1", "swarm-manager", CLUSTER);
    let alone = self_signed("w1", "swarm-manager", CLUSTER);
    for (who, identity) in [
        ("without a certificate", None),
        ("self-signed", Some(&alone)),
        ("signed by another swarm's root", Some(&other_swarm)),
    ] {
        let error = world.ask(identity, post(&word("w1", None))).await.expect_err(who);
        assert!(error.contains("alert"), "{who}: {error}");
    }
    assert!(world.hub.agents().is_empty());
}

#[tokio::test]
async fn a_certificate_of_another_cluster_is_refused() {
    let world = world(Duration::ZERO).await;
    let node = world.root.node("w1", "swarm-worker", "cluster-2");
    let (status, body) = refusal(world.report(&node, &word("w1", None)).await);
    assert_eq!(status, StatusCode::FORBIDDEN);
    assert!(body.error.contains("cluster-2"), "{}", body.error);
    assert!(world.hub.agents().is_empty());
}

#[tokio::test]
async fn a_removed_node_is_refused_and_forgotten() {
    let world = world(Duration::ZERO).await;
    world.hub.report(word("gone", None));
    let node = world.root.node("gone", "swarm-worker", CLUSTER);
    let (status, body) = refusal(world.report(&node, &word("gone", None)).await);
    assert_eq!(status, StatusCode::FORBIDDEN);
    assert!(body.error.contains("not in the swarm"), "{}", body.error);
    assert!(world.hub.agents().is_empty());
}

#[tokio::test]
async fn a_node_can_claim_only_its_own_name() {
    let world = world(Duration::ZERO).await;
    let (status, body) = refusal(world.report(&world.worker(), &word("w2", None)).await);
    assert_eq!(status, StatusCode::FORBIDDEN);
    assert!(body.error.contains("w1") && body.error.contains("w2"), "{}", body.error);
    assert!(world.hub.agents().is_empty());
}

#[tokio::test]
async fn another_protocol_is_told_both_versions_and_the_remedy() {
    let world = world(Duration::ZERO).await;
    let report = serde_json::to_vec(&word("w1", None)).unwrap();
    for theirs in [Some("99"), Some("x"), None] {
        let mut request = Request::post(REPORT_PATH).header(header::HOST, "coordinator");
        if let Some(theirs) = theirs {
            request = request.header(PROTOCOL_HEADER, theirs);
        }
        let request = request.body(Full::from(report.clone())).unwrap();
        let (status, body) = refusal(world.ask(Some(&world.worker()), request).await);
        assert_eq!(status, StatusCode::UPGRADE_REQUIRED);
        assert!(body.error.contains(&format!("version {PROTOCOL_VERSION} ")), "{}", body.error);
        assert!(body.error.contains(theirs.unwrap_or("none")), "{}", body.error);
        assert!(body.hint.unwrap().contains("requeen deploy"));
    }
    assert!(world.hub.agents().is_empty());
}

#[tokio::test]
async fn bodies_that_are_no_reports_are_refused() {
    let world = world(Duration::ZERO).await;
    for (body, expected) in
        [(vec![b'x'; 2 << 20], StatusCode::PAYLOAD_TOO_LARGE), (b"{}".to_vec(), StatusCode::BAD_REQUEST)]
    {
        let request = request(Method::POST, REPORT_PATH).body(Full::from(body)).unwrap();
        // The server may answer, or close, before a long body has been sent.
        if let Ok((status, _, _)) = world.ask(Some(&world.worker()), request).await {
            assert_eq!(status, expected);
        } else {
            assert_eq!(expected, StatusCode::PAYLOAD_TOO_LARGE);
        }
    }
    assert!(world.hub.agents().is_empty());
}

#[tokio::test]
async fn an_order_seen_already_is_held_until_it_changes() {
    let world = world(Duration::from_secs(600)).await;
    let first = order(world.report(&world.worker(), &word("w1", None)).await);
    let mut changed = world.hub.changed();
    let held = {
        let (address, worker) = (world.address, world.worker());
        let report = Report { agent_version: "2".to_owned(), ..word("w1", Some(first.clone())) };
        tokio::spawn(async move { ask(address, Some(&worker), post(&report)).await })
    };
    while world.hub.agents()[&NodeId::from("w1")].report.agent_version != "2" {
        changed.changed().await.unwrap();
    }
    assert_eq!(world.hub.order_for(&word("w1", None)), first, "nothing has changed yet");
    world.hub.set_has_leader(true);
    let second = order(held.await.unwrap());
    assert_ne!(second, first);
}

#[tokio::test]
async fn a_held_answer_comes_at_last() {
    let world = world(Duration::from_millis(50)).await;
    let first = order(world.report(&world.worker(), &word("w1", None)).await);
    assert_eq!(order(world.report(&world.worker(), &word("w1", Some(first.clone()))).await), first);
}

#[tokio::test]
async fn bundles_come_whole_and_in_parts() {
    let world = world(Duration::ZERO).await;
    let content: Vec<u8> = (0..1_000_000_u32).map(|number| number.to_le_bytes()[1]).collect();
    let digest = store(world.dir.path(), &content);
    let path = format!("{BUNDLE_PATH}{}", digest.hex());
    let worker = world.worker();

    let (status, headers, body) = world.ask(Some(&worker), get(&path, None)).await.unwrap();
    assert_eq!((status, &headers[header::ACCEPT_RANGES]), (StatusCode::OK, &"bytes".parse().unwrap()));
    assert!(body == content, "the whole file");

    let (status, headers, body) = world.ask(Some(&worker), get(&path, Some("bytes=999990-"))).await.unwrap();
    assert_eq!(status, StatusCode::PARTIAL_CONTENT);
    assert_eq!(headers[header::CONTENT_RANGE], "bytes 999990-999999/1000000");
    assert_eq!(body, content[999_990..]);

    let (status, headers, _) = world.ask(Some(&worker), get(&path, Some("bytes=1000000-"))).await.unwrap();
    assert_eq!(status, StatusCode::RANGE_NOT_SATISFIABLE);
    assert_eq!(headers[header::CONTENT_RANGE], "bytes */1000000");
}

#[tokio::test]
async fn only_bundles_are_served() {
    let world = world(Duration::ZERO).await;
    std::fs::write(world.dir.path().join("secret.tgz"), "x").unwrap();
    let unknown = "0".repeat(64);
    for name in [unknown.as_str(), "secret", "..%2fsecret", "%2e%2e%2fcertificates%2fswarm-node.key", ""] {
        let path = format!("{BUNDLE_PATH}{name}");
        let (status, _) = refusal(world.ask(Some(&world.worker()), get(&path, None)).await);
        assert_eq!(status, StatusCode::NOT_FOUND, "{name}");
    }
}

#[tokio::test]
async fn without_a_leader_only_reports_are_taken() {
    let world = world(Duration::ZERO).await;
    *world.fake.nodes.lock().unwrap() = None;
    let digest = store(world.dir.path(), b"content");
    let path = format!("{BUNDLE_PATH}{}", digest.hex());
    let (status, body) = refusal(world.ask(Some(&world.worker()), get(&path, None)).await);
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(body.hint.is_some());
    order(world.report(&world.worker(), &word("w1", None)).await);
    assert!(world.hub.agents().contains_key(&NodeId::from("w1")));
}

#[tokio::test]
async fn a_bundle_comes_from_an_agent_only_when_it_is_asked_for() {
    let world = world(Duration::ZERO).await;
    let worker = world.worker();
    let digest = Digest::from_hex(&"a".repeat(64)).unwrap();
    let put = |content: &'static [u8]| {
        request(Method::PUT, &format!("{BUNDLE_PATH}{}", digest.hex())).body(Full::from(content)).unwrap()
    };
    let (status, _) = refusal(world.ask(Some(&worker), put(b"bytes")).await);
    assert_eq!(status, StatusCode::CONFLICT, "nobody asked for it");

    world.hub.set_wanted(Some(digest.clone()));
    let (status, body) = refusal(world.ask(Some(&worker), put(b"bytes")).await);
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert!(body.error.contains("gzip"), "{}", body.error);
    assert!(world.hub.wants(&digest), "it is asked for still");
    assert!(!bundle_path(world.dir.path(), &digest).exists());
}

#[tokio::test]
async fn one_agent_at_a_time_is_asked_for_the_bundle() {
    let world = world(Duration::ZERO).await;
    let digest = Digest::from_hex(&"a".repeat(64)).unwrap();
    world.hub.set_wanted(Some(digest.clone()));
    let (_, headers, _) = world.report(&world.worker(), &word("w1", None)).await.unwrap();
    assert!(!headers.contains_key(WANTED_HEADER), "an idle agent keeps no bundle");
    let staged = Report {
        state: NodeState::Staging {
            rollout: "r".into(),
            progress: requeen_protocol::Progress { activity: requeen_protocol::Activity::Unpack, done: 0, total: 1 },
        },
        ..word("w1", None)
    };
    let (_, headers, _) = world.report(&world.worker(), &staged).await.unwrap();
    assert!(!headers.contains_key(WANTED_HEADER), "nor one that still stages");
}

#[tokio::test]
async fn a_clock_that_is_off_is_known_until_it_is_right() {
    let ours = || jiff::Timestamp::from_second(1_000_000).unwrap();
    let world = world_with(|agents| {
        agents.long_poll = Duration::ZERO;
        agents.time_of_day = ours;
    })
    .await;
    let w1 = NodeId::from("w1");
    // An agent of an earlier version says nothing, and of what is no number nothing is made.
    for (says, ahead) in
        [(None, None), (Some("1003600"), Some(3600)), (Some("soon"), Some(3600)), (Some("1000030"), None)]
    {
        let mut request = post(&word("w1", None));
        if let Some(says) = says {
            request.headers_mut().insert(CLOCK_HEADER, says.parse().unwrap());
        }
        let (status, ..) = world.ask(Some(&world.worker()), request).await.unwrap();
        assert_eq!((status, world.hub.clocks.off().get(&w1).copied()), (StatusCode::OK, ahead), "{says:?}");
    }
}

/// A report of an agent that heard of this collection last.
fn heard_of(collection: &str, report: &Report) -> Request<Full<Bytes>> {
    let mut request = post(report);
    request.headers_mut().insert(COLLECT_HEADER, collection.parse().unwrap());
    request
}

/// What an answer asks for beside its order.
fn asked(got: &Got) -> Option<Collect> {
    let (_, headers, _) = got.as_ref().unwrap();
    headers.get(COLLECT_HEADER).map(|value| value.to_str().unwrap().parse().unwrap())
}

fn part(collection: &str, bytes: usize) -> Request<Full<Bytes>> {
    request(Method::POST, &format!("{COLLECT_PATH}{collection}")).body(Full::from(vec![b'x'; bytes])).unwrap()
}

fn collect(world: &World, id: &str, nodes: &[&str]) -> OpenCollection {
    let collect = Collect { id: id.into(), since_unix: 7 };
    world.hub.collect(collect, nodes.iter().map(|node| NodeId::from(*node))).unwrap()
}

#[tokio::test]
async fn a_collection_is_asked_for_beside_the_order() {
    // Longer than any test waits: only news ends the wait.
    let world = Arc::new(world(Duration::from_secs(3600)).await);
    let worker = Arc::new(world.worker());
    let first = order(world.report(&worker, &word("w1", None)).await);
    let held = {
        let (world, worker) = (Arc::clone(&world), Arc::clone(&worker));
        let request = heard_of(NO_COLLECTION, &word("w1", Some(first.clone())));
        tokio::spawn(async move { world.ask(Some(&worker), request).await })
    };
    let open = collect(&world, "00ff", &["w1"]);
    let got = held.await.unwrap();
    assert_eq!(asked(&got), Some(Collect { id: "00ff".into(), since_unix: 7 }));
    assert_eq!(order(got), first, "the order is what it was");

    // Until it is at it an agent is told again, and one that has another order to hear is told with that.
    for seen in [Some(first), None] {
        let got = world.ask(Some(&worker), heard_of(NO_COLLECTION, &word("w1", seen))).await;
        assert!(asked(&got).is_some());
    }
    let got = world.ask(Some(&worker), heard_of("00ff", &word("w1", None))).await;
    assert_eq!(asked(&got), None, "it is at it");
    drop(open);
    let got = world.ask(Some(&worker), heard_of(NO_COLLECTION, &word("w1", None))).await;
    assert_eq!(asked(&got), None, "it is over");
}

#[tokio::test]
async fn agents_that_know_no_collections_wait_as_ever() {
    let world = world(Duration::from_millis(50)).await;
    let first = order(world.report(&world.worker(), &word("w1", None)).await);
    let _open = collect(&world, "00ff", &["w1"]);
    let got = world.report(&world.worker(), &word("w1", Some(first.clone()))).await;
    assert_eq!(asked(&got), None);
    assert_eq!(order(got), first);
}

#[tokio::test]
async fn only_the_part_of_a_node_that_was_asked_is_taken() {
    let world = world(Duration::ZERO).await;
    let worker = world.worker();
    let other = world.root.node("w2", "swarm-worker", CLUSTER);
    let manager = world.root.node("m1", "swarm-manager", CLUSTER);
    let (status, _) = refusal(world.ask(Some(&worker), part("00ff", 10)).await);
    assert_eq!(status, StatusCode::NOT_FOUND, "none is open");

    let open = collect(&world, "00ff", &["w1", "m1"]);
    for (who, node, id, expected) in [
        ("another collection", &worker, "00fe", StatusCode::NOT_FOUND),
        ("no collection", &worker, "..%2f00ff", StatusCode::NOT_FOUND),
        ("a node that was not asked", &other, "00ff", StatusCode::FORBIDDEN),
    ] {
        let (status, _) = refusal(world.ask(Some(node), part(id, 10)).await);
        assert_eq!(status, expected, "{who}");
    }
    let (status, _, _) = world.ask(Some(&worker), part("00ff", 10)).await.unwrap();
    assert_eq!(status, StatusCode::OK);
    let (status, _) = refusal(world.ask(Some(&worker), part("00ff", 10)).await);
    assert_eq!(status, StatusCode::CONFLICT, "a second time");
    let too_large = usize::try_from(MAX_PART).unwrap() + 1;
    let (status, body) = refusal(world.ask(Some(&manager), part("00ff", too_large)).await);
    assert_eq!(status, StatusCode::PAYLOAD_TOO_LARGE, "{}", body.error);

    let mut parts = open.close();
    let (status, _) = refusal(world.ask(Some(&manager), part("00ff", 10)).await);
    assert_eq!(status, StatusCode::NOT_FOUND, "too late");
    let Some(Delivery::Arrived(mut arrived)) = parts.remove(&NodeId::from("w1")) else { panic!("{parts:?}") };
    let mut content = String::new();
    std::io::Read::read_to_string(&mut arrived.file, &mut content).unwrap();
    assert_eq!((content, arrived.bytes), ("x".repeat(10), 10));
    let Some(Delivery::Refused(why)) = parts.remove(&NodeId::from("m1")) else { panic!("{parts:?}") };
    assert!(why.contains("larger than 1000 bytes"), "{why}");
    let left = std::fs::read_dir(world.dir.path()).unwrap().flatten();
    let left: Vec<_> = left.map(|entry| entry.file_name()).filter(|name| name != "certificates").collect();
    assert!(left.is_empty(), "{left:?}");
}

#[tokio::test]
async fn without_a_leader_parts_are_taken_too() {
    let world = world(Duration::ZERO).await;
    *world.fake.nodes.lock().unwrap() = None;
    let _open = collect(&world, "00ff", &["w1"]);
    let (status, _, _) = world.ask(Some(&world.worker()), part("00ff", 10)).await.unwrap();
    assert_eq!(status, StatusCode::OK);
}
