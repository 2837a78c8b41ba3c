//! The archive for a bug report, of a swarm that has secrets.

use anyhow::{Result, ensure};
use lab::Node;
use serde_json::Value;

use crate::operator::{refused, requeen, requeen_ok, write};
use crate::world::World;

/// The archive, the folder where it is looked at, and the file of what must not be in it.
const ARCHIVE: &str = "/root/diag.tgz";
const FOLDER: &str = "/root/diag";
const SECRETS: &str = "/root/diag-secrets";

/// Every node's folder is there with its engine's journal, and no token and no key of the swarm is in any file.
pub(crate) fn diag_tells_no_secrets(world: &World) -> Result<()> {
    let large = world.large()?;
    let first = large.first()?;
    let result = look(large.lab().nodes(), first);
    first.sh(&format!("rm -rf {ARCHIVE} {FOLDER} {SECRETS}"))?;
    result
}

fn look(nodes: &[Node], first: &Node) -> Result<()> {
    let summary = requeen_ok(first, &["diag", "-o", ARCHIVE, "--json"])?;
    let summary: Value = serde_json::from_str(&summary.stdout)?;
    ensure!(summary["file"] == ARCHIVE, "it is said to be in {}", summary["file"]);
    for node in summary["nodes"].as_array().into_iter().flatten() {
        ensure!(node["collected"] == true, "not collected: {node}");
    }

    let unpacked = first.sh(&format!("mkdir {FOLDER} && tar -xzf {ARCHIVE} -C {FOLDER} && ls {FOLDER}"))?;
    let mut expected: Vec<&str> = nodes.iter().map(Node::name).chain(["MANIFEST.txt", "coordinator"]).collect();
    let mut found: Vec<&str> = unpacked.stdout.lines().collect();
    expected.sort_unstable();
    found.sort_unstable();
    ensure!(found == expected, "the archive has {found:?}");
    let manifest = first.sh(&format!("cat {FOLDER}/MANIFEST.txt"))?.stdout;
    eprintln!("{manifest}");
    for node in nodes {
        let journal = first.sh(&format!("cat {FOLDER}/{node}/journal/docker.service.log"))?.stdout;
        ensure!(journal.contains("dockerd"), "no journal of {node}'s engine:\n{manifest}");
        for file in ["report.json", "docker/info.json", "units/status.txt", "host/df.txt"] {
            first.sh(&format!("test -s {FOLDER}/{node}/{file}"))?;
        }
    }
    for file in ["log.txt", "status.json", "records.json", "nodes.json", "agent-service.json", "container.json"] {
        first.sh(&format!("test -s {FOLDER}/coordinator/{file}"))?;
    }

    let secrets = secrets(nodes, first)?;
    write(first, SECRETS, secrets.join("\n").as_bytes())?;
    // The search itself must be able to find something.
    first.sh(&format!("grep -r -q -F dockerd {FOLDER}"))?;
    let told = first.exec(&["grep", "-r", "-l", "-F", "-f", SECRETS, FOLDER])?;
    ensure!(told.status == 1, "secrets in {}{}", told.stdout, told.stderr);

    refused(&requeen(first, &["diag", "-o", ARCHIVE])?, &[ARCHIVE])?;
    let some = first.sh("requeen diag --nodes w1 --since 1h -o - | tar -tz")?.stdout;
    let of = |node: &str| some.lines().any(|line| line.starts_with(&format!("{node}/")));
    ensure!(of("w1") && of("coordinator") && !of("m2"), "of w1 alone:\n{some}");
    Ok(())
}

/// What must be in no file: join tokens, whole and in part, and every line of every node's key.
fn secrets(nodes: &[Node], first: &Node) -> Result<Vec<String>> {
    let mut secrets: Vec<String> = ["SWMTKN", "SWMKEY", "PRIVATE KEY"].map(str::to_owned).to_vec();
    for role in ["manager", "worker"] {
        let token = first.docker(&["swarm", "join-token", "--quiet", role])?.trimmed().to_owned();
        let parts: Vec<&str> = token.split('-').filter(|part| part.len() > 10).collect();
        ensure!(parts.len() == 2, "no join token: {token}");
        secrets.extend(parts.into_iter().map(str::to_owned));
    }
    for node in nodes {
        let key = node.sh("cat /var/lib/docker/swarm/certificates/swarm-node.key")?.stdout;
        let lines: Vec<&str> = key.lines().filter(|line| line.len() > 40 && !line.contains([':', ' '])).collect();
        ensure!(!lines.is_empty(), "no key on {node}");
        secrets.extend(lines.into_iter().map(str::to_owned));
    }
    Ok(secrets)
}
