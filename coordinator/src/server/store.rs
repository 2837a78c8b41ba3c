//! Bundles that operators send or have fetched: received beside their place, verified, then named by their digest. The
//! same folder on this host belongs to the agent too, which trusts no file whose digest it has not
//! computed.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use futures_util::{FutureExt, Stream, StreamExt};
use requeen_protocol::Digest;
use tokio::fs::File;
use tokio_util::io::ReaderStream;

use crate::api::{Failure, FailureKind, StoredBundle};
use crate::bundle::{self, BundleError};
use crate::effect::{Content, OnHost, perform};
use crate::server::words::chain;

/// The longest tarball, bytes. Docker's have less than 100 MB.
pub(crate) const MAX_BUNDLE: u64 = 1 << 30;

/// What names of files that are being received begin with.
pub(super) const RECEIVING: &str = ".receiving-";

/// Why a bundle was not stored.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StoreError {
    /// The folder or a file in it can't be written.
    #[error("can't store the bundle in {dir}")]
    Write {
        /// The folder.
        dir: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A bundle that was kept elsewhere can't be opened.
    #[error("can't read the kept bundle {path}")]
    Kept {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The folder or a file in it can't be removed.
    #[error("can't remove the bundles in {dir}")]
    Remove {
        /// The folder.
        dir: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// No randomness.
    #[error("the kernel gives no random bytes")]
    Random(#[source] getrandom::Error),
    /// The sender stopped in the middle.
    #[error("the bundle stopped arriving after {bytes} bytes")]
    Receive {
        /// How many had arrived.
        bytes: u64,
        /// Why.
        source: axum::Error,
    },
    /// It is longer than any bundle is.
    #[error("the bundle is longer than {MAX_BUNDLE} bytes")]
    TooLong,
    /// It is no bundle.
    #[error(transparent)]
    Inspect(BundleError),
    /// It is another bundle than the one asked for.
    #[error("the bundle has digest {found}, not {wanted}")]
    OtherBundle {
        /// What arrived.
        found: Digest,
        /// What was asked for.
        wanted: Digest,
    },
    /// The reader died.
    #[error("the bundle could not be inspected")]
    Inspector(#[source] tokio::task::JoinError),
}

impl StoreError {
    /// As the CLI gets it.
    pub(crate) fn failure(&self) -> Failure {
        let hint = match self {
            StoreError::Write { source, .. } if source.kind() == io::ErrorKind::StorageFull => {
                Some("make room: a bundle takes its own size there, on this manager and on every node".to_owned())
            }
            StoreError::Inspect(error) => Some(error.hint()),
            StoreError::TooLong => Some("a bundle is Docker's static tarball, as published".to_owned()),
            StoreError::Write { .. }
            | StoreError::Kept { .. }
            | StoreError::Remove { .. }
            | StoreError::Random(_)
            | StoreError::Receive { .. }
            | StoreError::OtherBundle { .. }
            | StoreError::Inspector(_) => None,
        };
        // Whatever it was: nothing has changed.
        Failure { kind: FailureKind::Refused, error: chain(self), hint }
    }
}

/// Where the bundle with this digest is, or would be.
pub(crate) fn bundle_path(dir: &Path, digest: &Digest) -> PathBuf {
    dir.join(format!("{}.tgz", digest.hex()))
}

/// Makes the folder, and removes what a killed server had not received to the end.
pub(crate) async fn prepare(dir: &Path) -> Result<(), StoreError> {
    let write = |source| StoreError::Write { dir: dir.to_owned(), source };
    perform(OnHost::MakeFolder { dir }).await.map_err(write)?;
    for entry in fs::read_dir(dir).map_err(write)? {
        let entry = entry.map_err(write)?;
        if entry.file_name().to_string_lossy().starts_with(RECEIVING) {
            perform(OnHost::RemoveFile { path: &entry.path() }).await.map_err(write)?;
        }
    }
    Ok(())
}

/// Removes every bundle, whole or not, and the folder if nothing else is in it. The next bundle makes it again.
pub(crate) async fn remove_all(dir: &Path) -> Result<(), StoreError> {
    let write = |source| StoreError::Remove { dir: dir.to_owned(), source };
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries.map_err(write)?,
    };
    for entry in entries {
        let entry = entry.map_err(write)?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let bundle = name.strip_suffix(".tgz").is_some_and(|hex| Digest::from_hex(hex).is_ok());
        if (bundle || name.starts_with(RECEIVING)) && entry.file_type().map_err(write)?.is_file() {
            perform(OnHost::RemoveFile { path: &entry.path() }).await.map_err(write)?;
        }
    }
    match perform(OnHost::RemoveFolder { dir }).await {
        // What is in it is nobody's bundle.
        Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => Ok(()),
        done => done.map_err(write),
    }
}

/// Receives, verifies and keeps a bundle: any, or the one `wanted`. On any error nothing is left of it.
pub(crate) async fn store(
    dir: &Path,
    body: impl Stream<Item = Result<Bytes, axum::Error>> + Unpin,
    length: Option<u64>,
    wanted: Option<&Digest>,
) -> Result<StoredBundle, StoreError> {
    if length.is_some_and(|length| length > MAX_BUNDLE) {
        return Err(StoreError::TooLong);
    }
    // It went with everything else if the agents were taken away since the start.
    let made = perform(OnHost::MakeFolder { dir }).await;
    made.map_err(|source| StoreError::Write { dir: dir.to_owned(), source })?;
    let (receiving, file) = Receiving::create(dir).await?;
    receive(dir, file, body).await?;
    keep(dir, receiving, wanted).await
}

/// Verifies what was received, any bundle or the one `wanted`, and gives it its name.
pub(crate) async fn keep(
    dir: &Path,
    receiving: Receiving,
    wanted: Option<&Digest>,
) -> Result<StoredBundle, StoreError> {
    let path = receiving.0.clone();
    let stored = tokio::task::spawn_blocking(move || bundle::inspect(&path, None))
        .await
        .map_err(StoreError::Inspector)?
        .map_err(StoreError::Inspect)?;
    if let Some(wanted) = wanted.filter(|wanted| **wanted != stored.bundle.digest) {
        return Err(StoreError::OtherBundle { found: stored.bundle.digest, wanted: wanted.clone() });
    }
    let write = |source| StoreError::Write { dir: dir.to_owned(), source };
    let named = OnHost::Rename { from: &receiving.0, to: &bundle_path(dir, &stored.bundle.digest) };
    perform(named).await.map_err(write)?;
    perform(OnHost::SyncFolder { dir }).await.map_err(write)?;
    Ok(stored)
}

async fn receive(
    dir: &Path,
    mut file: File,
    mut body: impl Stream<Item = Result<Bytes, axum::Error>> + Unpin,
) -> Result<(), StoreError> {
    let write = |source| StoreError::Write { dir: dir.to_owned(), source };
    let mut bytes = 0_u64;
    while let Some(chunk) = body.next().await {
        let chunk = chunk.map_err(|source| StoreError::Receive { bytes, source })?;
        bytes += chunk.len() as u64;
        if bytes > MAX_BUNDLE {
            return Err(StoreError::TooLong);
        }
        let content = Content::More(&chunk);
        perform(OnHost::WriteFile { file: &mut file, content }).await.map_err(write)?;
    }
    perform(OnHost::SyncFile { file: &mut file }).await.map_err(write)
}

/// Puts a bundle that this host's agent keeps into the coordinator's own folder, if it is the right one.
pub(crate) async fn adopt(dir: &Path, kept: &Path, wanted: &Digest) -> Result<(), StoreError> {
    let file = File::open(kept).await.map_err(|source| StoreError::Kept { path: kept.to_owned(), source })?;
    let body = ReaderStream::new(file).map(|chunk| chunk.map_err(axum::Error::new));
    store(dir, std::pin::pin!(body), None, Some(wanted)).await.map(drop)
}

/// A file that is not a bundle yet, and is gone unless it becomes one.
pub(crate) struct Receiving(PathBuf);

impl Receiving {
    /// A new one, empty, in the folder of bundles.
    pub(crate) async fn create(dir: &Path) -> Result<(Self, File), StoreError> {
        let number = getrandom::u64().map_err(StoreError::Random)?;
        let path = dir.join(format!("{RECEIVING}{number:016x}"));
        let write = |source| StoreError::Write { dir: dir.to_owned(), source };
        perform(OnHost::CreateFile { path: &path }).await.map_err(write)?;
        let made = Self(path);
        let file = File::options().write(true).open(&made.0).await.map_err(write)?;
        Ok((made, file))
    }
}

impl Drop for Receiving {
    fn drop(&mut self) {
        // After the rename there is nothing to remove. A server that ends in a panic is as one that was killed: the next
        // one removes it.
        if self.0.exists() && !std::thread::panicking() {
            // Removing waits for nothing.
            let _ = perform(OnHost::RemoveFile { path: &self.0 }).now_or_never();
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::stream;

    use super::*;

    fn names(dir: &Path) -> Vec<String> {
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    fn body(chunks: &[&'static str]) -> impl Stream<Item = Result<Bytes, axum::Error>> + Unpin + use<> {
        let chunks: Vec<_> = chunks.iter().map(|&chunk| Ok(Bytes::from_static(chunk.as_bytes()))).collect();
        stream::iter(chunks)
    }

    #[tokio::test]
    async fn what_is_no_bundle_leaves_nothing_behind() {
        let dir = tempfile::tempdir().unwrap();
        let error = store(dir.path(), body(&["<html>", "not found"]), None, None).await.unwrap_err();
        let failure = error.failure();
        assert_eq!(failure.kind, FailureKind::Refused);
        assert!(failure.error.contains("not gzip"), "{}", failure.error);
        assert!(failure.hint.is_some());
        assert_eq!(names(dir.path()), Vec::<String>::new());
    }

    #[tokio::test]
    async fn a_sender_that_stops_leaves_nothing_behind() {
        let dir = tempfile::tempdir().unwrap();
        let broken = stream::iter(vec![
            Ok(Bytes::from_static(b"\x1f\x8b")),
            Err(axum::Error::new(io::Error::from(io::ErrorKind::UnexpectedEof))),
        ]);
        let error = store(dir.path(), broken, None, None).await.unwrap_err();
        assert!(matches!(error, StoreError::Receive { bytes: 2, .. }), "{error}");
        assert_eq!(names(dir.path()), Vec::<String>::new());
    }

    #[tokio::test]
    async fn a_length_past_the_limit_is_refused_unread() {
        let dir = tempfile::tempdir().unwrap();
        let error = store(dir.path(), body(&[]), Some(MAX_BUNDLE + 1), None).await.unwrap_err();
        assert!(matches!(error, StoreError::TooLong));
    }

    #[tokio::test]
    async fn all_bundles_go_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("bundles");
        remove_all(&folder).await.unwrap();
        fs::create_dir(&folder).unwrap();
        let bundle = format!("{}.tgz", "a".repeat(64));
        for name in [bundle.as_str(), ".receiving-1", "mine.tgz"] {
            fs::write(folder.join(name), "x").unwrap();
        }
        remove_all(&folder).await.unwrap();
        assert_eq!(names(&folder), ["mine.tgz"]);
        fs::remove_file(folder.join("mine.tgz")).unwrap();
        remove_all(&folder).await.unwrap();
        assert!(!folder.exists());
    }

    #[tokio::test]
    async fn a_bundle_finds_its_folder_again() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("bundles");
        let error = store(&folder, body(&["no bundle"]), None, None).await.unwrap_err();
        assert!(matches!(error, StoreError::Inspect(_)), "{error}");
        assert!(folder.is_dir());
    }

    #[tokio::test]
    async fn what_a_killed_server_left_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(".receiving-1"), "x").unwrap();
        let kept = format!("{}.tgz", "a".repeat(64));
        fs::write(dir.path().join(&kept), "x").unwrap();
        prepare(dir.path()).await.unwrap();
        assert_eq!(names(dir.path()), [kept]);
    }
}
