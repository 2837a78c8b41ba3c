//! What the program says and how it exits, as a person or a script sees it.

mod common;
#[path = "cli/wrong_values.rs"]
mod wrong_values;

use common::{requeen, tarball};
use sha2::{Digest, Sha256};

fn digest_of(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(bytes)))
}

/// Words that every help page needs and that must not go by accident.
#[test]
fn help() {
    insta::assert_snapshot!(requeen(&["--help"]));
}

#[test]
fn help_of_upgrade() {
    insta::assert_snapshot!(requeen(&["upgrade", "--help"]));
}

#[test]
fn every_verb_has_help() {
    for verb in [
        "serve",
        "deploy",
        "plan",
        "upgrade",
        "grant",
        "release",
        "status",
        "history",
        "pause",
        "resume",
        "abort",
        "rollback",
        "verify",
        "undeploy",
        "diag",
        "install",
        "probe",
        "completions",
        "man",
    ] {
        let seen = requeen(&[verb, "--help"]);
        assert!(seen.starts_with("exit: 0\n") && seen.contains("Usage:"), "{verb}: {seen}");
    }
}

/// What users get can't be told by a variable to end: fail points are for builds with their feature.
#[test]
#[cfg(not(feature = "failpoints"))]
fn the_program_has_no_fail_points() {
    let program = std::fs::read(env!("CARGO_BIN_EXE_coordinator")).unwrap();
    let program = String::from_utf8_lossy(&program);
    assert!(program.contains("requeen.sock"), "what is in the program is not found");
    for words in ["FAILPOINTS", "give-permit"] {
        assert!(!program.contains(words), "{words}");
    }
}

#[test]
fn no_server() {
    insta::assert_snapshot!(requeen(&["status", "--socket", "/nonexistent/requeen.sock"]));
}

#[test]
fn a_server_that_has_stopped() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("s");
    // Bound and closed again: the file stays, nobody listens.
    drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
    let seen = requeen(&["pause", "--socket", socket.to_str().unwrap()]);
    insta::assert_snapshot!(seen.replace(socket.to_str().unwrap(), "SOCKET"));
}

#[test]
fn wrong_usage() {
    insta::assert_snapshot!(requeen(&["upgrade"]));
}

#[test]
fn wrong_flags() {
    for args in [
        &["frobnicate"][..],
        &["upgrade", "--bundle", "x", "--workers-at-once", "0"],
        &["upgrade", "--bundle", "x", "--policy", "hasty"],
        &["upgrade", "--bundle", "x", "--start-timeout", "soon"],
        &["upgrade", "--bundle", "x", "--digest", "sha256:12"],
        &["upgrade", "--bundle", "x", "--frobnicate"],
        &["upgrade", "--bundle", "x", "--not-after", "tomorrow"],
        &["grant"],
        &["release"],
        &["history", ""],
        &["verify", "w1"],
        &["undeploy", "w1"],
        &["install"],
        &["diag", "--since", "yesterday"],
        &["completions", "cmd"],
    ] {
        let seen = requeen(args);
        assert!(seen.starts_with("exit: 2\n") && seen.contains("error: "), "{args:?}: {seen}");
    }
}

#[test]
fn bad_bundles() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("bundle.tgz");
    let own = std::fs::read("/proc/self/exe").unwrap();
    let mut foreign = own[..64].to_vec();
    foreign[18..20].copy_from_slice(&[22, 0]);
    let good = tarball(&[("docker/dockerd", &own[..64])]);
    let mut seen = String::new();
    for (name, bytes, digest) in [
        ("not gzip", b"<!DOCTYPE html>".to_vec(), None),
        ("truncated", good[..40].to_vec(), None),
        ("no dockerd", tarball(&[("docker/runc", b"x")]), None),
        ("a script", tarball(&[("docker/dockerd", b"#!/bin/sh")]), None),
        ("another machine", tarball(&[("docker/dockerd", &foreign)]), None),
        ("another digest", good.clone(), Some(format!("sha256:{}", "0".repeat(64)))),
    ] {
        std::fs::write(&path, bytes).unwrap();
        for verb in ["plan", "upgrade"] {
            let mut args = vec![verb, "--socket", "/nonexistent/requeen.sock", "--bundle", path.to_str().unwrap()];
            args.extend(digest.as_deref().map(|digest| ["--digest", digest]).into_iter().flatten());
            let said = requeen(&args);
            match verb {
                "plan" => seen += &format!("# {name}\n{said}"),
                _ => assert!(seen.ends_with(&said), "{name}: both verbs say the same, not {said}"),
            }
        }
    }
    // What depends on the machine and on the compressor.
    let seen = seen.replace(std::env::consts::ARCH, "NATIVE").replace(digest_of(&good).as_str(), "FOUND");
    insta::assert_snapshot!(seen);
}

