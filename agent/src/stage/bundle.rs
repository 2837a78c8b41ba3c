//! Reading a bundle: a gzipped tarball of engine files, believed in nothing.
//!
//! The stream is read once. While it is inflated on the caller's thread, a second thread computes the
//! digest of the compressed bytes, a third writes the files and computes theirs, and a fourth brings
//! finished files to disk. Nothing is ever unpacked by the names in the archive: only regular files
//! of exactly known names are taken, into a folder that the caller throws away on any error.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions, Permissions};
use std::io::{self, BufRead, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;

use flate2::bufread::GzDecoder;
use requeen_protocol::{BundleRef, Digest, EngineFile};
use sha2::{Digest as _, Sha256};
use tar::EntryType;

use crate::host::files::{CHUNK, finish};
use crate::sets::SetFile;

/// Chunks that may wait between two threads.
const QUEUE: usize = 8;

/// What a bundle may hold at most, so that a hostile one can't fill a disk.
#[derive(Clone, Copy, Debug)]
struct Limits {
    /// Bytes of one file.
    file: u64,
    /// Bytes of the whole archive, inflated.
    all: u64,
}

const LIMITS: Limits = Limits { file: 512 << 20, all: 2 << 30 };

/// A bundle was refused, or could not be read.
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    /// The source failed.
    #[error("the bundle can't be read")]
    Read(#[source] io::Error),
    /// The source ended early.
    #[error("the bundle ends after {got} bytes, expected {expected}")]
    Truncated {
        /// Its length, by the rollout's record.
        expected: u64,
        /// What came.
        got: u64,
    },
    /// The source goes on after the end.
    #[error("the bundle is longer than the expected {expected} bytes")]
    TooLong {
        /// Its length, by the rollout's record.
        expected: u64,
    },
    /// It is another file.
    #[error("the bundle's digest is {got}, expected {expected}")]
    Digest {
        /// By the rollout's record.
        expected: Digest,
        /// What came.
        got: Digest,
    },
    /// It is no gzip, or no tar inside.
    #[error("the bundle is not a gzipped tarball")]
    Archive(#[source] io::Error),
    /// An entry's path is absolute or has `..`.
    #[error("the bundle holds an entry that leaves its folder: `{0}`")]
    Escapes(String),
    /// An engine file that is a link or a device.
    #[error("the bundle's `{0}` is not a regular file")]
    NotRegular(String),
    /// An engine file comes twice.
    #[error("the bundle holds `{0}` twice")]
    Duplicate(EngineFile),
    /// An entry is larger than any engine's, or all of them together are.
    #[error("the bundle's `{path}` has {size} bytes: more than the {limit} left for it")]
    TooLarge {
        /// The entry.
        path: String,
        /// Its length, bytes.
        size: u64,
        /// What would have been accepted.
        limit: u64,
    },
    /// A file is not the one that the rollout names.
    #[error("the bundle's `{file}` has digest {got}, expected {expected}")]
    FileDigest {
        /// The file.
        file: EngineFile,
        /// By the rollout's record.
        expected: Digest,
        /// What came.
        got: Digest,
    },
    /// A file that the rollout does not name.
    #[error("the bundle holds `{0}`, which its rollout does not name")]
    Unexpected(EngineFile),
    /// A file that the rollout names is not there.
    #[error("the bundle lacks `{0}`, which its rollout names")]
    Missing(EngineFile),
    /// A file could not be written.
    #[error("`{file}` could not be unpacked")]
    Write {
        /// The file.
        file: EngineFile,
        /// Why.
        source: io::Error,
    },
}

/// Reads the bundle from `source` and writes its engine files, mode 0755, into the empty folder
/// `into`. `progress` gets the compressed bytes read so far.
///
/// When this returns, the files are on disk (their names in the folder are not: that is the caller's
/// to sync), and every digest is the one that `bundle` names. On an error the folder holds whatever
/// was written so far.
pub fn unpack(
    source: impl Read,
    bundle: &BundleRef,
    into: &Path,
    progress: &mut dyn FnMut(u64),
) -> Result<BTreeMap<EngineFile, SetFile>, BundleError> {
    unpack_within(LIMITS, source, bundle, into, progress)
}

fn unpack_within(
    limits: Limits,
    source: impl Read,
    bundle: &BundleRef,
    into: &Path,
    progress: &mut dyn FnMut(u64),
) -> Result<BTreeMap<EngineFile, SetFile>, BundleError> {
    thread::scope(|scope| {
        let (to_hash, hash_queue) = sync_channel::<Arc<Vec<u8>>>(QUEUE);
        let (to_write, write_queue) = sync_channel(QUEUE);
        let hashing = scope.spawn(move || {
            let mut hasher = Sha256::new();
            for chunk in hash_queue {
                hasher.update(&*chunk);
            }
            finish(hasher)
        });
        let writing = scope.spawn(move || write_files(write_queue, into));

        let mut tee = Tee {
            source,
            chunk: Arc::new(Vec::new()),
            used: 0,
            read: 0,
            expected: bundle.size,
            to_hash,
            progress,
            failure: None,
        };
        let inflated = inflate(limits, &mut tee, &to_write);
        drop(to_write);
        // Whatever was wrong inside: a bundle that is not the one named must be called that.
        let drained = tee.drain();
        let (read, failure) = (tee.read, tee.failure.take());
        drop(tee);
        let got = join(hashing);
        let written = join(writing);

        if let Some(error) = failure {
            return Err(error);
        }
        drained.map_err(BundleError::Read)?;
        if read < bundle.size {
            return Err(BundleError::Truncated { expected: bundle.size, got: read });
        }
        if got != bundle.digest {
            return Err(BundleError::Digest { expected: bundle.digest.clone(), got });
        }
        // The writer's own failure comes first: the queue that closed is only its consequence.
        let files = written?;
        inflated?;
        compare(bundle, &files)?;
        Ok(files)
    })
}

/// The result of a thread that has nothing to panic about.
fn join<T>(thread: thread::ScopedJoinHandle<'_, T>) -> T {
    match thread.join() {
        Ok(value) => value,
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

/// Every file is the one that the rollout names, and none is missing.
fn compare(bundle: &BundleRef, files: &BTreeMap<EngineFile, SetFile>) -> Result<(), BundleError> {
    for (&file, found) in files {
        match bundle.files.get(&file) {
            None => return Err(BundleError::Unexpected(file)),
            Some(expected) if *expected != found.digest => {
                return Err(BundleError::FileDigest { file, expected: expected.clone(), got: found.digest.clone() });
            }
            Some(_) => {}
        }
    }
    match bundle.files.keys().find(|file| !files.contains_key(file)) {
        Some(&missing) => Err(BundleError::Missing(missing)),
        None => Ok(()),
    }
}

/// The compressed stream on its way to the inflater, with a copy to the hasher.
struct Tee<'a, R> {
    source: R,
    chunk: Arc<Vec<u8>>,
    used: usize,
    read: u64,
    expected: u64,
    to_hash: SyncSender<Arc<Vec<u8>>>,
    progress: &'a mut dyn FnMut(u64),
    /// Why the source ended: the inflater would report it as its own failure.
    failure: Option<BundleError>,
}

impl<R: Read> Tee<'_, R> {
    /// Reads the rest, so that the digest is that of the whole.
    fn drain(&mut self) -> io::Result<()> {
        while self.failure.is_none() {
            let len = self.fill_buf()?.len();
            if len == 0 {
                break;
            }
            self.consume(len);
        }
        Ok(())
    }
}

impl<R: Read> BufRead for Tee<'_, R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.used == self.chunk.len() && self.failure.is_none() {
            let mut next = Vec::with_capacity(CHUNK);
            if let Err(error) = (&mut self.source).take(CHUNK as u64).read_to_end(&mut next) {
                self.failure = Some(BundleError::Read(error));
            }
            self.read += next.len() as u64;
            if self.read > self.expected {
                self.failure = Some(BundleError::TooLong { expected: self.expected });
            }
            if self.failure.is_some() {
                next.clear();
            }
            self.chunk = Arc::new(next);
            self.used = 0;
            // The hasher ends after this sender, so it takes every chunk.
            let _ = self.to_hash.send(Arc::clone(&self.chunk));
            (self.progress)(self.read);
        }
        Ok(&self.chunk[self.used..])
    }

    fn consume(&mut self, amount: usize) {
        self.used += amount;
    }
}

