//! `pause`, `resume`, `abort` and `take-over`: one word to the server each, answered by where everything stands.

use super::error::CliError;
use super::{Context, Exit, status};
use crate::api::StatusView;

pub(crate) async fn pause(context: &Context) -> Result<Exit, CliError> {
    say(context, "/pause", "paused: nodes in work finish, no other begins; `requeen resume` goes on").await
}

pub(crate) async fn resume(context: &Context) -> Result<Exit, CliError> {
    say(context, "/resume", "the rollout goes on; `requeen status --watch` follows it").await
}

/// What the operator should know of the time limit after a word: that it counts no more.
fn lifted(status: &StatusView) -> Option<String> {
    let limit = status.rollout.as_ref()?.limit.as_ref().filter(|limit| limit.lifted)?;
    Some(format!("note: the time limit, not after {}, is lifted", limit.not_after))
}

pub(crate) async fn abort(context: &Context) -> Result<Exit, CliError> {
    say(
        context,
        "/abort",
        "aborting: nodes in work finish, drained ones get their availability back; `requeen status --watch` follows it",
    )
    .await
}

pub(crate) async fn take_over(context: &Context) -> Result<Exit, CliError> {
    say(
        context,
        "/take-over",
        "this manager drives the rollout now; the coordinator that drove it, if it lives, stands by",
    )
    .await
}

async fn say(context: &Context, path: &str, words: &str) -> Result<Exit, CliError> {
    let answer: StatusView = context.client.post(path, &serde_json::json!({})).await?;
    status::show(context, &answer)?;
    if !context.json {
        if let Some(lifted) = lifted(&answer).filter(|_| path == "/resume") {
            context.printer.note(lifted);
        }
        context.printer.hint(words);
    }
    Ok(Exit::Done)
}
