//! Servers and clients on the loopback's real sockets.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use hickory_resolver::config::{ConnectionConfig, NameServerConfig, ResolverConfig};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::proto::op::Message;
use hickory_resolver::proto::rr::{RData, Record, rdata::A};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};

use super::client::Settings;
use super::line::{Failure, Line, Summary};
use super::request::Resolve;
use super::server::Farewell;
use super::*;

const ONE: Ipv4Addr = Ipv4Addr::LOCALHOST;
const TWO: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);

/// A test that hangs fails; nothing here takes near as long.
const PATIENCE: Duration = Duration::from_secs(20);

/// Long enough that a busy machine's clients ask within the idle time.
const SOON: Farewell = Farewell { idle: Duration::from_secs(1), bound: Duration::from_secs(10) };

struct Server {
    stop: oneshot::Sender<()>,
    task: JoinHandle<io::Result<()>>,
    port: u16,
}

impl Server {
    async fn start(ip: Ipv4Addr, port: u16, farewell: Farewell) -> Self {
        let listener = TcpListener::bind((ip, port)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (stop, stopped) = oneshot::channel();
        let task = tokio::spawn(async move {
            server::serve(listener, "node-1 probe", farewell, async { stopped.await.unwrap() }).await
        });
        Self { stop, task, port }
    }

    /// As a crash: the port is closed at once.
    async fn kill(self) {
        self.task.abort();
        assert!(self.task.await.unwrap_err().is_cancelled());
    }
}

/// A name service whose answer the test changes.
#[derive(Clone, Default)]
struct Names(Arc<Mutex<Vec<IpAddr>>>);

impl Names {
    fn set(&self, addresses: &[Ipv4Addr]) {
        *self.0.lock().unwrap() = addresses.iter().copied().map(IpAddr::V4).collect();
    }
}

impl Resolve for Names {
    async fn resolve(&self, host: &str) -> Result<Vec<IpAddr>, NetError> {
        assert_eq!(host, "probe-server");
        Ok(self.0.lock().unwrap().clone())
    }
}

struct Client {
    lines: mpsc::UnboundedReceiver<Line>,
    stop: oneshot::Sender<()>,
    task: JoinHandle<io::Result<Summary>>,
}

/// Gives the test every line as it is written.
struct Lines(Vec<u8>, mpsc::UnboundedSender<Line>);

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        for byte in bytes {
            if *byte == b'\n' {
                let line = serde_json::from_slice(&self.0).expect("a line of JSON");
                self.1.send(line).map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))?;
                self.0.clear();
            } else {
                self.0.push(*byte);
            }
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Client {
    fn start(port: u16, names: &Names) -> Self {
        let settings = Settings {
            name: "client-1".into(),
            target: format!("http://probe-server:{port}/").parse().unwrap(),
            concurrency: NonZeroUsize::new(5).unwrap(),
            pause: Duration::from_millis(5),
            limits: Limits { connect: Duration::from_millis(500), total: Duration::from_millis(1_000) },
        };
        let (sender, lines) = mpsc::unbounded_channel();
        let (stop, stopped) = oneshot::channel();
        let names = names.clone();
        let task = tokio::spawn(async move {
            let turn = AtomicUsize::new(0);
            let choose = |_| turn.fetch_add(1, Ordering::Relaxed);
            let stop = async { stopped.await.unwrap() };
            client::run(settings, &names, choose, Timestamp::now, &mut Lines(vec![], sender), stop).await
        });
        Self { lines, stop, task }
    }

    async fn until<T>(&mut self, what: impl Fn(&Line) -> Option<T>) -> T {
        let found = async {
            loop {
                let line = self.lines.recv().await.expect("the client runs");
                if let Some(found) = what(&line) {
                    return found;
                }
            }
        };
        timeout(PATIENCE, found).await.expect("the line within the test's patience")
    }

    async fn failure(&mut self) -> Failure {
        self.until(|line| match line {
            Line::Failure(failure) => Some(failure.clone()),
            Line::Summary(_) => None,
        })
        .await
    }

    /// The next summary that `accept`s.
    async fn summary(&mut self, accept: impl Fn(&Summary) -> bool) -> Summary {
        self.until(|line| match line {
            Line::Summary(summary) => accept(summary).then(|| summary.clone()),
            Line::Failure(_) => None,
        })
        .await
    }

    async fn stop(mut self) -> Summary {
        self.stop.send(()).unwrap();
        let returned = timeout(PATIENCE, self.task).await.unwrap().unwrap().unwrap();
        let mut last = None;
        while let Some(line) = self.lines.recv().await {
            last = Some(line);
        }
        assert_eq!(last, Some(Line::Summary(returned.clone())));
        assert!(returned.last);
        returned
    }
}

