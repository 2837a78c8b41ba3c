//! A coordinator whose engine is not back in its swarm: it tells the operator why nothing else is answered. A manager that
//! was restarted without its unlock key stays so until the operator unlocks it.

use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::response::{IntoResponse, Response};
use bollard::models::LocalNodeState;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::UnixListener;
use tokio::time::timeout;

use super::operator::Answer;
use crate::api::{Failure, FailureKind};

/// How long one who asks may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// Why no command is answered while this engine is in that state.
pub(super) fn failure(state: LocalNodeState) -> Failure {
    let (error, hint) = if state == LocalNodeState::LOCKED {
        (
            "this manager is locked: the swarm is autolocked, and its engine was started without the unlock key"
                .to_owned(),
            "type `docker swarm unlock` on it; what was under way then goes on by itself",
        )
    } else {
        (
            format!("this manager is not back in its swarm yet: its state is `{state}`"),
            "it needs the other managers: `docker info` on it says what is missing",
        )
    };
    // Whoever follows a rollout waits for this as for a server that is not there.
    Failure { kind: FailureKind::Unreachable, error, hint: Some(hint.to_owned()) }
}

/// Answers every request with what is in `why`, for as long as it is polled.
pub(super) async fn turn_away(console: &UnixListener, why: Arc<Mutex<Failure>>) -> Infallible {
    loop {
        match console.accept().await {
            Ok((stream, _)) => {
                let why = Arc::clone(&why);
                let service = service_fn(move |_| {
                    let failure = why.lock().unwrap_or_else(PoisonError::into_inner).clone();
                    let answer: Response = Answer::from(failure).into_response();
                    async { Ok::<_, Infallible>(answer) }
                });
                let served = http1::Builder::new().keep_alive(false).serve_connection(TokioIo::new(stream), service);
                // On its own: an answer that has begun is not cut off when the engine is asked again.
                tokio::spawn(timeout(PATIENCE, served));
            }
            // Out of descriptors: nothing tells when there are some again.
            Err(_) => tokio::time::sleep(super::ASK_AGAIN).await,
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::UnixStream;

    use super::*;

    #[tokio::test]
    async fn a_locked_manager_says_what_to_type() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("requeen.sock");
        let console = UnixListener::bind(&socket).unwrap();
        let why = Arc::new(Mutex::new(failure(LocalNodeState::PENDING)));
        let shared = Arc::clone(&why);
        let served = tokio::spawn(async move { turn_away(&console, shared).await });
        for (state, words) in [(LocalNodeState::PENDING, "pending"), (LocalNodeState::LOCKED, "docker swarm unlock")] {
            *why.lock().unwrap() = failure(state);
            let mut stream = UnixStream::connect(&socket).await.unwrap();
            stream.write_all(b"GET /status HTTP/1.1\r\nhost: requeen\r\n\r\n").await.unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.unwrap();
            let (head, body) = answer.split_once("\r\n\r\n").unwrap();
            assert!(head.starts_with("HTTP/1.1 503 "), "{head}");
            let said: Failure = serde_json::from_str(body).unwrap();
            assert!(said == failure(state) && body.contains(words), "{body}");
        }
        served.abort();
    }
}