#[test]
fn no_bundle() {
    insta::assert_snapshot!(requeen(&["plan", "--bundle", "/nonexistent/docker.tgz"]));
}

#[test]
fn urls_of_bundles_are_looked_at_before_anybody_is_asked() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, content: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, content).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let no_pem = file("no-pem", "hello");
    let bad_pem = file("bad-pem", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n");
    let digest = format!("sha256:{}", "0".repeat(64));
    let mut seen = String::new();
    for (url, flags) in [
        ("http://example.com/docker.tgz", &["--digest", &digest][..]),
        ("ftp://example.com/docker.tgz", &["--digest", &digest]),
        ("https:///docker.tgz", &["--digest", &digest]),
        ("https://user:geheim@example.com/docker.tgz", &["--digest", &digest]),
        ("https://example.com/docker.tgz?token=geheim", &[]),
        ("https://example.com/docker.tgz", &["--digest", &digest, "--ca-file", "/nonexistent/ca.pem"]),
        ("https://example.com/docker.tgz", &["--digest", &digest, "--ca-file", &no_pem]),
        ("https://example.com/docker.tgz", &["--digest", &digest, "--ca-file", &bad_pem]),
        ("docker.tgz", &["--ca-file", &no_pem]),
        // Nothing is wrong with these; only the server is not there.
        ("https://example.com/docker.tgz?token=geheim", &["--digest", &digest]),
    ] {
        for verb in ["plan", "upgrade"] {
            let mut args = vec![verb, "--socket", "/nonexistent/requeen.sock", "--bundle", url];
            args.extend(flags);
            let said = requeen(&args);
            match verb {
                "plan" => seen += &format!("# {url} {}\n{said}", flags.join(" ")),
                _ => assert!(seen.ends_with(&said), "{url}: both verbs say the same, not {said}"),
            }
        }
    }
    assert!(!seen.lines().any(|line| !line.starts_with('#') && line.contains("geheim")), "{seen}");
    insta::assert_snapshot!(seen.replace(dir.path().to_str().unwrap(), "DIR").replace(&digest, "DIGEST"));
}

#[test]
fn what_packagers_want() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_str().unwrap();
    assert!(requeen(&["man", path]).starts_with("exit: 0\n"));
    assert!(dir.path().join("requeen.1").exists() && dir.path().join("requeen-upgrade.1").exists());
    for shell in ["bash", "zsh", "fish"] {
        let seen = requeen(&["completions", shell]);
        assert!(seen.starts_with("exit: 0\n") && seen.contains("requeen"), "{shell}");
    }
}

#[test]
fn installed_it_is_the_same_program_by_its_own_name() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_str().unwrap();
    let seen = requeen(&["install", path]);
    assert_eq!(seen, format!("exit: 0\n--- stdout\ninstalled {path}/requeen\n--- stderr\n"));
    let installed = std::process::Command::new(dir.path().join("requeen")).arg("--version").output().unwrap();
    assert_eq!(String::from_utf8(installed.stdout).unwrap(), concat!("requeen ", env!("CARGO_PKG_VERSION"), "\n"));
    assert!(requeen(&["install", "/proc"]).starts_with("exit: 1\n"));
}

#[test]
fn a_reader_that_left_gets_no_complaint() {
    use std::process::{Command, Stdio};
    let mut child = Command::new(common::PROGRAM)
        .args(["completions", "bash"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
}
