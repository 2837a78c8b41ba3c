//! Whether a staged set can be installed on this host: everything that can be found out without
//! touching what runs. Links, renames and programs are tried and not guessed.

use std::time::Duration;

use nix::sys::statvfs::{FsFlags, statvfs};
use requeen_protocol::{BundleRef, EngineFile, Preflight, Problem};

use super::version::Version;
use super::{elf, folders};
use crate::host::layout::Layout;
use crate::host::{HostRoot, Ran, RunError};
use crate::packages;
use crate::raft_copy::{self, COPIES_DIR};
use crate::sets::{ENGINES_DIR, Manifest, SetId, Store};
use crate::standalone::{self, Container};
use crate::words::chain;

/// `dockerd --validate` is there from this major version on.
const VALIDATE_SINCE: u64 = 23;
/// How long a program may take to print its version or to judge its configuration.
const RUN_LIMIT: Duration = Duration::from_secs(30);
/// What the checks need to know beyond the host's files.
#[derive(Clone, Debug)]
pub struct PreflightInput {
    /// Version that the running engine's API gives.
    pub running_version: String,
    /// Whether a lower version is wanted on purpose.
    pub allow_downgrade: bool,
    /// The host's machine, as `uname -m` names it.
    pub arch: String,
    /// Running containers that are no swarm tasks: the result says what becomes of them.
    pub standalone: Vec<Container>,
    /// The engine's data directory, if a manager is to keep a copy of the swarm's folder in it.
    pub copy_from: Option<String>,
}

/// Runs a program of the host.
type Runner<'a> = &'a dyn Fn(&str, &[String]) -> Result<Ran, RunError>;

/// Checks everything that can be checked without touching what runs. Gives every reason against the
/// set, not only the first.
pub fn check(
    root: &HostRoot,
    layout: &Layout,
    store: &Store,
    new: &SetId,
    old: &SetId,
    input: &PreflightInput,
) -> Result<Preflight, Vec<Problem>> {
    let run = |program: &str, args: &[String]| root.run(program, args, RUN_LIMIT);
    check_by(root, layout, store, (new, old), input, &run)
}

fn check_by(
    root: &HostRoot,
    layout: &Layout,
    store: &Store,
    (new, old): (&SetId, &SetId),
    input: &PreflightInput,
    run: Runner<'_>,
) -> Result<Preflight, Vec<Problem>> {
    let manifest = |set: &SetId| {
        store.manifest(set).map_err(|error| {
            vec![problem(chain(&error), format!("remove {ENGINES_DIR}/{} and stage the node again", set.0.hex()))]
        })
    };
    let (incoming, running) = (manifest(new)?, manifest(old)?);
    let changes: Vec<EngineFile> = EngineFile::ALL
        .iter()
        .copied()
        .filter(|file| {
            incoming.files.get(file).map(|entry| &entry.digest) != running.files.get(file).map(|entry| &entry.digest)
        })
        .collect();
    let mut problems = Vec::new();
    let mut notes = Vec::new();

    problems.extend(downgrade(&incoming.version, &input.running_version, input.allow_downgrade));
    let foreign = machines(store, (new, &incoming), old, &changes, &input.arch);
    let runnable = foreign.is_empty();
    problems.extend(foreign);
    problems.extend(folders::check(root, layout, &changes));
    problems.extend(folders::check_units(root));
    problems.extend(packages::look(root).err().map(|taken| {
        problem(chain(&taken), "wait until it has ended, and start again: it might bring files of an engine too")
    }));
    problems.extend(reload_is_due(layout, run));
    problems.extend(folders::room_beside(root, layout, &incoming, &changes));
    match no_exec(store) {
        Some(refusal) => problems.push(refusal),
        // What is for another machine, or may not be executed, would only say so again.
        None if runnable => {
            problems.extend(versions(store, new, &incoming, &changes, run));
            problems.extend(validate(layout, store, (new, &incoming), input, run, &mut notes));
        }
        None => {}
    }
    notes.extend(owners(root));
    let raft_copy_bytes = raft_copy_bytes(root, input, &mut notes).unwrap_or_else(|problem| {
        problems.push(problem);
        None
    });
    if problems.is_empty() {
        let (containers, containers_more) = standalone::fates(&input.standalone);
        Ok(Preflight {
            from: input.running_version.clone(),
            to: incoming.version,
            set: new.0.clone(),
            changes,
            standalone: containers.iter().map(|container| container.name.clone()).collect(),
            containers,
            containers_more,
            raft_copy_bytes,
            notes,
        })
    } else {
        Err(problems)
    }
}