#[tokio::test]
async fn a_server_that_restarts_costs_failures_and_is_used_again() {
    let server = Server::start(ONE, 0, SOON).await;
    let port = server.port;
    let names = Names::default();
    names.set(&[ONE]);
    let mut client = Client::start(port, &names);
    let healthy = client.summary(|s| s.requests_total > 20).await;
    assert_eq!((healthy.failed_total, healthy.before_first_answer), (0, 0));
    assert_eq!(healthy.waiting, None);

    server.kill().await;
    let failure = client.failure().await;
    assert_eq!(failure.target, Some(ONE.into()));
    assert_eq!(failure.client, "client-1");
    assert!(failure.time > healthy.since, "{failure:?}");

    let server = Server::start(ONE, port, SOON).await;
    let mut failed = client.summary(|s| s.failed_total > 0).await.failed_total;
    // Requests of before the restart may still end; then no more fail.
    loop {
        let next = client.summary(|_| true).await;
        if next.failed_total == failed {
            break;
        }
        failed = next.failed_total;
    }
    let last = client.stop().await;
    assert_eq!(last.failed_total, failed);
    assert!(last.requests_total > healthy.requests_total + failed, "{last:?}");
    server.kill().await;
}

#[tokio::test]
async fn a_server_that_is_told_to_stop_costs_nothing() {
    let leaving = Server::start(ONE, 0, SOON).await;
    let staying = Server::start(TWO, leaving.port, SOON).await;
    let names = Names::default();
    names.set(&[ONE, TWO]);
    let mut client = Client::start(leaving.port, &names);
    client.summary(|s| s.requests_total > 20).await;

    leaving.stop.send(()).unwrap();
    // The name service leads there still, and the server answers as long as it is asked.
    let before = client.summary(|_| true).await;
    let after = client.summary(|s| s.requests_total > before.requests_total + 20).await;
    assert_eq!(after.failed_total, 0);
    assert!(!leaving.task.is_finished());
    names.set(&[TWO]);
    timeout(PATIENCE, leaving.task).await.expect("idle").unwrap().unwrap();
    let after = client.summary(|_| true).await;
    client.summary(|s| s.requests_total > after.requests_total).await;
    assert_eq!(client.stop().await.failed_total, 0);
    staying.kill().await;
}

#[tokio::test]
async fn each_address_is_tried_and_a_dead_one_is_named() {
    let alive = Server::start(ONE, 0, SOON).await;
    let names = Names::default();
    names.set(&[ONE]);
    let mut client = Client::start(alive.port, &names);
    client.summary(|s| s.requests_total > 0).await;
    names.set(&[TWO, ONE]);
    let mut targets = BTreeSet::new();
    for _ in 0..5 {
        targets.insert(client.failure().await.target);
    }
    assert_eq!(targets, BTreeSet::from([Some(IpAddr::V4(TWO))]));
    names.set(&[]);
    let nameless = client
        .until(|line| match line {
            Line::Failure(failure) if failure.target.is_none() => Some(failure.clone()),
            Line::Failure(_) | Line::Summary(_) => None,
        })
        .await;
    assert_eq!(nameless.error, "probe-server has no address");
    client.stop().await;
    alive.kill().await;
}

#[tokio::test]
async fn what_fails_before_the_first_answer_is_counted_apart() {
    let names = Names::default();
    let parked = TcpListener::bind((ONE, 0)).await.unwrap();
    let port = parked.local_addr().unwrap().port();
    drop(parked);
    let mut client = Client::start(port, &names);
    let waiting = client.summary(|s| s.before_first_answer > 0).await;
    assert_eq!((waiting.requests_total, waiting.failed_total), (0, 0));
    assert_eq!(waiting.waiting.as_deref(), Some("probe-server has no address"));

    let server = Server::start(ONE, port, SOON).await;
    names.set(&[ONE]);
    let answered = client.summary(|s| s.requests_total > 0).await;
    assert_eq!((answered.failed_total, answered.waiting), (0, None));
    assert!(answered.since > waiting.since);
    client.stop().await;
    server.kill().await;
}

