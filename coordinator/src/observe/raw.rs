//! The engine's answers as it gives them: the client's types drop what another version adds, and in a bug report
//! that may be what matters.

use std::io;

use axum::http::header::HOST;
use axum::http::{Request, StatusCode};
use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::UnixStream;

use super::Engine;

/// The engine gave no answer that can be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RawError {
    /// Nobody listens.
    #[error("the engine can't be reached")]
    Connect(#[source] io::Error),
    /// It broke off.
    #[error("the engine broke off")]
    Talk(#[source] hyper::Error),
    /// It refused.
    #[error("the engine answers {0}: {1}")]
    Refused(StatusCode, String),
    /// It is no JSON.
    #[error("the engine's answer is no JSON")]
    Json(#[source] serde_json::Error),
}

impl Engine {
    /// `GET path`, without a version in front: in the form of the engine's own one.
    pub(crate) async fn raw(&self, path: &str) -> Result<Value, RawError> {
        let stream = UnixStream::connect(&self.socket).await.map_err(RawError::Connect)?;
        let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
        let (mut sender, connection) = handshake.map_err(RawError::Talk)?;
        // Its errors come out of the request as well.
        let connection = tokio::spawn(connection);
        // Of the type that the command line's requests have: one machinery for both.
        let body: UnsyncBoxBody<Bytes, io::Error> = Empty::new().map_err(|never| match never {}).boxed_unsync();
        let request = Request::get(path).header(HOST, "docker").body(body).expect("paths are the program's own");
        let answer = sender.send_request(request).await.map_err(RawError::Talk)?;
        let status = answer.status();
        let bytes = answer.into_body().collect().await.map_err(RawError::Talk)?.to_bytes();
        connection.abort();
        if status.is_success() {
            serde_json::from_slice(&bytes).map_err(RawError::Json)
        } else {
            Err(RawError::Refused(status, String::from_utf8_lossy(&bytes).trim().to_owned()))
        }
    }
}
