//! Services behind IPVS: one address for all tasks of a service, and a port that every node publishes. Both are asked
//! without a pause while workers are upgraded, on machines, since the containers' kernel has no IPVS.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use jiff::{SignedDuration, Timestamp};
use lab::images::repository;
use lab::rig::Rig;
use lab::{Init, Kind, Node, Spec, Suite, product, wait};
use serde_json::Value;

use crate::large::wait_for_services;
use crate::operator::{requeen, requeen_ok, status};
use crate::world::{World, bundle};

/// The swarm's name.
pub(crate) const NAME: &str = "e2e-v";

/// The stack of the connectivity test, and its service of servers.
const STACK: &str = "probe";
const SERVERS: &str = "probe_server";

/// The port that every node publishes.
const PORT: u16 = 8080;

/// Who is upgraded.
const WORKERS: &str = "w1,w2";

/// How long clients may take to their first answers, and to their last words.
const LIMIT: Duration = Duration::from_secs(120);

/// So many answers tell that a client asks.
const ANSWERS: u64 = 20;

/// Two workers are upgraded while the service's one address, and the port that it publishes on every node, are asked. Nothing
/// fails but what asks the very node that is in work.
pub(crate) fn vip_and_ingress_are_served_throughout(world: &World) -> Result<()> {
    world.image()?;
    let spec = Spec {
        name: NAME.to_owned(),
        managers: 3,
        workers: 2,
        suite: Suite::Bookworm,
        kind: Kind::Machine,
        init: Init::Systemd,
    };
    let rig = Rig::without_load(&spec, &bundle(Suite::Trixie)?)?;
    let first = rig.first()?;
    let stack = repository().join("compose/probe.yaml");
    product::deploy_stack_with(first, &["PROBE_ENDPOINT_MODE=vip"], &stack, STACK)?;
    let publish = format!("published={PORT},target={PORT}");
    first.docker(&["service", "update", "--detach", "--publish-add", &publish, SERVERS])?;
    wait_for_services(first)?;

    let clients: Vec<Client<'_>> =
        rig.lab().nodes().iter().map(|node| Client::start(first, node)).collect::<Result<_>>()?;
    clients.iter().try_for_each(Client::wait_until_it_asks)?;
    let upgraded = requeen(first, &["upgrade", "--bundle", rig.bundle(), "--only", WORKERS])?;
    let shown = status(first)?;
    let seen: Vec<Seen> = clients.iter().map(Client::finish).collect::<Result<_>>()?;
    ensure!(upgraded.success(), "exit {}", upgraded.status);

    let ingress = judge_ingress(&shown, &seen);
    let report = requeen_ok(first, &["probe", "report", "--json"])?;
    let report: Value = serde_json::from_str(&report.stdout).context("the probe's report")?;
    let count = |name: &str| report[name].as_u64().unwrap_or_default();
    let (requests, failed) = (count("requests_total"), count("failed_total"));
    eprintln!("by the service's address: {failed} of {requests} requests failed");
    ingress?;
    ensure!(requests > ANSWERS, "only {requests} requests by the service's address");
    ensure!(failed == 0, "{failed} of {requests} requests failed: {report:#}");
    Ok(())
}

/// A client on a manager that asks the published port by one node's address.
struct Client<'a> {
    on: &'a Node,
    /// The node whose address it asks.
    of: &'a Node,
    pid: String,
}

/// What a client saw.
struct Seen {
    of: String,
    requests: u64,
    failures: Vec<(Timestamp, SignedDuration, String)>,
}

impl<'a> Client<'a> {
    fn start(on: &'a Node, of: &'a Node) -> Result<Self> {
        let (log, target) = (Self::log(of), format!("http://{}:{PORT}/", of.ip()));
        let ask = format!("requeen probe client --target {target} --concurrency 1 --name {of}");
        let pid = on.sh(&format!("nohup {ask} > {log} 2>&1 < /dev/null & echo $!"))?.trimmed().to_owned();
        Ok(Self { on, of, pid })
    }

