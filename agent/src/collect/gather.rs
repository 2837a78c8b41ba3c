//! What a node tells of itself. Each thing is asked for by itself, for a bounded time and a bounded length, and
//! one that can't be had is a line in the manifest and stops nothing.
//!
//! What may not be read here at all: certificates and keys, the swarm's folder, logs and environments of
//! containers. What is read passes [`super::pack`], which takes out the secrets that others wrote into it.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use requeen_protocol::{Collect, Report, STATE_DIR};

use super::pack::{LONGEST, Pack};
use super::scripts;
use crate::boot;
use crate::clock::{BootTime, Clock};
use crate::engine::raw;
use crate::host::HostRoot;
use crate::host::layout::{self, Layout};
use crate::journal::Journal;
use crate::sets::ENGINES_DIR;
use crate::words::chain;

/// The units of an engine and of what replaces it.
const UNITS: [&str; 6] = [
    "docker.service",
    "docker.socket",
    "containerd.service",
    "requeen-executor.service",
    boot::RECOVER_UNIT,
    boot::RESUME_UNIT,
];

/// So many lines of each unit's journal, the newest ones.
const LINES: &str = "5000";

/// What `systemctl show` is asked for: nothing that holds values of variables.
const PROPERTIES: &str = "--property=Id,LoadState,ActiveState,SubState,Result,UnitFileState,FragmentPath,DropInPaths,\
NeedDaemonReload,MainPID,ExecMainStatus,ExecMainStartTimestamp,ExecMainStartTimestampMonotonic,ActiveEnterTimestamp,\
InactiveEnterTimestamp,NRestarts,Job,ExecStart,Requires,After,TriggeredBy,ControlGroup,MemoryCurrent,TasksCurrent";

/// A program may take so long, and everything together: the coordinator waits
/// [`requeen_protocol::COLLECT_SECS`].
const PROGRAM_LIMIT: Duration = Duration::from_secs(6);
const ALL_MS: u64 = 14_000;

/// No more is taken of what a program says, bytes. Leaving secrets out may make a text a little longer, and of a
/// journal it would be the end that has no room then.
const SAID: usize = LONGEST - LONGEST / 8;

/// The engine may take so long for each answer.
const ENGINE_LIMIT: Duration = Duration::from_secs(4);

/// No record of the agent's is longer, bytes.
const RECORD: u64 = 256 << 10;

/// So much of a folder is listed: this many names, and folders within folders.
const NAMES: usize = 2000;
const DEPTH: u32 = 4;

/// Where engines keep what they need, as far as `df` and mounts are concerned.
const PLACES: [&str; 8] =
    ["/", "/etc/docker", "/run", "/tmp", "/usr/bin", "/var/lib/containerd", "/var/lib/docker", STATE_DIR];

/// What is asked, and of whom.
pub(super) struct Input {
    pub(super) root: HostRoot,
    pub(super) clock: Clock,
    pub(super) collect: Collect,
    /// What the agent says of its node at this moment.
    pub(super) report: Report,
}

/// Gathers everything, and gives the tarball.
pub(super) fn gather(input: &Input) -> io::Result<Vec<u8>> {
    let mut all = Gathering {
        root: &input.root,
        clock: input.clock,
        ends: BootTime((input.clock)().0.saturating_add(ALL_MS)),
        pack: Pack::new(),
    };
    match serde_json::to_value(&input.report) {
        Ok(report) => all.pack.json("report.json", report),
        Err(error) => all.pack.missing("report.json", error),
    }
    all.records();
    all.journals(input.collect.since_unix);
    all.units();
    let layout = layout::discover(&input.root);
    if let Ok(layout) = &layout {
        scripts::logs(&input.root, layout, &mut all.pack);
    }
    all.files(layout.as_ref());
    all.settings(layout.as_ref().ok());
    all.host(layout.as_ref().ok());
    all.engine();
    all.pack.finish()
}

struct Gathering<'a> {
    root: &'a HostRoot,
    clock: Clock,
    /// What is not begun by then is not begun.
    ends: BootTime,
    pack: Pack,
}

