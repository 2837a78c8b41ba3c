//! The port that agents call: HTTPS, both sides with the certificates that their swarm gave them.

use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Extension, Path, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use bytes::Bytes;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use jiff::Timestamp;
use nix::sys::socket::{setsockopt, sockopt};
use requeen_protocol::{
    BUNDLE_PATH, CLOCK_HEADER, COLLECT_HEADER, COLLECT_PATH, Collect, Digest, ErrorBody, LONG_POLL_SECS, MAX_COLLECTED,
    Order, PROTOCOL_HEADER, PROTOCOL_VERSION, REPORT_PATH, Report, UnlockKey, WANTED_HEADER,
};
use rustls::{AlertDescription, CertificateError};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::collect;
use super::doors::{Doors, Limits, Visitor};
use super::download;
use super::refusals::Refusals;
use super::store::{self, bundle_path};
use super::unlock;
use super::words::chain;
use crate::hub::Hub;
use crate::identity::files::FilesError;
use crate::identity::gate::{Admitted, Gate, Refused};
use crate::identity::peer::{PeerName, PeerNameError};
use crate::identity::swarm::Swarm;

/// How long to wait before the next try to accept a connection.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);

/// How long to wait before the swarm is asked again for an unlock key that it did not give.
const KEY_AGAIN: Duration = Duration::from_secs(1);

/// The longest report, bytes.
const MAX_REPORT: usize = 1 << 20;

/// The longest head of a request, bytes. An agent's has some hundred.
const MAX_HEAD: usize = 32 << 10;

/// How long clients may take. Nodes answer in milliseconds; what is given here is for those under load.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Patience {
    /// For the TLS handshake.
    pub(crate) handshake: Duration,
    /// For a request's head, counted from the handshake or the last answer: so long a connection may be idle, too.
    pub(crate) head: Duration,
    /// For a report's body.
    pub(crate) body: Duration,
    /// For taking anything of what was sent to them.
    pub(crate) taking: Duration,
}

impl Patience {
    /// As it is outside tests.
    pub(crate) const USUAL: Self = Self {
        handshake: Duration::from_secs(10),
        head: Duration::from_secs(10),
        body: Duration::from_secs(10),
        taking: Duration::from_secs(60),
    };
}

/// What the port serves from.
pub(crate) struct Agents<S> {
    pub(crate) gate: Gate<S>,
    pub(crate) hub: Arc<Hub>,
    /// The folder of bundles, each named by its digest.
    pub(crate) bundles: PathBuf,
    pub(crate) refusals: Refusals,
    pub(crate) doors: Arc<Doors>,
    pub(crate) patience: Patience,
    /// Tells the time of day here.
    pub(crate) time_of_day: fn() -> Timestamp,
    /// How long an answer that would repeat the order seen is held.
    pub(crate) long_poll: Duration,
    /// The largest part of a collection, bytes.
    pub(crate) max_collected: u64,
}

impl<S> Agents<S> {
    /// As it is outside tests.
    pub(crate) fn new(gate: Gate<S>, hub: Arc<Hub>, bundles: PathBuf) -> Self {
        let long_poll = Duration::from_secs(LONG_POLL_SECS);
        let (doors, patience) = (Arc::new(Doors::new(Limits::USUAL)), Patience::USUAL);
        let refusals = Refusals::default();
        let (time_of_day, max_collected) = (Timestamp::now, MAX_COLLECTED);
        Self { gate, hub, bundles, refusals, doors, patience, time_of_day, long_poll, max_collected }
    }
}

/// The client of a connection.
#[derive(Clone)]
pub(super) struct Peer {
    address: IpAddr,
    pub(super) name: Arc<PeerName>,
    /// Whether this connection has brought a request.
    asked: Arc<AtomicBool>,
}

/// Why a client never came to its first request.
#[derive(Debug, thiserror::Error)]
enum ConnectError {
    #[error("this node has no certificate to serve with: {0}")]
    Own(FilesError),
    #[error("the TLS handshake failed: {0}")]
    Handshake(io::Error),
    #[error(
        "the TLS handshake failed: {0}; is the clock of that node right, and this manager's (`timedatectl`)? Engines make \
         a new certificate before the old one expires"
    )]
    Clock(io::Error),
    #[error("the TLS handshake took too long")]
    Timeout,
    #[error("it has no client certificate")]
    NoCertificate,
    #[error("{0}")]
    Name(PeerNameError),
}

