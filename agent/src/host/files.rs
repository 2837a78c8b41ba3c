//! Files that must survive a power failure, and their digests.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::Path;

use requeen_protocol::Digest;
use sha2::{Digest as _, Sha256};

/// How much is read at once where whole binaries pass through.
pub(crate) const CHUNK: usize = 1 << 20;

/// Replaces a file as a whole; when this returns, the new content outlives a power failure. The
/// folder must exist.
pub fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let temp = dir.join(format!(".{}.new", name.to_string_lossy()));
    write_synced(&temp, bytes)?;
    fs::rename(&temp, path)?;
    sync_dir(dir)
}

/// Writes a file and its content to disk, but not yet its name in its folder.
pub(crate) fn write_synced(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

/// Writes a folder's names to disk.
pub fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// The digest and length of a file; links are followed by the kernel.
pub fn digest(path: &Path) -> io::Result<(Digest, u64)> {
    let mut file = File::open(path)?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; CHUNK];
    let mut len = 0;
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return Ok((finish(hasher), len)),
            Ok(read) => {
                hasher.update(&buffer[..read]);
                len += read as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// A finished hash as a digest.
pub(crate) fn finish(hasher: Sha256) -> Digest {
    Digest::from_hex(&hex::encode(hasher.finalize()))
        .unwrap_or_else(|error| unreachable!("a SHA-256 in hexadecimal is a digest: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_is_that_of_the_content() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        replace(&path, b"old").unwrap();
        replace(&path, b"abc").unwrap();
        let (digest, len) = digest(&path).unwrap();
        // FIPS 180-2, appendix B.1.
        assert_eq!(digest.hex(), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        assert_eq!(len, 3);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "no leftovers");
    }
}
