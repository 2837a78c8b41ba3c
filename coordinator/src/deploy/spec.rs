//! What the agents' service looks like: as the engine takes it, and as people would type it.

use bollard::models::ServiceSpec;
use requeen_protocol::DEFAULT_PORT;
use serde_json::{Value, json};

/// Name of the service, and of a container that is started by hand in its place.
pub(crate) const NAME: &str = "requeen-agent";

/// Label of the service.
pub(crate) const LABEL: &str = "io.requeen.agent";

const SECOND: u64 = 1_000_000_000;
/// What is read and written while a node stages counts as the agent's; with less the disk is waited for.
const MEMORY: u64 = 1 << 30;

/// What no flag of `docker service create` can say.
pub(crate) const BEYOND: &str =
    "SELinux label-disable: TaskTemplate.ContainerSpec.Privileges.SELinuxContext.Disable = true";

fn args(port: u16) -> Vec<String> {
    let mut args = vec!["agent".to_owned()];
    if port != DEFAULT_PORT {
        args.extend(["--port".to_owned(), port.to_string()]);
    }
    args
}

/// The service. What `old` has that an update must not lose is taken over.
pub(crate) fn service(
    image: &str,
    port: u16,
    version: &str,
    old: Option<&ServiceSpec>,
) -> Result<ServiceSpec, serde_json::Error> {
    let mut spec: ServiceSpec = serde_json::from_value(json!({
        "Name": NAME,
        "Labels": { LABEL: version },
        "TaskTemplate": {
            "ContainerSpec": {
                "Image": image,
                "Args": args(port),
                "Mounts": [{ "Type": "bind", "Source": "/", "Target": "/host" }],
                "Privileges": { "SELinuxContext": { "Disable": true } },
                "StopGracePeriod": 10 * SECOND,
            },
            "Resources": { "Limits": { "MemoryBytes": MEMORY, "NanoCPUs": SECOND } },
            "RestartPolicy": { "Condition": "any", "Delay": 5 * SECOND },
            "Networks": [{ "Target": "host" }],
            "LogDriver": { "Name": "json-file", "Options": { "max-size": "10m", "max-file": "3" } },
            // Never without one: engines before 29.7 panic on a specification without a placement that
            // follows one that had it.
            "Placement": {},
        },
        "Mode": { "Global": {} },
        // All at once: no service's user ever talks to an agent.
        "UpdateConfig": { "Parallelism": 0, "FailureAction": "continue", "Order": "stop-first" },
    }))?;
    let Some(old) = old else { return Ok(spec) };
    if let Some(labels) = &old.labels {
        let ours = spec.labels.take().unwrap_or_default();
        spec.labels = Some(labels.clone().into_iter().chain(ours).collect());
    }
    if let (Some(new), Some(old)) = (&mut spec.task_template, &old.task_template) {
        // The operator's constraints stay, and a forced update is not asked for again.
        new.placement = old.placement.clone().or(new.placement.take());
        new.force_update = old.force_update;
    }
    Ok(spec)
}

/// Whether the service has everything already that `new` says. What the engine added by itself is no
/// difference.
pub(crate) fn has_all(current: &ServiceSpec, new: &ServiceSpec) -> Result<bool, serde_json::Error> {
    Ok(contains(&serde_json::to_value(current)?, &serde_json::to_value(new)?))
}

fn contains(current: &Value, new: &Value) -> bool {
    match (current, new) {
        // Networks by name have become IDs.
        (Value::Object(current), Value::Object(new)) => new.iter().all(|(key, value)| {
            key == "Networks" || current.get(key).map_or_else(|| is_empty(value), |current| contains(current, value))
        }),
        (Value::Array(current), Value::Array(new)) => {
            current.len() == new.len() && current.iter().zip(new).all(|(current, new)| contains(current, new))
        }
        (current, new) => current == new,
    }
}

/// Engines leave out what is zero.
fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(value) => !value,
        Value::Number(value) => value.as_f64() == Some(0.0),
        Value::String(value) => value.is_empty(),
        Value::Array(value) => value.is_empty(),
        Value::Object(value) => value.is_empty(),
    }
}

