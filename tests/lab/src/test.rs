//! `lab test`: every test there is, the scenarios on real swarms last, and what all of them counted.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, Result, bail};
use lab::figures::{self, Figures};
use lab::images::{self, Build};
use lab::{Error, Suite, checks, command, engines, registry};

use crate::cli::Test;

/// The package of the end-to-end scenarios.
const SCENARIOS: &str = "requeen-e2e";

/// Tells the scenarios to build the product in another way than with the Dockerfile.
const PROFILE: &str = "REQUEEN_E2E_PROFILE";

/// Tells the tests to do what takes long too.
const LONG: &str = "REQUEEN_E2E_LONG";

/// Runs them and returns what the process shall end with. What fails in seconds is known before what takes minutes.
pub(crate) fn run(args: &Test) -> Result<i32> {
    let long = args.long || std::env::var_os(LONG).is_some();
    std::thread::scope(|scope| {
        // It waits for the network and the disk, the checks for the processors.
        let warm = scope.spawn(|| warm(long));
        let checked = if args.args.is_empty() { checks::run(|line| eprintln!("── {line}")) } else { Ok(()) };
        let warmed = warm.join().unwrap_or_else(|_| bail!("the thread that gets everything ready panicked"));
        checked?;
        warmed
    })?;
    let figures = figures_file()?;
    let status = all(args, &figures)?;
    let counted = Figures::read(&figures)?;
    if args.json {
        println!("{}", serde_json::to_string(&counted)?);
    }
    if !counted.all_ended_well() {
        eprintln!("error: not everything that was tried ended well: {}", serde_json::to_string(&counted)?);
        return Ok(status.max(1));
    }
    Ok(status)
}

/// The status of the first `cargo test` that failed, or 0.
fn all(args: &Test, figures: &Path) -> Result<i32> {
    let cargo_test = |suite: &[&str]| {
        let mut cargo = checks::cargo(&["test", "--locked"]);
        cargo.args(suite).args(&args.args).env(figures::VARIABLE, figures);
        if args.long {
            cargo.env(LONG, "1");
        }
        if args.json {
            cargo.stdout(Stdio::from(std::io::stderr()));
        }
        command::inherit(&mut cargo)
    };
    let status = std::thread::scope(|scope| {
        // The linker of a release build keeps one processor busy, and many tests only wait.
        let whole = args.args.is_empty() && std::env::var_os(PROFILE).is_none();
        let image = whole.then(|| scope.spawn(|| anyhow::Ok(Build::Dockerfile.run().map(drop)?)));
        let status = cargo_test(&["--workspace", "--exclude", SCENARIOS])?;
        if let Some(image) = image {
            image.join().unwrap_or_else(|_| bail!("the thread that builds the product's image panicked"))?;
        }
        anyhow::Ok(status)
    })?;
    Ok(if status == 0 { cargo_test(&["--package", SCENARIOS])? } else { status })
}

/// Where the tests of this run leave their figures: in a file of their own, if nobody has named another one.
fn figures_file() -> Result<PathBuf> {
    let named = std::env::var_os(figures::VARIABLE).filter(|name: &OsString| !name.is_empty());
    let path = named.map_or_else(|| images::repository().join("target/figures.jsonl"), PathBuf::from);
    // Tests run in their own packages' folders.
    let path = std::path::absolute(path).context("cannot tell where this is")?;
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    }
    match fs::remove_file(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", path.display()))
        }
        Ok(()) | Err(_) => Ok(path),
    }
}

/// Makes what scenarios need, so that no test's time holds a download. What can't be had is said, once, up front.
fn warm(long: bool) -> Result<()> {
    for suite in Suite::ALL {
        let bundle = engines::bundle(suite).map(drop);
        // The one suite whose engine the scenarios' nodes begin with.
        let image = if suite == Suite::Bookworm { images::node_image(suite).map(drop) } else { Ok(()) };
        match bundle.and(image) {
            Ok(()) => {}
            Err(error @ Error::SuiteUnavailable { .. }) => {
                eprintln!("SKIPPED: scenarios with {suite}: {error}")
            }
            Err(other) => return Err(other.into()),
        }
    }
    if long {
        match images::machine_disk(Suite::Bookworm) {
            Ok(_) => {}
            Err(error @ Error::SuiteUnavailable { .. }) => eprintln!("SKIPPED: scenarios on machines: {error}"),
            Err(other) => return Err(other.into()),
        }
    }
    images::builder()?;
    match registry::prepare() {
        Ok(()) => Ok(()),
        Err(error @ Error::SuiteUnavailable { .. }) => {
            eprintln!("SKIPPED: scenarios with a registry: {error}");
            Ok(())
        }
        Err(other) => Err(other.into()),
    }
}