impl Gathering<'_> {
    /// The agent's own records, and those of its sets.
    fn records(&mut self) {
        let agent = format!("{STATE_DIR}/agent");
        for name in self.names(&agent) {
            if name.ends_with(".json") || name.ends_with(".json.damaged") {
                self.record(&format!("agent/{name}"), format!("{agent}/{name}"));
            }
        }
        for name in self.names(ENGINES_DIR) {
            if name.ends_with(".json") {
                self.record(&format!("engines/{name}"), format!("{ENGINES_DIR}/{name}"));
            } else if self.root.join(format!("{ENGINES_DIR}/{name}/set.json")).is_file() {
                self.record(&format!("engines/{name}/set.json"), format!("{ENGINES_DIR}/{name}/set.json"));
            }
        }
    }

    /// The names in a folder of the host that are plain enough to become a part of another name.
    fn names(&mut self, dir: &str) -> Vec<String> {
        let plain = |name: &String| {
            !name.starts_with('.') && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'))
        };
        match fs::read_dir(self.root.join(dir)) {
            Ok(entries) => {
                let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
                let mut names: Vec<String> = names.filter(plain).collect();
                names.sort();
                names
            }
            Err(error) => {
                self.pack.missing(dir, error);
                Vec::new()
            }
        }
    }

    fn record(&mut self, name: &str, path: String) {
        match self.read(&path, RECORD) {
            Ok(text) => self.pack.json_text(name, &text),
            Err(error) => self.pack.missing(name, error),
        }
    }

    /// The beginning of a file of the host as text.
    fn read(&self, path: &str, bytes: u64) -> io::Result<String> {
        let mut content = Vec::new();
        fs::File::open(self.root.resolve(path)?)?.take(bytes).read_to_end(&mut content)?;
        Ok(String::from_utf8_lossy(&content).into_owned())
    }

    /// What the units wrote to the journal.
    fn journals(&mut self, since_unix: i64) {
        let since = format!("--since=@{since_unix}");
        for unit in UNITS {
            let name = format!("journal/{unit}.log");
            // Newest first: with both a number and a beginning older versions of journalctl give the first lines
            // and not the last ones. No timestamps of this kind are ambiguous in UTC.
            let args = ["--unit", unit, &since, "--lines", LINES, "--reverse", "--output", "short-precise"];
            match self.run("journalctl", &[&args[..], &["--utc", "--quiet", "--no-pager"]].concat()) {
                Ok(said) if said.failed && said.stdout.is_empty() => self.pack.missing(&name, said.why()),
                Ok(said) if said.stdout.is_empty() => self.pack.note(&name, "nothing was written since then"),
                Ok(said) => {
                    if said.stdout.len() >= SAID {
                        self.pack.note(&name, format_args!("only the newest {SAID} bytes"));
                    }
                    self.pack.text(&name, &oldest_first(&said.stdout));
                }
                Err(why) => self.pack.missing(&name, why),
            }
        }
    }

    /// How the units stand, and what they are made of.
    fn units(&mut self) {
        let ask = |verb: &'static [&'static str]| [verb, &UNITS[..]].concat();
        self.program("units/status.txt", "systemctl", &ask(&["status", "--no-pager", "--full", "--lines=0"]));
        self.program("units/show.txt", "systemctl", &ask(&["show", "--no-pager", PROPERTIES]));
        match self.run("systemctl", &ask(&["cat", "--no-pager"])) {
            Ok(said) if said.stdout.is_empty() => self.pack.missing("units/cat.txt", said.why()),
            Ok(said) => self.pack.unit("units/cat.txt", &said.stdout),
            Err(why) => self.pack.missing("units/cat.txt", why),
        }
    }

    /// What lies in Requeen's folder, and what the engine's files are.
    fn files(&mut self, layout: Result<&Layout, &Vec<requeen_protocol::Problem>>) {
        let mut listing = Vec::new();
        list(&self.root.join(STATE_DIR), Path::new(STATE_DIR), DEPTH, &mut listing);
        if listing.len() >= NAMES {
            self.pack.note("requeen-files.txt", format_args!("only the first {NAMES} names"));
        }
        self.pack.text("requeen-files.txt", &listing.join("\n"));

        let layout = match layout {
            Ok(layout) => layout,
            Err(problems) => {
                let all: Vec<&str> = problems.iter().map(|problem| problem.what.as_str()).collect();
                return self.pack.missing("engine-files.txt", all.join("; "));
            }
        };
        let mut text = format!("dockerd is started as: {}\n", layout.dockerd_argv.join(" "));
        for (file, target) in &layout.targets {
            let line = match self.root.resolve_parent(target).and_then(|path| line(&path, Path::new(target))) {
                Ok(line) => line,
                Err(error) => format!("{target}: {error}"),
            };
            // Writing to a string does not fail.
            let _ = writeln!(text, "{file}: {line}");
        }
        self.pack.text("engine-files.txt", &text);
    }

    /// The engine's configuration file.
    fn settings(&mut self, layout: Option<&Layout>) {
        let path = layout.map_or(layout::DEFAULT_CONFIG, |layout| config_file(&layout.dockerd_argv));
        match self.read(path, RECORD) {
            Ok(text) => self.pack.json_text("daemon.json", &text),
            Err(error) => self.pack.missing("daemon.json", format_args!("{path}: {error}")),
        }
    }

    /// The host beneath the engine.
    fn host(&mut self, layout: Option<&Layout>) {
        match nix::sys::utsname::uname() {
            Ok(name) => {
                let words = [name.sysname(), name.nodename(), name.release(), name.version(), name.machine()];
                let words: Vec<_> = words.iter().map(|word| word.to_string_lossy()).collect();
                self.pack.text("host/uname.txt", &(words.join(" ") + "\n"));
            }
            Err(error) => self.pack.missing("host/uname.txt", error),
        }
        match self.read("/etc/os-release", RECORD) {
            Ok(text) => self.pack.text("host/os-release", &text),
            Err(error) => self.pack.missing("host/os-release", error),
        }
        let mut places: Vec<&str> = PLACES.to_vec();
        places.extend(layout.map(|layout| layout.data_root.as_str()));
        places.extend(layout.iter().flat_map(|layout| layout.targets.values().map(String::as_str)));
        places.sort_unstable();
        places.dedup();
        match self.read("/proc/1/mountinfo", LONGEST as u64) {
            Ok(text) => self.pack.text("host/mounts.txt", &mounts_of(&text, &places)),
            Err(error) => self.pack.missing("host/mounts.txt", error),
        }
        let there: Vec<&str> =
            places.into_iter().filter(|place| self.root.resolve(place).is_ok_and(|path| path.exists())).collect();
        match self.run("df", &[&["-P", "-T"][..], &there[..]].concat()) {
            Ok(said) if said.stdout.is_empty() => self.pack.missing("host/df.txt", said.why()),
            Ok(said) => self.pack.text("host/df.txt", &once(&said.stdout)),
            Err(why) => self.pack.missing("host/df.txt", why),
        }
    }

    /// What the engine says.
    fn engine(&mut self) {
        for (name, path) in [("docker/version.json", "/version"), ("docker/info.json", "/info")] {
            let moved = Journal::load(self.root).ok().and_then(|journal| journal.work);
            if moved.is_some_and(|work| work.phase.moves_engine()) {
                self.pack.missing(name, "not asked: the engine is just being replaced");
                continue;
            }
            match self.left() {
                None => self.pack.missing(name, TIME_IS_UP),
                Some(left) => match raw::get(self.root, path, left.min(ENGINE_LIMIT)) {
                    Ok(value) => self.pack.json(name, value),
                    Err(error) => self.pack.missing(name, chain(&error)),
                },
            }
        }
    }

    /// Adds what a program of the host says, whatever its exit status: that of a unit which does not run is one
    /// too.
    fn program(&mut self, name: &str, program: &str, args: &[&str]) {
        match self.run(program, args) {
            Ok(said) if said.stdout.is_empty() => self.pack.missing(name, said.why()),
            Ok(said) => {
                if !said.stderr.trim().is_empty() {
                    self.pack.note(name, &said.stderr);
                }
                self.pack.text(name, &said.stdout);
            }
            Err(why) => self.pack.missing(name, why),
        }
    }

    fn run(&self, program: &str, args: &[&str]) -> Result<Said, String> {
        let left = self.left().ok_or(TIME_IS_UP)?;
        let ran = self.root.run_head(program, args, left.min(PROGRAM_LIMIT), SAID as u64);
        let ran = ran.map_err(|error| chain(&error))?;
        let ended = format!("`{program}` ended with {}", ran.status);
        Ok(Said { failed: !ran.status.success(), ended, stdout: ran.stdout, stderr: ran.stderr })
    }

    /// How much time there is.
    fn left(&self) -> Option<Duration> {
        let millis = self.ends.millis_since((self.clock)());
        (millis > 0).then(|| Duration::from_millis(millis))
    }
}