/// Serves until `shutdown`. Requests under way then are dropped: agents ask again.
pub(crate) async fn serve<S: Swarm>(listener: TcpListener, agents: Arc<Agents<S>>, shutdown: impl Future<Output = ()>) {
    let router = router(Arc::clone(&agents));
    let mut connections = JoinSet::new();
    tokio::pin!(shutdown);
    loop {
        tokio::select! {
            () = &mut shutdown => return,
            Some(_) = connections.join_next() => {}
            accepted = listener.accept() => match accepted {
                Ok((stream, address)) => {
                    let visitor = agents.doors.knock(address.ip());
                    connections.spawn(connection(Arc::clone(&agents), router.clone(), stream, address, visitor));
                }
                Err(error) => {
                    tracing::debug!(error = &error as &dyn std::error::Error, "can't accept a connection");
                    // Most likely out of descriptors: strangers give theirs back first. Nothing tells when there
                    // are some again.
                    agents.doors.shed();
                    tokio::time::sleep(ACCEPT_AGAIN).await;
                }
            },
        }
    }
}

async fn connection<S: Swarm>(
    agents: Arc<Agents<S>>,
    router: Router,
    stream: TcpStream,
    address: SocketAddr,
    mut visitor: Visitor,
) {
    let must_go = visitor.must_go();
    let told = tokio::select! {
        () = must_go => true,
        () = talk(&agents, router, stream, address, &mut visitor) => false,
    };
    if told {
        agents.refusals.log(address.ip(), &format!("its connection was closed: {}", visitor.why()));
    }
}

async fn talk<S: Swarm>(
    agents: &Agents<S>,
    router: Router,
    stream: TcpStream,
    address: SocketAddr,
    visitor: &mut Visitor,
) {
    let Patience { handshake, head, taking, .. } = agents.patience;
    // The kernel counts for us: so long may bytes wait for a peer that has gone, or that does not read on.
    let taking = u32::try_from(taking.as_millis()).unwrap_or(u32::MAX);
    if let Err(error) = setsockopt(&stream, sockopt::TcpUserTimeout, &taking) {
        tracing::debug!(client = %address, error = &error as &dyn std::error::Error, "no limit for a silent peer");
    }
    let greeted = timeout(handshake, greet(&agents.gate, stream)).await;
    let (stream, name) = match greeted.unwrap_or(Err(ConnectError::Timeout)) {
        Ok(connected) => connected,
        Err(error) => {
            agents.refusals.log(address.ip(), &error.to_string());
            return;
        }
    };
    visitor.admit(&name.node);
    let asked = Arc::new(AtomicBool::new(false));
    let peer = Peer { address: address.ip(), name: Arc::new(name), asked: Arc::clone(&asked) };
    let service = TowerToHyperService::new(router.layer(Extension(peer)));
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(head)
        .max_buf_size(MAX_HEAD)
        .serve_connection(TokioIo::new(stream), service)
        .await;
    if let Err(error) = served {
        // A client that has asked before may keep its connection for later, until it has been idle for too long.
        if error.is_parse() || (error.is_timeout() && !asked.load(Ordering::Relaxed)) {
            agents.refusals.log(address.ip(), &format!("its request can't be read: {error}"));
        }
        tracing::debug!(client = %address, error = &error as &dyn std::error::Error, "connection ended");
    }
}

async fn greet<S: Swarm>(gate: &Gate<S>, stream: TcpStream) -> Result<(TlsStream<TcpStream>, PeerName), ConnectError> {
    let tls = gate.tls().await.map_err(ConnectError::Own)?;
    let stream = TlsAcceptor::from(tls.config).accept(stream).await;
    let stream =
        stream.map_err(
            |error| if is_of_time(&error) { ConnectError::Clock(error) } else { ConnectError::Handshake(error) },
        )?;
    let (_, session) = stream.get_ref();
    let leaf = session.peer_certificates().and_then(|chain| chain.first()).ok_or(ConnectError::NoCertificate)?;
    let name = PeerName::of(leaf).map_err(ConnectError::Name)?;
    Ok((stream, name))
}

/// Whether one side takes the other's certificate for one of the past or of the future.
fn is_of_time(error: &io::Error) -> bool {
    let error = error.get_ref().and_then(|error| error.downcast_ref::<rustls::Error>());
    match error {
        Some(rustls::Error::InvalidCertificate(found)) => matches!(
            found,
            CertificateError::Expired
                | CertificateError::ExpiredContext { .. }
                | CertificateError::NotValidYet
                | CertificateError::NotValidYetContext { .. }
        ),
        // What rustls says for both.
        Some(rustls::Error::AlertReceived(alert)) => *alert == AlertDescription::CertificateExpired,
        Some(_) | None => false,
    }
}

