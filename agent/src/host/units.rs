//! What a systemd service file says of the program it runs.
//!
//! Pure parsers over text: `systemd.syntax(7)`, `systemd.service(5)` (command lines) and
//! `systemd.exec(5)` (environment), as far as the units of engines use them. Where the texts come from
//! is the business of [`super::layout`].

use std::collections::BTreeMap;

/// The parts of a service unit that say how its program is started.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Service {
    /// `ExecStart=` lines, as written.
    pub exec_start: Vec<String>,
    /// `Environment=` assignments, in order.
    pub environment: Vec<(String, String)>,
    /// `EnvironmentFile=` paths, in order; those that may be missing have `true`.
    pub environment_files: Vec<(String, bool)>,
}

/// A command line as systemd would run it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommandLine {
    /// The program, and then its arguments.
    pub argv: Vec<String>,
}

impl Service {
    /// Reads a unit's main file and then its drop-ins, in the order in which systemd applies them.
    pub fn parse<'a>(texts: impl IntoIterator<Item = &'a str>) -> Self {
        let mut service = Self::default();
        for text in texts {
            let mut section = String::new();
            for line in logical_lines(text) {
                if let Some(name) = line.strip_prefix('[').and_then(|l| l.strip_suffix(']')) {
                    section = name.to_owned();
                } else if section == "Service"
                    && let Some((key, value)) = line.split_once('=')
                {
                    service.set(key.trim(), value.trim());
                }
            }
        }
        service
    }

    fn set(&mut self, key: &str, value: &str) {
        match key {
            // An empty assignment forgets what was assigned before.
            "ExecStart" if value.is_empty() => self.exec_start.clear(),
            "ExecStart" => self.exec_start.push(value.to_owned()),
            "Environment" if value.is_empty() => self.environment.clear(),
            "Environment" => {
                self.environment.extend(words(value).into_iter().filter_map(|word| assignment(&word.text)))
            }
            "EnvironmentFile" if value.is_empty() => self.environment_files.clear(),
            "EnvironmentFile" => {
                let path = value.strip_prefix('-');
                self.environment_files.push((path.unwrap_or(value).to_owned(), path.is_some()));
            }
            _ => {}
        }
    }

    /// The environment that the unit sets. `read` gives the text of an environment file, or nothing if
    /// there is none; files come after `Environment=` and win over it.
    pub fn variables(&self, read: impl Fn(&str) -> Option<String>) -> BTreeMap<String, String> {
        let mut variables: BTreeMap<_, _> = self.environment.iter().cloned().collect();
        for (path, _) in &self.environment_files {
            if let Some(text) = read(path) {
                variables.extend(environment_file(&text));
            }
        }
        variables
    }

    /// The command line that the unit runs, variables replaced; nothing if it has none. A unit of a
    /// daemon has one command; of several systemd runs the last one last.
    pub fn command_line(&self, variables: &BTreeMap<String, String>) -> Option<CommandLine> {
        let line = self.exec_start.last()?;
        let command = line.trim_start_matches(['@', '-', ':', '+', '!', '|']);
        let prefixes = &line[..line.len() - command.len()];
        let literal = prefixes.contains(':');
        let mut argv = Vec::new();
        for word in words(command) {
            if literal {
                argv.push(word.text);
            } else {
                expand(&word, variables, &mut argv);
            }
        }
        if prefixes.contains('@') && argv.len() > 1 {
            // The second word is what the program is told to be called.
            argv.remove(1);
        }
        if argv.is_empty() {
            return None;
        }
        Some(CommandLine { argv })
    }
}

/// Lines with continuations joined, without comments and empty lines.
fn logical_lines(text: &str) -> Vec<String> {
    let mut lines = Vec::new();
    let mut joined = String::new();
    for line in text.lines() {
        let line = line.trim();
        // A comment between continued lines is no part of them and does not end them.
        if line.starts_with(['#', ';']) {
            continue;
        }
        match line.strip_suffix('\\') {
            Some(begun) => {
                joined.push_str(begun);
                joined.push(' ');
            }
            None => {
                joined.push_str(line);
                let line = std::mem::take(&mut joined);
                if !line.trim().is_empty() {
                    lines.push(line.trim().to_owned());
                }
            }
        }
    }
    if !joined.trim().is_empty() {
        lines.push(joined.trim().to_owned());
    }
    lines
}

/// A word of a line, unquoted.
#[derive(Debug)]
struct Word {
    text: String,
    quoted: bool,
}

/// Splits at white space; understands quotes and the escapes that occur in them.
fn words(line: &str) -> Vec<Word> {
    let mut words = Vec::new();
    let mut word: Option<Word> = None;
    let mut quote = None;
    let mut chars = line.chars();
    while let Some(c) = chars.next() {
        let begun = |word: &mut Option<Word>| {
            word.get_or_insert_with(|| Word { text: String::new(), quoted: false });
        };
        match (quote, c) {
            (Some(open), c) if c == open => quote = None,
            (None, '"' | '\'') => {
                begun(&mut word);
                if let Some(word) = &mut word {
                    word.quoted = true;
                }
                quote = Some(c);
            }
            (None, c) if c.is_whitespace() => words.extend(word.take()),
            (None | Some(_), c) => {
                begun(&mut word);
                let c = if c == '\\' { escaped(&mut chars) } else { c };
                if let Some(word) = &mut word {
                    word.text.push(c);
                }
            }
        }
    }
    words.extend(word);
    words
}

