//! Following a rollout until it ends, or until the operator has seen enough.

use std::time::Duration;

use requeen_protocol::RolloutId;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::error::{CliError, if_read};
use super::live::Live;
use super::tracker::{Tracker, verdict};
use super::view::{summary_table, total, troubles};
use super::{Context, Exit};
use crate::api::StatusView;
use crate::plan::model::Phase;

/// How often the server is asked.
const EVERY: Duration = Duration::from_millis(300);

/// How long the server may be silent before that is said: it restarts with its own engine.
const PATIENCE: Duration = Duration::from_secs(5);

/// How long the server may be silent before the CLI gives up: a start that is waited for, a
/// switch back, and a margin.
const GIVE_UP: Duration = Duration::from_secs(600);

/// What is followed.
pub(crate) enum What {
    /// The rollout that was just started.
    Rollout(RolloutId),
    /// Whichever is open, or is opened next.
    Any,
}

/// Ctrl-C, which no longer ends the program once this is there.
pub(crate) struct Interrupt(Signal);

impl Interrupt {
    /// From now on.
    pub(crate) fn listen() -> Result<Self, CliError> {
        signal(SignalKind::interrupt()).map(Self).map_err(|source| CliError::Runtime { source })
    }

    async fn pressed(&mut self) {
        self.0.recv().await;
    }
}

/// Shows what happens until the rollout ends; Ctrl-C ends the showing, not the rollout, and so does a reader that
/// leaves.
pub(crate) async fn follow(context: &Context, what: What, mut interrupt: Interrupt) -> Result<Exit, CliError> {
    let mut show = Show::new(context);
    let followed = watch(context, &what, &mut show, &mut interrupt).await;
    show.end();
    let followed = match followed {
        Err(CliError::Closed) => None,
        followed => followed?,
    };
    let Some(status) = followed else {
        if matches!(what, What::Rollout(_)) {
            context.printer.hint("the rollout goes on; `requeen status --watch` follows it again");
        }
        return Ok(Exit::Done);
    };
    summarise(context, &status)
}

/// Looks until there is a verdict: the status that has it, or nothing after Ctrl-C.
async fn watch(
    context: &Context,
    what: &What,
    show: &mut Show<'_>,
    interrupt: &mut Interrupt,
) -> Result<Option<StatusView>, CliError> {
    let mut ticks = interval(EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut silence = Silence::default();
    let mut following = Following::new(what);
    loop {
        tokio::select! {
            () = interrupt.pressed() => return Ok(None),
            _ = ticks.tick() => {}
        }
        let answer = tokio::select! {
            () = interrupt.pressed() => return Ok(None),
            answer = context.client.status() => answer,
        };
        match answer {
            Ok(status) => {
                if let Some(after) = silence.broken() {
                    show.say(&format!("the server answers again, after {} s", after.as_secs()));
                }
                show.status(&status)?;
                if following.ended(&status)? {
                    return Ok(Some(status));
                }
            }
            Err(error) if error.passes() => match silence.goes_on(Instant::now()) {
                Word::Nothing => {}
                Word::Waiting => show.say(&waiting_for(&error)),
                Word::GiveUp => return Err(error),
            },
            Err(error) => return Err(error),
        }
    }
}

/// Why nothing is seen of the rollout for a while.
fn waiting_for(error: &CliError) -> String {
    let CliError::Server(failure) = error else {
        return "the server does not answer; it restarts when its own node's engine does".to_owned();
    };
    match &failure.hint {
        Some(hint) => format!("{}; {hint}", failure.error),
        None => failure.error.clone(),
    }
}

/// Decides whether what is followed has ended.
struct Following<'a> {
    what: &'a What,
    /// Whether it was seen open: an old rollout that had ended before is not followed.
    open: bool,
    /// Looks at which the rollout was not there.
    missing: u32,
}

/// After how many looks in a row without it a rollout counts as gone.
const GONE: u32 = 100;

impl<'a> Following<'a> {
    fn new(what: &'a What) -> Self {
        // The one that was just started was open by definition.
        Self { what, open: matches!(what, What::Rollout(_)), missing: 0 }
    }

    fn ended(&mut self, status: &StatusView) -> Result<bool, CliError> {
        let wanted = status.rollout.as_ref().filter(|rollout| match self.what {
            What::Rollout(id) => rollout.id == *id,
            What::Any => true,
        });
        let Some(rollout) = wanted else {
            self.missing += 1;
            // A server that has just started may not have read the record yet.
            return match self.what {
                What::Rollout(id) if self.missing >= GONE => Err(CliError::Lost { id: id.clone() }),
                What::Rollout(_) | What::Any => Ok(false),
            };
        };
        self.missing = 0;
        let over = verdict(rollout, &status.nodes).is_some();
        self.open |= !matches!(rollout.phase, Phase::Ended { .. });
        Ok(over && self.open)
    }
}

/// How long the server has not answered.
#[derive(Default)]
struct Silence {
    since: Option<Instant>,
    last: Option<Instant>,
    said: bool,
}

