//! Having the server fetch a bundle, and showing how far it is.

use std::time::Duration;

use indicatif::{HumanBytes, ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::Context;
use super::error::CliError;
use crate::api::{FetchArgs, Fetched, Fetching, StoredBundle};

/// Makes the server hold the bundle. Where it does already nothing is fetched, and nothing said.
pub(crate) async fn fetch(context: &Context, question: FetchArgs) -> Result<StoredBundle, CliError> {
    let mut shown = Shown::new(context, &question);
    let answer = context.client.post_watched("/fetch", &question, |seen| shown.show(&seen)).await;
    shown.bar.finish_and_clear();
    match answer? {
        Fetched::Stored(stored) => Ok(stored),
        Fetched::Failed(failure) => Err(CliError::Server(failure)),
    }
}

/// What the operator sees meanwhile.
struct Shown<'a> {
    context: &'a Context,
    what: String,
    bar: ProgressBar,
    begun: bool,
    trouble: Option<String>,
}

impl<'a> Shown<'a> {
    fn new(context: &'a Context, question: &FetchArgs) -> Self {
        let bar = ProgressBar::no_length();
        if context.json {
            bar.set_draw_target(ProgressDrawTarget::hidden());
        }
        bar.enable_steady_tick(Duration::from_millis(120));
        let shown = Self { context, what: question.url.to_string(), bar, begun: false, trouble: None };
        shown.style("{spinner} the server looks for the bundle");
        shown
    }

    fn style(&self, template: &str) {
        self.bar.set_style(ProgressStyle::with_template(template).expect("the template is right"));
    }

    fn show(&mut self, seen: &Fetching) {
        if !self.begun {
            self.begun = true;
            self.style("{spinner} the server fetches {bytes} {bytes_per_sec}");
            if self.bar.is_hidden() {
                self.note(&format!("the server fetches {}", self.what));
            }
        }
        if seen.total != self.bar.length()
            && let Some(total) = seen.total
        {
            self.bar.set_length(total);
            self.style("{spinner} the server fetches {bar:30} {bytes}/{total_bytes} {bytes_per_sec}");
        }
        self.bar.set_position(seen.done);
        if self.trouble != seen.trouble
            && let Some(trouble) = &seen.trouble
        {
            self.note(&format!("broken off after {}, trying again: {trouble}", HumanBytes(seen.done)));
        }
        self.trouble.clone_from(&seen.trouble);
    }

    /// A line that stays.
    fn note(&self, words: &str) {
        if !self.context.json {
            self.bar.suspend(|| self.context.printer.note(words));
        }
    }
}
