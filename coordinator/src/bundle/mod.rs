//! Reading a bundle: Docker's static tarball, or one like it.
//!
//! Nothing is unpacked here and nothing is trusted: entries are looked at one by one, known names are
//! digested, and whatever a tarball could do to whoever unpacks it (links, paths that leave, two
//! entries of one name, entries without end) refuses it.

mod elf;
mod error;
mod url;
mod version;

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::Path;
use std::rc::Rc;

use flate2::bufread::GzDecoder;
use requeen_protocol::{BundleRef, Digest, EngineFile};
use sha2::{Digest as _, Sha256};
use tar::{Archive, EntryType};

use crate::api::StoredBundle;
pub use error::BundleError;
pub use url::{BundleUrl, UrlError};

/// How much a bundle may hold.
struct Limits {
    /// The longest file, bytes. The longest known one of an engine has 120 MB.
    entry: u64,
    /// All files together, bytes.
    total: u64,
    /// Entries.
    count: usize,
}

/// The limits of every bundle.
const LIMITS: Limits = Limits { entry: 512 << 20, total: 2 << 30, count: 4096 };

/// What a header and its extensions may take before the next entry is known, bytes.
const MAX_HEADER: u64 = 1 << 20;

/// How much is read at once, bytes.
const CHUNK: usize = 128 << 10;

/// [`BundleRef::version`] where the binary does not tell.
pub const UNKNOWN_VERSION: &str = "unknown";

/// Reads the whole tarball at `path` and says what is inside. `expected` is the digest that it has to
/// have, where that is known. Blocking; reads the file once, and a second time where the version is
/// hard to find.
pub fn inspect(path: &Path, expected: Option<&Digest>) -> Result<StoredBundle, BundleError> {
    inspect_within(&LIMITS, elf::native(), path, expected)
}

/// [`inspect`] with other limits, for the machine `arch`.
fn inspect_within(
    limits: &Limits,
    arch: &str,
    path: &Path,
    expected: Option<&Digest>,
) -> Result<StoredBundle, BundleError> {
    let unreadable = |source| BundleError::Read { path: path.to_owned(), source };
    let raw = Raw::new(File::open(path).map_err(unreadable)?);
    let seen = raw.seen.clone();
    let mut raw = BufReader::with_capacity(CHUNK, raw);
    check_magic(&mut raw).map_err(unreadable)??;

    let mut survey = Survey::default();
    let inflated = Allowance { inner: GzDecoder::new(&mut raw), left: Rc::default() };
    survey.read(limits, arch, inflated).map_err(|stop| stop.explain(path, &seen))?;

    // Whatever follows the archive belongs to the file, and so to its digest.
    io::copy(&mut raw, &mut io::sink()).map_err(unreadable)?;
    let raw = raw.into_inner();
    let size = raw.seen.bytes.get();
    let digest = to_digest(raw.hash);
    if let Some(expected) = expected.filter(|expected| **expected != digest) {
        return Err(BundleError::Digest { expected: expected.clone(), found: digest });
    }
    if !survey.files.contains_key(&EngineFile::Dockerd) {
        return Err(BundleError::NoDockerd);
    }
    let version = match survey.version {
        Some(version) => version,
        None => version_of_whole(path).map_err(unreadable)?.unwrap_or_else(|| UNKNOWN_VERSION.to_owned()),
    };
    let bundle =
        BundleRef { digest, size, version, arch: arch.to_owned(), files: survey.files, unpacked: survey.unpacked };
    Ok(StoredBundle { bundle, ignored: survey.ignored })
}

fn check_magic(raw: &mut BufReader<Raw>) -> io::Result<Result<(), BundleError>> {
    let begin = io::BufRead::fill_buf(raw)?;
    Ok(match begin.get(..2) {
        Some([0x1f, 0x8b]) => Ok(()),
        Some(other) => Err(BundleError::NotGzip { begin: format!("`{}`", other.escape_ascii()) }),
        None => Err(BundleError::NotGzip { begin: "nothing".into() }),
    })
}

