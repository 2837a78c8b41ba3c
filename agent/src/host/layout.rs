//! Where this host keeps its engine: which file is where, and how dockerd is started.
//!
//! dockerd is what `docker.service` runs, or an init script where there is no systemd, and containerd what
//! `containerd.service` runs; the others are found where those two would find them.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::path::Path;

use requeen_protocol::{EngineFile, Problem};

use super::initscript;
use super::manager::ServiceManager;
use super::units::Service;
use super::{DEFAULT_PATH, HostRoot};

const DOCKER_UNIT: &str = "docker.service";
const SOCKET_UNIT: &str = "docker.socket";
const CONTAINERD_UNIT: &str = "containerd.service";

/// Where systemd looks for units, highest priority first (`systemd.unit(5)`).
const UNIT_DIRS: [&str; 5] = [
    "/etc/systemd/system",
    "/run/systemd/system",
    "/usr/local/lib/systemd/system",
    "/usr/lib/systemd/system",
    "/lib/systemd/system",
];

/// Where dockerd looks for its helpers before PATH (moby, `daemon/config/config_linux.go`,
/// `lookupBinPath`).
const HELPER_DIRS: [&str; 8] = [
    "/usr/local/libexec/docker",
    "/usr/libexec/docker",
    "/usr/local/lib/docker",
    "/usr/lib/docker",
    "/usr/local/libexec",
    "/usr/libexec",
    "/usr/local/lib",
    "/usr/lib",
];

/// dockerd's configuration file, unless its command line names another one.
pub(crate) const DEFAULT_CONFIG: &str = "/etc/docker/daemon.json";
const DEFAULT_DATA_ROOT: &str = "/var/lib/docker";
const DEFAULT_EXEC_ROOT: &str = "/var/run/docker";
/// Where the client goes on a host that has none: people look for it there.
const CLIENT_DIR: &str = "/usr/bin";

/// Where the engine's files are on this host, and what runs them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Where each file is, or would go if the host has none: absolute paths of the host.
    pub targets: BTreeMap<EngineFile, String>,
    /// The files that are there.
    pub present: BTreeSet<EngineFile>,
    /// What starts the engine.
    pub manager: ServiceManager,
    /// Name of dockerd's unit, or of its init script.
    pub docker_unit: String,
    /// Name of containerd's unit; without one dockerd runs a containerd of its own.
    pub containerd_unit: Option<String>,
    /// Whether there is a `docker.socket`.
    pub has_socket_unit: bool,
    /// The file that the engine logs to, where it is no journal that keeps its words.
    pub log_file: Option<String>,
    /// dockerd's command line as it is run, program first, variables replaced.
    pub dockerd_argv: Vec<String>,
    /// dockerd's data directory.
    pub data_root: String,
    /// dockerd's directory of run-time state; a containerd of its own has its `containerd.pid` in
    /// `containerd/` there.
    pub exec_root: String,
}

/// A unit as systemd would start it.
struct Unit {
    argv: Vec<String>,
    path: Vec<String>,
}

/// What runs the engine, and how.
struct Runs {
    docker: Unit,
    containerd: Option<Unit>,
    docker_unit: &'static str,
    containerd_unit: &'static str,
    has_socket_unit: bool,
    log_file: Option<String>,
}

/// Reads what starts the engine and finds its files.
pub fn discover(root: &HostRoot) -> Result<Layout, Vec<Problem>> {
    let manager = ServiceManager::of(root);
    let Runs { docker, containerd, docker_unit, containerd_unit, has_socket_unit, log_file } = match manager {
        ServiceManager::Systemd => by_units(root)?,
        ServiceManager::SysV | ServiceManager::OpenRc => by_scripts(root)?,
    };
    let Some(dockerd) = program(root, &docker) else {
        return Err(problem(
            format!("{docker_unit} runs `{}`, which is not there or can't be executed", docker.argv[0]),
            "install the engine, or correct what starts it".to_owned(),
        ));
    };
    let config = Config::read(root, &docker.argv)?;

    let mut found = BTreeMap::from([(EngineFile::Dockerd, dockerd.clone())]);
    let containerd_dirs = containerd.as_ref().map_or(&docker.path, |unit| &unit.path);
    for &file in EngineFile::ALL {
        let path = match file {
            EngineFile::Dockerd => continue,
            EngineFile::Docker => search(root, file.name(), &split_path(DEFAULT_PATH)),
            EngineFile::DockerInit => config.helper(root, "init-path").or_else(|| helper(root, file, &docker.path)),
            EngineFile::DockerProxy => {
                config.helper(root, "userland-proxy-path").or_else(|| helper(root, file, &docker.path))
            }
            EngineFile::Containerd => containerd
                .as_ref()
                .and_then(|unit| program(root, unit))
                .or_else(|| search(root, file.name(), &docker.path)),
            EngineFile::Ctr | EngineFile::ContainerdShimRuncV2 | EngineFile::Runc => {
                search(root, file.name(), containerd_dirs)
            }
        };
        if let Some(path) = path {
            found.insert(file, path);
        }
    }
    let targets = EngineFile::ALL
        .iter()
        .map(|&file| {
            let path = found.get(&file).cloned();
            (file, path.unwrap_or_else(|| place_for(file, &dockerd, &found)))
        })
        .collect();
    Ok(Layout {
        targets,
        present: found.keys().copied().collect(),
        manager,
        docker_unit: docker_unit.to_owned(),
        containerd_unit: containerd.map(|_| containerd_unit.to_owned()),
        has_socket_unit,
        log_file,
        dockerd_argv: std::iter::once(dockerd).chain(docker.argv.into_iter().skip(1)).collect(),
        data_root: config.setting(&["data-root", "graph"]).unwrap_or_else(|| DEFAULT_DATA_ROOT.to_owned()),
        exec_root: config.setting(&["exec-root"]).unwrap_or_else(|| DEFAULT_EXEC_ROOT.to_owned()),
    })
}

