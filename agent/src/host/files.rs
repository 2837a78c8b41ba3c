//! Files that must survive a power failure, and their digests.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use nix::errno::Errno;
use nix::unistd::{Whence, lseek};
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

/// Makes a new file, mode 0600, with another's content. What was only reserved in the other, as logs written ahead are, stays
/// unwritten; the kernel shares the rest between the two where the file system can.
pub(crate) fn copy_data(from: &Path, to: &Path) -> io::Result<()> {
    let source = File::open(from)?;
    let len = source.metadata()?.len();
    let target = File::options().write(true).create_new(true).mode(0o600).open(to)?;
    target.set_len(len)?;
    let mut at = 0;
    while let Some((start, end)) = data_from(&source, at, len)? {
        (&source).seek(SeekFrom::Start(start))?;
        (&target).seek(SeekFrom::Start(start))?;
        if io::copy(&mut (&source).take(end - start), &mut &target)? != end - start {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        at = end;
    }
    Ok(())
}

/// Where data begins and ends that is at or after `at`, in a file that is `len` bytes long.
fn data_from(file: &File, at: u64, len: u64) -> io::Result<Option<(u64, u64)>> {
    let seek = |at: u64, whence| -> Result<u64, Errno> {
        let at = i64::try_from(at).map_err(|_| Errno::EOVERFLOW)?;
        lseek(file, at, whence).map(i64::unsigned_abs)
    };
    if at >= len {
        return Ok(None);
    }
    match seek(at, Whence::SeekData) {
        Ok(start) if start >= len => Ok(None),
        Ok(start) => Ok(Some((start, seek(start, Whence::SeekHole)?.min(len)))),
        // Nothing more.
        Err(Errno::ENXIO) => Ok(None),
        // A file system that does not tell.
        Err(Errno::EINVAL | Errno::EOPNOTSUPP) => Ok(Some((at, len))),
        Err(errno) => Err(errno.into()),
    }
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
    fn what_was_only_reserved_is_not_written() {
        use std::os::unix::fs::MetadataExt;

        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        const MIB: u64 = 1 << 20;
        for parts in [vec![], vec![(0, 5)], vec![(3 * MIB, 7), (9 * MIB, 70_000)], vec![(16 * MIB - 1, 1)]] {
            let mut file = File::create(&from).unwrap();
            file.set_len(16 * MIB).unwrap();
            for (at, len) in &parts {
                file.seek(SeekFrom::Start(*at)).unwrap();
                file.write_all(&vec![b'x'; *len]).unwrap();
            }
            copy_data(&from, &to).unwrap();
            assert_eq!(fs::read(&to).unwrap(), fs::read(&from).unwrap(), "{parts:?}");
            let made = fs::metadata(&to).unwrap();
            assert!(made.blocks() * 512 < MIB, "{parts:?} take {} bytes", made.blocks() * 512);
            assert_eq!(made.mode() & 0o777, 0o600);
            assert!(copy_data(&from, &to).is_err(), "nothing is written over");
            fs::remove_file(&to).unwrap();
        }
    }

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