/// What has been found so far.
#[derive(Default)]
struct Survey {
    files: BTreeMap<EngineFile, Digest>,
    ignored: Vec<String>,
    unpacked: u64,
    version: Option<String>,
}

impl Survey {
    fn read<R: Read>(&mut self, limits: &Limits, arch: &str, inflated: Allowance<R>) -> Result<(), Stop> {
        let left = inflated.left.clone();
        let mut archive = Archive::new(inflated);
        let (mut names, mut total, mut count) = (BTreeSet::new(), 0_u64, 0);
        left.set(MAX_HEADER);
        for entry in archive.entries()? {
            let mut entry = entry?;
            count += 1;
            let path = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
            let (kind, size) = (entry.header().entry_type(), entry.size());
            total = total.saturating_add(size);
            if size > limits.entry {
                return Err(BundleError::TooBig { entry: path, size, limit: limits.entry }.into());
            }
            if total > limits.total {
                return Err(BundleError::TooMuch { limit: format!("{} MiB", limits.total >> 20) }.into());
            }
            if count > limits.count {
                return Err(BundleError::TooMuch { limit: format!("{} entries", limits.count) }.into());
            }
            left.set(size + MAX_HEADER);
            if regular(kind, &path)? {
                let name = normal(&path)?;
                let known = engine_file(&name);
                let key = known.map_or_else(|| name.clone(), |file| file.name().to_owned());
                if !names.insert(key.clone()) {
                    return Err(BundleError::Duplicate { name: key }.into());
                }
                match known {
                    Some(file) => self.file(arch, file, &path, size, &mut entry)?,
                    None => self.ignored.push(name),
                }
            } else {
                normal(&path)?;
            }
            // The rest is read here, while the allowance is the entry's own.
            io::copy(&mut entry, &mut io::sink())?;
            left.set(MAX_HEADER);
        }
        // What is left is padding; reading it makes the decoder check its own sum and length.
        left.set(MAX_HEADER);
        io::copy(&mut archive.into_inner(), &mut io::sink())?;
        Ok(())
    }

    fn file(
        &mut self,
        arch: &str,
        file: EngineFile,
        path: &str,
        size: u64,
        content: &mut impl Read,
    ) -> Result<(), Stop> {
        let mut hash = Sha256::new();
        let mut scanner = (file == EngineFile::Dockerd).then(version::Scanner::default);
        let mut header = Vec::new();
        content.take(elf::HEADER_LEN as u64).read_to_end(&mut header)?;
        match elf::machine(&header) {
            Some(found) if found != arch => {
                return Err(BundleError::WrongArch { entry: path.to_owned(), found, host: arch.to_owned() }.into());
            }
            Some(_) => {}
            // Other files may be scripts, wrapped by whoever made the bundle.
            None if file == EngineFile::Dockerd => {
                return Err(BundleError::NotElf { entry: path.to_owned() }.into());
            }
            None => {}
        }
        hash.update(&header);
        let mut chunk = vec![0; CHUNK];
        loop {
            let n = content.read(&mut chunk)?;
            if n == 0 {
                break;
            }
            hash.update(&chunk[..n]);
            if let Some(scanner) = &mut scanner {
                scanner.feed(&chunk[..n]);
            }
        }
        if let Some(scanner) = scanner {
            self.version = scanner.finish();
        }
        self.files.insert(file, to_digest(hash));
        self.unpacked += size;
        Ok(())
    }
}

/// Whether an entry is a regular file (else a folder or a remark of the archive); anything else is
/// refused, whatever its name: nothing in an engine needs it.
fn regular(kind: EntryType, path: &str) -> Result<bool, BundleError> {
    let kind = match kind {
        EntryType::Regular | EntryType::Continuous => return Ok(true),
        EntryType::Directory | EntryType::XGlobalHeader => return Ok(false),
        EntryType::Symlink => "symbolic link",
        EntryType::Link => "hard link",
        EntryType::Char | EntryType::Block => "device",
        EntryType::Fifo => "named pipe",
        EntryType::GNUSparse => "sparse file",
        EntryType::GNULongName | EntryType::GNULongLink | EntryType::XHeader => "stray header",
        _ => "special entry",
    };
    Err(BundleError::NotRegular { entry: path.to_owned(), kind })
}

