//! What a swap installed on this host last, for whoever compares it with what is there now, and which package owns a file
//! that is another one since. Reads only: a host without a store stays without one.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use requeen_protocol::{Digest, EngineFile, FileFact, Installed};

use crate::host::{HostRoot, Ran, RunError};
use crate::sets::Store;

/// dpkg's lists of the files that each package installed.
const DPKG_LISTS: &str = "/var/lib/dpkg/info";
const RPM: &str = "/usr/bin/rpm";
/// How long rpm may take to look a path up.
const RPM_LIMIT: Duration = Duration::from_secs(10);

/// Runs a program of the host.
type Runner<'a> = &'a dyn Fn(&str, &[&str]) -> Result<Ran, RunError>;

/// Packages that were asked for already: a path's, for as long as its content stays.
#[derive(Debug, Default)]
pub struct Owners {
    known: BTreeMap<EngineFile, (FileFact, Option<String>)>,
}

/// The set that is remembered as installed, and who owns each of `found` that is not of it. None where nothing was
/// installed; a record that can't be read counts as none, since the coordinator has its own.
pub async fn look(root: &HostRoot, found: &BTreeMap<EngineFile, FileFact>, owners: &mut Owners) -> Option<Installed> {
    let (root, found, mut taken) = (root.clone(), found.clone(), std::mem::take(owners));
    let read = tokio::task::spawn_blocking(move || {
        let run = |program: &str, args: &[&str]| root.run(program, args, RPM_LIMIT);
        (read_by(&root, &found, &mut taken, &run), taken)
    });
    let (installed, taken) = read.await.unwrap_or_default();
    *owners = taken;
    installed
}

fn read_by(
    root: &HostRoot,
    found: &BTreeMap<EngineFile, FileFact>,
    owners: &mut Owners,
    run: Runner<'_>,
) -> Option<Installed> {
    let store = Store::existing(root).ok()??;
    let set = store.installed().ok()??;
    let manifest = store.manifest(&set).ok()?;
    let files: BTreeMap<EngineFile, Digest> =
        manifest.files.into_iter().map(|(file, entry)| (file, entry.digest)).collect();
    let changed = found.iter().filter(|(file, fact)| files.get(file).is_some_and(|digest| *digest != fact.digest));
    let owners = changed
        .filter_map(|(&file, fact)| {
            let known = owners.known.get(&file).filter(|(known, _)| known == fact).map(|(_, owner)| owner.clone());
            let owner = known.unwrap_or_else(|| {
                let owner = owner(root, &fact.path, run);
                owners.known.insert(file, (fact.clone(), owner.clone()));
                owner
            });
            Some((file, owner?))
        })
        .collect();
    Some(Installed { set: set.0, version: manifest.version, files, owners })
}

/// The package that a path belongs to.
fn owner(root: &HostRoot, path: &str, run: Runner<'_>) -> Option<String> {
    in_dpkg(root, path).or_else(|| in_rpm(root, path, run))
}

fn in_dpkg(root: &HostRoot, path: &str) -> Option<String> {
    let lists = root.resolve(DPKG_LISTS).and_then(fs::read_dir).ok()?;
    lists.filter_map(Result::ok).find_map(|entry| {
        let name = entry.file_name().into_string().ok()?;
        let package = name.strip_suffix(".list")?;
        let lists_it = fs::read_to_string(entry.path()).is_ok_and(|list| list.lines().any(|line| line == path));
        // `name:architecture` where several may be installed side by side.
        lists_it.then(|| package.split(':').next().unwrap_or(package).to_owned())
    })
}

