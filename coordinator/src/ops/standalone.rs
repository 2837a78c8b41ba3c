//! What an operator is told of containers that are no swarm tasks: draining does not move them. Pure.

use requeen_protocol::{Fate, Preflight};

/// A line for each thing that becomes of them on one node.
pub(super) fn notes(found: &Preflight) -> Vec<String> {
    if found.containers.is_empty() && !found.standalone.is_empty() {
        // An agent of a version that did not say what becomes of them.
        return vec![format!(
            "containers that are no swarm tasks stop with the engine: {}",
            found.standalone.join(", ")
        )];
    }
    let mut notes: Vec<String> = Fate::ALL
        .into_iter()
        .filter_map(|fate| {
            let of = found.containers.iter().filter(|container| container.fate == fate);
            let names: Vec<&str> = of.map(|container| container.name.as_str()).collect();
            (!names.is_empty()).then(|| format!("{}: {}", words(fate), names.join(", ")))
        })
        .collect();
    if found.containers_more > 0 {
        notes.push(format!("{} more containers are no swarm tasks", found.containers_more));
    }
    notes
}

fn words(fate: Fate) -> &'static str {
    match fate {
        Fate::WithEngine => "containers that are no swarm tasks stop and start with the engine",
        Fate::StartedAgain => "containers that are no swarm tasks are stopped before the engine and started after it",
        Fate::PausedAgain => {
            "paused containers end, are started after the engine and paused again; what is in their memory is lost"
        }
        Fate::Lost => "containers that were started with --rm are gone once they are stopped",
    }
}

#[cfg(test)]
mod tests {
    use requeen_protocol::{Digest, Standalone};

    use super::*;

    fn found(containers: &[(&str, Fate)], more: u32) -> Preflight {
        let named = |(name, fate): &(&str, Fate)| Standalone { name: (*name).to_owned(), fate: *fate };
        Preflight {
            from: "26.1.4".to_owned(),
            to: "26.1.5".to_owned(),
            set: Digest::from_hex(&"0".repeat(64)).unwrap(),
            changes: vec![],
            standalone: containers.iter().map(|(name, _)| (*name).to_owned()).collect(),
            containers: containers.iter().map(named).collect(),
            containers_more: more,
            raft_copy_bytes: None,
            notes: vec![],
        }
    }

    #[test]
    fn each_fate_has_its_line_and_its_names() {
        let containers = [
            ("web", Fate::StartedAgain),
            ("requeen", Fate::WithEngine),
            ("db", Fate::StartedAgain),
            ("job", Fate::Lost),
        ];
        insta::assert_snapshot!(notes(&found(&containers, 3)).join("\n"), @r"
        containers that are no swarm tasks stop and start with the engine: requeen
        containers that are no swarm tasks are stopped before the engine and started after it: web, db
        containers that were started with --rm are gone once they are stopped: job
        3 more containers are no swarm tasks
        ");
        assert_eq!(notes(&found(&[], 0)), Vec::<String>::new());
        let older = Preflight { standalone: vec!["db".to_owned()], ..found(&[], 0) };
        assert_eq!(notes(&older), ["containers that are no swarm tasks stop with the engine: db"]);
    }
}
