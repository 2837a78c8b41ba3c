//! The one place that prints. Data goes to stdout, words go to stderr.

use std::error::Error as _;
use std::fmt::{self, Display};
use std::io::{self, IsTerminal, Write};

use clap::builder::styling::{AnsiColor, Style};
use serde::Serialize;

use super::error::CliError;

/// What a piece of text means; the printer decides how that looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tone {
    /// Nothing special.
    Plain,
    /// A heading.
    Strong,
    /// Less important than the rest.
    Faint,
    /// Done and well.
    Good,
    /// In motion, or to be noticed.
    Busy,
    /// Failed.
    Bad,
}

impl Tone {
    fn style(self) -> Style {
        match self {
            Tone::Plain => Style::new(),
            Tone::Strong => Style::new().bold(),
            Tone::Faint => Style::new().dimmed(),
            Tone::Good => AnsiColor::Green.on_default(),
            Tone::Busy => AnsiColor::Cyan.on_default(),
            Tone::Bad => AnsiColor::Red.on_default().bold(),
        }
    }
}

/// Prints, with colours where they are wanted and seen.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Printer {
    /// Whether stdout gets colours.
    color_out: bool,
    /// Whether stderr gets colours.
    color_err: bool,
    /// Whether stdout and stderr are terminals: lines may be redrawn.
    pub(crate) live: bool,
}

impl Printer {
    /// A printer for this process's stdout and stderr.
    pub(crate) fn new(no_color: bool) -> Self {
        let (out, err) = (io::stdout().is_terminal(), io::stderr().is_terminal());
        // https://no-color.org: any value but the empty one.
        let color = !no_color
            && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
            && std::env::var_os("TERM").is_none_or(|term| term != "dumb");
        Self { color_out: color && out, color_err: color && err, live: out && err }
    }

    /// Whether stderr gets colours.
    pub(crate) fn color_err(&self) -> bool {
        self.color_err
    }

    /// A line of data.
    pub(crate) fn out(&self, line: impl Display) -> Result<(), CliError> {
        let mut stdout = io::stdout().lock();
        writeln!(stdout, "{line}").and_then(|()| stdout.flush()).map_err(stdout_error)
    }

    /// Bytes of data, as they are.
    pub(crate) fn out_bytes(&self, bytes: &[u8]) -> Result<(), CliError> {
        let mut stdout = io::stdout().lock();
        stdout.write_all(bytes).and_then(|()| stdout.flush()).map_err(stdout_error)
    }

    /// A value as JSON: one line each.
    pub(crate) fn json(&self, value: &impl Serialize) -> Result<(), CliError> {
        self.out(serde_json::to_string(value).expect("the API's types are JSON"))
    }

    /// A value as JSON over several lines, for a single answer.
    pub(crate) fn json_pretty(&self, value: &impl Serialize) -> Result<(), CliError> {
        self.out(serde_json::to_string_pretty(value).expect("the API's types are JSON"))
    }

    /// A table of data.
    pub(crate) fn table(&self, table: &Table) -> Result<(), CliError> {
        for line in table.lines(self.color_out) {
            self.out(line)?;
        }
        Ok(())
    }

    /// `text` as it looks on stdout.
    pub(crate) fn paint(&self, tone: Tone, text: impl Display) -> String {
        paint(self.color_out, tone, text)
    }

    /// A line of words.
    pub(crate) fn note(&self, line: impl Display) {
        // There is nobody left to tell that stderr is closed.
        let _ = writeln!(io::stderr().lock(), "{line}");
    }

    /// What could be done next.
    pub(crate) fn hint(&self, hint: impl Display) {
        self.note(format_args!("{} {hint}", paint(self.color_err, Tone::Busy, "hint:")));
    }

