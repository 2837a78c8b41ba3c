//! Verifying and unpacking a bundle: what the agent does when it stages, against `sha256sum`, `tar xzf` and a `sync` of
//! every file.
//!
//! ```text
//! cargo bench -p requeen-agent --bench verify_unpack -- /path/to/docker-26.1.5.tgz
//! ```
//!
//! Both sides read the bundle from the page cache, write to the same folder's file system, and end when every file is on
//! disk. They take turns. Standard output gets the seconds of each run as one line of JSON.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use agent::host::HostRoot;
use agent::host::layout::Layout;
use agent::host::manager::ServiceManager;
use agent::sets::{SetId, Store};
use anyhow::{Context, Result, ensure};
use clap::Parser;
use flate2::read::GzDecoder;
use requeen_protocol::{BundleRef, Digest, EngineFile};
use sha2::{Digest as _, Sha256};

/// What is compared with the agent's code. The sync is of each file and of the folders, not of the whole file system.
const PROGRAMS: &str = "[ \"$(sha256sum <\"$1\")\" = \"$3  -\" ] && tar -xzf \"$1\" -C \"$2\" \
                        && sync \"$2\"/docker/* \"$2\"/docker \"$2\"";

/// Compares the agent's verify and unpack with the usual programs.
#[derive(Debug, Parser)]
struct Cli {
    /// The bundle, in the layout of Docker's static tarballs.
    bundle: PathBuf,
    /// How often each side runs.
    #[arg(long, default_value_t = 7)]
    runs: usize,
    /// Where both sides unpack; a folder on a disk [default: the bundle's].
    #[arg(long)]
    folder: Option<PathBuf>,
    /// What cargo says to every bench.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> Result<()> {
    // As the agent does, before the first thread: it changes what memory costs.
    agent::memory::be_frugal();
    let Cli { bundle: path, runs, folder, bench: _ } = Cli::parse();
    let folder = folder.as_deref().or_else(|| path.parent()).context("the bundle's path has no folder")?;
    let work = tempfile::tempdir_in(folder).with_context(|| format!("no work folder in {}", folder.display()))?;
    // Reads the whole bundle, so both sides find it in the page cache.
    let bundle = describe(&path)?;
    let host = Host::new(&work.path().join("host"))?;
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for run in 0..runs {
        ours.push(host.stage(&path, &bundle)?);
        theirs.push(programs(&path, &bundle, &work.path().join(format!("programs-{run}")))?);
    }
    println!("{}", serde_json::json!({ "ours": ours, "theirs": theirs }));
    Ok(())
}

/// What a coordinator would say of the bundle.
fn describe(path: &Path) -> Result<BundleRef> {
    let packed = fs::read(path).with_context(|| format!("{} can't be read", path.display()))?;
    let mut files = BTreeMap::new();
    let mut unpacked = 0;
    for entry in tar::Archive::new(GzDecoder::new(packed.as_slice())).entries()? {
        let mut entry = entry?;
        let name = entry.path()?.file_name().map(|name| name.to_string_lossy().into_owned());
        let file = name.as_deref().and_then(EngineFile::from_name);
        let Some(file) = file.filter(|_| entry.header().entry_type().is_file()) else { continue };
        let mut content = Vec::new();
        entry.read_to_end(&mut content)?;
        unpacked += content.len() as u64;
        files.insert(file, digest(&content)?);
    }
    ensure!(files.contains_key(&EngineFile::Dockerd), "{} holds no dockerd", path.display());
    let (version, arch) = ("0.0.0".to_owned(), std::env::consts::ARCH.to_owned());
    Ok(BundleRef { digest: digest(&packed)?, size: packed.len() as u64, version, arch, files, unpacked })
}

fn digest(bytes: &[u8]) -> Result<Digest> {
    Ok(Digest::from_hex(&hex::encode(Sha256::digest(bytes)))?)
}

/// A host with an engine of small files: staging takes labels, and whatever a bundle lacks, from the engine that runs.
struct Host {
    store: Store,
    running: SetId,
}

impl Host {
    fn new(folder: &Path) -> Result<Self> {
        let root = HostRoot::new(folder);
        let bin = root.join("/usr/bin");
        fs::create_dir_all(&bin)?;
        for file in EngineFile::ALL {
            fs::write(bin.join(file.name()), format!("an old {file}"))?;
        }
        let layout = Layout {
            targets: EngineFile::ALL.iter().map(|&file| (file, format!("/usr/bin/{file}"))).collect(),
            present: EngineFile::ALL.iter().copied().collect(),
            manager: ServiceManager::Systemd,
            docker_unit: "docker.service".to_owned(),
            containerd_unit: None,
            has_socket_unit: false,
            log_file: None,
            dockerd_argv: Vec::new(),
            data_root: String::new(),
            exec_root: String::new(),
        };
        let store = Store::open(&root)?;
        let running = store.capture(&layout, "0.0.0")?;
        Ok(Self { store, running })
    }

    /// Stages the bundle as the agent's task does, and takes the set away again. Seconds, without that.
    fn stage(&self, path: &Path, bundle: &BundleRef) -> Result<f64> {
        quiet();
        let began = Instant::now();
        let set = self.store.stage(File::open(path)?, bundle, &self.running, &mut |_| {})?;
        let seconds = began.elapsed().as_secs_f64();
        let place = self.store.path(&set, EngineFile::Dockerd);
        fs::remove_dir_all(place.parent().context("a set has a folder")?)?;
        Ok(seconds)
    }
}

/// The same by the usual programs, in a folder of its own that is taken away again. Seconds, without that.
fn programs(path: &Path, bundle: &BundleRef, folder: &Path) -> Result<f64> {
    fs::create_dir(folder)?;
    quiet();
    let began = Instant::now();
    let status = Command::new("sh")
        .args(["-c", PROGRAMS, "sh"])
        .args([path, folder])
        .arg(bundle.digest.hex())
        .status()
        .context("sh can't be run")?;
    let seconds = began.elapsed().as_secs_f64();
    ensure!(status.success(), "sha256sum, tar or sync failed ({status})");
    fs::remove_dir_all(folder)?;
    Ok(seconds)
}

/// Lets the disk finish what the run before has left, so that no side pays for the other.
fn quiet() {
    nix::unistd::sync();
}
