//! The image that builds the product where no image can be pulled: Debian's C compiler and this machine's Rust.
//!
//! Two layers: the compilers, which change with the toolchain, and the crates this machine has fetched, which change
//! with Cargo.lock. With the crates in place cargo works offline; the machine's certificates are there for builds that
//! do reach a registry.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::command::{self, Input};
use crate::{Error, Result, Suite, apt, cache, tools};

use super::{LABEL, exists, product::repository};

/// Part of the tags' digests: raise it when the same sources shall give another image.
const RECIPE: &str = "1";

/// The suite that the compiler and the C library to link statically come from.
const ROOT: Suite = Suite::Trixie;

/// What rustc needs beside itself to link.
const PACKAGES: &str = "gcc,libc6-dev,ca-certificates";

/// The builder's image for the workspace, made if the machine's engine does not have it.
pub fn builder() -> Result<String> {
    tools::install()?;
    tools::engine()?;
    let _lock = cache::lock("builder")?;
    let repository = repository();
    let compilers = compilers(&repository)?;
    let lock = repository.join("Cargo.lock");
    let digest = cache::digest_text(&format!("{RECIPE} {compilers} {}", cache::digest_file(&lock)?));
    let tag = format!("requeen-lab-builder:crates-{}", cache::short(&digest));
    if exists(&tag)? {
        return Ok(tag);
    }
    tracing::info!(tag, "add the crates of Cargo.lock to the builder's image");
    let mut fetch = Command::new("cargo");
    fetch.args(["fetch", "--locked", "--quiet"]).current_dir(&repository);
    command::inherit_ok(&mut fetch)?;
    let work =
        tempfile::tempdir_in(cache::folder("images")?).map_err(Error::file("create a folder in", "the cache"))?;
    let dockerfile = format!(
        "FROM {compilers}\nCOPY registry /opt/cargo/registry\nENV CARGO_NET_OFFLINE=true\nLABEL {LABEL}=builder\n"
    );
    let file = work.path().join("Dockerfile");
    fs::write(&file, dockerfile).map_err(Error::file("write", &file))?;
    let registry = work.path().join("registry");
    fs::create_dir(&registry).map_err(Error::file("create", &registry))?;
    for part in ["index", "cache"] {
        let from = cargo_home().join("registry").join(part);
        command::run("cp", &["--archive".as_ref(), from.as_os_str(), registry.as_os_str()])?;
    }
    build(work.path(), &tag)?;
    Ok(tag)
}

/// Runs `docker build` on a folder, with the classic builder: the machine's engine may have no other.
pub(super) fn build(context: &Path, tag: &str) -> Result<()> {
    let mut docker = docker_build(tag);
    command::collect(docker.arg("--quiet").arg(context), Input::Empty)?.ok().map(drop)
}

/// A `docker build` without its context.
pub(super) fn docker_build(tag: &str) -> Command {
    let mut docker = Command::new("docker");
    docker.env("DOCKER_BUILDKIT", "0").args(["build", "--force-rm", "--tag", tag]);
    docker
}

/// The layer with the compilers.
fn compilers(repository: &Path) -> Result<String> {
    let ask =
        |args: &[&str]| command::collect(Command::new("rustc").args(args).current_dir(repository), Input::Empty)?.ok();
    let rust = ask(&["--version", "--verbose"])?.stdout;
    let sysroot = PathBuf::from(ask(&["--print", "sysroot"])?.trimmed());
    let certificates = std::env::var_os("SSL_CERT_FILE").map(PathBuf::from).filter(|path| path.is_file());
    let trust = certificates.as_deref().map(cache::digest_file).transpose()?.unwrap_or_default();
    let digest = cache::digest_text(&format!("{RECIPE} {ROOT} {PACKAGES} {rust} {trust}"));
    let tag = format!("requeen-lab-builder:rust-{}", cache::short(&digest));
    if exists(&tag)? {
        return Ok(tag);
    }
    tracing::info!(tag, "make the builder's image; this takes about a minute");
    let work =
        tempfile::tempdir_in(cache::folder("images")?).map_err(Error::file("create a folder in", "the cache"))?;
    let tar = work.path().join("root.tar");
    bootstrap(&sysroot, certificates.as_deref(), &tar)?;
    let label = format!("LABEL {LABEL}=builder");
    let mut args = vec!["import".as_ref(), "--change".as_ref(), OsStr::new(&label)];
    for change in [
        "ENV PATH=/opt/rust/bin:/usr/bin:/bin",
        "ENV CARGO_HOME=/opt/cargo",
        "ENV SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt",
        "ENV CARGO_HTTP_CAINFO=/etc/ssl/certs/ca-certificates.crt",
    ] {
        args.extend(["--change".as_ref(), OsStr::new(change)]);
    }
    args.extend([tar.as_os_str(), OsStr::new(&tag)]);
    command::docker(&args)?;
    Ok(tag)
}

fn bootstrap(sysroot: &Path, certificates: Option<&Path>, tar: &Path) -> Result<()> {
    let sysroot = sysroot.display();
    let mut command = Command::new("mmdebstrap");
    command
        .args(["--quiet", "--variant=minbase", "--format=tar"])
        .arg(format!("--include={PACKAGES}"))
        .args(["man", "doc", "locale", "info"].map(|name| format!("--dpkgopt=path-exclude=/usr/share/{name}/*")))
        .arg("--customize-hook=mkdir -p \"$1/opt/rust/bin\" \"$1/opt/cargo\"")
        .arg(format!("--customize-hook=cp {sysroot}/bin/cargo {sysroot}/bin/rustc \"$1/opt/rust/bin\""))
        .arg(format!("--customize-hook=cp -a {sysroot}/lib \"$1/opt/rust\""));
    if let Some(path) = certificates {
        let path = path.display();
        command.arg(format!("--customize-hook=cp {path} \"$1/etc/ssl/certs/ca-certificates.crt\""));
    }
    // Which registry this machine's cargo uses is the builder's business too.
    let config = cargo_home().join("config.toml");
    if config.is_file() {
        command.arg(format!("--customize-hook=cp {} \"$1/opt/cargo/config.toml\"", config.display()));
    }
    command.arg(ROOT.name()).arg(tar).arg(apt::source(ROOT)?);
    command::collect(&mut command, Input::Empty)?.ok().map(drop)
}

fn cargo_home() -> PathBuf {
    let home = || PathBuf::from(std::env::var_os("HOME").unwrap_or_else(|| "/root".into()));
    std::env::var_os("CARGO_HOME").map_or_else(|| home().join(".cargo"), PathBuf::from)
}
