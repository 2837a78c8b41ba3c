//! The units for a boot, on a temporary root.

use std::collections::BTreeMap;

use super::*;
use crate::host::testing::TestHost;

const PROGRAM: &str = "/var/lib/requeen/bin/agent-1-0123456789ab";

/// What is in the folder of units, by path.
fn units(root: &HostRoot) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let mut folders = vec![root.join(UNITS)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten().map(Result::unwrap) {
            let path = entry.path();
            let name = path.strip_prefix(root.join(UNITS)).unwrap().display().to_string();
            if entry.file_type().unwrap().is_dir() {
                folders.push(path);
            } else if let Ok(to) = fs::read_link(&path) {
                found.insert(name, format!("-> {}", to.display()));
            } else {
                found.insert(name, fs::read_to_string(path).unwrap());
            }
        }
    }
    found
}

#[test]
fn both_units_come_and_go() {
    let host = TestHost::new(&[]);
    let others = ["docker.service.requires/mine.mount", "multi-user.target.wants/mine.service"];
    for other in others {
        host.write(&format!("{UNITS}/{other}"), b"", 0o644);
    }
    let before = units(&host.root);
    for _ in 0..2 {
        install(&host.root, &host.layout(), Path::new(PROGRAM), 9999).unwrap();
    }
    let there = units(&host.root);
    for unit in ["docker.service", "docker.socket", "containerd.service"] {
        assert_eq!(there[&format!("{unit}.requires/{RECOVER_UNIT}")], format!("-> ../{RECOVER_UNIT}"));
    }
    assert_eq!(there[&format!("{RESUME_WANTED_BY}/{RESUME_UNIT}")], format!("-> ../{RESUME_UNIT}"));
    for line in [
        "DefaultDependencies=no",
        "Before=shutdown.target docker.service docker.socket containerd.service",
        "After=local-fs.target",
        &format!("RequiresMountsFor=/var/lib/requeen /usr/bin /usr/sbin {PROGRAM}"),
        &format!("ExecStart={PROGRAM} recover"),
    ] {
        assert!(there[RECOVER_UNIT].lines().any(|it| it == line), "{line:?} is missing in {}", there[RECOVER_UNIT]);
    }
    for line in [
        &format!("After={RECOVER_UNIT} network-online.target docker.service docker.socket containerd.service"),
        &format!("ExecStart={PROGRAM} executor --port 9999"),
    ] {
        assert!(there[RESUME_UNIT].lines().any(|it| it == line), "{line:?} is missing in {}", there[RESUME_UNIT]);
    }

    remove_recovery(&host.root).unwrap();
    let left: Vec<String> = units(&host.root).into_keys().filter(|name| name.contains("requeen")).collect();
    assert_eq!(left, [format!("{RESUME_WANTED_BY}/{RESUME_UNIT}"), RESUME_UNIT.to_owned()]);
    for _ in 0..2 {
        remove(&host.root).unwrap();
        assert_eq!(units(&host.root), before);
    }
    assert!(!host.root.join(format!("{UNITS}/docker.socket.requires")).exists(), "an empty folder stays");
}