fn router<S: Swarm>(agents: Arc<Agents<S>>) -> Router {
    Router::new()
        .route(REPORT_PATH, post(report::<S>))
        .route(&format!("{BUNDLE_PATH}{{hex}}"), get(bundle::<S>).put(take_bundle::<S>))
        .route(&format!("{COLLECT_PATH}{{id}}"), post(collect::part::<S>))
        .fallback(async || Answer::new(StatusCode::NOT_FOUND, "there is nothing at this address"))
        .method_not_allowed_fallback(async || {
            Answer::new(StatusCode::METHOD_NOT_ALLOWED, "this address is not asked like that")
        })
        .layer(middleware::from_fn_with_state(Arc::clone(&agents), admit::<S>))
        .with_state(agents)
}

/// An answer that is not a success.
#[derive(Debug)]
pub(super) struct Answer {
    status: StatusCode,
    body: ErrorBody,
}

impl Answer {
    pub(super) fn new(status: StatusCode, error: impl Into<String>) -> Self {
        Self { status, body: ErrorBody { error: error.into(), hint: None } }
    }

    fn hint(mut self, hint: impl Into<String>) -> Self {
        self.body.hint = Some(hint.into());
        self
    }
}

impl IntoResponse for Answer {
    fn into_response(self) -> Response {
        (self.status, Json(self.body)).into_response()
    }
}

/// Every request passes here: a connection may live longer than its node's membership.
async fn admit<S: Swarm>(
    State(agents): State<Arc<Agents<S>>>,
    Extension(peer): Extension<Peer>,
    mut request: Request,
    next: Next,
) -> Response {
    peer.asked.store(true, Ordering::Relaxed);
    let admitted = match agents.gate.admit(&peer.name).await {
        Ok(admitted) => admitted,
        Err(refused) => {
            agents.refusals.log(peer.address, &refused.to_string());
            if let Refused::NotANode { node } = &refused {
                agents.hub.forget_node(node);
            }
            return Answer::new(StatusCode::FORBIDDEN, refused.to_string()).into_response();
        }
    };
    if let Err(answer) = same_protocol(request.headers()) {
        agents.refusals.log(peer.address, &answer.body.error);
        return answer.into_response();
    }
    request.extensions_mut().insert(admitted);
    next.run(request).await
}

fn same_protocol(headers: &HeaderMap) -> Result<(), Answer> {
    let theirs = headers.get(PROTOCOL_HEADER).and_then(|value| value.to_str().ok());
    if theirs.and_then(|text| text.parse().ok()) == Some(PROTOCOL_VERSION) {
        return Ok(());
    }
    let theirs = theirs.map_or_else(|| "none".to_owned(), |text| format!("version {text:?}"));
    let error = format!("the coordinator speaks version {PROTOCOL_VERSION} of the protocol, the agent {theirs}");
    Err(Answer::new(StatusCode::UPGRADE_REQUIRED, error)
        .hint("bring the agents to the coordinator's version: `requeen deploy` on this manager"))
}

async fn report<S: Swarm>(
    State(agents): State<Arc<Agents<S>>>,
    Extension(peer): Extension<Peer>,
    Extension(admitted): Extension<Admitted>,
    headers: HeaderMap,
    body: Body,
) -> Result<(HeaderMap, Json<Order>), Answer> {
    // Before the body is waited for.
    let clocks = clock(&headers).map(|theirs| (theirs, (agents.time_of_day)().as_second()));
    let body = read(&headers, body, agents.patience.body).await.inspect_err(|answer| {
        agents.refusals.log(peer.address, &answer.body.error);
    })?;
    let report: Report = serde_json::from_slice(&body).map_err(|error| {
        let error = format!("the body is no report: {error}");
        agents.refusals.log(peer.address, &error);
        Answer::new(StatusCode::BAD_REQUEST, error)
    })?;
    if report.node != peer.name.node {
        let error = format!("node {} reported for node {}", peer.name.node, report.node);
        agents.refusals.log(peer.address, &error);
        return Err(Answer::new(StatusCode::FORBIDDEN, error));
    }
    if let Some((theirs, ours)) = clocks {
        agents.hub.clocks.heard(&report.node, theirs, ours);
    }
    let wanted = agents.hub.wanted_of(&report).map(|digest| (WANTED_HEADER, digest.hex().to_owned()));
    // An agent that says nothing of collections is of a version that knows none.
    let heard_of = headers.get(COLLECT_HEADER).and_then(|value| value.to_str().ok());
    let (order, key, collect) = order(&agents, &admitted, report, heard_of).await;
    let collect = collect.map(|collect| (COLLECT_HEADER, collect.to_string()));
    let asked = wanted.into_iter().chain(collect);
    let asked =
        asked.filter_map(|(name, value)| Some((HeaderName::from_static(name), HeaderValue::from_str(&value).ok()?)));
    Ok((asked.chain(key.as_ref().and_then(unlock::header)).collect(), Json(order)))
}

/// What the sender says of the time of day.
fn clock(headers: &HeaderMap) -> Option<i64> {
    headers.get(CLOCK_HEADER)?.to_str().ok()?.parse().ok()
}

