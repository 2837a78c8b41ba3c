//! The product out of a registry: pushed as a release is, and started by the README's own words.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::{bundles, readme};
use lab::images::{self, PRODUCT, repository};
use lab::registry::Registry;
use lab::release::{self, Binaries, Image, Made, Release};
use lab::{Lab, Node, product, wait};
use serde_json::Value;

use crate::operator::status;
use crate::world::{World, build};

/// The image's name in the registry.
const NAME: &str = "requeen";

/// How long the agents may take to come and to go, pulls included.
const LIMIT: Duration = Duration::from_secs(120);

/// The label by which a service's containers are found on a node.
const SERVICE: &str = "com.docker.swarm.service.name";

/// The image goes to a registry in the lab's network, every node pulls it by digest, and what the README says works with it.
pub(crate) fn the_published_image_runs_from_a_registry(world: &World) -> Result<()> {
    let small = world.small()?;
    let (lab, first) = (small.lab(), small.first()?);
    let folder = tempfile::tempdir()?;
    let release = Release::of(&repository())?;
    let made = release::make(&build(), &release, folder.path())?;
    let digest = made.image.digest();
    let again = Binaries::of_image(PRODUCT, &folder.path().join("again"))?;
    let again = Image::assemble(&again, &release, &folder.path().join("again-image"))?;
    ensure!(again.digest() == digest, "made twice of the same binaries: {digest} and {}", again.digest());
    files_are_whole(&made)?;

    let registry = Registry::start(lab)?;
    let reference = release::push(&made, &registry.destination(NAME))?;
    ensure!(reference == format!("{}/{NAME}@{digest}", registry.host()), "pushed as {reference}");
    bill_is_attached(&registry, &made)?;
    let used = use_it(lab, first, &registry, &made);
    // As it was found, whatever happened: agents are deployed anew by those who need them.
    let left = leave(lab, first, &reference);
    used?;
    left?;
    loads_from_its_file(lab.node("w1")?, &made)?;
    Ok(registry.stop(lab)?)
}

/// What goes beside the image is there, and its sums are right.
fn files_are_whole(made: &Made) -> Result<()> {
    let listed = fs::read_to_string(made.artifacts.join("SHA256SUMS"))?;
    let mut names = Vec::new();
    for line in listed.lines() {
        let (sum, name) = line.split_once("  ").with_context(|| format!("no sum and name: {line}"))?;
        let content = fs::read(made.artifacts.join(name))?;
        ensure!(!content.is_empty() && bundles::sha256(&content) == sum, "{name} is not of {sum}");
        names.push(name);
    }
    let bill = format!("requeen-{}.cdx.json", made.release.version);
    for wanted in [bill.as_str(), "completions/bash/requeen", "man/man1/requeen.1", "man/man1/requeen-upgrade.1"] {
        ensure!(names.contains(&wanted), "{wanted} is not among {names:?}");
    }
    Ok(())
}

/// Whoever has the image's digest finds the bill of materials in the registry.
fn bill_is_attached(registry: &Registry, made: &Made) -> Result<()> {
    let manifest = format!("{NAME}/manifests/{}", release::sbom_tag(&made.image));
    let manifest: Value =
        serde_json::from_str(&registry.get(&manifest, "application/vnd.oci.image.manifest.v1+json")?)?;
    ensure!(manifest["subject"]["digest"] == made.image.digest(), "about another image: {manifest}");
    let blob = manifest["layers"][0]["digest"].as_str().with_context(|| format!("no bill: {manifest}"))?;
    let bill = registry.get(&format!("{NAME}/blobs/{blob}"), "*/*")?;
    ensure!(bill.as_bytes() == made.sbom, "another bill: {bill}");
    let bill: Value = serde_json::from_str(&bill)?;
    let parts = bill["components"].as_array().map_or(0, Vec::len);
    eprintln!("the bill of materials: {parts} components");
    ensure!(parts > 50, "{parts} components are not all");
    Ok(())
}

/// Types what the README says, with that registry's name and that digest, and looks who runs.
fn use_it(lab: &Lab, first: &Node, registry: &Registry, made: &Made) -> Result<()> {
    first.docker(&["rm", "--force", product::COORDINATOR])?;
    remove_agents(lab, first)?;
    let text = fs::read_to_string(repository().join("README.md"))?;
    for command in readme::commands(&text, &["REGISTRY/requeen@DIGEST"]) {
        let command = command.replace("REGISTRY", &registry.host()).replace("DIGEST", made.image.digest());
        eprintln!("{first}# {command}");
        let limit = LIMIT.as_secs().to_string();
        let output = first.exec(&["timeout", &limit, "sh", "-c", &command])?.ok()?;
        eprintln!("{}{}", output.stdout, output.stderr);
    }
    product::wait_for_service(first, product::AGENTS, lab.nodes().len(), LIMIT)?;
    let reference = registry.destination(NAME).reference(made.image.digest());
    for node in lab.nodes() {
        let known = node.docker(&["image", "inspect", "--format", "{{json .RepoDigests}}", &reference])?.stdout;
        let known: Vec<String> = serde_json::from_str(&known)?;
        ensure!(known.contains(&reference), "{node} knows the image as {known:?}");
        let running = agents(node)?;
        let script = format!("docker inspect --format '{{{{.Image}}}}' {running}");
        let image = node.sh(&script)?.trimmed().to_owned();
        ensure!(image == made.image.id(), "{node}: the agent is of {image}, not of {}", made.image.id());
    }
    let image = first.docker(&["inspect", "--format", "{{.Image}}", product::COORDINATOR])?;
    ensure!(image.trimmed() == made.image.id(), "the coordinator is of {}", image.trimmed());
    let waited = wait::until_true("the word of every agent", LIMIT, || {
        let status = match status(first) {
            Ok(status) => status,
            Err(error) => return Ok(Err(format!("{error:#}"))),
        };
        let nodes = status["nodes"].as_array().cloned().unwrap_or_default();
        let heard = nodes.iter().filter(|node| !node["agent"].is_null()).count();
        Ok(if heard == lab.nodes().len() { Ok(()) } else { Err(format!("{heard} of {} nodes heard", nodes.len())) })
    });
    Ok(waited?)
}

