//! The product's image: as its users build it, or faster, from binaries that this machine built.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::command;
use crate::commit::Release;
use crate::{Error, Result, cache, tools};

use super::LABEL;
use super::builder::{build, builder, docker_build};

/// The tag of the product's image in the lab.
pub const PRODUCT: &str = "requeen:dev";

/// The tag of a product that ends where it is told to; only for tests.
pub const WITH_FAIL_POINTS: &str = "requeen:failpoints";

/// The feature that makes it so.
const FAIL_POINTS: &str = "requeen-coordinator/failpoints";

/// The product's binaries.
pub(crate) const BINARIES: [&str; 2] = ["agent", "coordinator"];

/// The package whose program is both, and the feature that makes it so.
const COORDINATOR: &str = "requeen-coordinator";
const WITH_AGENT: &str = "requeen-coordinator/with-agent";

/// The packages that they are built from.
pub const PACKAGES: [&str; 2] = ["requeen-agent", "requeen-coordinator"];

/// The workspace's folder.
pub fn repository() -> PathBuf {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.ancestors().nth(2).unwrap_or(manifest).to_owned()
}

/// Builds [`PRODUCT`] with the repository's Dockerfile, in the [`builder`]'s image instead of one that is pulled.
///
/// Every change to the workspace builds everything anew, which takes minutes: while working on the product use
/// [`product_from_machine`].
pub fn product() -> Result<&'static str> {
    with_dockerfile(PRODUCT, &[])?;
    Ok(PRODUCT)
}

/// Builds the product under another tag, its binaries under another yet, both to be removed by whoever asks for it.
/// Unless `cached`, everything is compiled anew.
pub fn product_under(tag: &str, binaries: &str, cached: bool) -> Result<()> {
    let anew: &[&str] = if cached { &[] } else { &["--no-cache"] };
    // Its stage alone has a tag of its own: what is compiled anew is large, and would stay without a name.
    with_dockerfile(binaries, &[anew, &["--target", "build"]].concat())?;
    with_dockerfile(tag, &[])
}

fn with_dockerfile(tag: &str, options: &[&str]) -> Result<()> {
    tools::engine()?;
    let builder = builder()?;
    let repository = repository();
    // The commit's time, not today's, so that the same commit gives the same image.
    let Release { version, revision, created, .. } = Release::of(&repository)?;
    let (version, created) = (format!("{version}-dev"), created.to_string());
    tracing::info!("build {tag} with the Dockerfile; this takes minutes unless nothing has changed");
    let arguments =
        [("BUILDER", builder.as_str()), ("VERSION", &version), ("REVISION", &revision), ("CREATED", &created)];
    let mut docker = docker_build(tag);
    docker.args(options);
    for (name, value) in arguments {
        docker.arg("--build-arg").arg(format!("{name}={value}"));
    }
    // What the compiler says is for whoever waits; standard output is for data.
    docker.arg(&repository).stdout(std::io::stderr());
    let before = super::id(tag)?;
    command::inherit_ok(&mut docker)?;
    if let Some(before) = before
        && super::id(tag)?.as_ref() != Some(&before)
    {
        // Without its name nobody would ever use it again.
        super::remove(&before)?;
    }
    Ok(())
}

/// Builds the binaries with this machine's cargo and makes [`PRODUCT`] of them.
///
/// `profile` is cargo's: `release` is what users get, `dev` compiles several times faster. `features` go to cargo as
/// they are, such as `requeen-agent/failpoints`.
pub fn product_from_machine(profile: &str, features: &[&str]) -> Result<&'static str> {
    from_machine(PRODUCT, profile, features)?;
    Ok(PRODUCT)
}

/// Builds the product with its coordinator's fail points as [`WITH_FAIL_POINTS`].
pub fn product_with_fail_points() -> Result<&'static str> {
    from_machine(WITH_FAIL_POINTS, "dev", &[FAIL_POINTS])?;
    Ok(WITH_FAIL_POINTS)
}

fn from_machine(tag: &str, profile: &str, features: &[&str]) -> Result<()> {
    tools::engine()?;
    let repository = repository();
    tracing::info!(profile, "build the product's binaries");
    let mut cargo = Command::new("cargo");
    cargo.args(["build", "--locked", "--quiet", "--profile", profile]).current_dir(&repository);
    let features = [&[WITH_AGENT], features].concat();
    cargo.args(["--package", COORDINATOR, "--features", &features.join(",")]);
    without_own_package(&mut cargo);
    command::inherit_ok(&mut cargo)?;
    let work =
        tempfile::tempdir_in(cache::folder("images")?).map_err(Error::file("create a folder in", "the cache"))?;
    let folder = work.path().join("bin");
    fs::create_dir(&folder).map_err(Error::file("create", &folder))?;
    let [agent, coordinator] = BINARIES;
    let from = built(&repository, profile, coordinator)?;
    // What a debugger wants is most of a quick build, and every node has to unpack it.
    let place = folder.join(coordinator);
    command::run("strip", &["--strip-all".as_ref(), "-o".as_ref(), place.as_os_str(), from.as_os_str()])?;
    symlink(coordinator, folder.join(agent)).map_err(Error::file("link", &folder))?;
    let dockerfile =
        format!("FROM scratch\nCOPY bin/ /usr/local/bin/\nENV PATH=/usr/local/bin\nLABEL {LABEL}=product\n");
    let file = work.path().join("Dockerfile");
    fs::write(&file, dockerfile).map_err(Error::file("write", &file))?;
    build(work.path(), tag)
}

/// How [`PRODUCT`] is to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Build {
    /// With the repository's Dockerfile, as [`product`] does.
    Dockerfile,
    /// With this machine's cargo and one of its profiles, as [`product_from_machine`] does.
    Machine {
        /// Cargo's profile: `release` or `dev`.
        profile: String,
    },
}

impl Build {
    /// Makes the image.
    pub fn run(&self) -> Result<&'static str> {
        match self {
            Self::Dockerfile => product(),
            Self::Machine { profile } => product_from_machine(profile, &[]),
        }
    }
}

/// Takes from a cargo's environment what the cargo around the lab set for its own package: some build scripts would run
/// again for it.
pub(crate) fn without_own_package(cargo: &mut Command) {
    for (name, _) in std::env::vars_os() {
        if ["CARGO_PKG_", "CARGO_MANIFEST_"].iter().any(|own| name.to_string_lossy().starts_with(own)) {
            cargo.env_remove(name);
        }
    }
}

/// Where cargo put a binary: below the target's name, as `.cargo/config.toml` asks.
fn built(repository: &Path, profile: &str, binary: &str) -> Result<PathBuf> {
    let host = command::run("rustc", &["--print", "host-tuple"])?;
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| repository.join("target"), PathBuf::from);
    // Cargo's one exception: the profile `dev` has the folder `debug`.
    let folder = if profile == "dev" { "debug" } else { profile };
    Ok(target.join(host.trimmed()).join(folder).join(binary))
}
