//! Archives of which the same files always give the same bytes: nothing of the clock, the user, the umask or the order
//! of a folder is in them.
//!
//! The programs are Debian's. Libraries that compress faster choose their ways by the processor, and so do their bytes.

use std::ffi::OsStr;
use std::fs::File;
use std::path::Path;
use std::process::Command;

use crate::command::{self, Input};
use crate::{Error, Result};

/// Packs `names` below `folder`, folders with all that is in them, as the user 0; `mtime` is every entry's time, in
/// seconds since 1970.
pub(crate) fn tar<S: AsRef<OsStr>>(folder: &Path, names: &[S], mtime: i64, destination: &Path) -> Result<()> {
    let mut tar = Command::new("tar");
    tar.args(["--create", "--format=ustar", "--sort=name", "--owner=0", "--group=0", "--numeric-owner"]);
    tar.args(["--mode=a-st,u=rwX,go=rX", &format!("--mtime=@{mtime}"), "--file"]).arg(destination);
    tar.arg("--directory").arg(folder).args(names);
    // What the machine's user likes.
    tar.env_remove("TAR_OPTIONS").env("LC_ALL", "C");
    command::collect(&mut tar, Input::Empty)?.ok().map(drop)
}

/// Compresses a file.
pub(crate) fn gzip(file: &Path, destination: &Path) -> Result<()> {
    let out = File::create(destination).map_err(Error::file("create", destination))?;
    let mut gzip = Command::new("gzip");
    gzip.args(["--no-name", "--stdout"]).arg(file).env_remove("GZIP").stdout(out);
    command::inherit_ok(&mut gzip)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;
    use std::time::SystemTime;

    use super::*;

    /// A folder whose files were written in that order, with those bits, at that time.
    fn packed(files: &[&str], mode: u32, written: SystemTime) -> Vec<u8> {
        let folder = tempfile::tempdir().expect("a folder");
        let root = folder.path().join("root");
        fs::create_dir_all(root.join("usr/bin")).expect("folders");
        for name in files {
            let path = root.join("usr/bin").join(name);
            fs::write(&path, name).expect("written");
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("permissions");
            File::options().write(true).open(&path).and_then(|file| file.set_modified(written)).expect("a time");
        }
        let (plain, small) = (folder.path().join("a.tar"), folder.path().join("a.tar.gz"));
        tar(&root, &["usr"], 1_700_000_000, &plain).expect("tar");
        gzip(&plain, &small).expect("gzip");
        fs::read(&small).expect("read")
    }

    #[test]
    fn the_same_files_give_the_same_bytes() {
        let one = packed(&["agent", "coordinator"], 0o755, SystemTime::UNIX_EPOCH);
        let other = packed(&["coordinator", "agent"], 0o700, SystemTime::now());
        assert_eq!(one, other);
        assert_ne!(one, packed(&["agent"], 0o755, SystemTime::UNIX_EPOCH));
        // No name and no time in the header of gzip (RFC 1952).
        assert_eq!(one.get(..8), Some(&[0x1f, 0x8b, 8, 0, 0, 0, 0, 0][..]));
    }
}