/// The file for machines without a registry is the same image.
fn loads_from_its_file(node: &Node, made: &Made) -> Result<()> {
    node.load_image(&made.archive())?;
    let tag = format!("{NAME}:{}", made.release.version);
    let loaded = node.docker(&["image", "inspect", "--format", "{{.Id}}", &tag])?;
    ensure!(loaded.trimmed() == made.image.id(), "{} was loaded, not {}", loaded.trimmed(), made.image.id());
    node.docker(&["image", "rm", &tag])?;
    Ok(())
}

/// The running containers of the agents' service on a node, in one line.
fn agents(node: &Node) -> lab::Result<String> {
    let label = format!("label={SERVICE}={}", product::AGENTS);
    let listed = node.docker(&["ps", "--quiet", "--filter", &label])?;
    Ok(listed.stdout.split_whitespace().collect::<Vec<_>>().join(" "))
}

/// Removes the agents' service, if there is one, and waits until none of its tasks runs.
fn remove_agents(lab: &Lab, first: &Node) -> Result<()> {
    let listed = first.docker(&["service", "ls", "--quiet", "--filter", &format!("name={}", product::AGENTS)])?;
    if !listed.trimmed().is_empty() {
        first.docker(&["service", "rm", product::AGENTS])?;
    }
    let waited = wait::until_true("the agents' end", LIMIT, || {
        for node in lab.nodes() {
            let left = agents(node)?;
            if !left.is_empty() {
                return Ok(Err(format!("{node}: {left}")));
            }
        }
        Ok(Ok(()))
    });
    Ok(waited?)
}

/// Puts back the coordinator and the CLI that the swarm had, and removes the image that was pulled.
fn leave(lab: &Lab, first: &Node, reference: &str) -> Result<()> {
    remove_agents(lab, first)?;
    first.docker(&["rm", "--force", product::COORDINATOR])?;
    for node in lab.nodes() {
        // The swarm removes a task's container some time after the task.
        wait::until_true(&format!("no image of the registry on {node}"), LIMIT, || {
            let removed = node.exec(&["docker", "image", "rm", reference])?;
            let gone = removed.success() || removed.stderr.contains("No such image");
            Ok(if gone { Ok(()) } else { Err(removed.stderr) })
        })?;
    }
    product::start_coordinator(first)?;
    product::install_cli(first)?;
    let waited = wait::until_true("the coordinator's answer", LIMIT, || {
        Ok(status(first).map(drop).map_err(|error| format!("{error:#}")))
    });
    Ok(waited?)
}

/// The tags of what is built twice.
const TWICE: [(&str, &str, bool); 2] = [
    ("requeen-e2e:once", "requeen-e2e:once-binaries", true),
    ("requeen-e2e:again", "requeen-e2e:again-binaries", false),
];

/// Compiled twice, from nothing the second time: the same image.
pub(crate) fn two_builds_are_one_image(_: &World) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let release = Release::of(&repository())?;
    let mut made = Vec::new();
    for (tag, binaries, cached) in TWICE {
        let image = images::product_under(tag, binaries, cached).and_then(|()| {
            let place = folder.path().join(format!("cached-{cached}"));
            let binaries = Binaries::of_image(tag, &place.join("binaries"))?;
            Ok((binaries.digests()?, Image::assemble(&binaries, &release, &place.join("image"))?))
        });
        made.push(image);
    }
    for tag in TWICE.iter().flat_map(|(tag, binaries, _)| [tag, binaries]) {
        if let Err(error) = lab::command::docker(&["image", "rm", tag]) {
            eprintln!("{tag} can't be removed: {error}");
        }
    }
    let made = made.into_iter().collect::<lab::Result<Vec<_>>>()?;
    let [(binaries, image), (others, other)] = made.as_slice() else { anyhow::bail!("{} images", made.len()) };
    ensure!(binaries == others, "the binaries differ: {binaries:?} and {others:?}");
    ensure!(image.digest() == other.digest(), "the images differ: {} and {}", image.digest(), other.digest());
    Ok(())
}
