//! One bundle's bytes, in as many connections as it takes. They are believed when their digest is right.

use std::io;
use std::path::Path;

use requeen_protocol::Digest;
use reqwest::header::{ACCEPT_ENCODING, CONTENT_RANGE, ETAG, HeaderMap, HeaderValue, IF_RANGE, LAST_MODIFIED, RANGE};
use reqwest::{Client, StatusCode};
use sha2::{Digest as _, Sha256};
use tokio::fs::File;
use tokio::sync::watch;

use super::Limits;
use super::error::FetchError;
use crate::api::Fetching;
use crate::bundle::{BundleUrl, to_digest};
use crate::effect::{Content, OnHost, perform};
use crate::server::store::StoreError;
use crate::server::words::chain;

/// A download under way.
pub(super) struct Download<'a> {
    client: Client,
    url: &'a BundleUrl,
    limits: &'a Limits,
    /// The folder, for errors.
    dir: &'a Path,
    file: File,
    progress: &'a watch::Sender<Fetching>,
    /// Of the [`Self::done`] bytes that the file has.
    hash: Sha256,
    done: u64,
    total: Option<u64>,
    /// The most that [`Self::done`] has been.
    furthest: u64,
    /// Whether the file was put together from several answers.
    in_parts: bool,
    /// What tells the host's file from another one at the same URL.
    validator: Option<HeaderValue>,
}

impl<'a> Download<'a> {
    /// A download into `file`, which is empty and in the folder `dir`.
    pub(super) fn new(
        client: Client,
        url: &'a BundleUrl,
        limits: &'a Limits,
        dir: &'a Path,
        file: File,
        progress: &'a watch::Sender<Fetching>,
    ) -> Self {
        let hash = Sha256::new();
        let (done, total, furthest, in_parts, validator) = (0, None, 0, false, None);
        Self { client, url, limits, dir, file, progress, hash, done, total, furthest, in_parts, validator }
    }

    /// Goes on until the file is there, whole, on disk, and has the digest. What never began is not tried
    /// again: then it is more likely the URL or the network, and the operator waits.
    pub(super) async fn run(mut self, digest: &Digest) -> Result<(), FetchError> {
        let (mut tries, mut pauses) = (0, self.limits.pauses.iter());
        loop {
            tries += 1;
            let before = self.furthest;
            let error = match self.attempt(digest).await {
                Ok(()) => break,
                Err(error) => error,
            };
            if self.furthest == 0 || !error.passes() {
                return Err(error);
            }
            if self.furthest - before >= self.limits.progress {
                pauses = self.limits.pauses.iter();
            }
            let Some(pause) = pauses.next() else {
                return Err(FetchError::GaveUp { tries, bytes: self.done, source: Box::new(error) });
            };
            let error = chain(&error);
            tracing::debug!(url = %self.url, bytes = self.done, error, "the download broke off");
            self.tell(Some(error));
            tokio::time::sleep(*pause).await;
        }
        perform(OnHost::SyncFile { file: &mut self.file }).await.map_err(|error| self.unwritable(error))
    }

    async fn attempt(&mut self, digest: &Digest) -> Result<(), FetchError> {
        // The bytes of the file are wanted, and not what they could be packed into.
        let mut request = self.client.get(self.url.secret().clone()).header(ACCEPT_ENCODING, "identity");
        if self.done > 0 {
            request = request.header(RANGE, format!("bytes={}-", self.done));
            if let Some(validator) = &self.validator {
                request = request.header(IF_RANGE, validator);
            }
        }
        let mut response = request.send().await.map_err(|source| self.broken(source))?;
        match response.status() {
            StatusCode::OK => {
                self.begin().await?;
                self.validator = validator(response.headers());
            }
            StatusCode::PARTIAL_CONTENT if self.done > 0 && first_byte(response.headers()) == Some(self.done) => {
                self.in_parts = true;
            }
            StatusCode::PARTIAL_CONTENT | StatusCode::RANGE_NOT_SATISFIABLE if self.done > 0 => {
                self.begin().await?;
                return Err(FetchError::Part { url: self.url.to_string() });
            }
            status => return Err(FetchError::Status { url: self.url.to_string(), status }),
        }
        self.total = response.content_length().map(|rest| self.done.saturating_add(rest));
        if self.total.is_some_and(|total| total > self.limits.longest) {
            return Err(StoreError::TooLong.into());
        }
        self.tell(None);
        while let Some(bytes) = response.chunk().await.map_err(|source| self.broken(source))? {
            self.take(&bytes).await?;
        }
        let found = to_digest(self.hash.clone());
        if found == *digest {
            return Ok(());
        }
        if self.in_parts {
            // The file was replaced meanwhile, or a cache on the way mixes two of them.
            self.begin().await?;
            return Err(FetchError::Parts { url: self.url.to_string() });
        }
        Err(FetchError::Digest { url: self.url.to_string(), expected: digest.clone(), found })
    }