impl<R: Read> Read for Tee<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let ready = self.fill_buf()?;
        let len = ready.len().min(buffer.len());
        buffer[..len].copy_from_slice(&ready[..len]);
        self.consume(len);
        Ok(len)
    }
}

/// What the writing thread is told.
enum Piece {
    /// A file begins.
    File(EngineFile),
    /// The next bytes of it.
    Data(Vec<u8>),
}

/// Walks through the archive and hands the engine's files to the writer.
fn inflate(limits: Limits, compressed: &mut impl BufRead, to_write: &SyncSender<Piece>) -> Result<(), BundleError> {
    let mut archive = tar::Archive::new(GzDecoder::new(compressed));
    let mut seen = Vec::new();
    let mut left = limits.all;
    // Raw: long names and extended headers are not read into memory, as none of ours needs any.
    let entries = archive.entries().map_err(BundleError::Archive)?.raw(true);
    for entry in entries {
        let mut entry = entry.map_err(BundleError::Archive)?;
        let kind = entry.header().entry_type();
        let size = entry.header().entry_size().map_err(BundleError::Archive)?;
        let path = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        let too_large = |limit| BundleError::TooLarge { path: path.clone(), size, limit };
        left = left.checked_sub(size).ok_or_else(|| too_large(left))?;
        if is_metadata(kind) {
            continue;
        }
        let Some(file) = known(&path)? else { continue };
        if kind == EntryType::Directory {
            continue;
        }
        if !kind.is_file() {
            return Err(BundleError::NotRegular(path));
        }
        if size > limits.file {
            return Err(too_large(limits.file));
        }
        if seen.contains(&file) {
            return Err(BundleError::Duplicate(file));
        }
        seen.push(file);
        // A writer that has gone has an error of its own, which the caller prefers to this one.
        let gone = || BundleError::Write { file, source: io::ErrorKind::BrokenPipe.into() };
        to_write.send(Piece::File(file)).map_err(|_| gone())?;
        loop {
            let mut data = Vec::with_capacity(CHUNK);
            (&mut entry).take(CHUNK as u64).read_to_end(&mut data).map_err(BundleError::Archive)?;
            if data.is_empty() {
                break;
            }
            to_write.send(Piece::Data(data)).map_err(|_| gone())?;
        }
    }
    // To the end of the gzip stream: only there its checksum is compared.
    let rest = io::copy(&mut archive.into_inner().take(left + 1), &mut io::sink()).map_err(BundleError::Archive)?;
    if rest > left {
        return Err(BundleError::TooLarge { path: "(after the last entry)".to_owned(), size: rest, limit: left });
    }
    Ok(())
}