fn in_rpm(root: &HostRoot, path: &str, run: Runner<'_>) -> Option<String> {
    if !root.is_executable(RPM) {
        return None;
    }
    let ran = run(RPM, &["-qf", "--queryformat", "%{NAME}", path]).ok()?;
    let name = ran.stdout.trim();
    (ran.status.success() && !name.is_empty()).then(|| name.to_owned())
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::os::unix::process::ExitStatusExt;
    use std::process::ExitStatus;

    use super::*;
    use crate::host::files;
    use crate::host::testing::{OLD_VERSION, TestHost, digest_of};
    use crate::sets::{HISTORY, SetId};

    fn ran(status: i32, stdout: &str) -> Ran {
        Ran { status: ExitStatus::from_raw(status), stdout: stdout.to_owned(), stderr: String::new() }
    }

    /// A host on which a swap has installed what is there.
    fn host() -> (TestHost, SetId) {
        let host = TestHost::new(&[]);
        let store = host.store();
        let old = host.new_set(&[(EngineFile::Dockerd, "older")], "20.10.5");
        let set = store.capture(&host.layout(), OLD_VERSION).unwrap();
        files::replace(&store.dir().join(HISTORY), &store.history_with(&old, &set).unwrap().unwrap()).unwrap();
        (host, set)
    }

    fn found(host: &TestHost) -> BTreeMap<EngineFile, FileFact> {
        let layout = host.layout();
        let fact = |(&file, path): (&EngineFile, &String)| {
            let digest = digest_of(host.root.read_to_string(path).unwrap().as_bytes());
            (file, FileFact { path: path.clone(), digest })
        };
        layout.targets.iter().map(fact).collect()
    }

    fn read(host: &TestHost, owners: &mut Owners) -> Option<Installed> {
        read_by(&host.root, &found(host), owners, &|_, _| panic!("there is no rpm"))
    }

    #[test]
    fn before_a_swap_nothing_is_installed_and_nothing_is_made() {
        let host = TestHost::new(&[]);
        assert_eq!(read(&host, &mut Owners::default()), None);
        assert!(!host.root.join(requeen_protocol::STATE_DIR).exists());
        host.store().capture(&host.layout(), OLD_VERSION).unwrap();
        assert_eq!(read(&host, &mut Owners::default()), None, "a set that was only staged is not installed");
    }

    #[test]
    fn what_was_installed_is_remembered_whatever_is_there_now() {
        let (host, set) = host();
        let installed = read(&host, &mut Owners::default()).unwrap();
        assert_eq!((&installed.set, installed.version.as_str()), (&set.0, OLD_VERSION));
        assert_eq!(installed.files[&EngineFile::Runc], digest_of(b"old runc"));
        assert_eq!(installed.owners, BTreeMap::new(), "nothing has changed");

        // By a rename, as a package manager does it.
        let new = host.write("/usr/sbin/.runc.dpkg-new", b"a package's", 0o755);
        fs::rename(new, host.root.join("/usr/sbin/runc")).unwrap();
        host.write("/var/lib/dpkg/info/docker.io.list", b"/.\n/usr/sbin/dockerd\n", 0o644);
        host.write("/var/lib/dpkg/info/runc:amd64.list", b"/.\n/usr/sbin\n/usr/sbin/runc\n", 0o644);
        let mut owners = Owners::default();
        let changed = read(&host, &mut owners).unwrap();
        assert_eq!(changed.files, installed.files);
        assert_eq!(changed.owners, BTreeMap::from([(EngineFile::Runc, "runc".to_owned())]));
        fs::remove_dir_all(host.root.join(DPKG_LISTS)).unwrap();
        assert_eq!(read(&host, &mut owners).unwrap(), changed, "a package is looked up once per content");
    }

    #[test]
    fn rpm_is_asked_where_dpkg_knows_nothing() {
        let (host, _) = host();
        let asked = Cell::new(0);
        let (answer, status) = (Cell::new("containerd.io"), Cell::new(0));
        let owner = |path: &str| {
            owner(&host.root, path, &|program, args| {
                asked.set(asked.get() + 1);
                assert_eq!((program, args.last()), (RPM, Some(&"/usr/bin/ctr")));
                Ok(ran(status.get(), answer.get()))
            })
        };
        assert_eq!(owner("/usr/bin/ctr"), None);
        assert_eq!(asked.get(), 0, "there is no rpm to ask");
        host.write(RPM, b"a program", 0o755);
        assert_eq!(owner("/usr/bin/ctr").as_deref(), Some("containerd.io"));
        status.set(256);
        answer.set("file /usr/bin/ctr is not owned by any package");
        assert_eq!(owner("/usr/bin/ctr"), None);
    }

    #[test]
    fn a_damaged_record_is_none() {
        let (host, _) = host();
        fs::write(host.store().dir().join(HISTORY), b"{").unwrap();
        assert_eq!(read(&host, &mut Owners::default()), None);
    }
}
