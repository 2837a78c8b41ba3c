use std::cell::RefCell;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

use super::*;
use crate::host::testing::{OLD_VERSION, TestHost};

const X86_64: u16 = 62;
/// So much of a program says what it is for.
const HEAD: usize = 20;

/// The first bytes of a program, and something to tell it by.
fn elf(machine: u16, tag: &str) -> String {
    let mut head = b"\x7fELF\x02\x01\x01".to_vec();
    head.resize(HEAD - 2, 0);
    head.extend(machine.to_le_bytes());
    String::from_utf8(head.into_iter().map(|b| b & 0x7f).collect::<Vec<u8>>()).unwrap() + tag
}

struct Scene {
    host: TestHost,
    layout: Layout,
    store: Store,
    old: SetId,
    new: SetId,
    input: PreflightInput,
}

fn scene_of(old_dockerd: &str, new: &[(EngineFile, &str)], version: &str) -> Scene {
    let host = TestHost::new(&[]);
    host.write("/usr/sbin/dockerd", old_dockerd.as_bytes(), 0o755);
    let layout = host.layout();
    let store = host.store();
    let old = store.capture(&layout, "20.10.24+dfsg1").unwrap();
    let new = host.new_set(new, version);
    let input = PreflightInput {
        running_version: "20.10.24+dfsg1".to_owned(),
        allow_downgrade: false,
        arch: "x86_64".to_owned(),
        standalone: vec![crate::standalone::Container {
            id: "c1".to_owned(),
            name: "registry".to_owned(),
            restart: crate::standalone::Restart::Always,
            auto_remove: false,
            timeout_secs: None,
            paused: false,
            started: "2026-11-22T01:00:00Z".to_owned(),
        }],
        copy_from: None,
    };
    Scene { host, layout, store, old, new, input }
}

fn scene() -> Scene {
    let dockerd = elf(X86_64, "new");
    scene_of(&elf(X86_64, "old"), &[(EngineFile::Dockerd, &dockerd)], "26.1.5")
}

fn ran(code: i32, stdout: &str, stderr: &str) -> Result<Ran, RunError> {
    Ok(Ran { status: ExitStatus::from_raw(code << 8), stdout: stdout.to_owned(), stderr: stderr.to_owned() })
}

impl Scene {
    fn check(&self, run: Runner<'_>) -> Result<Preflight, Vec<String>> {
        check_by(&self.host.root, &self.layout, &self.store, (&self.new, &self.old), &self.input, run).map_err(
            |problems| {
                assert!(problems.iter().all(|problem| !problem.hint.is_empty()));
                problems.into_iter().map(|problem| problem.what).collect()
            },
        )
    }

    /// With programs that say what they should.
    fn check_well(&self) -> Result<Preflight, Vec<String>> {
        self.check(&|_, _| ran(0, "Docker version 26.1.5, build a72d7cd\n", ""))
    }
}

#[test]
fn what_a_manager_will_copy_is_told_and_has_to_be_possible() {
    let mut scene = scene();
    scene.host.make_manager();
    let fits = |_: &str, _: &[String]| ran(0, "Docker version 26.1.5, build a72d7cd\n", "");
    let unasked = scene.check(&fits).unwrap();
    assert_eq!(unasked.raft_copy_bytes, None);
    scene.input.copy_from = Some("/var/lib/docker".to_owned());
    let asked = scene.check(&fits).unwrap();
    assert!(asked.raft_copy_bytes.is_some_and(|bytes| bytes > 1 << 20), "{asked:?}");
    assert!(asked.notes.iter().any(|note| note.contains("2 MiB of /var/lib/docker/swarm")), "{:?}", asked.notes);
    let log = scene.host.write("/var/lib/docker/swarm/raft/wal-v3-encrypted/1.wal", b"", 0o600);
    std::fs::File::create(log).unwrap().set_len(raft_copy::MAX_BYTES).unwrap();
    let problems = scene.check(&fits).unwrap_err();
    assert!(problems.iter().any(|what| what.contains("at most 1024 MiB are copied")), "{problems:?}");
    scene.host.certify("swarm-worker");
    let worker = scene.check(&fits).unwrap();
    assert_eq!((worker.raft_copy_bytes, worker.notes), (Some(0), unasked.notes));
}

#[test]
fn what_fits_is_described() {
    let scene = scene();
    let calls = RefCell::new(Vec::new());
    let found = scene
        .check(&|program, args| {
            calls.borrow_mut().push((program.to_owned(), args.to_vec()));
            ran(0, "Docker version 26.1.5, build a72d7cd\n", "")
        })
        .unwrap();
    assert_eq!((found.from.as_str(), found.to.as_str()), ("20.10.24+dfsg1", "26.1.5"));
    assert_eq!(found.set, scene.new.0);
    assert!(found.changes.contains(&EngineFile::Dockerd));
    assert_eq!(found.standalone, ["registry"]);
    let fate = requeen_protocol::Fate::WithEngine;
    assert_eq!(found.containers, [requeen_protocol::Standalone { name: "registry".to_owned(), fate }]);
    let staged = scene.store.host_path(&scene.new, EngineFile::Dockerd);
    assert_eq!(
        calls.into_inner().into_iter().filter(|(program, _)| program != "systemctl").collect::<Vec<_>>(),
        [
            (staged.clone(), vec!["--version".to_owned()]),
            (staged, ["-H", "fd://", "--validate"].map(str::to_owned).to_vec()),
        ],
        "20.10 has no --validate"
    );
    assert!(found.notes.iter().any(|note| note.contains("running engine (20.10.24")));
    for folder in ["/usr/bin", "/usr/sbin"] {
        for entry in std::fs::read_dir(scene.host.root.join(folder)).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            assert!(!name.starts_with('.'), "{name} was left behind");
        }
    }
}

