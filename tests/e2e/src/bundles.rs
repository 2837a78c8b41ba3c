//! Tarballs: good ones changed in one file, and every kind of bad one.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use sha2::{Digest, Sha256};

/// Offset of `e_machine` in an ELF header.
const E_MACHINE: usize = 18;

/// `EM_S390`: a machine that the lab never runs on.
const OTHER_MACHINE: [u8; 2] = [22, 0];

/// A size that only a header can have.
const HUGE: u64 = 20 << 30;

/// One bad tarball.
#[derive(Clone, Debug)]
pub struct Bad {
    /// What is wrong with it.
    pub what: &'static str,
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// A word that the refusal has to say.
    pub said: &'static str,
}

/// Every kind of tarball that must be refused, made around a program that could pass for a dockerd.
pub fn bad(dockerd: &[u8]) -> Result<Vec<Bad>> {
    let good = good(dockerd)?;
    let mut foreign = dockerd.to_vec();
    foreign.get_mut(E_MACHINE..E_MACHINE + 2).context("no ELF header")?.copy_from_slice(&OTHER_MACHINE);
    let bad = |what, said, bytes| Bad { what, bytes, said };
    Ok(vec![
        bad("not gzip", "not gzip", b"<html>404 Not Found</html>".to_vec()),
        bad("truncated", "truncated", good[..good.len() * 2 / 3].to_vec()),
        bad("no dockerd", "no dockerd", tarball(|tar| file(tar, "docker/runc", dockerd))?),
        bad("wrong architecture", "built for", tarball(|tar| file(tar, "docker/dockerd", &foreign))?),
        bad("entry that climbs", "leads out", tarball(|tar| named(tar, b"docker/../../etc/cron.d/x", dockerd))?),
        bad("absolute entry", "leads out", tarball(|tar| named(tar, b"/usr/bin/dockerd", dockerd))?),
        bad(
            "link entry",
            "link",
            tarball(|tar| {
                let mut header = tar::Header::new_gnu();
                header.set_entry_type(tar::EntryType::Symlink);
                header.set_size(0);
                Ok(tar.append_link(&mut header, "docker/dockerd", "/bin/sh")?)
            })?,
        ),
        bad(
            "two entries of one name",
            "twice",
            tarball(|tar| {
                file(tar, "docker/dockerd", dockerd)?;
                file(tar, "docker/dockerd", dockerd)
            })?,
        ),
        bad("entry of 20 GB", "bytes", huge()?),
    ])
}

/// A tarball of one program, with nothing wrong.
pub fn good(dockerd: &[u8]) -> Result<Vec<u8>> {
    tarball(|tar| file(tar, "docker/dockerd", dockerd))
}

/// A tarball whose entry is 20 GB long by its header, and which ends soon after it.
fn huge() -> Result<Vec<u8>> {
    let mut header = tar::Header::new_gnu();
    header.set_path("docker/dockerd")?;
    header.set_size(HUGE);
    header.set_mode(0o755);
    header.set_cksum();
    let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
    gzip.write_all(header.as_bytes())?;
    gzip.write_all(&vec![0; 1 << 20])?;
    Ok(gzip.finish()?)
}

type Tar = tar::Builder<GzEncoder<Vec<u8>>>;

fn tarball(fill: impl FnOnce(&mut Tar) -> Result<()>) -> Result<Vec<u8>> {
    let mut tar = tar::Builder::new(GzEncoder::new(Vec::new(), Compression::fast()));
    fill(&mut tar)?;
    Ok(tar.into_inner()?.finish()?)
}

fn file<W: Write>(tar: &mut tar::Builder<W>, name: &str, content: &[u8]) -> Result<()> {
    let mut header = tar::Header::new_gnu();
    header.set_size(u64::try_from(content.len())?);
    header.set_mode(0o755);
    Ok(tar.append_data(&mut header, name, content)?)
}

/// An entry of a name that the crate would not write.
fn named(tar: &mut Tar, name: &[u8], content: &[u8]) -> Result<()> {
    let mut header = tar::Header::new_gnu();
    header.as_gnu_mut().context("no GNU header")?.name[..name.len()].copy_from_slice(name);
    header.set_size(u64::try_from(content.len())?);
    header.set_mode(0o755);
    header.set_cksum();
    Ok(tar.append(&header, content)?)
}

