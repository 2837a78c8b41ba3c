//! The socket that the CLI calls: mode 0600 in the coordinator's folder, so only the host's root comes in.
//! Routes only; what they do is in [`crate::ops`], [`crate::deploy`], [`super::store`] and [`super::fetch`].

use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use axum::body::Body;
use axum::extract;
use axum::extract::connect_info::Connected;
use axum::extract::{ConnectInfo, Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post, put};
use axum::serve::IncomingStream;
use axum::{Json, Router};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::{UnixListener, UnixStream};

use super::fetch::Fetcher;
use super::store;
use crate::api::{
    DeployArgs, Deployed, Deployment, DiagArgs, Failure, FailureKind, FetchArgs, GrantArgs, HistoryView, PlanView,
    ReleaseArgs, ReleaseView, RollbackArgs, RolloutHistory, Started, StatusView, StoredBundle, UndeployArgs,
    Undeployed, UpgradeArgs, VERSION_HEADER, VerifyView,
};
use crate::deploy::Deployer;
use crate::diag::Diag;
use crate::effect::{OnHost, perform};
use crate::ops::Ops;
use crate::probe::ProbeReport;

/// This server's version; a CLI of another one is refused.
pub(crate) const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The longest JSON body, bytes.
const MAX_BODY: usize = 1 << 20;

/// What the socket serves from.
pub(crate) struct Operator {
    pub(crate) ops: Arc<Ops>,
    pub(crate) deployer: Deployer,
    pub(crate) fetcher: Arc<Fetcher>,
    pub(crate) diag: Arc<Diag>,
    /// The folder of bundles.
    pub(crate) bundles: PathBuf,
}

