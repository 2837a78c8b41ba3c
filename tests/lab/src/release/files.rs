//! The files that go beside the image: the image to load, the bill, completions, man pages, and checksums of them all.

use std::fs;
use std::path::Path;

use super::{Binaries, Image, NAME, Release};
use crate::{Error, Result, archive, cache};

/// The shells and what each calls a file of completions for this product.
const SHELLS: [(&str, &str); 3] = [("bash", "requeen"), ("zsh", "_requeen"), ("fish", "requeen.fish")];

/// What `sha256sum --check` reads.
const SUMS: &str = "SHA256SUMS";

/// The file that `docker load` takes.
pub(super) fn archive_name(version: &str) -> String {
    format!("{NAME}-{version}-image.tar")
}

/// Writes the files into an empty folder. `layout` is the image's.
pub(super) fn write(
    folder: &Path,
    layout: &Path,
    binaries: &Binaries,
    image: &Image,
    sbom: &[u8],
    release: &Release,
) -> Result<()> {
    let version = &release.version;
    let parts = ["blobs", "index.json", "manifest.json", "oci-layout"];
    archive::tar(layout, &parts, release.created.as_second(), &folder.join(archive_name(version)))?;
    put(&folder.join(format!("{NAME}-{version}.cdx.json")), sbom)?;
    put(&folder.join(format!("{NAME}-{version}-image.digest")), format!("{}\n", image.digest()).as_bytes())?;
    for (shell, file) in SHELLS {
        let place = folder.join("completions").join(shell);
        fs::create_dir_all(&place).map_err(Error::file("create", &place))?;
        put(&place.join(file), binaries.run(&["completions", shell])?.as_bytes())?;
    }
    let manual = folder.join("man/man1");
    fs::create_dir_all(&manual).map_err(Error::file("create", &manual))?;
    binaries.run(&["man", &manual.display().to_string()])?;
    // Written last: with it, everything is there.
    put(&folder.join(SUMS), sums(folder)?.as_bytes())
}

fn put(path: &Path, bytes: &[u8]) -> Result<()> {
    fs::write(path, bytes).map_err(Error::file("write", path))
}

/// A line for each file below a folder, in the order of their names.
fn sums(folder: &Path) -> Result<String> {
    let mut names = Vec::new();
    collect(folder, "", &mut names)?;
    names.sort();
    let mut lines = String::new();
    for name in names {
        lines.push_str(&format!("{}  {name}\n", cache::digest_file(&folder.join(&name))?));
    }
    Ok(lines)
}

fn collect(folder: &Path, prefix: &str, names: &mut Vec<String>) -> Result<()> {
    for entry in fs::read_dir(folder).map_err(Error::file("read", folder))? {
        let entry = entry.map_err(Error::file("read", folder))?;
        let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
        if entry.path().is_dir() {
            collect(&entry.path(), &format!("{name}/"), names)?;
        } else {
            names.push(name);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;
    use crate::command::{self, Input};

    #[test]
    fn sums_are_what_sha256sum_checks() {
        let folder = tempfile::tempdir().expect("a folder");
        let place = folder.path();
        fs::create_dir_all(place.join("man/man1")).expect("folders");
        put(&place.join("man/man1/requeen.1"), b"x").expect("written");
        put(&place.join("b"), b"y").expect("written");
        let sums = sums(place).expect("sums");
        let names: Vec<&str> = sums.lines().filter_map(|line| line.split_whitespace().nth(1)).collect();
        assert_eq!(names, ["b", "man/man1/requeen.1"]);
        put(&place.join(SUMS), sums.as_bytes()).expect("written");
        let check = || {
            let mut sha256sum = Command::new("sha256sum");
            command::collect(sha256sum.args(["--check", "--quiet", SUMS]).current_dir(place), Input::Empty)
                .expect("sha256sum")
                .success()
        };
        assert!(check());
        put(&place.join("b"), b"z").expect("written");
        assert!(!check());
    }
}