/// A bundle with one file replaced.
pub fn replaced(bundle: &Path, name: &str, content: &[u8], destination: &Path) -> Result<()> {
    let mut archive = tar::Archive::new(GzDecoder::new(File::open(bundle)?));
    let mut tar = tar::Builder::new(GzEncoder::new(File::create(destination)?, Compression::fast()));
    let mut found = false;
    for entry in archive.entries()? {
        let mut entry = entry?;
        let path = entry.path()?.into_owned();
        if path.file_name().is_some_and(|last| last == name) {
            found = true;
            file(&mut tar, &path.to_string_lossy(), content)?;
        } else {
            let header = entry.header().clone();
            tar.append(&header, &mut entry)?;
        }
    }
    tar.into_inner()?.finish()?;
    ensure!(found, "{} has no {name}", bundle.display());
    Ok(())
}

/// The content of one file of a bundle.
pub fn content(bundle: &Path, name: &str) -> Result<Vec<u8>> {
    let mut archive = tar::Archive::new(GzDecoder::new(File::open(bundle)?));
    for entry in archive.entries()? {
        let mut entry = entry?;
        if entry.path()?.file_name().is_some_and(|last| last == name) {
            let mut content = Vec::new();
            entry.read_to_end(&mut content)?;
            return Ok(content);
        }
    }
    anyhow::bail!("{} has no {name}", bundle.display())
}

/// The SHA-256 of bytes, in hexadecimal.
pub fn sha256(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

/// How an engine fails that passes every check before the swap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failing {
    /// It ends as soon as it is started.
    AtOnce,
    /// It ends after ten seconds, in which it does nothing.
    Late,
    /// It does nothing, for ever.
    Never,
}

/// A program that passes every check before the swap, and fails when it is run as an engine.
pub fn failing_dockerd(version: &str, how: Failing) -> Result<Vec<u8>> {
    let wait = match how {
        Failing::AtOnce => "",
        Failing::Late => "sleep(10);",
        Failing::Never => "for (;;) pause();",
    };
    let source = format!(
        r#"#include <stdio.h>
#include <string.h>
#include <unistd.h>
/* Where Go keeps the linker's flags of a real one. */
const char flags[] = "-X \"github.com/docker/docker/dockerversion.Version={version}\"";
int main(int count, char **arguments) {{
    for (int i = 1; i < count; i++) {{
        if (strcmp(arguments[i], "--version") == 0) {{
            puts("Docker version {version}, build e2e");
            return 0;
        }}
        if (strcmp(arguments[i], "--validate") == 0) {{
            puts("configuration OK");
            return 0;
        }}
    }}
    fprintf(stderr, "this engine fails on purpose\n");
    {wait}
    return flags[0] == '-' ? 1 : 2;
}}
"#
    );
    let folder = tempfile::tempdir()?;
    let (from, to) = (folder.path().join("dockerd.c"), folder.path().join("dockerd"));
    fs::write(&from, source)?;
    let output =
        Command::new("cc").args(["-static", "-O0", "-o"]).arg(&to).arg(&from).output().context("no cc here")?;
    ensure!(output.status.success(), "cc: {}", String::from_utf8_lossy(&output.stderr));
    Ok(fs::read(&to)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_a_bundle_is_replaced_and_the_others_stay() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let (old, new) = (folder.path().join("old.tgz"), folder.path().join("new.tgz"));
        fs::write(
            &old,
            tarball(|tar| {
                file(tar, "docker/dockerd", b"engine")?;
                file(tar, "docker/runc", b"old")
            })?,
        )?;
        replaced(&old, "runc", b"new", &new)?;
        assert_eq!(content(&new, "runc")?, b"new");
        assert_eq!(content(&new, "dockerd")?, b"engine");
        assert!(replaced(&old, "ctr", b"", &new).is_err());
        Ok(())
    }

    #[test]
    fn the_failing_engine_says_its_version_and_fails() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("dockerd");
        fs::write(&path, failing_dockerd("26.1.6", Failing::AtOnce)?)?;
        fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
        let said = Command::new(&path).arg("--version").output()?;
        assert_eq!(String::from_utf8(said.stdout)?, "Docker version 26.1.6, build e2e\n");
        assert_eq!(Command::new(&path).output()?.status.code(), Some(1));
        Ok(())
    }

    #[test]
    fn every_bad_tarball_is_made() -> Result<()> {
        let elf = failing_dockerd("1.0.0", Failing::AtOnce)?;
        let bad = bad(&elf)?;
        assert_eq!(bad.len(), 9);
        assert!(bad.iter().filter(|bad| bad.what != "not gzip").all(|bad| bad.bytes.starts_with(&[0x1f, 0x8b])));
        Ok(())
    }
}