    async fn take(&mut self, bytes: &[u8]) -> Result<(), FetchError> {
        let done = self.done + bytes.len() as u64;
        if done > self.limits.longest {
            return Err(StoreError::TooLong.into());
        }
        let more = OnHost::WriteFile { file: &mut self.file, content: Content::More(bytes) };
        perform(more).await.map_err(|error| self.unwritable(error))?;
        self.hash.update(bytes);
        self.done = done;
        self.furthest = self.furthest.max(done);
        self.tell(None);
        Ok(())
    }

    /// Empties the file, for an answer that begins at the beginning.
    async fn begin(&mut self) -> Result<(), FetchError> {
        if self.done > 0 {
            let empty = OnHost::WriteFile { file: &mut self.file, content: Content::None };
            perform(empty).await.map_err(|error| self.unwritable(error))?;
        }
        self.hash = Sha256::new();
        (self.done, self.in_parts, self.validator) = (0, false, None);
        Ok(())
    }

    fn tell(&self, trouble: Option<String>) {
        // Nobody has to listen.
        self.progress.send_replace(Fetching { done: self.done, total: self.total, trouble });
    }

    fn broken(&self, source: reqwest::Error) -> FetchError {
        FetchError::Request { url: self.url.to_string(), source: source.without_url() }
    }

    fn unwritable(&self, source: io::Error) -> FetchError {
        StoreError::Write { dir: self.dir.to_owned(), source }.into()
    }
}

/// What a host can compare its file with: a strong tag, or when the file was changed.
fn validator(headers: &HeaderMap) -> Option<HeaderValue> {
    let tag = headers.get(ETAG).filter(|tag| !tag.as_bytes().starts_with(b"W/"));
    tag.or_else(|| headers.get(LAST_MODIFIED)).cloned()
}

/// Where a part begins in the whole.
fn first_byte(headers: &HeaderMap) -> Option<u64> {
    let range = headers.get(CONTENT_RANGE)?.to_str().ok()?;
    range.strip_prefix("bytes ")?.split_once('-')?.0.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_headers_say_of_a_part() {
        let headers = |name, value: &str| HeaderMap::from_iter([(name, value.parse().unwrap())]);
        for (range, first) in [
            ("bytes 5-9/10", Some(5)),
            ("bytes 0-0/*", Some(0)),
            ("bytes */10", None),
            ("lines 5-9/10", None),
            ("bytes x-9/10", None),
        ] {
            assert_eq!(first_byte(&headers(CONTENT_RANGE, range)), first, "{range}");
        }
        assert_eq!(first_byte(&HeaderMap::new()), None);
        assert_eq!(validator(&headers(ETAG, "\"a\"")).unwrap(), "\"a\"");
        assert_eq!(validator(&headers(ETAG, "W/\"a\"")), None);
        let mut both = headers(ETAG, "W/\"a\"");
        both.insert(LAST_MODIFIED, HeaderValue::from_static("Tue, 01 Jul 2025 00:00:00 GMT"));
        assert!(validator(&both).unwrap().as_bytes().starts_with(b"Tue"));
    }
}
