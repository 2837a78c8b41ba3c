//! The tarball of a node's part: every text passes here, and leaves its secrets here.

use std::fmt::Display;
use std::io;

use requeen_protocol::redact;
use serde_json::Value;

/// All texts together have no more bytes than this: with its headers the part stays below
/// [`requeen_protocol::MAX_COLLECTED`].
const ROOM: usize = 14 << 20;

/// A text has no more bytes than this.
pub(super) const LONGEST: usize = 2 << 20;

/// Nor a remark.
const LONGEST_NOTE: usize = 500;

/// The file that says what is missing, for the coordinator's own manifest.
const MANIFEST: &str = "MANIFEST";

/// A part in the making.
pub(super) struct Pack {
    tar: tar::Builder<Vec<u8>>,
    room: usize,
    notes: Vec<String>,
}

impl Pack {
    pub(super) fn new() -> Self {
        Self { tar: tar::Builder::new(Vec::new()), room: ROOM, notes: Vec::new() }
    }

    /// Adds a text.
    pub(super) fn text(&mut self, name: &str, text: &str) {
        self.add(name, &redact::text(text));
    }

    /// Adds what systemd says of units.
    pub(super) fn unit(&mut self, name: &str, text: &str) {
        self.add(name, &redact::unit(text));
    }

    /// Adds a JSON value.
    pub(super) fn json(&mut self, name: &str, mut value: Value) {
        redact::json(&mut value);
        self.add(name, &format!("{value:#}\n"));
    }

    /// Adds what should be JSON, as text where it is none.
    pub(super) fn json_text(&mut self, name: &str, text: &str) {
        match serde_json::from_str(text) {
            Ok(value) => self.json(name, value),
            Err(error) => {
                self.note(name, format_args!("it is no valid JSON: {error}"));
                self.text(name, text);
            }
        }
    }

    /// Says that something is not there, and why.
    pub(super) fn missing(&mut self, name: &str, why: impl Display) {
        self.note(name, format_args!("missing: {why}"));
    }

    /// Says something of a file.
    pub(super) fn note(&mut self, name: &str, what: impl Display) {
        // One line that is not too long, whatever it was that failed.
        let what = redact::text(&what.to_string());
        let words: Vec<&str> = what.split_whitespace().collect();
        self.notes.push(format!("{name}: {}", head(&words.join(" "), LONGEST_NOTE)));
    }

    /// The tarball.
    pub(super) fn finish(mut self) -> io::Result<Vec<u8>> {
        let mut notes = self.notes.join("\n");
        notes.push('\n');
        append(&mut self.tar, MANIFEST, &notes)?;
        self.tar.into_inner()
    }

    /// `text` has no secrets any more.
    fn add(&mut self, name: &str, text: &str) {
        let fits = head(text, LONGEST.min(self.room));
        if fits.len() < text.len() {
            self.note(name, format_args!("cut after {} of {} bytes", fits.len(), text.len()));
        }
        self.room -= fits.len();
        if let Err(error) = append(&mut self.tar, name, fits) {
            self.missing(name, error);
        }
    }
}

fn append(tar: &mut tar::Builder<Vec<u8>>, name: &str, text: &str) -> io::Result<()> {
    let mut header = tar::Header::new_gnu();
    header.set_size(text.len() as u64);
    header.set_mode(0o644);
    tar.append_data(&mut header, name, text.as_bytes())
}

/// The first bytes of a text, no half character among them.
fn head(text: &str, bytes: usize) -> &str {
    let mut end = bytes.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

#[cfg(test)]
pub(super) mod tests {
    use std::collections::BTreeMap;
    use std::io::Read;

    use super::*;

    /// The files of a part.
    pub(in crate::collect) fn files(part: &[u8]) -> BTreeMap<String, String> {
        let mut archive = tar::Archive::new(part);
        let mut files = BTreeMap::new();
        for entry in archive.entries().unwrap() {
            let mut entry = entry.unwrap();
            let name = entry.path().unwrap().display().to_string();
            let mut text = String::new();
            entry.read_to_string(&mut text).unwrap();
            assert!(files.insert(name.clone(), text).is_none(), "{name} twice");
        }
        files
    }

    #[test]
    fn no_way_in_leads_past_the_redaction() {
        let mut pack = Pack::new();
        pack.text("a", "SWMTKN-1-x");
        pack.unit("b", "Environment=A=x\n");
        pack.json("c", serde_json::json!({"password": "x"}));
        pack.json_text("d", "{\"token\": \"x\"}");
        pack.json_text("e", "{\"token\": \"x\",");
        pack.missing("f", "http://user:x@host\n  is not there");
        let files = files(&pack.finish().unwrap());
        assert_eq!(files["a"], "[left-out]");
        assert_eq!(files["b"], "Environment=[left-out]\n");
        assert_eq!(files["c"], "{\n  \"password\": \"[left-out]\"\n}\n");
        assert_eq!(files["d"], "{\n  \"token\": \"[left-out]\"\n}\n");
        assert_eq!(files["e"], "{\"token\": \"[left-out]\",");
        let notes: Vec<&str> = files[MANIFEST].lines().collect();
        assert!(notes[0].starts_with("e: it is no valid JSON: "), "{notes:?}");
        assert_eq!(notes[1], "f: missing: http://[left-out]@host is not there");
    }

    #[test]
    fn a_part_has_bounds() {
        let mut pack = Pack::new();
        let long = "ü".repeat(LONGEST);
        for name in ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"] {
            pack.text(name, &long);
        }
        let part = pack.finish().unwrap();
        assert!((part.len() as u64) < requeen_protocol::MAX_COLLECTED, "{}", part.len());
        let files = files(&part);
        assert_eq!((files["0"].len(), files["9"].len()), (LONGEST, 0));
        assert_eq!(files[MANIFEST].lines().count(), 10);
        assert!(files[MANIFEST].starts_with(&format!("0: cut after {LONGEST} of {} bytes\n", 2 * LONGEST)));
    }
}