/// The socket can't be made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SocketError {
    /// Another server answers on it.
    #[error("another coordinator serves on {path} already")]
    Taken {
        /// Where.
        path: PathBuf,
    },
    /// It can't be made.
    #[error("can't make the socket {path}")]
    Make {
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Makes the socket at `path`, in the place of one that a dead server left.
pub(crate) async fn listen(path: &Path) -> Result<UnixListener, SocketError> {
    if UnixStream::connect(path).await.is_ok() {
        return Err(SocketError::Taken { path: path.to_owned() });
    }
    // Made under another name first: at `path` there is never a socket with another mode.
    let new = path.with_extension("sock.new");
    let failed = |source| SocketError::Make { path: path.to_owned(), source };
    if new.symlink_metadata().is_ok() {
        perform(OnHost::RemoveFile { path: &new }).await.map_err(failed)?;
    }
    let mut listener = None;
    perform(OnHost::BindSocket { path: &new, listener: &mut listener }).await.map_err(failed)?;
    perform(OnHost::GuardSocket { path: &new }).await.map_err(failed)?;
    perform(OnHost::Rename { from: &new, to: path }).await.map_err(failed)?;
    listener.ok_or_else(|| failed(io::ErrorKind::NotConnected.into()))
}

/// Serves until `shutdown`, then lets requests under way finish.
pub(crate) async fn serve(
    listener: UnixListener,
    operator: Arc<Operator>,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()> {
    let service = router(operator).into_make_service_with_connect_info::<Uid>();
    axum::serve(listener, service).with_graceful_shutdown(shutdown).await
}

fn router(operator: Arc<Operator>) -> Router {
    Router::new()
        .route("/bundle", put(put_bundle))
        .route("/fetch", post(fetch))
        .route("/plan", post(plan))
        .route("/rollouts", post(start))
        .route("/rollback", post(rollback))
        .route("/status", get(status))
        .route("/grant", post(grant))
        .route("/release", post(release))
        .route("/history", get(history))
        .route("/history/{id}", get(rollout_history))
        .route("/pause", post(pause))
        .route("/resume", post(resume))
        .route("/abort", post(abort))
        .route("/take-over", post(take_over))
        .route("/deploy", post(deploy))
        .route("/probe", get(probe))
        .route("/verify", post(verify))
        .route("/undeploy", get(deployment).post(undeploy))
        .route("/diag", post(diag))
        .fallback(async || {
            Answer(StatusCode::NOT_FOUND, refused("the server does not know this request".to_owned(), None))
        })
        .with_state(operator)
        .layer(middleware::from_fn(same_version))
}

/// User ID of the peer, as the kernel tells (SO_PEERCRED); absent where it doesn't.
#[derive(Clone, Copy, Debug)]
struct Uid(Option<u32>);

impl Connected<IncomingStream<'_, UnixListener>> for Uid {
    fn connect_info(stream: IncomingStream<'_, UnixListener>) -> Self {
        Self(stream.io().peer_cred().ok().map(|peer| peer.uid()))
    }
}

impl Uid {
    fn known(self) -> Result<u32, Failure> {
        self.0.ok_or_else(|| refused("the kernel does not say who asks".to_owned(), None))
    }
}

/// A failure with its status.
pub(super) struct Answer(StatusCode, Failure);

impl From<Failure> for Answer {
    fn from(failure: Failure) -> Self {
        let status = match failure.kind {
            FailureKind::Failed => StatusCode::INTERNAL_SERVER_ERROR,
            FailureKind::Refused => StatusCode::CONFLICT,
            FailureKind::Unreachable => StatusCode::SERVICE_UNAVAILABLE,
        };
        Self(status, failure)
    }
}

impl IntoResponse for Answer {
    fn into_response(self) -> Response {
        (self.0, Json(self.1)).into_response()
    }
}

type Answered<T> = Result<Json<T>, Answer>;

fn answered<T: Serialize>(result: Result<T, Failure>) -> Answered<T> {
    result.map(Json).map_err(Answer::from)
}

fn refused(error: String, hint: Option<String>) -> Failure {
    Failure { kind: FailureKind::Refused, error, hint }
}

async fn same_version(request: Request, next: Next) -> Response {
    let theirs = request.headers().get(VERSION_HEADER).map(|value| String::from_utf8_lossy(value.as_bytes()));
    if theirs.as_deref() == Some(VERSION) {
        return next.run(request).await;
    }
    let theirs = theirs.map_or_else(|| "of no known version".to_owned(), |version| format!("version {version}"));
    let hint = "install the server's own: `docker run --rm -v /usr/local/bin:/out IMAGE coordinator install /out` \
                with the image of container `requeen`"
        .to_owned();
    let failure = refused(format!("this command is {theirs}, the server is version {VERSION}"), Some(hint));
    Answer::from(failure).into_response()
}

/// A JSON body; what is wrong with it comes back as a [`Failure`] like everything else.
async fn parsed<T: DeserializeOwned>(body: Body) -> Result<T, Failure> {
    let unreadable = |error: &dyn std::fmt::Display| refused(format!("the request can't be read: {error}"), None);
    let bytes = axum::body::to_bytes(body, MAX_BODY).await.map_err(|error| unreadable(&error))?;
    serde_json::from_slice(&bytes).map_err(|error| unreadable(&error))
}

type App = State<Arc<Operator>>;

async fn put_bundle(State(app): App, request: Request) -> Answered<StoredBundle> {
    let length = request.headers().get(header::CONTENT_LENGTH);
    let length = length.and_then(|value| value.to_str().ok()?.parse().ok());
    let stream = request.into_body().into_data_stream();
    answered(store::store(&app.bundles, stream, length, None).await.map_err(|error| error.failure()))
}

async fn fetch(State(app): App, body: Body) -> Result<Response, Answer> {
    let args: FetchArgs = parsed(body).await?;
    Ok(Arc::clone(&app.fetcher).answer(args))
}

async fn plan(State(app): App, body: Body) -> Answered<PlanView> {
    let args: UpgradeArgs = parsed(body).await?;
    answered(app.ops.plan(args).await)
}

async fn start(State(app): App, ConnectInfo(uid): ConnectInfo<Uid>, body: Body) -> Answered<Started> {
    let args: UpgradeArgs = parsed(body).await?;
    answered(app.ops.start(args, uid.known()?).await)
}

async fn rollback(State(app): App, ConnectInfo(uid): ConnectInfo<Uid>, body: Body) -> Answered<Started> {
    let args: RollbackArgs = parsed(body).await?;
    answered(app.ops.rollback(args, uid.known()?).await)
}

async fn status(State(app): App) -> Answered<StatusView> {
    answered(app.ops.status().await)
}

async fn grant(State(app): App, body: Body) -> Answered<serde_json::Value> {
    let args: GrantArgs = parsed(body).await?;
    answered(app.ops.grant(args).await.map(|()| serde_json::json!({})))
}

async fn release(State(app): App, ConnectInfo(uid): ConnectInfo<Uid>, body: Body) -> Answered<ReleaseView> {
    let args: ReleaseArgs = parsed(body).await?;
    answered(app.ops.release(args, uid.known()?).await)
}

async fn history(State(app): App) -> Answered<HistoryView> {
    answered(app.ops.history().await)
}

async fn rollout_history(State(app): App, extract::Path(id): extract::Path<String>) -> Answered<RolloutHistory> {
    answered(app.ops.rollout_history(&id).await)
}

async fn pause(State(app): App) -> Answered<StatusView> {
    answered(app.ops.pause().await)
}

async fn resume(State(app): App) -> Answered<StatusView> {
    answered(app.ops.resume().await)
}

async fn abort(State(app): App) -> Answered<StatusView> {
    answered(app.ops.abort().await)
}

async fn take_over(State(app): App) -> Answered<StatusView> {
    answered(app.ops.take_over().await)
}

async fn deploy(State(app): App, body: Body) -> Answered<Deployed> {
    let args: DeployArgs = parsed(body).await?;
    answered(app.deployer.deploy(&args).await.map_err(|error| error.failure()))
}

async fn probe(State(app): App) -> Answered<ProbeReport> {
    answered(app.ops.probe().await)
}

async fn verify(State(app): App) -> Answered<VerifyView> {
    answered(app.ops.verify().await)
}

async fn deployment(State(app): App) -> Answered<Deployment> {
    answered(app.ops.deployment().await)
}

async fn undeploy(State(app): App, body: Body) -> Answered<Undeployed> {
    let args: UndeployArgs = parsed(body).await?;
    answered(app.ops.undeploy(args).await)
}

async fn diag(State(app): App, body: Body) -> Result<Response, Answer> {
    let args: DiagArgs = parsed(body).await?;
    Ok(Body::from_stream(app.diag.begin(args).await?).into_response())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;
    use std::time::Duration;

    use axum::http::Method;
    use bytes::Bytes;
    use http_body_util::{BodyExt, Full};
    use hyper::client::conn::http1;
    use hyper_util::rt::TokioIo;
    use requeen_protocol::{NodeId, NodeState, Report, Speaker};
    use tokio::io::AsyncWriteExt;
    use tokio_util::sync::{CancellationToken, DropGuard};

    use super::*;
    use crate::api::PolicyChoice;
    use crate::hub::Hub;
    use crate::observe::Engine;
    use crate::observe::fake::Fake;

    struct World {
        dir: tempfile::TempDir,
        _stop: DropGuard,
    }

    impl World {
        fn socket(&self) -> PathBuf {
            self.dir.path().join("requeen.sock")
        }

        async fn ask(&self, method: Method, path: &str, version: Option<&str>, body: &str) -> (StatusCode, Failure) {
            let (status, answer) = self.send(method, path, version, Bytes::from(body.to_owned())).await;
            (status, serde_json::from_slice(&answer).unwrap())
        }

        async fn send(&self, method: Method, path: &str, version: Option<&str>, body: Bytes) -> (StatusCode, Bytes) {
            let stream = UnixStream::connect(self.socket()).await.unwrap();
            let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
            tokio::spawn(connection);
            let mut request = Request::builder().method(method).uri(path).header(header::HOST, "requeen");
            if let Some(version) = version {
                request = request.header(VERSION_HEADER, version);
            }
            let request = request.body(Full::new(body)).unwrap();
            let answer = tokio::time::timeout(Duration::from_secs(30), sender.send_request(request)).await;
            let answer = answer.unwrap().unwrap();
            let status = answer.status();
            (status, answer.into_body().collect().await.unwrap().to_bytes())
        }

        /// A connection that has sent the head of a request with a body of `length` bytes, and `begin` of that.
        async fn begin(&self, head: &str, length: usize, begin: &[u8]) -> UnixStream {
            let mut stream = UnixStream::connect(self.socket()).await.unwrap();
            let head = format!(
                "{head} HTTP/1.1\r\nhost: c\r\n{VERSION_HEADER}: {VERSION}\r\ncontent-length: {length}\r\n\r\n"
            );
            stream.write_all(&[head.as_bytes(), begin].concat()).await.unwrap();
            stream
        }

        /// The names of everything in the bundles' folder.
        fn stored(&self) -> Vec<String> {
            let entries = fs::read_dir(self.dir.path().join("bundles")).unwrap();
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
        }
    }

    async fn until(what: &str, reached: impl Fn() -> bool) {
        let waiting = async {
            while !reached() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        assert!(tokio::time::timeout(Duration::from_secs(30), waiting).await.is_ok(), "waited in vain: {what}");
    }

    /// A server whose engine is gone.
    async fn world() -> World {
        world_of(Arc::default(), Engine::new(PathBuf::from("/nonexistent/docker.sock"))).await
    }

    async fn world_of(hub: Arc<Hub>, engine: Engine) -> World {
        let dir = tempfile::tempdir().unwrap();
        let engine = Arc::new(engine);
        let bundles = dir.path().join("bundles");
        store::prepare(&bundles).await.unwrap();
        let ops = Arc::new(Ops::new(Arc::clone(&hub), Arc::clone(&engine), dir.path().to_owned()));
        let operator = Operator {
            diag: Arc::new(Diag::new(Arc::clone(&ops), Arc::default(), VERSION)),
            ops,
            deployer: Deployer::new(engine, hub, 1, VERSION, dir.path().to_owned()),
            fetcher: Arc::new(Fetcher::new(dir.path().to_owned())),
            bundles,
        };
        let listener = listen(&dir.path().join("requeen.sock")).await.unwrap();
        let stop = CancellationToken::new();
        tokio::spawn(serve(listener, Arc::new(operator), stop.clone().cancelled_owned()));
        World { dir, _stop: stop.drop_guard() }
    }

    #[tokio::test]
    async fn only_its_owner_can_use_the_socket() {
        let world = world().await;
        let mode = fs::metadata(world.socket()).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[tokio::test]
    async fn a_dead_servers_socket_is_replaced_and_a_live_ones_is_not() {
        let world = world().await;
        assert!(matches!(listen(&world.socket()).await, Err(SocketError::Taken { .. })));
        let dead = world.dir.path().join("dead.sock");
        drop(std::os::unix::net::UnixListener::bind(&dead).unwrap());
        listen(&dead).await.unwrap();
        assert!(!world.dir.path().join("dead.sock.new").exists());
    }

    #[tokio::test]
    async fn another_version_of_the_command_is_refused() {
        let world = world().await;
        for (theirs, words) in [(Some("0.0.0-other"), "version 0.0.0-other"), (None, "of no known version")] {
            let (status, failure) = world.ask(Method::GET, "/status", theirs, "").await;
            assert_eq!((status, failure.kind), (StatusCode::CONFLICT, FailureKind::Refused));
            assert!(failure.error.contains(words) && failure.error.contains(VERSION), "{}", failure.error);
            assert!(failure.hint.unwrap().contains("install"));
        }
    }

    #[tokio::test]
    async fn every_refusal_is_a_failure_with_a_kind() {
        let world = world().await;
        let version = Some(VERSION);
        let (status, failure) = world.ask(Method::GET, "/nowhere", version, "").await;
        assert_eq!((status, failure.kind), (StatusCode::NOT_FOUND, FailureKind::Refused));
        let (status, failure) = world.ask(Method::POST, "/grant", version, "{}").await;
        assert_eq!((status, failure.kind), (StatusCode::CONFLICT, FailureKind::Refused));
        assert!(failure.error.contains("node"), "names the missing field: {}", failure.error);
        let body = r#"{"url":"http://h/x","digest":"sha256:","roots":[]}"#;
        let (status, failure) = world.ask(Method::POST, "/fetch", version, body).await;
        assert_eq!((status, failure.kind), (StatusCode::CONFLICT, FailureKind::Refused));
        assert!(failure.error.contains("https://"), "{}", failure.error);
        let (status, failure) = world.ask(Method::PUT, "/bundle?name=x", version, "no bundle").await;
        assert_eq!((status, failure.kind), (StatusCode::CONFLICT, FailureKind::Refused));
        let body = r#"{"image":"i","print":true}"#;
        let (status, failure) = world.ask(Method::POST, "/deploy", version, body).await;
        assert_eq!((status, failure.kind), (StatusCode::SERVICE_UNAVAILABLE, FailureKind::Unreachable));
    }

    #[tokio::test]
    async fn an_upload_that_is_broken_off_leaves_nothing() {
        let world = world().await;
        let upload = world.begin("PUT /bundle?name=x", 1 << 20, &[0x1f, 0x8b]).await;
        until("the file that is being received", || world.stored().len() == 1).await;
        drop(upload);
        until("its end", || world.stored().is_empty()).await;
    }

    #[tokio::test]
    async fn a_plan_whose_operator_has_left_ends_its_staging() {
        let (hub, fake) = (Arc::new(Hub::default()), Fake::start(&["m1"], &[]));
        let world = world_of(Arc::clone(&hub), fake.engine()).await;
        let bundle = {
            let mut header = tar::Header::new_gnu();
            let own = &fs::read("/proc/self/exe").unwrap()[..4096];
            header.set_size(own.len() as u64);
            let level = flate2::Compression::fast();
            let mut tar = tar::Builder::new(flate2::write::GzEncoder::new(Vec::new(), level));
            tar.append_data(&mut header, "docker/dockerd", own).unwrap();
            tar.into_inner().unwrap().finish().unwrap()
        };
        let (status, stored) = world.send(Method::PUT, "/bundle?name=x", Some(VERSION), bundle.into()).await;
        assert_eq!(status, StatusCode::OK, "{stored:?}");
        let stored: StoredBundle = serde_json::from_slice(&stored).unwrap();
        // An agent that was heard and does not stage.
        hub.report(Report {
            node: NodeId::from("m1"),
            agent_version: "1".to_owned(),
            speaker: Speaker::Task,
            boot_id: "b".to_owned(),
            engine: None,
            installed: None,
            state: NodeState::Idle,
            seen: None,
            memo: None,
            unreached: Vec::new(),
            troubles: Vec::new(),
        });
        let args = UpgradeArgs {
            bundle: stored.bundle.digest,
            policy: PolicyChoice::Auto,
            workers_at_once: 1,
            only: Vec::new(),
            exclude: Vec::new(),
            manual: false,
            accept_control_plane_outage: true,
            allow_downgrade: false,
            start_timeout_secs: 60,
            // More than any clock can tell.
            stage_timeout_secs: u64::MAX,
            only_outdated: false,
            not_after: None,
            keep_raft_copy: false,
        };
        let question = serde_json::to_vec(&args).unwrap();
        for path in ["POST /plan", "POST /rollouts"] {
            let asked = world.begin(path, question.len(), &question).await;
            until("the staging", || hub.staging().is_some()).await;
            drop(asked);
            until("the staging's end", || hub.staging().is_none()).await;
        }
        assert!(fake.world().configs.is_empty(), "a rollout was recorded");
    }
}
