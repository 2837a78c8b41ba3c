//! Leaving secrets out of what goes into a bug report. Pure, and the same on both sides: agents apply it to
//! everything that they collect before it leaves the node, the coordinator to what it adds.
//!
//! It errs on the side of leaving out: a word too few in a log can be asked for, a password can't be taken
//! back. Everything here may be applied to its own result and changes nothing more.

use serde_json::Value;

/// What stands where something was left out.
pub const LEFT_OUT: &str = "[left-out]";

/// A name that has one of these in it is that of a secret.
const SECRET_WORDS: &[&str] = &[
    "token",
    "password",
    "passwd",
    "passphrase",
    "secret",
    "credential",
    "apikey",
    "api-key",
    "api_key",
    "accesskey",
    "access-key",
    "access_key",
    "privatekey",
    "private-key",
    "private_key",
    // Its path is the secret (Sumo Logic's collectors).
    "sumo-url",
];

/// Headers whose whole value is a secret; a name that ends in one of them counts too.
const SECRET_HEADERS: &[&str] = &["authorization", "cookie", "x-registry-auth", "x-registry-config"];

/// What join tokens and unlock keys of swarms begin with.
const SWARM_KEYS: &[&str] = &["SWMTKN", "SWMKEY"];

/// Options of log drivers that hold no secret; everything else in them is left out.
const PLAIN_LOG_OPTIONS: &[&str] = &["max-size", "max-file", "max-buffer-size", "mode", "compress"];

/// Settings of a unit that hold values of variables or credentials.
const SECRET_SETTINGS: &[&str] = &["Environment", "SetCredential", "SetCredentialEncrypted"];

/// The text without join tokens and unlock keys, PEM blocks, users and passwords in addresses, secret
/// headers, and values of names such as `password`.
pub fn text(text: &str) -> String {
    let text = without_pem(text);
    let text = without_swarm_keys(&text);
    let text = without_users(&text);
    without_values(&text)
}

/// The text of a unit file: [`text()`], and the values of all variables that it sets.
pub fn unit(unit: &str) -> String {
    let mut kept = String::with_capacity(unit.len());
    let mut goes_on = false;
    for line in unit.lines() {
        let bare = line.trim_start();
        let is_comment = bare.starts_with(['#', ';']);
        if goes_on {
            // A comment is no part of the value and does not end it.
            goes_on = is_comment || line.trim_end().ends_with('\\');
            continue;
        }
        // What is commented out may be as secret as what is not.
        let bare = bare.trim_start_matches(|c: char| c.is_whitespace() || c == '#' || c == ';');
        let setting = bare.split_once('=').map(|(name, _)| name.trim());
        if let Some(name) = setting.filter(|name| SECRET_SETTINGS.contains(name)) {
            kept.push_str(&line[..line.len() - bare.len()]);
            kept.push_str(&format!("{name}={LEFT_OUT}\n"));
            goes_on = line.trim_end().ends_with('\\');
        } else {
            kept.push_str(line);
            kept.push('\n');
        }
    }
    text(&kept)
}

/// Takes out of a JSON value what [`text()`] takes out of texts, by the names of its members too: values of
/// secret names, of environment variables (`Env`), and of options of log drivers.
pub fn json(value: &mut Value) {
    walk(value, "");
}