/// What a silence asks for.
#[derive(Debug, PartialEq, Eq)]
enum Word {
    Nothing,
    Waiting,
    GiveUp,
}

impl Silence {
    fn goes_on(&mut self, now: Instant) -> Word {
        let since = *self.since.get_or_insert(now);
        self.last = Some(now);
        let lasted = now - since;
        if lasted >= GIVE_UP {
            Word::GiveUp
        } else if lasted >= PATIENCE && !self.said {
            self.said = true;
            Word::Waiting
        } else {
            Word::Nothing
        }
    }

    /// How long it was, if that was said.
    fn broken(&mut self) -> Option<Duration> {
        let Silence { since, last, said } = std::mem::take(self);
        since.zip(last).filter(|_| said).map(|(since, last)| last - since)
    }
}

/// The manner in which it is shown.
struct Show<'a> {
    context: &'a Context,
    tracker: Tracker,
    live: Option<Live>,
}

impl<'a> Show<'a> {
    fn new(context: &'a Context) -> Self {
        let live = context.printer.live && !context.json;
        let live = live.then(|| Live::new(&context.printer, "asking the server"));
        Self { context, tracker: Tracker::default(), live }
    }

    fn status(&mut self, status: &StatusView) -> Result<(), CliError> {
        if let Some(live) = &mut self.live {
            live.show(status);
            return Ok(());
        }
        for change in self.tracker.changes(status) {
            if self.context.json {
                self.context.printer.json(&change)?;
            } else {
                self.context.printer.out(change.line())?;
            }
        }
        Ok(())
    }

    fn say(&self, words: &str) {
        match &self.live {
            Some(live) => live.say(words),
            None => self.context.printer.note(words),
        }
    }

    fn end(self) {
        if let Some(live) = self.live {
            live.clear();
        }
    }
}

/// The last words on a rollout, and the exit code.
fn summarise(context: &Context, status: &StatusView) -> Result<Exit, CliError> {
    let rollout = status.rollout.as_ref().filter(|rollout| verdict(rollout, &status.nodes).is_some());
    let exit = rollout.and_then(|rollout| verdict(rollout, &status.nodes)).unwrap_or(Exit::Failed);
    let halted = matches!(rollout.map(|rollout| &rollout.phase), Some(Phase::Halted { .. }));
    if_read(last_words(context, status, exit, halted))?;
    Ok(exit)
}

fn last_words(context: &Context, status: &StatusView, exit: Exit, halted: bool) -> Result<(), CliError> {
    let printer = &context.printer;
    if context.json {
        return printer.json(&serde_json::json!({ "event": "end", "exit": exit.code(), "status": status }));
    }
    printer.table(&summary_table(status))?;
    printer.out(total(status))?;
    for line in troubles(status) {
        printer.note(line);
    }
    if halted {
        printer.hint(
            "`requeen resume` goes on with the other nodes, `requeen abort` ends the rollout; \
             after that `requeen rollback` takes it back",
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::tracker::tests::{done, node, status};
    use super::*;
    use crate::plan::model::{Outcome, Role};

    #[test]
    fn silence_is_said_once_and_not_for_ever() {
        let start = Instant::now();
        let at = |secs| start + Duration::from_secs(secs);
        let mut silence = Silence::default();
        assert_eq!(silence.goes_on(at(0)), Word::Nothing);
        assert_eq!(silence.goes_on(at(4)), Word::Nothing);
        assert_eq!(silence.goes_on(at(5)), Word::Waiting);
        assert_eq!(silence.goes_on(at(6)), Word::Nothing);
        assert_eq!(silence.broken(), Some(Duration::from_secs(6)));
        assert_eq!(silence.broken(), None);
        assert_eq!(silence.goes_on(at(7)), Word::Nothing, "a new silence begins anew");
        assert_eq!(silence.broken(), None, "it was too short to be said");
        silence.goes_on(at(8));
        assert_eq!(silence.goes_on(at(608)), Word::GiveUp);
    }

    #[test]
    fn what_had_ended_before_is_not_followed() {
        let upgraded = done(Outcome::Upgraded { engine_down_ms: 1 });
        let ended = status(Some(Phase::Ended { aborted: false }), vec![node("w1", Role::Worker, Some(upgraded), &[])]);
        let running = status(Some(Phase::Running), vec![]);
        let any = What::Any;
        let mut watching = Following::new(&any);
        assert!(!watching.ended(&ended).unwrap());
        assert!(!watching.ended(&running).unwrap());
        assert!(watching.ended(&ended).unwrap());
        let started = What::Rollout(RolloutId("r1".into()));
        assert!(Following::new(&started).ended(&ended).unwrap());
    }

    #[test]
    fn a_rollout_that_is_gone_is_an_error_after_a_while() {
        let started = What::Rollout(RolloutId("another".into()));
        let mut following = Following::new(&started);
        let running = status(Some(Phase::Running), vec![]);
        for _ in 1..GONE {
            assert!(!following.ended(&running).unwrap());
        }
        assert!(matches!(following.ended(&running), Err(CliError::Lost { .. })));
    }
}