#[tokio::test]
async fn silence_and_other_answers_are_failures() {
    let listener = TcpListener::bind((ONE, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let target: Target = format!("http://{address}/").parse().unwrap();
    let limits = Limits { connect: Duration::from_millis(500), total: Duration::from_millis(600) };
    let names = Names::default();

    // The kernel takes the connection, and nobody answers.
    let begin = Instant::now();
    let (ip, result) = request::send(&target, limits, &names, &|_| 0).await;
    assert_eq!(ip, Some(ONE.into()));
    assert_eq!(request::in_one_line(&result.unwrap_err()), "no answer within 600 ms");
    assert!(begin.elapsed() >= limits.total);
    drop(listener.accept().await.unwrap());

    let cases = [
        ("HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n", "answered 503"),
        ("HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf", "reading the answer: "),
        ("", "asking: "),
    ];
    for (answer, expected) in cases {
        let (sent, served) = tokio::join!(request::send(&target, limits, &names, &|_| 0), async {
            let (mut stream, _) = listener.accept().await?;
            let mut head = [0; 1024];
            assert_ne!(stream.read(&mut head).await?, 0);
            stream.write_all(answer.as_bytes()).await
        });
        served.unwrap();
        let error = request::in_one_line(&sent.1.unwrap_err());
        assert!(error.starts_with(expected), "{error}");
    }
}

/// Sends a request on an open connection and gives the answer, which the test knows the end of.
async fn ask(stream: &mut TcpStream) -> String {
    stream.write_all(b"GET / HTTP/1.1\r\nhost: probe\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"node-1 probe\n") {
        assert_ne!(stream.read_buf(&mut answer).await.unwrap(), 0, "cut off");
    }
    String::from_utf8(answer).unwrap().to_lowercase()
}

#[tokio::test]
async fn a_stopping_server_asks_for_the_connection_to_be_closed() {
    let server = Server::start(ONE, 0, SOON).await;
    let mut stream = TcpStream::connect((ONE, server.port)).await.unwrap();
    let mut unused = TcpStream::connect((ONE, server.port)).await.unwrap();
    for _ in 0..2 {
        let answer = ask(&mut stream).await;
        assert!(answer.starts_with("http/1.1 200 ok"), "{answer}");
        assert!(!answer.contains("connection: close"), "{answer}");
    }
    server.stop.send(()).unwrap();
    // The server may still be on its way to learn of it; each answer renews its idle time.
    let closing = async {
        loop {
            let answer = ask(&mut stream).await;
            if answer.contains("connection: close") {
                return answer;
            }
        }
    };
    assert!(timeout(PATIENCE, closing).await.unwrap().starts_with("http/1.1 200 ok"));
    assert_eq!(stream.read(&mut [0; 1]).await.unwrap(), 0);
    // A connection that says nothing keeps nobody waiting.
    timeout(SOON.bound / 2, server.task).await.expect("idle").unwrap().unwrap();
    assert_eq!(unused.read(&mut [0; 1]).await.unwrap_or(0), 0);
}

#[tokio::test]
async fn health_checks_do_not_keep_a_server_from_leaving() {
    let server = Server::start(ONE, 0, SOON).await;
    let port = server.port;
    let target: Target = format!("http://{ONE}:{port}{}", server::HEALTH_PATH).parse().unwrap();
    let checks = tokio::spawn(async move {
        let mut answered = 0;
        while request::send(&target, LIMITS, &Names::default(), &|_| 0).await.1.is_ok() {
            answered += 1;
        }
        answered
    });
    server.stop.send(()).unwrap();
    timeout(SOON.bound / 2, server.task).await.expect("idle").unwrap().unwrap();
    assert_ne!(timeout(PATIENCE, checks).await.unwrap().unwrap(), 0);
}

#[tokio::test]
async fn a_server_that_is_never_idle_ends_all_the_same() {
    let farewell = Farewell { idle: Duration::from_secs(60), bound: Duration::from_millis(500) };
    let server = Server::start(ONE, 0, farewell).await;
    let names = Names::default();
    names.set(&[ONE]);
    let mut client = Client::start(server.port, &names);
    client.summary(|s| s.requests_total > 0).await;
    let begin = Instant::now();
    server.stop.send(()).unwrap();
    timeout(PATIENCE, server.task).await.expect("the bound").unwrap().unwrap();
    assert!(begin.elapsed() >= farewell.bound);
    client.stop().await;
}

#[tokio::test]
async fn every_name_is_resolved_anew() {
    // A name server whose every answer is another address, good for an hour.
    let socket = UdpSocket::bind((ONE, 0)).await.unwrap();
    let port = socket.local_addr().unwrap().port();
    tokio::spawn(async move {
        let mut buffer = [0; 512];
        for last in 1.. {
            let (length, peer) = socket.recv_from(&mut buffer).await.unwrap();
            let query = Message::from_vec(&buffer[..length]).unwrap();
            let mut answer = query.clone().into_response();
            let name = query.queries[0].name().clone();
            answer.add_answer(Record::from_rdata(name, 3_600, RData::A(A::new(10, 0, 0, last))));
            socket.send_to(&answer.to_vec().unwrap(), peer).await.unwrap();
        }
    });
    let mut connection = ConnectionConfig::udp();
    connection.port = port;
    let server = NameServerConfig::new(ONE.into(), true, vec![connection]);
    let config = ResolverConfig::from_parts(None, vec![], vec![server]);
    let mut builder = TokioResolver::builder_with_config(config, TokioRuntimeProvider::default());
    request::uncached(builder.options_mut(), Duration::from_secs(2));
    let resolver = builder.build().unwrap();
    for last in 1..=3 {
        let found = timeout(PATIENCE, resolver.resolve("probe-server")).await.unwrap().unwrap();
        assert_eq!(found, [IpAddr::from([10, 0, 0, last])]);
    }
}
