//! The way into a machine: ssh, over one connection that stays open. It carries a command's input, both of its outputs
//! and its status.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::command::{self, Input};
use crate::{Error, Node, Result};

use super::network;

/// Makes the lab's key, and what ssh has to know of its nodes.
pub(super) fn prepare(folder: &Path, nodes: &[Node]) -> Result<()> {
    let key = folder.join("key");
    let place = key.display().to_string();
    command::run("ssh-keygen", &["-q", "-t", "ed25519", "-N", "", "-C", "", "-f", &place])?;
    let path = config(folder);
    fs::write(&path, settings(folder, nodes)).map_err(Error::file("write", &path))
}

/// The key that machines let in, without its type.
pub(super) fn public_key(folder: &Path) -> Result<String> {
    let path = folder.join("key.pub");
    let text = fs::read_to_string(&path).map_err(Error::file("read", &path))?;
    Ok(text.split_whitespace().nth(1).unwrap_or_default().to_owned())
}

/// A command in a machine, not yet started.
pub(super) fn command(folder: &Path, lab: &str, name: &str, words: &[&str], terminal: bool) -> Command {
    let mut ssh = network::inside(lab, "ssh");
    ssh.arg("-F").arg(config(folder)).arg(if terminal { "-t" } else { "-T" });
    ssh.args([name, "--", &line(words)]);
    ssh
}

/// Ends the open connection to a machine: at the other end is nobody any more.
pub(super) fn forget(folder: &Path, name: &str) -> Result<()> {
    if !folder.join(socket(name)).exists() {
        return Ok(());
    }
    let mut ssh = Command::new("ssh");
    ssh.arg("-F").arg(config(folder)).args(["-O", "exit", name]);
    // One that has just ended by itself is no failure.
    command::collect(&mut ssh, Input::Empty).map(drop)
}

fn config(folder: &Path) -> PathBuf {
    folder.join("ssh_config")
}

fn socket(name: &str) -> String {
    format!("{name}.ssh")
}

fn settings(folder: &Path, nodes: &[Node]) -> String {
    let place = folder.display();
    // Whoever answers in the lab's own network namespace is one of its machines, with a key of this boot.
    let mut text = format!(
        "Host *\n  User root\n  IdentityFile {place}/key\n  IdentitiesOnly yes\n  BatchMode yes\n  LogLevel ERROR\n  \
         StrictHostKeyChecking no\n  UserKnownHostsFile /dev/null\n  EscapeChar none\n  ConnectTimeout 10\n  \
         ServerAliveInterval 15\n  ServerAliveCountMax 8\n  ControlMaster auto\n  ControlPersist yes\n  \
         ControlPath {place}/{}\n",
        socket("%n")
    );
    for node in nodes {
        // Writing to a string can't fail.
        writeln!(text, "Host {}\n  HostName {}", node.name(), network::control(node.ip())).ok();
    }
    text
}

/// The words as one line for the shell at the other end, which gives the command's status as its own.
fn line(words: &[&str]) -> String {
    let quoted: Vec<String> = words.iter().map(|word| quote(word)).collect();
    format!("cd / && {}; exit $?", quoted.join(" "))
}

fn quote(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_arrive_as_they_are() {
        let words = ["printf", "<%s>", "", "a b", "it's", "$HOME", "new\nline", "\"", "\\"];
        let output = command::run("sh", &["-c", &line(&words)]).expect("printf runs");
        assert_eq!(output.stdout, "<><a b><it's><$HOME><new\nline><\"><\\>");
    }

    #[test]
    fn a_status_is_the_commands_own() {
        for (words, status) in [(&["sh", "-c", "exit 3"][..], 3), (&["sh", "-c", "kill -9 $$"], 137)] {
            let output = command::collect(Command::new("sh").args(["-c", &line(words)]), Input::Empty).expect("sh");
            assert_eq!(output.status, status);
        }
    }
}
