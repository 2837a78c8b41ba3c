//! `install`: the CLI for the host, out of the image.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::args;
use super::error::CliError;
use super::{Context, Exit};

/// The program's name on a host.
const NAME: &str = "requeen";

pub(crate) fn run(context: &Context, args: &args::Install) -> Result<Exit, CliError> {
    if !args.dir.is_dir() {
        return Err(CliError::NotAFolder { path: args.dir.clone() });
    }
    let target = copy(Path::new("/proc/self/exe"), &args.dir)?;
    context.printer.out(format_args!("installed {}", target.display()))?;
    Ok(Exit::Done)
}

/// Puts a copy of `program` into `dir`, atomically: whoever runs the old one goes on running it, and
/// nobody ever finds half a file.
fn copy(program: &Path, dir: &Path) -> Result<PathBuf, CliError> {
    let target = dir.join(NAME);
    let part = dir.join(format!(".{NAME}.{}", std::process::id()));
    let copied = try_copy(program, &part, &target, dir);
    if copied.is_err() {
        // The first error is the one that matters.
        let _ = fs::remove_file(&part);
    }
    copied.map_err(|source| CliError::Write { path: target.clone(), source })?;
    Ok(target)
}

fn try_copy(program: &Path, part: &Path, target: &Path, dir: &Path) -> io::Result<()> {
    let mut from = File::open(program)?;
    let mut to = OpenOptions::new().write(true).create(true).truncate(true).mode(0o755).open(part)?;
    io::copy(&mut from, &mut to)?;
    // The mode given above is subject to the umask.
    fs::set_permissions(part, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    to.sync_all()?;
    drop(to);
    fs::rename(part, target)?;
    File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn an_older_copy_is_replaced_and_nothing_is_left_behind() {
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("program");
        fs::write(&program, "new").unwrap();
        let out = dir.path().join("out");
        fs::create_dir(&out).unwrap();
        fs::write(out.join(NAME), "old").unwrap();
        let running = File::open(out.join(NAME)).unwrap();

        assert_eq!(copy(&program, &out).unwrap(), out.join(NAME));
        assert_eq!(fs::read_to_string(out.join(NAME)).unwrap(), "new");
        assert_eq!(fs::metadata(out.join(NAME)).unwrap().permissions().mode() & 0o7777, 0o755);
        assert_eq!(io::read_to_string(running).unwrap(), "old", "the file that runs is not written to");
        assert_eq!(fs::read_dir(&out).unwrap().count(), 1);
    }

    #[test]
    fn a_failure_leaves_what_was_there() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(NAME), "old").unwrap();
        assert!(copy(&dir.path().join("nothing"), dir.path()).is_err());
        assert_eq!(fs::read_to_string(dir.path().join(NAME)).unwrap(), "old");
        assert!(copy(Path::new("/proc/self/exe"), &dir.path().join("missing")).is_err());
    }
}
