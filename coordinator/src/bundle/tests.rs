//! Bundles good and bad, made here entry by entry.

use std::io::Write;
use std::path::PathBuf;

use flate2::Compression;
use flate2::write::GzEncoder;
use tar::{Builder, Header};
use tempfile::TempDir;

use super::*;

/// The machine that these tests pretend to be.
const ARCH: &str = "x86_64";

/// The beginning of an executable for the machine with this number.
fn elf(machine: u8) -> Vec<u8> {
    let mut header = vec![0; 64];
    header[..6].copy_from_slice(b"\x7fELF\x02\x01");
    header[18] = machine;
    header
}

/// A dockerd for [`ARCH`] that says its version as Go's linker does.
fn dockerd() -> Vec<u8> {
    let mut content = elf(62);
    content.extend(br#"-X \"github.com/docker/docker/dockerversion.Version=28.5.2\" "#);
    content
}

/// A tarball being made.
struct Tarball(Builder<Vec<u8>>);

impl Tarball {
    fn new() -> Self {
        Self(Builder::new(Vec::new()))
    }

    /// The least that is a bundle.
    fn good() -> Self {
        Self::new().file("docker/dockerd", &dockerd())
    }

    fn file(self, path: &str, content: &[u8]) -> Self {
        self.entry(EntryType::Regular, path, content.len() as u64, content)
    }

    fn link(self, kind: EntryType, path: &str, target: &str) -> Self {
        let mut header = header(kind, path, 0);
        header.set_link_name_literal(target).unwrap();
        header.set_cksum();
        self.append(&header, &[])
    }

    /// An entry whose header says `size`, whatever follows.
    fn entry(self, kind: EntryType, path: &str, size: u64, content: &[u8]) -> Self {
        self.append(&header(kind, path, size), content)
    }

    fn append(mut self, header: &Header, content: &[u8]) -> Self {
        self.0.append(header, content).unwrap();
        self
    }

    fn tar(self) -> Vec<u8> {
        self.0.into_inner().unwrap()
    }

    fn gz(self) -> Vec<u8> {
        gzip(&self.tar())
    }
}

/// A header with the path as it is, even one that the crate would refuse to write.
fn header(kind: EntryType, path: &str, size: u64) -> Header {
    let mut header = Header::new_gnu();
    header.as_gnu_mut().unwrap().name[..path.len()].copy_from_slice(path.as_bytes());
    header.set_entry_type(kind);
    header.set_size(size);
    header.set_mode(0o755);
    header.set_cksum();
    header
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn saved(bytes: &[u8]) -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("bundle.tgz");
    std::fs::write(&path, bytes).unwrap();
    (dir, path)
}

fn inspected(bytes: &[u8]) -> Result<StoredBundle, BundleError> {
    let (_dir, path) = saved(bytes);
    inspect_within(&LIMITS, ARCH, &path, None)
}

fn digest_of(bytes: &[u8]) -> Digest {
    to_digest(Sha256::new_with_prefix(bytes))
}

#[test]
fn dockers_own_layout() {
    let bytes = Tarball::new()
        .entry(EntryType::Directory, "docker/", 0, &[])
        .file("docker/dockerd", &dockerd())
        .file("docker/runc", &elf(62))
        .file("docker/docker-init", b"#!/bin/sh\n")
        .file("docker/README", b"hello")
        .gz();
    let stored = inspected(&bytes).unwrap();
    assert_eq!(stored.ignored, ["docker/README"]);
    let bundle = stored.bundle;
    assert_eq!((bundle.version.as_str(), bundle.arch.as_str()), ("28.5.2", ARCH));
    assert_eq!((bundle.digest, bundle.size), (digest_of(&bytes), bytes.len() as u64));
    assert_eq!(
        bundle.files,
        BTreeMap::from([
            (EngineFile::Dockerd, digest_of(&dockerd())),
            (EngineFile::Runc, digest_of(&elf(62))),
            (EngineFile::DockerInit, digest_of(b"#!/bin/sh\n")),
        ])
    );
    assert_eq!(bundle.unpacked, (dockerd().len() + 64 + 10) as u64);
}

#[test]
fn flat_layouts_and_dots() {
    for path in ["dockerd", "./dockerd", "./docker/dockerd", "docker//dockerd"] {
        let stored = inspected(&Tarball::new().file(path, &dockerd()).gz()).unwrap();
        assert!(stored.bundle.files.contains_key(&EngineFile::Dockerd), "{path}");
    }
    let deeper = Tarball::good().file("docker/plugins/dockerd", b"x").gz();
    assert_eq!(inspected(&deeper).unwrap().ignored, ["docker/plugins/dockerd"]);
}

#[test]
fn what_follows_the_archive_belongs_to_the_digest() {
    let mut bytes = Tarball::good().gz();
    bytes.extend(vec![b'x'; 300_000]);
    let bundle = inspected(&bytes).unwrap().bundle;
    assert_eq!((bundle.digest, bundle.size), (digest_of(&bytes), bytes.len() as u64));
}

#[test]
fn a_version_that_nobody_tells_is_unknown() {
    let bundle = inspected(&Tarball::new().file("dockerd", &elf(62)).gz()).unwrap().bundle;
    assert_eq!(bundle.version, UNKNOWN_VERSION);
}

#[test]
fn bad_bundles_are_refused_with_the_reason() {
    let cut = |mut bytes: Vec<u8>, by: usize| {
        bytes.truncate(bytes.len() - by);
        bytes
    };
    let flipped = |mut bytes: Vec<u8>, at: usize| {
        bytes[at] ^= 0xff;
        bytes
    };
    let good = || Tarball::good().gz();
    let sized = good().len();
    // A long name of two megabytes of zeros: nearly nothing in the file, and kept in memory.
    let long_name = Tarball::new()
        .entry(EntryType::GNULongName, "././@LongLink", 2 << 20, &vec![b'a'; 2 << 20])
        .file("dockerd", &dockerd())
        .gz();
    let endless = {
        let mut tar = Tarball::good().tar();
        tar.extend(vec![0; 3 << 20]);
        gzip(&tar)
    };
    let crowd = {
        let mut tar = Tarball::good();
        for i in 0..LIMITS.count {
            tar = tar.file(&format!("f{i}"), b"");
        }
        tar.gz()
    };
    let table: Vec<(&str, Vec<u8>, &str)> = vec![
        ("empty", vec![], "is not gzip: it begins with nothing"),
        ("web page", b"<html>".to_vec(), "is not gzip: it begins with `<h`"),
        ("truncated", cut(good(), 30), "is truncated: it ends after"),
        ("truncated in its trailer", cut(good(), 1), "is truncated: it ends after"),
        ("gzip header alone", good()[..10].to_vec(), "is truncated: it ends after 10 bytes"),
        ("wrong sum", flipped(good(), sized - 6), "is damaged"),
        ("no archive", gzip(&[b'x'; 2048]), "is damaged"),
        ("long name", long_name, "is damaged"),
        ("endless padding", endless, "is damaged"),
        ("no dockerd", Tarball::new().file("docker/runc", &elf(62)).gz(), "no dockerd inside"),
        ("nothing inside", Tarball::new().gz(), "no dockerd inside"),
        (
            "script",
            Tarball::new().file("dockerd", b"#!/bin/sh\necho 28.5.2 is the version\n").gz(),
            "`dockerd` in the bundle is not an ELF",
        ),
        ("empty dockerd", Tarball::new().file("dockerd", b"").gz(), "not an ELF"),
        (
            "arm",
            Tarball::new().file("docker/dockerd", &elf(183)).gz(),
            "`docker/dockerd` in the bundle is built for aarch64, this node is x86_64",
        ),
        (
            "one file of arm",
            Tarball::good().file("docker/runc", &elf(183)).gz(),
            "`docker/runc` in the bundle is built for aarch64",
        ),
        ("absolute", Tarball::good().file("/usr/bin/runc", &elf(62)).gz(), "`/usr/bin/runc` leads out"),
        ("parent", Tarball::good().file("docker/../../runc", &elf(62)).gz(), "`docker/../../runc` leads out"),
        ("parent folder", Tarball::good().entry(EntryType::Directory, "../", 0, &[]).gz(), "`../` leads out"),
        (
            "symbolic link",
            Tarball::good().link(EntryType::Symlink, "docker/runc", "/bin/sh").gz(),
            "`docker/runc` is a symbolic link",
        ),
        (
            "hard link",
            Tarball::good().link(EntryType::Link, "docker/readme", "/etc/shadow").gz(),
            "`docker/readme` is a hard link",
        ),
        ("device", Tarball::good().entry(EntryType::Char, "docker/ctr", 0, &[]).gz(), "`docker/ctr` is a device"),
        ("pipe", Tarball::good().entry(EntryType::Fifo, "docker/ctr", 0, &[]).gz(), "`docker/ctr` is a named pipe"),
        ("twice", Tarball::good().file("docker/dockerd", &dockerd()).gz(), "`dockerd` is in the bundle twice"),
        ("twice in two layouts", Tarball::good().file("dockerd", &dockerd()).gz(), "`dockerd` is in the bundle twice"),
        ("twice, unknown", Tarball::good().file("x", b"1").file("./x", b"2").gz(), "`x` is in the bundle twice"),
        ("crowd", crowd, "unpacks to more than 4096 entries"),
    ];
    for (name, bytes, expected) in table {
        let error = inspected(&bytes).expect_err(name);
        assert!(error.to_string().contains(expected), "{name}: {error}");
        assert!(!error.hint().is_empty(), "{name}");
    }
}

#[test]
fn twenty_gigabytes_are_refused_by_the_header_alone() {
    // Nothing follows the header: whoever read on would find the file truncated instead.
    let tar = Tarball::good().entry(EntryType::Regular, "docker/ctr", 20 << 30, &[]).tar();
    let error = inspected(&gzip(&tar)).unwrap_err();
    assert!(matches!(error, BundleError::TooBig { size, .. } if size == 20 << 30), "{error}");
}

#[test]
fn the_sum_of_all_entries_is_limited() {
    let (_dir, path) = saved(&Tarball::good().file("a", &[0; 600_000]).file("b", &[0; 600_000]).gz());
    let small = Limits { total: 1 << 20, ..LIMITS };
    let error = inspect_within(&small, ARCH, &path, None).unwrap_err();
    assert_eq!(error.to_string(), "the bundle unpacks to more than 1 MiB");
    inspect_within(&LIMITS, ARCH, &path, None).unwrap();
}

#[test]
fn the_digest_has_to_be_the_one_that_was_asked_for() {
    let (_dir, path) = saved(&Tarball::good().gz());
    let found = inspect_within(&LIMITS, ARCH, &path, None).unwrap().bundle.digest;
    inspect_within(&LIMITS, ARCH, &path, Some(&found)).unwrap();
    let expected = digest_of(b"another");
    let error = inspect_within(&LIMITS, ARCH, &path, Some(&expected)).unwrap_err();
    assert!(error.to_string().contains(found.hex()) && error.to_string().contains(expected.hex()), "{error}");
}

#[test]
fn a_file_that_is_not_there() {
    let error = inspect(std::path::Path::new("/nonexistent/bundle.tgz"), None).unwrap_err();
    assert!(matches!(error, BundleError::Read { .. }), "{error}");
    assert!(matches!(inspect(std::path::Path::new("/"), None), Err(BundleError::Read { .. })));
}
