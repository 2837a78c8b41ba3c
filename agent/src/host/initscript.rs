//! What Debian's init script says of the engine it starts: program, options, search path, log.
//!
//! Nothing is run to find out: the assignments at the top level of `/etc/init.d/docker` and then of `/etc/default/docker`,
//! which it reads, are understood as far as they are plain ones. What options an engine got in the end, its own command line
//! says while it runs, and that counts more.

use std::collections::BTreeMap;

use requeen_protocol::Problem;

use super::manager::DOCKER_SCRIPT;
use super::{DEFAULT_PATH, HostRoot};

/// What the script reads before it does anything.
pub(crate) const DEFAULTS: &str = "/etc/default/docker";
/// containerd's script, where a host has one; Debian has none, and dockerd then runs a containerd of its own.
const CONTAINERD_SCRIPT: &str = "/etc/init.d/containerd";
/// Where dockerd writes its process ID, unless the script says otherwise.
const PID_FILE: &str = "/var/run/docker.pid";
/// Where the script lets it log.
const LOG_FILE: &str = "/var/log/docker.log";

/// How the script starts the engine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Script {
    /// dockerd's command line, program first.
    pub(crate) argv: Vec<String>,
    /// Where it searches programs, without symbolic links, so that each is named once.
    pub(crate) path: Vec<String>,
    /// Where it logs.
    pub(crate) log: String,
    /// Whether containerd has a script of its own.
    pub(crate) containerd: bool,
}

/// Reads the script, what it reads, and the command line of the engine that runs.
pub(crate) fn read(root: &HostRoot) -> Result<Script, Vec<Problem>> {
    let refuse = |what: String, hint: &str| Err(vec![Problem { what, hint: hint.to_owned() }]);
    let text = match root.read_to_string(DOCKER_SCRIPT) {
        Ok(text) => text,
        Err(error) => {
            return refuse(
                format!("{DOCKER_SCRIPT} can't be read: {error}"),
                "only engines that an init script as Debian's runs can be upgraded here",
            );
        }
    };
    let mut variables = BTreeMap::new();
    assign(&text, &mut variables);
    // Whether it does is a matter of the checks before a rollout.
    assign(&root.read_to_string(DEFAULTS).unwrap_or_default(), &mut variables);
    let value = |name: &str| variables.get(name).cloned().flatten();
    let Some(dockerd) = value("DOCKERD") else {
        return refuse(
            format!("{DOCKER_SCRIPT} and {DEFAULTS} do not say plainly what DOCKERD is"),
            "only engines that an init script as Debian's runs can be upgraded here",
        );
    };
    let pid_file = value("DOCKER_PIDFILE").unwrap_or_else(|| PID_FILE.to_owned());
    let argv = match running(root, &pid_file) {
        Some(argv) if argv[0] == dockerd => argv,
        Some(argv) => {
            return refuse(
                format!("dockerd was started as {}, and {DOCKER_SCRIPT} starts {dockerd}", argv[0]),
                "let the script start the engine that runs, or exclude the node",
            );
        }
        None => {
            let options = value("DOCKER_OPTS").unwrap_or_default();
            let options = options.split_whitespace().map(str::to_owned);
            [dockerd, "-p".to_owned(), pid_file].into_iter().chain(options).collect()
        }
    };
    let path = value("PATH").unwrap_or_else(|| DEFAULT_PATH.to_owned());
    let mut dirs: Vec<String> = Vec::new();
    for dir in path.split(':').filter(|dir| dir.starts_with('/')) {
        let dir = root.canonical(dir).map_or_else(|_| dir.to_owned(), |dir| dir.to_string_lossy().into_owned());
        if !dirs.contains(&dir) {
            dirs.push(dir);
        }
    }
    Ok(Script {
        argv,
        path: dirs,
        log: value("DOCKER_LOGFILE").unwrap_or_else(|| LOG_FILE.to_owned()),
        containerd: root.is_executable(CONTAINERD_SCRIPT),
    })
}

/// The command line of the dockerd that runs.
fn running(root: &HostRoot, pid_file: &str) -> Option<Vec<String>> {
    let pid: u32 = root.read_to_string(pid_file).ok()?.trim().parse().ok()?;
    let name = root.read_to_string(format!("/proc/{pid}/comm")).ok()?;
    let line = root.read_to_string(format!("/proc/{pid}/cmdline")).ok()?;
    let argv: Vec<String> = line.split_terminator('\0').map(str::to_owned).collect();
    (name.trim_end() == "dockerd" && !argv.is_empty()).then_some(argv)
}

/// Adds the assignments at a script's top level. What is more than a word, quoted or not, with variables, has no value that
/// is known.
fn assign(text: &str, variables: &mut BTreeMap<String, Option<String>>) {
    for line in text.lines() {
        let line = line.strip_prefix("export ").unwrap_or(line);
        let Some((name, value)) = line.split_once('=') else {
            continue;
        };
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '_';
        if !name.is_empty() && name.chars().all(plain) && !name.starts_with(|c: char| c.is_ascii_digit()) {
            let value = word(value, variables);
            variables.insert(name.to_owned(), value);
        }
    }
}

