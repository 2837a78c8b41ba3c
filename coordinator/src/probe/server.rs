//! The server of the connectivity test: answers every request with its own name, and ends the way a
//! well-behaved service does.
//!
//! Told to stop, it goes on answering, because the swarm's name service still leads clients to it
//! for a moment, but asks each of them to close the connection. It leaves when nobody has asked for
//! a while.

use std::convert::Infallible;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{CONNECTION, CONTENT_TYPE, HeaderValue};
use hyper::{Request, Response, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

/// Connections served at once; more wait in the kernel's queue. Below the usual limit of open files.
const MAX_CONNECTIONS: usize = 512;

/// How long a client may take to send the head of a request.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);

/// How long to rest when the system can't give another connection (out of descriptors or memory):
/// the error comes back at once for as long as it lasts.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Asked by the engine's health check, which goes on while the server is being stopped: it does not
/// keep the server from being idle.
pub const HEALTH_PATH: &str = "/health";

/// How the server ends.
#[derive(Clone, Copy, Debug)]
pub struct Farewell {
    /// Nobody has asked for this long: the server is idle, and ends.
    pub idle: Duration,
    /// The server ends after this long even if it is not idle.
    pub bound: Duration,
}

/// What connections share with the accepting loop.
struct Shared {
    body: Bytes,
    stopping: watch::Receiver<bool>,
    /// When a request other than a health check was last answered.
    asked: watch::Sender<Instant>,
}

/// Serves `listener` until `stop`, then until it is idle. `name` is the body of every answer.
pub async fn serve(
    listener: TcpListener,
    name: &str,
    farewell: Farewell,
    stop: impl Future<Output = ()>,
) -> io::Result<()> {
    let (stopping, stopped) = watch::channel(false);
    let (asked, mut last) = watch::channel(Instant::now());
    let shared = Arc::new(Shared { body: Bytes::from(format!("{name}\n")), stopping: stopped, asked });
    let mut connections = JoinSet::new();

    let mut stop = pin!(stop);
    loop {
        tokio::select! {
            () = &mut stop => break,
            accepted = accept(&listener, connections.len()) => {
                connections.spawn(converse(accepted, Arc::clone(&shared)));
            }
            Some(_) = connections.join_next() => {}
        }
    }

    // A send fails only without receivers, and then nobody has to know.
    let _ = stopping.send(true);
    // Whatever was asked before counts from now on only.
    last.mark_unchanged();
    let deadline = Instant::now() + farewell.bound;
    let mut idle_at = Instant::now() + farewell.idle;
    while Instant::now() < idle_at.min(deadline) {
        tokio::select! {
            () = sleep_until(idle_at.min(deadline)) => break,
            accepted = accept(&listener, connections.len()) => {
                connections.spawn(converse(accepted, Arc::clone(&shared)));
            }
            Ok(()) = last.changed() => {
                idle_at = *last.borrow_and_update() + farewell.idle;
            }
            Some(_) = connections.join_next() => {}
        }
    }
    // What is open now has not said anything for as long as the idle time, or the bound is reached.
    Ok(())
}

/// The next connection, once there is room for it.
async fn accept(listener: &TcpListener, open: usize) -> TcpStream {
    if open >= MAX_CONNECTIONS {
        // The caller asks again as soon as a connection has ended.
        std::future::pending::<()>().await;
    }
    loop {
        match listener.accept().await {
            Ok((stream, _)) => return stream,
            Err(error) => {
                tracing::warn!(%error, "accepting a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn converse(stream: TcpStream, shared: Arc<Shared>) {
    let service = service_fn(|request: Request<Incoming>| {
        let mut response = Response::new(Full::new(shared.body.clone()));
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
        if *shared.stopping.borrow() {
            headers.insert(CONNECTION, HeaderValue::from_static("close"));
        }
        if request.uri().path() != HEALTH_PATH {
            shared.asked.send_replace(Instant::now());
        }
        async move { Ok::<_, Infallible>(response) }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .serve_connection(TokioIo::new(stream), service)
        .await;
    if let Err(error) = served {
        tracing::debug!(%error, "serving a connection");
    }
}
