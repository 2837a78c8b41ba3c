use std::fs;
use std::os::unix::fs::symlink;

use super::*;
use crate::host::testing::TestHost;

const UNIT: &str = "/usr/lib/systemd/system/docker.service";

fn refusal(host: &TestHost) -> String {
    let problems = discover(&host.root).unwrap_err();
    assert_eq!(problems.len(), 1);
    assert!(!problems[0].hint.is_empty());
    problems[0].what.clone()
}

#[test]
fn debians_layout() {
    let host = TestHost::new(&[]);
    host.write("/etc/default/docker", b"DOCKER_OPTS=\"--data-root /data -D\"\n", 0o644);
    // Debian's runc is a link in /usr/bin to the file in /usr/sbin: the file comes first in PATH.
    symlink("../sbin/runc", host.root.join("/usr/bin/runc")).unwrap();
    let layout = discover(&host.root).unwrap();
    let expected = [
        (EngineFile::Dockerd, "/usr/sbin/dockerd"),
        (EngineFile::Docker, "/usr/bin/docker"),
        (EngineFile::DockerInit, "/usr/bin/docker-init"),
        (EngineFile::DockerProxy, "/usr/sbin/docker-proxy"),
        (EngineFile::Containerd, "/usr/bin/containerd"),
        (EngineFile::Ctr, "/usr/bin/ctr"),
        (EngineFile::ContainerdShimRuncV2, "/usr/bin/containerd-shim-runc-v2"),
        (EngineFile::Runc, "/usr/sbin/runc"),
    ];
    for (file, path) in expected {
        assert_eq!(layout.targets[&file], path);
    }
    assert_eq!(layout.present.len(), EngineFile::ALL.len());
    assert_eq!(layout.containerd_unit.as_deref(), Some("containerd.service"));
    assert!(layout.has_socket_unit);
    assert_eq!(layout.dockerd_argv, ["/usr/sbin/dockerd", "-H", "fd://", "--data-root", "/data", "-D"]);
    assert_eq!(layout.data_root, "/data");
    assert_eq!(layout.exec_root, "/var/run/docker");
}

#[test]
fn files_that_are_missing_have_a_place() {
    let host = TestHost::new(&[EngineFile::Docker, EngineFile::DockerInit, EngineFile::DockerProxy, EngineFile::Ctr]);
    let layout = discover(&host.root).unwrap();
    assert_eq!(layout.targets[&EngineFile::Docker], "/usr/bin/docker");
    assert_eq!(layout.targets[&EngineFile::DockerInit], "/usr/sbin/docker-init");
    assert_eq!(layout.targets[&EngineFile::DockerProxy], "/usr/sbin/docker-proxy");
    assert_eq!(layout.targets[&EngineFile::Ctr], "/usr/bin/ctr");
    assert_eq!(layout.present.len(), EngineFile::ALL.len() - 4);
}