/// The value of the word that a line's rest is.
fn word(text: &str, variables: &BTreeMap<String, Option<String>>) -> Option<String> {
    let mut value = String::new();
    let mut quote = None;
    let mut rest = text.chars().peekable();
    while let Some(c) = rest.next() {
        match (c, quote) {
            ('\'' | '"', None) => quote = Some(c),
            (c, Some(open)) if c == open => quote = None,
            (c, Some('\'')) => value.push(c),
            ('`', _) => return None,
            ('\\', _) => value.push(rest.next()?),
            ('$', _) => {
                let braced = rest.next_if_eq(&'{').is_some();
                let mut name = String::new();
                while let Some(c) = rest.next_if(|c| c.is_ascii_alphanumeric() || *c == '_') {
                    name.push(c);
                }
                if name.is_empty() || braced && rest.next() != Some('}') {
                    return None;
                }
                // One that is not set is empty; one of which nothing is known makes this unknown too.
                value.push_str(&variables.get(&name).cloned().unwrap_or_else(|| Some(String::new()))?);
            }
            (c, None) if c.is_whitespace() => {
                let after: String = rest.collect();
                let after = after.trim_start();
                // Else it is for one command only.
                return (after.is_empty() || after.starts_with('#')).then_some(value);
            }
            (';' | '&' | '|' | '(' | ')' | '<' | '>', None) => return None,
            (c, _) => value.push(c),
        }
    }
    quote.is_none().then_some(value)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::host::testing::TestHost;

    /// As Debian's is, where it matters.
    const SCRIPT: &str = "#!/bin/sh\nset -e\nexport PATH=/sbin:/bin:/usr/sbin:/usr/bin\nBASE=docker\n\
        # modify these\nDOCKERD=/usr/sbin/dockerd\nDOCKER_PIDFILE=/var/run/$BASE.pid\nDOCKER_LOGFILE=/var/log/$BASE.log\n\
        DOCKER_OPTS=\nif [ -f /etc/default/$BASE ]; then\n\t. /etc/default/$BASE\nfi\n\tDOCKERD=/indented\n";

    fn host() -> TestHost {
        let host = TestHost::new(&[]);
        for dir in ["sbin", "bin"] {
            symlink(format!("usr/{dir}"), host.root.join(format!("/{dir}"))).unwrap();
        }
        host.write(DOCKER_SCRIPT, SCRIPT.as_bytes(), 0o755);
        host
    }

    #[test]
    fn debians_script() {
        let host = host();
        let expected = Script {
            argv: ["/usr/sbin/dockerd", "-p", "/var/run/docker.pid"].map(str::to_owned).to_vec(),
            path: ["/usr/sbin", "/usr/bin"].map(str::to_owned).to_vec(),
            log: "/var/log/docker.log".to_owned(),
            containerd: false,
        };
        assert_eq!(read(&host.root), Ok(expected.clone()));
        host.write(
            DEFAULTS,
            b"DOCKER_OPTS=\"--debug --dns 8.8.8.8\" # mine\nDOCKER_LOGFILE=\"/srv/$BASE/log\"\n",
            0o644,
        );
        let script = read(&host.root).unwrap();
        assert_eq!(script.argv[3..], ["--debug", "--dns", "8.8.8.8"]);
        assert_eq!(script.log, "/srv/docker/log");
    }

    #[test]
    fn the_engine_that_runs_knows_its_options_best() {
        let host = host();
        host.write(DEFAULTS, b"DOCKER_OPTS=\"$(cat /etc/options)\"\n", 0o644);
        assert_eq!(read(&host.root).unwrap().argv.len(), 3, "nothing is run to find out");
        host.write("/var/run/docker.pid", b"77", 0o644);
        host.write("/proc/77/comm", b"dockerd\n", 0o644);
        host.write("/proc/77/cmdline", b"/usr/sbin/dockerd\0-p\0/var/run/docker.pid\0--debug\0", 0o644);
        assert_eq!(read(&host.root).unwrap().argv[3..], ["--debug"]);
        host.write("/proc/77/cmdline", b"/opt/dockerd\0", 0o644);
        let problems = read(&host.root).unwrap_err();
        assert!(problems[0].what.contains("/opt/dockerd"), "{problems:?}");
    }

    #[test]
    fn words_of_a_shell() {
        let mut known = BTreeMap::from([("A".to_owned(), Some("1".to_owned())), ("U".to_owned(), None)]);
        for (text, expected) in [
            ("/x", Some("/x")),
            ("", Some("")),
            ("'$A b'", Some("$A b")),
            ("\"${A}b $A\"c", Some("1b 1c")),
            ("$NONE", Some("")),
            ("a\\ b  # words", Some("a b")),
            ("1 command", None),
            ("$(id)", None),
            ("\"`id`\"", None),
            ("\"$U\"", None),
            ("\"open", None),
            ("a;b", None),
        ] {
            assert_eq!(word(text, &known).as_deref(), expected, "{text}");
        }
        assign("A=2\nexport B=\"$A\"\n  A=3\nif true; then A=4; fi\n", &mut known);
        assert_eq!((&known["A"], &known["B"]), (&Some("2".to_owned()), &Some("2".to_owned())));
    }

    #[test]
    fn a_script_that_says_nothing_is_refused() {
        let host = host();
        host.write(DOCKER_SCRIPT, b"#!/sbin/openrc-run\ncommand=/usr/bin/dockerd\n", 0o755);
        let problems = read(&host.root).unwrap_err();
        assert!(problems[0].what.contains("DOCKERD") && !problems[0].hint.is_empty(), "{problems:?}");
    }
}
