//! Redrawing a status in place, on a terminal.

use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use super::print::Printer;
use super::view::{headline, status_table};
use crate::api::StatusView;

/// Lines on stderr that change where they stand.
pub(crate) struct Live {
    screen: MultiProgress,
    spinner: ProgressBar,
    lines: Vec<ProgressBar>,
    color: bool,
}

impl Live {
    /// Begins with one line that says `words`.
    pub(crate) fn new(printer: &Printer, words: &str) -> Self {
        let screen = MultiProgress::new();
        let spinner = screen.add(ProgressBar::new_spinner());
        spinner.set_message(words.to_owned());
        spinner.enable_steady_tick(Duration::from_millis(120));
        Self { screen, spinner, lines: Vec::new(), color: printer.color_err() }
    }

    /// The first line says `words`; the nodes stay as they were.
    pub(crate) fn say(&self, words: impl Into<String>) {
        self.spinner.set_message(words.into());
    }

    /// Shows `status`.
    pub(crate) fn show(&mut self, status: &StatusView) {
        self.spinner.set_message(headline(status));
        let table = status_table(status).lines(self.color);
        while self.lines.len() < table.len() {
            let style = ProgressStyle::with_template("{wide_msg}").expect("the template is right");
            self.lines.push(self.screen.add(ProgressBar::new(0).with_style(style)));
        }
        for gone in self.lines.drain(table.len()..) {
            gone.finish_and_clear();
        }
        for (line, text) in self.lines.iter().zip(table) {
            line.set_message(text);
        }
    }

    /// Takes everything off the screen, so that lasting lines can be printed.
    pub(crate) fn clear(self) {
        self.spinner.finish_and_clear();
        for line in self.lines {
            line.finish_and_clear();
        }
        // What can't be cleared is left there.
        let _ = self.screen.clear();
    }
}
