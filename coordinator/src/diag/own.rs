//! What the coordinator adds: the swarm's own word on what concerns Requeen, and what this server remembers.
//! Each thing is asked for by itself and for a bounded time; one that can't be had is a line in the manifest.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use futures_util::future::join_all;
use requeen_protocol::{PROTOCOL_VERSION, redact};
use serde_json::{Value, json};

use crate::api::StatusView;
use crate::deploy::{self, container_id};
use crate::hub::Hub;
use crate::observe::Engine;
use crate::probe::PROBE_LABEL;
use crate::record;
use crate::server::words::chain;

/// How long the engine may take for each answer: without a leader it takes its time.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);

/// The folder's files, their secrets taken out, and what is missing.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Own {
    pub(crate) files: BTreeMap<String, String>,
    pub(crate) missing: Vec<String>,
}

impl Own {
    fn json(&mut self, name: &str, mut value: Value) {
        redact::json(&mut value);
        self.files.insert(name.to_owned(), format!("{value:#}\n"));
    }

    fn missing(&mut self, name: &str, why: &str) {
        let why = redact::text(why);
        let words: Vec<&str> = why.split_whitespace().collect();
        self.missing.push(format!("{name}: {}", words.join(" ")));
    }
}

/// What this server knows without asking anybody.
pub(super) fn remembered(status: Result<&StatusView, &str>, hub: &Hub, log: &str, version: &str) -> Own {
    let mut own = Own::default();
    own.json("version.json", json!({ "version": version, "protocol": PROTOCOL_VERSION }));
    match status.map(serde_json::to_value) {
        Ok(Ok(status)) => own.json("status.json", status),
        Ok(Err(error)) => own.missing("status.json", &error.to_string()),
        Err(why) => own.missing("status.json", why),
    }
    let said = |(node, agent): (requeen_protocol::NodeId, crate::plan::model::AgentView)| {
        let report = serde_json::to_value(&agent.report).unwrap_or_default();
        let words = json!({ "silent_secs": agent.silent_secs, "state_secs": agent.state_secs, "report": report });
        (node.0, words)
    };
    own.json("agents.json", Value::Object(hub.agents().into_iter().map(said).collect()));
    own.files.insert("log.txt".to_owned(), redact::text(log));
    own
}

/// What the engine of this manager knows of Requeen.
pub(super) async fn asked(own: &mut Own, engine: &Engine, proc_self: &Path) {
    let agents = deploy::NAME;
    let mut questions = vec![
        ("records.json", format!("/configs?{}", filter("name", record::PREFIX))),
        ("nodes.json", "/nodes".to_owned()),
        ("agent-service.json", format!("/services?{}", filter("name", agents))),
        ("agent-tasks.json", format!("/tasks?{}", filter("service", agents))),
        ("probe-services.json", format!("/services?{}", filter("label", PROBE_LABEL))),
    ];
    match container_id(proc_self) {
        Some(id) => questions.push(("container.json", format!("/containers/{id}/json"))),
        None => own.missing("container.json", "this server does not run in a container"),
    }
    let answers = questions.into_iter().map(|(name, path)| async move {
        let answer = match tokio::time::timeout(ANSWER_LIMIT, engine.raw(&path)).await {
            Ok(answer) => answer.map_err(|error| chain(&error)),
            Err(_) => Err(format!("the engine did not answer within {} s", ANSWER_LIMIT.as_secs())),
        };
        (name, answer)
    });
    for (name, answer) in join_all(answers).await {
        match (answer, name) {
            (Ok(configs), "records.json") => own.json(name, records(configs)),
            (Ok(container), "container.json") => own.json(name, container_facts(&container)),
            (Ok(value), _) => own.json(name, value),
            (Err(why), _) => own.missing(name, &why),
        }
    }
}

/// A filter of a list, as part of a query: `{"key":["value"]}`.
fn filter(key: &str, value: &str) -> String {
    format!("filters=%7B%22{key}%22%3A%5B%22{value}%22%5D%7D")
}

/// The rollouts' records among swarm configs: data and labels as the JSON that they hold. Other people's configs
/// may begin with the same word, and are nobody's business.
fn records(configs: Value) -> Value {
    let Value::Array(configs) = configs else { return Value::Null };
    let ours = |config: &Value| config.pointer("/Spec/Labels").is_some_and(|labels| labels.get(record::MARK).is_some());
    configs.into_iter().filter(ours).map(|config| record(&config)).collect()
}

