//! Nodes, tasks and events as an engine's API gives them. Parsers only.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail};
use jiff::Timestamp;
use serde_json::Value;

use super::{Availability, Change, Life, ManagerSeen, NodeSeen, Sample, TaskSeen};

/// Reads the answers of `/nodes` and `/tasks`.
pub fn sample(at: Timestamp, nodes: &str, tasks: &str) -> Result<Sample> {
    let (names, nodes) = self::nodes(nodes)?;
    let list: Vec<Value> = serde_json::from_str(tasks).with_context(|| format!("no list of tasks: {tasks}"))?;
    let tasks = list.iter().map(|task| self::task(task, &names)).collect::<Result<_>>()?;
    Ok(Sample { at, nodes, tasks })
}

/// Host names by node ID, and nodes by host name.
type Nodes = (BTreeMap<String, String>, BTreeMap<String, NodeSeen>);

fn nodes(text: &str) -> Result<Nodes> {
    let list: Vec<Value> = serde_json::from_str(text).with_context(|| format!("no list of nodes: {text}"))?;
    let (mut names, mut nodes) = Nodes::default();
    for node in &list {
        let name = text_at(node, "/Description/Hostname")?.to_owned();
        names.insert(text_at(node, "/ID")?.to_owned(), name.clone());
        let labels = node.pointer("/Spec/Labels").and_then(Value::as_object);
        let labels =
            labels.into_iter().flatten().filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned())));
        let manager = node.get("ManagerStatus").filter(|status| !status.is_null());
        let seen = NodeSeen {
            id: text_at(node, "/ID")?.to_owned(),
            availability: availability(text_at(node, "/Spec/Availability")?)?,
            ready: text_at(node, "/Status/State")? == "ready",
            manager: manager.map(|status| ManagerSeen {
                leader: status.get("Leader").and_then(Value::as_bool).unwrap_or_default(),
                reachable: status.get("Reachability").and_then(Value::as_str) == Some("reachable"),
            }),
            engine: text_at(node, "/Description/Engine/EngineVersion")?.to_owned(),
            labels: labels.collect(),
        };
        nodes.insert(name, seen);
    }
    Ok((names, nodes))
}

fn task(task: &Value, names: &BTreeMap<String, String>) -> Result<TaskSeen> {
    let node = task.get("NodeID").and_then(Value::as_str).filter(|id| !id.is_empty());
    let life = match text_at(task, "/Status/State")? {
        "new" | "allocated" | "pending" => Life::Unborn,
        "assigned" | "accepted" | "preparing" | "ready" | "starting" => Life::Starting,
        "running" => Life::Running,
        "complete" | "shutdown" | "failed" | "rejected" | "orphaned" | "remove" => Life::Over,
        other => bail!("a task has the state {other:?}"),
    };
    Ok(TaskSeen {
        id: text_at(task, "/ID")?.to_owned(),
        service: text_at(task, "/ServiceID")?.to_owned(),
        node: node.and_then(|id| names.get(id)).cloned(),
        life,
        since: text_at(task, "/Status/Timestamp")?.parse()?,
    })
}

/// Reads one line of `docker events --format '{{json .}}'`; nothing if it is no change of availability. It names the node
/// by its ID.
pub fn change(line: &str) -> Result<Option<Change>> {
    let event: Value = serde_json::from_str(line).with_context(|| format!("no event: {line}"))?;
    let Some(to) = event.pointer("/Actor/Attributes/availability.new").and_then(Value::as_str) else { return Ok(None) };
    let nanos = event.get("timeNano").and_then(Value::as_i64).context("an event has no time")?;
    let at = Timestamp::from_nanosecond(i128::from(nanos))?;
    Ok(Some(Change { at, node: text_at(&event, "/Actor/ID")?.to_owned(), to: availability(to)? }))
}

fn availability(text: &str) -> Result<Availability> {
    Ok(match text {
        "active" => Availability::Active,
        "pause" => Availability::Pause,
        "drain" => Availability::Drain,
        other => bail!("a node has the availability {other:?}"),
    })
}

fn text_at<'a>(value: &'a Value, pointer: &str) -> Result<&'a str> {
    value.pointer(pointer).and_then(Value::as_str).with_context(|| format!("{pointer} is missing in {value}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NODES: &str = r#"[
        {"ID":"i1","Spec":{"Labels":{"rack":"a"},"Role":"manager","Availability":"drain"},
         "Description":{"Hostname":"m1","Engine":{"EngineVersion":"20.10.24"}},
         "Status":{"State":"ready"},"ManagerStatus":{"Leader":true,"Reachability":"reachable"}},
        {"ID":"i2","Spec":{"Labels":{},"Role":"worker","Availability":"active"},
         "Description":{"Hostname":"w1","Engine":{"EngineVersion":"20.10.24"}},"Status":{"State":"down"}}]"#;

    #[test]
    fn nodes_and_tasks_are_read() {
        let tasks = r#"[{"ID":"t","ServiceID":"s","NodeID":"i2",
            "Status":{"Timestamp":"2026-11-21T10:00:00.5Z","State":"starting"}},
            {"ID":"u","ServiceID":"s","Status":{"Timestamp":"2026-11-21T10:00:00Z","State":"pending"}}]"#;
        let sample = sample(Timestamp::UNIX_EPOCH, NODES, tasks).expect("good answers");
        let m1 = &sample.nodes["m1"];
        assert_eq!(m1.availability, Availability::Drain);
        assert_eq!(m1.manager, Some(ManagerSeen { leader: true, reachable: true }));
        assert_eq!(m1.labels["rack"], "a");
        assert!(!sample.nodes["w1"].ready && sample.nodes["w1"].manager.is_none());
        assert_eq!(sample.tasks[0].node.as_deref(), Some("w1"));
        assert!(sample.tasks[0].life.is_alive() && !sample.tasks[1].life.is_alive());
        assert_eq!(sample.tasks[1].node, None);
    }

    #[test]
    fn what_is_no_list_is_an_error() {
        assert!(sample(Timestamp::UNIX_EPOCH, r#"{"message":"no leader"}"#, "[]").is_err());
        assert!(sample(Timestamp::UNIX_EPOCH, NODES, "").is_err());
    }

    #[test]
    fn only_availability_is_taken_from_events() {
        let drained = r#"{"Type":"node","Action":"update","Actor":{"ID":"i2","Attributes":{"availability.new":"drain",
            "availability.old":"active","name":"w1"}},"scope":"swarm","time":1795255200,"timeNano":1795255200123456789}"#;
        let change = super::change(drained).expect("an event").expect("of availability");
        assert_eq!((change.node.as_str(), change.to), ("i2", Availability::Drain));
        assert_eq!(change.at.as_nanosecond(), 1_795_255_200_123_456_789);
        let ready = r#"{"Actor":{"ID":"i2","Attributes":{"name":"w1","state.new":"ready"}},"timeNano":1}"#;
        assert_eq!(super::change(ready).expect("an event"), None);
    }
}
