//! Speaking to the server: HTTP/1.1 over its unix socket, one connection per request.

use std::convert::Infallible;
use std::io;
use std::path::PathBuf;

use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::header::{CONTENT_LENGTH, CONTENT_TYPE, HOST};
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

use super::error::CliError;
use crate::api::{Failure, FailureKind, StatusView, VERSION_HEADER};

/// Body of a request.
pub(crate) type Body = UnsyncBoxBody<Bytes, io::Error>;

/// The server's socket.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    socket: PathBuf,
}

impl Client {
    /// A client of the server that listens on `socket`. Connects with each request.
    pub(crate) fn new(socket: PathBuf) -> Self {
        Self { socket }
    }

    /// `GET /status`.
    pub(crate) async fn status(&self) -> Result<StatusView, CliError> {
        self.get("/status").await
    }

    /// `GET path`.
    pub(crate) async fn get<A: DeserializeOwned>(&self, path: &str) -> Result<A, CliError> {
        self.send(Method::GET, path, None, empty()).await
    }

    /// `POST path` with `question` as JSON.
    pub(crate) async fn post<A: DeserializeOwned>(&self, path: &str, question: &impl Serialize) -> Result<A, CliError> {
        let json = serde_json::to_vec(question).expect("the API's types are JSON");
        let length = json.len() as u64;
        let body = Full::new(Bytes::from(json)).map_err(never).boxed_unsync();
        self.send(Method::POST, path, Some(length), body).await
    }

    /// `PUT path` with a body of `length` bytes, where that is known.
    pub(crate) async fn put<A: DeserializeOwned>(
        &self,
        path: &str,
        length: Option<u64>,
        body: Body,
    ) -> Result<A, CliError> {
        self.send(Method::PUT, path, length, body).await
    }

    async fn send<A: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        length: Option<u64>,
        body: Body,
    ) -> Result<A, CliError> {
        let asked = format!("{method} {path}");
        let broken = |source| CliError::Talk { request: asked.clone(), source };
        let stream = UnixStream::connect(&self.socket)
            .await
            .map_err(|source| CliError::Connect { socket: self.socket.clone(), source })?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
        // Its errors come out of the request as well.
        let connection = tokio::spawn(connection);
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(HOST, "requeen")
            .header(VERSION_HEADER, env!("CARGO_PKG_VERSION"))
            .header(CONTENT_TYPE, "application/json");
        if let Some(length) = length {
            request = request.header(CONTENT_LENGTH, length);
        }
        let request = request.body(body).expect("paths and headers are the program's own");
        let answer = sender.send_request(request).await.map_err(broken)?;
        let status = answer.status();
        let bytes = answer.into_body().collect().await.map_err(broken)?.to_bytes();
        connection.abort();
        let unreadable = |source| CliError::Answer { request: asked.clone(), status: status.as_u16(), source };
        if status.is_success() {
            serde_json::from_slice(&bytes).map_err(unreadable)
        } else {
            let failure: Failure = serde_json::from_slice(&bytes).map_err(unreadable)?;
            Err(CliError::Server(failure))
        }
    }
}

impl CliError {
    /// Whether the server may well answer later: it restarts together with its own engine.
    pub(crate) fn passes(&self) -> bool {
        match self {
            CliError::Connect { source, .. } => source.kind() != io::ErrorKind::PermissionDenied,
            CliError::Talk { .. } => true,
            CliError::Server(failure) => failure.kind == FailureKind::Unreachable,
            CliError::Answer { .. }
            | CliError::Bundle(_)
            | CliError::OpenBundle { .. }
            | CliError::StdinTerminal
            | CliError::Unconfirmed { .. }
            | CliError::Lost { .. }
            | CliError::Write { .. }
            | CliError::Stdin { .. }
            | CliError::Stdout { .. }
            | CliError::Closed
            | CliError::Runtime { .. }
            | CliError::Serve(_)
            | CliError::Probe(_) => false,
        }
    }
}

fn empty() -> Body {
    Full::default().map_err(never).boxed_unsync()
}

fn never(never: Infallible) -> io::Error {
    match never {}
}
