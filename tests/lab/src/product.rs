//! The product in a lab, started as an operator starts it: the commands are those of the manual.

use std::path::Path;
use std::time::Duration;

use crate::command::{self, Output};
use crate::engines::Bundle;
use crate::images::PRODUCT;
use crate::wait;
use crate::{Lab, Node, Result};

/// How long a coordinator may take from `docker run` to its socket.
const COORDINATOR_LIMIT: Duration = Duration::from_secs(30);

/// How long the agents may take from `deploy` to running on every node.
const AGENTS_LIMIT: Duration = Duration::from_secs(60);

/// The name of the coordinator's container on a node.
pub const COORDINATOR: &str = "requeen";

/// The name of the agents' service.
pub const AGENTS: &str = "requeen-agent";

/// Starts a coordinator on a manager and waits for its socket. The product's image must be loaded there.
pub fn start_coordinator(node: &Node) -> Result<()> {
    start_coordinator_with(node, &[], &[])
}

/// Like [`start_coordinator`] with more options for `docker run` and more arguments for `coordinator serve`.
pub fn start_coordinator_with(node: &Node, options: &[&str], arguments: &[&str]) -> Result<()> {
    run_coordinator(node, PRODUCT, &[&["--restart", "always"], options].concat(), arguments)?;
    wait_for_coordinator(node, COORDINATOR_LIMIT)
}

/// Starts a coordinator of that image, and waits for nothing. Unless `options` say so it is not started again.
pub fn run_coordinator(node: &Node, image: &str, options: &[&str], arguments: &[&str]) -> Result<()> {
    let mut run = vec!["run", "--detach", "--name", COORDINATOR, "--network", "host"];
    run.extend(["--volume", "/var/run/docker.sock:/var/run/docker.sock"]);
    run.extend(["--volume", "/var/lib/docker/swarm:/var/lib/docker/swarm:ro"]);
    run.extend(["--volume", "/var/lib/requeen:/var/lib/requeen"]);
    run.extend(options);
    run.extend([image, "coordinator", "serve"]);
    run.extend(arguments);
    node.docker(&run).map(drop)
}

/// Waits until the coordinator on a node listens on its socket.
pub fn wait_for_coordinator(node: &Node, limit: Duration) -> Result<()> {
    wait::until_true(&format!("the coordinator's socket on {node}"), limit, || {
        let sockets = node.exec(&["find", "/var/lib/requeen", "-type", "s"])?;
        if !sockets.trimmed().is_empty() {
            return Ok(Ok(()));
        }
        let log = node.exec(&["docker", "logs", "--tail", "5", COORDINATOR])?;
        Ok(Err(format!("{}{}", log.stdout, log.stderr)))
    })
}

/// Installs the CLI on a node as `requeen`.
pub fn install_cli(node: &Node) -> Result<()> {
    let install = ["run", "--rm", "--volume", "/usr/local/bin:/out", PRODUCT, "coordinator", "install", "/out"];
    node.docker(&install).map(drop)
}

/// Runs the CLI on a node. A status that is not 0 is no error: see [`Output::ok`].
pub fn requeen(node: &Node, args: &[&str]) -> Result<Output> {
    let mut command = vec!["requeen"];
    command.extend(args);
    node.exec(&command)
}

/// Runs the CLI on a node with the terminal of whoever runs the lab, and returns its status.
pub fn requeen_on_terminal(node: &Node, args: &[&str]) -> Result<i32> {
    use std::io::IsTerminal;
    let mut line = vec!["requeen"];
    line.extend(args);
    let terminal = std::io::stdin().is_terminal() && std::io::stdout().is_terminal();
    command::inherit(&mut node.command(&line, terminal))
}

/// Runs `requeen deploy` on a manager and waits until an agent runs on every node of the lab.
pub fn deploy_agents(lab: &Lab, node: &Node) -> Result<()> {
    requeen(node, &["deploy", "--image", PRODUCT])?.ok()?;
    wait_for_service(node, AGENTS, lab.nodes().len(), AGENTS_LIMIT)
}

/// Waits until a service has that many running tasks.
pub fn wait_for_service(node: &Node, service: &str, tasks: usize, limit: Duration) -> Result<()> {
    let format = "{{.CurrentState}} {{.Error}}";
    let list = ["docker", "service", "ps", "--filter", "desired-state=running", "--format", format, service];
    wait::until_true(&format!("{tasks} tasks of {service}"), limit, || {
        let output = node.exec(&list)?;
        let running = output.stdout.lines().filter(|line| line.starts_with("Running")).count();
        Ok(if running == tasks {
            Ok(())
        } else {
            Err(format!("{running} running\n{}{}", output.stdout, output.stderr))
        })
    })
}

/// Deploys a stack from a file of the machine. Images are not looked up in a registry: there is none.
pub fn deploy_stack(node: &Node, file: &Path, stack: &str) -> Result<()> {
    deploy_stack_with(node, &[], file, stack)
}

/// Like [`deploy_stack`] with variables, `NAME=VALUE`, that the file asks for.
pub fn deploy_stack_with(node: &Node, variables: &[&str], file: &Path, stack: &str) -> Result<()> {
    let place = format!("/root/{stack}.yaml");
    node.copy_in(file, &place)?;
    let deploy = ["docker", "stack", "deploy", "--resolve-image", "never", "--compose-file", &place, stack];
    node.exec(&[&["env"], variables, &deploy].concat())?.ok().map(drop)
}

/// Copies a bundle to root's home on a node and returns its path there.
pub fn copy_bundle(node: &Node, bundle: &Bundle) -> Result<String> {
    let place = format!("/root/{}", bundle.file_name());
    node.copy_in(&bundle.path, &place)?;
    Ok(place)
}
