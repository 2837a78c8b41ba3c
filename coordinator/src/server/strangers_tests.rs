//! Strangers and nonsense at the agents' port, over real TLS: each is refused or bounded, said once in the log, and
//! keeps no node from its order.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::http::{HeaderValue, Method, Request, StatusCode};
use http_body_util::Full;
use requeen_protocol::{
    BUNDLE_PATH, LeaseId, NodeId, NodeState, Order, PROTOCOL_HEADER, PROTOCOL_VERSION, REPORT_PATH, Report, Speaker,
};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_util::sync::CancellationToken;

use super::agents::Patience;
use super::descriptors;
use super::doors::{Doors, Limits};
use super::tests::{CLUSTER, World, ask, client, order, post, refusal, request, store, word, world, world_with};
use crate::hub::Driven;
use crate::identity::test_pki::{Node, Root, self_signed};
use crate::plan::model::{Availability, LeaseRecord, ManagerPolicy, Role, Step, Work};
use crate::plan::simulation;

/// Far more than anything here takes: what is still waited for then does not come.
const LIMIT: Duration = Duration::from_secs(20);

/// A server that soon loses its patience.
const SHORT: Patience = Patience {
    handshake: Duration::from_millis(300),
    head: Duration::from_millis(300),
    body: Duration::from_millis(300),
    taking: Duration::from_millis(500),
};

/// Far more than the sockets of both sides hold.
const FLOOD: usize = 100 << 20;

/// More than they hold, and less than [`FLOOD`].
const HELD: usize = 50 << 20;

/// What this thread has logged.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Log {
    /// Takes everything that is a warning, until the guard goes.
    fn capture() -> (Self, tracing::subscriber::DefaultGuard) {
        let log = Self::default();
        let writer = log.clone();
        let lines = tracing_subscriber::fmt().with_ansi(false).with_max_level(tracing::Level::WARN);
        let guard = tracing::subscriber::set_default(lines.with_writer(move || writer.clone()).finish());
        (log, guard)
    }

    fn refusals(&self) -> Vec<String> {
        let text = String::from_utf8(self.0.lock().unwrap().clone()).unwrap();
        text.lines().filter(|line| line.contains("client refused")).map(str::to_owned).collect()
    }
}

