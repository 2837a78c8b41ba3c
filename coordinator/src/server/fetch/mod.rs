//! Bundles from elsewhere: fetched over HTTPS into the folder of bundles, verified by the digest that
//! the operator named, and kept like those that are sent.
//!
//! [`client`] says who is trusted and where names and redirects may lead, [`download`] goes on where a
//! connection broke, [`error`] has the words for what fails, and [`lines`] tells the CLI meanwhile.

mod client;
mod download;
mod error;
mod lines;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod web;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::response::Response;
use requeen_protocol::Digest;
use reqwest::ClientBuilder;
use tokio::sync::watch;

use crate::api::{FetchArgs, Fetched, Fetching, StoredBundle};
use crate::bundle;
use crate::server::store::{self, MAX_BUNDLE, Receiving, bundle_path};
use crate::server::words::chain;
use download::Download;
use error::FetchError;

/// How long a host may take, and how often it is asked.
#[derive(Clone, Copy, Debug)]
struct Limits {
    /// Name, connection and TLS together.
    connect: Duration,
    /// Until the answer begins, and between two parts of it.
    stall: Duration,
    /// Before each new try. When there are no more the fetch has failed.
    pauses: &'static [Duration],
    /// So many new bytes begin [`Self::pauses`] anew: a bundle may take many tries where each one helps.
    progress: u64,
    /// The longest bundle, bytes.
    longest: u64,
}

impl Limits {
    /// Those of a server.
    const REAL: Self = Self {
        connect: Duration::from_secs(10),
        stall: Duration::from_secs(30),
        pauses: &[
            Duration::from_secs(1),
            Duration::from_secs(2),
            Duration::from_secs(4),
            Duration::from_secs(8),
            Duration::from_secs(15),
        ],
        progress: 4 << 20,
        longest: MAX_BUNDLE,
    };
}

/// Changes how the client reaches the network.
type Network = Box<dyn Fn(ClientBuilder) -> ClientBuilder + Send + Sync>;

/// Fetches bundles into a folder.
pub(crate) struct Fetcher {
    dir: PathBuf,
    limits: Limits,
    network: Network,
}

impl Fetcher {
    /// A fetcher into the folder `dir`. It goes through the proxies that the process's environment names
    /// (`HTTPS_PROXY`, `ALL_PROXY`, `NO_PROXY`), as its HTTP client does unless it is told otherwise.
    pub(crate) fn new(dir: PathBuf) -> Self {
        Self { dir, limits: Limits::REAL, network: Box::new(|client| client) }
    }

    /// Fetches while the answer is read: if the CLI goes away it ends, and nothing is left of it.
    pub(crate) fn answer(self: Arc<Self>, args: FetchArgs) -> Response {
        let (progress, seen) = watch::channel(Fetching::default());
        let work = async move {
            match self.fetch(&args, &progress).await {
                Ok(stored) => Fetched::Stored(stored),
                Err(error) => {
                    tracing::warn!(url = %args.url, error = chain(&error), "no bundle fetched");
                    Fetched::Failed(error.failure())
                }
            }
        };
        lines::response(Box::pin(work), seen)
    }

    /// Makes sure that the bundle is stored. On any error nothing is left of it.
    async fn fetch(&self, args: &FetchArgs, progress: &watch::Sender<Fetching>) -> Result<StoredBundle, FetchError> {
        let FetchArgs { url, digest, roots } = args;
        if let Some(stored) = self.stored(digest).await {
            return Ok(stored);
        }
        tracing::info!(%url, %digest, "fetching a bundle");
        let client = client::build(&self.limits, roots, &self.network)?;
        let (receiving, file) = Receiving::create(&self.dir).await?;
        Download::new(client, url, &self.limits, &self.dir, file, progress).run(digest).await?;
        let stored = store::keep(&self.dir, receiving, Some(digest)).await?;
        tracing::info!(%url, %digest, bytes = stored.bundle.size, "bundle fetched");
        Ok(stored)
    }

    /// The bundle, if it is there already and its file is still what its name says.
    async fn stored(&self, digest: &Digest) -> Option<StoredBundle> {
        let (path, expected) = (bundle_path(&self.dir, digest), digest.clone());
        if !path.exists() {
            return None;
        }
        let inspected = tokio::task::spawn_blocking(move || bundle::inspect(&path, Some(&expected))).await;
        match inspected.ok()? {
            Ok(stored) => Some(stored),
            Err(error) => {
                tracing::warn!(%digest, error = chain(&error), "the stored bundle is damaged; fetching it anew");
                None
            }
        }
    }
}