    fn log(of: &Node) -> String {
        format!("/run/probe-of-{of}.log")
    }

    fn lines(&self) -> lab::Result<Vec<Value>> {
        let text = self.on.sh(&format!("cat {}", Self::log(self.of)))?.stdout;
        Ok(text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect())
    }

    fn wait_until_it_asks(&self) -> Result<()> {
        let waited = wait::until_true(&format!("answers by the address of {}", self.of), LIMIT, || {
            let lines = self.lines()?;
            let last = lines.last().cloned().unwrap_or_default();
            let asks = last["requests_total"].as_u64().is_some_and(|requests| requests > ANSWERS);
            Ok(if asks { Ok(()) } else { Err(last.to_string()) })
        });
        Ok(waited?)
    }

    /// Ends it, and tells what it saw.
    fn finish(&self) -> Result<Seen> {
        self.on.sh(&format!("kill -TERM {}", self.pid))?;
        wait::until_true(&format!("the last word of the client of {}", self.of), LIMIT, || {
            let last = self.lines()?.last().cloned().unwrap_or_default();
            Ok(if last["last"] == true { Ok(()) } else { Err(last.to_string()) })
        })?;
        let lines = self.lines()?;
        let requests = lines.last().and_then(|last| last["requests_total"].as_u64()).context("no count")?;
        let failure = |line: &Value| -> Result<_> {
            let took = SignedDuration::from_millis(line["took_ms"].as_i64().unwrap_or_default());
            let at: Timestamp = line["time"].as_str().context("no time")?.parse()?;
            Ok((at, took, line["error"].as_str().unwrap_or_default().to_owned()))
        };
        let failures = lines.iter().filter(|line| line["event"] == "failure").map(failure).collect::<Result<_>>()?;
        Ok(Seen { of: self.of.name().to_owned(), requests, failures })
    }
}

/// Insists that whoever asked another node than the one in work was answered.
fn judge_ingress(status: &Value, seen: &[Seen]) -> Result<()> {
    let mut wrong = Vec::new();
    for Seen { of, requests, failures } in seen {
        let in_work = in_work(status, of)?;
        let meets = |(at, took, _): &&(Timestamp, SignedDuration, String)| {
            in_work.is_some_and(|(from, to)| *at <= to && at.checked_add(*took).is_ok_and(|end| from <= end))
        };
        let own = failures.iter().filter(meets).count();
        let others: Vec<_> = failures.iter().filter(|failure| !meets(failure)).collect();
        eprintln!(
            "by the address of {of}: {} of {requests} requests failed while it was not in work, {own} while it was",
            others.len()
        );
        ensure!(*requests > ANSWERS, "only {requests} requests by the address of {of}");
        wrong.extend(others.iter().map(|(at, took, error)| format!("{of} at {at}, {took:#}: {error}")));
    }
    ensure!(wrong.is_empty(), "{} requests failed:\n{}", wrong.len(), wrong.join("\n"));
    Ok(())
}

/// When a node was in work, if it was: from its lease to its end.
fn in_work(status: &Value, name: &str) -> Result<Option<(Timestamp, Timestamp)>> {
    let started: Timestamp =
        status.pointer("/rollout/started_at").and_then(Value::as_str).context("no rollout")?.parse()?;
    let node = status["nodes"].as_array().into_iter().flatten().find(|node| node["hostname"] == name);
    let times: Vec<(String, u64)> = serde_json::from_value(node.context("no such node")?["times"].clone())?;
    let at = |ms: u64| Ok::<_, anyhow::Error>(started.checked_add(SignedDuration::from_millis(i64::try_from(ms)?))?);
    let granted = times.iter().find(|(step, _)| step == "granted");
    match (granted, times.last()) {
        (Some((_, from)), Some((_, to))) => Ok(Some((at(*from)?, at(*to)?))),
        (Some(_) | None, _) => Ok(None),
    }
}
