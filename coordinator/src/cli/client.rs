//! Speaking to the server: HTTP/1.1 over its unix socket, one connection per request.

use std::convert::Infallible;
use std::io;
use std::path::PathBuf;

use bytes::{Bytes, BytesMut};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::header::{CONTENT_LENGTH, CONTENT_TYPE, HOST};
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;
use tokio_util::task::AbortOnDropHandle;

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
        let (length, body) = json(question);
        self.send(Method::POST, path, Some(length), body).await
    }

    /// `POST path` with `question` as JSON. Before the answer come lines that say how far it is.
    pub(crate) async fn post_watched<P: DeserializeOwned, A: DeserializeOwned>(
        &self,
        path: &str,
        question: &impl Serialize,
        mut seen: impl FnMut(P),
    ) -> Result<A, CliError> {
        let (length, body) = json(question);
        let mut opened = self.open(Method::POST, path, Some(length), body).await?;
        let mut text = Vec::new();
        while let Some(frame) = opened.answer.body_mut().frame().await {
            let frame = frame.map_err(|source| CliError::Talk { request: opened.asked.clone(), source })?;
            text.extend_from_slice(frame.data_ref().map_or(&[][..], |bytes| bytes));
            while let Some(end) = text.iter().position(|&byte| byte == b'\n') {
                let line: Vec<u8> = text.drain(..=end).collect();
                seen(opened.parse(&line)?);
            }
        }
        opened.parse(&text)
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

    /// `POST path` with `question` as JSON, for an answer that is no JSON and comes bit by bit.
    pub(crate) async fn stream(&self, path: &str, question: &impl Serialize) -> Result<Streamed, CliError> {
        let (length, body) = json(question);
        let opened = self.open(Method::POST, path, Some(length), body).await?;
        Ok(Streamed { opened, come: BytesMut::new() })
    }

    async fn send<A: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        length: Option<u64>,
        body: Body,
    ) -> Result<A, CliError> {
        let mut opened = self.open(method, path, length, body).await?;
        let bytes = opened.bytes().await?;
        opened.parse(&bytes)
    }

    /// Sends a request, and reads of the answer no more than that it is a success.
    async fn open(&self, method: Method, path: &str, length: Option<u64>, body: Body) -> Result<Opened, CliError> {
        let asked = format!("{method} {path}");
        let broken = |source| CliError::Talk { request: asked.clone(), source };
        let stream = UnixStream::connect(&self.socket)
            .await
            .map_err(|source| CliError::Connect { socket: self.socket.clone(), source })?;
        let (mut sender, connection) = handshake(TokioIo::new(stream)).await.map_err(broken)?;
        // Its errors come out of the request as well.
        let connection = AbortOnDropHandle::new(tokio::spawn(connection));
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
        let mut opened = Opened { asked, answer, _connection: (sender, connection) };
        if opened.answer.status().is_success() {
            return Ok(opened);
        }
        let bytes = opened.bytes().await?;
        let failure: Failure = opened.parse(&bytes)?;
        Err(CliError::Server(failure))
    }
}

/// An answer that has begun.
struct Opened {
    /// The request, for errors.
    asked: String,
    answer: Response<Incoming>,
    /// Ends with this.
    _connection: (SendRequest<Body>, AbortOnDropHandle<Result<(), hyper::Error>>),
}

impl Opened {
    /// The rest of it.
    async fn bytes(&mut self) -> Result<Bytes, CliError> {
        let body = self.answer.body_mut().collect().await;
        let body = body.map_err(|source| CliError::Talk { request: self.asked.clone(), source })?;
        Ok(body.to_bytes())
    }

    fn parse<A: DeserializeOwned>(&self, bytes: &[u8]) -> Result<A, CliError> {
        let status = self.answer.status().as_u16();
        serde_json::from_slice(bytes).map_err(|source| CliError::Answer { request: self.asked.clone(), status, source })
    }
}

/// An answer that comes bit by bit: lines of JSON first, and then whatever those say.
pub(crate) struct Streamed {
    opened: Opened,
    /// What has come and was not taken yet.
    come: BytesMut,
}

impl Streamed {
    /// The next line as JSON.
    pub(crate) async fn line<A: DeserializeOwned>(&mut self) -> Result<A, CliError> {
        loop {
            if let Some(end) = self.come.iter().position(|byte| *byte == b'\n') {
                let line = self.come.split_to(end + 1);
                return self.opened.parse(&line);
            }
            match self.more().await? {
                Some(bytes) => self.come.extend_from_slice(&bytes),
                // It ended in the middle of a line: no JSON, and the parser says so.
                None => return self.opened.parse(&self.come),
            }
        }
    }

    /// The next bytes behind the lines that were read; nothing at the end.
    pub(crate) async fn bytes(&mut self) -> Result<Option<Bytes>, CliError> {
        if self.come.is_empty() { self.more().await } else { Ok(Some(self.come.split().freeze())) }
    }

    async fn more(&mut self) -> Result<Option<Bytes>, CliError> {
        while let Some(frame) = self.opened.answer.body_mut().frame().await {
            let frame = frame.map_err(|source| CliError::Talk { request: self.opened.asked.clone(), source })?;
            // Trailers are none of ours.
            if let Ok(bytes) = frame.into_data() {
                return Ok(Some(bytes));
            }
        }
        Ok(None)
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
            | CliError::Source(_)
            | CliError::OpenBundle { .. }
            | CliError::NotAFile { .. }
            | CliError::NotAFolder { .. }
            | CliError::StdinTerminal
            | CliError::Unconfirmed { .. }
            | CliError::Exists { .. }
            | CliError::NoStdout { .. }
            | CliError::Interrupted { .. }
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

fn json(question: &impl Serialize) -> (u64, Body) {
    let json = serde_json::to_vec(question).expect("the API's types are JSON");
    (json.len() as u64, Full::new(Bytes::from(json)).map_err(never).boxed_unsync())
}

fn empty() -> Body {
    Full::default().map_err(never).boxed_unsync()
}

fn never(never: Infallible) -> io::Error {
    match never {}
}
