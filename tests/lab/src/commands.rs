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
use lab::registry::Registry;
use lab::release::{self, Destination, Release};
use lab::{Error, Init, Kind, Lab, LabStatus, Node, Spec, Suite, Weather, command, engines, images};

use crate::cli::{At, Bench, Command, Demo, Down, Net, Publish, Up};
use crate::test;

/// How long an engine may take after a node's boot.
const BOOT_LIMIT: Duration = Duration::from_secs(180);
/// The exit code of what was refused before anything changed.
const REFUSED: u8 = 2;

/// Runs a command and returns what the process shall end with.
pub(crate) fn run(command: Command) -> Result<ExitCode> {
    match command {
        Command::Up(args) => up(&args),
        Command::Down(args) => down(&args).map(|()| ExitCode::SUCCESS),
        Command::Status { json } => status(json).map(|()| ExitCode::SUCCESS),
        Command::Shell { node, name, command } => shell(&name, &node, &command),
        Command::Cut(at) => refusable(cut(&at)),
        Command::Boot(at) => refusable(boot(&at)),
        Command::Net { at, what } => refusable(net(&at, &what)),
        Command::Bundle { suite } => {
            let bundle = engines::bundle(suite)?;
            eprintln!("Docker Engine {}, sha256:{}", bundle.version, bundle.sha256);
            println!("{}", bundle.path.display());
            Ok(ExitCode::SUCCESS)
        }
        Command::Image { suite, init } => {
            println!("{}", images::node_image_with(suite, init)?);
            Ok(ExitCode::SUCCESS)
        }
        Command::Product(args) => {
            println!("{}", Build::from(args).run()?);
            Ok(ExitCode::SUCCESS)
        }
        Command::Publish(args) => publish(args),
        Command::Demo(args) => demo(args),
        Command::Test(args) => exit(test::run(&args)?),
        Command::Bench(args) => bench(args),
        Command::SampleApi { socket, every_ms } => {
            lab::bench::sample::run(&socket, Duration::from_millis(every_ms), &mut std::io::stdout())?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Cleanup => cleanup().map(|()| ExitCode::SUCCESS),
    }
}

fn up(args: &Up) -> Result<ExitCode> {
    let started = Instant::now();
    let Up { name, managers, workers, engine, kind, init, images: _ } = args;
    let spec =
        Spec { name: name.clone(), managers: *managers, workers: *workers, suite: *engine, kind: *kind, init: *init };
    let lab = match Lab::up(&spec) {
        Ok(lab) => lab,
        Err(error) => return refusable(Err(error)),
    };
    for image in &args.images {
        lab.load_image(image).with_context(|| format!("cannot load {image}"))?;
    }
    eprintln!("{} nodes in {:.1} s", lab.nodes().len(), started.elapsed().as_secs_f64());
    table(&[LabStatus::of(&lab)?]);
    Ok(ExitCode::SUCCESS)
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

/// What was refused before anything changed has an exit code of its own.
fn refusable(result: lab::Result<()>) -> Result<ExitCode> {
    match result {
        Ok(()) => Ok(ExitCode::SUCCESS),
        Err(
            error @ (Error::OnlyMachines { .. }
            | Error::OnlyContainers { .. }
            | Error::HasPower { .. }
            | Error::NoPower { .. }
            | Error::UnknownLab { .. }
            | Error::UnknownNode { .. }
            | Error::BadName { .. }),
        ) => {
            eprintln!("error: {error}");
            Ok(ExitCode::from(REFUSED))
        }
        Err(other) => Err(other.into()),
    }
}

fn cut(at: &At) -> lab::Result<()> {
    let lab = Lab::attach(&at.name)?;
    let node = powered(&lab, at)?;
    node.kill()?;
    eprintln!("{node} has no power; give it back: cargo lab boot {node} --name {}", at.name);
    Ok(())
}

fn boot(at: &At) -> lab::Result<()> {
    let lab = Lab::attach(&at.name)?;
    let node = lab.node(&at.node)?;
    if node.state()? == "running" {
        return Err(Error::HasPower { node: node.name().to_owned() });
    }
    let started = Instant::now();
    node.start()?;
    let version = node.wait_for_engine(BOOT_LIMIT)?;
    eprintln!("{node}: engine {version} after {:.1} s", started.elapsed().as_secs_f64());
    Ok(())
}

fn net(at: &At, what: &Net) -> lab::Result<()> {
    let lab = Lab::attach(&at.name)?;
    let node = powered(&lab, at)?;
    match what {
        Net::Off => node.disconnect(),
        Net::On => {
            node.connect()?;
            node.clear_network()
        }
        Net::Delay { milliseconds, loss } => node.weather(Weather { delay_ms: *milliseconds, loss_percent: *loss }),
        Net::Loss { percent } => node.weather(Weather { delay_ms: 0, loss_percent: *percent }),
    }
}

/// The node, if it has power.
fn powered<'a>(lab: &'a Lab, at: &At) -> lab::Result<&'a Node> {
    let node = lab.node(&at.node)?;
    let state = node.state()?;
    if state == "running" { Ok(node) } else { Err(Error::NoPower { node: node.name().to_owned(), state }) }
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
    let Demo { name, managers, workers, engine, target, product } = args;
    let spec = Spec { name, managers, workers, suite: engine, kind: Kind::Container, init: Init::Systemd };
    let demo = Demonstration { spec, target, next: Suite::Sid, build: product.into() };
    exit(lab::demo::run(&demo, |line| eprintln!("── {line}"))?)
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