/// Why something was not asked for.
const TIME_IS_UP: &str = "not asked: the time was up";

/// What a program said.
struct Said {
    failed: bool,
    /// How it ended, in words.
    ended: String,
    stdout: String,
    stderr: String,
}

impl Said {
    /// Why it said nothing that could be shown.
    fn why(&self) -> String {
        format!("{}: {}", self.ended, self.stderr)
    }
}

/// Turns entries that came newest first around. An entry may have several lines; the later ones are indented.
fn oldest_first(journal: &str) -> String {
    let mut entries: Vec<Vec<&str>> = Vec::new();
    for line in journal.lines() {
        match entries.last_mut() {
            Some(entry) if line.starts_with([' ', '\t']) => entry.push(line),
            Some(_) | None => entries.push(vec![line]),
        }
    }
    entries.into_iter().rev().flatten().flat_map(|line| [line, "\n"]).collect()
}

/// The first of all lines that are the same.
fn once(text: &str) -> String {
    let mut seen = BTreeSet::new();
    text.lines().filter(|line| seen.insert(*line)).flat_map(|line| [line, "\n"]).collect()
}

/// dockerd's configuration file, by its command line.
fn config_file(argv: &[String]) -> &str {
    let mut args = argv.iter();
    while let Some(arg) = args.next() {
        match arg.strip_prefix("--config-file") {
            Some("") => return args.next().map_or(layout::DEFAULT_CONFIG, String::as_str),
            Some(value) => return value.strip_prefix('=').unwrap_or(layout::DEFAULT_CONFIG),
            None => {}
        }
    }
    layout::DEFAULT_CONFIG
}

