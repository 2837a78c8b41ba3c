//! A registry of images on a lab's node: Debian's own, with a certificate of its own authority that every node trusts,
//! as engines expect of a real one.
//!
//! It runs beside the node's engine and not in it, so an upgrade of that engine does not concern it. All of it is in the
//! node: whoever removes the lab has removed it.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use crate::apt::Archive;
use crate::command::{self, parallel};
use crate::release::Destination;
use crate::wait;
use crate::{Error, Lab, Node, Result, Suite, cache, tools};

/// The suite whose registry it is: 2.8.2.
const SUITE: Suite = Suite::Bookworm;

/// The program, in Debian's package and on a node.
const PROGRAM: &str = "docker-registry";

/// Where it listens.
const PORT: u16 = 5000;

/// Its unit on the node.
const UNIT: &str = "lab-registry";

/// Its folder on the node.
const FOLDER: &str = "/var/lib/lab-registry";

/// How long it may take from its start to its first answer.
const LIMIT: Duration = Duration::from_secs(30);

/// Makes an authority and the registry's certificate: `$1` is the address and `$2` the name that it is for.
const CERTIFICATES: &str = "set -eu
openssl ecparam -name prime256v1 -genkey -noout -out ca.key
openssl req -x509 -new -key ca.key -days 30 -subj '/CN=authority of the lab' -out ca.crt
openssl ecparam -name prime256v1 -genkey -noout -out registry.key
openssl req -new -key registry.key -subj '/CN=registry of the lab' -out registry.csr
printf 'subjectAltName=IP:%s,DNS:%s\\n' \"$1\" \"$2\" > extensions
openssl x509 -req -in registry.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 30 -extfile extensions -out registry.crt
rm ca.key";

/// A registry that runs.
#[derive(Clone, Debug)]
pub struct Registry {
    node: Node,
    ca: String,
}

impl Registry {
    /// Starts one on the lab's first manager, if none runs there, and makes every node of the lab trust it.
    ///
    /// # Errors
    /// [`Error::SuiteUnavailable`] if its package can't be had here: skip what needs it, and say so.
    pub fn start(lab: &Lab) -> Result<Self> {
        let node = lab.node("m1")?;
        if !node.exec(&["systemctl", "is-active", "--quiet", UNIT])?.success() {
            launch(node)?;
        }
        let ca = node.sh(&format!("cat {FOLDER}/ca.crt"))?.stdout;
        let registry = Self { node: node.clone(), ca };
        parallel("trusting a registry", lab.nodes(), |node| registry.trust(node))?;
        registry.wait()?;
        Ok(registry)
    }

    /// Its name, as images are named after it: the node's address and the port.
    pub fn host(&self) -> String {
        format!("{}:{PORT}", self.node.ip())
    }

    /// Where an image of that name goes.
    pub fn destination(&self, name: &str) -> Destination {
        Destination { registry: self.host(), name: name.to_owned(), ca: Some(self.ca.clone()) }
    }

    /// What it answers, asked on its node: `path` is below `/v2/`, `form` a media type.
    pub fn get(&self, path: &str, form: &str) -> Result<String> {
        let (accept, url) = (format!("Accept: {form}"), format!("https://{}/v2/{path}", self.host()));
        let certificate = format!("{FOLDER}/ca.crt");
        let curl = ["curl", "--silent", "--show-error", "--fail", "--cacert", &certificate, "--header", &accept, &url];
        Ok(self.node.exec(&curl)?.ok()?.stdout)
    }

    /// Stops it, and removes all that it left on the lab's nodes.
    pub fn stop(&self, lab: &Lab) -> Result<()> {
        self.node.sh(&format!("systemctl stop {UNIT} && rm -rf {FOLDER} /usr/local/bin/{PROGRAM}"))?;
        let forget = format!("rm -rf {}", self.trusted());
        parallel("forgetting a registry", lab.nodes(), |node| node.sh(&forget)).map(drop)
    }

    /// Where engines look for the authority of this registry; they read it at each pull.
    fn trusted(&self) -> String {
        format!("/etc/docker/certs.d/{}", self.host())
    }

    fn trust(&self, node: &Node) -> Result<()> {
        let script = "mkdir -p \"$1\" && cat > \"$1/ca.crt\"";
        node.exec_with_stdin(&["sh", "-c", script, "sh", &self.trusted()], self.ca.as_bytes())?.ok().map(drop)
    }

    fn wait(&self) -> Result<()> {
        wait::until_true(&format!("the registry on {}", self.node), LIMIT, || match self.get("", "*/*") {
            Ok(_) => Ok(Ok(())),
            Err(Error::Failed { said, .. }) => {
                Ok(Err(format!("{said}\n{}", self.node.journal(UNIT, "-1min").unwrap_or_default())))
            }
            Err(other) => Err(other),
        })
    }
}

/// Fetches everything that a registry and a push to it take, so that no test's time holds a download.
///
/// # Errors
/// As [`Registry::start`].
pub fn prepare() -> Result<()> {
    tools::install_for_release()?;
    program().map(drop)
}

fn launch(node: &Node) -> Result<()> {
    let program = program()?;
    tracing::info!(%node, "start a registry");
    let place = format!("/usr/local/bin/{PROGRAM}");
    node.copy_in(&program, &place)?;
    node.sh(&format!("rm -rf {FOLDER} && mkdir -p {FOLDER}"))?;
    let address = node.ip().to_string();
    let script = format!("cd {FOLDER}\n{CERTIFICATES}");
    node.exec(&["sh", "-c", &script, "sh", &address, node.name()])?.ok()?;
    let write = format!("cat > {FOLDER}/config.yml");
    node.exec_with_stdin(&["sh", "-c", &write], configuration(&address).as_bytes())?.ok()?;
    // One that failed before keeps its name until it is forgotten.
    node.exec(&["systemctl", "reset-failed", UNIT])?;
    let settings = format!("{FOLDER}/config.yml");
    node.exec(&["systemd-run", "--quiet", "--unit", UNIT, &place, "serve", &settings])?.ok().map(drop)
}

/// What the registry reads.
fn configuration(address: &str) -> String {
    format!(
        "version: 0.1\n\
         log: {{level: warn, accesslog: {{disabled: true}}}}\n\
         storage: {{filesystem: {{rootdirectory: {FOLDER}/data}}}}\n\
         http:\n  addr: \"{address}:{PORT}\"\n  tls: {{certificate: {FOLDER}/registry.crt, key: {FOLDER}/registry.key}}\n"
    )
}

/// The program, out of Debian's package and kept in the cache.
fn program() -> Result<PathBuf> {
    tools::install()?;
    let archive = Archive::registry(SUITE)?;
    let _lock = cache::lock("registry")?;
    let folder = cache::folder("registry")?.join(cache::short(&archive.digest()));
    let program = folder.join(PROGRAM);
    if program.is_file() {
        return Ok(program);
    }
    fs::create_dir_all(&folder).map_err(Error::file("create", &folder))?;
    let work = tempfile::tempdir_in(&folder).map_err(Error::file("create a folder in", &folder))?;
    for package in archive.fetch()? {
        command::run("dpkg-deb", &["--extract".as_ref(), package.as_os_str(), work.path().as_os_str()])?;
    }
    // Last, and whole: what is there is good.
    let found = work.path().join("usr/bin").join(PROGRAM);
    fs::rename(&found, &program).map_err(Error::file("move", &found))?;
    Ok(program)
}