/// Waits until it is so.
async fn until(what: &str, reached: impl Fn() -> bool) {
    let waiting = async {
        while !reached() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    assert!(timeout(LIMIT, waiting).await.is_ok(), "waited in vain: {what}");
}

/// Everything that comes until the other side ends the connection.
async fn rest(stream: &mut (impl AsyncRead + Unpin)) -> Vec<u8> {
    let mut got = Vec::new();
    let mut buffer = [0; 4096];
    let reading = async {
        loop {
            match stream.read(&mut buffer).await {
                Ok(0) | Err(_) => return,
                Ok(read) => got.extend_from_slice(&buffer[..read]),
            }
        }
    };
    assert!(timeout(LIMIT, reading).await.is_ok(), "the server keeps the connection open");
    got
}

impl World {
    async fn tcp(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    /// A connection of worker `w1` that has asked nothing yet.
    async fn tls(&self) -> TlsStream<TcpStream> {
        let connector = TlsConnector::from(Arc::new(client(Some(&self.worker()))));
        connector.connect(ServerName::try_from("swarm-manager").unwrap(), self.tcp().await).await.unwrap()
    }

    fn node(&self, id: &str, role: &str) -> Node {
        self.root.node(id, role, CLUSTER)
    }

    async fn serves_its_nodes(&self) {
        let came = timeout(LIMIT, self.report(&self.node("w2", "swarm-worker"), &word("w2", None))).await;
        order(came.expect("the node gets no order"));
    }

    /// A report of `node` whose answer is held, once the hub has it.
    async fn holds(&self, node: &str, version: &str) -> JoinHandle<super::tests::Got> {
        let identity = self.node(node, "swarm-worker");
        let seen = Some(self.hub.order_for(&word(node, None)));
        let report = Report { agent_version: version.to_owned(), ..word(node, seen) };
        let address = self.address;
        let held = tokio::spawn(async move { ask(address, Some(&identity), post(&report)).await });
        let heard = || self.hub.agents().get(&NodeId::from(node)).map(|agent| agent.report.agent_version.clone());
        until("the hub has the report", || heard().as_deref() == Some(version)).await;
        held
    }
}

/// The head of a report, with `more` before its end.
fn head(more: &str) -> String {
    format!("POST {REPORT_PATH} HTTP/1.1\r\nhost: c\r\n{PROTOCOL_HEADER}: {PROTOCOL_VERSION}\r\n{more}")
}

#[tokio::test]
async fn each_stranger_is_turned_away_and_said_once() {
    type Identity = fn(&World) -> Option<Node>;
    let kinds: [(&str, Identity, &str); 6] = [
        ("without a certificate", |_| None, "no certificates"),
        ("self-signed", |_| Some(self_signed("m1", "swarm-manager", CLUSTER)), "invalid peer certificate"),
        (
            "another swarm's manager",
            |_| Some(Root::new().node("m1", "swarm-manager", CLUSTER)),
            "invalid peer certificate",
        ),
        (
            "expired",
            |world| Some(world.root.node_from_to("w1", "swarm-worker", CLUSTER, (1990, 1991))),
            "certificate expired",
        ),
        (
            "of the future",
            |world| Some(world.root.node_from_to("w1", "swarm-worker", CLUSTER, (2200, 2201))),
            "certificate not valid yet",
        ),
        (
            "signed by a node",
            |world| {
                let (own, forged) = (("w1", "swarm-worker", CLUSTER), ("m1", "swarm-manager", CLUSTER));
                Some(world.worker().forge(own, forged))
            },
            "invalid peer certificate",
        ),
    ];
    for (who, identity, reason) in kinds {
        let (log, _guard) = Log::capture();
        let world = world(Duration::ZERO).await;
        let identity = identity(&world);
        for _ in 0..3 {
            let error = world.ask(identity.as_ref(), post(&word("w1", None))).await.expect_err(who);
            assert!(error.contains("alert"), "{who}: {error}");
        }
        let said = log.refusals();
        assert_eq!(said.len(), 1, "{who}: {said:#?}");
        assert!(said[0].contains(reason) && said[0].contains("127.0.0.1"), "{who}: {said:#?}");
        assert!(world.hub.agents().is_empty(), "{who}");
        world.serves_its_nodes().await;
    }
}

#[tokio::test]
async fn nonsense_of_nodes_is_refused_and_said_once() {
    let (log, _guard) = Log::capture();
    let world = world(Duration::ZERO).await;
    let other_version = || {
        let mut request = post(&word("w1", None));
        request.headers_mut().insert(PROTOCOL_HEADER, HeaderValue::from_static("99"));
        request
    };
    let no_report = || request(Method::POST, REPORT_PATH).body(Full::from("{}")).unwrap();
    type Asked<'a> = &'a dyn Fn() -> Request<Full<bytes::Bytes>>;
    let cases: [(Node, Asked<'_>, StatusCode, &str); 5] = [
        (world.worker(), &|| post(&word("w2", None)), StatusCode::FORBIDDEN, "reported for node w2"),
        (world.node("gone", "swarm-worker"), &|| post(&word("gone", None)), StatusCode::FORBIDDEN, "not in the swarm"),
        (
            world.root.node("w1", "swarm-worker", "cluster-2"),
            &|| post(&word("w1", None)),
            StatusCode::FORBIDDEN,
            "cluster-2",
        ),
        (world.worker(), &other_version, StatusCode::UPGRADE_REQUIRED, "speaks version"),
        (world.worker(), &no_report, StatusCode::BAD_REQUEST, "no report"),
    ];
    let all = cases.len();
    for (identity, asked, expected, words) in cases {
        for _ in 0..3 {
            let (status, body) = refusal(world.ask(Some(&identity), asked()).await);
            assert_eq!(status, expected, "{words}");
            assert!(body.error.contains(words), "{}", body.error);
        }
        let said = log.refusals().into_iter().filter(|line| line.contains(words)).count();
        assert_eq!(said, 1, "{words}: {:#?}", log.refusals());
    }
    assert_eq!(log.refusals().len(), all);
    assert!(world.hub.agents().is_empty());
    world.serves_its_nodes().await;
}

#[tokio::test]
async fn there_is_nothing_but_reports_and_bundles() {
    let world = world(Duration::ZERO).await;
    // A manager's certificate gives no more rights than a worker's, be it the manager's or what a demoted one kept.
    let identities = [world.worker(), world.node("m1", "swarm-manager"), world.node("w1", "swarm-manager")];
    let bundle = format!("{BUNDLE_PATH}{}", "0".repeat(64));
    let (get, put, post, delete) = (Method::GET, Method::PUT, Method::POST, Method::DELETE);
    let nothing = [
        (&get, "/"),
        (&get, "/status"),
        (&put, "/bundle?name=x"),
        (&post, "/plan"),
        (&post, "/rollouts"),
        (&post, "/rollback"),
        (&post, "/grant"),
        (&post, "/pause"),
        (&post, "/resume"),
        (&post, "/abort"),
        (&post, "/deploy"),
        (&get, "/probe"),
        (&post, "/v1/grant"),
        (&post, "/v1/report/"),
        (&post, "//v1/report"),
        (&get, "/v1/bundles"),
        (&get, BUNDLE_PATH),
        (&get, "/v1/bundles/x/y"),
        (&get, "/%76%31/report"),
    ];
    let otherwise = [
        (&get, REPORT_PATH),
        (&put, REPORT_PATH),
        (&delete, REPORT_PATH),
        (&post, bundle.as_str()),
        (&delete, bundle.as_str()),
    ];
    for identity in &identities {
        for (expected, asked) in
            [(StatusCode::NOT_FOUND, &nothing[..]), (StatusCode::METHOD_NOT_ALLOWED, &otherwise[..])]
        {
            for (method, path) in asked {
                let request = request((*method).clone(), path).body(Full::default()).unwrap();
                let (status, body) = refusal(world.ask(Some(identity), request).await);
                assert_eq!(status, expected, "{method} {path}");
                assert!(!body.error.is_empty());
            }
        }
    }
    assert!(world.hub.agents().is_empty());
}

#[tokio::test]
async fn a_worker_gets_no_lease_but_its_own() {
    let world = world(Duration::ZERO).await;
    let views = ["w1", "w2"].map(|id| {
        let mut view = simulation::node(id, Role::Worker);
        view.id = NodeId::from(id);
        view
    });
    let mut rollout = simulation::rollout(&views, simulation::policy(ManagerPolicy::Rolling, 1));
    let id = rollout.request.id.clone();
    let lease = LeaseRecord { id: LeaseId::from("l"), epoch: 1, forced: false };
    let granted = Step::Working { lease: lease.clone(), before: Availability::Active, work: Work::Granted };
    rollout.nodes.get_mut(&NodeId::from("w2")).unwrap().step = granted;
    world.hub.set_has_leader(true);
    world.hub.set_rollout(Some(Driven { rollout, here: true, owner: "m1".to_owned() }));

    let staged = |node| Report { state: simulation::staged(&id), ..word(node, None) };
    let owner = world.node("w2", "swarm-worker");
    let Order::Hold { lease: held, .. } = order(world.report(&owner, &staged("w2")).await) else { panic!("no lease") };
    assert_eq!((held.node.as_str(), &held.id), ("w2", &lease.id));
    let own = order(world.report(&world.worker(), &staged("w1")).await);
    assert!(matches!(own, Order::Stage { .. }), "{own:?}");

    let leased = NodeState::Leased { rollout: id.clone(), lease: lease.id.clone(), task_containers: 0 };
    for speaker in [Speaker::Task, Speaker::Executor] {
        let stolen = Report { speaker, state: leased.clone(), ..word("w2", None) };
        let (status, _) = refusal(world.report(&world.worker(), &stolen).await);
        assert_eq!(status, StatusCode::FORBIDDEN);
    }
    assert_eq!(world.hub.agents()[&NodeId::from("w2")].report, staged("w2"), "nobody else's word counts");
}

#[tokio::test]
async fn who_stops_in_the_middle_is_closed_and_said_once() {
    let (log, _guard) = Log::capture();
    let world = world_with(|agents| agents.patience = SHORT).await;
    for _ in 0..2 {
        assert_eq!(rest(&mut world.tcp().await).await, b"", "a connection and nothing more");
        let mut stream = world.tcp().await;
        stream.write_all(&[22, 3, 1, 2, 0, 1, 0]).await.unwrap();
        assert_eq!(rest(&mut stream).await, b"", "the beginning of a handshake");
        let mut stream = world.tcp().await;
        stream.write_all(b"GET / HTTP/1.1\r\nhost: c\r\n\r\n").await.unwrap();
        assert!(!rest(&mut stream).await.starts_with(b"HTTP"), "no TLS at all");
        assert_eq!(rest(&mut world.tls().await).await, b"", "a handshake and nothing more");
        let mut stream = world.tls().await;
        stream.write_all(head("").as_bytes()).await.unwrap();
        rest(&mut stream).await;
        let mut stream = world.tls().await;
        stream.write_all(head("content-length: 100\r\n\r\n{\"node\"").as_bytes()).await.unwrap();
        let answer = rest(&mut stream).await;
        assert!(answer.starts_with(b"HTTP/1.1 408"), "{}", answer.escape_ascii());
    }
    until("every connection is closed", || world.doors.count() == (0, 0)).await;
    let said = log.refusals();
    let words = ["handshake took too long", "handshake failed", "can't be read", "took too long to arrive"];
    for words in words {
        assert_eq!(said.iter().filter(|line| line.contains(words)).count(), 1, "{words}: {said:#?}");
    }
    assert_eq!(said.len(), words.len(), "{said:#?}");
    world.serves_its_nodes().await;
}

#[tokio::test]
async fn what_trickles_in_is_closed() {
    let world = world_with(|agents| agents.patience = SHORT).await;
    for begin in [head(""), head("content-length: 1000000\r\n\r\n"), head("transfer-encoding: chunked\r\n\r\n6\r\n")] {
        let (mut read, mut write) = tokio::io::split(world.tls().await);
        write.write_all(begin.as_bytes()).await.unwrap();
        let trickle = async {
            while write.write_all(b"a: b\r\n").await.is_ok() && write.flush().await.is_ok() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::select! {
            () = trickle => {}
            _ = rest(&mut read) => {}
        }
    }
    until("every connection is closed", || world.doors.count() == (0, 0)).await;
    world.serves_its_nodes().await;
}

/// Sends `begin` and then pieces until the server has had enough: how many bytes that were, and its answer.
async fn flood(world: &World, begin: &str, piece: &[u8]) -> (usize, Vec<u8>) {
    let (mut read, mut write) = tokio::io::split(world.tls().await);
    let mut sent = begin.len();
    write.write_all(begin.as_bytes()).await.unwrap();
    let pouring = async {
        while sent < FLOOD && write.write_all(piece).await.is_ok() {
            sent += piece.len();
        }
        std::future::pending::<()>().await;
    };
    let answer = tokio::select! {
        () = pouring => unreachable!("it never ends"),
        answer = rest(&mut read) => answer,
    };
    (sent, answer)
}

#[tokio::test]
async fn heads_without_end_and_long_bodies_are_cut_off() {
    let (log, _guard) = Log::capture();
    let world = world_with(|agents| agents.patience = Patience { head: LIMIT, body: LIMIT, ..SHORT }).await;
    let (line, many) = ([b'x'; 1 << 16], b"x-many: headers\r\n".repeat(4096));
    let mut chunk = b"10000\r\n".to_vec();
    chunk.extend_from_slice(&line);
    chunk.extend_from_slice(b"\r\n");
    let length = format!("content-length: {FLOOD}\r\n\r\n");
    for (what, begin, piece, status) in [
        ("one header", head("x-long: "), &line[..], "431"),
        ("many headers", head(""), &many[..], "431"),
        ("a body of 100 MB", head(&length), &line[..], "413"),
        ("a body without a length", head("transfer-encoding: chunked\r\n\r\n"), &chunk[..], "413"),
    ] {
        let (sent, answer) = flood(&world, &begin, piece).await;
        assert!(sent < HELD, "{what}: {sent} bytes were taken");
        // The answer may be lost when a connection is closed with more on its way.
        let expected = format!("HTTP/1.1 {status}");
        assert!(answer.is_empty() || answer.starts_with(expected.as_bytes()), "{what}: {}", answer.escape_ascii());
    }
    until("every connection is closed", || world.doors.count() == (0, 0)).await;
    let said = log.refusals();
    assert!((2..=4).contains(&said.len()), "{said:#?}");
    assert!(said.iter().any(|line| line.contains("its request can't be read")), "{said:#?}");
    assert!(said.iter().any(|line| line.contains("at most")), "{said:#?}");
    world.serves_its_nodes().await;
}

#[tokio::test]
async fn who_reads_no_further_is_closed() {
    let world = world_with(|agents| agents.patience = SHORT).await;
    let digest = store(world.dir.path(), &vec![7; HELD]);
    let mut stream = world.tls().await;
    let (path, version) = (format!("{BUNDLE_PATH}{}", digest.hex()), format!("{PROTOCOL_HEADER}: {PROTOCOL_VERSION}"));
    stream.write_all(format!("GET {path} HTTP/1.1\r\nhost: c\r\n{version}\r\n\r\n").as_bytes()).await.unwrap();
    let mut begin = [0; 12];
    stream.read_exact(&mut begin).await.unwrap();
    assert_eq!(&begin, b"HTTP/1.1 200");
    assert_eq!(world.doors.count(), (0, 1));
    until("the connection is closed", || world.doors.count() == (0, 0)).await;
    world.serves_its_nodes().await;
}

/// A connection from `address`, any of this machine's own, that says nothing.
async fn stranger(to: SocketAddr, address: Ipv4Addr) -> io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind(SocketAddr::from((address, 0)))?;
    socket.connect(to).await
}

#[tokio::test]
async fn a_thousand_strangers_do_not_keep_a_node_out() {
    let (log, _guard) = Log::capture();
    // Each connection has both its ends in this process.
    let count: u8 = if descriptors::raise().unwrap() > 3000 { 25 } else { 10 };
    let world = world_with(|agents| {
        agents.patience.handshake = Duration::from_secs(3600);
        agents.long_poll = Duration::from_secs(3600);
    })
    .await;
    let waits = world.holds("w1", "1").await;

    let mut strangers = Vec::new();
    for place in 1..=40 {
        for _ in 0..count {
            strangers.push(stranger(world.address, Ipv4Addr::new(127, 0, 1, place)).await.unwrap());
        }
    }
    let all = 40 * usize::from(count);
    until("all of them are held", || world.doors.count() == (all, 1)).await;
    world.serves_its_nodes().await;

    // One more place gets its share and no more.
    for _ in 0..100 {
        strangers.push(stranger(world.address, Ipv4Addr::new(127, 0, 2, 1)).await.unwrap());
    }
    let most = (all + Limits::USUAL.strangers_from_one).min(Limits::USUAL.strangers);
    until("the rest is closed", || world.doors.count().0 == most).await;
    world.serves_its_nodes().await;
    assert!(!waits.is_finished(), "the node that waited was closed");
    let said = log.refusals();
    assert!((1..=41).contains(&said.len()), "more than one line for a place: {said:#?}");

    world.hub.set_has_leader(true);
    order(timeout(LIMIT, waits).await.expect("no order").unwrap());
    drop(strangers);
    until("all have gone", || world.doors.count().0 == 0).await;
}

#[tokio::test]
async fn strangers_that_come_back_at_once_do_not_keep_a_node_out() {
    let few = Limits { strangers: 16, strangers_from_one: 4, of_one_node: 8 };
    let world = world_with(|agents| {
        agents.doors = Arc::new(Doors::new(few));
        agents.long_poll = Duration::ZERO;
    })
    .await;
    let stop = CancellationToken::new();
    let flooding: Vec<JoinHandle<u32>> = (1..=8)
        .map(|place| {
            let (stop, to) = (stop.clone(), world.address);
            let pour = async move {
                let (mut open, mut came) = (std::collections::VecDeque::new(), 0);
                while let Some(Ok(stream)) =
                    stop.run_until_cancelled(stranger(to, Ipv4Addr::new(127, 0, 3, place))).await
                {
                    open.push_back(stream);
                    if open.len() > 4 {
                        open.pop_front();
                    }
                    came += 1;
                }
                came
            };
            tokio::spawn(pour)
        })
        .collect();
    for _ in 0..20 {
        world.serves_its_nodes().await;
    }
    stop.cancel();
    let mut came = 0;
    for flood in flooding {
        came += flood.await.unwrap();
    }
    assert!(came > 100, "only {came} strangers came meanwhile");
}

#[tokio::test]
async fn a_node_keeps_its_newest_connections() {
    let (log, _guard) = Log::capture();
    let world = world_with(|agents| {
        agents.doors = Arc::new(Doors::new(Limits { of_one_node: 2, ..Limits::USUAL }));
        agents.long_poll = Duration::from_secs(3600);
    })
    .await;
    let other = world.holds("w2", "1").await;
    let first = world.holds("w1", "1").await;
    let second = world.holds("w1", "2").await;
    let third = world.holds("w1", "3").await;
    let closed = timeout(LIMIT, first).await.expect("it is still held").unwrap();
    assert!(closed.is_err(), "{closed:?}");
    assert!(!other.is_finished() && !second.is_finished() && !third.is_finished());
    let said = log.refusals();
    assert!(said.len() == 1 && said[0].contains("node w1 has opened newer connections"), "{said:#?}");
    world.hub.set_has_leader(true);
    for held in [other, second, third] {
        order(timeout(LIMIT, held).await.expect("no order").unwrap());
    }
}