/// The character after a backslash.
fn escaped(chars: &mut std::str::Chars<'_>) -> char {
    match chars.next() {
        Some('n') => '\n',
        Some('t') => '\t',
        Some('r') => '\r',
        Some('s') => ' ',
        Some('x') => {
            let digits: String = chars.by_ref().take(2).collect();
            u8::from_str_radix(&digits, 16).map_or('\u{fffd}', char::from)
        }
        Some(other) => other,
        None => '\\',
    }
}

fn assignment(word: &str) -> Option<(String, String)> {
    let (name, value) = word.split_once('=')?;
    Some((name.to_owned(), value.to_owned()))
}

/// The assignments of an environment file.
fn environment_file(text: &str) -> Vec<(String, String)> {
    logical_lines(text)
        .iter()
        .filter_map(|line| {
            let (name, value) = line.split_once('=')?;
            let value: Vec<String> = words(value).into_iter().map(|word| word.text).collect();
            Some((name.trim().to_owned(), value.join(" ")))
        })
        .collect()
}

/// Replaces variables and the doubled signs: `$NAME` as a word of its own becomes none, one or more
/// words, `${NAME}` stays in its word.
fn expand(word: &Word, variables: &BTreeMap<String, String>, argv: &mut Vec<String>) {
    let value = |name: &str| variables.get(name).map(String::as_str).unwrap_or_default();
    if let Some(name) = word.text.strip_prefix('$')
        && !word.quoted
        && !name.is_empty()
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
    {
        argv.extend(words(value(name)).into_iter().map(|word| word.text));
        return;
    }
    let mut text = String::new();
    let mut rest = word.text.as_str();
    while let Some(at) = rest.find(['$', '%']) {
        text.push_str(&rest[..at]);
        rest = &rest[at..];
        if let Some(after) = rest.strip_prefix("$$") {
            text.push('$');
            rest = after;
        } else if let Some(after) = rest.strip_prefix("%%") {
            text.push('%');
            rest = after;
        } else if let Some((name, after)) = rest.strip_prefix("${").and_then(|r| r.split_once('}')) {
            text.push_str(value(name));
            rest = after;
        } else {
            text.push_str(&rest[..1]);
            rest = &rest[1..];
        }
    }
    text.push_str(rest);
    argv.push(text);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn argv(texts: &[&str], files: &[(&str, &str)]) -> Vec<String> {
        let service = Service::parse(texts.iter().copied());
        let variables =
            service.variables(|path| files.iter().find(|(name, _)| *name == path).map(|(_, text)| (*text).to_owned()));
        service.command_line(&variables).map(|line| line.argv).unwrap_or_default()
    }

    #[test]
    fn debians_unit_with_options() {
        let unit = "[Unit]\nDescription=x\n[Service]\nType=notify\n# words\n\
            EnvironmentFile=-/etc/default/docker\n\
            ExecStart=/usr/sbin/dockerd -H fd:// --containerd=/run/containerd/containerd.sock $DOCKER_OPTS\n";
        let expected = ["/usr/sbin/dockerd", "-H", "fd://", "--containerd=/run/containerd/containerd.sock"];
        assert_eq!(argv(&[unit], &[]), expected, "no file, no option");
        let options = "# comment\nDOCKER_OPTS=\"--dns 8.8.8.8 --debug\"\n";
        let mut longer = expected.to_vec();
        longer.extend(["--dns", "8.8.8.8", "--debug"]);
        assert_eq!(argv(&[unit], &[("/etc/default/docker", options)]), longer);
    }

    #[test]
    fn command_lines() {
        let cases: &[(&str, &[&str])] = &[
            ("ExecStart=/a/dockerd", &["/a/dockerd"]),
            ("ExecStart=-/a/dockerd", &["/a/dockerd"]),
            ("ExecStart=@/a/dockerd name -D", &["/a/dockerd", "-D"]),
            ("ExecStart=!!+-/a/dockerd", &["/a/dockerd"]),
            ("ExecStart=:/a/dockerd $X ${X}", &["/a/dockerd", "$X", "${X}"]),
            ("ExecStart=/a/d -H \\\n  fd:// \\\n# why\n  -D", &["/a/d", "-H", "fd://", "-D"]),
            ("ExecStart=/a/d 'one word' \"and \\\"two\\\"\"", &["/a/d", "one word", "and \"two\""]),
            ("ExecStart=/a/d 100%% $$HOME", &["/a/d", "100%", "$HOME"]),
            (
                "Environment=X=1 \"Y=two words\"\nExecStart=/a/d --x=${X} $Y \"${Y}\"",
                &["/a/d", "--x=1", "two", "words", "two words"],
            ),
            ("ExecStart=/old\nExecStart=\nExecStart=/new -D", &["/new", "-D"]),
            ("ExecStart=/old\nExecStart=", &[]),
            ("ExecStartPre=/x", &[]),
        ];
        for (lines, expected) in cases {
            let unit = format!("[Service]\n{lines}\n");
            assert_eq!(argv(&[&unit], &[]), *expected, "{lines}");
        }
        assert!(argv(&["[Unit]\nExecStart=/x\n"], &[]).is_empty(), "another section");
    }

    #[test]
    fn a_drop_in_replaces_the_command() {
        let unit = "[Service]\nEnvironment=PATH=/one\nExecStart=/usr/bin/dockerd -H fd://\n";
        let drop_in = "[Service]\nEnvironment=PATH=/opt/bin:/usr/bin\nExecStart=\nExecStart=/opt/bin/dockerd\n";
        let service = Service::parse([unit, drop_in]);
        let variables = service.variables(|_| None);
        assert_eq!(variables["PATH"], "/opt/bin:/usr/bin");
        assert_eq!(service.command_line(&variables).map(|line| line.argv), Some(vec!["/opt/bin/dockerd".to_owned()]));
    }
}