/// The lines of a `mountinfo` (proc_pid_mountinfo(5)) whose mount point has one of `places` in it.
fn mounts_of(mountinfo: &str, places: &[&str]) -> String {
    let concerned = |line: &&str| {
        let point = line.split(' ').nth(4);
        point.is_some_and(|point| places.iter().any(|place| Path::new(place).starts_with(point)))
    };
    mountinfo.lines().filter(concerned).flat_map(|line| [line, "\n"]).collect()
}

/// Lists a folder, `named` on the host, and the folders in it. No link is followed.
fn list(dir: &Path, named: &Path, depth: u32, listing: &mut Vec<String>) {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) => {
            listing.push(format!("{}: {error}", named.display()));
            return;
        }
    };
    let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    paths.sort();
    for path in paths {
        if listing.len() >= NAMES {
            return;
        }
        let named = named.join(path.file_name().unwrap_or_default());
        listing.push(line(&path, &named).unwrap_or_else(|error| format!("{}: {error}", named.display())));
        let is_dir = fs::symlink_metadata(&path).is_ok_and(|meta| meta.is_dir());
        if is_dir && depth > 1 {
            list(&path, &named, depth - 1, listing);
        }
    }
}

/// Mode, owner, length, time of change (seconds since 1970), inode, name, and where a link leads.
fn line(path: &Path, named: &Path) -> io::Result<String> {
    let meta = fs::symlink_metadata(path)?;
    let (mode, uid, gid, len) = (meta.permissions().mode(), meta.uid(), meta.gid(), meta.len());
    let line = format!("{mode:o} {uid}:{gid} {len} {} {} {}", meta.mtime(), meta.ino(), named.display());
    if meta.is_symlink() { Ok(format!("{line} -> {}", fs::read_link(path)?.display())) } else { Ok(line) }
}

#[cfg(test)]
#[path = "gather_tests.rs"]
mod tests;
