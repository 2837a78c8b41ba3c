//! Wrong words on the command line: exit 2, one clear error that names the thing, nothing on stdout. No server is
//! there, so whatever got past the checks would exit with 3.

use std::fs;
use std::os::unix::fs::symlink;
use std::process::{Command, Stdio};

use nix::sys::stat::Mode;
use nix::unistd::mkfifo;

use crate::common::{PROGRAM, described};

/// A socket on which nobody listens.
const NOWHERE: (&str, &str) = ("REQUEEN_SOCKET", "/nonexistent/requeen.sock");

/// Runs the program, and insists on a refusal that says all of `words`.
fn refused(args: &[&str], environment: &[(&str, &str)], words: &[&str]) {
    let mut command = Command::new(PROGRAM);
    command.args(args).env_clear().envs([NOWHERE]).envs(environment.iter().copied()).stdin(Stdio::null());
    let output = command.output().unwrap();
    let seen = format!("{args:?} {environment:?}: {}", described(&output));
    assert_eq!(output.status.code(), Some(2), "{seen}");
    assert!(output.stdout.is_empty(), "{seen}");
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(said.lines().filter(|line| line.starts_with("error: ")).count(), 1, "{seen}");
    for word in words {
        assert!(said.contains(word), "{word:?} is missing: {seen}");
    }
}

#[test]
fn every_flag_with_wrong_values() {
    let digest = format!("sha256:{}", "A".repeat(64));
    let bare = "a".repeat(64);
    let times = ["0", "0s", "", "soon", "1.5s", "10d", "1m30", "169h", "99999999999999999999s"];
    let counts = ["0", "x", "", "1.5", "4294967296"];
    let policies = ["hasty", "", "Auto", "rolling,auto"];
    let nodes = ["", ",", "w1,", "w1,,w2"];
    let bundle: &[&str] = &["--bundle", "x"];
    for (verb, more, flag, wrong) in [
        ("serve", &[][..], "--port", &["0", "65536", "x", "", "1.5"][..]),
        ("serve", &[], "--bind", &["", "manager1", "10.0.0.1:9047", "10.0.0.256"]),
        ("serve", &[], "--data-dir", &[""]),
        ("serve", &[], "--docker-socket", &[""]),
        ("serve", &[], "--swarm-dir", &[""]),
        ("deploy", &[], "--image", &[""]),
        ("plan", &[], "--bundle", &[""]),
        ("plan", bundle, "--digest", &["", "x", "sha256:12", digest.as_str(), bare.as_str()]),
        ("plan", bundle, "--only", &nodes),
        ("plan", bundle, "--exclude", &nodes),
        ("plan", bundle, "--policy", &policies),
        ("plan", bundle, "--workers-at-once", &counts),
        ("plan", bundle, "--start-timeout", &times),
        ("plan", bundle, "--stage-timeout", &times),
        ("upgrade", &[], "--bundle", &[""]),
        ("upgrade", bundle, "--digest", &["", "x", "sha256:12", digest.as_str(), bare.as_str()]),
        ("upgrade", bundle, "--only", &nodes),
        ("upgrade", bundle, "--exclude", &nodes),
        ("upgrade", bundle, "--policy", &policies),
        ("upgrade", bundle, "--workers-at-once", &counts),
        ("upgrade", bundle, "--start-timeout", &times),
        ("upgrade", bundle, "--stage-timeout", &times),
        ("rollback", &[], "--policy", &policies),
        ("rollback", &[], "--workers-at-once", &counts),
        ("rollback", &[], "--start-timeout", &times),
        ("rollback", &[], "--stage-timeout", &times),
        ("status", &[], "--socket", &[""]),
        ("probe", &["server"], "--port", &["65536", "x", ""]),
        ("probe", &["client"], "--target", &["", "nonsense", "https://x/"]),
        ("probe", &["client"], "--concurrency", &["0", "x", ""]),
        ("probe", &["check"], "--target", &["", "nonsense"]),
    ] {
        for value in wrong {
            let mut args = vec![verb];
            args.extend(more);
            args.extend([flag, value]);
            // Of a list it is one word that is wrong.
            let named = if value.contains(',') { "" } else { value };
            refused(&args, &[], &[flag, named]);
            // What could be taken for another flag, said the other way.
            let joined = format!("{flag}={value}");
            args.truncate(args.len() - 2);
            args.push(&joined);
            refused(&args, &[], &[flag]);
        }
        // Without any value, and below zero.
        let mut args = vec![verb];
        args.extend(more);
        args.push(flag);
        refused(&args, &[], &[flag]);
        if ["--port", "--workers-at-once", "--start-timeout", "--stage-timeout", "--concurrency"].contains(&flag) {
            args.push("-1");
            refused(&args, &[], &["-1"]);
        }
    }
}