/// The body of a report, of bounded length and in bounded time.
async fn read(headers: &HeaderMap, body: Body, patience: Duration) -> Result<Bytes, Answer> {
    let too_long = |found: &dyn std::fmt::Display| {
        let error = format!("the report can't be read (at most {MAX_REPORT} bytes): {found}");
        Answer::new(StatusCode::PAYLOAD_TOO_LARGE, error)
    };
    // What is too long by its own word is not read at all.
    let length = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<usize>().ok());
    if let Some(length) = length.filter(|length| *length > MAX_REPORT) {
        return Err(too_long(&format_args!("it has {length}")));
    }
    timeout(patience, axum::body::to_bytes(body, MAX_REPORT))
        .await
        .map_err(|_| Answer::new(StatusCode::REQUEST_TIMEOUT, "the report took too long to arrive"))?
        .map_err(|error| too_long(&error))
}

/// The order for the node, as soon as it is another one than the one it acts on already, or something is to be
/// asked beside it; then it may be the same order again, as after any long wait.
async fn order<S: Swarm>(
    agents: &Agents<S>,
    admitted: &Admitted,
    report: Report,
    heard_of: Option<&str>,
) -> (Order, Option<UnlockKey>, Option<Collect>) {
    let mut changed = agents.hub.changed();
    agents.hub.report(report.clone());
    let _connected = agents.hub.connected(&report);
    let until = tokio::time::sleep(agents.long_poll);
    tokio::pin!(until);
    loop {
        changed.mark_unchanged();
        let wanted = agents.hub.order_for(&report);
        let seen = report.seen.as_deref() == Some(&wanted);
        let (order, key) =
            if seen { (wanted.clone(), None) } else { unlock::with_key(&agents.gate, admitted, wanted.clone()).await };
        let collect = heard_of.and_then(|heard_of| agents.hub.collections.wanted(&report.node, heard_of));
        if report.seen.as_deref() != Some(&order) || collect.is_some() {
            return (order, key, collect);
        }
        tokio::select! {
            () = &mut until => return (order, key, None),
            gone = changed.changed() => if gone.is_err() {
                return (order, key, None);
            },
            // It was held back for want of the unlock key, which nobody else asks for.
            () = tokio::time::sleep(KEY_AGAIN), if order != wanted => {}
        }
    }
}

async fn bundle<S: Swarm>(
    State(agents): State<Arc<Agents<S>>>,
    Extension(admitted): Extension<Admitted>,
    Path(hex): Path<String>,
    headers: HeaderMap,
) -> Result<Response, Answer> {
    match admitted {
        Admitted::Member(_) => {}
        Admitted::Unconfirmed => {
            let error = "the swarm's managers can't say now who belongs to the swarm";
            return Err(Answer::new(StatusCode::SERVICE_UNAVAILABLE, error).hint("ask again in a few seconds"));
        }
    }
    // Only a digest ever becomes part of a path.
    let digest = Digest::from_hex(&hex).map_err(|error| Answer::new(StatusCode::NOT_FOUND, error.to_string()))?;
    let path = bundle_path(&agents.bundles, &digest);
    download::file(&path, &digest, &headers).await.map_err(|error| {
        if error.kind() == io::ErrorKind::NotFound {
            Answer::new(StatusCode::NOT_FOUND, format!("this coordinator has no bundle {digest}"))
        } else {
            Answer::new(StatusCode::INTERNAL_SERVER_ERROR, format!("can't read bundle {digest}: {error}"))
        }
    })
}

/// An agent brings the bundle that this coordinator lacks. Nothing else is taken.
async fn take_bundle<S: Swarm>(
    State(agents): State<Arc<Agents<S>>>,
    Extension(peer): Extension<Peer>,
    Path(hex): Path<String>,
    body: Body,
) -> Result<StatusCode, Answer> {
    let digest = Digest::from_hex(&hex).map_err(|error| Answer::new(StatusCode::NOT_FOUND, error.to_string()))?;
    if !agents.hub.wants(&digest) {
        let error = format!("node {} sent bundle {digest}, which was not asked for", peer.name.node);
        agents.refusals.log(peer.address, &error);
        return Err(Answer::new(StatusCode::CONFLICT, error));
    }
    store::store(&agents.bundles, body.into_data_stream(), None, Some(&digest)).await.map_err(|error| {
        let why = chain(&error);
        tracing::warn!(node = %peer.name.node, error = why, "the bundle that an agent sent was not taken");
        Answer::new(StatusCode::BAD_REQUEST, why)
    })?;
    agents.hub.set_wanted(None);
    tracing::info!(node = %peer.name.node, %digest, "got the rollout's bundle from an agent");
    Ok(StatusCode::NO_CONTENT)
}
