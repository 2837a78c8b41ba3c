use std::io::Write;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;

use requeen_protocol::{NodeState, Speaker};

use super::*;
use crate::clock::boot_time;
use crate::collect::pack::tests::files;
use crate::host::testing::TestHost;

fn input(root: &HostRoot, clock: Clock) -> Input {
    Input {
        root: root.clone(),
        clock,
        collect: Collect { id: "00ff".into(), since_unix: 1_700_000_000 },
        report: Report {
            node: "n1".into(),
            agent_version: "1".to_owned(),
            speaker: Speaker::Task,
            boot_id: "b".to_owned(),
            engine: None,
            installed: None,
            state: NodeState::Idle,
            seen: None,
            memo: None,
            unreached: Vec::new(),
            troubles: Vec::new(),
        },
    }
}

fn notes(files: &std::collections::BTreeMap<String, String>) -> Vec<String> {
    files["MANIFEST"].lines().map(str::to_owned).collect()
}

#[test]
fn a_host_without_its_programs_still_tells_what_it_has() {
    let host = TestHost::new(&[]);
    host.write("/etc/docker/daemon.json", br#"{"log-opts": {"splunk-token": "hidden-1"}, "debug": true}"#, 0o644);
    host.write("/etc/os-release", b"ID=debian\n", 0o644);
    host.write("/var/lib/requeen/agent/staged.json", br#"{"schema": 1, "password": "hidden-2"}"#, 0o600);
    host.write("/var/lib/requeen/agent/journal.json.damaged", b"{", 0o600);
    host.write("/var/lib/requeen/engines/history.json", br#"{"schema": 1}"#, 0o600);
    host.write("/var/lib/requeen/engines/aa/set.json", br#"{"version": "26"}"#, 0o600);
    symlink("aa", host.root.join("/var/lib/requeen/engines/current")).unwrap();
    // What must never be read, where it would be.
    host.write("/var/lib/docker/swarm/certificates/swarm-node.key", b"hidden-3", 0o600);
    host.write("/etc/default/docker", b"DOCKER_OPTS=\"--label hidden-4\"\nPROXY=hidden-5\n", 0o644);

    let part = gather(&input(&host.root, boot_time)).unwrap();
    let files = files(&part);
    for (name, words) in [
        ("report.json", "\"idle\""),
        ("agent/staged.json", "\"schema\": 1"),
        ("agent/journal.json.damaged", "{"),
        ("engines/history.json", "\"schema\": 1"),
        ("engines/aa/set.json", "\"version\": \"26\""),
        ("requeen-files.txt", "/var/lib/requeen/engines/current -> aa"),
        ("engine-files.txt", "/usr/bin/docker-init -> tini-static"),
        ("engine-files.txt", "dockerd is started as: /usr/sbin/dockerd -H fd://"),
        ("daemon.json", "\"debug\": true"),
        ("host/uname.txt", "Linux"),
        ("host/os-release", "ID=debian"),
    ] {
        assert!(files.get(name).is_some_and(|text| text.contains(words)), "{name}: {words} in {:?}", files.get(name));
    }
    let notes = notes(&files);
    for missing in [
        "journal/docker.service.log",
        "journal/requeen-executor.service.log",
        "units/status.txt",
        "units/show.txt",
        "units/cat.txt",
        "host/df.txt",
        "host/mounts.txt",
        "docker/version.json",
        "docker/info.json",
    ] {
        assert!(!files.contains_key(missing), "{missing}");
        assert!(notes.iter().any(|note| note.starts_with(&format!("{missing}: missing: "))), "{missing}: {notes:#?}");
    }
    assert!(notes.iter().any(|note| note.starts_with("agent/journal.json.damaged: it is no valid JSON")), "{notes:#?}");
    for (name, text) in &files {
        for hidden in ["hidden-1", "hidden-2", "hidden-3", "hidden-5"] {
            assert!(!text.contains(hidden), "{hidden} in {name}: {text}");
        }
    }
}

#[test]
fn nothing_is_begun_when_the_time_is_up() {
    fn jumps() -> BootTime {
        use std::sync::atomic::{AtomicU64, Ordering};
        static NOW: AtomicU64 = AtomicU64::new(0);
        BootTime(NOW.fetch_add(ALL_MS, Ordering::SeqCst))
    }
    let host = TestHost::new(&[]);
    let files = files(&gather(&input(&host.root, jumps)).unwrap());
    let late = notes(&files).iter().filter(|note| note.ends_with(TIME_IS_UP)).count();
    assert_eq!(late, UNITS.len() + 3 + 1 + 2, "{:#?}", notes(&files));
    assert!(files.contains_key("report.json") && files.contains_key("engine-files.txt"));
}

#[test]
fn the_engine_is_asked_over_its_socket() {
    let host = TestHost::new(&[]);
    fs::create_dir_all(host.root.join("/run")).unwrap();
    let listener = UnixListener::bind(host.root.join("/run/docker.sock")).unwrap();
    let engine = std::thread::spawn(move || {
        for body in [r#"{"Version":"26.1.5"}"#, r#"{"HttpProxy":"http://user:hidden@proxy","Labels":["rack=a"]}"#] {
            let (mut stream, _) = listener.accept().unwrap();
            let mut asked = [0; 1024];
            let read = stream.read(&mut asked).unwrap();
            assert!(asked[..read].starts_with(b"GET /"));
            write!(stream, "HTTP/1.0 200 OK\r\nContent-Type: application/json\r\n\r\n{body}").unwrap();
        }
    });
    let files = files(&gather(&input(&host.root, boot_time)).unwrap());
    engine.join().unwrap();
    assert_eq!(files["docker/version.json"], "{\n  \"Version\": \"26.1.5\"\n}\n");
    assert!(files["docker/info.json"].contains("http://[left-out]@proxy"), "{}", files["docker/info.json"]);
    assert!(files["docker/info.json"].contains("rack=a"));
}

#[test]
fn journals_are_turned_around_by_entry() {
    let newest_first = "Nov 21 c\nNov 21 b\n  more of b\n\tand more\nNov 21 a\n";
    assert_eq!(oldest_first(newest_first), "Nov 21 a\nNov 21 b\n  more of b\n\tand more\nNov 21 c\n");
    assert_eq!(oldest_first(""), "");
}

#[test]
fn what_is_the_same_for_many_places_is_told_once() {
    assert_eq!(once("Filesystem\n/dev/a /\n/dev/b /x\n/dev/a /\n"), "Filesystem\n/dev/a /\n/dev/b /x\n");
}

#[test]
fn the_configuration_file_is_the_one_that_is_used() {
    for (args, expected) in [
        (&["-H", "fd://"][..], "/etc/docker/daemon.json"),
        (&["--config-file", "/a.json"], "/a.json"),
        (&["--config-file=/b.json", "-D"], "/b.json"),
        (&["--config-file"], "/etc/docker/daemon.json"),
    ] {
        let argv: Vec<String> = args.iter().map(|arg| (*arg).to_owned()).collect();
        assert_eq!(config_file(&argv), expected, "{args:?}");
    }
}

#[test]
fn only_mounts_of_concern_are_told() {
    let all = "21 1 8:1 / / rw - ext4 /dev/sda1 rw\n\
               22 21 0:5 / /proc rw - proc proc rw\n\
               23 21 8:2 / /var/lib/docker rw - xfs /dev/sdb rw\n\
               24 23 0:9 / /var/lib/docker/overlay2/x/merged rw - overlay overlay rw\n\
               half a line\n";
    let kept = mounts_of(all, &["/var/lib/docker", "/usr/bin"]);
    let points: Vec<&str> = kept.lines().filter_map(|line| line.split(' ').nth(4)).collect();
    assert_eq!(points, ["/", "/var/lib/docker"]);
}
