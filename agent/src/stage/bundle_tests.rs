use std::fs;
use std::os::unix::fs::MetadataExt;

use tar::Builder;

use super::*;
use crate::host::testing::{bundle, digest_of, entry, gzip};

const SMALL: Limits = Limits { file: 4 << 10, all: 64 << 10 };

/// Unpacks into a new folder; gives what was found and the folder.
fn unpacked(
    bytes: &[u8],
    bundle: &BundleRef,
) -> (Result<BTreeMap<EngineFile, SetFile>, BundleError>, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let result = unpack_within(SMALL, bytes, bundle, dir.path(), &mut |_| {});
    (result, dir)
}

/// The description of a tarball whose files need not be described: it is refused before.
fn described(bytes: &[u8]) -> BundleRef {
    BundleRef { digest: digest_of(bytes), size: bytes.len() as u64, ..bundle(&[("dockerd", b"d")], "1").1 }
}

/// Kind, path and content of each entry.
type Entries<'a> = &'a [(EntryType, &'a str, &'a [u8])];

fn archive(entries: Entries<'_>) -> Vec<u8> {
    let mut tar = Builder::new(Vec::new());
    for (kind, path, data) in entries {
        entry(&mut tar, *kind, path, data);
    }
    gzip(&tar.into_inner().unwrap())
}

#[test]
fn layouts_of_every_age() {
    for names in [
        ["docker/dockerd", "docker/containerd", "docker/runc"],
        ["dockerd", "containerd", "runc"],
        ["./docker/dockerd", "./docker/containerd", "./docker/runc"],
    ] {
        let files: Vec<(&str, &[u8])> = names.iter().map(|&name| (name, name.as_bytes())).collect();
        let (bytes, bundle) = bundle(&files, "26.1.5");
        let (result, dir) = unpacked(&bytes, &bundle);
        let found = result.unwrap();
        assert_eq!(found.len(), 3);
        let dockerd = &found[&EngineFile::Dockerd];
        assert_eq!(dockerd.digest, digest_of(names[0].as_bytes()));
        assert_eq!(dockerd.len, names[0].len() as u64);
        let at = dir.path().join("dockerd");
        assert_eq!(fs::metadata(&at).unwrap().mode() & 0o7777, 0o755);
        assert_eq!(fs::read(at).unwrap(), names[0].as_bytes());
    }
    assert_eq!(known("docker/docker-runc").unwrap(), Some(EngineFile::Runc));
    assert_eq!(known("docker/docker-containerd-ctr").unwrap(), Some(EngineFile::Ctr));
    assert_eq!(known("docker-containerd").unwrap(), Some(EngineFile::Containerd));
    assert_eq!(known("docker/docker-containerd-shim").unwrap(), None);
    assert_eq!(known("usr/bin/dockerd").unwrap(), None);
}

