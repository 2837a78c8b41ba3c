//! What each command does; all printing is here. Data goes to standard output, words to standard error.

use std::fs;
use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use lab::bench::{Figure, Settings};
use lab::demo::Demo as Demonstration;
use lab::images::Build;
use lab::registry::{self, Registry};
use lab::release::{self, Destination, Release};
use lab::{Error, Lab, LabStatus, Spec, Suite, checks, command, engines, images};

use crate::cli::{Bench, Command, Demo, Down, Publish, Up};

/// The package of the end-to-end scenarios.
const SCENARIOS: &str = "requeen-e2e";

/// Tells the scenarios to build the product in another way than with the Dockerfile.
const PROFILE: &str = "REQUEEN_E2E_PROFILE";
/// The exit code of what was refused before anything changed.
const REFUSED: u8 = 2;

/// Runs a command and returns what the process shall end with.
pub(crate) fn run(command: Command) -> Result<ExitCode> {
    match command {
        Command::Up(args) => up(&args).map(|()| ExitCode::SUCCESS),
        Command::Down(args) => down(&args).map(|()| ExitCode::SUCCESS),
        Command::Status { json } => status(json).map(|()| ExitCode::SUCCESS),
        Command::Shell { node, name, command } => shell(&name, &node, &command),
        Command::Bundle { suite } => {
            let bundle = engines::bundle(suite)?;
            eprintln!("Docker Engine {}, sha256:{}", bundle.version, bundle.sha256);
            println!("{}", bundle.path.display());
            Ok(ExitCode::SUCCESS)
        }
        Command::Image { suite } => {
            println!("{}", images::node_image(suite)?);
            Ok(ExitCode::SUCCESS)
        }
        Command::Product(args) => {
            println!("{}", Build::from(args).run()?);
            Ok(ExitCode::SUCCESS)
        }
        Command::Publish(args) => publish(args),
        Command::Demo(args) => demo(args),
        Command::Test { args } => test(&args),
        Command::Bench(args) => bench(args),
        Command::SampleApi { socket, every_ms } => {
            lab::bench::sample::run(&socket, Duration::from_millis(every_ms), &mut std::io::stdout())?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Cleanup => cleanup().map(|()| ExitCode::SUCCESS),
    }
}

fn up(args: &Up) -> Result<()> {
    let started = Instant::now();
    let spec = Spec { name: args.name.clone(), managers: args.managers, workers: args.workers, suite: args.engine };
    let lab = Lab::up(&spec)?;
    for image in &args.images {
        lab.load_image(image).with_context(|| format!("cannot load {image}"))?;
    }
    eprintln!("{} nodes in {:.1} s", lab.nodes().len(), started.elapsed().as_secs_f64());
    table(&[LabStatus::of(&lab)?]);
    Ok(())
}

fn down(args: &Down) -> Result<()> {
    let names = if args.all { Lab::names()? } else { vec![args.name.clone()] };
    for name in names {
        Lab::down(&name)?;
        eprintln!("removed {name}");
    }
    Ok(())
}

fn status(json: bool) -> Result<()> {
    let mut labs = Vec::new();
    for name in Lab::names()? {
        match Lab::attach(&name) {
            Ok(lab) => labs.push(LabStatus::of(&lab)?),
            // A network or a volume without a node is what a killed run leaves.
            Err(Error::UnknownLab { name }) => labs.push(LabStatus { name, nodes: Vec::new() }),
            Err(other) => return Err(other.into()),
        }
    }
    if json {
        println!("{}", serde_json::to_string(&labs)?);
    } else {
        table(&labs);
    }
    Ok(())
}

fn table(labs: &[LabStatus]) {
    println!("{:<12} {:<6} {:<8} {:<14} {:<10} {:<18} SWARM", "LAB", "NODE", "ROLE", "ADDRESS", "STATE", "ENGINE");
    for lab in labs {
        if lab.nodes.is_empty() {
            println!("{:<12} (left by a killed run; remove it: cargo lab down --name {0})", lab.name);
        }
        for node in &lab.nodes {
            let role = match node.role {
                lab::Role::Manager => "manager",
                lab::Role::Worker => "worker",
            };
            let engine = node.engine.as_deref().unwrap_or("-");
            let swarm = node.swarm.as_deref().unwrap_or("-");
            let (name, address, state) = (&node.name, &node.address, &node.state);
            println!("{:<12} {name:<6} {role:<8} {address:<14} {state:<10} {engine:<18} {swarm}", lab.name);
        }
    }
}

fn shell(name: &str, node: &str, command: &[String]) -> Result<ExitCode> {
    let lab = Lab::attach(name)?;
    let node = lab.node(node)?;
    let terminal = std::io::stdin().is_terminal() && std::io::stdout().is_terminal();
    let words: Vec<&str> = if command.is_empty() { vec!["bash"] } else { command.iter().map(String::as_str).collect() };
    exit(command::inherit(&mut node.command(&words, terminal))?)
}

fn publish(args: Publish) -> Result<ExitCode> {
    let repository = images::repository();
    let release = Release { source: args.source, ..Release::of(&repository)? };
    if !release.changed.is_empty() && !args.allow_dirty {
        eprintln!("error: {} differ from the commit: {}", release.changed.len(), release.changed.join(", "));
        eprintln!("  hint: commit them, so that others can make the same; --allow-dirty makes it all the same");
        return Ok(ExitCode::from(REFUSED));
    }
    let to = match (args.registry, args.lab) {
        (Some(registry), _) => {
            let read =
                |path: PathBuf| fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()));
            Some(Destination { registry, name: args.name, ca: args.ca_file.map(read).transpose()? })
        }
        (None, Some(lab)) => Some(Registry::start(&Lab::attach(&lab)?)?.destination(&args.name)),
        (None, None) => None,
    };
    let build = Build::from(args.product);
    build.run()?;
    let made = release::make(&build, &release, &repository.join("target"))?;
    eprintln!("requeen {} of commit {}", release.version, release.revision);
    eprintln!("image: {}, {} bytes to pull", made.image.digest(), made.image.size());
    eprintln!("files: {}", made.artifacts.display());
    let Some(to) = to else {
        eprintln!("not pushed: no --registry");
        println!("{}", made.image.digest());
        return Ok(ExitCode::SUCCESS);
    };
    let reference = release::push(&made, &to)?;
    let (tag, bill) = (&release.version, release::sbom_tag(&made.image));
    eprintln!("pushed to {}/{}: {tag}, latest, and the bill of materials as {bill}", to.registry, to.name);
    println!("{reference}");
    Ok(ExitCode::SUCCESS)
}