#[test]
fn words_that_are_missing_or_too_many() {
    for (args, words) in [
        (&["frobnicate"][..], &["frobnicate"][..]),
        (&["plan"], &["--bundle"]),
        (&["upgrade"], &["--bundle"]),
        (&["upgrade", "--bundle", "-", "--bundle", "-"], &["--bundle", "multiple times"]),
        (&["upgrade", "--bundle", "x", "--policy", "auto", "--policy", "auto"], &["--policy"]),
        (&["upgrade", "--bundle", "x", "y"], &["'y'"]),
        (&["upgrade", "--bundle", "x", "--manual=yes"], &["--manual"]),
        (&["upgrade", "--bundle", "x", "--frobnicate"], &["--frobnicate"]),
        (&["plan", "--bundle", "x", "--detach"], &["--detach"]),
        (&["deploy", "x"], &["'x'"]),
        (&["deploy", "--print=x"], &["--print"]),
        (&["grant"], &["<NODE>"]),
        (&["grant", ""], &["<NODE>"]),
        (&["grant", "w1", "w2"], &["'w2'"]),
        (&["grant", "w1", "--force=very"], &["--force"]),
        (&["status", "w1"], &["'w1'"]),
        (&["status", "--watch=x"], &["--watch"]),
        (&["pause", "now"], &["'now'"]),
        (&["resume", "now"], &["'now'"]),
        (&["abort", "now"], &["'now'"]),
        (&["rollback", ""], &["NODE"]),
        (&["rollback", "w1,,w2"], &["NODE"]),
        (&["rollback", "--only", "w1"], &["--only"]),
        (&["install"], &["<DIR>"]),
        (&["install", ""], &["<DIR>"]),
        (&["man"], &["<DIR>"]),
        (&["man", ""], &["<DIR>"]),
        (&["completions"], &["<SHELL>"]),
        (&["completions", "cmd"], &["cmd"]),
        (&["completions", ""], &["<SHELL>"]),
        (&["probe", "frobnicate"], &["frobnicate"]),
        (&["status", "--json=x"], &["--json"]),
        (&["status", "--no-color=x"], &["--no-color"]),
    ] {
        refused(args, &[], words);
    }
    for (name, value, args) in
        [("REQUEEN_PORT", "x", &["serve"][..]), ("REQUEEN_PORT", "0", &["serve"]), ("REQUEEN_SOCKET", "", &["status"])]
    {
        refused(args, &[(name, value)], &[]);
    }
}

#[test]
fn files_and_folders_that_are_none() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).into_os_string().into_string().unwrap();
    let (file, empty, pipe) = (path("file"), path("empty"), path("pipe"));
    let (endless, inside, missing) = (path("loop"), path("file/inside"), path("missing"));
    fs::write(&file, "no bundle").unwrap();
    fs::write(&empty, "").unwrap();
    symlink(&endless, &endless).unwrap();
    mkfifo(pipe.as_str(), Mode::S_IRWXU).unwrap();
    let folder = dir.path().to_str().unwrap();
    for verb in ["plan", "upgrade"] {
        for (bundle, words) in [
            (folder, &[folder, "folder", "hint:"][..]),
            (&missing, &[missing.as_str(), "No such file", "hint:"]),
            (&inside, &[inside.as_str(), "Not a directory", "hint:"]),
            (&endless, &[endless.as_str(), "hint:"]),
            (&pipe, &[pipe.as_str(), "pipe", "--bundle -", "hint:"]),
            ("/dev/zero", &["/dev/zero", "device", "hint:"]),
            (&empty, &["not gzip", "nothing", "hint:"]),
            (&file, &["not gzip", "hint:"]),
        ] {
            refused(&[verb, "--bundle", bundle], &[], words);
        }
    }
    for verb in ["install", "man"] {
        for wrong in [&missing, &file, &inside] {
            refused(&[verb, wrong], &[], &[wrong, "not a folder", "hint:"]);
        }
    }
    let left: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left.len(), 4, "{left:?}");
}

#[test]
fn no_words_at_all_are_answered_by_the_help() {
    for args in [&[][..], &["probe"]] {
        let output = Command::new(PROGRAM).args(args).env_clear().stdin(Stdio::null()).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{}", described(&output));
        assert!(output.stdout.is_empty(), "{}", described(&output));
        assert!(String::from_utf8_lossy(&output.stderr).contains("Usage:"), "{}", described(&output));
    }
}
