//! Where the lab keeps what is dear to make: lists and packages of the archive, bundles of engines.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::{Error, Result};

/// Names another folder than [`DEFAULT`].
pub const VARIABLE: &str = "REQUEEN_LAB_CACHE";

/// The cache's folder unless [`VARIABLE`] names another.
pub const DEFAULT: &str = "/var/cache/requeen-lab";

/// Where a folder of the cache is, or would be.
pub(crate) fn place(name: &str) -> PathBuf {
    std::env::var_os(VARIABLE).map_or_else(|| PathBuf::from(DEFAULT), PathBuf::from).join(name)
}

/// A folder of the cache, made if it is not there.
pub fn folder(name: &str) -> Result<PathBuf> {
    let path = place(name);
    fs::create_dir_all(&path).map_err(Error::file("create", &path))?;
    Ok(path)
}

/// A lock held until it is dropped, or until its process dies.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

/// Waits for the lock of that name, so that two runs of the lab don't make the same thing at once.
pub fn lock(name: &str) -> Result<Lock> {
    let path = folder("locks")?.join(name);
    let file = File::create(&path).map_err(Error::file("create", &path))?;
    file.lock().map_err(Error::file("lock", &path))?;
    Ok(Lock { _file: file })
}

/// The SHA-256 of a text, in hexadecimal.
pub fn digest_text(text: &str) -> String {
    digest_bytes(text.as_bytes())
}

/// The SHA-256 of bytes, in hexadecimal.
pub fn digest_bytes(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

/// The SHA-256 of a file, in hexadecimal.
pub fn digest_file(path: &Path) -> Result<String> {
    let mut file = File::open(path).map_err(Error::file("open", path))?;
    let mut sha = Sha256::new();
    std::io::copy(&mut file, &mut HashWriter(&mut sha)).map_err(Error::file("read", path))?;
    Ok(hex::encode(sha.finalize()))
}

/// The first twelve digits of a digest: enough for a name.
pub fn short(digest: &str) -> &str {
    digest.get(..12).unwrap_or(digest)
}

struct HashWriter<'a>(&'a mut Sha256);

impl std::io::Write for HashWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