fn record(config: &Value) -> Value {
    let held = |text: &str| serde_json::from_str(text).unwrap_or_else(|_| Value::from(text));
    let data = config.pointer("/Spec/Data").and_then(Value::as_str).and_then(|data| BASE64.decode(data).ok());
    let data = data.map(|data| held(&String::from_utf8_lossy(&data)));
    let labels = config.pointer("/Spec/Labels").and_then(Value::as_object);
    let label = |(key, value): (&String, &Value)| (key.clone(), held(value.as_str().unwrap_or_default()));
    let labels = labels.map(|labels| labels.iter().map(label).collect());
    json!({
        "name": config.pointer("/Spec/Name"),
        "version": config.pointer("/Version/Index"),
        "created": config.get("CreatedAt"),
        "updated": config.get("UpdatedAt"),
        "data": data,
        "labels": Value::Object(labels.unwrap_or_default()),
    })
}

/// What matters of the server's own container; its environment does not.
fn container_facts(container: &Value) -> Value {
    let fields = [
        "/Id",
        "/Name",
        "/Created",
        "/Image",
        "/Path",
        "/Args",
        "/RestartCount",
        "/State",
        "/Mounts",
        "/Config/Image",
        "/HostConfig/Binds",
        "/HostConfig/NetworkMode",
        "/HostConfig/PidMode",
        "/HostConfig/Privileged",
        "/HostConfig/RestartPolicy",
        "/HostConfig/SecurityOpt",
    ];
    let fact = |field: &str| Some((field.trim_start_matches('/').to_owned(), container.pointer(field)?.clone()));
    Value::Object(fields.into_iter().filter_map(fact).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_read_and_others_configs_are_not() {
        let configs = json!([
            {
                "ID": "1", "Version": { "Index": 7 }, "CreatedAt": "then", "UpdatedAt": "now",
                "Spec": {
                    "Name": "requeen-r1", "Data": BASE64.encode(br#"{"schema":1}"#),
                    "Labels": { "io.requeen.phase": "{\"phase\":\"running\"}", "io.requeen.owner": "no json" },
                },
            },
            { "ID": "2", "Spec": { "Name": "requeen-theirs", "Data": BASE64.encode("hidden"), "Labels": {} } },
            { "ID": "3" },
        ]);
        let read = json!([{
            "name": "requeen-r1", "version": 7, "created": "then", "updated": "now", "data": { "schema": 1 },
            "labels": { "io.requeen.phase": { "phase": "running" }, "io.requeen.owner": "no json" },
        }]);
        assert_eq!(records(configs), read);
        assert_eq!(records(json!({"message": "x"})), Value::Null);
    }

    #[test]
    fn a_container_has_no_environment() {
        let facts = container_facts(&json!({
            "Id": "c1", "RestartCount": 2, "Config": { "Image": "requeen", "Env": ["A=hidden"] },
            "HostConfig": { "NetworkMode": "host", "LogConfig": { "Config": { "x": "hidden" } } },
        }));
        assert_eq!(facts["RestartCount"], 2);
        assert_eq!(facts["HostConfig/NetworkMode"], "host");
        assert!(!facts.to_string().contains("hidden"), "{facts}");
    }

    #[test]
    fn what_is_remembered_has_no_secrets() {
        let hub = Hub::default();
        hub.report(requeen_protocol::Report {
            node: "n1".into(),
            agent_version: "1".to_owned(),
            speaker: requeen_protocol::Speaker::Task,
            boot_id: "b".to_owned(),
            engine: None,
            installed: None,
            state: requeen_protocol::NodeState::Stuck {
                rollout: "r1".into(),
                reason: "http://user:hidden@proxy".to_owned(),
                hint: String::new(),
                log: Vec::new(),
            },
            seen: None,
            memo: None,
            unreached: Vec::new(),
            troubles: Vec::new(),
        });
        let own = remembered(Err("no leader"), &hub, "INFO token=hidden\n", "1.2.3");
        assert!(own.files["version.json"].contains("1.2.3"));
        assert!(own.files["agents.json"].contains("[left-out]@proxy"), "{}", own.files["agents.json"]);
        assert_eq!(own.files["log.txt"], "INFO token=[left-out]\n");
        assert_eq!(own.missing, ["status.json: no leader"]);
        assert!(own.files.values().all(|text| !text.contains("hidden")));
    }

    #[tokio::test]
    async fn the_engine_is_asked_and_what_it_lacks_is_noted() {
        let fake = crate::observe::fake::Fake::start(&["m1"], &["w1"]);
        let mut own = Own::default();
        asked(&mut own, &fake.engine(), fake.dir.path()).await;
        assert!(own.files["nodes.json"].contains("host-w1"), "{:?}", own.files.keys());
        assert_eq!(own.files["records.json"], "[]\n");
        assert_eq!(own.missing, ["container.json: this server does not run in a container"]);

        fake.world().leaderless = true;
        let mut own = Own::default();
        asked(&mut own, &fake.engine(), fake.dir.path()).await;
        assert!(own.missing.iter().any(|line| line.starts_with("nodes.json: ") && line.contains("leader")));
    }
}
