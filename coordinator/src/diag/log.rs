//! The server's own last words: it has no log file, and its container's log belongs to the engine.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::{Arc, Mutex, PoisonError};

/// So many lines are kept, and so many bytes of them.
const LINES: usize = 2000;
const BYTES: usize = 1 << 20;

/// No line is kept with more bytes.
const LONGEST: usize = 16 << 10;

/// The last lines that were logged.
#[derive(Debug, Default)]
pub struct LogTail {
    held: Mutex<Held>,
}

#[derive(Debug, Default)]
struct Held {
    lines: VecDeque<String>,
    bytes: usize,
}

impl LogTail {
    /// Keeps what is logged, and forgets the oldest.
    fn keep(&self, logged: &[u8]) {
        let logged = String::from_utf8_lossy(&logged[..logged.len().min(LONGEST)]);
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        for line in logged.lines() {
            let line = without_colours(line);
            held.bytes += line.len();
            held.lines.push_back(line);
        }
        while held.lines.len() > LINES || held.bytes > BYTES {
            let gone = held.lines.pop_front().map_or(0, |line| line.len());
            held.bytes = held.bytes.saturating_sub(gone);
        }
    }

    /// The lines, oldest first.
    pub(crate) fn text(&self) -> String {
        let held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.lines.iter().flat_map(|line| [line.as_str(), "\n"]).collect()
    }
}

/// Standard error, of which the last lines are kept. Each write is one event.
#[derive(Debug)]
pub struct Kept(pub Arc<LogTail>);

impl Write for Kept {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.keep(bytes);
        io::stderr().write_all(bytes)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

/// A line without the sequences that colour it on a terminal.
fn without_colours(line: &str) -> String {
    let mut plain = String::with_capacity(line.len());
    let mut rest = line;
    while let Some((before, after)) = rest.split_once("\u{1b}[") {
        plain.push_str(before);
        rest = after.trim_start_matches(|c: char| c.is_ascii_digit() || c == ';');
        rest = rest.strip_prefix(|c: char| c.is_ascii_alphabetic()).unwrap_or(rest);
    }
    plain.push_str(rest);
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_lines_are_kept_within_bounds() {
        let tail = LogTail::default();
        for number in 0..3 * LINES {
            tail.keep(format!("line {number}\n").as_bytes());
        }
        let text = tail.text();
        assert_eq!(text.lines().count(), LINES);
        assert!(text.starts_with(&format!("line {}\n", 2 * LINES)) && text.ends_with(&format!("{}\n", 3 * LINES - 1)));
        for _ in 0..200 {
            tail.keep(&vec![b'x'; 2 * LONGEST]);
        }
        let text = tail.text();
        assert!(text.len() <= BYTES + LINES, "{}", text.len());
        assert!(text.lines().all(|line| line.len() <= LONGEST));
    }

    #[test]
    fn colours_are_no_part_of_a_line() {
        let tail = LogTail::default();
        tail.keep("\u{1b}[2m12:00\u{1b}[0m \u{1b}[1;32mINFO\u{1b}[0m café\n".as_bytes());
        assert_eq!(tail.text(), "12:00 INFO café\n");
    }
}
