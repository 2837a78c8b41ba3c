//! Fetching a bundle: resumed where it broke off, believed only when its digest is right.

use std::io::{self, Read};
use std::path::{Path, PathBuf};

use futures_util::TryStreamExt;
use requeen_protocol::{BundleRef, Problem};
use reqwest::StatusCode;
use sha2::{Digest as _, Sha256};
use tokio::io::AsyncWriteExt;

use crate::client::{Client, ClientError};
use crate::engine::api::SwarmFacts;
use crate::host::HostRoot;
use crate::reporter::Backoff;
use crate::sets::digest_file;
use crate::staged::bundle_path;
use crate::words::chain;

const BUFFER: usize = 256 * 1024;

/// A bundle could not be had.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DownloadError {
    /// The host's disk refused.
    #[error("{path} can't be written")]
    Disk {
        /// The file, as a path of the host.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// What arrived is not what the rollout names.
    #[error("the bundle that arrived has digest {found}, the rollout names {wanted}")]
    Digest {
        /// What arrived.
        found: String,
        /// What was wanted.
        wanted: String,
    },
}

impl From<DownloadError> for Problem {
    fn from(error: DownloadError) -> Self {
        let hint = match &error {
            DownloadError::Disk { .. } => "free space or repair the file system, then start again",
            DownloadError::Digest { .. } => "the coordinator's copy is damaged: give it the bundle again",
        };
        Problem { what: chain(&error), hint: hint.to_owned() }
    }
}

/// One attempt's failure: only the last kind ends the download.
enum Broken {
    Client(ClientError),
    Stream(reqwest::Error),
    Short,
    Fatal(DownloadError),
}

/// Fetches a bundle to its place and gives its path. Goes on for as long as the network fails.
pub(crate) async fn fetch(
    root: &HostRoot,
    client: &Client,
    backoff: &mut Backoff,
    swarm: &SwarmFacts,
    bundle: &BundleRef,
    progress: &(dyn Fn(u64) + Sync),
) -> Result<PathBuf, DownloadError> {
    let path = root.join(bundle_path(&bundle.digest));
    let disk = disk_error(bundle);
    let known = path.clone();
    let there = blocking(move || match digest_file(&known) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        result => result.map(Some),
    });
    if there.await.map_err(&disk)? == Some(bundle.digest.clone()) {
        return Ok(path);
    }
    loop {
        match attempt(client, swarm, bundle, &path, progress).await {
            Ok(()) => return Ok(path),
            Err(Broken::Fatal(error)) => return Err(error),
            Err(Broken::Client(error)) => tracing::info!(step = "download", "{}", chain(&error)),
            Err(Broken::Stream(error)) => tracing::info!(step = "download", "{}", chain(&error)),
            Err(Broken::Short) => tracing::info!(step = "download", "the bundle ended early"),
        }
        tokio::time::sleep(backoff.pause()).await;
    }
}

async fn attempt(
    client: &Client,
    swarm: &SwarmFacts,
    bundle: &BundleRef,
    path: &Path,
    progress: &(dyn Fn(u64) + Sync),
) -> Result<(), Broken> {
    let disk = disk_error(bundle);
    let fatal = |error| Broken::Fatal(disk(error));
    let part = path.with_extension("part");
    let (mut hasher, mut done) = {
        let part = part.clone();
        blocking(move || read_part(&part)).await.map_err(fatal)?
    };
    if done > bundle.size {
        // More than the whole can't be the beginning of it.
        (hasher, done) = (Sha256::new(), 0);
    }
    let mut file =
        tokio::fs::OpenOptions::new().create(true).truncate(false).write(true).open(&part).await.map_err(fatal)?;
    if done < bundle.size {
        let response = client.bundle(swarm, &bundle.digest, done).await.map_err(Broken::Client)?;
        if response.status() != StatusCode::PARTIAL_CONTENT {
            (hasher, done) = (Sha256::new(), 0);
        }
        file.set_len(done).await.map_err(fatal)?;
        tokio::io::AsyncSeekExt::seek(&mut file, io::SeekFrom::Start(done)).await.map_err(fatal)?;
        let mut stream = response.bytes_stream();
        while let Some(bytes) = stream.try_next().await.map_err(Broken::Stream)? {
            hasher.update(&bytes);
            file.write_all(&bytes).await.map_err(fatal)?;
            done += bytes.len() as u64;
            progress(done);
            if done > bundle.size {
                break;
            }
        }
    } else {
        file.set_len(done).await.map_err(fatal)?;
    }
    file.flush().await.map_err(fatal)?;
    file.sync_all().await.map_err(fatal)?;
    let found = format!("sha256:{}", hex::encode(hasher.finalize()));
    if found != bundle.digest.to_string() {
        if done < bundle.size {
            // Ended early without an error: the next attempt goes on from here.
            return Err(Broken::Short);
        }
        tokio::fs::remove_file(&part).await.map_err(fatal)?;
        return Err(Broken::Fatal(DownloadError::Digest { found, wanted: bundle.digest.to_string() }));
    }
    let path = path.to_owned();
    blocking(move || {
        std::fs::rename(&part, &path)?;
        std::fs::File::open(path.parent().ok_or(io::ErrorKind::InvalidInput)?)?.sync_all()
    })
    .await
    .map_err(fatal)
}

/// What an earlier attempt left: its digest so far and its length.
fn read_part(part: &Path) -> io::Result<(Sha256, u64)> {
    std::fs::create_dir_all(part.parent().ok_or(io::ErrorKind::InvalidInput)?)?;
    let mut hasher = Sha256::new();
    let mut file = match std::fs::File::open(part) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok((hasher, 0)),
        result => result?,
    };
    let mut buffer = vec![0; BUFFER];
    let mut done = 0;
    loop {
        let read = file.read(&mut buffer)?;
        if read == 0 {
            return Ok((hasher, done));
        }
        hasher.update(&buffer[..read]);
        done += read as u64;
    }
}

fn disk_error(bundle: &BundleRef) -> impl Fn(io::Error) -> DownloadError + use<> {
    let path = bundle_path(&bundle.digest);
    move |source| DownloadError::Disk { path: path.clone(), source }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}