fn demo(args: Demo) -> Result<ExitCode> {
    let spec = Spec { name: args.name, managers: args.managers, workers: args.workers, suite: args.engine };
    let demo = Demonstration { spec, target: args.target, next: Suite::Sid, build: args.product.into() };
    exit(lab::demo::run(&demo, |line| eprintln!("── {line}"))?)
}

/// The scenarios on real swarms come last: what fails in seconds is known before.
fn test(args: &[String]) -> Result<ExitCode> {
    std::thread::scope(|scope| {
        // It waits for the network and the disk, the checks for the processors.
        let warm = scope.spawn(warm);
        let checked = if args.is_empty() { checks::run(|line| eprintln!("── {line}")) } else { Ok(()) };
        let warmed = warm.join().unwrap_or_else(|_| bail!("the thread that gets everything ready panicked"));
        checked?;
        warmed
    })?;
    let cargo_test = |suite: &[&str]| {
        let mut cargo = checks::cargo(&["test", "--locked"]);
        command::inherit(cargo.args(suite).args(args))
    };
    let status = std::thread::scope(|scope| {
        // The linker of a release build keeps one processor busy, and many tests only wait.
        let whole = args.is_empty() && std::env::var_os(PROFILE).is_none();
        let image = whole.then(|| scope.spawn(|| anyhow::Ok(Build::Dockerfile.run().map(drop)?)));
        let status = cargo_test(&["--workspace", "--exclude", SCENARIOS])?;
        if let Some(image) = image {
            image.join().unwrap_or_else(|_| bail!("the thread that builds the product's image panicked"))?;
        }
        anyhow::Ok(status)
    })?;
    let status = if status == 0 { cargo_test(&["--package", SCENARIOS])? } else { status };
    if status != 0 {
        return exit(status);
    }
    Ok(ExitCode::SUCCESS)
}

/// A figure that is not what it must be is a failure.
fn bench(args: Bench) -> Result<ExitCode> {
    let Bench { name, engine, target, only, rounds, swarms, idle, quick, no_build, keep, json } = args;
    if !no_build {
        let build = if quick { Build::Machine { profile: "release".to_owned() } } else { Build::Dockerfile };
        build.run()?;
    }
    let (full_rounds, full_unpacks, full_idle) = (10, 7, 300);
    let (rounds, idle) = if quick {
        (rounds.unwrap_or(2), idle.unwrap_or(15))
    } else {
        (rounds.unwrap_or(full_rounds), idle.unwrap_or(full_idle))
    };
    let settings = Settings {
        name,
        from: engine,
        figures: if only.is_empty() { Figure::ALL.to_vec() } else { only },
        rounds,
        swarms,
        unpacks: if quick { 3 } else { full_unpacks },
        idle: Duration::from_secs(idle),
        keep,
        quick: quick || rounds < full_rounds || idle < full_idle,
        program: std::env::current_exe().context("cannot find this program")?,
    };
    let report = lab::bench::run(&settings, &engines::bundle(target)?)?;
    if json {
        println!("{}", serde_json::to_string(&report)?);
    } else {
        print!("{}", report.table());
    }
    Ok(if report.missed() { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// Makes what scenarios need, so that no test's time holds a download. What can't be had is said, once, up front.
fn warm() -> Result<()> {
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

fn cleanup() -> Result<()> {
    for name in Lab::names()? {
        Lab::down(&name)?;
        eprintln!("removed {name}");
    }
    for tag in images::clean()? {
        eprintln!("removed {tag}");
    }
    Ok(())
}

fn exit(status: i32) -> Result<ExitCode> {
    match u8::try_from(status) {
        Ok(code) => Ok(ExitCode::from(code)),
        Err(_) => bail!("the command ended with status {status}"),
    }
}