/// What can be known before a bundle is fetched: that its version is wanted, and that there is room for the tarball, the
/// new set, and a copy of the old one where it can't be linked.
pub fn before_fetching(
    root: &HostRoot,
    bundle: &BundleRef,
    running_version: &str,
    allow_downgrade: bool,
) -> Result<(), Vec<Problem>> {
    let needed = bundle.size.saturating_add(bundle.unpacked.saturating_mul(2));
    let room = folders::room(root, ENGINES_DIR.as_ref(), needed);
    let problems: Vec<_> =
        downgrade(&bundle.version, running_version, allow_downgrade).into_iter().chain(room).collect();
    if problems.is_empty() { Ok(()) } else { Err(problems) }
}

/// How much there is to copy of the swarm's folder while the engine is down, if that is wanted.
fn raft_copy_bytes(root: &HostRoot, input: &PreflightInput, notes: &mut Vec<String>) -> Result<Option<u64>, Problem> {
    let Some(data_root) = &input.copy_from else { return Ok(None) };
    let bytes = raft_copy::look(root, data_root).map_err(|error| error.problem())?;
    if bytes > 0 {
        notes.push(format!(
            "once its engine is stopped, {} MiB of {data_root}/swarm are copied to {COPIES_DIR}",
            bytes.div_ceil(1 << 20)
        ));
    }
    Ok(Some(bytes))
}

pub(super) fn problem(what: impl Into<String>, hint: impl Into<String>) -> Problem {
    Problem { what: what.into(), hint: hint.into() }
}

fn downgrade(new: &str, running: &str, allowed: bool) -> Option<Problem> {
    // A version without numbers can't be compared; what is wrong with it the checks below find out.
    let lower = Version::parse(new)? < Version::parse(running)?;
    (lower && !allowed).then(|| {
        problem(
            format!("the bundle's version {new} is older than {running}, which runs"),
            "`--allow-downgrade` if that is wanted",
        )
    })
}

/// Every new file is a program for this machine.
fn machines(
    store: &Store,
    (new, incoming): (&SetId, &Manifest),
    old: &SetId,
    changes: &[EngineFile],
    arch: &str,
) -> Vec<Problem> {
    let installed = match elf::machine(&store.path(old, EngineFile::Dockerd)) {
        Ok(Some(machine)) => machine,
        Ok(None) => {
            return vec![problem(
                "this host's dockerd is not a program but a script or another wrapper",
                "let docker.service run dockerd itself, or exclude the node",
            )];
        }
        Err(error) => {
            return vec![problem(format!("this host's dockerd can't be read: {error}"), "look at the file system")];
        }
    };
    let mut problems = Vec::new();
    for &file in changes.iter().filter(|file| incoming.files.contains_key(file)) {
        let what = match elf::machine(&store.path(new, file)) {
            Ok(Some(machine)) if machine == elf::of_arch(arch).unwrap_or(installed) => continue,
            Ok(Some(machine)) => format!("the bundle's {file} is for {}, this host is {arch}", elf::name(machine)),
            Ok(None) => format!("the bundle's {file} is not a program"),
            Err(error) => format!("the staged {file} can't be read: {error}"),
        };
        problems.push(problem(what, format!("use a bundle for {arch}")));
    }
    problems
}

/// During the swap the engine is started from the store, so programs must be allowed there.
fn no_exec(store: &Store) -> Option<Problem> {
    statvfs(store.dir()).is_ok_and(|stat| stat.flags().contains(FsFlags::ST_NOEXEC)).then(|| {
        problem(
            format!("{ENGINES_DIR} is on a file system mounted noexec"),
            "remount it with exec, or mount another file system on /var/lib/requeen",
        )
    })
}

/// Every new program starts in the host's root and tells its version; dockerd the expected one.
fn versions(store: &Store, new: &SetId, incoming: &Manifest, changes: &[EngineFile], run: Runner<'_>) -> Vec<Problem> {
    let mut problems = Vec::new();
    for &file in changes.iter().filter(|file| incoming.files.contains_key(file)) {
        let arg = match file {
            EngineFile::Dockerd
            | EngineFile::Docker
            | EngineFile::DockerInit
            | EngineFile::Containerd
            | EngineFile::Ctr
            | EngineFile::Runc => "--version",
            EngineFile::ContainerdShimRuncV2 => "-v",
            // It has no such flag before 23.0.
            EngineFile::DockerProxy => continue,
        };
        let program = store.host_path(new, file);
        match run(&program, &[arg.to_owned()]) {
            Ok(ran) if ran.status.success() => {
                if file == EngineFile::Dockerd
                    && Version::parse(printed_version(&ran.stdout)) != Version::parse(&incoming.version)
                {
                    problems.push(problem(
                        format!("the new dockerd says `{}`, expected version {}", ran.stdout.trim(), incoming.version),
                        "use the bundle that the rollout names",
                    ));
                }
            }
            Ok(ran) => problems.push(problem(
                format!("the new {file} does not run here: {}", last_words(&ran)),
                "use a bundle built for this host's system libraries (a static one)",
            )),
            Err(error) => problems.push(problem(
                format!("the new {file} does not run here: {}", chain(&error)),
                "use a bundle built for this host's system libraries (a static one)",
            )),
        }
    }
    problems
}