    /// An error: what, why, and what to do.
    pub(crate) fn error(&self, error: &CliError) {
        if matches!(error, CliError::Closed) {
            return;
        }
        self.note(format_args!("{} {error}", paint(self.color_err, Tone::Bad, "error:")));
        let mut source = error.source();
        while let Some(cause) = source {
            self.note(format_args!("  {} {cause}", paint(self.color_err, Tone::Faint, "because:")));
            source = cause.source();
        }
        if let Some(hint) = error.hint() {
            self.hint(hint);
        }
    }

    /// Whether somebody can be asked.
    pub(crate) fn can_ask(&self) -> bool {
        io::stdin().is_terminal() && io::stderr().is_terminal()
    }

    /// Asks for a yes, where somebody can give it.
    pub(crate) fn confirm(&self, question: &str) -> Result<bool, CliError> {
        if !self.can_ask() {
            return Ok(false);
        }
        let mut stderr = io::stderr().lock();
        let _ = write!(stderr, "{question} [y/N] ").and_then(|()| stderr.flush());
        let mut answer = String::new();
        io::stdin().read_line(&mut answer).map_err(|source| CliError::Stdin { source })?;
        Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
    }
}

fn stdout_error(source: io::Error) -> CliError {
    if source.kind() == io::ErrorKind::BrokenPipe { CliError::Closed } else { CliError::Stdout { source } }
}

fn paint(color: bool, tone: Tone, text: impl Display) -> String {
    let style = tone.style();
    if color && tone != Tone::Plain { format!("{style}{text}{style:#}") } else { text.to_string() }
}

/// A cell of a [`Table`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Cell {
    text: String,
    tone: Tone,
}

impl Cell {
    /// A cell with a meaning.
    pub(crate) fn new(tone: Tone, text: impl Into<String>) -> Self {
        Self { text: text.into(), tone }
    }
}

impl<T: Into<String>> From<T> for Cell {
    fn from(text: T) -> Self {
        Cell::new(Tone::Plain, text)
    }
}

/// Columns as wide as their widest cell; the last one is not filled up.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Table {
    rows: Vec<Vec<Cell>>,
}

impl Table {
    /// A table with these headings.
    pub(crate) fn new(headings: &[&str]) -> Self {
        Self { rows: vec![headings.iter().map(|text| Cell::new(Tone::Faint, *text)).collect()] }
    }

    /// One more row.
    pub(crate) fn row<const N: usize>(&mut self, cells: [Cell; N]) {
        self.rows.push(cells.into());
    }

    /// The lines, headings first.
    pub(crate) fn lines(&self, color: bool) -> Vec<String> {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize| {
            self.rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.text.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        self.rows
            .iter()
            .map(|row| {
                let last = row.iter().rposition(|cell| !cell.text.is_empty());
                let filled = row.iter().zip(&widths).enumerate().take(last.map_or(0, |last| last + 1));
                filled.fold(String::new(), |line, (column, (cell, width))| {
                    let gap = if column == 0 { "" } else { "  " };
                    let fill = if Some(column) == last { 0 } else { width - cell.text.chars().count() };
                    format!("{line}{gap}{}{}", paint(color, cell.tone, &cell.text), " ".repeat(fill))
                })
            })
            .collect()
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.lines(false).iter().try_for_each(|line| writeln!(f, "{line}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_line_up() {
        let mut table = Table::new(&["NODE", "WHY"]);
        table.row(["a".into(), Cell::new(Tone::Bad, "broken")]);
        table.row(["höhle-7".into(), "".into()]);
        assert_eq!(table.to_string(), "NODE     WHY\na        broken\nhöhle-7\n");
        let colored = table.lines(true);
        assert!(colored[1].contains("\u{1b}["), "{colored:?}");
        assert!(colored[1].starts_with("a        \u{1b}"), "padding does not count escapes: {colored:?}");
    }

    #[test]
    fn a_reader_that_left_is_no_error_to_print() {
        assert!(matches!(stdout_error(io::ErrorKind::BrokenPipe.into()), CliError::Closed));
        assert!(matches!(stdout_error(io::ErrorKind::StorageFull.into()), CliError::Stdout { .. }));
    }
}
