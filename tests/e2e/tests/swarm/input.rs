//! Bad input: one clear error, exit code 2, and nothing changed.

use anyhow::{Result, ensure};
use e2e::bundles;
use e2e::state::State;
use lab::images::PRODUCT;
use lab::{Node, Suite, product};

use crate::operator::{refused, requeen, requeen_ok, write};
use crate::world::{World, bundle};

/// Runs something that must change nothing.
fn unchanged(world: &World, what: impl FnOnce() -> Result<()>) -> Result<()> {
    let large = world.large()?;
    let before = State::of(large.lab(), large.first()?)?;
    what()?;
    let changes = before.changes(&State::of(large.lab(), large.first()?)?);
    ensure!(changes.is_empty(), "it changed:\n{}", changes.join("\n"));
    Ok(())
}

/// A plan names every node in its order, and leaves everything as it was.
pub(crate) fn plan_changes_nothing(world: &World) -> Result<()> {
    let first = world.large()?.first()?;
    let target = bundle(Suite::Trixie)?;
    let place = product::copy_bundle(first, &target)?;
    unchanged(world, || {
        let plan = requeen_ok(first, &["plan", "--bundle", &place, "--json"])?;
        let plan: serde_json::Value = serde_json::from_str(&plan.stdout)?;
        let nodes = plan["nodes"].as_array().cloned().unwrap_or_default();
        let names: Vec<&str> = nodes.iter().filter_map(|node| node["hostname"].as_str()).collect();
        // m1 leads and runs the coordinator: it is the last of the managers.
        ensure!(names == ["m2", "m3", "m1", "w1", "w2"], "the order is {names:?}");
        ensure!(plan["to"] == target.version.as_str(), "the plan is to install {}", plan["to"]);
        ensure!(plan["refusals"] == serde_json::json!([]), "refused: {}", plan["refusals"]);
        requeen_ok(first, &["upgrade", "--dry-run", "--bundle", &place])?;
        Ok(())
    })
}

pub(crate) fn bad_bundles_are_refused(world: &World) -> Result<()> {
    let first = world.large()?.first()?;
    let dockerd = bundles::failing_dockerd("99.0.0", bundles::Failing::AtOnce)?;
    let good = bundles::good(&dockerd)?;
    unchanged(world, || {
        for bad in bundles::bad(&dockerd)? {
            eprintln!("bad bundle: {}", bad.what);
            write(first, "/root/bad.tgz", &bad.bytes)?;
            refused(&requeen(first, &["upgrade", "--bundle", "/root/bad.tgz"])?, &[bad.said])?;
            // The other way in: streamed into the coordinator's own container.
            let through = ["docker", "exec", "-i", "requeen", "coordinator", "upgrade", "--bundle", "-"];
            refused(&first.exec_with_stdin(&through, &bad.bytes)?, &[bad.said])?;
        }
        write(first, "/root/good.tgz", &good)?;
        let other = format!("sha256:{}", bundles::sha256(b"something else"));
        let mismatch = requeen(first, &["upgrade", "--bundle", "/root/good.tgz", "--digest", &other])?;
        refused(&mismatch, &[&other, &bundles::sha256(&good)])?;
        refused(&requeen(first, &["upgrade", "--bundle", "/root/nothing.tgz"])?, &["/root/nothing.tgz"])
    })
}

pub(crate) fn a_downgrade_is_refused(world: &World) -> Result<()> {
    let first = world.large()?.first()?;
    let older = bundle(Suite::Bullseye)?;
    let place = product::copy_bundle(first, &older)?;
    unchanged(world, || {
        let output = requeen(first, &["upgrade", "--bundle", &place])?;
        refused(&output, &["older", &older.version, "--allow-downgrade"])
    })
}

/// Nodes that are not there, arguments that are wrong, a server that is not there.
pub(crate) fn wrong_words_are_refused(world: &World) -> Result<()> {
    let first = world.large()?.first()?;
    let place = product::copy_bundle(first, &bundle(Suite::Trixie)?)?;
    unchanged(world, || {
        let unknown = requeen(first, &["upgrade", "--bundle", &place, "--only", "nobody"])?;
        refused(&unknown, &["nobody", "m1", "w2"])?;
        let excluded = requeen(first, &["upgrade", "--bundle", &place, "--exclude", "nobody"])?;
        refused(&excluded, &["nobody"])?;
        refused(&requeen(first, &["grant", "w1"])?, &[])?;
        refused(&requeen(first, &["abort"])?, &[])?;
        refused(&requeen(first, &["rollback"])?, &["no rollout"])?;
        let usage = requeen(first, &["upgrade", "--workers-at-once", "0", "--bundle", &place])?;
        ensure!(usage.status == 2, "exit {}", usage.status);
        for words in [&["status"][..], &["upgrade", "--bundle", &place]] {
            let mut args = vec!["--socket", "/nowhere/requeen.sock"];
            args.extend(words);
            let nobody = requeen(first, &args)?;
            ensure!(nobody.status == 3, "exit {}, not 3", nobody.status);
            ensure!(
                nobody.stderr.contains("/nowhere/requeen.sock") && nobody.stderr.contains("hint:"),
                "{}",
                nobody.stderr
            );
        }
        Ok(())
    })
}

/// A server that can't do its work says why and ends.
pub(crate) fn a_server_without_its_swarm_ends(world: &World) -> Result<()> {
    let large = world.large()?;
    let socket = "/var/run/docker.sock:/var/run/docker.sock";
    let server = ["coordinator", "serve", "--data-dir", "/tmp"];
    let run = |node: &Node, options: &[&str]| {
        let begin = ["docker", "run", "--rm", "--network", "host", "--tmpfs", "/tmp"];
        node.exec(&[&begin, options, &[PRODUCT], &server].concat())
    };
    let worker = large.lab().node("w1")?;
    let output = run(worker, &["--volume", socket, "--volume", "/var/lib/docker/swarm:/var/lib/docker/swarm:ro"])?;
    refused(&output, &["manager"])?;
    let blind = run(large.first()?, &[])?;
    ensure!(blind.status == 3, "exit {}, not 3: {}", blind.status, blind.stderr);
    ensure!(blind.stderr.contains("docker.sock") && blind.stderr.contains("hint:"), "{}", blind.stderr);
    Ok(())
}