#[test]
fn what_is_not_ours_is_left_alone() {
    let bytes = archive(&[
        (EntryType::Directory, "docker/", b""),
        (EntryType::Regular, "docker/README", b"words"),
        (EntryType::Symlink, "docker/other", b""),
        (EntryType::Regular, "docker/dockerd", b"d"),
    ]);
    let (result, dir) = unpacked(&bytes, &described(&bytes));
    result.unwrap();
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[test]
fn bad_archives_are_refused() {
    use EntryType::{Char, Link, Regular, Symlink};
    let large = vec![0; 5 << 10];
    let huge = vec![0; 65 << 10];
    let cases: &[(Entries<'_>, &str)] = &[
        (&[(Regular, "docker/../dockerd", b"d")], "leaves its folder"),
        (&[(Regular, "/usr/bin/dockerd", b"d")], "leaves its folder"),
        (&[(Regular, "../x", b"d")], "leaves its folder"),
        (&[(Symlink, "docker/dockerd", b"")], "not a regular file"),
        (&[(Link, "dockerd", b"")], "not a regular file"),
        (&[(Char, "dockerd", b"")], "not a regular file"),
        (&[(Regular, "dockerd", b"d"), (Regular, "docker/dockerd", b"d")], "twice"),
        (&[(Regular, "docker/runc", b"d"), (Regular, "docker/docker-runc", b"d")], "twice"),
        (&[(Regular, "docker/dockerd", &large)], "more than"),
        (&[(Regular, "docker/README", &huge)], "more than"),
        (&[(Regular, "docker/dockerd", b"other")], "has digest"),
        (&[(Regular, "docker/runc", b"r")], "does not name"),
        (&[(Regular, "docker/README", b"r")], "lacks `dockerd`"),
    ];
    for (entries, expected) in cases {
        let bytes = archive(entries);
        let error = unpacked(&bytes, &described(&bytes)).0.unwrap_err();
        assert!(error.to_string().contains(expected), "{expected}: {error}");
    }
}

/// The length is the header's word: nothing is read or written before it is refused.
#[test]
fn twenty_gigabytes_are_refused_by_their_header() {
    for path in ["docker/dockerd", "docker/film"] {
        let mut header = tar::Header::new_gnu();
        header.set_path(path).unwrap();
        header.set_size(20 << 30);
        header.set_cksum();
        let bytes = gzip(header.as_bytes());
        let (result, dir) = unpacked(&bytes, &described(&bytes));
        assert!(matches!(result, Err(BundleError::TooLarge { size, .. }) if size == 20 << 30));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}

/// A long name would be read into memory by a reader that honours it.
#[test]
fn long_names_count_against_the_limit() {
    let bytes = archive(&[(EntryType::GNULongName, "././@LongLink", &vec![b'x'; 65 << 10])]);
    let error = unpacked(&bytes, &described(&bytes)).0.unwrap_err();
    assert!(matches!(error, BundleError::TooLarge { .. }), "{error}");
}

#[test]
fn other_bytes_than_the_named_ones_are_refused() {
    let (bytes, good) = bundle(&[("docker/dockerd", b"d")], "1");
    let truncated = unpacked(&bytes[..bytes.len() - 9], &good).0;
    assert!(matches!(truncated, Err(BundleError::Truncated { expected, got }) if got + 9 == expected));
    let longer = [&bytes[..], b"x"].concat();
    assert!(matches!(unpacked(&longer, &good).0, Err(BundleError::TooLong { .. })));
    let mut flipped = bytes.clone();
    flipped[20] ^= 1;
    assert!(matches!(unpacked(&flipped, &good).0, Err(BundleError::Digest { .. })));
    let text = b"<html>502 Bad Gateway</html>";
    assert!(matches!(unpacked(text, &described(text)).0, Err(BundleError::Archive(_))));
    let no_tar = gzip(b"just text");
    assert!(unpacked(&no_tar, &described(&no_tar)).0.is_err());
}

#[test]
fn a_source_that_fails_is_named() {
    struct Broken;
    impl Read for Broken {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            Err(io::ErrorKind::ConnectionReset.into())
        }
    }
    let (bytes, good) = bundle(&[("docker/dockerd", b"d")], "1");
    let dir = tempfile::tempdir().unwrap();
    let source = bytes[..30].chain(Broken);
    let error = unpack(source, &good, dir.path(), &mut |_| {}).unwrap_err();
    assert!(matches!(&error, BundleError::Read(io) if io.kind() == io::ErrorKind::ConnectionReset), "{error:?}");
}

#[test]
fn a_file_in_the_way_is_an_error_and_not_overwritten() {
    let (bytes, good) = bundle(&[("docker/dockerd", b"d")], "1");
    let dir = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink("elsewhere", dir.path().join("dockerd")).unwrap();
    let error = unpack(&bytes[..], &good, dir.path(), &mut |_| {}).unwrap_err();
    assert!(matches!(error, BundleError::Write { file: EngineFile::Dockerd, .. }));
    assert!(!dir.path().join("elsewhere").exists());
}

#[test]
fn chunks_of_large_files_keep_their_order() {
    let content: Vec<u8> = (0..5_000_000_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let (bytes, good) = bundle(&[("docker/dockerd", &content), ("docker/runc", b"r")], "1");
    let dir = tempfile::tempdir().unwrap();
    let mut seen = Vec::new();
    unpack(&bytes[..], &good, dir.path(), &mut |read| seen.push(read)).unwrap();
    assert!(fs::read(dir.path().join("dockerd")).unwrap() == content);
    assert!(seen.is_sorted());
    assert_eq!(seen.last(), Some(&good.size));
}
