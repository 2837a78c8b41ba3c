//! `serve`: the server, until it is told to stop.

use std::io;
use std::sync::Arc;

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use super::args;
use super::error::CliError;
use super::{Context, Exit};
use crate::diag::log::{Kept, LogTail};
use crate::server::{ServeArgs, serve};

pub(crate) async fn run(context: &Context, args: args::Serve) -> Result<Exit, CliError> {
    let filter = std::env::var("RUST_LOG").ok().and_then(|filter| filter.parse().ok());
    let filter = filter.unwrap_or_else(|| Targets::new().with_default(LevelFilter::INFO));
    let log = Arc::new(LogTail::default());
    let kept = Arc::clone(&log);
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(move || Kept(Arc::clone(&kept)))
        .with_ansi(context.printer.color_err());
    tracing_subscriber::registry().with(filter).with(lines).init();
    // Only one is compiled in; a second installation can't happen in one process.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let settings = ServeArgs {
        port: args.port,
        bind: args.bind,
        data_dir: args.data_dir,
        docker_socket: args.docker_socket,
        swarm_dir: args.swarm_dir,
        take_over_after: args.take_over_after,
        take_over: args.take_over,
        log,
    };
    let stop = told_to_stop().map_err(|source| CliError::Runtime { source })?;
    let shutdown = CancellationToken::new();
    let cancel = shutdown.clone().drop_guard();
    tokio::spawn(async move {
        stop.await;
        drop(cancel);
    });
    serve(settings, shutdown).await.map_err(|error| CliError::Serve(Box::new(error)))?;
    Ok(Exit::Done)
}

/// Ends with the first SIGTERM (`docker stop`) or SIGINT (Ctrl-C).
pub(crate) fn told_to_stop() -> io::Result<impl Future<Output = ()>> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}