/// Whether an entry only describes the next one, or the archive.
fn is_metadata(kind: EntryType) -> bool {
    kind.is_pax_global_extensions()
        || kind.is_pax_local_extensions()
        || kind.is_gnu_longname()
        || kind.is_gnu_longlink()
}

/// The engine's file at `path` of an archive: Docker's own `docker/NAME`, or flat.
fn known(path: &str) -> Result<Option<EngineFile>, BundleError> {
    if path.starts_with('/') || path.split('/').any(|part| part == "..") {
        return Err(BundleError::Escapes(path.to_owned()));
    }
    let path = path.strip_prefix("./").unwrap_or(path);
    let name = path.strip_prefix("docker/").unwrap_or(path);
    // Names of 17.06 to 18.06. Their shim speaks another protocol and has no counterpart.
    let name = match name {
        "docker-containerd" => "containerd",
        "docker-containerd-ctr" => "ctr",
        "docker-runc" => "runc",
        name => name,
    };
    Ok(EngineFile::from_name(name))
}

/// The writing thread: creates each file, computes its digest, passes it on to be synced.
fn write_files(queue: Receiver<Piece>, into: &Path) -> Result<BTreeMap<EngineFile, SetFile>, BundleError> {
    struct Open {
        file: EngineFile,
        handle: File,
        hasher: Sha256,
        len: u64,
    }
    thread::scope(|scope| {
        let (to_sync, sync_queue) = sync_channel::<(EngineFile, File)>(EngineFile::ALL.len());
        let syncing = scope.spawn(move || {
            for (file, handle) in sync_queue {
                handle.sync_all().map_err(|source| BundleError::Write { file, source })?;
            }
            Ok(())
        });
        let mut done = BTreeMap::new();
        let mut close = |open: Open| {
            done.insert(open.file, SetFile { digest: finish(open.hasher), len: open.len });
            // The syncing thread only goes early with an error, which is returned below.
            let _ = to_sync.send((open.file, open.handle));
        };
        let mut open: Option<Open> = None;
        let write = || -> Result<(), BundleError> {
            for piece in queue {
                match piece {
                    Piece::File(file) => {
                        if let Some(finished) = open.take() {
                            close(finished);
                        }
                        let handle =
                            create(&into.join(file.name())).map_err(|source| BundleError::Write { file, source })?;
                        open = Some(Open { file, handle, hasher: Sha256::new(), len: 0 });
                    }
                    Piece::Data(data) => {
                        if let Some(open) = &mut open {
                            open.handle
                                .write_all(&data)
                                .map_err(|source| BundleError::Write { file: open.file, source })?;
                            open.hasher.update(&data);
                            open.len += data.len() as u64;
                        }
                    }
                }
            }
            if let Some(finished) = open.take() {
                close(finished);
            }
            Ok(())
        };
        let written = write();
        drop(to_sync);
        join(syncing)?;
        written?;
        Ok(done)
    })
}

/// A new file with the mode of a program, whatever the umask.
fn create(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new().write(true).create_new(true).mode(0o755).open(path)?;
    file.set_permissions(Permissions::from_mode(0o755))?;
    Ok(file)
}

#[cfg(test)]
#[path = "bundle_tests.rs"]
mod tests;