/// The file of an engine that an entry of this [`normal`] name is.
fn engine_file(name: &str) -> Option<EngineFile> {
    EngineFile::from_name(name.strip_prefix("docker/").unwrap_or(name))
}

/// A path without `.` and empty parts; absolute ones and those with `..` are refused.
fn normal(path: &str) -> Result<String, BundleError> {
    if path.starts_with('/') || path.split('/').any(|part| part == "..") {
        return Err(BundleError::Escapes { entry: path.to_owned() });
    }
    let parts: Vec<_> = path.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
    Ok(parts.join("/"))
}

/// Reads the tarball once more, and dockerd as a whole. The tarball has passed every check.
fn version_of_whole(path: &Path) -> io::Result<Option<String>> {
    let mut archive = Archive::new(GzDecoder::new(BufReader::new(File::open(path)?)));
    for entry in archive.entries()? {
        let mut entry = entry?;
        let name = normal(&String::from_utf8_lossy(&entry.path_bytes())).unwrap_or_default();
        if engine_file(&name) == Some(EngineFile::Dockerd) {
            let mut elf = Vec::new();
            entry.read_to_end(&mut elf)?;
            return Ok(version::of_elf(&elf));
        }
    }
    Ok(None)
}

/// The digest of all that `hash` was given.
pub(crate) fn to_digest(hash: Sha256) -> Digest {
    Digest::from_hex(&hex::encode(hash.finalize())).expect("32 bytes are 64 hexadecimal digits")
}

/// Why a survey ends early.
enum Stop {
    Refused(BundleError),
    Io(io::Error),
}

impl From<BundleError> for Stop {
    fn from(error: BundleError) -> Self {
        Stop::Refused(error)
    }
}

impl From<io::Error> for Stop {
    fn from(error: io::Error) -> Self {
        Stop::Io(error)
    }
}

impl Stop {
    /// Tells apart who failed: the file itself, or what is in it.
    fn explain(self, path: &Path, seen: &Seen) -> BundleError {
        match self {
            Stop::Refused(error) => error,
            Stop::Io(source) if seen.failed.get() => BundleError::Read { path: path.to_owned(), source },
            // The file is at its end and more was wanted.
            Stop::Io(source) if seen.ended.get() && source.kind() == io::ErrorKind::UnexpectedEof => {
                BundleError::Truncated { bytes: seen.bytes.get() }
            }
            Stop::Io(source) => BundleError::Damaged { source },
        }
    }
}

/// What the file has given so far; shared, because readers are stacked upon it.
#[derive(Clone, Default)]
struct Seen {
    bytes: Rc<Cell<u64>>,
    ended: Rc<Cell<bool>>,
    failed: Rc<Cell<bool>>,
}

/// The file, digested while it is read.
struct Raw {
    file: File,
    hash: Sha256,
    seen: Seen,
}

impl Raw {
    fn new(file: File) -> Self {
        Self { file, hash: Sha256::new(), seen: Seen::default() }
    }
}

impl Read for Raw {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.file.read(buf).inspect_err(|_| self.seen.failed.set(true))?;
        self.hash.update(&buf[..n]);
        self.seen.bytes.set(self.seen.bytes.get() + n as u64);
        if n == 0 && !buf.is_empty() {
            self.seen.ended.set(true);
        }
        Ok(n)
    }
}

/// Gives no more bytes than were allowed: the archive reader keeps long names in memory, and a few
/// kilobytes inflate to gigabytes.
struct Allowance<R> {
    inner: R,
    left: Rc<Cell<u64>>,
}

impl<R: Read> Read for Allowance<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let left = self.left.get();
        let most = buf.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        if most == 0 && !buf.is_empty() {
            return Err(io::Error::other("a header, a name or the padding is longer than any archive needs"));
        }
        let n = self.inner.read(&mut buf[..most])?;
        self.left.set(left - n as u64);
        Ok(n)
    }
}

#[cfg(test)]
mod tests;
