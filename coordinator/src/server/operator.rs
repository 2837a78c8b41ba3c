//! The socket that the CLI calls: mode 0600 in the coordinator's folder, so only the host's root comes in.
//! Routes only; what they do is in [`crate::ops`], [`crate::deploy`] and [`super::store`].

use std::fs;
use std::future::Future;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use axum::body::Body;
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

use super::store;
use crate::api::{
    DeployArgs, Deployed, Failure, FailureKind, GrantArgs, PlanView, RollbackArgs, Started, StatusView, StoredBundle,
    UpgradeArgs, VERSION_HEADER,
};
use crate::deploy::Deployer;
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
    let make = || {
        match fs::remove_file(&new) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Err(_) | Ok(()) => {}
        }
        let listener = UnixListener::bind(&new)?;
        fs::set_permissions(&new, fs::Permissions::from_mode(0o600))?;
        fs::rename(&new, path)?;
        Ok(listener)
    };
    make().map_err(|source| SocketError::Make { path: path.to_owned(), source })
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
        .route("/plan", post(plan))
        .route("/rollouts", post(start))
        .route("/rollback", post(rollback))
        .route("/status", get(status))
        .route("/grant", post(grant))
        .route("/pause", post(pause))
        .route("/resume", post(resume))
        .route("/abort", post(abort))
        .route("/take-over", post(take_over))
        .route("/deploy", post(deploy))
        .route("/probe", get(probe))
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

struct Answer(StatusCode, Failure);

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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use axum::http::Method;
    use bytes::Bytes;
    use http_body_util::{BodyExt, Full};
    use hyper::client::conn::http1;
    use hyper_util::rt::TokioIo;
    use tokio_util::sync::{CancellationToken, DropGuard};

    use super::*;
    use crate::hub::Hub;
    use crate::observe::Engine;

    struct World {
        dir: tempfile::TempDir,
        _stop: DropGuard,
    }

    impl World {
        fn socket(&self) -> PathBuf {
            self.dir.path().join("requeen.sock")
        }

        async fn ask(&self, method: Method, path: &str, version: Option<&str>, body: &str) -> (StatusCode, Failure) {
            let stream = UnixStream::connect(self.socket()).await.unwrap();
            let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
            tokio::spawn(connection);
            let mut request = Request::builder().method(method).uri(path).header(header::HOST, "requeen");
            if let Some(version) = version {
                request = request.header(VERSION_HEADER, version);
            }
            let request = request.body(Full::new(Bytes::from(body.to_owned()))).unwrap();
            let answer = tokio::time::timeout(Duration::from_secs(30), sender.send_request(request)).await;
            let answer = answer.unwrap().unwrap();
            let status = answer.status();
            let body = answer.into_body().collect().await.unwrap().to_bytes();
            (status, serde_json::from_slice(&body).unwrap())
        }
    }

    /// A server whose engine is gone.
    async fn world() -> World {
        let dir = tempfile::tempdir().unwrap();
        let hub = Arc::new(Hub::default());
        let engine = Arc::new(Engine::new(dir.path().join("docker.sock")));
        let operator = Operator {
            ops: Arc::new(Ops::new(Arc::clone(&hub), Arc::clone(&engine), dir.path().to_owned())),
            deployer: Deployer::new(engine, hub, 1, VERSION, dir.path().to_owned()),
            bundles: dir.path().to_owned(),
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
        let (status, failure) = world.ask(Method::PUT, "/bundle?name=x", version, "no bundle").await;
        assert_eq!((status, failure.kind), (StatusCode::CONFLICT, FailureKind::Refused));
        let body = r#"{"image":"i","print":true}"#;
        let (status, failure) = world.ask(Method::POST, "/deploy", version, body).await;
        assert_eq!((status, failure.kind), (StatusCode::SERVICE_UNAVAILABLE, FailureKind::Unreachable));
    }
}