#[test]
fn helpers_are_found_where_dockerd_finds_them() {
    let host = TestHost::new(&[]);
    host.write("/usr/libexec/docker/docker-init", b"init", 0o755);
    host.write("/usr/libexec/docker/docker-proxy", b"not a program", 0o644);
    let layout = discover(&host.root).unwrap();
    assert_eq!(layout.targets[&EngineFile::DockerInit], "/usr/libexec/docker/docker-init");
    assert_eq!(layout.targets[&EngineFile::DockerProxy], "/usr/sbin/docker-proxy");
    host.write("/opt/init", b"init", 0o755);
    host.write(DEFAULT_CONFIG, br#"{"init-path": "/opt/init", "data-root": "/srv/docker"}"#, 0o644);
    let layout = discover(&host.root).unwrap();
    assert_eq!(layout.targets[&EngineFile::DockerInit], "/opt/init");
    assert_eq!(layout.data_root, "/srv/docker");
}

#[test]
fn drop_ins_count_by_priority_and_name() {
    let host = TestHost::new(&[]);
    host.write("/opt/bin/dockerd", b"other", 0o755);
    host.write("/opt/bin/docker-proxy", b"other", 0o755);
    for (path, text) in [
        ("/usr/lib/systemd/system/docker.service.d/10-a.conf", "[Service]\nExecStart=\nExecStart=/nowhere/dockerd\n"),
        ("/etc/systemd/system/docker.service.d/10-a.conf", "[Service]\nEnvironment=PATH=/opt/bin:/usr/bin\n"),
        (
            "/run/systemd/system/docker.service.d/20-b.conf",
            "[Service]\nExecStart=\nExecStart=dockerd --exec-root=/run/other\n",
        ),
        ("/etc/systemd/system/docker.service.d/30-ignored.bak", "[Service]\nExecStart=\n"),
    ] {
        host.write(path, text.as_bytes(), 0o644);
    }
    let layout = discover(&host.root).unwrap();
    assert_eq!(layout.targets[&EngineFile::Dockerd], "/opt/bin/dockerd");
    assert_eq!(layout.targets[&EngineFile::DockerProxy], "/opt/bin/docker-proxy");
    assert_eq!(layout.dockerd_argv, ["/opt/bin/dockerd", "--exec-root=/run/other"]);
    assert_eq!(layout.exec_root, "/run/other");
}

#[test]
fn without_containerds_unit_dockerd_runs_its_own() {
    let host = TestHost::new(&[]);
    std::fs::remove_file(host.root.join("/usr/lib/systemd/system/containerd.service")).unwrap();
    let layout = discover(&host.root).unwrap();
    assert_eq!(layout.containerd_unit, None);
    assert_eq!(layout.targets[&EngineFile::Containerd], "/usr/bin/containerd");
}

#[test]
fn hosts_that_can_not_be_upgraded() {
    let host = TestHost::new(&[]);
    std::fs::remove_file(host.root.join("/usr/sbin/dockerd")).unwrap();
    assert!(refusal(&host).contains("`/usr/sbin/dockerd`"));

    let host = TestHost::new(&[]);
    host.write(DEFAULT_CONFIG, b"{\"debug\": true,}", 0o644);
    assert!(refusal(&host).contains(DEFAULT_CONFIG));

    let host = TestHost::new(&[]);
    std::fs::remove_file(host.root.join(UNIT)).unwrap();
    assert!(refusal(&host).contains("no docker.service"));

    let host = TestHost::new(&[]);
    std::fs::create_dir_all(host.root.join("/etc/systemd/system")).unwrap();
    symlink("/dev/null", host.root.join("/etc/systemd/system/docker.service")).unwrap();
    assert!(refusal(&host).contains("masked"));

    let host = TestHost::new(&[]);
    host.write(UNIT, b"[Service]\nType=notify\n", 0o644);
    assert!(refusal(&host).contains("ExecStart="));
}

#[test]
fn a_host_whose_engine_an_init_script_runs() {
    let host = TestHost::new(&[]);
    host.write("/proc/1/comm", b"init\n", 0o644);
    let script = b"#!/bin/sh\nexport PATH=/sbin:/usr/sbin:/usr/bin\nDOCKERD=/usr/sbin/dockerd\n. /etc/default/docker\n";
    host.write("/etc/init.d/docker", script, 0o755);
    symlink("usr/sbin", host.root.join("/sbin")).unwrap();
    host.write("/etc/default/docker", b"DOCKER_OPTS='--data-root /data'\n", 0o644);
    let layout = discover(&host.root).unwrap();
    assert_eq!(layout.manager, ServiceManager::SysV);
    assert_eq!((layout.docker_unit.as_str(), layout.containerd_unit.as_deref()), ("docker", None));
    assert_eq!(layout.dockerd_argv[3..], ["--data-root", "/data"]);
    assert_eq!(layout.data_root, "/data");
    // Where packages say it is, not through a link to its folder.
    assert_eq!(layout.targets[&EngineFile::Runc], "/usr/sbin/runc");
    assert_eq!(layout.targets[&EngineFile::Containerd], "/usr/bin/containerd", "the one that dockerd starts itself");
    // One with a script of its own is stopped and started beside it.
    host.write("/etc/init.d/containerd", b"#!/bin/sh\n", 0o755);
    assert_eq!(discover(&host.root).unwrap().containerd_unit.as_deref(), Some("containerd"));
    fs::remove_file(host.root.join("/usr/sbin/dockerd")).unwrap();
    assert!(refusal(&host).contains("/usr/sbin/dockerd"));
}
