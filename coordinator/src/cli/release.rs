//! `release`: the operator's word that a silent node's slot is free.

use super::args;
use super::duration::rough;
use super::error::CliError;
use super::{Context, Exit};
use crate::api::{ReleaseArgs, ReleaseView};

pub(crate) async fn run(context: &Context, args: args::Release) -> Result<Exit, CliError> {
    let printer = &context.printer;
    let question = |at| ReleaseArgs { node: args.node.clone(), at };
    let view: ReleaseView = context.client.post("/release", &question(None)).await?;
    for line in facts(&view) {
        // For a script the answer is the data, and these are words for whoever is asked.
        if context.json { printer.note(line) } else { printer.out(line)? }
    }
    let node = &view.hostname;
    if !args.yes && !printer.confirm(&format!("free the slot of {node}?"))? {
        return Err(CliError::Unconfirmed { what: format!("{node} keeps its slot") });
    }
    let view: ReleaseView = context.client.post("/release", &question(Some(view.step.clone()))).await?;
    if context.json {
        printer.json_pretty(&view)?;
    } else {
        printer.out(format_args!("{node} is released: rollout {} goes on without it", view.rollout))?;
        printer.hint(&view.hint);
    }
    Ok(Exit::Done)
}

/// What is known of the node, and what it means.
fn facts(view: &ReleaseView) -> Vec<String> {
    let before = view.before.map(|before| format!(" ({before} before)")).unwrap_or_default();
    let (availability, seen) = match &view.swarm {
        Some(node) => {
            let ready = if node.ready { "ready" } else { "down" };
            let reachable = match node.reachable {
                Some(true) => ", reachable for the other managers",
                Some(false) => ", out of the other managers' reach",
                None => "",
            };
            (format!("{}{before}", node.availability), format!("{ready}{reachable}"))
        }
        None => (format!("-{before}"), "not there any more: it has left the swarm".to_owned()),
    };
    let agent = match (view.silent_secs, &view.said) {
        (Some(secs), Some(said)) => format!("silent for {}; its last word: {said}", rough(secs * 1000)),
        (Some(_), None) | (None, _) => "not heard since this coordinator runs".to_owned(),
    };
    let mut lines = vec![
        format!("{} holds a slot of rollout {}", view.hostname, view.rollout),
        format!("  role:          {}", view.role),
        format!("  availability:  {availability}"),
        format!("  in the swarm:  {seen}"),
        format!("  step:          {}, for {}", view.step, rough(view.since_ms)),
        format!("  agent:         {agent}"),
        "what it means to free its slot:".to_owned(),
    ];
    lines.extend(view.meaning.iter().map(|words| format!("  - {words}")));
    lines
}

#[cfg(test)]
mod tests {
    use requeen_protocol::RolloutId;

    use super::*;
    use crate::api::SeenNode;
    use crate::plan::model::{Availability, Role};

    fn view() -> ReleaseView {
        ReleaseView {
            rollout: RolloutId::from("20261121-0a1b2c3d"),
            id: "id-m2".into(),
            hostname: "m2".into(),
            role: Role::Manager,
            swarm: Some(SeenNode { availability: Availability::Drain, ready: false, reachable: Some(false) }),
            before: Some(Availability::Active),
            step: "swapping".into(),
            since_ms: 372_000,
            agent: None,
            said: Some("engine stopping".into()),
            silent_secs: Some(365),
            meaning: vec!["the permit was given".into(), "it counts as failed".into()],
            hint: "look at it".into(),
            released: false,
        }
    }

    #[test]
    fn facts_look_like_this() {
        insta::assert_snapshot!(facts(&view()).join("\n"), @"
        m2 holds a slot of rollout 20261121-0a1b2c3d
          role:          manager
          availability:  drain (active before)
          in the swarm:  down, out of the other managers' reach
          step:          swapping, for 6m12s
          agent:         silent for 6m05s; its last word: engine stopping
        what it means to free its slot:
          - the permit was given
          - it counts as failed
        ");
    }

    #[test]
    fn what_is_not_known_is_said() {
        let gone = ReleaseView { swarm: None, said: None, silent_secs: None, ..view() };
        let facts = facts(&gone);
        assert_eq!(facts[2], "  availability:  - (active before)");
        assert_eq!(facts[3], "  in the swarm:  not there any more: it has left the swarm");
        assert_eq!(facts[5], "  agent:         not heard since this coordinator runs");
    }
}