/// The version in `Docker version 26.1.5, build a72d7cd`.
fn printed_version(line: &str) -> &str {
    line.split_whitespace().skip_while(|word| *word != "version").nth(1).unwrap_or_default().trim_end_matches(',')
}

/// What a program said last, or how it ended.
fn last_words(ran: &Ran) -> String {
    let said = if ran.stderr.trim().is_empty() { &ran.stdout } else { &ran.stderr };
    let last = said.lines().rev().find(|line| !line.trim().is_empty());
    last.map_or_else(|| ran.status.to_string(), |line| format!("{} ({})", line.trim(), ran.status))
}

/// Both engines accept the node's own flags and configuration as they are today: the new one because
/// it will be started with them, the old one because it may have to be started again.
fn validate(
    layout: &Layout,
    store: &Store,
    (new, incoming): (&SetId, &Manifest),
    input: &PreflightInput,
    run: Runner<'_>,
    notes: &mut Vec<String>,
) -> Vec<Problem> {
    let mut args: Vec<String> = layout.dockerd_argv.iter().skip(1).cloned().collect();
    args.push("--validate".to_owned());
    let engines = [
        (
            "new",
            &incoming.version,
            store.host_path(new, EngineFile::Dockerd),
            "correct docker.service's flags and daemon.json for the new version",
        ),
        (
            "running",
            &input.running_version,
            layout.targets[&EngineFile::Dockerd].clone(),
            "the engine that runs would not start again: correct docker.service's flags and daemon.json",
        ),
    ];
    let mut problems = Vec::new();
    for (which, version, program, hint) in engines {
        if !Version::parse(version).is_some_and(|version| version.at_least(VALIDATE_SINCE)) {
            notes.push(format!("the {which} engine ({version}) can't check its configuration without being started"));
            continue;
        }
        match run(&program, &args) {
            Ok(ran) if ran.status.success() => {}
            Ok(ran) => problems.push(problem(
                format!("the {which} engine ({version}) refuses this node's configuration: {}", last_words(&ran)),
                hint,
            )),
            Err(error) => problems.push(problem(
                format!("the {which} engine ({version}) can't check its configuration: {}", chain(&error)),
                hint,
            )),
        }
    }
    problems
}

/// Units that systemd has read in another form than the one on the disk: it would start the engine by the one, and was
/// looked at here is the other.
fn reload_is_due(layout: &Layout, run: Runner<'_>) -> Option<Problem> {
    let mut args: Vec<String> = ["show", "--property=Id,NeedDaemonReload"].map(str::to_owned).to_vec();
    args.push(layout.docker_unit.clone());
    args.extend(layout.containerd_unit.clone());
    // Where systemd can't be asked from here, the hand-over finds another way, or says so.
    let ran = run("systemctl", &args).ok().filter(|ran| ran.status.success())?;
    let mut due = Vec::new();
    for unit in ran.stdout.split("\n\n") {
        let value = |name: &str| unit.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
        if value("NeedDaemonReload") == Some("yes") {
            due.push(value("Id").unwrap_or("a unit").to_owned());
        }
    }
    (!due.is_empty()).then(|| {
        problem(
            format!("{} changed on the disk and systemd has not read it yet", due.join(" and ")),
            "`systemctl daemon-reload`, and see that the engine starts with it",
        )
    })
}

/// Debian packages that own engine files: their next upgrade brings their own back.
fn owners(root: &HostRoot) -> Option<String> {
    const PACKAGES: [&str; 8] =
        ["docker.io", "docker-cli", "docker-ce", "docker-ce-cli", "containerd", "containerd.io", "runc", "tini"];
    let installed: Vec<&str> = PACKAGES
        .into_iter()
        .filter(|package| root.resolve(format!("/var/lib/dpkg/info/{package}.list")).is_ok_and(|path| path.exists()))
        .collect();
    (!installed.is_empty()).then(|| {
        let names = installed.join(" ");
        format!("packages own engine files, and their next upgrade brings theirs back: `apt-mark hold {names}`")
    })
}

#[cfg(test)]
#[path = "preflight_tests.rs"]
mod tests;