/// The `docker service create` that comes closest.
pub(crate) fn command(image: &str, port: u16, version: &str) -> String {
    let args = args(port).join(" ");
    [
        format!("docker service create --name {NAME} --label {LABEL}={version} --mode global --network host"),
        "--mount type=bind,source=/,target=/host".to_owned(),
        "--limit-memory 1G --limit-cpu 1 --restart-condition any --restart-delay 5s --stop-grace-period 10s".to_owned(),
        "--log-driver json-file --log-opt max-size=10m --log-opt max-file=3".to_owned(),
        "--update-parallelism 0 --update-failure-action continue".to_owned(),
        format!("--no-resolve-image {image} {args}"),
    ]
    .join(" \\\n  ")
}

/// What starts an agent on a node that swarm gives no task of a global service.
pub(crate) fn by_hand(image: &str, port: u16) -> String {
    let args = args(port).join(" ");
    format!(
        "docker run -d --name {NAME} --restart always --network host --security-opt label=disable -v /:/host {image} {args}"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(port: u16, old: Option<&ServiceSpec>) -> Value {
        serde_json::to_value(service("requeen@sha256:1", port, "1.0", old).unwrap()).unwrap()
    }

    #[test]
    fn the_service_says_everything() {
        let spec = spec(DEFAULT_PORT, None);
        assert_eq!(spec["Mode"], json!({ "Global": {} }));
        let task = &spec["TaskTemplate"];
        let container = &task["ContainerSpec"];
        assert_eq!(container["Args"], json!(["agent"]));
        assert_eq!(container["Image"], "requeen@sha256:1");
        assert_eq!(container["Privileges"]["SELinuxContext"]["Disable"], true);
        assert_eq!(container["Mounts"], json!([{ "Type": "bind", "Source": "/", "Target": "/host" }]));
        assert_eq!(container["StopGracePeriod"], 10 * SECOND);
        assert_eq!(task["Networks"], json!([{ "Target": "host" }]));
        assert_eq!(task["Resources"]["Limits"]["MemoryBytes"], 1024 * 1024 * 1024);
        assert_eq!(task["LogDriver"]["Options"]["max-size"], "10m");
        assert_eq!(task["RestartPolicy"]["Condition"], "any");
        assert_eq!(task["Placement"], json!({}), "never left out");
        assert_eq!(spec["UpdateConfig"]["Parallelism"], 0);
    }

    #[test]
    fn another_port_reaches_the_agents_both_ways() {
        assert_eq!(spec(9999, None)["TaskTemplate"]["ContainerSpec"]["Args"], json!(["agent", "--port", "9999"]));
        assert!(command("i", 9999, "1").ends_with(" i agent --port 9999"));
        assert!(by_hand("i", 9999).ends_with(" -v /:/host i agent --port 9999"));
        assert!(by_hand("i", DEFAULT_PORT).ends_with(" -v /:/host i agent"));
    }

    #[test]
    fn an_update_keeps_what_operators_added() {
        let old: ServiceSpec = serde_json::from_value(json!({
            "Name": NAME,
            "Labels": { "theirs": "x", LABEL: "0.9" },
            "TaskTemplate": { "Placement": { "Constraints": ["node.platform.os==linux"] }, "ForceUpdate": 3 },
        }))
        .unwrap();
        let spec = spec(DEFAULT_PORT, Some(&old));
        assert_eq!(spec["Labels"], json!({ "theirs": "x", LABEL: "1.0" }));
        assert_eq!(spec["TaskTemplate"]["Placement"]["Constraints"], json!(["node.platform.os==linux"]));
        assert_eq!(spec["TaskTemplate"]["ForceUpdate"], 3);
    }

    #[test]
    fn what_the_engine_adds_is_no_difference() {
        let new = service("requeen@sha256:1", DEFAULT_PORT, "1.0", None).unwrap();
        let mut current = serde_json::to_value(&new).unwrap();
        current["EndpointSpec"] = json!({ "Mode": "vip" });
        current["TaskTemplate"]["Networks"] = json!([{ "Target": "abcdef" }]);
        current["TaskTemplate"]["ContainerSpec"]["Isolation"] = json!("default");
        current["UpdateConfig"].as_object_mut().unwrap().remove("Parallelism");
        let same: ServiceSpec = serde_json::from_value(current.clone()).unwrap();
        assert!(has_all(&same, &new).unwrap());

        current["TaskTemplate"]["ContainerSpec"]["Image"] = json!("requeen@sha256:2");
        let other: ServiceSpec = serde_json::from_value(current).unwrap();
        assert!(!has_all(&other, &new).unwrap());
    }
}