/// The units of a host with systemd.
fn by_units(root: &HostRoot) -> Result<Runs, Vec<Problem>> {
    let docker = match read_unit(root, DOCKER_UNIT) {
        Found::Unit(unit) => unit,
        Found::Masked => {
            return Err(problem(
                format!("{DOCKER_UNIT} is masked"),
                format!("`systemctl unmask {DOCKER_UNIT}`, or exclude the node"),
            ));
        }
        Found::NoCommand => {
            return Err(problem(
                format!("{DOCKER_UNIT} has no ExecStart= line that can be understood"),
                "compare with `systemctl cat docker.service`".to_owned(),
            ));
        }
        Found::Missing => {
            return Err(problem(
                format!("there is no {DOCKER_UNIT} on this host"),
                "only engines that systemd runs as docker.service, or sysvinit by Debian's script, can be upgraded \
                 (not snap, not rootless)"
                    .to_owned(),
            ));
        }
    };
    let containerd = match read_unit(root, CONTAINERD_UNIT) {
        Found::Unit(unit) => Some(unit),
        // dockerd then runs its own.
        Found::Masked | Found::NoCommand | Found::Missing => None,
    };
    Ok(Runs {
        docker,
        containerd,
        docker_unit: DOCKER_UNIT,
        containerd_unit: CONTAINERD_UNIT,
        has_socket_unit: fragment(root, SOCKET_UNIT).is_some(),
        log_file: None,
    })
}

/// The init scripts of a host without systemd.
fn by_scripts(root: &HostRoot) -> Result<Runs, Vec<Problem>> {
    let script = initscript::read(root)?;
    let containerd = script.containerd.then(|| Unit { argv: vec!["containerd".to_owned()], path: script.path.clone() });
    Ok(Runs {
        docker: Unit { argv: script.argv, path: script.path },
        containerd,
        docker_unit: "docker",
        containerd_unit: "containerd",
        has_socket_unit: false,
        log_file: Some(script.log),
    })
}

fn problem(what: String, hint: String) -> Vec<Problem> {
    vec![Problem { what, hint }]
}

/// Where a file goes that the host does not have.
fn place_for(file: EngineFile, dockerd: &str, found: &BTreeMap<EngineFile, String>) -> String {
    let beside = |path: &str| {
        let dir = Path::new(path).parent().unwrap_or(Path::new("/"));
        dir.join(file.name()).to_string_lossy().into_owned()
    };
    match file {
        EngineFile::Docker => format!("{CLIENT_DIR}/{file}"),
        // containerd looks for its shim, and the shim for runc, where containerd is found.
        EngineFile::Ctr | EngineFile::ContainerdShimRuncV2 | EngineFile::Runc => {
            beside(found.get(&EngineFile::Containerd).map_or(dockerd, String::as_str))
        }
        EngineFile::Dockerd | EngineFile::DockerInit | EngineFile::DockerProxy | EngineFile::Containerd => {
            beside(dockerd)
        }
    }
}

/// What looking for a unit gave.
enum Found {
    Unit(Unit),
    Masked,
    NoCommand,
    Missing,
}

/// A unit's main file: the one in the folder of the highest priority.
fn fragment(root: &HostRoot, name: &str) -> Option<String> {
    UNIT_DIRS.iter().find_map(|dir| root.read_to_string(format!("{dir}/{name}")).ok())
}

