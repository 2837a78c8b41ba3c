//! The end of the product on a swarm: whether its files are still those that were installed, and whether everything but
//! them can be taken away. On the small swarm, after `a_lone_manager_needs_a_word`, which upgrades both of its nodes.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use lab::{Node, product};
use serde_json::Value;

use crate::operator::{refused, requeen, requeen_ok};
use crate::small::Small;
use crate::world::World;

/// Puts another program in a file's place, as a package manager does it: by a rename.
const REPLACE: &str = "path=$(command -v ctr) && cp --archive $path /root/ctr.installed && \
                       cp $(command -v docker-init || ls /usr/libexec/docker/docker-init) $path.new && mv $path.new $path";

/// Puts the installed one back.
const RESTORE: &str = "path=$(command -v ctr) && cp --archive /root/ctr.installed $path.new && mv $path.new $path && \
                       rm /root/ctr.installed";

/// What is in the product's folder on a node.
const REMAINS: &str = "find /var/lib/requeen -mindepth 1 -maxdepth 1 -printf '%f\\n' 2>/dev/null; true";

pub(crate) fn undeploy_leaves_nothing(world: &World) -> Result<()> {
    let small = world.small()?;
    small.with_agents()?;
    changed_files_are_named(small)?;
    everything_goes(small)
}

/// `verify` is content with what was installed, names a file that somebody replaced, and is content again.
fn changed_files_are_named(small: &Small) -> Result<()> {
    let (first, worker) = (small.first()?, small.worker()?);
    let before = verdicts(first, 0).context("run the scenario before this one, which upgrades both nodes")?;
    ensure!(before == [("m1".to_owned(), "ok".to_owned()), ("w1".to_owned(), "ok".to_owned())], "{before:?}");

    worker.sh(REPLACE)?;
    let shown = requeen(first, &["verify"]);
    let after = verdicts(first, 1);
    worker.sh(RESTORE)?;
    let shown = shown?;
    ensure!(shown.status == 1, "exit {}, not 1", shown.status);
    let line = shown.stdout.lines().find(|line| line.starts_with("w1: ")).context("w1's file is not named")?;
    ensure!(line.contains("/ctr is ") && line.contains("package containerd owns it"), "{line}");
    let after = after?;
    ensure!(after == [("m1".to_owned(), "ok".to_owned()), ("w1".to_owned(), "drifted".to_owned())], "{after:?}");
    requeen_ok(first, &["verify"])?;
    Ok(())
}

/// Every node's verdict by `verify --json`, which has to exit with `status`.
fn verdicts(first: &Node, status: i32) -> Result<Vec<(String, String)>> {
    let output = product::requeen(first, &["verify", "--json"])?;
    ensure!(output.status == status, "exit {}, not {status}\n{}{}", output.status, output.stdout, output.stderr);
    let view: Value =
        serde_json::from_str(&output.stdout).with_context(|| format!("no verdicts: {}", output.stdout))?;
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let nodes = view["nodes"].as_array().cloned().unwrap_or_default();
    Ok(nodes.iter().map(|node| (text(&node["hostname"]), text(&node["verdict"]))).collect())
}

/// The service, the records and the files of agents go; the way back only when that is asked for; and what is not the
/// product's stays.
fn everything_goes(small: &Small) -> Result<()> {
    let (first, worker) = (small.first()?, small.worker()?);
    let engines = engine_files(small)?;
    let unasked = requeen(first, &["undeploy"])?;
    refused(&unasked, &["service requeen-agent", "requeen-", "m1, w1", "--yes"])?;
    ensure!(of_the_swarm(first)?.len() > 1, "what was not confirmed was done");

    worker.sh("echo mine > /var/lib/requeen/notes.txt")?;
    let output = requeen_ok(first, &["undeploy", "--yes"])?;
    ensure!(output.stdout.contains("/var/lib/requeen/notes.txt"), "w1's own file is not named: {}", output.stdout);
    ensure!(of_the_swarm(first)?.is_empty(), "left in the swarm: {:?}", of_the_swarm(first)?);
    remains(first, &["engines", "requeen.sock"])?;
    remains(worker, &["engines", "notes.txt"])?;
    for node in small.lab().nodes() {
        let sets = node.sh("find /var/lib/requeen/engines -name set.json | wc -l")?;
        ensure!(sets.trimmed() == "2", "{node} keeps {} sets, not the last two", sets.trimmed());
    }
    let again = requeen_ok(first, &["undeploy", "--yes"])?;
    ensure!(again.stdout == "nothing is deployed\n", "the second time: {}", again.stdout);

    // The sets are known to agents alone, so these come once more, and go with them.
    small.with_agents()?;
    let output = requeen_ok(first, &["undeploy", "--backups", "--yes"])?;
    ensure!(output.stdout.contains("docker rm -f requeen"), "the rest is not named: {}", output.stdout);
    ensure!(of_the_swarm(first)?.is_empty(), "left in the swarm: {:?}", of_the_swarm(first)?);
    remains(first, &["requeen.sock"])?;
    remains(worker, &["notes.txt"])?;
    ensure!(worker.sh("cat /var/lib/requeen/notes.txt")?.stdout == "mine\n", "w1's own file was changed");
    worker.sh("rm -r /var/lib/requeen")?;
    ensure!(engine_files(small)? == engines, "an engine's files have changed");
    Ok(())
}

/// Services and configs of the product in the swarm.
fn of_the_swarm(first: &Node) -> Result<Vec<String>> {
    let services =
        first.docker(&["service", "ls", "--filter", "name=requeen", "--format", "service {{.Name}}"])?.stdout;
    let configs = first.docker(&["config", "ls", "--filter", "name=requeen-", "--format", "config {{.Name}}"])?.stdout;
    Ok(services.lines().chain(configs.lines()).map(str::to_owned).collect())
}

fn remains(node: &Node, names: &[&str]) -> Result<()> {
    let said = node.sh(REMAINS)?.stdout;
    let there: BTreeSet<&str> = said.lines().collect();
    ensure!(there == names.iter().copied().collect(), "{node} has {there:?} in /var/lib/requeen, not {names:?}");
    Ok(())
}

/// Digests of every node's engine files.
fn engine_files(small: &Small) -> Result<Vec<String>> {
    let files = "for name in dockerd docker docker-init docker-proxy containerd ctr containerd-shim-runc-v2 runc; do \
                 sha256sum $(command -v $name || ls /usr/libexec/docker/$name); done";
    small.lab().nodes().iter().map(|node| Ok(node.sh(files)?.stdout)).collect()
}