fn walk(value: &mut Value, key: &str) {
    match value {
        Value::String(text) => *text = member(key, text),
        Value::Array(items) => {
            let mut after_flag = false;
            for item in items {
                let Value::String(text) = item else {
                    after_flag = false;
                    walk(item, key);
                    continue;
                };
                let flag = text.starts_with('-') && !text.contains('=') && is_secret(text);
                *text = match text.split_once('=') {
                    Some((name, _)) if key == "Env" => format!("{name}={LEFT_OUT}"),
                    Some(_) | None if after_flag => LEFT_OUT.to_owned(),
                    Some(_) | None => member(key, text),
                };
                after_flag = flag;
            }
        }
        Value::Object(members) => {
            let log_options = matches!(key, "log-opts" | "Options");
            for (name, value) in members {
                match value {
                    Value::String(text) if log_options && !PLAIN_LOG_OPTIONS.contains(&name.as_str()) => {
                        *text = LEFT_OUT.to_owned();
                    }
                    Value::Null
                    | Value::Bool(_)
                    | Value::Number(_)
                    | Value::String(_)
                    | Value::Array(_)
                    | Value::Object(_) => walk(value, name),
                }
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// A string under the name `key`.
fn member(key: &str, value: &str) -> String {
    match Kind::of(key) {
        Some(Kind::Secret | Kind::Header) if !value.is_empty() => LEFT_OUT.to_owned(),
        Some(Kind::Proxy) => text(&without_user(value)),
        Some(Kind::Secret | Kind::Header) | None => text(value),
    }
}

/// Leaves out PEM blocks of every kind. Where an end or a beginning was cut off, nothing tells how far the
/// block went: all of the text that may belong to it goes.
fn without_pem(text: &str) -> String {
    const DASHES: &str = "-----";
    const BEGIN: &str = "-----BEGIN ";
    const END: &str = "-----END ";
    let mut kept = String::with_capacity(text.len());
    // What is kept up to here is no part of any block.
    let mut safe = 0;
    let mut rest = text;
    while let Some(at) = rest.find(DASHES) {
        let (before, block) = rest.split_at(at);
        let end = match (block.starts_with(BEGIN), block.starts_with(END)) {
            (true, _) => {
                kept.push_str(before);
                block.find(END)
            }
            (false, true) => {
                kept.truncate(safe);
                Some(0)
            }
            (false, false) => {
                kept.push_str(before);
                // There may be more dashes than five before a beginning.
                kept.push('-');
                rest = &block["-".len()..];
                continue;
            }
        };
        kept.push_str(LEFT_OUT);
        safe = kept.len();
        let Some(end) = end else { return kept };
        let after = &block[end + END.len()..];
        // The label goes too, and the dashes that close it.
        let closed = after.trim_start_matches(|c: char| c.is_ascii_uppercase() || c.is_ascii_digit() || c == ' ');
        rest = closed.strip_prefix(DASHES).unwrap_or(after);
    }
    kept.push_str(rest);
    kept
}

/// Leaves out join tokens and unlock keys of swarms.
fn without_swarm_keys(text: &str) -> String {
    let mut kept = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("SWM") {
        let (before, key) = rest.split_at(at);
        kept.push_str(before);
        if SWARM_KEYS.iter().any(|prefix| key.starts_with(prefix)) {
            kept.push_str(LEFT_OUT);
            // Unlock keys are base64.
            rest = key.trim_start_matches(|c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '+' | '/' | '='));
        } else {
            kept.push_str("SWM");
            rest = &key["SWM".len()..];
        }
    }
    kept.push_str(rest);
    kept
}

/// Leaves out `user:password` of every `scheme://user:password@host`.
fn without_users(text: &str) -> String {
    let mut kept = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("://") {
        let (scheme, after) = rest.split_at(at + "://".len());
        kept.push_str(scheme);
        let ends = |c: char| c.is_whitespace() || c.is_control() || matches!(c, '"' | '\'' | '`' | '<' | '>' | '\\');
        let address = &after[..after.find(ends).unwrap_or(after.len())];
        let authority = &address[..address.find(['/', '?', '#']).unwrap_or(address.len())];
        let user = match authority.rfind('@') {
            Some(at) => Some(at),
            // A password may hold the signs that end an authority, although it should not.
            None if authority.contains(':') => address.rfind('@'),
            None => None,
        };
        rest = match user {
            Some(at) => {
                kept.push_str(LEFT_OUT);
                &after[at..]
            }
            None => after,
        };
    }
    kept.push_str(rest);
    kept
}

/// An address without scheme may have a user too, as values of proxy settings do.
fn without_user(value: &str) -> String {
    match (value.contains("://"), value.rfind('@')) {
        (false, Some(at)) => format!("{LEFT_OUT}{}", &value[at..]),
        (true, _) | (false, None) => value.to_owned(),
    }
}

/// What a name says of its value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// The value is a secret.
    Secret,
    /// The value is a secret that goes on to the end of its line.
    Header,
    /// The value is the address of a proxy, which may have a user.
    Proxy,
}

impl Kind {
    fn of(name: &str) -> Option<Self> {
        if SECRET_HEADERS.iter().any(|header| ends_in(name, header)) {
            Some(Kind::Header)
        } else if is_secret(name) {
            Some(Kind::Secret)
        } else if has_word(name, "proxy") {
            Some(Kind::Proxy)
        } else {
            None
        }
    }
}

fn ends_in(name: &str, header: &str) -> bool {
    let from = name.len().checked_sub(header.len());
    from.is_some_and(|from| name.as_bytes()[from..].eq_ignore_ascii_case(header.as_bytes()))
}

fn is_secret(name: &str) -> bool {
    SECRET_WORDS.iter().any(|word| has_word(name, word))
}

fn has_word(name: &str, word: &str) -> bool {
    name.as_bytes().windows(word.len()).any(|part| part.eq_ignore_ascii_case(word.as_bytes()))
}

/// Leaves out the values of secret names, in the forms `name=value`, `name: value`, `"name":"value"` (its
/// quotes escaped or not) and `--name value`.
fn without_values(text: &str) -> String {
    let in_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    let mut kept = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find(in_name) {
        let end = rest[start..].find(|c| !in_name(c)).map_or(rest.len(), |len| start + len);
        let name = &rest[start..end];
        kept.push_str(&rest[..end]);
        rest = &rest[end..];
        let Some(kind) = Kind::of(name) else { continue };
        let Some(value) = value(rest, name.starts_with("--"), kind) else { continue };
        let replaced = match kind {
            Kind::Secret | Kind::Header => LEFT_OUT.to_owned(),
            Kind::Proxy => without_user(&rest[value.clone()]),
        };
        kept.push_str(&rest[..value.start]);
        kept.push_str(&replaced);
        rest = &rest[value.end..];
    }
    kept.push_str(rest);
    kept
}

/// Where in `rest`, the text behind a name, its value is.
fn value(rest: &str, flag: bool, kind: Kind) -> Option<std::ops::Range<usize>> {
    let blank = |c: char| c == ' ' || c == '\t';
    let behind_quote = rest.trim_start_matches(['\\', '"', '\'']);
    let separator = behind_quote.trim_start_matches(blank);
    let value = match separator.strip_prefix([':', '=']) {
        Some(value) => value.trim_start_matches(blank),
        None if flag && behind_quote.len() == rest.len() && separator.len() < rest.len() => separator,
        None => return None,
    };
    let quote = ["\\\"", "\"", "'"].into_iter().find(|quote| value.starts_with(quote));
    let (skipped, length) = match quote {
        Some(quote) => (quote.len(), quoted(&value[quote.len()..], quote)),
        None if kind == Kind::Header => (0, value.find('\n').unwrap_or(value.len())),
        // What is in a group has names of its own.
        None if value.starts_with('{') => return None,
        None if value.starts_with('[') => {
            let end = value.find([']', '\n']).unwrap_or(value.len());
            (0, if value[end..].starts_with(']') { end + 1 } else { end })
        }
        None => {
            let ends = |c: char| c.is_whitespace() || matches!(c, '"' | '\'' | '`' | '\\' | '&');
            (0, value.find(ends).unwrap_or(value.len()))
        }
    };
    let found = value[skipped..skipped + length].trim_end_matches(',');
    let plain = matches!(found, "" | "null" | "true" | "false" | "[" | "[]");
    let start = rest.len() - value.len() + skipped;
    (!plain).then_some(start..start + length)
}

/// How long a quoted value is whose opening quote is left behind; to the end of the line where it is not closed.
fn quoted(value: &str, quote: &str) -> usize {
    let (escapes, sign) = (quote.starts_with('\\'), if quote.ends_with('"') { '"' } else { '\'' });
    let mut from = 0;
    while let Some(at) = value[from..].find([sign, '\n']) {
        let at = from + at;
        let escaped = value[..at].ends_with('\\');
        match (value[at..].starts_with('\n'), escapes, escaped) {
            (true, _, _) | (false, false, false) => return at,
            // The sign that escapes the quote is no part of the value either.
            (false, true, true) => return at - 1,
            (false, true, false) | (false, false, true) => from = at + 1,
        }
    }
    value.len()
}

#[cfg(test)]
#[path = "redact_tests.rs"]
mod tests;
