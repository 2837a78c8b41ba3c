//! Who knocks at the coordinator's port and must not come in.

use anyhow::{Result, ensure};
use lab::Node;
use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair};
use serde_json::json;

use crate::operator::write;
use crate::world::World;

/// The coordinator's port, as the manual names it.
const PORT: u16 = 9047;

/// Prints an engine's key without the headers that only swarm understands.
const PLAIN_KEY: &str = "awk '/^-----/ { print; next } /: / || /^ / || /^$/ { next } { print }' \
                         /var/lib/docker/swarm/certificates/swarm-node.key";

/// Prints an engine's certificate.
const CERTIFICATE: &str = "cat /var/lib/docker/swarm/certificates/swarm-node.crt";

/// What a client shows.
struct Papers {
    certificate: String,
    key: String,
}

impl Papers {
    /// Those of a node.
    fn of(node: &Node) -> Result<Self> {
        Ok(Self { certificate: node.sh(CERTIFICATE)?.stdout, key: node.sh(PLAIN_KEY)?.stdout })
    }

    /// Looks like a node's, and is signed by nobody else.
    fn self_signed(node: &str, cluster: &str) -> Result<Self> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(vec!["swarm-manager".to_owned(), node.to_owned()])?;
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, node);
        params.distinguished_name.push(DnType::OrganizationalUnitName, "swarm-manager");
        params.distinguished_name.push(DnType::OrganizationName, cluster);
        let certificate = params.self_signed(&key)?;
        Ok(Self { certificate: certificate.pem(), key: key.serialize_pem() })
    }
}

/// Posts a report about `about` from `client`; the HTTP status, or 0 if there was no answer, and what curl said.
fn report(client: &Node, server: &Node, papers: Option<&Papers>, about: &str) -> Result<(u32, String)> {
    let url = format!("https://{}:{PORT}/v1/report", server.ip());
    let body = json!({
        "node": about, "agent_version": "0", "speaker": "task", "boot_id": "none",
        "engine": null, "state": { "state": "idle" }, "seen": null,
    });
    let body = body.to_string();
    let mut args = vec!["curl", "--silent", "--show-error", "--insecure", "--max-time", "20"];
    args.extend(["--write-out", "\n%{http_code}", "--header", "requeen-protocol: 1"]);
    args.extend(["--header", "content-type: application/json", "--data", &body]);
    if let Some(papers) = papers {
        write(client, "/tmp/stranger.crt", papers.certificate.as_bytes())?;
        write(client, "/tmp/stranger.key", papers.key.as_bytes())?;
        args.extend(["--cert", "/tmp/stranger.crt", "--key", "/tmp/stranger.key"]);
    }
    args.push(&url);
    let output = client.exec(&args)?;
    client.sh("rm -f /tmp/stranger.crt /tmp/stranger.key")?;
    let status = output.stdout.lines().last().and_then(|line| line.parse().ok()).unwrap_or_default();
    Ok((status, format!("{}{}", output.stdout, output.stderr)))
}

pub(crate) fn strangers_are_refused(world: &World) -> Result<()> {
    let large = world.large()?;
    let small = world.small()?;
    let (server, worker) = (large.first()?, large.lab().node("w1")?);
    let (own, other) = (worker.node_id()?, large.lab().node("w2")?.node_id()?);
    let cluster = server.docker(&["info", "--format", "{{.Swarm.Cluster.ID}}"])?;

    // First the one that is let in: else the rest would prove nothing.
    let papers = Papers::of(worker)?;
    let (status, said) = report(worker, server, Some(&papers), &own)?;
    ensure!(status == 200, "a node that reports about itself: {said}");

    let (status, said) = report(worker, server, Some(&papers), &other)?;
    ensure!(status == 403, "a node that reports about another: {said}");
    ensure!(said.contains(&other), "the refusal names nobody: {said}");

    let (status, said) = report(worker, server, None, &own)?;
    ensure!(status == 0, "a client without a certificate: {said}");

    let forged = Papers::self_signed(&server.node_id()?, cluster.trimmed())?;
    let (status, said) = report(worker, server, Some(&forged), &own)?;
    ensure!(status == 0, "a client with a certificate of its own making: {said}");

    let foreign = Papers::of(small.first()?)?;
    let (status, said) = report(worker, server, Some(&foreign), &small.first()?.node_id()?)?;
    ensure!(status == 0 || status == 403, "a manager of another swarm: {said}");
    Ok(())
}