#[test]
fn the_same_files_are_no_change() {
    let mut scene = scene();
    scene.new = scene.old.clone();
    let found = scene.check_well().unwrap();
    assert_eq!(found.changes, []);
}

#[test]
fn both_engines_judge_the_configuration() {
    let mut scene = scene();
    scene.input.running_version = "23.0.1".to_owned();
    let problems = scene
        .check(&|program, args| match args.last().map(String::as_str) {
            Some("--validate") if program == "/usr/sbin/dockerd" => {
                ran(1, "", "warning\nunable to configure: graph is gone\n\n")
            }
            _ => ran(0, "Docker version 26.1.5\n", "configuration OK"),
        })
        .unwrap_err();
    assert_eq!(problems.len(), 1);
    assert!(problems[0].contains("running engine (23.0.1) refuses"), "{problems:?}");
    assert!(problems[0].contains("graph is gone"), "{problems:?}");
}

#[test]
fn programs_that_do_not_run() {
    let scene = scene();
    let missing = "libseccomp.so.2: cannot open shared object file";
    let problems = scene.check(&|_, _| ran(127, "", missing)).unwrap_err();
    assert!(problems[0].contains(missing), "{problems:?}");
    let other = scene.check(&|_, _| ran(0, "Docker version 28.5.2\n", "")).unwrap_err();
    assert!(other[0].contains("expected version 26.1.5"), "{other:?}");
}

#[test]
fn another_machine_is_named() {
    let foreign = elf(40, "new");
    let scene = scene_of(&elf(X86_64, "old"), &[(EngineFile::Dockerd, &foreign)], "26.1.5");
    let problems = scene.check(&|program, _| {
        assert_eq!(program, "systemctl", "it must not be run");
        ran(0, "", "")
    });
    let problems = problems.unwrap_err();
    assert_eq!(problems, ["the bundle's dockerd is for armv7l, this host is x86_64"]);

    let scene = scene_of(&elf(X86_64, "old"), &[(EngineFile::Dockerd, "#!/bin/sh")], "26.1.5");
    let problems = scene.check_well().unwrap_err();
    assert_eq!(problems, ["the bundle's dockerd is not a program"]);

    let dockerd = elf(X86_64, "new");
    let scene = scene_of("#!/bin/sh\n", &[(EngineFile::Dockerd, &dockerd)], "26.1.5");
    assert!(scene.check_well().unwrap_err()[0].contains("wrapper"));
}

#[test]
fn a_downgrade_needs_a_word() {
    let dockerd = elf(X86_64, "new");
    let mut scene = scene_of(&elf(X86_64, "old"), &[(EngineFile::Dockerd, &dockerd)], "20.10.5");
    let run: Runner<'_> = &|_, _| ran(0, "Docker version 20.10.5+dfsg1, build 1\n", "");
    let problems = scene.check(run).unwrap_err();
    assert_eq!(problems, ["the bundle's version 20.10.5 is older than 20.10.24+dfsg1, which runs"]);
    scene.input.allow_downgrade = true;
    scene.check(run).unwrap();
}

#[test]
fn room_is_asked_for_before_the_download() {
    let host = TestHost::new(&[]);
    let (_, mut bundle) = crate::host::testing::bundle(&[("dockerd", b"d")], "99.0");
    before_fetching(&host.root, &bundle, OLD_VERSION, false).unwrap();
    bundle.unpacked = u64::MAX / 4;
    let problems = before_fetching(&host.root, &bundle, OLD_VERSION, false).unwrap_err();
    assert!(problems[0].what.contains("MiB are needed"), "{}", problems[0].what);
}

#[test]
fn packages_that_own_the_files_are_noted() {
    let scene = scene();
    scene.host.write("/var/lib/dpkg/info/docker.io.list", b"", 0o644);
    let found = scene.check_well().unwrap();
    assert!(found.notes.iter().any(|note| note.contains("apt-mark hold docker.io`")));
}

#[test]
fn units_that_systemd_has_yet_to_read_are_named() {
    let scene = scene();
    let say = |needs: [&'static str; 2]| {
        scene.check(&move |program, args| match program {
            "systemctl" => {
                assert_eq!(args[2..], ["docker.service", "containerd.service"]);
                let [docker, containerd] = needs;
                let unit = |id, needs| format!("Id={id}\nNeedDaemonReload={needs}\n");
                let both = [unit("docker.service", docker), unit("containerd.service", containerd)];
                ran(0, &both.join("\n"), "")
            }
            _ => ran(0, "Docker version 26.1.5, build a72d7cd\n", ""),
        })
    };
    say(["no", "no"]).unwrap();
    let words = |unit: &str| vec![format!("{unit} changed on the disk and systemd has not read it yet")];
    assert_eq!(say(["yes", "no"]).unwrap_err(), words("docker.service"));
    assert_eq!(say(["yes", "yes"]).unwrap_err(), words("docker.service and containerd.service"));
}

#[test]
fn a_package_manager_at_work_is_named() {
    let scene = scene();
    let lock = scene.host.write("/var/lib/dpkg/lock-frontend", b"", 0o640);
    scene.check_well().unwrap();
    let file = std::fs::OpenOptions::new().write(true).open(lock).unwrap();
    // As another process's lock would: see the tests of `packages`.
    let whole = packages::whole();
    nix::fcntl::fcntl(&file, nix::fcntl::FcntlArg::F_OFD_SETLK(&whole)).unwrap();
    assert_eq!(
        scene.check_well().unwrap_err(),
        ["a package manager is at work: it holds /var/lib/dpkg/lock-frontend".to_owned()]
    );
}
