use std::fs;
use std::os::unix::fs::symlink;

use super::*;

fn host() -> (tempfile::TempDir, HostRoot) {
    let dir = tempfile::tempdir().unwrap();
    let root = HostRoot::new(dir.path());
    for folder in ["usr/bin", "usr/sbin", "etc", "var/lib/requeen/engines/aa"] {
        fs::create_dir_all(dir.path().join(folder)).unwrap();
    }
    for (to, at) in [
        ("usr/bin", "bin"),
        ("/usr/sbin", "sbin"),
        ("/var/lib/requeen/engines/current/dockerd", "usr/bin/dockerd"),
        ("aa", "var/lib/requeen/engines/current"),
        ("../../../../../../../../etc/passwd", "etc/far"),
        ("around", "etc/around"),
    ] {
        symlink(to, dir.path().join(at)).unwrap();
    }
    fs::write(dir.path().join("var/lib/requeen/engines/aa/dockerd"), "engine").unwrap();
    (dir, root)
}

#[test]
fn links_lead_where_the_host_would_follow_them() {
    let (_dir, root) = host();
    for (path, expected) in [
        ("/", "/"),
        ("/usr/sbin/dockerd", "/usr/sbin/dockerd"),
        ("/bin/docker", "/usr/bin/docker"),
        ("/sbin/../bin/./docker", "/usr/bin/docker"),
        ("/bin/dockerd", "/var/lib/requeen/engines/aa/dockerd"),
        ("/etc/far", "/etc/passwd"),
        ("/../../etc", "/etc"),
        ("/not/there/yet", "/not/there/yet"),
    ] {
        assert_eq!(root.canonical(path).unwrap(), Path::new(expected), "{path}");
        assert_eq!(root.resolve(path).unwrap(), root.join(expected), "{path}");
    }
    assert_eq!(root.read_to_string("/bin/dockerd").unwrap(), "engine");
    let target = root.resolve_parent("/bin/dockerd").unwrap();
    assert_eq!(target, root.join("/usr/bin/dockerd"), "its own name is kept");
    let around = root.resolve("/etc/around").unwrap_err();
    assert_eq!(around.raw_os_error(), Some(nix::errno::Errno::ELOOP as i32));
}

#[test]
fn programs_run_and_are_stopped() {
    let own = HostRoot::new("/");
    let limit = Duration::from_secs(20);
    let ran = own.run("/bin/sh", &["-c", "echo out; echo err >&2; pwd; exit 3"], limit).unwrap();
    assert_eq!(ran.status.code(), Some(3));
    assert_eq!((ran.stdout.as_str(), ran.stderr.as_str()), ("out\n/\n", "err\n"));
    // More than a pipe holds, on both at once.
    let loud = "i=0; while [ $i -lt 9000 ]; do echo 0123456789abcdef; echo 0123456789abcdef >&2; i=$((i+1)); done";
    let ran = own.run("/bin/sh", &["-c", loud], limit).unwrap();
    assert_eq!((ran.stdout.len(), ran.stderr.len()), (153_000, 153_000));

    // No more than is wanted, and its end is not waited for in vain.
    let ran = own.run_head("/bin/sh", &["-c", "while echo 0123456789abcdef; do :; done"], limit, 1000).unwrap();
    assert_eq!(ran.stdout.len(), 1000);
    assert!(!ran.status.success(), "{:?}", ran.status);

    let late = own.run("/bin/sh", &["-c", "exec sleep 600"], Duration::from_millis(50));
    assert!(matches!(late, Err(RunError::Timeout { .. })), "{late:?}");
    let none = own.run::<&str>("/not/there", &[], limit);
    assert!(matches!(none, Err(RunError::Start { .. })), "{none:?}");
}

#[test]
fn programs_run_in_the_hosts_root() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: chroot needs root");
        return;
    }
    // The test's own program is static, so it runs in an empty root; asked for its list of tests by
    // another name it must be found at that name.
    let (dir, root) = host();
    let program = dir.path().join("usr/bin/probe");
    fs::copy(std::env::current_exe().unwrap(), program).unwrap();
    let ran = root.run("/usr/bin/probe", &["--list"], Duration::from_secs(20)).unwrap();
    assert!(ran.status.success(), "{}", ran.stderr);
    assert!(ran.stdout.contains("programs_run_in_the_hosts_root"));
}
