//! The person at the keyboard of a manager: types commands, reads answers and exit codes.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::command::Output;
use lab::{Lab, Node, product, wait};
use serde_json::Value;

/// How long a rollout that was told to end may take.
const END_LIMIT: Duration = Duration::from_secs(120);

/// Types `requeen …` on a node and shows what it said.
pub(crate) fn requeen(node: &Node, args: &[&str]) -> Result<Output> {
    eprintln!("{node}# requeen {}", args.join(" "));
    let output = product::requeen(node, args)?;
    for line in output.stdout.lines().chain(output.stderr.lines()) {
        eprintln!("   | {line}");
    }
    eprintln!("   exit {}", output.status);
    Ok(output)
}

/// Types it and insists on exit code 0.
pub(crate) fn requeen_ok(node: &Node, args: &[&str]) -> Result<Output> {
    let output = requeen(node, args)?;
    ensure!(output.success(), "requeen {}: exit {}\n{}", args.join(" "), output.status, output.stderr);
    Ok(output)
}

/// Whether it is a refusal as promised: exit 2, one error, a hint, and all of these words.
pub(crate) fn refused(output: &Output, words: &[&str]) -> Result<()> {
    let said = &output.stderr;
    ensure!(output.status == 2, "exit {}, not 2\n{}{said}", output.status, output.stdout);
    let errors = said.lines().filter(|line| line.starts_with("error:")).count();
    ensure!(errors == 1, "{errors} errors, not one:\n{said}");
    ensure!(said.lines().any(|line| line.trim_start().starts_with("hint:")), "no hint:\n{said}");
    for word in words {
        ensure!(said.contains(word), "{word:?} is missing in:\n{said}");
    }
    Ok(())
}

/// What `status --json` says.
pub(crate) fn status(node: &Node) -> Result<Value> {
    let output = product::requeen(node, &["status", "--json"])?.ok()?;
    serde_json::from_str(&output.stdout).with_context(|| format!("no status: {}", output.stdout))
}

/// Waits until no rollout is open.
pub(crate) fn wait_for_end(node: &Node) -> Result<()> {
    let waited = wait::until_true("the end of the rollout", END_LIMIT, || {
        let output = product::requeen(node, &["status", "--json"])?;
        let status: Value = serde_json::from_str(&output.stdout).unwrap_or_default();
        let phase = status.pointer("/rollout/phase").and_then(Value::as_str).unwrap_or("none").to_owned();
        Ok(if phase == "ended" { Ok(()) } else { Err(format!("{phase} {}", output.stderr)) })
    });
    Ok(waited?)
}

/// Writes bytes to a file of a node.
pub(crate) fn write(node: &Node, path: &str, bytes: &[u8]) -> Result<()> {
    node.exec_with_stdin(&["sh", "-c", "cat > \"$1\"", "sh", path], bytes)?.ok()?;
    Ok(())
}

/// Waits until the node's word on itself in `docker node ls` is this, asked on `manager`.
pub(crate) fn wait_for_node(lab: &Lab, manager: &Node, id: &str, state: &str, limit: Duration) -> Result<()> {
    let what = format!("node {id} of {} {state}", lab.name());
    let waited = wait::until_true(&what, limit, || {
        let format = "{{.Status.State}} {{with .ManagerStatus}}{{.Reachability}}{{end}}";
        let output = manager.exec(&["docker", "node", "inspect", "--format", format, id])?;
        Ok(if output.trimmed() == state { Ok(()) } else { Err(format!("{}{}", output.stdout, output.stderr)) })
    });
    Ok(waited?)
}