fn read_unit(root: &HostRoot, name: &str) -> Found {
    for dir in UNIT_DIRS {
        let path = format!("{dir}/{name}");
        if root.canonical(&path).is_ok_and(|to| to == Path::new("/dev/null")) {
            return Found::Masked;
        }
        if root.read_to_string(&path).is_ok() {
            break;
        }
    }
    let Some(main) = fragment(root, name) else {
        return Found::Missing;
    };
    if main.trim().is_empty() {
        // An empty unit file masks too.
        return Found::Masked;
    }
    let texts: Vec<String> = std::iter::once(main).chain(drop_ins(root, name)).collect();
    let service = Service::parse(texts.iter().map(String::as_str));
    let variables = service.variables(|path| root.read_to_string(path).ok());
    let path = variables.get("PATH").map_or(DEFAULT_PATH, String::as_str);
    match service.command_line(&variables) {
        Some(line) => Found::Unit(Unit { argv: line.argv, path: split_path(path) }),
        None => Found::NoCommand,
    }
}

/// The texts of a unit's drop-ins, sorted by file name; of two of one name the one in the folder of
/// the higher priority counts.
fn drop_ins(root: &HostRoot, name: &str) -> Vec<String> {
    let mut found: BTreeMap<OsString, String> = BTreeMap::new();
    for dir in UNIT_DIRS {
        // Drop-ins for all services come after those for this one where their names are the same.
        for folder in [format!("{dir}/{name}.d"), format!("{dir}/service.d")] {
            let Ok(entries) = root.resolve(&folder).and_then(std::fs::read_dir) else {
                continue;
            };
            for entry in entries.flatten() {
                let file = entry.file_name();
                if Path::new(&file).extension().is_some_and(|ext| ext == "conf")
                    && !found.contains_key(&file)
                    && let Ok(text) = root.read_to_string(Path::new(&folder).join(&file))
                {
                    found.insert(file, text);
                }
            }
        }
    }
    found.into_values().collect()
}

fn split_path(path: &str) -> Vec<String> {
    path.split(':').filter(|dir| dir.starts_with('/')).map(|dir| dir.trim_end_matches('/').to_owned()).collect()
}

/// The program that a unit runs.
fn program(root: &HostRoot, unit: &Unit) -> Option<String> {
    let name = &unit.argv[0];
    if name.starts_with('/') { root.is_executable(name).then(|| name.clone()) } else { search(root, name, &unit.path) }
}

/// The first program of that name in these folders.
fn search(root: &HostRoot, name: &str, dirs: &[String]) -> Option<String> {
    dirs.iter().map(|dir| format!("{dir}/{name}")).find(|path| root.is_executable(path))
}

/// A helper of dockerd, where dockerd looks for it.
fn helper(root: &HostRoot, file: EngineFile, path: &[String]) -> Option<String> {
    search(root, file.name(), &HELPER_DIRS.map(str::to_owned)).or_else(|| search(root, file.name(), path))
}

/// dockerd's flags and its configuration file.
struct Config {
    argv: Vec<String>,
    json: serde_json::Map<String, serde_json::Value>,
}

impl Config {
    fn read(root: &HostRoot, argv: &[String]) -> Result<Self, Vec<Problem>> {
        let flags = Self { argv: argv.to_vec(), json: serde_json::Map::new() };
        let path = flags.flag("config-file").unwrap_or_else(|| DEFAULT_CONFIG.to_owned());
        let json = match root.read_to_string(&path) {
            Ok(text) if text.trim().is_empty() => serde_json::Map::new(),
            Ok(text) => serde_json::from_str(&text).map_err(|error| {
                problem(
                    format!("{path} is not valid: {error}"),
                    "no engine would start with it: correct it first".to_owned(),
                )
            })?,
            // Without one dockerd uses its defaults.
            Err(_) => serde_json::Map::new(),
        };
        Ok(Self { json, ..flags })
    }

    /// The last value of a flag, given as `--name value` or `--name=value`.
    fn flag(&self, name: &str) -> Option<String> {
        let mut value = None;
        let mut args = self.argv.iter().skip(1);
        while let Some(arg) = args.next() {
            let Some(rest) = arg.strip_prefix("--").and_then(|arg| arg.strip_prefix(name)) else {
                continue;
            };
            if let Some(given) = rest.strip_prefix('=') {
                value = Some(given.to_owned());
            } else if rest.is_empty() {
                value = args.next().cloned();
            }
        }
        value
    }

    /// A setting, from the command line or from the file; by the first of its names that is given.
    fn setting(&self, names: &[&str]) -> Option<String> {
        names
            .iter()
            .find_map(|name| self.flag(name))
            .or_else(|| names.iter().find_map(|name| Some(self.json.get(*name)?.as_str()?.to_owned())))
            .filter(|value| !value.is_empty())
    }

    /// A helper that the configuration names by an absolute path.
    fn helper(&self, root: &HostRoot, name: &str) -> Option<String> {
        self.setting(&[name]).filter(|path| path.starts_with('/') && root.is_executable(path))
    }
}

#[cfg(test)]
#[path = "layout_tests.rs"]
mod tests;
